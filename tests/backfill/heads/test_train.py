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
from actors.models.hashing import file_sha256
from actors.models.training import evaluation
from actors.models.training.examples import Examples
from actors.models.training.train import train
from backfill.heads.hand_labels import read_rows, targets_of, unused_labels
from backfill.heads.train import agreement, evaluate_file, label_texts, train_head
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
    rows = [
        {"text": 'é, "quoted"\n2nd line', "label": 1, "weight": 0.5},
        {"text": "b", "label": 0, "weight": 1.0},
    ]
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
def test_a_file_that_has_no_labels_is_one_sentence(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="check --labels"):
        read_rows(str(tmp_path / "none.csv"))


BOM_AND_ROWS = [
    {"text": "é; 1,5", "label": 1, "weight": 0.5},
    {"text": "2024", "label": 0, "weight": None},
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_csv_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, start: str, end: str) -> None:
    lines = [["text", " label ", "weight"], ['"é; 1,5"', "1", "0.5"], ["2024", "0", ""]]
    path = tmp_path / "labels.CSV"
    path.write_bytes((start + "".join(delimiter.join(line) + end for line in lines)).encode())
    assert read_rows(str(path)) == BOM_AND_ROWS, "a text of digits is a text"


def test_a_delimiter_is_told_by_the_header_whatever_the_texts_hold(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("text;label\na, b, c, d;1\ne, f, g, h;0\n")
    assert read_rows(str(path)) == [
        {"text": "a, b, c, d", "label": 1},
        {"text": "e, f, g, h", "label": 0},
    ]
    path.write_text("text\na;b\n")
    assert read_rows(str(path)) == [{"text": "a;b"}]
    path.write_text('"label","text"\n1,"one ""quoted"" line\nand another"\n')
    assert read_rows(str(path)) == [{"label": 1, "text": 'one "quoted" line\nand another'}]


def test_what_is_left_out_of_a_file_is_said(tmp_path: Path) -> None:
    path, said = tmp_path / "labels.csv", list[str]()
    path.write_text("text,label,more\na,1,x\n  ,0,x\n,0,x\nb,0\n,,,\n")
    assert [row["text"] for row in read_rows(str(path), said.append)] == ["a", "b"]
    assert said == [
        f"{path}: 1 rows have fewer cells than the header; those that are missing count as empty",
        f"{path}: 3 of 5 rows have no text, and are left out",
    ]
    said.clear()
    lines = path.with_suffix(".jsonl")
    lines.write_text(
        '{"text": "half of \\ud83d"}\n{"text": 5}\n\n{"text": "a\u2028b\x85c", "label": 1}\n',
        "utf-8",
    )
    assert read_rows(str(lines), said.append) == [{"text": "a\u2028b\x85c", "label": 1}]
    assert said == [f"{lines}: 2 of 3 rows have no text, and are left out"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"", "they need a column `text`"),
        ("a.csv", b"text,label\n", "have no rows at all"),
        ("a.csv", b"Text,label\na,1\n", "begin with 'Text,label'; they need a column `text`"),
        ("a.csv", b"text,label,label\na,1,0\n", "have two columns `label`; rename or remove one"),
        (
            "a.csv",
            b"text,label\na,b,1\n",
            "line 2 of .* has 3 cells and the header 2; put texts with a comma",
        ),
        ("a.csv", b'text,label\na,1\n"b,0\nc,1\n', "around line 4 .*check the quotes there"),
        ("a.csv", b'text,label\n"a" b,1\n', "around line 2 .*check the quotes there"),
        ("a.csv", b"text,label\n" + b"a" * 200_000 + b",1\n", "around line 2 .*field limit"),
        (
            "a.csv",
            "text,label\né,1\n".encode("latin-1"),
            r"not in UTF-8 \(byte e9 in line 2\); save it as",
        ),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "in UTF-16, or no text at all; save it as"),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "in UTF-16, or no text at all"),
        ("a.jsonl", b"[1]\n", "line 1 of .* is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2 is not JSON"),
        ("a.jsonl", b"\xef\xbb\xbf", "have no rows at all"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_rows(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def political(leans: Sequence[str], about: Sequence[bool] = (True, True, False)) -> Rows:
    return [
        {
            "text": row["text"],
            "is_sociopolitical": about[n % len(about)],
            "political_ideology_label": leans[row["label"]] if about[n % len(about)] else "unclear",
        }
        for n, row in enumerate(examples())
    ]


def test_a_head_of_exactly_two_leans(tmp_path: Path, settings: Any) -> None:
    """scikit-learn keeps one row of weights for two classes, and their order must not be turned round."""
    settings = replace(SOCIOPOLITICAL.settings(), model=settings.model, dtype="float32")
    labels, head = (
        write(tmp_path / "ours.csv", political(["left", "right"])),
        tmp_path / "h.safetensors",
    )
    report = train_head(SOCIOPOLITICAL, [labels], str(head), settings)
    assert value(report.rows, "left/right", "accuracy") > 0.75
    assert report.notes == [
        f"{labels}: not learnt, because all labels of them are the same: moderate, unclear"
    ]
    judged = evaluate_file(SOCIOPOLITICAL, replace(settings, heads=str(head)), labels)
    assert value(judged.rows, "left/right/moderate/unclear", "accuracy") > 0.75


def test_leans_in_other_words_are_counted_and_named(tmp_path: Path, settings: Any) -> None:
    settings = replace(SOCIOPOLITICAL.settings(), model=settings.model, dtype="float32")
    labels, head = (
        write(tmp_path / "ours.csv", political(["left-leaning", "Right"])),
        tmp_path / "h.safetensors",
    )
    report = train_head(SOCIOPOLITICAL, [labels], str(head), settings)
    accepted = "not one of left, right, moderate, unclear"
    expected = [
        f"{labels}: 40 rows are not used: political_ideology_label is {lean!r}, and {accepted}"
        for lean in ("left-leaning", "Right")
    ]
    assert sorted(report.notes) == sorted(expected)
    assert f"- {expected[0]}." in head.with_suffix(".md").read_text(encoding="utf-8")
    judged = evaluate_file(SOCIOPOLITICAL, replace(settings, heads=str(head)), labels)
    assert sorted(judged.notes) == sorted(expected)
    with pytest.raises(
        ConfigError,
        match=rf"no label column .*60 rows are not used: .*'left-leaning', and {accepted}",
    ):
        targets_of(SOCIOPOLITICAL, political(["left-leaning", "left"], [True]), ["x.csv"])


def test_other_reasons_than_the_commonest_are_counted_too() -> None:
    rows: Rows = [
        {"is_sociopolitical": True, "political_ideology_label": f"lean {n // 2}"} for n in range(20)
    ]
    rows += [{"is_sociopolitical": False, "political_ideology_label": "left"}] * 3
    told = unused_labels(SOCIOPOLITICAL, rows, "x.csv")
    assert len(told) == 6
    assert told[0].startswith(
        "x.csv: 3 rows are not used: political_ideology_label is given and is_sociopolitical is"
    )
    assert told[-1] == "x.csv: 12 more rows are not used, for 6 other reasons"


ONE_MODERATE = [
    {**political(["left", "right"])[1], "political_ideology_label": "moderate"},
    *political(["left", "right"]),
]


@pytest.mark.parametrize(
    ("integration", "rows", "sentence"),
    [
        (
            INTERGROUP,
            [{**row, "label": int(n == 7)} for n, row in enumerate(examples(60))],
            "and intergroup has 1;",
        ),
        (
            INTERGROUP,
            [{**row, "label": int(n != 7)} for n, row in enumerate(examples(60))],
            "not intergroup has 1;",
        ),
        (
            INTERGROUP,
            [{**row, "weight": 0.5} for row in examples(60)],
            "intergroup has 0, not intergroup has 0;",
        ),
        (SOCIOPOLITICAL, ONE_MODERATE, "and moderate has 1;"),
        (
            INTERGROUP,
            [{**row, "weight": "much"} for row in examples(9)],
            "a weight is not a number .*'much'",
        ),
        (
            INTERGROUP,
            [{**row, "weight": -1} for row in examples(9)],
            "a weight is negative or no number",
        ),
        (
            INTERGROUP,
            [{**row, "weight": "nan"} for row in examples(9)],
            "a weight is negative or no number",
        ),
    ],
)
def test_labels_that_cannot_be_cross_validated_are_one_sentence(
    tmp_path: Path, settings: Any, integration: Any, rows: Rows, sentence: str
) -> None:
    labels, head = write(tmp_path / "few.jsonl", rows), tmp_path / "h.safetensors"
    settings = replace(integration.settings(), model=settings.model, dtype="float32")
    with pytest.raises(ConfigError, match=rf"few\.jsonl: .*{sentence}") as caught:
        train_head(integration, [labels], str(head), settings)
    assert "\n" not in str(caught.value)
    assert not head.exists()


@pytest.mark.parametrize("positive", [2, 3])
def test_a_rare_class_is_in_every_fold_that_is_learnt_from(positive: int) -> None:
    """Whatever the seed: chance would put both of two examples into one fold."""
    x = features(40)
    y = np.where(np.arange(40) < positive, 1.0, 0.0)
    groups = {
        name: (np.arange(40) % 2 if name == "b" else 1 - np.arange(40) % 2) * (1 - y)
        for name in "bc"
    }
    for seed in range(20):
        trained = train(Examples(x, {"a": y}, np.ones(40)), [], (0,), "sha", seed)
        assert np.isfinite(trained.validated["a"]).all()
        targets = {"a": y, **groups}
        trained = train(Examples(x, targets, np.ones(40)), [("a", "b", "c")], (0,), "sha", seed)
        assert all(np.isfinite(scores).all() for scores in trained.validated.values())


def test_rows_without_what_is_judged_do_not_count(tmp_path: Path, settings: Any) -> None:
    settings = replace(SOCIOPOLITICAL.settings(), model=settings.model, dtype="float32")
    head = tmp_path / "h.safetensors"
    train_head(
        SOCIOPOLITICAL,
        [write(tmp_path / "ours.csv", political(["left", "right"]))],
        str(head),
        settings,
    )
    rows = [
        {"text": row["text"], "is_sociopolitical": n % 2 == 0} for n, row in enumerate(examples(10))
    ]
    report = evaluate_file(
        SOCIOPOLITICAL, replace(settings, heads=str(head)), write(tmp_path / "no.csv", rows)
    )
    assert {output for output, *_ in report.rows} == {"sociopolitical"}, "no row has a lean"


def test_a_measure_that_is_not_defined_says_so() -> None:
    ones = np.ones(5)
    for measure in (evaluation.kappa, evaluation.spearman, evaluation.auc):
        assert str(evaluation.estimate(measure, ones, ones)) == "not defined: all are the same"
    assert str(evaluation.estimate(evaluation.spearman, np.ones(1), np.ones(1))).startswith(
        "not defined"
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"text": "a", "lable": 1}, {"text": "b", "lable": 0}],
            "no label column has both kinds of labels for any of intergroup",
        ),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 1}],
            "no label column has both kinds of labels",
        ),
        (
            [{"text": "a", "label": "yes"}, {"text": "b", "label": 0}],
            "a label is not a number .*'yes'",
        ),
        (
            [{"text": "a", "label": 5}, {"text": "b", "label": 0}],
            "labels of intergroup must lie between 0 and 1",
        ),
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
    assert (
        IME.targets({"label_emotion": 0, "label_intergroup": 0, "label_moral": 0})["other"] == 1.0
    )
    assert IME.targets({"emotion": 1})["other"] is None
    political = SOCIOPOLITICAL.targets(
        {"is_sociopolitical": True, "political_ideology_label": "left"}
    )
    assert (political["sociopolitical"], political["left"], political["right"]) == (1.0, 1.0, 0.0)
    other = SOCIOPOLITICAL.targets(
        {"is_sociopolitical": False, "political_ideology_label": "unclear"}
    )
    assert (other["sociopolitical"], other["unclear"]) == (0.0, None), (
        "a lean is only learnt from political posts"
    )
    assert PERSPECTIVE.targets({"prob_toxic": 0.25})["toxic"] == 0.25


def test_the_same_seed_gives_the_same_bytes_whatever_the_file(
    tmp_path: Path, settings: Any
) -> None:
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
    report = train_head(
        INTERGROUP, [labels], str(output), settings, test=test, seed=3, notes="Only for tests."
    )
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
        isinstance(o, dict) and o["label"] == row["label"]
        for o, row in zip(labelled, examples(60, 5), strict=True)
    ]
    assert sum(right) > 45
    again = evaluate_file(INTERGROUP, used, test)
    assert value(again.rows, "intergroup", "accuracy") == value(
        report.rows, "held out: intergroup", "accuracy"
    )
    same = agreement(INTERGROUP, used, used, test).rows
    assert (value(same, "label", "agreement"), value(same, "label", "Cohen's kappa")) == (1.0, 1.0)


def test_a_bad_file_of_tests_is_named_before_anything_is_learnt(
    tmp_path: Path, settings: Any
) -> None:
    labels, head = write(tmp_path / "ours.csv", examples()), tmp_path / "h.safetensors"
    (tmp_path / "test.csv").write_text("words\na\n")
    with pytest.raises(ConfigError, match=r"test\.csv begin with 'words'"):
        train_head(INTERGROUP, [labels], str(head), settings, test=str(tmp_path / "test.csv"))
    assert not head.exists()


def test_figures_are_of_texts_that_the_head_had_not_seen(tmp_path: Path, settings: Any) -> None:
    """Labels by chance can be learnt by heart, and must not look learnt."""
    rng = np.random.default_rng(0)
    rows = [{**row, "label": int(rng.integers(2))} for row in examples(200)]
    report = train_head(
        INTERGROUP, [write(tmp_path / "noise.csv", rows)], str(tmp_path / "h.safetensors"), settings
    )
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
    y[100:] = (
        1 - y[100:]
    )  # the helpers teach the opposite, with less weight in all than they have in number
    weights[100:] = 0.01
    trained = train(Examples(x, {"a": y}, weights), [], (0,), "sha", 0)
    assert np.isnan(trained.validated["a"][100:]).all()
    assert ((trained.validated["a"][:100] >= 0.5) == (y[:100] >= 0.5)).mean() > 0.85


def test_graded_labels_are_learnt_as_grades() -> None:
    x = features(500)
    y = 1 / (1 + np.exp(-x[:, 0]))
    trained = train(Examples(x, {"a": y}, np.ones(500)), [], (0,), "sha", 0)
    assert evaluation.spearman(y, trained.validated["a"]) > 0.98
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
    assert evaluation.accuracy(truth, found) == pytest.approx(4 / 6)
    assert evaluation.macro_f1(truth, found) == pytest.approx(2 / 3)
    assert evaluation.kappa(truth, found) == pytest.approx(1 / 3)
    assert evaluation.auc(truth, np.array([0.9, 0.8, 0.4, 0.3, 0.2, 0.5])) == pytest.approx(8 / 9)
    assert np.isnan(evaluation.auc(np.ones(3), np.ones(3)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, found = (rng.integers(0, 3, 30) for _ in range(2))
        assert evaluation.macro_f1(truth, found) == pytest.approx(
            f1_score(truth, found, average="macro")
        )
        assert evaluation.kappa(truth, found) == pytest.approx(cohen_kappa_score(truth, found))
        scores = found + rng.integers(0, 2, 30)
        assert evaluation.auc(truth > 0, scores) == pytest.approx(roc_auc_score(truth > 0, scores))
    assert evaluation.spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 40, 30])) == pytest.approx(
        0.8
    )
    assert evaluation.spearman(np.array([1, 1, 2]), np.array([5, 5, 6])) == pytest.approx(1.0)


def test_an_interval_narrows_with_the_number_of_texts() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        truth = rng.integers(0, 2, count)
        found = np.where(rng.random(count) < 0.8, truth, 1 - truth)
        estimate = evaluation.estimate(evaluation.accuracy, truth, found)
        assert estimate.low <= estimate.value <= estimate.high
        widths.append(estimate.high - estimate.low)
    # 1.96 · 2 · √(0.8 · 0.2 / n)
    assert widths == [pytest.approx(0.22, abs=0.06), pytest.approx(0.022, abs=0.004)]


def test_texts_of_one_kind_give_only_the_share_that_was_found(
    tmp_path: Path, settings: Any
) -> None:
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
    rows = [
        {"text": "I love this", "valence_label": "positive"},
        {"text": "I hate this", "valence_label": "positive"},
        {"text": "I hate that", "valence_label": ""},
        {"text": "I love that", "valence_label": "Positive"},
    ]
    report = evaluate_file(valence, valence.settings(), write(tmp_path / "labels.csv", rows))
    assert value(report.rows, "valence_label", "accuracy") == 0.5
    [note] = report.notes
    assert note.endswith(
        "1 rows are not used: valence_label is 'Positive', and not one of positive, negative, neutral"
    )
    with pytest.raises(ConfigError, match="has no model that could be trained"):
        train_head(
            valence, [str(tmp_path / "labels.csv")], str(tmp_path / "head"), valence.settings()
        )
    with pytest.raises(ConfigError, match="the labels have none of the columns"):
        evaluate_file(
            valence, valence.settings(), write(tmp_path / "other.csv", [{"text": "a", "label": 1}])
        )
