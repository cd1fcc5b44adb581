"""From a DID to its PDS and its signing key. Pure: what to ask, and what an answer means."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any

from atproto_core.exceptions import AtProtocolError
from atproto_crypto.did import get_did_key, parse_did_key

from datasets.repos.state import Identity
from pds.addresses import origin_of
from pds.errors import RejectedRepo
from pds.syntax import is_did, is_plc

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HANDLE = re.compile(rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
_WEB = re.compile(rf"did:web:({_HANDLE.pattern}|localhost(?:%3A[0-9]{{1,5}})?)")


def check_did(did: str) -> None:
    """Raises RejectedRepo("invalid_did") unless it is a DID that the protocol resolves."""
    if not is_did(did):
        raise RejectedRepo("invalid_did", "it is not a DID")
    method = did.split(":")[1]
    if method == "plc" and not is_plc(did):
        raise RejectedRepo(
            "invalid_did", "a did:plc has 24 letters a-z and digits 2-7 after its method"
        )
    if method == "web" and not _WEB.fullmatch(did):
        raise RejectedRepo(
            "invalid_did", "a did:web has a domain name after its method, and no path or port"
        )
    if method not in ("plc", "web"):
        raise RejectedRepo("invalid_did", f"the method did:{method} is neither plc nor web")


def document_url(did: str, plc_url: str) -> str:
    """Where the DID's document is. `did` has been checked."""
    if did.startswith("did:plc:"):
        return f"{plc_url}/{did}"
    host = did.removeprefix("did:web:").replace("%3A", ":")
    scheme = "http" if host.partition(":")[0] == "localhost" else "https"
    return f"{scheme}://{host}/.well-known/did.json"


def read_document(
    did: str,
    status: int,
    body: bytes,
    now: int,
    trusted: Container[str] = (),
    *,
    insecure: bool = False,
) -> Identity:
    """What the answer to a request for the DID's document says. Raises RejectedRepo.

    A directory answers 404 for a DID that it does not know, and 410 for one that was given up.
    A PDS that is `trusted` need not be https.
    """
    if status in (404, 410):
        raise RejectedRepo(
            "not_found",
            "there is no such DID" if status == 404 else "the DID was given up by its user",
        )
    if status != 200:
        raise RejectedRepo(
            "unreachable", f"the request for its DID document was answered with {status}"
        )
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad("is not JSON") from None
    if not isinstance(document, dict) or document.get("id") != did:
        raise _bad("is not about this DID")
    return Identity(
        did,
        _pds(did, document, trusted, insecure=insecure),
        _handle(document),
        _key(did, document),
        now,
    )


def _pds(did: str, document: dict[str, Any], trusted: Container[str], *, insecure: bool) -> str:
    service = _entry(did, document, "service", "#atproto_pds")
    if service is None or service.get("type") != "AtprotoPersonalDataServer":
        raise RejectedRepo("not_found", "its DID document names no PDS")
    endpoint = service.get("serviceEndpoint")
    if not isinstance(endpoint, str):
        raise _bad("has a PDS without an address")
    origin = origin_of(endpoint, insecure=True)
    return origin if origin in trusted else origin_of(endpoint, insecure=insecure)


def _key(did: str, document: dict[str, Any]) -> str:
    method = _entry(did, document, "verificationMethod", "#atproto")
    if method is None:
        raise _bad("has no signing key")
    kind, encoded = method.get("type"), method.get("publicKeyMultibase")
    try:
        key = (
            get_did_key(kind, encoded)
            if isinstance(kind, str) and isinstance(encoded, str)
            else None
        )
        if key is not None:
            parse_did_key(key)
    except (AtProtocolError, ValueError) as error:
        raise _bad(f"has a signing key that cannot be used ({str(error)[:80]})") from error
    if key is None:
        raise _bad("has a signing key of an unknown kind")
    return str(key)


def _entry(did: str, document: dict[str, Any], name: str, fragment: str) -> dict[str, Any] | None:
    """The first entry of a list whose id is `fragment`, alone or after the DID."""
    entries = document.get(name)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("id") in (fragment, did + fragment):
            return entry
    return None


def _handle(document: dict[str, Any]) -> str | None:
    """What the user claims to be called; nothing here relies on it."""
    names = document.get("alsoKnownAs")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.startswith("at://"):
            handle = name.removeprefix("at://").lower()
            if len(handle) <= 253 and _HANDLE.fullmatch(handle):
                return handle
    return None


def _bad(reason: str) -> RejectedRepo:
    return RejectedRepo("corrupt", f"its DID document {reason}")
