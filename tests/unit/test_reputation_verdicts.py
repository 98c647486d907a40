"""Verdicts and courses as laws: more harm is never judged milder, and praise buys nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.delivery.reputation import courses, norms
from manta.delivery.reputation.courses import MOVES, Course, Phase, Sight
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.reputation.verdicts import Figures, Level, level_of, proven_level
from manta.delivery.reputation.windows import (
    SPANS,
    UNITS_MAX,
    Mark,
    Unit,
    Windows,
    seconds,
    wilson_bounds,
)
from manta.errors import Conflict, InvalidRequest
from tests.unit.reputation_house import DOMAIN, ReputationHouse

NORMS = norms.builtin()
LANE = Unit("a", "google")
NOW = datetime(2026, 3, 1, 12)
MEASURES = st.sampled_from(list(NORMS.measures.values()))
COUNTS = st.integers(0, 20_000)
BAD = st.sampled_from(
    [
        (Seen.COMPLAINED, BounceClass.NONE),
        (Seen.FAILED, BounceClass.HARD),
        (Seen.FAILED, BounceClass.BLOCK),
        (Seen.BOUNCED, BounceClass.HARD),
        (Seen.BOUNCED, BounceClass.BLOCK),
        (Seen.DEFERRED, BounceClass.SOFT),
    ]
)
SIGHTS = st.builds(
    Sight, st.floats(100, 1e4), st.floats(0, 100), st.floats(1, 1_000), st.integers(0, 10_000)
)


def seen(kind: tuple[Seen, BounceClass], messages: int, **changes: object) -> Observed:
    observed = Observed(NOW, kind[0], DOMAIN, "a", "google", "google", 7, kind[1])
    return observed._replace(messages=messages, **changes)


# -- Wilson ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "base", "lower", "upper"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (50, 100, 0.4038, 0.5962)],
)
def test_the_bounds_are_those_of_the_textbook(
    bad: int, base: int, lower: float, upper: float
) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), method 3: the two-sided 95 % interval."""
    found = wilson_bounds(bad, base, 1.959964)
    assert found == pytest.approx((lower, upper), abs=2e-4)


@given(COUNTS, COUNTS, st.floats(0.5, 4))
def test_the_bounds_enclose_the_rate(bad: int, base: int, z: float) -> None:
    lower, upper = wilson_bounds(bad, base, z)
    rate = min(bad, base) / base if base else 0.0
    assert 0 <= lower <= rate + 1e-12 and rate - 1e-12 <= upper <= 1


# -- monotony --------------------------------------------------------------------------------------


@given(MEASURES, COUNTS, COUNTS, COUNTS, COUNTS, st.integers(1, 1_000), st.booleans())
def test_more_bad_ones_are_never_judged_milder(
    measure: norms.Measure,
    bad: int,
    base: int,
    bad_since: int,
    base_since: int,
    more: int,
    is_pardoned: bool,
) -> None:
    """Those that are of the base, too (refused in the dialogue), and those that are not."""
    figures = Figures(bad + bad_since, base + base_since, bad_since, base_since)
    for in_base in (0, more):
        worse = Figures(
            figures.bad + more,
            figures.base + in_base,
            figures.bad_since + more,
            figures.base_since + in_base,
        )
        assert level_of(worse, measure, NORMS.z, is_pardoned) >= level_of(
            figures, measure, NORMS.z, is_pardoned
        )
        assert proven_level(worse, measure, NORMS.z) >= proven_level(figures, measure, NORMS.z)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(BAD, st.integers(1, 300)), max_size=6),
    st.integers(0, 3_000),
    BAD,
    st.integers(1, 500),
)
def test_more_harm_never_leaves_a_lane_more(
    harm: list[tuple[tuple[Seen, BounceClass], int]],
    accepted: int,
    further: tuple[Seen, BounceClass],
    more: int,
) -> None:
    """Whatever a lane has seen: with further complaints or bounces its limit is no higher."""
    paces = []
    for extra in (0, more):
        house = ReputationHouse()
        events = [((Seen.ACCEPTED, BounceClass.NONE), accepted), *harm, (further, extra)]
        for kind, count in events:
            if count:
                house.see(kind[0], count, bounce_class=kind[1])
        house.decide()
        limit = math.inf
        for action in house.active():
            rate = action.limits.rate_per_s
            limit = min(limit, 0.0 if rate is None else rate)
        # As a part of the pace that the lane had: further refusals are further attempts.
        window = house.reputation.windows.get(LANE)
        pace = window.pace_per_s(seconds(house.clock.now())) if window else 0.0
        paces.append(limit / pace if pace else limit)
    assert paces[1] <= paces[0] + 1e-9


@settings(max_examples=40)
@given(
    st.lists(st.tuples(BAD, st.integers(1, 60), st.integers(100, 1_000)), max_size=8),
    st.lists(
        st.tuples(
            st.sampled_from([Seen.OPENED, Seen.CLICKED, Seen.UNSUBSCRIBED]),
            st.integers(1, 1_000_000),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_no_amount_of_opens_changes_anything(
    harm: list[tuple[tuple[Seen, BounceClass], int, int]], praise: list[tuple[Seen, int]]
) -> None:
    quiet, loved = ReputationHouse(), ReputationHouse()
    for house in (quiet, loved):
        for kind, count, accepted in harm:
            house.clock.advance(40)
            house.see(Seen.ACCEPTED, accepted)
            house.see(kind[0], count, bounce_class=kind[1])
            if house is loved:
                for opened, times in praise:
                    house.see(opened, times)
            house.decide()
    assert quiet.reputation.actions == loved.reputation.actions
    assert quiet.reputation.courses == loved.reputation.courses


@given(st.floats(0.1, 100), st.integers(0, 3), SIGHTS, st.booleans())
def test_a_worse_level_never_leads_to_a_higher_rate(
    rate: float, decreases: int, sight: Sight, is_free: bool
) -> None:
    course = Course(LANE)
    if not is_free:
        course = Course(LANE, Phase.SLOWED, 1, 100.0, rate, decreases)
    rates = []
    for level in (Level.WARN, Level.ACT, Level.STOP):
        after = courses.tightened(course, level, sight, NORMS.pace) or course
        assert after.phase is not Phase.SLOWED or after.rate_per_s >= NORMS.pace.rate_min_per_s
        rates.append(0.0 if after.phase is Phase.QUARANTINED else after.rate_per_s)
    assert rates == sorted(rates, reverse=True)
    ceiling = max(rate, NORMS.pace.rate_min_per_s)
    assert is_free or max(rates) <= ceiling


@given(st.floats(0.1, 100), SIGHTS)
def test_clean_steps_never_slow_and_end(rate: float, sight: Sight) -> None:
    sight = replace(sight, now_s=1e6, attempts=10_000, ceiling_per_s=1_000.0)
    for phase in (Phase.SLOWED, Phase.PROBING):
        course: Course | None = Course(LANE, phase, 1, 100.0, rate, 1)
        for _ in range(40):
            assert course is not None
            before, course = course, courses.eased(course, sight, NORMS.pace)
            if course is not None and course.phase is Phase.FREE:
                break
            assert course is not None and course.rate_per_s > before.rate_per_s
            course = replace(course, stepped_at_s=0.0)
        assert course is not None and course.phase is Phase.FREE


def test_no_course_leaves_the_table() -> None:
    for phase in Phase:
        for other in set(Phase) - MOVES[phase]:
            with pytest.raises(Conflict, match=f"from {phase} to {other}"):
                Course(LANE, phase).to(other)


def test_a_course_and_its_document() -> None:
    course = Course(LANE, Phase.PROBING, 3, 20.0, 1.5, 2, 99.5, Mark(88.25, True))
    assert Course.from_document(course.to_document()) == course


# -- windows ---------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 8 * 86_400), st.integers(1, 50)), min_size=1, max_size=30),
    st.integers(0, 8 * 86_400),
)
def test_every_span_holds_what_is_young_enough_whatever_the_order(
    events: list[tuple[int, int]], mark_age: int
) -> None:
    windows = Windows()
    now_s = seconds(NOW)
    windows.mark(LANE, Mark(now_s - mark_age))
    for age_s, count in events:
        at = NOW - timedelta(seconds=age_s)
        windows.add(seen((Seen.ACCEPTED, BounceClass.NONE), count, occurred_at=at), now_s)
    window = windows.get(LANE)
    assert window is not None
    for name, span in SPANS.items():
        held = window.total(name, now_s)[0]
        certainly = sum(c for age_s, c in events if age_s < span.length_s - span.grain_s)
        possibly = sum(c for age_s, c in events if age_s < span.length_s)
        assert certainly <= held <= possibly
        assert window.since(name, now_s)[0] == sum(
            c
            for age_s, c in events
            if age_s <= mark_age
            and (now_s - age_s) // span.grain_s
            > now_s // span.grain_s - span.length_s // span.grain_s
        )
    assert window.total("week", now_s + 8 * 86_400) == [0] * len(window.ever)
    assert window.ever[0] == sum(count for _, count in events)


def test_the_silent_are_forgotten_first() -> None:
    windows = Windows(units_max=6)
    for n in range(4):
        kind = (Seen.ACCEPTED, BounceClass.NONE)
        windows.add(seen(kind, 1, provider=f"p{n}"), seconds(NOW))
    assert [lane.provider for lane in windows.lanes()] == ["p2", "p3"]
    assert [u.provider for u in windows.of_campaign(7)] == ["p2", "p3"]
    assert UNITS_MAX >= 1_000


def test_the_pace_is_what_the_lane_did_of_late() -> None:
    windows = Windows()
    now_s = seconds(NOW)
    kind = (Seen.ACCEPTED, BounceClass.NONE)
    for n in range(30):
        at = NOW + timedelta(seconds=n)
        windows.add(seen(kind, 20, occurred_at=at), now_s + n)
    window = windows.get(LANE)
    assert window is not None
    assert window.pace_per_s(now_s + 30) == pytest.approx(20)
    assert window.pace_per_s(now_s + 1_000) == pytest.approx(10)  # of the busiest minute


# -- the limits as data ----------------------------------------------------------------------------


def test_the_published_limits_are_the_defaults() -> None:
    complaints, hard = NORMS.measures["complaints"], NORMS.measures["hard_bounces"]
    assert (complaints.warn, complaints.act) == (0.001, 0.003)
    assert (hard.warn, hard.act) == (0.05, 0.10)
    for measure in NORMS.measures.values():
        assert measure.messages_min >= 50 and measure.events_min >= 3


def test_an_operator_replaces_single_values() -> None:
    own = norms.parse("[measures.complaints]\nwarn = 0.0005\n")
    assert own.measures["complaints"].warn == 0.0005
    assert own.measures["complaints"].act == 0.003
    assert own.pace == NORMS.pace


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("confidence = 2.0", "confidence"),
        ("confidence = true", "confidence"),
        ('dated = "today"', "dated"),
        ("[measures.spam]\nwarn = 1", "measures.spam"),
        ("measures = 3", "measures"),
        ("[measures.complaints]\nwarn = 0.5", "measures.complaints"),
        ("[measures.complaints]\nwarn = -1", "measures.complaints.warn"),
        ('[measures.complaints]\nwarn = "0.1"', "measures.complaints.warn"),
        ('[measures.complaints]\nspan = "year"', "measures.complaints.span"),
        ('[measures.complaints]\nspan = "minutes"', "measures.complaints.span"),
        ('[measures.complaints]\nbad = ["opened_twice"]', "measures.complaints.bad"),
        ('[measures.complaints]\nof = ["accepted", "opened"]', "measures.complaints.of"),
        ("[measures.complaints]\nmessages_min = 0", "measures.complaints.messages_min"),
        ("[measures.complaints]\nblames = 1", "measures.complaints.blames"),
        ("[pace]\nact_factor = 1.5", "pace.act_factor"),
        ("[pace]\nspeed = 1", "pace.speed"),
        ("[pace", "reputation"),
        ("x" * 70_000, ""),
    ],
)
def test_wrong_limits_are_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        norms.parse(text)
    assert refused.value.path == named
