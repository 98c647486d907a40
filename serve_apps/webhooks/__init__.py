"""Webhooks of e-mail providers: ``POST /webhooks/<provider>``, answered after the commit.

A request is proven to be the provider's before anything in it is believed; a wrong signature, an
old timestamp or a provider that the settings do not name is refused, and nothing of it is done. An
event of an id that was seen within 48 hours does nothing again: that is what a provider's own retry
looks like, so it is answered 200. What cannot be stored now is answered 503, and the provider sends
the whole request again.

An event is about the message that its return path (signed) or its Message-ID names, else about its
address; the request's own proof makes that good enough here. See ``returns.commands``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from types import ModuleType

import httpx

from actors.handles import Handles
from manta.content.tokens import Keyring
from manta.delivery.returns.commands import (
    RecordBounce,
    RecordBounceOf,
    RecordComplaint,
    RecordComplaintOf,
)
from manta.delivery.returns.inbox import ref_of_message_id
from manta.delivery.returns.reporting import Report, report
from manta.errors import InvalidRequest, MantaError, RetryableError
from manta.ids import NOBODY, MessageRef
from manta.settings import WebhookSettings
from serve_apps.limits import CALL_DEADLINE_S, App, Guard, Receive, Scope, Send, read_body
from serve_apps.links import LinkKeys
from serve_apps.problems import TooLarge, encode, of_error, problem, send_problem
from serve_apps.webhooks import generic, mailgun, postmark, sendgrid, ses
from serve_apps.webhooks.events import (
    BOUNCED,
    COMPLAINED,
    EVENTS_MAX,
    Headers,
    ProviderEvent,
    refused,
)

BODY_BYTES_MAX = 4 << 20
AT_ONCE_MAX = 32
CERTIFICATES_MAX = 16
TOKENS_MAX = 50_000
CERTIFICATE_KEPT = timedelta(hours=24)
FETCH_TIMEOUT_S = 5.0
FETCH_BYTES_MAX = 64 << 10
PROVIDERS: Mapping[str, ModuleType] = {
    "sendgrid": sendgrid,
    "mailgun": mailgun,
    "postmark": postmark,
    "generic": generic,
}
SES = "ses"
logger = logging.getLogger("manta.http")

Fetch = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True)
class Source:
    """A provider with what proves its requests."""

    secrets: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()

    def __repr__(self) -> str:  # secrets never reach a log
        return f"Source({len(self.secrets)} secrets, topics={self.topics})"


def sources_of(
    settings: Sequence[WebhookSettings], environment: Mapping[str, str]
) -> dict[str, Source]:
    """The sources by provider. Raises ``InvalidRequest`` where a variable is not set."""
    found: dict[str, Source] = {}
    for one in settings:
        secrets = tuple(environment.get(one.secret_env, "").split())
        if one.secret_env and not secrets:
            raise InvalidRequest(
                f"the variable {one.secret_env} is not set",
                path="webhooks.secret_env",
                expected=f"the secret of {one.provider}",
            )
        before = found.get(one.provider, Source())
        found[one.provider] = Source(before.secrets + secrets, before.topics + one.topics)
    return found


class Webhooks:
    """The ASGI app behind its ``Guard``. ``fetch`` gets a URL's content, for certificates of SNS;
    it follows no redirect."""

    def __init__(
        self, handles: Handles, keys: LinkKeys, sources: Mapping[str, Source], fetch: Fetch
    ) -> None:
        self._shards = handles.shards
        self._clock = handles.clock
        self._keys = keys
        self._sources = sources
        self._fetch = fetch
        self._certificates: dict[str, tuple[datetime, bytes]] = {}
        self._tokens: dict[str, bytes] = {}  # of Mailgun, the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _lifespan(receive, send)
            return
        provider = scope["path"].removeprefix(scope.get("root_path", "")).strip("/")
        if provider not in self._sources:
            await send_problem(send, problem("not_found", "there is no such address"))
        elif scope["method"] != "POST":
            document = problem("method", "webhooks are sent by POST")
            await send_problem(send, document, {"Allow": "POST"})
        else:
            try:
                body = await read_body(scope, receive, BODY_BYTES_MAX)
                await self._take(provider, _headers(scope), body, send)
            except MantaError as error:
                document, headers = of_error(error)
                headers.pop("WWW-Authenticate", None)  # no API key would help
                await send_problem(send, document, headers)

    async def _take(self, provider: str, headers: Headers, body: bytes, send: Send) -> None:
        source, now = self._sources[provider], self._clock.now()
        if provider == SES:
            events = await self._of_ses(source, body, now)
        else:
            module = PROVIDERS[provider]
            module.verify(headers, body, source.secrets, now)
            if module is mailgun:
                self._refuse_another(mailgun.token_of(body), body)
            events = module.events(body)
        if len(events) > EVENTS_MAX:
            raise TooLarge(f"{len(events):,} events in one request", limit_events=EVENTS_MAX)
        counts = await self._record(provider, events, now)
        answer = encode(counts)
        length = (b"content-length", b"%d" % len(answer))
        kind = (b"content-type", b"application/json")
        await send({"type": "http.response.start", "status": 200, "headers": [kind, length]})
        await send({"type": "http.response.body", "body": answer})

    def _refuse_another(self, token: str, body: bytes) -> None:
        """Raises ``Unauthorized`` where the token came with another body before."""
        digest = sha256(body).digest()
        if self._tokens.setdefault(token, digest) != digest:
            raise refused()
        while len(self._tokens) > TOKENS_MAX:
            del self._tokens[next(iter(self._tokens))]

    async def _record(
        self, provider: str, events: Sequence[ProviderEvent], now: datetime
    ) -> dict[str, int]:
        """Store what the events say. Raises the first fault after which a retry may help."""
        keyring = await self._keys.current() if events else None
        commands = [command_of(provider, event, keyring, now) for event in events]
        wanted = [command for command in commands if command is not None]
        limit = asyncio.Semaphore(AT_ONCE_MAX)

        async def one(command: Report) -> bool:
            async with limit:
                return (await report(self._shards, command, CALL_DEADLINE_S)).counted

        results = await asyncio.gather(*map(one, wanted), return_exceptions=True)
        counts = {"recorded": 0, "repeated": 0, "ignored": len(events) - len(wanted)}
        for result in results:
            if isinstance(result, InvalidRequest) and not isinstance(result, RetryableError):
                counts["ignored"] += 1
                logger.info("an event of %s is ignored: %s", provider, result.code)
            elif isinstance(result, BaseException):
                raise result
            else:
                counts["recorded" if result else "repeated"] += 1
        return counts

    # -- SES ---------------------------------------------------------------------------------------

    async def _of_ses(self, source: Source, body: bytes, now: datetime) -> list[ProviderEvent]:
        envelope = ses.envelope_of(body, source.topics, now)
        ses.verify(envelope, await self._certificate(envelope.certificate_url, now), now)
        if envelope.type == ses.CONFIRMATION:
            await self._fetched(ses.confirmation_url(envelope))
            logger.info("the subscription to a topic of SNS is confirmed")
        return ses.events(envelope) if envelope.type == ses.NOTIFICATION else []

    async def _certificate(self, url: str, now: datetime) -> bytes:
        kept = self._certificates.get(url)
        if kept is not None and now - kept[0] < CERTIFICATE_KEPT:
            return kept[1]
        certificate = await self._fetched(url)
        while len(self._certificates) >= CERTIFICATES_MAX:
            self._certificates.pop(next(iter(self._certificates)))
        self._certificates[url] = (now, certificate)
        return certificate

    async def _fetched(self, url: str) -> bytes:
        """Raises ``RetryableError`` where it cannot be had now, ``Unauthorized`` where it is not
        there."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                return await self._fetch(url)
        except (httpx.TransportError, TimeoutError):
            raise RetryableError("SNS does not answer") from None
        except httpx.HTTPStatusError:
            raise refused() from None


def command_of(
    provider: str, event: ProviderEvent, keyring: Keyring | None, now: datetime
) -> Report | None:
    """What an event does; ``None``: nothing."""
    key, source = f"webhook:{provider}:{event.id}", f"webhook:{provider}"
    at, ref = event.occurred_at or now, _ref_of(event, keyring, now)
    if ref is not None and ref.subscriber_id == NOBODY:
        return None
    if event.kind == BOUNCED:
        said = (at, event.bounce_class, event.category, event.diagnostic, source, key)
        if ref is None:
            return RecordBounceOf(event.address, *said)
        return RecordBounce(ref, *said, recipient=event.address)
    if event.kind == COMPLAINED:
        kind = event.feedback_type or "abuse"
        if ref is None:
            return RecordComplaintOf(event.address, at, kind, source, key)
        return RecordComplaint(ref, at, kind, source, key, event.address)
    return None


def _ref_of(event: ProviderEvent, keyring: Keyring | None, now: datetime) -> MessageRef | None:
    if keyring is not None and event.return_path:
        try:
            return keyring.read_verp(event.return_path.strip("<>").rpartition("@")[0], now)[1]
        except InvalidRequest:
            pass
    return ref_of_message_id(event.message_id)


def create_webhooks(
    handles: Handles, keys: LinkKeys, sources: Mapping[str, Source], fetch: Fetch
) -> App:
    app = Webhooks(handles, keys, sources, fetch)
    return Guard(app, body_bytes_max=BODY_BYTES_MAX)


async def fetch(url: str) -> bytes:
    """A small document over https; no redirect is followed and no proxy of the environment used."""
    async with (
        httpx.AsyncClient(timeout=FETCH_TIMEOUT_S, trust_env=False) as client,
        client.stream("GET", url, follow_redirects=False) as response,
    ):
        if not response.is_success:
            raise httpx.HTTPStatusError("no", request=response.request, response=response)
        read = bytearray()
        async for chunk in response.aiter_bytes():
            read += chunk
            if len(read) > FETCH_BYTES_MAX:
                raise httpx.HTTPStatusError("large", request=response.request, response=response)
        return bytes(read)


def _headers(scope: Scope) -> Headers:
    return {name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]}  # fmt: skip


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        kind = message["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return
