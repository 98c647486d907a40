"""People by HTTP: rows of JSON become one command per shard, and claims for what lies elsewhere.

Each row is checked by itself first, so that a wrong one fails alone and the commands carry only
rows that the shards take. A row that names by its address a person who lives in another shard goes
there by the person's id. Further identities (an external id beside an address) are claimed in the
shard of their own hash, with the three steps of ``manta.people.claims``; each step has a key and
may be repeated.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import available_timezones

import pyarrow as pa

from actors.handles import Handles, Shards
from manta.command import Repeated
from manta.errors import Conflict, InvalidRequest, MantaError, NotFound, Overloaded
from manta.people.addresses import Refused, normalised
from manta.people.attributes import ARROW_TYPES, LIST_LENGTH_MAX, TEXT_LENGTH_MAX, Unfit, value_of
from manta.people.claims import CLAIMED, CONTESTED, OWN, STALE, TAKEN
from manta.people.commands import (
    ClaimIdentities,
    Consent,
    HasIdentity,
    SettleClaims,
    TakeIdentities,
    UpsertPeople,
)
from manta.people.identities import EMAIL, EXTERNAL_ID, VALUE_LENGTH_MAX, compared
from manta.people.upsert import NAME_COLUMNS
from manta.schema import ATTRIBUTE_PREFIX, AttributeType
from serve_apps import reads
from serve_apps.limits import CALL_DEADLINE_S

NUMBER_MAX = 1e300  # of an attribute: JSON integers can be longer than any float


class Row(NamedTuple):
    """One person as given; ``path`` is where it stands in the request."""

    email: str | None
    external_id: str | None
    time_zone: str | None
    locale: str | None
    attributes: Mapping[str, Any]
    path: str = ""


@dataclass
class Upserts:
    """What became of rows: for each its subscriber id or the error that it alone got, and how many
    people were created, updated, left as they were, or stored before under the same key."""

    results: list[int | MantaError | None]
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    repeated: int = 0


async def upsert_rows(
    handles: Handles, rows: Sequence[Row], consent: Consent | None, key: str | None, source: str
) -> Upserts:
    """Store rows of people, each by itself. Raises nothing that concerns one row alone."""
    types: dict[str, AttributeType] = {}
    if any(row.attributes for row in rows):
        types = await reads.attribute_types(handles)
    done = Upserts([None] * len(rows))
    by_shard: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for n, row in enumerate(rows):
        try:
            columns = checked_row(row, types)
        except InvalidRequest as error:
            done.results[n] = error
            continue
        kind = EMAIL if columns.get(EMAIL) else EXTERNAL_ID
        shard = handles.shards.of_identity(kind, compared(kind, columns[kind]))
        by_shard[shard].append((n, columns))
    work = _Work(handles.shards, types, consent, source, done)
    await asyncio.gather(*(work.run(shard, part, key) for shard, part in by_shard.items()))
    return done


class _Work:
    """One request's rows on their way through the shards; ``done`` fills up."""

    def __init__(
        self,
        shards: Shards,
        types: Mapping[str, AttributeType],
        consent: Consent | None,
        source: str,
        done: Upserts,
    ) -> None:
        self._shards = shards
        self._types = types
        self._consent = consent
        self._source = source
        self._done = done
        self._results = done.results

    async def run(
        self, shard: int, part: Sequence[tuple[int, dict[str, Any]]], key: str | None, hop: int = 0
    ) -> None:
        """Upsert these rows in this shard, those that live elsewhere there, then claims."""
        key = key and f"{key}:{shard}:{hop}"
        command = UpsertPeople(key, self._table([c for _, c in part]), self._source, self._consent)
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
        moved: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for i, ((n, columns), id) in enumerate(zip(part, answer.ids.to_pylist(), strict=True)):
            if i in elsewhere:
                person = elsewhere[i]
                home = self._shards.of_subscriber(person)
                moved[home].append((n, columns | {"subscriber_id": person}))
            elif i in unknown:
                self._results[n] = NotFound("nobody has this id", path="subscriber_id")
            elif i in busy:
                self._results[n] = Overloaded("this identity is being claimed: try again")
            else:
                self._results[n] = id
        if moved and hop == 0:
            await asyncio.gather(*(self.run(s, p, key, 1) for s, p in moved.items()))
        if answer.claims is not None:
            refused = await claim(self._shards, answer.claims, self._source, key)
            self._note_refused(refused, part)

    async def _execute(self, shard: int, command: UpsertPeople, part: Sequence[Any]) -> Any:
        """The answer, or ``None`` where the rows of this part have got the error."""
        try:
            return await self._shards.execute(shard, command, CALL_DEADLINE_S)
        except MantaError as error:
            for n, _ in part:
                self._results[n] = error
            return None

    def _note_refused(
        self, refused: Mapping[str, MantaError], part: Sequence[tuple[int, dict[str, Any]]]
    ) -> None:
        for n, columns in part:
            error = refused.get(compared(EXTERNAL_ID, columns.get(EXTERNAL_ID) or ""))
            if error is not None and isinstance(self._results[n], int):
                self._results[n] = error

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
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


async def claim(
    shards: Shards, claims: pa.Table, source: str, key: str | None
) -> dict[str, MantaError]:
    """Claim further identities for people; the value of each refused one with the reason."""
    by_shard: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in claims.to_pylist():
        by_shard[shards.of_identity(row["kind"], row["value"])].append(row)
    refused: dict[str, MantaError] = {}
    for shard, rows in by_shard.items():
        for row in rows:
            error = await _claim_one(shards, shard, row, source, key)
            if error is not None:
                refused[row["value"]] = error
    return refused


async def _claim_one(
    shards: Shards, shard: int, row: dict[str, Any], source: str, key: str | None
) -> MantaError | None:
    table = pa.Table.from_pylist([row], schema=_CLAIMS)
    key = key and f"{key}:{row['kind']}:{row['value']}"
    try:
        for _ in range(2):
            answer = await shards.execute(shard, ClaimIdentities(None, table), CALL_DEADLINE_S)
            (status,), (owner,) = answer.statuses, answer.owners
            if status != STALE:
                break
            await _settle_stale(shards, shard, row, owner)
        if status == OWN:
            return None
        if status == TAKEN:
            return Conflict(f"another subscriber has this {row['kind']}", path=row["kind"])
        if status in (CONTESTED, STALE):
            return Overloaded(f"this {row['kind']} is being claimed: try again")
        assert status == CLAIMED
        home = shards.of_subscriber(row["subscriber_id"])
        take = TakeIdentities(key and f"{key}:take", table, source, answer.suppressions)
        taken = await shards.execute(home, take, CALL_DEADLINE_S)
        here = True if isinstance(taken, Repeated) else taken[0].is_valid
        settle = SettleClaims(key and f"{key}:settle", table, (here,))
        await shards.execute(shard, settle, CALL_DEADLINE_S)
        return None
    except MantaError as error:
        return error


async def _settle_stale(shards: Shards, shard: int, row: dict[str, Any], owner: int) -> None:
    """Somebody claimed it long ago and never finished: ask whether they have it, and say so."""
    ask = HasIdentity(None, owner, row["kind"], row["value"])
    has = await shards.execute(shards.of_subscriber(owner), ask, CALL_DEADLINE_S)
    theirs = pa.Table.from_pylist([row | {"subscriber_id": owner}], schema=_CLAIMS)
    await shards.execute(shard, SettleClaims(None, theirs, (bool(has),)), CALL_DEADLINE_S)


_CLAIMS = pa.schema({"kind": pa.string(), "value": pa.string(), "subscriber_id": pa.int64()})


# -- checking one row ------------------------------------------------------------------------------


def checked_row(row: Row, types: Mapping[str, AttributeType]) -> dict[str, Any]:
    """The columns of a row, as ``UpsertPeople`` wants them. Raises ``InvalidRequest``."""
    columns: dict[str, Any] = {}
    if row.email is not None:
        columns[EMAIL] = _address(row.email, _at(row, EMAIL))
    if row.external_id is not None:
        text = row.external_id.strip()
        if not text or len(text) > VALUE_LENGTH_MAX or not text.isprintable():
            raise InvalidRequest(
                "this external id is empty or holds control characters",
                path=_at(row, EXTERNAL_ID),
                expected=f"1 to {VALUE_LENGTH_MAX} printable characters",
            )
        columns[EXTERNAL_ID] = text
    if not columns:
        raise InvalidRequest(
            "this names nobody", path=_at(row, EMAIL), expected="email or external_id"
        )
    if row.time_zone is not None:
        if row.time_zone not in _zones():
            raise InvalidRequest(
                f"{row.time_zone!r:.64} is not a time zone",
                path=_at(row, "time_zone"),
                expected="an IANA name, for example Europe/Berlin",
            )
        columns["time_zone"] = row.time_zone
    if row.locale is not None:
        columns["locale"] = _locale(row.locale, _at(row, "locale"))
    for name, value in row.attributes.items():
        path = _at(row, f"attributes.{name:.64}")
        kind = types.get(name)
        if kind is None:
            raise InvalidRequest(
                f"{name!r:.64} is not declared",
                path=path,
                expected=f"one of {', '.join(sorted(types)) or 'none so far'}; "
                "POST /v1/attributes declares more",
            )
        if value is not None:
            columns[ATTRIBUTE_PREFIX + name] = _value(value, kind, path)
    return columns


def _at(row: Row, field: str) -> str:
    return f"{row.path}.{field}" if row.path else field


def _address(text: str, path: str) -> str:
    address = normalised(text)
    if isinstance(address, Refused):
        raise InvalidRequest(
            f"{text!r:.80} is not an address: {address.reason}", path=path, expected="local@domain"
        )
    return address


def _locale(text: str, path: str) -> str:
    parts = text.split("-")
    fits = all(1 <= len(p) <= 8 and p.isascii() and p.isalnum() for p in parts)
    if not fits or not 2 <= len(parts[0]) <= 3 or not parts[0].isalpha():
        raise InvalidRequest(
            f"{text!r:.35} is not a locale", path=path, expected="BCP 47, for example de-CH"
        )
    return text


def _value(value: Any, kind: AttributeType, path: str) -> Any:
    """A JSON value as a value of the attribute's type."""
    if kind is AttributeType.STRING and isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX:
        return value
    if kind is AttributeType.BOOLEAN and isinstance(value, bool):
        return value
    if kind is AttributeType.NUMBER and _is_number(value):
        return float(value)
    if kind is AttributeType.DATE and isinstance(value, str):
        parsed = value_of(value, kind)
        if parsed is not None and not isinstance(parsed, Unfit):
            return parsed
    if kind is AttributeType.LIST and _is_list(value):
        return value
    raise InvalidRequest(f"{value!r:.60} does not fit", path=path, expected=_EXPECTED[kind])


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= NUMBER_MAX and math.isfinite(value)


def _is_list(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > LIST_LENGTH_MAX:
        return False
    return all(isinstance(item, str) and len(item) <= TEXT_LENGTH_MAX for item in value)


_EXPECTED = {
    AttributeType.STRING: f"a text of at most {TEXT_LENGTH_MAX} characters",
    AttributeType.NUMBER: "a finite number",
    AttributeType.BOOLEAN: "true or false",
    AttributeType.DATE: "a date or instant, RFC 3339",
    AttributeType.LIST: f"a list of at most {LIST_LENGTH_MAX} texts",
}


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())
