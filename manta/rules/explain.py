"""A rule in English, for the person who has to trust it.

A simple rule is one sentence; what is nested becomes an indented list, one condition a line. Values
stand in quotes, days and instants in ISO form. The text is made for reading and never parsed.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from manta.rules.nodes import (
    All,
    AnyOf,
    Attribute,
    Bucket,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    HasBeen,
    IfFewer,
    Keyed,
    LastMessages,
    Member,
    Not,
    Prediction,
    Rule,
    Sequence,
    Suppressed,
)
from manta.rules.terms import Comparison, Filter, Frame, FrameKind, Happening, Operator, Span, Test
from manta.schema import AttributeType

_LISTED_MAX = 8
_VERBS = {"purchased": "bought", "page_viewed": "viewed", "opened": "opened a mail"}
_COMPARED = {
    "equals": "exactly",
    "not_equals": "other than",
    "greater_than": "more than",
    "at_least": "at least",
    "less_than": "less than",
    "at_most": "at most",
}


def explain(rule: Rule) -> str:
    """English sentences that say whom the rule holds for, nested conditions as indented lines."""
    lines = _lines(rule)
    if len(lines) == 1:
        return f"People who {lines[0]}."
    return "\n".join([f"People for whom {lines[0]}", *lines[1:]])


def _lines(rule: Rule) -> list[str]:
    """The first line stands after "people for whom" (groups) or "people who" (conditions)."""
    if isinstance(rule, Not):
        return _negated(rule.child)
    if isinstance(rule, All | AnyOf | ExactlyOne):
        return _group(rule)
    return _keyed(rule) if isinstance(rule, Keyed) else [_condition(rule)]


def _keyed(rule: Keyed) -> list[str]:
    same = f"one and the same {_property(rule.by.name)}"
    first, *rest = _lines(rule.rule)
    return [f"of the events with {same}, {first}", *rest] if rest else [f"with {same} {first}"]


def _group(rule: All | AnyOf | ExactlyOne) -> list[str]:
    if not rule.children:
        return ["exist, all of them" if isinstance(rule, All) else "do not exist: nobody"]
    if len(rule.children) == 1:
        return _lines(rule.children[0])
    heads = {
        All: "all of these are true:",
        AnyOf: "at least one of these is true:",
        ExactlyOne: "exactly one of these is true:",
    }
    lines = [heads[type(rule)]]
    for child in rule.children:
        first, *rest = _lines(child)
        shown = first if rest else f"they {first}"
        lines.append(f"- {shown}")
        lines.extend("  " + line for line in rest)
    return lines


def _negated(child: Rule) -> list[str]:
    if isinstance(child, Not):
        return _lines(child.child)
    if isinstance(child, Event) and child.sum_of is None and _is_once(child.comparison):
        return [f"never {_happened(child.happening)}"]
    first, *rest = _lines(child)
    if not rest:
        return [f"are none of those who {first}"]
    return [f"it is not so that {first}", *rest]


def _condition(rule: Rule) -> str:
    if isinstance(rule, Attribute):
        return _attribute(rule)
    if isinstance(rule, Event):
        return _event(rule)
    if isinstance(rule, EventTime):
        which = "first" if rule.first else "last"
        bare = Happening(rule.happening.type, rule.happening.where)
        return f"{which} {_happened(bare)} {_frame(rule.happening.within)}"
    if isinstance(rule, LastMessages):
        return _last_messages(rule)
    if isinstance(rule, Consent):
        return f"are {rule.status} to the topic {_quoted(rule.topic)} by {rule.channel}"
    if isinstance(rule, Suppressed):
        why = f" because of {rule.reason}" if rule.reason else ""
        return f"have an e-mail address that is suppressed{why}"
    if isinstance(rule, Member):
        return f"are members of segment {rule.segment}"
    if isinstance(rule, Bucket):
        low, high = rule.start / 100, rule.end / 100
        return f"fall between {low:g} % and {high:g} % of the random draw {_quoted(rule.salt)}"
    if isinstance(rule, Sequence):
        return _sequence_of(rule)
    if isinstance(rule, HasBeen):
        return f"for at least {_length(rule.span)} {_attribute(rule.attribute)}, unchanged"
    if isinstance(rule, Prediction):
        return _prediction(rule)
    raise TypeError(f"no English for {type(rule).__name__}")


def _attribute(rule: Attribute) -> str:
    shown = rule.name.replace("_", " ")
    if rule.test.operator is Operator.IS_SET:
        return f"have {'no ' if rule.test.negated else 'some '}{shown}"
    if rule.test.type in (AttributeType.BOOLEAN, AttributeType.LIST):
        return f"have {shown} {_test(rule.test)}"
    return f"have {_article(shown)} {_test(rule.test)}"


def _prediction(rule: Prediction) -> str:
    if rule.test.operator is Operator.IS_SET:
        return f"have {'no' if rule.test.negated else 'a'} prediction {_quoted(rule.name)}"
    return f"have a prediction {_quoted(rule.name)} {_test(rule.test)}"


# -- events ----------------------------------------------------------------------------------------


def _is_once(comparison: Comparison) -> bool:
    return comparison.operator == "at_least" and comparison.value == 1


def _event(rule: Event) -> str:
    happened = _happened(rule.happening)
    if rule.sum_of is not None:
        compared = f"{_COMPARED[rule.comparison.operator]} {rule.comparison.value:g}"
        return f"{happened}, with a total {_property(rule.sum_of.name)} of {compared}"
    if rule.comparison.operator == "equals" and rule.comparison.value == 0:
        return f"never {happened}"
    return _happened(rule.happening, " " + _times(rule.comparison))


def _times(comparison: Comparison) -> str:
    if comparison.value == 1:
        return f"{_COMPARED[comparison.operator]} once"
    return f"{_COMPARED[comparison.operator]} {comparison.value:g} times"


def _happened(happening: Happening, times: str = "") -> str:
    verb = _VERBS.get(happening.type)
    filters = list(happening.where)
    words = verb or f"did {_quoted(happening.type)}"
    if verb == "bought":
        words += " " + _what(filters)
    if filters:
        words += " with " + " and ".join(_filter(one) for one in filters)
    words += times
    return words + (f" {_frame(happening.within)}" if happening.within else "")


def _sequence_of(rule: Sequence) -> str:
    words = []
    for step in rule.steps:
        happened = _happened(step.happening)
        if step.absent:
            happened = f"never {happened}"
        if step.within is not None:
            happened += f" within {_length(step.within)}"
        words.append(happened)
    whole = ", then ".join(words)
    return whole + (f", all of it complete {_frame(rule.within)}" if rule.within else "")


def _what(filters: list[Filter]) -> str:
    """The thing bought, taken out of the filters where one of them names it."""
    for one in filters:
        named = one.property.name == "item" and not one.test.negated
        if named and one.test.operator in (Operator.EQUALS, Operator.IN):
            filters.remove(one)
            if one.test.operator is Operator.EQUALS:
                return _quoted(one.test.value)
            return _alternatives(one.test.value)
    return "something"


def _filter(one: Filter) -> str:
    return f"{_property(one.property.name)} {_test(one.test)}"


def _property(name: str) -> str:
    return name.removeprefix("properties.")


def _frame(frame: Frame | None) -> str:
    if frame is None:
        return "ever"
    if frame.kind is FrameKind.LAST:
        return f"in the last {_span(frame.value)}"
    if frame.kind is FrameKind.AT_LEAST_AGO:
        return f"at least {_span(frame.value)} ago"
    if frame.kind is FrameKind.BETWEEN:
        return f"between {_moment(frame.value[0])} and {_moment(frame.value[1])}"
    return f"{frame.kind.value} {_moment(frame.value)}"


def _last_messages(rule: LastMessages) -> str:
    kind = "" if rule.kind == "marketing" else f"{rule.kind} "
    if rule.kind == "any":
        kind = "marketing or transactional "
    mails = f"the last {rule.number} {kind}mails" if rule.number > 1 else f"the last {kind}mail"
    if isinstance(rule.which, Comparison):
        said = f"{rule.were} {_COMPARED[rule.which.operator]} {rule.which.value:g} of {mails}"
    else:
        said = f"{rule.were} {rule.which} of {mails}"
    fewer = {
        IfFewer.FALSE: "",
        IfFewer.TRUE: f", or were sent fewer than {rule.number}",
        IfFewer.USE_THOSE: ", or of those there are where there are fewer",
    }
    return said + fewer[rule.if_fewer]


# -- values ----------------------------------------------------------------------------------------

_WORDS = {
    Operator.EQUALS: ("equal to", "not equal to"),
    Operator.IN: ("that is", "that is not"),
    Operator.IS_SET: ("set", "not set"),
    Operator.CONTAINS: ("containing", "not containing"),
    Operator.STARTS_WITH: ("starting with", "not starting with"),
    Operator.ENDS_WITH: ("ending in", "not ending in"),
    Operator.REGEX: ("matching the pattern", "not matching the pattern"),
    Operator.GREATER_THAN: ("greater than", ""),
    Operator.AT_LEAST: ("of at least", ""),
    Operator.LESS_THAN: ("less than", ""),
    Operator.AT_MOST: ("of at most", ""),
    Operator.BETWEEN: ("between", "not between"),
    Operator.CONTAINS_ANY: ("containing any of", "containing none of"),
    Operator.CONTAINS_ALL: ("containing all of", "not containing all of"),
    Operator.LENGTH: ("with", ""),
    Operator.ON: ("on", ""),
    Operator.BEFORE: ("before", ""),
    Operator.AFTER: ("after", ""),
    Operator.IN_THE_LAST: ("in the last", ""),
    Operator.IN_THE_NEXT: ("in the next", ""),
    Operator.AT_LEAST_AGO: ("at least", ""),
    Operator.ANNIVERSARY_TODAY: ("whose anniversary is today", ""),
    Operator.ANNIVERSARY_IN_THE_NEXT: ("whose anniversary is in the next", ""),
}


def _test(test: Test) -> str:
    words = _WORDS[test.operator][test.negated]
    value = test.value
    if value is None:
        return words
    if test.operator is Operator.BETWEEN:
        return f"{words} {_value(value[0])} and {_value(value[1])}"
    if test.operator is Operator.LENGTH:
        return f"with {_COMPARED[value.operator]} {value.value:g} entries"
    if test.operator is Operator.AT_LEAST_AGO:
        return f"{words} {_span(value)} ago"
    if test.type is AttributeType.LIST and isinstance(value, tuple):
        return f"{words} {_sequence(value, 'and')}"
    if isinstance(value, tuple):
        return f"{words} {_alternatives(value)}"
    return f"{words} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Span):
        return _span(value)
    return _moment(value) if isinstance(value, date) else f"{value:.15g}"


def _alternatives(values: tuple[Any, ...]) -> str:
    return _sequence(values, "or")


def _sequence(values: tuple[Any, ...], word: str) -> str:
    shown = [_value(one) for one in values[:_LISTED_MAX]]
    if len(values) > _LISTED_MAX:
        shown.append(f"{len(values) - _LISTED_MAX} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"


def _quoted(text: str) -> str:
    return "“" + "".join(char if char.isprintable() else "�" for char in text) + "”"


def _span(span: Span) -> str:
    return f"{span.count} {span.unit}" if span.count != 1 else span.unit.removesuffix("s")


def _length(span: Span) -> str:
    return f"1 {span.unit.removesuffix('s')}" if span.count == 1 else _span(span)


def _moment(value: date) -> str:
    if isinstance(value, datetime):
        return value.isoformat(sep=" ") + " UTC"
    return value.isoformat()


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
