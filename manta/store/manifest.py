"""Numbered manifests: which files hold the state up to which journal entry.

Owns: the objects ``{prefix}/{number:06d}.json``; the highest number wins. The invariants:

- A manifest is written once, by put-if-absent, after every file it names is durable.
- ``(epoch, journal_sequence)`` never goes back along the numbers, except that a stalled owner may
  publish late what it had acknowledged; the next owner then publishes one number further on.
- State = the latest manifest + the journal's entries after its ``journal_sequence``.

On crash: files without manifest are garbage and are deleted a day later. A manifest that was
published before the journal's entries were deleted is enough to do without them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

from manta.clock import Clock, as_text, parse_instant
from manta.errors import Damaged, Fenced, IncompatibleFormat, OutcomeUnknown, StoreUnavailable
from manta.store.journal import Entry, Journal, Kind, TakeOver
from manta.store.objects import TEMPORARY, ObjectStore, check_path
from manta.store.settle import put_settled

FORMAT_VERSION = 1
GARBAGE_AGE_S = 86_400
RECOVER_TRIES = 5
_NUMBER_DIGITS = 6


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One immutable file of the lake. ``kind``: ``part`` (events), ``delta`` or ``base`` (state).

    Its rows come from the journal entries ``sequence_from`` to ``sequence_to``, both included;
    ``min_time`` and ``max_time`` bound the rows' times where the table has them.
    """

    path: str
    rows: int
    size_bytes: int
    kind: str
    min_time: datetime | None = None
    max_time: datetime | None = None
    sequence_from: int = 0
    sequence_to: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """The state of one shard (or journaled singleton) up to ``journal_sequence``.

    ``extra`` is small state of the owner's, any JSON.
    """

    number: int
    shard: str
    epoch: int
    journal_sequence: int
    files: Mapping[str, tuple[FileEntry, ...]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def paths(self) -> set[str]:
        """All files that it names."""
        return {entry.path for entries in self.files.values() for entry in entries}


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON with a checksum over its canonical form."""
    content = {name: getattr(manifest, name) for name in Manifest.__slots__}
    content["files"] = {
        table: [_plain(entry) for entry in entries] for table, entries in manifest.files.items()
    }
    return _dump({"manifest": content, "checksum": _checksum(content)}) + b"\n"


def _plain(entry: FileEntry) -> dict[str, Any]:
    content = asdict(entry)
    for bound in ("min_time", "max_time"):
        content[bound] = None if content[bound] is None else as_text(content[bound])
    return content


def decode_manifest(data: bytes, path: str) -> Manifest:
    """The manifest in ``data``. Raises ``Damaged`` or ``IncompatibleFormat``, naming the object."""

    def damaged(why: str) -> Damaged:
        return Damaged(f"manifest {path} is damaged: {why}", object=path)

    try:
        outer = json.loads(data)
        content, checksum = outer["manifest"], outer["checksum"]
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as fault:
        raise damaged(f"torn or altered, {len(data)} bytes ({fault!r:.80})") from None
    if checksum != _checksum(content):
        raise damaged("altered: its checksum does not match")
    if version != FORMAT_VERSION:
        raise IncompatibleFormat(
            f"manifest {path} has format version {version!r}; this release reads {FORMAT_VERSION}",
            object=path,
        )
    if int(path.rsplit("/", 1)[-1].removesuffix(".json")) != content["number"]:
        raise damaged(f"it says that it is number {content['number']}")
    content["files"] = {
        table: tuple(_file_entry(entry) for entry in entries)
        for table, entries in content["files"].items()
    }
    return Manifest(**content)


def _file_entry(content: dict[str, Any]) -> FileEntry:
    for bound in ("min_time", "max_time"):
        if content[bound] is not None:
            content[bound] = parse_instant(content[bound])
    return FileEntry(**content)


def _dump(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)
    return text.encode()


def _checksum(content: Any) -> str:
    return _digest(_dump(content)).hex()


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


class Manifests:
    """The manifests of one owner, below ``prefix`` (``manifest/shard=000``)."""

    def __init__(
        self,
        objects: ObjectStore,
        prefix: str,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.prefix = check_path(prefix.removesuffix("/"))
        self._objects = objects
        self._clock = clock
        self._sleep = sleep
        # Digests of what was tried since the last success: found stored, it is no other owner's.
        self._tried: set[bytes] = set()

    def path(self, number: int) -> str:
        """The object of a manifest."""
        return f"{self.prefix}/{number:0{_NUMBER_DIGITS}d}.json"

    def numbers(self) -> list[int]:
        """The numbers present by the store's listing, in order."""
        names = (path.rsplit("/", 1)[-1] for path in self._objects.list(f"{self.prefix}/"))
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def read(self, number: int) -> Manifest | None:
        """One manifest. Raises ``Damaged``, ``StoreUnavailable``."""
        path = self.path(number)
        data = self._objects.get(path)
        return None if data is None else decode_manifest(data, path)

    def latest(self) -> Manifest | None:
        """The manifest with the highest number: a listing says where to begin to look."""
        listed = self.numbers()
        found: Manifest | None = None
        number = listed[-1] if listed else 1
        while (following := self.read(number)) is not None:
            found, number = following, number + 1
        if listed and found is None:  # not to be taken for a store that is still empty
            raise Damaged(
                f"manifest {self.path(number)} is listed but is not there", object=self.path(number)
            )
        return found

    def publish(self, manifest: Manifest) -> Manifest:
        """Store it under the number after ``manifest.number`` (that of its base); as stored.

        Raises ``Fenced`` if another owner's manifest stands there or beyond, ``StoreUnavailable``
        (not stored), ``OutcomeUnknown`` (perhaps stored; publishing again later is safe).
        """
        candidate = replace(manifest, number=manifest.number + 1)
        while (other := self._publish_one(candidate)) is not None:
            self._fence(candidate, other)
            candidate = replace(candidate, number=candidate.number + 1)
        try:
            # A number whose manifest was deleted long ago is absent as well: look beyond it.
            newest = self.latest()
        except StoreUnavailable as fault:
            raise OutcomeUnknown(fault.message, **fault.details) from fault
        if newest is not None and newest.number > candidate.number:
            self._fence(candidate, newest)
        self._tried.clear()
        return candidate

    def _publish_one(self, candidate: Manifest) -> Manifest | None:
        """``None`` when stored, else the manifest that stands under the number."""
        path = self.path(candidate.number)
        data = encode_manifest(candidate)
        self._tried.add(_digest(data))
        found = put_settled(self._objects, path, data, self._clock, sleep=self._sleep)
        if found is None:
            return None
        other = decode_manifest(found, path)
        return replace(other, epoch=0) if _digest(found) in self._tried else other

    def _fence(self, mine: Manifest, other: Manifest) -> None:
        if other.epoch >= mine.epoch or other.journal_sequence > mine.journal_sequence:
            raise Fenced(
                f"{self.path(other.number)} was published in epoch {other.epoch} up to entry "
                f"{other.journal_sequence}; this process had epoch {mine.epoch} and must stop",
                epoch=other.epoch,
                object=self.path(other.number),
            )

    def collect_garbage(
        self, lake_prefix: str | None = None, min_age_s: float = GARBAGE_AGE_S
    ) -> list[str]:
        """Delete what nothing has needed for ``min_age_s``; the deleted paths.

        That is: manifests replaced so long ago; files below ``lake_prefix`` (a folder that only
        this owner writes) that no remaining manifest names and that are so old; and temporary
        files that crashes have left. Raises ``Damaged`` and deletes nothing if a manifest that has
        to be kept cannot be read.
        """
        numbers = self.numbers()
        if not numbers:
            return []
        oldest = self._clock.now() - timedelta(seconds=min_age_s)
        kept = [numbers[-1]]
        for number, successor in zip(numbers[-2::-1], numbers[:0:-1], strict=True):
            if self._older(self.path(successor), oldest):
                break
            kept.append(number)
        named: set[str] = set()
        for number in kept:
            manifest = self.read(number)
            named |= manifest.paths() if manifest is not None else set()
        doomed = [self.path(number) for number in numbers if number not in kept]
        candidates = self._objects.list(TEMPORARY)
        if lake_prefix is not None:
            candidates += self._objects.list(lake_prefix.rstrip("/") + "/")
        doomed += [path for path in candidates if path not in named and self._older(path, oldest)]
        self._objects.delete(doomed)
        return doomed

    def _older(self, path: str, instant: datetime) -> bool:
        found = self._objects.stat(path)
        return found is not None and found.last_modified < instant


class Recovered(NamedTuple):
    """What a recovery ended with: the base for the next ``publish``, and the take-over."""

    manifest: Manifest | None
    taken: TakeOver


def recover(
    journal: Journal,
    manifests: Manifests,
    restore: Callable[[Manifest | None], None],
    apply: Callable[[Entry], None],
) -> Recovered:
    """Bring an owner's state up and take its journal over.

    ``restore`` sets the state to that of a manifest (``None``: empty), discarding what was there;
    ``apply`` adds one DATA entry. Both may be called again from the start, since an owner that is
    still alive may publish and truncate meanwhile.

    Entries are deleted only after a manifest that covers them is published. So if the manifest
    that we began with is still the latest once our EPOCH entry is stored, nothing behind it had
    been deleted: what was read is complete, and the EPOCH entry stands at the true end. Otherwise
    begin again. (A missing number is no sufficient sign: another that made the same mistake may
    have written its EPOCH entry into the gap.)

    Raises ``Damaged`` for what no newer manifest explains, ``Fenced`` if others keep overtaking.
    """
    for _ in range(RECOVER_TRIES):
        manifest = manifests.latest()
        last, epoch = (manifest.journal_sequence, manifest.epoch) if manifest else (0, 0)
        restore(manifest)
        try:
            for entry in journal.replay(last):
                last, epoch = entry.sequence, max(epoch, entry.epoch)
                _apply(entry, apply)
            taken = journal.take_over(last, epoch)
            for entry in journal.replay(last):
                if entry.sequence >= taken.tail:
                    break
                _apply(entry, apply)
        except Damaged:
            if _same(manifest, manifests.latest()):
                raise
            continue
        if _same(manifest, manifests.latest()):
            return Recovered(manifest, taken)
    raise Fenced(f"{journal.prefix}: overtaken {RECOVER_TRIES} times while recovering")


def _apply(entry: Entry, apply: Callable[[Entry], None]) -> None:
    if entry.kind is Kind.DATA:
        apply(entry)


def _same(base: Manifest | None, newest: Manifest | None) -> bool:
    return (base.number if base else 0) == (newest.number if newest else 0)
