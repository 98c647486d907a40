"""Reads about people: who has an identity, what is known of a person, and audiences in pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from manta.command import Context, Database
from manta.errors import InvalidRequest
from manta.people.aliases import STANDING, among_ids, followed, merged_into, standing
from manta.people.consents import address_kind
from manta.people.identities import CONFIRMED, EMAIL, compared
from manta.people.suppressions import holder
from manta.rules.loading import columns_of_profiles, has_past
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.schema import ATTRIBUTE_PREFIX, AttributeType

IDENTITIES_MAX = 1_000  # of one question
PAGE_ROWS_MAX = 50_000


def identities(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[int | None]:
    """Who has each of ``values`` of one ``kind``, in order; ``None`` where nobody has it.

    Asked in the shard of the identity's own hash. An identity that is still being claimed is
    nobody's yet. That of somebody who was merged is still theirs: ``living`` says who they are.
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
            "SELECT d.value, d.subscriber_id FROM asked JOIN identities d"
            f" ON d.kind = ? AND d.value = asked.value AND d.state = '{CONFIRMED}'",
            [kind],
            asked=asked,
        )
    )
    return [found.get(value) for value in wanted]


def living_here(database: Database, context: Context, arguments: Mapping[str, Any]) -> list[int]:
    """Who each of ``subscriber_ids`` is now, in order, as far as this shard knows: asked in their
    shard. Whoever lives on as somebody of another shard is to be asked for there again."""
    ids = list(arguments["subscriber_ids"])
    if len(ids) > IDENTITIES_MAX:
        raise InvalidRequest(
            f"{len(ids)} ids", path="subscriber_ids", expected=f"at most {IDENTITIES_MAX}"
        )
    aliases = standing(database, ids)
    return [followed(aliases, id) for id in ids]


def person(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """All that is known of ``subscriber_id`` here, but for events; ``None`` where nobody has it.

    Asked in the person's shard. ``attributes`` holds those that have a value. Of somebody who lives
    on in another shard only ``moved_to`` is known; ``unfinished`` names a merge that stopped on its
    way there. ``merged_from`` lists the merges that stand, the latest last.
    """
    aliases = standing(database, [arguments["subscriber_id"]])
    id = followed(aliases, arguments["subscriber_id"])
    rows = database.table("SELECT * FROM profiles WHERE subscriber_id = ?", [id]).to_pylist()
    if not rows:
        late = [a.from_id for a in aliases.values() if a.unfinished(context.now)]
        return {"moved_to": id, "unfinished": late} if aliases else None
    (row,) = rows
    attributes = {
        name.removeprefix(ATTRIBUTE_PREFIX): value
        for name, value in row.items()
        if name.startswith(ATTRIBUTE_PREFIX) and value is not None
    }
    fixed = {n: v for n, v in row.items() if not n.startswith(ATTRIBUTE_PREFIX)}
    return {
        **fixed,
        "attributes": attributes,
        "identities": identities_held(database, [id, *merged_into(database, id)]),
        "merged_from": database.table(
            "SELECT from_id, cause, created_at AS merged_at, merge_id FROM aliases"
            f" WHERE to_id = ? AND {STANDING} ORDER BY created_at, from_id",
            [id],
        ).to_pylist(),
        "consents": [
            {**each, "proof": json.loads(each["proof"]) if each["proof"] else None}
            for each in database.table(
                "SELECT channel, topic, status, source, changed_at, expires_at, proof FROM consents"
                " WHERE subscriber_id = ? ORDER BY channel, topic",
                [id],
            ).to_pylist()
        ],
        "suppressions": database.table(
            "SELECT channel, reason, source, created_at, expires_at FROM suppressions"
            " WHERE (channel = 'email' OR starts_with(channel, 'email/')) AND address = lower(?)"
            " AND (expires_at IS NULL OR expires_at > ?) ORDER BY channel",
            [row["email"], context.now],
        ).to_pylist(),
    }


def identities_of(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``identities`` of ``subscriber_ids`` by themselves, and of whom ids live on as them."""
    ids = list(arguments["subscriber_ids"])
    return {
        "identities": identities_held(database, ids),
        "merged_from": [from_id for id in ids for from_id in merged_into(database, id)],
    }


def identities_held(database: Database, ids: Sequence[int]) -> list[dict[str, Any]]:
    """``kind``, ``value``, ``subscriber_id`` (who has it, perhaps by a merge) and ``since``."""
    held: list[dict[str, Any]] = database.table(
        "SELECT kind, value, subscriber_id, claimed_at AS since FROM identities"
        f" WHERE {among_ids('subscriber_id', ids)} AND state = ? ORDER BY kind, value",
        [CONFIRMED],
    ).to_pylist()
    return held


def audience_page(database: Database, context: Context, arguments: Mapping[str, Any]) -> pa.Table:
    """The profiles of an audience as Arrow, by rising id: the next ``limit`` ``after`` an id.

    ``rule`` is a rule's JSON with ``attributes`` as declared; without it: everybody. ``now`` (an
    instant, the same for all pages) is when the rule is to hold. ``columns`` of the profile are
    given, or all. A page shorter than ``limit`` is the last one.
    """
    limit, after = int(arguments["limit"]), int(arguments.get("after") or -1)
    if not 0 < limit <= PAGE_ROWS_MAX:
        raise InvalidRequest(
            f"a page of {limit} rows", path="limit", expected=f"1 to {PAGE_ROWS_MAX}"
        )
    there = columns_of_profiles(database)
    columns = list(arguments.get("columns") or there)
    for name in columns:
        if name not in there:
            raise InvalidRequest(
                f"profiles have no column {name[:80]!r}",
                path="columns",
                expected=", ".join(there)[:500],
            )
    sql = f"SELECT {', '.join(f'p.{name}' for name in columns)} FROM profiles p"
    params: list[Any] = []
    if arguments.get("rule") is not None:
        types = {name: AttributeType(kind) for name, kind in arguments["attributes"].items()}
        rule = without_unknown(parse(arguments["rule"], types), there)
        now = arguments.get("now") or context.now
        zone = context.settings.get("time_zone") or "UTC"
        chosen = compile_sql(rule, now, zone, has_past=has_past(database))
        sql += f" SEMI JOIN ({chosen.sql}) chosen ON chosen.subscriber_id = p.subscriber_id"
        params += chosen.params
    sql += " WHERE p.subscriber_id > ? ORDER BY p.subscriber_id LIMIT ?"
    return database.table(sql, [*params, after, limit])


def suppression(database: Database, context: Context, arguments: Mapping[str, Any]) -> str | None:
    """Why nothing is sent to ``address`` on ``channel``, as far as this shard knows."""
    found = database.rows(
        "SELECT reason FROM suppressions WHERE channel = ? AND address = ?"
        " AND (expires_at IS NULL OR expires_at > ?)",
        [
            arguments["channel"],
            compared(address_kind(arguments["channel"]), arguments["address"]),
            context.now,
        ],
    )
    return str(found[0][0]) if found else None


def suppressions_page(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The suppressions that hold now, by channel and address: the next ``limit`` ``after`` one.

    ``channel`` and ``reason``, if given, are equal; ``contains`` is a part of the address.
    """
    limit, after = int(arguments["limit"]), arguments.get("after") or ("", "")
    if not 0 < limit <= PAGE_ROWS_MAX:
        raise InvalidRequest(
            f"a page of {limit} rows", path="limit", expected=f"1 to {PAGE_ROWS_MAX}"
        )
    sql = f"{_SUPPRESSIONS} AND (channel, address) > (?, ?)"
    params: list[Any] = [context.now, *after]
    for name in ("channel", "reason"):
        if arguments.get(name) is not None:
            sql += f" AND {name} = ?"
            params.append(arguments[name])
    if arguments.get("contains"):
        sql += " AND contains(address, ?)"
        params.append(compared(EMAIL, arguments["contains"]))
    sql += " ORDER BY channel, address LIMIT ?"
    rows: list[dict[str, Any]] = database.table(sql, [*params, limit]).to_pylist()
    return rows


def suppression_of(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of an ``address`` of a ``channel`` here: the ``suppression`` that holds, or
    ``None``, and the ``holder``."""
    channel = str(arguments["channel"])
    address = compared(address_kind(channel), str(arguments["address"]))
    found = database.table(
        f"{_SUPPRESSIONS} AND channel = ? AND address = ?", [context.now, channel, address]
    ).to_pylist()
    return {
        "suppression": found[0] if found else None,
        "holder": holder(database, channel, address),
    }


_SUPPRESSIONS = (
    "SELECT channel, address, reason, source, evidence, created_at, expires_at FROM suppressions"
    " WHERE (expires_at IS NULL OR expires_at > ?)"
)

QUERIES = {
    "audience_page": audience_page,
    "identities": identities,
    "identities_of": identities_of,
    "living": living_here,
    "person": person,
    "suppression": suppression,
    "suppression_of": suppression_of,
    "suppressions_page": suppressions_page,
}
