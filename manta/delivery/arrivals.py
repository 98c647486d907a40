"""One mail from outside → what it is."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from manta.delivery.observations import BounceClass


class ArrivalKind(StrEnum):
    BOUNCE = "bounce"  # the recipients with action `failed` were refused
    DELAY = "delay"  # a warning: nobody is suppressed
    DELIVERED = "delivered"  # a success DSN: delivered, relayed or expanded
    COMPLAINT = "complaint"
    NOT_SPAM = "not_spam"  # the opposite of a complaint
    UNSUBSCRIBE = "unsubscribe"  # the text asks for it; the inbox also decides by its address
    AUTO_REPLY = "auto_reply"  # out of office and the like
    CHALLENGE = "challenge"  # asks the sender to confirm
    READ_RECEIPT = "read_receipt"  # RFC 8098
    OTHER = "other"  # what a person wrote, or what cannot be told


class Action(StrEnum):
    """RFC 3464 §2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


class Recipient(NamedTuple):
    address: str
    action: Action
    status: str  # enhanced code, "" where none is given
    diagnostic: str  # the server's words, on one line, cut
    category: str
    bounce_class: BounceClass


class Original(NamedTuple):
    """Every place where the mail we sent may be named. All of it is the reporter's word."""

    message_id: str = ""  # without angle brackets
    return_path: str = ""
    recipient: str = ""
    envelope_id: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # of the returned mail, names in lower case


class Arrival(NamedTuple):
    kind: ArrivalKind
    recipients: tuple[Recipient, ...] = ()
    original: Original = Original()
    feedback_type: str = ""  # of ARF: abuse, fraud, opt-out, not-spam, ...
    subject: str = ""


def read(raw: bytes) -> Arrival:
    """What this mail is. Bounded; never raises."""
    raise NotImplementedError
