"""What one answer of an endpoint means, and when its delivery is tried again: rules as data.

The schedule is that of Standard Webhooks 1.0: ten attempts over about 76 hours, then the delivery
has failed and can only be replayed by hand. Jitter only lengthens a wait, by a tenth at most, so
that what failed together does not come back together. ``Retry-After`` is obeyed up to
``RETRY_AFTER_MAX_S``: it never shortens a wait.

| answer | the delivery | the endpoint |
| --- | --- | --- |
| 2xx | delivered | well |
| 410 | failed at once | disabled |
| 429, 502, 503, 504, no answer | tried again | slower |
| all else, redirects too | tried again | as it is |
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from random import Random

from manta.clock import parse_instant

# Seconds to wait before each attempt; the first is made at once.
SCHEDULE_S = (
    0.0,
    5.0,
    5 * 60.0,
    30 * 60.0,
    2 * 3_600.0,
    5 * 3_600.0,
    10 * 3_600.0,
    14 * 3_600.0,
    20 * 3_600.0,
    24 * 3_600.0,
)
ATTEMPTS_MAX = len(SCHEDULE_S)
JITTER = 0.1
RETRY_AFTER_MAX_S = 24 * 3_600.0
GONE = 410
BUSY = frozenset({429, 502, 503, 504})
FAILING_MAX = timedelta(days=5)  # of nothing but failures: then the endpoint is disabled
ANSWER_CHARACTERS_MAX = 500


class State(StrEnum):
    WAITING = "waiting"  # for its time, or with the courier until then
    DELIVERED = "delivered"
    FAILED = "failed"  # tried for the last time, or its endpoint is gone
    DISCARDED = "discarded"  # by hand


@dataclass(frozen=True)
class Answered:
    """What came of one attempt. ``status`` ``None``: there was no answer, ``text`` says why."""

    status: int | None
    text: str = ""
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        return self.status == GONE

    @property
    def is_busy(self) -> bool:
        """Whether the endpoint should get less for a while."""
        return self.status is None or self.status in BUSY


@dataclass(frozen=True)
class Next:
    """The state of a delivery after an attempt, and when it is due if it waits."""

    state: State
    due_at: datetime | None = None


def after(answered: Answered, attempts: int, now: datetime, random: Random) -> Next:
    """``attempts``: made so far, this one included (1 after the first)."""
    if answered.is_success:
        return Next(State.DELIVERED)
    if answered.is_gone or attempts >= ATTEMPTS_MAX:
        return Next(State.FAILED)
    wait_s = SCHEDULE_S[attempts] * (1 + JITTER * random.random())
    wait_s = max(wait_s, asked_wait_s(answered.retry_after_s))
    return Next(State.WAITING, now + timedelta(seconds=wait_s))


def asked_wait_s(retry_after_s: float | None) -> float:
    """What is obeyed of a ``Retry-After``."""
    return min(max(retry_after_s or 0.0, 0.0), RETRY_AFTER_MAX_S)


def retry_after_s(text: str | None, now: datetime) -> float | None:
    """The seconds of a ``Retry-After`` header: a number, or a date (RFC 9110 §10.2.3); else
    ``None``."""
    if not text or len(text) > 60:
        return None
    if text.isascii() and text.strip().isdigit():
        return float(text)
    try:
        at = parse_instant(parsedate_to_datetime(text).isoformat())
    except (ValueError, TypeError, OverflowError):
        return None
    return max((at - now).total_seconds(), 0.0)
