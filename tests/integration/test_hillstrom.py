"""Real customers: imported from a file, chosen by what they bought, mailed, all accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from examples.hillstrom import import_table, write_import_file
from manta.command import Command
from manta.people.importing import ImportSummary, import_people
from manta.people.upsert import Consent
from manta.schema import AttributeType
from manta.store.importing import checksum_of, plan_import, read_people
from tests.integration import world
from tests.integration.world import Sink

pytestmark = [pytest.mark.smtp_sink, pytest.mark.timeout(400)]
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


def import_file(path: Path, handles: Any, loop: asyncio.AbstractEventLoop) -> ImportSummary:
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


async def test_hillstroms_customers_are_imported_segmented_and_mailed(
    ray_cluster: str, shared_data: Path, sink: Sink, tmp_path: Path
) -> None:
    source = shared_data / "hillstrom" / "hillstrom_even_rows.csv.gz"
    file = tmp_path / "people.csv"
    assert write_import_file(source, file) == 32_000
    rows = import_table(source)
    wanted = rows.filter(pc.and_(rows["womens"], pc.less_equal(rows["recency"], 6)))
    expected = set(wanted["email"].to_pylist())
    loop = asyncio.get_running_loop()
    async with world.running("hillstrom", sink.port) as (handles, _):
        summary = await asyncio.to_thread(import_file, file, handles, loop)
        assert (summary.rows, summary.created, summary.rejected) == (32_000, 32_000, 0)
        again = await asyncio.to_thread(import_file, file, handles, loop)
        assert again.created == again.updated == 0, "the same file again changes nothing"
        campaign = await world.launch(handles, RULE, TEMPLATE)
        await world.finished(handles, campaign, 240)
        total = await world.accounting(handles, campaign)
    copies = sink.copies()
    assert world.adds_up(total)
    assert total["planned_total"] == total["accepted"] == len(expected)
    assert set(copies) == expected and max(copies.values()) == 1
