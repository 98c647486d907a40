"""Webhooks as Shopify, WooCommerce and Stripe document them, shortened to what is read and some of
what is not."""

from __future__ import annotations

from typing import Any

SHOP = "jsmith.myshopify.com"
SHOPIFY_ADDRESS = {
    "first_name": "Steve",
    "last_name": "Shipper",
    "company": "Shipping Company",
    "city": "Shippington",
    "zip": "40003",
    "province": "Kentucky",
    "country": "United States",
    "country_code": "US",
    "phone": "555-555-SHIP",
}
SHOPIFY_CUSTOMER: dict[str, Any] = {
    "id": 115310627314723954,
    "email": "John@Example.com",
    "created_at": "2026-02-20T10:00:00-05:00",
    "updated_at": "2026-02-21T10:00:00-05:00",
    "first_name": "John",
    "last_name": "Smith",
    "state": "enabled",
    "orders_count": 3,
    "total_spent": "199.65",
    "verified_email": True,
    "tags": "loyal, wholesale",
    "currency": "USD",
    "phone": "+1 555 625 1199",
    "default_address": SHOPIFY_ADDRESS,
    "email_marketing_consent": {
        "state": "subscribed",
        "opt_in_level": "confirmed_opt_in",
        "consent_updated_at": "2026-02-20T09:59:00-05:00",
    },
    "sms_marketing_consent": None,
    "admin_graphql_api_id": "gid://shopify/Customer/115310627314723954",
}
SHOPIFY_ORDER: dict[str, Any] = {
    "id": 820982911946154508,
    "admin_graphql_api_id": "gid://shopify/Order/820982911946154508",
    "browser_ip": "216.191.105.146",
    "buyer_accepts_marketing": True,
    "cancel_reason": None,
    "cancelled_at": None,
    "cart_token": "68778783ad298f1c80c3bafcddeea02f",
    "checkout_token": "bd5a8aa1ecd019dd3520ff791ee3a24c",
    "contact_email": "john@example.com",
    "created_at": "2026-02-28T13:15:47-05:00",
    "currency": "USD",
    "customer_locale": "en-US",
    "discount_codes": [{"code": "SPRING", "amount": "30.00", "type": "fixed_amount"}],
    "email": "john@example.com",
    "financial_status": "paid",
    "name": "#9999",
    "source_name": "web",
    "subtotal_price": "388.00",
    "total_discounts": "30.00",
    "total_price": "398.00",
    "test": False,
    "customer": {key: SHOPIFY_CUSTOMER[key] for key in ("id", "email", "first_name", "phone")}
    | {"default_address": SHOPIFY_ADDRESS},
    "line_items": [
        {
            "id": 866550311766439020,
            "product_id": 788032119674292922,
            "variant_id": None,
            "title": "IPod Nano - 8GB",
            "sku": "IPOD2008PINK",
            "vendor": "Apple",
            "quantity": 1,
            "price": "199.00",
            "total_discount": "0.00",
            "discount_allocations": [{"amount": "30.00", "discount_application_index": 0}],
        },
        {
            "id": 141249953214522974,
            "product_id": None,
            "title": "Gift wrap",
            "sku": "",
            "quantity": 2,
            "price": "9.50",
            "total_discount": "1.00",
            "discount_allocations": [],
        },
    ],
    "refunds": [],
}
SHOPIFY_REFUND: dict[str, Any] = {
    "id": 890088186047892319,
    "order_id": 820982911946154508,
    "created_at": "2026-03-01T08:00:00-05:00",
    "note": "Things were damaged",
    "refund_line_items": [{"id": 1, "quantity": 1, "subtotal": 199.0}],
    "transactions": [
        {"id": 1, "kind": "refund", "status": "success", "amount": "150.10", "currency": "USD"},
        {"id": 2, "kind": "refund", "status": "failure", "amount": "20.00", "currency": "USD"},
        {"id": 3, "kind": "refund", "status": "success", "amount": "0.20", "currency": "USD"},
    ],
}
SHOPIFY_CART: dict[str, Any] = {
    "id": "68778783ad298f1c80c3bafcddeea02f",
    "token": "68778783ad298f1c80c3bafcddeea02f",
    "line_items": [
        {
            "id": 704912205188288575,
            "product_id": 788032119674292922,
            "title": "IPod Nano - 8GB",
            "quantity": 3,
            "price": "199.00",
        }
    ],
    "note": None,
    "updated_at": "2026-02-28T17:40:00.000Z",
    "created_at": "2026-02-28T17:30:00.000Z",
}
SHOPIFY_CHECKOUT: dict[str, Any] = {
    "id": 981820079255243537,
    "token": "bd5a8aa1ecd019dd3520ff791ee3a24c",
    "cart_token": "68778783ad298f1c80c3bafcddeea02f",
    "email": "john@example.com",
    "buyer_accepts_marketing": True,
    "created_at": "2026-02-28T12:45:00-05:00",
    "currency": "USD",
    "completed_at": None,
    "customer_locale": "en",
    "total_price": "398.00",
    "line_items": SHOPIFY_CART["line_items"],
    "abandoned_checkout_url": "https://jsmith.myshopify.com/548380009/checkouts/bd5a/recover?key=x",
    "customer": None,
}


def shopify(topic: str, document: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"topic": topic, "shop": SHOP, "payload": document | more}


WOO_SITE = "https://shop.example.com/"
WOO_BILLING = {
    "first_name": "John",
    "last_name": "Doe",
    "company": "",
    "city": "San Francisco",
    "state": "CA",
    "postcode": "94103",
    "country": "US",
    "email": "john.doe@example.com",
    "phone": "(555) 555-5555",
}
WOO_ORDER: dict[str, Any] = {
    "id": 727,
    "parent_id": 0,
    "number": "727",
    "status": "processing",
    "currency": "USD",
    "date_created": "2026-02-22T16:28:02",
    "date_created_gmt": "2026-02-22T19:28:02",
    "date_modified_gmt": "2026-02-22T19:28:08",
    "date_paid_gmt": "2026-02-22T19:28:08",
    "discount_total": "0.00",
    "total": "29.35",
    "total_tax": "1.35",
    "prices_include_tax": False,
    "customer_id": 26,
    "billing": WOO_BILLING,
    "payment_method": "bacs",
    "line_items": [
        {
            "id": 315,
            "name": "Woo Single #1",
            "product_id": 93,
            "variation_id": 0,
            "quantity": 2,
            "total": "6.00",
            "total_tax": "0.45",
            "sku": "",
            "price": 3,
        },
        {
            "id": 316,
            "name": "Ship Your Idea - Color: Black, Size: M Test",
            "product_id": 22,
            "variation_id": 23,
            "quantity": 1,
            "total": "12.00",
            "total_tax": "0.90",
            "sku": "Bar3",
            "price": 12,
        },
    ],
    "coupon_lines": [],
    "refunds": [],
}
WOO_CUSTOMER: dict[str, Any] = {
    "id": 25,
    "date_created_gmt": "2026-02-21T19:09:28",
    "date_modified_gmt": "2026-02-21T19:09:30",
    "email": "john.doe@example.com",
    "first_name": "John",
    "last_name": "Doe",
    "role": "customer",
    "username": "john.doe",
    "billing": WOO_BILLING,
    "is_paying_customer": False,
}


def woocommerce(topic: str, document: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"topic": topic, "shop": WOO_SITE, "payload": document | more}


STRIPE_SESSION: dict[str, Any] = {
    "id": "cs_test_a1uS9U7mL0zDhvwzkx6k",
    "object": "checkout.session",
    "amount_subtotal": 25_000,
    "amount_total": 25_000,
    "currency": "usd",
    "customer": "cus_9s6XKzkNRiz8i3",
    "customer_details": {
        "email": "jenny@example.com",
        "name": "Jenny Rosen",
        "phone": None,
        "address": {"city": "Bern", "country": "CH", "postal_code": "3000", "state": None},
    },
    "customer_email": None,
    "consent": {"promotions": "opt_in"},
    "invoice": None,
    "mode": "payment",
    "payment_intent": "pi_1Gszrc2eZvKYlo2CnBo5uK2f",
    "payment_status": "paid",
    "locale": "auto",
    "metadata": {},
}
STRIPE_INVOICE: dict[str, Any] = {
    "id": "in_1MtHbELkdIwHu7ixl4OzzPMv",
    "object": "invoice",
    "amount_due": 1_999,
    "amount_paid": 1_999,
    "billing_reason": "subscription_create",
    "currency": "usd",
    "customer": "cus_9s6XKzkNRiz8i3",
    "customer_email": "jenny@example.com",
    "customer_name": "Jenny Rosen",
    "number": "4A8B-0001",
    "lines": {
        "object": "list",
        "data": [
            {
                "id": "il_1",
                "amount": 1_499,
                "currency": "usd",
                "description": "1 × Pro (at $14.99 / month)",
                "quantity": 1,
                "price": {"id": "price_1", "product": "prod_pro"},
            },
            {
                "id": "il_2",
                "amount": 500,
                "currency": "usd",
                "description": "Support",
                "quantity": 1,
                "pricing": {"price_details": {"price": "price_2", "product": "prod_support"}},
            },
        ],
    },
}
STRIPE_CHARGE: dict[str, Any] = {
    "id": "ch_3MmlLrLkdIwHu7ix0snN0B15",
    "object": "charge",
    "amount": 10_990,
    "amount_refunded": 3_000,
    "currency": "usd",
    "customer": "cus_9s6XKzkNRiz8i3",
    "billing_details": {"email": None, "name": None},
    "receipt_email": None,
    "payment_intent": "pi_1Gszrc2eZvKYlo2CnBo5uK2f",
    "refunded": False,
}
STRIPE_CUSTOMER: dict[str, Any] = {
    "id": "cus_9s6XKzkNRiz8i3",
    "object": "customer",
    "address": None,
    "email": "jenny@example.com",
    "name": "Jenny Rosen",
    "phone": None,
    "preferred_locales": ["de-CH"],
}
STRIPE_SUBSCRIPTION: dict[str, Any] = {
    "id": "sub_1MowQVLkdIwHu7ixeRlqHVzs",
    "object": "subscription",
    "customer": "cus_9s6XKzkNRiz8i3",
    "status": "active",
    "cancel_at_period_end": False,
    "items": {
        "object": "list",
        "data": [{"id": "si_1", "price": {"id": "price_1", "product": "prod_pro"}}],
    },
}


def stripe(type: str, document: dict[str, Any], before: Any = None, **more: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"object": document | more}
    if before is not None:
        data["previous_attributes"] = before
    return {
        "id": f"evt_{type}_{len(more)}",
        "object": "event",
        "api_version": "2026-01-28",
        "created": 1_772_100_000,
        "type": type,
        "livemode": True,
        "data": data,
    }
