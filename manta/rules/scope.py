"""What a rule looks at, and how far back: which changes can affect it, what memory it needs.

An index from event type, attribute and the like to rules is built from ``touches``; a live rule
with a condition ``beyond`` the shard's memory of events, and beyond what the sums of older ones say
(``manta.rules.kept``), is refused where it is defined.

``with_segments`` and ``without_unknown`` make a rule ready for the place where it is asked: whole,
without references to segments, and without attributes of which that place has never seen a value.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from manta.errors import InvalidRequest
from manta.rules.kept import Kept, sums_of, unserved
from manta.rules.meaning import frame_range
from manta.rules.nodes import (
    All,
    AnyOf,
    Attribute,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    HasBeen,
    Keyed,
    LastMessages,
    Member,
    Not,
    Prediction,
    Rule,
    Sequence,
    Suppressed,
    children_of,
    happenings_of,
    walk,
)
from manta.rules.terms import BUILT_IN, Frame, Operator, Span, Test
from manta.rules.tree import NODES_MAX
from manta.schema import ATTRIBUTE_PREFIX, AttributeType

_ACTS = {"opened": {"opened"}, "clicked": {"clicked"}, "ignored": {"opened", "clicked"}}


@dataclass(frozen=True)
class Touches:
    """What can change a rule's answer besides time. ``attributes`` includes built-in fields."""

    event_types: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    consents: frozenset[tuple[str, str]] = frozenset()
    segments: frozenset[int] = frozenset()
    suppressions: bool = False
    predictions: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()  # of `attributes`: those whose time of change counts too
    past: frozenset[Kept] = frozenset()  # sums of events that have left memory

    def __or__(self, other: Touches) -> Touches:
        return Touches(
            self.event_types | other.event_types,
            self.attributes | other.attributes,
            self.consents | other.consents,
            self.segments | other.segments,
            self.suppressions or other.suppressions,
            self.predictions | other.predictions,
            self.held | other.held,
            self.past | other.past,
        )


def touches(*rules: Rule) -> Touches:
    """What can affect the answer of any of these rules."""
    found = Touches()
    for rule in rules:
        for node in walk(rule):
            found |= _touches_of(node)
        found |= Touches(past=sums_of(rule))
    return found


def _touches_of(node: Rule) -> Touches:
    if isinstance(node, Attribute):
        names = {"email"} if node.name == "email_domain" else {node.name}
        if node.test.type is AttributeType.DATE:
            names.add("time_zone")
        return Touches(attributes=frozenset(names))
    if isinstance(node, Event | EventTime | Sequence):
        return Touches(event_types=frozenset(one.type for one in happenings_of(node)))
    if isinstance(node, Prediction):
        return Touches(predictions=frozenset({node.name}))
    if isinstance(node, HasBeen):  # its attribute is a node of its own
        return Touches(held=frozenset({node.attribute.name}))
    if isinstance(node, LastMessages):
        return Touches(event_types=frozenset({"sent"} | _ACTS[node.were]))
    if isinstance(node, Consent):
        return Touches(consents=frozenset({(node.channel, node.topic)}))
    if isinstance(node, Member):
        return Touches(segments=frozenset({node.segment}))
    if isinstance(node, Suppressed):
        return Touches(attributes=frozenset({"email"}), suppressions=True)
    return Touches()


@dataclass(frozen=True)
class Reach:
    """How much history of events a rule needs.

    ``back`` is a length of time before now, zero for none, ``None`` for all there ever was.
    ``messages`` is how many of a person's last messages it looks at, whenever they were sent.
    """

    back: timedelta | None = timedelta(0)
    messages: int = 0

    def __or__(self, other: Reach) -> Reach:
        ever = self.back is None or other.back is None
        longest = None if ever else max(self.back or timedelta(0), other.back or timedelta(0))
        return Reach(longest, max(self.messages, other.messages))


def reach(now: datetime, *rules: Rule) -> Reach:
    """How far back these rules look at ``now``; from a fixed day the distance grows with time.

    The first or last time of an event looks at all of them, whatever its window, as does a sequence
    in which a step may follow at any distance, and a keyed rule that holds of keys with old events.
    """
    found = Reach()
    for node in (node for rule in rules for node in walk(rule)):
        if isinstance(node, LastMessages):
            found |= Reach(messages=node.number)
        elif isinstance(node, EventTime):
            found |= Reach(None)
        elif isinstance(node, Event):
            found |= _distance(node.happening.within, now)
        elif isinstance(node, Sequence):
            found |= _of_sequence(node, now)
        elif isinstance(node, Keyed) and node.holds_for_none:
            found |= Reach(None)
    return found


def beyond(rule: Rule, memory: timedelta, now: datetime) -> tuple[Rule, timedelta | None] | None:
    """The condition that looks furthest back beyond so much memory of events, and how far; ``None``
    where memory and the sums of what has left it (``manta.rules.kept``) answer the rule."""
    far = [(one, reach(now, one).back) for one in unserved(rule)]
    far = [(one, back) for one, back in far if back is None or back > memory]
    return max(far, key=lambda pair: pair[1] or timedelta.max, default=None)


def _distance(frame: Frame | None, now: datetime, more: timedelta = timedelta(0)) -> Reach:
    low, _ = frame_range(frame, now)
    return Reach(None if low is None else max(now - low, timedelta(0)) + more)


def _of_sequence(rule: Sequence, now: datetime) -> Reach:
    """From the frame, in which it ends, back over the spans of all steps."""
    spans = [step.within.delta for step in rule.steps[1:] if step.within is not None]
    if len(spans) < len(rule.steps) - 1:
        return Reach(None)
    return _distance(rule.within, now, sum(spans, timedelta(0)))


# -- segments of segments --------------------------------------------------------------------------


def inline(rule: Rule, segments: Mapping[int, Rule]) -> Rule:
    """The rule with each ``member`` replaced by that segment's own rule, all the way down.

    Segments that are not in the mapping (static lists) stay. Raises ``InvalidRequest`` for segments
    that contain each other, and where the whole grows beyond the limit of conditions.
    """
    whole = _inlined(rule, segments, ())
    if len(walk(whole)) > NODES_MAX:
        raise InvalidRequest(
            "with the segments it refers to, the rule has too many conditions",
            expected=f"at most {NODES_MAX} conditions",
        )
    return whole


def _inlined(rule: Rule, segments: Mapping[int, Rule], inside: tuple[int, ...]) -> Rule:
    if isinstance(rule, Member) and rule.segment in segments:
        path = (*inside, rule.segment)
        if rule.segment in inside:
            circle = " → ".join(str(number) for number in path)
            raise InvalidRequest(
                f"segments contain each other: {circle}", expected="segments without a circle"
            )
        if len(path) > 20:
            raise InvalidRequest(
                "segments refer to segments too deeply", expected="at most 20 segments deep"
            )
        return _inlined(segments[rule.segment], segments, path)
    return _with_children(rule, lambda child: _inlined(child, segments, inside))


def with_segments(rule: Rule, find: Callable[[int], Rule | None]) -> Rule:
    """The rule with the rules of all segments that it refers to, and they to, in their place.

    A segment without a rule (a list, a snapshot) is its own ``Member`` node and stays one. Raises
    ``InvalidRequest`` for a segment that ``find`` does not know, and as ``inline``.
    """
    found: dict[int, Rule] = {}
    static: set[int] = set()
    waiting = [rule]
    while waiting:
        for node in walk(waiting.pop()):
            if isinstance(node, Member) and node.segment not in found.keys() | static:
                segment = find(node.segment)
                if segment is None:
                    raise InvalidRequest(
                        f"the rule refers to segment {node.segment}, which there is not",
                        path="rule",
                        expected="the number of a segment",
                    )
                if segment == node:
                    static.add(node.segment)
                    continue
                found[node.segment] = segment
                waiting.append(segment)
    return inline(rule, found)


# -- attributes without values ---------------------------------------------------------------------


def without_unknown(rule: Rule, columns: Container[str]) -> Rule:
    """The rule without conditions on attributes of which nobody here has a value.

    ``columns`` are those that ``profiles`` has: an attribute gets its column with its first value.
    A missing attribute makes a positive operator false and a negative one true, so the condition is
    that constant, and the rule says the same of everybody here.
    """
    if isinstance(rule, Attribute):
        if _known(rule, columns):
            return rule
        return All(()) if rule.test.negated else AnyOf(())
    if isinstance(rule, HasBeen):
        if _known(rule.attribute, columns):
            return rule
        return _as_old_as(rule.span) if rule.attribute.test.negated else AnyOf(())
    return _with_children(rule, lambda child: without_unknown(child, columns))


def _known(rule: Attribute, columns: Container[str]) -> bool:
    return rule.name in BUILT_IN or f"{ATTRIBUTE_PREFIX}{rule.name}" in columns


def _as_old_as(span: Span) -> Rule:
    """People created at least so long ago: since then what was never set has not been set."""
    minutes = Span(span.delta // timedelta(minutes=1), "minutes")
    test = Test(AttributeType.DATE, Operator.AT_LEAST_AGO, value=minutes)
    return Attribute("created_at", test)


def _with_children(rule: Rule, change: Callable[[Rule], Rule]) -> Rule:
    """The rule with each of its children changed; inside a condition there is nothing to change."""
    if not children_of(rule) or isinstance(rule, HasBeen | Keyed):
        return rule
    parts = tuple(change(child) for child in children_of(rule))
    if isinstance(rule, Not):
        return Not(parts[0])
    assert isinstance(rule, All | AnyOf | ExactlyOne)
    return type(rule)(parts)
