"""Subscribers: who they are and what they agreed to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from actors.handles import Handles
from manta.command import Command, Repeated
from manta.errors import InvalidRequest, MantaError, NotFound
from manta.ids import decode_id, encode_id
from manta.people.claims import change_of_address, further_identity
from manta.people.commands import Consent, SetConsent, Unsubscribe
from manta.people.identifying import (
    claim,
    execute_for,
    living,
    merge,
    release,
    undo_merge,
)
from manta.people.identities import EMAIL, KINDS
from serve_apps import reads
from serve_apps.api.wiring import Key, Ports, SubscriberId, needs
from serve_apps.bodies import Body, instant
from serve_apps.limits import BATCH_ITEMS_MAX, CALL_DEADLINE_S
from serve_apps.problems import as_item
from serve_apps.upserts import Row, Upserts, checked_address, upsert_rows

router = APIRouter(tags=["subscribers"])
READ, WRITE = needs("subscribers:read"), needs("subscribers:write")


class GivenConsent(Body):
    channel: str = "email"
    topic: str = Field("newsletter", max_length=200)
    status: str = "subscribed"


class Person(Body):
    """What is absent or null stays as it is."""

    email: str | None = Field(None, max_length=320)
    external_id: str | None = Field(None, max_length=320)
    phone: str | None = Field(None, max_length=320)
    anonymous_id: str | None = Field(None, max_length=320, description="of a browser or device")
    time_zone: str | None = Field(None, max_length=64, description="IANA name")
    locale: str | None = Field(None, max_length=35, description="BCP 47")
    attributes: dict[str, Any] = Field(default_factory=dict, max_length=500)


class NewSubscriber(Person):
    consent: GivenConsent | None = None


class Batch(Body):
    subscribers: list[Person] = Field(min_length=1, max_length=BATCH_ITEMS_MAX)
    consent: GivenConsent | None = Field(None, description="for all of them")


class ChangedConsent(GivenConsent):
    source: str = Field("api", max_length=200)
    proof: dict[str, Any] | None = Field(
        None,
        max_length=20,
        description="method, ip, user_agent, form, page, wording, at: how it was given.",
    )
    expires_at: str | None = Field(
        None, max_length=40, description="Of a pending one; seven days from now if absent."
    )


class Unsubscription(Body):
    topic: str | None = Field(None, max_length=200, description="All topics if absent.")
    source: str = Field("api", max_length=200)


class Merge(Body):
    into: str = Field(max_length=20, description="the subscriber who stays")
    cause: str = Field("api", min_length=1, max_length=200, description="who wanted it, or why")


class NewIdentity(Body):
    kind: str = Field(max_length=20, examples=["email", "external_id", "phone"])
    value: str = Field(min_length=1, max_length=320)


class NewAttributes(Body):
    attributes: dict[str, str] = Field(
        max_length=500, examples=[{"first_name": "string", "orders": "number"}]
    )


@router.post("/subscribers", dependencies=[WRITE], summary="Create or change a subscriber")
async def upsert(body: NewSubscriber, ports: Ports, key: Key, response: Response) -> dict[str, Any]:
    """Named by `email`, else by `external_id`, else by `anonymous_id`. Consent is only ever added:
    whoever has unsubscribed stays so."""
    done = await _upsert(ports, [body], body.consent, key)
    (result,) = done.results
    if isinstance(result, MantaError):
        raise result
    if done.created:
        response.status_code = 201
    return {"id": result and encode_id(result), "status": _status(done)}


def _status(done: Upserts) -> str:
    """What became of a single row."""
    for status in ("created", "updated", "repeated"):
        if getattr(done, status):
            return status
    return "unchanged"


@router.post("/subscribers/batch", dependencies=[WRITE], summary="Create or change up to 1,000")
async def upsert_batch(body: Batch, ports: Ports, key: Key) -> dict[str, Any]:
    """Each succeeds or fails alone; `items` is in the order of the request."""
    done = await _upsert(ports, body.subscribers, body.consent, key)
    items: list[dict[str, Any]] = []
    for index, result in enumerate(done.results):
        if isinstance(result, MantaError):
            items.append({"index": index, "error": as_item(result)})
        else:
            items.append({"index": index, "id": result and encode_id(result)})
    refused = sum("error" in item for item in items)
    counts = {name: value for name, value in vars(done).items() if name != "results"}
    return {**counts, "refused": refused, "items": items}


async def _upsert(
    ports: Handles, people: Sequence[Person], consent: GivenConsent | None, key: str | None
) -> Upserts:
    single = isinstance(people[0], NewSubscriber)
    rows = [
        Row(
            p.email,
            p.external_id,
            p.time_zone,
            p.locale,
            p.attributes,
            "" if single else f"subscribers[{n}]",
            p.phone,
            p.anonymous_id,
        )
        for n, p in enumerate(people)
    ]
    given = Consent(consent.channel, consent.topic, consent.status) if consent else None
    return await upsert_rows(ports, rows, given, key, source="api")


@router.get("/subscribers", dependencies=[READ], summary="Find a subscriber by an identity")
async def find(
    ports: Ports,
    email: Annotated[str | None, Query(max_length=320)] = None,
    external_id: Annotated[str | None, Query(max_length=320)] = None,
    phone: Annotated[str | None, Query(max_length=320)] = None,
    anonymous_id: Annotated[str | None, Query(max_length=320)] = None,
) -> dict[str, Any]:
    given = {
        kind: value
        for kind, value in zip(KINDS, (email, external_id, phone, anonymous_id), strict=True)
        if value is not None
    }
    if len(given) != 1:
        raise InvalidRequest(
            "a subscriber is looked up by one identity", path="email", expected=" or ".join(KINDS)
        )
    ((kind, value),) = given.items()
    return await reads.person(ports, await reads.person_id(ports, kind, value))


@router.get("/subscribers/{subscriber_id}", dependencies=[READ], summary="A subscriber")
async def get_subscriber(subscriber_id: SubscriberId, ports: Ports) -> dict[str, Any]:
    return await reads.person(ports, subscriber_id)


@router.put(
    "/subscribers/{subscriber_id}/consents", dependencies=[WRITE], summary="Set one consent"
)
async def set_consent(
    subscriber_id: SubscriberId, body: ChangedConsent, ports: Ports, key: Key
) -> dict[str, Any]:
    """The person's own word, or yours on their behalf: it is always taken."""
    expires_at = instant(body.expires_at, "expires_at")

    def command(id: int) -> SetConsent:
        return SetConsent(
            key, id, body.channel, body.topic, body.status, body.source, body.proof, expires_at
        )

    return await _changed(ports, subscriber_id, command)


@router.post(
    "/subscribers/{subscriber_id}/unsubscribe", dependencies=[WRITE], summary="Unsubscribe"
)
async def unsubscribe(
    subscriber_id: SubscriberId, body: Unsubscription, ports: Ports, key: Key
) -> dict[str, Any]:

    def command(id: int) -> Unsubscribe:
        return Unsubscribe(key, id, None, body.topic, body.source)

    return await _changed(ports, subscriber_id, command)


async def _changed(
    ports: Handles, subscriber_id: int, command: Callable[[int], Command]
) -> dict[str, Any]:
    answer = await execute_for(ports.shards, subscriber_id, command, CALL_DEADLINE_S)
    if isinstance(answer, Repeated):
        return {"id": encode_id(subscriber_id), "changed": 0, "repeated": True}
    return {"id": encode_id(answer.subscriber_id), "changed": answer.changed}


@router.post(
    "/subscribers/{subscriber_id}/merge", dependencies=[WRITE], summary="Merge into another"
)
async def merge_into(subscriber_id: SubscriberId, body: Merge, ports: Ports) -> dict[str, Any]:
    """The subscriber lives on as `into`: their events, identities and what `into` lacks go there,
    and their id stays good. Of two consents the more restrictive one holds."""
    into = _id_in(body.into, "into")
    done = await merge(
        ports.shards, subscriber_id, into, cause=body.cause, deadline_s=CALL_DEADLINE_S
    )
    return {"id": encode_id(done.to_id), "merged_from": encode_id(done.from_id)}


@router.post(
    "/subscribers/{subscriber_id}/undo-merge", dependencies=[WRITE], summary="Undo a merge"
)
async def undo(subscriber_id: SubscriberId, ports: Ports) -> dict[str, Any]:
    """Of the merged subscriber, by their own id. Both are what they were; what happened since under
    the names of the merged one is theirs, and what was unsubscribed since is so for both."""
    done = await undo_merge(ports.shards, subscriber_id, deadline_s=CALL_DEADLINE_S)
    return {"id": encode_id(done.from_id), "was_merged_into": encode_id(done.to_id)}


@router.get(
    "/subscribers/{subscriber_id}/identities", dependencies=[READ], summary="All their identities"
)
async def identities(subscriber_id: SubscriberId, ports: Ports) -> dict[str, Any]:
    """Addresses, numbers and devices by which they are known, also those of merged people."""
    person = await reads.person(ports, subscriber_id)
    return {"id": person["id"], "email": person["email"], "identities": person["identities"]}


@router.post(
    "/subscribers/{subscriber_id}/identities", dependencies=[WRITE], summary="Add an identity"
)
async def add_identity(
    subscriber_id: SubscriberId, body: NewIdentity, ports: Ports, key: Key
) -> dict[str, Any]:
    """An address becomes the one that mails go to; earlier ones stay theirs. An identity that
    another subscriber has is a conflict: it is theirs, or the two are to be merged."""
    now = (await living(ports.shards, [subscriber_id], CALL_DEADLINE_S))[subscriber_id]
    await reads.person(ports, now)  # raises where nobody has the id
    if body.kind == EMAIL:
        claims = change_of_address(now, checked_address(body.value, "value"))
    else:
        claims = further_identity(now, body.kind, body.value)
    refused = await claim(ports.shards, claims, "api", key, CALL_DEADLINE_S)
    for error in refused.values():
        raise error
    return await identities(now, ports)


@router.delete(
    "/subscribers/{subscriber_id}/identities/{kind}/{value}",
    dependencies=[WRITE],
    summary="Take an identity away",
)
async def remove_identity(
    subscriber_id: SubscriberId, kind: str, value: str, ports: Ports
) -> dict[str, Any]:
    """Not the address that mails go to: change that one first."""
    if kind not in KINDS:
        raise InvalidRequest(
            f"{kind!r:.40} is not a kind of identity", path="kind", expected=", ".join(KINDS)
        )
    removed = await release(ports.shards, subscriber_id, kind, value, CALL_DEADLINE_S)
    if not removed:
        raise NotFound(f"this subscriber has no such {kind}", path="value")
    return await identities(subscriber_id, ports)


def _id_in(text: str, path: str) -> int:
    try:
        return decode_id(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r:.40} is not the id of a subscriber", path=path, expected="13 characters"
        ) from None


@router.get("/attributes", dependencies=[READ], summary="The attributes that people can have")
async def attributes(ports: Ports) -> dict[str, Any]:
    return {"attributes": await ports.catalog.call("attributes", deadline_s=CALL_DEADLINE_S)}


@router.post("/attributes", dependencies=[WRITE], summary="Declare attributes")
async def declare(body: NewAttributes, ports: Ports) -> dict[str, Any]:
    """Types: string, number, boolean, date, list (of strings). A type cannot be changed later."""
    declared = await ports.catalog.call(
        "declare_attributes", body.attributes, deadline_s=CALL_DEADLINE_S
    )
    return {"attributes": declared}
