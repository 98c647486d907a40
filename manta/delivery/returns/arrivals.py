"""One mail from outside → what it is.

The one reader of all that comes to our return paths, feedback addresses and unsubscribe addresses.
It tells apart bounces, warnings of delay, success reports, complaints, automatic replies,
challenges, read receipts, wishes to unsubscribe, and what people wrote; names the recipients that
a bounce is about, and everything that says which of our mails it is about. The last is only the
sender's word: whoever acts on it proves it by the signed return path that the mail came to.

The invariant: a mail that is not surely a bounce or a complaint names no recipient, so nobody is
suppressed by a vacation notice, by a person who quotes a bounce, or by a warning. `read` is
bounded in what it looks at and never raises, whatever the bytes are.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns import bounce, bounce_prose
from manta.delivery.returns.bounce import Action, Recipient, first_address
from manta.delivery.returns.bounce_prose import Prose
from manta.delivery.returns.bounce_signs import is_bounce, is_delay_warning
from manta.delivery.returns.classification import Category
from manta.delivery.returns.feedback import NO_COMPLAINT, NOT_SPAM, feedback_of, is_redacted
from manta.delivery.returns.inbound_mail import Mail, mail_of, plain, wordings
from manta.delivery.returns.mailparts import Fields, split_fields
from manta.delivery.returns.original import Original, original_of

__all__ = ["Action", "Arrival", "ArrivalKind", "Original", "Recipient", "read"]


class ArrivalKind(StrEnum):
    BOUNCE = "bounce"  # the recipients with action `failed` were refused
    DELAY = "delay"  # a warning: nobody is suppressed
    DELIVERED = "delivered"  # a success report: delivered, relayed or expanded
    COMPLAINT = "complaint"
    NOT_SPAM = "not_spam"  # the opposite of a complaint
    UNSUBSCRIBE = "unsubscribe"  # the text asks for it; the inbox also decides by its address
    AUTO_REPLY = "auto_reply"  # out of office and the like (RFC 3834)
    CHALLENGE = "challenge"  # asks the sender to confirm
    READ_RECEIPT = "read_receipt"  # RFC 8098
    OTHER = "other"  # what a person wrote, or what cannot be told


class Arrival(NamedTuple):
    """``recipients`` is empty unless ``kind`` is BOUNCE, DELAY, DELIVERED, COMPLAINT or NOT_SPAM.
    ``feedback_type`` is ARF's: abuse, fraud, opt-out, not-spam ..."""

    kind: ArrivalKind
    recipients: tuple[Recipient, ...] = ()
    original: Original = Original()
    feedback_type: str = ""
    subject: str = ""


def read(raw: bytes) -> Arrival:
    """What this mail is. Bounded in time and memory; never raises."""
    mail = mail_of(raw)
    original = original_of(mail.parts, mail.fields, mail.prose.returned)
    for decide in (_as_complaint, _as_report, _as_receipt, _as_plain_complaint, _as_prose_bounce):
        arrival = decide(mail, original)
        if arrival is not None:
            return arrival._replace(subject=mail.subject)
    return Arrival(_as_written(mail), (), original, "", mail.subject)


# ------------------------------------------------------------------ complaints


def _as_complaint(mail: Mail, original: Original) -> Arrival | None:
    part = mail.parts.get("message/feedback-report")
    if part is None:
        return None
    feedback = feedback_of(part)
    if feedback.feedback_type in NO_COMPLAINT:
        return Arrival(ArrivalKind.OTHER, (), original, feedback.feedback_type)
    is_good = feedback.feedback_type in NOT_SPAM
    kind = ArrivalKind.NOT_SPAM if is_good else ArrivalKind.COMPLAINT
    original = original._replace(
        return_path=original.return_path or feedback.return_path,
        envelope_id=original.envelope_id or feedback.envelope_id,
    )
    named = feedback.recipients or _complained_to(original)
    return Arrival(kind, _complained(named, kind), original, feedback.feedback_type or "abuse")


def _complained_to(original: Original) -> tuple[str, ...]:
    """Who complained, where the report does not say: the one the mail was written to."""
    headers = dict(reversed(original.headers))
    for name in ("x-hmxmroriginalrecipient", "x-original-to", "delivered-to", "x-rcpt-to", "to"):
        found = bounce.addresses_in(headers.get(name, ""))
        if len(found) == 1 and not is_redacted(found[0]):
            return tuple(found)
    return ()


def _complained(addresses: tuple[str, ...], kind: ArrivalKind) -> tuple[Recipient, ...]:
    is_complaint = kind is ArrivalKind.COMPLAINT
    bounce_class = BounceClass.COMPLAINT if is_complaint else BounceClass.NONE
    return tuple(
        Recipient(address, Action.DELIVERED, "", "", "", bounce_class) for address in addresses
    )


def _as_plain_complaint(mail: Mail, original: Original) -> Arrival | None:
    """Hotmail's JMRP and others forward the mail, with a header or a subject that says so."""
    headers = dict(original.headers)
    marked = "x-hmxmroriginalrecipient" in mail.fields or "x-hmxmroriginalrecipient" in headers
    if not original.headers:
        return None
    about = plain(f"{first_address(mail.sender) or mail.sender} {mail.subject}")
    if not marked and not wordings().has("feedback", "plain", about):
        return None
    by_mark = first_address(mail.fields.get("x-hmxmroriginalrecipient"))
    named = (by_mark,) if by_mark else _complained_to(original)
    recipients = _complained(named, ArrivalKind.COMPLAINT)
    return Arrival(ArrivalKind.COMPLAINT, recipients, original, "abuse")


# ------------------------------------------------------------------ bounces


def _as_report(mail: Mail, original: Original) -> Arrival | None:
    part = mail.parts.get("message/delivery-status") or mail.parts.get(
        "message/global-delivery-status"
    )
    if part is None:
        return None
    recipients = bounce.report_recipients(part)
    if not recipients:
        return _as_prose_bounce(mail, original, is_report=True)
    explained = [_explained(recipient, mail.prose) for recipient in recipients]
    actions = {recipient.action for recipient in explained}
    if all(recipient.category == Category.CHALLENGE_RESPONSE for recipient in explained):
        return Arrival(ArrivalKind.CHALLENGE, (), original)
    if Action.FAILED in actions:
        kind = ArrivalKind.BOUNCE
    elif Action.DELAYED in actions:
        kind = ArrivalKind.DELAY
    else:
        kind = ArrivalKind.DELIVERED
    return Arrival(kind, tuple(explained), original)


def _explained(recipient: Recipient, prose: Prose) -> Recipient:
    """With the reason that only the prose says, where the report's fields say none."""
    if recipient.action not in (Action.FAILED, Action.DELAYED) or recipient.category != _UNKNOWN:
        return recipient
    found = bounce_prose.prose_addresses(prose, frozenset())
    for index, place in enumerate(found):
        if place.address.lower() == recipient.address.lower():
            words = bounce_prose.diagnostic_of(prose, found, index)
            better = bounce.judged(recipient.address, recipient.action, recipient.status, words)
            if better.category != _UNKNOWN:
                return better
    return recipient


_UNKNOWN = "Uncategorized"


def _as_receipt(mail: Mail, original: Original) -> Arrival | None:
    part = mail.parts.get("message/disposition-notification")
    if part is None:
        return None
    fields, _ = split_fields(part.text().lstrip("\n"))
    disposition = fields.get("disposition").lower()
    is_refusal = disposition.startswith("automatic-action") and "displayed" not in disposition
    if is_refusal and wordings().has("bounce", "texts", mail.said):
        # Sieve's `reject` (RFC 5429 §2.1.1) refuses by a read receipt.
        recipients = bounce.recipients_of_fields(part.text())
        if recipients:
            failed = [
                bounce.judged(found.address, Action.FAILED, "", _reason(mail))
                for found in recipients
            ]
            return Arrival(ArrivalKind.BOUNCE, tuple(failed), original)
    return Arrival(ArrivalKind.READ_RECEIPT, (), original)


def _reason(mail: Mail) -> str:
    return bounce.one_line(" ".join(mail.prose.lines[:40]))


def _as_prose_bounce(mail: Mail, original: Original, is_report: bool = False) -> Arrival | None:
    if not is_report and not is_bounce(mail, original):
        return None
    is_delay = is_delay_warning(mail)
    action = Action.DELAYED if is_delay else Action.FAILED
    recipients = tuple(_prose_recipients(mail, original, action))
    return Arrival(ArrivalKind.DELAY if is_delay else ArrivalKind.BOUNCE, recipients, original)


def _prose_recipients(mail: Mail, original: Original, action: Action) -> list[Recipient]:
    inside = bounce.recipients_of_fields("\n".join(mail.prose.lines))
    if inside and any("final-recipient" in line.lower() for line in mail.prose.lines):
        return inside
    named = bounce.addresses_in(mail.fields.get("x-failed-recipients"))
    found = bounce_prose.prose_addresses(mail.prose, _not_recipients(mail, original))
    known, guessed = _names_completed(mail, original)
    if known and all(place.weight < 3 for place in found):
        found = []
    reason = _general_reason(mail)
    recipients: list[Recipient] = []
    placed = {place.address.lower(): index for index, place in enumerate(found)}
    addresses = named or [place.address for place in found]
    addresses = addresses or known or _last_resort(mail, original) or guessed
    for address in addresses[: bounce.RECIPIENTS_MAX]:
        index = placed.get(address.lower())
        own = bounce_prose.diagnostic_of(mail.prose, found, index) if index is not None else ""
        recipients.append(_judged(address, action, own, reason))
    return recipients


def _judged(address: str, action: Action, own: str, reason: str) -> Recipient:
    first = bounce.judged(address, action, "", own or reason)
    if first.category != _UNKNOWN or not own:
        return first
    second = bounce.judged(address, action, "", reason)
    return second if second.category != _UNKNOWN else first


def _general_reason(mail: Mail) -> str:
    """What the text says beside addresses: lines with a code, else the first paragraph that is
    understood."""
    coded = [line for line in mail.prose.lines if bounce_prose.has_code(line)]
    if coded:
        return bounce.one_line(" ".join(coded))
    return bounce_prose.reason_in(mail.prose)


def _not_recipients(mail: Mail, original: Original) -> frozenset[str]:
    headers = dict(reversed(original.headers))
    values = " ".join(
        headers.get(name, "") for name in ("from", "sender", "return-path", "reply-to")
    )
    return mail.own_addresses | {address.lower() for address in bounce.addresses_in(values)}


def _names_completed(mail: Mail, original: Original) -> tuple[list[str], list[str]]:
    """Mailbox names that stand without a domain, with the one of the returned mail's header, or of
    the system that writes."""
    names = bounce_prose.names_alone(mail.prose)
    known = bounce.addresses_in(" ".join(value for _, value in original.headers)[:20_000])
    same = [a for a in known if a.partition("@")[0].lower() in {name.lower() for name in names}]
    domain = first_address(mail.sender).rpartition("@")[2]
    guessed = [f"{name}@{domain}" for name in names] if domain and len(names) == 1 else []
    return same, guessed


def _last_resort(mail: Mail, original: Original) -> list[str]:
    """Whom the returned mail was written to, if that is one person, and not at our own place."""
    own_domains = {address.rpartition("@")[2] for address in mail.own_addresses}
    headers = dict(reversed(original.headers))
    for field in ("x-original-to", "delivered-to", "to"):
        found = bounce.addresses_in(headers.get(field, ""))
        if len(found) == 1 and found[0].lower().rpartition("@")[2] not in own_domains:
            return found
    return []


# ------------------------------------------------------------------ what is no bounce


def _as_written(mail: Mail) -> ArrivalKind:
    words = wordings()
    subject = plain(mail.subject)
    if words.has("challenge", "subjects", subject) and words.has("challenge", "texts", mail.said):
        return ArrivalKind.CHALLENGE
    if _is_automatic(mail.fields) or words.has("auto_reply", "subjects", subject):
        return ArrivalKind.AUTO_REPLY
    if words.has("unsubscribe", "subjects", subject):
        return ArrivalKind.UNSUBSCRIBE
    if not subject and words.has("unsubscribe", "texts", mail.said):
        return ArrivalKind.UNSUBSCRIBE
    return ArrivalKind.OTHER


def _is_automatic(fields: Fields) -> bool:
    """RFC 3834 §5, and the fields that came before it."""
    submitted = fields.get("auto-submitted").strip().lower()
    if submitted and not submitted.startswith("no"):
        return True
    if fields.get("precedence").strip().lower() in ("auto_reply", "auto-reply", "junk"):
        return True
    names = (
        "x-autoreply",
        "x-autorespond",
        "x-autoreply-from",
        "x-auto-response",
        "x-autoresponder",
    )
    return any(name in fields for name in names) or bool(
        fields.get("x-auto-response-suppress")
        and fields.get("x-ms-exchange-generated-message-source")
    )
