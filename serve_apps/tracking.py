"""Tracking: opens, clicks and unsubscribes, over the signed links in mails.

Plain ASGI in one hop, since this is the busiest door: a request is one signature check, one place
in the batch of its shard (``gather``) and, once that batch is committed, one answer. What is
answered is therefore stored. The one exception is in the person's favour: a click whose batch is
full or not stored within ``CLICK_PATIENCE_S`` goes to its page all the same.

- A link leads only where its own signed token says: there is no open redirect. A forged, altered
  or truncated token is a 404 page.
- ``GET /u/…`` shows a form and changes nothing; only ``POST`` unsubscribes (RFC 8058 §3.1), without
  cookie and without redirect. It is a command of its own with the message as its key.
- ``GET /v/…`` leads a link that verifies on to the app that composes the page (``api.view``).
- The links of a test mail name nobody: they do what they say, and nothing is stored.
- The decoy, which no person sees, leads to a page that says so; it is a click that a machine made.
- Each hit is stored with the probability that a person did it (``Witness``).
- ``HEAD`` tells what ``GET`` would and counts nothing; a prefetch, which is not yet a person's act,
  is refused with 503, so that the browser asks again when the person does click.

Header lists are made anew for each answer: the server appends to the list that it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from actors.handles import Handles
from manta.content.links import DECOY_LINK
from manta.content.tokens import Payload, TokenKind
from manta.content.unsubscribe import is_one_click
from manta.errors import MantaError, NotFound, Overloaded
from manta.ids import NOBODY, encode_id
from manta.people.consents import Unsubscribe
from manta.people.identifying import execute_for
from manta.traffic.networks import TrustedProxies
from serve_apps import landing
from serve_apps.gather import Gatherer
from serve_apps.hits import Asked, Hit, Witness
from serve_apps.limits import (
    BODY_TIME_S,
    CALL_DEADLINE_S,
    FORM_BYTES_MAX,
    ClientGone,
    Receive,
    Scope,
    Send,
    read_body,
)
from serve_apps.links import LinkKeys
from serve_apps.preferences.texts import language_for
from serve_apps.problems import RETRY_AFTER_S, TooLarge
from serve_apps.visits import Visits

CLICK_PATIENCE_S = 2.0
USER_AGENT_LENGTH_MAX = 256
HIT_OVERHEAD_BYTES = 64
TOPICS_KEPT_MAX = 1_000
# 1×1 and transparent: the smallest GIF that every mail program draws.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)

_START = "http.response.start"
_NO_STORE = (b"cache-control", b"no-store, max-age=0")
_RETRY_AFTER = (b"retry-after", str(RETRY_AFTER_S).encode())
_PIXEL_HEADERS = (
    (b"content-type", b"image/gif"),
    (b"content-length", str(len(PIXEL)).encode()),
    _NO_STORE,
)
_PIXEL_BODY = {"type": "http.response.body", "body": PIXEL}
_NO_BODY = {"type": "http.response.body", "body": b""}
_REDIRECT_HEADERS = ((b"content-length", b"0"), _NO_STORE, (b"referrer-policy", b"no-referrer"))
_PAGE_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    _NO_STORE,
    (b"content-security-policy", landing.CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_PURPOSE = (b"sec-purpose", b"purpose", b"x-purpose", b"x-moz")
_URL_SAFE = "%/:?#[]@!$&'()*+,;=-._~"
_ROBOTS = b"User-agent: *\nDisallow: /\n"
# This app stands at the root, so it is also the front door to the others.
_DOORS = {"/": b"/console/", "/docs": b"/v1/docs", "/openapi.json": b"/v1/openapi.json"}
_TRACKS = {
    "/o/": TokenKind.OPEN,
    "/c/": TokenKind.CLICK,
    "/u/": TokenKind.UNSUBSCRIBE,
    "/v/": TokenKind.VIEW,
}
_VIEWS = b"../v1/view/"  # from /v/…, wherever this app stands

Headers = Iterable[tuple[bytes, bytes]]
logger = logging.getLogger("manta.http")


class Tracking:
    """The ASGI app: ``hits`` gathers what is counted, ``keys`` verifies links."""

    def __init__(
        self,
        handles: Handles,
        keys: LinkKeys,
        hits: Gatherer[Hit],
        trusted: TrustedProxies | None = None,
    ) -> None:
        self._shards = handles.shards
        self._director = handles.director
        self._clock = handles.clock
        self._keys = keys
        self._visits = Visits(handles, keys)
        self._hits = hits
        self._trusted = trusted or TrustedProxies(())
        self._witness = Witness()
        self._topics: OrderedDict[int, str | None] = OrderedDict()
        self._storing: set[asyncio.Task[Any]] = set()
        self.clicks_not_stored = 0  # answered all the same

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._lifespan(receive, send)
            return
        path, method = scope["path"], scope["method"]
        kind = _TRACKS.get(path[:3])
        try:
            if kind is None:
                await _elsewhere(path, method, send)
            elif method == "POST" and kind is TokenKind.UNSUBSCRIBE:
                await self._unsubscribe(path[3:], scope, receive, send)
            elif method not in ("GET", "HEAD"):
                allow = b"GET, HEAD, POST" if kind is TokenKind.UNSUBSCRIBE else b"GET, HEAD"
                await _send_page(send, 405, landing.NOTHING_HERE, (b"allow", allow))
            else:
                await self._read(kind, path[3:], method == "HEAD", scope, send)
        except NotFound:
            await _send_page(send, 404, landing.NOT_VALID, head=method == "HEAD")
        except MantaError as error:
            logger.warning("%s is refused: %s", path[:3], error)
            await _send_page(send, 503, landing.TRY_AGAIN, _RETRY_AFTER, head=method == "HEAD")

    async def _read(
        self, kind: TokenKind, token: str, head: bool, scope: Scope, send: Send
    ) -> None:
        said = await self._keys.verify(token, kind)
        if kind is TokenKind.UNSUBSCRIBE:
            language = _language(scope["headers"])
            await _send_page(send, 200, landing.unsubscribe(language), head=head)
            return
        if kind is TokenKind.VIEW:
            location = (b"location", _VIEWS + token.encode("ascii"))
            await send({"type": _START, "status": 302, "headers": [location, *_REDIRECT_HEADERS]})
            await send(_NO_BODY)
            return
        agent, forwarded, prefetched = _reader(scope["headers"])
        asked = Asked(agent, self._address(scope, forwarded) if self._trusted.any else "")
        if head:
            self._witness.head(
                said.subscriber_id, said.message_key, said.link, self._clock.monotonic()
            )
        if prefetched:
            await _send_not_now(send)
        elif kind is TokenKind.OPEN:
            await self._open(said, head, asked, send)
        else:
            await self._click(said, head, asked, send)

    async def _open(self, said: Payload, head: bool, asked: Asked, send: Send) -> None:
        if not head and said.subscriber_id != NOBODY:
            try:
                outcome = await self._add("opened", said, None, asked)
            except Overloaded as error:
                outcome = error
            if isinstance(outcome, MantaError):
                await _send_not_now(send)
                return
        await send({"type": _START, "status": 200, "headers": [*_PIXEL_HEADERS]})
        await send(_NO_BODY if head else _PIXEL_BODY)

    async def _click(self, said: Payload, head: bool, asked: Asked, send: Send) -> None:
        if not head and said.subscriber_id != NOBODY:
            try:
                async with asyncio.timeout(CLICK_PATIENCE_S):
                    outcome = await self._add("clicked", said, said.url or None, asked)
                if isinstance(outcome, MantaError):
                    self.clicks_not_stored += 1
            except (Overloaded, TimeoutError):
                self.clicks_not_stored += 1
        if said.link == DECOY_LINK:
            await _send_page(send, 200, landing.DECOY, head=head)
            return
        target = said.url if head else self._visits.target(said)
        location = (b"location", quote(target, safe=_URL_SAFE).encode("ascii"))
        await send({"type": _START, "status": 302, "headers": [location, *_REDIRECT_HEADERS]})
        await send(_NO_BODY)

    def _add(self, type: str, said: Payload, item: str | None, asked: Asked) -> asyncio.Future[Any]:
        person, message, campaign = said.subscriber_id, said.message_key, said.campaign_id
        decoy = said.link == DECOY_LINK and type == "clicked"
        properties, human = self._witness.judged(
            type, (person, message, said.link), asked, decoy, self._clock.monotonic()
        )
        hit = Hit(person, message, campaign, type, self._clock.now(), item, properties, human)
        size = HIT_OVERHEAD_BYTES + len(properties or "") + len(item or "")
        return self._hits.add(self._shards.of_subscriber(person), hit, size)

    def _address(self, scope: Scope, forwarded: bytes) -> str:
        peer = scope.get("client")
        return self._trusted.client(peer[0] if peer else "", forwarded.decode("latin-1"))

    async def _unsubscribe(self, token: str, scope: Scope, receive: Receive, send: Send) -> None:
        said = await self._keys.verify(token, TokenKind.UNSUBSCRIBE)
        language = _language(scope["headers"])
        try:
            async with asyncio.timeout(BODY_TIME_S):
                body = await read_body(scope, receive, FORM_BYTES_MAX)
        except ClientGone:
            return
        except (TooLarge, TimeoutError):
            body = b""
        if not is_one_click(body):
            await _send_page(send, 400, landing.unsubscribe(language))
            return
        if said.subscriber_id == NOBODY:
            await _send_page(send, 200, landing.unsubscribed(language))
            return
        # A task of its own: a client that leaves does not stop it.
        storing = asyncio.create_task(self._store_unsubscribe(said))
        self._storing.add(storing)
        storing.add_done_callback(self._stored)
        await asyncio.shield(storing)
        await _send_page(send, 200, landing.unsubscribed(language))

    async def _store_unsubscribe(self, said: Payload) -> None:
        topic = await self._topic(said.campaign_id)

        def command(id: int) -> Unsubscribe:
            return Unsubscribe(
                key=f"unsubscribe:{encode_id(said.subscriber_id)}:{encode_id(said.message_key)}",
                subscriber_id=id,
                message_key=said.message_key,
                topic=topic,
                source="one_click",
            )

        await execute_for(self._shards, said.subscriber_id, command, CALL_DEADLINE_S)

    async def _topic(self, campaign_id: int) -> str | None:
        """What the mail was about; ``None``, for all topics, where its campaign is not known."""
        if campaign_id not in self._topics:
            campaign = await self._director.call(
                "get", "campaigns", str(campaign_id), deadline_s=CALL_DEADLINE_S
            )
            self._topics[campaign_id] = campaign["topic"] if campaign else None
            if len(self._topics) > TOPICS_KEPT_MAX:
                self._topics.popitem(last=False)
        return self._topics[campaign_id]

    def _stored(self, task: asyncio.Task[Any]) -> None:
        self._storing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("an unsubscription was not stored: %s", error)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Before the end, everything that was taken is answered."""
        fresh = asyncio.create_task(self._keys.keep_fresh())
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                fresh.cancel()
                await self._hits.drain()
                await asyncio.gather(*self._storing, return_exceptions=True)
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


def _language(headers: Headers) -> str:
    """The language of a page for somebody of whom only the browser is known."""
    accepted = next((value for name, value in headers if name == b"accept-language"), b"")
    return language_for(None, accepted.decode("latin-1"))


async def _elsewhere(path: str, method: str, send: Send) -> None:
    """Everything at the root that is not tracking."""
    if path in _DOORS:
        headers = [(b"location", _DOORS[path]), (b"content-length", b"0")]
        await send({"type": _START, "status": 307, "headers": headers})
        await send(_NO_BODY)
    elif path == "/robots.txt":
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_ROBOTS))]
        await send({"type": _START, "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else _ROBOTS})
    else:
        await _send_page(send, 404, landing.NOTHING_HERE, head=method == "HEAD")


async def _send_page(
    send: Send, status: int, page: bytes, *headers: tuple[bytes, bytes], head: bool = False
) -> None:
    length = (b"content-length", b"%d" % len(page))
    await send({"type": _START, "status": status, "headers": [*_PAGE_HEADERS, length, *headers]})
    await send({"type": "http.response.body", "body": b"" if head else page})


async def _send_not_now(send: Send) -> None:
    headers = [(b"content-length", b"0"), _NO_STORE, _RETRY_AFTER]
    await send({"type": _START, "status": 503, "headers": headers})
    await send(_NO_BODY)


def _reader(headers: Headers) -> tuple[str, bytes, bool]:
    """The program that asks, for whom proxies say that they ask, whether it only fetches ahead."""
    agent, forwarded, prefetched = "", b"", False
    for name, value in headers:
        if name == b"user-agent":
            agent = value[:USER_AGENT_LENGTH_MAX].decode("latin-1")
        elif name == b"x-forwarded-for":
            forwarded = b"%b,%b" % (forwarded, value) if forwarded else value
        elif name in _PURPOSE and b"prefetch" in value.lower():
            prefetched = True
    return agent, forwarded, prefetched
