"""An audience becomes ledger rows: each person once, with a state and a reason."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from manta.command import Change, Op
from manta.delivery.campaign import CampaignState, Kind
from manta.delivery.planning import (
    EnqueueMessage,
    ExpireRows,
    PlanCampaign,
    SetCampaign,
    SweepCampaign,
)
from manta.delivery.troubles import NoteTrouble
from manta.errors import Conflict, InvalidRequest, NotFound
from tests.unit.delivery_shard import CAMPAIGN, SENDER, SendingShard, plan
from tests.unit.people_shard import START, alias


def test_everybody_gets_a_row_and_a_reason() -> None:
    shard = SendingShard(8)
    shard.load("profiles", {"subscriber_id": 1, "email": None})
    shard.load("consents", shard.consent(2, "unsubscribed"), shard.consent(3, "pending"))
    shard.suppress("p4@d0.example", "hard_bounce")
    shard.suppress("p5@d1.example", "unsubscribed")
    shard.load("aliases", alias(6, 7))
    shard.delete("profiles", subscriber_id=6)
    shard.start()
    assert shard.rows("SELECT subscriber_id, state, reason FROM ledger ORDER BY 1") == [
        (1, "suppressed", "no_address"),
        (2, "suppressed", "unsubscribed"),
        (3, "suppressed", "no_consent"),
        (4, "suppressed", "hard_bounce"),
        (5, "suppressed", "unsubscribed"),
        (7, "planned", None),
        (8, "planned", None),
    ]
    assert shard.row(8)["domain"] == "d0.example"
    due = "SELECT count(*) FROM ledger WHERE (due_at IS NOT NULL) != (state = 'planned')"
    assert shard.rows(due) == [(0,)]


def test_a_suppression_ends_with_its_expiry() -> None:
    shard = SendingShard(1)
    row = {"channel": "email", "address": "p1@d1.example", "reason": "manual"}
    shard.load("suppressions", row | {"expires_at": START})
    shard.start()
    assert shard.states() == {1: "planned"}


def test_transactional_mail_needs_no_consent_but_an_address_that_works() -> None:
    shard = SendingShard(3)
    shard.load("consents", shard.consent(1, "unsubscribed"))
    shard.suppress("p2@d0.example", "unsubscribed")
    shard.suppress("p3@d1.example", "hard_bounce")
    shard.start(plan(kind=Kind.TRANSACTIONAL))
    assert shard.states() == {1: "planned", 2: "planned", 3: "suppressed"}


def test_pages_cover_the_audience_and_repeat_without_effect() -> None:
    shard = SendingShard(5)
    shard.set(CampaignState.RUNNING)
    first = shard.answer(PlanCampaign(CAMPAIGN, -1, 3))
    assert first == {"planned": 3, "suppressed": 0, "done": False, "last_subscriber": 3}
    assert shard.run(PlanCampaign(CAMPAIGN, -1, 3)).changes == ()
    assert shard.answer(PlanCampaign(CAMPAIGN, -1, 3)) == first
    last = shard.answer(PlanCampaign(CAMPAIGN, 3, 3))
    assert last == {"planned": 2, "suppressed": 0, "done": True, "last_subscriber": 5}
    assert shard.rows("SELECT planning, planned_rows FROM campaigns") == [("planned", 5)]
    assert len(shard.states()) == 5


def test_the_month_of_the_last_human_act_before_planning_is_kept() -> None:
    shard = SendingShard(2)
    shard.write(
        *(
            shard_event(1, "opened", 1, None),
            shard_event(1, "clicked", 24 * 31, None),
            shard_event(1, "opened", 24 * 62, 0.1),
        )
    )
    shard.start()
    assert shard.row(1)["engaged_at"] == datetime(2026, 4, 1)
    assert shard.row(2)["engaged_at"] is None


def shard_event(person: int, kind: str, hours: int, human: float | None) -> Change:
    row = {
        "subscriber_id": person,
        "occurred_at": START + timedelta(hours=hours),
        "type": kind,
        "event_id": hours,
        "human": human,
    }
    return Change("events", Op.INSERT, pa.Table.from_pylist([row]))


def test_cancelling_cancels_what_is_planned_and_calls_back_what_is_leased() -> None:
    shard = SendingShard(4)
    shard.start()
    shard.lease(limit=1)
    decision = shard.set(CampaignState.CANCELLED)
    assert decision.answer == {"state": "cancelled", "cancelled": 3}
    assert [(p.to, p.method, p.arguments) for p in decision.pushes] == [
        (SENDER, "revoke", (CAMPAIGN, ()))
    ]
    assert sorted(shard.states().values()) == ["cancelled", "cancelled", "cancelled", "leased"]
    assert shard.answer(PlanCampaign(CAMPAIGN))["done"]
    assert shard.answer(SweepCampaign(CAMPAIGN)) == 0


def test_a_plan_is_pinned_and_late_news_ignored() -> None:
    shard = SendingShard(1)
    text = plan().to_json()
    shard.answer(SetCampaign(None, CAMPAIGN, CampaignState.RUNNING, text, 1))
    shard.answer(SetCampaign(None, CAMPAIGN, CampaignState.PAUSED, text, 2))
    late = shard.answer(SetCampaign(None, CAMPAIGN, CampaignState.RUNNING, text, 1))
    assert late["state"] == "paused"
    with pytest.raises(Conflict):
        other = plan(topic="other").to_json()
        shard.answer(SetCampaign(None, CAMPAIGN, CampaignState.RUNNING, other, 3))
    with pytest.raises(InvalidRequest):
        shard.answer(SetCampaign(None, 8, CampaignState.RUNNING, text))
    with pytest.raises(InvalidRequest):
        shard.answer(SetCampaign(None, CAMPAIGN, CampaignState.DRAFT, text, 3))


@pytest.mark.parametrize(
    ("operator", "everybody"), [("is_set", False), ("equals", False), ("not_equals", True)]
)
def test_an_attribute_that_nobody_here_has_is_missing_for_all(
    operator: str, everybody: bool
) -> None:
    shard = SendingShard(4)
    value = {} if operator == "is_set" else {"value": "Riga"}
    rule = {"attribute": {"name": "city", "operator": operator, **value}}
    shard.start(plan(audience=json.dumps(rule), attribute_types=(("city", "string"),)))
    assert shard.rows("SELECT count(*) FROM ledger") == [(4 * everybody,)]


def test_an_audience_is_who_the_rule_holds_for_when_it_is_due() -> None:
    shard = SendingShard(3)
    for person, days in ((1, 1), (2, 2), (3, 30)):
        joined_at = START - timedelta(days=days)
        shard.load("profiles", {"subscriber_id": person, "attr_joined_at": joined_at})
    shard.pass_time(days=3)  # planned late
    rule = {"attribute": {"name": "joined_at", "operator": "in_the_last", "value": {"days": 3}}}
    shard.start(plan(audience=json.dumps(rule), attribute_types=(("joined_at", "date"),)))
    assert shard.rows("SELECT subscriber_id FROM ledger ORDER BY 1") == [(1,), (2,)]


def test_one_message_at_a_time() -> None:
    shard = SendingShard(2)
    shard.start(plan(kind=Kind.TRANSACTIONAL, audience=""))
    first = shard.answer(EnqueueMessage(CAMPAIGN, 1, "order 1"))
    assert first["state"] == "planned"
    assert shard.answer(EnqueueMessage(CAMPAIGN, 1, "order 1")) == first
    second = shard.answer(EnqueueMessage(CAMPAIGN, 1, "order 2"))
    assert second["message_key"] != first["message_key"]
    with pytest.raises(NotFound):
        shard.answer(EnqueueMessage(CAMPAIGN, 99, "order 1"))
    with pytest.raises(NotFound):
        shard.answer(EnqueueMessage(99, 1, "order 1"))


def test_rows_expire() -> None:
    shard = SendingShard(2)
    shard.start()
    assert shard.answer(ExpireRows()) == 0
    shard.pass_time(days=2)
    assert shard.answer(ExpireRows()) == 2
    assert shard.states() == {1: "expired", 2: "expired"}


def test_a_row_expires_with_its_campaign_and_waiting_for_us_ages_nobody() -> None:
    shard = SendingShard(1)
    shard.start(plan(expires_at=None))
    assert shard.row(1)["expires_at"] is None
    shard.now += timedelta(days=30)  # paused, or held back by a warm-up
    assert shard.answer(ExpireRows()) == 0
    early = SendingShard(1)
    early.start(plan(expires_at=START + timedelta(hours=1)))
    assert early.row(1)["expires_at"] == START + timedelta(hours=1)


def test_what_never_could_be_attempted_expires_with_the_trouble_of_its_lane() -> None:
    shard = SendingShard(4)
    shard.start(plan(expires_at=None))
    shard.now += timedelta(days=5)
    note = NoteTrouble(("mx-a",), "no connection: mx.d1.example does not answer", ("d1.example",))
    assert shard.answer(note) == 2 and shard.answer(note) == 0
    assert shard.answer(NoteTrouble(("elsewhere",), "x")) == 0
    assert shard.row(1)["expires_at"] == shard.now + timedelta(hours=72)
    shard.now += timedelta(hours=71)
    other = NoteTrouble(("mx-a",), "no connection: refused", ("d1.example",))
    assert shard.answer(other) == 2, "another trouble, and no more time for it"
    shard.now += timedelta(hours=2)
    assert shard.answer(ExpireRows()) == 2
    assert shard.states() == {1: "expired", 2: "planned", 3: "expired", 4: "planned"}
    assert shard.row(1)["reason"] == "expired before it was sent: no connection: refused"


def test_a_note_on_all_domains_but_some_leaves_those_alone() -> None:
    shard = SendingShard(4)
    shard.start()
    assert shard.answer(NoteTrouble(("mx-a",), "x", None, ("d1.example",))) == 2
