"""Who is who, over two shards: found, created, merged, moved; many at the cost of a few calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from manta.errors import InvalidRequest
from manta.events.commands import RecordEvents
from manta.people.identifying import (
    Identified,
    KnownPeople,
    Person,
    forward,
    identify,
    identify_many,
    living,
    undo_merge,
)
from manta.schema import AttributeType
from tests.unit.merging_house import Shards

TYPES = {"city": AttributeType.STRING}


@pytest.fixture
def shards() -> Shards:
    return Shards()


def who(shards: Shards, traits: dict[str, Any] | None = None, **identities: str) -> Identified:
    return asyncio.run(
        identify(shards, identities, source="test", traits=traits or {}, types=TYPES)
    )


def now(shards: Shards, id: int) -> int:
    return asyncio.run(living(shards, [id]))[id]


def profile(shards: Shards, id: int, columns: str = "email") -> tuple[Any, ...]:
    id = now(shards, id)
    (row,) = shards.home(id).rows(f"SELECT {columns} FROM profiles WHERE subscriber_id = ?", id)
    return row


def test_a_visitor_becomes_known_and_keeps_their_past(shards):
    for n in range(4):  # of one shard, and of two
        visitor = who(shards, anonymous_id=f"a{n}")
        assert (visitor.created, visitor.merged) == (True, False)
        assert who(shards, anonymous_id=f"a{n}") == visitor._replace(created=False)
        rows = pa.table({"subscriber_id": [visitor.subscriber_id], "type": ["viewed"], "id": ["1"]})
        shards.home(visitor.subscriber_id).answer(RecordEvents(None, rows))
        known = who(shards, {"attr_city": "Bern"}, external_id=f"u{n}", anonymous_id=f"a{n}")
        assert (known.created, known.merged) == (True, True)
        again = who(shards, external_id=f"u{n}", anonymous_id=f"a{n}")
        assert again == Identified(known.subscriber_id)
        person = now(shards, visitor.subscriber_id)
        assert person == known.subscriber_id
        home = shards.home(person)
        sql = "SELECT type, merge_id IS NOT NULL FROM events WHERE subscriber_id = ?"
        assert home.rows(sql, person) == [("viewed", True)]
        # The browser alone is still the visitor's id, so what it says can be given back.
        assert who(shards, anonymous_id=f"a{n}").subscriber_id == visitor.subscriber_id
        rows = rows.set_column(2, "id", pa.array(["2"]))
        copies = shards.home(visitor.subscriber_id).answer(RecordEvents(None, rows)).copies
        asyncio.run(forward(shards, copies, None))
        assert len(home.rows(sql, person)) == 2
        asyncio.run(undo_merge(shards, visitor.subscriber_id))
        assert home.rows(sql, person) == []


def test_the_external_id_names_before_the_address_and_two_known_people_stay_two(shards):
    ann = who(shards, email="ann@x.example")
    bob = who(shards, external_id="b")
    both = who(shards, external_id="b", email="Ann@x.example")
    assert both == Identified(bob.subscriber_id)
    assert profile(shards, bob.subscriber_id) == (None,)
    assert profile(shards, ann.subscriber_id) == ("ann@x.example",)


def test_a_new_address_of_a_known_customer_is_their_address_from_now_on(shards):
    bob = who(shards, email="old@x.example", external_id="b")
    assert who(shards, external_id="b", email="new@x.example").subscriber_id == bob.subscriber_id
    assert profile(shards, bob.subscriber_id) == ("new@x.example",)
    assert who(shards, email="old@x.example").subscriber_id == bob.subscriber_id
    assert who(shards, email="new@x.example").subscriber_id == bob.subscriber_id


def test_further_names_find_the_same_person(shards):
    ann = who(shards, email="ann@x.example", external_id="a", phone="+41", anonymous_id="w")
    for kind, value in (("external_id", "a"), ("phone", "+41"), ("anonymous_id", "w")):
        assert who(shards, **{kind: value}) == Identified(ann.subscriber_id)
    assert who(shards, {"locale": "de"}, phone="+41").subscriber_id == ann.subscriber_id
    assert profile(shards, ann.subscriber_id, "locale") == ("de",)


def test_the_browser_of_a_known_person_moves_to_who_is_named_now(shards):
    for n in range(4):
        ann = who(shards, external_id=f"ann{n}", anonymous_id=f"shared{n}")
        bob = who(shards, external_id=f"bob{n}", anonymous_id=f"shared{n}")
        assert not bob.merged
        assert who(shards, anonymous_id=f"shared{n}").subscriber_id == bob.subscriber_id
        assert now(shards, ann.subscriber_id) == ann.subscriber_id


def test_many_cost_a_few_calls_and_each_may_fail_alone(shards):
    people = [Person({"external_id": f"u{n}", "anonymous_id": f"a{n}"}) for n in range(40)]
    visitors = [Person({"anonymous_id": f"a{n}"}) for n in range(20)]
    wrong = [Person({"shoe": "44"}), Person({}), Person({"phone": "+1"}), Person({"email": "x"})]

    def many(asked: list[Person]) -> tuple[list[Any], int]:
        before = shards.calls
        found = asyncio.run(identify_many(shards, asked, source="test"))
        return found, shards.calls - before

    _, calls = many(visitors)
    assert calls <= 8
    found, calls = many([*people, *wrong, *people[:3]])
    assert calls <= 40
    assert [each.merged for each in found[:40]] == [True] * 20 + [False] * 20
    assert all(isinstance(each, InvalidRequest) for each in found[40:44])
    assert [each.subscriber_id for each in found[44:]] == [e.subscriber_id for e in found[:3]]
    again, calls = many(people)
    assert [each.subscriber_id for each in again] == [e.subscriber_id for e in found[:40]]
    assert calls <= 8


def test_a_visitor_who_is_named_in_the_same_batch(shards):
    asked = [Person({"anonymous_id": "a"}), Person({"anonymous_id": "a", "external_id": "u"})]
    first, second = asyncio.run(identify_many(shards, asked, source="test"))
    assert now(shards, first.subscriber_id) == second.subscriber_id
    assert second.merged


def test_known_people_are_bounded_and_forgotten_by_id():
    known = KnownPeople(entries_max=2)
    one, two = {"external_id": "1"}, {"external_id": "1", "anonymous_id": "a"}
    known.put(one, 1)
    known.put(two, 1)
    assert (known.get(one), known.get(dict(reversed(two.items())))) == (1, 1)
    known.put({"external_id": "2"}, 2)
    assert (known.get(one), len(known)) == (None, 2)
    known.forget(1)
    assert (known.get(two), len(known)) == (None, 1)
    known.put({"external_id": "2"}, 3)
    known.forget(2)
    assert known.get({"external_id": "2"}) == 3
