"""The Sender against real shard databases and a real journal; SMTP and content are fakes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from actors.sender import SenderSettings
from manta.delivery.campaign import CampaignState
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.delivery.replies import Reply, Verdict, classify
from manta.delivery.transaction import Envelope
from manta.errors import NotReady, OutcomeUnknown, StoreUnavailable
from tests.unit.sender_house import NOT_SENT, QUICK, UNCERTAIN, House, people


async def test_everybody_gets_one_mail_and_everything_is_settled():
    house = House(people(50))
    async with house.running() as sender:
        await house.until_states(accepted=50)
        assert set(house.server.sent.values()) == {1} and len(house.server.sent) == 50
        await house.until(lambda: not sender.sending.leases)
        assert sender.sending.low_water == sender.sending.tail + 1
        await house.until(lambda: not sender._lanes)
        assert not any(house.throttle.held.values()) and house.server.open == 0
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
        "the mailbox does not exist",
    ]
    assert (550, "the mailbox does not exist", "5.1.1 who?") in [row[:3] for row in rows]
    planned = house.shards.ledger("reply_code, attempts, due_at - changed_at", "state = 'planned'")
    assert [row[:2] for row in planned] == [(451, 1)]
    assert 900 <= planned[0][2].total_seconds() <= 1500
    assert house.server.sent["dot@b.example"] == 1


async def test_the_rate_is_kept():
    house = House(people(200), shards=1, rate_per_s=100.0, burst=10)
    clock, call = house.throttle.clock, house.throttle.call
    asked: list[float] = []  # when there were permits at first: whatever the machine, not before

    async def timed(method, *arguments, **more):
        if method == "grant":
            asked.append(clock.monotonic())
        return await call(method, *arguments, **more)

    house.throttle.call = timed
    async with house.running():
        for messages in (50, 80, 110):
            await house.until(lambda least=messages: sum(house.server.sent.values()) >= least)
            sent = sum(house.server.sent.values())
            assert sent <= (clock.monotonic() - asked[0]) * 100 + 10


async def test_connections_grow_with_need_up_to_what_is_granted_and_carry_so_many_messages():
    house = House(people(120), shards=1, connections_max=3, messages_per_connection=10)
    house.server.delay_s = 0.01
    async with house.running():
        await house.until_states(accepted=120)
    assert 2 <= house.server.open_most <= 3
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


async def test_a_connection_that_was_closed_while_idle_is_replaced_before_anything_is_attempted():
    house = House(people(4), shards=1, connections_max=1)
    async with house.running(replace(QUICK, lane=replace(QUICK.lane, idle_s=5.0))):
        await house.until_states(accepted=4)
        house.server.last.is_open = False
        shard = house.shards.shards[0]
        shard.person("late@b.example")
        shard.answer(PlanCampaign(7))
        await house.until_states(accepted=5)
    assert house.server.opened == 2
    assert house.shards.ledger("attempts, reason", "attempts <> 1") == []


async def test_a_slow_lane_keeps_no_connection_while_it_waits_for_permits():
    house = House(people(10), shards=1, rate_per_s=0.1, burst=1)
    async with house.running(replace(QUICK, lane=replace(QUICK.lane, idle_s=0.05))):
        await house.until_states(accepted=1, planned=9)
        await asyncio.sleep(0.5)
    assert house.server.opened <= 2


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
    await first.assign(house.everything([0, 1]))
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
    await old.assign(house.everything([0]))
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
    house = House([])
    sender = house.sender()
    with pytest.raises(NotReady):
        await sender.assign(house.everything([0]))
    with pytest.raises(NotReady):
        await sender.revoke(7)
    assert (await sender.status())["ready"] is False
    await sender.stop()


async def test_a_lane_given_during_the_take_over_is_refused_and_does_no_harm():
    house = House(people(3))
    sender = house.sender()
    sender._ports = await sender._find_ports()  # as far as a start comes before it takes over
    with pytest.raises(NotReady):
        await sender.assign(house.everything([0]))
    assert not sender.ended and not sender._lanes


async def test_the_start_waits_for_shards_and_ends_where_its_own_fence_is_undecided():
    house = House(people(4), shards=2)
    house.shards.away.add(1)
    sender = house.sender()
    start = asyncio.ensure_future(sender.start())
    await asyncio.sleep(0.1)
    assert not start.done() and not house.objects.list("default/journal/sender=00/")
    house.shards.away.clear()
    house.shards.lose.update({"FenceSender": 1, "SenderKnown": 1})
    await start
    assert (await sender.status())["epoch"] == 1
    await sender.stop()

    def lose(path: str, data: bytes) -> None:
        raise OutcomeUnknown("time-out")

    house.objects.put_if_absent = lose
    undecided = house.sender()
    await undecided.start()
    assert len(house.ended) == 1
    with pytest.raises(NotReady):
        await undecided.revoke(7)
    await undecided.stop()
