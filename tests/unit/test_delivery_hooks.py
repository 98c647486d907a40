"""What a shard tells the Director, and what it does when time has passed."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pytest

from manta.clock import ManualClock
from manta.command import Context
from manta.delivery import hooks
from manta.delivery.campaign import CampaignState
from manta.delivery.hooks import HookResult, HookSettings, SendingHook, Work, delivery_hooks
from manta.delivery.planning import ExpireRows, SweepCampaign
from manta.delivery.settling import FenceSender, Orphan
from tests.unit.delivery_shard import CAMPAIGN, SENDER, SendingShard, plan
from tests.unit.people_shard import START

DEADLINE_S = 60.0


class Watched(SendingShard):
    """A shard whose hook is called by hand, on a clock of its own."""

    def __init__(self, people: int = 4) -> None:
        super().__init__(people)
        self.clock = ManualClock(START)
        self.recover()

    def recover(self) -> None:
        self.hook = SendingHook(self.clock, HookSettings(DEADLINE_S, repeat_s=30.0))

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.pass_time(seconds=seconds)

    def look(self) -> HookResult:
        return self.hook.after_commit(self.database, Context(self.now, self.random, "w", 3))

    def told(self, method: str) -> list[tuple[object, ...]]:
        return [push.arguments for push in self.look().pushes if push.method == method]


def test_due_work_is_told_when_it_changes() -> None:
    shard = Watched()
    assert shard.told("work") == [(3, [])]
    shard.start()
    due = [Work("mx-a", f"d{i}.example", CAMPAIGN, 2, None) for i in (0, 1)]
    assert shard.told("work") == [(3, due)]
    assert shard.told("work") == []
    shard.wait(31)  # it may have been lost
    assert shard.told("work") == [(3, due)]
    shard.lease()
    assert shard.told("work") == [(3, [Work("mx-a", None, CAMPAIGN, 0, None, 4)])]


def test_later_work_wakes_the_shard() -> None:
    shard = Watched(1)
    at = START + timedelta(hours=1)
    shard.start(plan(due_at=at, expires_at=None))
    shard.look()
    shard.wait(31)
    result = shard.look()
    assert result.pushes[0].arguments == (3, [Work("mx-a", "d1.example", CAMPAIGN, 0, at)])
    assert result.next_wake == shard.now + timedelta(seconds=30)


def test_a_paused_campaign_is_pending_and_has_nothing_due() -> None:
    shard = Watched(1)
    shard.start()
    shard.set(CampaignState.PAUSED)
    assert shard.told("work") == [(3, [Work("mx-a", None, CAMPAIGN, 0, None)])]


def test_a_lease_past_its_deadline_is_orphaned_and_told() -> None:
    shard = Watched(2)
    shard.start()
    shard.lease(lease_id=8, limit=1)
    assert shard.look().next_wake == shard.now + timedelta(seconds=30)
    shard.wait(DEADLINE_S - 1)
    assert shard.look().commands == ()
    shard.wait(1)
    assert shard.look().commands == (Orphan((8,)),)
    shard.answer(Orphan((8,)))
    assert shard.told("orphans") == [(3, [(SENDER, 1)])]
    assert shard.told("orphans") == []
    shard.wait(31)
    assert shard.told("orphans") == [(3, [(SENDER, 1)])]
    shard.answer(FenceSender(SENDER, 2))


def test_orphans_whose_journal_is_being_read_are_left_to_the_reader_for_a_while() -> None:
    shard = Watched(2)
    shard.start()
    shard.lease(lease_id=8, limit=1)
    shard.look()
    shard.answer(FenceSender(SENDER, 2))  # its next incarnation, which goes on to resolve them
    assert shard.told("orphans") == []
    shard.wait(29)
    assert shard.told("orphans") == []
    shard.wait(2)
    assert shard.told("orphans") == [(3, [(SENDER, 1)])], "the reader has died in the middle"


def test_a_recovered_shard_gives_every_lease_a_fresh_deadline() -> None:
    shard = Watched(1)
    shard.start()
    shard.lease()
    shard.look()
    shard.wait(DEADLINE_S - 1)
    shard.recover()
    shard.look()
    shard.wait(DEADLINE_S - 1)
    assert shard.look().commands == ()
    shard.wait(1)
    assert shard.look().commands == (Orphan((1,)),)


def test_what_is_over_is_swept() -> None:
    shard = Watched(3)
    shard.start()
    assert shard.look().commands == ()
    shard.load("campaigns", {"campaign_id": CAMPAIGN, "state": "cancelled"})
    assert shard.look().commands == (SweepCampaign(CAMPAIGN),)
    shard.wait(3 * 86_400)
    assert shard.look().commands == (ExpireRows(), SweepCampaign(CAMPAIGN))


def test_looks_come_seldom_where_they_cost_much() -> None:
    shard = Watched(1)
    (hook,) = delivery_hooks(shard.clock)
    assert hook.min_gap_s == hook.settings.min_gap_s
    hook._cost_s = 0.002
    assert hook.min_gap_s == 0.002 / hook.settings.cost_share
    hook._cost_s = 60.0
    assert hook.min_gap_s == hook.settings.max_gap_s


def test_a_report_names_the_longest_queues_and_the_others_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hooks, "DOMAINS_MAX", 4)
    shard = SendingShard(0)
    shard.load(
        "profiles",
        *({"subscriber_id": i, "email": f"p{i}@d{i % 10}.example"} for i in range(1, 15)),
    )
    shard.load("consents", *(shard.consent(i) for i in range(1, 15)))
    shard.start()
    seen: set[str | None] = set()
    for _ in range(5):
        report = hooks.work(shard.database, Context(shard.now, Random(1), "w", 0), {})
        named = [work.domain for work in report]
        assert named[:2] == ["d1.example", "d2.example"] and named[4:] == [None]
        assert sum(work.due for work in report) == 14
        seen |= set(named)
        shard.now += timedelta(seconds=30)
    assert len(seen) == 11
