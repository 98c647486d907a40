"""Traits: what other tools say of a person, as values of declared attributes.

A trait becomes the attribute of its name in small letters with underscores (``firstName`` →
``first_name``); the members of an object are traits of their own (``address.city`` →
``address_city``), one level deep. A declared attribute takes what means a value of its type; a name
that is not declared yet is declared by the first value of a plain type, up to ``DECLARED_MAX``
attributes in all, so that no sender can use up the registry. What has no plain type (lists of
objects, objects in objects) is in the kept original alone. Nulls and empty texts say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from manta.ingestion.normalised import Unfit, number_of
from manta.people import attributes
from manta.people.attributes import LIST_LENGTH_MAX, TEXT_LENGTH_MAX, attribute_name, value_of
from manta.schema import AttributeType

DECLARED_MAX = 300  # attributes in all up to which unknown traits declare more
_MILLISECONDS_FROM = 1e11  # a number of seconds this large lies in the year 5138


@dataclass
class Typed:
    """``values``: attribute → value; ``declare``: the types of those that are new; ``misfits``:
    traits that have a declared name and no value of its type."""

    values: dict[str, Any] = field(default_factory=dict)
    declare: dict[str, AttributeType] = field(default_factory=dict)
    misfits: list[Unfit] = field(default_factory=list)


def typed(
    traits: Mapping[str, Any], declared: Mapping[str, AttributeType], declare: bool = True
) -> Typed:
    """The attributes that traits mean. ``declare``: whether unknown names become attributes."""
    found = Typed()
    for path, name, value in _flat(traits):
        kind = declared.get(name) or found.declare.get(name)
        if kind is None:
            kind = type_of(value) if declare else None
            if kind is None:
                continue
            if len(declared) + len(found.declare) >= DECLARED_MAX:
                found.misfits.append(
                    Unfit(path, f"is not declared, and {DECLARED_MAX} attributes are already")
                )
                continue
            found.declare[name] = kind
        converted = value_as(value, kind)
        if converted is None:
            found.misfits.append(Unfit(path, f"does not fit {name}, which is a {kind}"))
        else:
            found.values[name] = converted
    return found


def _flat(traits: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, attribute name, value) of everything that says something."""
    for trait, value in traits.items():
        if isinstance(value, dict):
            for member, inner in value.items():
                if not _is_empty(inner) and not isinstance(inner, dict):
                    name = attribute_name(f"{trait}_{member}")
                    yield f"traits.{trait:.40}.{member:.40}", name, inner
        elif not _is_empty(value):
            yield f"traits.{trait:.60}", attribute_name(trait), value


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def type_of(value: Any) -> AttributeType | None:
    """The type that a first value declares; ``None`` for what is not plain."""
    if isinstance(value, bool):
        return AttributeType.BOOLEAN
    if isinstance(value, int | float):
        return AttributeType.NUMBER
    if isinstance(value, str):
        if len(value) > TEXT_LENGTH_MAX:
            return None
        is_date = isinstance(value_of(value, AttributeType.DATE), datetime)
        return AttributeType.DATE if is_date and value[:4].isdigit() else AttributeType.STRING
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return AttributeType.LIST
    return None


def value_as(value: Any, kind: AttributeType) -> Any:
    """A JSON value as a value of the type; ``None`` where it is none."""
    if kind is AttributeType.STRING:
        return _as_text(value)
    if kind is AttributeType.NUMBER:
        return number_of(value)
    if kind is AttributeType.DATE and isinstance(value, int | float):
        return _as_instant(value)
    if kind is AttributeType.BOOLEAN and isinstance(value, bool):
        return value
    if kind is AttributeType.LIST and isinstance(value, list):
        texts = [_as_text(item) for item in value]
        return None if None in texts or len(texts) > LIST_LENGTH_MAX else texts
    if isinstance(value, str | int) and not (isinstance(value, int) and kind is AttributeType.LIST):
        meant = value_of(str(value), kind)
        return None if isinstance(meant, attributes.Unfit) else meant
    return None


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        value = str(value)
    return value if isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX else None


def _as_instant(value: float) -> datetime | None:
    """Of seconds or milliseconds since 1970."""
    if isinstance(value, bool):
        return None
    seconds = value / 1000 if abs(value) >= _MILLISECONDS_FROM else value
    if not -62e9 < seconds < 253e9:
        return None
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
