"""Who somebody is now: a merged id is followed to the person it lives on as.

A merge leaves an alias in the shards of both people (``manta.people.merging``); while it stands
(any state but ``undone``) its ``from_id`` has no profile. People merged into somebody who is merged
later make a chain. Within a shard the chain is followed here; where it leads to another shard, the
command answers the id, and its caller goes there (``manta.people.identifying``). No chain is longer
than ``HOPS_MAX``, which the merge sees to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from manta.command import Database

MERGING, MERGED, UNDONE = "merging", "merged", "undone"
STANDING = f"state <> '{UNDONE}'"  # holds of an alias that is followed
HOPS_MAX = 8  # merges in a row; no visitor comes near
UNFINISHED_AFTER = timedelta(seconds=30)  # a merge that is on its way for longer lost its driver


class Alias(NamedTuple):
    """One standing merge."""

    from_id: int
    to_id: int
    merge_id: int
    state: str
    changed_at: datetime

    def unfinished(self, now: datetime) -> bool:
        return self.state == MERGING and now - self.changed_at > UNFINISHED_AFTER


def standing(database: Database, ids: Iterable[int]) -> dict[int, Alias]:
    """The aliases of these people, and of those whom they were merged into, as known here."""
    found: dict[int, Alias] = {}
    wanted = list(dict.fromkeys(ids))
    for _ in range(HOPS_MAX + 1):
        if not wanted:
            break
        rows = database.rows(
            "SELECT from_id, to_id, merge_id, state, changed_at FROM aliases"
            f" WHERE {among_ids('from_id', wanted)} AND {STANDING}",
        )
        found |= {row[0]: Alias(*row) for row in rows}
        wanted = [row[1] for row in rows if row[1] not in found]
    return found


def followed(aliases: dict[int, Alias], id: int) -> int:
    """Where the aliases lead."""
    while id in aliases:
        id = aliases[id].to_id
    return id


def living(database: Database, id: int) -> int:
    """Who this is now, as far as this shard knows: perhaps somebody of another shard."""
    return followed(standing(database, [id]), id)


def merged_into(database: Database, id: int) -> list[int]:
    """All who live on as this person, as known here, in order of their merges."""
    found: list[int] = []
    wanted = [id]
    while wanted:
        rows = database.rows(
            f"SELECT from_id FROM aliases WHERE {among_ids('to_id', wanted)} AND {STANDING}"
            " ORDER BY created_at, from_id"
        )
        wanted = [from_id for (from_id,) in rows if from_id not in found]
        found += wanted
    return found


def among_ids(column: str, ids: Sequence[int]) -> str:
    """A condition that a column holds one of these ids."""
    listed = ", ".join(str(int(id)) for id in ids)
    if len(ids) == 1:
        return f"{column} = {listed}"
    return f"{column} IN (SELECT unnest([{listed}]::BIGINT[]))"
