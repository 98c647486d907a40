"""What journaled singletons have in common: one decision at a time, none lost, none twice."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from actors import journaled
from actors.journaled import JournaledActor
from manta.clock import ManualClock
from manta.definitions import Defined
from manta.errors import InvalidRequest, NotReady, StoreUnavailable
from manta.store.documents import Documents
from tests.faults import FaultyObjects, MemoryObjects


class Ended(BaseException):
    """The process would have ended."""


class Counter(JournaledActor):
    role = "counter"

    async def count(self, key: str | None = None, by: int = 1) -> Any:
        def decide() -> Defined:
            last = (self._documents.get("numbers", "n") or {"last": 0})["last"]
            if by < 0:
                raise InvalidRequest("it only grows", path="by")
            changes = (("numbers", "n", {"last": last + by}),) if by else ()
            return Defined({"last": last + by}, changes)

        return await self.decide(decide, key)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.objects = FaultyObjects(MemoryObjects(self.clock), Random(1))
        self.nonces = 0
        self.actors: list[Counter] = []

    def actor(self, **settings: Any) -> Counter:
        self.nonces += 1
        nonce = self.nonces.to_bytes(16, "big")
        documents = Documents(
            self.objects, "w/journal/counter", "counter", nonce, self.clock,
            sleep=lambda s: self.clock.advance(s), **settings,
        )  # fmt: skip
        self.actors.append(Counter(documents, self._end))
        return self.actors[-1]

    async def started(self, **settings: Any) -> Counter:
        actor = self.actor(**settings)
        await actor.start()
        return actor

    def stored(self) -> bytes:
        return b"".join(
            self.objects.get(path) or b"" for path in self.objects.list("w/journal/counter/")
        )

    @staticmethod
    def _end(reason: str) -> None:
        raise Ended(reason)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(journaled, "RECOVERY_RETRY_S", 0.0)
    built = World()
    yield built
    for actor in built.actors:
        actor._thread.shutdown(wait=True)


async def test_nothing_is_answered_before_the_recovery(world: World) -> None:
    actor = world.actor()
    for question in (actor.get("numbers", "n"), actor.list("numbers"), actor.count("k")):
        with pytest.raises(NotReady):
            await question


async def test_recovery_waits_for_the_store(world: World) -> None:
    await (await world.started()).count()
    world.objects.down = True
    actor = world.actor()
    starting = asyncio.ensure_future(actor.start())
    await asyncio.sleep(0.01)
    assert not starting.done()
    world.objects.down = False
    await starting
    assert await actor.get("numbers", "n") == {"last": 1}


async def test_decisions_see_each_other(world: World) -> None:
    actor = await world.started()
    answers = await asyncio.gather(*(actor.count() for _ in range(20)))
    assert sorted(answer["last"] for answer in answers) == list(range(1, 21))


async def test_a_key_gives_its_first_answer_after_a_restart_and_for_two_days(world: World) -> None:
    actor = await world.started()
    first = await actor.count("k", 5)
    assert await actor.count("k", 7) == first
    again = await world.started()
    assert await again.count("k") == first
    assert again.remembered("k").answer == first  # type: ignore[union-attr]
    world.clock.advance(48 * 3600 + 1)
    assert (await again.count("k"))["last"] == 6


async def test_a_wrong_request_changes_nothing_and_is_not_remembered(world: World) -> None:
    actor = await world.started()
    with pytest.raises(InvalidRequest):
        await actor.count("k", -1)
    assert (await actor.count("k"))["last"] == 1


async def test_no_change_is_no_entry(world: World) -> None:
    actor = await world.started()
    before = len(world.objects.list("w/journal/counter/"))
    assert await actor.count(by=0) == {"last": 0}
    assert len(world.objects.list("w/journal/counter/")) == before


async def test_an_answer_without_a_key_is_not_stored(world: World) -> None:
    actor = await world.started()
    secret = {"secret": "x" * 40}
    await actor.decide(lambda: Defined(secret, (("a", "b", {"hash": "y"}),)))
    assert b"x" * 40 not in world.stored()
    await actor.decide(lambda: Defined(secret, (("a", "b", {"hash": "y"}),)), "key")
    assert b"x" * 40 in world.stored(), "which is why secrets take no key"


async def test_a_caller_who_leaves_does_not_undo_or_overtake(world: World) -> None:
    actor = await world.started()
    leaving = asyncio.ensure_future(actor.count())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await actor.count())["last"] == 2


async def test_a_refused_append_changes_nothing(world: World) -> None:
    actor = await world.started()
    world.objects.full = True
    with pytest.raises(StoreUnavailable):
        await actor.count("k")
    world.objects.full = False
    assert (await actor.count("k"))["last"] == 1


async def test_a_fenced_or_undecided_actor_ends(world: World) -> None:
    actor = await world.started()
    await world.started()
    with pytest.raises(Ended, match=r"counter: "):
        await actor.count()
    last = await world.started()
    world.objects.down = True
    with pytest.raises(Ended):
        await last.count()


async def test_the_journal_stays_short(world: World) -> None:
    actor = await world.started(snapshot_entries=10)
    for n in range(35):
        await actor.count(f"k{n}")
    assert len(world.objects.list("w/journal/counter/")) <= 12
    world.clock.advance(48 * 3600 + 1)
    for _ in range(10):
        await actor.count()
    again = await world.started()
    assert (await again.count())["last"] == 46
    assert not again._documents._keys, "old answers leave with the snapshot"
