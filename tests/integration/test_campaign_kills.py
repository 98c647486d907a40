"""A campaign over real processes: killed, stopped and robbed of its journal, it stays accounted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from actors.runtime import Caller
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


async def test_kill_9_of_each_in_turn_loses_nobody_and_mails_nobody_twice(
    ray_cluster: str, sink: Sink
) -> None:
    count = 8_000
    async with world.running("kills", sink.port) as (handles, settings):
        await world.import_people(handles, people(count))
        campaign = await world.launch(handles, EVERYBODY)
        roles = ("shard-000", "sender-00", "throttle", "director", "shard-001")
        for place, role in enumerate(roles):
            goal = count * (place + 1) // (len(roles) + 3)

            async def reached(goal: int = goal) -> bool:
                return (await world.accounting(handles, campaign))["accepted"] >= goal

            await world.until(reached, 90, f"{goal} accepted before {role} is killed")
            await world.kill(settings, role)
        await world.finished(handles, campaign, 180)
        total = await world.accounting(handles, campaign)
    copies = sink.copies()
    assert world.adds_up(total) and total["planned_total"] == count, total
    assert total["pending"] == 0
    assert max(copies.values()) == 1, "somebody got two mails"
    # What was accepted arrived; what arrived is accepted, or uncertain for want of its reply.
    assert total["accepted"] <= len(copies) <= total["accepted"] + total["uncertain"]
    assert total["accepted"] + total["uncertain"] == count


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
