"""Abuse feedback reports (RFC 5965), and complaints in older forms.

A report says that a person pressed "this is spam" on a mail of ours, or the opposite. The
person's address is often withheld or written over (`redacted@...`), so what identifies the mail is
what was returned of it: its return path, its Message-ID, its List-Unsubscribe. Everything in a
report is the reporter's word. Pure; bounded by `mailparts`.
"""

from __future__ import annotations

from typing import NamedTuple

from manta.delivery.returns.bounce import RECIPIENTS_MAX, addresses_in
from manta.delivery.returns.mailparts import Part, decoded, split_fields

NOT_SPAM = frozenset({"not-spam", "not spam", "notspam"})
# RFC 6591 (DMARC failure reports) and TLS reports come in the same envelope; no person complained.
NO_COMPLAINT = frozenset({"auth-failure", "dmarc", "other"})


class Feedback(NamedTuple):
    """``feedback_type`` in lower case. ``recipients``: Original-Rcpt-To and Removal-Recipient."""

    feedback_type: str
    recipients: tuple[str, ...]
    return_path: str
    envelope_id: str


def is_redacted(address: str) -> bool:
    """Whether the reporter has written over the address (RFC 6590)."""
    return address.lower().startswith(("redacted", "undisclosed", "hidden@"))


def feedback_of(part: Part) -> Feedback:
    """What a `message/feedback-report` part says. Fields that are missing are empty."""
    text = decoded(part.data(), "utf-8").replace("\r\n", "\n").replace("\r", "\n")
    # The fields are one group (RFC 5965 §3), but blank lines are seen among them.
    fields, rest = split_fields(text.lstrip("\n"))
    if "feedback-type" not in fields and rest:
        fields, _ = split_fields(rest.lstrip("\n"))
    named: list[str] = []
    for name in ("original-rcpt-to", "removal-recipient", "x-original-rcpt-to", "rcpt-to"):
        for value in fields.every(name):
            named += [a for a in addresses_in(value) if a not in named and not is_redacted(a)]
    return_path = addresses_in(fields.get("original-mail-from"))
    return Feedback(
        fields.get("feedback-type").strip().lower(),
        tuple(named[:RECIPIENTS_MAX]),
        return_path[0] if return_path else "",
        fields.get("original-envelope-id").strip(),
    )
