"""Caps and quiet hours: how often and at what hours people get marketing."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from actors.handles import Handles
from manta.delivery.frequency import DAYS_MAX, HOURS_MAX, LIMIT_MAX
from manta.errors import NotFound
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(tags=["frequency"])
READ, WRITE = needs("delivery:read"), needs("delivery:write")
CAPS, QUIET_HOURS = "caps", "quiet_hours"
Channel = Literal["*", "email", "sms", "push"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Cap(Body):
    """So many marketing messages to one person, within ``days`` or within ``hours``."""

    name: str = Field(max_length=200)
    channel: Channel = Field("*", description="One channel, or all of them together.")
    topic: str | None = Field(None, max_length=200, description="All topics if absent.")
    limit: int = Field(ge=1, le=LIMIT_MAX)
    days: int | None = Field(
        None, ge=1, le=DAYS_MAX, description="Calendar days in the person's zone; 1 is today."
    )
    hours: int | None = Field(None, ge=1, le=HOURS_MAX, description="A sliding window.")


class QuietHours(Body):
    """From ``start`` until ``end`` in the person's zone, over midnight where the end is earlier."""

    name: str = Field(max_length=200)
    channel: Channel = "*"
    start: str = Field(max_length=5, examples=["21:00"])
    end: str = Field(max_length=5, examples=["08:00"])
    weekdays: list[Weekday] | None = Field(
        None, max_length=7, description="Days on which they begin; every day if absent."
    )
    then: Literal["hold", "skip"] = Field(
        "hold", description="Wait for the end, or do not send at all."
    )


@router.post("/caps", dependencies=[WRITE], status_code=201, summary="Create a cap")
async def create_cap(body: Cap, ports: Ports, key: Key) -> dict[str, Any]:
    """Asked of each message at hand-off: one too many is suppressed as `frequency_cap`."""
    return await _save(ports, CAPS, body.model_dump(), key)


@router.put("/caps/{number}", dependencies=[WRITE], summary="Change a cap")
async def change_cap(number: Number, body: Cap, ports: Ports, key: Key) -> dict[str, Any]:
    return await _save(ports, CAPS, body.model_dump() | {"id": number}, key)


@router.get("/caps", dependencies=[READ], summary="Caps, newest first")
async def list_caps(ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, CAPS, limit, cursor)


@router.get("/caps/{number}", dependencies=[READ], summary="A cap")
async def get_cap(number: Number, ports: Ports) -> dict[str, Any]:
    return await _document(ports, CAPS, number)


@router.delete("/caps/{number}", dependencies=[WRITE], status_code=204, summary="Delete a cap")
async def delete_cap(number: Number, ports: Ports, key: Key) -> None:
    await _delete(ports, CAPS, number, key)


@router.post("/quiet-hours", dependencies=[WRITE], status_code=201, summary="Create quiet hours")
async def create_quiet_hours(body: QuietHours, ports: Ports, key: Key) -> dict[str, Any]:
    """Asked of each message at hand-off: it waits for their end, with the reason on record."""
    return await _save(ports, QUIET_HOURS, body.model_dump(), key)


@router.put("/quiet-hours/{number}", dependencies=[WRITE], summary="Change quiet hours")
async def change_quiet_hours(
    number: Number, body: QuietHours, ports: Ports, key: Key
) -> dict[str, Any]:
    return await _save(ports, QUIET_HOURS, body.model_dump() | {"id": number}, key)


@router.get("/quiet-hours", dependencies=[READ], summary="Quiet hours, newest first")
async def list_quiet_hours(
    ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, QUIET_HOURS, limit, cursor)


@router.get("/quiet-hours/{number}", dependencies=[READ], summary="Quiet hours, by number")
async def get_quiet_hours(number: Number, ports: Ports) -> dict[str, Any]:
    return await _document(ports, QUIET_HOURS, number)


@router.delete(
    "/quiet-hours/{number}", dependencies=[WRITE], status_code=204, summary="Delete quiet hours"
)
async def delete_quiet_hours(number: Number, ports: Ports, key: Key) -> None:
    await _delete(ports, QUIET_HOURS, number, key)


async def _save(
    ports: Handles, collection: str, fields: dict[str, Any], key: str | None
) -> dict[str, Any]:
    saved: dict[str, Any] = await ports.catalog.call(
        "save", collection, fields, key, deadline_s=CALL_DEADLINE_S
    )
    return saved


async def _document(ports: Handles, collection: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] | None = await ports.catalog.call(
        "get", collection, str(number), deadline_s=CALL_DEADLINE_S
    )
    if found is None:
        raise NotFound(f"no {collection.replace('_', ' ')} {number}", path="number")
    return found


async def _delete(ports: Handles, collection: str, number: int, key: str | None) -> None:
    await ports.catalog.call("delete", collection, str(number), key, deadline_s=CALL_DEADLINE_S)
