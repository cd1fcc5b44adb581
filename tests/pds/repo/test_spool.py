from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pds.repo.spool import ByteBudget, Download, Spool

MIB = 1 << 20


def test_bytes_are_handed_out_up_to_the_limit_and_the_oldest_always_goes_on() -> None:
    async def play() -> list[str]:
        budget, events = ByteBudget(10 * MIB), []
        first, second = await budget.open(), await budget.open()
        await budget.grow(first, 6 * MIB)

        async def grow_second() -> None:
            await budget.grow(second, 6 * MIB)
            events.append("second")

        waiting = asyncio.create_task(grow_second())
        await asyncio.sleep(0.01)
        await budget.grow(first, 30 * MIB)
        events.append("first")
        await budget.close(first)
        await asyncio.wait_for(waiting, 1)
        await budget.close(second)
        return events

    assert asyncio.run(play()) == ["first", "second"]


def test_a_new_download_waits_while_there_is_no_room() -> None:
    async def play() -> list[str]:
        budget, events = ByteBudget(MIB), []
        first = await budget.open()
        await budget.grow(first, 2 * MIB)

        async def open_second() -> None:
            await budget.open()
            events.append("second")

        waiting = asyncio.create_task(open_second())
        await asyncio.sleep(0.01)
        events.append("still waiting")
        await budget.close(first)
        await asyncio.wait_for(waiting, 1)
        return events

    assert asyncio.run(play()) == ["still waiting", "second"]


def test_many_downloads_through_a_small_budget_all_end() -> None:
    async def play() -> int:
        budget, most, now = ByteBudget(4 * MIB), 0, 0

        async def download(size: int) -> None:
            nonlocal most, now
            ticket = await budget.open()
            for part in range(1, size + 1):
                await budget.grow(ticket, part * MIB // 4)
                now += MIB // 4
                most = max(most, now)
                await asyncio.sleep(0)
            now -= size * MIB // 4
            await budget.close(ticket)

        await asyncio.wait_for(
            asyncio.gather(*(download(size % 20 + 1) for size in range(200))), 20
        )
        return most

    assert asyncio.run(play()) <= 4 * MIB + 5 * MIB + MIB


def test_a_download_on_disk(tmp_path: Path) -> None:
    async def play() -> None:
        budget = ByteBudget(MIB)
        spool = Spool(str(tmp_path / "spool"))
        kept = Download(spool.path(), budget, await budget.open())
        await kept.write(b"one")
        await kept.write(b"two")
        kept.close()
        assert Path(kept.path).read_bytes() == b"onetwo"
        gone = Download(spool.path(), budget, await budget.open())
        gone.discard()
        assert os.listdir(tmp_path / "spool") == ["0.car"]
        spool.remove()
        assert not (tmp_path / "spool").exists()

    asyncio.run(play())
