"""One lane of a Sender: (pool, source, site), from the first wake-up until it has no more work.

The lane's loop holds the right to connections, opens one, gets permits, and takes leases ahead of
need (``actors.leases``). Each connection has a worker (``actors.bursts``) that takes bursts from
the leases. What is not begun while permit and check are fresh goes back.

A connection that cannot be had pauses the lane (``manta.delivery.retry.LaneBackoff``); nothing is
leased without one, and the Throttle sees no demand, so other members of the pool take the mail
over. What waits for long gets the trouble as its reason. While nothing moves (a server that hangs),
nothing more is leased and no connection is added. A site that can never take mail needs no
connection, nor does a lane of which an action bounces all: what is due is leased and fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.bursts import GrantedLease, OnWire, Worker, wait_at_most
from actors.leases import Leases
from manta.delivery.lanes import Lane, Site
from manta.delivery.outcomes import Outcome
from manta.delivery.replies import Reply, Verdict
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.retry import CALM, BackoffPolicy
from manta.delivery.throttle.budgets import Connections, Grant
from manta.delivery.troubles import NoteTrouble
from manta.errors import MantaError
from manta.ids import MessageRef

if TYPE_CHECKING:
    from actors.sender import Sender

NOT_HELD = Connections(0, 0.0, 1)
AGAIN_MAX = 1_000  # messages that are remembered for having got a 421


@dataclass(frozen=True)
class LaneSettings:
    burst_messages: int = 50
    lease_seconds: float = 2.0
    lease_rows_min: int = 20
    lease_rows_max: int = 500
    leases_ahead: int = 2
    hold_every_s: float = 10.0
    hold_soon_s: float = 1.0  # when it has none, or could use more
    idle_s: float = 10.0  # then connections are closed and the lane ends
    direct_idle_s: float = 0.3  # the same, where thousands of small sites share few connections
    stalled_s: float = 1.0  # without progress: nothing more is leased
    trouble_pause_s: float = 1.0
    in_vain_s: float = 2.0  # a grant that left out all that is due: so long until the next one
    first_pace_per_s: float = 100.0
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)
    note_after_failures: int = 5  # about half a minute
    note_every_s: float = 600.0


class LaneRun:
    """The lane's work. ``assign`` wakes it; ``run`` returns when it has been idle for long."""

    def __init__(
        self, sender: Sender, lane: Lane, site: Site, permits_from_s: float = float("-inf")
    ) -> None:
        self.lane, self.site = lane, site
        self.settings = sender.settings.lane
        self.domains: tuple[str, ...] | None = None
        self.except_domains: tuple[str, ...] = ()
        self._sender = sender
        self._clock = sender.clock
        self._moved = asyncio.Event()  # something changed that the loop may wait for
        self.has_lease = asyncio.Event()
        self.on_wire: set[OnWire] = set()
        self.leases = Leases(sender, self)
        self._workers: dict[Worker, asyncio.Task[None]] = {}
        self._held = NOT_HELD
        self._held_until_s = float("-inf")
        self._hold_asked_s = float("-inf")
        self.permits_from_s = permits_from_s
        self._backoff = CALM
        self._noted_s = float("-inf")
        self._again: dict[MessageRef, None] = {}
        self.pace_per_s = self.settings.first_pace_per_s
        self._pace_since_s = self._progress_s = self._clock.monotonic()
        self._paced = 0
        self.trouble = ""

    def assign(
        self,
        site: Site,
        domains: tuple[str, ...] | None,
        except_domains: tuple[str, ...],
        due: Mapping[int, int],
    ) -> None:
        """Shards have so many rows due. New connections go to the site as it is now."""
        self.site, self.domains, self.except_domains = site, domains, except_domains
        self.leases.work |= due
        self._moved.set()

    def revoke(self, campaign_id: int | None, refs: set[Any]) -> None:
        """Stop bursts that hold something withdrawn: what is not begun goes back."""
        for burst in self.on_wire:
            if campaign_id in burst.campaigns or not burst.refs.isdisjoint(refs):
                burst.connection.stop("withdrawn before it was sent")

    def abort(self) -> None:
        """Close everything at once: this incarnation is over."""
        for burst in self.on_wire:
            burst.connection.abort()

    @property
    def is_resting(self) -> bool:
        """It cannot connect: it costs nothing until it may try again."""
        return self._backoff.wait_s(self._clock.monotonic()) > 0

    def status(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        return {
            **self.lane._asdict(),
            "refusal": self.site.refusal,
            "shards": sorted({*self.leases.work, *self.leases.asking}),
            "connections": len(self._workers),
            "connections_held": self.may_hold,
            "on_wire": sum(len(burst.refs) for burst in self.on_wire),
            "pace_per_s": round(self.pace_per_s, 1),
            "backoff_s": round(self._backoff.wait_s(now_s), 1),
            "connection_failures": self._backoff.failures,
            "permits_in_s": round(max(0.0, self.permits_from_s - now_s), 1),
            "trouble": self.trouble,
        }

    # -- the loop ----------------------------------------------------------------------------------

    @property
    def idle_s(self) -> float:
        return self.settings.direct_idle_s if self.site.exchangers else self.settings.idle_s

    async def run(self) -> None:
        idle_since_s = self._clock.monotonic()
        while True:
            self._moved.clear()
            now_s = self._clock.monotonic()
            self.leases.return_lapsed(now_s)
            if self.leases.is_busy or self.on_wire:
                idle_since_s = now_s
            elif now_s - idle_since_s >= self.idle_s:
                return
            pause_s = await self._step(now_s)
            if pause_s > 0:
                await wait_at_most(self._moved, pause_s)

    async def close(self, *, release: bool) -> None:
        """End the workers and their connections; ``release``: tell the Throttle."""
        tasks = list(self._workers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if release:
            await self._let_go()

    async def _step(self, now_s: float) -> float:
        """One look; seconds to wait for something to move."""
        leases, idle_s = self.leases, self.idle_s
        if not leases.work and not leases.ready:
            return idle_s if not (leases.asking or self.on_wire) else self.settings.stalled_s
        if self.site.refusal:
            if not leases.wants_more(now_s):
                return self.settings.stalled_s
            leases.take_refused(now_s)
            return 0.0
        backoff_s = pause_s = self._backoff.wait_s(now_s)
        if not leases.ready:  # no connection is kept open for permits that are far away
            pause_s = max(pause_s, self.permits_from_s - now_s)
        if pause_s > 0:
            if backoff_s > self.settings.hold_soon_s and not self._workers:
                await self._let_go()
            return min(pause_s, self.settings.idle_s)
        if not await self._hold(now_s) and not self._bounces:
            return self.settings.trouble_pause_s
        if self._bounces:
            return await self._lease(now_s) if leases.wants_more(now_s) else self.settings.stalled_s
        self._add_worker(now_s)
        if not self._is_connected:
            self.has_lease.set()  # whoever waits for one looks at its connection
        if self._is_stalled(now_s) or not (self._is_connected and leases.wants_more(now_s)):
            return self.settings.stalled_s
        if now_s < self.permits_from_s:
            return min(self.permits_from_s - now_s, idle_s)
        return await self._lease(now_s)

    async def _hold(self, now_s: float) -> bool:
        """Keep the right to connections; whether there is any."""
        wants_more = len(self._workers) >= self.may_hold and self._is_busy(now_s)
        urgent = wants_more or not self.may_hold
        every_s = self.settings.hold_soon_s if urgent else self.settings.hold_every_s
        if now_s - self._hold_asked_s < every_s:
            return self.may_hold > 0
        wanted = max(1, 2 * len(self._workers) if wants_more else len(self._workers))
        self._hold_asked_s = now_s
        try:
            self._held = Connections(*await self._throttle("hold", wanted))
            self._held_until_s = now_s + self._held.valid_s
            if self._held.wait_s:
                self.no_permits_for(self._held.wait_s)
        except MantaError as error:  # whatever it is, it ends no Sender
            self.trouble = f"no connections from the Throttle: {error}"
        return self.may_hold > 0

    async def _let_go(self) -> None:
        """Tell the Throttle that there are no connections any more: others may have them."""
        held, self._held = self._held, NOT_HELD
        self._held_until_s = self._hold_asked_s = float("-inf")
        if held.held:
            try:
                await self._throttle("hold", 0)
            except MantaError:
                pass  # it lapses by itself

    async def _lease(self, now_s: float) -> float:
        """Get permits and ask the next shard; seconds to wait where there are none."""
        leases = self.leases
        wanted, unused = leases.rows_wanted(), leases.take_unused()
        try:
            grant = Grant(*await self._throttle("grant", wanted, unused))
        except MantaError as error:
            self.trouble = f"no permits from the Throttle: {error}"
            return self.settings.trouble_pause_s
        if not grant.permits:
            self.no_permits_for(max(grant.wait_s, 0.01))
            return 0.0
        self.trouble = ""
        leases.take(grant, now_s)
        return 0.0

    async def _throttle(self, method: str, *arguments: Any) -> Any:
        return await self._sender.ports.throttle.call(
            method, self._sender.name, tuple(self.lane), *arguments, deadline_s=2.0, once=True
        )

    # -- connections -------------------------------------------------------------------------------

    def _add_worker(self, now_s: float) -> None:
        if not self._workers or (len(self._workers) < self.may_hold and self._is_busy(now_s)):
            worker = Worker(self._sender, self)
            self._workers[worker] = self._sender.spawn(worker.run())

    def _is_busy(self, now_s: float) -> bool:
        """Every connection is on the wire and moves on, and the processor has time for more."""
        return (
            bool(self.leases.ready)
            and len(self.on_wire) >= len(self._workers)
            and now_s - self._progress_s < self.settings.stalled_s
            and self._sender.composing < 2
        )

    def _is_stalled(self, now_s: float) -> bool:
        busy = bool(self._workers) and len(self.on_wire) >= len(self._workers)
        return busy and now_s - self._progress_s > self.settings.stalled_s

    @property
    def _is_connected(self) -> bool:
        return any(worker.is_connected for worker in self._workers)

    @property
    def may_hold(self) -> int:
        """Connections that the Throttle has granted and that have not lapsed."""
        return self._held.held if self._clock.monotonic() < self._held_until_s else 0

    @property
    def _bounces(self) -> bool:
        """All that is due is to fail without a connection."""
        return self._held.bounces and self._clock.monotonic() < self._held_until_s

    @property
    def held(self) -> Connections:
        """What the Throttle said last: how a connection is to be opened."""
        return self._held

    @property
    def has_too_many_workers(self) -> bool:
        return len(self._workers) > self.may_hold

    def connected(self) -> None:
        self._moved.set()

    def gone(self, worker: Worker) -> None:
        """A worker stops: it counts no more, so that the others see what is left."""
        self._workers.pop(worker, None)
        self._moved.set()

    def unreached(self, reply: Reply) -> None:
        """A connection could not be had."""
        code, said = reply.code, reply.text
        self._observe("", 0, Seen.UNREACHED, code=code, text=said, is_internal=not code)
        self.failed(f"no connection: {code or ''} {said}".replace("  ", " "))

    def failed(self, trouble: str) -> None:
        """A connection could not be had, or broke before it carried anything."""
        self.trouble = trouble
        now_s, random = self._clock.monotonic(), self._sender.random
        self._backoff = self._backoff.failed(self.settings.backoff, now_s, random)
        if not self._is_connected:
            self.leases.return_all(trouble)
        is_long = self._backoff.failures >= self.settings.note_after_failures
        if is_long and now_s - self._noted_s >= self.settings.note_every_s:
            self._noted_s = now_s
            for shard in list(self.leases.work):
                self._sender.spawn(self._note(shard, trouble))

    async def _note(self, shard: int, trouble: str) -> None:
        """The rows that wait get the trouble as their reason, in case they expire so."""
        note = NoteTrouble((self.lane.pool,), trouble, self.domains, self.except_domains)
        while True:
            (answer,) = await self._sender.ports.shards.execute_on(shard, [note], 0.0)
            if isinstance(answer, MantaError) or not answer:
                return  # in vain: it is noted again

    def succeeded(self) -> None:
        self._backoff, self._noted_s = CALM, float("-inf")

    # -- for leases and workers --------------------------------------------------------------------

    def no_permits_for(self, seconds: float) -> None:
        """Ask for none before; this outlives the lane, which may end and be assigned again."""
        self.permits_from_s = self._clock.monotonic() + seconds

    def moved(self) -> None:
        """A burst was taken, a lease came or was used up: there may be something to do."""
        self._moved.set()

    def progressed(self, messages: int) -> None:
        """So many messages have an outcome."""
        now_s = self._clock.monotonic()
        self._progress_s = now_s
        self._paced += messages
        span_s = now_s - self._pace_since_s
        if span_s >= 0.5:
            # A pause without work says nothing about the pace.
            self.pace_per_s += 0.5 * (self._paced / min(span_s, 2.0) - self.pace_per_s)
            self._paced, self._pace_since_s = 0, now_s

    def may_go_again(self, ref: MessageRef) -> bool:
        """Whether a message whose connection was closed (421) may go at once; once for each."""
        if ref in self._again:
            return False
        self._again[ref] = None
        if len(self._again) > AGAIN_MAX:
            del self._again[next(iter(self._again))]
        return True

    # -- what Reputation hears ---------------------------------------------------------------------

    def observe(self, lease: GrantedLease, campaign_id: int, seen: Seen, **said: Any) -> None:
        domain = lease.composers[campaign_id].sending_domain
        self._observe(domain, campaign_id, seen, **said)

    def observe_refused(
        self, lease: GrantedLease, campaign_id: int, reply: Reply, outcome: Outcome
    ) -> None:
        """What a server, or nobody, said about a message that it did not take."""
        if reply.verdict not in (Verdict.DEFERRED, Verdict.FAILED):
            return
        self.observe(
            lease,
            campaign_id,
            Seen(reply.verdict.value),
            bounce_class=BounceClass(outcome.bounce_class),
            category=outcome.category,
            code=reply.code,
            text=reply.text if reply.code else outcome.reason,
            is_internal=not reply.code,
        )

    def _observe(self, domain: str, campaign_id: int, seen: Seen, **said: Any) -> None:
        lane, now = self.lane, self._clock.now()
        self._sender.observe(
            Observed(now, seen, domain, lane.source, lane.provider, lane.site, campaign_id, **said)
        )
