"""Keys and passwords, known by their values, so that no finished text shows them.

Whoever reads a secret remembers it here: the environment when a process starts, a database's URL when it
is opened. `redact` takes all of them out, however they are escaped, and is called where a text is finished:
by the streams of the command line, for the reason of a label row, for a row of `runs`. In between, an
error may quote a URL or a server's answer as it is.

A value of less than four characters, or of a few digits, can't be told from ordinary text. It is left out
only where it stands in a URL.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

_HIDDEN = "***"
_SHORTEST, _SHORTEST_NUMBER = 4, 8
# What an unset key is often set to, and what would break a JSON document.
_WORDS = frozenset({"true", "false", "null", "none"})
# From this length on, a secret is found in the middle of a word too.
_LONG = 12
# No word before a short one, but it may be the end of an escape: \n \x1b \u201c \U0001f600 %20
_BEFORE = (
    r"(?:(?<![A-Za-z0-9])|(?<=\\[abfnrtv])|(?<=%[0-9A-Fa-f]{2})|(?<=\\x[0-9A-Fa-f]{2})"
    r"|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\U[0-9A-Fa-f]{8}))"
)
_SECRET_VARIABLE = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_URL_VARIABLE = re.compile(r"(_URL|_ENDPOINT|_PROXY)$", re.IGNORECASE)
_HOST = re.compile(r"([^:@]*|\[[^\]]*\])(:\d*)?")
# A password that nobody has remembered, where its place tells: user:…@ in a URL, password=… in a query.
_IN_URL = re.compile(r"(?<=://)([^\s/:@\"'\\<>]*):[^\s/\"'<>]*@")
_IN_QUERY = re.compile(r"(password=)('[^']*'|[^&\s\"',;)]*)", re.IGNORECASE)

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def remember(secret: str) -> None:
    """From now on, `redact` takes this out."""
    global _pattern  # noqa: PLW0603 - what is secret is a fact of the process
    for value in {secret.strip(), *map(str.strip, secret.split("\n"))}:
        number = value.isdigit() and len(value) < _SHORTEST_NUMBER
        if (
            len(value) >= _SHORTEST
            and not number
            and value.lower() not in _WORDS
            and value not in _known
        ):
            _known.update(_forms(value))
            _pattern = re.compile("|".join(map(_found_as, sorted(_known, key=len, reverse=True))))


def remember_url(url: str) -> None:
    """The password in a URL, also in one that is not as it should be: without a scheme, or with an @ too many."""
    if url.startswith("sqlite:"):
        return
    for match in (*_IN_QUERY.finditer(url), *re.finditer("(password=)([^&]*)", url)):
        remember(match[2].strip("'"))
        remember(unquote(match[2]))
    rest = url.partition("://")[2] or url
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if url.startswith("http") and _HOST.fullmatch(authority):
        return
    user, _, password = rest.rpartition("@")[0].partition(":")
    secret = password or (user if url.startswith("http") else "")  # a token may stand alone
    if secret and secret != user:
        basic = f"{unquote(user)}:{unquote(secret)}".encode("utf-8", "surrogateescape")
        remember(base64.b64encode(basic).decode())
    if secret and (secret != user or not password):
        remember(secret)
        remember(unquote(secret))


def remember_environment(variables: Mapping[str, str]) -> None:
    """Keys and tokens by the names of their variables, and passwords in URLs."""
    for name, value in variables.items():
        if _SECRET_VARIABLE.search(name):
            remember(value)
        elif "@" in value and ("://" in value or _URL_VARIABLE.search(name)):
            remember_url(value)


def redact(text: str) -> str:
    """`text` without any secret that is known, and without passwords in URLs."""
    if _pattern:
        text = _pattern.sub(_HIDDEN, text)
    if "@" in text:
        text = _IN_URL.sub(rf"\1:{_HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", text) if "assword" in text else text


def redacting(stream: TextIO) -> TextIO:
    """`stream`, written to through `redact`."""
    return cast(TextIO, _Redacting(stream))


class _Redacting:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # a way round
            raise AttributeError(name)
        return getattr(self._stream, name)


def _forms(value: str) -> set[str]:
    """How a value may stand in a URL, in JSON, in HTML, in Python's own notation."""
    percent = {
        call(value, safe, errors="surrogateescape")
        for call in (quote, quote_plus)
        for safe in ("", "/")
    }
    percent |= {re.sub("%..", lambda code: code[0].lower(), form) for form in percent}
    escaped = {
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
    }
    for _ in range(2):  # a server's JSON, as a text in a row of `runs`, as a text in `--json`
        escaped |= {json.dumps(form)[1:-1] for form in escaped}
    return {value, html.escape(value), *percent, *escaped}


def _found_as(form: str) -> str:
    if len(form) >= _LONG:
        return re.escape(form)
    before = (
        _BEFORE if form[0].isalnum() else ""
    )  # else it may begin in the middle of its own escaped form
    after = "(?![A-Za-z0-9])" if form[-1].isalnum() else ""
    return f"{before}{re.escape(form)}{after}"
