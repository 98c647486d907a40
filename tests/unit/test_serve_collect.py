"""The tracking API, quarantine and the web snippet's door over real actors in one process."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from datetime import datetime
from random import Random
from typing import Any

import pytest

from manta.clock import as_text
from manta.content.tokens import TokenKind, keyring_of
from manta.errors import StoreUnavailable
from manta.ids import NOBODY, MessageRef
from manta.ingestion import quarantine, segment
from manta.ingestion.visits import is_of, tagged, visit_token
from manta.traffic.networks import TrustedProxies
from serve_apps.api import create_api
from serve_apps.collect import create_collect
from serve_apps.collect.rates import Buckets, Rate
from serve_apps.collect.snippet import SNIPPET
from serve_apps.collect.taking import Arrived, Taken
from serve_apps.links import LinkKeys
from serve_apps.problems import TooMany
from serve_apps.visits import Visits
from tests.unit.serve_fakes import NOW, client
from tests.unit.serve_world import House, house

V1 = "/v1"


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House) -> Any:
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, V1, await world.key()) as opened:
        yield opened


async def write_key(world: House, *scopes: str) -> str:
    made = await world.key(*scopes or ("events:write",))
    return made["Authorization"].removeprefix("Bearer ")


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode()}


def rows(world: House, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for role, actor in world.calls.roles.items():
        if role.startswith("shard-"):
            reader = actor._store.reader()  # the writer's connection is busy at times
            reader.pin()
            found += reader.table(sql).to_pylist()
            reader.close()
    return found


def events(world: House) -> list[dict[str, Any]]:
    found = rows(world, "SELECT * FROM events WHERE merge_id IS NULL")
    return sorted(found, key=lambda row: (row["occurred_at"], row["type"]))


SESSION = [
    {"type": "page", "anonymousId": "a1", "messageId": "m1", "properties": {"url": "https://x/"}},
    {
        "type": "identify",
        "anonymousId": "a1",
        "userId": "u1",
        "messageId": "m2",
        "traits": {"email": "ann@x.example", "plan": "pro", "age": 41},
    },
    {
        "type": "track",
        "userId": "u1",
        "event": "Order Completed",
        "messageId": "m3",
        "timestamp": "2026-02-27T09:00:00Z",
        "properties": {"order_id": "o1", "total": 9, "products": [{"sku": "s", "price": 9}]},
    },
    {"type": "identify", "userId": "u1", "messageId": "m4", "traits": {"plan": "max"}},
]


async def test_a_session_becomes_one_person_with_their_events(world, http):
    key = basic(await write_key(world))
    body = {"batch": SESSION, "sentAt": as_text(NOW)}
    answer = await http.post("/v1/batch", json=body, headers=key)
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert [e["type"] for e in events(world)] == ["ordered", "purchased", "viewed"]
    assert events(world)[0]["occurred_at"] == datetime(2026, 2, 27, 9)
    (ann,) = rows(world, "SELECT * FROM profiles WHERE email IS NOT NULL")
    assert (ann["email"], ann["attr_plan"], ann["attr_age"]) == ("ann@x.example", "max", 41.0)
    # All of it is hers: what she did before she said who she is, too.
    hers = rows(world, f"SELECT type FROM events WHERE subscriber_id = {ann['subscriber_id']}")
    assert sorted(row["type"] for row in hers) == ["ordered", "purchased", "viewed"]
    # Sent again, nothing is new.
    again = await http.post("/v1/batch", json=body | {"sentAt": as_text(NOW)}, headers=key)
    assert again.status_code == 200
    assert len(events(world)) == 3


async def test_the_same_through_single_calls_in_every_way_of_saying_the_key(world, http):
    key = await write_key(world)
    track = {"event": "x", "userId": "u"}
    for n, (path, headers, extra) in enumerate(
        [
            ("/v1/track", basic(key), {}),
            ("/v1/t", {"Authorization": "", "Content-Type": "text/plain"}, {"writeKey": key}),
            ("/v1/t/", {"Authorization": f"Bearer {key}"}, {}),
        ]
    ):
        content = json.dumps({**track, **extra, "messageId": str(n)})
        answer = await http.post(path, content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == "*"
    packed = gzip.compress(json.dumps({"batch": [{"type": "track", **track}]}).encode())
    answer = await http.post(
        "/v1/import", content=packed, headers=basic(key) | {"Content-Encoding": "gzip"}
    )
    assert answer.json() == {"success": True}
    assert len(events(world)) == 4
    assert (await http.options("/v1/t")).status_code == 204
    assert (await http.post("/v1/m", json={"series": []})).json() == {"success": True}


async def test_a_group_is_an_event_and_an_alias_a_merge(world, http):
    key = basic(await write_key(world))
    batch = [
        {"type": "track", "userId": "old", "event": "x", "messageId": "1"},
        {"type": "track", "userId": "new", "event": "y", "messageId": "2"},
        {"type": "alias", "previousId": "old", "userId": "new", "messageId": "3"},
        {"type": "group", "userId": "new", "groupId": "g", "messageId": "4"},
    ]
    answer = await http.post("/v1/batch", json={"batch": batch}, headers=key)
    assert answer.json() == {"success": True}
    aliases = rows(world, "SELECT DISTINCT from_id, to_id FROM aliases WHERE state <> 'undone'")
    (to_id,) = {row["to_id"] for row in aliases}
    types = rows(world, f"SELECT type FROM events WHERE subscriber_id = {to_id}")
    assert sorted(row["type"] for row in types) == ["grouped", "x", "y"]


async def test_what_fits_no_shape_waits_and_is_replayed(world, http):
    key = basic(await write_key(world))
    batch = [
        {"type": "track", "userId": "u", "event": "good", "messageId": "1"},
        {"type": "track", "event": "of nobody", "messageId": "2"},
        {"type": "identify", "userId": "u", "messageId": "3", "traits": {"age": "old"}},
    ]
    await http.post("/v1/attributes", json={"attributes": {"age": "number"}})
    answer = await http.post("/v1/batch", json={"batch": batch}, headers=key)
    body = answer.json()
    assert answer.status_code == 200, answer.text
    assert [(e["index"], e["status"], e["path"]) for e in body["errors"]] == [
        (1, "quarantined", "userId"),
        (2, "recorded", "traits.age"),
    ]
    listed = (await http.get("/v1/quarantine")).json()["items"]
    assert {row["path"] for row in listed} == {"userId", "traits.age"}
    problems = (await http.get("/v1/quarantine/problems")).json()["items"]
    assert sum(row["count"] for row in problems) == 2
    nobody = next(row for row in listed if row["path"] == "userId")
    url = f"/v1/quarantine/{nobody['id']}"
    assert (await http.get(url)).json()["body"]["event"] == "of nobody"
    assert (await http.post(url + "/replay", json={})).status_code == 422
    assert (await http.post("/v1/quarantine/replay", json={})).json()["unfit"] == 2
    world.clock.advance(3600)
    mended = {"body": {**nobody["body"], "userId": "u"}}
    for _ in range(2):
        assert (await http.post(url + "/replay", json=mended)).json()["state"] == "replayed"
    (row,) = [e for e in events(world) if e["type"] == "of nobody"]
    assert row["occurred_at"] == NOW  # when it came
    other = next(row for row in listed if row["path"] == "traits.age")
    assert (await http.delete(f"/v1/quarantine/{other['id']}")).status_code == 200
    assert (await http.get("/v1/quarantine")).json()["items"] == []
    assert (
        len((await http.get("/v1/quarantine", params={"state": "discarded"})).json()["items"]) == 1
    )


async def test_a_full_quarantine_says_so(world, http, monkeypatch):
    monkeypatch.setattr(quarantine, "ROWS_MAX", 0)
    key = basic(await write_key(world))
    bad = {"type": "track", "event": "x"}
    answer = await http.post("/v1/track", json=bad, headers=key)
    assert answer.status_code == 409, answer.text
    good = {"type": "track", "event": "x", "userId": "u"}
    answer = await http.post("/v1/batch", json={"batch": [bad, good]}, headers=key)
    assert answer.json()["errors"][0]["status"] == "refused"


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


TRACK = {"type": "track", "event": "x", "userId": "u"}


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/v1/batch", b"{", {}, 400),
        ("/v1/batch", b"[]", {}, 400),
        ("/v1/batch", b'{"batch": []}', {}, 400),
        ("/v1/batch", b'{"batch": {}}', {}, 400),
        ("/v1/batch", b'{"batch": [' + b"[" * 5_000, {}, 400),
        ("/v1/batch", b'{"batch": [{"a": ' + b"9" * 5_000 + b"}]}", {}, 400),
        ("/v1/batch", b'{"batch": [{"a": NaN}]}', {}, 400),
        ("/v1/batch", b'{"batch": [{"a": 1e999}]}', {}, 400),
        ("/v1/batch", b'{"batch": [{"a": "\\ud800"}]}', {}, 400),
        ("/v1/batch", b'\xff{"batch": []}', {}, 400),
        ("/v1/batch", b'{"batch": [3, "x", null]}', {}, 400),
        ("/v1/track", json.dumps(TRACK | {"p": "x" * 40_000}).encode(), {}, 400),
        ("/v1/track", json.dumps(TRACK | {"p": "x" * (5 << 20)}).encode(), {}, 413),
        ("/v1/batch", json.dumps({"batch": [TRACK] * 3_000}).encode(), {}, 400),
        ("/v1/batch", b"not gzip", {"Content-Encoding": "gzip"}, 400),
        ("/v1/batch", _gzip(b'{"batch":[]}')[:-5], {"Content-Encoding": "gzip"}, 400),
        ("/v1/batch", _gzip(b'{"batch":[]}') + b"more", {"Content-Encoding": "gzip"}, 400),
        ("/v1/batch", _gzip(b" " * (50 << 20)), {"Content-Encoding": "gzip"}, 400),
        ("/v1/batch", zlib.compress(b"{}"), {"Content-Encoding": "br"}, 415),
        ("/v1/track", json.dumps(TRACK | {"timestamp": "yesterday"}).encode(), {}, 400),
        ("/v1/track", json.dumps(TRACK | {"timestamp": "9999-99-99"}).encode(), {}, 400),
        ("/v1/track", json.dumps(TRACK | {"userId": "a\x00b"}).encode(), {}, 400),
    ],
)
async def test_hostile_bodies_get_4xx_and_harm_nothing(world, http, path, content, headers, status):
    key = basic(await write_key(world))
    answer = await http.post(path, content=content, headers=key | headers)
    assert answer.status_code == status, answer.text
    assert {"code", "message", "detail"} <= set(answer.json()) or status == 413
    assert events(world) == []
    after = await http.post("/v1/track", json=TRACK, headers=key)
    assert after.status_code == 200


async def test_who_may_send(world, http):
    bad = await http.post("/v1/track", json=TRACK, headers=basic("manta_default_00_11"))
    assert bad.status_code == 401
    none = await http.post("/v1/track", json=TRACK, headers={"Authorization": ""})
    assert none.status_code == 401
    other = await http.post(
        "/v1/track", json=TRACK, headers=basic(await write_key(world, "keys:write"))
    )
    assert other.status_code == 403
    assert (await http.get("/v1/track")).status_code == 405


async def test_a_silent_store_asks_for_a_retry(world, http, monkeypatch):
    key = basic(await write_key(world))
    assert (await http.post("/v1/track", json=TRACK, headers=key)).status_code == 200
    from serve_apps import gather

    monkeypatch.setattr(gather, "QUEUE_ITEMS_MAX", 0)
    full = await http.post("/v1/track", json=TRACK, headers=key)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    monkeypatch.setattr(gather, "DEADLINE_S", 0.0)
    world.calls.troubles = [StoreUnavailable("the disk is full")]
    down = await http.post("/v1/track", json=TRACK, headers=key)
    assert (down.status_code, down.json()["code"]) == (503, "store_unavailable")


def test_a_bucket_lends_what_one_batch_needs_and_wants_it_back(world):
    buckets = Buckets(Rate(per_s=10, burst=20), world.clock)
    buckets.take("a", 50)
    with pytest.raises(TooMany) as caught:
        buckets.take("a", 1)
    assert caught.value.details["retry_after_s"] == 4
    buckets.take("b", 1)
    world.clock.advance(3.2)
    buckets.take("a", 1)


# -- public keys and visits ------------------------------------------------------------------------

ORIGIN = {"Origin": "https://shop.example", "Authorization": ""}


async def public(world: House, http: Any) -> str:
    site = {"name": "shop", "hosts": ["Shop.example"]}
    assert (await http.post("/v1/sites", json=site)).status_code == 201
    return await write_key(world, "collect")


async def test_a_public_key_says_what_visitors_do_and_nothing_else(world, http):
    key = await public(world, http)
    await http.post("/v1/batch", json={"batch": SESSION}, headers=basic(await write_key(world)))
    before = rows(world, "SELECT * FROM profiles WHERE email IS NOT NULL")
    batch = [
        {"type": "identify", "anonymousId": "v", "userId": "u1", "traits": {"plan": "evil"}},
        {"type": "identify", "anonymousId": "v", "traits": {"email": "ann@x.example", "age": 1}},
        {"type": "alias", "anonymousId": "v", "userId": "v", "previousId": "u1"},
        {"type": "track", "anonymousId": "v", "userId": "u1", "event": "Looked"},
        {"type": "track", "userId": "u1", "event": "Of Ann"},
    ]
    for path in ("/v1/collect", "/v1/batch"):
        body = {"writeKey": key, "batch": batch}
        answer = await http.post(path, json=body, headers=ORIGIN)
        assert answer.status_code == 200, answer.text
        assert [e["index"] for e in answer.json()["errors"]] == [4]
    assert rows(world, "SELECT * FROM profiles WHERE email IS NOT NULL") == before
    assert rows(world, "SELECT * FROM aliases WHERE cause = 'alias'") == []
    ann = before[0]["subscriber_id"]
    looked = [e for e in events(world) if e["type"] == "Looked"]
    assert looked and all(e["subscriber_id"] != ann for e in looked)
    assert (await http.get("/v1/quarantine")).json()["items"] == []
    for origin in ("https://evil.example", "null", ""):
        refused = await http.post("/v1/collect", json=body, headers={**ORIGIN, "Origin": origin})
        assert refused.status_code == 403


async def test_a_click_ties_the_visitor_to_whom_the_mail_went(world, http):
    key = await public(world, http)
    await http.post("/v1/batch", json={"batch": SESSION}, headers=basic(await write_key(world)))
    (ann,) = rows(world, "SELECT * FROM profiles WHERE email IS NOT NULL")
    documents = await world.handles.catalog.call("token_keys")
    keyring = keyring_of(documents, "default")
    token = visit_token(keyring, MessageRef(ann["subscriber_id"], 5), 1, 0, NOW)

    async def visit(visitor: str, token: str) -> None:
        page = {"type": "page", "anonymousId": visitor, "messageId": visitor}
        body = {"writeKey": key, "token": token, "batch": [page]}
        answer = await http.post("/v1/collect", json=body, headers=ORIGIN)
        assert answer.status_code == 200, answer.text

    def hers() -> int:
        return len(
            rows(
                world,
                f"SELECT 1 FROM events WHERE subscriber_id = {ann['subscriber_id']}"
                " AND type = 'viewed'",
            )
        )

    assert hers() == 1
    await visit("w1", token)
    assert hers() == 2
    await visit("w2", token[:-2] + "AA")
    world.clock.advance(25 * 3600)
    await visit("w3", token)
    assert hers() == 2
    body = {"writeKey": key, "token": token, "batch": [{"type": "page"}]}
    assert (await http.post("/v1/collect", json=body, headers=ORIGIN)).status_code == 422


async def test_a_forwarded_link_takes_nobody_known_and_ties_no_crowd(world, http, monkeypatch):
    key, own = await public(world, http), basic(await write_key(world))
    people = {}
    for name in ("ann", "bob"):
        said = {"userId": name, "anonymousId": f"{name}s-browser", "messageId": name}
        body = {**said, "traits": {"email": f"{name}@x.example"}}
        assert (await http.post("/v1/identify", json=body, headers=own)).status_code == 200
        (row,) = rows(world, f"SELECT * FROM profiles WHERE email = '{name}@x.example'")
        people[name] = row["subscriber_id"]
    keyring = keyring_of(await world.handles.catalog.call("token_keys"), "default")
    token = visit_token(keyring, MessageRef(people["ann"], 5), 1, 0, NOW)

    async def visit(visitor: str) -> set[int]:
        page = {"type": "page", "anonymousId": visitor, "messageId": visitor}
        body = {"writeKey": key, "token": token, "batch": [page]}
        answer = await http.post("/v1/collect", json=body, headers=ORIGIN)
        assert answer.status_code == 200, answer.text
        found = [e for e in events(world) if e["type"] == "viewed"]
        return {e["subscriber_id"] for e in found}

    assert await visit("bobs-browser") == {people["bob"]}
    assert await visit("new-1") == set(people.values())
    monkeypatch.setattr("serve_apps.collect.IDENTITIES_MAX", 3)
    assert len(await visit("new-2")) == 3


def test_targets_of_clicks():
    assert is_of("https://Shop.example./x?y", {"shop.example"})
    assert not is_of("https://shop.example.evil.example/", {"shop.example"})
    assert not is_of("https://[bad", {"shop.example"})
    assert not is_of("mailto:ann@shop.example", {"shop.example"})
    assert tagged("https://x/?a=1#f", "T") == "https://x/?a=1&mt=T#f"
    assert tagged("https://x/", "T") == "https://x/?mt=T"


async def test_the_snippet_is_small_and_may_be_loaded_by_any_page(http):
    answer = await http.get("/v1/snippet.js", headers={"Authorization": ""})
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.content == SNIPPET
    assert len(gzip.compress(SNIPPET, mtime=0)) < 2_000


async def test_sources_are_kept_and_say_whether_traits_become_attributes(world, http):
    made = (await http.post("/v1/keys", json={"name": "k", "scopes": ["events:write"]})).json()
    source = {"name": "app", "kind": "segment", "declare": False, "key_id": made["id"]}
    assert (await http.post("/v1/sources", json=source)).status_code == 201
    assert (await http.post("/v1/sources", json=source)).status_code == 409
    message = {"userId": "u", "traits": {"email": "u@x.example", "colour": "red"}}
    answer = await http.post("/v1/identify", json=message, headers=basic(made["key"]))
    assert answer.json() == {"success": True}
    assert "colour" not in (await http.get("/v1/attributes")).json().get("attributes", {})
    (listed,) = (await http.get("/v1/sources")).json()["items"]
    assert (await http.delete(f"/v1/sources/{listed['id']}")).status_code == 204


async def test_a_click_that_leads_to_a_site_takes_a_token_along(world, http):
    await public(world, http)
    ring = keyring_of(await world.handles.catalog.call("token_keys"), "default")
    keys = LinkKeys(world.handles.catalog, "default", world.clock)
    visits = Visits(world.handles, keys)
    ref = MessageRef(5, 6)

    def target(url: str, ref: MessageRef = ref) -> str:
        said = ring.verify(ring.sign(TokenKind.CLICK, ref, 7, 1, url), NOW)
        return visits.target(said)

    assert target("https://shop.example/x") == "https://shop.example/x"  # nothing is known yet
    await visits.refresh()
    address, _, token = target("https://shop.example/x").partition("?mt=")
    assert address == "https://shop.example/x"
    assert ring.verify(token, NOW, TokenKind.VISIT).ref == ref
    assert target("https://other.example/x") == "https://other.example/x"
    assert target("https://shop.example/x", MessageRef(NOBODY, 6)) == "https://shop.example/x"


async def test_who_is_gone_is_asked_for_once_more(world):
    _, collect = create_collect(world.handles, world.authenticator, "r1", Random(3))
    collect.intake._people.put({"external_id": "u"}, 12_345)
    message = {**TRACK, "messageId": "1"}
    found = segment.normalise({}, message, NOW)
    (taken,) = await collect.intake.take({"kind": "segment"}, [Arrived("{}", found)])
    assert taken == Taken("recorded")
    assert len(events(world)) == 1


async def test_one_client_cannot_use_up_a_public_key(world: House) -> None:
    trusted = TrustedProxies(("127.0.0.0/8",))
    app = create_api(world.handles, world.authenticator, "http://manta.test", trusted)
    async with client(app, V1, await world.key()) as http:
        key = await public(world, http)

        async def says(visitor: str, address: str, count: int = 1) -> int:
            batch = [
                {"type": "page", "anonymousId": visitor, "messageId": f"{visitor}{n}"}
                for n in range(count)
            ]
            headers = {**ORIGIN, "X-Forwarded-For": address}
            body = {"writeKey": key, "batch": batch}
            return int((await http.post("/v1/collect", json=body, headers=headers)).status_code)

        assert await says("a", "198.51.100.7", 100) == 200
        assert await says("b", "198.51.100.7", 100) == 200
        assert await says("c", "198.51.100.7") == 429
        assert await says("d", "198.51.100.8") == 200
        assert await says("e", "2001:db8::1", 100) == 200
        assert await says("e", "2001:db8::2", 100) == 200
        assert await says("f", "2001:db8::3") == 429, "one household"
        world.clock.advance(60)
        assert await says("g", "198.51.100.7") == 200
