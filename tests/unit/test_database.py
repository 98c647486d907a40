"""The shard's database, and what DuckDB really does under it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manta.command import Change, Op
from manta.errors import Conflict, InvalidRequest
from manta.schema import ATTRIBUTES_MAX
from manta.store.database import ShardDatabase
from tests.unit.store_shard import START, delete, event, person, upsert


@pytest.fixture
def database() -> Iterator[ShardDatabase]:
    database = ShardDatabase()
    yield database
    database.close()


def put(database: ShardDatabase, *changes: Change) -> None:
    database.begin()
    database.apply(database.prepare(changes))
    database.commit()


def test_an_upsert_touches_only_the_given_columns(database: ShardDatabase) -> None:
    put(database, person(1, email="a@x.org", locale="de"), person(2, email="b@x.org"))
    put(database, upsert("profiles", {"subscriber_id": 1, "time_zone": "Europe/Vienna"}))
    rows = database.rows("SELECT subscriber_id, email, time_zone, locale FROM profiles ORDER BY 1")
    assert rows == [(1, "a@x.org", "Europe/Vienna", "de"), (2, "b@x.org", None, None)]


def test_attributes_become_columns_of_the_fitting_type(database: ShardDatabase) -> None:
    born = datetime(1990, 2, 3)
    given = {"attr_city": "Linz", "attr_age": 3, "attr_vip": True, "attr_born": born}
    put(database, person(1, **given, attr_tags=["a", "b"]))
    put(database, person(1, attr_tags=["c"], attr_age=4.5), person(2, attr_city=None))
    assert database.columns("profiles") | {"attr_city": "VARCHAR"} == database.columns("profiles")
    assert database.columns("profiles")["attr_tags"] == "VARCHAR[]"
    rows = database.rows("SELECT attr_city, attr_age, attr_vip, attr_born, attr_tags FROM profiles")
    assert sorted(rows, key=str) == [
        ("Linz", 4.5, True, born, ["c"]),
        (None, None, None, None, None),
    ]


def test_an_attribute_of_another_type_is_refused(database: ShardDatabase) -> None:
    put(database, person(1, attr_city="Linz"))
    with pytest.raises(Conflict, match="attribute city is a string, not a number") as caught:
        database.prepare([person(1, attr_city=3)])
    assert caught.value.path == "profiles.attr_city"
    assert caught.value.expected == "string"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (person(1, nothing=1), "no column 'nothing'"),
        (person(1, attr_City="x"), "not an attribute's name"),
        (person(1, attr_x=b"bytes"), "no attribute can be"),
        (upsert("profiles", {"email": "a@x.org"}), "lack subscriber_id"),
        (
            upsert("profiles", {"subscriber_id": None, "email": "a@x.org"}),
            "subscriber_id is empty",
        ),
        (upsert("profiles", {"subscriber_id": 1}, {"subscriber_id": 1}), "names one key twice"),
        (person(1, email=3.5, created_at="yesterday"), "created_at"),
        (delete("consents", {"subscriber_id": 1}), "gives its key and nothing else"),
        (event(1, "opened", amount="much"), "events.amount"),
    ],
)
def test_bad_rows_are_refused_before_the_transaction(
    database: ShardDatabase, change: Change, said: str
) -> None:
    database.begin()
    with pytest.raises(InvalidRequest, match=said):
        database.prepare([change])
    assert database.usable()
    database.rollback()


def test_too_many_attributes_are_refused(database: ShardDatabase) -> None:
    many = {f"attr_a{i}": 1.0 for i in range(ATTRIBUTES_MAX)}
    put(database, person(1, **many))
    put(database, person(1, attr_a0=2.0))
    with pytest.raises(InvalidRequest, match="more than 500 attributes"):
        database.prepare([person(1, attr_one_more=1.0)])


def test_instants_with_zone_and_nanoseconds_become_utc_microseconds(
    database: ShardDatabase,
) -> None:
    aware = pa.array([datetime(2026, 1, 1, 1, tzinfo=UTC)], pa.timestamp("ns", "Europe/Vienna"))
    rows = pa.table({"subscriber_id": [1], "created_at": aware})
    put(database, Change("profiles", Op.UPSERT, rows))
    assert database.rows("SELECT created_at FROM profiles") == [(datetime(2026, 1, 1, 1),)]


def test_reads_of_a_transaction_see_what_was_applied_in_it(database: ShardDatabase) -> None:
    database.begin()
    database.apply(database.prepare([person(1, email="a"), person(2)]))
    assert database.rows("SELECT count(*) FROM profiles") == [(2,)]
    database.apply(database.prepare([person(1, email="b"), person(1, email="c")]))
    database.apply(database.prepare([delete("profiles", {"subscriber_id": 2})]))
    assert database.rows("FROM Profiles SELECT subscriber_id, email") == [(1, "c")]
    database.apply(database.prepare([delete("profiles", {"subscriber_id": 1}), person(1)]))
    assert database.rows("SELECT email FROM profiles") == [(None,)]
    database.rollback()
    assert database.rows("SELECT count(*) FROM profiles") == [(0,)]


def test_a_rollback_takes_new_attributes_back(database: ShardDatabase) -> None:
    database.begin()
    database.apply(database.prepare([person(1, attr_x="text")]))
    assert database.rows("SELECT attr_x FROM profiles") == [("text",)]
    database.rollback()
    assert "attr_x" not in database.columns("profiles")
    put(database, person(1, attr_x=1.5))
    assert database.rows("SELECT attr_x FROM profiles") == [(1.5,)]


def test_history_events_stay_out_of_memory(database: ShardDatabase) -> None:
    put(database, event(1, "opened"), event(1, "profile_changed"), event(2, "bought"))
    assert sorted(database.rows("SELECT type FROM events")) == [("bought",), ("opened",)]


def test_batches_join_under_their_names_for_one_statement(database: ShardDatabase) -> None:
    put(database, person(1), person(2), person(3))
    batch = pa.table({"id": [1, 3, 9]})
    sql = "SELECT id FROM batch JOIN profiles ON subscriber_id = id ORDER BY id"
    assert database.rows(sql, batch=batch) == [(1,), (3,)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert database.table(sql, batch=batch).to_pylist() == [{"id": 1}, {"id": 3}]
    with pytest.raises(duckdb.Error, match="batch"):
        database.rows("SELECT * FROM batch")
    with pytest.raises(ValueError, match="table of the shard"):
        database.rows("SELECT 1", profiles=batch)


def test_a_decision_only_reads(database: ShardDatabase) -> None:
    for sql in ("DELETE FROM profiles", "SET threads = 4", "COPY profiles TO 'x'", "ATTACH 'x'"):
        with pytest.raises(ValueError, match="only reads"):
            database.rows(sql)


def test_any_error_of_duckdb_aborts_the_transaction(database: ShardDatabase) -> None:
    database.begin()
    assert database.usable()
    with pytest.raises(duckdb.Error):
        database.rows("SELECT nothing FROM batch", batch=pa.table({"x": [1]}))
    assert not database.usable()
    database.rollback()
    assert database.rows("SELECT x FROM batch", batch=pa.table({"x": [1]})) == [(1,)]


def test_readers_see_what_is_committed_and_a_pinned_one_stays(database: ShardDatabase) -> None:
    put(database, person(1, email="old"))
    reader, pinned = database.reader(), database.reader()
    pinned.pin()
    database.begin()
    database.apply(database.prepare([person(1, email="new", attr_new="x"), person(2)]))
    database.write_waiting()
    assert reader.rows("SELECT email FROM profiles") == [("old",)]
    database.commit()
    assert reader.rows("SELECT email, attr_new FROM profiles ORDER BY ALL") == [
        ("new", "x"),
        (None, None),
    ]
    assert pinned.rows("SELECT * EXCLUDE (created_at, updated_at) FROM profiles") == [
        (1, "old", None, None)
    ]
    put(database, delete("profiles", {"subscriber_id": 1}))
    put(database, person(1, email="again"))
    assert pinned.rows("SELECT email FROM profiles") == [("old",)]
    reader.close()
    pinned.close()


def test_a_reader_works_while_the_writer_is_in_a_transaction(database: ShardDatabase) -> None:
    put(database, person(1))
    database.begin()
    database.apply(database.prepare([person(2)]))
    database.write_waiting()
    seen: list[Any] = []

    def read() -> None:
        reader = database.reader()
        seen.extend(reader.rows("SELECT count(*) FROM profiles"))
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(10)
    assert seen == [(1,)]
    database.commit()


def test_a_locked_database_reaches_no_files(database: ShardDatabase, tmp_path: Any) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    database.lock_down()
    reader = database.reader()
    for one in (database, reader):
        with pytest.raises(duckdb.PermissionException):
            one.rows(f"SELECT * FROM read_csv('{secret}')")
        with pytest.raises(duckdb.PermissionException):
            one.rows(f"SELECT * FROM '{secret}'")
    secret_rows = pa.table({"a": [1]})  # no replacement scan reaches Python's variables
    with pytest.raises(duckdb.CatalogException):
        reader.rows("SELECT * FROM secret_rows")
    assert secret_rows.num_rows == 1
    put(database, person(1))
    reader.close()


def test_lists_of_segments_and_composite_keys(database: ShardDatabase) -> None:
    row = {"subscriber_id": 1, "channel": "email", "topic": "news", "status": "subscribed"}
    put(database, upsert("consents", row, row | {"topic": "offers"}))
    put(database, upsert("consents", row | {"status": "unsubscribed"}))
    put(database, delete("consents", {"subscriber_id": 1, "channel": "email", "topic": "offers"}))
    assert database.rows("SELECT topic, status FROM consents") == [("news", "unsubscribed")]
    for segments in ([1, 2], [], [3]):
        put(database, upsert("memberships", {"subscriber_id": 1, "segments": segments}))
    assert database.rows("SELECT segments FROM memberships") == [([3],)]


def test_an_upsert_of_the_key_alone_keeps_the_row(database: ShardDatabase) -> None:
    put(database, person(1, email="a"))
    put(database, person(1), person(2))
    assert database.rows("SELECT subscriber_id, email FROM profiles ORDER BY 1") == [
        (1, "a"),
        (2, None),
    ]


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "locale", "tags", "delete", "read", "commit", "rollback"]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_waiting_changes_behave_like_changes_written_at_once(
    script: list[tuple[str, int, int]],
) -> None:
    """Against a dict: whatever is merged or waits, reads see each change in its order."""
    database = ShardDatabase()
    committed: dict[int, list[Any]] = {}
    open_rows: dict[int, list[Any]] = {}
    database.begin()
    for step, key, value in script:
        if step == "delete":
            change = delete("profiles", {"subscriber_id": key})
            open_rows.pop(key, None)
        elif step in ("put", "locale", "tags"):
            column, at = {"put": ("email", 0), "locale": ("locale", 1), "tags": ("attr_t", 2)}[step]
            given: Any = [str(value)] if step == "tags" else str(value)
            change = person(key, **{column: given})
            open_rows[key] = list(open_rows.get(key, [None, None, None]))
            open_rows[key][at] = given
        elif step == "read":
            assert database.rows("SELECT count(*) FROM profiles") == [(len(open_rows),)]
            continue
        else:
            if step == "commit":
                database.commit()
                committed = dict(open_rows)
            else:
                database.rollback()
                open_rows = dict(committed)
            database.begin()
            continue
        database.apply(database.prepare([change]))
    database.commit()
    put(database, person(99, attr_t=["x"]))
    found = database.rows("SELECT subscriber_id, email, locale, attr_t FROM profiles")
    assert {row[0]: list(row[1:]) for row in found if row[0] != 99} == open_rows
    database.close()


def test_figures(database: ShardDatabase) -> None:
    put(database, person(1), event(1, "opened", START))
    counts = database.row_counts()
    assert (counts["profiles"], counts["events"], counts["ledger"]) == (1, 1, 0)
    assert database.memory_bytes() > 0
