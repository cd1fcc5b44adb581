"""PyTorch as an `InferenceRuntime`: the choice of a device, and forward passes on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from actors.models.arrays import Floats, Integers
from actors.models.batching import InferenceRuntime

if TYPE_CHECKING:
    from actors.models.settings import ModelSettings

# Default token budgets of a forward pass.
_GPU_TOKENS = 16_384
_CPU_TOKENS = 2_048

# Ids and mask, both int64 [rows, length] on the device, to floats [rows,
# any] on the device.
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Device:
    """Where a model runs, and in which precision."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"


def set_up_torch(settings: ModelSettings, dtype: str | None = None) -> Device:
    """Sets the number of threads of this process, and chooses its device.

    `dtype` replaces the setting.
    """
    # Actors that use more threads than their share of the processors slow
    # each other down.
    torch.set_num_threads(settings.threads)
    return choose_device(dtype or settings.dtype)


def choose_device(dtype: str) -> Device:
    """The GPU that Ray assigned to this process, or else the CPU.

    `auto` is bfloat16 if the hardware computes in it, or else float32.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if dtype == "auto":
        dtype = "bfloat16" if _has_bfloat16(gpu=gpu) else "float32"
    return Device(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def _has_bfloat16(*, gpu: bool) -> bool:
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - no public equivalent


class TorchRuntime(InferenceRuntime):
    """Runs `network`, a function of tensors on the device."""

    def __init__(self, network: Forward, device: Device) -> None:
        self.network = network
        self._device = device.device
        self._on_gpu = device.device.type == "cuda"
        self.token_budget = _GPU_TOKENS if self._on_gpu else _CPU_TOKENS

    def forward(self, ids: Integers, mask: Integers) -> torch.Tensor:
        with torch.inference_mode():
            return self.network(self._to_device(ids), self._to_device(mask))

    def _to_device(self, array: Integers) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def gather(self, passes: Sequence[torch.Tensor]) -> Floats:
        with torch.inference_mode():
            found: Floats = torch.cat(list(passes)).float().cpu().numpy()
        return found

    def is_out_of_memory(self, error: Exception) -> bool:
        # On the CPU, PyTorch raises a plain RuntimeError that names its
        # allocator.
        return isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
        )

    def release_memory(self) -> None:
        if self._on_gpu:
            torch.cuda.empty_cache()


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, size] from [rows, length, size]: the mean over the positions of `mask`."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)
