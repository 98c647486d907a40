"""The fast way in: people as Arrow batches, from a client that has read and cleaned a file.

Nothing of a body is believed. Its frame is checked before anything of it is unpacked: an Arrow IPC
stream (no compression, no dictionaries, bounded rows, columns that do not share bytes), every
buffer within its message, every text UTF-8. Then its columns: known names with exactly their types.
Then its rows: one with a wrong address, a control character or an endless text is refused alone,
with its place and the reason; the others go to their shards as ``UpsertPeople`` under keys made of
the request's ``Idempotency-Key``, so the same request sent again stores nothing twice.

All of that is work for a processor, so it runs in threads, a few requests at a time, and the event
loop stays free for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any
from zoneinfo import available_timezones

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.exceptions import HTTPException

from actors.handles import Handles
from manta.command import Command
from manta.errors import InvalidRequest, Overloaded
from manta.people.addresses import normalised_each
from manta.people.attributes import ARROW_TYPES, LIST_LENGTH_MAX, TEXT_LENGTH_MAX
from manta.people.commands import Consent
from manta.people.delimited import Reject
from manta.people.identities import EMAIL, EXTERNAL_ID, VALUE_LENGTH_MAX
from manta.people.importer import FIXED, STATUS, planned
from manta.people.importing import ImportSummary, import_people
from manta.people.platform_exports import OUTCOMES, described
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTE_PREFIX, ATTRIBUTES_MAX, AttributeType
from serve_apps.api.arrow_body import read_table
from serve_apps.api.wiring import Key, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

PATH = "/subscribers/import"
MEDIA_TYPE = "application/vnd.apache.arrow.stream"
BODY_BYTES_MAX = 8 << 20
ROWS_MAX = 20_000
AT_ONCE = 3
WAITING_MAX = 12
CONTROLS = r"[\x00-\x1f\x7f\x{80}-\x{9f}]"
# Texts may have lines; nothing else of what moves a cursor or rings a bell.
CONTROLS_IN_TEXT = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
router = APIRouter(tags=["subscribers"])
WRITE = needs("subscribers:write")
LOCALE = r"^[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4}$"
_FIRST, _LAST = (pa.scalar(at, pa.timestamp("us")) for at in (datetime.min, datetime.max))
_OUTCOMES = pa.array(["", *OUTCOMES])
_TYPES = {kind: name for name, kind in ARROW_TYPES.items()}


class Intake:
    """Bounds the imports at work in this replica, and those that wait."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "intake")
        self._taken = 0

    async def run(self, work: Any, *arguments: Any) -> Any:
        """The answer of ``work`` in a thread. Raises ``Overloaded`` where many wait."""
        if self._taken >= AT_ONCE + WAITING_MAX:
            raise Overloaded("many imports are at work at present")
        self._taken += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        running.add_done_callback(self._done)
        return await running

    def _done(self, _: Any) -> None:
        self._taken -= 1


@router.post(
    PATH,
    dependencies=[WRITE],
    summary="Import a batch of subscribers as Arrow",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_batch(
    request: Request,
    ports: Ports,
    key: Key,
    consent: Annotated[
        str | None, Query(max_length=300, description="channel:topic:status, for all rows")
    ] = None,
    source: Annotated[str, Query(min_length=1, max_length=200)] = "import",
) -> dict[str, Any]:
    """Up to 20,000 rows in 8 MB: an uncompressed Arrow IPC stream with columns `email`,
    `external_id`, `time_zone`, `locale` and `attr_<name>`, whose Arrow types (string, double, bool,
    timestamp[us], list of string) declare attributes that are new. A row that does not fit is
    refused alone: `rejects` has its place and the reason. Consent is only ever added.
    `consent_status`, if there, holds what another platform's file says of each row (`subscribed`,
    `none`, `pending`, `unsubscribed`, `suppressed`, `hard_bounce`, `complaint`, or nothing):
    `consent` then goes to those alone whom it says to be subscribed, or of whom it says nothing,
    and addresses not to be mailed are suppressed.
    `manta.client.Client.import_people` sends whole files this way."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise HTTPException(415, f"people are imported as {MEDIA_TYPE}")
    if key is None:
        raise InvalidRequest(
            "an import carries a key, so that it can be sent again",
            path="Idempotency-Key",
            expected="a text of your own that names this batch",
        )
    _check_text(source, "source")
    given = _consent(consent)
    body = await request.body()
    intake: Intake = request.app.state.intake
    batch = await intake.run(_checked, body)
    types = _attributes(batch.rows.schema)
    if types:
        await ports.catalog.call("declare_attributes", types, deadline_s=CALL_DEADLINE_S)
    loop = asyncio.get_running_loop()
    summary, rejects = await intake.run(_store, ports, loop, batch, key, source, given)
    counts = {name: value for name, value in vars(summary).items() if name != "rejected"}
    listed = sorted(rejects, key=lambda reject: reject.line)
    return {
        **counts,
        "rejected": len(listed),
        "rejects": [{"row": reject.line, "reason": reject.reason} for reject in listed],
    }


class FileHead(Body):
    """The beginning of a file, as it stands."""

    file_name: str = Field("", max_length=300)
    headers: list[str] = Field(min_length=1, max_length=600)
    rows: list[list[str | None]] = Field(default_factory=list, max_length=1_000)
    mapping: dict[str, str] = Field(default_factory=dict, max_length=600)
    words: dict[str, str] = Field(
        default_factory=dict, max_length=100, description="Your meanings of the file's words."
    )


@router.post(PATH + "/recognise", dependencies=[WRITE], summary="What an import would make of it")
async def recognise_file(body: FileHead, ports: Ports) -> dict[str, Any]:
    """Whose export a file is, where its columns would go, and what it says of consent. Nothing is
    written."""
    for place, row in enumerate(body.rows):
        if len(row) != len(body.headers):
            raise InvalidRequest(
                f"{len(row)} cells under {len(body.headers)} headers",
                path=f"rows[{place}]",
                expected="a cell for each header",
            )
    samples = [list(cells) for cells in zip(*body.rows, strict=True)]
    declared = await ports.catalog.call("attributes", deadline_s=CALL_DEADLINE_S)
    plan = planned(
        body.headers,
        samples or [[] for _ in body.headers],
        {name: AttributeType(kind) for name, kind in declared.items()},
        body.mapping,
        file_name=body.file_name,
        words=body.words,
    )
    statuses = plan.statuses
    return {
        "platform": statuses.platform if statuses else "",
        "columns": [
            {"header": c.header, "target": c.target, "type": str(c.type)} for c in plan.columns
        ],
        "says": described(statuses),
        "sample": {o or "as_given": n for o, n in statuses.sample} if statuses else {},
    }


# -- checks ----------------------------------------------------------------------------------------


def _consent(text: str | None) -> Consent | None:
    if text is None:
        return None
    channel, _, rest = text.partition(":")
    topic, _, status = rest.rpartition(":")
    if not topic:
        raise InvalidRequest(
            f"{text!r:.80} is not a consent",
            path="consent",
            expected="channel:topic:status, for example email:newsletter:subscribed",
        )
    _check_text(text, "consent")
    return Consent(channel, topic, status)


def _check_text(text: str, path: str) -> None:
    if not text.isprintable():
        raise InvalidRequest(
            f"{path} holds control characters", path=path, expected="printable characters"
        )


def _checked(body: bytes) -> _Batch:
    """The good rows of a body, each with its place, and the refused ones.

    Raises ``InvalidRequest`` where the whole cannot be taken.
    """
    table = read_table(body, ROWS_MAX)
    _check_schema(table.schema)
    reasons: dict[int, str] = {}
    columns: dict[str, pa.Array] = {}
    for name in table.column_names:
        columns[name], wrong = _column(name, table[name].combine_chunks())
        for place, reason in wrong.items():
            reasons.setdefault(place, f"{name}: {reason}")
    _check_named(columns, reasons, table.num_rows)
    keep = np.ones(table.num_rows, bool)
    keep[list(reasons)] = False
    rows = pa.table(columns)
    if reasons:
        rows = rows.filter(pa.array(keep))
    refused = [Reject(place, reasons[place], "") for place in sorted(reasons)]
    return _Batch(rows, np.flatnonzero(keep).tolist(), refused)


def _check_schema(schema: pa.Schema) -> None:
    for field in schema:
        path = f"columns.{field.name:.80}"
        is_text = field.name in (*FIXED, STATUS)
        expected = "string" if is_text else ", ".join(map(str, _TYPES))
        if schema.names.count(field.name) > 1:
            raise InvalidRequest(
                f"two columns are called {field.name!r:.80}", path=path, expected="one of each name"
            )
        named = ATTRIBUTE_NAME.fullmatch(field.name.removeprefix(ATTRIBUTE_PREFIX))
        if not is_text and not (field.name.startswith(ATTRIBUTE_PREFIX) and named):
            raise InvalidRequest(
                f"no column can be called {field.name!r:.80}",
                path=path,
                expected=f"{', '.join((*FIXED, STATUS))}, or {ATTRIBUTE_PREFIX} with an attribute's"
                " name",
            )
        fits = field.type == pa.string() if is_text else field.type in _TYPES
        if not fits:
            raise InvalidRequest(
                f"column {field.name} has the type {field.type!s:.60}", path=path, expected=expected
            )
    if not {EMAIL, EXTERNAL_ID} & set(schema.names):
        raise InvalidRequest(
            "no column names people", path="columns", expected=f"{EMAIL} or {EXTERNAL_ID}"
        )
    if len(schema) > ATTRIBUTES_MAX + len(FIXED) + 1:
        raise InvalidRequest(
            f"{len(schema)} columns", path="columns", expected=f"at most {ATTRIBUTES_MAX}"
        )


def _attributes(schema: pa.Schema) -> dict[str, str]:
    return {
        field.name.removeprefix(ATTRIBUTE_PREFIX): str(_TYPES[field.type])
        for field in schema
        if field.name.startswith(ATTRIBUTE_PREFIX)
    }


def _column(name: str, column: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """The column as it is stored, and the places of values that cannot be."""
    if name == EMAIL:
        return normalised_each(column)
    if name == EXTERNAL_ID:
        length = pc.utf8_length(pc.utf8_trim_whitespace(column))
        fits = pc.and_(pc.greater(length, 0), pc.less_equal(length, VALUE_LENGTH_MAX))
        wrong = _where(pc.invert(fits), f"not of 1 to {VALUE_LENGTH_MAX} characters")
        controls = _where(pc.match_substring_regex(column, CONTROLS), "a control character")
        return column, controls | wrong
    if name == "time_zone":
        known = pc.or_kleene(pc.is_in(column, value_set=_zones()), column.is_null())
        return column, _where(pc.invert(known), "not an IANA time zone")
    if name == STATUS:
        known = pc.or_kleene(pc.is_in(column, value_set=_OUTCOMES), column.is_null())
        return column, _where(pc.invert(known), f"not one of {', '.join(OUTCOMES)}")
    if name == "locale":
        return column, _where(pc.invert(pc.match_substring_regex(column, LOCALE)), "not a locale")
    return column, _wrong_values(column)


def _wrong_values(column: pa.Array) -> dict[int, str]:
    """The values of an attribute that are out of its bounds."""
    match _TYPES[column.type]:
        case AttributeType.STRING:
            return _wrong_texts(column)
        case AttributeType.NUMBER:
            return _where(pc.invert(pc.is_finite(column)), "not a finite number")
        case AttributeType.DATE:
            outside = pc.or_(pc.less(column, _FIRST), pc.greater(column, _LAST))
            return _where(outside, "not within the years 1 to 9999")
        case AttributeType.LIST:
            return _wrong_lists(column)
    return {}


def _wrong_texts(texts: pa.Array) -> dict[int, str]:
    wrong = _where(pc.match_substring_regex(texts, CONTROLS_IN_TEXT), "a control character")
    long = pc.greater(pc.utf8_length(texts), TEXT_LENGTH_MAX)
    return wrong | _where(long, f"longer than {TEXT_LENGTH_MAX} characters")


def _wrong_lists(lists: pa.Array) -> dict[int, str]:
    long = pc.greater(pc.list_value_length(lists), LIST_LENGTH_MAX)
    wrong = _where(long, f"more than {LIST_LENGTH_MAX} items")
    parents, items = pc.list_parent_indices(lists).to_pylist(), pc.list_flatten(lists)
    if items.null_count:
        wrong |= {parents[n]: "a list with a gap" for n in _where(items.is_null(), "")}
    return wrong | {parents[n]: reason for n, reason in _wrong_texts(items).items()}


def _check_named(columns: Mapping[str, pa.Array], reasons: dict[int, str], count: int) -> None:
    named = np.zeros(count, bool)
    for kind in (EMAIL, EXTERNAL_ID):
        if kind in columns:
            named |= columns[kind].is_valid().to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(~named).tolist():
        reasons.setdefault(place, "it names nobody")


def _where(mask: pa.Array, reason: str) -> dict[int, str]:
    """The places where the mask is true; null is not."""
    places = np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))
    return dict.fromkeys(places.tolist(), reason)


@lru_cache(maxsize=1)
def _zones() -> pa.Array:
    return pa.array(sorted(available_timezones()))


# -- storing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """What the import's driver takes; lines are places in the body."""

    rows: pa.Table
    lines: list[int]
    rejects: list[Reject]
    number: int = 0
    bytes_read: int = 0


def _store(
    ports: Handles,
    loop: asyncio.AbstractEventLoop,
    batch: _Batch,
    key: str,
    source: str,
    consent: Consent | None,
) -> tuple[ImportSummary, list[Reject]]:
    """Bring the rows to their shards; in a thread, whose calls run in the loop."""
    rejects: list[Reject] = []

    def submit(shard: int, command: Command) -> Future[Any]:
        call = ports.shards.execute(shard, command, CALL_DEADLINE_S)
        return asyncio.run_coroutine_threadsafe(call, loop)

    summary = import_people(
        [batch],
        submit,
        ports.shards.first_buckets,
        key=key,
        source=source,
        consent=consent,
        reject=rejects.extend,
    )
    return summary, rejects
