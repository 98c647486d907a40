"""The keys of committed commands, remembered for 48 hours.

Each is a 64-bit hash, in the generation of its day. A generation is a sorted array with a small
set of the latest before it, so that a key costs about 8 bytes. A generation is dropped when all of
it is older than 48 h, so a key is known for 48 to 72 hours. With ten million keys a day, two
different keys of one shard meet by chance about once in 150 years.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta

import numpy as np
import numpy.typing as npt

KEPT = timedelta(hours=48)
_RECENT_MAX = 50_000

Hashes = npt.NDArray[np.int64]


class KeyMemory:
    """A set of hashes in daily generations."""

    def __init__(self) -> None:
        self._sorted: dict[date, Hashes] = {}
        self._recent: dict[date, set[int]] = {}

    def __contains__(self, key_hash: int) -> bool:
        if any(key_hash in recent for recent in self._recent.values()):
            return True
        for hashes in self._sorted.values():
            at = int(np.searchsorted(hashes, key_hash))
            if at < len(hashes) and int(hashes[at]) == key_hash:
                return True
        return False

    def __len__(self) -> int:
        return sum(map(len, self._recent.values())) + sum(map(len, self._sorted.values()))

    def add(self, hashes: Iterable[int], at: datetime) -> None:
        """Remember hashes of commands committed at this instant."""
        recent = self._recent.setdefault(at.date(), set())
        recent.update(hashes)
        if len(recent) > _RECENT_MAX:
            self.add_array(np.fromiter(recent, np.int64, len(recent)), at.date())
            recent.clear()

    def add_array(self, hashes: Hashes, day: date) -> None:
        """Remember many hashes of one day at once."""
        held = self._sorted.get(day, np.empty(0, np.int64))
        self._sorted[day] = np.union1d(held, hashes)

    def forget(self, now: datetime) -> None:
        """Drop the generations that are older than 48 h as a whole."""
        oldest = (now - KEPT).date()
        for generations in (self._sorted, self._recent):
            for day in [day for day in generations if day < oldest]:
                del generations[day]
