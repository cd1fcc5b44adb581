"""Labels from a large language model, at any endpoint that speaks OpenAI's chat completions.

Several posts share a prompt. They travel as JSON, so that no text can end its own string; each answer
names its post by number; and a text that seems to speak to the model is asked about alone, where it
has no neighbours to speak for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from actors.integrations import Environment, Placement
from actors.models.backends import CommonBackend
from actors.models.settings import ModelSettings
from actors.remote.protocol import (
    Call,
    DoubtfulRefusal,
    Limits,
    MalformedError,
    Quota,
    Remote,
    readable,
)
from datasets.boundary.settings import check_numbers
from datasets.boundary.urls import header_key, http_url
from datasets.errors import ConfigError, FatalError, RejectedPost

BASE_URL = "https://api.openai.com/v1"
_PROMPTS = Path(__file__).with_name("prompts")
# About four characters of English are a token. Only the spacing of requests depends on it: the true
# number, which the answer has, is settled afterwards.
_CHARS_PER_TOKEN = 4.0
_ANSWER_TOKENS_PER_POST = 30.0
_SPEAKS_TO_A_MODEL = re.compile(
    r"""
    \b(ignore|disregard|forget|override)\b .{0,40} \b(above|previous|prior|instructions?|rules?|prompts?)\b
    | \b(system|assistant|developer|user)\s*[:>\]] | <\|?/?\w+\|?> | ``` | [\[{]\s*" | \\[nu"]
    | "(number|posts|labels?|text|is_sociopolitical)"\s*:
    | \b(language\ model|chatgpt|gpt-?\d|as\ an\ ai|prompt|jailbreak|instructions?)\b
    | \b(label|classify|mark|rate)\ (this|all|every|each|the|other)\b | \bposts?\ (number\ )?\#?\d
    | \b(answer|respond|reply|output)\ (only|with|true|false|left|right|0|1)\b
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_TOO_LONG = re.compile(
    r"context_length_exceeded|string_above_max_length|context (length|size|window)|too long|too many (input )?tokens"
    r"|exceeds? .{0,30}\b(tokens|length)\b|longer than the maximum",
    re.IGNORECASE,
)
ENVIRONMENT = ("LLM_API_KEY", "LLM_BASE_URL")
# What a request has from us, and `parameters` may not replace: another answer than the one asked for costs as much.
_OURS = ("model", "messages", "response_format", "stream")


@dataclass(frozen=True)
class LlmSettings:
    """What the backend `llm` adds. Prices are for a million tokens; `parameters` go into each request as they are."""

    posts_per_prompt: int = 10
    requests_per_minute: float = 500.0
    tokens_per_minute: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    in_flight: int = 50
    timeout: float = 120.0
    attempts: int = 8

    def __post_init__(self) -> None:
        check_numbers(self, LlmSettings, zero=("price_in", "price_out"))
        for name, value in self.parameters.items():
            if name in _OURS:
                raise ValueError(f"parameters may not have {name}, which each request has from us")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"parameters: {name} = {value} is no number that JSON has")


@dataclass(frozen=True)
class LocalOrLlmSettings(ModelSettings, LlmSettings):
    """For an integration that a local model labels, or an LLM."""

    backend: Literal[CommonBackend, "zero-shot", "llm"] = "embedding-head"

    def __post_init__(self) -> None:
        ModelSettings.__post_init__(self)
        LlmSettings.__post_init__(self)


def local_or_llm(settings: LocalOrLlmSettings) -> Placement:
    return "api" if settings.backend == "llm" else "model"


def chat_remote(
    settings: Any,
    environment: Environment,
    prompt: str,
    properties: Mapping[str, Any],
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda labels: labels,
) -> Remote:
    """The chat endpoint of LLM_BASE_URL, as an integration's settings (LlmSettings and `model`) want it."""
    base_url = http_url(environment.get("LLM_BASE_URL") or BASE_URL, "LLM_BASE_URL")
    key = environment.get("LLM_API_KEY")
    if not key and base_url == BASE_URL:
        raise ConfigError(
            "there is no key for the LLM; set LLM_API_KEY, or LLM_BASE_URL to an endpoint that needs none"
        )
    if not settings.model:
        raise ConfigError(
            'the backend "llm" needs a model, such as model = "gpt-4o-mini", in backfill.toml'
        )
    headers = {"Authorization": f"Bearer {header_key(key, 'LLM_API_KEY')}"} if key else {}
    api = ChatApi(
        settings.model,
        prompt,
        properties,
        base_url,
        headers,
        settings.posts_per_prompt,
        settings.parameters,
        complete,
    )
    quota = Quota(settings.requests_per_minute / 60, settings.tokens_per_minute)
    limits = Limits(settings.in_flight, settings.timeout, settings.attempts)
    known = settings.price_in is not None and settings.price_out is not None
    prices = (settings.price_in, settings.price_out) if known else None
    return Remote(api, quota, limits, base_url, f"{key} {settings.model}", prices)


@dataclass
class ChatApi:
    """An Api. `properties` is the JSON schema of one post's labels; `complete` makes them consistent."""

    model_id: str
    prompt: str
    properties: Mapping[str, Any]
    base_url: str = BASE_URL
    key_header: Mapping[str, str] = field(default_factory=dict)
    posts_per_prompt: int = 10
    parameters: Mapping[str, Any] = field(default_factory=dict)
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda labels: labels

    def __post_init__(self) -> None:
        self._instructions = (_PROMPTS / f"{self.prompt}.txt").read_text(encoding="utf-8")
        self.model = f"{self.model_id} at {urlsplit(self.base_url).hostname}"
        recipe = json.dumps(
            [self._instructions, self.properties, dict(self.parameters)], sort_keys=True
        )
        self.revision = f"{self.model_id} prompt {hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        self.group = self.posts_per_prompt
        self._url = f"{self.base_url.rstrip('/')}/chat/completions"

    def precheck(self, text: str) -> RejectedPost | None:
        return None

    def alone(self, text: str) -> bool:
        return _SPEAKS_TO_A_MODEL.search(text) is not None

    def key(self, text: str) -> str:
        return f"{self._url} {self.revision} {text}"

    def call(self, texts: Sequence[str]) -> Call:
        posts = {
            "posts": [{"number": number, "text": text} for number, text in enumerate(texts, 1)]
        }
        entry: dict[str, Any] = {
            "type": "object",
            "properties": {"number": {"type": "integer"}, **self.properties},
        }
        entry |= {"required": ["number", *self.properties], "additionalProperties": False}
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {"labels": {"type": "array", "items": entry}},
        }
        schema |= {"required": ["labels"], "additionalProperties": False}
        body = {
            "model": self.model_id,
            "messages": [
                {"role": "system", "content": self._instructions},
                {"role": "user", "content": json.dumps(posts, ensure_ascii=False)},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "labels", "strict": True, "schema": schema},
            },
            **self.parameters,
        }
        return Call(self._url, self.key_header, body)

    def tokens(self, texts: Sequence[str]) -> float:
        characters = len(self._instructions) + sum(map(len, texts))
        return characters / _CHARS_PER_TOKEN + _ANSWER_TOKENS_PER_POST * len(texts)

    def raise_for_error(self, status: int, body: bytes) -> None:
        reason = _reason(body)
        if status in (401, 403):
            raise FatalError(f"{self._url} refuses the key (HTTP {status}); set LLM_API_KEY")
        everything = (
            f"{self._url} refuses model {self.model_id} (HTTP {status}: {reason}); check LLM_BASE_URL, the model and "
            "parameters in backfill.toml"
        )
        if status not in (400, 413, 422) or "model_not_found" in _code(body):
            raise FatalError(everything)
        # Endpoints say in many ways that a text is too long, and in the same way that a parameter is.
        too_long = status == 413 or _TOO_LONG.search(f"{_code(body)} {reason}")
        raise DoubtfulRefusal(
            f"{'too long for' if too_long else 'refused by'} {self.model_id}: {reason}", everything
        )

    def parse(self, body: bytes, number: int, count: int) -> dict[str, Any]:
        try:
            message = json.loads(body)["choices"][0]["message"]
            if message.get("refusal"):
                raise RejectedPost(
                    f"refused by {self.model_id}: {readable(str(message['refusal']))}"
                )
            entries = json.loads(message["content"])["labels"]
            by_number = {
                entry["number"]: entry for entry in entries if type(entry["number"]) is int
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise MalformedError(
                f"an answer that is not the JSON asked for ({type(error).__name__})"
            ) from error
        if len(entries) != count or by_number.keys() != set(range(1, count + 1)):
            raise MalformedError(f"{len(entries)} labels for {count} posts")
        entry = by_number[number + 1]
        labels = {name: entry.get(name) for name in self.properties}
        if not all(_fits(labels[name], schema) for name, schema in self.properties.items()):
            raise MalformedError("a label that the schema does not allow")
        return self.complete(labels)

    def usage(self, body: bytes) -> Counter[str]:
        try:
            usage = json.loads(body)["usage"]
            return Counter(
                tokens_in=int(usage["prompt_tokens"]), tokens_out=int(usage["completion_tokens"])
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return Counter()


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return (
            type(value) in {type(allowed) for allowed in schema["enum"]} and value in schema["enum"]
        )
    return isinstance(value, {"boolean": bool, "string": str}[schema["type"]])


def _code(body: bytes) -> str:
    """Such as `content_filter`, `context_length_exceeded`, `model_not_found`."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _reason(body: bytes) -> str:
    try:
        return readable(str(json.loads(body)["error"]["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return readable(body[:4096].decode("utf-8", "replace"))
