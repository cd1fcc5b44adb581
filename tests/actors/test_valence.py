from __future__ import annotations

import importlib.metadata

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from actors.classifiers.valence import Vader, valence_label
from tests.support import make_text


def test_compound_is_vaders_own_to_the_last_bit() -> None:
    texts = [make_text(n) for n in range(500)] + [
        "😀😀",
        "x\x00y",
        "",
        "GREAT!!!",
        "a" * 20_000,
        "עברית",
        "not good, but great",
    ]
    analyzer = SentimentIntensityAnalyzer()
    vader = Vader()
    assert [outcome["compound"] for outcome in vader.classify(texts)] == [
        analyzer.polarity_scores(text)["compound"] for text in texts
    ]
    assert (vader.model, vader.revision) == ("vaderSentiment", importlib.metadata.version("vaderSentiment"))


def test_every_emoji_that_vader_knows_counts_as_it_does_there() -> None:
    analyzer = SentimentIntensityAnalyzer()
    texts = [text for emoji in analyzer.emojis for text in (emoji, f"I{emoji}this", f"{emoji} bad", f" {emoji}")]
    assert len(texts) > 10_000
    compounds = [outcome["compound"] for outcome in Vader().classify(texts)]
    assert compounds == [analyzer.polarity_scores(text)["compound"] for text in texts]


@pytest.mark.parametrize(
    ("compound", "label"),
    [
        (1.0, "positive"),
        (0.05, "positive"),
        (0.0499, "neutral"),
        (0.0, "neutral"),
        (-0.0499, "neutral"),
        (-0.05, "negative"),
        (-1.0, "negative"),
    ],
)
def test_labels_follow_the_authors_thresholds(compound: float, label: str) -> None:
    assert valence_label(compound) == label
