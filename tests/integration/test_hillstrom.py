"""Real customers: imported from a file, chosen by what they bought, mailed, all accounted for.

While their mails go out by real SMTP and readers open them, each kind of process is killed in
turn. The customers are Hillstrom's 32,000 where the published data is at hand, and otherwise as
many made-up rows with the same columns.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from actors.handles import Handles
from examples.hillstrom import import_table, write_import_file
from manta.command import Command
from manta.content.tokens import TokenKind, keyring_of
from manta.ids import MessageRef, campaign_message_key
from manta.people.importing import ImportSummary, import_people
from manta.people.upsert import Consent
from manta.schema import AttributeType
from manta.settings import HttpSettings, Settings
from manta.store.importing import checksum_of, plan_import, read_people
from serve_apps.bootstrap import apps, deploy, undeploy, with_free_port
from tests.conftest import SHARED_DATA
from tests.integration import world
from tests.integration.test_serve import replica_pid
from tests.integration.world import Sink

pytestmark = [
    pytest.mark.smtp_sink,
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Serve's own models
]
CUSTOMERS = 32_000
HILLSTROM = SHARED_DATA / "hillstrom" / "hillstrom_even_rows.csv.gz"
RULE = {
    "all": [
        {"attribute": {"name": "womens", "operator": "equals", "value": True}},
        {"attribute": {"name": "recency", "operator": "at_most", "value": 6}},
    ]
}
TEMPLATE = world.TEMPLATE | {
    "subject": "For our customers who shop by {{ channel }}",
    "html": world.TEMPLATE["html"].replace("{{ first_name }}", "customer"),
}


@pytest.fixture
def sink(smtp_sink_path: str) -> Iterator[Sink]:
    sink = Sink(smtp_sink_path)
    sink.start()
    yield sink
    sink.stop()


def customers(file: Path) -> pa.Table:
    """Write the file to import; its rows."""
    if HILLSTROM.exists():
        assert write_import_file(HILLSTROM, file) == CUSTOMERS
        return import_table(HILLSTROM)
    random = Random(2008)
    rows = pa.table(
        {
            "email": [f"customer{n:05d}@mail.example" for n in range(CUSTOMERS)],
            "recency": [random.randint(1, 12) for _ in range(CUSTOMERS)],
            "channel": [random.choice(("Web", "Phone")) for _ in range(CUSTOMERS)],
            "womens": [random.random() < 0.55 for _ in range(CUSTOMERS)],
        }
    )
    pyarrow.csv.write_csv(rows, file)
    return rows


def import_file(path: Path, handles: Handles, loop: asyncio.AbstractEventLoop) -> ImportSummary:
    """As the command line does it, on a thread beside the loop."""

    def call(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop)

    declared = call(handles.catalog.call("attributes")).result()
    plan = plan_import(path, {name: AttributeType(kind) for name, kind in declared.items()})
    types = {name: str(kind) for name, kind in plan.attributes.items()}
    call(handles.catalog.call("declare_attributes", types)).result()

    def submit(shard: int, command: Command) -> Future[Any]:
        return call(handles.shards.execute(shard, command))

    return import_people(
        read_people(path, plan),
        submit,
        handles.shards.first_buckets,
        key=plan.key(checksum_of(path)),
        source="file",
        consent=Consent("email", "newsletter", "subscribed"),
    )


@dataclass
class Readers:
    """People who open mails of a campaign, and count the answers they got."""

    handles: Handles
    settings: Settings
    campaign: int
    people: list[int] = field(default_factory=list)
    answered: int = 0
    stopped: bool = False

    async def read(self, seed: int) -> None:
        ring = keyring_of(await self.handles.catalog.call("token_keys"), self.settings.workspace)
        random, key = Random(seed), campaign_message_key(self.campaign)
        async with httpx.AsyncClient(base_url=self.settings.public_url, timeout=30) as http:
            while not self.stopped:
                ref = MessageRef(random.choice(self.people), key)
                token = ring.sign(TokenKind.OPEN, ref, self.campaign)
                try:
                    answer = await http.get(f"/o/{token}")
                except httpx.HTTPError:
                    continue  # no answer: nothing is promised
                finally:
                    await asyncio.sleep(0.02)
                self.answered += answer.status_code == 200

    async def recorded(self) -> int:
        parts = await self.handles.shards.query_all(
            "campaign_report", {"campaign_id": self.campaign}
        )
        return sum(part["events"]["opened"]["total"] for part in parts)


async def kill_each_in_turn(
    handles: Handles, settings: Settings, campaign: int, expected: int
) -> None:
    """kill -9 of each kind of process, spread over the campaign."""
    roles = ("shard-000", "sender-00", "throttle", "tracking", "director", "catalog")
    for place, role in enumerate(roles):
        goal = expected * (place + 1) // (len(roles) + 2)

        async def reached(goal: int = goal) -> bool:
            return (await world.accounting(handles, campaign))["accepted"] >= goal

        await world.until(reached, 120, f"{goal} accepted before {role} is killed")
        if role == "tracking":
            os.kill(await asyncio.to_thread(replica_pid, role), signal.SIGKILL)
        else:
            await world.kill(settings, role)


async def test_customers_are_imported_segmented_and_mailed_through_kills(
    ray_cluster: str, sink: Sink, tmp_path: Path
) -> None:
    file = tmp_path / "people.csv"
    rows = customers(file)
    wanted = rows.filter(pc.and_(rows["womens"], pc.less_equal(rows["recency"], 6)))
    expected = set(wanted["email"].to_pylist())
    loop = asyncio.get_running_loop()
    http = with_free_port(Settings(http=HttpSettings(port=18_400))).http
    async with world.running("hillstrom", sink.port, http=http) as (handles, settings):
        tracking = [spec for spec in apps(settings) if spec.name == "tracking"]
        await asyncio.to_thread(deploy, settings, tracking)
        try:
            summary = await asyncio.to_thread(import_file, file, handles, loop)
            assert (summary.rows, summary.created, summary.rejected) == (CUSTOMERS, CUSTOMERS, 0)
            again = await asyncio.to_thread(import_file, file, handles, loop)
            assert again.created == again.updated == 0, "the same file again changes nothing"
            campaign = await world.launch(handles, RULE, TEMPLATE)
            readers = Readers(handles, settings, campaign)
            sample = {"limit": 500, "columns": ["subscriber_id"]}
            for page in await handles.shards.query_all("audience_page", sample):
                readers.people += page.column("subscriber_id").to_pylist()
            reading = [asyncio.create_task(readers.read(seed)) for seed in range(4)]
            await kill_each_in_turn(handles, settings, campaign, len(expected))
            await world.finished(handles, campaign, 240)
            readers.stopped = True
            await asyncio.gather(*reading)
            total = await world.accounting(handles, campaign)
            recorded = await readers.recorded()
        finally:
            await asyncio.to_thread(undeploy)
    copies = sink.copies()
    assert world.adds_up(total), total
    assert total["planned_total"] == len(expected) and total["pending"] == 0
    assert set(copies) <= expected and max(copies.values()) == 1, "somebody got two mails"
    # What was accepted arrived; what arrived is accepted, or uncertain for want of its reply.
    assert total["accepted"] <= len(copies) <= total["accepted"] + total["uncertain"]
    assert total["accepted"] + total["uncertain"] == len(expected)
    assert recorded >= readers.answered > 0, "an open was answered and is not on record"
