"""The course of a lane: slowed by bad windows, brought back by clean ones, stopped when that fails.

    free ──bad──▶ slowed ──still bad──▶ quarantined ──time──▶ probing ──clean──▶ free
            ▲        │ clean                  ▲                  │ bad
            └────────┘                        └──────────────────┘

Additive increase, multiplicative decrease (Chiu and Jain, 1989) of the lane's rate. The first
decrease starts from the pace that the lane really had, so that it slows whatever its limit was; an
increase gives back a part of that pace and ends the course where the lane is as fast as it was.
Pure: ``tightened`` and ``eased`` say where a course goes next and touch nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from manta.delivery.reputation.norms import Pace
from manta.delivery.reputation.verdicts import Level
from manta.delivery.reputation.windows import Mark, Unit
from manta.errors import Conflict

UNMARKED = Mark(0.0)


class Phase(StrEnum):
    FREE = "free"
    SLOWED = "slowed"
    QUARANTINED = "quarantined"
    PROBING = "probing"


MOVES: Mapping[Phase, frozenset[Phase]] = {
    Phase.FREE: frozenset({Phase.SLOWED, Phase.QUARANTINED}),
    Phase.SLOWED: frozenset({Phase.SLOWED, Phase.FREE, Phase.QUARANTINED}),
    Phase.QUARANTINED: frozenset({Phase.PROBING, Phase.FREE}),
    Phase.PROBING: frozenset({Phase.PROBING, Phase.FREE, Phase.QUARANTINED}),
}


@dataclass(frozen=True)
class Course:
    """``action_id``: the action that holds the lane now (0: none). ``mark``: from where on evidence
    counts. Instants are seconds since 1970."""

    lane: Unit
    phase: Phase = Phase.FREE
    action_id: int = 0
    first_pace_per_s: float = 0.0
    rate_per_s: float = 0.0
    decreases: int = 0
    stepped_at_s: float = 0.0
    mark: Mark = UNMARKED

    def to(self, phase: Phase, **changes: Any) -> Course:
        """The course in another phase. Raises ``Conflict`` where ``MOVES`` has no such move."""
        if phase not in MOVES[self.phase]:
            raise Conflict(f"a lane cannot go from {self.phase} to {phase}", path="phase")
        return replace(self, phase=phase, **changes)

    def to_document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.lane.source,
            "provider": self.lane.provider,
            "phase": str(self.phase),
            "action_id": self.action_id,
            "first_pace_per_s": self.first_pace_per_s,
            "rate_per_s": self.rate_per_s,
            "decreases": self.decreases,
            "stepped_at_s": self.stepped_at_s,
            "marked_at_s": self.mark.at_s,
            "is_pardoned": self.mark.is_pardoned,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Course:
        return cls(
            Unit(document["source"], document["provider"]),
            Phase(document["phase"]),
            document["action_id"],
            document["first_pace_per_s"],
            document["rate_per_s"],
            document["decreases"],
            document["stepped_at_s"],
            Mark(document["marked_at_s"], document["is_pardoned"]),
        )


@dataclass(frozen=True)
class Sight:
    """What a decision sees of a lane besides the verdict."""

    now_s: float
    pace_per_s: float  # that it has now
    ceiling_per_s: float  # that its own limits allow
    attempts: int = 0  # since the last step


def tightened(course: Course, level: Level, sight: Sight, pace: Pace) -> Course | None:
    """Where a bad window leads (``level`` is not CLEAN); None: nowhere, for now."""
    if course.phase is Phase.QUARANTINED:
        return None
    first = course.first_pace_per_s or sight.pace_per_s or sight.ceiling_per_s
    fresh = {"first_pace_per_s": first, "stepped_at_s": sight.now_s, "mark": Mark(sight.now_s)}
    settled = course.phase is Phase.FREE or sight.now_s - course.stepped_at_s >= pace.settle_s
    if level is Level.STOP:
        return course.to(Phase.QUARANTINED, **fresh)
    if not settled:
        return None
    if level is Level.ACT and (
        course.phase is Phase.PROBING or course.decreases >= pace.decreases_max
    ):
        return course.to(Phase.QUARANTINED, **fresh)
    if course.phase is Phase.PROBING:
        return None  # it goes no faster; only what is proven stops it again
    rate = _slower(course.rate_per_s or first, first, level, pace)
    rate = max(pace.rate_min_per_s, min(rate, sight.ceiling_per_s))
    decreases = course.decreases + 1
    return course.to(Phase.SLOWED, rate_per_s=rate, decreases=decreases, **fresh)


def _slower(rate: float, first: float, level: Level, pace: Pace) -> float:
    if level is Level.ACT:
        return rate * pace.act_factor
    return min(rate, max(rate * pace.warn_factor, first * pace.warn_floor))


def eased(course: Course, sight: Sight, pace: Pace) -> Course | None:
    """Where a clean step leads; None: it has not been long enough, or nothing holds the lane."""
    if course.phase is Phase.SLOWED:
        step_s, attempts = pace.step_s, pace.step_messages
        rate = course.rate_per_s + course.first_pace_per_s * pace.step_part
    elif course.phase is Phase.PROBING:
        step_s, attempts = pace.probe_s, pace.probe_messages
        rate = course.rate_per_s * 2
    else:
        return None
    if sight.now_s - course.stepped_at_s < step_s or sight.attempts < attempts:
        return None
    if rate >= min(course.first_pace_per_s, sight.ceiling_per_s):
        return freed(course)
    return course.to(course.phase, rate_per_s=rate, stepped_at_s=sight.now_s)


def probing(course: Course, now_s: float, pace: Pace) -> Course:
    """The quarantine is over: a little may go."""
    rate = max(pace.rate_min_per_s, course.first_pace_per_s * pace.probe_part)
    return course.to(
        Phase.PROBING, rate_per_s=rate, stepped_at_s=now_s, mark=Mark(now_s), action_id=0
    )


def freed(course: Course) -> Course:
    """Nothing holds the lane any more; the mark stays, so old evidence is not used again."""
    return Course(course.lane, mark=course.mark)
