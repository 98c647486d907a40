"""Reads for the apps: ask each shard its part, put the parts together.

The shards answer named queries; what is here knows their names and how parts become one answer:
counts add up, samples are cut, pages go on from shard to shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import zip_longest
from typing import Any

from actors.handles import Handles, Singleton
from manta.clock import as_text
from manta.errors import NotFound
from manta.ids import encode_id
from manta.people.identities import compared
from manta.rules.nodes import Rule
from manta.rules.tree import parse
from manta.schema import AttributeType
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.pages import page, read_cursor, write_cursor

Document = dict[str, Any]


# -- definitions -----------------------------------------------------------------------------------


async def documents_page(
    owner: Singleton,
    collection: str,
    limit: int,
    cursor: str | None,
    shown: Callable[[Document], Document] = dict,
) -> Document:
    """Documents with numbers for ids, the newest first."""
    before = read_cursor(collection, cursor, [int])[0] if cursor else 1 << 62
    documents = await owner.call("list", collection, deadline_s=CALL_DEADLINE_S)
    older = sorted((d for d in documents if d["id"] < before), key=lambda d: -d["id"])
    items = older[:limit]
    more = len(older) > limit
    return page(
        [shown(d) for d in items], write_cursor(collection, [items[-1]["id"]]) if more else None
    )


async def attribute_types(handles: Handles) -> dict[str, AttributeType]:
    declared = await handles.catalog.call("attributes", deadline_s=CALL_DEADLINE_S)
    return {name: AttributeType(kind) for name, kind in declared.items()}


async def checked_rule(handles: Handles, rule: Any) -> Rule:
    """The rule, checked against the declared attributes. Raises ``InvalidRequest`` with a path."""
    return parse(rule, await attribute_types(handles))


# -- people ----------------------------------------------------------------------------------------


async def person(handles: Handles, subscriber_id: int) -> Document:
    """A person with attributes, identities and consents. Raises ``NotFound``."""
    shard = handles.shards.of_subscriber(subscriber_id)
    found = await handles.shards.query(
        shard, "person", {"subscriber_id": subscriber_id}, CALL_DEADLINE_S
    )
    if found is None:
        raise NotFound("there is no such subscriber", path="subscriber_id")
    return plain({"id": encode_id(found.pop("subscriber_id")), **found})


async def person_id(handles: Handles, kind: str, value: str) -> int:
    """Who has this identity. Raises ``NotFound``."""
    value = compared(kind, value)
    shard = handles.shards.of_identity(kind, value)
    (found,) = await handles.shards.query(
        shard, "identities", {"kind": kind, "values": [value]}, CALL_DEADLINE_S
    )
    if found is None:
        raise NotFound(f"no subscriber has this {kind}", path=kind)
    return int(found)


def plain(value: Any) -> Any:
    """Values of the domain as JSON: instants as RFC 3339 text."""
    if isinstance(value, datetime):
        return as_text(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# -- audiences -------------------------------------------------------------------------------------


async def audience(handles: Handles, rule: Rule, sample: int) -> Document:
    """How many people a rule holds for, and up to ``sample`` of them, from all shards in turn."""
    types = await attribute_types(handles)
    arguments = {
        "rule": rule.to_json(),
        "attributes": {name: str(kind) for name, kind in types.items()},
        "sample": sample,
    }
    parts = await handles.shards.query_all("audience", arguments, CALL_DEADLINE_S)
    mixed = [
        row for rows in zip_longest(*(part["sample"] for part in parts)) for row in rows if row
    ]
    people = [
        plain({"id": encode_id(row["subscriber_id"]), "email": row["email"], **_attributes(row)})
        for row in mixed[:sample]
    ]
    return {"count": sum(part["count"] for part in parts), "sample": people}


def _attributes(row: Document) -> Document:
    return {"attributes": row["attributes"]}
