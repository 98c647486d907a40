"""Direct sources, relays and pools of both, on a whole workspace with a real DNS and real SMTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from actors.handles import Handles
from manta.settings import DnsSettings, EgressSource, Pool, PoolMember
from sandbox.dns import Trouble, serve_dns
from tests.integration.world import (
    Sink,
    accounting,
    adds_up,
    finished,
    import_people,
    launch,
    running,
    until,
)

pytestmark = [pytest.mark.smtp_sink, pytest.mark.timeout(180)]
ZONE: dict[str, Any] = {
    "one.example": {"MX": ["10 mx.shared.example"]},
    "two.example": {"MX": ["10 mx.shared.example"]},
    "three.example": {"MX": ["10 mx.three.example"]},
    "null.example": {"MX": ["0 ."]},
    "broken.example": Trouble.SERVFAIL,
    "mx.shared.example": {"A": ["127.0.0.1"]},
    "mx.three.example": {"A": ["127.0.0.1"]},
}
GOOD = ("one.example", "two.example", "three.example")
EACH = 40


@pytest.fixture
def sink(smtp_sink_path: str) -> Iterator[Sink]:
    sink = Sink(smtp_sink_path)
    sink.start()
    yield sink
    sink.stop()


def people(*domains: str) -> pa.Table:
    emails = [f"p{i}@{domain}" for domain in domains for i in range(EACH)]
    kinds = ["good" if email.endswith(GOOD) else "bad" for email in emails]
    return pa.table({"email": emails, "attr_first_name": emails, "attr_kind": kinds})


async def lanes(handles: Handles) -> set[tuple[str, str, str]]:
    status = [await sender.call("status") for sender in handles.senders]
    return {(x["pool"], x["source"], x["site"]) for sender in status for x in sender["lanes"]}


async def test_direct_sources_and_relays_send_side_by_side(ray_cluster: str, sink: Sink) -> None:
    dns = serve_dns(ZONE)
    here = {"port": sink.port, "tls": "none", "connections_max": 4}
    try:
        async with running(
            "ways",
            sink.port,
            egress=(
                EgressSource(name="mx-a", kind="direct", **here),
                EgressSource(name="relay", **here),
            ),
            pools=(Pool("both", (PoolMember("mx-a"), PoolMember("relay"))),),
            dns=DnsSettings((dns.address,), private_addresses=True),
        ) as (handles, _):
            table = people(*GOOD, "null.example", "gone.example", "broken.example")
            await import_people(handles, table)
            everybody: dict[str, Any] = {"all": []}
            direct = await launch(handles, everybody, source="mx-a")

            async def is_done() -> bool:
                return (await accounting(handles, direct))["pending"] == EACH

            await until(is_done, 60, "all but the broken domain are done")
            total = await accounting(handles, direct)
            assert adds_up(total)
            assert (total["accepted"], total["failed"]) == (3 * EACH, 2 * EACH)
            copies = sink.copies()
            assert set(copies.values()) == {1} and len(copies) == 3 * EACH
            assert (await handles.director.call("status"))["unknown_domains"] == ["broken.example"]
            await handles.director.call("cancel", direct)

            good = {"attribute": {"name": "kind", "operator": "equals", "value": "good"}}
            both = await launch(handles, good, source="both")
            seen: set[tuple[str, str, str]] = set()

            async def is_finished() -> bool:
                seen.update(await lanes(handles))
                return (await accounting(handles, both))["accepted"] == 3 * EACH

            await until(is_finished, 60, "the pool has sent everything")
            assert {source for pool, source, _ in seen if pool == "both"} == {"mx-a", "relay"}
            await finished(handles, both, 60)
            assert Counter(sink.copies().values()) == {2: 3 * EACH}
            reputation = await handles.reputation.call("status")
            assert reputation["ready"]
    finally:
        dns.stop()
