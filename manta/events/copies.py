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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op
from manta.people.aliases import UNDONE, Alias, among_ids, standing
from manta.schema import EVENTS

ROWS_MAX = 50_000  # of one command


class Copies(NamedTuple):
    """Events for somebody of another shard. ``from_id`` is set where the merge that leads there
    has been on its way for so long that somebody has to finish it."""

    to_id: int
    merge_id: int
    rows: pa.Table
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
        to_id, merge_id = self.copies.to_id, self.copies.merge_id
        undone = database.rows(
            f"SELECT 1 FROM aliases WHERE merge_id = ? AND state = '{UNDONE}'", [merge_id]
        )
        if undone or self.copies.rows.num_rows == 0:
            return Decision(())
        aliases = standing(database, [to_id])
        if to_id not in aliases and not _is_here(database, to_id):
            return Decision(())
        made = _copy(database, to_id, merge_id, self.copies.rows)
        more, beyond = copied(database, made, aliases, context)
        changes = tuple(inserted(rows) for rows in (made, *more) if rows.num_rows)
        return Decision(beyond, changes)

    def repeat(self, database: Database, context: Context) -> tuple[Copies, ...]:
        """The answer when the key has been committed before."""
        answer: tuple[Copies, ...] = self.decide(database, context).answer
        return answer


def copied(
    database: Database, rows: pa.Table, aliases: Mapping[int, Alias], context: Context
) -> tuple[list[pa.Table], tuple[Copies, ...]]:
    """The copies of events for all whom their people live on as: the rows that are new here, and
    what goes to other shards. ``aliases`` are those that stand of the rows' people."""
    made: list[pa.Table] = []
    beyond: list[Copies] = []
    waiting = [rows]
    while waiting:
        rows = waiting.pop()
        for id in pc.unique(rows["subscriber_id"]).to_pylist():
            alias = aliases.get(id)
            if alias is None:
                continue
            of_one = rows.filter(pc.equal(rows["subscriber_id"], id))
            if alias.to_id in aliases or _is_here(database, alias.to_id):
                copies = _copy(database, alias.to_id, alias.merge_id, of_one)
                made.append(copies)
                waiting.append(copies)
            else:
                late = alias.from_id if alias.unfinished(context.now) else None
                beyond.append(Copies(alias.to_id, alias.merge_id, of_one, late))
    return made, tuple(beyond)


def inserted(rows: pa.Table) -> Change:
    return Change(EVENTS.name, Op.INSERT, rows)


def _copy(database: Database, to_id: int, merge_id: int, rows: pa.Table) -> pa.Table:
    """The rows as this person's, without those whose event they have."""
    count = rows.num_rows
    names = [n for n in rows.column_names if n not in ("subscriber_id", "merge_id")]
    columns = {"subscriber_id": pa.repeat(pa.scalar(to_id, pa.int64()), count)}
    columns |= {name: rows[name] for name in names}
    columns["merge_id"] = pa.repeat(pa.scalar(merge_id, pa.int64()), count)
    there = database.rows(
        f"SELECT event_id FROM events WHERE {among_ids('subscriber_id', [to_id])}"
        " AND event_id IN (SELECT event_id FROM copies)",
        copies=rows.select(["event_id"]),
    )
    known = pa.array([event_id for (event_id,) in there], pa.int64())
    return pa.table(columns).filter(pc.invert(pc.is_in(rows["event_id"], value_set=known)))


def _is_here(database: Database, id: int) -> bool:
    return bool(database.rows(f"SELECT 1 FROM profiles WHERE {among_ids('subscriber_id', [id])}"))
