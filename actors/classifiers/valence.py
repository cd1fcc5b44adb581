"""Valence by VADER (Hutto & Gilbert 2014), exactly as the package `vaderSentiment` computes it.

The package takes time by the square of a text's words, in two places: for each word of sentiment it
puts all words of the text in lower case, up to four times, to look at six of them; and after a "but"
it searches the scores from the start for each of them. Both give the same here in linear time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.integrations import Integration, NoSettings, Outcome
from datasets.errors import RejectedPost

# The thresholds that VADER's authors give for `compound`.
POSITIVE, NEGATIVE = 0.05, -0.05
# The worst text of that length takes 0.7 s (on the README's machine): all emojis, each stands for up to six
# words. A post of Bluesky has 3,000 bytes at the most.
MAX_CHARACTERS = 25_000
# VADER looks at so many words before a word of sentiment, and after it.
_BEFORE, _AFTER = 3, 2


LABELS = ("positive", "negative", "neutral")


class Vader:
    def __init__(self) -> None:
        from importlib.metadata import version

        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self.model = "vaderSentiment"
        self.revision = version("vaderSentiment")
        analyzer = SentimentIntensityAnalyzer()
        # Methods that need nothing of their object.
        analyzer._negation_check = _negations_near(analyzer._negation_check)  # noqa: SLF001 - see above
        analyzer._special_idioms_check = _idioms_near(analyzer._special_idioms_check)  # noqa: SLF001 - see above
        analyzer._but_check = weigh_by_but  # noqa: SLF001 - see above
        self._scores = analyzer.polarity_scores
        self._emojis = analyzer.emojis

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        return [self._outcome(text) for text in texts]

    def _outcome(self, text: str) -> Outcome:
        if len(text) > MAX_CHARACTERS:
            return RejectedPost(
                f"too long for VADER: {len(text):,} characters, {MAX_CHARACTERS:,} are allowed"
            )
        compound = self._scores(self._to_scan(text))["compound"]
        return {"compound": compound, "valence_label": valence_label(compound)}

    def _to_scan(self, text: str) -> str | tuple[str]:
        """What the package takes character by character to replace emojis, an eighth of its time: all at once if none.

        It looks for single characters only; but the whole text, being looked for, may be an emoji of several.
        """
        one_piece = text not in self._emojis and self._emojis.keys().isdisjoint(text)
        return (text,) if one_piece else text


def _negations_near(check: Callable[..., float]) -> Callable[..., float]:
    def near(valence: float, words: Sequence[str], start: int, i: int) -> float:
        first = max(0, i - _BEFORE)
        return check(valence, words[first : i + 1], start, i - first)

    return near


def _idioms_near(check: Callable[..., float]) -> Callable[..., float]:
    def near(valence: float, words: Sequence[str], i: int) -> float:
        # The package asks only where there are three words before.
        return check(valence, words[i - _BEFORE : i + _AFTER + 1], _BEFORE)

    return near


def weigh_by_but(words: Sequence[str], scores: list[Any]) -> list[Any]:
    """Halves scores before the first "but" and raises those after it by half: the package's `_but_check`.

    For each score in turn, it is the first that equals it which the package changes: of equal scores
    on both sides it may be another one, changed twice. So for each value, its places are kept in a heap.
    """
    lower = [word.lower() for word in words]
    if "but" not in lower:
        return scores
    but = lower.index("but")
    places: dict[float, list[int]] = {}
    for place, score in enumerate(scores):
        places.setdefault(score, []).append(place)
    for i in range(len(scores)):
        score = scores[i]
        first = places[score][0]
        if first != but:
            heapq.heappop(places[score])
            scores[first] = score * (0.5 if first < but else 1.5)
            heapq.heappush(places.setdefault(scores[first], []), first)
    return scores


def valence_label(compound: float) -> str:
    if compound >= POSITIVE:
        return "positive"
    return "negative" if compound <= NEGATIVE else "neutral"


def unused(row: Mapping[str, Any]) -> str | None:
    label = row.get("valence_label")
    if label is None or label in LABELS:
        return None
    return f"valence_label is {str(label)[:40]!r}, and not one of {', '.join(LABELS)}"


def load(settings: NoSettings) -> Vader:
    return Vader()


INTEGRATION = Integration(
    name="ml_inference_valence_classifier",
    alias="v",
    columns={"compound": "float64", "valence_label": "string"},
    load=load,
    unused=unused,
)
