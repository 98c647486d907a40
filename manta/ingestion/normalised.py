"""One event schema for whatever comes in: what a message of any kind means for Manta.

Each kind of source has a normaliser, a pure function of (the source's document, a payload, the time
of receipt) that answers ``Normalised`` values or says why it cannot: ``Unfit``, with the place in
the payload. What is unfit goes to quarantine (``manta.ingestion.quarantine``) and to the same
normaliser again when somebody has mended it. A normaliser asks nobody anything, so the same payload
always means the same.

Names of events that every source shares:

=================== ===============================================================================
``purchased``       one per line of an order: ``item``, ``amount``, ``properties.order_id``
``ordered``         one per order: ``amount`` is the total
``refunded``        ``amount`` is what was given back
``checkout_started``
``order_cancelled`` ``item`` is the order, as it is of ``ordered`` and ``refunded``
``cart_updated``    ``properties.action`` is ``added`` or ``removed``; without one: the whole cart
``viewed``          ``item`` is a page, a screen or a product; ``properties.kind`` says which
``signed_up``
``grouped``         the person was put with an account: ``item`` is the group's id
=================== ===============================================================================

Everything else keeps its own name.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from manta.clock import parse_instant
from manta.events.commands import ITEM_LENGTH_MAX, PROPERTIES_BYTES_MAX, TYPE_LENGTH_MAX
from manta.ids import hash64
from manta.people.addresses import Refused, normalised
from manta.people.identities import EMAIL, VALUE_LENGTH_MAX
from manta.schema import HISTORY_EVENTS, MESSAGE_EVENTS

DEPTH_MAX = 20  # of lists and objects in each other
NUMBER_MAX = 1e300
EARLIEST = datetime(1970, 1, 1)
_RESERVED = frozenset((*MESSAGE_EVENTS, *HISTORY_EVENTS))
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:\- ]*")
_OTHER = re.compile(r"[^A-Za-z0-9_.:\- ]+")

Payload = Mapping[str, Any]


@dataclass(frozen=True)
class Unfit:
    """Why a payload fits no shape that we know, and where in it."""

    path: str
    problem: str


class Misfit(Exception):
    """Carries an ``Unfit`` out of a normaliser's depths; never leaves this package."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(problem)
        self.unfit = Unfit(path, problem)


@dataclass(frozen=True)
class NormalisedEvent:
    """One thing that a person did. ``id`` counts once; without ``occurred_at``: now."""

    type: str
    id: str
    occurred_at: datetime | None = None
    item: str | None = None
    amount: float | None = None
    properties: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GivenConsent:
    """A consent that the message itself states, with what the source can prove. ``at``: when it was
    given or withdrawn, where the source says so."""

    channel: str
    topic: str
    status: str  # of manta.people.consents.STATUSES
    proof: Mapping[str, Any] | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Normalised:
    """What one message says of one person.

    ``identities``: kind → value, never empty. ``formerly``: names of an earlier self, whose merge
    into this person the message asks for. ``traits``: attribute name → JSON value, not yet typed.
    ``original``: the message as JSON text, kept as history; ``None``: nothing to keep.
    """

    id: str
    identities: Mapping[str, str]
    events: tuple[NormalisedEvent, ...] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)
    time_zone: str | None = None
    locale: str | None = None
    consents: tuple[GivenConsent, ...] = ()
    formerly: tuple[str, ...] = ()
    occurred_at: datetime | None = None
    original: str | None = None


Normaliser = Callable[[Mapping[str, Any], Any, datetime], Sequence[Normalised] | Unfit]


def received_id(id: str) -> int:
    """The event id under which the original of a message is kept."""
    return hash64("received", id)


# -- checks that every normaliser shares -----------------------------------------------------------


def json_of(value: Any, path: str, bytes_max: int = PROPERTIES_BYTES_MAX) -> str:
    """The JSON text of a payload. Raises ``Misfit`` where no shard could keep it: too large or too
    deep, characters that no text may hold, numbers that are none."""
    check(value, path)
    text = to_json(value)
    if len(text) > bytes_max:
        raise Misfit(path, f"has {len(text):,} bytes of JSON; at most {bytes_max:,}")
    return text.decode()


def check(value: Any, path: str) -> None:
    """Raises ``Misfit`` for the first thing in a JSON value that Manta does not take."""
    pending = [(value, path, 0)]
    while pending:
        node, where, depth = pending.pop()
        kind = type(node)
        if kind is str:
            if not node.isprintable():
                _check_text(node, where)
        elif kind is int or kind is float:
            if not -NUMBER_MAX <= node <= NUMBER_MAX:
                raise Misfit(where, "is no number that can be kept; at most 1e300 from zero")
        elif kind is dict or kind is list:
            if depth >= DEPTH_MAX:
                raise Misfit(where, f"lies more than {DEPTH_MAX} levels deep")
            if kind is list:
                pending += [(each, f"{where}[{n}]", depth + 1) for n, each in enumerate(node)]
                continue
            for name, each in node.items():
                if not name.isprintable():
                    _check_text(name, where)
                pending.append((each, f"{where}.{name:.60}" if where else name[:60], depth + 1))


def _check_text(text: str, path: str) -> None:
    if "\x00" in text:
        raise Misfit(path, "holds the character NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Misfit(path, "holds half of a surrogate pair") from None


def object_at(payload: Payload, name: str) -> Mapping[str, Any]:
    """A member that is an object if it is there at all."""
    value = payload.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Misfit(name, "is not an object")
    return value


def text_of(value: Any, path: str, length_max: int = VALUE_LENGTH_MAX) -> str | None:
    """A name given as text or number; ``None`` where it is absent or empty."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Misfit(path, "is neither text nor a whole number")
    text = value.strip()
    if len(text) > length_max or not text.isprintable():
        raise Misfit(path, f"is longer than {length_max} characters, or holds control characters")
    return text or None


def address_of(value: Any, path: str) -> str | None:
    """An e-mail address in the form in which it is kept."""
    text = text_of(value, path)
    if text is None:
        return None
    address = normalised(text)
    if isinstance(address, Refused):
        raise Misfit(path, f"is not an {EMAIL} address: {address.reason}")
    return address


def instant_of(value: Any, path: str) -> datetime | None:
    """An instant from ISO 8601 text; ``None`` where it is absent."""
    if value is None:
        return None
    try:
        at = parse_instant(value) if isinstance(value, str) and len(value) <= 40 else None
    except (ValueError, OverflowError):
        at = None
    if at is None:
        raise Misfit(path, "is not an instant like 2027-01-31T09:00:00Z")
    if at < EARLIEST:
        raise Misfit(path, "lies before 1970")
    return at


def unix_instant(value: Any, path: str) -> datetime | None:
    """An instant from seconds since 1970."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 253e9:
        raise Misfit(path, "is not an instant in seconds since 1970")
    return datetime.fromtimestamp(value, UTC).replace(tzinfo=None)


def number_of(value: Any) -> float | None:
    """A number, also from text (``"49.90"``); ``None`` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if not isinstance(value, str) or len(value) <= 40 else math.nan
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= NUMBER_MAX else None


def first_of(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these members that is there and is not empty."""
    for name in names:
        value = values.get(name)
        if value is not None and value != "":
            return value
    return None


def event_type(name: str, source_kind: str) -> str:
    """A foreign name as an event type: as it is where it fits; letters without their accents and
    ``_`` for other characters where not. Names that Manta keeps for itself get the source's kind
    before them (``segment:opened``)."""
    text = " ".join(name.split())
    if not _TYPE.fullmatch(text):
        split = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
        plain = "".join(char for char in split if not unicodedata.combining(char))
        text = _OTHER.sub("_", plain).strip("_.:- ") or f"event_{hash64(name) & 0xFFFFFFFF:08x}"
    text = text[:TYPE_LENGTH_MAX].rstrip()
    return f"{source_kind}:{text}" if text in _RESERVED else text


def item_of(value: Any) -> str | None:
    """What an event is about, as far as it has room."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return None
    return str(value)[:ITEM_LENGTH_MAX]
