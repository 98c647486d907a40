"""From the changes of a group to the rows of the outbox that tell of them.

A ``Deriver`` of the shard's store: its rows are stored with their causes or not at all. What is
told comes from three tables: events (what people did, and the history of profiles, consents,
suppressions and memberships), the ledger (messages that ended without being sent), and erasures.

- Without an endpoint that is enabled it reads one remembered answer and ends.
- What happened more than ``TOLD_AGE_MAX`` before now is not told: a past that is brought in is no
  news. Nor are the copies that a merge makes.
- ``delivery_id`` is a hash of the endpoint and of what it tells of, so the same news has the same
  id however it comes twice, and a row that is there stays as it is.
- Of one group at most ``GROUP_MAX`` rows are told, the last ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Op
from manta.ids import hash64
from manta.people.definitions import ENDPOINT, SEGMENT, Definition, definitions
from manta.people.history import arrow_type, rows_of
from manta.people.identities import EXTERNAL_ID
from manta.schema import ERASURES, EVENTS, LEDGER, MESSAGE_EVENTS, OUTBOX, PROFILES
from manta.webhooks.bodies import UNKNOWN, Person, body
from manta.webhooks.endpoints import ENDED, matches
from manta.webhooks.retries import State

TOLD_AGE_MAX = timedelta(days=7)
GROUP_MAX = 100_000
PEOPLE_KEPT_MAX = 50_000
_SOURCES = frozenset({EVENTS.name, LEDGER.name, ERASURES.name})
_PEOPLE = frozenset({"profiles", "identities"})
_HISTORY = {
    "profile_created": "person.created",
    "profile_changed": "person.changed",
    "people_merged": "person.merged",
    "consent_changed": "consent.changed",
    "suppression_changed": "suppression.changed",
    "membership_changed": "segment.",  # and whether they entered or left
    "received": "",  # the original of another event
}
_COLUMNS = (
    "subscriber_id",
    "occurred_at",
    "type",
    "event_id",
    "campaign_id",
    "message_key",
    "item",
    "amount",
    "properties",
    "human",
)


class _Endpoint(NamedTuple):
    id: int
    types: list[str]


class _News(NamedTuple):
    """Rows to tell of: their types, what names each of them, and their columns."""

    kinds: list[str]
    names: npt.NDArray[np.uint64]
    rows: list[dict[str, Any]]


def _deleted_people(changes: Sequence[Change]) -> set[int]:
    return {
        id
        for change in changes
        if change.table == PROFILES.name and change.op is Op.DELETE
        for id in change.rows["subscriber_id"].to_pylist()
    }


class OutboxDeriver:
    """One shard's. Called in the writer's thread; not shared.

    It remembers people's addresses, and forgets them by the changes it is shown.
    """

    def __init__(self) -> None:
        self._compiled: tuple[tuple[str, int], ...] = ()
        self._endpoints: list[_Endpoint] = []
        self._wanted: dict[str, list[int]] = {}
        self._names: tuple[tuple[tuple[str, int], ...], dict[int, str]] = ((), {})
        self._people: dict[int, Person] = {}
        self._sequence: int | None = None

    def derive(
        self, changes: Sequence[Change], database: Database, context: Context
    ) -> Sequence[Change]:
        self._compile(definitions(database, ENDPOINT))
        if not self._endpoints:
            self._people.clear()
            return ()
        touched = self._forget(changes)
        found = list(self._news(changes, context))
        if not found:
            return ()
        kinds = [kind for news in found for kind in news.kinds]
        names = np.concatenate([news.names for news in found])
        rows = [row for news in found for row in news.rows]
        if len(kinds) > GROUP_MAX:
            kinds, names, rows = kinds[-GROUP_MAX:], names[-GROUP_MAX:], rows[-GROUP_MAX:]
        people = self._look_up(rows, touched, database)
        segments = self._segments(kinds, database)
        bodies = [
            body(
                kind,
                row,
                UNKNOWN if kind == "person.erased" else people.get(row["subscriber_id"], UNKNOWN),
                segments,
            )
            for kind, row in zip(kinds, rows, strict=True)
        ]
        return self._deliveries(kinds, names, rows, bodies, database, context)

    # -- what is wanted ----------------------------------------------------------------------------

    def _compile(self, found: Sequence[Definition]) -> None:
        versions = tuple((each.id, each.version) for each in found)
        if versions != self._compiled:
            self._compiled, self._wanted = versions, {}
            self._endpoints = [
                _Endpoint(int(each.id), each.body["types"])
                for each in found
                if each.body["enabled"]
            ]

    def _for(self, kind: str) -> list[int]:
        """The endpoints that are told of a type."""
        ids = self._wanted.get(kind)
        if ids is None:
            ids = [each.id for each in self._endpoints if matches(each.types, kind)]
            if len(self._wanted) < 10_000:  # types of events come from outside
                self._wanted[kind] = ids
        return ids

    # -- what happened -----------------------------------------------------------------------------

    def _news(self, changes: Sequence[Change], context: Context) -> Iterator[_News]:
        for change in changes:
            if change.table not in _SOURCES:
                continue
            if change.table == EVENTS.name:
                yield from self._of_events(change.rows, context)
            elif change.op is Op.UPSERT and change.table == ERASURES.name:
                yield from self._of_erasures(change.rows, _deleted_people(changes), context)
            elif change.op is Op.UPSERT and "state" in change.rows.column_names:
                yield from self._of_ledger(change.rows, context)

    def _of_events(self, rows: pa.Table, context: Context) -> Iterator[_News]:
        wanted = [each for each in pc.unique(rows["type"]).to_pylist() if self._may_tell(each)]
        if not wanted:
            return
        told = pc.is_in(rows["type"], value_set=pa.array(wanted, pa.string()))
        since = pa.scalar(context.now - TOLD_AGE_MAX, rows["occurred_at"].type)
        told = pc.and_(told, pc.greater_equal(rows["occurred_at"], since))
        if "merge_id" in rows.column_names:
            told = pc.and_(told, pc.is_null(rows["merge_id"]))
        kept = _with_columns(rows.filter(told), _COLUMNS)
        if not kept.num_rows:
            return
        found = kept.to_pylist()
        kinds = [_kind(row) for row in found]
        ids = kept["event_id"].combine_chunks().fill_null(0).to_numpy().view(np.uint64)
        who = kept["subscriber_id"].combine_chunks().fill_null(0).to_numpy().view(np.uint64)
        yield _chosen(_News(kinds, _mixed(ids, who), found), self._for)

    def _may_tell(self, type: str) -> bool:
        kind = _HISTORY.get(type)
        if kind == "segment.":
            return bool(self._for("segment.entered") or self._for("segment.left"))
        if kind is None:
            kind = f"message.{type}" if type in MESSAGE_EVENTS else f"event.{type}"
        return bool(kind) and bool(self._for(kind))

    def _of_ledger(self, rows: pa.Table, context: Context) -> Iterator[_News]:
        wanted = [state for state in ENDED if self._for(f"message.{state}")]
        if not wanted:
            return
        told = pc.is_in(rows["state"], value_set=pa.array(wanted, pa.string()))
        kept = rows.filter(told)
        if not kept.num_rows:
            return
        names = ("subscriber_id", "message_key", "campaign_id", "state", "reason", "channel")
        found = [
            {
                **row,
                "occurred_at": context.now,
                "item": None,
                "properties": None,
            }
            for row in _with_columns(kept, names, LEDGER.name).to_pylist()
        ]
        kinds = [f"message.{row['state']}" for row in found]
        thing = np.array(
            [hash64("ledger", row["message_key"], row["state"]) for row in found], np.int64
        ).view(np.uint64)
        who = kept["subscriber_id"].combine_chunks().to_numpy().view(np.uint64)
        yield _News(kinds, _mixed(thing, who), found)

    def _of_erasures(self, rows: pa.Table, deleted: set[int], context: Context) -> Iterator[_News]:
        """An erasure is written in every shard, and again; it is told where the person was."""
        rows = rows.filter(
            pc.is_in(rows["subscriber_id"], value_set=pa.array(sorted(deleted), pa.int64()))
        )
        if not rows.num_rows or not self._for("person.erased"):
            return
        found = [
            {"subscriber_id": who, "occurred_at": context.now, "properties": None}
            for who in rows["subscriber_id"].to_pylist()
        ]
        thing = np.full(len(found), hash64("erased"), np.int64).view(np.uint64)
        who = rows["subscriber_id"].combine_chunks().to_numpy().view(np.uint64)
        yield _News(["person.erased"] * len(found), _mixed(thing, who), found)

    # -- whom it is about --------------------------------------------------------------------------

    def _forget(self, changes: Sequence[Change]) -> set[int]:
        """Forget people whose names may have changed, and say who they are."""
        touched: set[int] = set()
        for change in changes:
            if change.table not in _PEOPLE:
                continue
            if "subscriber_id" not in change.rows.column_names:
                self._people.clear()  # an identity that goes does not say whose it was
            else:
                touched.update(change.rows["subscriber_id"].to_pylist())
        for who in touched:
            self._people.pop(who, None)
        return touched

    def _look_up(
        self, rows: Sequence[Mapping[str, Any]], touched: set[int], database: Database
    ) -> dict[int, Person]:
        people = {row["subscriber_id"] for row in rows}
        missing = sorted(who for who in people if who not in self._people)
        if not missing:
            return self._people
        emails = database.rows(
            "SELECT n.id, p.email FROM (SELECT unnest(?::BIGINT[]) AS id) n"
            " JOIN profiles p ON p.subscriber_id = n.id",
            [missing],
        )
        externals = database.rows(
            "SELECT subscriber_id, min(value) FROM identities WHERE kind = ?"
            " AND subscriber_id IN (SELECT unnest(?::BIGINT[])) GROUP BY 1",
            [EXTERNAL_ID, missing],
        )
        known, numbers = dict(emails), dict(externals)
        found = {who: Person(known.get(who), numbers.get(who)) for who in missing}
        if len(self._people) + len(found) > PEOPLE_KEPT_MAX:
            self._people.clear()
        # What this group itself changes may yet be rolled back.
        lasting = {who: person for who, person in found.items() if who not in touched}
        looked_up = {
            **{who: self._people[who] for who in people - found.keys() if who in self._people},
            **found,
        }
        if len(lasting) <= PEOPLE_KEPT_MAX:
            self._people |= lasting
        return looked_up

    def _segments(self, kinds: Sequence[str], database: Database) -> dict[int, str]:
        """Segment id → name, if anybody asks."""
        if not any(kind.startswith("segment.") for kind in kinds):
            return {}
        found = definitions(database, SEGMENT)
        versions = tuple((each.id, each.version) for each in found)
        if versions != self._names[0]:
            self._names = versions, {int(each.id): each.body.get("name", "") for each in found}
        return self._names[1]

    # -- the rows ----------------------------------------------------------------------------------

    def _deliveries(
        self,
        kinds: Sequence[str],
        names: npt.NDArray[np.uint64],
        rows: Sequence[Mapping[str, Any]],
        bodies: Sequence[str],
        database: Database,
        context: Context,
    ) -> Sequence[Change]:
        places: list[int] = []
        endpoints: list[int] = []
        for place, kind in enumerate(kinds):
            for endpoint in self._for(kind):
                places.append(place)
                endpoints.append(endpoint)
        at, whose = np.array(places, np.int64), np.array(endpoints, np.int64)
        ids = _mixed(names[at], whose.view(np.uint64)).view(np.int64)
        kept = _not_there(ids, database)[-GROUP_MAX:]
        if not len(kept):
            return ()
        first = self._next_sequence(database, len(kept))
        chosen = pa.array(at[kept])
        who = pa.array([row["subscriber_id"] for row in rows], pa.int64())
        written = rows_of(
            OUTBOX.name,
            len(kept),
            endpoint_id=pa.array(whose[kept]),
            delivery_id=pa.array(ids[kept]),
            subscriber_id=who.take(chosen),
            type=pa.array(kinds, pa.string()).take(chosen),
            body=pa.array(bodies, pa.string()).take(chosen),
            state=str(State.WAITING),
            attempts=0,
            due_at=context.now,
            status=None,
            answer=None,
            sequence=pa.array(np.arange(first, first + len(kept))),
            created_at=context.now,
            changed_at=context.now,
        )
        return (Change(OUTBOX.name, Op.UPSERT, written),)

    def _next_sequence(self, database: Database, count: int) -> int:
        """The first of so many numbers that no row has, higher than all."""
        if self._sequence is None:
            self._sequence = database.rows("SELECT coalesce(max(sequence), 0) FROM outbox")[0][0]
        first = self._sequence + 1
        self._sequence += count
        return first


def _not_there(ids: npt.NDArray[np.int64], database: Database) -> npt.NDArray[np.intp]:
    """The places of those that the outbox does not have, each once, in order."""
    _, places = np.unique(ids, return_index=True)
    places = np.sort(places)
    known = database.rows(
        "SELECT delivery_id FROM outbox WHERE delivery_id IN (SELECT unnest(?::BIGINT[]))",
        [ids[places].tolist()],
    )
    if known:
        there = np.array([id for (id,) in known], np.int64)
        places = places[~np.isin(ids[places], there)]
    return places


def _kind(row: Mapping[str, Any]) -> str:
    type = row["type"]
    kind = _HISTORY.get(type)
    if kind is None:
        return f"message.{type}" if type in MESSAGE_EVENTS else f"event.{type}"
    if kind != "segment.":
        return kind
    try:
        entered = json.loads(row["properties"] or "{}").get("member") is True
    except ValueError:
        entered = False
    return "segment.entered" if entered else "segment.left"


def _chosen(news: _News, wanted: Callable[[str], list[int]]) -> _News:
    """Without what nobody is told of."""
    keep = [n for n, kind in enumerate(news.kinds) if wanted(kind)]
    if len(keep) == len(news.kinds):
        return news
    return _News([news.kinds[n] for n in keep], news.names[keep], [news.rows[n] for n in keep])


def _with_columns(rows: pa.Table, names: Sequence[str], table: str = EVENTS.name) -> pa.Table:
    """These columns; those that are missing are null."""
    return pa.table(
        {
            name: rows[name]
            if name in rows.column_names
            else pa.nulls(rows.num_rows, arrow_type(table, name))
            for name in names
        }
    )


def _mixed(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of pairs (the finaliser of SplitMix64 over each in turn)."""
    return _finalised(one ^ _finalised(other))


def _finalised(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
