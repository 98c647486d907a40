"""Erased people leave the files: one pass over a shard for all requests that wait.

``manta.privacy.commands.Erase`` has taken them out of the state and hidden their events; what is
left is what was written before. A pass, driven by ``actors.erasing``:

    sweep     writer       ``Sweep``, then freeze: from here on no new row is about them
    rewrite   maintenance  flush; every file of the lake that holds a row of theirs, or names them
                           in a text, is written anew without; **one manifest** names the new files
    forget    writer       their rows of ``erasures`` and ``aliases`` leave memory
    purge     maintenance  older manifests, and files that only those name, are deleted

**Invariant:** the manifest is the commit point. Before it nothing has happened; it holds neither
the people nor the rows that said they were to be erased, and it carries (``extra``) the report of
what was done for which request. So no second write has to take back what the first one left: after
a crash the shard loads files without any trace and does what is missing, which is only the purge.
The journal up to the sweep was deleted by the flush.

The purge waits for a day after the manifest, as ``lake.open`` promises its readers, unless it is
asked for at once. Rewriting begins 44 hours after the oldest request, so that 72 h are kept with
four hours to spare.

In a state table rows of one key supersede each other, so a key that is concerned in one file is
looked at in all: of its rows only a living last one that is not theirs stays. Of events the rows of
the person go, and copies of them that an undone merge left under another id.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from manta.clock import as_text, parse_instant
from manta.ids import NOBODY
from manta.privacy.commands import TEXTS, KeepErasing, Sweep, Swept
from manta.privacy.names import IN_BODIES, body_pattern, pattern, quick_pattern, replaced
from manta.schema import (
    ALIASES,
    ERASURES,
    EVENTS,
    IDENTITIES,
    QUARANTINE,
    SUPPRESSIONS,
    TABLES,
    Table,
)
from manta.store.compaction import write_file
from manta.store.database import PARQUET, connect
from manta.store.flush import DELETED, KEYS, SEQUENCE
from manta.store.load import local_files
from manta.store.manifest import FileEntry, Manifest, Manifests
from manta.store.objects import TEMPORARY, ObjectStore
from manta.store.shard import ShardStore

REWRITE_AFTER = timedelta(hours=44)
READERS_HAVE = timedelta(hours=24)  # files stay so long after their manifest was replaced
REPORTS_KEPT = timedelta(days=30)
TEMPORARY_S = 3600.0
REPORTS, UNPURGED = "erased", "erased_unpurged"  # members of a manifest's `extra`
TEXT = "texts"  # in a report: texts of others in which a name was replaced
EVENT_TEXTS = ("properties", "item")

Counts = dict[str, list[int]]  # place → rows, files


@dataclass
class Report:
    """What a pass did in this shard, by request. ``places``: table → [rows, files]."""

    rewritten_at: datetime
    places: dict[str, Counts] = field(default_factory=dict)

    def add(self, request: str, place: str, rows: int, files: int) -> None:
        counts = self.places.setdefault(request, {}).setdefault(place, [0, 0])
        counts[0] += rows
        counts[1] += files


# -- a pass, step by step --------------------------------------------------------------------------


def sweep(store: ShardStore) -> Swept | None:
    """In the writer's thread, with nothing frozen: take what is left in the state and freeze.

    ``None`` where nobody is to be erased. Raises as ``ShardStore.execute``.
    """
    found: Swept | None = None
    for _ in range(3):  # what derives from a sweep may be about them too
        (outcome,) = store.execute([Sweep()])
        if outcome.failed:
            raise outcome.answer
        found = outcome.answer
        if not found.people or not found.removed:
            break
    if not found or not found.people:
        return None
    store.freeze(even_if_early=True)
    return found


def rewrite(
    store: ShardStore, swept: Swept, now: datetime, elsewhere: Report | None = None
) -> Report:
    """In the maintenance thread: flush what was frozen, write the files anew, publish.

    ``elsewhere`` is what was done in places that are no shard's; it goes into the same report.
    """
    store.maintain()
    report = Report(now)
    for request in set(swept.people.values()):
        report.places[request] = {}
    maintenance = store.maintenance
    files = _Rewriting(store, swept, report).run()
    for request, places in (elsewhere.places if elsewhere else {}).items():
        for place, (rows, count) in places.items():
            if request in report.places:
                report.add(request, place, rows, count)
    manifest = maintenance.manifest
    reports = [
        known
        for known in manifest.extra.get(REPORTS, ())
        if parse_instant(known["rewritten_at"]) > now - REPORTS_KEPT
    ]
    requests = {
        request: {
            "person": swept.requests[request][0],
            "requested_at": as_text(swept.requests[request][1]),
            "places": places,
        }
        for request, places in report.places.items()
    }
    reports.append({"rewritten_at": as_text(now), "requests": requests})
    unpurged = [*manifest.extra.get(UNPURGED, ()), [as_text(now), manifest.number + 1]]
    extra = {**manifest.extra, REPORTS: reports, UNPURGED: unpurged}
    maintenance.publish(replace(manifest, files=files, extra=extra))
    return report


def named_in_memory(store: ShardStore, swept: Swept) -> list[int]:
    """Beside the writer: whose events in memory name the erased in their texts."""
    found = " OR ".join(
        f"(regexp_matches({column}, $1) AND regexp_matches({column}, $2))" for column in EVENT_TEXTS
    )
    patterns = [f(swept.names, swept.people) for f in (quick_pattern, pattern)]
    reader = store.reader()
    try:
        rows = reader.rows(f"SELECT DISTINCT subscriber_id FROM events WHERE {found}", patterns)
    finally:
        reader.close()
    return [id for (id,) in rows]


def forget(store: ShardStore, swept: Swept, named: Sequence[int] = ()) -> None:
    """In the writer's thread: what said that they were to be erased leaves memory as well, and
    their names leave the events of those whom ``named_in_memory`` found.

    Of whom something has come in since the sweep, it is written once more, for the next pass.
    """
    late = _late(store, swept.people)
    # All of one request together: one row has the names of all.
    again = {swept.people[id] for id in late}
    late = {id for id, request in swept.people.items() if request in again}
    if late:
        store.execute([KeepErasing(tuple(sorted(late)))])
    ids = [sorted(set(swept.people) - late)]
    database, which = store.database, "IN (SELECT unnest(?::BIGINT[]))"
    database.drop(EVENTS.name, f"subscriber_id {which}", ids)
    if swept.merges:
        database.drop(EVENTS.name, f"merge_id {which}", [list(swept.merges)])
    database.drop(ERASURES.name, f"subscriber_id {which}", ids)
    database.drop(ALIASES.name, f"from_id {which} OR to_id {which}", ids * 2)
    if named:
        found = pattern(swept.names, swept.people)
        whose = f"subscriber_id IN ({', '.join(str(int(id)) for id in named)})"
        shown = replaced("{column}", "?")
        database.rewrite_texts(EVENTS.name, EVENT_TEXTS, whose, shown, found)


def purge(store: ShardStore, until: datetime | None = None) -> int:
    """In the maintenance thread: delete what manifests hold that are older than those of passes
    up to ``until``, or all older than the present one; how many objects."""
    manifest = store.maintenance.manifest
    passes = manifest.extra.get(UNPURGED, ())
    due = [each for each in passes if until is None or parse_instant(each[0]) <= until]
    number = manifest.number if until is None else _number_of(store.manifests, due)
    deleted = 0
    if due and number:
        deleted = _purge_before(store, number)
    extra = {**manifest.extra, UNPURGED: [each for each in passes if each not in due]}
    store.maintenance.manifest = replace(manifest, extra=extra)
    return deleted


def unpurged_since(manifest: Manifest) -> datetime | None:
    """When the oldest pass was published whose purge is still to be done."""
    passes = manifest.extra.get(UNPURGED)
    return min(parse_instant(at) for at, _ in passes) if passes else None


def _number_of(manifests: Manifests, passes: Sequence[Sequence[Any]]) -> int:
    """The number of the manifest of the last of these passes: that which was next, unless other
    manifests of unknown outcome had taken some."""
    if not passes:
        return 0
    at, number = max((str(at), int(number)) for at, number in passes)
    while (found := manifests.read(number)) is not None:
        if any(each[0] == at for each in found.extra.get(UNPURGED, ())):
            return number
        number += 1
    return 0


def reports_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """What passes did lately in this shard, by request: ``person``, ``requested_at``,
    ``rewritten_at`` and ``places`` (place → [rows, files]), added up over passes."""
    found: dict[str, dict[str, Any]] = {}
    for known in manifest.extra.get(REPORTS, ()):
        for request, part in known["requests"].items():
            before = found.get(request)
            places = {place: list(counts) for place, counts in part["places"].items()}
            for place, counts in (before["places"] if before else {}).items():
                held = places.setdefault(place, [0, 0])
                places[place] = [held[0] + counts[0], held[1] + counts[1]]
            found[request] = {**part, "places": places, "rewritten_at": known["rewritten_at"]}
    return found


def _late(store: ShardStore, people: Iterable[int]) -> set[int]:
    """Of whom anything was committed after the freeze."""
    ids, late = pa.array(sorted(people), pa.int64()), set[int]()
    tables = [*store.tail.events, *(t for some in store.tail.dirty.values() for t in some)]
    for rows in tables:
        for column in ("subscriber_id", "from_id", "to_id"):
            if column in rows.column_names:
                hits = rows.filter(pa.compute.is_in(rows[column], value_set=ids))
                late.update(hits[column].to_pylist())
    return late


def _purge_before(store: ShardStore, number: int) -> int:
    """Delete all manifests before this one, and files that neither it nor a later one names.

    What was written after it was published stays: a flush may be on its way. Also temporary files
    that a crash has left an hour ago.
    """
    objects, manifests = store.objects, store.manifests
    published = objects.stat(manifests.path(number))
    before = published.last_modified if published else datetime.min
    numbers = manifests.numbers()
    doomed = [manifests.path(each) for each in numbers if each < number]
    named: set[str] = set()
    for each in numbers:
        kept = manifests.read(each) if each >= number else None
        named |= kept.paths() if kept is not None else set()
    for path in objects.list(f"{store.lake_prefix}/"):
        found = None if path in named else objects.stat(path)
        if found is not None and found.last_modified <= before:
            doomed.append(path)
    for path in objects.list(TEMPORARY):
        found = objects.stat(path)
        if found is not None and (store.now() - found.last_modified).total_seconds() > TEMPORARY_S:
            doomed.append(path)
    objects.delete(doomed)
    return len(doomed)


# -- files -----------------------------------------------------------------------------------------


class _Rewriting:
    """The files of one manifest, without the people of a sweep."""

    def __init__(self, store: ShardStore, swept: Swept, report: Report) -> None:
        self._objects, self._maintenance = store.objects, store.maintenance
        self._swept, self._report = swept, report
        self._texts = pattern(swept.names, swept.people)
        self._quick = quick_pattern(swept.names, swept.people)
        self._bodies = body_pattern(swept.names, swept.people)

    def run(self) -> dict[str, tuple[FileEntry, ...]]:
        files = dict(self._maintenance.manifest.files)
        for name, entries in list(files.items()):
            if name == KEYS or name not in TABLES or not entries:
                continue
            with self._database() as (database, scratch):
                if name == EVENTS.name:
                    left = self._events(database, scratch, entries)
                else:
                    left = self._state(database, scratch, TABLES[name], entries)
            files[name] = tuple(left)
        return {name: entries for name, entries in files.items() if entries}

    @contextmanager
    def _database(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
        with tempfile.TemporaryDirectory(prefix="manta-erasure-") as scratch:
            config = {
                "threads": "1",
                "memory_limit": f"{self._maintenance.settings.maintenance_memory_mb}MB",
                "temp_directory": str(Path(scratch) / "spill"),
            }
            database = connect(config)
            try:
                self._tell(database)
                yield database, Path(scratch)
            finally:
                database.close()

    def _tell(self, database: duckdb.DuckDBPyConnection) -> None:
        people, names = self._swept.people, self._swept.names
        tables = {
            "people": pa.table(
                {
                    "id": pa.array(list(people), pa.int64()),
                    "request": pa.array(list(people.values()), pa.string()),
                }
            ),
            "names": pa.table(
                {
                    "kind": pa.array([name.kind for name in names], pa.string()),
                    "value": pa.array([name.value for name in names], pa.string()),
                }
            ),
            "merges": pa.table({"id": pa.array(self._swept.merges, pa.int64())}),
            "patterns": pa.table({"texts": [self._texts], "bodies": [self._bodies]}),
        }
        for name, table in tables.items():
            database.register("_given", table)
            database.execute(f"CREATE TEMP TABLE {name} AS FROM _given")
            database.unregister("_given")

    # -- events ------------------------------------------------------------------------------------

    def _events(
        self, database: duckdb.DuckDBPyConnection, scratch: Path, entries: Sequence[FileEntry]
    ) -> list[FileEntry]:
        left = []
        for entry in entries:
            with local_files(self._objects, [entry]) as paths:
                kept = self._event_file(database, scratch, entry, paths[0])
            if kept is not None:
                left.append(kept)
        return left

    def _event_file(
        self, database: duckdb.DuckDBPyConnection, scratch: Path, entry: FileEntry, path: str
    ) -> FileEntry | None:
        typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in EVENTS.columns)
        source = f"(SELECT {typed} WHERE false UNION ALL BY NAME SELECT * FROM {PARQUET})"
        named = " OR ".join(self._names_them(column) for column in EVENT_TEXTS)
        gone = (
            "(subscriber_id IN (SELECT id FROM people) OR merge_id IN (SELECT id FROM merges)"
            f" OR (subscriber_id = {NOBODY} AND coalesce({named}, FALSE)))"
        )
        gone = f"coalesce({gone}, FALSE)"
        named = f"coalesce({named}, FALSE)"
        found = database.execute(
            f"SELECT subscriber_id, {gone}, count(*) FROM {source}"
            f" WHERE {gone} OR {named} GROUP BY ALL",
            [[path]],
        ).fetchall()
        if not found:
            return entry
        self._count(EVENTS.name, [(id, rows) for id, is_gone, rows in found if is_gone])
        self._count_texts(sum(rows for _, is_gone, rows in found if not is_gone))
        if sum(rows for _, is_gone, rows in found if is_gone) == entry.rows:
            return None
        text = f"'{_quoted(self._texts)}'"
        shown = ", ".join(
            f"CASE WHEN {self._names_them(c)} THEN {replaced(c, text)} ELSE {c} END AS {c}"
            for c in EVENT_TEXTS
        )
        query = f"SELECT * REPLACE ({shown}) FROM {source} WHERE NOT {gone}"
        return self._written(database, scratch, entry, query, [[path]], is_event=True)

    # -- state -------------------------------------------------------------------------------------

    def _state(
        self,
        database: duckdb.DuckDBPyConnection,
        scratch: Path,
        table: Table,
        entries: Sequence[FileEntry],
    ) -> list[FileEntry]:
        matched, theirs = self._conditions(table)
        if not matched:
            return list(entries)
        key = ", ".join(table.key)
        typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in table.columns)
        with local_files(self._objects, entries) as paths:
            source = (
                f"(SELECT {typed}, NULL::BIGINT AS {SEQUENCE}, NULL::BOOLEAN AS {DELETED}"
                f" WHERE false UNION ALL BY NAME SELECT * FROM {PARQUET})"
            )
            database.execute(
                f"CREATE TEMP TABLE doomed AS SELECT DISTINCT {key} FROM {source}"
                f" WHERE coalesce({matched}, FALSE)",
                [paths],
            )
            # Of the keys concerned all rows go but a last one that lives and is not theirs.
            database.execute(
                f"CREATE TEMP TABLE gone AS SELECT {key}, {SEQUENCE}, request, concerned FROM ("
                f"SELECT {key}, {SEQUENCE}, {DELETED}, {_request(table)} AS request,"
                f" coalesce({matched}, FALSE) AS concerned, coalesce({theirs}, FALSE) AS theirs,"
                f" row_number() OVER (PARTITION BY {key} ORDER BY {SEQUENCE} DESC) AS place"
                f" FROM {source} SEMI JOIN doomed USING ({key}))"
                f" WHERE place > 1 OR {DELETED} OR theirs",
                [paths],
            )
            left = [
                self._state_file(database, scratch, table, entry, path)
                for entry, path in zip(entries, paths, strict=True)
            ]
        return [entry for entry in left if entry is not None]

    def _state_file(
        self,
        database: duckdb.DuckDBPyConnection,
        scratch: Path,
        table: Table,
        entry: FileEntry,
        path: str,
    ) -> FileEntry | None:
        using = ", ".join([*table.key, SEQUENCE])
        found = database.execute(
            f"SELECT g.request, g.concerned, count(*) FROM {PARQUET} JOIN gone g USING ({using})"
            " GROUP BY ALL",
            [[path]],
        ).fetchall()
        if not found:
            return entry
        by_request: dict[str, int] = {}
        for request, _, rows in found:
            if request is not None:
                by_request[request] = by_request.get(request, 0) + rows
        for request, rows in by_request.items():
            self._report.add(request, table.name, rows, 1)
        self._count_texts(sum(rows for request, hit, rows in found if request is None and hit))
        if sum(rows for *_, rows in found) == entry.rows:
            return None
        key = ", ".join(table.key)
        query = f"SELECT * FROM {PARQUET} ANTI JOIN gone USING ({using}) ORDER BY {key}"
        return self._written(database, scratch, entry, query, [[path]], is_event=False)

    def _conditions(self, table: Table) -> tuple[str, str]:
        """Which rows make their key one to look at, and which are the people's own."""
        ids = "(SELECT id FROM people)"
        theirs, others = [], []
        if "subscriber_id" in table.column_names:
            theirs.append(f"subscriber_id IN {ids}")
        if table is ALIASES:
            theirs.append(f"from_id IN {ids} OR to_id IN {ids}")
        if table is IDENTITIES:  # a tombstone has no more than its key, which is a name
            others.append(f"({DELETED} AND (kind, value) IN (SELECT (kind, value) FROM names))")
        if table is SUPPRESSIONS:
            others.append("address IN (SELECT value FROM names WHERE kind IN ('email', 'phone'))")
        if table is QUARANTINE:
            pattern_of = f"'{_quoted(self._bodies)}'"
            others += [f"regexp_matches({c}, {pattern_of})" for c in ("body", "problem")]
            visitors = "(SELECT list(value) FROM names WHERE kind = 'anonymous_id')"
            others.append(f"list_has_any({IN_BODIES.format(column='body')}, {visitors})")
        others += [self._names_them(column) for column in TEXTS.get(table.name, ())]
        if table.name == "ledger":
            others.append("lower(send_to) IN (SELECT value FROM names WHERE kind = 'email')")
        parts = [f"coalesce({part}, FALSE)" for part in (*theirs, *others)]
        mine = [f"coalesce({part}, FALSE)" for part in theirs]
        return " OR ".join(parts), " OR ".join(mine) or "FALSE"

    def _names_them(self, column: str) -> str:
        quick, exact = _quoted(self._quick), _quoted(self._texts)
        return (
            f"(coalesce(regexp_matches({column}, '{quick}'), FALSE)"
            f" AND regexp_matches({column}, '{exact}'))"
        )

    # -- both --------------------------------------------------------------------------------------

    def _written(
        self,
        database: duckdb.DuckDBPyConnection,
        scratch: Path,
        entry: FileEntry,
        query: str,
        params: list[Any],
        *,
        is_event: bool,
    ) -> FileEntry | None:
        target = scratch / "rewritten.parquet"
        made = write_file(database, query, params, target, is_event)
        if made is None:
            return None
        stored = self._maintenance.store_rewritten(entry, made)
        target.unlink()
        return stored

    def _count(self, place: str, found: list[tuple[int, int]]) -> None:
        by_request: dict[str, int] = {}
        for id, rows in found:
            request = self._swept.people.get(id)
            if request is not None:
                by_request[request] = by_request.get(request, 0) + rows
            else:
                self._count_texts(rows)
        for request, rows in by_request.items():
            self._report.add(request, place, rows, 1)

    def _count_texts(self, rows: int) -> None:
        """Texts of others are looked through for all requests together."""
        if rows:
            for request in self._report.places:
                self._report.add(request, TEXT, rows, 1)


def _request(table: Table) -> str:
    """The request that a row goes with, by the person it names."""
    found = "(SELECT any_value(request) FROM people WHERE id = {0})"
    if "subscriber_id" in table.column_names:
        return found.format("subscriber_id")
    if table is ALIASES:
        return f"coalesce({found.format('from_id')}, {found.format('to_id')})"
    return "NULL::VARCHAR"


def _quoted(text: str) -> str:
    return text.replace("'", "''")


# -- what is no shard's: results of jobs -----------------------------------------------------------


def rewrite_runs(
    objects: ObjectStore, workspace: str, people: Mapping[int, str], texts: str
) -> Report:
    """Take the people out of what jobs have written under ``runs/``: Parquet files are written anew
    without their rows, other files that name them are deleted."""
    report = Report(datetime.min)
    for path in objects.list(f"{workspace}/runs/"):
        if path.endswith(".parquet"):
            _rewrite_run(objects, path, people, report)
        else:
            data = objects.get(path) or b""
            with connect({}) as database:
                row = database.execute(
                    "SELECT regexp_matches(?, ?)", [data.decode("utf-8", "replace"), texts]
                ).fetchone()
            if row and row[0]:
                objects.delete([path])
                for request in set(people.values()):
                    report.add(request, "runs", 0, 1)
    return report


def _rewrite_run(
    objects: ObjectStore, path: str, people: Mapping[int, str], report: Report
) -> None:
    with tempfile.TemporaryDirectory(prefix="manta-runs-") as scratch:
        local = objects.local_path(path) or str(Path(scratch) / "run.parquet")
        if objects.local_path(path) is None:
            objects.fetch(path, local)
        if "subscriber_id" not in pq.read_schema(local).names:
            return
        with connect({"threads": "1"}) as database:
            ids = [list(people)]
            found = database.execute(
                "SELECT subscriber_id, count(*) FROM read_parquet(?)"
                " WHERE subscriber_id IN (SELECT unnest(?::BIGINT[])) GROUP BY 1",
                [local, *ids],
            ).fetchall()
            if not found:
                return
            target = Path(scratch) / "rewritten.parquet"
            database.execute(
                f"COPY (SELECT * FROM read_parquet(?) WHERE subscriber_id IS NULL OR"
                " subscriber_id NOT IN (SELECT unnest(?::BIGINT[])))"
                f" TO '{_quoted(str(target))}' (FORMAT parquet, COMPRESSION zstd)",
                [local, *ids],
            )
            objects.put_file(path, str(target))
        by_request: dict[str, int] = {}
        for id, rows in found:
            by_request[people[id]] = by_request.get(people[id], 0) + rows
        for request, rows in by_request.items():
            report.add(request, "runs", rows, 1)
