"""Driving an import: batches to the shards that own their people, a bounded number on the way.

The driver is given the batches of a file and a way to submit a command to a shard, and owns the
order of things: rows are gathered by shard and sent ``PART_ROWS`` at a time, however many shards
there are, under a key made of the import's key, the shard and the number of the part. The same
file and plan give the same parts, so a run that broke off may begin anew and repeats nothing. Per
shard at most ``window`` parts are on the way. What the answers leave over is
followed up: people who have moved to another shard, and external ids beside addresses, which are
claimed in their own shards. Whatever cannot be done is a reject with the line of its row.

Rows may carry an outcome (``importer.STATUS``): then each part has rows of one, and the consent
that goes with it. Addresses that are not to be mailed are suppressed before the people of their
batch are written, so that no consent comes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from manta.command import Command, Repeated
from manta.ids import bucket_of_subscriber, buckets_of_identities, shard_of_bucket
from manta.people.claims import (
    CLAIMED,
    CONTESTED,
    STALE,
    TAKEN,
    Claimed,
    ClaimIdentities,
    HasIdentity,
    SettleClaims,
    TakeIdentities,
)
from manta.people.consents import SUBSCRIBED_TO, UNSUBSCRIBED, WAITING
from manta.people.delimited import Reject
from manta.people.identities import (
    EMAIL,
    EXTERNAL_ID,
    buckets_of_rows,
    compared,
    shards_of_buckets,
)
from manta.people.importer import STATUS
from manta.people.platform_exports import AS_GIVEN, OUTCOMES, SUPPRESSING
from manta.people.suppressions import GRAVITY, MANUAL, MANY_MAX, Row, SuppressMany
from manta.people.upsert import Consent, Upserted, UpsertPeople

WINDOW = 2  # parts on the way per shard: one at work, one waiting
# Of one command. A part costs a scan of the shard's identities besides about 15 µs a row; this
# many hold the writer for about 0.2 s.
PART_ROWS = 10_000
GATHERED_ROWS_MAX = 200_000  # over all shards; above it the fullest is sent early


class Pending(Protocol):
    """An answer on its way, like ``concurrent.futures.Future``."""

    def result(self) -> Any: ...


class ImportBatch(Protocol):
    """What ``manta.store.importing.read_people`` yields."""

    @property
    def number(self) -> int: ...
    @property
    def rows(self) -> pa.Table: ...
    @property
    def lines(self) -> list[int]: ...
    @property
    def rejects(self) -> list[Reject]: ...
    @property
    def bytes_read(self) -> int: ...


_Place = tuple[int, str]  # shard and outcome
_ORDER = {outcome: rank for rank, outcome in enumerate(OUTCOMES, 1)}
# What the topic's consent becomes for rows with this outcome; the others get none.
_STATUS_OF = {"subscribed": SUBSCRIBED_TO, "pending": WAITING, "unsubscribed": UNSUBSCRIBED}

Lines = np.ndarray[Any, np.dtype[np.int64]]
Submit = Callable[[int, Command], Pending]
Progress = Callable[[int, int], None]  # rows and bytes read so far


@dataclass
class ImportSummary:
    """Rows of a file by what became of them: ``rows`` is the sum of the six below it, save that
    a row with a refused external id counts as imported and is among the rejects besides.

    ``repeated``: rows of parts that an earlier run of the same import had brought in.
    """

    rows: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    repeated: int = 0
    rejected: int = 0
    consented: int = 0
    withheld: int = 0  # consents not given: unsubscribed, waiting, or suppressed
    suppressed: int = 0  # addresses that are suppressed now because the file says so


@dataclass
class _Part:
    """Rows for one shard, one command."""

    shard: int
    rows: pa.Table
    lines: Lines
    key: str
    consent: Consent | None
    pending: Pending | None = None


@dataclass
class _Run:
    submit: Submit
    first_buckets: Sequence[int]
    key: str
    source: str
    consent: Consent | None
    reject: Callable[[list[Reject]], None]
    summary: ImportSummary = field(default_factory=ImportSummary)
    stops: dict[int, list[Row]] = field(default_factory=dict)

    def send(self, part: _Part) -> _Part:
        command = UpsertPeople(part.key, part.rows, self.source, part.consent)
        part.pending = self.submit(part.shard, command)
        return part

    def settle(self, part: _Part) -> None:
        """Wait for the answer, count it, and follow up what it left over."""
        assert part.pending is not None
        answer = part.pending.result()
        if isinstance(answer, Repeated) and "external_id" in part.rows.column_names:
            # The earlier run may have ended before its claims: ask once more what is left to do.
            answer = self.submit(
                part.shard, UpsertPeople(None, part.rows, self.source, part.consent)
            ).result()
        if isinstance(answer, Repeated):
            self.summary.repeated += part.rows.num_rows
            return
        assert isinstance(answer, Upserted)
        for count in ("created", "updated", "unchanged", "duplicates", "consented", "withheld"):
            setattr(self.summary, count, getattr(self.summary, count) + getattr(answer, count))
        self._refuse(part, answer.busy, "the address is being claimed by another person; try again")
        self._refuse(part, answer.unknown, "nobody has this subscriber id")
        if answer.elsewhere:
            self._forward(part, answer.elsewhere)
        if answer.claims is not None:
            self._claim(part, answer.claims, answer.ids)

    def suppress(self, batch: ImportBatch) -> None:
        """Suppress the addresses of a batch that are not to be mailed, in the shards of the
        addresses and in those of the people who have them."""
        if STATUS not in batch.rows.column_names or EMAIL not in batch.rows.column_names:
            return
        stops: dict[str, Row] = {}
        rows = zip(batch.rows[EMAIL].to_pylist(), batch.rows[STATUS].to_pylist(), strict=True)
        for email, outcome in rows:
            if email is not None and outcome in SUPPRESSING:
                address = compared(EMAIL, email)
                stop = Row(address, SUPPRESSING[outcome], self.source, "the file says so")
                known = stops.get(address)
                if known is None or _gravity(stop) > _gravity(known):
                    stops[address] = stop
        for address, shard in zip(stops, self._shards_of(list(stops)), strict=True):
            self.stops.setdefault(shard, []).append(stops[address])
        for shard in sorted(self.stops):
            self._suppress_at(shard)

    def _shards_of(self, addresses: list[str]) -> list[int]:
        if not addresses:
            return []
        buckets = buckets_of_identities(EMAIL, addresses)
        shards: list[int] = shards_of_buckets(buckets, self.first_buckets).tolist()
        return shards

    def _suppress_at(self, shard: int) -> None:
        rows = self.stops.pop(shard)
        for start in range(0, len(rows), MANY_MAX):
            part = tuple(rows[start : start + MANY_MAX])
            answer = self.submit(shard, SuppressMany(None, part)).result()
            self.summary.suppressed += answer.changed
            homes: dict[int, list[Row]] = {}
            holders = dict(answer.holders)
            for row in part:
                if row.address in holders:
                    bucket = bucket_of_subscriber(holders[row.address])
                    home = shard_of_bucket(bucket, self.first_buckets)
                    homes.setdefault(home, []).append(row)
            for home, held in homes.items():
                if home != shard:
                    self.submit(home, SuppressMany(None, tuple(held))).result()

    def consent_of(self, outcome: str) -> Consent | None:
        """The consent that rows with this outcome get; ``AS_GIVEN`` is the operator's word."""
        given = self.consent
        if given is None or outcome == AS_GIVEN or given.status == UNSUBSCRIBED:
            return given
        status = _STATUS_OF.get(outcome)
        if status is None or (status == SUBSCRIBED_TO and given.status != SUBSCRIBED_TO):
            return None if status is None else given
        proof = {"method": "import", "form": self.source, "status": outcome}
        return replace(given, status=status, proof=proof)

    def _refuse(self, part: _Part, places: Sequence[int], reason: str) -> None:
        self.summary.rejected += len(places)
        self.reject([_reject(part, place, reason) for place in places])

    def _forward(self, part: _Part, elsewhere: tuple[tuple[int, int], ...]) -> None:
        """People whose address belongs here and who live elsewhere are named by their id there."""
        owners: dict[int, list[tuple[int, int]]] = {}
        for place, person in elsewhere:
            shard = shard_of_bucket(bucket_of_subscriber(person), self.first_buckets)
            owners.setdefault(shard, []).append((place, person))
        for shard, held in owners.items():
            places = pa.array([place for place, _ in held])
            rows = part.rows.take(places).append_column(
                "subscriber_id", pa.array([person for _, person in held], pa.int64())
            )
            lines = part.lines[places.to_numpy()]
            self.settle(
                self.send(_Part(shard, rows, lines, f"{part.key}-at-{shard}", part.consent))
            )

    def _claim(self, part: _Part, claims: pa.Table, ids: pa.Array) -> None:
        """Claim external ids for the people of one batch, as ``manta.people.claims`` tells."""
        buckets = buckets_of_identities(EXTERNAL_ID, claims["value"].to_pylist())
        owners = shards_of_buckets(buckets, self.first_buckets)
        for shard in np.unique(owners).tolist():
            asked = claims.filter(pa.array(owners == shard))
            contested = self._claim_once(part, ids, shard, asked, (TAKEN, STALE))
            if contested.num_rows:  # mostly by a row of this part, which has it by now
                self._claim_once(part, ids, shard, contested, (TAKEN, STALE, CONTESTED))

    def _claim_once(
        self, part: _Part, ids: pa.Array, shard: int, asked: pa.Table, refused: tuple[str, ...]
    ) -> pa.Table:
        """Claim, take what was won, refuse what cannot be had; what remains contested."""
        claimed = self._claimed(shard, asked)
        won = pa.array([status == CLAIMED for status in claimed.statuses])
        if won.true_count:
            self._take(shard, asked.filter(won), claimed.suppressions)
        for n, status in enumerate(claimed.statuses):
            if status in refused:
                self._refuse_claim(part, ids, asked.slice(n, 1), status)
        return asked.filter(pa.array([status == CONTESTED for status in claimed.statuses]))

    def _claimed(self, shard: int, asked: pa.Table) -> Claimed:
        answer: Claimed = self.submit(shard, ClaimIdentities(None, asked)).result()
        stale = [n for n, status in enumerate(answer.statuses) if status == STALE]
        if not stale:
            return answer
        for n in stale:
            kind, value, owner = (
                asked["kind"][n].as_py(),
                asked["value"][n].as_py(),
                answer.owners[n],
            )
            home = shard_of_bucket(bucket_of_subscriber(owner), self.first_buckets)
            has = self.submit(home, HasIdentity(None, owner, kind, value)).result()
            claim = pa.table({"kind": [kind], "value": [value], "subscriber_id": [owner]})
            self.submit(shard, SettleClaims(None, claim, (has,))).result()
        again: Claimed = self.submit(shard, ClaimIdentities(None, asked)).result()
        return again

    def _take(self, shard: int, claims: pa.Table, suppressions: pa.Table | None) -> None:
        people = claims["subscriber_id"].to_numpy()
        homes = shards_of_buckets(people >> 47, self.first_buckets)
        for home in np.unique(homes).tolist():
            held = claims.filter(pa.array(homes == home))
            take = TakeIdentities(None, held, self.source, suppressions)
            here = self.submit(home, take).result()
            verdicts = tuple(here.is_valid().to_pylist())
            self.submit(shard, SettleClaims(None, held, verdicts)).result()

    def _refuse_claim(self, part: _Part, ids: pa.Array, claim: pa.Table, status: str) -> None:
        value, person = claim["value"][0].as_py(), claim["subscriber_id"][0].as_py()
        reason = (
            f"external_id {value!r:.80} belongs to another person; the rest of the row is in"
            if status == TAKEN
            else f"external_id {value!r:.80} is being claimed by another person; try again"
        )
        rows = zip(part.rows["external_id"].to_pylist(), ids.to_pylist(), strict=True)
        for place, (given, owner) in enumerate(rows):
            if owner == person and given and compared(EXTERNAL_ID, given) == value:
                self.reject([_reject(part, place, reason)])
                return


def import_people(
    batches: Iterable[ImportBatch],
    submit: Submit,
    first_buckets: Sequence[int],
    *,
    key: str,
    source: str,
    consent: Consent | None = None,
    reject: Callable[[list[Reject]], None] = lambda rejects: None,
    progress: Progress = lambda rows, size: None,
    window: int = WINDOW,
) -> ImportSummary:
    """Bring all batches into the shards; ``first_buckets`` as in ``manta.ids``.

    ``submit`` is expected to retry what can be retried under the command's key; an error of its
    answers ends the import and is raised, and the import may be run again with the same ``key``.
    """
    run = _Run(submit, first_buckets, key, source, consent, reject)
    summary = run.summary
    on_the_way: dict[int, deque[_Part]] = {}

    def send(part: _Part) -> None:
        waiting = on_the_way.setdefault(part.shard, deque())
        while len(waiting) >= window:
            run.settle(waiting.popleft())
        waiting.append(run.send(part))

    gathered = _Gathered(key, first_buckets, run.consent_of)
    for batch in batches:
        summary.rows += batch.rows.num_rows + len(batch.rejects)
        summary.rejected += len(batch.rejects)
        reject(batch.rejects)
        run.suppress(batch)
        for part in gathered.add(batch):
            send(part)
        progress(summary.rows, batch.bytes_read)
    for part in gathered.rest():
        send(part)
    for waiting in on_the_way.values():
        while waiting:
            run.settle(waiting.popleft())
    return summary


class _Gathered:
    """Rows by shard and outcome until there are enough of them for a command."""

    def __init__(
        self,
        key: str,
        first_buckets: Sequence[int],
        consent_of: Callable[[str], Consent | None],
    ) -> None:
        self._key, self._first_buckets, self._consent_of = key, first_buckets, consent_of
        self._held: dict[_Place, list[tuple[pa.Table, Lines]]] = {}
        self._rows: dict[_Place, int] = {}
        self._sent: dict[_Place, int] = {}

    def add(self, batch: ImportBatch) -> Iterable[_Part]:
        """Take a batch in; the parts that are full now."""
        lines = np.asarray(batch.lines)
        for outcome, rows, chosen in _by_outcome(batch.rows):
            yield from self._add(outcome, rows, lines[chosen])
        while sum(self._rows.values()) > GATHERED_ROWS_MAX:
            yield self._part(max(self._rows, key=lambda place: self._rows[place]))

    def _add(self, outcome: str, rows: pa.Table, lines: Lines) -> Iterable[_Part]:
        shards = shards_of_buckets(buckets_of_rows(rows), self._first_buckets)
        for shard in np.unique(shards).tolist():
            chosen, place = shards == shard, (shard, outcome)
            mine = rows.filter(pa.array(chosen))
            self._held.setdefault(place, []).append((mine, lines[chosen]))
            self._rows[place] = self._rows.get(place, 0) + mine.num_rows
            if self._rows[place] >= PART_ROWS:
                yield self._part(place)

    def rest(self) -> Iterable[_Part]:
        """What is left, the strictest outcome first: a consent in one row is withheld where
        another row of the same person refuses it."""
        for place in sorted(self._held, key=lambda each: (-_ORDER.get(each[1], 0), each)):
            yield self._part(place)

    def _part(self, place: _Place) -> _Part:
        held = self._held.pop(place)
        del self._rows[place]
        shard, outcome = place
        number = self._sent[place] = self._sent.get(place, -1) + 1
        rows = pa.concat_tables([rows for rows, _ in held]).combine_chunks()
        lines = np.concatenate([lines for _, lines in held])
        name = f"{shard}-{outcome}" if outcome else str(shard)
        consent = self._consent_of(outcome)
        return _Part(shard, rows, lines, f"import-{self._key}-{name}-{number}", consent)


def _by_outcome(rows: pa.Table) -> Iterable[tuple[str, pa.Table, Any]]:
    """The rows of each outcome, without its column, and which they are."""
    if rows.num_rows == 0:
        return
    if STATUS not in rows.column_names:
        yield AS_GIVEN, rows, slice(None)
        return
    outcomes = np.asarray(rows[STATUS].to_pylist(), object)
    bare = rows.drop_columns([STATUS])
    for outcome in sorted({each or AS_GIVEN for each in outcomes.tolist()}):
        chosen = (outcomes == outcome) | ((outcomes == None) & (outcome == AS_GIVEN))  # noqa: E711
        yield outcome, bare.filter(pa.array(chosen)), chosen


def _gravity(row: Row) -> int:
    return GRAVITY.get(row.reason, GRAVITY[MANUAL])


def _reject(part: _Part, place: int, reason: str) -> Reject:
    cells = [column[place].as_py() for column in part.rows.columns]
    return Reject(
        int(part.lines[place]), reason, ",".join("" if c is None else str(c) for c in cells)
    )
