"""What was committed and not yet looked at by the live segments.

The writer's thread adds, the evaluator's takes. Bounded: when too much waits to be remembered row
by row, it is forgotten and everything is to be evaluated whole.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from manta.clock import Clock
from manta.command import Change

ROWS_MAX = 1_000_000
# The tables that a rule can look at, and the definitions of the rules themselves.
WATCHED = frozenset(
    {
        "profiles",
        "events",
        "consents",
        "suppressions",
        "traffic_corrections",
        "attribute_times",
        "predictions",
        "aliases",
        "erasures",
        "event_months",
        "purchased_items",
        "definitions",
        "retention",
    }
)


class Taken(NamedTuple):
    """Changes in the order of their commits, and when each group was committed (monotonic)."""

    changes: Sequence[Change] = ()
    committed_s: Sequence[float] = ()
    lost: bool = False  # there was more than could be kept


class Notes:
    """``add`` is the watch of a ``ShardStore``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._changes: list[Change] = []
        self._committed_s: list[float] = []
        self._rows, self._lost = 0, False

    def __bool__(self) -> bool:
        return bool(self._committed_s)

    def add(self, changes: Sequence[Change]) -> None:
        watched = [change for change in changes if change.table in WATCHED]
        if not watched:
            return
        with self._lock:
            self._committed_s.append(self._clock.monotonic())
            self._rows += sum(change.rows.num_rows for change in watched)
            if self._rows > ROWS_MAX:
                self._lost = True
                self._changes.clear()
            if not self._lost:
                self._changes += watched

    def take(self) -> Taken:
        """All that waits; it waits no more."""
        with self._lock:
            taken = Taken(self._changes, self._committed_s, self._lost)
            self._changes, self._committed_s, self._rows, self._lost = [], [], 0, False
        return taken
