"""Who is in which segment: the answer of a rule becomes state and history.

One row per person lists the numbers of their segments; when somebody came and went stands in the
``membership_changed`` events alone. A change of membership is a command like any other, so it has
its place in the order of everything else that happened to the person.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.people.history import compact_json, recorded


@dataclass(frozen=True)
class MembershipsUpdated:
    entered: int
    left: int


@dataclass(frozen=True)
class UpdateMemberships:
    """Put into effect what a rule answered: of the people ``among`` whom it was asked (``None``:
    all of this shard), exactly ``members`` (subscriber ids) are in the segment now.

    Ids that nobody here has are passed over: the person may be gone since the rule was asked.
    """

    key: str | None
    segment_id: int
    members: pa.Array
    among: pa.Array | None
    source: str

    def decide(self, database: Database, context: Context) -> Decision:
        answered = {"members": _people(self.members)}
        asked = "true"
        if self.among is not None:
            answered["among"] = _people(self.among)
            asked = "s.id IN (SELECT id FROM among)"
        changed = database.table(
            "WITH present AS (SELECT subscriber_id AS id, segments FROM memberships"
            " WHERE list_contains(segments, ?::INTEGER)),"
            " entering AS (SELECT id FROM (SELECT DISTINCT id FROM members) s"
            f" WHERE {asked} AND id NOT IN (SELECT id FROM present)),"
            f" leaving AS (SELECT id FROM present s WHERE {asked}"
            " AND id NOT IN (SELECT id FROM members))"
            " SELECT e.id, true AS member,"
            " list_sort(list_append(coalesce(m.segments, []), ?::INTEGER)) AS segments"
            " FROM entering e JOIN profiles p ON p.subscriber_id = e.id"
            " LEFT JOIN memberships m ON m.subscriber_id = e.id"
            " UNION ALL SELECT l.id, false, list_filter(m.segments, lambda x: x <> ?)"
            " FROM leaving l JOIN memberships m ON m.subscriber_id = l.id ORDER BY 1",
            [self.segment_id] * 3,
            **answered,
        )
        if changed.num_rows == 0:
            return Decision(MembershipsUpdated(0, 0))
        rows = changed.select(["id", "segments"]).rename_columns(["subscriber_id", "segments"])
        said = {
            held: compact_json({"segment": self.segment_id, "member": held, "source": self.source})
            for held in (True, False)
        }
        member = changed["member"].combine_chunks()
        properties = pa.array([said[held] for held in member.to_pylist()], pa.string())
        people = changed["id"].combine_chunks()
        history = recorded("membership_changed", people, properties, context.now, context.random)
        return Decision(
            MembershipsUpdated(member.true_count, member.false_count),
            (Change("memberships", Op.UPSERT, rows), history),
        )


def _people(ids: pa.Array) -> pa.Table:
    return pa.table({"id": ids.cast(pa.int64())})
