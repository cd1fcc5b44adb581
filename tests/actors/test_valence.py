from __future__ import annotations

import importlib.metadata
import random
import sys
from typing import Any

import pytest
from vaderSentiment import vaderSentiment
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from actors.classifiers.valence import (
    MAX_CHARACTERS,
    Vader,
    valence_label,
    weigh_by_but,
)
from datasets.errors import RejectedPost
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
    assert (vader.model, vader.revision) == (
        "vaderSentiment",
        importlib.metadata.version("vaderSentiment"),
    )


def test_every_emoji_that_vader_knows_counts_as_it_does_there() -> None:
    analyzer = SentimentIntensityAnalyzer()
    texts = [
        text
        for emoji in analyzer.emojis
        for text in (emoji, f"I{emoji}this", f"{emoji} bad", f" {emoji}")
    ]
    assert len(texts) > 10_000
    compounds = [outcome["compound"] for outcome in Vader().classify(texts)]
    assert compounds == [analyzer.polarity_scores(text)["compound"] for text in texts]


def special_words() -> list[str]:
    """What VADER's rules look for, beside its lexicon: negations, boosters, idioms, emojis."""
    phrases = [
        *vaderSentiment.SPECIAL_CASES,
        *vaderSentiment.BOOSTER_DICT,
        *vaderSentiment.NEGATE,
    ]
    rules = [
        "but",
        "BUT",
        "but",
        "least",
        "at",
        "very",
        "no",
        "or",
        "nor",
        "never",
        "so",
        "this",
        "without",
        "doubt",
    ]
    return [
        *rules,
        *phrases,
        "kind",
        "of",
        "good",
        "good",
        "BAD",
        "bad",
        "the",
        "a",
        "x!!",
        "why??",
        "😥",
        "😂",
        ":)",
    ]


def test_compound_is_vaders_own_wherever_its_rules_meet() -> None:
    rng, special, analyzer = (
        random.Random(20),
        special_words(),
        SentimentIntensityAnalyzer(),
    )
    known = [*analyzer.lexicon]
    texts = []
    for n in range(6_000):
        words = rng.choices(special, k=rng.randint(1, 40)) + rng.choices(known, k=rng.randint(0, 4))
        rng.shuffle(words)
        texts.append(" ".join(words) if n % 3 else "".join(words))
    texts += [" ".join(rng.choices(special, k=600)) for _ in range(20)]
    compounds = [outcome["compound"] for outcome in Vader().classify(texts)]
    assert compounds == [analyzer.polarity_scores(text)["compound"] for text in texts]


def test_but_weighs_every_score_as_the_package_does() -> None:
    """Also where the package takes the first of equal scores for another one."""
    rng, theirs = random.Random(21), SentimentIntensityAnalyzer()._but_check
    for _ in range(3_000):
        count = rng.randint(1, 30)
        words = rng.choices(["but", "But", "a", "b", "c"], k=count)
        scores = rng.choices([0, 0.0, 1.0, 0.5, 2.0, -1.5, -3.0, 0.25, 1.5], k=count)
        assert weigh_by_but(words, [*scores]) == theirs(words, [*scores])


def work_of(vader: Vader, text: str) -> int:
    """Function calls, and steps of those that search a list: no clock, so equal on any machine."""
    work = 0

    def count(frame: Any, event: str, called: Any) -> None:
        nonlocal work
        searched = getattr(called, "__self__", None)
        steps = len(searched) if event == "c_call" and isinstance(searched, list) else 0
        work += 1 + (steps if steps and called.__name__ in ("index", "insert", "pop") else 0)

    sys.setprofile(count)
    try:
        vader.classify([text])
    finally:
        sys.setprofile(None)
    return work


@pytest.mark.parametrize("part", ["😂", "😥", "not good ", ":) ", "so bad but "])
def test_twice_the_text_is_twice_the_work(part: str) -> None:
    vader = Vader()
    assert work_of(vader, part * 400) < 2.2 * work_of(vader, part * 200)


def test_a_text_beyond_the_limit_is_rejected_by_name_and_its_neighbours_are_labelled() -> None:
    fits, long = "a" * MAX_CHARACTERS, "😂" * (MAX_CHARACTERS + 1)
    before, rejected, after = Vader().classify([fits, long, "good"])
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert isinstance(rejected, RejectedPost)
    assert str(rejected) == "too long for VADER: 25,001 characters, 25,000 are allowed"


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
