"""Loading Hugging Face models and tokenizers, from a folder or from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import cached_file

from actors.models.arrays import Floats
from actors.models.batching import Batcher
from actors.models.hashing import weights_sha256
from actors.models.settings import ModelSettings
from actors.models.tokenization import pad_token_id, tokenize
from actors.models.torch_runtime import Device, Forward, TorchRuntime
from datasets.errors import ConfigError


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer, and a network in evaluation mode on its device.

    `revision` is the hub's commit; for a folder, the start of the hash of
    its weights.
    """

    tokenizer: Any
    network: Any
    revision: str


def load_pretrained(
    auto_class: str, source: str, revision: str | None, device: Device
) -> Pretrained:
    """Loads `source`, a folder or a hub id, with a class of transformers such as `AutoModel`.

    Raises ConfigError if the model or its tokenizer cannot be loaded.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        # Resolve a branch or tag once, so that all files come from the same
        # commit.
        commit = None if Path(source).is_dir() else _resolve_commit(source, revision)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=commit)
        network = getattr(transformers, auto_class).from_pretrained(
            source, revision=commit, dtype=device.dtype
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _cannot_load(source, revision, error) from error

    return Pretrained(
        tokenizer,
        network.eval().to(device.device),
        commit or (weights_sha256(source) or "unknown")[:12],
    )


def _resolve_commit(source: str, revision: str | None) -> str:
    """The hub's cache keeps the files of a commit in a folder that is named after it."""
    return Path(cached_file(source, "config.json", revision=revision)).parent.name


def _cannot_load(source: str, revision: str | None, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__

    where = source
    if Path(source).is_dir():
        where = f"the folder {source}"
    elif revision:
        where = f"{source} at {revision}"

    return ConfigError(
        f"the model {where} cannot be loaded ({reason}); check model and revision in "
        "backfill.toml, and that the hub can be reached or the folder is complete"
    )


class TextRunner:
    """Tokenizes texts and runs them through `forward` in batches of similar length."""

    def __init__(
        self,
        tokenizer: Any,
        forward: Forward,
        device: Device,
        settings: ModelSettings,
        max_tokens: int | None = None,
    ) -> None:
        """`max_tokens` replaces the setting."""
        self.tokenizer = tokenizer
        self.runtime = TorchRuntime(forward, device)
        self._batcher = Batcher(self.runtime, pad_token_id(tokenizer), settings.token_budget)
        self._max_tokens = max_tokens or settings.max_tokens

    def run(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Floats:
        """Returns what `forward` computes for each text, or for each text with its pair."""
        return self._batcher.run(tokenize(self.tokenizer, texts, self._max_tokens, pairs))
