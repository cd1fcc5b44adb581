from __future__ import annotations

import io
import threading

import pytest

from backfill import progress
from backfill.progress import IntegrationProgress, Progress


class Lines(io.StringIO):
    """A stream that tells when a line has come, and may be broken at first."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures, self.seen = failures, threading.Event()

    def write(self, text: str) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError("broken")
        done = super().write(text)
        if "nothing labelled" in self.getvalue() and text.endswith("\n"):
            self.seen.set()
        return done


@pytest.mark.parametrize("failures", [0, 3])
def test_progress_goes_on_where_a_line_or_its_explanation_fails(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.001)
    monkeypatch.setattr(progress, "_STALL_SECONDS", 0.0)
    stream = Lines(failures)

    def why(name: str) -> str:
        raise RuntimeError("Ray's state cannot be asked")

    with Progress(stream, {"x": IntegrationProgress(eligible=5)}) as shown:
        shown.report_stalls(why)
        assert stream.seen.wait(20)
        assert shown._thread.is_alive()
    assert (
        "x: nothing labelled for 0 s: why is not known (RuntimeError: Ray's state cannot be asked)"
        in stream.getvalue()
    )
