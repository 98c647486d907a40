"""When a deferred message and a failing lane are tried again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.retry import CALM, BackoffPolicy, LaneBackoff, RetryPolicy

POLICY = RetryPolicy()


@given(st.integers(1, 31), st.integers(0, 1 << 30))
def test_waits_double_up_to_a_limit_and_are_jittered(attempts, seed):
    wait_s = POLICY.wait_s(attempts, Random(seed))
    nominal = min(1200.0 * 2 ** (attempts - 1), POLICY.wait_s_max)
    assert wait_s is not None and 0.75 * nominal <= wait_s <= 1.25 * nominal


def test_without_jitter_it_is_exact_and_ends_after_four_to_five_days():
    exact = RetryPolicy(jitter=0.0)
    waits = [exact.wait_s(n, Random(0)) for n in range(1, 33)]
    assert [wait_s / 60 for wait_s in waits[:5]] == [20, 40, 80, 160, 240]
    assert waits[31] is None
    assert 4 * 86_400 < sum(waits[:31]) < 5 * 86_400


def test_a_greylister_gets_two_short_waits():
    waits = [POLICY.wait_s(n, Random(n), is_greylisted=True) for n in (1, 2, 3)]
    assert all(225 <= wait_s <= 375 for wait_s in waits[:2]) and waits[2] >= 3600
    assert POLICY.wait_s(32, Random(1), is_greylisted=True) is None
    hasty = RetryPolicy(first_wait_s=5.0, jitter=0.0)
    assert hasty.wait_s(1, Random(1), is_greylisted=True) == 5.0, "never longer than others"


def test_a_policy_is_checked():
    for bad in ({"first_wait_s": 0}, {"factor": 0.5}, {"jitter": 1.0}, {"wait_s_max": 1}):
        with pytest.raises(ValueError, match="expected"):
            RetryPolicy(**bad)


def test_a_failing_lane_waits_longer_each_time():
    policy = BackoffPolicy(jitter=0.0)
    lane, now, waits = CALM, 100.0, []
    for _ in range(12):
        lane = lane.failed(policy, now, Random(0))
        waits.append(lane.wait_s(now))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert lane.failures == 12 and CALM.wait_s(0.0) == 0.0


def test_failures_on_several_connections_at_once_count_once():
    lane = CALM.failed(BackoffPolicy(), 10.0, Random(1))
    assert lane.failed(BackoffPolicy(), 10.1, Random(2)) is lane
    assert LaneBackoff(3, 5.0).wait_s(7.0) == 0.0
