"""Test mails: the real way, to an address of one's own, filled with somebody's values."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from manta.command import Context
from manta.delivery.campaign import CampaignState, Kind
from manta.delivery.outcomes import OutcomeKind
from manta.delivery.planning import EnqueueMessage
from manta.delivery.queries import QUERIES
from manta.errors import InvalidRequest
from manta.ids import NOBODY
from tests.unit.delivery_shard import CAMPAIGN, SendingShard, plan, refs

ME = "me@agency.example"


@pytest.fixture
def shard() -> SendingShard:
    shard = SendingShard(2)
    shard.set(CampaignState.RUNNING, plan(kind=Kind.TEST, audience="", expires_at=None))
    return shard


def enqueue(shard: SendingShard, person: int = 1, **more: Any) -> dict[str, Any]:
    fields = {"occurrence": "a", "send_to": ME} | more
    answer = shard.answer(EnqueueMessage(CAMPAIGN, person, **fields))
    return dict(answer)


def test_it_goes_to_the_address_given_with_the_persons_values(shard: SendingShard) -> None:
    shard.load("consents", shard.consent(1, "unsubscribed"))
    shard.suppress("p1@d1.example", "hard_bounce")  # the person's own address is not mailed
    assert enqueue(shard)["state"] == "planned"
    assert shard.row(1)["domain"] == "agency.example"
    (row,) = shard.lease().rows.to_pylist()
    assert (row["email"], row["_send_to"], row["kind"]) == ("p1@d1.example", ME, "test")


def test_it_may_be_filled_with_nobodys_values(shard: SendingShard) -> None:
    assert enqueue(shard, NOBODY)["state"] == "planned"
    (row,) = shard.lease().rows.to_pylist()
    assert (row["subscriber_id"], row["email"], row["_send_to"]) == (NOBODY, None, ME)


def test_an_address_that_is_suppressed_here_is_not_mailed(shard: SendingShard) -> None:
    shard.suppress(ME, "complaint")
    assert enqueue(shard) | {"message_key": 0} == {
        "message_key": 0,
        "state": "suppressed",
        "reason": "complaint",
    }


def test_what_becomes_of_it_is_no_event_of_the_person(shard: SendingShard) -> None:
    enqueue(shard)
    (ref,) = refs(shard.lease())
    shard.settle(1, shard.outcome(ref, OutcomeKind.ACCEPTED, reply_code=250))
    assert shard.states() == {1: "accepted"}
    assert shard.rows("SELECT * FROM events") == []


def test_it_is_accounted_for_and_listed_under_its_own_address(shard: SendingShard) -> None:
    enqueue(shard)
    enqueue(shard)  # the same message
    context = Context(shard.now, shard.random, "w", 0)
    asked = {"campaign_id": CAMPAIGN}
    assert QUERIES["accounting"](shard.database, context, asked)["planned_total"] == 1
    (row,) = QUERIES["recipients"](shard.database, context, asked)
    assert row["email"] == ME


def test_its_time_is_short(shard: SendingShard) -> None:
    enqueue(shard, expires_at=shard.now + timedelta(hours=1))
    shard.pass_time(hours=2)
    shard.lease()
    assert shard.states() == {1: "expired"}


def test_only_a_test_goes_elsewhere(shard: SendingShard) -> None:
    shard.set(CampaignState.RUNNING, plan(8, kind=Kind.TRANSACTIONAL, audience=""))
    with pytest.raises(InvalidRequest, match="goes to its person"):
        shard.answer(EnqueueMessage(8, 1, "a", send_to=ME))
