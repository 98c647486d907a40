"""Imports and exports by HTTP, as strangers send and ask for them."""

from __future__ import annotations

import csv
import struct
from datetime import datetime
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from manta.errors import Overloaded
from serve_apps.api import create_api, imports
from serve_apps.api.arrow_body import read_table
from serve_apps.problems import CONTENT_TYPE
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house

URL = "/v1/subscribers/import"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House) -> Any:
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key()) as opened:
        yield opened


def body(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def people(**columns: Any) -> bytes:
    return body(pa.table(columns))


async def send(http: Any, content: bytes, key: str | None = "k1", **options: Any) -> Any:
    headers = {"Content-Type": ARROW} | ({"Idempotency-Key": key} if key else {})
    headers |= options.pop("headers", {})
    return await http.post(URL, content=content, headers=headers, **options)


def rows(world: House, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for role, actor in world.calls.roles.items():
        if role.startswith("shard-"):
            reader = actor._store.reader()
            found += reader.table(sql).to_pylist()
            reader.close()
    return found


async def test_rows_are_refused_alone_each_with_its_place(world, http):
    given = pa.table(
        {
            "email": [
                "Ann@X.Example",
                "ann@x.example\r\nBcc: all@x.example",
                None,
                "b@x.example",
                "c@x.example",
                "d@x.example",
                "e@x.example",
                "f@x.example",
                "g@x.example",
                "h@x.example",
            ],
            "external_id": ["1", "2", None, "x\r\ny", "5", "6", "7", "8", "9", "y" * 321],
            "time_zone": ["Europe/Zurich", *[None] * 3, "Mars/Olympus", *[None] * 5],
            "locale": ["de-CH", *[None] * 4, "../../etc", *[None] * 4],
            "attr_name": ["Ann\nAnn", *[None] * 5, "a\x00b", "x" * 10_001, None, None],
            "attr_spent": [1.0, *[None] * 7, float("inf"), None],
            "attr_born": pa.array([datetime(1990, 1, 1), *[None] * 9], pa.timestamp("us")),
            "attr_tags": pa.array([["a"], *[None] * 9], pa.list_(pa.string())),
            "attr_vip": [True, *[None] * 9],
        }
    )
    answer = await send(http, body(given), params={"consent": "email:newsletter:subscribed"})
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert [item["row"] for item in done["rejects"]] == list(range(1, 10))
    assert (done["created"], done["rejected"], done["rows"], done["consented"]) == (1, 9, 10, 1)
    (ann,) = rows(world, "SELECT * FROM profiles")
    assert (ann["email"], ann["attr_name"], ann["attr_tags"]) == (
        "Ann@x.example",
        "Ann\nAnn",
        ["a"],
    )
    declared = (await http.get("/v1/attributes")).json()["attributes"]
    assert declared == {
        "name": "string",
        "spent": "number",
        "born": "date",
        "tags": "list",
        "vip": "boolean",
    }
    again = (await send(http, body(given))).json()
    assert again["created"] == 0
    assert len(rows(world, "SELECT * FROM profiles")) == 1


async def test_people_may_stand_in_a_batch_twice(world, http):
    twice = people(email=["a@x.example", "A@X.example"], attr_city=["old", "new"])
    done = (await send(http, twice)).json()
    assert (done["created"], done["duplicates"], done["rejected"]) == (1, 1, 0)
    (row,) = rows(world, "SELECT * FROM profiles")
    assert row["attr_city"] == "new"


TABLE = pa.table({"email": ["a@x.example"]})
TEXT_LISTS = pa.array([[["a"]]], pa.list_(pa.list_(pa.string())))


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "cannot be read"),
        (b"email\na@x.example\n", 400, "cannot be read"),
        (body(TABLE)[:-30], 400, "cannot be read"),
        (body(TABLE, compression="zstd"), 400, "compressed"),
        (body(TABLE.slice(0, 0)), 422, "no rows"),
        (people(email=pa.array(["a@x.example"]).dictionary_encode()), 400, "dictionary"),
        (people(email=[b"a@x.example"]), 422, "type"),
        (people(email=pa.array(["a@x.example"], pa.large_string())), 422, "type"),
        (people(email=[1]), 422, "type"),
        (people(city=["x"]), 422, "city"),
        (people(email=["a@x.example"], subscriber_id=[7]), 422, "subscriber_id"),
        (people(attr_city=["x"]), 422, "names people"),
        (people(email=["a@x.example"], attr_n=[1]), 422, "type"),
        (people(email=["a@x.example"], attr_n=TEXT_LISTS), 422, "type"),
        (people(**{"email": ["a@x.example"], "attr_a; DROP TABLE x": ["x"]}), 422, "called"),
        (people(**{"email": ["a@x.example"], "attr_a\r\nX: y": ["x"]}), 422, "called"),
        (people(**{"email": ["a@x.example"], "attr_": ["x"]}), 422, "called"),
        (people(**{"email": ["a@x.example"], "attr_attr_" + "x" * 99: ["x"]}), 422, "called"),
        (
            body(pa.Table.from_arrays([pa.array(["a@x.example"])] * 2, ["email", "email"])),
            422,
            "two columns",
        ),
        (people(**{"email": ["a@x.example"]} | {f"attr_a{n}": ["x"] for n in range(600)}), 422, ""),
        (people(email=[f"p{n}@x.example" for n in range(20_001)]), 422, "20,000 rows"),
        (b"\xff" * (9 << 20), 413, "more than"),
    ],
)
async def test_bodies_that_are_refused_whole(world, http, content, status, said):
    answer = await send(http, content)
    assert (answer.status_code, answer.headers["content-type"]) == (status, CONTENT_TYPE)
    assert said in answer.text
    assert "\r" not in answer.text
    assert rows(world, "SELECT * FROM profiles") == []


async def test_how_an_import_has_to_be_asked_for(world, http):
    good = body(TABLE)
    assert (await send(http, good, None)).status_code == 422
    assert (await send(http, good, headers={"Content-Type": "text/csv"})).status_code == 415
    for consent in ("yes", "email:news", "email:news:maybe", "email:\x00:subscribed"):
        answer = await send(http, good, params={"consent": consent})
        assert answer.status_code == 422, consent
    assert (await send(http, good, params={"source": "a\r\nb"})).status_code == 422
    other = await world.key("subscribers:read")
    assert (await send(http, good, headers=other)).status_code == 403
    kept = {"attributes": {"n": "number"}}
    assert (await http.post("/v1/attributes", json=kept)).status_code == 200
    conflict = await send(http, people(email=["a@x.example"], attr_n=["x"]))
    assert (conflict.status_code, conflict.json()["path"]) == (409, "attributes.n")
    assert rows(world, "SELECT * FROM profiles") == []


async def test_many_imports_at_once_are_put_off(http, monkeypatch):
    monkeypatch.setattr(imports, "WAITING_MAX", -imports.AT_ONCE)
    answer = await send(http, body(TABLE))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    with pytest.raises(Overloaded):
        await imports.Intake().run(int)


def test_a_damaged_stream_is_refused_and_never_worse():
    """Bytes changed at random: an answer or a refusal, and no more rows than there were."""
    table = pa.table({"email": [f"p{n}@x.example" for n in range(50)], "attr_t": [["a", "b"]] * 50})
    good, random = body(table), Random(5)
    assert read_table(good, 100).equals(table)
    for _ in range(1_500):
        bad = bytearray(good)
        for _ in range(random.choice((1, 1, 2, 8))):
            bad[random.randrange(len(bad))] = random.randrange(256)
        try:
            read = read_table(bytes(bad), 100)
        except Exception as error:
            assert type(error).__name__ in ("Malformed", "InvalidRequest"), repr(error)
        else:
            assert read.num_rows <= 100
            read.validate(full=True)


def test_a_batch_that_claims_too_many_rows_is_not_unpacked():
    good = bytearray(body(TABLE))
    place = good.rindex(struct.pack("<q", 1), 0, good.index(b"a@x.example"))
    for at in range(len(good) - 8):
        if good[at : at + 8] == struct.pack("<q", 1) and at <= place:
            bad = good.copy()
            bad[at : at + 8] = struct.pack("<q", 1 << 50)
            with pytest.raises(Exception) as refused:
                read_table(bytes(bad), 100)
            assert type(refused.value).__name__ in ("Malformed", "InvalidRequest")


async def test_exports_are_checked_and_their_formulas_are_tamed(world, http):
    await send(
        http,
        people(
            email=[f"p{n}@x.example" for n in range(6)],
            attr_note=["=1+1", "+1", "-1", "@x", '"quoted"', "plain"],
            attr_email=["other"] * 6,
        ),
    )
    answer = await http.post("/v1/export", json={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    header, *lines = csv.reader(answer.text.splitlines())
    notes = {line[header.index("note")] for line in lines}
    assert notes == {"'=1+1", "'+1", "'-1", "'@x", '"quoted"', "plain"}
    assert header[:6] == ["subscriber_id", "email", "time_zone", "locale", "attr_email", "note"]
    arrow = await http.post("/v1/export", json={})
    ids = pa.ipc.open_stream(arrow.content).read_all()["subscriber_id"].to_pylist()
    assert len(ids) == 6
    assert ids == sorted(ids)
    rest = await http.post("/v1/export", json={"after": ids[3]})
    assert pa.ipc.open_stream(rest.content).read_all()["subscriber_id"].to_pylist() == ids[4:]
    for wrong, status in (
        ({"after": "x"}, 422),
        ({"segment_id": 9}, 404),
        ({"segment_id": 1, "rule": {"all": []}}, 422),
        ({"rule": {"nope": 1}}, 422),
        ({"format": "xml"}, 422),
    ):
        assert (await http.post("/v1/export", json=wrong)).status_code == status
    other = await world.key("segments:read")
    assert (await http.post("/v1/export", json={}, headers=other)).status_code == 403


# -- files of other platforms ----------------------------------------------------------------------


async def test_what_another_platform_said_of_each_row_counts(world, http):
    given = people(
        email=["a@x.example", "b@x.example", "c@x.example", "d@x.example", "e@x.example"],
        consent_status=["subscribed", "unsubscribed", "hard_bounce", None, "happy"],
    )
    answer = await send(http, given, params={"consent": "email:news:subscribed"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["created"], found["consented"], found["suppressed"]) == (4, 3, 2)
    assert [r["row"] for r in found["rejects"]] == [4]
    held = {
        row["email"]: row["status"]
        for row in rows(world, "SELECT email, status FROM consents JOIN profiles USING"
                               " (subscriber_id)")
    }  # fmt: skip
    assert held == {
        "a@x.example": "subscribed",
        "b@x.example": "unsubscribed",
        "d@x.example": "subscribed",
    }
    stops = {r["address"]: r["reason"] for r in rows(world, "SELECT * FROM suppressions")}
    assert stops == {"b@x.example": "unsubscribed", "c@x.example": "hard_bounce"}


async def test_what_a_file_is_recognised_as_before_anything_is_written(world, http):
    head = {
        "file_name": "list.csv",
        "headers": ["Email", "Klaviyo ID", "Email Marketing Consent"],
        "rows": [["a@x.example", "1", "SUBSCRIBED"], ["b@x.example", "2", "NEVER_SUBSCRIBED"]],
    }
    answer = await http.post(URL + "/recognise", json=head)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["platform"] == "Klaviyo"
    assert found["sample"] == {"subscribed": 1, "none": 1}
    assert found["columns"][0] == {"header": "Email", "target": "email", "type": "string"}
    assert "never subscribed" in " ".join(found["says"])
    assert rows(world, "SELECT * FROM profiles") == []
    for wrong, path in (
        ({"rows": [["a@x.example"]]}, "rows[0]"),
        ({"words": {"x": "happy"}}, "words.x"),
        ({"headers": []}, "headers"),
    ):
        answer = await http.post(URL + "/recognise", json=head | wrong)
        assert (answer.status_code, answer.json()["path"]) == (422, path)
