"""One run of a campaign in virtual time: nothing is sent, and all that decides of sending decides.

The very classes that run a campaign work here on a clock that jumps: ``Budgets`` grants permits and
connections (limits, pools, warm-up), ``Reputation`` with the shaping file's rules sees what comes
back and acts, its law holds in ``Budgets`` at once, ``RetryPolicy`` and ``LaneBackoff`` say when to
try again, and what is not settled in its time expires. In the place of providers stand their models
(``rehearsal.crowds``), and of recipients their numbers. Of Senders, shards and networks only
their pace is kept: seconds per message on a connection, and messages per second in all.

Not to be confused with ``reputation.replay``, which replays recorded outcomes for the law.
Events run in order of time, with numbers in the place of ties; the seed decides everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import exp
from random import Random
from typing import Any

from manta.delivery.lanes import OTHERS, Lane, Limits
from manta.delivery.rehearsal.behaviour import Behaviour, LaterKind, Model, Told
from manta.delivery.rehearsal.crowds import Cohort, Comes, Crowd, Fate, Queue, RelayedCrowd, sliced
from manta.delivery.rehearsal.forecast import Counted, Foreseen, Ran, Warmed
from manta.delivery.reputation.actions import Action, ActionKind, Scope
from manta.delivery.reputation.courses import Course
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.norms import Norms
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.reputation.reputation import Reputation
from manta.delivery.reputation.rulings import Head, Ruling
from manta.delivery.reputation.windows import Unit, seconds
from manta.delivery.retry import CALM, BackoffPolicy, LaneBackoff, RetryPolicy
from manta.delivery.returns.classification import Category, Classified, classify_reply
from manta.delivery.shaping.automation import Automation
from manta.delivery.shaping.shaping import Shaping
from manta.delivery.throttle.budgets import Budgets, Grant
from manta.delivery.throttle.ways import Ways

LEASE_S = 2.0  # a lane asks for what it sends in this time
LEASE_ROWS_MAX = 500
HOLD_S = 25.0  # they are held for 30; a Sender asks more often, which changes nothing
HOLD_SOON_S = 1.0
STEP_S_MAX = 2.0  # between two looks of a lane that has something to send
IN_VAIN_S, IN_VAIN_S_MAX = 1.0, 60.0  # between looks at a lane that is held
WARMING_WAIT_S = 300.0  # nobody engaged is left for a cold source: more may come by retries
DECIDE_S_MIN, DECIDE_S_MAX, DECIDE_PART = 0.5, 120.0, 0.01  # of the time that has passed
QUIET_S = 120.0  # between decisions when nothing is seen and an action holds
NOBODY = Told(0, "")
AFTER_S = 2 * 86_400.0  # so long complaints and bounces are watched after the last message
MOSTLY = 0.95
QUEUED_S = 0.5  # so much work may wait for the processor, or all lanes would wait for its end
LATE_EVERY = 256  # events between two looks at the time that a run may take
EVENTS_MAX = 3_000_000


@dataclass(frozen=True)
class Destination:
    """``messages`` that go the same way, ``engaged`` of them to people who open or click.
    ``sites``: how many sites it stands for; more than one where the small ones are together."""

    provider: str
    site: str
    messages: int
    engaged: int = 0
    sites: int = 1


@dataclass(frozen=True)
class Pace:
    """How fast the machinery is. ``message_s``: for one message on one connection of a relay, and
    of a direct source (which has the Internet's distances); ``per_s``: all Senders together."""

    relay_message_s: float = 0.01
    direct_message_s: float = 0.1
    per_s: float = 1_200.0


@dataclass(frozen=True)
class Facts:
    """What a run begins with. ``law``, ``courses``, ``observed`` and ``warmup`` are the present
    state of Reputation and Throttle. ``models`` by the provider of a destination; ``known_per_day``
    by source and provider: what providers know a source to bring."""

    campaign_id: int
    sending_domain: str
    pool: str
    starts_at: datetime
    expires_at: datetime
    destinations: tuple[Destination, ...]
    sources: Mapping[str, Limits]
    ways: Ways
    shaping: Shaping
    law: Law
    norms: Norms
    models: Mapping[str, Model]
    known_per_day: Mapping[tuple[str, str], int] = field(default_factory=dict)
    courses: tuple[Course, ...] = ()
    observed: tuple[Observed, ...] = ()
    reserves: tuple[Mapping[str, Any], ...] = ()
    pace: Pace = Pace()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)


class TooLong(Exception):
    """The run was given up, since its caller has no more time."""


_Key = tuple[Lane, Seen, Told, Classified | None]


class _Place:
    """A destination at work."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.queue = Queue(destination.engaged, destination.messages - destination.engaged)
        self.ways: list[_Way] = []
        self.wakes_at_s = float("inf")


class _Way:
    """One source's way to a destination: what a Sender's lane is."""

    def __init__(self, name: str, lane: Lane, place: _Place, crowd: Crowd, message_s: float):
        self.name, self.lane, self.place, self.crowd = name, lane, place, crowd
        self.message_s = message_s
        self.step_s = STEP_S_MAX
        self.held, self.held_until_s, self.may_grow_s = 0, -1.0, 0.0
        self.connections = 1
        self.is_busy = False
        self.unused = 0
        self.in_vain_s = 0.0
        self.backoff: LaneBackoff = CALM
        self.event = 0  # the number of its next look; others are not valid any more
        self.is_asleep = True
        self.sent = self.warm_held = 0
        self.was_cold = False


class _Tally:
    """What has become of a provider's messages."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.settled = 0
        self.counts = dict.fromkeys(
            ("accepted", "deferred", "failed", "expired", "bounced", "complained"), 0
        )
        self.mostly_s: float | None = None
        self.done_s: float | None = None

    def settle(self, kind: str, messages: int, now_s: float) -> None:
        self.counts[kind] += messages
        self.settled += messages
        if self.mostly_s is None and self.settled >= MOSTLY * self.messages:
            self.mostly_s = now_s
        if self.done_s is None and self.settled >= self.messages:
            self.done_s = now_s

    def counted(self) -> Counted:
        held = self.messages - self.settled
        return Counted(
            self.messages,
            **self.counts,
            held=held,
            mostly_s=self.mostly_s,
            done_s=self.done_s,
        )


class Trial:
    """One run, by one seed. ``run`` once."""

    def __init__(self, facts: Facts, seed: int) -> None:
        self._facts = facts
        self._random = Random(seed)
        self._origin_s = seconds(facts.starts_at)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._now_s = 0.0
        self._expires_s = (facts.expires_at - facts.starts_at).total_seconds()
        self._campaign_ends_s: float | None = None
        self._paused_s: float | None = None
        self._free_at_s = 0.0  # when the processor has sent what it was given
        self._begin_machinery()
        messages = sum(d.messages for d in facts.destinations)
        self._total = _Tally(messages)
        self._tallies: dict[str, _Tally] = {}
        self._seen: dict[_Key, int] = {}
        self._decides_at_s = float("inf")
        self._foreseen: dict[tuple[str, str, str], Foreseen] = {}
        self._shown: set[int] = set()
        self._places = [_Place(each) for each in facts.destinations if each.messages > 0]
        self._begin_places()

    def _begin_machinery(self) -> None:
        facts = self._facts
        self._budgets = Budgets(
            facts.sources, facts.ways, empty_at_s=None, law=facts.law, reserves=facts.reserves
        )
        self._reputation = Reputation(facts.norms, Automation(facts.shaping), self._ceiling)
        last = max((action.id for action in facts.law.actions), default=0)
        head = Head(facts.law.version, last, facts.law.shaping_text)
        self._first_action = last + 1
        self._reputation.restore(head, facts.law.actions, facts.courses)
        self._reputation.recall(facts.observed, facts.starts_at)
        self._is_held = bool(facts.law.actions)

    def _ceiling(self, lane: Unit) -> float:
        facts = self._facts
        own = facts.sources.get(lane.source)
        rate_per_s = own.rate_per_s if own else 1_000.0
        bounds = facts.shaping.of(lane.provider, source=lane.source).limits_of_provider
        if lane.source in facts.ways.direct and bounds is not None:
            return min(rate_per_s, bounds.rate_per_s)
        return rate_per_s

    def _begin_places(self) -> None:
        facts = self._facts
        behaviours: dict[str, Behaviour] = {}
        pace = exp(self._random.gauss(0.0, 0.2))
        for place in self._places:
            where = place.destination
            self._tallies.setdefault(where.provider, _Tally(0)).messages += where.messages
            model = facts.models[where.provider]
            behaviour = behaviours.get(where.provider)
            if behaviour is None:
                varied_model = varied(model, where.sites, self._random)
                behaviour = Behaviour(varied_model, self._random.getrandbits(30))
                behaviours[where.provider] = behaviour
            for source in facts.ways.pools[facts.pool]:
                way = self._way(source, place, behaviour, pace)
                place.ways.append(way)
                self._look_at(way, 0.0)
        self._at(self._expires_s, self._expire)

    def _way(self, source: str, place: _Place, behaviour: Behaviour, pace: float) -> _Way:
        facts, where = self._facts, place.destination
        is_direct = source in facts.ways.direct
        is_known = where.provider in facts.shaping.providers
        name = f"rehearsal-{len(place.ways)}-{where.site}"
        if not is_direct:
            shown = where.provider if is_known else OTHERS
            lane = Lane(facts.pool, source, shown, shown)
            crowd: Crowd = RelayedCrowd(behaviour, self._random)
            return self._with_limits(
                _Way(name, lane, place, crowd, facts.pace.relay_message_s * pace)
            )
        known = facts.known_per_day.get((source, where.provider), 0)
        if known:
            behaviour.know(source, known, self._origin_s)
        lane = Lane(facts.pool, source, where.site, where.provider)
        crowd = Crowd(behaviour, self._random)
        return self._with_limits(_Way(name, lane, place, crowd, facts.pace.direct_message_s * pace))

    def _with_limits(self, way: _Way) -> _Way:
        """How often it is worth looking: twice in the time in which its narrowest gate fills."""
        facts, lane = self._facts, way.lane
        gates: list[Limits | None] = [facts.sources[lane.source]]
        if lane.source in facts.ways.direct:
            shaped = facts.shaping.of(lane.provider, lane.site, lane.source)
            gates += [shaped.limits_of_provider, shaped.limits_of_site]
        fills_s = [g.burst / g.rate_per_s for g in gates if g is not None and g.rate_per_s > 0]
        way.step_s = min([STEP_S_MAX, *(0.5 * each for each in fills_s)])
        way.was_cold = self._budgets.warmup.is_cold(lane.source, lane.provider, facts.starts_at)
        return way

    # -- time --------------------------------------------------------------------------------------

    def run(self, is_late: Callable[[], bool] = lambda: False) -> Ran:
        """Until all is settled, and what comes back afterwards was seen. Raises ``TooLong``."""
        events = self._events
        for number in range(EVENTS_MAX):
            if not events or self._paused_s is not None:
                return self._ran()
            if number % LATE_EVERY == 0 and is_late():
                raise TooLong
            at_s, _, work = heappop(events)
            self._now_s = max(self._now_s, at_s)
            ends_s = self._campaign_ends_s
            if ends_s is not None and self._now_s > ends_s + AFTER_S:
                return self._ran()
            work()
        raise TooLong

    def _at(self, at_s: float, work: Callable[[], None]) -> None:
        heappush(self._events, (at_s, next(self._numbers), work))

    @property
    def _now(self) -> datetime:
        return self._facts.starts_at + timedelta(seconds=self._now_s)

    def _look_at(self, way: _Way, at_s: float) -> None:
        """Look at a way then, and not at what was planned before."""
        way.is_asleep = False
        way.event += 1
        number = way.event
        self._at(at_s, lambda: self._look(way) if way.event == number else None)

    # -- lanes -------------------------------------------------------------------------------------

    def _look(self, way: _Way) -> None:
        """What a lane does: keep its connections, get permits, send."""
        now_s, queue = self._now_s, way.place.queue
        queue.mature(now_s)
        if not queue.ready():
            self._sleep(way)
            return
        wait_s = max(way.backoff.wait_s(now_s), self._free_at_s - now_s - QUEUED_S)
        if wait_s > 0:
            self._look_at(way, now_s + wait_s)
            return
        if not self._hold(way):
            self._look_in_vain(way)
            return
        capacity = max(1, int(way.connections / way.message_s * LEASE_S))
        wanted = min(queue.ready(), capacity, LEASE_ROWS_MAX)
        grant = self._grant(way, wanted)
        if self._bounced(way, grant):
            self._look_at(way, now_s + way.step_s)
            return
        if not grant.permits:
            self._note_held(way)
            self._look_at(way, now_s + max(grant.wait_s, 0.01))
            return
        if self._facts.campaign_id in grant.without:
            self._give_back(way, grant.permits)
            self._look_in_vain(way)
            return
        way.in_vain_s = 0.0
        sent = self._send(way, grant)
        if not sent:
            self._look_at(way, now_s + WARMING_WAIT_S)
            return
        self._note_held(way)
        took_s = sent * way.message_s / way.connections
        self._free_at_s = max(self._free_at_s, now_s) + sent / self._facts.pace.per_s
        way.is_busy = sent >= capacity or sent * way.message_s > way.connections * way.step_s
        next_s = now_s + max(took_s, way.step_s if sent < wanted else 0.0, grant.wait_s)
        self._look_at(way, next_s)

    def _look_in_vain(self, way: _Way) -> None:
        """Nothing is to be had while an action holds: look again, after longer and longer."""
        way.in_vain_s = min(max(IN_VAIN_S, 2 * way.in_vain_s), IN_VAIN_S_MAX)
        self._look_at(way, self._now_s + way.in_vain_s)

    def _sleep(self, way: _Way) -> None:
        """Nothing may go now: look again when something is due."""
        way.is_asleep = True
        if way.unused:
            self._give_back(way, 0)
        due_s = way.place.queue.next_due_s
        if due_s is not None:
            self._wake_at(way.place, due_s)

    def _wake_at(self, place: _Place, due_s: float) -> None:
        if due_s < place.wakes_at_s:
            place.wakes_at_s = due_s
            self._at(due_s, lambda: self._wake(place) if place.wakes_at_s == due_s else None)

    def _wake(self, place: _Place) -> None:
        place.wakes_at_s = float("inf")
        for way in place.ways:
            if way.is_asleep:
                self._look_at(way, self._now_s)

    def _hold(self, way: _Way) -> bool:
        """Keep the right to connections: one more each second while all are busy."""
        now_s = self._now_s
        grows = way.is_busy and now_s >= way.may_grow_s and way.connections >= way.held
        if now_s < way.held_until_s and not grows:
            return way.held > 0
        wanted = max(1, 2 * way.connections if way.is_busy else way.connections)
        got = self._budgets.hold(way.name, way.lane, wanted, now_s, self._now)
        way.held = got.held or int(got.bounces)  # what bounces goes without one
        way.held_until_s = now_s + (HOLD_S if got.held else HOLD_SOON_S)
        way.may_grow_s = now_s + HOLD_SOON_S
        self._connect(way)
        return way.held > 0

    def _connect(self, way: _Way) -> None:
        """Open as many as are held; a provider that has enough of us says so."""
        model = way.crowd.model
        room = way.held
        if not isinstance(way.crowd, RelayedCrowd):
            room = model.connections_max * way.place.destination.sites
        if way.held > room:
            told = way.crowd.behaviour.connect(way.lane.source, room, self._origin_s + self._now_s)
            if told is not None:
                self._observe(way, Seen.UNREACHED, 1, told)
                policy = self._facts.backoff
                way.backoff = way.backoff.failed(policy, self._now_s, self._random)
        way.connections = max(1, min(way.held, room))

    def _grant(self, way: _Way, wanted: int) -> Grant:
        budgets = self._budgets
        grant = budgets.grant(
            way.name, way.lane, wanted, self._now_s, unused=way.unused, now=self._now
        )
        way.unused = 0
        warmup = budgets.warmup
        if warmup.has_proposals:  # the next heartbeat stores them; here it is at once
            proposals = warmup.proposals()
            warmup.stored(proposals)
            if not grant.permits:
                grant = budgets.grant(way.name, way.lane, wanted, self._now_s, now=self._now)
        return grant

    def _give_back(self, way: _Way, permits: int) -> None:
        self._budgets.grant(
            way.name, way.lane, 0, self._now_s, unused=permits + way.unused, now=self._now
        )
        way.unused = 0

    def _note_held(self, way: _Way) -> None:
        """The day's or the hour's quota is used up, and nobody warm is there to take over."""
        if not way.was_cold:
            return
        warmup, lane, now = self._budgets.warmup, way.lane, self._now
        quota = warmup.quota(lane.source, lane.provider, now)
        others = (other.lane for other in way.place.ways if other is not way)
        if quota is None or quota.is_warm or quota.left():
            return
        if all(warmup.is_cold(other.source, other.provider, now) for other in others):
            way.warm_held = max(way.warm_held, way.place.queue.ready())

    # -- what becomes of messages ------------------------------------------------------------------

    def _send(self, way: _Way, grant: Grant) -> int:
        """Bring as many as there are permits; how many there were."""
        sent, now_s = 0, self._origin_s + self._now_s
        for cohort in way.place.queue.take(grant.permits, engaged_only=grant.warming):
            sent += cohort.count
            for fate in way.crowd.bring(way.lane.source, cohort, now_s):
                self._befall(way, cohort, fate)
        way.unused += grant.permits - sent
        if not sent:
            self._give_back(way, 0)
        way.backoff = CALM
        return sent

    def _befall(self, way: _Way, cohort: Cohort, fate: Fate) -> None:
        """One part of a cohort has been answered."""
        if fate.told is None:
            way.sent += fate.messages
            self._observe(way, Seen.ACCEPTED, fate.messages)
            self._settle(way.place, "accepted", fate.messages)
            for comes in way.crowd.later(fate.messages):
                self._at(self._now_s + comes.after_s, partial(self._come, way, comes))
            return
        said = classify_reply(fate.told.code, fate.told.text)
        is_final = fate.told.code >= 500
        self._observe(
            way, Seen.FAILED if is_final else Seen.DEFERRED, fate.messages, fate.told, said
        )
        if is_final:
            self._settle(way.place, "failed", fate.messages)
            return
        if not cohort.attempts:
            self._tallies[way.place.destination.provider].counts["deferred"] += fate.messages
            self._total.counts["deferred"] += fate.messages
        self._put_off(way.place, cohort, fate, said.category == Category.GREYLISTED)

    def _put_off(self, place: _Place, cohort: Cohort, fate: Fate, is_greylisted: bool) -> None:
        attempts = cohort.attempts + 1
        tried_s = cohort.tried_s if cohort.attempts else self._origin_s + self._now_s
        for part in sliced(fate.messages):
            wait_s = self._facts.retry.wait_s(attempts, self._random, is_greylisted=is_greylisted)
            if wait_s is None or self._now_s + wait_s >= self._expires_s:
                self._settle(place, "expired", part)
                continue
            is_full = fate.is_full or cohort.is_full
            later = Cohort(part, cohort.is_engaged, attempts, tried_s, is_full)
            place.queue.put_off(later, self._now_s, wait_s)
        due_s = place.queue.next_due_s
        if due_s is not None and any(way.is_asleep for way in place.ways):
            self._wake_at(place, due_s)

    def _bounced(self, way: _Way, grant: Grant) -> bool:
        """Whether an action makes what waits here fail."""
        campaigns = {campaign_id for campaign_id, _ in grant.bounces}
        if not campaigns & {0, self._facts.campaign_id}:
            return False
        count = sum(cohort.count for cohort in way.place.queue.take(max(1, grant.permits)))
        self._settle(way.place, "failed", count)
        return True

    def _come(self, way: _Way, comes: Comes) -> None:
        """A bounce or a complaint comes back."""
        provider = way.place.destination.provider
        name = "bounced" if comes.kind is LaterKind.DSN else "complained"
        self._tallies[provider].counts[name] += comes.messages
        self._total.counts[name] += comes.messages
        if comes.told is not None:
            said = classify_reply(comes.told.code, comes.told.text)
            self._observe(way, Seen.BOUNCED, comes.messages, comes.told, said)
            return
        for _ in range(comes.messages):
            way.crowd.behaviour.complained(way.lane.source, self._origin_s + self._now_s)
        if way.crowd.model.has_feedback_loop:
            self._observe(way, Seen.COMPLAINED, comes.messages)

    def _settle(self, place: _Place, kind: str, messages: int) -> None:
        self._tallies[place.destination.provider].settle(kind, messages, self._now_s)
        self._total.settle(kind, messages, self._now_s)
        if self._total.done_s is not None and self._campaign_ends_s is None:
            self._campaign_ends_s = self._now_s

    def _expire(self) -> None:
        """The time of all messages is over."""
        for place in self._places:
            place.queue.mature(float("inf"))
            left = sum(cohort.count for cohort in place.queue.take(place.queue.ready()))
            if left:
                self._settle(place, "expired", left)

    # -- what Reputation sees and does -------------------------------------------------------------

    def _observe(
        self,
        way: _Way,
        seen: Seen,
        messages: int,
        told: Told = NOBODY,
        said: Classified | None = None,
    ) -> None:
        """Counted together until the next decision, as Senders do for a second."""
        key = (way.lane, seen, told, said)
        self._seen[key] = self._seen.get(key, 0) + messages
        self._decide_soon()

    def _decide_soon(self, least_s: float = DECIDE_S_MIN) -> None:
        """By now it is seconds, later minutes: what comes first decides most."""
        at_s = self._now_s + max(least_s, min(DECIDE_PART * self._now_s, DECIDE_S_MAX))
        if at_s < self._decides_at_s:
            self._decides_at_s = at_s
            self._at(at_s, lambda: self._decide() if self._decides_at_s == at_s else None)

    def _decide(self) -> None:
        now, facts = self._now, self._facts
        self._decides_at_s = float("inf")
        seen, self._seen = self._seen, {}
        self._reputation.observe([self._observed(key, n, now) for key, n in seen.items()], now)
        ruling = self._reputation.decide(now)
        before = self._reputation.head
        self._reputation.apply(ruling)
        self._foresee(ruling)
        law = self._reputation.law(now)
        if ruling.head != before:
            self._budgets.obey(law)
        paused = {action.scope.campaign_id for action in ruling.pauses}
        if facts.campaign_id in paused and self._campaign_ends_s is None:
            self._paused_s = self._now_s
        if law.actions:
            self._decide_soon(QUIET_S)

    def _observed(self, key: _Key, messages: int, now: datetime) -> Observed:
        lane, seen, told, said = key
        facts = self._facts
        is_lane = seen is Seen.UNREACHED
        return Observed(
            now,
            seen,
            "" if is_lane else facts.sending_domain,
            lane.source,
            lane.provider,
            lane.site,
            0 if is_lane else facts.campaign_id,
            said.bounce_class if said is not None else BounceClass.NONE,
            said.category if said is not None else "",
            told.code,
            told.text,
            messages=messages,
        )

    def _foresee(self, ruling: Ruling) -> None:
        for action in ruling.actions:
            if action.id < self._first_action or action.id in self._shown:
                continue
            self._shown.add(action.id)
            scope = words_of(action.scope, self._facts.campaign_id)
            key = (str(action.kind), scope, cause_of(action))
            known = self._foreseen.get(key)
            if known is None:
                self._foreseen[key] = Foreseen(
                    str(action.kind), scope, action.cause, round(self._now_s, 1)
                )
            else:
                self._foreseen[key] = known._replace(times=known.times + 1)

    # -- the end -----------------------------------------------------------------------------------

    def _ran(self) -> Ran:
        providers = {name: tally.counted() for name, tally in self._tallies.items()}
        return Ran(
            self._total.counted(),
            providers,
            self._warmed(),
            tuple(self._foreseen.values()),
            self._paused_s,
        )

    def _warmed(self) -> tuple[Warmed, ...]:
        weights = self._facts.ways.pools[self._facts.pool]
        found: dict[tuple[str, str], Warmed] = {}
        for place in self._places:
            all_sent = sum(way.sent for way in place.ways)
            for way in place.ways:
                if not way.was_cold:
                    continue
                share = weights[way.lane.source] / sum(weights.values())
                spilled = max(0, round(share * all_sent) - way.sent)
                key = (way.lane.source, place.destination.provider)
                before = found.get(key, Warmed(*key, 0, 0, 0))
                found[key] = Warmed(
                    *key,
                    before.sent + way.sent,
                    before.spilled + spilled,
                    before.held + way.warm_held,
                )
        return tuple(found.values())


# -- helpers ---------------------------------------------------------------------------------------


def varied(model: Model, sites: int, random: Random) -> Model:
    """The model as this run has it: nobody knows shares and limits exactly. For several small sites
    together: what they allow adds up."""

    def share(value: float) -> float:
        return min(0.95, value * exp(random.gauss(0.0, 0.35)))

    allowed = exp(random.gauss(0.0, 0.25)) * sites
    return replace(
        model,
        cold_per_day=max(1, int(model.cold_per_day * allowed)),
        day_max=max(1, int(model.day_max * sites)),
        unknown_share=share(model.unknown_share),
        full_share=share(model.full_share),
        complaint_share=share(model.complaint_share),
        late_share=share(model.late_share),
    )


def reserve_of(status: Mapping[str, Any], cold_since: date, now: datetime) -> dict[str, Any]:
    """The document from which a quota goes on, of what the Throttle shows of it
    (``warmup.Quota.status``). Taken to have sent lately, since it does not show when."""
    counted = int(status["days"]) if status["is_warm"] else int(status["day"]) - 1
    return {
        "source": status["source"],
        "group": status["group"],
        "cold_since": cold_since.isoformat(),
        "at": now.isoformat(),
        "counted": counted,
        "last_sent": now.date().isoformat() if counted or status["used_day"] else None,
        "held": status["is_held"],
        "reserved_day": status["used_day"],
        "reserved_hour": status["used_hour"],
    }


def words_of(scope: Scope, campaign_id: int) -> str:
    """A scope as people read it."""
    parts = []
    if scope.campaign_id:
        mine = scope.campaign_id == campaign_id
        parts.append("this campaign" if mine else f"campaign {scope.campaign_id}")
    elif scope.sending_domain:
        parts.append(f"all mail of {scope.sending_domain}")
    if scope.source:
        parts.append(scope.source)
    where = scope.site if scope.site and scope.site != scope.provider else scope.provider
    if where:
        parts.append(f"at {where}")
    return " ".join(parts) or "all that goes out"


def cause_of(action: Action) -> str:
    """What an action is about, without its figures."""
    if action.kind is ActionKind.LIMIT and "first_pace_per_s" in action.figures:
        return "pace"
    return "".join(c for c in action.cause if not (c.isdigit() or c in ".,"))
