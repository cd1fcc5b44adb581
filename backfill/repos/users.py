"""The users of a sync: from a file, from the command line, or all users of a host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from datasets.errors import ConfigError, from_os_error
from pds.errors import RejectedRepo
from pds.identity import check_did
from pds.jobs import Job, ListedRepo, ListRepos, RepoPage

# Characters read of a line at a time. A DID has at most 2,048.
_MAX_LINE = 4096
_SHOWN_CHARS = 200


@dataclass(frozen=True)
class User:
    """A DID, and the line of the file or the position on the command line that it comes from."""

    did: str
    line: int


@dataclass(frozen=True)
class InvalidLine:
    """A line that is not a DID, or not one that can be resolved, and why."""

    did: str
    line: int
    reason: str


def read_users(dids: Iterable[str], dids_file: str | None) -> Iterator[User | InvalidLine]:
    """Reads users one by one, as a file may be larger than memory.

    Blank lines and lines that start with # are skipped. Raises ConfigError for a file that cannot
    be read.
    """
    for number, did in enumerate(dids, 1):
        yield _checked(did.strip(), number)

    if dids_file:
        for number, line in _lines(dids_file):
            text = line.strip()
            if text and not text.startswith("#"):
                yield _checked(text, number)


def check_file(dids_file: str | None) -> None:
    """Raises ConfigError if there is a file name and the file cannot be opened."""
    if not dids_file:
        return

    try:
        with open(dids_file, "rb"):
            pass
    except FileNotFoundError:
        raise ConfigError(f"there is no file {dids_file}; check --dids-file") from None
    except OSError as error:
        raise from_os_error("read", dids_file, error) from error


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Line numbers and lines. A line that is too long comes in parts with the same number."""
    try:
        with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:
            number = 1
            while line := file.readline(_MAX_LINE):
                yield number, line
                number += line.endswith("\n")
    except OSError as error:
        raise from_os_error("read", path, error) from error


def _checked(text: str, line: int) -> User | InvalidLine:
    try:
        check_did(text)
    except RejectedRepo as error:
        return InvalidLine(text[:_SHOWN_CHARS], line, error.reason)

    return User(text, line)


class UserList:
    """Users from a file or the command line."""

    host: str | None = None

    def __init__(self, users: Iterator[User | InvalidLine]) -> None:
        self._users = users
        self.done = False

    def take(self, count: int) -> list[User | InvalidLine]:
        """The next users, at most `count`."""
        some = list(islice(self._users, count))
        self.done = len(some) < count
        return some

    def next_job(self) -> Job | None:
        """None: a list needs no request."""
        return None


class HostUsers:
    """All users that a host lists. It is asked for the next page when the last one is used up."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._next_page: ListRepos | None = ListRepos(host)
        self._requested = False
        self._repos = deque[ListedRepo]()

    @property
    def done(self) -> bool:
        return not self._requested and not self._repos and self._next_page is None

    def take(self, count: int) -> list[ListedRepo]:
        """Users of the current page, at most `count`."""
        return [self._repos.popleft() for _ in range(min(count, len(self._repos)))]

    def next_job(self) -> Job | None:
        """The request for the next page, if it is time for it."""
        if self._requested or self._repos or self._next_page is None:
            return None

        self._requested = True
        return self._next_page

    def add_page(self, page: RepoPage) -> None:
        self._requested = False
        self._repos.extend(page.repos)
        self._next_page = ListRepos(self.host, page.cursor) if page.cursor else None

    def stop(self) -> None:
        """No further page is requested."""
        self._requested = False
        self._next_page = None
