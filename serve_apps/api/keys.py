"""API keys: who may do what. A key's text is shown once, when it is made."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from manta.errors import Forbidden
from serve_apps.api.wiring import Ports, needs
from serve_apps.auth import Caller
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(tags=["keys"], dependencies=[needs("keys:write")])
_HIDDEN = ("hash",)


class NewKey(Body):
    name: str = Field(max_length=200, description="What the key is for.")
    scopes: list[str] = Field(max_length=50, examples=[["subscribers:write", "events:write"]])
    expires_at: str | None = Field(None, max_length=40, description="RFC 3339; never if absent.")


@router.post("/keys", status_code=201, summary="Create an API key")
async def create_key(body: NewKey, ports: Ports, request: Request) -> dict[str, Any]:
    """The answer holds the key, which is not stored and cannot be shown again. A key can hand on
    only the scopes that it has."""
    caller: Caller = request.state.caller
    beyond = sorted(set(body.scopes) - caller.scopes)
    if beyond:
        raise Forbidden(f"this key cannot hand on {beyond[0]}, which it lacks", scope=beyond[0])
    created: dict[str, Any] = await ports.catalog.call(
        "create_api_key",
        body.name,
        body.scopes,
        body.expires_at,
        deadline_s=CALL_DEADLINE_S,
        once=True,
    )
    return created


@router.get("/keys", summary="List the API keys")
async def list_keys(ports: Ports) -> dict[str, Any]:
    documents = await ports.catalog.call("list", "api_keys", deadline_s=CALL_DEADLINE_S)
    return {
        "items": [{k: v for k, v in d.items() if k not in _HIDDEN} for d in documents],
        "next": None,
    }


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke an API key")
async def revoke_key(key_id: str, ports: Ports) -> Response:
    """It stops working within five seconds."""
    await ports.catalog.call("revoke_api_key", key_id, deadline_s=CALL_DEADLINE_S)
    return Response(status_code=204)
