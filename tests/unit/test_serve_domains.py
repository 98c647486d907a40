"""Sending domains over HTTP: keys that stay inside, checks that are remembered, rotation."""

from __future__ import annotations

from typing import Any

import pytest

from actors.resolver import Resolver, Returns
from manta.clock import ManualClock
from manta.delivery.routing.sites import Answer, Found
from serve_apps.api import create_api
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House
from tests.unit.serve_world import house as open_house


@pytest.fixture
async def house() -> Any:
    async with open_house() as built:
        yield built


class Zone:
    """A DNS with the TXT records that it was given."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    async def txt(self, name: str) -> Answer:
        text = self.held.get(name)
        return Answer(Found.RECORDS, (text,)) if text else Answer(Found.NOTHING)

    async def mx(self, domain: str) -> Answer:
        return Answer(Found.NOTHING)

    addresses = ptr = mx

    def status(self) -> dict[str, int]:
        return {}


async def test_a_domain_from_its_keys_to_a_rotation(house: House) -> None:
    zone = Zone()
    house.calls.roles["resolver"] = Resolver(
        zone,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        lambda text: None,  # type: ignore[arg-type,return-value]
        ManualClock(),
        returns=Returns("r.shop.example"),
    )
    headers = await house.key()
    app = create_api(house.handles, house.authenticator, "http://x")
    async with client(app, headers=headers) as http:
        made = await http.post("/domains", json={"domain": "Shop.example"})
        assert made.status_code == 201
        assert [key["selector"] for key in made.json()["keys"]] == ["manta1", "manta2"]
        assert (await http.post("/domains", json={"domain": "shop.example"})).status_code == 409
        assert (await http.post("/domains", json={"domain": "x"})).status_code == 422

        checked = (await http.post("/domains/shop.example/check")).json()
        assert not checked["check"]["passing"]
        for record in checked["records"]:
            zone.held[record["name"]] = record["value"]
        assert (await http.post("/domains/shop.example/rotate")).status_code == 409
        checked = (await http.post("/domains/shop.example/check")).json()
        assert checked["check"]["passing"], checked
        rotated = await http.post("/domains/shop.example/rotate")
        assert [key["selector"] for key in rotated.json()["keys"]] == ["manta2", "manta3"]

        listed = await http.get("/domains")
        assert "PRIVATE" not in listed.text + made.text + rotated.text
        assert "private_key" not in listed.text + made.text + rotated.text
        assert (await http.delete("/domains/shop.example")).status_code == 204
        assert (await http.post("/domains/shop.example/check")).status_code == 404


async def test_a_key_needs_the_scope(house: House) -> None:
    headers = await house.key("campaigns:read")
    app = create_api(house.handles, house.authenticator, "http://x")
    async with client(app, headers=headers) as http:
        answers: list[Any] = [
            await http.get("/domains"),
            await http.post("/domains", json={"domain": "shop.example"}),
            await http.post("/domains/shop.example/rotate"),
        ]
    assert [answer.status_code for answer in answers] == [403, 403, 403]
