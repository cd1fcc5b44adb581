"""Which users a sync is about: a file, the command line, or everyone on a host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from datasets.errors import ConfigError, from_os_error
from pds.errors import RejectedRepo
from pds.identity import check_did
from pds.jobs import Job, ListedRepo, ListRepos, RepoPage

# What a line of a file may have at the most; a DID has 2,048 characters.
_MAX_LINE = 4096


@dataclass(frozen=True)
class User:
    """A DID and where it stands: the line of the file, or its number on the command line."""

    did: str
    line: int


@dataclass(frozen=True)
class InvalidLine:
    """A line that is no DID of ours, and why."""

    did: str
    line: int
    reason: str


def read_users(dids: Iterable[str], dids_file: str | None) -> Iterator[User | InvalidLine]:
    """Line by line: a list may be longer than memory. Blank lines and lines that begin with # are none.

    Raises ConfigError where the file cannot be read.
    """
    for number, did in enumerate(dids, 1):
        yield _checked(did.strip(), number)
    if dids_file:
        for number, line in _lines(dids_file):
            text = line.strip()
            if text and not text.startswith("#"):
                yield _checked(text, number)


def _lines(path: str) -> Iterator[tuple[int, str]]:
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
        return InvalidLine(text[:200], line, error.reason)
    return User(text, line)


def check_file(dids_file: str | None) -> None:
    """Raises ConfigError where the file cannot be opened, before anything is done."""
    if dids_file:
        try:
            with open(dids_file, "rb"):
                pass
        except FileNotFoundError:
            raise ConfigError(f"there is no file {dids_file}; check --dids-file") from None
        except OSError as error:
            raise from_os_error("read", dids_file, error) from error


class UserList:
    """Users from a file or the command line."""

    def __init__(self, users: Iterator[User | InvalidLine]) -> None:
        self._users = users
        self.done = False

    def take(self, count: int) -> list[User | InvalidLine]:
        """Up to so many."""
        some = list(islice(self._users, count))
        self.done = len(some) < count
        return some

    def ask(self) -> Job | None:
        """What has to be asked for more of them."""
        return None


class HostUsers:
    """Everyone whom a host lists, a page at a time."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._next: ListRepos | None = ListRepos(host)
        self._asked = False
        self._repos = deque[ListedRepo]()

    def take(self, count: int) -> list[ListedRepo]:
        return [self._repos.popleft() for _ in range(min(count, len(self._repos)))]

    def ask(self) -> Job | None:
        if self._asked or self._repos or self._next is None:
            return None
        self._asked = True
        return self._next

    def listed(self, page: RepoPage) -> None:
        self._asked = False
        self._repos.extend(page.repos)
        self._next = ListRepos(self.host, page.cursor) if page.cursor else None

    def ended(self) -> None:
        self._asked, self._next = False, None

    @property
    def done(self) -> bool:
        return not self._asked and not self._repos and self._next is None
