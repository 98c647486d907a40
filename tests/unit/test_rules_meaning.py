"""The meaning of values, and that DuckDB is lent exactly this meaning."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any

import duckdb
import pytest
import re2

from manta.rules.closure import EventRow, Person, compile_closure
from manta.rules.meaning import bucket_of, fold, micros, property_value, register, zone_of
from manta.rules.sql import compile_sql
from manta.rules.sql_tests import Sql, fold_sql
from manta.rules.tree import parse
from tests.unit.rules_samples import ATTRIBUTES, NOW, TEXTS, empty_database, store


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        register(connection)
        register(connection.cursor())  # again changes nothing
        yield connection


def column(connection: Any, sql: str, values: list[Any], *params: Any) -> list[Any]:
    source = f"SELECT {sql} FROM (SELECT unnest(?) AS x, generate_subscripts(?, 1) AS i) ORDER BY i"
    return [row[0] for row in connection.execute(source, [*params, values, values]).fetchall()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),
        ("Å", "a\u030a"),
        ("\u212b", "å"),
        ("J\u030c", "ǰ"),
        ("e\u0323\u0301", "e\u0301\u0323"),
        ("K", "k"),
        ("ﬁn", "FIN"),
    ],
)
def test_texts_that_people_call_the_same_are_equal(one: str, other: str) -> None:
    assert fold(one) == fold(other)


def test_folding_does_not_confuse_what_people_tell_apart() -> None:
    assert len({fold(text) for text in ("a", "å", "ä", "aa", "ı", "i", "o", "0", "a\0")}) == 9


def test_sql_folds_every_character_as_python_does(connection: duckdb.DuckDBPyConnection) -> None:
    points = [*range(0x3000), *range(0xA000, 0xD800), *range(0xF900, 0x10000), 0x1F469]
    points += range(0x10400, 0x10500)
    texts = [*map(chr, points), chr(sys.maxunicode), *TEXTS]
    texts += ["A" + text + "\u0301" for text in TEXTS]
    expression = fold_sql(Sql("x"))
    assert column(connection, expression.text, texts) == [fold(text) for text in texts]


def test_both_regular_expression_engines_are_one(connection: duckdb.DuckDBPyConnection) -> None:
    patterns = [
        *("^$", "^a", "b$", "a.b", "(?s)a.b", "(?m)^b", "(?i)straße", "(?i)K", "\\bo", "[^a]"),
        *("\\pL+", "\\p{Greek}", "[[:alpha:]]{2}", "\\d", "\\s$", "(a|b)+?c?", "\\x00", "\\C"),
        *("\\z", "%", "_", "^Oslo$", "Oslo", "^Os", "lo$", ".*", "(?i)oslo", "a{2,3}", ""),
    ]
    texts = [*TEXTS, "b\nb", "aab", "Oslo\n", "Οδός 7", "\u2028"]
    options = re2.Options()
    options.log_errors = False
    for pattern in patterns:
        python = [re2.search(pattern, text, options) is not None for text in texts]
        by_sql = connection.execute(
            "SELECT list_transform(?::VARCHAR[], lambda t: regexp_matches(t, ?::VARCHAR))",
            [texts, pattern],
        ).fetchone()
        assert by_sql == (python,), pattern
        one_by_one = column(connection, "regexp_matches(x, ?::VARCHAR)", texts, pattern)
        assert one_by_one == python, pattern


def test_sums_do_not_depend_on_order() -> None:
    amounts = [0.1, 0.2, 0.3, 1e9, -1e9, 33.33]
    totals = set()
    for seed in range(20):
        Random(seed).shuffle(amounts)
        totals.add(sum(micros(amount) or 0 for amount in amounts))
    assert totals == {33_930_000}


def test_sql_counts_in_the_same_millionths(connection: duckdb.DuckDBPyConnection) -> None:
    random = Random(1)
    edges = [0.5e-6, -0.5e-6, 1.5e-6, 2.5e-6, 0.49999999999999994e-6, 9e12, -9e12, 9.1e12, 0.1]
    edges += [float("nan"), float("inf"), -float("inf"), 1e-300, 4503599627.3704955, -0.0]
    values = edges + [random.uniform(-1e6, 1e6) for _ in range(2000)]
    values += [round(random.uniform(-1e3, 1e3), 7) for _ in range(2000)]
    expression = (
        "CASE WHEN abs(x::DOUBLE) <= 9e12::DOUBLE THEN CAST(round(x * 1e6::DOUBLE) AS BIGINT) END"
    )
    assert column(connection, expression, values) == [micros(value) for value in values]


def test_buckets_are_the_same_and_even(connection: duckdb.DuckDBPyConnection) -> None:
    ids = [*range(20_000), 1 << 62]
    expression = "md5_number_lower(concat(?::VARCHAR, ':', x)) % 10000"
    assert column(connection, expression, ids, "sält") == [bucket_of("sält", id) for id in ids]
    assert 9_700 < sum(bucket_of("sält", id) < 5_000 for id in ids) < 10_300


def test_an_unknown_zone_is_the_workspace_s() -> None:
    assert zone_of("Mars/Olympus", "Europe/Oslo").key == "Europe/Oslo"
    assert zone_of("../../etc/passwd", "UTC").key == "UTC"
    assert zone_of(None, "Asia/Tokyo").key == zone_of("", "Asia/Tokyo").key == "Asia/Tokyo"


def test_paths_lead_through_objects_only() -> None:
    text = '{"a": {"b c": [1, {"d": 2}]}, "x": 1, "x": 2}'
    assert property_value(text, ("a", "b c")) == [1, {"d": 2}]
    assert property_value(text, ("a", "b c", "d")) is None
    assert property_value(text, ("x",)) == 1  # the first of two, as DuckDB reads it
    assert property_value("[" * 100_000, ("a",)) is None
    assert property_value(None, ("a",)) is None


QUIET_BUYERS = {
    "all": [
        {
            "event": {
                "type": "purchased",
                "where": [{"property": "item", "operator": "equals", "value": "SKU-1"}],
                "within": {"last": {"days": 30}},
            }
        },
        {"last_messages": {"number": 3, "which": "none", "were": "opened"}},
    ]
}


def _person(id: int, bought_days: float, sent_hours: list[float], opened: list[int]) -> Person:
    sent = [
        EventRow(NOW - timedelta(hours=hours), 1, key, "marketing")
        for key, hours in enumerate(sent_hours)
    ]
    return Person(
        id,
        {"email": None, "time_zone": None, "locale": None, "created_at": datetime(2025, 1, 1)},
        {
            "purchased": [EventRow(NOW - timedelta(days=bought_days), item="sku-1")],
            "sent": sorted(sent),
            "opened": [EventRow(NOW - timedelta(hours=1), 1, key) for key in opened],
        },
    )


def test_bought_in_30_days_but_opened_none_of_the_last_3_mails() -> None:
    people = {
        "bought, opened none of the last three, though an older one": _person(
            1, 3, [30, 50, 70, 90], [3]
        ),
        "opened the third last": _person(2, 3, [30, 50, 70, 90], [2]),
        "bought too long ago": _person(3, 30, [30, 50, 70], []),
        "was sent only two that have settled": _person(4, 3, [1, 50, 70], []),
        "opened one that has not settled: it is not among the last three": _person(
            5, 29.9, [1, 30, 50, 70], [0]
        ),
        "the third is settled to the microsecond": _person(6, 0, [24, 50, 70], []),
    }
    rule = parse(QUIET_BUYERS, ATTRIBUTES)
    holds = compile_closure(rule)
    assert {person.subscriber_id for person in people.values() if holds(person, NOW)} == {1, 5, 6}
    with empty_database() as connection:
        store(connection, list(people.values()))
        compiled = compile_sql(rule, NOW)
        found = connection.execute(compiled.sql, compiled.params).fetchall()
        assert {row[0] for row in found} == {1, 5, 6}
