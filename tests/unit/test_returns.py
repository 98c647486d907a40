"""Bounces and complaints: what is written, what is suppressed, and whom it never touches."""

import json
from datetime import timedelta

import pytest

from manta.command import Push
from manta.delivery.outcomes import OutcomeKind
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.returns.commands import (
    RecordBounce,
    RecordBounceOf,
    RecordComplaint,
    RecordComplaintOf,
    Suppressed,
)
from manta.errors import InvalidRequest
from manta.ids import MessageRef
from manta.people.suppressions import LiftSuppression, Stop
from tests.unit.delivery_shard import CAMPAIGN, SendingShard, plan, refs
from tests.unit.people_shard import START, Shard

DIAGNOSTIC = "550 5.1.1 no such user"


def bounce(ref, kind="hard", key="k1", **changed):
    values = {
        "ref": ref,
        "occurred_at": START,
        "bounce_class": kind,
        "category": "unknown_user",
        "diagnostic": DIAGNOSTIC,
        "source": "dsn",
        "key": key,
    }
    return RecordBounce(**(values | changed))


@pytest.fixture
def shard():
    """Six people who all got the mail of campaign 7."""
    shard = SendingShard()
    shard.start(plan(sending_domain="news.example"))
    grant = shard.lease(provider="google")
    shard.refs = refs(grant)
    shard.settle(1, *(shard.outcome(ref, OutcomeKind.ACCEPTED) for ref in shard.refs))
    shard.pass_time(hours=1)
    return shard


def suppressions(shard):
    return shard.rows("SELECT address, reason, expires_at FROM suppressions ORDER BY 1")


def events(shard, kind):
    return shard.rows(
        "SELECT subscriber_id, item, campaign_id, message_key, properties FROM events"
        " WHERE type = ?",
        kind,
    )


def test_a_hard_bounce_in_one_commit(shard):
    ref = shard.refs[0]
    person = ref.subscriber_id
    shard.leased(person, 99, kind="transactional")
    address = f"p{person}@d{person % 2}.example"
    decision = shard.run(bounce(ref))
    assert decision.answer == (True, person, Suppressed(address, Stop("hard_bounce"), person))
    assert suppressions(shard) == [(address, "hard_bounce", None)]
    ((who, item, campaign, message, properties),) = events(shard, "bounced")
    assert (who, item, campaign, message) == (person, "hard", CAMPAIGN, ref.message_key)
    assert json.loads(properties) == {
        "category": "unknown_user",
        "diagnostic": DIAGNOSTIC,
        "source": "dsn",
    }
    row = next(
        r
        for r in [shard.database.table("SELECT * FROM ledger").to_pylist()][0]
        if (r["subscriber_id"], r["message_key"]) == ref
    )
    assert (row["state"], row["bounced_at"], row["bounce_class"], row["category"]) == (
        "accepted", START, "hard", "unknown_user",
    )  # fmt: skip
    assert decision.pushes == (
        Push("sender-00", "revoke", (None, ((person, 99),))),
        Push(
            "reputation",
            "observe",
            (
                [
                    Observed(
                        START, Seen.BOUNCED, "news.example", "mx-a", "google", "", CAMPAIGN,
                        BounceClass.HARD, "unknown_user", 0, DIAGNOSTIC,
                    )
                ],
            ),
        ),
    )  # fmt: skip
    assert shard.history[-1]["type"] == "suppression_changed"


def test_the_same_bounce_counts_once_whatever_its_key(shard):
    ref = shard.refs[0]
    shard.run(bounce(ref))
    again = shard.run(bounce(ref, key="k2", source="ses"))
    assert (again.answer.counted, again.changes, again.pushes) == (False, (), ())
    assert again.answer.suppressed.stop == Stop("hard_bounce")
    assert len(events(shard, "bounced")) == 1


def test_a_soft_bounce_that_turns_out_to_be_for_good(shard):
    ref = shard.refs[0]
    assert shard.answer(bounce(ref, "soft")).suppressed is None
    decision = shard.run(bounce(ref, "hard", key="k2"))
    assert (decision.answer.counted, decision.answer.suppressed.stop.reason) == (
        False,
        "hard_bounce",
    )
    assert len(events(shard, "bounced")) == 1
    shard.run(bounce(ref, "soft", key="k3"))
    assert shard.rows("SELECT DISTINCT bounce_class FROM ledger WHERE bounced_at IS NOT NULL") == [
        ("hard",)
    ]


@pytest.mark.parametrize("kind", ["block", "message"])
def test_what_is_not_about_the_address_does_not_count_against_it(shard, kind):
    ref = shard.refs[0]
    assert shard.answer(bounce(ref, kind)) == (True, ref.subscriber_id, None)
    assert suppressions(shard) == []
    assert events(shard, "bounced")[0][1] == kind


@pytest.mark.parametrize("kind", ["", "complaint", "hrad"])
def test_a_class_that_is_none(shard, kind):
    with pytest.raises(InvalidRequest):
        shard.run(bounce(shard.refs[0], kind))


def test_a_complaint_stops_everything_once(shard):
    ref = shard.refs[1]
    shard.leased(ref.subscriber_id, 99, kind="transactional")
    complaint = RecordComplaint(ref, START, "abuse", "fbl", "c1")
    decision = shard.run(complaint)
    assert decision.answer.suppressed.stop == Stop("complaint")
    assert [push.to for push in decision.pushes] == ["sender-00", "reputation"]
    assert decision.pushes[1].arguments[0][0].seen is Seen.COMPLAINED
    assert [event[:2] for event in events(shard, "complained")] == [(ref.subscriber_id, "abuse")]
    again = shard.run(RecordComplaint(ref, START, "abuse", "webhook", "c2"))
    assert (again.answer.counted, again.changes) == (False, ())


@pytest.mark.parametrize("kind", ["not-spam", "auth-failure", "virus"])
def test_feedback_that_is_no_complaint(shard, kind):
    decision = shard.run(RecordComplaint(shard.refs[0], START, kind, "fbl", "c1"))
    assert (decision.answer.counted, decision.changes, decision.pushes) == (False, (), ())


def test_a_complaint_outweighs_what_stops_marketing_only(shard):
    person = shard.refs[0].subscriber_id
    address = f"p{person}@d{person % 2}.example"
    shard.suppress(address, "unsubscribed")
    shard.run(RecordComplaint(shard.refs[0], START, "abuse", "fbl", "c1"))
    assert suppressions(shard) == [(address, "complaint", None)]


def of_test(shard, person=3):
    """A test mail, filled with a person's values and sent to somebody else."""
    ref = MessageRef(person, 500)
    row = {"kind": "test", "state": "accepted", "send_to": "Me@Own.example", "changed_at": START}
    shard.leased(*ref, **row)
    return ref


def test_what_comes_back_of_a_test_never_touches_the_person(shard):
    ref = of_test(shard)
    decision = shard.run(bounce(ref))
    assert suppressions(shard) == [("me@own.example", "hard_bounce", None)]
    assert events(shard, "bounced") == []
    assert [push.to for push in decision.pushes] == ["reputation"]
    shard.run(RecordComplaint(ref, START, "abuse", "fbl", "c1"))
    assert suppressions(shard) == [("me@own.example", "complaint", None)]
    assert events(shard, "complained") == []


def message(shard, person, key, at, **changed):
    values = {"state": "accepted", "changed_at": at, "send_to": None}
    shard.leased(person, key, **(values | changed))
    return MessageRef(person, key)


def softly(shard, person, days, **changed):
    """Bounces, soft ones, of messages that went out on these days."""
    answers = []
    for day in days:
        at = START + timedelta(days=day)
        ref = message(shard, person, 1_000 + day, at, **changed)
        shard.now = at + timedelta(hours=1)
        answers.append(shard.answer(bounce(ref, "soft", key=f"s{person}-{day}")))
    return answers


def test_five_soft_bounces_in_a_row_over_days_suppress_for_a_month():
    shard = SendingShard()
    answers = softly(shard, 1, (0, 1, 2, 3, 4))
    assert [answer.suppressed for answer in answers[:4]] == [None] * 4
    ends = shard.now + timedelta(days=30)
    assert answers[4].suppressed == ("p1@d1.example", ("soft_bounces", ends), 1)
    shard.pass_time(days=31)
    later = softly(shard, 1, (40,))
    assert later[0].suppressed.stop.expires_at == shard.now + timedelta(days=30)


def test_five_within_a_day_are_one_trouble():
    shard = SendingShard()
    for hour in range(6):
        ref = message(shard, 1, hour, START + timedelta(hours=hour))
        shard.answer(bounce(ref, "soft", key=f"k{hour}"))
    assert suppressions(shard) == []


def test_one_that_was_accepted_and_stayed_ends_the_row():
    shard = SendingShard()
    softly(shard, 1, (0, 1, 2))
    message(shard, 1, 5_000, START + timedelta(days=2, hours=5))
    answers = softly(shard, 1, (3, 4, 5, 6))
    assert all(answer.suppressed is None for answer in answers)
    assert softly(shard, 1, (7,))[0].suppressed.stop.reason == "soft_bounces"


def test_failures_about_us_or_the_message_neither_count_nor_end_the_row():
    shard = SendingShard()
    softly(shard, 1, (0, 1, 2, 3))
    for key, kind in ((6_000, "block"), (6_001, "message")):
        ref = message(shard, 1, key, START + timedelta(days=3, hours=5))
        shard.answer(bounce(ref, kind, key=str(key)))
    assert suppressions(shard) == []
    assert softly(shard, 1, (4,))[0].suppressed is not None


def test_a_soft_bounce_never_shortens_anything():
    shard = SendingShard()
    for reason in ("manual", "complaint", "unsubscribed"):
        shard.suppress("p1@d1.example", reason)
        answers = softly(shard, 1, range(0, 6))
        assert answers[-1].suppressed == ("p1@d1.example", (reason, None), 1)


def claimed(shard, person, value, at, state="confirmed"):
    shard.load(
        "identities",
        {"kind": "email", "value": value, "subscriber_id": person, "state": state,
         "claimed_at": at},
    )  # fmt: skip


def changed_address():
    """Person 1 got a mail at the old address and has a new one since."""
    shard = SendingShard()
    ref = message(shard, 1, 10, START)
    claimed(shard, 1, "old@x.example", START - timedelta(days=9))
    claimed(shard, 1, "p1@d1.example", START + timedelta(hours=1))
    shard.load("profiles", {"subscriber_id": 1, "updated_at": START + timedelta(hours=1)})
    shard.pass_time(hours=2)
    return shard, ref


def test_the_address_that_the_person_took_later_is_not_the_one_that_failed():
    shard, ref = changed_address()
    assert shard.answer(bounce(ref)).suppressed == ("old@x.example", ("hard_bounce", None), 1)


def test_a_report_chooses_among_the_persons_own_addresses_alone():
    shard, ref = changed_address()
    answer = shard.answer(bounce(ref, recipient="P1@d1.example"))
    assert answer.suppressed.address == "p1@d1.example"
    shard, ref = changed_address()
    answer = shard.answer(bounce(ref, recipient="victim@elsewhere.example"))
    assert answer.suppressed.address == "old@x.example"


def test_a_forwarding_target_is_no_reason_to_spare_the_address(shard):
    ref = shard.refs[0]
    answer = shard.answer(bounce(ref, recipient="forwarded@elsewhere.example"))
    assert answer.suppressed.address.startswith(f"p{ref.subscriber_id}@")


def test_soft_failures_at_an_earlier_address_do_not_count():
    shard = SendingShard()
    softly(shard, 1, (0, 1, 2, 3))
    claimed(shard, 1, "p1@d1.example", START + timedelta(days=3, hours=12))
    shard.load("profiles", {"subscriber_id": 1, "updated_at": START + timedelta(days=3, hours=12)})
    assert all(a.suppressed is None for a in softly(shard, 1, (4, 5, 6, 7)))
    assert softly(shard, 1, (8,))[0].suppressed is not None


def test_messages_that_left_memory(shard):
    """Nobody can say any more that it was no test: only the person's own address goes."""
    ref = MessageRef(2, 12345)
    answer = shard.answer(bounce(ref))
    assert (answer.counted, answer.suppressed) == (True, None)
    ref = MessageRef(2, 12346)
    answer = shard.answer(bounce(ref, recipient="P2@d0.example"))
    assert answer.suppressed.address == "p2@d0.example"
    assert not shard.answer(bounce(ref, key="k2")).counted
    other = RecordComplaint(MessageRef(3, 1), START, "abuse", "fbl", "c1", "me@own.example")
    assert shard.answer(other).suppressed is None
    unnamed = RecordComplaint(MessageRef(4, 1), START, "abuse", "fbl", "c2")
    assert shard.answer(unnamed).suppressed.address == "p4@d0.example"


def test_somebody_who_is_gone(shard):
    ref = shard.refs[0]
    shard.delete_person(ref.subscriber_id)
    decision = shard.run(bounce(ref))
    assert (decision.answer.person, decision.answer.suppressed) == (None, None)
    assert events(shard, "bounced") == []
    gone = shard.run(RecordComplaint(ref, START, "abuse", "fbl", "c"))
    assert gone.answer == (False, None, None)


def test_an_instant_in_the_future_is_now(shard):
    shard.run(bounce(shard.refs[0], occurred_at=START + timedelta(days=400)))
    assert shard.rows("SELECT occurred_at FROM events WHERE type = 'bounced'") == [(shard.now,)]


def test_a_repeated_command_says_what_stands(shard):
    command = bounce(shard.refs[0])
    first = shard.answer(command)
    repeated = command.repeat(shard.database, shard_context(shard))
    assert repeated == first._replace(counted=False)
    shard.answer(LiftSuppression(None, "email", first.suppressed.address, "operator", "it works"))
    assert command.repeat(shard.database, shard_context(shard)).suppressed is None


def shard_context(shard):
    from manta.command import Context

    return Context(shard.now, shard.random, "default", 0)


# -- by address ------------------------------------------------------------------------------------


def bounce_of(address, kind="hard", key="k1"):
    return RecordBounceOf(address, START, kind, "unknown_user", DIAGNOSTIC, "ses", key)


def test_a_bounce_of_an_address_whose_person_lives_here():
    shard = Shard()
    person = shard.person("Ann@x.example")
    decision = shard.run(bounce_of("ann@X.example"))
    assert decision.answer == (True, person, ("ann@x.example", ("hard_bounce", None), person))
    assert events(shard, "bounced")[0][:4] == (person, "hard", None, None)
    assert shard.run(bounce_of("ann@X.example")).changes == ()
    assert len(events(shard, "bounced")) == 1


def test_a_bounce_of_an_address_in_two_shards():
    owner, home = Shard(1), Shard(2)
    person = home.person("other@x.example")
    claimed(owner, person, "ann@x.example", START)
    first = owner.answer(bounce_of("ann@x.example"))
    assert first == (True, person, ("ann@x.example", ("hard_bounce", None), person))
    assert owner.history == []
    claimed(home, person, "ann@x.example", START)
    assert home.answer(bounce_of("ann@x.example")).counted
    assert [event["type"] for event in home.history] == ["bounced", "suppression_changed"]


def test_an_address_that_nobody_has_is_suppressed_all_the_same():
    shard = Shard()
    answer = shard.answer(RecordComplaintOf("x@y.example", START, "abuse", "ses", "k"))
    assert answer == (True, None, ("x@y.example", ("complaint", None), None))
    again = shard.run(RecordComplaintOf("x@y.example", START, "abuse", "ses", "k2"))
    assert (again.answer.counted, again.changes) == (False, ())


def test_what_comes_of_an_address_is_told_of_the_last_message_its_person_got(shard):
    person = shard.refs[0][0]
    (address,) = shard.rows("SELECT email FROM profiles WHERE subscriber_id = ?", person)[0]
    claimed(shard, person, address, START)
    decision = shard.run(RecordComplaintOf(address, START, "abuse", "ses", "k"))
    (observed,) = [push.arguments[0][0] for push in decision.pushes if push.to == "reputation"]
    assert observed == Observed(
        START, Seen.COMPLAINED, "news.example", "mx-a", "google", "", CAMPAIGN,
        BounceClass.COMPLAINT, "", 0, "",
    )  # fmt: skip
    decision = shard.run(bounce_of(address))
    (observed,) = [push.arguments[0][0] for push in decision.pushes if push.to == "reputation"]
    assert (observed.seen, observed.bounce_class, observed.campaign_id) == (
        Seen.BOUNCED, BounceClass.HARD, CAMPAIGN,
    )  # fmt: skip
    assert all(push.to != "reputation" for push in shard.run(bounce_of(address)).pushes)
    shard.pass_time(days=31)
    late = RecordComplaintOf(address, shard.now, "abuse", "ses", "k2")
    assert all(push.to != "reputation" for push in shard.run(late).pushes)


def test_a_soft_bounce_of_an_address_counts_with_those_of_messages():
    shard = SendingShard()
    claimed(shard, 1, "p1@d1.example", START - timedelta(days=9))
    softly(shard, 1, (0, 1, 2, 3))
    command = bounce_of("p1@d1.example", "soft")
    shard.pass_time(days=1)
    late = RecordBounceOf(**(vars(command) | {"occurred_at": shard.now}))
    assert shard.answer(late).suppressed.stop.reason == "soft_bounces"


def test_lifting_keeps_who_and_why():
    shard = Shard()
    shard.answer(bounce_of("x@y.example"))
    shard.answer(LiftSuppression(None, "email", "X@y.example", "api:abc", "customer called"))
    last = shard.history[-1]
    said = json.loads(last["properties"])
    assert (last["subscriber_id"], said["old"], said["new"], said["source"], said["why"]) == (
        0, "hard_bounce", None, "api:abc", "customer called",
    )  # fmt: skip
