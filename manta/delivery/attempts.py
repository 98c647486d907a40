"""The attempt journal of a Sender: what it proves after the Sender is gone.

A Sender appends, in this order and each before the step it covers: *lease opened* before it asks a
shard for the lease, the *attempts* before the first byte of their mails, the *outcomes* before it
settles them. Each entry also says the **low water**: the first entry that is still needed, since
everything older is about leases that are settled for good. Entries below it may be deleted.

Proof (``resolve``). Whoever resolves has first fenced the journal: its EPOCH entry stands under
number F, so no older incarnation appends after it. Then, for a message that a shard says is held:

    outcome on record            that outcome
    attempt on record            uncertain: the mail may have gone out
    only its lease on record     certainly not attempted
    not even its lease           the journal has lost something: uncertain

This holds only for a complete journal. A missing or unreadable entry between low water and F, an
entry behind F that no later owner wrote, or a shard that was told of an entry at F or later: then
the journal proves nothing and every message without an outcome on record is uncertain.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from manta.delivery.outcomes import (
    OUTCOME_SCHEMA,
    Outcome,
    OutcomeKind,
    outcomes_table,
)
from manta.delivery.senders import Known
from manta.errors import Damaged, Fenced, IncompatibleFormat
from manta.ids import MessageRef

MAGIC = b"MAE2"
_HEAD = struct.Struct("<4sqIII")
_TEXTS = ("outcome", "reason", "reply", "source", "bounce_class", "category")
_OUTCOME_NUMBERS = 6  # see ``_numbers``
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_NEVER = -(1 << 63)


class Attempt(NamedTuple):
    """One message that may be attempted under a lease; a lease attempts a message once."""

    lease_id: int
    subscriber_id: int
    message_key: int


@dataclass(frozen=True)
class Entry:
    """What one group commit of the Sender stores."""

    low_water: int
    leases: tuple[int, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    outcomes: tuple[tuple[int, Outcome], ...] = ()  # with their lease


def encode_entry(entry: Entry) -> bytes:
    """``MAE2``, the low water and the three counts; then the numbers of each kind of record in
    rows, little-endian; then the texts of the outcomes, in columns, as JSON."""
    outcomes = entry.outcomes
    numbers = [
        *entry.leases,
        *chain.from_iterable(entry.attempts),
        *chain.from_iterable(_numbers(lease_id, outcome) for lease_id, outcome in outcomes),
    ]
    texts = [[getattr(outcome, name) for _, outcome in outcomes] for name in _TEXTS]
    counts = len(entry.leases), len(entry.attempts), len(outcomes)
    return b"".join(
        (
            _HEAD.pack(MAGIC, entry.low_water, *counts),
            struct.pack(f"<{len(numbers)}q", *numbers),
            json.dumps(texts, separators=(",", ":")).encode("ascii"),
        )
    )


def decode_entry(body: bytes, name: str) -> Entry:
    """Raises ``Damaged`` or ``IncompatibleFormat``; ``name`` is the object's, for the error."""
    if body[:3] == MAGIC[:3] and body[:4] != MAGIC:
        raise IncompatibleFormat(
            f"{name} has format {body[:4]!r}; this release reads {MAGIC!r}", object=name
        )
    try:
        magic, low_water, leases, attempts, outcomes = _HEAD.unpack_from(body)
        if magic != MAGIC:
            raise ValueError("it begins with something else")
        count = leases + len(Attempt._fields) * attempts + _OUTCOME_NUMBERS * outcomes
        rest = iter(struct.unpack_from(f"<{count}q", body, _HEAD.size))
        opened = tuple(islice(rest, leases))
        attempted = tuple(Attempt(*islice(rest, len(Attempt._fields))) for _ in range(attempts))
        rows = [tuple(islice(rest, _OUTCOME_NUMBERS)) for _ in range(outcomes)]
        texts = json.loads(body[_HEAD.size + 8 * count :])
        told = [_told(row, *said) for row, *said in zip(rows, *texts, strict=True)]
    except (struct.error, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(f"{name} is no entry of an attempt journal: {error}", object=name) from error
    return Entry(low_water, opened, attempted, tuple(told))


def _numbers(lease_id: int, outcome: Outcome) -> tuple[int, ...]:
    due_at = _NEVER if outcome.due_at is None else _microseconds(outcome.due_at)
    return (
        lease_id,
        outcome.subscriber_id,
        outcome.message_key,
        _microseconds(outcome.occurred_at),
        outcome.reply_code,
        due_at,
    )


def _told(numbers: tuple[int, ...], kind: str, *texts: str) -> tuple[int, Outcome]:
    lease_id, subscriber_id, message_key, occurred, reply_code, due = numbers
    reason, reply, source, bounce_class, category = texts
    outcome = Outcome(
        subscriber_id,
        message_key,
        OutcomeKind(kind),
        _EPOCH + timedelta(microseconds=occurred),
        reason,
        reply_code,
        reply,
        source,
        None if due == _NEVER else _EPOCH + timedelta(microseconds=due),
        bounce_class,
        category,
    )
    return lease_id, outcome


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


@dataclass(frozen=True)
class History:
    """What a fenced journal holds of earlier incarnations.

    ``damage`` says why it proves nothing; empty: complete. ``low_water`` is the first entry that
    the next incarnation must keep until everything is resolved.
    """

    epoch: int
    fence: int
    low_water: int
    damage: str = ""
    leases: frozenset[int] = frozenset()
    attempts: frozenset[Attempt] = frozenset()
    outcomes: Mapping[Attempt, Outcome] = field(default_factory=dict)


VERDICT_SCHEMA = OUTCOME_SCHEMA.append(pa.field("lease_id", pa.int64()))


def resolve(
    history: History, unresolved: pa.Table, journal_sequence: int, now: datetime
) -> pa.Table:
    """Verdicts for ``settling.ResolveOrphans`` on what ``settling.FenceSender`` answered.

    ``journal_sequence`` is the greatest that any shard was told of.
    """
    damage = history.damage
    if journal_sequence >= history.fence:
        damage = damage or f"a shard was told of entry {journal_sequence}, which is not there"
    columns = [unresolved.column(name).to_pylist() for name in Attempt._fields]
    held = [Attempt(*ref) for ref in zip(*columns, strict=True)]
    verdicts = [_verdict(history, message, damage, now) for message in held]
    table = outcomes_table(verdicts)
    return table.append_column(VERDICT_SCHEMA.field("lease_id"), _ids(m.lease_id for m in held))


def _verdict(history: History, message: Attempt, damage: str, now: datetime) -> Outcome:
    outcome = history.outcomes.get(message)
    if outcome is not None:
        return outcome
    reason = ""
    if message in history.attempts:
        reason = "attempted, outcome unknown"
    elif damage:
        reason = "the attempt journal is incomplete"
    elif message.lease_id not in history.leases:
        reason = "the attempt journal lacks the lease"
    kind = OutcomeKind.UNCERTAIN if reason else OutcomeKind.RETURNED
    return Outcome(message.subscriber_id, message.message_key, kind, now, reason)


class JournalPort(Protocol):
    """What is used of ``manta.store.journal.Journal``."""

    @property
    def tail(self) -> int: ...
    def sequences(self) -> list[int]: ...
    def path(self, sequence: int) -> str: ...
    def read(self, sequence: int) -> Any: ...
    def take_over(self, covered: int = 0, floor_epoch: int = 0, body: bytes = b"") -> Any: ...
    def append(self, body: bytes) -> int: ...
    def truncate(self, up_to: int) -> int: ...


class AttemptJournal:
    """A Sender's attempts on a journal. Does I/O through the port and decides nothing else."""

    def __init__(self, journal: JournalPort) -> None:
        self._journal = journal

    def take_over(self, known: Iterable[Known]) -> History:
        """Fence all earlier incarnations and read what they left.

        ``known`` is what every shard answered to ``senders.SenderKnown``. Numbers and epochs go on
        above everything known, even if the journal itself is gone. Raises as ``Journal.take_over``.
        """
        known = list(known)
        listed = self._journal.sequences()
        floor = max((each.epoch for each in known), default=0)
        low_water, unreadable = 1, 0
        for sequence in reversed(listed):
            entry = self._read(sequence)
            if entry is not None:
                floor = max(floor, entry.epoch)
                low_water = decode_entry(entry.body, self._journal.path(sequence)).low_water
                break
            unreadable += 1  # it may have been an EPOCH entry: go above that too
        covered = max([*listed[-1:], *(each.journal_sequence for each in known)], default=0)
        taken = self._journal.take_over(covered, floor + unreadable, encode_entry(Entry(low_water)))
        return self._history(taken.epoch, taken.tail, low_water)

    def append(self, entry: Entry) -> int:
        """Store an entry; its sequence. Raises as ``Journal.append``."""
        return self._journal.append(encode_entry(entry))

    def truncate(self, low_water: int) -> int:
        """Delete what is no longer needed; how many."""
        return self._journal.truncate(low_water - 1)

    def forget(self, people: Iterable[int], sequence: int) -> int:
        """Delete all below the low water that entry ``sequence``, our last, names. How many entries
        still name one of these people, or cannot be read."""
        last = self._read(sequence)
        if last is not None:
            self.truncate(decode_entry(last.body, self._journal.path(sequence)).low_water)
        wanted, count = frozenset(people), 0
        for sequence in self._journal.sequences():
            stored = self._read(sequence)
            if stored is None:
                count += 1
                continue
            entry = decode_entry(stored.body, self._journal.path(sequence))
            named = {attempt.subscriber_id for attempt in entry.attempts}
            named |= {outcome.subscriber_id for _, outcome in entry.outcomes}
            count += bool(named & wanted)
        return count

    def _read(self, sequence: int) -> Any:
        """The entry, or None where it is missing, torn or not ours to understand."""
        try:
            entry = self._journal.read(sequence)
            if entry is not None:
                decode_entry(entry.body, self._journal.path(sequence))
        except Damaged:
            return None
        return entry

    def _history(self, epoch: int, fence: int, low_water: int) -> History:
        """Everything from the low water that the last entry before the fence names."""
        damage = self._beyond(epoch, fence)
        if fence > 1:
            last = self._read(fence - 1)
            if last is None:
                damage = damage or f"{self._journal.path(fence - 1)} is missing or damaged"
            else:
                low_water = decode_entry(last.body, self._journal.path(fence - 1)).low_water
        leases: set[int] = set()
        attempts: set[Attempt] = set()
        outcomes: dict[Attempt, Outcome] = {}
        for sequence in range(low_water, fence):
            stored = self._read(sequence)
            path = self._journal.path(sequence)
            if stored is None:
                damage = damage or f"{path} is missing or damaged"
                continue
            entry = decode_entry(stored.body, path)
            leases.update(entry.leases)
            attempts.update(entry.attempts)
            for lease_id, outcome in entry.outcomes:
                outcomes[Attempt(lease_id, outcome.subscriber_id, outcome.message_key)] = outcome
        return History(
            epoch, fence, low_water, damage, frozenset(leases), frozenset(attempts), outcomes
        )

    def _beyond(self, epoch: int, fence: int) -> str:
        """What stands behind the fence: a later owner stops us, anything else is damage."""
        beyond = [sequence for sequence in self._journal.sequences() if sequence > fence]
        for sequence in beyond:
            entry = self._read(sequence)
            if entry is not None and entry.epoch > epoch:
                raise Fenced(
                    f"{self._journal.path(sequence)} is of epoch {entry.epoch}: this incarnation "
                    f"of epoch {epoch} must stop",
                    epoch=entry.epoch,
                )
        return f"{self._journal.path(beyond[0])} stands behind the fence" if beyond else ""


def refs_of(table: pa.Table) -> list[MessageRef]:
    """The names of a table's messages."""
    columns = (table.column("subscriber_id").to_pylist(), table.column("message_key").to_pylist())
    return [MessageRef(*ref) for ref in zip(*columns, strict=True)]


def _ids(numbers: Iterable[int]) -> pa.Array:
    return pa.array(list(numbers), pa.int64())
