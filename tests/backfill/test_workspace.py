from __future__ import annotations

import re
import time

from backfill.workspace import new_run_id


def test_ids_of_runs_sort_by_time_within_a_second_too() -> None:
    """Two runs of one second were in random order, and the file of the later one could be removed."""
    made = []
    for _ in range(20):
        made.append(new_run_id())
        began = time.monotonic()
        while time.monotonic() - began < 0.0005:  # the resolution is a quarter of a millisecond
            pass
    assert made == sorted(made)
    assert all(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{6}", run_id) for run_id in made)
