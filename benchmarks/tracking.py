"""Opens and clicks per second through Serve, each durable before its answer.

Ours: HAProxy → one tracking replica (token checked, p(human) judged, hits gathered) → the shards'
journals (fsync) → the answer. Against it, in the same run and by the same generator: a FastAPI
route that stores nothing, on one bare uvicorn process. Rounds alternate, the median counts. After
the last round the shards are asked how many hits they hold: as many as were answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from actors import bootstrap, runtime
from actors.handles import Handles
from benchmarks.http_load import generate
from manta.content.tokens import TokenKind, keyring_of
from manta.ids import MessageRef
from manta.people.commands import UpsertPeople
from manta.people.identities import route
from manta.settings import HttpSettings, Settings
from serve_apps.bootstrap import apps, deploy, serve_environment, undeploy, with_free_port

CONNECTIONS = 256
SECONDS = 5.0
ROUNDS = 3
PEOPLE = 2_000
AIM = 0.4
CAMPAIGN = 1
BARE_PORT = 18_123


def bare() -> Any:
    """What a route costs that does nothing: the baseline."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/o/{token}")
    async def opened(token: str) -> dict[str, bool]:
        return {"ok": True}

    return app


async def prepare(settings: Settings) -> list[str]:
    """Links of mails to people in the shards of a workspace that this starts."""
    handles = await bootstrap.up(settings)
    rows = pa.table({"email": [f"reader{n}@shop.example" for n in range(PEOPLE)]})
    people: list[int] = []
    for shard, part in route(rows, handles.shards.first_buckets).items():
        answer = await handles.shards.execute(shard, UpsertPeople(None, part, "benchmark"))
        people += answer.ids.to_pylist()
    return await links(handles, settings, people)


async def links(handles: Handles, settings: Settings, people: list[int]) -> list[str]:
    """The addresses of links in mails to these people: three opens a click."""
    ring = keyring_of(await handles.catalog.call("token_keys"), settings.workspace)
    Random(1).shuffle(people)
    paths = []
    for n, person in enumerate(people):
        ref = MessageRef(person, CAMPAIGN)
        if n % 4:
            paths.append(f"/o/{ring.sign(TokenKind.OPEN, ref, CAMPAIGN)}")
        else:
            url = f"https://shop.example/products/{n}?utm_source=mail"
            paths.append(f"/c/{ring.sign(TokenKind.CLICK, ref, CAMPAIGN, 1, url)}")
    return paths


async def stored(settings: Settings) -> int:
    """Hits that the shards hold."""
    handles: Handles = await bootstrap.find(settings)
    reports = await handles.shards.query_all("campaign_report", {"campaign_id": CAMPAIGN})
    kinds = ("opened", "clicked")
    return sum(report["events"][kind]["total"] for report in reports for kind in kinds)


def ask(port: int, paths: list[str], seconds: float = SECONDS) -> dict[str, Any]:
    """One run of the generator over these links."""
    return generate(port, [(path, None, {}) for path in paths], CONNECTIONS, seconds)


def start_bare() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "benchmarks.tracking:bare", "--factory"]
    process = subprocess.Popen(
        [*command, "--port", str(BARE_PORT), "--log-level", "warning", "--no-access-log"]
    )
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{BARE_PORT}/o/x", timeout=1)
            return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit("uvicorn did not start")


def main() -> None:
    os.environ.update(serve_environment())
    with tempfile.TemporaryDirectory(prefix="manta-benchmark-") as root:
        settings = with_free_port(
            replace(Settings(), root=str(Path(root)), http=HttpSettings(port=18_200))
        )
        runtime.start_cluster(num_cpus=2)
        try:
            measure(settings)
        finally:
            undeploy()
            runtime.stop_cluster()


def measure(settings: Settings) -> None:
    paths = asyncio.run(prepare(settings))
    deploy(settings, [app for app in apps(settings) if app.name == "tracking"])
    process = start_bare()
    ours, theirs = [], []
    try:
        for _ in range(ROUNDS):
            theirs.append(ask(BARE_PORT, ["/o/x"]))
            print("bare uvicorn ", theirs[-1], flush=True)
            ours.append(ask(settings.http.port, paths))
            print("Manta durable", ours[-1], flush=True)
    finally:
        process.terminate()
        process.wait(10)
    answered = sum(sum(run["statuses"].values()) for run in ours)
    refused = sum(n for run in ours for s, n in run["statuses"].items() if s not in ("200", "302"))
    held = asyncio.run(stored(settings))
    if refused or held != answered:
        raise SystemExit(f"{answered} answers, {refused} refused, {held} hits in the shards")
    figure = statistics.median(run["requests_per_s"] for run in ours)
    baseline = statistics.median(run["requests_per_s"] for run in theirs)
    ratio = figure / baseline
    print(
        json.dumps(
            {
                "name": "tracking",
                "ratio": round(ratio, 3),
                "unit": "× the requests/s of a FastAPI route that stores nothing",
                "aim": AIM,
                "pass": ratio >= AIM,
                "figure": figure,
                "baseline": baseline,
                "connections": CONNECTIONS,
                "keep_alive": True,
                "p50_ms": statistics.median(run["p50_ms"] for run in ours),
                "p99_ms": statistics.median(run["p99_ms"] for run in ours),
                "generator_share": {
                    "ours": statistics.median(run["processor_share"] for run in ours),
                    "baseline": statistics.median(run["processor_share"] for run in theirs),
                },
                "hits_stored": held,
            }
        )
    )


if __name__ == "__main__":
    main()
