"""When a deferred message and a failing lane are tried again."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.retry import CALM, BackoffPolicy, LaneBackoff, RetryPolicy

NOW = datetime(2026, 3, 1)
POLICY = RetryPolicy()


@given(st.integers(1, 99), st.integers(0, 1 << 30))
def test_waits_double_up_to_a_limit_and_are_jittered(attempts, seed):
    due = POLICY.due_at(attempts, NOW, None, NOW, Random(seed))
    nominal = min(1200.0 * 2 ** (attempts - 1), POLICY.wait_s_max)
    assert due is not None
    assert 0.75 * nominal <= (due - NOW).total_seconds() <= 1.25 * nominal + 1e-6


def test_no_jitter_is_exact():
    exact = RetryPolicy(jitter=0.0)
    waits = [exact.due_at(n, NOW, None, NOW, Random(0)) for n in (1, 2, 3, 4, 5, 60)]
    assert [(due - NOW).total_seconds() / 60 for due in waits] == [20, 40, 80, 160, 320, 360]


def test_age_expiry_and_attempts_end_it():
    def due(attempts=1, planned_at=NOW, expires_at=None, now=NOW):
        return RetryPolicy(jitter=0.0).due_at(attempts, planned_at, expires_at, now, Random(0))

    assert due() == NOW + timedelta(minutes=20)
    assert due(now=NOW + timedelta(days=5)) is None
    assert due(planned_at=NOW - timedelta(days=5) + timedelta(minutes=20)) is not None
    assert due(planned_at=NOW - timedelta(days=5) + timedelta(minutes=19)) is None
    assert due(expires_at=NOW + timedelta(minutes=19)) is None
    assert due(expires_at=NOW + timedelta(minutes=20)) is not None
    assert due(attempts=100) is None


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
