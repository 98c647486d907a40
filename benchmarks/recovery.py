"""How long a shard is away when its process is killed.

A child holds a shard of 250,000 people and 5 million events, with a tail in the journal that no
flush has covered. It is killed with SIGKILL; a new process recovers. Time runs from the start of
that process (Python, imports, take-over, load, replay) to its first answer to a query. The
baseline is the least that any reload costs: DuckDB reading the same files into bare tables.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time

import duckdb

from actors.shard import ShardActor
from benchmarks.data import people_and_events
from benchmarks.shards import hear, insert_all, open_store, report, say, scratch_root, spawn
from manta.clock import SystemClock
from manta.store.manifest import Manifests
from manta.store.objects import open_objects

PEOPLE, EVENTS, TAIL = 250_000, 5_000_000, 200_000
ROUNDS = 5
AIM_S = 5.0


def hold(root: str) -> None:
    """The child that is killed."""
    profiles, events = people_and_events(PEOPLE, EVENTS, seed=1)
    store = open_store(root)
    store.recover()
    covered = EVENTS - TAIL
    insert_all(store, profiles, events.slice(0, covered), 100_000)
    store.freeze(even_if_early=True)
    store.maintain()
    insert_all(store, profiles.slice(0, 1_000), events.slice(covered), 20_000)
    say(sequence=store.sequence)
    time.sleep(600)


def recover(root: str) -> None:
    """The child that takes over and answers one query."""

    async def answer() -> None:
        actor = ShardActor(lambda: open_store(root), print, SystemClock(), sys.exit)
        await actor.start()
        rows = await actor.query("row_counts")
        status = await actor.status()
        say(
            rows=rows,
            recovery_s=status["recovery_s"],
            replayed=status["replayed_entries"],
            cpu_s=time.process_time(),
        )
        os._exit(0)

    asyncio.run(answer())


def bare_load_s(root: str) -> float:
    objects = open_objects(root)
    manifest = Manifests(objects, "default/manifest/shard=000", SystemClock()).latest()
    assert manifest is not None
    started_s = time.perf_counter()
    connection = duckdb.connect(":memory:", config={"threads": "1"})
    for table in ("profiles", "events"):
        paths = [objects.local_path(file.path) for file in manifest.files[table]]
        connection.execute(f"CREATE TABLE {table} AS FROM read_parquet(?)", [paths])
    return time.perf_counter() - started_s


def main() -> None:
    with scratch_root() as root:
        holder = spawn("benchmarks.recovery", "hold", root)
        hear(holder)
        holder.kill()
        holder.wait()
        times, cpu, last = [], [], {}
        for _ in range(ROUNDS):
            started_s = time.perf_counter()
            child = spawn("benchmarks.recovery", "recover", root)
            last = hear(child)
            times.append(time.perf_counter() - started_s)
            cpu.append(last["cpu_s"])
            child.wait()
            print(f"{times[-1]:.2f} s, of the processor {cpu[-1]:.2f} s")
        if (last["rows"]["profiles"], last["rows"]["events"]) != (PEOPLE, EVENTS):
            raise SystemExit(f"rows were lost: {last['rows']}")
        report(
            "recovery",
            statistics.median(times),
            "s from process start to the first answer",
            AIM_S,
            bare_load_s(root),
            processor_s=round(statistics.median(cpu), 2),
            replayed_entries=last["replayed"],
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"hold": hold, "recover": recover}[sys.argv[1]](sys.argv[2])
    else:
        main()
