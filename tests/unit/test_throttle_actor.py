"""The Throttle's actor class over a real journal: it grants while it holds it, and only then."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from random import Random

import pytest

from actors.throttle import Throttle
from manta.clock import ManualClock
from manta.delivery.lanes import Limits
from manta.delivery.reputation.actions import Action, ActionKind, Scope
from manta.delivery.reputation.law import Law
from manta.delivery.throttle.authority import AUTHORITY_S, TAKEOVER_WAIT_S
from manta.delivery.throttle.gates import PACE
from manta.delivery.throttle.ways import Ways
from manta.errors import InvalidRequest, NotReady, StoreUnavailable
from manta.store.documents import Documents
from tests.faults import MemoryObjects

LANE = ("relay", "relay", "others", "others")
COLD = ("both", "new", "google", "google")
WARM = ("both", "relay", "google", "google")
ALONE = ("new", "new", "google", "google")
SOURCES = {"relay": Limits(100.0 / PACE, 50, 10), "new": Limits(1000.0, 1000, 10)}
WAYS = Ways(
    pools={"both": {"new": 1, "relay": 1}, "new": {"new": 1}, "relay": {"relay": 1}},
    cold_since={"new": date(2026, 1, 1)},
)


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
        return Throttle(documents, self._end, self.clock, SOURCES, WAYS)

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
    house.clock.advance(0.1001)
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


# -- the law ---------------------------------------------------------------------------------------


def suspension(house: House, version: int, minutes: float = 60) -> Law:
    now = house.clock.now()
    until = now + timedelta(minutes=minutes)
    action = Action(1, ActionKind.SUSPEND, Scope(source="relay"), "rule", now, until)
    return Law(version, "", (action,))


async def test_a_law_holds_at_once_and_after_a_restart_and_ends_by_itself():
    house = House()
    first = await house.started()
    assert (await first.grant("s", LANE, 1)).permits == 1
    await first.law(suspension(house, 3).to_document())
    assert (await first.grant("s", LANE, 1)).permits == 0
    await first._beat
    entries = house.entries()
    await first.law(suspension(house, 3).to_document())  # Reputation says it again each minute
    await first.law(Law(2).to_document())  # an old one that was late
    assert house.entries() == entries

    second = await house.started()
    house.clock.advance(TAKEOVER_WAIT_S + 60)
    assert (await second.grant("s", LANE, 1)).permits == 0
    assert (await second.status())["law"]["actions"] == 1
    house.clock.advance(3600)
    assert (await second.grant("s", LANE, 1)).permits == 0  # the gate starts empty
    house.clock.advance(1)
    assert (await second.grant("s", LANE, 1)).permits == 1
    assert (await second.status())["law"]["actions"] == 0
    with pytest.raises(InvalidRequest, match="not a law"):
        await second.law({"version": 1})


async def test_a_law_that_could_not_be_stored_holds_and_is_stored_with_the_next_heartbeat():
    house = House()
    throttle = await house.started()
    put, house.objects.put_if_absent = house.objects.put_if_absent, fail
    await throttle.law(suspension(house, 1).to_document())
    await throttle._beat
    house.objects.put_if_absent = put
    assert (await throttle.grant("s", LANE, 1)).permits == 0
    await throttle._beat
    second = await house.started()
    assert (await second.status())["law"]["version"] == 1


def fail(path: str, data: bytes) -> None:
    raise StoreUnavailable("disk full")


# -- warm-up ---------------------------------------------------------------------------------------


async def test_a_cold_source_gives_its_quota_and_no_more_whatever_dies():
    """Incarnations follow each other, some while the former still grants: in no hour and on no day
    does the source exceed the quota, and with time it is used."""
    house, random = House(), Random(7)
    throttle = await house.started()
    by_hour: dict[str, int] = {}
    olds: list[Throttle] = []
    for _ in range(24 * 40):
        house.clock.advance(random.choice([20, 120, 200]))
        if random.random() < 0.02:
            olds.append(throttle)
            throttle = await house.started()
            continue
        for one in (throttle, *olds[-1:]):
            hour = f"{house.clock.now():%d %H}"
            permits = (await one.grant("s", ALONE, random.choice([1, 5, 200]))).permits
            by_hour[hour] = by_hour.get(hour, 0) + permits
    by_day: dict[str, int] = {}
    for hour, sent in by_hour.items():
        assert sent <= (7 if hour.startswith("01") else 13)
        by_day[hour[:2]] = by_day.get(hour[:2], 0) + sent
    assert len(by_day) > 1
    assert 40 <= by_day["01"] <= 50 and by_day["02"] <= 100


async def test_an_overtaken_incarnation_and_its_successor_share_one_quota():
    house = House()
    old = await house.started()
    first = await old.grant("s", ALONE, 4)
    assert first.permits == 4 and not first.warming
    new = await house.started()
    late = (await old.grant("s", ALONE, 100)).permits  # of what it had set aside
    house.clock.advance(TAKEOVER_WAIT_S + 1)
    rest = await new.grant("s", ALONE, 100)
    assert first.permits + late + rest.permits <= 7
    assert rest.permits == 0 and 3000 < rest.wait_s <= 3600  # until the next hour


async def test_what_a_cold_source_cannot_take_goes_to_the_warm_member():
    house = House()
    throttle = await house.started()
    cold = await throttle.grant("s", COLD, 200)
    assert cold.warming and cold.permits == 7
    assert not (await throttle.grant("s", COLD, 200)).permits
    sent = 0
    for _ in range(100):
        house.clock.advance(0.1)
        await throttle.grant("s", COLD, 200)
        warm = await throttle.grant("s", WARM, 200)
        assert not warm.warming
        sent += warm.permits
    assert sent >= 0.95 * (50 + 100 * 10)
    (quota,) = (await throttle.status())["warmup"]
    assert quota["day"] == 1 and quota["used_hour"] == 7 and quota["quota_day"] == 50
    assert quota["days"] == 35 and quota["finished_about"] == "2026-02-05"


async def test_permits_of_a_quota_that_come_back_may_be_used_again():
    house = House()
    throttle = await house.started()
    assert (await throttle.grant("s", ALONE, 200)).permits == 7
    assert (await throttle.grant("s", ALONE, 200, 5)).permits == 5
    assert (await throttle.grant("s", ALONE, 200)).permits == 0


async def test_without_a_store_no_quota_is_given():
    house = House()
    throttle = await house.started()
    assert (await throttle.grant("s", LANE, 1)).permits == 1
    put, house.objects.put_if_absent = house.objects.put_if_absent, fail
    assert (await throttle.grant("s", ALONE, 200)).permits == 0
    house.objects.put_if_absent = put
    assert (await throttle.grant("s", ALONE, 200)).permits == 7
