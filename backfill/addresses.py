"""Resolves the addresses of lakes, databases and files that a user types.

The processes of a running Ray work in a copy of the project, where a relative path means another
folder. So each path is made absolute here, before it reaches another process. Symbolic links are
resolved: a lake that is reached by two paths is one lake, for its locks and its answer cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from datasets.boundary.secrets import redact, remember_url
from datasets.boundary.urls import http_url
from datasets.errors import ConfigError
from datasets.lake import Lake

ROOT = Path(__file__).resolve().parent.parent
_SQLITE = "sqlite:///"


def lake_at(typed: str, option: str = "--data-dir") -> Lake:
    """The lake in a folder or at an `s3://` address.

    Raises ConfigError, which names the option, for anything else.
    """
    if not typed.strip():
        raise ConfigError(f"{option} is empty; give it a folder, or an s3://BUCKET/PREFIX")
    if "://" not in typed:
        return Lake(_absolute(typed, option))

    scheme, _, rest = typed.partition("://")
    bucket, *prefix = re.split("/+", rest.strip("/"))
    if scheme.lower() != "s3" or not bucket:
        raise ConfigError(
            f"{option} {redact(typed)} is neither a folder nor an s3://BUCKET/PREFIX; "
            "give one of them"
        )

    if "@" in bucket:
        remember_url(typed)
        raise ConfigError(
            f"{option} has credentials in its s3:// address; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )

    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            http_url(os.environ[name], name)
    return Lake("/".join(["s3:/", bucket, *prefix]))


def database_at(typed: str, option: str = "--database-url") -> str:
    """A database's URL. That of SQLite gets an absolute path.

    Raises ConfigError for a database that other processes cannot open.
    """
    remember_url(typed)
    if not typed.startswith("sqlite:"):
        return typed
    path = typed.removeprefix(_SQLITE)
    if not typed.startswith(_SQLITE) or not path or ":memory:" in path:
        raise ConfigError(
            f"{option} {typed} names no file, and a database in memory would be lost; "
            "give it as sqlite:///PATH"
        )
    return _SQLITE + _absolute(path, option)


def file_at(typed: str) -> str:
    """The absolute path of an existing file or folder that a setting names.

    Returned unchanged: what does not exist, because it may be the id of a model, and a relative
    path inside the project, because Ray copies the project to every node.
    """
    path = os.path.realpath(os.path.expanduser(typed))
    if not os.path.exists(path):
        return typed

    in_project = Path.cwd() == ROOT and Path(path).is_relative_to(ROOT)
    if in_project and not os.path.isabs(typed):
        return typed
    return path


def is_submitted_job() -> bool:
    """Whether `ray job submit` or KubeRay runs this process, in a temporary copy of the project."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _absolute(typed: str, option: str) -> str:
    """Raises ConfigError for a relative path in a submitted job, whose folder is temporary."""
    path = os.path.expanduser(typed)
    if is_submitted_job() and not os.path.isabs(path):
        raise ConfigError(
            f"this is a Ray job, whose working directory ends with it, and so would {typed}; "
            f"give {option} an absolute path on the node where the job runs, "
            "or for a lake an s3:// address"
        )
    return os.path.realpath(path)
