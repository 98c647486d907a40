"""Both back ends say the same of everybody, and the tree survives its JSON."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.rules.closure import EventRow, Person, compile_closure
from manta.rules.nodes import Rule, walk
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_count, compile_sample, compile_sql
from manta.rules.tree import parse
from tests.unit.plain_rules import plain_holds, plain_people
from tests.unit.rules_samples import ATTRIBUTES, NOW, crowds, empty_database, rules, store


@pytest.fixture(scope="module")
def database() -> Any:
    with empty_database() as connection:
        yield connection


def found(connection: duckdb.DuckDBPyConnection, compiled: Any) -> list[int]:
    rows = connection.execute(compiled.sql, compiled.params).fetchall()
    return sorted(row[0] for row in rows)


def expected(rule: Rule, everybody: list[Person], zone: str) -> list[int]:
    holds = compile_closure(rule, zone)
    return [one.subscriber_id for one in everybody if holds(one, NOW)]


def disagreement(
    connection: duckdb.DuckDBPyConnection, rule: Rule, everybody: list[Person], zone: str
) -> str:
    """The smallest part of the rule on which the two differ, and about whom."""
    for node in reversed(walk(rule)):
        compiled = compile_sql(node, NOW, zone)
        differ = set(found(connection, compiled)) ^ set(expected(node, everybody, zone))
        if differ:
            person = everybody[min(differ) - 1]
            return f"{node.to_json()} in {zone} about {person}\n{compiled.sql}\n{compiled.params}"
    return f"only together: {rule.to_json()}"


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_sql_finds_exactly_the_people_for_whom_the_closure_holds(database: Any, seed: int) -> None:
    random = Random(seed)
    everybody = crowds(20).draw(random)
    store(database, everybody)
    for turn in range(10):
        rule = parse(rules().draw(random), ATTRIBUTES)
        assert parse(rule.to_json(), ATTRIBUTES) == rule
        zone = random.choice(["UTC", "Asia/Kolkata"])
        right = expected(rule, everybody, zone)
        if found(database, compile_sql(rule, NOW, zone)) != right:
            pytest.fail(disagreement(database, rule, everybody, zone))
        if turn % 4:
            continue  # the other forms of the statement are asked of each fourth rule
        among = [1, 3, 5, 7, 9, 11, 10**9, 77]
        assert found(database, compile_sql(rule, NOW, zone, among)) == [
            one for one in right if one in among
        ]
        count = compile_count(rule, NOW, zone)
        assert database.execute(count.sql, count.params).fetchone() == (len(right),)
        sample = found(database, compile_sample(rule, NOW, 3, zone))
        assert len(sample) == min(3, len(right)) and set(sample) <= set(right)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_both_say_what_the_page_of_semantics_says(database: Any, seed: int) -> None:
    """Each part of each rule, against the plain reading of docs/rules.md."""
    random = Random(seed)
    everybody = crowds(15).draw(random)
    store(database, everybody)
    plain = plain_people(lambda sql: database.sql(sql).to_arrow_table())
    for _ in range(6):
        rule = parse(rules().draw(random), ATTRIBUTES)
        zone = random.choice(["UTC", "Asia/Kolkata"])
        for node in reversed(walk(rule)):
            json = node.to_json()
            right = [id for id, one in plain.items() if plain_holds(json, one, NOW, zone)]
            differ = set(right) ^ set(expected(node, everybody, zone))
            if differ:
                pytest.fail(f"{json} in {zone} about {everybody[min(differ) - 1]}")
        assert found(database, compile_sql(rule, NOW, zone)) == sorted(right)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_a_rule_says_the_same_where_nobody_has_the_attribute(seed: int) -> None:
    """Without the columns of some attributes, as in a shard that has never seen a value."""
    random = Random(seed)
    gone = {f"attr_{name}" for name in ATTRIBUTES if random.random() < 0.6}
    everybody = [
        replace(
            one,
            profile={**one.profile, **dict.fromkeys(gone)},
            attribute_times={
                name: at for name, at in one.attribute_times.items() if f"attr_{name}" not in gone
            },
        )
        for one in crowds(12).draw(random)
    ]
    with empty_database() as database:
        store(database, everybody)
        for column in sorted(gone):
            database.execute(f"ALTER TABLE profiles DROP COLUMN {column}")
        columns = [row[0] for row in database.execute("DESCRIBE profiles").fetchall()]
        for _ in range(15):
            rule = parse(rules().draw(random), ATTRIBUTES)
            fitting = without_unknown(rule, columns)
            right = expected(rule, everybody, "UTC")
            assert expected(fitting, everybody, "UTC") == right, rule.to_json()
            assert found(database, compile_sql(fitting, NOW)) == right, rule.to_json()
            assert parse(fitting.to_json(), ATTRIBUTES) == fitting


NOTHING = {"email": None, "created_at": NOW, "attr_birthday": None, "time_zone": None}
ZONES = ["UTC", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati", "Pacific/Niue", None]
DAY_TESTS: list[tuple[str, Any]] = [
    ("on", "2026-03-29"),
    ("before", "2026-03-29"),
    ("after", "2026-03-29"),
    ("between", ["2026-03-28", "2026-03-30"]),
    ("in_the_last", {"days": 1}),
    ("in_the_last", {"days": 2}),
    ("in_the_next", {"days": 1}),
    ("at_least_ago", {"days": 1}),
    ("anniversary_today", None),
    ("anniversary_in_the_next", {"days": 1}),
]


@pytest.mark.parametrize(("operator", "value"), DAY_TESTS)
def test_days_in_zones_agree_at_every_hour_around_their_bounds(
    database: Any, operator: str, value: Any
) -> None:
    start = datetime(2026, 3, 26, 0, 30)
    everybody = [
        Person(
            i + 1,
            {
                **NOTHING,
                "time_zone": ZONES[i % len(ZONES)],
                "attr_birthday": start + timedelta(hours=i // len(ZONES)),
            },
        )
        for i in range(len(ZONES) * 24 * 7)
    ]
    store(database, everybody)
    fields = {"name": "birthday", "operator": operator}
    rule = parse({"attribute": fields if value is None else {**fields, "value": value}}, ATTRIBUTES)
    right = expected(rule, everybody, "Asia/Kolkata")
    assert right and len(right) < len(everybody)
    assert found(database, compile_sql(rule, NOW, "Asia/Kolkata")) == right


def test_messages_of_one_instant_are_ordered_by_their_key(database: Any) -> None:
    sent_at = NOW - timedelta(days=2)
    everybody = []
    for id, keys in enumerate([(1, 2, 3), (3, 2, 1), (2, None, 3), (None, -1, 1), (None, 2, 1)], 1):
        sent = [EventRow(sent_at, message_key=key, item="marketing") for key in keys]
        opened = [EventRow(NOW, message_key=key) for key in (3, -1)]
        everybody.append(Person(id, dict(NOTHING), {"sent": sent, "opened": opened}))
    store(database, everybody)
    asked = {"last_messages": {"number": 1, "which": "all", "were": "opened"}}
    rule = parse(asked, ATTRIBUTES)
    assert expected(rule, everybody, "UTC") == [1, 2, 3]
    assert found(database, compile_sql(rule, NOW)) == [1, 2, 3]
    asked["last_messages"]["number"] = 2
    assert expected(parse(asked, ATTRIBUTES), everybody, "UTC") == found(
        database, compile_sql(parse(asked, ATTRIBUTES), NOW)
    )
