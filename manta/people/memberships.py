"""Who is in which segment: answers of rules, and lists kept by hand, become state and history.

One row per person lists the numbers of their segments; when somebody came and went stands in the
``membership_changed`` events, and how many on a day in ``segment_days``. A change of membership is
a command like any other, so it has its place in the order of everything else that happened to the
person, and it compares with what is on record now: an answer that is applied twice, or that says
what is so already, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import InvalidRequest
from manta.people.definitions import SEGMENT
from manta.people.history import compact_json, recorded, same, upserted
from manta.rules.loading import columns_of_profiles, has_past
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.schema import MEMBERSHIPS, SEGMENT_DAYS, AttributeType

MOVED = "membership_changed"
ROWS_MAX = 50_000  # of one command: about 20 ms a thousand in the writer
_INDEXED_MAX = 500  # people up to whom the index beats a scan

WANTED = pa.schema(
    [("subscriber_id", pa.int64()), ("segment_id", pa.int32()), ("member", pa.bool_())]
)

MOVES = pa.schema(
    [
        ("subscriber_id", pa.int64()),
        ("entered", pa.list_(pa.int32())),
        ("departed", pa.list_(pa.int32())),
        ("segments", pa.list_(pa.int32())),
    ]
)

_LIVE = (
    "SELECT id::INTEGER FROM definitions WHERE kind = ? AND body IS NOT NULL"
    " AND json_extract_string(body, '$.live') = 'true' ORDER BY 1"
)
_MOVES = """
WITH here AS MATERIALIZED (SELECT subscriber_id FROM profiles WHERE subscriber_id {near}),
before AS MATERIALIZED (
    SELECT subscriber_id, segments FROM memberships WHERE subscriber_id {near}),
asked AS (
    SELECT subscriber_id, list(DISTINCT segment_id) FILTER (member) AS inside,
    list(DISTINCT segment_id) FILTER (NOT member) AS outside FROM wanted GROUP BY 1),
known AS (
    SELECT subscriber_id, coalesce(segments, []) AS old, coalesce(inside, []) AS inside,
    coalesce(outside, []) AS outside
    FROM asked JOIN here USING (subscriber_id) LEFT JOIN before USING (subscriber_id)),
moved AS (
    SELECT subscriber_id, old,
    list_sort(list_filter(inside, lambda s: NOT list_contains(old, s))) AS entered,
    list_sort(list_filter(outside, lambda s: list_contains(old, s))) AS departed FROM known)
SELECT subscriber_id, entered, departed,
list_sort(list_concat(list_filter(old, lambda s: NOT list_contains(departed, s)), entered))
AS segments
FROM moved WHERE len(entered) + len(departed) > 0 ORDER BY subscriber_id
"""


@dataclass(frozen=True)
class MembershipsApplied:
    """How many came to a segment and how many left one."""

    entered: int
    left: int


@dataclass(frozen=True)
class ApplyMemberships:
    """Put into effect what live rules answered. ``changes`` has the columns of ``WANTED``, each
    person and segment once: whether the person is a member now.

    Passed over are people who are gone, and segments that are not live here any more.
    """

    key: str | None
    changes: pa.Table
    source: str

    def decide(self, database: Database, context: Context) -> Decision:
        live = pa.array([id for (id,) in database.rows(_LIVE, [SEGMENT])], pa.int32())
        wanted = self.changes.cast(WANTED)
        wanted = wanted.filter(pc.is_in(wanted["segment_id"], value_set=live))
        return _applied(wanted, self.source, database, context)


@dataclass(frozen=True)
class EditList:
    """Put people on a list that is kept by hand and take people off it (subscriber ids). Who stands
    in both is taken off."""

    key: str | None
    segment_id: int
    add: pa.Array
    remove: pa.Array
    source: str

    def decide(self, database: Database, context: Context) -> Decision:
        add, remove = _people(self.add), _people(self.remove)
        if len(add) + len(remove) > ROWS_MAX:
            raise InvalidRequest(
                f"{len(add) + len(remove)} people in one edit of a list",
                path="add",
                expected=f"at most {ROWS_MAX}; make several edits",
            )
        add = add.filter(pc.invert(pc.is_in(add, value_set=remove)))
        wanted = _wanted(self.segment_id, add, remove)
        return _applied(wanted, self.source, database, context)


@dataclass(frozen=True)
class Snapshot:
    """The members of a segment become the people for whom ``rule`` (whole, as JSON; ``attributes``:
    name to type) holds at this instant. It holds the writer for as long as the rule takes."""

    key: str | None
    segment_id: int
    rule: Mapping[str, Any]
    attributes: Mapping[str, str]
    source: str

    def decide(self, database: Database, context: Context) -> Decision:
        types = {name: AttributeType(kind) for name, kind in self.attributes.items()}
        rule = without_unknown(parse(self.rule, types), columns_of_profiles(database))
        zone = str(context.settings.get("time_zone") or "UTC")
        asked = compile_sql(rule, context.now, zone, has_past=has_past(database))
        found = database.table(
            f"WITH holding AS MATERIALIZED ({asked.sql}), present AS MATERIALIZED"
            " (SELECT subscriber_id FROM memberships WHERE list_contains(segments, ?::INTEGER))"
            " SELECT subscriber_id, true AS member FROM holding ANTI JOIN present"
            " USING (subscriber_id) UNION ALL"
            " SELECT subscriber_id, false FROM present ANTI JOIN holding USING (subscriber_id)",
            [*asked.params, self.segment_id],
        )
        return _applied(_of(self.segment_id, found), self.source, database, context)


@dataclass(frozen=True)
class RemoveMembers:
    """Take everybody out of a segment that is no more, or no longer live, some at a time.

    Answers ``MembershipsApplied``: when nobody left, it is done, and its days are gone as well.
    """

    key: str | None
    segment_id: int
    source: str
    most: int = 2_000

    def decide(self, database: Database, context: Context) -> Decision:
        found = database.table(
            "SELECT m.subscriber_id FROM memberships m JOIN profiles p USING (subscriber_id)"
            " WHERE list_contains(m.segments, ?::INTEGER) LIMIT ?",
            [self.segment_id, self.most],
        )
        if found.num_rows:
            nobody = pa.array([], pa.int64())
            wanted = _wanted(self.segment_id, nobody, found["subscriber_id"].combine_chunks())
            return _applied(wanted, self.source, database, context)
        days = database.table(
            "SELECT segment_id, day FROM segment_days WHERE segment_id = ?", [self.segment_id]
        )
        changes = (Change(SEGMENT_DAYS.name, Op.DELETE, days),) if days.num_rows else ()
        return Decision(MembershipsApplied(0, 0), changes)


def _people(ids: Iterable[int] | pa.Array) -> pa.Array:
    given = ids if isinstance(ids, pa.Array) else pa.array(list(ids), pa.int64())
    return given.cast(pa.int64()).unique()


def _wanted(segment_id: int, inside: pa.Array, outside: pa.Array) -> pa.Table:
    members = pa.concat_arrays(
        [same(True, len(inside), pa.bool_()), same(False, len(outside), pa.bool_())]
    )
    people = pa.concat_arrays([inside, outside])
    return _of(segment_id, pa.table({"subscriber_id": people, "member": members}))


def _of(segment_id: int, rows: pa.Table) -> pa.Table:
    number = same(segment_id, rows.num_rows, pa.int32())
    return rows.append_column("segment_id", number).select(WANTED.names).cast(WANTED)


def _applied(wanted: pa.Table, source: str, database: Database, context: Context) -> Decision:
    moves = _moves(wanted, database)
    if moves.num_rows == 0:
        return Decision(MembershipsApplied(0, 0))
    rows = moves.select(["subscriber_id", "segments"])
    people, segments, members = _flat(moves)
    history = recorded(MOVED, people, _said(segments, members, source), context.now, context.random)
    days = _days(segments, members, context.now, database)
    return Decision(
        MembershipsApplied(members.true_count, members.false_count),
        (Change(MEMBERSHIPS.name, Op.UPSERT, rows), history, days),
    )


def _moves(wanted: pa.Table, database: Database) -> pa.Table:
    """Who moves: the person's segments from now on, and which of them are new or over."""
    ids = wanted["subscriber_id"].unique()
    if len(ids) <= _INDEXED_MAX:
        return _few_moves(wanted, ids, database)
    params = [ids.to_pylist()] * 2
    near = "IN (SELECT unnest(?::BIGINT[]))"
    return database.table(_MOVES.format(near=near), params, wanted=wanted)


def _few_moves(wanted: pa.Table, ids: pa.Array, database: Database) -> pa.Table:
    """The same for a few people: a look-up and a loop, for half of what the statement costs."""
    here = set(ids.filter(pa.array(database.here(ids.to_numpy()))).to_pylist())
    if not here:
        return MOVES.empty_table()
    places = ", ".join("?" * len(here))
    before: dict[int, list[int]] = dict(
        database.rows(
            f"SELECT subscriber_id, segments FROM memberships WHERE subscriber_id IN ({places})",
            sorted(here),
        )
    )
    asked: dict[int, dict[bool, set[int]]] = {}
    for id, segment, member in zip(
        *(wanted[name].to_pylist() for name in WANTED.names), strict=True
    ):
        if id in here:
            asked.setdefault(id, {True: set(), False: set()})[member].add(segment)
    moves = []
    for id, answers in sorted(asked.items()):
        old = set(before.get(id) or ())
        entered, departed = answers[True] - old, answers[False] & old
        if entered or departed:
            now = old - departed | entered
            moves.append((id, sorted(entered), sorted(departed), sorted(now)))
    columns = zip(*moves, strict=True) if moves else ((), (), (), ())
    return pa.table(list(map(list, columns)), schema=MOVES)


def _flat(moves: pa.Table) -> tuple[pa.Array, pa.Array, pa.BooleanArray]:
    """One row for each move: person, segment, whether they are a member now."""
    people, segments, members = [], [], []
    for column, member in (("entered", True), ("departed", False)):
        lists = moves[column].combine_chunks()
        numbers = pc.list_flatten(lists)
        people.append(moves["subscriber_id"].combine_chunks().take(pc.list_parent_indices(lists)))
        segments.append(numbers)
        members.append(same(member, len(numbers), pa.bool_()))
    return pa.concat_arrays(people), pa.concat_arrays(segments), pa.concat_arrays(members)


def _said(segments: pa.Array, members: pa.BooleanArray, source: str) -> pa.Array:
    """The properties of each move; there are only as many texts as segments, twice."""
    codes = pc.add(pc.multiply(segments.cast(pa.int64()), 2), members.cast(pa.int64()))
    coded = codes.dictionary_encode()
    texts = [
        compact_json({"segment": code >> 1, "member": bool(code & 1), "source": source})
        for code in coded.dictionary.to_pylist()
    ]
    return pa.array(texts, pa.string()).take(coded.indices)


def _days(
    segments: pa.Array, members: pa.BooleanArray, now: datetime, database: Database
) -> Change:
    """Today's counts with these moves."""
    today = datetime.combine(now.date(), time.min)
    numbers, inverse = np.unique(segments.to_numpy(), return_inverse=True)
    inside = members.to_numpy(zero_copy_only=False)
    entered = np.bincount(inverse[inside], minlength=len(numbers))
    departed = np.bincount(inverse[~inside], minlength=len(numbers))
    before = {
        id: counts
        for id, *counts in database.rows(
            "SELECT segment_id, entered, departed FROM segment_days WHERE day = ?", [today]
        )
    }
    old = np.array([before.get(id, (0, 0)) for id in numbers.tolist()], np.int64)
    return upserted(
        SEGMENT_DAYS.name,
        len(numbers),
        segment_id=pa.array(numbers, pa.int32()),
        day=today,
        entered=pa.array(old[:, 0] + entered),
        departed=pa.array(old[:, 1] + departed),
    )


def members_of(database: Database, segment_ids: Sequence[int]) -> dict[int, int]:
    """Segment → how many people are members now."""
    rows = database.rows(
        "SELECT segment, count(*) FROM (SELECT unnest(segments) AS segment FROM memberships)"
        " WHERE segment IN (SELECT unnest(?::INTEGER[])) GROUP BY segment",
        [list(segment_ids)],
    )
    return dict.fromkeys(segment_ids, 0) | dict(rows)
