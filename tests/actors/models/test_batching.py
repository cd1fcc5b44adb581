"""Batches of similar length, with a forward pass that records what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from actors.crash_journal import CrashJournal
from actors.fault_isolation import classify_isolated
from actors.models.arrays import Integers
from actors.models.batching import Batcher, InferenceRuntime, pad
from actors.models.contract import Backend, LocalModel
from actors.models.local_classifier import LocalClassifier
from actors.models.torch_runtime import Device, TorchRuntime
from datasets.errors import RejectedPost


class Recorder:
    """Records its batches, and fails on more than `room` padded tokens."""

    def __init__(self, room: int = 10**9) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.lengths: list[int] = []
        self.room = room

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.numel() > self.room:
            raise torch.OutOfMemoryError(f"no room for {ids.numel()} tokens")
        self.shapes.append((ids.shape[0], ids.shape[1]))
        self.lengths += mask.sum(dim=1).tolist()
        return torch.stack([(ids * mask).sum(dim=1), mask.sum(dim=1)], dim=1).float()


CPU = Device(torch.device("cpu"), torch.float32)


def token_lists(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 50, rng.integers(3, 60)).tolist() for _ in range(count)]


def sums(tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[float(sum(row)), float(len(row))] for row in tokens]


def test_batches_keep_to_the_budget_and_hardly_pad() -> None:
    forward, tokens = Recorder(), token_lists(2000)
    assert Batcher(TorchRuntime(forward, CPU), 0, 512).run(tokens).tolist() == sums(tokens)
    assert max(rows * length for rows, length in forward.shapes) <= 512
    assert forward.lengths == sorted(forward.lengths, reverse=True)
    padded = sum(rows * length for rows, length in forward.shapes)
    assert padded <= 1.05 * sum(map(len, tokens))


def test_a_text_beyond_the_budget_goes_alone() -> None:
    forward = Recorder()
    assert Batcher(TorchRuntime(forward, CPU), 0, 16).run([[7] * 40, [7] * 5]).tolist() == [
        [280, 40],
        [35, 5],
    ]
    assert forward.shapes == [(1, 40), (1, 5)]


def test_padding_is_masked_and_uses_the_models_own_id() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 99, 4)
    assert ids.tolist() == [[5, 6, 7, 99], [8, 99, 99, 99]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_out_of_memory_halves_the_budget_and_loses_nothing() -> None:
    forward, tokens = Recorder(room=300), token_lists(500)
    batcher = Batcher(TorchRuntime(forward, CPU), 0, 4096)
    assert batcher.run(tokens).tolist() == sums(tokens)
    assert batcher.budget == 256
    assert len(forward.lengths) == 500


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_post_that_does_not_fit_alone_is_rejected_with_its_reason_and_costs_the_others_nothing(
    error: RuntimeError,
) -> None:
    class Limited(Recorder):
        def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if ids.shape[1] > 200:
                raise error
            return super().__call__(ids, mask)

    batcher = Batcher(TorchRuntime(Limited(), CPU), 0, 4096)

    class Model(Backend):
        model, revision = "m", "r"

        def __init__(self) -> None:
            pass

        @classmethod
        def check(cls, *arguments: Any) -> None:
            pass

        def scores(self, texts: Sequence[str]) -> Any:
            return batcher.run([[len(text)] * len(text) for text in texts])

    texts = ["x" * n for n in (5, 9, 300, 17, 3)] * 3
    wrapped = LocalClassifier(Model(), LocalModel(("sum", "count"), (), dict))
    with CrashJournal("oom") as journal:
        found = classify_isolated(wrapped, texts, journal)
    for text, outcome in zip(texts, found, strict=True):
        if len(text) == 300:
            assert isinstance(outcome, RejectedPost)
            assert str(error) in str(outcome)
        else:
            assert outcome == {
                "sum": float(len(text) ** 2),
                "count": float(len(text)),
            }
    assert batcher.budget == 4096, "one post that is too long makes no batch of others smaller"


def test_another_error_of_a_forward_pass_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Batcher(TorchRuntime(broken, CPU), 0, 4096).run([[1], [2]])


class NumpyRuntime(InferenceRuntime):
    """A runtime without torch, that keeps all defaults."""

    def __init__(self, room: int) -> None:
        self.room = room

    def forward(self, ids: Integers, mask: Integers) -> Any:
        if ids.size > self.room:
            raise MemoryError(f"no room for {ids.size} tokens")
        return np.stack([(ids * mask).sum(axis=1), mask.sum(axis=1)], axis=1)


def test_a_runtime_needs_no_torch() -> None:
    tokens = token_lists(500)
    batcher = Batcher(NumpyRuntime(room=300), 0)
    assert batcher.budget == 2048
    found = batcher.run(tokens)
    assert (found.dtype, found.tolist()) == (np.float32, sums(tokens))
    assert batcher.budget == 256
