"""Who sends what: lanes with due rows are given to Senders, as the shards report them.

Owns the shards' last reports of work and what the Resolver said of domains, in memory alone: shards
report again whatever is lost, and a Director that has just started asks them. **Invariant:** a
report, or a Sender that has become ready, is followed by a round of assigning that begins after it;
a lane that nobody takes is offered again. Assigning twice is harmless: a Sender that has the lane
looks again for rows.

Domains are looked up beside the rounds, a bounded number at a time: a slow DNS holds up nothing but
the domains that it is asked for. Rows of a domain whose site cannot be told for long get that as
their reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from actors.handles import Calls, shard_role
from manta.clock import Clock
from manta.delivery.hooks import Work
from manta.delivery.lanes import Site
from manta.delivery.routing.assignments import (
    Assignment,
    Due,
    choose_senders,
    direct_assignments,
    due_by_pool,
    relay_assignments,
)
from manta.delivery.troubles import NoteTrouble
from manta.settings import Settings

ASSIGN_TIMEOUT_S = 5.0
GATHER_S = 0.02
COST_SHARE = 0.1  # of this process's time, at most, for working lanes out
AGAIN_S = 1.0
SILENT_S = 30.0  # a Sender that did not take a lane comes last for so long
RESOLVE_TIMEOUT_S = 30.0
RESOLVE_DOMAINS_MAX = 200  # in one call
RESOLVE_CALLS_MAX = 4
SITE_VALID_S = 60.0  # the Resolver keeps what the DNS says for longer, and changes its mind
UNKNOWN_AGAIN_S = 10.0  # a domain whose site could not be told
SITES_MAX = 50_000
DOMAINS_SHOWN = 100
NOTE_EVERY_S = 600.0
UNKNOWN = "the DNS does not tell where the mail of this domain goes"
logger = logging.getLogger("manta.actors")


class Providers(Protocol):
    """What is needed of ``manta.delivery.shaping.shaping.Shaping``."""

    def provider_of(self, domain: str, exchangers: Iterable[str] = ()) -> str | None: ...


class Assigner:
    """``senders`` are the roles that may be asked; ``settings`` say what the ways out are."""

    def __init__(
        self,
        calls: Calls,
        clock: Clock,
        senders: Sequence[str],
        settings: Settings,
        providers: Providers,
    ) -> None:
        self.reports: dict[int, list[Work]] = {}
        self._calls = calls
        self._clock = clock
        self._senders = senders
        self._pools = settings.ways_out
        self._direct = {source.name for source in settings.egress if source.kind == "direct"}
        self._providers = providers
        self._sites: OrderedDict[str, tuple[float, Site | None]] = OrderedDict()
        self._unknown_noted_s = clock.monotonic()
        self._looked_up: set[str] = set()
        self._look_ups: set[asyncio.Task[None]] = set()
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

    def replace(self, providers: Providers) -> None:
        """The law has changed whose domains are whose."""
        self._providers = providers
        self._sites.clear()
        self._assign_soon()

    def status(self) -> dict[str, object]:
        """``unknown_domains``: due, and their site cannot be told now."""
        pools = due_by_pool(self.reports)
        due = {pool: sum(sum(d.values()) for d in of.values()) for pool, of in pools.items()}
        return {
            "due": due,
            "unknown_ways_out": sorted(pools.keys() - self._pools.keys()),
            "unknown_domains": sorted(self._unknown_domains())[:DOMAINS_SHOWN],
            "silent_senders": sorted(self._silent()),
        }

    async def stop(self) -> None:
        tasks = [*self._look_ups, *([self._round] if self._round is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- rounds ------------------------------------------------------------------------------------

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
            began_s = self._clock.monotonic()
            assignments = self._assignments()
            cost_s = self._clock.monotonic() - began_s
            pause_s = min(max(GATHER_S, cost_s / COST_SHARE), AGAIN_S)
            if not await self._give(assignments):
                self._wanted, pause_s = True, AGAIN_S

    def _assignments(self) -> list[Assignment]:
        """All lanes with due rows, as far as it is known where their mail goes."""
        made: list[Assignment] = []
        unknown: dict[str, None] = {}
        for pool, due in due_by_pool(self.reports).items():
            members = [member.source for member in self._pools.get(pool, ())]
            for source in members:
                if source in self._direct:
                    made += direct_assignments(pool, source, due, self._known_sites(due, unknown))
                else:
                    made += relay_assignments(pool, source, due, self._providers.provider_of)
        self._look_up(list(unknown))
        return made

    async def _give(self, assignments: Sequence[Assignment]) -> bool:
        """Give each lane to its Senders, and to others where those are silent or have no room.
        Whether each was taken by one at least."""
        silent = self._silent()
        missing: list[int] = []
        orders: list[list[str]] = []
        for assignment in assignments:
            wanted = choose_senders(assignment.lane, assignment.rows, self._senders)
            others = [sender for sender in self._senders if sender not in wanted]
            orders.append(sorted((*wanted, *others), key=lambda sender: sender in silent))
            missing.append(len(wanted))
        taken = [0] * len(assignments)
        while True:
            batches: dict[str, list[int]] = {}
            for place, order in enumerate(orders):
                for sender in order[: missing[place] - taken[place]]:
                    batches.setdefault(sender, []).append(place)
                del order[: missing[place] - taken[place]]
            if not batches:
                return all(taken)
            answers = await asyncio.gather(
                *(
                    self._assign_to(sender, [assignments[place] for place in places])
                    for sender, places in batches.items()
                )
            )
            for places, answer in zip(batches.values(), answers, strict=True):
                for place, is_taken in zip(places, answer, strict=True):
                    taken[place] += is_taken

    async def _assign_to(self, sender: str, assignments: list[Assignment]) -> list[bool]:
        try:
            answer = await self._calls.call(
                sender, "assign", assignments, timeout_s=ASSIGN_TIMEOUT_S
            )
            return list(answer)
        except Exception as error:  # whatever ails one Sender, the next one is asked
            logger.info("%s takes no lanes: %s", sender, error)
            self._silent_until_s[sender] = self._clock.monotonic() + SILENT_S
            return [False] * len(assignments)

    def _silent(self) -> set[str]:
        now_s = self._clock.monotonic()
        return {sender for sender, until_s in self._silent_until_s.items() if until_s > now_s}

    # -- where direct sources bring mail -----------------------------------------------------------

    def _known_sites(self, due: Due, unknown: dict[str, None]) -> Mapping[str, Site | None]:
        """The sites of the due domains; those that have to be asked for go into ``unknown``.

        An answer serves on while it is asked for anew.
        """
        now_s, sites = self._clock.monotonic(), {}
        for domain in due:
            if domain is not None:
                until_s, site = self._sites.get(domain, (0.0, None))
                sites[domain] = site
                if until_s <= now_s:
                    unknown[domain] = None
        return sites

    def _look_up(self, domains: Sequence[str]) -> None:
        """Ask for some of them beside; each answer is followed by a round."""
        waiting = [domain for domain in domains if domain not in self._looked_up]
        while waiting and len(self._look_ups) < RESOLVE_CALLS_MAX:
            asked, waiting = waiting[:RESOLVE_DOMAINS_MAX], waiting[RESOLVE_DOMAINS_MAX:]
            self._looked_up.update(asked)
            task = asyncio.ensure_future(self._ask_sites(asked))
            self._look_ups.add(task)
            task.add_done_callback(self._look_ups.discard)

    async def _ask_sites(self, domains: list[str]) -> None:
        providers = self._providers
        sites: Mapping[str, Site | None] = {}
        try:
            sites = await self._calls.call(
                "resolver", "sites", domains, True, timeout_s=RESOLVE_TIMEOUT_S
            )
        except Exception as error:  # whatever ails it, other lanes go on
            logger.warning("the sites of %d domains are not known: %s", len(domains), error)
        finally:
            self._looked_up.difference_update(domains)
        if providers is self._providers:
            self._keep(domains, sites)
        await self._note_unknown()
        asyncio.get_running_loop().call_soon(self._assign_soon)

    def _unknown_domains(self) -> set[str]:
        """Domains with due rows of which it has been asked where their mail goes, in vain."""
        due = {work.domain for report in self.reports.values() for work in report if work.due}
        return {d for d, (_, site) in self._sites.items() if site is None and d in due}

    async def _note_unknown(self) -> None:
        """Say now and then, on the rows of all domains that are not known, why they wait. In a pool
        with a relay they do not: that one asks nobody where a domain is."""
        now_s = self._clock.monotonic()
        if now_s - self._unknown_noted_s < NOTE_EVERY_S:
            return
        self._unknown_noted_s = now_s
        unknown = tuple(self._unknown_domains())
        stuck = [
            pool
            for pool, members in self._pools.items()
            if all(member.source in self._direct for member in members)
        ]
        note = NoteTrouble(tuple(stuck), UNKNOWN, unknown)
        for shard in list(self.reports) if unknown and stuck else ():
            try:
                await self._calls.call(shard_role(shard), "execute", [note])
            except Exception as error:  # it is noted again
                logger.info("shard %d does not hear of unknown domains: %s", shard, error)

    def _keep(self, domains: Iterable[str], sites: Mapping[str, Site | None]) -> None:
        now_s = self._clock.monotonic()
        for domain in domains:
            site = sites.get(domain)
            if site is None:  # the last answer is better than none
                site = self._sites.get(domain, (0.0, None))[1]
                until_s = now_s + UNKNOWN_AGAIN_S
            else:
                site, until_s = Site(*site), now_s + SITE_VALID_S
            self._sites[domain] = (until_s, site)
            self._sites.move_to_end(domain)
        while len(self._sites) > SITES_MAX:
            self._sites.popitem(last=False)
