"""The bucket never gives more than rate * t + burst, whatever is asked of it and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.gcra import NEVER_S, Bucket

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
        given, bucket = bucket.take(wanted, now)
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
        _, bucket = bucket.take(wanted, now)
        wait_s = bucket.wait_s(now, wanted)
        if wait_s == 0:
            assert bucket.available(now) >= min(max(1, wanted), burst)
        else:
            assert bucket.available(now) < min(max(1, wanted), burst)
            assert bucket.available(now + wait_s + 2e-9 + now * 1e-15) >= min(max(1, wanted), burst)


@given(RATES, st.integers(1, 500), st.integers(0, 500), st.integers(0, 500))
def test_what_is_put_back_is_there_again_and_never_more_than_full(rate, burst, wanted, unused):
    given, bucket = Bucket.full(rate, burst, 100.0).take(wanted, 100.0)
    bucket = bucket.put_back(min(unused, given))
    assert bucket.available(100.0) == burst - given + min(unused, given)
    assert bucket.put_back(10_000).available(100.0) == burst


@given(RATES, RATES, st.integers(1, 500), st.integers(1, 500), st.integers(0, 600))
def test_a_changed_rate_keeps_what_is_available(old_rate, rate, old_burst, burst, taken):
    _, bucket = Bucket.full(old_rate, old_burst, 5.0).take(taken, 5.0)
    changed = bucket.changed(rate, burst, 5.0)
    assert changed.available(5.0) == min(bucket.available(5.0), burst)
    assert changed.available(5.0 + 2 * burst / rate + 1) == burst


def test_a_steady_stream_gets_its_rate():
    bucket, given_in_all = Bucket.empty(10.0, 5, 0.0), 0
    for tick in range(1, 1001):
        given, bucket = bucket.take(100, tick * 0.1 + 1e-7)
        given_in_all += given
    assert given_in_all == 1000


def test_rate_zero_gives_nothing_and_bad_figures_are_refused():
    bucket = Bucket.full(0.0, 10, 0.0)
    assert bucket.take(5, 1e9) == (0, bucket) and bucket.wait_s(0.0) == NEVER_S
    assert bucket.put_back(5) is bucket
    assert bucket.changed(1.0, 10, 0.0).available(0.0) == 0
    for rate, burst in ((-1.0, 1), (1.0, 0), (2e6, 1), (float("nan"), 1)):
        with pytest.raises(ValueError, match="expected a rate"):
            Bucket.full(rate, burst, 0.0)
