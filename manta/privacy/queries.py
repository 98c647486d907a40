"""Reads for erasure and export: what a shard has of a person, and how far erasures have come."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from manta.command import Context, Database
from manta.delivery.ledger import State
from manta.errors import InvalidRequest
from manta.people.identities import CONFIRMED, EMAIL, PHONE, compared
from manta.privacy.commands import merged_with, names_of
from manta.privacy.hashes import CHANNELS, MARK, key_of, keyed_hash, person_hash
from manta.privacy.names import from_json
from manta.schema import ERASURES, EVENTS, TABLES

PAGE_ROWS_MAX = 10_000
Arguments = Mapping[str, Any]


def privacy_scope(database: Database, context: Context, arguments: Arguments) -> dict[str, Any]:
    """What stands here of the ``people``: whether anything does (``found``), their ``names``, all
    ``people`` they are one with, and the ``requests`` under which they are being erased."""
    people = [int(id) for id in arguments["people"]]
    requests = database.rows(
        "SELECT DISTINCT request_id FROM erasures WHERE subscriber_id IN (SELECT unnest(?))",
        [people],
    )
    living = database.rows(
        "SELECT 1 FROM profiles WHERE subscriber_id IN (SELECT unnest(?)) LIMIT 1", [people]
    )
    names = sorted(names_of(database, people))
    together = database.rows(  # an erasure ends merges: whoever it took was one with them
        "SELECT subscriber_id FROM erasures WHERE request_id IN (SELECT unnest(?::VARCHAR[]))",
        [[request for (request,) in requests]],
    )
    return {
        "found": bool(living or requests),
        "names": names,
        "people": sorted(merged_with(database, people).union(id for (id,) in together)),
        "requests": sorted(request for (request,) in requests),
        "person": person_hash(key_of(context.settings), min(people)),
    }


def erasures(database: Database, context: Context, arguments: Arguments) -> list[dict[str, Any]]:
    """The erasures that wait for their rewriting: ``request_id``, ``requested_at``, ``people``,
    ``names``, ``person`` (hash), and ``held``: messages that Senders still have."""
    held = dict(
        database.rows(
            "SELECT l.subscriber_id, count(*) FROM ledger l SEMI JOIN erasures USING"
            f" (subscriber_id) WHERE state IN ('{State.LEASED}', '{State.ORPHANED}') GROUP BY 1"
        )
    )
    requests: dict[str, dict[str, Any]] = {}
    for id, request, at, named in database.rows(
        "SELECT subscriber_id, request_id, requested_at, named FROM erasures ORDER BY 1"
    ):
        known = requests.setdefault(
            request,
            {
                "request_id": request,
                "requested_at": at,
                "people": [],
                "names": [],
                "held": 0,
                "person": person_hash(key_of(context.settings), id),
            },
        )
        known["people"].append(id)
        known["names"] += [name for name in sorted(from_json(named)) if name not in known["names"]]
        known["held"] += held.get(id, 0)
    return list(requests.values())


def erased_hashes(
    database: Database, context: Context, arguments: Arguments
) -> list[tuple[str, str, datetime]]:
    """All keyed hashes of erased addresses: channel, hash, and when the person was erased."""
    found: list[Any] = database.rows(
        "SELECT channel, address, created_at FROM suppressions"
        f" WHERE starts_with(address, '{MARK}') ORDER BY 1, 2"
    )
    return found


def erased_returned(database: Database, context: Context, arguments: Arguments) -> list[int]:
    """People of this shard who were erased once and are here all the same, as after a backup was
    brought back: known by the hash of an address, and created before the erasure."""
    held = {
        (channel, address): at
        for channel, address, at in erased_hashes(database, context, arguments)
    }
    if not held:
        return []
    key = key_of(context.settings)
    rows = database.rows(
        "SELECT p.subscriber_id, p.created_at, d.kind, d.value FROM identities d"
        " JOIN profiles p USING (subscriber_id) WHERE d.kind IN (?, ?)"
        " UNION SELECT subscriber_id, created_at, 'email', lower(email) FROM profiles"
        " WHERE email IS NOT NULL",
        [EMAIL, PHONE],
    )
    returned = set()
    for id, created_at, kind, value in rows:
        channel = CHANNELS[kind]
        erased_at = held.get((channel, keyed_hash(key, channel, value)))
        if erased_at is not None and (created_at is None or created_at < erased_at):
            returned.add(id)
    return sorted(returned)


# -- export ----------------------------------------------------------------------------------------


def privacy_state(database: Database, context: Context, arguments: Arguments) -> dict[str, Any]:
    """Every row of state here that names one of the ``people``, by table, and suppressions of their
    ``addresses`` (compared forms). The ledger comes by pages."""
    ids = [[int(id) for id in arguments["people"]]]
    found: dict[str, Any] = {}
    for table in TABLES.values():
        if not table.key or table.name in ("ledger", ERASURES.name):
            continue
        if "subscriber_id" in table.column_names:
            where, values = "subscriber_id IN (SELECT unnest(?))", ids
        elif table.name == "aliases":
            where, values = "from_id IN (SELECT unnest(?)) OR to_id IN (SELECT unnest(?))", ids * 2
        else:
            continue
        rows = database.table(f"SELECT * FROM {table.name} WHERE {where}", values)
        if rows.num_rows:
            found[table.name] = rows
    addresses = [compared(EMAIL, str(address)) for address in arguments.get("addresses", ())]
    rows = database.table(
        "SELECT * FROM suppressions WHERE address IN (SELECT unnest(?::VARCHAR[]))", [addresses]
    )
    if rows.num_rows:
        found["suppressions"] = rows
    return found


def privacy_page(database: Database, context: Context, arguments: Arguments) -> pa.Table:
    """Messages (``table``: ledger) or events in memory of one of the people, the next ``limit``
    ``after`` so many. One person's rows are few enough to be counted off."""
    table, limit = str(arguments["table"]), int(arguments["limit"])
    order = {"ledger": "message_key", EVENTS.name: "occurred_at, event_id"}.get(table)
    if order is None or not 0 < limit <= PAGE_ROWS_MAX:
        raise InvalidRequest(
            f"a page of {limit} rows of {table:.40}",
            path="table",
            expected=f"ledger or events, at most {PAGE_ROWS_MAX}",
        )
    return database.table(
        f"SELECT * FROM {table} WHERE subscriber_id = ? ORDER BY {order} LIMIT ? OFFSET ?",
        [int(arguments["subscriber_id"]), limit, int(arguments.get("after") or 0)],
    )


def privacy_identities(
    database: Database, context: Context, arguments: Arguments
) -> list[dict[str, Any]]:
    """Identities of the people that stand in this shard."""
    rows: list[dict[str, Any]] = database.table(
        "SELECT kind, value, state, claimed_at FROM identities"
        f" WHERE subscriber_id IN (SELECT unnest(?)) AND state = '{CONFIRMED}' ORDER BY 1, 2",
        [[int(id) for id in arguments["people"]]],
    ).to_pylist()
    return rows


QUERIES = {
    "privacy_scope": privacy_scope,
    "privacy_state": privacy_state,
    "privacy_page": privacy_page,
    "privacy_identities": privacy_identities,
    "erasures": erasures,
    "erased_hashes": erased_hashes,
    "erased_returned": erased_returned,
}
