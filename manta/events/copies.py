"""What happened under a merged person's names is theirs: it is kept under the id by which it came,
and copied to whom they live on as.

The original stays with the ``from_id``, whose report, message and token it belongs to; the copy
carries the merge's id, so that an undo takes back all copies at once and leaves both people with
what is their own (``manta.store.hiding``). Counts over many people therefore leave copies out
(``merge_id IS NULL``), reads of one person have them. In a chain of merges each person has a copy.

**Invariant:** of one event a person has one row: a copy whose event is there already is not made,
so every copy may be sent again. What lies in another shard comes back as ``Copies``, which the
caller brings there by ``CopyEvents`` (``manta.people.identifying.forward``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op
from manta.people.aliases import UNDONE, Alias, among_ids, standing
from manta.schema import EVENTS, TRAFFIC_CORRECTIONS


class Copies(NamedTuple):
    """Events for somebody of another shard, and rows of ``traffic_corrections`` that concern such
    events. ``unfinished`` is set where the merge that leads there has been on its way for so long
    that somebody has to finish it: whose."""

    to_id: int
    merge_id: int
    rows: pa.Table
    corrections: pa.Table | None = None
    unfinished: int | None = None


@dataclass(frozen=True)
class CopyEvents:
    """Copies of what ``from_id`` did, for ``to_id``, as far as they are not there.

    Answers the ``Copies`` of those who live on elsewhere. Of an undone merge, or for somebody who
    is gone, nothing is copied.
    """

    key: str | None
    copies: Copies

    def decide(self, database: Database, context: Context) -> Decision:
        to_id, merge_id, rows, corrections, _ = self.copies
        undone = database.rows(
            f"SELECT 1 FROM aliases WHERE merge_id = ? AND state = '{UNDONE}'", [merge_id]
        )
        aliases = standing(database, [to_id])
        if undone or (to_id not in aliases and not _is_here(database, to_id)):
            return Decision(())
        made = Spread([_copy(database, to_id, merge_id, rows)] if rows.num_rows else [])
        if corrections is not None:
            made.corrections.append(_named(corrections, to_id))
        spread_on(database, made, aliases, context)
        return Decision(tuple(made.beyond), made.changes())

    def repeat(self, database: Database, context: Context) -> tuple[Copies, ...]:
        """The answer when the key has been committed before."""
        answer: tuple[Copies, ...] = self.decide(database, context).answer
        return answer


@dataclass
class Spread:
    """What one decision copies: rows of events and corrections for people of this shard, and what
    goes beyond it."""

    events: list[pa.Table] = field(default_factory=list)
    corrections: list[pa.Table] = field(default_factory=list)
    beyond: list[Copies] = field(default_factory=list)

    def changes(self) -> tuple[Change, ...]:
        made = [Change(EVENTS.name, Op.INSERT, rows) for rows in self.events if rows.num_rows]
        made += [Change(TRAFFIC_CORRECTIONS.name, Op.UPSERT, rows) for rows in self.corrections]
        return tuple(made)


def copied(
    database: Database,
    context: Context,
    aliases: Mapping[int, Alias],
    rows: pa.Table,
    corrections: pa.Table | None = None,
) -> Spread:
    """The copies of events for all whom their people live on as. ``aliases`` are those that stand
    of these people."""
    originals = Spread([rows], [] if corrections is None else [corrections])
    spread = Spread()
    if aliases:
        spread_on(database, originals, aliases, context)
        spread.events, spread.beyond = originals.events[1:], originals.beyond
        spread.corrections = originals.corrections[0 if corrections is None else 1 :]
    return spread


def spread_on(
    database: Database, spread: Spread, aliases: Mapping[int, Alias], context: Context
) -> None:
    """Add to ``spread`` what follows from it, merge by merge along each chain."""
    events, corrections = list(spread.events), list(spread.corrections)
    while events or corrections:
        by_person: dict[int, tuple[list[pa.Table], list[pa.Table]]] = {}
        for kind, tables in enumerate((events, corrections)):
            for table in tables:
                for id in pc.unique(table["subscriber_id"]).to_pylist():
                    if id in aliases:
                        part = table.filter(pc.equal(table["subscriber_id"], id))
                        by_person.setdefault(id, ([], []))[kind].append(part)
        events, corrections = [], []
        for id, (own_events, own_corrections) in by_person.items():
            alias = aliases[id]
            if alias.to_id in aliases or _is_here(database, alias.to_id):
                for part in own_events:
                    beside = [*spread.events, *events]
                    events.append(_copy(database, alias.to_id, alias.merge_id, part, beside))
                corrections += [_named(part, alias.to_id) for part in own_corrections]
            else:
                spread.beyond.append(_beyond(alias, own_events, own_corrections, context))
        spread.events += events
        spread.corrections += corrections


def _beyond(
    alias: Alias, events: list[pa.Table], corrections: list[pa.Table], context: Context
) -> Copies:
    rows = pa.concat_tables(events) if events else pa.table({"event_id": pa.array([], pa.int64())})
    return Copies(
        alias.to_id,
        alias.merge_id,
        rows,
        pa.concat_tables(corrections) if corrections else None,
        alias.from_id if alias.unfinished(context.now) else None,
    )


def _copy(
    database: Database,
    to_id: int,
    merge_id: int,
    rows: pa.Table,
    beside: Sequence[pa.Table] = (),
) -> pa.Table:
    """The rows as this person's, each event once, without those that they have, or get by the same
    decision."""
    marked = _named(rows, to_id)
    if "merge_id" in marked.column_names:
        marked = marked.drop_columns(["merge_id"])
    marked = marked.append_column(
        "merge_id", pa.repeat(pa.scalar(merge_id, pa.int64()), rows.num_rows)
    )
    there = database.rows(
        f"SELECT event_id FROM events WHERE {among_ids('subscriber_id', [to_id])}"
        " AND event_id IN (SELECT event_id FROM copies)",
        copies=rows.select(["event_id"]),
    )
    _, first = np.unique(rows["event_id"].to_numpy(), return_index=True)
    once = marked.take(pa.array(np.sort(first)))
    own = [table.filter(pc.equal(table["subscriber_id"], to_id))["event_id"] for table in beside]
    ids = [event_id for (event_id,) in there]
    known = pa.array([*ids, *(id for column in own for id in column.to_pylist())], pa.int64())
    return once.filter(pc.invert(pc.is_in(once["event_id"], value_set=known)))


def _named(rows: pa.Table, id: int) -> pa.Table:
    """The same rows of this person."""
    people = pa.repeat(pa.scalar(id, pa.int64()), rows.num_rows)
    return rows.set_column(rows.column_names.index("subscriber_id"), "subscriber_id", people)


def _is_here(database: Database, id: int) -> bool:
    return bool(database.rows(f"SELECT 1 FROM profiles WHERE {among_ids('subscriber_id', [id])}"))
