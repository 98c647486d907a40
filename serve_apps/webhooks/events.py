"""What e-mail providers tell by webhook, in one form; and what all their formats share.

Each provider is a module with two functions. ``verify`` proves that a request is the provider's and
fresh, and raises ``Unauthorized`` where it is not, never saying which check failed; ``events`` says
what it tells. Both are pure. ``events`` takes what it knows and passes over the rest: providers add
kinds of events without asking.
"""

from __future__ import annotations

import binascii
import hmac
import json
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from manta.clock import parse_instant
from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns.classification import classify_reply
from serve_apps.problems import Malformed, Unauthorized

BOUNCED = "bounced"
COMPLAINED = "complained"
DELIVERED = "delivered"
EVENTS_MAX = 1_000  # of one request
TEXT_MAX = 1_000
ID_MAX = 200

Headers = Mapping[str, str]  # names in lower case


@dataclass(frozen=True)
class ProviderEvent:
    """``id`` is the provider's own and the same in each retry. ``message_id`` and ``return_path``
    are those of the mail, where the provider says them."""

    id: str
    kind: str
    address: str
    occurred_at: datetime | None = None
    bounce_class: str = ""
    category: str = ""
    diagnostic: str = ""
    feedback_type: str = ""
    message_id: str = ""
    return_path: str = ""


def refused() -> Unauthorized:
    return Unauthorized("this webhook is not signed as it has to be, or too old")


def document(body: bytes) -> Any:
    """The JSON of a body. Raises ``Malformed``."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON in UTF-8", expected="a webhook's document") from None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one: strangers choose the types."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def text(value: Any, limit: int = TEXT_MAX) -> str:
    """A JSON value as one printable line, cut."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    shown = "".join(char if char.isprintable() else " " for char in str(value)[: 4 * limit])
    return " ".join(shown.split())[:limit]


def instant(value: Any) -> datetime | None:
    """Of RFC 3339 text or seconds since 1970; ``None`` where it is neither."""
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            return parse_instant(value)
        return datetime.fromtimestamp(float(value), UTC).replace(tzinfo=None)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def is_fresh(at: datetime | None, now: datetime, tolerance: timedelta) -> bool:
    return at is not None and abs(now - at) <= tolerance


def decoded(value: str) -> bytes:
    """Base64; empty where it is none, which no signature is."""
    try:
        return b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""


def matches_any(given: bytes, expected: Iterable[bytes]) -> bool:
    """Whether the value is one of these, in a time that does not tell how nearly."""
    found = False
    for each in expected:
        found |= hmac.compare_digest(given, each)
    return found


def judged(said: str, code: int, diagnostic: str) -> tuple[str, str]:
    """(bounce class, category) of a failure that the provider calls ``said``.

    Providers call a message refused for its content or our reputation a bounce like any other. So
    where the server's own words say that it was about us or about the message, it does not count
    against the address; in all else the provider knows best.
    """
    if not diagnostic:
        return said, ""
    classified = classify_reply(code, diagnostic)
    if classified.bounce_class in (BounceClass.BLOCK, BounceClass.MESSAGE):
        return str(classified.bounce_class), classified.category
    return said, classified.category if classified.bounce_class == said else ""
