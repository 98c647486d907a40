"""Erasing a person from the state of a shard.

``Erase`` goes to **every** shard, since an identity lies in the shard of its own hash, a test's
address in that of the person who filled it, and a suppression in that of the address. Each shard
deletes what it has of the person, in one commit, and keeps three things: a row of ``erasures``,
which hides the person's events until every file is rewritten (``manta.store.erasure``); keyed
hashes of the addresses (``manta.privacy.hashes``), for ever; and of the ledger how many messages
each campaign had in which state and for which reason, so that every campaign's accounting stays
exact.

The ledger. A planned message is counted as ``suppressed`` (``erased``). A final one is counted as
it stands. A message that a Sender holds stays, until the Sender has said what became of it: the
Senders are told not to send it (``revoke``), as with any withdrawal. ``Sweep``, which runs right
before files are rewritten, takes what has been settled meanwhile, and counts what is held even then
as ``uncertain`` (``erased``): it is never sent again, since its row is gone, and late news about it
finds nothing.

A crash between two shards leaves the rest of them undone; the row of ``erasures`` in any of them
says what is to be done in the others, and every step may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.delivery.ledger import FINAL, State
from manta.errors import InvalidRequest
from manta.people.aliases import UNDONE
from manta.people.consents import CHANNELS as ALL_CHANNELS
from manta.people.consents import address_kind, check_word, revocations
from manta.people.history import rows_of, upserted
from manta.people.identities import EMAIL, PHONE, compared
from manta.privacy.hashes import (
    CHANNELS,
    ERASED,
    MARK,
    forget_held,
    key_of,
    keyed_hash,
    person_hash,
)
from manta.privacy.names import (
    IN_BODIES,
    Name,
    anonymous,
    body_pattern,
    from_json,
    pattern,
    replaced,
    to_json,
)
from manta.schema import ALIASES, ERASURES, LEDGER, TABLES

PEOPLE_MAX = 1_000  # ids that were merged into one person
NAMES_AT_ONCE = 2_000  # of one pass over the files: a pattern of 20,000 does not compile
# Tables whose rows name their person by id. Of the ledger see the module.
OF_A_PERSON = tuple(
    table
    for table in TABLES.values()
    if table.key
    and "subscriber_id" in table.column_names
    and table.name not in (LEDGER.name, ERASURES.name)
)
# Texts in which a person may be named who is not the row's.
TEXTS = {"ledger": ("reply",), "suppressions": ("evidence",), "outbox": ("body", "answer")}
_FINALS = ", ".join(f"'{state.value}'" for state in FINAL)
_HELD = f"'{State.LEASED.value}', '{State.ORPHANED.value}'"


@dataclass(frozen=True)
class Erased:
    """``names`` and ``people``: what this shard knew of the person beyond what it was told. Where
    there is any, every shard has to be told again, with it."""

    names: tuple[Name, ...] = ()
    people: tuple[int, ...] = ()
    removed: int = 0  # rows of the state


@dataclass(frozen=True)
class Erase:
    """Make a person unreadable and unmailable in this shard, at once; see the module.

    ``people`` are all ids that live on as this person; ``names`` their identities (compared forms)
    as far as the caller knows them. Answers ``Erased``.
    """

    key: str | None
    request_id: str
    people: tuple[int, ...]
    names: tuple[Name, ...]

    def decide(self, database: Database, context: Context) -> Decision:
        if not 0 < len(self.people) <= PEOPLE_MAX:
            raise InvalidRequest(
                f"{len(self.people)} ids of one person",
                path="people",
                expected=f"1 to {PEOPLE_MAX}",
            )
        known = names_of(database, self.people)
        merged = merged_with(database, self.people)
        names = {Name(*name) for name in self.names} | known
        changes = [
            self._tombstones(database, context, names),
            *_hashes(database, context, names),
            *_emptied_aliases(database, self.people),
            *removed(database, context, self.people, names, spare=_TELLS_OF_ERASURE),
        ]
        news = tuple(sorted(known - {Name(*name) for name in self.names}))
        more = tuple(sorted(merged - set(self.people)))
        count = sum(c.rows.num_rows for c in changes if c.op is Op.DELETE)
        pushes = [
            push
            for channel in ALL_CHANNELS
            for push in revocations(database, self.people, channel, marketing_only=False)
        ]
        return Decision(Erased(news, more, count), tuple(changes), tuple(pushes))

    def _tombstones(self, database: Database, context: Context, names: set[Name]) -> Change:
        held = {
            id: (request, at, from_json(named))
            for id, request, at, named in database.rows(
                "SELECT subscriber_id, request_id, requested_at, named FROM erasures"
                " WHERE subscriber_id IN (SELECT unnest(?))",
                [list(self.people)],
            )
        }
        rows = [held.get(id, (self.request_id, context.now, set())) for id in self.people]
        first = min(self.people)  # has the names of all: a thousand times a thousand are too many
        return upserted(
            ERASURES.name,
            len(rows),
            subscriber_id=pa.array(self.people, pa.int64()),
            request_id=pa.array([request for request, _, _ in rows]),
            requested_at=pa.array([at for _, at, _ in rows], pa.timestamp("us")),
            named=pa.array(
                [
                    to_json(before | names if id == first else before)
                    for id, (_, _, before) in zip(self.people, rows, strict=True)
                ]
            ),
        )


@dataclass(frozen=True)
class Swept:
    """An erasure that files are to be rewritten for. ``merges`` name copies of the person's events
    under another id, of a merge that was undone."""

    people: dict[int, str]  # id → request
    names: tuple[Name, ...]
    merges: tuple[int, ...]
    removed: int  # rows of the state that had still been there
    requests: dict[str, tuple[str, datetime]]  # the person's name in receipts, and since when
    more: bool = False  # others wait for the next pass


@dataclass(frozen=True)
class Sweep:
    """Right before files are rewritten: whatever the state still has of all erased people, also
    what Senders hold, and their names in texts of others. Answers ``Swept``.

    Of many requests the oldest, up to ``NAMES_AT_ONCE``; the next pass takes the others."""

    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        rows = database.rows(
            "SELECT subscriber_id, request_id, requested_at, named FROM erasures ORDER BY 1"
        )
        if not rows:
            return Decision(Swept({}, (), (), 0, {}))
        waiting = len(rows)
        rows, names = _at_once(rows)
        people = {int(id): str(request) for id, request, *_ in rows}
        requests: dict[str, tuple[str, datetime]] = {}
        for id, request, at, _ in rows:
            requests.setdefault(request, (person_hash(key_of(context.settings), id), at))
        changes = removed(database, context, list(people), names, held=True)
        changes += _redacted(database, names, list(people))
        merges = database.rows(
            "SELECT DISTINCT merge_id FROM aliases"
            " WHERE from_id IN (SELECT unnest(?)) AND merge_id IS NOT NULL",
            [list(people)],
        )
        gone = sum(change.rows.num_rows for change in changes)
        merged = tuple(id for (id,) in merges)
        more = len(rows) < waiting
        swept = Swept(people, tuple(sorted(names)), merged, gone, requests, more)
        return Decision(swept, tuple(changes))


def _at_once(rows: Sequence[Any]) -> tuple[list[Any], set[Name]]:
    """The rows of ``erasures`` of as many requests, the oldest first, as one pass can take."""
    by_request: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (row[2], row[1], row[0])):
        by_request.setdefault(row[1], []).append(row)
    taken: list[Any] = []
    names: set[Name] = set()
    for of_request in by_request.values():
        theirs = {name for *_, named in of_request for name in from_json(named)}
        if taken and len(taken) + len(of_request) + len(names | theirs) > NAMES_AT_ONCE:
            break
        taken += of_request
        names |= theirs
    return sorted(taken), names


@dataclass(frozen=True)
class KeepErasing:
    """Write what says that people are erased once more: rewriting has taken it out of the files,
    but something of theirs has come in since."""

    people: tuple[int, ...]
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        people = [list(self.people)]
        rows = database.table(
            "SELECT * FROM erasures WHERE subscriber_id IN (SELECT unnest(?))", people
        )
        aliases = database.table(
            "SELECT * FROM aliases WHERE from_id IN (SELECT unnest(?))"
            " OR to_id IN (SELECT unnest(?))",
            people * 2,
        )
        changes = (Change("erasures", Op.UPSERT, rows), Change("aliases", Op.UPSERT, aliases))
        return Decision(None, changes)


@dataclass(frozen=True)
class LiftErasure:
    """The person of an erased address has asked for mail again by their own, confirmed act.

    To be executed on every shard (``manta.privacy.erasing.lift_erasure``). Answers whether the
    address was an erased one. Lifting brings nothing back; it lets a consent be written again.
    """

    key: str | None
    channel: str
    address: str

    def decide(self, database: Database, context: Context) -> Decision:
        check_word(self.channel, ALL_CHANNELS, "channel")
        address = compared(address_kind(self.channel), self.address)
        hashed = keyed_hash(key_of(context.settings), self.channel, address)
        found = database.rows(
            "SELECT 1 FROM suppressions WHERE channel = ? AND address = ?", [self.channel, hashed]
        )
        if not found:
            return Decision(False)
        forget_held(database)
        gone = rows_of("suppressions", 1, channel=self.channel, address=hashed)
        return Decision(True, (Change("suppressions", Op.DELETE, gone),))


@dataclass(frozen=True)
class KeepHashes:
    """Hashes of erased addresses that this shard may lack, as after a backup was brought back.
    ``rows``: channel, hash, and when the person was erased. Answers how many were new."""

    key: str | None
    rows: tuple[tuple[str, str, Any], ...]

    def decide(self, database: Database, context: Context) -> Decision:
        held = {
            (channel, address)
            for channel, address in database.rows(
                "SELECT channel, address FROM suppressions WHERE starts_with(address, 'hmac:')"
            )
        }
        rows = {(c, h): at for c, h, at in self.rows if h.startswith(MARK)}
        new = [(c, h, at) for (c, h), at in rows.items() if (c, h) not in held]
        if not new:
            return Decision(0)
        forget_held(database)
        return Decision(len(new), (_hash_rows(new),))


# -- what a shard knows of people ------------------------------------------------------------------


def names_of(database: Database, people: Sequence[int]) -> set[Name]:
    """All identities of the people that stand here, earlier findings included."""
    ids = [list(people)]
    found = {
        Name(kind, value)
        for kind, value in database.rows(
            "SELECT kind, value FROM identities WHERE subscriber_id IN (SELECT unnest(?))", ids
        )
    }
    found |= {
        Name(EMAIL, compared(EMAIL, email))
        for (email,) in database.rows(
            "SELECT email FROM profiles WHERE subscriber_id IN (SELECT unnest(?))"
            " AND email IS NOT NULL",
            ids,
        )
    }
    for (named,) in database.rows(
        "SELECT named FROM erasures WHERE subscriber_id IN (SELECT unnest(?))", ids
    ):
        found |= from_json(named)
    return found


def merged_with(database: Database, people: Sequence[int]) -> set[int]:
    """The people with all whom a merge that holds has made one with them, as far as stands here."""
    found = set(people)
    while True:
        near = database.rows(
            "SELECT from_id, to_id FROM aliases WHERE state IN ('merging', 'merged')"
            " AND (from_id IN (SELECT unnest(?)) OR to_id IN (SELECT unnest(?)))",
            [sorted(found)] * 2,
        )
        more = found.union(*near)
        if more == found:
            return found
        found = more


# -- what goes -------------------------------------------------------------------------------------

_TELLS_OF_ERASURE = "type = 'person.erased'"  # in the outbox: others still have to learn of it


def removed(
    database: Database,
    context: Context,
    people: Sequence[int],
    names: Iterable[Name] = (),
    *,
    held: bool = False,
    spare: str = "FALSE",
) -> list[Change]:
    """The deletion of all state of these people. ``held``: also of messages that Senders have.
    ``spare`` is a condition on rows of the outbox that stay."""
    ids, names = [list(people)], sorted(set(names))
    changes = []
    for table in OF_A_PERSON:
        kept = f" AND NOT ({spare})" if table.name == "outbox" else ""
        rows = database.table(
            f"SELECT {', '.join(table.key)} FROM {table.name}"
            f" WHERE subscriber_id IN (SELECT unnest(?)){kept}",
            ids,
        )
        changes.append(Change(table.name, Op.DELETE, rows))
    changes += _removed_messages(database, people, held)
    emails = [name.value for name in names if name.kind == EMAIL]
    changes += _removed_tests(database, context, emails, held)
    clear = database.table(
        "SELECT channel, address FROM suppressions WHERE address IN (SELECT unnest(?::VARCHAR[]))",
        [[name.value for name in names if name.kind in CHANNELS]],
    )
    changes.append(Change("suppressions", Op.DELETE, clear))
    bodies = database.table(
        "SELECT quarantine_id FROM quarantine WHERE regexp_matches(body, $1)"
        " OR regexp_matches(coalesce(problem, ''), $1)"
        f" OR list_has_any({IN_BODIES.format(column='body')}, $2::VARCHAR[])",
        [body_pattern(names, people), anonymous(names)],
    )
    changes.append(Change("quarantine", Op.DELETE, bodies))
    return [change for change in changes if change.rows.num_rows]


def _removed_messages(database: Database, people: Sequence[int], held: bool) -> list[Change]:
    """The people's ledger rows, counted for their campaigns."""
    which = "subscriber_id IN (SELECT unnest(?))"
    if not held:
        which = f"{which} AND state NOT IN ({_HELD})"
    rows = database.table(f"SELECT subscriber_id, message_key FROM ledger WHERE {which}", [people])
    if not rows.num_rows:
        return []
    final = f"state IN ({_FINALS})"
    planned = f"state = '{State.PLANNED.value}'"
    fresh = (
        f"SELECT campaign_id, CASE WHEN {final} THEN state WHEN {planned}"
        f" THEN '{State.SUPPRESSED.value}' ELSE '{State.UNCERTAIN.value}' END AS state,"
        f" CASE WHEN {final} THEN coalesce(reason, '') ELSE '{ERASED}' END AS reason,"
        f" count(*) AS messages FROM ledger WHERE {which} AND campaign_id IS NOT NULL GROUP BY ALL"
    )
    key = "campaign_id, state, reason"
    counts = database.table(
        f"WITH fresh AS ({fresh}) SELECT {key}, sum(messages)::BIGINT AS messages FROM (FROM fresh"
        f" UNION ALL BY NAME SELECT k.* FROM ledger_campaigns k SEMI JOIN fresh USING ({key}))"
        f" GROUP BY {key}",
        [people],
    )
    return [Change("ledger_campaigns", Op.UPSERT, counts), Change("ledger", Op.DELETE, rows)]


def _removed_tests(
    database: Database, context: Context, emails: list[str], held: bool
) -> list[Change]:
    """Tests to the person's address, which stand under the person who filled them: the address
    goes, and what is still planned is not sent."""
    if not emails:
        return []
    kept = "" if held else f" AND state NOT IN ({_HELD})"
    found = database.rows(
        "SELECT subscriber_id, message_key, state FROM ledger WHERE send_to IS NOT NULL"
        f" AND lower(send_to) IN (SELECT unnest(?)){kept}",
        [emails],
    )
    changes = []
    for is_planned in (True, False):
        some = [(a, b) for a, b, state in found if (state == State.PLANNED) is is_planned]
        if not some:
            continue
        columns: dict[str, Any] = {
            "subscriber_id": pa.array([a for a, _ in some], pa.int64()),
            "message_key": pa.array([b for _, b in some], pa.int64()),
            "send_to": None,
        }
        if is_planned:
            columns |= {
                "state": State.SUPPRESSED.value,
                "reason": ERASED,
                "due_at": None,
                "changed_at": context.now,
            }
        changes.append(upserted("ledger", len(some), **columns))
    return changes


def _redacted(database: Database, names: set[Name], people: Sequence[int]) -> list[Change]:
    """Rows of others with the names taken out of their texts."""
    found = pattern(names, people)
    changes = []
    for name, columns in TEXTS.items():
        for column in columns:
            rows = database.table(
                f"SELECT {', '.join(TABLES[name].key)}, {replaced(column, '$1')} AS {column}"
                f" FROM {name} WHERE {column} IS NOT NULL AND regexp_matches({column}, $1)",
                [found],
            )
            if rows.num_rows:
                changes.append(Change(name, Op.UPSERT, rows))
    return changes


def _emptied_aliases(database: Database, people: Sequence[int]) -> list[Change]:
    """What an undo would give back is theirs too, and nothing may be undone or brought to its end
    any more. The rows stay until files are rewritten: they hide copies of events."""
    rows = database.table(
        f"SELECT {', '.join(ALIASES.key)}, '{UNDONE}' AS state,"
        " NULL::VARCHAR AS kept, NULL::VARCHAR AS cause"
        " FROM aliases WHERE from_id IN (SELECT unnest(?)) OR to_id IN (SELECT unnest(?))",
        [list(people)] * 2,
    )
    return [Change("aliases", Op.UPSERT, rows)] if rows.num_rows else []


def _hashes(database: Database, context: Context, names: set[Name]) -> list[Change]:
    addresses = sorted(name for name in names if name.kind in (EMAIL, PHONE))
    if not addresses:
        return []
    forget_held(database)
    key = key_of(context.settings)
    hashed = [
        (CHANNELS[kind], keyed_hash(key, CHANNELS[kind], value), context.now)
        for kind, value in addresses
    ]
    return [_hash_rows(hashed)]


def _hash_rows(rows: Sequence[tuple[str, str, Any]]) -> Change:
    return upserted(
        "suppressions",
        len(rows),
        channel=pa.array([channel for channel, _, _ in rows]),
        address=pa.array([address for _, address, _ in rows]),
        reason=ERASED,
        source="privacy",
        evidence=None,
        created_at=pa.array([at for _, _, at in rows], pa.timestamp("us")),
        expires_at=None,
    )
