"""Reads about people and audiences, on a real shard database."""

from __future__ import annotations

from random import Random

import pytest

from manta.command import Context
from manta.errors import InvalidRequest
from manta.people import queries
from manta.rules import queries as rule_queries
from manta.rules.loading import load
from manta.rules.scope import touches
from manta.rules.tree import parse
from manta.schema import AttributeType
from tests.unit.people_shard import START, Shard, alias

CONTEXT = Context(START, Random(1), "default", 0)


@pytest.fixture
def shard() -> Shard:
    return Shard()


def test_identities_are_found_in_their_compared_form(shard: Shard) -> None:
    ann = shard.person("Ann@shop.example")
    arguments = {"kind": "email", "values": ["ANN@shop.example", "nobody@shop.example"]}
    assert queries.identities(shard.database, CONTEXT, arguments) == [ann, None]


def test_a_pending_identity_is_nobodys(shard: Shard) -> None:
    shard.load(
        "identities",
        {"kind": "external_id", "value": "7", "subscriber_id": 5, "state": "pending"},
    )
    arguments = {"kind": "external_id", "values": ["7"]}
    assert queries.identities(shard.database, CONTEXT, arguments) == [None]


def test_a_person_is_shown_with_what_belongs_to_them(shard: Shard) -> None:
    ann = shard.person("Ann@shop.example", attr_city="Bern")
    shard.load("aliases", alias(77, ann))
    shard.load(
        "consents",
        {"subscriber_id": ann, "channel": "email", "topic": "news", "status": "subscribed"},
    )
    shard.load("suppressions", {"channel": "email", "address": "ann@shop.example", "reason": "m"})
    person = queries.person(shard.database, CONTEXT, {"subscriber_id": ann})
    assert person is not None
    assert person["email"] == "Ann@shop.example"
    assert person["attributes"] == {"city": "Bern"}
    assert [c["topic"] for c in person["consents"]] == ["news"]
    assert [s["reason"] for s in person["suppressions"]] == ["m"]
    assert queries.person(shard.database, CONTEXT, {"subscriber_id": 77}) == person
    assert queries.person(shard.database, CONTEXT, {"subscriber_id": 78}) is None


def test_an_attribute_without_any_value_here_is_missing(shard: Shard) -> None:
    person = shard.person("p@shop.example")
    for operator, right in (("equals", []), ("not_equals", [person])):
        rule = {"attribute": {"name": "city", "operator": operator, "value": "Bern"}}
        arguments = {"rule": rule, "attributes": {"city": "string"}, "sample": 3, "limit": 3}
        found = rule_queries.audience(shard.database, CONTEXT, arguments)
        assert found["count"] == len(right)
        page = queries.audience_page(shard.database, CONTEXT, arguments)
        assert page.column("subscriber_id").to_pylist() == right
        touched = touches(parse(rule, {"city": AttributeType.STRING}))
        assert "attr_city" not in load(shard.database, [person], touched)[person].profile


def test_an_audience_is_counted_and_sampled(shard: Shard) -> None:
    for n in range(20):
        shard.person(f"p{n}@shop.example", attr_city="Bern" if n % 2 else "Basel")
    rule = {"attribute": {"name": "city", "operator": "equals", "value": "Bern"}}
    arguments = {"rule": rule, "attributes": {"city": "string"}, "sample": 3}
    found = rule_queries.audience(shard.database, CONTEXT, arguments)
    assert found["count"] == 10
    assert len(found["sample"]) == 3
    assert all(row["attributes"] == {"city": "Bern"} for row in found["sample"])
    assert rule_queries.audience(shard.database, CONTEXT, arguments) == found
    with pytest.raises(InvalidRequest):
        rule_queries.audience(shard.database, CONTEXT, arguments | {"sample": 5_000})
