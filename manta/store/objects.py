"""Named byte strings on ``file://`` or ``s3://``, and the one operation that safety rests on.

Owns: the storage root. Everything durable in Manta is an object below it. The invariant is that of
``put_if_absent``: of all writers of one name, in any processes on any machines, at most one
succeeds, and its bytes are whole and on stable storage before it returns. Nothing half-written
stands under a final name: a crash leaves at most a file in ``.tmp/``, which the garbage rule
sweeps.

Three answers of a write have to be told apart, since the journal acts on each differently:

- ``AlreadyExists``: the name is taken (possibly by our own earlier try whose answer was lost);
- ``StoreUnavailable``: definitely not stored (full, read-only, permission denied, no such bucket);
- ``OutcomeUnknown``: stored or not, nobody knows yet (time-out, lost connection, server error).
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, Protocol
from urllib.parse import unquote, urlsplit

from manta.errors import Conflict, InvalidRequest, OutcomeUnknown, StoreUnavailable

PATH_LENGTH_MAX = 900
TEMPORARY = ".tmp/"


class AlreadyExists(Conflict):
    """``put_if_absent`` found the name taken and changed nothing."""

    code = "already_exists"


class ObjectStat(NamedTuple):
    """What is known of a stored object without reading it."""

    size: int
    last_modified: datetime


class ObjectStore(Protocol):
    """Objects below one root. Paths are relative, ``/``-separated; see ``check_path``.

    Reads raise ``StoreUnavailable`` when the store does not answer. Safe to use from many threads.
    """

    root: str

    def put_if_absent(self, path: str, data: bytes) -> None:
        """Store under a name that nobody has; durable on return.

        Raises ``AlreadyExists``, ``StoreUnavailable`` (definitely not stored), ``OutcomeUnknown``.
        """

    def put(self, path: str, data: bytes) -> None:
        """Store, replacing whole whatever is there; durable on return."""

    def put_file(self, path: str, source: str) -> None:
        """Store a finished local file under the name (for Parquet that DuckDB wrote). The source
        is the caller's to remove."""

    def get(self, path: str) -> bytes | None:
        """The object, or ``None`` when there is none."""

    def fetch(self, path: str, target: str) -> bool:
        """Copy the object to a local file, whole or not at all; false when there is none."""

    def stat(self, path: str) -> ObjectStat | None:
        """Size in bytes and time of the last write (UTC), or ``None`` when there is none."""

    def list(self, prefix: str) -> list[str]:
        """All paths below a folder (``prefix`` ends with ``/``, or is empty), sorted."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; those that are absent already are passed over."""

    def local_path(self, path: str) -> str | None:
        """Where a program on this machine can open the object, or ``None`` (then ``fetch``)."""

    def url(self, path: str) -> str:
        """The object's ``file://`` or ``s3://`` address."""


def check_path(path: str) -> str:
    """The path itself. Raises ``InvalidRequest`` for one that could leave the root."""
    if not path or len(path) > PATH_LENGTH_MAX:
        fault = f"empty or longer than {PATH_LENGTH_MAX} characters"
    elif any(part in ("", ".", "..") for part in path.split("/")):
        fault = "an empty, '.' or '..' segment"
    elif "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        fault = "a backslash or control character"
    else:
        return path
    raise InvalidRequest(
        f"not an object path: {path[:100]!r} has {fault}",
        path=path[:100],
        expected="a relative path like journal/shard=000/000000000001",
    )


def check_prefix(prefix: str) -> str:
    """The folder prefix itself, empty or ending with ``/``. Raises ``InvalidRequest``."""
    if prefix and check_path(prefix.removesuffix("/")) == prefix:
        raise InvalidRequest(
            f"not a folder: {prefix[:100]!r}", path=prefix[:100], expected="a path ending with '/'"
        )
    return prefix


def open_objects(root: str) -> ObjectStore:
    """The store of a root: a path, ``file:///path`` or ``s3://bucket/prefix?endpoint=…&region=…``.

    Credentials of S3 come from the environment (``AWS_ACCESS_KEY_ID`` and so on). Raises
    ``InvalidRequest`` for any other text.
    """
    parts = urlsplit(root)
    if parts.scheme == "s3":
        from manta.store.objects_s3 import open_s3

        return open_s3(root)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FileObjects(Path(unquote(parts.path)))
    if root and "://" not in root:
        return FileObjects(Path(root).expanduser())
    raise InvalidRequest(
        f"not a storage root: {root[:200]!r}",
        path="root",
        expected="a folder, file:///folder or s3://bucket/prefix",
    )


# Errors after which the kernel has certainly not made the name. Others, of `link`, may be a lost
# reply of a network file system.
_DEFINITE = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is over its quota",
    errno.EFBIG: "refuses a file of this size",
    errno.EROFS: "is read-only",
    errno.EACCES: "denies permission",
    errno.EPERM: "denies permission, or its file system cannot make hard links",
    errno.ENOTSUP: "lies on a file system without hard links",
    errno.EMLINK: "has no links left",
    errno.EXDEV: "spans two file systems",
    errno.ENOTDIR: "has a file where a folder is needed",
    errno.ENAMETOOLONG: "refuses a name of this length",
}


class FileObjects:
    """Objects as files below a folder, with fsync and an atomic, exclusive ``link``.

    Safe between processes of one machine, and of several where the folder is a shared POSIX file
    system. The folder is made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = self._root.as_uri()
        self._serial = itertools.count()
        self._known: set[Path] = set()
        # Folders in which a name was made whose fsync failed: read from only once it succeeds, for
        # what has been read is taken as durable.
        self._unsynced: set[Path] = set()

    def put_if_absent(self, path: str, data: bytes) -> None:
        final = self._full(path)
        temporary = self._stage(path, data)
        try:
            try:
                os.link(temporary, final)
            except FileNotFoundError:  # a folder that was known is gone
                self._known.clear()
                self._make_folder(final.parent)
                os.link(temporary, final)
        except FileExistsError:
            if final.parent in self._unsynced:
                self._sync_name(final, path)
            raise AlreadyExists(f"{path} exists already", path=path) from None
        except OSError as fault:
            if fault.errno in _DEFINITE:
                self._fail(fault, path)
            raise OutcomeUnknown(f"{self.root}: {path}: {fault.strerror}", object=path) from fault
        finally:
            temporary.unlink(missing_ok=True)
        self._sync_name(final, path)

    def put(self, path: str, data: bytes) -> None:
        self._replace(self._stage(path, data), path)

    def put_file(self, path: str, source: str) -> None:
        self._replace(self._stage(path, Path(source)), path)

    def get(self, path: str) -> bytes | None:
        full = self._full(path)
        self._settle(full.parent)
        try:
            return full.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as fault:
            self._fail(fault, path)

    def fetch(self, path: str, target: str) -> bool:
        part = Path(f"{target}.part")
        try:
            shutil.copyfile(self._full(path), part)
            part.replace(target)
        except FileNotFoundError:
            return False
        except OSError as fault:
            self._fail(fault, path)
        return True

    def stat(self, path: str) -> ObjectStat | None:
        try:
            found = self._full(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as fault:
            self._fail(fault, path)
        modified = datetime.fromtimestamp(found.st_mtime, UTC).replace(tzinfo=None)
        return ObjectStat(found.st_size, modified)

    def list(self, prefix: str) -> list[str]:
        top = self._root / check_prefix(prefix)
        self._settle(top)
        found: list[str] = []

        def refuse(fault: OSError) -> None:
            if not isinstance(fault, FileNotFoundError | NotADirectoryError):
                self._fail(fault, prefix)

        for folder, folders, files in os.walk(top, onerror=refuse):
            if folder == str(self._root):
                folders[:] = [name for name in folders if name != TEMPORARY[:-1]]
            within = Path(folder).relative_to(self._root).as_posix()
            found += files if within == "." else [f"{within}/{name}" for name in files]
        return sorted(found)

    def delete(self, paths: Iterable[str]) -> None:
        folders: set[Path] = set()
        path = ""
        try:
            for path in paths:
                full = self._full(path)
                try:
                    full.unlink()
                    folders.add(full.parent)
                except (FileNotFoundError, NotADirectoryError):
                    pass
            for folder in folders:
                _fsync_folder(folder)
        except OSError as fault:
            self._fail(fault, path)

    def local_path(self, path: str) -> str | None:
        return str(self._full(path))

    def url(self, path: str) -> str:
        return self._full(path).as_uri()

    # -- the steps of a write -----------------------------------------------------------------

    def _full(self, path: str) -> Path:
        return self._root / check_path(path)

    def _stage(self, path: str, content: bytes | Path) -> Path:
        """A fsynced temporary file with the content, and the final name's folder made."""
        temporary = None
        try:
            self._make_folder(self._full(path).parent)
            self._make_folder(self._root / TEMPORARY)
            temporary, handle = self._open_temporary()
            with handle:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, handle, 1 << 20)
                else:
                    handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            return temporary
        except OSError as fault:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            self._fail(fault, path)

    def _open_temporary(self) -> tuple[Path, BinaryIO]:
        while True:  # ends: each round takes another number, and only leftovers are in the way
            name = f"{os.getpid()}-{next(self._serial)}"
            temporary = self._root / TEMPORARY / name
            try:
                return temporary, temporary.open("xb")
            except FileNotFoundError:
                self._known.clear()
                self._make_folder(temporary.parent)
            except FileExistsError:
                continue

    def _replace(self, temporary: Path, path: str) -> None:
        final = self._full(path)
        try:
            temporary.replace(final)
        except OSError as fault:
            temporary.unlink(missing_ok=True)
            self._fail(fault, path)
        self._sync_name(final, path)

    def _sync_name(self, final: Path, path: str) -> None:
        try:
            _fsync_folder(final.parent)
        except OSError as fault:
            self._unsynced.add(final.parent)
            raise OutcomeUnknown(
                f"{self.root}: {path} is written but its folder could not be synced: "
                f"{fault.strerror}",
                object=path,
            ) from fault
        self._unsynced.discard(final.parent)

    def _settle(self, folder: Path) -> None:
        if folder in self._unsynced:
            try:
                _fsync_folder(folder)
            except OSError as fault:
                self._fail(fault, str(folder.relative_to(self._root)))
            self._unsynced.discard(folder)

    def _make_folder(self, folder: Path) -> None:
        """The folder exists, durably so even where another process has only just made it."""
        if folder in self._known:
            return
        inside = folder.is_relative_to(self._root) and folder != self._root
        made = not folder.is_dir()
        if inside or made:
            self._make_folder(folder.parent)
            try:
                folder.mkdir()
            except FileExistsError:
                if not folder.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, "not a folder") from None
            _fsync_folder(folder.parent)
        self._known.add(folder)

    def _fail(self, fault: OSError, path: str) -> NoReturn:
        why = _DEFINITE.get(fault.errno or 0, f"failed: {fault.strerror or fault}")
        raise StoreUnavailable(
            f"the storage root {self.root} {why} ({path}); nothing was acknowledged",
            object=path,
            errno=errno.errorcode.get(fault.errno or 0, ""),
        ) from fault


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
