"""When each person has to be asked again: the earliest instant at which time alone could change an
answer about them, over all live rules.

Two arrays, ids and instants, sorted by id: 16 bytes a person. New people wait in a small dict until
they are worth a merge. An instant is a lower bound, so one that is too early costs one evaluation
and one that is lost is a mistake. Nothing here is durable: after a recovery every rule is evaluated
whole, which says the instants anew.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Instants = npt.NDArray[np.int64]  # microseconds since 1970

NEVER = np.iinfo(np.int64).max
_EPOCH = datetime(1970, 1, 1)
_TICK = timedelta(microseconds=1)
_RECENT_MAX = 4_096


def micros_of(instant: datetime) -> int:
    return (instant - _EPOCH) // _TICK


def instant_of(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


class Flips:
    """Next flips by person. Each method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: Ids = np.empty(0, np.int64)
        self._at: Instants = np.empty(0, np.int64)
        self._recent: dict[int, int] = {}

    def __len__(self) -> int:
        """How many people time alone may move."""
        with self._lock:
            return int(np.count_nonzero(self._at != NEVER)) + len(self._recent)

    @property
    def nbytes(self) -> int:
        return self._ids.nbytes + self._at.nbytes

    def update(self, ids: Ids, at: Instants, now: datetime) -> None:
        """Some rules were asked at ``now`` about these people (each once) and may flip at ``at``
        (``NEVER``: time does not move them): the least of that and what was known holds. What was
        known and has passed is over.
        """
        if not len(ids):
            return
        passed = micros_of(now)
        with self._lock:
            places, there = self._places(ids)
            old = self._at[places[there]]
            old = np.where(old > passed, old, NEVER)
            self._at[places[there]] = np.minimum(old, at[there])
            for id, moment in zip(ids[~there].tolist(), at[~there].tolist(), strict=True):
                known = self._recent.get(id, NEVER)
                known = min(known if known > passed else NEVER, moment)
                if known != NEVER:
                    self._recent[id] = known
                else:
                    self._recent.pop(id, None)
            if len(self._recent) > _RECENT_MAX:
                self._merge()

    def include(self, ids: Ids, at: Instants) -> None:
        """Many flips of one rule at once, in any order: each counts if it is earlier than what is
        known."""
        if not len(ids):
            return
        order = np.argsort(ids, kind="stable")
        ids, at = ids[order], at[order]
        first = np.concatenate([[True], ids[1:] != ids[:-1]])
        ids, at = ids[first], np.minimum.reduceat(at, np.flatnonzero(first))
        with self._lock:
            self._merge()
            places, there = self._places(ids)
            known = places[there]
            self._at[known] = np.minimum(self._at[known], at[there])
            if not there.all():
                self._insert(ids[~there], at[~there])

    def earliest(self) -> datetime | None:
        """The first flip of all."""
        with self._lock:
            least = int(self._at.min(initial=NEVER))
            if self._recent:
                least = min(least, min(self._recent.values()))
        return None if least == NEVER else instant_of(least)

    def due(self, now: datetime, most: int | None = None) -> Ids:
        """The people whose flip has come, at most so many."""
        by = micros_of(now)
        with self._lock:
            found = self._ids[self._at <= by]
            recent = [id for id, moment in self._recent.items() if moment <= by]
        due = np.concatenate([found, np.array(recent, np.int64)])
        return due if most is None else due[:most]

    def is_due(self, ids: Ids, now: datetime) -> npt.NDArray[np.bool_]:
        """Of each of these people whether their flip has come."""
        by = micros_of(now)
        with self._lock:
            places, there = self._places(ids)
            due = np.zeros(len(ids), bool)
            due[there] = self._at[places[there]] <= by
            for place in np.flatnonzero(~there).tolist():
                due[place] = self._recent.get(int(ids[place]), NEVER) <= by
        return due

    def passed(self, now: datetime) -> None:
        """Forget what was due: every rule that time moves has been asked of everybody since."""
        by = micros_of(now)
        with self._lock:
            self._at[self._at <= by] = NEVER
            self._recent = {id: moment for id, moment in self._recent.items() if moment > by}

    def forget(self, ids: Ids) -> None:
        """These people are gone."""
        with self._lock:
            places, there = self._places(ids)
            self._at[places[there]] = NEVER
            for id in ids[~there].tolist():
                self._recent.pop(id, None)

    def _places(self, ids: Ids) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        places = np.searchsorted(self._ids, ids)
        inside = places < len(self._ids)
        there = np.zeros(len(ids), bool)
        there[inside] = self._ids[places[inside]] == ids[inside]
        return places, there

    def _merge(self) -> None:
        if self._recent:
            ids = np.fromiter(self._recent.keys(), np.int64, len(self._recent))
            at = np.fromiter(self._recent.values(), np.int64, len(self._recent))
            self._recent = {}
            order = np.argsort(ids)
            self._insert(ids[order], at[order])

    def _insert(self, ids: Ids, at: Instants) -> None:
        """Sorted people who are not there yet; room of those whom time does not move is used."""
        alive = self._at != NEVER
        kept, kept_at = self._ids[alive], self._at[alive]
        places = np.searchsorted(kept, ids)
        self._ids = np.insert(kept, places, ids)
        self._at = np.insert(kept_at, places, at)
