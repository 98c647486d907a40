"""What rules may ask of the past that has left memory: the sums that a shard keeps of it.

Of events that are older than its memory (``manta.store.retention``) a shard keeps first time, last
time, number and amount: per person, month and type, and of purchases per person and item. Each
event is in memory or in the sums, never both, so a condition that the sums **serve** is exact over
all the past when both are counted. The sums serve

- counts and sums of ``amount`` of a type without filters, by months; of ``purchased`` also with
  filters on the ``item`` alone that are positive (purchases without an item are in no sum by item);
- in time frames by which each sum is wholly in or out: none, one that ends within memory, and by
  months those whose fixed bounds are the beginnings of months;
- whatever the frame, "at least once" and "never" where it is open to one side, and first and last
  times: the first and last times of the sums decide these.

Both back ends count a sum if it overlaps the frame, which for all of these is right.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import NamedTuple

from manta.rules.meaning import TICK, frame_range
from manta.rules.nodes import All, AnyOf, Event, EventTime, ExactlyOne, Not, Rule, children_of
from manta.rules.terms import FrameKind, Happening, Span
from manta.schema import EVENT_MONTHS, HISTORY_EVENTS, PURCHASED_ITEMS

MEMORY_DAYS = 400  # how long a shard keeps events in memory (manta.store.settings)
MEMORY = timedelta(days=MEMORY_DAYS)
MONTHS, ITEMS = EVENT_MONTHS.name, PURCHASED_ITEMS.name
PURCHASED = "purchased"

_END = datetime.max - TICK
# Comparisons of a count that only ask whether there is any.
_ANY = {
    ("at_least", 1.0),
    ("greater_than", 0.0),
    ("not_equals", 0.0),
    ("equals", 0.0),
    ("less_than", 1.0),
    ("at_most", 0.0),
}


class Kept(NamedTuple):
    """The sums that serve a condition: those of a table, of one event type."""

    table: str
    type: str


class KeptSum(NamedTuple):
    """What is kept of some events of one type: those of a month, or those of an item."""

    first_at: datetime
    last_at: datetime
    events: int
    amount: float | None
    item: str | None = None

    @property
    def micros(self) -> int:
        """The amount in millionths: it was added up in them, so they are found again exactly up to
        about 2·10⁹ in one sum."""
        amount = self.amount
        return 0 if amount is None or not math.isfinite(amount) else round(amount * 1e6)


def kept_of(rule: Rule) -> Kept | None:
    """The sums that a condition needs beside memory and is served by; ``None`` where memory is
    enough, or where no sums serve it."""
    if not isinstance(rule, Event | EventTime):
        return None
    table = _table(rule.happening)
    if not table or (isinstance(rule, Event) and not _serves(table, rule)):
        return None
    return Kept(table, rule.happening.type)


def sums_of(rule: Rule) -> frozenset[Kept]:
    """All sums that serve conditions of the rule."""
    found = (kept_of(one) for one in _conditions(rule))
    return frozenset(one for one in found if one is not None)


def unserved(rule: Rule) -> list[Rule]:
    """The conditions of the rule that are to be answered from memory alone."""
    return [one for one in _conditions(rule) if kept_of(one) is None]


def _conditions(rule: Rule) -> list[Rule]:
    """What groups are made of. A keyed rule is one condition: sums know no keys."""
    if not isinstance(rule, All | AnyOf | ExactlyOne | Not):
        return [rule]
    return [one for child in children_of(rule) for one in _conditions(child)]


def _table(happening: Happening) -> str:
    if happening.type in HISTORY_EVENTS:
        return ""
    if not happening.where:
        return MONTHS
    by_item = happening.type == PURCHASED and all(
        one.property.column == "item" and not one.test.negated for one in happening.where
    )
    return ITEMS if by_item else ""


def _serves(table: str, rule: Event) -> bool:
    if rule.sum_of is not None and rule.sum_of.column != "amount":
        return False
    frame = rule.happening.within
    if frame is None:
        return True
    asks_any = rule.sum_of is None and (rule.comparison.operator, rule.comparison.value) in _ANY
    if isinstance(frame.value, Span):
        within_memory = frame.value.delta <= MEMORY
        if frame.kind is FrameKind.LAST:
            return asks_any and not within_memory
        return asks_any or within_memory
    low, high = frame_range(frame, _END)
    if asks_any and (low is None or high > _END):
        return True
    return table == MONTHS and all(
        bound is None or bound > _END or _begins_month(bound) for bound in (low, high)
    )


def _begins_month(instant: datetime) -> bool:
    return instant == datetime(instant.year, instant.month, 1)


def overlaps(rule: Event | EventTime, now: datetime) -> tuple[datetime, datetime]:
    """(low, high): a sum counts when it ends at low or later, and begins before high. For the first
    and last time of all, every sum does."""
    frame = rule.happening.within if isinstance(rule, Event) else None
    low, high = frame_range(frame, now)
    return low or datetime.min, high
