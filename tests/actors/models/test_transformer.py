"""The back end `transformer`, against the same computation in plain PyTorch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from actors.crash_journal import CrashJournal
from actors.fault_isolation import classify_isolated
from actors.models.local_classifier import LocalClassifier
from datasets.errors import ConfigError, RejectedPost
from tests import models
from tests.actors.models.loading import LOCAL, TEXTS, close, load, logits, settings


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_transformers_labels_become_our_outputs_in_the_order_of_the_texts(
    classifier: Path, activation: str
) -> None:
    labels = {"toxicity": "toxic", "insult": "insult"}
    model = load("transformer", settings(classifier, labels=labels, activation=activation))
    raw = logits(classifier, TEXTS)
    expected = torch.sigmoid(raw) if activation == "sigmoid" else torch.softmax(raw, dim=1)
    found = model.scores(TEXTS)
    assert close(found[:, :2], expected[:, 1:])
    assert np.isnan(found[:, 2]).all(), "an output that the model lacks"
    assert found[:, 0].std() > 0.01, "the texts differ, so the order is tested"


def test_labels_that_are_named_like_the_outputs_need_no_mapping(folder: Path) -> None:
    model = load(
        "transformer",
        settings(models.save_classifier(folder / "same", ["threat", "toxic"])),
    )
    found = model.scores(TEXTS[:5])
    assert close(found[:, [2, 0]], torch.softmax(logits(folder / "same", TEXTS[:5]), dim=1))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"toxic": "toxic"}, "has no label 'toxic'; it has fine, toxicity, insult"),
        (
            {"toxicity": "poison"},
            "there is no output 'poison'; use toxic, insult, threat",
        ),
        ({"insult": "insult"}, "the output 'toxic' is missing"),
        ({}, "the output 'toxic' is missing"),
    ],
)
def test_a_label_mapping_that_does_not_fit_is_refused(
    classifier: Path, labels: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load("transformer", settings(classifier, labels=labels))


def test_long_texts_are_cut_and_empty_lists_are_no_error(classifier: Path) -> None:
    model = load(
        "transformer",
        settings(classifier, labels={"toxicity": "toxic"}, max_tokens=16),
    )
    words = "a b c d e f g h i j k l m n"  # 14 tokens, and two special ones
    assert model.scores([f"{words}{' z' * 3000}"])[0, 0] == pytest.approx(
        model.scores([words])[0, 0], abs=1e-6
    )
    assert model.scores([words[:-2]])[0, 0] != pytest.approx(model.scores([words])[0, 0], abs=1e-6)
    assert len(model.scores([])) == 0


def test_the_revision_of_a_folder_follows_from_all_of_its_weights(
    folder: Path,
) -> None:
    """Whether they are in one file or in several."""
    labels = {"toxicity": "toxic"}
    revisions = []
    for name, size in (("one", "1GB"), ("many", "10KB")):
        model = models.save_classifier(folder / name, ["toxicity"])
        network = transformers.AutoModelForSequenceClassification.from_pretrained(model)
        (model / "model.safetensors").unlink()
        for change in (0.0, 0.5):
            with torch.no_grad():
                network.classifier.bias += change
            network.save_pretrained(model, max_shard_size=size)
            revisions.append(
                load(
                    "transformer",
                    settings(model, labels=labels, activation="sigmoid"),
                ).revision
            )
        assert (len(list(model.glob("*.safetensors"))) > 1) == (name == "many")
    assert len(set(revisions)) == 4


def test_a_token_that_the_model_does_not_know_rejects_its_post_only(
    folder: Path,
) -> None:
    """The tokenizer has a word for which the model has no embedding."""
    broken = models.save_classifier(folder / "narrow", ["toxic"])
    models.make_tokenizer([*models.VOCABULARY, "poison"]).save_pretrained(broken)
    wrapped = LocalClassifier(load("transformer", settings(broken, activation="sigmoid")), LOCAL)
    texts = [*TEXTS[:30], "a poison pill", *TEXTS[30:]]
    with CrashJournal("narrow") as journal:
        found = classify_isolated(wrapped, texts, journal)
    assert [n for n, outcome in enumerate(found) if isinstance(outcome, RejectedPost)] == [30]
    assert "IndexError" in str(found[30])
    expected = torch.sigmoid(logits(broken, TEXTS))[:, 0]
    assert close([outcome["toxic"] for outcome in found if isinstance(outcome, dict)], expected)


def test_the_next_block_is_tokenized_during_the_forward_pass(
    classifier: Path,
) -> None:
    model = load("transformer", settings(classifier, labels={"toxicity": "toxic"}))
    second_tokenized, order = threading.Event(), []
    runner = model._runner
    tokenize, forward = runner.tokenizer, runner.runtime.network

    def noted(*arguments: Any, **options: Any) -> Any:
        found = tokenize(*arguments, **options)
        order.append("tokenized")
        if order.count("tokenized") == 2:
            second_tokenized.set()
        return found

    def slow(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        order.append("forward")
        assert second_tokenized.wait(20), "the second block waits for the first to be done"
        return forward(ids, mask)

    runner.tokenizer, runner.runtime.network = noted, slow
    found: dict[int, Any] = {}
    first = threading.Thread(target=lambda: found.update({0: model.scores(TEXTS[:8])}))
    second = threading.Thread(target=lambda: found.update({1: model.scores(TEXTS[8:16])}))
    first.start()
    while "forward" not in order:
        threading.Event().wait(0.01)
    second.start()
    first.join()
    second.join()
    assert order[:3] == ["tokenized", "forward", "tokenized"]
    runner.tokenizer, runner.runtime.network = tokenize, forward
    together = model.scores(TEXTS[:16])
    assert close(np.nan_to_num(np.concatenate([found[0], found[1]])), np.nan_to_num(together))


def test_one_tokenizer_is_used_from_many_threads(classifier: Path) -> None:
    model = load("transformer", settings(classifier, labels={"toxicity": "toxic"}))
    expected = model.scores(TEXTS)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.scores(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [close(np.nan_to_num(each), np.nan_to_num(expected)) for each in found] == [True] * 4
