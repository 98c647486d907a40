"""Mailgun: HMAC-SHA256 of timestamp and token, inside the JSON body.

The signature covers neither event nor message: whoever has seen one could sign anything with it. So
a process remembers what each token came with, and takes it with nothing else (``token_of``); beside
that there are the freshness of the timestamp and the memory of the event's id.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from manta.delivery.reputation.observations import BounceClass
from serve_apps.webhooks.events import (
    BOUNCED,
    COMPLAINED,
    DELIVERED,
    ID_MAX,
    Headers,
    ProviderEvent,
    document,
    instant,
    is_fresh,
    judged,
    mapping,
    matches_any,
    refused,
    text,
)

TOLERANCE = timedelta(hours=1)  # Mailgun asks not to be strict: webhooks may be late

# Of a permanent failure; what is not listed is one for now (Mailgun gave up trying).
REASONS = {
    "bounce": BounceClass.HARD,
    "generic": BounceClass.HARD,
    "suppress-bounce": BounceClass.HARD,
    "suppress-complaint": BounceClass.HARD,
    "espblock": BounceClass.BLOCK,
    "greylisted": BounceClass.SOFT,
    "old": BounceClass.SOFT,
}
_IGNORED = ("suppress-unsubscribe",)


def verify(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> None:
    """Raises ``Unauthorized``."""
    signature = mapping(mapping(document(body)).get("signature"))
    at, token = text(signature.get("timestamp")), text(signature.get("token"))
    given = text(signature.get("signature")).lower().encode()
    if not at.isdigit() or not token or not is_fresh(instant(at), now, TOLERANCE):
        raise refused()
    expected = [
        hmac.digest(secret.encode(), f"{at}{token}".encode(), sha256).hex().encode()
        for secret in secrets
    ]
    if not matches_any(given, expected):
        raise refused()


def token_of(body: bytes) -> str:
    """What Mailgun makes anew for each request that it signs."""
    return text(mapping(mapping(document(body)).get("signature")).get("token"))


def events(body: bytes) -> list[ProviderEvent]:
    said = mapping(mapping(document(body)).get("event-data"))
    message = mapping(mapping(said.get("message")).get("headers"))
    id, address = text(said.get("id"), ID_MAX), text(said.get("recipient"))
    at, message_id = instant(said.get("timestamp")), text(message.get("message-id"))
    return_path = text(mapping(said.get("envelope")).get("sender"))
    if not id or not address:
        return []
    match said.get("event"):
        case "failed" if said.get("severity") == "permanent":
            return _failed(said, ProviderEvent(id, BOUNCED, address, at), message_id, return_path)
        case "complained":
            kind = COMPLAINED
        case "delivered":
            kind = DELIVERED
        case _:  # temporary failures are tried again by Mailgun
            return []
    return [ProviderEvent(id, kind, address, at, message_id=message_id, return_path=return_path)]


def _failed(
    said: object, event: ProviderEvent, message_id: str, return_path: str
) -> list[ProviderEvent]:
    facts = mapping(said)
    reason = text(facts.get("reason"))
    if reason in _IGNORED:
        return []
    status = mapping(facts.get("delivery-status"))
    words = text(status.get("message")) or text(status.get("description"))
    code = status.get("code")
    number = code if isinstance(code, int) and 400 <= code < 600 else 0
    bounce_class, category = judged(str(REASONS.get(reason, BounceClass.SOFT)), number, words)
    return [
        ProviderEvent(
            event.id,
            BOUNCED,
            event.address,
            event.occurred_at,
            bounce_class,
            category,
            words or reason,
            message_id=message_id,
            return_path=return_path,
        )
    ]
