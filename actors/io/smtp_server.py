"""An SMTP server's side of the dialogue, with a limit to everything (aiosmtpd underneath).

Strangers talk to it. Bounded are connections, in all and from one address (IPv6: from one /64), how
fast they come and bring mail, commands, recipients, wrong recipients, the length of lines and of
messages, the bytes that all messages hold together, and the time of a silence, a message and a
connection. A message that grows too large is dropped while it comes and answered 552; one that goes
on long past that loses its connection.

aiosmtpd keeps one object per line of a message, and a line without end in memory; so DATA is read
here, in pieces up to the one true end, CRLF.CRLF: a bare LF ends nothing (RFC 5321 §4.1.1.4).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

from aiosmtpd.smtp import SMTP, Envelope, Session

from manta.clock import Clock
from manta.delivery.throttle.gcra import Bucket

COMMAND_BYTES_MAX = 512  # RFC 5321 §4.5.3.1.4
READ_BYTES = 64 << 10  # of a connection's buffer, and so of one piece of a message
ADDRESSES_REMEMBERED_MAX = 10_000
DRAINED_TIMES = 4  # a message is heard out up to so many times the size that is taken
_END = b"\r\n.\r\n"
_LOGGED = logging.getLogger("mail.log")  # aiosmtpd's own: it would log addresses
logger = logging.getLogger("manta.inbox")


@dataclass(frozen=True)
class ServerLimits:
    message_bytes_max: int = 10 << 20
    held_bytes_max: int = 64 << 20  # of messages that are coming in or being worked on
    connections_max: int = 200
    connections_per_address_max: int = 20
    connects_per_address_per_s: float = 2.0
    connects_per_address_burst: int = 60
    messages_per_address_per_s: float = 50.0
    messages_per_address_burst: int = 1_000
    recipients_max: int = 100  # RFC 5321 §4.5.3.1.8
    wrong_recipients_max: int = 20
    commands_max: int = 2_000  # of one kind in a connection
    silence_s: float = 60.0
    message_s: float = 180.0
    connection_s: float = 900.0


class Host(Protocol):
    """Who takes the mail. ``recipient`` answers a box of its own choosing, or a reply."""

    async def recipient(self, address: str) -> Any: ...

    async def message(self, boxes: list[Any], raw: bytes) -> str: ...


class _Peer:
    """What is known of one address that connects."""

    __slots__ = ("connections", "connects", "messages")

    def __init__(self, limits: ServerLimits, now_s: float) -> None:
        self.connections = 0
        self.connects = Bucket.full(
            limits.connects_per_address_per_s, limits.connects_per_address_burst, now_s
        )
        self.messages = Bucket.full(
            limits.messages_per_address_per_s, limits.messages_per_address_burst, now_s
        )


class Listener:
    """A port, and the connections on it."""

    def __init__(
        self,
        host: Host,
        clock: Clock,
        address: str,
        port: int,
        name: str,
        limits: ServerLimits,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.clock = clock
        self.limits = limits
        self.name = name
        self.tls = tls
        self.held_bytes = 0
        self.refused: Counter[str] = Counter()
        self._address, self._port = address, port
        self._server: asyncio.Server | None = None
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._dialogues: set[Dialogue] = set()
        _LOGGED.setLevel(logging.ERROR)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Dialogue(self, loop), self._address, self._port, backlog=256
        )

    async def stop(self, patience_s: float) -> None:
        """No new connections; those that bring a message have some time to end it."""
        if self._server is None:
            return
        self._server.close()
        until = self.clock.monotonic() + patience_s
        for dialogue in list(self._dialogues):
            if not dialogue.is_busy:
                dialogue.hang_up()
        while self._dialogues and self.clock.monotonic() < until:
            await asyncio.sleep(0.02)
        for dialogue in list(self._dialogues):
            dialogue.hang_up()
        await asyncio.sleep(0)

    @property
    def port(self) -> int:
        if self._server is None or not self._server.sockets:
            return self._port
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._dialogues)

    def refusal(self, dialogue: Dialogue, address: str) -> str | None:
        """Why a new connection is not served; else it is counted."""
        if len(self._dialogues) >= self.limits.connections_max:
            return self._refuse("connections", "421 4.3.2 too many connections, try again later")
        peer = self.peer(address)
        if peer.connections >= self.limits.connections_per_address_max:
            return self._refuse("connections_of_one", "421 4.7.0 too many connections from you")
        if not peer.connects.take(1, self.clock.monotonic()):
            return self._refuse("connects_of_one", "421 4.7.0 you connect too often")
        peer.connections += 1
        self._dialogues.add(dialogue)
        return None

    def gone(self, dialogue: Dialogue, address: str) -> None:
        if dialogue in self._dialogues:
            self._dialogues.discard(dialogue)
            self.peer(address).connections -= 1

    def may_bring_message(self, address: str) -> bool:
        return bool(self.peer(address).messages.take(1, self.clock.monotonic()))

    def peer(self, address: str) -> _Peer:
        name = _network(address)
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = _Peer(self.limits, self.clock.monotonic())
            if len(self._peers) > ADDRESSES_REMEMBERED_MAX:
                self._forget_one()
        self._peers.move_to_end(name)
        return peer

    def _forget_one(self) -> None:
        for name, peer in self._peers.items():
            if not peer.connections:
                del self._peers[name]
                return

    def _refuse(self, why: str, reply: str) -> str:
        self.refused[why] += 1
        return reply


def _network(address: str) -> str:
    """Who shares a limit: one IPv4 address, or one IPv6 network of /64."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if known.version == 4:
        return address
    return str(ipaddress.ip_network((known, 64), strict=False))


class Dialogue(SMTP):
    """One connection."""

    line_length_limit = READ_BYTES

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        limits = listener.limits
        # Of the class in aiosmtpd, where each EHLO of anybody widens them for all.
        self.command_size_limits = defaultdict(lambda: COMMAND_BYTES_MAX)
        super().__init__(
            _Handler(self),
            data_size_limit=limits.message_bytes_max,
            enable_SMTPUTF8=True,
            hostname=listener.name,
            ident="ESMTP",
            tls_context=listener.tls,
            timeout=limits.silence_s,
            auth_exclude_mechanism=("LOGIN", "PLAIN"),
            command_call_limit=limits.commands_max,
            loop=loop,
        )
        for unused in ("AUTH", "HELP", "VRFY"):
            self._smtp_methods.pop(unused, None)
        self.listener = listener
        self.wrong_recipients = 0
        self.is_busy = False
        self.client = ""
        self._admitted = False
        self._end: asyncio.TimerHandle | None = None

    # -- the connection ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._admitted:  # the same connection, under TLS now
            super().connection_made(transport)
            return
        self.client = str((transport.get_extra_info("peername") or ("unknown",))[0])
        refusal = self.listener.refusal(self, self.client)
        if refusal is not None:
            transport.write(refusal.encode() + b"\r\n")  # type: ignore[attr-defined]
            transport.close()
            return
        self._admitted = True
        self._end = self.loop.call_later(self.listener.limits.connection_s, self.hang_up)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._admitted:
            return
        if self._end is not None:
            self._end.cancel()
        self.listener.gone(self, self.client)
        super().connection_lost(error)

    def eof_received(self) -> bool | None:
        return super().eof_received() if self._admitted else False

    def data_received(self, data: bytes) -> None:
        if self._admitted:
            super().data_received(data)

    def hang_up(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def push(self, status: Any) -> None:
        """A client that has gone ends the dialogue as a lost connection does: it is no fault."""
        try:
            await super().push(status)
        except ConnectionError:
            raise asyncio.CancelledError from None

    # -- a message ---------------------------------------------------------------------------------

    async def smtp_DATA(self, arg: str | None) -> None:
        if await self.check_helo_needed():
            return
        boxes: list[Any] = self.envelope.rcpt_tos if self.envelope else []
        if not boxes:
            await self.push("503 5.5.1 no recipient was taken")
            return
        if arg:
            await self.push("501 5.5.4 DATA takes no argument")
            return
        if not self.listener.may_bring_message(self.client):
            self.listener.refused["messages_of_one"] += 1
            await self.push("421 4.7.0 you send too much, try again later")
            self.hang_up()
            return
        self._reset_timeout(self.listener.limits.message_s)
        self.is_busy = True
        try:
            reply = await self._take(boxes)
            if reply:
                await self.push(reply)
        finally:
            self.is_busy = False
            self.envelope = self._create_envelope()

    async def _take(self, boxes: list[Any]) -> str:
        await self.push("354 end with <CR><LF>.<CR><LF>")
        message = _Message(self.listener)
        try:
            refusal = await self._read(message)
            if refusal is not None:
                return refusal
            raw = message.content()
            self._reset_timeout(self.listener.limits.message_s)
            return await self.listener.host.message(boxes, raw)
        finally:
            message.let_go()
            self._reset_timeout()

    async def _read(self, message: _Message) -> str | None:
        """Read to the end of the message; the reply where it is not taken ("": none)."""
        # So that the end is found at the very beginning too, of a message without a line.
        self._reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]
        while True:
            try:
                piece = await self._reader.readuntil(_END)
                message.add(piece[: -len(_END)] + b"\r\n")
                return message.refusal
            except asyncio.LimitOverrunError as error:
                message.add(await self._reader.readexactly(error.consumed))
            except (ConnectionError, asyncio.IncompleteReadError):
                raise asyncio.CancelledError from None  # the client broke off, as in ``push``
            if message.size > DRAINED_TIMES * self.listener.limits.message_bytes_max:
                await self.push(message.refusal or "552 5.3.4 too large")
                self.hang_up()
                return ""


class _Message:
    """A message on its way: its pieces, as long as it may be taken."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._pieces: list[bytes] = []
        self._held = 0
        self.size = 0
        self.refusal: str | None = None

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        limits = self._listener.limits
        if self.size - 2 > limits.message_bytes_max:
            size = limits.message_bytes_max
            self._refuse("too_large", f"552 5.3.4 the message is larger than {size} bytes")
        elif self._listener.held_bytes + len(piece) > limits.held_bytes_max:
            self._refuse("too_busy", "452 4.3.1 too many messages at once, try again later")
        if self.refusal is None:
            self._pieces.append(piece)
            self._held += len(piece)
            self._listener.held_bytes += len(piece)

    def content(self) -> bytes:
        """Without the CRLF that was put before it, and without stuffed dots (RFC 5321 §4.5.2)."""
        return b"".join(self._pieces).replace(b"\r\n.", b"\r\n")[2:]

    def let_go(self) -> None:
        self._listener.held_bytes -= self._held
        self._held = 0
        self._pieces.clear()

    def _refuse(self, why: str, reply: str) -> None:
        if self.refusal is None:
            self._listener.refused[why] += 1
            self.refusal = reply
            self.let_go()


def offered(responses: list[str]) -> list[str]:
    """aiosmtpd's answer to EHLO with what our servers do besides, and without what they do not."""
    kept = [r for r in responses if not r.startswith(("250-AUTH", "250 HELP"))]
    return [*kept, "250-PIPELINING", "250 ENHANCEDSTATUSCODES"]


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
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        dialogue, limits = self._dialogue, self._dialogue.listener.limits
        boxes: list[Any] = envelope.rcpt_tos  # ours, in the place of texts
        if len(boxes) >= limits.recipients_max:
            return "452 4.5.3 too many recipients"
        box = await dialogue.listener.host.recipient(address)
        if isinstance(box, str):
            dialogue.wrong_recipients += 1
            if dialogue.wrong_recipients > limits.wrong_recipients_max:
                dialogue.listener.refused["wrong_recipients"] += 1
                dialogue.loop.call_soon(dialogue.hang_up)
                return "421 4.7.0 too many wrong recipients"
            return box
        if box not in boxes:
            boxes.append(box)
        return "250 2.1.5 ok"

    async def handle_exception(self, error: Exception) -> str:
        logger.error("a dialogue failed: %s", type(error).__name__, exc_info=error)
        return "451 4.3.0 this server has a fault, try again later"
