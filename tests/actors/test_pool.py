from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.contract import Outcome
from actors.crash_journal import CrashJournal
from actors.fault_isolation import classify_isolated
from actors.integrations import Environment, resolve
from actors.pool import ClassifierActor, label_rows
from datasets.errors import FatalError, RejectedPost, RetryableError
from datasets.schemas import POST_SCHEMA, staged_schema
from tests.support import DAY, VALENCE, post


@pytest.fixture(autouse=True)
def _own_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class Scripted:
    """A classifier that treats each text as a command."""

    model, revision = "scripted", "1"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        self.calls.append(len(texts))
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Outcome:
        match text:
            case "raise":
                raise ValueError("cannot digest this")
            case "reject":
                return RejectedPost("not in English")
            case "later":
                return RetryableError("busy", kind="http_503")
            case "fatal":
                raise FatalError("there is no key")
            case "sleep":
                time.sleep(0.2)
            case "die":
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGKILL)
        return {"compound": float(len(text)), "valence_label": "neutral"}


def outcomes(texts: Sequence[str]) -> list[Outcome]:
    with CrashJournal("block") as journal:
        return classify_isolated(Scripted(), texts, journal)


def test_one_failing_post_becomes_a_row_with_its_reason_and_costs_no_other() -> None:
    texts = ["a", "bb", "raise", "dddd", "reject", "later"] + ["x"] * 50
    found = outcomes(texts)
    assert [o["compound"] for o in found if isinstance(o, dict)] == [
        1.0,
        2.0,
        4.0,
    ] + [1.0] * 50
    assert str(found[2]) == "ValueError: cannot digest this"
    assert isinstance(found[2], RejectedPost)
    assert str(found[4]) == "not in English"
    assert isinstance(found[5], RetryableError)


def test_a_failing_post_is_found_by_halving() -> None:
    scripted = Scripted()
    with CrashJournal("block") as journal:
        classify_isolated(scripted, ["a"] * 511 + ["raise"] + ["a"] * 512, journal)
    assert len(scripted.calls) == 1 + 2 * 10


def test_a_fatal_error_stops_everything() -> None:
    with pytest.raises(FatalError, match="there is no key"):
        outcomes(["a", "fatal", "b"])


def test_an_answer_of_the_wrong_length_is_fatal() -> None:
    class Short(Scripted):
        def classify(self, texts: Sequence[str]) -> list[Outcome]:
            return super().classify(texts)[1:]

    with (
        CrashJournal("block") as journal,
        pytest.raises(FatalError, match="2 answers for 3 posts"),
    ):
        classify_isolated(Short(), ["a", "b", "c"], journal)


def _classify_in_child(texts: Sequence[str], connection: Any) -> None:
    with CrashJournal("block") as journal:
        connection.send(
            [
                str(o) if isinstance(o, Exception) else o
                for o in classify_isolated(Scripted(), texts, journal)
            ]
        )


def restarted_until_done(
    work: Any, child: Callable[[Any, Any], None] = _classify_in_child
) -> tuple[Any, int]:
    """As Ray does with an actor: gives a new process the same block until one survives."""
    context = multiprocessing.get_context("fork")
    for deaths in range(100):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(work, theirs))
        process.start()
        theirs.close()
        try:
            return ours.recv(), deaths
        except EOFError:
            continue
        finally:
            process.join()
            ours.close()
    raise AssertionError("never done")


@pytest.mark.parametrize(
    ("size", "poison"),
    [(1, [0]), (5, [4]), (1000, [617]), (1000, [0, 1, 999]), (300, [150, 151])],
)
def test_posts_that_kill_the_process_are_found_and_rejected_by_name(
    size: int, poison: list[int]
) -> None:
    texts = ["die" if n in poison else "ok" for n in range(size)]
    found, deaths = restarted_until_done(texts)
    assert [n for n, outcome in enumerate(found) if isinstance(outcome, str)] == poison
    assert all("process died" in found[n] for n in poison)
    assert deaths <= 6 * len(poison), "each restart must tell where to look"


def _two_blocks_in_child(blocks: Mapping[str, Sequence[str]], connection: Any) -> None:
    """Classifies two blocks concurrently, so a crash interrupts both."""
    found: dict[str, list[Any]] = {}

    def work(name: str) -> None:
        with CrashJournal(name) as journal:
            found[name] = classify_isolated(Scripted(), blocks[name], journal)

    threads = [threading.Thread(target=work, args=(name,)) for name in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.send(
        {
            name: [str(o) for o in outcomes if isinstance(o, Exception)]
            for name, outcomes in found.items()
        }
    )


def test_the_neighbours_of_a_poison_post_are_not_blamed() -> None:
    """Its block crashes at its first row each time, while another is at its first row too."""
    blocks = {"poison": ["die", *["ok"] * 99], "slow": ["sleep", *["ok"] * 99]}
    found, _ = restarted_until_done(blocks, _two_blocks_in_child)
    assert (len(found["poison"]), found["slow"]) == (1, [])


def test_a_crash_with_another_cause_costs_no_post(tmp_path: Path) -> None:
    journal = CrashJournal("block")
    journal.begin(0, 100)  # and the process is gone
    with CrashJournal("block") as again:
        found = classify_isolated(Scripted(), ["ok"] * 100, again)
    assert all(isinstance(outcome, dict) for outcome in found)
    assert list(tmp_path.rglob("*.json")) == []


def test_a_finished_block_leaves_no_journal(tmp_path: Path) -> None:
    outcomes(["a", "raise"])
    assert list(tmp_path.rglob("*.json*")) == []


def test_rows_have_every_column_in_the_order_of_the_posts() -> None:
    posts = pa.Table.from_pylist(
        [{**post(n), "partition_date": DAY} for n in range(3)], schema=POST_SCHEMA
    )
    found: list[Outcome] = [
        {"compound": 0.5, "valence_label": "positive"},
        RejectedPost("r" * 999),
        RetryableError("x", kind="timeout"),
    ]
    rows = label_rows(resolve("v"), Scripted(), "run-1", posts, found)
    assert rows.schema == staged_schema(resolve("v").labels.schema)
    assert rows["uri"] == posts["uri"]
    assert rows["was_successfully_labeled"].to_pylist() == [True, False, None]
    assert rows["reason"].to_pylist() == [None, "r" * 300, "timeout"]
    assert rows["compound"].to_pylist() == [0.5, None, None]
    assert set(rows["run_id"].to_pylist()) == {"run-1"}
    assert (
        rows["label_model"][0].as_py(),
        rows["label_model_revision"][0].as_py(),
    ) == (
        "scripted",
        "1",
    )


def test_the_actor_labels_a_block() -> None:
    posts = pa.Table.from_pylist(
        [{**post(n), "partition_date": DAY} for n in range(20)], schema=POST_SCHEMA
    )
    actor = ClassifierActor(VALENCE, resolve(VALENCE).settings(), "run-1", Environment())
    rows = actor(posts)
    assert rows["text"] == posts["text"]
    assert all(rows["was_successfully_labeled"].to_pylist())
