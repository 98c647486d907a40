"""Verdicts: how bad a unit is by what its window holds, and who is to blame in a lane.

A rate is at a level when all of this holds: its lower Wilson bound over the whole span is beyond
the level's limit; the rate of what was seen **since the mark** is beyond it too; and since the mark
there were the measure's minimum of messages and of bad ones. So little evidence does not act, old
evidence does not act twice, and a complaint that comes late counts against all the mail of the span
and not against the little that went out since. After an undo the part since the mark has to prove
the rate by its own lower bound.

More bad ones never lower a level: no column that is bad in one measure is the base of another.
Opens and clicks are in no measure at all, so nothing they do can outweigh anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from manta.delivery.reputation.norms import Measure, Norms
from manta.delivery.reputation.windows import Unit, Window, Windows, wilson_bounds


class Level(IntEnum):
    CLEAN = 0
    WARN = 1
    ACT = 2
    STOP = 3


@dataclass(frozen=True)
class Figures:
    """What one measure saw of one unit: bad ones and their base, whole and since the mark."""

    bad: int
    base: int
    bad_since: int
    base_since: int

    @classmethod
    def of(
        cls, window: Window, measure: Measure, now_s: float, without: Iterable[Window] = ()
    ) -> Figures:
        """``without``: windows whose part does not count, of campaigns that are stopped already."""
        bad, base = measure.bad_places, measure.base_places
        total, since = window.total(measure.span, now_s), window.since(measure.span, now_s)
        figures = [_sum(total, bad), _sum(total, base), _sum(since, bad), _sum(since, base)]
        for other in without:
            if measure.span not in other.spans:
                continue  # too short to be theirs: it is about the way out
            total, since = other.total(measure.span, now_s), other.since(measure.span, now_s)
            theirs = (_sum(total, bad), _sum(total, base), _sum(since, bad), _sum(since, base))
            figures = [max(0, mine - their) for mine, their in zip(figures, theirs, strict=True)]
        return cls(*figures)

    @property
    def rate(self) -> float:
        return min(1.0, self.bad / self.base) if self.base else 0.0

    @property
    def rate_since(self) -> float:
        return min(1.0, self.bad_since / self.base_since) if self.base_since else 0.0


def level_of(figures: Figures, measure: Measure, z: float, is_pardoned: bool = False) -> Level:
    """How bad that is."""
    if figures.bad_since < measure.events_min or figures.base_since < measure.messages_min:
        return Level.CLEAN
    proven, _ = wilson_bounds(figures.bad, figures.base, z)
    recent = figures.rate_since
    if is_pardoned:
        recent, _ = wilson_bounds(figures.bad_since, figures.base_since, z)
    return _reached(min(proven, recent), measure)


def proven_level(figures: Figures, measure: Measure, z: float) -> Level:
    """How bad it is over the whole span, whatever was done about it already."""
    if figures.bad < measure.events_min or figures.base < measure.messages_min:
        return Level.CLEAN
    return _reached(wilson_bounds(figures.bad, figures.base, z)[0], measure)


def is_clean(figures: Figures, measure: Measure) -> bool:
    """Whether what was seen since the mark gives no reason to stay slow."""
    return figures.bad_since < measure.events_min or figures.rate_since <= measure.warn


def _reached(rate: float, measure: Measure) -> Level:
    return Level((rate > measure.warn) + (rate > measure.act) + (rate > measure.stop))


def _sum(counts: Sequence[int], places: Sequence[int]) -> int:
    return sum(counts[place] for place in places)


@dataclass(frozen=True)
class Verdict:
    """The worst that a lane shows: of which unit, by which measure."""

    level: Level
    unit: Unit
    measure: Measure
    figures: Figures
    z: float

    @property
    def limit(self) -> float:
        measure = self.measure
        return (measure.warn, measure.warn, measure.act, measure.stop)[self.level]

    def shown(self) -> dict[str, Any]:
        """The figures of an action, JSON-ready."""
        lower, upper = wilson_bounds(self.figures.bad, self.figures.base, self.z)
        return {
            "measure": self.measure.words,
            "of": {
                "source": self.unit.source,
                "provider": self.unit.provider,
                "sending_domain": self.unit.sending_domain,
                "campaign_id": self.unit.campaign_id,
            },
            "bad": self.figures.bad,
            "messages": self.figures.base,
            "rate": round(self.figures.rate, 6),
            "lower_bound": round(lower, 6),
            "upper_bound": round(upper, 6),
            "limit": self.limit,
            "window": self.measure.span,
            "bad_since_last_act": self.figures.bad_since,
            "messages_since_last_act": self.figures.base_since,
        }

    def words(self) -> str:
        """``1.2 % complaints (12 of 1,000) at google, of campaign 7``"""
        return (
            f"{self.figures.rate * 100:.3g} % {self.measure.words} "
            f"({self.figures.bad:,} of {self.figures.base:,}) at {self.unit.provider}"
            f"{whose(self.unit)}; the limit is {self.limit * 100:g} %"
        )


def whose(unit: Unit) -> str:
    if unit.campaign_id:
        return f", of campaign {unit.campaign_id}"
    return f", of {unit.sending_domain}" if unit.sending_domain else f", from {unit.source}"


class Judge:
    """Looks at the units of a lane. ``stopped`` units are those that something was done about."""

    def __init__(self, windows: Windows, norms: Norms) -> None:
        self._windows = windows
        self._norms = norms

    def worst(self, lane: Unit, stopped: frozenset[Unit], now_s: float) -> Verdict | None:
        """The worst verdict of a lane; None where it is clean. Of equals, the wider unit."""
        found: Verdict | None = None
        for unit, window, without in self._judged(lane, stopped):
            for measure in self._norms.measures.values():
                if not (measure.blames or unit == lane) or not window.may_have(
                    measure.span, measure.bad_places, measure.events_min
                ):
                    continue
                figures = Figures.of(window, measure, now_s, without)
                level = level_of(figures, measure, self._norms.z, window.is_pardoned)
                if level > (found.level if found else Level.CLEAN):
                    found = Verdict(level, unit, measure, figures, self._norms.z)
        return found

    def is_clean(self, lane: Unit, stopped: frozenset[Unit], now_s: float) -> bool:
        return all(
            is_clean(Figures.of(window, measure, now_s, without), measure)
            for unit, window, without in self._judged(lane, stopped)
            for measure in self._norms.measures.values()
            if measure.blames or unit == lane
        )

    def culprit(
        self, lane: Unit, measure: Measure, stopped: frozenset[Unit], now_s: float
    ) -> Verdict | None:
        """The campaign, else the sending domain, that is itself beyond the limit and carries most
        of the lane's bad ones."""
        judged = list(self._judged(lane, stopped))
        whole = next(
            (Figures.of(w, measure, now_s, out) for u, w, out in judged if u == lane), None
        )
        if whole is None or not measure.blames:
            return None
        for wants_campaign in (True, False):
            for unit, window, without in judged:
                if unit == lane or bool(unit.campaign_id) != wants_campaign:
                    continue
                figures = Figures.of(window, measure, now_s, without)
                level = proven_level(figures, measure, self._norms.z)
                if level >= Level.ACT and figures.bad >= self._norms.pace.blame_part * whole.bad:
                    return Verdict(level, unit, measure, figures, self._norms.z)
        return None

    def is_bad_everywhere(self, campaign_id: int, measure: Measure, now_s: float) -> bool:
        """Whether a campaign is beyond the limit at the providers that get most of its mail: at
        two or more of them, or at the only one that gets enough to tell."""
        bad: dict[str, int] = {}
        told: dict[str, int] = {}
        total = 0
        for unit in self._windows.of_campaign(campaign_id):
            window = self._windows.get(unit)
            assert window is not None
            figures = Figures.of(window, measure, now_s)
            total += figures.base
            if figures.base >= measure.messages_min:
                told[unit.provider] = told.get(unit.provider, 0) + figures.base
                if proven_level(figures, measure, self._norms.z) >= Level.ACT:
                    bad[unit.provider] = bad.get(unit.provider, 0) + figures.base
        reaches = sum(bad.values()) >= self._norms.pace.reach_part * total
        return bool(bad) and reaches and (len(bad) > 1 or len(told) == 1)

    def _judged(
        self, lane: Unit, stopped: frozenset[Unit]
    ) -> Iterable[tuple[Unit, Window, list[Window]]]:
        """The units of a lane that are judged, each with the windows that do not count in it."""
        units = self._windows.of_lane(lane)
        out = [unit for unit in units if unit in stopped]
        for unit in units:
            window = self._windows.get(unit)
            if window is None or unit in stopped or Unit(*unit[:3]) in stopped:
                continue
            inner = [] if unit.campaign_id else _within(unit, out)
            yield unit, window, [w for u in inner if (w := self._windows.get(u)) is not None]


def _within(unit: Unit, stopped: Sequence[Unit]) -> list[Unit]:
    """The stopped units inside of a lane or a domain, none of them inside of another."""
    inside = [
        u for u in stopped if not unit.sending_domain or u.sending_domain == unit.sending_domain
    ]
    domains = {u for u in inside if not u.campaign_id}
    return [u for u in inside if u in domains or Unit(*u[:3]) not in domains]
