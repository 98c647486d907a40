"""A small Manta that fails all the time: shards, Senders, a Director, a network, a receiver.

Real: the commands, the shard's store with its DuckDB and journal, the hook, the attempt journal,
``Sending`` and ``resolve``. Simulated: processes, network, clock, SMTP. First comes a time of
trouble, then a calm in which everything works and everything has to come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random
from typing import Any

import pyarrow as pa

from manta.clock import ManualClock
from manta.command import Change, Command, Context, Database, Decision, Op, Push
from manta.delivery import settling
from manta.delivery.campaign import CampaignPlan, CampaignState
from manta.delivery.hooks import HookSettings, SendingHook, Work
from manta.delivery.leasing import revoke_people
from manta.delivery.ledger import Policy, State
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.errors import (
    Damaged,
    Fenced,
    MantaError,
    NotFound,
    OutcomeUnknown,
    RetryableError,
    StoreUnavailable,
)
from manta.ids import MessageRef
from manta.store.shard import ShardStore, Stopped
from tests.faults import NO_FAULTS, Faults, FaultyObjects, MemoryObjects
from tests.sim.auditor import Auditor, Row
from tests.sim.mutants import ForgetfulJournal, Mutant, replan
from tests.sim.receiver import Receiver, Trouble
from tests.sim.reuse import ReusingStore
from tests.sim.scheduler import Died, Owner, Scheduler, Steps
from tests.sim.sender import SenderProcess
from tests.unit.delivery_shard import CAMPAIGN, plan

STEPS_MAX = 60_000
SENDER_POINTS = (
    "before a lease",
    "after a grant",
    "before the attempts are stored",
    "after an entry is stored",
    "before DATA",
    "after the reply",
    "before a settle",
    "after a settle",
    "while it resolves",
)
SHARD_POINTS = ("before a group", "in the append", "after a commit")
_TROUBLED_STORE = Faults(lose_reply=0.02, time_out=0.02, refuse=0.02, fail_read=0.01)
_TROUBLED_MAIL = Trouble(0.06, 0.06, 0.08, 0.04, 0.05)


@dataclass(frozen=True)
class Size:
    """How large a world is. The default keeps a run well below half a second."""

    shards_max: int = 2
    people_max: int = 10
    senders: int = 2
    trouble_steps: int = 900
    disasters_max: int = 4


@dataclass(frozen=True)
class Write:
    """Rows as other rooms' commands would write them."""

    changes: tuple[Change, ...]
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        return Decision(None, self.changes)


@dataclass(frozen=True)
class Unsubscribe:
    """What an unsubscribe does to sending."""

    subscriber_id: int
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        change = Change("consents", Op.UPSERT, _consents([self.subscriber_id], "unsubscribed"))
        return Decision(None, (change,), revoke_people(database, [self.subscriber_id]))


@dataclass(eq=False)
class ShardProcess(Owner):
    """One incarnation of a shard."""

    index: int = 0
    number: int = 0
    store: ShardStore | None = None  # None while it recovers
    objects: FaultyObjects | None = None


@dataclass
class World:
    seed: int
    mutant: Mutant = field(default_factory=Mutant)
    size: Size = field(default_factory=Size)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.clock = ManualClock()
        self.scheduler = Scheduler(self.random, self.clock)
        self.held = MemoryObjects(self.clock)
        self.receiver = Receiver(self.random)
        policy = Policy.RESEND if self.random.random() < 0.2 else Policy.HOLD
        self.auditor = Auditor({CAMPAIGN: policy})
        self.policy = policy
        # Safety must not rest on the freshness limit: some worlds have next to none.
        self.fresh_s = self.random.choice((5.0, 30.0))
        self.trap = ""
        self.troubled = False
        self.numbers = 0
        count = 1 + int(self.random.random() ** 2 * self.size.shards_max)  # mostly one
        people = self.random.randint(4, self.size.people_max)
        self.people = {
            shard: [(shard << 40) + 1 + i for i in range(people // count)] for shard in range(count)
        }
        self.unsubscribed: dict[int, float] = {}
        self.shards: dict[int, list[ShardProcess]] = {}  # the newest last
        self.senders: dict[str, list[SenderProcess]] = {}
        self.stores: list[ShardStore] = []
        self.work: dict[int, list[Work]] = {}
        self.director = Owner("director")
        self.step = 0  # of the campaign
        self.planned = False
        self.cancelled = False

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises ``Violation``."""
        try:
            self._run()
        finally:
            for store in self.stores:
                store.close()

    def _run(self) -> None:
        for shard in self.people:
            self.start_shard(shard)
        for number in range(self.random.randint(1, self.size.senders)):
            self.start_sender(f"sender-{number:02d}")
        self.scheduler.spawn(self.director, self._direct())
        self._set_trouble(True)
        disasters = self.random.randint(1, self.size.disasters_max)
        for _ in range(disasters):
            self._steps(self.random.randint(1, self.size.trouble_steps // disasters))
            self._disaster()
        self._steps(self.size.trouble_steps // 4)
        self._set_trouble(False)
        self.trap = ""
        self._calm()
        for shard in self.people:
            self._see(self.shards[shard][-1])
        refs = {
            shard: {MessageRef(person, self._plan().message_key) for person in people}
            for shard, people in self.people.items()
        }
        self.auditor.finished(refs, self.receiver.taken)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.step()

    def _calm(self) -> None:
        """Nothing more fails. Whoever stands still wakes up, and everything comes to its end."""
        for step in range(STEPS_MAX):
            if step % 100 == 0 and self.planned and self._is_finished():
                return
            self.scheduler.step()
        # The auditor says what is stuck.

    def _is_finished(self) -> bool:
        now_s = self.clock.monotonic()
        if any(s.alive and s.stopped_until > now_s for all in self.senders.values() for s in all):
            return False
        stores = [processes[-1].store for processes in self.shards.values()]
        return all(
            store is not None
            and not store.database.rows(
                "SELECT 1 FROM ledger WHERE state IN ('planned', 'leased', 'orphaned') LIMIT 1"
            )
            for store in stores
        )

    def _set_trouble(self, on: bool) -> None:
        self.troubled = on
        self.receiver.trouble = _TROUBLED_MAIL if on else Trouble()
        for processes in self.shards.values():
            for process in processes:
                if process.objects is not None:
                    process.objects.faults = self.faults()
        for senders in self.senders.values():
            for sender in senders:
                sender.objects.faults = self.faults()

    def faults(self) -> Faults:
        return _TROUBLED_STORE if self.troubled else NO_FAULTS

    def chance(self, share: float) -> bool:
        """Whether trouble of this share happens now."""
        return self.troubled and self.random.random() < share

    # -- disasters -------------------------------------------------------------------------------

    def _disaster(self) -> None:
        """Something at a random moment, or a trap at one of the points where it hurts."""
        if self.random.random() < 0.7:
            self.trap = self.random.choice((*SENDER_POINTS, *SHARD_POINTS))
            return
        disasters: list[Callable[[], None]] = [
            self._split_shard,
            self._stop_sender,
            self._lose_journal,
            self._lose_journal,
        ]
        self.random.choice(disasters)()

    def point(self, owner: Owner, name: str) -> None:
        """A process is here: the trap that is laid here springs."""
        if not name or self.trap != name:
            return
        self.trap = ""
        draw = self.random.random()
        self.note(f"{owner.name} is caught {name}")
        if draw < 0.4:
            raise Died
        if draw < 0.9 and isinstance(owner, SenderProcess):
            self._split(owner)
        else:
            owner.stopped_until = self.clock.monotonic() + self.random.uniform(5, 60)

    def _split_shard(self) -> None:
        """A second incarnation although the first lives."""
        self.start_shard(self.random.choice(sorted(self.shards)))

    def _sender(self) -> SenderProcess:
        return self.random.choice(sorted(self.senders.items()))[1][-1]

    def _stop_sender(self) -> None:
        """SIGSTOP for a minute; its leases go past their deadline."""
        self._sender().stopped_until = self.clock.monotonic() + self.random.uniform(5, 60)

    def _lose_journal(self) -> None:
        """A Sender's journal is deleted, has a hole, or a torn entry.

        With its EPOCH entries the fence is gone too, so incarnations that it had fenced must not
        live: a journal that loses them protects from those that come later only.
        """
        sender = self._sender()
        for old in self.senders[sender.name][:-1]:
            old.alive = False
        prefix = sender.prefix
        paths = self.held.list(f"{prefix}/")
        self.note(f"{sender.name} loses its journal")
        if paths:
            draw, path = self.random.random(), self.random.choice(paths)
            if draw < 0.4:
                self.held.delete(paths)
            elif draw < 0.7 and path != paths[-1]:
                self.held.delete([path])
            else:
                self.held.put(path, (self.held.get(path) or b"")[: self.random.randint(0, 90)])
        if self.random.random() < 0.7:
            sender.die()
        else:
            self._split(sender)

    def _split(self, old: SenderProcess) -> None:
        """A second incarnation; the old one stands still and wakes later."""
        old.stopped_until = self.clock.monotonic() + self.random.uniform(0.2, 12)
        self.start_sender(old.name)

    # -- shards ----------------------------------------------------------------------------------

    def start_shard(self, shard: int) -> None:
        self.numbers += 1
        process = ShardProcess(f"shard-{shard:03d}", index=shard, number=self.numbers)
        process.on_death = lambda: self._restart_shard(process)
        processes = self.shards.setdefault(shard, [])
        processes.append(process)
        del processes[:-2]
        self.scheduler.spawn(process, self._run_shard(process))

    def _restart_shard(self, process: ShardProcess) -> None:
        self.note(f"{process.name} #{process.number} dies")
        if self.shards[process.index][-1] is process:
            self.start_shard(process.index)

    def _run_shard(self, process: ShardProcess) -> Steps:
        yield 1.0
        process.objects = FaultyObjects(self.held, self.random, self.faults())
        hook = SendingHook(self.clock, HookSettings(20.0, 5.0, 2.0, 2.0))
        while True:
            nonce = self.random.randbytes(16)
            store = ReusingStore(
                process.objects, "w", process.index, nonce, self.clock, self.random, None, (hook,)
            )
            self.stores.append(store)
            store.journal._sleep = self.clock.advance
            try:
                store.recover()
                break
            except (StoreUnavailable, OutcomeUnknown):
                yield 0.5
            except Fenced as error:
                raise Died from error
        process.store = store
        self.auditor.recovered(process.index, self._view(store), _planned(store))
        self.note(f"{process.name} #{process.number} has epoch {store.epoch}")
        while True:
            wait_s = self._run_hooks(process)
            yield wait_s

    def _run_hooks(self, process: ShardProcess) -> float:
        assert process.store is not None
        result = process.store.run_hooks()
        self._push(result.pushes)
        if result.commands:
            self.execute(process, result.commands)
        wake = result.next_wake
        wait_s = 5.0 if wake is None else (wake - self.clock.now()).total_seconds()
        return min(max(wait_s, 0.5), 5.0)

    def execute(self, process: ShardProcess, commands: Sequence[Command]) -> list[Any]:
        """Run a group in one incarnation; it may die of it. Its answers."""
        store = process.store
        assert store is not None and process.objects is not None
        before, faults = store.sequence, process.objects.faults
        self.point(process, "before a group")
        if self.trap == "in the append":
            self.trap = ""
            doubt = Faults(lose_reply=1.0) if self.random.random() < 0.5 else Faults(time_out=1.0)
            process.objects.faults = replace(doubt, fail_read=1.0)
        if self.mutant.replan_by_time:
            commands = [_Replan(c) if isinstance(c, settling.Orphan) else c for c in commands]
        try:
            outcomes = store.execute(commands)
        except Stopped as error:
            self.note(f"{process.name} #{process.number} stops: {error}")
            raise Died from error
        finally:
            process.objects.faults = faults
        if store.sequence != before:
            self._see(process)
        names = ", ".join(type(command).__name__ for command in commands)
        self.note(f"{process.name} #{process.number} {names}: {_short(outcomes[0].answer)}")
        for outcome in outcomes:
            self._push(outcome.pushes)
        self.point(process, "after a commit")
        return [outcome.answer for outcome in outcomes]

    def _see(self, process: ShardProcess) -> None:
        store = process.store
        assert store is not None
        self.auditor.committed(
            process.index, store.sequence, process.number, self._view(store), _planned(store)
        )

    def _view(self, store: ShardStore) -> dict[MessageRef, Row]:
        rows = store.database.rows(
            "SELECT subscriber_id, message_key, state, campaign_id FROM ledger"
        )
        return {MessageRef(who, key): Row(State(state), i) for who, key, state, i in rows}

    # -- the network -----------------------------------------------------------------------------

    def call(self, shard: int, command: Command) -> Steps:
        """(answer, when the answered call left); retried under the same key until answered.

        Requests and answers get lost, come twice and late, and reach old incarnations.
        """
        while True:
            left_s = self.clock.monotonic()
            yield 0.02
            if self.chance(0.04):
                yield 0.5
                continue
            process = self._reach(shard)
            if process is None:
                yield 0.5
                continue
            try:
                (answer,) = self.execute(process, [command])
            except Died:
                process.die()
                yield 0.5
                continue
            if self.chance(0.05):
                late = Owner("network")
                self.scheduler.spawn(late, self._deliver_late(shard, command), 20.0)
            yield 0.02
            if isinstance(answer, RetryableError) or self.chance(0.04):
                yield 0.5
                continue
            if isinstance(answer, MantaError):
                raise answer
            return answer, left_s

    def _deliver_late(self, shard: int, command: Command) -> Steps:
        yield 0.0
        process = self._reach(shard)
        if process is not None:
            try:
                self.execute(process, [command])
            except Died:
                process.die()

    def _reach(self, shard: int) -> ShardProcess | None:
        """Whom a call finds: mostly the newest incarnation, sometimes an old one."""
        processes = [p for p in self.shards[shard] if p.alive and p.store is not None]
        if not processes:
            return None
        newest = processes[-1]
        return self.random.choice(processes) if self.chance(0.5) else newest

    def _push(self, pushes: Sequence[Push]) -> None:
        for push in pushes:
            if self.chance(0.2):
                continue
            if push.method == "revoke":
                for sender in self.senders.get(push.to, []):
                    sender.revoke(*push.arguments)
            elif push.method == "work":
                shard, report = push.arguments
                self.work[shard] = report
            elif push.method == "orphans":
                _, orphaned = push.arguments
                for name, epoch in orphaned:
                    self._resolve(name, epoch)

    def has_work(self, shard: int) -> bool:
        """As far as the last report that was not lost tells."""
        now = self.clock.now()
        return any(
            work.due or (work.next_due_at is not None and work.next_due_at <= now)
            for work in self.work.get(shard, [])
        )

    def _resolve(self, name: str, epoch: int) -> None:
        """A Sender that does not answer for its leases is replaced: the next one resolves."""
        newest = self.senders[name][-1]
        if newest.epoch == epoch and newest.alive:
            self.start_sender(name)

    # -- Senders and the Director ----------------------------------------------------------------

    def start_sender(self, name: str) -> None:
        sender = SenderProcess(name, world=self)
        sender.on_death = lambda: self._restart_sender(sender)
        senders = self.senders.setdefault(name, [])
        senders.append(sender)
        del senders[:-3]
        self.scheduler.spawn(sender, sender.main())

    def _restart_sender(self, sender: SenderProcess) -> None:
        self.note(f"{sender.name} of epoch {sender.epoch} dies")
        if self.senders[sender.name][-1] is sender:
            self.start_sender(sender.name)

    @property
    def journal_class(self) -> type[Any] | None:
        return ForgetfulJournal if self.mutant.epochs_deleted else None

    def _plan(self) -> CampaignPlan:
        now = ManualClock().now()
        return plan(policy=self.policy, due_at=now, expires_at=now + timedelta(days=365))

    def _direct(self) -> Steps:
        """Bring in the people, plan, pause, resume, perhaps cancel; people unsubscribe."""
        for shard, people in self.people.items():
            yield from self.call(shard, Write(_people(people), f"import:{shard}"))
        yield from self._set(CampaignState.RUNNING)
        for shard in self.people:
            after, done = -1, False
            while not done:
                limit = self.random.randint(3, 20)
                command = PlanCampaign(CAMPAIGN, after, limit, f"plan:{shard}:{after}:{limit}")
                try:
                    answer, _ = yield from self.call(shard, command)
                except NotFound:  # said by a replaced incarnation: the Director looks again
                    yield 1.0
                    continue
                after, done = answer["last_subscriber"], answer["done"]
        self.planned = True
        while self.troubled:
            yield 3.0
            draw = self.random.random()
            if draw < 0.25:
                shard = self.random.choice(sorted(self.people))
                person = self.random.choice(self.people[shard])
                yield from self.call(shard, Unsubscribe(person))
                self.unsubscribed.setdefault(person, self.clock.monotonic())
            elif draw < 0.35:
                yield from self._set(CampaignState.PAUSED)
                yield 2.0
                yield from self._set(CampaignState.RUNNING)
            elif draw < 0.37:
                self.cancelled = True
                yield from self._set(CampaignState.CANCELLED)
                return

    def _set(self, state: CampaignState) -> Steps:
        self.step += 1
        definition = self._plan().to_json()
        for shard in self.people:
            key = f"campaign:{self.step}:{shard}"
            yield from self.call(shard, SetCampaign(key, CAMPAIGN, state, definition, self.step))

    def note(self, text: str) -> None:
        self.scheduler.note(text)


@dataclass(frozen=True)
class _Replan:
    command: settling.Orphan
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        return replan(self.command, database, context)


def _planned(store: ShardStore) -> int:
    return int(store.database.rows("SELECT coalesce(sum(planned_rows), 0) FROM campaigns")[0][0])


def _people(ids: list[int]) -> tuple[Change, ...]:
    """Most may be mailed; each ninth has no address, each seventh no consent."""
    profiles = pa.table(
        {
            "subscriber_id": pa.array(ids, pa.int64()),
            "email": [None if i % 9 == 8 else f"p{i}@d{i % 3}.example" for i in ids],
        }
    )
    consenting = [i for i in ids if i % 7 != 6]
    return (
        Change("profiles", Op.UPSERT, profiles),
        Change("consents", Op.UPSERT, _consents(consenting, "subscribed")),
    )


def _consents(ids: list[int], status: str) -> pa.Table:
    return pa.table(
        {
            "subscriber_id": pa.array(ids, pa.int64()),
            "channel": pa.repeat("email", len(ids)),
            "topic": pa.repeat("news", len(ids)),
            "status": pa.repeat(status, len(ids)),
        }
    )


def _short(answer: Any) -> str:
    if isinstance(answer, tuple) and hasattr(answer, "rows"):
        return f"{answer.rows.num_rows} rows"
    return f"{answer}"[:120]


__all__ = ["Damaged", "Mutant", "Size", "World"]
