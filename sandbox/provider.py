"""A mailbox provider: a real SMTP server that accepts, refuses and defers as real ones do.

What it answers follows from the recipient alone, so that a run can be repeated:

| recipient | answer |
| --- | --- |
| domain ``gone.…``, or local part ``permfail…`` | 550 5.1.1, no such user |
| domain ``full.…`` | 452 4.2.2, mailbox full, the first time; then accepted |
| local part ``tempfail…`` | 451 4.7.1, always |
| local part ``NNN-…`` | that code |
| anything else | 250 |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from manta.clock import Clock, as_text

MESSAGE_BYTES_MAX = 10 << 20
FULL_REMEMBERED_MAX = 100_000
_CODE = re.compile(r"([45]\d\d)-")


def answer_to(recipient: str, seen_before: bool) -> str | None:
    """The refusal that a recipient gets, or ``None`` where mail is accepted."""
    local, _, domain = recipient.rpartition("@")
    code = _CODE.match(local)
    if code:
        return f"{code[1]} {code[1][0]}.0.0 as asked for"
    if domain.startswith("gone.") or local.startswith("permfail"):
        return "550 5.1.1 no such user here"
    if local.startswith("tempfail"):
        return "451 4.7.1 try again later"
    if domain.startswith("full.") and not seen_before:
        return "452 4.2.2 mailbox full"
    return None


class Provider:
    """aiosmtpd's handler. ``deliver(received_at, mail_from, rcpt_to, raw)`` keeps what it takes."""

    def __init__(self, clock: Clock, deliver: Callable[[str, str, str, bytes], Any]) -> None:
        self._clock = clock
        self._deliver = deliver
        self._seen: set[str] = set()

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = answer_to(address.lower(), address in self._seen)
        if len(self._seen) < FULL_REMEMBERED_MAX:
            self._seen.add(address)
        if refusal is not None:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        raw = envelope.original_content or b""
        received_at = as_text(self._clock.now())
        for recipient in envelope.rcpt_tos:
            self._deliver(received_at, envelope.mail_from or "", recipient, raw)
        return "250 2.0.0 accepted"


class Server(Controller):
    """aiosmtpd's controller, which does not know a port that the system chose."""

    def _trigger_server(self) -> None:
        self.port = int(self.server.sockets[0].getsockname()[1])
        super()._trigger_server()


def serve(provider: Provider, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Start the server on a thread of its own; ``.port`` tells where, also for port 0."""
    server = Server(
        provider,
        hostname=host,
        port=port,
        data_size_limit=MESSAGE_BYTES_MAX,
        enable_SMTPUTF8=True,
        decode_data=False,
    )
    server.start()
    return server
