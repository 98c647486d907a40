"""Leases and settlements: who gets what, in which order, and what evidence moves a row."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest

from manta.command import Context
from manta.delivery.campaign import CampaignState
from manta.delivery.leasing import LEASE_ROWS_MAX
from manta.delivery.ledger import Policy
from manta.delivery.outcomes import OutcomeKind, outcomes_table
from manta.delivery.senders import SenderKnown
from manta.delivery.settling import (
    RESEND_ATTEMPTS_MAX,
    FenceSender,
    Orphan,
    ResolveOrphans,
    Settle,
    checked_outcomes,
)
from manta.errors import Fenced, InvalidRequest
from manta.people.consents import revocations
from tests.unit.delivery_shard import (
    CAMPAIGN,
    SENDER,
    SendingShard,
    lease_command,
    people,
    plan,
    refs,
)
from tests.unit.people_shard import START

ACCEPTED, DEFERRED, FAILED = OutcomeKind.ACCEPTED, OutcomeKind.DEFERRED, OutcomeKind.FAILED
UNCERTAIN, RETURNED = OutcomeKind.UNCERTAIN, OutcomeKind.RETURNED
EXPIRED = OutcomeKind.EXPIRED


# -- granting --------------------------------------------------------------------------------------


def test_a_lease_has_what_the_template_needs() -> None:
    shard = SendingShard(2)
    shard.load("profiles", {"subscriber_id": 1, "attr_city": "Köln", "attr_secret": "x"})
    shard.start(plan(attributes=("city", "nowhere")))
    grant = shard.lease()
    (first, second) = grant.rows.to_pylist()
    assert first["email"] == "p1@d1.example" and first["attr_city"] == "Köln"
    assert second["attr_city"] is None and second["domain"] == "d0.example"
    assert "attr_secret" not in first and "attr_nowhere" not in first
    assert shard.states() == {1: "leased", 2: "leased"}
    assert shard.row(1)["due_at"] is None and shard.row(1)["lease_id"] == 1


def test_a_limit_is_kept_and_more_is_said() -> None:
    shard = SendingShard(5)
    shard.start()
    assert (shard.lease(1, limit=3).more, shard.lease(2, limit=3).more) == (True, False)
    assert shard.lease(3).rows.num_rows == 0
    with pytest.raises(InvalidRequest):
        shard.lease(4, limit=LEASE_ROWS_MAX + 1)


def test_order_is_class_then_campaigns_in_turn_then_the_engaged() -> None:
    shard = SendingShard(3)
    shard.start(plan(1))
    shard.start(plan(2))
    shard.start(plan(3, priority=1))
    for person, hours in ((2, 5), (3, 1)):
        for (key,) in shard.rows("SELECT DISTINCT message_key FROM ledger"):
            engaged = {"engaged_at": START + timedelta(hours=hours)}
            shard.load("ledger", {"subscriber_id": person, "message_key": key} | engaged)
    rows = shard.lease(2, limit=7).rows
    order = zip(
        *(rows.column(n).to_pylist() for n in ("campaign_id", "subscriber_id")), strict=True
    )
    assert list(order) == [(3, 2), (3, 3), (3, 1), (1, 2), (2, 2), (1, 3), (2, 3)]


def test_only_what_is_due_for_this_source_and_these_domains() -> None:
    shard = SendingShard(4)
    shard.start(plan(1, source="pool"))
    shard.start(plan(2, due_at=START + timedelta(hours=1)))
    assert shard.lease(1).rows.num_rows == 0
    assert people(shard.lease(2, serves=("mx-a", "pool"), domains=("d1.example",))) == [1, 3]
    shard.pass_time(hours=1)
    assert people(shard.lease(3, domains=("d0.example",))) == [2, 4]


def test_paused_campaigns_wait() -> None:
    shard = SendingShard(1)
    shard.start()
    shard.set(CampaignState.PAUSED)
    assert shard.lease(1).rows.num_rows == 0
    shard.set(CampaignState.RUNNING)
    assert people(shard.lease(2)) == [1]


def test_the_person_is_checked_again() -> None:
    shard = SendingShard(6)
    shard.start()
    shard.load("consents", shard.consent(1, "unsubscribed"))
    shard.suppress("p2@d0.example", "complaint")
    shard.load("profiles", {"subscriber_id": 3, "email": None})
    shard.delete_person(4)
    assert people(shard.lease()) == [5, 6]
    reasons = shard.rows("SELECT subscriber_id, reason FROM ledger WHERE state = 'suppressed'")
    assert sorted(reasons) == [
        (1, "unsubscribed"),
        (2, "complaint"),
        (3, "no_address"),
        (4, "unknown_person"),
    ]


def test_what_has_expired_is_not_leased() -> None:
    shard = SendingShard(1)
    shard.start()
    shard.pass_time(days=3)
    assert shard.lease().rows.num_rows == 0
    assert shard.states() == {1: "expired"}


def test_an_address_that_moved_to_another_site_waits_for_that_site() -> None:
    shard = SendingShard(1)
    shard.start()
    shard.load("profiles", {"subscriber_id": 1, "email": "p1@new.example"})
    assert shard.lease(1, domains=("d1.example",)).rows.num_rows == 0
    assert shard.row(1)["state"] == "planned"
    (row,) = shard.lease(2, domains=("new.example",)).rows.to_pylist()
    assert row["email"] == "p1@new.example"


def test_a_repeated_lease_answers_what_it_holds() -> None:
    shard = SendingShard(3)
    shard.start()
    first = shard.lease()
    shard.load("consents", shard.consent(2, "unsubscribed"))
    again = lease_command().repeat(shard.database, Context(shard.now, shard.random, "default", 0))
    assert people(again) == [1, 3]
    assert again.withheld == (refs(first)[1],)


def test_unsubscribing_calls_back_what_is_leased() -> None:
    shard = SendingShard(3)
    shard.start()
    grant = shard.lease(limit=2)
    (push,) = revocations(shard.database, [1, 3], "email")
    assert (push.to, push.method, push.arguments) == (SENDER, "revoke", (None, (refs(grant)[0],)))


# -- settling --------------------------------------------------------------------------------------


def test_outcomes_move_rows_and_leave_evidence() -> None:
    shard = SendingShard(5)
    shard.start()
    a, b, c, d, e = refs(shard.lease())
    later = shard.now + timedelta(minutes=20)
    answer = shard.settle(
        1,
        shard.outcome(a, ACCEPTED, reply_code=250, reply="2.0.0 ok"),
        shard.outcome(b, FAILED, reason="mailbox does not exist", reply_code=550, reply="no"),
        shard.outcome(c, DEFERRED, reason="greylisted", reply_code=451, reply="x", due_at=later),
        shard.outcome(d, UNCERTAIN, reason="connection lost"),
        shard.outcome(e, RETURNED),
    )
    assert answer == {"settled": 5, "ignored": 0}
    assert list(shard.states().values()) == [
        "accepted",
        "failed",
        "planned",
        "uncertain",
        "planned",
    ]
    assert shard.row(3)["due_at"] == later and shard.row(3)["attempts"] == 1
    assert shard.row(5)["attempts"] == 0
    assert shard.row(2)["reply"] == "no" and shard.row(2)["reply_code"] == 550
    sent = shard.rows("SELECT subscriber_id, type, item, campaign_id, message_key FROM events")
    assert sent == [(1, "sent", "marketing", CAMPAIGN, a.message_key)]


def test_a_reply_stays_on_record_when_nothing_new_was_said() -> None:
    shard = SendingShard(1)
    shard.start()
    (ref,) = refs(shard.lease(1))
    shard.settle(1, shard.outcome(ref, DEFERRED, reply_code=451, reply="busy"))
    shard.lease(2)
    shard.settle(2, shard.outcome(ref, RETURNED))
    assert shard.row(1)["reply"] == "busy"


def test_settling_twice_or_for_another_lease_changes_nothing() -> None:
    shard = SendingShard(1)
    shard.start()
    (ref,) = refs(shard.lease(1))
    shard.settle(1, shard.outcome(ref, RETURNED))
    assert shard.settle(1, shard.outcome(ref, ACCEPTED))["ignored"] == 1
    shard.lease(2)
    assert shard.settle(1, shard.outcome(ref, ACCEPTED))["ignored"] == 1
    assert shard.settle(2, shard.outcome(ref, ACCEPTED), epoch=3)["ignored"] == 1
    assert shard.states() == {1: "leased"}
    assert shard.settle(2, shard.outcome(ref, ACCEPTED))["settled"] == 1
    assert shard.settle(2, shard.outcome(ref, FAILED))["ignored"] == 1
    assert shard.rows("SELECT count(*) FROM events") == [(1,)]


def test_late_evidence_settles_what_was_uncertain() -> None:
    shard = SendingShard(2)
    shard.start()
    one, two = refs(shard.lease())
    shard.settle(1, shard.outcome(one, UNCERTAIN), shard.outcome(two, UNCERTAIN))
    assert shard.settle(1, shard.outcome(one, DEFERRED))["ignored"] == 1
    shard.settle(1, shard.outcome(one, ACCEPTED), shard.outcome(two, FAILED))
    assert shard.states() == {1: "accepted", 2: "failed"}


def test_resend_plans_the_uncertain_again_a_few_times() -> None:
    shard = SendingShard(1)
    shard.start(plan(policy=Policy.RESEND))
    for lease_id in range(1, RESEND_ATTEMPTS_MAX):
        (ref,) = refs(shard.lease(lease_id))
        shard.settle(lease_id, shard.outcome(ref, UNCERTAIN))
        assert shard.states() == {1: "planned"}
        shard.pass_time(minutes=6)
    (ref,) = refs(shard.lease(99))
    shard.settle(99, shard.outcome(ref, UNCERTAIN))
    assert shard.states() == {1: "uncertain"}


def test_what_comes_back_to_a_cancelled_campaign_is_cancelled() -> None:
    shard = SendingShard(2)
    shard.start()
    one, two = refs(shard.lease())
    shard.set(CampaignState.CANCELLED)
    shard.settle(1, shard.outcome(one, RETURNED), shard.outcome(two, ACCEPTED))
    assert shard.states() == {1: "cancelled", 2: "accepted"}


def test_a_deferral_beyond_the_expiry_expires() -> None:
    shard = SendingShard(1)
    shard.start()
    (ref,) = refs(shard.lease())
    due_at = shard.now + timedelta(days=3)
    shard.settle(1, shard.outcome(ref, DEFERRED, reason="greylisted", due_at=due_at))
    row = shard.row(1)
    assert (row["state"], row["attempts"]) == ("expired", 1)
    assert row["reason"] == "expired after 1 attempt: greylisted"


def test_the_age_of_a_message_counts_from_its_first_deferral() -> None:
    shard = SendingShard(1)
    shard.start(plan(expires_at=None))
    shard.now += timedelta(days=9)
    (ref,) = refs(shard.lease())
    shard.settle(1, shard.outcome(ref, DEFERRED, reason="greylisted", due_at=shard.now))
    first = shard.now
    assert shard.row(1)["expires_at"] == first + timedelta(hours=72)
    shard.now += timedelta(hours=1)
    (ref,) = refs(shard.lease(2))
    shard.settle(2, shard.outcome(ref, DEFERRED, reason="greylisted", due_at=shard.now))
    assert shard.row(1)["expires_at"] == first + timedelta(hours=72)


def test_an_expiry_keeps_what_the_server_said_last() -> None:
    shard = SendingShard(1)
    shard.start()
    (ref,) = refs(shard.lease())
    said = {"reply_code": 451, "reply": "4.7.1 later", "bounce_class": "soft", "category": "X"}
    shard.settle(1, shard.outcome(ref, EXPIRED, reason="expired after 1 attempt: x", **said))
    row = shard.row(1)
    assert (row["state"], row["attempts"]) == ("expired", 1)
    assert {name: row[name] for name in said} == said


def test_what_was_greylisted_waits_an_hour_for_the_source_that_was_told_to_come_back() -> None:
    shard = SendingShard(1)
    shard.start(plan(source="pool"))
    (ref,) = refs(shard.lease(1, source="mx-a", serves=("pool",)))
    told = {"reply_code": 450, "reply": "greylisted", "category": "Greylisted", "source": "mx-a"}
    due_at = shard.now + timedelta(minutes=5)
    shard.settle(1, shard.outcome(ref, DEFERRED, due_at=due_at, **told))
    shard.now = due_at + timedelta(minutes=1)
    assert not refs(shard.lease(2, source="mx-b", serves=("pool",)))
    assert refs(shard.lease(3, source="mx-a", serves=("pool",))) == [ref]
    shard.settle(3, shard.outcome(ref, DEFERRED, due_at=shard.now, **told))
    shard.now += timedelta(minutes=61)
    assert refs(shard.lease(4, source="mx-b", serves=("pool",))) == [ref]


def test_a_lease_may_name_its_campaigns() -> None:
    shard = SendingShard(2)
    shard.start()
    assert not refs(shard.lease(1, only=(99,)))
    assert not refs(shard.lease(2, without=(7,)))
    assert len(refs(shard.lease(3, only=(7,)))) == 2


@pytest.mark.parametrize("wrong", ["columns", "kind", "twice"])
def test_wrong_outcomes_are_refused(wrong: str) -> None:
    shard = SendingShard(1)
    shard.start()
    (ref,) = refs(shard.lease())
    good = outcomes_table([shard.outcome(ref, ACCEPTED)])
    bad = {
        "columns": good.drop_columns("reply"),
        "kind": good.set_column(2, "outcome", pa.array(["maybe"])),
        "twice": pa.concat_tables([good, good]),
    }
    with pytest.raises(InvalidRequest):
        checked_outcomes(bad[wrong])
    with pytest.raises(InvalidRequest):
        shard.answer(Settle(1, SENDER, 1, bad[wrong]))


# -- fencing ---------------------------------------------------------------------------------------


def test_time_makes_orphans_and_no_more() -> None:
    shard = SendingShard(2)
    shard.start()
    (one, two) = refs(shard.lease())
    shard.settle(1, shard.outcome(one, ACCEPTED))
    assert shard.answer(Orphan((1, 5))) == 1
    assert shard.states() == {1: "accepted", 2: "orphaned"}
    assert shard.lease(2).rows.num_rows == 0
    shard.settle(1, shard.outcome(two, ACCEPTED))
    assert shard.states() == {1: "accepted", 2: "accepted"}


def test_a_fenced_sender_leases_no_more_but_is_believed() -> None:
    shard = SendingShard(3)
    shard.start()
    one, _ = refs(shard.lease(1, limit=2))
    unresolved = shard.answer(FenceSender(SENDER, 2))
    assert unresolved.rows.num_rows == 2 and unresolved.journal_sequence == 2
    assert shard.states() == {1: "orphaned", 2: "orphaned", 3: "planned"}
    with pytest.raises(Fenced):
        shard.lease(2)
    with pytest.raises(Fenced):
        shard.answer(FenceSender(SENDER, 1))
    assert shard.settle(1, shard.outcome(one, ACCEPTED))["settled"] == 1
    assert shard.answer(SenderKnown(SENDER)) == (2, 5)
    assert shard.answer(FenceSender(SENDER, 2)).rows.num_rows == 1


def test_verdicts_count_for_the_lease_they_are_about() -> None:
    shard = SendingShard(3)
    shard.start()
    grant = refs(shard.lease(1))
    shard.answer(FenceSender(SENDER, 2))
    verdicts = outcomes_table(
        [
            shard.outcome(grant[0], RETURNED),
            shard.outcome(grant[1], UNCERTAIN),
            shard.outcome(grant[2], ACCEPTED),
        ]
    ).append_column("lease_id", pa.array([1, 1, 4], pa.int64()))
    answer = shard.answer(ResolveOrphans(SENDER, 2, verdicts))
    assert answer == {"settled": 2, "ignored": 1}
    assert shard.states() == {1: "planned", 2: "uncertain", 3: "orphaned"}
    assert people(shard.lease(9, sender_epoch=2)) == [1]
