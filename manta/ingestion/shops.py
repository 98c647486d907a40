"""What the webhooks of all shops share: orders, money, telephone numbers, names of visits.

Money comes as decimal text (``"49.90"``) or in minor units and is reckoned as a decimal; only the
amount of an event is a binary number. What is there and is no money does not fit: a wrong sum in
silence would be worse than a row in quarantine.

**References.** Some messages name nobody by address: a cart, a refund that knows its order alone, a
subscription that knows its customer's number alone. Each such thing has a name of its own, which is
claimed as an anonymous id by every message that also says who it belongs to. So what comes before
the person is known joins them later, by the same merge as a browser's past, and what comes
afterwards is theirs at once.

A telephone number is an identity where the provider keeps it apart for each customer; elsewhere
families share one, and it names a person only where no address does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from manta.ingestion.normalised import (
    GivenConsent,
    Misfit,
    Normalised,
    NormalisedEvent,
    Unfit,
    instant_of,
    item_of,
    json_of,
    text_of,
)
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, PHONE

MESSAGE_BYTES_MAX = 512 << 10
LINES_MAX = 500  # of one order
PRODUCTS_SHOWN = 50  # of a cart, in the properties of its event
TEXT_SHOWN = 500
CONSENT_TOPIC = "newsletter"
_MONEY = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,8})?")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_PHONE_MARKS = re.compile(r"[\s().\-/]")

Payload = Mapping[str, Any]
Source = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of an order. ``id`` is the provider's own, or its place."""

    id: str
    item: str | None
    amount: float | None
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What a message says of one person. ``references``: what belongs to them, the strongest
    first."""

    id: str
    identities: Mapping[str, str | None]
    references: Sequence[str] = ()
    events: Sequence[NormalisedEvent] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)
    consents: Sequence[GivenConsent] = ()
    locale: str | None = None
    at: datetime | None = None


def normalised(payload: Any, read: Callable[[Payload], Said | None]) -> list[Normalised] | Unfit:
    """The answer of a normaliser: what ``read`` says of a payload that was checked, nothing where
    it says ``None``, or why it does not fit."""
    try:
        if not isinstance(payload, dict):
            raise Misfit("", "is not an object")
        original = json_of(payload, "", MESSAGE_BYTES_MAX)
        said = read(payload)
        return [] if said is None else spread(said, original)
    except Misfit as misfit:
        return misfit.unfit


def spread(said: Said, original: str) -> list[Normalised]:
    """One ``Normalised`` with all that was said, and one more for each further reference."""
    known = {kind: value for kind, value in said.identities.items() if value}
    if EMAIL not in known and EXTERNAL_ID not in known:
        known.pop(PHONE, None)  # which alone names nobody new
    references = list(dict.fromkeys(said.references))
    if not known and not references:
        raise Misfit("", "names nobody: neither an address nor a customer")
    first = {ANONYMOUS_ID: references[0]} if references else {}
    found = [
        Normalised(
            said.id,
            {**known, **first},
            tuple(said.events),
            {name: value for name, value in said.traits.items() if value not in (None, "", [])},
            locale=said.locale,
            consents=tuple(said.consents),
            occurred_at=said.at,
            original=original,
        )
    ]
    for reference in references[1:] if known else ():
        found.append(Normalised(f"{said.id}:{reference}", {**known, ANONYMOUS_ID: reference}))
    return found


def enveloped(payload: Payload) -> tuple[str, Mapping[str, Any]]:
    """Topic and document of a message that came with its topic in a header."""
    topic = payload.get("topic")
    if not isinstance(topic, str) or not topic:
        raise Misfit("topic", "is missing: it says what the payload is")
    return topic, object_in(payload, "payload", "")


# -- orders ----------------------------------------------------------------------------------------


def order_events(
    id: str,
    at: datetime | None,
    amount: float | None,
    properties: Mapping[str, Any],
    lines: Sequence[Line],
    of_lines: Mapping[str, Any],
) -> list[NormalisedEvent]:
    """``ordered`` and a ``purchased`` for each line. An order of no lines becomes one ``purchased``
    without item, so that who bought anything has ``purchased``. ``of_lines``: what each line says
    of its order."""
    if len(lines) > LINES_MAX:
        raise Misfit("", f"has more than {LINES_MAX} lines")
    order_id = str(of_lines.get("order_id", id))
    events = [NormalisedEvent("ordered", id, at, order_id, amount, telling(properties))]
    for line in lines or (Line("1", None, amount, {}),):
        of_line = telling({**line.properties, **of_lines})
        events.append(
            NormalisedEvent(
                "purchased", f"{id}:line:{line.id}", at, line.item, line.amount, of_line
            )
        )
    return events


def telling(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties that say something, texts as far as they have room."""
    return {
        name: value[:TEXT_SHOWN] if isinstance(value, str) else value
        for name, value in properties.items()
        if value is not None and value != "" and value != []
    }


# -- values ----------------------------------------------------------------------------------------


def money(value: Any, path: str) -> Decimal | None:
    """A sum from decimal text or a number; ``None`` where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Misfit(path, "is no sum of money like 49.90")
    text = repr(value) if isinstance(value, float) else str(value).strip()
    if not _MONEY.fullmatch(text):
        raise Misfit(path, "is no sum of money like 49.90")
    return Decimal(text)


def amount_of(sum: Decimal | None) -> float | None:
    return None if sum is None else float(sum)


def whole(value: Any, path: str) -> int | None:
    """A whole number, also as text."""
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) <= 18:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 10**18:
        raise Misfit(path, "is not a whole number")
    return value


def phone_of(value: Any) -> str | None:
    """A number in the form of E.164; ``None`` for one without a country, which names nobody."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    number = _PHONE_MARKS.sub("", value)
    return number if _E164.fullmatch(number) else None


def listed(value: Any, path: str, length_max: int = LINES_MAX) -> list[Mapping[str, Any]]:
    """A list of objects; an absent one is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Misfit(path, "is not a list")
    if len(value) > length_max:
        raise Misfit(path, f"has more than {length_max} members")
    for n, each in enumerate(value):
        if not isinstance(each, dict):
            raise Misfit(f"{path}[{n}]", "is not an object")
    return value


def object_in(payload: Payload, name: str, path: str) -> Mapping[str, Any]:
    """A member that is an object if it is there at all; ``path`` is that of its owner."""
    value = payload.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Misfit(f"{path}.{name}" if path else name, "is not an object")
    return value


def named(payload: Payload, name: str, path: str) -> str:
    """The id of a thing, which must be there."""
    where = f"{path}.{name}" if path else name
    found = text_of(payload.get(name), where)
    if found is None:
        raise Misfit(where, "is missing")
    return found


def plain(value: Any, length_max: int = TEXT_SHOWN) -> str | None:
    """A text for people to read as one line, as far as it has room; ``None`` for anything else."""
    if not isinstance(value, str):
        return None
    shown = value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)
    return shown.strip()[:length_max] or None


def first_item(*values: Any) -> str | None:
    """The first of these that can be what an event is about."""
    for value in values:
        item = item_of(value)
        if item is not None:
            return item
    return None


def dated(value: Any, path: str) -> datetime | None:
    """An instant; one that names no zone is in UTC."""
    return instant_of(None if value == "" else value, path)


def address_traits(address: Mapping[str, Any]) -> dict[str, Any]:
    """Traits of a postal address as shops write it."""
    return {
        "company": plain(address.get("company")),
        "city": plain(address.get("city")),
        "region": plain(address.get("province") or address.get("state")),
        "postal_code": plain(
            address.get("zip") or address.get("postcode") or address.get("postal_code")
        ),
        "country": plain(address.get("country_code") or address.get("country")),
    }
