"""Creating and changing people, set-wise: the one way in for imports and for single requests.

``UpsertPeople`` takes a batch of rows and decides over all of them with a handful of SQL
statements, so that a row costs microseconds. The rules:

- A row names its person by ``subscriber_id``, else by ``email``, else by ``external_id``, else by
  ``anonymous_id``; the batch must have come to the shard of that name (``identities.route``). A
  name that nobody has makes a new person, whose id carries the bucket of that name. The name of
  somebody who was merged is that of the person they live on as.
- The address in a row names; it does not change one (that is ``manta.people.claims``).
- A null means "not given": what is stored stays. A row that changes nothing writes nothing, so
  the same file imported twice changes nothing the second time.
- Rows of one name within the batch count as one, put together as if they had come one by one: for
  each column the last value given wins.
- Consent is only ever *added* by a batch: whoever unsubscribed, waits for confirmation or is
  suppressed stays so. An opt-out in a batch is always taken.
- A ``phone``, and an ``external_id`` or ``anonymous_id`` beside the name, is a further identity,
  owned by the shard of its own hash: it comes back as a claim to be made there
  (``manta.people.claims``).
- Of a changed value ``attribute_times`` knows since when the person has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import InvalidRequest
from manta.ids import BUCKETS, buckets_of_identities
from manta.people import upsert_rows as rows_in
from manta.people.aliases import followed, standing
from manta.people.consents import (
    ALL_TOPICS,
    PENDING_LASTS,
    STATUSES,
    SUBSCRIBED_TO,
    UNSUBSCRIBED,
    WAITING,
    among,
    checked_proof,
)
from manta.people.history import compact_json, recorded, rows_of, same, upserted
from manta.people.identities import (
    ANONYMOUS_ID,
    CONFIRMED,
    EXTERNAL_ID,
    PENDING,
    PHONE,
    compared_each,
)
from manta.people.upsert_rows import NAME_COLUMNS as NAME_COLUMNS
from manta.people.upsert_rows import NAMING
from manta.privacy.hashes import erased_people
from manta.schema import ATTRIBUTE_PREFIX


@dataclass(frozen=True)
class Consent:
    """A consent that holds for every row of a batch."""

    channel: str
    topic: str
    status: str  # of manta.people.consents.STATUSES
    proof: Mapping[str, Any] | None = None  # of manta.people.consents.checked_proof
    expires_at: datetime | None = None  # of a pending one; ``PENDING_LASTS`` from now if absent

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidRequest(
                f"{self.status!r:.40} is not a consent status",
                path="consent.status",
                expected=", ".join(STATUSES),
            )


@dataclass(frozen=True)
class Upserted:
    """What became of a batch. Counts are of people, except ``duplicates``: rows merged away."""

    created: int
    updated: int
    unchanged: int
    duplicates: int
    consented: int  # consents written
    withheld: int  # consents not written: unsubscribed, waiting for confirmation, or suppressed
    ids: pa.Array  # the subscriber id of every row given; null where nothing was done
    elsewhere: tuple[tuple[int, int], ...] = ()  # (row, subscriber id): lives in another shard
    unknown: tuple[int, ...] = ()  # rows with a subscriber id that nobody has
    busy: tuple[int, ...] = ()  # rows whose address is being claimed: try again
    claims: pa.Table | None = None  # kind, value, subscriber_id: to be claimed in their shards


@dataclass(frozen=True)
class UpsertPeople:
    """Create or change the people of ``rows``; ``source`` says who asked, for the history.

    Columns: ``subscriber_id``, ``email`` (normalised), ``external_id``, ``phone``,
    ``anonymous_id``, ``time_zone``, ``locale``, ``attr_…``; any may be absent.

    Raises ``InvalidRequest`` for a column that is not declared or has the wrong type, for more than
    ``ROWS_MAX`` rows, and for a row without a name.
    """

    key: str | None
    rows: pa.Table
    source: str
    consent: Consent | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        fields, rows = rows_in.checked(self.rows, database)
        named, groups = rows_in.merged(rows_in.named(rows), fields, database)
        found = _resolved(named, database)
        here = pc.and_(found["here"], pc.invert(found["busy"])).combine_chunks()
        absent = found["found"].combine_chunks().is_null()
        created = named.filter(absent)
        new_ids = _minted(created, database, context)
        people_here = found["found"].filter(here).combine_chunks()
        known = rows_in.one_each(
            named.filter(here).append_column("person", people_here), fields, database
        )
        changes = self._creation(created, new_ids, fields, database, context)
        changed = self._changed(known, fields, database)
        updated = 0 if changed is None else changed.num_rows
        if changed is not None and updated:
            changes += self._change(changed, fields, context)
        consents, withheld = self._consents(_wanted(created, new_ids, known), database, context)
        ids = _placed(named.num_rows, absent, new_ids, here, people_here)
        answer = Upserted(
            created=created.num_rows,
            updated=updated,
            unchanged=known.num_rows - updated,
            duplicates=rows.num_rows - named.num_rows + len(people_here) - known.num_rows,
            consented=consents[0].rows.num_rows if consents else 0,
            withheld=withheld,
            ids=ids.take(groups),
            **_left_over(named, found),
            claims=_claims(named, ids, database),
        )
        return Decision(answer, (*changes, *consents))

    def _creation(
        self,
        created: pa.Table,
        ids: pa.Array,
        fields: dict[str, str],
        database: Database,
        context: Context,
    ) -> list[Change]:
        count, now = created.num_rows, context.now
        if count == 0:
            return []
        columns: dict[str, Any] = {
            "subscriber_id": ids,
            "email": created["email"],
            "created_at": same(now, count, pa.timestamp("us")),
            "updated_at": same(now, count, pa.timestamp("us")),
        }
        columns |= {name: created[name] for name in fields}
        shown = ", ".join(f"'{name}': {name}" for name in ["email", *fields])
        properties = database.table(
            f"SELECT json_object('source', ?::VARCHAR, 'new', json_merge_patch('{{}}',"
            f" to_json({{{shown}}})))::VARCHAR AS properties FROM created ORDER BY n",
            [self.source],
            created=created,
        )["properties"]
        identities = rows_of(
            "identities",
            count,
            kind=created["kind"],
            value=created["value"],
            subscriber_id=ids,
            state=CONFIRMED,
            claimed_at=now,
        )
        return [
            Change("profiles", Op.UPSERT, pa.table(columns)),
            Change("identities", Op.UPSERT, identities),
            recorded("profile_created", ids, properties, now, context.random),
        ]

    def _changed(
        self, known: pa.Table, fields: dict[str, str], database: Database
    ) -> pa.Table | None:
        """Of the known people those that the rows change: new values, and the history of it."""
        if not fields or known.num_rows == 0:
            return None
        differs = {
            name: f"(k.{name} IS NOT NULL AND k.{name} IS DISTINCT FROM {stored})"
            for name, stored in fields.items()
        }
        new = ", ".join(f"'{n}': CASE WHEN {d} THEN k.{n} END" for n, d in differs.items())
        old = ", ".join(f"'{n}': CASE WHEN {d} THEN {fields[n]} END" for n, d in differs.items())
        values = ", ".join(f"coalesce(k.{n}, {stored}) AS {n}" for n, stored in fields.items())
        names = ", ".join(
            f"CASE WHEN {d} THEN '{n.removeprefix(ATTRIBUTE_PREFIX)}' END"
            for n, d in differs.items()
        )
        return database.table(
            f"SELECT p.subscriber_id, {values}, [{names}] AS names,"
            " json_object('source', ?::VARCHAR,"
            f" 'old', json_merge_patch('{{}}', to_json({{{old}}})),"
            f" 'new', json_merge_patch('{{}}', to_json({{{new}}})))::VARCHAR AS properties"
            " FROM known k JOIN profiles p ON p.subscriber_id = k.person"
            f" WHERE {' OR '.join(differs.values())} ORDER BY k.n",
            [self.source],
            known=known,
        )

    def _change(self, changed: pa.Table, fields: dict[str, str], context: Context) -> list[Change]:
        rows = changed.select(["subscriber_id", *fields]).append_column(
            "updated_at", same(context.now, changed.num_rows, pa.timestamp("us"))
        )
        ids = changed["subscriber_id"].combine_chunks()
        return [
            Change("profiles", Op.UPSERT, rows),
            _times(ids, changed["names"].combine_chunks(), context),
            recorded("profile_changed", ids, changed["properties"], context.now, context.random),
        ]

    def _consents(
        self, people: pa.Table, database: Database, context: Context
    ) -> tuple[list[Change], int]:
        if self.consent is None or people.num_rows == 0:
            return [], 0
        consent, now = self.consent, context.now
        wanted = database.table(*_question(consent, people, now), wanted=people)
        wanted = _without_erased(wanted, people, consent, database, context)
        ids = wanted.filter(wanted["allowed"])["person"].combine_chunks()
        withheld = pc.sum(pc.cast(wanted["withheld"], pa.int64())).as_py() or 0
        old = wanted.filter(wanted["allowed"])["old"].combine_chunks()
        if len(ids) == 0:
            return [], withheld
        is_pending = consent.status == WAITING
        rows = rows_of(
            "consents",
            len(ids),
            subscriber_id=ids,
            channel=consent.channel,
            topic=consent.topic,
            status=consent.status,
            source=self.source,
            changed_at=now,
            expires_at=(consent.expires_at or now + PENDING_LASTS) if is_pending else None,
            proof=checked_proof(consent.proof),
        )
        properties = _consent_history(old, consent, self.source)
        return [
            Change("consents", Op.UPSERT, rows),
            recorded("consent_changed", ids, properties, now, context.random),
        ], withheld


# For new people there is nothing to look up but suppressions; that spares two scans of consents.
_WANTED_NEW = """
SELECT w.person, NULL::VARCHAR AS old, s.address IS NULL AS allowed, NOT allowed AS withheld
FROM wanted w LEFT JOIN suppressions s ON s.channel = ? AND s.address = lower(w.email)
  AND (s.expires_at IS NULL OR s.expires_at > ?)
WHERE w.is_new
"""
_WANTED_KNOWN = f"""
SELECT w.person, c.status AS old,
  c.status IS NULL AND g.status IS DISTINCT FROM '{UNSUBSCRIBED}' AND s.address IS NULL AS allowed,
  NOT allowed AND c.status IS DISTINCT FROM '{SUBSCRIBED_TO}' AS withheld
FROM wanted w
LEFT JOIN consents c ON c.subscriber_id = w.person AND c.channel = ? AND c.topic = ?
LEFT JOIN consents g ON g.subscriber_id = w.person AND g.channel = ? AND g.topic = '{ALL_TOPICS}'
LEFT JOIN profiles p ON p.subscriber_id = w.person
LEFT JOIN suppressions s ON s.channel = ? AND s.address = lower(p.email)
  AND (s.expires_at IS NULL OR s.expires_at > ?)
WHERE NOT w.is_new
"""
_WANTED_OPTOUT = f"""
SELECT w.person, c.status AS old, c.status IS DISTINCT FROM '{UNSUBSCRIBED}' AS allowed,
  false AS withheld
FROM wanted w
LEFT JOIN consents c ON c.subscriber_id = w.person AND c.channel = ? AND c.topic = ?
"""


def _question(consent: Consent, people: pa.Table, now: datetime) -> tuple[str, list[Any]]:
    """Who of the people gets the consent, and who had which before."""
    if consent.status == UNSUBSCRIBED:
        return _WANTED_OPTOUT, [consent.channel, consent.topic]
    parts, values = [], list[Any]()
    new = pc.sum(pc.cast(people["is_new"], pa.int64())).as_py()
    if new:
        parts.append(_WANTED_NEW)
        values += [consent.channel, now]
    if new < people.num_rows:
        parts.append(_WANTED_KNOWN)
        values += [consent.channel, consent.topic, consent.channel, consent.channel, now]
    return " UNION ALL ".join(parts), values


def _without_erased(
    wanted: pa.Table, people: pa.Table, consent: Consent, database: Database, context: Context
) -> pa.Table:
    """No batch resubscribes an address whose person was erased (``manta.privacy``)."""
    if consent.status == UNSUBSCRIBED:
        return wanted
    erased = erased_people(database, context.settings, people, consent.channel)
    if not erased:
        return wanted
    theirs = pc.is_in(wanted["person"], value_set=pa.array(sorted(erased), pa.int64()))
    withheld = pc.or_(wanted["withheld"], pc.and_(theirs, wanted["allowed"]))
    allowed = pc.and_(wanted["allowed"], pc.invert(theirs))
    return pa.table(
        {
            **dict(zip(wanted.column_names, wanted.columns, strict=True)),
            "allowed": allowed,
            "withheld": withheld,
        }
    )


def _consent_history(old: pa.Array, consent: Consent, source: str) -> pa.Array:
    """Few texts, since the old status is one of few words."""
    words = old.dictionary_encode(null_encoding="encode")
    texts = [
        compact_json(
            {
                "channel": consent.channel,
                "topic": consent.topic,
                "old": word,
                "new": consent.status,
                "source": source,
            }
        )
        for word in words.dictionary.to_pylist()
    ]
    return pa.array(texts, pa.string()).take(words.indices)


def _times(ids: pa.Array, names: pa.ListArray, context: Context) -> Change:
    """The instants of changed values: of each person the names that are not null."""
    every = names.flatten()
    places = pc.list_parent_indices(names).filter(every.is_valid())
    return upserted(
        "attribute_times",
        len(places),
        subscriber_id=ids.take(places),
        name=every.drop_null(),
        changed_at=context.now,
    )


def _resolved(named: pa.Table, database: Database) -> pa.Table:
    """For each row: ``found`` (subscriber id or null), ``here`` (has its profile), ``busy``."""
    # By the value alone, in a step of its own: otherwise DuckDB would read all identities.
    found = database.table(
        "WITH held AS MATERIALIZED"
        " (SELECT * FROM identities WHERE value IN (SELECT value FROM named))"
        " SELECT coalesce(n.subscriber_id, d.subscriber_id) AS found,"
        " p.subscriber_id IS NOT NULL AS here,"
        f" coalesce(d.state = '{PENDING}', false) AS busy"
        " FROM named n LEFT JOIN held d ON d.kind = n.kind AND d.value = n.value"
        " LEFT JOIN profiles p ON p.subscriber_id = coalesce(n.subscriber_id, d.subscriber_id)"
        " ORDER BY n.n",
        named=named.select(["n", "subscriber_id", "kind", "value"]),
    )
    lost = pc.and_(found["found"].is_valid(), pc.invert(found["here"]))
    if not pc.any(lost).as_py():
        return found
    aliases = standing(database, pc.unique(found["found"].filter(lost)).to_pylist())
    if not aliases:
        return found
    ids = [id if id is None else followed(aliases, id) for id in found["found"].to_pylist()]
    moved = [id for id in dict.fromkeys(ids) if id is not None]
    here = {
        id for (id,) in database.rows(f"SELECT subscriber_id FROM profiles WHERE {among(moved)}")
    }
    return pa.table(
        {
            "found": pa.array(ids, pa.int64()),
            "here": pa.array([id in here for id in ids]),
            "busy": found["busy"],
        }
    )


def _minted(created: pa.Table, database: Database, context: Context) -> pa.Array:
    """A fresh id for each new person: the bucket of the name above 47 random bits."""
    count = created.num_rows
    if count == 0:
        return pa.array([], pa.int64())
    buckets = np.zeros(count, np.int64)
    for kind in NAMING:
        chosen = pc.equal(created["kind"], kind).to_numpy()
        if chosen.any():
            values = created["value"].filter(pa.array(chosen)).to_pylist()
            buckets[chosen] = buckets_of_identities(kind, values)
    ids = buckets << 47 | _random47(count, context)
    again = np.arange(count)
    while True:
        _, first = np.unique(ids, return_index=True)
        repeated = np.setdiff1d(again, first)
        taken = database.rows(
            "SELECT m.n FROM profiles p JOIN minted m ON m.id = p.subscriber_id",
            minted=pa.table({"n": again, "id": ids[again]}),
        )
        again = np.union1d(repeated, np.array([n for (n,) in taken], np.int64))
        if len(again) == 0:
            return pa.array(ids)
        ids[again] = buckets[again] << 47 | _random47(len(again), context)


def _random47(count: int, context: Context) -> np.ndarray[Any, np.dtype[np.int64]]:
    bits = np.frombuffer(context.random.randbytes(8 * count), np.uint64) >> np.uint64(17)
    return bits.astype(np.int64)


def _wanted(created: pa.Table, new_ids: pa.Array, known: pa.Table) -> pa.Table:
    """All people of the batch; the address of those whose profile is not written yet."""
    stored = pa.nulls(known.num_rows, pa.string())
    return pa.table(
        {
            "person": pa.concat_arrays([new_ids, known["person"].combine_chunks()]),
            "email": pa.concat_arrays([created["email"].combine_chunks(), stored]),
            "is_new": pa.array(np.arange(len(new_ids) + known.num_rows) < len(new_ids)),
        }
    )


def _placed(count: int, *parts: pa.Array) -> pa.Array:
    """A column with the values of each (mask, values) pair in the places of the mask."""
    column, valid = np.zeros(count, np.int64), np.zeros(count, bool)
    for mask, values in zip(parts[::2], parts[1::2], strict=True):
        chosen = mask.to_numpy(zero_copy_only=False)
        column[chosen] = values.to_numpy()
        valid |= chosen
    return pa.array(column, mask=~valid)


def _left_over(named: pa.Table, found: pa.Table) -> dict[str, Any]:
    """The rows with which nothing was done, and why."""
    if pc.all(
        pc.and_(pc.or_(found["here"], found["found"].is_null()), pc.invert(found["busy"]))
    ).as_py() in (True, None):
        return {}
    elsewhere, unknown, busy = [], [], []
    given = named.select(["n", "subscriber_id"]).to_pydict().values()
    for n, id, person, here, claimed in zip(*given, *found.to_pydict().values(), strict=True):
        if claimed:
            busy.append(n)
        elif person is not None and not here:
            if person == id:
                unknown.append(n)
            else:
                elsewhere.append((n, person))
    return {"elsewhere": tuple(elsewhere), "unknown": tuple(unknown), "busy": tuple(busy)}


def _claims(named: pa.Table, ids: pa.Array, database: Database) -> pa.Table | None:
    """Further identities of these rows that this shard does not yet know to be theirs."""
    parts = []
    for kind in (EXTERNAL_ID, PHONE, ANONYMOUS_ID):
        if kind not in named.column_names or named[kind].null_count == named.num_rows:
            continue
        further = pc.and_(
            pc.and_(named[kind].is_valid(), ids.is_valid()),
            pc.or_kleene(named["kind"].is_null(), pc.not_equal(named["kind"], kind)),
        ).combine_chunks()
        rows = named.filter(further)
        parts.append(
            pa.table(
                {
                    "n": rows["n"],
                    "kind": same(kind, rows.num_rows, pa.string()),
                    "value": compared_each(kind, rows[kind].combine_chunks()),
                    "subscriber_id": ids.filter(further),
                }
            )
        )
    claims = pa.concat_tables(parts) if parts else None
    if claims is None or claims.num_rows == 0:
        return None
    unknown = database.table(
        "SELECT c.* EXCLUDE (n) FROM claims c ANTI JOIN identities d"
        " ON d.kind = c.kind AND d.value = c.value"
        f" AND d.subscriber_id = c.subscriber_id AND d.state = '{CONFIRMED}' ORDER BY c.n",
        claims=claims,
    )
    return unknown if unknown.num_rows else None


assert BUCKETS << 47 == 1 << 63  # an id fills 63 bits exactly
