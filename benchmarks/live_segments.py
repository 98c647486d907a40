"""Live segments under load: how long until an event has moved its people, and what idling costs.

    python -m benchmarks.live_segments [--people 1000000] [--events 20000000] [--seconds 60]

A million people, twenty million events of the past year, a hundred segments of mixed kinds
(``benchmarks.live_rules``), two real shard actors in processes of their own on ``file://``. After
everything is evaluated once, 1,000 events a second come in small batches, beside them changes of
attributes and consents, each of somebody to whom nothing else happens, so that what moves has one
cause. Measured is the time from the instant at which the answer to an event was ready (accepted,
durable) to that at which others can read the membership that it moved. Some events are probes: each
must move its person, and each is looked for by the shard's query as well. Others are set so that
their window ends at a known instant, with nothing else happening to the person then.
At the end the shards evaluate everything whole and compare.

Then a workspace is started on the same data as ``manta up`` does it, with all actors and apps on
Ray, and left alone: what the processor does for each is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import live_rules
from benchmarks.live_idle import idle_shares
from benchmarks.live_shard import (
    DRIFT,
    END_OF_WORK,
    MEMBERS,
    SHARDS,
    STATUS,
    USAGE,
    Moves,
    build,
    ids_path,
    serve,
)
from benchmarks.shards import scratch_root
from manta.clock import SystemClock
from manta.command import Command
from manta.events.commands import RecordEvents, TrackHits
from manta.ids import campaign_message_key
from manta.people.commands import EditList, SetConsent, UpsertPeople
from manta.people.definitions import SetDefinition

RATE = 1_000  # events a second, over all shards
TICK_S = 0.05
AIM_P99_S, AIM_TIME_S, AIM_IDLE = 0.5, 1.0, 0.02
PROBE_SHARE = 0.02
SETTLE_S = 3.0
READY_WITHIN_S = 1_800.0
clock = SystemClock()


class Child:
    """A shard's process, as its callers have it."""

    def __init__(self, root: str, shard: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(root, shard, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._asked: dict[int, Future[Any]] = {0: Future()}
        self._number, self._lock = 0, threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()
        self.ready = self._asked[0]

    def ask(self, what: str, arguments: Any = None) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._number += 1
            self._asked[self._number] = future
            self._connection.send((self._number, what, arguments))
        return future

    def execute(self, commands: list[Command], people: np.ndarray | None = None) -> Future[Any]:
        return self.ask("execute", (commands, people))

    def _receive(self) -> None:
        while True:
            try:
                number, answer = self._connection.recv()
            except (EOFError, OSError):
                for future in self._asked.values():
                    future.set_exception(RuntimeError("the shard's process has ended"))
                return
            future = self._asked.pop(number)
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


@dataclass
class Load:
    """What one shard gets, tick by tick; ``turns``: person → instant (monotonic) of a flip."""

    ids: np.ndarray
    rng: np.random.Generator
    turns: dict[int, float] = field(default_factory=dict)
    probes: set[int] = field(default_factory=set)
    sent: int = 0

    def __post_init__(self) -> None:
        self.ids = self.rng.permutation(self.ids)
        self._next = 0

    def _people(self, count: int) -> np.ndarray:
        """People to whom nothing has happened yet: what moves them has one cause."""
        self._next += count
        if self._next > len(self.ids):
            raise SystemExit("fewer people than events: take more --people or fewer --seconds")
        return self.ids[self._next - count : self._next]

    def commands(self, count: int) -> tuple[list[Command], np.ndarray]:
        """Commands of a tick, and whom they concern."""
        rng, self.sent = self.rng, self.sent + count
        people = self._people(count)
        kinds = rng.random(count)
        hits = kinds < 0.25
        kind = np.where(kinds < 0.8, "page_viewed", "purchased").astype(object)
        probe = kinds > 1 - PROBE_SHARE
        kind[probe] = "probe"
        own, rows = people[~hits], int((~hits).sum())
        self.probes.update(people[probe].tolist())
        items = np.char.add("sku-", rng.integers(0, 60, rows).astype(str))
        record = pa.table(
            {
                "subscriber_id": own,
                "type": kind[~hits].tolist(),
                "id": [f"{n:x}" for n in rng.integers(0, 1 << 62, rows).tolist()],
                "occurred_at": pa.array([clock.now()] * rows, pa.timestamp("us")),
                "item": items.tolist(),
                "amount": np.round(rng.lognormal(3.2, 0.8, rows), 2),
            }
        )
        commands: list[Command] = [RecordEvents(None, record)]
        if hits.any():
            commands.append(self._hits(people[hits]))
        if rng.random() < 0.25:
            commands.append(self._one_changes())
        if rng.random() < 0.1:
            commands.append(self._one_turns())
        return commands, people

    def _hits(self, people: np.ndarray) -> Command:
        rng, count = self.rng, len(people)
        campaigns = rng.integers(1, 101, count)
        rows = {
            "subscriber_id": people,
            "message_key": [campaign_message_key(int(c)) for c in campaigns],
            "type": np.where(rng.random(count) < 0.7, "opened", "clicked").tolist(),
            "event_id": rng.integers(0, 1 << 62, count),
            "occurred_at": pa.array([clock.now()] * count, pa.timestamp("us")),
            "campaign_id": pa.array(campaigns, pa.int32()),
        }
        return TrackHits(None, pa.table(rows))

    def _one_changes(self) -> Command:
        (id,) = self._people(1).tolist()
        if self.rng.random() < 0.5:
            status = str(self.rng.choice(["subscribed", "unsubscribed"]))
            return SetConsent(None, id, "email", "news", status, "benchmark")
        city = str(self.rng.choice(live_rules.CITIES))
        return UpsertPeople(
            None, pa.table({"subscriber_id": [id], "attr_city": [city]}), "benchmark"
        )

    def _one_turns(self) -> Command:
        """An event whose window of one minute ends 2 to 12 s from now."""
        (id,) = self._people(1).tolist()
        in_s = float(self.rng.uniform(2, 12))
        at = clock.now() - timedelta(seconds=60 - in_s)
        self.turns[id] = time.monotonic() + in_s
        rows = {
            "subscriber_id": [id],
            "type": ["probe_in_time"],
            "id": [f"{self.rng.integers(0, 1 << 62):x}"],
            "occurred_at": pa.array([at], pa.timestamp("us")),
        }
        return RecordEvents(None, pa.table(rows))


# -- before the load -------------------------------------------------------------------------------


def build_all(root: str, folder: str, people: int, events: int) -> None:
    context = multiprocessing.get_context("spawn")
    for shard in range(SHARDS):  # one after the other: each needs memory for all its rows
        process = context.Process(
            target=build, args=(root, folder, shard, people // SHARDS, events // SHARDS)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"building shard {shard} ended with {process.exitcode}")


def definitions() -> list[Command]:
    commands: list[Command] = [
        SetDefinition(
            None,
            "segment",
            str(id),
            1,
            {
                "name": f"segment {id}",
                "type": "rule",
                "live": True,
                "rule": rule,
                "attributes": live_rules.TYPES,
            },
        )
        for id, rule in live_rules.rules().items()
    ]
    body = {"name": "a list", "type": "list", "live": False, "rule": None, "attributes": {}}
    return [*commands, SetDefinition(None, "segment", str(live_rules.LIST), 1, body)]


def evaluated(children: list[Child]) -> list[dict[str, Any]]:
    """Wait until every segment has been evaluated whole; the status of each shard."""
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s:
        statuses = [child.ask(STATUS).result(60) for child in children]
        if all(
            status["live_segments"] == live_rules.SEGMENTS
            and status["whole_evaluations"] >= live_rules.SEGMENTS
            and not status["segments_waiting"]
            and not status["people_waiting"]
            and status["mailbox_commands"] == 0
            for status in statuses
        ):
            time.sleep(1)
            if statuses[0]["sequence"] == children[0].ask(STATUS).result(60)["sequence"]:
                return statuses
        time.sleep(1)
    raise SystemExit(f"the segments were not evaluated in time: {statuses}")


# -- the load --------------------------------------------------------------------------------------


def under_load(
    children: list[Child], loads: list[Load], seconds: float, rate: float
) -> tuple[float, int]:
    """Send at the rate for so long; how late the sender was at worst, and how many events."""
    each = rate * TICK_S / SHARDS
    began_s, late_s, owed = time.monotonic(), 0.0, [0.0] * SHARDS
    waiting: deque[Future[Any]] = deque()
    for tick in range(int(seconds / TICK_S)):
        for shard, (child, load) in enumerate(zip(children, loads, strict=True)):
            at_s = began_s + (tick + shard / SHARDS) * TICK_S
            pause_s = at_s - time.monotonic()
            late_s = max(late_s, -pause_s)
            if pause_s > 0:
                time.sleep(pause_s)
            owed[shard] += each
            count = int(owed[shard])
            owed[shard] -= count
            commands, people = load.commands(count)
            waiting.append(child.execute(commands, people))
        while waiting and waiting[0].done():
            waiting.popleft().result()
    for future in waiting:
        future.result(60)
    return late_s, sum(load.sent for load in loads)


@dataclass
class Seen:
    """Latencies in seconds, and what was never seen."""

    moved_s: list[float] = field(default_factory=list)
    probes_s: list[float] = field(default_factory=list)
    turned_s: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def look(accepted: list[tuple[float, np.ndarray]], moves: Moves, load: Load, seen: Seen) -> None:
    """Match what was accepted with what was seen to move."""
    heard = {id: at_s for at_s, people in accepted for id in people.tolist()}
    entered: dict[int, float] = {}
    left: dict[int, float] = {}
    for at_s, people, segments, inside in moves:
        rows = zip(people.tolist(), segments.tolist(), inside.tolist(), strict=True)
        for id, segment, member in rows:
            since = heard.get(id)
            if segment == live_rules.PROBE and member:
                entered[id] = at_s
            elif segment == live_rules.PROBE_IN_TIME and not member:
                left[id] = at_s
            elif since is not None and 0 <= at_s - since < 10:
                seen.moved_s.append(at_s - since)
    for id in load.probes:
        if id in entered:
            seen.probes_s.append(entered[id] - heard[id])
        else:
            seen.missing.append(f"probe of {id}")
    for id, at_s in load.turns.items():
        if id in left:
            seen.turned_s.append(left[id] - at_s)
        else:
            seen.missing.append(f"turn of {id}")


def by_query(children: list[Child], loads: list[Load]) -> int:
    """How many probes the shards' own query does not show."""
    lost = 0
    for child, load in zip(children, loads, strict=True):
        found: set[int] = set()
        after = 0
        while True:
            page = child.ask(
                MEMBERS, {"segment_id": live_rules.PROBE, "after": after, "limit": 1_000}
            ).result(60)
            found |= {row["subscriber_id"] for row in page}
            if len(page) < 1_000:
                break
            after = page[-1]["subscriber_id"]
        lost += len(load.probes - found)
    return lost


def quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q)) if values else float("nan")


def measure(root: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    children = [Child(root, shard) for shard in range(SHARDS)]
    for child in children:
        child.ready.result(300)
    loads = [
        Load(np.load(ids_path(folder, shard)), np.random.default_rng(100 + shard))
        for shard in range(SHARDS)
    ]
    began_s = time.monotonic()
    for child, load in zip(children, loads, strict=True):
        listed = pa.array(load.ids[: len(load.ids) // 30][:40_000])
        put = EditList(None, live_rules.LIST, listed, pa.array([], pa.int64()), "benchmark")
        child.execute([*definitions(), put]).result(300)
    statuses = evaluated(children)
    whole_s = time.monotonic() - began_s
    members = sum(status["memberships_moved"] for status in statuses)
    print(f"evaluated in {whole_s:.0f} s, {members:,} memberships", flush=True)
    print("shards:", *(child.process.pid for child in children), flush=True)
    used_s = [child.ask(USAGE).result(60) for child in children]
    late_s, sent = under_load(children, loads, options.seconds, options.rate)
    time.sleep(12 + SETTLE_S)  # the last turns are up to 12 s off
    busy = sum(child.ask(USAGE).result(60) for child in children) - sum(used_s)
    statuses = [child.ask(STATUS).result(60) for child in children]
    lost = by_query(children, loads)
    drift = [child.ask(DRIFT).result(900)["segments"] for child in children]
    seen = Seen()
    for child, load in zip(children, loads, strict=True):
        accepted, moves = child.ask(END_OF_WORK).result(300)
        look(accepted, moves, load, seen)
        child.process.join(60)
    print("never seen:", seen.missing[:5], "and by query:", lost, flush=True)
    for status in statuses:
        print({name: value for name, value in status.items() if name in REPORTED}, flush=True)
    everything = seen.moved_s + seen.probes_s
    return {
        "p50_s": round(quantile(everything, 0.5), 3),
        "p99_s": round(quantile(everything, 0.99), 3),
        "worst_s": round(max(everything), 3),
        "probes_p99_s": round(quantile(seen.probes_s, 0.99), 3),
        "turn_p50_s": round(quantile(seen.turned_s, 0.5), 3),
        "turn_worst_s": round(max(seen.turned_s), 3),
        "moves_seen": len(everything),
        "turns_seen": len(seen.turned_s),
        "never_seen": len(seen.missing) + lost,
        "drift": sum(n for found in drift for one in found.values() for n in one.values()),
        "events": sent,
        "events_per_s": options.rate,
        "sender_late_worst_s": round(late_s, 3),
        "first_evaluation_s": round(whole_s, 1),
        "memberships": members,
        "shards_processor_share": round(busy / (options.seconds + 12 + SETTLE_S), 2),
    }


REPORTED = (
    *("segment_rounds", "people_asked", "rules_asked", "memberships_moved", "evaluating_failed"),
    *("membership_lag_p50_s", "membership_lag_p99_s", "people_timed", "commit_p99_s"),
    *("answer_p99_s", "whole_evaluations", "memory_bytes", "next_flip"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=0, help="20 a person, unless said")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=RATE, help="events a second")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    options = parser.parse_args()
    events = options.events or 20 * options.people
    with scratch_root() as root, tempfile.TemporaryDirectory(prefix="manta-bench-") as folder:
        began_s = time.monotonic()
        build_all(root, folder, options.people, events)
        print(f"built in {time.monotonic() - began_s:.0f} s", flush=True)
        figures = measure(root, folder, options)
        print(json.dumps(figures), flush=True)
        idle: dict[str, Any] = {}
        if options.idle_seconds:
            idle = asyncio.run(idle_shares(root, options.idle_seconds))
    passed = (
        figures["p99_s"] <= AIM_P99_S
        and figures["turn_worst_s"] <= AIM_TIME_S
        and figures["drift"] == 0
        and figures["never_seen"] == 0
        and idle.get("ours", 0.0) <= AIM_IDLE
    )
    result = {
        "name": "live_segments",
        "figure": figures["p99_s"],
        "unit": "s from an event accepted to its membership readable, p99",
        "aim": AIM_P99_S,
        "pass": passed,
        "baseline": None,
        **figures,
        "turn_aim_s": AIM_TIME_S,
        "idle_share_of_a_core": idle,
        "idle_aim": AIM_IDLE,
        "people": options.people,
        "events_before": events,
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
