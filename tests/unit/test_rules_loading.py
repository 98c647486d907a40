"""People gathered from the database are the people the rules would see by SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from manta.rules.closure import compile_closure
from manta.rules.loading import PEOPLE_MAX, load
from manta.rules.scope import Touches, touches
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from tests.unit.rules_samples import ATTRIBUTES, NOW, crowds, empty_database, rules, store


class Reader:
    """The port that decisions and reads get, over the test's connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, sql: str, params: Sequence[Any] = (), **tables: pa.Table) -> list[Any]:
        return self._connection.execute(sql, list(params)).fetchall()

    def table(self, sql: str, params: Sequence[Any] = (), **tables: pa.Table) -> pa.Table:
        return self._connection.execute(sql, list(params)).to_arrow_table()


def test_loaded_people_get_the_same_answers_as_sql() -> None:
    with empty_database() as connection:
        random = Random(11)
        store(connection, crowds(30).draw(random))
        asked = [parse(rules().draw(random), ATTRIBUTES) for _ in range(150)]
        ids = [*range(1, 31), 10**9]
        everybody = load(Reader(connection), ids, touches(*asked))
        assert sorted(everybody) == list(range(1, 31))
        for rule in asked:
            compiled = compile_sql(rule, NOW)
            by_sql = connection.execute(compiled.sql, compiled.params).fetchall()
            holds = compile_closure(rule)
            by_closure = {id for id, person in everybody.items() if holds(person, NOW)}
            assert by_closure == {row[0] for row in by_sql}, rule.to_json()


def test_only_what_the_rules_touch_is_read() -> None:
    with empty_database() as connection:
        store(connection, crowds(5).draw(Random(3)))
        wanted = Touches(frozenset({"purchased"}), frozenset({"city"}))
        since = NOW - timedelta(days=2)
        for person in load(Reader(connection), range(1, 6), wanted, since).values():
            assert person.profile.keys() == {
                "email", "time_zone", "locale", "created_at", "attr_city",
            }  # fmt: skip
            assert person.events.keys() <= {"purchased"}
            times = [row.occurred_at for row in person.events.get("purchased", ())]
            assert times == sorted(times) and all(time >= since for time in times)
            assert not person.consents and not person.memberships


def test_limits_are_kept() -> None:
    with pytest.raises(ValueError, match="at most"):
        load(Reader(None), range(PEOPLE_MAX + 1), Touches())
    with empty_database() as connection:
        assert load(Reader(connection), [], Touches(frozenset({"x"})), datetime(2026, 1, 1)) == {}
