"""Event ingestion: ``POST /v1/events``, one event or a batch, answered after the commit.

Each event is checked by itself and names its person by id or by an identity; whom an identity
belongs to is remembered for a while (``collect.people``). Then the events of all requests gather
into one batch per shard (``collect.recording``), and each request is answered once its own are
stored: per event, so a wrong one costs only itself. Events with an ``id`` count once, however
often they are sent.

A body that is right as a whole is read and checked in one go; only where that fails each event is
looked at alone, to say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from pydantic import Field, ValidationError
from pydantic_core import from_json, to_json

from actors.handles import Handles
from manta.errors import InvalidRequest, MantaError, NotFound
from manta.events.commands import RECORDED, REPEATED
from manta.ids import decode_id
from manta.people.identities import KINDS, compared
from serve_apps.auth import Authenticator
from serve_apps.bodies import Body, instant
from serve_apps.collect.people import Name, People
from serve_apps.collect.rates import SERVER, Buckets
from serve_apps.collect.recording import Incoming, Outcome, Recorder
from serve_apps.limits import BATCH_ITEMS_MAX, App, Guard, Receive, Scope, Send, read_body
from serve_apps.problems import Malformed, as_item, encode, of_error, problem, send_problem

SCOPE = "events:write"
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


class Events(Body):
    """A batch."""

    events: list[Event] = Field(min_length=1, max_length=BATCH_ITEMS_MAX)


class _Ready(NamedTuple):
    """A checked event, but for its person where a name stands in the place of the id."""

    incoming: Incoming
    name: Name | None


class Ingest:
    """The ASGI app behind its ``Guard``."""

    def __init__(
        self, handles: Handles, authenticator: Authenticator, producer: str, random: Random
    ) -> None:
        self._authenticator = authenticator
        self._random = random
        self._recorder = Recorder(handles.shards, producer)
        self._people = People(handles, "event")
        self._buckets = Buckets(SERVER, handles.clock)

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
                given, single = events_in(body)
                self._buckets.take(caller.key_id, len(given))
                producer = _text(headers, b"idempotency-key")
                outcomes = await self._take(
                    given, single, producer and f"{caller.key_id}:{producer}"
                )
                await _send_json(send, _answer(outcomes, single))
            except MantaError as error:
                await send_problem(send, *of_error(error))

    async def _take(
        self, given: Sequence[Any], single: bool, producer: str | None
    ) -> list[Outcome]:
        """Check, resolve and store events. Never raises a ``MantaError`` of one event."""
        outcomes: list[Outcome | None] = [None] * len(given)
        ready: dict[int, _Ready] = {}
        for n, event in enumerate(given):
            try:
                id = f"{producer}:{n}" if producer else ""
                ready[n] = self._ready(event, "" if single else f"events[{n}]", id)
            except MantaError as error:
                outcomes[n] = Outcome("refused", error)
        await self._store(ready, outcomes)
        moved = {
            n: event
            for n, event in ready.items()
            if event.name is not None and isinstance((outcomes[n] or _NOTHING).error, NotFound)
        }
        if moved:  # whoever had the name when we asked is gone
            for event in moved.values():
                assert event.name is not None
                self._people.forget_name(event.name)
            await self._store(moved, outcomes)
        return [outcome or _NOTHING for outcome in outcomes]

    def _ready(self, given: Any, path: str, id: str) -> _Ready:
        event = given if isinstance(given, Event) else checked(given, path)
        name = named(event, path)
        at = None
        if event.occurred_at is not None:
            at = instant(event.occurred_at, f"{path}.occurred_at".strip("."))
        person = 0
        if name is None:
            try:
                person = decode_id(event.subscriber_id or "")
            except ValueError:
                raise NotFound("this is not the id of a subscriber", path=path) from None
        id = event.id or id or f"{self._random.getrandbits(128):032x}"
        properties = None if event.properties is None else to_json(event.properties).decode()
        return _Ready(
            Incoming(person, event.type, id, at, event.item, event.amount, properties), name
        )

    async def _store(self, ready: dict[int, _Ready], outcomes: list[Outcome | None]) -> None:
        """Fill the outcomes of these events."""
        people = await self._people.resolve(
            dict.fromkeys(event.name for event in ready.values() if event.name is not None)
        )
        places, events = [], []
        for n, (incoming, name) in ready.items():
            if name is not None:
                person = people[name]
                if isinstance(person, MantaError):
                    outcomes[n] = Outcome("refused", person)
                    continue
                incoming = incoming._replace(subscriber_id=person)
            places.append(n)
            events.append(incoming)
        for n, outcome in zip(places, await self._recorder.record(events), strict=True):
            outcomes[n] = outcome

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._recorder.drain()
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
    return event


def named(event: Event, path: str) -> Name | None:
    """The one name that an event gives its person; ``None``: it gives the id."""
    kinds = [kind for kind in _NAMES if getattr(event, kind) is not None]
    if len(kinds) != 1:
        raise InvalidRequest(
            f"the event names {len(kinds)} identities" if kinds else "it names nobody",
            path=path,
            expected="exactly one of " + ", ".join(_NAMES),
        )
    (kind,) = kinds
    return None if kind == "subscriber_id" else (kind, compared(kind, getattr(event, kind)))


_NAMES = ("subscriber_id", *KINDS)
_NOTHING = Outcome("refused")


def events_in(body: bytes) -> tuple[Sequence[Any], bool]:
    """The events in a body, and whether it is a single one. They are checked already
    (``Event``) where all of them are right, and as they came otherwise."""
    try:
        if body.startswith(b'{"events":'):
            return Events.model_validate_json(body).events, False
        return [Event.model_validate_json(body)], True
    except ValidationError:
        return _events_as_given(body)


def _events_as_given(body: bytes) -> tuple[list[Any], bool]:
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
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


def _answer(outcomes: Sequence[Outcome], single: bool) -> dict[str, Any]:
    """What is said to the sender. Raises where nothing could be stored for one reason."""
    if single:
        (outcome,) = outcomes
        if outcome.error is not None:
            raise outcome.error
        return {"status": outcome.status}
    errors = [outcome.error for outcome in outcomes]
    if all(error is not None and of_error(error)[0]["status"] == 503 for error in errors):
        assert errors[0] is not None
        raise errors[0]
    return _summary(outcomes)


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
