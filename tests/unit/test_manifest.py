"""Manifests: the highest number wins, stale owners lose, recovery survives a living predecessor."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from random import Random

import pytest

from manta.clock import ManualClock
from manta.errors import Damaged, Fenced, IncompatibleFormat, OutcomeUnknown, StoreUnavailable
from manta.store.journal import Entry, Journal, TakeOver
from manta.store.manifest import (
    FileEntry,
    Manifest,
    Manifests,
    Recovered,
    decode_manifest,
    encode_manifest,
    recover,
)
from tests.faults import Faults, FaultyObjects, MemoryObjects

PREFIX = "manifest/shard=000"
LAKE = "lake/shard=000"
DAY = 86_400


class World:
    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.objects = FaultyObjects(MemoryObjects(self.clock), self.random)

    def manifests(self) -> Manifests:
        return Manifests(self.objects, PREFIX, self.clock, sleep=self.clock.advance)


@pytest.fixture
def world() -> World:
    return World()


def manifest(number: int = 0, epoch: int = 1, sequence: int = 10, *files: str) -> Manifest:
    entries = tuple(FileEntry(f"{LAKE}/{name}", 5, 100, "part") for name in files)
    return Manifest(number, "shard-000", epoch, sequence, {"events": entries} if entries else {})


def test_what_is_published_is_read_again(world: World) -> None:
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 2, 3, 4, 5, 6)
    part = FileEntry("lake/shard=000/events/1.parquet", 5, 100, "part", start, end, 2, 9)
    delta = FileEntry("lake/shard=000/profiles/1.parquet", 3, 80, "delta", None, None, 2, 9)
    given = Manifest(
        0, "shard-000", 3, 9, {"events": (part,), "profiles": (delta,)}, {"keys": [1, {"a": None}]}
    )
    assert world.manifests().latest() is None
    published = world.manifests().publish(given)
    assert published.number == 1
    assert world.manifests().latest() == published
    assert published.paths() == {part.path, delta.path}
    assert world.objects.list("") == ["manifest/shard=000/000001.json"]


def test_the_highest_number_wins(world: World) -> None:
    manifests = world.manifests()
    held = manifest()
    for sequence in range(1, 13):
        held = manifests.publish(manifest(held.number, 1, sequence))
    assert held.number == 12
    world.objects.delete([manifests.path(n) for n in range(1, 9)])
    assert world.manifests().latest() == held


def test_another_owner_of_the_same_or_a_later_epoch_fences(world: World) -> None:
    mine, other = world.manifests(), world.manifests()
    other.publish(manifest(0, 2, 11))
    for epoch in (1, 2):
        with pytest.raises(Fenced, match="epoch 2 up to entry 11"):
            mine.publish(manifest(0, epoch, 12))


def test_a_stalled_owners_late_manifest_is_passed_over(world: World) -> None:
    late, current = world.manifests(), world.manifests()
    late.publish(manifest(0, 1, 10))
    published = current.publish(manifest(0, 2, 15))
    assert published.number == 2
    assert current.latest() == published


def test_an_older_epoch_that_is_ahead_fences(world: World) -> None:
    world.manifests().publish(manifest(0, 1, 20))
    with pytest.raises(Fenced):
        world.manifests().publish(manifest(0, 2, 15))


def test_a_number_deleted_long_ago_is_no_free_place(world: World) -> None:
    current = world.manifests()
    held = manifest()
    for sequence in range(1, 6):
        held = current.publish(manifest(held.number, 2, sequence))
    world.objects.delete([current.path(n) for n in range(1, 5)])
    with pytest.raises(Fenced):
        world.manifests().publish(manifest(1, 1, 2))
    assert current.latest() == held


def test_unknown_outcomes_of_our_own_do_not_fence_us(world: World) -> None:
    manifests = world.manifests()
    world.objects.faults = Faults(lose_reply=1.0, fail_read=1.0)
    for sequence in (1, 2):
        with pytest.raises(OutcomeUnknown):
            manifests.publish(manifest(0, 1, sequence))
    world.objects.faults = Faults()
    assert manifests.publish(manifest(0, 1, 3)).number == 2
    assert manifests.latest() == manifest(2, 1, 3)


def test_a_refused_manifest_is_not_there(world: World) -> None:
    world.objects.full = True
    with pytest.raises(StoreUnavailable):
        world.manifests().publish(manifest())
    assert world.manifests().latest() is None


def test_damage_is_detected_and_named(world: World) -> None:
    manifests = world.manifests()
    manifests.publish(manifest(0, 1, 10, "a", "b"))
    path = manifests.path(1)
    whole = world.objects.get(path)
    assert whole is not None
    for length in range(len(whole) - 1):
        with pytest.raises(Damaged, match=path):
            decode_manifest(whole[:length], path)
    unnoticed = set()
    for bit in range(len(whole) * 8):
        world.objects.flip(path, bit)
        try:
            changed = manifests.read(1)
        except Damaged as fault:
            assert fault.details["object"] == path
        else:
            unnoticed.add(bit // 8)
            assert changed == manifest(1, 1, 10, "a", "b")
        world.objects.flip(path, bit)
    assert unnoticed <= {len(whole) - 1}  # the line end at most
    with pytest.raises(Damaged, match="says that it is number 1"):
        decode_manifest(whole, manifests.path(2))
    later = encode_manifest(Manifest(1, "s", 1, 1, format_version=2))
    with pytest.raises(IncompatibleFormat, match="version 2"):
        decode_manifest(later, path)


def test_a_listed_manifest_that_is_gone_is_no_empty_store(world: World) -> None:
    manifests = world.manifests()
    manifests.publish(manifest())
    world.objects.get = lambda path: None  # type: ignore[method-assign]
    with pytest.raises(Damaged, match="is listed but is not there"):
        manifests.latest()


def test_garbage_goes_a_day_after_no_manifest_names_it(world: World) -> None:
    manifests = world.manifests()

    def lake() -> list[str]:
        return [path.rsplit("/", 1)[-1] for path in world.objects.list(f"{LAKE}/")]

    for name in ("a", "b", "stray"):
        world.objects.put(f"{LAKE}/{name}", b"")
    first = manifests.publish(manifest(0, 1, 10, "a", "b"))
    world.clock.advance(5 * DAY)
    assert manifests.collect_garbage(LAKE) == [f"{LAKE}/stray"]
    world.objects.put(f"{LAKE}/ab", b"")
    world.objects.put(f"{LAKE}/in-flight", b"")
    manifests.publish(manifest(first.number, 1, 20, "ab"))
    assert manifests.collect_garbage(LAKE) == []
    world.clock.advance(DAY - 1)
    assert manifests.collect_garbage(LAKE) == []
    assert lake() == ["a", "ab", "b", "in-flight"]
    world.clock.advance(2)
    assert len(manifests.collect_garbage(LAKE)) == 4
    assert lake() == ["ab"]
    assert manifests.numbers() == [2]
    assert manifests.latest() == manifest(2, 1, 20, "ab")


def test_garbage_waits_while_a_kept_manifest_is_damaged(world: World) -> None:
    manifests = world.manifests()
    world.objects.put(f"{LAKE}/stray", b"")
    manifests.publish(manifest(0, 1, 10))
    world.objects.tear(manifests.path(1), 50)
    world.clock.advance(5 * DAY)
    with pytest.raises(Damaged):
        manifests.collect_garbage(LAKE)
    assert world.objects.list(f"{LAKE}/") == [f"{LAKE}/stray"]


def test_without_manifest_nothing_is_garbage(world: World) -> None:
    world.objects.put(f"{LAKE}/restored", b"")
    world.clock.advance(5 * DAY)
    assert world.manifests().collect_garbage(LAKE) == []


# -- recovery beside a predecessor that is still alive ---------------------------------------------


class Owner:
    """State is the list of all bodies, kept in ``extra`` by a flush."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.journal = Journal(
            world.objects,
            "journal/shard=000",
            name,
            world.random.randbytes(16),
            world.clock,
            sleep=world.clock.advance,
        )
        self.manifests = world.manifests()
        self.state: list[str] = []
        self.base: Manifest | None = None
        self.ready = False

    def recover(self) -> TakeOver:
        recovered: Recovered = recover(self.journal, self.manifests, self.restore, self.apply)
        self.base, self.ready = recovered.manifest, True
        return recovered.taken

    def restore(self, found: Manifest | None) -> None:
        self.state = list(found.extra["state"]) if found else []

    def apply(self, entry: Entry) -> None:
        self.state.append(entry.body.decode())

    def append(self, text: str) -> None:
        self.journal.append(text.encode())
        self.state.append(text)

    def flush(self) -> None:
        self.base = self.manifests.publish(
            Manifest(
                self.base.number if self.base else 0,
                "shard-000",
                self.journal.epoch,
                self.journal.tail,
                extra={"state": self.state},
            )
        )
        self.journal.truncate(self.base.journal_sequence)


def test_recovery_is_manifest_and_tail(world: World) -> None:
    first, second = Owner(world, "first"), Owner(world, "second")
    assert first.recover() == (1, 1)
    first.append("a")
    first.flush()
    first.append("b")
    assert second.recover() == (2, 4)
    assert second.state == ["a", "b"]


def busy_predecessor(world: World, moment: str) -> tuple[Owner, Owner]:
    """The successor is stopped at a moment of its recovery while the old owner works on."""
    old, successor = Owner(world, "old"), Owner(world, "successor")
    old.recover()
    for n in range(3):
        old.append(f"{n}")
    old.flush()
    for n in range(3, 6):
        old.append(f"{n}")

    def work() -> None:
        for n in range(6, 9):
            old.append(f"{n}")
            old.flush()

    target = successor.manifests if moment == "latest" else successor.journal
    plain: Callable[..., object] = getattr(target, moment)
    calls = 0

    def stopped(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        result = plain(*arguments)
        if calls == 1:
            work()
        return result

    setattr(target, moment, stopped)
    successor.recover()
    return old, successor


@pytest.mark.parametrize("moment", ["latest", "read", "_tail_or_hole", "sequences"])
def test_recovery_beside_a_living_owner_loses_nothing(world: World, moment: str) -> None:
    old, successor = busy_predecessor(world, moment)
    assert successor.state == [str(n) for n in range(9)]
    with pytest.raises(Fenced):
        old.append("late")
    successor.append("9")
    successor.flush()
    third = Owner(world, "third")
    third.recover()
    assert third.state == [str(n) for n in range(10)]


def test_an_epoch_entry_in_truncated_numbers_owns_nothing(world: World) -> None:
    """A taker reads its starting point, sleeps over a flush, and writes into the hole."""
    old, taker = Owner(world, "old"), Owner(world, "taker")
    old.recover()
    for n in range(5):
        old.append(f"{n}")
    old.flush()
    taker.journal.sequences = lambda: []  # type: ignore[method-assign]  # even the hint is stale
    assert taker.journal.take_over(2, floor_epoch=1) == (2, 3)
    found = taker.manifests.latest()
    assert found is not None
    with pytest.raises(Fenced):
        taker.journal.fence_if_newer(found.epoch, found.journal_sequence)
    with pytest.raises(Fenced):
        taker.append("into the hole")
    old.append("5")
    old.flush()
    successor = Owner(world, "successor")
    successor.recover()
    assert successor.state == [str(n) for n in range(6)]


def test_recovery_names_damage_that_no_newer_manifest_explains(world: World) -> None:
    owner = Owner(world, "owner")
    owner.recover()
    for n in range(3):
        owner.append(f"{n}")
    world.objects.delete([owner.journal.path(3)])
    with pytest.raises(Damaged, match="journal/shard=000/000000000003 is missing"):
        Owner(world, "next").recover()


def owners_at_random(seed: int, steps: int, kind: type[Owner] = Owner) -> None:
    """Owners come, stall and wake at random; what was acknowledged is in the state, in order."""
    world = World(seed)
    random = world.random
    trouble = Faults(lose_reply=0.15, time_out=0.15, refuse=0.1, fail_read=0.1)
    acknowledged: list[str] = []
    owners: list[Owner] = []
    for n in range(steps):
        world.objects.faults = trouble if random.random() < 0.5 else Faults()
        if not owners or random.random() < 0.06:
            owners.append(kind(world, f"{len(owners)}"))
        owner = random.choice(owners[-4:])
        try:
            if not owner.ready:
                owner.recover()
            elif random.random() < 0.2:
                owner.flush()
            else:
                owner.append(f"{n}")
                acknowledged.append(f"{n}")
        except (Fenced, OutcomeUnknown):
            owners.remove(owner)
        except StoreUnavailable:
            pass
    world.objects.faults = Faults()
    last = kind(world, "last")
    last.recover()
    written = set(acknowledged)
    assert [text for text in last.state if text in written] == acknowledged
    assert len(set(last.state)) == len(last.state)


@pytest.mark.parametrize("seed", range(40))
def test_owners_with_flushes_under_faults_lose_nothing(seed: int) -> None:
    owners_at_random(seed, 150)


class ForgetsEpochs(Journal):
    """The mutant: truncation deletes EPOCH entries as well."""

    def truncate(self, up_to: int) -> int:
        self._objects.delete(self.path(n) for n in self.sequences() if n <= up_to)
        return 0


class Forgetful(Owner):
    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.journal = ForgetsEpochs(
            world.objects,
            "journal/shard=000",
            name,
            world.random.randbytes(16),
            world.clock,
            sleep=world.clock.advance,
        )


def test_the_same_run_finds_deleted_epoch_entries() -> None:
    with pytest.raises((AssertionError, Damaged)):
        for seed in range(200):
            owners_at_random(seed, 150, Forgetful)
