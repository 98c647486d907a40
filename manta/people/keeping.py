"""What goes from one person to another in a merge, and what is given back in an undo.

The first half is read in from's shard (``package``), the second decided in to's (``adopt``,
``give_back``). What ``adopt`` changed is noted in the alias as JSON, with what stood there before,
so that ``give_back`` changes back exactly what is still as the merge left it: what the person
changed since is their own word and stays. See ``manta.people.merging`` for the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Op, Push
from manta.people.aliases import among_ids
from manta.people.consents import SUBSCRIBED_TO, UNSUBSCRIBED, WAITING, revocations
from manta.people.definitions import SEGMENT, definitions
from manta.people.history import ARROW_OF_SQL, compact_json, recorded
from manta.people.identities import EMAIL, compared
from manta.schema import ATTRIBUTE_PREFIX, TABLES

SOURCE = "merge"  # in the history of what a merge or an undo changes
_RANK = {SUBSCRIBED_TO: 0, WAITING: 1, UNSUBSCRIBED: 2}  # the higher, the more restrictive
_OWN = ("subscriber_id", "created_at", "updated_at")  # columns of a profile that nobody inherits
# Suppressions that say the person does not want mail, or that somebody decided so.
_FOR_CAUSE = ("complaint", "unsubscribed", "manual")
# Segments whose members were chosen, not found by a rule.
_CHOSEN = ("list", "snapshot")


@dataclass(frozen=True)
class Sums:
    """Counts of what left memory: columns that name a count, bound it, and add up."""

    names: tuple[str, ...]
    least: tuple[str, ...]
    greatest: tuple[str, ...]
    added: tuple[str, ...]  # the first one counts: at 0 the row goes


SUMS = {
    "event_months": Sums(("month", "type"), ("first_at",), ("last_at",), ("events", "amount")),
    "purchased_items": Sums(("item",), ("first_at",), ("last_at",), ("events", "amount")),
    "ledger_days": Sums(("day", "kind", "channel"), (), (), ("accepted",)),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Package:
    """What a person has that another can inherit. ``times``: since when each attribute has had its
    value. ``carries_consent``: no suppression speaks against it."""

    profile: Row
    columns: Mapping[str, str]  # of the profile, as DuckDB types
    times: Mapping[str, datetime]
    consents: Sequence[Row]
    carries_consent: bool
    suppressions: pa.Table | None
    segments: Sequence[int]
    sums: Mapping[str, Sequence[Row]]
    depth: int  # merges in a row that lead here


@dataclass(frozen=True)
class Inherited:
    """``kept`` is what ``give_back`` needs."""

    changes: tuple[Change, ...]
    kept: Row
    pushes: tuple[Push, ...]


def package(
    database: Database, context: Context, id: int, profile: Row, segments: Sequence[int], depth: int
) -> Package:
    """What this person has, whose profile may be gone from its table already."""
    columns = database.columns("profiles")
    since = {
        name.removeprefix(ATTRIBUTE_PREFIX): profile["created_at"]
        for name, value in profile.items()
        if value is not None and name not in (*_OWN, EMAIL)
    }
    since |= {
        name: at
        for name, at in database.rows(
            f"SELECT name, changed_at FROM attribute_times WHERE {_of(id)}"
        )
        if name in since
    }
    addresses = [compared(EMAIL, profile[EMAIL])] if profile[EMAIL] else []
    stops = database.table(
        "SELECT * FROM suppressions WHERE channel = 'email' AND address IN (SELECT unnest(?))"
        " AND (expires_at IS NULL OR expires_at > ?)",
        [addresses, context.now],
    )
    for_cause = set(stops["reason"].to_pylist()) & set(_FOR_CAUSE)
    return Package(
        profile,
        columns,
        since,
        rows_of_person(database, "consents", id),
        not for_cause,
        stops if stops.num_rows else None,
        tuple(segments),
        sums_of(database, id),
        depth,
    )


def sums_of(database: Database, id: int) -> dict[str, list[Row]]:
    """What has left memory of this person's events and messages, as counts."""
    return {table: rows_of_person(database, table, id) for table in SUMS}


def rows_of_person(database: Database, table: str, id: int) -> list[Row]:
    rows: list[Row] = database.table(f"SELECT * FROM {table} WHERE {_of(id)}").to_pylist()
    return rows


# -- merge -----------------------------------------------------------------------------------------


def adopt(database: Database, context: Context, to_id: int, given: Package) -> Inherited:
    """What changes for the person when they get what another has."""
    profile, filled = _filled(database, context, to_id, given)
    consents, kept_consents, withdrawn = _consents(database, context, to_id, given)
    lists, entered = _lists(database, context, to_id, given.segments)
    sums, kept_sums = _added(database, to_id, given.sums)
    changes = [*profile, *consents, *lists, *sums]
    if given.suppressions is not None:
        changes.append(Change("suppressions", Op.UPSERT, given.suppressions))
    kept = {"filled": filled, "consents": kept_consents, "lists": entered, "sums": kept_sums}
    pushes = [push for channel in withdrawn for push in revocations(database, [to_id], channel)]
    return Inherited(tuple(changes), kept, tuple(pushes))


def _filled(
    database: Database, context: Context, to_id: int, given: Package
) -> tuple[list[Change], Row]:
    """Attributes that the person lacks. Noted: what was written, and since when it had none."""
    (own,) = rows_of_person(database, "profiles", to_id)
    new = {
        name: value
        for name, value in given.profile.items()
        if value is not None and name not in _OWN and own.get(name) is None
    }
    if not new:
        return [], {}
    before = dict(database.rows(f"SELECT name, changed_at FROM attribute_times WHERE {_of(to_id)}"))
    names = {column: column.removeprefix(ATTRIBUTE_PREFIX) for column in new}
    filled = {
        column: {"value": jsonable(value), "since": jsonable(before.get(names[column]))}
        for column, value in new.items()
    }
    row = {"subscriber_id": to_id, **new, "updated_at": context.now}
    times = [
        {"subscriber_id": to_id, "name": name, "changed_at": given.times[name]}
        for name in names.values()
        if name in given.times
    ]
    return [
        _upsert("profiles", [row], given.columns),
        *([_upsert("attribute_times", times)] if times else []),
        _profile_changed(to_id, dict.fromkeys(new), new, context),
    ], filled


def _consents(
    database: Database, context: Context, to_id: int, given: Package
) -> tuple[list[Change], list[Row], list[str]]:
    """Of two consents the more restrictive one. Noted: what stood before and what stands now."""
    own = {(c["channel"], c["topic"]): c for c in rows_of_person(database, "consents", to_id)}
    rows, kept = [], []
    for consent in given.consents:
        old = own.get((consent["channel"], consent["topic"]))
        if old is None:
            wanted = consent["status"] == UNSUBSCRIBED or given.carries_consent
        else:
            wanted = _RANK[consent["status"]] > _RANK[old["status"]]
        if wanted:
            row = consent | {"subscriber_id": to_id}
            rows.append(row)
            kept.append({"new": jsonable(row), "old": jsonable(old)})
    if not rows:
        return [], [], []
    history = [
        _consent_changed(row, kept_row["old"] and kept_row["old"]["status"], row["status"], context)
        for row, kept_row in zip(rows, kept, strict=True)
    ]
    withdrawn = sorted({row["channel"] for row in rows if row["status"] == UNSUBSCRIBED})
    return [_upsert("consents", rows), *history], kept, withdrawn


def _lists(
    database: Database, context: Context, to_id: int, segments: Sequence[int]
) -> tuple[list[Change], list[int]]:
    """The lists that the person comes to be on."""
    chosen = {int(d.id) for d in definitions(database, SEGMENT) if d.body.get("type") in _CHOSEN}
    own = segments_of(database, to_id)
    entered = sorted(set(segments) & chosen - set(own))
    return membership_changes(to_id, own, [*own, *entered], context), entered


def _added(
    database: Database, to_id: int, given: Mapping[str, Sequence[Row]]
) -> tuple[list[Change], Row]:
    """Counts added up. Noted: the rows as they were, by what they count."""
    changes, kept = [], {}
    for table, rows in given.items():
        sums = SUMS[table]
        own = {_name(sums, row): row for row in rows_of_person(database, table, to_id)}
        joined = [_joined(sums, own.get(_name(sums, row)), row, to_id) for row in rows]
        if joined:
            changes.append(_upsert(table, joined))
            kept[table] = [
                jsonable(own[_name(sums, row)]) for row in rows if _name(sums, row) in own
            ]
    return changes, kept


def _joined(sums: Sums, own: Row | None, row: Row, to_id: int) -> Row:
    if own is None:
        return row | {"subscriber_id": to_id}
    joined = dict(own)
    for name in sums.least:
        joined[name] = _of_given(min, own[name], row[name])
    for name in sums.greatest:
        joined[name] = _of_given(max, own[name], row[name])
    for name in sums.added:
        joined[name] = _of_given(lambda a, b: a + b, own[name], row[name])
    return joined


# -- undo ------------------------------------------------------------------------------------------


def give_back(
    database: Database, context: Context, to_id: int, kept: Row, sums: Mapping[str, Sequence[Row]]
) -> tuple[Change, ...]:
    """What changes for the person when the other one goes again. ``sums`` are the other's now."""
    changes = [*_emptied(database, context, to_id, kept["filled"])]
    changes += _consents_back(database, context, to_id, kept["consents"])
    own = segments_of(database, to_id)
    left = [segment for segment in own if segment not in kept["lists"]]
    changes += membership_changes(to_id, own, left, context)
    for table, rows in sums.items():
        changes += _subtracted(database, to_id, table, rows, kept["sums"].get(table, []))
    return tuple(changes)


def _emptied(
    database: Database, context: Context, to_id: int, filled: Mapping[str, Row]
) -> list[Change]:
    columns = database.columns("profiles")
    (own,) = rows_of_person(database, "profiles", to_id)
    emptied = [c for c, was in filled.items() if jsonable(own.get(c)) == was["value"]]
    if not emptied:
        return []
    row = {"subscriber_id": to_id, **dict.fromkeys(emptied), "updated_at": context.now}
    times, none = [], []
    for column in emptied:
        name = column.removeprefix(ATTRIBUTE_PREFIX)
        key = {"subscriber_id": to_id, "name": name}
        since = instant(filled[column]["since"])
        if since is None:
            none.append(key)
        else:
            times.append(key | {"changed_at": since})
    changes = [_upsert("profiles", [row], columns)]
    if times:
        changes.append(_upsert("attribute_times", times))
    if none:
        changes.append(_delete("attribute_times", none))
    old = {column: own[column] for column in emptied}
    return [*changes, _profile_changed(to_id, old, dict.fromkeys(emptied), context)]


def _consents_back(
    database: Database, context: Context, to_id: int, kept: Sequence[Row]
) -> list[Change]:
    """Each consent that is still as the merge left it, as it was before."""
    own = {
        (c["channel"], c["topic"]): jsonable(c) for c in rows_of_person(database, "consents", to_id)
    }
    changes: list[Change] = []
    for each in kept:
        new, old = each["new"], each["old"]
        if own.get((new["channel"], new["topic"])) != new:
            continue
        if old is None:
            key = {name: new[name] for name in TABLES["consents"].key}
            changes.append(_delete("consents", [key]))
        else:
            changes.append(_upsert("consents", [typed("consents", old)]))
        changes.append(_consent_changed(new, new["status"], old and old["status"], context))
    return changes


def _subtracted(
    database: Database, to_id: int, table: str, rows: Sequence[Row], before: Sequence[Row]
) -> list[Change]:
    """Counts without the other's. What the merge found is put back as it was; bounds of what was
    counted since stay as wide as they are."""
    sums = SUMS[table]
    own = {_name(sums, row): row for row in rows_of_person(database, table, to_id)}
    was = {_name(sums, row): row for row in (typed(table, kept) for kept in before)}
    left, gone = [], []
    for row in rows:
        name = _name(sums, row)
        if name not in own:
            continue
        rest = dict(own[name])
        for column in sums.added:
            if rest[column] is not None and row[column] is not None:
                rest[column] -= row[column]
        if rest[sums.added[0]] <= 0:
            gone.append({key: rest[key] for key in TABLES[table].key})
            continue
        if name in was and was[name][sums.added[0]] == rest[sums.added[0]]:
            rest = was[name]
        left.append(rest)
    changes = [_upsert(table, left)] if left else []
    return changes + ([_delete(table, gone)] if gone else [])


# -- helpers ---------------------------------------------------------------------------------------


def segments_of(database: Database, id: int) -> list[int]:
    found = database.rows(f"SELECT segments FROM memberships WHERE {_of(id)}")
    return list(found[0][0] or ()) if found else []


def membership_changes(
    id: int, before: Iterable[int], after: Iterable[int], context: Context
) -> list[Change]:
    """A person's segments as ``after``, with the history of it."""
    before, after = set(before), set(after)
    if before == after:
        return []
    key = {"subscriber_id": id}
    change = (
        _upsert("memberships", [key | {"segments": sorted(after)}])
        if after
        else _delete("memberships", [key])
    )
    moved = sorted((segment, segment in after) for segment in before ^ after)
    said = [
        compact_json({"segment": segment, "member": member, "source": SOURCE})
        for segment, member in moved
    ]
    people = pa.array([id] * len(said), pa.int64())
    history = recorded(
        "membership_changed", people, pa.array(said, pa.string()), context.now, context.random
    )
    return [change, history]


def profile_change(profile: Row, columns: Mapping[str, str]) -> Change:
    """A whole profile, as it was written down by ``jsonable``."""
    return _upsert("profiles", [typed_profile(profile, columns)], columns)


def typed_profile(profile: Row, columns: Mapping[str, str]) -> Row:
    """A profile back from its JSON."""
    return {
        name: instant(value) if columns.get(name) == "TIMESTAMP" else value
        for name, value in profile.items()
    }


def jsonable(value: Any) -> Any:
    """Values of a row as JSON: instants as ISO 8601 text."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def instant(text: Any) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def typed(table: str, row: Row) -> Row:
    """A row of a table of fixed columns back from its JSON."""
    types = dict(TABLES[table].columns)
    return {n: instant(v) if types[n] == "TIMESTAMP" else v for n, v in row.items()}


def _upsert(table: str, rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> Change:
    types = columns or dict(TABLES[table].columns)
    arrays = {
        name: pa.array([row[name] for row in rows], ARROW_OF_SQL[types[name]]) for name in rows[0]
    }
    return Change(table, Op.UPSERT, pa.table(arrays))


def _delete(table: str, keys: Sequence[Row]) -> Change:
    return Change(table, Op.DELETE, _upsert(table, keys).rows)


def _profile_changed(id: int, old: Row, new: Row, context: Context) -> Change:
    said = {"source": SOURCE, "old": _given(old), "new": _given(new)}
    return recorded(
        "profile_changed", pa.array([id], pa.int64()), said, context.now, context.random
    )


def _given(values: Row) -> Row:
    return {name: jsonable(value) for name, value in values.items() if value is not None}


def _consent_changed(row: Row, old: str | None, new: str | None, context: Context) -> Change:
    said = {
        "channel": row["channel"],
        "topic": row["topic"],
        "old": old,
        "new": new,
        "source": SOURCE,
    }
    people = pa.array([row["subscriber_id"]], pa.int64())
    return recorded("consent_changed", people, said, context.now, context.random)


def _name(sums: Sums, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in sums.names)


def _of_given(combine: Any, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one if other is None else other
    return combine(one, other)


def _of(id: int) -> str:
    return among_ids("subscriber_id", [id])
