"""The Throttle: grants permits and connections to Senders, while the journal says that it may.

State of its own is only the right to grant (``manta.delivery.throttle.Authority``); buckets and
connections are rebuilt by starting empty. A heartbeat is a journal append, and it happens on
demand: a grant that finds the last one too old waits for a new one, one that finds it ageing starts
one beside. So a busy Throttle appends each two seconds and an idle one never.

On crash: the next incarnation appends its epoch entry, which ends the power of this one, and grants
nothing for ``TAKEOVER_WAIT_S``. An append that is refused ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from actors.journaled import JournaledActor
from manta.clock import Clock
from manta.delivery.lanes import Lane, Limits
from manta.delivery.throttle import NO_GRANT, Authority, Budgets, Connections, Grant
from manta.errors import Damaged, Fenced, NotReady, OutcomeUnknown, StoreUnavailable
from manta.store.documents import Documents

COLLECTION = "throttle"
HEARTBEAT = "heartbeat"


class Throttle(JournaledActor):
    """``sources``: the limits of each egress source. Deadlines hold on this process's clock."""

    role = "throttle"

    def __init__(
        self,
        documents: Documents,
        exit_process: Callable[[str], Any],
        clock: Clock,
        sources: Mapping[str, Limits],
    ) -> None:
        super().__init__(documents, exit_process)
        self._clock = clock
        self._sources = sources
        self._authority = Authority(0.0, True)
        self._budgets = Budgets(sources, empty_at_s=0.0)
        self._beat: asyncio.Task[None] | None = None

    async def recovered(self) -> None:
        """The epoch entry is stored: from now on nobody else grants for longer than its wait."""
        now_s = self._clock.monotonic()
        has_predecessor = self._documents.journal.epoch > 1
        self._authority = Authority(now_s, has_predecessor)
        ready_s = now_s + self._authority.wait_s(now_s)
        self._budgets = Budgets(self._sources, empty_at_s=ready_s if has_predecessor else None)

    async def grant(
        self, sender: str, lane: tuple[str, str], wanted: int, unused: int = 0
    ) -> Grant:
        """Permits for a Sender on a lane; good from the moment at which it asked.

        ``unused``: permits of its last grant on this lane that it will never use. A call whose
        outcome is unknown is not repeated: its permits lapse.
        """
        self._require_ready()
        wait_s = self._authority.wait_s(self._clock.monotonic())
        if wait_s:
            return NO_GRANT._replace(wait_s=wait_s)
        if not await self._confirmed():
            return NO_GRANT
        return self._budgets.grant(sender, Lane(*lane), wanted, self._clock.monotonic(), unused)

    async def hold(self, sender: str, lane: tuple[str, str], wanted: int) -> Connections:
        """How many connections the Sender may hold on the lane (0 wanted: it closed them all)."""
        self._require_ready()
        if wanted and (
            self._authority.wait_s(self._clock.monotonic()) or not await self._confirmed()
        ):
            raise NotReady("the Throttle has just taken over and does not grant yet")
        return self._budgets.hold(sender, Lane(*lane), wanted, self._clock.monotonic())

    async def forget(self, sender: str) -> None:
        """A Sender that is known to be dead has no connections any more."""
        self._budgets.forget(sender)

    async def status(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        return {
            "ready": self._ready,
            "epoch": self._documents.journal.epoch if self._ready else 0,
            "takeover_wait_s": round(self._authority.wait_s(now_s), 1) if self._ready else None,
            "may_grant": self._authority.may_grant(now_s),
            **self._budgets.status(now_s),
        }

    async def _confirmed(self) -> bool:
        """Whether this process may grant now, after a heartbeat where one is needed."""
        if self._authority.wants_heartbeat(self._clock.monotonic()):
            if self._beat is None or self._beat.done():
                self._beat = asyncio.ensure_future(self._heartbeat())
            if not self._authority.may_grant(self._clock.monotonic()):
                await asyncio.shield(self._beat)
        return self._authority.may_grant(self._clock.monotonic())

    async def _heartbeat(self) -> None:
        """One append. Where the store does not answer, no grants follow, and that is all."""
        began_s = self._clock.monotonic()
        beat = [(COLLECTION, HEARTBEAT, {"epoch": self._documents.journal.epoch})]
        try:
            await self._in_thread(lambda: self._documents.change(beat))
        except StoreUnavailable:
            return
        except (Fenced, OutcomeUnknown, Damaged) as error:
            self._exit_process(f"{self.role}: {error}")
            return
        self._authority = self._authority.confirmed(began_s)
