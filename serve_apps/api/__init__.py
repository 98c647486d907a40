"""The HTTP API under ``/v1``: what a shop, a script or a front end may do with a workspace.

Routes translate: HTTP in, one command or read of the domain, HTTP out. Whatever is refused is an
RFC 9457 problem that names the field. Every change takes an ``Idempotency-Key`` and is answered
after it is stored, so a client that got no answer sends the same request again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from random import SystemRandom
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from actors.handles import Handles
from manta import __version__
from manta.errors import InvalidRequest, MantaError
from manta.traffic.networks import TrustedProxies
from serve_apps import collect
from serve_apps.api import (
    campaigns,
    delivery,
    domains,
    endpoints,
    exports,
    frequency,
    imports,
    keys,
    people,
    privacy,
    quarantine,
    rehearsals,
    segments,
    sources,
    sunset,
    suppressions,
    templates,
    topics,
    view,
)
from serve_apps.api.description import describe
from serve_apps.auth import Authenticator
from serve_apps.collect import webhooks
from serve_apps.limits import App, Guard, Message, Receive, Scope, Send
from serve_apps.problems import CONTENT_TYPE, Malformed, of_error, of_errors, problem
from serve_apps.reference import CONTENT_SECURITY_POLICY, render
from serve_apps.workshop import Workshop

PREFIX = "/v1"
_DESCRIPTION = (
    "Send `Authorization: Bearer manta_…`. Times are RFC 3339 in UTC, subscriber ids 13 characters "
    "of base32. Every change takes an `Idempotency-Key`. Refusals are RFC 9457 problems."
)


def create_api(
    handles: Handles,
    authenticator: Authenticator,
    public_url: str,
    trusted: TrustedProxies | None = None,
) -> App:
    """The API as an ASGI app whose routes begin at its root path; ``public_url`` is where the links
    of mails lead, ``trusted`` the proxies that are believed about who calls."""
    collecting, collector = collect.create_collect(
        handles, authenticator, secrets.token_hex(8), SystemRandom(), trusted
    )

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await collector.drain()

    api = FastAPI(
        lifespan=life,
        title="Manta",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        exception_handlers={
            MantaError: _answer_error,
            HTTPException: _answer_http,
            RequestValidationError: _answer_invalid,
            Exception: _answer_error,
        },
    )
    api.state.handles = handles
    api.state.authenticator = authenticator
    api.state.workshop = Workshop()
    api.state.views = view.Views(handles, public_url)
    api.state.intake = imports.Intake()
    api.state.intake_of_others = collector.intake
    hooks, counting = webhooks.create_webhooks(handles, collector.intake)
    api.state.source_counts = counting.counts
    api.state.public_url = public_url.rstrip("/")
    for room in (
        imports,
        exports,
        people,
        privacy,
        quarantine,
        sources,
        segments,
        suppressions,
        templates,
        campaigns,
        rehearsals,
        delivery,
        domains,
        endpoints,
        frequency,
        keys,
        topics,
        sunset,
        view,
    ):
        api.include_router(room.router)

    document = describe(api, PREFIX)
    page = render(document)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return document

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    large = Guard(api, body_bytes_max=imports.BODY_BYTES_MAX)
    others = dict.fromkeys(collect.PATHS, collecting)
    return _by_path({imports.PATH: large, **others}, hooks, Guard(_strict_text(api)))


def _by_path(apps: Mapping[str, App], hooks: App, otherwise: App) -> App:
    """Send requests to a few paths to apps with limits of their own."""

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        app = apps.get(path.rstrip("/") or path, otherwise)
        if path.startswith("/sources/") and webhooks.PATH.fullmatch(path):
            app = hooks
        await app(scope, receive, send)

    return choose


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(*of_error(error))


async def _answer_http(_: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: no such route, another method, a broken body."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method", 413: "too_large", 415: "media_type"}.get(
        error.status_code, "malformed" if error.status_code < 500 else "error"
    )
    detail = {
        "not_found": "there is no such address",
        "method": "this address does not take this method",
    }.get(code, str(error.detail))
    return _answer(problem(code, detail), dict(error.headers or {}))


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """What the models refuse: each field with its path and what would be right."""
    assert isinstance(error, RequestValidationError)
    found = [_invalid(item) for item in error.errors()[:100]]
    return _answer(of_errors(found), {})


def _invalid(item: dict[str, Any]) -> InvalidRequest:
    path = path_of(item["loc"])
    context = {k: v for k, v in (item.get("ctx") or {}).items() if k != "error"}
    match item["type"]:
        case "json_invalid":
            reason = (item.get("ctx") or {}).get("error", "")
            return Malformed(f"the body is not JSON: {reason}", path="", position=item["loc"][-1])
        case "extra_forbidden":
            return InvalidRequest(f"unknown field {path}", path=path, expected="a known field")
        case "missing":
            return InvalidRequest(f"{path or 'the body'} is missing", path=path)
        case "model_attributes_type" | "model_type" | "dict_type" if not path:
            return InvalidRequest(
                "the body is not a JSON object", expected="application/json with an object"
            )
    expected = str(context.get("expected", "")) or _sentence(item["msg"])
    return InvalidRequest(f"{path or 'the body'} is not valid", path=path, expected=expected)


def path_of(location: Sequence[int | str]) -> str:
    """``("body", "items", 3, "email")`` as ``items[3].email``."""
    text = ""
    for part in location[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _sentence(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _answer(document: dict[str, Any], headers: dict[str, str]) -> JSONResponse:
    headers = {"Cache-Control": "no-store", **headers}
    return JSONResponse(document, document["status"], headers, CONTENT_TYPE)


def _strict_text(app: App) -> App:
    """Refuse JSON with lone surrogates (RFC 8259 §8.2): no text in UTF-8 could hold them."""

    async def strict(scope: Scope, receive: Receive, send: Send) -> None:
        async def checked() -> Message:
            message = await receive()
            body = message.get("body", b"")
            if b"\\ud" in body or b"\\uD" in body:
                _check_surrogates(body)
            return message

        await app(scope, checked, send)

    return strict


def _check_surrogates(body: bytes) -> None:
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HTTPException(400, "the body holds half of a surrogate pair") from None
    except (ValueError, RecursionError):
        return  # not JSON at all: the route will say so
