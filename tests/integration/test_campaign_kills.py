"""A campaign over real processes: stopped or robbed of its journal, it stays accounted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from actors import building
from actors.runtime import Caller, start_actor, stop_actor
from manta.command import Change, Context, Database, Decision, Op
from manta.errors import NotReady, OutcomeUnknown
from tests.integration import world
from tests.integration.world import Sink

EVERYBODY = {"all": []}
pytestmark = [pytest.mark.smtp_sink, pytest.mark.timeout(400)]


@pytest.fixture
def sink(smtp_sink_path: str) -> Iterator[Sink]:
    sink = Sink(smtp_sink_path)
    sink.start()
    yield sink
    sink.stop()


def people(count: int) -> pa.Table:
    return pa.table(
        {
            "email": [f"person{n}@mail.example" for n in range(count)],
            "attr_first_name": [f"Person {n}" for n in range(count)],
        }
    )


async def test_without_its_journal_a_dead_senders_messages_are_uncertain(
    ray_cluster: str, sink: Sink
) -> None:
    count = 3_000
    async with world.running("robbed", sink.port) as (handles, settings):
        await world.import_people(handles, people(count))
        campaign = await world.launch(handles, EVERYBODY)

        async def begun() -> bool:
            return (await world.accounting(handles, campaign))["accepted"] >= 300

        await world.until(begun, 60, "the campaign begins")
        pid = await world.kill(settings, "sender-00", signal.SIGSTOP)
        await asyncio.sleep(1)  # for a lease that was being granted
        held = await world.accounting(handles, campaign)
        shutil.rmtree(Path(settings.root) / "robbed" / "journal" / "sender=00")
        os.kill(pid, signal.SIGKILL)
        await world.finished(handles, campaign, 120)
        total = await world.accounting(handles, campaign)
    copies = sink.copies()
    assert world.adds_up(total) and total["planned_total"] == count
    assert max(copies.values()) == 1
    assert held["leased"] > 0
    assert total["uncertain"] == held["leased"], "all of that lease, and nothing else, is uncertain"
    assert total["accepted"] == count - total["uncertain"]


@pytest.mark.long
async def test_a_stopped_sender_wakes_and_repeats_nothing(ray_cluster: str, sink: Sink) -> None:
    count = 3_000
    async with world.running("asleep", sink.port, lease_deadline_s=10.0, senders=2) as (
        handles,
        settings,
    ):
        await world.import_people(handles, people(count))
        campaign = await world.launch(handles, EVERYBODY)

        async def begun() -> bool:
            return (await world.accounting(handles, campaign))["accepted"] >= 300

        await world.until(begun, 60, "the campaign begins")
        pid = await world.kill(settings, "sender-00", signal.SIGSTOP)
        await asyncio.sleep(60)
        asleep = await world.accounting(handles, campaign)
        os.kill(pid, signal.SIGCONT)
        await world.finished(handles, campaign, 90)

        async def is_back() -> bool:
            present = await Caller("asleep").pid("sender-00")
            status = await handles.senders[0].call("status")
            return present != pid and status["ready"]

        await world.until(is_back, 60, "the fenced Sender stops and a new one takes its place")
        total = await world.accounting(handles, campaign)
    assert asleep["leased"] + asleep["orphaned"] == 0, "the other Sender's Director resolved it"
    assert world.adds_up(total) and total["planned_total"] == count
    assert max(sink.copies().values()) == 1
    assert total["accepted"] + total["uncertain"] == count


async def test_of_two_incarnations_of_a_shard_the_old_one_stops(ray_cluster: str) -> None:
    async with world.running("twins", 25) as (handles, settings):
        await world.import_people(handles, people(10))
        old = await Caller("twins").pid("shard-000")
        start_actor("twins/intruder", partial(building.build_shard, settings, 0))
        try:

            async def both_recovered() -> bool:
                return (await Caller("twins").call("intruder", "status"))["ready"]

            await world.until(both_recovered, 60, "a second incarnation runs beside the first")
            assert await Caller("twins").pid("shard-000") == old, "the old one knows nothing yet"
            await Caller("twins").call("intruder", "execute", [Mark()])
            (refused,) = await Caller("twins").call("shard-000", "execute", [Mark()])
            assert isinstance(refused, OutcomeUnknown | NotReady), refused
        except OutcomeUnknown:
            pass  # it ended before it could say so
        finally:
            stop_actor("twins/intruder")

        async def old_is_gone() -> bool:
            return await Caller("twins").pid("shard-000") != old

        await world.until(old_is_gone, 60, "the old incarnation ends, and a new one takes over")
        assert await handles.shards.execute(0, Mark()) == 1


@dataclass(frozen=True)
class Mark:
    """Writes a row, so that the journal is appended to. Answers how many rows it wrote."""

    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        row = {"channel": ["email"], "address": [f"{context.random.random()}@x.example"]}
        return Decision(1, (Change("suppressions", Op.UPSERT, pa.table(row)),))
