"""The sandbox as one actor: providers take mail, and people act on what they got.

Providers answer as their models do; what they tell later (bounces, complaints, automatic replies)
comes back to the inbox by real SMTP. People open, click and unsubscribe through the real tracking
URLs, or unsubscribe by mail, and buy through the ingest API with a real key. All servers run on the
actor's event loop, but the DNS, which has a thread. Losing this process loses only what was still
to come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from manta.clock import Clock, as_text
from manta.delivery.rehearsal.behaviour import Behaviour, Later, LaterKind, behaviours
from manta.ids import hash64
from sandbox import postman
from sandbox.dns import DnsServer, serve_dns
from sandbox.mailboxes import Mailboxes
from sandbox.network import Network, server_tls
from sandbox.people import Act, acts_on
from sandbox.postman import Original, Postman
from sandbox.provider import Provider, Taken

WAITING_MAX = 50_000
HTTP_AT_ONCE = 16
BY_MAIL_PART = 4  # one of so many who unsubscribe does it by mail
NOTICED_AFTER_S = 2.5  # no person acts on a mail sooner: see docs/traffic.md
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
logger = logging.getLogger("manta.sandbox")


@dataclass(frozen=True)
class TownSettings:
    """All providers listen at ``smtp_port``, the DNS at ``dns_port`` of 127.0.0.1. ``inbox_port``
    0: nothing is sent back. ``known``: by the model's name, messages a day that a source's
    address has brought until now; other sources are strangers. ``changes``: fields of models.

    ``haste`` divides every pause of the people, who do nothing unless ``alive``; ``speed`` is how
    fast the time of the providers runs.
    """

    mail_file: Path
    smtp_port: int
    dns_port: int
    inbox_port: int = 0
    network: Network = field(default_factory=Network)
    known: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 1
    alive: bool = True
    haste: float = 1.0
    speed: float = 1.0
    product: str = "sku-7"


class Town:
    """Started by the actor's host, on its loop."""

    def __init__(self, settings: TownSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._mailboxes = Mailboxes(settings.mail_file)
        self._dns: DnsServer | None = None
        self._zone = settings.network.zone()
        self._limit = asyncio.Semaphore(HTTP_AT_ONCE)
        self._http = httpx.AsyncClient(
            headers={"User-Agent": BROWSER}, follow_redirects=False, timeout=20
        )
        self._providers: dict[str, Provider] = {}
        self._hosts = settings.network.hosts
        name = "mx.sandbox.example"
        self._postman = Postman("127.0.0.1", settings.inbox_port, name)
        self._post: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._later: dict[str, Counter[str]] = {}
        self._first_mail_at: str | None = None
        self._ingest_url = self._api_key = ""

    async def start(self) -> None:
        settings = self._settings
        self._dns = serve_dns(self._zone, port=settings.dns_port)
        tls = server_tls(settings.mail_file.parent)
        for name, hosts in self._hosts.items():
            model = replace(behaviours()[name], **settings.changes.get(name, {}))
            behaviour = Behaviour(model, settings.seed)
            provider = Provider(behaviour, self._clock, self._take, tls, settings.speed)
            for source, per_day in settings.known.get(name, {}).items():
                behaviour.know(source, per_day, provider.now_s())
            await provider.listen(hosts, settings.smtp_port)
            self._providers[name] = provider
            self._later[name] = Counter()
        if settings.inbox_port:
            self._post = asyncio.ensure_future(self._postman.run())

    async def stop(self) -> None:
        """End what runs. The mailboxes stay."""
        for task in (*self._waiting, *([self._post] if self._post else [])):
            task.cancel()
        for provider in self._providers.values():
            provider.stop()
        if self._dns is not None:
            await asyncio.to_thread(self._dns.stop)
        await self._http.aclose()
        self._mailboxes.close()

    async def ready(self) -> bool:
        """Whether everybody listens."""
        return len(self._providers) == len(self._hosts)

    async def live(self, ingest_url: str, api_key: str) -> None:
        """Where purchases are told, and with which key; until then nobody buys."""
        self._ingest_url, self._api_key = ingest_url, api_key

    async def publish(self, records: Sequence[tuple[str, str, str]]) -> None:
        """Lay (name, type, value) records into the DNS, such as DKIM keys."""
        for name, kind, value in records:
            entry = {**self._zone.get(name, {}), kind: [value]}
            self._zone[name] = entry

    async def status(self) -> dict[str, Any]:
        """``providers``: by name, messages by what was answered and by what came of them later."""
        return {
            "mails": self._counts["mail"],
            "first_mail_at": self._first_mail_at,
            "acts": {kind: n for kind, n in self._counts.items() if kind != "mail"},
            "waiting": len(self._waiting) + self._postman.waiting,
            "providers": {
                name: {**provider.counts, **self._later[name]}
                for name, provider in self._providers.items()
            },
            "returned": dict(self._postman.counts),
        }

    # -- mail --------------------------------------------------------------------------------------

    def _take(self, provider: Provider, taken: Taken) -> None:
        """A message was answered 250."""
        received_at = as_text(self._clock.now())
        later = provider.behaviour.later(taken.rcpt_to, taken.mail_from)
        is_lost = any(each.kind is LaterKind.DSN for each in later)
        id = 0
        if not is_lost:
            id = self._mailboxes.deliver(received_at, taken.mail_from, taken.rcpt_to, taken.raw)
            self._counts["mail"] += 1
            self._first_mail_at = self._first_mail_at or received_at
        for each in later:
            self._spawn(
                each.after_s / self._settings.speed, self._tell_back, provider, taken, each, id
            )
        if not later and self._settings.alive:
            self._act_on(id, taken.rcpt_to)

    async def _tell_back(self, provider: Provider, taken: Taken, later: Later, id: int) -> None:
        original, now = Original(*taken), self._clock.now()
        host = self._hosts[provider.name][0][0]
        self._later[provider.name][later.kind] += 1
        letter = None
        if later.kind is LaterKind.DSN and later.told is not None:
            letter = postman.bounce(original, host, later.told, now)
        elif later.kind is LaterKind.AUTO_REPLY:
            letter = postman.auto_reply(original, now)
        elif later.kind is LaterKind.COMPLAINT:
            provider.behaviour.complained(taken.source, provider.now_s())
            self._mailboxes.note(id, "complain", as_text(now))
            if provider.behaviour.model.has_feedback_loop:
                feedback = f"fbl@{self._settings.network.return_path_domain}"
                letter = postman.complaint(original, host, feedback, now)
        if letter is not None and self._settings.inbox_port:
            self._postman.post(letter)

    # -- people ------------------------------------------------------------------------------------

    def _act_on(self, id: int, address: str) -> None:
        mail = self._mailboxes.get(id)
        if mail is None:
            return
        unsubscribe = self._way_to_unsubscribe(address, mail.header("List-Unsubscribe"))
        for act in acts_on(self._settings.seed, address, mail.body("html"), unsubscribe):
            if act.kind != "buy" or self._ingest_url:
                after_s = NOTICED_AFTER_S + act.after_s / self._settings.haste
                self._spawn(after_s, self._act, id, address, act)

    def _way_to_unsubscribe(self, address: str, header: str) -> str:
        """One of the URIs of List-Unsubscribe, as the person's mail program prefers."""
        uris = [part.strip().strip("<>") for part in header.split(",")]
        by_mail = [uri for uri in uris if uri.startswith("mailto:")]
        by_web = [uri for uri in uris if uri.startswith("http")]
        prefers_mail = hash64("unsubscribes by", self._settings.seed, address) % BY_MAIL_PART == 0
        if self._settings.inbox_port and by_mail and (prefers_mail or not by_web):
            return by_mail[0]
        return by_web[0] if by_web else ""

    async def _act(self, mail_id: int, address: str, act: Act) -> None:
        if act.url.startswith("mailto:"):
            self._postman.post(postman.unsubscribe(address, act.url, self._clock.now()))
        elif not await self._has_performed(mail_id, address, act):
            return
        self._counts[act.kind] += 1
        self._mailboxes.note(mail_id, act.kind, as_text(self._clock.now()))

    async def _has_performed(self, mail_id: int, address: str, act: Act) -> bool:
        async with self._limit:
            try:
                response = await self._perform(mail_id, address, act)
            except httpx.HTTPError as error:
                logger.info("%s could not %s: %s", address, act.kind, error)
                return False
        if response.status_code >= 400:
            logger.info("%s could not %s: HTTP %d", address, act.kind, response.status_code)
        return response.status_code < 400

    async def _perform(self, mail_id: int, address: str, act: Act) -> httpx.Response:
        if act.kind == "unsubscribe":
            return await self._http.post(act.url, data={"List-Unsubscribe": "One-Click"})
        if act.kind == "buy":
            event = {
                "id": f"sandbox-{self._settings.seed}-{mail_id}",
                "email": address,
                "type": "purchased",
                "item": self._settings.product,
                "amount": act.amount,
            }
            return await self._http.post(
                self._ingest_url,
                json=event,
                headers={"Authorization": f"Bearer {self._api_key}"},
            )
        return await self._http.get(act.url)

    def _spawn(self, after_s: float, act: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        if len(self._waiting) >= WAITING_MAX:
            return
        task = asyncio.ensure_future(_after(after_s, act, *arguments))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)


async def _after(after_s: float, act: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    await asyncio.sleep(after_s)
    await act(*arguments)
