"""A Sender process of the simulation: drives ``Sending`` as ``actors/sender.py`` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manta.delivery.attempts import AttemptJournal, Entry, resolve
from manta.delivery.lanes import Lane
from manta.delivery.leasing import Lease
from manta.delivery.retry import RetryPolicy
from manta.delivery.senders import SenderKnown
from manta.delivery.sending import Burst, Sending, SendingSettings, Wanted, outcome_of
from manta.delivery.settling import FenceSender, ResolveOrphans
from manta.errors import Damaged, Fenced, OutcomeUnknown, StoreUnavailable
from manta.ids import MessageRef
from manta.store.journal import Journal
from tests.faults import FaultyObjects
from tests.sim.auditor import Violation
from tests.sim.mutants import HastySending
from tests.sim.scheduler import Died, Owner, Steps

if TYPE_CHECKING:
    from tests.sim.world import World

LANES = 2
LANE = Lane("mx-a", "mx-a", "relay", "relay")
_FATAL = (Fenced, OutcomeUnknown, Damaged)


@dataclass(eq=False)
class SenderProcess(Owner):
    """One incarnation."""

    world: World | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        assert self.world is not None
        self.w = self.world
        self.random, self.clock = self.w.random, self.w.clock
        self.prefix = f"w/journal/{self.name}"
        self.objects = FaultyObjects(self.w.held, self.random, self.w.faults())
        self.sending: Sending | None = None
        self.settings = SendingSettings(
            fresh_s=self.w.fresh_s,
            not_sent_retry_s=5.0,
            retry=RetryPolicy(20.0, wait_s_max=60.0),
        )

    def revoke(self, campaign_id: int | None, refs: Iterable[tuple[int, int]]) -> None:
        if self.alive and self.sending is not None:
            self.sending.revoke(campaign_id, refs)

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
            kind = self.w.journal_class or Journal
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
        note = f"{self.name} has epoch {history.epoch}, fence {history.fence} {history.damage}"
        self.w.note(note)
        try:
            yield from self._resolve(history, shards)
        except Fenced as error:
            raise Died from error
        kind = HastySending if self.w.mutant.attempt_stored_late else Sending
        self.sending = kind(
            self.name, history.epoch, history.fence, history.low_water, self.settings
        )
        self.sending.resolved()
        self.w.scheduler.spawn(self, self._store())
        for _ in range(LANES):
            self.w.scheduler.spawn(self, self._lane())

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

    # -- work ------------------------------------------------------------------------------------

    def _store(self) -> Steps:
        """The journal's one writer: everything that waits, one entry at a time."""
        sending = self._sending()
        while True:
            entry = sending.next_entry()
            if entry is None:
                yield 0.1
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
            return self.journal.append(entry)
        except _FATAL as error:
            raise Died from error

    def _truncate(self) -> None:
        try:
            self.journal.truncate(self._sending().low_water)
        except StoreUnavailable:
            pass  # the next one will

    def _lane(self) -> Steps:
        """Lease, attempt, settle, again and again."""
        sending = self._sending()
        while True:
            shard = self.random.choice(sorted(self.w.people))
            if not self.w.has_work(shard):
                yield 1.0
                continue
            lease_id = self.random.getrandbits(60)
            self.w.point(self, "before a lease")
            sending.open_lease(lease_id, shard, Wanted(LANE, self.random.randint(1, 6)))
            while not sending.is_opened(lease_id):
                yield 0.05
            command = sending.lease_command(lease_id)
            yield from self._ask(shard, command)
            while lease_id in sending.leases:
                burst = sending.take_burst(
                    lease_id, self.random.randint(1, 4), self.clock.monotonic(), self.clock.now()
                )
                if burst is not None:
                    yield from self._attempt(burst)
                yield from self._settle(shard, lease_id)
                yield 0.1
            yield 1.0

    def _ask(self, shard: int, command: Lease) -> Steps:
        try:
            grant, asked_s = yield from self.w.call(shard, command)
        except Fenced as error:
            raise Died from error
        self.w.point(self, "after a grant")
        self._sending().granted(command.lease_id, grant, asked_s, self.clock.now())

    def _attempt(self, burst: Burst) -> Steps:
        sending = self._sending()
        while not (burst.is_stored or burst.is_refused):
            yield 0.05
        going = sending.on_the_wire(burst, self.clock.monotonic(), self.clock.now())
        for ref in going:
            self._check(ref)
        for ref in going:
            self.w.point(self, "before DATA")
            yield 0.02
            reply = yield from self.w.receiver.transact(ref)
            outcome = outcome_of(
                sending.tried(burst.lease_id, ref),
                reply,
                LANE.source,
                self.clock.now(),
                self.random,
                self.settings,
            )
            self.w.note(f"{self.name} of epoch {self.epoch}: {ref.subscriber_id} {outcome.outcome}")
            self.w.point(self, "after the reply")
            sending.decide(burst.lease_id, outcome)

    def _check(self, ref: MessageRef) -> None:
        """Nobody is mailed later than the freshness limit after an unsubscribe was answered."""
        unsubscribed_s = self.w.unsubscribed.get(ref.subscriber_id)
        if unsubscribed_s is not None:
            late_s = self.clock.monotonic() - unsubscribed_s
            if late_s > self.settings.fresh_s:
                raise Violation(f"{ref} goes out {late_s:.1f} s after an unsubscribe")

    def _settle(self, shard: int, lease_id: int) -> Steps:
        sending = self._sending()
        settle = sending.next_settle(lease_id, self.clock.monotonic(), self.clock.now())
        if settle is None:
            return
        self.w.point(self, "before a settle")
        yield from self.w.call(shard, settle)
        self.w.point(self, "after a settle")
        if self.w.chance(0.1):
            sending.settle_failed(lease_id)
        else:
            sending.settled(lease_id)

    def _sending(self) -> Sending:
        assert self.sending is not None
        return self.sending
