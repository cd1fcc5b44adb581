from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import limiter as module
from actors.limiter import HORIZON, MARGIN, Limiter
from actors.remote import Quota

HUNDRED = Quota(100)


def make(tmp_path: Path, name: str = "x") -> Limiter:
    return Limiter(name, str(tmp_path))


def spend(limiter: Limiter, quota: Quota, seconds: float, tokens: float = 0.0) -> list[float]:
    """Slots taken greedily for some time, as a caller with endless work does."""
    slots: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lease = limiter.lease(quota, 25, tokens)
        slots += lease.slots
        time.sleep(min(0.05, lease.wait) if not lease.slots else 0.01)
    return [slot for slot in slots if slot < end]


def most_in_a_second(slots: list[float]) -> int:
    ordered = sorted(slots)
    return max(sum(start <= other < start + 1 for other in ordered) for start in ordered)


def test_a_lease_grants_several_slots_evenly_and_none_beyond_the_horizon(tmp_path: Path) -> None:
    lease = make(tmp_path).lease(HUNDRED, 1000)
    assert len(lease.slots) == pytest.approx(HORIZON * 100, abs=2)
    gaps = [after - before for before, after in zip(lease.slots, lease.slots[1:], strict=False)]
    assert gaps == pytest.approx([0.01] * len(gaps))
    assert lease.slots[-1] <= lease.now + HORIZON


def test_the_quota_is_used_and_never_exceeded(tmp_path: Path) -> None:
    slots = spend(make(tmp_path), HUNDRED, 3.0)
    assert most_in_a_second(slots) <= 100
    assert len(slots) >= 3.0 * 100 / (1 + MARGIN) - 5


def test_a_request_that_left_late_moves_the_one_a_quota_later(tmp_path: Path) -> None:
    """Every tenth request is late by 40 ms. What was really sent still keeps to the quota, and nearly uses it."""
    limiter, sent, used = make(tmp_path), [], []
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        lease = limiter.lease(HUNDRED, 25, used=used)
        used = []
        for slot in lease.slots:
            left = slot + (0.04 if len(sent) % 10 == 0 else 0.0)
            sent.append(left)
            if left > slot:
                used.append((slot, left + MARGIN))
        time.sleep(0.02)
    assert most_in_a_second(sent) <= 100
    assert len([slot for slot in sent if slot < end]) >= 285


@pytest.mark.parametrize("margin", [MARGIN, 0.001])
def test_what_is_known_to_have_arrived_soon_frees_its_slot_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, margin: float
) -> None:
    """Answers come after 0.2 s and tell when their requests count from; the quota holds for that time."""
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    limiter, sent, told = make(tmp_path), [], 0
    for step in range(150):
        now = 1000 + step / 50
        answered = [slot for slot in sent[told:] if slot + 0.2 < now]
        told += len(answered)
        sent += limiter.lease(HUNDRED, 25, used=[(slot, slot + margin) for slot in answered]).slots
    assert most_in_a_second(sent) <= 100
    steady = [slot for slot in sent if 1000.9 <= slot < 1002.9]
    assert len(steady) == pytest.approx(200 / (1 + margin), abs=1.0)


def test_slots_that_nobody_used_are_made_up_for_within_the_quota(tmp_path: Path) -> None:
    """The first twenty are given up: as many more are handed out at twice the pace, and no second has too many."""
    limiter = make(tmp_path)
    unused = limiter.lease(HUNDRED, 20).slots
    sent: list[float] = []
    used: list[tuple[float, float | None]] = [(slot, None) for slot in unused]
    start = time.monotonic()
    while time.monotonic() < start + 3.0:
        sent += limiter.lease(HUNDRED, 25, used=used).slots
        used = []
        time.sleep(0.02)
    assert most_in_a_second(sent) <= 100
    assert sum(slot < unused[0] + 1.0 for slot in sent) >= 99
    assert min(after - before for before, after in itertools.pairwise(sent)) == pytest.approx(0.005, abs=1e-4)


def test_after_a_longer_rest_nothing_is_made_up_for(tmp_path: Path) -> None:
    limiter = make(tmp_path)
    limiter.lease(HUNDRED, 1)
    time.sleep(1.0)
    slots = limiter.lease(HUNDRED, 25).slots
    assert slots[-1] - slots[0] == pytest.approx(0.24, abs=0.01)


def test_a_slow_quota_waits_instead_of_queueing(tmp_path: Path) -> None:
    limiter = make(tmp_path)
    first, second = limiter.lease(Quota(1), 10), limiter.lease(Quota(1), 10)
    assert len(first.slots) == 1
    assert second.slots == ()
    assert second.wait == pytest.approx(1.0, abs=0.05)


def test_tokens_have_a_bucket_of_their_own(tmp_path: Path) -> None:
    """600 tokens a minute are one request of ten tokens a second, however many requests are allowed."""
    limiter = make(tmp_path)
    quota = Quota(100, tokens_per_minute=600)
    assert len(spend(limiter, quota, 2.5, tokens=10)) in (2, 3)
    before = limiter.lease(quota, 1, 10).wait
    limiter.settle(quota, 20)
    assert limiter.lease(quota, 1, 10).wait == pytest.approx(before + 2, abs=0.2)


def test_a_429_pauses_everybody_for_as_long_as_the_server_says(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path), make(tmp_path)
    ours.lease(HUNDRED, 1)
    ours.throttled(1.5)
    assert theirs.lease(HUNDRED, 1).slots == ()
    assert theirs.lease(HUNDRED, 1).wait == pytest.approx(1.5, abs=0.1)


def test_429s_of_one_moment_are_one(tmp_path: Path) -> None:
    limiter = make(tmp_path)
    assert [limiter.throttled(0.0) for _ in range(5)] == [1] * 5
    assert limiter.stats("r", "i")["rate"] == 1.0


def test_repeated_429s_lower_the_rate_and_success_restores_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAME", 0.0)
    limiter = make(tmp_path)
    for _ in range(3):
        limiter.throttled(0.0)
    lowered = limiter.stats("r", "i")["rate"]
    assert lowered == pytest.approx(0.49)
    limiter.lease(HUNDRED, 1, succeeded=20)
    assert limiter.stats("r", "i")["rate"] == pytest.approx(0.69)
    limiter.lease(HUNDRED, 1, succeeded=100)
    assert limiter.stats("r", "i")["rate"] == 1.0


def test_pauses_without_a_success_grow_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAME", 0.0)
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    limiter = make(tmp_path)
    waits = []
    for count in range(1, 6):
        assert limiter.throttled(None) == count
        lease = limiter.lease(Quota(1000), 1)
        waits.append(lease.slots[0] - lease.now if lease.slots else lease.wait)
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2], abs=0.05)
    limiter.lease(HUNDRED, 1, succeeded=1)
    assert limiter.throttled(None) == 1


def _spend_in_process(folder: str, start: float, slots: multiprocessing.Queue[list[float]]) -> None:
    limiter = Limiter("x", folder)
    time.sleep(max(0, start - time.monotonic()))
    slots.put(spend(limiter, HUNDRED, 2.0))


@pytest.mark.parametrize("callers", [2, 4])
def test_callers_in_other_processes_share_one_quota(tmp_path: Path, callers: int) -> None:
    """As runs do that have each a Ray of their own, on one machine."""
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[float]] = context.Queue()
    start = time.monotonic() + 0.2
    processes = [context.Process(target=_spend_in_process, args=(str(tmp_path), start, queue)) for _ in range(callers)]
    for process in processes:
        process.start()
    slots = [slot for _ in processes for slot in queue.get()]
    for process in processes:
        process.join()
    assert most_in_a_second(slots) <= 100
    assert len(slots) >= 185


def test_a_limiter_that_was_killed_comes_back_where_it_was(tmp_path: Path) -> None:
    before = make(tmp_path).lease(HUNDRED, 25).slots
    after = make(tmp_path).lease(HUNDRED, 25).slots
    assert not after or after[0] > before[-1]


@pytest.mark.parametrize("text", ["{", '{"next_request": "soon"}', '{"unknown": 1}', "[]"])
def test_a_state_that_was_cut_off_costs_a_second_and_no_more(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    assert make(tmp_path).lease(HUNDRED, 1).wait == pytest.approx(1.0, abs=0.3)


def test_a_state_from_before_a_reboot_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"next_request": 9e9, "paused_until": 9e9}')
    assert len(make(tmp_path).lease(HUNDRED, 1).slots) == 1


def test_reports_add_up_by_run_and_integration(tmp_path: Path) -> None:
    limiter = make(tmp_path)
    limiter.report("r1", "a", Counter(calls=2, retry_timeout=1))
    limiter.report("r1", "a", Counter(calls=3))
    limiter.report("r2", "a", Counter(calls=9))
    assert limiter.stats("r1", "a") == {"calls": 5, "retry_timeout": 1, "rate": 1.0}
    assert limiter.stats("r1", "b") == {"rate": 1.0}


def test_the_last_run_to_leave_knows_that_it_is_the_last(tmp_path: Path) -> None:
    limiter = make(tmp_path)
    limiter.join("a")
    limiter.join("b")
    assert [limiter.leave("a"), limiter.leave("b")] == [1, 0]


def test_the_name_and_the_file_do_not_tell_the_credential(tmp_path: Path) -> None:
    name = module.limiter_name("https://host", "a-secret-key")
    assert name != module.limiter_name("https://host", "another")
    make(tmp_path, name).lease(HUNDRED, 1)
    assert "secret" not in name + "".join(path.read_text() for path in tmp_path.iterdir())
    assert os.listdir(tmp_path) == [name]
