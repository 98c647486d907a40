"""Lanes beside each other: sites that cannot be reached, domains that take no mail, what a grant
forbids, connections that a server closes; and what Reputation hears of it all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from manta.delivery.lanes import Lane, Site
from manta.delivery.planning import ExpireRows
from manta.delivery.replies import Reply, Verdict, classify
from manta.delivery.reputation.actions import Action, ActionKind, Scope
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.observations import Seen
from manta.delivery.retry import BackoffPolicy
from manta.delivery.routing.assignments import Assignment
from manta.delivery.routing.sites import NULL_MX
from manta.delivery.throttle import budgets as throttle
from manta.delivery.throttle.budgets import Connections
from manta.delivery.transaction import Envelope
from manta.errors import InvalidRequest
from tests.unit.sender_house import LANE, NOT_SENT, QUICK, SITE, House, people

REFUSED = Reply(Verdict.NOT_SENT, 0, "mx.a.example [192.0.2.1]: timed out", "not sent")


class Direct(House):
    """Each domain has a site of its own, save those in ``refusals``."""

    def __init__(self, people: Sequence[str], **more) -> None:
        super().__init__(people, **more)
        self.domains = sorted({email.rpartition("@")[2] for email in people})
        self.refusals: dict[str, str] = {}
        self.assigns = self.by_site

    def by_site(self, shards: Sequence[int]) -> list[Assignment]:
        given = [self.assignment(domain, shards) for domain in self.domains]
        return [each for each in given if each.due]

    def assignment(self, domain: str, shards: Sequence[int]) -> Assignment:
        refusal = self.refusals.get(domain, "")
        site = Site(f"mx.{domain}", domain, () if refusal else ((f"mx.{domain}",),), refusal)
        due = {}
        for shard in shards:
            sql = "SELECT count(*) FROM ledger WHERE due_at <= ? AND domain = ?"
            ((due[shard],),) = self.shards.shards[shard].rows(sql, self.clock.now(), domain)
        lane = Lane("relay", "relay", site.name, site.provider)
        return Assignment(lane, site, (domain,), (), {s: rows for s, rows in due.items() if rows})


def mailboxes(*domains: str, each: int = 5) -> list[str]:
    return [f"p{i}@{domain}" for domain in domains for i in range(each)]


async def test_each_site_has_its_own_connections_and_rows_carry_their_provider() -> None:
    house = Direct(mailboxes("a.example", "b.example", "c.example"))
    async with house.running() as sender:
        await house.until_states(accepted=15)
        await house.until(lambda: not sender._lanes)
        await house.until(lambda: not any(house.throttle.held.values()))
    assert {site.name for _, site, _ in house.server.connected} == {
        f"mx.{d}.example" for d in "abc"
    }
    assert Counter(house.shards.ledger("provider, source")) == {
        (f"{d}.example", "relay"): 5 for d in "abc"
    }
    assert max(house.throttle.wanted) <= 5, "no permits beyond what is due"


async def test_a_site_that_cannot_be_reached_keeps_nobody_else_waiting() -> None:
    house = Direct(mailboxes("a.example", "b.example"), shards=1)
    house.server.unreachable["mx.a.example"] = REFUSED
    lane = replace(
        QUICK.lane,
        backoff=BackoffPolicy(first_wait_s=0.05, wait_s_max=0.5),
        note_after_failures=2,
        hold_soon_s=0.02,
    )
    async with house.running(replace(QUICK, lane=lane)) as sender:
        await house.until_states(accepted=5, planned=5)
        await house.until(lambda: house.shards.asked["NoteTrouble"] > 0)
        (status,) = [x for x in (await sender.status())["lanes"] if x["site"] == "mx.a.example"]
        assert status["connection_failures"] >= 2 and "timed out" in status["trouble"]
        dead = Lane("relay", "relay", "mx.a.example", "a.example")
        await house.until(lambda: house.throttle.held[dead] == 0)
        assert house.throttle.asked["grant", dead] == 0, "nobody waits for its permits"
        await house.until(lambda: house.reputation.count(Seen.UNREACHED) >= 2)
        assert all(o.is_internal for o in house.reputation.observed if o.seen is Seen.UNREACHED)
        assert house.shards.ledger("attempts", "state = 'planned'") == [(0,)] * 5
    (shard,) = house.shards.shards
    ((end,),) = shard.rows("SELECT max(expires_at) FROM ledger")
    shard.now = end
    assert shard.answer(ExpireRows()) == 5
    reasons = {reason for (reason,) in house.shards.ledger("reason", "state = 'expired'")}
    (reason,) = reasons
    assert reason.startswith("expired before it was sent: no connection: mx.a.example [192.0.2.1]")


async def test_a_server_that_turns_us_away_is_heard_of() -> None:
    house = Direct(mailboxes("a.example"), shards=1)
    house.server.refuse = [Reply(Verdict.NOT_SENT, 421, "4.7.0 [TSS04] deferred", "not sent")]
    async with house.running():
        await house.until_states(accepted=5)
        await house.until(lambda: house.reputation.count(Seen.ACCEPTED) == 5)
    (unreached,) = [o for o in house.reputation.observed if o.seen is Seen.UNREACHED]
    assert (unreached.code, unreached.text) == (421, "4.7.0 [TSS04] deferred")
    assert not unreached.is_internal and unreached.provider == "a.example"


async def test_what_can_never_be_delivered_fails_without_permits_and_without_the_network() -> None:
    house = Direct(mailboxes("a.example", "dead.example", each=30))
    house.refusals["dead.example"] = "no such domain"
    async with house.running():
        await house.until_states(accepted=30, failed=30)
        await house.until(lambda: house.reputation.count(Seen.FAILED) == 30)
    assert Counter(house.shards.ledger("reason, bounce_class, category", "state = 'failed'")) == {
        ("no such domain", "soft", "BadDomain"): 30
    }
    assert {lane.site for _, lane in house.throttle.asked} == {"mx.a.example"}
    assert {site.name for _, site, _ in house.server.connected} == {"mx.a.example"}
    told = [o for o in house.reputation.observed if o.seen is Seen.FAILED]
    assert all(o.is_internal and o.text == "no such domain" for o in told)
    assert {o.sending_domain for o in told} == {"shop.example"}


@pytest.mark.parametrize("refusal, suppressed", [("no such domain", 0), (NULL_MX, 4)])
async def test_a_lying_dns_suppresses_nobody(refusal: str, suppressed: int) -> None:
    house = Direct(mailboxes("dead.example", each=4))
    house.refusals["dead.example"] = refusal
    async with house.running():
        await house.until_states(failed=4)
    assert sum(len(s.rows("SELECT * FROM suppressions")) for s in house.shards.shards) == suppressed


async def test_domains_that_have_lanes_of_their_own_are_left_to_them() -> None:
    house = House(mailboxes("a.example", "b.example"))
    given = Assignment(LANE, SITE, None, ("a.example",), {0: 9, 1: 9})
    house.assigns = lambda shards: [given]
    async with house.running():
        await house.until_states(accepted=5, planned=5)
    assert {domain for (domain,) in house.shards.ledger("domain", "state = 'planned'")} == {
        "a.example"
    }


async def test_a_bounced_campaign_fails_with_the_cause_and_without_the_network() -> None:
    house = House(people(20))
    house.throttle.says = {"bounces": ((7, "blocked by an operator"),)}
    async with house.running():
        await house.until_states(failed=20)
    assert not house.server.sent
    reasons = {reason for (reason,) in house.shards.ledger("reason")}
    assert reasons == {"administratively bounced: blocked by an operator"}


async def test_what_a_dead_site_holds_is_bounced_without_a_connection() -> None:
    house = Direct(mailboxes("a.example", "b.example"))
    house.server.unreachable["mx.a.example"] = REFUSED
    now = house.clock.now()
    settings = replace(QUICK.lane, backoff=BackoffPolicy(0.05, wait_s_max=0.1))
    async with house.running(replace(QUICK, lane=settings)):
        await house.until_states(accepted=5, planned=5)
        scope = Scope(provider="a.example")
        bounce = Action(1, ActionKind.BOUNCE, scope, "given up", now, now + timedelta(hours=1))
        house.throttle.budgets.obey(Law(1, "", (bounce,)))
        await house.until_states(accepted=5, failed=5)
    reasons = {reason for (reason,) in house.shards.ledger("reason", "state = 'failed'")}
    assert reasons == {"administratively bounced: given up"}


@pytest.mark.parametrize("method", ["hold", "grant"])
async def test_what_the_throttle_refuses_one_lane_is_that_lanes_own(method: str) -> None:
    house = Direct(mailboxes("a.example", "b.example"))
    call = house.throttle.call

    async def refuses(asked: str, *arguments: Any, **more: Any) -> Any:
        if asked == method and Lane(*arguments[1]).site == "mx.a.example":
            raise InvalidRequest("no egress source 'relay'", path="lane.source")
        return await call(asked, *arguments, **more)

    house.throttle.call = refuses
    async with house.running() as sender:
        await house.until_states(accepted=5, planned=5)
        lanes = {lane["site"]: lane["trouble"] for lane in (await sender.status())["lanes"]}
        assert "no egress source" in lanes["mx.a.example"]
        house.throttle.call = call
        await house.until_states(accepted=10)
    assert not house.ended


async def test_nobody_connects_to_where_nothing_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Direct(mailboxes("a.example"), shards=1)
    now = house.clock.now()
    action = Action(
        1, ActionKind.SUSPEND, Scope(provider="a.example"), "blocked", now, now + timedelta(hours=1)
    )
    house.throttle.budgets.obey(Law(1, "", (action,)))
    lane = Lane("relay", "relay", "mx.a.example", "a.example")
    monkeypatch.setattr(throttle, "WAIT_SUSPENDED_S_MAX", 0.15)
    async with house.running():
        await house.until(lambda: house.throttle.asked["hold", lane] >= 1)
        await asyncio.sleep(0.1)
        assert house.throttle.asked["hold", lane] == 1, "it does not ask again and again"
        await house.until(lambda: house.throttle.asked["hold", lane] >= 2)
        assert not house.server.connected and not house.throttle.asked["grant", lane]
        house.throttle.budgets.obey(Law(2))
        await house.until_states(accepted=5)


async def test_a_suspended_campaign_is_not_leased() -> None:
    house = House(people(6), shards=1)
    house.throttle.says = {"without": (7,)}
    lane = replace(QUICK.lane, idle_s=0.1, in_vain_s=0.5)
    async with house.running(replace(QUICK, lane=lane)):
        await house.until(lambda: house.shards.asked["Lease"] >= 1)
        await asyncio.sleep(0.4)  # it ends, is assigned again, and waits on
        assert house.shards.asked["Lease"] == 1 and house.shards.states() == {"planned": 6}
        house.throttle.says = {}
        await house.until_states(accepted=6)


async def test_a_source_that_warms_up_takes_the_engaged_only() -> None:
    house = House(people(6), shards=1)
    (shard,) = house.shards.shards
    ((first,),) = shard.rows("SELECT min(subscriber_id) FROM ledger")
    ((key,),) = shard.rows("SELECT min(message_key) FROM ledger")
    shard.load("ledger", {"subscriber_id": first, "message_key": key, "engaged_at": shard.now})
    house.throttle.says = {"warming": True}
    lane = replace(QUICK.lane, in_vain_s=0.3)
    async with house.running(replace(QUICK, lane=lane)):
        await house.until_states(accepted=1, planned=5)
        asked = house.shards.asked["Lease"]
        await asyncio.sleep(0.2)
        assert house.shards.asked["Lease"] <= asked + 1, "it does not ask again and again"
        house.throttle.says = {}
        await house.until_states(accepted=6)


async def test_a_server_that_closes_after_so_many_messages_delays_nobody() -> None:
    """421 on a connection that has carried mail means the connection."""
    house = House(people(12), shards=1, connections_max=1)
    carried = Counter[object]()

    def reply(envelope: Envelope) -> Reply:
        connection = house.server.last
        carried[connection] += 1
        if carried[connection] > 3:
            connection.is_open = False
            return classify(421, "4.7.0 too many messages on this connection")
        return classify(250, "ok")

    house.server.reply = reply
    async with house.running() as sender:
        await house.until_states(accepted=12)
        assert sender.counts["deferred"] == 0
        await house.until(lambda: house.reputation.count(Seen.ACCEPTED) == 12)
    assert house.shards.ledger("attempts", "attempts <> 1") == []
    deferred = [o for o in house.reputation.observed if o.seen is Seen.DEFERRED]
    assert deferred and {o.code for o in deferred} == {421}


async def test_a_message_that_gets_421_time_and_again_is_deferred() -> None:
    house = House(people(4), shards=1, connections_max=1)

    def reply(envelope: Envelope) -> Reply:
        if envelope.rcpt_to.startswith("p2"):
            house.server.last.is_open = False
            return classify(421, "4.3.0 not you")
        return classify(250, "ok")

    house.server.reply = reply
    async with house.running() as sender:
        await house.until_states(accepted=3, planned=1)
        await house.until(lambda: sender.counts["deferred"] == 1)
        await house.until(lambda: house.shards.ledger("attempts", "state = 'planned'") == [(1,)])
    assert house.server.sent["p2@b.example"] <= 3


async def test_reputation_hears_what_servers_said_and_by_whom() -> None:
    house = Direct(["ok@a.example", "later@a.example", "never@a.example", "lost@a.example"])
    replies = {
        "later@a.example": classify(451, "4.7.1 Greylisted, please try again later"),
        "never@a.example": classify(550, "5.1.1 user unknown"),
    }
    lost = [NOT_SENT]

    def reply(envelope: Envelope) -> Reply:
        if envelope.rcpt_to.startswith("lost") and lost:
            return lost.pop()
        return replies.get(envelope.rcpt_to, classify(250, "ok"))

    house.server.reply = reply
    async with house.running():
        await house.until_states(accepted=2, planned=1, failed=1)
        await house.until(lambda: sum(o.messages for o in house.reputation.observed) == 4)
    seen = {o.seen: o for o in house.reputation.observed}
    assert seen.keys() == {Seen.ACCEPTED, Seen.DEFERRED, Seen.FAILED}
    failed = seen[Seen.FAILED]
    assert (failed.code, failed.text, failed.bounce_class) == (550, "5.1.1 user unknown", "hard")
    assert failed[2:7] == ("shop.example", "relay", "a.example", "mx.a.example", 7)
    assert seen[Seen.DEFERRED].category == "Greylisted"
    assert not any(o.is_internal for o in house.reputation.observed)


async def test_a_sender_takes_no_more_lanes_than_it_can_keep() -> None:
    house = Direct(mailboxes("a.example", "b.example", "c.example", each=2), shards=1)
    house.server.gate = asyncio.Event()
    async with house.running(replace(QUICK, lanes_max=2)) as sender:
        await house.until(lambda: len(sender._lanes) == 2)
        due = [house.assignment(d, [0])._replace(due={0: 2}) for d in house.domains]
        assert await sender.assign(due) == [True, True, False]
        house.server.gate.set()
        await house.until_states(accepted=6)


async def test_new_connections_go_to_the_site_as_it_is_now() -> None:
    house = Direct(mailboxes("a.example", each=2), shards=1)
    house.server.unreachable["mx.a.example"] = REFUSED
    async with house.running():
        await house.until(lambda: bool(house.server.connected))
        given = house.assignment("a.example", [0])
        moved = given.site._replace(name="mx.new.example")
        house.assigns = lambda shards: [given._replace(site=moved)]
        await house.until_states(accepted=2)
    assert house.server.connected[-1][1] == moved


async def test_a_fault_while_connecting_is_the_lanes_own() -> None:
    house = Direct(mailboxes("a.example", "b.example"), shards=1)
    connect = house.connect

    async def faulty(lane: Lane, site: Site, held: Connections) -> object:
        if site.name == "mx.a.example":
            raise ZeroDivisionError("a bug")
        return await connect(lane, site, held)

    house.connect = faulty
    async with house.running() as sender:
        await house.until_states(accepted=5, planned=5)
        lanes = {lane["site"]: lane["trouble"] for lane in (await sender.status())["lanes"]}
        assert "a bug" in lanes["mx.a.example"]
    assert not house.ended
