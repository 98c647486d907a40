"""Event ingestion: ``POST /v1/events``, one event or a batch, answered after the commit.

Each event is checked by itself and names its person by id or by an identity; whom an identity
belongs to is asked of the identity's shard and remembered here for a while. Then the events of all
requests gather into one batch per shard (``gather``), and each request is answered once its own
are stored: per event, so a wrong one costs only itself. Events with an ``id`` count once, however
often they are sent.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import Field, ValidationError

from actors.handles import Handles
from manta.command import Repeated
from manta.errors import InvalidRequest, MantaError, NotFound
from manta.events.commands import RECORDED, REPEATED, UNKNOWN, RecordEvents
from manta.ids import decode_id
from manta.people.identities import EMAIL, EXTERNAL_ID, KINDS, compared
from serve_apps import reads
from serve_apps.auth import Authenticator
from serve_apps.bodies import Body, instant
from serve_apps.gather import Gatherer
from serve_apps.limits import BATCH_ITEMS_MAX, App, Guard, Receive, Scope, Send, read_body
from serve_apps.problems import Malformed, as_item, encode, of_error, problem, send_problem
from serve_apps.upserts import Row, upsert_rows

SCOPE = "events:write"
KNOWN_MAX = 100_000
EVENT_OVERHEAD_BYTES = 96
PROPERTIES_BYTES_MAX = 32_768
BODY_BYTES_MAX = 4 << 20


class Event(Body):
    """One thing that one person did. The person is named by exactly one of the identities."""

    type: str = Field(min_length=1, max_length=64, examples=["purchase"])
    id: str | None = Field(
        None, min_length=1, max_length=200, description="Yours; the same id counts once."
    )
    subscriber_id: str | None = Field(None, max_length=20)
    email: str | None = Field(None, max_length=320, examples=["ann@example.com"])
    external_id: str | None = Field(None, max_length=320)
    phone: str | None = Field(None, max_length=320)
    anonymous_id: str | None = Field(None, max_length=320)
    occurred_at: str | None = Field(None, max_length=40, description="RFC 3339; now if absent.")
    item: str | None = Field(None, max_length=2_048, description="product, page or link")
    amount: float | None = Field(None, description="money or quantity")
    properties: dict[str, Any] | None = None


class Incoming(NamedTuple):
    """A checked event on its way to its person's shard."""

    subscriber_id: int
    type: str
    id: str
    occurred_at: datetime | None
    item: str | None
    amount: float | None
    properties: str | None


class Outcome(NamedTuple):
    """What became of one event; ``error`` where it was not stored."""

    status: str
    error: MantaError | None = None


def record_events(events: Sequence[Incoming], key: str) -> RecordEvents:
    """The command of a batch."""
    people, types, ids, times, items, amounts, properties = zip(*events, strict=True)
    return RecordEvents(
        key,
        pa.table(
            {
                "subscriber_id": pa.array(people, pa.int64()),
                "type": pa.array(types, pa.string()),
                "id": pa.array(ids, pa.string()),
                "occurred_at": pa.array(times, pa.timestamp("us")),
                "item": pa.array(items, pa.string()),
                "amount": pa.array(amounts, pa.float64()),
                "properties": pa.array(properties, pa.string()),
            }
        ),
    )


def _part(answer: Any, n: int) -> Outcome:
    """A repeated batch was stored before, which is all that a producer wants to know."""
    if isinstance(answer, Repeated):
        return Outcome(RECORDED)
    for row, status, reason in answer.refused:
        if row == n:
            if status == REPEATED:
                return Outcome(REPEATED)
            kind = NotFound if status == UNKNOWN else InvalidRequest
            return Outcome("refused", kind(reason))
    return Outcome(RECORDED)


class Ingest:
    """The ASGI app behind its ``Guard``."""

    def __init__(
        self, handles: Handles, authenticator: Authenticator, producer: str, random: Random
    ) -> None:
        self._handles = handles
        self._authenticator = authenticator
        self._random = random
        self._events = Gatherer(handles.shards, record_events, f"events:{producer}", part=_part)
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._lifespan(receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        headers = dict(scope["headers"])
        if path:
            await send_problem(send, problem("not_found", "there is no such address"))
        elif scope["method"] != "POST":
            document = problem("method", "events are sent by POST")
            await send_problem(send, document, {"Allow": "POST"})
        else:
            try:
                caller = await self._authenticator.bearer(_text(headers, b"authorization"))
                caller.require(SCOPE)
                body = await read_body(scope, receive, BODY_BYTES_MAX)
                producer = _text(headers, b"idempotency-key")
                await self._take(body, producer and f"{caller.key_id}:{producer}", send)
            except MantaError as error:
                await send_problem(send, *of_error(error))

    async def _take(self, body: bytes, name: str | None, send: Send) -> None:
        given, single = _events_in(body)
        outcomes = await asyncio.gather(
            *(self._one(event, n, name, single) for n, event in enumerate(given))
        )
        if single:
            (outcome,) = outcomes
            if outcome.error is not None:
                raise outcome.error
            await _send_json(send, {"status": outcome.status})
            return
        errors = [outcome.error for outcome in outcomes]
        if all(error is not None and of_error(error)[0]["status"] == 503 for error in errors):
            assert errors[0] is not None
            raise errors[0]
        await _send_json(send, _summary(outcomes))

    async def _one(self, given: Any, n: int, name: str | None, single: bool) -> Outcome:
        """Check, resolve and store one event. Never raises a ``MantaError``."""
        path = "" if single else f"events[{n}]"
        try:
            event = checked(given, path)
            if event.id is None:
                event.id = f"{name}:{n}" if name else f"{self._random.getrandbits(128):032x}"
            at = instant(event.occurred_at, f"{path}.occurred_at".strip("."))
            outcome = await self._store(event, at, await self._person(event, path))
            if isinstance(outcome.error, NotFound) and event.subscriber_id is None:
                self._known.pop(_identity(event), None)  # moved or merged since we asked
                outcome = await self._store(event, at, await self._person(event, path))
            return outcome
        except MantaError as error:
            return Outcome("refused", error)

    async def _store(self, event: Event, at: datetime | None, person: int) -> Outcome:
        properties = None
        if event.properties is not None:
            properties = json.dumps(event.properties, ensure_ascii=False, separators=(",", ":"))
        incoming = Incoming(
            person,
            event.type,
            event.id or "",
            at,
            event.item,
            event.amount,
            properties,
        )
        size = EVENT_OVERHEAD_BYTES + len(properties or "") + len(event.item or "")
        shard = self._handles.shards.of_subscriber(person)
        outcome = await self._events.add(shard, incoming, size)
        return Outcome("refused", outcome) if isinstance(outcome, MantaError) else outcome

    async def _person(self, event: Event, path: str) -> int:
        """Whom an event is about. Somebody new, named by address or external id, is created:
        without any consent, so nothing is sent to them."""
        if event.subscriber_id is not None:
            try:
                return decode_id(event.subscriber_id)
            except ValueError:
                raise NotFound("this is not the id of a subscriber", path=path) from None
        kind, value = _identity(event)
        known = self._known.get((kind, value))
        if known is not None:
            return known
        try:
            person = await reads.person_id(self._handles, kind, value)
        except NotFound:
            if kind not in (EMAIL, EXTERNAL_ID):
                raise
            row = Row(event.email, event.external_id, None, None, {}, path)
            (result,) = (await upsert_rows(self._handles, [row], None, None, "event")).results
            if not isinstance(result, int):
                raise result or NotFound("nobody", path=path) from None
            person = result
        self._known[kind, value] = person
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return person

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._events.drain()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


def create_ingest(
    handles: Handles, authenticator: Authenticator, producer: str, random: Random
) -> App:
    """The ingest app. ``producer`` names this incarnation of the replica."""
    return Guard(Ingest(handles, authenticator, producer, random), body_bytes_max=BODY_BYTES_MAX)


def checked(given: Any, path: str) -> Event:
    """An event whose fields and person are well-formed. Raises ``InvalidRequest``."""
    try:
        event = Event.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"{path}.{field}".strip(".")
        if first["type"] == "extra_forbidden":
            expected = ", ".join(Event.model_fields)
            raise InvalidRequest(f"unknown field {where}", path=where, expected=expected) from None
        expected = first["msg"].removeprefix("Input should be ")
        raise InvalidRequest(f"{where} is not valid", path=where, expected=expected) from None
    named = [kind for kind in ("subscriber_id", *KINDS) if getattr(event, kind) is not None]
    if len(named) != 1:
        raise InvalidRequest(
            f"the event names {len(named) or 'no'} identities" if named else "it names nobody",
            path=path,
            expected="exactly one of " + ", ".join(("subscriber_id", *KINDS)),
        )
    return event


def _identity(event: Event) -> tuple[str, str]:
    for kind in KINDS:
        value = getattr(event, kind)
        if value is not None:
            return kind, compared(kind, value)
    raise AssertionError("checked events name somebody")


def _events_in(body: bytes) -> tuple[list[Any], bool]:
    """The events in a body, and whether it is a single one."""
    try:
        value = json.loads(body)
        body.decode()
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise Malformed(
            "the body is not JSON in UTF-8", path="", expected='an event, or {"events": […]}'
        ) from None
    if isinstance(value, dict) and "events" in value:
        events = value["events"]
        extra = sorted(set(value) - {"events"})
        if extra:
            raise InvalidRequest(f"unknown field {extra[0]:.60}", path=extra[0], expected="events")
        if not isinstance(events, list) or not 1 <= len(events) <= BATCH_ITEMS_MAX:
            raise InvalidRequest(
                "events is not a list of fitting length",
                path="events",
                expected=f"1 to {BATCH_ITEMS_MAX:,} events",
            )
        return events, False
    return [value], True


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    counts = {RECORDED: 0, REPEATED: 0, "refused": 0}
    errors = []
    for index, outcome in enumerate(outcomes):
        counts[outcome.status] += 1
        if outcome.error is not None:
            errors.append({"index": index, **as_item(outcome.error)})
    return {**counts, "errors": errors}


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def _send_json(send: Send, document: dict[str, Any]) -> None:
    body = encode(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
