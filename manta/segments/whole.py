"""One segment evaluated whole, by SQL: for a new or changed one, after a recovery, against drift.

What it answers is true of the one committed state that the reader is pinned to. People may have
changed since; whoever asks has to have them asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from manta.command import Database
from manta.people.memberships import WANTED
from manta.rules.loading import columns_of_profiles
from manta.rules.nodes import Rule
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.segments.flips import Ids, Instants
from manta.segments.index import LiveSegment


class Whole(NamedTuple):
    """``moves``: the people whose membership is not what the rule says (``WANTED``)."""

    moves: pa.Table
    people: Ids
    flips: Instants


def evaluate(database: Database, segment: LiveSegment, now: datetime, zone: str) -> Whole:
    """All of a segment at ``now``."""
    rule = without_unknown(segment.rule, columns_of_profiles(database))
    moves = _moves(database, segment.id, rule, now, zone)
    if not segment.closure.moves_with_time:
        nobody = np.empty(0, np.int64)
        return Whole(moves, nobody, nobody)
    try:
        from manta.rules.flips import compile_flips
    except ImportError:
        return _by_closures(database, segment, now, moves)
    asked = compile_flips(rule, now, zone)
    found = database.table(asked.sql, asked.params)
    found = found.filter(found["flips_at"].is_valid())
    instants = found["flips_at"].cast(pa.timestamp("us")).cast(pa.int64())
    return Whole(moves, found["subscriber_id"].to_numpy(), instants.to_numpy())


def differences(
    database: Database, segment: LiveSegment, now: datetime, zone: str, among: Sequence[int]
) -> pa.Table:
    """Of these people those whose membership is not what the rule says now (``WANTED``)."""
    rule = without_unknown(segment.rule, columns_of_profiles(database))
    return _moves(database, segment.id, rule, now, zone, among)


def _moves(
    database: Database,
    segment_id: int,
    rule: Rule,
    now: datetime,
    zone: str,
    among: Sequence[int] | None = None,
) -> pa.Table:
    asked = compile_sql(rule, now, zone, among)
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
            segment_id,
            *([] if among is None else [list(among)]),
            segment_id,
            segment_id,
        ],
    )
    return found.cast(WANTED)


def _by_closures(database: Database, segment: LiveSegment, now: datetime, moves: pa.Table) -> Whole:
    from manta.rules.loading import load
    from manta.segments.flips import micros_of

    ids = [id for (id,) in database.rows("SELECT subscriber_id FROM profiles")]
    at = {}
    for start in range(0, len(ids), 1000):
        for id, person in load(database, ids[start : start + 1000], segment.touches).items():
            moment = segment.closure.flips_at(person, now)
            if moment is not None:
                at[id] = micros_of(moment)
    people = np.fromiter(at.keys(), np.int64, len(at))
    return Whole(moves, people, np.fromiter(at.values(), np.int64, len(at)))
