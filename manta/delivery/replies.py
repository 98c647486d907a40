"""What an SMTP reply means (RFC 5321 §4.2, RFC 3463).

The first digit decides what becomes of the message: 2 accepted, 4 deferred, 5 failed. The rest
only explains: the enhanced status code is put into plain words for the person who reads a report,
and the reply itself is kept as it came, on one line, cut, with its control characters escaped, so
that nothing a server says can break a log line, a table or a page.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

TEXT_CHARACTERS_MAX = 500


class Verdict(StrEnum):
    """What is known of one message after one attempt."""

    ACCEPTED = "accepted"  # the server took responsibility for it
    DEFERRED = "deferred"  # refused for now (4yz): try again later
    FAILED = "failed"  # refused for good (5yz), or impossible to send at all
    NOT_SENT = "not_sent"  # not tried, or the connection went before the final dot
    UNCERTAIN = "uncertain"  # the final dot was sent and no reply came


class Reply(NamedTuple):
    """The outcome of one message. ``code`` is 0 where no server's reply decided it."""

    verdict: Verdict
    code: int
    text: str
    reason: str = ""  # plain words; empty for an accepted message


# RFC 3463 §3: subject.detail, in words that say what was refused and why.
ENHANCED_REASONS: dict[tuple[int, int], str] = {
    (1, 0): "address refused",
    (1, 1): "mailbox does not exist",
    (1, 2): "domain does not exist",
    (1, 3): "address is malformed",
    (1, 4): "address is ambiguous",
    (1, 5): "address is valid but nothing was delivered",
    (1, 6): "mailbox has moved",
    (1, 7): "sender address is malformed",
    (1, 8): "sender domain does not exist",
    (1, 9): "message relayed to a system that does not report delivery",
    (1, 10): "domain takes no mail (null MX)",
    (2, 0): "mailbox refused the message",
    (2, 1): "mailbox is disabled",
    (2, 2): "mailbox is full",
    (2, 3): "message is too long for the mailbox",
    (2, 4): "mailing list could not be expanded",
    (3, 0): "mail system refused the message",
    (3, 1): "mail system is full",
    (3, 2): "mail system accepts no mail now",
    (3, 3): "mail system lacks a needed feature",
    (3, 4): "message is too big",
    (3, 5): "mail system is misconfigured",
    (4, 0): "network or routing trouble",
    (4, 1): "host does not answer",
    (4, 2): "connection was lost",
    (4, 3): "directory service failed",
    (4, 4): "no route to the host",
    (4, 5): "mail system is congested",
    (4, 6): "routing loop",
    (4, 7): "message expired on the way",
    (5, 0): "protocol error",
    (5, 1): "command not allowed",
    (5, 2): "syntax error",
    (5, 3): "too many recipients",
    (5, 4): "invalid argument",
    (5, 5): "wrong protocol version",
    (6, 0): "content refused",
    (6, 1): "media type not supported",
    (6, 2): "conversion needed but forbidden",
    (6, 3): "conversion needed but not supported",
    (6, 4): "conversion would lose content",
    (6, 5): "conversion failed",
    (6, 7): "address needs SMTPUTF8, which the server lacks",
    (7, 0): "refused by policy",
    (7, 1): "refused by policy: not authorised",
    (7, 2): "mailing list may not be posted to",
    (7, 5): "encryption failed",
    (7, 8): "authentication failed",
    (7, 9): "authentication method too weak",
    (7, 10): "encryption needed",
    (7, 13): "account is disabled",
    (7, 14): "trust relationship needed",
    (7, 15): "priority is too low",
    (7, 16): "message is too big for its priority",
    (7, 17): "mailbox owner has changed",
    (7, 20): "no DKIM signature passed",
    (7, 21): "no acceptable DKIM signature",
    (7, 23): "SPF check failed",
    (7, 24): "SPF check error",
    (7, 25): "reverse DNS check failed",
    (7, 26): "more than one authentication check failed",
    (7, 27): "sender domain takes no mail (null MX)",
    (7, 28): "mail flood",
}
# RFC 3463 §3.1: where the detail is unknown, the subject still says whose trouble it is.
SUBJECT_REASONS: dict[int, str] = {
    1: "address refused",
    2: "mailbox refused the message",
    3: "mail system refused the message",
    4: "network or routing trouble",
    5: "protocol error",
    6: "content refused",
    7: "refused by policy",
}
# RFC 5321 §4.2.3, for servers without enhanced codes.
BASIC_REASONS: dict[int, str] = {
    421: "service not available",
    450: "mailbox not available now",
    451: "error while processing",
    452: "out of storage",
    454: "temporary authentication failure",
    455: "parameters not accepted now",
    500: "syntax error",
    501: "syntax error in parameters",
    502: "command not implemented",
    503: "bad sequence of commands",
    504: "parameter not implemented",
    521: "host takes no mail",
    530: "authentication needed",
    535: "authentication failed",
    550: "mailbox not available",
    551: "user not local",
    552: "over quota or message too big",
    553: "mailbox name not allowed",
    554: "transaction failed",
    555: "parameters not accepted",
    556: "domain takes no mail",
}
_ENHANCED = re.compile(r"[245]\.(\d{1,3})\.(\d{1,3})\b")


def printable(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """The text on one line, cut, with everything that does not print written as an escape."""
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii")
            for c in text[:characters_max]
        )
    return text[:characters_max]


def reason_of(code: int, text: str) -> str:
    """Why a server refused, in plain words, from the enhanced code or else the basic one."""
    match = _ENHANCED.match(text)
    if match:
        subject, detail = int(match[1]), int(match[2])
        words = ENHANCED_REASONS.get((subject, detail)) or SUBJECT_REASONS.get(subject)
        if words:
            return words
    return BASIC_REASONS.get(code) or ("refused for now" if code < 500 else "refused")


def classify(code: int, text: str) -> Reply:
    """The outcome that a final reply to one of a message's commands gives it.

    A code outside 2yz, 4yz and 5yz has no meaning there: the caller treats it as a violation of
    the protocol and never asks here (``ValueError``).
    """
    if 200 <= code <= 299:
        return Reply(Verdict.ACCEPTED, code, printable(text))
    if 400 <= code <= 499:
        return Reply(Verdict.DEFERRED, code, printable(text), reason_of(code, text))
    if 500 <= code <= 599:
        return Reply(Verdict.FAILED, code, printable(text), reason_of(code, text))
    raise ValueError(f"reply code {code} is neither 2yz, 4yz nor 5yz")
