"""Texts through a transformer without waste: tokenised once, sorted by length, batched by tokens, hardly padded.

A post has 25 tokens in the mean. Padded to 512 it costs twenty times what it needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# Padded tokens of one forward pass: enough to fill the device, little enough to fit with any model
# that runs there. Out of memory halves it.
_GPU_TOKENS, _CPU_TOKENS = 16_384, 2_048
# Rows of one forward pass, whatever their length.
_MAX_ROWS = 1024

# A tokenizer that is changed in one thread ("Already borrowed") while it is used in another raises.
_TOKENISING = threading.Lock()

Floats = npt.NDArray[np.float32]
Tokens = list[list[int]]
# Padded ids and mask, both [rows, length], to floats [rows, any].
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Device:
    """Where and how precisely a model runs."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"


def choose_device(dtype: str) -> Device:
    """The GPU that Ray gave this process, else the CPU; bfloat16 where the hardware computes in it, unless told."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if dtype == "auto":
        able = (
            torch.cuda.is_bf16_supported()
            if gpu
            else bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )  # noqa: SLF001 - the only way to ask
        return Device(device, torch.bfloat16 if able else torch.float32)
    return Device(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def tokenise(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, pairs: Sequence[str] | None = None
) -> Tokens:
    """Token ids with the special ones, truncated, not padded."""
    if not texts:
        return []
    arguments = (list(texts),) if pairs is None else (list(texts), list(pairs))
    truncation = True if pairs is None else "only_first"
    with _TOKENISING:
        encoded = tokenizer(
            *arguments,
            truncation=truncation,
            max_length=max_tokens,
            padding=False,
            return_attention_mask=False,
        )
    return list(encoded["input_ids"])


class Batcher:
    """Runs `forward` over tokenised texts, in the order in which that costs least."""

    def __init__(
        self, forward: Forward, device: Device, pad_id: int, token_budget: int = 0
    ) -> None:
        self._forward, self._device, self._pad_id = forward, device, pad_id
        default = _GPU_TOKENS if device.device.type == "cuda" else _CPU_TOKENS
        self.budget = token_budget or default
        # One block is in the forward pass while the next is tokenised.
        self._lock = threading.Lock()

    def run(self, tokens: Tokens) -> Floats:
        """Rows in the order of `tokens`. Out of memory, fewer at a time; raises where one alone is too many."""
        if not tokens:
            return np.zeros((0, 0), np.float32)
        # The longest first: what does not fit shows at once.
        order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
        passes: list[torch.Tensor] = []
        with self._lock, torch.inference_mode():
            start, budget = 0, self.budget
            while start < len(order):
                rows = max(1, min(_MAX_ROWS, self.budget // len(tokens[order[start]])))
                try:
                    passes.append(
                        self._pass([tokens[index] for index in order[start : start + rows]])
                    )
                    start += rows
                except RuntimeError as error:
                    if not _is_out_of_memory(error):
                        raise
                    if rows == 1:
                        self.budget = budget  # that text's fault, and nobody else's
                        raise
                    self.budget //= 2
                    if self._device.device.type == "cuda":
                        torch.cuda.empty_cache()
            # One wait for the device at the end: until then it always has the next pass to do.
            found: Floats = torch.cat(passes).float().cpu().numpy()
        restored = np.empty_like(found)
        restored[order] = found
        return restored

    def _pass(self, batch: Tokens) -> torch.Tensor:
        ids, mask = pad(batch, self._pad_id, max(map(len, batch)))
        device = self._device.device
        return self._forward(ids.to(device, non_blocking=True), mask.to(device, non_blocking=True))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def pad(batch: Tokens, pad_id: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both int64 [rows, length]."""
    lengths = np.array([len(row) for row in batch])
    mask = np.arange(length)[None, :] < lengths[:, None]
    ids = np.full((len(batch), length), pad_id, np.int64)
    ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in batch])
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def set_threads(count: int) -> None:
    """For this process. More threads than its share of the processors would wait for each other."""
    torch.set_num_threads(count)
