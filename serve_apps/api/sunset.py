"""Sunset policies: whoever has not reacted for long is left in peace."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from manta.errors import InvalidRequest
from manta.people import sunset
from manta.people.topics import COLLECTION as TOPICS
from manta.people.topics import named
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(prefix="/sunset", tags=["consent"])
READ, WRITE = needs("segments:read"), needs("segments:write")


class NewPolicy(Body):
    name: str = Field("Sunset", max_length=200)
    topic: str | None = Field(None, max_length=200, description="All topics if absent.")
    messages: int = Field(
        sunset.MESSAGES, ge=1, le=sunset.MESSAGES_MAX, description="The last mails, all ignored."
    )
    days: int = Field(
        sunset.DAYS, ge=1, le=sunset.DAYS_MAX, description="So long they have done nothing."
    )
    rule: dict[str, Any] | None = Field(None, description="A rule of your own in their place.")


@router.post("", dependencies=[WRITE], status_code=201, summary="Create a sunset policy")
async def create_policy(body: NewPolicy, ports: Ports, key: Key) -> dict[str, Any]:
    """Makes a live segment of the rule, which can be looked at and changed like any other. Whoever
    enters it gets no marketing until they click, buy or consent."""
    if body.topic is not None:
        known = named(await ports.catalog.call("list", TOPICS, deadline_s=CALL_DEADLINE_S))
        if body.topic not in known:
            raise InvalidRequest(
                f"there is no topic {body.topic!r:.80}",
                path="topic",
                expected=", ".join(sorted(known))[:500] or "a topic; there are none yet",
            )
    policies = await ports.catalog.call("list", sunset.COLLECTION, deadline_s=CALL_DEADLINE_S)
    sunset.check_topic(body.topic, policies)  # before a segment is made for nothing
    rule = body.rule or sunset.default_rule(body.messages, body.days, body.topic)
    segment = await ports.catalog.call(
        "save",
        "segments",
        {"name": body.name, "rule": rule, "live": True},
        key and f"{key}:segment",
        deadline_s=CALL_DEADLINE_S,
    )
    fields = {"name": body.name, "topic": body.topic, "segment_id": segment["id"]}
    saved: dict[str, Any] = await ports.catalog.call(
        "save", sunset.COLLECTION, fields, key, deadline_s=CALL_DEADLINE_S
    )
    return saved


@router.get("", dependencies=[READ], summary="Sunset policies, newest first")
async def list_policies(
    ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, sunset.COLLECTION, limit, cursor)


@router.delete("/{number}", dependencies=[WRITE], status_code=204, summary="End a sunset policy")
async def delete_policy(number: Number, ports: Ports, key: Key) -> None:
    """Nobody falls asleep by it any more. Those who have wake by their own act, or when you lift
    the suppression. Its segment stays."""
    await ports.catalog.call(
        "delete", sunset.COLLECTION, str(number), key, deadline_s=CALL_DEADLINE_S
    )
