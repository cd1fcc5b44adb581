from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.remote import answer_cache as responses
from actors.remote.answer_cache import (
    AnswerCache,
    AnswerCacheAddress,
    Claim,
    ClientId,
    answer_cache_calls,
    join_answer_cache,
    leave_answer_cache,
)
from actors.remote.answer_client import Answers
from datasets import answer_store as table
from datasets.answer_store import RunScope, remove_answers, store_path
from datasets.errors import ConfigError, our_error
from datasets.lake import Lake

NAME = "ml_inference_x"
DAY_SECONDS = 86_400.0
MONTH = RunScope("run-1", "posts", "2024-10-01", "2024-10-31")
OTHER_DATES = RunScope("run-2", "posts", "2024-11-01", "2024-11-30")


class Clock:
    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def run(story: Awaitable[Any]) -> Any:
    async def awaited() -> Any:
        return await story

    return asyncio.run(awaited())


def path_of(folder: Path) -> str:
    return store_path(Lake(str(folder)), NAME)


def open_store(folder: Path, **clocks: Any) -> AnswerCache:
    return AnswerCache(path_of(folder), **clocks)


def client_id(scope: RunScope, actor: str = "actor", incarnation: str = "1") -> ClientId:
    return ClientId(actor, incarnation, scope)


def kept(folder: Path) -> dict[str, bytes]:
    with closing(sqlite3.connect(path_of(folder))) as connection:
        return dict(connection.execute("SELECT key, body FROM responses"))


def test_a_question_is_asked_by_one_and_answered_to_all(tmp_path: Path) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        assert await store.claim(["a", "b"]) == Claim({}, ["a", "b"])
        assert await store.claim(["b", "c"]) == Claim({}, ["c"]), "b is being asked"
        await store.put({"b": b"answer"})
        assert await store.claim(["a", "b"]) == Claim({"b": b"answer"}, [])
        await store.give_back(["a"])
        assert await store.claim(["a"]) == Claim({}, ["a"])

    run(story())


def test_answers_outlive_their_process(tmp_path: Path) -> None:
    run(open_store(tmp_path).put({"a": b"\x00paid for", "b": b"2"}))
    found = run(open_store(tmp_path).claim(["a", "b", "c"]))
    assert found == Claim({"a": b"\x00paid for", "b": b"2"}, ["c"])


def test_answers_of_a_killed_run_stay_when_a_run_over_other_dates_ends(tmp_path: Path) -> None:
    async def story() -> None:
        killed = open_store(tmp_path)
        await killed.put({"october": b"1"}, client_id(MONTH))
        store = open_store(tmp_path)
        await store.put({"november": b"2"}, client_id(OTHER_DATES))
        await store.leave(OTHER_DATES, staged=True)
        assert kept(tmp_path) == {"october": b"1"}
        again = replace(MONTH, run_id="run-3")
        assert (await open_store(tmp_path).claim(["october"], client_id(again))).known == {
            "october": b"1"
        }

    run(story())


def test_the_same_command_again_deletes_what_the_killed_run_has_left(tmp_path: Path) -> None:
    """Also answers whose labels were staged before the kill, which it does not ask for."""

    async def story() -> None:
        await open_store(tmp_path).put({"a": b"1", "staged": b"2"}, client_id(MONTH))
        store, again = open_store(tmp_path), replace(MONTH, run_id="run-2", first="2024-09-01")
        await store.claim(["a"], client_id(again))
        await store.put({"b": b"3"}, client_id(again))
        await store.leave(again, staged=True)
        assert kept(tmp_path) == {}

    run(story())


@pytest.mark.parametrize("order", [(MONTH, OTHER_DATES), (OTHER_DATES, MONTH)])
def test_what_runs_over_different_posts_have_asked_for_stays_until_it_is_old(
    tmp_path: Path, order: tuple[RunScope, RunScope]
) -> None:
    """Whichever of them ends first, the other may be killed before its label is staged."""

    async def story() -> None:
        store = open_store(tmp_path)
        await store.put({"both": b"1", "one": b"2"}, client_id(MONTH, "one"))
        assert (await store.claim(["both"], client_id(OTHER_DATES, "two"))).known
        assert (await store.claim(["both"], client_id(MONTH, "one"))).known
        for scope in order:
            await store.leave(scope, staged=True)
        assert kept(tmp_path) == {"both": b"1"}

    run(story())


@pytest.mark.parametrize(
    "scope",
    [
        replace(MONTH, run_id="run-2", first="2024-10-02"),
        replace(MONTH, run_id="run-2", kind="a tenth of the posts"),
        replace(MONTH, run_id="run-2", whole=False),
    ],
)
def test_a_run_over_a_part_deletes_its_own_answers_only(tmp_path: Path, scope: RunScope) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        await store.put({"a": b"1"}, client_id(MONTH))
        await store.put({"b": b"2"}, client_id(scope))
        await store.leave(scope, staged=True)
        assert kept(tmp_path) == {"a": b"1"}

    run(story())


def test_a_run_that_was_stopped_keeps_its_answers(tmp_path: Path) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        await store.put({"a": b"1"}, client_id(MONTH))
        assert await store.leave(MONTH, staged=False) == 0

    run(story())
    assert kept(tmp_path) == {"a": b"1"}


def test_a_run_with_nothing_to_do_deletes_what_it_covers_beside_a_store_that_is_open(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        await open_store(tmp_path).put({"a": b"1"}, client_id(MONTH))
        store = open_store(tmp_path)
        await store.put({"b": b"2"}, client_id(OTHER_DATES))
        remove_answers(Lake(str(tmp_path)), NAME, replace(MONTH, run_id="run-3"))
        assert kept(tmp_path) == {"b": b"2"}
        await store.put({"c": b"3"}, client_id(OTHER_DATES))
        assert kept(tmp_path) == {"b": b"2", "c": b"3"}

    run(story())
    remove_answers(Lake(str(tmp_path / "another lake")), NAME, MONTH)
    assert not (tmp_path / "another lake").exists()


def test_two_processes_write_one_file_and_neither_takes_it_from_the_other(tmp_path: Path) -> None:
    """Two Rays on one machine, one lake, other dates."""

    async def story() -> None:
        one, two = open_store(tmp_path), open_store(tmp_path)
        for n in range(20):
            await asyncio.gather(
                one.put({f"a{n}": b"1"}, client_id(MONTH)),
                two.put({f"b{n}": b"2", "same": b"2"}, client_id(OTHER_DATES)),
            )
        await one.put({"same": b"1"}, client_id(MONTH))
        await one.leave(MONTH, staged=True)
        await two.put({"last": b"3"}, client_id(OTHER_DATES))
        assert kept(tmp_path) == {**{f"b{n}": b"2" for n in range(20)}, "same": b"1", "last": b"3"}
        await two.leave(OTHER_DATES, staged=True)
        assert kept(tmp_path) == {"same": b"1"}, "asked for by both"

    run(story())


def test_an_empty_file_is_small(tmp_path: Path) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        await store.put({f"k{n}": b"x" * 1_000 for n in range(2_000)}, client_id(MONTH))
        await store.leave(MONTH, staged=True)

    run(story())
    folder = tmp_path / "queues" / "responses"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 50_000
    assert os.listdir(folder) == [f"{NAME}.db"]


def test_a_file_of_an_older_version_keeps_its_answers(tmp_path: Path) -> None:
    os.makedirs(os.path.dirname(path_of(tmp_path)))
    with closing(sqlite3.connect(path_of(tmp_path))) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE responses (key TEXT PRIMARY KEY, body BLOB NOT NULL)")
        connection.execute("INSERT INTO responses VALUES ('old', x'31')")
        connection.commit()
    wall = Clock(1_800_000_000.0)

    async def story() -> None:
        store = open_store(tmp_path, wall=wall)
        assert (await store.claim(["old"], client_id(MONTH))).known == {"old": b"1"}
        await store.put({"new": b"2"}, client_id(MONTH))
        await store.leave(MONTH, staged=True)
        assert kept(tmp_path) == {"old": b"1"}
        wall.now += table.UNUSED_SECONDS + 1
        await open_store(tmp_path, wall=wall).join(OTHER_DATES)
        assert kept(tmp_path) == {}

    run(story())


def test_what_was_not_asked_for_in_a_month_goes_when_the_store_is_opened(tmp_path: Path) -> None:
    wall = Clock(1_800_000_000.0)

    async def story() -> None:
        await open_store(tmp_path, wall=wall).put({"a": b"1", "b": b"2"}, client_id(MONTH))
        wall.now += 20 * DAY_SECONDS
        await open_store(tmp_path, wall=wall).claim(["a"], client_id(MONTH))
        wall.now += 20 * DAY_SECONDS
        await open_store(tmp_path, wall=wall).join(OTHER_DATES)
        assert kept(tmp_path) == {"a": b"1"}

    run(story())


def test_a_claim_lives_as_long_as_its_actor_is_heard(tmp_path: Path) -> None:
    clock = Clock()

    async def story() -> None:
        store, one, other = (
            open_store(tmp_path, clock=clock),
            client_id(MONTH, "one"),
            client_id(MONTH, "other"),
        )
        await store.claim(["a"], one)
        for _ in range(20):
            clock.now += responses.CLAIM_SECONDS - 1
            await store.alive(one)
            assert await store.claim(["a"], other) == Claim({}, [])
            assert await store.claim(["a"], one) == Claim({}, []), "another block of the same actor"
        clock.now += responses.CLAIM_SECONDS + 1
        assert await store.claim(["a"], other) == Claim({}, ["a"])
        await store.give_back(["a"], one)
        assert await store.claim(["a"], one) == Claim({}, []), "it is the other's now"

    run(story())


def test_an_actor_is_heard_for_as_long_as_it_has_claims(tmp_path: Path) -> None:
    clock = Clock()

    async def story() -> None:
        store, heard = open_store(tmp_path, clock=clock), asyncio.Semaphore(0)

        async def call(method: str, *arguments: Any, **named: Any) -> Any:
            found = await getattr(store, method)(*arguments, **named)
            if method == "alive":
                heard.release()
            return found

        answers = Answers(call, MONTH, "one", heartbeat_seconds=0.001)
        assert (await answers.claim(["a", "b", "c"])).mine == ["a", "b", "c"]
        for _ in range(10):  # as long as a block waits at the default quota
            clock.now += responses.CLAIM_SECONDS * 0.7
            while not heard.locked():
                await heard.acquire()
            await heard.acquire()
            assert await store.claim(["a"], client_id(MONTH, "two")) == Claim({}, [])
        await answers.put({"a": b"1"})
        await answers.give_back(["b", "c"])
        assert answers._heartbeat
        await answers._heartbeat

    run(story())


def test_a_claim_that_ray_repeats_is_the_same_claim(tmp_path: Path) -> None:
    """Else its keys would be waited for by the actor that was to ask."""

    async def story() -> None:
        store, one, other = open_store(tmp_path), client_id(MONTH, "one"), client_id(MONTH, "other")
        for _ in range(2):
            assert await store.claim(["a", "b"], one, "first") == Claim({}, ["a", "b"])
        assert await store.claim(["a"], one, "second") == Claim({}, [])
        assert await store.claim(["a"], other, "first") == Claim({}, [])

    run(story())


def test_a_killed_run_holds_up_the_same_command_not_at_all(tmp_path: Path) -> None:
    """The store outlives it, with its claims, and dates that are locked have one run at a time."""

    async def story() -> None:
        store, again = open_store(tmp_path), replace(MONTH, run_id="run-3")
        await store.join(MONTH)
        await store.join(OTHER_DATES)
        assert (await store.claim(["a", "b"], client_id(MONTH, "one"))).mine
        assert (await store.claim(["c"], client_id(OTHER_DATES, "two"))).mine
        await store.join(again)
        assert (await store.claim(["a", "c"], client_id(again, "three"))).mine == ["a"]
        # What is left of the killed run has no say any more, but its answers are welcome.
        assert await store.claim(["a", "b", "d"], client_id(MONTH, "one")) == Claim({}, [])
        await store.put({"b": b"2"}, client_id(MONTH, "one"))
        assert await store.claim(["a", "b"], client_id(again, "three")) == Claim({"b": b"2"}, [])
        assert await store.leave(again, staged=True) == 1
        assert kept(tmp_path) == {}

    run(story())


def test_an_actor_that_outlives_its_run_does_not_keep_the_store_alive(tmp_path: Path) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        await store.join(MONTH)
        await store.join(OTHER_DATES)
        assert await store.leave(MONTH, staged=True) == 1
        await store.alive(client_id(MONTH))
        assert await store.leave(OTHER_DATES, staged=True) == 0

    run(story())


def test_answers_of_an_earlier_run_are_told_to_a_run_that_asks_again(tmp_path: Path) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        await store.put({"old": b"400"}, client_id(MONTH))
        retry = replace(MONTH, run_id="run-2", kind="posts, again", retry_rejected=True)
        await store.put({"new": b"400"}, client_id(retry))
        claim = await store.claim(["old", "new"], client_id(retry))
        assert (claim.known.keys(), claim.earlier) == ({"old", "new"}, {"old"})
        # Killed and started again, it does not pay for its own answers a second time.
        restarted = replace(retry, run_id="run-3")
        assert (await open_store(tmp_path).claim(["old", "new"], client_id(restarted))).earlier == {
            "old"
        }

        await store.forget(["old", "new"], client_id(retry))
        assert kept(tmp_path) == {"new": b"400"}, (
            "what this run has asked itself is newer than what was seen"
        )
        assert await store.claim(["old"], client_id(retry)) == Claim({}, ["old"])

    run(story())


def test_many_at_once_share_commits_and_are_all_kept(tmp_path: Path) -> None:
    async def story() -> None:
        store = open_store(tmp_path)
        await asyncio.gather(*(store.put({f"k{n}": b"%d" % n}) for n in range(200)))

    run(story())
    keys = [f"k{n}" for n in range(200)]
    assert run(open_store(tmp_path).claim(keys)).known == {key: key[1:].encode() for key in keys}


def test_what_an_actor_had_claimed_is_free_once_it_asks_in_another_life(tmp_path: Path) -> None:
    async def story() -> None:
        store, one, other = open_store(tmp_path), client_id(MONTH, "one"), client_id(MONTH, "other")
        await store.claim(["a", "b"], one)
        await store.claim(["c"], other)
        await store.put({"b": b"answer"}, one)
        assert await store.claim(["a", "c"], one) == Claim({}, [])
        assert await store.claim(["a", "b", "c"], replace(one, incarnation="2")) == Claim(
            {"b": b"answer"}, ["a"]
        )
        assert await store.claim(["c"], other) == Claim({}, [])

    run(story())


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_KEPT", 5)
    monkeypatch.setattr(responses, "_SWEEP_EVERY", 1)

    async def story() -> Claim:
        store = open_store(tmp_path)
        for n in range(20):
            await store.put({f"k{n}": b"x"})
        return await store.claim([f"k{n}" for n in range(20)])

    assert set(run(story()).known) == {"k15", "k16", "k17", "k18", "k19"}


def test_a_lake_on_s3_keeps_answers_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = store_path(Lake("s3://a/b"), NAME), store_path(Lake("s3://a/c"), NAME)
    assert one.startswith(str(tmp_path))
    assert one != other
    assert store_path(Lake("s3://a/b/"), NAME) == one


def test_lakes_of_the_same_relative_name_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        names |= {
            AnswerCacheAddress(store_path(Lake("./data"), NAME), node, MONTH).name
            for node in ("a", "b")
        }
        names.add(AnswerCacheAddress(store_path(Lake("data/"), NAME), "a", OTHER_DATES).name)
    assert len(names) == 4, "one for each folder and node"


def test_a_folder_that_cannot_hold_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "queues").write_text("a file")
    with pytest.raises(ConfigError, match="cannot keep answers in"):
        run(open_store(tmp_path).join(MONTH))


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    os.makedirs(os.path.dirname(path_of(tmp_path)))
    Path(path_of(tmp_path)).write_text("not SQLite " * 1_000)
    for attempt in (
        lambda: run(open_store(tmp_path).join(MONTH)),
        lambda: remove_answers(Lake(str(tmp_path)), NAME, MONTH),
    ):
        with pytest.raises(ConfigError, match=f"{NAME}.db"):
            attempt()


@pytest.fixture
def address(tmp_path: Path, ray_here: None) -> AnswerCacheAddress:
    import ray

    return AnswerCacheAddress(path_of(tmp_path), ray.get_runtime_context().get_node_id(), MONTH)


def is_there(address: AnswerCacheAddress) -> bool:
    import ray

    try:
        ray.get_actor(address.name, namespace="label-backfill")
    except ValueError:
        return False
    return True


def wait_until(happened: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_store_lives_until_the_last_run_leaves(address: AnswerCacheAddress) -> None:
    import ray

    other = replace(address, scope=OTHER_DATES)
    join_answer_cache(address)
    join_answer_cache(other)

    async def first() -> None:
        call = answer_cache_calls(address)
        await call("put", {"a": b"1"}, client_id(MONTH))

    asyncio.run(first())
    leave_answer_cache(address, staged=True)

    async def second() -> None:
        call = answer_cache_calls(other)
        await call("put", {"b": b"2"}, client_id(OTHER_DATES))
        assert await call("claim", ["a", "b", "c"], client_id(OTHER_DATES)) == Claim(
            {"b": b"2"}, ["a", "c"]
        )
        # A run that finds the store just being killed makes it anew.
        ray.kill(ray.get_actor(address.name, namespace="label-backfill"))
        assert (await call("claim", ["b"], client_id(OTHER_DATES))).known == {"b": b"2"}

    asyncio.run(second())
    leave_answer_cache(other, staged=False)
    wait_until(lambda: not is_there(address))
    assert kept(Path(address.path).parents[2]) == {"b": b"2"}


def test_the_store_of_a_killed_driver_ends_by_itself(address: AnswerCacheAddress) -> None:
    import ray

    store = responses._shared_answer_cache(address, silent_seconds=0.4)
    ray.get(store.join.remote(MONTH))
    wait_until(lambda: not is_there(address))
    join_answer_cache(address)  # a later run finds a new one
    leave_answer_cache(address, staged=True)


def test_a_folder_that_cannot_hold_it_is_named_across_ray(
    address: AnswerCacheAddress, tmp_path: Path
) -> None:
    (tmp_path / "queues").write_text("a file")

    with pytest.raises(Exception, match="cannot keep answers in") as raised:
        join_answer_cache(address)
    assert isinstance(our_error(raised.value), ConfigError)
    leave_answer_cache(address, staged=False)


def test_what_travels_pickles() -> None:
    for value in (
        Claim({"a": b"1"}, ["b"], frozenset("a")),
        client_id(MONTH),
        AnswerCacheAddress("p", "n", MONTH),
    ):
        assert pickle.loads(pickle.dumps(value)) == value
