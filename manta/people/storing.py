"""Rows of people into all shards: the driver of ``upsert`` and ``claims``.

A row goes to the shard of its name; one that names somebody who lives elsewhere, or lives on as
somebody else, goes there by the person's id. Further identities are claimed in the shard of their
own hash, all of a batch in three calls per shard. Each step may be repeated.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from manta.command import Repeated
from manta.errors import Conflict, MantaError, NotFound, Overloaded
from manta.ids import encode_id, hash64
from manta.people.aliases import HOPS_MAX
from manta.people.attributes import ARROW_TYPES
from manta.people.claims import (
    CLAIMED,
    CONTESTED,
    OWN,
    STALE,
    TAKEN,
    ClaimIdentities,
    HasIdentity,
    SettleClaims,
    TakeIdentities,
)
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, compared
from manta.people.over_shards import DEADLINE_S, Shards, living, run_each
from manta.people.upsert import NAME_COLUMNS, Consent, UpsertPeople
from manta.schema import ATTRIBUTE_PREFIX, AttributeType

Columns = Mapping[str, Any]  # of one person, as ``UpsertPeople`` takes them
Name = tuple[str, str]  # kind and value, compared


@dataclass
class Upserts:
    """What became of rows: for each its subscriber id or the error that it alone got, and how many
    people were created, updated, left as they were, or stored before under the same key."""

    results: list[int | MantaError | None]
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    repeated: int = 0


async def upsert_many(
    shards: Shards,
    rows: Sequence[Columns | MantaError],
    types: Mapping[str, AttributeType],
    consent: Consent | None,
    key: str | None,
    source: str,
    deadline_s: float = DEADLINE_S,
) -> Upserts:
    """Store rows of people, each by itself; one that is an error already stays that error.

    Rows are checked: names in place, values of the attributes' types. Raises nothing that concerns
    one row alone.
    """
    done = Upserts([row if isinstance(row, MantaError) else None for row in rows])
    by_shard: dict[int, list[tuple[int, Columns]]] = defaultdict(list)
    for n, row in enumerate(rows):
        if not isinstance(row, MantaError):
            by_shard[_shard_of(shards, row)].append((n, row))
    work = _Work(shards, types, consent, source, done, deadline_s)
    await asyncio.gather(*(work.run(shard, part, key) for shard, part in by_shard.items()))
    return done


def _shard_of(shards: Shards, row: Columns) -> int:
    if row.get("subscriber_id") is not None:
        return shards.of_subscriber(row["subscriber_id"])
    for kind in (EMAIL, EXTERNAL_ID, ANONYMOUS_ID):
        if row.get(kind):
            return shards.of_identity(kind, compared(kind, row[kind]))
    raise ValueError("a row names nobody")


class _Work:
    """One request's rows on their way through the shards; ``done`` fills up."""

    def __init__(
        self,
        shards: Shards,
        types: Mapping[str, AttributeType],
        consent: Consent | None,
        source: str,
        done: Upserts,
        deadline_s: float,
    ) -> None:
        self._shards = shards
        self._types = types
        self._consent = consent
        self._source = source
        self._done = done
        self._results = done.results
        self._deadline_s = deadline_s

    async def run(
        self, shard: int, part: Sequence[tuple[int, Columns]], key: str | None, hop: int = 0
    ) -> None:
        """Upsert these rows in this shard, those that live elsewhere there, then claims."""
        key_here = key and f"{key}:{shard}:{hop}"
        command = UpsertPeople(
            key_here, self._table([c for _, c in part]), self._source, self._consent
        )
        answer = await self._execute(shard, command, part)
        if isinstance(answer, Repeated):
            # The rows are stored. The names alone are sent again: they change nothing, and tell
            # the ids and the claims that the earlier request may not have come to.
            names = [{k: v for k, v in c.items() if k in NAME_COLUMNS} for _, c in part]
            command = UpsertPeople(None, self._table(names), self._source)
            answer = await self._execute(shard, command, part)
            self._done.repeated += len(part)
        elif answer is not None:
            self._done.created += answer.created
            self._done.updated += answer.updated
            self._done.unchanged += answer.unchanged
        if answer is None:
            return
        elsewhere, unknown, busy = dict(answer.elsewhere), set(answer.unknown), set(answer.busy)
        moved: dict[int, list[tuple[int, Columns]]] = defaultdict(list)
        for i, ((n, columns), id) in enumerate(zip(part, answer.ids.to_pylist(), strict=True)):
            if i in elsewhere:
                person = elsewhere[i]
                home = self._shards.of_subscriber(person)
                moved[home].append((n, {**columns, "subscriber_id": person}))
            elif i in unknown:
                self._results[n] = NotFound("nobody has this id", path="subscriber_id")
            elif i in busy:
                self._results[n] = Overloaded("this identity is being claimed: try again")
            else:
                self._results[n] = id
        if moved and hop < HOPS_MAX:
            await asyncio.gather(*(self.run(s, p, key, hop + 1) for s, p in moved.items()))
        if answer.claims is not None:
            refused = await claim(self._shards, answer.claims, self._source, key, self._deadline_s)
            self._note_refused(refused, part)

    async def _execute(self, shard: int, command: UpsertPeople, part: Sequence[Any]) -> Any:
        """The answer, or ``None`` where the rows of this part have got the error."""
        try:
            return await self._shards.execute(shard, command, self._deadline_s)
        except MantaError as error:
            for n, _ in part:
                self._results[n] = error
            return None

    def _note_refused(
        self, refused: Mapping[Name, MantaError], part: Sequence[tuple[int, Columns]]
    ) -> None:
        for n, columns in part:
            for kind in NAME_COLUMNS[1:]:  # the first is the id
                value = columns.get(kind)
                error = refused.get((kind, compared(kind, value))) if value else None
                if error is not None and isinstance(self._results[n], int):
                    self._results[n] = error

    def _table(self, rows: Sequence[Columns]) -> pa.Table:
        names = sorted({name for row in rows for name in row})
        columns = {}
        for name in names:
            if name == "subscriber_id":
                kind = pa.int64()
            elif name.startswith(ATTRIBUTE_PREFIX):
                kind = ARROW_TYPES[self._types[name.removeprefix(ATTRIBUTE_PREFIX)]]
            else:
                kind = pa.string()
            columns[name] = pa.array([row.get(name) for row in rows], kind)
        return pa.table(columns)


# -- further identities ----------------------------------------------------------------------------


async def claim(
    shards: Shards,
    claims: pa.Table,
    source: str,
    key: str | None,
    deadline_s: float = DEADLINE_S,
) -> dict[Name, MantaError]:
    """Claim further identities for people (``kind``, ``value``, ``subscriber_id``, and of those
    that shall become the address ``email``); each refused one with the reason.

    One that the person has under an id that was merged into theirs is theirs already.
    """
    work = _Claiming(shards, source, key, deadline_s)
    rows = claims.to_pylist()
    try:
        await work.ask(rows)
        stale = [row for row in rows if work.status(row) == STALE]
        if stale:
            await work.settle_stale(stale)
            await work.ask(stale)
        await work.take([row for row in rows if work.status(row) == CLAIMED])
        await work.judge([row for row in rows if work.status(row) == TAKEN])
    except MantaError as error:
        return {_name(row): error for row in rows if work.status(row) != OWN} | work.refused
    return work.refused


class _Claiming:
    def __init__(self, shards: Shards, source: str, key: str | None, deadline_s: float) -> None:
        self._shards, self._source, self._key = shards, source, key
        self._deadline_s = deadline_s
        self._said: dict[tuple[Name, int], tuple[str, int]] = {}
        self._suppressions: list[pa.Table] = []
        self.refused: dict[Name, MantaError] = {}

    def status(self, row: Mapping[str, Any]) -> str:
        return self._said.get((_name(row), row["subscriber_id"]), ("", 0))[0]

    async def ask(self, rows: Sequence[dict[str, Any]]) -> None:
        """The first step, in the shards of the identities."""
        parts = self._by_owner(rows)
        calls = [(shard, ClaimIdentities(None, _table(part))) for shard, part in parts.items()]
        for part, answer in zip(parts.values(), await self._run(calls), strict=True):
            for row, status, owner in zip(part, answer.statuses, answer.owners, strict=True):
                self._said[_name(row), row["subscriber_id"]] = status, owner
                if status in (CONTESTED, STALE):
                    self.refused[_name(row)] = Overloaded(
                        f"this {row['kind']} is being claimed: try again"
                    )
                else:
                    self.refused.pop(_name(row), None)
            if answer.suppressions is not None:
                self._suppressions.append(answer.suppressions)

    async def settle_stale(self, rows: Sequence[dict[str, Any]]) -> None:
        """Somebody claimed them long ago and never finished: ask whether they have them, and say
        so."""
        owners = [self._said[_name(row), row["subscriber_id"]][1] for row in rows]
        asked = [
            (self._shards.of_subscriber(owner), HasIdentity(None, owner, row["kind"], row["value"]))
            for row, owner in zip(rows, owners, strict=True)
        ]
        has = await self._run(asked)
        settled = [
            (
                self._shards.of_identity(row["kind"], compared(row["kind"], row["value"])),
                SettleClaims(
                    None,
                    _table([{**row, "subscriber_id": owner, EMAIL: None}]),
                    (bool(theirs),),
                ),
            )
            for row, owner, theirs in zip(rows, owners, has, strict=True)
        ]
        await self._run(settled)

    async def take(self, rows: Sequence[dict[str, Any]]) -> None:
        """The second step, in the shards of the people, and the third."""
        if not rows:
            return
        homes: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            homes[self._shards.of_subscriber(row["subscriber_id"])].append(row)
        takes = [
            (
                home,
                TakeIdentities(
                    self._key_of("take", part), _table(part), self._source, self._stops(part)
                ),
            )
            for home, part in homes.items()
        ]
        here: dict[tuple[Name, int], bool] = {}
        for part, answer in zip(homes.values(), await self._run(takes), strict=True):
            taken = (
                [True] * len(part)
                if isinstance(answer, Repeated)
                else answer.is_valid().to_pylist()
            )
            for row, held in zip(part, taken, strict=True):
                here[_name(row), row["subscriber_id"]] = held
        settles = [
            (
                shard,
                SettleClaims(
                    self._key_of("settle", part),
                    _table(part),
                    tuple(here[_name(row), row["subscriber_id"]] for row in part),
                ),
            )
            for shard, part in self._by_owner(rows).items()
        ]
        await self._run(settles)
        for row in rows:
            self._said[_name(row), row["subscriber_id"]] = OWN, row["subscriber_id"]

    async def judge(self, rows: Sequence[dict[str, Any]]) -> None:
        """Others have these: refused, unless the others are the same person by now."""
        if not rows:
            return
        owners = {_name(row): self._said[_name(row), row["subscriber_id"]][1] for row in rows}
        ids = {*owners.values(), *(row["subscriber_id"] for row in rows)}
        now = await living(self._shards, ids, self._deadline_s)
        for row in rows:
            owner = now[owners[_name(row)]]
            if owner != now[row["subscriber_id"]]:
                self.refused[_name(row)] = Conflict(
                    f"another subscriber has this {row['kind']}",
                    path=row["kind"],
                    owner=encode_id(owner),
                )

    def _by_owner(self, rows: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            kind = row["kind"]
            parts[self._shards.of_identity(kind, compared(kind, row["value"]))].append(row)
        return parts

    def _stops(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table | None:
        """The suppressions of the addresses among these."""
        if not self._suppressions:
            return None
        known = pa.concat_tables(self._suppressions)
        addresses = {row["value"] for row in rows}
        last: dict[tuple[str, str], dict[str, Any]] = {
            (row["channel"], row["address"]): row
            for row in known.to_pylist()
            if row["address"] in addresses
        }
        return pa.Table.from_pylist(list(last.values()), schema=known.schema) if last else None

    def _key_of(self, step: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """A key of these claims: a retry of the request may have others left."""
        names = [str(row[n]) for row in rows for n in ("kind", "value", "subscriber_id")]
        return self._key and f"{self._key}:{step}:{hash64(*names):x}"

    async def _run(self, calls: Sequence[Any]) -> list[Any]:
        answers = await run_each(self._shards, calls, self._deadline_s)
        for answer in answers:
            if isinstance(answer, MantaError):
                raise answer
        return answers


def _name(row: Mapping[str, Any]) -> Name:
    return row["kind"], compared(row["kind"], row["value"])


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    schema = _CLAIMS
    if any(row.get(EMAIL) is not None for row in rows):
        schema = schema.append(pa.field(EMAIL, pa.string()))
    columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
    return pa.table(columns, schema=schema)


_CLAIMS = pa.schema({"kind": pa.string(), "value": pa.string(), "subscriber_id": pa.int64()})
