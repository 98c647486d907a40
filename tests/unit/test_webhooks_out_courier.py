"""The courier and the API over real shards and a real Catalog; only the network is a fake."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.courier import Courier
from actors.io.web import Reply
from manta.ids import mint_subscriber_id
from manta.webhooks.retries import SCHEDULE_S
from serve_apps.api import create_api
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house
from tests.unit.store_shard import event, person, write

URL = "https://x.example/hook"
NEW = {"url": URL, "types": ["event.*"]}


@dataclass
class FakeWeb:
    """Answers by a function of (how many came before, body); notes every request."""

    answer: Callable[[int, dict[str, Any]], Reply] = lambda n, body: Reply(200, b"ok")
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    held: asyncio.Event | None = None
    under_way: int = 0
    most: int = 0

    async def check(self, url: str) -> str:
        return "private" if "intranet" in url else ""

    async def request(self, method: str, url: str, headers: Any, content: Any = None) -> Reply:
        assert method == "POST"
        n = len(self.requests)
        self.requests.append((url, dict(headers), content))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await (self.held.wait() if self.held else asyncio.sleep(0))
            return self.answer(n, json.loads(content))
        finally:
            self.under_way -= 1

    @property
    def items(self) -> list[str]:
        return [json.loads(body)["data"]["event"]["item"] for _, _, body in self.requests]


class Town:
    """A house, its courier, its API."""

    def __init__(self, built: House, http: Any) -> None:
        self.house, self.http = built, http
        self.web = FakeWeb()
        self.events = 0
        self.new_courier()

    def new_courier(self) -> None:
        handles = self.house.handles
        self.courier = Courier(handles.catalog, handles.shards, self.web, self.house.clock)
        self.house.calls.roles["courier"] = self.courier

    async def endpoint(self, **fields: Any) -> dict[str, Any]:
        made = await self.http.post("/v1/webhooks", json=NEW | fields)
        assert made.status_code == 201, made.text
        await self.told()
        return made.json()

    async def told(self) -> None:
        await self.house.calls.roles["catalog"]._distributor.told()

    async def happens(self, count: int, shard: int = 0) -> None:
        """One group for each event."""
        who = mint_subscriber_id(shard << 15, self.house.random)
        await self.house.handles.shards.execute(shard, write(person(who, email="p@x.example")))
        for _ in range(count):
            n = self.events = self.events + 1
            told = event(who, "bought", self.house.clock.now(), event_id=n, item=f"i{n}")
            await self.house.handles.shards.execute(shard, write(told))

    async def settled(self) -> None:
        """Until the courier has nothing to do but wait."""
        for _ in range(400):
            await asyncio.sleep(0.005)
            if not self.courier._lanes:
                break
        assert not self.courier._lanes

    async def look(self) -> None:
        """What the shards' hooks do, whose clock stands still here."""
        await self.wake()
        await self.settled()

    async def wake(self) -> None:
        for shard in range(2):
            due = await self.house.handles.shards.query(shard, "deliveries_due")
            await self.courier.deliveries(shard, due)

    async def log(self, id: int, **params: Any) -> list[dict[str, Any]]:
        answer = await self.http.get(f"/v1/webhooks/{id}/deliveries", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]


@asynccontextmanager
async def made_town() -> AsyncIterator[Town]:
    async with house(webhooks=True) as built:
        api = create_api(built.handles, built.authenticator, "http://manta.test")
        async with client(api, "/v1", await built.key()) as http:
            town = Town(built, http)
            yield town
            await town.courier.stop()


@pytest.fixture
async def town():
    async with made_town() as built:
        yield built


async def test_what_happens_arrives_signed(town):
    made = await town.endpoint()
    await town.happens(3)
    await town.happens(1, shard=1)
    await town.look()
    assert sorted(town.web.items) == ["i1", "i2", "i3", "i4"]
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    ids = set()
    for url, headers, body in town.web.requests:
        assert url == URL and headers["content-type"] == "application/json"
        text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{mac}"
        ids.add(headers["webhook-id"])
    log = await town.log(made["id"])
    assert {row["webhook_id"] for row in log} == ids
    assert {(row["state"], row["status"], row["answer"]) for row in log} == {
        ("delivered", 200, "ok")
    }
    assert (await town.http.get(f"/v1/webhooks/{made['id']}")).json()["deliveries"] == {
        "delivered": 4
    }


async def test_a_delivery_is_tried_over_76_hours_under_one_id(town):
    made = await town.endpoint()
    town.web.answer = lambda n, body: Reply(500, b"broken\x1b[31m")
    await town.happens(1)
    await town.look()
    for wait_s in SCHEDULE_S[1:]:
        town.house.clock.advance(wait_s - 1)
        await town.look()
        town.house.clock.advance(wait_s * 0.1 + 2)
        await town.look()
    assert len(town.web.requests) == len(SCHEDULE_S)
    assert len({headers["webhook-id"] for _, headers, _ in town.web.requests}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in town.web.requests}) == 10
    (row,) = await town.log(made["id"], state="failed")
    assert (row["attempts"], row["answer"], row["due_at"]) == (10, "broken [31m", None)


async def test_an_ordered_endpoint_is_told_one_by_one_also_over_a_failure(town):
    made = await town.endpoint(ordered=True)
    town.web.answer = lambda n, body: Reply(500 if n == 2 else 204)
    await town.happens(6)
    await town.look()
    assert town.web.items == ["i1", "i2", "i3"]
    assert town.web.most == 1
    town.house.clock.advance(6)
    await town.look()
    assert town.web.items == ["i1", "i2", "i3", "i3", "i4", "i5", "i6"]
    assert len(await town.log(made["id"], state="delivered")) == 6


async def test_gone_disables(town):
    made = await town.endpoint()
    town.web.answer = lambda n, body: Reply(410)
    await town.happens(1)
    await town.look()
    await town.told()
    found = (await town.http.get(f"/v1/webhooks/{made['id']}")).json()
    assert (found["enabled"], found["disabled"]["cause"]) == (False, "it answered 410 Gone")
    await town.happens(2)
    await town.look()
    assert len(town.web.requests) == 1
    town.web.answer = lambda n, body: Reply(200)
    path = f"/v1/webhooks/{made['id']}"
    again = await town.http.patch(path, json={"enabled": True})
    assert (again.json()["enabled"], again.json()["disabled"]) == (True, None)
    await town.told()
    town.house.clock.advance(1)
    answer = await town.http.post(f"{path}/replay", json={})
    assert (answer.json()["replayed"], answer.json()["more"]) == (1, False)
    await town.look()
    assert [row["state"] for row in await town.log(made["id"])] == ["delivered"]


async def test_five_days_of_nothing_but_failures_disable(town):
    made = await town.endpoint()
    town.web.answer = lambda n, body: Reply(None, failure="nobody there")
    for _ in range(6):
        await town.happens(1)
        await town.look()
        assert (await town.http.get(f"/v1/webhooks/{made['id']}")).json()["enabled"]
        town.house.clock.advance(86_300)
    town.house.clock.advance(86_400 - 6 * 86_300 + 5 * 86_400)
    await town.happens(1)
    await town.look()
    found = (await town.http.get(f"/v1/webhooks/{made['id']}")).json()
    assert not found["enabled"]
    assert found["disabled"]["cause"].startswith("nothing but failures since 2026-03-01T12:00")


async def test_a_busy_endpoint_gets_nothing_until_it_asks(town):
    await town.endpoint()
    town.web.answer = lambda n, body: Reply(429, headers={"retry-after": "120"})
    await town.happens(1)
    await town.look()
    sent = len(town.web.requests)
    await town.happens(3)
    town.house.clock.advance(60)
    await town.look()
    assert len(town.web.requests) == sent
    town.web.answer = lambda n, body: Reply(200)
    town.house.clock.advance(70)
    await town.look()
    assert len(town.web.requests) == sent + 4


async def test_a_slow_request_keeps_no_other_waiting_and_all_are_bounded(town):
    made = await town.endpoint()
    town.web.held = asyncio.Event()
    await town.happens(20)
    await town.wake()
    for _ in range(100):
        await asyncio.sleep(0.002)
        if town.web.under_way == 8:
            break
    assert town.web.under_way == 8  # an endpoint's first room
    town.web.held.set()
    await town.settled()
    await town.look()
    assert len(await town.log(made["id"], state="delivered")) == 20
    assert town.courier._endpoints[made["id"]].under_way == 0


async def test_a_lost_courier_s_deliveries_are_sent_again_under_their_ids(town):
    await town.endpoint()
    town.web.held = asyncio.Event()
    await town.happens(3)
    await town.wake()
    while town.web.under_way < 3:
        await asyncio.sleep(0.002)
    await town.courier.stop()
    first = {headers["webhook-id"] for _, headers, _ in town.web.requests}
    town.web.requests.clear()
    town.web.held = None
    town.new_courier()
    town.house.clock.advance(61)
    await town.courier.start()
    await asyncio.gather(*town.courier._tasks)
    await town.settled()
    assert {headers["webhook-id"] for _, headers, _ in town.web.requests} >= first
    assert len(town.web.requests) == 3


async def test_secrets_rotate_and_are_shown_once(town):
    made = await town.endpoint()
    path = f"/v1/webhooks/{made['id']}"
    rotated = (await town.http.post(f"{path}/rotate", json={"old_secret_hours": 1})).json()
    assert rotated["secret"] != made["secret"] and rotated["old_secret_until"]
    await town.told()
    await town.happens(1)
    await town.look()
    assert len(town.web.requests[0][1]["webhook-signature"].split(" ")) == 2
    for text in (
        (await town.http.get(path)).text,
        (await town.http.get("/v1/webhooks")).text,
        (await town.http.patch(path, json={"description": "d"})).text,
    ):
        assert "whsec_" not in text
    town.house.clock.advance(3_601)
    await town.happens(1)
    await town.look()
    assert len(town.web.requests[-1][1]["webhook-signature"].split(" ")) == 1


async def test_a_change_reaches_the_courier_with_the_next_delivery(town):
    made = await town.endpoint()
    await town.happens(1)
    await town.look()
    await town.http.patch(f"/v1/webhooks/{made['id']}", json={"url": "https://y.example/"})
    await town.told()
    await town.happens(1)
    await town.look()
    assert [url for url, *_ in town.web.requests] == [URL, "https://y.example/"]


async def test_a_test_is_sent_at_once(town):
    made = await town.endpoint()
    town.web.answer = lambda n, body: Reply(404, b"<html>")
    answer = (await town.http.post(f"/v1/webhooks/{made['id']}/test")).json()
    assert (answer["delivered"], answer["status"], answer["answer"]) == (False, 404, "<html>")
    ((_, headers, body),) = town.web.requests
    assert json.loads(body)["type"] == "webhook.test"
    assert headers["webhook-id"] == answer["webhook_id"]


async def test_pages_of_the_log_over_shards_and_one_delivery(town):
    made = await town.endpoint()
    await town.happens(3)
    await town.happens(3, shard=1)
    await town.look()
    path = f"/v1/webhooks/{made['id']}/deliveries"
    seen, cursor = [], None
    while True:
        params = {"limit": 4} | ({"cursor": cursor} if cursor else {})
        page = (await town.http.get(path, params=params)).json()
        seen += [row["webhook_id"] for row in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 6
    one = (await town.http.get(f"{path}/{seen[0]}")).json()
    assert json.loads(one["body"])["type"] == "event.bought"
    assert (await town.http.get(f"{path}/msg_0000000000000")).status_code == 404
    assert (await town.http.get(f"{path}/msg_x")).status_code == 422


async def test_what_cannot_be_an_endpoint_is_refused(town):
    for fields, path in (
        ({"url": "https://intranet.example/"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"types": ["nothing"]}, "types[0]"),
        ({"secret": "short"}, "secret"),
        ({"color": 1}, "color"),
    ):
        answer = await town.http.post("/v1/webhooks", json=NEW | fields)
        assert answer.status_code == 422
        assert answer.json()["path"] == path
    assert (await town.http.get("/v1/webhooks")).json()["items"] == []


async def test_a_repeated_request_makes_one_endpoint_with_one_secret(town):
    headers = {"Idempotency-Key": "k"}
    first = (await town.http.post("/v1/webhooks", json=NEW, headers=headers)).json()
    second = (await town.http.post("/v1/webhooks", json=NEW, headers=headers)).json()
    assert first == second
    assert len((await town.http.get("/v1/webhooks")).json()["items"]) == 1


async def test_discard_and_delete(town):
    made = await town.endpoint()
    path = f"/v1/webhooks/{made['id']}"
    town.web.answer = lambda n, body: Reply(500)
    await town.happens(2)
    await town.look()
    town.house.clock.advance(1)
    answer = await town.http.post(f"{path}/discard", json={"why": "not wanted"})
    assert (answer.json()["discarded"], answer.json()["more"]) == (2, False)
    assert (await town.http.delete(path)).status_code == 204
    assert (await town.http.get(path)).status_code == 404
    town.house.clock.advance(1)
    await town.told()
    await town.happens(1)  # after a command the shard looks around
    shards = town.house.handles.shards
    for _ in range(100):
        counts = await shards.query_all("delivery_counts")
        if counts == [[], []]:
            break
        await asyncio.sleep(0.002)
    assert counts == [[], []]


async def test_without_the_scope_nothing(town):
    headers = await town.house.key("segments:read")
    assert (await town.http.get("/v1/webhooks", headers=headers)).status_code == 403
