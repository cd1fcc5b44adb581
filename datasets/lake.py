"""The lake: a folder or an `s3://` prefix of date-partitioned Parquet, and how files get into it.

    <dataset>/{cache,active}/partition_date=YYYY-MM-DD/*.parquet

A file of the lake is there whole or not at all. On a disk that is write-aside, sync, rename, sync
of the folder; on S3 an object appears when its upload is complete. Names that start with a dot or
an underscore are never data.

S3 takes its credentials from where the AWS tools take them, and its address from AWS_ENDPOINT_URL
where it is not Amazon's. An endpoint that is down or asks to slow down is asked again for about a minute.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from datasets.errors import BadFile, ConfigError, FileGone, from_os_error, os_error_reason

POSTS = "preprocessed_posts"
FEEDS = "fetch_posts_used_in_feeds"
TIERS = ("cache", "active")

# Rows decoded at a time: what a reader holds of a file is this many rows, however large the file.
READ_ROWS = 65_536
# Requests to S3 until one counts as failed, the pauses between them growing to 20 s. Measured
# against an endpoint that answers 503: 3 attempts take a second, 8 take 42 s, 10 take 56 s.
_S3_ATTEMPTS = 12
_ASIDE = re.compile(r"^\.(.+)\.aside-[0-9a-f]{8}$")
_PARTITION = re.compile(r"^partition_date=(\d{4}-\d{2}-\d{2})$")


@dataclass(frozen=True)
class Lake:
    """A place that holds datasets. `root` is a folder or `s3://bucket/prefix`.

    Paths that the methods take and give are relative to the root, with `/`. Where it is not
    `patient`, a request to S3 fails within seconds.
    """

    root: str
    patient: bool = True

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def show(self, path: str) -> str:
        """`path` as the user knows it."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def _full(self, path: str) -> str:
        base = _open(self.root, self.patient)[1]
        return f"{base}/{path}" if path else base

    @property
    def _fs(self) -> pafs.FileSystem:
        return _open(self.root, self.patient)[0]

    def folders(self, path: str) -> list[str]:
        """The names of the folders in `path`, sorted; none where there is no such folder."""
        return [info.base_name for info in self._list(path) if info.type == pafs.FileType.Directory]

    def files(self, path: str, suffix: str = ".parquet") -> list[str]:
        """The paths of the data files in `path` that end with `suffix`, sorted."""
        return [
            f"{path}/{info.base_name}"
            for info in self._list(path)
            if info.type == pafs.FileType.File and _is_data(info.base_name, suffix)
        ]

    def partitions(
        self, dataset: str, start: str | None = None, end: str | None = None
    ) -> dict[str, list[str]]:
        """Partition date → its files in both tiers, for the inclusive range; dates and files sorted."""
        found: dict[str, list[str]] = {}
        for tier in TIERS:
            for name, files in self._files_by_folder(f"{dataset}/{tier}"):
                day = partition_date(name)
                if day is None or (start and day < start) or (end and day > end):
                    continue
                if paths := files():
                    found.setdefault(day, []).extend(paths)
        return dict(sorted(found.items()))

    def _files_by_folder(self, path: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
        """Name of each folder in `path`, and what lists its data files."""
        if self.is_local:
            for name in self.folders(path):
                yield name, functools.partial(self.files, f"{path}/{name}")
            return
        # One request for a thousand files, not one for each folder.
        found: dict[str, list[str]] = {}
        for info in self._list(path, recursive=True):
            if info.type == pafs.FileType.File and _is_data(info.base_name, ".parquet"):
                folder = info.path.removesuffix(f"/{info.base_name}").removeprefix(
                    f"{self._full(path)}/"
                )
                found.setdefault(folder, []).append(f"{path}/{folder}/{info.base_name}")
        for name, paths in sorted(found.items()):
            yield name, functools.partial(list, paths)

    def modified(self, path: str, suffix: str) -> dict[str, float]:
        """The files in `path` that end with `suffix`, and when each was written: seconds, by the clock of the store."""
        return {
            f"{path}/{info.base_name}": info.mtime_ns / 1e9
            for info in self._list(path)
            if info.type == pafs.FileType.File and info.base_name.endswith(suffix)
        }

    def _list(self, path: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self._full(path), allow_not_found=True, recursive=recursive)
        try:
            return sorted(self._fs.get_file_info(selector), key=lambda info: info.base_name)
        except OSError as error:
            raise from_os_error("list", self.show(path), error) from error

    def exists(self, path: str) -> bool:
        try:
            return bool(self._fs.get_file_info(self._full(path)).type != pafs.FileType.NotFound)
        except OSError as error:
            raise from_os_error("look at", self.show(path), error) from error

    def open_parquet(self, path: str) -> pq.ParquetFile:
        """Raises BadFile where the file is not whole Parquet, FileGone where it is not there."""
        try:
            # A column at a time is a request at a time: from S3, all of a row group's are fetched at once.
            return pq.ParquetFile(
                self._fs.open_input_file(self._full(path)), pre_buffer=not self.is_local
            )
        except FileNotFoundError as error:
            raise _gone(self.show(path)) from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadFile(
                self.show(path), f"not a readable Parquet file ({_first_line(error)})"
            ) from error
        except OSError as error:
            if not self.is_local:  # the endpoint's fault, not the file's
                raise from_os_error("read", self.show(path), error) from error
            raise BadFile(self.show(path), f"cannot be read ({os_error_reason(error)})") from error

    def identity(self, path: str) -> str:
        """Differs between two versions of a file: size, modification time and inode, or the ETag of an object.

        Raises FileGone where the file is not there.
        """
        try:
            if self.is_local:
                status = os.stat(self._full(path))
                return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"

            with self._fs.open_input_file(self._full(path)) as file:
                about = file.metadata()
                return "-".join(
                    str(about.get(name)) for name in ("ETag", "Content-Length", "Last-Modified")
                )
        except FileNotFoundError as error:
            raise _gone(self.show(path)) from error
        except OSError as error:
            raise from_os_error("read", self.show(path), error) from error

    def num_rows(self, path: str) -> int:
        """From the footer alone."""
        with self.open_parquet(path) as file:
            return int(file.metadata.num_rows)

    def read(
        self,
        path: str,
        schema: pa.Schema,
        optional: Sequence[str] = (),
        row_groups: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The columns of `schema`, batch by batch, cast to its types. An absent `optional` column is null.

        Raises BadFile for a missing column, a wrong type, bytes that do not decode, or text that is not UTF-8.
        """
        with self.open_parquet(path) as file:
            present = _check_columns(self.show(path), file.schema_arrow, schema, optional)
            batches = file.iter_batches(
                READ_ROWS, row_groups=row_groups, columns=present, use_threads=False
            )
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        return
                    columns = [
                        batch[field.name].cast(field.type)
                        if field.name in present
                        else pa.nulls(len(batch), field.type)
                        for field in schema
                    ]
                except (pa.ArrowException, OSError) as error:
                    raise self._undecodable(path, error) from error

                for field, column in zip(schema, columns, strict=True):
                    _check_text(self.show(path), field, column)
                yield pa.record_batch(columns, schema=schema)

    def read_whole(self, path: str) -> pa.Table:
        """All columns as they are, but views, which cannot be filtered, as strings. Raises BadFile as `read` does."""
        with self.open_parquet(path) as file:
            try:
                table = file.read()
            except (pa.ArrowException, OSError) as error:
                raise self._undecodable(path, error) from error
        plain = [
            f.with_type(pa.large_string()) if pa.types.is_string_view(f.type) else f
            for f in table.schema
        ]
        return table.cast(pa.schema(plain, table.schema.metadata))

    def _undecodable(self, path: str, error: Exception) -> ConfigError:
        if isinstance(error, OSError) and "AWS Error" in str(error):
            return from_os_error("read", self.show(path), error)
        return BadFile(self.show(path), f"cannot be decoded ({_first_line(error)})")

    def read_bytes(self, path: str) -> bytes:
        try:
            with self._fs.open_input_file(self._full(path)) as file:
                return bytes(file.read())
        except OSError as error:
            raise from_os_error("read", self.show(path), error) from error

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        """Durable when it returns; a reader sees all of it or nothing. Replaces what was there."""
        try:
            if self.is_local:
                _write_local(self._full(path), data)
            else:
                _write_object(self._fs, self._full(path), data)
        except OSError as error:
            raise from_os_error("write", self.show(path), error) from error

    def write_parquet(
        self,
        path: str,
        table: pa.Table,
        metadata: dict[str, str] | None = None,
        *,
        compress: bool = True,
    ) -> None:
        """`metadata` goes into the file's footer. Files that live briefly are written faster without `compress`."""
        if metadata:
            table = table.replace_schema_metadata(metadata)
        # A dictionary of values that hardly repeat is built in vain.
        repeating = [name for name in table.column_names if name not in ("uri", "text")]
        sink = pa.BufferOutputStream()
        codec = (
            {"compression": "zstd", "compression_level": 1} if compress else {"compression": "none"}
        )
        pq.write_table(table, sink, use_dictionary=repeating, **codec)
        self.write_bytes(path, sink.getvalue())

    def delete(self, path: str) -> None:
        """Removes a file; one that is gone already is fine."""
        try:
            self._fs.delete_file(self._full(path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise from_os_error("delete", self.show(path), error) from error

    def sweep(self, path: str) -> None:
        """Removes what killed writers left aside in `path`. Only its one writer may call this."""
        for info in self._list(path):
            if _ASIDE.match(info.base_name):
                self.delete(f"{path}/{info.base_name}")

    def check(self) -> None:
        """Raises ConfigError unless the root exists and can be written. On S3, the bucket must exist."""
        if self.is_local and not self.exists(""):
            raise ConfigError(
                f"there is no data folder {self.root}; set --data-dir or BACKFILL_DATA_DIR"
            )
        probe, quick = f".probe-{secrets.token_hex(4)}", replace(self, patient=False)
        quick.write_bytes(probe, b"")
        quick.delete(probe)


def ensure_lake(lake: Lake) -> None:
    """Creates the folder of a local lake if it does not exist, then checks the lake.

    Raises ConfigError as `Lake.check` does, and if the folder cannot be made.
    """
    if lake.is_local:
        try:
            os.makedirs(lake.root, exist_ok=True)
        except OSError as error:
            raise from_os_error("make", lake.root, error) from error

    lake.check()


def partition_date(folder: str) -> str | None:
    """The date in `partition_date=YYYY-MM-DD`, None for any other name."""
    match = _PARTITION.match(folder)
    if match is None:
        return None
    try:
        return date.fromisoformat(match[1]).isoformat()
    except ValueError:
        return None


@functools.lru_cache(maxsize=8)
def _open(root: str, patient: bool) -> tuple[pafs.FileSystem, str]:
    """The file system of a root and the root's path in it."""
    if "://" not in root:
        return pafs.LocalFileSystem(), os.path.abspath(root)
    if not root.startswith("s3://"):
        raise ConfigError(
            f"{root} is neither a folder nor an s3:// address; set --data-dir to one of them"
        )
    # A region that is not set makes the SDK ask a metadata service, which hangs outside AWS.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    fs = pafs.S3FileSystem(
        region=region,
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL"),
        background_writes=False,
        allow_delayed_open=True,  # up to 5 MB in one request
        connect_timeout=5,
        request_timeout=60 if patient else 5,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS if patient else 2),
    )
    return fs, root.removeprefix("s3://").rstrip("/")


def _is_data(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith((".", "_"))


def _write_object(fs: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    stream = fs.open_output_stream(path)
    try:
        stream.write(data)
        stream.close()
    except BaseException:
        # Its destructor would complete the upload with the parts that S3 has got: a cut object.
        # Never freed, it leaves none.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise


def _check_columns(
    shown: str, actual: pa.Schema, wanted: pa.Schema, optional: Sequence[str]
) -> list[str]:
    present = []
    for field in wanted:
        index = actual.get_field_index(field.name)
        if index < 0:
            if field.name in optional:
                continue
            raise BadFile(shown, f"has no column '{field.name}'")
        if not _fits(actual.field(index).type, field.type):
            raise BadFile(
                shown, f"column '{field.name}' is {actual.field(index).type}, not {field.type}"
            )
        present.append(field.name)
    return present


def _check_text(shown: str, field: pa.Field, column: pa.Array) -> None:
    """Parquet and Arrow take any bytes for text; a lone surrogate among them stops whoever decodes it later."""
    if not pa.types.is_string(field.type):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise BadFile(
            shown, f"column '{field.name}' holds text that is not UTF-8 ({_first_line(error)})"
        ) from error


def _gone(shown: str) -> FileGone:
    return FileGone(f"{shown} was removed while it was needed; run the command again")


def _fits(actual: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(actual):
        actual = actual.value_type
    if pa.types.is_null(actual) or actual == wanted:
        return True
    if pa.types.is_string(wanted):
        return bool(pa.types.is_large_string(actual) or pa.types.is_string_view(actual))
    numeric = pa.types.is_integer(actual) or pa.types.is_floating(actual)
    return bool(numeric and (pa.types.is_floating(wanted) or pa.types.is_integer(wanted)))


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    folder, name = os.path.split(path)
    _make_folder(folder)
    aside = os.path.join(folder, f".{name}.aside-{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise
    _sync_folder(folder)


def _make_folder(folder: str) -> None:
    """Also syncs each parent in which a folder was made: a name that is not on disk holds no file."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    os.makedirs(folder, exist_ok=True)
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
