"""What texts, numbers, days and properties mean to a rule: the one place both back ends use.

Text is compared folded: NFC, full case folding, NFC (Unicode 3.13, D145 with NFC for NFD). Time is
compared in half-open ranges of microseconds ``[low, high)``, so that a window (now − w, now] is
``[now − w + 1 µs, now + 1 µs)`` in Python and in SQL alike. A day is the calendar day in the
person's zone; a value of exactly midnight UTC is a date without time, the same day everywhere.

SQL cannot say all of this, so ``register`` lends these very functions to a DuckDB connection. The
compiled SQL calls them only for the rows that need them: text that is not ASCII, instants within a
day of a bound, dates and lists inside JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any
from unicodedata import normalize
from zoneinfo import ZoneInfo

from manta.clock import parse_instant
from manta.rules.nodes import BUCKET_PARTS
from manta.rules.terms import Frame, FrameKind, Operator, Property, Span, Test

TICK = timedelta(microseconds=1)
ONE_DAY = timedelta(days=1)
HUMAN_TYPES = ("opened", "clicked")  # what a machine may do in a person's name
HUMAN_LEAST = 0.5  # the probability from which on such an event counts
SETTLING = timedelta(hours=24)  # a message counts as opened or ignored only after this
MICRO_LIMIT = 9e12  # amounts beyond cannot be summed exactly in 64 bits of millionths

Range = tuple[datetime | None, datetime | None]


# -- text, numbers, hashes -------------------------------------------------------------------------


def fold(text: str) -> str:
    """The form in which two texts are equal when people would call them the same."""
    if text.isascii():
        return text.lower()
    return normalize("NFC", normalize("NFC", text).casefold())


def email_domain(email: str | None) -> str | None:
    return email.rpartition("@")[2] if email is not None and "@" in email else None


def micros(amount: float | None) -> int | None:
    """An amount in millionths, rounded half away from zero; ``None`` for what cannot be summed.

    Sums of floats depend on their order; sums of whole millionths do not.
    """
    if amount is None or not abs(amount) <= MICRO_LIMIT:
        return None
    scaled = amount * 1e6
    whole = math.trunc(scaled)
    return whole + int(math.copysign(abs(scaled - whole) >= 0.5, scaled))


def bucket_of(salt: str, subscriber_id: int) -> int:
    """Where a person falls among ``BUCKET_PARTS``: a hash, stable for ever for one salt."""
    raw = hashlib.md5(f"{salt}:{subscriber_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(raw[8:], "little") % BUCKET_PARTS


# -- zones and days --------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def zone_of(name: str | None, default: str) -> ZoneInfo:
    """The person's zone, or the workspace's where the person has none that exists."""
    if name:
        try:
            return ZoneInfo(name)
        except (ValueError, OSError, KeyError):
            pass
    return ZoneInfo(default)


_UTC = ZoneInfo("UTC")


@lru_cache(maxsize=1024)  # mostly asked about one now, for many people
def local_day(instant: datetime, zone: ZoneInfo) -> date:
    try:
        return instant.replace(tzinfo=_UTC).astimezone(zone).date()
    except OverflowError:  # the first and last day of the calendar
        return instant.date()


def day_of(value: datetime, zone: ZoneInfo) -> date:
    """The calendar day of a date attribute; midnight UTC is a date without time."""
    if not (value.hour or value.minute or value.second or value.microsecond):
        return value.date()
    return local_day(value, zone)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)


def day_starts(day: date, zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    """The instants at which the local date may become ``day``, or turn back from it.

    Mostly one. Where a clock change falls on that midnight there are two readings of it, and the
    change itself lies between them.
    """
    try:
        early, late = _readings_of_midnight(day, zone)
    except OverflowError:  # beyond the calendar
        return
    yield early
    if early != late:
        yield late
        if early <= now < late:
            yield _offset_change(zone, now, late)


@lru_cache(maxsize=4096)
def _readings_of_midnight(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    start = datetime(day.year, day.month, day.day, tzinfo=zone)
    one, other = _as_utc(start), _as_utc(start.replace(fold=1))
    return min(one, other), max(one, other)


def _as_utc(local: datetime) -> datetime:
    offset = local.utcoffset()
    assert offset is not None
    return local.replace(tzinfo=None, fold=0) - offset


def _offset_change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The first instant in (low, high] with the offset of ``high``."""

    def offset(instant: datetime) -> timedelta | None:
        return (instant.replace(tzinfo=_UTC)).astimezone(zone).utcoffset()

    target = offset(high)
    if offset(low) == target:
        return high
    while high - low > TICK:
        middle = low + (high - low) // 2
        low, high = (low, middle) if offset(middle) == target else (middle, high)
    return high


def next_day_start(zone: ZoneInfo, now: datetime) -> datetime:
    """The first instant after now at which the local date may change."""
    today = local_day(now, zone)
    days = (today + shift * ONE_DAY for shift in range(3))
    return min(start for day in days for start in day_starts(day, zone, now) if start > now)


def anniversary_in(day: date, year: int) -> date:
    """The anniversary of ``day`` in a year: 29 February falls on the 28th where there is none."""
    try:
        return day.replace(year=year)
    except ValueError:
        return date(year, 2, 28)


def next_anniversary(day: date, today: date) -> date:
    """The first anniversary on or after today; the year of ``day`` itself does not matter."""
    this_year = anniversary_in(day, today.year)
    return this_year if this_year >= today else anniversary_in(day, today.year + 1)


# -- ranges ----------------------------------------------------------------------------------------


def plus(instant: datetime, delta: timedelta) -> datetime:
    """Addition that stops at the ends of the calendar."""
    try:
        return instant + delta
    except OverflowError:
        return datetime.max if delta > timedelta(0) else datetime.min


def _absolute(operator: str, value: Any) -> Range:
    """[low, high) of a moment or a pair; a day stands for all of it, in UTC."""
    if operator == "between":
        low, high = value
        if isinstance(low, datetime):
            return low, high
        return midnight(low), plus(midnight(high), ONE_DAY)
    whole_day = not isinstance(value, datetime)
    start = midnight(value) if whole_day else value
    if operator == "before":
        return None, start
    return plus(start, ONE_DAY if whole_day else TICK), None


def frame_range(frame: Frame | None, now: datetime) -> tuple[datetime | None, datetime]:
    """[low, high) of a time frame; what lies after now never counts."""
    end = now + TICK
    if frame is None:
        return None, end
    if frame.kind is FrameKind.LAST:
        return plus(end, -frame.value.delta), end
    if frame.kind is FrameKind.AT_LEAST_AGO:
        return None, plus(end, -frame.value.delta)
    low, high = _absolute(frame.kind.value, frame.value)
    return low, end if high is None else min(high, end)


def instant_range(test: Test, now: datetime) -> Range:
    """[low, high) of a date test that compares instants."""
    end = now + TICK
    if test.operator is Operator.IN_THE_LAST:
        return plus(end, -test.value.delta), end
    if test.operator is Operator.IN_THE_NEXT:
        return end, plus(end, test.value.delta)
    if test.operator is Operator.AT_LEAST_AGO:
        return None, plus(end, -test.value.delta)
    return _absolute(test.operator.value, test.value)


def by_days(test: Test) -> bool:
    """Whether a date test compares calendar days, rather than instants."""
    value = test.value[0] if isinstance(test.value, tuple) else test.value
    if isinstance(value, Span):
        return value.days is not None
    return not isinstance(value, datetime)


def day_offsets(test: Test) -> tuple[int | None, int | None] | None:
    """First and last day relative to today, or ``None`` for a test of absolute days."""
    if not isinstance(test.value, Span):
        return None
    days = test.value.days or 0
    if test.operator is Operator.IN_THE_LAST:
        return 1 - days, 0
    if test.operator is Operator.IN_THE_NEXT:
        return 1, days
    return None, -days


def day_range(test: Test) -> tuple[date | None, date | None]:
    """First and last day of a test of absolute days."""
    if test.operator is Operator.BETWEEN:
        return test.value[0], test.value[1]
    day: date = test.value
    if test.operator is Operator.ON:
        return day, day
    if test.operator is Operator.BEFORE:
        return None, day - ONE_DAY
    return day + ONE_DAY, None


# -- JSON properties -------------------------------------------------------------------------------


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


@lru_cache(maxsize=4096)
def _document(text: str) -> Any:
    """The JSON, or ``None`` where DuckDB would not read it either, as half a surrogate pair."""
    try:
        found = json.loads(text, object_pairs_hook=_first_wins)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError):
        return None


def property_value(properties: str | None, path: tuple[str, ...]) -> Any:
    """What stands at the path in an event's JSON, or ``None``."""
    value = _document(properties) if properties is not None else None
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def event_key(
    by: Property, item: str | None, campaign_id: int | None, properties: str | None
) -> str | None:
    """What ties an event to others: a text, or a whole number of 64 bits as text."""
    if by.column == "item":
        return item
    value = campaign_id if by.column else property_value(properties, by.path[1:])
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if -(1 << 63) <= value < 1 << 64 else None
    return as_text(value)


def as_number(value: Any) -> float | None:
    """A JSON number as float64; NaN and what is beyond float64 count as missing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_text(value: Any) -> str | None:
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        return None
    return value


def as_instant(value: Any) -> datetime | None:
    """ISO 8601 text as an instant; a date without time is midnight UTC."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        return parse_instant(value)
    except (ValueError, OverflowError):
        return None


def as_texts(value: Any) -> list[str] | None:
    """The texts of a JSON list."""
    if not isinstance(value, list):
        return None
    return [text for one in value if (text := as_text(one)) is not None]


# -- lending them to DuckDB ------------------------------------------------------------------------


def _sql_day(instant: datetime, zone: str, default: str) -> date:
    return local_day(instant, zone_of(zone, default))


def _sql_next_day(now: datetime, zone: str, default: str) -> datetime:
    return next_day_start(zone_of(zone, default), now)


def _sql_texts(properties: str | None, pointer: str) -> list[str] | None:
    keys = (key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:])
    return as_texts(property_value(properties, tuple(keys)))


# Name, function, parameters, result, and what becomes of NULL: "default" passes it through.
_FUNCTIONS: tuple[tuple[str, Any, list[str], str, str], ...] = (
    ("manta_fold", fold, ["VARCHAR"], "VARCHAR", "default"),
    ("manta_day", _sql_day, ["TIMESTAMP", "VARCHAR", "VARCHAR"], "DATE", "default"),
    ("manta_next_day", _sql_next_day, ["TIMESTAMP", "VARCHAR", "VARCHAR"], "TIMESTAMP", "default"),
    ("manta_instant", as_instant, ["VARCHAR"], "TIMESTAMP", "special"),
    ("manta_texts", _sql_texts, ["VARCHAR", "VARCHAR"], "VARCHAR[]", "special"),
)


def register(connection: Any) -> None:
    """Lends the functions to a DuckDB database, for all its cursors; again changes nothing."""
    known = connection.execute(
        "SELECT count(*) FROM duckdb_functions() WHERE function_name = 'manta_fold'"
    ).fetchall()
    if known[0][0]:
        return
    for name, function, parameters, result, nulls in _FUNCTIONS:
        connection.create_function(name, function, parameters, result, null_handling=nulls)
