"""Pools: who of a pool's sources gets a site's mail.

Each source asks for itself, through the Senders; here it is decided whose turn it is. Shares follow
the weights: a member that is further ahead of its share than a round (``ROUND_S`` of the pool's
pace) has to wait for the others (start-time fair queueing, Goyal et al. 1996, with permits in the
place of packets).

Only a member that *could take more* is waited for. One that got less than it asked for, because a
limit, a quota or an action stopped it; that brought back half of what it had; or that has not asked
for ``ASKS_WITHIN_S``, is no obstacle: its share goes to the others, and when it comes back it
starts level with them. One that another has waited for through ``PATIENCE_S``, and that took less
than ``SLOW_SHARE`` of its part of the pool's pace meanwhile, is slow for reasons of its own, and is
not waited for in the next ``YIELD_S``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

ASKS_WITHIN_S = 5.0  # a busy lane asks about every two seconds, or more often
PATIENCE_S = 3.0
YIELD_S = 30.0
SLOW_SHARE = 1 / 8
ROUND_S = 0.25
ROUND_MAX = 500.0  # permits
PACE_MIN_PER_S = 10.0
PACE_FIRST_PER_S = 100.0
PACE_SPAN_S = 4.0
WAIT_S_MIN = 0.01
WAIT_S_MAX = 0.25


class Turn(NamedTuple):
    """How many permits a member may take; none: ask again in ``wait_s``, others come first."""

    permits: int
    wait_s: float = 0.0


class _Wait(NamedTuple):
    """A member has to wait since then; what the others had taken, and the pool's pace."""

    since_s: float
    taken: dict[str, int]
    pace_per_s: float


@dataclass(slots=True)
class _Member:
    weight: int
    level: float = 0.0  # permits taken per weight
    asked_s: float = float("-inf")
    is_limited: bool = False
    yields_until_s: float = float("-inf")
    waits: _Wait | None = None
    last_taken: int = 0
    returned: int = 0  # of that
    taken: int = 0  # in all


class Rotation:
    """The members of one pool at one site, at work. ``now_s`` is monotonic."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._members = {name: _Member(weight) for name, weight in weights.items()}
        self._recent = PACE_FIRST_PER_S * PACE_SPAN_S  # permits, those long ago counting less
        self._recent_s: float | None = None
        self.used_s = float("-inf")

    def turn(self, name: str, wanted: int, room: int, now_s: float) -> Turn:
        """What the member may take of ``wanted``; ``room`` is what its limits leave to it."""
        me = self._members[name]
        comes_back = not self._competes(me, now_s)
        self.used_s = me.asked_s = now_s
        me.is_limited = room < wanted or 2 * me.returned > me.last_taken
        wanted = min(wanted, room)
        rivals = self._rivals(name, now_s)
        if wanted <= 0 or not rivals:
            me.waits = None
            return Turn(max(0, wanted))
        floor = min(rival.level for rival in rivals.values())
        if comes_back:
            me.level = max(me.level, floor)
        weights = me.weight + sum(rival.weight for rival in rivals.values())
        pace_per_s = self._pace_per_s(now_s)
        chunk = max(1.0, min(ROUND_S * pace_per_s, ROUND_MAX) * me.weight / weights)
        allowed = (floor - me.level) * me.weight + chunk
        least = min(wanted, max(1.0, chunk / 2))  # no crumbs
        if allowed >= least:
            me.waits = None
            return Turn(min(wanted, int(allowed)))
        if me.waits is None:
            me.waits = _Wait(now_s, {n: r.taken for n, r in rivals.items()}, pace_per_s)
        elif now_s - me.waits.since_s >= PATIENCE_S:
            self._lose_patience(me, rivals, weights, now_s)
        missing = (least - allowed) * weights / me.weight
        return Turn(0, min(max(missing / pace_per_s / 2, WAIT_S_MIN), WAIT_S_MAX))

    def _rivals(self, name: str, now_s: float) -> dict[str, _Member]:
        return {
            other: member
            for other, member in self._members.items()
            if other != name and self._competes(member, now_s)
        }

    def _lose_patience(
        self, me: _Member, rivals: Mapping[str, _Member], weights: int, now_s: float
    ) -> None:
        """Those that could have gone on and hardly did are not waited for any more."""
        assert me.waits is not None
        for name, rival in rivals.items():
            due = me.waits.pace_per_s * (now_s - me.waits.since_s) * rival.weight / weights
            taken = rival.taken - me.waits.taken.get(name, 0)
            if rival.level < me.level and taken < SLOW_SHARE * due:
                rival.yields_until_s = now_s + YIELD_S
        me.waits = None

    def took(self, name: str, permits: int, now_s: float) -> None:
        me = self._members[name]
        me.level += permits / me.weight
        me.last_taken, me.returned = permits, 0
        me.taken += permits
        self._recent = self._pace_per_s(now_s) * PACE_SPAN_S + permits
        self._recent_s = now_s

    def put_back(self, name: str, unused: int) -> None:
        """What was taken and not used."""
        me = self._members[name]
        me.level -= unused / me.weight
        me.returned += unused
        me.taken -= unused

    def status(self, now_s: float) -> dict[str, dict[str, object]]:
        return {
            name: {
                "weight": member.weight,
                "taken": member.taken,
                "asks": now_s - member.asked_s <= ASKS_WITHIN_S,
                "competes": self._competes(member, now_s),
                "waits_for_others": member.waits is not None,
            }
            for name, member in self._members.items()
        }

    def _competes(self, member: _Member, now_s: float) -> bool:
        return (
            not member.is_limited
            and now_s - member.asked_s <= ASKS_WITHIN_S
            and now_s >= member.yields_until_s
        )

    def _pace_per_s(self, now_s: float) -> float:
        if self._recent_s is None:
            self._recent_s = now_s
        passed_s = max(0.0, now_s - self._recent_s)
        recent = self._recent * exp(-passed_s / PACE_SPAN_S)
        return max(recent / PACE_SPAN_S, PACE_MIN_PER_S)
