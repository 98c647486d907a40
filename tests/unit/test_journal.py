"""The journal: one owner, no lost acknowledgement, whatever the store answers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.clock import ManualClock
from manta.errors import (
    Damaged,
    Fenced,
    IncompatibleFormat,
    InvalidRequest,
    OutcomeUnknown,
    StoreUnavailable,
)
from manta.store import journal as journal_module
from manta.store.journal import Entry, Journal, Kind, decode_entry, encode_entry
from tests.faults import Faults, FaultyObjects, MemoryObjects

PREFIX = "journal/shard=000"


class World:
    """One store, one clock, many incarnations."""

    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.objects = FaultyObjects(MemoryObjects(self.clock), self.random)

    def journal(self, name: str = "a", kind: type[Journal] = Journal) -> Journal:
        return kind(
            self.objects,
            PREFIX,
            name,
            self.random.randbytes(16),
            self.clock,
            sleep=self.clock.advance,
        )


@pytest.fixture
def world() -> World:
    return World()


def bodies(journal: Journal, after: int = 0) -> list[bytes]:
    return [entry.body for entry in journal.replay(after) if entry.kind is Kind.DATA]


def test_appends_are_numbered_and_replayed_in_order(world: World) -> None:
    journal = world.journal()
    assert journal.take_over() == (1, 1)
    assert [journal.append(b"one"), journal.append(b"two")] == [2, 3]
    assert bodies(world.journal()) == [b"one", b"two"]
    assert journal.read(3) == Entry(3, 1, Kind.DATA, "a", journal._nonce, b"two")
    assert journal.read(4) is None


def test_a_later_owner_fences_the_earlier(world: World) -> None:
    first, second = world.journal("first"), world.journal("second")
    first.take_over()
    first.append(b"kept")
    assert second.take_over() == (2, 3)
    with pytest.raises(Fenced, match="second in epoch 2"):
        first.append(b"lost")
    with pytest.raises(Fenced):  # and so for ever
        first.append(b"lost")
    second.append(b"next")
    assert bodies(second) == [b"kept", b"next"]


def test_a_lost_reply_is_settled_by_reading(world: World) -> None:
    journal = world.journal()
    world.objects.faults = Faults(lose_reply=1.0)
    journal.take_over()
    assert journal.append(b"stored") == 2
    assert bodies(journal) == [b"stored"]


def test_a_time_out_is_put_again_until_it_stands(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    world.objects.faults = Faults(time_out=0.7, fail_read=0.3)
    assert [journal.append(b"%d" % n) for n in range(20)] == list(range(2, 22))
    world.objects.faults = Faults()
    assert bodies(journal) == [b"%d" % n for n in range(20)]


def test_a_definite_refusal_changes_nothing_and_the_number_is_used_again(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    world.objects.full = True
    with pytest.raises(StoreUnavailable):
        journal.append(b"rolled back")
    world.objects.full = False
    assert journal.append(b"later") == 2
    assert bodies(journal) == [b"later"]


def test_undecided_closes_the_journal(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    world.objects.down = True
    with pytest.raises(OutcomeUnknown, match="same key"):
        journal.append(b"?")
    assert 10 <= world.clock.monotonic() < 12
    world.objects.down = False
    with pytest.raises(OutcomeUnknown):
        journal.append(b"again")
    assert bodies(journal) == []


def test_a_manifest_of_a_newer_epoch_fences(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    journal.fence_if_newer(1)
    with pytest.raises(Fenced):
        journal.fence_if_newer(2)
    with pytest.raises(Fenced):
        journal.append(b"x")


def test_every_torn_length_is_detected_and_named(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    journal.append(b"some body")
    whole = world.objects.get(f"{PREFIX}/000000000002")
    assert whole is not None
    for length in range(len(whole)):
        world.objects.inner.put(f"{PREFIX}/000000000002", whole[:length])
        with pytest.raises(Damaged, match=f"{PREFIX}/000000000002"):
            list(journal.replay(0))


def test_every_flipped_bit_is_detected_and_named(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    journal.append(b"some body")
    path = f"{PREFIX}/000000000002"
    whole = world.objects.get(path)
    assert whole is not None
    for bit in range(len(whole) * 8):
        world.objects.flip(path, bit)
        with pytest.raises(Damaged) as raised:
            journal.read(2)
        assert raised.value.details["object"] == path
        world.objects.flip(path, bit)
    assert journal.read(2) is not None


def test_an_entry_under_another_number_or_journal_is_damage(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    journal.append(b"body")
    data = world.objects.get(journal.path(2))
    assert data is not None
    world.objects.put(journal.path(3), data)
    with pytest.raises(Damaged, match="says that it is entry 2"):
        journal.read(3)
    foreign = encode_entry(Entry(3, 1, Kind.DATA, "a", bytes(16), b""), "shard=001")
    world.objects.put(journal.path(3), foreign)
    with pytest.raises(Damaged, match="another journal"):
        journal.read(3)


def test_a_later_format_is_refused(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    data = world.objects.get(journal.path(1))
    assert data is not None
    world.objects.put(journal.path(1), data[:4] + b"\x00\x02" + data[6:])
    with pytest.raises(IncompatibleFormat, match="version 2"):
        journal.read(1)


def test_a_hole_is_named(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    for body in (b"a", b"b", b"c"):
        journal.append(body)
    world.objects.delete([journal.path(3)])
    with pytest.raises(Damaged, match=f"{PREFIX}/000000000003 is missing"):
        list(journal.replay(0))
    with pytest.raises(Damaged, match="is missing"):
        world.journal("b").take_over()


def test_truncation_keeps_epoch_entries_and_replay_goes_on_after_them(world: World) -> None:
    first, second = world.journal("first"), world.journal("second")
    first.take_over()
    first.append(b"a")
    second.take_over()
    second.append(b"b")
    second.append(b"c")
    assert second.truncate(4) == 2
    assert second.sequences() == [1, 3, 5]
    assert bodies(world.journal(), after=4) == [b"c"]
    assert world.journal("third").take_over(4, floor_epoch=2) == (3, 6)


def test_truncation_keeps_what_it_cannot_read(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    journal.append(b"a")
    journal.append(b"b")
    world.objects.tear(journal.path(2))
    assert world.journal("other").truncate(3) == 1
    assert journal.sequences() == [1, 2]


def stalled_owner_wakes(world: World, kind: type[Journal]) -> None:
    """Stopped before a take-over, woken after two manifests and a truncation."""
    stalled = world.journal("stalled", kind)
    stalled.take_over()
    for n in range(5):
        stalled.append(b"before %d" % n)
    successor = world.journal("successor", kind)
    successor.take_over()
    for _manifest in range(2):
        for n in range(5):
            successor.append(b"after %d" % n)
        successor.truncate(successor.tail)
    stalled.append(b"from the past")


def test_a_stalled_owner_is_fenced_after_truncation(world: World) -> None:
    with pytest.raises(Fenced, match="successor"):
        stalled_owner_wakes(world, Journal)


class ForgetsEpochs(Journal):
    """The mutant: truncation deletes EPOCH entries as well."""

    def truncate(self, up_to: int) -> int:
        doomed = [n for n in self.sequences() if n <= up_to]
        self._objects.delete(self.path(n) for n in doomed)
        return len(doomed)


def test_without_kept_epoch_entries_the_stalled_owner_would_succeed(world: World) -> None:
    stalled_owner_wakes(world, ForgetsEpochs)  # writes into the hole, unnoticed


def test_losing_the_race_of_a_take_over_takes_the_next_number(world: World) -> None:
    winner, loser = world.journal("winner"), world.journal("loser")
    read = loser._tail_or_hole

    def race(sequence: int) -> Entry | None:
        found = read(sequence)
        if not winner.epoch:
            winner.take_over()
            winner.append(b"quick")
        return found

    loser._tail_or_hole = race  # type: ignore[method-assign]
    assert loser.take_over() == (2, 3)
    with pytest.raises(Fenced, match="loser"):
        winner.append(b"x")


def test_a_refused_try_that_appears_after_all_is_not_taken_for_the_next(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    put = world.objects.inner.put_if_absent

    def lie(path: str, data: bytes) -> None:
        put(path, data)
        raise StoreUnavailable("refused, it says")

    world.objects.inner.put_if_absent = lie  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        journal.append(b"rolled back")
    world.objects.inner.put_if_absent = put  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown, match="an earlier try of this process"):
        journal.append(b"another")
    with pytest.raises(OutcomeUnknown):
        journal.append(b"another")


def test_damage_under_our_number_closes_the_journal(world: World) -> None:
    journal = world.journal()
    journal.take_over()
    world.objects.put(journal.path(2), b"not an entry")
    for _ in range(2):
        with pytest.raises(Damaged, match="000000000002"):
            journal.append(b"x")


def test_limits_and_misuse(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = world.journal()
    with pytest.raises(RuntimeError, match="before take_over"):
        journal.append(b"x")
    with pytest.raises(ValueError, match="floor_epoch"):
        journal.take_over(5)
    journal.take_over()
    monkeypatch.setattr(journal_module, "BODY_BYTES_MAX", 10)
    with pytest.raises(InvalidRequest, match="an entry of 11 bytes"):
        journal.append(b"x" * 11)
    assert journal.append(b"x" * 10) == 2
    for owner, nonce in (("a", b"short"), ("a" * 256, bytes(16))):
        with pytest.raises(ValueError, match="nonce"):
            Journal(world.objects, PREFIX, owner, nonce, world.clock)


@given(st.binary(max_size=300), st.text(max_size=60), st.integers(0, 2**40), st.integers(1, 10**12))
def test_what_is_encoded_is_decoded(body: bytes, owner: str, epoch: int, sequence: int) -> None:
    entry = Entry(sequence, epoch, Kind.DATA, owner, bytes(range(16)), body)
    assert decode_entry(encode_entry(entry, "x"), "x", sequence, "x/1") == entry


@given(st.binary(max_size=300))
def test_noise_is_damage_never_another_error(noise: bytes) -> None:
    for data in (noise, b"MNTJ\x00\x01" + noise):
        with pytest.raises(Damaged):
            decode_entry(data, "x", 1, "x/1")


def test_an_owner_knows_at_any_time_whether_it_has_been_overtaken(world: World) -> None:
    old = world.journal("a")
    old.take_over()
    old.append(b"1")
    old.confirm()
    world.journal("b").take_over()
    with pytest.raises(Fenced, match="must stop"):
        old.confirm()
    with pytest.raises(Fenced):
        old.append(b"2")
