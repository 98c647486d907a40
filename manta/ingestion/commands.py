"""What came in from elsewhere: its events, and the originals from which they were made.

The events are ``manta.events.commands.RecordEvents``'; beside them each message leaves its original
as a ``received`` event, which is history: it goes to the lake and not to memory. An original is
written with the first of its events, so that a message that is sent again leaves none; of messages
that mean no event (``identify``) a second one has the same event id, and falls to the compaction of
the lake.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.events.commands import EventsRecorded, RecordEvents
from manta.people.aliases import STANDING
from manta.schema import EVENTS

ORIGINALS = pa.schema(
    {
        "subscriber_id": pa.int64(),
        "event_id": pa.int64(),  # manta.ingestion.normalised.received_id
        "occurred_at": pa.timestamp("us"),
        "item": pa.string(),  # the source
        "properties": pa.string(),  # the original as JSON
        "row": pa.int64(),  # place of the first event made of it; null: none was
    }
)


@dataclass(frozen=True)
class RecordReceived:
    """``rows``: as ``RecordEvents`` takes them. ``originals``: as ``ORIGINALS``.

    Answers ``EventsRecorded`` of the rows.
    """

    key: str | None
    rows: pa.Table
    originals: pa.Table

    def decide(self, database: Database, context: Context) -> Decision:
        changes: tuple[Change, ...] = ()
        answer = EventsRecorded(0, 0, ())
        if self.rows.num_rows:
            decision = RecordEvents(None, self.rows).decide(database, context)
            answer, changes = decision.answer, decision.changes
        refused = np.array([row for row, *_ in answer.refused], np.int64)
        row = self.originals["row"].fill_null(-1).to_numpy()
        kept = self.originals.filter(pa.array(~np.isin(row, refused)))
        if kept.num_rows == 0:
            return Decision(answer, changes, ())
        # Those of merged people stay under the id by which they came, as their events do.
        rows = database.table(
            "SELECT o.subscriber_id, coalesce(o.occurred_at, ?) AS occurred_at, 'received' AS type,"
            " o.event_id, o.item, o.properties FROM originals o"
            " WHERE o.subscriber_id IN (SELECT subscriber_id FROM profiles)"
            f" OR o.subscriber_id IN (SELECT from_id FROM aliases WHERE {STANDING})",
            [context.now],
            originals=kept,
        )
        if rows.num_rows:
            changes = (*changes, Change(EVENTS.name, Op.INSERT, rows))
        return Decision(answer, changes)
