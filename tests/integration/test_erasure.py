"""A person is erased from a whole workspace that has sent, received and told things about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manta.clock import as_text
from manta.definitions import SCOPES
from manta.events.commands import RecordEvents
from manta.ids import decode_id
from manta.ingestion.quarantine import Quarantine, Waif
from manta.privacy.receipts import verify
from serve_apps.api import create_api
from serve_apps.auth import Authenticator
from tests.decoding import Search
from tests.integration import world
from tests.integration.world import Sink, adds_up
from tests.unit.serve_fakes import client

pytestmark = [pytest.mark.smtp_sink, pytest.mark.timeout(300)]
PEOPLE = 120
ANN = {
    "email": "ann.olsen@shop.example",
    "external_id": "crm-778899-x",
    "attributes": {"city": "Kirkenes-by-the-sea", "first_name": "Annemarieke"},
    "consent": {"topic": "newsletter"},
}
EVERYBODY: dict[str, Any] = {"all": []}


@pytest.fixture
def sink(smtp_sink_path: str) -> Iterator[Sink]:
    sink = Sink(smtp_sink_path)
    sink.start()
    yield sink
    sink.stop()


async def bought(handles: Any, id: int) -> None:
    rows = pa.table({"subscriber_id": [id], "type": ["purchased"], "id": ["order-1"]})
    rows = rows.append_column("item", pa.array(["purple-unicorn-lamp"]))
    await handles.shards.execute(handles.shards.of_subscriber(id), RecordEvents(None, rows))


async def quarantined(handles: Any) -> None:
    bodies = [f'{{"who": "{ANN["external_id"]}", "what": "?"}}', '{"who": "another"}']
    waifs = tuple(
        Waif(source="shop", problem="unknown shape", path="what", body=body) for body in bodies
    )
    await handles.shards.execute(0, Quarantine(None, waifs))


async def test_nothing_is_left_of_a_person(ray_cluster: str, sink: Sink) -> None:
    async with world.running("erasing", sink.port, flush_seconds=1.0) as (handles, settings):
        root = Path(settings.root)
        people = [f"reader{n}@shop.example" for n in range(PEOPLE)]
        rows = pa.table({"email": people, "attr_first_name": ["R"] * PEOPLE})
        await world.import_people(handles, rows)
        key = (await handles.catalog.call("create_api_key", "test", list(SCOPES)))["key"]
        app = create_api(
            handles, Authenticator(handles.catalog, "erasing", handles.clock), "http://manta.test"
        )
        async with client(app, "/v1", {"Authorization": f"Bearer {key}"}) as http:
            await http.post("/v1/attributes", json={"attributes": {"city": "string"}})
            endpoint = {
                "url": "https://hooks.example/in",
                "types": ["event.purchased"],
                "secrets": [{"secret": f"whsec_{'A' * 43}=", "until": None}],
                "enabled_at": as_text(handles.clock.now()),
            }
            await handles.catalog.call("save", "endpoints", endpoint)
            made = await http.post("/v1/subscribers", json=ANN)
            assert made.status_code == 201, made.text
            id = made.json()["id"]
            campaign = await world.launch(handles, EVERYBODY, topic="newsletter")
            await world.finished(handles, campaign, 60)
            await bought(handles, decode_id(id))
            await quarantined(handles)
            before = await world.accounting(handles, campaign)
            assert before["accepted"] == PEOPLE + 1 and adds_up(before)
            needles = {
                "address": ANN["email"],
                "external": ANN["external_id"],
                "city": ANN["attributes"]["city"],
                "item": "purple-unicorn-lamp",
                "id": decode_id(id),
            }
            found = Search(needles).run(root)
            assert all(found.values()), found
            assert any("journal/sender" in path for path in found["id"]), found["id"]

            begun = await http.post("/v1/privacy/erasures", json={"email": ANN["email"]})
            assert begun.status_code == 202, begun.text
            assert (await http.get(f"/v1/subscribers/{id}")).status_code == 404
            await http.post("/v1/privacy/erasures/run")
            request, document = begun.json()["id"], {"state": ""}
            for _ in range(500):
                document = (await http.get(f"/v1/privacy/erasures/{request}")).json()
                if document["state"] == "done":
                    break
                await asyncio.sleep(0.2)
            assert document["state"] == "done", (document["shards_done"], document["waits_for"])
            found = Search(needles).run(root)
            assert not any(found.values()), found
            trusted = (await http.get("/v1/privacy/receipt-key")).json()["public_key"]
            assert verify(document["receipt"], trusted)["shards"] == handles.shards.count
            after = await world.accounting(handles, campaign)
            assert after == before, "the campaign's accounting stays exact"
            again = await http.post("/v1/subscribers", json=ANN)
            new = (await http.get(f"/v1/subscribers/{again.json()['id']}")).json()
            assert new["consents"] == []
