"""The Segment tracking API under ``/v1``, and the web snippet's ``/v1/collect``.

A plain ASGI app inside the API's replica. The host of a Segment library is set to ours and its
write key to an API key with the scope ``events:write``; nothing else changes. An answer comes after
the commit: ``{"success": true}``, with what was refused or put into quarantine if there is any. A
request that is wrong as a whole is a problem with a 4xx status; so is one of which nothing could be
used.

**Public keys** (scope ``collect``) stand in web pages, so anybody has them. With one, a request
says what an anonymous visitor of one of the workspace's sites did, and nothing else: ids and
addresses of people are not looked at, traits and merges are left out. Who the visitor is, only the
signed token of a click can say (``manta.ingestion.visits``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json

from actors.handles import Handles
from manta.content.tokens import TokenKind
from manta.errors import Conflict, Forbidden, InvalidRequest, MantaError, Overloaded
from manta.ingestion import segment
from manta.ingestion.normalised import Normalised, Unfit
from manta.ingestion.visits import check_age
from manta.people.identifying import living, owners
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, PHONE, compared
from manta.traffic.networks import TrustedProxies
from serve_apps import reads
from serve_apps.auth import Authenticator, Caller
from serve_apps.collect.bodies import COMPRESSED_BYTES_MAX, json_object, unpacked, write_key
from serve_apps.collect.rates import CLIENT, PUBLIC, SERVER, Buckets, network
from serve_apps.collect.recording import Recorder
from serve_apps.collect.snippet import SNIPPET
from serve_apps.collect.taking import Arrived, Intake, Taken
from serve_apps.limits import App, Guard, Receive, Scope, Send, read_body
from serve_apps.links import LinkKeys
from serve_apps.problems import Malformed, TooMany, of_error, problem

SCOPE = "events:write"
PUBLIC_SCOPE = "collect"
BATCH, COLLECT, METRICS, SNIPPET_PATH = "batch", "collect", "metrics", "snippet.js"
ERRORS_SHOWN = 100
IDENTITIES_MAX = 500  # of a person to whom clicks tie further browsers
# Path below /v1 → the call; the short ones are those of analytics.js.
PATHS: Mapping[str, str] = {
    **{f"/{call}": call for call in segment.CALLS},
    "/batch": BATCH,
    "/import": BATCH,
    "/collect": COLLECT,
    "/i": "identify",
    "/t": "track",
    "/p": "page",
    "/s": "screen",
    "/g": "group",
    "/a": "alias",
    "/b": BATCH,
    "/m": METRICS,  # how analytics.js itself fares: taken and dropped
    "/snippet.js": SNIPPET_PATH,
}
_CORS = (
    (b"access-control-allow-origin", b"*"),  # keys are in the request, never in cookies
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", b"authorization, content-type, content-encoding"),
    (b"access-control-max-age", b"7200"),
)


class Collect:
    """The ASGI app behind its ``Guard``."""

    def __init__(
        self,
        handles: Handles,
        authenticator: Authenticator,
        keys: LinkKeys,
        producer: str,
        random: Random,
        trusted: TrustedProxies | None = None,
    ) -> None:
        self._handles = handles
        self._trusted = trusted or TrustedProxies(())
        self._clock = handles.clock
        self._authenticator = authenticator
        self._keys = keys
        self._random = random
        self._recorder = Recorder(handles.shards, f"collect:{producer}")
        self.intake = Intake(handles, self._recorder, producer)
        self._secret, self._public = Buckets(SERVER, self._clock), Buckets(PUBLIC, self._clock)
        self._clients = Buckets(CLIENT, self._clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        call, method = PATHS.get(path), scope["method"]
        try:
            if method == "OPTIONS":
                await _answer(send, 204, b"", ())
            elif call == SNIPPET_PATH and method in ("GET", "HEAD"):
                await _answer_script(send, method == "HEAD")
            elif call is None or method != "POST" or call == SNIPPET_PATH:
                await _refuse(send, problem("method", "data is sent by POST"))
            else:
                await _answer_json(send, await self._take(call, scope, receive))
        except MantaError as error:
            if isinstance(error, Overloaded):
                error = TooMany(error.message)
            await _refuse(send, *of_error(error))

    async def drain(self) -> None:
        await self._recorder.drain()

    async def _take(self, call: str, scope: Scope, receive: Receive) -> dict[str, Any]:
        headers = dict(scope["headers"])
        body = await read_body(scope, receive, COMPRESSED_BYTES_MAX)
        coding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        payload = json_object(unpacked(body, coding))
        if call == METRICS:
            return {"success": True}
        caller = await self._authenticator.key(write_key(headers, payload))
        is_public = await self._is_public(caller, headers)
        messages = _messages(call, payload)
        if is_public and (address := self._address(scope, headers)):
            # Before the key's own bucket, so that one client cannot empty it for all.
            self._clients.take(f"{caller.key_id} {network(address)}", len(messages))
        (self._public if is_public else self._secret).take(caller.key_id, len(messages))
        if is_public and payload.get("token") is not None:
            await self._tie(payload["token"], messages)
        source = await self.intake.knowledge.source_of_key(caller.key_id)
        arrived = self._arrived(source, messages, is_public)
        # What a public key sends is never kept for later: anybody could fill the quarantine.
        taken = await self.intake.take(source, arrived, keep_unfit=not is_public)
        return _summary(taken)

    def _address(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """The client's address, where the proxies before us are known; else empty."""
        peer = scope.get("client")
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        return self._trusted.client(peer[0] if peer else "", forwarded)

    async def _is_public(self, caller: Caller, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the key is one that everybody may have. Raises ``Forbidden``."""
        if SCOPE in caller.scopes:
            return False
        caller.require(PUBLIC_SCOPE)
        origin = headers.get(b"origin", b"").decode("latin-1")
        try:
            host = urlsplit(origin).hostname or ""
        except ValueError:
            host = ""
        if host.rstrip(".") not in await self.intake.knowledge.hosts():
            raise Forbidden(
                "a public key sends from the workspace's own sites alone",
                path="Origin",
                expected="a host of one of the sites",
            )
        return True

    def _arrived(
        self, source: Mapping[str, Any], messages: Sequence[Any], is_public: bool
    ) -> list[Arrived]:
        received_at = self._clock.now()
        arrived = []
        for message in messages:
            if isinstance(message, dict):
                message = segment.named(message, f"{self._random.getrandbits(128):032x}")
            found = segment.normalise(source, message, received_at)
            if is_public and not isinstance(found, Unfit):
                found = only_visitor(found)
            arrived.append(Arrived(to_json(message).decode(), found))
        return arrived

    async def _tie(self, token: Any, messages: Sequence[Any]) -> None:
        """The visitor is who clicked. An old token, or one of somebody who is gone, ties nobody."""
        visitors = {m.get("anonymousId") for m in messages if isinstance(m, dict)}
        if len(visitors) != 1 or not isinstance(token, str):
            raise InvalidRequest(
                "a token comes with the messages of one visitor", path="token", expected="one"
            )
        (visitor,) = visitors
        if not isinstance(visitor, str):
            raise InvalidRequest("anonymousId is missing", path="anonymousId")
        try:
            said = await self._keys.verify(token, TokenKind.VISIT)
            check_age(said, self._clock.now())
            now = await living(self._handles.shards, [said.subscriber_id])
            person = await reads.person(self._handles, now[said.subscriber_id])
        except InvalidRequest:
            return
        names = _names_of(person)
        is_room = len(person["identities"]) < IDENTITIES_MAX
        if names and is_room and not await self._has_named_themselves(visitor):
            await self.intake.tie({**names, ANONYMOUS_ID: visitor}, "click")

    async def _has_named_themselves(self, visitor: str) -> bool:
        """Whether the visitor is somebody known already: who follows a link in a mail that was
        forwarded to them stays who they are."""
        name = (ANONYMOUS_ID, compared(ANONYMOUS_ID, visitor))
        owner = (await owners(self._handles.shards, [name]))[name]
        if owner is None:
            return False
        now = await living(self._handles.shards, [owner])
        return bool(_names_of(await reads.person(self._handles, now[owner])))


def _names_of(person: Mapping[str, Any]) -> dict[str, str]:
    """One name by which a person is known, but for their browsers."""
    if person.get("email"):
        return {EMAIL: str(person["email"])}
    for identity in person.get("identities", ()):
        if identity["kind"] in (EXTERNAL_ID, PHONE):
            return {identity["kind"]: str(identity["value"])}
    return {}


def only_visitor(found: Sequence[Normalised]) -> Sequence[Normalised] | Unfit:
    """What a public key may say: what an anonymous visitor did, and nothing of a message in which
    nothing was done."""
    kept = []
    for said in found:
        visitor = said.identities.get(ANONYMOUS_ID)
        if visitor is None:
            return Unfit("anonymousId", "is missing: with a public key it names the visitor")
        if said.events:
            identities = {ANONYMOUS_ID: visitor}
            kept.append(replace(said, identities=identities, traits={}, consents=(), formerly=()))
    return kept


def _messages(call: str, payload: Mapping[str, Any]) -> list[Any]:
    """The messages of a request, each with its call. Raises ``Malformed``."""
    if call not in (BATCH, COLLECT):
        _check_size(payload, "")
        return [{**payload, "type": call}]
    batch = payload.get("batch")
    if not isinstance(batch, list) or not 1 <= len(batch) <= segment.BATCH_MESSAGES_MAX:
        raise Malformed(
            "batch is not a list of fitting length",
            path="batch",
            expected=f"1 to {segment.BATCH_MESSAGES_MAX:,} messages",
        )
    for n, message in enumerate(batch):
        _check_size(message, f"batch[{n}]")
    return [segment.opened(m, payload) if isinstance(m, dict) else m for m in batch]


def _check_size(message: Any, path: str) -> None:
    size = len(to_json(message))
    if size > segment.MESSAGE_BYTES_MAX:
        raise Malformed(
            f"a message has {size:,} bytes of JSON",
            path=path,
            expected=f"≤ {segment.MESSAGE_BYTES_MAX:,} bytes a message",
        )


# -- answers ---------------------------------------------------------------------------------------


def _summary(taken: Sequence[Taken]) -> dict[str, Any]:
    """What the sender is told. Raises where nothing of the request could be used."""
    troubles = []
    for index, each in enumerate(taken):
        if each.unfit is None and each.error is None:
            continue
        trouble: dict[str, Any] = {"index": index, "status": each.status}
        if each.unfit is not None:
            trouble |= {"path": each.unfit.path, "problem": each.unfit.problem}
            if each.quarantine_id:
                trouble["quarantine_id"] = str(each.quarantine_id)
        else:
            assert each.error is not None
            trouble["problem"] = each.error.message
        troubles.append(trouble)
    if troubles and not any(each.status in ("recorded", "repeated") for each in taken):
        first = taken[troubles[0]["index"]].error
        if isinstance(first, Conflict):
            raise first
        raise Malformed(
            f"no message fits: {troubles[0].get('path', '')} {troubles[0]['problem']}",
            path=troubles[0].get("path", ""),
            quarantined=sum(each.quarantine_id != 0 for each in taken),
        )
    document: dict[str, Any] = {"success": True}
    if troubles:
        document |= {"errors": troubles[:ERRORS_SHOWN], "errors_total": len(troubles)}
    return document


async def _answer(
    send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    listed = [*headers, *_CORS, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


async def _answer_json(send: Send, document: Mapping[str, Any]) -> None:
    headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
    await _answer(send, 200, to_json(document), headers)


async def _answer_script(send: Send, head: bool) -> None:
    headers = (
        (b"content-type", b"text/javascript; charset=utf-8"),
        (b"cache-control", b"public, max-age=3600"),
        (b"cross-origin-resource-policy", b"cross-origin"),
        (b"x-content-type-options", b"nosniff"),
    )
    await _answer(send, 200, b"" if head else SNIPPET, headers)


async def _refuse(
    send: Send, document: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    """A problem document with what the libraries read besides: ``message``."""
    listed = [
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
        *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items()),
    ]
    body = to_json({**document, "message": document["detail"]})
    await _answer(send, document["status"], body, listed)


def create_collect(
    handles: Handles,
    authenticator: Authenticator,
    producer: str,
    random: Random,
    trusted: TrustedProxies | None = None,
) -> tuple[App, Collect]:
    """The app behind its guard, and the app itself, whose ``intake`` replays what was in
    quarantine. ``producer`` names this incarnation of the replica."""
    keys = LinkKeys(handles.catalog, handles.workspace, handles.clock)
    collect = Collect(handles, authenticator, keys, producer, random, trusted)
    return Guard(collect, body_bytes_max=COMPRESSED_BYTES_MAX), collect
