"""What an idle workspace does with the processor, by process: our actors, Serve, Ray."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import psutil

from actors import bootstrap, runtime
from manta.settings import HttpSettings, InboxSettings, Settings
from serve_apps.bootstrap import deploy, serve_environment, undeploy, with_free_port

READY_WITHIN_S = 1_800.0
QUIET_S = 20.0  # after everything is evaluated: flushes and compaction come to an end


async def idle_shares(root: str, seconds: float) -> dict[str, Any]:
    """Shares of one core: ``ours`` (all resident actors), by role, ``serve``, ``ray``."""
    import os

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
        await asyncio.to_thread(deploy, settings)
        await _evaluated(handles)
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
    ours = {await caller.pid(role): role for role in bootstrap.roles(settings)}
    before, rounds = _seconds(), await _rounds(handles)
    await asyncio.sleep(seconds)
    after = _seconds()
    rounds = await _rounds(handles) - rounds
    shares: dict[str, float] = {}
    totals = {"ours": 0.0, "serve": 0.0, "ray": 0.0}
    for pid, (name, used_s) in after.items():
        share = (used_s - before.get(pid, (name, 0.0))[1]) / seconds
        role = ours.get(pid)
        kind = "ours" if role else "serve" if _is_serve(name) else "ray"
        totals[kind] += share
        if role:
            shares[role] = round(share, 4)
    return {
        **{kind: round(share, 4) for kind, share in totals.items()},
        "by_role": shares,
        "rounds": rounds,
        "seconds": seconds,
    }


async def _rounds(handles: Any) -> int:
    return sum(status["segment_rounds"] for status in await handles.shards.status())


def _is_serve(name: str) -> bool:
    return "Serve" in name or "haproxy" in name or "ProxyActor" in name or "Replica" in name


def _seconds() -> dict[int, tuple[str, float]]:
    """Processor time so far of all that this process has started: Ray and what runs in it."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
            name = " ".join(child.cmdline()[:2]) or child.name()
            found[child.pid] = (name, times.user + times.system)
        except psutil.NoSuchProcess:
            continue
    return found
