"""The public Segment libraries, as their registries give them, and the web snippet in a browser:
a scripted session through Serve ends in the right people, events and segments."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors import bootstrap
from actors.handles import Handles
from manta.content.tokens import keyring_of
from manta.definitions import SCOPES
from manta.ids import MessageRef, decode_id
from manta.ingestion.visits import visit_token
from manta.settings import HttpSettings, Settings
from serve_apps.bootstrap import deploy, undeploy, with_free_port

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SESSIONS = Path(__file__).with_name("sdks")
SESSION_S = 60
# A browser lets no page of the net speak to this machine; a Manta in the net it would.
BROWSER = (
    "--no-sandbox",
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
)
# What every session does, by type: one screen, one page and one product are looked at.
EVENTS = {
    "Newsletter Read": 1,
    "Of Earlier": 1,
    "grouped": 1,
    "ordered": 1,
    "purchased": 2,
    "viewed": 3,
}


@dataclass
class House:
    handles: Handles
    url: str
    key: str
    public_key: str

    async def events(self, subscriber_id: int) -> list[dict[str, Any]]:
        shard = self.handles.shards.of_subscriber(subscriber_id)
        found = await self.handles.shards.query(
            shard, "person_events", {"subscriber_id": subscriber_id}
        )
        return list(found["events"])


@pytest.fixture
async def house(ray_cluster: str) -> AsyncIterator[House]:
    with tempfile.TemporaryDirectory(prefix="manta-sdks-") as root:
        settings = with_free_port(
            replace(Settings(), workspace="sdks-test", root=root, http=HttpSettings(port=18_360))
        )
        handles = await bootstrap.up(settings)
        make = handles.catalog.call
        key = (await make("create_api_key", "test", list(SCOPES)))["key"]
        public_key = (await make("create_api_key", "web", ["collect"]))["key"]
        url = await asyncio.to_thread(deploy, settings)
        yield House(handles, url, key, public_key)
        await asyncio.to_thread(undeploy)
        bootstrap.down(settings)


async def test_sessions_of_the_public_libraries(
    house: House, tmp_path: Path, chromium_path: str
) -> None:
    node = await asyncio.to_thread(node_session, tmp_path)
    headers = {"Authorization": f"Bearer {house.key}"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers, timeout=60) as http:
        python = [sys.executable, str(SESSIONS / "session.py")]
        await asyncio.gather(
            asyncio.to_thread(run, [*python, house.url, house.key, "anna"]),
            asyncio.to_thread(run, [*node, house.url, house.key, "nora"]),
        )
        for name in ("anna", "nora"):
            await check_person(house, http, name)
        # A library that got no answer sends all of it again: nothing is there twice.
        await check_segments(http)
        assert (await http.get("/v1/quarantine")).json()["items"] == []
        await check_snippet(house, http, chromium_path)


def node_session(folder: Path) -> list[str]:
    """The command of the session in Node, whose library npm installs by its lock file."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        if os.environ.get("MANTA_REQUIRE_ALL"):
            pytest.fail("node and npm are not installed")
        pytest.skip("node and npm are not installed")
    for name in ("package.json", "package-lock.json", "session.mjs"):
        shutil.copy(SESSIONS / name, folder)
    run([npm, "ci", "--silent", "--no-audit", "--no-fund"], folder)
    return [node, str(folder / "session.mjs")]


def run(command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=SESSION_S, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


async def check_person(house: House, http: httpx.AsyncClient, name: str) -> None:
    """One person out of a browser, an account and an earlier account."""
    person = (await http.get("/v1/subscribers", params={"external_id": name})).json()
    assert person["email"] == f"{name}@shop.example"
    assert person["attributes"] == {"first_name": name, "plan": "max", "address_city": "Bern"}
    assert {merge["cause"] for merge in person["merged_from"]} == {"identify", "alias"}
    events = await house.events(decode_id(person["id"]))
    counts: dict[str, int] = {}
    for event in events:
        counts[event["type"]] = counts.get(event["type"], 0) + 1
    assert counts == EVENTS
    bought = {e["item"]: e["amount"] for e in events if e["type"] == "purchased"}
    assert bought == {"shoe": 90.0, "lace": 9.5}
    (late,) = [e for e in events if e["type"] == "Newsletter Read"]
    assert late["occurred_at"].isoformat().startswith("2024-02-03T04:05:0")


async def check_segments(http: httpx.AsyncClient) -> None:
    """Both are in a segment that joins what they did under every one of their names."""
    bought = {
        "type": "purchased",
        "where": [{"property": "item", "operator": "equals", "value": "shoe"}],
    }
    for rule, count in (
        ({"all": [{"event": bought}, {"event": {"type": "Of Earlier"}}]}, 2),
        ({"attribute": {"name": "plan", "operator": "equals", "value": "pro"}}, 0),
        ({"attribute": {"name": "plan", "operator": "equals", "value": "max"}}, 2),
    ):
        made = await http.post("/v1/segments", json={"name": f"s{count}", "rule": rule})
        assert made.status_code == 201, made.text
        counted = await http.get(f"/v1/segments/{made.json()['id']}/count")
        assert counted.json()["count"] == count, (rule, counted.text)


async def check_snippet(house: House, http: httpx.AsyncClient, chromium_path: str) -> None:
    """A click that leads to a page with the snippet: the page and a purchase are the reader's, and
    the address bar keeps no token."""
    site = await http.post("/v1/sites", json={"name": "shop", "hosts": ["shop.example"]})
    assert site.status_code == 201, site.text
    person = (await http.get("/v1/subscribers", params={"external_id": "anna"})).json()
    anna = decode_id(person["id"])
    ring = keyring_of(await house.handles.catalog.call("token_keys"), "sdks-test")
    token = visit_token(ring, MessageRef(anna, 7), 1, 0, house.handles.clock.now())

    async def arrived() -> bool:
        types = [event["type"] for event in await house.events(anna)]
        return (types.count("viewed"), types.count("purchased")) == (4, 3)

    url = f"http://shop.example/new?a=1&mt={token}"
    shown = await visited(house, chromium_path, url, arrived)
    assert shown == "http://shop.example/new?a=1"


async def visited(
    house: House, chromium_path: str, url: str, arrived: Callable[[], Awaitable[bool]]
) -> str:
    """What the address bar shows after a visit with a purchase that has arrived."""
    from playwright.async_api import async_playwright

    page_html = (
        '<script>window.manta={q:[["track","Queued"]]}</script>'
        f'<script async src="{house.url}/v1/snippet.js" data-key="{house.public_key}"></script>'
    )
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=chromium_path, args=BROWSER)
        page = await browser.new_page()
        await page.route(
            "http://shop.example/**",
            lambda route: route.fulfill(body=page_html, content_type="text/html"),
        )
        await page.goto(url)
        await page.wait_for_function("!!(window.manta && window.manta.purchase)")
        await page.evaluate(
            "manta.purchase({order_id: 'w1', total: 5, products: [{sku: 'cap', price: 5}]})"
        )
        async with asyncio.timeout(20):
            while not await arrived():
                await asyncio.sleep(0.2)
        shown = str(await page.evaluate("location.href"))
        await browser.close()
        return shown
