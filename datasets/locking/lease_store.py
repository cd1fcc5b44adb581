"""The few requests to S3 that leases need, with conditions on what an object is when it is written.

pyarrow's file system cannot send a condition (apache/arrow#44281), botocore can. Of the stores,
Amazon S3, MinIO, Ceph, Cloudflare R2 and others keep `If-Match` on a PUT; Google's S3 interface and
older servers do not. Which it is, is tried once for each process and bucket.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from datasets.errors import ConfigError, from_os_error

if TYPE_CHECKING:
    from datasets.lake import Lake

# No object has this ETag: a PUT on condition of it is refused, or the store does not look.
_NO_ETAG = '"00000000000000000000000000000000"'
# 404: there is no object. 409: another request for it is under way. 412: it is not as it was.
_REFUSED = (404, 409, 412)
# How a store answers to a header that it does not know, where it does not ignore it.
_UNKNOWN = (400, 501)


@dataclass(frozen=True)
class Stored:
    """A listed object; `at` is when it was written, in seconds by the clock of the store."""

    at: float
    etag: str
    size: int


class LeaseStore(Protocol):
    """Paths are relative to the root of the lake. All methods raise ConfigError where the store fails."""

    def put(self, path: str, body: bytes, if_match: str | None = None) -> bool:
        """False where `if_match` is not the ETag of what is there, and the store looks."""
        ...

    def get(self, path: str) -> tuple[bytes, str] | None:
        """The body and the ETag, None where there is no such object."""
        ...

    def list(self, folder: str) -> dict[str, Stored]: ...

    def delete(self, path: str) -> None: ...

    def keeps_conditions(self, path: str, body: bytes) -> bool:
        """Whether `put` refuses, and only where it should. Tried once, on an object of the caller's with this body."""
        ...


def s3_store(lake: Lake) -> LeaseStore:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return _open(lake.root.rstrip("/"), endpoint, region)


@lru_cache(maxsize=8)
def _open(root: str, endpoint: str | None, region: str) -> S3Store:
    return S3Store(root, endpoint, region)


class S3Store:
    """A request fails within seconds: the holder of a lease has no longer."""

    def __init__(self, root: str, endpoint: str | None, region: str) -> None:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._root = root
        self._bucket, _, self._prefix = root.removeprefix("s3://").partition("/")
        self._conditional: bool | None = None
        config = Config(
            connect_timeout=5,
            read_timeout=5,
            retries={"mode": "standard", "total_max_attempts": 2},
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Stores other than Amazon's refuse the checksums that are sent by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        if endpoint and "://" not in endpoint:
            endpoint = f"https://{endpoint}"  # as pyarrow takes it
        try:
            session = botocore.session.get_session()
            self._client = session.create_client(
                "s3", region_name=region, endpoint_url=endpoint, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(
                f"cannot reach {root}: {error}; check the AWS_ variables and ~/.aws/config"
            ) from error

    def put(self, path: str, body: bytes, if_match: str | None = None) -> bool:
        if if_match is None or self._conditional is False:
            self._call("write", path, "put_object", Key=self._key(path), Body=body)
            return True
        allowed = _REFUSED if self._conditional else _REFUSED + _UNKNOWN
        answer = self._call(
            "write", path, "put_object", allowed, Key=self._key(path), Body=body, IfMatch=if_match
        )
        if _status(answer) in _UNKNOWN:
            self._conditional = False
            return self.put(path, body)
        return _status(answer) not in _REFUSED

    def keeps_conditions(self, path: str, body: bytes) -> bool:
        if self._conditional is None:
            refuses = not self.put(path, body, _NO_ETAG)
            found = self.get(path)
            self._conditional = bool(refuses and found and self.put(path, body, found[1]))
        return self._conditional

    def get(self, path: str) -> tuple[bytes, str] | None:
        answer = self._call("read", path, "get_object", (404,), Key=self._key(path))
        return (answer["Body"], answer["ETag"]) if "Body" in answer else None

    def list(self, folder: str) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        more: dict[str, Any] = {}
        while True:
            page = self._call(
                "list",
                folder,
                "list_objects_v2",
                Prefix=self._key(f"{folder}/"),
                Delimiter="/",
                **more,
            )
            for entry in page.get("Contents", ()):
                path = entry["Key"].removeprefix(self._key(""))
                found[path] = Stored(
                    entry["LastModified"].timestamp(), entry["ETag"], entry["Size"]
                )
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, path: str) -> None:
        self._call("delete", path, "delete_object", (404,), Key=self._key(path))

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _call(
        self, verb: str, path: str, operation: str, allowed: tuple[int, ...] = (), **arguments: Any
    ) -> dict[str, Any]:
        """The answer, a body read to its end; an error's only if its HTTP status is allowed."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = getattr(self._client, operation)(
                Bucket=self._bucket, **arguments
            )
            if "Body" in answer:
                answer["Body"] = answer["Body"].read()
        except ClientError as error:
            if (
                _status(error.response) in allowed
                and error.response["Error"].get("Code") != "NoSuchBucket"
            ):
                return dict(error.response)
            raise self._translate(verb, path, error) from error
        except BotoCoreError as error:
            raise self._translate(verb, path, error) from error
        return answer

    def _translate(self, verb: str, path: str, error: Any) -> ConfigError:
        """The sentence that the same failure has where pyarrow meets it (datasets/errors.py)."""
        from botocore.exceptions import ClientError, NoCredentialsError

        shown = f"{self._root}/{path}"
        if isinstance(error, NoCredentialsError):
            return ConfigError(
                f"cannot {verb} {shown}: no key for S3 was found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE"
            )
        name = "NETWORK_CONNECTION"
        if isinstance(error, ClientError):
            code = re.sub(
                r"(?<=[a-z])(?=[A-Z])", "_", error.response["Error"].get("Code", "")
            ).upper()
            name = f"{code} (HTTP status {_status(error.response)})"
        return from_os_error(verb, shown, OSError(f"AWS Error {name}: {error}"))


def _status(answer: dict[str, Any]) -> int:
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])
