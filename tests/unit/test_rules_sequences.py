"""Sequences, held values, keys and consents by example: each edge to the microsecond, both ways."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from manta.rules.build import attr, consent, did, has_been, keyed, sequence, step
from manta.rules.closure import Consented, EventRow, Person, compile_closure
from manta.rules.sql import compile_sql
from tests.unit.rules_samples import ATTRIBUTES, NOW, TICK, empty_database, store

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PROFILE: dict[str, Any] = {
    **{"email": None, "time_zone": None, "created_at": NOW - 10 * DAY, "attr_city": "Oslo"},
}


@pytest.fixture(scope="module")
def database() -> Any:
    with empty_database() as connection:
        yield connection


def person(*events: tuple[str, datetime] | tuple[str, datetime, str], **more: Any) -> Person:
    found: dict[str, list[EventRow]] = {}
    for type_, at, *own in sorted(events, key=lambda one: one[1]):
        row = EventRow(at, properties=own[0] if own else None)
        found.setdefault(type_, []).append(row)
    return Person(1, dict(PROFILE), found, **more)


def holds(database: Any, built: Any, one: Person, now: datetime = NOW) -> bool:
    """What both say, which is the same."""
    rule = built.checked(ATTRIBUTES)
    store(database, [one])
    compiled = compile_sql(rule, now)
    by_sql = bool(database.execute(compiled.sql, compiled.params).fetchall())
    assert compile_closure(rule)(one, now) is by_sql
    return by_sql


bought_soon = sequence(step("viewed"), step("purchased", hours=1))
left_behind = sequence(step("viewed"), step("purchased", absent=True, hours=1))


@pytest.mark.parametrize(
    ("gap", "expected"), [(HOUR, True), (HOUR + TICK, False), (TICK, True), (0 * TICK, False)]
)
def test_a_step_follows_strictly_later_and_at_most_its_span(
    database: Any, gap: timedelta, expected: bool
) -> None:
    start = NOW - DAY
    one = person(("viewed", start), ("purchased", start + gap))
    assert holds(database, bought_soon, one) is expected
    assert holds(database, left_behind, one) is not expected


def test_any_choice_of_events_that_fits_will_do(database: Any) -> None:
    start = NOW - DAY
    again = person(
        ("viewed", start), ("viewed", start + 5 * HOUR), ("purchased", start + 5.5 * HOUR)
    )
    assert holds(database, bought_soon, again)
    assert holds(database, left_behind, again)  # the first of them was
    three = sequence(step("viewed"), step("viewed", hours=2), step("purchased", hours=2))
    assert not holds(database, three, again)
    near = person(("viewed", start), ("viewed", start + HOUR), ("purchased", start + 3 * HOUR))
    assert holds(database, three, near)


def test_a_wait_is_over_at_its_end_and_flips_there(database: Any) -> None:
    one = person(("viewed", NOW - HOUR + TICK))
    assert not holds(database, left_behind, one)
    closure = compile_closure(left_behind.checked(ATTRIBUTES))
    assert closure.flips_at(one, NOW) == NOW + TICK
    assert holds(database, left_behind, one, NOW + TICK)
    assert closure.flips_at(one, NOW + TICK) is None
    framed = left_behind.within(hours=2)
    assert holds(database, framed, one, NOW + 2 * HOUR)
    assert not holds(database, framed, one, NOW + 2 * HOUR + TICK)
    assert compile_closure(framed.checked(ATTRIBUTES)).flips_at(one, NOW + HOUR) == (
        NOW + TICK + 2 * HOUR
    )


def test_only_the_end_of_a_sequence_lies_in_its_frame(database: Any) -> None:
    one = person(("viewed", NOW - 20 * DAY), ("purchased", NOW - HOUR))
    loose = sequence(step("viewed"), step("purchased"))
    assert holds(database, loose.within(hours=2), one)
    assert not holds(database, loose.within(hours=1), one)
    assert holds(database, loose.at_least_ago(hours=1), one)
    assert not holds(database, loose.before("2026-03-29"), one)


def test_a_value_is_held_since_it_changed_or_the_person_was_created(database: Any) -> None:
    in_oslo = attr("city").equals("Oslo")
    changed = person(attribute_times={"city": NOW - DAY, "score": NOW})
    assert holds(database, has_been(in_oslo, days=1), changed)
    assert not holds(database, has_been(in_oslo, days=1), changed, NOW - TICK)
    assert holds(database, has_been(in_oslo, days=10), person())
    assert not holds(database, has_been(in_oslo, days=11), person())
    assert holds(database, has_been(attr("score").not_set(), days=10), person())
    closure = compile_closure(has_been(in_oslo, days=3).checked(ATTRIBUTES))
    assert closure.flips_at(changed, NOW) == NOW + 2 * DAY


abandoned = keyed("properties.cart", did("cart_updated") & ~did("purchased"))


def test_the_keys_for_which_a_rule_holds_are_named(database: Any) -> None:
    at = NOW - DAY
    one = person(
        ("cart_updated", at, '{"cart": "a"}'),
        ("cart_updated", at, '{"cart": "b"}'),
        ("cart_updated", at, '{"cart": 7}'),
        ("cart_updated", at, '{"cart": 7.5}'),
        ("cart_updated", NOW + DAY, '{"cart": "later"}'),
        ("purchased", at, '{"cart": "a"}'),
    )
    assert holds(database, abandoned, one)
    closure = compile_closure((abandoned | attr("city").is_set()).checked(ATTRIBUTES))
    assert closure.keys(one, NOW) == ("7", "b")
    assert closure.keys(one, NOW + DAY) == ("7", "b", "later")
    assert closure.flips_at(one, NOW) == NOW + DAY
    never = keyed("properties.cart", ~did("purchased").within(hours=1))
    assert compile_closure(never.checked(ATTRIBUTES)).keys(one, NOW) == ("a",)
    assert holds(database, never, one)


def test_a_pending_consent_counts_until_it_expires(database: Any) -> None:
    asked, given = consent("news", "pending"), consent("news", "subscribed")
    pending = person(consents={("email", "news"): Consented("pending", NOW + TICK)})
    assert holds(database, asked, pending)
    assert not holds(database, asked, pending, NOW + TICK)
    assert compile_closure(asked.checked(ATTRIBUTES)).flips_at(pending, NOW) == NOW + TICK
    settled = person(consents={("email", "news"): Consented("subscribed", NOW - DAY)})
    assert holds(database, given, settled)
