"""The Director over a real Catalog, real journals and real decisions of shards: restarts anywhere,
shards that are away or hang, Senders that are silent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from actors import assigning
from actors import director as director_module
from actors import handles as handles_module
from actors.catalog import Catalog
from actors.director import Director
from actors.handles import find
from manta.clock import ManualClock
from manta.command import Context, Repeated
from manta.delivery import queries as delivery_queries
from manta.delivery.attempts import Attempt, AttemptJournal, Entry
from manta.delivery.campaign import CampaignPlan
from manta.delivery.directing import Page
from manta.delivery.hooks import Work
from manta.delivery.lanes import Lane, Site
from manta.delivery.planning import SetCampaign
from manta.delivery.reputation.law import Law
from manta.delivery.routing.assignments import Assignment
from manta.errors import (
    Conflict,
    Fenced,
    InvalidRequest,
    MantaError,
    NotFound,
    NotReady,
    OutcomeUnknown,
    StoreUnavailable,
)
from manta.settings import EgressSource, Pool, PoolMember, Settings
from manta.store.documents import Documents
from manta.store.journal import Journal
from tests.faults import MemoryObjects
from tests.unit.people_shard import START, Shard

SETTINGS = Settings(
    shards=2, senders=3, egress=(EgressSource(name="relay"), EgressSource(name="bulk"))
)
POOLED = Settings(
    shards=2,
    senders=3,
    egress=(
        EgressSource(name="mx-a", kind="direct"),
        EgressSource(name="mx-b", kind="direct"),
        EgressSource(name="relay"),
    ),
    pools=(Pool("main", (PoolMember("mx-a"), PoolMember("mx-b"), PoolMember("relay"))),),
)
TEMPLATE = {"name": "News", "subject": "Hi", "html": "<p>Hi</p>", "from_email": "a@shop.example"}
EVERYBODY = {"all": []}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles_module, "FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(handles_module, "PAUSE_MAX_S", 0.01)
    for name, value in {
        "RECHECK_S": 0.05,
        "AGAIN_S": 0.01,
        "TELL_WAIT_S": 0.05,
        "PLAN_CHUNK_ROWS": 3,
    }.items():
        monkeypatch.setattr(director_module, name, value)
    monkeypatch.setattr(assigning, "GATHER_S", 0.0)
    monkeypatch.setattr(assigning, "AGAIN_S", 0.01)


class Ended(BaseException):
    """The process would have ended."""


class World:
    """``away`` roles are refused at once, ``hung`` ones do not answer until they are let go."""

    def __init__(self, people: int = 10, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.clock = ManualClock(START)
        self.objects = MemoryObjects(self.clock)
        self.shards = [Shard(), Shard()]
        self.keys: set[str] = set()
        self.away: set[str] = set()
        self.hung: dict[str, asyncio.Event] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.assigned: list[tuple[str, str, list[int]]] = []
        self.assignments: list[Assignment] = []
        self.sites: Any = None
        self.law = Law().to_document()
        self.pushed: list[tuple[str, str, tuple[Any, ...]]] = []
        self.queries = delivery_queries.QUERIES
        self.on_execute: Callable[[int, Any], None] = lambda shard, command: None
        self.catalog = Catalog(
            self._documents("catalog", 0), self._end, self.clock, "default", len(self.shards)
        )
        self.director: Director | None = None
        self._nonce = 0
        for place in range(people):
            shard = self.shards[place % 2]
            person = shard.person(f"p{place}@b.example")
            shard.load("consents", _consent(person))

    def _documents(self, role: str, nonce: int) -> Documents:
        return Documents(
            self.objects, f"default/journal/{role}", role, nonce.to_bytes(16, "big"), self.clock
        )

    @staticmethod
    def _end(reason: str) -> None:
        raise Ended(reason)

    def attempts(self, nonce: int) -> Journal:
        """The attempt journal of sender-00, for one more owner."""
        owner = nonce.to_bytes(16, "big")
        return Journal(self.objects, "default/journal/sender=00", "sender-00", owner, self.clock)

    # -- the port ----------------------------------------------------------------------------------

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 30.0) -> Any:
        await asyncio.sleep(0)
        self.asked.append((role, method, arguments))
        if role in self.away:
            raise NotReady(f"{role} is away")
        if role in self.hung:
            try:
                await asyncio.wait_for(self.hung[role].wait(), min(timeout_s, 0.2))
            except TimeoutError:
                raise OutcomeUnknown(f"{role} does not answer") from None
        kind, _, number = role.partition("-")
        if kind == "catalog":
            return await getattr(self.catalog, method)(*arguments)
        if kind == "sender":
            (assignments,) = arguments
            self.assigned += [(role, each.lane.source, sorted(each.due)) for each in assignments]
            self.assignments += assignments
            return [True] * len(assignments)
        if kind == "resolver":
            return await self.sites(arguments[0])
        if kind == "reputation":
            return self.law
        if method == "execute":
            return [self._execute(int(number), command) for command in arguments[0]]
        shard = self.shards[int(number)]
        context = Context(shard.now, Random(1), "default", int(number))
        return self.queries[arguments[0]](shard.database, context, arguments[1])

    def push(self, role: str, method: str, *arguments: Any) -> None:
        self.pushed.append((role, method, arguments))

    def _execute(self, shard: int, command: Any) -> Any:
        try:
            self.on_execute(shard, command)
            if command.key is not None and command.key + str(shard) in self.keys:
                return Repeated(command.key)
            answer = self.shards[shard].answer(command)
        except MantaError as error:
            return error
        if command.key is not None:
            self.keys.add(command.key + str(shard))
        return answer

    # -- what happens ------------------------------------------------------------------------------

    async def start_director(self) -> Director:
        """A new incarnation; the former one is as dead as a killed process."""
        await self.stop_director()
        self._nonce += 1

        async def find_handles() -> Any:
            return await find("default", self, self.clock, Random(3), senders=3)

        self.director = Director(
            self._documents("director", self._nonce),
            self._end,
            self.clock,
            self,
            find_handles,
            lambda sender: AttemptJournal(self.attempts(9)),
            self.settings,
        )
        await self.director.start()
        return self.director

    async def stop_director(self) -> None:
        if self.director is not None:
            tasks = list(self.director._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.director._assigner.stop()
            self.director._thread.shutdown(wait=True)

    async def draft(self, **fields: Any) -> int:
        assert self.director is not None
        given = {"name": "May", "template_id": 1, "rule": EVERYBODY, "topic": "news"} | fields
        return int((await self.director.create(given))["id"])

    def send_all(self) -> None:
        """Everything that is planned has been accepted; nobody tells the Director."""
        for shard in self.shards:
            if rows := _accepted(shard):
                shard.load("ledger", *rows)

    def ledger(self) -> Counter[str]:
        rows = [row for s in self.shards for row in s.rows("SELECT state FROM ledger")]
        return Counter(state for (state,) in rows)

    def states(self, shard: int) -> list[str]:
        return [state for (state,) in self.shards[shard].rows("SELECT state FROM campaigns")]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    async def until_state(self, id: int, state: str) -> dict[str, Any]:
        assert self.director is not None
        async with asyncio.timeout(10):
            while (found := await self.director.campaign(id))["state"] != state:
                await asyncio.sleep(0.002)
        return found

    async def until_idle(self) -> None:
        await self.until(lambda: self.director is not None and not self.director._drives)


def _accepted(shard: Shard) -> list[dict[str, Any]]:
    rows = shard.rows("SELECT subscriber_id, message_key FROM ledger WHERE due_at <= ?", shard.now)
    done = {"state": "accepted", "due_at": None}
    return [{"subscriber_id": person, "message_key": key} | done for person, key in rows]


def _consent(person: int) -> dict[str, Any]:
    names = ("subscriber_id", "channel", "topic", "status")
    return dict(zip(names, (person, "email", "news", "subscribed"), strict=True))


@asynccontextmanager
async def world(people: int = 10, settings: Settings = SETTINGS) -> AsyncIterator[World]:
    built = World(people, settings)
    await built.catalog.start()
    await built.catalog.save_template(TEMPLATE)
    await built.catalog.add_domain("shop.example", signed_by_relay=True)
    await built.start_director()
    try:
        yield built
    finally:
        built.away.clear()
        await built.stop_director()
        built.catalog._thread.shutdown(wait=True)


# -- a campaign's life -----------------------------------------------------------------------------


async def test_a_campaign_is_planned_in_pages_and_finishes_when_nothing_is_pending() -> None:
    async with world() as w:
        id = await w.draft()
        assert (await w.director.launch(id))["state"] == "running"
        await w.until(lambda: w.ledger() == {"planned": 10})
        w.send_all()
        found = await w.until_state(id, "finished")
        assert found["progress"] == {
            "shards_planned": 2, "shards": 2, "planned": 10, "suppressed": 0,
        }  # fmt: skip
        await w.until_idle()
        assert w.states(0) == w.states(1) == ["finished"]


@pytest.mark.parametrize("stop_at", range(1, 12))
async def test_a_director_that_dies_anywhere_goes_on_and_nothing_is_done_twice(
    stop_at: int,
) -> None:
    """Killed at its n-th command to a shard, before or after the shard has done it."""
    async with world() as w:
        id = await w.draft()
        count = 0
        died = asyncio.Event()

        def die(shard: int, command: Any) -> None:
            nonlocal count
            count += 1
            if count == stop_at:
                if stop_at % 2:
                    w.shards[shard].answer(command)  # done, and the answer is lost
                died.set()
                w.away.update(("shard-000", "shard-001"))
                raise NotReady("cut off")

        w.on_execute = die
        await w.director.launch(id)
        if count < stop_at:
            await asyncio.wait({asyncio.ensure_future(died.wait())}, timeout=0.2)
        await w.stop_director()
        w.away.clear()
        w.on_execute = lambda shard, command: None
        await w.start_director()
        await w.until(lambda: w.ledger() == {"planned": 10})
        w.send_all()
        found = await w.until_state(id, "finished")
        assert found["progress"]["planned"] == 10
        await w.until_idle()
        assert w.states(0) == w.states(1) == ["finished"]


async def test_an_ended_campaign_costs_the_next_director_nothing() -> None:
    async with world() as w:
        id = await w.draft()
        await w.director.launch(id)
        await w.director.cancel(id)
        await w.until_idle()
        await w.start_director()
        w.asked.clear()
        assert not w.director._drives
        assert (await w.director.campaign(id))["state"] == "cancelled"


# -- shards that are away --------------------------------------------------------------------------


async def test_a_shard_that_is_away_holds_up_nobody_else() -> None:
    async with world() as w:
        w.away.add("shard-001")
        id = await w.draft()
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 5})
        w.away.clear()
        await w.until(lambda: w.ledger() == {"planned": 10})


@pytest.mark.parametrize("trouble", ["away", "hung"])
@pytest.mark.parametrize("move", ["pause", "cancel"])
async def test_people_are_answered_though_a_shard_is_not_there(trouble: str, move: str) -> None:
    async with world() as w:
        id = await w.draft()
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 10})
        let_go = asyncio.Event()
        if trouble == "away":
            w.away.add("shard-001")
        else:
            w.hung["shard-001"] = let_go
        began = asyncio.get_running_loop().time()
        moved = await getattr(w.director, move)(id)
        assert asyncio.get_running_loop().time() - began < 0.5
        assert w.states(0) == [moved["state"]], "the other shard has heard before the answer"
        assert w.states(1) == ["running"]
        w.away.clear()
        w.hung.clear()
        let_go.set()
        await w.until(lambda: w.states(1) == [moved["state"]])


async def test_a_pause_reaches_a_shard_while_the_launch_waits_for_another() -> None:
    async with world() as w:
        w.away.add("shard-001")
        id = await w.draft()
        await w.director.launch(id)
        await w.until(lambda: w.states(0) == ["running"])
        await w.director.pause(id)
        assert w.states(0) == ["paused"]
        await w.director.resume(id)
        assert w.states(0) == ["running"]


async def test_a_cancelled_campaign_is_announced_by_the_next_director_too() -> None:
    async with world() as w:
        id = await w.draft()
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 10})
        w.away.add("shard-001")
        await w.director.cancel(id)
        await w.start_director()
        await asyncio.sleep(0.02)
        assert w.states(1) == ["running"]
        w.away.clear()
        await w.until(lambda: w.states(1) == ["cancelled"])
        assert w.ledger() == {"cancelled": 10}
        await w.until_idle()


async def test_a_page_of_planning_that_could_not_be_journaled_is_asked_for_again() -> None:
    async with world(30) as w:
        journal = w.director._documents.journal
        append, count = journal.append, 0

        def refuses_some(body: bytes) -> int:
            nonlocal count
            count += 1
            if count % 3 == 0:
                raise StoreUnavailable("refused")
            return append(body)

        id = await w.draft()
        journal.append = refuses_some  # type: ignore[method-assign]
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 30})
        w.send_all()
        found = await w.until_state(id, "finished")
        assert found["progress"]["planned"] == 30


async def test_pages_that_wait_together_are_one_entry() -> None:
    async with world(0) as w:
        w.away.update(("shard-000", "shard-001"))
        id = await w.draft()
        await w.director.launch(id)
        before = w.director._documents.journal.tail
        answer = {"planned": 1, "suppressed": 0, "last_subscriber": 5, "done": True}
        pages = (w.director._record(id, n, Page(-1, answer)) for n in range(100))
        await asyncio.gather(*pages)
        assert w.director._documents.journal.tail == before + 1
        assert (await w.director.campaign(id))["progress"]["planned"] == 100


async def test_a_replaced_shard_that_knows_nothing_does_not_end_a_campaign() -> None:
    async with world() as w:
        id = await w.draft()
        stale = {1}  # until a command makes it append, and so find out
        true_accounting = w.queries["accounting"]

        def accounting(database: Any, context: Any, arguments: Any) -> Any:
            if context.shard in stale:
                return {"pending": 0}
            return true_accounting(database, context, arguments)

        def appends(shard: int, command: Any) -> None:
            if isinstance(command, SetCampaign) and command.key is None:
                stale.discard(shard)

        w.queries = dict(w.queries) | {"accounting": accounting}
        w.on_execute = appends
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 10})
        w.shards[0].load("ledger", *_accepted(w.shards[0]))
        await w.until(lambda: not stale)
        await asyncio.sleep(0.1)
        assert (await w.director.campaign(id))["state"] == "running"
        w.send_all()
        await w.until_state(id, "finished")


# -- launching -------------------------------------------------------------------------------------


async def test_a_scheduled_campaign_starts_when_its_time_comes_and_not_before() -> None:
    async with world() as w:
        id = await w.draft()
        scheduled = await w.director.launch(id, START + timedelta(hours=1))
        assert scheduled["state"] == "scheduled"
        await asyncio.sleep(0.02)
        assert w.states(0) == []
        await w.start_director()
        w.away.add("catalog")  # nobody is asked any more
        w.clock.advance(3_600)
        for shard in w.shards:
            shard.now = w.clock.now()
        await w.until(lambda: w.ledger() == {"planned": 10})


async def test_a_scheduled_campaign_can_be_taken_back_and_deleted() -> None:
    async with world() as w:
        id = await w.draft()
        await w.director.launch(id, START + timedelta(hours=1))
        with pytest.raises(Conflict, match="waits for"):
            await w.director.resume(id)
        assert (await w.director.unschedule(id))["state"] == "draft"
        w.clock.advance(7_200)
        await w.until_idle()
        assert w.states(0) == []
        await w.director.delete(id)
        with pytest.raises(NotFound):
            await w.director.campaign(id)


async def test_a_draft_is_cancelled_without_asking_any_shard() -> None:
    async with world() as w:
        id = await w.draft()
        w.asked.clear()
        assert (await w.director.cancel(id))["state"] == "cancelled"
        await w.until_idle()
        assert not w.asked


async def test_a_launch_under_a_key_is_one_launch() -> None:
    async with world() as w:
        id = await w.draft()
        first, second = await asyncio.gather(
            w.director.launch(id, None, "k"), w.director.launch(id, None, "k")
        )
        assert first == second
        w.away.add("catalog")
        assert await w.director.launch(id, None, "k") == first, "answered from memory alone"
        w.away.clear()
        with pytest.raises(Conflict, match="from running to scheduled"):
            await w.director.launch(id, None, "another")


async def test_a_draft_under_a_key_is_one_draft() -> None:
    async with world() as w:
        fields = {"name": "May", "template_id": 1, "rule": EVERYBODY}
        first = await w.director.create(fields, "k")
        w.away.add("catalog")
        assert await w.director.create(fields, "k") == first
        assert len(await w.director.list("campaigns")) == 1


async def test_what_cannot_be_used_is_named() -> None:
    async with world() as w:

        async def refused(path: str, **fields: Any) -> InvalidRequest:
            with pytest.raises(InvalidRequest) as caught:
                await w.draft(**fields)
            assert caught.value.path == path
            return caught.value

        error = await refused("source", source="nowhere")
        assert error.expected == "one of relay, bulk"
        await refused("template_id", template_id=9)
        await refused("segment_id", rule=None, segment_id=9)
        await refused("rule", rule={"member": {"segment": 9}})
        await refused(
            "$.attribute.name",
            rule={"attribute": {"name": "city", "operator": "is_set"}},
        )
        await w.catalog.save_template(TEMPLATE | {"html": "<p>{{ city }}</p>"})
        error = await refused("template_id", template_id=2)
        assert "city" in error.message and "none yet" in error.expected
        assert not await w.director.list("campaigns")


async def test_a_segment_is_pinned_with_those_it_refers_to() -> None:
    async with world() as w:
        await w.catalog.declare_attributes({"city": "string"})
        for shard in w.shards:
            for (person,) in shard.rows("SELECT subscriber_id FROM profiles LIMIT 2"):
                shard.load("profiles", {"subscriber_id": person, "attr_city": "Riga"})
        city = {"attribute": {"name": "city", "operator": "equals", "value": "Riga"}}
        await w.catalog.save("segments", {"name": "Riga", "rule": city})
        outside = {"not": {"member": {"segment": 1}}}
        await w.catalog.save("segments", {"name": "Others", "rule": outside})
        id = await w.draft(rule=None, segment_id=2)
        launched = await w.director.launch(id)
        assert launched["audience"] == {"not": city}
        await w.catalog.save("segments", {"id": 1, "rule": EVERYBODY})
        await w.until(lambda: w.ledger() == {"planned": 6})


# -- lanes -----------------------------------------------------------------------------------------


def report(due: int = 5, source: str = "relay") -> list[Work]:
    return [Work(source, "b.example", 1, due, None)]


async def test_a_silent_sender_is_passed_over_at_once_the_next_time() -> None:
    async with world() as w:
        await w.director.work(0, report())
        await w.until(lambda: len(w.assigned) == 1)
        (chosen, source, shards) = w.assigned[0]
        assert (source, shards) == ("relay", [0])
        w.hung[chosen] = asyncio.Event()
        await w.director.work(0, report(6))
        await w.until(lambda: len(w.assigned) == 2)
        assert w.assigned[1][0] != chosen
        w.asked.clear()
        await w.director.work(0, report(7))
        await w.until(lambda: len(w.assigned) == 3)
        assert chosen not in {role for role, _, _ in w.asked}
        w.hung.clear()
        await w.director.sender_ready(chosen)
        await w.until(lambda: len(w.assigned) == 4)
        assert w.assigned[3][0] == chosen, "one that is back gets its lanes at once"
        assert ("throttle", "forget", (chosen,)) in w.pushed


async def test_work_that_comes_while_lanes_are_assigned_is_not_forgotten() -> None:
    async with world() as w:
        let_go = asyncio.Event()
        for sender in range(3):
            w.hung[f"sender-0{sender}"] = let_go
        await w.director.work(0, report(source="relay"))
        await w.until(lambda: any(method == "assign" for _, method, _ in w.asked))
        await w.director.work(1, report(source="bulk"))
        w.hung.clear()
        let_go.set()
        await w.until(lambda: {source for _, source, _ in w.assigned} == {"relay", "bulk"})


async def test_a_lane_that_nobody_takes_is_offered_again() -> None:
    async with world() as w:
        w.away.update(f"sender-0{n}" for n in range(3))
        await w.director.work(0, report())
        await asyncio.sleep(0.03)
        w.away.clear()
        await w.until(lambda: len(w.assigned) == 1)


async def test_a_long_lane_goes_to_all_and_a_new_director_asks_the_shards() -> None:
    async with world() as w:
        await w.director.work(0, report(1_000))
        await w.until(lambda: len(w.assigned) == 3)
        assert len({sender for sender, _, _ in w.assigned}) == 3
        w.assigned.clear()
        w.queries = dict(w.queries) | {"work": lambda *_: report()}
        await w.start_director()
        await w.until(lambda: len(w.assigned) >= 1)


async def test_every_source_of_a_pool_gets_lanes_to_the_sites_of_what_is_due() -> None:
    google = Site("mx.google.example", "google", (("mx.google.example",),))
    asked = asyncio.Event()

    async def sites(domains: list[str]) -> dict[str, Site | None]:
        await asked.wait()
        return {d: google if d != "lost.example" else None for d in domains}

    async with world(settings=POOLED) as w:
        w.sites = sites
        names = ("gmail.com", "a.example", "lost.example")
        await w.director.work(0, [Work("main", d, 7, 5, None) for d in names])
        await w.director.work(1, [Work("main", None, 7, 3, None)])
        await w.until(lambda: len(w.assignments) >= 2)  # the relay waits for nobody
        assert {a.lane.source for a in w.assignments} == {"relay"}
        others = next(a for a in w.assignments if a.lane.site == "others")
        assert others.lane == Lane("main", "relay", "others", "others")
        assert (others.domains, others.due) == (None, {0: 10, 1: 3})
        provider = next(a for a in w.assignments if a.lane.site != "others")
        assert provider.domains == others.except_domains == ("gmail.com",)
        assert provider.site == Site(provider.lane.provider, provider.lane.provider)
        asked.set()
        await w.until(lambda: {"mx-a", "mx-b"} <= {a.lane.source for a in w.assignments})
        direct = next(a for a in w.assignments if a.lane.source == "mx-a")
        assert direct.lane == Lane("main", "mx-a", "mx.google.example", "google")
        assert (direct.site, direct.domains, direct.due) == (google, names[:2], {0: 10})
        status = await w.director.status()
        assert status["unknown_domains"] == ["lost.example"]
        assert status["due"] == {"main": 18} and status["unknown_ways_out"] == []


async def test_a_resolver_is_asked_again_and_a_lane_that_finds_no_room_goes_elsewhere() -> None:
    async with world(settings=POOLED) as w:
        w.away.add("resolver")
        await w.director.work(0, [Work("mx-a", "a.example", 7, 5, None)])
        await w.until(lambda: any(role == "resolver" for role, _, _ in w.asked))
        w.away.clear()

        async def sites(domains: list[str]) -> dict[str, Site | None]:
            return {d: Site(d, d, ((d,),)) for d in domains}

        w.sites = sites
        full: list[str] = []
        call = w.call

        async def some_are_full(role: str, method: str, *arguments: Any, **more: Any) -> Any:
            if method == "assign" and len(full) < 2:
                full.append(role)
                return [False] * len(arguments[0])
            return await call(role, method, *arguments, **more)

        w.director._assigner._calls.call = some_are_full
        w.clock.advance(60)
        await w.director.work(0, [Work("mx-a", "a.example", 7, 5, None)])
        await w.until(lambda: len(w.assignments) == 1)
        assert len({*full, w.assigned[0][0]}) == 3


async def test_rows_of_a_domain_that_the_dns_does_not_tell_say_so_in_the_end() -> None:
    async with world(settings=POOLED) as w:

        async def sites(domains: list[str]) -> dict[str, Site | None]:
            return dict.fromkeys(domains)

        w.sites = sites
        await w.director.launch(await w.draft(source="mx-a"))
        await w.until(lambda: w.ledger() == {"planned": 10})
        w.clock.advance(assigning.NOTE_EVERY_S)
        for shard in (0, 1):
            await w.director.work(shard, [Work("mx-a", "b.example", 1, 5, None)])
        await w.until(lambda: all(_reasons(shard) == {assigning.UNKNOWN} for shard in w.shards))


async def test_rows_that_a_relay_takes_wait_for_no_dns() -> None:
    async with world(settings=POOLED) as w:

        async def sites(domains: list[str]) -> dict[str, Site | None]:
            return dict.fromkeys(domains)

        w.sites = sites
        await w.director.launch(await w.draft(source="main"))
        await w.until(lambda: w.ledger() == {"planned": 10})
        w.clock.advance(assigning.NOTE_EVERY_S)
        now_s = w.clock.monotonic()
        for shard in (0, 1):
            await w.director.work(shard, [Work("main", "b.example", 1, 5, None)])
        await w.until(lambda: w.director._assigner._unknown_noted_s == now_s)
        await asyncio.sleep(0.05)
        assert all(_reasons(shard) == {None} for shard in w.shards)


def _reasons(shard: Shard) -> set[str | None]:
    return {reason for (reason,) in shard.rows("SELECT reason FROM ledger")}


async def test_the_law_says_whose_domains_are_whose() -> None:
    text = """
[provider.inhouse]
domains = ["a.example"]
"""
    async with world() as w:
        await w.director.law(Law(3, text).to_document())
        await w.director.law(Law(2, "").to_document())  # an older one that comes late
        await w.director.work(0, [Work("relay", "a.example", 7, 5, None)])
        await w.until(lambda: len(w.assignments) == 1)
        assert w.assignments[0].lane == Lane("relay", "relay", "inhouse", "inhouse")
        await w.director.law(Law(4, "nonsense").to_document())
        assert (await w.director.status())["law_version"] == 4
        w.law = Law(5, text).to_document()
        await w.start_director()
        await w.until(lambda: w.director._law_version == 5)


async def test_an_action_pauses_a_campaign_and_its_end_resumes_it() -> None:
    action = {"id": 4, "cause": "complaints at google: 1.2 %"}
    async with world() as w:
        id = await w.draft()
        await w.director.pause_for(id, action)  # a draft sends nothing
        await w.director.pause_for(99, action)
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 10})
        await w.director.pause_for(id, action)
        await w.director.pause_for(id, action)
        document = await w.director.campaign(id)
        assert document["state"] == "paused" and w.states(0) == w.states(1) == ["paused"]
        assert document["history"][-1]["cause"] == action["cause"]
        await w.director.resume_for(id, 5)
        assert (await w.director.campaign(id))["state"] == "paused"
        await w.start_director()
        await w.director.resume_for(id, 4)
        assert (await w.director.campaign(id))["state"] == "running"
        await w.until(lambda: w.states(0) == w.states(1) == ["running"])


async def test_a_person_stands_above_an_action() -> None:
    action = {"id": 4, "cause": "complaints"}
    async with world() as w:
        id = await w.draft()
        await w.director.launch(id)
        await w.director.pause_for(id, action)
        await w.director.pause(id)  # now it is the person's pause
        await w.director.resume_for(id, 4)
        assert (await w.director.campaign(id))["state"] == "paused"
        await w.director.resume(id)
        await w.director.pause_for(id, action | {"id": 5})
        await w.director.resume(id)  # overrules 5
        await w.director.pause_for(id, action | {"id": 5})
        assert (await w.director.campaign(id))["state"] == "running"
        await w.director.pause_for(id, action | {"id": 6})
        assert (await w.director.campaign(id))["state"] == "paused"


async def test_a_launch_pins_whose_reputation_is_at_stake() -> None:
    async with world() as w:
        id = await w.draft()
        plan = CampaignPlan.from_json((await w.director.launch(id))["definition"])
        assert plan.sending_domain == "shop.example"


async def test_a_lost_report_does_not_hold_up_the_end() -> None:
    async with world() as w:
        id = await w.draft()
        await w.director.launch(id)
        await w.until(lambda: w.ledger() == {"planned": 10})
        await w.director.work(0, [Work("relay", None, id, 0, None, 5)])
        w.send_all()  # and the report that says so is lost
        await w.until_state(id, "finished")


async def test_the_journal_of_a_silent_sender_is_fenced_and_settled() -> None:
    async with world(2) as w:
        await w.director.launch(await w.draft())
        await w.until(lambda: w.ledger() == {"planned": 2})
        journal = AttemptJournal(w.attempts(1))
        journal.take_over([])
        messages = []
        for lease_id, shard in enumerate(w.shards, 1):
            ((person, message),) = shard.rows("SELECT subscriber_id, message_key FROM ledger")
            messages.append((lease_id, person, message))
            row = {"lease_id": lease_id, "sender_epoch": 1, "due_at": None, "state": "orphaned"}
            shard.leased(person, message, **row, campaign_id=1)
        journal.append(Entry(1, leases=(1, 2), attempts=(Attempt(*messages[0]),)))
        await w.director.orphans(0, [("sender-00", 1)])
        await w.director.orphans(1, [("sender-00", 1)])
        await w.until(lambda: w.ledger() == {"uncertain": 1, "planned": 1})
        await w.until(lambda: ("throttle", "forget", ("sender-00",)) in w.pushed)
        with pytest.raises(Fenced):
            journal.append(Entry(1))


async def test_what_a_director_cannot_resolve_now_is_told_again() -> None:
    async with world(2) as w:
        w.away.add("shard-001")
        await w.director.orphans(0, [("sender-00", 1)])
        assert (await w.director.status())["resolving"] == ["sender-00"]
        w.away.clear()
        async with asyncio.timeout(5):
            while (await w.director.status())["resolving"]:
                await asyncio.sleep(0.002)


# -- tests of templates ----------------------------------------------------------------------------


async def test_a_template_version_has_one_campaign_of_tests() -> None:
    async with world() as w:
        first = await w.director.standing("test", 1, None, [0])
        assert w.states(0) == ["running"]
        again = await w.director.standing("test", 1, 1, [1])
        assert (again["id"], again["kind"], again["state"]) == (first["id"], "test", "running")
        await w.until(lambda: w.states(1) == ["running"])
        assert w.ledger() == {}
        with pytest.raises(NotFound):
            await w.director.standing("test", 99, None, [0])
        await w.start_director()
        await asyncio.sleep(0.1)
        assert (await w.director.campaign(first["id"]))["state"] == "running"
        w.clock.advance(601)
        await w.until_state(first["id"], "finished")
        assert (await w.director.standing("test", 1, None, [0]))["id"] != first["id"]


async def test_a_test_waits_for_the_shard_of_whom_it_is_for() -> None:
    async with world() as w:
        w.away.add("shard-001")
        await w.director.standing("test", 1, None, [0])
        waiting = asyncio.create_task(w.director.standing("test", 1, None, [1]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        w.away.clear()
        await waiting
        assert w.states(1) == ["running"]


async def test_tests_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(director_module.directing, "STANDING_KEPT_MAX", 1)
    async with world() as w:
        made = []
        for _ in range(3):
            made.append((await w.director.standing("test", 1, None, []))["id"])
            await w.director.cancel(made[-1])
            async with asyncio.timeout(10):
                while (await w.director.campaign(made[-1]))["announced"] < 2:
                    await asyncio.sleep(0.01)
        with pytest.raises(NotFound):
            await w.director.campaign(made[0])
        assert (await w.director.campaign(made[1]))["state"] == "cancelled"


async def test_a_campaign_from_a_domain_that_nobody_signs_for_is_refused() -> None:
    async with world() as w:
        await w.catalog.remove_domain("shop.example")
        campaign = await w.director.create({"name": "News", "rule": {"all": []}, "template_id": 1})
        with pytest.raises(InvalidRequest, match=r"manta domain add shop\.example"):
            await w.director.launch(campaign["id"])
        assert (await w.director.campaign(campaign["id"]))["state"] == "draft"
        await w.catalog.add_domain("shop.example")
        wrong = ("DKIM manta1", "wrong", "manta1._domainkey.shop.example has no key", "TXT")
        await w.catalog.record_domain_check("shop.example", [wrong])
        with pytest.raises(InvalidRequest, match="has no key"):
            await w.director.launch(campaign["id"])
        await w.catalog.record_domain_check("shop.example", [("DKIM manta1", "ok", "", "")])
        assert (await w.director.launch(campaign["id"]))["state"] == "running"
