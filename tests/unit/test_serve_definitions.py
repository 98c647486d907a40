"""The API's segments, templates, campaigns and keys, and how it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from manta.errors import Damaged, StoreUnavailable
from serve_apps.api import create_api
from serve_apps.pages import write_cursor
from serve_apps.problems import CONTENT_TYPE
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house

IN_BERN = {"attribute": {"name": "city", "operator": "equals", "value": "Bern"}}
TEMPLATE = {
    "name": "Spring",
    "subject": "Hello {{ first_name }}",
    "html": "<p>Hello {{ first_name }}</p><p><a href='https://x.example/'>See</a></p>"
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>',
    "from_email": "news@shop.example",
}


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House) -> Any:
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key()) as opened:
        types = {"attributes": {"city": "string", "first_name": "string"}}
        assert (await opened.post("/v1/attributes", json=types)).status_code == 200
        yield opened


async def people(http: Any) -> list[str]:
    rows = [
        {
            "email": f"p{n}@x.example",
            "attributes": {"city": "Bern" if n % 2 else "Basel", "first_name": f"P{n}"},
        }
        for n in range(12)
    ]
    answer = await http.post("/v1/subscribers/batch", json={"subscribers": rows})
    return [item["id"] for item in answer.json()["items"]]


async def test_segments(http):
    await people(http)
    tried = await http.post("/v1/segments/preview", json={"rule": IN_BERN, "sample": 4})
    assert tried.status_code == 200, tried.text
    assert tried.json()["count"] == 6
    assert "Bern" in tried.json()["explain"]
    assert len(tried.json()["sample"]) == 4
    made = await http.post("/v1/segments", json={"name": "Bern", "rule": IN_BERN})
    assert made.status_code == 201
    number = made.json()["id"]
    assert (await http.get(f"/v1/segments/{number}/count")).json() == {"count": 6, "version": 1}
    sample = (await http.get(f"/v1/segments/{number}/sample?limit=2")).json()["sample"]
    assert [p["attributes"]["city"] for p in sample] == ["Bern", "Bern"]
    changed = await http.put(f"/v1/segments/{number}", json={"rule": {"not": IN_BERN}})
    assert changed.json()["version"] == 2
    assert (await http.get(f"/v1/segments/{number}")).json()["rule"] == changed.json()["rule"]
    assert (await http.get("/v1/segments/99/count")).status_code == 404


async def test_a_segment_of_segments_and_an_attribute_that_nobody_has_yet(http):
    await people(http)
    await http.post("/v1/attributes", json={"attributes": {"plan": "string"}})
    made = await http.post("/v1/segments", json={"name": "Bern", "rule": IN_BERN})
    member = {"member": {"segment": made.json()["id"]}}
    unseen = {"attribute": {"name": "plan", "operator": "equals", "value": "pro"}}
    for rule, count in ((member, 6), ({"not": member}, 6), (unseen, 0), ({"not": unseen}, 12)):
        tried = await http.post("/v1/segments/preview", json={"rule": rule})
        assert tried.json()["count"] == count, tried.text


async def test_a_wrong_rule_is_named_by_its_path(http):
    deep: Any = IN_BERN
    for _ in range(200):
        deep = {"not": deep}
    for rule in ({"attribute": {"name": "ciity", "operator": "equals", "value": 1}}, {}, deep):
        for url, body in (
            ("/v1/segments", {"name": "x", "rule": rule}),
            ("/v1/segments/preview", {"rule": rule}),
        ):
            answer = await http.post(url, json=body)
            assert answer.status_code == 422, answer.text
            assert answer.json()["path"].startswith("$")
            assert answer.json()["expected"]


async def test_pages_go_on_where_the_last_ended(http):
    for n in range(7):
        await http.post("/v1/segments", json={"name": f"s{n}", "rule": IN_BERN})
    names, cursor = [], None
    while True:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await http.get("/v1/segments", params=params)).json()
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == [f"s{n}" for n in range(6, -1, -1)]


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "A" * 1_000,
        "é",
        write_cursor("templates", [3]),
        write_cursor("segments", ["3"]),
        write_cursor("segments", [1 << 70]),
        write_cursor("segments", []),
    ],
)
async def test_a_forged_cursor_is_refused(http, cursor):
    answer = await http.get("/v1/segments", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["path"] == "cursor"


async def test_templates(http):
    (id, *_) = await people(http)
    made = await http.post("/v1/templates", json=TEMPLATE)
    assert made.status_code == 201, made.text
    number = made.json()["id"] if "id" in made.json() else made.json()["template_id"]
    second = {k: v for k, v in TEMPLATE.items() if k != "name"} | {"subject": "Dear {{ city }}"}
    assert (await http.post(f"/v1/templates/{number}/versions", json=second)).status_code == 201
    assert (await http.get(f"/v1/templates/{number}")).json()["version"] == 2
    first = await http.get(f"/v1/templates/{number}/versions/1")
    assert first.json()["subject"] == TEMPLATE["subject"]
    shown = await http.post(f"/v1/templates/{number}/preview", json={"subscriber_id": id})
    assert shown.json()["subject"] == "Dear Basel"
    shown = await http.post(
        f"/v1/templates/{number}/preview", json={"email": "p0@x.example", "version": 1}
    )
    assert shown.json()["subject"] == "Hello P0"
    assert (await http.post(f"/v1/templates/{number}/preview", json={})).status_code == 422


async def test_a_template_that_cannot_be_sent_is_refused_with_findings(http):
    wrong = TEMPLATE | {"subject": "Hello {{ nobody }}"}
    answer = await http.post("/v1/templates", json=wrong)
    assert answer.status_code == 422
    assert answer.json()["path"] == "subject"
    assert any("nobody" in finding["message"] for finding in answer.json()["findings"])
    content = {k: v for k, v in wrong.items() if k != "name"}
    linted = await http.post("/v1/templates/lint", json=content)
    assert linted.json()["findings"][0]["level"] == "error"


async def test_keys(http):
    body = {"name": "shop", "scopes": ["events:write"]}
    made = (await http.post("/v1/keys", json=body)).json()
    assert made["key"].startswith("manta_default_")
    listed = (await http.get("/v1/keys")).json()["items"]
    assert made["id"] in [key["id"] for key in listed]
    assert not any({"hash", "key"} & set(key) for key in listed)
    weak = {"Authorization": f"Bearer {made['key']}"}
    refused = await http.get("/v1/keys", headers=weak)
    assert (refused.status_code, refused.json()["scope"]) == (403, "keys:write")
    assert (await http.delete(f"/v1/keys/{made['id']}")).status_code == 204


async def test_a_revoked_key_stops_within_seconds(world, http):
    made = (await http.post("/v1/keys", json={"name": "x", "scopes": ["segments:read"]})).json()
    weak = {"Authorization": f"Bearer {made['key']}"}
    assert (await http.get("/v1/segments", headers=weak)).status_code == 200
    await http.delete(f"/v1/keys/{made['id']}")
    world.clock.advance(6)
    assert (await http.get("/v1/segments", headers=weak)).status_code == 401


async def test_a_key_hands_on_only_what_it_has(world, http):
    weak = await world.key("keys:write")
    body = {"name": "x", "scopes": ["campaigns:write"]}
    assert (await http.post("/v1/keys", json=body, headers=weak)).status_code == 403


async def test_every_refusal_is_a_problem(http):
    cases = [
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("PATCH", "/v1/segments", None, 405, "method"),
        ("POST", "/v1/segments", b"{", 400, "malformed"),
        ("POST", "/v1/segments", b"[" * 50_000, 400, "malformed"),
        ("POST", "/v1/segments", b'{"name": "\\ud800", "rule": {}}', 400, "malformed"),
        ("POST", "/v1/segments", b"[]", 422, "invalid"),
        ("POST", "/v1/segments", b'{"name": "x", "rule": {}, "colour": 1}', 422, "invalid"),
        ("POST", "/v1/segments", b'{"rule": {}}', 422, "invalid"),
        ("POST", "/v1/segments", b" " * (5 << 20), 413, "too_large"),
        ("GET", "/v1/segments?limit=0", None, 422, "invalid"),
        ("GET", "/v1/segments?limit=x", None, 422, "invalid"),
        ("GET", "/v1/segments/0", None, 422, "invalid"),
        ("GET", "/v1/segments/99999999999999999999", None, 422, "invalid"),
    ]
    json_header = {"Content-Type": "application/json"}
    for method, url, content, status, code in cases:
        answer = await http.request(method, url, content=content, headers=json_header)
        assert (answer.status_code, answer.headers["content-type"]) == (status, CONTENT_TYPE), url
        body = answer.json()
        assert (body["code"], body["status"]) == (code, status)
        assert body["type"] == f"/v1/docs#problem-{code}"
        assert body["detail"]
    unknown = await http.post("/v1/segments", json={"name": "x", "rule": {}, "colour": 1})
    assert unknown.json()["path"] == "colour"


async def test_faults_behind_the_api(world, http):
    await http.get("/v1/segments")
    for fault, status in (
        (StoreUnavailable("full"), 200),  # tried again, as nothing has changed
        (Damaged("entry 7 is torn", object="journal/7"), 500),
        (KeyError("a mistake of ours"), 500),
    ):
        world.calls.troubles = [fault]
        answer = await http.get("/v1/segments")
        assert answer.status_code == status
        if status == 500:
            assert answer.headers["content-type"] == CONTENT_TYPE
        assert "torn" not in answer.text and "mistake" not in answer.text


async def test_no_key_and_another_workspaces_key(http):
    for header in ("", "Bearer", "Bearer x", "Basic abc", "Bearer manta_other_00_11"):
        answer = await http.get("/v1/segments", headers={"Authorization": header})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="manta"'


async def test_the_reference_page_needs_nothing_from_outside(http):
    page = await http.get("/v1/docs")
    assert page.status_code == 200
    assert "http://" not in page.text and "https://" not in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for text in ("/v1/campaigns", "Idempotency-Key", "subscribers:write", "problem-not_ready"):
        assert text in page.text, text
    document = (await http.get("/v1/openapi.json")).json()
    json.dumps(document)
    assert "/events" in document["paths"]
