"""Heads from hand labels: the files, what is learnt, what the card says, and how good anything is."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from actors.integrations import resolve
from actors.models import metrics
from actors.models.heads import file_sha256
from actors.models.training import Examples, train
from backfill.hand_labels import read_rows, targets_of
from backfill.heads import agreement, evaluate_file, label_texts, train_head
from datasets.errors import ConfigError
from tests import models
from tests.support import make_text

INTERGROUP, PERSPECTIVE, SOCIOPOLITICAL, IME = (resolve(alias) for alias in "gpsi")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def settings(encoder: Path) -> Any:
    return replace(INTERGROUP.settings(), model=str(encoder), dtype="float32")


def examples(count: int = 120, seed: int = 0) -> Rows:
    """A rule that a random encoder's means of characters can tell: digits."""
    return [
        {
            "text": f"{make_text(seed * 1000 + n)}{' 1984 2024 77 911 1312 42' if n % 2 else ' cat dog'}",
            "label": n % 2,
            "source": "us",
        }
        for n in range(count)
    ]


def write(path: Path, rows: Rows) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def value(rows: Sequence[tuple[str, str, str]], output: str, measure: str) -> float:
    [found] = [text for name, what, text in rows if (name, what) == (output, measure)]
    return float(found.split()[0].rstrip(","))


def test_the_three_kinds_of_file_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'é, "quoted"\n2nd line', "label": 1, "weight": 0.5}, {"text": "b", "label": 0, "weight": 1.0}]
    for suffix in ("csv", "jsonl", "parquet"):
        assert read_rows(write(tmp_path / f"labels.{suffix}", rows)) == rows


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("labels.xlsx", "", "is neither .csv nor .jsonl nor .parquet"),
        ("labels.jsonl", "{broken", "cannot be read"),
        ("labels.parquet", "broken", "cannot be read"),
        ("labels.csv", "words,label\na,1\n", "they need a column `text`"),
    ],
)
def test_a_file_that_has_no_labels_is_one_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="check --labels"):
        read_rows(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"text": "a", "lable": 1}, {"text": "b", "lable": 0}],
            "no label column has both kinds of labels for any of intergroup",
        ),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], "no label column has both kinds of labels"),
        ([{"text": "a", "label": "yes"}, {"text": "b", "label": 0}], "a label is not a number .*'yes'"),
        ([{"text": "a", "label": 5}, {"text": "b", "label": 0}], "labels of intergroup must lie between 0 and 1"),
    ],
)
def test_labels_that_teach_nothing_are_one_sentence(rows: Rows, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^mine\.csv: .*{sentence}|^mine\.csv: {sentence}"):
        targets_of(INTERGROUP, rows, ["mine.csv"])


def test_what_a_row_teaches_each_integration() -> None:
    assert IME.targets
    assert SOCIOPOLITICAL.targets
    assert PERSPECTIVE.targets
    assert IME.targets({"emotion": 1, "intergroup": 0, "moral": 0}) == {
        "emotion": 1.0, "intergroup": 0.0, "moral": 0.0, "other": 0.0,
    }  # fmt: skip
    assert IME.targets({"label_emotion": 0, "label_intergroup": 0, "label_moral": 0})["other"] == 1.0
    assert IME.targets({"emotion": 1})["other"] is None
    political = SOCIOPOLITICAL.targets({"is_sociopolitical": True, "political_ideology_label": "left"})
    assert (political["sociopolitical"], political["left"], political["right"]) == (1.0, 1.0, 0.0)
    other = SOCIOPOLITICAL.targets({"is_sociopolitical": False, "political_ideology_label": "unclear"})
    assert (other["sociopolitical"], other["unclear"]) == (0.0, None), "a lean is only learnt from political posts"
    assert PERSPECTIVE.targets({"prob_toxic": 0.25})["toxic"] == 0.25


def test_the_same_seed_gives_the_same_bytes_whatever_the_file(tmp_path: Path, settings: Any) -> None:
    heads = []
    for number, suffix in enumerate(("csv", "jsonl", "parquet")):
        labels = write(tmp_path / f"labels.{suffix}", examples())
        output = tmp_path / f"{number}" / "head.safetensors"
        train_head(INTERGROUP, [labels], str(output), settings, seed=7)
        heads.append(output.read_bytes())
    assert heads[0] == heads[1] == heads[2]


def test_a_group_trains_its_head_reads_its_card_and_uses_it(tmp_path: Path, settings: Any) -> None:
    labels = write(tmp_path / "ours.csv", examples())
    test = write(tmp_path / "test.jsonl", examples(60, seed=9))
    output = tmp_path / "heads" / "ours.safetensors"
    report = train_head(INTERGROUP, [labels], str(output), settings, test=test, seed=3, notes="Only for tests.")
    assert value(report.rows, "intergroup", "posts") == 120
    assert value(report.rows, "intergroup", "accuracy") > 0.75
    assert value(report.rows, "held out: intergroup", "accuracy") > 0.75
    card = output.with_suffix(".md").read_text(encoding="utf-8")
    for part in (
        f"trained {datetime.now(UTC):%Y-%m-%d}",
        file_sha256(output),
        file_sha256(Path(settings.model) / "model.safetensors"),
        f"`ours.csv`, SHA-256 `{file_sha256(Path(labels))}`",
        f"`test.jsonl`, SHA-256 `{file_sha256(Path(test))}`",
        "120 texts: 120 from us",
        "Seed 3, five folds",
        "| intergroup | macro-F1 | ",
        "Only for tests.",
    ):
        assert part in card
    used = replace(settings, heads=str(output))
    labelled = label_texts(INTERGROUP, used, [row["text"] for row in examples(60, seed=5)])
    right = [
        isinstance(o, dict) and o["label"] == row["label"] for o, row in zip(labelled, examples(60, 5), strict=True)
    ]
    assert sum(right) > 45
    again = evaluate_file(INTERGROUP, used, test)
    assert value(again.rows, "intergroup", "accuracy") == value(report.rows, "held out: intergroup", "accuracy")
    same = agreement(INTERGROUP, used, used, test).rows
    assert (value(same, "label", "agreement"), value(same, "label", "Cohen's kappa")) == (1.0, 1.0)


def test_figures_are_of_texts_that_the_head_had_not_seen(tmp_path: Path, settings: Any) -> None:
    """Labels by chance can be learnt by heart, and must not look learnt."""
    rng = np.random.default_rng(0)
    rows = [{**row, "label": int(rng.integers(2))} for row in examples(200)]
    report = train_head(INTERGROUP, [write(tmp_path / "noise.csv", rows)], str(tmp_path / "h.safetensors"), settings)
    assert 0.35 < value(report.rows, "intergroup", "accuracy") < 0.65


def features(count: int, width: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_probabilities_are_calibrated() -> None:
    x = features(3000)
    chance = 1 / (1 + np.exp(-2 * x[:, 0]))
    y = (np.random.default_rng(1).random(3000) < chance).astype(float)
    trained = train(Examples(x, {"a": y}, np.ones(3000)), [], (0,), "sha", 0)
    scores = trained.validated["a"]
    for low in np.arange(0, 1, 0.2):
        inside = (scores >= low) & (scores < low + 0.2)
        assert abs(scores[inside].mean() - y[inside].mean()) < 0.07
    assert np.abs(trained.head.probabilities(x)[:, 0] - chance).mean() < 0.03


def test_texts_that_only_help_are_never_validated_on() -> None:
    x, y = features(300), (features(300)[:, 0] > 0).astype(float)
    weights = np.where(np.arange(300) < 100, 1.0, 0.2)
    y[100:] = 1 - y[100:]  # the helpers teach the opposite, with less weight in all than they have in number
    weights[100:] = 0.01
    trained = train(Examples(x, {"a": y}, weights), [], (0,), "sha", 0)
    assert np.isnan(trained.validated["a"][100:]).all()
    assert ((trained.validated["a"][:100] >= 0.5) == (y[:100] >= 0.5)).mean() > 0.85


def test_graded_labels_are_learnt_as_grades() -> None:
    x = features(500)
    y = 1 / (1 + np.exp(-x[:, 0]))
    trained = train(Examples(x, {"a": y}, np.ones(500)), [], (0,), "sha", 0)
    assert metrics.spearman(y, trained.validated["a"]) > 0.98
    assert np.abs(trained.head.probabilities(x)[:, 0] - y).mean() < 0.05


def test_groups_exclude_each_other_and_outputs_without_labels_are_left_out() -> None:
    x = features(400)
    likeliest = x[:, :3].argmax(axis=1)
    targets = {name: (likeliest == n).astype(float) for n, name in enumerate("abc")}
    targets["d"] = np.full(400, np.nan)
    trained = train(Examples(x, targets, np.ones(400)), [("a", "b", "c", "d")], (0,), "sha", 0)
    assert (trained.head.outputs, trained.head.groups) == (("a", "b", "c"), (("a", "b", "c"),))
    found = trained.head.probabilities(x)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == likeliest).mean() > 0.9


def test_metrics_are_those_of_the_textbook() -> None:
    truth, found = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])
    assert metrics.accuracy(truth, found) == pytest.approx(4 / 6)
    assert metrics.macro_f1(truth, found) == pytest.approx(2 / 3)
    assert metrics.kappa(truth, found) == pytest.approx(1 / 3)
    assert metrics.auc(truth, np.array([0.9, 0.8, 0.4, 0.3, 0.2, 0.5])) == pytest.approx(8 / 9)
    assert np.isnan(metrics.auc(np.ones(3), np.ones(3)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, found = (rng.integers(0, 3, 30) for _ in range(2))
        assert metrics.macro_f1(truth, found) == pytest.approx(f1_score(truth, found, average="macro"))
        assert metrics.kappa(truth, found) == pytest.approx(cohen_kappa_score(truth, found))
        scores = found + rng.integers(0, 2, 30)
        assert metrics.auc(truth > 0, scores) == pytest.approx(roc_auc_score(truth > 0, scores))
    assert metrics.spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 40, 30])) == pytest.approx(0.8)
    assert metrics.spearman(np.array([1, 1, 2]), np.array([5, 5, 6])) == pytest.approx(1.0)


def test_an_interval_narrows_with_the_number_of_texts() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        truth = rng.integers(0, 2, count)
        found = np.where(rng.random(count) < 0.8, truth, 1 - truth)
        estimate = metrics.estimate(metrics.accuracy, truth, found)
        assert estimate.low <= estimate.value <= estimate.high
        widths.append(estimate.high - estimate.low)
    # 1.96 · 2 · √(0.8 · 0.2 / n)
    assert widths == [pytest.approx(0.22, abs=0.06), pytest.approx(0.022, abs=0.004)]


def test_texts_of_one_kind_give_only_the_share_that_was_found(tmp_path: Path, settings: Any) -> None:
    head = tmp_path / "h.safetensors"
    train_head(INTERGROUP, [write(tmp_path / "labels.csv", examples())], str(head), settings)
    ones = write(tmp_path / "ones.jsonl", [row for row in examples(40, seed=5) if row["label"]])
    report = evaluate_file(INTERGROUP, replace(settings, heads=str(head)), ones)
    assert [measure for _, measure, _ in report.rows] == ["posts", "accuracy"]
    none = write(tmp_path / "none.jsonl", [{"text": "cat"}])
    with pytest.raises(ConfigError, match="no label column"):
        evaluate_file(INTERGROUP, replace(settings, heads=str(head)), none)


def test_an_integration_without_a_model_is_judged_by_its_columns(tmp_path: Path) -> None:
    valence = resolve("v")
    rows = [{"text": "I love this", "valence_label": "positive"}, {"text": "I hate this", "valence_label": "positive"}]
    report = evaluate_file(valence, valence.settings(), write(tmp_path / "labels.csv", rows))
    assert value(report.rows, "valence_label", "accuracy") == 0.5
    with pytest.raises(ConfigError, match="has no model that could be trained"):
        train_head(valence, [str(tmp_path / "labels.csv")], str(tmp_path / "head"), valence.settings())
    with pytest.raises(ConfigError, match="the labels have none of the columns"):
        evaluate_file(valence, valence.settings(), write(tmp_path / "other.csv", [{"text": "a", "label": 1}]))
