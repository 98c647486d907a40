"""Time as an argument.

Instants are naive ``datetime`` values in UTC everywhere inside Manta: they pass through DuckDB,
Arrow and Parquet ``TIMESTAMP`` columns unchanged. Zones appear only at the edges (``as_text`` and
``parse_instant``) and in calendar rules, which take a person's zone explicitly.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the domain and the actors know of time."""

    def now(self) -> datetime:
        """The current instant: naive, in UTC, with microseconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""


class SystemClock:
    """The machine's clock. Only composition code (bootstraps, commands, jobs) creates it."""

    def now(self) -> datetime:
        return datetime.now(UTC).replace(tzinfo=None)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that a test or simulation moves by hand."""

    def __init__(self, start: datetime = datetime(2026, 1, 1)) -> None:
        self._start = start
        self._elapsed_s = 0.0

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        return self._elapsed_s

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time does not go back")
        self._elapsed_s += seconds


def as_text(instant: datetime) -> str:
    """RFC 3339 text of an instant, always with ``Z``."""
    return instant.isoformat(timespec="microseconds") + "Z"


def parse_instant(text: str) -> datetime:
    """An instant from ISO 8601 / RFC 3339 text; a text without zone is taken as UTC.

    Raises ``ValueError`` where the text is not an instant.
    """
    value = datetime.fromisoformat(text)
    if value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return value
