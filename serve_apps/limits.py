"""What one request may cost: the bytes of its body and the seconds of its stay.

``Guard`` stands before an ASGI app. It reads the whole body first, at most ``body_bytes_max`` of it
and for at most ``BODY_TIME_S``, so that neither an endless nor a dripping body ever reaches the
app, and it ends a request after ``time_s``: what was asked may then have happened, and the answer
says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from manta.errors import MantaError, OutcomeUnknown
from serve_apps.problems import TooLarge, of_error, problem, send_problem

JSON_BYTES_MAX = 4 << 20
BATCH_ITEMS_MAX = 1_000
FORM_BYTES_MAX = 4 << 10
BODY_TIME_S = 10.0
REQUEST_TIME_S = 25.0  # below Serve's own limit, which would answer with a bare 408
CALL_DEADLINE_S = 20.0  # of calls to actors, so that their reasons reach the client
PAGE_ROWS = 100
PAGE_ROWS_MAX = 1_000

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
logger = logging.getLogger("manta.http")


class ClientGone(Exception):
    """The client left while its body was read: there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """The body of a request. Raises ``TooLarge`` before it holds more than ``bytes_max``."""
    too_large = TooLarge(f"the body has more than {bytes_max:,} bytes", limit_bytes=bytes_max)
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > bytes_max):
            raise too_large
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise too_large
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


class Guard:
    """An ASGI app behind limits, whose faults all become problem answers."""

    def __init__(
        self, app: App, *, body_bytes_max: int = JSON_BYTES_MAX, time_s: float = REQUEST_TIME_S
    ) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max
        self._time_s = time_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(BODY_TIME_S) as limit:
                body = await read_body(scope, receive, self._body_bytes_max)
                limit.reschedule(asyncio.get_running_loop().time() + self._time_s)
                await self._app(scope, _replay(body, receive), noting_send)
        except ClientGone:
            return
        except Exception as error:
            if started:
                raise
            if not isinstance(error, MantaError | TimeoutError):
                logger.exception("%s %s failed", scope["method"], scope["path"])
            await send_problem(noting_send, *_refusal(error, self._time_s))


def _refusal(error: Exception, time_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    if isinstance(error, TimeoutError):
        error = OutcomeUnknown(f"no answer within {time_s:g} s: this may or may not have happened")
    if isinstance(error, MantaError):
        return of_error(error)
    return problem("error", "this request failed; the log has the reason"), {}


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once and then waits for the client to leave."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
