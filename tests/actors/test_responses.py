from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from actors import responses
from actors.responses import Claim, ResponseStore, remove_store, store_path
from datasets.errors import ConfigError
from datasets.lake import Lake

NAME = "ml_inference_x"


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_a_question_is_asked_by_one_and_answered_to_all(tmp_path: Path) -> None:
    async def story() -> None:
        store = ResponseStore(Lake(str(tmp_path)), NAME)
        assert await store.claim(["a", "b"]) == Claim({}, ["a", "b"])
        assert await store.claim(["b", "c"]) == Claim({}, ["c"]), "b is being asked"
        await store.put({"b": b"answer"})
        assert await store.claim(["a", "b"]) == Claim({"b": b"answer"}, [])
        await store.give_back(["a"])
        assert await store.claim(["a"]) == Claim({}, ["a"])

    run(story())


def test_answers_outlive_their_process(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    run(ResponseStore(lake, NAME).put({"a": b"\x00paid for", "b": b"2"}))
    found = run(ResponseStore(lake, NAME).claim(["a", "b", "c"]))
    assert found == Claim({"a": b"\x00paid for", "b": b"2"}, ["c"])
    remove_store(lake, NAME)
    assert os.listdir(tmp_path / "queues" / "responses") == []


def test_an_answer_that_made_no_sense_is_forgotten(tmp_path: Path) -> None:
    async def story() -> Claim:
        store = ResponseStore(Lake(str(tmp_path)), NAME)
        await store.put({"a": b"junk"})
        await store.give_back(["a"], forget=True)
        return await store.claim(["a"])

    assert run(story()) == Claim({}, ["a"])


def test_a_claim_whose_actor_is_gone_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> Claim:
        store = ResponseStore(Lake(str(tmp_path)), NAME)
        await store.claim(["a"])
        monkeypatch.setattr(responses, "CLAIM_SECONDS", 0.0)
        return await store.claim(["a"])

    assert run(story()) == Claim({}, ["a"])


def test_many_at_once_share_commits_and_are_all_kept(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))

    async def story() -> None:
        store = ResponseStore(lake, NAME)
        await asyncio.gather(*(store.put({f"k{n}": b"%d" % n}) for n in range(200)))

    run(story())
    keys = [f"k{n}" for n in range(200)]
    assert run(ResponseStore(lake, NAME).claim(keys)).known == {key: key[1:].encode() for key in keys}


def test_what_an_actor_had_claimed_is_free_once_it_asks_in_another_life(tmp_path: Path) -> None:
    async def story() -> None:
        store = ResponseStore(Lake(str(tmp_path)), NAME)
        await store.claim(["a", "b"], "one", "life 1")
        await store.claim(["c"], "other", "life 1")
        await store.put({"b": b"answer"})
        assert await store.claim(["a", "c"], "one", "life 1") == Claim({}, [])
        assert await store.claim(["a", "b", "c"], "one", "life 2") == Claim({"b": b"answer"}, ["a"])
        assert await store.claim(["c"], "other", "life 1") == Claim({}, [])

    run(story())


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_KEPT", 5)
    monkeypatch.setattr(responses, "_SWEEP_EVERY", 1)

    async def story() -> Claim:
        store = ResponseStore(Lake(str(tmp_path)), NAME)
        for n in range(20):
            await store.put({f"k{n}": b"x"})
        return await store.claim([f"k{n}" for n in range(20)])

    assert set(run(story()).known) == {"k15", "k16", "k17", "k18", "k19"}


def test_a_lake_on_s3_keeps_answers_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = store_path(Lake("s3://a/b"), NAME), store_path(Lake("s3://a/c"), NAME)
    assert one.startswith(str(tmp_path))
    assert one != other


def test_a_folder_that_cannot_hold_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "queues").write_text("a file")
    with pytest.raises(ConfigError, match="cannot keep answers in"):
        ResponseStore(Lake(str(tmp_path)), NAME)
