"""What the benchmarks of the shard share: stores, bulk writes, child processes, one result line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from manta.clock import SystemClock
from manta.command import Change, Context, Database, Decision, Op
from manta.store.objects import open_objects
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Write:
    """Rows as they are: what a command costs beyond deciding."""

    changes: tuple[Change, ...]
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        return Decision(None, self.changes)


def open_store(root: str, shard: int = 0, settings: ShardSettings | None = None) -> ShardStore:
    """A store that is not yet recovered, as a new incarnation; all events stay in memory."""
    return ShardStore(
        open_objects(root),
        "default",
        shard,
        os.urandom(16),
        SystemClock(),
        Random(1),
        settings or ShardSettings(hot_event_days=36_500),
    )


def insert_all(store: ShardStore, profiles: pa.Table, events: pa.Table, rows: int) -> None:
    """Write all in groups of ``rows``, flushing when it is due."""
    for table, op, content in (("profiles", Op.UPSERT, profiles), ("events", Op.INSERT, events)):
        for start in range(0, content.num_rows, rows):
            run(store, Write((Change(table, op, content.slice(start, rows)),)))


def run(store: ShardStore, *commands: Write) -> None:
    for outcome in store.execute(commands):
        if outcome.failed:
            raise outcome.answer
    if store.freeze():
        store.maintain()


@contextmanager
def scratch_root() -> Iterator[str]:
    """A storage root for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as folder:
        yield f"file://{folder}"


def spawn(module: str, *arguments: str) -> subprocess.Popen[str]:
    """A child of this benchmark that speaks JSON lines."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def hear(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The child's next line."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"the child ended with {child.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def report(
    name: str, figure: float, unit: str, aim: float, baseline: float | None, **more: Any
) -> None:
    """The result: the last line of a benchmark. Less is better."""
    say(
        name=name,
        figure=round(figure, 3),
        unit=unit,
        aim=aim,
        baseline=None if baseline is None else round(baseline, 3),
        **{"pass": figure <= aim},
        **more,
    )


def pss_bytes(pids: Sequence[int]) -> int:
    """Proportional set size of processes: shared pages are counted once over all."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total
