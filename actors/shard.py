"""The actor of one shard: a bounded mailbox, one writer, readers beside it.

Owns a ``ShardStore`` and the threads around it: one that writes (recovery, groups, hooks), one for
flush and compaction, a few that read, and two for live segments (``actors.evaluating``).
**Invariant:** only the writer's thread touches the store's transaction, and a caller has its answer
only after the group's journal entry.

The writer takes what has gathered while the last group was on its way (group commit clocks
itself), answers, then tells others what the commands asked for. An idle shard sleeps until the
next command or the instant that a hook or a flush waits for.

On crash nothing is left to do: callers retry with the same keys and the next incarnation replays.
When the store says ``Stopped`` (fenced, an append of unknown outcome), the process ends: those who
wait get ``OutcomeUnknown``, and nothing is written any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar

import pyarrow as pa

from actors.erasing import Around, Erasing, Threads
from actors.evaluating import Evaluating, EvaluatingSettings
from manta.clock import Clock, as_text
from manta.command import Command, Push
from manta.errors import (
    Damaged,
    Fenced,
    InvalidRequest,
    NotFound,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
)
from manta.segments.notes import Notes
from manta.store.queries import Queries
from manta.store.shard import Outcome, ShardStore, Stopped

T = TypeVar("T")
logger = logging.getLogger("manta.actors.shard")

LAST_WORDS_S = 0.05  # between the last answers and the end of the process
HOOK_ROUNDS_MAX = 10
MAINTAINED_LOOK_S = 0.02


@dataclass(frozen=True)
class ShardActorSettings:
    """Limits of one shard's actor.

    ``append_gap_s`` is the least time between two journal entries: 0 on a local disk, 0.1 on an
    object store, where each entry costs money.
    """

    mailbox_commands_max: int = 20_000
    mailbox_bytes_max: int = 128 << 20
    group_commands_max: int = 2_000
    group_bytes_max: int = 32 << 20
    append_gap_s: float = 0.0
    query_threads: int = 2
    queries_waiting_max: int = 256
    query_timeout_s: float = 30.0
    recovery_retry_s: float = 1.0
    maintenance_retry_s: float = 5.0
    evaluating: EvaluatingSettings = field(default_factory=EvaluatingSettings)


@dataclass
class _Letter:
    commands: Sequence[Command]
    size_bytes: int
    answer: asyncio.Future[list[Any]]
    came_s: float


@dataclass
class _Mailbox:
    letters: deque[_Letter] = field(default_factory=deque)
    commands: int = 0
    size_bytes: int = 0

    def put(self, letter: _Letter) -> None:
        self.letters.append(letter)
        self.commands += len(letter.commands)
        self.size_bytes += letter.size_bytes

    def take(self, commands_max: int, bytes_max: int) -> list[_Letter]:
        """The oldest letters within the limits, at least one."""
        taken: list[_Letter] = []
        commands = size_bytes = 0
        while self.letters:
            letter = self.letters[0]
            commands += len(letter.commands)
            size_bytes += letter.size_bytes
            if taken and (commands > commands_max or size_bytes > bytes_max):
                break
            taken.append(self.letters.popleft())
            self.commands -= len(letter.commands)
            self.size_bytes -= letter.size_bytes
        return taken


class ShardActor:
    """See the module.

    ``open_store`` makes a store that is not yet recovered, with a new nonce at each call.
    ``push(role, method, *arguments)`` tells another actor something, without waiting or raising.
    ``exit_process(reason)`` ends the process. ``notes`` is the watch that ``open_store`` gives its
    stores; without it no segment is live.
    """

    def __init__(
        self,
        open_store: Callable[[], ShardStore],
        push: Callable[..., None],
        clock: Clock,
        exit_process: Callable[[str], Any],
        queries: Queries | None = None,
        settings: ShardActorSettings | None = None,
        notes: Notes | None = None,
        around_erasure: Around | None = None,
    ) -> None:
        self._open_store, self._push, self._clock = open_store, push, clock
        self._exit_process = exit_process
        self._queries = queries or Queries()
        self._settings = settings or ShardActorSettings()
        self._notes = notes
        self._evaluating: Evaluating | None = None
        self._around_erasure = around_erasure
        self._erasing: Erasing | None = None
        self._store: ShardStore | None = None
        self._not_ready = "the shard has not begun to recover"
        self._mailbox = _Mailbox()
        self._came = asyncio.Event()
        self._writer_thread = ThreadPoolExecutor(1, "shard-writer")
        self._maintenance_thread = ThreadPoolExecutor(1, "shard-maintenance")
        self._reader_threads = ThreadPoolExecutor(self._settings.query_threads, "shard-reader")
        self._reading = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._next_wake: datetime | None = None
        self._maintaining = self._ending = False
        self._maintenance_error = ""
        self._last_append_s: float | None = None
        self._latencies_s: deque[float] = deque(maxlen=2_000)
        self._groups_s: deque[float] = deque(maxlen=2_000)
        self._recovery_s = 0.0

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, however often the store has to be asked, and begin to take commands.

        Returns when the shard is ready, or when it cannot be: then ``status`` says why.
        """
        started_s = self._clock.monotonic()
        self._not_ready = "the shard is recovering"
        while True:
            try:
                store = await self._in(self._writer_thread, self._recover)
                break
            except (StoreUnavailable, OutcomeUnknown) as error:
                self._not_ready = f"the shard waits for its store: {error}"
                logger.warning("%s", self._not_ready)
                await asyncio.sleep(self._settings.recovery_retry_s)
            except Damaged as error:
                self._not_ready = f"the shard cannot recover: {error}"
                logger.error("%s", self._not_ready)
                return
            except Fenced as error:
                self._end(f"fenced while recovering: {error}")
                return
        self._recovery_s = self._clock.monotonic() - started_s
        self._store, self._not_ready = store, ""
        if self._notes is not None:
            self._evaluating = Evaluating(
                store, self._notes, self.execute, self._clock, self._settings.evaluating
            )
            self._keep(self._evaluating.run())
        self._keep(self._write_forever(store))
        self._maintain_soon(store)
        self._erasing = Erasing(
            store,
            Threads(self._writer_thread, self._maintenance_thread, self._reader_threads),
            self._clock,
            self._around_erasure,
            self._maintained,
            lambda request, report: self._push(
                "catalog", "erasure_reported", request, store.shard, report
            ),
            self._end,
        )
        self._keep(self._erasing.purge_when_due())

    def _recover(self) -> ShardStore:
        store = self._open_store()
        try:
            store.recover()
        except BaseException:
            store.close()
            raise
        return store

    async def stop(self) -> None:
        """Stop cleanly, for tests and tools: nothing depends on it."""
        self._ending = True  # ``wait_for`` may lose a cancellation to what it waited for
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for threads in (self._writer_thread, self._maintenance_thread, self._reader_threads):
            threads.shutdown(wait=True)
        if self._evaluating is not None:
            self._evaluating.close()
        if self._store is not None:
            self._store.close()
            self._store, self._not_ready = None, "the shard was stopped"

    def _end(self, reason: str) -> None:
        """No more work: whoever waits is told, then the process ends."""
        if self._ending:
            return
        self._ending = True
        self._store, self._not_ready = None, f"the shard's process ends: {reason}"
        for letter in self._mailbox.take(1 << 62, 1 << 62):
            if not letter.answer.done():
                letter.answer.set_exception(NotReady(self._not_ready))
        self._came.set()
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._exit_process, reason)

    # -- what others call ------------------------------------------------------------------------

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Each command's answer, or the ``MantaError`` that it alone got, once it is durable.

        Raises ``NotReady``, ``Overloaded`` (nothing was run), ``OutcomeUnknown`` (retry with the
        same keys), ``InvalidRequest`` for a call that no empty mailbox could take.
        """
        self._ready()
        if not commands:
            return []
        size_bytes = sum(map(command_bytes, commands))
        self._check_room(len(commands), size_bytes)
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._mailbox.put(_Letter(commands, size_bytes, answer, self._clock.monotonic()))
        self._came.set()
        return await answer

    async def query(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """A named read of one committed state, beside the writer.

        Raises ``NotFound`` for an unknown name, ``Overloaded``, ``NotReady``, and what the read
        itself raises; ``Overloaded`` also when it takes longer than ``query_timeout_s``.
        """
        store = self._ready()
        query = self._queries.find(name)
        if self._reading >= self._settings.queries_waiting_max:
            raise Overloaded(f"{self._reading} reads wait already", path=name)
        reader = store.reader()

        def run() -> Any:
            reader.pin()
            return query(reader, store.context(), arguments or {})

        self._reading += 1
        running = asyncio.ensure_future(self._in(self._reader_threads, run))
        try:
            done, _ = await asyncio.wait({running}, timeout=self._settings.query_timeout_s)
            if not done:
                reader.interrupt()
                raise Overloaded(f"read {name} took longer than its time", path=name)
            return running.result()
        finally:
            self._reading -= 1
            running.add_done_callback(lambda ended: _close(reader, ended))

    async def check_drift(self) -> dict[str, Any]:
        """Evaluate the live segments whole and put right what differs; see ``Evaluating``."""
        self._ready()
        if self._evaluating is None:
            raise NotFound("this shard keeps no live segments", path="drift")
        return await self._evaluating.check_drift()

    async def rewrite_erasures(self, at_once: bool = False) -> None:
        """Begin to take erased people out of the files; ``erasure_report`` says how it goes on."""
        self._ready()
        assert self._erasing is not None
        self._keep(self._erasing.run(at_once))

    async def erasure_report(self, request: str) -> dict[str, Any]:
        """How far this shard is with a request of erasure (``actors.erasing``)."""
        self._ready()
        assert self._erasing is not None
        return await self._erasing.report(request)

    async def person_page(
        self, table: str, people: Sequence[int], after: int, limit: int
    ) -> pa.Table:
        """Rows of the lake about these people, of all times (``actors.erasing``)."""
        self._ready()
        assert self._erasing is not None
        return await self._erasing.page(table, people, after, limit)

    async def status(self) -> dict[str, Any]:
        """What operators and metrics want to know; always answers."""
        status: dict[str, Any] = {
            "ready": self._store is not None,
            "reason": self._not_ready,
            "mailbox_commands": self._mailbox.commands,
            "mailbox_bytes": self._mailbox.size_bytes,
            "mailbox_lag_s": self._lag_s(),
        }
        store = self._store
        if store is None:
            return status
        figures, maintenance = store.figures, store.maintenance.figures
        reading = self._in(
            self._reader_threads,
            lambda: (store.database.row_counts(), store.database.memory_bytes()),
        )
        rows, memory_bytes = await reading
        return status | {
            "shard": store.shard,
            "epoch": store.epoch,
            "sequence": store.sequence,
            "commit_p50_s": _quantile(self._groups_s, 0.5),
            "commit_p99_s": _quantile(self._groups_s, 0.99),
            "answer_p50_s": _quantile(self._latencies_s, 0.5),
            "answer_p99_s": _quantile(self._latencies_s, 0.99),
            "reads_running": self._reading,
            "rows": rows,
            "memory_bytes": memory_bytes,
            "keys_remembered": len(store.keys),
            "recovery_s": self._recovery_s,
            "next_wake": as_text(self._next_wake) if self._next_wake else None,
            "tail_bytes": store.tail.size_bytes,
            "maintenance_error": self._maintenance_error,
            "write_amplification": maintenance.write_amplification,
            **vars(figures),
            **vars(maintenance),
            **(self._evaluating.status() if self._evaluating else {}),
        }

    # -- the writer ------------------------------------------------------------------------------

    async def _write_forever(self, store: ShardStore) -> None:
        try:
            await self._around_groups(store)
            while not self._ending:
                await self._until_work(store)
                if self._mailbox.letters:
                    await self._run_group(store)
                await self._around_groups(store)
        except Stopped as stopped:
            self._end(str(stopped))
        except Exception as error:  # the loop's edge: its state is unknown, the journal's is not
            logger.exception("the writer failed")
            self._end(f"the writer failed: {error!r}")

    async def _until_work(self, store: ShardStore) -> None:
        """Sleep until there is a command, a hook is due or a flush is."""
        if not self._mailbox.letters:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self._idle_s(store))
            except TimeoutError:
                return
        if self._settings.append_gap_s and self._last_append_s is not None:
            passed_s = self._clock.monotonic() - self._last_append_s
            await asyncio.sleep(max(0.0, self._settings.append_gap_s - passed_s))

    def _idle_s(self, store: ShardStore) -> float | None:
        waits = []
        if self._next_wake is not None:
            waits.append((self._next_wake - self._clock.now()).total_seconds())
        flush_s = store.flush_in_s()
        if flush_s is not None and not self._maintaining:
            waits.append(flush_s)
        return max(0.0, min(waits)) if waits else None

    async def _run_group(self, store: ShardStore) -> None:
        settings = self._settings
        letters = self._mailbox.take(settings.group_commands_max, settings.group_bytes_max)
        commands = [command for letter in letters for command in letter.commands]
        started_s = self._last_append_s = self._clock.monotonic()
        try:
            outcomes = await self._in(self._writer_thread, lambda: store.execute(commands))
        except BaseException as error:
            for letter in letters:
                if not letter.answer.done():
                    letter.answer.set_exception(
                        OutcomeUnknown(f"the shard stopped; retry with the same key ({error})")
                    )
            raise
        ended_s = self._clock.monotonic()
        self._groups_s.append(ended_s - started_s)
        rest = iter(outcomes)
        for letter in letters:
            answers = [next(rest).answer for _ in letter.commands]
            self._latencies_s.append(ended_s - letter.came_s)
            if not letter.answer.done():
                letter.answer.set_result(answers)
        self._committed(outcomes)

    async def _around_groups(self, store: ShardStore) -> None:
        """Hooks that are due, with the commands they ask for; then a flush if it is time."""
        for _ in range(HOOK_ROUNDS_MAX):
            if not store.hooks_due():
                break
            result = await self._in(self._writer_thread, store.run_hooks)
            self._tell(result.pushes)
            if not result.commands:
                break
            commands = result.commands
            outcomes = await self._in(self._writer_thread, lambda c=commands: store.execute(c))
            self._log_failures(commands, outcomes)
            self._committed(outcomes)
        self._next_wake = store.next_wake()
        if not self._maintaining:
            self._maintaining = True  # at once: an erasure may be waiting for its turn
            if await self._frozen(store):
                self._maintain_soon(store)
            else:
                self._maintaining = False

    async def _frozen(self, store: ShardStore) -> bool:
        flush_s = store.flush_in_s()
        if flush_s is None or flush_s > 0:
            return False
        return await self._in(self._writer_thread, store.freeze)

    def _committed(self, outcomes: Sequence[Outcome]) -> None:
        if self._evaluating is not None:
            self._evaluating.wake()
        self._tell([push for outcome in outcomes for push in outcome.pushes])

    def _tell(self, pushes: Sequence[Push]) -> None:
        for push in pushes:
            self._push(push.to, push.method, *push.arguments)

    def _log_failures(self, commands: Sequence[Command], outcomes: Sequence[Outcome]) -> None:
        for command, outcome in zip(commands, outcomes, strict=True):
            if outcome.failed:
                logger.warning("%s of a hook: %s", type(command).__name__, outcome.answer)

    # -- flush and compaction ----------------------------------------------------------------

    def _maintain_soon(self, store: ShardStore) -> None:
        self._maintaining = True
        self._keep(self._maintain(store))

    @asynccontextmanager
    async def _maintained(self) -> AsyncIterator[None]:
        """Flush and compaction wait for the time of the block, which begins when they rest."""
        while self._maintaining:
            await asyncio.sleep(MAINTAINED_LOOK_S)
        self._maintaining = True
        try:
            yield
        finally:
            self._maintaining = False
            self._came.set()  # the writer looks at once whether a flush is due

    async def _maintain(self, store: ShardStore) -> None:
        """Until it has succeeded; the tail stays in memory and in the journal meanwhile."""
        while True:
            try:
                await self._in(self._maintenance_thread, store.maintain)
                self._maintenance_error = ""
                break
            except Stopped as stopped:
                self._end(str(stopped))
                return
            except Exception as error:  # the loop's edge
                self._maintenance_error = f"{type(error).__name__}: {error}"
                logger.warning("flush or compaction failed, will be tried again", exc_info=error)
            await asyncio.sleep(self._settings.maintenance_retry_s)
        self._maintaining = False
        self._came.set()  # the writer looks at once whether the next flush is due

    # -- inside ------------------------------------------------------------------------------

    def _ready(self) -> ShardStore:
        if self._store is None:
            raise NotReady(self._not_ready)
        return self._store

    def _check_room(self, commands: int, size_bytes: int) -> None:
        settings, mailbox = self._settings, self._mailbox
        if commands > settings.mailbox_commands_max or size_bytes > settings.mailbox_bytes_max:
            raise InvalidRequest(
                f"{commands} commands of {size_bytes} bytes in one call",
                expected=f"at most {settings.mailbox_commands_max} commands and "
                f"{settings.mailbox_bytes_max} bytes; split the call",
            )
        if (
            mailbox.commands + commands > settings.mailbox_commands_max
            or mailbox.size_bytes + size_bytes > settings.mailbox_bytes_max
        ):
            raise Overloaded(
                f"the mailbox holds {mailbox.commands} commands, {mailbox.size_bytes} bytes",
                commands=mailbox.commands,
            )

    def _lag_s(self) -> float:
        letters = self._mailbox.letters
        return self._clock.monotonic() - letters[0].came_s if letters else 0.0

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def command_bytes(command: Any) -> int:
    """About what a command holds in memory: its tables, texts and lists."""
    if not is_dataclass(command):
        return 256
    return 256 + sum(_value_bytes(getattr(command, each.name)) for each in fields(command))


def _value_bytes(value: Any) -> int:
    size_bytes = getattr(value, "nbytes", None)
    if isinstance(size_bytes, int):
        return size_bytes
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        if len(value) > 256:
            return 64 * len(value)
        return sum(16 + _value_bytes(each) for each in value)
    if isinstance(value, set | frozenset | dict):
        return 64 * len(value)
    return command_bytes(value) if is_dataclass(value) else 16


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def _close(reader: Any, ended: asyncio.Future[Any]) -> None:
    if not ended.cancelled():
        ended.exception()  # seen: it went to the caller or came after its time
    reader.close()
