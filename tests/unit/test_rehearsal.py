"""Campaigns in virtual time: what a rehearsal foresees, against what can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.lanes import OTHERS, Site
from manta.delivery.rehearsal.behaviour import behaviours
from manta.delivery.rehearsal.crowds import Cohort, Queue, drawn, sliced
from manta.delivery.rehearsal.forecast import Forecast, Interval, Outcome, compare
from manta.delivery.rehearsal.rehearsal import (
    REST,
    Audience,
    Campaign,
    State,
    destinations_of,
    facts_of,
    rehearse,
)
from manta.delivery.rehearsal.trial import Facts, Trial
from manta.delivery.reputation import norms
from manta.delivery.reputation.actions import Action, ActionKind, Narrower, Scope
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.observations import Observed, Seen
from manta.delivery.shaping.shaping import builtin
from manta.errors import InvalidRequest, Overloaded
from manta.settings import EgressSource, Pool, PoolMember, Settings

NOW = datetime(2026, 11, 24, 9)
RELAY = Settings(egress=(EgressSource("relay", rate_per_s=100, burst=100),))
DIRECT = Settings(egress=(EgressSource("mx", kind="direct"),))
CALM = replace(
    behaviours()["postfix"],
    cold_per_day=5_000_000,
    unknown_share=0.0,
    full_share=0.0,
    late_share=0.0,
    complaint_share=0.0,
)


def facts(
    settings: Settings,
    audience: Mapping[str, int],
    *,
    engaged: int = 0,
    source: str | None = None,
    state: State | None = None,
    **models: Any,
) -> Facts:
    """Each domain is its own site; a domain's name without its end is its provider."""
    campaign = Campaign(7, source or next(iter(settings.ways_out)), "shop.example", NOW)
    sites = {domain: Site(domain, domain.partition(".")[0]) for domain in audience}
    people = Audience(tuple((domain, n, engaged) for domain, n in audience.items()))
    found = facts_of(campaign, settings, people, sites, state or State(), norms.builtin())
    return replace(found, models={**found.models, **models})


def foreseen(given: Facts, runs: int = 5, seed: int = 1) -> Forecast:
    return rehearse(given, NOW, lambda: 0.0, seed=seed, runs_max=runs)


def shaped(text: str) -> State:
    return State(law=Law(1, text))


def test_an_unlimited_relay_takes_as_long_as_its_rate_says() -> None:
    forecast = foreseen(facts(RELAY, {"gmail.com": 30_000, "shop.test": 10_000}))
    done = forecast.total.intervals["done_s"]
    assert done.median == pytest.approx(40_000 / 100, rel=0.05)
    assert forecast.total.intervals["accepted"].median == 40_000
    assert forecast.total.intervals["deferred"].high == 0


def test_a_rate_at_one_provider_is_its_pace_and_nobody_elses() -> None:
    state = shaped('[provider.slow]\ndomains = ["slow.test"]\nrate = "10/s"\n')
    forecast = foreseen(
        facts(
            DIRECT,
            {"slow.test": 6_000, "fast.test": 6_000},
            state=state,
            slow=CALM,
            fast=CALM,
        )
    )
    by = {each.provider: each.intervals["done_s"].median or 0.0 for each in forecast.providers}
    assert by["slow"] == pytest.approx(600, rel=0.06)
    assert by["fast"] < 120


def cold(*others: EgressSource) -> Settings:
    sources = (EgressSource("new", kind="direct", cold_since="2026-11-24"), *others)
    members = tuple(PoolMember(source.name) for source in sources)
    return Settings(egress=sources, pools=(Pool("all", members),))


def test_a_cold_source_alone_takes_days() -> None:
    given = facts(cold(), {"gmail.com": 120}, source="new", gmail=CALM)
    given = replace(given, destinations=(replace(given.destinations[0], provider="google"),))
    forecast = foreseen(replace(given, models={"google": CALM}), runs=3)
    (warmed,) = forecast.warmups
    assert 86_400 > forecast.total.intervals["done_s"].low > 15 * 3_600  # type: ignore[operator]
    assert warmed.held.median == 120 - 7  # the first hour has an eighth of 50
    assert warmed.sent.median == 120 and warmed.spilled.high == 0


def test_what_is_beyond_the_quota_spills_to_the_warm_source() -> None:
    settings = cold(EgressSource("old", kind="direct"))
    given = facts(settings, {"gmail.com": 2_000}, engaged=500, source="all")
    given = replace(given, destinations=(replace(given.destinations[0], provider="google"),))
    forecast = foreseen(replace(given, models={"google": CALM}), runs=3)
    (warmed,) = forecast.warmups
    assert warmed.source == "new" and warmed.held.high == 0
    assert 0 < warmed.sent.median <= 7  # type: ignore[operator]
    assert warmed.spilled.median == pytest.approx(1_000, abs=10)
    assert forecast.total.intervals["done_s"].high < 300  # type: ignore[operator]


def test_a_warm_up_goes_on_from_where_it_is() -> None:
    quota = {
        "source": "new",
        "group": "google",
        "is_warm": False,
        "day": 10,
        "days": 35,
        "used_day": 0,
        "used_hour": 0,
        "is_held": False,
    }
    given = facts(cold(), {"gmail.com": 275}, source="new", state=State(quotas=(quota,)))
    given = replace(given, destinations=(replace(given.destinations[0], provider="google"),))
    forecast = foreseen(replace(given, models={"google": CALM}), runs=3)
    assert forecast.total.intervals["done_s"].high < 60  # type: ignore[operator]


def test_a_greylister_puts_all_first_tries_off() -> None:
    grey = replace(CALM, greylist_s=300.0, greylist_passes=1_000_000)
    stranger = replace(facts(DIRECT, {"grey.test": 2_000}, grey=grey), known_per_day={})
    forecast = foreseen(stranger)
    intervals = forecast.total.intervals
    assert intervals["deferred"].median == 2_000
    assert intervals["accepted"].median == 2_000
    assert 300 < intervals["mostly_s"].median < 1_200  # type: ignore[operator]
    assert not [a for a in forecast.actions if "deferrals" in a.cause]  # it says nothing about us


def test_complaints_are_acted_upon_where_they_come_from() -> None:
    angry = replace(
        CALM, complaint_share=0.02, complaint_after_s=60.0, has_feedback_loop=True,
        complaints_slow=0.0, complaints_block=0.0,
    )  # fmt: skip
    forecast = foreseen(facts(DIRECT, {"angry.test": 30_000, "calm.test": 5_000}, angry=angry,
                              calm=CALM), runs=3)  # fmt: skip
    first = min(forecast.actions, key=lambda each: each.began_s.median or 0.0)
    assert first.share == 1.0 and "complaints" in first.cause and "angry" in first.scope
    assert not [each for each in forecast.actions if "calm" in each.scope]
    assert forecast.total.intervals["complained"].low > 0  # type: ignore[operator]


def test_a_campaign_that_is_bad_everywhere_is_paused() -> None:
    angry = replace(
        CALM, complaint_share=0.05, complaint_after_s=30.0, has_feedback_loop=True,
        complaints_slow=0.0, complaints_block=0.0,
    )  # fmt: skip
    forecast = foreseen(facts(DIRECT, {"angry.test": 200_000}, angry=angry), runs=3)
    assert forecast.paused_share == 1.0
    assert any(action.kind == "pause" for action in forecast.actions)
    assert forecast.total.intervals["held"].low > 0  # type: ignore[operator]
    assert forecast.total.intervals["done_s"] == Interval(None, None, None)


def test_an_action_that_holds_already_holds_in_the_rehearsal() -> None:
    action = Action(
        3, ActionKind.SUSPEND, Scope("mx", "calm"), "by hand", NOW - timedelta(minutes=1),
        NOW + timedelta(hours=1), Narrower(),
    )  # fmt: skip
    forecast = foreseen(
        facts(DIRECT, {"calm.test": 1_000}, state=State(Law(4, "", (action,))), calm=CALM)
    )
    assert 3_600 <= forecast.total.intervals["mostly_s"].low < 3_800  # type: ignore[operator]
    assert forecast.actions == ()


def test_what_is_not_delivered_in_its_time_expires() -> None:
    full = replace(CALM, full_share=0.2)
    forecast = foreseen(facts(DIRECT, {"full.test": 5_000}, full=full), runs=3)
    intervals = forecast.total.intervals
    assert intervals["expired"].median == pytest.approx(1_000, rel=0.6)
    assert intervals["done_s"].high <= 72 * 3_600  # type: ignore[operator]
    assert intervals["accepted"].median + intervals["expired"].median == 5_000  # type: ignore


def test_a_provider_that_is_brought_too_much_says_so_and_the_rules_act() -> None:
    forecast = foreseen(facts(DIRECT, {"gmail.com": 20_000}), runs=3)
    # The site of the domain is named so; its provider is unknown, a small host for the models.
    assert forecast.total.intervals["deferred"].median > 0  # type: ignore[operator]


def test_every_message_is_accounted_for_in_every_run() -> None:
    given = facts(DIRECT, {"gmail.com": 9_000, "yahoo.com": 7_000, "b.test": 500}, engaged=100)
    for seed in range(3):
        ran = Trial(given, seed).run()
        for counted in (ran.total, *ran.providers.values()):
            assert counted.messages == (
                counted.accepted + counted.failed + counted.expired + counted.held
            )
        assert ran.total.accepted == sum(each.accepted for each in ran.providers.values())


def test_a_seed_gives_the_same_forecast_and_another_one_another() -> None:
    given = facts(DIRECT, {"gmail.com": 4_000, "b.test": 500})
    assert foreseen(given, 3) == foreseen(given, 3)
    assert foreseen(given, 3).total != foreseen(given, 3, seed=50).total


def test_medians_lie_in_their_intervals_and_a_forecast_is_read_back() -> None:
    forecast = foreseen(facts(DIRECT, {"gmail.com": 6_000, "yahoo.com": 3_000}), 9)
    for each in (forecast.total, *forecast.providers):
        for low, median, high in each.intervals.values():
            assert low is None or (median is None) or low <= median
            assert high is None or median <= high  # type: ignore[operator]
    document = json.loads(json.dumps(forecast.to_document()))
    assert Forecast.from_document(document) == forecast


def test_runs_end_with_the_time_that_is_given() -> None:
    given = facts(RELAY, {"b.test": 500})
    ticks = iter(range(1_000_000))
    forecast = rehearse(given, NOW, lambda: next(ticks) * 0.5, budget_s=4.0)
    assert 1 < forecast.runs < 20
    with pytest.raises(Overloaded):
        rehearse(given, NOW, lambda: 100.0)


def test_nobody_and_no_way_out_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="nobody"):
        facts(RELAY, {})
    with pytest.raises(InvalidRequest, match="no way out"):
        facts(RELAY, {"b.test": 5}, source="other")


# -- what it begins with ---------------------------------------------------------------------------


def test_shards_add_up_and_small_domains_are_together() -> None:
    parts: list[dict[str, Any]] = [
        {"domains": [("gmail.com", 70, 7), ("a.test", 5, 0)], "rest": (3, 3, 1), "left_out": 2},
        {"domains": [("gmail.com", 60, 6)], "rest": (2, 2, 0), "left_out": 1},
    ]
    audience = Audience.of(parts)
    assert audience.domains[0] == ("gmail.com", 130, 13)
    assert (audience.rest, audience.left_out, audience.messages) == ((3, 5, 1), 3, 140)
    found = destinations_of(audience, builtin(), {})
    assert [(d.provider, d.site, d.messages, d.sites) for d in found] == [
        ("google", "google", 130, 1),
        (OTHERS, REST, 10, 4),
    ]


def test_many_small_sites_are_together_as_fast_as_they_are_many() -> None:
    people = Audience((), (1_000, 30_000, 0))
    given = facts_of(
        Campaign(7, "mx", "shop.example", NOW), DIRECT, people, {}, State(), norms.builtin()
    )
    forecast = foreseen(given, 3)
    # Ten connections of the source, a tenth of a second a message: nothing else slows it.
    assert 200 < forecast.total.intervals["mostly_s"].median < 600  # type: ignore[operator]


def test_the_record_of_a_provider_changes_its_model() -> None:
    def seen(kind: Seen, messages: int) -> Observed:
        at = NOW - timedelta(hours=5)
        return Observed(at, kind, "shop.example", "mx", "yahoo", "yahoo", 1, messages=messages)

    record = (seen(Seen.ACCEPTED, 50_000), seen(Seen.COMPLAINED, 500))
    given = facts(DIRECT, {"yahoo.com": 100}, state=State(observed=record))
    assert given.models["yahoo"].complaint_share > 5 * behaviours()["yahoo"].complaint_share
    assert given.known_per_day["mx", "yahoo"] == 50_000


# -- parts -----------------------------------------------------------------------------------------


@given(st.integers(0, 5_000), st.floats(0, 1), st.integers(0, 1 << 30))
def test_drawn_numbers_are_binomial(count: int, share: float, seed: int) -> None:
    assert 0 <= drawn(Random(seed), count, share) <= count


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.9])
def test_drawn_numbers_have_the_mean_and_the_spread(share: float) -> None:
    random, count = Random(4), 400
    numbers = [drawn(random, count, share) for _ in range(3_000)]
    mean = sum(numbers) / len(numbers)
    variance = sum((n - mean) ** 2 for n in numbers) / len(numbers)
    assert mean == pytest.approx(count * share, rel=0.1)
    assert variance == pytest.approx(count * share * (1 - share), rel=0.15)


@given(st.integers(0, 10_000))
def test_slices_add_up(count: int) -> None:
    assert sum(sliced(count)) == count and all(part > 0 for part in sliced(count))


@given(
    st.lists(st.tuples(st.sampled_from("tpm"), st.integers(1, 50), st.floats(1, 900)), max_size=40)
)
def test_a_queue_loses_nobody(moves: list[tuple[str, int, float]]) -> None:
    queue, out, now_s = Queue(40, 60), 0, 0.0
    for move, number, seconds in moves:
        if move == "t":
            out += sum(cohort.count for cohort in queue.take(number, engaged_only=number % 2 == 0))
        elif move == "p" and out >= number:
            queue.put_off(Cohort(number, number % 3 == 0, 1), now_s, seconds)
            out -= number
        else:
            now_s += seconds
            queue.mature(now_s)
        assert len(queue) + out == 100


# -- afterwards ------------------------------------------------------------------------------------


def test_what_came_is_held_against_the_forecast() -> None:
    forecast = foreseen(facts(RELAY, {"gmail.com": 3_000, "b.test": 1_000}))
    good = compare(
        forecast,
        [
            Outcome("gmail", 3_000, 3_000, 0, 0, 0, 41.0),
            Outcome("b", 1_000, 1_000, 0, 0, 0, 40.0),
        ],
    )
    assert good.met_share == 1.0
    bad = compare(forecast, [Outcome("gmail", 3_000, 2_000, 900, 1_000, 0, 4_100.0),
                             Outcome("new", 10, 10, 0, 0, 0, 1.0)])  # fmt: skip
    by = {row.provider: {f.name: f.is_met for f in row.figures} for row in bad.providers}
    assert by["gmail"] == {
        "messages": True, "accepted": False, "deferred": False, "failed": False,
        "expired": True, "done_s": False,
    }  # fmt: skip
    assert not by["new"]["messages"] and not by["b"]["messages"]
    assert json.dumps(bad.to_document())


def test_who_never_ends_is_beyond_every_time() -> None:
    interval = Interval.of([1.0, 2.0, None, None, None])
    assert interval.low == pytest.approx(1.4) and interval.median is None
    assert interval.holds(None, 0.0) and interval.holds(1e9, 0.0) and not interval.holds(0.5, 0.0)
    assert not Interval(1.0, 2.0, 3.0).holds(None, 5.0)
