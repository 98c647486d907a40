"""The live segments of a shard, compiled, and which of them a change can affect.

Built from the shard's definitions; a segment whose version is known already keeps its compiled
rule. A definition that this version of the software cannot read is left out and named in
``broken``: its members stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from manta.command import Database
from manta.errors import MantaError
from manta.people.definitions import SEGMENT, Definition, definitions
from manta.rules.closure import Closure, compile_closure
from manta.rules.nodes import Rule
from manta.rules.scope import Touches, touches
from manta.rules.terms import BUILT_IN
from manta.rules.tree import parse
from manta.schema import ATTRIBUTE_PREFIX, AttributeType

Segments = frozenset[int]
NONE: Segments = frozenset()


class LiveSegment(NamedTuple):
    """A segment that shards keep the members of; ``rule`` is whole."""

    id: int
    version: int
    name: str
    rule: Rule
    closure: Closure
    touches: Touches


@dataclass(frozen=True)
class Index:
    """Segments by what changes them. Names of columns are those of ``profiles``."""

    zone: str
    segments: Mapping[int, LiveSegment] = field(default_factory=dict)
    broken: Mapping[int, str] = field(default_factory=dict)
    events: Mapping[str, Segments] = field(default_factory=dict)
    columns: Mapping[str, Segments] = field(default_factory=dict)
    consents: Mapping[tuple[str, str], Segments] = field(default_factory=dict)
    lists: Mapping[int, Segments] = field(default_factory=dict)
    predictions: Mapping[str, Segments] = field(default_factory=dict)
    held: Mapping[str, Segments] = field(default_factory=dict)
    suppressed: Segments = NONE
    timed: Segments = NONE

    @property
    def all(self) -> Segments:
        return frozenset(self.segments)

    def touches(self, segments: Iterable[int]) -> Touches:
        """What has to be read of a person to ask these."""
        found = Touches()
        for id in segments:
            found |= self.segments[id].touches
        return found


def read_index(database: Database, zone: str, before: Index | None = None) -> Index:
    """The index of what the shard's definitions say now."""
    known = before.segments if before is not None and before.zone == zone else {}
    segments: dict[int, LiveSegment] = {}
    broken: dict[int, str] = {}
    for definition in definitions(database, SEGMENT):
        id, body = int(definition.id), definition.body
        if not is_live(body):
            continue
        if id in known and known[id].version == definition.version:
            segments[id] = known[id]
            continue
        try:
            segments[id] = _compiled(id, definition, zone)
        except (MantaError, ValueError, TypeError, KeyError) as error:
            broken[id] = f"{type(error).__name__}: {error}"
    return index_of(segments.values(), zone, broken)


def is_live(body: Mapping[str, Any]) -> bool:
    return bool(body.get("live")) and body.get("rule") is not None


def _compiled(id: int, definition: Definition, zone: str) -> LiveSegment:
    body = definition.body
    types = {name: AttributeType(kind) for name, kind in body.get("attributes", {}).items()}
    rule = parse(body["rule"], types)
    name = str(body.get("name", ""))
    closure = compile_closure(rule, zone)
    return LiveSegment(id, definition.version, name, rule, closure, touches(rule))


def index_of(
    segments: Iterable[LiveSegment], zone: str, broken: Mapping[int, str] | None = None
) -> Index:
    by: dict[str, dict[Any, set[int]]] = {}

    def put(kind: str, key: Any, id: int) -> None:
        by.setdefault(kind, {}).setdefault(key, set()).add(id)

    every = {segment.id: segment for segment in segments}
    for id, segment in every.items():
        touched = segment.touches
        for type_ in touched.event_types:
            put("events", type_, id)
        for name in touched.attributes:
            put("columns", _column(name), id)
        for consent in touched.consents:
            put("consents", consent, id)
        for number in touched.segments:
            put("lists", number, id)
        for prediction in touched.predictions:
            put("predictions", prediction, id)
        for name in touched.held:
            put("held", name, id)
            put("columns", _column(name), id)
    found = {kind: {key: frozenset(ids) for key, ids in keys.items()} for kind, keys in by.items()}
    return Index(
        zone,
        every,
        broken or {},
        suppressed=frozenset(id for id, one in every.items() if one.touches.suppressions),
        timed=frozenset(id for id, one in every.items() if one.closure.moves_with_time),
        **found,
    )


def _column(name: str) -> str:
    return name if name in BUILT_IN else ATTRIBUTE_PREFIX + name
