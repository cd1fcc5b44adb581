"""Leases under every order of requests that two parties can come in, with clocks that are set by hand."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.locking import lease_store
from datasets.locking.entries import ALL_DATES, Entry
from datasets.locking.lease_store import LeaseStore, Stored, s3_store
from datasets.locking.leases import LEASE_SECONDS, Lease, Reading, read_clocks
from tests.s3_server import BUCKET, Endpoint

FOLDER = ".locks/x"


@dataclass
class Memory:
    """A store in memory, each request of which waits for `turn`, with a clock of its own."""

    conditional: bool
    now: float = 1000.0
    objects: dict[str, tuple[float, str, bytes]] = field(default_factory=dict)
    turn: Callable[[], None] = lambda: None
    written: int = 0

    def put(self, path: str, body: bytes, if_match: str | None = None) -> bool:
        self.turn()
        if (
            self.conditional
            and if_match is not None
            and self.objects.get(path, (0, "", b""))[1] != if_match
        ):
            return False
        self.written += 1
        self.objects[path] = (self.now, f'"{self.written}"', body)
        return True

    def get(self, path: str) -> tuple[bytes, str] | None:
        self.turn()
        found = self.objects.get(path)
        return (found[2], found[1]) if found else None

    def list(self, folder: str) -> dict[str, Stored]:
        self.turn()
        return {
            path: Stored(at, etag, len(body))
            for path, (at, etag, body) in self.objects.items()
            if path.rpartition("/")[0] == folder
        }

    def delete(self, path: str) -> None:
        self.turn()
        self.objects.pop(path, None)

    def keeps_conditions(self, path: str, body: bytes) -> bool:
        return self.conditional


@dataclass
class Machine:
    """Clocks of a holder. Asleep, neither of them goes on until it wakes up."""

    counted: float = 0.0
    wall: float = 0.0

    def clocks(self) -> Reading:
        return Reading(self.counted, self.wall)


def lease(store: LeaseStore, run_id: str, machine: Machine | None = None) -> Lease:
    return Lease(store, FOLDER, "x", Entry("run", ALL_DATES, run_id), (machine or Machine()).clocks)


def passes(lease: Lease) -> bool:
    try:
        lease.ensure()
    except ConfigError:
        return False
    return True


@pytest.fixture(params=[True, False], ids=["conditions", "no-conditions"])
def store(request: pytest.FixtureRequest) -> Memory:
    return Memory(request.param)


@pytest.mark.parametrize("clock", ["counted", "wall"])
def test_a_holder_that_slept_notices_by_either_clock_that_it_was_taken_over(
    store: Memory, clock: str
) -> None:
    machine = Machine()
    slept, taker = lease(store, "slept", machine), lease(store, "taker")
    assert slept.take() is None
    assert passes(slept)
    store.now += LEASE_SECONDS + 1
    setattr(machine, clock, LEASE_SECONDS + 1)
    assert taker.take() is None
    assert not passes(slept)
    assert passes(taker)


def test_a_lease_that_was_taken_over_and_released_is_still_lost(store: Memory) -> None:
    machine = Machine()
    slept, taker = lease(store, "slept", machine), lease(store, "taker")
    assert slept.take() is None
    store.now += LEASE_SECONDS + 1
    assert taker.take() is None
    taker.release()
    machine.counted += LEASE_SECONDS + 1
    assert not passes(slept)
    slept.release()
    assert lease(store, "later").take() is None


def test_a_renewal_that_was_due_anyway_notices_that_the_lease_was_taken_over(store: Memory) -> None:
    """No clock has noticed the sleep: the next renewal does, because it looks before it writes."""
    slept, taker = lease(store, "slept"), lease(store, "taker")
    assert slept.take() is None
    store.now += LEASE_SECONDS + 1
    assert taker.take() is None
    slept._renew()
    assert not passes(slept)
    slept.release()
    assert passes(taker)


def test_a_holder_that_nobody_took_over_goes_on(store: Memory) -> None:
    machine = Machine()
    slept = lease(store, "slept", machine)
    assert slept.take() is None
    for _ in range(3):
        store.now += 10 * LEASE_SECONDS
        machine.wall += 10 * LEASE_SECONDS
        assert passes(slept)
    assert lease(store, "taker").take() is not None
    machine.wall -= 1e6  # set back: the other clock still counts
    machine.counted += LEASE_SECONDS
    renewals = store.written
    assert passes(slept)
    assert store.written == renewals + 1


def test_a_renewal_whose_answer_was_lost_does_not_lose_the_lease(store: Memory) -> None:
    """The first attempt arrived, the client heard nothing and sent it again, which is refused now."""
    machine = Machine()
    held = lease(store, "held", machine)
    assert held.take() is None
    put = store.put
    lost = iter([True])

    def twice(path: str, body: bytes, if_match: str | None = None) -> bool:
        done = put(path, body, if_match)
        return put(path, body, if_match) if next(lost, False) else done

    store.put = twice  # type: ignore[method-assign]
    machine.counted += LEASE_SECONDS
    assert passes(held)


def test_what_was_buried_is_swept_a_day_later(store: Memory) -> None:
    assert lease(store, "dead").take() is None
    store.now += LEASE_SECONDS + 1
    second = lease(store, "second")
    assert second.take() is None
    second.release()
    assert len(store.objects) == 2
    store.now += 86_401
    third = lease(store, "third")
    assert third.take() is None
    third.release()
    assert store.objects == {}


Party = Callable[[], None]


def run_in_order(store: Memory, parties: list[Party], choose: Callable[[int], int]) -> None:
    """Runs each party in a thread, one request at a time; `choose` says which of n that wait goes next."""
    waiting: dict[int, threading.Event] = {}
    changed = threading.Condition()
    over: set[int] = set()
    mine = threading.local()

    def turn() -> None:
        if not hasattr(mine, "index"):
            return
        go = threading.Event()
        with changed:
            waiting[mine.index] = go
            changed.notify_all()
        go.wait()

    def run(index: int, party: Party) -> None:
        mine.index = index
        try:
            turn()
            party()
        finally:
            with changed:
                over.add(index)
                changed.notify_all()

    store.turn = turn
    threads = [threading.Thread(target=run, args=item) for item in enumerate(parties)]
    for thread in threads:
        thread.start()
    while True:
        with changed:
            changed.wait_for(lambda: len(waiting) + len(over) == len(parties))
            if not waiting:
                break
            index = sorted(waiting)[choose(len(waiting))]
            waiting.pop(index).set()
    for thread in threads:
        thread.join()
    store.turn = lambda: None


def every_order(play: Callable[[Callable[[int], int]], None]) -> int:
    """Plays again for each series of choices that can be made; how many there were."""
    plays = 0
    plan: list[tuple[int, int]] = []  # the choice made, of how many
    while True:
        made: list[tuple[int, int]] = []

        def choose(
            options: int, made: list[tuple[int, int]] = made, plan: list[tuple[int, int]] = plan
        ) -> int:
            chosen = plan[len(made)][0] if len(made) < len(plan) else 0
            made.append((chosen, options))
            return chosen

        play(choose)
        plays += 1
        while made and made[-1][0] == made[-1][1] - 1:
            made.pop()
        if not made:
            return plays
        plan = [*made[:-1], (made[-1][0] + 1, made[-1][1])]


@dataclass
class Game:
    """A holder whose lease has run out and who wakes up, and others that want it."""

    store: Memory
    machine: Machine = field(default_factory=Machine)
    took: list[Lease] = field(default_factory=list)
    passed: bool = False

    def __post_init__(self) -> None:
        self.slept = lease(self.store, "slept", self.machine)
        assert self.slept.take() is None
        self.store.now += LEASE_SECONDS + 1
        self.machine.counted += LEASE_SECONDS + 1

    def wake(self) -> None:
        self.passed = passes(self.slept)

    def take(self) -> None:
        taker = lease(self.store, "taker")
        if taker.take() is None:
            self.took.append(taker)

    def take_and_release(self) -> None:
        taker = lease(self.store, "taker")
        if taker.take() is None:
            self.took.append(taker)
            taker.release()


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("conditional", [True, False])
def test_of_a_late_renewal_and_a_takeover_one_at_the_most_succeeds_in_every_order(
    conditional: bool, released: bool
) -> None:
    outcomes = set()

    def play(choose: Callable[[int], int]) -> None:
        game = Game(Memory(conditional))
        run_in_order(
            game.store, [game.wake, game.take_and_release if released else game.take], choose
        )
        outcomes.add((game.passed, len(game.took)))
        game.machine.counted += LEASE_SECONDS / 2
        assert passes(game.slept) == game.passed, "what was lost stays lost, what was kept stays"

    assert every_order(play) > 50
    assert (True, 1) not in outcomes
    assert outcomes >= {(True, 0), (False, 1)}
    if conditional:
        assert (False, 0) not in outcomes, "the store decides: one of them has it"


@pytest.mark.parametrize("conditional", [True, False])
def test_of_a_late_renewal_and_two_takeovers_one_at_the_most_succeeds(conditional: bool) -> None:
    """At random: there are too many orders."""
    rng = random.Random(5)
    outcomes = set()
    for _ in range(400):
        game = Game(Memory(conditional))
        run_in_order(game.store, [game.wake, game.take, game.take], rng.randrange)
        outcomes.add(game.passed + len(game.took))
    assert outcomes <= {0, 1}


@pytest.mark.parametrize("conditional", [True, False])
def test_a_taker_that_is_stopped_in_between_holds_nothing_when_it_wakes_up(
    conditional: bool,
) -> None:
    """Stopped before any of its requests until another has taken over from it, and even released."""
    for stop in range(8):
        game = Game(Memory(conditional))
        machine = Machine()
        stopped = lease(game.store, "stopped", machine)
        requests = iter(range(100))

        def turn(
            requests: Iterator[int] = requests,
            stop: int = stop,
            game: Game = game,
            machine: Machine = machine,
        ) -> None:
            if next(requests) == stop:
                game.store.turn = lambda: None
                game.store.now += LEASE_SECONDS + 1
                machine.counted += LEASE_SECONDS + 1
                game.take_and_release()

        game.store.turn = turn
        holder = stopped.take()
        assert game.took or next(requests) <= stop
        if game.took and stop > 0:
            assert holder is not None or not passes(stopped), stop


@pytest.mark.parametrize("conditional", [True, False])
def test_a_party_that_takes_the_store_for_one_without_conditions_is_safe_too(
    conditional: bool,
) -> None:
    """A store's answer to the trial may have been an error of another kind: not all processes agree then."""

    def play(choose: Callable[[int], int]) -> None:
        game = Game(Memory(True))
        game.slept._conditional = conditional
        taker = lease(game.store, "taker")
        keeps = game.store.keeps_conditions
        game.store.keeps_conditions = lambda path, body: not conditional and keeps(path, body)  # type: ignore[method-assign]

        def take() -> None:
            if taker.take() is None:
                game.took.append(taker)
                taker.release()

        run_in_order(game.store, [game.wake, take], choose)
        assert not (game.passed and game.took)

    assert every_order(play) > 50


def test_the_clocks_count_the_time_asleep() -> None:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    before = time.clock_gettime(clock)
    counted = read_clocks().counted
    assert before <= counted <= time.clock_gettime(clock)
    assert Reading(5, 100).since(Reading(0, 0)) == 100
    assert Reading(5, -100).since(Reading(0, 0)) == 5


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_the_store_refuses_what_is_not_as_it_was(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The one in memory answers as S3 does."""
    store: LeaseStore = Memory(True)
    if kind == "s3":
        request.getfixturevalue("s3")
        store = s3_store(Lake(f"s3://{BUCKET}/{tmp_path.name}"))
    assert store.put("a/one", b"1")
    assert store.keeps_conditions("a/one", b"1")
    listed = store.list("a")["a/one"]
    found = store.get("a/one")
    assert found
    assert (found[0], found[1], listed.size) == (b"1", listed.etag, 1)
    assert store.put("a/one", b"2", found[1])
    assert not store.put("a/one", b"3", found[1])
    assert store.get("a/one") == (b"2", store.list("a")["a/one"].etag)
    assert store.put("ab/two", b"")
    assert store.put("a/deeper/three", b"")
    assert list(store.list("a")) == ["a/one"]
    store.delete("a/one")
    store.delete("a/one")
    assert store.get("a/one") is None
    assert not store.put("a/one", b"3", found[1])
    assert store.list("a") == {}


def test_more_leases_than_a_page_lists(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_store(Lake(f"s3://{BUCKET}/{tmp_path.name}"))
    for number in range(5):
        store.put(f"a/{number}", b"x")
    list_objects = store._client.list_objects_v2  # type: ignore[attr-defined]
    monkeypatch.setattr(
        store._client, "list_objects_v2", lambda **more: list_objects(MaxKeys=2, **more)
    )  # type: ignore[attr-defined]
    assert list(store.list("a")) == [f"a/{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("root", "unset", "sentence"),
    [
        ("s3://no-such-bucket-here/x", (), "there is no such bucket"),
        (
            f"s3://{BUCKET}/x",
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            "no key for S3 was found",
        ),
    ],
)
def test_what_s3_refuses_is_one_sentence(
    s3: Endpoint,
    root: str,
    unset: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    lease_store._open.cache_clear()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in unset:
        monkeypatch.delenv(name)
    for attempt in (
        lambda: s3_store(Lake(root)).put("a", b""),
        lambda: s3_store(Lake(root)).put("a", b"", '"x"'),
    ):
        with pytest.raises(ConfigError, match=sentence) as error:
            attempt()
        assert "\n" not in str(error.value)
    lease_store._open.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("AWS_PROFILE", "nobody", r"cannot reach s3://b/x: .*nobody.*; check the AWS_ variables"),
        ("AWS_ENDPOINT_URL", "http://", r"cannot reach s3://b/x: .*; check the AWS_ variables"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    lease_store._open.cache_clear()
    with pytest.raises(ConfigError, match=sentence):
        s3_store(Lake("s3://b/x"))


def test_an_endpoint_needs_no_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "storage.example.org:9000")
    store = s3_store(Lake("s3://b/x"))
    assert store._client.meta.endpoint_url == "https://storage.example.org:9000"  # type: ignore[attr-defined]


def test_an_endpoint_that_is_down_is_one_sentence(s3: Endpoint, tmp_path: Path) -> None:
    store = s3_store(Lake(f"s3://{BUCKET}/{tmp_path.name}"))
    with s3.down(), pytest.raises(ConfigError, match="S3 asks to slow down"):
        store.put("a", b"")


def test_a_store_that_knows_no_conditions_is_written_all_the_same(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers 501 to the header, or ignores it: then nothing is refused."""
    from botocore.exceptions import ClientError

    for ignores in (False, True):
        store = lease_store.S3Store(
            f"s3://{BUCKET}/{tmp_path.name}", s3.environment["AWS_ENDPOINT_URL"], "us-east-1"
        )
        put = store._client.put_object

        def old(
            put: Callable[..., object] = put, ignores: bool = ignores, **arguments: object
        ) -> object:
            if arguments.pop("IfMatch", None) is not None and not ignores:
                answer = {
                    "Error": {"Code": "NotImplemented"},
                    "ResponseMetadata": {"HTTPStatusCode": 501},
                }
                raise ClientError(answer, "PutObject")  # type: ignore[arg-type]
            return put(**arguments)

        monkeypatch.setattr(store._client, "put_object", old)
        held = Lease(store, FOLDER, "x", Entry("run", ALL_DATES, "held"))
        assert held.take() is None
        assert held._conditional is False
        held._renew()
        assert passes(held)
        assert lease(store, "other").take() is not None
        held.release()
        assert store.list(FOLDER) == {}
