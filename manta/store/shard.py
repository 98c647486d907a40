"""The store of one shard: group commit over its database and its journal, and recovery.

Owns the shard's database, journal and idempotency keys. **Invariant:** the committed state of the
database is what the files of the newest manifest and the journal after it say, and no answer
leaves before its entry is in the journal; what needs no entry is answered once it is sure that
nobody has taken over. One thread calls ``recover``, ``execute``, ``freeze`` and
``run_hooks``; another may call ``maintain`` at the same time (see ``manta.store.flush``).

Order of a group: begin → each command decides and its changes are applied → append one entry →
commit → answers. On a crash before the append nothing has happened; after it, replay brings back
all of the group. An append that was refused for certain rolls back and every command gets
``StoreUnavailable``. An append of unknown outcome, a fence, or a commit that fails after the
append raises ``Stopped``: this process may know less than the journal, so it must end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Protocol

import duckdb

from manta.clock import Clock
from manta.command import Change, Command, Context, Database, Decision, Push, Repeated
from manta.errors import (
    Damaged,
    Fenced,
    InvalidRequest,
    MantaError,
    OutcomeUnknown,
    StoreUnavailable,
)
from manta.ids import hash64
from manta.schema import RETENTION, TABLES
from manta.store.database import DatabaseSettings, Reader, ShardDatabase
from manta.store.entries import Group, decode_group, encode_group, gather
from manta.store.flush import Snapshot, Tail
from manta.store.hiding import VISIBLE, hidden_by
from manta.store.journal import Entry, Journal
from manta.store.keys import KeyMemory
from manta.store.load import load_files
from manta.store.maintenance import Maintenance
from manta.store.manifest import Manifest, Manifests, recover
from manta.store.objects import ObjectStore
from manta.store.retention import RetentionHook, bounds, count_late_events, is_old
from manta.store.settings import ShardSettings

logger = logging.getLogger(__name__)
HOOK_RETRY = timedelta(seconds=30)


class Stopped(Exception):
    """This process must end: it no longer owns the shard or may have lost step with the journal."""


@dataclass(frozen=True)
class Outcome:
    """What became of one command: its answer, or the error that it alone gets."""

    answer: Any
    pushes: tuple[Push, ...] = ()

    @property
    def failed(self) -> bool:
        return isinstance(self.answer, MantaError)


@dataclass(frozen=True)
class HookResult:
    """What a hook wants: pushes now, commands as a next group, and to be called again then."""

    pushes: tuple[Push, ...] = ()
    commands: tuple[Command, ...] = ()
    next_wake: datetime | None = None


class HookAnswer(Protocol):
    """What ``HookResult`` has; rooms that may not know this module have their own."""

    @property
    def pushes(self) -> tuple[Push, ...]: ...

    @property
    def commands(self) -> tuple[Command, ...]: ...

    @property
    def next_wake(self) -> datetime | None: ...


class Hook(Protocol):
    """Looks at the committed state in the writer's thread and reacts.

    Called after a commit that touched one of ``tables`` (at most every ``min_gap_s``), once after
    recovery, and at the instant it last asked for. It reads; changes go out as commands.
    """

    @property
    def tables(self) -> frozenset[str]: ...

    @property
    def min_gap_s(self) -> float: ...

    def after_commit(self, database: Database, context: Context) -> HookAnswer: ...


class Deriver(Protocol):
    """Adds to a group what follows from its changes, so that both are stored or neither is.

    Called in the writer's thread after the commands of a group have been applied. It reads and
    answers changes; for a group that does not concern it, it must answer none at once.
    """

    def derive(
        self, changes: Sequence[Change], database: Database, context: Context
    ) -> Sequence[Change]: ...


# Told of the changes of each committed group, in order, in the writer's thread; not in a replay.
# It must only take note of them.
Watch = Callable[[Sequence[Change]], None]


@dataclass
class Figures:
    """Counts since the start of this process."""

    groups: int = 0
    commands: int = 0
    commands_failed: int = 0
    commands_crashed: int = 0
    commands_repeated: int = 0
    reruns: int = 0
    appends_refused: int = 0
    appended_bytes: int = 0
    replayed_entries: int = 0
    hooks_failed: int = 0
    derivers_failed: int = 0


@dataclass
class _Run:
    """One attempt at a group."""

    now: datetime
    answers: dict[int, Outcome] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    keys: dict[int, str] = field(default_factory=dict)
    repeated: int = 0


@dataclass
class _HookState:
    hook: Hook
    wake: datetime | None = None
    last: datetime | None = None


class _Again(Exception):
    """The transaction was aborted: run the group again without this command."""

    def __init__(self, index: int | None) -> None:
        super().__init__()
        self.index = index


class ShardStore:
    """See the module. ``nonce`` names this incarnation; ``random`` feeds decisions."""

    def __init__(
        self,
        objects: ObjectStore,
        workspace: str,
        shard: int,
        nonce: bytes,
        clock: Clock,
        random: Random,
        settings: ShardSettings | None = None,
        hooks: Sequence[Hook] = (),
        derivers: Sequence[Deriver] = (),
        watch: Watch = lambda changes: None,
    ) -> None:
        self.settings = settings or ShardSettings()
        self.workspace, self.shard = workspace, shard
        self.objects = objects
        self.role = f"shard-{shard:03d}"
        folder = f"shard={shard:03d}"
        self.lake_prefix = f"{workspace}/lake/{folder}"
        self.journal = Journal(objects, f"{workspace}/journal/{folder}", self.role, nonce, clock)
        self.manifests = Manifests(objects, f"{workspace}/manifest/{folder}", clock)
        self.database = self._empty_database()
        self.tail = Tail()
        self.keys = KeyMemory()
        self.figures = Figures()
        self.epoch = 0
        self.sequence = 0
        self.maintenance = Maintenance(
            objects, self.manifests, self.journal, self.lake_prefix, self.settings, clock
        )
        self._frozen: Snapshot | None = None
        self._clock, self._random = clock, random
        every: tuple[Hook, ...] = (RetentionHook(self.settings), *hooks)
        self._hooks = [_HookState(hook) for hook in every]
        self._derivers, self._watch = tuple(derivers), watch
        self._latest = datetime.min
        self._stopped = ""

    # -- recovery ------------------------------------------------------------------------------

    def recover(self) -> None:
        """Bring the database to the journal's end and take the journal over.

        From then on it can be read. Its indexes are built by whichever of ``run_hooks`` and
        ``execute`` is called first; until then reads of single people scan the events.

        Raises ``StoreUnavailable`` or ``OutcomeUnknown`` (try again with a new store), ``Damaged``
        (a person has to look), ``Fenced``.
        """
        recovered = recover(self.journal, self.manifests, self._restore, self._replay)
        self.epoch, self.sequence = recovered.taken
        base = recovered.manifest or Manifest(0, self.role, self.epoch, 0)
        self.maintenance.start_from(replace(base, epoch=self.epoch))
        self.database.end_loading()
        self.database.lock_down()
        self.keys.forget(self._now())
        for state in self._hooks:
            state.wake = datetime.min

    def _restore(self, manifest: Manifest | None) -> None:
        self.database.close()
        self.database = self._empty_database()
        self.database.begin_loading()
        self.tail, self.keys = Tail(), KeyMemory()
        if manifest is not None:
            load_files(self.objects, manifest, self.database, self.keys)
            self.database.drop("events", f"NOT ({VISIBLE})", [])
            self.database.correct_events()

    def _replay(self, entry: Entry) -> None:
        name = self.journal.path(entry.sequence)
        group = decode_group(entry.body, name)
        try:
            self.database.begin()
            changes = self.database.prepare(group.changes)
            self.database.apply(changes)
            self.database.commit()
        except (duckdb.Error, MantaError) as error:
            raise Damaged(
                f"journal entry {name} cannot be applied: {error}", object=name
            ) from error
        self.sequence = entry.sequence
        self._committed(Group(group.at, group.keys, tuple(changes)))
        self.figures.replayed_entries += 1

    def _build_indexes(self) -> None:
        try:
            self.database.build_indexes()
        except duckdb.Error as error:
            raise Stopped(f"the indexes could not be built: {error}") from error

    def _empty_database(self) -> ShardDatabase:
        return ShardDatabase(DatabaseSettings(self.settings.memory_limit_mb))

    # -- commands --------------------------------------------------------------------------------

    def execute(self, commands: Sequence[Command]) -> list[Outcome]:
        """Run one group. Each command alone succeeds or fails; answers are durable on return."""
        if self._stopped:
            raise Stopped(self._stopped)
        try:
            return self._execute(commands)
        except Stopped as stopped:
            self._stopped = str(stopped)
            raise

    def _execute(self, commands: Sequence[Command]) -> list[Outcome]:
        self._build_indexes()
        now = self._now()
        self._latest = now
        failed: dict[int, Outcome] = {}
        run = self._decide(commands, now, failed)
        self.figures.commands_repeated += run.repeated
        self.figures.groups += 1
        self.figures.commands += len(commands)
        if not run.changes:
            self.database.rollback()
            refusal = self._confirm()
            if refusal is not None:
                return [Outcome(refusal) for _ in commands]
        else:
            keys = tuple(_key_hash(key) for key in run.keys.values())
            group = Group(now, keys, tuple(gather(run.changes)))
            refusal = self._append_and_commit(group)
            if refusal is not None:
                return [failed.get(i) or Outcome(refusal) for i in range(len(commands))]
        self.figures.commands_failed += len(failed)
        return [failed.get(i) or run.answers[i] for i in range(len(commands))]

    def context(self, now: datetime | None = None) -> Context:
        """The context of decisions and reads."""
        return Context(
            now or self._now(), self._random, self.workspace, self.shard, self.settings.domain
        )

    def _decide(
        self, commands: Sequence[Command], now: datetime, failed: dict[int, Outcome]
    ) -> _Run:
        """All commands decided and applied in an open transaction; errors go to ``failed``."""
        one_by_one = False
        while True:
            run = _Run(now)
            self.database.begin()
            try:
                for index, command in enumerate(commands):
                    if index not in failed:
                        self._decide_one(index, command, run, failed)
                        if one_by_one:
                            self._write_now(index, failed)
                self._derive(run)
                if not one_by_one:
                    self._write_now(None, failed)
                return run
            except _Again as again:
                # An error in rows that waited cannot be laid at one command's door: write each
                # command's rows at once this time, so that the one that errs is known.
                one_by_one = one_by_one or again.index is None
                self.figures.reruns += 1
                self._undo()

    def _decide_one(
        self, index: int, command: Command, run: _Run, failed: dict[int, Outcome]
    ) -> None:
        context = self.context(run.now)
        try:
            key = command.key
            if key is not None and self._is_known(key, run):
                run.repeated += 1
                repeat = getattr(command, "repeat", None)
                answer = repeat(self.database, context) if repeat else Repeated(key)
                run.answers[index] = Outcome(answer)
                return
            decision: Decision = command.decide(self.database, context)
            prepared = self.database.prepare(decision.changes)
            since = self.database.events_since
            if since is not None:
                late = count_late_events(self.database, prepared, since)
                prepared += self.database.prepare(late)
        except Exception as error:  # whatever a command raises is its own
            failed[index] = Outcome(self._as_error(command, error))
            if not self.database.usable():
                raise _Again(index) from error
            return
        self.database.apply(prepared)
        run.changes.extend(prepared)
        run.answers[index] = Outcome(decision.answer, decision.pushes)
        if key is not None and prepared:
            run.keys[index] = key

    def _derive(self, run: _Run) -> None:
        """What follows from the group, and from what the derivers before added to it. One that
        fails adds nothing and stops nobody."""
        if not run.changes:
            return
        context = self.context(run.now)
        for deriver in self._derivers:
            changes = tuple(run.changes)
            try:
                derived = self.database.prepare(deriver.derive(changes, self.database, context))
            except duckdb.FatalException as error:
                raise Stopped(f"the database failed: {error}") from error
            except Exception as error:
                self.figures.derivers_failed += 1
                logger.error("%s failed", type(deriver).__name__, exc_info=error)
                if not self.database.usable():
                    raise Stopped(f"a deriver spoiled its transaction: {error}") from error
                continue
            self.database.apply(derived)
            run.changes.extend(derived)

    def _write_now(self, index: int | None, failed: dict[int, Outcome]) -> None:
        try:
            self.database.write_waiting()
        except duckdb.FatalException as error:
            raise Stopped(f"the database failed: {error}") from error
        except duckdb.Error as error:
            if index is not None:
                failed[index] = Outcome(MantaError(f"the rows could not be written: {error}"))
            raise _Again(index) from error

    def _is_known(self, key: str, run: _Run) -> bool:
        return key in run.keys.values() or _key_hash(key) in self.keys

    def _as_error(self, command: Command, error: Exception) -> MantaError:
        if isinstance(error, MantaError):
            return error
        if isinstance(error, duckdb.FatalException):
            raise Stopped(f"the database failed: {error}") from error
        self.figures.commands_crashed += 1
        logger.error("%s failed", type(command).__name__, exc_info=error)
        return MantaError(
            f"{type(command).__name__} failed: {type(error).__name__}: {str(error)[:500]}",
            command=type(command).__name__,
        )

    def _confirm(self) -> MantaError | None:
        """An incarnation that has been replaced may not answer from its old state."""
        try:
            self.journal.confirm()
        except StoreUnavailable as refusal:
            return refusal
        except (Fenced, Damaged) as error:
            raise Stopped(f"{error.code}: {error}") from error
        return None

    def _append_and_commit(self, group: Group) -> MantaError | None:
        body = encode_group(group)
        try:
            sequence = self.journal.append(body)
        except (StoreUnavailable, InvalidRequest) as refusal:  # InvalidRequest: too large
            self._undo()
            self.figures.appends_refused += 1
            return refusal
        except (Fenced, OutcomeUnknown, Damaged) as error:
            raise Stopped(f"{error.code}: {error}") from error
        try:
            self.database.commit()
        except duckdb.Error as error:
            raise Stopped(f"commit failed after journal entry {sequence}: {error}") from error
        self.sequence = sequence
        self.figures.appended_bytes += len(body)
        self._committed(group)
        self._watch(group.changes)
        return None

    def _undo(self) -> None:
        """Back to what is committed; what decisions noted of the rest is forgotten with it."""
        self.database.rollback()
        self.database.hints.clear()

    def _committed(self, group: Group) -> None:
        self.keys.add(group.keys, group.at)
        self.tail.add(group, self._clock.monotonic())
        touched = {change.table for change in group.changes}
        if RETENTION.name in touched:
            self._forget()
        for column, values in hidden_by(group.changes):
            wanted = f"{column} IN (SELECT unnest(?::BIGINT[]))"
            self.database.drop("events", wanted, [values.to_pylist()])
        for state in self._hooks:
            if touched & state.hook.tables:
                state.wake = min(state.wake or datetime.max, self._earliest(state))

    def _forget(self) -> None:
        """Take out of memory what lies before the bounds that were just committed."""
        for table, since in bounds(self.database).items():
            where = is_old(table)
            if TABLES[table].key:
                self.tail.capture(self.database, table, where, [since], self.sequence)
            else:
                self.database.events_since = since
            self.database.drop(table, where, [since])

    # -- hooks -----------------------------------------------------------------------------------

    def run_hooks(self) -> HookResult:
        """In the writer's thread: call the hooks that are due and join what they want."""
        self._build_indexes()
        now = self._now()
        pushes: list[Push] = []
        commands: list[Command] = []
        for state in self._hooks:
            if state.wake is None or state.wake > now:
                continue
            state.last = now
            result = self._run_hook(state, now)
            state.wake = result.next_wake
            pushes.extend(result.pushes)
            commands.extend(result.commands)
        return HookResult(tuple(pushes), tuple(commands), self.next_wake())

    def _run_hook(self, state: _HookState, now: datetime) -> HookAnswer:
        """A hook that fails is called again later: it must not take the shard down with it."""
        try:
            return state.hook.after_commit(self.database, self.context(now))
        except duckdb.FatalException as error:
            raise Stopped(f"the database failed: {error}") from error
        except Exception as error:
            self.figures.hooks_failed += 1
            logger.error("%s failed", type(state.hook).__name__, exc_info=error)
            return HookResult(next_wake=now + HOOK_RETRY)

    def next_wake(self) -> datetime | None:
        """The least instant that a hook waits for."""
        wakes = [state.wake for state in self._hooks if state.wake is not None]
        return min(wakes, default=None)

    def hooks_due(self) -> bool:
        wake = self.next_wake()
        return wake is not None and wake <= self._now()

    def _earliest(self, state: _HookState) -> datetime:
        if state.last is None:
            return datetime.min
        return state.last + timedelta(seconds=state.hook.min_gap_s)

    # -- around ------------------------------------------------------------------------------------

    def reader(self) -> Reader:
        """A cursor for another thread; close it."""
        return self.database.reader()

    def flush_in_s(self) -> float | None:
        """Seconds until the tail is to be flushed, 0 if it is time, ``None`` if it is empty."""
        if self.tail.since_s is None:
            return None
        if self.tail.size_bytes >= self.settings.flush_bytes:
            return 0.0
        age_s = self._clock.monotonic() - self.tail.since_s
        return max(0.0, self.settings.flush_after_s - age_s)

    def freeze(self, *, even_if_early: bool = False) -> bool:
        """In the writer's thread: hand the tail to the next ``maintain`` if it is due.

        True when there is something to flush. The writer goes on at once.
        """
        in_s = self.flush_in_s()
        due = in_s is not None and (even_if_early or in_s == 0)
        if self._frozen is None and due:
            self._frozen = self.tail.freeze(self.database, self.epoch, self.sequence)
        return self._frozen is not None

    def maintain(self) -> None:
        """In the maintenance thread: flush what is frozen, merge files, collect garbage.

        Raises ``StoreUnavailable`` and ``OutcomeUnknown`` (call again later), ``Damaged``, and
        ``Stopped`` when another owner has taken over.
        """
        try:
            if self._frozen is not None:
                self.maintenance.flush(self._frozen)
                self._frozen = None
            self.maintenance.compact()
            self.maintenance.expire_events()
            self.maintenance.collect_garbage()
        except Fenced as error:
            raise Stopped(f"{error.code}: {error}") from error

    def close(self) -> None:
        self.database.close()

    def now(self) -> datetime:
        """The instant of what is done now."""
        return self._now()

    def _now(self) -> datetime:
        """The clock, but never earlier than a group before."""
        return max(self._clock.now(), self._latest)


def _key_hash(key: str) -> int:
    return hash64("command", key)
