"""A provider whose people complain is slowed by itself, in time, and an undo works: all of it real.

Mail goes from a direct source to two of the sandbox's providers; complaints come back to the inbox
as feedback reports (RFC 5965) by SMTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.handles import Handles
from manta.clock import SystemClock
from manta.settings import DnsSettings, EgressSource, InboxSettings
from sandbox.network import Network, free_port
from sandbox.town import Town, TownSettings
from tests.integration import world

pytestmark = pytest.mark.timeout(240)
EACH = 2_000
PACE_PER_S = 30.0
SHAPING = """
[provider.google]
rate = "30/s"
total_rate = "30/s"
[provider.yahoo]
rate = "30/s"
total_rate = "30/s"
"""
NETWORK = Network(
    domains={"gmail.example": "google", "yahoo.example": "yahoo"},
    sources={"out1.news.example": "127.0.0.2"},
)
# Nothing happens but the complaints, and no provider acts on them: Reputation alone shall.
CALM = {
    "unknown_share": 0.0,
    "full_share": 0.0,
    "late_share": 0.0,
    "auto_reply_share": 0.0,
    "complaint_share": 0.0,
    "complaints_slow": 0.0,
    "complaints_block": 0.0,
}
CROSS = {**CALM, "complaint_share": 0.01, "complaint_after_s": 0.5}


def people() -> pa.Table:
    """Of both providers by turns."""
    emails = [f"p{n}@{domain}" for n in range(EACH) for domain in NETWORK.domains]
    return pa.table({"email": emails, "attr_first_name": emails})


async def paces(town: Town, for_s: float) -> dict[str, float]:
    """Messages per second that each provider took in the next time."""
    loop = asyncio.get_running_loop()
    before, began_s = await taken(town), loop.time()
    await asyncio.sleep(for_s)
    after = await taken(town)
    return {name: (after[name] - before[name]) / (loop.time() - began_s) for name in after}


async def taken(town: Town) -> dict[str, int]:
    providers = (await town.status())["providers"]
    return {name: counts.get("accepted", 0) for name, counts in providers.items()}


async def lane_rates(handles: Handles) -> dict[str, float]:
    """Of the lanes that have asked since the law last changed."""
    status = await handles.throttle.call("status")
    return {lane["provider"]: lane["rate_per_s"] for lane in status["lanes"]}


async def suppressed(handles: Handles) -> Counter[tuple[str, str]]:
    """(reason, domain) of all suppressed addresses."""
    pages = await handles.shards.query_all("suppressions_page", {"limit": 1_000})
    rows = [row for page in pages for row in page]
    return Counter((row["reason"], row["address"].rpartition("@")[2]) for row in rows)


async def test_complaints_at_one_provider_slow_it_there_and_an_undo_lifts_it(
    ray_cluster: str, tmp_path: Path
) -> None:
    shaping = tmp_path / "shaping.toml"
    shaping.write_text(SHAPING)
    settings = TownSettings(
        tmp_path / "mail.sqlite",
        smtp_port=free_port(NETWORK.addresses),
        dns_port=free_port(["127.0.0.1"], with_udp=True),
        inbox_port=free_port(["127.0.0.1"]),
        network=NETWORK,
        known={name: {"127.0.0.2": 1_000_000} for name in NETWORK.hosts},
        changes={"google": CALM, "yahoo": CROSS},
        alive=False,
    )
    source = EgressSource(
        name="direct",
        kind="direct",
        port=settings.smtp_port,
        ehlo_name="out1.news.example",
        source_address="127.0.0.2",
    )
    town = Town(settings, SystemClock())
    await town.start()
    try:
        async with world.running(
            "complaints",
            settings.smtp_port,
            egress=(source,),
            dns=DnsSettings((f"127.0.0.1:{settings.dns_port}",), private_addresses=True),
            inbox=InboxSettings(port=settings.inbox_port),
            return_path_domain=NETWORK.return_path_domain,
            shaping_file=str(shaping),
        ) as (handles, _):
            await world.import_people(handles, people())
            await world.launch(handles, {"all": []})
            action = await slowed(handles, town)
            await kept_apart(handles, town, action)
            await undone(handles, town, action)
            await recorded(handles, town)
    finally:
        await town.stop()


async def slowed(handles: Handles, town: Town) -> dict[str, Any]:
    """The action, which comes within the provider's first thousand messages."""
    found: list[dict[str, Any]] = []

    async def is_slowed() -> bool:
        found[:] = await handles.reputation.call("actions")
        return bool(found)

    await world.until(is_slowed, 60, "an action begins")
    assert (await taken(town))["yahoo"] <= 1_000
    (action,) = found
    assert (action["kind"], action["scope"]["provider"]) == ("limit", "yahoo")
    assert action["scope"]["source"] == "direct"
    assert "complaints" in action["cause"] and "yahoo" in action["cause"]
    assert action["figures"] and action["limits"]["rate_per_s"] < PACE_PER_S
    return action


async def kept_apart(handles: Handles, town: Town, action: dict[str, Any]) -> None:
    """The lane is slowed as the action says; the other provider's is not touched."""

    async def holds() -> bool:
        rates = await lane_rates(handles)
        return rates == {"google": PACE_PER_S, "yahoo": action["limits"]["rate_per_s"]}

    await world.until(holds, 10, "the Throttle slows the one lane alone")
    await asyncio.sleep(1)  # permits that were granted before
    pace = await paces(town, 5)
    assert pace["yahoo"] <= 1.25 * action["limits"]["rate_per_s"]
    assert pace["google"] >= 1.2 * pace["yahoo"]


async def undone(handles: Handles, town: Town, action: dict[str, Any]) -> None:
    over = await handles.reputation.call("undo", action["id"], "ann")
    assert over["undone_at"]

    async def is_free() -> bool:
        return (await lane_rates(handles)).get("yahoo") == PACE_PER_S

    await world.until(is_free, 10, "the Throttle knows of the undo")
    pace = await paces(town, 4)
    assert pace["yahoo"] > 1.1 * action["limits"]["rate_per_s"]


async def recorded(handles: Handles, town: Town) -> None:
    """Each complaint came by mail and suppressed the person who made it."""

    async def are_suppressed() -> bool:
        told = (await town.status())["providers"]["yahoo"]["complaint"]
        return await suppressed(handles) == {("complaint", "yahoo.example"): told}

    await world.until(are_suppressed, 20, "who complained is suppressed, and nobody else")
    assert (await town.status())["providers"]["yahoo"]["complaint"] >= 3
