"""GCRA: the generic cell rate algorithm, a leaky bucket in one number.

A bucket gives at most ``burst`` permits at once and ``rate_per_s`` in the long run: in any span of
*t* seconds never more than ``rate_per_s * t + burst``. What it remembers is the theoretical arrival
time (TAT) of the next permit (ITU-T I.371, virtual scheduling). Time is an integer of nanoseconds
here, and the interval between permits is rounded up, so no rounding ever gives a permit too many.

Permits that were taken and never used may come back. That is exact only while the bucket would not
have been full without them: what would have run over is lost. So a bucket also remembers how far
ahead of the time its TAT was at its last takes, and takes back no more than that.
"""

from __future__ import annotations

from bisect import bisect_right
from math import ceil

_NS = 1_000_000_000
NEVER_S = 60.0  # what a bucket without any rate tells its callers to wait
RATE_PER_S_MAX = 1e6
TAKES_REMEMBERED = 64


class Bucket:
    """One bucket at work. Times are monotonic seconds; ``rate_per_s`` 0 gives nothing."""

    __slots__ = (
        "_aheads_ns",
        "_depth_ns",
        "_interval_ns",
        "_numbers",
        "burst",
        "rate_per_s",
        "takes",
        "tat_ns",
    )

    def __init__(self, rate_per_s: float, burst: int, tat_ns: int) -> None:
        self.tat_ns = tat_ns
        self.takes = 0  # how many there were: the number of the last one
        self._bound(rate_per_s, burst)

    @classmethod
    def full(cls, rate_per_s: float, burst: int, now_s: float) -> Bucket:
        return cls(rate_per_s, burst, _ns(now_s))

    @classmethod
    def empty(cls, rate_per_s: float, burst: int, now_s: float) -> Bucket:
        """Gives its first permit after one interval and fills up from there."""
        bucket = cls(rate_per_s, burst, 0)
        bucket.tat_ns = _ns(now_s) + bucket._depth_ns
        return bucket

    def available(self, now_s: float) -> int:
        """Permits to be had now."""
        if not self.rate_per_s:
            return 0
        free_ns = self._depth_ns - max(0, self.tat_ns - _ns(now_s))
        return max(0, free_ns // self._interval_ns)

    def is_full(self, now_s: float) -> bool:
        return self.tat_ns <= _ns(now_s)

    def take(self, wanted: int, now_s: float) -> int:
        """At most ``wanted`` permits."""
        given = min(wanted, self.available(now_s))
        if given <= 0:
            return 0
        now_ns = _ns(now_s)
        ahead_ns = max(0, self.tat_ns - now_ns)
        self.tat_ns = now_ns + ahead_ns + given * self._interval_ns
        self._remember(ahead_ns)
        return given

    def put_back(self, unused: int, take: int) -> None:
        """Permits that were certainly never used, of the take with this number or of later ones."""
        if unused <= 0 or not self.rate_per_s or take < self._numbers[0]:
            return
        first = bisect_right(self._numbers, take)  # of what was taken since
        back_ns = unused * self._interval_ns
        if first < len(self._numbers):
            back_ns = min(back_ns, self._aheads_ns[first])
            for later in range(first, len(self._numbers)):
                self._aheads_ns[later] -= back_ns
            for earlier in range(first):
                self._aheads_ns[earlier] = min(self._aheads_ns[earlier], self._aheads_ns[first])
        self.tat_ns -= back_ns

    def wait_s(self, now_s: float, wanted: int = 1) -> float:
        """Seconds until so many permits (at most ``burst``) are there; 0 when they are."""
        if not self.rate_per_s:
            return NEVER_S
        needed_ns = min(max(1, wanted), self.burst) * self._interval_ns
        return max(0, self.tat_ns + needed_ns - self._depth_ns - _ns(now_s)) / _NS

    def change(self, rate_per_s: float, burst: int, now_s: float) -> None:
        """Go on under another rate: what is available stays, up to the new burst. What was taken
        before does not come back."""
        kept = min(self.available(now_s), burst)
        self._bound(rate_per_s, burst)
        self.tat_ns = _ns(now_s) + (burst - kept) * self._interval_ns

    def _bound(self, rate_per_s: float, burst: int) -> None:
        if not (0 <= rate_per_s <= RATE_PER_S_MAX and burst >= 1):
            raise ValueError(
                f"rate {rate_per_s} and burst {burst}: expected a rate from 0 to "
                "1,000,000 per second and a burst of at least 1"
            )
        self.rate_per_s, self.burst = rate_per_s, burst
        self._interval_ns = ceil(_NS / rate_per_s) if rate_per_s else _NS
        self._depth_ns = burst * self._interval_ns
        # By the number of a take: how far ahead the TAT was before it, or before a later one, where
        # that is less. Both lists grow upwards; the first entry ends what is not remembered.
        self.takes += 1
        self._numbers = [self.takes]
        self._aheads_ns = [0]

    def _remember(self, ahead_ns: int) -> None:
        self.takes += 1
        numbers, aheads_ns = self._numbers, self._aheads_ns
        while len(aheads_ns) > 1 and aheads_ns[-1] >= ahead_ns:
            numbers.pop()
            aheads_ns.pop()
        numbers.append(self.takes)
        aheads_ns.append(ahead_ns)
        if len(numbers) > TAKES_REMEMBERED:
            del numbers[0], aheads_ns[0]


def _ns(seconds: float) -> int:
    return int(seconds * _NS)
