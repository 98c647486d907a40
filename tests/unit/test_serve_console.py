"""The console's own reads and changes, without a browser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from manta.errors import StoreUnavailable
from serve_apps.console import COOKIE, Shared, create_console
from tests.e2e.protection import HOSTILE, protected
from tests.e2e.stage import Stage
from tests.unit.serve_fakes import client
from tests.unit.serve_world import house

CHANGE = {"X-Manta-Console": "1"}


@pytest.fixture
async def scene() -> Any:
    async with house() as built:
        made = Stage(built)
        await made.fill()
        yield made


@pytest.fixture
async def http(scene: Stage) -> Any:
    app = create_console(scene.house.handles, scene.house.authenticator, secure=True)
    async with client(app, "/console") as opened:
        yield opened


async def sign_in(scene: Stage, http: Any, *scopes: str) -> Any:
    key = (await scene.house.key(*scopes))["Authorization"].removeprefix("Bearer ")
    answer = await http.post("/console/session", json={"key": key}, headers=CHANGE)
    http.headers["Cookie"] = f"{COOKIE}={key}"  # it is marked Secure, and the test is not
    return answer


async def test_nothing_without_a_key(http):
    for path in ("session", "campaigns", "campaigns/3", "segments", "status"):
        assert (await http.get(f"/console/api/{path}")).status_code == 401
    assert (await http.post("/console/api/campaigns/3/pause", headers=CHANGE)).status_code == 401


async def test_the_page_may_load_only_its_own_files(http):
    page = await http.get("/console/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for name in ("app.js", "console.css", "icon.svg"):
        assert (await http.get(f"/console/assets/{name}")).status_code == 200
    for name in ("../console.py", "%2e%2e%2fconsole.py", "nothing.js"):
        assert (await http.get(f"/console/assets/{name}")).status_code == 404


async def test_the_cookie_is_out_of_reach(scene, http):
    answer = await sign_in(scene, http)
    cookie = answer.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Path=/console", "Secure"):
        assert word in cookie
    assert (await http.get("/console/api/session")).json()["name"] == "test"


async def test_a_campaign_adds_up(scene, http):
    await sign_in(scene, http)
    for _ in range(5):
        await scene.advance(10)
    listed = (await http.get("/console/api/campaigns")).json()
    assert listed["items"][0]["name"] == "Spring collection"
    shown = (await http.get("/console/api/campaigns/3")).json()
    accounting = shown["report"]["accounting"]
    assert accounting["adds_up"] and accounting["planned_total"] == 400
    settled = accounting["accepted"] + accounting["failed"] + accounting["uncertain"]
    assert settled == 50 and accounting["suppressed"] == 12
    in_time = sum(step.get("accepted", 0) for step in shown["report"]["timeline"])
    assert in_time == accounting["accepted"]


async def test_changes_need_the_scope_and_the_header(scene, http):
    await sign_in(scene, http, "campaigns:read")
    assert (await http.post("/console/api/campaigns/3/pause", headers=CHANGE)).status_code == 403
    await sign_in(scene, http)
    assert (await http.post("/console/api/campaigns/3/pause")).status_code == 403
    assert scene.director.held[3]["state"] == "running"
    moved = await http.post("/console/api/campaigns/3/pause", headers=CHANGE)
    assert moved.json()["state"] == "paused"
    assert (await http.post("/console/api/campaigns/3/erase", headers=CHANGE)).status_code == 422


async def test_the_status_names_who_does_not_answer(scene, http):
    await sign_in(scene, http)
    status = (await http.get("/console/api/status")).json()
    assert [shard["ready"] for shard in status["shards"]] == [True, True]
    by_name = {one["name"]: one for one in status["others"]}
    assert by_name["director"]["ready"] and not by_name["throttle"]["ready"]
    assert by_name["throttle"]["reason"]


async def test_delivery_shows_each_part_or_why_it_is_away(scene, http):
    await sign_in(scene, http, "campaigns:read")
    assert (await http.get("/console/api/delivery")).status_code == 403
    await sign_in(scene, http)
    shown = (await http.get("/console/api/delivery")).json()
    assert not shown["throttle"]["ready"] and shown["actions"]["reason"]
    assert shown["domains"] == {"ready": True, "items": []}
    scene.house.clock.advance(1)
    async with protected(scene) as delivery:
        await delivery.happen()
        shown = (await http.get("/console/api/delivery")).json()
    later, earlier = (action["id"] for action in shown["actions"]["active"])
    assert later == earlier + 1
    first = shown["throttle"]["lanes"][0]
    assert first["causes"] and not shown["throttle"]["lanes"][-1]["causes"]
    assert {row["provider"] for row in shown["reputation"]["windows"]} >= {"google", HOSTILE}
    assert "private_key" not in str(shown)


async def test_delivery_is_changed_by_who_may_and_once(scene, http):
    act = "/console/api/delivery/actions"
    body = {"scope": {"provider": "yahoo"}, "cause": "by phone", "duration_s": 60}
    async with protected(scene) as delivery:
        await sign_in(scene, http, "delivery:read", "campaigns:read")
        assert (await http.post(act, json=body, headers=CHANGE)).status_code == 403
        await sign_in(scene, http)
        assert (await http.post(act, json=body)).status_code == 403
        named = CHANGE | {"Idempotency-Key": "once"}
        made = [await http.post(act, json=body, headers=named) for _ in range(2)]
        (number,) = {answer.json()["id"] for answer in made}
        undo = f"{act}/{number}/undo"
        for wrong in ({"cause": ["x"]}, {"cause": "x", "more": 1}, [], {"cause": "x", "kind": "y"}):
            answer = await http.post(act, json=wrong, headers=CHANGE)
            assert answer.status_code in (400, 422), answer.text
        undone = await http.post(undo, headers=CHANGE)
        assert undone.json()["undone_by"].startswith("test (key ")
        assert (await http.post(undo, headers=CHANGE)).status_code == 409
        assert len(await delivery.reputation.actions(False)) == 1


async def test_a_suppression_is_found_and_lifted(scene, http):
    found, lift = "/console/api/suppression", "/console/api/suppression/lift"
    async with protected(scene) as delivery:
        await delivery.suppress("reader7@shop.example")
    await sign_in(scene, http)
    asked = {"address": " Reader7@shop.example "}
    shown = (await http.get(found, params=asked)).json()["suppression"]
    assert (shown["reason"], shown["expires_at"]) == ("hard_bounce", None)
    body = {"address": "Reader7@shop.example", "why": "a new mailbox"}
    assert (await http.post(lift, json=body)).status_code == 403
    assert (await http.post(lift, json=body, headers=CHANGE)).json() == {"changed": True}
    assert (await http.get(found, params=asked)).json()["suppression"] is None
    assert (await http.get(found)).status_code == 422


async def test_a_domain_is_checked(scene, http):
    await scene.house.handles.catalog.call("add_domain", "shop.example")
    await sign_in(scene, http)
    async with protected(scene):
        path = "/console/api/delivery/domains/{}/check"
        assert (await http.post(path.format("shop.example"))).status_code == 403
        checked = (await http.post(path.format("shop.example"), headers=CHANGE)).json()
        assert not checked["check"]["passing"] and checked["records"]
        for unknown in ("other.example", "%3Cimg%3E"):
            answer = await http.post(path.format(unknown), headers=CHANGE)
            assert answer.status_code in (404, 422)


async def test_viewers_share_an_answer():
    now, reads = [0.0], 0
    shared = Shared(lambda: now[0])

    async def read() -> int:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0)
        return reads

    assert await asyncio.gather(*(shared.get("a", read) for _ in range(5))) == [1] * 5
    now[0] = 1.0
    assert await shared.get("a", read) == 2

    async def fail() -> int:
        raise StoreUnavailable("full")

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await shared.get("b", fail)
    assert await shared.get("b", read) == 3
