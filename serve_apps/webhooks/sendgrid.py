"""SendGrid: batches of events, signed with ECDSA (P-256, SHA-256) over timestamp and body.

The secret is the verification key that SendGrid shows: the public key, DER in base64.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from manta.delivery.reputation.observations import BounceClass
from serve_apps.webhooks.events import (
    BOUNCED,
    COMPLAINED,
    DELIVERED,
    ID_MAX,
    Headers,
    ProviderEvent,
    decoded,
    document,
    instant,
    is_fresh,
    judged,
    listing,
    mapping,
    refused,
    text,
)

TOLERANCE = timedelta(minutes=15)
SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"

# ``bounce_classification`` of a bounce.
CLASSIFICATIONS = {
    "invalid address": BounceClass.HARD,
    "mailbox unavailable": BounceClass.SOFT,
    "technical": BounceClass.SOFT,
    "technical failure": BounceClass.SOFT,
    "unclassified": BounceClass.SOFT,
    "content": BounceClass.MESSAGE,
    "reputation": BounceClass.BLOCK,
    "frequency or volume too high": BounceClass.BLOCK,
    "frequency/volume": BounceClass.BLOCK,
}
# ``reason`` of what SendGrid did not even try: it remembers bounces and complaints itself.
DROPPED = {
    "bounced address": BounceClass.HARD,
    "spam reporting address": BounceClass.HARD,
    "invalid": BounceClass.HARD,
}


def verify(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> None:
    """Raises ``Unauthorized``."""
    at = headers.get(TIMESTAMP, "")
    signature = decoded(headers.get(SIGNATURE, ""))
    if not at.isdigit() or not is_fresh(instant(at), now, TOLERANCE):
        raise refused()
    for secret in secrets:
        try:
            key = load_der_public_key(decoded(secret))
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, at.encode() + body, ec.ECDSA(SHA256()))
                return
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            continue
    raise refused()


def events(body: bytes) -> list[ProviderEvent]:
    found = []
    for said in map(mapping, listing(document(body))):
        id, address = text(said.get("sg_event_id"), ID_MAX), text(said.get("email"))
        kind, failure = _kind(said)
        if id and address and kind:
            found.append(
                ProviderEvent(
                    id,
                    kind,
                    address,
                    instant(said.get("timestamp")),
                    *failure,
                    message_id=text(said.get("smtp-id")),
                )
            )
    return found


def _kind(said: object) -> tuple[str, tuple[str, str, str]]:
    facts = mapping(said)
    words = text(facts.get("reason"))
    match facts.get("event"):
        case "bounce":
            named = text(facts.get("bounce_classification")).lower()
            usual = BounceClass.BLOCK if facts.get("type") == "blocked" else BounceClass.HARD
            bounce_class, category = judged(str(CLASSIFICATIONS.get(named, usual)), 0, words)
            return BOUNCED, (bounce_class, category, words or text(facts.get("status")))
        case "dropped" if words.lower() in DROPPED:
            return BOUNCED, (str(DROPPED[words.lower()]), "", words)
        case "spamreport":
            return COMPLAINED, ("", "", "")
        case "delivered":
            return DELIVERED, ("", "", "")
        case _:
            return "", ("", "", "")
