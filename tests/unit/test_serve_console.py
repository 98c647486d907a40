"""The console's own reads and changes, without a browser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from manta.errors import StoreUnavailable
from serve_apps.console import COOKIE, Shared, create_console
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
