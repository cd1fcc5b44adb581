"""Why a repository is not taken."""

from __future__ import annotations

from datasets.errors import BackfillError


class RejectedRepo(BackfillError):
    """This repository cannot be taken: keep `status` and the reason in its row, go on with the others."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class BadSignature(RejectedRepo):
    """The signature is not of the key at hand. A key that was cached may have been rotated since."""
