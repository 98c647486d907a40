"""Bodies and callers as the tracking API's senders send them.

Libraries send JSON, gzipped or not, whatever type they call it; browsers send ``text/plain``, which
needs no permission to cross origins (the Fetch standard's "simple" requests). What is unpacked is
bounded while it is unpacked, so a small body cannot become a large one.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from manta.ingestion.segment import BATCH_BYTES_MAX
from serve_apps.problems import Malformed, Unauthorized

COMPRESSED_BYTES_MAX = 1 << 20  # of a body; packed, it is seldom larger than unpacked
_GZIP = 16 + zlib.MAX_WBITS


class UnknownCoding(Malformed):
    code = "media_type"


def unpacked(body: bytes, coding: str, bytes_max: int = BATCH_BYTES_MAX) -> bytes:
    """The body without its content coding. Raises ``InvalidRequest``."""
    if coding == "gzip":
        body = _inflated(body, bytes_max)
    elif coding not in ("", "identity"):
        raise UnknownCoding(
            f"the content coding {coding!r:.40} is not read here",
            path="Content-Encoding",
            expected="gzip or none",
        )
    if len(body) > bytes_max:
        raise _too_large("the body", len(body), bytes_max)
    return body


def _inflated(body: bytes, bytes_max: int) -> bytes:
    """One gzip member (RFC 1952) and nothing behind it."""
    inflate = zlib.decompressobj(_GZIP)
    try:
        plain = inflate.decompress(body, bytes_max + 1)
    except zlib.error:
        raise Malformed("the body is not gzip", path="", expected="gzip") from None
    if len(plain) > bytes_max:
        raise _too_large("the body", len(plain), bytes_max, " when unpacked")
    if not inflate.eof or inflate.unused_data:
        raise Malformed(
            "the gzip of the body is cut off, or something follows it", path="", expected="gzip"
        )
    return plain


def _too_large(what: str, size: int, bytes_max: int, when: str = "") -> Malformed:
    return Malformed(
        f"{what} has more than {bytes_max:,} bytes{when}", path="", expected=f"≤ {bytes_max:,}"
    )


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises ``Malformed``; nesting is bounded by the reader (200)."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Malformed(f"the body is not JSON in UTF-8: {error!s:.100}", path="") from None
    if not isinstance(value, dict):
        raise Malformed("the body is not a JSON object", path="", expected="an object")
    return value


def write_key(headers: Mapping[bytes, bytes], payload: Mapping[str, Any]) -> str:
    """The API key of a request: the user of HTTP Basic (RFC 7617), a bearer token, or ``writeKey``
    in the body, as browsers and some libraries send it. Raises ``Unauthorized``."""
    scheme, _, rest = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            raise Unauthorized("the Authorization header is not HTTP Basic") from None
    key = payload.get("writeKey")
    if key is None and isinstance(payload.get("batch"), list) and payload["batch"]:
        first = payload["batch"][0]
        key = first.get("writeKey") if isinstance(first, dict) else None
    if key is None and scheme.lower() == "bearer":
        key = rest.strip()
    if not isinstance(key, str) or not key:
        raise Unauthorized("this request carries no write key")
    return key
