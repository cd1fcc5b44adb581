"""How the heads that come along were made: `python -m backfill.heads.recipe TWEETEVAL_FOLDER [INTEGRATION …]`.

TWEETEVAL_FOLDER is a copy of https://github.com/cardiffnlp/tweeteval's `datasets`. The project's own
examples are in actors/models/assets/examples. Tweets of another task than a head's help to train it, with a
weight below 1, and are never validated on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.integrations import resolve
from actors.models.heads import bundled_head
from backfill.heads.train import train_head

EXAMPLES = Path(__file__).parent.parent.parent / "actors" / "models" / "assets" / "examples"
# Stance: against or for a subject, and the lean that it comes with in the United States.
_LEANS = {
    "hillary": {"1": "right", "2": "left"},
    "abortion": {"1": "right", "2": "left"},
    "feminist": {"1": "right", "2": "left"},
    "climate": {"1": "right", "2": "left"},
}
_TWEETS = 4000
_OWN_NOTE = """\
The project's own examples were composed by a language model in the style of short posts, and so were their labels:
cross-validation on them says how consistent they are, not how well the head does on real posts. Nobody has validated it
on posts of Bluesky. """
_NOTES = {
    "s": """\
TweetEval's stance tweets only teach that their subjects are political, and the lean that usually goes with a stance;
its tweets of joy, optimism and sadness stand for what is not political, which a few of them are. Leans are the weakest
output.""",
    "i": """\
TweetEval's emotion and its neutral sentiment teach only which tweets are emotional. The outputs intergroup and moral
rest on the examples alone.""",
    "g": """\
Hateful tweets against immigrants and women count as intergroup, and tweets of joy, optimism and sadness do not.""",
    "p": """\
Scores imitate the Perspective API's by a language model's judgement and by TweetEval's offensive and hate labels; they
are not its scores. severe_toxic, threat and sexually_explicit have few examples. English only.""",
}


def main(tweeteval: str, *names: str) -> None:
    root = Path(tweeteval)
    recipes = {"s": _sociopolitical, "i": _ime, "g": _intergroup, "p": _toxicity}
    for name in names or recipes:
        integration = resolve(name)
        rows, notes = recipes[integration.alias], _NOTES[integration.alias]
        with tempfile.TemporaryDirectory() as folder:
            labels = _write(Path(folder) / f"{integration.name}.jsonl", rows(root))
            test = _write(Path(folder) / "held_out.jsonl", _held_out(root, integration.alias))
            settings = integration.settings(threads=2)
            target = bundled_head(integration.name)
            report = train_head(
                integration, [labels], str(target), settings, test, notes=_OWN_NOTE + notes
            )
        print(integration.name, *(" ".join(row) for row in report.rows), sep="\n  ")  # noqa: T201 - its output


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> str:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def _held_out(root: Path, alias: str) -> Iterator[dict[str, Any]]:
    """Whole test splits of TweetEval, whose train splits taught the head at most a part of the question."""
    split = ("test",)
    if alias == "s":
        yield from _own("heldout_sociopolitical")
    if alias == "i":
        feelings = [text for text, label in _tweets(root, "emotion", split) if label != "2"]
        neutral = [text for text, label in _tweets(root, "sentiment", split) if label == "1"]
        yield from (_test(text, "emotion", emotion=1) for text in feelings)
        yield from (
            _test(text, "sentiment (neutral)", emotion=0) for text in neutral[: len(feelings)]
        )
    if alias == "g":
        # Tweets that are not hateful are about the same groups, and mostly intergroup too.
        yield from (
            _test(text, "hate (hateful)", label=1)
            for text, label in _tweets(root, "hate", split)
            if int(label)
        )
    if alias == "p":
        yield from (
            _test(text, "hate", identity_attack=int(label))
            for text, label in _tweets(root, "hate", split)
        )
        yield from (
            _test(text, "offensive", toxic=int(label))
            for text, label in _tweets(root, "offensive", split)
        )


def _test(text: str, task: str, **labels: int) -> dict[str, Any]:
    return {"text": text, "source": f"TweetEval {task}, test split", **labels}


def _own(name: str) -> Iterator[dict[str, Any]]:
    for line in (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        yield {**json.loads(line), "source": "the project's own examples"}


def _tweets(
    root: Path, task: str, splits: tuple[str, ...] = ("train", "val")
) -> Iterator[tuple[str, str]]:
    """At most _TWEETS of a split, which is in no order: more of them would only outvote the examples."""
    for split in splits:
        texts = (root / task / f"{split}_text.txt").read_text(encoding="utf-8").split("\n")
        labels = (root / task / f"{split}_labels.txt").read_text(encoding="utf-8").split()
        pairs = [(text, label) for text, label in zip(texts, labels, strict=False) if text.strip()]
        yield from pairs[:_TWEETS]


def _help(text: str, task: str, weight: float, labels: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": text, "weight": weight, "source": f"TweetEval {task}", **labels}


def _sociopolitical(root: Path) -> Iterator[dict[str, Any]]:
    yield from _own("sociopolitical")
    for subject, leans in _LEANS.items():
        for text, stance in _tweets(root, f"stance/{subject}", ("train", "val", "test")):
            labels = {"is_sociopolitical": True, "political_ideology_label": leans.get(stance)}
            yield _help(text, "stance", 0.15, labels)
    yield from (
        _help(text, "emotion", 0.15, {"is_sociopolitical": False})
        for text in _personal_tweets(root)
    )


def _ime(root: Path) -> Iterator[dict[str, Any]]:
    yield from _own("ime")
    for text, label in _tweets(root, "emotion"):
        if label != "2":  # optimism is often a slogan without a feeling
            yield _help(text, "emotion", 0.1, {"emotion": 1, "intergroup": None, "moral": None})
    for text, label in _tweets(root, "sentiment", ("val",)):
        if label == "1":
            yield _help(
                text, "sentiment (neutral)", 0.35, {"emotion": 0, "intergroup": None, "moral": None}
            )


def _intergroup(root: Path) -> Iterator[dict[str, Any]]:
    yield from _own("intergroup")
    for text, label in _tweets(root, "hate"):
        if label == "1":
            yield _help(text, "hate", 0.03, {"label": 1})
    yield from (_help(text, "emotion", 0.06, {"label": 0}) for text in _personal_tweets(root))


def _personal_tweets(root: Path) -> Iterator[str]:
    """Of joy, optimism and sadness. Without them a head would learn that what sounds like a tweet is political."""
    return (text for text, label in _tweets(root, "emotion") if label != "0")


def _toxicity(root: Path) -> Iterator[dict[str, Any]]:
    yield from _own("toxicity")
    for text, label in _tweets(root, "offensive"):
        labels = {"toxic": 0.7, "insult": 0.6} if label == "1" else {"toxic": 0.12, "insult": 0.1}
        yield _help(text, "offensive", 0.15, labels)
    for text, label in _tweets(root, "hate"):
        yield _help(text, "hate", 0.1, {"identity_attack": 0.6 if label == "1" else 0.1})


if __name__ == "__main__":
    main(*sys.argv[1:])
