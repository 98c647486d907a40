"""Sliding windows over what became of messages, and how sure a rate is.

A ``Window`` counts for one unit (a lane, a sending domain or a campaign in it) over four spans at
once, each in buckets of its own grain, so that adding costs the same however long the span is.
Beside each total it keeps the part that was seen **since the mark**: the instant at which the law
last acted there, or somebody undid it. Old evidence lies before the mark and is never used twice.

Instants are seconds since 1970. What is older than a span is not counted in it; what is older than
the mark is not counted as seen since, so that windows rebuilt from records agree with live ones.
Bounds: a bucket exists only where something was seen, and ``Windows`` forgets the unit that has
been silent for longest when there are ``UNITS_MAX``.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from typing import NamedTuple, TypeVar

from manta.delivery.reputation.observations import BounceClass, Observed, Seen

UNITS_MAX = 10_000
PACE_SPAN_S = 60.0  # the pace of a lane is what it did within this time
_Key = TypeVar("_Key")
_EPOCH = datetime(1970, 1, 1)
_CLASSES = ("hard", "soft", "block", "message", "other")
COLUMNS = (
    "accepted",
    "deferred",
    "greylisted",  # deferred as every stranger is: says nothing about us
    *(f"failed_{name}" for name in _CLASSES),
    *(f"bounced_{name}" for name in _CLASSES),
    "complained",
    "opened",
    "clicked",
    "unsubscribed",
    "unreached",
)
PLACES = {name: place for place, name in enumerate(COLUMNS)}
# What is deferred for the mailbox's own sake.
_OF_MAILBOXES = ("QuotaIssues", "InactiveMailbox", "InvalidRecipient")
_GREYLISTED = "Greylisted"  # manta.delivery.returns.classification.Category
ATTEMPTED = ("accepted", "deferred", "greylisted", *(f"failed_{name}" for name in _CLASSES))
_ATTEMPT_PLACES = frozenset(PLACES[name] for name in ATTEMPTED)
_NOTHING = [0] * len(COLUMNS)


class Span(NamedTuple):
    length_s: int
    grain_s: int


SPANS = {
    "minutes": Span(300, 10),
    "hour": Span(3_600, 60),
    "day": Span(86_400, 1_800),
    "week": Span(604_800, 3_600),
}


LONGEST_S = max(span.length_s + span.grain_s for span in SPANS.values())

# What is kept of each kind of unit: lanes are judged by all spans, who sends only by the long ones.
DOMAIN_SPANS = ("hour", "day", "week")
CAMPAIGN_SPANS = ("day", "week")


class Unit(NamedTuple):
    """Whose window it is: of a lane alone, of a sending domain in it, or of a campaign in it."""

    source: str
    provider: str
    sending_domain: str = ""
    campaign_id: int = 0

    @property
    def lane(self) -> Unit:
        return Unit(self.source, self.provider)

    @property
    def spans(self) -> Iterable[str]:
        if self.campaign_id:
            return CAMPAIGN_SPANS
        return DOMAIN_SPANS if self.sending_domain else SPANS


def seconds(instant: datetime) -> float:
    return (instant - _EPOCH).total_seconds()


def column_of(observed: Observed) -> int | None:
    """The column that an observation counts in; None where it says nothing about reputation."""
    seen = observed.seen
    if observed.is_internal and seen is not Seen.UNREACHED:
        return None
    if seen in (Seen.FAILED, Seen.BOUNCED):
        bounce_class = observed.bounce_class
        if bounce_class is BounceClass.COMPLAINT:
            return PLACES["complained"]
        name = str(bounce_class) if bounce_class in _CLASSES else "other"
        return PLACES[f"{seen}_{name}"]
    if seen is Seen.DEFERRED and observed.category == _GREYLISTED:
        return PLACES["greylisted"]
    if seen is Seen.DEFERRED and observed.category in _OF_MAILBOXES:
        return None  # a full mailbox says nothing about us, and is all that a campaign's end has
    return PLACES[str(seen)]


class _Sliding:
    """One span: totals, and the part of them since the mark.

    Of a bucket it is known by its number whether it lies before or after the mark; of the one in
    which the mark lies, the part after it is kept apart.
    """

    __slots__ = ("_buckets", "_edge", "_mark", "_numbers", "_slid", "_span", "since", "total")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._numbers: list[int] = []  # of buckets, ascending
        self._buckets: dict[int, list[int]] = {}
        self._slid = 0  # the bucket that was the present one when it slid last
        self._mark = -1  # the bucket of the mark
        self._edge = [0] * len(COLUMNS)  # seen in that bucket, after the mark
        self.total = [0] * len(COLUMNS)
        self.since = [0] * len(COLUMNS)

    def add(self, at_s: float, now_s: float, column: int, count: int, is_since: bool) -> None:
        self.slide(now_s)
        number = int(at_s // self._span.grain_s)
        bucket = self._buckets.get(number)
        if bucket is None:
            if number <= self._oldest_out():
                return
            bucket = self._buckets[number] = [0] * len(COLUMNS)
            if not self._numbers or number > self._numbers[-1]:
                self._numbers.append(number)
            else:
                insort(self._numbers, number)
        bucket[column] += count
        self.total[column] += count
        if is_since:
            self.since[column] += count
            if number == self._mark:
                self._edge[column] += count

    def slide(self, now_s: float) -> None:
        """Forget the buckets that have left the span."""
        present = int(now_s // self._span.grain_s)
        if present <= self._slid:
            return
        self._slid = present
        oldest_out = self._oldest_out()
        gone = 0
        for number in self._numbers:
            if number > oldest_out:
                break
            counts = self._buckets.pop(number)
            since = self._since_of(number, counts)
            for column, count in enumerate(counts):
                self.total[column] -= count
                self.since[column] -= since[column]
            gone += 1
        if gone:
            del self._numbers[:gone]

    def mark(self, at_s: float) -> None:
        self._mark = int(at_s // self._span.grain_s)
        self._edge = [0] * len(COLUMNS)
        self.since = [0] * len(COLUMNS)
        for number in reversed(self._numbers):
            if number <= self._mark:
                break
            for column, count in enumerate(self._buckets[number]):
                self.since[column] += count

    def _since_of(self, number: int, counts: list[int]) -> list[int]:
        if number > self._mark:
            return counts
        return self._edge if number == self._mark else _NOTHING

    def recent(self, after_s: float) -> Iterator[tuple[float, list[int]]]:
        """When each bucket from an instant on begins, and its counts; the newest first."""
        first = after_s // self._span.grain_s
        for number in reversed(self._numbers):
            if number < first:
                return
            yield number * self._span.grain_s, self._buckets[number]

    def _oldest_out(self) -> int:
        return self._slid - self._span.length_s // self._span.grain_s


class Window:
    """Some or all spans of one unit; of a lane, all."""

    __slots__ = (
        "_first_at_s",
        "_spans",
        "ever",
        "is_pardoned",
        "last_at_s",
        "marked_at_s",
    )

    def __init__(self, spans: Iterable[str] = SPANS) -> None:
        self._spans = {name: _Sliding(SPANS[name]) for name in spans}
        self.ever = [0] * len(COLUMNS)  # since this process began; never goes down
        self.marked_at_s = -math.inf
        self.is_pardoned = False  # the mark is an undo: only what came since is judged
        self.last_at_s = -math.inf
        self._first_at_s = math.inf

    def add(self, at_s: float, now_s: float, column: int, count: int) -> None:
        is_since = at_s >= self.marked_at_s
        for sliding in self._spans.values():
            sliding.add(at_s, now_s, column, count, is_since)
        self.ever[column] += count
        self.last_at_s = max(self.last_at_s, at_s)
        if column in _ATTEMPT_PLACES:
            self._first_at_s = min(self._first_at_s, at_s)

    def mark(self, at_s: float, is_pardoned: bool = False) -> None:
        for sliding in self._spans.values():
            sliding.mark(at_s)
        self.marked_at_s = at_s
        self.is_pardoned = is_pardoned

    def total(self, span: str, now_s: float) -> list[int]:
        self._spans[span].slide(now_s)
        return self._spans[span].total

    def since(self, span: str, now_s: float) -> list[int]:
        self._spans[span].slide(now_s)
        return self._spans[span].since

    @property
    def spans(self) -> Iterable[str]:
        return self._spans

    def may_have(self, span: str, places: Iterable[int], least: int) -> bool:
        """Whether it can have so many in these columns since the mark: a cheap look that is never
        wrong when it says no."""
        since = self._spans[span].since
        return sum(since[place] for place in places) >= least

    def pace_per_s(self, now_s: float) -> float:
        """Attempts per second within the last minute, or since the first one where that is
        shorter; after a silence, of the busiest minute of the last hour; else 0."""
        sliding = self._spans["minutes"]
        sliding.slide(now_s)
        attempts, began_s = 0, now_s
        for begins_s, counts in sliding.recent(now_s - PACE_SPAN_S):
            attempts += sum(counts[place] for place in _ATTEMPT_PLACES)
            began_s = begins_s
        if attempts:
            return attempts / max(1.0, now_s - max(began_s, self._first_at_s))
        minutes = self._spans["hour"]
        minutes.slide(now_s)
        busiest = max(
            (sum(counts[place] for place in _ATTEMPT_PLACES) for _, counts in minutes.recent(0)),
            default=0,
        )
        return busiest / SPANS["hour"].grain_s

    def attempts_after(self, after_s: float, now_s: float) -> int:
        """Attempts after an instant, as exactly as the grain of the span that holds it says."""
        age_s = now_s - after_s
        name = next((n for n, span in SPANS.items() if age_s <= span.length_s), "week")
        sliding = self._spans[name]
        sliding.slide(now_s)
        return sum(
            counts[place] for _, counts in sliding.recent(after_s) for place in _ATTEMPT_PLACES
        )

    def shown(self, span: str, now_s: float) -> dict[str, int]:
        return {
            name: count
            for name, count in zip(COLUMNS, self.total(span, now_s), strict=True)
            if count
        }


@dataclass(frozen=True)
class Mark:
    at_s: float
    is_pardoned: bool = False


class Windows:
    """The windows of all units. ``marks`` are per lane and hold for every unit in it."""

    def __init__(self, units_max: int = UNITS_MAX) -> None:
        self._units_max = units_max
        self._windows: dict[Unit, Window] = {}  # the one that was silent longest is first
        self._of_lane: dict[Unit, set[Unit]] = defaultdict(set)
        self._of_campaign: dict[int, set[Unit]] = defaultdict(set)
        self._marks: dict[Unit, Mark] = {}

    def add(self, observed: Observed, now_s: float) -> Unit | None:
        """Count an observation; the lane that it concerns, or None where it says nothing."""
        column = column_of(observed)
        if column is None or observed.messages < 1 or not observed.source:
            return None
        lane = Unit(observed.source, observed.provider)
        at_s = min(seconds(observed.occurred_at), now_s)
        domain, campaign_id = observed.sending_domain, observed.campaign_id
        self._window(lane).add(at_s, now_s, column, observed.messages)
        if domain:
            self._window(Unit(*lane[:2], domain)).add(at_s, now_s, column, observed.messages)
        if campaign_id:
            unit = Unit(*lane[:2], domain, campaign_id)
            self._window(unit).add(at_s, now_s, column, observed.messages)
        return lane

    def mark(self, lane: Unit, mark: Mark) -> None:
        """The law has acted on the lane, or been undone: evidence begins anew."""
        self._marks[lane] = mark
        for unit in self._of_lane.get(lane, ()):
            self._windows[unit].mark(mark.at_s, mark.is_pardoned)

    def unmark(self, lane: Unit) -> None:
        """All evidence from before the mark has left every span."""
        self._marks.pop(lane, None)

    def get(self, unit: Unit) -> Window | None:
        return self._windows.get(unit)

    def of_lane(self, lane: Unit) -> list[Unit]:
        """The lane itself, and the domains and campaigns in it, in their order."""
        return sorted(self._of_lane.get(lane, ()))

    def of_campaign(self, campaign_id: int) -> list[Unit]:
        return sorted(self._of_campaign.get(campaign_id, ()))

    def lanes(self) -> list[Unit]:
        return sorted(self._of_lane)

    def units(self) -> Iterable[tuple[Unit, Window]]:
        return self._windows.items()

    def _window(self, unit: Unit) -> Window:
        window = self._windows.pop(unit, None)
        if window is None:
            window = Window(unit.spans)
            mark = self._marks.get(unit.lane)
            if mark is not None:
                window.mark(mark.at_s, mark.is_pardoned)
            self._of_lane[unit.lane].add(unit)
            if unit.campaign_id:
                self._of_campaign[unit.campaign_id].add(unit)
            if len(self._windows) >= self._units_max:
                self._forget(next(iter(self._windows)))
        self._windows[unit] = window  # now the one that spoke last
        return window

    def _forget(self, unit: Unit) -> None:
        del self._windows[unit]
        _drop(self._of_lane, unit.lane, unit)
        _drop(self._of_campaign, unit.campaign_id, unit)


def _drop(index: dict[_Key, set[Unit]], key: _Key, unit: Unit) -> None:
    units = index.get(key)
    if units is not None:
        units.discard(unit)
        if not units:
            del index[key]


def wilson_bounds(bad: int, base: int, z: float) -> tuple[float, float]:
    """Between which rates the true one lies, given ``bad`` of ``base`` (E. B. Wilson, JASA 22,
    1927). ``z``: of the confidence, see ``z_of``. (0, 1) where there is no base."""
    if base <= 0:
        return 0.0, 1.0
    bad = min(bad, base)  # what came late may be about messages that have left the window
    rate, z2 = bad / base, z * z
    centre = rate + z2 / (2 * base)
    half = z * math.sqrt(rate * (1 - rate) / base + z2 / (4 * base * base))
    scale = 1 + z2 / base
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def z_of(confidence: float) -> float:
    """The one-sided normal quantile: 0.99 gives 2.33."""
    return NormalDist().inv_cdf(confidence)
