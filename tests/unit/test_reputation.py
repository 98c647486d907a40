"""Reputation in virtual time: what slows, what stops, what comes back, what an undo forgives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from manta.delivery.reputation import rulings
from manta.delivery.reputation.actions import ActionKind, Narrower, Scope
from manta.delivery.reputation.courses import Phase
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.reputation.rulings import UNLIMITED
from manta.delivery.reputation.windows import PLACES, column_of
from manta.errors import Conflict, InvalidRequest, NotFound
from tests.unit.reputation_house import DOMAIN, Flow, ReputationHouse, ScriptedRules, lane

GOOGLE = Scope("a", "google")


def test_one_percent_complaints_slow_one_provider_within_a_thousand_messages() -> None:
    house = ReputationHouse()
    bad = Flow("google", complaints=0.01)
    good = [Flow("yahoo", complaints=0.0002), Flow("outlook"), Flow("gmx")]
    first_slowed_at = 0
    for _ in range(240):
        house.run(0.5, bad, *good)
        if not first_slowed_at and house.allowed(bad) < bad.pace_per_s:
            first_slowed_at = bad.sent
    assert 200 <= first_slowed_at <= 600
    assert all(flow.sent == 120 * 50 for flow in good)
    (slow, *_) = house.reputation.actions.values()
    assert slow.kind is ActionKind.LIMIT
    assert slow.scope == Scope(source="a", provider="google")
    assert slow.limits.rate_per_s is not None
    assert slow.limits.rate_per_s <= 0.5 * bad.pace_per_s
    assert "complaints" in slow.cause and "google" in slow.cause
    assert slow.figures["limit"] in (0.001, 0.003)
    assert slow.figures["lower_bound"] > slow.figures["limit"]


def test_what_stays_bad_is_stopped_there_and_nowhere_else() -> None:
    house = ReputationHouse()
    bad, good = Flow("google", complaints=0.01), Flow("yahoo")
    other = Flow("google", campaign_id=8)
    house.run(600, bad, good, other)
    (stop,) = house.active(ActionKind.SUSPEND)
    assert stop.scope == Scope(provider="google", campaign_id=7)
    assert stop.campaigns == (7,)
    assert stop.until - stop.began_at == timedelta(seconds=1_800)
    assert house.allowed(bad) == 0 and house.allowed(good) == 50
    assert house.allowed(other) > 0
    house.run(3_600, other, step_s=5)
    assert not [a for a in house.active() if a.scope.source == "a"], "the lane is free again"


def test_a_campaign_bad_everywhere_is_paused_once() -> None:
    house = ReputationHouse()
    flows = [Flow(name, hard=0.3) for name in ("google", "yahoo", "outlook")]
    house.run(300, *flows)
    pauses = [a for ruling in house.rulings for a in ruling.pauses]
    assert [a.scope for a in pauses] == [Scope(campaign_id=7)]
    assert house.allowed(flows[0]) == 0
    assert all(flow.sent < 5_000 for flow in flows)


def test_blocks_and_deferrals_are_about_the_way_out() -> None:
    house = ReputationHouse()
    blocked = Flow("google", blocks=0.3)
    elsewhere = Flow("google", source="b")
    house.run(300, blocked, elsewhere)
    (stop,) = house.active(ActionKind.SUSPEND)
    assert stop.scope == Scope(source="a", provider="google")
    assert house.allowed(elsewhere) == 50, "rotation has somewhere to go"


def test_a_storm_of_deferrals_slows_and_a_quarantine_probes_its_way_back() -> None:
    house = ReputationHouse()
    storm = Flow("google", deferrals=0.8)
    house.run(90, storm)
    assert house.active(ActionKind.SUSPEND), "80 % deferred after two decreases"
    course = house.reputation.courses[lane()]
    assert course.phase is Phase.QUARANTINED
    storm.deferrals = 0.0
    house.run(1_800, storm, step_s=5)
    assert house.reputation.courses[lane()].phase is Phase.PROBING
    assert 0 < house.allowed(storm) <= 5
    house.run(1_200, storm, step_s=1)
    assert house.allowed(storm) == 50
    assert house.reputation.courses[lane()].phase is Phase.FREE


def test_a_bad_probe_is_stopped_for_twice_as_long() -> None:
    house = ReputationHouse()
    storm = Flow("google", deferrals=0.9)
    house.run(7_200, storm, step_s=2)
    stops = [a for a in house.reputation.actions.values() if a.kind is ActionKind.SUSPEND]
    assert [(a.until - a.began_at).total_seconds() for a in stops[:2]] == [1_800, 3_600]


def test_clean_windows_give_the_pace_back_bit_by_bit() -> None:
    house = ReputationHouse()
    flow = Flow("google", hard=0.07)
    house.run(20, flow)
    (slow,) = house.active()
    assert slow.limits.rate_per_s == pytest.approx(25, rel=0.1)
    flow.hard = 0.0
    paces = []
    for _ in range(14):
        house.run(310, flow, step_s=5)
        paces.append(house.allowed(flow))
    assert paces == sorted(paces) and paces[-1] == 50
    assert not house.active()
    (slow,) = house.reputation.actions.values()
    assert [step["rate_per_s"] for step in slow.figures["steps"]] == sorted(
        step["rate_per_s"] for step in slow.figures["steps"]
    )


def test_little_evidence_does_not_act() -> None:
    house = ReputationHouse()
    house.see(Seen.ACCEPTED, 150)
    house.see(Seen.COMPLAINED, 10)
    house.see(Seen.ACCEPTED, 5_000, campaign_id=8, provider="yahoo")
    house.see(Seen.COMPLAINED, 2, campaign_id=8, provider="yahoo")
    assert house.decide().is_empty


def test_opens_and_clicks_decide_nothing() -> None:
    quiet, loved = ReputationHouse(), ReputationHouse()
    for house in (quiet, loved):
        flow = Flow("google", complaints=0.01)
        for _ in range(60):
            house.run(0.5, flow)
            if house is loved:
                house.see(Seen.OPENED, 10_000)
                house.see(Seen.CLICKED, 10_000)
    assert quiet.reputation.actions == loved.reputation.actions
    assert quiet.reputation.actions


def test_our_own_words_and_greylisting_count_for_nothing() -> None:
    house = ReputationHouse()
    house.see(Seen.FAILED, 500, bounce_class=BounceClass.HARD, is_internal=True)
    house.see(Seen.DEFERRED, 500, bounce_class=BounceClass.SOFT, category="Greylisted")
    house.see(Seen.FAILED, 500, bounce_class=BounceClass.MESSAGE)
    assert house.decide().is_empty


# -- undo ------------------------------------------------------------------------------------------


def test_an_undo_sets_free_and_old_evidence_is_not_used_again() -> None:
    house = ReputationHouse()
    flow = Flow("google", complaints=0.01)
    while not house.active():
        house.run(0.5, flow)
    (action,) = house.active()
    undone, ruling = house.reputation.undo(action.id, "ann", house.clock.now())
    house.apply(ruling)
    assert (undone.undone_by, undone.undone_at) == ("ann", house.clock.now())
    assert house.allowed(flow) == 50
    flow.complaints = 0.0
    house.run(300, flow)
    assert not house.active()
    house.see(Seen.COMPLAINED, 2)  # late ones
    assert house.decide().is_empty


def test_after_an_undo_the_same_cause_needs_its_volume_again() -> None:
    house = ReputationHouse()
    flow = Flow("google", complaints=0.02)
    while not house.active():
        house.run(0.5, flow)
    (action,) = house.active()
    house.apply(house.reputation.undo(action.id, "ann", house.clock.now())[1])
    before = flow.sent
    while not house.active():
        house.run(0.5, flow)
    assert flow.sent - before >= house.norms.measures["complaints"].messages_min


def test_an_undo_of_a_suspended_campaign_and_of_a_pause() -> None:
    house = ReputationHouse()
    flow, other = Flow("google", complaints=0.01), Flow("yahoo")
    house.run(600, flow, other)
    (stop,) = house.active(ActionKind.SUSPEND)
    house.apply(house.reputation.undo(stop.id, "ann", house.clock.now())[1])
    assert not house.active(ActionKind.SUSPEND)
    house.run(5, flow, other)
    assert not house.active(ActionKind.SUSPEND)

    action, ruling = house.reputation.act(
        ActionKind.PAUSE,
        Scope(campaign_id=7),
        "the wrong list",
        3_600,
        Narrower(),
        "ann",
        house.clock.now(),
    )
    house.apply(ruling)
    assert ruling.pauses == (action,)
    undone, ruling = house.reputation.undo(action.id, "bob", house.clock.now())
    assert ruling.actions == (undone,)


def test_what_cannot_be_undone_says_why() -> None:
    house = ReputationHouse()
    now = house.clock.now()
    with pytest.raises(NotFound):
        house.reputation.undo(1, "ann", now)
    action, ruling = house.reputation.act(
        ActionKind.SUSPEND, Scope(source="a"), "moving it", 60, Narrower(), "ann", now
    )
    house.apply(ruling)
    house.clock.advance(61)
    with pytest.raises(Conflict, match="has ended"):
        house.reputation.undo(action.id, "ann", house.clock.now())


@pytest.mark.parametrize(
    ("kind", "scope", "limits", "duration_s", "cause"),
    [
        (ActionKind.PAUSE, Scope(provider="google"), Narrower(), 60, "x"),
        (ActionKind.PAUSE, Scope(campaign_id=7, source="a"), Narrower(), 60, "x"),
        (ActionKind.LIMIT, Scope(source="a"), Narrower(), 60, "x"),
        (ActionKind.SUSPEND, Scope(source="a"), Narrower(), 0, "x"),
        (ActionKind.SUSPEND, Scope(source="a"), Narrower(), 1e9, "x"),
        (ActionKind.SUSPEND, Scope(source="a"), Narrower(), 60, " "),
        (ActionKind.SUSPEND, Scope(source="a\n"), Narrower(), 60, "x"),
    ],
)
def test_wrong_actions_are_refused(
    kind: ActionKind, scope: Scope, limits: Narrower, duration_s: float, cause: str
) -> None:
    house = ReputationHouse()
    with pytest.raises(InvalidRequest):
        house.reputation.act(kind, scope, cause, duration_s, limits, "ann", house.clock.now())


# -- rules of the shaping file ---------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a rule asks for."""

    scope: Scope = GOOGLE
    kind: ActionKind = ActionKind.SUSPEND
    limits: Narrower = UNLIMITED
    cause: str = "rule: unusual rate"
    figures: Mapping[str, Any] = field(default_factory=lambda: {"seen": 2})
    duration_s: float = 600


def test_a_rule_acts_once_is_prolonged_and_an_undo_holds_until_there_is_news() -> None:
    house = ReputationHouse(ScriptedRules("busy", Asked()))
    house.see(Seen.DEFERRED, text="busy")
    house.see(Seen.DEFERRED, text="busy")
    house.decide()
    (action,) = house.active()
    assert (action.kind, action.cause, action.figures) == (
        ActionKind.SUSPEND,
        "rule: unusual rate",
        {"seen": 2},
    )
    house.clock.advance(300)
    house.see(Seen.DEFERRED, text="busy")
    house.decide()
    (longer,) = house.active()
    assert longer.id == action.id and longer.until == house.clock.now() + timedelta(seconds=600)
    house.apply(house.reputation.undo(action.id, "ann", house.clock.now())[1])
    house.see(Seen.DEFERRED, text="busy")
    house.decide()
    assert not house.active()
    house.see(Seen.ACCEPTED, 250)
    house.see(Seen.DEFERRED, text="busy")
    house.decide()
    assert house.active()


def test_campaigns_of_a_suspended_domain_are_named_as_they_turn_up() -> None:
    house = ReputationHouse(
        ScriptedRules("dmarc", Asked(scope=Scope(provider="google", sending_domain=DOMAIN)))
    )
    house.see(Seen.FAILED, text="dmarc", bounce_class=BounceClass.BLOCK)
    house.decide()
    assert house.active()[0].campaigns == (7,)
    house.see(Seen.ACCEPTED, campaign_id=8)
    house.decide()
    assert house.active()[0].campaigns == (7, 8)


# -- crash -----------------------------------------------------------------------------------------


def test_a_restart_keeps_actions_their_ends_and_where_the_lanes_are() -> None:
    house = ReputationHouse()
    storm = Flow("google", deferrals=0.8)
    house.run(90, storm)
    before = house.active()
    house.restart()
    assert house.active() == before
    house.clock.advance(1_700)
    house.decide()
    assert house.allowed(storm) == 0
    house.clock.advance(110)
    house.decide()
    assert house.reputation.courses[lane()].phase is Phase.PROBING


def test_too_many_actions_stop_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    house = ReputationHouse()
    storm = Flow("google", deferrals=0.8)
    house.run(90, storm)
    monkeypatch.setattr(rulings, "ACTIVE_OF_RULES_MAX", 0)
    house.clock.advance(1_800)
    house.see(Seen.ACCEPTED, 1_000, provider="yahoo")
    house.see(Seen.COMPLAINED, 50, provider="yahoo")
    house.decide()
    assert house.reputation.courses[lane()].phase is Phase.FREE
    assert not house.active() and house.reputation.triggers_dropped == 2
    asked = (ActionKind.SUSPEND, Scope(source="a"), "maintenance", 60, UNLIMITED, "ann")
    house.apply(house.reputation.act(*asked, house.clock.now())[1])
    assert len(house.active()) == 1, "there is room for what people do"


def test_a_free_course_is_forgotten_when_no_span_reaches_its_mark() -> None:
    house = ReputationHouse()
    house.run(90, Flow("google", deferrals=0.8))
    house.apply(house.reputation.undo(house.active()[0].id, "ann", house.clock.now())[1])
    assert house.reputation.courses[lane()].phase is Phase.FREE
    house.clock.advance(6 * 86_400)
    house.decide()
    assert lane() in house.reputation.courses
    house.clock.advance(86_400 + 3_601)
    ruling = house.decide()
    assert [(name, document) for name, _, document in ruling.changes()][1:] == [("courses", None)]
    reputation = house.reputation
    assert not (reputation.courses or reputation.windows._marks or reputation._steps)
    house.run(90, Flow("google", deferrals=0.8))
    assert house.active(), "it begins anew"


def test_old_actions_are_forgotten_and_active_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulings, "ACTIONS_MAX", 3)
    house = ReputationHouse()
    for n in range(6):
        for lasting_s in (10, 86_400) if n == 0 else (10,):
            asked = (ActionKind.SUSPEND, Scope(source=f"s{n}"), "why", lasting_s, UNLIMITED, "ann")
            house.apply(house.reputation.act(*asked, house.clock.now())[1])
        house.clock.advance(20)
    assert len(house.reputation.actions) <= 4
    assert [a.id for a in house.active()] == [2]
    assert house.rulings[-1].forgotten and house.reputation.head.last_action == 7


def test_a_refused_ruling_is_made_again() -> None:
    house = ReputationHouse(ScriptedRules("busy", Asked()))
    house.see(Seen.ACCEPTED, 1_000)
    house.see(Seen.COMPLAINED, 20)
    house.see(Seen.DEFERRED, text="busy", source="b", provider="yahoo")
    first = house.reputation.decide(house.clock.now())
    house.reputation.refuse(first)
    second = house.reputation.decide(house.clock.now())
    assert first.actions == second.actions and len(second.actions) == 2


def test_rebuilt_windows_do_not_use_evidence_again() -> None:
    house = ReputationHouse()
    flow = Flow("google", complaints=0.01)
    while not house.active():
        house.run(0.5, flow)
    house.restart()
    past = house.clock.now() - timedelta(minutes=1)
    counts = ((Seen.ACCEPTED, 400), (Seen.COMPLAINED, 4))
    house.reputation.recall(
        [
            Observed(past, seen, DOMAIN, "a", "google", "google", 7, messages=count)
            for seen, count in counts
        ],
        house.clock.now(),
    )
    house.see(Seen.ACCEPTED, 200)
    assert house.decide().is_empty
    house.clock.advance(60)
    house.see(Seen.COMPLAINED, 3)
    (revised,) = house.decide().actions
    assert revised.figures["messages"] == 600 and revised.figures["bad"] == 7


def test_what_is_deferred_for_a_mailbox_own_sake_says_nothing_about_us() -> None:
    seen = Observed(datetime(2026, 1, 1), Seen.DEFERRED, "d", "s", "p", "p", 1, code=452)
    assert column_of(seen._replace(category="QuotaIssues")) is None
    assert column_of(seen._replace(category="TransientFailure")) == PLACES["deferred"]
