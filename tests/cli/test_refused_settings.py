"""Settings that nothing can be done with are refused by name, before a file is written or Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.__main__ import main
from tests.support import DAY, make_lake

PERSPECTIVE, LLM = "ml_inference_perspective_api", "ml_inference_intergroup"
RUN = ["run", "-r", "posts", "--start-date", DAY, "--end-date", DAY]
FEEDS = ["plan", "-i", "v", "-r", "posts_used_in_feeds", "--end-date", DAY]
FLOATS, COUNTS = (
    ("0", "-1", "nan", "inf", "1e300"),
    ("0", "-1", "9223372036854775807", "1" + "0" * 400),
)
PDS_FLOATS = (
    "host_qps", "connect_seconds", "read_seconds", "request_seconds", "slow_seconds", "limited_seconds",
    "trouble_seconds", "retry_seconds", "flush_seconds",
)  # fmt: skip
PDS_COUNTS = ("in_flight", "max_repo_bytes", "slow_bytes", "spool_bytes", "attempts", "flush_rows")


def every(
    table: str, names: tuple[str, ...], values: tuple[str, ...], more: str = ""
) -> list[tuple[str, str]]:
    return [(name, f"[{table}]\n{more}{name} = {value}\n") for name in names for value in values]


IN_CONFIG = [
    *every("run", ("flush_seconds",), FLOATS),
    *every("run", ("flush_rows", "block_rows", "api_block_rows", "api_actors"), COUNTS),
    *every("pds", PDS_FLOATS, FLOATS),
    *every("pds", PDS_COUNTS, COUNTS),
    *every("pds", ("identity_hours",), ("-1.0", "nan", "inf")),
    *every("pds", ("patience",), ("-1",)),
    *every(f"integrations.{PERSPECTIVE}", ("qps", "timeout", "gpu"), FLOATS),
    *every(
        f"integrations.{PERSPECTIVE}", ("in_flight", "attempts", "threads", "max_tokens"), COUNTS
    ),
    *every(f"integrations.{PERSPECTIVE}", ("token_budget",), ("-1",)),
    *every(f"integrations.{LLM}", ("requests_per_minute", "tokens_per_minute", "timeout"), FLOATS),
    *every(f"integrations.{LLM}", ("price_in", "price_out"), ("-0.1", "nan", "inf")),
    *every(f"integrations.{LLM}", ("posts_per_prompt", "in_flight", "attempts"), COUNTS),
    *every(f"integrations.{LLM}.parameters", ("temperature",), ("nan", "inf")),
    *every(
        f"integrations.{LLM}.parameters",
        ("model", "messages", "response_format", "stream"),
        ("true",),
    ),
]
# The sentence names the variable. A key is never shown.
IN_ENVIRONMENT = [
    *(("PERSPECTIVE_QPS", value) for value in ("0", "-1", "nan", "inf", "ten", "1e300")),
    *(
        (name, value)
        for name in ("PERSPECTIVE_API_ENDPOINT", "LLM_BASE_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
        for value in ("example.org", "localhost:9000", "http://", "http://host:port", "http://host:99999",
                      "http://host:0", "ftp://host", "http://a b", "https://[::1")
    ),
    *(
        (name, value)
        for name in ("PERSPECTIVE_API_KEY", "GOOGLE_API_KEY", "LLM_API_KEY")
        for value in ("a-secret-key\n", "two-lines\nof-key", " a-secret-key", "a-secret-\u201ckey\u201d")
    ),
]  # fmt: skip
ON_THE_LINE = [
    *([*RUN, "-i", "p", "--qps", value] for value in ("nan", "inf", "0", "-1", "1e300")),
    *([*RUN, "-i", "v", "--sample-proportion", value] for value in ("nan", "inf", "0", "-1")),
    [*RUN, "-i", "v", "--sample-seed", "10000000000"],
    *(
        ["pds", "sync", "--did", "did:plc:" + "a" * 24, "--host-qps", value]
        for value in ("nan", "inf", "0", "1e300")
    ),
    ["pds", "sync", "--did", "did:plc:" + "a" * 24, "--max-repo-mib", "1" + "0" * 300],
]
ADDRESSES = [
    *(
        ("--database-url", value)
        for value in ("sqlite:///", "sqlite:///:memory:", "sqlite://", "sqlite:x.db")
    ),
    *(
        ("--data-dir", value)
        for value in ("s3://", "s3:///", "gs://bucket/lake", "file:///lake", "s3://k:s@bucket/x")
    ),
]


def refused(capsys: pytest.CaptureFixture[str], lake_dir: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and the one sentence; nothing else was written, into the lake or to the streams."""
    make_lake(lake_dir, 3, [DAY])
    before = sorted(lake_dir.rglob("*"))
    code = main(
        [*arguments] if "--data-dir" in arguments else [*arguments, "--data-dir", str(lake_dir)]
    )
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith("error: ")) == ("", 1, True), err
    assert "unexpected" not in err
    assert sorted(lake_dir.rglob("*")) == before
    return code, err


@pytest.mark.parametrize(
    ("name", "text"), IN_CONFIG, ids=lambda value: value[-60:].replace("\n", " ")
)
def test_a_number_in_the_config_file(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, tmp_path: Path, name: str, text: str
) -> None:
    config = tmp_path / "backfill.toml"
    config.write_text(text)
    code, err = refused(capsys, lake_dir, *RUN, "-i", "v", "--config", str(config))
    assert code == 1
    assert f"{config} [{text[1 : text.index(']')].removesuffix('.parameters')}]" in err
    assert name in err


@pytest.mark.parametrize(("name", "value"), IN_ENVIRONMENT, ids=repr)
def test_a_variable(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, value: str,
) -> None:  # fmt: skip
    config = tmp_path / "backfill.toml"
    config.write_text(f'[integrations.{LLM}]\nbackend = "llm"\nmodel = "m"\n')
    for other in ("PERSPECTIVE_API_KEY", "GOOGLE_API_KEY", "LLM_BASE_URL"):
        monkeypatch.delenv(other, raising=False)
    if not name.endswith("_KEY"):
        monkeypatch.setenv("PERSPECTIVE_API_KEY", "a-fine-key")
    monkeypatch.setenv(name, value)
    lake = ["--data-dir", "s3://bucket/lake"] if name.startswith("AWS") else []
    code, err = refused(
        capsys, lake_dir, *RUN, "-i", "g" if "LLM" in name else "p", "--config", str(config), *lake
    )
    assert code == 1
    assert name in err
    assert not name.endswith("_KEY") or "secret" not in err


@pytest.mark.parametrize(
    "arguments", ON_THE_LINE, ids=lambda arguments: " ".join(arguments[-2:])[:60]
)
def test_an_option(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, arguments: list[str]
) -> None:
    code, err = refused(capsys, lake_dir, *arguments)
    assert code == 2
    assert arguments[-2] in err


@pytest.mark.parametrize("address", ADDRESSES, ids=" ".join)
def test_an_address(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, address: tuple[str, str]
) -> None:
    code, err = refused(capsys, lake_dir, *RUN, "-i", "v", *address)
    assert code == 1
    assert address[0] in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pds", "sync", "--host", "http://host:port"],
        ["pds", "sync", "--host", "ftp://host"],
        ["pds", "sync", "--did", "did:plc:" + "a" * 24, "--plc-url", "https://"],
        ["pds", "sync", "--did", "did:plc:" + "a" * 24, "--plc-url", "https://host:99999"],
    ],
    ids=lambda arguments: arguments[-1],
)
def test_a_host_of_pds(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, arguments: list[str]
) -> None:
    code, err = refused(capsys, lake_dir, *arguments)
    assert code == 1
    assert arguments[-2] in err
