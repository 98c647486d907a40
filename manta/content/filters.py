"""The filters of the template language: the only functions a template can call.

Each takes and returns plain values (text, numbers, instants, lists), says so when given others,
and costs its length in the render's budget (``environment.Budget``), so no chain of them is free.
There is no ``safe``: text from people and events is always escaped in HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from jinja2 import Undefined
from jinja2.filters import do_title

from manta.clock import parse_instant

TEXT_CHARACTERS_MAX = 65_536
NUMBER_MAX = 10**15
_DATE_FORMAT = re.compile(r"(?:[^%]|%-?[aAbBdeHIjmMpSyY%])*")
_DATE_FORMAT_CHARACTERS_MAX = 64
_DECIMALS_MAX = 6


class FilterError(ValueError):
    """A filter was given what it does not take."""


def show(value: Any) -> str:
    """A value as a reader sees it: nothing for a missing one, whole numbers without ``.0``."""
    if type(value) is str:
        return value
    if value is None or isinstance(value, Undefined):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= NUMBER_MAX else repr(value)
    if isinstance(value, int | Decimal | str):
        return str(value)
    if isinstance(value, datetime):
        midnight = not (value.hour or value.minute or value.second)
        return value.strftime("%Y-%m-%d" if midnight else "%Y-%m-%d %H:%M")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        raise FilterError("a list cannot be printed: use the filter join, or a for loop")
    raise FilterError("a group of values cannot be printed: name one of them, as in item.name")


def _text(value: Any) -> str:
    text = show(value)
    if len(text) > TEXT_CHARACTERS_MAX:
        raise FilterError(
            f"a text of {len(text)} characters, at most {TEXT_CHARACTERS_MAX} allowed"
        )
    return text


def _number(value: Any, what: str) -> float | int | Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise FilterError(f"{what} takes a number, not {_kind(value)}")
    if not -NUMBER_MAX <= value <= NUMBER_MAX:  # also refuses NaN
        raise FilterError(f"{what} takes numbers up to {NUMBER_MAX:,}")
    return value


def _whole(value: Any, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FilterError(f"{what} takes a whole number from {low} to {high}")
    return value


def _kind(value: Any) -> str:
    if value is None or isinstance(value, Undefined):
        return "a missing value"
    if isinstance(value, list | tuple):
        return "a list"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"


def _missing(value: Any) -> bool:
    return value is None or isinstance(value, Undefined)


# -- the filters -----------------------------------------------------------------------------------


def _default(value: Any, fallback: Any = "") -> Any:
    """The value, or the fallback where the person lacks it or it is blank."""
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        return fallback
    return value


def _truncate(value: Any, length: int = 80) -> str:
    """At most ``length`` characters, cut between words, with an ellipsis."""
    text = _text(value)
    length = _whole(length, "truncate", 1, TEXT_CHARACTERS_MAX)
    if len(text) <= length:
        return text
    cut = text[: length - 1]
    head, blank, _ = cut.rpartition(" ")
    return (head if blank and head else cut).rstrip() + "…"


def _replace(value: Any, old: str, new: str) -> str:
    text, old, new = _text(value), _text(old), _text(new)
    if not old:
        raise FilterError("replace takes a text of at least one character to look for")
    if len(text) + text.count(old) * (len(new) - len(old)) > TEXT_CHARACTERS_MAX:
        raise FilterError(f"replace would make a text of over {TEXT_CHARACTERS_MAX} characters")
    return text.replace(old, new)


def _join(value: Any, separator: str = ", ") -> str:
    if _missing(value):
        return ""
    if not isinstance(value, list | tuple):
        raise FilterError(f"join takes a list, not {_kind(value)}")
    items = [show(item) for item in value]
    separator = _text(separator)
    if sum(map(len, items)) + len(separator) * len(items) > TEXT_CHARACTERS_MAX:
        raise FilterError(f"join would make a text of over {TEXT_CHARACTERS_MAX} characters")
    return separator.join(items)


def _first(value: Any) -> Any:
    return _end(value, 0)


def _last(value: Any) -> Any:
    return _end(value, -1)


def _end(value: Any, index: int) -> Any:
    if _missing(value):
        return None
    if not isinstance(value, list | tuple | str):
        raise FilterError(f"first and last take a list or a text, not {_kind(value)}")
    return value[index] if value else None


def _length(value: Any) -> int:
    if _missing(value):
        return 0
    if not isinstance(value, list | tuple | str | dict):
        raise FilterError(f"length takes a list or a text, not {_kind(value)}")
    return len(value)


def _date(value: Any, pattern: str = "%-d %B %Y") -> str:
    """An instant by a pattern of ``%d %m %Y %H %M …`` (strftime's, without the locale's own)."""
    if _missing(value):
        return ""
    if isinstance(value, str):
        value = parse_instant(value[:40])
    if not isinstance(value, date):
        raise FilterError(f"date takes an instant, not {_kind(value)}")
    pattern = _text(pattern)
    if len(pattern) > _DATE_FORMAT_CHARACTERS_MAX or not _DATE_FORMAT.fullmatch(pattern):
        raise FilterError(
            "date takes a pattern of text and %a %A %b %B %d %e %H %I %j %m %M %p %S %y %Y"
        )
    return value.strftime(pattern)


def _number_text(value: Any, decimals: int = 0) -> str:
    """A number with thousands separators and a fixed count of decimals."""
    if _missing(value):
        return ""
    decimals = _whole(decimals, "number's decimals", 0, _DECIMALS_MAX)
    return f"{_number(value, 'number'):,.{decimals}f}"


def _round(value: Any, decimals: int = 0) -> Any:
    if _missing(value):
        return None
    decimals = _whole(decimals, "round's decimals", 0, _DECIMALS_MAX)
    return round(_number(value, "round"), decimals)


def _abs(value: Any) -> Any:
    return None if _missing(value) else abs(_number(value, "abs"))


def _int(value: Any) -> Any:
    if _missing(value):
        return None
    if isinstance(value, str):
        value = float(value[:40])
    return int(_number(value, "int"))


_QUOTED = [quote(bytes([octet]), safe="") for octet in range(256)]


def _urlencode(value: Any) -> str:
    text = _text(value)
    if len(text) > TEXT_CHARACTERS_MAX // 12:  # four octets of three characters each
        raise FilterError("urlencode takes short texts")
    return _quoted(text) if len(text) > _QUOTED_SHORT else _quoted_short(text)


def _quoted(text: str) -> str:
    return "".join([_QUOTED[octet] for octet in text.encode()])


# The same products and places stand in many mails, and in both parts of each.
_QUOTED_SHORT = 100
_quoted_short = lru_cache(maxsize=4_096)(_quoted)


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": _abs,
    "capitalize": lambda value: _text(value).capitalize(),
    "date": _date,
    "default": _default,
    "first": _first,
    "int": _int,
    "join": _join,
    "last": _last,
    "length": _length,
    "lower": lambda value: _text(value).lower(),
    "number": _number_text,
    "replace": _replace,
    "round": _round,
    "title": lambda value: do_title(_text(value)),
    "trim": lambda value: _text(value).strip(),
    "truncate": _truncate,
    "upper": lambda value: _text(value).upper(),
    "urlencode": _urlencode,
}
TESTS = ("defined", "undefined", "none", "odd", "even", "string", "number", "true", "false")
