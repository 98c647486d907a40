"""The preference page (``/p/…``) and the confirmation of a sign-up (``/s/…``), behind signed links.

Plain ASGI. Whoever holds the link, which was in a mail to the address, decides for its person: the
token is the whole authority. There is no cookie and no session, so there is nothing that another
site could ride on (no CSRF): to forge a request is to have the link. A page shows the address
masked and no other data, since mails are passed on.

- ``GET`` changes nothing, since link scanners fetch everything; only ``POST`` does, at once, and
  answers with the page as it is now.
- ``POST /p/…`` touches what its page had shown (``shown``), or withdraws everything (``leave``).
- ``POST /s/…`` confirms the topics that its page had shown.
- A person's own choice lifts what stops marketing for their own sake; a crash between the two
  commits leaves them stopped, and pressing again mends it.
- The links of a test mail name nobody: their pages look the same and nothing is stored.

Who was merged is followed to whom they are now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from actors.handles import Handles
from manta.clock import as_text, parse_instant
from manta.command import Command
from manta.content.tokens import Payload, TokenKind
from manta.delivery.returns.reporting import on_address
from manta.errors import InvalidRequest, MantaError, NotFound
from manta.ids import NOBODY
from manta.people import topics as topics_of
from manta.people.consents import (
    ALL_TOPICS,
    CHANNELS,
    SUBSCRIBED_TO,
    TEXT_LENGTH_MAX,
    WAITING,
    Unsubscribe,
)
from manta.people.double_opt_in import ConfirmConsents
from manta.people.over_shards import execute_for
from manta.people.preferences import Choice, SetPreferences
from manta.people.suppressions import LIFTED_BY_CONSENT, LiftSuppression
from manta.privacy.commands import LiftErasure
from manta.traffic.networks import TrustedProxies
from serve_apps import landing, reads
from serve_apps.limits import (
    BODY_TIME_S,
    CALL_DEADLINE_S,
    ClientGone,
    Receive,
    Scope,
    Send,
    read_body,
)
from serve_apps.links import LinkKeys
from serve_apps.preferences import pages
from serve_apps.preferences.pages import Offer, Shown
from serve_apps.preferences.texts import language_for, texts
from serve_apps.problems import RETRY_AFTER_S, TooLarge

FORM_BYTES_MAX = 256 << 10
FIELDS_MAX = 2_100  # two for each box and a few
TOPICS_KEPT_S = 10.0
SOURCE = "preference_page"
_KINDS = {"/p/": TokenKind.PREFERENCES, "/s/": TokenKind.CONFIRM}
_START = "http.response.start"
logger = logging.getLogger("manta.http")


@dataclass(frozen=True)
class _Asked:
    """One request: whose, with what, by whom."""

    said: Payload
    language: str  # of the browser
    proof: dict[str, str]


class Preferences:
    """The ASGI app for ``/p/`` and ``/s/``; ``handles_path`` says which requests are its."""

    def __init__(
        self, handles: Handles, keys: LinkKeys, trusted: TrustedProxies | None = None
    ) -> None:
        self._handles = handles
        self._keys = keys
        self._trusted = trusted or TrustedProxies(())
        self._topics: dict[str, dict[str, Any]] = {}
        self._topics_until_s = float("-inf")

    @staticmethod
    def handles_path(path: str) -> bool:
        return path[:3] in _KINDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        language = language_for(None, _header(scope, b"accept-language"))
        status, body = await self._answered(path, method, language, scope, receive)
        if status:
            await _send(send, status, body, method == "HEAD")

    async def _answered(
        self, path: str, method: str, language: str, scope: Scope, receive: Receive
    ) -> tuple[int, bytes]:
        kind = _KINDS[path[:3]]
        try:
            said = await self._keys.verify(path[3:], kind)
        except NotFound:
            return 404, pages.plain(language, "not_valid")
        except MantaError:
            return 503, pages.plain(language, "try_again")
        asked = _Asked(said, language, self._proof(scope))
        confirms = kind is TokenKind.CONFIRM
        try:
            if method in ("GET", "HEAD"):
                return await (self._confirmation(asked) if confirms else self._page(asked))
            if method != "POST":
                return 405, pages.plain(language, "not_valid")
            async with asyncio.timeout(BODY_TIME_S):
                form = _form(await read_body(scope, receive, FORM_BYTES_MAX))
            # A task of its own: a client that leaves does not stop it.
            work = self._confirm(asked, form) if confirms else self._save(asked, form)
            return await asyncio.shield(asyncio.ensure_future(work))
        except ClientGone:
            return 0, b""
        except NotFound:
            return 410, pages.plain(language, "gone")
        except (InvalidRequest, TooLarge, TimeoutError):
            return 400, pages.plain(language, "try_again")
        except MantaError as error:
            logger.warning("%s is refused: %s", path[:3], error)
            return 503, pages.plain(language, "try_again")

    # -- the preference page -----------------------------------------------------------------------

    async def _page(self, asked: _Asked, said: str = "") -> tuple[int, bytes]:
        person = await self._person(asked.said.subscriber_id)
        language = language_for(person["locale"], "") if person["locale"] else asked.language
        shown = Shown(
            language,
            pages.masked(person["email"]),
            await self._offers(person, person["locale"] or language),
            said,
            any(each["reason"] not in LIFTED_BY_CONSENT for each in person["suppressions"]),
        )
        return 200, pages.preferences(shown)

    async def _offers(self, person: dict[str, Any], locale: str) -> list[Offer]:
        """A box for each public topic, and for others that the person has or once had."""
        topics = await self._known_topics()
        held = {(c["channel"], c["topic"]): c for c in person["consents"]}
        offered = [
            (channel, topic["name"])
            for topic in topics.values()
            for channel in topic["channels"]
            if topic["public"] or _is_wanted(held.get((channel, topic["name"])))
        ]
        offered += [
            key
            for key, consent in held.items()
            if key not in offered and key[1] != ALL_TOPICS and _is_wanted(consent)
        ]
        now = self._handles.clock.now()
        offers = []
        for channel, name in sorted(offered, key=lambda key: CHANNELS.index(key[0])):
            topic, consent = topics.get(name), held.get((channel, name))
            waits = consent is not None and _waits(consent, now)
            offers.append(
                Offer(
                    channel,
                    name,
                    topics_of.title(topic, locale) if topic else name,
                    topics_of.description(topic, locale) if topic else "",
                    consent is not None and consent["status"] == SUBSCRIBED_TO,
                    waits,
                )
            )
        return offers

    async def _save(self, asked: _Asked, form: list[tuple[str, str]]) -> tuple[int, bytes]:
        fields = dict(form)
        leaves = fields.get("action") == "leave"
        if not leaves and fields.get("action", "save") != "save":
            raise InvalidRequest("nothing is asked for", path="action")
        language = fields.get("language")
        language = language if language in texts() else None
        if asked.said.subscriber_id == NOBODY:
            return await self._page(replace(asked, language=language or asked.language), "saved")
        if leaves:
            await self._leave(asked)
        else:
            await self._choose(asked, form, language)
        return await self._page(asked, "left" if leaves else "saved")

    async def _leave(self, asked: _Asked) -> None:
        proof = asked.proof | {"method": "page", "at": as_text(self._handles.clock.now())}
        message = asked.said.message_key
        for channel in CHANNELS:

            def leave(id: int, channel: str = channel) -> Unsubscribe:
                return Unsubscribe(None, id, message, None, SOURCE, channel, proof)

            await self._for_person(asked.said.subscriber_id, leave)

    async def _choose(
        self, asked: _Asked, form: list[tuple[str, str]], language: str | None
    ) -> None:
        ticked = {value for name, value in form if name == "topic"}
        shown = dict.fromkeys(value for name, value in form if name == "shown")
        choices = []
        for value in shown:
            channel, _, topic = value.partition(":")
            choices.append(Choice(channel, topic, value in ticked))
        person = await self._person(asked.said.subscriber_id)
        # A page in the browser's language is no choice of one; nor is de for somebody with de-AT.
        now_in = language_for(person["locale"], "") if person["locale"] else asked.language
        proof = asked.proof | {"method": "page", "at": as_text(self._handles.clock.now())}
        chosen = language if language != now_in else None

        def choose(id: int) -> SetPreferences:
            mail = asked.said.ref
            return SetPreferences(None, id, tuple(choices), chosen, SOURCE, proof, mail)

        saved = await self._for_person(asked.said.subscriber_id, choose)
        if saved.wanted:
            await self._lift(saved.email, saved.is_erased)

    # -- the confirmation --------------------------------------------------------------------------

    async def _confirmation(self, asked: _Asked) -> tuple[int, bytes]:
        person = await self._person(asked.said.subscriber_id)
        language = language_for(person["locale"], "") if person["locale"] else asked.language
        now = self._handles.clock.now()
        waiting = [
            c["topic"] for c in person["consents"] if c["channel"] == "email" and _waits(c, now)
        ]
        if asked.said.subscriber_id == NOBODY:
            waiting = list(await self._known_topics())[:1] or ["newsletter"]
        if not waiting:
            return 410, pages.plain(language, "expired_title")
        titles = await self._titles(waiting, person["locale"] or language)
        listed = list(zip(waiting, titles, strict=True))
        return 200, pages.confirmation(language, pages.masked(person["email"]), listed)

    async def _confirm(self, asked: _Asked, form: list[tuple[str, str]]) -> tuple[int, bytes]:
        topics = tuple(dict.fromkeys(value for name, value in form if name == "topic"))
        if asked.said.subscriber_id == NOBODY:
            return 200, pages.confirmed(asked.language, topics)
        person = await self._person(asked.said.subscriber_id)
        language = language_for(person["locale"], "") if person["locale"] else asked.language

        def confirm(id: int) -> ConfirmConsents:
            page, mail = "confirmation_page", asked.said.ref
            return ConfirmConsents(None, id, topics, page, asked.proof, mail=mail)

        confirmed = await self._for_person(asked.said.subscriber_id, confirm)
        if not confirmed.topics:
            return 410, pages.plain(language, "expired_title")
        await self._lift(confirmed.email, confirmed.is_erased)
        titles = await self._titles(confirmed.topics, person["locale"] or language)
        return 200, pages.confirmed(language, titles)

    # -- what both need ----------------------------------------------------------------------------

    async def _lift(self, email: str | None, is_erased: bool) -> None:
        """The person wants mail again: what stopped marketing for their own sake goes."""
        if email is None:
            return
        if is_erased:
            erasure = LiftErasure(None, "email", email)
            await self._handles.shards.execute_all(erasure, CALL_DEADLINE_S)
        lift = LiftSuppression(None, "email", email, SOURCE, "own act", LIFTED_BY_CONSENT)
        await on_address(self._handles.shards, lift, CALL_DEADLINE_S)

    async def _person(self, subscriber_id: int) -> dict[str, Any]:
        """Raises ``NotFound``."""
        if subscriber_id == NOBODY:
            return {"email": "you@example.com", "locale": None, "consents": [], "suppressions": []}
        return await reads.person(self._handles, subscriber_id)

    async def _for_person(self, subscriber_id: int, command: Callable[[int], Command]) -> Any:
        """The answer of a command about a person, wherever they are by now."""
        return await execute_for(self._handles.shards, subscriber_id, command, CALL_DEADLINE_S)

    def _proof(self, scope: Scope) -> dict[str, str]:
        """What is known of who presses the button; the address, where proxies we trust say it."""
        peer = scope.get("client")
        forwarded = ",".join(_headers(scope, b"x-forwarded-for"))
        said = {
            "ip": self._trusted.client(peer[0] if peer else "", forwarded),
            "page": scope["path"][:3],
            "user_agent": _header(scope, b"user-agent"),
        }
        return {name: text for name, value in said.items() if (text := _clean(value))}

    async def _titles(self, names: Any, locale: str) -> list[str]:
        topics = await self._known_topics()
        return [topics_of.title(topics[n], locale) if n in topics else n for n in names]

    async def _known_topics(self) -> dict[str, dict[str, Any]]:
        if self._handles.clock.monotonic() >= self._topics_until_s:
            found = await self._handles.catalog.call(
                "list", topics_of.COLLECTION, deadline_s=CALL_DEADLINE_S
            )
            self._topics = topics_of.named(sorted(found, key=lambda topic: topic["id"]))
            self._topics_until_s = self._handles.clock.monotonic() + TOPICS_KEPT_S
        return self._topics


def front(preferences: Preferences, otherwise: Any) -> Any:
    """Tracking's app with the recipients' pages beside it."""

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and preferences.handles_path(scope["path"]):
            await preferences(scope, receive, send)
        else:
            await otherwise(scope, receive, send)

    return choose


def _is_wanted(consent: dict[str, Any] | None) -> bool:
    return consent is not None and consent["status"] in (SUBSCRIBED_TO, WAITING)


def _waits(consent: dict[str, Any], now: datetime) -> bool:
    ends = consent.get("expires_at")
    return consent["status"] == WAITING and (ends is None or parse_instant(ends) > now)


def _form(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode("ascii"), max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:
        raise InvalidRequest("this is not a form of ours", path="body") from None


def _clean(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[: TEXT_LENGTH_MAX // 2]


def _header(scope: Scope, wanted: bytes) -> str:
    return next(iter(_headers(scope, wanted)), "")


def _headers(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


async def _send(send: Send, status: int, body: bytes, head: bool) -> None:
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store, max-age=0"),
        (b"content-security-policy", landing.CONTENT_SECURITY_POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-robots-tag", b"noindex, nofollow"),
    ]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if status == 405:
        headers.append((b"allow", b"GET, HEAD, POST"))
    await send({"type": _START, "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
