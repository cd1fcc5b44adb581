"""Valence by VADER (Hutto & Gilbert 2014), exactly as the package `vaderSentiment` computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.integrations import Integration, NoSettings, Outcome

# The thresholds that VADER's authors give for `compound`.
POSITIVE, NEGATIVE = 0.05, -0.05


LABELS = ("positive", "negative", "neutral")


class Vader:
    def __init__(self) -> None:
        from importlib.metadata import version

        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self.model = "vaderSentiment"
        self.revision = version("vaderSentiment")
        analyzer = SentimentIntensityAnalyzer()
        self._scores = analyzer.polarity_scores
        self._emojis = analyzer.emojis

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        compounds = [self._scores(self._to_scan(text))["compound"] for text in texts]
        return [{"compound": compound, "valence_label": valence_label(compound)} for compound in compounds]

    def _to_scan(self, text: str) -> str | tuple[str]:
        """What the package takes character by character to replace emojis, an eighth of its time: all at once if none.

        It looks for single characters only; but the whole text, being looked for, may be an emoji of several.
        """
        one_piece = text not in self._emojis and self._emojis.keys().isdisjoint(text)
        return (text,) if one_piece else text


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
