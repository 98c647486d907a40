"""Mail that comes in: which addresses there are, which mails are taken, and what each one means.

Pure decisions; ``actors.inbox`` speaks SMTP and brings the commands to the shards. The addresses at
the return path's domain are

- the signed return path of each message (``tokens``): what its server, or a later one, says about
  it. **The signature says whom it is about**; whom a report itself names is evidence only;
- the signed unsubscribe address of each message;
- ``fbl``: where mailbox providers send complaints (RFC 5965). Nothing signed brings these here, so
  they count only where they hold one of our return paths or Message-IDs, which strangers cannot
  guess; an address alone is no proof and suppresses nobody;
- ``postmaster`` and ``abuse`` (RFC 2142): taken and counted.

All else is refused, so that nothing bounces twice. What is taken is read, acted upon and forgotten:
mails hold personal data, so none is stored or logged.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from manta.content.tokens import Keyring
from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns.arrivals import Arrival, ArrivalKind
from manta.delivery.returns.bounce import Action
from manta.delivery.returns.bounce import Recipient as Reported
from manta.delivery.returns.commands import RecordBounce, RecordComplaint, UnsubscribeByMail
from manta.delivery.returns.reporting import Report
from manta.errors import InvalidRequest
from manta.ids import NOBODY, MessageRef, decode_id

MESSAGE_BYTES_MAX = 10 << 20
LINE_BYTES_MAX = 4_096  # RFC 5321 §4.5.3.1.6 asks for 1,000; some reports hold longer ones
HOPS_MAX = 100  # RFC 5321 §6.3
HEADER_BYTES_MAX = 256 << 10
FEEDBACK = "fbl"
POST = ("postmaster", "abuse")

NO_SUCH_ADDRESS = "550 5.1.1 no such address here"
NO_RELAY = "550 5.7.1 no mail for other domains is taken here"
TOO_LARGE = f"552 5.3.4 larger than {MESSAGE_BYTES_MAX} bytes"
NO_REPORT = "550 5.7.1 only feedback reports (RFC 5965) are taken at this address"

_MESSAGE_ID = re.compile(r"([0-9a-z]{13})\.([0-9a-z]{13})@", re.ASCII)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_RECEIVED = re.compile(rb"^received:", re.IGNORECASE | re.MULTILINE)
# Of several failures that one report names, the one that says most about the address.
_WORST_FIRST = (BounceClass.HARD, BounceClass.SOFT, BounceClass.BLOCK, BounceClass.MESSAGE)
# Programs answer programs: these unsubscribe nobody.
_AUTOMATIC = (
    ArrivalKind.BOUNCE,
    ArrivalKind.DELAY,
    ArrivalKind.DELIVERED,
    ArrivalKind.AUTO_REPLY,
    ArrivalKind.CHALLENGE,
    ArrivalKind.READ_RECEIPT,
)


class Purpose(StrEnum):
    RETURN_PATH = "return_path"
    UNSUBSCRIBE = "unsubscribe"
    FEEDBACK = "feedback"
    POST = "post"


class Box(NamedTuple):
    """One of our addresses; ``ref`` of a signed one."""

    purpose: Purpose
    ref: MessageRef = MessageRef(NOBODY, 0)


def box_of(address: str, domain: str, keyring: Keyring, now: datetime) -> Box | str:
    """The box of a recipient, or the reply that refuses it."""
    local, at, given_domain = address.rpartition("@")
    if not at and address.lower() == "postmaster":  # RFC 5321 §4.5.1
        return Box(Purpose.POST)
    if given_domain.rstrip(".").lower() != domain.lower():
        return NO_RELAY
    name = local.lower()
    if name in POST:
        return Box(Purpose.POST)
    if name == FEEDBACK:
        return Box(Purpose.FEEDBACK)
    for read, purpose in (
        (keyring.read_verp, Purpose.RETURN_PATH),
        (keyring.read_unsubscribe, Purpose.UNSUBSCRIBE),
    ):
        try:
            return Box(purpose, read(name, now)[1])
        except InvalidRequest:
            continue
    return NO_SUCH_ADDRESS


def malformed(raw: bytes) -> str | None:
    """The reply that refuses a message for its form; ``None`` where it may be read.

    Bare line ends are refused, not mended: servers that read them differently are how one mail is
    smuggled inside another.
    """
    if _BARE.search(raw):
        return "550 5.5.2 a bare CR or LF in the message (RFC 5321 section 2.3.8)"
    if b"\0" in raw:
        return "550 5.6.0 a NUL in the message (RFC 5322 section 3.5)"
    longest = max(map(len, raw.split(b"\r\n")), default=0)
    if longest > LINE_BYTES_MAX:
        return f"500 5.5.2 a line longer than {LINE_BYTES_MAX} bytes"
    head = b"" if raw.startswith(b"\r\n") else raw.partition(b"\r\n\r\n")[0]
    if len(head) > HEADER_BYTES_MAX:
        return f"552 5.3.4 a header larger than {HEADER_BYTES_MAX} bytes"
    if len(_RECEIVED.findall(head)) > HOPS_MAX:
        return f"554 5.4.6 more than {HOPS_MAX} hops: a loop"
    return None


class Meaning(NamedTuple):
    """What a mail to one box asks for. ``what`` is counted; ``refusal`` is the reply instead of
    250."""

    what: str
    command: Report | UnsubscribeByMail | None = None
    refusal: str = ""


def digest_of(raw: bytes) -> str:
    """The name of a mail, so that the same one counts once."""
    return blake2b(raw, digest_size=12).hexdigest()


def meaning_of(box: Box, arrival: Arrival, digest: str, keyring: Keyring, now: datetime) -> Meaning:
    kind = arrival.kind
    key = f"inbox:{box.ref[0]}:{box.ref[1]}:{kind}:{digest}"
    if box.purpose is Purpose.POST:
        return Meaning("post")
    if box.purpose is Purpose.FEEDBACK:
        if kind not in (ArrivalKind.COMPLAINT, ArrivalKind.NOT_SPAM):
            return Meaning("no_report", refusal=NO_REPORT)
        ref = named_in(arrival, keyring, now)
        if ref is None or kind is ArrivalKind.NOT_SPAM:
            return Meaning("complaint_unmatched" if ref is None else str(kind))
        key = f"inbox:{ref[0]}:{ref[1]}:{kind}:{digest}"
        return _complaint(ref, arrival, key, now)
    if box.ref.subscriber_id == NOBODY:
        return Meaning(str(kind))
    if box.purpose is Purpose.UNSUBSCRIBE and kind not in _AUTOMATIC:
        return Meaning("unsubscribe", UnsubscribeByMail(box.ref, key))
    if kind is ArrivalKind.UNSUBSCRIBE:
        return Meaning(str(kind), UnsubscribeByMail(box.ref, key))
    if kind is ArrivalKind.BOUNCE:
        return Meaning(str(kind), _bounce(box.ref, arrival, key, now))
    if kind is ArrivalKind.COMPLAINT:
        return _complaint(box.ref, arrival, key, now)
    return Meaning(str(kind))


def named_in(arrival: Arrival, keyring: Keyring, now: datetime) -> MessageRef | None:
    """Our message that a feedback report holds, by its return path or Message-ID."""
    original = arrival.original
    try:
        return keyring.read_verp(original.return_path.strip("<>").rpartition("@")[0], now)[1]
    except InvalidRequest:
        return ref_of_message_id(original.message_id)


def ref_of_message_id(text: str) -> MessageRef | None:
    """The message that a Message-ID of ours names (``mime.message_id``). It is not signed; it is
    not guessable either, for an id of a person has 47 random bits."""
    found = _MESSAGE_ID.match(text.strip().lstrip("<"))
    if found is None:
        return None
    try:
        ref = MessageRef(decode_id(found[1]), decode_id(found[2]))
    except ValueError:
        return None
    return ref if ref.subscriber_id > NOBODY else None


def _bounce(ref: MessageRef, arrival: Arrival, key: str, now: datetime) -> RecordBounce:
    """What a failure is that names no class is not known: it counts as one for now."""
    failed = [r for r in arrival.recipients if r.action is Action.FAILED]
    said = min(failed, key=_rank) if failed else None
    if said is None:
        return RecordBounce(ref, now, BounceClass.SOFT, "", "", "dsn", key)
    bounce_class = said.bounce_class if said.bounce_class in _WORST_FIRST else BounceClass.SOFT
    diagnostic = said.diagnostic or said.status
    return RecordBounce(ref, now, bounce_class, said.category, diagnostic, "dsn", key, said.address)


def _rank(reported: Reported) -> int:
    known = reported.bounce_class in _WORST_FIRST
    return _WORST_FIRST.index(reported.bounce_class) if known else len(_WORST_FIRST)


def _complaint(ref: MessageRef, arrival: Arrival, key: str, now: datetime) -> Meaning:
    if ref.subscriber_id == NOBODY:
        return Meaning(str(arrival.kind))
    kind = arrival.feedback_type or "abuse"
    named = [reported.address for reported in arrival.recipients if reported.address]
    recipient = named[0] if named else arrival.original.recipient
    command = RecordComplaint(ref, now, kind, "fbl", key, recipient)
    return Meaning(str(arrival.kind), command)
