"""E-mail addresses: whether a text is one, and the form in which it is kept.

The judge is email-validator (RFC 5321, 5322, 6531, IDNA 2008), without DNS: quoted local parts,
domain literals, comments and display names are refused, local parts have at most 64 characters,
special-use domains are refused except ``.test`` (RFC 6761 §6.2 keeps it for testing). The kept
form has the local part as it came, in NFC, and the domain in lower-case ASCII. Spaces around are
taken away; any other white space or control character inside or around refuses the text, so a kept
address can never break a header.

The library needs 30 µs an address. Nearly all addresses are plain ASCII and shorter than 65
characters; those go by one regular expression that accepts only what the library accepts and keeps
in the same form (a property test holds them equal), in bulk under half a microsecond.

Two addresses are the same when ``manta.people.identities.compared`` says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from email_validator import EmailSyntaxError, validate_email

PLAIN_LENGTH_MAX = 64  # so that no limit of part, label or whole can be exceeded
TEXT_LENGTH_MAX = 1_000  # longer texts are refused unread

_ATOM = r"[a-zA-Z0-9_!#$%&'*+\-/=?^`{|}~]+"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9\-]*[a-zA-Z0-9])?"
_TOP = r"[a-zA-Z](?:[a-zA-Z0-9\-]*[a-zA-Z])?"
PLAIN = rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_TOP}"
# Special-use domains, Punycode and labels like `ab--c` are the library's to judge.
DOUBTFUL = r"--|(?i:[.@](?:arpa|invalid|local|localhost|onion|test)$)"
_plain = re.compile(PLAIN)
_doubtful = re.compile(DOUBTFUL.replace("$", r"\Z"))


@dataclass(frozen=True)
class Refused:
    """Why a text is no address, as a sentence for the person who typed it."""

    reason: str


def normalised(text: str) -> str | Refused:
    """The kept form of an address, or why it is none."""
    text = text.strip(" ")
    if len(text) <= PLAIN_LENGTH_MAX and _plain.fullmatch(text) and not _doubtful.search(text):
        local, _, domain = text.rpartition("@")
        return f"{local}@{domain.lower()}"
    return judged(text)


def judged(text: str) -> str | Refused:
    """The library's answer alone."""
    if not text:
        return Refused("The address is empty.")
    if len(text) > TEXT_LENGTH_MAX:
        return Refused(f"The address has {len(text)} characters; 254 are possible.")
    try:
        address = validate_email(
            text, check_deliverability=False, strict=True, test_environment=True
        )
    except (EmailSyntaxError, UnicodeError) as error:
        return Refused(str(error))
    return f"{address.local_part}@{address.ascii_domain}"


def normalised_each(texts: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """``normalised`` of a column: kept forms (null where there was null or none), and the reasons
    of the refused by place."""
    texts = pc.utf8_trim(texts, " ")
    plain = pc.and_(
        pc.match_substring_regex(texts, f"^(?:{PLAIN})$"),
        pc.and_(
            pc.less_equal(pc.utf8_length(texts), PLAIN_LENGTH_MAX),
            pc.invert(pc.match_substring_regex(texts, DOUBTFUL)),
        ),
    )
    lower = pc.ascii_lower(texts)
    settled = pc.fill_null(pc.and_(plain, pc.equal(lower, texts)), True)
    others = np.flatnonzero(~settled.to_numpy(zero_copy_only=False)).tolist()
    if not others:
        return texts, {}
    values = texts.to_pylist()
    reasons: dict[int, str] = {}
    for place in others:
        answer = normalised(values[place])
        if isinstance(answer, Refused):
            reasons[place] = answer.reason
            values[place] = None
        else:
            values[place] = answer
    return pa.array(values, pa.string()), reasons
