"""The apps on Ray Serve behind HAProxy, over a workspace of real actors."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import httpx
import psutil
import pyarrow as pa
import pytest

from actors import bootstrap
from actors.handles import Handles
from manta.content.tokens import Keyring, TokenKind, keyring_of
from manta.definitions import SCOPES
from manta.errors import Conflict
from manta.ids import MessageRef
from manta.people.commands import UpsertPeople
from manta.people.identities import route
from manta.settings import HttpSettings, Settings
from serve_apps.bootstrap import deploy, undeploy, with_free_port

# Ray Serve's own models use what pydantic calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PEOPLE = 200
CAMPAIGN = 3
URL = "https://shop.example/new?a=1&b=2"


class House:
    def __init__(self, settings: Settings, handles: Handles) -> None:
        self.settings = settings
        self.handles = handles
        self.people: list[int] = []
        self.ring: Keyring

    async def fill(self) -> None:
        rows = pa.table({"email": [f"reader{n}@shop.example" for n in range(PEOPLE)]})
        for shard, part in route(rows, self.handles.shards.first_buckets).items():
            answer = await self.handles.shards.execute(shard, UpsertPeople(None, part, "test"))
            self.people += answer.ids.to_pylist()
        documents = await self.handles.catalog.call("token_keys")
        self.ring = keyring_of(documents, self.settings.workspace)

    def link(self, kind: TokenKind, person: int, url: str = "") -> str:
        path = {TokenKind.OPEN: "o", TokenKind.CLICK: "c", TokenKind.UNSUBSCRIBE: "u"}[kind]
        token = self.ring.sign(kind, MessageRef(person, CAMPAIGN), CAMPAIGN, 1, url)
        return f"/{path}/{token}"

    async def counts(self) -> dict[str, int]:
        """Opens and clicks that the shards hold."""
        parts = await self.handles.shards.query_all("campaign_report", {"campaign_id": CAMPAIGN})
        return {k: sum(p["events"][k]["total"] for p in parts) for k in ("opened", "clicked")}


@pytest.fixture
async def home(ray_cluster: str) -> AsyncIterator[tuple[House, httpx.AsyncClient]]:
    with tempfile.TemporaryDirectory(prefix="manta-serve-") as root:
        settings = with_free_port(
            replace(Settings(), workspace="serve-test", root=root, http=HttpSettings(port=18_300))
        )
        handles = await bootstrap.up(settings)
        house = House(settings, handles)
        await house.fill()
        key = (await handles.catalog.call("create_api_key", "test", list(SCOPES)))["key"]
        url = await asyncio.to_thread(deploy, settings)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            yield house, http
        await asyncio.to_thread(undeploy)
        bootstrap.down(settings)


async def test_the_apps_on_serve(home: tuple[House, httpx.AsyncClient]) -> None:
    house, http = home
    await check_doors(http)
    await check_tracking(house, http)
    await check_api_and_ingest(http)
    await check_limits(http)
    await check_a_killed_replica(house, http)
    check_a_taken_port(house.settings)


async def check_doors(http: httpx.AsyncClient) -> None:
    assert (await http.get("/")).headers["location"] == "/console/"
    assert (await http.get("/docs")).headers["location"] == "/v1/docs"
    for path, text in (("/v1/docs", "/v1/campaigns"), ("/console/", "<main"), ("/x", "nothing")):
        assert text in (await http.get(path)).text, path
    assert (await http.get("/console/assets/app.js")).status_code == 200
    assert (await http.get("/v1/nothing")).json()["code"] == "not_found"


async def check_tracking(house: House, http: httpx.AsyncClient) -> None:
    """Every hit is in its shard when its answer comes."""
    before = await house.counts()
    opens = [http.get(house.link(TokenKind.OPEN, person)) for person in house.people]
    assert {a.status_code for a in await asyncio.gather(*opens)} == {200}
    clicked = await http.get(house.link(TokenKind.CLICK, house.people[0], URL))
    assert (clicked.status_code, clicked.headers["location"]) == (302, URL)
    after = await house.counts()
    assert after["opened"] - before["opened"] == PEOPLE
    assert after["clicked"] - before["clicked"] == 1
    forged = house.link(TokenKind.CLICK, house.people[0], URL)[:-4] + "AAAA"
    assert (await http.get(forged)).status_code == 404

    leaver = house.people[1]
    path = house.link(TokenKind.UNSUBSCRIBE, leaver)
    assert "<form" in (await http.get(path)).text
    done = await http.post(path, data={"List-Unsubscribe": "One-Click"})
    assert done.status_code == 200, done.text
    shard = house.handles.shards.of_subscriber(leaver)
    person = await house.handles.shards.query(shard, "person", {"subscriber_id": leaver})
    assert {c["status"] for c in person["consents"]} == {"unsubscribed"}


async def check_api_and_ingest(http: httpx.AsyncClient) -> None:
    types = {"attributes": {"city": "string"}}
    assert (await http.post("/v1/attributes", json=types)).status_code == 200
    made = await http.post(
        "/v1/subscribers", json={"email": "ann@x.example", "attributes": {"city": "Bern"}}
    )
    assert made.status_code == 201, made.text
    rule = {"attribute": {"name": "city", "operator": "equals", "value": "Bern"}}
    tried = await http.post("/v1/segments/preview", json={"rule": rule})
    assert tried.status_code == 200 and tried.json()["count"] == 1, tried.text
    event = {"type": "purchase", "id": "1", "email": "ann@x.example", "amount": 9.5}
    assert (await http.post("/v1/events", json=event)).json() == {"status": "recorded"}
    assert (await http.post("/v1/events", json=event)).json() == {"status": "repeated"}


async def check_limits(http: httpx.AsyncClient) -> None:
    large = await http.post("/v1/events", content=b" " * (5 << 20))
    assert (large.status_code, large.json()["code"]) == (413, "too_large")


async def check_a_killed_replica(house: House, http: httpx.AsyncClient) -> None:
    """Whoever had an answer is counted, though the replica died in the middle."""
    before = await house.counts()
    answered = 0

    async def reader(seed: int) -> None:
        nonlocal answered
        random = Random(seed)
        for _ in range(40):
            try:
                answer = await http.get(house.link(TokenKind.OPEN, random.choice(house.people)))
            except httpx.HTTPError:
                continue
            answered += answer.status_code == 200

    readers = [asyncio.create_task(reader(seed)) for seed in range(8)]
    await asyncio.sleep(0.3)
    os.kill(await asyncio.to_thread(replica_pid, "tracking"), signal.SIGKILL)
    await asyncio.gather(*readers)
    after = await house.counts()
    assert answered > 0
    assert after["opened"] - before["opened"] >= answered
    until = asyncio.get_running_loop().time() + 60
    while (await http.get(house.link(TokenKind.OPEN, house.people[0]))).status_code != 200:
        assert asyncio.get_running_loop().time() < until, "no replica came back"
        await asyncio.sleep(0.5)


def replica_pid(app: str) -> int:
    """The process of an app's replica in this cluster; others may run on the machine."""
    from ray._private.worker import global_worker

    session = global_worker.node.get_session_dir_path()
    for process in psutil.process_iter(["name", "cmdline"]):
        named = " ".join(process.info["cmdline"] or [])
        if named.startswith(f"ray::ServeReplica:{app}:"):
            parent = process.parent()
            if parent is not None and any(session in word for word in parent.cmdline()):
                return int(process.pid)
    raise AssertionError(f"no replica of {app}")


def check_a_taken_port(settings: Settings) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        wanted = replace(settings, http=HttpSettings(port=port))
        assert with_free_port(wanted).http.port != port
        undeploy()
        with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 is taken"):
            deploy(wanted)
