"""Google's Perspective API, or any server that speaks its protocol (commentanalyzer v1alpha1)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from actors.integrations import Classifier, Environment, Integration, Placement
from actors.models.settings import ModelSettings, check_local, local_classifier
from actors.remote import AskOtherwise, Call, Limits, MalformedError, Quota, Remote, readable
from datasets.errors import ConfigError, FatalError, RejectedPost, RetryableError
from datasets.settings import check_numbers
from datasets.urls import header_key, http_url

ENDPOINT = "https://commentanalyzer.googleapis.com"
# Bytes of UTF-8, from the API's answer COMMENT_TOO_LONG. Older documents say 3,000.
MAX_BYTES = 20_480
_PRODUCTION = ("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT")
_EXPERIMENTAL = (
    "AFFINITY", "COMPASSION", "CURIOSITY", "NUANCE", "PERSONAL_STORY", "REASONING", "RESPECT", "ALIENATION",
    "FEARMONGERING", "GENERALIZATION", "MORAL_OUTRAGE", "SCAPEGOATING",
)  # fmt: skip
_OTHER = ("SEXUALLY_EXPLICIT", "FLIRTATION", "SPAM")
_RENAMED = {"TOXICITY": "prob_toxic", "SEVERE_TOXICITY": "prob_severe_toxic"}
# Attribute → column.
ATTRIBUTES = {
    **{name: _RENAMED.get(name, f"prob_{name.lower()}") for name in (*_PRODUCTION, *_OTHER)},
    **{f"{name}_EXPERIMENTAL": f"prob_{name.lower()}" for name in _EXPERIMENTAL},
}
# The constructive attribute was replaced by REASONING.
_CONSTRUCTIVE = "REASONING_EXPERIMENTAL"
_UNKNOWN = re.compile(r"Unknown requested attribute:? ?'?([A-Z_]+)")


# What a local model can stand in for; the other columns stay null then.
OUTPUTS = ("toxic", "severe_toxic", "identity_attack", "insult", "profanity", "threat", "sexually_explicit")


@dataclass(frozen=True)
class Settings(ModelSettings):
    """`qps` is the quota in queries a second; unset, PERSPECTIVE_QPS, else Google's default of 1.

    Another backend than `api` is a local model of toxicity. Its rows say so in `label_model`.
    """

    backend: Literal["api", "embedding-head", "transformer"] = "api"
    qps: float | None = None
    in_flight: int = 100
    timeout: float = 30.0
    attempts: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, zero=("token_budget",))


def remote(settings: Settings, environment: Environment) -> Remote:
    name = "PERSPECTIVE_API_KEY" if environment.get("PERSPECTIVE_API_KEY") else "GOOGLE_API_KEY"
    key = environment.get(name)
    endpoint = http_url(environment.get("PERSPECTIVE_API_ENDPOINT") or ENDPOINT, "PERSPECTIVE_API_ENDPOINT")
    if not key and endpoint == ENDPOINT:
        raise ConfigError("there is no key for the Perspective API; set PERSPECTIVE_API_KEY")
    qps = settings.qps or _quota(environment.get("PERSPECTIVE_QPS") or "1")
    headers = {"X-Goog-Api-Key": header_key(key, name)} if key else {}
    limits = Limits(settings.in_flight, settings.timeout, settings.attempts)
    return Remote(Perspective(endpoint, headers), Quota(qps), limits, endpoint, key or "")


def _quota(text: str) -> float:
    try:
        return float(Settings(qps=float(text)).qps or 0)
    except ValueError as error:
        raise ConfigError(
            f"PERSPECTIVE_QPS is {text!r}, not a number above 0; set it to your quota in queries a second"
        ) from error


def placement(settings: Settings) -> Placement:
    return "api" if settings.backend == "api" else "model"


def decide(scores: Mapping[str, float]) -> dict[str, float | None]:
    columns = dict.fromkeys([*ATTRIBUTES.values(), "prob_constructive"])
    return {**columns, **{f"prob_{name}": value for name, value in scores.items()}}


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """From the columns `toxic`, `insult` … or `prob_toxic`, `prob_insult` …, each from 0 to 1."""
    values = {name: row.get(name, row.get(f"prob_{name}")) for name in OUTPUTS}
    return {name: None if value is None else float(value) for name, value in values.items()}


def load(settings: Settings) -> Classifier:
    return local_classifier(settings.backend, settings, INTEGRATION.name, OUTPUTS, OUTPUTS[:1], decide)


def check(settings: Settings) -> None:
    if settings.backend != "api":
        check_local(settings.backend, settings, INTEGRATION.name)


@dataclass
class Perspective:
    """An Api with one post a request."""

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
        return RejectedPost(f"COMMENT_TOO_LONG: {size} bytes, {MAX_BYTES} are allowed") if size > MAX_BYTES else None

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

    def judge(self, status: int, body: bytes) -> None:
        reason = _reason(body)
        if status in (401, 403) or "API key not valid" in reason or "API_KEY_INVALID" in reason:
            raise FatalError(
                f"Perspective refuses the key (HTTP {status}); set PERSPECTIVE_API_KEY to a key whose project has the "
                "Comment Analyzer API enabled"
            )
        unknown = _UNKNOWN.search(reason)
        if unknown and len(self._attributes) > 1:
            # A server need not offer all; what it does not offer stays null.
            if (
                self._attributes.pop(unknown[1], None) is None
            ):  # another request has met it already, or it was not asked
                raise RetryableError(reason, retry_after=0.0, kind="unknown_attribute")
            raise AskOtherwise(reason, kind="unknown_attribute")
        if status != 400:
            raise FatalError(
                f"{self._url} answers HTTP {status}, which is not Perspective; check PERSPECTIVE_API_ENDPOINT"
            )
        raise RejectedPost(reason)

    def parse(self, body: bytes, number: int, count: int) -> dict[str, float | None]:
        try:
            scores = json.loads(body)["attributeScores"]
            values = {name: scores[name]["summaryScore"]["value"] for name in scores if name in ATTRIBUTES}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MalformedError(f"an answer without attributeScores ({type(error).__name__})") from error
        if not values:
            raise MalformedError("an answer without any of the attributes that were asked for")
        for name, value in values.items():
            if type(value) not in (int, float) or not 0 <= value <= 1:  # nor is NaN
                raise MalformedError(f"a score of {name} that is no number from 0 to 1")
        scored = {name: float(value) for name, value in values.items()}
        labels = {column: scored.get(name) for name, column in ATTRIBUTES.items()}
        return {**labels, "prob_constructive": scored.get(_CONSTRUCTIVE)}

    def usage(self, body: bytes) -> Counter[str]:
        return Counter()


def _reason(body: bytes) -> str:
    """`errorType: message` of an error, as far as it has them."""
    try:
        error = json.loads(body)["error"]
        kinds = [str(detail["errorType"]) for detail in error.get("details", []) if "errorType" in detail]
        reasons = [str(detail["reason"]) for detail in error.get("details", []) if "reason" in detail]
        return readable(": ".join([*kinds, *reasons, str(error.get("message", ""))]).strip(": "), 300)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return readable(body[:4096].decode("utf-8", "replace"))


INTEGRATION = Integration(
    name="ml_inference_perspective_api",
    alias="p",
    columns=dict.fromkeys([*ATTRIBUTES.values(), "prob_constructive"], "float64"),
    load=load,
    check=check,
    settings=Settings,
    placement=placement,
    remote=remote,
    environment=("PERSPECTIVE_API_KEY", "GOOGLE_API_KEY", "PERSPECTIVE_API_ENDPOINT", "PERSPECTIVE_QPS"),
    outputs=OUTPUTS,
    targets=targets,
)
