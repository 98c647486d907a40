"""An open SMTP connection, driven by our own machine on a real socket.

Whoever opened it (``actors.io.smtp``) hands the transport over; from then on
``manta.delivery.transaction`` decides every byte, and here are only the socket, the clock and the
limits. A burst costs one future and one timer, whatever its length.

Every wait has an end: a reply must be complete within the time of its command, counted from the
last complete reply and not from the last byte, so that a server which drips gains nothing; a block
of content must be taken within its time; a burst as a whole has a deadline. A connection on which
anything went wrong is closed and never used again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from manta.delivery.replies import Reply, Verdict
from manta.delivery.transaction import Envelope, Offers, Step, Transactions

_SLICE_BYTES = 65_536


@dataclass(frozen=True)
class SmtpLimits:
    """Time limits: from the greeting on those of RFC 5321 §4.5.3.2, which are its minima."""

    connect_s: float = 30.0  # one address
    banner_s: float = 300.0
    ehlo_s: float = 300.0  # EHLO, each step of AUTH
    tls_s: float = 60.0  # STARTTLS and its handshake, which no RFC limits
    open_s: float = 330.0  # all of these together
    mail_s: float = 300.0
    rcpt_s: float = 300.0
    data_initial_s: float = 120.0
    data_block_s: float = 180.0
    data_termination_s: float = 600.0
    burst_s: float = 700.0  # a whole burst, however it drips: less than the deadline of a lease
    quit_s: float = 5.0

    @classmethod
    def within(cls, lease_deadline_s: float) -> SmtpLimits:
        """With bursts that end, and are settled, before their lease is taken for abandoned."""
        return cls(burst_s=min(cls.burst_s, max(1.0, 0.8 * lease_deadline_s - 5.0)))


class SmtpConnection(asyncio.Protocol):
    """An open connection, used by one burst at a time.

    ``usable`` says whether another burst may be sent; ``room`` how many messages it may hold.
    """

    def __init__(
        self, transport: asyncio.Transport, offers: Offers, messages_max: int, limits: SmtpLimits
    ) -> None:
        self.offers = offers
        self.encrypted = transport.get_extra_info("sslcontext") is not None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._messages_max = messages_max
        self._used = 0
        self._closed = False
        self._closed_waiter: asyncio.Future[None] = self._loop.create_future()
        self._burst: Transactions | None = None
        self._done: asyncio.Future[None] | None = None
        self._unwritten = memoryview(b"")
        self._paused = False
        self._progress_at_s = 0.0
        self._burst_until_s = 0.0
        self._begin_until_s = 0.0

    @property
    def usable(self) -> bool:
        return self.is_open and self._burst is None and self.room > 0

    @property
    def is_open(self) -> bool:
        """Whether nothing has gone wrong on it and neither side has closed it."""
        return not self._closed

    @property
    def room(self) -> int:
        return max(0, self._messages_max - self._used)

    def narrow(self, messages_max: int) -> None:
        """Lowers the number of messages that the connection may carry."""
        self._messages_max = min(self._messages_max, messages_max)

    async def send_burst(
        self, envelopes: Sequence[Envelope], begin_within_s: float = 5.0
    ) -> list[Reply]:
        """Sends the messages in order; one outcome for each, in the same order.

        What is not begun within ``begin_within_s`` is ``not_sent``. Never raises for what the
        server or the network does; a cancelled call closes the connection.
        """
        if self._burst is not None:
            raise RuntimeError("the connection is busy with another burst")
        if self._closed:
            return [Reply(Verdict.NOT_SENT, 0, "connection is closed", "not sent")] * len(envelopes)
        burst = Transactions(envelopes, self.offers)
        now_s = self._loop.time()
        self._progress_at_s = now_s
        self._begin_until_s = now_s + begin_within_s
        self._burst_until_s = now_s + self._limits.burst_s
        self._burst = burst
        self._done = self._loop.create_future()
        timer = None
        try:
            self._write(burst.start())
            if not burst.finished:
                timer = _Timer(self)
                await self._done
        finally:
            if timer is not None:
                timer.cancel()
            burst.lost("sending was given up", len(self._unwritten))
            self._used += burst.begun
            self._burst = self._done = None
            if burst.broken:
                self.abort()
        return cast("list[Reply]", burst.replies)

    def stop(self, why: str) -> None:
        """Lets the present burst begin no further message; those begun go on to their reply."""
        if self._burst is not None:
            self._burst.stop(why)

    async def quit(self) -> None:
        """Says goodbye and closes (RFC 5321 §4.1.1.10); waits shortly for the answer."""
        if not self._closed and self._burst is None:
            self._transport.write(b"QUIT\r\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.quit_s):
                    await asyncio.shield(self._closed_waiter)
        self.abort()

    def abort(self) -> None:
        """Closes at once."""
        self._closed = True
        self._transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        burst = self._burst
        if burst is None or burst.finished:
            # Unasked for: a 421 before closing, the answer to QUIT, or nonsense. All end it.
            self._closed = True
            self._transport.close()
            return
        now_s = self._loop.time()
        if now_s >= self._begin_until_s:
            burst.stop("not begun in time")
        received = burst.received
        out = burst.receive(data)
        if burst.received != received:
            self._progress_at_s = now_s
        if out:
            self._write(out)
        if burst.finished:
            self._finish()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._progress_at_s = self._loop.time()
        self._write(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if not self._closed_waiter.done():
            self._closed_waiter.set_result(None)
        self._give_up(f"connection lost: {exc}" if exc else "server closed the connection")

    # -- inside ------------------------------------------------------------------------------------

    def _write(self, out: bytes) -> None:
        """Writes as much as the transport takes without piling up: what is held back here is
        known not to have left."""
        if not self._unwritten and not self._paused and len(out) <= _SLICE_BYTES:
            if out:
                self._transport.write(out)
            return
        self._unwritten = memoryview(bytes(self._unwritten) + out if out else self._unwritten)
        while self._unwritten and not self._paused and not self._closed:
            part = self._unwritten[:_SLICE_BYTES]
            self._unwritten = self._unwritten[_SLICE_BYTES:]
            self._transport.write(part)

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _give_up(self, why: str) -> None:
        if self._burst is not None:
            self._burst.lost(why, len(self._unwritten))
            self._finish()

    def _limit(self) -> tuple[float, str]:
        """The instant at which waiting ends, and for what."""
        assert self._burst is not None
        limits = self._limits
        if self._unwritten or self._paused:
            wait_s, what = limits.data_block_s, "the server to take content"
        else:
            step = self._burst.waits_for
            wait_s, what = {
                Step.MAIL: (limits.mail_s, "the reply to MAIL"),
                Step.RCPT: (limits.rcpt_s, "the reply to RCPT"),
                Step.DATA: (limits.data_initial_s, "the reply to DATA"),
                Step.RESET: (limits.mail_s, "the reply to RSET"),
            }.get(step, (limits.data_termination_s, "the reply to the message"))
        until_s = self._progress_at_s + wait_s
        if until_s > self._burst_until_s:
            return self._burst_until_s, "the end of the burst"
        return until_s, what


class _Timer:
    """Watches a burst's limits with one pending call, which moves only when it fires.

    It never sleeps longer than the shortest limit, since another one may apply by then.
    """

    def __init__(self, connection: SmtpConnection) -> None:
        self._connection = connection
        self._loop = connection._loop
        limits = connection._limits
        self._sleep_s = min(
            limits.mail_s, limits.rcpt_s, limits.data_initial_s, limits.data_block_s
        )
        self._handle = self._loop.call_at(connection._limit()[0], self._fire)

    def _fire(self) -> None:
        until_s, what = self._connection._limit()
        now_s = self._loop.time()
        if now_s < until_s:
            self._handle = self._loop.call_at(min(until_s, now_s + self._sleep_s), self._fire)
        else:
            self._connection._give_up(f"gave up waiting for {what}")

    def cancel(self) -> None:
        self._handle.cancel()
