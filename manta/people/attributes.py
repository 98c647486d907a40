"""Free attributes: names from any header, types from samples, values from text.

A type is declared once for a workspace; here a first guess is made from the values that a file
shows, and texts become values of a declared type, whole columns at a time. The guess is careful:
what could lose something stays text (``01234`` is a postcode, 17 digits are a number of an order
and not a quantity, ``03/04/2026`` is two dates). An empty text is no value.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.schema import AttributeType

NAME_LENGTH_MAX = 63
TEXT_LENGTH_MAX = 10_000  # of one value
LIST_LENGTH_MAX = 1_000
WORDS = {
    True: ("true", "yes", "y", "t", "on"),
    False: ("false", "no", "n", "f", "off"),
}
ARROW_TYPES = {
    AttributeType.STRING: pa.string(),
    AttributeType.NUMBER: pa.float64(),
    AttributeType.BOOLEAN: pa.bool_(),
    AttributeType.DATE: pa.timestamp("us"),
    AttributeType.LIST: pa.list_(pa.string()),
}
_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
# A number whose text can be had back from it: no leading zeros or plus, at most 15 digits.
_SAFE_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,3})?")
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)?$"
_ZONED_DATE = _DATE[:-1] + r" ?(?:Z|[+-][0-9]{2}:?[0-9]{2})$"
_GERMAN_DATE = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})")
_date, _zoned_date = re.compile(_DATE), re.compile(_ZONED_DATE)


def attribute_name(header: str, otherwise: str = "column") -> str:
    """The attribute name for a column's header: lower-case ASCII words joined by ``_``.

    ``otherwise`` stands where a header has no letter or digit that ASCII can show.
    """
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", header)  # lastName → last_Name
    words = re.findall(r"[a-z0-9]+", _ascii(split.replace("ß", "ss")))
    name = "_".join(words) or otherwise
    if not name[0].isalpha():
        name = f"a_{name}"
    return name[:NAME_LENGTH_MAX].rstrip("_")


def _ascii(text: str) -> str:
    """Without accents; what has no ASCII form becomes a gap."""
    plain = unicodedata.normalize("NFKD", text)
    kept = (c if c.isascii() else " " for c in plain if not unicodedata.combining(c))
    return "".join(kept).lower()


def attribute_names(headers: Sequence[str]) -> list[str]:
    """A name for each header; a name that is taken gets the next free number behind it."""
    names: list[str] = []
    taken: set[str] = set()
    for place, header in enumerate(headers, 1):
        first = name = attribute_name(header, f"column_{place}")
        number = 1
        while name in taken:
            number += 1
            name = f"{first[: NAME_LENGTH_MAX - 5]}_{number}"
        taken.add(name)
        names.append(name)
    return names


def inferred_type(samples: Iterable[str | None]) -> AttributeType:
    """The type that all values given fit; text where none are given or they differ."""
    given = [text for text in ((value or "").strip() for value in samples) if text]
    if not given:
        return AttributeType.STRING
    words = {word for known in WORDS.values() for word in known}
    if all(text.lower() in words for text in given):
        return AttributeType.BOOLEAN
    if all(_SAFE_NUMBER.fullmatch(text) for text in given):
        return AttributeType.NUMBER
    if all(_is(value_of(text, AttributeType.DATE), datetime) for text in given):
        return AttributeType.DATE
    if all(text[0] == "[" and _is(value_of(text, AttributeType.LIST), list) for text in given):
        return AttributeType.LIST
    return AttributeType.STRING


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind)


class Unfit(str):
    """Why a text is no value of the type; a text itself, so that results stay plain values."""

    __slots__ = ()


def value_of(text: str, kind: AttributeType) -> Any:
    """The value that a text means, ``None`` for an empty one, or ``Unfit`` with the reason."""
    text = text.strip()
    if not text:
        return None
    if len(text) > TEXT_LENGTH_MAX:
        return Unfit(f"longer than {TEXT_LENGTH_MAX} characters")
    return _PARSERS[kind](text)


def _number(text: str) -> Any:
    value = float(text) if re.fullmatch(_NUMBER[1:-1], text) else float("nan")
    if not np.isfinite(value):
        return Unfit(f"{text:.40} is not a number (like -12.5)")
    return value


def _boolean(text: str) -> Any:
    for value, words in WORDS.items():
        if text.lower() in (*words, str(int(value))):
            return value
    return Unfit(f"{text:.40} is neither yes nor no (true, false, yes, no, 1, 0)")


def _date_of(text: str) -> Any:
    try:
        if match := _GERMAN_DATE.fullmatch(text):
            day, month, year = map(int, match.groups())
            return datetime(year, month, day)
        if _date.match(text) or _zoned_date.match(text):
            value = datetime.fromisoformat(text.replace(" +", "+").replace(" -", "-"))
            return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    except (ValueError, OverflowError):
        return Unfit(f"{text:.40} is not a day of the calendar")
    return Unfit(f"{text:.40} is not a date (like 2026-03-09 or 2026-03-09T18:30:00Z)")


def _list(text: str) -> Any:
    if text[0] == "[":
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            return Unfit(f"{text:.40} is not a JSON list")
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            return Unfit(f"{text:.40} is not a list of texts")
    else:
        items = [item.strip() for item in re.split(r"[|;]", text)]
    items = [item for item in items if item]
    if len(items) > LIST_LENGTH_MAX:
        return Unfit(f"a list of {len(items)}; {LIST_LENGTH_MAX} are possible")
    return items


_PARSERS: dict[AttributeType, Callable[[str], Any]] = {
    AttributeType.STRING: str,
    AttributeType.NUMBER: _number,
    AttributeType.BOOLEAN: _boolean,
    AttributeType.DATE: _date_of,
    AttributeType.LIST: _list,
}


def values_of(texts: pa.Array, kind: AttributeType) -> tuple[pa.Array, dict[int, str]]:
    """``value_of`` of a column: the typed values (null where none) and the reasons by place."""
    trimmed = pc.utf8_trim_whitespace(texts)
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    column = _BULK[kind](trimmed)
    if column is not None:
        return column, {}
    reasons: dict[int, str] = {}
    values: list[Any] = []
    for place, text in enumerate(trimmed.to_pylist()):
        value = None if text is None else value_of(text, kind)
        if isinstance(value, Unfit):
            reasons[place] = str(value)
            value = None
        values.append(value)
    return pa.array(values, ARROW_TYPES[kind]), reasons


def _bulk_strings(texts: pa.Array) -> pa.Array | None:
    longest = pc.max(pc.utf8_length(texts)).as_py() or 0
    return texts if longest <= TEXT_LENGTH_MAX else None


def _bulk_numbers(texts: pa.Array) -> pa.Array | None:
    return _cast_all(texts, _NUMBER, pa.float64())


def _bulk_booleans(texts: pa.Array) -> pa.Array | None:
    words = [*WORDS[True], "1", *WORDS[False], "0"]
    place = pc.index_in(pc.utf8_lower(texts), value_set=pa.array(words))
    if place.null_count != texts.null_count:
        return None
    return pc.less(place, len(WORDS[True]) + 1)


def _bulk_dates(texts: pa.Array) -> pa.Array | None:
    column = _cast_all(texts, _DATE, pa.timestamp("us"))
    if column is None:
        zoned = _cast_all(texts, _ZONED_DATE, pa.timestamp("us", "UTC"))
        column = None if zoned is None else zoned.cast(pa.timestamp("us"))
    if column is None:
        return None
    possible = pc.and_(
        pc.greater_equal(column, pa.scalar(datetime.min, column.type)),
        pc.less_equal(column, pa.scalar(datetime.max, column.type)),
    )
    return column if pc.all(possible, min_count=0).as_py() else None


def _cast_all(texts: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array | None:
    """The column as the type where every text has the pattern; the rare rest goes one by one."""
    if not pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py():
        return None
    try:
        column = pc.cast(texts, kind)
    except pa.ArrowInvalid:
        return None
    if pa.types.is_floating(kind) and not pc.all(pc.is_finite(column), min_count=0).as_py():
        return None
    return column


_BULK: dict[AttributeType, Callable[[pa.Array], pa.Array | None]] = {
    AttributeType.STRING: _bulk_strings,
    AttributeType.NUMBER: _bulk_numbers,
    AttributeType.BOOLEAN: _bulk_booleans,
    AttributeType.DATE: _bulk_dates,
    AttributeType.LIST: lambda texts: None,
}
