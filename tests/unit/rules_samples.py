"""Random people for random rules, and the same people in a database.

With everybody come rows that must not count: opens and clicks by machines, events of a stranger.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import duckdb

from manta.people.identities import compared
from manta.rules.closure import Consented, EventRow, Person, Suppression
from manta.rules.meaning import register
from manta.schema import SQL_TYPES, TABLES
from tests.unit import draws as st
from tests.unit.rules_draws import (
    ATTRIBUTES,
    KEYS,
    NOW,
    NUMBERS,
    PREDICTIONS,
    PROPERTIES,
    SHIFTS,
    TEXTS,
    TICK,
    TYPES,
    ZONES,
    rules,
)

__all__ = [
    "ATTRIBUTES",
    "NOW",
    "SHIFTS",
    "TICK",
    "crowds",
    "empty_database",
    "people",
    "rules",
    "store",
]


def instants(now: datetime = NOW) -> st.Draw[datetime]:
    """Instants at and beside the edges of every window, and anywhere near."""
    edges = st.builds(
        lambda shift, sign, tick: now + sign * shift + tick * TICK,
        st.sampled_from(SHIFTS),
        st.sampled_from([-1, -1, -1, 1]),
        st.integers(-1, 1),
    )
    return edges | st.builds(lambda m: now - timedelta(minutes=m), st.integers(-60, 60 * 24 * 40))


def dates() -> st.Draw[datetime]:
    days = st.builds(
        lambda shift, year: (NOW + timedelta(days=shift)).replace(year=year, hour=0, minute=0),
        st.integers(-40, 40),  # 17 February to 8 May: days of every year
        st.sampled_from([1988, 2024, 2025, 2026]),
    )
    return st.one_of(days, instants(), st.just(datetime(2024, 2, 29)))


# -- people ----------------------------------------------------------------------------------------


def rows() -> st.Draw[tuple[str, EventRow]]:
    own = st.builds(
        lambda type_, *rest: (type_, EventRow(*rest)),
        st.sampled_from(TYPES),
        instants(),
        st.sampled_from([None, 1, 2]),
        st.sampled_from(KEYS),
        st.sampled_from([None, *TEXTS]),
        st.sampled_from([None, *NUMBERS, float("nan"), float("inf"), -9.1e12]),
        st.sampled_from(PROPERTIES),
    )
    message = st.builds(
        lambda type_, *rest: (type_, EventRow(*rest)),
        st.sampled_from(["sent", "sent", "opened", "clicked"]),
        instants(),
        st.just(1),
        st.sampled_from(KEYS),
        st.sampled_from(["marketing", "marketing", "transactional", "test", None]),
    )
    return own | message


def trails() -> st.Draw[list[tuple[str, EventRow]]]:
    """An event and others that follow it at the edges of the spans that sequences ask for."""

    def follow(first: tuple[str, EventRow], gaps: list[Any]) -> list[tuple[str, EventRow]]:
        trail = [first]
        for type_, gap, tick in gaps:
            row = trail[-1][1]
            later = row._replace(occurred_at=row.occurred_at + gap + tick * TICK)
            trail.append((type_, later))
        return trail

    gaps = st.tuples(st.sampled_from(TYPES), st.sampled_from(SHIFTS[:5]), st.integers(-1, 1))
    return st.builds(follow, rows(), st.lists(gaps, max_size=2))


def people(subscriber_id: int) -> st.Draw[Person]:
    profile = st.fixed_dictionaries(
        {
            "email": st.sampled_from([None, "a@x.no", "B@ÅS.example", "no-at", "a@b@c"]),
            "time_zone": st.sampled_from(ZONES),
            "locale": st.none(),
            "created_at": instants(),
            "attr_city": st.none() | st.sampled_from(TEXTS),
            "attr_score": st.sampled_from([None, float("nan"), float("inf"), -0.0, *NUMBERS]),
            "attr_vip": st.sampled_from([None, True, False]),
            "attr_birthday": st.none() | dates(),
            "attr_tags": st.none() | st.lists(st.none() | st.sampled_from(TEXTS), max_size=3),
        }
    )

    def build(
        profile: Any, happened: Any, consents: Any, segments: Any, gone: Any, *rest: Any
    ) -> Person:
        events: dict[str, list[EventRow]] = {}
        for type_, row in happened:
            events.setdefault(type_, []).append(row)
        for listed in events.values():
            listed.sort(key=lambda row: row.occurred_at)
        suppressions = gone if profile["email"] is not None else []
        return Person(
            subscriber_id, profile, events, consents, frozenset(segments), suppressions, *rest
        )

    reasons = st.sampled_from(["complaint", "hard_bounce"])
    expiries = st.none() | st.sampled_from([NOW - TICK, NOW, NOW + TICK, NOW + timedelta(days=3)])
    return st.builds(
        build,
        profile,
        st.lists(trails(), max_size=5).map(lambda some: [row for one in some for row in one]),
        st.dictionaries(
            st.tuples(st.just("email"), st.sampled_from(["news", "offers"])),
            st.builds(
                Consented,
                st.sampled_from(["subscribed", "unsubscribed", "pending", "pending"]),
                expiries,
            ),
        ),
        st.sets(st.integers(1, 2)),
        st.lists(st.builds(Suppression, reasons, expiries), max_size=1),
        st.dictionaries(st.sampled_from([*ATTRIBUTES, "time_zone"]), instants()),
        st.dictionaries(
            st.sampled_from(PREDICTIONS), st.sampled_from([None, float("nan"), *NUMBERS])
        ),
    )


# -- the same people in a database -----------------------------------------------------------------


READ = ("profiles", "consents", "suppressions", "events", "memberships", "attribute_times")
READ += ("predictions",)


def empty_database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    for name in (*READ, "event_months", "purchased_items"):
        table = TABLES[name]
        columns = [f"{column} {type_}" for column, type_ in table.columns]
        if table.has_attributes:
            columns += [f"attr_{one} {SQL_TYPES[type_]}" for one, type_ in ATTRIBUTES.items()]
        connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    connection.execute("CREATE INDEX events_by_person ON events (subscriber_id)")
    register(connection)
    return connection


def _fill(connection: Any, table: str, names: list[str], values: list[tuple[Any, ...]]) -> None:
    connection.execute(f"DELETE FROM {table}")
    if values:
        one = f"({', '.join('?' * len(names))})"
        connection.execute(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([one] * len(values))}",
            [value for row in values for value in row],
        )


def _event_rows(everybody: list[Person]) -> list[tuple[Any, ...]]:
    """The events of everybody and those that must not count, in no order."""
    random = Random(5)
    rows = [(10**9, type_, NOW, 1, 1, "Oslo", 1.0, None, None) for type_ in TYPES]
    for one in everybody:
        for type_, listed in one.events.items():
            judged = [None, 0.5, 1.0] if type_ in ("opened", "clicked") else [None, 0.1, 0.9]
            rows += [(one.subscriber_id, type_, *row, random.choice(judged)) for row in listed]
        for row in one.events.get("sent", ()):
            at = row.occurred_at + timedelta(seconds=random.randint(-5, 5))
            machine = row._replace(occurred_at=at, properties=random.choice(PROPERTIES))
            acts = [("opened", 0.0), ("clicked", 0.4999999)]
            rows += [(one.subscriber_id, type_, *machine, human) for type_, human in acts]
    random.shuffle(rows)
    return rows


def store(connection: duckdb.DuckDBPyConnection, everybody: list[Person]) -> None:
    """Replaces what the database holds by these people. Addresses are made different."""
    columns = list(everybody[0].profile)
    _fill(
        connection,
        "profiles",
        ["subscriber_id", *columns],
        [(one.subscriber_id, *(one.profile[c] for c in columns)) for one in everybody],
    )
    names = ["occurred_at", "campaign_id", "message_key", "item", "amount", "properties", "human"]
    _fill(connection, "events", ["subscriber_id", "type", *names], _event_rows(everybody))
    _fill(
        connection,
        "consents",
        ["subscriber_id", "channel", "topic", "status", "expires_at"],
        [(one.subscriber_id, *key, *c) for one in everybody for key, c in one.consents.items()],
    )
    _fill(
        connection,
        "attribute_times",
        ["subscriber_id", "name", "changed_at"],
        [(one.subscriber_id, *pair) for one in everybody for pair in one.attribute_times.items()],
    )
    _fill(
        connection,
        "predictions",
        ["subscriber_id", "name", "value"],
        [(one.subscriber_id, *pair) for one in everybody for pair in one.predictions.items()],
    )
    _fill(
        connection,
        "memberships",
        ["subscriber_id", "segments"],
        [(one.subscriber_id, sorted(one.memberships)) for one in everybody if one.memberships],
    )
    _fill(
        connection,
        "suppressions",
        ["channel", "address", "reason", "expires_at"],
        [
            ("email", one.profile["email"].lower(), suppression.reason, suppression.expires_at)
            for one in everybody
            for suppression in one.suppressions
        ],
    )


def distinct_addresses(everybody: list[Person]) -> list[Person]:
    """Two people never share an address: later ones lose theirs, and its suppression."""
    seen: set[str] = set()
    kept = []
    for one in everybody:
        email = one.profile["email"]
        email = email and compared("email", email)
        if email in seen:
            profile = {**one.profile, "email": None}
            one = replace(one, profile=profile, suppressions=())
        elif email is not None:
            seen.add(email)
        kept.append(one)
    return kept


def crowds(size: int) -> st.Draw[list[Person]]:
    return st.tuples(*(people(i + 1) for i in range(size))).map(list).map(distinct_addresses)
