"""Objects in a bucket that speaks S3 with conditional writes (``If-None-Match: *``), by obstore.

A conditional write is sent once: the client library must not repeat it by itself, for the second
try of a write that had succeeded is answered "taken". Whatever is not a clear answer is
``OutcomeUnknown``, and the journal settles it by reading. Reads and plain writes are repeated by
the library with backoff.

DuckDB's ``httpfs`` extension is not part of its wheel and would be downloaded at run time, so
readers here do not depend on it: ``local_path`` is ``None`` and ``fetch`` copies the (immutable)
file. Where ``httpfs`` is installed, ``duckdb_settings`` gives the secret it needs and ``url`` the
address.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import obstore
from obstore import exceptions as raised
from obstore.store import S3Store

from manta.errors import InvalidRequest, OutcomeUnknown, StoreUnavailable
from manta.store.objects import (
    AlreadyExists,
    ObjectStat,
    check_path,
    check_prefix,
)

_TAKEN = (raised.AlreadyExistsError, raised.PreconditionError)
_ABSENT = (raised.NotFoundError, FileNotFoundError)  # which of them depends on the library
_REFUSED = (
    raised.PermissionDeniedError,
    raised.UnauthenticatedError,
    *_ABSENT,
    raised.InvalidPathError,
    raised.NotSupportedError,
    raised.UnknownConfigurationKeyError,
)
_OPTIONS = frozenset({"endpoint", "region"})
# The journal gives an undecided append ten seconds: one conditional write and one read must fit.
_CONDITIONAL_TIMEOUT_S = 5
_SILENCE_S = 3
_TRANSFER_TIMEOUT_S = 120
_TRANSFER_SILENCE_S = 15


def open_s3(root: str) -> S3Objects:
    """The store of ``s3://bucket/prefix?endpoint=http://host:port&region=…``.

    Raises ``InvalidRequest`` for a root without bucket or with unknown options.
    """
    parts = urlsplit(root)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(options.keys() - _OPTIONS)
    if not parts.netloc or unknown or parts.fragment:
        raise InvalidRequest(
            f"not an S3 root: {root[:200]!r}"
            + (f" (unknown: {', '.join(unknown)})" * bool(unknown)),
            path="root",
            expected="s3://bucket/prefix?endpoint=…&region=…",
        )
    prefix = unquote(parts.path).strip("/")
    return S3Objects(parts.netloc, check_path(prefix) if prefix else "", options)


class S3Objects:
    """``ObjectStore`` over one bucket and prefix."""

    def __init__(self, bucket: str, prefix: str, options: dict[str, str]) -> None:
        self._base = f"s3://{bucket}/{prefix}".rstrip("/")
        self._endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
        self._region = options.get("region") or os.environ.get("AWS_REGION", "us-east-1")
        self.root = self._base
        config: dict[str, Any] = {"region": self._region}
        if self._endpoint:
            config["endpoint"] = self._endpoint

        def store(timeout_s: int, silence_s: int, retries: int) -> Any:
            return S3Store(
                bucket,
                prefix=prefix or None,
                config=config,
                client_options={
                    "timeout": timedelta(seconds=timeout_s),
                    "read_timeout": timedelta(seconds=silence_s),
                    "connect_timeout": timedelta(seconds=_SILENCE_S),
                    "allow_http": self._endpoint.startswith("http://"),
                },
                retry_config={
                    "max_retries": retries,
                    "retry_timeout": timedelta(seconds=silence_s),
                },
            )

        self._once = store(_CONDITIONAL_TIMEOUT_S, _CONDITIONAL_TIMEOUT_S, 0)
        self._reads = store(_TRANSFER_TIMEOUT_S, _SILENCE_S, 2)
        self._store = store(_TRANSFER_TIMEOUT_S, _TRANSFER_SILENCE_S, 5)

    def put_if_absent(self, path: str, data: bytes) -> None:
        check_path(path)
        try:
            obstore.put(self._once, path, data, mode="create", use_multipart=False)
        except _TAKEN:
            raise AlreadyExists(f"{path} exists already", path=path) from None
        except _REFUSED as fault:
            self._fail(fault, path)
        except raised.BaseError as fault:
            raise OutcomeUnknown(f"{self.root}: {path}: {_short(fault)}", object=path) from fault

    def put(self, path: str, data: bytes) -> None:
        self._upload(path, data)

    def put_file(self, path: str, source: str) -> None:
        self._upload(path, Path(source))

    def _upload(self, path: str, content: bytes | Path) -> None:
        try:
            obstore.put(self._store, check_path(path), content)
        except (raised.BaseError, OSError) as fault:
            self._fail(fault, path)

    def get(self, path: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._reads, check_path(path)).bytes())
        except _ABSENT as fault:
            self._absent(fault, path)
            return None
        except raised.BaseError as fault:
            self._fail(fault, path)

    def fetch(self, path: str, target: str) -> bool:
        part = Path(f"{target}.part")
        try:
            with part.open("wb") as handle:
                for chunk in obstore.get(self._store, check_path(path)).stream():
                    handle.write(chunk)
            part.replace(target)
        except _ABSENT as fault:
            part.unlink(missing_ok=True)
            self._absent(fault, path)
            return False
        except (raised.BaseError, OSError) as fault:
            self._fail(fault, path)
        return True

    def stat(self, path: str) -> ObjectStat | None:
        try:
            found = obstore.head(self._reads, check_path(path))
        except _ABSENT:
            return None
        except raised.BaseError as fault:
            self._fail(fault, path)
        modified = found["last_modified"].astimezone(UTC).replace(tzinfo=None)
        return ObjectStat(found["size"], modified)

    def list(self, prefix: str) -> list[str]:
        try:
            pages = obstore.list(self._reads, check_prefix(prefix).rstrip("/") or None)
            return sorted(found["path"] for page in pages for found in page)
        except (raised.BaseError, OSError) as fault:
            self._fail(fault, prefix)

    def delete(self, paths: Iterable[str]) -> None:
        names = [check_path(path) for path in paths]
        if not names:
            return
        try:
            obstore.delete(self._store, names)
        except _ABSENT:
            for name in names:  # a store that minds: one by one
                try:
                    obstore.delete(self._store, name)
                except _ABSENT:
                    pass
        except raised.BaseError as fault:
            self._fail(fault, names[0])

    def local_path(self, path: str) -> str | None:
        check_path(path)
        return None

    def url(self, path: str) -> str:
        return f"{self._base}/{check_path(path)}"

    def duckdb_settings(self) -> dict[str, str]:
        """The fields of a DuckDB ``CREATE SECRET (TYPE s3, …)`` for this root, without the keys
        (DuckDB's ``credential_chain`` provider finds those where this store does)."""
        settings = {"PROVIDER": "credential_chain", "REGION": self._region}
        if self._endpoint:
            parts = urlsplit(self._endpoint)
            settings |= {"ENDPOINT": parts.netloc, "URL_STYLE": "path"}
            settings["USE_SSL"] = "false" if parts.scheme == "http" else "true"
        return settings

    def _absent(self, fault: Exception, path: str) -> None:
        """A missing object is an answer; a missing bucket is not an empty store."""
        if "NoSuchBucket" in str(fault):
            self._fail(fault, path)

    def _fail(self, fault: Exception, path: str) -> NoReturn:
        raise StoreUnavailable(
            f"the storage root {self.root} refused or did not answer ({path}): {_short(fault)}; "
            "nothing was acknowledged",
            object=path,
        ) from fault


def _short(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300]
