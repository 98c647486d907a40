"""A Sender process of the simulation: drives ``Sending`` as ``actors/sender.py`` does.

Its lanes are in ``tests.sim.lanes``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from manta.delivery.attempts import AttemptJournal, Entry, resolve
from manta.delivery.lanes import Lane, Site
from manta.delivery.retry import RetryPolicy
from manta.delivery.routing.assignments import Assignment
from manta.delivery.senders import SenderKnown
from manta.delivery.sending import Sending, SendingSettings
from manta.delivery.settling import FenceSender, ResolveOrphans
from manta.errors import Damaged, Fenced, NotReady, OutcomeUnknown, StoreUnavailable
from manta.store.journal import Journal
from tests.faults import FaultyObjects
from tests.sim.lanes import LaneWork
from tests.sim.network import Answered
from tests.sim.scheduler import Died, Owner, Steps, Task

if TYPE_CHECKING:
    from tests.sim.world import World

_FATAL = (Fenced, OutcomeUnknown, Damaged)


@dataclass(eq=False)
class SenderProcess(Owner):
    """One incarnation."""

    world: World | None = None
    epoch: int = 0
    lanes: dict[Lane, LaneWork] = field(default_factory=dict)
    storing: Task | None = None

    def __post_init__(self) -> None:
        assert self.world is not None
        self.w = self.world
        self.random, self.clock = self.w.random, self.w.clock
        self.prefix = f"w/journal/{self.name}"
        self.objects = FaultyObjects(self.w.held, self.random, self.w.faults())
        self.w.faulty.append(self.objects)
        self.held: Sending | None = None
        self.settings = SendingSettings(
            fresh_s=self.w.fresh_s,
            not_sent_retry_s=5.0,
            retry=RetryPolicy(20.0, wait_s_max=60.0, greylisted_wait_s=30.0),
        )

    @property
    def sending(self) -> Sending:
        assert self.held is not None
        return self.held

    def serve(self, method: str, arguments: tuple[Any, ...], answer: Answered) -> None:
        """Calls of others; nothing is begun before the take-over is done."""
        if self.held is None:
            answer(NotReady(f"{self.name} is starting"))
        elif method == "revoke":
            self.revoke(*arguments)
        else:
            assert method == "assign", method
            answer(self.assign(*arguments))

    def revoke(self, campaign_id: int | None, refs: Iterable[tuple[int, int]]) -> None:
        self.sending.revoke(campaign_id, refs)

    def assign(self, assignments: list[Assignment]) -> list[bool]:
        for given in assignments:
            lane = Lane(*given.lane)
            work = self.lanes.get(lane)
            if work is None:
                work = self.lanes[lane] = LaneWork(self, lane)
            work.assign(Site(*given.site), given.domains, given.except_domains, given.due)
        return [True] * len(assignments)

    # -- start -----------------------------------------------------------------------------------

    def main(self) -> Steps:
        yield 0.5
        shards = sorted(self.w.people)
        known = []
        for shard in shards:
            answer, _ = yield from self.w.call(shard, SenderKnown(self.name))
            known.append(answer)
        while True:
            nonce = self.random.randbytes(16)
            kind = self.w.mutant.journal or Journal
            raw = kind(
                self.objects, self.prefix, self.name, nonce, self.clock, sleep=self.clock.advance
            )
            self.journal = AttemptJournal(raw)
            try:
                history = self.journal.take_over(known)
                break
            except StoreUnavailable:
                yield 0.5
            except _FATAL as error:
                raise Died from error
        self.epoch = history.epoch
        self.w.auditor.journaled(self.name, self.epoch)
        note = f"{self.name} has epoch {history.epoch}, fence {history.fence} {history.damage}"
        self.w.note(note)
        try:
            yield from self._resolve(history, shards)
        except Fenced as error:
            raise Died from error
        kind = self.w.mutant.sending or Sending
        self.held = kind(self.name, history.epoch, history.fence, history.low_water, self.settings)
        self.held.resolved()
        self.storing = self.w.scheduler.spawn(self, self._store())
        self.w.network.push("director", "sender_ready", (self.name,))

    def _resolve(self, history: Any, shards: list[int]) -> Steps:
        held = []
        for shard in shards:
            answer, _ = yield from self.w.call(shard, FenceSender(self.name, history.epoch))
            held.append(answer)
        told = max(unresolved.journal_sequence for unresolved in held)
        for shard, unresolved in zip(shards, held, strict=True):
            if unresolved.rows.num_rows:
                self.w.point(self, "while it resolves")
                verdicts = resolve(history, unresolved.rows, told, self.clock.now())
                command = ResolveOrphans(self.name, history.epoch, verdicts)
                yield from self.w.call(shard, command)

    def want_journal(self) -> None:
        assert self.storing is not None
        self.w.scheduler.wake(self.storing)

    # -- the journal -----------------------------------------------------------------------------

    def _store(self) -> Steps:
        """The journal's one writer: everything that waits, one entry at a time."""
        sending = self.sending
        while True:
            entry = sending.next_entry()
            if entry is None:
                yield 5.0  # or until something waits
                continue
            self.w.point(self, "before the attempts are stored" if entry.attempts else "")
            yield 0.01  # on its way
            try:
                sequence = self._append(entry)
            except StoreUnavailable:
                sending.refused()
                yield 0.2
                continue
            self.w.point(self, "after an entry is stored")
            yield 0.01  # stored, and the answer under way
            sending.stored(sequence)
            if self.random.random() < 0.5:
                self._truncate()

    def _append(self, entry: Entry) -> int:
        try:
            sequence = self.journal.append(entry)
        except _FATAL as error:
            raise Died from error
        self.w.auditor.journaled(self.name, self.epoch)
        return sequence

    def _truncate(self) -> None:
        try:
            self.journal.truncate(self.sending.low_water)
        except StoreUnavailable:
            pass  # the next one will
