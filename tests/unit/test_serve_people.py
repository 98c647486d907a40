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


async def test_two_subscribers_become_one_and_part_again(http):
    async def new(**fields: Any) -> str:
        answer = await http.post("/v1/subscribers", json=fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    shown = {}
    for n in range(4):  # of one shard, and of two
        ann = await new(email=f"ann{n}@x.example")
        bob = await new(external_id=f"b-{n}", locale="de", consent={"topic": "news"})
        before = (await http.get(f"/v1/subscribers/{ann}")).json()
        merged = await http.post(f"/v1/subscribers/{bob}/merge", json={"into": ann})
        assert merged.json() == {"id": ann, "merged_from": bob}, merged.text
        shown = (await http.get(f"/v1/subscribers/{bob}")).json()
        assert (shown["id"], shown["email"], shown["locale"]) == (ann, f"ann{n}@x.example", "de")
        assert [each["id"] for each in shown["merged_from"]] == [bob]
        found = await http.get("/v1/subscribers", params={"external_id": f"b-{n}"})
        assert found.json() == shown
        kinds = [(i["kind"], i.get("by_merge_of")) for i in shown["identities"]]
        assert kinds == [("email", None), ("external_id", bob)]
        same = await http.post(
            "/v1/subscribers", json={"email": f"ann{n}@x.example", "external_id": f"b-{n}"}
        )
        assert (same.status_code, same.json()["id"]) == (200, ann), same.text
        by_number = await http.post("/v1/subscribers", json={"external_id": f"b-{n}"})
        assert by_number.json()["id"] == ann
        left = await http.post(f"/v1/subscribers/{bob}/unsubscribe", json={})
        assert left.json()["id"] == ann
        again = await http.post(f"/v1/subscribers/{ann}/merge", json={"into": bob})
        assert again.status_code == 409
        undone = await http.post(f"/v1/subscribers/{bob}/undo-merge")
        assert undone.json() == {"id": bob, "was_merged_into": ann}, undone.text
        after = (await http.get(f"/v1/subscribers/{ann}")).json()
        assert after["locale"] is None and after["merged_from"] == []
        assert after["identities"] == before["identities"]
        back = (await http.get(f"/v1/subscribers/{bob}")).json()
        assert (back["id"], back["locale"]) == (bob, "de")
        assert {c["status"] for c in back["consents"]} == {"unsubscribed"}
    assert (await http.post(f"/v1/subscribers/{shown['id']}/undo-merge")).status_code == 404


async def test_an_address_change_keeps_the_person_and_the_earlier_address(http):
    id = (await http.post("/v1/subscribers", json={"email": "old@x.example"})).json()["id"]
    url = f"/v1/subscribers/{id}/identities"
    changed = await http.post(url, json={"kind": "email", "value": "New@x.example"})
    assert changed.json()["email"] == "New@x.example", changed.text
    assert [i["value"] for i in changed.json()["identities"]] == ["new@x.example", "old@x.example"]
    phone = await http.post(url, json={"kind": "phone", "value": "+41 1"})
    assert len(phone.json()["identities"]) == 3
    other = (await http.post("/v1/subscribers", json={"email": "other@x.example"})).json()["id"]
    taken = await http.post(
        f"/v1/subscribers/{other}/identities", json={"kind": "phone", "value": "+41 1"}
    )
    assert taken.status_code == 409
    for value, status in (("new@x.example", 409), ("old@x.example", 200), ("old@x.example", 404)):
        assert (await http.delete(f"{url}/email/{value}")).status_code == status
    freed = await http.post("/v1/subscribers", json={"email": "old@x.example"})
    assert freed.status_code == 201


async def test_a_visitor_is_named_by_an_anonymous_id(http):
    made = await http.post("/v1/subscribers", json={"anonymous_id": "a-1", "phone": "+41 2"})
    assert made.status_code == 201, made.text
    same = await http.post("/v1/subscribers", json={"anonymous_id": "a-1", "locale": "fr"})
    assert same.json() == {"id": made.json()["id"], "status": "updated"}
    found = await http.get("/v1/subscribers", params={"phone": "+41 2"})
    assert (found.json()["id"], found.json()["locale"]) == (made.json()["id"], "fr")
    nobody = await http.post("/v1/subscribers", json={"phone": "+41 2"})
    assert nobody.status_code == 422 or nobody.status_code == 400
