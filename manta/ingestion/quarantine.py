"""Quarantine: what came in and fits no shape, kept until somebody mends, replays or discards it.

A row is named by its source and its content, so what is sent again is there once. It lies in the
shard that its id names, as a subscriber would (``actors.handles.Shards.of_subscriber``), whoever it
is about. Everything has a limit: a shard holds ``ROWS_MAX`` rows and ``BYTES_MAX`` bytes that wait,
and refuses what goes beyond, since a sender who is refused knows and a row that is dropped is lost
in silence. What waited for ``WAIT_MAX`` goes, and what was replayed or discarded is kept for
``SETTLED_KEPT`` and no longer than there is room.

Replaying is the same normaliser and the same way in once more: an event that was stored before
counts once, so a crash between the replay and ``SettleQuarantined`` does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import InvalidRequest, NotFound
from manta.ids import hash64
from manta.people.history import rows_of
from manta.schema import QUARANTINE

ROWS_MAX = 10_000  # that wait, of one shard
BYTES_MAX = 64 << 20  # of their bodies
BODY_BYTES_MAX = 520 << 10  # of one: what a webhook may have, and what comes around it
COMMAND_ROWS_MAX = 2_500
PAGE_ROWS_MAX = 1_000
WAIT_MAX = timedelta(days=30)
SETTLED_KEPT = timedelta(days=7)
WAITING = "waiting"
REPLAYED = "replayed"
DISCARDED = "discarded"
STATES = (WAITING, REPLAYED, DISCARDED)


@dataclass(frozen=True)
class Waif:
    """One thing for quarantine. ``body`` is its JSON, or what came instead as text."""

    source: str
    problem: str
    path: str
    body: str

    @property
    def id(self) -> int:
        return quarantine_id(self.source, self.body)


def quarantine_id(source: str, body: str) -> int:
    """63 bits, the upper 16 of which name the shard, as those of a subscriber id do."""
    return hash64("quarantine", source, body) & ((1 << 63) - 1)


@dataclass(frozen=True)
class Quarantined:
    """``refused``: places of those for which there was no room."""

    taken: int
    refused: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quarantine:
    """Keep these, each once. Answers ``Quarantined``."""

    key: str | None
    waifs: tuple[Waif, ...]

    def decide(self, database: Database, context: Context) -> Decision:
        if len(self.waifs) > COMMAND_ROWS_MAX:
            raise InvalidRequest(
                f"{len(self.waifs)} in one command", path="waifs", expected=f"≤ {COMMAND_ROWS_MAX}"
            )
        gone, rows, size = _room(database, context.now)
        there = _there(database, [waif.id for waif in self.waifs]) - set(gone)
        taken: dict[int, Waif] = {}
        refused = []
        for n, waif in enumerate(self.waifs):
            if waif.id in there or waif.id in taken:
                continue
            length = len(waif.body.encode())
            if rows >= ROWS_MAX or size + length > BYTES_MAX or length > BODY_BYTES_MAX:
                refused.append(n)
                continue
            taken[waif.id] = waif
            rows, size = rows + 1, size + length
        changes = []
        if gone and taken:
            ids = [id for id in gone if id not in taken]
            keys = rows_of(QUARANTINE.name, len(ids), quarantine_id=pa.array(ids, pa.int64()))
            changes += [Change(QUARANTINE.name, Op.DELETE, keys)] if ids else []
        if taken:
            changes.append(_kept(taken, context.now))
        return Decision(Quarantined(len(taken), tuple(refused)), tuple(changes))


def _there(database: Database, ids: Sequence[int]) -> set[int]:
    return {
        id
        for (id,) in database.rows(
            "SELECT quarantine_id FROM quarantine WHERE list_contains(?::BIGINT[], quarantine_id)",
            [list(ids)],
        )
    }


def _room(database: Database, now: datetime) -> tuple[list[int], int, int]:
    """Who may go now, and how many rows and bytes wait without them."""
    gone = [
        id
        for (id,) in database.rows(
            "SELECT quarantine_id FROM quarantine WHERE (state = ? AND received_at < ?)"
            " OR (state <> ? AND changed_at < ?)"
            " UNION SELECT quarantine_id FROM (SELECT quarantine_id FROM quarantine"
            " WHERE state <> ? ORDER BY changed_at DESC OFFSET ?)",
            [WAITING, now - WAIT_MAX, WAITING, now - SETTLED_KEPT, WAITING, ROWS_MAX],
        )
    ]
    ((rows, size),) = database.rows(
        "SELECT count(*), coalesce(sum(octet_length(encode(body))), 0)::BIGINT FROM quarantine"
        " WHERE state = ? AND received_at >= ?",
        [WAITING, now - WAIT_MAX],
    )
    return gone, rows, size


def _kept(waifs: Mapping[int, Waif], now: datetime) -> Change:
    given = list(waifs.values())
    rows = rows_of(
        QUARANTINE.name,
        len(given),
        quarantine_id=pa.array(list(waifs), pa.int64()),
        received_at=now,
        source=pa.array([waif.source for waif in given], pa.string()),
        problem=pa.array([waif.problem for waif in given], pa.string()),
        path=pa.array([waif.path for waif in given], pa.string()),
        body=pa.array([waif.body for waif in given], pa.string()),
        state=WAITING,
        changed_at=now,
    )
    return Change(QUARANTINE.name, Op.UPSERT, rows)


@dataclass(frozen=True)
class SettleQuarantined:
    """Those of these that wait have been replayed or are discarded. Answers how many."""

    key: str | None
    ids: tuple[int, ...]
    state: str

    def decide(self, database: Database, context: Context) -> Decision:
        if self.state not in (REPLAYED, DISCARDED):
            raise InvalidRequest(
                f"{self.state!r:.40} is no end", path="state", expected=f"{REPLAYED}, {DISCARDED}"
            )
        waiting = database.table(
            "SELECT quarantine_id FROM quarantine WHERE state = ?"
            " AND list_contains(?::BIGINT[], quarantine_id)",
            [WAITING, list(self.ids)],
        )
        if waiting.num_rows == 0:
            return Decision(0)
        rows = rows_of(
            QUARANTINE.name,
            waiting.num_rows,
            quarantine_id=waiting["quarantine_id"],
            state=self.state,
            changed_at=context.now,
        )
        return Decision(waiting.num_rows, (Change(QUARANTINE.name, Op.UPSERT, rows),))


# -- reads -----------------------------------------------------------------------------------------

_COLUMNS = "quarantine_id, received_at, source, problem, path, body, state, changed_at"


def quarantine(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A page, the latest first: up to ``limit`` rows ``before`` (received_at, quarantine_id), of
    ``state``, and only of ``source`` and ``problem`` if these are given."""
    limit = int(arguments.get("limit") or 100)
    if not 0 < limit <= PAGE_ROWS_MAX:
        raise InvalidRequest(f"a page of {limit}", path="limit", expected=f"1 to {PAGE_ROWS_MAX}")
    before, before_id = arguments.get("before") or (datetime.max, 0)
    sql = f"SELECT {_COLUMNS} FROM quarantine WHERE (received_at, quarantine_id) < (?, ?)"
    params: list[Any] = [before, before_id]
    for name in ("state", "source", "problem"):
        if arguments.get(name) is not None:
            sql += f" AND {name} = ?"
            params.append(arguments[name])
    sql += " ORDER BY received_at DESC, quarantine_id DESC LIMIT ?"
    rows: list[dict[str, Any]] = database.table(sql, [*params, limit]).to_pylist()
    return rows


def quarantined(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """One row by its ``quarantine_id``. Raises ``NotFound``."""
    rows = database.table(
        f"SELECT {_COLUMNS} FROM quarantine WHERE quarantine_id = ?", [arguments["quarantine_id"]]
    ).to_pylist()
    if not rows:
        raise NotFound("there is nothing of this id in quarantine", path="id")
    row: dict[str, Any] = rows[0]
    return row


def quarantine_counts(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """How many wait, by ``source``, ``path`` and ``problem``."""
    rows: list[dict[str, Any]] = database.table(
        "SELECT source, path, problem, count(*) AS count, min(received_at) AS since"
        " FROM quarantine WHERE state = ? GROUP BY ALL ORDER BY count DESC, source, problem",
        [WAITING],
    ).to_pylist()
    return rows


QUERIES = {
    "quarantine": quarantine,
    "quarantine_counts": quarantine_counts,
    "quarantined": quarantined,
}
