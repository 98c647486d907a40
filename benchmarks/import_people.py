"""Import of a million people from one CSV file, every row durable before it counts.

    python -m benchmarks.import_people [--rows 1000000] [--shards 2]

What runs is the road that an import takes, without Ray between: this process reads, checks and
routes the file (``manta.store.importing``, ``manta.people.importing``); each shard is a child
process with a real ``ShardStore`` on ``file://``: DuckDB, journal with fsync, and a maintenance
thread that flushes the tail to Parquet beside it, as in ``actors/shard.py``. The clock stops when
the last answer has come, each after its journal entry. The baseline is DuckDB's own ``read_csv`` of
the same file into a table in memory, which checks and keeps nothing.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import queue
import resource
import tempfile
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import duckdb

from manta.clock import SystemClock
from manta.command import Command
from manta.ids import even_ranges
from manta.people.importing import ImportSummary, import_people
from manta.people.upsert import Consent
from manta.store.importing import checksum_of, plan_import, read_people
from manta.store.objects import open_objects
from manta.store.shard import ShardStore

AIM_ROWS_PER_S = 25_000
USAGE = "usage"  # asks a child for the processor time it has used
HEADER = ("Email", "First Name", "Last Name", "City", "Country", "Signup Date", "Orders",
          "Revenue", "VIP", "Birthday")  # fmt: skip
CITIES = ("Berlin", "Köln", "Paris", "New York", "São Paulo", "Tokyo", "London", "Oslo")


def write_sample(path: Path, rows: int, seed: int = 7) -> None:
    """A file of ten columns: texts, dates, numbers, a boolean; one row in 500 has a quoted cell."""
    random = Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for n in range(rows):
            city = random.choice(CITIES)
            writer.writerow(
                (
                    f"person{n}@mail{n % 97}.example",
                    f"First{random.randrange(3000)}",
                    f"Last{random.randrange(20000)}",
                    city if n % 500 else f"{city}, old town",
                    "DE" if n % 3 else "US",
                    f"20{random.randrange(10, 26)}-{1 + n % 12:02}-{1 + n % 28:02}",
                    random.randrange(50),
                    f"{random.random() * 1000:.2f}",
                    "yes" if random.random() < 0.1 else "no",
                    f"19{random.randrange(50, 99)}-{1 + n % 11:02}-{1 + n % 27:02}",
                )
            )


# -- a shard as a child process ----------------------------------------------------------------


def serve_shard(root: str, shard: int, connection: Connection) -> None:
    """Execute the commands that come, one group each, and answer; ends at ``None``."""
    nonce = shard.to_bytes(2, "big") + os.urandom(14)
    store = ShardStore(open_objects(root), "default", shard, nonce, SystemClock(), Random(shard))
    store.recover()
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
    maintaining: threading.Thread | None = None
    while (command := arrived.get()) is not None:
        if command == USAGE:
            connection.send(_processor_s())
            continue
        (outcome,) = store.execute([command])
        connection.send(outcome.answer)
        idle = maintaining is None or not maintaining.is_alive()
        if idle and store.freeze():
            maintaining = threading.Thread(target=store.maintain)
            maintaining.start()
    if maintaining is not None:
        maintaining.join()
    (counts,) = store.reader().rows("SELECT count(*) FROM profiles")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    connection.send((counts[0], _processor_s(), peak_mb))


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _receive(connection: Connection, arrived: queue.SimpleQueue[Any]) -> None:
    while True:
        command = connection.recv()
        arrived.put(command)
        if command is None:
            return


class Children:
    """The shards; ``submit`` as ``import_people`` wants it. Answers come in the order asked."""

    def __init__(self, root: str, shards: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connections: list[Connection] = []
        self.processes = []
        self.asked: list[deque[Answer]] = [deque() for _ in range(shards)]
        for shard in range(shards):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_shard, args=(root, shard, theirs), daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)

    def processor_s(self) -> float:
        return sum(self.submit(n, USAGE).result() for n in range(len(self.connections)))

    def submit(self, shard: int, command: Command | str) -> Answer:
        self.connections[shard].send(command)
        answer = Answer(self, shard)
        self.asked[shard].append(answer)
        return answer

    def receive(self, shard: int) -> None:
        answer = self.asked[shard].popleft()
        answer.value, answer.arrived = self.connections[shard].recv(), True

    def finish(self) -> list[tuple[int, float, int]]:
        """Rows, processor seconds and peak memory (MB) of each."""
        for connection in self.connections:
            connection.send(None)
        ends = [connection.recv() for connection in self.connections]
        for process in self.processes:
            process.join(60)
        return ends


class Answer:
    def __init__(self, children: Children, shard: int) -> None:
        self._children, self._shard = children, shard
        self.value: Any = None
        self.arrived = False

    def result(self) -> Any:
        while not self.arrived:
            self._children.receive(self._shard)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


# -- the measurement ---------------------------------------------------------------------------


def run_import(
    path: Path, children: Children, shards: int, key: str
) -> tuple[ImportSummary, float]:
    began = time.perf_counter()
    plan = plan_import(path, {})
    summary = import_people(
        read_people(path, plan),
        children.submit,
        even_ranges(shards),
        key=plan.key(checksum_of(path)) + key,
        source="import",
        consent=Consent("email", "news", "subscribed"),
    )
    return summary, time.perf_counter() - began


def baseline_s(path: Path) -> float:
    """DuckDB's reader alone, on all cores."""
    began = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE people AS FROM read_csv(?)", [str(path)])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where to keep the store (default: /tmp)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "people.csv"
        write_sample(path, arguments.rows)
        print(f"{arguments.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        duckdb_s = baseline_s(path)
        print(f"DuckDB read_csv alone: {duckdb_s:.2f} s", flush=True)
        children = Children(str(Path(folder) / "store"), arguments.shards)
        before_s = _processor_s() + children.processor_s()  # started and recovered
        summary, took_s = run_import(path, children, arguments.shards, "")
        used_s = _processor_s() + children.processor_s() - before_s
        print(f"import: {took_s:.2f} s, {summary}", flush=True)
        again, again_s = run_import(path, children, arguments.shards, "-again")
        print(f"the same file again: {again_s:.2f} s, {again}", flush=True)
        ends = children.finish()
        print(f"shards (rows, processor s, peak MB): {ends}")
        assert sum(rows for rows, _, _ in ends) == arguments.rows == summary.created
        assert again.unchanged == arguments.rows
        kept = sum(file.stat().st_size for file in Path(folder, "store").rglob("*.parquet"))
        print(f"Parquet in the lake: {kept / 1e6:.0f} MB")
    rate = arguments.rows / took_s
    print(
        json.dumps(
            {
                "name": "import_people",
                "figure": round(rate),
                "unit": "rows/s",
                "aim": AIM_ROWS_PER_S,
                "pass": rate >= AIM_ROWS_PER_S,
                "rows": arguments.rows,
                "shards": f"{arguments.shards} child processes, file://",
                # Of reader and shards together; with other work on the machine the rate falls and
                # this does not.
                "processor_us_per_row": round(used_s / arguments.rows * 1e6, 1),
                "again_rows_per_s": round(arguments.rows / again_s),
                "baseline": {
                    "what": "DuckDB read_csv of the same file into memory",
                    "rows_per_s": round(arguments.rows / duckdb_s),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
