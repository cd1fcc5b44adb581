from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pds.addresses import check_addresses, origin_of
from pds.errors import RejectedRepo
from pds.identity import check_did, document_url, read_document
from tests.pds.repos import Key, make_did
from tests.pds.servers import document
from tests.pds.support import FIXTURES, INDEX, json_vectors, needs_fixtures, needs_interop

DID = make_did(3)
KEY = Key.make()
PDS = "https://pds.example.com"


def refusal(body: Any, status: int = 200, did: str = DID) -> tuple[str, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RejectedRepo) as caught:
        read_document(did, status, raw, 0)
    return caught.value.status, caught.value.reason


@needs_fixtures
@pytest.mark.parametrize(
    "name", [name for name in INDEX if (FIXTURES / f"{name}.did.json").exists()]
)
def test_the_documents_of_the_fixtures(name: str) -> None:
    body = (FIXTURES / f"{name}.did.json").read_bytes()
    found = read_document(INDEX[name]["did"], 200, body, 17, insecure=True)
    assert (found.did, found.host, found.handle) == (
        INDEX[name]["did"],
        "http://localhost:2583",
        f"{name}.test",
    )
    assert found.key.startswith("did:key:zQ3")
    assert found.resolved_at == 17
    assert refusal(body, did=found.did)[0] == "unreachable"


@pytest.mark.parametrize("curve", [ec.SECP256K1, ec.SECP256R1])
def test_keys_of_both_curves(curve: type[ec.EllipticCurve]) -> None:
    key = Key.make(5, curve)
    found = read_document(
        DID, 200, json.dumps(document(DID, key.did_key, PDS, "User.Example.com")).encode(), 0
    )
    assert (found.key, found.host, found.handle) == (key.did_key, PDS, "user.example.com")


@needs_interop
def test_keys_of_the_older_kinds() -> None:
    for vector in json_vectors("crypto/signature-fixtures.json"):
        content = document(DID, KEY.did_key, PDS)
        content["verificationMethod"][0] |= {
            "type": vector["didDocSuite"],
            "publicKeyMultibase": vector["publicKeyMultibase"],
        }
        found = read_document(DID, 200, json.dumps(content).encode(), 0)
        assert found.key == vector["publicKeyDid"]


def test_the_pds_is_found_by_its_id_not_by_its_position() -> None:
    content = document(DID, KEY.did_key, PDS)
    labeler = {
        "id": "#atproto_labeler",
        "type": "AtprotoLabeler",
        "serviceEndpoint": "https://labels.example.com",
    }
    content["service"] = ["odd", labeler, {**content["service"][0], "id": f"{DID}#atproto_pds"}]
    method = {
        "id": f"{DID}#atproto_label",
        "type": "Multikey",
        "publicKeyMultibase": Key.make(9).did_key[8:],
    }
    content["verificationMethod"].insert(0, method)
    found = read_document(DID, 200, json.dumps(content).encode(), 0)
    assert (found.host, found.key) == (PDS, KEY.did_key)


def method(**fields: str) -> dict[str, Any]:
    return {"verificationMethod": [{"id": "#atproto", **fields}]}


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"id": "did:plc:somebodyelse"}, "corrupt", "is not about this DID"),
        ({"service": []}, "not_found", "names no PDS"),
        ({"service": None}, "not_found", "names no PDS"),
        ({"service": {"#atproto_pds": PDS}}, "not_found", "names no PDS"),
        ({"verificationMethod": []}, "corrupt", "has no signing key"),
        (method(type="Multikey"), "corrupt", "unknown kind"),
        (method(type="X", publicKeyMultibase="z1"), "corrupt", "unknown kind"),
        (method(type="Multikey", publicKeyMultibase="z0OIl"), "corrupt", "cannot be used"),
        (method(type="Multikey", publicKeyMultibase="zQ3sh"), "corrupt", "cannot be used"),
    ],
)
def test_a_bad_document(change: dict[str, Any], status: str, reason: str) -> None:
    found = refusal({**document(DID, KEY.did_key, PDS), **change})
    assert found[0] == status
    assert reason in found[1]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"[" * 5000, b"null", b'"text"', b"\xff\xfe"]
)
def test_answers_that_are_not_a_json_object(body: bytes) -> None:
    assert refusal(body)[0] == "corrupt"


def test_answers_with_other_statuses() -> None:
    assert refusal(b"{}", 404) == ("not_found", "there is no such DID")
    assert refusal(b"{}", 410)[0] == "not_found"
    assert refusal(b"{}", 403)[0] == "unreachable"


def test_a_trusted_host_need_not_be_https() -> None:
    body = json.dumps(document(DID, KEY.did_key, "http://127.0.0.1:2583/")).encode()
    assert (
        read_document(DID, 200, body, 0, {"http://127.0.0.1:2583"}).host == "http://127.0.0.1:2583"
    )
    assert refusal(body)[0] == "unreachable"


@pytest.mark.parametrize(
    ("did", "url"),
    [
        (DID, f"https://plc.directory/{DID}"),
        ("did:web:example.com", "https://example.com/.well-known/did.json"),
        ("did:web:a-b.example.co.uk", "https://a-b.example.co.uk/.well-known/did.json"),
        ("did:web:localhost%3A1234", "http://localhost:1234/.well-known/did.json"),
    ],
)
def test_where_documents_are(did: str, url: str) -> None:
    check_did(did)
    assert document_url(did, "https://plc.directory") == url


@pytest.mark.parametrize(
    "did",
    [
        "did:plc:short",
        "did:plc:LNADW26JDMXCZZLXRSBWYHY4",
        "did:plc:lnadw26jdmxczzlxrsbwyhy1",
        "did:web:example.com:user:alice",
        "did:web:example.com%3A8080",
        "did:web:127.0.0.1",
        "did:web:example",
        "did:web:example.com%2Fpath",
        "did:web:user%40example.com",
        "did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N",
        "did:example:123456789abcdefghi",
    ],
)
def test_dids_that_the_protocol_does_not_resolve(did: str) -> None:
    with pytest.raises(RejectedRepo) as caught:
        check_did(did)
    assert caught.value.status == "invalid_did"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://PDS.Example.com", PDS),
        ("https://pds.example.com/", PDS),
        ("https://pds.example.com:443", PDS),
        ("https://pds.example.com:8443", f"{PDS}:8443"),
        ("https://[2606:4700::1111]:8443/", "https://[2606:4700::1111]:8443"),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "http://pds.example.com",
        "https://user:secret@pds.example.com",
        "https://user@pds.example.com",
        "https://pds.example.com/path",
        "https://pds.example.com/?query",
        "https://pds.example.com/#x",
        "https://",
        "https://:443",
        "https://pds.example.com:0",
        "https://pds.example.com:99999",
        "https://pds.example.com\n.evil.com",
        "https://pds.example.com\\@evil.com",
        "https://[::1",
        "ftp://pds.example.com",
        "file:///etc/passwd",
        "pds.example.com",
        "https://" + "a" * 3000,
        "",
    ],
)
def test_urls_that_are_not_contacted(url: str) -> None:
    with pytest.raises(RejectedRepo) as caught:
        origin_of(url)
    assert caught.value.status == "unreachable"
    assert "secret" not in caught.value.reason


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "168.63.129.16",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fec0::1",
        "ff0e::1",
        "100::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "::127.0.0.1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(RejectedRepo, match="not public"):
        check_addresses("pds.example.com", ["8.8.8.8", address])


def test_public_addresses() -> None:
    check_addresses(
        "pds.example.com", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    )
