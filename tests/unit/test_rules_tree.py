"""The door of rules: what is accepted, and how a mistake is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from manta.errors import InvalidRequest
from manta.rules.nodes import All, Attribute, walk
from manta.rules.tree import DEPTH_MAX, parse, parse_text
from manta.schema import AttributeType
from tests.unit.rules_samples import ATTRIBUTES

BOUGHT = {
    "event": {
        "type": "purchased",
        "where": [{"property": "item", "operator": "equals", "value": "sku-1"}],
        "within": {"last": {"days": 30}},
    }
}
QUIET_BUYERS = {
    "all": [BOUGHT, {"last_messages": {"number": 3, "which": "none", "were": "opened"}}]
}


def attribute(name: str, operator: str, *value: Any) -> dict[str, Any]:
    fields = {"name": name, "operator": operator}
    return {"attribute": {**fields, "value": value[0]} if value else fields}


def refused(rule: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(rule, ATTRIBUTES)
    assert caught.value.path and caught.value.expected
    assert str(caught.value).startswith(caught.value.path)
    return caught.value


def test_the_json_of_a_rule_is_canonical() -> None:
    assert parse(QUIET_BUYERS, ATTRIBUTES).to_json() == QUIET_BUYERS
    assert parse(attribute("score", "in", [1, 2.5]), ATTRIBUTES).to_json() == attribute(
        "score", "in", [1, 2.5]
    )
    at = attribute("birthday", "before", "2026-05-01T12:00:00+02:00")
    shown = parse(at, ATTRIBUTES).to_json()
    assert shown == attribute("birthday", "before", "2026-05-01T10:00:00.000000Z")


DAY = {"within": {"days": 1}}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"sequence": {"steps": list(steps)}}


@pytest.mark.parametrize(
    ("rule", "path", "said"),
    [
        (attribute("citi", "equals", "x"), "$.attribute.name", "did you mean 'city'?"),
        (attribute("city", "equal", "x"), "$.attribute.operator", "did you mean 'equals'?"),
        (attribute("city", "at_least", 1), "$.attribute.operator", "operator of type string"),
        (attribute("city", "equals", 1), "$.attribute.value", "text in quotes"),
        (attribute("city", "equals"), "$.attribute", "'value' is missing"),
        (attribute("city", "is_set", 1), "$.attribute.value", "takes no value"),
        (attribute("city", "in", []), "$.attribute.value", "1 to 1000"),
        (attribute("city", "in", ["a", 1]), "$.attribute.value[1]", "text in quotes"),
        (attribute("city", "contains", ""), "$.attribute.value", "1 to 1000 characters"),
        (attribute("city", "equals", "x" * 1001), "$.attribute.value", "1001 characters"),
        (attribute("city", "equals", "\ud800"), "$.attribute.value", "surrogate"),
        (attribute("city", "regex", "(?=x)"), "$.attribute.value", "RE2 syntax"),
        (attribute("city", "regex", "x" * 513), "$.attribute.value", "512"),
        (attribute("score", "equals", "1"), "$.attribute.value", "number without quotes"),
        (attribute("score", "equals", True), "$.attribute.value", "number without quotes"),
        (attribute("score", "equals", float("nan")), "$.attribute.value", "out of range"),
        (attribute("score", "equals", 10**400), "$.attribute.value", "out of range"),
        (attribute("score", "between", [2, 1]), "$.attribute.value", "[least, greatest]"),
        (attribute("score", "between", [1]), "$.attribute.value", "2 to 2 entries"),
        (attribute("vip", "equals", "yes"), "$.attribute.value", "true, false"),
        (attribute("birthday", "before", "1.5.2026"), "$.attribute.value", "2026-05-01"),
        (attribute("birthday", "before", "0001-01-01"), "$.attribute.value", "1000 to 9000"),
        (attribute("birthday", "on", "2026-05-01T12:00:00Z"), "$.attribute.value", "days"),
        (
            attribute("birthday", "between", ["2026-05-01", "2026-05-01T12:00:00Z"]),
            "$.attribute.value",
            "two days or two instants",
        ),
        (
            attribute("birthday", "in_the_last", {"day": 3}),
            "$.attribute.value",
            "did you mean 'days'?",
        ),
        (attribute("birthday", "in_the_last", 3), "$.attribute.value", "exactly one key"),
        (
            attribute("birthday", "anniversary_in_the_next", {"days": 365}),
            "$.attribute.value",
            "364 days",
        ),
        (
            {"all": [{"all": []}, {"not": {"all": []}}, {**BOUGHT, "any": []}]},
            "$.all[2]",
            "exactly one key",
        ),
        (sequence({"type": "x"}), "$.sequence.steps", "2 to 10 entries"),
        (sequence(*[{"type": "x"}] * 11), "$.sequence.steps", "2 to 10 entries"),
        (
            sequence({"type": "x", "within": {"days": 1}}, {"type": "y"}),
            "$.sequence.steps[0].within",
            "follows nothing",
        ),
        (
            sequence({"type": "x"}, {"type": "y", "absent": True}),
            "$.sequence.steps[1]",
            "waited for",
        ),
        (
            sequence({"type": "x"}, {"type": "y", "absent": True, **DAY}, {"type": "z"}),
            "$.sequence.steps[1].absent",
            "an absent last step",
        ),
        (
            sequence({"type": "x"}, {"type": "y", "within": {"last": {"days": 1}}}),
            "$.sequence.steps[1].within",
            "minutes, hours, days, weeks",
        ),
        (
            {"has_been": {**attribute("email", "is_set"), "for": {"days": 1}}},
            "$.has_been.attribute.name",
            "an attribute, time_zone or locale",
        ),
        ({"has_been": attribute("city", "is_set")}, "$.has_been", "'for' is missing"),
        (
            {"prediction": {"name": "churn", "operator": "contains", "value": 1}},
            "$.prediction.operator",
            "greater_than",
        ),
        ({"keyed": {"by": "amount", "rule": BOUGHT}}, "$.keyed.by", "is no key"),
        ({"keyed": {"by": "item", "rule": {"all": []}}}, "$.keyed.rule", "asks for no event"),
        (
            {"keyed": {"by": "item", "rule": {"not": {"member": {"segment": 1}}}}},
            "$.keyed.rule.not",
            "event, first_time, last_time, sequence",
        ),
        (
            {"keyed": {"by": "item", "rule": {"keyed": {"by": "item", "rule": BOUGHT}}}},
            "$.keyed.rule",
            "unknown condition 'keyed'",
        ),
        ({"and": []}, "$", "valid: all, any, exactly_one, not"),
        ({"All": []}, "$", "did you mean 'all'?"),
        ([], "$", "a list"),
        (None, "$", "null"),
        ({"all": {}}, "$.all", "a list"),
        ({"event": {"typ": "x"}}, "$.event.typ", "did you mean 'type'?"),
        ({"event": {"type": "x", "count": 3}}, "$.event.count", "an object with"),
        (
            {"event": {"type": "x", "count": {"operator": "at_least", "value": 1.5}}},
            "$.event.count.value",
            "whole number",
        ),
        (
            {
                "event": {
                    "type": "x",
                    "sum": {"property": "item", "operator": "at_least", "value": 1},
                }
            },
            "$.event.sum.property",
            "cannot be summed",
        ),
        (
            {"event": {"type": "x", "where": [{"property": "itm", "operator": "is_set"}]}},
            "$.event.where[0].property",
            "did you mean 'item'?",
        ),
        (
            {"event": {"type": "x", "where": [{"property": "properties.", "operator": "is_set"}]}},
            "$.event.where[0].property",
            "key of an object",
        ),
        ({"event": {"type": "x", "within": {"las": {}}}}, "$.event.within", "did you mean 'last'?"),
        ({"first_time": {"type": "x"}}, "$.first_time", "'within' is missing"),
        (
            {"last_messages": {"number": 101, "which": "any", "were": "opened"}},
            "$.last_messages.number",
            "1 to 100",
        ),
        (
            {"consent": {"channel": "fax", "topic": "x", "status": "subscribed"}},
            "$.consent.channel",
            "email, sms, push",
        ),
        ({"bucket": {"salt": "s", "from": 5, "to": 5}}, "$.bucket", "less than"),
        ({"bucket": {"salt": "s", "from": 0, "to": 0.001}}, "$.bucket.to", "two decimals"),
        ({"member": {"segment": "7"}}, "$.member.segment", "number"),
        ({1: []}, "$", "condition"),
        ({"event": {"type": "x", "k" * 5000: 1}}, "$.event", "unknown key"),
        ({"event": {"type": "x", "\ud800": 1}}, "$.event", "unknown key"),
        ({"Österreich\r\n": []}, "$", "'Österreich\\r\\n'"),
    ],
)
def test_a_wrong_rule_is_told_where_and_what_would_be_right(
    rule: Any, path: str, said: str
) -> None:
    error = refused(rule)
    assert error.path == path
    assert said in str(error)
    assert len(str(error).encode()) < 1000 and str(error).isprintable()


def test_the_operator_of_a_nested_filter_is_named_by_its_whole_path() -> None:
    wrong = {"property": "item", "operator": "equls", "value": "sku-1"}
    rule = {"all": [{"all": []}, {"any": []}, {"event": {"type": "purchased", "where": [wrong]}}]}
    error = refused(rule)
    assert error.path == "$.all[2].event.where[0].operator"
    assert "did you mean 'equals'?" in str(error)


def nested(levels: int) -> dict[str, Any]:
    rule: dict[str, Any] = attribute("city", "is_set")
    for _ in range(levels - 1):
        rule = {"not": rule}
    return rule


@pytest.mark.parametrize("levels", [DEPTH_MAX + 1, 200, 100_000])
def test_nesting_is_refused_by_the_limit_and_not_by_the_interpreter(levels: int) -> None:
    assert "at most 20 levels" in str(refused(nested(levels)))
    text = '{"not":' * levels + "{}" + "}" * levels
    with pytest.raises(InvalidRequest, match="at most 20 levels"):
        parse_text(text, ATTRIBUTES)


def test_a_rule_may_be_as_deep_and_as_wide_as_the_limits() -> None:
    assert len(walk(parse(nested(DEPTH_MAX), ATTRIBUTES))) == DEPTH_MAX
    many = {"all": [attribute("city", "is_set")] * 499}
    assert len(walk(parse(many, ATTRIBUTES))) == 500
    assert "at most 500" in str(refused({"all": [many, attribute("city", "is_set")]}))


def test_deep_values_are_refused_without_being_printed() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert "a list stands where text belongs" in str(refused(attribute("city", "equals", deep)))


def test_text_is_read_with_its_own_errors() -> None:
    assert parse_text(json.dumps(QUIET_BUYERS), ATTRIBUTES) == parse(QUIET_BUYERS, ATTRIBUTES)
    with pytest.raises(InvalidRequest, match="line 1, column 2"):
        parse_text("{x", ATTRIBUTES)
    with pytest.raises(InvalidRequest, match="at most 1000000"):
        parse_text(" " * 1_000_001, ATTRIBUTES)
    brackets = attribute("city", "equals", "[" * 200 + '"\\')
    assert parse_text(json.dumps(brackets), ATTRIBUTES)


def test_a_built_in_field_wins_over_an_attribute_of_its_name() -> None:
    rule = parse(attribute("email", "is_set"), {"email": AttributeType.NUMBER})
    assert isinstance(rule, Attribute) and rule.test.type is AttributeType.STRING


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        ({"operator": "equals", "value": "x"}, "string"),
        ({"operator": "not_in", "value": [1]}, "number"),
        ({"operator": "equals", "value": True}, "boolean"),
        ({"operator": "between", "value": ["2026-01-01", "2026-01-02"]}, "date"),
        ({"operator": "in_the_last", "value": {"days": 1}}, "date"),
        ({"operator": "contains_any", "value": ["x"]}, "list"),
        ({"operator": "contains", "value": "x"}, "string"),
        ({"operator": "contains", "value": "x", "type": "list"}, "list"),
    ],
)
def test_the_type_of_a_property_is_that_of_the_question(test: dict[str, Any], kind: str) -> None:
    rule = {"event": {"type": "x", "where": [{"property": "properties.a", **test}]}}
    (shown,) = parse(rule, {}).to_json()["event"]["where"]
    assert shown["type"] == kind


def test_rules_are_values() -> None:
    one, other = parse(QUIET_BUYERS, ATTRIBUTES), parse(QUIET_BUYERS, ATTRIBUTES)
    assert one == other and hash(one) == hash(other) and one != All(())
