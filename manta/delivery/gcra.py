"""GCRA: the generic cell rate algorithm, a leaky bucket in one number.

A bucket gives at most ``burst`` permits at once and ``rate_per_s`` in the long run: in any span of
*t* seconds never more than ``rate_per_s * t + burst``. All it remembers is the theoretical arrival
time (TAT) of the next permit (ITU-T I.371, virtual scheduling). Time is an integer of nanoseconds
here, and the interval between permits is rounded up, so no rounding ever gives a permit too many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

_NS = 1_000_000_000
NEVER_S = 60.0  # what a bucket without any rate tells its callers to wait


@dataclass(frozen=True)
class Bucket:
    """A bucket as a value; taking from it gives the next one. Times are monotonic seconds."""

    rate_per_s: float  # 0: gives nothing
    burst: int
    tat_ns: int

    @classmethod
    def full(cls, rate_per_s: float, burst: int, now_s: float) -> Bucket:
        return cls(rate_per_s, burst, _ns(now_s))._checked()

    @classmethod
    def empty(cls, rate_per_s: float, burst: int, now_s: float) -> Bucket:
        """Gives its first permit after one interval and fills up from there."""
        bucket = cls(rate_per_s, burst, 0)._checked()
        return replace(bucket, tat_ns=_ns(now_s) + bucket._depth_ns)

    def available(self, now_s: float) -> int:
        """Permits to be had now."""
        if not self.rate_per_s:
            return 0
        ahead_ns = max(0, self.tat_ns - _ns(now_s))
        return max(0, (self._depth_ns - ahead_ns) // self._interval_ns)

    def take(self, wanted: int, now_s: float) -> tuple[int, Bucket]:
        """At most ``wanted`` permits, and the bucket that is left."""
        given = min(max(0, wanted), self.available(now_s))
        if not given:
            return 0, self
        tat_ns = max(self.tat_ns, _ns(now_s)) + given * self._interval_ns
        return given, replace(self, tat_ns=tat_ns)

    def put_back(self, unused: int) -> Bucket:
        """With permits that were taken and certainly never used. Never fuller than full."""
        if unused <= 0 or not self.rate_per_s:
            return self
        return replace(self, tat_ns=self.tat_ns - unused * self._interval_ns)

    def wait_s(self, now_s: float, wanted: int = 1) -> float:
        """Seconds until so many permits (at most ``burst``) are there; 0 when they are."""
        if not self.rate_per_s:
            return NEVER_S
        needed_ns = min(max(1, wanted), self.burst) * self._interval_ns
        return max(0, self.tat_ns + needed_ns - self._depth_ns - _ns(now_s)) / _NS

    def changed(self, rate_per_s: float, burst: int, now_s: float) -> Bucket:
        """The same bucket under another rate: what is available stays, up to the new burst."""
        other = Bucket(rate_per_s, burst, 0)._checked()
        kept = min(self.available(now_s), burst) if rate_per_s else 0
        missing_ns = (burst - kept) * other._interval_ns
        return replace(other, tat_ns=_ns(now_s) + missing_ns)

    @property
    def _interval_ns(self) -> int:
        return ceil(_NS / self.rate_per_s) if self.rate_per_s else _NS

    @property
    def _depth_ns(self) -> int:
        return self.burst * self._interval_ns

    def _checked(self) -> Bucket:
        if not (0 <= self.rate_per_s <= 1e6 and self.burst >= 1):
            raise ValueError(
                f"rate {self.rate_per_s} and burst {self.burst}: expected a rate from 0 to "
                "1,000,000 per second and a burst of at least 1"
            )
        return self


def _ns(seconds: float) -> int:
    return int(seconds * _NS)
