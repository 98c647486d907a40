"""Driving an import: batches to the shards that own their people, a bounded number on the way.

The driver is given the batches of a file and a way to submit a command to a shard, and owns the
order of things: each batch is split by shard (``identities.route``) and sent under a key made of
the import's key, the batch's number and the shard, so that a run that broke off may begin anew and
repeats nothing. Per shard at most ``window`` batches are on the way. What the answers leave over is
followed up: people who have moved to another shard, and external ids beside addresses, which are
claimed in their own shards. Whatever cannot be done is a reject with the line of its row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
from manta.people.delimited import Reject
from manta.people.identities import EXTERNAL_ID, buckets_of_rows, compared, shards_of_buckets
from manta.people.upsert import Consent, Upserted, UpsertPeople

WINDOW = 2  # batches on the way per shard: one at work, one waiting


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


Submit = Callable[[int, Command], Pending]
Progress = Callable[[int, int], None]  # rows and bytes read so far


@dataclass
class ImportSummary:
    """Rows of a file by what became of them: ``rows`` is the sum of the six below it, save that
    a row with a refused external id counts as imported and is among the rejects besides.

    ``repeated``: rows of batches that an earlier run of the same import had brought in.
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


@dataclass
class _Part:
    """Rows of one batch for one shard."""

    shard: int
    rows: pa.Table
    lines: np.ndarray[Any, np.dtype[np.int64]]
    key: str
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

    def send(self, part: _Part) -> _Part:
        command = UpsertPeople(part.key, part.rows, self.source, self.consent)
        part.pending = self.submit(part.shard, command)
        return part

    def settle(self, part: _Part) -> None:
        """Wait for the answer, count it, and follow up what it left over."""
        assert part.pending is not None
        answer = part.pending.result()
        if isinstance(answer, Repeated) and "external_id" in part.rows.column_names:
            # The earlier run may have ended before its claims: ask once more what is left to do.
            answer = self.submit(
                part.shard, UpsertPeople(None, part.rows, self.source, self.consent)
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
            self._claim(part, answer.claims)

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
            self.settle(self.send(_Part(shard, rows, lines, f"{part.key}-at-{shard}")))

    def _claim(self, part: _Part, claims: pa.Table) -> None:
        """Claim external ids for the people of one batch, as ``manta.people.claims`` tells."""
        buckets = buckets_of_identities(EXTERNAL_ID, claims["value"].to_pylist())
        owners = shards_of_buckets(buckets, self.first_buckets)
        for shard in np.unique(owners).tolist():
            asked = claims.filter(pa.array(owners == shard))
            claimed = self._claimed(shard, asked)
            won = [n for n, status in enumerate(claimed.statuses) if status == CLAIMED]
            if won:
                taken = asked.take(pa.array(won))
                self._take(shard, taken, claimed.suppressions)
            for n, status in enumerate(claimed.statuses):
                if status in (TAKEN, CONTESTED, STALE):
                    self._refuse_claim(part, asked["value"][n].as_py(), status)

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

    def _refuse_claim(self, part: _Part, value: str, status: str) -> None:
        reason = (
            f"external_id {value!r:.80} belongs to another person; the rest of the row is in"
            if status == TAKEN
            else f"external_id {value!r:.80} is being claimed by another person; try again"
        )
        for place, given in enumerate(part.rows["external_id"].to_pylist()):
            if given is not None and compared("external_id", given) == value:
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
    for batch in batches:
        summary.rows += batch.rows.num_rows + len(batch.rejects)
        summary.rejected += len(batch.rejects)
        reject(batch.rejects)
        for part in _parts(batch, first_buckets, key):
            waiting = on_the_way.setdefault(part.shard, deque())
            while len(waiting) >= window:
                run.settle(waiting.popleft())
            waiting.append(run.send(part))
        progress(summary.rows, batch.bytes_read)
    for waiting in on_the_way.values():
        while waiting:
            run.settle(waiting.popleft())
    return summary


def _parts(batch: ImportBatch, first_buckets: Sequence[int], key: str) -> Iterable[_Part]:
    if batch.rows.num_rows == 0:
        return
    shards = shards_of_buckets(buckets_of_rows(batch.rows), first_buckets)
    lines = np.asarray(batch.lines)
    for shard in np.unique(shards).tolist():
        chosen = shards == shard
        rows = batch.rows.filter(pa.array(chosen))
        yield _Part(shard, rows, lines[chosen], f"import-{key}-{batch.number}-{shard}")


def _reject(part: _Part, place: int, reason: str) -> Reject:
    cells = [column[place].as_py() for column in part.rows.columns]
    return Reject(
        int(part.lines[place]), reason, ",".join("" if c is None else str(c) for c in cells)
    )
