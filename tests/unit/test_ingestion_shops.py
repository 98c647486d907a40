"""What webhooks of shops mean, and how they are proven."""

from __future__ import annotations

import base64
import copy
import hmac
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from manta.events.commands import wrong_properties
from manta.ingestion import mapping, shopify, stripe, woocommerce
from manta.ingestion.normalised import Normalised, Unfit
from manta.ingestion.normalisers import NORMALISERS
from manta.ingestion.signatures import is_signed
from tests.unit import source_samples as samples

NOW = datetime(2026, 3, 1, 12)
SOURCE: dict[str, Any] = {"id": 1, "name": "Shop", "consent_topic": "newsletter"}


def all_of(kind: Any, payload: Any) -> list[Normalised]:
    found = kind.normalise(SOURCE, payload, NOW)
    assert not isinstance(found, Unfit), found
    return found


def unfit(kind: Any, payload: Any) -> Unfit:
    found = kind.normalise(SOURCE, payload, NOW)
    assert isinstance(found, Unfit), found
    return found


def events(found: list[Normalised]) -> dict[str, Any]:
    return {event.id: event for said in found for event in said.events}


def brief(found: list[Normalised]) -> list[tuple[str, Any, Any]]:
    return [(e.type, e.item, e.amount) for said in found for e in said.events]


# -- Shopify ---------------------------------------------------------------------------------------


def test_an_order_of_shopify_is_ordered_and_each_line_purchased():
    found = all_of(shopify, samples.shopify("orders/create", samples.SHOPIFY_ORDER))
    assert brief(found) == [
        ("ordered", "820982911946154508", 398.0),
        ("purchased", "788032119674292922", 169.0),
        ("purchased", "Gift wrap", 18.0),
    ]
    first, second = found
    assert first.identities == {
        "email": "John@example.com",
        "external_id": "shopify:115310627314723954",
        "phone": "+15556251199",
        "anonymous_id": "shopify:order:820982911946154508",
    }
    # The cart's past becomes theirs, too.
    assert second.identities["anonymous_id"] == f"shopify:cart:{samples.SHOPIFY_CART['token']}"
    assert second.events == ()
    assert first.occurred_at == datetime(2026, 2, 28, 18, 15, 47)
    assert (first.traits["first_name"], first.traits["country"]) == ("John", "US")
    assert first.locale == "en-US"
    line = first.events[1].properties or {}
    assert (line["order_id"], line["sku"], line["price"]) == (
        "820982911946154508",
        "IPOD2008PINK",
        199.0,
    )
    assert json.loads(first.original or "")["payload"]["id"] == 820982911946154508
    # No state is told, so the buyer's own box counts, with where and when it was ticked.
    (consent,) = first.consents
    assert (consent.channel, consent.topic, consent.status) == ("email", "newsletter", "subscribed")
    assert consent.proof == {
        "method": "single",
        "form": "Shopify checkout",
        "ip": "216.191.105.146",
        "at": "2026-02-28T18:15:47Z",
    }


def test_whatever_is_told_of_an_order_counts_once():
    first = events(all_of(shopify, samples.shopify("orders/create", samples.SHOPIFY_ORDER)))
    refunded = samples.shopify(
        "orders/updated", samples.SHOPIFY_ORDER, refunds=[samples.SHOPIFY_REFUND]
    )
    later = events(all_of(shopify, refunded))
    (new,) = later.keys() - first.keys()
    assert new == "shopify:refund:890088186047892319"
    assert next(iter(later)) == new  # so that the original is kept with it
    alone = all_of(shopify, samples.shopify("refunds/create", samples.SHOPIFY_REFUND))
    assert events(alone).keys() == {new}
    assert alone[0].identities == {"anonymous_id": "shopify:order:820982911946154508"}
    assert (alone[0].events[0].amount, later[new].amount) == (150.3, 150.3)
    cancelled = samples.shopify(
        "orders/cancelled", samples.SHOPIFY_ORDER, cancelled_at="2026-03-01T09:00:00-05:00"
    )
    assert events(all_of(shopify, cancelled)).keys() - first.keys() == {
        "shopify:order:820982911946154508:cancelled"
    }
    restocked = samples.shopify("refunds/create", samples.SHOPIFY_REFUND, transactions=[])
    assert all_of(shopify, restocked) == []


def test_carts_and_checkouts_come_before_the_person():
    (cart,) = all_of(shopify, samples.shopify("carts/update", samples.SHOPIFY_CART))
    (checkout,) = all_of(shopify, samples.shopify("checkouts/create", samples.SHOPIFY_CHECKOUT))
    assert cart.identities == {"anonymous_id": checkout.identities["anonymous_id"]}
    assert checkout.identities["email"] == "john@example.com"
    assert brief([cart, checkout]) == [
        ("cart_updated", samples.SHOPIFY_CART["token"], 597.0),
        ("checkout_started", samples.SHOPIFY_CHECKOUT["token"], 398.0),
    ]
    properties = checkout.events[0].properties or {}
    assert properties["url"] == samples.SHOPIFY_CHECKOUT["abandoned_checkout_url"]
    assert properties["products"][0]["name"] == "IPod Nano - 8GB"
    assert checkout.consents == ()  # it was not finished


@pytest.mark.parametrize(
    ("state", "level", "expected"),
    [
        ("subscribed", "confirmed_opt_in", ("subscribed", "double")),
        ("subscribed", "single_opt_in", ("subscribed", "single")),
        ("subscribed", None, ("subscribed", "import")),
        ("unsubscribed", "single_opt_in", ("unsubscribed", "single")),
        ("pending", "confirmed_opt_in", None),
        ("not_subscribed", None, None),
        ("redacted", None, None),
    ],
)
def test_a_customers_consent_is_what_its_state_says(state, level, expected):
    consent = {"state": state, "opt_in_level": level, "consent_updated_at": "2026-02-20T10:00:00Z"}
    payload = samples.shopify(
        "customers/update", samples.SHOPIFY_CUSTOMER, email_marketing_consent=consent
    )
    (said,) = all_of(shopify, payload)
    given = [(c.status, (c.proof or {})["method"]) for c in said.consents]
    assert given == ([expected] if expected else [])
    assert said.events == ()
    assert said.traits["shopify_tags"] == ["loyal", "wholesale"]
    assert said.traits["shopify_spent"] == 199.65
    # An order's box is not taken where a state is told, and where none is ticked.
    customer = samples.SHOPIFY_ORDER["customer"] | {"email_marketing_consent": consent}
    order = samples.shopify("orders/create", samples.SHOPIFY_ORDER, customer=customer)
    assert [c.status for c in all_of(shopify, order)[0].consents] == [x[0] for x in given]
    unticked = samples.shopify(
        "orders/create", samples.SHOPIFY_ORDER, buyer_accepts_marketing=False
    )
    assert all_of(shopify, unticked)[0].consents == ()


def test_customers_sign_up_change_their_consent_and_go():
    created = all_of(shopify, samples.shopify("customers/create", samples.SHOPIFY_CUSTOMER))
    assert brief(created) == [("signed_up", None, None)]
    changed = {
        "customer_id": 115310627314723954,
        "email_address": "john@example.com",
        "email_marketing_consent": {"state": "unsubscribed", "opt_in_level": None},
    }
    (said,) = all_of(shopify, samples.shopify("customers_email_marketing_consent/update", changed))
    assert [c.status for c in said.consents] == ["unsubscribed"]
    gone = all_of(shopify, samples.shopify("customers/delete", {"id": 115310627314723954}))
    assert brief(gone) == [("customer_deleted", None, None)]


@pytest.mark.parametrize("topic", ["customers/data_request", "customers/redact", "shop/redact"])
def test_what_is_asked_of_a_person_is_put_before_one(topic):
    payload = samples.shopify(topic, {"shop_id": 1, "shop_domain": samples.SHOP})
    assert shopify.is_privacy_request(payload)
    assert "discard this" in unfit(shopify, payload).problem


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (shopify, samples.shopify("products/update", {"id": 1})),
        (shopify, samples.shopify("orders/create", samples.SHOPIFY_ORDER, test=True)),
        (woocommerce, samples.woocommerce("coupon.created", {"id": 1})),
        (woocommerce, samples.woocommerce("order.deleted", {"id": 1})),
        (stripe, samples.stripe("payment_intent.succeeded", {"id": "pi_1"})),
        (stripe, samples.stripe("customer.source.created", {"id": "card_1"})),
    ],
)
def test_what_means_nothing_here_is_passed_over(kind, payload):
    assert all_of(kind, payload) == []


# -- WooCommerce -----------------------------------------------------------------------------------


def test_an_order_of_woocommerce_counts_when_it_is_paid():
    pending = samples.woocommerce(
        "order.created", samples.WOO_ORDER, status="pending", date_paid_gmt=None
    )
    assert brief(all_of(woocommerce, pending)) == [("checkout_started", "727", 29.35)]
    paid = all_of(woocommerce, samples.woocommerce("order.updated", samples.WOO_ORDER))
    assert brief(paid) == [
        ("ordered", "727", 29.35),
        ("purchased", "93", 6.0),
        ("purchased", "22", 12.0),
    ]
    (said,) = paid
    assert said.identities == {
        "email": "john.doe@example.com",
        "external_id": "woocommerce:shop.example.com:customer:26",
    }
    assert said.occurred_at == datetime(2026, 2, 22, 19, 28, 2)
    assert said.traits["postal_code"] == "94103"
    refunds = [{"id": 9, "reason": "broken", "total": "-5.00"}]
    refunded = samples.woocommerce("order.updated", samples.WOO_ORDER, refunds=refunds)
    new = {
        id: e for id, e in events(all_of(woocommerce, refunded)).items() if id not in events(paid)
    }
    assert [(e.type, e.item, e.amount) for e in new.values()] == [("refunded", "727", 5.0)]
    guest = samples.woocommerce("order.created", samples.WOO_ORDER, customer_id=0)
    assert all_of(woocommerce, guest)[0].identities == {"email": "john.doe@example.com"}
    with_tax = samples.woocommerce("order.created", samples.WOO_ORDER, prices_include_tax=True)
    assert brief(all_of(woocommerce, with_tax))[1] == ("purchased", "93", 6.45)


def test_customers_of_woocommerce():
    created = all_of(woocommerce, samples.woocommerce("customer.created", samples.WOO_CUSTOMER))
    assert brief(created) == [("signed_up", None, None)]
    assert created[0].identities["external_id"] == "woocommerce:shop.example.com:customer:25"
    gone = all_of(woocommerce, samples.woocommerce("customer.deleted", {"id": 25}))
    assert brief(gone) == [("customer_deleted", None, None)]


# -- Stripe ----------------------------------------------------------------------------------------


def test_a_session_and_its_invoice_are_one_order():
    invoice = all_of(stripe, samples.stripe("invoice.paid", samples.STRIPE_INVOICE))
    assert brief(invoice) == [
        ("ordered", "in_1MtHbELkdIwHu7ixl4OzzPMv", 19.99),
        ("purchased", "prod_pro", 14.99),
        ("purchased", "prod_support", 5.0),
    ]
    session = samples.stripe(
        "checkout.session.completed",
        samples.STRIPE_SESSION,
        mode="subscription",
        invoice=samples.STRIPE_INVOICE["id"],
        amount_total=1_999,
    )
    assert events(all_of(stripe, session)).keys() < events(invoice).keys()
    trial = samples.stripe("invoice.paid", samples.STRIPE_INVOICE, amount_paid=0)
    assert brief(all_of(stripe, trial)) == []


def test_a_session_without_invoice_is_an_order_when_it_is_paid():
    session = samples.stripe("checkout.session.completed", samples.STRIPE_SESSION)
    (said,) = all_of(stripe, session)
    order = "pi_1Gszrc2eZvKYlo2CnBo5uK2f"
    assert brief([said]) == [("ordered", order, 250.0), ("purchased", None, 250.0)]
    assert said.identities == {
        "email": "jenny@example.com",
        "external_id": "stripe:cus_9s6XKzkNRiz8i3",
        "anonymous_id": "stripe:cus_9s6XKzkNRiz8i3",
    }
    assert said.occurred_at == datetime(2026, 2, 26, 10)
    assert [c.status for c in said.consents] == ["subscribed"]
    unpaid = samples.stripe(
        "checkout.session.completed", samples.STRIPE_SESSION, payment_status="unpaid", consent=None
    )
    (waits,) = all_of(stripe, unpaid)
    assert (waits.events, waits.consents) == ((), ())
    done = samples.stripe("checkout.session.async_payment_succeeded", samples.STRIPE_SESSION)
    assert events(all_of(stripe, done)).keys() == events([said]).keys()


def test_refunds_of_a_charge_are_what_is_new_in_their_sum():
    one = samples.stripe("charge.refunded", samples.STRIPE_CHARGE, before={"amount_refunded": 0})
    two = samples.stripe(
        "charge.refunded",
        samples.STRIPE_CHARGE,
        before={"amount_refunded": 3_000},
        amount_refunded=10_990,
        refunded=True,
    )
    order = "pi_1Gszrc2eZvKYlo2CnBo5uK2f"
    assert brief(all_of(stripe, one) + all_of(stripe, two)) == [
        ("refunded", order, 30.0),
        ("refunded", order, 79.9),
    ]
    assert all_of(stripe, one)[0].identities == {"anonymous_id": "stripe:cus_9s6XKzkNRiz8i3"}


def test_customers_and_subscriptions_of_stripe():
    (said,) = all_of(stripe, samples.stripe("customer.updated", samples.STRIPE_CUSTOMER))
    assert (said.locale, said.traits, said.events) == ("de-CH", {"name": "Jenny Rosen"}, ())
    kind = "customer.subscription.deleted"
    (ended,) = all_of(stripe, samples.stripe(kind, samples.STRIPE_SUBSCRIPTION, status="canceled"))
    (event,) = ended.events
    assert (event.type, event.item) == (kind, "sub_1MowQVLkdIwHu7ixeRlqHVzs")
    assert (event.properties or {})["status"] == "canceled"
    # Known by the number alone: they become whoever has it as soon as that is told.
    assert ended.identities == {"anonymous_id": said.identities["anonymous_id"]}


@pytest.mark.parametrize(
    ("units", "currency", "expected"),
    [
        (1_099, "usd", 10.99),
        (500, "jpy", 500.0),
        (500, "KRW", 500.0),
        (5_120, "kwd", 5.12),
        (500, "isk", 5.0),
        (500, "ugx", 5.0),
        (-30, "chf", -0.3),
        (10**15, None, 10.0**13),
        (None, "usd", None),
    ],
)
def test_minor_units(units, currency, expected):
    assert stripe.minor(units, currency, "amount") == expected


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "path"),
    [
        (shopify, {"payload": {}}, "topic"),
        (shopify, {"topic": "orders/create", "payload": []}, "payload"),
        (shopify, samples.shopify("orders/create", {}), "payload.id"),
        (shopify, samples.shopify("orders/create", {"id": 1.5}), "payload.id"),
        (shopify, samples.shopify("orders/paid", {"id": 1}, total_price="9,90"), None),
        (shopify, samples.shopify("orders/paid", {"id": 1}, line_items={"a": 1}), None),
        (shopify, samples.shopify("orders/paid", {"id": 1}, line_items=[{}, 3]), None),
        (shopify, samples.shopify("orders/paid", {"id": 1}, email="nobody"), "payload.email"),
        (shopify, samples.shopify("orders/paid", {"id": 1}, created_at=17), "payload.created_at"),
        (shopify, samples.shopify("orders/paid", {"id": 1}, line_items=[{}] * 501), None),
        (shopify, samples.shopify("customers/create", {"id": True}), "payload.id"),
        (woocommerce, samples.woocommerce("order.created", {"id": 1}, total="Infinity"), None),
        (woocommerce, samples.woocommerce("order.created", {"id": 1}, billing=3), None),
        (stripe, {"type": "invoice.paid"}, "id"),
        (stripe, {"id": "evt_1", "type": "invoice.paid", "data": 1}, "data"),
        (stripe, samples.stripe("invoice.paid", {}), "data.object.id"),
        (stripe, samples.stripe("invoice.paid", samples.STRIPE_INVOICE, amount_paid="x"), None),
        (stripe, samples.stripe("customer.created", samples.STRIPE_CUSTOMER, email="a@"), None),
        (stripe, [1], ""),
    ],
)
def test_what_fits_no_shape_says_where(kind, payload, path):
    found = unfit(kind, payload)
    assert found.problem
    if path is not None:
        assert found.path == path


def test_depth_and_size_are_bounded():
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    assert "deep" in unfit(shopify, samples.shopify("orders/paid", {"id": 1}, x=deep)).problem
    large = samples.shopify("orders/paid", samples.SHOPIFY_ORDER, note="x" * 600_000)
    assert "bytes" in unfit(shopify, large).problem
    assert unfit(shopify, samples.shopify("orders/paid", {"id": 1}, x=10**400)).path == "payload.x"


SAMPLES: list[tuple[str, dict[str, Any]]] = [
    (
        "shopify",
        samples.shopify(
            "orders/updated",
            samples.SHOPIFY_ORDER,
            cancelled_at="2026-03-01T09:00:00Z",
            refunds=[samples.SHOPIFY_REFUND],
        ),
    ),
    ("shopify", samples.shopify("refunds/create", samples.SHOPIFY_REFUND)),
    ("shopify", samples.shopify("checkouts/update", samples.SHOPIFY_CHECKOUT)),
    ("shopify", samples.shopify("carts/create", samples.SHOPIFY_CART)),
    ("shopify", samples.shopify("customers/create", samples.SHOPIFY_CUSTOMER)),
    ("woocommerce", samples.woocommerce("order.updated", samples.WOO_ORDER)),
    ("woocommerce", samples.woocommerce("customer.updated", samples.WOO_CUSTOMER)),
    ("stripe", samples.stripe("checkout.session.completed", samples.STRIPE_SESSION)),
    ("stripe", samples.stripe("invoice.paid", samples.STRIPE_INVOICE)),
    ("stripe", samples.stripe("charge.refunded", samples.STRIPE_CHARGE, {"amount_refunded": 1})),
    ("stripe", samples.stripe("customer.created", samples.STRIPE_CUSTOMER)),
    ("stripe", samples.stripe("customer.subscription.updated", samples.STRIPE_SUBSCRIPTION)),
]
PLAN = {
    "identities": {"email": "$.payload.email", "external_id": "$.payload.id"},
    "id": "$.id",
    "traits": {"a": "$.payload.first_name", "b": {"path": "$.created", "format": "unix_millis"}},
    "events": [
        {"type": "$.type", "amount": {"path": "$.payload.total", "format": "decimal_comma"}},
        {"type": "line", "each": "$.payload.line_items[*]", "item": "@.sku", "amount": "@.price"},
    ],
}
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=12)
    | st.sampled_from(["-1", "1e5", "NaN", "2026-13-01", "a@b.example", "\x00", 10**30, "9" * 400])
)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "data", "email", "amount", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [at] if at else []
    for key, each in inner:
        found += places(each, (*at, key)) if isinstance(each, dict | list) else [(*at, key)]
    return found


PLACES = [places(sample) for _, sample in SAMPLES]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_payload_however_broken_raises_and_what_fits_can_be_stored(data):
    """One or two places of a real payload are replaced by anything, or taken away."""
    n = data.draw(st.integers(0, len(SAMPLES) - 1))
    kind, sample = SAMPLES[n]
    payload = copy.deepcopy(sample)
    for place in data.draw(st.lists(st.sampled_from(PLACES[n]), min_size=1, max_size=2)):
        holder: Any = payload
        for key in place[:-1]:
            fits = isinstance(holder, dict | list) and (
                key in holder
                if isinstance(holder, dict)
                else isinstance(key, int) and key < len(holder)
            )
            holder = holder[key] if fits else None
        if isinstance(holder, dict) and data.draw(st.booleans()):
            holder.pop(place[-1], None)
        elif isinstance(holder, dict) or (
            isinstance(holder, list) and isinstance(place[-1], int) and place[-1] < len(holder)
        ):
            holder[place[-1]] = data.draw(junk)
    for name in (kind, "mapping"):
        source = SOURCE | {"mapping": PLAN}
        found = NORMALISERS[name](source, payload, NOW)
        if isinstance(found, Unfit):
            assert found.problem
            continue
        for said in found:
            assert said.identities
            assert all(isinstance(v, str) and v for v in said.identities.values())
            for event in said.events:
                assert wrong_properties(to_json(event.properties or {}).decode()) is None
                assert event.amount is None or abs(event.amount) < 1e300


@given(junk)
def test_anything_at_all_is_unfit_or_nothing(payload):
    for kind, normaliser in NORMALISERS.items():
        found = normaliser(SOURCE | {"mapping": PLAN, "kind": kind}, payload, NOW)
        assert isinstance(found, Unfit) or found == [] or found
    mapping.bodies(SOURCE | {"mapping": PLAN | {"items": "$.data[*].x[*]"}}, payload)


# -- signatures ------------------------------------------------------------------------------------

BODY = b'{"id":1}'


def b64(secret: str, body: bytes) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), body, sha256)).decode()


def test_a_signature_is_of_the_body_as_it_came():
    # printf '{"id":1}' | openssl dgst -sha256 -hmac hush-hush -binary | base64
    known = "xP02f1wlCxM/KJVfZiF3TMBIcVH2R36hhxiEfN2oo00="
    signature = b64("hush-hush", BODY)
    for kind, header in [
        ("shopify", "x-shopify-hmac-sha256"),
        ("woocommerce", "x-wc-webhook-signature"),
    ]:
        assert is_signed(kind, {header: signature}, BODY, ["hush-hush"], NOW)
        assert is_signed(kind, {header: signature}, BODY, ["new", "hush-hush"], NOW)
        for headers, body, secrets in [
            ({header: signature}, BODY + b" ", ["hush-hush"]),
            ({header: signature}, BODY, ["other"]),
            ({header: signature}, BODY, []),
            ({header: ""}, BODY, ["hush-hush"]),
            ({header: "é" * 44}, BODY, ["hush-hush"]),
            ({}, BODY, ["hush-hush"]),
        ]:
            assert not is_signed(kind, headers, body, secrets, NOW)
    assert not is_signed("segment", {}, BODY, ["x"], NOW)
    assert known == signature


def test_stripes_signature_has_a_time_and_may_be_one_of_several():
    secret = "whsec_test"
    at = int(NOW.replace(tzinfo=UTC).timestamp())
    good = hmac.new(secret.encode(), f"{at}.".encode() + BODY, sha256).hexdigest()

    def check(header: str, minutes: float = 0) -> bool:
        headers = {"stripe-signature": header}
        return is_signed("stripe", headers, BODY, [secret], NOW + timedelta(minutes=minutes))

    assert check(f"t={at},v1={good},v0=abc")
    assert check(f"t={at},v1={'0' * 64},v1={good}")
    assert check(f"t={at},v1={good}", minutes=4.9)
    assert not check(f"t={at},v1={good}", minutes=5.1)
    assert not check(f"t={at},v1={good}", minutes=-5.1)
    assert not check(f"t={at},v0={good}")
    assert not check(f"t={at + 1},v1={good}")
    assert not check(f"t={at},t={at},v1={good}")
    assert not check(f"v1={good}")
    assert not check("t=" + "9" * 30 + f",v1={good}")


def test_a_mapping_is_proven_by_standard_webhooks_or_by_its_secret():
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    at = int(NOW.replace(tzinfo=UTC).timestamp())
    mac = base64.b64encode(hmac.digest(b"k" * 32, f"m1.{at}.".encode() + BODY, sha256)).decode()
    signed = {"webhook-id": "m1", "webhook-timestamp": str(at), "webhook-signature": f"v1,{mac}"}
    basic = base64.b64encode(f"crm:{secret}".encode()).decode()
    for headers in (
        signed,
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"Basic {basic}"},
    ):
        assert is_signed("mapping", headers, BODY, [secret], NOW)
        assert not is_signed("mapping", headers, BODY, ["whsec_" + "A" * 44], NOW)
    for change in (
        {"webhook-signature": "v1,"},
        {"webhook-id": "m2"},
        {"webhook-timestamp": str(at - 400)},
        {"webhook-signature": f"v2,{mac}", "authorization": f"Bearer {secret}"},
    ):
        assert not is_signed("mapping", signed | change, BODY, [secret], NOW)
