"""A workspace with a campaign that runs, behind the console, in the test's own event loop.

The shards are real actors; campaigns are documents that the stage moves along itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any

import pyarrow as pa
import uvicorn

from manta.clock import as_text
from manta.command import Change, Op
from manta.delivery.campaign import CampaignPlan, Kind
from manta.ids import campaign_message_key
from manta.people.identities import route
from manta.people.upsert import UpsertPeople
from serve_apps.console import create_console
from tests.unit.serve_world import House, house
from tests.unit.store_shard import Write

PEOPLE = 400
FINAL = (
    *(("accepted", None, 250, "2.0.0 Ok: queued as 4bC1"),) * 22,
    ("failed", "mailbox_unknown", 550, "5.1.1 <x@y.example>: Recipient address rejected"),
    ("failed", "mailbox_full", 552, "5.2.2 Mailbox full"),
    ("uncertain", "no_reply", None, None),
)


class Director:
    """Campaigns as the Director shows them, without anything behind."""

    def __init__(self, stage: House) -> None:
        self._clock = stage.clock
        self.held: dict[int, dict[str, Any]] = {}
        self.forecasts: dict[int, dict[str, Any]] = {}

    def add(self, id: int, name: str, state: str, topic: str = "newsletter") -> None:
        now = as_text(self._clock.now())
        history = [{"at": now, "state": "draft"}]
        if state != "draft":
            history.append({"at": now, "state": "running"})
        self.held[id] = {
            "id": id,
            "name": name,
            "state": state,
            "topic": topic,
            "kind": "marketing",
            "policy": "hold",
            "segment_id": 1,
            "template_id": 1,
            "template_version": 1,
            "launch_at": None,
            "definition": None if state == "draft" else "{}",
            "history": history,
            "created_at": now,
            "changed_at": now,
            "progress": {"shards_planned": 2, "shards": 2, "planned": PEOPLE, "suppressed": 12},
        }

    async def list(self, collection: str) -> list[dict[str, Any]]:
        return list(self.held.values())

    async def get(self, collection: str, id: str) -> dict[str, Any] | None:
        return self.held.get(int(id))

    async def campaign(self, id: int) -> dict[str, Any]:
        return self.held[id]

    async def forecast(self, id: int) -> dict[str, Any]:
        return {"campaign": self.held[id], "forecast": self.forecasts.get(id)}

    async def pause(self, id: int) -> dict[str, Any]:
        return self._move(id, "paused")

    async def resume(self, id: int) -> dict[str, Any]:
        return self._move(id, "running")

    async def cancel(self, id: int) -> dict[str, Any]:
        return self._move(id, "cancelled")

    async def status(self) -> dict[str, Any]:
        return {"driving": [3], "senders": ["sender-00"], "due": {"0": []}}

    def _move(self, id: int, state: str) -> dict[str, Any]:
        self.held[id]["state"] = state
        return self.held[id]


class Stage:
    """People, one running campaign, and hands to move it on."""

    def __init__(self, built: House) -> None:
        self.house = built
        self.director = Director(built)
        built.calls.roles["director"] = self.director
        self.random = Random(11)
        self.waiting: list[int] = []
        self.accepted: list[int] = []

    async def fill(self) -> None:
        shards = self.house.handles.shards
        rows = pa.table({"email": [f"reader{n}@shop.example" for n in range(PEOPLE)]})
        for shard, part in route(rows, shards.first_buckets).items():
            answer = await shards.execute(shard, UpsertPeople(None, part, "stage"))
            self.waiting += answer.ids.to_pylist()
        self.director.add(1, "Welcome back", "finished")
        self.director.add(2, "Summer sale, first look", "draft", "offers")
        self.director.add(3, "Spring collection", "running")
        await self.write("ledger", [self._row(p, 3, "planned") for p in self.waiting])
        old = self.waiting[:120]
        await self.write("ledger", [self._row(p, 1, "accepted", None, 250, "Ok") for p in old])
        await self._count(3, self.waiting)
        await self._count(1, old)
        dead = [self._row(p, 3, "suppressed", "unsubscribed") for p in self.waiting[:12]]
        await self.write("ledger", dead)
        self.waiting = self.waiting[12:]
        self.random.shuffle(self.waiting)

    async def advance(self, count: int, seconds: float = 1.0) -> None:
        """Settle some messages, and let some people react to earlier ones."""
        self.house.clock.advance(seconds)
        now, self.waiting = self.waiting[:count], self.waiting[count:]
        rows = [self._row(p, 3, *self.random.choice(FINAL)) for p in now]
        await self.write("ledger", rows)
        self.accepted += [r["subscriber_id"] for r in rows if r["state"] == "accepted"]
        readers = [p for p in self.accepted if self.random.random() < 0.02]
        kinds = ["opened"] * 5 + ["clicked"] * 2 + ["unsubscribed"]
        events = [self._event(p, self.random.choice(kinds)) for p in readers]
        if events:
            await self.write("events", events)

    async def _count(self, campaign: int, people: list[int]) -> None:
        """Each shard's count of the rows that were planned, and the plan."""
        now = self.house.clock.now()
        plan = CampaignPlan(
            campaign, Kind.MARKETING, "email", "newsletter", "1", 1, "main", now
        ).to_json()
        shards = self.house.handles.shards
        for shard, rows in Counter(shards.of_subscriber(person) for person in people).items():
            row = {"campaign_id": campaign, "definition": plan, "planned_rows": rows}
            counted = pa.Table.from_pylist([row])
            await shards.execute(shard, Write((Change("campaigns", Op.UPSERT, counted),)))

    async def write(self, table: str, rows: list[dict[str, Any]]) -> None:
        op = Op.INSERT if table == "events" else Op.UPSERT
        shards = self.house.handles.shards
        for shard in range(shards.count):
            part = [r for r in rows if shards.of_subscriber(r["subscriber_id"]) == shard]
            if part:
                await shards.execute(shard, Write((Change(table, op, pa.Table.from_pylist(part)),)))

    def _row(
        self,
        person: int,
        campaign: int,
        state: str,
        reason: str | None = None,
        code: int | None = None,
        reply: str | None = None,
    ) -> dict[str, Any]:
        now = self.house.clock.now()
        return {
            "subscriber_id": person,
            "message_key": campaign_message_key(campaign),
            "campaign_id": campaign,
            "kind": "marketing",
            "channel": "email",
            "state": state,
            "reason": reason,
            "domain": "shop.example",
            "attempts": 1 if code else 0,
            "reply_code": code,
            "reply": reply,
            "changed_at": now - timedelta(milliseconds=self.random.randrange(900)),
        }

    def _event(self, person: int, kind: str) -> dict[str, Any]:
        return {
            "subscriber_id": person,
            "message_key": campaign_message_key(3),
            "campaign_id": 3,
            "type": kind,
            "event_id": self.random.getrandbits(63),
            "occurred_at": self.house.clock.now(),
        }


@asynccontextmanager
async def serving(app: Any, root_path: str) -> AsyncIterator[str]:
    """The app on a free port of this machine; its address."""
    config = uvicorn.Config(
        app, port=0, root_path=root_path, log_level="warning", lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
    with contextlib.suppress(AttributeError):
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def stage() -> AsyncIterator[tuple[Stage, str, str]]:
    """The stage, the address of its console, and a key."""
    async with house() as built:
        made = Stage(built)
        await made.fill()
        rule = {"attribute": {"name": "email", "operator": "contains", "value": "7"}}
        await built.handles.catalog.call("save", "segments", {"name": "Sevens", "rule": rule})
        app = create_console(built.handles, built.authenticator, secure=False)
        key = (await built.key())["Authorization"].removeprefix("Bearer ")
        async with serving(_mounted(app), "") as address:
            yield made, f"{address}/console/", key


def _mounted(app: Any) -> Any:
    """As Serve does it: the prefix is the app's root path and stays in the path."""

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/console"}, receive, send)

    return mounted
