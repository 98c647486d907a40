"""The Segment tracking API: what its messages mean.

Calls are ``identify``, ``track``, ``page``, ``screen``, ``group`` and ``alias``; a batch is a list
of them. The public libraries work unchanged when their host is set to ours.

- **Who**: ``userId`` is the external id, ``anonymousId`` the anonymous id; ``traits.email`` and
  ``traits.phone`` of ``identify``, and those of ``context.traits`` of other calls, are identities
  too. A message must name somebody.
- **When**: ``receivedAt − (sentAt − originalTimestamp)``, which takes a wrong clock of the sender
  out; ``originalTimestamp`` is what came as ``timestamp`` where there is none. Without ``sentAt``
  the time is taken as it came; without any, it is the time of receipt.
- **Which**: ``messageId`` counts once. A message without one is named by its content where it tells
  a time, so that a batch that is sent again counts once; else by the caller (``named``).
- ``page`` and ``screen`` become ``viewed``. ``group`` becomes ``grouped`` (item: the group's id,
  properties: its traits), and no trait of the person: traits of a group are not the person's.
  ``alias`` asks for the merge of ``previousId`` into ``userId``. E-commerce events are mapped by
  ``commerce.toml``. Other events keep their name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic_core import to_json

from manta.ids import encode_id, hash64
from manta.ingestion.commerce import event_rules, shop_events
from manta.ingestion.normalised import (
    Misfit,
    Normalised,
    NormalisedEvent,
    Payload,
    Unfit,
    address_of,
    event_type,
    instant_of,
    item_of,
    json_of,
    number_of,
    object_at,
    text_of,
)
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, PHONE

KIND = "segment"
MESSAGE_BYTES_MAX = 32 * 1024  # Segment's own limits
BATCH_BYTES_MAX = 500 * 1024
BATCH_MESSAGES_MAX = 2_500
ID_LENGTH_MAX = 180  # leaves room for the number of an order's line
CALLS = ("identify", "track", "page", "screen", "group", "alias")
_VISIT = re.compile(r"([?&])mt=[A-Za-z0-9_-]*(&|$)")  # the token of a click (docs/ingestion.md)
# Of `traits`, besides the identities: what is another's name here.
_RENAMED = {"timezone": "time_zone", "createdAt": "account_created_at"}

Source = Mapping[str, Any]


def normalise(source: Source, payload: Any, received_at: datetime) -> list[Normalised] | Unfit:
    """The meaning of one message; ``payload["type"]`` is the call. See the module."""
    try:
        return [_normalised(payload, received_at)]
    except Misfit as misfit:
        return misfit.unfit


def opened(message: Payload, batch: Payload) -> dict[str, Any]:
    """A message of a batch with what the batch says for all: ``sentAt``, ``context``,
    ``integrations``; its own words win."""
    whole = dict(message)
    if "sentAt" not in whole and "sentAt" in batch:
        whole["sentAt"] = batch["sentAt"]
    for name in ("context", "integrations"):
        shared = batch.get(name)
        own = whole.get(name)
        if isinstance(shared, dict) and (own is None or isinstance(own, dict)):
            whole[name] = {**shared, **(own or {})}
    return whole


def named(message: Mapping[str, Any], fresh_id: str) -> Mapping[str, Any]:
    """The message with an id where its content could not tell it from the next: no ``messageId``
    and no time."""
    if any(message.get(name) for name in ("messageId", "timestamp", "originalTimestamp")):
        return message
    return {**message, "messageId": fresh_id}


def _normalised(payload: Any, received_at: datetime) -> Normalised:
    if not isinstance(payload, dict):
        raise Misfit("", "is not an object")
    original = json_of({k: v for k, v in payload.items() if k != "writeKey"}, "", MESSAGE_BYTES_MAX)
    call = payload.get("type")
    if call not in CALLS:
        raise Misfit("type", f"is none of {', '.join(CALLS)}")
    at = occurred_at(payload, received_at)
    id = _message_id(payload)
    context = object_at(payload, "context")
    traits = object_at(payload, "traits") if call == "identify" else object_at(context, "traits")
    identities = _identities(payload, traits, "traits" if call == "identify" else "context.traits")
    formerly: tuple[str, ...] = ()
    if call == "alias":
        formerly = _formerly(payload)
    return Normalised(
        id,
        identities,
        tuple(_EVENTS[call](payload, context, id, at)),
        _traits(traits) if call == "identify" else {},
        time_zone=_plain(traits.get("timezone") or context.get("timezone"))
        if call == "identify"
        else None,
        locale=_plain(traits.get("locale") or context.get("locale"))
        if call == "identify"
        else None,
        formerly=formerly,
        occurred_at=at,
        original=original,
    )


def occurred_at(payload: Payload, received_at: datetime) -> datetime | None:
    """When it happened by the clock of the receiver; ``None``: now."""
    given = "timestamp" if payload.get("originalTimestamp") is None else "originalTimestamp"
    original = instant_of(payload.get(given), given)
    if original is None:
        return None
    try:
        sent_at = instant_of(payload.get("sentAt"), "sentAt")
        return original if sent_at is None else received_at - (sent_at - original)
    except (Misfit, OverflowError):
        return original  # a sender that does not know when it sends


def _message_id(payload: Payload) -> str:
    id = text_of(payload.get("messageId"), "messageId", ID_LENGTH_MAX)
    if id is not None:
        return id
    content = {k: v for k, v in payload.items() if k not in ("sentAt", "writeKey")}
    return encode_id(hash64(KIND, to_json(content)))


def _identities(payload: Payload, traits: Payload, path: str) -> dict[str, str]:
    found = {
        EMAIL: address_of(traits.get("email"), f"{path}.email"),
        EXTERNAL_ID: text_of(payload.get("userId"), "userId"),
        PHONE: text_of(traits.get("phone"), f"{path}.phone"),
        ANONYMOUS_ID: text_of(payload.get("anonymousId"), "anonymousId"),
    }
    identities = {kind: value for kind, value in found.items() if value is not None}
    if not identities:
        raise Misfit("userId", "is missing, and so is anonymousId: the message names nobody")
    return identities


def _formerly(payload: Payload) -> tuple[str, ...]:
    previous = text_of(payload.get("previousId"), "previousId")
    if previous is None:
        raise Misfit("previousId", "is missing")
    if text_of(payload.get("userId"), "userId") is None:
        raise Misfit("userId", "is missing")
    return (previous,)


def _traits(traits: Payload) -> dict[str, Any]:
    kept = {}
    for name, value in traits.items():
        if name not in ("email", "phone", "timezone", "locale"):
            kept[_RENAMED.get(name, name)] = value
    return kept


def _plain(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


# -- what each call says that a person did ---------------------------------------------------------


def _nothing(payload: Payload, context: Payload, id: str, at: datetime | None) -> list[Any]:
    return []


def _track(
    payload: Payload, context: Payload, id: str, at: datetime | None
) -> Sequence[NormalisedEvent]:
    name = text_of(payload.get("event"), "event", 1_000)
    if name is None:
        raise Misfit("event", "is missing: a track call names its event")
    properties = object_at(payload, "properties")
    rule = event_rules().get(name.lower())
    if rule is not None:
        return shop_events(rule, id, at, properties)
    amount = number_of(properties.get("revenue", properties.get("value")))
    item = item_of(properties.get("product_id", properties.get("item")))
    return [NormalisedEvent(event_type(name, KIND), id, at, item, amount, properties or None)]


def _page(
    payload: Payload, context: Payload, id: str, at: datetime | None
) -> Sequence[NormalisedEvent]:
    properties = dict(object_at(payload, "properties"))
    page = object_at(context, "page")
    url = properties.get("url") or page.get("url") or properties.get("path") or page.get("path")
    name = payload.get("name")
    item = item_of(without_token(url) if isinstance(url, str) else None) or item_of(name)
    for key, value in properties.items():
        if isinstance(value, str) and "mt=" in value:
            properties[key] = without_token(value)
    properties |= {k: payload[k] for k in ("name", "category") if payload.get(k) is not None}
    return [NormalisedEvent("viewed", id, at, item, None, {**properties, "kind": "page"})]


def _screen(
    payload: Payload, context: Payload, id: str, at: datetime | None
) -> Sequence[NormalisedEvent]:
    properties = dict(object_at(payload, "properties"))
    properties |= {k: payload[k] for k in ("name", "category") if payload.get(k) is not None}
    item = item_of(payload.get("name"))
    return [NormalisedEvent("viewed", id, at, item, None, {**properties, "kind": "screen"})]


def _group(
    payload: Payload, context: Payload, id: str, at: datetime | None
) -> Sequence[NormalisedEvent]:
    group = text_of(payload.get("groupId"), "groupId")
    if group is None:
        raise Misfit("groupId", "is missing")
    return [NormalisedEvent("grouped", id, at, group, None, object_at(payload, "traits") or None)]


def without_token(url: str) -> str:
    """A URL without the token of a click, which would name a person to whoever reads it."""
    return _VISIT.sub(lambda match: match[1] if match[2] == "&" else "", url)


_EVENTS: Mapping[str, Callable[[Payload, Payload, str, datetime | None], Sequence[Any]]] = {
    "identify": _nothing,
    "track": _track,
    "page": _page,
    "screen": _screen,
    "group": _group,
    "alias": _nothing,
}
