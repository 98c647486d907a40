"""Our own format, for whatever has no module: Standard Webhooks (version 1, HMAC-SHA256).

The body is one event or ``{"events": […]}``, each with ``id``, ``type`` (``bounced``,
``complained`` or ``delivered``), ``address``, and where known ``occurred_at`` (RFC 3339),
``message_id``, ``return_path``, ``bounce_class`` (hard, soft, block or message), ``diagnostic``,
``feedback_type``. A bounce that names no class is classified by its diagnostic.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns.classification import classify_reply
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
    listing,
    mapping,
    matches_any,
    refused,
    text,
)

TOLERANCE = timedelta(minutes=5)
SECRET_PREFIX = "whsec_"  # noqa: S105  # what secrets begin with
_CLASSES = tuple(
    str(each) for each in BounceClass if each not in (BounceClass.NONE, BounceClass.COMPLAINT)
)


def verify(headers: Headers, body: bytes, secrets: Sequence[str], now: datetime) -> None:
    """Raises ``Unauthorized``. Of several secrets or signatures (a rotation) one has to fit."""
    id, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not id or not at.isdigit() or not is_fresh(instant(at), now, TOLERANCE):
        raise refused()
    signed = f"{id}.{at}.".encode() + body
    keys = [decoded(secret.removeprefix(SECRET_PREFIX)) for secret in secrets]
    expected = [hmac.digest(key, signed, sha256) for key in keys if key]
    given = [
        decoded(value)
        for version, _, value in (
            signature.partition(",") for signature in headers.get("webhook-signature", "").split()
        )
        if version == "v1"
    ]
    if not any(matches_any(one, expected) for one in given[:10]):
        raise refused()


def events(body: bytes) -> list[ProviderEvent]:
    said = document(body)
    given = listing(mapping(said)["events"]) if "events" in mapping(said) else [said]
    found = []
    for each in map(mapping, given):
        kind, id = text(each.get("type")), text(each.get("id"), ID_MAX)
        address = text(each.get("address"))
        if kind not in (BOUNCED, COMPLAINED, DELIVERED) or not id or not address:
            continue
        found.append(
            ProviderEvent(
                id,
                kind,
                address,
                instant(each.get("occurred_at")),
                *_failure(each, kind),
                feedback_type=text(each.get("feedback_type"), 40),
                message_id=text(each.get("message_id")),
                return_path=text(each.get("return_path")),
            )
        )
    return found


def _failure(each: Any, kind: str) -> tuple[str, str, str]:
    if kind != BOUNCED:
        return "", "", ""
    diagnostic = text(each.get("diagnostic"))
    classified = classify_reply(0, diagnostic) if diagnostic else None
    said = text(each.get("bounce_class"))
    if said not in _CLASSES:
        said = str(classified.bounce_class) if classified else ""
    category = text(each.get("category"), 60) or (classified.category if classified else "")
    return said if said in _CLASSES else str(BounceClass.SOFT), category, diagnostic
