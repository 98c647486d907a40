"""People by HTTP: rows of JSON are checked, each by itself, and go on to the shards.

A wrong row fails alone, and the commands carry only rows that the shards take; what follows is
``manta.people.storing``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import available_timezones

from actors.handles import Handles
from manta.errors import InvalidRequest, MantaError
from manta.people.addresses import Refused, normalised
from manta.people.attributes import LIST_LENGTH_MAX, TEXT_LENGTH_MAX, Unfit, value_of
from manta.people.commands import Consent
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, PHONE, VALUE_LENGTH_MAX
from manta.people.storing import Upserts, upsert_many
from manta.people.upsert_rows import NAMING
from manta.schema import ATTRIBUTE_PREFIX, AttributeType
from serve_apps import reads
from serve_apps.limits import CALL_DEADLINE_S

NUMBER_MAX = 1e300  # of an attribute: JSON integers can be longer than any float


class Row(NamedTuple):
    """One person as given; ``path`` is where it stands in the request."""

    email: str | None
    external_id: str | None
    time_zone: str | None
    locale: str | None
    attributes: Mapping[str, Any]
    path: str = ""
    phone: str | None = None
    anonymous_id: str | None = None


async def upsert_rows(
    handles: Handles, rows: Sequence[Row], consent: Consent | None, key: str | None, source: str
) -> Upserts:
    """Store rows of people, each by itself. Raises nothing that concerns one row alone."""
    types: dict[str, AttributeType] = {}
    if any(row.attributes for row in rows):
        types = await reads.attribute_types(handles)
    checked: list[dict[str, Any] | MantaError] = []
    for row in rows:
        try:
            checked.append(checked_row(row, types))
        except InvalidRequest as error:
            checked.append(error)
    return await upsert_many(handles.shards, checked, types, consent, key, source, CALL_DEADLINE_S)


# -- checking one row ------------------------------------------------------------------------------


def checked_row(row: Row, types: Mapping[str, AttributeType]) -> dict[str, Any]:
    """The columns of a row, as ``UpsertPeople`` wants them. Raises ``InvalidRequest``."""
    columns: dict[str, Any] = {}
    if row.email is not None:
        columns[EMAIL] = checked_address(row.email, _at(row, EMAIL))
    for kind in (EXTERNAL_ID, PHONE, ANONYMOUS_ID):
        value = getattr(row, kind)
        if value is None:
            continue
        text = value.strip()
        if not text or len(text) > VALUE_LENGTH_MAX or not text.isprintable():
            raise InvalidRequest(
                f"this {kind} is empty or holds control characters",
                path=_at(row, kind),
                expected=f"1 to {VALUE_LENGTH_MAX} printable characters",
            )
        columns[kind] = text
    if not any(kind in columns for kind in NAMING):
        raise InvalidRequest(
            "this names nobody", path=_at(row, EMAIL), expected=" or ".join(NAMING)
        )
    if row.time_zone is not None:
        if row.time_zone not in _zones():
            raise InvalidRequest(
                f"{row.time_zone!r:.64} is not a time zone",
                path=_at(row, "time_zone"),
                expected="an IANA name, for example Europe/Berlin",
            )
        columns["time_zone"] = row.time_zone
    if row.locale is not None:
        columns["locale"] = _locale(row.locale, _at(row, "locale"))
    for name, value in row.attributes.items():
        path = _at(row, f"attributes.{name:.64}")
        kind = types.get(name)
        if kind is None:
            raise InvalidRequest(
                f"{name!r:.64} is not declared",
                path=path,
                expected=f"one of {', '.join(sorted(types)) or 'none so far'}; "
                "POST /v1/attributes declares more",
            )
        if value is not None:
            columns[ATTRIBUTE_PREFIX + name] = _value(value, kind, path)
    return columns


def _at(row: Row, field: str) -> str:
    return f"{row.path}.{field}" if row.path else field


def checked_address(text: str, path: str) -> str:
    """The address as it is stored. Raises ``InvalidRequest``."""
    address = normalised(text)
    if isinstance(address, Refused):
        raise InvalidRequest(
            f"{text!r:.80} is not an address: {address.reason}", path=path, expected="local@domain"
        )
    return address


def _locale(text: str, path: str) -> str:
    parts = text.split("-")
    fits = all(1 <= len(p) <= 8 and p.isascii() and p.isalnum() for p in parts)
    if not fits or not 2 <= len(parts[0]) <= 3 or not parts[0].isalpha():
        raise InvalidRequest(
            f"{text!r:.35} is not a locale", path=path, expected="BCP 47, for example de-CH"
        )
    return text


def _value(value: Any, kind: AttributeType, path: str) -> Any:
    """A JSON value as a value of the attribute's type."""
    if kind is AttributeType.STRING and isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX:
        return value
    if kind is AttributeType.BOOLEAN and isinstance(value, bool):
        return value
    if kind is AttributeType.NUMBER and _is_number(value):
        return float(value)
    if kind is AttributeType.DATE and isinstance(value, str):
        parsed = value_of(value, kind)
        if parsed is not None and not isinstance(parsed, Unfit):
            return parsed
    if kind is AttributeType.LIST and _is_list(value):
        return value
    raise InvalidRequest(f"{value!r:.60} does not fit", path=path, expected=_EXPECTED[kind])


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= NUMBER_MAX and math.isfinite(value)


def _is_list(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > LIST_LENGTH_MAX:
        return False
    return all(isinstance(item, str) and len(item) <= TEXT_LENGTH_MAX for item in value)


_EXPECTED = {
    AttributeType.STRING: f"a text of at most {TEXT_LENGTH_MAX} characters",
    AttributeType.NUMBER: "a finite number",
    AttributeType.BOOLEAN: "true or false",
    AttributeType.DATE: "a date or instant, RFC 3339",
    AttributeType.LIST: f"a list of at most {LIST_LENGTH_MAX} texts",
}


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())
