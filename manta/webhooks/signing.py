"""Signatures of Standard Webhooks 1.0, scheme v1: HMAC-SHA256 over ``id.timestamp.body``.

The receiver takes a request if any of the signatures in ``webhook-signature`` is right, so while
one secret replaces another both sign. The asymmetric scheme v1a is not offered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime

from manta.errors import InvalidRequest
from manta.ids import encode_id

PREFIX = "whsec_"
SECRET_BYTES = 32  # of one that we make
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64  # of one that is given


def secret_text(raw: bytes) -> str:
    """A secret as people copy it: ``whsec_`` and base64."""
    return PREFIX + base64.b64encode(raw).decode("ascii")


def secret_bytes(text: str) -> bytes:
    """The key in a secret's text. Raises ``InvalidRequest`` without echoing it."""
    try:
        raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith(PREFIX) or not SECRET_BYTES_MIN <= len(raw) <= SECRET_BYTES_MAX:
        raise InvalidRequest(
            "this is not the secret of a webhook",
            path="secret",
            expected=f"{PREFIX} and base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes",
        )
    return raw


def message_id(delivery_id: int) -> str:
    """The ``webhook-id`` of a delivery: the same for every attempt and replay."""
    return f"msg_{encode_id(delivery_id)}"


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """``v1,`` and the base64 of the MAC."""
    text = f"{id}.{timestamp}.".encode() + body
    mac = hmac.new(secret_bytes(secret), text, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mac).decode("ascii")


def headers(secrets: Sequence[str], id: str, now: datetime, body: bytes) -> dict[str, str]:
    """The three headers of a request that is sent now; every secret signs."""
    timestamp = int(now.replace(tzinfo=UTC).timestamp())
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(each, id, timestamp, body) for each in secrets),
    }
