"""The live segments of one shard: who has to be asked about which of them, and their answers.

Owns what waits to be asked (people, each with the segments that a change or the time may have
moved), the next flips, and the segments that are to be evaluated whole. Pure but for the reads:
whoever drives it (``actors.evaluating``) gives a database pinned to one committed state and now,
and puts the answers into effect as commands.

**Invariant:** whoever changes is asked about a state in which the change is committed, and an
answer is only ever compared with what is on record, so an answer of an older state that arrives
later is put right by the question that the change has put into the queue. An evaluation of a whole
segment runs beside the rounds and would undo what they found; so all who were asked meanwhile are
asked again when it is in effect (``Recorder``).

After a crash nothing is known of what waited: every segment is evaluated whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from manta.command import Database
from manta.people.definitions import SEGMENT
from manta.people.memberships import WANTED
from manta.rules.loading import load
from manta.rules.nodes import LastMessages, walk
from manta.rules.person import Person
from manta.rules.scope import Touches
from manta.schema import RETENTION
from manta.segments.flips import NEVER, Flips, Ids, micros_of
from manta.segments.index import NONE, Index, LiveSegment, Segments, read_index
from manta.segments.notes import Taken
from manta.segments.touched import by_person, touched, with_addresses

ROUND_PEOPLE = 500  # asked at once: a quarter of a second with 20 events each and a hundred rules
BULK_PEOPLE = 20_000  # touched at once: from about here SQL over everybody is cheaper
WAITING_MAX = 100_000
# Why a segment is evaluated whole; stands in the history of the moves that it brings.
RULE = "rule"  # and of every other move of a live segment

_OVER = """
WITH over AS (
    SELECT id::INTEGER AS id FROM definitions WHERE kind = ? AND (body IS NULL
    OR (coalesce(json_extract_string(body, '$.type'), 'rule') = 'rule'
        AND coalesce(json_extract_string(body, '$.live'), 'false') <> 'true')))
SELECT id FROM over WHERE id IN (SELECT segment_id FROM segment_days)
OR id IN (SELECT unnest(segments) FROM memberships) ORDER BY id
"""


class Round(NamedTuple):
    """What one round found. ``moves`` (``WANTED``) is to be applied; where that fails for now,
    ``asked`` goes back into the queue."""

    moves: pa.Table
    asked: Mapping[int, Segments]
    questions: int  # closures called


class Recorder:
    """Who was asked, or has gone, since it was made."""

    def __init__(self) -> None:
        self.people: set[int] = set()
        self.everybody = False


@dataclass
class LiveSegments:
    """See the module. ``round`` and ``begin`` are for one thread, the others for any."""

    zone: str
    flips: Flips = field(default_factory=Flips)
    troubles: dict[int, str] = field(default_factory=dict)  # of closures that raised, by segment
    removed: set[int] = field(default_factory=set)  # segments that are over and may have members

    def __post_init__(self) -> None:
        self.index = Index(self.zone)
        self._lock = threading.Lock()
        self._waiting: dict[int, Segments] = {}
        self._whole: dict[int, None] = {}
        self._recorders: list[Recorder] = []
        self._wanted: dict[Segments, Touches] = {}
        self._lost = False  # what was taken and not looked at to the end

    # -- what is to be done ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many people wait to be asked."""
        return len(self._waiting)

    @property
    def whole(self) -> int:
        """How many segments wait to be evaluated whole."""
        return len(self._whole)

    def ask(self, people: Mapping[int, Segments]) -> None:
        """Put people into the queue; those who wait already wait for these segments as well."""
        with self._lock:
            for id, segments in people.items():
                known = self._waiting.get(id)
                self._waiting[id] = segments if known is None else known | segments
            if len(self._waiting) > WAITING_MAX:
                self._waiting.clear()
                self._mark(self.index.all)

    def ask_whole(self, segments: Iterable[int]) -> None:
        with self._lock:
            self._mark(segments)

    def take_whole(self, most: int) -> tuple[list[LiveSegment], Recorder]:
        """The next segments to be evaluated whole; give the recorder back with ``taken_whole``."""
        with self._lock:
            ids = list(islice(self._whole, most))
            for id in ids:
                del self._whole[id]
            recorder = Recorder()
            self._recorders.append(recorder)
        return [self.index.segments[id] for id in ids if id in self.index.segments], recorder

    def record(self) -> Recorder:
        recorder = Recorder()
        with self._lock:
            self._recorders.append(recorder)
        return recorder

    def stop_recording(self, recorder: Recorder) -> None:
        with self._lock:
            self._recorders = [one for one in self._recorders if one is not recorder]

    def taken_whole(self, recorder: Recorder, segments: Segments, moved: Ids) -> None:
        """These segments are in effect as of when they were taken; those of the people ``moved``
        who were asked meanwhile are asked again."""
        self.stop_recording(recorder)
        if recorder.everybody:
            self.ask_whole(segments)
        else:
            again = recorder.people.intersection(moved.tolist())
            self.ask(dict.fromkeys(again, segments))

    def _mark(self, segments: Iterable[int]) -> None:
        self._whole.update(dict.fromkeys(segments))

    def of_waiting(self, people: Iterable[int]) -> set[int]:
        """Those of the people who wait to be asked."""
        with self._lock:
            return {id for id in people if id in self._waiting}

    # -- a round -----------------------------------------------------------------------------------

    def begin(self, database: Database) -> None:
        """After a recovery: whatever may have been missed is found by evaluating everything."""
        self.index = read_index(database, self.zone)
        self.removed |= {id for (id,) in database.rows(_OVER, [SEGMENT])}
        self.ask_whole(self.index.all)

    def lose(self) -> None:
        """What was taken never came to a round: the next one has everything evaluated whole."""
        self._lost = True

    def round(self, database: Database, taken: Taken, now: datetime) -> Round:
        """Look at what was committed, then ask some of those who wait.

        ``database`` holds on to a state in which all that was ``taken`` is committed.
        """
        taken = taken._replace(lost=taken.lost or self._lost)
        self._lost = True
        self._look_at(taken, database)
        self._lost = False
        self._look_at_time(now)
        with self._lock:
            ids = list(islice(self._waiting, ROUND_PEOPLE))
            asked = {id: self._waiting.pop(id) for id in ids}
            for recorder in self._recorders:
                recorder.people.update(ids)
        asked = {id: segments & self.index.all for id, segments in asked.items()}
        try:
            return self._ask(database, asked, now)
        except BaseException:
            self.ask(asked)
            raise

    def _look_at(self, taken: Taken, database: Database) -> None:
        found = touched(taken.changes, self.index)
        if found.segments_defined or taken.lost:
            self._redefine(database)
            found = touched(taken.changes, self.index)
        if taken.lost:
            with self._lock:
                self._mark(self.index.all)
                for recorder in self._recorders:
                    recorder.everybody = True
            return
        for ids in found.gone:
            self.flips.forget(np.unique(ids))
        with_addresses(found, self.index, database)
        people, whole = by_person(found.pieces, BULK_PEOPLE)
        if any(change.table == RETENTION.name for change in taken.changes):
            # The last messages are those in memory, and some have just left it.
            whole |= {id for id, one in self.index.segments.items() if _asks_for_messages(one)}
        if whole:
            with self._lock:
                self._mark(whole)
                for recorder in self._recorders:
                    recorder.everybody = True
        if people:
            self.ask(people)

    def _redefine(self, database: Database) -> None:
        before = self.index.segments
        self.index = read_index(database, self.zone, self.index)
        self._wanted.clear()
        after = self.index.segments
        self.ask_whole(id for id, one in after.items() if before.get(id) is not one)
        self.removed |= {id for (id,) in database.rows(_OVER, [SEGMENT])}
        with self._lock:
            self._whole = {id: None for id in self._whole if id in after}

    def _look_at_time(self, now: datetime) -> None:
        """Those whose flip has come wait to be asked about all that time moves. Too many of them
        (a fixed day has come) are not asked one by one."""
        due = self.flips.due(now)
        if len(due) > BULK_PEOPLE:
            self.flips.passed(now)
            self.ask_whole(self.index.timed)
        elif len(due):
            self.ask(dict.fromkeys(due.tolist(), self.index.timed))

    def _ask(self, database: Database, asked: Mapping[int, Segments], now: datetime) -> Round:
        people, index = self._loaded(database, asked), self.index
        segments, timed = index.segments, index.timed
        found: list[tuple[int, int, bool]] = []
        flips: list[int] = []
        questions = 0
        for id, person in people.items():
            flip = NEVER
            for number in asked[id]:
                closure = segments[number].closure
                questions += 1
                try:
                    holds = closure(person, now)
                    at = closure.flips_at(person, now) if number in timed else None
                except Exception as error:  # one rule that errs must not stop the others
                    self.troubles[number] = f"{type(error).__name__}: {error}"
                    continue
                if holds != (number in person.memberships):
                    found.append((id, number, holds))
                if at is not None:
                    flip = min(flip, micros_of(at))
            flips.append(flip)
        ids = np.fromiter(people, np.int64, len(people))
        self.flips.update(ids, np.array(flips, np.int64), now)
        gone = [id for id in asked if id not in people]
        if gone:
            self.flips.forget(np.array(gone, np.int64))
        return Round(_moves(found), asked, questions)

    def _loaded(self, database: Database, asked: Mapping[int, Segments]) -> dict[int, Person]:
        segments = NONE.union(*set(asked.values()))
        if not segments:
            return {}
        wanted = self._wanted.get(segments)
        if wanted is None:
            if len(self._wanted) > 1_000:
                self._wanted.clear()
            wanted = self.index.touches(segments)
            # Answers are compared with the memberships on record.
            wanted = replace(wanted, segments=wanted.segments | segments)
            self._wanted[segments] = wanted
        return load(database, list(asked), wanted)


def _asks_for_messages(segment: LiveSegment) -> bool:
    return any(isinstance(node, LastMessages) for node in walk(segment.rule))


def _moves(found: Sequence[tuple[int, int, bool]]) -> pa.Table:
    columns = zip(*found, strict=True) if found else ((), (), ())
    return pa.table(list(map(list, columns)), schema=WANTED)
