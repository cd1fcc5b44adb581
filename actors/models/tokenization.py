"""Texts to token ids, with Hugging Face tokenizers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

Tokens = list[list[int]]

# A tokenizer raises "Already borrowed" if one thread reconfigures it while
# another uses it.
_LOCK = threading.Lock()


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int,
    pairs: Sequence[str] | None = None,
) -> Tokens:
    """Token ids of each text, with special tokens, truncated to `max_tokens` and not padded.

    `pairs` are second sentences, one per text. Only the text is truncated
    then.
    """
    if not texts:
        return []

    arguments = (list(texts),) if pairs is None else (list(texts), list(pairs))
    with _LOCK:
        encoded = tokenizer(
            *arguments,
            truncation=True if pairs is None else "only_first",
            max_length=max_tokens,
            padding=False,
            return_attention_mask=False,
        )
    return list(encoded["input_ids"])


def pad_token_id(tokenizer: Any) -> int:
    """The id that fills up a batch; the end-of-sequence token's for models without a pad token."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.eos_token_id)
