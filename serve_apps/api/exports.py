"""The fast way out: an audience as one stream, by rising id.

Shards own ranges of ids, so shard after shard, page after page is one order, and whoever was cut
off goes on ``after`` the last id received. Memory is bounded by one page: the next is read when the
client has taken the one before. A stream that comes to the time limit of a request ends there: an
Arrow stream without the mark ``manta.last`` on its last batch, a CSV text as a broken connection,
so that neither can be taken for the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from actors.handles import Handles
from manta.errors import InvalidRequest, NotFound, OutcomeUnknown
from manta.ids import decode_id, encode_id
from manta.people.attributes import ARROW_TYPES
from manta.people.importer import FIXED
from manta.schema import ATTRIBUTE_PREFIX, AttributeType
from manta.store.importing import csv_text
from serve_apps import reads
from serve_apps.api.wiring import NUMBER_MAX, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

PATH = "/export"
ARROW = "application/vnd.apache.arrow.stream"
PAGE_ROWS = 10_000
STREAM_S = 15.0  # then the next page is another request's: Serve ends a request after 30 s
LAST = {b"manta.last": b"true"}
_INSTANTS = ("created_at", "updated_at")
_FIRST_COLUMNS = ("subscriber_id", "email", "time_zone", "locale")
router = APIRouter(tags=["subscribers"])
READ = needs("subscribers:read")


class Audience(Body):
    """Everybody, where neither a segment nor a rule is named."""

    segment_id: int | None = Field(None, ge=1, le=NUMBER_MAX)
    rule: dict[str, Any] | None = None
    format: Literal["arrow", "csv"] = "arrow"
    after: str | None = Field(None, max_length=20, description="The last id that you have.")


@router.post(PATH, dependencies=[READ], summary="Export an audience")
async def export(body: Audience, ports: Ports) -> StreamingResponse:
    """Profiles by rising `subscriber_id`, streamed as Arrow IPC or CSV. Attributes have their own
    names (`attr_…` where such a column is there already). In CSV a text that a spreadsheet would
    take for a formula has an apostrophe before it."""
    types = await reads.attribute_types(ports)
    after = _after(body.after)
    pages = _Pages(ports, types, await _rule(ports, body), ports.clock.now())
    first = await pages.next(ports.shards.of_subscriber(max(after, 0)), after)
    if body.format == "csv":
        return StreamingResponse(_as_csv(pages, first), media_type="text/csv; charset=utf-8")
    return StreamingResponse(_as_arrow(pages, first), media_type=ARROW)


def _after(text: str | None) -> int:
    if text is None:
        return -1
    try:
        return decode_id(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r:.20} is no id", path="after", expected="the last subscriber_id received"
        ) from None


async def _rule(ports: Handles, body: Audience) -> dict[str, Any] | None:
    if body.segment_id is not None and body.rule is not None:
        raise InvalidRequest(
            "an audience is either a segment or a rule", path="rule", expected="one of the two"
        )
    rule: Any = body.rule
    if body.segment_id is not None:
        segment = await ports.catalog.call(
            "get", "segments", str(body.segment_id), deadline_s=CALL_DEADLINE_S
        )
        if segment is None:
            raise NotFound(f"no segment {body.segment_id}", path="segment_id")
        rule = segment["rule"]
    if rule is None:
        return None
    checked = await reads.checked_rule(ports, rule)
    return dict(checked.to_json())


class _Page:
    """Rows of one shard, and where the next page begins; ``last`` where there is none."""

    def __init__(self, rows: pa.Table, shard: int, after: int, last: bool) -> None:
        self.rows, self.shard, self.after, self.last = rows, shard, after, last


class _Pages:
    """The pages of one audience as it is at one instant."""

    def __init__(
        self,
        ports: Handles,
        types: dict[str, AttributeType],
        rule: dict[str, Any] | None,
        now: datetime,
    ) -> None:
        self._ports, self._types, self._now = ports, types, now
        self._rule = rule
        self.schema = _schema(types)

    async def next(self, shard: int, after: int) -> _Page:
        arguments = {
            "rule": self._rule,
            "attributes": {name: str(kind) for name, kind in self._types.items()},
            "now": self._now,
            "after": after,
            "limit": PAGE_ROWS,
        }
        found = await self._ports.shards.query(shard, "audience_page", arguments, CALL_DEADLINE_S)
        rows = await asyncio.to_thread(_shown, found, self.schema)
        if found.num_rows == PAGE_ROWS:
            last_id = int(found["subscriber_id"][found.num_rows - 1].as_py())
            return _Page(rows, shard, last_id, False)
        return _Page(rows, shard + 1, after, shard + 1 >= self._ports.shards.count)

    async def all(self, page: _Page) -> AsyncIterator[_Page]:
        """The first page and those that follow, until the time is over; not before a first row."""
        clock = self._ports.clock
        until, rows = clock.monotonic() + STREAM_S, page.rows.num_rows
        yield page
        while not page.last and (rows == 0 or clock.monotonic() < until):
            page = await self.next(page.shard, page.after)
            rows += page.rows.num_rows
            yield page


def _schema(types: dict[str, AttributeType]) -> pa.Schema:
    taken = {*_FIRST_COLUMNS, *_INSTANTS, *FIXED}
    attributes = [
        pa.field(
            f"{ATTRIBUTE_PREFIX}{name}" if name in taken else name,
            ARROW_TYPES[kind],
            metadata={b"column": f"{ATTRIBUTE_PREFIX}{name}".encode()},
        )
        for name, kind in sorted(types.items())
    ]
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in _FIRST_COLUMNS),
            *attributes,
            *(pa.field(name, pa.timestamp("us")) for name in _INSTANTS),
        ]
    )


def _shown(found: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of ``profiles`` as they are exported."""
    columns = []
    for field in schema:
        name = (field.metadata or {}).get(b"column", field.name.encode()).decode()
        if name == "subscriber_id":
            column = pa.array([encode_id(id) for id in found[name].to_pylist()], pa.string())
        elif name in found.column_names:
            column = found[name].cast(field.type)
        else:  # declared, and no row of this shard has had it yet
            column = pa.nulls(found.num_rows, field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=pa.schema([f.remove_metadata() for f in schema]))


async def _as_arrow(pages: _Pages, first: _Page) -> AsyncIterator[bytes]:
    sink = _Sink()
    writer = pa.ipc.new_stream(sink, first.rows.schema)
    async for page in pages.all(first):
        batch = page.rows.combine_chunks().to_batches()
        whole = batch[0] if batch else pa.RecordBatch.from_pylist([], page.rows.schema)
        writer.write_batch(whole, custom_metadata=LAST if page.last else None)
        yield sink.taken()
    writer.close()
    yield sink.taken()


class _Sink:
    """Bytes as they are written, to be taken away."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.closed = False

    def write(self, data: Any) -> int:
        self._held += memoryview(data)
        return len(memoryview(data))

    def taken(self) -> bytes:
        data, self._held = bytes(self._held), bytearray()
        return data

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


async def _as_csv(pages: _Pages, first: _Page) -> AsyncIterator[bytes]:
    header, last = True, False
    async for page in pages.all(first):
        yield await asyncio.to_thread(csv_text, page.rows, header)
        header, last = False, page.last
    if not last:
        raise OutcomeUnknown("the audience is too large for one CSV answer; Arrow goes on")
