"""Events come in: what people did, as the customer's systems and our own tracking report it.

An event is only ever appended, and counts once: its producer gives it an id, whose hash is
``event_id``. There is no unique index (it would cost a third of the memory); a batch is compared
with the events of the people in it, as far back as memory goes, and older repeats fall to the
compaction of the lake. ``RecordEvents`` answers row by row, so that a producer learns which rows
were repeats and which name nobody. ``TrackHits`` takes the opens and clicks of signed links: each
hit counts, and a retry of the whole batch is held off by the command's key.

What comes under the name of a merged person is stored under it, and copied to whom they live on as:
here at once, and what is for another shard comes back with the answer (``manta.events.copies``).

An event cannot come from the future: one later than receipt + 5 min is set to the time of receipt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import InvalidRequest
from manta.events.copies import Copies, copied
from manta.ids import hash64_each
from manta.people.aliases import Alias, standing
from manta.people.history import arrow_type, same
from manta.schema import EVENTS, HISTORY_EVENTS, MESSAGE_EVENTS, TRAFFIC_CORRECTIONS
from manta.traffic.judging import judge_hits

ROWS_MAX = 50_000  # of one command
PROPERTIES_BYTES_MAX = 32_768
TYPE_LENGTH_MAX = 64
ITEM_LENGTH_MAX = 2_048
FUTURE_MAX = timedelta(minutes=5)
_LOOKUP_MAX = 200  # people up to whom the index on the person beats one scan of the table
_TYPE = r"^[A-Za-z0-9][A-Za-z0-9_.:\- ]*$"

RECORDED = "recorded"
REPEATED = "repeated"
UNKNOWN = "unknown"  # nobody has this subscriber id
INVALID = "invalid"


@dataclass(frozen=True)
class EventsRecorded:
    """``refused``: (row, status, reason) of every row that was not recorded. ``copies`` are to be
    forwarded (``manta.people.identifying.forward``)."""

    recorded: int
    repeated: int
    refused: tuple[tuple[int, str, str], ...]
    copies: tuple[Copies, ...] = ()

    def statuses(self, rows: int) -> list[str]:
        """The status of each of so many rows, in order."""
        statuses = [RECORDED] * rows
        for row, status, _ in self.refused:
            statuses[row] = status
        return statuses


class HitsTracked(NamedTuple):
    """How many hits were recorded; ``copies`` are to be forwarded."""

    recorded: int
    copies: tuple[Copies, ...] = ()


@dataclass(frozen=True)
class RecordEvents:
    """Append the customer's events. ``rows``: ``subscriber_id``, ``type``, ``id`` (the producer's,
    text), ``occurred_at`` (null: now), and if wanted ``campaign_id``, ``message_key``, ``item``,
    ``amount``, ``properties`` (text of a JSON object).

    Raises ``InvalidRequest`` for missing or unknown columns and wrong types; a row that is wrong
    by itself is refused alone.
    """

    key: str | None
    rows: pa.Table
    of_messages: bool = False  # a past brought from elsewhere: `sent`, `opened` and so on are taken

    def decide(self, database: Database, context: Context) -> Decision:
        rows = _conformed(self.rows, ("subscriber_id", "type", "id"), {"id": pa.string()})
        rows = _timed(rows, context)
        refused = _invalid_rows(rows, () if self.of_messages else MESSAGE_EVENTS)
        ids = hash64_each([text or "" for text in rows["id"].to_pylist()])
        rows = rows.drop_columns(["id"]).append_column("event_id", pa.array(ids))
        people = pc.unique(rows["subscriber_id"]).drop_null()
        known, aliases = _known(people, database)
        gone = pc.invert(pc.is_in(rows["subscriber_id"], value_set=known))
        for n in np.flatnonzero(gone.to_numpy()).tolist():
            refused.setdefault(n, (UNKNOWN, "nobody has this subscriber id"))
        for n in _repeats(rows, database):
            refused.setdefault(n, (REPEATED, "an event with this id is there"))
        keep = np.ones(rows.num_rows, bool)
        keep[list(refused)] = False
        kept = rows.filter(pa.array(keep))
        # A repeat may be the retry of somebody who did not come to forwarding.
        keep[[n for n, (status, _) in refused.items() if status == REPEATED]] = True
        spread = copied(database, context, aliases, rows.filter(pa.array(keep)))
        repeated = sum(status == REPEATED for status, _ in refused.values())
        answer = EventsRecorded(
            kept.num_rows,
            repeated,
            tuple((n, *refused[n]) for n in sorted(refused)),
            tuple(spread.beyond),
        )
        changes = (Change(EVENTS.name, Op.INSERT, kept),) if kept.num_rows else ()
        return Decision(answer, (*changes, *spread.changes()))

    def repeat(self, database: Database, context: Context) -> EventsRecorded:
        """The answer when the key has been committed before: what was recorded then is so."""
        answer: EventsRecorded = self.decide(database, context).answer
        refused = tuple(each for each in answer.refused if each[1] != REPEATED)
        return EventsRecorded(self.rows.num_rows - len(refused), 0, refused, answer.copies)


@dataclass(frozen=True)
class TrackHits:
    """Append opens and clicks. ``rows``: ``subscriber_id``, ``message_key``, ``type``,
    ``event_id`` (64 random bits given on receipt), ``occurred_at``, and if known ``campaign_id``,
    ``item`` (the link), ``properties`` (text of a JSON object: user agent and the like), ``human``
    (what the request says; company and time are weighed here, see ``manta.traffic.judging``).

    A missing campaign is looked up by the message. Hits of people who are gone are dropped.
    Answers ``HitsTracked``.
    """

    key: str | None
    rows: pa.Table

    def decide(self, database: Database, context: Context) -> Decision:
        rows = _timed(
            _conformed(self.rows, ("subscriber_id", "message_key", "type", "event_id"), {}), context
        )
        rows, aliases = _of_known(rows, database)
        if "campaign_id" not in rows.column_names or rows["campaign_id"].null_count:
            rows = _with_campaigns(rows, database)
        kept, corrected = judge_hits(rows, database, context.now)
        spread = copied(database, context, aliases, kept, corrected)
        changes = [Change(EVENTS.name, Op.INSERT, kept)] if kept.num_rows else []
        if corrected is not None:
            changes.append(Change(TRAFFIC_CORRECTIONS.name, Op.UPSERT, corrected))
        answer = HitsTracked(kept.num_rows, tuple(spread.beyond))
        return Decision(answer, (*changes, *spread.changes()))

    def repeat(self, database: Database, context: Context) -> HitsTracked:
        """The answer when the key has been committed before."""
        answer: HitsTracked = self.decide(database, context).answer
        return answer


def _known(people: pa.Array, database: Database) -> tuple[pa.Array, dict[int, Alias]]:
    """Those of the people who are here or were merged, and the merges that stand.

    For the busiest decision of all, so it asks the database only about those who are not here.
    """
    is_here = database.here(people.to_numpy())
    if is_here.all():
        return people, {}
    here = set(people.filter(pa.array(is_here)).to_pylist())
    aliases = standing(database, (id for id in people.to_pylist() if id not in here))
    known = [id for id in people.to_pylist() if id in here or id in aliases]
    return pa.array(known, pa.int64()), aliases


def _of_known(rows: pa.Table, database: Database) -> tuple[pa.Table, dict[int, Alias]]:
    """The rows of people who are here or were merged, and the merges that stand."""
    people = pc.unique(rows["subscriber_id"]).drop_null()
    known, aliases = _known(people, database)
    if len(known) == len(people) and rows["subscriber_id"].null_count == 0:
        return rows, aliases
    return rows.filter(pc.is_in(rows["subscriber_id"], value_set=known)), aliases


def _with_campaigns(rows: pa.Table, database: Database) -> pa.Table:
    """The same, with the campaign of each message where it was not given."""
    return database.table(
        "SELECT h.* REPLACE (coalesce(h.campaign_id, l.campaign_id)::INTEGER AS campaign_id)"
        " FROM hits h LEFT JOIN ledger l ON l.subscriber_id = h.subscriber_id"
        f" AND l.message_key = h.message_key{_among('l', rows)}",
        hits=_with_campaign(rows),
    )


def _conformed(
    rows: pa.Table, required: tuple[str, ...], further: dict[str, pa.DataType]
) -> pa.Table:
    """The columns of the event table, in its types."""
    if rows.num_rows > ROWS_MAX:
        raise InvalidRequest(
            f"{rows.num_rows} events in one batch", path="rows", expected=f"at most {ROWS_MAX}"
        )
    allowed = {name: arrow_type(EVENTS.name, name) for name in EVENTS.column_names} | further
    if "id" in further:
        del allowed["event_id"]
    for name in required:
        if name not in rows.column_names:
            raise InvalidRequest(
                f"events lack the column {name}", path=f"rows.{name}", expected=", ".join(required)
            )
    columns = {}
    for name in rows.column_names:
        if name not in allowed:
            raise InvalidRequest(
                f"events have no column {name!r:.80}",
                path=f"rows.{name:.80}",
                expected=", ".join(allowed),
            )
        try:
            columns[name] = rows[name].cast(allowed[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidRequest(
                f"column {name} does not fit: {error!s:.200}",
                path=f"rows.{name}",
                expected=str(allowed[name]),
            ) from None
    return pa.table(columns)


def _timed(rows: pa.Table, context: Context) -> pa.Table:
    """Without a time, or later than receipt + 5 min: the time of receipt."""
    now = pa.scalar(context.now, pa.timestamp("us"))
    if "occurred_at" not in rows.column_names:
        return rows.append_column("occurred_at", same(context.now, rows.num_rows, now.type))
    latest = pa.scalar(context.now + FUTURE_MAX, pa.timestamp("us"))
    given = rows["occurred_at"]
    believable = pc.fill_null(pc.less_equal(given, latest), False)
    at = rows.column_names.index("occurred_at")
    return rows.set_column(at, "occurred_at", pc.if_else(believable, given, now))


def _invalid_rows(rows: pa.Table, reserved: Sequence[str]) -> dict[int, tuple[str, str]]:
    """The rows that are wrong by themselves, each with its first reason."""
    refused: dict[int, tuple[str, str]] = {}

    def refuse(wrong: pa.ChunkedArray, reason: str) -> None:
        mask = pc.fill_null(wrong, False).to_numpy().astype(bool)
        for n in np.flatnonzero(mask).tolist():
            refused.setdefault(n, (INVALID, reason))

    refuse(rows["subscriber_id"].is_null(), "subscriber_id is missing")
    refuse(pc.equal(pc.fill_null(pc.utf8_length(rows["id"]), 0), 0), "the event's id is missing")
    kind = pc.fill_null(rows["type"], "")
    fits = pc.and_(
        pc.match_substring_regex(kind, _TYPE),
        pc.less_equal(pc.utf8_length(kind), TYPE_LENGTH_MAX),
    )
    refuse(
        pc.invert(fits),
        f"type must be 1 to {TYPE_LENGTH_MAX} letters, digits, spaces or any of _ . : -",
    )
    refuse(
        pc.is_in(kind, value_set=pa.array([*reserved, *HISTORY_EVENTS])),
        "events of this type are written by Manta alone",
    )
    if "item" in rows.column_names:
        long = pc.greater(pc.utf8_length(rows["item"]), ITEM_LENGTH_MAX)
        refuse(long, f"item is longer than {ITEM_LENGTH_MAX} characters")
    if "amount" in rows.column_names:
        refuse(pc.invert(pc.is_finite(rows["amount"])), "amount is not a finite number")
    if "properties" in rows.column_names:
        for n, text in enumerate(rows["properties"].to_pylist()):
            reason = None if text is None else wrong_properties(text)
            if reason is not None:
                refused.setdefault(n, (INVALID, reason))
    return refused


def wrong_properties(text: str) -> str | None:
    """Why a text cannot be the properties of an event; ``None`` where it can."""
    if len(text.encode()) > PROPERTIES_BYTES_MAX:
        return f"properties are larger than {PROPERTIES_BYTES_MAX} bytes"
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return "properties are not JSON"
    return None if isinstance(value, dict) else "properties are not a JSON object"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # RFC 8259 §6: no NaN, no Infinity


def _repeats(rows: pa.Table, database: Database) -> set[int]:
    """Rows whose event is in memory, or stands earlier in the batch."""
    suspects = rows.filter(pa.array(database.may_hold_events(rows["event_id"].to_numpy())))
    repeats = set[int]()
    if suspects.num_rows:
        repeats = _stored(rows, suspects, database)
    seen: set[tuple[int, int]] = set()
    pairs = zip(rows["subscriber_id"].to_pylist(), rows["event_id"].to_pylist(), strict=True)
    for n, pair in enumerate(pairs):
        if pair in seen:
            repeats.add(n)
        seen.add(pair)
    return repeats


def _stored(rows: pa.Table, suspects: pa.Table, database: Database) -> set[int]:
    """Rows whose event is in memory, which is one of the suspects'."""
    # In a step of its own: as part of the join DuckDB would not take the index.
    stored = database.rows(
        "WITH theirs AS MATERIALIZED (SELECT e.subscriber_id, e.event_id FROM events e"
        f" WHERE true{_among('e', suspects)})"
        " SELECT DISTINCT i.n FROM incoming i JOIN theirs e"
        " ON e.subscriber_id = i.subscriber_id AND e.event_id = i.event_id",
        incoming=_numbered(rows),
    )
    return {n for (n,) in stored}


def _among(alias: str, rows: pa.Table) -> str:
    """A condition that lets DuckDB use the index on the person: few ids, as integer constants.

    A join alone would read the whole table. The ids are 64-bit integers by their column's type.
    """
    people = pc.unique(rows["subscriber_id"].drop_null())
    if not 0 < len(people) <= _LOOKUP_MAX:
        return ""
    return f" AND {alias}.subscriber_id IN ({', '.join(map(str, people.to_pylist()))})"


def _numbered(rows: pa.Table) -> pa.Table:
    names = [n for n in ("subscriber_id", "event_id") if n in rows.column_names]
    return rows.select(names).append_column("n", pa.array(np.arange(rows.num_rows)))


def _with_campaign(rows: pa.Table) -> pa.Table:
    if "campaign_id" in rows.column_names:
        return rows
    return rows.append_column("campaign_id", pa.nulls(rows.num_rows, pa.int32()))
