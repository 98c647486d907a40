"""The bucket never gives more than rate * t + burst, whatever is asked of it and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.throttle.gcra import NEVER_S, Bucket

RATES = st.one_of(
    st.sampled_from([1 / 60, 0.1, 1.0, 3.0, 7.3, 100.0, 1000.0, 1e6]), st.floats(0.001, 1e6)
)
STEPS = st.lists(st.tuples(st.floats(0, 20), st.integers(-2, 300)), max_size=60)
SLACK = 1e-6  # the times of the test are floats


@given(RATES, st.integers(1, 500), STEPS, st.booleans(), st.floats(0, 1e6))
def test_no_span_of_time_sees_more_than_its_share(rate, burst, steps, full, now):
    bucket = (Bucket.full if full else Bucket.empty)(rate, burst, now)
    grants = []
    began = now
    for pause, wanted in steps:
        now += pause
        given = bucket.take(wanted, now)
        assert 0 <= given <= max(0, wanted)
        grants.append((now, given))
    for first, (start, _) in enumerate(grants):
        total = 0
        for moment, given in grants[first:]:
            total += given
            assert total <= rate * (moment - start) + burst + SLACK * rate + SLACK
    if not full:
        total = 0
        for moment, given in grants:
            total += given
            assert total <= rate * (moment - began) + SLACK * rate + SLACK


@given(RATES, st.integers(1, 500), STEPS)
def test_after_the_wait_there_is_what_was_waited_for(rate, burst, steps):
    bucket, now = Bucket.full(rate, burst, 0.0), 0.0
    for pause, wanted in steps:
        now += pause
        bucket.take(wanted, now)
        wait_s = bucket.wait_s(now, wanted)
        if wait_s == 0:
            assert bucket.available(now) >= min(max(1, wanted), burst)
        else:
            assert bucket.available(now) < min(max(1, wanted), burst)
            assert bucket.available(now + wait_s + 2e-9 + now * 1e-15) >= min(max(1, wanted), burst)


@given(RATES, st.integers(1, 500), st.integers(0, 500), st.integers(0, 500))
def test_what_is_put_back_is_there_again_and_never_more_than_full(rate, burst, wanted, unused):
    bucket = Bucket.full(rate, burst, 100.0)
    given = bucket.take(wanted, 100.0)
    bucket.put_back(min(unused, given), bucket.takes)
    assert bucket.available(100.0) == burst - given + min(unused, given)
    bucket.put_back(10_000, bucket.takes)
    assert bucket.available(100.0) == burst


PUTS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 30), st.integers(0, 30), st.integers(0, 3)),
    max_size=40,
)


@given(st.sampled_from([0.5, 1.0, 10.0, 100.0]), st.integers(1, 40), PUTS)
def test_what_comes_back_late_never_makes_room_for_more_than_the_limit(rate, burst, steps):
    """``uses``: what was taken and did not come back, at the moment at which it was taken."""
    bucket, now = Bucket.full(rate, burst, 0.0), 0.0
    uses: list[tuple[float, int, int]] = []  # moment, permits, number of the take
    for pause, wanted, unused, back in steps:
        now += pause
        if back < len(uses):  # of an earlier take
            at, permits, take = uses[-1 - back]
            returned = min(unused, permits)
            bucket.put_back(returned, take)
            uses[-1 - back] = (at, permits - returned, take)
        uses.append((now, bucket.take(wanted, now), bucket.takes))
    for first, (start, _, _) in enumerate(uses):
        total = 0
        for moment, permits, _ in uses[first:]:
            total += permits
            assert total <= rate * (moment - start) + burst + SLACK * rate + SLACK


def test_what_comes_back_is_all_there_again_while_the_bucket_is_never_full():
    bucket = Bucket.full(100.0, 50, 0.0)
    bucket.take(50, 0.0)
    for tick in range(1, 200):  # many takes lie between
        now = tick * 0.1
        taken = bucket.take(8, now)
        number = bucket.takes
        assert taken == 8
        bucket.take(2, now)
        bucket.put_back(6, number)
        assert bucket.take(6, now) == 6


def test_forgotten_takes_and_those_before_a_change_do_not_come_back():
    bucket = Bucket.full(100.0, 1000, 0.0)
    bucket.take(500, 0.0)
    first = bucket.takes
    for tick in range(200):
        bucket.take(2, tick * 0.001)
    left = bucket.available(0.3)
    bucket.put_back(400, first)
    assert bucket.available(0.3) == left
    bucket.take(10, 0.3)
    bucket.change(50.0, 100, 0.3)
    left = bucket.available(0.3)
    bucket.put_back(10, bucket.takes - 1)
    assert bucket.available(0.3) == left


@given(RATES, RATES, st.integers(1, 500), st.integers(1, 500), st.integers(0, 600))
def test_a_changed_rate_keeps_what_is_available(old_rate, rate, old_burst, burst, taken):
    bucket = Bucket.full(old_rate, old_burst, 5.0)
    bucket.take(taken, 5.0)
    available = bucket.available(5.0)
    bucket.change(rate, burst, 5.0)
    assert bucket.available(5.0) == min(available, burst)
    assert bucket.available(5.0 + 2 * burst / rate + 1) == burst
    assert bucket.is_full(5.0 + 2 * burst / rate + 1)


def test_a_steady_stream_gets_its_rate():
    bucket, given_in_all = Bucket.empty(10.0, 5, 0.0), 0
    for tick in range(1, 1001):
        given_in_all += bucket.take(100, tick * 0.1 + 1e-7)
    assert given_in_all == 1000


def test_rate_zero_gives_nothing_and_bad_figures_are_refused():
    bucket = Bucket.full(0.0, 10, 0.0)
    assert bucket.take(5, 1e9) == 0 and bucket.wait_s(0.0) == NEVER_S
    bucket.put_back(5, bucket.takes)
    bucket.change(1.0, 10, 0.0)
    assert bucket.available(0.0) == 0
    for rate, burst in ((-1.0, 1), (1.0, 0), (2e6, 1), (float("nan"), 1)):
        with pytest.raises(ValueError, match="expected a rate"):
            Bucket.full(rate, burst, 0.0)
