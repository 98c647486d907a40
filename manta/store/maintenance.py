"""Flush, compaction and garbage of one shard, beside the writer.

Owns the shard's manifests. One thread calls this; it shares with the writer only the frozen tail
(``manta.store.flush.Snapshot``) that is handed over. Order: files → manifest → truncate the
journal. On crash between any two of them the newest manifest and the journal still say everything;
files that no manifest names are deleted a day later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from manta.clock import Clock
from manta.schema import EVENTS
from manta.store.compaction import Merge, MergedFile, plan, run_merge, since
from manta.store.flush import KEYS, Snapshot
from manta.store.journal import Journal
from manta.store.keys import KEPT
from manta.store.load import local_files
from manta.store.manifest import FileEntry, Manifest, Manifests
from manta.store.objects import ObjectStore
from manta.store.settings import ShardSettings

Files = dict[str, tuple[FileEntry, ...]]
GARBAGE_EVERY_S = 6 * 3600.0
EXPIRE_EVERY_S = 24 * 3600.0
OVERDUE = timedelta(days=31)
_MERGES_MAX = 8  # in one call, so that a flush never waits long


@dataclass
class MaintenanceFigures:
    """Counts since the start of this process; sizes are of Parquet files."""

    flushes: int = 0
    flushed_bytes: int = 0
    merges: int = 0
    merged_bytes: int = 0
    flush_s: float = 0.0
    live_files: int = 0
    live_bytes: int = 0

    @property
    def write_amplification(self) -> float:
        """Bytes written to the lake for each byte that was flushed."""
        if not self.flushed_bytes:
            return 0.0
        return (self.flushed_bytes + self.merged_bytes) / self.flushed_bytes


class Maintenance:
    """See the module.

    Raises ``StoreUnavailable`` or ``OutcomeUnknown`` (call again: both are safe to repeat),
    ``Fenced`` (stop), ``Damaged``.
    """

    def __init__(
        self,
        objects: ObjectStore,
        manifests: Manifests,
        journal: Journal,
        lake_prefix: str,
        settings: ShardSettings,
        clock: Clock,
    ) -> None:
        self._objects, self._manifests, self._journal = objects, manifests, journal
        self._lake_prefix, self.settings, self._clock = lake_prefix, settings, clock
        self.figures = MaintenanceFigures()
        self.manifest = Manifest(0, "", 0, 0)
        self._merges = 0
        self._garbage_at_s = clock.monotonic() + GARBAGE_EVERY_S
        self._expire_at_s = 0.0

    def start_from(self, manifest: Manifest) -> None:
        """What recovery found, with this owner's epoch."""
        self.manifest = manifest
        self._count()

    def flush(self, snapshot: Snapshot) -> None:
        """Make a frozen tail durable as files and let the journal go up to it."""
        started_s = self._clock.monotonic()
        written = snapshot.write(self._objects, self._lake_prefix)
        files: Files = {table: tuple(entries) for table, entries in self.manifest.files.items()}
        for table, entries in written.items():
            files[table] = (*files.get(table, ()), *entries)
        self.publish(
            replace(self.manifest, journal_sequence=snapshot.sequence, files=self._living(files))
        )
        self.figures.flushes += 1
        self.figures.flushed_bytes += sum(e.size_bytes for es in written.values() for e in es)
        self.figures.flush_s = self._clock.monotonic() - started_s
        self._journal.truncate(snapshot.sequence)

    def compact(self) -> int:
        """Do the merges that are due, a few at most; how many."""
        for done in range(_MERGES_MAX):
            merge = plan(self.manifest.files, self.settings)
            if merge is None:
                return done
            self._do(merge)
        return _MERGES_MAX

    def expire_events(self) -> None:
        """Once a day: events that are past the period leave the files.

        A file goes when all of it is past; one that reaches more than a month behind is written
        anew, so that nothing stays for longer than a month over its time.
        """
        days, now_s = self.settings.event_days, self._clock.monotonic()
        if not days or now_s < self._expire_at_s:
            return
        self._expire_at_s = now_s + EXPIRE_EVERY_S
        bound = datetime.combine(self._clock.now().date(), datetime.min.time())
        bound -= timedelta(days=days)
        events = self.manifest.files.get(EVENTS.name, ())
        kept = [self._since(file, bound) for file in events]
        living = tuple(file for file in kept if file is not None)
        if living != tuple(events):
            files = {**self.manifest.files, EVENTS.name: living}
            self.publish(replace(self.manifest, files={t: f for t, f in files.items() if f}))

    def _since(self, file: FileEntry, bound: datetime) -> FileEntry | None:
        if file.max_time is not None and file.max_time < bound:
            return None
        if file.min_time is None or file.min_time >= bound - OVERDUE:
            return file
        with (
            tempfile.TemporaryDirectory(prefix="manta-expire-") as scratch,
            local_files(self._objects, [file]) as paths,
        ):
            output = since(paths[0], bound, Path(scratch), self.settings.maintenance_memory_mb)
            return None if output is None else self.store_rewritten(file, output)

    def collect_garbage(self) -> None:
        """Every few hours: delete what no manifest has named for a day."""
        if self._clock.monotonic() >= self._garbage_at_s:
            self._manifests.collect_garbage(self._lake_prefix)
            self._garbage_at_s = self._clock.monotonic() + GARBAGE_EVERY_S

    def _do(self, merge: Merge) -> None:
        keys_since = (self._clock.now() - KEPT).date()
        with (
            tempfile.TemporaryDirectory(prefix="manta-merge-") as scratch,
            local_files(self._objects, merge.inputs) as paths,
        ):
            memory_mb = self.settings.maintenance_memory_mb
            outputs = run_merge(merge, paths, Path(scratch), memory_mb, keys_since)
            entries = [self._store(merge, output) for output in outputs]
        part = merge.part
        files = dict(self.manifest.files)
        left = [file for file in files[part.table] if file not in merge.inputs]
        files[part.table] = (*left, *entries)
        self.publish(replace(self.manifest, files=files))
        self.figures.merges += 1
        self.figures.merged_bytes += sum(entry.size_bytes for entry in entries)

    def _store(self, merge: Merge, output: MergedFile) -> FileEntry:
        folder = f"{self._lake_prefix}/{merge.part.table}"
        if output.month:
            folder = f"{folder}/{output.month}"
        sequence_from = min(file.sequence_from for file in merge.inputs)
        sequence_to = max(file.sequence_to for file in merge.inputs)
        return self._put(folder, merge.part.kind, sequence_from, sequence_to, output)

    def store_rewritten(self, file: FileEntry, output: MergedFile) -> FileEntry:
        """Some of a file's rows in a new file in the place of the old one."""
        folder = file.path.rpartition("/")[0]
        return self._put(folder, file.kind, file.sequence_from, file.sequence_to, output)

    def _put(
        self, folder: str, kind: str, sequence_from: int, sequence_to: int, output: MergedFile
    ) -> FileEntry:
        # Never a name that was used before: a manifest of unknown outcome may name that file.
        self._merges += 1
        epoch = self.manifest.epoch
        path = f"{folder}/{epoch:06d}-{sequence_to:012d}-m{self._merges:06d}-{kind}.parquet"
        self._objects.put_file(path, str(output.local))
        return FileEntry(
            path=path,
            rows=output.rows,
            size_bytes=output.size_bytes,
            kind=kind,
            min_time=output.min_time,
            max_time=output.max_time,
            sequence_from=sequence_from,
            sequence_to=sequence_to,
        )

    def _living(self, files: Files) -> Files:
        """Without the files of keys that are all forgotten."""
        oldest = datetime.combine((self._clock.now() - KEPT).date(), datetime.min.time())
        kept = {table: entries for table, entries in files.items() if table != KEYS}
        keys = tuple(e for e in files.get(KEYS, ()) if e.max_time is None or e.max_time >= oldest)
        return kept | ({KEYS: keys} if keys else {})

    def publish(self, manifest: Manifest) -> None:
        """Make this the newest manifest: its files are durable already."""
        self.manifest = self._manifests.publish(manifest)
        self._count()

    def _count(self) -> None:
        entries = list(_entries(self.manifest))
        self.figures.live_files = len(entries)
        self.figures.live_bytes = sum(entry.size_bytes for entry in entries)


def _entries(manifest: Manifest) -> Iterable[FileEntry]:
    return (entry for entries in manifest.files.values() for entry in entries)
