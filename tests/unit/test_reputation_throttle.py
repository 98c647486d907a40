"""Reputation and Throttle together in virtual time: what is decided is what is sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from manta.clock import ManualClock
from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation import norms
from manta.delivery.reputation.actions import ActionKind
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.reputation.reputation import Reputation
from manta.delivery.shaping import shaping
from manta.delivery.shaping.automation import Automation
from manta.delivery.throttle.budgets import Budgets
from manta.delivery.throttle.ways import Ways

CAMPAIGN = 7
STEP_S = 0.5
SOURCES = {name: Limits(100.0, 50, 100) for name in ("a", "b")}


def lane(provider: str, source: str = "a", pool: str = "a") -> Lane:
    return Lane(pool, source, provider, provider)


@dataclass
class Street:
    """One campaign's mail over lanes that always have more to send."""

    complaints: dict[str, float] = field(default_factory=dict)  # by provider, of what is accepted
    blocks: dict[str, float] = field(default_factory=dict)  # by source
    pools: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.reputation = Reputation(
            norms.builtin(), Automation(shaping.builtin()), lambda unit: 100.0
        )
        self.budgets = Budgets(SOURCES, Ways(pools=self.pools), empty_at_s=None)
        self.sent: Counter[Lane] = Counter()
        self.slowed_after = 0
        self._owed: Counter[str] = Counter()

    def run(self, seconds: float, *lanes: Lane, wanted: int = 12) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.clock.advance(STEP_S)
            now, now_s = self.clock.now(), self.clock.monotonic()
            for each in lanes:
                grant = self.budgets.grant("s0", each, wanted, now_s, 0, now)
                if grant.permits and CAMPAIGN not in grant.without:
                    self._send(each, grant.permits)
            ruling = self.reputation.decide(now)
            self.reputation.apply(ruling)
            if ruling.actions:
                self.slowed_after = self.slowed_after or sum(self.sent.values())
                assert self.budgets.obey(self.reputation.law(now))

    def _send(self, lane: Lane, messages: int) -> None:
        self.sent[lane] += messages
        refused = self._due(lane.source, messages * self.blocks.get(lane.source, 0.0))
        spam = self._due(lane.provider, messages * self.complaints.get(lane.provider, 0.0))
        said = Observed(
            self.clock.now(),
            Seen.ACCEPTED,
            "news.example",
            lane.source,
            lane.provider,
            lane.site,
            CAMPAIGN,
        )
        self.reputation.observe(
            [
                said._replace(messages=messages - refused),
                said._replace(seen=Seen.FAILED, bounce_class=BounceClass.BLOCK, messages=refused),
                said._replace(seen=Seen.COMPLAINED, messages=spam),
            ],
            self.clock.now(),
        )

    def _due(self, what: str, amount: float) -> int:
        self._owed[what] += amount  # type: ignore[assignment]
        whole = int(self._owed[what] + 1e-9)
        self._owed[what] -= whole
        return whole


def test_one_percent_complaints_at_one_provider_slow_that_lane_alone() -> None:
    street = Street(complaints={"google": 0.01})
    bad, good, other = lane("google"), lane("yahoo"), lane("outlook")
    at_google_when_slowed = 0
    for _ in range(120):
        street.run(0.5, bad, good, other)
        if street.slowed_after and not at_google_when_slowed:
            at_google_when_slowed = street.sent[bad]
    assert 0 < at_google_when_slowed < 1_000
    unhindered = 120 * 12
    assert street.sent[good] == street.sent[other] == unhindered
    assert street.sent[bad] < 0.75 * unhindered
    before = street.sent[bad]
    street.run(60, bad, good, other)
    assert street.sent[bad] - before < 0.3 * unhindered
    assert street.sent[good] == 2 * unhindered


def test_a_pool_turns_away_from_a_source_that_is_blocked() -> None:
    street = Street(blocks={"a": 0.4}, pools={"both": {"a": 1, "b": 1}})
    hurt, well = (lane("google", source, "both") for source in ("a", "b"))
    street.run(120, hurt, well)
    kinds = [action.kind for action in street.reputation.law(street.clock.now()).actions]
    assert ActionKind.SUSPEND in kinds
    before = dict(street.sent)
    street.run(60, hurt, well)
    assert street.sent[hurt] == before[hurt]
    assert street.sent[well] - before[well] >= 0.9 * 120 * 12


def test_an_undo_gives_the_lane_its_pace_again() -> None:
    street = Street(complaints={"google": 0.01})
    bad = lane("google")
    while not street.slowed_after:
        street.run(0.5, bad)
    street.complaints.clear()
    (action,) = street.reputation.law(street.clock.now()).actions
    _, ruling = street.reputation.undo(action.id, "ann", street.clock.now())
    street.reputation.apply(ruling)
    assert street.budgets.obey(street.reputation.law(street.clock.now()))
    before = street.sent[bad]
    street.run(60, bad)
    assert street.sent[bad] - before == 120 * 12
