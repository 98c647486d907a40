"""How many files a shard keeps and how often a byte is written.

One shard of 100,000 people lives through 600 flushes: most of them of a quiet minute, every tenth
of a campaign (planned, leased, accepted: three states of each ledger row). Counted after each
flush: files that the manifest names. Write amplification is the bytes of all Parquet files ever
written over those that flushes wrote. The baseline is what rewriting each changed state table whole
at every flush would have cost, by the same count.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.data import END, people_and_events
from benchmarks.shards import Write, open_store, report, run, say, scratch_root
from manta.command import Change, Op
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore

PEOPLE, FLUSHES = 100_000, 600
AIM_AMPLIFICATION, AIM_FILES = 5.0, 200
_START_US = int(np.datetime64(END, "us").astype(np.int64))


def minute(ids: np.ndarray, number: int, rng: np.random.Generator) -> list[Change]:
    """What one flush covers."""
    busy = number % 10 == 0
    at_us = _START_US + number * 3_600_000_000  # an hour each: the run spans 25 days
    some = np.unique(rng.choice(ids, 20_000 if busy else 200))
    at = pa.array(at_us + np.arange(len(some)), pa.timestamp("us"))
    events = {
        "subscriber_id": some,
        "occurred_at": at,
        "type": pa.array(["sent" if busy else "page_viewed"] * len(some)),
        "event_id": rng.integers(0, 1 << 62, len(some)),
        "item": pa.array(np.char.add("sku-", rng.integers(0, 2_000, len(some)).astype(str))),
    }
    changes = [Change("events", Op.INSERT, pa.table(events))]
    few = some[: len(some) // 4]
    city = pa.array(np.char.add("city ", rng.integers(0, 500, len(few)).astype(str)))
    changes.append(
        Change("profiles", Op.UPSERT, pa.table({"subscriber_id": few, "attr_city": city}))
    )
    segments = pa.array([[int(i) % 7, number] for i in few])
    rows = pa.table({"subscriber_id": few, "segments": segments})
    changes.append(Change("memberships", Op.UPSERT, rows))
    key = pa.array(np.full(len(some), number // 10, np.int64))
    for state in ("planned", "leased", "accepted") if busy else ():
        ledger = {
            "subscriber_id": some,
            "message_key": key,
            "state": pa.array([state] * len(some)),
            "domain": pa.array(np.char.add("d", (some % 50).astype(str))),
            "changed_at": at,
        }
        changes.append(Change("ledger", Op.UPSERT, pa.table(ledger)))
    return changes


def live_state_bytes(store: ShardStore) -> int:
    files = store.maintenance.manifest.files
    return sum(max(e.size_bytes for e in files[t]) for t in files if t not in ("events", "_keys"))


def main() -> None:
    rng = np.random.default_rng(1)
    profiles, events = people_and_events(PEOPLE, 500_000, seed=1)
    ids = profiles["subscriber_id"].to_numpy()
    settings = ShardSettings(hot_event_days=36_500)
    with scratch_root() as root:
        store = open_store(root, settings=settings)
        store.recover()
        first = (Change("profiles", Op.UPSERT, profiles), Change("events", Op.INSERT, events))
        run(store, Write(first))
        most = rewritten = 0
        for number in range(FLUSHES):
            for part, change in enumerate(minute(ids, number, rng)):
                run(store, Write((change,), key=f"{number}/{part}"))
            store.freeze(even_if_early=True)
            store.maintain()
            most = max(most, store.maintenance.figures.live_files)
            rewritten += live_state_bytes(store)
            if number % 100 == 99:
                say(done=number + 1, **vars(store.maintenance.figures))
        figures = store.maintenance.figures
        report(
            "store",
            figures.write_amplification,
            "bytes written for each byte flushed",
            AIM_AMPLIFICATION,
            rewritten / figures.flushed_bytes,
            files_most=most,
            files_aim=AIM_FILES,
            files_pass=most <= AIM_FILES,
            flushes=figures.flushes,
            merges=figures.merges,
            flushed_mb=round(figures.flushed_bytes / 1e6, 1),
            live_mb=round(figures.live_bytes / 1e6, 1),
        )


if __name__ == "__main__":
    main()
