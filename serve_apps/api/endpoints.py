"""Outgoing webhooks: endpoints, their secrets, what was delivered to them, and replay.

A secret is in the answer to who creates or rotates it, and nowhere else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from actors.handles import Handles
from manta.clock import as_text
from manta.command import Repeated
from manta.errors import InvalidRequest, NotFound
from manta.ids import decode_id, encode_id
from manta.webhooks.endpoints import COLLECTION, checked_url, rotated, shown
from manta.webhooks.outbox import REPLAYED, DiscardDeliveries, ReplayDeliveries
from manta.webhooks.signing import SECRET_BYTES, message_id, secret_bytes, secret_text
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body, instant
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.pages import page, read_cursor, write_cursor

router = APIRouter(prefix="/webhooks", tags=["webhooks"])
READ, WRITE = needs("webhooks:read"), needs("webhooks:write")
IDS_MAX = 1_000
OLD_SECRET_HOURS, OLD_SECRET_HOURS_MAX = 24.0, 168.0

Document = dict[str, Any]
State = Literal["waiting", "delivered", "failed", "discarded"]
Url = Annotated[
    str, Field(max_length=2_000, description="`https`; its host has to have public addresses.")
]
Types = Annotated[
    list[str],
    Field(
        min_length=1,
        max_length=50,
        examples=[["event.purchased", "segment.*", "message.bounced"]],
        description="What is told; `*` alone or at the end stands for anything.",
    ),
]
Description = Annotated[str, Field(max_length=500)]
WebhookId = Annotated[str, Path(max_length=17, description="`webhook-id`, as it was sent.")]


class NewEndpoint(Body):
    url: Url
    types: Types
    description: Description = ""
    ordered: bool = Field(
        False, description="What one shard has to tell comes in order, one at a time."
    )
    secret: str | None = Field(
        None, max_length=200, description="`whsec_…` of your own; one is made if absent."
    )


class ChangedEndpoint(Body):
    url: Url | None = None
    types: Types | None = None
    description: Description | None = None
    ordered: bool | None = None
    enabled: bool | None = None


class Rotation(Body):
    old_secret_hours: float = Field(
        OLD_SECRET_HOURS,
        ge=0,
        le=OLD_SECRET_HOURS_MAX,
        description="How long the present secret signs beside the new one.",
    )
    secret: str | None = Field(None, max_length=200)


class Chosen(Body):
    ids: list[str] = Field(
        default_factory=list, max_length=IDS_MAX, description="`webhook-id`s; else all of a time."
    )
    since: str | None = Field(None, max_length=40, description="RFC 3339, of `created_at`.")
    until: str | None = Field(None, max_length=40)
    settled_before: str | None = Field(
        None, max_length=40, description="From the answer before, where there was more."
    )


class Replay(Chosen):
    states: list[Literal["delivered", "failed", "discarded"]] = Field(
        default_factory=lambda: [str(s) for s in REPLAYED], min_length=1, max_length=3
    )


class Discard(Chosen):
    why: str = Field("", max_length=500)


# -- endpoints -------------------------------------------------------------------------------------


@router.post("", status_code=201, dependencies=[WRITE], summary="Create an endpoint")
async def create_endpoint(body: NewEndpoint, ports: Ports, key: Key) -> Document:
    """`secret` is in this answer alone. Requests are signed as the Standard Webhooks specification
    says; only a 2xx is a success, redirects are not followed, a 410 disables the endpoint."""
    await _check_url(ports, body.url)
    fields = body.model_dump(exclude={"secret"}) | {
        "secrets": [{"secret": _secret(body.secret), "until": None}],
        "enabled_at": as_text(ports.clock.now()),
    }
    return _with_secret(await _save(ports, fields, key))


@router.get("", dependencies=[READ], summary="List the endpoints, newest first")
async def list_endpoints(ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None) -> Document:
    return await reads.documents_page(ports.catalog, COLLECTION, limit, cursor, shown)


@router.get("/{number}", dependencies=[READ], summary="One endpoint")
async def get_endpoint(number: Number, ports: Ports) -> Document:
    """With `deliveries`: how many are in each state."""
    document = await _required(ports, number)
    counts: Counter[str] = Counter()
    for part in await ports.shards.query_all("delivery_counts", None, CALL_DEADLINE_S):
        counts.update({state: n for id, state, n, _ in part if id == number})
    return {**shown(document), "deliveries": dict(counts)}


@router.patch("/{number}", dependencies=[WRITE], summary="Change an endpoint")
async def change_endpoint(
    number: Number, body: ChangedEndpoint, ports: Ports, key: Key
) -> Document:
    """What is not given stays. `enabled: false` ends all that waits as failed; it can be replayed
    when the endpoint is enabled again."""
    await _required(ports, number)
    if body.url is not None:
        await _check_url(ports, body.url)
    fields = body.model_dump(exclude_none=True) | {"id": number}
    if body.enabled:
        fields["enabled_at"] = as_text(ports.clock.now())
    return shown(await _save(ports, fields, key))


@router.post("/{number}/rotate", dependencies=[WRITE], summary="Replace the secret")
async def rotate_secret(number: Number, body: Rotation, ports: Ports, key: Key) -> Document:
    """The old secret signs as well for a while, so that receivers can change over."""
    document = await _required(ports, number)
    made = rotated(
        document,
        _secret(body.secret),
        ports.clock.now(),
        timedelta(hours=body.old_secret_hours),
    )
    return _with_secret(await _save(ports, {"id": number, "secrets": made}, key))


@router.delete("/{number}", status_code=204, dependencies=[WRITE], summary="Delete an endpoint")
async def delete_endpoint(number: Number, ports: Ports, key: Key) -> Response:
    """With its log and all that waits."""
    await ports.catalog.call("delete", COLLECTION, str(number), key, deadline_s=CALL_DEADLINE_S)
    return Response(status_code=204)


@router.post("/{number}/test", dependencies=[WRITE], summary="Send a test now")
async def test_endpoint(number: Number, ports: Ports) -> Document:
    """A `webhook.test` without anybody's data, signed; also to a disabled endpoint. Not in the log
    and not repeated."""
    await _required(ports, number)
    answer = await ports.courier.call("test", number, deadline_s=CALL_DEADLINE_S, once=True)
    return dict(answer)


# -- deliveries ------------------------------------------------------------------------------------


@router.get("/{number}/deliveries", dependencies=[READ], summary="The log of deliveries")
async def list_deliveries(
    number: Number,
    ports: Ports,
    state: State | None = None,
    type: Annotated[str | None, Query(max_length=100)] = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
) -> Document:
    """The newest first. What is settled stays for 7 days, and up to 20,000 of each shard."""
    await _required(ports, number)
    before: tuple[datetime, int] | None = None
    if cursor:
        at, id = read_cursor("deliveries", cursor, [str, int])
        created_at = instant(at, "cursor")
        assert created_at is not None
        before = (created_at, id)
    arguments = {
        "endpoint_id": number,
        "state": state,
        "type": type,
        "before": before,
        "limit": limit + 1,
    }
    parts = await ports.shards.query_all("deliveries", arguments, CALL_DEADLINE_S)
    rows = nlargest(limit + 1, (row for part in parts for row in part), key=_place)
    more = len(rows) > limit
    rows = rows[:limit]
    following = None
    if more:
        created_at, id = _place(rows[-1])
        following = write_cursor("deliveries", [as_text(created_at), id])
    return page([_delivery(row) for row in rows], following)


@router.get("/{number}/deliveries/{webhook_id}", dependencies=[READ], summary="One delivery")
async def get_delivery(number: Number, webhook_id: WebhookId, ports: Ports) -> Document:
    """With its `body`, as it was sent or will be."""
    arguments = {"endpoint_id": number, "delivery_id": _delivery_id(webhook_id, "webhook_id")}
    parts = await ports.shards.query_all("deliveries", arguments, CALL_DEADLINE_S)
    for row in (row for part in parts for row in part):
        return {**_delivery(row), "body": row["body"]}
    raise NotFound("there is no such delivery", path="webhook_id")


@router.post("/{number}/replay", dependencies=[WRITE], summary="Deliver again")
async def replay(number: Number, body: Replay, ports: Ports, key: Key) -> Document:
    """Under the same `webhook-id`s, in the order of the events, with all attempts anew. In
    one request up to 10,000 of each shard, the oldest first; `more`: others are left."""
    document = await _required(ports, number)
    if not document["enabled"]:
        raise InvalidRequest(
            "the endpoint is disabled", path="number", expected="enable it before the replay"
        )
    ids, since, until, before = _chosen(body, ports.clock.now())
    command = ReplayDeliveries(key, number, ids, since, until, tuple(body.states), before)
    count, more = await _on_all(ports, command)
    return {"replayed": count, "more": more, "settled_before": as_text(before)}


@router.post("/{number}/discard", dependencies=[WRITE], summary="Do not deliver what waits")
async def discard(number: Number, body: Discard, ports: Ports, key: Key) -> Document:
    await _required(ports, number)
    ids, since, until, before = _chosen(body, ports.clock.now())
    count, more = await _on_all(
        ports, DiscardDeliveries(key, number, ids, since, until, body.why, before)
    )
    return {"discarded": count, "more": more, "settled_before": as_text(before)}


# -- inside ----------------------------------------------------------------------------------------


async def _required(ports: Handles, number: int) -> Document:
    document = await ports.catalog.call("get", COLLECTION, str(number), deadline_s=CALL_DEADLINE_S)
    if document is None:
        raise NotFound(f"no endpoint {number}", path="number")
    return dict(document)


async def _save(ports: Handles, fields: Document, key: str | None) -> Document:
    saved = await ports.catalog.call("save", COLLECTION, fields, key, deadline_s=CALL_DEADLINE_S)
    return dict(saved)


async def _check_url(ports: Handles, url: str) -> None:
    """As far as it can be told now; the courier checks again at each connection."""
    await ports.courier.call("check_url", checked_url(url), deadline_s=CALL_DEADLINE_S)


def _secret(given: str | None) -> str:
    if given is None:
        return secret_text(secrets.token_bytes(SECRET_BYTES))
    secret_bytes(given)
    return given


def _with_secret(document: Document) -> Document:
    return {**shown(document), "secret": document["secrets"][0]["secret"]}


def _place(row: Document) -> tuple[datetime, int]:
    return row["created_at"], row["delivery_id"]


def _delivery(row: Document) -> Document:
    known = {name: row[name] for name in ("type", "state", "attempts", "due_at", "status")}
    known |= {name: row[name] for name in ("answer", "created_at", "changed_at")}
    who = row["subscriber_id"]
    head = {
        "webhook_id": message_id(row["delivery_id"]),
        "subscriber_id": encode_id(who) if who else None,
    }
    return dict(reads.plain(head | known))


def _delivery_id(text: str, path: str) -> int:
    try:
        return decode_id(text.removeprefix("msg_"))
    except ValueError:
        raise InvalidRequest(
            f"{text!r:.40} is not the id of a delivery",
            path=path,
            expected="msg_ and 13 characters",
        ) from None


def _chosen(
    body: Chosen, now: datetime
) -> tuple[tuple[int, ...], datetime | None, datetime | None, datetime]:
    ids = tuple(_delivery_id(text, f"ids[{n}]") for n, text in enumerate(body.ids))
    before = instant(body.settled_before, "settled_before") or now
    return ids, instant(body.since, "since"), instant(body.until, "until"), before


async def _on_all(
    ports: Handles, command: ReplayDeliveries | DiscardDeliveries
) -> tuple[int, bool]:
    """On every shard; one that did it before, under the same key, adds nothing."""
    answers = await asyncio.gather(
        *(ports.shards.execute(s, command, CALL_DEADLINE_S) for s in range(ports.shards.count))
    )
    done = [answer for answer in answers if not isinstance(answer, Repeated)]
    return sum(count for count, _ in done), any(more for _, more in done)
