"""Rules about the past beyond memory: what sums serve is as exact as if nothing had ever left."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.command import Change, Op
from manta.rules.closure import compile_closure
from manta.rules.flips import compile_flips
from manta.rules.kept import ITEMS, MONTHS, Kept, kept_of, sums_of
from manta.rules.loading import has_past, load
from manta.rules.nodes import Rule
from manta.rules.scope import touches
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.segments.definition import not_live
from manta.store.objects import FileObjects
from manta.store.retention import Expire, Retain
from tests.unit import draws
from tests.unit.plain_rules import PlainPerson, plain_holds
from tests.unit.rules_draws import comparisons
from tests.unit.segments_house import House, columns, define
from tests.unit.store_shard import START, event

BEGIN = datetime(2023, 5, 17, 9, 30)
PEOPLE = range(1, 9)
ITEMS_BOUGHT = [None, "sku-1", "SKU-1", "sku-2", "Straße", "STRASSE", ""]
AMOUNTS = [None, 0.1, 0.2, 0.3, 5.0, -1.5, 2.0000005, 1e13, float("nan"), float("inf"), 1e8]
WHERES: list[list[dict[str, Any]]] = [
    [],
    [],
    [{"property": "item", "operator": "equals", "value": "sku-1"}],
    [{"property": "item", "operator": "in", "value": ["sku-2", "strasse"]}],
    [{"property": "item", "operator": "is_set"}],
    [
        {"property": "item", "operator": "starts_with", "value": "s"},
        {"property": "item", "operator": "not_equals", "value": "sku-1"},
    ],
    [{"property": "amount", "operator": "at_least", "value": 1}],
]
FRAMES: list[dict[str, Any] | None] = [
    *(None, None, None),
    *({"at_least_ago": {"days": days}} for days in (3, 365, 400, 401, 700)),
    *({"last": {"days": days}} for days in (30, 400, 401, 800)),
    *({kind: "2024-02-01"} for kind in ("before", "after")),
    *({kind: "2024-01-31"} for kind in ("before", "after")),
    {"before": "2024-02-01T00:00:00.000001Z"},
    {"between": ["2023-12-01", "2024-02-29"]},
    {"between": ["2023-12-01T00:00:00Z", "2024-03-01T00:00:00Z"]},
    {"between": ["2023-12-02", "2024-03-01"]},
]


def _condition(random: Random) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": random.choice(["purchased", "purchased", "viewed", "opened"])}
    where = random.choice(WHERES)
    frame = random.choice(FRAMES)
    if where:
        inner["where"] = where
    if frame:
        inner["within"] = frame
    if frame and random.random() < 0.4:
        return {random.choice(["first_time", "last_time"]): inner}
    if random.random() < 0.3:
        compared = comparisons(draws.sampled_from([0, 0.3, 0.6, 5.1, 100])).draw(random)
        return {"event": inner | {"sum": {"property": "amount", **compared}}}
    if random.random() < 0.7:
        inner["count"] = comparisons(draws.integers(0, 3)).draw(random)
    return {"event": inner}


def _rule(random: Random) -> dict[str, Any]:
    """Of conditions that sums or memory serve, as ``not_live`` says it."""
    while True:
        one = _condition(random)
        if random.random() < 0.3:
            group = random.choice(["all", "any", "exactly_one"])
            one = {group: [{"not": one}, _condition(random)]}
        if not not_live(parse(one, {})):
            return one


def _event(random: Random, now: datetime) -> dict[str, Any]:
    """Of late, or long ago; at the very edges of months and frames too."""
    age = random.choice([random.uniform(0, 30), random.uniform(0, 1100), 0, 365, 400, 401, 800])
    at = now - timedelta(days=age)
    if random.random() < 0.2:
        at = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    type_ = random.choice(["purchased", "purchased", "viewed", "opened"])
    return {
        "subscriber_id": random.choice(PEOPLE),
        "type": type_,
        "occurred_at": at,
        "item": random.choice(ITEMS_BOUGHT),
        "amount": random.choice(AMOUNTS),
        "human": random.choice([None, 0.0, 0.49, 0.5, 1.0]) if type_ == "opened" else None,
        "campaign_id": None,
        "message_key": None,
        "properties": None,
    }


def _write(house: House, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    types = {"item": pa.string(), "amount": pa.float64(), "human": pa.float64()}
    names = ["subscriber_id", "type", "occurred_at", *types]
    table = table.select(names).cast(
        pa.schema([(name, types.get(name, table.schema.field(name).type)) for name in names])
    )
    house.write(Change("events", Op.INSERT, table))


def _check(house: House, rules: dict[int, Rule], everybody: dict[int, PlainPerson]) -> None:
    now, database = house.now, house.store.database
    past, members = has_past(database), house.members()
    loaded = load(database, list(PEOPLE), touches(*rules.values()))
    for number, rule in rules.items():
        json, closure = rule.to_json(), compile_closure(rule)
        right = [id for id, one in everybody.items() if plain_holds(json, one, now)]
        assert [id for id, one in loaded.items() if closure(one, now)] == right, json
        among = list(PEOPLE) if number % 2 else None
        asked = compile_sql(rule, now, among=among, has_past=past)
        assert sorted(id for (id,) in house.rows(asked.sql, *asked.params)) == right, json
        assert members.get(number, []) == right, json
        asked = compile_flips(rule, now, has_past=past)
        bounds = dict(house.rows(asked.sql, *asked.params))
        for id, person in loaded.items():
            at = closure.flips_at(person, now)
            assert at is None or now < bounds[id] <= at, json


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**32))
def test_what_sums_serve_is_answered_as_of_all_events_there_ever_were(seed: int) -> None:
    """By SQL, by closures, and by the live segments of a shard that time and late events move."""
    random = Random(seed)
    with TemporaryDirectory() as root:
        house = House(FileObjects(Path(root)), hot_event_days=400, start=BEGIN)
        house.write(columns(*PEOPLE))
        everybody = {id: PlainPerson(id, {}, []) for id in PEOPLE}
        rules = {number: parse(_rule(random), {}) for number in range(1, 9)}
        house.do(*(define(number, rule.to_json()) for number, rule in rules.items()))
        for _ in range(6):
            rows = [_event(random, house.now) for _ in range(random.randint(1, 12))]
            for row in rows:
                everybody[row["subscriber_id"]].events.append(row)
            _write(house, rows)
            if random.random() < 0.7:
                house.do(Retain(house.settings))
            house.turn()
            _check(house, rules, everybody)
            house.clock.advance(random.choice([0.000001, 86_400.0, random.uniform(0, 1.5e7)]))
            house.turn()
            _check(house, rules, everybody)


@pytest.mark.parametrize(
    ("json", "table"),
    [
        ({"event": {"type": "viewed"}}, MONTHS),
        ({"event": {"type": "profile_changed"}}, None),
        ({"event": {"type": "viewed", "where": WHERES[2]}}, None),
        ({"event": {"type": "purchased", "where": WHERES[2]}}, ITEMS),
        ({"event": {"type": "purchased", "where": WHERES[5]}}, None),
        ({"event": {"type": "purchased", "where": WHERES[6]}}, None),
        ({"event": {"type": "viewed", "within": {"last": {"days": 500}}}}, MONTHS),
        ({"event": {"type": "viewed", "within": {"last": {"days": 300}}}}, None),
        ({"event": {"type": "viewed", "within": {"before": "2024-02-02"}}}, MONTHS),
        ({"first_time": {"type": "viewed", "within": {"between": ["2024-02-02"] * 2}}}, MONTHS),
        ({"keyed": {"by": "item", "rule": {"event": {"type": "purchased"}}}}, None),
    ],
)
def test_which_sums_serve_a_condition(json: dict[str, Any], table: str | None) -> None:
    rule = parse(json, {})
    kept = kept_of(rule)
    assert (kept and kept.table) == table
    assert touches(rule).past == sums_of(rule) == (frozenset({kept}) if kept else frozenset())


def test_a_count_in_part_of_a_month_is_not_served() -> None:
    twice = {"type": "viewed", "count": {"operator": "at_least", "value": 2}}
    for frame in FRAMES:
        rule = parse({"event": twice | ({"within": frame} if frame else {})}, {})
        long = frame is not None and any(
            word in str(frame) for word in ("401", "700", "800", "01-31", "000001", "12-02")
        )
        aligned = str(frame) == "{'before': '2024-02-01'}" or "between" in (frame or {})
        if frame == {"after": "2024-01-31"} or (aligned and not long):
            assert kept_of(rule) == Kept(MONTHS, "viewed"), frame
        elif frame == {"after": "2024-02-01"} or long:
            assert kept_of(rule) is None and not_live(rule), frame


def test_nothing_is_joined_where_nothing_has_left_memory(tmp_path: Path) -> None:
    house = House(FileObjects(tmp_path), hot_event_days=400)
    ever = parse({"event": {"type": "viewed"}}, {})
    house.write(columns(1), event(1, "viewed"))
    assert not has_past(house.store.database)
    assert "event_months" not in compile_sql(ever, START).sql
    house.write(event(1, "viewed", START - timedelta(days=500)))
    house.do(Retain(house.settings))
    assert has_past(house.store.database)
    (person,) = load(house.store.database, [1], touches(ever)).values()
    assert [one.events for one in person.past[Kept(MONTHS, "viewed")]] == [1]


def test_what_expires_for_good_counts_no_longer(tmp_path: Path) -> None:
    house = House(FileObjects(tmp_path), hot_event_days=400)
    house.write(columns(1, 2))
    house.write(event(1, "purchased", START - timedelta(days=900), item="sku-1"))
    house.write(event(2, "purchased", START - timedelta(days=500), item="sku-1"))
    house.do(Retain(house.settings))
    house.do(define(1, {"event": {"type": "purchased"}}))
    house.do(define(2, {"event": {"type": "purchased", "where": WHERES[2]}}))
    house.turn()
    assert house.members() == {1: [1, 2], 2: [1, 2]}
    house.do(Expire(replace(house.settings, event_days=600)))
    house.turn()
    assert house.members() == house.by_rules() == {1: [2], 2: [2]}
