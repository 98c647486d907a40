"""What an idle workspace does with the processor: our actors, Serve, Ray.

An actor's process has threads of Ray's in it: its main one, which wakes a hundred times a second
whatever the actor does, and those that carry its calls. They are told apart by thread (``ours``:
the actor's loop, its own threads, those of DuckDB; ``ray_in_ours``: the others), in nanoseconds
from /proc/<pid>/task/<tid>/schedstat.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from actors import bootstrap, runtime
from manta.settings import HttpSettings, InboxSettings, Settings
from serve_apps.bootstrap import deploy, serve_environment, undeploy, with_free_port

READY_WITHIN_S = 1_800.0
# Threads that Python starts have the name of their process; Ray's others, and DuckDB's allocator,
# names of their own.
PYTHON_THREADS = ("ray::", "jemalloc")
QUIET_S = 20.0  # after everything is evaluated: flushes and compaction come to an end


async def idle_shares(root: str, seconds: float) -> dict[str, Any]:
    """Shares of one core, by whose they are; ``by_role`` tells ``ours`` apart."""
    os.environ.update(serve_environment())
    settings = with_free_port(
        replace(
            Settings(),
            root=root.removeprefix("file://"),
            http=HttpSettings(port=18_300),
            inbox=InboxSettings(port=12_525),
        )
    )
    runtime.start_cluster(num_cpus=2)
    try:
        handles = await bootstrap.up(settings, READY_WITHIN_S)
        await _evaluated(handles)  # first: it takes both processors, and Serve's start is timed
        await asyncio.to_thread(deploy, settings)
        await asyncio.sleep(QUIET_S)
        return await _measured(settings, handles, seconds)
    finally:
        await asyncio.to_thread(undeploy)
        runtime.stop_cluster()


async def _evaluated(handles: Any) -> None:
    """Wait until each shard has evaluated every segment after its recovery."""
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s:
        statuses = await handles.shards.status()
        if all(
            status.get("whole_evaluations", 0) >= status.get("live_segments", 1) > 0
            and not status["segments_waiting"]
            for status in statuses
        ):
            return
        await asyncio.sleep(2)
    raise SystemExit("the segments were not evaluated in time")


async def _measured(settings: Settings, handles: Any, seconds: float) -> dict[str, Any]:
    caller = runtime.Caller(settings.workspace)
    roles = {await caller.pid(role): role for role in bootstrap.roles(settings)}
    rounds = await _rounds(handles)
    await asyncio.sleep(1)  # what was asked just now is not counted
    before = _threads()
    await asyncio.sleep(seconds)
    after = _threads()
    rounds = await _rounds(handles) - rounds
    totals = dict.fromkeys(("ours", "ray_in_ours", "serve", "ray"), 0.0)
    by_role = dict.fromkeys(roles.values(), 0.0)
    for thread, used_ns in after.items():
        share = (used_ns - before.get(thread, 0)) / 1e9 / seconds
        role = roles.get(thread.pid)
        if role is None:
            totals["serve" if _is_serve(thread.process) else "ray"] += share
        elif thread.is_main or not thread.name.startswith(PYTHON_THREADS):
            totals["ray_in_ours"] += share
        else:
            totals["ours"] += share
            by_role[role] += share
    return {
        **{kind: round(share, 4) for kind, share in totals.items()},
        "by_role": {role: round(share, 4) for role, share in by_role.items()},
        "rounds": rounds,
        "seconds": seconds,
    }


async def _rounds(handles: Any) -> int:
    return sum(status["segment_rounds"] for status in await handles.shards.status())


def _is_serve(name: str) -> bool:
    return "Serve" in name or "haproxy" in name or "ProxyActor" in name or "Replica" in name


class Thread(NamedTuple):
    pid: int
    process: str
    name: str
    id: int

    @property
    def is_main(self) -> bool:
        return self.id == self.pid


def _threads() -> dict[Thread, int]:
    """Processor time so far, in ns, of each thread of all that this process has started."""
    found: dict[Thread, int] = {}
    for child in psutil.Process().children(recursive=True):
        try:
            process = " ".join(child.cmdline()[:2]) or child.name()
            for task in Path(f"/proc/{child.pid}/task").iterdir():
                name = (task / "comm").read_text().strip()
                used_ns = int((task / "schedstat").read_text().split()[0])
                found[Thread(child.pid, process, name, int(task.name))] = used_ns
        except (psutil.NoSuchProcess, OSError):
            continue
    return found
