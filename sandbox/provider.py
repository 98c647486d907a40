"""A mailbox provider: real SMTP servers that behave as a model of one does.

One ``Provider`` has all the hosts of a mailbox provider, each listening on a loopback address of
its own, and one ``Behaviour`` (``rehearsal.behaviour``) that decides every answer; its time
runs ``speed`` times as fast as the clock. All run on the event loop of whoever starts them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aiosmtpd.smtp import SMTP, Envelope, Session, TLSSetupException

from actors.io.smtp_server import offered
from manta.clock import Clock
from manta.delivery.rehearsal.behaviour import Behaviour, Told

MESSAGE_BYTES_MAX = 10 << 20
COMMANDS_MAX = 5_000
SILENCE_S = 120.0
logger = logging.getLogger("manta.sandbox")


class Taken(NamedTuple):
    """A message that was answered 250. ``source``: the address that brought it."""

    source: str
    mail_from: str
    rcpt_to: str
    raw: bytes


class Provider:
    """``deliver(provider, taken)`` is called for every message that was taken. ``counts``: messages
    by what was answered, and connections that were refused."""

    def __init__(
        self,
        behaviour: Behaviour,
        clock: Clock,
        deliver: Callable[[Provider, Taken], Any],
        tls: ssl.SSLContext | None = None,
        speed: float = 1.0,
    ) -> None:
        self.behaviour = behaviour
        self.deliver = deliver
        self.tls = tls if behaviour.model.is_encrypted else None
        self.counts: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self._clock = clock
        self._speed = speed
        self._servers: list[asyncio.Server] = []
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd's own

    @property
    def name(self) -> str:
        return self.behaviour.model.name

    def now_s(self) -> float:
        """In the provider's own time."""
        return self._clock.monotonic() * self._speed

    async def listen(self, hosts: Sequence[tuple[str, str]], port: int) -> None:
        """Serve each (host name, address)."""
        loop = asyncio.get_running_loop()
        for host, address in hosts:
            server = await loop.create_server(
                lambda host=host: Dialogue(self, host, loop), address, port
            )
            self._servers.append(server)

    def stop(self) -> None:
        for server in self._servers:
            server.close()

    def answer(self, source: str, mail_from: str, recipient: str, carried: int) -> Told:
        domain = mail_from.rpartition("@")[2].lower()
        told = self.behaviour.mail(source, domain, recipient, self.now_s(), carried)
        kinds = {2: "accepted", 4: "deferred", 5: "failed"}
        self.counts[kinds[told.code // 100]] += 1
        return told


class Dialogue(SMTP):
    """One connection. A reply 421 ends it (RFC 5321 §3.8)."""

    def __init__(self, provider: Provider, host: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            _Handler(self),
            data_size_limit=MESSAGE_BYTES_MAX,
            enable_SMTPUTF8=True,
            hostname=host,
            ident="ESMTP",
            tls_context=provider.tls,
            timeout=SILENCE_S,
            command_call_limit=COMMANDS_MAX,
            loop=loop,
        )
        self.provider = provider
        self.source = ""
        self.carried = 0
        self._is_admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._is_admitted:  # the same connection, under TLS now
            super().connection_made(transport)
            return
        provider = self.provider
        self.source = str(transport.get_extra_info("peername")[0])
        told = provider.behaviour.connect(self.source, provider.open[self.source], provider.now_s())
        if told is not None:
            provider.counts["refused"] += 1
            transport.write(told.line.encode() + b"\r\n")  # type: ignore[attr-defined]
            transport.close()
            return
        self._is_admitted = True
        provider.open[self.source] += 1
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_admitted:
            self.provider.open[self.source] -= 1
            super().connection_lost(error)

    def eof_received(self) -> bool | None:
        return super().eof_received() if self._is_admitted else False

    def data_received(self, data: bytes) -> None:
        if self._is_admitted:
            super().data_received(data)

    async def push(self, status: str | bytes) -> None:
        await super().push(status)
        if status[:3] in ("421", b"421") and self.transport is not None:
            self.transport.close()


class _Handler:
    """aiosmtpd's hooks."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue

    async def handle_EHLO(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        hostname: str,
        responses: list[str],
    ) -> list[str]:
        session.host_name = hostname
        return offered(responses)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        dialogue = self._dialogue
        told = dialogue.provider.answer(
            dialogue.source, envelope.mail_from or "", address, dialogue.carried
        )
        if told.code == 250:
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"
        return told.line

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        dialogue = self._dialogue
        dialogue.carried += 1
        raw = envelope.original_content or b""
        for recipient in envelope.rcpt_tos:
            taken = Taken(dialogue.source, envelope.mail_from or "", recipient, raw)
            dialogue.provider.deliver(dialogue.provider, taken)
        return "250 2.0.0 OK, queued"

    async def handle_exception(self, error: Exception) -> str:
        """A client that goes away in the middle of a handshake is no fault of ours."""
        if not isinstance(error, TLSSetupException):
            logger.error("a dialogue failed", exc_info=error)
        return "421 4.3.0 this server has a fault, try again later"
