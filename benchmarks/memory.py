"""What the people cost in memory: a million of them with 20 million events, in two processes.

Each child holds one shard. Memory is the proportional set size of both children: after recovery,
and again after half a million changes in each (events, profiles, memberships), flushed as in
operation. The baseline is the same rows in plain Arrow tables.
"""

from __future__ import annotations

import gc
import sys
import time

import numpy as np
import pyarrow as pa

from actors.process import keep_pandas_out
from benchmarks.data import END, people_and_events
from benchmarks.shards import (
    Write,
    hear,
    insert_all,
    open_store,
    pss_bytes,
    report,
    run,
    say,
    scratch_root,
    spawn,
)
from manta.command import Change, Op
from manta.store.shard import ShardStore

SHARDS = 2
PEOPLE, EVENTS, CHANGES = 500_000, 10_000_000, 500_000  # of each shard
GROUP = 1_000
AIM_GB = 3.0


def data(shard: int) -> tuple[pa.Table, pa.Table]:
    half = (1 << 16) // SHARDS
    return people_and_events(PEOPLE, EVENTS, seed=shard, buckets=(shard * half, (shard + 1) * half))


def build(root: str, shard: int) -> None:
    profiles, events = data(shard)
    store = open_store(root, shard)
    store.recover()
    insert_all(store, profiles, events, 100_000)
    store.freeze(even_if_early=True)
    store.maintain()
    say(arrow_bytes=profiles.nbytes + events.nbytes)


def serve(root: str, shard: int) -> None:
    """Recover, wait for a line, change much, wait to be ended."""
    keep_pandas_out()
    store = open_store(root, shard)
    store.recover()
    store.run_hooks()  # which builds the index, as in the actor
    ids = store.database.table("SELECT subscriber_id FROM profiles")["subscriber_id"].to_numpy()
    say(database_bytes=store.database.memory_bytes())
    sys.stdin.readline()
    change(store, ids)
    store.freeze(even_if_early=True)
    store.maintain()
    gc.collect()
    say(database_bytes=store.database.memory_bytes(), rows=store.database.row_counts())
    time.sleep(600)


def change(store: ShardStore, ids: np.ndarray) -> None:
    """Of each 1,000 rows 800 new events, 100 profiles, 100 memberships."""
    rng = np.random.default_rng(store.shard)
    at = np.datetime64(END, "us").astype(np.int64)
    for number in range(CHANGES // GROUP):
        who = rng.choice(ids, 800)
        some = np.unique(rng.choice(ids, 100))
        events = {
            "subscriber_id": who,
            "occurred_at": pa.array(at + number * 1_000_000 + np.arange(800), pa.timestamp("us")),
            "type": pa.array(["opened"] * 800),
            "event_id": rng.integers(0, 1 << 62, 800),
        }
        cities = {"subscriber_id": some, "attr_city": [f"city {number}"] * len(some)}
        memberships = {"subscriber_id": some, "segments": [[1, number]] * len(some)}
        run(
            store,
            Write(
                (
                    Change("events", Op.INSERT, pa.table(events)),
                    Change("profiles", Op.UPSERT, pa.table(cities)),
                    Change("memberships", Op.UPSERT, pa.table(memberships)),
                ),
                key=f"change {number}",
            ),
        )


def main() -> None:
    with scratch_root() as root:
        arrow_bytes = 0
        for shard in range(SHARDS):
            builder = spawn("benchmarks.memory", "build", root, str(shard))
            arrow_bytes += hear(builder)["arrow_bytes"]
            builder.wait()
        children = [spawn("benchmarks.memory", "serve", root, str(s)) for s in range(SHARDS)]
        try:
            held = [hear(child) for child in children]
            pids = [child.pid for child in children]
            recovered_gb = pss_bytes(pids) / 1e9
            print(f"after recovery {recovered_gb:.2f} GB", held, flush=True)
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            held = [hear(child) for child in children]
            changed_gb = pss_bytes(pids) / 1e9
            print(f"after {SHARDS * CHANGES:,} changes {changed_gb:.2f} GB", held, flush=True)
        finally:
            for child in children:
                child.kill()
                child.wait()
        report(
            "memory",
            max(recovered_gb, changed_gb),
            "GB, all shard processes",
            AIM_GB,
            arrow_bytes / 1e9,
            after_recovery_gb=round(recovered_gb, 3),
            after_changes_gb=round(changed_gb, 3),
            database_gb=round(sum(each["database_bytes"] for each in held) / 1e9, 3),
            people=SHARDS * PEOPLE,
            events=SHARDS * EVENTS,
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        {"build": build, "serve": serve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    else:
        main()
