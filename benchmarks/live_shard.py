"""One shard of ``benchmarks.live_segments``: processes that build its store and serve it.

The serving process is a real ``ShardActor`` on ``file://``. It is asked through a pipe, as Ray's
actors are through theirs, and takes down two instants on the machine's monotonic clock: when the
answer to each command was ready, and, in the watch that the store calls after a commit, when a
membership could be read by others.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.process import calm_collector, keep_pandas_out
from actors.shard import ShardActor
from benchmarks.data import END, people_and_events
from benchmarks.shards import Write, insert_all, open_store, run
from manta.clock import SystemClock
from manta.command import Change, Command, Op
from manta.events import queries as event_queries
from manta.people import queries as people_queries
from manta.rules import queries as rule_queries
from manta.segments import queries as segment_queries
from manta.segments.notes import Notes
from manta.store.objects import open_objects
from manta.store.queries import Queries
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore

SHARDS = 2
STATUS, DRIFT, MEMBERS, USAGE, END_OF_WORK = "status", "drift", "members", "usage", "end"
Moves = list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]  # when, who, segment, member


def ids_path(folder: str, shard: int) -> Path:
    return Path(folder) / f"ids-{shard}.npy"


def build(root: str, folder: str, shard: int, people: int, events: int) -> None:
    """People and their events of the year before now, with consents, in files."""
    half = (1 << 16) // SHARDS
    profiles, rows = people_and_events(
        people, events, seed=shard, buckets=(shard * half, (shard + 1) * half)
    )
    late_us = (SystemClock().now() - END).total_seconds() * 1e6
    profiles = _later(profiles, ("created_at", "updated_at"), int(late_us))
    rows = _later(rows, ("occurred_at",), int(late_us))
    store = open_store(root, shard)
    store.recover()
    insert_all(store, profiles, rows, 200_000)
    ids = profiles["subscriber_id"].to_numpy()
    some = pa.array(ids[: int(0.7 * people)])
    consents = {
        "subscriber_id": some,
        "channel": _same("email", len(some)),
        "topic": _same("news", len(some)),
        "status": _same("subscribed", len(some)),
        "changed_at": profiles["created_at"].slice(0, len(some)).combine_chunks(),
    }
    run(store, Write((Change("consents", Op.UPSERT, pa.table(consents)),)))
    store.freeze(even_if_early=True)
    store.maintain()
    np.save(ids_path(folder, shard), ids)


def _later(rows: pa.Table, columns: Sequence[str], late_us: int) -> pa.Table:
    by = pa.scalar(late_us, pa.duration("us"))
    for name in columns:
        moved = pc.add(rows[name], by)
        rows = rows.set_column(rows.column_names.index(name), name, moved)
    return rows


def _same(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text), count)


class Shard:
    """The serving process."""

    def __init__(self, root: str, shard: int, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._accepted: list[tuple[float, np.ndarray]] = []
        self._moves: list[tuple[float, Change]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        clock, objects = SystemClock(), open_objects(root)
        notes = Notes(clock)

        def watch(changes: Sequence[Change]) -> None:
            at_s = time.monotonic()
            self._moves += [(at_s, change) for change in changes if change.table == "events"]
            notes.add(changes)

        def open_shard() -> ShardStore:
            settings = ShardSettings(domain={"time_zone": "UTC"})
            nonce = os.urandom(16)
            return ShardStore(
                objects, "default", shard, nonce, clock, Random(1), settings, watch=watch
            )

        queries = Queries(
            people_queries.QUERIES,
            event_queries.QUERIES,
            rule_queries.QUERIES,
            segment_queries.QUERIES,
        )
        self.actor = ShardActor(
            open_shard, lambda *told: None, clock, os._exit, queries, None, notes
        )

    async def serve(self) -> None:
        await self.actor.start()
        calm_collector()
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def receive() -> None:
            while True:
                number, what, arguments = self._connection.recv()
                loop.call_soon_threadsafe(self._begin, number, what, arguments)
                if what == END_OF_WORK:
                    loop.call_soon_threadsafe(ended.set)
                    return

        threading.Thread(target=receive, daemon=True).start()
        self._answer(0, "ready")
        await ended.wait()
        await asyncio.gather(*self._tasks)

    def _begin(self, number: int, what: str, arguments: Any) -> None:
        task = asyncio.ensure_future(self._do(number, what, arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, number: int, what: str, arguments: Any) -> None:
        try:
            answer = await self._answered(what, arguments)
        except Exception as error:
            answer = error
        self._answer(number, answer)

    async def _answered(self, what: str, arguments: Any) -> Any:
        if what == "execute":
            commands, people = arguments
            return await self._execute(commands, people)
        if what == STATUS:
            return await self.actor.status()
        if what == DRIFT:
            return await self.actor.check_drift()
        if what == MEMBERS:
            return await self.actor.query("members", arguments)
        if what == USAGE:
            return sum(os.times()[:2])
        return self._accepted, self._moved()

    async def _execute(self, commands: Sequence[Command], people: np.ndarray | None) -> int:
        answers = await self.actor.execute(commands)
        if people is not None:
            self._accepted.append((time.monotonic(), people))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return len(answers)

    def _moved(self) -> Moves:
        found: Moves = []
        for at_s, change in self._moves:
            rows = change.rows
            rows = rows.filter(pc.equal(rows["type"], "membership_changed"))
            if rows.num_rows:
                said = [json.loads(text) for text in rows["properties"].to_pylist()]
                found.append(
                    (
                        at_s,
                        rows["subscriber_id"].to_numpy(),
                        np.array([one["segment"] for one in said]),
                        np.array([one["member"] for one in said]),
                    )
                )
        self._moves.clear()
        return found

    def _answer(self, number: int, answer: Any) -> None:
        with self._sending:
            self._connection.send((number, answer))


def serve(root: str, shard: int, connection: Connection) -> None:
    keep_pandas_out()
    asyncio.run(Shard(root, shard, connection).serve())
    os._exit(0)  # as actors end: nothing depends on their last moments
