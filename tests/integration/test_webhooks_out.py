"""Outgoing webhooks over real sockets: hostile endpoints get nothing, and nothing gets lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
import pytest

from actors.io.dns import DnsClient
from actors.io.web import Web, WebLimits, asked_addresses, system_addresses
from manta.clock import ManualClock, SystemClock
from manta.events.commands import RecordEvents
from manta.settings import CourierSettings, DnsSettings
from manta.webhooks.signing import secret_text
from sandbox.dns import dns_server
from tests.integration import world
from tests.integration.certificates import Authority

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMITS = WebLimits(connect_s=0.5, total_s=0.5)
METADATA = "http://169.254.169.254/latest/meta-data/"


class Server:
    """``heads``: the head of every request; ``ended``: connections that the client has closed."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = self.ended = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@asynccontextmanager
async def server(talk: Talk, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Server]:
    """Reads requests one after the other and lets ``talk`` answer each."""
    built = Server()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        built.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                built.heads.append(head)
                fields = dict(
                    line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
                )
                built.bodies.append(await reader.readexactly(int(fields.get("content-length", 0))))
                await talk(reader, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            built.ended += 1
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, host, 0, **options)
    built.port = listening.sockets[0].getsockname()[1]
    try:
        yield built
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def says(answer: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return talk


OK = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@asynccontextmanager
async def web(resolve: Any = system_addresses, **options: Any) -> AsyncIterator[Web]:
    built = Web(resolve, **{"private": True, "limits": LIMITS} | options)
    try:
        yield built
    finally:
        await built.close()


async def post(client: Web, url: str) -> Any:
    return await client.request("POST", url, {"content-type": "application/json"}, b'{"a":1}')


# -- what a hostile endpoint answers -----------------------------------------------------------


async def test_a_redirect_is_an_answer_and_no_way():
    async with server(OK) as inner:
        for place in (METADATA, inner.url, "file:///etc/passwd"):
            answer = f"HTTP/1.1 307 Go\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n"
            async with server(says(answer.encode())) as outer, web() as client:
                reply = await post(client, outer.url)
                assert (reply.status, reply.headers["location"]) == (307, place)
                assert len(outer.heads) == 1
        assert inner.connections == 0


async def test_an_endless_body_is_cut_and_its_connection_closed():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
            await writer.drain()

    async with server(talk) as endless, web() as client:
        reply = await post(client, endless.url)
        assert (reply.status, len(reply.body), reply.cut) == (200, 64 << 10, True)
        for _ in range(100):
            if endless.ended:
                break
            await asyncio.sleep(0.01)
        assert endless.ended == 1


async def drips(writer: asyncio.StreamWriter, first: bytes, drop: bytes) -> None:
    writer.write(first)
    while True:
        writer.write(drop)
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
async def test_a_slow_drip_ends_in_time(first, drop):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await drips(writer, first, drop)

    async with server(talk) as slow, web(limits=WebLimits(0.2, 0.2)) as client:
        began_s = asyncio.get_running_loop().time()
        reply = await post(client, slow.url)
        assert reply.status is None and reply.failure
        assert asyncio.get_running_loop().time() - began_s < 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 99999 No\r\n\r\n",
        b"\x00\xff" * 1_000,
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_failure(answer):
    async with server(says(answer)) as odd, web() as client:
        reply = await post(client, odd.url)
        assert reply.status in (None, 101)
        assert reply.status or reply.failure


async def test_nobody_there_and_nobody_answers():
    async with web(limits=WebLimits(0.2, 0.2)) as client:
        reply = await post(client, "http://127.0.0.1:9/")
        assert reply.status is None and reply.failure
        reply = await post(client, "http://no-such-name.invalid/")
        assert "no address" in reply.failure

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with server(talk) as mute, web(limits=WebLimits(0.2, 0.2)) as client:
        assert "0.2 s" in (await post(client, mute.url)).failure


# -- where it may connect ------------------------------------------------------------------


async def test_private_addresses_are_out_of_reach_unless_they_are_wanted(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with server(OK) as inner:
        secure = inner.url.replace("http:", "https:")
        async with web(private=False) as client:
            for url in (
                inner.url,
                secure,
                secure.replace("127.0.0.1", "localhost"),
                secure.replace("127.0.0.1", "[::ffff:127.0.0.1]"),
                secure.replace("127.0.0.1", "2130706433"),
                secure.replace("127.0.0.1", "0x7f.1"),
                secure.replace("127.0.0.1", "0"),
                METADATA.replace("http:", "https:"),
            ):
                assert (await post(client, url)).status is None, url
                assert await client.check(url), url
        assert inner.connections == 0
        async with web() as client:
            assert (await post(client, inner.url)).status == 200
            assert "may not be reached" in (await post(client, METADATA)).failure


async def test_a_dns_that_changes_gains_nothing():
    """Checked when the endpoint was made; another address when it is to be reached."""
    async with server(OK) as inner:
        zone: dict[str, Any] = {"evil.test": {"A": ["93.184.216.34"]}}
        with dns_server(zone, ttl_s=0) as names:
            clock = ManualClock()
            dns = DnsClient(DnsSettings((names.address,), 0.5), clock)
            async with web(asked_addresses(dns.addresses), private=False) as client:
                url = f"https://evil.test:{inner.port}/"
                assert await client.check(url) == ""
                for address in ("127.0.0.1", "169.254.169.254", "10.0.0.1"):
                    zone["evil.test"] = {"A": [address]}
                    clock.advance(3_600)
                    assert "may not be reached" in (await post(client, url)).failure
                zone["evil.test"] = {"A": ["93.184.216.34", "127.0.0.1"]}
                clock.advance(3_600)
                assert "may not be reached" in (await post(client, url)).failure
                zone["evil.test"] = {"A": ["93.184.216.34"], "AAAA": ["::ffff:7f00:1"]}
                clock.advance(3_600)
                assert "may not be reached" in (await post(client, url)).failure
        assert inner.connections == 0


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to():
    """A name that gives another address at each question: one question, and its own answer."""
    async with server(OK) as good, server(OK, "127.0.0.2") as other:
        asked: list[str] = []

        async def turning(host: str) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) % 2 else ["169.254.169.254"]

        async with web(turning) as client:
            url = f"http://turns.test:{good.port}/"
            assert (await post(client, url)).status == 200
            assert asked == ["turns.test"]
            assert "host: turns.test" in good.heads[0].lower()
            assert (await post(client, url)).status == 200  # over the connection that stands
            assert (good.connections, asked) == (1, ["turns.test"])
            reply = await post(client, f"http://turns.test:{other.port}/")
            assert "169.254.169.254" in reply.failure
        assert other.connections == 0


async def test_tls_proves_the_name_of_the_url(tmp_path):
    authority = Authority(tmp_path)

    async def here(host: str) -> list[str]:
        return ["127.0.0.1"]

    context = authority.server_context("good.test")
    async with server(OK, ssl=context) as secure:
        async with web(here, context=authority.client_context()) as client:
            assert (await post(client, f"https://good.test:{secure.port}/")).status == 200
            reply = await post(client, f"https://bad.test:{secure.port}/")
            assert "certificate" in reply.failure.lower()
        async with web(here) as client:
            assert (await post(client, f"https://good.test:{secure.port}/")).status is None
        assert len(secure.heads) == 1


# -- all of it, with Ray -------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_a_killed_courier_loses_nothing(ray_cluster):
    count, got = 600, set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 204 No\r\n\r\n")

    async with (
        server(talk) as sink,
        world.running(
            "webhooks", 2525, courier=CourierSettings(private_addresses=True), shards=1
        ) as (handles, settings),
    ):
        fields = {
            "url": sink.url,
            "types": ["event.*"],
            "secrets": [{"secret": secret_text(b"s" * 32), "until": None}],
        }
        endpoint = await handles.catalog.call("save", "endpoints", fields)
        await handles.courier.call("check_url", sink.url)
        await world.import_people(handles, pa.table({"email": ["ann@x.example"]}))
        ((who, *_),) = await handles.shards.query_all(
            "identities", {"kind": "email", "values": ["ann@x.example"]}
        )

        async def is_told() -> bool:
            known = await handles.shards.query_all("delivery_counts")
            if any(known):
                return True
            await bought(0, 1)
            return False

        async def bought(first: int, past: int) -> None:
            rows = pa.table(
                {
                    "subscriber_id": [who] * (past - first),
                    "type": ["bought"] * (past - first),
                    "id": [f"e{first}-{n}-{clock.monotonic()}" for n in range(first, past)],
                }
            )
            await handles.shards.execute(0, RecordEvents(f"k{clock.monotonic()}", rows))

        clock = SystemClock()
        await world.until(is_told, 60, "the shard knows the endpoint")
        for n in range(3):
            await bought(n * count // 3, (n + 1) * count // 3)
            await asyncio.sleep(0.15)
            await world.until(lambda: world.kill(settings, "courier"), 90, "a courier to kill")

        async def all_delivered() -> bool:
            ((*rows,),) = await handles.shards.query_all("delivery_counts")
            states = {state: n for _, state, n, _ in rows}
            return set(states) == {"delivered"} and states["delivered"] > count

        await world.until(all_delivered, 200, "everything is delivered")
        for body in sink.bodies:
            got.add(json.loads(body)["data"]["event"]["id"])
        assert len(got) > count
        ids = [h.split("webhook-id: ")[1].split("\r\n")[0] for h in sink.heads]
        assert len(set(ids)) == len(got) <= len(ids)
        assert endpoint["version"] == 1
