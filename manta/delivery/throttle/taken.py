"""What a Sender has taken on a lane of late: so that only what it took may come back.

Permits come back a little later, when the lease that was to use them has turned out smaller.
They are put down to the oldest grants that are remembered, which is the cautious way: a bucket
gives the less back, the more was taken since.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime

from manta.delivery.throttle.gates import PERMIT_VALID_S, Gate
from manta.delivery.throttle.warmup import Quota

TOGETHER_S = 0.5  # grants within this time are remembered as one
KEPT_S = 2 * PERMIT_VALID_S


@dataclass(slots=True)
class _Taken:
    at_s: float
    permits: int
    gates: tuple[Gate, ...]
    takes: tuple[int, ...]  # the number of the take at each gate's bucket
    quota: Quota | None
    used_at: datetime


class Takings:
    """Of one Sender on one lane."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: deque[_Taken] = deque()

    def took(
        self,
        permits: int,
        gates: tuple[Gate, ...],
        quota: Quota | None,
        now_s: float,
        now: datetime,
    ) -> None:
        held = self._held
        while held and now_s - held[0].at_s > KEPT_S:
            held.popleft()
        if held and held[-1].gates is gates and now_s - held[-1].at_s < TOGETHER_S:
            held[-1].permits += permits
            return
        takes = tuple(gate.bucket.takes for gate in gates)
        held.append(_Taken(now_s, permits, gates, takes, quota, now))

    def put_back(self, unused: int, now_s: float) -> int:
        """So many of them were never used; how many it had indeed."""
        left = unused
        while left > 0 and self._held:
            taken = self._held[0]
            back = min(left, taken.permits)
            if now_s - taken.at_s <= KEPT_S:
                for gate, take in zip(taken.gates, taken.takes, strict=True):
                    gate.bucket.put_back(back, take)
                if taken.quota is not None:
                    taken.quota.put_back(back, taken.used_at)
                left -= back
            taken.permits -= back
            if not taken.permits:
                self._held.popleft()
        return unused - left

    def is_old(self, now_s: float) -> bool:
        return not self._held or now_s - self._held[-1].at_s > KEPT_S
