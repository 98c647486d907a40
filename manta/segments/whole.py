"""One segment evaluated whole, by SQL: for a new or changed one, after a recovery, against drift.

What it answers is true of the one committed state that the reader is pinned to. People may have
changed since; whoever asks has to have them asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa

from manta.command import Database
from manta.people.memberships import WANTED
from manta.rules.flips import compile_flips
from manta.rules.loading import columns_of_profiles, has_past
from manta.rules.nodes import AnyOf
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.segments.flips import Ids, Instants
from manta.segments.index import LiveSegment


def flips(
    database: Database, segments: Sequence[LiveSegment], now: datetime, zone: str
) -> tuple[Ids, Instants]:
    """Everybody whose answer for one of the segments time alone could change, and when at the
    earliest. To be asked before their moves: a flip that passes between is asked about then."""
    timed = [segment.rule for segment in segments if segment.closure.moves_with_time]
    if not timed:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rule = without_unknown(AnyOf(tuple(timed)), columns_of_profiles(database))
    asked = compile_flips(rule, now, zone, has_past(database))
    found = database.table(asked.sql, asked.params)
    found = found.filter(found["flips_at"].is_valid())
    instants = found["flips_at"].cast(pa.timestamp("us")).cast(pa.int64())
    return found["subscriber_id"].to_numpy(), instants.to_numpy()


def moves(
    database: Database,
    segment: LiveSegment,
    now: datetime,
    zone: str,
    among: Sequence[int] | None = None,
) -> pa.Table:
    """The people (``among`` these) whose membership is not what the rule says now (``WANTED``)."""
    rule = without_unknown(segment.rule, columns_of_profiles(database))
    asked = compile_sql(rule, now, zone, among, has_past(database))
    only = "" if among is None else " AND subscriber_id IN (SELECT unnest(?::BIGINT[]))"
    found = database.table(
        f"WITH holding AS MATERIALIZED ({asked.sql}), present AS MATERIALIZED"
        " (SELECT m.subscriber_id FROM memberships m JOIN profiles p USING (subscriber_id)"
        f" WHERE list_contains(m.segments, ?::INTEGER){only})"
        " SELECT subscriber_id, ?::INTEGER AS segment_id, true AS member"
        " FROM holding ANTI JOIN present USING (subscriber_id)"
        " UNION ALL SELECT subscriber_id, ?::INTEGER, false"
        " FROM present ANTI JOIN holding USING (subscriber_id)",
        [
            *asked.params,
            segment.id,
            *([] if among is None else [list(among)]),
            segment.id,
            segment.id,
        ],
    )
    return found.cast(WANTED)
