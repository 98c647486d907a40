"""The suppression policy by itself: nothing is ever weakened, and not every failure counts."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from manta.people.suppressions import (
    GRAVITY,
    POLICY,
    SoftRun,
    Stop,
    combined,
)

NOW = datetime(2026, 3, 1)
stops = st.builds(
    Stop,
    st.sampled_from([*GRAVITY, "imported"]),
    st.none() | st.integers(1, 100).map(lambda days: NOW + timedelta(days=days)),
)


def end(stop):
    return stop.expires_at or datetime.max


@given(stops, stops)
def test_nothing_is_weakened(standing, new):
    whole = combined(standing, new)
    assert end(whole) >= end(standing)
    assert end(whole) == max(end(standing), end(new))
    assert whole.reason in (standing.reason, new.reason)
    gravity = {**GRAVITY, "imported": GRAVITY["manual"]}
    assert gravity[whole.reason] >= gravity[standing.reason] or standing.reason == "soft_bounces"
    assert combined(whole, new) == whole


@given(stops)
def test_soft_bounces_end_by_themselves(new):
    soft = Stop("soft_bounces", NOW + timedelta(days=30))
    for whole in (combined(soft, new), combined(new, soft)):
        assert (
            whole.reason != "soft_bounces"
            or whole.expires_at is not None
            or new
            in (
                whole,
                Stop("soft_bounces"),
            )
        )


@given(stops)
def test_a_first_one_is_as_it_comes(new):
    assert combined(None, new) == new == combined(new, new)


@given(stops)
def test_a_complaint_and_a_hard_bounce_are_for_ever(standing):
    for stop in (POLICY.after_complaint(), POLICY.after_hard()):
        assert combined(standing, stop).expires_at is None
    assert combined(standing, POLICY.after_complaint()).reason == "complaint"


@given(st.integers(1, 20), st.integers(0, 400))
def test_soft_failures_need_number_and_time(messages, hours):
    stop = POLICY.after_soft(SoftRun(messages, timedelta(hours=hours)), NOW)
    assert (stop is not None) == (messages >= 5 and hours >= 72)
    if stop is not None:
        assert stop == ("soft_bounces", NOW + timedelta(days=30))
