"""What the Sender's tests share: real shard databases and journal; content and SMTP are fakes.

The fake server can be replaced by real connections (``House.connect``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from actors.lanes import LaneSettings
from actors.sender import Ports, Sender, SenderSettings
from manta.clock import SystemClock
from manta.command import Decision, Repeated
from manta.content.language import TemplateError
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind
from manta.delivery.lanes import Lane, Limits, Site
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.delivery.replies import Reply, Verdict, classify
from manta.delivery.reputation.observations import Observed, Seen
from manta.delivery.retry import BackoffPolicy
from manta.delivery.routing.assignments import Assignment
from manta.delivery.sending import SendingSettings
from manta.delivery.throttle.budgets import Budgets, Connections
from manta.delivery.transaction import Envelope
from manta.errors import MantaError, NotReady, OutcomeUnknown
from manta.store.journal import Journal
from tests.faults import MemoryObjects
from tests.unit.people_shard import Shard

QUICK = SenderSettings(
    append_gap_s=0.0,
    append_retry_s=0.02,
    settle_after_s=0.05,
    settle_retry_s=0.02,
    start_retry_s=0.02,
    tell_every_s=0.02,
    lane=LaneSettings(
        burst_messages=4,
        lease_rows_min=4,
        idle_s=0.2,
        direct_idle_s=0.2,
        hold_soon_s=0.02,
        trouble_pause_s=0.02,
        backoff=BackoffPolicy(first_wait_s=0.05),
    ),
    sending=SendingSettings(not_sent_retry_s=0.05),
)
LANE = Lane("relay", "relay", "others", "others")
SITE = Site("others", "others")
NOT_SENT = Reply(Verdict.NOT_SENT, 0, "connection lost", "not sent")
UNCERTAIN = Reply(Verdict.UNCERTAIN, 0, "connection lost", "no reply after the message")


class FakeShards:
    """Real commands on real shard databases; answers may be lost, shards may be away."""

    def __init__(self, count: int) -> None:
        self.clock = SystemClock()
        self.shards = [Shard(seed) for seed in range(count)]
        self.keys: set[str] = set()
        self.lose: Counter[str] = Counter()  # by command name: how many answers are lost
        self.away: set[int] = set()
        self.asked: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return len(self.shards)

    async def execute_on(
        self, shard: int, commands: Sequence[Any], deadline_s: float = 30.0
    ) -> list[Any]:
        await asyncio.sleep(0)
        return [self._execute(shard, command) for command in commands]

    def _execute(self, shard: int, command: Any) -> Any:
        name = type(command).__name__
        self.asked[name] += 1
        if shard in self.away:
            return NotReady("recovering")
        where = self.shards[shard]
        where.now = self.clock.now()
        if command.key is not None and command.key in self.keys:
            context_free = where.run(_Repeat(command)).answer
            return context_free if context_free is not None else Repeated(command.key)
        try:
            answer = where.answer(command)
        except MantaError as error:
            return error
        if command.key is not None:
            self.keys.add(command.key)
        if self.lose[name]:
            self.lose[name] -= 1
            return OutcomeUnknown("answer lost")
        return answer

    def has_due(self, shard: int) -> bool:
        where = self.shards[shard]
        return bool(where.rows("SELECT 1 FROM ledger WHERE due_at <= ?", self.clock.now()))

    def states(self) -> Counter[str]:
        rows = [row for s in self.shards for row in s.rows("SELECT state FROM ledger")]
        return Counter(state for (state,) in rows)

    def ledger(self, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        sql = f"SELECT {columns} FROM ledger WHERE {where}"
        return [row for s in self.shards for row in s.rows(sql)]


class _Repeat:
    key = None

    def __init__(self, command: Any) -> None:
        self._command = command

    def decide(self, database: Any, context: Any) -> Any:
        return Decision(self._command.repeat(database, context))


class FakeThrottle:
    """Real budgets; what a grant says besides is ``says``."""

    def __init__(self, limits: Limits) -> None:
        self.budgets = Budgets({"relay": limits}, empty_at_s=None)
        self.clock = SystemClock()
        self.away = False
        self.held: Counter[Lane] = Counter()
        self.says: dict[str, Any] = {}
        self.asked: Counter[tuple[str, Lane]] = Counter()
        self.wanted: list[int] = []

    async def call(self, method: str, *arguments: Any, deadline_s: float = 0, once=False) -> Any:
        await asyncio.sleep(0)
        if self.away:
            raise NotReady("taking over")
        sender, lane, *rest = arguments
        self.asked[method, Lane(*lane)] += 1
        if method == "grant":
            wanted, unused = rest
            self.wanted.append(wanted)
            return self.budgets.grant(
                sender, Lane(*lane), wanted, self.clock.monotonic(), unused=unused
            )._replace(**self.says)
        answer = self.budgets.hold(sender, Lane(*lane), rest[0], self.clock.monotonic())
        self.held[Lane(*lane)] = answer.held
        return answer


class FakeReputation:
    def __init__(self) -> None:
        self.observed: list[Observed] = []

    def push(self, method: str, observed: list[Observed]) -> None:
        assert method == "observe"
        self.observed += observed

    def count(self, seen: Seen) -> int:
        return sum(o.messages for o in self.observed if o.seen is seen)


class FakeComposers:
    sending_domain = "shop.example"

    def __init__(self) -> None:
        self.away = False

    async def of_campaign(self, campaign_id: int) -> FakeComposers:
        if self.away:
            raise NotReady("no Catalog")
        return self

    def compose_each(self, messages: Any, now: Any) -> list[Envelope | Exception]:
        return [self._composed(row) for row, _ in messages]

    def _composed(self, row: Any) -> Envelope | Exception:
        if row["email"].startswith("broken"):
            return TemplateError("no name", path="html")
        if row["email"].startswith("bug"):
            return ZeroDivisionError()
        return Envelope("b@shop.example", row["email"], b"Subject: x\r\n\r\n")


class FakeServer:
    """Connections of the ``connect`` port. ``reply`` decides for each recipient."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.refuse: list[Reply] = []
        self.unreachable: dict[str, Reply] = {}  # by site
        self.connected: list[tuple[Lane, Site, Connections]] = []
        self.reply: Callable[[Envelope], Reply] = lambda envelope: classify(250, "2.0.0 ok")
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None
        self.open = 0
        self.opened = 0
        self.open_most = 0
        self.bursts: list[int] = []
        self.last: FakeConnection | None = None

    async def connect(self, lane: Lane, site: Site, connections: Connections) -> Any:
        await asyncio.sleep(0)
        self.connected.append((lane, site, connections))
        if self.refuse:
            return self.refuse.pop(0)
        if site.name in self.unreachable:
            return self.unreachable[site.name]
        self.open += 1
        self.opened += 1
        self.open_most = max(self.open_most, self.open)
        self.last = FakeConnection(self, connections.messages_per_connection)
        return self.last


class FakeConnection:
    def __init__(self, server: FakeServer, messages_max: int) -> None:
        self.server = server
        self.room = messages_max
        self.is_open = True
        self._stopped = ""

    @property
    def usable(self) -> bool:
        return self.is_open and self.room > 0

    async def send_burst(self, envelopes: Sequence[Envelope], begin_within_s: float) -> list[Reply]:
        assert self.usable
        self._stopped = ""
        self.server.bursts.append(len(envelopes))
        replies: list[Reply] = []
        for envelope in envelopes:
            if self._stopped or not self.is_open:
                replies.append(NOT_SENT._replace(text=self._stopped or "connection lost"))
                continue
            self.room -= 1
            if self.server.gate is not None:
                await self.server.gate.wait()
            await asyncio.sleep(self.server.delay_s)
            reply = self.server.reply(envelope)
            if reply.verdict is not Verdict.NOT_SENT:
                self.server.sent[envelope.rcpt_to] += 1
            if reply.verdict in (Verdict.NOT_SENT, Verdict.UNCERTAIN):
                self.is_open = False
            replies.append(reply)
        return replies

    def stop(self, why: str) -> None:
        self._stopped = why

    async def quit(self) -> None:
        if self.is_open or self.room >= 0:
            self.server.open -= 1
        self.is_open = False

    def abort(self) -> None:
        self.is_open = False


class House:
    def __init__(self, people: Sequence[str], shards: int = 2, **limits: Any) -> None:
        chosen = {"rate_per_s": 10_000.0, "burst": 10_000, "connections_max": 4} | limits
        self.clock = SystemClock()
        self.objects = MemoryObjects(self.clock)
        self.shards = FakeShards(shards)
        self.throttle = FakeThrottle(Limits(**chosen))
        self.reputation = FakeReputation()
        self.composers = FakeComposers()
        self.server = FakeServer()
        self.connect: Any = self.server.connect
        self.ended: list[str] = []
        self._nonces = 0
        self.assigns = self.everything
        for place, email in enumerate(people):
            self.shards.shards[place % shards].person(email)
        for shard in self.shards.shards:
            shard.now = self.clock.now()
            plan = CampaignPlan(
                campaign_id=7,
                kind=Kind.TRANSACTIONAL,
                channel="email",
                topic="t",
                template_id="1",
                template_version=1,
                source="relay",
                due_at=shard.now,
                audience='{"all": []}',
            )
            shard.answer(SetCampaign(None, 7, CampaignState.RUNNING, plan.to_json(), 1))
            shard.answer(PlanCampaign(7))

    def journal(self) -> Journal:
        self._nonces += 1
        nonce = self._nonces.to_bytes(16, "big")
        return Journal(
            self.objects, "default/journal/sender=00", "sender-00", nonce, self.clock,
            sleep=lambda s: None, undecided_s=0.05,
        )  # fmt: skip

    def sender(self, settings: SenderSettings = QUICK) -> Sender:
        async def find_ports() -> Ports:
            return Ports(self.shards, self.throttle, self.reputation, self.composers, self.connect)

        return Sender(
            "sender-00", self.journal(), self.ended.append, self.clock, Random(5), find_ports,
            settings,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self, settings: SenderSettings = QUICK):
        sender = self.sender(settings)
        await sender.start()
        director = asyncio.ensure_future(self._direct(sender))
        try:
            yield sender
        finally:
            director.cancel()
            await sender.stop()

    async def _direct(self, sender: Sender) -> None:
        """Wakes the Sender for shards with due work, as the Director does."""
        while True:
            due = [s for s in range(self.shards.count) if self.shards.has_due(s)]
            if due:
                await sender.assign(self.assigns(due))
            await asyncio.sleep(0.05)

    def everything(self, shards: Sequence[int]) -> list[Assignment]:
        """One lane for all domains."""
        return [Assignment(LANE, SITE, None, (), dict.fromkeys(shards, 1_000))]

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_states(self, **states: int) -> None:
        try:
            await self.until(lambda: self.shards.states() == Counter(states))
        except TimeoutError:
            raise AssertionError(f"{self.shards.states()} instead of {states}") from None


def people(count: int) -> list[str]:
    return [f"p{i}@b.example" for i in range(count)]
