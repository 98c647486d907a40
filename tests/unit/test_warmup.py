"""Warm-up: days that count, days that do not, hours, and what a restart may lose."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.shaping import shaping
from manta.delivery.throttle.warmup import OTHERS, Warmup, builtin, parse
from manta.errors import InvalidRequest

BEGAN = datetime(2026, 3, 1)
COLD = {"new": BEGAN.date()}
HOURS = 24


def sent_in_an_hour(warmup, now, wanted, provider="google"):
    """As the Throttle does it: set aside, store, use."""
    quota = warmup.quota("new", provider, now)
    sent = 0
    while sent < wanted:
        room = min(quota.room(), wanted - sent)
        if not room:
            if not quota.wants_reserve:
                break
            warmup.touch(quota)
            proposals = warmup.proposals()
            warmup.stored(proposals)
            continue
        quota.use(room)
        sent += room
    return sent


def test_every_row_of_the_plan_that_comes_with_manta():
    plan = builtin()
    known = shaping.builtin().providers
    for provider, schedule in plan.schedules.items():
        assert provider in known, f"{provider} is no provider of the shaping file"
        assert schedule.days[0] <= 100 and schedule.days[-1] >= 20_000
    for name in ("google", "yahoo", "outlook", "office365", "apple"):
        assert plan.schedules[name].days[-1] == 50_000
        assert 30 <= len(plan.schedules[name].days) <= 45
    for schedule in {s.name: s for s in (*plan.schedules.values(), plan.others)}.values():
        for before, after in zip(schedule.days, schedule.days[1:], strict=False):
            assert before <= after <= 2 * before
    assert plan.idle_days == 30 and 1 / 10 <= plan.others.hour_share <= 1 / 8


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("idle_days = 30", "idle_days = 0", "idle_days"),
        ("hour_share = 0.125", "hour_share = 2", "hour_share"),
        ("hour_share", "hours", "hours"),
        ("providers = []", 'providers = ["google"]', "schedule.others.providers"),
        ("50, 100, 200", "50, 10, 200", "schedule.large.days"),
        ("50, 100, 200", "0, 100, 200", "schedule.large.days"),
        ("[schedule.others]", "[schedule.rest]", "schedule.others"),
        ("providers = []", "days_per_week = 5", "schedule.others"),
        ("providers = []", "=", "warmup"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_by_the_key(old, new, path):
    from importlib.resources import files

    text = files("manta.delivery.throttle").joinpath("warmup.toml").read_text("utf-8")
    assert old in text
    with pytest.raises(InvalidRequest) as error:
        parse(text.replace(old, new))
    assert error.value.path == path


def test_a_clean_warm_up_reaches_its_plan_hour_by_hour():
    warmup, now = Warmup(COLD), BEGAN
    schedule = builtin().schedules["google"]
    for day in schedule.days:
        in_all = 0
        for _ in range(HOURS):
            sent = sent_in_an_hour(warmup, now, 10**6)
            assert sent <= -(-day // 8)
            in_all += sent
            now += timedelta(hours=1)
        assert in_all == day
    quota = warmup.quota("new", "google", now)
    assert quota.is_warm and quota.status()["finished_about"] is None
    assert not warmup.is_cold("new", "google", now)
    assert warmup.is_cold("new", "yahoo", now)  # each provider by itself
    assert warmup.quota("old", "google", now) is None


def test_days_that_were_hardly_used_or_slowed_do_not_count():
    warmup, now = Warmup(COLD), BEGAN
    assert sent_in_an_hour(warmup, now, 5) == 5
    now += timedelta(days=1)
    quota = warmup.quota("new", "google", now)
    assert quota.counted == 0
    for hour in range(8):
        sent_in_an_hour(warmup, now + timedelta(hours=hour), 100)
    quota.is_held = True
    now += timedelta(days=1)
    assert warmup.quota("new", "google", now).counted == 0
    for hour in range(8):
        sent_in_an_hour(warmup, now + timedelta(hours=hour), 100)
    now += timedelta(days=1)
    assert warmup.quota("new", "google", now).counted == 1 and quota.quota_day == 100


def test_a_source_that_was_idle_for_more_than_thirty_days_begins_anew():
    document = {
        "source": "new",
        "group": "google",
        "cold_since": "2026-03-01",
        "at": "2026-04-10T10:00:00",
        "counted": 35,
        "last_sent": "2026-04-10",
        "held": False,
        "reserved_day": 10,
        "reserved_hour": 10,
    }
    for days, is_cold in ((30, False), (31, True)):
        warmup = Warmup(COLD, [document])
        now = datetime(2026, 4, 10, 12) + timedelta(days=days)
        assert warmup.is_cold("new", "google", now) is is_cold
    assert warmup.quota("new", "google", now).quota_day == 50
    again = Warmup({"new": date(2026, 5, 1)}, [document])  # the operator has begun anew
    assert again.is_cold("new", "google", datetime(2026, 5, 2))


def test_unknown_providers_share_one_quota():
    warmup = Warmup(COLD)
    now = BEGAN + timedelta(hours=1)
    assert sent_in_an_hour(warmup, now, 100, "a.example") == 13
    assert sent_in_an_hour(warmup, now, 100, "b.example") == 0
    (status,) = warmup.status(now)
    assert status["group"] == OTHERS and status["used_hour"] == status["quota_hour"] == 13
    assert status["wait_s"] == 3600.0


def test_what_was_set_aside_counts_as_used_in_the_next_incarnation_and_time_never_goes_back():
    warmup = Warmup(COLD)
    now = BEGAN + timedelta(hours=5)
    quota = warmup.quota("new", "google", now)
    warmup.touch(quota)
    proposals = warmup.proposals()
    warmup.stored(proposals)
    assert quota.room() == 7
    ((_, document),) = proposals
    late = Warmup(COLD, [document])
    assert late.quota("new", "google", now - timedelta(hours=2)).room() == 0
    assert late.quota("new", "google", now - timedelta(hours=2)).left() == 0
    assert late.quota("new", "google", now + timedelta(hours=1)).left() == 7
    warmup.touch(quota)
    warmup.not_stored(warmup.proposals())
    assert warmup.has_proposals


STEPS = st.lists(
    st.tuples(
        st.integers(0, 90), st.integers(0, 40), st.sampled_from(["use", "use", "die", "back"])
    ),
    max_size=80,
)


@given(STEPS)
def test_never_more_than_the_quota_whatever_is_lost(steps):
    warmup, now = Warmup(COLD), BEGAN
    stored: dict[str, dict] = {}
    hours: dict[datetime, int] = {}
    quotas: dict[date, int] = {}
    for minutes, wanted, what in steps:
        now += timedelta(minutes=minutes)
        if what == "die":
            warmup = Warmup(COLD, stored.values())
            continue
        quota = warmup.quota("new", "google", now)
        quotas.setdefault(now.date(), quota.quota_day)
        hour = now.replace(minute=0)
        if what == "back":
            back = min(wanted, quota.used_hour)
            quota.put_back(back, now)
            hours[hour] = hours.get(hour, 0) - back
            continue
        if quota.wants_reserve:
            warmup.touch(quota)
            proposals = warmup.proposals()
            stored |= dict(proposals)  # the journal has it; the answer may be lost
            if wanted % 5:
                warmup.stored(proposals)
        used = min(wanted, quota.room())
        quota.use(used)
        hours[hour] = hours.get(hour, 0) + used
    days: dict[date, int] = {}
    for hour, sent in hours.items():
        assert sent <= -(-quotas[hour.date()] // 8)
        days[hour.date()] = days.get(hour.date(), 0) + sent
    for day, sent in days.items():
        assert sent <= quotas[day]
