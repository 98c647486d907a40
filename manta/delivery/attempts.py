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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from manta.delivery.outcomes import (
    OUTCOME_SCHEMA,
    Outcome,
    OutcomeKind,
    outcomes_of,
    outcomes_table,
)
from manta.delivery.senders import Known
from manta.errors import Damaged, Fenced, IncompatibleFormat
from manta.ids import MessageRef

FORMAT = b"1"
_RECORD_SCHEMA = pa.schema([("record", pa.string()), ("lease_id", pa.int64()), *OUTCOME_SCHEMA])


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
    """An Arrow IPC stream of one table; the schema's metadata holds format and low water."""
    outcomes = outcomes_table(outcome for _, outcome in entry.outcomes)
    parts = [
        pa.table({"record": pa.repeat("lease", len(entry.leases)), "lease_id": _ids(entry.leases)}),
        pa.table(
            {
                "record": pa.repeat("attempt", len(entry.attempts)),
                "lease_id": _ids(attempt.lease_id for attempt in entry.attempts),
                "subscriber_id": _ids(attempt.subscriber_id for attempt in entry.attempts),
                "message_key": _ids(attempt.message_key for attempt in entry.attempts),
            }
        ),
        pa.table(
            [
                pa.repeat("outcome", outcomes.num_rows),
                _ids(lease_id for lease_id, _ in entry.outcomes),
                *outcomes.columns,
            ],
            schema=_RECORD_SCHEMA,
        ),
    ]
    schema = _RECORD_SCHEMA.with_metadata(
        {b"format": FORMAT, b"low_water": str(entry.low_water).encode()}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for part in parts:
            if part.num_rows:
                writer.write_table(_widened(part, schema))
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def decode_entry(body: bytes, name: str) -> Entry:
    """Raises ``Damaged`` or ``IncompatibleFormat``; ``name`` is the object's, for the error."""
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != FORMAT:
            raise IncompatibleFormat(
                f"{name} has format {metadata.get(b'format')!r}; this release reads {FORMAT!r}",
                object=name,
            )
        low_water = int(metadata[b"low_water"])
        records = table.column("record").to_pylist()
        leases = table.column("lease_id").to_pylist()
        places: dict[str, list[int]] = {"lease": [], "attempt": [], "outcome": []}
        for place, record in enumerate(records):
            places[record].append(place)
        attempted = table.take(_ids(places["attempt"]))
        refs = zip(*(attempted.column(n).to_pylist() for n in Attempt._fields), strict=True)
        outcomes = outcomes_of(table.take(_ids(places["outcome"])).select(OUTCOME_SCHEMA.names))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise Damaged(f"{name} is no entry of an attempt journal: {error}", object=name) from error
    return Entry(
        low_water,
        tuple(leases[place] for place in places["lease"]),
        tuple(Attempt(*ref) for ref in refs),
        tuple(zip((leases[place] for place in places["outcome"]), outcomes, strict=True)),
    )


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


def _widened(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """The part with all columns of the schema, NULL where it has none."""
    present = set(part.column_names)
    columns = [
        part.column(f.name) if f.name in present else pa.nulls(part.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
