"""What the webhooks of Shopify mean.

A payload is ``{"topic", "id", "shop", "at", "payload"}``: the topic, event id, shop and time of the
headers with the document that came, so that it can be read again from quarantine.

- An order counts when it is placed, whatever topic tells of it first (``orders/create``, ``paid``,
  ``updated``, …): ``ordered`` and its ``purchased`` are named by order and line, so each counts
  once. ``cancelled_at`` adds ``order_cancelled``. Test orders mean nothing.
- ``refunded`` is named by the refund, from ``refunds/create`` or from the order's own list.
- ``checkout_started`` once for a checkout; ``cart_updated`` for each state of a cart. Both come
  before anybody is known: cart and order are references (``manta.ingestion.shops``).
- ``signed_up`` when a customer has an account. Of a deleted customer ``customer_deleted`` is told;
  whether the person is to be forgotten is not the shop's customer list to say.
- Consent: ``subscribed`` is an opt-in with its proof, ``unsubscribed`` an opt-out; every other
  state says nothing. ``buyer_accepts_marketing`` of an order is one where no state says otherwise;
  that of a checkout that was not finished is not.
- ``customers/data_request``, ``customers/redact`` and ``shop/redact`` are for a person to do, and
  therefore unfit here: they wait in quarantine.

Any other topic means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from manta.ids import encode_id, hash64
from manta.ingestion.normalised import (
    GivenConsent,
    Misfit,
    Normalised,
    NormalisedEvent,
    Unfit,
    address_of,
    text_of,
)
from manta.ingestion.shops import (
    CONSENT_TOPIC,
    PRODUCTS_SHOWN,
    Line,
    Payload,
    Said,
    Source,
    address_traits,
    amount_of,
    dated,
    enveloped,
    first_item,
    listed,
    money,
    named,
    normalised,
    object_in,
    order_events,
    phone_of,
    plain,
    telling,
    whole,
)
from manta.people.identities import EMAIL, EXTERNAL_ID, PHONE

KIND = "shopify"
PRIVACY_TOPICS: Mapping[str, str] = {
    "customers/data_request": "asks for all data of a person: export it (docs/privacy.md), send it"
    " to the shop's owner, then discard this",
    "customers/redact": "asks for the erasure of a person: erase them (docs/privacy.md), then"
    " discard this",
    "shop/redact": "asks for the erasure of all that came from the shop, which has left: decide"
    " whom to erase (docs/privacy.md), then discard this",
}
_METHODS = {"single_opt_in": "single", "confirmed_opt_in": "double"}


def normalise(source: Source, payload: Any, received_at: datetime) -> list[Normalised] | Unfit:
    return normalised(payload, lambda checked: _said(source, checked))


def is_privacy_request(payload: Any) -> bool:
    return isinstance(payload, dict) and payload.get("topic") in PRIVACY_TOPICS


def _said(source: Source, payload: Payload) -> Said | None:
    topic, document = enveloped(payload)
    if topic in PRIVACY_TOPICS:
        raise Misfit("topic", PRIVACY_TOPICS[topic])
    id = _message_id(topic, payload, document)
    if topic == "customers_email_marketing_consent/update":
        topic = "customers/email_marketing_consent_update"
    if topic in ("customers/create", "customers/update", "customers/enable", "customers/disable"):
        return _customer(source, id, topic, document, payload)
    if topic == "customers/delete":
        return _deleted(id, document, payload)
    if topic == "customers/email_marketing_consent_update":
        return _consent_changed(source, id, document)
    if topic in ("carts/create", "carts/update"):
        return _cart(id, document)
    if topic in ("checkouts/create", "checkouts/update"):
        return _checkout(id, document)
    if topic == "refunds/create":
        order_id = named(document, "order_id", "payload")
        refund = _refund(document, "payload", order_id)
        events = [] if refund is None else [refund]
        return Said(id, {}, [_order_name(order_id)], events) if events else None
    if topic.startswith("orders/") and topic != "orders/delete":
        return _order(source, id, document)
    return None


def _message_id(topic: str, payload: Payload, document: Payload) -> str:
    """Shopify's name of the event; without it that of the content, so that a retry is the same."""
    event_id = text_of(payload.get("id"), "id", 100)
    if event_id is None:
        event_id = encode_id(hash64(topic, repr(sorted(document.items()))))
    return f"{KIND}:{topic[:60]}:{event_id}"


# -- orders ----------------------------------------------------------------------------------------


def _order(source: Source, id: str, order: Payload) -> Said | None:
    if order.get("test") is True:
        return None
    order_id = named(order, "id", "payload")
    name, at = _order_name(order_id), dated(order.get("created_at"), "payload.created_at")
    currency = plain(order.get("currency"), 3)
    total = amount_of(money(order.get("total_price"), "payload.total_price"))
    of_lines = {"order_id": order_id, "currency": currency}
    properties = {
        **of_lines,
        "order_name": plain(order.get("name")),
        "financial_status": plain(order.get("financial_status")),
        "subtotal": amount_of(money(order.get("subtotal_price"), "payload.subtotal_price")),
        "discount": amount_of(money(order.get("total_discounts"), "payload.total_discounts")),
        "coupon": _coupon(order),
        "cart_id": plain(order.get("cart_token")),
        "checkout_id": plain(order.get("checkout_token")),
        "channel": plain(order.get("source_name")),
    }
    lines = [
        _line(line, f"payload.line_items[{n}]", n)
        for n, line in enumerate(listed(order.get("line_items"), "payload.line_items"))
    ]
    refunds = [
        _refund(refund, f"payload.refunds[{n}]", order_id)
        for n, refund in enumerate(listed(order.get("refunds"), "payload.refunds"))
    ]
    # What happened last comes first: the original is kept with the first event if that is new.
    events = [event for event in reversed(refunds) if event is not None]
    cancelled_at = dated(order.get("cancelled_at"), "payload.cancelled_at")
    if cancelled_at is not None:
        why = telling({**of_lines, "reason": plain(order.get("cancel_reason"))})
        cancelled = ("order_cancelled", f"{name}:cancelled", cancelled_at, order_id, total, why)
        events.append(NormalisedEvent(*cancelled))
    events += order_events(name, at, total, properties, lines, of_lines)
    customer = object_in(order, "customer", "payload")
    address = object_in(customer, "default_address", "payload.customer") or object_in(
        order, "billing_address", "payload"
    )
    return Said(
        id,
        _identities(order, customer),
        [name, *_visit(order)],
        events,
        {**_names(customer or address), **address_traits(address)},
        _consents_of_order(source, order, customer),
        plain(order.get("customer_locale"), 35),
        at,
    )


def _order_name(order_id: str) -> str:
    return f"{KIND}:order:{order_id}"


def _line(line: Payload, path: str, n: int) -> Line:
    price = money(line.get("price"), f"{path}.price")
    quantity = whole(line.get("quantity"), f"{path}.quantity")
    amount = None if price is None else price * (1 if quantity is None else quantity)
    if amount is not None:
        amount -= _discount(line, path)
    properties = {
        **_product(line, path),
        "vendor": plain(line.get("vendor")),
        "price": amount_of(price),
        "quantity": quantity,
    }
    id = text_of(line.get("id"), f"{path}.id") or str(n + 1)
    item = first_item(line.get("product_id"), line.get("sku"), line.get("title"))
    return Line(id, item, amount_of(amount), properties)


def _discount(line: Payload, path: str) -> Decimal:
    """What the order's discounts take off this line; where they are not told, its own."""
    given = listed(line.get("discount_allocations"), f"{path}.discount_allocations")
    if given:
        sums = [
            money(each.get("amount"), f"{path}.discount_allocations[{n}].amount")
            for n, each in enumerate(given)
        ]
        return sum((each for each in sums if each is not None), Decimal(0))
    return money(line.get("total_discount"), f"{path}.total_discount") or Decimal(0)


def _product(line: Payload, path: str) -> dict[str, Any]:
    return {
        "name": plain(line.get("title")),
        "variant": plain(line.get("variant_title")),
        "sku": plain(line.get("sku")),
        "variant_id": text_of(line.get("variant_id"), f"{path}.variant_id"),
    }


def _coupon(order: Payload) -> str | None:
    codes = listed(order.get("discount_codes"), "payload.discount_codes")
    return plain(codes[0].get("code")) if codes else None


def _refund(refund: Payload, path: str, order_id: str) -> NormalisedEvent | None:
    """The money that went back: the successful transactions of the refund. Goods can come back
    without any."""
    id = named(refund, "id", path)
    total = Decimal(0)
    currency = None
    transactions = listed(refund.get("transactions"), f"{path}.transactions")
    for n, each in enumerate(transactions):
        if each.get("kind") in ("refund", "void") and each.get("status") == "success":
            total += money(each.get("amount"), f"{path}.transactions[{n}].amount") or Decimal(0)
            currency = plain(each.get("currency"), 3)
    if not total:
        return None
    at = dated(refund.get("created_at"), f"{path}.created_at")
    properties = telling(
        {"order_id": order_id, "refund_id": id, "currency": currency}
        | {"reason": plain(refund.get("note"))}
    )
    return NormalisedEvent(
        "refunded", f"{KIND}:refund:{id}", at, order_id, float(total), properties
    )


# -- carts and checkouts ---------------------------------------------------------------------------


def _visit(document: Payload) -> list[str]:
    """The reference of a visit to the shop: its cart, else its checkout."""
    cart = text_of(document.get("cart_token"), "payload.cart_token", 200)
    if cart is not None:
        return [f"{KIND}:cart:{cart}"]
    checkout = text_of(document.get("checkout_token"), "payload.checkout_token", 200)
    return [] if checkout is None else [f"{KIND}:checkout:{checkout}"]


def _checkout(id: str, checkout: Payload) -> Said:
    token = named(checkout, "token", "payload")
    at = dated(checkout.get("created_at"), "payload.created_at")
    total = amount_of(money(checkout.get("total_price"), "payload.total_price"))
    properties = {
        "checkout_id": token,
        "cart_id": plain(checkout.get("cart_token")),
        "currency": plain(checkout.get("currency"), 3),
        "url": plain(checkout.get("abandoned_checkout_url"), 2_000),
        "products": _shown(checkout),
    }
    customer = object_in(checkout, "customer", "payload")
    # Long enough for its address, which is longer than texts for people are.
    url = properties.pop("url")
    told = telling(properties) | ({"url": url} if url else {})
    return Said(
        id,
        _identities(checkout, customer),
        _visit({**checkout, "checkout_token": token}),
        [NormalisedEvent("checkout_started", f"{KIND}:checkout:{token}", at, token, total, told)],
        _names(customer),
        (),
        plain(checkout.get("customer_locale"), 35),
        at,
    )


def _cart(id: str, cart: Payload) -> Said:
    token = named(cart, "token" if cart.get("token") else "id", "payload")
    at = dated(cart.get("updated_at") or cart.get("created_at"), "payload.updated_at")
    sums = [
        _line(line, f"payload.line_items[{n}]", n).amount
        for n, line in enumerate(listed(cart.get("line_items"), "payload.line_items"))
    ]
    total = sum(Decimal(repr(each)) for each in sums if each is not None)
    told = telling({"cart_id": token, "items": len(sums), "products": _shown(cart)})
    name = f"{KIND}:cart:{token}"
    version = id if at is None else at.isoformat()
    event = NormalisedEvent("cart_updated", f"{name}:{version}", at, token, float(total), told)
    return Said(id, {}, [name], [event], at=at)


def _shown(document: Payload) -> list[dict[str, Any]]:
    """The products of a cart as a mail may show them."""
    shown = []
    for n, line in enumerate(listed(document.get("line_items"), "payload.line_items")):
        read = _line(line, f"payload.line_items[{n}]", n)
        shown.append(telling({"product_id": read.item, **read.properties}))
    return shown[:PRODUCTS_SHOWN]


# -- customers -------------------------------------------------------------------------------------


def _identities(document: Payload, customer: Payload) -> dict[str, str | None]:
    """The customer's own address comes before the one of the order."""
    path = "payload.customer.email" if customer.get("email") else "payload.email"
    email = customer.get("email") or document.get("email") or document.get("contact_email")
    customer_id = text_of(customer.get("id"), "payload.customer.id")
    return {
        EMAIL: address_of(email, path),
        EXTERNAL_ID: customer_id and f"{KIND}:{customer_id}",
        PHONE: phone_of(customer.get("phone")),
    }


def _names(customer: Payload) -> dict[str, Any]:
    return {
        "first_name": plain(customer.get("first_name")),
        "last_name": plain(customer.get("last_name")),
    }


def _customer(source: Source, id: str, topic: str, customer: Payload, payload: Payload) -> Said:
    customer_id = named(customer, "id", "payload")
    created = topic == "customers/create"
    when = "created_at" if created else "updated_at"
    at = dated(customer.get(when), f"payload.{when}")
    tags = plain(customer.get("tags"), 10_000)
    spent = money(customer.get("total_spent"), "payload.total_spent")
    traits = {
        **_names(customer),
        **address_traits(object_in(customer, "default_address", "payload")),
        "shopify_tags": [tag.strip() for tag in tags.split(",") if tag.strip()] if tags else None,
        "shopify_orders": whole(customer.get("orders_count"), "payload.orders_count"),
        "shopify_spent": amount_of(spent),
    }
    identities = {
        EMAIL: address_of(customer.get("email"), "payload.email"),
        EXTERNAL_ID: f"{KIND}:{customer_id}",
        PHONE: phone_of(customer.get("phone")),
    }
    events = []
    if topic == "customers/enable" or (created and customer.get("state") == "enabled"):
        event_id = f"{KIND}:customer:{customer_id}:signed_up"
        events.append(NormalisedEvent("signed_up", event_id, at, None, None, {"with": KIND}))
    consents = _consents(source, customer, "payload", payload.get("shop"))
    return Said(id, identities, (), events, traits, consents, None, at)


def _deleted(id: str, customer: Payload, payload: Payload) -> Said:
    customer_id = named(customer, "id", "payload")
    at = dated(payload.get("at"), "at")
    event_id = f"{KIND}:customer:{customer_id}:deleted"
    event = NormalisedEvent("customer_deleted", event_id, at, None, None, {"with": KIND})
    return Said(id, {EXTERNAL_ID: f"{KIND}:{customer_id}"}, (), [event], at=at)


def _consent_changed(source: Source, id: str, document: Payload) -> Said:
    customer_id = text_of(document.get("customer_id"), "payload.customer_id")
    identities = {
        EMAIL: address_of(document.get("email_address"), "payload.email_address"),
        EXTERNAL_ID: customer_id and f"{KIND}:{customer_id}",
    }
    return Said(id, identities, consents=_consents(source, document, "payload", None))


# -- consent ---------------------------------------------------------------------------------------


def _consents(source: Source, holder: Payload, path: str, shop: Any) -> Sequence[GivenConsent]:
    """What the states of e-mail and text messages say."""
    found = []
    for channel in ("email", "sms"):
        name = f"{channel}_marketing_consent"
        given = object_in(holder, name, path)
        state = given.get("state")
        if state not in ("subscribed", "unsubscribed"):
            continue
        at = dated(given.get("consent_updated_at"), f"{path}.{name}.consent_updated_at")
        level = given.get("opt_in_level")
        proof = {
            "method": _METHODS.get(level, "import") if isinstance(level, str) else "import",
            "form": f"Shopify {plain(shop, 200) or ''}".strip(),
            "at": at.isoformat() + "Z" if at else None,
        }
        topic = source.get("consent_topic") or CONSENT_TOPIC
        found.append(GivenConsent(channel, topic, state, telling(proof), at))
    return found


def _consents_of_order(source: Source, order: Payload, customer: Payload) -> Sequence[GivenConsent]:
    said = _consents(source, customer, "payload.customer", None)
    has_state = object_in(customer, "email_marketing_consent", "payload.customer").get("state")
    if has_state or order.get("buyer_accepts_marketing") is not True:
        return said
    at = dated(order.get("created_at"), "payload.created_at")
    proof = {
        "method": "single",
        "form": "Shopify checkout",
        "ip": plain(order.get("browser_ip"), 60),
        "at": at.isoformat() + "Z" if at else None,
    }
    topic = source.get("consent_topic") or CONSENT_TOPIC
    return [*said, GivenConsent("email", topic, "subscribed", telling(proof), at)]
