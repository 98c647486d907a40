"""When to look again, for everybody by SQL: at the closure's instant or before it."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.rules.closure import Person, compile_closure
from manta.rules.flips import compile_flips
from manta.rules.nodes import AnyOf, Rule, walk
from manta.rules.tree import parse
from tests.unit.rules_samples import (
    ATTRIBUTES,
    NOW,
    SHIFTS,
    TICK,
    crowds,
    empty_database,
    rules,
    store,
)


@pytest.fixture(scope="module")
def database() -> Any:
    with empty_database() as connection:
        yield connection


def flips(database: Any, rule: Rule, now: datetime, zone: str = "UTC") -> dict[int, datetime]:
    compiled = compile_flips(rule, now, zone)
    rows = database.execute(compiled.sql, compiled.params).fetchall()
    found = dict(rows)
    assert len(found) == len(rows), "one row a person"
    return found


def too_late(found: dict[int, datetime], people: list[Person], rule: Rule, *at: Any) -> str | None:
    """Of whom the statement says less than the closure, and what."""
    now, zone = at
    closure = compile_closure(rule, zone)
    for one in people:
        bound, exact = found.get(one.subscriber_id), closure.flips_at(one, now)
        if bound is not None and bound <= now:
            return f"{bound} is not later than {now}"
        if exact is not None and (bound is None or bound > exact):
            return f"{bound} by SQL, {exact} by closure, of {one}"
    return None


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_statement_is_never_later_than_the_closure(database: Any, seed: int) -> None:
    random = Random(seed)
    everybody = crowds(15).draw(random)
    store(database, everybody)
    asked = [parse(rules().draw(random), ATTRIBUTES) for _ in range(8)]
    for rule in [*asked, AnyOf(tuple(asked))]:
        now = NOW + random.choice([-1, 0, 1]) * random.choice(SHIFTS) + random.randint(-1, 1) * TICK
        zone = random.choice(["UTC", "Asia/Kolkata", "America/Havana"])
        problem = too_late(flips(database, rule, now, zone), everybody, rule, now, zone)
        if problem is not None:
            smallest = next(
                node
                for node in reversed(walk(rule))
                if too_late(flips(database, node, now, zone), everybody, node, now, zone)
            )
            pytest.fail(f"{problem}\n{smallest.to_json()} in {zone} at {now}")


def moments(person: Person, now: datetime, end: datetime) -> list[datetime]:
    """Where an answer could change: beside whatever the person has, by any window, and days."""
    instants = [row.occurred_at for rows in person.events.values() for row in rows]
    instants += [one for one in person.profile.values() if isinstance(one, datetime)]
    instants += person.attribute_times.values()
    instants += [one.expires_at for one in person.suppressions if one.expires_at]
    instants += [one.expires_at for one in person.consents.values() if one.expires_at]
    shifted = [one + sign * shift for one in instants for shift in SHIFTS for sign in (1, -1)]
    shifted += [one + two for one in shifted for two in SHIFTS]
    midnight = datetime(now.year, now.month, now.day)
    shifted += [midnight + timedelta(minutes=30 * i) for i in range(48 * 4)]
    near = {one + tick * TICK for one in shifted for tick in (-1, 0, 1)}
    return sorted(one for one in near if now < one < end)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_no_answer_changes_before_it(database: Any, seed: int) -> None:
    random = Random(seed)
    everybody = crowds(4).draw(random)
    store(database, everybody)
    for _ in range(6):
        rule = parse(rules().draw(random), ATTRIBUTES)
        found, holds = flips(database, rule, NOW), compile_closure(rule)
        for one in everybody:
            end = found.get(one.subscriber_id, NOW + timedelta(days=800))
            candidates = moments(one, NOW, end)
            now = holds(one, NOW)
            for moment in random.sample(candidates, min(60, len(candidates))):
                assert holds(one, moment) is now, (rule.to_json(), one, moment)


def test_what_time_cannot_move_names_nobody(database: Any) -> None:
    store(database, crowds(5).draw(Random(1)))
    for json in (
        {"all": []},
        {"attribute": {"name": "city", "operator": "equals", "value": "Oslo"}},
        {"member": {"segment": 1}},
        {"prediction": {"name": "churn", "operator": "is_set"}},
        {"event": {"type": "never_seen", "within": {"last": {"days": 30}}}},
    ):
        assert flips(database, parse(json, ATTRIBUTES), NOW) == {}
