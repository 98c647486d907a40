"""Segments: named rules about people."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from actors.handles import Handles
from manta.errors import NotFound
from manta.rules.explain import explain
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(prefix="/segments", tags=["segments"])
READ, WRITE = needs("segments:read"), needs("segments:write")
SAMPLE_MAX = 100
Sample = Annotated[int, Query(ge=1, le=SAMPLE_MAX, description="How many people to show.")]


class NewSegment(Body):
    name: str = Field(max_length=200)
    rule: dict[str, Any] = Field(description="The rule tree.")


class ChangedSegment(Body):
    name: str | None = Field(None, max_length=200)
    rule: dict[str, Any]


class Unsaved(Body):
    rule: dict[str, Any]
    sample: int = Field(10, ge=0, le=SAMPLE_MAX)


@router.post("", status_code=201, dependencies=[WRITE], summary="Create a segment")
async def create_segment(body: NewSegment, ports: Ports, key: Key) -> dict[str, Any]:
    return await _save(ports, body.model_dump(), key)


@router.put("/{number}", dependencies=[WRITE], summary="Change a segment: its next version")
async def change_segment(
    number: Number, body: ChangedSegment, ports: Ports, key: Key
) -> dict[str, Any]:
    return await _save(ports, body.model_dump(exclude_none=True) | {"id": number}, key)


async def _save(ports: Handles, fields: dict[str, Any], key: str | None) -> dict[str, Any]:
    saved: dict[str, Any] = await ports.catalog.call(
        "save", "segments", fields, key, deadline_s=CALL_DEADLINE_S
    )
    return saved


@router.get("", dependencies=[READ], summary="List the segments, newest first")
async def list_segments(
    ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, "segments", limit, cursor)


@router.post("/preview", dependencies=[READ], summary="Try a rule without saving it")
async def preview(body: Unsaved, ports: Ports) -> dict[str, Any]:
    """How many people it holds for, some of them, and what it means in English."""
    return await reads.audience(ports, body.rule, body.sample)


class Rule(Body):
    rule: dict[str, Any]


@router.post("/explain", dependencies=[READ], summary="What a rule means, in English")
async def explain_rule(body: Rule, ports: Ports) -> dict[str, Any]:
    return {"text": explain(await reads.checked_rule(ports, body.rule))}


@router.get("/{number}", dependencies=[READ], summary="A segment")
async def get_segment(number: Number, ports: Ports) -> dict[str, Any]:
    return await _segment(ports, number)


@router.get("/{number}/count", dependencies=[READ], summary="How many people are in it now")
async def count(number: Number, ports: Ports) -> dict[str, Any]:
    segment = await _segment(ports, number)
    found = await reads.audience(ports, segment["rule"], 0)
    return {"count": found["count"], "version": segment["version"]}


@router.get("/{number}/explain", dependencies=[READ], summary="What it means, in English")
async def explain_segment(number: Number, ports: Ports) -> dict[str, Any]:
    segment = await _segment(ports, number)
    rule = await reads.checked_rule(ports, segment["rule"])
    return {"text": explain(rule), "version": segment["version"]}


@router.get("/{number}/sample", dependencies=[READ], summary="Some of the people in it")
async def sample(number: Number, ports: Ports, limit: Sample = 10) -> dict[str, Any]:
    segment = await _segment(ports, number)
    return await reads.audience(ports, segment["rule"], limit)


async def _segment(ports: Handles, number: int) -> dict[str, Any]:
    segment: dict[str, Any] | None = await ports.catalog.call(
        "get", "segments", str(number), deadline_s=CALL_DEADLINE_S
    )
    if segment is None:
        raise NotFound(f"no segment {number}", path="number")
    return segment
