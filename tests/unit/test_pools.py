"""Weighted turns: shares follow the weights where all could take more, and nobody waits in vain."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.delivery.throttle.pools import ASKS_WITHIN_S, PATIENCE_S, YIELD_S, Rotation


class Source:
    """Asks like a Sender's lane: for two seconds of its pace, again when that is sent."""

    def __init__(self, name, pace_per_s=1e9, room=10**6, wanted=200, returns=0.0):
        self.name, self.pace_per_s, self.room = name, pace_per_s, room
        self.wanted, self.returns, self.sent = wanted, returns, 0
        self.next_s = self.ready_s = 0.0


def run(rotation, sources, seconds, random, shared_per_s=1e9, now_s=0.0):
    """Until ``seconds`` have passed; ``shared_per_s`` is what all sources together can do."""
    free_s = now_s
    end_s = now_s + seconds
    while True:
        source = min(sources, key=lambda s: (max(s.next_s, now_s), random.random()))
        now_s = max(now_s, source.next_s)
        if now_s >= end_s:
            return end_s
        turn = rotation.turn(source.name, source.wanted, source.room, now_s)
        if not turn.permits:
            source.next_s = now_s + turn.wait_s
            continue
        rotation.took(source.name, turn.permits, now_s)
        unused = int(turn.permits * source.returns)
        rotation.put_back(source.name, unused)
        used = turn.permits - unused
        source.sent += used
        free_s = max(free_s, now_s) + used / shared_per_s
        # It asks for the next lease while it sends this one.
        ready_s, source.ready_s = source.ready_s, max(source.ready_s, now_s)
        source.ready_s = max(source.ready_s + used / source.pace_per_s, free_s)
        source.next_s = max(now_s + random.uniform(0.001, 0.01), ready_s)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 10), min_size=2, max_size=5),
    st.sampled_from([50.0, 400.0, 1000.0, 3000.0]),
    st.integers(0, 2**32),
)
def test_with_a_backlog_and_equal_room_shares_follow_the_weights(weights, per_s, seed):
    names = [f"s{number}" for number in range(len(weights))]
    lease = max(20, min(200, int(2 * per_s / len(names))))
    sources = [Source(name, wanted=lease) for name in names]
    rotation = Rotation(dict(zip(names, weights, strict=True)))
    random = Random(seed)
    now_s = run(rotation, sources, 3.0, random, shared_per_s=per_s)  # it learns its pace
    for source in sources:
        source.sent = 0
    run(rotation, sources, 10_000 / per_s, random, shared_per_s=per_s, now_s=now_s)
    total = sum(source.sent for source in sources)
    assert total >= 8_500
    for source, weight in zip(sources, weights, strict=True):
        assert source.sent / total == pytest.approx(weight / sum(weights), abs=0.02)


@pytest.mark.parametrize("reason", ["silent", "limited", "returns"])
def test_a_member_that_cannot_take_more_is_no_obstacle(reason):
    rotation, random = Rotation({"a": 9, "b": 1}), Random(1)
    a, b = Source("a"), Source("b")
    now_s = run(rotation, [a, b], 5.0, random, shared_per_s=1000)
    assert b.sent < 1000
    if reason == "limited":
        a.room = 10
        a.pace_per_s = 10
    if reason == "returns":
        a.returns = 1.0
        a.pace_per_s = 1000
    sources = [b] if reason == "silent" else [a, b]
    b.sent = 0
    run(rotation, sources, 10.0, random, shared_per_s=1000, now_s=now_s)
    assert b.sent >= (10.0 - ASKS_WITHIN_S - 1) * 1000 * (0.9 if reason == "returns" else 0.95)


def test_who_comes_back_starts_level_and_claims_nothing_of_the_past():
    rotation, random = Rotation({"a": 1, "b": 1}), Random(2)
    a, b = Source("a"), Source("b")
    now_s = run(rotation, [b], 20.0, random, shared_per_s=1000)
    a.next_s, b_before = now_s, b.sent
    run(rotation, [a, b], 10.0, random, shared_per_s=1000, now_s=now_s)
    assert a.sent + b.sent - b_before >= 9_500
    assert a.sent == pytest.approx(b.sent - b_before, abs=200)


def test_a_member_that_is_slow_by_itself_costs_the_others_little():
    rotation, random = Rotation({"a": 1, "b": 1}), Random(3)
    a, b = Source("a", pace_per_s=10, wanted=20), Source("b", pace_per_s=1000)
    now_s = run(rotation, [b], 5.0, random)
    a.next_s = a.ready_s = now_s
    run(rotation, [a, b], 195.0, random, now_s=now_s)
    assert b.sent >= 200 * 1000 * (1 - 1.5 * PATIENCE_S / YIELD_S)
    assert a.sent >= 200 * 10 * 0.9


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_nobody_waits_longer_than_patience(seed, count):
    """Whatever the others do: who asks again and again gets something."""
    random = Random(seed)
    names = [f"s{number}" for number in range(count)]
    rotation = Rotation({name: random.randint(1, 5) for name in names})
    now_s, last_got = 0.0, 0.0
    for _ in range(400):
        now_s += random.choice([0.01, 0.1, 0.5])
        for name in names[1:]:
            if random.random() < 0.3:
                wanted = random.randint(1, 300)
                turn = rotation.turn(name, wanted, random.choice([0, 5, 10**6]), now_s)
                if turn.permits and random.random() < 0.8:
                    rotation.took(name, turn.permits, now_s)
                    rotation.put_back(name, random.choice([0, turn.permits]))
        turn = rotation.turn(names[0], 10, 100, now_s)
        assert 0 <= turn.permits <= 10 and (turn.permits or 0 < turn.wait_s <= 1)
        if turn.permits:
            rotation.took(names[0], turn.permits, now_s)
            last_got = now_s
        assert now_s - last_got <= count * PATIENCE_S + 1
    assert rotation.status(now_s)[names[0]]["asks"]
