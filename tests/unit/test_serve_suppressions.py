"""Suppressions over HTTP: lists in and out, one address, lifting with who and why."""

import csv
import io
from datetime import timedelta

import pytest

from manta.clock import as_text
from manta.ids import decode_id
from manta.people.claims import (
    ClaimIdentities,
    SettleClaims,
    TakeIdentities,
    change_of_address,
)
from manta.people.suppression_file import parse
from manta.people.suppressions import Row
from serve_apps.api import create_api
from tests.unit.serve_fakes import NOW, client
from tests.unit.serve_world import house


@pytest.fixture
async def world():
    async with house() as built:
        yield built


@pytest.fixture
async def http(world):
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key()) as http:
        yield http


LIST = (
    "email;Reason;source;expires_at;note\n"
    "Ann@x.example;complaint;old system;;a\n"
    "bob@x.example;;;2027-01-01T00:00:00Z;b\n"
    "not an address;manual;;;c\n"
    ";manual;;;d\n"
    'torn;"x;;;e\n'
    "late@x.example;manual;;2020-01-01;f\n"
    "when@x.example;manual;;soon;g\n"
    "too@x.example;few\n"
    "ann@X.example;manual;;;h\n"
)


def test_a_list_row_by_row():
    rows, rejects = parse(LIST, NOW)
    assert rows == [
        Row("ann@x.example", "complaint", "old system"),
        Row("bob@x.example", "manual", "import", "", NOW.replace(2027, 1, 1, 0)),
    ]
    assert [reject.line for reject in rejects] == [4, 5, 6, 7, 8, 9]
    assert rejects[0].reason == "not an e-mail address"


@pytest.mark.parametrize("text", ["", "\n\n", "name,city\na,b\n"])
async def test_what_is_no_list(http, text):
    answer = await http.post("/v1/suppressions/import", content=text, headers=CSV)
    assert answer.status_code == 422 and answer.json()["path"].startswith("body")


CSV = {"Content-Type": "text/csv; charset=utf-8", "Idempotency-Key": "k1"}


async def test_import_show_search_and_export(http, world):
    made = (await http.post("/v1/subscribers", json={"email": "ann@x.example"})).json()
    answer = await http.post("/v1/suppressions/import", content=LIST, headers=CSV)
    assert answer.status_code == 200, answer.text
    counts = {name: value for name, value in answer.json().items() if name != "rejects"}
    assert counts == {"rows": 8, "suppressed": 2, "unchanged": 0, "rejected": 6}
    assert answer.json()["rejects"][0] == {"line": 4, "reason": "not an e-mail address"}
    again = await http.post("/v1/suppressions/import", content=LIST, headers=CSV)
    assert again.json()["suppressed"] == 0

    shown = (await http.get("/v1/suppressions/email/Ann@x.example")).json()
    assert (shown["reason"], shown["source"], shown["subscriber_id"]) == (
        "complaint",
        "old system",
        made["id"],
    )
    assert (await http.get("/v1/suppressions/email/no@x.example")).status_code == 404

    listed = (await http.get("/v1/suppressions", params={"limit": 1})).json()
    assert [row["address"] for row in listed["items"]] == ["ann@x.example"]
    rest = await http.get("/v1/suppressions", params={"limit": 9, "cursor": listed["next"]})
    assert [row["address"] for row in rest.json()["items"]] == ["bob@x.example"]
    assert rest.json()["next"] is None
    for query in ({"reason": "complaint"}, {"contains": "NN@"}):
        found = (await http.get("/v1/suppressions", params=query)).json()["items"]
        assert [row["address"] for row in found] == ["ann@x.example"]
    assert (await http.get("/v1/suppressions", params={"contains": "%"})).json()["items"] == []

    exported = await http.get("/v1/suppressions/export")
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert [(row["address"], row["reason"]) for row in rows] == [
        ("ann@x.example", "complaint"),
        ("bob@x.example", "manual"),
    ]
    back, rejects = parse(exported.text, NOW)
    assert rejects == [] and back[1].expires_at == NOW.replace(2027, 1, 1, 0)


async def change_address(shards, person, email):
    """What a change of address does, over two shards."""
    owner, home = shards.of_identity("email", email), shards.of_subscriber(person)
    claims = change_of_address(person, email)
    await shards.execute(owner, ClaimIdentities(None, claims))
    await shards.execute(home, TakeIdentities(None, claims, "test"))
    await shards.execute(owner, SettleClaims(None, claims, (True,)))
    return owner != home


async def test_an_address_of_somebody_who_lives_elsewhere(http, world):
    shards, elsewhere = world.handles.shards, 0
    made = []
    for n in range(8):
        answer = await http.post("/v1/subscribers", json={"external_id": f"x{n}"})
        made.append(answer.json()["id"])
        elsewhere += await change_address(shards, decode_id(made[-1]), f"p{n}@y.example")
    assert elsewhere
    text = "address\n" + "".join(f"p{n}@y.example\n" for n in range(8))
    answer = await http.post("/v1/suppressions/import", content=text, headers=CSV)
    assert answer.json()["suppressed"] == 8
    listed = (await http.get("/v1/suppressions")).json()["items"]
    assert len(listed) == 8
    for n, one in enumerate(made):
        person = (await http.get(f"/v1/subscribers/{one}")).json()
        assert [s["reason"] for s in person["suppressions"]] == ["manual"]
        path = f"/v1/suppressions/email/p{n}@y.example"
        assert (await http.get(path)).json()["subscriber_id"] == one
        assert (await http.delete(path, params={"why": "a mistake"})).json() == {"changed": True}
        person = (await http.get(f"/v1/subscribers/{one}")).json()
        assert person["suppressions"] == []


async def test_what_has_expired_is_not_shown(http, world):
    ends = as_text(NOW + timedelta(hours=1))
    body = {"address": "a@x.example", "expires_at": ends}
    assert (await http.post("/v1/suppressions", json=body)).status_code == 201
    assert len((await http.get("/v1/suppressions")).json()["items"]) == 1
    world.clock.advance(3_601)
    assert (await http.get("/v1/suppressions")).json()["items"] == []
    assert (await http.get("/v1/suppressions/email/a@x.example")).status_code == 404


async def test_addresses_with_everything_in_them(http):
    address = "a/b+c%25=?#@x.example"
    assert (await http.post("/v1/suppressions", json={"address": address})).status_code == 201
    from urllib.parse import quote

    path = f"/v1/suppressions/email/{quote(address, safe='')}"
    assert (await http.get(path)).json()["address"] == address
    assert (await http.delete(path)).json() == {"changed": True}


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "text/csv"}, b"address\n\xff\xfe\n", 400),
        ({"Content-Type": "text/csv"}, b"address\n" + b"x@y.example\n" * 500_000, 413),
        ({"Content-Type": "text/csv"}, b"address\n" + b"x@y.example\n" * 10_001, 422),
    ],
)
async def test_lists_that_are_refused_as_a_whole(http, headers, content, status):
    answer = await http.post("/v1/suppressions/import", content=content, headers=headers)
    assert answer.status_code == status, answer.text


async def test_who_may(world):
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key("subscribers:read")) as http:
        assert (await http.get("/v1/suppressions/export")).status_code == 200
        answer = await http.post("/v1/suppressions/import", content="address\n", headers=CSV)
        assert answer.status_code == 403
        assert (await http.delete("/v1/suppressions/email/a@x.example")).status_code == 403
