"""The API's subscribers, over real actors in one process."""

from __future__ import annotations

from typing import Any

import pytest

from serve_apps.api import create_api
from serve_apps.problems import CONTENT_TYPE
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House) -> Any:
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key()) as opened:
        yield opened


async def declare(http: Any, **types: str) -> None:
    answer = await http.post("/v1/attributes", json={"attributes": types})
    assert answer.status_code == 200, answer.text


async def test_a_subscriber_from_nothing_to_unsubscribed(http):
    await declare(http, city="string", orders="number", born="date", tags="list", vip="boolean")
    given = {
        "email": "Ann@Shop.Example",
        "external_id": "c-1",
        "time_zone": "Europe/Zurich",
        "locale": "de-CH",
        "attributes": {
            "city": "Bern",
            "orders": 3,
            "born": "1990-02-03",
            "tags": ["a", "b"],
            "vip": True,
        },
        "consent": {"topic": "news"},
    }
    created = await http.post("/v1/subscribers", json=given)
    assert created.status_code == 201, created.text
    id = created.json()["id"]
    assert created.json()["status"] == "created"
    same = await http.post("/v1/subscribers", json=given)
    assert (same.status_code, same.json()) == (200, {"id": id, "status": "unchanged"})

    shown = (await http.get(f"/v1/subscribers/{id}")).json()
    assert shown["email"] == "Ann@shop.example"
    assert shown["attributes"]["born"] == "1990-02-03T00:00:00.000000Z"
    assert shown["attributes"]["tags"] == ["a", "b"]
    assert {i["kind"] for i in shown["identities"]} == {"email", "external_id"}
    assert [(c["topic"], c["status"]) for c in shown["consents"]] == [("news", "subscribed")]
    by_email = await http.get("/v1/subscribers", params={"email": "ANN@shop.example"})
    by_number = await http.get("/v1/subscribers", params={"external_id": "c-1"})
    assert by_email.json() == by_number.json() == shown

    left = await http.post(f"/v1/subscribers/{id}/unsubscribe", json={"topic": "news"})
    assert left.json() == {"id": id, "changed": 1}
    again = await http.post("/v1/subscribers", json=given)
    assert again.status_code == 200
    shown = (await http.get(f"/v1/subscribers/{id}")).json()
    assert [c["status"] for c in shown["consents"]] == ["unsubscribed"]
    back = {"topic": "news", "status": "subscribed", "source": "preference page"}
    assert (await http.put(f"/v1/subscribers/{id}/consents", json=back)).json()["changed"] == 1


async def test_an_external_id_that_another_has_is_a_conflict(http):
    await http.post("/v1/subscribers", json={"email": "a@x.example", "external_id": "1"})
    taken = await http.post("/v1/subscribers", json={"email": "b@x.example", "external_id": "1"})
    assert taken.status_code == 409
    assert taken.json()["path"] == "external_id"


async def test_a_person_known_by_number_gets_attributes_by_address(http):
    """The address leads to a person who lives in the shard of their first identity."""
    await declare(http, city="string")
    rows = [{"email": f"p{n}@x.example", "external_id": f"n{n}"} for n in range(8)]
    batch = (await http.post("/v1/subscribers/batch", json={"subscribers": rows})).json()
    ids = [item["id"] for item in batch["items"]]
    by_number = [{"external_id": f"n{n}", "attributes": {"city": "Bern"}} for n in range(8)]
    second = (await http.post("/v1/subscribers/batch", json={"subscribers": by_number})).json()
    assert [item["id"] for item in second["items"]] == ids
    for id in ids:
        shown = (await http.get(f"/v1/subscribers/{id}")).json()
        assert shown["attributes"] == {"city": "Bern"}


async def test_a_batch_fails_row_by_row(http):
    rows = [
        {"email": "good@x.example"},
        {"email": "not an address"},
        {"external_id": "7"},
        {"email": "good2@x.example", "attributes": {"nope": 1}},
        {},
    ]
    answer = await http.post("/v1/subscribers/batch", json={"subscribers": rows})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["created"], body["refused"]) == (2, 3)
    errors = {item["index"]: item["error"]["path"] for item in body["items"] if "error" in item}
    assert errors == {
        1: "subscribers[1].email",
        3: "subscribers[3].attributes.nope",
        4: "subscribers[4].email",
    }


@pytest.mark.parametrize(
    ("attributes", "path"),
    [
        ({"orders": "3"}, "attributes.orders"),
        ({"orders": True}, "attributes.orders"),
        ({"orders": 10**400}, "attributes.orders"),
        ({"city": 3}, "attributes.city"),
        ({"city": "x" * 20_000}, "attributes.city"),
        ({"born": "yesterday"}, "attributes.born"),
        ({"tags": ["a", 1]}, "attributes.tags"),
        ({"vip": "yes"}, "attributes.vip"),
        ({"a'; DROP TABLE profiles": 1}, None),
    ],
)
async def test_a_value_of_the_wrong_type_is_named(http, attributes, path):
    await declare(http, city="string", orders="number", born="date", tags="list", vip="boolean")
    answer = await http.post(
        "/v1/subscribers", json={"email": "a@x.example", "attributes": attributes}
    )
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == CONTENT_TYPE
    if path:
        assert answer.json()["path"] == path
        assert answer.json()["expected"]


async def test_the_same_idempotency_key_changes_nothing_twice(http):
    headers = {"Idempotency-Key": "order-1"}
    person = {"email": "a@x.example"}
    first = await http.post("/v1/subscribers", json=person, headers=headers)
    second = await http.post("/v1/subscribers", json=person, headers=headers)
    assert second.json() == {"id": first.json()["id"], "status": "repeated"}
    third = await http.post("/v1/subscribers", json=person, headers={"Idempotency-Key": b"\xe9"})
    assert third.status_code == 422


async def test_suppressing_an_address(http):
    made = (await http.post("/v1/subscribers", json={"email": "a@x.example"})).json()
    body = {"address": "A@x.example", "reason": "manual"}
    assert (await http.post("/v1/suppressions", json=body)).json() == {"changed": True}
    shown = (await http.get(f"/v1/subscribers/{made['id']}")).json()
    assert [s["reason"] for s in shown["suppressions"]] == ["manual"]
    lifted = await http.delete("/v1/suppressions/email/a@x.example")
    assert lifted.json() == {"changed": True}
    shown = (await http.get(f"/v1/subscribers/{made['id']}")).json()
    assert shown["suppressions"] == []


async def test_who_is_not_there(http):
    for path in ("/v1/subscribers/0000000000001", "/v1/subscribers/zz", "/v1/subscribers/%00"):
        answer = await http.get(path)
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"
    assert (await http.get("/v1/subscribers?email=x@y.example")).status_code == 404
    both = await http.get("/v1/subscribers?email=x@y.example&phone=1")
    assert both.status_code == 422
