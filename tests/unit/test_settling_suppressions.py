"""What a refusal in the SMTP dialogue does to the address, in the commit that settles it."""

from datetime import timedelta

import pytest

from manta.command import Push
from manta.delivery.outcomes import OutcomeKind
from tests.unit.delivery_shard import SendingShard, plan, refs
from tests.unit.people_shard import START


def started(people=2):
    shard = SendingShard(people)
    shard.start()
    return shard, refs(shard.lease())


def suppressions(shard):
    return shard.rows(
        "SELECT address, reason, source, evidence, expires_at FROM suppressions ORDER BY 1"
    )


def test_a_hard_refusal_suppresses_at_once_and_the_others_go_on():
    shard, (one, two) = started()
    settled = shard.settle(
        1,
        shard.outcome(
            one,
            OutcomeKind.FAILED,
            reply_code=550,
            reply="550 5.1.1 no such user",
            bounce_class="hard",
            category="unknown_user",
        ),
        shard.outcome(two, OutcomeKind.ACCEPTED),
    )
    assert settled == {"settled": 2, "ignored": 0}
    address = f"p{one.subscriber_id}@d{one.subscriber_id % 2}.example"
    assert suppressions(shard) == [(address, "hard_bounce", "smtp", "550 5.1.1 no such user", None)]
    assert shard.states()[one.subscriber_id] == "failed"


def test_what_the_sender_still_holds_of_the_person_is_revoked():
    from manta.delivery.outcomes import outcomes_table
    from manta.delivery.settling import Settle

    shard, (one, _) = started()
    shard.leased(one.subscriber_id, 77, kind="transactional", lease_id=9)
    outcome = shard.outcome(one, OutcomeKind.FAILED, bounce_class="hard", reply_code=550)
    decision = shard.run(Settle(1, "sender-00", 1, outcomes_table([outcome]), 5))
    (push,) = decision.pushes
    assert (push.to, push.method) == ("sender-00", "revoke")
    assert (one.subscriber_id, 77) in push.arguments[1]
    assert isinstance(push, Push)


@pytest.mark.parametrize("kind", ["block", "message", ""])
def test_what_is_about_us_or_the_message_suppresses_nobody(kind):
    shard, (one, _) = started()
    shard.settle(1, shard.outcome(one, OutcomeKind.FAILED, bounce_class=kind, reply_code=554))
    assert suppressions(shard) == []


def test_a_deferral_suppresses_nobody():
    shard, (one, _) = started()
    shard.settle(1, shard.outcome(one, OutcomeKind.DEFERRED, bounce_class="soft", reply_code=452))
    assert suppressions(shard) == []


def test_the_fifth_soft_failure_in_a_row():
    shard = SendingShard(1)
    for day in range(5):
        shard.now = START + timedelta(days=day)
        campaign = plan(10 + day, due_at=shard.now, expires_at=shard.now + timedelta(days=3))
        shard.start(campaign)
        (ref,) = refs(shard.lease(day + 1))
        assert suppressions(shard) == []
        kind = OutcomeKind.EXPIRED if day % 2 else OutcomeKind.FAILED
        shard.settle(
            day + 1, shard.outcome(ref, kind, bounce_class="soft", reply_code=452, reply="452 full")
        )
    ends = shard.now + timedelta(days=30)
    assert suppressions(shard) == [("p1@d1.example", "soft_bounces", "smtp", "452 full", ends)]


def test_what_expired_while_it_was_called_unknown_for_now_is_no_hard_bounce():
    shard, (one, _) = started()
    shard.settle(1, shard.outcome(one, OutcomeKind.EXPIRED, bounce_class="hard", reply_code=450))
    assert suppressions(shard) == []


def test_a_test_suppresses_the_address_it_went_to():
    shard, (one, _) = started()
    shard.load(
        "ledger",
        {
            "subscriber_id": one.subscriber_id,
            "message_key": one.message_key,
            "kind": "test",
            "send_to": "Me@own.example",
        },
    )
    shard.settle(1, shard.outcome(one, OutcomeKind.FAILED, bounce_class="hard", reply_code=550))
    assert [row[0] for row in suppressions(shard)] == ["me@own.example"]
