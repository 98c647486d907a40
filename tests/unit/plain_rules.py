"""A slow, plain reading of docs/rules.md, to hold the back ends against.

It follows the page sentence by sentence, looks at rows of tables as they are, and shares no code
with ``manta.rules`` beyond the hash of ``bucket`` and RE2. Rules are JSON as ``Rule.to_json`` says
it (so that the types of properties are written out).

    everybody = plain_people(lambda sql: connection.sql(sql).to_arrow_table())
    plain_holds(rule.to_json(), everybody[7], now)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from operator import eq, ge, gt, le, lt, ne
from typing import Any
from unicodedata import normalize
from zoneinfo import ZoneInfo

import pyarrow as pa
import re2

from manta.rules.meaning import bucket_of

Row = dict[str, Any]
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "equals": eq,
    "not_equals": ne,
    "greater_than": gt,
    "at_least": ge,
    "less_than": lt,
    "at_most": le,
}


@dataclass(frozen=True)
class PlainPerson:
    """The rows of one person, each a dict by column; events in no order, machines' among them."""

    subscriber_id: int
    profile: Row
    events: list[Row] = field(default_factory=list)
    consents: list[Row] = field(default_factory=list)
    suppressions: list[Row] = field(default_factory=list)
    attribute_times: list[Row] = field(default_factory=list)
    predictions: list[Row] = field(default_factory=list)
    segments: frozenset[int] = frozenset()


def plain_people(table: Callable[[str], pa.Table]) -> dict[int, PlainPerson]:
    """Everybody that a database holds; ``table`` runs a statement on it."""

    def rows(name: str) -> list[Row]:
        found: list[Row] = table(f"SELECT * FROM {name}").to_pylist()
        return found

    people = {
        row["subscriber_id"]: PlainPerson(row["subscriber_id"], row, [], [], [], [], [])
        for row in rows("profiles")
    }
    for name in ("events", "consents", "attribute_times", "predictions"):
        for row in rows(name):
            if row["subscriber_id"] in people:
                getattr(people[row["subscriber_id"]], name).append(row)
    for row in rows("memberships"):
        if row["subscriber_id"] in people:
            one = people[row["subscriber_id"]]
            segments = frozenset(row["segments"] or ())
            people[one.subscriber_id] = replace(one, segments=segments)
    for row in rows("suppressions"):
        for one in people.values():
            email = one.profile["email"]
            if email is not None and email.lower() == row["address"]:
                one.suppressions.append(row)
    return people


def plain_holds(rule: Row, person: PlainPerson, now: datetime, zone: str = "UTC") -> bool:
    """Whether the rule holds of the person; ``zone`` is the workspace's."""
    return _Reading(person, now, zone).holds(rule)


@dataclass(frozen=True)
class _Reading:
    person: PlainPerson
    now: datetime
    zone: str

    def holds(self, rule: Row) -> bool:
        ((kind, inner),) = rule.items()
        return bool(getattr(self, f"_{kind}")(inner))

    # -- groups ------------------------------------------------------------------------------------

    def _all(self, rules: list[Row]) -> bool:
        return all(self.holds(one) for one in rules)

    def _any(self, rules: list[Row]) -> bool:
        return any(self.holds(one) for one in rules)

    def _exactly_one(self, rules: list[Row]) -> bool:
        return [self.holds(one) for one in rules].count(True) == 1

    def _not(self, rule: Row) -> bool:
        return not self.holds(rule)

    # -- the person --------------------------------------------------------------------------------

    def _attribute(self, asked: Row) -> bool:
        name, profile = asked["name"], self.person.profile
        if name == "email_domain":
            email = profile["email"]
            value = email.split("@")[-1] if email is not None and "@" in email else None
        elif name in ("email", "time_zone", "locale", "created_at"):
            value = profile[name]
        else:
            value = profile.get(f"attr_{name}")
        return passes(value, asked, self._own_zone(), self.now)

    def _own_zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.person.profile["time_zone"] or self.zone)
        except Exception:
            return ZoneInfo(self.zone)

    def _has_been(self, asked: Row) -> bool:
        name = asked["attribute"]["name"]
        since = self.person.profile["created_at"]
        for row in self.person.attribute_times:
            if row["name"] == name:
                since = row["changed_at"]
        if since is None or self.now - since < length(asked["for"]):
            return False
        return self._attribute(asked["attribute"])

    def _prediction(self, asked: Row) -> bool:
        value = None
        for row in self.person.predictions:
            if row["name"] == asked["name"]:
                value = row["value"]
        return passes(value, asked, ZoneInfo("UTC"), self.now)

    def _consent(self, asked: Row) -> bool:
        for row in self.person.consents:
            if (row["channel"], row["topic"]) == (asked["channel"], asked["topic"]):
                if row["status"] == "pending" and self._expired(row):
                    return False
                return bool(row["status"] == asked["status"])
        return False

    def _suppressed(self, asked: Row) -> bool:
        return any(
            not self._expired(row) and asked.get("reason") in (None, row["reason"])
            for row in self.person.suppressions
        )

    def _expired(self, row: Row) -> bool:
        return row["expires_at"] is not None and row["expires_at"] <= self.now

    def _member(self, asked: Row) -> bool:
        return asked["segment"] in self.person.segments

    def _bucket(self, asked: Row) -> bool:
        part = bucket_of(asked["salt"], self.person.subscriber_id)
        return round(asked["from"] * 100) <= part < round(asked["to"] * 100)

    # -- events ------------------------------------------------------------------------------------

    def _happened(self, asked: Row) -> list[Row]:
        """The events of the type that pass every filter, by now, and were done by people."""
        return [
            row
            for row in self.person.events
            if row["type"] == asked["type"]
            and row["occurred_at"] <= self.now
            and by_a_person(row)
            and all(self._passes(one, row) for one in asked.get("where", []))
        ]

    def _passes(self, one: Row, row: Row) -> bool:
        return passes(property_of(row, one), one, ZoneInfo(self.zone), self.now)

    def _event(self, asked: Row) -> bool:
        rows = self._happened(asked)
        if "within" in asked:
            rows = [one for one in rows if in_frame(one["occurred_at"], asked["within"], self.now)]
        if "sum" in asked:
            total = asked["sum"]
            numbers = [
                property_of(row, {"property": total["property"], "type": "number"}) for row in rows
            ]
            amount = sum((millionths(one) for one in numbers), Decimal(0))
            return COMPARE[total["operator"]](amount, millionths(total["value"]))
        count = asked.get("count", {"operator": "at_least", "value": 1})
        return COMPARE[count["operator"]](len(rows), count["value"])

    def _first_time(self, asked: Row) -> bool:
        times = [row["occurred_at"] for row in self._happened(asked)]
        return bool(times) and in_frame(min(times), asked["within"], self.now)

    def _last_time(self, asked: Row) -> bool:
        times = [row["occurred_at"] for row in self._happened(asked)]
        return bool(times) and in_frame(max(times), asked["within"], self.now)

    def _sequence(self, asked: Row) -> bool:
        return any(
            moment <= self.now
            and ("within" not in asked or in_frame(moment, asked["within"], self.now))
            for moment in self._completions(asked["steps"], None)
        )

    def _completions(self, steps: list[Row], before: datetime | None) -> Iterator[datetime]:
        """When the sequence is complete, by every choice of events for the steps."""
        if not steps:
            assert before is not None
            yield before
            return
        step, *rest = steps
        near = []
        for row in self._happened(step):
            moment = row["occurred_at"]
            if before is not None and moment <= before:
                continue
            if before is not None and "within" in step and moment - before > length(step["within"]):
                continue
            near.append(moment)
        if step.get("absent"):
            assert before is not None
            if not near:
                yield before + length(step["within"])
            return
        for moment in near:
            yield from self._completions(rest, moment)

    def _keyed(self, asked: Row) -> bool:
        types = set(_types(asked["rule"]))
        keys: dict[str, list[Row]] = {}
        for row in self.person.events:
            key = key_of(row, asked["by"])
            if key is not None and row["type"] in types:
                keys.setdefault(key, []).append(row)
        return any(
            any(row["occurred_at"] <= self.now and by_a_person(row) for row in rows)
            and replace(self, person=replace(self.person, events=rows)).holds(asked["rule"])
            for rows in keys.values()
        )

    def _last_messages(self, asked: Row) -> bool:
        kind = asked.get("kind", "marketing")
        kinds = ["marketing", "transactional"] if kind == "any" else [kind]
        messages = [
            row
            for row in self._happened({"type": "sent"})
            if row["item"] in kinds and self.now - row["occurred_at"] >= timedelta(hours=24)
        ]
        messages.sort(key=lambda row: (row["occurred_at"], _key_order(row)), reverse=True)
        last = messages[: asked["number"]]
        matching = len([row for row in last if self._were(row["message_key"], asked["were"])])
        if len(last) < asked["number"] and asked.get("if_fewer", "false") != "use_those":
            return bool(asked.get("if_fewer") == "true")
        if isinstance(asked["which"], dict):
            return COMPARE[asked["which"]["operator"]](matching, asked["which"]["value"])
        return {"any": matching > 0, "all": matching == len(last), "none": matching == 0}[
            asked["which"]
        ]

    def _were(self, message: int | None, action: str) -> bool:
        if action == "ignored":
            return not self._were(message, "opened") and not self._were(message, "clicked")
        acts = self._happened({"type": action})
        return message is not None and any(row["message_key"] == message for row in acts)


def _key_order(row: Row) -> tuple[bool, int]:
    return row["message_key"] is not None, row["message_key"] or 0


def _types(rule: Row) -> Iterator[str]:
    ((kind, inner),) = rule.items()
    if kind == "not":
        yield from _types(inner)
    elif isinstance(inner, list):
        for one in inner:
            yield from _types(one)
    elif kind == "sequence":
        yield from (step["type"] for step in inner["steps"])
    else:
        yield inner["type"]


def by_a_person(row: Row) -> bool:
    judged = row["type"] in ("opened", "clicked") and row["human"] is not None
    return not judged or row["human"] >= 0.5


def length(span: Row) -> timedelta:
    return timedelta(**span)


def in_frame(moment: datetime, frame: Row, now: datetime) -> bool:
    ((kind, value),) = frame.items()
    if moment > now:
        return False
    if kind == "last":
        return now - moment < length(value)
    if kind == "at_least_ago":
        return now - moment >= length(value)
    return _compared(moment, moment.date(), kind, value)


def _compared(moment: datetime, day: date, kind: str, value: Any) -> bool:
    """Before, after, between: by days or by instants, as the value says."""
    if kind == "between":
        low, high = (_moment(one) for one in value)
        return low <= moment < high if isinstance(low, datetime) else low <= day <= high
    wanted = _moment(value)
    own: Any = moment if isinstance(wanted, datetime) else day
    return bool(own < wanted if kind == "before" else own > wanted)


def _moment(text: str) -> Any:
    if len(text) == 10:
        return date.fromisoformat(text)
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


# -- properties of events --------------------------------------------------------------------------


def document(row: Row) -> Any:
    def first_counts(pairs: list[tuple[str, Any]]) -> Row:
        found: Row = {}
        for key, value in pairs:
            found.setdefault(key, value)
        return found

    try:
        found = json.loads(row["properties"] or "null", object_pairs_hook=first_counts)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ValueError:
        return None
    return found


def own_property(row: Row, name: str) -> Any:
    found = document(row)
    for key in name.split(".")[1:]:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def property_of(row: Row, asked: Row) -> Any:
    name = asked["property"]
    if name in ("item", "amount", "campaign"):
        return row["campaign_id" if name == "campaign" else name]
    value = own_property(row, name)
    if asked.get("operator") in ("is_set", "not_set"):
        return value
    type_, text, number = asked["type"], isinstance(value, str), isinstance(value, int | float)
    if type_ == "number" and number and not isinstance(value, bool):
        try:
            return float(value) if math.isfinite(float(value)) else None
        except OverflowError:
            return None
    if type_ == "date" and text:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    if type_ == "list" and isinstance(value, list):
        return [one for one in value if isinstance(one, str)]
    wanted = {"string": str, "boolean": bool}.get(type_)
    return value if wanted is not None and isinstance(value, wanted) else None


def key_of(row: Row, by: str) -> str | None:
    if by in ("item", "campaign"):
        value = row["item" if by == "item" else "campaign_id"]
    else:
        value = own_property(row, by)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if -(2**63) <= value < 2**64 else None
    return value if isinstance(value, str) else None


def millionths(amount: float | None) -> Decimal:
    if amount is None or math.isnan(amount) or abs(amount) > 9e12:
        return Decimal(0)
    return Decimal(amount).quantize(Decimal("0.000001"), ROUND_HALF_UP)


# -- values ----------------------------------------------------------------------------------------


def folded(text: str) -> str:
    return normalize("NFC", normalize("NFC", text).casefold())


def passes(value: Any, asked: Row, zone: ZoneInfo, now: datetime) -> bool:
    operator = asked["operator"]
    if operator == "is_set":
        return value is not None
    if operator == "not_set":
        return value is None
    if operator.startswith("not_"):
        return not passes(value, {**asked, "operator": operator[4:]}, zone, now)
    if value is None:
        return False
    operand = asked.get("value")
    if isinstance(value, bool):
        return value is operand
    if isinstance(value, str):
        return _text(value, operator, operand)
    if isinstance(value, list):
        return _texts([folded(one) for one in value if one is not None], operator, operand)
    if isinstance(value, datetime):
        return _date(value, operator, operand, zone, now)
    if math.isnan(value):
        return False
    if operator == "between":
        return bool(operand[0] <= value <= operand[1])
    return value in operand if operator == "in" else COMPARE[operator](value, operand)


def _text(text: str, operator: str, operand: Any) -> bool:
    if operator == "regex":
        return re2.search(operand, text) is not None
    if operator == "in":
        return folded(text) in [folded(one) for one in operand]
    own, wanted = folded(text), folded(operand)
    return {
        "equals": own == wanted,
        "contains": wanted in own,
        "starts_with": own.startswith(wanted),
        "ends_with": own.endswith(wanted),
    }[operator]


def _texts(own: list[str], operator: str, operand: Any) -> bool:
    if operator == "length":
        return COMPARE[operand["operator"]](len(own), operand["value"])
    wanted = [folded(one) for one in ([operand] if operator == "contains" else operand)]
    found = [one in own for one in wanted]
    return all(found) if operator == "contains_all" else any(found)


def _local(instant: datetime, zone: ZoneInfo) -> date:
    return instant.replace(tzinfo=UTC).astimezone(zone).date()


def _date(value: datetime, operator: str, operand: Any, zone: ZoneInfo, now: datetime) -> bool:
    dated = value.time() == datetime.min.time()
    day, today = value.date() if dated else _local(value, zone), _local(now, zone)
    if operator.startswith("anniversary"):
        ahead = [0] if operator == "anniversary_today" else range(1, _days(operand) + 1)
        return any(_is_anniversary(day, today + timedelta(days=one)) for one in ahead)
    if operator == "on":
        return day == _moment(operand)
    if operator in ("before", "after", "between"):
        return _compared(value, day, operator, operand)
    if "days" in operand or "weeks" in operand:
        away = (day - today).days
        days = _days(operand)
        return {
            "in_the_last": -days < away <= 0,
            "in_the_next": 0 < away <= days,
            "at_least_ago": away <= -days,
        }[operator]
    return {
        "in_the_last": now - length(operand) < value <= now,
        "in_the_next": now < value <= now + length(operand),
        "at_least_ago": value <= now - length(operand),
    }[operator]


def _days(span: Row) -> int:
    return length(span).days


def _is_anniversary(day: date, other: date) -> bool:
    if (day.month, day.day) == (2, 29):
        leap = other.year % 4 == 0 and (other.year % 100 != 0 or other.year % 400 == 0)
        return (other.month, other.day) == (2, 29 if leap else 28)
    return (day.month, day.day) == (other.month, other.day)
