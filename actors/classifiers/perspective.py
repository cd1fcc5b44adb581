"""Google's Perspective API, or any server with its protocol (commentanalyzer v1alpha1)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from actors.integrations import Environment, Integration, Placement
from actors.models.backends import CommonBackend
from actors.models.contract import LocalModel
from actors.models.settings import ModelSettings
from actors.remote.protocol import (
    AskOtherwise,
    Call,
    Limits,
    MalformedError,
    Quota,
    Remote,
    readable,
)
from datasets.boundary.settings import check_numbers
from datasets.boundary.urls import header_key, http_url
from datasets.errors import (
    ConfigError,
    FatalError,
    RejectedPost,
    RetryableError,
)

ENDPOINT = "https://commentanalyzer.googleapis.com"
# In bytes of UTF-8, from the API's answer COMMENT_TOO_LONG. Older documents
# say 3,000.
MAX_BYTES = 20_480

_PRODUCTION = (
    "TOXICITY",
    "SEVERE_TOXICITY",
    "IDENTITY_ATTACK",
    "INSULT",
    "PROFANITY",
    "THREAT",
)
_EXPERIMENTAL = (
    "AFFINITY",
    "COMPASSION",
    "CURIOSITY",
    "NUANCE",
    "PERSONAL_STORY",
    "REASONING",
    "RESPECT",
    "ALIENATION",
    "FEARMONGERING",
    "GENERALIZATION",
    "MORAL_OUTRAGE",
    "SCAPEGOATING",
)
_OTHER = ("SEXUALLY_EXPLICIT", "FLIRTATION", "SPAM")
_RENAMED = {
    "TOXICITY": "prob_toxic",
    "SEVERE_TOXICITY": "prob_severe_toxic",
}

# Attribute → column.
ATTRIBUTES = {
    **{name: _RENAMED.get(name, f"prob_{name.lower()}") for name in (*_PRODUCTION, *_OTHER)},
    **{f"{name}_EXPERIMENTAL": f"prob_{name.lower()}" for name in _EXPERIMENTAL},
}
# The API replaced its attribute "constructive" by this one.
_CONSTRUCTIVE = "REASONING_EXPERIMENTAL"
COLUMNS = (*ATTRIBUTES.values(), "prob_constructive")

# The attributes that a local model may provide. The other columns are null
# then.
OUTPUTS = (
    "toxic",
    "severe_toxic",
    "identity_attack",
    "insult",
    "profanity",
    "threat",
    "sexually_explicit",
)

_KEY = "PERSPECTIVE_API_KEY"
_FALLBACK_KEY = "GOOGLE_API_KEY"
_ENDPOINT = "PERSPECTIVE_API_ENDPOINT"
_QPS = "PERSPECTIVE_QPS"

_UNKNOWN_ATTRIBUTE = re.compile(r"Unknown requested attribute:? ?'?([A-Z_]+)")


@dataclass(frozen=True)
class Settings(ModelSettings):
    """The API by default, or else a local model of toxicity.

    `qps` is the quota in queries per second. Its default is the environment
    variable PERSPECTIVE_QPS, or 1. `timeout` is in seconds. A local model is
    named in `label_model`.
    """

    backend: Literal["api", CommonBackend] = "api"
    qps: float | None = None
    in_flight: int = 100
    timeout: float = 30.0
    attempts: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, zero=("token_budget",))


def placement(settings: Settings) -> Placement:
    """A remote API by default, or else a local model."""
    return "api" if settings.backend == "api" else "model"


def remote(settings: Settings, environment: Environment) -> Remote:
    """The API at the endpoint and with the key of the environment.

    Raises ConfigError.
    """
    key_name = _KEY if environment.get(_KEY) else _FALLBACK_KEY
    key = environment.get(key_name)
    endpoint = http_url(environment.get(_ENDPOINT) or ENDPOINT, _ENDPOINT)
    if not key and endpoint == ENDPOINT:
        raise ConfigError(f"there is no key for the Perspective API; set {_KEY}")

    qps = settings.qps or _quota(environment.get(_QPS) or "1")
    headers = {"X-Goog-Api-Key": header_key(key, key_name)} if key else {}
    limits = Limits(settings.in_flight, settings.timeout, settings.attempts)
    return Remote(
        Perspective(endpoint, headers),
        Quota(qps),
        limits,
        endpoint,
        key or "",
    )


def _quota(text: str) -> float:
    try:
        return float(Settings(qps=float(text)).qps or 0)
    except ValueError as error:
        raise ConfigError(
            f"{_QPS} is {text!r}, not a number above 0; set it to your quota in queries a second"
        ) from error


def decide(scores: Mapping[str, float]) -> dict[str, float | None]:
    """A local model's probabilities; null for all other attributes."""
    found: dict[str, float | None] = dict.fromkeys(COLUMNS)
    return found | {f"prob_{name}": score for name, score in scores.items()}


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Reads `toxic`, `insult` and so on, or `prob_toxic`, `prob_insult` and so on, from 0 to 1."""
    values = {name: row.get(name, row.get(f"prob_{name}")) for name in OUTPUTS}
    return {name: None if value is None else float(value) for name, value in values.items()}


@dataclass
class Perspective:
    """The protocol of the API, with one post per request. Implements `Api`."""

    endpoint: str
    key_header: Mapping[str, str]

    def __post_init__(self) -> None:
        self.model = f"perspective at {urlsplit(self.endpoint).hostname}"
        self.revision = "v1alpha1"
        self.group = 1
        self._url = f"{self.endpoint.rstrip('/')}/v1alpha1/comments:analyze"
        self._attributes: dict[str, dict[str, str]] = {name: {} for name in ATTRIBUTES}

    def precheck(self, text: str) -> RejectedPost | None:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size <= MAX_BYTES:
            return None
        return RejectedPost(f"COMMENT_TOO_LONG: {size} bytes, {MAX_BYTES} are allowed")

    def alone(self, text: str) -> bool:
        return True

    def key(self, text: str) -> str:
        return f"{self._url} {text}"

    def call(self, texts: Sequence[str]) -> Call:
        body = {
            "comment": {"text": texts[0], "type": "PLAIN_TEXT"},
            "requestedAttributes": self._attributes,
            "languages": ["en"],
            "doNotStore": True,
        }
        return Call(self._url, self.key_header, body)

    def tokens(self, texts: Sequence[str]) -> float:
        return 0.0

    def raise_for_error(self, status: int, body: bytes) -> None:
        reason = _reason(body)
        if status in (401, 403) or "API key not valid" in reason or "API_KEY_INVALID" in reason:
            raise FatalError(
                f"Perspective refuses the key (HTTP {status}); set {_KEY} to a key whose project "
                "has the Comment Analyzer API enabled"
            )

        unknown = _UNKNOWN_ATTRIBUTE.search(reason)
        if unknown and len(self._attributes) > 1:
            # A server may lack some attributes. They are not requested
            # again, and stay null.
            removed = self._attributes.pop(unknown[1], None)
            if removed is None:
                # Another request has removed it already, or it was never
                # requested.
                raise RetryableError(
                    reason,
                    retry_after=0.0,
                    kind="unknown_attribute",
                )
            raise AskOtherwise(reason, kind="unknown_attribute")

        if status != 400:
            raise FatalError(
                f"{self._url} answers HTTP {status}, which is not Perspective; check {_ENDPOINT}"
            )
        raise RejectedPost(reason)

    def parse(self, body: bytes, number: int, count: int) -> dict[str, float | None]:
        scores = _summary_scores(body)
        labels = {column: scores.get(name) for name, column in ATTRIBUTES.items()}
        return {
            **labels,
            "prob_constructive": scores.get(_CONSTRUCTIVE),
        }

    def usage(self, body: bytes) -> Counter[str]:
        return Counter()


def _summary_scores(body: bytes) -> dict[str, float]:
    """Scores by attribute.

    Raises MalformedError if there are none, or one is out of range.
    """
    try:
        scores = json.loads(body)["attributeScores"]
        values = {
            name: scores[name]["summaryScore"]["value"] for name in scores if name in ATTRIBUTES
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(
            f"an answer without attributeScores ({type(error).__name__})"
        ) from error

    if not values:
        raise MalformedError("an answer without any of the attributes that were asked for")
    for name, value in values.items():
        # NaN is not in the range either.
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise MalformedError(f"a score of {name} that is no number from 0 to 1")
    return {name: float(value) for name, value in values.items()}


def _reason(body: bytes) -> str:
    """`errorType: reason: message` of an error answer, as far as it has them."""
    try:
        error = json.loads(body)["error"]
        details = error.get("details", [])
        kinds = [str(detail["errorType"]) for detail in details if "errorType" in detail]
        reasons = [str(detail["reason"]) for detail in details if "reason" in detail]
        parts = [*kinds, *reasons, str(error.get("message", ""))]
        return readable(": ".join(parts).strip(": "), 300)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return readable(body[:4096].decode("utf-8", "replace"))


INTEGRATION = Integration(
    name="ml_inference_perspective_api",
    alias="p",
    columns=dict.fromkeys(COLUMNS, "float64"),
    settings=Settings,
    placement=placement,
    local_model=LocalModel(OUTPUTS, OUTPUTS[:1], decide),
    remote=remote,
    environment=(_KEY, _FALLBACK_KEY, _ENDPOINT, _QPS),
    targets=targets,
)
