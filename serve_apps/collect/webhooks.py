"""Webhooks of sources: ``POST /v1/sources/<id>/webhook``, inside the API's replica.

Nothing in a request is believed before it is proven to be the source's (401 otherwise, with no word
on what was wrong; ``manta.ingestion.signatures``). It is answered after the commit: 200 with what
became of it. What fits no shape is answered 200 too, since sending it again would not help: it
waits in quarantine. A topic that means nothing here is answered 200 and counted as ``ignored``; it
is kept nowhere. When the quarantine is full, 503: the sender tries again, and nothing is lost.
Beyond ``RATE`` a source is answered 429 with Retry-After.

What a shop asks a person to do (``manta.ingestion.shopify.PRIVACY_TOPICS``) goes to quarantine
under ``privacy:<source>``, where it stays until somebody discards it.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json

from actors.handles import Handles
from manta.clock import as_text
from manta.errors import Conflict, MantaError, Overloaded
from manta.ingestion import mapping, shopify, woocommerce
from manta.ingestion.normalisers import NORMALISERS
from manta.ingestion.signatures import is_signed
from manta.ingestion.sources import HOOKED, PRIVACY, living_secrets
from serve_apps.collect.bodies import unpacked
from serve_apps.collect.rates import Buckets, Rate
from serve_apps.collect.taking import Arrived, Intake, Taken
from serve_apps.limits import App, Guard, Receive, Scope, Send, read_body
from serve_apps.problems import Malformed, TooMany, Unauthorized, of_error, problem, send_problem

PATH = re.compile(r"/sources/([1-9][0-9]{0,9})/webhook/?")
BODY_BYTES_MAX = 512 << 10
RATE = Rate(per_s=500, burst=5_000)  # messages of one source
COUNTED_MAX = 1_000  # sources
TOPICS_COUNTED_MAX = 50  # of one source
QUARANTINE_RETRY_S = 300
_PING = re.compile(rb"webhook_id=[0-9]{1,12}")

Headers = Mapping[str, str]
Document = Mapping[str, Any]


class Counts:
    """What became of the webhooks of each source since this replica began."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[Counter[str], Counter[str]]] = OrderedDict()
        self._last: dict[int, str] = {}

    def add(self, source_id: int, what: str, at: str, topic: str = "", number: int = 1) -> None:
        counts, ignored = self._kept.setdefault(source_id, (Counter(), Counter()))
        counts[what] += number
        if topic and (topic in ignored or len(ignored) < TOPICS_COUNTED_MAX):
            ignored[topic] += number
        self._last[source_id] = at
        while len(self._kept) > COUNTED_MAX:
            self._last.pop(self._kept.popitem(last=False)[0], None)

    def of(self, source_id: int) -> dict[str, Any]:
        counts, ignored = self._kept.get(source_id, (Counter(), Counter()))
        return {
            **counts,
            "ignored_topics": dict(ignored),
            "last_at": self._last.get(source_id),
        }


class Webhooks:
    """The ASGI app behind its ``Guard``."""

    def __init__(self, handles: Handles, intake: Intake) -> None:
        self._clock = handles.clock
        self._intake = intake
        self._buckets = Buckets(RATE, handles.clock)
        self.counts = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        match = PATH.fullmatch(path)
        assert match is not None, "the router sends such paths alone"
        if scope["method"] != "POST":
            document = problem("method", "webhooks are sent by POST")
            await send_problem(send, document, {"Allow": "POST"})
            return
        try:
            body = await read_body(scope, receive, BODY_BYTES_MAX)
            answer = await self._take(int(match[1]), _headers(scope), body)
        except MantaError as error:
            if isinstance(error, Overloaded) and "retry_after_s" not in error.details:
                error = TooMany(error.message)
            document, headers = of_error(error)
            headers.pop("WWW-Authenticate", None)  # no API key would help
            await send_problem(send, document, headers)
            return
        await _answer(send, answer)

    async def _take(self, id: int, headers: Headers, body: bytes) -> Document:
        source = await self._intake.knowledge.source_of_id(id)
        if source is None or source["kind"] not in HOOKED:
            raise _refused()  # as for a wrong signature: who asks learns nothing of what is there
        kind, now = source["kind"], self._clock.now()
        if kind == woocommerce.KIND and _PING.fullmatch(body):
            return {"success": True}  # sent unsigned when a webhook is saved; it says nothing
        if not is_signed(kind, headers, body, living_secrets(source, now), now):
            self.counts.add(id, "unauthorized", as_text(now))
            raise _refused()
        payload = _payload(kind, headers, _json(headers, body))
        bodies = mapping.bodies(source, payload) if kind == mapping.KIND else [payload]
        self._buckets.take(str(id), len(bodies))
        is_test = headers.get("x-shopify-test") == "true"  # by hand, from the shop's settings
        found = [[] if is_test else NORMALISERS[kind](source, each, now) for each in bodies]
        heard = [n for n, each in enumerate(found) if each != []]
        arrived = [Arrived(to_json(bodies[n]).decode(), found[n]) for n in heard]
        if kind == shopify.KIND and shopify.is_privacy_request(payload):
            source = {**source, "name": f"{PRIVACY}{source['name']}"}
        taken = await self._intake.take(source, arrived) if arrived else []
        return self._summary(id, taken, len(bodies) - len(heard), _topic(payload))

    def _summary(self, id: int, taken: list[Taken], ignored: int, topic: str) -> Document:
        at = as_text(self._clock.now())
        counts = Counter(each.status for each in taken)
        for status, number in counts.items():
            self.counts.add(id, status, at, number=number)
        if ignored:
            self.counts.add(id, "ignored", at, topic, ignored)
        if any(isinstance(each.error, Conflict) for each in taken):
            raise Overloaded(
                "what fits no shape waits in quarantine, which is full",
                retry_after_s=QUARANTINE_RETRY_S,
            )
        wrong = [
            {"path": each.unfit.path, "problem": each.unfit.problem, "id": str(each.quarantine_id)}
            for each in taken
            if each.unfit is not None
        ]
        answer: dict[str, Any] = {"success": True, **counts}
        if ignored:
            answer["ignored"] = ignored
        return answer | ({"unfit": wrong[:20]} if wrong else {})


def _payload(kind: str, headers: Headers, document: Any) -> Any:
    """The document with what the headers say of it, in the form that normalisers read."""
    if kind == shopify.KIND:
        names = {
            "topic": "x-shopify-topic",
            "id": "x-shopify-event-id",
            "shop": "x-shopify-shop-domain",
            "at": "x-shopify-triggered-at",
        }
    elif kind == woocommerce.KIND:
        names = {
            "topic": "x-wc-webhook-topic",
            "id": "x-wc-webhook-delivery-id",
            "shop": "x-wc-webhook-source",
        }
    else:
        return document
    said = {name: headers[header][:300] for name, header in names.items() if header in headers}
    return {**said, "payload": document}


def _topic(payload: Any) -> str:
    found = payload.get("topic") or payload.get("type") if isinstance(payload, dict) else None
    return found[:80] if isinstance(found, str) else ""


def _json(headers: Headers, body: bytes) -> Any:
    plain = unpacked(body, headers.get("content-encoding", "").strip().lower(), BODY_BYTES_MAX)
    try:
        return from_json(plain, allow_inf_nan=False)
    except ValueError as error:
        raise Malformed(f"the body is not JSON in UTF-8: {error!s:.100}", path="") from None


def _headers(scope: Scope) -> Headers:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }


def _refused() -> Unauthorized:
    return Unauthorized("this webhook is not signed as it has to be, or too old")


async def _answer(send: Send, document: Document) -> None:
    body = to_json(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def create_webhooks(handles: Handles, intake: Intake) -> tuple[App, Webhooks]:
    """The app behind its guard, and the app itself, which counts."""
    app = Webhooks(handles, intake)
    return Guard(app, body_bytes_max=BODY_BYTES_MAX), app
