"""What a user types for a lake, a database or a file, made into what it is for every process of a run.

The processes of a running Ray work in a copy of the project. A relative path would be another place
there, so each is made absolute once, here, before anything is handed on. Links are followed: a lake
that is reached by two paths is one lake, for its locks and for what its runs share.
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
    """The lake of a folder or an `s3://` address. Raises ConfigError, which names the option, for anything else."""
    if not typed.strip():
        raise ConfigError(f"{option} is empty; give it a folder, or an s3://BUCKET/PREFIX")
    if "://" not in typed:
        return Lake(_lasting(typed, option))
    scheme, _, rest = typed.partition("://")
    bucket, *prefix = re.split("/+", rest.strip("/"))
    if scheme.lower() != "s3" or not bucket:
        raise ConfigError(
            f"{option} {redact(typed)} is neither a folder nor an s3://BUCKET/PREFIX; give one of them"
        )
    if "@" in bucket:
        remember_url(typed)
        raise ConfigError(
            f"{option} has credentials in its s3:// address; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            http_url(os.environ[name], name)
    return Lake("/".join(["s3:/", bucket, *prefix]))


def database_at(typed: str, option: str = "--database-url") -> str:
    """A database's URL, SQLite's with an absolute path. Raises ConfigError where only this process could open it."""
    remember_url(typed)
    if not typed.startswith("sqlite:"):
        return typed
    path = typed.removeprefix(_SQLITE)
    if not typed.startswith(_SQLITE) or not path or ":memory:" in path:
        raise ConfigError(
            f"{option} {typed} names no file, and a database in memory would be lost; give it as sqlite:///PATH"
        )
    return _SQLITE + _lasting(path, option)


def file_at(typed: str) -> str:
    """A file or folder that a setting names, where it is there; what is not there may be the id of a model.

    What lies in the project, where commands are run, keeps its relative path: Ray takes the project to
    every node, and this machine's paths it doesn't.
    """
    path = os.path.realpath(os.path.expanduser(typed))
    travels = not os.path.isabs(typed) and Path.cwd() == ROOT and Path(path).is_relative_to(ROOT)
    return path if os.path.exists(path) and not travels else typed


def is_submitted_job() -> bool:
    """Whether `ray job submit` or KubeRay runs this process: then in a temporary copy of the folder."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _lasting(typed: str, option: str) -> str:
    path = os.path.expanduser(typed)
    if is_submitted_job() and not os.path.isabs(path):
        raise ConfigError(
            f"this is a Ray job, whose working directory ends with it, and so would {typed}; give {option} an absolute "
            "path on the node where the job runs, or for a lake an s3:// address"
        )
    return os.path.realpath(path)
