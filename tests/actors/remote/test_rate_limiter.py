from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from actors.remote import rate_limiter as module
from actors.remote.clock import Clock, boot_id
from actors.remote.protocol import Quota
from actors.remote.rate_limiter import HORIZON, MARGIN, Activity, Limiter
from datasets.errors import ConfigError
from tests.clocks import TestClock

HUNDRED = Quota(100)
DAY = 86_400.0


@pytest.fixture
def time() -> TestClock:
    return TestClock()


@pytest.fixture
def limiter(tmp_path: Path, time: TestClock) -> Limiter:
    return Limiter("x", str(tmp_path), time.clock)


def another(limiter: Limiter, clock: TestClock) -> Limiter:
    """Over the same file, as in another process."""
    return Limiter("x", os.path.dirname(limiter._path), clock.clock)


def spend(
    limiter: Limiter,
    time: TestClock,
    quota: Quota,
    seconds: float,
    tokens: float = 0.0,
    margin: float = MARGIN,
) -> list[float]:
    """Slots taken greedily for some time, as a caller with endless work does. Answers come after 0.2 s."""
    slots: list[float] = []
    told, end = 0, time.now + seconds
    while time.now < end:
        answered = [slot for slot in slots[told:] if slot + 0.2 < time.now]
        told += len(answered)
        slots += limiter.lease(
            quota, 25, tokens, used=[(slot, slot + margin) for slot in answered]
        ).slots
        time.now += 0.02
    return [slot for slot in slots if slot < end]


def most_in_a_second(slots: list[float]) -> int:
    ordered = sorted(slots)
    return max(sum(start <= other < start + 1 for other in ordered) for start in ordered)


def test_a_lease_grants_several_slots_evenly_and_none_beyond_the_horizon(limiter: Limiter) -> None:
    lease = limiter.lease(HUNDRED, 1000)
    assert len(lease.slots) == pytest.approx(HORIZON * 100, abs=1)
    gaps = [after - before for before, after in zip(lease.slots, lease.slots[1:], strict=False)]
    assert gaps == pytest.approx([0.01] * len(gaps))
    assert lease.slots[-1] <= lease.now + HORIZON


@pytest.mark.parametrize("margin", [MARGIN, 0.001])
def test_the_quota_is_used_and_never_exceeded(
    limiter: Limiter, time: TestClock, margin: float
) -> None:
    """A request that is known to have arrived soon frees its slot sooner."""
    start = time.now
    slots = spend(limiter, time, HUNDRED, 3.0, margin=margin)
    assert most_in_a_second(slots) <= 100
    steady = [slot for slot in slots if start + 0.9 <= slot < start + 2.9]
    assert len(steady) == pytest.approx(200 / (1 + margin), abs=1.0)


def test_a_request_that_left_late_moves_the_one_a_quota_later(
    limiter: Limiter, time: TestClock
) -> None:
    """Every tenth request is late by 40 ms. What was really sent still keeps to the quota, and nearly uses it."""
    sent: list[float] = []
    used: list[tuple[float, float | None]] = []
    end = time.now + 3.0
    while time.now < end:
        lease = limiter.lease(HUNDRED, 25, used=used)
        used = []
        for slot in lease.slots:
            left = slot + (0.04 if len(sent) % 10 == 0 else 0.0)
            sent.append(left)
            if left > slot:
                used.append((slot, left + MARGIN))
        time.now += 0.02
    assert most_in_a_second(sent) <= 100
    assert len([slot for slot in sent if slot < end]) >= 285


def test_slots_that_nobody_used_are_made_up_for_within_the_quota(
    limiter: Limiter, time: TestClock
) -> None:
    """The first twenty are given up: as many more are handed out at twice the pace, and no second has too many."""
    unused = limiter.lease(HUNDRED, 20).slots
    sent: list[float] = []
    used: list[tuple[float, float | None]] = [(slot, None) for slot in unused]
    for _ in range(150):
        sent += limiter.lease(HUNDRED, 25, used=used).slots
        used = []
        time.now += 0.02
    assert most_in_a_second(sent) <= 100
    assert sum(slot < unused[0] + 1.0 for slot in sent) >= 99
    assert min(after - before for before, after in itertools.pairwise(sent)) == pytest.approx(0.005)


def test_after_a_longer_rest_nothing_is_made_up_for(limiter: Limiter, time: TestClock) -> None:
    limiter.lease(HUNDRED, 1)
    time.now += 1.0
    slots = limiter.lease(HUNDRED, 25).slots
    assert slots[-1] - slots[0] == pytest.approx(0.24)


def test_a_slow_quota_waits_instead_of_queueing(limiter: Limiter) -> None:
    first, second = limiter.lease(Quota(1), 10), limiter.lease(Quota(1), 10)
    assert len(first.slots) == 1
    assert second.slots == ()
    assert second.wait == pytest.approx(1.0 + MARGIN)
    assert second.pause == 0.0


def test_tokens_have_a_bucket_of_their_own(limiter: Limiter, time: TestClock) -> None:
    """600 tokens a minute are one request of ten tokens a second, however many requests are allowed."""
    quota = Quota(100, tokens_per_minute=600)
    assert len(spend(limiter, time, quota, 2.5, tokens=10)) == 3
    before = limiter.lease(quota, 1, 10).wait
    limiter.settle(quota, 20)
    assert limiter.lease(quota, 1, 10).wait == pytest.approx(before + 2 * (1 + MARGIN))


def test_an_absurd_number_of_tokens_stops_nobody_for_good(limiter: Limiter) -> None:
    quota = Quota(100, tokens_per_minute=600)
    limiter.settle(quota, 1e18)
    lease = limiter.lease(quota, 1, 10)
    assert (lease.wait, lease.pause) == (3600.0, 0.0)


def test_who_mends_a_quota_that_was_too_slow_waits_no_longer_than_the_new_one_says(
    limiter: Limiter, time: TestClock
) -> None:
    limiter.lease(Quota(0.001), 1)
    time.now += 5
    assert limiter.lease(Quota(10), 1).slots == (time.now + 0.1,)


def test_tokens_that_are_owed_are_owed_at_the_quota_of_now(
    limiter: Limiter, time: TestClock
) -> None:
    slow, fast = Quota(100, tokens_per_minute=100), Quota(100, tokens_per_minute=60_000)
    limiter.lease(slow, 1, 2_000)
    assert limiter.lease(slow, 1, 2_000).wait == pytest.approx(1_200 * (1 + MARGIN))
    assert limiter.lease(fast, 1, 2_000).wait == pytest.approx(2 * (1 + MARGIN))
    assert limiter.lease(slow, 1, 2_000).wait == pytest.approx(1_200 * (1 + MARGIN)), (
        "nothing was forgiven"
    )


def test_the_file_holds_what_was_sent_of_late_however_large_the_quota(
    limiter: Limiter, time: TestClock, tmp_path: Path
) -> None:
    for _ in range(2_000):
        limiter.lease(Quota(100_000), 4)
        time.now += 0.01
    assert len(json.loads((tmp_path / "x").read_text())["counted"]) <= 500


def test_a_request_that_left_after_its_slot_was_forgotten_counts_all_the_same(
    limiter: Limiter, time: TestClock
) -> None:
    (slot,) = limiter.lease(Quota(1), 1).slots
    time.now += 10
    limiter.lease(Quota(1), 0)
    (other,) = limiter.lease(Quota(1), 1).slots
    time.now += 2
    limiter.lease(Quota(1), 0, used=[(slot, time.now), (other, None)])
    lease = limiter.lease(Quota(1), 1)
    assert (lease.slots, lease.wait) == ((), pytest.approx(1.0))


def test_a_429_pauses_everybody_for_as_long_as_the_server_says(
    limiter: Limiter, time: TestClock
) -> None:
    theirs = another(limiter, time)
    limiter.lease(HUNDRED, 1)
    limiter.throttled(1.5)
    lease = theirs.lease(HUNDRED, 1)
    assert (lease.slots, lease.wait, lease.pause) == ((), 1.5, 1.5)
    time.now += 1.5
    assert theirs.lease(HUNDRED, 1).slots == (time.now,)


@pytest.mark.parametrize("seconds", [3 * 3600.0, DAY, 31 * DAY])
def test_a_long_pause_is_kept_to_its_end_whatever_happens_to_the_wall_clock(
    limiter: Limiter, time: TestClock, seconds: float
) -> None:
    limiter.throttled(seconds)
    for part in (0.1, 0.4, 0.4):
        time.now += part * seconds
        time.epoch += 400 * DAY
        assert limiter.lease(HUNDRED, 1).slots == ()
    assert another(limiter, time).lease(HUNDRED, 1).pause == pytest.approx(0.1 * seconds)
    time.now += 0.2 * seconds
    assert limiter.lease(HUNDRED, 1).slots


def test_a_machine_that_sleeps_has_waited_all_the_same(limiter: Limiter, time: TestClock) -> None:
    limiter.throttled(DAY)
    assert limiter.lease(HUNDRED, 1).pause == DAY
    time.slept += 0.75 * DAY
    lease = limiter.lease(HUNDRED, 1)
    assert (lease.wait, lease.pause) == (0.25 * DAY, 0.25 * DAY)
    time.slept += 0.25 * DAY
    slots = limiter.lease(HUNDRED, 25).slots
    assert (slots[0], slots[-1] - slots[0]) == (time.now, pytest.approx(0.24))


def after_a_restart(
    time: TestClock, *, passed: float, uptime: float = 40.0, boot: str = "the next start"
) -> TestClock:
    """The clock of the machine once it was started anew, `passed` seconds of the wall clock later."""
    return TestClock(uptime, boot=boot, epoch=time.epoch + time.now + passed - uptime)


@pytest.mark.parametrize(
    ("passed", "left"),
    [(3600.0, DAY - 3600), (2 * DAY, 0.0), (-5 * DAY, DAY)],
    ids=["an hour later", "when it was over", "with its clock set back"],
)
def test_a_pause_outlives_a_restart_of_the_machine(
    limiter: Limiter, time: TestClock, passed: float, left: float
) -> None:
    limiter.throttled(DAY)
    restarted = after_a_restart(time, passed=passed)
    lease = another(limiter, restarted).lease(HUNDRED, 1)
    assert lease.pause == pytest.approx(left)
    assert lease.wait == pytest.approx(max(left, 1.0))
    assert another(limiter, restarted).lease(HUNDRED, 1).pause == pytest.approx(left), (
        "once, not at each reading"
    )
    restarted.now += max(left, 1.0) + 1
    assert another(limiter, restarted).lease(HUNDRED, 1).slots


@pytest.mark.parametrize(
    ("boot", "uptime"),
    [("the next start", 40.0), ("the next start", 100 * DAY), ("this start", 40.0)],
)
def test_times_of_before_a_restart_mean_nothing_after_it(
    limiter: Limiter, time: TestClock, boot: str, uptime: float
) -> None:
    """Wherever they lie; and also where the system has no name for a start, but a clock that begins again."""
    time.now = 90 * DAY
    limiter.settle(Quota(1, tokens_per_minute=60), 3000)
    limiter.lease(HUNDRED, 25)
    restarted = after_a_restart(time, passed=60, uptime=uptime, boot=boot)
    assert another(limiter, restarted).lease(HUNDRED, 1).wait == pytest.approx(1.0)


def test_a_file_of_the_version_before_is_read(
    limiter: Limiter, time: TestClock, tmp_path: Path
) -> None:
    old = {"next_request": 999.5, "next_token": 0.0, "paused_until": 0.0, "rate": 0.7, "throttled_at": 0.0,
           "counted": [[999.0, 998.98]], "throttles": 0, "reports": {"r i": {"calls": 3}}}  # fmt: skip
    (tmp_path / "x").write_text(json.dumps(old))
    assert limiter.stats("r", "i") == {"calls": 3, "rate": 0.7}
    assert limiter.lease(HUNDRED, 1).wait == pytest.approx(1.0)


def test_429s_of_one_moment_are_one(limiter: Limiter) -> None:
    assert [limiter.throttled(0.0) for _ in range(5)] == [1] * 5
    assert limiter.stats("r", "i")["rate"] == 1.0


def test_repeated_429s_lower_the_rate_and_success_restores_it(
    limiter: Limiter, time: TestClock
) -> None:
    for _ in range(3):
        limiter.throttled(0.0)
        time.now += 1.0
    assert limiter.stats("r", "i")["rate"] == pytest.approx(0.49)
    limiter.lease(HUNDRED, 1, succeeded=20)
    assert limiter.stats("r", "i")["rate"] == pytest.approx(0.69)
    limiter.lease(HUNDRED, 1, succeeded=100)
    assert limiter.stats("r", "i")["rate"] == 1.0


def test_pauses_without_a_success_grow_and_are_counted(
    limiter: Limiter, time: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    waits = []
    for count in range(1, 11):
        assert limiter.throttled(None) == count
        waits.append(limiter.activity("r", "i").pause)
        time.now += 70.0
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0])
    limiter.lease(HUNDRED, 1, succeeded=1)
    assert limiter.throttled(None) == 1


def _spend_in_process(
    folder: str, now: Synchronized[float], end: float, slots: multiprocessing.Queue[list[float]]
) -> None:
    limiter = Limiter("x", folder, Clock(lambda: now.value, lambda: now.value, boot="this start"))
    found: list[float] = []
    while now.value < end:
        found += limiter.lease(HUNDRED, 25).slots
        with now.get_lock():
            now.value += 0.005
    slots.put(found)


@pytest.mark.parametrize("callers", [2, 4])
def test_callers_in_other_processes_share_one_quota(tmp_path: Path, callers: int) -> None:
    """As runs do that have each a Ray of their own, on one machine. They share a clock, which moves as they work."""
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[float]] = context.Queue()
    now = context.Value("d", 1000.0)
    arguments = (str(tmp_path), now, 1002.0, queue)
    processes = [context.Process(target=_spend_in_process, args=arguments) for _ in range(callers)]
    for process in processes:
        process.start()
    slots = [slot for _ in processes for slot in queue.get()]
    for process in processes:
        process.join()
    assert most_in_a_second(slots) <= 100
    assert len(slots) >= 185


def _lease_for_ever(folder: str) -> None:
    limiter = Limiter("x", folder, Clock(lambda: 1000.0, lambda: 1000.0, boot="this start"))
    while True:
        limiter.report("r", "i", Counter({f"retry_{n}": 1 for n in range(500)}))


def test_a_kill_at_any_moment_forgets_no_pause(tmp_path: Path, time: TestClock) -> None:
    limiter = Limiter("x", str(tmp_path), time.clock)
    limiter.throttled(DAY)
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        process = context.Process(target=_lease_for_ever, args=(str(tmp_path),))
        before = limiter.stats("r", "i")
        process.start()
        while limiter.stats("r", "i") == before:  # it is at work
            pass
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert limiter.lease(HUNDRED, 1).pause == DAY


def test_a_limiter_that_was_killed_comes_back_where_it_was(
    limiter: Limiter, time: TestClock
) -> None:
    before = limiter.lease(HUNDRED, 25).slots
    after = another(limiter, time).lease(HUNDRED, 25).slots
    assert not after or after[0] > before[-1]


@pytest.mark.parametrize(
    "text", ["", "{", '{"next_request": "soon"}', '{"unknown": 1}', "[]", '{"pause_ends": "x"}']
)
def test_a_state_that_makes_no_sense_costs_a_second_and_no_more(
    limiter: Limiter, tmp_path: Path, text: str
) -> None:
    (tmp_path / "x").write_text(text)
    assert limiter.lease(HUNDRED, 1).wait == pytest.approx(1.0)


def test_a_state_that_cannot_be_written_is_an_error_that_says_where(
    tmp_path: Path, time: TestClock
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/x: a part of the path is a file"):
        Limiter("x", str(tmp_path / "file"), time.clock).lease(HUNDRED, 1)


def test_reports_add_up_by_run_and_integration(limiter: Limiter) -> None:
    limiter.report("r1", "a", Counter(calls=2, retry_timeout=1))
    limiter.report("r1", "a", Counter(calls=3))
    limiter.report("r2", "a", Counter(calls=9))
    assert limiter.stats("r1", "a") == {"calls": 5, "retry_timeout": 1, "rate": 1.0}
    assert limiter.stats("r1", "b") == {"rate": 1.0}


def test_activity_tells_answers_from_silence_and_from_a_pause(
    limiter: Limiter, time: TestClock
) -> None:
    assert limiter.activity("r", "i") == Activity()
    limiter.lease(HUNDRED, 1)
    limiter.report("r", "i", Counter(calls=3, retry_timeout=3))
    assert limiter.activity("r", "i") == Activity(), "a call without an answer is none"
    limiter.report("r", "i", Counter(calls=2, retry_http_503=1, refused=1))
    time.now += 60
    assert limiter.activity("r", "i") == Activity(1, 60.0, True)
    time.now += 10
    assert limiter.activity("r", "i") == Activity(1, 70.0, False)
    limiter.throttled(120.0)
    assert limiter.activity("r", "i").pause == 120.0
    assert limiter.activity("another", "i") == Activity(pause=120.0)


@pytest.mark.parametrize(
    ("quota", "tokens"), [(Quota(0.01), 0.0), (Quota(100, tokens_per_minute=60), 98.0)]
)
def test_a_slow_quota_is_no_silence(
    limiter: Limiter, time: TestClock, quota: Quota, tokens: float
) -> None:
    """One request in a hundred seconds, by the quota of requests or by that of tokens."""
    limiter.lease(quota, 1, tokens)
    limiter.report("r", "i", Counter(calls=1))
    time.now += 250
    assert limiter.activity("r", "i").steady
    time.now += 100
    assert not limiter.activity("r", "i").steady


def test_the_last_run_to_leave_knows_that_it_is_the_last(limiter: Limiter) -> None:
    limiter.join("a")
    limiter.join("b")
    assert [limiter.leave("a"), limiter.leave("b")] == [1, 0]


def test_the_name_and_the_file_do_not_tell_the_credential(tmp_path: Path) -> None:
    name = module.limiter_name("https://host", "a-secret-key")
    assert name != module.limiter_name("https://host", "another")
    Limiter(name, str(tmp_path)).lease(HUNDRED, 1)
    assert "secret" not in name + "".join(path.read_text() for path in tmp_path.iterdir())
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.lock"]


def test_every_system_has_a_name_for_its_start() -> None:
    """Linux by a file, macOS by a command, any other by the machine's name."""
    nowhere, no_command = "/nowhere/boot_id", ("no-such-command-here",)
    assert boot_id() == boot_id()
    macos = (sys.executable, "-c", "print('F3A2-71')")
    assert boot_id(nowhere, macos) == "F3A2-71"
    fails, silent = (sys.executable, "-c", "raise SystemExit(1)"), (sys.executable, "-c", "")
    others = {boot_id(nowhere, command) for command in (no_command, fails, silent)}
    assert len(others) == 1
    assert others.pop()
