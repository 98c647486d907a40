"""Whether a mail is a bounce or a warning of delay, where no report says so.

The invariant: it takes both, words that say that mail was not delivered, and the build of a mail
that a system writes. Whoever quotes, forwards or imitates a bounce has the words alone, and is
believed nothing. Pure.
"""

from __future__ import annotations

from manta.delivery.returns import bounce_prose
from manta.delivery.returns.inbound_mail import Mail, plain, wordings
from manta.delivery.returns.mailparts import Fields
from manta.delivery.returns.original import Original


def is_bounce(mail: Mail, original: Original) -> bool:
    """Whether a system says that mail was not delivered, and the mail is built as systems do it:
    words alone prove nothing, as "your parcel could not be delivered" from a "Mail Team" shows."""
    return _says_undelivered(mail) and _is_built_as_a_bounce(mail, original)


def _is_built_as_a_bounce(mail: Mail, original: Original) -> bool:
    """A report, an empty return path (RFC 5321 §4.5.5), a mail that is returned, a transcript of
    SMTP, an address that systems write from, whatever its display name, or a field that only they
    write; else plain text that asks for no click."""
    address = mail.sender.rpartition("<")[2]
    return (
        mail.root.content_type == "multipart/report"
        or "x-failed-recipients" in mail.fields
        or _has_empty_return_path(mail.fields)
        or bool(original.headers)
        or mail.fields.get("auto-submitted").strip().lower().startswith("auto")
        or not address
        or wordings().has("bounce", "senders", address)
        or any(bounce_prose.has_code(line) for line in mail.prose.lines)
        or not ("text/html" in mail.parts or "://" in mail.said or "www." in mail.said)
    )


def _says_undelivered(mail: Mail) -> bool:
    """The witnesses are who writes, the empty return path, the subject and the text; the less a
    system is known by its name, the more the text must say. People who answer or forward
    (RFC 5322 §3.6.4), and lists, write no bounces; vacation notices have an empty return path too
    (RFC 3834 §3.3)."""
    words, fields, subject = wordings(), mail.fields, plain(mail.subject)
    if "x-failed-recipients" in fields:
        return True
    if words.has("bounce", "not_subjects", subject):
        return False
    is_by_subject = words.has("bounce", "subjects", subject) or words.has(
        "delay", "subjects", subject
    )
    says = words.has("bounce", "texts", mail.said) or words.has("delay", "texts", mail.said)
    if not mail.sender or words.has("bounce", "senders", mail.sender):
        return says or words.has("bounce", "subjects", subject)
    is_answer = "in-reply-to" in fields or "references" in fields
    if (subject.startswith(_ANSWERS) and is_answer) or words.has("auto_reply", "subjects", subject):
        return False
    opening = mail.said[:_OPENING_CHARACTERS]
    is_strong = is_by_subject and words.has("bounce", "strong", opening)
    if _has_empty_return_path(fields):
        return (says and is_by_subject) or is_strong
    is_a_persons = opening.startswith(_GREETINGS) or "list-unsubscribe" in fields
    return is_strong and not is_a_persons


_OPENING_CHARACTERS = 400  # where a system says what it has to say
_GREETINGS = ("hello", "hi ", "hi,", "hey", "dear", "good ", "hallo", "guten", "liebe", "sehr g")
_ANSWERS = (
    "re:",
    "fw:",
    "fwd:",
    "aw:",
    "wg:",
    "tr:",
    "sv:",
    "rv:",
    "antw:",
    "r:",
    "i:",
    "回复",
    "转发",
)


def _has_empty_return_path(fields: Fields) -> bool:
    return_path = fields.get("return-path").strip().lower()
    return return_path == "<>" or "mailer-daemon" in return_path


def is_delay_warning(mail: Mail) -> bool:
    words = wordings()
    subject = plain(mail.subject)
    said = words.has("delay", "texts", mail.said)
    if words.has("delay", "not_texts", mail.said) and not words.has("delay", "subjects", subject):
        return False
    return said
