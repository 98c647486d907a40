"""The bodies of deliveries: from rows of events, messages and erasures to Standard Webhooks JSON.

    {"type": "event.purchased", "timestamp": "2026-03-01T12:00:00.000000Z",
     "data": {"subscriber_id": "…", "email": "…", "external_id": null, "event": {…}}}

``timestamp`` is when it happened. Ids are the 13 characters of the HTTP API. A body has at most
``BODY_BYTES_MAX``: one that would be longer loses the properties, or what stood in the history, and
says so by ``"cut": true``.

One text is put together from parts that are JSON already, since this runs in the writer of a shard:
properties are stored as checked JSON objects and go in as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from manta.clock import as_text
from manta.ids import NOBODY, encode_id

BODY_BYTES_MAX = 20_000

_quoted = json.encoder.encode_basestring


class Person(NamedTuple):
    email: str | None = None
    external_id: str | None = None


UNKNOWN = Person()
Row = Mapping[str, Any]
Thing = tuple[str, Callable[[Row, Any], str]]


def body(kind: str, row: Row, person: Person, known: Any) -> str:
    """``row``: the columns of what happened; ``known``: segment id → name."""
    family = kind.partition(".")[0]
    name, thing = _THINGS[family]
    who = row["subscriber_id"]
    head = (
        f'{{"type":{_quoted(kind)},"timestamp":"{as_text(row["occurred_at"])}","data":{{'
        f'"subscriber_id":{_id(who) if who != NOBODY else "null"},'
        f'"email":{_text(person.email)},"external_id":{_text(person.external_id)}'
    )
    text = f'{head},"{name}":{thing(row, known)}}}}}'
    if len(text) * 4 > BODY_BYTES_MAX and len(text.encode()) > BODY_BYTES_MAX:
        bare = {**row, "properties": None, "item": (row.get("item") or "")[:500] or None}
        text = f'{head},"{name}":{thing(bare, known)},"cut":true}}}}'
    return text


def test_body(at: str) -> str:
    """What a test delivery sends: nobody's data."""
    return f'{{"type":"webhook.test","timestamp":"{at}","data":{{"subscriber_id":null}}}}'


def _text(value: str | None) -> str:
    return "null" if value is None else _quoted(value)


def _id(value: int) -> str:
    return f'"{encode_id(value)}"'


def _event(row: Row, known: Any) -> str:
    parts = [f'"id":{_id(row["event_id"])},"type":{_quoted(row["type"])}']
    if row["item"] is not None:
        parts.append(f'"item":{_quoted(row["item"])}')
    if row["amount"] is not None:
        parts.append(f'"amount":{json.dumps(row["amount"])}')
    parts += _of_message(row)
    if row["properties"] is not None:
        parts.append(f'"properties":{row["properties"]}')
    return "{" + ",".join(parts) + "}"


def _message(row: Row, known: Any) -> str:
    parts = _of_message(row)
    if row["item"] is not None:
        parts.append(f'"item":{_quoted(row["item"])}')
    for name in ("reason", "channel", "human"):
        if row.get(name) is not None:
            parts.append(f'"{name}":{json.dumps(row[name], ensure_ascii=False)}')
    if row["properties"] is not None:
        parts.append(f'"properties":{row["properties"]}')
    return "{" + ",".join(parts) + "}"


def _of_message(row: Row) -> list[str]:
    parts = []
    if row["campaign_id"] is not None:
        parts.append(f'"campaign_id":{row["campaign_id"]}')
    if row["message_key"] is not None:
        parts.append(f'"message_key":{_id(row["message_key"])}')
    return parts


def _segment(row: Row, known: Mapping[int, str]) -> str:
    said = json.loads(row["properties"] or "{}")
    id = said.get("segment")
    shown = {"id": id, "name": known.get(id), "source": said.get("source")}
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _said(row: Row, known: Any) -> str:
    return row["properties"] or "{}"


_THINGS: dict[str, Thing] = {
    "event": ("event", _event),
    "message": ("message", _message),
    "segment": ("segment", _segment),
    "person": ("change", _said),
    "consent": ("change", _said),
    "suppression": ("change", _said),
}
