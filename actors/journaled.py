"""What the Catalog and the Director share: a journaled singleton that decides one at a time.

State is ``Documents`` (journal, fence, snapshot). Its calls block, so they run on the actor's one
storage thread; an ``asyncio.Lock`` lets one decision at a time read, decide and journal. A decision
that has begun ends, whatever becomes of its caller: the next one reads what it has journaled. Until
the recovery is done every call answers ``NotReady``; a fence or an undecided append ends the
process.

An answer is stored only with a key, for the caller who asks again under it within 48 h. So a method
whose answer holds a secret takes no key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from manta.definitions import Defined
from manta.errors import Damaged, Fenced, NotReady, OutcomeUnknown, StoreUnavailable
from manta.store.documents import Documents, Remembered

RECOVERY_RETRY_S = 1.0
T = TypeVar("T")
logger = logging.getLogger("manta.actors")


class JournaledActor:
    """Base of singletons whose state is documents. ``exit_process`` must not return."""

    role = ""

    def __init__(self, documents: Documents, exit_process: Callable[[str], Any]) -> None:
        self._documents = documents
        self._exit_process = exit_process
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.role)
        self._lock = asyncio.Lock()
        self._ready = False

    async def start(self) -> None:
        """Recover, trying again while the store, or who else is needed, does not answer."""
        while True:
            try:
                if not self._ready:
                    await self._in_thread(self._documents.recover)
                    self._ready = True
                await self.recovered()
                return
            except (StoreUnavailable, NotReady) as error:
                logger.warning("%s waits: %s", self.role, error)
                await asyncio.sleep(RECOVERY_RETRY_S)

    async def recovered(self) -> None:
        """Called after the recovery, again where it raised a retryable error."""

    async def get(self, collection: str, id: str) -> dict[str, Any] | None:
        self._require_ready()
        return self._documents.get(collection, id)

    async def list(self, collection: str) -> list[dict[str, Any]]:
        self._require_ready()
        return list(self._documents.list(collection))

    async def forget(self, people: Sequence[int]) -> int:
        """Take erased people's ids out of the documents and the store; see ``Documents.forget``."""
        self._require_ready()

        async def forget() -> int:
            async with self._lock:
                try:
                    return await self._in_thread(lambda: self._documents.forget(people))
                except (Fenced, OutcomeUnknown, Damaged) as error:
                    self._exit_process(f"{self.role}: {error}")
                    raise

        return await asyncio.shield(forget())

    def remembered(self, key: str | None) -> Remembered | None:
        """What was done under this key within the last 48 h."""
        self._require_ready()
        return None if key is None else self._documents.remembered(key)

    async def decide(self, decision: Callable[[], Defined], key: str | None = None) -> Any:
        """Run one decision, journal what it changes, and give its answer.

        A key that was used before gives the answer of that time.
        """
        return await asyncio.shield(self._decide(decision, key))

    async def _decide(self, decision: Callable[[], Defined], key: str | None) -> Any:
        async with self._lock:
            earlier = self.remembered(key)
            if earlier is not None:
                return earlier.answer
            defined = decision()
            if not defined.changes:
                return defined.answer
            answer = None if key is None else defined.answer
            try:
                await self._in_thread(lambda: self._documents.change(defined.changes, key, answer))
            except (Fenced, OutcomeUnknown, Damaged) as error:
                self._exit_process(f"{self.role}: {error}")
                raise
            return defined.answer

    def _require_ready(self) -> None:
        if not self._ready:
            raise NotReady(f"{self.role} is recovering")

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
