"""Stores that fail on purpose, by a passed-in ``Random``: the same seed gives the same faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from manta.clock import Clock
from manta.errors import OutcomeUnknown, StoreUnavailable
from manta.store.objects import (
    AlreadyExists,
    ObjectStat,
    ObjectStore,
    check_path,
    check_prefix,
)


class MemoryObjects:
    """``ObjectStore`` in a dictionary, for simulations that need a thousand runs a minute."""

    def __init__(self, clock: Clock) -> None:
        self.root = "memory://"
        self.held: dict[str, tuple[bytes, object]] = {}
        self._clock = clock

    def put_if_absent(self, path: str, data: bytes) -> None:
        if check_path(path) in self.held:
            raise AlreadyExists(f"{path} exists already", path=path)
        self.put(path, data)

    def put(self, path: str, data: bytes) -> None:
        self.held[check_path(path)] = (bytes(data), self._clock.now())

    def put_file(self, path: str, source: str) -> None:
        self.put(path, Path(source).read_bytes())

    def get(self, path: str) -> bytes | None:
        found = self.held.get(check_path(path))
        return None if found is None else found[0]

    def fetch(self, path: str, target: str) -> bool:
        data = self.get(path)
        if data is not None:
            Path(target).write_bytes(data)
        return data is not None

    def stat(self, path: str) -> ObjectStat | None:
        found = self.held.get(check_path(path))
        return None if found is None else ObjectStat(len(found[0]), found[1])  # type: ignore[arg-type]

    def list(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        return sorted(path for path in list(self.held) if path.startswith(prefix))

    def delete(self, paths: Iterable[str]) -> None:
        for path in list(paths):
            self.held.pop(check_path(path), None)

    def local_path(self, path: str) -> str | None:
        check_path(path)
        return None

    def url(self, path: str) -> str:
        return f"memory://{check_path(path)}"


@dataclass(frozen=True)
class Faults:
    """The share of operations that go wrong, each between 0 and 1."""

    lose_reply: float = 0.0  # stored, then OutcomeUnknown
    time_out: float = 0.0  # not stored, then OutcomeUnknown
    refuse: float = 0.0  # StoreUnavailable, not stored
    fail_read: float = 0.0  # StoreUnavailable from get, list, stat


NO_FAULTS = Faults()


class FaultyObjects:
    """Any store with faults before it. ``faults`` may be set anew at any time.

    ``full`` refuses every write; ``down`` makes every answer fail (reads refused, writes unknown
    and not stored). ``tear`` and ``flip`` damage an object that is there already.
    """

    def __init__(self, inner: ObjectStore, random: Random, faults: Faults = NO_FAULTS) -> None:
        self.inner = inner
        self.root = inner.root
        self.faults = faults
        self.full = False
        self.down = False
        self.counts: dict[str, int] = {}
        self._random = random

    def put_if_absent(self, path: str, data: bytes) -> None:
        with self._writing(path):
            self.inner.put_if_absent(path, data)

    def put(self, path: str, data: bytes) -> None:
        with self._writing(path):
            self.inner.put(path, data)

    def put_file(self, path: str, source: str) -> None:
        with self._writing(path):
            self.inner.put_file(path, source)

    def get(self, path: str) -> bytes | None:
        self._reading(path)
        return self.inner.get(path)

    def fetch(self, path: str, target: str) -> bool:
        self._reading(path)
        return self.inner.fetch(path, target)

    def stat(self, path: str) -> ObjectStat | None:
        self._reading(path)
        return self.inner.stat(path)

    def list(self, prefix: str) -> list[str]:
        self._reading(prefix)
        return self.inner.list(prefix)

    def delete(self, paths: Iterable[str]) -> None:
        names = list(paths)
        if self.down:
            raise StoreUnavailable("the store is down", object=names[0] if names else "")
        self.inner.delete(names)

    def local_path(self, path: str) -> str | None:
        return self.inner.local_path(path)

    def url(self, path: str) -> str:
        return self.inner.url(path)

    # -- damage -------------------------------------------------------------------------------

    def tear(self, path: str, keep: int | None = None) -> None:
        """Cut the object to ``keep`` bytes, or to a random shorter length."""
        data = self.inner.get(path)
        assert data is not None, path
        self.inner.put(path, data[: self._random.randrange(len(data)) if keep is None else keep])

    def flip(self, path: str, bit: int | None = None) -> None:
        """Turn over one bit of the object, a random one unless told."""
        data = bytearray(self.inner.get(path) or b"")
        at = self._random.randrange(len(data) * 8) if bit is None else bit
        data[at // 8] ^= 1 << at % 8
        self.inner.put(path, bytes(data))

    # -- trouble ------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        if self.full:
            raise StoreUnavailable(f"the store is full ({path})", object=path)
        if self.down or self._happens("time_out"):
            raise OutcomeUnknown(f"{path}: timed out", object=path)
        if self._happens("refuse"):
            raise StoreUnavailable(f"refused ({path})", object=path)
        yield
        if self._happens("lose_reply"):
            raise OutcomeUnknown(f"{path}: the reply was lost", object=path)

    def _reading(self, path: str) -> None:
        if self.down or self._happens("fail_read"):
            raise StoreUnavailable(f"the store did not answer ({path})", object=path)

    def _happens(self, fault: str) -> bool:
        happens = self._random.random() < getattr(self.faults, fault)
        if happens:
            self.counts[fault] = self.counts.get(fault, 0) + 1
        return happens
