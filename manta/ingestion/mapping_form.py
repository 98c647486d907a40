"""The form of a mapping: checked as a whole before it is kept, each mistake told with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from manta.errors import InvalidRequest
from manta.ingestion.mapping_values import DIRECTIVES, FORMATS, Condition, Value, word
from manta.ingestion.paths import Path, path_of
from manta.people.consents import ALL_TOPICS, CHANNELS, METHODS, PROOF_TEXTS, STATUSES, UNSUBSCRIBED
from manta.people.identities import KINDS

BYTES_MAX = 64 << 10
FIELDS_MAX = 200  # traits, or properties of one event
EVENT_MAPS_MAX = 50
CONSENTS_MAX = 10
TESTS_MAX = 20
TABLE_MAX = 500
_FIELDS = ("items", "when", "id", "identities", "traits", "time_zone", "locale", "consent")
_EVENT = ("type", "when", "each", "id", "occurred_at", "item", "amount", "properties")
_CONSENT = ("channel", "topic", "status", "when", "method", "at", "proof")
_VALUE = ("path", "default", "map", "format", "zone", "prefix")
_PATTERN = re.compile(r"%(.?)", re.DOTALL)
T = TypeVar("T")


@dataclass(frozen=True)
class EventMap:
    """``is_own_id``: the id is that of the member of ``each``, and not of the record."""

    type: Value
    when: Condition | None = None
    each: Path | None = None
    id: Value | None = None
    occurred_at: Value | None = None
    item: Value | None = None
    amount: Value | None = None
    properties: Mapping[str, Value] = field(default_factory=dict)

    @property
    def is_own_id(self) -> bool:
        return self.id is not None and self.id.path is not None and self.id.path.root == "@"


@dataclass(frozen=True)
class ConsentMap:
    channel: str
    topic: str
    status: Value
    when: Condition | None
    method: str
    at: Value | None
    proof: Mapping[str, Value]


@dataclass(frozen=True)
class Plan:
    """A mapping, ready to be applied."""

    items: Path
    when: Condition | None
    id: Value | None
    identities: Mapping[str, Value]
    traits: Mapping[str, Value]
    time_zone: Value | None
    locale: Value | None
    consents: Sequence[ConsentMap]
    events: Sequence[EventMap]


def plan_of(mapping: Any, where: str = "mapping") -> Plan:
    """The plan of a mapping. Raises ``InvalidRequest`` with the path of what is wrong."""
    given = _object(mapping, where, (*_FIELDS, "events"))
    if len(json.dumps(given)) > BYTES_MAX:
        raise _wrong("the mapping is too large", where, f"at most {BYTES_MAX:,} bytes")
    identities = _named(given, "identities", where, _value)
    for kind in identities:
        if kind not in KINDS:
            raise _wrong(
                f"{kind!r:.40} is no kind of identity", f"{where}.identities", ", ".join(KINDS)
            )
    if not identities:
        raise _wrong("nobody is named", f"{where}.identities", f"one of {', '.join(KINDS)}")
    events = _listed(given.get("events", []), f"{where}.events", EVENT_MAPS_MAX)
    consents = given.get("consent", [])
    consents = [consents] if isinstance(consents, dict) else consents
    return Plan(
        items=path_of(given.get("items", "$"), f"{where}.items"),
        when=_when(given, where),
        id=_optional(given, "id", where, _value),
        identities=identities,
        traits=_named(given, "traits", where, _value),
        time_zone=_optional(given, "time_zone", where, _value),
        locale=_optional(given, "locale", where, _value),
        consents=[
            _consent(each, f"{where}.consent[{n}]")
            for n, each in enumerate(_listed(consents, f"{where}.consent", CONSENTS_MAX))
        ],
        events=[_event(each, f"{where}.events[{n}]") for n, each in enumerate(events)],
    )


def _event(event: Any, where: str) -> EventMap:
    given = _object(event, where, _EVENT)
    if "type" not in given:
        raise _wrong("an event has no type", f"{where}.type", 'a name like "ordered", or a path')
    each = given.get("each")
    roots = "$" if each is None else "$@"

    def value(name: str) -> Value | None:
        if name not in given:
            return None
        return _value(given[name], f"{where}.{name}", roots)

    kind = given["type"]
    is_name = isinstance(kind, str) and bool(kind.strip()) and kind[0] not in "$@"
    return EventMap(
        type=Value(None, const=kind.strip()) if is_name else _value(kind, f"{where}.type", roots),
        when=_when(given, where, roots),
        each=None if each is None else _each(each, f"{where}.each"),
        id=value("id"),
        occurred_at=value("occurred_at"),
        item=value("item"),
        amount=value("amount"),
        properties=_named(
            given, "properties", where, lambda inner, place: _value(inner, place, roots)
        ),
    )


def _each(text: Any, where: str) -> Path:
    path = path_of(text, where)
    if not path.is_many:
        raise _wrong(f"{text!r:.80} leads to one value", where, "a path with [*]")
    return path


def _consent(consent: Any, where: str) -> ConsentMap:
    given = _object(consent, where, _CONSENT)
    topic = given.get("topic")
    if not isinstance(topic, str) or not topic.strip() or not topic.isprintable():
        raise _wrong("a consent has no topic", f"{where}.topic", "the name of a topic")
    if "status" not in given:
        raise _wrong("a consent has no status", f"{where}.status", "a value, best with a map")
    status = given["status"]
    if status in STATUSES:
        status = {"const": status}
    value = _value(status, f"{where}.status")
    for name, means in (value.table or {"": value.const}).items():
        if means is not None and means not in STATUSES:
            raise _wrong(
                f"{means!r:.40} is no status",
                f"{where}.status.map.{name}" if value.table else f"{where}.status",
                ", ".join(STATUSES),
            )
    meant = {each for each in (value.table or {"": value.const}).values() if each is not None}
    if topic.strip() == ALL_TOPICS and meant != {UNSUBSCRIBED}:
        raise _wrong("consent is given topic by topic", f"{where}.topic", "the name of one topic")
    proof = _named(given, "proof", where, _value)
    for name in proof:
        if name not in PROOF_TEXTS or name in ("method", "at"):
            raise _wrong(
                f"a proof has no {name!r:.40} here",
                f"{where}.proof.{name:.40}",
                ", ".join(n for n in PROOF_TEXTS if n not in ("method", "at")),
            )
    return ConsentMap(
        channel=_word(given, "channel", where, CHANNELS, "email"),
        topic=topic.strip(),
        status=value,
        when=_when(given, where),
        method=_word(given, "method", where, METHODS, "api"),
        at=_optional(given, "at", where, _value),
        proof=proof,
    )


# -- values and conditions -------------------------------------------------------------------------


def _value(value: Any, where: str, roots: str = "$") -> Value:
    if isinstance(value, str):
        if value[:1] not in ("$", "@"):
            raise _wrong(
                f"{value!r:.60} is no path",
                where,
                f'{" or ".join(f"{root}.name" for root in roots)}, or {{"const": …}}',
            )
        return Value(path_of(value, where, roots=roots))
    if isinstance(value, dict) and "const" in value:
        _object(value, where, ("const",))
        if isinstance(value["const"], dict | list) or value["const"] is None:
            raise _wrong("a constant is no plain value", f"{where}.const", "text or a number")
        return Value(None, const=value["const"])
    given = _object(value, where, _VALUE)
    if "path" not in given:
        raise _wrong("a value has neither path nor const", where, '"path" or "const"')
    table = given.get("map")
    if table is not None:
        table = _object(table, f"{where}.map", None)
        if not 0 < len(table) <= TABLE_MAX:
            raise _wrong("the map is empty or too long", f"{where}.map", f"1 to {TABLE_MAX} texts")
        table = {
            word(name): _plain(meant, f"{where}.map.{name:.60}") for name, meant in table.items()
        }
    return Value(
        path_of(given["path"], f"{where}.path", roots=roots),
        default=_plain(given.get("default"), f"{where}.default"),
        table=table,
        format=_format(given.get("format", ""), f"{where}.format"),
        zone=_zone(given.get("zone", ""), f"{where}.zone"),
        prefix=_short(given.get("prefix", ""), f"{where}.prefix"),
    )


def _format(format: Any, where: str) -> str:
    if format in FORMATS or format == "":
        return str(format)
    directives = _PATTERN.findall(format) if isinstance(format, str) and len(format) <= 60 else []
    if not directives or any(each not in DIRECTIVES or not each for each in directives):
        raise _wrong(
            f"{format!r:.60} is no format", where, f"{', '.join(FORMATS)}, or a date like %d.%m.%Y"
        )
    if not {"Y", "y"} & set(directives):
        raise _wrong("the pattern has no year", where, "a date like %d.%m.%Y")
    return str(format)


def _zone(zone: Any, where: str) -> str:
    if zone == "":
        return ""
    try:
        return ZoneInfo(zone).key
    except (KeyError, ValueError, TypeError, OSError):
        raise _wrong(f"{zone!r:.60} is no time zone", where, "Europe/Zurich") from None


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, dict | list):
        raise _wrong("this is no plain value", where, "text, a number, true, false or null")
    return value


def _short(text: Any, where: str) -> str:
    if not isinstance(text, str) or len(text) > 100 or not text.isprintable():
        raise _wrong(f"{text!r:.60} is no short text", where, "up to 100 printable characters")
    return text


def _when(given: Mapping[str, Any], where: str, roots: str = "$") -> Condition | None:
    if "when" not in given:
        return None
    tests = given["when"] if isinstance(given["when"], list) else [given["when"]]
    where = f"{where}.when"
    read = []
    for n, test in enumerate(_listed(tests, where, TESTS_MAX)):
        place = f"{where}[{n}]" if isinstance(given["when"], list) else where
        fields = _object(test, place, ("path", "equals", "not", "in", "exists"))
        operators = [name for name in fields if name != "path"]
        if len(operators) != 1:
            raise _wrong("a test has one operator", place, "equals, not, in or exists")
        (operator,) = operators
        operand = fields[operator]
        if operator == "in":
            operand = tuple(word(each) for each in _listed(operand, f"{place}.in", TABLE_MAX))
        elif operator == "exists" and not isinstance(operand, bool):
            raise _wrong("exists is neither true nor false", f"{place}.exists", "true or false")
        elif isinstance(operand, dict | list) or operand is None:
            raise _wrong(f"{operator} is no plain value", f"{place}.{operator}", "text or a number")
        read.append((path_of(fields.get("path"), f"{place}.path", roots=roots), operator, operand))
    return Condition(tuple(read))


# -- forms -----------------------------------------------------------------------------------------


def _wrong(message: str, where: str, expected: str) -> InvalidRequest:
    return InvalidRequest(message, path=where, expected=expected)


def _object(value: Any, where: str, known: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{value!r:.60} is not an object", where, "an object")
    for name in value:
        if known is not None and name not in known:
            raise _wrong(f"there is no {name!r:.60}", f"{where}.{name:.60}", ", ".join(known))
    return value


def _listed(value: Any, where: str, length_max: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > length_max:
        raise _wrong(f"{value!r:.60} is no list that fits", where, f"up to {length_max} members")
    return value


def _named(
    given: Mapping[str, Any], name: str, where: str, read: Callable[[Any, str], T]
) -> dict[str, T]:
    members = _object(given.get(name, {}), f"{where}.{name}", None)
    if len(members) > FIELDS_MAX:
        raise _wrong(f"{len(members)} members", f"{where}.{name}", f"at most {FIELDS_MAX}")
    return {
        _short(member, f"{where}.{name}"): read(value, f"{where}.{name}.{member:.60}")
        for member, value in members.items()
    }


def _optional(
    given: Mapping[str, Any], name: str, where: str, read: Callable[[Any, str], T]
) -> T | None:
    return read(given[name], f"{where}.{name}") if name in given else None


def _word(
    given: Mapping[str, Any], name: str, where: str, words: Sequence[str], default: str
) -> str:
    found = given.get(name, default)
    if found not in words:
        raise _wrong(f"{found!r:.40} is no {name}", f"{where}.{name}", ", ".join(words))
    return str(found)
