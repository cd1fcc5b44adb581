"""The back end `checkpoint`, against the same computation in plain PyTorch."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from datasets.errors import ConfigError
from tests import models
from tests.actors.models.loading import IME, TEXTS, close, load, settings


def pooled_by_hand(
    encoder: Path, state: dict[str, torch.Tensor], texts: Sequence[str], pooling: str
) -> Any:
    """The computation of the research group's model, in plain PyTorch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    network = transformers.AutoModel.from_pretrained(encoder).eval()
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    )
    padding = "max_length" if pooling == "padded-mean" else "longest"
    encoded = tokenizer(
        list(texts),
        padding=padding,
        max_length=512,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        found = network(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    if pooling == "pooler":
        pooled = found.pooler_output
    elif pooling == "padded-mean":
        pooled = found.last_hidden_state.mean(dim=1)
    else:
        mask = encoded["attention_mask"][:, :, None]
        pooled = (found.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.sigmoid(pooled @ state["classifier.weight"].T + state["classifier.bias"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("kind", "pooling", "by_hand"),
    [
        ("encoder", "auto", "pooler"),
        ("encoder", "padded-mean", "padded-mean"),
        ("distil", "auto", "padded-mean"),
        ("distil", "mean", "mean"),
    ],
)
def test_a_checkpoint_gives_what_it_was_trained_for(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    pooling: Any,
    by_hand: str,
    suffix: str,
) -> None:
    base = request.getfixturevalue(kind)
    path = tmp_path / f"ime{suffix}"
    state = models.save_checkpoint(path, base)
    model = load("checkpoint", settings(base, checkpoint=str(path), pooling=pooling), IME)
    found = model.scores(TEXTS[:12])
    assert close(found, pooled_by_hand(base, state, TEXTS[:12], by_hand))
    assert (model.model, model.revision.split()[1]) == (
        f"{base} + ime{suffix}",
        by_hand,
    )
    assert found.std() > 0.01


def test_the_two_means_differ_because_padding_counts_in_one(distil: Path, tmp_path: Path) -> None:
    models.save_checkpoint(tmp_path / "ime.pth", distil)
    both = [
        load(
            "checkpoint",
            settings(distil, checkpoint=str(tmp_path / "ime.pth"), pooling=pooling),
            IME,
        ).scores(TEXTS[:5])
        for pooling in ("mean", "padded-mean")
    ]
    assert np.abs(both[0] - both[1]).max() > 0.01


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_a_checkpoint_runs_no_code(
    distil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    path = tmp_path / "ime.pth"
    torch.save({"classifier.weight": Evil()}, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load("checkpoint", settings(distil, checkpoint=str(path)), IME)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="cannot be read"):
        load("checkpoint", settings(distil, checkpoint=str(path)), IME)
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_that_does_not_fit_is_refused(
    encoder: Path, distil: Path, tmp_path: Path
) -> None:
    def refuse(path: Path, base: Path, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence):
            load("checkpoint", settings(base, checkpoint=str(path)), IME)

    refuse(
        tmp_path / "none.pth",
        distil,
        "there is no checkpoint .*none.pth; check checkpoint in backfill.toml",
    )
    models.save_checkpoint(tmp_path / "bert.pth", encoder)
    refuse(tmp_path / "bert.pth", distil, "does not fit the encoder")
    models.save_checkpoint(tmp_path / "three.pth", distil, outputs=3)
    refuse(tmp_path / "three.pth", distil, "has 3 outputs, not 4")
    torch.save({"model.x": torch.zeros(1)}, tmp_path / "headless.pth")
    refuse(tmp_path / "headless.pth", distil, "has no classifier.weight")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    refuse(tmp_path / "broken.safetensors", distil, "cannot be read")
