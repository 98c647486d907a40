"""The sandbox as one actor: the provider takes mail, and its people act on what they got.

People open, click and unsubscribe through the real tracking URLs, and buy through the ingest API
with a real key. Losing this process loses only the acts that were still to come.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from manta.clock import Clock, as_text
from sandbox.mailboxes import Mailboxes
from sandbox.people import Act, acts_on
from sandbox.provider import Provider, Server, serve

ACTS_WAITING_MAX = 50_000
HTTP_AT_ONCE = 16
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
logger = logging.getLogger("manta.sandbox")


@dataclass(frozen=True)
class TownSettings:
    """``haste`` divides every pause of the people; 0 people act when ``alive`` is off."""

    mail_file: Path
    smtp_port: int = 0
    seed: int = 1
    alive: bool = True
    haste: float = 1.0
    product: str = "sku-7"


class Town:
    """Started by the actor's host; ``smtp_port`` tells where it listens."""

    def __init__(self, settings: TownSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._mailboxes = Mailboxes(settings.mail_file)  # for the loop
        self._arrivals = Mailboxes(settings.mail_file)  # for the provider's thread
        self._server: Server | None = None
        self._limit = asyncio.Semaphore(HTTP_AT_ONCE)
        self._http = httpx.AsyncClient(
            headers={"User-Agent": BROWSER}, follow_redirects=False, timeout=20
        )
        self._waiting: set[asyncio.Task[None]] = set()
        self._counts: dict[str, int] = {}
        self._first_mail_at: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ingest_url = self._api_key = ""

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        provider = Provider(self._clock, self._deliver)
        self._server = await asyncio.to_thread(
            serve, provider, "127.0.0.1", self._settings.smtp_port
        )

    async def smtp_port(self) -> int:
        while self._server is None:
            await asyncio.sleep(0.05)
        return self._server.port

    async def live(self, ingest_url: str, api_key: str) -> None:
        """Where purchases are told, and with which key; until then nobody buys."""
        self._ingest_url, self._api_key = ingest_url, api_key

    async def status(self) -> dict[str, Any]:
        return {
            "mails": self._counts.get("mail", 0),
            "first_mail_at": self._first_mail_at,
            "acts": {k: v for k, v in self._counts.items() if k != "mail"},
            "acts_waiting": len(self._waiting),
        }

    def _deliver(self, received_at: str, mail_from: str, rcpt_to: str, raw: bytes) -> None:
        """On the provider's thread."""
        id = self._arrivals.deliver(received_at, mail_from, rcpt_to, raw)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._delivered, id, received_at, rcpt_to)

    def _delivered(self, id: int, received_at: str, rcpt_to: str) -> None:
        self._counts["mail"] = self._counts.get("mail", 0) + 1
        self._first_mail_at = self._first_mail_at or received_at
        if not self._settings.alive or len(self._waiting) >= ACTS_WAITING_MAX:
            return
        mail = self._mailboxes.get(id)
        if mail is None:
            return
        unsubscribe = mail.header("List-Unsubscribe").split(",")[0].strip().strip("<>")
        if not unsubscribe.startswith("http"):
            unsubscribe = ""
        for act in acts_on(self._settings.seed, rcpt_to, mail.body("html"), unsubscribe):
            if act.kind == "buy" and not self._ingest_url:
                continue
            task = asyncio.ensure_future(self._act(id, rcpt_to, act))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _act(self, mail_id: int, address: str, act: Act) -> None:
        await asyncio.sleep(act.after_s / self._settings.haste)
        async with self._limit:
            try:
                response = await self._perform(mail_id, address, act)
            except httpx.HTTPError as error:
                logger.info("%s could not %s: %s", address, act.kind, error)
                return
        if response.status_code >= 400:
            logger.info("%s could not %s: HTTP %d", address, act.kind, response.status_code)
            return
        self._counts[act.kind] = self._counts.get(act.kind, 0) + 1
        self._mailboxes.note(mail_id, act.kind, as_text(self._clock.now()))

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
