"""Events per second through Serve, each durable before its answer: batches, single posts, hits.

A real workspace behind HAProxy with two shards on ``file://``: HAProxy → one ingest replica (key,
checks, who the person is, events of all requests gathered) → the shards' journals (fsync) → the
answer. The people exist beforehand and are named by their address; the first pass over all of them,
when the replica knows nobody yet, is measured by itself (``cold``). Then by turns, medians of
``ROUNDS`` runs each:

- batches of 100 events of mixed types over ``BATCH_CONNECTIONS`` connections,
- single posts over ``SINGLE_CONNECTIONS`` connections,
- tracking hits against a FastAPI route that stores nothing (``benchmarks.tracking``).

Every connection has one request under way and asks again at once (a closed loop), so the rate and
the latency of single posts are those of the same run. Every answer is compared with the one that
says that all was recorded; at the end the shards must hold exactly the events that were answered.
The generator runs on the same cores: its share of one of them is stated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pyarrow as pa

from actors import bootstrap, runtime
from actors.handles import Handles
from benchmarks import tracking
from benchmarks.http_load import MARK, generate
from manta.people.commands import UpsertPeople
from manta.people.identities import route
from manta.settings import HttpSettings, Settings
from serve_apps.bootstrap import apps, deploy, serve_environment, undeploy, with_free_port
from serve_apps.ingest import SCOPE

PEOPLE = 50_000
HIT_PEOPLE = 2_000
BATCH = 100
BATCH_CONNECTIONS = 8
SINGLE_CONNECTIONS = 48
SECONDS = 10.0
ROUNDS = 3
QUIET_S = 3.0
AIMS = {
    "batch_events_per_s": 8_000,
    "single_posts_per_s": 1_000,
    "single_p99_ms": 100,
    "tracking_ratio": 0.4,
}
URL = "/v1/events"
ALL_RECORDED = f'200 {{"recorded":{BATCH},"repeated":0,"refused":0,"errors":[]}}'
ONE_RECORDED = '200 {"status":"recorded"}'
TYPES = ("page viewed", "product viewed", "cart_updated", "purchased", "signed_in")


def event(random: Random, person: int, id: str) -> dict[str, Any]:
    """What a shop sends: three of five with a product, one with money, all with an id."""
    type = random.choice(TYPES)
    made: dict[str, Any] = {"type": type, "id": id, "email": f"person{person}@shop.example"}
    if type in ("product viewed", "cart_updated", "purchased"):
        made["item"] = f"product-{random.randrange(2_000)}"
        made["properties"] = {"category": random.choice(("shoes", "hats")), "position": 3}
    if type == "purchased":
        made["amount"] = random.randrange(500, 20_000) / 100
    if random.random() < 0.5:
        made["occurred_at"] = f"2026-0{random.randrange(1, 7)}-1{random.randrange(10)}T10:00:00Z"
    return made


def batches(label: str, headers: dict[str, str], in_order: bool = False) -> list[Any]:
    """Enough of them to name everybody about once, ``in_order`` exactly once."""
    random = Random(label)
    people = list(range(PEOPLE)) if in_order else random.choices(range(PEOPLE), k=PEOPLE)
    requests = []
    for start in range(0, PEOPLE, BATCH):
        events = [
            event(random, person, f"{label}-{MARK}-{n}")
            for n, person in enumerate(people[start : start + BATCH])
        ]
        requests.append((URL, json.dumps({"events": events}, separators=(",", ":")), headers))
    return requests


def singles(label: str, headers: dict[str, str], number: int = 20_000) -> list[Any]:
    random = Random(label)
    made = (event(random, random.randrange(PEOPLE), f"{label}-{MARK}") for _ in range(number))
    return [(URL, json.dumps(each, separators=(",", ":")), headers) for each in made]


class Bench:
    """A workspace with people, and what has been answered so far."""

    def __init__(self, settings: Settings, connections: int, seconds: float) -> None:
        self.settings = settings
        self.connections, self.seconds = connections, seconds
        self.headers: dict[str, str] = {}
        self.hits: list[str] = []
        self.roles: dict[int, str] = {}
        self.answered_events = 0
        self.answered_hits = 0

    async def prepare(self) -> None:
        handles = await bootstrap.up(self.settings)
        rows = pa.table({"email": [f"person{n}@shop.example" for n in range(PEOPLE)]})
        people: list[int] = []
        for start in range(0, PEOPLE, 10_000):
            parts = route(rows.slice(start, 10_000), handles.shards.first_buckets)
            for shard, part in parts.items():
                answer = await handles.shards.execute(shard, UpsertPeople(None, part, "benchmark"))
                people += answer.ids.to_pylist()
        self.hits = await tracking.links(handles, self.settings, people[:HIT_PEOPLE])
        made = await handles.catalog.call("create_api_key", "benchmark", [SCOPE])
        self.headers = {"Authorization": f"Bearer {made['key']}"}
        caller = runtime.Caller(self.settings.workspace)
        for role in bootstrap.roles(self.settings):
            self.roles[await caller.pid(role)] = "shards" if role.startswith("shard") else "actors"

    async def held(self) -> int:
        """Events in the shards."""
        handles: Handles = await bootstrap.find(self.settings)
        return sum(status["rows"]["events"] for status in await handles.shards.status())

    def post(
        self, requests: list[Any], connections: int, seconds: float, events: int
    ) -> dict[str, Any]:
        """One run of posts of so many events each."""
        wanted = ONE_RECORDED if events == 1 else ALL_RECORDED
        before = self._processor_s()
        run = generate(self.settings.http.port, requests, connections, seconds)
        used = {kind: s - before.get(kind, 0.0) for kind, s in self._processor_s().items()}
        if run["broken_connections"] or run["answers"].keys() != {wanted}:
            raise SystemExit(f"not every answer was {wanted}: {run}")
        answered = run["answered"] * events
        self.answered_events += answered
        return {
            "events_per_s": round(run["requests_per_s"] * events, 1),
            "p50_ms": run["p50_ms"],
            "p99_ms": run["p99_ms"],
            "generator_share": run["processor_share"],
            "us_per_event": {
                "all": round(sum(used.values()) / answered * 1e6, 1),
                **{kind: round(s / answered * 1e6, 1) for kind, s in used.items()},
            },
        }

    def hit(self) -> dict[str, Any]:
        run = tracking.ask(self.settings.http.port, self.hits, self.seconds)
        if run["broken_connections"] or not run["statuses"].keys() <= {"200", "302"}:
            raise SystemExit(f"not every hit was taken: {run['statuses']}")
        self.answered_hits += run["answered"]
        return run

    def _processor_s(self) -> dict[str, float]:
        """Processor time so far of all that this process has started, by what it is."""
        seconds = dict.fromkeys(("replicas", "shards", "haproxy", "actors", "ray"), 0.0)
        for child in psutil.Process().children(recursive=True):
            try:
                times, name = child.cpu_times(), " ".join(child.cmdline()[:1])
            except psutil.NoSuchProcess:
                continue
            kind = self.roles.get(child.pid, "ray")
            if "Replica" in name:
                kind = "replicas"
            elif "haproxy" in name:
                kind = "haproxy"
            elif "uvicorn" in " ".join(child.cmdline()[:4]):
                continue  # the baseline
            seconds[kind] += times.user + times.system
        return seconds


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median rate."""
    key = "events_per_s" if "events_per_s" in runs[0] else "requests_per_s"
    return sorted(runs, key=lambda run: run[key])[len(runs) // 2]


def settle() -> None:
    """Wait until HAProxy has been the same for ``QUIET_S``: when it has learnt of the last app, a
    new process takes over and the old one ends its connections."""
    seen, since_s = set[int](), time.monotonic()
    while time.monotonic() - since_s < QUIET_S:
        now = {
            child.pid
            for child in psutil.Process().children(recursive=True)
            if "haproxy" in child.name()
        }
        if now != seen:
            seen, since_s = now, time.monotonic()
        time.sleep(0.2)


def measure(bench: Bench, rounds: int, parts: Sequence[str]) -> dict[str, Any]:
    asyncio.run(bench.prepare())
    deploy(
        bench.settings, [app for app in apps(bench.settings) if app.name in ("tracking", "ingest")]
    )
    bare = tracking.start_bare() if "tracking" in parts else None
    settle()
    try:
        result = _rounds(bench, rounds, parts)
    finally:
        if bare is not None:
            _end(bare)
    held, answered = asyncio.run(bench.held()), bench.answered_events + bench.answered_hits
    if held != answered:
        raise SystemExit(f"{answered} events and hits were answered, the shards hold {held}")
    return result | {"stored": held}


def _rounds(bench: Bench, rounds: int, parts: Sequence[str]) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "batch": [], "single": []}
    ratios, hits = [], []
    cold = batches("cold", bench.headers, in_order=True)
    runs["cold"].append(bench.post(cold, BATCH_CONNECTIONS, 0, BATCH))
    print("cold  ", runs["cold"][-1], flush=True)
    for n in range(rounds):
        if "batch" in parts:
            requests = batches(f"batch{n}", bench.headers)
            runs["batch"].append(bench.post(requests, BATCH_CONNECTIONS, bench.seconds, BATCH))
            print("batch ", runs["batch"][-1], flush=True)
        if "single" in parts:
            requests = singles(f"single{n}", bench.headers)
            runs["single"].append(bench.post(requests, bench.connections, bench.seconds, 1))
            print("single", runs["single"][-1], flush=True)
        if "tracking" in parts:
            theirs = tracking.ask(tracking.BARE_PORT, ["/o/x"], bench.seconds)
            hits.append(bench.hit() | {"baseline": theirs["requests_per_s"]})
            ratios.append(hits[-1]["requests_per_s"] / theirs["requests_per_s"])
            print("hits  ", round(ratios[-1], 3), hits[-1]["requests_per_s"], flush=True)
    result = {name: middle(each) for name, each in runs.items() if each}
    if hits:
        shown = ("requests_per_s", "baseline", "p50_ms", "p99_ms")
        result["tracking"] = {"ratio": round(statistics.median(ratios), 3)} | {
            name: statistics.median(run[name] for run in hits) for name in shown
        }
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


def summary(result: dict[str, Any], connections: int) -> dict[str, Any]:
    figures = {}
    if "batch" in result:
        figures["batch_events_per_s"] = result["batch"]["events_per_s"]
    if "single" in result:
        figures["single_posts_per_s"] = result["single"]["events_per_s"]
        figures["single_p99_ms"] = result["single"]["p99_ms"]
    if "tracking" in result:
        figures["tracking_ratio"] = result["tracking"]["ratio"]
    met = {
        name: figure <= AIMS[name] if name.endswith("_ms") else figure >= AIMS[name]
        for name, figure in figures.items()
    }
    return {
        "name": "ingest",
        "figure": figures.get("batch_events_per_s"),
        "unit": f"durable events/s in batches of {BATCH} over HTTP",
        "aim": AIMS["batch_events_per_s"],
        "pass": all(met.values()),
        "figures": figures,
        "aims": AIMS,
        "met": met,
        "single_connections": connections,
        "batch_connections": BATCH_CONNECTIONS,
        "parts": result,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--seconds", type=float, default=SECONDS)
    arguments.add_argument("--connections", type=int, default=SINGLE_CONNECTIONS)
    arguments.add_argument("--parts", nargs="+", default=["batch", "single", "tracking"])
    given = arguments.parse_args()
    os.environ.update(serve_environment())
    with tempfile.TemporaryDirectory(prefix="manta-benchmark-") as root:
        settings = with_free_port(
            replace(Settings(), root=str(Path(root)), http=HttpSettings(port=18_250))
        )
        runtime.start_cluster(num_cpus=2)
        try:
            bench = Bench(settings, given.connections, given.seconds)
            result = measure(bench, given.rounds, given.parts)
        finally:
            undeploy()
            runtime.stop_cluster()
    print(json.dumps(summary(result, given.connections)))


if __name__ == "__main__":
    main()
