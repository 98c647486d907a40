"""What a shard has on record, as the observations that windows are rebuilt from."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from manta.command import Change, Context, Op
from manta.delivery.queries import QUERIES
from manta.delivery.reputation.observations import BounceClass, Seen
from manta.errors import InvalidRequest
from tests.unit.delivery_shard import CAMPAIGN, SendingShard, plan

FIELDS = ("seen", "source", "provider", "campaign_id", "bounce_class", "category", "messages")


@pytest.fixture(scope="module")
def shard() -> SendingShard:
    shard = SendingShard(0)
    shard.start(plan(audience="", sending_domain="news.example"))
    common = {"campaign_id": CAMPAIGN, "kind": "marketing", "source": "a", "provider": "google"}
    refused = {"reply_code": 550, "reply": "5.1.1 no such user", "bounce_class": "hard"}
    at = shard.now - timedelta(minutes=10)
    rows: list[dict[str, Any]] = [
        {"state": "accepted"},
        {"state": "accepted", "bounced_at": at, "bounce_class": "hard"},
        {"state": "accepted", "kind": "test"},
        {"state": "accepted", "changed_at": shard.now - timedelta(days=8)},
        {"state": "accepted", "source": None},
        {"state": "failed", **refused, "category": "InvalidRecipient"},
        {"state": "failed", "reason": "cannot be built"},
        {"state": "planned", "attempts": 1, "reply_code": 451, "category": "Greylisted"},
        {"state": "planned", "attempts": 0},
    ]
    for n, row in enumerate(rows, 1):
        shard.load(
            "ledger",
            {"subscriber_id": n, "message_key": 1, "changed_at": at} | common | row,
        )
    events = [
        {"subscriber_id": 1, "message_key": 1, "type": kind, "occurred_at": at, "event_id": n}
        for n, kind in enumerate(["complained", "opened", "opened", "purchase"])
    ]
    shard.write(Change("events", Op.INSERT, pa.Table.from_pylist(events)))
    return shard


def ask(shard: SendingShard, **arguments: Any) -> list[Any]:
    context = Context(shard.now, shard.random, "w", 0)
    found: list[Any] = QUERIES["observed"](shard.database, context, arguments)
    return found


def test_everything_that_servers_and_people_said_counts_once(shard: SendingShard) -> None:
    found = sorted(tuple(getattr(o, name) for name in FIELDS) for o in ask(shard))
    lane = ("a", "google", CAMPAIGN)
    assert found == [
        (Seen.ACCEPTED, *lane, BounceClass.NONE, "", 2),
        (Seen.BOUNCED, *lane, BounceClass.HARD, "", 1),
        (Seen.COMPLAINED, *lane, BounceClass.NONE, "", 1),
        (Seen.DEFERRED, *lane, BounceClass.NONE, "Greylisted", 1),
        (Seen.FAILED, *lane, BounceClass.HARD, "InvalidRecipient", 1),
        (Seen.OPENED, *lane, BounceClass.NONE, "", 2),
    ]
    assert {o.sending_domain for o in ask(shard)} == {"news.example"}


def test_what_came_after_the_end_is_left_out(shard: SendingShard) -> None:
    assert ask(shard, until=shard.now - timedelta(minutes=11)) == []


def test_for_rules_the_words_are_there_and_opens_are_not(shard: SendingShard) -> None:
    found = ask(shard, part="servers")
    assert [(o.code, o.text) for o in found if o.seen is Seen.FAILED] == [
        (550, "5.1.1 no such user")
    ]
    assert Seen.OPENED not in {o.seen for o in found}


def test_what_people_do_can_be_asked_alone(shard: SendingShard) -> None:
    assert [(o.seen, o.messages) for o in ask(shard, part="people")] == [(Seen.OPENED, 2)]


@pytest.mark.parametrize("days", [-1, 8])
def test_a_period_that_is_not_on_record_is_refused(shard: SendingShard, days: int) -> None:
    since: datetime = shard.now - timedelta(days=days)
    with pytest.raises(InvalidRequest, match="on record"):
        ask(shard, since=since)
