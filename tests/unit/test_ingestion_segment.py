"""What messages of the Segment tracking API mean."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from manta.events.commands import wrong_properties
from manta.ingestion import segment
from manta.ingestion.commerce import event_rules
from manta.ingestion.normalised import Misfit, Normalised, Unfit, check, event_type, json_of
from manta.schema import HISTORY_EVENTS, MESSAGE_EVENTS

NOW = datetime(2026, 3, 1, 12)
SOURCE: dict[str, Any] = {"kind": "segment"}


def meant(**message: Any) -> Normalised:
    (found,) = all_of(message)
    return found


def all_of(message: dict[str, Any]) -> list[Normalised]:
    found = segment.normalise(SOURCE, message, NOW)
    assert not isinstance(found, Unfit), found
    return found


def unfit(**message: Any) -> Unfit:
    found = segment.normalise(SOURCE, message, NOW)
    assert isinstance(found, Unfit), found
    return found


def test_identify_names_a_person_and_says_what_they_are_like():
    found = meant(
        type="identify",
        messageId="m1",
        userId=42,
        anonymousId="a1",
        traits={
            "email": " Ann@X.example",
            "phone": "+49 30 1",
            "firstName": "Ann",
            "timezone": "Europe/Berlin",
            "createdAt": "2020-01-01",
            "address": {"city": "Berlin"},
        },
        context={"locale": "de-DE"},
    )
    assert found.identities == {
        "email": "Ann@x.example",
        "external_id": "42",
        "phone": "+49 30 1",
        "anonymous_id": "a1",
    }
    assert found.traits == {
        "firstName": "Ann",
        "account_created_at": "2020-01-01",
        "address": {"city": "Berlin"},
    }
    assert (found.time_zone, found.locale, found.events) == ("Europe/Berlin", "de-DE", ())


def test_an_order_is_one_order_and_a_purchase_for_each_line():
    found = meant(
        type="track",
        event="Order Completed",
        messageId="m2",
        userId="u",
        properties={
            "order_id": "o7",
            "total": "30.5",
            "currency": "EUR",
            "products": [
                {"product_id": "p1", "price": 10, "quantity": 2},
                {"sku": "s2", "price": 10.5},
                {"name": "free"},
            ],
        },
    )
    assert [(e.type, e.id, e.item, e.amount) for e in found.events] == [
        ("ordered", "m2", "o7", 30.5),
        ("purchased", "m2:1", "p1", 20.0),
        ("purchased", "m2:2", "s2", 10.5),
        ("purchased", "m2:3", "free", None),
    ]
    assert all(event.properties["order_id"] == "o7" for event in found.events)
    assert "products" not in found.events[0].properties
    bare = meant(type="track", event="order completed", userId="u", properties={"revenue": 5})
    assert [(e.type, e.item, e.amount) for e in bare.events] == [
        ("ordered", None, 5.0),
        ("purchased", None, 5.0),
    ]


@pytest.mark.parametrize(
    ("call", "type", "item", "properties"),
    [
        (
            {"type": "track", "event": "Product Viewed", "properties": {"sku": "s"}},
            "viewed",
            "s",
            {"sku": "s", "kind": "product"},
        ),
        (
            {"type": "track", "event": "Product Removed", "properties": {"name": "n"}},
            "cart_updated",
            "n",
            {"name": "n", "action": "removed"},
        ),
        ({"type": "track", "event": "Clicked Buy!"}, "Clicked Buy", None, None),
        ({"type": "track", "event": "Für später gemerkt"}, "Fur spater gemerkt", None, None),
        ({"type": "track", "event": "opened"}, "segment:opened", None, None),
        (
            {"type": "page", "name": "Home", "properties": {"url": "https://x.example/?mt=abc"}},
            "viewed",
            "https://x.example/",
            {"url": "https://x.example/", "name": "Home", "kind": "page"},
        ),
        ({"type": "screen", "name": "Main"}, "viewed", "Main", {"name": "Main", "kind": "screen"}),
        (
            {"type": "group", "groupId": "g1", "traits": {"plan": "pro"}},
            "grouped",
            "g1",
            {"plan": "pro"},
        ),
    ],
)
def test_calls_as_events(call, type, item, properties):
    (event,) = meant(anonymousId="a", **call).events
    assert (event.type, event.item, event.properties) == (type, item, properties)


def test_the_clock_of_the_sender_is_taken_out():
    skewed = {"timestamp": "2026-03-01T14:00:00Z", "sentAt": "2026-03-01T14:00:10Z"}
    assert segment.occurred_at(skewed, NOW) == NOW - timedelta(seconds=10)
    first = {"originalTimestamp": "2026-03-01T09:00:00Z", **skewed}
    assert segment.occurred_at(first, NOW) == NOW - timedelta(hours=5, seconds=10)
    assert segment.occurred_at({"timestamp": "2020-01-01T00:00:00+01:00"}, NOW) == datetime(
        2019, 12, 31, 23
    )
    assert segment.occurred_at({"timestamp": "2020-01-01", "sentAt": 5}, NOW) == datetime(
        2020, 1, 1
    )
    assert segment.occurred_at({"sentAt": "2026-03-01T14:00:10Z"}, NOW) is None


def test_what_a_batch_says_for_all_is_overruled_by_the_message():
    batch = {"sentAt": "b", "context": {"ip": "1", "locale": "de"}}
    assert segment.opened({"context": {"ip": "2"}}, batch) == {
        "sentAt": "b",
        "context": {"ip": "2", "locale": "de"},
    }


def test_messages_without_id_are_named_by_what_they_say():
    said = {"type": "track", "event": "x", "userId": "1", "timestamp": "2026-03-01T10:00:00Z"}
    first = all_of({**said, "sentAt": "2026-03-01T11:59:00Z"})[0]
    again = all_of({**said, "sentAt": "2026-03-01T11:59:30Z"})[0]
    assert first.id == again.id
    assert segment.named(said, "fresh") is said
    assert segment.named({"event": "x"}, "fresh")["messageId"] == "fresh"


def test_alias_names_the_earlier_self():
    found = meant(type="alias", previousId="old", userId="new", messageId="m")
    assert (found.identities, found.formerly) == ({"external_id": "new"}, ("old",))


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"type": "track", "event": "x"}, "userId"),
        ({"type": "track", "userId": "1"}, "event"),
        ({"type": "track", "userId": "1", "event": ["x"]}, "event"),
        ({"type": "track", "userId": "1", "event": "x", "properties": 3}, "properties"),
        ({"type": "track", "userId": {"id": 1}, "event": "x"}, "userId"),
        ({"type": "track", "userId": "1" * 400, "event": "x"}, "userId"),
        ({"type": "track", "userId": "1", "event": "x", "timestamp": "soon"}, "timestamp"),
        ({"type": "track", "userId": "1", "event": "x", "timestamp": "0001-01-01"}, "timestamp"),
        ({"type": "track", "userId": "1", "event": "x", "timestamp": 5}, "timestamp"),
        ({"type": "track", "userId": "1", "event": "x", "context": {"a": "b\x00"}}, "context.a"),
        ({"type": "track", "userId": "1", "event": "x", "p": float("inf")}, "p"),
        ({"type": "track", "userId": "1", "event": "x", "p": [10**400]}, "p[0]"),
        ({"type": "track", "userId": "1", "event": "x", "p": "x" * 40_000}, ""),
        ({"type": "identify", "userId": "1", "traits": {"email": "nobody"}}, "traits.email"),
        ({"type": "alias", "userId": "1"}, "previousId"),
        ({"type": "group", "userId": "1"}, "groupId"),
        ({"type": "charge", "userId": "1"}, "type"),
        ({"userId": "1"}, "type"),
        (
            {
                "type": "track",
                "userId": "1",
                "event": "Order Completed",
                "properties": {"products": [3]},
            },
            "properties.products[0]",
        ),
    ],
)
def test_what_fits_no_shape_says_where(message, path):
    found = unfit(**message)
    assert found.path == path
    assert found.problem
    assert isinstance(segment.normalise(SOURCE, "text", NOW), Unfit)


def test_depth_is_bounded():
    deep: Any = 1
    for _ in range(30):
        deep = {"a": deep}
    assert "deep" in unfit(type="track", event="x", userId="1", properties=deep).problem


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*"abc", "traits", "context", "properties"]), json_values))
def test_any_payload_is_normalised_or_unfit_and_what_is_normalised_can_be_stored(extra):
    for call in segment.CALLS:
        message = {"event": "x", "groupId": "g", "previousId": "p", **extra, "userId": "u"}
        found = segment.normalise(SOURCE, {**message, "type": call}, NOW)
        if isinstance(found, Unfit):
            continue
        for event in found[0].events:
            text = to_json(event.properties or {}).decode()
            assert wrong_properties(text) is None
        assert wrong_properties(found[0].original) is None


@given(json_values)
def test_what_is_checked_is_json_in_utf8(value):
    try:
        check(value, "")
    except Misfit:
        return
    assert "NaN" not in (text := json_of({"v": value}, "")) or "NaN" in str(value)
    assert wrong_properties(text) is None


@given(st.text(max_size=100))
def test_any_name_becomes_a_type_that_shards_take(name):
    import re

    from manta.events.commands import _TYPE, TYPE_LENGTH_MAX

    found = event_type(name, "segment")
    assert re.match(_TYPE, found)
    assert len(found) <= TYPE_LENGTH_MAX
    assert found not in (*MESSAGE_EVENTS, *HISTORY_EVENTS)


def test_the_rules_of_the_file_are_well_formed():
    rules = event_rules()
    assert rules["order completed"].lines == "purchased"
    for name, rule in rules.items():
        assert name == name.lower()
        assert event_type(rule.type, "x") == rule.type
