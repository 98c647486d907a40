"""The Sender against real shard databases and a real journal; SMTP and content are fakes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from actors.lanes import LaneSettings
from actors.sender import Ports, Sender, SenderSettings
from manta.clock import SystemClock
from manta.command import Repeated
from manta.content.language import TemplateError
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.delivery.replies import Reply, Verdict, classify
from manta.delivery.retry import BackoffPolicy
from manta.delivery.sending import SendingSettings
from manta.delivery.throttle import Budgets, Lane, Limits
from manta.delivery.transaction import Envelope
from manta.errors import MantaError, NotReady, OutcomeUnknown, StoreUnavailable
from manta.store.journal import Journal
from tests.faults import MemoryObjects
from tests.unit.people_shard import Shard

QUICK = SenderSettings(
    append_gap_s=0.0,
    append_retry_s=0.02,
    settle_after_s=0.05,
    settle_retry_s=0.02,
    start_retry_s=0.02,
    lane=LaneSettings(
        burst_messages=4,
        lease_rows_min=4,
        idle_s=0.2,
        hold_soon_s=0.02,
        trouble_pause_s=0.02,
        backoff=BackoffPolicy(first_wait_s=0.05),
    ),
    sending=SendingSettings(not_sent_retry_s=0.05),
)
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
        from manta.command import Decision

        return Decision(self._command.repeat(database, context))


class FakeThrottle:
    def __init__(self, limits: Limits) -> None:
        self.budgets = Budgets({"relay": limits}, empty_at_s=None)
        self.clock = SystemClock()
        self.away = False
        self.held = 0

    async def call(self, method: str, *arguments: Any, deadline_s: float = 0, once=False) -> Any:
        await asyncio.sleep(0)
        if self.away:
            raise NotReady("taking over")
        sender, lane, *rest = arguments
        if method == "grant":
            wanted, unused = rest
            return self.budgets.grant(
                sender, Lane(*lane), wanted, self.clock.monotonic(), unused=unused
            )
        answer = self.budgets.hold(sender, Lane(*lane), rest[0], self.clock.monotonic())
        self.held = answer.held
        return answer


class FakeComposers:
    def __init__(self) -> None:
        self.away = False

    async def of_campaign(self, campaign_id: int) -> FakeComposers:
        if self.away:
            raise NotReady("no Catalog")
        return self

    def compose(self, row: Any, ref: Any, now: Any) -> Envelope:
        if row["email"].startswith("broken"):
            raise TemplateError("no name", path="html")
        if row["email"].startswith("bug"):
            raise ZeroDivisionError
        return Envelope("b@shop.example", row["email"], b"Subject: x\r\n\r\n")


class FakeServer:
    """Connections of the ``connect`` port. ``reply`` decides for each recipient."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.refuse: list[Reply] = []
        self.reply: Callable[[Envelope], Reply] = lambda envelope: classify(250, "2.0.0 ok")
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None
        self.open = 0
        self.opened = 0
        self.open_most = 0
        self.bursts: list[int] = []

    async def connect(self, lane: Lane, messages_max: int) -> Any:
        await asyncio.sleep(0)
        if self.refuse:
            return self.refuse.pop(0)
        self.open += 1
        self.opened += 1
        self.open_most = max(self.open_most, self.open)
        return FakeConnection(self, messages_max)


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
        self.composers = FakeComposers()
        self.server = FakeServer()
        self.ended: list[str] = []
        self._nonces = 0
        for place, email in enumerate(people):
            self.shards.shards[place % shards].person(email)
        for shard in self.shards.shards:
            plan = CampaignPlan(
                campaign_id=7,
                kind=Kind.TRANSACTIONAL,
                channel="email",
                topic="t",
                template_id="1",
                template_version=1,
                source="relay",
                due_at=shard.now,
                audience_sql="SELECT subscriber_id FROM profiles",
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
            return Ports(self.shards, self.throttle, self.composers, self.server.connect)

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
                await sender.assign("relay", "*", None, due)
            await asyncio.sleep(0.05)

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


async def test_everybody_gets_one_mail_and_everything_is_settled():
    house = House(people(50))
    async with house.running() as sender:
        await house.until_states(accepted=50)
        assert set(house.server.sent.values()) == {1} and len(house.server.sent) == 50
        await house.until(lambda: not sender.sending.leases)
        assert sender.sending.low_water == sender.sending.tail + 1
        await house.until(lambda: not sender._lanes)
        assert house.throttle.held == 0 and house.server.open == 0
        status = await sender.status()
        assert status["outcomes"] == {"accepted": 50} and status["lanes"] == []
    assert house.ended == []
    assert house.shards.asked["Lease"] < 20


async def test_replies_become_states():
    house = House(["ok@b.example", "later@b.example", "never@b.example", "lost@b.example",
                   "dot@b.example", "broken@b.example", "bug@b.example"], shards=1)  # fmt: skip
    replies = {
        "later@b.example": classify(451, "4.7.1 slow down"),
        "never@b.example": classify(550, "5.1.1 who?"),
        "lost@b.example": NOT_SENT,
        "dot@b.example": UNCERTAIN,
    }

    def reply(envelope: Envelope) -> Reply:
        if envelope.rcpt_to.startswith("lost"):
            return replies.pop(envelope.rcpt_to, classify(250, "ok"))
        return replies.get(envelope.rcpt_to, classify(250, "ok"))

    house.server.reply = reply
    async with house.running():
        await house.until(lambda: bool(house.shards.ledger("1", "reply_code = 451")))
        await house.until_states(accepted=2, planned=1, failed=3, uncertain=1)
    rows = house.shards.ledger("reply_code, reason, reply, source", "state = 'failed'")
    assert sorted(row[1] for row in rows) == [
        "cannot be composed: ZeroDivisionError",
        "cannot be composed: no name",
        "mailbox does not exist",
    ]
    assert (550, "mailbox does not exist", "5.1.1 who?") in [row[:3] for row in rows]
    planned = house.shards.ledger("reply_code, attempts, due_at - changed_at", "state = 'planned'")
    assert [row[:2] for row in planned] == [(451, 1)]
    assert 900 <= planned[0][2].total_seconds() <= 1500
    assert house.server.sent["dot@b.example"] == 1


async def test_the_rate_is_kept():
    house = House(people(200), shards=1, rate_per_s=100.0, burst=10)
    loop = asyncio.get_running_loop()
    async with house.running():
        began = loop.time()
        await house.until(lambda: sum(house.server.sent.values()) >= 50)
        took = loop.time() - began
        assert took >= (50 - 10 - 4) / 100 * 0.9
        await asyncio.sleep(0.3)
        assert sum(house.server.sent.values()) <= (loop.time() - began + 0.1) * 100 + 10
    assert sum(house.server.sent.values()) > 60


async def test_connections_grow_with_need_up_to_what_is_granted_and_carry_so_many_messages():
    house = House(people(120), shards=1, connections_max=3, messages_per_connection=10)
    house.server.delay_s = 0.002
    async with house.running():
        await house.until_states(accepted=120)
    assert house.server.open_most == 3
    assert house.server.opened >= 12
    assert max(house.server.bursts) <= 4


async def test_a_pause_is_felt_within_the_burst_and_nothing_is_lost():
    house = House(people(40), shards=1)
    house.server.delay_s = 0.02
    async with house.running() as sender:
        await house.until(lambda: len(house.server.sent) >= 3)
        shard = house.shards.shards[0]
        decision = shard.run(SetCampaign(None, 7, CampaignState.PAUSED, "", 2))
        for push in decision.pushes:
            await getattr(sender, push.method)(*push.arguments)
        sent = len(house.server.sent)
        await asyncio.sleep(0.3)
        assert len(house.server.sent) <= sent + 4  # those on the wire, one per connection
        sent = len(house.server.sent)
        await house.until_states(accepted=sent, planned=40 - sent)
        shard.run(SetCampaign(None, 7, CampaignState.RUNNING, "", 3))
        await house.until_states(accepted=40)
    assert set(house.server.sent.values()) == {1}


async def test_a_person_is_withdrawn_while_a_burst_is_on_the_wire():
    house = House(people(4), shards=1)
    house.server.gate = asyncio.Event()
    async with house.running() as sender:
        await house.until(lambda: bool(house.server.bursts))
        refs = [m.ref for x in sender.sending.leases.values() for m in x.messages.values()]
        await sender.revoke(None, [tuple(refs[-1])])
        house.server.gate.set()
        # The whole rest of the burst went back; the shard had nobody suppressed, so all get it.
        await house.until_states(accepted=4)
    assert set(house.server.sent.values()) == {1}


async def test_lost_answers_of_shards_are_asked_for_again():
    house = House(people(20), shards=2)
    house.shards.lose.update({"Lease": 2, "Settle": 2})
    async with house.running():
        await house.until_states(accepted=20)
    assert set(house.server.sent.values()) == {1}


async def test_a_shard_that_is_away_does_not_stop_the_others():
    house = House(people(20), shards=2)
    async with house.running():
        house.shards.away.add(1)
        await house.until(lambda: len(house.server.sent) >= 10)
        house.shards.away.clear()
        await house.until_states(accepted=20)


async def test_a_lane_that_cannot_connect_pauses_and_its_messages_stay_planned():
    house = House(people(10), shards=1)
    house.server.refuse = [Reply(Verdict.NOT_SENT, 421, "4.3.2 busy", "congested")] * 3
    async with house.running() as sender:
        await house.until(lambda: len(house.server.refuse) <= 1)
        (lane,) = (await sender.status())["lanes"]
        assert lane["connection_failures"] >= 2 and "4.3.2 busy" in lane["trouble"]
        await house.until_states(accepted=10)
    assert {a for (a,) in house.shards.ledger("attempts")} == {1}


async def test_without_throttle_or_content_nothing_goes_out_and_nothing_is_lost():
    house = House(people(10), shards=1)
    house.throttle.away = True
    async with house.running():
        await asyncio.sleep(0.1)
        assert not house.server.sent and house.shards.states() == Counter(planned=10)
        house.throttle.away = False
        house.composers.away = True
        await house.until(lambda: house.shards.asked["Settle"] > 0)
        house.composers.away = False
        await house.until_states(accepted=10)
    assert set(house.server.sent.values()) == {1}


async def test_an_append_that_is_refused_sends_nothing_until_the_store_is_back():
    house = House(people(10), shards=1)
    async with house.running():
        put = house.objects.put_if_absent

        def fail(path: str, data: bytes) -> None:
            raise StoreUnavailable("disk full")

        house.objects.put_if_absent = fail
        await asyncio.sleep(0.1)
        sent = sum(house.server.sent.values())
        await asyncio.sleep(0.1)
        assert sum(house.server.sent.values()) == sent
        house.objects.put_if_absent = put
        await house.until_states(accepted=10)
    assert set(house.server.sent.values()) == {1}


async def test_a_crash_on_the_wire_leaves_only_what_was_attempted_uncertain():
    house = House(people(40), shards=2)
    house.server.gate = asyncio.Event()
    first = house.sender()
    await first.start()
    await first.assign("relay", "*", None, [0, 1])
    await house.until(lambda: len(house.server.bursts) > 0)
    await asyncio.sleep(0.05)
    on_wire = sum(house.server.bursts)
    await first.stop()  # as good as killed: nothing is settled
    house.server.gate = None
    assert house.shards.states()["leased"] > 0

    async with house.running():
        await house.until(lambda: house.shards.states()["accepted"] >= 40 - 4 * 4)
        await house.until(lambda: house.shards.states()["leased"] == 0)
        await house.until(lambda: house.shards.states()["planned"] == 0)
    states = house.shards.states()
    assert states["accepted"] + states["uncertain"] == 40
    assert states["uncertain"] >= on_wire > 0
    assert set(house.server.sent.values()) == {1}


async def test_an_overtaken_incarnation_ends_before_it_sends_more():
    house = House(people(60), shards=1)
    house.server.delay_s = 0.01
    old = house.sender()
    await old.start()
    await old.assign("relay", "*", None, [0])
    await house.until(lambda: len(house.server.sent) >= 8)
    async with house.running() as new:
        await house.until(lambda: bool(house.ended))
        assert "must stop" in house.ended[0]
        await house.until(lambda: house.shards.states()["planned"] == 0)
        await house.until(lambda: not new.sending.leases)
        with pytest.raises(NotReady):
            await old.revoke(7)
    await old.stop()
    states = house.shards.states()
    assert states["accepted"] + states["uncertain"] == 60
    assert max(house.server.sent.values()) == 1
    assert len(house.ended) == 1


async def test_the_journal_is_truncated_to_what_is_needed():
    settings = SenderSettings(
        append_gap_s=0.0,
        settle_after_s=0.02,
        truncate_every_entries=5,
        lane=replace(QUICK.lane, lease_rows_max=8),
    )
    house = House(people(60), shards=1)
    async with house.running(settings) as sender:
        await house.until_states(accepted=60)
        assert len(house.objects.list("default/journal/sender=00/")) < sender.sending.tail


async def test_calls_before_the_start_are_not_ready():
    sender = House([]).sender()
    with pytest.raises(NotReady):
        await sender.assign("relay", "*", None, [0])
    with pytest.raises(NotReady):
        await sender.revoke(7)
    assert (await sender.status())["ready"] is False
    await sender.stop()
