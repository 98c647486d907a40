"""One lane of a Sender: (egress source, site), from the first wake-up until it has no more work.

The lane's loop holds the right to connections, opens one, gets permits, and takes leases ahead of
need, at most as many as go out in ``lease_seconds`` at the present pace. Each connection has a
worker (``actors.bursts``) that takes bursts from the leases. What is not begun while permit and
check are fresh goes back.

A connection that cannot be had pauses the lane (``manta.delivery.retry.LaneBackoff``); nothing is
leased without one. While nothing moves (a server that hangs), nothing more is leased and no
connection is added.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.bursts import GrantedLease, OnWire, Worker, wait_at_most
from manta.delivery.lanes import Lane
from manta.delivery.retry import CALM, BackoffPolicy
from manta.delivery.throttle import Connections, Grant
from manta.errors import Fenced, MantaError, RetryableError
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


class LaneRun:
    """The lane's work. ``assign`` wakes it; ``run`` returns when it has been idle for long."""

    def __init__(self, sender: Sender, lane: Lane) -> None:
        self.lane = lane
        self._sender = sender
        self._clock = sender.clock
        self.settings = sender.settings.lane
        self._domains: tuple[str, ...] | None = None
        self._work: dict[int, None] = {}  # shards with due rows, in turn
        self._asking: dict[int, float] = {}  # shards that are being asked, since when
        self.ready: deque[GrantedLease] = deque()
        self._workers: dict[Worker, asyncio.Task[None]] = {}
        self.on_wire: set[OnWire] = set()
        self._moved = asyncio.Event()  # something changed that the loop may wait for
        self.has_lease = asyncio.Event()
        self._held = Connections(0, 0.0, 1)
        self._held_until_s = float("-inf")
        self._hold_asked_s = float("-inf")
        self._unused = 0
        self._permits_from_s = float("-inf")
        self._backoff = CALM
        self._pace_per_s = self.settings.first_pace_per_s
        self._pace_since_s = self._progress_s = self._clock.monotonic()
        self._paced = 0
        self._trouble = ""

    def assign(self, domains: tuple[str, ...] | None, shards: Iterable[int]) -> None:
        self._domains = domains
        self._work |= dict.fromkeys(shards)
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

    def status(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        return {
            "source": self.lane.source,
            "site": self.lane.site,
            "shards": sorted({*self._work, *self._asking}),
            "connections": len(self._workers),
            "connections_held": self.may_hold,
            "on_wire": sum(len(burst.refs) for burst in self.on_wire),
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
            self.return_lapsed(now_s)
            if self._work or self._asking or self.ready or self.on_wire:
                idle_since_s = now_s
            elif now_s - idle_since_s >= self.settings.idle_s:
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
        if release and self._held.held:
            try:
                await self._throttle("hold", 0)
            except MantaError:
                pass  # it lapses by itself

    async def _step(self, now_s: float) -> float:
        """One look; seconds to wait for something to move."""
        idle_s = self.settings.idle_s
        if not self._work and not self.ready:
            return idle_s if not (self._asking or self.on_wire) else self.settings.stalled_s
        pause_s = self._backoff.wait_s(now_s)
        if not self.ready:  # no connection is kept open for permits that are far away
            pause_s = max(pause_s, self._permits_from_s - now_s)
        if pause_s > 0:
            return min(pause_s, idle_s)
        if not await self._hold(now_s):
            return self.settings.trouble_pause_s
        self._add_worker(now_s)
        if not any(worker.is_connected for worker in self._workers):
            self.has_lease.set()  # whoever waits for one looks at its connection
        if self._is_stalled(now_s) or not self._wants_lease(now_s):
            return self.settings.stalled_s
        if now_s < self._permits_from_s:
            return min(self._permits_from_s - now_s, idle_s)
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
        except RetryableError as error:
            self._trouble = f"no connections from the Throttle: {error}"
        return self.may_hold > 0

    def _is_busy(self, now_s: float) -> bool:
        """Every connection is on the wire and moves on, and the processor has time for more."""
        return (
            bool(self.ready)
            and len(self.on_wire) >= len(self._workers)
            and now_s - self._progress_s < self.settings.stalled_s
            and self._sender.composing < 2
        )

    def _is_stalled(self, now_s: float) -> bool:
        busy = bool(self._workers) and len(self.on_wire) >= len(self._workers)
        return busy and now_s - self._progress_s > self.settings.stalled_s

    def _wants_lease(self, now_s: float) -> bool:
        fresh = [s for s in self._asking.values() if now_s - s < self.settings.lease_seconds]
        if len(self.ready) + len(fresh) >= self.settings.leases_ahead:
            return False
        connected = any(worker.is_connected for worker in self._workers)
        return connected and not self._work.keys() <= self._asking.keys()

    def _add_worker(self, now_s: float) -> None:
        if not self._workers or (len(self._workers) < self.may_hold and self._is_busy(now_s)):
            worker = Worker(self._sender, self)
            self._workers[worker] = self._sender.spawn(worker.run())

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
            return self.settings.trouble_pause_s
        if not grant.permits:
            self._permits_from_s = now_s + max(grant.wait_s, 0.01)
            return 0.0
        self._trouble = ""
        shard = next(s for s in self._work if s not in self._asking)
        del self._work[shard]
        self._asking[shard] = now_s
        self._sender.spawn(self._take_lease(shard, grant.permits, now_s + grant.valid_s))
        return 0.0

    def _lease_rows(self) -> int:
        settings = self.settings
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
                pause_s = self.settings.trouble_pause_s * sender.random.uniform(0.5, 1.5)
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
            await asyncio.sleep(self.settings.trouble_pause_s)
            return
        names = [name.removeprefix(ATTRIBUTE_PREFIX) for name in rows.column_names]
        by_ref = {
            MessageRef(row["subscriber_id"], row["message_key"]): row
            for row in rows.rename_columns(names).to_pylist()
        }
        self.ready.append(GrantedLease(lease_id, until_s, by_ref, composers))
        self.has_lease.set()

    def return_lapsed(self, now_s: float) -> None:
        while self.ready and self.ready[0].until_s <= now_s:
            self._give_back(self.ready.popleft().lease_id, "permits lapsed before it was sent")

    def _give_back(self, lease_id: int, reason: str) -> None:
        if lease_id in self._sender.sending.leases:
            self._sender.sending.give_back(lease_id, self._clock.now(), reason)
            self._sender.settle_now(lease_id)

    # -- for the workers ---------------------------------------------------------------------------

    @property
    def may_hold(self) -> int:
        """Connections that the Throttle has granted and that have not lapsed."""
        return self._held.held if self._clock.monotonic() < self._held_until_s else 0

    @property
    def messages_per_connection(self) -> int:
        return self._held.messages_per_connection

    @property
    def has_too_many_workers(self) -> bool:
        return len(self._workers) > self.may_hold

    def connected(self) -> None:
        self._moved.set()

    def gone(self, worker: Worker) -> None:
        """A worker stops: it counts no more, so that the others see what is left."""
        self._workers.pop(worker, None)
        self._moved.set()

    def failed(self, trouble: str) -> None:
        """A connection could not be had, or broke before it carried anything."""
        self._trouble = trouble
        now_s, random = self._clock.monotonic(), self._sender.random
        self._backoff = self._backoff.failed(self.settings.backoff, now_s, random)
        if not any(worker.is_connected for worker in self._workers):
            while self.ready:
                self._give_back(self.ready.popleft().lease_id, trouble)

    def succeeded(self) -> None:
        self._backoff = CALM

    def taken(self) -> None:
        """A burst was taken, or a lease used up: there may be room for another."""
        self._moved.set()

    def progressed(self, messages: int) -> None:
        """So many messages have an outcome."""
        now_s = self._clock.monotonic()
        self._progress_s = now_s
        self._paced += messages
        span_s = now_s - self._pace_since_s
        if span_s >= 0.5:
            # A pause without work says nothing about the pace.
            self._pace_per_s += 0.5 * (self._paced / min(span_s, 2.0) - self._pace_per_s)
            self._paced, self._pace_since_s = 0, now_s
