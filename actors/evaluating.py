"""Live segments beside a shard's writer: rounds over those who changed, whole evaluations, drift.

Owns a ``LiveSegments``, one thread for rounds and one for whole segments. **Invariant:** only the
shard's mailbox changes memberships, and nothing here is waited for by the writer: a full mailbox is
tried again, an error is logged, counted, and its segments are evaluated whole later.

Rounds clock themselves: the first change is looked at once, the next ``round_gap_s`` later, with
all that came meanwhile; a flip waits until ``flips_gap_s`` after the last one. Without changes and
flips both threads sleep. On a crash nothing is lost that a whole evaluation at the next start does
not find.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from manta.clock import Clock, as_text
from manta.command import Command
from manta.errors import MantaError, NotReady, RetryableError
from manta.people.memberships import WANTED, ApplyMemberships, RemoveMembers
from manta.segments.flips import Ids
from manta.segments.index import LiveSegment
from manta.segments.live import LiveSegments, Recorder, Round
from manta.segments.notes import Notes, Taken
from manta.segments.whole import flips, moves
from manta.store.database import Reader
from manta.store.shard import ShardStore

T = TypeVar("T")
logger = logging.getLogger("manta.actors.evaluating")
CLOCK_LOOK_S = 3_600.0  # a clock that was set is noticed after this at the latest
Execute = Callable[[Sequence[Command]], Awaitable[list[Any]]]


@dataclass(frozen=True)
class EvaluatingSettings:
    round_gap_s: float = 0.1
    flips_gap_s: float = 0.4
    whole_rows_max: int = 2_000_000  # moves that are held before they are put into effect
    apply_rows: int = 5_000  # of one command: how long the writer is held
    drift_every_s: float = 86_400.0
    settle_timeout_s: float = 30.0
    pause_s: float = 0.05  # after a refusal; twice as long each time, up to
    pause_max_s: float = 5.0
    trouble_retry_s: float = 60.0  # until what erred is evaluated whole


@dataclass
class EvaluatingFigures:
    """Counts since the start of this process."""

    segment_rounds: int = 0
    people_asked: int = 0
    rules_asked: int = 0
    memberships_moved: int = 0
    whole_evaluations: int = 0
    evaluating_failed: int = 0
    drift_checks: int = 0
    drift_found: int = 0


class Evaluating:
    """``execute`` puts commands into the shard's own mailbox."""

    def __init__(
        self,
        store: ShardStore,
        notes: Notes,
        execute: Execute,
        clock: Clock,
        settings: EvaluatingSettings | None = None,
    ) -> None:
        self.settings = settings or EvaluatingSettings()
        self.figures = EvaluatingFigures()
        self._store, self._notes, self._execute, self._clock = store, notes, execute, clock
        zone = str(store.context().settings.get("time_zone") or "UTC")
        self._zone = zone
        self.live = LiveSegments(zone)
        self._round_thread = ThreadPoolExecutor(1, "shard-segments")
        self._whole_thread = ThreadPoolExecutor(1, "shard-whole")
        self._reader: Reader | None = None
        self._came, self._whole_came = asyncio.Event(), asyncio.Event()
        self._last_round_s = self._last_flips_s = -1e9
        self._next_flip: datetime | None = None
        self._unsettled_s: list[float] = []  # commits of which somebody still waits to be asked
        self._lags_s: deque[float] = deque(maxlen=10_000)
        self._awaited: list[asyncio.Future[None]] = []
        self._one_check = asyncio.Lock()
        self._last_drift: dict[str, Any] | None = None

    # -- life ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """After a commit, on the loop."""
        if self._notes:
            self._came.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self._patiently(self._begin)
        await asyncio.gather(self._rounds(), self._wholes())

    def close(self) -> None:
        """When ``run`` has ended."""
        for thread in (self._round_thread, self._whole_thread):
            thread.shutdown(wait=True)
        if self._reader is not None:
            self._reader.close()

    def status(self) -> dict[str, Any]:
        lags_s = sorted(self._lags_s)
        drift = self._last_drift
        return {
            **asdict(self.figures),
            "live_segments": len(self.live.index.segments),
            "broken_segments": dict(self.live.index.broken),
            "segment_troubles": dict(self.live.troubles),
            "people_waiting": self.live.waiting,
            "segments_waiting": self.live.whole,
            "people_timed": len(self.live.flips),
            "next_flip": as_text(self._next_flip) if self._next_flip else None,
            "membership_lag_p50_s": _quantile(lags_s, 0.5),
            "membership_lag_p99_s": _quantile(lags_s, 0.99),
            "last_drift_check": drift["checked_at"] if drift else None,
            "last_drift": drift["segments"] if drift else None,
        }

    async def _begin(self) -> None:
        await self._in(self._round_thread, lambda: self._pinned(self.live.begin))
        self._whole_came.set()

    # -- rounds ----------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        while True:
            await self._until_due()
            await self._patiently(self._round)

    async def _until_due(self) -> None:
        """Sleep until there is a change, somebody waits, a flip is due, or a round is awaited."""
        pause_s = self._last_round_s + self.settings.round_gap_s - self._clock.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        while not (self._notes or self.live.waiting or self._awaited):
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self._flips_in_s())
            except TimeoutError:
                if self._flips_in_s() == 0:
                    return

    def _flips_in_s(self) -> float | None:
        if self._next_flip is None:
            return None
        due_s = (self._next_flip - self._store.context().now).total_seconds()
        gap_s = self._last_flips_s + self.settings.flips_gap_s - self._clock.monotonic()
        return max(0.0, min(due_s, CLOCK_LOOK_S), gap_s)

    async def _round(self) -> None:
        awaited = list(self._awaited)
        began_s = self._clock.monotonic()
        self._last_round_s = began_s
        if self._flips_in_s() == 0:
            self._last_flips_s = began_s
        taken = self._notes.take()
        self._unsettled_s += taken.committed_s
        try:
            found = await self._in(
                self._round_thread,
                lambda: self._pinned(lambda reader: self._look(reader, taken)),
            )
        except BaseException:
            self.live.lose()
            raise
        self._wake_whole()
        if found.moves.num_rows:
            try:
                await self._apply(found.moves, "rule")
            except BaseException:
                self.live.ask(found.asked)
                raise
        self._next_flip = self.live.flips.earliest()
        self.figures.segment_rounds += 1
        self.figures.people_asked += len(found.asked)
        self.figures.rules_asked += found.questions
        if not self.live.waiting:
            ended_s = self._clock.monotonic()
            self._lags_s.extend(ended_s - at_s for at_s in self._unsettled_s)
            self._unsettled_s.clear()
        for future in awaited:
            self._awaited.remove(future)
            if not future.done():
                future.set_result(None)

    def _look(self, reader: Reader, taken: Taken) -> Round:
        before = set(self.live.troubles)
        found = self.live.round(reader, taken, self._store.context().now)
        for id in set(self.live.troubles) - before:
            logger.error("segment %s cannot be asked: %s", id, self.live.troubles[id])
        return found

    def _wake_whole(self) -> None:
        if self.live.troubles:
            self._retry_whole(list(self.live.troubles))
            self.live.troubles.clear()
        if self.live.whole or self.live.removed:
            self._whole_came.set()

    def _retry_whole(self, segments: Sequence[int]) -> None:
        """Segments about which something went wrong, a while later."""
        self.figures.evaluating_failed += 1

        def ask() -> None:
            self.live.ask_whole(segments)
            self._whole_came.set()

        asyncio.get_running_loop().call_later(self.settings.trouble_retry_s, ask)

    def _pinned(self, work: Callable[[Reader], T]) -> T:
        """On the rounds' own cursor, pinned to what is committed now."""
        reader = self._reader
        if reader is None:
            reader = self._reader = self._store.reader()
        try:
            reader.pin()
            result = work(reader)
            reader.release()
            return result
        except BaseException:
            self._reader = None
            reader.close()
            raise

    async def settled(self) -> bool:
        """Whether all that is committed now has been looked at and put into effect in time."""
        until_s = self._clock.monotonic() + self.settings.settle_timeout_s
        while True:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaited.append(future)
            self._came.set()
            try:
                await asyncio.wait_for(future, max(0.0, until_s - self._clock.monotonic()))
            except TimeoutError:
                return False
            if not self.live.waiting:
                return True

    # -- putting into effect ---------------------------------------------------------------------

    async def _apply(self, moves: pa.Table, source: str) -> None:
        for start in range(0, moves.num_rows, self.settings.apply_rows):
            part = moves.slice(start, self.settings.apply_rows)
            answer = await self._run(ApplyMemberships(None, part, source))
            self.figures.memberships_moved += answer.entered + answer.left

    async def _run(self, command: Command) -> Any:
        """The command's answer, however often it has to be put into the mailbox."""
        pause_s = self.settings.pause_s
        while True:
            try:
                (answer,) = await self._execute([command])
            except NotReady:
                raise asyncio.CancelledError from None  # the process ends
            except RetryableError as error:
                answer = error
            if not isinstance(answer, MantaError):
                return answer
            if not isinstance(answer, RetryableError):
                raise answer
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.settings.pause_max_s)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, again after a while where it fails."""
        pause_s = self.settings.pause_s
        while True:
            try:
                return await work()
            except Exception as error:  # the loop's edge
                self.figures.evaluating_failed += 1
                logger.error("live segments: %s failed, again soon", work.__name__, exc_info=error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.settings.pause_max_s)

    # -- whole segments ----------------------------------------------------------------------------

    async def _wholes(self) -> None:
        next_check_s = self._clock.monotonic() + self.settings.drift_every_s
        while True:
            if not (self.live.whole or self.live.removed):
                self._whole_came.clear()
                wait_s = max(0.0, next_check_s - self._clock.monotonic())
                try:
                    await asyncio.wait_for(self._whole_came.wait(), wait_s)
                except TimeoutError:
                    next_check_s = self._clock.monotonic() + self.settings.drift_every_s
                    await self._patiently(self._daily_check)
                    continue
            await self._patiently(self._remove)
            await self._patiently(self._evaluate_whole)

    async def _remove(self) -> None:
        """The members of segments that are no more."""
        while self.live.removed:
            id = min(self.live.removed)
            if id not in self.live.index.segments:
                while (await self._run(RemoveMembers(None, id, "deleted"))).left:
                    pass
            self.live.removed.discard(id)

    async def _evaluate_whole(self) -> None:
        segments, recorder = self.live.take_whole(len(self.live.index.segments))
        ids = frozenset(segment.id for segment in segments)
        moved = np.empty(0, np.int64)
        try:
            moved_rows = await self._in(self._whole_thread, lambda: self._evaluated(segments))
            moved = moved_rows["subscriber_id"].unique().to_numpy()
            await self._apply(moved_rows, "rule")
        except BaseException:
            self.live.stop_recording(recorder)
            self.live.ask_whole(ids)
            raise
        self.live.taken_whole(recorder, ids, moved)
        self._note_flips()
        self._wake_whole()

    def _note_flips(self) -> None:
        self._next_flip = self.live.flips.earliest()
        self._came.set()

    def _evaluated(self, segments: Sequence[LiveSegment]) -> pa.Table:
        """Their moves by person, so that each person's row is written once; what is beyond the
        limit goes back. Flips are said first (see ``flips``)."""
        self.live.flips.include(*self._beside(lambda r, now: flips(r, segments, now, self._zone)))
        found: list[pa.Table] = []
        rows = 0
        for place, segment in enumerate(segments):
            if rows > self.settings.whole_rows_max:
                self.live.ask_whole(segment.id for segment in segments[place:])
                break
            try:
                moved = self._beside(lambda r, now, s=segment: moves(r, s, now, self._zone))
            except Exception as error:
                logger.error("segment %s cannot be evaluated", segment.id, exc_info=error)
                self.live.troubles[segment.id] = f"{type(error).__name__}: {error}"
                continue
            self.figures.whole_evaluations += 1
            rows += moved.num_rows
            found.append(moved)
        return _sorted(found)

    def _beside(self, read: Callable[[Reader, datetime], T]) -> T:
        """A read of what is committed now, on a cursor of its own."""
        reader = self._store.reader()
        try:
            reader.pin()
            return read(reader, self._store.context().now)
        finally:
            reader.close()

    # -- drift -------------------------------------------------------------------------------------

    async def _daily_check(self) -> None:
        await self.check_drift()

    async def check_drift(self) -> dict[str, Any]:
        """Evaluate every live segment whole, compare with its members, and put right what differs.

        A difference counts where it is still there after everything committed before has been
        looked at, and the person was not asked meanwhile. Answers ``checked_at``, and for each
        segment with differences how many people were ``missing`` and ``wrong`` in it.
        """
        async with self._one_check:
            checked_at = self._store.context().now
            recorder = self.live.record()
            try:
                moves = await self._drifted(recorder)
            finally:
                self.live.stop_recording(recorder)
            if moves.num_rows:
                await self._apply(moves, "drift")
            report = self._drift_report(moves, checked_at)
        self._last_drift = report
        self.figures.drift_checks += 1
        self.figures.drift_found += moves.num_rows
        return report

    async def _drifted(self, recorder: Recorder) -> pa.Table:
        segments = list(self.live.index.segments.values())
        first = await self._in(self._whole_thread, lambda: self._evaluated(segments))
        self._note_flips()
        if not first.num_rows:
            return first
        await self.settled()
        second = await self._in(self._whole_thread, lambda: self._still(segments, first))
        if not second.num_rows:
            return second
        await self.settled()
        people = second["subscriber_id"].to_numpy()
        left_out = recorder.people | self.live.of_waiting(people.tolist())
        due = self.live.flips.is_due(people, self._store.context().now)
        here = [
            id not in left_out and not late
            for id, late in zip(people.tolist(), due.tolist(), strict=True)
        ]
        return second.filter(pa.array(here, pa.bool_()))

    def _still(self, segments: Sequence[LiveSegment], first: pa.Table) -> pa.Table:
        """What of these differences is there now as well."""
        numbers = first["segment_id"].to_numpy()
        people = first["subscriber_id"].to_numpy()
        found = []
        for segment in segments:
            among: Ids = people[numbers == segment.id]
            if not len(among):
                continue
            ids = among.tolist()
            found.append(
                self._beside(lambda r, now, s=segment, ids=ids: moves(r, s, now, self._zone, ids))
            )
        return _sorted(found)

    def _drift_report(self, moves: pa.Table, checked_at: datetime) -> dict[str, Any]:
        rows = zip(moves["segment_id"].to_pylist(), moves["member"].to_pylist(), strict=True)
        counts = Counter(rows)
        segments = {
            id: {"missing": counts[id, True], "wrong": counts[id, False]}
            for id in sorted({id for id, _ in counts})
        }
        for id, found in segments.items():
            logger.error("segment %s had drifted and was put right: %s", id, found)
        return {"checked_at": as_text(checked_at), "segments": segments}

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)


def _sorted(moves: Sequence[pa.Table]) -> pa.Table:
    if not moves:
        return WANTED.empty_table()
    return pa.concat_tables(moves).sort_by("subscriber_id")


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
