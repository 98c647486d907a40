"""The reads behind reports."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from manta.command import Change, Context, Op
from manta.delivery.ledger import Accounting
from manta.delivery.outcomes import OutcomeKind
from manta.delivery.planning import ExpireRows
from manta.delivery.queries import QUERIES
from manta.errors import InvalidRequest
from manta.store.retention import Retain, is_old
from manta.store.settings import ShardSettings
from tests.unit.delivery_shard import CAMPAIGN, SendingShard, refs


@pytest.fixture(scope="module")
def shard() -> SendingShard:
    """Six people: one suppressed, one accepted who opened twice, one failed, three planned."""
    shard = SendingShard(6)
    shard.load("consents", shard.consent(6, "unsubscribed"))
    shard.start()
    one, two = refs(shard.lease(limit=2))
    shard.settle(
        1,
        shard.outcome(one, OutcomeKind.ACCEPTED, reply_code=250, reply="ok"),
        shard.outcome(two, OutcomeKind.FAILED, reason="no mailbox", reply_code=550, reply="5.1.1"),
    )
    event = {"subscriber_id": 1, "type": "opened", "campaign_id": CAMPAIGN} | {
        "message_key": one.message_key
    }
    at = shard.now + timedelta(minutes=3)
    event |= {"occurred_at": at, "properties": None, "merge_id": None}
    events = [event | {"event_id": i, "human": None} for i in (1, 2)]
    scan = {"type": "clicked", "subscriber_id": 2, "message_key": two.message_key}
    events += [event | scan | {"event_id": 3 + i, "human": 0.02} for i in range(3)]
    events.append(event | {"event_id": 9, "type": "clicked", "human": 0.9})
    copy = {"event_id": 9, "subscriber_id": 3, "merge_id": 5}  # of a merge: counted once
    events.append(event | {"type": "clicked", "human": 0.9} | copy)
    shard.write(Change("events", Op.INSERT, pa.Table.from_pylist(events)))
    return shard


def ask(shard: SendingShard, name: str, **arguments: Any) -> Any:
    context = Context(shard.now, shard.random, "w", 0)
    return QUERIES[name](shard.database, context, {"campaign_id": CAMPAIGN} | arguments)


def test_accounting(shard: SendingShard) -> None:
    answer = ask(shard, "accounting")
    assert Accounting.of(answer["states"]).holds_for(6)
    assert (answer["pending"], answer["planned_total"]) == (3, 6)
    assert ("suppressed", "unsubscribed", 1) in answer["reasons"]


def test_failures_keep_an_example_of_the_reply(shard: SendingShard) -> None:
    (failure,) = ask(shard, "failures")
    assert failure["reason"] == "no mailbox" and failure["example"] == "5.1.1"


def test_timeline(shard: SendingShard) -> None:
    steps = [(row["at"], row["what"], row["count"]) for row in ask(shard, "timeline")]
    start, later = shard.now, shard.now + timedelta(minutes=3)
    assert (start, "accepted", 1) in steps and (later, "opened", 2) in steps
    assert (later, "clicked", 1) in steps and (later, "clicked_by_machine", 3) in steps
    with pytest.raises(InvalidRequest):
        ask(shard, "timeline", step_s=0)


def test_report_counts_unique_and_total(shard: SendingShard) -> None:
    report = ask(shard, "campaign_report")
    opened = {"unique": 1, "unique_all": 1, "by_people": 2, "total": 2, "by_machine": 0}
    assert report["events"]["opened"] == opened
    assert report["events"]["sent"]["total"] == 1
    clicked = {"unique": 1, "unique_all": 2, "by_people": 1, "total": 4, "by_machine": 3}
    assert report["events"]["clicked"] == clicked
    assert report["events"]["complained"]["total"] == 0


def test_recipients_come_in_pages(shard: SendingShard) -> None:
    first = ask(shard, "recipients", limit=4)
    last = first[-1]
    rest = ask(shard, "recipients", after=(last["subscriber_id"], last["message_key"]))
    assert [row["subscriber_id"] for row in first + rest] == [1, 2, 3, 4, 5, 6]
    assert first[1]["email"] == "p2@d0.example" and first[1]["reply"] == "5.1.1"
    acts = [[row[n] for n in ("opens", "opens_all", "clicks", "clicks_all")] for row in first[:3]]
    assert acts == [[2, 2, 1, 1], [0, 0, 0, 3], [0, 0, 0, 0]]
    (failed,) = ask(shard, "recipients", state="failed")
    assert failed["subscriber_id"] == 2
    for wrong in ({"limit": 0}, {"limit": 10_000}, {"state": "lost"}):
        with pytest.raises(InvalidRequest):
            ask(shard, "recipients", **wrong)


def test_one_recipient_with_history(shard: SendingShard) -> None:
    ref = {"subscriber_id": 1, "message_key": shard.row(1)["message_key"]}
    found = ask(shard, "recipient", **ref)
    assert found["state"] == "accepted"
    assert [event["type"] for event in found["history"]] == ["sent", "clicked", "opened", "opened"]
    assert [event["human"] for event in found["history"]] == [None, 0.9, None, None]
    assert ask(shard, "recipient", subscriber_id=99, message_key=1) is None


def test_next_due(shard: SendingShard) -> None:
    assert ask(shard, "next_due") == {"due": 3, "next_due_at": None}


def test_a_row_that_goes_missing_is_noticed() -> None:
    shard = SendingShard(5)
    shard.start()

    def adds_up() -> bool:
        answer = ask(shard, "accounting")
        return Accounting.of(answer["states"]).holds_for(answer["planned_total"])

    assert adds_up()
    row = shard.row(3)
    key = {name: [row[name]] for name in ("subscriber_id", "message_key")}
    shard.write(Change("ledger", Op.DELETE, pa.table(key)))
    assert not adds_up()


def test_rows_that_have_left_memory_still_count() -> None:
    shard = SendingShard(5)
    shard.load("consents", shard.consent(5, "unsubscribed"))
    shard.start()
    before = ask(shard, "accounting")
    for left in (4, 2, 0):
        shard.pass_time(days=92)
        since = shard.answer(Retain(ShardSettings()))["ledger"]
        shard.database.drop("ledger", is_old("ledger"), [since])
        assert len(shard.states()) == left
        shard.answer(ExpireRows(limit=2))
    after = ask(shard, "accounting")
    assert Accounting.of(after["states"]).holds_for(after["planned_total"])
    assert after["planned_total"] == before["planned_total"] == 5
    assert ("suppressed", "unsubscribed", 1) in after["reasons"]


def test_a_campaign_of_an_older_row_counts_nothing_as_planned() -> None:
    shard = SendingShard(1)
    shard.load("campaigns", {"campaign_id": CAMPAIGN, "state": "finished"})
    assert ask(shard, "accounting")["planned_total"] == 0
