"""HostFetcher in this process, against servers on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest

from pds.fetcher import HostFetcher
from pds.identity import document_url
from pds.jobs import Job, JobResult, ListRepos, RepoPage, Resolve, Resolved, Unfinished
from pds.settings import PdsSettings
from tests.pds.repos import Key, make_did, make_repo, posts
from tests.pds.servers import HTML_429, Network, Plc, Reply, most_in_a_second

QUICK = PdsSettings(
    host_qps=200,
    connect_seconds=1,
    read_seconds=0.5,
    limited_seconds=0.5,
    trouble_seconds=0.1,
    retry_seconds=0.1,
)
KEY = Key.make()


def resolve_job(plc: Plc, number: int) -> Resolve:
    did = make_did(number)
    plc.add(did, KEY.did_key, "http://127.0.0.1:1")
    return Resolve(did, plc.origin, document_url(did, plc.origin))


async def results_of(fetcher: HostFetcher, count: int, seconds: float = 30) -> list[JobResult]:
    found: list[JobResult] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            found += await fetcher.take(1)
    return found


def run(jobs: Iterable[Job], settings: PdsSettings = QUICK, seconds: float = 30) -> list[JobResult]:
    async def play() -> list[JobResult]:
        fetcher = HostFetcher(settings, (), insecure=True)
        jobs_here = list(jobs)
        await fetcher.submit(jobs_here)
        try:
            return await results_of(fetcher, len(jobs_here), seconds)
        finally:
            await fetcher.close()

    return asyncio.run(play())


def test_the_rate_limit_is_used_and_never_exceeded(net: Network) -> None:
    net.plc.server.latency = 0.1
    jobs = [resolve_job(net.plc, n) for n in range(60)]
    found = run(jobs, PdsSettings(host_qps=20))
    assert all(isinstance(result, Resolved) for result in found)
    times = net.plc.server.times
    assert most_in_a_second(times) <= 20
    assert (len(times) - 1) / (times[-1] - times[0]) >= 0.9 * 20


def limited_at_first(times: int, reply: Reply) -> Callable[[str, dict[str, str]], Reply | None]:
    remaining = [times]

    def fault(path: str, query: dict[str, str]) -> Reply | None:
        remaining[0] -= 1
        return reply if remaining[0] >= 0 else None

    return fault


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Content-Type": "text/html"}, 0.5),
        ({"Retry-After": "1"}, 1.0),
        ({"RateLimit-Reset": "1"}, 1.0),
    ],
)
def test_429s_pause_the_host_and_are_not_failures(
    net: Network, headers: dict[str, str], seconds: float
) -> None:
    jobs = [resolve_job(net.plc, n) for n in range(12)]
    net.plc.server.fault = limited_at_first(3, Reply(429, HTML_429, headers))
    found = run(jobs, replace(QUICK, patience=5))
    assert all(isinstance(result, Resolved) for result in found)
    times = net.plc.server.times
    pause = max(later - earlier for earlier, later in pairwise(times))
    assert seconds * 0.9 <= pause <= seconds * 1.1 + 0.3
    assert len(times) <= 12 + QUICK.in_flight


def test_a_host_that_always_answers_429_is_given_up(net: Network) -> None:
    jobs = [resolve_job(net.plc, n) for n in range(100)]
    net.plc.server.fault = lambda path, query: Reply(429, HTML_429)
    found = run(jobs, PdsSettings(host_qps=200, limited_seconds=0.2, patience=2))
    assert {(o.status, o.transient) for o in found if isinstance(o, Unfinished)} == {
        ("rate_limited", True)
    }
    assert len(found) == 100
    assert "limits our requests" in str(found[0])
    # The requests under way at the first 429, and one probe after each pause.
    assert len(net.plc.server.times) <= QUICK.in_flight + 2


def test_failing_hosts_do_not_delay_others(net: Network) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    other = Plc()
    stuck = Plc()
    stuck.server.fault = lambda path, query: Reply(
        pieces=iter(lambda: time.sleep(0.1) or b"x", None)
    )
    try:
        jobs: list[Job] = []
        for n in range(0, 120, 4):
            jobs += [resolve_job(net.plc, n), resolve_job(stuck, n + 1), resolve_job(other, n + 2)]
            jobs.append(Resolve(make_did(n + 3), dead, f"{dead}/{make_did(n + 3)}"))
        settings = PdsSettings(
            host_qps=50, connect_seconds=1, slow_seconds=0.5, trouble_seconds=0.2
        )

        async def play() -> tuple[float, list[JobResult]]:
            fetcher = HostFetcher(settings, (), insecure=True)
            started, good, found = time.monotonic(), 0, []
            await fetcher.submit(jobs)
            while len(found) < len(jobs):
                found += await fetcher.take(1)
                good = sum(isinstance(result, Resolved) for result in found)
                if good == 60 and not isinstance(found[-1], float):
                    break
            until_good = time.monotonic() - started
            found += await results_of(fetcher, len(jobs) - len(found))
            await fetcher.close()
            return until_good, found

        until_good, found = asyncio.run(play())
    finally:
        other.server.close()
        stuck.server.close()
    # 30 requests at 50 a second, and two hosts at once.
    assert until_good < 1.5
    unfinished = [result for result in found if isinstance(result, Unfinished)]
    assert {(result.status, result.transient) for result in unfinished} == {("unreachable", True)}
    assert len(unfinished) == 60


def test_server_errors_are_retried_and_then_left_for_the_next_run(net: Network) -> None:
    good, bad = resolve_job(net.plc, 1), resolve_job(net.plc, 2)
    net.plc.server.fault = lambda path, query: Reply(502) if path.endswith(bad.did) else None
    found = {result.job.did: result for result in run([good, bad])}  # type: ignore[union-attr]
    assert isinstance(found[good.did], Resolved)
    unfinished = found[bad.did]
    assert isinstance(unfinished, Unfinished)
    assert (unfinished.status, unfinished.transient) == ("unreachable", True)
    assert "answered with 502" in unfinished.error
    assert net.plc.server.paths.count(f"/{bad.did}") == QUICK.attempts


def test_a_transient_failure_is_retried(net: Network) -> None:
    jobs = [resolve_job(net.plc, n) for n in range(3)]
    net.plc.server.fault = limited_at_first(2, Reply(cut=True))
    assert all(isinstance(result, Resolved) for result in run(jobs))


def test_a_forbidden_host_is_not_a_transient_failure(net: Network) -> None:
    async def play() -> list[JobResult]:
        fetcher = HostFetcher(QUICK, (), insecure=False)
        await fetcher.submit(
            [
                resolve_job(net.plc, 1),
                Resolve("did:web:localhost", "https://localhost", "https://localhost/x"),
            ]
        )
        found = await results_of(fetcher, 2)
        await fetcher.close()
        return found

    for result in asyncio.run(play()):
        assert isinstance(result, Unfinished)
        assert (result.status, result.transient) == ("unreachable", False)
        assert "is not contacted" in result.error
    assert net.plc.server.paths == []


def test_the_pages_of_a_host(net: Network) -> None:
    host = net.host(page=3)
    for n in range(7):
        net.add(make_repo(make_did(n), posts(1)), host)
    host.refused[make_did(50)] = "RepoTakendown"

    async def play() -> list[RepoPage]:
        fetcher, pages = HostFetcher(QUICK, (), insecure=True), []
        job: ListRepos | None = ListRepos(host.origin)
        while job:
            await fetcher.submit([job])
            [page] = await results_of(fetcher, 1)
            assert isinstance(page, RepoPage)
            pages.append(page)
            job = ListRepos(host.origin, page.cursor) if page.cursor else None
        await fetcher.close()
        return pages

    pages = asyncio.run(play())
    assert [len(page.repos) for page in pages] == [3, 3, 2]
    listed = {repo.did: repo for page in pages for repo in page.repos}
    assert listed[make_did(50)].status == "takendown"
    assert listed[make_did(3)].status is None
    assert listed[make_did(3)].rev == host.repos[make_did(3)][0]


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"{}", b'{"repos": 5}', b'{"repos": null, "cursor": "x"}', b"[" * 9000],
)
def test_a_host_whose_list_cannot_be_read(net: Network, body: bytes) -> None:
    host = net.host()
    host.server.fault = lambda path, query: Reply(body=body)
    [unfinished] = run([ListRepos(host.origin)])
    assert isinstance(unfinished, Unfinished)
    assert "does not list" in unfinished.error


def test_invalid_entries_of_a_list_are_skipped(net: Network) -> None:
    host = net.host()
    body = (
        b'{"repos": [5, {}, {"did": "../../etc"}, {"did": 7}, {"did": "did:example:x"},'
        b' {"did": "did:plc:lnadw26jdmxczzlxrsbwyhy4"},'
        b' {"did": "did:web:x.example", "active": false, "status": ["x"]}], "cursor": 5}'
    )
    host.server.fault = lambda path, query: Reply(body=body)
    [page] = run([ListRepos(host.origin)])
    assert isinstance(page, RepoPage)
    assert [(repo.did, repo.status) for repo in page.repos] == [
        ("did:plc:lnadw26jdmxczzlxrsbwyhy4", None),
        ("did:web:x.example", None),
    ]
    assert page.cursor is None


def test_an_unexpected_error_is_raised_by_take() -> None:
    async def play() -> None:
        fetcher = HostFetcher(QUICK, (), insecure=True)
        await fetcher.submit([Resolve("did:plc:x", "http://127.0.0.1:1", 5)])  # type: ignore[arg-type]
        await results_of(fetcher, 1)

    with pytest.raises((TypeError, AttributeError)):
        asyncio.run(play())


def test_redirects_to_one_host_do_not_close_each_others_connections(net: Network) -> None:
    """The host at the end of the redirects has no jobs of its own."""
    front = net.host()
    jobs = [resolve_job(net.plc, n) for n in range(40)]
    net.plc.server.latency = 0.05
    front.server.fault = lambda path, query: Reply(302, headers={"Location": net.plc.origin + path})
    found = run(
        [Resolve(job.did, front.origin, job.url.replace(job.origin, front.origin)) for job in jobs]
    )
    assert [type(result) for result in found] == [Resolved] * 40
    assert len(net.plc.server.paths) == 40
