"""From changes to the outbox, and from there to the courier and back: a real store, no network."""

from __future__ import annotations

import json
from datetime import timedelta
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from manta.clock import ManualClock
from manta.command import Change, Op
from manta.errors import InvalidRequest
from manta.people.definitions import ENDPOINT, SEGMENT, SetDefinition
from manta.schema import TABLES
from manta.store.shard import ShardStore
from manta.webhooks import hooks, outbox, queries
from manta.webhooks.bodies import BODY_BYTES_MAX
from manta.webhooks.deriving import OutboxDeriver
from manta.webhooks.hooks import DeliveriesHook
from manta.webhooks.outbox import (
    CloseEndpoint,
    DiscardDeliveries,
    LeaseDeliveries,
    ReplayDeliveries,
    Settled,
    SettleDeliveries,
    TrimOutbox,
)
from manta.webhooks.retries import SCHEDULE_S, Answered
from tests.faults import MemoryObjects
from tests.unit.store_shard import START, delete, event, person, upsert, write

ANN, BOB = 101, 102
OK, BAD = Answered(200, "ok"), Answered(500, "no")


class House:
    """A shard with the deriver and the hook."""

    def __init__(self, objects: MemoryObjects | None = None, nonce: int = 1) -> None:
        self.clock = ManualClock(START)
        self.objects = objects or MemoryObjects(self.clock)
        self.store = ShardStore(
            self.objects,
            "default",
            0,
            bytes([nonce]) * 16,
            self.clock,
            Random(nonce),
            hooks=(DeliveriesHook(self.clock),),
            derivers=(OutboxDeriver(),),
        )
        self.store.recover()

    def run(self, *commands: Any) -> list[Any]:
        outcomes = self.store.execute(commands)
        assert not any(outcome.failed for outcome in outcomes), outcomes
        return [outcome.answer for outcome in outcomes]

    def endpoint(self, id: int = 1, version: int = 1, **fields: Any) -> None:
        body = {"types": ["*"], "ordered": False, "enabled": True, "version": version} | fields
        self.run(SetDefinition(None, ENDPOINT, str(id), version, body))

    def told(self, endpoint: int = 1) -> list[dict[str, Any]]:
        rows = self.store.database.rows(
            "SELECT body FROM outbox WHERE endpoint_id = ? ORDER BY sequence", [endpoint]
        )
        return [json.loads(body) for (body,) in rows]

    def rows(self, columns: str = "state, attempts, due_at, status, answer") -> list[Any]:
        return self.store.database.rows(f"SELECT {columns} FROM outbox ORDER BY sequence")

    def lease(self, rows: int = 10, endpoint: int = 1) -> list[outbox.Delivery]:
        (leased,) = self.run(LeaseDeliveries(endpoint, rows, 90.0))
        return leased

    def settle(self, deliveries: list[outbox.Delivery], answered: Answered | None = OK) -> int:
        settled = tuple(Settled(each.delivery_id, each.attempts, answered) for each in deliveries)
        (counted,) = self.run(SettleDeliveries(1, settled))
        return counted

    def wanted(self, kind: type) -> list[Any]:
        """The commands of a kind that the shard's hooks ask for, at least one."""
        found = [each for each in self.store.run_hooks().commands if isinstance(each, kind)]
        assert found
        return found

    def ask(self, query: Any, **arguments: Any) -> Any:
        return query(self.store.database, self.store.context(), arguments)

    def happens(self, count: int, first: int = 0, who: int = ANN) -> None:
        for n in range(first, first + count):
            self.run(write(event(who, "bought", self.clock.now(), event_id=n, item=f"i{n}")))


@pytest.fixture
def house():
    built = House()
    built.run(
        write(
            person(ANN, email="ann@x.example"),
            person(BOB, email="bob@x.example"),
            upsert(
                "identities",
                {"kind": "external_id", "value": "A-1", "subscriber_id": ANN, "state": "confirmed"},
            ),
        )
    )
    yield built
    built.store.close()


# -- what is told ----------------------------------------------------------------------------------


def test_an_event_is_told_with_its_person_in_the_group_that_stores_it(house):
    house.endpoint(types=["event.bought"])
    bought = event(
        ANN,
        "bought",
        event_id=5,
        item='a "b"\n€',
        amount=12.5,
        campaign_id=7,
        message_key=-3,
        properties='{"order": 17}',
    )
    entries = house.store.sequence
    house.run(write(bought, event(ANN, "viewed", event_id=6)))
    assert house.store.sequence == entries + 1
    assert house.told() == [
        {
            "type": "event.bought",
            "timestamp": "2026-03-01T12:00:00.000000Z",
            "data": {
                "subscriber_id": "0000000000035",
                "email": "ann@x.example",
                "external_id": "A-1",
                "event": {
                    "id": "0000000000005",
                    "type": "bought",
                    "item": 'a "b"\n€',
                    "amount": 12.5,
                    "campaign_id": 7,
                    "message_key": "fzzzzzzzzzzzx",
                    "properties": {"order": 17},
                },
            },
        }
    ]


def test_history_messages_and_erasures_have_types_of_their_own(house):
    house.endpoint()
    house.run(
        SetDefinition(None, SEGMENT, "3", 1, {"name": "Bern", "rule": {"all": [{"x": 1}] * 20}})
    )
    moved = {"segment": 3, "member": True, "source": "rule"}
    house.run(
        write(
            event(ANN, "profile_created", event_id=1, properties='{"source":"api"}'),
            event(ANN, "profile_changed", event_id=2, properties='{"city":{"old":1,"new":2}}'),
            event(ANN, "consent_changed", event_id=3, properties='{"topic":"news"}'),
            event(ANN, "membership_changed", event_id=4, properties=json.dumps(moved)),
            event(
                ANN,
                "membership_changed",
                event_id=5,
                properties=json.dumps(moved | {"member": False}),
            ),
            event(0, "suppression_changed", event_id=6, properties='{"address":"x@y.example"}'),
            event(ANN, "received", event_id=7, properties="{}"),
            event(ANN, "people_merged", event_id=8, properties="{}"),
            event(ANN, "sent", event_id=9, campaign_id=1, message_key=2, item="marketing"),
        ),
        write(
            upsert(
                "ledger",
                {"subscriber_id": ANN, "message_key": 1, "state": "planned", "reason": None},
                {"subscriber_id": ANN, "message_key": 2, "state": "failed", "reason": "x"},
            ),
        ),
        write(
            upsert("erasures", {"subscriber_id": BOB, "request_id": "r"}),
            delete("profiles", {"subscriber_id": BOB}),
        ),
    )
    told = house.told()
    assert [each["type"] for each in told] == [
        "person.created",
        "person.changed",
        "consent.changed",
        "segment.entered",
        "segment.left",
        "suppression.changed",
        "person.merged",
        "message.sent",
        "message.failed",
        "person.erased",
    ]
    assert told[3]["data"]["segment"] == {"id": 3, "name": "Bern", "source": "rule"}
    assert told[5]["data"]["subscriber_id"] is None
    assert told[7]["data"]["message"] == {
        "campaign_id": 1,
        "message_key": "0000000000002",
        "item": "marketing",
    }
    assert told[8]["data"]["message"] == {"message_key": "0000000000002", "reason": "x"}
    assert told[9]["data"]["email"] is None


def test_each_endpoint_gets_what_it_asked_for_under_ids_of_its_own(house):
    house.endpoint(1, types=["event.*"])
    house.endpoint(2, types=["segment.entered", "event.viewed"])
    house.endpoint(3, types=["*"], enabled=False)
    house.run(write(event(ANN, "bought", event_id=1), event(BOB, "viewed", event_id=1)))
    found = house.rows("endpoint_id, type, subscriber_id, delivery_id")
    assert [row[:3] for row in found] == [
        (1, "event.bought", ANN),
        (1, "event.viewed", BOB),
        (2, "event.viewed", BOB),
    ]
    assert len({row[3] for row in found}) == 3


def test_the_same_news_counts_once(house):
    house.endpoint()
    once = event(ANN, "bought", event_id=1)
    house.run(write(once), write(once))
    house.run(write(once))
    (delivery,) = house.lease()
    house.settle([delivery])
    house.run(write(once))
    assert [row[0] for row in house.rows()] == ["delivered"]


def test_neither_the_past_nor_copies_of_a_merge_are_told(house):
    house.endpoint()
    house.run(
        write(
            event(ANN, "bought", START - timedelta(days=8), event_id=1),
            event(ANN, "bought", event_id=2, merge_id=4),
            event(ANN, "bought", START - timedelta(days=6), event_id=3),
        )
    )
    assert len(house.told()) == 1


def test_a_body_that_is_too_long_is_cut_and_says_so(house):
    house.endpoint()
    long = json.dumps({"text": "ä" * 15_000}, ensure_ascii=False)
    house.run(write(event(ANN, "bought", event_id=1, item="i", properties=long)))
    ((text,),) = house.rows("body")
    assert len(text.encode()) < BODY_BYTES_MAX
    told = json.loads(text)["data"]
    assert told["cut"] is True
    assert told["event"] == {"id": "0000000000001", "type": "bought", "item": "i"}


def test_an_address_that_changes_is_told_as_it_is_now(house):
    house.endpoint()
    house.happens(1)
    house.run(write(person(ANN, email="new@x.example"), event(ANN, "bought", event_id=50)))
    house.run(
        write(
            delete("identities", {"kind": "external_id", "value": "A-1"}),
            event(ANN, "bought", event_id=51),
        )
    )
    house.happens(1, 52)
    people = [(each["data"]["email"], each["data"]["external_id"]) for each in house.told()]
    assert people == [
        ("ann@x.example", "A-1"),
        ("new@x.example", "A-1"),
        ("new@x.example", None),
        ("new@x.example", None),
    ]


def test_the_outbox_survives_a_crash_and_goes_on_counting():
    first = House()
    first.run(write(person(ANN, email="ann@x.example")))
    first.endpoint()
    first.happens(3)
    (leased, *_) = first.lease(1)
    first.settle([leased])
    before = first.rows("delivery_id, state, sequence, body")
    first.store.close()
    second = House(first.objects, nonce=2)
    assert second.rows("delivery_id, state, sequence, body") == before
    second.happens(1, 10)
    assert [row[0] for row in second.rows("sequence")] == [1, 2, 3, 4]
    second.store.close()


def test_without_endpoints_nothing_is_read_or_written(house):
    house.happens(1)
    assert house.rows() == []
    assert house.store.figures.derivers_failed == 0


# -- leases, attempts, order -----------------------------------------------------------------------


def test_a_lease_holds_until_it_is_settled_or_over(house):
    house.endpoint()
    house.happens(3)
    leased = house.lease(2)
    assert len(leased) == 2
    assert [json.loads(each.body)["type"] for each in leased] == ["event.bought"] * 2
    rest = house.lease()
    assert len(rest) == 1
    assert house.lease() == []
    assert house.settle(leased) == 2
    assert house.settle(leased) == 0  # a second courier with the same answer
    house.clock.advance(91)
    assert house.lease() == rest  # the courier that had it is lost
    states = [row[0] for row in house.rows()]
    assert states == ["delivered", "delivered", "waiting"]


def test_a_delivery_is_tried_by_the_schedule_then_fails(house):
    house.endpoint()
    house.happens(1)
    waits = []
    for attempt in range(len(SCHEDULE_S)):
        (delivery,) = house.lease()
        assert delivery.attempts == attempt
        house.settle([delivery], BAD)
        ((state, attempts, due_at, status, answer),) = house.rows()
        assert (attempts, status, answer) == (attempt + 1, 500, "no")
        if due_at is None:
            assert state == "failed"
            break
        waits.append((due_at - house.clock.now()).total_seconds())
        assert house.lease() == []
        house.clock.advance(waits[-1])
    assert len(waits) == len(SCHEDULE_S) - 1
    for waited, wanted in zip(waits, SCHEDULE_S[1:], strict=True):
        assert wanted <= waited <= wanted * 1.1 + 0.001
    assert house.lease() == []


def test_a_late_settlement_does_not_count_twice(house):
    house.endpoint()
    house.happens(1)
    (late,) = house.lease()
    house.clock.advance(91)
    (again,) = house.lease()
    assert house.settle([again], BAD) == 1
    assert house.settle([late], BAD) == 0
    house.clock.advance(10)
    (third,) = house.lease()
    assert third.attempts == 1


def test_an_ordered_endpoint_hears_in_order_with_one_failure_stopping_all(house):
    house.endpoint(ordered=True)
    house.happens(5)
    first = house.lease(3)
    assert [json.loads(each.body)["data"]["event"]["item"] for each in first] == ["i0", "i1", "i2"]
    assert house.lease() == []  # what comes after waits for these
    house.run(
        SettleDeliveries(
            1,
            (
                Settled(first[0].delivery_id, 0, OK),
                Settled(first[1].delivery_id, 0, BAD),
                Settled(first[2].delivery_id, 0, None),
            ),
        )
    )
    assert house.lease() == []  # i1 waits for its next attempt, and i2 to i4 for it
    house.clock.advance(6)
    second = house.lease()
    items = [json.loads(each.body)["data"]["event"]["item"] for each in second]
    assert items == ["i1", "i2", "i3", "i4"]
    assert [each.attempts for each in second] == [1, 0, 0, 0]


def test_a_disabled_endpoint_gets_nothing_and_can_catch_up(house):
    house.endpoint()
    house.happens(2)
    house.endpoint(version=2, enabled=False)
    house.happens(1, 10)
    assert house.lease() == []
    house.run(*house.wanted(CloseEndpoint))
    assert [(row[0], row[4]) for row in house.rows()] == [("failed", outbox.TURNED_OFF)] * 2
    with pytest.raises(InvalidRequest):
        raise house.store.execute([ReplayDeliveries(None, 1)])[0].answer
    house.endpoint(version=3)
    assert house.run(ReplayDeliveries("k", 1)) == [(2, False)]
    assert len(house.lease()) == 2


def test_a_deleted_endpoint_leaves_nothing(house):
    house.endpoint()
    house.happens(2)
    house.settle(house.lease(1))
    house.run(SetDefinition(None, ENDPOINT, "1", 2, None))
    house.run(*house.wanted(CloseEndpoint))
    assert house.rows() == []


def test_replay_by_time_and_by_id_under_the_same_ids(house):
    house.endpoint()
    house.happens(2)
    house.clock.advance(60)
    later = house.clock.now()
    house.happens(2, 10)
    leased = house.lease()
    house.settle(leased)
    replay = ReplayDeliveries(None, 1, since=later, states=("delivered",))
    assert house.run(replay) == [(2, False)]
    assert [each.delivery_id for each in house.lease()] == [d.delivery_id for d in leased[2:]]
    chosen = (leased[0].delivery_id, 999)
    assert house.run(ReplayDeliveries(None, 1, chosen, states=("delivered",))) == [(1, False)]
    assert house.run(ReplayDeliveries(None, 1)) == [(0, False)]


def test_what_waits_can_be_discarded(house):
    house.endpoint()
    house.happens(3)
    (first, *_) = house.lease(1)
    assert house.run(DiscardDeliveries(None, 1, (first.delivery_id,))) == [(1, False)]
    assert house.settle([first]) == 0
    assert house.run(DiscardDeliveries(None, 1, why="not wanted")) == [(2, False)]
    assert [(row[0], row[4]) for row in house.rows()] == [
        ("discarded", None),
        ("discarded", "not wanted"),
        ("discarded", "not wanted"),
    ]


# -- the hook and the limits -----------------------------------------------------------------------


def test_the_hook_wakes_the_courier_when_something_is_due_and_then_by_the_clock(house):
    house.endpoint(version=4)
    house.happens(1)
    result = house.store.run_hooks()
    (push,) = [push for push in result.pushes if push.to == "courier"]
    assert (push.method, push.arguments) == ("deliveries", (0, [(1, 4)]))
    (delivery,) = house.lease()
    house.settle([delivery], BAD)
    house.clock.advance(1)
    assert house.store.run_hooks().pushes == ()
    (due_at,) = (row[2] for row in house.rows())
    assert house.store.next_wake() == due_at
    house.clock.advance(6)
    assert len(house.store.run_hooks().pushes) == 1
    assert house.ask(hooks.due) == [(1, 4)]
    house.settle(house.lease())
    house.clock.advance(1)
    assert house.store.run_hooks().pushes == ()


def test_the_head_of_an_ordered_endpoint_decides_when_it_is_due(house):
    house.endpoint(ordered=True)
    house.happens(1)
    house.settle(house.lease(), BAD)
    house.happens(1, 5)
    assert house.ask(hooks.due) == []
    house.clock.advance(6)
    assert house.ask(hooks.due) == [(1, 1)]


def test_limits_fail_the_oldest_and_forget_the_old(house, monkeypatch):
    monkeypatch.setattr(outbox, "WAITING_MAX", 3)
    monkeypatch.setattr(outbox, "KEPT_MAX", 2)
    house.endpoint()
    house.happens(5)
    assert TrimOutbox() in house.store.run_hooks().commands
    assert house.run(TrimOutbox()) == [(2, 0)]
    found = house.rows()
    assert [row[0] for row in found] == ["failed", "failed", "waiting", "waiting", "waiting"]
    assert found[0][4] == outbox.CROWDED_OUT
    house.settle(house.lease())
    assert house.run(TrimOutbox()) == [(0, 3)]
    house.clock.advance(8 * 86_400)
    assert TrimOutbox() in house.store.run_hooks().commands
    assert house.run(TrimOutbox()) == [(0, 2)]


def test_long_bodies_are_fewer(house, monkeypatch):
    """What strangers made long does not fill the memory while an endpoint is away."""
    house.endpoint()
    house.happens(4)
    ((size,),) = house.store.database.rows("SELECT max(strlen(body)) FROM outbox")
    monkeypatch.setattr(outbox, "WAITING_BYTES_MAX", 2 * size)
    monkeypatch.setattr(outbox, "KEPT_BYTES_MAX", size)
    assert TrimOutbox() in house.store.run_hooks().commands
    assert house.run(TrimOutbox()) == [(2, 0)]
    assert [row[0] for row in house.rows()] == ["failed", "failed", "waiting", "waiting"]
    assert house.run(TrimOutbox()) == [(0, 1)]
    assert [row[0] for row in house.rows()] == ["failed", "waiting", "waiting"]
    house.clock.advance(10)
    assert TrimOutbox() not in house.store.run_hooks().commands


def test_the_log_and_since_when_an_endpoint_fails(house):
    house.endpoint()
    house.happens(3)
    leased = house.lease()
    house.settle(leased[:1])
    delivered_at = house.clock.now()
    house.clock.advance(60)
    house.happens(1, 10)
    house.settle(leased[1:], BAD)
    house.settle(house.lease(), Answered(None, "nobody there"))
    page = house.ask(queries.deliveries, endpoint_id=1, limit=3)
    assert len(page) == 3
    last = page[-1]
    rest = house.ask(
        queries.deliveries, endpoint_id=1, before=(last["created_at"], last["delivery_id"])
    )
    assert len(rest) == 1
    assert len(house.ask(queries.deliveries, endpoint_id=1, state="delivered")) == 1
    assert house.ask(queries.last_delivered, endpoint_id=1) == delivered_at
    since = house.ask(queries.failing_since, endpoint_id=1, since=delivered_at)
    assert since == START
    assert house.ask(queries.delivery_counts) == [
        (1, "delivered", 1, START),
        (1, "waiting", 3, START),
    ]


def test_a_failing_deriver_stops_nobody(house):
    house.endpoint()
    house.run(SetDefinition(None, ENDPOINT, "2", 1, {"enabled": True}))
    house.happens(1)
    assert house.store.figures.derivers_failed == 1
    assert house.store.database.rows("SELECT count(*) FROM events") == [(1,)]


def test_the_table_is_the_schemas():
    assert set(queries._COLUMNS) < set(TABLES["outbox"].column_names)
    Change("outbox", Op.UPSERT, pa.table({"endpoint_id": [1], "delivery_id": [2]}))
