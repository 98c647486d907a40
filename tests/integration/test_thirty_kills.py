"""Thirty times kill -9 at random moments of a campaign of 50,000 whose receiver defers.

Nobody is lost, nobody gets two mails, and what is uncertain in the end is what a killed Sender had
stored as attempted without an outcome, message by message: its journal is read right after each
kill, before the next incarnation has done anything to it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from actors import building
from actors.handles import Handles
from actors.runtime import Caller
from manta.delivery.attempts import decode_entry
from manta.errors import MantaError
from manta.settings import EgressSource, Settings
from manta.store.journal import Kind
from tests.integration import greylister, world

PEOPLE, KILLS, SHARE_DEFERRED = 50_000, 30, 0.15
SEED = int(os.environ.get("MANTA_KILL_SEED", "0")) or int(time.time())
# Senders most often: theirs are the kills that leave something open.
VICTIMS = (
    *("sender-00", "sender-01") * 3,
    *("shard-000", "shard-001") * 2,
    "throttle",
    "director",
    "catalog",
    "reputation",
    "resolver",
)
pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800)]
Ref = tuple[int, int]


def open_attempts(settings: Settings, sender: str) -> set[Ref]:
    """Attempts without an outcome in a Sender's journal as it lies there."""
    journal = building._attempt_entries(settings, sender)
    attempted: set[Ref] = set()
    known: set[Ref] = set()
    for sequence in journal.sequences():
        entry = journal.read(sequence)
        if entry is None or entry.kind is not Kind.DATA:
            continue
        stored = decode_entry(entry.body, str(sequence))
        attempted |= {(a.subscriber_id, a.message_key) for a in stored.attempts}
        known |= {(o.subscriber_id, o.message_key) for _, o in stored.outcomes}
    return attempted - known


async def kill_at_random(
    handles: Handles, settings: Settings, campaign: int, random: Random
) -> tuple[Counter[str], set[Ref]]:
    """Kill until ``KILLS`` are done; who was killed, and what the Senders had open then."""
    killed: Counter[str] = Counter()
    left_open: set[Ref] = set()
    caller = Caller(settings.workspace)
    while killed.total() < KILLS:
        await asyncio.sleep(random.uniform(0.5, 6.0))
        role = random.choice(VICTIMS)
        try:
            os.kill(await asyncio.wait_for(caller.pid(role), 5), 9)
        except (MantaError, TimeoutError, ProcessLookupError):
            continue  # on its way back from an earlier one
        if role.startswith("sender"):
            left_open |= await asyncio.to_thread(open_attempts, settings, role)
        killed[role] += 1
        state = (await handles.director.call("campaign", campaign, deadline_s=120))["state"]
        assert state != "finished", f"over after {killed.total()} kills: nothing left to disturb"
    return killed, left_open


async def uncertain_refs(handles: Handles, campaign: int) -> set[Ref]:
    """Every uncertain message, as the list of recipients shows them."""
    found: set[Ref] = set()
    for shard in range(handles.shards.count):
        after: Ref | None = None
        while True:
            page = await handles.shards.query(
                shard,
                "recipients",
                {"campaign_id": campaign, "state": "uncertain", "limit": 1_000, "after": after},
            )
            found |= {(row["subscriber_id"], row["message_key"]) for row in page}
            if len(page) < 1_000:
                break
            after = (page[-1]["subscriber_id"], page[-1]["message_key"])
    return found


async def test_thirty_kills(ray_cluster: str, tmp_path: Path) -> None:
    random = Random(SEED)
    print(f"repeat the choices with MANTA_KILL_SEED={SEED}")
    file = tmp_path / "taken"
    with greylister.receiving(file, SHARE_DEFERRED) as port:
        source = EgressSource(
            host="127.0.0.1", port=port, tls="none", rate_per_s=500.0, burst=100, connections_max=4
        )
        changes = {"egress": (source,), "senders": 2, "retry_first_wait_s": 5.0}
        async with world.running("kills", port, **changes) as (handles, settings):
            emails = [f"p{n}@d{n % 40}.example" for n in range(PEOPLE)]
            names = pa.array(["Ada"] * PEOPLE)
            people = pa.table({"email": emails, "attr_first_name": names})
            await world.import_people(handles, people)
            campaign = await world.launch(handles, {"all": []})
            killed, left_open = await kill_at_random(handles, settings, campaign, random)
            await world.finished(handles, campaign, 900)
            total = await world.accounting(handles, campaign)
            uncertain = await uncertain_refs(handles, campaign)
    copies = Counter(address for address, _ in greylister.taken(file))
    print(f"killed: {dict(killed)}")
    print(f"accounting: {dict(total)}; open at the kills: {len(left_open)}")
    assert killed.total() == KILLS
    assert world.adds_up(total) and total["planned_total"] == PEOPLE and total["pending"] == 0
    assert max(copies.values()) == 1, "somebody got two mails"
    assert total["accepted"] + total["uncertain"] == PEOPLE, "somebody was lost"
    assert total["accepted"] <= len(copies) <= total["accepted"] + total["uncertain"]
    assert len(uncertain) == total["uncertain"], "not every uncertain message is listed"
    assert uncertain <= left_open, "uncertain without an attempt that was open at a kill"
