"""Values and tests of a mapping: how a field is found in a record and what it becomes.

Formats: ``number`` (``1234.5``), ``decimal_comma`` (``1.234,50``), ``cents`` (``1990`` → 19.9),
``text``, ``boolean`` (yes, no, 1, 0 …), ``list`` (a text of commas), ``unix_seconds``,
``unix_millis``, ``iso``, or a pattern of a date as ``strptime`` reads it (``%d.%m.%Y %H:%M``), in
``zone`` where that is given, else in UTC. A value that does not have its format does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from manta.clock import as_text
from manta.ingestion.normalised import (
    EARLIEST,
    Misfit,
    instant_of,
    number_of,
    text_of,
    unix_instant,
)
from manta.ingestion.paths import NOTHING, Path

DIRECTIVES = "YymdHMSfzIpbB%"
TEXT_MAX = 100  # of what a format reads
_WORDS = {"true": True, "yes": True, "y": True, "1": True, "on": True}
_WORDS |= {"false": False, "no": False, "n": False, "0": False, "off": False}
_PLAIN = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,10})?")
_GROUPED = re.compile(r"[+-]?(?:[0-9]{1,3}(?:[.' ][0-9]{3}){1,4}|[0-9]{1,15})(?:,[0-9]{1,10})?")
Roots = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """A path, what stands for what it leads to, and how that is read; or a constant."""

    path: Path | None
    const: Any = None
    default: Any = None
    table: Mapping[str, Any] | None = None
    format: str = ""
    zone: str = ""
    prefix: str = ""

    @property
    def where(self) -> str:
        """The place in the record, for who reads why something does not fit."""
        return "const" if self.path is None else self.path.text

    def of(self, roots: Roots) -> Any:
        """The value; instants as RFC 3339 text. ``None`` where there is none."""
        found = self._found(roots)
        if found is None:
            return None
        if self.format:
            found = _formatted(self, found)
        if self.prefix:
            text = text_of(found, self.where)
            found = None if text is None else self.prefix + text
        return as_text(found) if isinstance(found, datetime) else found

    def _found(self, roots: Roots) -> Any:
        found = self.const if self.path is None else self.path.value(roots)
        if found is NOTHING or found is None or found == "":
            return self.default
        if self.table is None:
            return found
        key = word(found)
        if key in self.table:
            return self.table[key]
        if self.default is not None:
            return self.default
        known = ", ".join(list(self.table)[:10])
        raise Misfit(self.where, f"is {key[:60]!r}, which the map does not have ({known:.200})")


def word(value: Any) -> str:
    """A JSON value as the text by which tables and tests know it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return value.strip() if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Condition:
    """Tests that must all hold: (path, operator, operand)."""

    tests: tuple[tuple[Path, str, Any], ...]

    def holds(self, roots: Roots) -> bool:
        return all(_holds(path.value(roots), operator, to) for path, operator, to in self.tests)


def _holds(found: Any, operator: str, operand: Any) -> bool:
    is_there = found is not NOTHING and found is not None and found != ""
    if operator == "exists":
        return is_there is bool(operand)
    words = [word(each) for each in (found if isinstance(found, list) else [found])]
    if operator == "in":
        return is_there and any(each in operand for each in words)
    same = is_there and word(operand) in words
    return same if operator == "equals" else not same


Reader = Callable[[Value, Any], Any]


# -- formats ---------------------------------------------------------------------------------------


def _formatted(value: Value, found: Any) -> Any:
    read: Reader = FORMATS.get(value.format, _by_pattern)
    if isinstance(found, list) and value.format != "list":
        return [read(value, each) for each in found]
    return read(value, found)


def _text_in(value: Value, found: Any) -> str:
    text = text_of(found, value.where, TEXT_MAX)
    if text is None:
        raise Misfit(value.where, "is empty")
    return text


def _number(value: Value, found: Any) -> float:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return float(found)
    text = _text_in(value, found)
    if not _PLAIN.fullmatch(text):
        raise Misfit(value.where, "is no number like 1234.5")
    return float(text)


def _decimal_comma(value: Value, found: Any) -> float:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return float(found)
    text = _text_in(value, found)
    if not _GROUPED.fullmatch(text):
        raise Misfit(value.where, "is no number like 1.234,50")
    return float(re.sub(r"[.' ]", "", text).replace(",", "."))


def _cents(value: Value, found: Any) -> float:
    return float(Decimal(repr(_number(value, found))) / 100)


def _boolean(value: Value, found: Any) -> bool:
    known = _WORDS.get(word(found).lower()) if isinstance(found, str | int | bool) else None
    if known is None:
        raise Misfit(value.where, "is neither yes nor no")
    return known


def _as_text(value: Value, found: Any) -> str | None:
    return word(found) if isinstance(found, bool | float) else text_of(found, value.where, 10_000)


def _list(value: Value, found: Any) -> list[str]:
    parts = found if isinstance(found, list) else str(_as_text(value, found) or "").split(",")
    return [text for part in parts if (text := _as_text(value, part))]


def _seconds(value: Value, found: Any) -> datetime | None:
    return unix_instant(_number(value, found), value.where)


def _millis(value: Value, found: Any) -> datetime | None:
    return unix_instant(_number(value, found) / 1000, value.where)


def _iso(value: Value, found: Any) -> datetime | None:
    return instant_of(found, value.where)


def _by_pattern(value: Value, found: Any) -> datetime:
    text = _text_in(value, found)
    try:
        at = datetime.strptime(text, value.format)
        if at.tzinfo is None:
            at = at.replace(tzinfo=ZoneInfo(value.zone) if value.zone else UTC)
        at = at.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise Misfit(value.where, f"is no date like {value.format}") from None
    if at < EARLIEST:
        raise Misfit(value.where, "lies before 1970")
    return at


FORMATS: Mapping[str, Reader] = {
    "text": _as_text,
    "number": _number,
    "decimal_comma": _decimal_comma,
    "cents": _cents,
    "boolean": _boolean,
    "list": _list,
    "unix_seconds": _seconds,
    "unix_millis": _millis,
    "iso": _iso,
}


# -- values of certain kinds -----------------------------------------------------------------------


def text(value: Value, roots: Roots, length_max: int = TEXT_MAX) -> str | None:
    return text_of(value.of(roots), value.where, length_max)


def number(value: Value, roots: Roots) -> float | None:
    """A number; a text without a format must be one like ``1234.5``."""
    found = value.of(roots)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        raise Misfit(value.where, "is no number")
    read = number_of(_number(value, found))
    if read is None:
        raise Misfit(value.where, "is no number that can be kept")
    return read


def instant(value: Value, roots: Roots) -> datetime | None:
    """An instant; a number without a format does not say what it counts."""
    return instant_of(value.of(roots), value.where)
