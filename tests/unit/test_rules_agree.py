"""Both back ends say the same of everybody, and the tree survives its JSON."""

from __future__ import annotations

from random import Random
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.rules.closure import Person, compile_closure
from manta.rules.nodes import Rule, walk
from manta.rules.sql import compile_count, compile_sample, compile_sql
from manta.rules.tree import parse
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


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_sql_finds_exactly_the_people_for_whom_the_closure_holds(database: Any, seed: int) -> None:
    random = Random(seed)
    everybody = crowds(20).draw(random)
    store(database, everybody)
    for _ in range(10):
        rule = parse(rules().draw(random), ATTRIBUTES)
        assert parse(rule.to_json(), ATTRIBUTES) == rule
        zone = random.choice(["UTC", "Asia/Kolkata"])
        right = expected(rule, everybody, zone)
        if found(database, compile_sql(rule, NOW, zone)) != right:
            pytest.fail(disagreement(database, rule, everybody, zone))
        among = [1, 3, 5, 7, 9, 11, 10**9, 77]
        assert found(database, compile_sql(rule, NOW, zone, among)) == [
            one for one in right if one in among
        ]
        count = compile_count(rule, NOW, zone)
        assert database.execute(count.sql, count.params).fetchone() == (len(right),)
        sample = found(database, compile_sample(rule, NOW, 3, zone))
        assert len(sample) == min(3, len(right)) and set(sample) <= set(right)
