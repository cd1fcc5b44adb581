"""Valence by VADER (Hutto & Gilbert 2014), with scores identical to the package `vaderSentiment`.

The package needs quadratic time in the number of words, in two places. For
each sentiment word it lower-cases all words of the text, up to four times,
to look at six of them; and after a "but" it searches the list of scores
from its start for each score. Both are replaced by linear versions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.contract import Outcome
from actors.integrations import Integration
from datasets.errors import RejectedPost

# Thresholds of `compound`, as given by VADER's authors.
POSITIVE = 0.05
NEGATIVE = -0.05
LABELS = ("positive", "negative", "neutral")

# The slowest text of this length takes 0.7 s (on the README's machine):
# emojis only, each of which stands for up to six words. Posts of Bluesky
# have at most 3,000 bytes.
MAX_CHARACTERS = 25_000

# How many words VADER considers before a sentiment word, and after it.
_WORDS_BEFORE = 3
_WORDS_AFTER = 2


class Vader:
    """The classifier. `revision` is the version of the package."""

    def __init__(self) -> None:
        from importlib.metadata import version

        from vaderSentiment.vaderSentiment import (
            SentimentIntensityAnalyzer,
        )

        self.model = "vaderSentiment"
        self.revision = version("vaderSentiment")

        # The replaced methods do not use the state of the analyzer.
        analyzer = SentimentIntensityAnalyzer()
        analyzer._negation_check = _check_negation_nearby(analyzer._negation_check)  # noqa: SLF001 - see the module
        analyzer._special_idioms_check = _check_idioms_nearby(analyzer._special_idioms_check)  # noqa: SLF001 - see the module
        analyzer._but_check = weigh_by_but  # noqa: SLF001 - see the module
        self._scores = analyzer.polarity_scores
        self._emojis = analyzer.emojis

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        return [self._outcome(text) for text in texts]

    def _outcome(self, text: str) -> Outcome:
        if len(text) > MAX_CHARACTERS:
            return RejectedPost(
                f"too long for VADER: {len(text):,} characters, {MAX_CHARACTERS:,} are allowed"
            )
        compound = self._scores(self._scannable(text))["compound"]
        return {
            "compound": compound,
            "valence_label": valence_label(compound),
        }

    def _scannable(self, text: str) -> str | tuple[str]:
        """Lets the package skip its search for emojis, an eighth of its time, if there are none.

        It iterates over the text and looks up each item, so a text without
        emojis may be one item. The text as a whole must not be an emoji of
        several characters then.
        """
        no_emojis = text not in self._emojis and self._emojis.keys().isdisjoint(text)
        return (text,) if no_emojis else text


def _check_negation_nearby(
    check: Callable[..., float],
) -> Callable[..., float]:
    """`check`, given only the words that it considers."""

    def nearby(valence: float, words: Sequence[str], start: int, i: int) -> float:
        first = max(0, i - _WORDS_BEFORE)
        return check(valence, words[first : i + 1], start, i - first)

    return nearby


def _check_idioms_nearby(
    check: Callable[..., float],
) -> Callable[..., float]:
    """`check`, given only the words that it considers."""

    def nearby(valence: float, words: Sequence[str], i: int) -> float:
        # The package calls it only if there are three words before.
        near = words[i - _WORDS_BEFORE : i + _WORDS_AFTER + 1]
        return check(valence, near, _WORDS_BEFORE)

    return nearby


def weigh_by_but(words: Sequence[str], scores: list[Any]) -> list[Any]:
    """Halves the scores before the first "but", and multiplies those after it by 1.5.

    It reproduces the package's `_but_check`, which for each score changes
    the first one that equals it. With equal scores on both sides that may
    be another one, which is then changed twice. Therefore the positions of
    each value are kept in a heap.
    """
    lower = [word.lower() for word in words]
    if "but" not in lower:
        return scores

    but = lower.index("but")
    positions: dict[float, list[int]] = {}
    for position, score in enumerate(scores):
        positions.setdefault(score, []).append(position)

    for i in range(len(scores)):
        score = scores[i]
        first = positions[score][0]
        if first != but:
            heapq.heappop(positions[score])
            scores[first] = score * (0.5 if first < but else 1.5)
            heapq.heappush(positions.setdefault(scores[first], []), first)
    return scores


def valence_label(compound: float) -> str:
    """One of LABELS."""
    if compound >= POSITIVE:
        return "positive"
    return "negative" if compound <= NEGATIVE else "neutral"


def unused(row: Mapping[str, Any]) -> str | None:
    """Why a row's label is ignored, if it is."""
    label = row.get("valence_label")
    if label is None or label in LABELS:
        return None
    return f"valence_label is {str(label)[:40]!r}, and not one of {', '.join(LABELS)}"


INTEGRATION = Integration(
    name="ml_inference_valence_classifier",
    alias="v",
    columns={"compound": "float64", "valence_label": "string"},
    make_classifier=Vader,
    unused=unused,
)
