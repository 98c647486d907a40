"""Postmark: no signature; a secret in the URL's basic authentication, or in a header.

The secret is ``user:password`` for basic authentication, or any text that Postmark is told to send
as ``X-Webhook-Secret``. There is no timestamp to hold a replay off: the ids of events do that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

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
    judged,
    mapping,
    matches_any,
    refused,
    text,
)

SECRET_HEADER = "x-webhook-secret"  # noqa: S105  # a name

TYPES = {
    "HardBounce": BounceClass.HARD,
    "BadEmailAddress": BounceClass.HARD,
    "ManuallyDeactivated": BounceClass.HARD,
    "AddressChange": BounceClass.HARD,
    "Transient": BounceClass.SOFT,
    "SoftBounce": BounceClass.SOFT,
    "DnsError": BounceClass.SOFT,
    "Undeliverable": BounceClass.SOFT,
    "Unknown": BounceClass.SOFT,
    "Blocked": BounceClass.BLOCK,
    "DMARCPolicy": BounceClass.BLOCK,
    "SpamNotification": BounceClass.BLOCK,
    "VirusNotification": BounceClass.MESSAGE,
}
_MESSAGE_ID = re.compile(r"^message-id:\s*(<[^<>\s]{1,200}>)", re.IGNORECASE | re.MULTILINE)
_DUMP_MAX = 100_000


def verify(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> None:
    """Raises ``Unauthorized``."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    given = []
    if scheme.lower() == "basic":
        given.append(decoded(credentials.strip()))
    if SECRET_HEADER in headers:
        given.append(headers[SECRET_HEADER].encode())
    expected = [secret.encode() for secret in secrets if secret]
    if not any(matches_any(one, expected) for one in given):
        raise refused()


def events(body: bytes) -> list[ProviderEvent]:
    said = mapping(document(body))
    record, kind = said.get("RecordType"), text(said.get("Type"))
    message_id = _message_id(said.get("Content"))
    address = text(said.get("Email")) or text(said.get("Recipient"))
    id = text(said.get("ID"), ID_MAX) or text(said.get("MessageID"), ID_MAX)
    if not address or not id:
        return []
    id = f"{record}:{id}"
    if record == "SpamComplaint" or (record == "Bounce" and kind == "SpamComplaint"):
        at = instant(said.get("BouncedAt"))
        return [ProviderEvent(id, COMPLAINED, address, at, message_id=message_id)]
    if record == "Delivery":
        at = instant(said.get("DeliveredAt"))
        return [ProviderEvent(id, DELIVERED, address, at, message_id=message_id)]
    if record != "Bounce" or kind not in TYPES:
        return []
    words = text(said.get("Details")) or text(said.get("Description"))
    bounce_class, category = judged(str(TYPES[kind]), 0, words)
    at = instant(said.get("BouncedAt"))
    return [
        ProviderEvent(
            id, BOUNCED, address, at, bounce_class, category, words, message_id=message_id
        )
    ]


def _message_id(dump: object) -> str:
    """Postmark names its own id; ours stands in the dump of the bounce, if that is sent along."""
    found = [] if not isinstance(dump, str) else _MESSAGE_ID.findall(dump[:_DUMP_MAX])
    return str(found[-1]) if found else ""  # the returned mail comes last
