"""The Throttle: grants permits and connections to Senders, while the journal says that it may.

State of its own is the right to grant (``throttle.authority``), the last law that it heard,
and what the quotas of cold sources have set aside; buckets and connections are rebuilt by starting
empty. A heartbeat is a journal append, and it happens on demand: a grant that finds the last one
too old waits for a new one, one that finds it ageing starts one beside. So a busy Throttle appends
each two seconds and an idle one never. What quotas set aside, and a new law, go with the heartbeat.

On crash: the next incarnation appends its epoch entry, which ends the power of this one, and grants
nothing for ``TAKEOVER_WAIT_S``. An append that is refused ends the process. Reputation is not
needed: the last law holds until there is another, and actions end by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from actors.journaled import JournaledActor
from manta.clock import Clock
from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation.law import Law
from manta.delivery.throttle.authority import Authority
from manta.delivery.throttle.budgets import NO_GRANT, Budgets, Connections, Grant
from manta.delivery.throttle.ways import Ways
from manta.errors import (
    Damaged,
    Fenced,
    InvalidRequest,
    NotReady,
    OutcomeUnknown,
    StoreUnavailable,
)
from manta.store.documents import Change, Documents

COLLECTION = "throttle"
HEARTBEAT = "heartbeat"
LAW = "law"
WARMUP = "warmup"  # a collection: one document for each quota
logger = logging.getLogger("manta.actors.throttle")


class Throttle(JournaledActor):
    """``sources``: the limits of each egress source. Deadlines hold on this process's clock."""

    role = "throttle"

    def __init__(
        self,
        documents: Documents,
        exit_process: Callable[[str], Any],
        clock: Clock,
        sources: Mapping[str, Limits],
        ways: Ways | None = None,
    ) -> None:
        super().__init__(documents, exit_process)
        self._clock = clock
        self._sources = sources
        self._ways = ways or Ways()
        self._authority = Authority(0.0, True)
        self._budgets = Budgets(sources, self._ways, empty_at_s=0.0)
        self._unsaved_law: Law | None = None
        self._beat: asyncio.Task[None] | None = None

    async def recovered(self) -> None:
        """The epoch entry is stored: from now on nobody else grants for longer than its wait."""
        now_s = self._clock.monotonic()
        has_predecessor = self._documents.journal.epoch > 1
        self._authority = Authority(now_s, has_predecessor)
        ready_s = now_s + self._authority.wait_s(now_s)
        document = self._documents.get(COLLECTION, LAW)
        self._budgets = Budgets(
            self._sources,
            self._ways,
            empty_at_s=ready_s if has_predecessor else None,
            law=Law.from_document(document) if document else None,
            reserves=self._documents.list(WARMUP),
        )

    async def grant(
        self, sender: str, lane: tuple[str, ...], wanted: int, unused: int = 0
    ) -> Grant:
        """Permits for a Sender on a lane; good from the moment at which it asked.

        ``unused``: permits that it had on this lane and will never use. A call whose outcome is
        unknown is not repeated: its permits lapse.
        """
        self._require_ready()
        wait_s = self._authority.wait_s(self._clock.monotonic())
        if wait_s:
            return NO_GRANT._replace(wait_s=wait_s)
        if not await self._confirmed():
            return NO_GRANT
        grant = self._grant(sender, lane, wanted, unused)
        if self._budgets.warmup.has_proposals:
            beat = self._start_beat()
            if not grant.permits:  # perhaps for want of a quota set aside
                await asyncio.shield(beat)
                if not await self._confirmed():
                    return NO_GRANT
                return self._grant(sender, lane, wanted, 0)
        return grant

    def _grant(self, sender: str, lane: tuple[str, ...], wanted: int, unused: int) -> Grant:
        now_s, now = self._clock.monotonic(), self._clock.now()
        return self._budgets.grant(sender, Lane(*lane), wanted, now_s, unused, now)

    async def hold(self, sender: str, lane: tuple[str, ...], wanted: int) -> Connections:
        """How many connections the Sender may hold on the lane (0 wanted: it closed them all)."""
        self._require_ready()
        if wanted and (
            self._authority.wait_s(self._clock.monotonic()) or not await self._confirmed()
        ):
            raise NotReady("the Throttle has just taken over and does not grant yet")
        now_s, now = self._clock.monotonic(), self._clock.now()
        return self._budgets.hold(sender, Lane(*lane), wanted, now_s, now)

    async def forget(self, sender: str) -> None:
        """A Sender that is known to be dead has no connections any more."""
        self._budgets.forget(sender)

    async def law(self, document: Mapping[str, Any]) -> None:
        """Reputation says what holds. It holds at once, and after a restart too; an older one than
        the last is ignored."""
        self._require_ready()
        try:
            law = Law.from_document(document)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequest(f"not a law: {error!r:.200}", path="law") from None
        if law == self._budgets.law or not self._budgets.obey(law):
            return
        self._unsaved_law = law
        self._start_beat()

    async def status(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        return {
            "ready": self._ready,
            "epoch": self._documents.journal.epoch if self._ready else 0,
            "takeover_wait_s": round(self._authority.wait_s(now_s), 1) if self._ready else None,
            "may_grant": self._authority.may_grant(now_s),
            **self._budgets.status(now_s, self._clock.now()),
        }

    # -- the journal -------------------------------------------------------------------------------

    async def _confirmed(self) -> bool:
        """Whether this process may grant now, after a heartbeat where one is needed."""
        if self._authority.wants_heartbeat(self._clock.monotonic()):
            beat = self._start_beat()
            if not self._authority.may_grant(self._clock.monotonic()):
                await asyncio.shield(beat)
        return self._authority.may_grant(self._clock.monotonic())

    def _start_beat(self) -> asyncio.Task[None]:
        """The heartbeat that is under way, or a new one. One under way is followed by another
        where something is to be stored that came too late for it."""
        if self._beat is None or self._beat.done():
            self._beat = asyncio.ensure_future(self._heartbeats())
        return self._beat

    async def _heartbeats(self) -> None:
        while await self._heartbeat():
            if self._unsaved_law is None and not self._budgets.warmup.has_proposals:
                return

    async def _heartbeat(self) -> bool:
        """One append. Where the store does not answer, no grants follow, and that is all."""
        began_s = self._clock.monotonic()
        budgets, law = self._budgets, self._unsaved_law
        reserves = budgets.warmup.proposals()
        beat: list[Change] = [(COLLECTION, HEARTBEAT, {"epoch": self._documents.journal.epoch})]
        beat += [(WARMUP, id, document) for id, document in reserves]
        if law is not None:
            beat.append((COLLECTION, LAW, law.to_document()))
        try:
            await self._in_thread(lambda: self._documents.change(beat))
        except StoreUnavailable as error:
            logger.warning("throttle: %s", error)
            budgets.warmup.not_stored(reserves)
            return False
        except (Fenced, OutcomeUnknown, Damaged) as error:
            self._exit_process(f"{self.role}: {error}")
            return False
        budgets.warmup.stored(reserves)
        if self._unsaved_law is law:
            self._unsaved_law = None
        self._authority = self._authority.confirmed(began_s)
        return True
