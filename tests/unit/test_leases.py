"""Permits that come back unused, as long as they are somebody's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actors.leases import Leases
from manta.clock import ManualClock
from manta.delivery.lanes import Lane, Limits
from manta.delivery.throttle.budgets import Budgets

LANE = Lane("pool", "mx-a", "others", "others")


def leases(clock: ManualClock) -> Leases:
    sender: Any = SimpleNamespace(clock=clock)
    return Leases(sender, SimpleNamespace())  # type: ignore[arg-type]


def test_permits_come_back_while_they_live() -> None:
    clock = ManualClock()
    held = leases(clock)
    held.keep_unused(4, 3.0)
    held.keep_unused(5, 9.0)
    clock.advance(2.9)
    assert held.take_unused() == 9
    assert held.take_unused() == 0


def test_lapsed_permits_do_not_come_back() -> None:
    """A shard may answer late. The Throttle would take them for permits that it gave since, which
    are used: twice the burst would go out."""
    clock = ManualClock()
    throttle = Budgets({"mx-a": Limits(1.0, 10, 5)}, empty_at_s=None)
    held = leases(clock)
    first = throttle.grant("sender-00", LANE, 10, 0.0)
    assert first.permits == 10
    clock.advance(12.0)
    second = throttle.grant("sender-00", LANE, 10, 12.0)
    assert second.permits == 10
    held.keep_unused(first.permits, first.valid_s)  # its lease has got nothing, at last
    third = throttle.grant("sender-00", LANE, 10, 12.5, held.take_unused())
    assert third.permits == 0
