"""The lake as views: each shard as of its newest manifest."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from manta.clock import ManualClock
from manta.errors import Damaged
from manta.schema import TABLES
from manta.store import lake
from manta.store.objects import FileObjects
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore
from tests.faults import FaultyObjects
from tests.unit.store_shard import START, delete, event, flush, person, recovered, upsert, write


def shard(objects: FileObjects, number: int, **settings: Any) -> ShardStore:
    store = ShardStore(
        objects,
        "default",
        number,
        bytes([number + 1]) * 16,
        ManualClock(START),
        Random(number),
        ShardSettings(**settings),
    )
    store.recover()
    return store


@pytest.fixture
def objects(tmp_path: Path) -> FileObjects:
    return FileObjects(tmp_path / "it's a root")


def test_an_empty_lake_has_all_views_with_their_types(objects: FileObjects, tmp_path: Path) -> None:
    with lake.open(str(tmp_path / "it's a root")) as connection:
        for table in TABLES.values():
            described = connection.sql(f"DESCRIBE {table.name}").fetchall()
            columns = [(name, sql_type) for name, sql_type, *_ in described]
            assert columns == [*table.columns, ("shard", "INTEGER")]


def test_the_last_row_of_a_key_holds_and_tombstones_are_gone(
    objects: FileObjects, tmp_path: Path
) -> None:
    store = shard(objects, 0)
    store.execute([write(person(1, email="a", attr_city="Linz"), person(2), event(1, "opened"))])
    flush(store)
    store.execute([write(person(1, email="b"), event(1, "profile_changed"))])
    store.execute([write(delete("profiles", {"subscriber_id": 2}), person(3, attr_age=4))])
    flush(store)
    store.execute([write(person(4))])  # not flushed yet
    with lake.open(str(tmp_path / "it's a root")) as connection:
        rows = connection.sql(
            "SELECT subscriber_id, email, attr_city, attr_age, shard FROM profiles"
        )
        assert sorted(rows.fetchall()) == [(1, "b", "Linz", None, 0), (3, None, None, 4.0, 0)]
        kinds = connection.sql("SELECT type, occurred_at FROM events ORDER BY 1").fetchall()
        assert kinds == [("opened", START), ("profile_changed", START)]


def test_shards_with_other_attributes_are_joined_by_name(
    objects: FileObjects, tmp_path: Path
) -> None:
    for number, attributes in ((0, {"attr_city": "Graz"}), (1, {"attr_age": 3.0}), (2, {})):
        store = shard(objects, number)
        store.execute(
            [
                write(
                    person(number, **attributes),
                    upsert("campaigns", {"campaign_id": 7, "state": f"s{number}"}),
                )
            ]
        )
        flush(store)
    with lake.open(str(tmp_path / "it's a root")) as connection:
        rows = connection.sql("SELECT subscriber_id, attr_city, attr_age, shard FROM profiles")
        assert sorted(rows.fetchall(), key=str) == [
            (0, "Graz", None, 0),
            (1, None, 3.0, 1),
            (2, None, None, 2),
        ]
        # The same key in several shards is several rows: each shard has its own.
        assert connection.sql("SELECT count(*) FROM campaigns").fetchall() == [(3,)]
    with lake.open(str(tmp_path / "it's a root"), shards=[1]) as connection:
        assert connection.sql("SELECT shard FROM profiles").fetchall() == [(1,)]


@pytest.mark.parametrize("merge_files", [2, 3])
def test_views_agree_with_the_shard_through_compaction(
    objects: FileObjects, tmp_path: Path, merge_files: int
) -> None:
    random = Random(merge_files)
    store = shard(objects, 0, merge_files=merge_files, month_file_bytes=4_000)
    for number in range(12):
        ids = random.sample(range(30), 10)
        store.execute(
            [
                write(
                    upsert("profiles", *({"subscriber_id": i, "locale": str(number)} for i in ids)),
                    delete("profiles", {"subscriber_id": ids[0]}),
                    *(event(i, "opened", datetime(2026, 1 + i % 3, 2), event_id=i) for i in ids),
                )
            ]
        )
        flush(store)
    with lake.open(str(tmp_path / "it's a root")) as connection:
        here = store.database.rows("SELECT subscriber_id, locale FROM profiles ORDER BY 1")
        there = connection.sql("SELECT subscriber_id, locale FROM profiles ORDER BY 1").fetchall()
        assert there == here
        distinct = "SELECT count(DISTINCT (subscriber_id, event_id)) FROM events"
        assert connection.sql(distinct).fetchall() == store.database.rows(distinct)
    months = {f.path.split("/")[-2] for f in store.maintenance.manifest.files["events"]}
    assert "2026-02" in months


def test_an_open_lake_keeps_its_view_while_the_shard_goes_on(
    objects: FileObjects, tmp_path: Path
) -> None:
    store = shard(objects, 0, merge_files=2)
    store.execute([write(person(1))])
    flush(store)
    with lake.open(str(tmp_path / "it's a root")) as connection:
        for number in range(2, 6):
            store.execute([write(person(number))])
            flush(store)
        assert connection.sql("SELECT subscriber_id FROM profiles").fetchall() == [(1,)]


def test_garbage_goes_a_day_after_nothing_names_it(objects: FileObjects, tmp_path: Path) -> None:
    store = shard(objects, 0, merge_files=2)
    for number in range(4):
        store.execute([write(person(number))])
        flush(store)
    lake_files = objects.list("default/lake/")
    assert len(lake_files) > 1
    store.manifests.collect_garbage(store.lake_prefix, min_age_s=86_400)
    assert objects.list("default/lake/") == lake_files
    store.manifests._clock = ManualClock(datetime(2200, 1, 1))
    store.manifests.collect_garbage(store.lake_prefix, min_age_s=86_400)
    named = {f.path for files in store.maintenance.manifest.files.values() for f in files}
    assert set(objects.list("default/lake/")) == named
    assert len(recovered(objects, 9).database.rows("SELECT * FROM profiles")) == 4


def test_a_damaged_manifest_is_named(objects: FileObjects, tmp_path: Path) -> None:
    store = shard(objects, 0)
    store.execute([write(person(1))])
    flush(store)
    FaultyObjects(objects, Random(1)).flip("default/manifest/shard=000/000001.json", 500)
    with pytest.raises(Damaged, match="000001"):
        lake.open(str(tmp_path / "it's a root"))


def test_merged_people_are_followed_and_copies_of_undone_merges_are_hidden(
    objects: FileObjects, tmp_path: Path
) -> None:
    def alias(from_id: int, to_id: int, merge_id: int, state: str) -> dict[str, Any]:
        return {"from_id": from_id, "to_id": to_id, "merge_id": merge_id, "state": state}

    one, two = shard(objects, 0), shard(objects, 1)
    one.execute(
        [
            write(
                person(1),
                event(1, "bought", event_id=7),
                upsert("aliases", alias(1, 2, 11, "merged"), alias(5, 6, 12, "undone")),
            )
        ]
    )
    flush(one)
    one.execute([write(delete("profiles", {"subscriber_id": 1}))])
    flush(one)
    # Of a merge that was undone and made again, and of one into a third person.
    two.execute(
        [
            write(
                person(2),
                person(3),
                event(2, "bought", event_id=7, merge_id=10),
                event(2, "bought", event_id=7, merge_id=11),
                event(3, "bought", event_id=7, merge_id=13),
                upsert(
                    "aliases",
                    alias(1, 2, 10, "undone"),
                    alias(1, 2, 11, "merged"),
                    alias(2, 3, 13, "merged"),
                ),
            )
        ]
    )
    flush(two)
    for store in (one, two):
        store.maintain()
    with lake.open(str(tmp_path / "it's a root")) as connection:
        living = connection.sql("SELECT * FROM living ORDER BY 1").fetchall()
        assert living == [(1, 3), (2, 3)]
        seen = connection.sql("SELECT subscriber_id, merge_id FROM events ORDER BY 1").fetchall()
        assert seen == [(1, None), (2, 11), (3, 13)]
        assert connection.sql("SELECT subscriber_id FROM profiles ORDER BY 1").fetchall() == [
            (2,),
            (3,),
        ]
    with lake.open(str(tmp_path / "nothing")) as connection:
        assert connection.sql("SELECT * FROM living").fetchall() == []
    two.close()
    again = shard(objects, 1)  # what is loaded from files hides the same
    assert again.database.rows("SELECT merge_id FROM events ORDER BY 1") == [(11,), (13,)]
