"""Whether a webhook is its source's: MACs over the body as it came, compared in constant time.

=========== ===================================================================================
shopify     ``X-Shopify-Hmac-Sha256``: base64 of HMAC-SHA256 of the body
woocommerce ``X-WC-Webhook-Signature``: the same
stripe      ``Stripe-Signature``: ``t=…,v1=…``: hex of HMAC-SHA256 of ``t.body``; several ``v1``
            while a secret is replaced; ``t`` at most 5 min off
mapping     Standard Webhooks (``webhook-id``, ``-timestamp``, ``-signature``; the same 5 min), or
            the secret itself as a bearer token or the password of HTTP Basic, for senders that
            cannot sign
=========== ===================================================================================

Of several secrets (a rotation) any may fit. Without a secret nothing is proven.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from manta.errors import InvalidRequest
from manta.webhooks.signing import secret_bytes

TOLERANCE = timedelta(minutes=5)
SIGNATURES_MAX = 10  # looked at, of one request
Headers = Mapping[str, str]  # names in lower case


def is_signed(
    kind: str, headers: Headers, body: bytes, secrets: Sequence[str], now: datetime
) -> bool:
    """Whether the request is proven to come from a source of this kind with these secrets."""
    check = _CHECKS.get(kind)
    return check is not None and bool(secrets) and check(headers, body, secrets, now)


def _by_body(name: str, headers: Headers, body: bytes, secrets: Sequence[str]) -> bool:
    given = _base64(headers.get(name, ""))
    return _any_equal([given], [_mac(secret.encode(), body) for secret in secrets])


def _shopify(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> bool:
    return _by_body("x-shopify-hmac-sha256", headers, body, secrets)


def _woocommerce(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> bool:
    return _by_body("x-wc-webhook-signature", headers, body, secrets)


def _stripe(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> bool:
    times, given = [], []
    for part in headers.get("stripe-signature", "")[:4_000].split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            times.append(value)
        elif name == "v1":
            given.append(_hex(value))
    if len(times) != 1 or not _is_fresh(times[0], now):
        return False
    signed = times[0].encode() + b"." + body
    expected = [_mac(secret.encode(), signed) for secret in secrets]
    return _any_equal(given[:SIGNATURES_MAX], expected)


def _mapping(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> bool:
    if "webhook-signature" not in headers:
        token = _token(headers.get("authorization", ""))
        return _any_equal([token], [secret.encode() for secret in secrets])
    at = headers.get("webhook-timestamp", "")
    if not headers.get("webhook-id") or not _is_fresh(at, now):
        return False
    signed = f"{headers['webhook-id']}.{at}.".encode() + body
    expected = [_mac(key, signed) for secret in secrets if (key := _key(secret))]
    parts = [part.partition(",") for part in headers["webhook-signature"].split()[:SIGNATURES_MAX]]
    return _any_equal([_base64(value) for scheme, _, value in parts if scheme == "v1"], expected)


_CHECKS = {
    "shopify": _shopify,
    "woocommerce": _woocommerce,
    "stripe": _stripe,
    "mapping": _mapping,
}


def _mac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, sha256)


def _any_equal(given: Iterable[bytes], expected: Sequence[bytes]) -> bool:
    found = False
    for one in given:
        for other in expected:
            found |= bool(one) and hmac.compare_digest(one, other)
    return found


def _is_fresh(seconds: str, now: datetime) -> bool:
    if not (seconds.isascii() and seconds.isdecimal() and len(seconds) <= 12):
        return False
    try:
        at = datetime.fromtimestamp(int(seconds), UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return False
    return abs(now - at) <= TOLERANCE


def _token(authorization: str) -> bytes:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode()
    if scheme.lower() == "basic":
        return _base64(rest.strip()).partition(b":")[2]
    return b""


def _key(secret: str) -> bytes:
    try:
        return secret_bytes(secret)
    except InvalidRequest:
        return b""


def _base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
