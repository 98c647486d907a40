"""The published limits and the constants of the law, as values read from ``reputation.toml``.

The file is data with its sources beside it; here is only what a value may be. An operator's text
replaces single values of the shipped one; whatever is unknown, missing or out of range is refused
with its name, so that a slip of the pen never leaves a sender without protection.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

from manta.delivery.reputation.windows import CAMPAIGN_SPANS, PLACES, SPANS, z_of
from manta.errors import InvalidRequest

TEXT_BYTES_MAX = 65_536


@dataclass(frozen=True)
class Measure:
    """One rate: ``bad`` columns over ``of`` columns within ``span``. ``blames``: it says something
    about a campaign or a sending domain, and not only about the way out."""

    words: str
    bad: tuple[str, ...]
    of: tuple[str, ...]
    span: str
    warn: float
    act: float
    stop: float
    messages_min: int
    events_min: int
    blames: bool

    @cached_property
    def bad_places(self) -> tuple[int, ...]:
        return tuple(PLACES[name] for name in self.bad)

    @cached_property
    def base_places(self) -> tuple[int, ...]:
        return tuple(PLACES[name] for name in self.of)


@dataclass(frozen=True)
class Pace:
    """See the comments of the file; parts and factors are between 0 and 1."""

    warn_factor: float
    warn_floor: float
    act_factor: float
    rate_min_per_s: float
    settle_s: int
    decreases_max: int
    limit_s: int
    step_s: int
    step_messages: int
    step_part: float
    quarantine_s: int
    quarantine_max_s: int
    probe_part: float
    probe_s: int
    probe_messages: int
    pause_s: int
    blame_part: float
    reach_part: float


@dataclass(frozen=True)
class Norms:
    dated: date
    confidence: float
    measures: Mapping[str, Measure]
    pace: Pace

    @cached_property
    def z(self) -> float:
        return z_of(self.confidence)


@lru_cache(maxsize=1)
def builtin() -> Norms:
    """The limits that come with Manta."""
    return _norms(_shipped())


def parse(text: str) -> Norms:
    """The shipped limits with an operator's values in their place.

    Raises ``InvalidRequest`` that names the value.
    """
    if len(text.encode()) > TEXT_BYTES_MAX:
        raise InvalidRequest("the limits are too long", expected=f"at most {TEXT_BYTES_MAX} bytes")
    try:
        own = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"the limits are not TOML: {error}", path="reputation") from None
    return _norms(_merged(_shipped(), own, ""))


def _shipped() -> dict[str, Any]:
    file = resources.files("manta.delivery.reputation") / "reputation.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], path: str) -> dict[str, Any]:
    merged = dict(base)
    for name, value in own.items():
        here = f"{path}.{name}" if path else name
        if name not in base:
            raise _wrong(here, "is not known", f"one of {', '.join(sorted(base))}")
        inner = base[name]
        if isinstance(inner, dict):
            if not isinstance(value, dict):
                raise _wrong(here, "is not a table", "a table")
            value = _merged(inner, value, here)
        merged[name] = value
    return merged


def _norms(document: Mapping[str, Any]) -> Norms:
    dated, confidence = document["dated"], document["confidence"]
    if not isinstance(dated, date):
        raise _wrong("dated", "is not a date", "YYYY-MM-DD")
    if not isinstance(confidence, float) or not 0.5 < confidence < 1:
        raise _wrong("confidence", "is out of range", "between 0.5 and 1")
    measures = {
        name: _measure(values, f"measures.{name}") for name, values in document["measures"].items()
    }
    pace = _built(Pace, document["pace"], "pace")
    assert isinstance(pace, Pace)
    for name in ("warn_factor", "warn_floor", "act_factor", "step_part", "probe_part"):
        if not 0 < getattr(pace, name) < 1:
            raise _wrong(f"pace.{name}", "is out of range", "between 0 and 1")
    for name in ("blame_part", "reach_part"):
        if not 0 < getattr(pace, name) <= 1:
            raise _wrong(f"pace.{name}", "is out of range", "above 0, at most 1")
    return Norms(dated, confidence, measures, pace)


def _measure(values: Mapping[str, Any], path: str) -> Measure:
    measure = _built(Measure, values, path)
    assert isinstance(measure, Measure)
    if measure.span not in SPANS:
        raise _wrong(f"{path}.span", "is no span", ", ".join(SPANS))
    if measure.blames and measure.span not in CAMPAIGN_SPANS:
        raise _wrong(f"{path}.span", "is too short to blame somebody", ", ".join(CAMPAIGN_SPANS))
    for name in ("bad", "of"):
        unknown = [column for column in getattr(measure, name) if column not in PLACES]
        if unknown or not getattr(measure, name):
            raise _wrong(f"{path}.{name}", "holds no such column", ", ".join(PLACES))
    if not set(measure.of) <= {"accepted", *measure.bad}:  # or one kind would dilute another
        raise _wrong(f"{path}.of", "holds other columns", "accepted, and those of `bad`")
    if not 0 < measure.warn <= measure.act <= measure.stop <= 1:
        raise _wrong(path, "has limits out of order", "0 < warn ≤ act ≤ stop ≤ 1")
    return measure


def _built(kind: type[Measure] | type[Pace], values: Mapping[str, Any], path: str) -> Any:
    """A value of the kind from a table that has exactly its fields."""
    names = {field.name: field.type for field in fields(kind)}
    for name in (*names, *values):
        if name not in values or name not in names:
            raise _wrong(f"{path}.{name}", "is missing or not known", ", ".join(names))
    typed = {n: _typed(values[n], str(kind_), f"{path}.{n}") for n, kind_ in names.items()}
    return kind(**typed)


def _typed(value: Any, kind: str, path: str) -> Any:
    if kind == "tuple[str, ...]":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind == "float":
        if isinstance(value, float | int) and not isinstance(value, bool) and value > 0:
            return float(value)
    elif kind == "int":
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    elif isinstance(value, bool if kind == "bool" else str):
        return value
    raise _wrong(path, f"is {value!r:.40}", {"float": "a number above 0"}.get(kind, kind))


def _wrong(path: str, what: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{path} {what}", path=path, expected=expected)
