"""Campaigns: one mail to one audience, from the draft to the report."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from actors.handles import Handles
from manta.delivery.directing import is_test
from manta.ids import campaign_message_key
from manta.people.importer import GUARDED
from serve_apps import reads
from serve_apps.api.wiring import (
    LIMIT,
    NUMBER_MAX,
    Cursor,
    Key,
    Limit,
    Number,
    Ports,
    SubscriberId,
    needs,
)
from serve_apps.bodies import Body, instant
from serve_apps.limits import CALL_DEADLINE_S, PAGE_ROWS_MAX
from serve_apps.pages import page

router = APIRouter(prefix="/campaigns", tags=["campaigns"])
READ, WRITE = needs("campaigns:read"), needs("campaigns:write")
_HIDDEN = ("definition",)
EXPORTED = (
    "subscriber_id",
    "email",
    "state",
    "reason",
    "attempts",
    "reply_code",
    "reply",
    "planned_at",
    "changed_at",
    "bounced_at",
)
Step = Annotated[int, Query(ge=1, le=86_400, description="Seconds of one step of the timeline.")]


Tests = Annotated[bool, Query(description="Those of templates' tests instead.")]


class NewCampaign(Body):
    name: str = Field(max_length=200)
    template_id: int = Field(ge=1, le=NUMBER_MAX)
    segment_id: int | None = Field(None, ge=1, le=NUMBER_MAX)
    rule: dict[str, Any] | None = Field(None, description="An audience of its own, as a rule.")
    topic: str = Field("newsletter", max_length=200)
    kind: str = Field("marketing", description="marketing or transactional")
    policy: str | None = Field(
        None, description="hold or resend: what happens to a message of unknown outcome"
    )
    priority: int = Field(100, ge=0, le=255, description="0 goes first")
    source: str | None = Field(None, max_length=200, description="the way out, by name")
    expires_at: str | None = Field(None, max_length=40, description="RFC 3339")


class Launch(Body):
    at: str | None = Field(None, max_length=40, description="RFC 3339; now if absent.")


@router.post("", status_code=201, dependencies=[WRITE], summary="Create a campaign")
async def create_campaign(body: NewCampaign, ports: Ports, key: Key) -> dict[str, Any]:
    """A draft. Its audience is either a segment or a rule of its own."""
    instant(body.expires_at, "expires_at")
    fields = body.model_dump(exclude_none=True)
    created = await ports.director.call("create", fields, key, deadline_s=CALL_DEADLINE_S)
    return shown(created)


@router.get("", dependencies=[READ], summary="List the campaigns, newest first")
async def list_campaigns(
    ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None, tests: Tests = False
) -> dict[str, Any]:
    return await reads.documents_page(
        ports.director, "campaigns", limit, cursor, shown, lambda d: is_test(d) == tests
    )


@router.get("/{number}", dependencies=[READ], summary="A campaign")
async def get_campaign(number: Number, ports: Ports) -> dict[str, Any]:
    return shown(await ports.director.call("campaign", number, deadline_s=CALL_DEADLINE_S))


@router.post("/{number}/launch", dependencies=[WRITE], summary="Launch now or at a time")
async def launch(
    number: Number, ports: Ports, key: Key, body: Launch | None = None
) -> dict[str, Any]:
    """Pins the versions of the template and the audience as they are now."""
    at = instant(body.at if body else None, "at")
    return shown(await ports.director.call("launch", number, at, key, deadline_s=CALL_DEADLINE_S))


async def _move(ports: Handles, number: int, move: str) -> dict[str, Any]:
    return shown(await ports.director.call(move, number, deadline_s=CALL_DEADLINE_S))


@router.post("/{number}/pause", dependencies=[WRITE], summary="Pause: nothing more is sent")
async def pause(number: Number, ports: Ports) -> dict[str, Any]:
    return await _move(ports, number, "pause")


@router.post("/{number}/resume", dependencies=[WRITE], summary="Go on with a paused campaign")
async def resume(number: Number, ports: Ports) -> dict[str, Any]:
    return await _move(ports, number, "resume")


@router.post("/{number}/cancel", dependencies=[WRITE], summary="Cancel what was not sent yet")
async def cancel(number: Number, ports: Ports) -> dict[str, Any]:
    return await _move(ports, number, "cancel")


@router.post("/{number}/unschedule", dependencies=[WRITE], summary="Back to a draft")
async def unschedule(number: Number, ports: Ports) -> dict[str, Any]:
    return await _move(ports, number, "unschedule")


@router.delete(
    "/{number}", dependencies=[WRITE], status_code=204, summary="Forget a campaign never launched"
)
async def delete(number: Number, ports: Ports) -> Response:
    await ports.director.call("delete", number, deadline_s=CALL_DEADLINE_S)
    return Response(status_code=204)


@router.get("/{number}/report", dependencies=[READ], summary="Accounting and results")
async def report(number: Number, ports: Ports, step_s: Step = 60) -> dict[str, Any]:
    """The accounting adds up: planned_total = accepted + failed + suppressed + cancelled +
    expired + uncertain + pending. Of `events`, `unique` (messages) and
    `by_people` count what people did, `unique_all` and `total` also what machines did."""
    campaign = await ports.director.call("campaign", number, deadline_s=CALL_DEADLINE_S)
    return await reads.campaign_report(ports, campaign, step_s)


@router.get("/{number}/recipients", dependencies=[READ], summary="Each recipient's state")
async def recipients(
    number: Number,
    ports: Ports,
    state: Annotated[str | None, Query(max_length=20)] = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """State, reason and the last SMTP reply of every message, shard after shard."""
    await ports.director.call("campaign", number, deadline_s=CALL_DEADLINE_S)
    return page(*await reads.recipients(ports, number, state, limit, cursor))


@router.get(
    "/{number}/recipients/{subscriber_id}", dependencies=[READ], summary="One recipient's history"
)
async def recipient(number: Number, subscriber_id: SubscriberId, ports: Ports) -> dict[str, Any]:
    return await reads.recipient(ports, subscriber_id, campaign_message_key(number))


@router.get("/{number}/export", dependencies=[READ], summary="All recipients as CSV")
async def export(number: Number, ports: Ports) -> StreamingResponse:
    """A stream: a recipient who changes while it runs is given as found."""
    await ports.director.call("campaign", number, deadline_s=CALL_DEADLINE_S)
    name = f"campaign-{number}.csv"
    return StreamingResponse(
        _csv(ports, number),
        media_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Accel-Buffering": "no",
        },
    )


async def _csv(ports: Handles, number: int) -> AsyncIterator[str]:
    yield ",".join(EXPORTED) + "\r\n"
    cursor: str | None = None
    while True:
        items, cursor = await reads.recipients(ports, number, None, PAGE_ROWS_MAX, cursor)
        text = io.StringIO()
        writer = csv.writer(text)
        for item in items:
            writer.writerow([guarded(item.get(column)) for column in EXPORTED])
        yield text.getvalue()
        if cursor is None:
            return


def guarded(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if re.match(GUARDED, text) else text


def shown(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in _HIDDEN}
