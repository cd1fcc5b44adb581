"""Errors, named by the reaction that they ask for.

    BackfillError
    ├── ConfigError      the user must set or mend something; exit 1, one sentence
    │   ├── BadFile      one file of the lake cannot be used: stop, or go on without it
    │   └── FileGone     a file of the lake that was there is not: another process has moved what it held
    ├── RetryableError   passing: try again, after `retry_after` seconds if the other side said so
    ├── RejectedPost     this post cannot be labelled: keep it as a row with its reason, go on
    └── FatalError       this integration cannot go on; the others do

They cross process borders, so every one of them pickles.
"""

from __future__ import annotations

import errno


class BackfillError(Exception):
    """Base of every error that we raise on purpose. Its text is one sentence for the user."""


class ConfigError(BackfillError):
    """Something that the user must set or mend before the command can go on."""


class BadFile(ConfigError):
    """A file of the lake that cannot be used, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; replace or remove this file, or go on without it with --skip-bad-files"


class FileGone(ConfigError):
    """A file of the lake that was listed and is not there any more."""


class RetryableError(BackfillError):
    """A passing failure.

    `retry_after` is in seconds, None when the other side named no time. `kind` is the failure in
    general words (`http_503`, `timeout`, `malformed`), for counting.
    """

    def __init__(
        self, message: str, retry_after: float | None = None, kind: str = "passing"
    ) -> None:
        super().__init__(message, retry_after, kind)
        self.message = message
        self.retry_after = retry_after
        self.kind = kind

    def __str__(self) -> str:
        return self.message


class RejectedPost(BackfillError):
    """One post that cannot be labelled. Its text is the reason that the label row keeps."""


class FatalError(BackfillError):
    """This integration cannot go on (a wrong key, a missing model). Says what to do."""


def our_error(error: BaseException) -> BackfillError:
    """The project's own error inside an exception that Ray has wrapped.

    Any other exception becomes a FatalError that names it.
    """
    if ours := find_our_error(error):
        return ours

    last_line = (str(error).strip().splitlines() or [""])[-1]
    return FatalError(
        f"the run stopped ({type(error).__name__}: {last_line}); run the same command again to go on"
    )


def find_our_error(error: BaseException) -> BackfillError | None:
    """The project's own error among an exception and its causes, the nearest first; None without.

    Ray wraps an exception of a task or an actor: in `cause`, and with Ray Data several levels deep.
    """
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, BackfillError) and type(current).__module__ == __name__:
            # Ray Data appends lines about its own retries to an error's text.
            current.args = tuple(
                _first_line(part) if isinstance(part, str) else part for part in current.args
            )
            return current
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    return None


def summary(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return _first_line(str(error)) or type(error).__name__


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "permission denied; check who owns the folder and its mode",
    errno.EPERM: "permission denied; check who owns the folder and its mode",
    errno.EROFS: "the file system is read-only; choose another --data-dir",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another --data-dir",
    errno.EEXIST: "a part of the path is a file, not a folder; choose another --data-dir",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter --data-dir",
}

# What the AWS SDK calls an error, in the text that pyarrow makes of it.
_S3_ADVICE = {
    "NO_SUCH_BUCKET": "there is no such bucket; create it, or correct the s3:// address",
    "ACCESS_DENIED": "S3 denies access; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    "INVALID_ACCESS_KEY_ID": "S3 does not know the key; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH": "S3 refuses the key; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NETWORK_CONNECTION": "S3 cannot be reached; check AWS_ENDPOINT_URL and the network, then run the same again",
    "SLOW_DOWN": "S3 asks to slow down; run the same command again later",
    "SERVICE_UNAVAILABLE": "S3 does not answer; run the same command again later",
    "HTTP status 40": "S3 denies access; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    "HTTP status 5": "S3 does not answer; run the same command again later",
}


def from_os_error(verb: str, path: str, error: OSError) -> ConfigError:
    """One sentence about a failed file operation: what was tried (`verb`), where, why, what to do."""
    return ConfigError(f"cannot {verb} {path}: {os_error_reason(error)}")


def os_error_reason(error: OSError) -> str:
    """The reason and the advice in an `OSError`. pyarrow's keep the number only in their text."""
    number = error.errno
    if number is None:
        number = next((code for code in _ADVICE if f"[errno {code}]" in str(error)), None)
        if "AWS Error" in str(error):
            return next(
                (advice for name, advice in _S3_ADVICE.items() if name in str(error)),
                _first_line(str(error)),
            )
    if number in _ADVICE:
        return _ADVICE[number]
    return error.strerror or _first_line(str(error))


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]
