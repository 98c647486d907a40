"""The shard's actor: mailbox, writer, readers, recovery and the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from actors.evaluating import EvaluatingSettings
from actors.shard import ShardActor, ShardActorSettings, command_bytes
from manta.clock import SystemClock
from manta.command import Context, Database, Push
from manta.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
)
from manta.segments.notes import Notes
from manta.store.objects import FileObjects, ObjectStore
from manta.store.queries import Queries
from manta.store.settings import ShardSettings
from manta.store.shard import Hook, HookResult, ShardStore
from tests.faults import FaultyObjects
from tests.unit.segments_house import define
from tests.unit.store_shard import Act, Write, event, person, recovered, refuse, upsert, write


def emails(database: Database, context: Context, arguments: Mapping[str, Any]) -> Any:
    return database.rows(
        "SELECT email FROM profiles WHERE subscriber_id = ?", [arguments["subscriber_id"]]
    )


def endless(database: Database, context: Context, arguments: Mapping[str, Any]) -> Any:
    return database.rows("SELECT count(*) FROM range(100000000000) WHERE range % 7 = 3")


def inside(database: Database, context: Context, arguments: Mapping[str, Any]) -> Any:
    rows = database.rows("SELECT subscriber_id, segments FROM memberships ORDER BY 1")
    return {id: segments for id, segments in rows if segments}


class Stage:
    """An actor with all around it."""

    def __init__(
        self,
        objects: ObjectStore,
        actor: ShardActorSettings | None = None,
        store: ShardSettings | None = None,
        hooks: tuple[Hook, ...] = (),
    ) -> None:
        self.notes = Notes(SystemClock())
        self.pushed: list[tuple[Any, ...]] = []
        self.ended = asyncio.Event()
        self.reasons: list[str] = []
        self.opened: list[ShardStore] = []
        self._make: Callable[[], ShardStore] = lambda: ShardStore(
            objects,
            "default",
            0,
            bytes([10 + len(self.opened)]) * 16,
            SystemClock(),
            Random(1),
            store,
            hooks,
            watch=self.notes.add,
        )
        self.actor = ShardActor(
            self._open,
            lambda *pushed: self.pushed.append(pushed),
            SystemClock(),
            self._end,
            Queries({"emails": emails, "endless": endless, "inside": inside}),
            actor,
            self.notes,
        )

    def _open(self) -> ShardStore:
        self.opened.append(self._make())
        return self.opened[-1]

    def _end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.ended.set()


@pytest.fixture
def objects(tmp_path: Path) -> FileObjects:
    return FileObjects(tmp_path / "root")


@pytest.fixture
async def stage(objects: FileObjects) -> AsyncIterator[Stage]:
    stage = Stage(objects)
    await stage.actor.start()
    yield stage
    await stage.actor.stop()


async def test_commands_are_answered_one_by_one_and_durable(
    stage: Stage, objects: FileObjects
) -> None:
    answers = await stage.actor.execute(
        [write(person(1, email="a")), Act(refuse), write(person(2))]
    )
    assert answers[::2] == [0, 1]
    assert isinstance(answers[1], Conflict)
    assert await stage.actor.execute([]) == []
    rows = recovered(objects, 2).database.rows("SELECT count(*) FROM profiles")
    assert rows == [(2,)]


async def test_calls_that_gather_become_one_group(stage: Stage) -> None:
    store = stage.opened[0]
    calls = [stage.actor.execute([write(person(i))]) for i in range(50)]
    answers = await asyncio.gather(*calls)
    assert sorted(answer for (answer,) in answers) == list(range(50))
    assert store.figures.groups <= 3


async def test_pushes_go_out_after_the_commit(stage: Stage) -> None:
    push = Push("director", "work", (1, "x"))
    await stage.actor.execute([write(person(1), pushes=(push,)), Act(refuse)])
    assert stage.pushed == [("director", "work", 1, "x")]


async def test_reads_run_beside_the_writer_and_by_name(stage: Stage) -> None:
    await stage.actor.execute([write(person(1, email="a"))])
    assert await stage.actor.query("emails", {"subscriber_id": 1}) == [("a",)]
    assert (await stage.actor.query("row_counts"))["profiles"] == 1
    with pytest.raises(NotFound, match="'emial'") as caught:
        await stage.actor.query("emial", {})
    assert caught.value.expected == "emails"
    with pytest.raises(KeyError):
        await stage.actor.query("emails", {})


async def test_a_read_that_takes_too_long_is_stopped(objects: FileObjects) -> None:
    stage = Stage(objects, ShardActorSettings(query_timeout_s=0.1, queries_waiting_max=1))
    await stage.actor.start()
    slow = asyncio.ensure_future(stage.actor.query("endless"))
    await asyncio.sleep(0.02)
    with pytest.raises(Overloaded, match="wait already"):
        await stage.actor.query("row_counts")
    with pytest.raises(Overloaded, match="longer than its time"):
        await slow
    assert await stage.actor.query("row_counts")
    await stage.actor.stop()


async def test_a_full_mailbox_refuses(objects: FileObjects) -> None:
    settings = ShardActorSettings(mailbox_commands_max=3, mailbox_bytes_max=10_000)
    stage = Stage(objects, settings)
    await stage.actor.start()
    with pytest.raises(InvalidRequest, match="in one call"):
        await stage.actor.execute([write(person(i)) for i in range(4)])
    with pytest.raises(InvalidRequest, match="in one call"):
        await stage.actor.execute([Write((), "k" * 20_000)])
    calls = [asyncio.ensure_future(stage.actor.execute([write(person(i))])) for i in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, Overloaded) for result in results] == [False] * 3 + [True] * 2
    await stage.actor.stop()


async def test_not_ready_until_recovered_and_says_why(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(1))
    faulty.full = True
    stage = Stage(faulty, ShardActorSettings(recovery_retry_s=0.01))
    with pytest.raises(NotReady, match="not begun"):
        await stage.actor.execute([write(person(1))])
    starting = asyncio.ensure_future(stage.actor.start())
    while len(stage.opened) < 3:
        await asyncio.sleep(0.005)
    with pytest.raises(NotReady, match="store is full"):
        await stage.actor.query("row_counts")
    status = await stage.actor.status()
    assert not status["ready"]
    assert "full" in status["reason"]
    faulty.full = False
    await starting
    assert await stage.actor.execute([write(person(1))]) == [0]
    assert (await stage.actor.status())["ready"]
    await stage.actor.stop()


async def test_damage_keeps_it_down_and_is_named(objects: FileObjects) -> None:
    recovered(objects, 1).execute([write(person(1))])
    FaultyObjects(objects, Random(1)).flip("default/journal/shard=000/000000000002")
    stage = Stage(objects)
    await stage.actor.start()
    status = await stage.actor.status()
    assert not status["ready"]
    assert "000000000002" in status["reason"]
    with pytest.raises(NotReady, match="cannot recover"):
        await stage.actor.execute([write(person(1))])
    assert not stage.ended.is_set()
    await stage.actor.stop()


async def test_a_fenced_actor_ends_its_process(stage: Stage, objects: FileObjects) -> None:
    await stage.actor.execute([write(person(1))])
    new = recovered(objects, 99)
    with pytest.raises(OutcomeUnknown):
        await stage.actor.execute([write(person(2))])
    with pytest.raises(NotReady, match="process ends"):
        await stage.actor.execute([write(person(3))])
    await asyncio.wait_for(stage.ended.wait(), 5)
    assert "fenced" in stage.reasons[0]
    assert len(stage.reasons) == 1
    assert new.database.rows("SELECT subscriber_id FROM profiles") == [(1,)]


async def test_a_refused_append_is_a_retryable_answer(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(1))
    stage = Stage(faulty)
    await stage.actor.start()
    faulty.full = True
    (answer,) = await stage.actor.execute([write(person(1))])
    assert isinstance(answer, StoreUnavailable)
    faulty.full = False
    assert await stage.actor.execute([write(person(1))]) == [0]
    await stage.actor.stop()


async def test_it_flushes_by_itself_and_tries_again(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(1))
    settings = ShardActorSettings(maintenance_retry_s=0.01)
    stage = Stage(faulty, settings, ShardSettings(flush_after_s=0.05))
    await stage.actor.start()
    await stage.actor.execute([write(person(1), event(1, "opened"))])
    faulty.full = True
    status = await until(stage, lambda status: status["maintenance_error"])
    assert "full" in status["maintenance_error"]
    faulty.full = False
    status = await until(stage, lambda status: not status["maintenance_error"])
    assert status["flushes"] == 1
    assert status["live_files"] == 2
    sequence = status["sequence"]
    await asyncio.sleep(0.15)
    status = await stage.actor.status()
    assert (status["flushes"], status["sequence"]) == (1, sequence)  # idle writes nothing
    await stage.actor.execute([write(person(2))])
    await until(stage, lambda status: status["flushes"] == 2)
    await stage.actor.stop()


async def until(stage: Stage, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    for _ in range(500):
        status = await stage.actor.status()
        if holds(status):
            return status
        await asyncio.sleep(0.01)
    raise AssertionError(status)


async def test_appends_keep_their_gap(objects: FileObjects) -> None:
    stage = Stage(objects, ShardActorSettings(append_gap_s=0.05))
    await stage.actor.start()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for i in range(4):
        await stage.actor.execute([write(person(i))])
    assert loop.time() - started >= 0.15
    await stage.actor.stop()


class Bell:
    """Wakes itself soon after each new person, and then writes an event about it."""

    tables = frozenset({"profiles"})
    min_gap_s = 0.0

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def after_commit(self, database: Database, context: Context) -> HookResult:
        self.threads.add(threading.current_thread().name)
        (people,), (events,) = (
            database.rows(f"SELECT count(*) FROM {table}")[0] for table in ("profiles", "events")
        )
        if not people or events:
            return HookResult((Push("director", "seen", (people, events)),))
        if database.rows("SELECT 1 FROM profiles WHERE created_at < ?", [context.now]):
            return HookResult(commands=(write(event(1, "rung"), person(1)),))
        return HookResult(next_wake=context.now + timedelta(seconds=0.05))


async def test_hooks_run_after_commits_and_wake_the_actor(objects: FileObjects) -> None:
    bell = Bell()
    stage = Stage(objects, hooks=(bell,))
    await stage.actor.start()
    await stage.actor.query("row_counts")
    soon = SystemClock().now() + timedelta(seconds=0.02)
    await stage.actor.execute([write(person(1, created_at=soon))])
    while len(stage.pushed) < 2:
        await asyncio.sleep(0.01)
    assert stage.pushed == [("director", "seen", 0, 0), ("director", "seen", 1, 1)]
    assert len(bell.threads) == 1
    await stage.actor.stop()


async def test_status_has_the_figures(stage: Stage) -> None:
    await stage.actor.execute([write(person(i)) for i in range(5)])
    status = await stage.actor.status()
    assert status["rows"]["profiles"] == 5
    assert status["epoch"] == 1
    assert status["sequence"] == 2
    assert status["commands"] >= 5  # and what the hooks asked for
    assert status["commit_p99_s"] >= status["commit_p50_s"] > 0
    assert status["memory_bytes"] > 0
    assert status["mailbox_commands"] == 0


# -- live segments ---------------------------------------------------------------------------------

BOUGHT = {"event": {"type": "purchased", "within": {"last": {"minutes": 30}}}}
OSLO = {"attribute": {"name": "city", "operator": "equals", "value": "Oslo"}}
QUICK = EvaluatingSettings(round_gap_s=0.01, flips_gap_s=0.02, pause_s=0.01, trouble_retry_s=0.02)


@pytest.fixture
async def live(objects: FileObjects) -> AsyncIterator[Stage]:
    stage = Stage(objects, ShardActorSettings(evaluating=QUICK))
    await stage.actor.start()
    await stage.actor.execute([define(1, OSLO), define(2, BOUGHT)])
    new = {"attr_city": "Oslo", "created_at": SystemClock().now()}
    await stage.actor.execute([write(person(id, **new)) for id in (1, 2)])
    await members(stage, {1: [1], 2: [1]})
    yield stage
    await stage.actor.stop()


async def members(stage: Stage, expected: dict[int, list[int]]) -> None:
    """Wait until these are the members."""
    found: Any = None
    for _ in range(500):
        found = await stage.actor.query("inside")
        if found == expected:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(found)


async def test_members_follow_changes_and_time(live: Stage) -> None:
    soon = SystemClock().now() - timedelta(minutes=30) + timedelta(seconds=0.3)
    await live.actor.execute([write(event(2, "purchased", soon)), write(person(1, attr_city="x"))])
    await members(live, {2: [1, 2]})
    status = await live.actor.status()
    assert status["next_flip"] is not None
    assert status["live_segments"] == 2
    assert status["people_timed"] == 1
    await members(live, {2: [1]})
    assert SystemClock().now() >= soon + timedelta(minutes=30)
    status = await live.actor.status()
    assert status["next_flip"] is None
    assert 0 < status["membership_lag_p99_s"] < 2.5
    assert status["people_asked"] >= 4


async def test_an_idle_shard_asks_nobody(live: Stage) -> None:
    before = await live.actor.status()
    await asyncio.sleep(0.15)
    after = await live.actor.status()
    assert after["segment_rounds"] - before["segment_rounds"] <= 1  # its own last moves
    assert after["sequence"] == before["sequence"]


async def test_a_refused_append_keeps_the_moves_until_they_are_in(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(1))
    stage = Stage(faulty, ShardActorSettings(evaluating=QUICK))
    await stage.actor.start()
    new = {"attr_city": "Oslo", "created_at": SystemClock().now()}
    await stage.actor.execute([write(person(1, **new)), define(1, OSLO)])
    faulty.full = True
    await asyncio.sleep(0.1)
    assert await stage.actor.query("inside") == {}
    faulty.full = False
    await members(stage, {1: [1]})
    await stage.actor.stop()


async def test_drift_is_found_reported_and_put_right(live: Stage) -> None:
    assert (await live.actor.check_drift())["segments"] == {}
    wrong = upsert("memberships", {"subscriber_id": 1, "segments": [2]})
    await live.actor.execute([write(wrong)])
    report = await live.actor.check_drift()
    assert report["segments"] == {
        1: {"missing": 1, "wrong": 0},
        2: {"missing": 0, "wrong": 1},
    }
    assert await live.actor.query("inside") == {1: [1], 2: [1]}
    assert (await live.actor.check_drift())["segments"] == {}
    status = await live.actor.status()
    assert (status["drift_checks"], status["drift_found"]) == (3, 2)
    assert status["last_drift"] == {}


async def test_changes_while_drift_is_looked_for_are_no_drift(live: Stage) -> None:
    checking = asyncio.ensure_future(live.actor.check_drift())
    for n in range(20):
        city = "Oslo" if n % 2 else "Rome"
        await live.actor.execute([write(person(1, attr_city=city), person(2, attr_city=city))])
    assert (await checking)["segments"] == {}
    await members(live, {1: [1], 2: [1]})


async def test_a_round_that_fails_is_tried_again(live: Stage) -> None:
    evaluating = live.actor._evaluating
    assert evaluating is not None

    def once(work: Any) -> Any:
        del evaluating._pinned  # type: ignore[method-assign]
        raise RuntimeError("no cursor")

    evaluating._pinned = once  # type: ignore[method-assign]
    await live.actor.execute([write(person(1, attr_city="Rome"))])
    await members(live, {2: [1]})
    assert (await live.actor.status())["evaluating_failed"] == 1


def test_the_size_of_a_command_counts_its_tables_and_texts() -> None:
    change = person(1, email="x" * 1_000)
    assert command_bytes(Write((), "k" * 500)) > 500
    assert command_bytes(object()) == 256
    assert command_bytes(Write((change,))) > 1_000
