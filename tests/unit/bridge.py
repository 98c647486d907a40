"""A house of real actors behind the real API, for clients that are not asynchronous.

The house lives in a thread with an event loop of its own; ``Bridge`` is the transport by which
httpx's plain client reaches the apps in it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import httpx

from serve_apps.api import create_api
from serve_apps.ingest import create_ingest
from tests.unit.serve_world import House

URL = "http://manta.test"


class Bridge(httpx.BaseTransport):
    """Requests of a plain client to ASGI apps in another thread's loop, by the path's beginning.

    ``troubles`` are taken by the next requests, one each: an exception to raise or a response to
    give instead, or ``"lost"``: the request is handled and its answer thrown away.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, apps: dict[str, Any]) -> None:
        self._loop = loop
        self._apps = {
            prefix: httpx.ASGITransport(app, raise_app_exceptions=False, root_path=prefix)
            for prefix, app in sorted(apps.items(), reverse=True)
        }
        self.troubles: list[Exception | httpx.Response | str] = []
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        trouble = self.troubles.pop(0) if self.troubles else None
        if isinstance(trouble, Exception):
            raise trouble
        if isinstance(trouble, httpx.Response):
            return trouble
        response = asyncio.run_coroutine_threadsafe(self._handle(request), self._loop).result(60)
        if trouble == "lost":
            raise httpx.ReadError("the connection broke")
        return response

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        app = next(app for prefix, app in self._apps.items() if request.url.path.startswith(prefix))
        answer = await app.handle_async_request(
            httpx.Request(
                request.method, request.url, headers=request.headers, content=request.content
            )
        )
        body = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)


class Town:
    """The house from outside its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, house: House) -> None:
        self._loop = loop
        self.house = house
        apps = {
            "/v1": create_api(house.handles, house.authenticator, "http://manta.test"),
            "/v1/events": create_ingest(house.handles, house.authenticator, "r1", Random(3)),
        }
        self.bridge = Bridge(loop, apps)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await in the house's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def key(self, *scopes: str) -> str:
        header = self.run(self.house.key(*scopes))
        return str(header["Authorization"].removeprefix("Bearer "))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """A statement's rows over all shards."""
        found: list[dict[str, Any]] = []
        for role, actor in self.house.calls.roles.items():
            if role.startswith("shard-"):
                reader = actor._store.reader()
                found += reader.table(sql).to_pylist()
                reader.close()
        return found


@contextmanager
def town(make: Callable[[], House] = House) -> Iterator[Town]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="house")
    thread.start()
    try:
        house = make()
        asyncio.run_coroutine_threadsafe(house.start(), loop).result(60)
        yield Town(loop, house)
        asyncio.run_coroutine_threadsafe(house.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
