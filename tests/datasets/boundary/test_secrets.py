from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

import pytest

from datasets.boundary import secrets
from datasets.boundary.secrets import redact, remember, remember_environment, remember_url
from datasets.database import open_database
from datasets.errors import BackfillError


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    """What other tests have remembered is theirs, and theirs again afterwards."""
    known, pattern = secrets._known, secrets._pattern
    secrets._known, secrets._pattern = set(), None
    yield
    secrets._known, secrets._pattern = known, pattern


@pytest.mark.parametrize(
    "secret",
    ["hunter2", "a-long-key-0123456789", 'q"uo\\te%s /and@more', "schlüssel", "two\nlines"],
)
def test_a_secret_is_found_however_it_is_escaped(secret: str) -> None:
    remember(secret)
    forms = [
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    ]
    forms += [json.dumps(json.dumps(secret))[3:-3], json.dumps(secret, ensure_ascii=False)[1:-1]]
    for form in forms:
        assert redact(f"before {form}, after") == "before ***, after"
        assert redact(f"key={form}&x") == "key=***&x"
        assert redact(json.dumps({"a": f"line\n{form}"})).count("***") == 1
        json.loads(redact(json.dumps({"error": f"it said {form}"})))


@pytest.mark.parametrize("before", ["\u201c", "\u00e9", "\U0001f600", "\x1b", "\t", "\v", "'"])
@pytest.mark.parametrize(
    "escape", [json.dumps, lambda text: json.dumps(json.dumps(text)), repr, ascii]
)
def test_an_escape_is_no_word_that_a_short_secret_stands_in(
    before: str, escape: Callable[[str], str]
) -> None:
    remember("hunter2")
    assert "hunter2" not in redact(escape(f"{before}hunter2{before}"))


@pytest.mark.parametrize("secret", ['\\"@b', '"quoted"', "-dash-"])
def test_json_stays_json_wherever_an_odd_secret_stands(secret: str) -> None:
    remember(secret)
    for text in (f"a{secret} b", f"{secret}\\", f'\n{secret}"'):
        assert "***" in json.loads(redact(json.dumps({"error": text})))["error"]


def test_the_middle_of_a_word_is_no_place_for_a_short_secret() -> None:
    remember("EMPTY")
    remember("postgres")
    assert (
        redact("set it to postgresql://HOST; NONEMPTY") == "set it to postgresql://HOST; NONEMPTY"
    )
    assert redact("the key EMPTY is refused") == "the key *** is refused"
    remember("a-very-long-key")
    assert redact("xxa-very-long-keyxx") == "xx***xx"


@pytest.mark.parametrize("value", ["", "abc", "12345", "true", "None", "null"])
def test_what_cannot_be_told_from_ordinary_text_is_left(value: str) -> None:
    remember(value)
    text = json.dumps({"labelled": 12345, "abc": True, "x": None})
    assert redact(text) == text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pa%ss%zzword@127.0.0.1:1/db",
        "postgresql://me:pa ss-word@127.0.0.1:1/db",
        "postgresql://me:pa@ss-word@127.0.0.1:1/db",
        "postgresql://me:pa/ss-word@127.0.0.1:1/db",
        "postgresql://me:12/ss-word@127.0.0.1:1/db",
        "postgresql://me:pa#ss-word?x@127.0.0.1:1/db",
        "postgresql://me:pa%40ss-word@127.0.0.1:1/db",
        "postgresql://me@127.0.0.1:1/db?password=pa%40ss-word",
        "postgresql://me@127.0.0.1:1/db?password=pa ss-word",
        "me:pass-word@127.0.0.1/db",
        "mysql://me:pass-word@127.0.0.1/db",
        "host=127.0.0.1 port=1 user=me password='pa ss-word'",
    ],
)
def test_no_part_of_a_databases_password_is_in_an_error(url: str) -> None:
    with pytest.raises(BackfillError) as raised:
        open_database(url)
    for shown in (
        redact(str(raised.value)),
        redact(f"cannot open {url}, which is a database address"),
    ):
        assert "database" in shown
        plain = shown.replace("password", "")
        assert not [
            part for part in ("ss-word", "ss%zz", "zzword", "pa ss", "pass") if part in plain
        ], shown


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("https://me:p%40ss-word@host/v1", ["p%40ss-word", "p@ss-word"]),
        ("http://a-token-of-mine@host/v1", ["a-token-of-mine"]),
        ("me:p@ss-word@host/v1", ["p@ss-word"]),
        ("http://host:8000/v1", []),
        ("http://[::1]:8000/v1@beta", []),
        ("postgresql://postgres:postgres@host/postgres", []),
    ],
)
def test_the_password_of_a_url_is_known_in_any_text(url: str, hidden: list[str]) -> None:
    remember_url(url)
    for secret in hidden:
        assert redact(f"it was {secret}!") == "it was ***!"
    assert hidden or redact("postgres host v1 beta 8000") == "postgres host v1 beta 8000"
    basic = base64.b64encode(b"me:p@ss-word").decode()
    assert basic not in redact(f"Authorization: Basic {basic}") or hidden != [
        "p%40ss-word",
        "p@ss-word",
    ]


def test_passwords_in_urls_that_nobody_has_remembered_are_hidden_and_other_addresses_stay() -> None:
    assert redact("GET http://u:p@ss@host:1/x failed") == "GET http://u:***@host:1/x failed"
    for text in (
        "at://did:plc:abc/app.bsky.feed.post/3k",
        "https://host:80/@me",
        "http://[::1]:8/x",
        "s3://b/a@b:c",
    ):
        assert redact(text) == text


def test_variables_are_secret_by_their_names_or_by_a_password_in_their_url() -> None:
    remember_environment({
        "LLM_API_KEY": "key-of-the-llm", "AWS_SECRET_ACCESS_KEY": "aws/secret+key", "HF_TOKEN": "hf_of_mine",
        "https_proxy": "me:proxy-pass@proxy:3128", "PERSPECTIVE_API_ENDPOINT": "http://me:end-point@host",
        "TOKENIZERS_PARALLELISM": "false", "PERSPECTIVE_QPS": "1000", "EDITOR": "me@home",
    })  # fmt: skip
    for secret in ("key-of-the-llm", "aws/secret+key", "hf_of_mine", "proxy-pass", "end-point"):
        assert redact(f"<{secret}>") == "<***>"
    assert redact("false 1000 me@home") == "false 1000 me@home"


def test_bytes_that_are_no_text_are_no_reason_to_fail() -> None:
    secret = b"\xff\xfe-of-a-key".decode("utf-8", "surrogateescape")
    remember_environment({"LLM_API_KEY": secret, "LLM_BASE_URL": f"http://me:{secret}@host"})
    assert redact(f"<{secret}>") == "<***>"
