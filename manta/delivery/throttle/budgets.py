"""How fast mail may leave: permits and connections, for each lane, within all that limits it.

A permit passes up to three gates: what the source may send in all, what it may send the provider,
and what it may send the site (``manta.delivery.throttle.gates``). Actions of the law narrow them
(``terms``), a cold source has a quota (``warmup``), and the sources of a pool take turns
(``pools``). Permits lapse after ``PERMIT_VALID_S``; connections are held for
``CONNECTION_VALID_S`` at a time and count as closed when their Sender does not ask again, so the
share of a dead Sender comes back by itself.

Which process may decide this at all is ``throttle.authority``'s. Nothing here is stored but
the last law and what the quotas have set aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation.actions import Action
from manta.delivery.reputation.law import Law
from manta.delivery.shaping.shaping import Shaping, builtin, parse
from manta.delivery.throttle.connections import CONNECTION_VALID_S, Claimant
from manta.delivery.throttle.gates import PERMIT_VALID_S, Gate, GateKey, Gates
from manta.delivery.throttle.gcra import Bucket
from manta.delivery.throttle.pools import Rotation, Turn
from manta.delivery.throttle.taken import Takings
from manta.delivery.throttle.terms import (
    SITE,
    ActiveActions,
    Terms,
    campaign_bucket,
    is_suspended,
    terms_of,
)
from manta.delivery.throttle.warmup import OTHERS, Quota, Warmup
from manta.delivery.throttle.ways import Ways
from manta.errors import InvalidRequest, Overloaded

GRANT_MAX = 10_000
WAIT_S_MIN = 0.02
WAIT_SUSPENDED_S_MAX = 30.0  # an undone action is noticed by then
WAIT_RESERVE_S = 0.1
BATCH_S = 0.25  # who waits for permits waits for as many as come in this time
TERMS_MAX = 100_000
ROTATION_IDLE_S = 60.0
SHOWN_MAX = 1_000


class Grant(NamedTuple):
    """Permits, good for ``valid_s`` from the moment of asking; none: ask again in ``wait_s``.

    ``without``: campaigns that must not be leased for these permits. ``warming``: the source is
    cold and its pool has a warm member, so lease the engaged only. ``bounces``: (campaign, or 0 for
    all; cause): what is waiting fails with this cause and never reaches the network. Where 0 is
    among them the permits count nowhere and must not come back as unused.
    """

    permits: int
    valid_s: float
    wait_s: float
    without: tuple[int, ...] = ()
    warming: bool = False
    bounces: tuple[tuple[int, str], ...] = ()


class Connections(NamedTuple):
    """How many connections the Sender may hold, for how long from the moment of asking; ``wait_s``:
    the lane is suspended, so ask for nothing before. ``bounces``: all that waits for the lane is to
    fail, so lease it without a connection."""

    held: int
    valid_s: float
    messages_per_connection: int
    tls: str = "opportunistic"  # of a direct source: what the shaping file says of the site
    wait_s: float = 0.0
    bounces: bool = False


NO_GRANT = Grant(0, 0.0, 1.0)


class Budgets:
    """All limits and what of them is in use. ``now_s`` is monotonic everywhere, ``now`` an instant.

    ``empty_at_s``: when all buckets were empty, for every incarnation but the very first.
    ``reserves``: the documents that earlier incarnations have stored of their quotas.
    """

    def __init__(
        self,
        sources: Mapping[str, Limits],
        ways: Ways | None = None,
        *,
        empty_at_s: float | None,
        law: Law | None = None,
        reserves: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._sources = dict(sources)
        self._ways = ways or Ways()
        self._law = Law()
        self._shaping: Shaping = builtin()
        self._trouble = ""
        self._gates = Gates(empty_at_s)
        self._terms: dict[Lane, Terms] = {}
        self._active = ActiveActions(())
        self._changes_at = datetime.max  # when the next action ends
        self._now = datetime.min
        self._rotations: dict[tuple[str, str], Rotation] = {}
        self._takings: dict[tuple[str, Lane], Takings] = {}
        self._campaign_buckets: dict[tuple[int, int], Bucket] = {}  # action, campaign
        self.warmup = Warmup(self._ways.cold_since, reserves)
        self.granted = 0
        if law is not None:
            self.obey(law)

    # -- the law -----------------------------------------------------------------------------------

    @property
    def law(self) -> Law:
        return self._law

    def obey(self, law: Law) -> bool:
        """From now on this law holds; False: it is older than the one that holds already.

        A shaping text that cannot be read leaves the shaping as it is, and is shown.
        """
        if law.version < self._law.version:
            return False
        if law.shaping_text != self._law.shaping_text or self._trouble:
            self._trouble = ""
            try:
                self._shaping = parse(law.shaping_text, builtin())
            except InvalidRequest as error:
                self._trouble = f"the operator's shaping: {error}"
        self._law = law
        acting = {action.id for action in law.actions}
        self._campaign_buckets = {
            key: bucket for key, bucket in self._campaign_buckets.items() if key[0] in acting
        }
        self._renew()
        return True

    def _renew(self) -> None:
        """All terms are made anew when next asked for."""
        self._terms.clear()
        self._active = ActiveActions(self._law.active(self._now))
        self._changes_at = self._active.first_end

    def _turn_to(self, now: datetime | None) -> None:
        if now is not None and now > self._now:
            self._now = now
            if now >= self._changes_at:
                self._renew()

    # -- permits -----------------------------------------------------------------------------------

    def grant(
        self,
        sender: str,
        lane: Lane,
        wanted: int,
        now_s: float,
        unused: int = 0,
        now: datetime | None = None,
    ) -> Grant:
        """Permits to send now. ``unused``: permits of this Sender on this lane that it will never
        use. ``now`` may be left out where nothing depends on the day."""
        terms = self._terms_of(lane, now_s, now)
        rotation = self._rotation(lane)
        takings = self._takings.get((sender, lane))
        if unused > 0 and takings is not None:
            back = takings.put_back(unused, now_s)
            if rotation is not None:
                rotation.put_back(lane.source, back)
        wanted = min(wanted, GRANT_MAX)
        if terms.bounces_all:  # nothing of it is sent, so it costs nothing
            self._takings.pop((sender, lane), None)
            return Grant(wanted, PERMIT_VALID_S, 0.0, (), False, terms.bounces)
        quota = self.warmup.quota(lane.source, lane.provider, self._now)
        is_cold = quota is not None and not quota.is_warm
        room = min([gate.bucket.available(now_s) for gate in terms.gates])
        if quota is not None and is_cold:
            self._hold_day(quota, terms)
            room = min(room, quota.room())
        turn = Turn(min(wanted, room))
        if rotation is not None:
            turn = rotation.turn(lane.source, wanted, room, now_s)
        permits, without = self._of_campaigns(terms, turn.permits, now_s)
        warming = is_cold and self._has_warm_member(lane)
        if permits <= 0:
            wait_s = max(self._wait_s(terms, quota, wanted, now_s), turn.wait_s)
            return Grant(0, 0.0, wait_s, without, warming, terms.bounces)
        self._take(sender, lane, terms, quota, permits, now_s)
        if rotation is not None:
            rotation.took(lane.source, permits, now_s)
        wait_s = self._wait_s(terms, quota, wanted, now_s) if permits < wanted else 0.0
        return Grant(permits, PERMIT_VALID_S, wait_s, without, warming, terms.bounces)

    def _take(
        self,
        sender: str,
        lane: Lane,
        terms: Terms,
        quota: Quota | None,
        permits: int,
        now_s: float,
    ) -> None:
        for gate in terms.gates:
            gate.bucket.take(permits, now_s)
            gate.used_s = now_s
        if quota is not None:
            is_first = quota.last_sent != self._now.date()
            quota.use(permits)
            if is_first or quota.wants_reserve:
                self.warmup.touch(quota)
        takings = self._takings.get((sender, lane))
        if takings is None:
            takings = self._takings[sender, lane] = Takings()
        takings.took(permits, terms.gates, quota, now_s, self._now)
        self.granted += permits

    def _of_campaigns(
        self, terms: Terms, permits: int, now_s: float
    ) -> tuple[int, tuple[int, ...]]:
        """A campaign with a limit of its own has its turn when its bucket is full: then the grant
        is no larger than the bucket and counts against it as a whole, whoever is in it."""
        if not terms.campaign_limits or permits <= 0:
            return permits, terms.without
        waiting = []
        admitted = []
        for limit in terms.campaign_limits:
            if limit.bucket.is_full(now_s) and limit.bucket.available(now_s):
                permits = min(permits, limit.bucket.burst)
                admitted.append(limit.bucket)
            else:
                waiting.append(limit.campaign_id)
        for bucket in admitted:
            bucket.take(permits, now_s)
        return permits, tuple(sorted({*terms.without, *waiting}))

    def _hold_day(self, quota: Quota, terms: Terms) -> None:
        """A day on which the lane is slowed does not count. Of the many sites that share one quota
        there is always one that is slow: only what slows them all counts there."""
        at = terms.slowed_at
        is_slowed = at is not None and (at < SITE or quota.group != OTHERS)
        if is_slowed and not quota.is_held:
            quota.is_held = True
            self.warmup.touch(quota)
        if quota.wants_reserve:
            self.warmup.touch(quota)

    def _has_warm_member(self, lane: Lane) -> bool:
        """Whether another member is warm and may send there: a suspended one takes nothing over."""
        members = self._ways.pools.get(lane.pool, ())
        return any(
            not self.warmup.is_cold(source, lane.provider, self._now)
            and not is_suspended(self._active.covering(lane._replace(source=source)))
            for source in members
            if source != lane.source
        )

    def _wait_s(self, terms: Terms, quota: Quota | None, wanted: int, now_s: float) -> float:
        """Until it is worth asking again."""
        if terms.suspended_until is not None:
            return self._suspended_s(terms.suspended_until)
        waits_s = [WAIT_S_MIN]
        for gate in terms.gates:
            bucket = gate.bucket
            batch = min(wanted, bucket.burst // 2, int(bucket.rate_per_s * BATCH_S))
            waits_s.append(min(bucket.wait_s(now_s, batch), WAIT_SUSPENDED_S_MAX))
        if quota is not None and not quota.is_warm and not quota.room():
            waits_s.append(max(quota.wait_s(), WAIT_RESERVE_S))
        return max(waits_s)

    def _suspended_s(self, until: datetime) -> float:
        return min(max((until - self._now).total_seconds(), WAIT_S_MIN), WAIT_SUSPENDED_S_MAX)

    # -- connections -------------------------------------------------------------------------------

    def hold(
        self, sender: str, lane: Lane, wanted: int, now_s: float, now: datetime | None = None
    ) -> Connections:
        """How many connections the Sender may hold on the lane from now on (0 wanted: it has
        closed them). It may be fewer than it holds: it then closes the rest. Of a suspended lane
        none: whoever asked us to stay away is not called on either. Nor where all bounces."""
        terms, wait_s = self._terms_of(lane, now_s, now), 0.0
        if terms.bounces_all:
            wanted = 0
        elif terms.suspended_until is not None:
            wanted, wait_s = 0, self._suspended_s(terms.suspended_until)
        claimant = Claimant(sender, lane)
        rooms = []
        for gate in terms.gates:
            gate.shares.drop_lapsed(now_s)
            rooms.append(gate.shares.room(claimant, wanted, gate.limits.connections_max, now_s))
        held = min(rooms)
        for place, gate in enumerate(terms.gates):
            # What another gate does not allow is not claimed here: it would only block others.
            others = [room for other, room in enumerate(rooms) if other != place]
            gate.shares.hold(claimant, min([wanted, *others]), held, now_s)
            gate.used_s = now_s
        messages, bounces = terms.messages_per_connection, terms.bounces_all
        return Connections(held, CONNECTION_VALID_S, messages, terms.tls, wait_s, bounces)

    def forget(self, sender: str) -> None:
        """A Sender that is known to be dead: its connections are gone."""
        self._gates.forget(sender)
        for key in [key for key in self._takings if key[0] == sender]:
            del self._takings[key]

    # -- what holds for a lane ---------------------------------------------------------------------

    def _terms_of(self, lane: Lane, now_s: float, now: datetime | None) -> Terms:
        self._turn_to(now)
        terms = self._terms.get(lane)
        return terms if terms is not None else self._made_terms(lane, now_s)

    def _made_terms(self, lane: Lane, now_s: float) -> Terms:
        own = self._sources.get(lane.source)
        if own is None:
            raise InvalidRequest(
                f"no egress source {lane.source!r:.80}",
                path="lane.source",
                expected=", ".join(sorted(self._sources)) or "none is set up",
            )
        if self._gates.is_crowded or len(self._terms) >= TERMS_MAX:
            self._sweep(now_s)
        if self._gates.is_full:
            raise Overloaded("too many lanes are in use at once")
        usual: tuple[Limits, Limits | None, Limits | None] = (own, None, None)
        tls = "opportunistic"
        if lane.source in self._ways.direct:
            shaped = self._shaping.of(lane.provider, lane.site, lane.source)
            usual = (own, shaped.limits_of_provider, shaped.limits_of_site)
            tls = shaped.tls

        def gate_of(key: GateKey, limits: Limits, is_usual: bool) -> Gate:
            return self._gates.get(key, limits, now_s, is_usual=is_usual)

        def bucket_of(action: Action, campaign_id: int) -> Bucket:
            key = (action.id, campaign_id)
            bucket = self._campaign_buckets.get(key)
            if bucket is None:
                bucket = self._campaign_buckets[key] = campaign_bucket(action, now_s)
            return bucket

        terms = terms_of(lane, usual, tls, self._active.covering(lane), gate_of, bucket_of)
        self._terms[lane] = terms
        return terms

    def _rotation(self, lane: Lane) -> Rotation | None:
        """Whose turn it is in a pool; None where there is nothing to choose."""
        key = (lane.pool, lane.site)
        rotation = self._rotations.get(key)
        if rotation is None:
            weights = self._ways.pools.get(lane.pool, {})
            if len(weights) < 2 or lane.source not in weights:
                return None
            rotation = self._rotations[key] = Rotation(weights)
        return rotation

    def _sweep(self, now_s: float) -> None:
        self._gates.sweep(now_s)
        self._terms.clear()
        self._rotations = {
            key: rotation
            for key, rotation in self._rotations.items()
            if now_s - rotation.used_s < ROTATION_IDLE_S
        }
        self._takings = {
            key: takings for key, takings in self._takings.items() if not takings.is_old(now_s)
        }

    # -- for people --------------------------------------------------------------------------------

    def status(self, now_s: float, now: datetime | None = None) -> dict[str, Any]:
        """JSON-ready. Of lanes and rotations at most ``SHOWN_MAX`` each."""
        self._turn_to(now)
        return {
            "granted": self.granted,
            "law": {
                "version": self._law.version,
                "actions": len(self._active),
                "shaping": self._shaping.version,
                "trouble": self._trouble,
            },
            "gates": len(self._gates),
            "sources": {
                key.source: _shown(gate, now_s)
                for key, gate in self._gates.items()
                if not key.provider
            },
            "lanes": [
                self._lane_status(lane, terms, now_s)
                for lane, terms in list(self._terms.items())[-SHOWN_MAX:]
            ],
            "pools": [
                {"pool": pool, "site": site, "members": rotation.status(now_s)}
                for (pool, site), rotation in list(self._rotations.items())[-SHOWN_MAX:]
            ],
            "warmup": self.warmup.status(self._now),
        }

    def _lane_status(self, lane: Lane, terms: Terms, now_s: float) -> dict[str, Any]:
        narrowest = min(terms.gates, key=lambda gate: gate.limits.rate_per_s)
        return {
            **lane._asdict(),
            **_shown(narrowest, now_s),
            "available": min(gate.bucket.available(now_s) for gate in terms.gates),
            "connections": min(gate.shares.held for gate in terms.gates),
            "connections_max": min(gate.limits.connections_max for gate in terms.gates),
            "causes": list(terms.causes),
            "without": list(terms.without),
            "bounces": [list(bounce) for bounce in terms.bounces],
        }


def _shown(gate: Gate, now_s: float) -> dict[str, Any]:
    return {
        "rate_per_s": gate.limits.rate_per_s,
        "available": gate.bucket.available(now_s),
        "connections": gate.shares.held,
        "connections_max": gate.limits.connections_max,
    }
