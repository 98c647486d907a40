"""One lane of a Sender: (egress source, site), from the first wake-up until it has no more work.

The lane's loop holds the right to connections, gets permits, and takes leases ahead of need, at
most as many as go out in ``lease_seconds`` at the present pace. Each connection has a worker: it
takes a burst of a lease, composes it while its attempts are being stored, and sends it. Whatever is
not begun while permit and check are fresh goes back.

A connection that cannot be had pauses the lane (``manta.delivery.retry.LaneBackoff``); its messages
go back untouched. While nothing moves (a server that hangs), nothing more is leased and no
connection is added.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, cast

from manta.delivery.outcomes import Outcome, OutcomeKind
from manta.delivery.replies import Reply, Verdict
from manta.delivery.retry import CALM, BackoffPolicy
from manta.delivery.sending import Burst, outcome_of
from manta.delivery.throttle import Connections, Grant, Lane
from manta.delivery.transaction import Envelope
from manta.errors import Fenced, InvalidRequest, MantaError, RetryableError
from manta.ids import MessageRef
from manta.schema import ATTRIBUTE_PREFIX

if TYPE_CHECKING:
    from actors.sender import Sender

logger = logging.getLogger("manta.actors.sender")


@dataclass(frozen=True)
class LaneSettings:
    burst_messages: int = 20
    lease_seconds: float = 2.0
    lease_rows_min: int = 20
    lease_rows_max: int = 200
    leases_ahead: int = 2
    hold_every_s: float = 10.0
    hold_soon_s: float = 1.0  # when it has none, or could use more
    idle_s: float = 10.0  # then connections are closed and the lane ends
    stalled_s: float = 1.0  # without progress: nothing more is leased
    trouble_pause_s: float = 1.0
    first_pace_per_s: float = 100.0
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)


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
class _Lease:
    """A granted lease, its rows ready for composing."""

    lease_id: int
    until_s: float  # when its permits lapse
    rows: dict[MessageRef, dict[str, Any]]
    composers: dict[int, Compose]


@dataclass(eq=False)
class _OnWire:
    """A burst on a connection, for who wants to stop it."""

    connection: Connection
    campaigns: frozenset[int]
    refs: frozenset[MessageRef]


class LaneRun:
    """The lane's work. ``assign`` wakes it; ``run`` returns when it has been idle for long."""

    def __init__(self, sender: Sender, lane: Lane) -> None:
        self.lane = lane
        self._sender = sender
        self._clock = sender.clock
        self._settings = sender.settings.lane
        self._domains: tuple[str, ...] | None = None
        self._work: dict[int, None] = {}  # shards with due rows, in turn
        self._asking: dict[int, float] = {}  # shards that are being asked, since when
        self._ready: deque[_Lease] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._on_wire: set[_OnWire] = set()
        self._moved = asyncio.Event()  # something changed that the loop may wait for
        self._has_lease = asyncio.Event()
        self._held = Connections(0, 0.0, 1)
        self._held_until_s = float("-inf")
        self._hold_asked_s = float("-inf")
        self._unused = 0
        self._backoff = CALM
        self._pace_per_s = self._settings.first_pace_per_s
        self._pace_since_s = self._progress_s = self._clock.monotonic()
        self._paced = 0
        self._trouble = ""

    def assign(self, domains: tuple[str, ...] | None, shards: Iterable[int]) -> None:
        self._domains = domains
        self._work |= dict.fromkeys(shards)
        self._moved.set()

    def revoke(self, campaign_id: int | None, refs: set[Any]) -> None:
        """Stop bursts that hold something withdrawn: what is not begun goes back."""
        for burst in self._on_wire:
            if campaign_id in burst.campaigns or not burst.refs.isdisjoint(refs):
                burst.connection.stop("withdrawn before it was sent")

    def abort(self) -> None:
        """Close everything at once: this incarnation is over."""
        for burst in self._on_wire:
            burst.connection.abort()

    def status(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        return {
            "source": self.lane.source,
            "site": self.lane.site,
            "shards": sorted({*self._work, *self._asking}),
            "connections": len(self._workers),
            "connections_held": self._may_hold,
            "on_wire": sum(len(burst.refs) for burst in self._on_wire),
            "pace_per_s": round(self._pace_per_s, 1),
            "backoff_s": round(self._backoff.wait_s(now_s), 1),
            "connection_failures": self._backoff.failures,
            "trouble": self._trouble,
        }

    # -- the loop ----------------------------------------------------------------------------------

    async def run(self) -> None:
        idle_since_s = self._clock.monotonic()
        while True:
            self._moved.clear()
            now_s = self._clock.monotonic()
            self._return_lapsed(now_s)
            if self._work or self._asking or self._ready or self._on_wire:
                idle_since_s = now_s
            elif now_s - idle_since_s >= self._settings.idle_s:
                return
            pause_s = await self._step(now_s)
            if pause_s > 0:
                await wait_at_most(self._moved, pause_s)

    async def close(self, *, release: bool) -> None:
        """End the workers and their connections; ``release``: tell the Throttle."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if release and self._held.held:
            try:
                await self._throttle("hold", 0)
            except MantaError:
                pass  # it lapses by itself

    async def _step(self, now_s: float) -> float:
        """One look; seconds to wait for something to move."""
        idle_s = self._settings.idle_s
        if not self._work and not self._ready:
            return idle_s if not (self._asking or self._on_wire) else self._settings.stalled_s
        backoff_s = self._backoff.wait_s(now_s)
        if backoff_s:
            return min(backoff_s, idle_s)
        if not await self._hold(now_s):
            return self._settings.trouble_pause_s
        self._add_worker(now_s)
        if self._is_stalled(now_s) or not self._wants_lease(now_s):
            return self._settings.stalled_s
        return await self._lease(now_s)

    async def _hold(self, now_s: float) -> bool:
        """Keep the right to connections; whether there is any."""
        wants_more = len(self._workers) >= self._may_hold and self._is_busy(now_s)
        urgent = wants_more or not self._may_hold
        every_s = self._settings.hold_soon_s if urgent else self._settings.hold_every_s
        if now_s - self._hold_asked_s < every_s:
            return self._may_hold > 0
        wanted = max(1, 2 * len(self._workers) if wants_more else len(self._workers))
        self._hold_asked_s = now_s
        try:
            self._held = Connections(*await self._throttle("hold", wanted))
            self._held_until_s = now_s + self._held.valid_s
        except RetryableError as error:
            self._trouble = f"no connections from the Throttle: {error}"
        return self._may_hold > 0

    @property
    def _may_hold(self) -> int:
        """Connections that the Throttle has granted and that have not lapsed."""
        return self._held.held if self._clock.monotonic() < self._held_until_s else 0

    def _is_busy(self, now_s: float) -> bool:
        """Every connection is on the wire and moves on, and the processor has time for more."""
        return (
            bool(self._ready)
            and len(self._on_wire) >= len(self._workers)
            and now_s - self._progress_s < self._settings.stalled_s
            and self._sender.composing < 2
        )

    def _is_stalled(self, now_s: float) -> bool:
        busy = bool(self._workers) and len(self._on_wire) >= len(self._workers)
        return busy and now_s - self._progress_s > self._settings.stalled_s

    def _wants_lease(self, now_s: float) -> bool:
        fresh = [s for s in self._asking.values() if now_s - s < self._settings.lease_seconds]
        if len(self._ready) + len(fresh) >= self._settings.leases_ahead:
            return False
        return not self._work.keys() <= self._asking.keys()

    def _add_worker(self, now_s: float) -> None:
        if not self._workers or (len(self._workers) < self._may_hold and self._is_busy(now_s)):
            self._workers.add(self._sender.spawn(self._work_connection()))

    async def _throttle(self, method: str, *arguments: Any) -> Any:
        return await self._sender.ports.throttle.call(
            method, self._sender.name, tuple(self.lane), *arguments, deadline_s=2.0, once=True
        )

    # -- leases ------------------------------------------------------------------------------------

    async def _lease(self, now_s: float) -> float:
        """Get permits and ask the next shard; seconds to wait where there are none."""
        wanted, unused = self._lease_rows(), self._unused
        self._unused = 0
        try:
            grant = Grant(*await self._throttle("grant", wanted, unused))
        except RetryableError as error:
            self._trouble = f"no permits from the Throttle: {error}"
            return self._settings.trouble_pause_s
        if not grant.permits:
            return min(max(grant.wait_s, 0.01), self._settings.idle_s)
        self._trouble = ""
        shard = next(s for s in self._work if s not in self._asking)
        del self._work[shard]
        self._asking[shard] = now_s
        self._sender.spawn(self._take_lease(shard, grant.permits, now_s + grant.valid_s))
        return 0.0

    def _lease_rows(self) -> int:
        settings = self._settings
        rows = int(self._pace_per_s * settings.lease_seconds)
        return min(max(rows, settings.lease_rows_min), settings.lease_rows_max)

    async def _take_lease(self, shard: int, permits: int, until_s: float) -> None:
        sender, sending = self._sender, self._sender.sending
        lease_id = sender.random.getrandbits(63)
        serves = sender.ports.serves.get(self.lane.source, ())
        sending.open_lease(
            lease_id, shard, self.lane.source, self.lane.site, self._domains, permits, serves
        )
        sender.want_journal()
        await sender.until(lambda: sending.is_opened(lease_id))
        more = await self._ask(shard, lease_id)
        lease = sending.leases.get(lease_id)
        rows = lease.grant.rows.num_rows if lease is not None and lease.grant is not None else 0
        self._unused += permits - rows
        if rows:
            await self._prepare(lease_id, until_s)
        elif lease is not None:
            sender.settle_now(lease_id)
        del self._asking[shard]
        if more:
            self._work[shard] = None
        self._moved.set()

    async def _ask(self, shard: int, lease_id: int) -> bool:
        """Ask for the lease until there is an answer; whether there is more to be had."""
        sender = self._sender
        while True:
            asked_s = self._clock.monotonic()
            command = sender.sending.lease_command(lease_id)
            (answer,) = await sender.ports.shards.execute_on(shard, [command], 0.0)
            if isinstance(answer, Fenced):
                sender.end(str(answer))
                raise answer
            if isinstance(answer, RetryableError):
                # It may have been granted and the answer lost: the same name asks again.
                self._trouble = f"shard {shard}: {answer}"
                pause_s = self._settings.trouble_pause_s * sender.random.uniform(0.5, 1.5)
                await asyncio.sleep(pause_s)
                continue
            if isinstance(answer, MantaError):
                logger.error("%s: shard %d refused a lease: %s", sender.name, shard, answer)
                self._trouble = f"shard {shard} refused: {answer}"
                sender.sending.abandon(lease_id)
                return False
            sender.sending.granted(lease_id, answer, asked_s, self._clock.now())
            return bool(answer.more)

    async def _prepare(self, lease_id: int, until_s: float) -> None:
        """Rows as the composer takes them, and the composers of their campaigns."""
        lease = self._sender.sending.leases[lease_id]
        assert lease.grant is not None
        rows = lease.grant.rows
        try:
            composers = {
                campaign_id: await self._sender.ports.composers.of_campaign(campaign_id)
                for campaign_id in dict.fromkeys(rows.column("campaign_id").to_pylist())
            }
        except MantaError as error:
            logger.warning("%s: no content: %s", self._sender.name, error)
            self._trouble = f"no content: {error}"
            self._give_back(lease_id, f"content is not to be had: {error}")
            await asyncio.sleep(self._settings.trouble_pause_s)
            return
        names = [name.removeprefix(ATTRIBUTE_PREFIX) for name in rows.column_names]
        by_ref = {
            MessageRef(row["subscriber_id"], row["message_key"]): row
            for row in rows.rename_columns(names).to_pylist()
        }
        self._ready.append(_Lease(lease_id, until_s, by_ref, composers))
        self._has_lease.set()

    def _return_lapsed(self, now_s: float) -> None:
        while self._ready and self._ready[0].until_s <= now_s:
            self._give_back(self._ready.popleft().lease_id, "permits lapsed before it was sent")

    def _return_ready(self, reason: str) -> None:
        while self._ready:
            self._give_back(self._ready.popleft().lease_id, reason)

    def _give_back(self, lease_id: int, reason: str) -> None:
        if lease_id in self._sender.sending.leases:
            self._sender.sending.give_back(lease_id, self._clock.now(), reason)
            self._sender.settle_now(lease_id)

    # -- connections -------------------------------------------------------------------------------

    async def _work_connection(self) -> None:
        """One connection after the other, burst after burst, until there is nothing to do."""
        connection: Connection | None = None
        try:
            while len(self._workers) <= self._may_hold:
                if connection is None or not connection.usable:
                    if connection is not None:
                        await connection.quit()
                    connection = await self._connect()
                    if connection is None:
                        return
                lease = await self._next_lease()
                if lease is None:
                    return
                await self._next_burst(connection, lease)
        finally:
            # Out of the count at once, so that the others see what is left.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._moved.set()
            if connection is not None:
                if self._sender.ended:
                    connection.abort()
                else:
                    await connection.quit()

    async def _connect(self) -> Connection | None:
        opened = await self._sender.ports.connect(self.lane, self._held.messages_per_connection)
        if not isinstance(opened, Reply):
            return opened
        now_s = self._clock.monotonic()
        self._backoff = self._backoff.failed(self._settings.backoff, now_s, self._sender.random)
        self._trouble = f"no connection: {opened.code or ''} {opened.text}".strip()
        if len(self._workers) <= 1:
            self._return_ready(self._trouble)
        return None

    async def _next_lease(self) -> _Lease | None:
        """The lease to go on with; None after a long time without any."""
        while not self._ready:
            self._has_lease.clear()
            if not await wait_at_most(self._has_lease, self._settings.idle_s):
                return None
        return self._ready[0]

    async def _next_burst(self, connection: Connection, lease: _Lease) -> None:
        now_s, now = self._clock.monotonic(), self._clock.now()
        self._return_lapsed(now_s)
        if not self._ready or self._ready[0] is not lease:
            return
        limit = min(self._settings.burst_messages, connection.room)
        burst = self._sender.sending.take_burst(lease.lease_id, limit, now_s, now)
        if burst is None:
            self._ready.popleft()
            self._sender.settle_now(lease.lease_id)
            self._moved.set()
            return
        on_wire = _OnWire(
            connection,
            frozenset(lease.rows[ref]["campaign_id"] for ref in burst.refs),
            frozenset(burst.refs),
        )
        self._on_wire.add(on_wire)
        self._moved.set()
        try:
            await self._send(connection, lease, burst)
        finally:
            self._on_wire.discard(on_wire)

    async def _send(self, connection: Connection, lease: _Lease, burst: Burst) -> None:
        """Store the attempts, compose meanwhile, send, and note the outcomes."""
        sender, sending = self._sender, self._sender.sending
        sender.want_journal()
        composed = await sender.in_compose_thread(lambda: self._compose(lease, burst))
        await sender.until(lambda: burst.is_stored or burst.is_refused)
        now_s, now = self._clock.monotonic(), self._clock.now()
        envelopes = []
        for ref in sending.on_the_wire(burst, now_s, now):
            mail = composed[ref]
            if isinstance(mail, Envelope):
                envelopes.append(mail)
            else:
                outcome = Outcome(*ref, OutcomeKind.FAILED, now, mail, source=self.lane.source)
                sender.decide(burst.lease_id, outcome)
        if envelopes:
            checked_s = sending.leases[burst.lease_id].checked_s
            fresh_s = min(checked_s + sending.settings.fresh_s, lease.until_s) - now_s
            replies = await connection.send_burst(envelopes, max(0.0, fresh_s))
            self._note(connection, burst, envelopes, replies)
        sender.want_journal()

    def _compose(self, lease: _Lease, burst: Burst) -> dict[MessageRef, Envelope | str]:
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
                source = self.lane.source
                settings = sender.settings.sending
                outcome = outcome_of(ref, reply, attempts, source, now, sender.random, settings)
            sender.decide(burst.lease_id, outcome)
            accepted += reply.verdict is Verdict.ACCEPTED
        self._keep_pace(len(envelopes))
        if accepted:
            self._backoff = CALM
        elif not connection.is_open:
            self._trouble = f"a connection broke: {replies[-1].text}"
            self._backoff = self._backoff.failed(
                self._settings.backoff, self._clock.monotonic(), sender.random
            )

    def _keep_pace(self, messages: int) -> None:
        now_s = self._clock.monotonic()
        self._progress_s = now_s
        self._paced += messages
        span_s = now_s - self._pace_since_s
        if span_s >= 0.5:
            # A pause without work says nothing about the pace.
            self._pace_per_s += 0.5 * (self._paced / min(span_s, 2.0) - self._pace_per_s)
            self._paced, self._pace_since_s = 0, now_s


async def wait_at_most(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether the event was set in time. (``wait_for`` of Python 3.11 can swallow a cancel.)"""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
