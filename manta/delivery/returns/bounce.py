"""Delivery status notifications: RFC 3464, with RFC 3461 and RFC 6533.

A report says for each recipient what became of the mail: fields in groups that blank lines part.
Systems leave fields out, write the type without its address or run groups together; what names a
recipient counts. The address that was mailed (Original-Recipient) is preferred to the one it was
forwarded to. Pure, bounded by `RECIPIENTS_MAX` and by `mailparts`, and linear.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import unquote

from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns.classification import (
    Category,
    basic_code,
    classify_reply,
    is_permanent,
    normal,
)
from manta.delivery.returns.mailparts import Fields, Part, decoded, split_fields

RECIPIENTS_MAX = 100
DIAGNOSTIC_CHARACTERS_MAX = 500


class Action(StrEnum):
    """What a report says of one recipient (RFC 3464 §2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


class Recipient(NamedTuple):
    """``status`` is the enhanced code or ""; ``diagnostic`` the server's words on one line, cut.
    ``bounce_class`` is NONE unless the action is FAILED or DELAYED."""

    address: str
    action: Action
    status: str
    diagnostic: str
    category: str
    bounce_class: BounceClass

    @property
    def is_permanent(self) -> bool:
        """Whether the report says that delivery was given up, whatever for: also of a mailbox that
        is full, or a mail that became too old. It is not whether the address is dead."""
        return self.action is Action.FAILED


_ACTIONS = frozenset(action.value for action in Action)
_STATUS = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.]*\d)")
_LOCAL = r"[\w!#$%&*+/=?^{|}~.-]{1,64}"
_DOMAIN = r"(?:[\w-]{1,63}\.){1,10}(?:[\w-]{2,63}|[A-Za-z])"
ADDRESS = re.compile(
    rf"(?<![\w@])(?:\"([^\"\s@]{{1,64}})\"|({_LOCAL}))@({_DOMAIN}|\[[\d.]{{7,15}}\])"
)


def addresses_in(text: str) -> list[str]:
    """Addresses in the order they stand, as they are written, without repeats."""
    found: dict[str, str] = {}
    for match in ADDRESS.finditer(text):
        address = address_of(match)
        if address:
            found.setdefault(address.lower(), address)
    return list(found.values())


def first_address(text: str) -> str:
    return next(iter(addresses_in(text)), "")


def address_of(match: re.Match[str]) -> str:
    """The address that `ADDRESS` matched, or ""."""
    local, domain = match.group(1) or match.group(2), match.group(3)
    if local.lower().startswith(("smtp=", "smtp:", "mailto:")):
        local = local[5:] if local[4] in "=:" else local[7:]
    if not local or ".." in local or local[0] == "." or local[-1] == ".":
        return ""
    return f"{local}@{domain}"


def report_recipients(part: Part) -> list[Recipient]:
    """The recipients of a `message/delivery-status` part, or of text laid out like one."""
    data = part.data()
    return recipients_of_fields(decoded(data, "utf-8").replace("\r\n", "\n").replace("\r", "\n"))


def recipients_of_fields(text: str) -> list[Recipient]:
    """Recipients of groups of fields that blank lines part. A group counts if it names one."""
    found: dict[str, Recipient] = {}
    for group in _groups(text):
        recipient = _recipient_of(group)
        if recipient is not None and len(found) < RECIPIENTS_MAX:
            known = found.get(recipient.address.lower())
            if known is None or known.action is not Action.FAILED:
                found[recipient.address.lower()] = recipient
    return list(found.values())


def _groups(text: str) -> list[Fields]:
    """A group starts at a blank line, or where a field that names a recipient comes again."""
    groups: list[Fields] = []
    for block in text.split("\n\n")[: 4 * RECIPIENTS_MAX]:
        fields, _ = split_fields(block.strip("\n") + "\n\n")
        group: list[tuple[str, str]] = []
        for name, value in fields.all:
            if name == "final-recipient" and any(known == name for known, _ in group):
                groups.append(Fields(group))
                group = []
            group.append((name, value))
        groups.append(Fields(group))
    return groups


def _recipient_of(fields: Fields) -> Recipient | None:
    original, final = fields.get("original-recipient"), fields.get("final-recipient")
    address = recipient_address(original) or recipient_address(final)
    if not address:
        address = recipient_address(fields.get("x-actual-recipient"))
    if not address:
        return None
    status_found = _STATUS.search(fields.get("status"))
    status = status_found.group(1) if status_found else ""
    action = _action(fields.get("action"), status)
    diagnostic = one_line(fields.get("diagnostic-code") or fields.get("x-display-name") or "")
    comment = fields.get("status").partition("(")[2].rstrip(") ")
    return judged(address, action, status, diagnostic or one_line(comment))


def _action(value: str, status: str) -> Action:
    word = re.split(r"[\s;(]", value.strip().lower(), maxsplit=1)[0]
    if word in _ACTIONS:
        return Action(word)
    if word.startswith("delay") or status.startswith("4"):
        return Action.DELAYED if word.startswith("delay") else Action.FAILED
    return Action.DELIVERED if status.startswith("2") else Action.FAILED


def recipient_address(value: str) -> str:
    """The address of `type; address` (RFC 3464 §2.1.2), xtext (RFC 3461 §4) and utf-8 (RFC 6533)
    decoded. "" where there is none."""
    kind, found, address = value.partition(";")
    if not found:
        kind, address = "", value
    address = address.strip().strip("<>")
    kind = kind.strip().lower()
    if kind == "utf-8":
        address = re.sub(r"\\x\{([0-9A-Fa-f]{1,6})\}", _character, address)
    elif kind == "rfc822" and "+" in address:
        # In Original-Recipient it came as xtext; "+" alone is as likely part of the name.
        address = re.sub(r"\+(2B|3D|40)", lambda m: chr(int(m.group(1), 16)), address)
    found_addresses = addresses_in(address)
    if found_addresses:
        return found_addresses[0]
    if kind == "rfc822" and "%40" in address:
        return next(iter(addresses_in(unquote(address))), "")
    return ""


def _character(match: re.Match[str]) -> str:
    number = int(match.group(1), 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else ""


def judged(address: str, action: Action, status: str, diagnostic: str) -> Recipient:
    """The recipient with category and class.

    A delay is never HARD. A failure is final; where nothing that is known is given as its reason
    the address is taken for dead, unless a code says that the refusal itself was temporary: whoever
    gives up for trouble of its own, a full mailbox or a rule of its own does say so."""
    if action not in (Action.FAILED, Action.DELAYED):
        return Recipient(address, action, status, diagnostic, "", BounceClass.NONE)
    normalised, enhanced = normal(diagnostic)
    code = basic_code(normalised)
    text = diagnostic if enhanced or not status else f"{diagnostic} ({status})"
    classified = classify_reply(code, text)
    bounce_class = classified.bounce_class
    if action is Action.DELAYED and bounce_class is BounceClass.HARD:
        bounce_class = BounceClass.SOFT
    is_final = action is Action.FAILED and is_permanent(code, normalised, enhanced or status)
    if is_final and classified.category == Category.UNCATEGORIZED:
        bounce_class = BounceClass.HARD
    return Recipient(
        address, action, status or enhanced, diagnostic, classified.category, bounce_class
    )


def one_line(text: str) -> str:
    line = " ".join(text.split())[:DIAGNOSTIC_CHARACTERS_MAX]
    return line if line.isprintable() else "".join(c for c in line if c.isprintable())
