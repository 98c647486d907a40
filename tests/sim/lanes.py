"""A lane of a simulated Sender: what ``actors/lanes.py``, ``leases.py`` and ``bursts.py`` do.

Two connections work on it. Each asks for the right to connect, connects, gets permits, leases,
attempts and settles, as long as the Director has told of due rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manta.delivery.lanes import Lane, Site
from manta.delivery.outcomes import Outcome, OutcomeKind
from manta.delivery.replies import Reply, Verdict
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.retry import CALM, BackoffPolicy
from manta.delivery.returns.classification import Category
from manta.delivery.routing.sites import refusal_class
from manta.delivery.sending import Burst, Refusal, Wanted, outcome_of
from manta.delivery.throttle.budgets import Connections, Grant
from manta.delivery.troubles import NoteTrouble
from manta.errors import Fenced, RetryableError
from manta.ids import MessageRef
from tests.sim.auditor import Violation
from tests.sim.pacing import Handed
from tests.sim.protection import Granted
from tests.sim.scheduler import Died, Steps

if TYPE_CHECKING:
    from tests.sim.sender import SenderProcess

CONNECTIONS = 2
IDLE_S = 4.0
EMPTY_S = 3.0  # before it asks again where there was nothing
EVERY_CAMPAIGN = 0
_BACKOFF = BackoffPolicy(wait_s_max=20.0)


class LaneWork:
    def __init__(self, sender: SenderProcess, lane: Lane) -> None:
        self.lane, self._sender, self._w = lane, sender, sender.w
        self._random, self._clock = sender.random, sender.clock
        self._site = Site(lane.site, lane.provider)
        self._domains: tuple[str, ...] | None = None
        self._except: tuple[str, ...] = ()
        self._work: dict[int, int] = {}
        # Of which grants, until when, and how many permits.
        self._unused: list[tuple[Handed, float, int]] = []
        self._backoff = CALM
        self._held = Connections(0, 0.0, 1)
        self._held_until_s = self._asked_s = float("-inf")
        self._connections = CONNECTIONS
        for place in range(CONNECTIONS):
            self._w.scheduler.spawn(sender, self._run(place))

    def assign(
        self,
        site: Site,
        domains: tuple[str, ...] | None,
        except_domains: tuple[str, ...],
        due: Mapping[int, int],
    ) -> None:
        self._site, self._domains, self._except = site, domains, except_domains
        self._work |= due

    # -- one connection ----------------------------------------------------------------------------

    def _run(self, place: int) -> Steps:
        idle_since_s = self._clock.monotonic()
        while self._clock.monotonic() - idle_since_s < IDLE_S:
            if not self._work:
                yield 1.0
                continue
            if self._site.refusal:
                yield from self._refuse()
            else:
                yield from self._deliver(place)
            idle_since_s = self._clock.monotonic()
        self._connections -= 1
        if not self._connections:
            del self._sender.lanes[self.lane]
            if self._held.held:
                self._w.network.send("throttle", "hold", self._arguments(0))

    def _deliver(self, place: int) -> Steps:
        """Permits for one lease, and what becomes of it."""
        yield self._backoff.wait_s(self._clock.monotonic())
        may_connect = yield from self._hold(place)
        if not may_connect and not self._held.bounces:
            yield 1.0
            return
        if not self._held.bounces and not (yield from self._connect()):
            return
        asked_s = self._clock.monotonic()
        wanted = self._random.randint(1, 4)
        unused = self._take_unused()
        try:
            given: Granted = yield from self._w.network.ask(
                "throttle", "grant", *self._arguments(wanted), unused, within_s=2.0
            )
        except RetryableError:
            yield 1.0
            return
        grant = given.grant
        if not grant.permits:
            yield min(max(grant.wait_s, 0.02), 10.0)
            return
        if not self._work:
            self._unused.append((given.handed, asked_s + grant.valid_s, grant.permits))
            return
        yield from self._use(given, asked_s + grant.valid_s)

    def _take_unused(self) -> int:
        """Permits that go back with the next question."""
        now_s = self._clock.monotonic()
        unused = [each for each in self._unused if self._w.mutant.returns_lapsed or now_s < each[1]]
        self._unused = []
        for handed, _, permits in unused:
            handed.permits -= permits
        return sum(permits for *_, permits in unused)

    def _arguments(self, wanted: int) -> tuple[Any, ...]:
        return (self._sender.name, tuple(self.lane), wanted)

    def _hold(self, place: int) -> Steps:
        """Whether this connection may be had."""
        now_s = self._clock.monotonic()
        every_s = 10.0 if self._held.held else 1.0
        if now_s - self._asked_s >= every_s:
            self._asked_s = now_s
            try:
                self._held = yield from self._w.network.ask(
                    "throttle", "hold", *self._arguments(CONNECTIONS), within_s=2.0
                )
                self._held_until_s = now_s + self._held.valid_s
            except RetryableError:
                pass
        return self._clock.monotonic() < self._held_until_s and place < self._held.held

    def _connect(self) -> Steps:
        yield 0.02
        if not self._w.receiver.is_reached(self.lane):
            now_s = self._clock.monotonic()
            self._backoff = self._backoff.failed(_BACKOFF, now_s, self._random)
            self._observe(Seen.UNREACHED, is_internal=True, text="connection refused")
            for shard in list(self._work) if self._backoff.failures > 3 else ():
                note = NoteTrouble(
                    (self.lane.pool,), "connection refused", self._domains, self._except
                )
                yield from self._w.call(shard, note)
            return False
        self._backoff = CALM
        return True

    # -- leases ------------------------------------------------------------------------------------

    def _use(self, given: Granted, until_s: float) -> Steps:
        grant = given.grant
        shard = self._next_shard()
        lease_id = yield from self._lease(shard, grant)
        lease = self._sender.sending.leases.get(lease_id)
        rows = 0 if lease is None or lease.grant is None else lease.grant.rows.num_rows
        failed = self._fail(lease_id, grant) if rows else 0
        if not any(campaign == EVERY_CAMPAIGN for campaign, _ in grant.bounces):
            self._unused.append((given.handed, until_s, grant.permits - (rows - failed)))
        yield from self._work_off(shard, lease_id, given, until_s)
        if not rows:
            yield EMPTY_S

    def _next_shard(self) -> int:
        shard = next(iter(self._work))
        del self._work[shard]
        return shard

    def _lease(self, shard: int, grant: Grant) -> Steps:
        """Its name; where there is more to be had, the shard goes back to the others."""
        sending, lease_id = self._sender.sending, self._random.getrandbits(60)
        self._w.point(self._sender, "before a lease")
        wanted = Wanted(
            self.lane, grant.permits, self._domains, self._except, grant.without, grant.warming
        )
        sending.open_lease(lease_id, shard, wanted)
        self._sender.want_journal()
        while not sending.is_opened(lease_id):
            yield 0.05
        try:
            granted, asked_s = yield from self._w.call(shard, sending.lease_command(lease_id))
        except Fenced as error:
            raise Died from error
        self._w.point(self._sender, "after a grant")
        sending.granted(lease_id, granted, asked_s, self._clock.now())
        if granted.more:
            self._work.setdefault(shard, 1)
        return lease_id

    def _fail(self, lease_id: int, grant: Grant) -> int:
        """What a decree of the law bounces; how many messages."""
        lease = self._sender.sending.leases.get(lease_id)
        failed = 0
        for campaign_id, cause in grant.bounces if lease is not None else ():
            assert lease is not None
            refs = [
                ref
                for ref, message in lease.messages.items()
                if campaign_id in (EVERY_CAMPAIGN, message.campaign_id)
            ]
            failed += len(self._refused(lease_id, refs, Refusal(cause, BounceClass.NONE, "")))
        return failed

    def _refuse(self) -> Steps:
        """Messages to domains that take no mail fail without the network."""
        shard = self._next_shard()
        lease_id = yield from self._lease(shard, Grant(200, 0.0, 0.0))
        lease = self._sender.sending.leases.get(lease_id)
        if lease is not None:
            why = self._site.refusal
            refusal = Refusal(why, refusal_class(why), Category.BAD_DOMAIN)
            self._refused(lease_id, list(lease.messages), refusal)
        yield from self._work_off(shard, lease_id, None, float("-inf"))

    def _refused(self, lease_id: int, refs: list[MessageRef], refusal: Refusal) -> list[MessageRef]:
        now_s, now = self._clock.monotonic(), self._clock.now()
        failed = self._sender.sending.refuse(lease_id, refs, refusal, now_s, now)
        if failed:
            self._observe(
                Seen.FAILED,
                bounce_class=refusal.bounce_class,
                category=refusal.category,
                text=refusal.reason,
                is_internal=True,
                messages=len(failed),
            )
        return failed

    def _work_off(self, shard: int, lease_id: int, given: Granted | None, until_s: float) -> Steps:
        """Attempt and settle until nothing of the lease is left."""
        sending = self._sender.sending
        while lease_id in sending.leases:
            now_s, now = self._clock.monotonic(), self._clock.now()
            if given is None or now_s >= until_s:
                sending.give_back(lease_id, now, "permits lapsed before it was sent")
            burst = sending.take_burst(lease_id, self._random.randint(1, 4), now_s, now)
            if burst is not None:
                assert given is not None
                yield from self._attempt(burst, given, until_s)
            yield from self._settle(shard, lease_id)
            yield 0.1

    # -- the wire ----------------------------------------------------------------------------------

    def _attempt(self, burst: Burst, given: Granted, until_s: float) -> Steps:
        sender, sending = self._sender, self._sender.sending
        sender.want_journal()
        while not (burst.is_stored or burst.is_refused):
            yield 0.05
        going = sending.on_the_wire(burst, self._clock.monotonic(), self._clock.now())
        for ref in going:
            self._check_freshness(ref)
        for ref in going:
            now_s = self._clock.monotonic()
            if now_s >= until_s:
                outcome = Outcome(
                    *ref, OutcomeKind.RETURNED, self._clock.now(), "permits lapsed on the way"
                )
            else:
                self._w.pacing.sent(self.lane, now_s)
                self._w.point(sender, "before DATA")
                yield 0.02
                reply = yield from self._w.receiver.transact(ref, self.lane)
                tried = sending.tried(burst.lease_id, ref)
                outcome = outcome_of(
                    tried,
                    reply,
                    self.lane.source,
                    self._clock.now(),
                    self._random,
                    sender.settings,
                )
                self._tell(reply, outcome)
            name = f"{sender.name} of epoch {sender.epoch}"
            self._w.note(f"{name}: {ref.subscriber_id} {outcome.outcome} by {self.lane.source}")
            self._w.point(sender, "after the reply")
            sending.decide(burst.lease_id, outcome)
        sender.want_journal()

    def _check_freshness(self, ref: MessageRef) -> None:
        """Nobody is mailed later than the freshness limit after an unsubscribe was answered."""
        unsubscribed_s = self._w.unsubscribed.get(ref.subscriber_id)
        if unsubscribed_s is not None:
            late_s = self._clock.monotonic() - unsubscribed_s
            if late_s > self._sender.settings.fresh_s:
                raise Violation(f"{ref} goes out {late_s:.1f} s after an unsubscribe")

    def _settle(self, shard: int, lease_id: int) -> Steps:
        sending = self._sender.sending
        settle = sending.next_settle(lease_id, self._clock.monotonic(), self._clock.now())
        if settle is None:
            return
        self._w.point(self._sender, "before a settle")
        yield from self._w.call(shard, settle)
        self._w.point(self._sender, "after a settle")
        if self._w.chance(0.1):
            sending.settle_failed(lease_id)
        else:
            sending.settled(lease_id)

    # -- what Reputation hears ---------------------------------------------------------------------

    def _tell(self, reply: Reply, outcome: Outcome) -> None:
        if reply.verdict is Verdict.ACCEPTED:
            self._observe(Seen.ACCEPTED)
        elif reply.verdict in (Verdict.DEFERRED, Verdict.FAILED):
            self._observe(
                Seen(reply.verdict.value),
                bounce_class=BounceClass(outcome.bounce_class),
                category=outcome.category,
                code=reply.code,
                text=reply.text,
                is_internal=not reply.code,
            )

    def _observe(self, seen: Seen, **said: Any) -> None:
        now, lane, campaign = self._clock.now(), self.lane, self._w.campaign
        observed = Observed(
            now, seen, "news.example", lane.source, lane.provider, lane.site, campaign.id, **said
        )
        self._w.network.push("reputation", "observe", ([observed],))
