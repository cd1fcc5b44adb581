"""A sync from arroba, an independent PDS: its trees, commits, signatures and answers over HTTP."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.pds.repos import make_did
from tests.pds.servers import Plc, Reply, Server, error_reply, json_reply
from tests.pds.syncs import run, statuses, uris

pytestmark = pytest.mark.usefixtures("ray_here")


class Arroba:
    """arroba's XRPC methods over its own storage in memory; the HTTP around them is ours."""

    def __init__(self) -> None:
        # Its storage in Google's Datastore would need packages that are not installed.
        datastore = ModuleType("arroba.datastore_storage")
        for name in ("AtpBlock", "AtpRemoteBlob", "AtpRepo", "DatastoreStorage"):
            setattr(datastore, name, type(name, (), {}))
        sys.modules.setdefault("arroba.datastore_storage", datastore)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages of theirs, while they are imported
            from arroba import server, xrpc_sync  # registers the methods
            from arroba.storage import MemoryStorage

        assert xrpc_sync.server is server
        self.storage = server.storage = MemoryStorage()
        self._methods = server.server
        self._http = Server(self._answer)
        self.origin = self._http.origin

    def _answer(self, path: str, query: dict[str, str]) -> Reply:
        """Answers like lexrpc's Flask endpoint, which would need a package for websockets."""
        nsid = path.removeprefix("/xrpc/")
        try:
            parameters = self._methods.decode_params(nsid, query.items())
            output = self._methods.call(nsid, input={}, **parameters)
        except ValueError as error:
            name = getattr(error, "name", None) or "InvalidRequest"
            return error_reply(
                name, getattr(error, "message", str(error)), getattr(error, "status", None) or 400
            )
        return Reply(body=output) if isinstance(output, bytes) else json_reply(output)

    def add(self, did: str, records: dict[str, Any]) -> Any:
        from arroba.repo import Repo
        from arroba.storage import Action
        from arroba.util import new_key

        repo = Repo.create(
            self.storage, did, handle=f"user{did[8:12]}.example.com", signing_key=new_key()
        )
        self.write(repo, Action.CREATE, records)
        return repo

    def write(self, repo: Any, action: Any, records: dict[str, Any]) -> None:
        from arroba.storage import Write

        for path, value in records.items():
            collection, rkey = path.split("/")
            self.storage.commit(
                repo, [Write(action=action, collection=collection, rkey=rkey, record=value)]
            )

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def arroba() -> Iterator[Arroba]:
    found = Arroba()
    yield found
    found.close()


def did_key(repo: Any) -> str:
    from arroba.did import encode_did_key

    return str(encode_did_key(repo.signing_key.public_key()))


def records(count: int, text: str = "post") -> dict[str, Any]:
    made: dict[str, Any] = {
        f"app.bsky.feed.post/3kaaaaaaaa{a}{b}2": {
            "$type": "app.bsky.feed.post",
            "text": f"{text} {a}{b}",
            "createdAt": f"2024-10-0{1 + n % 9}T12:00:00.000Z",
        }
        for n, (a, b) in enumerate([(a, b) for a in "234567abc" for b in "234567abc"][:count])
    }
    link = {
        "uri": "at://did:plc:x/app.bsky.feed.post/3kaaaaaaaaaa2",
        "cid": "bafyreigmqv7arftkx2yswvks2ly3qlodvrj6pkobftuqrutufpzx5lch3i",
    }
    made["app.bsky.feed.like/3kbbbbbbbbbb2"] = {
        "$type": "app.bsky.feed.like",
        "subject": link,
        "createdAt": "2024-10-01T12:00:00.000Z",
    }
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_repositories_of_arroba(arroba: Arroba, tmp_path: Path) -> None:
    from arroba.storage import Action
    from arroba.util import at_uri

    plc = Plc()
    try:
        users = {make_did(n): arroba.add(make_did(n), records(10 + 20 * n)) for n in range(3)}
        gone = make_did(9)
        for did, repo in users.items():
            plc.add(did, did_key(repo), arroba.origin)
        plc.add(gone, did_key(users[make_did(0)]), arroba.origin)

        class Net:
            pass

        net: Any = Net()
        net.plc = plc
        result = run(tmp_path, net, *users, gone)
        assert statuses(tmp_path) == {**dict.fromkeys(users, "ok"), gone: "not_found"}
        expected = [
            at_uri(did, *path.split("/"))
            for n, did in enumerate(users)
            for path in records(10 + 20 * n)
        ]
        assert uris(tmp_path) == sorted(expected)
        assert result.counts.records == {"post": 90, "like": 3}

        # One repository changes: a post is deleted, one is edited, one is new.
        changed, repo = make_did(1), users[make_did(1)]
        paths = sorted(path for path in records(30) if "post" in path)
        arroba.write(repo, Action.DELETE, {paths[0]: None})
        arroba.write(repo, Action.UPDATE, {paths[1]: {**records(30)[paths[1]], "text": "edited"}})
        arroba.write(
            repo, Action.CREATE, {"app.bsky.feed.post/3kzzzzzzzzzz2": records(1, "new")[paths[0]]}
        )
        result = run(tmp_path, net, host=arroba.origin)
        assert result.counts.statuses == {"ok": 1, "unchanged": 2}
        expected.remove(at_uri(changed, *paths[0].split("/")))
        expected.append(at_uri(changed, "app.bsky.feed.post", "3kzzzzzzzzzz2"))
        assert uris(tmp_path) == sorted(expected)

        arroba.storage.deactivate_repo(users[make_did(2)])
        run(tmp_path, net, *users)
        assert statuses(tmp_path)[make_did(2)] == "deactivated"
        assert uris(tmp_path) == sorted(expected)
    finally:
        plc.server.close()
