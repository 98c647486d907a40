"""What a Sender may do next: nothing goes out, or is settled, before the journal has it."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pyarrow as pa
import pytest

from manta.clock import ManualClock
from manta.delivery.lanes import Lane
from manta.delivery.leasing import Grant
from manta.delivery.outcomes import Outcome, OutcomeKind, outcomes_of
from manta.delivery.replies import Reply, Verdict
from manta.delivery.reputation.observations import BounceClass
from manta.delivery.sending import (
    Burst,
    Refusal,
    Sending,
    SendingSettings,
    Tried,
    Wanted,
    outcome_of,
)
from manta.delivery.settling import Settle
from manta.ids import MessageRef

NOW = ManualClock().now()
LEASE = 5
LANE = Lane("pool", "mx-a", "mx.b.example", "b")
A, B, C = MessageRef(1, 9), MessageRef(2, 9), MessageRef(3, 9)


def grant(*refs: MessageRef, withheld: tuple[tuple[int, int], ...] = ()) -> Grant:
    count = len(refs)
    return Grant(
        pa.table(
            {
                "subscriber_id": pa.array([ref.subscriber_id for ref in refs], pa.int64()),
                "message_key": pa.array([ref.message_key for ref in refs], pa.int64()),
                "campaign_id": pa.array([7] * count, pa.int32()),
                "expires_at": pa.array([NOW + timedelta(hours=1)] * count, pa.timestamp("us")),
                "attempts": pa.array([0] * count, pa.uint16()),
            }
        ),
        withheld=withheld,
    )


def opened() -> Sending:
    """A Sender whose "lease opened" is stored as entry 2, and which has not asked yet."""
    sending = Sending("sender-00", 1, 1, 1)
    sending.resolved()
    sending.open_lease(LEASE, 0, Wanted(LANE))
    entry = sending.next_entry()
    assert entry is not None and entry.leases == (LEASE,)
    sending.stored(2)
    return sending


def granted(*refs: MessageRef) -> Sending:
    sending = opened()
    sending.granted(LEASE, grant(*(refs or (A, B, C))), 0.0, NOW)
    return sending


def accepted(ref: MessageRef) -> Outcome:
    return Outcome(*ref, OutcomeKind.ACCEPTED, NOW)


def burst_of(sending: Sending, limit: int = 10, now_s: float = 1.0) -> Burst:
    burst = sending.take_burst(LEASE, limit, now_s, NOW)
    assert burst is not None
    return burst


def stored_burst(sending: Sending, sequence: int = 3) -> Burst:
    burst = burst_of(sending)
    assert sending.next_entry() is not None
    sending.stored(sequence)
    return burst


def kinds(settle: Settle | None) -> dict[int, str]:
    assert settle is not None
    return {o.subscriber_id: str(o.outcome) for o in outcomes_of(settle.outcomes)}


def test_the_shard_is_asked_after_the_lease_is_on_record() -> None:
    sending = Sending("sender-00", 1, 1, 1)
    sending.open_lease(LEASE, 0, Wanted(LANE))
    with pytest.raises(AssertionError):
        sending.lease_command(LEASE)
    sending.next_entry()
    sending.refused()
    assert not sending.is_opened(LEASE)
    entry = sending.next_entry()
    assert entry is not None and entry.leases == (LEASE,)
    sending.stored(2)
    assert sending.lease_command(LEASE).journal_sequence == 2


def test_nothing_is_on_the_wire_before_its_attempt_is_stored() -> None:
    sending = granted()
    burst = burst_of(sending, 2)
    with pytest.raises(AssertionError):
        sending.on_the_wire(burst, 1.0, NOW)
    entry = sending.next_entry()
    assert entry is not None and [a.subscriber_id for a in entry.attempts] == [1, 2]
    assert sending.next_entry() is None  # one at a time
    sending.stored(3)
    assert sending.on_the_wire(burst, 1.0, NOW) == [A, B]


def test_nothing_is_settled_before_its_outcome_is_stored() -> None:
    sending = granted(A)
    sending.on_the_wire(stored_burst(sending), 1.0, NOW)
    assert sending.next_settle(LEASE, 1.0, NOW) is None
    sending.decide(LEASE, accepted(A))
    assert sending.next_settle(LEASE, 1.0, NOW) is None
    entry = sending.next_entry()
    assert entry is not None and entry.outcomes == ((LEASE, accepted(A)),)
    sending.stored(4)
    settle = sending.next_settle(LEASE, 1.0, NOW)
    assert kinds(settle) == {1: "accepted"} and settle is not None
    assert settle.journal_sequence == 4
    assert sending.next_settle(LEASE, 1.0, NOW) is None
    sending.settled(LEASE)
    assert sending.leases == {} and sending.is_spent(LEASE)


def test_a_burst_whose_attempts_were_refused_is_not_sent() -> None:
    sending = granted(A)
    burst = burst_of(sending)
    sending.next_entry()
    sending.refused()
    assert sending.on_the_wire(burst, 1.0, NOW) == []
    assert burst_of(sending).refs == (A,)


def test_outcomes_survive_a_refusal() -> None:
    sending = granted(A)
    sending.on_the_wire(stored_burst(sending), 1.0, NOW)
    sending.decide(LEASE, accepted(A))
    sending.next_entry()
    sending.refused()
    entry = sending.next_entry()
    assert entry is not None and len(entry.outcomes) == 1


def test_what_is_stale_goes_back() -> None:
    sending = granted()
    burst = burst_of(sending, 1)
    sending.next_entry()
    sending.stored(3)
    assert sending.on_the_wire(burst, 5.1, NOW) == []  # its attempt is on record: so is the return
    assert sending.take_burst(LEASE, 10, 5.1, NOW) is None
    assert kinds(sending.next_settle(LEASE, 5.1, NOW)) == {2: "returned", 3: "returned"}
    sending.settled(LEASE)
    sending.next_entry()
    sending.stored(4)
    assert kinds(sending.next_settle(LEASE, 5.1, NOW)) == {1: "returned"}


@pytest.mark.parametrize("whole", [True, False], ids=["campaign", "message"])
def test_a_revocation_is_looked_for_at_the_burst_and_on_the_wire(whole: bool) -> None:
    sending = granted(A, B)
    burst = burst_of(sending, 1)
    sending.next_entry()
    sending.stored(3)
    assert sending.revoke(7 if whole else None, () if whole else (A, B)) == 1
    assert sending.on_the_wire(burst, 1.0, NOW) == []
    assert sending.take_burst(LEASE, 10, 1.0, NOW) is None


def test_a_revocation_that_overtakes_the_grant_counts() -> None:
    sending = opened()
    sending.revoke(None, (A,))
    sending.granted(LEASE, grant(A, B), 0.0, NOW)
    assert burst_of(sending).refs == (B,)


def test_the_expired_and_the_withheld_are_not_attempted() -> None:
    sending = opened()
    sending.granted(LEASE, grant(A, withheld=((8, 9),)), 0.0, NOW)
    assert sending.take_burst(LEASE, 10, 1.0, NOW + timedelta(hours=2)) is None
    assert kinds(sending.next_settle(LEASE, 1.0, NOW)) == {1: "expired", 8: "returned"}


def test_a_failed_settle_goes_again() -> None:
    sending = granted(A)
    sending.give_back(LEASE, NOW, "the lane is closed")
    first = kinds(sending.next_settle(LEASE, 1.0, NOW))
    sending.settle_failed(LEASE)
    assert kinds(sending.next_settle(LEASE, 1.0, NOW)) == first == {1: "returned"}


def test_the_low_water_waits_for_the_oldest_open_lease() -> None:
    sending = Sending("sender-00", 2, 9, 4)
    assert sending.low_water == 4  # earlier incarnations are not resolved
    sending.resolved()
    assert sending.low_water == 10
    for number, lease_id in enumerate((1, 2), start=10):
        sending.open_lease(lease_id, 0, Wanted(LANE))
        sending.next_entry()
        sending.stored(number)
    assert sending.low_water == 10
    sending.granted(1, grant(), 0.0, NOW)  # nothing was due: the lease ends
    assert sending.low_water == 11
    sending.abandon(2)
    assert sending.low_water == 12


def test_what_is_known_of_a_granted_message() -> None:
    sending = granted(A, B)
    assert sending.tried(LEASE, B) == Tried(B, 0, NOW + timedelta(hours=1))


def test_a_lease_asks_for_its_lane() -> None:
    sending = Sending("sender-00", 1, 1, 1)
    wanted = Wanted(LANE, 9, ("b.example",), ("c.example",), (8,), True)
    sending.open_lease(LEASE, 0, wanted)
    sending.next_entry()
    sending.stored(2)
    lease = sending.lease_command(LEASE)
    assert (lease.source, lease.site, lease.provider) == LANE[1:]
    assert (lease.serves, lease.limit, lease.engaged_only) == (("pool",), 9, True)
    assert (lease.domains, lease.except_domains) == (("b.example",), ("c.example",))
    assert lease.without == (8,)


def test_what_must_not_be_sent_fails_without_an_attempt() -> None:
    sending = granted(A, B, C)
    burst = burst_of(sending, 1)
    sending.revoke(None, (B,))
    refusal = Refusal("no such domain", BounceClass.HARD, "BadDomain")
    assert sending.refuse(LEASE, (A, B, C), refusal, 1.0, NOW) == [C]
    settle = sending.next_settle(LEASE, 1.0, NOW)
    assert kinds(settle) == {2: "returned", 3: "failed"} and settle is not None
    failed = outcomes_of(settle.outcomes)[1]
    assert (failed.reason, failed.bounce_class, failed.category, failed.source) == (
        "no such domain",
        "hard",
        "BadDomain",
        "mx-a",
    )
    assert burst.refs == (A,) and sending.next_entry() is not None


@pytest.mark.parametrize(
    ("verdict", "before", "kind", "waits"),
    [
        (Verdict.ACCEPTED, 0, OutcomeKind.ACCEPTED, False),
        (Verdict.FAILED, 0, OutcomeKind.FAILED, False),
        (Verdict.UNCERTAIN, 0, OutcomeKind.UNCERTAIN, False),
        (Verdict.NOT_SENT, 0, OutcomeKind.RETURNED, True),
        (Verdict.DEFERRED, 0, OutcomeKind.DEFERRED, True),
        (Verdict.DEFERRED, 31, OutcomeKind.EXPIRED, False),
    ],
)
def test_what_a_reply_means(verdict: Verdict, before: int, kind: OutcomeKind, waits: bool) -> None:
    code = {Verdict.ACCEPTED: 250, Verdict.FAILED: 550}.get(verdict, 451)
    reply = Reply(verdict, code, "text", "why")
    outcome = outcome_of(Tried(A, before, None), reply, "mx-a", NOW, Random(1), SendingSettings())
    assert outcome.outcome is kind
    assert (outcome.due_at is not None) == waits
    assert outcome.due_at is None or outcome.due_at > NOW


def refused(code: int, text: str, before: int = 0, expires_in: timedelta | None = None) -> Outcome:
    verdict = Verdict.DEFERRED if code < 500 else Verdict.FAILED
    expires_at = None if expires_in is None else NOW + expires_in
    tried = Tried(A, before, expires_at)
    reply = Reply(verdict, code, text, "why")
    return outcome_of(tried, reply, "mx-a", NOW, Random(1), SendingSettings())


def test_a_refusal_is_classified() -> None:
    outcome = refused(550, "5.1.1 user unknown")
    assert (outcome.bounce_class, outcome.category) == ("hard", "InvalidRecipient")
    assert outcome.reason and outcome.reason != "why"
    impossible = Reply(Verdict.FAILED, 0, "x", "address is not valid")
    found = outcome_of(Tried(A, 0, None), impossible, "mx-a", NOW, Random(1), SendingSettings())
    assert (found.bounce_class, found.category, found.reason) == ("", "", "address is not valid")


def test_a_greylister_is_asked_again_soon_twice() -> None:
    waits = []
    for before in range(3):
        outcome = refused(451, "4.7.1 Greylisted, please try again in 300 seconds", before)
        assert (outcome.outcome, outcome.category) == (OutcomeKind.DEFERRED, "Greylisted")
        assert outcome.due_at is not None
        waits.append((outcome.due_at - NOW).total_seconds())
    assert all(225 <= wait_s <= 375 for wait_s in waits[:2]) and waits[2] > 1_000


def test_what_would_be_tried_again_too_late_expires_with_the_last_reply() -> None:
    late = refused(451, "4.3.2 system busy", 3, timedelta(hours=1))
    assert (late.outcome, late.due_at) == (OutcomeKind.EXPIRED, None)
    assert late.reason.startswith("expired after 4 attempts: ")
    assert (late.reply_code, late.reply) == (451, "4.3.2 system busy") and late.category
    assert refused(451, "4.3.2 system busy", 0, timedelta(hours=1)).outcome is OutcomeKind.DEFERRED
