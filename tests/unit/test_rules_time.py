"""Time alone: between now and ``flips_at`` no answer changes."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.rules.closure import EventRow, Person, Suppression, compile_closure
from manta.rules.meaning import day_of, day_starts, local_day, next_anniversary
from manta.rules.nodes import Rule
from manta.rules.tree import parse
from tests.unit.rules_samples import ATTRIBUTES, NOW, SHIFTS, TICK, people, rules


def rule(json: object) -> Rule:
    return parse(json, ATTRIBUTES)


def nobody(**profile: object) -> Person:
    return Person(1, profile)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_the_answer_stands_until_it_may_flip(seed: int) -> None:
    random = Random(seed)
    person = people(1).draw(random)
    for _ in range(20):
        asked = rule(rules().draw(random))
        holds = compile_closure(asked, random.choice(["UTC", "Asia/Kolkata"]))
        now = NOW + random.choice([-1, 0, 1]) * random.choice(SHIFTS) + random.randint(-1, 1) * TICK
        flips_at = holds.flips_at(person, now)
        assert flips_at is None or flips_at > now
        end = flips_at or now + timedelta(days=800)
        span = end - now
        for moment in (end - TICK, *(now + random.random() * span for _ in range(8))):
            if now <= moment < end:
                assert holds(person, moment) == holds(person, now), (asked.to_json(), now, moment)


@pytest.mark.parametrize(
    ("json", "person", "flips_at"),
    [
        (
            {"event": {"type": "purchased", "within": {"last": {"days": 30}}}},
            Person(
                1,
                {},
                {"purchased": [EventRow(NOW - timedelta(days=29)), EventRow(NOW)]},
            ),
            NOW + timedelta(days=1),
        ),
        (
            {"last_messages": {"number": 1, "which": "none", "were": "opened"}},
            Person(1, {}, {"sent": [EventRow(NOW, item="marketing", message_key=1)]}),
            NOW + timedelta(hours=24),
        ),
        (
            {"attribute": {"name": "birthday", "operator": "anniversary_today"}},
            nobody(attr_birthday=datetime(1990, 3, 31), time_zone="Asia/Tokyo"),
            datetime(2026, 3, 30, 15),
        ),
        (
            {"attribute": {"name": "birthday", "operator": "in_the_last", "value": {"days": 3}}},
            nobody(attr_birthday=datetime(2026, 3, 28), time_zone="Europe/Oslo"),
            datetime(2026, 3, 30, 22),
        ),
        (
            {"suppressed": {"channel": "email"}},
            Person(1, {}, suppressions=(Suppression("complaint", NOW + TICK),)),
            NOW + TICK,
        ),
        # 0:01 went back to 23:01 on the day before: half a minute past midnight, the first time.
        (
            {"attribute": {"name": "birthday", "operator": "in_the_last", "value": {"days": 1}}},
            nobody(attr_birthday=datetime(2010, 11, 7), time_zone="America/St_Johns"),
            datetime(2010, 11, 7, 2, 31),
        ),
        ({"attribute": {"name": "city", "operator": "is_set"}}, nobody(attr_city="Oslo"), None),
        ({"member": {"segment": 1}}, nobody(), None),
    ],
)
def test_flips_at_is_the_bound_of_each_condition(
    json: object, person: Person, flips_at: datetime | None
) -> None:
    zone = person.profile.get("time_zone")
    now = datetime(2010, 11, 7, 2, 30, 30) if zone == "America/St_Johns" else NOW
    assert compile_closure(rule(json)).flips_at(person, now) == flips_at


@pytest.mark.parametrize(
    ("operator", "before", "flips"),
    [  # a value so far from now, and when the answer turns
        ("in_the_last", timedelta(hours=-1), [0, 5]),
        ("in_the_next", timedelta(hours=6), [1, 6]),
        ("at_least_ago", timedelta(hours=1), [6]),
    ],
)
def test_a_date_in_hours_turns_at_its_bounds(
    operator: str, before: timedelta, flips: list[int]
) -> None:
    span = {"hours": 5}
    value = NOW + before if operator != "in_the_last" else NOW
    json = {"attribute": {"name": "birthday", "operator": operator, "value": span}}
    holds, person = compile_closure(rule(json)), nobody(attr_birthday=value)
    now, seen = NOW - timedelta(hours=2), []
    answer = holds(person, now)
    while (flips_at := holds.flips_at(person, now)) is not None:
        assert holds(person, flips_at - TICK) == answer
        if holds(person, flips_at) != answer:
            answer = not answer
            seen.append(flips_at)
        now = flips_at
    assert seen == [NOW + timedelta(hours=hours) for hours in flips]


@pytest.mark.parametrize(
    ("zone", "around"),
    [
        ("Africa/Cairo", datetime(2026, 4, 24)),  # summer time begins at midnight
        ("America/Havana", datetime(2026, 11, 1)),  # and ends at 1:00, back to midnight
        ("America/St_Johns", datetime(2010, 11, 7)),  # 0:01 back to 23:01: the day comes twice
        ("America/Scoresbysund", datetime(2024, 3, 31)),
        ("Pacific/Apia", datetime(2011, 12, 30)),  # a day that never was
        ("Asia/Manila", datetime(1844, 12, 31)),
        ("Pacific/Kwajalein", datetime(1993, 8, 21)),
    ],
)
def test_the_local_day_changes_only_where_day_starts_says(zone: str, around: datetime) -> None:
    own = ZoneInfo(zone)
    step = timedelta(seconds=47)
    moment, end = around - timedelta(hours=16), around + timedelta(hours=40)
    while moment < end:
        later = moment + step
        before, after = local_day(moment, own), local_day(later, own)
        if before != after:
            # Whoever waits for either day is woken in between.
            days = [before, after, before + timedelta(days=1)]
            starts = [one for day in days for one in day_starts(day, own, moment)]
            assert any(moment < one <= later for one in starts), (moment, before, after)
        moment = later


def test_midnight_utc_is_a_date_and_the_same_day_everywhere() -> None:
    west = ZoneInfo("America/Los_Angeles")
    assert day_of(datetime(1990, 5, 12), west) == date(1990, 5, 12)
    assert day_of(datetime(1990, 5, 12, 1), west) == date(1990, 5, 11)


def test_the_29th_of_february_is_kept_on_the_28th_in_common_years() -> None:
    leap = date(2024, 2, 29)
    assert next_anniversary(leap, date(2026, 2, 1)) == date(2026, 2, 28)
    assert next_anniversary(leap, date(2028, 2, 28)) == date(2028, 2, 29)
    assert next_anniversary(leap, date(2026, 3, 1)) == date(2027, 2, 28)


@pytest.mark.parametrize(
    ("back", "counts"),
    [(timedelta(days=30), False), (timedelta(days=30) - TICK, True), (-TICK, False)],
)
def test_windows_are_half_open(back: timedelta, counts: bool) -> None:
    asked = rule({"event": {"type": "purchased", "within": {"last": {"days": 30}}}})
    person = Person(1, {}, {"purchased": [EventRow(NOW - back)]})
    assert compile_closure(asked)(person, NOW) is counts
