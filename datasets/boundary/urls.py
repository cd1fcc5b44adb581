"""Endpoints and keys that users set, looked at before anything starts."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from datasets.boundary.secrets import redact, remember_url
from datasets.errors import ConfigError

_PRINTABLE = re.compile(r"[!-~]+")
# What an HTTP header can carry: https://www.rfc-editor.org/rfc/rfc9110#section-5.5
_HEADER = re.compile(r"[!-~](?:[ -~]*[!-~])?")


def http_url(url: str, name: str) -> str:
    """`url` if it can be asked. Raises ConfigError that names the variable or option `name`."""
    remember_url(url)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, or too large
        fits = False
    if not fits or not _PRINTABLE.fullmatch(url):
        raise ConfigError(
            f"{name} is {redact(url)!r}, which is not a URL; set it to https://HOST or https://HOST:PORT/…"
        )
    return url


def header_key(key: str, name: str) -> str:
    """`key` if a header can carry it. Raises ConfigError that names the variable, and not the key."""
    if not _HEADER.fullmatch(key):
        raise ConfigError(
            f"{name} has a line break, a blank at an end, or a character that is not ASCII; set it to the key alone"
        )
    return key
