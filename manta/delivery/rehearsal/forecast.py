"""Forecasts: what a rehearsal expects of a campaign, to keep and to hold against what came.

A rehearsal (``rehearsal``) goes through a campaign several times, each time with
another seed; a ``Forecast`` holds of every figure the median and where eight runs of ten lay. It is
kept with the campaign, so that after the end ``compare`` says where it was right. Times are seconds
from the start. Pure; the documents are JSON-ready and read back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import inf
from typing import Any, NamedTuple

from manta.clock import as_text, parse_instant
from manta.delivery.lanes import OTHERS

VERSION = 1
LOW, HIGH = 0.1, 0.9
COUNTS = ("accepted", "deferred", "failed", "expired", "bounced", "complained", "held")
TIMES = ("mostly_s", "done_s")
COMPARED = ("messages", "accepted", "deferred", "failed", "expired", "done_s")
SLACK = 0.05  # by so much a figure may lie outside of its interval and still count as met
SLACK_MESSAGES = 2.0
SLACK_S = 5.0


class Interval(NamedTuple):
    """Eight of ten runs lay from ``low`` to ``high``. None: without end (it was never reached)."""

    low: float | None
    median: float | None
    high: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Interval:
        """``None`` among the values is later than any time."""
        ordered = sorted(inf if value is None else float(value) for value in values)
        if not ordered:
            return cls(None, None, None)
        found = (_quantile(ordered, part) for part in (LOW, 0.5, HIGH))
        return cls(*(None if value == inf else round(value, 3) for value in found))

    def holds(self, value: float | None, slack: float) -> bool:
        """Whether a value lies within, or so little outside that nobody would mind."""
        if value is None:
            return self.high is None
        low = inf if self.low is None else self.low
        high = inf if self.high is None else self.high
        return low * (1 - SLACK) - slack <= value <= high * (1 + SLACK) + slack


class Counted(NamedTuple):
    """What one run came to at one provider. ``deferred``: messages that were put off at least once.
    ``bounced``: accepted, and came back later. ``held``: not settled when the run ended, since the
    campaign was paused. ``mostly_s``: 95 % are settled; ``done_s``: all are; None: never."""

    messages: int
    accepted: int
    deferred: int
    failed: int
    expired: int
    bounced: int
    complained: int
    held: int
    mostly_s: float | None
    done_s: float | None


class Warmed(NamedTuple):
    """What the warm-up of one source did to one provider's mail in one run. ``sent``: through this
    source; ``spilled``: of its share, left to other sources; ``held``: found the quota used up and
    nobody else to go by, so it waited for another hour or day."""

    source: str
    provider: str
    sent: int
    spilled: int
    held: int


class Foreseen(NamedTuple):
    """An action that began in one run; of several of a kind the first."""

    kind: str
    scope: str  # as people read it
    cause: str
    began_s: float
    times: int = 1


@dataclass(frozen=True)
class Ran:
    """One run. ``paused_s``: when an action paused the campaign, for good as far as it goes."""

    total: Counted
    providers: Mapping[str, Counted]
    warmups: tuple[Warmed, ...]
    actions: tuple[Foreseen, ...]
    paused_s: float | None = None


@dataclass(frozen=True)
class Expected:
    """Of one provider, or of all together: ``messages`` that go there, and an interval for each
    name of ``COUNTS`` and ``TIMES``."""

    provider: str
    messages: int
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class ExpectedWarmup:
    source: str
    provider: str
    sent: Interval
    spilled: Interval
    held: Interval


@dataclass(frozen=True)
class ExpectedAction:
    """``share``: of the runs in which it was taken; ``began_s``: when first, in those."""

    kind: str
    scope: str
    cause: str
    share: float
    times: Interval
    began_s: Interval


@dataclass(frozen=True)
class Forecast:
    """``paused_share``: of the runs in which the campaign was paused before its end.
    ``assumptions``: what was taken for granted, in words."""

    made_at: datetime
    starts_at: datetime
    expires_at: datetime
    source: str
    runs: int
    seed: int
    messages: int
    engaged: int
    total: Expected
    providers: tuple[Expected, ...]
    warmups: tuple[ExpectedWarmup, ...]
    actions: tuple[ExpectedAction, ...]
    paused_share: float
    assumptions: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        document = asdict(self)
        for name in ("made_at", "starts_at", "expires_at"):
            document[name] = as_text(document[name])
        document["total"] = _expected_document(self.total)
        document["providers"] = [_expected_document(each) for each in self.providers]
        for name, made in (("warmups", self.warmups), ("actions", self.actions)):
            document[name] = [
                {k: list(v) if isinstance(v, Interval) else v for k, v in vars(each).items()}
                for each in made
            ]
        document["assumptions"] = list(self.assumptions)
        return {"version": VERSION, **document}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Forecast:
        values = {name: value for name, value in document.items() if name != "version"}
        for name in ("made_at", "starts_at", "expires_at"):
            values[name] = parse_instant(values[name])
        values["total"] = _expected(values["total"])
        values["providers"] = tuple(_expected(each) for each in values["providers"])
        values["warmups"] = tuple(ExpectedWarmup(**_read(each)) for each in values["warmups"])
        values["actions"] = tuple(ExpectedAction(**_read(each)) for each in values["actions"])
        values["assumptions"] = tuple(values["assumptions"])
        return cls(**values)


def expected_of(
    provider: str, messages: int, runs: Sequence[Counted], names: Sequence[str] = COUNTS + TIMES
) -> Expected:
    intervals = {name: Interval.of(getattr(run, name) for run in runs) for name in names}
    return Expected(provider, messages, intervals)


def warmups_of(runs: Sequence[Ran]) -> tuple[ExpectedWarmup, ...]:
    found: dict[tuple[str, str], list[Warmed]] = {}
    for run in runs:
        for warmed in run.warmups:
            found.setdefault((warmed.source, warmed.provider), []).append(warmed)
    return tuple(
        ExpectedWarmup(
            *key,
            Interval.of(each.sent for each in of),
            Interval.of(each.spilled for each in of),
            Interval.of(each.held for each in of),
        )
        for key, of in sorted(found.items())
    )


def actions_of(runs: Sequence[Ran]) -> tuple[ExpectedAction, ...]:
    """The likeliest first; the words of the cause are those of the first run that has it."""
    found: dict[tuple[str, str, str], list[Foreseen]] = {}
    for run in runs:
        for action in run.actions:
            found.setdefault((action.kind, action.scope, _kind_of(action.cause)), []).append(action)
    made = [
        ExpectedAction(
            kind,
            scope,
            of[0].cause,
            round(len(of) / len(runs), 3),
            Interval.of(each.times for each in of),
            Interval.of(each.began_s for each in of),
        )
        for (kind, scope, _), of in found.items()
    ]
    return tuple(sorted(made, key=lambda each: (-each.share, each.began_s.median or 0.0)))


# -- after the run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What really became of a campaign at one provider. ``done_s``: from the start to the last
    message that was settled; None while some are pending."""

    provider: str
    messages: int
    accepted: int
    deferred: int
    failed: int
    expired: int
    done_s: float | None


class Compared(NamedTuple):
    """One figure: what was foreseen, what came, and whether it lay within."""

    name: str
    foreseen: Interval
    came: float | None
    is_met: bool


@dataclass(frozen=True)
class Row:
    provider: str
    figures: tuple[Compared, ...]

    def to_document(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "figures": {
                each.name: {
                    "foreseen": list(each.foreseen),
                    "came": each.came,
                    "is_met": each.is_met,
                }
                for each in self.figures
            },
        }


@dataclass(frozen=True)
class Comparison:
    total: Row
    providers: tuple[Row, ...]

    @property
    def met_share(self) -> float:
        """Of all figures, those that lay within."""
        figures = [each for row in (self.total, *self.providers) for each in row.figures]
        return sum(each.is_met for each in figures) / max(1, len(figures))

    def to_document(self) -> dict[str, Any]:
        return {
            "met_share": round(self.met_share, 3),
            "total": self.total.to_document(),
            "providers": [row.to_document() for row in self.providers],
        }


def compare(forecast: Forecast, outcomes: Iterable[Outcome]) -> Comparison:
    """The forecast against what came, in all and by provider; a provider that only one of the two
    knows has zeros in the other."""
    foreseen = {each.provider: each for each in forecast.providers}
    came: dict[str, Outcome] = {}
    for outcome in outcomes:  # small sites are foreseen together
        name = outcome.provider
        if name not in foreseen and OTHERS in foreseen:
            name = OTHERS
        known = came.get(name)
        came[name] = outcome if known is None else _together(name, [known, outcome])
    everybody = _together("", list(came.values()))
    names = [*foreseen, *(name for name in sorted(came) if name not in foreseen)]
    nothing = Outcome("", 0, 0, 0, 0, 0, 0.0)
    nobody = Expected("", 0, {name: Interval(0.0, 0.0, 0.0) for name in COUNTS + TIMES})
    return Comparison(
        _row("", forecast.total, everybody),
        tuple(_row(name, foreseen.get(name, nobody), came.get(name, nothing)) for name in names),
    )


def _together(name: str, outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        name,
        **{each: sum(getattr(o, each) for o in outcomes) for each in COMPARED[:-1]},
        done_s=_last([outcome.done_s for outcome in outcomes]),
    )


def _row(provider: str, expected: Expected, outcome: Outcome) -> Row:
    figures = []
    for name in COMPARED:
        if name == "messages":
            interval = Interval(*[float(expected.messages)] * 3)
        else:
            interval = expected.intervals[name]
        came = getattr(outcome, name)
        slack = SLACK_S if name in TIMES else SLACK_MESSAGES
        figures.append(Compared(name, interval, came, interval.holds(came, slack)))
    return Row(provider, tuple(figures))


# -- helpers ---------------------------------------------------------------------------------------


def _quantile(ordered: Sequence[float], part: float) -> float:
    """Between the two nearest, by distance; without end where the later one is."""
    place = part * (len(ordered) - 1)
    before = int(place)
    after = min(before + 1, len(ordered) - 1)
    if place == before or ordered[before] == ordered[after]:
        return ordered[before]
    return ordered[before] + (place - before) * (ordered[after] - ordered[before])


def _last(times: Sequence[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return max(known, default=0.0) if len(known) == len(times) else None


def _kind_of(cause: str) -> str:
    """What a cause is about, without its figures, so that runs can be told to agree."""
    return "".join(c for c in cause if not (c.isdigit() or c in ".,"))


def _expected_document(expected: Expected) -> dict[str, Any]:
    return {
        "provider": expected.provider,
        "messages": expected.messages,
        **{name: list(interval) for name, interval in expected.intervals.items()},
    }


def _expected(document: Mapping[str, Any]) -> Expected:
    return Expected(
        document["provider"],
        document["messages"],
        {name: Interval(*document[name]) for name in COUNTS + TIMES},
    )


def _read(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: Interval(*v) if isinstance(v, list) else v for k, v in document.items()}
