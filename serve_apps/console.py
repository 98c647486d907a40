"""The console: one page for people that shows a workspace live.

The page is static; what it shows comes from a few JSON reads below ``/console/api`` that it asks
for each second while it is visible. All viewers of a replica share one answer per second, so
watching costs the shards the same whoever watches.

A person signs in with an API key, which lives in a cookie that scripts cannot read and that is sent
to the console alone (``SameSite=Strict``, path ``/console``). Every change needs a header besides,
which no foreign page can set without asking first, so a link from elsewhere changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from actors.handles import Handles
from manta.clock import parse_instant
from manta.delivery.directing import is_test
from manta.errors import Forbidden, InvalidRequest, MantaError
from serve_apps import reads
from serve_apps.api import rehearsals
from serve_apps.auth import Authenticator, Caller
from serve_apps.console_delivery import Delivery
from serve_apps.limits import CALL_DEADLINE_S, FORM_BYTES_MAX, App, Guard
from serve_apps.problems import CONTENT_TYPE, Malformed, of_error, problem

COOKIE = "manta_console"
SESSION_S = 12 * 3600
CHANGE_HEADER = "x-manta-console"
SHARED_S = 0.9  # how long viewers share an answer: just below the page's second
SHARED_MAX = 200
CAMPAIGNS_SHOWN = 50
STEPS_SHOWN = 120
STATUS_TIMEOUT_S = 2.0
MOVES = ("pause", "resume", "cancel")
STATIC = Path(__file__).parent / "static" / "console"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_SAFE = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_console(handles: Handles, authenticator: Authenticator, *, secure: bool) -> App:
    """The console as an ASGI app. ``secure``: the cookie goes over TLS alone."""
    console = Console(handles, authenticator, secure)
    app = Starlette(
        routes=console.routes(),
        exception_handlers={
            MantaError: _answer_error,
            HTTPException: _answer_http,
            Exception: _answer_error,
        },
    )
    return Guard(app, body_bytes_max=FORM_BYTES_MAX)


class Shared:
    """One answer for all who ask the same within ``SHARED_S``; later askers join one under way."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._kept: dict[str, tuple[float, asyncio.Future[Any]]] = {}

    async def get(self, name: str, read: Callable[[], Awaitable[Any]]) -> Any:
        now = self._monotonic()
        kept = self._kept.get(name)
        if kept is None or (kept[1].done() and now - kept[0] > SHARED_S):
            if len(self._kept) >= SHARED_MAX:
                self._kept = {n: k for n, k in self._kept.items() if not k[1].done()}
            kept = (now, asyncio.ensure_future(read()))
            self._kept[name] = kept
        try:
            # Shielded: one viewer who leaves does not take the answer from the others.
            return await asyncio.shield(kept[1])
        except MantaError:
            self.forget(name)
            raise

    def forget(self, *names: str) -> None:
        """What these say has just been changed: the next asker reads again."""
        for name in names:
            self._kept.pop(name, None)


class Console:
    """The routes and what they read."""

    def __init__(self, handles: Handles, authenticator: Authenticator, secure: bool) -> None:
        self._handles = handles
        self._authenticator = authenticator
        self._secure = secure
        self._shared = Shared(handles.clock.monotonic)
        self._delivery = Delivery(handles, self._admit, self._shared, _json)
        self._files = {
            path.name: (path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(STATIC.iterdir())
            if path.suffix in _TYPES
        }

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/assets/{name}", self.asset),
            Route("/session", self.sign_in, methods=["POST"]),
            Route("/session", self.sign_out, methods=["DELETE"]),
            Route("/api/session", self.session),
            Route("/api/campaigns", self.campaigns),
            Route("/api/campaigns/{number:int}", self.campaign),
            Route("/api/campaigns/{number:int}/recipients", self.recipients),
            Route("/api/campaigns/{number:int}/forecast", self.forecast),
            Route("/api/campaigns/{number:int}/{move:str}", self.move, methods=["POST"]),
            Route("/api/segments", self.segments),
            Route("/api/segments/{number:int}/count", self.segment_count),
            Route("/api/status", self.status),
            *self._delivery.routes(),
        ]

    # -- the page --------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        return self._file("index.html")

    async def asset(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            raise HTTPException(404)
        content, kind = self._files[name]
        return Response(content, media_type=kind, headers=_SAFE)

    # -- who watches -----------------------------------------------------------------------------

    async def sign_in(self, request: Request) -> Response:
        self._check_change(request)
        try:
            given = await request.json()
            key = given["key"].strip()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Malformed("the body is not a key", path="key", expected='{"key": "…"}') from None
        caller = await self._authenticator.key(key)
        caller.require("campaigns:read")
        answer = JSONResponse(_shown_caller(caller), headers=_SAFE)
        answer.set_cookie(
            COOKIE,
            key,
            max_age=SESSION_S,
            path="/console",
            httponly=True,
            samesite="strict",
            secure=self._secure,
        )
        return answer

    async def sign_out(self, request: Request) -> Response:
        self._check_change(request)
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, path="/console", httponly=True, samesite="strict")
        return answer

    async def session(self, request: Request) -> Response:
        return JSONResponse(_shown_caller(await self._caller(request, None)), headers=_SAFE)

    async def _caller(self, request: Request, scope: str | None) -> Caller:
        caller = await self._authenticator.key(request.cookies.get(COOKIE, ""))
        if scope is not None:
            caller.require(scope)
        return caller

    async def _admit(self, request: Request, scope: str, *, is_change: bool = False) -> Caller:
        caller = await self._caller(request, scope)
        if is_change:
            self._check_change(request)
        return caller

    def _check_change(self, request: Request) -> None:
        if request.headers.get(CHANGE_HEADER) != "1":
            raise Forbidden(f"a change needs the header {CHANGE_HEADER}: 1", header=CHANGE_HEADER)

    # -- what it shows ---------------------------------------------------------------------------

    async def campaigns(self, request: Request) -> Response:
        await self._caller(request, "campaigns:read")
        return _json(await self._shared.get("campaigns", self._campaigns))

    async def _campaigns(self) -> dict[str, Any]:
        documents = await self._handles.director.call(
            "list", "campaigns", deadline_s=CALL_DEADLINE_S
        )
        documents = [document for document in documents if not is_test(document)]
        newest = sorted(documents, key=lambda d: -d["id"])[:CAMPAIGNS_SHOWN]
        accounts = await asyncio.gather(*(self._accounting(d) for d in newest))
        items = [_listed(d) | {"accounting": a} for d, a in zip(newest, accounts, strict=True)]
        return {"items": items, "total": len(documents)}

    async def _accounting(self, campaign: dict[str, Any]) -> dict[str, Any] | None:
        if not campaign["definition"]:
            return None
        return await reads.accounting(self._handles, campaign["id"])

    async def campaign(self, request: Request) -> Response:
        await self._caller(request, "campaigns:read")
        number = request.path_params["number"]

        async def read() -> dict[str, Any]:
            campaign = await self._handles.director.call(
                "campaign", number, deadline_s=CALL_DEADLINE_S
            )
            step_s = self._step_s(campaign)
            report = await reads.campaign_report(self._handles, campaign, step_s)
            return _listed(campaign) | {"report": report, "step_s": step_s}

        return _json(await self._shared.get(f"campaign {number}", read))

    def _step_s(self, campaign: dict[str, Any]) -> int:
        """A step so long that the whole campaign fits the chart."""
        times = [parse_instant(h["at"]) for h in campaign["history"] if h["state"] == "running"]
        if not times:
            return 1
        ended = campaign["state"] in ("finished", "cancelled")
        until = parse_instant(campaign["changed_at"]) if ended else self._handles.clock.now()
        seconds = (until - times[0]).total_seconds()
        return next((s for s in _STEPS if seconds / s <= STEPS_SHOWN), _STEPS[-1])

    async def recipients(self, request: Request) -> Response:
        await self._caller(request, "campaigns:read")
        query = request.query_params
        items, following = await reads.recipients(
            self._handles,
            request.path_params["number"],
            query.get("state") or None,
            50,
            query.get("cursor") or None,
        )
        return _json({"items": items, "next": following})

    async def forecast(self, request: Request) -> Response:
        """The last rehearsal's forecast, and after the end what came of it."""
        await self._caller(request, "campaigns:read")
        number = request.path_params["number"]

        async def read() -> dict[str, Any]:
            return await rehearsals.get_forecast(number, self._handles)

        return _json(await self._shared.get(f"forecast {number}", read))

    async def move(self, request: Request) -> Response:
        caller = await self._admit(request, "campaigns:write", is_change=True)
        move, number = request.path_params["move"], request.path_params["number"]
        if move not in MOVES:
            raise InvalidRequest(f"no move {move!r:.40}", path="move", expected=", ".join(MOVES))
        moved = await self._handles.director.call(move, number, deadline_s=CALL_DEADLINE_S)
        self._shared.forget("campaigns", f"campaign {number}")
        return _json(_listed(moved) | {"by": caller.name})

    async def segments(self, request: Request) -> Response:
        await self._caller(request, "segments:read")
        documents = await self._handles.catalog.call("list", "segments", deadline_s=CALL_DEADLINE_S)
        return _json({"items": sorted(documents, key=lambda d: -d["id"])})

    async def segment_count(self, request: Request) -> Response:
        await self._caller(request, "segments:read")
        number = request.path_params["number"]

        async def read() -> dict[str, Any]:
            segment = await self._handles.catalog.call(
                "get", "segments", str(number), deadline_s=CALL_DEADLINE_S
            )
            if segment is None:
                raise HTTPException(404)
            found = await reads.audience(self._handles, segment["rule"], 0)
            return {"count": found["count"], "explain": found["explain"]}

        return _json(await self._shared.get(f"segment {number}", read))

    async def status(self, request: Request) -> Response:
        await self._caller(request, "campaigns:read")
        return _json(await self._shared.get("status", self._status))

    async def _status(self) -> dict[str, Any]:
        """Every part of the system that answers, and why the others do not."""
        handles = self._handles
        others = {
            "director": handles.director,
            "throttle": handles.throttle,
            "reputation": handles.reputation,
            "resolver": handles.resolver,
            **{f"sender-{n:02d}": sender for n, sender in enumerate(handles.senders)},
        }

        async def one(name: str, owner: Any) -> dict[str, Any]:
            try:
                async with asyncio.timeout(STATUS_TIMEOUT_S):
                    status = await owner.call("status", deadline_s=0)  # asked once: who is away is
                return {"ready": True, **_brief(status), "name": name}
            except TimeoutError:
                reason = f"no answer within {STATUS_TIMEOUT_S:g} s"
            except MantaError as error:
                reason = error.message
            return {"name": name, "ready": False, "reason": reason}

        shards, *rest = await asyncio.gather(
            handles.shards.status(), *(one(name, owner) for name, owner in others.items())
        )
        named = [{"name": f"shard-{n:03d}", **status} for n, status in enumerate(shards)]
        return {"workspace": handles.workspace, "shards": named, "others": rest}


_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
_LISTED = (
    "id",
    "name",
    "state",
    "topic",
    "kind",
    "policy",
    "segment_id",
    "template_id",
    "template_version",
    "launch_at",
    "created_at",
    "changed_at",
    "history",
    "progress",
    "paused_by",
)


def _brief(status: dict[str, Any]) -> dict[str, Any]:
    """Tables as the number of their rows: they have a page of their own."""

    def brief(value: Any) -> Any:
        is_table = isinstance(value, list) and value and isinstance(value[0], dict)
        return len(value) if is_table else value

    return {name: brief(value) for name, value in status.items()}


def _listed(campaign: dict[str, Any]) -> dict[str, Any]:
    return {name: campaign.get(name) for name in _LISTED}


def _shown_caller(caller: Caller) -> dict[str, Any]:
    return {"name": caller.name, "scopes": sorted(caller.scopes)}


def _json(document: Any) -> JSONResponse:
    return JSONResponse(reads.plain(document), headers=_SAFE | {"Cache-Control": "no-store"})


async def _answer_error(_: Request, error: Exception) -> Response:
    document, headers = of_error(error)
    return _problem(document, headers)


async def _answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "method" if error.status_code == 405 else "not_found"
    return _problem(problem(code, "there is no such address"), dict(error.headers or {}))


def _problem(document: dict[str, Any], headers: dict[str, str]) -> Response:
    return JSONResponse(document, document["status"], _SAFE | headers, CONTENT_TYPE)
