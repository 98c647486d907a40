"""Delivery: how the sender stands with each provider, what is done about it, and its undo."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from actors.handles import Singleton
from manta.delivery.reputation import norms
from manta.delivery.reputation.actions import ActionKind
from manta.delivery.reputation.reputation import (
    CAUSE_CHARACTERS_MAX,
    DURATION_MAX_S,
    NAME_CHARACTERS_MAX,
)
from manta.delivery.shaping.file import FILE_BYTES_MAX
from manta.errors import MantaError
from serve_apps.api.wiring import LIMIT, NUMBER_MAX, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.auth import Caller
from serve_apps.bodies import Body, instant
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.pages import page, read_cursor, write_cursor

router = APIRouter(prefix="/delivery", tags=["delivery"])
READ, WRITE = needs("delivery:read"), needs("delivery:write")
STATUS_DEADLINE_S = 5.0
Name = Annotated[str, Field(max_length=NAME_CHARACTERS_MAX)]
All = Annotated[bool, Query(alias="all", description="Those that are over, too.")]


class ActionScope(Body):
    """Every field that is given has to match; without any, all that goes out."""

    source: Name = ""
    provider: Name = ""
    site: Name = ""
    sending_domain: Name = ""
    campaign_id: int = Field(0, ge=0, le=NUMBER_MAX)


class ActionLimits(Body):
    rate_per_s: float | None = Field(None, ge=0, le=1_000_000)
    connections_max: int | None = Field(None, ge=1, le=100_000)
    messages_per_connection: int | None = Field(None, ge=1, le=1_000_000)


class NewAction(Body):
    kind: str = Field("suspend", max_length=20, description=", ".join(ActionKind))
    scope: ActionScope = ActionScope()
    cause: str = Field(max_length=CAUSE_CHARACTERS_MAX, description="Why, for who reads it later.")
    duration_s: float = Field(3_600, ge=1, le=DURATION_MAX_S)
    limits: ActionLimits = Field(ActionLimits(), description="Of a limit.")


class ShapingText(Body):
    text: str = Field(max_length=FILE_BYTES_MAX, description="TOML; see docs/shaping.md.")


class Rehearsal(Body):
    shaping: str | None = Field(
        None, max_length=FILE_BYTES_MAX, description="TOML; the present one if absent."
    )
    limits: str | None = Field(
        None,
        max_length=norms.TEXT_BYTES_MAX,
        description="TOML over manta/delivery/reputation/reputation.toml; as they are if absent.",
    )
    since: str | None = Field(
        None, max_length=40, description="RFC 3339, at most 7 days ago; a day ago if absent."
    )


@router.get("", dependencies=[READ], summary="How the sender stands")
async def get_delivery(ports: Ports) -> dict[str, Any]:
    """`reputation`: counts and rates per sending domain, source and provider with their bounds, the
    lanes that are held, and the limits that are acted upon. `throttle`: each lane's rate and
    connections, pools, and how far warm-ups are. A part that does not answer says why."""
    return {
        "reputation": await _status(ports.reputation),
        "throttle": await _status(ports.throttle),
    }


async def _status(owner: Singleton) -> dict[str, Any]:
    try:
        return dict(await owner.call("status", deadline_s=STATUS_DEADLINE_S))
    except MantaError as error:
        return {"ready": False, "reason": error.message}


@router.get("/actions", dependencies=[READ], summary="What is done to protect the sender")
async def list_actions(
    ports: Ports, is_all: All = False, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    """The newest first. Each says its cause, the figures behind it, and when it ends."""
    before = read_cursor("actions", cursor, [int])[0] if cursor else 1 << 62
    found = await ports.reputation.call("actions", not is_all, deadline_s=CALL_DEADLINE_S)
    older = [action for action in found if action["id"] < before]
    items = older[:limit]
    more = len(older) > limit
    return page(items, write_cursor("actions", [items[-1]["id"]]) if more else None)


@router.post("/actions", status_code=201, dependencies=[WRITE], summary="Suspend or slow something")
async def create_action(
    body: NewAction, ports: Ports, key: Key, request: Request
) -> dict[str, Any]:
    """Holds at once, until `duration_s` have passed or somebody undoes it."""
    action: dict[str, Any] = await ports.reputation.call(
        "act",
        body.kind,
        body.scope.model_dump(),
        body.cause,
        body.duration_s,
        body.limits.model_dump(),
        _by(request),
        key,
        deadline_s=CALL_DEADLINE_S,
    )
    return action


@router.post("/actions/{number}/undo", dependencies=[WRITE], summary="Undo an action")
async def undo_action(number: Number, ports: Ports, key: Key, request: Request) -> dict[str, Any]:
    """What led to it is not held against the sender again; new evidence is."""
    action: dict[str, Any] = await ports.reputation.call(
        "undo", number, _by(request), key, deadline_s=CALL_DEADLINE_S
    )
    return action


@router.get("/shaping", dependencies=[READ], summary="The operator's shaping")
async def get_shaping(ports: Ports) -> dict[str, Any]:
    return dict(await ports.reputation.call("shaping", deadline_s=CALL_DEADLINE_S))


@router.put("/shaping", dependencies=[WRITE], summary="Change the shaping, without a restart")
async def put_shaping(
    body: ShapingText, ports: Ports, key: Key, request: Request
) -> dict[str, Any]:
    """Lays the text over what comes with Manta, in the place of an earlier one. An empty text takes
    that away. A mistake is refused with its line, and nothing changes."""
    answer: dict[str, Any] = await ports.reputation.call(
        "set_shaping", body.text, _by(request), key, deadline_s=CALL_DEADLINE_S
    )
    return answer


@router.post("/rehearse", dependencies=[READ], summary="What would have been done")
async def rehearse(body: Rehearsal, ports: Ports) -> dict[str, Any]:
    """Goes through what is on record, by other rules or limits if given: `actions` that would have
    been taken, and of each of the shaping's `rules` that fired how many messages it would have
    met. Nothing is changed."""
    since = instant(body.since, "since")
    found: dict[str, Any] = await ports.reputation.call(
        "rehearse", body.shaping, body.limits, since, deadline_s=CALL_DEADLINE_S
    )
    return found


def _by(request: Request) -> str:
    """Who acts, as it is shown with the action."""
    caller: Caller = request.state.caller
    return f"{caller.name} (key {caller.key_id})"
