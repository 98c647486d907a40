"""A Sender: leases messages from shards, composes them, hands them to SMTP, settles the outcomes.

What may be done when is decided by ``manta.delivery.sending.Sending``; here are its journal, its
lanes (``actors.lanes``) and its settles. One loop appends: each entry takes the attempts of all
connections that wait and the outcomes of all that have finished since the last one. What servers
say is told to Reputation each second; that is a hint and may be lost.

At the start it fences the journal of its former incarnations, reads it, and tells every shard what
it proves; only then it leases. On crash nothing is left to do: the next incarnation, or the
Director, does the same. An append that is refused for good, or a shard that knows a later
incarnation, ends the process at once, before anything more goes on the wire.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, TypeVar

from actors.bursts import Compose, Connect, wait_at_most
from actors.lanes import LaneRun, LaneSettings
from actors.resolving import ShardsPort, ask_all, take_over
from manta.clock import Clock
from manta.delivery.attempts import AttemptJournal, History, JournalPort
from manta.delivery.lanes import Lane, Site
from manta.delivery.outcomes import Outcome
from manta.delivery.reputation.gathering import Gathering
from manta.delivery.reputation.observations import Observed
from manta.delivery.routing.assignments import Assignment
from manta.delivery.senders import Known
from manta.delivery.sending import Sending, SendingSettings
from manta.errors import (
    Damaged,
    Fenced,
    InvalidRequest,
    MantaError,
    NotReady,
    OutcomeUnknown,
    RetryableError,
    StoreUnavailable,
)

T = TypeVar("T")
logger = logging.getLogger("manta.actors.sender")

_ENDS = (Fenced, OutcomeUnknown, Damaged)


@dataclass(frozen=True)
class SenderSettings:
    """``append_gap_s``: the least time between two journal entries: on a local disk about what
    composing two bursts takes, so that connections share an entry; 0.1 on an object store, where
    each costs money."""

    append_gap_s: float = 0.04
    append_retry_s: float = 0.5
    settle_after_s: float = 1.0  # an outcome waits so long for the rest of its lease
    settle_retry_s: float = 1.0
    start_retry_s: float = 1.0
    truncate_every_entries: int = 500
    tell_every_s: float = 1.0  # what was observed
    lanes_max: int = 300  # at work at once, without those that cannot connect
    lanes_kept_max: int = 5_000
    lane: LaneSettings = field(default_factory=LaneSettings)
    sending: SendingSettings = field(default_factory=SendingSettings)


class ThrottlePort(Protocol):
    async def call(
        self, method: str, *arguments: Any, deadline_s: float = ..., once: bool = ...
    ) -> Any: ...


class ReputationPort(Protocol):
    def push(self, method: str, *arguments: Any) -> None: ...


class ComposersPort(Protocol):
    """``actors.composers.Composers``: the composer of a campaign."""

    async def of_campaign(self, campaign_id: int) -> Compose: ...


@dataclass(frozen=True)
class Ports:
    """What a Sender reaches. ``connect(lane, site, connections)`` opens an SMTP connection."""

    shards: ShardsPort
    throttle: ThrottlePort
    reputation: ReputationPort
    composers: ComposersPort
    connect: Connect


class _Undecided(Exception):
    """The epoch entry was neither stored nor refused in time: the next incarnation decides."""


class Sender:
    """See the module. ``name`` is its role (``sender-00``). ``find_ports`` is asked once, at the
    start; ``exit_process(reason)`` ends the process; ``tell_ready`` says that lanes are welcome."""

    def __init__(
        self,
        name: str,
        journal: JournalPort,
        exit_process: Callable[[str], Any],
        clock: Clock,
        random: Random,
        find_ports: Callable[[], Awaitable[Ports]],
        settings: SenderSettings | None = None,
        tell_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.clock, self.random = name, clock, random
        self.settings = settings or SenderSettings()
        self._journal = AttemptJournal(journal)
        self._exit_process = exit_process
        self._find_ports = find_ports
        self._tell_ready = tell_ready
        self._journal_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-journal")
        self._compose_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-compose")
        self._ports: Ports | None = None
        self._sending: Sending | None = None
        self._lanes: dict[Lane, LaneRun] = {}
        self._permits_from_s: dict[Lane, float] = {}  # of lanes that have ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._journal_wanted = asyncio.Event()
        self._landed = asyncio.Event()  # set and cleared at once: wakes those who wait for an entry
        self._settle_wanted: list[asyncio.Event] = []
        self._known_since_s: dict[int, float] = {}
        self._gathering = Gathering()
        self._observed = asyncio.Event()
        self.composing = 0  # bursts that wait for the composing thread
        self.counts: Counter[str] = Counter()
        self.ended = ""
        self._entries = 0

    # -- from outside ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over from former incarnations; tries until every shard has heard what they left."""
        try:
            self._ports = await self._patiently(self._find_ports)
            await self._take_over()
        except (Fenced, Damaged, _Undecided) as error:
            self.end(str(error))
            return
        self._settle_wanted = [asyncio.Event() for _ in range(self.ports.shards.count)]
        self.spawn(self._keep_journal())
        self.spawn(self._keep_telling())
        for shard in range(self.ports.shards.count):
            self.spawn(self._keep_settling(shard))
        self._tell_ready()

    async def assign(self, assignments: Sequence[Assignment]) -> list[bool]:
        """These lanes have due work; which of them were taken. The others are more than this Sender
        can keep: somebody else may, or it can later."""
        self._require_ready()
        count = self.ports.shards.count
        unknown = [s for given in assignments for s in given.due if not 0 <= s < count]
        if unknown:
            raise InvalidRequest(f"no shard {unknown[0]}", path="due", expected=f"0 to {count - 1}")
        room = self.settings.lanes_max - sum(not run.is_resting for run in self._lanes.values())
        room = min(room, self.settings.lanes_kept_max - len(self._lanes))
        taken = []
        for given in assignments:
            lane, site = Lane(*given.lane), Site(*given.site)
            run = self._lanes.get(lane)
            taken.append(run is not None or room > 0)
            if run is None and room > 0:
                room -= 1
                from_s = self._permits_from_s.pop(lane, float("-inf"))
                run = self._lanes[lane] = LaneRun(self, lane, site, from_s)
                self.spawn(self._run_lane(run))
            if run is not None:
                run.assign(site, given.domains, given.except_domains, given.due)
        return taken

    async def revoke(self, campaign_id: int | None, refs: Iterable[tuple[int, int]] = ()) -> int:
        """Withdraw a campaign, or single messages, as far as they have not gone out."""
        wanted = {tuple(ref) for ref in refs}
        held = self.sending.revoke(campaign_id, wanted)
        for run in self._lanes.values():
            run.revoke(campaign_id, wanted)
        self._wake_settling()
        return held

    async def forget(self, people: Sequence[int]) -> int:
        """Let go of journal entries about erased people; how many there still are.

        What is about open leases stays until they are settled, so the caller asks again.
        """
        before = self.sending.tail
        self.sending.want_low_water()
        self.want_journal()
        await self.until(lambda: self.sending.tail > before)
        last = self.sending.tail
        return await self._in_journal_thread(lambda: self._journal.forget(people, last))

    async def status(self) -> dict[str, Any]:
        sending = self._sending
        return {
            "sender": self.name,
            "ready": bool(self._settle_wanted) and not self.ended,
            "epoch": sending.epoch if sending else 0,
            "journal_sequence": sending.tail if sending else 0,
            "leases": len(sending.leases) if sending else 0,
            "messages": sum(len(x.messages) for x in sending.leases.values()) if sending else 0,
            "outcomes": dict(self.counts),
            "uncertain": self.counts["uncertain"],
            "lanes": [run.status() for run in self._lanes.values()],
        }

    async def stop(self) -> None:
        """End all work where it stands, for those who run a Sender inside their own process."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._journal_thread.shutdown(wait=True)
        self._compose_thread.shutdown(wait=True)

    # -- for the lanes -----------------------------------------------------------------------------

    @property
    def ports(self) -> Ports:
        if self._ports is None:
            raise NotReady(f"{self.name} is starting")
        return self._ports

    @property
    def sending(self) -> Sending:
        self._require_ready()
        assert self._sending is not None
        return self._sending

    def _require_ready(self) -> None:
        """Until the journal is taken over and every shard knows, nothing is begun."""
        if not self._settle_wanted or self._sending is None or self.ended:
            raise NotReady(f"{self.name} is starting")

    def end(self, reason: str) -> None:
        """This incarnation is over: nothing more may go out."""
        if not self.ended:
            self.ended = reason
            for run in self._lanes.values():
                run.abort()
            self._exit_process(f"{self.name}: {reason}")

    def want_journal(self) -> None:
        self._journal_wanted.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until an entry has landed that makes it true."""
        while not condition():
            await self._landed.wait()

    def decide(self, lease_id: int, outcome: Outcome) -> None:
        self.sending.decide(lease_id, outcome)
        self.counts[outcome.outcome.value] += 1

    def observe(self, observed: Observed) -> None:
        """For Reputation, with the next push."""
        self._gathering.add(observed)
        self._observed.set()

    def settle_now(self, lease_id: int) -> None:
        """Something of the lease can be settled now, and nothing is gained by waiting."""
        lease = self.sending.leases.get(lease_id)
        if lease is not None:
            self._known_since_s.setdefault(lease_id, float("-inf"))
            self._settle_wanted[lease.shard].set()

    async def in_compose_thread(self, function: Callable[[], T]) -> T:
        self.composing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._compose_thread, function)
        finally:
            self.composing -= 1

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside; what falls out of it ends the process, since its work would be lost."""
        task: asyncio.Task[None] = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # where it was cancelled before it began
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            if not self.ended:
                logger.exception("%s must end", self.name)
                self.end(f"{type(error).__name__}: {error}")

    async def _run_lane(self, run: LaneRun) -> None:
        try:
            await run.run()
        finally:
            # First out of the table, so that whoever assigns the lane now starts it anew.
            self._lanes.pop(run.lane, None)
            self._keep_waits(run)
            await run.close(release=not self.ended)

    def _keep_waits(self, run: LaneRun) -> None:
        """A lane that ends while it waits for permits waits on when it is assigned again."""
        now_s = self.clock.monotonic()
        if run.permits_from_s > now_s:
            waits = self._permits_from_s | {run.lane: run.permits_from_s}
            self._permits_from_s = {lane: s for lane, s in waits.items() if s > now_s}

    # -- taking over -------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Fence the former incarnations, read their journal, tell the shards what it proves."""
        shards = self.ports.shards
        history = await take_over(
            self.name,
            shards.count,
            lambda commands: self._patiently(lambda: ask_all(shards, commands)),
            lambda known: self._patiently(
                lambda: self._in_journal_thread(lambda: self._fence(known))
            ),
            self.clock,
        )
        sending = Sending(
            self.name, history.epoch, history.fence, history.low_water, self.settings.sending
        )
        sending.resolved()
        self._sending = sending

    def _fence(self, known: Sequence[Known]) -> History:
        try:
            return self._journal.take_over(known)
        except OutcomeUnknown as error:
            # Unlike a shard's, our own unknown append cannot be asked again by this process.
            raise _Undecided(error.message) from error

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """The step's result, tried again for as long as a retry may help."""
        while True:
            try:
                return await step()
            except RetryableError as error:
                logger.warning("%s waits: %s", self.name, error)
                await asyncio.sleep(self.settings.start_retry_s)

    # -- the journal -------------------------------------------------------------------------------

    async def _keep_journal(self) -> None:
        """One append at a time, with all that has gathered."""
        while not self.ended:
            entry = self.sending.next_entry()
            if entry is None:
                self._journal_wanted.clear()
                await self._journal_wanted.wait()
                continue
            began_s = self.clock.monotonic()
            try:
                sequence = await self._in_journal_thread(
                    lambda entry=entry: self._journal.append(entry)
                )
            except StoreUnavailable as error:
                logger.warning("%s cannot store its attempts: %s", self.name, error)
                self.sending.refused()
                self._land()
                await asyncio.sleep(self.settings.append_retry_s)
                continue
            except _ENDS as error:
                self.end(str(error))
                return
            self.sending.stored(sequence)
            for lease_id, _ in entry.outcomes:
                self._known_since_s.setdefault(lease_id, self.clock.monotonic())
            self._land()
            if entry.outcomes:
                self._wake_settling()
            await self._truncate_now_and_then()
            gap_s = self.settings.append_gap_s - (self.clock.monotonic() - began_s)
            if gap_s > 0:
                await asyncio.sleep(gap_s)

    async def _truncate_now_and_then(self) -> None:
        self._entries += 1
        if self._entries % self.settings.truncate_every_entries == 0:
            low_water = self.sending.low_water
            try:
                await self._in_journal_thread(lambda: self._journal.truncate(low_water))
            except StoreUnavailable as error:
                logger.warning("%s keeps old entries: %s", self.name, error)

    def _land(self) -> None:
        self._landed.set()
        self._landed.clear()

    async def _in_journal_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._journal_thread, function)

    # -- what was observed -------------------------------------------------------------------------

    async def _keep_telling(self) -> None:
        while not self.ended:
            await self._observed.wait()
            await asyncio.sleep(self.settings.tell_every_s)
            self._observed.clear()
            self.ports.reputation.push("observe", self._gathering.take())

    # -- settling ----------------------------------------------------------------------------------

    def _wake_settling(self) -> None:
        for event in self._settle_wanted:
            event.set()

    async def _keep_settling(self, shard: int) -> None:
        """Settle what is ripe on one shard: spent leases at once, the others after a while."""
        wanted = self._settle_wanted[shard]
        while not self.ended:
            wanted.clear()
            leases = [x for x in self.sending.leases.values() if x.shard == shard]
            ripe = [x.lease_id for x in leases if self._is_ripe(x.lease_id)]
            if ripe and await self._settle(shard, ripe):
                continue
            wait_s = self.settings.settle_after_s if leases else None
            await wait_at_most(wanted, wait_s)

    def _is_ripe(self, lease_id: int) -> bool:
        since_s = self._known_since_s.get(lease_id)
        waited_s = self.clock.monotonic() - (float("inf") if since_s is None else since_s)
        return waited_s >= self.settings.settle_after_s or self.sending.is_spent(lease_id)

    async def _settle(self, shard: int, lease_ids: list[int]) -> bool:
        """Send the settles of these leases together. Whether there were any."""
        now_s, now = self.clock.monotonic(), self.clock.now()
        settles = [self.sending.next_settle(lease_id, now_s, now) for lease_id in lease_ids]
        commands = [settle for settle in settles if settle is not None]
        if not commands:
            return False
        for command in commands:
            self._known_since_s.pop(command.lease_id, None)
        answers = await self.ports.shards.execute_on(shard, commands)
        failed = False
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, Fenced):
                self.end(str(answer))
                return False
            if isinstance(answer, MantaError):
                logger.warning("%s: a settle waits: %s", self.name, answer)
                self._known_since_s.setdefault(command.lease_id, float("-inf"))
                self.sending.settle_failed(command.lease_id)
                failed = True
            else:
                self.sending.settled(command.lease_id)
        if failed:
            await asyncio.sleep(self.settings.settle_retry_s)
        return True
