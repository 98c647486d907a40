"""What the events of Stripe mean. A payload is the event as it was sent.

- ``checkout.session.completed`` (and ``…async_payment_succeeded``) is an order when it is paid,
  ``invoice.paid`` (and ``…payment_succeeded``) when there was anything to pay. A session that made
  an invoice is that invoice's order, so both together are one; its lines are told by the invoice.
  Without invoice a session has no lines, and becomes one ``purchased`` without item.
- ``charge.refunded`` tells the sum of all refunds of a charge; ``refunded`` is what is new in it.
- ``customer.created`` and ``updated`` say who a customer is; of one that is deleted
  ``customer_deleted`` is told. Subscriptions keep the names of their events
  (``customer.subscription.updated`` …), with ``status`` among the properties: Stripe sends events
  in no order, so it is no trait of the person.
- The customer's number is a reference (``manta.ingestion.shops``): subscriptions name nothing else.
- ``consent.promotions`` of a session is an opt-in where it says ``opt_in``.

Any other type means nothing. Amounts come in the currency's minor unit: hundredths, but for the
currencies without and those of thousandths below. ISK and UGX count as hundredths although they
have none (Stripe's own rule, for the sake of old integrations).
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from manta.ingestion.normalised import (
    GivenConsent,
    Normalised,
    NormalisedEvent,
    Unfit,
    address_of,
    unix_instant,
)
from manta.ingestion.shops import (
    CONSENT_TOPIC,
    Line,
    Payload,
    Said,
    Source,
    address_traits,
    first_item,
    listed,
    named,
    normalised,
    object_in,
    order_events,
    plain,
    telling,
    whole,
)
from manta.people.identities import EMAIL, EXTERNAL_ID

KIND = "stripe"
WITHOUT_MINOR = (
    "BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF",
    "XOF", "XPF",
)  # fmt: skip
THOUSANDTHS = ("BHD", "JOD", "KWD", "OMR", "TND")
_OBJECT = "data.object"
_SESSIONS = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
_INVOICES = ("invoice.paid", "invoice.payment_succeeded")


def normalise(source: Source, payload: Any, received_at: datetime) -> list[Normalised] | Unfit:
    return normalised(payload, lambda checked: _said(source, checked))


def _said(source: Source, event: Payload) -> Said | None:
    type = named(event, "type", "")
    id = f"{KIND}:{named(event, 'id', '')}"
    at = unix_instant(event.get("created"), "created")
    document = object_in(object_in(event, "data", ""), "object", "data")
    if type in _SESSIONS:
        return _session(source, id, at, document)
    if type in _INVOICES:
        return _invoice(id, at, document)
    if type == "charge.refunded":
        return _refund(id, at, document, object_in(event, "data", ""))
    if type in ("customer.created", "customer.updated", "customer.deleted"):
        return _customer(id, at, type, document)
    if type.startswith("customer.subscription."):
        return _subscription(id, at, type, document)
    return None


def minor(value: Any, currency: Any, path: str) -> float | None:
    """An amount in minor units as one in units of its currency."""
    units = whole(value, path)
    if units is None:
        return None
    code = currency.upper() if isinstance(currency, str) else ""
    places = 0 if code in WITHOUT_MINOR else 3 if code in THOUSANDTHS else 2
    return float(Decimal(units).scaleb(-places))


def _reference(customer: Any) -> str | None:
    """The customer's number; it may come as the customer, where that was asked for."""
    if isinstance(customer, dict):
        customer = customer.get("id")
    return f"{KIND}:{customer[:200]}" if isinstance(customer, str) and customer.strip() else None


def _who(customer: Any, email: Any, path: str) -> tuple[dict[str, str | None], list[str]]:
    """(identities, references). Only who has an address gets the number as an external id: whoever
    has nothing but a number may turn out to be somebody who is known."""
    address = address_of(email, path)
    reference = _reference(customer)
    identities = {EMAIL: address, EXTERNAL_ID: reference if address else None}
    return identities, [] if reference is None else [reference]


def _session(source: Source, id: str, at: datetime | None, session: Payload) -> Said:
    session_id = named(session, "id", _OBJECT)
    details = object_in(session, "customer_details", _OBJECT)
    email, path = details.get("email"), f"{_OBJECT}.customer_details.email"
    if not email:
        email, path = session.get("customer_email"), f"{_OBJECT}.customer_email"
    identities, references = _who(session.get("customer"), email, path)
    currency = plain(session.get("currency"), 3)
    total = minor(session.get("amount_total"), currency, f"{_OBJECT}.amount_total")
    invoice = _id_of(session.get("invoice"))
    order_id = invoice or _id_of(session.get("payment_intent")) or session_id
    of_lines = {"order_id": order_id, "currency": (currency or "").upper()}
    is_paid = session.get("payment_status") in ("paid", "no_payment_required")
    is_trial = session.get("mode") != "payment" and not total
    events: list[NormalisedEvent] = []
    if is_paid and not is_trial and session.get("mode") != "setup":
        told = {**of_lines, "mode": plain(session.get("mode")), "session_id": session_id}
        events = order_events(f"{KIND}:order:{order_id}", at, total, told, (), of_lines)
        if invoice is not None:
            events = events[:1]
    consents = []
    if object_in(session, "consent", _OBJECT).get("promotions") == "opt_in":
        proof = {"method": "single", "form": "Stripe Checkout"}
        if at is not None:
            proof["at"] = at.isoformat() + "Z"
        topic = source.get("consent_topic") or CONSENT_TOPIC
        consents.append(GivenConsent("email", topic, "subscribed", proof, at))
    address = object_in(details, "address", f"{_OBJECT}.customer_details")
    traits = {"name": plain(details.get("name")), **address_traits(address)}
    return Said(id, identities, references, events, traits, consents, _locale(session), at)


def _invoice(id: str, at: datetime | None, invoice: Payload) -> Said:
    invoice_id = named(invoice, "id", _OBJECT)
    path = f"{_OBJECT}.customer_email"
    identities, references = _who(invoice.get("customer"), invoice.get("customer_email"), path)
    currency = plain(invoice.get("currency"), 3)
    paid = minor(invoice.get("amount_paid"), currency, f"{_OBJECT}.amount_paid")
    of_lines = {"order_id": invoice_id, "currency": (currency or "").upper()}
    events: list[NormalisedEvent] = []
    if paid:
        told = {
            **of_lines,
            "order_name": plain(invoice.get("number")),
            "billing_reason": plain(invoice.get("billing_reason")),
        }
        lines = _lines(invoice, currency)
        events = order_events(f"{KIND}:order:{invoice_id}", at, paid, told, lines, of_lines)
    traits = {"name": plain(invoice.get("customer_name"))}
    return Said(id, identities, references, events, traits, at=at)


def _lines(invoice: Payload, currency: str | None) -> list[Line]:
    listing = object_in(invoice, "lines", _OBJECT)
    lines = []
    for n, line in enumerate(listed(listing.get("data"), f"{_OBJECT}.lines.data")):
        path = f"{_OBJECT}.lines.data[{n}]"
        price = object_in(line, "price", path)
        pricing = object_in(object_in(line, "pricing", path), "price_details", f"{path}.pricing")
        plan = object_in(line, "plan", path)
        product = [_id_of(each.get("product")) for each in (price, pricing, plan)]
        price_id = _id_of(price.get("id") or pricing.get("price") or plan.get("id"))
        properties = {
            "name": plain(line.get("description")),
            "price_id": price_id,
            "quantity": whole(line.get("quantity"), f"{path}.quantity"),
        }
        item = first_item(*product, price_id, plain(line.get("description")))
        amount = minor(line.get("amount"), line.get("currency") or currency, f"{path}.amount")
        lines.append(Line(_id_of(line.get("id")) or str(n + 1), item, amount, properties))
    return lines


def _refund(id: str, at: datetime | None, charge: Payload, data: Payload) -> Said | None:
    charge_id = named(charge, "id", _OBJECT)
    currency = plain(charge.get("currency"), 3)
    path = f"{_OBJECT}.amount_refunded"
    total = whole(charge.get("amount_refunded"), path) or 0
    before = object_in(data, "previous_attributes", "data").get("amount_refunded")
    given_back = total - (whole(before, "data.previous_attributes.amount_refunded") or 0)
    details = object_in(charge, "billing_details", _OBJECT)
    email, where = details.get("email"), f"{_OBJECT}.billing_details.email"
    if not email:
        email, where = charge.get("receipt_email"), f"{_OBJECT}.receipt_email"
    identities, references = _who(charge.get("customer"), email, where)
    if given_back <= 0:
        return None
    order_id = _id_of(charge.get("invoice")) or _id_of(charge.get("payment_intent")) or charge_id
    told = telling(
        {
            "order_id": order_id,
            "charge_id": charge_id,
            "currency": (currency or "").upper(),
            "full": charge.get("refunded") is True,
        }
    )
    event = NormalisedEvent(
        "refunded",
        f"{KIND}:refunded:{charge_id}:{total}",
        at,
        order_id,
        minor(given_back, currency, path),
        told,
    )
    return Said(id, identities, references, [event], at=at)


def _customer(id: str, at: datetime | None, type: str, customer: Payload) -> Said:
    customer_id = named(customer, "id", _OBJECT)
    path = f"{_OBJECT}.email"
    identities, references = _who(customer_id, customer.get("email"), path)
    if type == "customer.deleted":
        event_id = f"{KIND}:customer:{customer_id}:deleted"
        event = NormalisedEvent("customer_deleted", event_id, at, None, None, {"with": KIND})
        return Said(id, identities, references, [event], at=at)
    address = object_in(customer, "address", _OBJECT)
    traits = {"name": plain(customer.get("name")), **address_traits(address)}
    return Said(id, identities, references, (), traits, (), _locale(customer), at)


def _subscription(id: str, at: datetime | None, type: str, subscription: Payload) -> Said:
    subscription_id = named(subscription, "id", _OBJECT)
    _, references = _who(subscription.get("customer"), None, "")
    items = object_in(subscription, "items", _OBJECT)
    prices = [
        object_in(each, "price", f"{_OBJECT}.items.data[{n}]")
        for n, each in enumerate(listed(items.get("data"), f"{_OBJECT}.items.data"))
    ]
    products = [found for price in prices if (found := _id_of(price.get("product")))]
    told = telling(
        {
            "subscription_id": subscription_id,
            "status": plain(subscription.get("status")),
            "products": products[:20],
            "price_id": _id_of(prices[0].get("id")) if prices else None,
            "cancel_at_period_end": subscription.get("cancel_at_period_end") is True,
        }
    )
    event = NormalisedEvent(type[:64], id, at, subscription_id, None, told)
    return Said(id, {}, references, [event], at=at)


def _id_of(value: Any) -> str | None:
    """An id, or that of the object which stands in its place."""
    if isinstance(value, dict):
        value = value.get("id")
    return plain(value, 200)


def _locale(holder: Payload) -> str | None:
    locales = holder.get("preferred_locales")
    if isinstance(locales, list) and locales:
        return plain(locales[0], 35)
    found = plain(holder.get("locale"), 35)
    return None if found == "auto" else found
