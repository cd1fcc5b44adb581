from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import BadFile
from datasets.labels import writing
from datasets.labels.reading import Coverage, Labels, coverage, labelled_uris, read_labels
from datasets.lake import Lake
from datasets.schemas import label_schema, staged_schema
from tests.support import DAY, lake_labels, make_uri, post, queue_files, write_partition

NEXT = "2024-10-02"
LABELS = Labels("ml_inference_x", label_schema({"score": "float64"}))


def rows(numbers: Sequence[int], day: str = DAY, **changes: Any) -> pa.Table:
    made = [
        {
            **post(n),
            "score": n / 10,
            "was_successfully_labeled": True,
            "label_timestamp": "2026-01-01-00:00:00",
            "label_model": "m",
            "label_model_revision": "1",
            "run_id": "r",
            "partition_date": day,
            **changes,
        }
        for n in numbers
    ]
    return pa.Table.from_pylist(made, schema=staged_schema(LABELS.schema))


def stage(lake: Lake, table: pa.Table) -> str:
    name = writing.batch_name(LABELS.integration, "1", table["uri"].to_pylist())
    writing.stage(lake, LABELS, name, table)
    return name


def labelled(root: Path) -> list[tuple[str, str]]:
    return sorted(
        (row["partition_date"], row["uri"]) for row in lake_labels(root, "ml_inference_x")
    )


def expect(*days: tuple[str, Sequence[int]]) -> list[tuple[str, str]]:
    return sorted((day, make_uri(n)) for day, numbers in days for n in numbers)


def test_staged_batches_are_flushed_one_file_a_date(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    names = [stage(lake, rows([1, 2])), stage(lake, pa.concat_tables([rows([3]), rows([4], NEXT)]))]
    assert sorted(writing.staged(lake, LABELS)) == sorted(names)
    written = writing.flush(lake, LABELS, names, "run-1")
    assert [path.split("/")[2] for path in written] == [
        f"partition_date={DAY}",
        f"partition_date={NEXT}",
    ]
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3]), (NEXT, [4]))
    assert queue_files(tmp_path) == []
    assert "partition_date" not in lake.open_parquet(written[0]).schema_arrow.names


def test_a_batch_has_one_name_in_any_order_and_another_for_another_revision() -> None:
    names = {writing.batch_name("x", "1", ["a", "b"]), writing.batch_name("x", "1", ["b", "a"])}
    assert len(names) == 1
    assert (
        len(
            names
            | {writing.batch_name("x", "2", ["a", "b"]), writing.batch_name("y", "1", ["a", "b"])}
        )
        == 3
    )


class Killed(BaseException):
    """Where a process would be gone."""


class DyingLake(Lake):
    """A lake whose process is killed before its n-th change of the disk."""

    left: ClassVar = [0]

    def _die(self) -> None:
        if self.left[0] == 0:
            raise Killed
        self.left[0] -= 1

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        self._die()
        super().write_bytes(path, data)

    def delete(self, path: str) -> None:
        self._die()
        super().delete(path)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_a_flush_killed_at_any_point_is_finished_by_recovery(
    tmp_path: Path, *, keep: bool, replace: bool
) -> None:
    """And so is a recovery that is killed in its turn."""
    points = 0
    for point in range(40):
        root = tmp_path / f"{point}"
        lake, dying = Lake(str(root)), DyingLake(str(root))
        rejected = rows([1, 9], was_successfully_labeled=False, reason="too long").drop_columns(
            "partition_date"
        )
        if replace:
            write_partition(
                root, "ml_inference_x", DAY, rejected.to_pylist(), name="old", tier="active"
            )
        names = [stage(lake, rows([1, 2])), stage(lake, rows([3], NEXT))]
        killed = False
        for step in (lambda d=dying, n=names: writing.flush(d, LABELS, n, "run-1", keep=keep, replace=replace),
                     lambda d=dying: writing.recover(d, LABELS)):  # fmt: skip
            DyingLake.left[0] = point
            try:
                step()
            except Killed:
                killed = True
        points += killed
        writing.recover(lake, LABELS)
        if writing.staged(lake, LABELS):
            writing.flush(
                lake, LABELS, writing.staged(lake, LABELS), "run-2", keep=keep, replace=replace
            )
        old = [9] if replace else []
        assert labelled(root) == expect((DAY, [1, 2, *old]), (NEXT, [3])), (
            f"killed before change {point}"
        )
        if keep:
            assert writing.staged(lake, LABELS) == []
            writing.drop_written(lake, LABELS)
        assert queue_files(root) == []
    assert points >= 5, "the loop must have killed something"


@pytest.mark.parametrize("done", [True, False])
def test_recovery_does_not_rewrite_label_files_from_a_part_of_their_segments(
    tmp_path: Path, *, done: bool
) -> None:
    lake = Lake(str(tmp_path))
    names = [stage(lake, rows([1, 2])), stage(lake, rows([3]))]
    intent = {
        "staged": names,
        "file": "labels-run-1.parquet",
        "keep": False,
        "replace": False,
        "done": done,
    }
    writing.flush(lake, LABELS, names, "run-1")
    stage(lake, rows([1, 2]))  # as if its removal had not reached the disk, and the other's had
    lake.write_bytes(f"{LABELS.queue}/flush-run-1.json", json.dumps(intent).encode())
    writing.recover(lake, LABELS)
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3]))
    adopt(lake)
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3]))
    assert queue_files(tmp_path) == []


def adopt(lake: Lake, file: str = "run-9-1", *, keep: bool = False) -> None:
    if staged := writing.staged(lake, LABELS):
        writing.adopt(lake, LABELS, staged, file, keep=keep, ensure=lambda: None)


def test_what_a_run_taken_for_dead_stages_late_is_not_labelled_twice(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    writing.flush(lake, LABELS, [stage(lake, rows([1, 2]))], "r2-1-1")
    stage(lake, rows([2, 3], label_model="late"))
    stage(lake, rows([3, 4], label_model="later"))
    adopt(lake)
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3, 4]))
    assert queue_files(tmp_path) == []


def test_a_flush_begun_late_by_a_run_taken_for_dead_is_finished_without_labelling_twice(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    late = stage(lake, rows([2, 3]))
    writing.flush(lake, LABELS, [stage(lake, rows([1, 2]))], "r2-1-1")
    intent = {"staged": [late], "file": "labels-r1-1-1.parquet", "keep": False, "replace": False}
    lake.write_bytes(f"{LABELS.queue}/flush-r1-1-1.json", json.dumps(intent).encode())
    writing.recover(lake, LABELS)
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3]))
    assert queue_files(tmp_path) == []


def test_labels_of_a_dead_retry_take_the_place_of_rejected_ones(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    writing.flush(
        lake, LABELS, [stage(lake, rows([1, 2], was_successfully_labeled=False))], "r1-1-1"
    )
    stage(lake, rows([1]))
    adopt(lake)
    assert labelled(tmp_path) == expect((DAY, [1, 2]))
    found = {
        row["uri"]: row["was_successfully_labeled"]
        for row in lake_labels(tmp_path, LABELS.integration)
    }
    assert found == {make_uri(1): True, make_uri(2): False}


def test_recovery_leaves_the_flushes_of_live_runs_alone(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    segment = stage(lake, rows([1]))
    intent = {
        "staged": [segment],
        "file": "labels-20260101T000000-aa-1-1.parquet",
        "keep": False,
        "replace": False,
    }
    path = f"{LABELS.queue}/flush-20260101T000000-aa-1-1.json"
    lake.write_bytes(path, json.dumps(intent).encode())
    writing.recover(lake, LABELS, {"20260101T000000-aa": (NEXT, NEXT)})
    assert (labelled(tmp_path), lake.exists(path)) == ([], True)
    writing.recover(lake, LABELS, {"20260101T000000-bb": (NEXT, NEXT)})
    assert (labelled(tmp_path), lake.exists(path)) == (expect((DAY, [1])), False)


def test_what_a_run_taken_for_dead_leaves_late_waits_while_another_labels_those_dates(
    tmp_path: Path,
) -> None:
    """The other has chosen the same posts already, and would label them once more."""
    lake = Lake(str(tmp_path))
    writing.stage(lake, LABELS, "r1-late", rows([1]))
    writing.stage(lake, LABELS, "r1-other", rows([2], NEXT))
    intent = {
        "staged": ["r1-late"],
        "file": "labels-r1-1-1.parquet",
        "keep": False,
        "replace": False,
    }
    path = f"{LABELS.queue}/flush-r1-1-1.json"
    lake.write_bytes(path, json.dumps(intent).encode())
    live = {"r2": (DAY, DAY)}
    writing.recover(lake, LABELS, live)
    assert (labelled(tmp_path), lake.exists(path)) == ([], True)
    assert writing.left_by_dead(lake, LABELS, ["r1-late", "r1-other", "r2-a"], live) == ["r1-other"]
    writing.recover(lake, LABELS)
    assert (labelled(tmp_path), lake.exists(path)) == (expect((DAY, [1])), False)


def test_a_writer_that_is_not_the_one_any_more_neither_writes_nor_removes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    name = stage(lake, rows([1]))
    for allowed in (0, 1):
        calls = iter([None] * allowed)
        with pytest.raises(StopIteration):
            writing.flush(lake, LABELS, [name], f"r1-1-{allowed}", ensure=lambda c=calls: next(c))
        assert writing.staged(lake, LABELS) == [name]
    writing.recover(lake, LABELS)
    assert labelled(tmp_path) == expect((DAY, [1]))


def test_a_segment_that_is_flushed_while_a_selection_looks_is_seen_in_the_lake(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    name = stage(lake, rows([1]))

    class Racing(Lake):
        def files(self, path: str, suffix: str = ".parquet") -> list[str]:
            found = super().files(path, suffix)
            if (
                path == LABELS.queue
                and suffix == ".parquet"
                and lake.exists(f"{LABELS.queue}/{name}.parquet")
            ):
                writing.flush(lake, LABELS, [name], "r1-1-1")
            return found

    assert labelled_uris(Racing(str(tmp_path)), LABELS)(DAY).to_pylist() == [make_uri(1)]


def test_kept_segments_are_written_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    writing.flush(lake, LABELS, [stage(lake, rows([1, 2]))], "run-1", keep=True)
    assert writing.staged(lake, LABELS) == []
    new = stage(lake, rows([3]))
    assert writing.staged(lake, LABELS) == [new]
    writing.flush(lake, LABELS, [new], "run-2", keep=True)
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3]))
    writing.drop_written(lake, LABELS)
    assert queue_files(tmp_path) == []


def test_flushed_batches_are_known_from_the_files_of_their_run(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    first, second = stage(lake, rows([1])), stage(lake, rows([2]))
    writing.flush(lake, LABELS, [first], "r1-1")
    writing.flush(lake, LABELS, [second], "r2-1")
    assert writing.flushed_batches(lake, LABELS, "r1") == {first}
    assert writing.flushed_batches(lake, LABELS, "r3") == set()


def test_labelled_means_labelled_in_either_tier_or_staged(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    write_partition(tmp_path, "ml_inference_x", DAY, [{"uri": "history"}], tier="active")
    write_partition(
        tmp_path,
        "ml_inference_x",
        DAY,
        [{"uri": "no", "was_successfully_labeled": False}],
        name="b",
    )
    write_partition(
        tmp_path, "ml_inference_x", NEXT, [{"uri": "yes", "was_successfully_labeled": True}]
    )
    stage(lake, rows([5]))
    both = labelled_uris(lake, LABELS)
    assert set(both(DAY).to_pylist()) == {"history", "no", make_uri(5)}
    assert both(NEXT).to_pylist() == ["yes"]
    assert set(labelled_uris(lake, LABELS, retry_rejected=True)(DAY).to_pylist()) == {
        "history",
        make_uri(5),
    }


def test_coverage_counts_outcomes_and_reasons(tmp_path: Path) -> None:
    made = [
        {"uri": str(n), "was_successfully_labeled": ok, "reason": reason}
        for n, (ok, reason) in enumerate(
            [(True, None), (False, "too long"), (False, "too long"), (False, None), (None, None)]
        )
    ]
    write_partition(tmp_path, "ml_inference_x", DAY, made)
    found = coverage(Lake(str(tmp_path)), LABELS, None, None)
    assert found == {DAY: Coverage(2, 3, {"too long": 2, "unknown": 1})}


def test_an_older_label_file_is_read_with_nulls_for_what_it_lacks(tmp_path: Path) -> None:
    write_partition(tmp_path, "ml_inference_x", DAY, [{"uri": "u", "extra": 1}])
    (path,) = Lake(str(tmp_path)).partitions("ml_inference_x")[DAY]
    table = read_labels(Lake(str(tmp_path)), LABELS, path)
    assert table.schema == LABELS.schema
    assert table.to_pylist()[0] == {
        name: "u" if name == "uri" else None for name in LABELS.schema.names
    }


def write_rejected(root: Path, numbers: Sequence[int], name: str = "history") -> Path:
    found = (
        rows(numbers, was_successfully_labeled=False, reason="too long")
        .drop_columns("partition_date")
        .to_pylist()
    )
    return write_partition(root, LABELS.integration, DAY, found, name)


def names_of(lake: Lake) -> list[str]:
    return [path.rpartition("/")[2] for path in lake.partitions(LABELS.integration)[DAY]]


def test_what_is_left_of_history_stays_history_however_often_rows_of_it_are_replaced(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    write_rejected(tmp_path, [1, 2, 3])
    for n in (1, 2):
        writing.flush(lake, LABELS, [stage(lake, rows([n]))], f"r1-1-{n}", replace=True)
    assert names_of(lake) == [
        "kept-r1-1-2.0.parquet",
        "labels-r1-1-1.parquet",
        "labels-r1-1-2.parquet",
    ]
    assert labelled(tmp_path) == expect((DAY, [1, 2, 3]))


def damage_the_last_column(path: Path) -> None:
    """So that its URIs and outcomes can still be read."""
    pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False)
    group = pq.read_metadata(path).row_group(0)
    start = group.column(group.num_columns - 1).data_page_offset
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xff" * 20 + content[start + 20 :])


@pytest.mark.parametrize("whole", [True, False])
def test_an_older_label_file_that_is_bad_is_named_or_gone_on_without(
    tmp_path: Path, *, whole: bool
) -> None:
    bad = write_rejected(tmp_path, [1, 2])
    if whole:
        bad.write_bytes(b"PAR1")
    else:
        damage_the_last_column(bad)
    lake = Lake(str(tmp_path))
    name = stage(lake, rows([1]))
    with pytest.raises(BadFile, match=re.escape(str(bad))):
        writing.flush(lake, LABELS, [name], "r1-1-1", replace=True)
    with pytest.raises(BadFile, match=re.escape(str(bad))):
        writing.recover(lake, LABELS)

    skipped: list[str] = []
    writing.recover(lake, LABELS, on_bad=lambda error: skipped.append(error.path))
    assert set(skipped) == {str(bad)}
    assert queue_files(tmp_path) == []
    assert len(names_of(lake)) == 2


def test_coverage_counts_on_when_a_retry_replaces_a_label_file_meanwhile(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    write_rejected(tmp_path, [1, 2])
    name = stage(lake, rows([1]))

    class Racing(Lake):
        def partitions(
            self, dataset: str, start: str | None = None, end: str | None = None
        ) -> dict[str, list[str]]:
            found = super().partitions(dataset, start, end)
            if writing.staged(lake, LABELS):
                writing.flush(lake, LABELS, [name], "r1-1-1", replace=True)
            return found

    assert coverage(Racing(str(tmp_path)), LABELS, None, None) == {
        DAY: Coverage(1, 1, {"too long": 1})
    }
