"""Random rules, people and events for the tests of rules, hostile on purpose.

Values come from small pools, so that conditions often meet the values they ask for: the edges of
windows to the microsecond, ties, texts that differ only by case or composition, missing values,
clock changes, amounts that floats cannot add.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import duckdb

from manta.people.identities import compared
from manta.rules.closure import EventRow, Person, Suppression
from manta.rules.meaning import register
from manta.schema import SQL_TYPES, TABLES, AttributeType
from tests.unit import draws as st

NOW = datetime(2026, 3, 29, 12, 30)
TICK = timedelta(microseconds=1)
ATTRIBUTES = {
    "city": AttributeType.STRING,
    "score": AttributeType.NUMBER,
    "vip": AttributeType.BOOLEAN,
    "birthday": AttributeType.DATE,
    "tags": AttributeType.LIST,
}
TEXTS = [
    *("", "Oslo", "oslo", "OSLO ", "Straße", "STRASSE", "strasse", "İstanbul", "istanbul"),
    *("i̇stanbul", "ΟΔΟΣ", "οδος", "οδοσ", "Å", "Å", "a\u030a", "ǰ", "J\u030c", "e\u0301\u0323"),
    *("👩‍👩‍👧", "a\0b", "A\0B", "ﬁn", "FIN", "%", "_", "a'b", '"', "\\", "K", "k", "\ufb03", "\n"),
]
NEEDLES = [text for text in TEXTS if text] + ["s", "o", "ss", "\u0301"]
REGEXES = [
    "^o",
    "(?i)OSLO",
    "s$",
    ".",
    "[[:upper:]]",
    "^$",
    "a.b",
    "\\pL{3,}",
    "stra(ß|ss)e",
    "\\s",
]
NUMBERS = [0.0, -1.0, 0.1, 0.2, 0.3, 1.0, 2.5, 1e15, 1e-9, 3.0, 10.0]
SPANS = [
    *({"minutes": 30}, {"hours": 1}, {"hours": 24}, {"days": 1}, {"days": 2}, {"days": 30}),
    *({"weeks": 1}, {"days": 364}),
]
DAYS = ["2024-02-29", "2026-03-28", "2026-03-29", "2026-03-30", "2025-03-29", "2026-02-27"]
INSTANTS = ["2026-03-29T12:30:00Z", "2026-03-28T23:00:00Z", "2026-03-29T00:00:00Z"]
ZONES = [None, "UTC", "Europe/Oslo", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati", "x"]
TYPES = ["purchased", "viewed"]
KEYS = [1, 2, 3, None]
SHIFTS = [
    *(timedelta(0), timedelta(minutes=30), timedelta(hours=1), timedelta(hours=24)),
    *(timedelta(days=2), timedelta(days=7), timedelta(days=30), timedelta(days=364)),
]
PROPERTIES = [
    None,
    "{}",
    "[]",
    "not json",
    "{",
    '{"plan": "Pro", "n": 1, "deep": {"a b": "ΟΔΟΣ"}, "ok": true, "at": "2026-03-29"}',
    '{"plan": null, "n": "1", "deep": [], "ok": "true", "list": ["a", 1, null, "STRASSE"]}',
    '{"n": 2.5, "plan": "pro", "plan": "basic", "ok": false, "at": "2026-03-29T12:00:00+02:00"}',
    '{"n": 0.1, "plan": 1, "list": [], "at": "never", "deep": {"a b": 3}}',
    '{"n": 1e999}',
    '{"n": 123456789012345678901234567890, "plan": "a\\u0000b"}',
    '{"plan": "\\ud800", "n": -1}',
    '{"n": NaN}',
]
PATHS = ["properties.plan", "properties.n", "properties.deep.a b", "properties.ok", "properties.at"]


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


# -- rules -----------------------------------------------------------------------------------------


def _values(type_: AttributeType) -> st.Draw[dict[str, Any]]:
    def test(operators: list[str], value: st.Draw[Any]) -> st.Draw[Any]:
        return st.builds(
            lambda operator, value: {"operator": operator, "value": value},
            st.sampled_from(operators),
            value,
        )

    is_set = st.sampled_from([{"operator": "is_set"}, {"operator": "not_set"}])
    text, number = st.sampled_from(TEXTS), st.sampled_from(NUMBERS)
    if type_ is AttributeType.STRING:
        parts = ["contains", "not_contains", "starts_with", "not_starts_with", "ends_with"]
        return st.one_of(
            test(["equals", "not_equals"], text),
            test(["in", "not_in"], st.lists(text, min_size=1, max_size=4)),
            test([*parts, "not_ends_with"], st.sampled_from(NEEDLES)),
            test(["regex", "not_regex"], st.sampled_from(REGEXES)),
            is_set,
        )
    if type_ is AttributeType.NUMBER:
        return st.one_of(
            test(["equals", "not_equals", "greater_than", "at_least", "less_than"], number),
            test(["between", "not_between"], st.lists(number, min_size=2, max_size=2).map(sorted)),
            test(["in", "not_in"], st.lists(number, min_size=1, max_size=4)),
            is_set,
        )
    if type_ is AttributeType.BOOLEAN:
        return test(["equals", "not_equals"], st.booleans()) | is_set
    if type_ is AttributeType.LIST:
        return st.one_of(
            test(["contains", "not_contains"], text),
            test(
                ["contains_any", "not_contains_any", "contains_all", "not_contains_all"],
                st.lists(text, min_size=1, max_size=3),
            ),
            test(["length"], comparisons(st.integers(0, 3))),
            is_set,
        )
    day, instant = st.sampled_from(DAYS), st.sampled_from(INSTANTS)
    pair = st.lists(day, min_size=2, max_size=2) | st.lists(instant, min_size=2, max_size=2)
    nothing = st.just({"operator": "anniversary_today"})
    return st.one_of(
        test(["on"], day),
        test(["before", "after"], day | instant),
        test(["between", "not_between"], pair.map(sorted)),
        test(["in_the_last", "in_the_next", "at_least_ago"], st.sampled_from(SPANS)),
        test(["anniversary_in_the_next"], st.builds(lambda n: {"days": n}, st.integers(1, 364))),
        nothing,
        is_set,
    )


def comparisons(numbers: st.Draw[Any]) -> st.Draw[dict[str, Any]]:
    names = ["equals", "not_equals", "greater_than", "at_least", "less_than", "at_most"]
    return st.builds(
        lambda operator, value: {"operator": operator, "value": value},
        st.sampled_from(names),
        numbers,
    )


def frames() -> st.Draw[dict[str, Any]]:
    day, instant = st.sampled_from(DAYS), st.sampled_from(INSTANTS)
    pair = st.lists(day, min_size=2, max_size=2) | st.lists(instant, min_size=2, max_size=2)
    return st.one_of(
        st.builds(lambda span: {"last": span}, st.sampled_from(SPANS)),
        st.builds(lambda span: {"at_least_ago": span}, st.sampled_from(SPANS)),
        st.builds(lambda one: {"before": one}, day | instant),
        st.builds(lambda one: {"after": one}, day | instant),
        st.builds(lambda two: {"between": sorted(two)}, pair),
    )


def filters() -> st.Draw[dict[str, Any]]:
    def on(name: str, type_: AttributeType, explicit: bool) -> st.Draw[dict[str, Any]]:
        extra = {"type": type_.value} if explicit else {}
        return _values(type_).map(lambda test: {"property": name, **test, **extra})

    own = st.sampled_from(PATHS).flatmap(
        lambda path: st.sampled_from(list(AttributeType)).flatmap(lambda t: on(path, t, True))
    )
    return st.one_of(
        on("item", AttributeType.STRING, False),
        on("amount", AttributeType.NUMBER, False),
        on("campaign", AttributeType.NUMBER, False),
        own,
        on("properties.list", AttributeType.LIST, True),
    )


def _happenings(framed: bool) -> st.Draw[dict[str, Any]]:
    return st.builds(
        lambda type_, where, within: {
            "type": type_,
            **({"where": where} if where else {}),
            **({"within": within} if within else {}),
        },
        st.sampled_from(TYPES),
        st.lists(filters(), max_size=2),
        frames() if framed else st.none() | frames(),
    )


def leaves() -> st.Draw[dict[str, Any]]:
    names = [*ATTRIBUTES.items(), ("email", AttributeType.STRING)]
    names += [("email_domain", AttributeType.STRING), ("created_at", AttributeType.DATE)]
    attribute = st.sampled_from(names).flatmap(
        lambda pair: _values(pair[1]).map(lambda test: {"attribute": {"name": pair[0], **test}})
    )
    measures = st.one_of(
        st.just({}),
        comparisons(st.integers(0, 3)).map(lambda one: {"count": one}),
        st.builds(
            lambda one, name: {"sum": {"property": name, **one}},
            comparisons(st.sampled_from(NUMBERS[:6])),
            st.sampled_from(["amount", "properties.n"]),
        ),
    )
    event = st.builds(
        lambda happening, measure: {"event": {**happening, **measure}}, _happenings(False), measures
    )
    which = st.sampled_from(["any", "all", "none"]) | comparisons(st.integers(0, 3))
    messages = st.builds(
        lambda n, which, were, kind, fewer: {
            "last_messages": {
                "number": n,
                "which": which,
                "were": were,
                "kind": kind,
                "if_fewer": fewer,
            }
        },
        st.integers(1, 4),
        which,
        st.sampled_from(["opened", "clicked", "ignored"]),
        st.sampled_from(["marketing", "transactional", "any"]),
        st.sampled_from(["false", "true", "use_those"]),
    )
    return st.one_of(
        attribute,
        attribute,
        event,
        event,
        _happenings(True).flatmap(
            lambda one: st.sampled_from([{"first_time": one}, {"last_time": one}])
        ),
        messages,
        st.builds(
            lambda topic, status: {
                "consent": {"channel": "email", "topic": topic, "status": status}
            },
            st.sampled_from(["news", "offers"]),
            st.sampled_from(["subscribed", "unsubscribed", "pending"]),
        ),
        st.sampled_from(
            [
                {"suppressed": {"channel": "email"}},
                {"suppressed": {"channel": "email", "reason": "complaint"}},
                {"member": {"segment": 1}},
                {"bucket": {"salt": "s", "from": 0, "to": 50}},
                {"bucket": {"salt": "ß", "from": 12.5, "to": 99.99}},
            ]
        ),
    )


def rules() -> st.Draw[dict[str, Any]]:
    return st.recursive(
        leaves(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda c: {"all": c}),
            st.lists(inner, max_size=4).map(lambda c: {"any": c}),
            st.lists(inner, max_size=3).map(lambda c: {"exactly_one": c}),
            inner.map(lambda c: {"not": c}),
        ),
        depth=3,
    )


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

    def build(profile: Any, happened: Any, consents: Any, segments: Any, gone: Any) -> Person:
        events: dict[str, list[EventRow]] = {}
        for type_, row in happened:
            events.setdefault(type_, []).append(row)
        for listed in events.values():
            listed.sort(key=lambda row: row.occurred_at)
        suppressions = gone if profile["email"] is not None else []
        return Person(subscriber_id, profile, events, consents, frozenset(segments), suppressions)

    reasons = st.sampled_from(["complaint", "hard_bounce"])
    expiries = st.none() | st.sampled_from([NOW - TICK, NOW, NOW + TICK, NOW + timedelta(days=3)])
    return st.builds(
        build,
        profile,
        st.lists(rows(), max_size=10),
        st.dictionaries(
            st.tuples(st.just("email"), st.sampled_from(["news", "offers"])),
            st.sampled_from(["subscribed", "unsubscribed", "pending"]),
        ),
        st.sets(st.integers(1, 2)),
        st.lists(st.builds(Suppression, reasons, expiries), max_size=1),
    )


# -- the same people in a database -----------------------------------------------------------------


def empty_database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    for name in ("profiles", "consents", "suppressions", "events", "memberships"):
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


def store(connection: duckdb.DuckDBPyConnection, everybody: list[Person]) -> None:
    """Replaces what the database holds by these people. Addresses are made different."""
    columns = list(everybody[0].profile)
    _fill(
        connection,
        "profiles",
        ["subscriber_id", *columns],
        [(one.subscriber_id, *(one.profile[c] for c in columns)) for one in everybody],
    )
    events = [
        (one.subscriber_id, type_, *row)
        for one in everybody
        for type_, listed in one.events.items()
        for row in listed
    ]
    names = ["occurred_at", "campaign_id", "message_key", "item", "amount", "properties"]
    strangers = [(10**9, type_, NOW, 1, 1, "Oslo", 1.0, None) for type_ in TYPES]
    _fill(connection, "events", ["subscriber_id", "type", *names], events + strangers)
    _fill(
        connection,
        "consents",
        ["subscriber_id", "channel", "topic", "status"],
        [(one.subscriber_id, *key, s) for one in everybody for key, s in one.consents.items()],
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
            one = Person(one.subscriber_id, profile, one.events, one.consents, one.memberships)
        elif email is not None:
            seen.add(email)
        kept.append(one)
    return kept


def crowds(size: int) -> st.Draw[list[Person]]:
    return st.tuples(*(people(i + 1) for i in range(size))).map(list).map(distinct_addresses)
