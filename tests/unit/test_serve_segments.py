"""Lists, snapshots, members, overlap and growth by HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from manta.segments import queries
from serve_apps.api import create_api
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house

IN_BERN = {"attribute": {"name": "city", "operator": "equals", "value": "Bern"}}


@pytest.fixture
async def http() -> Any:
    async with house() as world:
        built: House = world
        app = create_api(built.handles, built.authenticator, "http://manta.test")
        async with client(app, "/v1", await built.key()) as opened:
            await opened.post("/v1/attributes", json={"attributes": {"city": "string"}})
            rows = [
                {"email": f"p{n}@x.example", "attributes": {"city": "Bern" if n % 2 else "Basel"}}
                for n in range(12)
            ]
            await opened.post("/v1/subscribers/batch", json={"subscribers": rows})
            yield opened


async def made(http: Any, **fields: Any) -> int:
    answer = await http.post("/v1/segments", json={"name": "S", **fields})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


async def test_a_list_is_edited_by_address_and_read_page_by_page(http: Any) -> None:
    number = await made(http, type="list")
    everybody = [f"p{n}@x.example" for n in range(12)]
    edited = await http.post(
        f"/v1/segments/{number}/members", json={"add": [*everybody, "no@x.example", "nonsense"]}
    )
    assert edited.json() == {"entered": 12, "left": 0, "unknown": ["no@x.example", "nonsense"]}
    seen: list[str] = []
    path = f"/v1/segments/{number}/members?limit=5"
    while path:
        answer = (await http.get(path)).json()
        seen += [row["email"] for row in answer["items"]]
        cursor = answer["next"]
        path = cursor and f"/v1/segments/{number}/members?limit=5&cursor={cursor}"
    assert sorted(seen) == sorted(everybody)
    (person, *_) = (await http.get(f"/v1/segments/{number}/members?limit=1")).json()["items"]
    edited = await http.post(f"/v1/segments/{number}/members", json={"remove": [person["id"]]})
    assert edited.json()["left"] == 1
    assert (await http.get(f"/v1/segments/{number}/count")).json()["count"] == 11
    size = (await http.get(f"/v1/segments/{number}/membership")).json()
    assert size == {"members": 11, "entered": 12, "left": 1}
    days = (await http.get(f"/v1/segments/{number}/growth?days=2")).json()["days"]
    assert [day["members"] for day in days] == [0, 11]


async def test_a_snapshot_is_whom_the_rule_held_for(http: Any) -> None:
    number = await made(http, type="snapshot", rule=IN_BERN)
    row = {"email": "p0@x.example", "attributes": {"city": "Bern"}}
    await http.post("/v1/subscribers/batch", json={"subscribers": [row]})
    assert (await http.get(f"/v1/segments/{number}/count")).json()["count"] == 6
    assert "As it was at" in (await http.get(f"/v1/segments/{number}/explain")).json()["text"]
    refused = await http.put(f"/v1/segments/{number}", json={"rule": {"all": []}})
    assert refused.status_code == 409
    outside = await made(http, rule={"not": {"member": {"segment": number}}})
    assert (await http.get(f"/v1/segments/{outside}/count")).json()["count"] == 6


async def test_how_lists_overlap(http: Any) -> None:
    first, second = await made(http, type="list"), await made(http, type="list")
    for number, people in ((first, range(8)), (second, range(6, 12))):
        added = [f"p{n}@x.example" for n in people]
        await http.post(f"/v1/segments/{number}/members", json={"add": added})
    answer = await http.post("/v1/segments/overlap", json={"segments": [first, second]})
    people = [pair["people"] for pair in answer.json()["pairs"]]
    assert people == [8, 2, 6]


async def test_what_is_needed_stays_and_what_is_not_on_record_is_said(http: Any) -> None:
    number = await made(http, type="list")
    other = await made(http, rule={"member": {"segment": number}})
    refused = await http.delete(f"/v1/segments/{number}")
    assert refused.status_code == 409 and f"segment {other}" in refused.json()["detail"]
    often = {"operator": "at_least", "value": 2}
    ever = {"event": {"type": "x", "within": {"last": {"days": 900}}, "count": often}}
    distant = await made(http, rule=ever)
    refused = await http.get(f"/v1/segments/{distant}/members")
    assert refused.status_code == 422 and "900 days back" in refused.text
    refused = await http.post(f"/v1/segments/{other}/members", json={"add": ["p1@x.example"]})
    assert refused.status_code == 409
    assert (await http.delete(f"/v1/segments/{other}")).status_code == 204
    assert (await http.delete(f"/v1/segments/{number}")).status_code == 204


async def test_drift_is_asked_of_live_segments(http: Any) -> None:
    assert set(queries.QUERIES) >= {"drift", "growth", "members", "membership", "overlap"}
    number = await made(http, type="list")
    assert (await http.get(f"/v1/segments/{number}/drift")).status_code == 409
