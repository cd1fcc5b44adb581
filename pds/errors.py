"""Why a repository is rejected."""

from __future__ import annotations

from datasets.errors import BackfillError


class RejectedRepo(BackfillError):
    """This repository cannot be fetched: store `status` and `reason`, continue with the others."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class BadSignature(RejectedRepo):
    """The known key did not make the signature. A cached key may have been rotated since."""
