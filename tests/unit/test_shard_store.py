"""A shard's store: groups, keys, recovery, the fence, flush and compaction."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest

from manta.clock import ManualClock
from manta.command import Change, Context, Database, Decision, Push, Repeated
from manta.errors import (
    Conflict,
    Damaged,
    IncompatibleFormat,
    InvalidRequest,
    MantaError,
    StoreUnavailable,
)
from manta.store import lake
from manta.store.compaction import plan
from manta.store.entries import Group, decode_group, encode_group
from manta.store.keys import KeyMemory
from manta.store.manifest import FileEntry
from manta.store.objects import FileObjects
from manta.store.settings import ShardSettings
from manta.store.shard import HookResult, ShardStore, Stopped
from tests.faults import Faults, FaultyObjects
from tests.unit.store_shard import (
    START,
    Act,
    abort,
    content,
    crash,
    delete,
    event,
    flush,
    new_store,
    person,
    recovered,
    refuse,
    upsert,
    write,
)


@pytest.fixture
def objects(tmp_path: Path) -> FileObjects:
    return FileObjects(tmp_path / "root")


@pytest.fixture
def store(objects: FileObjects) -> Iterator[ShardStore]:
    store = recovered(objects)
    yield store
    store.close()


def people(store: ShardStore) -> list[int]:
    return [i for (i,) in store.database.rows("SELECT subscriber_id FROM profiles ORDER BY 1")]


# -- groups --------------------------------------------------------------------------------------


def test_later_commands_of_a_group_see_earlier_ones(store: ShardStore) -> None:
    outcomes = store.execute([write(person(i)) for i in range(4)])
    assert [outcome.answer for outcome in outcomes] == [0, 1, 2, 3]
    assert store.figures.groups == 1
    assert store.sequence == 2  # one entry after the epoch's


@pytest.mark.parametrize("bad", [refuse, crash, abort])
def test_one_bad_command_fails_alone(store: ShardStore, bad: Any) -> None:
    outcomes = store.execute([write(person(1)), Act(bad), write(person(2))])
    assert [outcome.answer for outcome in outcomes[::2]] == [0, 1]
    assert isinstance(outcomes[1].answer, Conflict if bad is refuse else MantaError)
    assert outcomes[1].failed
    assert people(store) == [1, 2]
    assert store.figures.commands_crashed == (0 if bad is refuse else 1)
    assert store.figures.reruns == (1 if bad is abort else 0)


def test_rows_that_do_not_fit_fail_alone(store: ShardStore) -> None:
    outcomes = store.execute(
        [
            write(person(1, attr_n=1)),
            write(person(2, attr_n="text")),
            write(person(3), person(4, nothing=1)),
            write(person(5, attr_n=2.5)),
        ]
    )
    assert isinstance(outcomes[1].answer, Conflict)
    assert isinstance(outcomes[2].answer, InvalidRequest)
    assert people(store) == [1, 5]


def test_an_error_while_writing_is_laid_at_the_right_door(
    store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows wait and are written together; if that fails, the group runs again one by one."""
    really = store.database._write

    def write_or_fail(change: Change) -> None:
        if 13 in change.rows["subscriber_id"].to_pylist():
            store.database.rows("SELECT 1 FROM no_such_table")
        really(change)

    monkeypatch.setattr(store.database, "_write", write_or_fail)
    outcomes = store.execute([Act(lambda d, c, i=i: Decision(i, (person(i),))) for i in (1, 13, 2)])
    assert [o.answer for o in outcomes[::2]] == [1, 2]
    assert outcomes[1].failed
    assert people(store) == [1, 2]


def test_an_answer_without_changes_writes_nothing(store: ShardStore) -> None:
    before = store.sequence
    (outcome,) = store.execute([write(key="k")])
    assert outcome.answer == 0
    assert store.sequence == before
    assert store.execute([write(person(1), key="k")])[0].answer == 0  # nothing was remembered


def test_pushes_come_with_the_outcome_of_their_command(store: ShardStore) -> None:
    push = Push("director", "work", (1,))
    good = store.execute([write(person(1), pushes=(push,)), Act(refuse)])
    assert [outcome.pushes for outcome in good] == [(push,), ()]


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_runs_once_also_within_a_group_and_after_recovery(
    store: ShardStore, objects: FileObjects
) -> None:
    first, second = store.execute([write(person(1), key="a"), write(person(2), key="a")])
    assert (first.answer, second.answer) == (0, Repeated("a"))
    assert store.execute([write(person(3), key="a")])[0].answer == Repeated("a")
    assert people(store) == [1]
    replayed = recovered(objects, 2)
    assert replayed.execute([write(person(3), key="a")])[0].answer == Repeated("a")
    flush(replayed)
    loaded = recovered(objects, 3)
    assert loaded.figures.replayed_entries == 0
    assert loaded.execute([write(person(3), key="a")])[0].answer == Repeated("a")


def test_a_failed_command_does_not_use_its_key_up(store: ShardStore) -> None:
    assert store.execute([Act(refuse, "k")])[0].failed
    assert store.execute([write(person(1), key="k")])[0].answer == 0


def test_a_command_may_answer_its_repetition_itself(store: ShardStore) -> None:
    class Create(Act):
        def repeat(self, database: Database, context: Context) -> Any:
            return database.rows("SELECT subscriber_id FROM profiles")

    command = Create(lambda d, c: Decision("new", (person(7),)), "k")
    assert [o.answer for o in store.execute([command, command])] == ["new", [(7,)]]


def test_keys_are_forgotten_by_day() -> None:
    memory = KeyMemory()
    day = datetime(2026, 3, 1, 12)
    memory.add([1, 2], day)
    memory.add(range(100_000, 160_001), day + timedelta(days=1))  # becomes an array
    memory.add([3], day + timedelta(days=2))
    assert all(key in memory for key in (1, 2, 3, 100_000, 160_000))
    assert 5 not in memory
    memory.forget(day + timedelta(days=3))
    assert [key in memory for key in (1, 100_000, 3)] == [False, True, True]
    assert len(memory) == 60_002
    memory.forget(day + timedelta(days=9))
    assert len(memory) == 0


def test_keys_expire_through_files_too(objects: FileObjects) -> None:
    clock = ManualClock(START)
    store = recovered(objects, 1, clock=clock)
    store.execute([write(person(1), key="old")])
    flush(store)
    clock.advance(4 * 86_400)
    store.execute([write(person(2), key="new")])
    flush(store)
    assert len(store.maintenance.manifest.files["_keys"]) == 1
    later = recovered(objects, 2, clock=clock)
    assert later.execute([write(person(3), key="old")])[0].answer == 2
    assert later.execute([write(person(3), key="new")])[0].answer == Repeated("new")


# -- recovery and fence --------------------------------------------------------------------------


def some_writes(store: ShardStore, random: Random, rounds: int = 8, flushes: bool = True) -> None:
    for number in range(rounds):
        ids = random.sample(range(40), 8)
        changes = [
            upsert("profiles", *({"subscriber_id": i, f"attr_a{number % 3}": 1.0} for i in ids)),
            delete("profiles", *({"subscriber_id": i} for i in random.sample(range(40), 3))),
            upsert("memberships", {"subscriber_id": ids[0], "segments": [number, 2]}),
            event(ids[0], "opened", START - timedelta(days=number * 20), event_id=number),
            event(ids[1], "profile_changed"),
        ]
        store.execute([write(*changes, key=f"{random.random()}")])
        if flushes and random.random() < 0.5:
            flush(store)


@pytest.mark.parametrize("seed", range(2))
def test_recovery_is_manifest_and_tail(objects: FileObjects, seed: int) -> None:
    store = recovered(objects, settings=ShardSettings(merge_files=2))
    some_writes(store, Random(seed))
    after = recovered(objects, 2)
    assert content(after) == content(store)
    assert after.epoch == store.epoch + 1
    after.execute([write(person(1000))])
    assert content(recovered(objects, 3)) == content(after)


def test_a_recovered_shard_is_read_before_its_indexes_are_built(objects: FileObjects) -> None:
    store = recovered(objects)
    store.execute([write(person(1), *(event(1, "opened", event_id=n) for n in range(5)))])
    flush(store)
    store.execute([write(event(1, "clicked", event_id=5))])
    after = recovered(objects, 2)
    of_person = "SELECT count(*) FROM events WHERE subscriber_id = 1"
    pinned = after.reader()
    pinned.pin()
    assert indexes(after) == []
    assert after.database.rows(of_person) == pinned.rows(of_person) == [(6,)]
    after.run_hooks()
    assert indexes(after) == ["events_of_subscriber", "identities_of_value"]
    after.execute([write(event(1, "clicked", event_id=6))])
    assert after.database.rows(of_person) == [(7,)]
    assert pinned.rows(of_person) == [(6,)]
    pinned.close()


def test_a_command_that_comes_before_the_hooks_builds_the_indexes(objects: FileObjects) -> None:
    store = recovered(objects)
    store.execute([write(person(1))])
    assert indexes(store) == ["events_of_subscriber", "identities_of_value"]


def indexes(store: ShardStore) -> list[str]:
    return [name for (name,) in store.database.rows("SELECT index_name FROM duckdb_indexes()")]


def test_an_old_incarnation_is_refused_and_stops(store: ShardStore, objects: FileObjects) -> None:
    store.execute([write(person(1))])
    new = recovered(objects, 2)
    with pytest.raises(Stopped, match="fenced"):
        store.execute([write(person(2))])
    with pytest.raises(Stopped):
        store.execute([write(person(3))])
    new.execute([write(person(4))])
    assert people(new) == [1, 4]


def test_an_old_incarnation_answers_nothing_from_its_old_state(
    store: ShardStore, objects: FileObjects
) -> None:
    """Neither an answer that changes nothing nor an error leaves a replaced incarnation."""
    recovered(objects, 2)
    with pytest.raises(Stopped, match="fenced"):
        store.execute([write(), Act(refuse)])


def test_an_old_incarnation_that_slept_through_flushes_stops_too(
    store: ShardStore, objects: FileObjects
) -> None:
    store.execute([write(person(1))])
    new = recovered(objects, 2)
    for number in range(5):
        new.execute([write(person(10 + number))])
        flush(new)
    with pytest.raises(Stopped):
        store.execute([write(person(2))])
    assert people(recovered(objects, 3)) == [1, 10, 11, 12, 13, 14]


def test_an_old_incarnation_cannot_publish_over_a_newer_one(
    store: ShardStore, objects: FileObjects
) -> None:
    store.execute([write(person(1))])
    assert store.freeze(even_if_early=True)
    new = recovered(objects, 2)
    new.execute([write(person(2))])
    flush(new)
    with pytest.raises(Stopped):
        store.maintain()
    assert people(recovered(objects, 3)) == [1, 2]


def test_a_refused_append_rolls_back_and_the_store_goes_on(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(1))
    store = recovered(faulty)
    store.execute([write(person(1, attr_x="a"))])
    faulty.full = True
    outcomes = store.execute([write(person(2, attr_y="b"), key="k"), Act(refuse)])
    assert isinstance(outcomes[0].answer, StoreUnavailable)
    assert isinstance(outcomes[1].answer, Conflict)
    assert people(store) == [1]
    faulty.full = False
    assert store.execute([write(person(2, attr_y=1), key="k")])[0].answer == 1
    assert content(recovered(objects, 2)) == content(store)


def test_an_unknown_outcome_stops_the_process(objects: FileObjects) -> None:
    clock = ManualClock(START)
    faulty = FaultyObjects(objects, Random(1))
    store = recovered(faulty, clock=clock)
    store.journal._sleep = clock.advance
    faulty.down = True
    with pytest.raises(Stopped, match="outcome_unknown"):
        store.execute([write(person(1))])


def test_lost_replies_of_the_store_do_no_harm(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(5), Faults(lose_reply=0.3, time_out=0.2))
    clock = ManualClock(START)
    store = new_store(faulty, clock=clock)
    store.journal._sleep = store.manifests._sleep = clock.advance
    store.recover()
    for i in range(30):
        assert store.execute([write(person(i))])[0].answer == i
    faulty.faults = Faults()
    assert people(recovered(objects, 2)) == list(range(30))


def test_a_commit_that_fails_after_the_append_stops_the_process(
    store: ShardStore, objects: FileObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise duckdb.FatalException("disk on fire")

    monkeypatch.setattr(store.database, "commit", fail)
    with pytest.raises(Stopped, match="commit failed after journal entry 2"):
        store.execute([write(person(1))])
    assert people(recovered(objects, 2)) == [1]  # replay decides


@pytest.mark.parametrize("damage", ["tear", "flip"])
def test_damage_is_named(objects: FileObjects, damage: str) -> None:
    store = recovered(objects)
    store.execute([write(person(1))])
    faulty = FaultyObjects(objects, Random(3))
    entry = "default/journal/shard=000/000000000002"
    getattr(faulty, damage)(entry)
    with pytest.raises(Damaged) as caught:
        recovered(objects, 2)
    assert caught.value.details["object"] == entry


def test_a_missing_and_a_torn_file_are_named(objects: FileObjects) -> None:
    store = recovered(objects)
    store.execute([write(person(1), event(1, "opened"))])
    flush(store)
    path = store.maintenance.manifest.files["profiles"][0].path
    FaultyObjects(objects, Random(1)).tear(path, 100)
    with pytest.raises(Damaged) as caught:
        recovered(objects, 2)
    assert caught.value.details["object"] == path
    objects.delete([path])
    with pytest.raises(Damaged, match="is missing") as caught:
        recovered(objects, 3)
    assert caught.value.details["object"] == path


def test_the_body_of_an_entry() -> None:
    changes = (
        person(1, attr_t=["a"]),
        event(1, "opened"),
        delete("profiles", {"subscriber_id": 2}),
    )
    group = Group(START, (1, -(2**63)), changes)
    body = encode_group(group)
    assert decode_group(body, "entry") == group
    with pytest.raises(Damaged, match="entry 7"):
        decode_group(body[:-9], "entry 7")
    with pytest.raises(Damaged):
        decode_group(b"something else", "entry")
    with pytest.raises(IncompatibleFormat):
        decode_group(b"MSG9" + body[4:], "entry")


# -- flush and compaction ------------------------------------------------------------------------


def test_a_flush_is_due_by_time_or_size_and_never_when_idle(objects: FileObjects) -> None:
    clock = ManualClock(START)
    store = recovered(objects, clock=clock, settings=ShardSettings(flush_bytes=5_000))
    clock.advance(1_000)
    assert store.flush_in_s() is None
    assert not store.freeze()
    store.execute([write(person(1))])
    assert store.flush_in_s() == 60
    clock.advance(61)
    assert store.freeze()
    store.maintain()
    assert not store.freeze()
    store.execute([write(person(2, attr_blob="x" * 5_000))])
    assert store.flush_in_s() == 0


def test_a_flush_holds_what_was_committed_when_it_was_frozen(objects: FileObjects) -> None:
    store = recovered(objects)
    store.execute([write(person(1, email="then"), person(2), person(3))])
    assert store.freeze(even_if_early=True)
    store.execute([write(person(1, email="later"), delete("profiles", {"subscriber_id": 2}))])
    store.maintain()
    assert store.maintenance.manifest.journal_sequence == 2
    assert [f.rows for f in store.maintenance.manifest.files["profiles"]] == [3]
    after = recovered(objects, 2)
    assert after.figures.replayed_entries == 1
    assert content(after) == content(store)


def test_a_failed_flush_is_kept_and_written_again(objects: FileObjects) -> None:
    faulty = FaultyObjects(objects, Random(1))
    store = recovered(faulty)
    store.execute([write(person(1), event(1, "opened"), key="k")])
    store.freeze(even_if_early=True)
    faulty.full = True
    with pytest.raises(StoreUnavailable):
        store.maintain()
    faulty.full = False
    store.execute([write(person(2))])
    assert store.freeze(even_if_early=True)  # still the first
    store.maintain()
    assert store.maintenance.manifest.journal_sequence == 2
    flush(store)
    after = recovered(objects, 2)
    assert after.figures.replayed_entries == 0
    assert content(after) == content(store)


def test_the_journal_is_cut_behind_a_flush(store: ShardStore, objects: FileObjects) -> None:
    for i in range(5):
        store.execute([write(person(i))])
    flush(store)
    assert objects.list("default/journal/shard=000/") == ["default/journal/shard=000/000000000001"]


def test_tombstones_go_when_nothing_older_is_left(objects: FileObjects) -> None:
    store = recovered(objects, settings=ShardSettings(merge_files=2))
    store.execute([write(person(1), person(2))])
    flush(store)
    store.execute([write(delete("profiles", {"subscriber_id": 1}))])
    flush(store)
    (file,) = store.maintenance.manifest.files["profiles"]
    assert file.rows == 1
    assert people(recovered(objects, 2)) == [2]


def test_repeated_events_fall_to_compaction(objects: FileObjects) -> None:
    store = recovered(objects, settings=ShardSettings(merge_files=2))
    for _ in range(2):
        store.execute([write(event(1, "opened", event_id=5), event(1, "opened"))])
        flush(store)
    assert [file.rows for file in store.maintenance.manifest.files["events"]] == [3]


# -- what leaves memory --------------------------------------------------------------------------


def run_hooks(store: ShardStore) -> None:
    for outcome in store.execute(store.run_hooks().commands):
        assert not outcome.failed, outcome.answer


def message(subscriber_id: int, state: str, age_days: int, **more: Any) -> Any:
    at = START - timedelta(days=age_days)
    row = {"subscriber_id": subscriber_id, "message_key": 1, "state": state, "changed_at": at}
    row |= {"kind": "marketing", "channel": "email", "campaign_id": 7}
    return upsert("ledger", row | more)


def ago(days: int) -> datetime:
    return START - timedelta(days=days)


@pytest.mark.parametrize("flushed", [True, False])
def test_old_rows_leave_memory_and_are_kept_as_sums(objects: FileObjects, flushed: bool) -> None:
    store = recovered(objects)
    bought = {"item": "sku-1", "amount": 5.0}
    store.execute(
        [
            write(event(1, "purchased", ago(500), **bought), event(1, "purchased", ago(480))),
            write(event(1, "purchased", ago(502), **bought), event(2, "opened", ago(10))),
            write(event(1, "profile_changed", ago(600))),
            write(message(1, "accepted", 100), message(2, "accepted", 5)),
            write(message(3, "planned", 300), message(4, "failed", 91)),
        ]
    )
    if flushed:
        flush(store)
    run_hooks(store)
    run_hooks(store)  # once a day

    def check(store: ShardStore) -> None:
        assert store.database.rows("SELECT subscriber_id FROM events") == [(2,)]
        held = store.database.rows("SELECT subscriber_id FROM ledger ORDER BY 1")
        assert held == [(2,), (3,)]
        sql = "SELECT sum(events), sum(amount), min(first_at), max(last_at) FROM event_months"
        assert store.database.rows(sql) == [(3, 10.0, ago(502), ago(480))]
        sql = "SELECT item, events, amount, first_at FROM purchased_items"
        assert store.database.rows(sql) == [("sku-1", 2, 10.0, ago(502))]
        sql = "SELECT subscriber_id, kind, accepted FROM ledger_days"
        assert store.database.rows(sql) == [(1, "marketing", 1)]
        sql = "SELECT * FROM ledger_campaigns ORDER BY state"
        assert store.database.rows(sql) == [(7, "accepted", "", 1), (7, "failed", "", 1)]

    check(store)
    check(recovered(objects, 2))  # from the journal
    again = recovered(objects, 3)
    flush(again)
    check(recovered(objects, 4))  # from the files
    with lake.open(objects.root) as connection:
        assert connection.sql("SELECT count(*) FROM events").fetchall() == [(5,)]
        whole = connection.sql("SELECT subscriber_id, kind FROM ledger ORDER BY 1").fetchall()
        assert whole == [(i, "marketing") for i in (1, 2, 3, 4)]


def test_events_that_come_too_late_for_memory_are_counted_at_once(objects: FileObjects) -> None:
    store = recovered(objects)
    store.execute([write(event(1, "opened", ago(500)))])
    run_hooks(store)
    assert store.database.events_since is not None
    store.execute([write(event(1, "opened", ago(500), amount=2.0)), write(event(1, "x", ago(450)))])
    store.execute([write(event(1, "opened", ago(3)))])
    sql = "SELECT type, events, amount FROM event_months ORDER BY 1"
    for one in (store, recovered(objects, 2)):
        assert one.database.rows(sql) == [("opened", 2, 2.0), ("x", 1, None)]
        assert len(one.database.rows("SELECT * FROM events")) == 1
        assert content(one) == content(store)


def test_an_idle_shard_moves_no_bounds(store: ShardStore) -> None:
    store.execute([write(event(1, "opened", ago(5)), message(1, "planned", 300))])
    before = store.sequence
    run_hooks(store)
    assert store.sequence == before


def file(number: int, size_bytes: int, month: str = "", kind: str = "delta") -> FileEntry:
    folder = f"lake/t/{month}/" if month else "lake/t/"
    return FileEntry(f"{folder}{number}.parquet", 1, size_bytes, kind, START, START, number, number)


def test_the_plan_merges_full_classes_with_all_that_is_smaller() -> None:
    settings = ShardSettings(merge_files=3)
    small = [file(i, 1_000) for i in range(10, 12)]
    assert plan({"profiles": small}, settings) is None
    large = [file(i, 70_000) for i in range(3)]
    merge = plan({"profiles": [*large, *small]}, settings)
    assert merge is not None
    assert set(merge.inputs) == {*large, *small}
    assert merge.drop_tombstones
    base = file(0, 10 << 20)
    merge = plan({"profiles": [base, *(file(i, 1_000) for i in range(1, 4))]}, settings)
    assert merge is not None
    assert base not in merge.inputs
    assert not merge.drop_tombstones  # the base is older and may hold the keys


def test_the_plan_merges_all_when_the_new_outweighs_the_base() -> None:
    settings = ShardSettings(merge_files=8)
    base, deltas = file(0, 1 << 20), [file(i, 300_000) for i in range(1, 4)]
    assert plan({"profiles": [base, *deltas]}, settings) is None
    merge = plan({"profiles": [base, *deltas, file(4, 300_000)]}, settings)
    assert merge is not None
    assert len(merge.inputs) == 5


def test_the_plan_splits_large_merges_of_events_by_month() -> None:
    settings = ShardSettings(merge_files=2, month_file_bytes=100, month_file_bytes_max=400)
    merge = plan({"events": [file(1, 60, kind="events"), file(2, 60, kind="events")]}, settings)
    assert merge is not None
    assert merge.by_month
    full = [file(i, 150, "2026-01", "events") for i in range(5)]
    assert plan({"events": full}, settings) is None
    apart = [file(1, 60, "2026-01", "events"), file(2, 60, "2026-02", "events")]
    assert plan({"events": apart}, settings) is None
    again = plan({"events": [*full, file(8, 60, "2026-01", "events"), apart[0]]}, settings)
    assert again is not None
    assert len(again.inputs) == 2
    assert not again.by_month


def test_the_plan_keeps_the_number_of_files_bounded() -> None:
    settings = ShardSettings(merge_files=4, live_files_max=10)
    files = {
        name: [file(i, 1_000 * 20**i) for i in range(3)]
        for name in ("profiles", "ledger", "consents", "campaigns")
    }
    merge = plan(files, settings)
    assert merge is not None
    assert len(merge.inputs) == 3


# -- hooks ---------------------------------------------------------------------------------------


class Watch:
    """Counts people, greets the next instant in a minute, and writes one person more."""

    tables = frozenset({"profiles"})
    min_gap_s = 0.0

    def __init__(self) -> None:
        self.seen: list[int] = []

    def after_commit(self, database: Database, context: Context) -> HookResult:
        count = database.rows("SELECT count(*) FROM profiles")[0][0]
        self.seen.append(count)
        commands = (write(person(99)),) if count == 1 else ()
        wake = context.now + timedelta(minutes=1) if count == 2 else None
        return HookResult((Push("director", "count", (count,)),), commands, wake)


def test_hooks_see_commits_and_ask_to_be_woken(objects: FileObjects) -> None:
    clock, hook = ManualClock(START), Watch()
    store = recovered(objects, clock=clock, hooks=(hook,))
    assert store.hooks_due()  # once after recovery
    assert store.run_hooks().pushes == (Push("director", "count", (0,)),)
    store.execute([write(event(1, "opened"))])
    assert not store.hooks_due()
    store.execute([write(person(1))])
    assert store.hooks_due()
    store.execute(store.run_hooks().commands)
    store.run_hooks()
    assert store.next_wake() == START + timedelta(minutes=1)
    assert not store.hooks_due()
    clock.advance(60)
    assert store.hooks_due()
    store.run_hooks()
    assert hook.seen == [0, 1, 2, 2]


def test_a_hook_is_not_called_more_often_than_its_gap(objects: FileObjects) -> None:
    clock, hook = ManualClock(START), Watch()
    hook.min_gap_s = 1.0
    store = recovered(objects, clock=clock, hooks=(hook,))
    store.run_hooks()
    store.execute([write(person(1), person(2), person(3))])
    assert not store.hooks_due()
    assert store.next_wake() == START + timedelta(seconds=1)
    clock.advance(1)
    assert store.hooks_due()


def test_a_hook_that_fails_is_called_again_later(objects: FileObjects) -> None:
    clock, hook = ManualClock(START), Watch()
    hook.seen = None  # type: ignore[assignment]
    store = recovered(objects, clock=clock, hooks=(hook,))
    assert store.run_hooks().next_wake == START + timedelta(seconds=30)
    hook.seen = []
    clock.advance(30)
    assert store.run_hooks().pushes == (Push("director", "count", (0,)),)
    assert store.figures.hooks_failed == 1
