"""A journal of numbered entries with one owner at a time, on nothing but put-if-absent.

Owns: the objects ``{prefix}/{sequence:012d}``. The invariants:

- Entry *n* is written once and never altered; whoever stored it owns that number.
- Only the writer whose bytes stand under a number believes that its append succeeded.
- Each incarnation of an owner first appends an EPOCH entry with an epoch greater than all before.
  EPOCH entries are never deleted. A stalled owner's next number is therefore always that of a later
  owner's EPOCH entry, or of one after it that is there still, however much has been truncated in
  between: its append is refused, it learns so by reading, and stops.

One thing the journal alone cannot see: a *taker* that read its starting point long ago may write
its EPOCH entry into truncated numbers. It owns nothing then. ``manta.store.manifest.recover`` is
the way to take over a journal that is ever truncated: it looks at the manifest again afterwards.

On crash: an append whose caller died is there whole or not at all. The next incarnation reads to
the first absent number and decides by what it finds. A reader needs no ownership.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from hashlib import blake2b
from threading import Lock
from typing import NamedTuple, NoReturn

from manta.clock import Clock
from manta.errors import (
    Damaged,
    Fenced,
    IncompatibleFormat,
    InvalidRequest,
    MantaError,
    OutcomeUnknown,
)
from manta.store.objects import ObjectStore, check_path
from manta.store.settle import UNDECIDED_S, put_settled

FORMAT_VERSION = 1
BODY_BYTES_MAX = 256 << 20
OWNER_BYTES_MAX = 255
_MAGIC = b"MNTJ"
# magic, format version, kind, length of owner, epoch, sequence, writer nonce, length of body
_HEADER = struct.Struct(">4sHBBQQ16sQ")
_DIGEST_BYTES = 16


class Kind(IntEnum):
    """What an entry is: the owner's data, or the mark of a new owner."""

    DATA = 1
    EPOCH = 2


class Entry(NamedTuple):
    """One entry. ``owner`` is the writer's name for people; ``nonce`` tells incarnations apart."""

    sequence: int
    epoch: int
    kind: Kind
    owner: str
    nonce: bytes
    body: bytes


class TakeOver(NamedTuple):
    """A finished take-over: the new epoch, and the sequence of its EPOCH entry (the tail)."""

    epoch: int
    tail: int


def encode_entry(entry: Entry, folder: str) -> bytes:
    """The bytes of an entry of the journal in ``folder`` (which the checksum covers too)."""
    owner = entry.owner.encode()
    header = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        entry.kind,
        len(owner),
        entry.epoch,
        entry.sequence,
        entry.nonce,
        len(entry.body),
    )
    return b"".join((header, owner, _digest(folder, header, owner, entry.body), entry.body))


def decode_entry(data: bytes, folder: str, sequence: int, path: str) -> Entry:
    """The entry in ``data``. Raises ``Damaged`` or ``IncompatibleFormat``, naming the object."""

    def damaged(why: str) -> Damaged:
        return Damaged(f"journal entry {path} is damaged: {why}", object=path)

    if len(data) < _HEADER.size:
        raise damaged(f"torn, {len(data)} bytes are less than a header")
    magic, version, kind, owner_length, epoch, number, nonce, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise damaged("it does not begin like a journal entry")
    if version != FORMAT_VERSION:
        raise IncompatibleFormat(
            f"journal entry {path} has format version {version}; this release reads "
            f"{FORMAT_VERSION}",
            object=path,
        )
    body_at = _HEADER.size + owner_length + _DIGEST_BYTES
    if len(data) != body_at + length:
        raise damaged(f"torn, {len(data)} bytes instead of {body_at + length}")
    owner = data[_HEADER.size : _HEADER.size + owner_length]
    body = data[body_at:]
    if data[body_at - _DIGEST_BYTES : body_at] != _digest(
        folder, data[: _HEADER.size], owner, body
    ):
        raise damaged("altered, or written for another journal: its checksum does not match")
    if number != sequence:
        raise damaged(f"it says that it is entry {number}")
    return Entry(number, epoch, Kind(kind), owner.decode(), nonce, body)


def _digest(folder: str, header: bytes, owner: bytes, body: bytes) -> bytes:
    hasher = blake2b(folder.encode() + b"\0", digest_size=_DIGEST_BYTES)
    hasher.update(header)
    hasher.update(owner)
    hasher.update(body)
    return hasher.digest()


class Journal:
    """One process's hold on a journal. ``nonce``: 16 random bytes, new for each incarnation.

    ``read`` and ``replay`` need no take-over. ``append`` is serialized: one entry is in flight.
    """

    def __init__(
        self,
        objects: ObjectStore,
        prefix: str,
        owner: str,
        nonce: bytes,
        clock: Clock,
        *,
        undecided_s: float = UNDECIDED_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if len(nonce) != 16 or len(owner.encode()) > OWNER_BYTES_MAX:
            raise ValueError(f"nonce: 16 bytes, owner: at most {OWNER_BYTES_MAX} bytes")
        self.prefix = check_path(prefix.removesuffix("/"))
        self._folder = self.prefix.rsplit("/", 1)[-1]
        self._objects = objects
        self._owner = owner
        self._nonce = nonce
        self._clock = clock
        self._undecided_s = undecided_s
        self._sleep = sleep
        self._lock = Lock()
        self._closed: MantaError | None = None
        self._kinds: dict[int, Kind] = {}  # of entries that may still be there
        self.epoch = 0  # 0: not taken over
        self.tail = 0  # the last sequence that this process wrote
        self._began = 0  # the sequence of our EPOCH entry

    # -- reading ------------------------------------------------------------------------------

    def path(self, sequence: int) -> str:
        """The object of an entry."""
        return f"{self.prefix}/{sequence:012d}"

    def read(self, sequence: int) -> Entry | None:
        """Entry ``sequence``, or ``None``. Raises ``Damaged``, ``StoreUnavailable``."""
        path = self.path(sequence)
        data = self._objects.get(path)
        if data is None:
            return None
        entry = decode_entry(data, self._folder, sequence, path)
        self._kinds[sequence] = entry.kind
        return entry

    def replay(self, after: int) -> Iterator[Entry]:
        """Entries ``after + 1``, … to the tail, EPOCH entries included.

        Raises ``Damaged``, naming the object, for a hole or an entry that cannot be read.
        """
        sequence = after + 1
        while True:
            entry = self.read(sequence) or self._tail_or_hole(sequence)
            if entry is None:
                return
            yield entry
            sequence += 1

    def sequences(self) -> list[int]:
        """The numbers present by the store's listing, in order. Only ever a hint."""
        names = (path.rsplit("/", 1)[-1] for path in self._objects.list(f"{self.prefix}/"))
        return sorted(int(name) for name in names if len(name) == 12 and name.isdecimal())

    def _tail_or_hole(self, sequence: int) -> Entry | None:
        """``None`` when nothing follows the absent ``sequence``; an entry that has just come."""
        listed = self.sequences()
        if not listed or listed[-1] < sequence:
            return None
        entry = self.read(sequence)  # it may have been appended in between
        if entry is None:
            raise Damaged(
                f"journal entry {self.path(sequence)} is missing, though entry {listed[-1]} is "
                "there: deleted, or truncated because a newer manifest covers it",
                object=self.path(sequence),
            )
        return entry

    # -- owning -------------------------------------------------------------------------------

    def take_over(self, covered: int = 0, floor_epoch: int = 0, body: bytes = b"") -> TakeOver:
        """Become the owner: append an EPOCH entry behind all entries after ``covered``.

        ``covered`` is the sequence up to which the caller has state (a manifest, or what it has
        replayed); ``floor_epoch`` the greatest epoch known to it, required with ``covered``. What
        others append meanwhile lies between ``covered`` and the tail: replay it afterwards.

        Raises ``StoreUnavailable`` (try again), ``OutcomeUnknown`` (exit), ``Damaged`` (a hole).
        """
        if covered and not floor_epoch:
            raise ValueError("floor_epoch: the epoch of the manifest or entry at `covered`")
        with self._lock:
            self._check_open()
            epoch, sequence = floor_epoch, covered + 1
            while True:
                entry = self.read(sequence) or self._tail_or_hole(sequence)
                if entry is None:
                    mine = Entry(
                        sequence, epoch + 1, Kind.EPOCH, self._owner, self._nonce, bytes(body)
                    )
                    entry = self._store(mine)
                    if entry is None:
                        self.epoch, self.tail, self._began = epoch + 1, sequence, sequence
                        return TakeOver(epoch + 1, sequence)
                epoch = max(epoch, entry.epoch)
                sequence += 1

    def append(self, body: bytes) -> int:
        """Store the next entry; its sequence. Durable and ours on return.

        Raises ``StoreUnavailable``: definitely not stored, the caller rolls back and may go on.
        ``Fenced``, ``OutcomeUnknown``, ``Damaged``: the journal is closed, the process must exit.
        """
        if len(body) > BODY_BYTES_MAX:
            raise InvalidRequest(
                f"an entry of {len(body)} bytes", expected=f"at most {BODY_BYTES_MAX} bytes"
            )
        with self._lock:
            self._check_open()
            if not self.epoch:
                raise RuntimeError("append before take_over")
            sequence = self.tail + 1
            entry = Entry(sequence, self.epoch, Kind.DATA, self._owner, self._nonce, body)
            other = self._store(entry)
            if other is not None:
                self._overtaken(sequence, other)
            self.tail = sequence
            return sequence

    def confirm(self) -> None:
        """That nobody has taken over: what is answered without an append must not be old news.

        The next number after a stalled owner's last is always a later EPOCH entry. Raises
        ``Fenced``, ``Damaged`` (the process must exit) or ``StoreUnavailable`` (nothing is known).
        """
        with self._lock:
            self._check_open()
            try:
                other = self.read(self.tail + 1)
            except Damaged as fault:
                self._close(fault)
            if other is not None:
                self._overtaken(self.tail + 1, other)

    def _overtaken(self, sequence: int, other: Entry) -> NoReturn:
        self._close(
            Fenced(
                f"{self.path(sequence)} was written by {other.owner} in epoch "
                f"{other.epoch}; this process had epoch {self.epoch} and must stop",
                epoch=other.epoch,
                object=self.path(sequence),
            )
        )

    def fence_if_newer(self, epoch: int, covered: int = 0) -> None:
        """Close the journal and raise ``Fenced`` if a manifest shows that others are ahead of us.

        ``epoch`` and ``covered`` are the manifest's. They are ahead when its epoch is newer, when
        it covers entries beyond our last, or when an older epoch's covers our EPOCH entry: then
        that was written into truncated numbers and owns nothing.
        """
        overtaken = covered > self.tail or (epoch < self.epoch and covered >= self._began)
        if epoch > self.epoch or overtaken:
            self._close(
                Fenced(
                    f"{self.prefix}: a manifest of epoch {epoch} covers entry {covered}; this "
                    f"process had epoch {self.epoch} and entry {self.tail} and must stop",
                    epoch=epoch,
                )
            )

    def truncate(self, up_to: int) -> int:
        """Delete the DATA entries up to a sequence that a published manifest covers; how many.

        EPOCH entries stay for ever, and so does an entry that cannot be read: it might be one.
        """
        doomed: list[int] = []
        for sequence in self.sequences():
            if sequence > up_to:
                break
            if sequence not in self._kinds:
                try:
                    self.read(sequence)
                except Damaged:
                    continue
            if self._kinds.get(sequence) is Kind.DATA:
                doomed.append(sequence)
        self._objects.delete(self.path(sequence) for sequence in doomed)
        for sequence in doomed:
            self._kinds.pop(sequence, None)
        return len(doomed)

    # -- the end of one write -----------------------------------------------------------------

    def _store(self, entry: Entry) -> Entry | None:
        """Put the entry and settle whose the number is: ``None`` ours, else the other's entry."""
        try:
            found = put_settled(
                self._objects,
                self.path(entry.sequence),
                encode_entry(entry, self._folder),
                self._clock,
                undecided_s=self._undecided_s,
                sleep=self._sleep,
            )
        except OutcomeUnknown as fault:
            self._close(fault)
        if found is not None:
            return self._other(found, entry)
        self._kinds[entry.sequence] = entry.kind
        return None

    def _other(self, found: bytes, entry: Entry) -> Entry:
        path = self.path(entry.sequence)
        try:
            other = decode_entry(found, self._folder, entry.sequence, path)
        except Damaged as fault:
            self._close(fault)
        if other.nonce == self._nonce:  # a try that the store had called refused has come to be
            self._close(
                OutcomeUnknown(
                    f"{path} holds an earlier try of this process that was reported as refused; "
                    "recovery decides",
                    object=path,
                )
            )
        self._kinds[entry.sequence] = other.kind
        return other

    def _check_open(self) -> None:
        if self._closed is not None:
            self._close(self._closed)

    def _close(self, fault: MantaError) -> NoReturn:
        self._closed = fault
        raise type(fault)(fault.message, **fault.details)
