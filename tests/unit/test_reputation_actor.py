"""The Reputation's actor class over a real journal: first journaled, then told, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest

import actors.reputation as module
from actors.handles import Handles, Shards
from actors.reputation import ReputationActor
from manta.clock import ManualClock
from manta.delivery.reputation import norms
from manta.delivery.reputation.actions import ActionKind, Scope
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.shaping import shaping
from manta.errors import Conflict, InvalidRequest, NotReady, StoreUnavailable
from manta.ids import even_ranges
from manta.settings import EgressSource
from manta.store.documents import Documents
from tests.faults import MemoryObjects
from tests.unit.serve_fakes import FakeActors

DOMAIN = "news.example"
SOURCES = (EgressSource("a", kind="direct"), EgressSource("b"))


class House:
    """One store, one clock, two shards, and as many incarnations as a test wants."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.objects = MemoryObjects(self.clock)
        self.calls = FakeActors()
        self.ended: list[str] = []
        self.actors: list[ReputationActor] = []
        self.calls.answers["shard-000", "query"] = []
        self.calls.answers["shard-001", "query"] = []

    async def start(self) -> ReputationActor:
        """The next incarnation; the one before it is dead and decides nothing any more."""
        await self.close()
        documents = Documents(
            self.objects,
            "default/journal/reputation",
            "reputation",
            len(self.actors).to_bytes(16, "big"),
            self.clock,
        )
        actor = ReputationActor(
            documents,
            self.ended.append,
            self.clock,
            self.calls,
            self._find,
            SOURCES,
            shaping.builtin(),
            norms.builtin(),
        )
        self.actors.append(actor)
        await actor.start()
        await self.settled()
        return actor

    async def _find(self) -> Handles:
        shards = Shards(self.calls, even_ranges(2), self.clock, Random(1))
        return Handles("default", self.calls, shards, self.clock, Random(1), 1)

    @staticmethod
    async def settled() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def seen(self, seen: Seen, messages: int = 1, **changes: Any) -> Observed:
        observed = Observed(self.clock.now(), seen, DOMAIN, "a", "google", "google", 7)
        return observed._replace(messages=messages, **changes)

    def bad_window(self) -> list[Observed]:
        return [
            self.seen(Seen.ACCEPTED, 400),
            self.seen(Seen.FAILED, 80, bounce_class=BounceClass.HARD),
        ]

    def laws(self, role: str = "throttle") -> list[Law]:
        return [
            Law.from_document(arguments[0])
            for to, method, arguments in self.calls.pushes
            if (to, method) == (role, "law")
        ]

    def told(self, method: str) -> list[tuple[Any, ...]]:
        return [a for role, m, a in self.calls.calls if (role, m) == ("director", method)]

    async def close(self) -> None:
        for actor in self.actors:
            for task in list(actor._tasks):
                task.cancel()
            await asyncio.gather(*actor._tasks, return_exceptions=True)


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "DECIDE_S", 0.001)
    monkeypatch.setattr(module, "TICK_S", 0.002)
    house = House()
    yield house
    await house.close()
    assert not house.ended


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_is_seen_becomes_law_for_everybody(house: House) -> None:
    actor = await house.start()
    await actor.observe(house.bad_window())
    await until(lambda: house.laws())
    for role in ("throttle", "director", "resolver"):
        (law,) = house.laws(role)
        (action,) = law.actions
        assert action.kind is ActionKind.LIMIT
        assert action.scope == Scope(source="a", provider="google")
    assert Law.from_document(await actor.law()) == law
    (shown,) = await actor.actions()
    assert shown["id"] == action.id and shown["is_active"] and "hard bounces" in shown["cause"]
    status = await actor.status()
    assert status["active"] == 1 and status["courses"][0]["phase"] == "slowed"
    (lane,) = [w for w in status["windows"] if not w["sending_domain"]]
    assert lane["counts"]["hour"] == {"accepted": 400, "failed_hard": 80}
    assert lane["rates"]["hard_bounces"]["level"] == "act"


async def test_a_restart_keeps_actions_until_their_end(house: House) -> None:
    first = await house.start()
    await first.observe(house.bad_window())
    await first.decide_now()
    before = await first.law()
    house.clock.advance(100)
    second = await house.start()
    assert await second.law() == before
    house.clock.advance(7_200)
    await second.decide_now()
    assert (await second.law())["actions"] == []
    assert len(await second.actions(active_only=False)) == 1


async def test_the_law_is_told_at_the_start_and_again_since_a_push_may_be_lost(
    house: House,
) -> None:
    actor = await house.start()
    await until(lambda: len(house.laws()) == 1)
    action = await actor.act("suspend", {"source": "a"}, "maintenance", 86_400, {}, "ann")
    await actor.undo(action["id"], "ann")
    told = len(house.laws())
    house.clock.advance(61)
    await until(lambda: len(house.laws()) == told + 1)
    assert house.laws()[-1].actions == () and house.laws()[-1].version > house.laws()[0].version
    await house.start()  # who undid it may have died before anybody heard
    await until(lambda: len(house.laws()) == told + 2)
    assert house.laws()[-1] == house.laws()[-2]


async def test_a_lost_journal_takes_no_version_and_no_id_back(house: House) -> None:
    first = await house.start()
    for _ in range(3):
        action = await first.act("suspend", {"source": "a"}, "maintenance", 600, {}, "ann")
    before = (await first.law())["version"]
    house.clock.advance(60)
    house.objects = MemoryObjects(house.clock)
    second = await house.start()
    assert (await second.law())["version"] > before
    again = await second.act("suspend", {"source": "a"}, "maintenance", 600, {}, "ann")
    assert again["id"] > action["id"]


async def test_what_is_too_much_at_once_is_counted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MAX", 2)
    actor = await house.start()
    await actor.observe([house.seen(Seen.ACCEPTED, 10)] * 4)
    assert (await actor.status())["unseen"] == 20


async def test_an_undo_is_journaled_told_and_answered_once(house: House) -> None:
    actor = await house.start()
    action = await actor.act("suspend", {"source": "a"}, "maintenance", 600, {}, "ann", "k1")
    assert (
        await actor.act("suspend", {"source": "a"}, "maintenance", 600, {}, "ann", "k1") == action
    )
    undone = await actor.undo(action["id"], "bob", "k2")
    assert undone["undone_by"] == "bob" and not undone["is_active"]
    assert await actor.undo(action["id"], "bob", "k2") == undone
    with pytest.raises(Conflict):
        await actor.undo(action["id"], "bob", "k3")
    assert house.laws()[-1].actions == ()
    assert await (await house.start()).actions() == []


async def test_the_director_is_asked_to_pause_until_it_answers(house: House) -> None:
    actor = await house.start()
    house.calls.answers["director", "pause_for"] = NotReady("on its way")
    action = await actor.act("pause", {"campaign_id": 7}, "the wrong list", 600, {}, "ann")
    await until(lambda: len(house.told("pause_for")) >= 3)
    house.calls.answers["director", "pause_for"] = None
    await until(lambda: not actor._untold)
    asked = len(house.told("pause_for"))
    campaign_id, document = house.told("pause_for")[-1]
    assert campaign_id == 7 and document["cause"] == "the wrong list"
    await asyncio.sleep(0.01)
    assert len(house.told("pause_for")) == asked
    await actor.undo(action["id"], "ann")
    await until(lambda: house.told("resume_for"))
    assert house.told("resume_for") == [(7, action["id"])]


async def test_a_campaign_goes_on_when_its_last_pause_is_over(house: House) -> None:
    actor = await house.start()
    first = await actor.act("pause", {"campaign_id": 7}, "complaints", 600, {}, "ann")
    second = await actor.act("pause", {"campaign_id": 7}, "more of them", 900, {}, "ann")
    other = await actor.act("pause", {"campaign_id": 8}, "complaints", 700, {}, "ann")
    await until(lambda: len(house.told("pause_for")) == 3)
    house.clock.advance(750)
    await until(lambda: house.told("resume_for"))
    await house.settled()
    assert house.told("resume_for") == [(8, other["id"])]
    house.calls.answers["director", "resume_for"] = NotReady("on its way")
    house.clock.advance(200)
    await until(lambda: len(house.told("resume_for")) >= 3)
    house.calls.answers["director", "resume_for"] = None
    await until(lambda: actor._resumed == {first["id"], second["id"], other["id"]})
    before = len(house.told("resume_for"))
    again = await house.start()  # a new process says it once more: nobody knows who was told
    await until(lambda: len(again._resumed) == 3)
    assert len(house.told("resume_for")) == before + 3


async def test_nothing_is_told_that_is_not_journaled(house: House) -> None:
    actor = await house.start()
    await actor.observe([])

    def refuses(_: bytes) -> int:
        raise StoreUnavailable("full")

    append = actor._documents.journal.append
    actor._documents.journal.append = refuses  # type: ignore[method-assign]
    await actor.observe(house.bad_window())
    with pytest.raises(StoreUnavailable):
        await actor.decide_now()
    assert not house.laws() and not await actor.actions()
    actor._documents.journal.append = append  # type: ignore[method-assign]
    await until(lambda: house.laws())


async def test_windows_are_rebuilt_and_nothing_counts_twice(house: House) -> None:
    past = house.clock.now() - timedelta(hours=2)
    records = [Observed(past, Seen.ACCEPTED, DOMAIN, "a", "google", "google", 7, messages=500)]
    house.calls.answers["shard-000", "query"] = lambda name, arguments: list(records)
    house.calls.answers["shard-001", "query"] = NotReady("recovering")
    actor = await house.start()
    assert not (await actor.status())["rebuilt"]
    house.clock.advance(1)
    await actor.observe(
        [house.seen(Seen.ACCEPTED, 10), house.seen(Seen.ACCEPTED, 99, occurred_at=past)]
    )
    (lane, _) = (await actor.status())["windows"]
    assert lane["counts"]["day"] == {"accepted": 510}
    (asked,) = {a[1]["until"] for r, m, a in house.calls.calls if (r, m) == ("shard-000", "query")}
    assert asked == house.clock.now() - timedelta(seconds=1)


async def test_what_people_do_is_read_now_and_then(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PEOPLE_S", 0.002)
    began = house.clock.now()

    def query(name: str, arguments: dict[str, Any]) -> list[Observed]:
        if arguments.get("part") != "people":
            return []
        asked.append((arguments["since"], arguments["until"]))
        return [house.seen(Seen.OPENED, 5)]

    asked: list[Any] = []
    house.calls.answers["shard-000", "query"] = query
    actor = await house.start()
    await actor.observe([house.seen(Seen.ACCEPTED, 10)])
    await asyncio.sleep(0.01)
    assert not asked, "not before it may be there"
    house.clock.advance(70)
    await until(lambda: asked)
    assert asked == [(began, began + timedelta(seconds=60))]
    (lane, _) = (await actor.status())["windows"]
    assert lane["counts"]["hour"] == {"accepted": 10, "opened": 5}


async def test_another_shaping_holds_at_once_and_after_a_restart(house: House) -> None:
    actor = await house.start()
    with pytest.raises(InvalidRequest):
        await actor.set_shaping("[nonsense", "ann")
    before = await actor.shaping()
    text = "# none of the shipped values\n[provider.google]\nconnections_max = 1\n"
    after = await actor.set_shaping(text, "ann", "k1")
    assert after["text"] == text and after["version"] != before["version"]
    assert house.laws()[-1].shaping_text == text
    assert await actor.set_shaping(text, "ann", "k1") == after
    assert await (await house.start()).shaping() == after


async def test_a_rehearsal_says_what_would_have_been_done(house: House) -> None:
    at = house.clock.now() - timedelta(hours=1)
    past = [
        Observed(at, Seen.ACCEPTED, DOMAIN, "a", "google", "google", 7, messages=1_000),
        Observed(at, Seen.COMPLAINED, DOMAIN, "a", "google", "google", 7, messages=12),
    ]
    actor = await house.start()
    house.calls.answers["shard-000", "query"] = lambda name, arguments: past
    found = await actor.rehearse()
    assert [a["kind"] for a in found["actions"]] == ["limit"]
    assert found["messages"] == 1_012 and found["is_whole"]
    milder = await actor.rehearse(
        limits_text="[measures.complaints]\nwarn = 0.05\nact = 0.06\nstop = 0.07\n"
    )
    assert milder["actions"] == []
    assert not await actor.actions()
    with pytest.raises(InvalidRequest, match=r"measures\.complaint"):
        await actor.rehearse(limits_text="[measures.complaint]\nwarn = 0.05\n")


@pytest.mark.parametrize(
    ("kind", "scope"),
    [("explode", {}), ("suspend", {"sauce": "a"}), ("suspend", {"source": "nowhere"})],
)
async def test_what_is_no_action_is_refused(house: House, kind: str, scope: dict[str, Any]) -> None:
    actor = await house.start()
    with pytest.raises(InvalidRequest):
        await actor.act(kind, scope, "why", 60, {}, "ann")
