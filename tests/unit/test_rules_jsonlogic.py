"""The suite of JSONLogic as a source of awkward cases.

Its language is not ours: each of its rules is refused, with the place of the mistake. What can be
said in ours is translated, with data and constants as properties of events, and means the same in
both back ends; its scalars and hostile ones stand as operands and as data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manta.errors import InvalidRequest, MantaError
from manta.rules.closure import EventRow, Person, compile_closure
from manta.rules.explain import explain
from manta.rules.sql import compile_sql
from manta.rules.tree import parse, parse_text
from tests.unit.plain_rules import plain_holds, plain_people
from tests.unit.rules_samples import ATTRIBUTES, NOW, empty_database, store

SUITE = Path(__file__).parents[3] / "shared" / "data" / "rules" / "jsonlogic_compatible.json"
pytestmark = pytest.mark.skipif(not SUITE.exists(), reason="the shared data is not there")
CASES = [one for one in json.loads(SUITE.read_text()) if isinstance(one, dict)] if (
    SUITE.exists()
) else []  # fmt: skip

COMPARED = {
    "==": "equals",
    "===": "equals",
    "!=": "not_equals",
    "!==": "not_equals",
    "<": "less_than",
    "<=": "at_most",
    ">": "greater_than",
    ">=": "at_least",
}
CONTRARY = {"<": ">=", ">=": "<", ">": "<=", "<=": ">", "==": "!=", "!=": "=="}
HOSTILE: list[Any] = [
    *(float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, -0.0, 10**400, 2**53 + 1),
    *("", "\0", "\ud800", "\U0010ffff", "a" * 1_001, "' OR 1=1 --", "?", "%_", "\u202e", "ﬁ", "İ"),
    *(True, False, None, [], {}, [[]], [None], {"days": 1}, {"days": 10**9}, "9999-12-31"),
    *("2026-03-29T12:30:00+99:00", "0001-01-01", "2026-02-30", "[[:foo:]]", "(" * 200, "\\"),
]


# -- everything is refused -------------------------------------------------------------------------


def test_no_rule_of_another_language_is_taken_for_ours() -> None:
    assert len(CASES) > 250
    for case in CASES:
        for read in (parse, lambda rule, types: parse_text(json.dumps(rule), types)):
            with pytest.raises(MantaError) as refusal:
                read(case["rule"], ATTRIBUTES)
            assert isinstance(refusal.value, InvalidRequest)
            assert refusal.value.path.startswith("$") and refusal.value.expected, case


def nested(levels: int) -> Any:
    rule: Any = {"==": [1, 1]}
    for _ in range(levels):
        rule = {"all": [rule]}
    return rule


@pytest.mark.parametrize("levels", [1, 19, 20, 500, 100_000])
def test_nesting_of_any_depth_is_refused(levels: int) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(nested(levels), ATTRIBUTES)
    assert refusal.value.path.startswith("$.all[0]")


# -- what has an equivalent ------------------------------------------------------------------------


class Untranslatable(Exception):
    pass


class Translation:
    """A rule of ours, and the events that hold its data: one ``case``, and an ``item`` each."""

    def __init__(self, data: Any) -> None:
        self.properties: dict[str, Any] = dict(data) if isinstance(data, dict) else {}
        self.items: list[Any] = []

    def rule(self, rule: Any) -> dict[str, Any]:
        if isinstance(rule, bool):
            return {"all": []} if rule else {"any": []}
        if not isinstance(rule, dict) or len(rule) != 1:
            raise Untranslatable
        ((operator, given),) = rule.items()
        operands = given if isinstance(given, list) else [given]
        if operator in ("and", "or"):
            return {{"and": "all", "or": "any"}[operator]: [self.rule(one) for one in operands]}
        if operator in ("!", "!!") and len(operands) == 1:
            inner = self.rule(operands[0])
            return {"not": inner} if operator == "!" else inner
        if operator in ("all", "some", "none"):
            return self.over_items(operator, *operands)
        return {"event": {"type": "case", "where": self.filters(operator, operands)}}

    def filters(self, operator: str, operands: list[Any]) -> list[dict[str, Any]]:
        if operator in ("<", "<=") and len(operands) == 3:
            low, value, high = operands
            name = self.name(value)
            return [compared(name, CONTRARY_SIDE[operator], low), compared(name, operator, high)]
        if len(operands) != 2:
            raise Untranslatable
        one, other = operands
        if operator == "in" and isinstance(other, str):
            return [{"property": self.name(other), "operator": "contains", "value": one}]
        if operator == "in" and isinstance(other, list):
            return [{"property": self.name(one), "operator": "in", "value": other}]
        if operator not in COMPARED:
            raise Untranslatable
        return [compared(self.name(one), operator, other)]

    def name(self, value: Any) -> str:
        """The property that holds a variable or constant."""
        if isinstance(value, dict):
            if list(value) != ["var"] or not isinstance(value["var"], str):
                raise Untranslatable
            return f"properties.{value['var']}"
        name = f"constant{len(self.properties)}"
        self.properties[name] = value
        return f"properties.{name}"

    def over_items(self, quantifier: str, source: Any, test: Any) -> dict[str, Any]:
        listed = self.properties.get(source["var"]) if isinstance(source, dict) else None
        ((operator, (subject, value)),) = test.items()
        if not isinstance(listed, list) or operator not in CONTRARY:
            raise Untranslatable
        self.items = [one if isinstance(one, dict) else {"value": one} for one in listed]
        name = f"properties.{subject['var'] or 'value'}"
        chosen = CONTRARY[operator] if quantifier == "all" else operator
        found = {"event": {"type": "item", "where": [compared(name, chosen, value)]}}
        if quantifier == "all":  # of nothing, it is false
            return {"all": [{"event": {"type": "item"}}, {"not": found}]}
        return found if quantifier == "some" else {"not": found}

    def person(self, id: int) -> Person:
        row = EventRow(NOW, properties=json.dumps(self.properties))
        items = [EventRow(NOW, properties=json.dumps(one)) for one in self.items]
        return Person(id, dict(PROFILE), {"case": [row], "item": items})


CONTRARY_SIDE = {"<": ">", "<=": ">="}
PROFILE = {"email": None, "time_zone": None, "created_at": NOW, "attr_city": None}


def compared(name: str, operator: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str | int | float):
        raise Untranslatable
    return {"property": name, "operator": COMPARED[operator], "value": value}


def translated() -> Iterator[tuple[Any, Person, dict[str, Any]]]:
    for id, case in enumerate(CASES, 1):
        translation = Translation(case.get("data"))
        try:
            rule = translation.rule(case["rule"])
            parse(rule, ATTRIBUTES)
        except (Untranslatable, InvalidRequest):
            continue
        yield case, translation.person(id), rule


def coerced(case: Any) -> bool:
    """Whether JSONLogic takes one type for another here, as we never do."""
    if not isinstance(case["rule"], dict):
        return False
    operands = next(iter(case["rule"].values()))
    if not isinstance(operands, list) or any(isinstance(one, dict | list) for one in operands):
        return False
    return len({isinstance(one, str) for one in operands}) > 1


def test_what_has_an_equivalent_means_the_same() -> None:
    cases = list(translated())
    assert len(cases) >= 60
    with empty_database() as database:
        store(database, [person for _, person, _ in cases])
        plain = plain_people(lambda sql: database.sql(sql).to_arrow_table())
        for case, person, json_rule in cases:
            rule = parse(json_rule, ATTRIBUTES)
            compiled = compile_sql(rule, NOW, among=[person.subscriber_id])
            by_sql = bool(database.execute(compiled.sql, compiled.params).fetchall())
            assert compile_closure(rule)(person, NOW) is by_sql, case
            assert plain_holds(rule.to_json(), plain[person.subscriber_id], NOW) is by_sql, case
            if not coerced(case):
                assert by_sql is case["result"], (case, json_rule)


# -- hostile values --------------------------------------------------------------------------------


def scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from scalars(one)
    else:
        yield value


OPERATORS = [
    *(("string", one) for one in ("equals", "in", "contains", "not_starts_with", "regex")),
    *(("number", one) for one in ("equals", "not_in", "between", "at_least", "less_than")),
    *(("date", one) for one in ("on", "before", "in_the_last", "between", "at_least_ago")),
    *(("list", one) for one in ("contains", "contains_any", "not_contains_all")),
    ("boolean", "not_equals"),
]


def test_hostile_values_stand_as_operands_and_as_data() -> None:
    awkward = [one for case in CASES for one in scalars([case["rule"], case.get("data")])]
    values = [*HOSTILE, *list({repr(one): one for one in awkward}.values())[::3]]
    people = [
        Person(id, dict(PROFILE), {"case": [EventRow(NOW, properties=json.dumps({"a": one}))]})
        for id, one in enumerate([*values, *([one] for one in HOSTILE)], 1)
    ]
    asked = []
    for type_, operator in OPERATORS:
        for value in values:
            operand = [value, value] if operator in ("in", "not_in", "between") else value
            where = {"property": "properties.a", "operator": operator, "type": type_}
            try:
                rule = {"event": {"type": "case", "where": [{**where, "value": operand}]}}
                asked.append(parse(rule, ATTRIBUTES))
            except InvalidRequest as refusal:
                assert refusal.path and refusal.path.startswith("$.event.where[0]")
                assert len(str(refusal)) < 5_000
    assert len(asked) > 150
    with empty_database() as database:
        store(database, people)
        plain = plain_people(lambda sql: database.sql(sql).to_arrow_table())
        for turn, rule in enumerate(asked):
            assert parse(json.loads(json.dumps(rule.to_json())), ATTRIBUTES) == rule
            explain(rule).encode()
            compiled = compile_sql(rule, NOW)
            by_sql = {row[0] for row in database.execute(compiled.sql, compiled.params).fetchall()}
            holds, shown = compile_closure(rule), rule.to_json()
            assert by_sql == {one.subscriber_id for one in people if holds(one, NOW)}, shown
            if turn % 4 == 0:
                right = {id for id, one in plain.items() if plain_holds(shown, one, NOW)}
                assert by_sql == right, shown
