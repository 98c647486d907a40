"""Who and what is in a shard's memory, told without asking the database.

Nearly every event is new and of somebody who is here; to find that out by SQL costs several times
what storing the event does. ``EventFilter`` says of most new event ids at once that they are new (a
blocked Bloom filter, Putze, Sanders and Singler 2007: one 64-bit word per id, four bits in it);
whoever it cannot clear is looked up. ``People`` has the ids of all profiles. Both follow what is
applied; neither is durable, both are made anew from the tables.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_WORDS_MIN = 1 << 14
_IDS_PER_WORD = 3  # at full load about one id in 300 is looked up for nothing
_SIX, _BITS, _WORD_AT = np.uint64(6), np.uint64(63), np.uint64(24)
_ONE = np.uint64(1)


class EventFilter:
    """The event ids in memory. Ids are hashes already (``manta.ids.hash64``)."""

    def __init__(self, ids: Ids) -> None:
        words = _WORDS_MIN
        while words * _IDS_PER_WORD < 2 * len(ids):
            words *= 2
        self._words = np.zeros(words, np.uint64)
        self._count = 0
        self.add(ids)

    @property
    def is_full(self) -> bool:
        """Whether it should be made anew, larger."""
        return self._count > len(self._words) * _IDS_PER_WORD

    def add(self, ids: Ids) -> None:
        for start in range(0, len(ids), 1 << 20):  # what it takes on the way stays small
            places, masks = self._placed(ids[start : start + (1 << 20)])
            np.bitwise_or.at(self._words, places, masks)
        self._count += len(ids)

    def may_hold(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """False: certainly not."""
        places, masks = self._placed(ids)
        found: npt.NDArray[np.bool_] = (self._words[places] & masks) == masks
        return found

    def _placed(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.uint64]]:
        hashes = ids.view(np.uint64)
        masks = _ONE << (hashes & _BITS)
        for n in (1, 2, 3):
            masks |= _ONE << ((hashes >> (_SIX * np.uint64(n))) & _BITS)
        places = (hashes >> _WORD_AT) & np.uint64(len(self._words) - 1)
        return places.astype(np.int64), masks


class People:
    """The subscriber ids that have a profile."""

    def __init__(self, ids: Ids) -> None:
        self._ids = np.sort(ids)
        self._added: set[int] = set()
        self._gone: set[int] = set()

    def add(self, ids: Iterable[int]) -> None:
        fresh = set(ids)
        self._added |= fresh
        self._gone -= fresh

    def remove(self, ids: Iterable[int]) -> None:
        gone = set(ids)
        self._added -= gone
        self._gone |= gone

    @property
    def is_scattered(self) -> bool:
        """Whether it should be made anew, in one piece."""
        return len(self._added) + len(self._gone) > 100_000

    def among(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of the ids have a profile."""
        places = np.searchsorted(self._ids, ids)
        places[places == len(self._ids)] = 0
        found = self._ids[places] == ids if len(self._ids) else np.zeros(len(ids), bool)
        if self._added or self._gone:
            for n, id in enumerate(ids.tolist()):
                found[n] = (found[n] and id not in self._gone) or id in self._added
        return found
