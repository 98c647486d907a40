"""Whom not to write to: suppressions shown, searched, taken in and given out as lists, lifted.

A suppression lies in the shard of its address and in that of its person; a list is read from all
shards at once, by channel and address, and what stands in two of them is shown once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from heapq import merge
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from actors.handles import Handles
from manta.delivery.returns.reporting import on_address
from manta.errors import InvalidRequest, NotFound, OutcomeUnknown
from manta.ids import encode_id
from manta.people.commands import LiftSuppression, Suppress
from manta.people.consents import address_kind
from manta.people.identities import compared
from manta.people.suppression_file import parse
from manta.people.suppressions import MANUAL, MANY_MAX, Row, Stop, SuppressMany, combined
from manta.store.importing import csv_text
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Ports, needs
from serve_apps.auth import Caller
from serve_apps.bodies import Body, instant
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.pages import page, read_cursor, write_cursor
from serve_apps.problems import Malformed

CSV = "text/csv"
EXPORT_PAGE_ROWS = 5_000
EXPORT_S = 20.0  # a request ends after 25 s: a list that takes longer ends as a broken one
COLUMNS = ("channel", "address", "reason", "source", "evidence", "created_at", "expires_at")
router = APIRouter(tags=["suppressions"])
READ, WRITE = needs("subscribers:read"), needs("subscribers:write")

Channel = Literal["email", "sms", "push"]
Address = Annotated[str, Field(max_length=320)]
Document = dict[str, Any]


class NewSuppression(Body):
    channel: str = "email"
    address: str = Field(max_length=320)
    reason: str = Field(MANUAL, max_length=200)
    evidence: str | None = Field(None, max_length=1_000)
    expires_at: str | None = Field(None, max_length=40, description="RFC 3339; never if absent.")


@router.post("/suppressions", dependencies=[WRITE], status_code=201, summary="Suppress an address")
async def suppress(body: NewSuppression, ports: Ports, key: Key, request: Request) -> Document:
    """Nothing is sent to it any more on this channel, whoever has it."""
    expires_at = instant(body.expires_at, "expires_at")
    source = _by(request)
    command = Suppress(
        key, body.channel, body.address, body.reason, source, body.evidence, expires_at
    )
    return {"changed": await on_address(ports.shards, command, CALL_DEADLINE_S)}


@router.get("/suppressions", dependencies=[READ], summary="Suppressions that hold")
async def list_suppressions(
    ports: Ports,
    channel: Channel | None = None,
    reason: Annotated[str | None, Query(max_length=200)] = None,
    contains: Annotated[str | None, Query(max_length=320, description="A part of it.")] = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
) -> Document:
    """By channel and address. `reason` is `hard_bounce`, `soft_bounces`, `complaint`, `manual`,
    `unsubscribed`, or what an import named."""
    after = tuple(read_cursor("suppressions", cursor, [str, str])) if cursor else None
    wanted = {"channel": channel, "reason": reason, "contains": contains}
    rows, more = await _page(ports, wanted, after, limit)
    following = write_cursor("suppressions", list(_name(rows[-1]))) if more else None
    return page([reads.plain(row) for row in rows], following)


@router.get("/suppressions/export", dependencies=[READ], summary="All suppressions as CSV")
async def export(
    ports: Ports,
    channel: Channel | None = None,
    reason: Annotated[str | None, Query(max_length=200)] = None,
) -> StreamingResponse:
    """In the form that the import takes. In CSV a text that a spreadsheet would take for a formula
    has an apostrophe before it."""
    wanted = {"channel": channel, "reason": reason}
    first = await _page(ports, wanted, None, EXPORT_PAGE_ROWS)
    return StreamingResponse(_as_csv(ports, wanted, *first), media_type=f"{CSV}; charset=utf-8")


@router.post(
    "/suppressions/import",
    dependencies=[WRITE],
    summary="Import suppressions from CSV",
    openapi_extra={
        "requestBody": {"required": True, "content": {CSV: {"schema": {"type": "string"}}}}
    },
)
async def import_suppressions(
    request: Request,
    ports: Ports,
    key: Key,
    reason: Annotated[str, Query(min_length=1, max_length=200)] = MANUAL,
    source: Annotated[str, Query(min_length=1, max_length=200)] = "import",
) -> Document:
    """Up to 10,000 rows in 4 MB, in UTF-8. The first row names the columns: `address` (or `email`),
    and if wanted `reason`, `source`, `evidence`, `expires_at`. A row that does not fit is refused
    alone: `rejects` has its line and the reason. A suppression that stands is never weakened."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != CSV:
        raise HTTPException(415, f"suppressions are imported as {CSV}")
    for name, value in (("reason", reason), ("source", source)):
        if not value.isprintable():
            raise InvalidRequest(f"{name} holds control characters", path=name)
    try:
        text = (await request.body()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(
            "the list is not in UTF-8", path="body", expected="UTF-8", position=error.start
        ) from None
    rows, rejects = await asyncio.to_thread(parse, text, ports.clock.now(), reason, source)
    changed = await _suppress_many(ports, rows, key)
    return {
        "rows": len(rows) + len(rejects),
        "suppressed": changed,
        "unchanged": len(rows) - changed,
        "rejected": len(rejects),
        "rejects": [{"line": reject.line, "reason": reject.reason} for reject in rejects],
    }


@router.get("/suppressions/{channel}/{address:path}", dependencies=[READ], summary="One address")
async def get_suppression(channel: Channel, address: str, ports: Ports) -> Document:
    """Why nothing is sent to it, since when and until when, and who has it."""
    arguments = {"channel": channel, "address": address}
    kind = address_kind(channel)
    owner = ports.shards.of_identity(kind, compared(kind, address))
    found = await ports.shards.query(owner, "suppression_of", arguments, CALL_DEADLINE_S)
    holder, suppression = found["holder"], found["suppression"]
    if suppression is None and holder is not None:
        home = ports.shards.of_subscriber(holder)
        there = await ports.shards.query(home, "suppression_of", arguments, CALL_DEADLINE_S)
        suppression = there["suppression"]
    if suppression is None:
        raise NotFound("this address is not suppressed", path="address")
    return dict(reads.plain(suppression | {"subscriber_id": holder and encode_id(holder)}))


@router.delete(
    "/suppressions/{channel}/{address:path}", dependencies=[WRITE], summary="Lift a suppression"
)
async def lift(
    channel: Channel,
    address: str,
    ports: Ports,
    key: Key,
    request: Request,
    why: Annotated[str, Query(max_length=1_000, description="Kept in the history.")] = "",
) -> Document:
    """Consent is another matter and stays as it is."""
    command = LiftSuppression(key, channel, address, _by(request), why)
    return {"changed": await on_address(ports.shards, command, CALL_DEADLINE_S)}


def _by(request: Request) -> str:
    caller: Caller = request.state.caller
    return f"api:{caller.key_id}"


async def _suppress_many(ports: Handles, rows: Sequence[Row], key: str | None) -> int:
    """Each in the shard of its address, then in that of its holder, if it is another one."""
    shards = ports.shards
    by_owner: dict[int, list[Row]] = {}
    for row in rows:
        by_owner.setdefault(shards.of_identity("email", row.address), []).append(row)
    answers = await asyncio.gather(
        *(_in_shard(ports, shard, some, key and f"{key}:o") for shard, some in by_owner.items())
    )
    by_home: dict[int, list[Row]] = {}
    whose = {address: person for _, holders in answers for address, person in holders}
    for owner, some in by_owner.items():
        for row in some:
            home = shards.of_subscriber(whose[row.address]) if row.address in whose else owner
            if home != owner:
                by_home.setdefault(home, []).append(row)
    await asyncio.gather(
        *(_in_shard(ports, shard, some, key and f"{key}:h") for shard, some in by_home.items())
    )
    return sum(changed for changed, _ in answers)


async def _in_shard(
    ports: Handles, shard: int, rows: Sequence[Row], key: str | None
) -> tuple[int, list[tuple[str, int]]]:
    changed, holders = 0, []
    for at in range(0, len(rows), MANY_MAX):
        command = SuppressMany(key and f"{key}:{at}", tuple(rows[at : at + MANY_MAX]))
        answer = await ports.shards.execute(shard, command, CALL_DEADLINE_S)
        changed += answer.changed
        holders += answer.holders
    return changed, holders


# -- pages over all shards -------------------------------------------------------------------------


def _name(row: Document) -> tuple[str, str]:
    return row["channel"], row["address"]


async def _page(
    ports: Handles, wanted: Document, after: Any, limit: int
) -> tuple[list[Document], bool]:
    """The next rows, and whether there are more."""
    arguments = {**wanted, "after": after, "limit": limit + 1}
    parts = await ports.shards.query_all("suppressions_page", arguments, CALL_DEADLINE_S)
    rows: list[Document] = []
    for row in merge(*parts, key=_name):
        if rows and _name(rows[-1]) == _name(row):
            rows[-1] = _graver(rows[-1], row)
        elif len(rows) == limit:
            return rows, True
        else:
            rows.append(row)
    return rows, False


def _graver(one: Document, other: Document) -> Document:
    stop = Stop(one["reason"], one["expires_at"])
    return one if combined(stop, Stop(other["reason"], other["expires_at"])) == stop else other


async def _as_csv(
    ports: Handles, wanted: Document, rows: list[Document], more: bool
) -> AsyncIterator[bytes]:
    until, header = ports.clock.monotonic() + EXPORT_S, True
    while True:
        yield await asyncio.to_thread(_csv_of, rows, header)
        if not more:
            return
        if ports.clock.monotonic() > until:
            raise OutcomeUnknown("the list is too long for one answer: ask by channel or reason")
        rows, more = await _page(ports, wanted, _name(rows[-1]), EXPORT_PAGE_ROWS)
        header = False


def _csv_of(rows: list[Document], header: bool) -> bytes:
    columns = {name: pa.array([_text(row[name]) for row in rows], pa.string()) for name in COLUMNS}
    return csv_text(pa.table(columns), header)


def _text(value: Any) -> str | None:
    return None if value is None else str(reads.plain(value))
