"""Reads by rule: how many people of a shard a rule holds for, and some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manta.command import Context, Database
from manta.errors import InvalidRequest
from manta.rules.loading import columns_of_profiles, has_past
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_count, compile_sample
from manta.rules.tree import parse
from manta.schema import ATTRIBUTE_PREFIX, AttributeType

SAMPLE_MAX = 1_000


def audience(database: Database, context: Context, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``count``, and up to ``sample`` profiles, the same ones each time.

    ``rule`` is a rule's JSON, ``attributes`` the declared names with their types.
    """
    types = {name: AttributeType(kind) for name, kind in arguments["attributes"].items()}
    rule = without_unknown(parse(arguments["rule"], types), columns_of_profiles(database))
    zone, size = context.settings.get("time_zone") or "UTC", int(arguments.get("sample") or 0)
    if not 0 <= size <= SAMPLE_MAX:
        raise InvalidRequest(f"a sample of {size}", path="sample", expected=f"0 to {SAMPLE_MAX}")
    past = has_past(database)
    counted = compile_count(rule, context.now, zone, has_past=past)
    ((count,),) = database.rows(counted.sql, counted.params)
    if not size:
        return {"count": count, "sample": []}
    drawn = compile_sample(rule, context.now, size, zone, has_past=past)
    rows = database.table(
        f"SELECT p.* FROM profiles p WHERE p.subscriber_id IN (SELECT subscriber_id FROM"
        f" ({drawn.sql})) ORDER BY p.subscriber_id",
        drawn.params,
    ).to_pylist()
    return {"count": count, "sample": [_person(row) for row in rows]}


def _person(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "subscriber_id": row["subscriber_id"],
        "email": row["email"],
        "attributes": {
            name.removeprefix(ATTRIBUTE_PREFIX): value
            for name, value in row.items()
            if name.startswith(ATTRIBUTE_PREFIX) and value is not None
        },
    }


QUERIES = {"audience": audience}
