"""Mappings: the path language, formats, mistakes told with their place, and what records mean."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.errors import InvalidRequest
from manta.ingestion import mapping
from manta.ingestion.mapping_form import plan_of
from manta.ingestion.normalised import Normalised, Unfit
from manta.ingestion.paths import NOTHING, path_of
from manta.ingestion.sources import EARLIER_MAX, checked_source
from tests.conftest import REPOSITORY
from tests.unit.serve_fakes import FakeDocuments

NOW = datetime(2026, 3, 1, 12)
EMAIL = {"identities": {"email": "$.email"}}
ORDERS: dict[str, Any] = {
    "items": "$.records[*]",
    "id": "$.change",
    "when": {"path": "$.kind", "in": ["order", "contact"]},
    "identities": {
        "email": "$.Email",
        "external_id": {"path": "$['Record Id']", "prefix": "crm:"},
        "phone": "$.phones[-1]",
    },
    "traits": {
        "city": "$.Address.City",
        "vip": {"path": "$.vip", "format": "boolean"},
        "since": {"path": "$.since", "format": "%d.%m.%Y %H:%M", "zone": "Europe/Zurich"},
        "tier": {"path": "$.tier", "map": {"1": "gold", "2": "silver"}, "default": "none"},
        "tags": "$.tags[*].name",
        "origin": {"const": "crm"},
    },
    "locale": "$.lang",
    "consent": {
        "topic": "news",
        "status": {
            "path": "$.optin",
            "map": {"yes": "subscribed", "no": "unsubscribed", "?": None},
        },
        "method": "double",
        "at": {"path": "$.optin_at", "format": "unix_millis"},
        "proof": {"ip": "$.ip"},
    },
    "events": [
        {
            "type": "ordered",
            "when": [
                {"path": "$.status", "equals": "paid"},
                {"path": "$.deleted", "exists": False},
            ],
            "id": "$.order.number",
            "occurred_at": {"path": "$.order.at", "format": "unix_seconds"},
            "item": "$.order.number",
            "amount": {"path": "$.order.total", "format": "decimal_comma"},
            "properties": {"currency": {"const": "CHF"}, "note": "$.order.note"},
        },
        {
            "type": "purchased",
            "when": {"path": "@.free", "not": True},
            "each": "$.order.lines[*]",
            "id": "$.order.number",
            "item": "@.sku",
            "amount": {"path": "@.cents", "format": "cents"},
            "properties": {"order_id": "$.order.number"},
        },
    ],
}
RECORD: dict[str, Any] = {
    "change": "c1",
    "kind": "order",
    "Email": "Ann@x.example",
    "Record Id": 7,
    "phones": ["041", "+41 79 123 45 67"],
    "Address": {"City": "Bern"},
    "vip": "yes",
    "since": "31.03.2020 14:00",
    "tier": 1,
    "tags": [{"name": "a"}, {"name": "b"}],
    "lang": "de-CH",
    "optin": "yes",
    "optin_at": 1_600_000_000_000,
    "ip": "192.0.2.1",
    "status": "paid",
    "order": {
        "number": "o-9",
        "at": 1_700_000_000,
        "total": "1.234,50",
        "lines": [
            {"sku": "s1", "cents": 1_990},
            {"sku": "s2", "cents": "5", "free": False},
            {"sku": "s3", "cents": 1, "free": True},
        ],
    },
}


def source(plan: Any, **more: Any) -> dict[str, Any]:
    return {"id": 3, "name": "CRM", "kind": "mapping", "mapping": plan, **more}


def meant(plan: Any, body: Any) -> list[Normalised]:
    found = mapping.normalise(source(plan), body, NOW)
    assert not isinstance(found, Unfit), found
    return found


def test_a_record_becomes_a_person_with_traits_consent_and_events():
    (said,) = meant(ORDERS, {"records": [RECORD]})
    assert said.identities == {
        "email": "Ann@x.example",
        "external_id": "crm:7",
        "phone": "+41791234567",
    }
    assert said.traits == {
        "city": "Bern",
        "vip": True,
        "since": "2020-03-31T12:00:00.000000Z",
        "tier": "gold",
        "tags": ["a", "b"],
        "origin": "crm",
    }
    assert said.locale == "de-CH"
    (consent,) = said.consents
    assert (consent.channel, consent.topic, consent.status) == ("email", "news", "subscribed")
    assert consent.proof == {
        "method": "double",
        "form": "CRM",
        "at": "2020-09-13T12:26:40Z",
        "ip": "192.0.2.1",
    }
    assert [(e.type, e.id, e.item, e.amount) for e in said.events] == [
        ("ordered", "mapping:3:ordered:o-9", "o-9", 1234.5),
        ("purchased", "mapping:3:purchased:o-9:1", "s1", 19.9),
        ("purchased", "mapping:3:purchased:o-9:2", "s2", 0.05),
    ]
    assert said.events[0].occurred_at == datetime(2023, 11, 14, 22, 13, 20)
    assert said.events[0].properties == {"currency": "CHF"}


def test_a_proof_is_bounded():
    names = ("ip", "user_agent", "form", "page", "wording", "before", "status", "mailed_at")
    proof = {name: f"$.{name}" for name in names}
    plan = EMAIL | {"consent": {"topic": "n", "status": "subscribed", "proof": proof}}
    record = {"email": "a@x.example"} | dict.fromkeys(names, "ü" * 1_000)
    found = mapping.normalise(source(plan), record, NOW)
    assert isinstance(found, Unfit)
    assert "too long" in found.problem


def test_the_mapping_of_the_document_is_one():
    text = (REPOSITORY / "docs" / "ingestion.md").read_text()
    plans = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert [plan_of(plan).items.text for plan in plans] == ["$.records[*]"]


def test_bodies_are_split_and_mean_the_same():
    records = [RECORD, RECORD | {"change": "c2", "Email": "b@x.example"}, {"kind": "other"}]
    whole = {"records": records, "page": 1}
    parts = mapping.bodies(source(ORDERS), whole)
    assert parts == [{"records": [record]} for record in records]
    assert [meant(ORDERS, part) for part in parts] == [[said] for said in meant(ORDERS, whole)] + [
        []
    ]
    assert meant(ORDERS, {"records": []}) == []
    assert mapping.bodies(source(EMAIL), {"email": "a@x.example"}) == [{"email": "a@x.example"}]
    nested = EMAIL | {"items": "$.a[*].b"}
    body = {"a": [{"b": {"email": "a@x.example"}}, {"b": {"email": "b@x.example"}}]}
    assert mapping.bodies(source(nested), body)[1] == {"a": [{"b": {"email": "b@x.example"}}]}
    assert len(meant(nested, body)) == 2


@pytest.mark.parametrize(
    ("change", "path", "problem"),
    [
        ({"Email": "nobody"}, "$.Email", "address"),
        ({"Email": {"a": 1}}, "$.Email", "text"),
        ({"phones": ["12"]}, "$.phones[-1]", "telephone"),
        ({"Email": None, "Record Id": "", "phones": []}, "$.Email", "names nobody"),
        ({"Email": None, "Record Id": ""}, "$.phones[-1]", "alone"),
        ({"vip": "perhaps"}, "$.vip", "yes nor no"),
        ({"since": "2020-03-31"}, "$.since", "%d.%m.%Y"),
        ({"optin": "maybe"}, "$.optin", "'maybe'"),
        ({"optin_at": -5}, "$.optin_at", "1970"),
        ({"order": {"number": "1", "total": "1,234.50"}}, "$.order.total", "1.234,50"),
        ({"order": {"number": "1", "at": "soon"}}, "$.order.at", "number"),
        ({"order": {"number": "1", "lines": [{"cents": "x"}]}}, "@.cents", "number"),
        ({"x": 10**400}, "$.x", "number"),
        ({"order": {"lines": [{"sku": "s"}] * 501}}, "$", "500"),
    ],
)
def test_what_does_not_fit_says_where(change, path, problem):
    found = mapping.normalise(source(ORDERS), {"records": [RECORD | change]}, NOW)
    assert isinstance(found, Unfit)
    assert found.path.startswith(path)
    assert problem in found.problem


def test_a_body_without_its_records_is_unfit_as_a_whole():
    for body in ({"data": []}, [], 3, {"records": {"a": 1}}):
        found = mapping.normalise(source(ORDERS), body, NOW)
        assert isinstance(found, Unfit)
        assert "$.records[*]" in found.problem
        assert mapping.bodies(source(ORDERS), body) == [body]
    second = mapping.normalise(source(ORDERS), {"records": [RECORD, RECORD | {"vip": "?"}]}, NOW)
    assert isinstance(second, Unfit)
    assert second.problem.startswith("record 2: ")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"identities": {}}, "mapping.identities"),
        ({"identities": {"mail": "$.a"}}, "mapping.identities"),
        ({"identities": {"email": "email"}}, "mapping.identities.email"),
        ({"items": "records"}, "mapping.items"),
        ({"items": "$.a["}, "mapping.items"),
        ({"trait": {}}, "mapping.trait"),
        ({"traits": {"a": {"path": "$.a", "formt": "x"}}}, "mapping.traits.a.formt"),
        ({"traits": {"a": {"path": "$.a", "format": "%Q"}}}, "mapping.traits.a.format"),
        ({"traits": {"a": {"path": "$.a", "format": "%d.%m."}}}, "mapping.traits.a.format"),
        ({"traits": {"a": {"path": "$.a", "zone": "Mars"}}}, "mapping.traits.a.zone"),
        ({"traits": {"a": {"path": "$.a", "default": []}}}, "mapping.traits.a.default"),
        ({"traits": {"a": {"const": {}}}}, "mapping.traits.a.const"),
        ({"traits": {"a": "@.a"}}, "mapping.traits.a"),
        ({"traits": {"a": {}}}, "mapping.traits.a"),
        ({"events": {}}, "mapping.events"),
        ({"events": [{"id": "$.a"}]}, "mapping.events[0].type"),
        ({"events": [{"type": "x", "amount": "a"}]}, "mapping.events[0].amount"),
        ({"events": [{"type": "x", "each": "$.a"}]}, "mapping.events[0].each"),
        ({"events": [{"type": "x", "item": "@.a"}]}, "mapping.events[0].item"),
        ({"events": [{"type": "x", "when": {"path": "$.a"}}]}, "mapping.events[0].when"),
        ({"events": [{"type": "x", "when": [{"path": "$.a", "in": 1}]}]}, "mapping.events[0].when"),
        ({"consent": {"status": "subscribed"}}, "mapping.consent[0].topic"),
        (
            {"consent": {"topic": "n", "status": {"path": "$.a", "map": {"1": "in"}}}},
            "mapping.consent[0].status.map.1",
        ),
        ({"consent": {"topic": "*", "status": "subscribed"}}, "mapping.consent[0].topic"),
        (
            {"consent": {"topic": "n", "status": "$.s", "method": "guess"}},
            "mapping.consent[0].method",
        ),
        (
            {"consent": {"topic": "n", "status": "$.s", "proof": {"at": "$.a"}}},
            "mapping.consent[0].proof.at",
        ),
        ({"traits": {f"t{n}": "$.a" for n in range(201)}}, "mapping.traits"),
    ],
)
def test_a_mistake_in_a_mapping_is_told_with_its_place(change, path):
    with pytest.raises(InvalidRequest) as told:
        plan_of({**EMAIL, **change})
    assert told.value.path.startswith(path)
    assert told.value.expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$", {"a": {"b c": [1, 2, 3], "d": [{"e": 1}, {"e": 2}, {}]}, "0": "z", "ü": 4}),
        ("$.a['b c'][0]", 1),
        ('$["a"]["b c"][-1]', 3),
        ("$.a['b c'][3]", NOTHING),
        ("$.a['b c'][*]", [1, 2, 3]),
        ("$.a.d[*].e", [1, 2]),
        ("$.a.d[*].f", NOTHING),
        ("$.a.d.e", NOTHING),
        ("$.0", "z"),
        ("$.ü", 4),
        ("$.a[0]", NOTHING),
    ],
)
def test_paths(path, expected):
    document = {"a": {"b c": [1, 2, 3], "d": [{"e": 1}, {"e": 2}, {}]}, "0": "z", "ü": 4}
    assert path_of(path, "x").value({"$": document}) == expected


@given(st.text(alphabet="$@.[]*'\"ab0-\\ ", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_path_or_refused(text):
    try:
        path = path_of(text, "x", roots="$@")
    except InvalidRequest as error:
        assert error.path == "x"
    else:
        path.value({"$": {"a": [{"b": 1}]}, "@": [0]})


def test_a_source_keeps_the_mappings_before():
    documents = FakeDocuments()
    fields: dict[str, Any] = {"name": "CRM", "kind": "mapping", "mapping": EMAIL, "id": 3}
    kept = checked_source(fields, documents)
    assert kept["earlier"] == []
    for version in range(1, 9):
        documents.held["sources"] = {"3": {**kept, "id": 3, "version": version, "updated_at": "t"}}
        plan = EMAIL | {"traits": {f"t{version}": "$.t"}}
        kept = checked_source({**kept, "mapping": plan, "id": 3}, documents)
    assert [each["version"] for each in kept["earlier"]] == [8, 7, 6, 5, 4]
    assert len(kept["earlier"]) == EARLIER_MAX
    documents.held["sources"]["3"] |= kept
    assert checked_source({**kept, "id": 3}, documents)["earlier"] == kept["earlier"]
    for wrong in (
        {"mapping": None},
        {"mapping": {"identities": {"email": "email"}}},
        {"kind": "stripe"},
        {"consent_topic": "news"},
        {"key_id": "k"},
        {"secrets": [{"secret": "short"}]},
        {"name": "privacy:x"},
    ):
        with pytest.raises(InvalidRequest):
            checked_source({**fields, **wrong}, FakeDocuments())
