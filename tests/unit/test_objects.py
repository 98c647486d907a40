"""The file store: exclusive, whole, durable; and what it says when it cannot."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from manta.errors import InvalidRequest, OutcomeUnknown, StoreUnavailable
from manta.store import objects as module
from manta.store.objects import AlreadyExists, FileObjects, open_objects


@pytest.fixture
def store(tmp_path: Path) -> FileObjects:
    return FileObjects(tmp_path / "root")


def test_put_get_list_stat_delete(store: FileObjects) -> None:
    assert store.list("") == []
    assert store.get("a/b/c") is None
    assert store.stat("a/b/c") is None
    store.put_if_absent("a/b/c", b"1")
    store.put("a/b/c", b"22")
    store.put("a/bb", b"")
    store.put("z", b"")
    assert store.get("a/b/c") == b"22"
    assert store.list("") == ["a/b/c", "a/bb", "z"]
    assert store.list("a/b/") == ["a/b/c"]
    assert store.list("a/b/c/") == []
    stat = store.stat("a/b/c")
    assert stat is not None
    assert stat.size == 2
    assert abs(stat.last_modified - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)
    store.delete(["a/b/c", "a/b/c", "never/was"])
    assert store.get("a/b/c") is None
    assert store.get("a/b/c/d") is None
    assert store.get("a/b") is None  # a folder is no object


def test_a_name_is_given_once_and_leftovers_do_not_matter(store: FileObjects) -> None:
    store.put_if_absent("n/1", b"first")
    with pytest.raises(AlreadyExists):
        store.put_if_absent("n/1", b"second")
    assert store.get("n/1") == b"first"
    assert store.list(".tmp/") == []
    leftover = f".tmp/{os.getpid()}-{2}"
    Path(store.local_path(leftover) or "").write_bytes(b"from a crash")
    for n in range(2, 6):
        store.put_if_absent(f"n/{n}", b"x")
    assert store.list(".tmp/") == [leftover]
    assert store.list("n/") == [f"n/{n}" for n in range(1, 6)]


def test_of_many_writers_exactly_one_wins(store: FileObjects) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def write(me: int) -> None:
        other = FileObjects(Path(store.local_path("x") or "").parent)
        for n in range(20):
            barrier.wait()
            try:
                other.put_if_absent(f"race/{n}", b"%d" % me)
                won.append(n)
            except AlreadyExists:
                pass

    threads = [threading.Thread(target=write, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_a_removed_root_is_made_anew(store: FileObjects, tmp_path: Path) -> None:
    store.put_if_absent("a/1", b"x")
    (tmp_path / "root/a/1").unlink()
    (tmp_path / "root/a").rmdir()
    store.put_if_absent("a/1", b"y")
    (tmp_path / "root/.tmp").rmdir()
    store.put_if_absent("a/2", b"y")
    assert store.list("a/") == ["a/1", "a/2"]


def test_files_go_in_and_out_whole(store: FileObjects, tmp_path: Path) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    source.write_bytes(b"rows" * 1000)
    store.put_file("lake/x.parquet", str(source))
    assert store.fetch("lake/x.parquet", str(target))
    assert target.read_bytes() == source.read_bytes()
    assert not store.fetch("lake/y.parquet", str(tmp_path / "none"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet", "root"]
    assert store.url("lake/x.parquet") == (tmp_path / "root/lake/x.parquet").as_uri()


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb", "a\0b", "x" * 901],
)
def test_paths_cannot_leave_the_root(store: FileObjects, path: str) -> None:
    for call in (store.get, store.stat, store.local_path, store.url):
        with pytest.raises(InvalidRequest, match="not an object path"):
            call(path)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(InvalidRequest):
            write(path, b"")
    with pytest.raises(InvalidRequest):
        store.delete([path])


@pytest.mark.parametrize("prefix", ["a", "/", "../", "a//"])
def test_prefixes_are_folders(store: FileObjects, prefix: str) -> None:
    with pytest.raises(InvalidRequest):
        store.list(prefix)


@pytest.mark.parametrize(
    "root", ["", "gs://bucket/x", "file://host/x", "s3://", "s3://b?colour=red"]
)
def test_other_roots_are_refused(root: str) -> None:
    with pytest.raises(InvalidRequest, match="root"):
        open_objects(root)


def test_roots_are_opened(tmp_path: Path) -> None:
    for root in (str(tmp_path), tmp_path.as_uri()):
        open_objects(root).put("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


# -- trouble -----------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> None:
    """Run in a forked process, whose limits and user id do not matter to the others."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def refused(store: FileObjects, sentence: str) -> None:
    for write in (store.put_if_absent, store.put):
        with pytest.raises(StoreUnavailable, match=sentence) as raised:
            write("full/1", b"x" * 100_000)
        assert raised.value.details["object"] == "full/1"
        assert "nothing was acknowledged" in raised.value.message


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_write_cut_short_leaves_nothing(store: FileObjects) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        refused(store, "refuses a file of this size")

    in_child(work)
    assert store.list("") == []
    assert store.list(".tmp/") == []


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "over its quota"),
        (errno.EROFS, "is read-only"),
        (errno.EACCES, "denies permission"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_said(
    store: FileObjects, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store.put("full/0", b"")
    monkeypatch.setattr(os, "fsync", fail)
    refused(store, sentence)
    monkeypatch.undo()
    assert store.list("") == ["full/0"]
    assert store.list(".tmp/") == []


def test_a_file_where_a_folder_is_needed(store: FileObjects) -> None:
    store.put("full", b"")
    refused(store, "has a file where a folder is needed")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_without_permission(store: FileObjects, tmp_path: Path) -> None:
    store.put("full/0", b"")
    for folder in ("full", ".tmp"):
        (tmp_path / "root" / folder).chmod(0o555)

    def work() -> None:
        if os.getuid() == 0:
            for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
                above.chmod(0o755)
            os.setuid(65534)
        refused(store, "denies permission")

    in_child(work)


def test_a_lost_reply_of_link_is_unknown(
    store: FileObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.ETIMEDOUT, "timed out")

    monkeypatch.setattr(os, "link", lost)
    with pytest.raises(OutcomeUnknown):
        store.put_if_absent("n/1", b"x")
    assert store.get("n/1") == b"x"
    assert store.list(".tmp/") == []


def test_a_name_that_could_not_be_synced_is_not_read_until_it_is(
    store: FileObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("n/0", b"")

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "_fsync_folder", fail)
    with pytest.raises(OutcomeUnknown, match="could not be synced"):
        store.put_if_absent("n/1", b"x")
    with pytest.raises(StoreUnavailable):
        store.get("n/1")
    with pytest.raises(OutcomeUnknown):  # the name is taken, perhaps by this process
        store.put_if_absent("n/1", b"x")
    monkeypatch.undo()
    assert store.get("n/1") == b"x"
