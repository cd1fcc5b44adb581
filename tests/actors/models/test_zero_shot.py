"""The back end `zero-shot`, against the same computation in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.errors import ConfigError
from tests import models
from tests.actors.models.loading import TEXTS, close, load, logits, settings


@pytest.mark.parametrize(
    ("labels", "entails", "against"),
    [
        (["contradiction", "neutral", "entailment"], 2, [0]),
        (["entailment", "not_entailment"], 0, [1]),
    ],
)
def test_zero_shot_is_entailment_against_what_denies_it(
    folder: Path, labels: list[str], entails: int, against: list[int]
) -> None:
    nli = models.save_classifier(folder / f"nli-{len(labels)}", labels)
    hypotheses = {"threat": "this is a threat", "toxic": "this is toxic"}
    model = load("zero-shot", settings(nli, hypotheses=hypotheses))
    found = model.scores(TEXTS[:20])
    for column, hypothesis in ((0, hypotheses["toxic"]), (2, hypotheses["threat"])):
        raw = logits(nli, TEXTS[:20], [hypothesis] * 20)[:, [entails, *against]]
        assert close(found[:, column], torch.softmax(raw, dim=1)[:, 0])
    assert np.isnan(found[:, 1]).all()
    other = load("zero-shot", settings(nli, hypotheses={**hypotheses, "toxic": "rude"}))
    assert other.revision != model.revision, "other hypotheses are another classifier"


@pytest.mark.parametrize(
    ("hypotheses", "sentence"),
    [
        ({}, "needs a model and hypotheses"),
        ({"threat": "a"}, "the output 'toxic' is missing"),
        ({"toxic": "a", "poison": "b"}, "there is no output 'poison'"),
        ({"toxic": "a"}, "has no label 'entailment'"),
    ],
)
def test_hypotheses_or_a_model_that_do_not_fit_are_refused(
    classifier: Path, hypotheses: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load("zero-shot", settings(classifier, hypotheses=hypotheses))
