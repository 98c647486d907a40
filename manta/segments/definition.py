"""What a segment is: a rule, a list that is kept by hand, or a snapshot of a rule at an instant.

A *rule* segment is live where shards can answer it at any moment: then they keep its members as
events happen and time passes: from memory, and from the sums that are kept of events that have left
it (``manta.rules.kept``). A rule with a condition that neither can answer is answered on demand
only, from the lake (``why_not_live`` says so). *Lists* and *snapshots* have members that
change by commands alone; rules refer to all three by ``member``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from manta.definitions import Document, Reader, attribute_types, checked_name
from manta.errors import Conflict, InvalidRequest
from manta.rules.explain import explain
from manta.rules.kept import MEMORY, MEMORY_DAYS
from manta.rules.nodes import Member, Rule
from manta.rules.scope import beyond, touches, with_segments
from manta.rules.tree import parse

RULE, LIST, SNAPSHOT = "rule", "list", "snapshot"
TYPES = (RULE, LIST, SNAPSHOT)
_FIELDS = ("id", "name", "type", "rule", "live", "why_not_live")
# The reach of a fixed day grows with time; a live rule may be asked for years.
_LOOKED_AT = datetime(2100, 1, 1)
_SERVED = (
    f"a time frame of the last {MEMORY_DAYS} days, a condition that sums say (how often, first or"
    " last time, without filters or for purchases of an item), or live: false"
)


def checked(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of a segment. Raises ``InvalidRequest`` for a rule that is wrong, refers to what
    is not there, contains itself, or shall be live and cannot be."""
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown:
        raise InvalidRequest(
            f"a segment has no field {unknown[0]:.60}",
            path=unknown[0],
            expected="name, type, rule, live",
        )
    kind = fields.get("type") or RULE
    if kind not in TYPES:
        raise InvalidRequest(
            f"{kind!r:.40} is no type of segment", path="type", expected=", ".join(TYPES)
        )
    document: Document = {"name": checked_name(fields), "type": kind, "rule": None, "live": False}
    if kind == LIST:
        if fields.get("rule") is not None:
            raise InvalidRequest(
                "a list has no rule: people are put on it", path="rule", expected="no rule"
            )
        return document
    rule = parse(fields.get("rule"), attribute_types(reader))
    own = fields.get("id")
    if own and rule == Member(own) and reader.get("segments", str(own)):
        raise InvalidRequest(
            "segments contain each other: this one is itself",
            path="rule",
            expected="segments without a circle",
        )
    known = reader.get("segments", str(own)) is not None
    whole = with_segments(rule, lambda id: rule if known and id == own else _rule(reader, id))
    document["rule"] = rule.to_json()
    if kind == RULE:
        why_not = not_live(whole)
        if why_not and fields.get("live"):
            raise InvalidRequest(why_not, path="live", expected=_SERVED)
        document["live"] = bool(fields.get("live", True)) and not why_not
        if why_not:
            document["why_not_live"] = why_not
    return document


def check_delete(document: Document, reader: Reader) -> None:
    """Raises ``Conflict`` where the rule of another segment refers to this one."""
    for other in reader.list("segments"):
        if other["id"] == document["id"] or not other["rule"]:
            continue
        rule = parse(other["rule"], attribute_types(reader))
        if document["id"] in touches(rule).segments:
            raise Conflict(
                f"segment {other['id']} ({other['name']}) refers to it",
                path="id",
                expected="a segment that no other one needs",
            )


def not_live(whole: Rule) -> str:
    """Why shards cannot answer the rule at any time; empty where they can."""
    found = beyond(whole, MEMORY, _LOOKED_AT)
    if found is None:
        return ""
    condition, back = found
    far = "at all the past" if back is None else f"{-(-back // timedelta(days=1))} days back"
    said = " ".join(explain(condition).removesuffix(".").split())
    return (
        f"the rule asks for {said[0].lower()}{said[1:]}; that looks {far}, and shards keep"
        f" {MEMORY_DAYS} days of events in memory and of older ones only sums, which do not say it"
    )


def shard_body(document: Document, reader: Reader) -> Document:
    """What shards, and the lake through them, know of a segment: its rule whole, and the types of
    the attributes that it names; only a live one is kept by shards."""
    body: Document = {
        "name": document["name"],
        "type": document.get("type", RULE),
        "live": bool(document.get("live")),
        "rule": None,
        "attributes": {},
    }
    if body["type"] != RULE:
        return body
    types = attribute_types(reader)
    whole = with_segments(parse(document["rule"], types), lambda id: _rule(reader, id))
    names = touches(whole).attributes
    body["rule"] = whole.to_json()
    body["attributes"] = {name: str(kind) for name, kind in types.items() if name in names}
    return body


def whole(rule: Any, reader: Reader) -> Rule:
    """A rule as it is now: checked, with the rules of segments that it refers to in their place."""
    return with_segments(parse(rule, attribute_types(reader)), lambda id: _rule(reader, id))


def _rule(reader: Reader, id: int) -> Rule | None:
    document = reader.get("segments", str(id))
    if document is None:
        return None
    if document.get("type", RULE) != RULE:
        return Member(id)
    return parse(document["rule"], attribute_types(reader))
