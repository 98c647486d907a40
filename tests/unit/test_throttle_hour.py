"""An hour of virtual time and a million messages through real Throttles, while they die.

Senders ask at random for lanes of relays, of direct sources and of pools; they use each permit at
any time of its life, let some lapse and bring some back. Throttles are replaced, and the former
goes on granting until its journal ends it. What is checked is what was *sent*: in no 60 seconds
does any gate see more than its limit × 1.02 and one burst.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from random import Random

import pytest

from actors.throttle import Throttle
from manta.clock import ManualClock
from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation.actions import Action, ActionKind, Narrower, Scope
from manta.delivery.reputation.law import Law
from manta.delivery.throttle.authority import AUTHORITY_S
from manta.delivery.throttle.gates import PERMIT_VALID_S
from manta.delivery.throttle.ways import Ways
from manta.errors import MantaError
from manta.store.documents import Documents
from tests.faults import MemoryObjects

WINDOW_S = 60.0
HOUR_S = 3600.0
SOURCES = {
    "relay": Limits(80.0, 40, 20),
    "slow": Limits(0.5, 3, 2),
    "a": Limits(200.0, 200, 50),
    "b": Limits(130.0, 30, 50),
    "new": Limits(100.0, 100, 50),
}
SHAPING = """
[provider.google]
rate = "60/s"
total_rate = "90/s"
[provider.yahoo]
rate = "1500/min"
total_rate = "20/s"
[default]
rate = "40/s"
"""
SITES = {
    Lane("", "", "google", "google"): Limits(60.0, 60, 1),
    Lane("", "", "shop.example", "google"): Limits(60.0, 60, 1),
    Lane("", "", "yahoo", "yahoo"): Limits(25.0, 25, 1),
    Lane("", "", "small.example", "small.example"): Limits(40.0, 40, 1),
}
PROVIDERS = {"google": Limits(90.0, 90, 1), "yahoo": Limits(20.0, 20, 1)}
POOLS = {"both": {"a": 2, "b": 1, "new": 1}, "relay": {"relay": 1}, "slow": {"slow": 1}}
WAYS = Ways(frozenset({"a", "b", "new"}), POOLS, {"new": date(2026, 1, 1)})
LANES = [
    Lane("relay", "relay", "google", "google"),
    Lane("relay", "relay", "others", "others"),
    Lane("slow", "slow", "others", "others"),
    *(
        Lane("both", source, site.site, site.provider)
        for source in ("a", "b", "new")
        for site in SITES
    ),
]


@dataclass
class Trouble:
    """What goes wrong: shares of grants, and how often a Throttle is replaced."""

    lapse: float = 0.0
    unused: float = 0.0
    replace_every_s: float = float("inf")


@dataclass
class Sent:
    """Messages by moment, of one gate."""

    events: list[tuple[float, int]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(messages for _, messages in self.events)

    def most_within(self, window_s: float, since_s: float = 0.0, until_s: float = 1e9) -> int:
        """The most in any window: exact, as a fullest window ends with an event."""
        events = sorted(e for e in self.events if since_s <= e[0] < until_s)
        most = inside = first = 0
        for moment, messages in events:
            inside += messages
            while events[first][0] < moment - window_s:
                inside -= events[first][1]
                first += 1
            most = max(most, inside)
        return most


class World:
    def __init__(self, seed: int, trouble: Trouble) -> None:
        self.random = Random(seed)
        self.trouble = trouble
        self.clock = ManualClock(datetime(2026, 1, 1, 10, 30))
        self.objects = MemoryObjects(self.clock)
        self.throttles: list[Throttle] = []
        self.ended: set[int] = set()
        self.incarnations = 0
        self.law = Law(1, SHAPING)
        self.sent: dict[tuple[str, ...], Sent] = defaultdict(Sent)
        self.granted = 0

    async def new_throttle(self) -> None:
        self.incarnations += 1
        number = self.incarnations
        documents = Documents(
            self.objects,
            "w/journal/throttle",
            "throttle",
            number.to_bytes(16, "big"),
            self.clock,
        )
        end = lambda reason: self.ended.add(number)  # noqa: E731
        throttle = Throttle(documents, end, self.clock, SOURCES, WAYS)
        await throttle.start()
        await throttle.law(self.law.to_document())
        throttle.number = number
        self.throttles.append(throttle)

    async def obey(self, law: Law) -> None:
        self.law = law
        for throttle in self.throttles:
            await throttle.law(law.to_document())

    def any_throttle(self) -> Throttle:
        """Mostly the newest; one that has been replaced is asked while it lives."""
        self.throttles = [t for t in self.throttles if t.number not in self.ended]
        if len(self.throttles) > 1 and self.random.random() < 0.5:
            return self.random.choice(self.throttles[:-1])
        return self.throttles[-1]

    async def run(self, seconds: float, senders: int, events: dict[float, Law] | None = None):
        random = self.random
        laws = sorted((events or {}).items(), key=lambda event: event[0])
        queue = [
            (random.random(), f"sender-{n:02}", lane, 0) for lane in LANES for n in range(senders)
        ]
        heapq.heapify(queue)
        await self.new_throttle()
        replaced_s = 0.0
        while queue:
            at_s, sender, lane, unused = heapq.heappop(queue)
            if at_s >= seconds:
                continue
            self.clock.advance(at_s - self.clock.monotonic())
            while laws and laws[0][0] <= at_s:
                await self.obey(laws.pop(0)[1])
            if at_s - replaced_s > self.trouble.replace_every_s * random.uniform(0.5, 1.5):
                replaced_s = at_s
                await self.new_throttle()
            wanted = random.choice([20, 100, 200])
            try:
                grant = await self.any_throttle().grant(sender, tuple(lane), wanted, unused)
            except MantaError:
                heapq.heappush(queue, (at_s + 1.0, sender, lane, 0))
                continue
            unused = self._use(lane, grant.permits, at_s) if grant.permits else 0
            wait_s = random.uniform(0.05, 0.6)
            if grant.permits < wanted:
                wait_s = min(grant.wait_s, 5.0) * random.uniform(1.0, 1.2)
            heapq.heappush(queue, (at_s + wait_s, sender, lane, unused))

    def _use(self, lane: Lane, permits: int, at_s: float) -> int:
        """Send within the permits' life, early and late by turns; what comes back."""
        random, trouble = self.random, self.trouble
        self.granted += permits
        lapsed = int(permits * random.random()) if random.random() < trouble.lapse else 0
        unused = int(permits * random.random()) if random.random() < trouble.unused else 0
        used = permits - max(lapsed, unused)
        latest = PERMIT_VALID_S - 1e-6
        delay_s = random.choice([0.0, latest, random.uniform(0, latest)])
        if at_s % 97 < 40:  # for a while all as late as can be, then all at once
            delay_s = latest if at_s % 97 < 20 else 0.0
        for key in keys_of(lane):
            self.sent[key].events.append((at_s + delay_s, used))
        return unused

    def check_all(self) -> None:
        for key, limits in gates().items():
            most = self.sent[key].most_within(WINDOW_S)
            allowed = limits.rate_per_s * WINDOW_S * 1.02 + limits.burst
            assert most <= allowed, f"{key} sent {most} in 60 s, allowed are {allowed}"


def keys_of(lane: Lane) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [(lane.source,)]
    if lane.source in WAYS.direct:
        keys += [(lane.source, lane.provider), (lane.source, lane.provider, lane.site)]
    return keys


def gates() -> dict[tuple[str, ...], Limits]:
    found: dict[tuple[str, ...], Limits] = {(name,): limits for name, limits in SOURCES.items()}
    for source in WAYS.direct:
        for provider, limits in PROVIDERS.items():
            found[source, provider] = limits
        for site, limits in SITES.items():
            found[source, site.provider, site.site] = limits
    return found


async def backlog(seed: int, seconds: float, senders: int) -> World:
    world = World(seed, Trouble())
    await world.run(seconds, senders)
    world.check_all()
    # What is scarce: the sources, but of a, where it is what the sites take.
    scarce = [("relay",), ("slow",), ("b",), ("a", "google"), ("a", "yahoo")]
    for key in (*scarce, ("a", "small.example", "small.example")):
        used = world.sent[key].total / (gates()[key].rate_per_s * seconds)
        assert used >= 0.95, f"{key} used {used:.1%} of its limit"
    return world


async def trouble(seed: int, seconds: float, senders: int) -> World:
    world = World(seed, Trouble(lapse=0.1, unused=0.2, replace_every_s=150.0))
    began = world.clock.now()

    def act(id: int, kind: ActionKind, begin_s: float, end_s: float, limits: Narrower) -> Action:
        scope = Scope(source="a", provider="google")
        begin, end = (began + timedelta(seconds=s) for s in (begin_s, end_s))
        return Action(id, kind, scope, "rule", begin, end, limits)

    slow = (0.3 * seconds, 0.5 * seconds)
    still = (0.6 * seconds, 0.7 * seconds)
    narrower = act(1, ActionKind.LIMIT, *slow, Narrower(rate_per_s=5.0))
    suspended = act(2, ActionKind.SUSPEND, *still, Narrower())
    laws = {slow[0]: Law(2, SHAPING, (narrower,)), still[0]: Law(3, SHAPING, (suspended,))}
    await world.run(seconds, senders, laws)
    world.check_all()
    assert world.incarnations > seconds / 300 and len(world.ended) > seconds / 500
    google = world.sent["a", "google"]
    # An overtaken Throttle may not hear the law any more, but it ends soon.
    settled = AUTHORITY_S + PERMIT_VALID_S
    most = google.most_within(WINDOW_S, slow[0] + settled, slow[1])
    assert 0 < most <= 5.0 * WINDOW_S * 1.02 + 5
    assert google.most_within(WINDOW_S, still[0] + settled, still[1]) == 0
    assert google.most_within(WINDOW_S, still[1] + settled) > 0
    return world


async def test_an_hour_of_a_million_messages_keeps_every_limit_and_uses_it():
    world = await backlog(seed=1, seconds=HOUR_S, senders=1)
    assert world.granted >= 1_000_000
    assert world.sent[("new",)].total == 2 * (
        7 + 7 + 13
    )  # google, yahoo and the rest, in two hours


async def test_limits_hold_while_permits_lapse_come_back_and_throttles_die():
    await trouble(seed=2, seconds=900.0, senders=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
async def test_limits_hold_for_an_hour_with_many_senders(seed):
    await backlog(seed, HOUR_S, senders=4)
    await trouble(seed, HOUR_S, senders=4)
