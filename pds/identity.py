"""From a DID to its PDS and signing key: which URL to request, what the answer means. Pure."""

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
_TOP_LABEL = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HANDLE = re.compile(rf"(?:{_LABEL}\.)+{_TOP_LABEL}")
_MAX_HANDLE = 253
_WEB = re.compile(rf"did:web:({_HANDLE.pattern}|localhost(?:%3A[0-9]{{1,5}})?)")


def check_did(did: str) -> None:
    """Raises RejectedRepo("invalid_did") unless it is a DID that the protocol can resolve."""
    if not is_did(did):
        raise _invalid("it is not a DID")

    method = did.split(":")[1]
    if method not in ("plc", "web"):
        raise _invalid(f"the method did:{method} is neither plc nor web")
    if method == "plc" and not is_plc(did):
        raise _invalid("a did:plc has 24 letters a-z and digits 2-7 after its method")
    if method == "web" and not _WEB.fullmatch(did):
        raise _invalid("a did:web has a domain name after its method, and no path or port")


def document_url(did: str, plc_url: str) -> str:
    """The URL of a DID's document. `did` must have passed `check_did`."""
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
    """The identity in the answer to a request for the DID's document.

    `now` is in epoch seconds. The PDS must be https unless it is one of the `trusted` origins, or
    with `insecure`. Raises RejectedRepo. A directory answers 404 for an unknown DID, and 410 for
    one that its user has deleted.
    """
    if status == 404:
        raise RejectedRepo("not_found", "there is no such DID")
    if status == 410:
        raise RejectedRepo("not_found", "its user has deleted the DID")
    if status != 200:
        raise RejectedRepo(
            "unreachable", f"the request for its DID document was answered with {status}"
        )

    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad_document("is not JSON") from None
    if not isinstance(document, dict) or document.get("id") != did:
        raise _bad_document("is not about this DID")

    return Identity(
        did=did,
        host=_pds(did, document, trusted, insecure=insecure),
        handle=_handle(document),
        key=_signing_key(did, document),
        resolved_at=now,
    )


def _pds(did: str, document: dict[str, Any], trusted: Container[str], *, insecure: bool) -> str:
    service = _entry(did, document, "service", "#atproto_pds")
    if service is None or service.get("type") != "AtprotoPersonalDataServer":
        raise RejectedRepo("not_found", "its DID document names no PDS")

    endpoint = service.get("serviceEndpoint")
    if not isinstance(endpoint, str):
        raise _bad_document("has a PDS without an address")

    origin = origin_of(endpoint, insecure=True)
    return origin if origin in trusted else origin_of(endpoint, insecure=insecure)


def _signing_key(did: str, document: dict[str, Any]) -> str:
    """The key as a did:key."""
    method = _entry(did, document, "verificationMethod", "#atproto")
    if method is None:
        raise _bad_document("has no signing key")

    kind = method.get("type")
    encoded = method.get("publicKeyMultibase")
    key = None
    try:
        if isinstance(kind, str) and isinstance(encoded, str):
            key = get_did_key(kind, encoded)
        if key is not None:
            parse_did_key(key)
    except (AtProtocolError, ValueError) as error:
        reason = f"has a signing key that cannot be used ({str(error)[:80]})"
        raise _bad_document(reason) from error

    if key is None:
        raise _bad_document("has a signing key of an unknown kind")
    return str(key)


def _entry(did: str, document: dict[str, Any], name: str, fragment: str) -> dict[str, Any] | None:
    """The first entry of a list whose id is `fragment`, with or without the DID before it."""
    entries = document.get(name)
    if not isinstance(entries, list):
        return None

    for entry in entries:
        if isinstance(entry, dict) and entry.get("id") in (fragment, did + fragment):
            return entry
    return None


def _handle(document: dict[str, Any]) -> str | None:
    """The handle that the user claims. It is not verified, and nothing here relies on it."""
    names = document.get("alsoKnownAs")
    if not isinstance(names, list):
        return None

    for name in names:
        if isinstance(name, str) and name.startswith("at://"):
            handle = name.removeprefix("at://").lower()
            if len(handle) <= _MAX_HANDLE and _HANDLE.fullmatch(handle):
                return handle
    return None


def _invalid(reason: str) -> RejectedRepo:
    return RejectedRepo("invalid_did", reason)


def _bad_document(reason: str) -> RejectedRepo:
    return RejectedRepo("corrupt", f"its DID document {reason}")
