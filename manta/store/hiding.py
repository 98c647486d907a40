"""Rows of events that are no longer to be seen: copies of an undone merge, people who are erased.

Events are append-only, so they are hidden by rows of state: an alias that is ``undone`` hides the
copies that carry its merge's id, and an erasure hides whatever its person did. Whoever applies such
a row, live, in replay or after loading files, then takes the events out of memory; the views of
the lake leave them out by the same two conditions, and the rewriting of an erasure takes them out
of the files.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Op
from manta.schema import ALIASES, ERASURES

UNDONE = "undone"
HIDING = frozenset({ALIASES.name, ERASURES.name})  # what it is said by
# Holds of an event that may be seen; for the database and for the views of the lake.
VISIBLE = (
    "(merge_id IS NULL OR merge_id NOT IN"
    f" (SELECT merge_id FROM aliases WHERE state = '{UNDONE}' AND merge_id IS NOT NULL))"
    " AND subscriber_id NOT IN (SELECT subscriber_id FROM erasures)"
)


def hidden_by(changes: Iterable[Change]) -> list[tuple[str, pa.Array]]:
    """The column of ``events`` and its values whose rows these changes hide."""
    hidden: list[tuple[str, pa.Array]] = []
    for change in changes:
        if change.op is not Op.UPSERT:
            continue
        if change.table == ERASURES.name:
            hidden.append(("subscriber_id", change.rows["subscriber_id"].combine_chunks()))
        elif change.table == ALIASES.name and "state" in change.rows.column_names:
            undone = change.rows.filter(pc.equal(change.rows["state"], UNDONE))
            if undone.num_rows:
                hidden.append(("merge_id", undone["merge_id"].combine_chunks()))
    return hidden
