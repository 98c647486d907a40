"""What shops tell, as rules in ``commerce.toml``: their names of events to ours, lines to events.

An order becomes one ``ordered`` and a ``purchased`` for each of its products. An order that names
no products becomes one ``purchased`` without item, so that who bought anything has ``purchased``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any

from manta.ingestion.normalised import (
    Misfit,
    NormalisedEvent,
    first_of,
    item_of,
    number_of,
)

LINES_MAX = 500  # of one order
PRODUCT = ("product_id", "id", "sku", "name")
PRICE = ("price", "value")
# What a line says of its order, so that it can be understood alone.
_ORDER = ("order_id", "cart_id", "currency", "coupon", "affiliation")


@dataclass(frozen=True)
class EventRule:
    """One ``[[event]]`` of the file."""

    names: tuple[str, ...]
    type: str
    item: tuple[str, ...] = ()
    amount: tuple[str, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict)
    lines: str = ""


@lru_cache(maxsize=1)
def event_rules() -> Mapping[str, EventRule]:
    """The rules by the foreign name in lower case."""
    text = files("manta.ingestion").joinpath("commerce.toml").read_text(encoding="utf-8")
    rules: dict[str, EventRule] = {}
    for entry in tomllib.loads(text)["event"]:
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entry.items()
        }
        rule = EventRule(**lists)
        for name in rule.names:
            if rules.setdefault(name.lower(), rule) is not rule:
                raise ValueError(f"commerce.toml names {name!r} twice")
    return rules


def shop_events(
    rule: EventRule, id: str, at: datetime | None, given: Mapping[str, Any]
) -> list[NormalisedEvent]:
    """The events that a shop's event means, the whole first and then its lines."""
    products = given.get("products") if rule.lines else None
    if products is not None and not isinstance(products, list):
        raise Misfit("properties.products", "is not a list")
    rest = {k: v for k, v in given.items() if k != "products"} if products else dict(given)
    item = item_of(first_of(given, rule.item))
    amount = number_of(first_of(given, rule.amount))
    whole = NormalisedEvent(rule.type, id, at, item, amount, rest | dict(rule.set))
    if not rule.lines:
        return [whole]
    order_id = first_of(given, ("order_id", "orderId"))
    of_order = {k: given[k] for k in _ORDER if given.get(k) is not None}
    if order_id is not None:
        of_order["order_id"] = order_id
    if not products:
        return [whole, NormalisedEvent(rule.lines, f"{id}:1", at, None, amount, of_order)]
    return [whole, *_lines(rule.lines, id, at, products, of_order)]


def _lines(
    type: str, id: str, at: datetime | None, products: Sequence[Any], of_order: Mapping[str, Any]
) -> list[NormalisedEvent]:
    if len(products) > LINES_MAX:
        raise Misfit("properties.products", f"has more than {LINES_MAX} products")
    events = []
    for n, product in enumerate(products):
        if not isinstance(product, dict):
            raise Misfit(f"properties.products[{n}]", "is not an object")
        item = item_of(first_of(product, PRODUCT))
        events.append(
            NormalisedEvent(
                type, f"{id}:{n + 1}", at, item, line_amount(product), {**product, **of_order}
            )
        )
    return events


def line_amount(product: Mapping[str, Any]) -> float | None:
    """Price times quantity; without quantity: of one."""
    price = number_of(first_of(product, PRICE))
    quantity = number_of(product.get("quantity"))
    if price is None:
        return None
    return number_of(price * (1.0 if quantity is None else quantity))
