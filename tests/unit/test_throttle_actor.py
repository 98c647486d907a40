"""The Throttle's actor class over a real journal: it grants while it holds it, and only then."""

from __future__ import annotations

import asyncio

import pytest

from actors.throttle import Throttle
from manta.clock import ManualClock
from manta.delivery.lanes import Limits
from manta.delivery.throttle import AUTHORITY_S, TAKEOVER_WAIT_S
from manta.errors import NotReady, StoreUnavailable
from manta.store.documents import Documents
from tests.faults import MemoryObjects

LANE = ("relay", "relay", "*", "*")
SOURCES = {"relay": Limits(100.0, 50, 10)}


class Ended(Exception):
    """The process would have ended here."""


class House:
    """One store, one clock, and as many incarnations as a test wants."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.objects = MemoryObjects(self.clock)
        self.ended: list[str] = []
        self._nonces = 0

    def new(self) -> Throttle:
        self._nonces += 1
        documents = Documents(
            self.objects,
            "default/journal/throttle",
            "throttle",
            self._nonces.to_bytes(16, "big"),
            self.clock,
        )
        return Throttle(documents, self._end, self.clock, SOURCES)

    async def started(self) -> Throttle:
        throttle = self.new()
        await throttle.start()
        return throttle

    def _end(self, reason: str) -> None:
        self.ended.append(reason)

    def entries(self) -> int:
        return len(self.objects.list("default/journal/throttle/"))


async def test_the_first_incarnation_grants_at_once_and_the_next_waits():
    house = House()
    with pytest.raises(NotReady):
        await house.new().grant("sender-00", LANE, 10)
    first = await house.started()
    assert (await first.grant("sender-00", LANE, 100)).permits == 50
    assert (await first.hold("sender-00", LANE, 100)).held == 10

    second = await house.started()
    refused = await second.grant("sender-00", LANE, 10)
    assert refused.permits == 0 and refused.wait_s == TAKEOVER_WAIT_S
    with pytest.raises(NotReady):
        await second.hold("sender-00", LANE, 1)
    house.clock.advance(TAKEOVER_WAIT_S)
    assert (await second.grant("sender-00", LANE, 10)).permits == 0  # empty
    house.clock.advance(0.1)
    assert (await second.grant("sender-00", LANE, 100)).permits == 10
    status = await second.status()
    assert status["epoch"] == 2 and status["may_grant"]


async def test_an_overtaken_incarnation_lives_on_its_last_heartbeat_and_ends_at_the_next():
    house = House()
    old = await house.started()
    await old.grant("sender-00", LANE, 1)
    await house.started()
    house.clock.advance(1.0)
    assert (await old.grant("sender-00", LANE, 1)).permits == 1  # the wait allows for this
    house.clock.advance(AUTHORITY_S)
    assert (await old.grant("sender-00", LANE, 1)).permits == 0
    assert len(house.ended) == 1 and "must stop" in house.ended[0]


async def test_heartbeats_follow_demand_and_are_shared():
    house = House()
    throttle = await house.started()
    quiet = house.entries()
    house.clock.advance(3600)
    grants = await asyncio.gather(*(throttle.grant("s", LANE, 1) for _ in range(20)))
    assert sum(grant.permits for grant in grants) == 20
    assert house.entries() == quiet + 1
    house.clock.advance(1.9)
    await throttle.grant("s", LANE, 1)
    assert house.entries() == quiet + 1
    house.clock.advance(0.2)
    await throttle.grant("s", LANE, 1)
    await throttle.grant("s", LANE, 1)
    await throttle._beat
    assert house.entries() == quiet + 2


async def test_without_a_store_nothing_is_granted():
    house = House()
    throttle = await house.started()
    put = house.objects.put_if_absent

    def fail(path: str, data: bytes) -> None:
        raise StoreUnavailable("disk full")

    house.objects.put_if_absent = fail
    assert (await throttle.grant("s", LANE, 1)).permits == 0
    house.objects.put_if_absent = put
    assert (await throttle.grant("s", LANE, 1)).permits == 1
    assert house.ended == []
    await throttle.forget("s")
