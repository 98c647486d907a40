"""Which mail of ours a bounce, a complaint or a reply is about.

Systems return the mail, its header or a quotation, name its Message-ID or only its envelope; this
gathers every place. All of it is the sender's word and proves nothing: the proof is the signed
return path that the mail came to. Bounded by the limits below.
"""

from __future__ import annotations

from typing import NamedTuple

from manta.delivery.returns.bounce import first_address
from manta.delivery.returns.mailparts import Fields, Part, split_fields

RETURNED_FIELDS_MAX = 60
RETURNED_VALUE_CHARACTERS_MAX = 1_000


class Original(NamedTuple):
    """Every place where the mail that we sent may be named. All of it is the sender's word."""

    message_id: str = ""  # without angle brackets
    return_path: str = ""
    recipient: str = ""  # To of the returned mail
    envelope_id: str = ""  # ENVID of RFC 3461
    headers: tuple[tuple[str, str], ...] = ()  # of the returned mail, names in lower case


_RETURNED_FIELDS = ("received:", "return-path:", "from:", "message-id:", "date:", "to:", "subject:")


def _returned_fields(parts: dict[str, Part], returned: str) -> Fields:
    for kind in ("message/rfc822", "message/global", "message/news"):
        part = parts.get(kind)
        if part is not None and part.parts:
            return part.parts[0].fields
    for kind in ("text/rfc822-headers", "message/global-headers", "message/rfc822-headers"):
        part = parts.get(kind)
        if part is not None:
            fields, _ = split_fields(part.text().lstrip("\n"))
            return fields
    lines = returned.split("\n")[:300]
    for number, line in enumerate(lines):
        if line.lstrip("> |\t")[:40].lower().startswith(_RETURNED_FIELDS):
            prefix = line[: len(line) - len(line.lstrip("> |\t"))]
            block = [near.removeprefix(prefix) for near in lines[number:]]
            fields, _ = split_fields("\n".join(block))
            return fields
    return Fields([])


def original_of(parts: dict[str, Part], fields: Fields, returned_text: str) -> Original:
    """What a mail with these parts, header fields and quoted text says of the mail it is about."""
    returned = _returned_fields(parts, returned_text)
    answered = fields.get("in-reply-to") or fields.get("references")
    message_id = _id(returned.get("message-id"))
    if not message_id and not returned.all:
        message_id = _id(answered)
    report = parts.get("message/delivery-status")
    envelope_id = ""
    if report is not None:
        about, _ = split_fields(report.text().lstrip("\n"))
        envelope_id = about.get("original-envelope-id")
        message_id = message_id or _id(about.get("x-original-message-id"))
    return Original(
        message_id,
        first_address(returned.get("return-path")),
        first_address(returned.get("to")),
        envelope_id[:RETURNED_VALUE_CHARACTERS_MAX],
        tuple(
            (name, value[:RETURNED_VALUE_CHARACTERS_MAX])
            for name, value in returned.all[:RETURNED_FIELDS_MAX]
        ),
    )


def _id(value: str) -> str:
    value = value.strip()
    if "<" in value:
        value = value.rpartition("<")[2].partition(">")[0]
    return value.split()[0][:RETURNED_VALUE_CHARACTERS_MAX] if value.split() else ""
