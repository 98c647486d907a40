"""What the webhooks of WooCommerce mean.

A payload is ``{"topic", "id", "shop", "payload"}``: topic, delivery id and site of the headers with
the document that came. Numbers of orders and customers are the site's own, so names carry its host.

- An order counts when it is paid or waits for a transfer (``processing``, ``completed``,
  ``on-hold``, ``refunded``, or any status with a date of payment), whatever topic tells of it
  first; ``pending`` and ``checkout-draft`` are a checkout that was started. ``ordered`` and its
  ``purchased`` are named by order and line, so each counts once. ``refunded`` is named by the
  refund in the order's own list, ``order_cancelled`` by the order.
- ``signed_up`` when a customer is created, ``customer_deleted`` when one is deleted.
- WooCommerce has no consent, so none is given.

Coupons, products and deleted orders (which name nobody) mean nothing, nor does any other topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from manta.ids import encode_id, hash64
from manta.ingestion.normalised import Normalised, NormalisedEvent, Unfit, address_of, text_of
from manta.ingestion.shops import (
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

KIND = "woocommerce"
_COUNTS = ("processing", "completed", "on-hold", "refunded")
_STARTED = ("pending", "checkout-draft")


def normalise(source: Source, payload: Any, received_at: datetime) -> list[Normalised] | Unfit:
    return normalised(payload, _said)


def _said(payload: Payload) -> Said | None:
    topic, document = enveloped(payload)
    shop = f"{KIND}:{_host(payload)}"
    id = text_of(payload.get("id"), "id", 100)
    if id is None:
        id = encode_id(hash64(topic, repr(sorted(document.items()))))
    id = f"{KIND}:{topic[:60]}:{id}"
    if topic in ("order.created", "order.updated", "order.restored"):
        return _order(id, shop, document)
    if topic in ("customer.created", "customer.updated"):
        return _customer(id, shop, topic, document)
    if topic == "customer.deleted":
        name = f"{shop}:customer:{named(document, 'id', 'payload')}"
        event = NormalisedEvent("customer_deleted", f"{name}:deleted", None, None, None, _WITH)
        return Said(id, {EXTERNAL_ID: name}, (), [event])
    return None


_WITH: Mapping[str, Any] = {"with": KIND}


def _host(payload: Payload) -> str:
    """The host of the site, of which all names are."""
    site = text_of(payload.get("shop"), "shop", 300) or ""
    try:
        return (urlsplit(site).hostname or "")[:100]
    except ValueError:
        return ""


def _identities(email: Any, path: str, customer: str | None, phone: Any) -> dict[str, str | None]:
    address = address_of(email, path)
    number = None if address else phone_of(phone)
    return {EMAIL: address, EXTERNAL_ID: customer, PHONE: number}


def _order(id: str, shop: str, order: Payload) -> Said:
    order_id = named(order, "id", "payload")
    name = f"{shop}:order:{order_id}"
    billing = object_in(order, "billing", "payload")
    customer_id = whole(order.get("customer_id"), "payload.customer_id")
    customer = f"{shop}:customer:{customer_id}" if customer_id else None  # 0: a guest
    at = _time(order, "date_created_gmt", "date_created")
    total = amount_of(money(order.get("total"), "payload.total"))
    status = plain(order.get("status"), 40)
    paid_at = _time(order, "date_paid_gmt", "date_paid")
    of_lines = {"order_id": order_id, "currency": plain(order.get("currency"), 3)}
    properties = {
        **of_lines,
        "order_name": plain(order.get("number")),
        "status": status,
        "discount": amount_of(money(order.get("discount_total"), "payload.discount_total")),
        "coupon": _coupon(order),
        "payment_method": plain(order.get("payment_method")),
    }
    # What happened last comes first: the original is kept with the first event if that is new.
    events = _refunds(order, shop, of_lines)[::-1]
    if status == "cancelled":
        cancelled = _time(order, "date_modified_gmt", "date_modified")
        event_id = f"{name}:cancelled"
        events.append(
            NormalisedEvent("order_cancelled", event_id, cancelled, order_id, total, of_lines)
        )
    if status in _COUNTS or paid_at is not None:
        events += order_events(name, at, total, properties, _lines(order), of_lines)
    elif status in _STARTED:
        told = telling({**of_lines, "checkout_id": order_id})
        event_id = f"{name}:checkout"
        events.append(NormalisedEvent("checkout_started", event_id, at, order_id, total, told))
    return Said(
        id,
        _identities(billing.get("email"), "payload.billing.email", customer, billing.get("phone")),
        () if customer or billing.get("email") else [name],
        events,
        {**_names(billing), **address_traits(billing)},
        at=at,
    )


def _lines(order: Payload) -> list[Line]:
    """Each with what was paid for it: with tax where the site's prices are."""
    with_tax = order.get("prices_include_tax") is True
    lines = []
    for n, line in enumerate(listed(order.get("line_items"), "payload.line_items")):
        path = f"payload.line_items[{n}]"
        amount = money(line.get("total"), f"{path}.total")
        tax = money(line.get("total_tax"), f"{path}.total_tax")
        if amount is not None and with_tax:
            amount += tax or Decimal(0)
        variation = whole(line.get("variation_id"), f"{path}.variation_id")
        properties = {
            "name": plain(line.get("name")),
            "sku": plain(line.get("sku")),
            "variant_id": str(variation) if variation else None,
            "quantity": whole(line.get("quantity"), f"{path}.quantity"),
        }
        id = text_of(line.get("id"), f"{path}.id") or str(n + 1)
        item = first_item(line.get("product_id") or None, line.get("sku"), line.get("name"))
        lines.append(Line(id, item, amount_of(amount), properties))
    return lines


def _refunds(order: Payload, shop: str, of_lines: Mapping[str, Any]) -> list[NormalisedEvent]:
    """The list says no time: it is that of the change by which it was told."""
    at = _time(order, "date_modified_gmt", "date_modified")
    events = []
    for n, refund in enumerate(listed(order.get("refunds"), "payload.refunds")):
        path = f"payload.refunds[{n}]"
        refund_id = named(refund, "id", path)
        total = money(refund.get("total"), f"{path}.total")
        told = telling({**of_lines, "refund_id": refund_id, "reason": plain(refund.get("reason"))})
        events.append(
            NormalisedEvent(
                "refunded",
                f"{shop}:refund:{refund_id}",
                at,
                of_lines["order_id"],
                None if total is None else abs(float(total)),  # the list has it below zero
                told,
            )
        )
    return events


def _coupon(order: Payload) -> str | None:
    lines = listed(order.get("coupon_lines"), "payload.coupon_lines")
    return plain(lines[0].get("code")) if lines else None


def _customer(id: str, shop: str, topic: str, customer: Payload) -> Said:
    name = f"{shop}:customer:{named(customer, 'id', 'payload')}"
    billing = object_in(customer, "billing", "payload")
    at = _time(customer, "date_modified_gmt", "date_modified")
    events = []
    if topic == "customer.created":
        at = _time(customer, "date_created_gmt", "date_created")
        events.append(NormalisedEvent("signed_up", f"{name}:signed_up", at, None, None, _WITH))
    who = _names(customer)
    return Said(
        id,
        _identities(customer.get("email"), "payload.email", name, billing.get("phone")),
        (),
        events,
        {**(who if any(who.values()) else _names(billing)), **address_traits(billing)},
        at=at,
    )


def _names(holder: Payload) -> dict[str, Any]:
    return {
        "first_name": plain(holder.get("first_name")),
        "last_name": plain(holder.get("last_name")),
    }


def _time(document: Payload, gmt: str, local: str) -> datetime | None:
    """The instant in UTC; older sites give that of their own zone alone, which is off by hours and
    better than that of receipt."""
    name = gmt if document.get(gmt) else local
    return dated(document.get(name), f"payload.{name}")
