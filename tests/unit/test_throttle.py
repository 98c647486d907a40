"""The Throttle's decisions: permits, connections, and when it may decide at all."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation.actions import Action, ActionKind, Narrower, Scope
from manta.delivery.reputation.law import Law
from manta.delivery.shaping.shaping import builtin
from manta.delivery.throttle.authority import AUTHORITY_S, TAKEOVER_WAIT_S, Authority
from manta.delivery.throttle.budgets import WAIT_SUSPENDED_S_MAX, Budgets
from manta.delivery.throttle.connections import (
    CONNECTION_VALID_S,
    TENURE_S,
    WAITING_VALID_S,
    Claimant,
    fair_share,
)
from manta.delivery.throttle.gates import PACE, PERMIT_VALID_S
from manta.delivery.throttle.ways import Ways, limits_of
from manta.errors import InvalidRequest, Overloaded
from manta.settings import parse as parse_settings

NOW = datetime(2026, 3, 1, 12)
LANE = Lane("relay", "relay", "others", "others")
OTHER = Lane("relay", "relay", "slow.example", "slow.example")
GMAIL = Lane("mx", "mx", "google", "google")
HOSTED = Lane("mx", "mx", "shop.example", "google")
SMALL = Lane("mx", "mx", "small.example", "small.example")
SOURCES = {"relay": Limits(100.0, 50, 10), "mx": Limits(1000.0, 1000, 100)}
DIRECT = Ways(direct=frozenset({"mx"}))


def throttle(empty_at_s=None, ways=DIRECT, law=None, **limits):
    chosen = {"rate_per_s": 100.0 / PACE, "burst": 50, "connections_max": 10} | limits
    return Budgets(SOURCES | {"relay": Limits(**chosen)}, ways, empty_at_s=empty_at_s, law=law)


def act(kind, cause="rule", minutes=60, rate=None, connections=None, messages=None, **scope):
    act.ids += 1
    return Action(
        act.ids,
        kind,
        Scope(**scope),
        cause,
        NOW,
        NOW + timedelta(minutes=minutes),
        Narrower(rate, connections, messages),
    )


act.ids = 0


def law(*actions, version=1, shaping=""):
    return Law(version, shaping, tuple(actions))


def test_permits_up_to_the_burst_then_at_the_rate():
    t = throttle()
    assert t.grant("s0", LANE, 200, 0.0)[:3] == (50, PERMIT_VALID_S, pytest.approx(0.25))
    nothing = t.grant("s1", LANE, 10, 0.0)
    assert nothing.permits == 0 and nothing.wait_s == pytest.approx(0.1)  # for all ten
    assert t.grant("s1", LANE, 10, 0.1001).permits == 10
    assert t.grant("s1", LANE, 10, 100.0, unused=4).permits == 10


def test_unused_permits_come_back_and_only_those_that_it_had():
    t = throttle()
    t.grant("s0", LANE, 50, 0.0)
    assert t.grant("s0", LANE, 50, 0.0, unused=30).permits == 30
    assert t.grant("s1", LANE, 50, 0.0, unused=30).permits == 0
    # It cannot be told which of its grants these were: cautiously, the first.
    assert t.grant("s0", LANE, 50, 0.0, unused=1000).permits == 20
    assert t.grant("s0", LANE, 50, 20.0).permits == 50
    assert t.grant("s0", LANE, 50, 20.0 + 3 * PERMIT_VALID_S, unused=50).permits == 50
    assert t.grant("s0", LANE, 50, 20.0 + 3 * PERMIT_VALID_S).permits == 0


def test_an_incarnation_with_a_predecessor_starts_every_bucket_empty():
    t = throttle(empty_at_s=10.0)
    assert t.grant("s0", LANE, 10, 10.0).permits == 0
    assert t.grant("s0", LANE, 100, 10.2001).permits == 20
    # A lane that is first asked for later has been filling up since.
    assert t.grant("s0", GMAIL, 1000, 10.5).permits == int(0.5 * 100 * PACE)


def test_a_direct_lane_passes_the_gates_of_source_provider_and_site():
    shaping = """
[provider.google]
rate = "10/s"
total_rate = "30/s"
connections_max = 3
total_connections_max = 5
"""
    t = throttle(law=law(shaping=shaping))
    shaped = builtin().of("google", "google", "mx")
    assert t.grant("s0", GMAIL, 100, 0.0).permits == 10
    assert t.grant("s0", HOSTED, 100, 0.0).permits == 10
    third = Lane("mx", "mx", "bank.example", "google")
    assert t.grant("s0", third, 100, 0.0).permits == 10
    assert t.grant("s0", Lane("mx", "mx", "fourth.example", "google"), 100, 0.0).permits == 0
    assert t.grant("s0", SMALL, 1000, 0.0).permits == 100  # the default of the file
    held = t.hold("s0", GMAIL, 9, 0.0)
    assert held[:4] == (
        3,
        CONNECTION_VALID_S,
        shaped.limits_of_site.messages_per_connection,
        "required",
    )
    assert t.hold("s0", HOSTED, 9, 0.0).held == 2
    assert t.hold("s0", third, 9, 0.0).held == 0
    assert t.hold("s0", SMALL, 1, 0.0).tls == "opportunistic"
    by_source = t.status(0.0)["sources"]["mx"]
    assert by_source["connections"] == 6 and by_source["available"] == 1000 - 130


def test_a_relay_has_only_the_gate_of_its_source():
    t = throttle()
    lane = Lane("relay", "relay", "google", "google")
    assert t.grant("s0", lane, 1000, 0.0).permits == 50
    assert t.hold("s0", lane, 50, 0.0).held == 10


def test_a_new_shaping_text_holds_at_once_and_a_bad_one_not_at_all():
    t = throttle()
    assert t.grant("s0", SMALL, 10, 0.0).permits == 10
    assert t.obey(law(version=1, shaping='[default]\nrate = "2/s"'))
    assert t.grant("s0", SMALL, 10, 0.0).permits == 2
    assert t.obey(law(version=2, shaping='[default]\nrat = "2/s"'))
    assert "rat" in t.status(0.0)["law"]["trouble"]
    assert t.grant("s0", SMALL, 10, 1.1).permits == 2
    assert not t.obey(law(version=1, shaping=""))
    assert t.obey(law(version=3, shaping=""))
    assert t.status(0.0)["law"]["trouble"] == ""
    assert t.grant("s0", SMALL, 10, 1.1).permits == 0  # what was not there does not come at once
    assert t.grant("s0", SMALL, 1000, 2.1001).permits == int(100 * PACE)


# -- actions ---------------------------------------------------------------------------------------


def test_a_suspension_stops_what_it_covers_until_its_end():
    t = throttle(law=law(act(ActionKind.SUSPEND, "TSS04", minutes=60, provider="google")))
    got = t.grant("s0", GMAIL, 10, 0.0, now=NOW)
    assert got.permits == 0 and got.wait_s == WAIT_SUSPENDED_S_MAX
    held = t.hold("s0", GMAIL, 3, 0.0, now=NOW)
    assert (held.held, held.wait_s) == (0, WAIT_SUSPENDED_S_MAX)
    assert t.grant("s0", SMALL, 10, 0.0, now=NOW).permits == 10
    relayed = Lane("relay", "relay", "google", "google")
    assert t.grant("s0", relayed, 10, 0.0, now=NOW).permits == 0
    (shown,) = [row for row in t.status(0.0)["lanes"] if row["source"] == "relay"]
    assert shown["causes"] == ["TSS04"] and shown["rate_per_s"] == 0
    almost = t.grant("s0", GMAIL, 10, 3590.0, now=NOW + timedelta(seconds=3590))
    assert almost.permits == 0 and almost.wait_s == pytest.approx(10)
    over = NOW + timedelta(minutes=60)
    assert t.grant("s0", relayed, 1000, 3600.0, now=over).permits == 50
    assert t.grant("s0", GMAIL, 10, 3600.0, now=over).permits == 0  # it starts empty
    assert t.grant("s0", GMAIL, 1000, 3600.1001, now=over).permits == int(500 * 0.1 * PACE)


def test_a_limit_narrows_at_once_and_the_narrowest_of_all_holds():
    t = throttle()
    assert t.grant("s0", SMALL, 10, 0.0, now=NOW).permits == 10
    site = {"source": "mx", "provider": "small.example", "site": "small.example"}
    slower = act(ActionKind.LIMIT, "busy", rate=5.0, connections=2, **site)
    slowest = act(ActionKind.LIMIT, "busier", minutes=10, rate=1 / 60, messages=2, **site)
    t.obey(law(slower, slowest))
    assert t.grant("s0", SMALL, 10, 0.0, now=NOW).permits == 1  # of the burst that is left
    assert t.grant("s0", SMALL, 10, 50.0, now=NOW).permits == 0
    assert t.hold("s0", SMALL, 10, 50.0, now=NOW)[:4:2] == (2, 2)
    assert t.grant("s0", SMALL, 10, 62.0, now=NOW).permits == 1
    later = NOW + timedelta(minutes=10)
    assert t.grant("s0", SMALL, 10, 600.0, now=later).permits == 1  # no burst when it is lifted
    assert t.grant("s0", SMALL, 10, 602.0, now=later).permits == 5
    t.obey(law(slower.undone("somebody", later), version=2))
    assert t.grant("s0", SMALL, 1000, 602.0, now=later).permits == 0
    assert t.grant("s0", SMALL, 1000, 702.0, now=later).permits == 100


def test_actions_about_campaigns_leave_the_lane_alone():
    suspend = act(ActionKind.SUSPEND, provider="google", campaign_id=7)
    of_domain = act(ActionKind.SUSPEND, sending_domain="shop.example")
    bounce = act(ActionKind.BOUNCE, "bad content", campaign_id=9, provider="google")
    t = throttle(law=law(suspend, bounce, of_domain))
    got = t.grant("s0", GMAIL, 10, 0.0, now=NOW)
    assert got.permits == 10 and got.without == (7,) and got.bounces == ((9, "bad content"),)
    assert t.grant("s0", SMALL, 10, 0.0, now=NOW)[3:] == ((), False, ())


def test_a_pause_is_the_directors_and_no_campaign_is_held_that_somebody_resumed():
    t = throttle(law=law(act(ActionKind.PAUSE, campaign_id=7)))
    assert t.grant("s0", GMAIL, 10, 0.0, now=NOW).without == ()


def test_what_bounces_as_a_whole_costs_no_permits():
    t = throttle(law=law(act(ActionKind.BOUNCE, "blocked for good", provider="google")))
    before = t.grant("s0", SMALL, 1, 0.0, now=NOW).permits
    for _ in range(3):
        got = t.grant("s0", GMAIL, 5000, 0.0, unused=5000, now=NOW)
        assert got.permits == 5000 and got.bounces == ((0, "blocked for good"),)
    t.obey(law(version=2))
    assert t.grant("s0", GMAIL, 5000, 0.0, unused=5000, now=NOW).permits == 100
    assert t.status(0.0)["sources"]["mx"]["available"] == 1000 - 100 - before


def test_what_bounces_as_a_whole_needs_no_connection():
    t = throttle(law=law(act(ActionKind.BOUNCE, "blocked for good", provider="google")))
    assert t.hold("s0", GMAIL, 3, 0.0, now=NOW)[::5] == (0, True)
    assert t.hold("s0", SMALL, 1, 0.0, now=NOW)[::5] == (1, False)


def test_a_suspended_warm_member_takes_nothing_over_from_a_cold_one():
    ways = Ways(pools={"pool": {"a": 1, "b": 1}}, cold_since={"a": NOW.date()})
    limits = Limits(100.0, 100, 10)
    cold = Lane("pool", "a", "google", "google")
    suspend = act(ActionKind.SUSPEND, "blocked", source="b", provider="google")
    of_campaign = act(ActionKind.SUSPEND, "complaints", source="b", campaign_id=7)
    for acting, warming in ((), True), ((of_campaign,), True), ((suspend,), False):
        t = Budgets({"a": limits, "b": limits}, ways, empty_at_s=None, law=law(*acting))
        assert t.grant("s0", cold, 10, 0.0, now=NOW).warming is warming


def test_a_campaign_with_a_limit_has_its_turns():
    t = throttle(law=law(act(ActionKind.LIMIT, rate=20.0, campaign_id=7)))
    with_it = in_all = 0
    for tick in range(1000):
        got = t.grant("s0", SMALL, 50, tick * 0.1, now=NOW)
        in_all += got.permits
        if 7 not in got.without:
            with_it += got.permits
    assert 0.8 * 20 * 100 <= with_it <= 20 * 100
    assert in_all >= 0.93 * 100 * 100


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3),
            st.integers(1, 400),
            st.one_of(st.none(), st.sampled_from([0.0, 1 / 60, 1.0, 20.0])),
        ),
        max_size=40,
    )
)
def test_narrowing_and_lifting_never_give_more_than_the_usual_limit(steps):
    t = throttle()
    now_s, grants = 0.0, []
    for version, (pause, wanted, rate) in enumerate(steps):
        now_s += pause
        site = {"provider": "small.example", "site": "small.example"}
        actions = () if rate is None else (act(ActionKind.LIMIT, rate=rate, **site),)
        t.obey(law(*actions, version=version))
        got = t.grant("s0", SMALL, wanted, now_s, now=NOW).permits
        if rate == 0:
            assert got == 0
        grants.append((now_s, got))
    for first, (start, _) in enumerate(grants):
        total = 0
        for moment, permits in grants[first:]:
            total += permits
            assert total <= 100 * PACE * (moment - start) + 100 + 1e-3


@pytest.mark.parametrize(
    ("scope", "limits", "held"),
    [
        ({"provider": "google"}, {"rate": 1.0}, ["google"]),
        ({"provider": "google", "site": "google"}, {"rate": 1.0}, ["google"]),
        ({"source": "mx"}, {"rate": 1.0}, ["google", "others"]),
        ({"site": "small.example"}, {"rate": 1.0}, []),  # one of the many
        ({"provider": "google"}, {"messages": 2}, []),  # that is no matter of reputation
        ({"provider": "google", "campaign_id": 7}, {"rate": 1.0}, []),
    ],
)
def test_a_slowed_lane_does_not_go_on_to_the_next_day_of_its_warm_up(scope, limits, held):
    ways = Ways(direct=frozenset({"mx"}), cold_since={"mx": NOW.date()})
    t = Budgets(SOURCES, ways, empty_at_s=None, law=law(act(ActionKind.LIMIT, **limits, **scope)))
    for lane in (GMAIL, SMALL):
        t.grant("s0", lane, 10, 0.0, now=NOW)
    assert [q["group"] for q in t.status(0.0)["warmup"] if q["is_held"]] == held


# -- pools -----------------------------------------------------------------------------------------


def pool(**weights):
    sources = {name: Limits(100_000.0, 100_000, 10) for name in weights}
    return Budgets(sources, Ways(pools={"pool": weights}), empty_at_s=None)


def shares(t, names, seconds=30.0, begin_s=0.0):
    """All ask each 100 ms for 50."""
    taken = dict.fromkeys(names, 0)
    for tick in range(int(seconds * 10)):
        now_s = begin_s + tick * 0.1
        for name in names:
            lane = Lane("pool", name, "google", "google")
            taken[name] += t.grant("s0", lane, 50, now_s, now=NOW).permits
    return {name: count / sum(taken.values()) for name, count in taken.items()}


def test_the_sources_of_a_pool_share_by_weight_and_a_suspended_one_is_no_obstacle():
    t = pool(a=3, b=1)
    assert shares(t, "ab") == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.02)
    t.obey(law(act(ActionKind.SUSPEND, source="a")))
    assert shares(t, "ab", begin_s=30.0) == {"a": 0.0, "b": 1.0}
    (shown,) = t.status(60.0)["pools"]
    assert shown["members"]["a"]["weight"] == 3 and not shown["members"]["a"]["competes"]
    t.obey(law(version=2))
    assert shares(t, "ab", begin_s=60.0) == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.02)


def test_lanes_that_are_asked_for_no_more_are_forgotten_but_not_their_debt(monkeypatch):
    monkeypatch.setattr("manta.delivery.throttle.gates.SWEEP_GATES_MIN", 50)
    text = '[default]\nrate = "6/min"'
    t = Budgets({"mx": Limits(1e5, 100_000, 100)}, DIRECT, empty_at_s=None, law=law(shaping=text))
    indebted = Lane("mx", "mx", "indebted.example", "indebted.example")
    for number in range(1000):
        now_s = float(number)
        lane = Lane("mx", "mx", f"{number}.example", f"{number}.example")
        assert t.grant("s0", lane, 5, now_s).permits == 1
        due = number % 100 == 0
        if due:
            assert t.grant("s0", indebted, 5, now_s).permits == 1
        elif number % 100 == 9:  # its bucket is not full yet
            assert t.grant("s0", indebted, 5, now_s).permits == 0
    assert t.status(1000.0)["gates"] < 400


def test_there_is_a_most_of_lanes_at_work(monkeypatch):
    monkeypatch.setattr("manta.delivery.throttle.gates.GATES_MAX", 3)
    t = throttle()
    t.grant("s0", SMALL, 5, 0.0)
    t.grant("s0", GMAIL, 5, 0.0)
    with pytest.raises(Overloaded, match="too many lanes"):
        t.grant("s0", HOSTED, 5, 0.0)
    assert t.grant("s0", SMALL, 5, 0.0).permits == 5


# -- connections -----------------------------------------------------------------------------------


def test_an_unknown_source_is_named():
    with pytest.raises(InvalidRequest, match="no egress source 'x'") as error:
        throttle().grant("s0", Lane("x", "x", "*", "*"), 1, 0.0)
    assert error.value.expected == "mx, relay"


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


def test_where_there_are_more_lanes_than_connections_they_take_turns():
    t = throttle(connections_max=4)
    lanes = [Lane("relay", "relay", f"{n}.example", f"{n}.example") for n in range(12)]
    had = dict.fromkeys(lanes, 0)
    now_s, held = 0.0, {}
    while now_s < 6 * TENURE_S:
        now_s += 1.0
        for lane in lanes:
            held[lane] = t.hold("s0", lane, 3, now_s).held
            had[lane] += held[lane]
        assert sum(held.values()) <= 4
    fair = 6 * TENURE_S * 4 / 12
    assert all(0.7 * fair <= count <= 1.4 * fair for count in had.values())


def test_what_waits_at_one_gate_blocks_no_other():
    text = "[provider.google]\ntotal_connections_max = 1\nconnections_max = 1"
    t = Budgets({"mx": Limits(1000.0, 1000, 2)}, DIRECT, empty_at_s=None, law=law(shaping=text))
    lanes = [Lane("mx", "mx", f"{n}.example", "google") for n in range(5)]
    for now_s in range(10):
        assert sum(t.hold("s0", lane, 1, now_s).held for lane in lanes) == 1
    assert t.hold("s0", SMALL, 1, 10.0).held == 1


def test_who_waits_and_asks_no_more_loses_its_turn():
    t = throttle(connections_max=1)
    first, second, third = (Lane("relay", "relay", f"{n}.example", "x") for n in range(3))
    assert t.hold("s0", first, 1, 0.0).held == 1
    assert t.hold("s0", second, 1, 0.0).held == 0
    assert t.hold("s0", third, 1, 0.0).held == 0
    assert t.hold("s0", first, 0, 1.0).held == 0
    assert t.hold("s0", third, 1, 1.0).held == 0  # the second was first
    assert t.hold("s0", third, 1, 1.0 + WAITING_VALID_S).held == 1


ASKS = st.lists(
    st.tuples(
        st.sampled_from(["s0", "s1", "s2"]),
        st.sampled_from([GMAIL, HOSTED, SMALL, Lane("mx", "mx", "third", "third")]),
        st.integers(0, 12),
        st.floats(0, 20),
    ),
    max_size=60,
)


@given(ASKS, st.sampled_from([2, 10]))
def test_never_more_connections_than_source_provider_and_site_allow(asks, most):
    text = "[provider.google]\nconnections_max = 3\ntotal_connections_max = 4"
    t = Budgets({"mx": Limits(100.0, 50, most)}, DIRECT, empty_at_s=None, law=law(shaping=text))
    now, held = 0.0, {}
    for sender, lane, wanted, pause in asks:
        now += pause
        held = {key: value for key, value in held.items() if value[1] > now}
        answer = t.hold(sender, lane, wanted, now)
        assert 0 <= answer.held <= wanted
        held[sender, lane] = (answer.held, now + answer.valid_s)
        by_lane = {}
        for (_, its), (count, _) in held.items():
            by_lane[its] = by_lane.get(its, 0) + count
        assert sum(by_lane.values()) <= most
        assert by_lane.get(GMAIL, 0) <= 3
        assert by_lane.get(GMAIL, 0) + by_lane.get(HOSTED, 0) <= 4


@given(st.integers(0, 50), st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 20)))
def test_fair_shares_add_up_and_nobody_gets_more_than_wanted(total, wanted):
    wanted = {Claimant(name, LANE): count for name, count in wanted.items()}
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


def test_ways_are_made_of_settings_and_a_wrong_day_is_named():
    text = {
        "egress": [
            {"name": "mx", "kind": "direct", "cold_since": "2026-02-01"},
            {"name": "relay", "rate_per_s": 5.0, "burst": 7},
        ],
        "pools": [
            {"name": "both", "members": [{"source": "mx", "weight": 2}, {"source": "relay"}]}
        ],
    }
    settings = parse_settings(text)
    ways = Ways.of(settings)
    assert ways.direct == {"mx"} and ways.cold_since == {"mx": date(2026, 2, 1)}
    assert ways.pools == {
        "both": {"mx": 2, "relay": 1},
        "mx": {"mx": 1},
        "relay": {"relay": 1},
    }
    assert limits_of(settings)["relay"] == Limits(5.0, 7, 10, 1000)
    text["egress"][0]["cold_since"] = "soon"
    with pytest.raises(InvalidRequest, match="mx: cold_since is 'soon'"):
        Ways.of(parse_settings(text))
