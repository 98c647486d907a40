"""Event ingestion over real actors in one process."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from manta.errors import StoreUnavailable
from serve_apps import gather, ingest
from serve_apps.collect.rates import Rate
from serve_apps.ingest import create_ingest
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house

URL = "/v1/events"


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House) -> Any:
    app = create_ingest(world.handles, world.authenticator, "r1", Random(3))
    async with client(app, URL, await world.key("events:write")) as opened:
        yield opened


def stored(world: House) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for role, actor in world.calls.roles.items():
        if role.startswith("shard-"):
            rows += actor._store.database.table("SELECT * FROM events ORDER BY type").to_pylist()
    return rows


async def test_an_event_is_stored_before_the_answer(world, http):
    event = {
        "type": "purchase",
        "id": "o-1",
        "email": "Ann@x.example",
        "item": "shoe",
        "amount": 49.5,
        "occurred_at": "2026-02-01T10:00:00+01:00",
        "properties": {"size": 42},
    }
    assert (await http.post(URL, json=event)).json() == {"status": "recorded"}
    assert (await http.post(URL, json=event)).json() == {"status": "repeated"}
    (row,) = stored(world)
    assert (row["type"], row["item"], row["amount"]) == ("purchase", "shoe", 49.5)
    assert row["properties"] == '{"size":42}'
    assert row["occurred_at"].isoformat() == "2026-02-01T09:00:00"


async def test_a_batch_reports_what_was_refused_by_its_index(world, http):
    events: list[Any] = [
        {"type": "view", "id": "1", "email": "a@x.example"},
        {"type": "view", "id": "2"},
        {"type": "view", "id": "3", "email": "a@x.example", "phone": "1"},
        {"type": "opened", "id": "4", "email": "a@x.example"},
        {"type": "view", "id": "5", "email": "a@x.example", "colour": "red"},
        {"type": "view", "id": "6", "phone": "+49 30 1"},
        {"type": "view", "id": "7", "email": "b@x.example", "occurred_at": "soon"},
        "view",
        {"type": "view", "id": "1", "email": "a@x.example"},
        {"type": "view", "id": "8", "subscriber_id": "0000000000007"},
    ]
    answer = await http.post(URL, json={"events": events})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["recorded"], body["repeated"], body["refused"]) == (1, 1, 8)
    assert [e["index"] for e in body["errors"]] == [1, 2, 3, 4, 5, 6, 7, 9]
    by_index = {e["index"]: e for e in body["errors"]}
    assert by_index[4]["path"] == "events[4].colour"
    assert by_index[6]["path"] == "events[6].occurred_at"
    assert by_index[5]["code"] == "invalid"
    assert len(stored(world)) == 1


async def test_many_requests_become_few_commands(world, http):
    async def send(n: int) -> None:
        event = {"type": "view", "id": str(n), "email": f"p{n % 4}@x.example"}
        assert (await http.post(URL, json=event)).status_code == 200

    await asyncio.gather(*(send(n) for n in range(4)))
    before = len([c for c in world.calls.calls if c[1] == "execute"])
    await asyncio.gather(*(send(n) for n in range(4, 64)))
    sent = len([c for c in world.calls.calls if c[1] == "execute"]) - before
    assert sent <= 8
    assert len(stored(world)) == 64


async def test_an_idempotency_key_names_events_without_an_id(world, http):
    body = {"events": [{"type": "view", "email": "a@x.example"}] * 2}
    headers = {"Idempotency-Key": "batch-1"}
    assert (await http.post(URL, json=body, headers=headers)).json()["recorded"] == 2
    assert (await http.post(URL, json=body, headers=headers)).json()["repeated"] == 2
    assert len(stored(world)) == 2


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"type": "\\ud800"}', 400),
        (b'{"events": []}', 422),
        (b'{"events": 3}', 422),
        (b'{"events": [], "more": 1}', 422),
        (b'{"type": "view", "email": "a@x.example", "amount": NaN}', 400),
        (b" " * (5 << 20), 413),
        (b"\xff\xfe", 400),
    ],
)
async def test_bodies_that_cannot_be_read(http, content, status):
    answer = await http.post(URL, content=content)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_who_may_send(world, http):
    event = {"type": "view", "email": "a@x.example"}
    other = await world.key("subscribers:read")
    assert (await http.post(URL, json=event, headers=other)).status_code == 403
    bad = {"Authorization": "Bearer manta_default_00_11"}
    refused = await http.post(URL, json=event, headers=bad)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert (await http.get(URL)).status_code == 405
    assert (await http.post(URL + "/x", json=event)).status_code == 404


async def test_full_queues_and_a_silent_store_ask_for_a_retry(world, http, monkeypatch):
    event = {"type": "view", "id": "1", "email": "a@x.example"}
    assert (await http.post(URL, json=event)).status_code == 200
    monkeypatch.setattr(gather, "QUEUE_ITEMS_MAX", 0)
    full = await http.post(URL, json=event | {"id": "2"})
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    monkeypatch.setattr(gather, "DEADLINE_S", 0.0)
    world.calls.troubles = [StoreUnavailable("the disk is full")]
    down = await http.post(URL, json={"events": [event | {"id": "3"}]})
    assert (down.status_code, down.json()["code"]) == (503, "store_unavailable")


async def test_over_the_limit_of_a_key(world, monkeypatch):
    monkeypatch.setattr(ingest, "SERVER", Rate(per_s=1, burst=2))
    app = create_ingest(world.handles, world.authenticator, "r1", Random(3))
    event = {"type": "view", "email": "a@x.example"}
    async with client(app, URL, await world.key("events:write")) as http:
        assert (await http.post(URL, json={"events": [event] * 3})).status_code == 200
        answer = await http.post(URL, json=event)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        world.clock.advance(2)
        assert (await http.post(URL, json=event)).status_code == 200
