"""What a user types, as all processes of a run have to see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backfill.addresses import database_at, file_at, lake_at
from backfill.config import load_config
from backfill.workspace import open_workspace
from cli.__main__ import main
from datasets.answer_store import store_path
from datasets.errors import ConfigError
from datasets.lake import Lake
from tests.support import DAY, ROOT, make_lake


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "BACKFILL_DATA_DIR",
        "BACKFILL_DATABASE_URL",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "typed", ["lake", "./lake", "lake/", "x/../lake", "link", "link/", "~/../lake"]
)
def test_a_folder_has_one_absolute_name_however_it_is_typed(tmp_path: Path, typed: str) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("lake")
    workspace = open_workspace(typed, None, None, None, debug=False)
    assert workspace.lake == Lake(str(tmp_path / "lake"))
    assert workspace.database_url == f"sqlite:///{tmp_path}/lake/backfill.db"


def test_a_link_is_followed_before_what_comes_after_it(tmp_path: Path) -> None:
    """As the system does, and not by crossing out `link/..`."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    assert lake_at("link/../lake").root == str(tmp_path / "far" / "lake")


@pytest.mark.parametrize(
    "typed",
    ["s3://b/p/q", "s3://b/p/q/", "s3://b//p/q", "s3://b/p//q//", "s3:///b/p/q", "S3://b/p/q"],
)
def test_an_s3_lake_has_one_address_and_one_store_of_answers(typed: str) -> None:
    assert lake_at(typed) == Lake("s3://b/p/q")
    assert store_path(lake_at(typed), "x") == store_path(Lake("s3://b/p/q"), "x")
    assert lake_at("s3://b/") == Lake("s3://b")


def test_a_database_of_sqlite_has_an_absolute_path(tmp_path: Path) -> None:
    assert database_at("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert database_at("sqlite:///~/x.db") == f"sqlite:///{tmp_path}/home/x.db"
    assert database_at("sqlite:////x/../y.db") == "sqlite:////y.db"
    assert database_at("postgresql://me@host/db") == "postgresql://me@host/db"
    assert database_at("") == ""


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["status"], "--data-dir"),
        (["status", "--data-dir", "lake"], "--data-dir"),
        (["status", "--data-dir", "{lake}", "--database-url", "sqlite:///x.db"], "--database-url"),
        (["preprocess", "--data-dir", "./lake"], "--data-dir"),
        (["pds", "sync", "--did", "did:plc:" + "a" * 24, "--data-dir", "lake"], "--data-dir"),
        (["copy", "--from", "lake", "--to", "{lake}"], "--from"),
        (["copy", "--from", "{lake}", "--to", "copy"], "--to"),
    ],
)
def test_a_submitted_job_is_refused_a_place_that_ends_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], option: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    make_lake(tmp_path / "lake", 3, [DAY])
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(lake=tmp_path / "lake") for argument in arguments]) == 1
    assert f"give {option} an absolute path" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_copy_sees_one_lake_under_two_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_lake(tmp_path / "lake", 3, [DAY])
    (tmp_path / "link").symlink_to("lake")
    pairs = [
        ("lake", "./lake/"),
        ("lake", str(tmp_path / "lake")),
        ("link", "lake"),
        ("~/../lake", "lake"),
    ]
    for source, target in [*pairs, ("s3://b/p", "s3://b//p/")]:
        assert main(["copy", "--from", source, "--to", target]) == 2
        assert "--from and --to are the same lake" in capsys.readouterr().err


def test_files_that_settings_name_are_absolute_where_the_project_does_not_bring_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ime.safetensors").touch()
    config = tmp_path / "backfill.toml"
    config.write_text(
        '[integrations.ml_inference_ime]\nheads = "ime.safetensors"\nmodel = "a-hub/id"\n'
    )
    settings = load_config(None).integrations["ml_inference_ime"]
    assert (settings.heads, settings.model) == (str(tmp_path / "ime.safetensors"), "a-hub/id")
    monkeypatch.chdir(ROOT)
    assert file_at("actors/models/assets/heads") == "actors/models/assets/heads", (
        "Ray takes it to every node"
    )
    assert file_at("../") == str(ROOT.parent)


@pytest.mark.parametrize("option", ["--from", "--to"])
def test_an_empty_lake_is_not_the_folder_where_one_is(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    lakes = {"--from": "s3://b/p", "--to": "s3://b/q", option: ""}
    assert main(["copy", *(part for pair in lakes.items() for part in pair)]) == 1
    assert f"{option} is empty" in capsys.readouterr().err


def test_a_lake_is_refused_that_is_neither_a_folder_nor_on_s3() -> None:
    with pytest.raises(ConfigError, match="neither a folder nor an s3://"):
        lake_at("https://bucket/lake")
