"""Amazon SES, by notifications of SNS: signed by a certificate that the message itself names.

So a forger could name their own. The certificate is taken only from ``https://sns.<region>
.amazonaws.com/…pem``, without port, user, query or redirect, and must be valid now. Since anybody
may have SNS sign something, only messages of topics that the settings name are taken; a
subscription to one of these is confirmed at the same kind of address.

Signature version 1 is RSA PKCS #1 v1.5 with SHA-1, version 2 with SHA-256, over some fields in the
order of their names. SNS tries for about an hour to deliver; what is older is a replay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256

from manta.delivery.reputation.observations import BounceClass
from serve_apps.webhooks.events import (
    BOUNCED,
    COMPLAINED,
    DELIVERED,
    ID_MAX,
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

TOLERANCE = timedelta(hours=1)
NOTIFICATION = "Notification"
CONFIRMATION = "SubscriptionConfirmation"
_HOST = re.compile(r"sns\.[a-z]{2}[a-z0-9-]{1,30}\.amazonaws\.com(?:\.cn)?", re.ASCII)
_SIGNED = {
    NOTIFICATION: ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    CONFIRMATION: (
        "Message",
        "MessageId",
        "SubscribeURL",
        "Timestamp",
        "Token",
        "TopicArn",
        "Type",
    ),
}
_SIGNED["UnsubscribeConfirmation"] = _SIGNED[CONFIRMATION]
_HASHES = {"1": SHA1, "2": SHA256}

# (bounceType, bounceSubType), then bounceType alone.
BOUNCES = {
    ("Permanent", ""): BounceClass.HARD,
    ("Transient", ""): BounceClass.SOFT,
    ("Transient", "MessageTooLarge"): BounceClass.MESSAGE,
    ("Transient", "ContentRejected"): BounceClass.MESSAGE,
    ("Transient", "AttachmentRejected"): BounceClass.MESSAGE,
    ("Undetermined", ""): BounceClass.SOFT,
}
_NOT_TRIED = ("UnsubscribedRecipient",)  # SES's own list of who unsubscribed


@dataclass(frozen=True)
class Envelope:
    """An SNS message whose address for the certificate may be asked."""

    fields: Mapping[str, str]
    certificate_url: str

    @property
    def type(self) -> str:
        return self.fields["Type"]


def envelope_of(body: bytes, topics: Sequence[str], now: datetime) -> Envelope:
    """The message, as far as it can be checked without its certificate. Raises ``Unauthorized``."""
    given = mapping(document(body))
    fields = {name: value for name, value in given.items() if isinstance(value, str)}
    url = fields.get("SigningCertURL", "")
    is_ours = fields.get("TopicArn", "") in topics and fields.get("Type", "") in _SIGNED
    if not is_ours or not is_fresh(instant(fields.get("Timestamp")), now, TOLERANCE):
        raise refused()
    if not is_of_sns(url) or not urlsplit(url).path.endswith(".pem") or urlsplit(url).query:
        raise refused()
    return Envelope(fields, url)


def is_of_sns(url: str) -> bool:
    """Whether a URL is one of SNS's own, and nothing can hide in it."""
    if len(url) > 2_000 or not url.isascii() or not url.isprintable() or set(url) & set(" \\@#"):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme == "https" and port is None and bool(_HOST.fullmatch(parts.netloc))


def confirmation_url(envelope: Envelope) -> str:
    """Where a subscription is confirmed. Raises ``Unauthorized`` for an address that is not SNS's,
    or that does something else."""
    url = envelope.fields.get("SubscribeURL", "")
    if not is_of_sns(url) or parse_qs(urlsplit(url).query).get("Action") != ["ConfirmSubscription"]:
        raise refused()
    return url


def verify(envelope: Envelope, certificate: bytes, now: datetime) -> None:
    """Raises ``Unauthorized``."""
    fields = envelope.fields
    algorithm = _HASHES.get(fields.get("SignatureVersion", ""))
    if algorithm is None:
        raise refused()
    signed = "".join(
        f"{name}\n{fields[name]}\n" for name in _SIGNED[envelope.type] if name in fields
    )
    try:
        known = x509.load_pem_x509_certificate(certificate)
        at = now.replace(tzinfo=UTC)
        key = known.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or not (
            known.not_valid_before_utc <= at <= known.not_valid_after_utc
        ):
            raise refused()
        key.verify(
            decoded(fields.get("Signature", "")),
            signed.encode(),
            padding.PKCS1v15(),
            algorithm(),  # version 1 is SHA-1 by SNS's own definition
        )
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise refused() from None


def events(envelope: Envelope) -> list[ProviderEvent]:
    """The events of a notification, of SES's feedback or of its event publishing."""
    try:
        said = mapping(document(envelope.fields.get("Message", "").encode()))
    except Exception:  # the message of a test, or of another service
        return []
    kind = said.get("notificationType") or said.get("eventType")
    mail, id = mapping(said.get("mail")), text(envelope.fields.get("MessageId"), ID_MAX)
    names = {"message_id": _message_id(mail), "return_path": text(mail.get("source"))}
    if kind == "Bounce":
        return _bounces(mapping(said.get("bounce")), id, names)
    if kind == "Complaint":
        return _complaints(mapping(said.get("complaint")), id, names)
    if kind == "Delivery":
        delivery = mapping(said.get("delivery"))
        at = instant(delivery.get("timestamp"))
        return [
            ProviderEvent(f"{id}:{n}", DELIVERED, text(address), at, **names)
            for n, address in enumerate(listing(delivery.get("recipients")))
        ]
    return []


def _bounces(bounce: Mapping[str, Any], id: str, names: Mapping[str, str]) -> list[ProviderEvent]:
    kind, finer = text(bounce.get("bounceType")), text(bounce.get("bounceSubType"))
    if finer in _NOT_TRIED:
        return []
    usual = BOUNCES.get((kind, finer)) or BOUNCES.get((kind, "")) or BounceClass.SOFT
    at, found = instant(bounce.get("timestamp")), []
    for n, one in enumerate(map(mapping, listing(bounce.get("bouncedRecipients")))):
        address = text(one.get("emailAddress"))
        words = text(one.get("diagnosticCode")) or text(one.get("status"))
        bounce_class, category = judged(str(usual), 0, words)
        if address:
            found.append(
                ProviderEvent(
                    f"{id}:{n}", BOUNCED, address, at, bounce_class, category, words, **names
                )
            )
    return found


def _complaints(
    complaint: Mapping[str, Any], id: str, names: Mapping[str, str]
) -> list[ProviderEvent]:
    at = instant(complaint.get("timestamp"))
    kind = text(complaint.get("complaintFeedbackType"), 40) or "abuse"
    return [
        ProviderEvent(f"{id}:{n}", COMPLAINED, address, at, feedback_type=kind, **names)
        for n, one in enumerate(map(mapping, listing(complaint.get("complainedRecipients"))))
        if (address := text(one.get("emailAddress")))
    ]


def _message_id(mail: Mapping[str, Any]) -> str:
    """Of our own mail: SES puts one of its own in the place of ours, and keeps ours in the list of
    headers."""
    for header in map(mapping, listing(mail.get("headers"))):
        if text(header.get("name")).lower() == "message-id":
            return text(header.get("value"))
    return text(mapping(mail.get("commonHeaders")).get("messageId"))
