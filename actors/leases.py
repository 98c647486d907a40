"""A lane's leases: what shards have for it, what is being asked for, and what is ready to be sent.

A lease is asked for with permits in hand, for as many rows as go out in ``lease_seconds`` at the
present pace and never for more than the shard said is due, so that small sites take no permits from
large ones. What a grant forbids to send is leased too, and fails without the network; so is all
that is due for a site that can never take mail.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from actors.bursts import GrantedLease
from manta.delivery.reputation.observations import BounceClass, Seen
from manta.delivery.returns.classification import Category
from manta.delivery.routing.sites import refusal_class
from manta.delivery.sending import Refusal, Wanted
from manta.delivery.throttle.budgets import Grant
from manta.errors import Fenced, MantaError, RetryableError
from manta.ids import MessageRef
from manta.schema import ATTRIBUTE_PREFIX

if TYPE_CHECKING:
    from actors.lanes import LaneRun
    from actors.sender import Sender

EVERY_CAMPAIGN = 0  # in a grant's ``bounces``
logger = logging.getLogger("manta.actors.sender")


class Leases:
    """``work``: shards with due rows, in turn, and how many; ``asking``: those that are being
    asked, since when; ``ready``: what may be sent."""

    def __init__(self, sender: Sender, lane: LaneRun) -> None:
        self._sender, self._lane = sender, lane
        self._clock = sender.clock
        self.work: dict[int, int] = {}
        self.asking: dict[int, float] = {}
        self.ready: deque[GrantedLease] = deque()
        self._unused: list[tuple[float, int]] = []  # when permits lapse, and how many

    @property
    def is_busy(self) -> bool:
        return bool(self.work or self.asking or self.ready)

    def wants_more(self, now_s: float) -> bool:
        settings = self._lane.settings
        fresh = [s for s in self.asking.values() if now_s - s < settings.lease_seconds]
        if len(self.ready) + len(fresh) >= settings.leases_ahead:
            return False
        return not self.work.keys() <= self.asking.keys()

    def rows_wanted(self) -> int:
        """Rows of the next lease: as many as go out in its time, and as are due."""
        settings = self._lane.settings
        rows = int(self._lane.pace_per_s * settings.lease_seconds)
        rows = min(max(rows, settings.lease_rows_min), settings.lease_rows_max)
        return max(1, min(rows, self.work[self._next_shard()]))

    def keep_unused(self, permits: int, until_s: float) -> None:
        """Permits that will never be used; they lapse then."""
        self._unused.append((until_s, permits))

    def take_unused(self) -> int:
        """Those that still live, once. The Throttle would take lapsed ones for others, which it has
        given since and which may be used."""
        now_s, unused = self._clock.monotonic(), self._unused
        self._unused = []
        return sum(permits for until_s, permits in unused if now_s < until_s)

    def take(self, grant: Grant, now_s: float) -> None:
        """Ask the next shard, with these permits in hand."""
        shard = self._begin(now_s)
        self._sender.spawn(self._take(shard, grant, now_s + grant.valid_s))

    def take_refused(self, now_s: float) -> None:
        """Ask the next shard for what can never be delivered."""
        self._sender.spawn(self._refuse(self._begin(now_s)))

    def return_lapsed(self, now_s: float) -> None:
        while self.ready and self.ready[0].until_s <= now_s:
            self._give_back(self.ready.popleft().lease_id, "permits lapsed before it was sent")

    def return_all(self, reason: str) -> None:
        while self.ready:
            self._give_back(self.ready.popleft().lease_id, reason)

    # -- asking ------------------------------------------------------------------------------------

    def _next_shard(self) -> int:
        return next(s for s in self.work if s not in self.asking)

    def _begin(self, now_s: float) -> int:
        shard = self._next_shard()
        del self.work[shard]
        self.asking[shard] = now_s
        return shard

    def _wanted(self, limit: int, without: tuple[int, ...] = (), engaged: bool = False) -> Wanted:
        lane = self._lane
        return Wanted(lane.lane, limit, lane.domains, lane.except_domains, without, engaged)

    async def _take(self, shard: int, grant: Grant, until_s: float) -> None:
        wanted = self._wanted(grant.permits, grant.without, grant.warming)
        lease_id, rows, more = await self._open(shard, wanted)
        if rows:
            rows -= await self._prepare(lease_id, until_s, dict(grant.bounces))
        elif grant.warming or grant.without:
            self._lane.no_permits_for(self._lane.settings.in_vain_s)
        if not any(campaign == EVERY_CAMPAIGN for campaign, _ in grant.bounces):
            self.keep_unused(grant.permits - rows, until_s)
        self._end(shard, more)

    async def _refuse(self, shard: int) -> None:
        lane = self._lane
        wanted = self._wanted(lane.settings.lease_rows_max)
        lease_id, rows, more = await self._open(shard, wanted)
        if rows:
            why = lane.site.refusal
            refusal = Refusal(why, refusal_class(why), Category.BAD_DOMAIN)
            lease = await self._composed(lease_id, float("inf"))
            if lease is not None:
                self._fail(lease, list(lease.rows), refusal)
                self._sender.settle_now(lease_id)
        self._end(shard, more)

    def _end(self, shard: int, more: bool) -> None:
        del self.asking[shard]
        if more:
            self.work.setdefault(shard, self._lane.settings.lease_rows_max)
        self._lane.moved()

    async def _open(self, shard: int, wanted: Wanted) -> tuple[int, int, bool]:
        """A lease, how many rows it has, and whether there are more."""
        sender = self._sender
        lease_id = sender.random.getrandbits(63)
        sender.sending.open_lease(lease_id, shard, wanted)
        sender.want_journal()
        await sender.until(lambda: sender.sending.is_opened(lease_id))
        more = await self._ask(shard, lease_id)
        lease = sender.sending.leases.get(lease_id)
        rows = lease.grant.rows.num_rows if lease is not None and lease.grant is not None else 0
        if lease is not None and not rows:
            sender.settle_now(lease_id)
        return lease_id, rows, more

    async def _ask(self, shard: int, lease_id: int) -> bool:
        """Ask for the lease until there is an answer; whether there is more to be had."""
        sender, lane = self._sender, self._lane
        while True:
            asked_s = self._clock.monotonic()
            command = sender.sending.lease_command(lease_id)
            (answer,) = await sender.ports.shards.execute_on(shard, [command], 0.0)
            if isinstance(answer, Fenced):
                sender.end(str(answer))
                raise answer
            if isinstance(answer, RetryableError):
                # It may have been granted and the answer lost: the same name asks again.
                lane.trouble = f"shard {shard}: {answer}"
                pause_s = lane.settings.trouble_pause_s * sender.random.uniform(0.5, 1.5)
                await asyncio.sleep(pause_s)
                continue
            if isinstance(answer, MantaError):
                logger.error("%s: shard %d refused a lease: %s", sender.name, shard, answer)
                lane.trouble = f"shard {shard} refused: {answer}"
                sender.sending.abandon(lease_id)
                return False
            sender.sending.granted(lease_id, answer, asked_s, self._clock.now())
            return bool(answer.more)

    # -- what was granted --------------------------------------------------------------------------

    async def _prepare(self, lease_id: int, until_s: float, bounces: dict[int, str]) -> int:
        """Make the lease ready for the workers. How many of its messages failed by decree."""
        lease = await self._composed(lease_id, until_s)
        if lease is None:
            return 0
        failed = 0
        for campaign_id, cause in bounces.items():
            refs = [
                ref
                for ref, row in lease.rows.items()
                if campaign_id in (EVERY_CAMPAIGN, row["campaign_id"])
            ]
            reason = f"administratively bounced: {cause}"
            failed += self._fail(lease, refs, Refusal(reason, BounceClass.NONE, ""))
        if failed:
            self._sender.settle_now(lease_id)
        if failed < len(lease.rows):
            self.ready.append(lease)
            self._lane.has_lease.set()
        return failed

    async def _composed(self, lease_id: int, until_s: float) -> GrantedLease | None:
        """Rows as the composer takes them, and the composers of their campaigns; None, and the
        rows go back, where those are not to be had."""
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
            self._lane.trouble = f"no content: {error}"
            self._give_back(lease_id, f"content is not to be had: {error}")
            await asyncio.sleep(self._lane.settings.trouble_pause_s)
            return None
        names = [name.removeprefix(ATTRIBUTE_PREFIX) for name in rows.column_names]
        by_ref = {
            MessageRef(row["subscriber_id"], row["message_key"]): row
            for row in rows.rename_columns(names).to_pylist()
        }
        return GrantedLease(lease_id, until_s, by_ref, composers)

    def _fail(self, lease: GrantedLease, refs: list[MessageRef], refusal: Refusal) -> int:
        """Fail messages without the network, and say so. How many there were."""
        now_s, now = self._clock.monotonic(), self._clock.now()
        failed = self._sender.sending.refuse(lease.lease_id, refs, refusal, now_s, now)
        self._sender.counts["failed"] += len(failed)
        campaigns = [lease.rows[ref]["campaign_id"] for ref in failed]
        for campaign_id in dict.fromkeys(campaigns):
            self._lane.observe(
                lease,
                campaign_id,
                Seen.FAILED,
                bounce_class=refusal.bounce_class,
                category=refusal.category,
                text=refusal.reason,
                is_internal=True,
                messages=campaigns.count(campaign_id),
            )
        return len(failed)

    def _give_back(self, lease_id: int, reason: str) -> None:
        if lease_id in self._sender.sending.leases:
            self._sender.sending.give_back(lease_id, self._clock.now(), reason)
            self._sender.settle_now(lease_id)
