"""Random rules, hostile on purpose, and the pools that their values and people's come from.

Values come from small pools, so that conditions often meet the values they ask for: the edges of
windows to the microsecond, ties, texts that differ only by case or composition, missing values,
clock changes, amounts that floats cannot add.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from typing import Any

from manta.schema import AttributeType
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
STEP_SPANS = [*SPANS, {"minutes": 30}, {"hours": 1}, {"hours": 24}]
DAYS = ["2024-02-29", "2026-03-28", "2026-03-29", "2026-03-30", "2025-03-29", "2026-02-27"]
INSTANTS = ["2026-03-29T12:30:00Z", "2026-03-28T23:00:00Z", "2026-03-29T00:00:00Z"]
ZONES = [None, "UTC", "Europe/Oslo", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati", "x"]
TYPES = ["purchased", "viewed"]
ASKED = [*TYPES, *TYPES, "opened"]
PREDICTIONS = ["churn", "ß"]
KEYED_BY = [
    *("properties.cart", "properties.cart", "properties.plan", "properties.n"),
    *("item", "campaign", "properties.deep.a b"),
]
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
    '{"cart": "c1", "n": 1}',
    '{"cart": "c1", "plan": "pro", "at": "2026-03-29T12:30:00Z"}',
    '{"cart": "c2", "at": "2026-03-28T12:30:00Z"}',
    '{"cart": 7}',
    '{"cart": -0, "n": 3}',
    '{"cart": 7.0}',
    '{"cart": 18446744073709551615, "plan": "C1"}',
    '{"cart": 18446744073709551616}',
    '{"cart": true}',
]
PATHS = ["properties.plan", "properties.n", "properties.deep.a b", "properties.ok", "properties.at"]


# -- rules -----------------------------------------------------------------------------------------


@cache
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


@cache
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


@cache
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
        st.sampled_from(ASKED),
        st.lists(filters(), max_size=2),
        frames() if framed else st.none() | frames(),
    )


@cache
def _events() -> st.Draw[dict[str, Any]]:
    measures = st.one_of(
        st.just({}),
        comparisons(st.integers(0, 3)).map(lambda one: {"count": one}),
        st.builds(
            lambda one, name: {"sum": {"property": name, **one}},
            comparisons(st.sampled_from(NUMBERS[:6])),
            st.sampled_from(["amount", "properties.n"]),
        ),
    )
    return st.builds(
        lambda happening, measure: {"event": {**happening, **measure}}, _happenings(False), measures
    )


@cache
def _event_times() -> st.Draw[dict[str, Any]]:
    return _happenings(True).flatmap(
        lambda one: st.sampled_from([{"first_time": one}, {"last_time": one}])
    )


@cache
def _steps() -> st.Draw[dict[str, Any]]:
    return st.builds(
        lambda type_, where, span: {
            "type": type_,
            **({"where": [where]} if where else {}),
            **({"within": span} if span else {}),
        },
        st.sampled_from(ASKED),
        st.one_of(st.none(), st.none(), st.none(), filters()),
        st.none() | st.sampled_from(STEP_SPANS),
    )


@cache
def sequences() -> st.Draw[dict[str, Any]]:
    def build(steps: list[dict[str, Any]], absent: Any, within: Any) -> dict[str, Any]:
        first, *rest = steps
        first = {key: value for key, value in first.items() if key != "within"}
        if absent:
            rest[-1] = {**rest[-1], "within": absent, "absent": True}
        return {"sequence": {"steps": [first, *rest], **({"within": within} if within else {})}}

    return st.builds(
        build,
        st.lists(_steps(), min_size=2, max_size=2) | st.lists(_steps(), min_size=2, max_size=4),
        st.none() | st.sampled_from(STEP_SPANS),
        st.none() | frames(),
    )


@cache
def keyed() -> st.Draw[dict[str, Any]]:
    inside = _groups(st.one_of(_events(), _events(), _event_times(), sequences()), 2)
    either = _events() | _events().map(lambda one: {"not": one})
    return st.builds(
        lambda by, rule: {"keyed": {"by": by, "rule": rule}},
        st.sampled_from(KEYED_BY),
        either | st.builds(lambda event, rule: {"all": [event, rule]}, either, inside),
    )


@cache
def _predictions() -> st.Draw[dict[str, Any]]:
    return st.builds(
        lambda name, test: {"prediction": {"name": name, **test}},
        st.sampled_from(PREDICTIONS),
        _values(AttributeType.NUMBER),
    )


def _has_been(attribute: st.Draw[dict[str, Any]]) -> st.Draw[dict[str, Any]]:
    return st.builds(
        lambda one, span: {"has_been": {**one, "for": span}}, attribute, st.sampled_from(SPANS)
    )


def leaves() -> st.Draw[dict[str, Any]]:
    def on(names: list[tuple[str, AttributeType]]) -> st.Draw[dict[str, Any]]:
        return st.sampled_from(names).flatmap(
            lambda pair: _values(pair[1]).map(lambda test: {"attribute": {"name": pair[0], **test}})
        )

    own = list(ATTRIBUTES.items())
    built_in = [("email", AttributeType.STRING), ("email_domain", AttributeType.STRING)]
    attribute = on([*own, *built_in, ("created_at", AttributeType.DATE)])
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
        _events(),
        _events(),
        _event_times(),
        sequences(),
        sequences(),
        keyed(),
        keyed(),
        _has_been(on([*own, ("time_zone", AttributeType.STRING)])),
        _predictions(),
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


def _groups(leaf: st.Draw[Any], depth: int) -> st.Draw[Any]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda c: {"all": c}),
            st.lists(inner, max_size=4).map(lambda c: {"any": c}),
            st.lists(inner, max_size=3).map(lambda c: {"exactly_one": c}),
            inner.map(lambda c: {"not": c}),
        ),
        depth,
    )


@cache
def rules() -> st.Draw[dict[str, Any]]:
    return _groups(leaves(), 3)
