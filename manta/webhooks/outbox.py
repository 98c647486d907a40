"""The outbox of a shard: its commands. A row is one delivery to one endpoint.

A row is ``waiting`` from its writing on until it is ``delivered``, has ``failed`` or is
``discarded``; ``due_at`` is set exactly while it waits. **A lease** is nothing but a later
``due_at``: the courier has the row until then, and a courier that is lost gives it back by doing
nothing. It may then be sent twice, with the same ``webhook-id``, as the specification allows.
``attempts`` tells a settlement that comes late from one that counts.

An **ordered** endpoint gets a lease of rows only from the first that waits on, without a gap, and
only when all of them are due: while the courier has some, or the first one waits for its next
attempt, there is none. So of the people of one shard it hears in the order of commit.

Limits: ``WAITING_MAX`` rows wait in a shard, older ones fail with the cause; what is settled is
kept for replay for ``KEPT`` and up to ``KEPT_MAX`` rows. Both have a limit in bytes too, since what
is told of comes from strangers and may be long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import InvalidRequest
from manta.people.definitions import ENDPOINT, definitions
from manta.people.history import rows_of
from manta.schema import OUTBOX
from manta.webhooks.bodies import BODY_BYTES_MAX
from manta.webhooks.retries import ANSWER_CHARACTERS_MAX, Answered, State, after

WAITING_MAX = 100_000
KEPT_MAX = 20_000
WAITING_BYTES_MAX, KEPT_BYTES_MAX = 256 << 20, 128 << 20  # of their bodies
KEPT = timedelta(days=7)
LEASE_ROWS_MAX = 500
ROWS_MAX = 10_000  # that one command replays or discards
CROWDED_OUT = (
    f"more than {WAITING_MAX:,} deliveries or {WAITING_BYTES_MAX >> 20} MB waited in its shard,"
    " this was the oldest"
)
TURNED_OFF = "the endpoint was disabled"
REPLAYED = (State.FAILED, State.DISCARDED)


class Delivery(NamedTuple):
    """What the courier needs of a row. ``attempts``: made before this one."""

    delivery_id: int
    type: str
    body: str
    attempts: int


class Settled(NamedTuple):
    """What came of a leased delivery; ``answered`` ``None``: it was not sent, and is due again.

    ``attempts`` is that of the lease.
    """

    delivery_id: int
    attempts: int
    answered: Answered | None


@dataclass(frozen=True)
class LeaseDeliveries:
    """Take up to ``rows_max`` due deliveries of an endpoint for ``lasts_s`` seconds.

    Answers a list of ``Delivery`` in order. None are given of an endpoint that is disabled.
    """

    endpoint_id: int
    rows_max: int
    lasts_s: float
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        endpoint = _endpoint(database, self.endpoint_id)
        if endpoint is None or not endpoint["enabled"]:
            return Decision([])
        count = min(self.rows_max, LEASE_ROWS_MAX)
        sql = _ORDERED if endpoint["ordered"] else _DUE
        # The numbers of rows first: bodies are read of those alone.
        due = [row for (row,) in database.rows(sql, [context.now, self.endpoint_id, count])]
        if not due:
            return Decision([])
        found = database.rows(
            "SELECT delivery_id, type, body, attempts FROM outbox"
            " WHERE rowid IN (SELECT unnest(?::BIGINT[])) ORDER BY sequence",
            [due],
        )
        until = context.now + timedelta(seconds=self.lasts_s)
        change = _changed(self.endpoint_id, [row[0] for row in found], due_at=until)
        return Decision([Delivery(*row) for row in found], (change,))


_DUE = (
    "SELECT rowid FROM outbox WHERE due_at <= ? AND endpoint_id = ?"
    " ORDER BY due_at, sequence LIMIT ?"
)
_ORDERED = (
    "SELECT id FROM (SELECT rowid AS id, sequence,"
    " bool_and(due_at <= ?) OVER (ORDER BY sequence ROWS UNBOUNDED PRECEDING) AS first_ones"
    " FROM outbox WHERE due_at IS NOT NULL AND endpoint_id = ?)"
    " WHERE first_ones ORDER BY sequence LIMIT ?"
)


@dataclass(frozen=True)
class SettleDeliveries:
    """Note what came of leased deliveries. Answers how many counted: not those that were settled
    since, by another courier or by hand."""

    endpoint_id: int
    settled: tuple[Settled, ...]
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        wanted = {each.delivery_id: each for each in self.settled}
        found = database.rows(
            "SELECT delivery_id, attempts FROM outbox WHERE endpoint_id = ?"
            " AND delivery_id IN (SELECT unnest(?::BIGINT[])) AND due_at IS NOT NULL"
            " ORDER BY sequence",
            [self.endpoint_id, list(wanted)],
        )
        counted = [wanted[id] for id, attempts in found if wanted[id].attempts == attempts]
        sent = [each for each in counted if each.answered is not None]
        unsent = [each.delivery_id for each in counted if each.answered is None]
        changes = []
        if sent:
            changes.append(_after_attempts(self.endpoint_id, sent, context))
        if unsent:
            changes.append(_changed(self.endpoint_id, unsent, due_at=context.now))
        return Decision(len(counted), tuple(changes))


def _after_attempts(endpoint_id: int, sent: Sequence[Settled], context: Context) -> Change:
    answers = [each.answered for each in sent if each.answered is not None]
    nexts = [
        after(answered, each.attempts + 1, context.now, context.random)
        for each, answered in zip(sent, answers, strict=True)
    ]
    return _changed(
        endpoint_id,
        [each.delivery_id for each in sent],
        state=pa.array([str(each.state) for each in nexts]),
        attempts=pa.array([each.attempts + 1 for each in sent], pa.uint16()),
        due_at=pa.array([each.due_at for each in nexts], pa.timestamp("us")),
        status=pa.array([answered.status for answered in answers], pa.uint16()),
        answer=pa.array([answered.text[:ANSWER_CHARACTERS_MAX] for answered in answers]),
        changed_at=context.now,
    )


@dataclass(frozen=True)
class ReplayDeliveries:
    """Send again, under the same ids: these deliveries, or those of a time (``since`` ≤ created <
    ``until``) in these states, if nothing became of them since ``settled_before``. The schedule of
    retries begins anew.

    Answers (replayed, more): at most ``ROWS_MAX`` in one command, the oldest first.
    Raises ``InvalidRequest`` for an endpoint that is disabled or not known.
    """

    key: str | None
    endpoint_id: int
    delivery_ids: tuple[int, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    states: tuple[str, ...] = REPLAYED
    settled_before: datetime | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        endpoint = _endpoint(database, self.endpoint_id)
        if endpoint is None or not endpoint["enabled"]:
            raise InvalidRequest(
                f"endpoint {self.endpoint_id} is disabled or not known here",
                path="endpoint_id",
                expected="one that is enabled",
            )
        found, more = _chosen(self, self.states, database)
        if not found:
            return Decision((0, False))
        change = _changed(
            self.endpoint_id,
            found,
            state=str(State.WAITING),
            attempts=0,
            due_at=context.now,
            changed_at=context.now,
        )
        return Decision((len(found), more), (change,))


@dataclass(frozen=True)
class DiscardDeliveries:
    """Deliveries that wait are not sent: these, or all of a time. Answers (discarded, more)."""

    key: str | None
    endpoint_id: int
    delivery_ids: tuple[int, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    why: str = ""
    settled_before: datetime | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        found, more = _chosen(self, (State.WAITING,), database)
        if not found:
            return Decision((0, False))
        change = _changed(
            self.endpoint_id,
            found,
            state=str(State.DISCARDED),
            due_at=None,
            answer=self.why[:ANSWER_CHARACTERS_MAX] or None,
            changed_at=context.now,
        )
        return Decision((len(found), more), (change,))


def _chosen(
    command: ReplayDeliveries | DiscardDeliveries, states: Sequence[str], database: Database
) -> tuple[list[int], bool]:
    if len(command.delivery_ids) > ROWS_MAX:
        raise InvalidRequest(
            f"{len(command.delivery_ids)} deliveries", path="ids", expected=f"at most {ROWS_MAX}"
        )
    named = command.delivery_ids
    sql = (
        "SELECT delivery_id FROM outbox WHERE endpoint_id = ?"
        " AND state IN (SELECT unnest(?::VARCHAR[]))"
        " AND created_at >= coalesce(?::TIMESTAMP, '-infinity'::TIMESTAMP)"
        " AND created_at < coalesce(?::TIMESTAMP, 'infinity'::TIMESTAMP)"
        " AND changed_at < coalesce(?::TIMESTAMP, 'infinity'::TIMESTAMP)"
    )
    params: list[Any] = [command.endpoint_id, [str(s) for s in states]]
    params += [command.since, command.until, command.settled_before]
    if named:
        sql += " AND delivery_id IN (SELECT unnest(?::BIGINT[]))"
        params.append(list(named))
    rows = database.rows(f"{sql} ORDER BY sequence LIMIT {ROWS_MAX + 1}", params)
    return [id for (id,) in rows[:ROWS_MAX]], len(rows) > ROWS_MAX


# -- what a shard does by itself -------------------------------------------------------------------


@dataclass(frozen=True)
class CloseEndpoint:
    """Of a disabled endpoint all that waits fails, of a deleted one everything goes."""

    endpoint_id: int
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        endpoint = _endpoint(database, self.endpoint_id)
        if endpoint is not None and endpoint["enabled"]:
            return Decision(0)
        where = " AND due_at IS NOT NULL" if endpoint is not None else ""
        found = database.rows(
            f"SELECT delivery_id FROM outbox WHERE endpoint_id = ?{where}", [self.endpoint_id]
        )
        ids = [id for (id,) in found]
        if not ids:
            return Decision(0)
        if endpoint is None:
            return Decision(len(ids), (_deleted(_keys([self.endpoint_id] * len(ids), ids)),))
        return Decision(len(ids), (_failed(self.endpoint_id, ids, TURNED_OFF, context),))


@dataclass(frozen=True)
class TrimOutbox:
    """Keep to the limits. Answers (failed, deleted)."""

    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        crowded = database.rows(
            "SELECT endpoint_id, list(delivery_id) FROM ("
            "SELECT endpoint_id, delivery_id FROM outbox WHERE due_at IS NOT NULL"
            f" QUALIFY {_beyond(WAITING_MAX, WAITING_BYTES_MAX)}) GROUP BY 1 ORDER BY 1"
        )
        old = database.rows(
            "SELECT endpoint_id, delivery_id FROM outbox WHERE due_at IS NULL"
            f" QUALIFY changed_at < ? OR {_beyond(KEPT_MAX, KEPT_BYTES_MAX)}",
            [context.now - KEPT],
        )
        changes = [_failed(endpoint, ids, CROWDED_OUT, context) for endpoint, ids in crowded]
        if old:
            changes.append(_deleted(_keys(*map(list, zip(*old, strict=True)))))
        failed = sum(len(ids) for _, ids in crowded)
        return Decision((failed, len(old)), tuple(changes))


def _beyond(rows_max: int, bytes_max: int) -> str:
    """Rows that the newest ones, as many as there is room for, leave no room for."""
    over = "OVER (ORDER BY sequence DESC ROWS UNBOUNDED PRECEDING)"
    return f"(row_number() {over} > {rows_max} OR sum(strlen(body)) {over} > {bytes_max})"


def is_crowded(database: Database, waiting: int, settled: int) -> bool:
    """Whether ``TrimOutbox`` has something to do for want of room."""
    if waiting > WAITING_MAX or settled > KEPT_MAX * 5 // 4:
        return True
    least = min(WAITING_BYTES_MAX, KEPT_BYTES_MAX)
    if (waiting + settled) * BODY_BYTES_MAX <= least:
        return False
    ((waits, keeps),) = database.rows(
        "SELECT coalesce(sum(strlen(body)) FILTER (due_at IS NOT NULL), 0)::BIGINT,"
        " coalesce(sum(strlen(body)) FILTER (due_at IS NULL), 0)::BIGINT FROM outbox"
    )
    return bool(waits > WAITING_BYTES_MAX or keeps > KEPT_BYTES_MAX * 5 // 4)


def _failed(endpoint_id: int, ids: Sequence[int], why: str, context: Context) -> Change:
    return _changed(
        endpoint_id,
        ids,
        state=str(State.FAILED),
        due_at=None,
        answer=why,
        changed_at=context.now,
    )


def _endpoint(database: Database, endpoint_id: int) -> dict[str, Any] | None:
    wanted = str(endpoint_id)
    for each in definitions(database, ENDPOINT):
        if each.id == wanted:
            return each.body
    return None


def _changed(endpoint_id: int, ids: Sequence[int], **columns: Any) -> Change:
    rows = rows_of(
        OUTBOX.name,
        len(ids),
        endpoint_id=endpoint_id,
        delivery_id=pa.array(ids, pa.int64()),
        **columns,
    )
    return Change(OUTBOX.name, Op.UPSERT, rows)


def _keys(endpoint_ids: Sequence[int], delivery_ids: Sequence[int]) -> pa.Table:
    return pa.table(
        {
            "endpoint_id": pa.array(endpoint_ids, pa.int64()),
            "delivery_id": pa.array(delivery_ids, pa.int64()),
        }
    )


def _deleted(keys: pa.Table) -> Change:
    return Change(OUTBOX.name, Op.DELETE, keys)
