"""One SMTP connection of a lane at work: burst after burst, from lease to outcome.

A burst is taken from the lane's oldest lease and composed while its attempts are being stored; then
comes the last look, the wire, and the outcomes. The order is the Sender's safety: attempts are
stored before the first byte, outcomes before they are settled (``manta.delivery.sending``).

A server that closes a connection it has taken mail on (421, RFC 5321 §3.8) means the connection and
not the message: what was not delivered goes out on a new one at once. A message that gets a second
421 so is deferred like any other, and so is one that gets it on a fresh connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from manta.delivery.lanes import Lane, Site
from manta.delivery.outcomes import Outcome, OutcomeKind
from manta.delivery.replies import Reply, Verdict
from manta.delivery.reputation.observations import Seen
from manta.delivery.sending import Burst, outcome_of
from manta.delivery.throttle.budgets import Connections
from manta.delivery.transaction import Envelope
from manta.errors import InvalidRequest
from manta.ids import MessageRef

if TYPE_CHECKING:
    from actors.lanes import LaneRun
    from actors.sender import Sender

SERVICE_CLOSES = 421  # RFC 5321 §3.8
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

    @property
    def sending_domain(self) -> str: ...
    def compose_each(
        self, messages: Iterable[tuple[Any, MessageRef]], now: datetime
    ) -> list[Any]: ...


# To a relay, or to an exchanger of the site; the ``Connections`` say how much and which TLS.
Connect = Callable[[Lane, Site, Connections], Awaitable[Connection | Reply]]


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
        self._accepted = 0  # messages that the present connection has brought over

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_open

    async def run(self) -> None:
        try:
            lane = self._lane
            while not lane.has_too_many_workers and await self._connect():
                if not await self._wait_for_lease():
                    return
                if lane.leases.ready and self._is_usable:
                    assert self._connection is not None
                    await self._next_burst(self._connection, lane.leases.ready[0])
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
        try:
            opened = await self._sender.ports.connect(lane.lane, lane.site, lane.held)
        except Exception as error:  # nothing is on the wire: whatever it is, other lanes go on
            logger.exception("%s cannot connect on %s", self._sender.name, lane.lane)
            opened = Reply(Verdict.NOT_SENT, 0, f"{type(error).__name__}: {error}")
        if isinstance(opened, Reply):
            lane.unreached(opened)
            return False
        self._connection, self._accepted = opened, 0
        lane.connected()
        return True

    async def _wait_for_lease(self) -> bool:
        """Until there is a lease, or the connection has gone meanwhile; False: nothing for long."""
        lane = self._lane
        while not lane.leases.ready and self._is_usable:
            lane.has_lease.clear()
            if not await wait_at_most(lane.has_lease, lane.idle_s):
                return False
        return True

    @property
    def _is_usable(self) -> bool:
        return self._connection is not None and self._connection.usable

    async def _next_burst(self, connection: Connection, lease: GrantedLease) -> None:
        now_s, now = self._clock.monotonic(), self._clock.now()
        lane = self._lane
        lane.leases.return_lapsed(now_s)
        if lease not in lane.leases.ready:
            return
        limit = min(lane.settings.burst_messages, connection.room)
        burst = self._sender.sending.take_burst(lease.lease_id, limit, now_s, now)
        if burst is None:
            lane.leases.ready.popleft()
            self._sender.settle_now(lease.lease_id)
            lane.moved()
            return
        on_wire = OnWire(
            connection,
            frozenset(lease.rows[ref]["campaign_id"] for ref in burst.refs),
            frozenset(burst.refs),
        )
        lane.on_wire.add(on_wire)
        lane.moved()
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
            self._note(connection, lease, burst, envelopes, replies)
        sender.want_journal()

    def _compose(self, lease: GrantedLease, burst: Burst) -> dict[MessageRef, Envelope | str]:
        """Each message's envelope, or why it cannot be made. Runs on the composing thread."""
        by_campaign: dict[int, list[tuple[dict[str, Any], MessageRef]]] = {}
        for ref in burst.refs:
            row = lease.rows[ref]
            by_campaign.setdefault(row["campaign_id"], []).append((row, ref))
        now = self._clock.now()
        composed: dict[MessageRef, Envelope | str] = {}
        for campaign_id, messages in by_campaign.items():
            mails = lease.composers[campaign_id].compose_each(messages, now)
            for (_, ref), mail in zip(messages, mails, strict=True):
                composed[ref] = _enveloped(mail, ref)
        return composed

    def _note(
        self,
        connection: Connection,
        lease: GrantedLease,
        burst: Burst,
        envelopes: Sequence[Envelope],
        replies: Sequence[Reply],
    ) -> None:
        lane, was_used, now = self._lane, self._accepted > 0, self._clock.now()
        accepted = sum(reply.verdict is Verdict.ACCEPTED for reply in replies)
        self._accepted += accepted
        is_closed = self._accepted > 0 and any(reply.code == SERVICE_CLOSES for reply in replies)
        by_campaign: Counter[int] = Counter()
        for envelope, reply in zip(envelopes, replies, strict=True):
            ref = envelope.ref
            if reply.verdict is Verdict.ACCEPTED:
                said = (reply.reason, reply.code, reply.text, lane.lane.source)
                outcome = Outcome(*ref, OutcomeKind.ACCEPTED, now, *said)
            else:
                outcome = self._outcome(burst, ref, reply, is_closed, connection.is_open, now)
            self._sender.decide(burst.lease_id, outcome)
            campaign_id = lease.rows[ref]["campaign_id"]
            if reply.verdict is Verdict.ACCEPTED:
                by_campaign[campaign_id] += 1
            else:
                lane.observe_refused(lease, campaign_id, reply, outcome)
        for campaign_id, messages in by_campaign.items():
            lane.observe(lease, campaign_id, Seen.ACCEPTED, messages=messages)
        lane.progressed(len(envelopes))
        if accepted:
            lane.succeeded()
        elif not connection.is_open and not (was_used and is_closed):
            lane.failed(f"a connection broke: {replies[-1].text}")

    def _outcome(
        self,
        burst: Burst,
        ref: MessageRef,
        reply: Reply,
        is_closed: bool,
        is_open: bool,
        now: datetime,
    ) -> Outcome:
        """What a message has come to that was not accepted.

        ``is_closed``: the server has closed a connection that it had taken mail on.
        """
        sender = self._sender
        if reply.verdict is Verdict.NOT_SENT and (is_open or is_closed):
            # Nothing was wrong with it: it was withdrawn, its time was up, or the server wants
            # another connection. It may go at once.
            return Outcome(*ref, OutcomeKind.RETURNED, now, reply.text)
        if reply.code == SERVICE_CLOSES and is_closed and self._lane.may_go_again(ref):
            return Outcome(*ref, OutcomeKind.RETURNED, now, reply.reason)
        tried = sender.sending.tried(burst.lease_id, ref)
        source, settings = self._lane.lane.source, sender.settings.sending
        return outcome_of(tried, reply, source, now, sender.random, settings)


def _enveloped(mail: Any, ref: MessageRef) -> Envelope | str:
    """What was composed, ready for the wire, or why it could not be."""
    if isinstance(mail, InvalidRequest):
        return f"cannot be composed: {mail}"
    if isinstance(mail, Exception):
        logger.error("composing failed", exc_info=mail)
        return f"cannot be composed: {type(mail).__name__}"
    return Envelope(mail.mail_from, mail.rcpt_to, mail.data, ref)


async def wait_at_most(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether the event was set in time. (``wait_for`` of Python 3.11 can swallow a cancel.)"""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
