"""Batches of similar length, so that a model computes hardly any padding.

A post has 25 tokens on average: padded to 512, it costs twenty times what
it needs. Texts are therefore sorted by length and batched by a budget of
tokens.

Nothing here depends on an inference library. A back end passes its own as
an `InferenceRuntime`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from actors.models.arrays import Floats, Integers
from actors.models.tokenization import Tokens

# The most rows of one forward pass, whatever their length.
_MAX_ROWS = 1024


class InferenceRuntime(Protocol):
    """How a `Batcher` runs a network.

    The defaults suit a library that computes on the CPU and returns NumPy
    arrays, such as ONNX Runtime. `token_budget` is the default number of
    padded tokens of one forward pass: enough to keep the device busy, and
    small enough for any model that is likely to run there.
    """

    token_budget: int = 2_048

    def forward(self, ids: Integers, mask: Integers) -> Any:
        """One forward pass over padded `ids` and their `mask`, both [rows, length].

        Returns [rows, any]. It may return before the device is done.
        """

    def gather(self, passes: Sequence[Any]) -> Floats:
        """Waits for the results of `forward` and concatenates them to float32 [rows, any]."""
        return np.asarray(np.concatenate(passes), np.float32)

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether `forward` failed because its batch was too large for the device."""
        return isinstance(error, MemoryError)

    def release_memory(self) -> None:
        """Called after a forward pass ran out of memory, before a smaller batch is tried."""


class Batcher:
    """Runs tokenized texts through a network in batches of similar length."""

    def __init__(
        self,
        runtime: InferenceRuntime,
        pad_id: int,
        token_budget: int = 0,
    ) -> None:
        """A `token_budget` of 0 means the runtime's default."""
        self.runtime = runtime
        self.budget = token_budget or runtime.token_budget
        self._pad_id = pad_id
        # Serializes forward passes, while other threads tokenize their next
        # block.
        self._lock = threading.Lock()

    def run(self, tokens: Tokens) -> Floats:
        """Returns float32 [texts, any], in the order of `tokens`.

        When a batch does not fit into memory, the budget is halved. Raises
        the runtime's out-of-memory error if a single text does not fit.
        """
        if not tokens:
            return np.zeros((0, 0), np.float32)

        # Longest first, so that what does not fit into memory shows at
        # once.
        order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
        with self._lock:
            passes = self._run_sorted([tokens[index] for index in order])
            # The only synchronization with the device: until here it always
            # has a next batch.
            found = self.runtime.gather(passes)

        restored = np.empty_like(found)
        restored[order] = found
        return restored

    def _run_sorted(self, tokens: Tokens) -> list[Any]:
        passes: list[Any] = []
        initial_budget = self.budget
        start = 0
        while start < len(tokens):
            rows = max(1, min(_MAX_ROWS, self.budget // len(tokens[start])))
            batch = tokens[start : start + rows]
            try:
                ids, mask = pad(batch, self._pad_id, len(batch[0]))
                passes.append(self.runtime.forward(ids, mask))
                start += rows
            except Exception as error:
                if not self.runtime.is_out_of_memory(error):
                    raise
                if rows == 1:
                    # This text alone is too long, so the budget was not too
                    # large for the others.
                    self.budget = initial_budget
                    raise
                self.budget //= 2
                self.runtime.release_memory()
        return passes


def pad(batch: Tokens, pad_id: int, length: int) -> tuple[Integers, Integers]:
    """Ids padded to `length`, and the mask that is 1 on real tokens, both int64 [rows, length]."""
    lengths = np.array([len(row) for row in batch])
    mask = np.arange(length)[None, :] < lengths[:, None]

    ids = np.full((len(batch), length), pad_id, np.int64)
    ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in batch])
    return ids, mask.astype(np.int64)
