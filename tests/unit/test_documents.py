"""Documents: what was acknowledged is there after any crash, and keys work once."""

from __future__ import annotations

from random import Random

import pytest

from manta.clock import ManualClock
from manta.errors import Damaged, Fenced, InvalidRequest, NotReady, OutcomeUnknown, StoreUnavailable
from manta.store import documents as documents_module
from manta.store.documents import Documents
from tests.faults import Faults, FaultyObjects, MemoryObjects

PREFIX = "default/journal/catalog"


class World:
    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.objects = FaultyObjects(MemoryObjects(self.clock), self.random)

    def documents(self, **settings: int) -> Documents:
        return Documents(
            self.objects,
            PREFIX,
            "catalog",
            self.random.randbytes(16),
            self.clock,
            sleep=self.clock.advance,
            **settings,
        )

    def recovered(self, **settings: int) -> Documents:
        documents = self.documents(**settings)
        documents.recover()
        return documents


@pytest.fixture
def world() -> World:
    return World()


def test_changes_survive_a_restart(world: World) -> None:
    documents = world.recovered()
    documents.change([("keys", "b", {"n": 2}), ("keys", "a", {"n": 1}), ("topics", "x", {})])
    documents.change([("topics", "x", None)])
    for held in (documents, world.recovered()):
        assert held.list("keys") == [{"n": 1}, {"n": 2}]
        assert held.get("topics", "x") is None
        assert held.list("nothing") == []


def test_nothing_is_answered_before_recovery(world: World) -> None:
    documents = world.documents()
    for call in (
        lambda: documents.get("a", "b"),
        lambda: documents.list("a"),
        lambda: documents.change([]),
    ):
        with pytest.raises(NotReady):
            call()


def test_a_document_given_out_is_the_callers_own(world: World) -> None:
    documents = world.recovered()
    mine = {"list": [1]}
    documents.change([("c", "1", mine)])
    mine["list"].append(2)
    given = documents.get("c", "1")
    assert given == {"list": [1]}
    given["list"].append(3)
    assert documents.get("c", "1") == {"list": [1]}


@pytest.mark.parametrize(
    "change",
    [
        ("c", "", {}),
        ("c" * 201, "1", {}),
        ("c", "1", {"x": float("nan")}),
        ("c", "1", {"x": object()}),
        ("c", "1", [1]),
        ("c", "1", {"x": "y" * (9 << 20)}),
    ],
)
def test_what_is_no_document_is_refused_and_nothing_is_stored(world: World, change: object) -> None:
    documents = world.recovered()
    with pytest.raises(InvalidRequest):
        documents.change([("c", "0", {}), change])  # type: ignore[list-item]
    assert documents.journal.tail == 1
    assert documents.list("c") == []


def test_a_key_works_once_for_48_hours_also_over_restart_and_snapshot(world: World) -> None:
    documents = world.recovered()
    sequence = documents.change([("c", "1", {"n": 1})], key="k", answer={"id": 7})
    assert documents.change([("c", "1", {"n": 2})], key="k") == sequence
    documents.snapshot()
    for held in (documents, world.recovered()):
        known = held.remembered("k")
        assert known is not None
        assert (known.sequence, known.answer) == (sequence, {"id": 7})
        assert held.get("c", "1") == {"n": 1}
    world.clock.advance(48 * 3600 + 1)
    later = world.recovered()
    assert later.remembered("k") is None
    assert later.change([("c", "1", {"n": 3})], key="k") > sequence
    later.snapshot()
    assert later.get("c", "1") == {"n": 3}


def test_a_refused_change_is_not_seen(world: World) -> None:
    documents = world.recovered()
    world.objects.full = True
    with pytest.raises(StoreUnavailable):
        documents.change([("c", "1", {})], key="k")
    assert documents.get("c", "1") is None
    world.objects.full = False
    documents.change([("c", "1", {})], key="k")
    assert documents.get("c", "1") == {}


def test_snapshots_come_by_themselves_and_the_journal_stays_short(world: World) -> None:
    documents = world.recovered(snapshot_entries=10)
    for n in range(95):
        documents.change([("c", str(n % 7), {"n": n})])
    assert documents.journal.sequences()[0] == 1  # the EPOCH entry
    assert len(documents.journal.sequences()) <= 11
    assert world.recovered().items("c") == documents.items("c")


def test_a_large_change_brings_a_snapshot(world: World) -> None:
    documents = world.recovered(snapshot_bytes=1_000)
    documents.change([("c", "1", {"text": "x" * 1_000})])
    assert documents.manifests.latest() is not None


def test_a_snapshot_that_fails_costs_nothing_and_is_tried_again(world: World) -> None:
    documents = world.recovered(snapshot_entries=3)
    put = world.objects.inner.put_if_absent

    def refuse_manifests(path: str, data: bytes) -> None:
        if "/manifest/" in path:
            raise OutcomeUnknown("timed out")
        put(path, data)

    world.objects.inner.put_if_absent = refuse_manifests  # type: ignore[method-assign]
    for n in range(4):
        documents.change([("c", str(n), {})])
    assert documents.manifests.latest() is None
    world.objects.inner.put_if_absent = put  # type: ignore[method-assign]
    for n in range(4, 8):
        documents.change([("c", str(n), {})])
    assert documents.manifests.latest() is not None
    assert len(world.recovered().list("c")) == 8


def test_an_old_incarnation_is_fenced_after_two_snapshots(world: World) -> None:
    stalled = world.recovered()
    stalled.change([("c", "1", {"by": "old"})])
    successor = world.recovered()
    for n in range(2):
        successor.change([("c", "1", {"by": "new", "n": n})])
        successor.snapshot()
    with pytest.raises(Fenced):
        stalled.change([("c", "1", {"by": "old"})])
    with pytest.raises(Fenced):
        stalled.snapshot()
    assert world.recovered().get("c", "1") == {"by": "new", "n": 1}


def test_damage_is_named(world: World) -> None:
    documents = world.recovered()
    documents.change([("c", "1", {})])
    world.objects.flip(f"{PREFIX}/000000000002")
    with pytest.raises(Damaged, match="000000000002"):
        world.recovered()
    world.objects.delete([f"{PREFIX}/000000000002"])
    documents.snapshot()
    world.objects.tear("default/manifest/catalog/000001.json", 40)
    with pytest.raises(Damaged, match=r"manifest/catalog/000001\.json"):
        world.recovered()


@pytest.mark.parametrize("seed", range(20))
def test_under_faults_and_restarts_nothing_acknowledged_is_lost(seed: int) -> None:
    world = World(seed)
    expected: dict[str, int] = {}
    documents = world.recovered(snapshot_entries=7)
    for n in range(150):
        id = str(world.random.randrange(5))
        world.objects.faults = Faults(lose_reply=0.1, time_out=0.1, refuse=0.1, fail_read=0.05)
        try:
            documents.change([("c", id, {"n": n})], key=f"k{n}")
            acknowledged = True
        except StoreUnavailable:
            acknowledged = False
        world.objects.faults = Faults()
        if world.random.random() < 0.1:
            documents = world.recovered(snapshot_entries=7)
        if acknowledged:
            expected[id] = n
        assert {id: d["n"] for id, d in documents.items("c").items()} == expected


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"v": 2}'])
def test_an_entry_of_something_else_is_damage(world: World, body: bytes) -> None:
    documents = world.recovered()
    documents.journal.append(body)
    with pytest.raises(Damaged, match="catalog/000000000002"):
        world.recovered()


def test_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = world.recovered()
    with pytest.raises(InvalidRequest, match="10001 documents"):
        documents.change([("c", "1", {})] * 10_001)
    with pytest.raises(InvalidRequest, match="answer"):
        documents.change([], key="k", answer=object())
    with pytest.raises(ValueError, match="not a journal's folder"):
        Documents(world.objects, "catalog", "catalog", bytes(16), world.clock)
    monkeypatch.setattr(documents_module, "KEYS_MAX", 2)
    for key in "abc":
        documents.change([], key=key)
    assert documents.remembered("a") is None
    assert documents.remembered("c") is not None
