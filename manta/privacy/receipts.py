"""The receipt of an erasure: what was done where and when, signed, and nobody named in it.

A receipt is a JSON object; its signature is Ed25519 (RFC 8032) over the canonical form of the
``receipt`` member: keys sorted, no spaces, UTF-8. The person stands in it as a keyed hash only. Who
has the public key (``GET /v1/privacy/receipt-key``) can check it for ever without asking us.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from manta.errors import InvalidRequest

FORMAT = "manta-erasure-1"
ALGORITHM = "Ed25519"


def signed(receipt: Mapping[str, Any], seed: bytes) -> dict[str, Any]:
    """The receipt with its signature. ``seed``: the 32 secret bytes."""
    content = {"format": FORMAT, **receipt}
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return {
        "receipt": content,
        "algorithm": ALGORITHM,
        "public_key": public_key(seed),
        "signature": _text(key.sign(canonical(content))),
    }


def public_key(seed: bytes) -> str:
    """The public key as base64 of its 32 bytes."""
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return _text(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def verify(document: Any, trusted_key: str) -> dict[str, Any]:
    """The receipt in a signed document. Raises ``InvalidRequest`` where it is none, was altered, or
    was signed by another key than the trusted one."""
    try:
        receipt, signature = document["receipt"], document["signature"]
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(trusted_key, validate=True))
        made_by = base64.b64decode(signature, validate=True)
        if receipt["format"] != FORMAT:
            raise KeyError("format")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidRequest(
            f"this is no signed receipt of an erasure ({error!r:.80})",
            expected=f"the JSON of one, of format {FORMAT}, and a public key in base64",
        ) from None
    try:
        key.verify(made_by, canonical(receipt))
    except InvalidSignature:
        raise InvalidRequest(
            "the receipt was altered, or signed by another key",
            path="signature",
            expected=f"the signature of {trusted_key}",
        ) from None
    return dict(receipt)


def canonical(receipt: Mapping[str, Any]) -> bytes:
    """The bytes that are signed."""
    text = json.dumps(
        receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
