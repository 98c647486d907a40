"""The console's page "Delivery": how the sender stands, what is done about it, and its undo.

One read gathers what Throttle, Reputation and Catalog say; a part that does not answer is shown as
such and takes nothing from the others. Changes are those of the API, with its scopes, its bodies
and its idempotency keys: here only who asks is found out in another way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actors.handles import Handles, Singleton
from manta.errors import InvalidRequest, MantaError, NotFound
from serve_apps.api import delivery, domains, suppressions
from serve_apps.api.wiring import KEY_LENGTH_MAX, idempotency_key
from serve_apps.auth import Caller
from serve_apps.bodies import Body
from serve_apps.problems import Malformed

PART_TIMEOUT_S = 2.0
LANES_SHOWN = 200
ACTIONS_SHOWN = 200
EMAIL = "email"
NAMED = {  # of a part, what the page shows
    "throttle": ("ready", "reason", "law", "sources", "warmup"),
    "reputation": ("ready", "reason", "rebuilt", "windows", "windows_total", "limits"),
}
Document = dict[str, Any]
_Kind = TypeVar("_Kind", bound=Body)


class Admit(Protocol):
    """Who asks, if they may: the scope, and of a change its header, are checked."""

    def __call__(
        self, request: Request, scope: str, *, is_change: bool = False
    ) -> Awaitable[Caller]: ...


class Shared(Protocol):
    """Answers that all viewers share."""

    async def get(self, name: str, read: Callable[[], Awaitable[Any]]) -> Any: ...

    def forget(self, *names: str) -> None: ...


class LiftedAddress(Body):
    address: str
    why: str = ""


class Delivery:
    """``answer`` makes a response of a document."""

    def __init__(
        self, handles: Handles, admit: Admit, shared: Shared, answer: Callable[[Any], Response]
    ) -> None:
        self._handles = handles
        self._admit = admit
        self._shared = shared
        self._answer = answer

    def routes(self) -> list[Route]:
        return [
            Route("/api/delivery", self.delivery),
            Route("/api/delivery/actions", self.act, methods=["POST"]),
            Route("/api/delivery/actions/{number:int}/undo", self.undo, methods=["POST"]),
            Route("/api/delivery/domains/{domain:str}/check", self.check, methods=["POST"]),
            Route("/api/suppression", self.suppression),
            Route("/api/suppression/lift", self.lift, methods=["POST"]),
        ]

    async def delivery(self, request: Request) -> Response:
        await self._admit(request, "delivery:read")
        return self._answer(await self._shared.get("delivery", self._read))

    async def _read(self) -> Document:
        handles = self._handles
        throttle, reputation, actions, sending = await asyncio.gather(
            _part(handles.throttle, "status"),
            _part(handles.reputation, "status"),
            _part(handles.reputation, "actions", False),
            _part(handles.catalog, "domains"),
        )
        return {
            "throttle": _named("throttle", throttle) | _lanes(throttle.get("lanes", [])),
            "reputation": _named("reputation", reputation),
            "actions": _actions(actions) if isinstance(actions, list) else actions,
            "domains": {"ready": True, "items": sending} if isinstance(sending, list) else sending,
        }

    async def act(self, request: Request) -> Response:
        """Suspend or slow a source, a provider, or what they have in common, by hand."""
        key = await self._changing(request, "delivery:write")
        body = await _body(request, delivery.NewAction)
        made = await delivery.create_action(body, self._handles, key, request)
        self._shared.forget("delivery")
        return self._answer(made)

    async def undo(self, request: Request) -> Response:
        key = await self._changing(request, "delivery:write")
        number = request.path_params["number"]
        undone = await delivery.undo_action(number, self._handles, key, request)
        self._shared.forget("delivery")
        return self._answer(undone)

    async def check(self, request: Request) -> Response:
        """Look at what the DNS has of a sending domain; the records to publish come with it."""
        await self._changing(request, "delivery:write")
        checked = await domains.check_domain(request.path_params["domain"], self._handles)
        self._shared.forget("delivery")
        return self._answer(checked)

    async def suppression(self, request: Request) -> Response:
        """Why nothing is sent to an address; ``null`` where it is not suppressed."""
        await self._admit(request, "subscribers:read")
        address = request.query_params.get("address", "").strip()
        if not address:
            raise InvalidRequest("no address", path="address", expected="an e-mail address")
        try:
            found = await suppressions.get_suppression(EMAIL, address, self._handles)
        except NotFound:
            found = None
        return self._answer({"address": address, "suppression": found})

    async def lift(self, request: Request) -> Response:
        key = await self._changing(request, "subscribers:write")
        body = await _body(request, LiftedAddress)
        lifted = await suppressions.lift(EMAIL, body.address, self._handles, key, request, body.why)
        return self._answer(lifted)

    async def _changing(self, request: Request, scope: str) -> str | None:
        """Lets a change in, as the API's routes expect it; its idempotency key."""
        request.state.caller = await self._admit(request, scope, is_change=True)
        given = request.headers.get("idempotency-key")
        return idempotency_key(request, given and given[:KEY_LENGTH_MAX])


async def _part(owner: Singleton, method: str, *arguments: Any) -> Any:
    """What one owner says, asked once, or why it says nothing."""
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await owner.call(method, *arguments, deadline_s=0)
    except TimeoutError:
        return {"ready": False, "reason": f"no answer within {PART_TIMEOUT_S:g} s"}
    except MantaError as error:
        return {"ready": False, "reason": error.message}


def _named(part: str, found: Document) -> Document:
    return {name: found[name] for name in NAMED[part] if name in found}


def _lanes(lanes: list[Document]) -> Document:
    """Those that something narrows come first."""
    ordered = sorted(
        lanes, key=lambda lane: (not lane["causes"], *map(lane.get, ("source", "provider", "site")))
    )
    return {"lanes": ordered[:LANES_SHOWN], "lanes_total": len(ordered)}


def _actions(actions: list[Document]) -> Document:
    active = [action for action in actions if action["is_active"]]
    over = [action for action in actions if not action["is_active"]]
    return {
        "ready": True,
        "active": active[:ACTIONS_SHOWN],
        "active_total": len(active),
        "over": over[:ACTIONS_SHOWN],
        "over_total": len(over),
    }


async def _body(request: Request, kind: type[_Kind]) -> _Kind:
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"])) or "body"
        raise Malformed(f"{path}: {first['msg']}", path=path, expected=kind.__name__) from None
