"""`train-head` and `evaluate` as a group uses them, and what they say when a model or a file does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.__main__ import main
from tests import models
from tests.backfill.heads.test_train import examples, write
from tests.support import run_cli


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def config(path: Path, integration: str = "intergroup", **settings: object) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    path.write_text(
        f"[integrations.ml_inference_{integration}]\n" + "\n".join(lines), encoding="utf-8"
    )
    return str(path)


def test_a_group_trains_a_head_sets_it_and_compares_it(
    capsys: pytest.CaptureFixture[str], encoder: Path, tmp_path: Path
) -> None:
    labels = write(tmp_path / "ours.csv", examples())
    tiny = config(tmp_path / "backfill.toml", model=str(encoder))
    code, out, err = call(
        capsys, "train-head", "--integration", "ml_inference_intergroup", "--labels", labels
    )
    assert (code, err) == (0, "")
    assert "120, 60 of them intergroup" in out
    assert (
        '[integrations.ml_inference_intergroup]\nheads = "heads/ml_inference_intergroup.safetensors"\n'
        in out
    )
    assert all(len(line) <= 80 for line in out.splitlines())
    head = tmp_path / "heads" / "ml_inference_intergroup.safetensors"
    assert head.exists()
    assert head.with_suffix(".md").exists()
    ours = config(tmp_path / "ours.toml", model=str(encoder), heads=str(head))
    code, out, err = call(
        capsys, "evaluate", "-i", "g", "--labels", labels, "--config", ours, "--against", ours
    )
    assert (code, err) == (0, "")
    assert "AUC" not in out, "this integration's column is a label, not a probability"
    assert "agreement  1.000 (1.000 to 1.000)" in out
    code, out, err = call(capsys, "evaluate", "-i", "g", "--labels", labels, "--config", tiny)
    assert code == 1, "the built-in head is of another encoder"
    assert "was trained on an encoder with other weights" in err


def test_what_is_not_used_of_the_labels_is_printed(
    capsys: pytest.CaptureFixture[str], encoder: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "text": row["text"],
            "is_sociopolitical": n % 3 > 0,
            "political_ideology_label": ["left-leaning", ""][n % 2],
        }
        for n, row in enumerate(examples(60))
    ]
    labels = write(tmp_path / "ours.csv", rows)
    tiny = config(tmp_path / "backfill.toml", "sociopolitical", model=str(encoder))
    code, out, err = call(capsys, "train-head", "-i", "s", "--labels", labels, "--config", tiny)
    assert code == 0
    assert "60, 40 of them sociopolitical" in out
    assert err == (
        f"{labels}: 30 rows are not used: political_ideology_label is 'left-leaning', "
        "and not one of left, right, moderate, unclear\n"
    )


def test_two_back_ends_with_probabilities_are_compared_by_rank(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = models.save_classifier(tmp_path / "one", ["emotion", "intergroup", "moral"])
    nli = models.save_classifier(tmp_path / "nli", ["entailment", "not_entailment"])
    hypotheses = {name: f"this is {name}" for name in ("emotion", "intergroup", "moral")}
    first = config(
        tmp_path / "a.toml", "ime", backend="transformer", model=str(one), activation="sigmoid"
    )
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in hypotheses.items())
    second = tmp_path / "b.toml"
    config(second, "ime", backend="zero-shot", model=str(nli))
    second.write_text(
        f"{second.read_text()}\n[integrations.ml_inference_ime.hypotheses]\n{table}\n"
    )
    rows = [
        {"text": row["text"], "emotion": row["label"], "intergroup": 0, "moral": 1}
        for row in examples(40)
    ]
    labels = write(tmp_path / "labels.jsonl", rows)
    code, out, err = call(
        capsys,
        "evaluate",
        "-i",
        "i",
        "--labels",
        labels,
        "--config",
        first,
        "--against",
        str(second),
    )
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["emotion", "AUC"] in [line[:2] for line in lines]
    assert ["prob_emotion", "rank", "correlation"] in [line[:3] for line in lines]
    assert ["label_moral", "Cohen's", "kappa"] in [line[:3] for line in lines]


def test_what_does_not_fit_is_exit_1_and_one_sentence_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], encoder: Path, tmp_path: Path
) -> None:
    labels = write(tmp_path / "labels.csv", examples(20))
    nolabels = write(
        tmp_path / "nolabels.csv", [{"text": "a", "lable": 1}, {"text": "b", "lable": 0}]
    )
    classifier = str(models.save_classifier(tmp_path / "classifier", ["a", "b"]))
    cases: list[tuple[list[str], dict[str, object], str]] = [
        (["train-head", "--labels", nolabels], {}, "check the columns' names and values"),
        (["train-head", "--labels", "missing.csv"], {}, "check --labels"),
        (["evaluate", "--labels", "missing.csv"], {}, "check --labels"),
        (
            ["evaluate", "--labels", labels],
            {"heads": "missing.safetensors"},
            "check heads in backfill.toml",
        ),
        (["evaluate", "--labels", labels], {"model": str(encoder)}, "train a head for this one"),
        (
            ["evaluate", "--labels", labels],
            {"model": "missing/"},
            "check model and revision in backfill.toml",
        ),
        (
            ["evaluate", "--labels", labels],
            {"backend": "transformer"},
            "needs a model in backfill.toml",
        ),
        (
            ["evaluate", "--labels", labels],
            {"backend": "transformer", "model": classifier, "labels": {"c": "intergroup"}},
            "has no label 'c'; it has a, b",
        ),
        (
            ["evaluate", "--labels", labels],
            {"backend": "zero-shot", "model": classifier, "hypotheses": {"intergroup": "x"}},
            "use an NLI model",
        ),
    ]
    for arguments, settings, sentence in cases:
        tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
        path = config(
            tmp_path / "c.toml",
            **{key: value for key, value in settings.items() if key not in tables},
        )
        for name, table in tables.items():
            lines = "\n".join(f'{key} = "{value}"' for key, value in table.items())
            Path(path).write_text(
                f"{Path(path).read_text()}\n[integrations.ml_inference_intergroup.{name}]\n{lines}\n"
            )
        code, out, err = call(capsys, *arguments, "-i", "g", "--config", path)
        assert (code, out) == (1, ""), (arguments, settings, out, err)
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sentence in err


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["train-head", "-i", "g"], "--labels"),
        (["train-head", "-i", "g,i", "--labels", "a.csv"], "give one integration"),
        (["evaluate", "-i", "x", "--labels", "a.csv"], "there is no integration 'x'"),
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2
        assert sentence in err


def test_a_wrong_model_id_without_a_network_is_one_sentence(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.csv", examples(4))
    path = config(
        tmp_path / "backfill.toml",
        backend="transformer",
        model="nobody/no-such-model",
        revision="main",
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    result = run_cli("evaluate", "-i", "g", "--labels", labels, "--config", path, env=offline)
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("error: the model nobody/no-such-model at main cannot be loaded")
    assert "check model and revision in backfill.toml, and that the hub can be reached" in line
