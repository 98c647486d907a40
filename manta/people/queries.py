"""Reads about single people: who has an identity, and what is known of a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from manta.command import Context, Database
from manta.errors import InvalidRequest
from manta.people.identities import CONFIRMED, compared
from manta.schema import ATTRIBUTE_PREFIX

IDENTITIES_MAX = 1_000  # of one question


def identities(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[int | None]:
    """Who has each of ``values`` of one ``kind``, in order; ``None`` where nobody has it.

    Asked in the shard of the identity's own hash. An identity that is still being claimed is
    nobody's yet.
    """
    kind, values = str(arguments["kind"]), list(arguments["values"])
    if len(values) > IDENTITIES_MAX:
        raise InvalidRequest(
            f"{len(values)} identities", path="values", expected=f"at most {IDENTITIES_MAX}"
        )
    wanted = [compared(kind, value) for value in values]
    asked = pa.table({"value": pa.array(wanted, pa.string())})
    found = dict(
        database.rows(
            "SELECT d.value, coalesce(a.to_id, d.subscriber_id) FROM asked JOIN identities d"
            f" ON d.kind = ? AND d.value = asked.value AND d.state = '{CONFIRMED}'"
            " LEFT JOIN aliases a ON a.from_id = d.subscriber_id",
            [kind],
            asked=asked,
        )
    )
    return [found.get(value) for value in wanted]


def person(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """All that is known of ``subscriber_id`` here, but for events; ``None`` where nobody has it.

    Asked in the person's shard. ``attributes`` holds those that have a value.
    """
    rows = database.table(
        "SELECT p.* FROM (SELECT coalesce((SELECT to_id FROM aliases WHERE from_id = ?), ?) AS id)"
        " n JOIN profiles p ON p.subscriber_id = n.id",
        [arguments["subscriber_id"]] * 2,
    ).to_pylist()
    if not rows:
        return None
    (row,) = rows
    id = row["subscriber_id"]
    attributes = {
        name.removeprefix(ATTRIBUTE_PREFIX): value
        for name, value in row.items()
        if name.startswith(ATTRIBUTE_PREFIX) and value is not None
    }
    fixed = {n: v for n, v in row.items() if not n.startswith(ATTRIBUTE_PREFIX)}
    return {
        **fixed,
        "attributes": attributes,
        "identities": database.table(
            "SELECT kind, value FROM identities WHERE subscriber_id = ? AND state = ?"
            " ORDER BY kind, value",
            [id, CONFIRMED],
        ).to_pylist(),
        "consents": database.table(
            "SELECT channel, topic, status, source, changed_at FROM consents"
            " WHERE subscriber_id = ? ORDER BY channel, topic",
            [id],
        ).to_pylist(),
        "suppressions": database.table(
            "SELECT channel, reason, source, created_at, expires_at FROM suppressions"
            " WHERE channel = 'email' AND address = lower(?)"
            " AND (expires_at IS NULL OR expires_at > ?)",
            [row["email"], context.now],
        ).to_pylist(),
    }


QUERIES = {"identities": identities, "person": person}
