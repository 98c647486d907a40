"""A scripted session through the public Segment library for Python: host, write key and name of the
person are arguments. Ends with an error unless everything was delivered."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from segment.analytics.client import Client


def main(host: str, key: str, name: str) -> None:
    errors: list[Any] = []
    client = Client(key, host=host, gzip=True, on_error=lambda error, batch: errors.append(error))
    visitor = f"{name}-visitor"
    client.page(anonymous_id=visitor, name="Home", properties={"url": "https://shop.example/"})
    client.track(anonymous_id=visitor, event="Product Viewed", properties={"product_id": "shoe"})
    traits = {
        "email": f"{name}@shop.example",
        "firstName": name,
        "plan": "pro",
        "address": {"city": "Bern"},
    }
    client.identify(user_id=name, anonymous_id=visitor, traits=traits)
    order = {
        "order_id": f"{name}-1",
        "total": 99.5,
        "currency": "EUR",
        "products": [
            {"product_id": "shoe", "price": 45, "quantity": 2},
            {"sku": "lace", "price": 9.5},
        ],
    }
    client.track(user_id=name, event="Order Completed", properties=order)
    long_ago = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
    client.track(user_id=name, event="Newsletter Read", timestamp=long_ago)
    client.screen(user_id=name, name="Orders")
    client.group(user_id=name, group_id="acme", traits={"seats": 3})
    client.identify(user_id=name, traits={"plan": "max"})
    client.track(user_id=f"{name}-old", event="Of Earlier")
    client.alias(previous_id=f"{name}-old", user_id=name)
    client.shutdown()
    if errors:
        raise SystemExit(f"not delivered: {errors}")


if __name__ == "__main__":
    main(*sys.argv[1:])
