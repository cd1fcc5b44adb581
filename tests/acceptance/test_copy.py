"""Copying labels between lakes through the command line: folders and S3, kills, lakes that have labels already."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets.lake import Lake
from tests.s3_server import BUCKET, Endpoint
from tests.support import DAY, ROOT, VALENCE, cli_command, make_uri, run_cli, write_partition

IME = "ml_inference_ime"
DAYS = [DAY, "2024-10-02"]


def label(number: int, model: str = "a", ok: bool = True) -> dict[str, Any]:
    return {
        "uri": make_uri(number),
        "text": "t",
        "was_successfully_labeled": ok,
        "label_model": model,
    }


def fill(root: Path, files: int = 3, rows: int = 20, name: str = VALENCE) -> dict[str, set[str]]:
    uris: dict[str, set[str]] = {}
    for index, day in enumerate(DAYS):
        start = index * 10_000
        for file in range(files):
            made = [label(start + file * rows + n) for n in range(rows)]
            write_partition(
                root, name, day, made, f"labels-{file}", tier="active" if file == 0 else "cache"
            )
        uris[day] = {make_uri(start + n) for n in range(files * rows)}
    return uris


def labels(root: str, name: str = VALENCE) -> dict[str, list[tuple[str, str]]]:
    """Partition date → (uri, model) of each row, sorted."""
    lake = Lake(root)
    found: dict[str, list[tuple[str, str]]] = {}
    for day, paths in lake.partitions(name).items():
        for path in paths:
            with lake.open_parquet(path) as file:
                found.setdefault(day, []).extend(
                    (row["uri"], row["label_model"]) for row in file.read().to_pylist()
                )
    return {day: sorted(rows) for day, rows in found.items()}


def copy(source: Path | str, target: Path | str, *more: str) -> tuple[int, dict[str, Any], str]:
    done = run_cli("copy", "--from", str(source), "--to", str(target), "--json", *more)
    return (
        done.returncode,
        json.loads(done.stdout)["integrations"] if done.stdout else {},
        done.stderr,
    )


@pytest.mark.usefixtures("s3")
def test_a_copy_to_s3_and_back_has_the_same_bytes_and_a_second_one_does_nothing(
    tmp_path: Path,
) -> None:
    one, two, bucket = tmp_path / "one", tmp_path / "two", f"s3://{BUCKET}/{tmp_path.name}"
    fill(one)
    fill(one, 1, 5, IME)
    code, counts, stderr = copy(one, bucket)
    assert code == 0, stderr
    assert (counts[VALENCE]["files"], counts[VALENCE]["rows"], counts[IME]["rows"]) == (6, 120, 10)
    assert copy(bucket, two, "-i", "v")[1][VALENCE] == counts[VALENCE]
    copied = {
        root: sorted((p.parent, p.read_bytes()) for p in root.rglob("*.parquet"))
        for root in (one, two)
    }
    bytes_of = {
        root: [(p.relative_to(root), b) for p, b in files if VALENCE in p.parts]
        for root, files in copied.items()
    }
    assert len(bytes_of[two]) == 6
    assert bytes_of[two] == bytes_of[one]
    again = copy(one, bucket)[1]
    assert (again[VALENCE]["files"], again[VALENCE]["rows"], again[VALENCE]["already"]) == (
        0,
        0,
        120,
    )


def test_posts_that_the_target_has_labelled_or_staged_keep_its_labels(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    uris = fill(one)
    made = [label(n, "b", ok=n > 0) for n in range(25)]
    write_partition(two, VALENCE, DAY, made, "labels-0", tier="active")
    staged = two / "queues" / "output" / VALENCE
    staged.mkdir(parents=True)
    table = pq.read_table(write_partition(tmp_path / "x", VALENCE, DAY, [label(30)]))
    pq.write_table(table.append_column("partition_date", [[DAY]]), staged / "run-1-abc.parquet")
    code, counts, stderr = copy(one, two)
    assert code == 0, stderr
    assert (counts[VALENCE]["rows"], counts[VALENCE]["already"]) == (120 - 26, 26)
    found = labels(str(two))
    assert [uri for uri, _ in found[DAY]] == sorted(uris[DAY] - {make_uri(30)})
    assert Counter(model for _, model in found[DAY]) == {"b": 25, "a": 60 - 26}
    assert copy(one, two)[1][VALENCE]["rows"] == 0


@pytest.mark.long
def test_a_copy_killed_at_any_moment_goes_on_where_it_was(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    uris = fill(one, 150, 40)
    command = cli_command("copy", "--from", str(one), "--to", str(two), "-i", "v")
    copied = 0
    for _ in range(2):
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(two.rglob("*.parquet"))) < copied + 40:
            assert time.monotonic() < deadline
        process.kill()
        process.wait()
        copied = len(list(two.rglob("*.parquet")))
        assert 40 <= copied < 300
    code, counts, stderr = copy(one, two, "-i", "v")
    assert code == 0, stderr
    assert counts[VALENCE]["already"] >= copied * 40
    assert {day: [uri for uri, _ in rows] for day, rows in labels(str(two)).items()} == {
        day: sorted(these) for day, these in uris.items()
    }


@pytest.mark.usefixtures("s3")
def test_what_it_refuses_is_one_sentence(tmp_path: Path) -> None:
    one = tmp_path / "one"
    fill(one, 1)
    bad = one / VALENCE / "cache" / f"partition_date={DAY}" / "bad.parquet"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"PAR1 no")
    for source, target, sentence in (
        (tmp_path / "none", tmp_path / "two", "there is no lake at"),
        (one, "s3://no-such-bucket-here/x", "there is no such bucket"),
        (one, tmp_path / "two", "bad.parquet: not a readable Parquet file"),
        (one, "gs://x", "neither a folder nor an s3"),
    ):
        code, _, stderr = copy(source, target)
        assert code == 1
        assert sentence in stderr
        assert stderr.count("error: ") == 1, stderr
        assert "Traceback" not in stderr
    code, counts, stderr = copy(one, tmp_path / "three", "--skip-bad-files")
    assert (code, counts[VALENCE]["rows"]) == (0, 40)
    assert "skipped" in stderr
    assert run_cli("copy", "--from", str(one), "--to", f"{one}/").returncode == 2


def test_a_copy_that_reads_back_wrong_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from actors.integrations import resolve
    from backfill.labels.copy import copy as copy_labels
    from backfill.labels.post_filter import BadFiles
    from datasets.errors import BackfillError

    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, 1)
    write = Lake.write_bytes

    def flipped(self: Lake, path: str, data: bytes) -> None:
        write(
            self,
            path,
            data[:-9] + bytes([data[-9] ^ 1]) + data[-8:] if path.endswith(".parquet") else data,
        )

    monkeypatch.setattr(Lake, "write_bytes", flipped)
    with pytest.raises(BackfillError, match="reads back other bytes"):
        copy_labels(
            Lake(str(one)), Lake(str(two)), [resolve("v")], None, None, BadFiles(), io.StringIO()
        )
    assert list(two.rglob("*.parquet")) == []
    shutil.rmtree(two)


SHORT_LEASES = """
import sys
from datasets.locking import leases
leases.LEASE_SECONDS, leases.RENEW_SECONDS, leases.SURE_SECONDS = 4.0, 0.5, 2.0
from cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.usefixtures("s3")
def test_a_copy_that_was_stopped_until_another_took_over_ends_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    """As a machine that is suspended: wherever it is stopped, each post has one row when it has ended."""
    one = tmp_path / "one"
    uris = fill(one, 40, 5)
    for number, files in enumerate((1, 7, 20, 33)):
        target = f"s3://{BUCKET}/{tmp_path.name}-{number}"
        command = [
            sys.executable,
            "-c",
            SHORT_LEASES,
            "copy",
            "--from",
            str(one),
            "--to",
            target,
            "-i",
            "v",
        ]
        stopped = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while sum(map(len, Lake(target).partitions(VALENCE).values())) < files:
            assert stopped.poll() is None
            assert time.monotonic() < deadline
        stopped.send_signal(signal.SIGSTOP)
        other = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        stopped.send_signal(signal.SIGCONT)
        stderr = stopped.communicate(timeout=60)[1]
        assert other.returncode == 0, other.stderr
        assert (stopped.returncode, f"another run has taken over {VALENCE}" in stderr) == (
            1,
            True,
        ), stderr
        found = {day: [uri for uri, _ in rows] for day, rows in labels(target).items()}
        assert found == {day: sorted(these) for day, these in uris.items()}


@pytest.mark.long
def test_an_s3_endpoint_that_is_down_for_a_while_holds_it_up_only(
    s3: Endpoint, tmp_path: Path
) -> None:
    fill(tmp_path / "one", 20, 5)
    target = f"s3://{BUCKET}/{tmp_path.name}-slow"
    command = cli_command(
        "copy", "--from", str(tmp_path / "one"), "--to", target, "-i", "v", "--json"
    )
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not Lake(target).partitions(VALENCE):
            assert time.monotonic() < deadline
        with s3.down():
            time.sleep(6)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["integrations"][VALENCE]["rows"] == 200
    assert sum(map(len, labels(target).values())) == 200
