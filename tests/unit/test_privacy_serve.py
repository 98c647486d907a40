"""Erasure and export over HTTP, with real actors and files in one process."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from manta.ids import decode_id
from manta.privacy.erasing import lift_erasure
from manta.privacy.receipts import verify
from manta.store.objects import FileObjects
from serve_apps.api import create_api
from tests.decoding import Search
from tests.unit.serve_fakes import NOW, client
from tests.unit.serve_world import House
from tests.unit.store_shard import event, upsert, write

ANN = {
    "email": "Ann.Olsen@shop.example",
    "external_id": "crm-778899-x",
    "attributes": {"city": "Kirkenes-by-the-sea"},
    "consent": {"topic": "news"},
}
NEEDLES = {
    "address": "ann.olsen@shop.example",
    "external": "crm-778899-x",
    "city": "Kirkenes-by-the-sea",
    "item": "purple-unicorn-lamp",
}


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    built = House()
    built.objects = FileObjects(tmp_path)
    await built.start()
    yield built
    await built.stop()


@pytest.fixture
async def http(world: House) -> Any:
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key()) as opened:
        yield opened


async def made(http: Any, given: dict[str, Any]) -> str:
    await http.post("/v1/attributes", json={"attributes": {"city": "string"}})
    answer = await http.post("/v1/subscribers", json=given)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


async def bought(world: House, id: str) -> None:
    number = decode_id(id)
    happened = event(number, "purchased", world.clock.now(), item=NEEDLES["item"], event_id=7)
    shard = world.handles.shards.of_subscriber(number)
    await world.handles.shards.execute(shard, write(happened))


async def finished(http: Any, request: str) -> dict[str, Any]:
    for _ in range(200):
        document: dict[str, Any] = (await http.get(f"/v1/privacy/erasures/{request}")).json()
        if document["state"] == "done":
            return document
        await asyncio.sleep(0.02)
    raise AssertionError(document)


async def test_erased_at_once_and_then_everywhere(world, http, tmp_path):
    id = await made(http, ANN)
    other = await made(http, {"email": "bob@shop.example", "consent": {"topic": "news"}})
    await bought(world, id)
    needles = {**NEEDLES, "id": decode_id(id)}
    assert all(Search(needles).run(tmp_path).values())
    asked = {"email": ANN["email"].upper()}
    begun = await http.post("/v1/privacy/erasures", json=asked, headers={"Idempotency-Key": "k"})
    assert begun.status_code == 202, begun.text
    request = begun.json()["id"]
    assert begun.json()["state"] == "erased" and begun.json()["receipt"] is None
    assert (await http.get(f"/v1/subscribers/{id}")).status_code == 404
    assert (await http.get("/v1/subscribers", params=asked)).status_code == 404
    assert (await http.get(f"/v1/privacy/exports/{id}")).status_code == 404
    again = await http.post("/v1/privacy/erasures", json={"subscriber_id": id})
    assert again.json()["id"] == request, "the request that stands"
    ran = await http.post("/v1/privacy/erasures/run")
    assert ran.status_code == 202
    document = await finished(http, request)
    found = Search(needles).run(tmp_path)
    # The Catalog's keys for API requests and the like name nobody.
    assert not any(found.values()), found
    key = (await http.get("/v1/privacy/receipt-key")).json()["public_key"]
    receipt = verify(document["receipt"], key)
    assert receipt["person"].startswith("hmac:") and receipt["shards"] == 2
    assert receipt["places"]["events"]["rows"] >= 2
    assert (await http.get(f"/v1/subscribers/{other}")).status_code == 200


async def test_two_people_under_one_key_are_two_requests(world, http):
    """A script that uses one key for all its requests gets nobody's receipt for somebody else."""
    requests = set()
    for email in ("a@shop.example", "b@shop.example"):
        await made(http, {"email": email})
        asked = {"email": email, "now": True}
        path = "/v1/privacy/erasures"
        begun = await http.post(path, json=asked, headers={"Idempotency-Key": "k"})
        assert (begun.status_code, begun.json()["state"]) == (202, "erased")
        requests.add((await finished(http, begun.json()["id"]))["person"])
    assert len(requests) == 2


async def test_a_reimport_does_not_resubscribe(world, http):
    id = await made(http, ANN)
    await http.post("/v1/privacy/erasures", json={"subscriber_id": id})
    new = await made(http, ANN)
    assert new != id
    assert (await http.get(f"/v1/subscribers/{new}")).json()["consents"] == []
    assert await lift_erasure(world.handles.shards, "email", ANN["email"])
    await made(http, ANN)
    consents = (await http.get(f"/v1/subscribers/{new}")).json()["consents"]
    assert [each["status"] for each in consents] == ["subscribed"]


async def test_a_backup_that_comes_back_is_erased_again(world, http):
    id = await made(http, ANN)
    world.clock.advance(3600)
    await http.post("/v1/privacy/erasures", json={"subscriber_id": id, "now": True})
    kept = (await http.get("/v1/privacy/hashes")).json()
    assert await lift_erasure(world.handles.shards, "email", ANN["email"])
    back = await made(http, ANN)
    row = {"subscriber_id": decode_id(back), "created_at": NOW}  # as the backup has it
    shard = world.handles.shards.of_subscriber(decode_id(back))
    await world.handles.shards.execute(shard, write(upsert("profiles", row)))
    untouched = await made(http, {"email": "bob@shop.example"})
    answer = await http.post("/v1/privacy/erasures/apply", json=kept)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["erased_again"]) == 1
    assert (await http.get(f"/v1/subscribers/{back}")).status_code == 404
    assert (await http.get(f"/v1/subscribers/{untouched}")).status_code == 200
    new = await made(http, ANN)
    again = await http.post("/v1/privacy/erasures/apply", json=kept)
    assert again.json() == {"erased_again": []}, "who comes anew is nobody that was erased"
    assert (await http.get(f"/v1/subscribers/{new}")).status_code == 200


async def test_a_copy_of_everything(world, http):
    id = await made(http, ANN)
    await made(http, {"email": "bob@shop.example", "consent": {"topic": "news"}})
    await bought(world, id)
    answer = await http.get(f"/v1/privacy/exports/{id}")
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    names = set(archive.namelist())
    assert {"README.txt", "profiles.json", "identities.json", "consents.json"} <= names
    (profile,) = json.loads(archive.read("profiles.json"))
    assert profile["city"] == ANN["attributes"]["city"] and profile["subscriber_id"] == id
    identities = json.loads(archive.read("identities.json"))
    assert {each["value"] for each in identities} == {ANN["email"].lower(), ANN["external_id"]}
    events = [json.loads(line) for line in archive.read("events.jsonl").splitlines()]
    kinds = [event["type"] for event in events]
    assert set(kinds) == {"profile_created", "consent_changed", "purchased"}
    assert {event["subscriber_id"] for event in events} == {id}
    assert b"bob" not in b"".join(archive.read(name) for name in names)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"email": "a@b.example", "phone": "1"}, 422),
        ({"subscriber_id": "nonsense"}, 404),
        ({"email": "nobody@shop.example"}, 404),
    ],
)
async def test_whom(http, body, status):
    answer = await http.post("/v1/privacy/erasures", json=body)
    assert answer.status_code == status, answer.text


async def test_keys_without_the_scope_may_not(world, http):
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key("subscribers:write")) as other:
        assert (await other.post("/v1/privacy/erasures", json={})).status_code == 403
        assert (await other.get("/v1/privacy/hashes")).status_code == 403
