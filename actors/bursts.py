"""One SMTP connection of a lane at work: burst after burst, from lease to outcome.

A burst is taken from the lane's oldest lease and composed while its attempts are being stored; then
comes the last look, the wire, and the outcomes. The order is the Sender's safety: attempts are
stored before the first byte, outcomes before they are settled (``manta.delivery.sending``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from manta.delivery.lanes import Lane
from manta.delivery.outcomes import Outcome, OutcomeKind
from manta.delivery.replies import Reply, Verdict
from manta.delivery.sending import Burst, outcome_of
from manta.delivery.transaction import Envelope
from manta.errors import InvalidRequest
from manta.ids import MessageRef

if TYPE_CHECKING:
    from actors.lanes import LaneRun
    from actors.sender import Sender

logger = logging.getLogger("manta.actors.sender")


class Connection(Protocol):
    """``actors.io.smtp.SmtpConnection``."""

    @property
    def usable(self) -> bool: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def room(self) -> int: ...
    async def send_burst(
        self, envelopes: Sequence[Envelope], begin_within_s: float
    ) -> list[Reply]: ...
    def stop(self, why: str) -> None: ...
    async def quit(self) -> None: ...
    def abort(self) -> None: ...


class Compose(Protocol):
    """``manta.content.composer.Composer``."""

    def compose(self, row: Any, ref: MessageRef, now: datetime) -> Any: ...


Connect = Callable[[Lane, int], Awaitable[Connection | Reply]]


@dataclass(eq=False)
class GrantedLease:
    """A granted lease, its rows ready for composing."""

    lease_id: int
    until_s: float  # when its permits lapse
    rows: dict[MessageRef, dict[str, Any]]
    composers: dict[int, Compose]


@dataclass(eq=False)
class OnWire:
    """A burst on a connection, for who wants to stop it."""

    connection: Connection
    campaigns: frozenset[int]
    refs: frozenset[MessageRef]


class Worker:
    """One connection after the other, as long as the lane may hold it and has something to send."""

    def __init__(self, sender: Sender, lane: LaneRun) -> None:
        self._sender = sender
        self._lane = lane
        self._clock = sender.clock
        self._connection: Connection | None = None

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_open

    async def run(self) -> None:
        try:
            lane = self._lane
            while not lane.has_too_many_workers and await self._connect():
                if not await self._wait_for_lease():
                    return
                if lane.ready and self._is_usable:
                    assert self._connection is not None
                    await self._next_burst(self._connection, lane.ready[0])
        finally:
            self._lane.gone(self)
            if self._connection is not None:
                if self._sender.ended:
                    self._connection.abort()
                else:
                    await self._connection.quit()

    async def _connect(self) -> bool:
        """Whether there is a connection that can take a burst."""
        if self._connection is not None:
            if self._connection.usable:
                return True
            worn, self._connection = self._connection, None
            await worn.quit()
        lane = self._lane
        opened = await self._sender.ports.connect(lane.lane, lane.messages_per_connection)
        if isinstance(opened, Reply):
            lane.failed(f"no connection: {opened.code or ''} {opened.text}".replace("  ", " "))
            return False
        self._connection = opened
        lane.connected()
        return True

    async def _wait_for_lease(self) -> bool:
        """Until there is a lease, or the connection has gone meanwhile; False: nothing for long."""
        lane = self._lane
        while not lane.ready and self._is_usable:
            lane.has_lease.clear()
            if not await wait_at_most(lane.has_lease, lane.settings.idle_s):
                return False
        return True

    @property
    def _is_usable(self) -> bool:
        return self._connection is not None and self._connection.usable

    async def _next_burst(self, connection: Connection, lease: GrantedLease) -> None:
        now_s, now = self._clock.monotonic(), self._clock.now()
        lane = self._lane
        lane.return_lapsed(now_s)
        if lease not in lane.ready:
            return
        limit = min(lane.settings.burst_messages, connection.room)
        burst = self._sender.sending.take_burst(lease.lease_id, limit, now_s, now)
        if burst is None:
            lane.ready.popleft()
            self._sender.settle_now(lease.lease_id)
            lane.taken()
            return
        on_wire = OnWire(
            connection,
            frozenset(lease.rows[ref]["campaign_id"] for ref in burst.refs),
            frozenset(burst.refs),
        )
        lane.on_wire.add(on_wire)
        lane.taken()
        try:
            await self._send(connection, lease, burst)
        finally:
            lane.on_wire.discard(on_wire)

    async def _send(self, connection: Connection, lease: GrantedLease, burst: Burst) -> None:
        """Store the attempts, compose meanwhile, send, and note the outcomes."""
        sender, sending = self._sender, self._sender.sending
        sender.want_journal()
        composed = await sender.in_compose_thread(lambda: self._compose(lease, burst))
        await sender.until(lambda: burst.is_stored or burst.is_refused)
        now_s, now = self._clock.monotonic(), self._clock.now()
        source = self._lane.lane.source
        envelopes = []
        for ref in sending.on_the_wire(burst, now_s, now):
            mail = composed[ref]
            if isinstance(mail, Envelope):
                envelopes.append(mail)
            else:
                outcome = Outcome(*ref, OutcomeKind.FAILED, now, mail, source=source)
                sender.decide(burst.lease_id, outcome)
        if envelopes:
            checked_s = sending.leases[burst.lease_id].checked_s
            fresh_s = min(checked_s + sending.settings.fresh_s, lease.until_s) - now_s
            replies = await connection.send_burst(envelopes, max(0.0, fresh_s))
            self._note(connection, burst, envelopes, replies)
        sender.want_journal()

    def _compose(self, lease: GrantedLease, burst: Burst) -> dict[MessageRef, Envelope | str]:
        """Each message's envelope, or why it cannot be made. Runs on the composing thread."""
        composed: dict[MessageRef, Envelope | str] = {}
        now = self._clock.now()
        for ref in burst.refs:
            row = lease.rows[ref]
            try:
                mail = lease.composers[row["campaign_id"]].compose(row, ref, now)
                composed[ref] = Envelope(mail.mail_from, mail.rcpt_to, mail.data, ref)
            except InvalidRequest as error:
                composed[ref] = f"cannot be composed: {error}"
            except Exception as error:
                logger.exception("composing failed")
                composed[ref] = f"cannot be composed: {type(error).__name__}"
        return composed

    def _note(
        self,
        connection: Connection,
        burst: Burst,
        envelopes: Sequence[Envelope],
        replies: Sequence[Reply],
    ) -> None:
        sender, now = self._sender, self._clock.now()
        accepted = 0
        for envelope, reply in zip(envelopes, replies, strict=True):
            ref = envelope.ref
            if reply.verdict is Verdict.NOT_SENT and connection.is_open:
                # Nothing was wrong: it was withdrawn, or its time was up. It may go at once.
                outcome = Outcome(*ref, OutcomeKind.RETURNED, now, reply.text)
            else:
                attempts = sender.sending.attempts_before(burst.lease_id, ref)
                source = self._lane.lane.source
                settings = sender.settings.sending
                outcome = outcome_of(ref, reply, attempts, source, now, sender.random, settings)
            sender.decide(burst.lease_id, outcome)
            accepted += reply.verdict is Verdict.ACCEPTED
        self._lane.progressed(len(envelopes))
        if accepted:
            self._lane.succeeded()
        elif not connection.is_open:
            self._lane.failed(f"a connection broke: {replies[-1].text}")


async def wait_at_most(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether the event was set in time. (``wait_for`` of Python 3.11 can swallow a cancel.)"""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
