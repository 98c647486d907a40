"""How a shard comes to rewrite its files for erased people, and when.

Owns nothing that counts: who is to be erased stands in the shard's state, what was done in its
manifest (``manta.store.erasure``). ``ErasureHook`` wakes the shard 44 hours after the oldest
request; an operator may ask for it at once. A pass first does what is no shard's own (``Around``),
then takes the shard's maintenance for itself: commands and reads go on meanwhile, a flush waits.

A crash anywhere leaves the request in the state, or, once the manifest is published, a purge to be
done: ``start`` looks for both. A report to the Catalog that is lost is asked for again by whoever
looks at the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from actors.handles import Handles
from manta.clock import Clock
from manta.command import Command, Context, Database, Push
from manta.errors import NotReady
from manta.ids import bucket_of_subscriber, shard_of_bucket
from manta.privacy.commands import Erase
from manta.privacy.names import Name, pattern
from manta.privacy.queries import erasures
from manta.store import erasure
from manta.store.erasure import READERS_HAVE, REWRITE_AFTER, Report
from manta.store.lake import person_page
from manta.store.objects import ObjectStore
from manta.store.shard import ShardStore, Stopped

T = TypeVar("T")
logger = logging.getLogger("manta.actors")
RETRY_S = 10.0
HELD_WAIT_S = 60.0  # for messages that Senders have, before they are counted as uncertain
HELD_LOOK_S = 0.5
AGAIN = timedelta(minutes=10)  # the hook asks again, in case the push was lost
CALL_S = 30.0
REQUESTS_AT_ONCE = 100  # looked for together in results of jobs
PURGE_LOOK_S = 600.0


class HookResult(NamedTuple):
    """See ``manta.store.shard.HookResult``."""

    pushes: tuple[Push, ...]
    commands: tuple[Command, ...]
    next_wake: datetime | None


class ErasureHook:
    """Asks the shard's own actor to rewrite when it is time."""

    tables = frozenset({"erasures"})
    min_gap_s = 0.0

    def after_commit(self, database: Database, context: Context) -> HookResult:
        ((oldest,),) = database.rows("SELECT min(requested_at) FROM erasures")
        if oldest is None:
            return HookResult((), (), None)
        if oldest + REWRITE_AFTER > context.now:
            return HookResult((), (), oldest + REWRITE_AFTER)
        wake = Push(f"shard-{context.shard:03d}", "rewrite_erasures", ())
        return HookResult((wake,), (), context.now + AGAIN)


class Around(Protocol):
    """What of an erasure is done outside the shard, before its files are rewritten. May be called
    again; raises a retryable error where it has to be tried later."""

    async def __call__(self, shard: int, waiting: Sequence[dict[str, Any]]) -> Report: ...


class Threads(NamedTuple):
    """The shard's own threads."""

    writer: ThreadPoolExecutor
    maintenance: ThreadPoolExecutor
    readers: ThreadPoolExecutor


class Erasing:
    """The passes of one shard. ``maintaining()`` keeps flush and compaction away for the time of a
    block; ``tell(request, report)`` brings a report to the Catalog; ``ended(reason)``: the store
    has stopped."""

    def __init__(
        self,
        store: ShardStore,
        threads: Threads,
        clock: Clock,
        around: Around | None,
        maintaining: Callable[[], AbstractAsyncContextManager[None]],
        tell: Callable[[str, dict[str, Any]], None],
        ended: Callable[[str], None],
    ) -> None:
        self._store, self._threads, self._clock = store, threads, clock
        self._around, self._maintaining = around, maintaining
        self._tell, self._ended = tell, ended
        self._lock = asyncio.Lock()
        self._published = asyncio.Event()
        self.error = ""

    async def purge_when_due(self) -> None:
        """After a recovery, and for as long as the shard lives: purges when their time has come."""
        while True:
            since = erasure.unpurged_since(self._store.maintenance.manifest)
            if since is None:
                self._published.clear()
                await self._published.wait()
                continue
            wait_s = (since + READERS_HAVE - self._clock.now()).total_seconds()
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, PURGE_LOOK_S))
            else:
                await self._patiently(self._purge_due)

    async def run(self, at_once: bool) -> None:
        """One pass, tried until it has succeeded; a call during a pass has another one follow.

        ``at_once``: what readers of the lake may still be reading is deleted as well.
        """
        async with self._lock:
            await self._patiently(self._pass)
            if at_once:
                await self._patiently(lambda: self._purge(None))

    async def report(self, request: str) -> dict[str, Any]:
        """How far this shard is with a request: ``waiting``: its rows are still in the state;
        ``unpurged``: files are rewritten, older ones still there; ``report``: of what was done."""
        waiting = await self._waiting()
        manifest = self._store.maintenance.manifest
        return {
            "waiting": any(each["request_id"] == request for each in waiting),
            "unpurged": erasure.unpurged_since(manifest) is not None,
            "report": erasure.reports_of(manifest).get(request),
            "error": self.error,
        }

    async def page(self, table: str, people: Sequence[int], after: int, limit: int) -> pa.Table:
        """Rows of the lake about the people, the next ``limit`` after so many, by time; with the
        first page all that was committed until now is brought to the lake."""
        if after == 0:
            async with self._maintaining():
                await self._in(self._threads.maintenance, self._store.maintain)
                await self._in(self._threads.writer, lambda: self._store.freeze(even_if_early=True))
                await self._in(self._threads.maintenance, self._store.maintain)
        store, manifest = self._store, self._store.maintenance.manifest
        return await self._in(
            self._threads.readers,
            lambda: person_page(store.objects, manifest, table, people, after, limit),
        )

    async def _patiently(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
                self.error = ""
                return
            except Stopped as stopped:
                self._ended(str(stopped))
                return
            except Exception as error:  # the loop's edge
                self.error = f"{type(error).__name__}: {error}"
                logger.warning("an erasure waits: %s", self.error, exc_info=error)
            await asyncio.sleep(RETRY_S)

    async def _pass(self) -> None:
        waiting = await self._waiting_unheld()
        if not waiting:
            return
        elsewhere = await self._around(self._store.shard, waiting) if self._around else None
        async with self._maintaining():
            await self._in(self._threads.maintenance, self._store.maintain)
            swept = await self._in(self._threads.writer, lambda: erasure.sweep(self._store))
            if swept is None:
                return
            now = self._clock.now()
            await self._in(
                self._threads.maintenance,
                lambda: erasure.rewrite(self._store, swept, now, elsewhere),
            )
            named = await self._in(
                self._threads.maintenance, lambda: erasure.named_in_memory(self._store, swept)
            )
            await self._in(self._threads.writer, lambda: erasure.forget(self._store, swept, named))
        self._published.set()
        if swept.more:
            await self._pass()

    async def _waiting(self) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            reader = self._store.reader()
            try:
                return erasures(reader, self._store.context(), {})
            finally:
                reader.close()

        return await self._in(self._threads.readers, read)

    async def _waiting_unheld(self) -> list[dict[str, Any]]:
        """The requests, when Senders hold nothing of them any more, or after a while anyhow."""
        until_s = self._clock.monotonic() + HELD_WAIT_S
        while True:
            waiting = await self._waiting()
            held = any(each["held"] for each in waiting)
            if not held or self._clock.monotonic() >= until_s:
                return waiting
            await asyncio.sleep(HELD_LOOK_S)

    async def _purge_due(self) -> None:
        await self._purge(self._clock.now() - READERS_HAVE)

    async def _purge(self, until: datetime | None) -> None:
        if erasure.unpurged_since(self._store.maintenance.manifest) is None:
            return
        async with self._maintaining():
            await self._in(self._threads.maintenance, lambda: erasure.purge(self._store, until))
        if erasure.unpurged_since(self._store.maintenance.manifest) is not None:
            return  # the reports of later passes come with their purge
        waiting = {each["request_id"] for each in await self._waiting()}
        for request, report in erasure.reports_of(self._store.maintenance.manifest).items():
            if request not in waiting:
                self._tell(request, report)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)


def around(find: Callable[[], Awaitable[Handles]], objects: ObjectStore) -> Around:
    """What a shard does outside itself.

    The shard of a person brings the erasure to shards that a broken-off request has not reached.
    Shard 0 cleans what is no shard's: journals of Senders, documents of singletons, job results.
    """
    found: list[Handles] = []

    async def work(shard: int, waiting: Sequence[dict[str, Any]]) -> Report:
        if not found:
            found.append(await find())
        handles = found[0]
        for each in waiting:
            home = shard_of_bucket(
                bucket_of_subscriber(min(each["people"])), handles.shards.first_buckets
            )
            if home == shard:
                await _spread(handles, each)
        report = Report(datetime.min)
        if shard == 0:
            await _clean(handles, objects, waiting, report)
        return report

    return work


async def _spread(handles: Handles, request: dict[str, Any]) -> None:
    """Erase in the shards that know nothing of the request; those that are done stay so."""
    name = request["request_id"]
    parts = await handles.shards.call_all("erasure_report", name, deadline_s=CALL_S)
    names = tuple(Name(*each) for each in request["names"])
    command = Erase(None, name, tuple(request["people"]), names)
    for shard, part in enumerate(parts):
        if not part["waiting"] and part["report"] is None:
            await handles.shards.execute(shard, command, CALL_S)


async def _clean(
    handles: Handles, objects: ObjectStore, waiting: Sequence[dict[str, Any]], report: Report
) -> None:
    people = {int(id): str(each["request_id"]) for each in waiting for id in each["people"]}
    ids = sorted(people)
    for sender in handles.senders:
        left = await sender.call("forget", ids, deadline_s=CALL_S)
        if left:
            raise NotReady(f"a Sender's journal still needs {left} entries about erased people")
    for singleton in (handles.catalog, handles.director, handles.reputation):
        await singleton.call("forget", ids, deadline_s=CALL_S)
    for request in set(people.values()):
        for place in ("attempt_journals", "documents"):
            report.add(request, place, 0, 0)
    for at in range(0, len(waiting), REQUESTS_AT_ONCE):
        part = waiting[at : at + REQUESTS_AT_ONCE]
        theirs = {int(id): str(each["request_id"]) for each in part for id in each["people"]}
        texts = pattern((Name(*name) for each in part for name in each["names"]), theirs)
        runs = await asyncio.to_thread(
            erasure.rewrite_runs, objects, handles.workspace, theirs, texts
        )
        for request, places in runs.places.items():
            for place, (rows, files) in places.items():
                report.add(request, place, rows, files)
