"""What a Sender's journal proves, and what it does not when anything is missing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.clock import ManualClock
from manta.delivery.attempts import (
    Attempt,
    AttemptJournal,
    Entry,
    decode_entry,
    encode_entry,
    resolve,
)
from manta.delivery.outcomes import Outcome, OutcomeKind, outcomes_of
from manta.delivery.senders import Known
from manta.errors import Damaged, Fenced, IncompatibleFormat
from manta.store.journal import Journal
from tests.faults import MemoryObjects

NOW = ManualClock().now()
PREFIX = "w/journal/sender=00"
LEASE, MESSAGE = 11, (1, 2)

ids = st.integers(-(2**63), 2**63 - 1)
instants = st.one_of(st.none(), st.integers(0, 10**6).map(lambda s: NOW + timedelta(seconds=s)))
outcomes = st.builds(
    Outcome,
    ids,
    ids,
    st.sampled_from(OutcomeKind),
    st.just(NOW),
    st.text(max_size=20),
    st.integers(0, 999),
    st.text(max_size=20),
    st.text(max_size=5),
    instants,
)


class Store:
    """One journal's folder and its owners."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.objects = MemoryObjects(self.clock)
        self.owners = 0

    def owner(self) -> AttemptJournal:
        self.owners += 1
        nonce = bytes([self.owners]) * 16
        return AttemptJournal(Journal(self.objects, PREFIX, "sender-00", nonce, self.clock))

    def path(self, sequence: int) -> str:
        return f"{PREFIX}/{sequence:012d}"

    def verdicts(self, *held: Attempt, told: int = 0, known: Sequence[Known] = ()) -> list[str]:
        """What the next owner makes of these messages."""
        history = self.owner().take_over(known)
        columns = zip(*held, strict=True)
        rows = pa.table([pa.array(c, pa.int64()) for c in columns], names=Attempt._fields)
        table = resolve(history, rows, told, NOW)
        return [str(outcome.outcome) for outcome in outcomes_of(table.drop_columns("lease_id"))]


@settings(deadline=None)  # the first call imports what pyarrow needs
@given(
    st.integers(0, 10**9),
    st.lists(ids),
    st.lists(st.builds(Attempt, ids, ids, ids)),
    st.lists(st.tuples(ids, outcomes)),
)
def test_an_entry_survives_its_bytes(
    low_water: int,
    leases: list[int],
    attempts: list[Attempt],
    told: list[tuple[int, Outcome]],
) -> None:
    entry = Entry(low_water, tuple(leases), tuple(attempts), tuple(told))
    assert decode_entry(encode_entry(entry), "x") == entry


def test_what_is_no_entry_is_damaged() -> None:
    for body in (b"", b"nonsense", encode_entry(Entry(1, (1,)))[:-40]):
        with pytest.raises(Damaged):
            decode_entry(body, "x")
    with pytest.raises(IncompatibleFormat):
        decode_entry(b"MAE9" + encode_entry(Entry(1, (1,)))[4:], "x")


def outcome(message: tuple[int, int] = MESSAGE) -> Outcome:
    return Outcome(*message, OutcomeKind.ACCEPTED, NOW, reply_code=250)


def test_a_complete_journal_proves_everything_but_an_open_attempt() -> None:
    store = Store()
    journal = store.owner()
    journal.take_over([])
    journal.append(Entry(2, (LEASE,)))
    journal.append(Entry(2, (), (Attempt(LEASE, 1, 2), Attempt(LEASE, 3, 2))))
    journal.append(Entry(2, (), (), ((LEASE, outcome()),)))
    held = [Attempt(LEASE, 1, 2), Attempt(LEASE, 3, 2), Attempt(LEASE, 5, 2), Attempt(12, 7, 2)]
    assert store.verdicts(*held, told=4) == ["accepted", "uncertain", "returned", "uncertain"]


@pytest.mark.parametrize("lost", [1, 2, 3, 4, None])
@pytest.mark.parametrize("way", ["deleted", "torn", "flipped"])
def test_a_damaged_journal_proves_no_absence(lost: int | None, way: str) -> None:
    """Whichever entry of epoch, lease, attempt, another lease is gone, or all of them."""
    store = Store()
    journal = store.owner()
    journal.take_over([])
    journal.append(Entry(1, (LEASE,)))
    journal.append(Entry(1, (), (Attempt(LEASE, 1, 2),)))
    journal.append(Entry(1, (12,)))
    for sequence in [lost] if lost else [1, 2, 3, 4]:
        path = store.path(sequence)
        data = store.objects.get(path) or b""
        if way == "deleted":
            store.objects.delete([path])
        elif way == "torn":
            store.objects.put(path, data[:70])
        else:
            store.objects.put(path, data[:-1] + bytes([data[-1] ^ 1]))
    known = [Known(1, 4)]  # a shard was told of entry 4 with the lease 12
    held = (Attempt(LEASE, 1, 2), Attempt(LEASE, 3, 2), Attempt(12, 5, 2))
    assert store.verdicts(*held, told=4, known=known) == ["uncertain"] * 3


def test_an_outcome_on_record_counts_in_a_damaged_journal_too() -> None:
    store = Store()
    journal = store.owner()
    journal.take_over([])
    journal.append(Entry(1, (LEASE,)))
    journal.append(Entry(1, (), (), ((LEASE, outcome()),)))
    store.objects.delete([store.path(2)])
    assert store.verdicts(Attempt(LEASE, 1, 2), Attempt(LEASE, 3, 2)) == ["accepted", "uncertain"]


def test_truncation_below_the_low_water_keeps_the_proof() -> None:
    store = Store()
    journal = store.owner()
    journal.take_over([])
    journal.append(Entry(2, (10,)))
    journal.append(Entry(2, (LEASE,)))
    journal.append(Entry(3, (), (Attempt(LEASE, 1, 2),)))
    assert journal.truncate(3) == 1
    held = [Attempt(LEASE, 1, 2), Attempt(LEASE, 3, 2), Attempt(10, 5, 2)]
    assert store.verdicts(*held) == ["uncertain", "returned", "uncertain"]


def test_a_resolver_that_dies_leaves_the_proof_to_the_next() -> None:
    store = Store()
    journal = store.owner()
    journal.take_over([])
    journal.append(Entry(2, (LEASE,)))
    assert store.verdicts(Attempt(LEASE, 1, 2)) == ["returned"]
    assert store.verdicts(Attempt(LEASE, 1, 2)) == ["returned"]


def test_a_fence_stops_the_one_before_and_numbers_go_on_above_all_that_is_known() -> None:
    store = Store()
    old = store.owner()
    assert old.take_over([]).epoch == 1
    new = store.owner()
    history = new.take_over([Known(5, 40)])
    assert (history.epoch, history.fence) == (6, 41)
    with pytest.raises(Fenced):  # at the latest when it meets a later entry
        for _ in range(60):
            old.append(Entry(1, (LEASE,)))


def test_a_later_owner_stops_the_reader() -> None:
    store = Store()
    journal = store.owner()
    history = journal.take_over([])
    store.owner().take_over([])
    with pytest.raises(Fenced):
        journal._history(history.epoch, history.fence, 1)


def test_a_shard_that_was_told_more_than_there_is_ends_the_proof() -> None:
    store = Store()
    journal = store.owner()
    journal.take_over([])
    journal.append(Entry(2, (LEASE,)))
    assert store.verdicts(Attempt(LEASE, 1, 2), told=3) == ["uncertain"]
