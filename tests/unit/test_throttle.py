"""The Throttle's decisions: permits, connections, and when it may decide at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.lanes import Lane, Limits
from manta.delivery.throttle import (
    AUTHORITY_S,
    CONNECTION_VALID_S,
    PERMIT_VALID_S,
    TAKEOVER_WAIT_S,
    Authority,
    Budgets,
    fair_share,
)
from manta.errors import InvalidRequest

LANE = Lane("relay", "relay", "*", "*")
OTHER = Lane("relay", "relay", "slow.example", "slow.example")


def throttle(empty_at_s=None, lanes=None, **limits):
    chosen = {"rate_per_s": 100.0, "burst": 50, "connections_max": 10} | limits
    return Budgets({"relay": Limits(**chosen)}, lanes, empty_at_s=empty_at_s)


def test_permits_up_to_the_burst_then_at_the_rate():
    t = throttle()
    assert t.grant("s0", LANE, 200, 0.0) [:3] == (50, PERMIT_VALID_S, pytest.approx(0.01))
    nothing = t.grant("s1", LANE, 10, 0.0)
    assert nothing.permits == 0 and 0 < nothing.wait_s <= 0.02
    assert t.grant("s1", LANE, 10, 0.1).permits == 10
    assert t.grant("s1", LANE, 10, 100.0, unused=4).permits == 10


def test_unused_permits_come_back():
    t = throttle()
    t.grant("s0", LANE, 50, 0.0)
    assert t.grant("s0", LANE, 50, 0.0, unused=30).permits == 30


def test_an_incarnation_with_a_predecessor_starts_every_bucket_empty():
    t = throttle(empty_at_s=10.0, lanes={OTHER: Limits(1.0, 5, 1)})
    assert t.grant("s0", LANE, 10, 10.0).permits == 0
    assert t.grant("s0", LANE, 100, 10.2).permits == 20
    # A lane that is first asked for later has been filling up since.
    assert t.grant("s0", OTHER, 100, 13.0).permits == 3


def test_a_lane_has_limits_of_its_own_below_its_source():
    t = throttle(lanes={OTHER: Limits(1.0, 2, 1, 20)})
    assert t.grant("s0", OTHER, 10, 0.0).permits == 2
    assert t.grant("s0", LANE, 100, 0.0).permits == 48
    assert t.hold("s0", OTHER, 5, 0.0) [:3] == (1, CONNECTION_VALID_S, 20)
    assert t.hold("s0", LANE, 50, 0.0) [:3] == (9, CONNECTION_VALID_S, 1000)
    t.set_limits(OTHER, Limits(0.0, 2, 1), 50.0)
    assert t.grant("s0", OTHER, 10, 60.0).permits == 0
    t.set_limits(OTHER, None, 60.0)
    assert t.grant("s0", OTHER, 10, 60.0).permits == 10


def test_an_unknown_source_is_named():
    with pytest.raises(InvalidRequest, match="no egress source 'x'") as error:
        throttle().grant("s0", Lane("x", "x", "*", "*"), 1, 0.0)
    assert error.value.expected == "relay"


def test_connections_are_shared_and_a_dead_senders_come_back():
    t = throttle()
    assert t.hold("s0", LANE, 10, 0.0).held == 10
    assert t.hold("s1", LANE, 10, 1.0).held == 0  # s0 still has them
    assert t.hold("s0", LANE, 10, 2.0).held == 5  # but has to give up half
    assert t.hold("s1", LANE, 10, 3.0).held == 5
    assert t.hold("s1", LANE, 10, 20.0).held == 5
    assert t.hold("s1", LANE, 10, 2.0 + CONNECTION_VALID_S).held == 10  # s0 has not asked again
    t.forget("s1")
    assert t.hold("s0", LANE, 3, 33.0).held == 3
    assert t.hold("s0", LANE, 0, 34.0).held == 0
    assert t.status(34.0)["sources"]["relay"]["connections"] == 0


ASKS = st.lists(
    st.tuples(
        st.sampled_from(["s0", "s1", "s2"]),
        st.sampled_from([LANE, OTHER, Lane("relay", "relay", "third", "third")]),
        st.integers(0, 12),
        st.floats(0, 20),
    ),
    max_size=60,
)


@given(ASKS)
def test_never_more_connections_than_the_source_and_the_lane_allow(asks):
    t = throttle(lanes={OTHER: Limits(1.0, 5, 3)})
    now, held = 0.0, {}
    for sender, lane, wanted, pause in asks:
        now += pause
        held = {key: value for key, value in held.items() if value[1] > now}
        answer = t.hold(sender, lane, wanted, now)
        assert 0 <= answer.held <= wanted
        held[sender, lane] = (answer.held, now + answer.valid_s)
        assert sum(count for count, _ in held.values()) <= 10
        assert sum(count for (_, its), (count, _) in held.items() if its == OTHER) <= 3


@given(st.integers(0, 50), st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 20)))
def test_fair_shares_add_up_and_nobody_gets_more_than_wanted(total, wanted):
    shares = {name: fair_share(total, wanted, name) for name in wanted}
    assert sum(shares.values()) == min(total, sum(wanted.values()))
    assert all(shares[name] <= wanted[name] for name in wanted)
    unmet = [shares[name] for name in wanted if shares[name] < wanted[name]]
    assert not unmet or max(shares.values()) - min(unmet) <= 1


def test_authority_needs_a_confirmed_heartbeat():
    first = Authority(since_s=0.0, has_predecessor=False)
    assert not first.may_grant(0.0) and first.wants_heartbeat(0.0)
    confirmed = first.confirmed(1.0)
    assert confirmed.may_grant(1.0) and not confirmed.wants_heartbeat(2.9)
    assert confirmed.wants_heartbeat(3.0)
    assert confirmed.may_grant(1.0 + AUTHORITY_S - 0.01)
    assert not confirmed.may_grant(1.0 + AUTHORITY_S)
    assert confirmed.confirmed(0.5) == confirmed


@given(st.floats(0, 100), st.floats(0, 10), st.floats(0, 10), st.floats(0, 20))
def test_permits_of_two_incarnations_never_live_at_once(began, stored, granted, taken_over):
    """The old one's heartbeat began before the new one's epoch entry, else it was refused."""
    old = Authority(0.0, False).confirmed(began)
    new = Authority(since_s=began + stored + taken_over, has_predecessor=True)
    last_permit_ends = began + granted + PERMIT_VALID_S
    if old.may_grant(began + granted):
        first_grant = new.since_s + TAKEOVER_WAIT_S
        assert not new.confirmed(first_grant).may_grant(first_grant - 1e-3)
        assert new.confirmed(first_grant).may_grant(first_grant + 1e-9)
        assert first_grant >= last_permit_ends
