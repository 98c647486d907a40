"""Sources and their webhooks over real actors in one process."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from random import Random
from typing import Any

import pytest

from manta.ingestion import quarantine
from manta.people.commands import SetConsent
from serve_apps.api import create_api
from serve_apps.collect.rates import Buckets, Rate
from serve_apps.collect.webhooks import BODY_BYTES_MAX
from tests.unit import source_samples as samples
from tests.unit.serve_fakes import NOW, client
from tests.unit.serve_world import House, house
from tests.unit.test_serve_collect import events, rows

SECRET = "hush-hush-hush"


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House) -> Any:
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key()) as opened:
        yield opened


async def source(http: Any, kind: str, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/v1/sources", json={"name": f"My {kind}", "kind": kind, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def send(http: Any, made: dict[str, Any], body: bytes, headers: dict[str, str]) -> Any:
    url = made["webhook_url"].removeprefix("http://manta.test")
    return await http.post(url, content=body, headers={"Authorization": "", **headers})


async def shopify(http: Any, made: dict[str, Any], topic: str, document: Any, **more: str) -> Any:
    body = json.dumps(document).encode()
    mac = base64.b64encode(hmac.digest(SECRET.encode(), body, sha256)).decode()
    headers = {
        "X-Shopify-Topic": topic,
        "X-Shopify-Hmac-Sha256": mac,
        "X-Shopify-Shop-Domain": samples.SHOP,
        "X-Shopify-API-Version": "2026-01",
    }
    return await send(http, made, body, headers | more)


async def stripe(http: Any, made: dict[str, Any], event: Any) -> Any:
    body, at = json.dumps(event).encode(), int(NOW.replace(tzinfo=UTC).timestamp())
    mac = hmac.new(SECRET.encode(), f"{at}.".encode() + body, sha256).hexdigest()
    return await send(http, made, body, {"Stripe-Signature": f"t={at},v1={mac}"})


async def test_a_shops_story_becomes_one_persons(world, http):
    made = await source(http, "shopify", secret=SECRET)
    assert made["secret"] == SECRET
    cart = await shopify(http, made, "carts/create", samples.SHOPIFY_CART)
    assert (cart.status_code, cart.json()) == (200, {"success": True, "recorded": 1})
    # The refund overtakes its order.
    await shopify(http, made, "refunds/create", samples.SHOPIFY_REFUND)
    order = await shopify(http, made, "orders/create", samples.SHOPIFY_ORDER)
    assert order.json() == {"success": True, "recorded": 1}
    (john,) = rows(world, "SELECT * FROM profiles")
    assert (john["email"], john["attr_first_name"]) == ("John@example.com", "John")
    hers = rows(world, f"SELECT type FROM events WHERE subscriber_id = {john['subscriber_id']}")
    kinds = sorted(row["type"] for row in hers)
    assert kinds == ["cart_updated", "ordered", "purchased", "purchased", "refunded"]
    # Told again in another way, the order counts once; a retry changes nothing.
    paid = await shopify(http, made, "orders/paid", samples.SHOPIFY_ORDER)
    assert paid.json() == {"success": True, "repeated": 1}
    assert len(events(world)) == 5
    (consent,) = rows(world, "SELECT * FROM consents")
    assert (consent["topic"], consent["status"]) == ("newsletter", "subscribed")
    assert json.loads(consent["proof"])["ip"] == "216.191.105.146"
    shown = (await http.get(f"/v1/sources/{made['id']}")).json()
    assert shown["received"] | {"last_at": None} == {
        "recorded": 3,
        "repeated": 1,
        "ignored_topics": {},
        "last_at": None,
    }
    assert "hush" not in json.dumps(shown)
    assert shown["secrets"] == 1


STORY = [
    ("carts/create", samples.SHOPIFY_CART),
    ("checkouts/create", samples.SHOPIFY_CHECKOUT),
    ("orders/create", samples.SHOPIFY_ORDER),
    ("refunds/create", samples.SHOPIFY_REFUND),
    ("customers/create", samples.SHOPIFY_CUSTOMER),
    ("orders/updated", samples.SHOPIFY_ORDER | {"refunds": [samples.SHOPIFY_REFUND]}),
]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_in_whatever_order_a_story_comes_it_is_the_same(world, http, seed):
    made = await source(http, "shopify", secret=SECRET)
    story = Random(seed).sample(STORY, len(STORY))
    if seed == 1:  # one after another
        answers = [await shopify(http, made, topic, document) for topic, document in story]
    else:  # all at once
        answers = await asyncio.gather(*(shopify(http, made, *each) for each in story))
    assert [(a.status_code, "unfit" in a.json()) for a in answers] == [(200, False)] * 6
    (john,) = rows(world, "SELECT subscriber_id FROM profiles")
    id = john["subscriber_id"]
    kinds = rows(world, f"SELECT type FROM events WHERE subscriber_id = {id} ORDER BY type")
    assert [row["type"] for row in kinds] == [
        "cart_updated",
        "checkout_started",
        "ordered",
        "purchased",
        "purchased",
        "refunded",
        "signed_up",
    ]


async def test_only_what_is_signed_is_believed(world, http):
    made = await source(http, "shopify")
    assert "secret" not in made
    assert (await shopify(http, made, "carts/create", samples.SHOPIFY_CART)).status_code == 401
    url = f"/v1/sources/{made['id']}"
    assert (await http.post(f"{url}/rotate", json={})).status_code == 422
    assert (await http.post(f"{url}/rotate", json={"secret": SECRET})).json()["secret"] == SECRET
    world.clock.advance(6)
    assert (await shopify(http, made, "carts/create", samples.SHOPIFY_CART)).status_code == 200
    wrong = await shopify(
        http, made, "carts/create", samples.SHOPIFY_CART, **{"X-Shopify-Hmac-Sha256": "AAAA"}
    )
    assert (wrong.status_code, wrong.json()["code"]) == (401, "unauthorized")
    assert "www-authenticate" not in wrong.headers
    other = await http.post("/v1/sources/99/webhook", content=b"{}")
    assert (other.status_code, other.json()) == (401, wrong.json())
    assert (await http.get(f"{url}/webhook")).status_code == 405
    # The old secret is good for a while after a new one has come, and then no more.
    await http.post(f"{url}/rotate", json={"secret": "another-secret", "old_secret_hours": 1})
    world.clock.advance(6)
    assert (await shopify(http, made, "carts/create", samples.SHOPIFY_CART)).status_code == 200
    world.clock.advance(3_600)
    assert (await shopify(http, made, "carts/create", samples.SHOPIFY_CART)).status_code == 401


async def test_what_fits_no_shape_and_what_a_person_has_to_do_wait(world, http):
    made = await source(http, "shopify", secret=SECRET)
    bad = await shopify(http, made, "orders/create", samples.SHOPIFY_ORDER | {"email": "x"})
    assert bad.json() == {"success": True, "recorded": 1}  # the customer's own address counts
    order = samples.SHOPIFY_ORDER | {"id": 5, "total_price": "9,90"}
    bad = await shopify(http, made, "orders/create", order)
    assert bad.status_code == 200
    (wrong,) = bad.json()["unfit"]
    assert wrong["path"] == "payload.total_price"
    for topic in ("customers/redact", "customers/data_request", "shop/redact"):
        answer = await shopify(http, made, topic, {"shop_id": 954889, "customer": {"id": 1}})
        assert (answer.status_code, answer.json()["quarantined"]) == (200, 1)
    page = (await http.get("/v1/quarantine", params={"source": "privacy:My shopify"})).json()
    assert len(page["items"]) == 3
    replayed = (await http.post("/v1/quarantine/replay", json={})).json()
    assert (replayed["replayed"], replayed["unfit"]) == (0, 4)
    mended = (await http.get(f"/v1/quarantine/{wrong['id']}")).json()["body"]
    mended["payload"]["total_price"] = "9.90"
    again = await http.post(f"/v1/quarantine/{wrong['id']}/replay", json={"body": mended})
    assert again.status_code == 200, again.text
    assert [e["amount"] for e in events(world) if e["type"] == "ordered"] == [398.0, 9.9]
    ignored = await shopify(http, made, "products/update", {"id": 1})
    assert ignored.json() == {"success": True, "ignored": 1}
    tested = await shopify(
        http, made, "orders/create", samples.SHOPIFY_ORDER | {"id": 6}, **{"X-Shopify-Test": "true"}
    )
    assert tested.json() == {"success": True, "ignored": 1}
    received = (await http.get(f"/v1/sources/{made['id']}")).json()["received"]
    assert received["ignored_topics"] == {"products/update": 1, "orders/create": 1}


async def test_a_full_quarantine_makes_the_sender_try_again(world, http, monkeypatch):
    made = await source(http, "shopify", secret=SECRET)
    monkeypatch.setattr(quarantine, "ROWS_MAX", 0)
    answer = await shopify(http, made, "customers/redact", {"shop_id": 954889})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "300")


def customer(state: str, at: str) -> dict[str, Any]:
    consent = {"state": state, "opt_in_level": "single_opt_in", "consent_updated_at": at}
    return samples.SHOPIFY_CUSTOMER | {"email_marketing_consent": consent}


async def test_consent_is_only_added_and_an_old_opt_out_undoes_no_later_opt_in(world, http):
    made = await source(http, "shopify", secret=SECRET, consent_topic="news")

    async def told(state: str, at: str) -> list[str]:
        answer = await shopify(http, made, "customers/update", customer(state, at))
        assert answer.status_code == 200, answer.text
        return [row["status"] for row in rows(world, "SELECT status FROM consents")]

    assert await told("not_subscribed", "2026-01-01T00:00:00Z") == []
    assert await told("subscribed", "2026-01-02T00:00:00Z") == ["subscribed"]
    assert await told("unsubscribed", "2026-01-03T00:00:00Z") == ["unsubscribed"]
    assert await told("subscribed", "2026-02-04T00:00:00Z") == ["unsubscribed"]
    (john,) = rows(world, "SELECT subscriber_id FROM profiles")
    id = john["subscriber_id"]
    proof = {"method": "double", "at": "2026-02-05T00:00:00Z"}
    command = SetConsent(None, id, "email", "news", "subscribed", "page", proof)
    await world.handles.shards.execute(world.handles.shards.of_subscriber(id), command, 5)
    assert await told("unsubscribed", "2026-01-03T00:00:00Z") == ["subscribed"]
    assert await told("unsubscribed", "2026-02-06T00:00:00Z") == ["unsubscribed"]


async def test_what_stripe_tells_of_a_number_becomes_the_person_who_has_it(world, http):
    made = await source(http, "stripe", secret=SECRET)
    kind = "customer.subscription.created"
    first = await stripe(http, made, samples.stripe(kind, samples.STRIPE_SUBSCRIPTION))
    assert first.json() == {"success": True, "recorded": 1}
    await http.post("/v1/identify", json={"userId": "u1", "traits": {"email": "jenny@example.com"}})
    await stripe(http, made, samples.stripe("customer.created", samples.STRIPE_CUSTOMER))
    paid = samples.stripe("invoice.paid", samples.STRIPE_INVOICE)
    assert (await stripe(http, made, paid)).json() == {"success": True, "recorded": 1}
    assert (await stripe(http, made, paid)).json() == {"success": True, "repeated": 1}
    (jenny,) = rows(world, "SELECT * FROM profiles")
    hers = rows(world, f"SELECT type FROM events WHERE subscriber_id = {jenny['subscriber_id']}")
    assert sorted(e["type"] for e in hers) == [kind, "ordered", "purchased", "purchased"]
    late = int((NOW - timedelta(minutes=6)).replace(tzinfo=UTC).timestamp())
    body = json.dumps(paid).encode()
    mac = hmac.new(SECRET.encode(), f"{late}.".encode() + body, sha256).hexdigest()
    answer = await send(http, made, body, {"Stripe-Signature": f"t={late},v1={mac}"})
    assert answer.status_code == 401


async def test_woocommerce_pings_unsigned_and_then_signs(world, http):
    made = await source(http, "woocommerce")
    assert made["secret"].startswith("whsec_")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await send(http, made, b"webhook_id=3", form)).json() == {"success": True}
    body = json.dumps(samples.WOO_ORDER).encode()
    mac = base64.b64encode(hmac.digest(made["secret"].encode(), body, sha256)).decode()
    headers = {
        "X-WC-Webhook-Topic": "order.created",
        "X-WC-Webhook-Source": samples.WOO_SITE,
        "X-WC-Webhook-Signature": mac,
        "X-WC-Webhook-Delivery-ID": "36e520eb",
    }
    assert (await send(http, made, body, headers)).json() == {"success": True, "recorded": 1}
    assert (await send(http, made, b"webhook_id=3&x=1", form)).status_code == 401
    assert events(world)[0]["occurred_at"] == datetime(2026, 2, 22, 19, 28, 2)


PLAN: dict[str, Any] = {
    "items": "$.records[*]",
    "id": "$.id",
    "identities": {"email": "$.mail"},
    "traits": {"city": "$.address.city", "born": {"path": "$.born", "format": "%d.%m.%Y"}},
    "events": [{"type": "ordered", "id": "$.id", "amount": "$.total"}],
}


async def test_a_mapping_is_tried_sent_to_mended_and_replayed(world, http):
    made = await source(http, "mapping", mapping=PLAN)
    url, token = f"/v1/sources/{made['id']}", {"Authorization": f"Bearer {made['secret']}"}
    good = {"id": 1, "mail": "a@x.example", "address": {"city": "Bern"}, "total": 9.5}
    odd = good | {"id": 2, "mail": "b@x.example", "total": "1.234,50"}
    tried = (await http.post(f"{url}/try", json={"samples": [{"records": [good, odd]}]})).json()
    first, second = tried["results"]
    assert first["means"][0]["events"][0]["amount"] == 9.5
    assert second["unfit"]["path"] == "$.total"
    assert rows(world, "SELECT * FROM profiles") == []
    body = json.dumps({"records": [good, odd]}).encode()
    sent = (await send(http, made, body, token)).json()
    assert (sent["recorded"], sent["quarantined"]) == (1, 1)
    mended = PLAN | {
        "events": [{**PLAN["events"][0], "amount": {"path": "$.total", "format": "decimal_comma"}}]
    }
    bad = await http.patch(url, json={"mapping": mended | {"items": "records"}})
    assert (bad.status_code, bad.json()["path"]) == (422, "mapping.items")
    trial = {"samples": [{"records": [odd]}], "mapping": mended}
    tried = (await http.post(f"{url}/try", json=trial)).json()
    assert tried["results"][0]["means"][0]["events"][0]["amount"] == 1234.5
    changed = (await http.patch(url, json={"mapping": mended})).json()
    assert (changed["version"], changed["earlier"][0]["mapping"]) == (2, PLAN)
    world.clock.advance(6)
    replayed = (await http.post("/v1/quarantine/replay", json={"source": made["name"]})).json()
    assert replayed["replayed"] == 1
    amounts = sorted(e["amount"] for e in events(world))
    assert amounts == [9.5, 1234.5]
    assert (await send(http, made, body, token)).json() == {"success": True, "repeated": 2}
    assert (await http.delete(url)).status_code == 204
    assert (await http.get(url)).status_code == 404


async def test_hostile_bodies_get_an_answer_and_change_nothing(world, http, monkeypatch):
    made = await source(http, "mapping", mapping=PLAN)
    token = {"Authorization": f"Bearer {made['secret']}"}
    for body, status in [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"a":NaN}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":"' + b"x" * BODY_BYTES_MAX + b'"}', 413),
        (b'"text"', 200),
        (b'{"records":[{"id":1,"mail":"a@x.example","x":' + b"[" * 40 + b"]" * 40 + b"}]}", 200),
    ]:
        answer = await send(http, made, body, token)
        assert answer.status_code == status, (body[:20], answer.text)
        if status == 200:
            assert answer.json()["quarantined"] == 1
    packed = await send(http, made, b"no gzip", token | {"Content-Encoding": "gzip"})
    assert packed.status_code == 400
    assert rows(world, "SELECT * FROM profiles") == []


async def test_beyond_the_rate_a_source_is_told_to_wait(world):
    from serve_apps.collect import create_collect
    from serve_apps.collect.webhooks import Webhooks

    _, collect = create_collect(world.handles, world.authenticator, "p", world.random)
    app = Webhooks(world.handles, collect.intake)
    app._buckets = Buckets(Rate(per_s=0.1, burst=1), world.clock)
    fields = {"name": "s", "kind": "mapping", "mapping": PLAN}
    fields["secrets"] = [{"secret": SECRET, "until": None}]
    saved = await world.handles.catalog.call("save", "sources", fields, None)
    made = {"webhook_url": f"/v1/sources/{saved['id']}/webhook"}
    async with client(app, "/v1") as http:
        token = {"Authorization": f"Bearer {SECRET}"}
        assert (await send(http, made, b'{"records":[]}', token)).json()["success"]
        answer = await send(http, made, b'{"records":[]}', token)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
