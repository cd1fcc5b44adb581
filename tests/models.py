"""Small models with random weights, made and saved here, and loaded as any other: by folder or from a hub cache."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support import make_text

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:)(.,!?'😀"
VOCABULARY = [*_SPECIALS, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]


def make_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> Any:
    """Word pieces of one character: a text has about as many tokens as characters."""
    tokenizer = Tokenizer(
        models.WordPiece({t: n for n, t in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


def save(folder: Path, network: Any) -> Path:
    """With weights large enough that texts differ in what the model says of them."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    network.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """With a pooler."""
    torch.manual_seed(seed)
    return save(
        folder, transformers.BertModel(transformers.BertConfig(vocab_size=len(VOCABULARY), **SIZES))
    )


def save_distil(folder: Path) -> Path:
    """Without a pooler."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    return save(
        folder,
        transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=len(VOCABULARY), **sizes)
        ),
    )


def save_classifier(folder: Path, labels: Sequence[str]) -> Path:
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        id2label=names,
        label2id={label: n for n, label in names.items()},
        **SIZES,
    )
    return save(folder, transformers.BertForSequenceClassification(config))


def save_checkpoint(path: Path, encoder: Path, outputs: int = 4) -> dict[str, torch.Tensor]:
    """As a fine-tuned model of the group's is saved: other weights than the encoder's, and a classifier."""
    torch.manual_seed(1)
    network = transformers.AutoModel.from_pretrained(encoder)
    state = {
        f"model.{key}": value + 0.05 * torch.randn_like(value)
        for key, value in network.state_dict().items()
    }
    state |= {
        "classifier.weight": torch.randn(outputs, 32),
        "classifier.bias": torch.randn(outputs),
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return state


def put_in_hub_cache(cache: Path, folder: Path, name: str, commit: str) -> None:
    """As `huggingface_hub` leaves a model that it has downloaded."""
    home = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)


def texts(count: int, seed: int = 0) -> list[str]:
    """Of lengths from 1 to some hundred tokens, in no order."""
    rng = random.Random(seed)
    return [
        " ".join(make_text(rng.randrange(10**6)) for _ in range(rng.choice([1, 1, 1, 4])))
        for _ in range(count)
    ]
