"""How long a shard is away when its process is killed.

A child holds a shard of 250,000 people and 5 million events, with a tail in the journal that no
flush has covered. It is killed with SIGKILL; a new process recovers. Time runs from the start of
that process (Python, imports, take-over, load, replay) to its first answer to a query, and to a
command, which waits for the index on the events' people as well. The baseline is the least that
any reload costs: DuckDB reading the same files into bare tables.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time

import duckdb
import pyarrow as pa

from actors.process import keep_pandas_out
from actors.shard import ShardActor
from benchmarks.data import people_and_events
from benchmarks.shards import (
    Write,
    hear,
    insert_all,
    open_store,
    report,
    say,
    scratch_root,
    spawn,
)
from manta.clock import SystemClock
from manta.command import Change, Op
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


def person() -> pa.Table:
    return pa.table({"subscriber_id": [1], "email": ["last@example.com"]})


def recover(root: str) -> None:
    """The child that takes over, answers one query, then one command."""

    async def answer() -> None:
        keep_pandas_out()
        actor = ShardActor(lambda: open_store(root), print, SystemClock(), sys.exit)
        await actor.start()
        rows = await actor.query("row_counts")
        say(rows=rows, cpu_s=time.process_time())
        (written,) = await actor.execute([Write((Change("profiles", Op.UPSERT, person()),))])
        if isinstance(written, Exception):
            raise written
        status = await actor.status()
        say(
            rows=status["rows"],
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
        rounds = [one_round(root, number) for number in range(ROUNDS)]
        read_s, read_cpu_s, write_s, write_cpu_s, replayed = map(
            statistics.median, zip(*rounds, strict=True)
        )
        report(
            "recovery",
            read_s,
            "s from process start to the first answer",
            AIM_S,
            bare_load_s(root),
            processor_s=round(read_cpu_s, 2),
            first_write_s=round(write_s, 2),
            first_write_processor_s=round(write_cpu_s, 2),
            replayed_entries=replayed,
            load_average=round(os.getloadavg()[0], 1),
        )


def one_round(root: str, number: int) -> tuple[float, float, float, float, int]:
    """Wall and processor time to the first read, the same to the first write, entries replayed."""
    started_s = time.perf_counter()
    child = spawn("benchmarks.recovery", "recover", root)
    read = hear(child)
    read_s = time.perf_counter() - started_s
    written = hear(child)
    write_s = time.perf_counter() - started_s
    child.wait()
    # The person that the first round writes is there for the next.
    for rows, people in ((read["rows"], PEOPLE + (number > 0)), (written["rows"], PEOPLE + 1)):
        if (rows["profiles"], rows["events"]) != (people, EVENTS):
            raise SystemExit(f"rows were lost: {rows}")
    print(
        f"{read_s:.2f} s, of the processor {read['cpu_s']:.2f} s;"
        f" first write {write_s:.2f} s, {written['cpu_s']:.2f} s",
        flush=True,
    )
    return read_s, read["cpu_s"], write_s, written["cpu_s"], written["replayed"]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"hold": hold, "recover": recover}[sys.argv[1]](sys.argv[2])
    else:
        main()
