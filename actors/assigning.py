"""Who sends what: lanes with due rows are given to Senders, as the shards report them.

Owns the shards' last reports of work, in memory alone: shards report again whatever is lost, and a
Director that has just started asks them. **Invariant:** a report, or a Sender that has become
ready, is followed by a round of assigning that begins after it; a lane that nobody takes is offered
again. Assigning twice is harmless: a Sender that has the lane looks again for rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from actors.handles import Calls
from manta.clock import Clock
from manta.delivery.directing import choose_senders
from manta.delivery.hooks import Work

ASSIGN_TIMEOUT_S = 3.0
GATHER_S = 0.02
AGAIN_S = 1.0
SILENT_S = 30.0  # a Sender that did not take a lane comes last for so long
logger = logging.getLogger("manta.actors")


class Assigner:
    """``senders`` are the roles that may be asked."""

    def __init__(self, calls: Calls, clock: Clock, senders: Sequence[str]) -> None:
        self.reports: dict[int, list[Work]] = {}
        self._calls = calls
        self._clock = clock
        self._senders = senders
        self._silent_until_s: dict[str, float] = {}
        self._wanted = False
        self._round: asyncio.Task[None] | None = None

    def report(self, shard: int, report: list[Work]) -> set[int]:
        """A shard's work, all of it; the campaigns of which nothing is pending any more."""
        before, self.reports[shard] = self.reports.get(shard, []), report
        if any(work.due for work in report):
            self._assign_soon()
        pending = {work.campaign_id for each in self.reports.values() for work in each}
        return {work.campaign_id for work in before} - pending

    def sender_ready(self, sender: str) -> None:
        """It has started, or started again, and has no lanes."""
        self._silent_until_s.pop(sender, None)
        self._assign_soon()

    async def stop(self) -> None:
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)

    def _assign_soon(self) -> None:
        self._wanted = True
        if self._round is None or self._round.done():
            self._round = asyncio.ensure_future(self._assign())

    async def _assign(self) -> None:
        """Rounds until nobody has asked for another one meanwhile and every lane is taken."""
        pause_s = GATHER_S
        while self._wanted:
            await asyncio.sleep(pause_s)
            self._wanted = False  # what comes from here on is for the next round
            lanes = self._due_lanes()
            taken = await asyncio.gather(*(self._assign_lane(*lane) for lane in lanes))
            self._wanted |= not all(taken)
            pause_s = GATHER_S if all(taken) else AGAIN_S

    def _due_lanes(self) -> list[tuple[str, int, list[int]]]:
        """Source, due rows and shards of each lane.

        A relay takes every domain, so the site of its lane is the source itself.
        """
        due: dict[str, dict[int, int]] = {}
        for shard, report in self.reports.items():
            for work in report:
                if work.due:
                    shards = due.setdefault(work.source, {})
                    shards[shard] = shards.get(shard, 0) + work.due
        return [(source, sum(rows.values()), sorted(rows)) for source, rows in due.items()]

    async def _assign_lane(self, source: str, rows: int, shards: list[int]) -> bool:
        """Give a lane to its Senders, and to others where those are silent. Whether one took it."""
        now_s = self._clock.monotonic()
        wanted = choose_senders(source, source, rows, self._senders)
        others = [sender for sender in self._senders if sender not in wanted]
        order = sorted((*wanted, *others), key=lambda s: self._silent_until_s.get(s, now_s) > now_s)
        taken = 0
        while order and taken < len(wanted):
            missing = len(wanted) - taken
            asked, order = order[:missing], order[missing:]
            answers = (self._assign_to(sender, source, shards) for sender in asked)
            taken += sum(await asyncio.gather(*answers))
        return taken > 0

    async def _assign_to(self, sender: str, source: str, shards: list[int]) -> bool:
        try:
            await self._calls.call(
                sender, "assign", source, source, None, shards, timeout_s=ASSIGN_TIMEOUT_S
            )
        except Exception as error:  # whatever ails one Sender, the next one is asked
            logger.info("%s does not take the lane %s: %s", sender, source, error)
            self._silent_until_s[sender] = self._clock.monotonic() + SILENT_S
            return False
        return True
