"""Mappings: how the JSON of any system becomes people, traits, consents and events, as data.

A mapping is a JSON object::

    {"items": "$.records[*]",
     "id": "$.change_id",
     "identities": {"email": "$.Email", "external_id": {"path": "$.Id", "prefix": "crm:"}},
     "traits": {"city": "$.Address.City", "since": {"path": "$.since", "format": "%d.%m.%Y"}},
     "consent": {"topic": "newsletter",
                 "status": {"path": "$.optin", "map": {"yes": "subscribed", "no": "unsubscribed"}}},
     "events": [{"type": "ordered", "when": {"path": "$.status", "equals": "paid"},
                 "id": "$.order.number", "occurred_at": "$.order.date",
                 "amount": {"path": "$.order.total", "format": "decimal_comma"}},
                {"type": "purchased", "each": "$.order.lines[*]", "item": "@.sku",
                 "amount": "@.price", "properties": {"order_id": "$.order.number"}}]}

``items`` leads to the records of a body (default: the body is one); ``$`` is a record from there
on, ``@`` a member of ``each``. A *value* is a path, or an object: ``path``, ``default`` where it
leads nowhere, ``map`` from texts to values, ``format``, ``prefix``; or ``const``. Nothing in a
mapping is run, so whoever writes one can do no more than name fields.

An event counts once by its ``id`` (within the source and its type); without one it is named by the
record's content. ``normalise`` reads a whole body; ``bodies`` splits one into bodies of one record
each, so that a record that does not fit waits alone and is read by the same mapping, or a mended
one, when it is replayed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from manta.errors import InvalidRequest
from manta.ids import encode_id, hash64
from manta.ingestion.mapping_form import ConsentMap, EventMap, Plan, plan_of
from manta.ingestion.mapping_values import Value, instant, number, text
from manta.ingestion.normalised import (
    GivenConsent,
    Misfit,
    Normalised,
    NormalisedEvent,
    Unfit,
    address_of,
    event_type,
    item_of,
    json_of,
    text_of,
)
from manta.ingestion.paths import Every, Path
from manta.ingestion.shops import MESSAGE_BYTES_MAX, phone_of
from manta.people.consents import STATUSES, checked_proof
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, PHONE

KIND = "mapping"
RECORDS_MAX = 1_000  # of one body
EVENTS_MAX = 500  # of one record
EVENT_ID_MAX = 500

Source = Mapping[str, Any]
Roots = Mapping[str, Any]


def normalise(source: Source, payload: Any, received_at: datetime) -> list[Normalised] | Unfit:
    """What all records of a body mean; why the first that does not fit does not."""
    try:
        plan = _plan(source)
    except InvalidRequest as error:
        return Unfit(error.path, error.message)
    records = records_of(plan, payload)
    if isinstance(records, Unfit):
        return records
    found: list[Normalised] = []
    for n, record in enumerate(records):
        try:
            found += _read(source, plan, record)
        except Misfit as misfit:
            unfit = misfit.unfit
            where = f"record {n + 1}: " if len(records) > 1 else ""
            return Unfit(unfit.path, where + unfit.problem)
    return found


def bodies(source: Source, payload: Any) -> list[Any]:
    """Bodies of one record each, which together mean what the body does; a body without records
    that can be found is itself."""
    plan = _plan(source)
    records = records_of(plan, payload)
    if isinstance(records, Unfit) or len(records) < 2:
        return [payload]
    return [_around(plan.items, record) for record in records]


def records_of(plan: Plan, payload: Any) -> list[Any] | Unfit:
    """The records of a body, or why there are none."""
    if not plan.items.steps:
        return [payload]
    found = plan.items.values({"$": payload})
    if not found and not _is_empty_list(plan.items, payload):
        return Unfit("", f"has no records at {plan.items.text}")
    if len(found) >= RECORDS_MAX:
        return Unfit("", f"has {RECORDS_MAX:,} records or more at {plan.items.text}")
    return found


def _is_empty_list(items: Path, payload: Any) -> bool:
    """Whether a list of records is there that has none."""
    if items.steps[-1] is not Every.MEMBER:
        return False
    lists = replace(items, steps=items.steps[:-1]).values({"$": payload})
    return any(each == [] for each in lists)


def _around(items: Path, record: Any) -> Any:
    body = record
    for step in reversed(items.steps):
        body = {step: body} if isinstance(step, str) else [body]
    return body


def _plan(source: Source) -> Plan:
    return _compiled(json.dumps(source.get("mapping") or {}, sort_keys=True))


@lru_cache(maxsize=64)
def _compiled(mapping: str) -> Plan:
    return plan_of(json.loads(mapping))


# -- one record ------------------------------------------------------------------------------------


def _read(source: Source, plan: Plan, record: Any) -> list[Normalised]:
    if not isinstance(record, dict):
        raise Misfit("$", "is not an object")
    original = json_of(record, "$", MESSAGE_BYTES_MAX)
    if plan.when is not None and not plan.when.holds({"$": record}):
        return []
    roots = {"$": record}
    name = f"{KIND}:{source.get('id', '')}"
    content = encode_id(hash64(name, original))
    given = text(plan.id, roots, EVENT_ID_MAX) if plan.id else None
    identities = _identities(plan, roots)
    events = [
        event
        for n, each in enumerate(plan.events)
        for event in _events(each, n, name, given or content, roots)
    ]
    if len(events) > EVENTS_MAX:
        raise Misfit("$", f"means more than {EVENTS_MAX} events")
    traits = {name: value.of(roots) for name, value in plan.traits.items()}
    return [
        Normalised(
            f"{name}:{given or content}",
            identities,
            tuple(events),
            {name: value for name, value in traits.items() if value is not None},
            text(plan.time_zone, roots) if plan.time_zone else None,
            text(plan.locale, roots, 35) if plan.locale else None,
            tuple(_consents(plan.consents, source, roots)),
            occurred_at=events[0].occurred_at if events else None,
            original=original,
        )
    ]


def _identities(plan: Plan, roots: Roots) -> dict[str, str]:
    found: dict[str, str] = {}
    for kind, value in plan.identities.items():
        said = value.of(roots)
        if kind == EMAIL:
            named = address_of(said, value.where)
        elif kind == PHONE:
            number = text_of(said, value.where)
            named = None if number is None else phone_of(number)
            if number is not None and named is None:
                raise Misfit(value.where, "is no telephone number like +41791234567")
        else:
            named = text_of(said, value.where)
        if named is not None:
            found[kind] = named
    if not found:
        paths = ", ".join(value.where for value in plan.identities.values())
        raise Misfit(paths[:300], "names nobody: all of these are absent")
    if set(found) == {PHONE}:
        raise Misfit(
            plan.identities[PHONE].where,
            f"alone names nobody new: {EMAIL}, {EXTERNAL_ID} or {ANONYMOUS_ID} is missing",
        )
    return found


def _events(
    each: EventMap, n: int, name: str, record_id: str, roots: Roots
) -> Sequence[NormalisedEvent]:
    if each.each is None:
        found = [roots]
    else:
        found = [{**roots, "@": member} for member in each.each.values(roots)]
    events = []
    for place, inside in enumerate(found, 1):
        if each.when is not None and not each.when.holds(inside):
            continue
        kind = text(each.type, inside, 200)
        if kind is None:
            raise Misfit(each.type.where, "is missing: it names the event")
        kind = event_type(kind, KIND)
        own = text(each.id, inside, EVENT_ID_MAX) if each.id else None
        id = f"{name}:{kind}:{own if own is not None else f'{record_id}:{n + 1}'}"
        if each.each is not None and (own is None or not each.is_own_id):
            id = f"{id}:{place}"
        properties = {name: value.of(inside) for name, value in each.properties.items()}
        told = {name: value for name, value in properties.items() if value is not None}
        events.append(
            NormalisedEvent(
                kind,
                id,
                instant(each.occurred_at, inside) if each.occurred_at else None,
                item_of(each.item.of(inside)) if each.item else None,
                number(each.amount, inside) if each.amount else None,
                told or None,
            )
        )
        json_of(told, "$")
    return events


def _consents(plans: Sequence[ConsentMap], source: Source, roots: Roots) -> Sequence[GivenConsent]:
    found = []
    for plan in plans:
        if plan.when is not None and not plan.when.holds(roots):
            continue
        status = text(plan.status, roots)
        if status is None:
            continue
        if status not in STATUSES:
            raise Misfit(plan.status.where, f"means none of {', '.join(STATUSES)}")
        at = instant(plan.at, roots) if plan.at else None
        proof = {
            "method": plan.method,
            "form": str(source.get("name", KIND)),
            "at": at.isoformat() + "Z" if at else None,
        }
        for name, value in plan.proof.items():
            proof[name] = _printable(value, roots)
        kept = {name: value for name, value in proof.items() if value}
        try:
            checked_proof(kept)
        except InvalidRequest as error:
            raise Misfit(plan.status.where, f"has a proof that is none: {error.message}") from None
        found.append(GivenConsent(plan.channel, plan.topic, status, kept, at))
    return found


def _printable(value: Value, roots: Roots) -> str | None:
    said = value.of(roots)
    return text_of(said, value.where, 1_000)


def described(found: Sequence[Normalised]) -> list[dict[str, Any]]:
    """What was found, as JSON for people who try a mapping."""
    shown: list[dict[str, Any]] = json.loads(to_json([_described(each) for each in found]))
    return shown


def _described(said: Normalised) -> dict[str, Any]:
    whole = {
        "identities": dict(said.identities),
        "traits": dict(said.traits),
        "time_zone": said.time_zone,
        "locale": said.locale,
        "consents": [vars(consent) for consent in said.consents],
        "events": [
            {name: value for name, value in vars(event).items() if value is not None}
            for event in said.events
        ],
    }
    return {name: value for name, value in whole.items() if value}
