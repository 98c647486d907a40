"""Endpoints from the command line, over the real API, shards and courier in one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from actors.courier import Courier
from actors.io.web import Reply
from manta.client import Client
from tests.unit.bridge import Town, town
from tests.unit.serve_world import House
from tests.unit.store_shard import event, person, write
from tests.unit.test_cli import run  # noqa: F401  # a fixture
from tests.unit.test_webhooks_out_courier import FakeWeb

WEB = FakeWeb()


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town(partial(House, webhooks=True)) as built:
        handles = built.house.handles
        courier = Courier(handles.catalog, handles.shards, WEB, built.house.clock)
        built.house.calls.roles["courier"] = courier
        yield built
        built.run(courier.stop())


async def happens(house: House, count: int) -> None:
    catalog = house.calls.roles["catalog"]
    await catalog._distributor.told()
    told = [event(5, "bought", house.clock.now(), event_id=n, item="i") for n in range(count)]
    await house.handles.shards.execute(0, write(person(5, email="p@x.example"), *told))


async def look(house: House) -> None:
    courier = house.calls.roles["courier"]
    due = await house.handles.shards.query(0, "deliveries_due")
    await courier.deliveries(0, due)
    while courier._lanes:
        await next(iter(courier._lanes.values()))


def test_an_endpoint_from_its_making_to_its_end(run, place):  # noqa: F811
    assert "public addresses" in run(
        "webhook", "add", "https://intranet.example/", "--type", "*", fails=True
    )
    said = run("webhook", "add", "https://x.example/h", "--type", "event.*", "--description", "d")
    assert re.search(r"endpoint 1; its secret, shown this once: whsec_\S{44}$", said.strip())
    assert "delivered   yes" in run("webhook", "test", "1")
    WEB.answer = lambda n, body: Reply(500, b"broken")
    assert "broken" in run("webhook", "test", "1", fails=True)
    place.run(happens(place.house, 3))
    place.run(look(place.house))
    assert run("webhook", "log", "1", "--state", "waiting").count("broken") == 3
    place.house.clock.advance(1)
    assert "3 deliveries are discarded" in run("webhook", "discard", "1", "not wanted")
    assert "discarded" in run("webhook", "show", "1")
    WEB.answer = lambda n, body: Reply(204)
    place.house.clock.advance(1)
    assert "3 deliveries are sent again" in run("webhook", "replay", "1")
    place.run(look(place.house))
    assert run("webhook", "log", "1").count("delivered") == 3
    assert "whsec_" in run("webhook", "rotate", "1")
    run("webhook", "disable", "1")
    assert "disabled by hand" in run("webhook", "list")
    run("webhook", "enable", "1")
    assert "enabled" in run("webhook", "list")
    assert "is gone" in run("webhook", "remove", "1")
    assert "no endpoint 1" in run("webhook", "show", "1", fails=True)


def test_a_long_replay_goes_in_parts_and_ends(place, monkeypatch):
    """Also where what is replayed is delivered again before the next part."""
    monkeypatch.setattr("manta.webhooks.outbox.ROWS_MAX", 2)
    WEB.answer = lambda n, body: Reply(204)
    with Client("http://manta.test", place.key(), transport=place.bridge) as client:
        made = client.create_webhook("https://x.example/h", ["event.*"])
        place.run(happens(place.house, 5))
        place.run(look(place.house))
        place.house.clock.advance(1)
        assert client.replay_webhooks(made["id"], delivered=True) == 5
        assert len(list(client.webhook_deliveries(made["id"]))) == 5
