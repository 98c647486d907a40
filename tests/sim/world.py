"""A small Manta that fails all the time.

Real: the commands, the shard's store with its DuckDB and journal, the hook, the attempt journal,
``Sending`` and ``resolve``; the Throttle, the Reputation, the Resolver and the Director's assigner
with their documents. Simulated: processes, network, clock, DNS, SMTP. First comes a time of
trouble, then a calm in which everything works and everything has to come to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any
from unittest.mock import patch

from manta.clock import ManualClock
from manta.command import Command
from manta.delivery import leasing
from manta.delivery.campaign import CampaignPlan
from manta.delivery.ledger import Policy
from manta.delivery.throttle import budgets as throttle
from manta.delivery.throttle import warmup
from manta.delivery.throttle.ways import Ways, limits_of
from manta.errors import MantaError, RetryableError
from manta.ids import MessageRef
from manta.settings import EgressSource, Pool, PoolMember, Settings
from manta.store.shard import ShardStore
from tests.faults import NO_FAULTS, Faults, FaultyObjects, MemoryObjects
from tests.sim.auditor import OPEN_AFTER, Auditor, Violation
from tests.sim.directing import Campaign, direct
from tests.sim.loop import Loop
from tests.sim.mutants import Mutant
from tests.sim.network import Network, Process
from tests.sim.pacing import Pacing, gates_of
from tests.sim.protection import (
    BIG,
    KINDS,
    SMALL,
    ActorProcess,
    ThrottleProcess,
    shaping,
)
from tests.sim.receiver import Receiver, Trouble
from tests.sim.scheduler import Died, Owner, Scheduler, Steps
from tests.sim.sender import SenderProcess
from tests.sim.shards import ShardProcess
from tests.unit.delivery_shard import CAMPAIGN, plan

STEPS_MAX = 120_000
CALM_S_MAX = 4 * 3600.0
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
ACTOR_POINTS = ("before the throttle stores", "before the reputation stores")
_TROUBLED_STORE = Faults(lose_reply=0.02, time_out=0.02, refuse=0.02, fail_read=0.01)
_TROUBLED_MAIL = Trouble(0.06, 0.06, 0.08, 0.04, 0.05, 0.1)
_START = datetime(2026, 1, 1, 10, 59, 15)  # soon there is a new hour, of which quotas know
_PLAN = warmup.Plan({}, warmup.Schedule(warmup.OTHERS, (4, 6, 8), 0.5), 30, 0.5)


@dataclass(frozen=True)
class Size:
    """How large a world is."""

    shards_max: int = 2
    people_max: int = 10
    senders: int = 2
    trouble_s: float = 45.0
    disasters_max: int = 5


@dataclass
class World:
    seed: int
    mutant: Mutant = field(default_factory=Mutant)
    size: Size = field(default_factory=Size)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.clock = ManualClock(_START)
        self.scheduler = Scheduler(self.random, self.clock)
        self.network = Network(self)
        self.held = MemoryObjects(self.clock)
        self.faulty: list[FaultyObjects] = []
        self.loops: list[Loop] = []
        self.failure: BaseException | None = None
        self.policy = Policy.RESEND if self.random.random() < 0.2 else Policy.HOLD
        self.auditor = Auditor({CAMPAIGN: self.policy})
        # Safety must not rest on the freshness limit: some worlds have next to none.
        self.fresh_s = self.random.choice((5.0, 30.0))
        self.trap = ""
        self.troubled = False
        self.numbers = 0
        self._make_people()
        self._make_ways()
        self.shards: dict[int, list[ShardProcess]] = {}  # the newest last
        self.senders: dict[str, list[SenderProcess]] = {}
        self.actors: dict[str, list[ActorProcess]] = {}
        self.throttles: list[Any] = []  # all that there ever were
        self.stores: list[ShardStore] = []
        self.campaign = Campaign(CAMPAIGN)

    def _make_people(self) -> None:
        count = 1 + int(self.random.random() ** 2 * self.size.shards_max)  # mostly one
        people = self.random.randint(4, self.size.people_max)
        self.people = {
            shard: [(shard << 40) + 1 + i for i in range(people // count)] for shard in range(count)
        }
        self.unsubscribed: dict[int, float] = {}
        expires_s = self.random.choice((1e7, 1e7, 90.0, 50.0))
        self.plan: CampaignPlan = plan(
            policy=self.policy,
            source="pool",
            due_at=_START,
            expires_at=_START + timedelta(seconds=expires_s),
        )
        self.audience = {
            shard: {MessageRef(person, self.plan.message_key) for person in people}
            for shard, people in self.people.items()
        }

    def _make_ways(self) -> None:
        """One source or two, direct or relays, perhaps a cold one; tight limits."""
        draw = self.random.random
        names = ("mx-a", "mx-b")[: 2 if draw() < 0.6 else 1]
        egress = []
        for place, name in enumerate(names):
            rate, burst = self.random.choice(((0.5, 1), (1.0, 3), (4.0, 4), (0.4, 8)))
            is_cold = place == 1 and draw() < 0.5
            egress.append(
                EgressSource(
                    name=name,
                    kind="direct" if draw() < 0.65 else "relay",
                    rate_per_s=rate,
                    burst=burst,
                    connections_max=3,
                    cold_since="2026-01-01" if is_cold else "",
                )
            )
        members = tuple(PoolMember(name, self.random.randint(1, 2)) for name in names)
        senders = self.random.randint(1, self.size.senders)
        self.settings = Settings(
            shards=len(self.people),
            senders=senders,
            egress=tuple(egress),
            pools=(Pool("pool", members),),
        )
        self.ways = Ways.of(self.settings)
        self.pacing = Pacing(
            gates_of(limits_of(self.settings), self.ways.direct, shaping()),
            frozenset(self.ways.cold_since),
            _PLAN,
            _START,
        )
        sites = (BIG, SMALL, "d3.example", "big", "others")
        greylisters = frozenset(site for site in sites if draw() < 0.15)
        self.receiver = Receiver(self.random, self.clock, greylisters)

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises ``Violation``."""
        try:
            with (
                patch.object(warmup, "builtin", lambda: _PLAN),
                patch.object(throttle, "builtin", shaping),
                patch.object(leasing, "GREYLISTED_OPEN_AFTER", OPEN_AFTER),
                self.mutant.applied(),
            ):
                self._run()
        finally:
            for owner in self._owners():
                owner.alive = False  # what is collected of them does nothing any more
            for loop in self.loops:
                loop.abandon()
            for store in self.stores:
                store.close()

    def _run(self) -> None:
        for shard in self.people:
            self.start_shard(shard)
        for role in KINDS:
            self.start_actor(role)
        for number in range(self.settings.senders):
            self.start_sender(f"sender-{number:02d}")
        self.scheduler.spawn(Owner("operator"), direct(self))
        if self.random.random() < 0.4:
            self.scheduler.spawn(Owner("sender-99"), self._hunger())
        self._set_trouble(True)
        disasters = self.random.randint(1, self.size.disasters_max)
        for _ in range(disasters):
            self._for(self.random.uniform(0, 1.2 * self.size.trouble_s / disasters))
            self._disaster()
        self._for(self.size.trouble_s / 4)
        self._set_trouble(False)
        self.trap = ""
        self._calm()
        for shard in self.people:
            if self.shards[shard][-1].store is not None:
                self.shards[shard][-1].see()
        self.auditor.finished(self.audience, self.receiver, self._are_all_direct())

    def _hunger(self) -> Steps:
        """A Sender that wants permits all the time, and lets them lapse."""
        while self.troubled:
            source = self.random.choice(self.settings.egress)
            direct, relay = ((BIG, "big"), (SMALL, SMALL)), (("big", "big"), ("others", "others"))
            site = self.random.choice(direct if source.kind == "direct" else relay)
            lane = ("pool", source.name, *site)
            arguments = ("sender-99", lane, self.random.randint(1, 5))
            self.network.send("throttle", "grant", arguments)
            yield 0.3

    def _are_all_direct(self) -> bool:
        return len(self.ways.direct) == len(self.settings.egress)

    def _for(self, seconds: float) -> None:
        until_s = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until_s:
            self._step()

    def _step(self) -> None:
        self.scheduler.step()
        if self.failure is not None:
            raise self.failure

    def _calm(self) -> None:
        """Everybody lives, nothing fails any more: until all messages have come to their end."""
        began_s = self.clock.monotonic()
        looked = 0
        for _ in range(STEPS_MAX):
            self._step()
            looked += 1
            if looked >= 50 and self.campaign.is_planned:
                looked = 0
                if self.auditor.is_over(self.audience):
                    return
            if self.clock.monotonic() - began_s > CALM_S_MAX:
                break
        raise Violation(f"it does not come to its end: {self.auditor.pending()}")

    def _set_trouble(self, troubled: bool) -> None:
        self.troubled = troubled
        self.note("trouble begins" if troubled else "calm begins")
        self.receiver.trouble = _TROUBLED_MAIL if troubled else Trouble()
        for objects in self.faulty:
            objects.faults = self.faults()

    def faults(self) -> Faults:
        return _TROUBLED_STORE if self.troubled else NO_FAULTS

    def chance(self, share: float) -> bool:
        """Whether trouble of this share happens now."""
        return self.troubled and self.random.random() < share

    def failed(self, error: BaseException) -> None:
        """Something fell out of a process that should not have."""
        if self.failure is None and not isinstance(error, MantaError):
            self.failure = error

    def _owners(self) -> list[Owner]:
        groups = (*self.shards.values(), *self.senders.values(), *self.actors.values())
        return [owner for group in groups for owner in group] + self.throttles

    # -- disasters -------------------------------------------------------------------------------

    def _disaster(self) -> None:
        """Something at a random moment, or a trap at one of the points where it hurts."""
        if self.random.random() < 0.55:
            self.trap = self.random.choice((*SENDER_POINTS, *SHARD_POINTS, *ACTOR_POINTS))
            return
        disasters: list[Callable[[], None]] = [
            self._split_shard,
            *[self._stop_sender] * 3,
            *[self._lose_journal] * 2,
            *[self._hit_actor] * 6,
        ]
        self.random.choice(disasters)()

    def point(self, owner: Owner, name: str) -> None:
        """A process is here: the trap that is laid here springs."""
        if not name or self.trap != name:
            return
        self.trap = ""
        draw = self.random.random()
        self.note(f"{owner.name} is caught {name}")
        if draw < 0.35:
            raise Died
        if draw < 0.75 and isinstance(owner, SenderProcess):
            self._split(owner)
        elif draw < 0.75 and isinstance(owner, ActorProcess):
            self.start_actor(owner.name)
        else:
            owner.stopped_until = self.clock.monotonic() + self.random.uniform(5, 60)

    def _hit_actor(self) -> None:
        """Kill it, stop it, or start a second one beside."""
        role = self.random.choice(("throttle", "throttle", "reputation", "resolver", "director"))
        actor = self.actors[role][-1]
        draw = self.random.random()
        if draw < 0.4:
            self.note(f"{role} is killed")
            actor.die()
        elif draw < 0.6:
            self.note(f"{role} is stopped")
            actor.stopped_until = self.clock.monotonic() + self.random.uniform(1, 20)
        else:
            self.note(f"a second {role}")
            self.start_actor(role)

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
        self.auditor.lost_journal(sender.name)
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

    # -- processes -------------------------------------------------------------------------------

    def start_shard(self, shard: int) -> None:
        self.numbers += 1
        process = ShardProcess(f"shard-{shard:03d}", world=self, index=shard, number=self.numbers)
        process.on_death = lambda: self._restart(process, self.shards[shard], self.start_shard)
        self._join(self.shards.setdefault(shard, []), process, 2)
        self.scheduler.spawn(process, process.run())

    def start_sender(self, name: str) -> None:
        sender = SenderProcess(name, world=self)
        sender.on_death = lambda: self._restart(sender, self.senders[name], self.start_sender)
        self._join(self.senders.setdefault(name, []), sender, 3)
        self.scheduler.spawn(sender, sender.main())

    def start_actor(self, role: str) -> None:
        self.numbers += 1
        process = KINDS[role](role, world=self)
        process.number = self.numbers
        process.on_death = lambda: self._restart(process, self.actors[role], self.start_actor)
        if isinstance(process, ThrottleProcess):
            self.throttles.append(process)
        self._join(self.actors.setdefault(role, []), process, 3)

    def _join(self, processes: list[Any], process: Owner, kept: int) -> None:
        """The newest of its role; of earlier ones the last few live on."""
        processes.append(process)
        for old in processes[:-kept]:
            old.alive = False
        del processes[:-kept]

    def _restart(self, process: Any, processes: list[Any], start: Callable[[Any], None]) -> None:
        self.note(f"{process.name} dies")
        if processes[-1] is not process:
            return

        def later() -> Steps:
            if processes[-1] is process:
                start(process.index if isinstance(process, ShardProcess) else process.name)
            return
            yield

        self.scheduler.spawn(Owner("init"), later(), self.random.uniform(0.1, 1.0))

    def resolve(self, name: str, epoch: int) -> None:
        """A Sender that does not answer for its leases is replaced: the next one resolves."""
        newest = self.senders[name][-1]
        if newest.epoch == epoch and newest.alive:
            self.start_sender(name)

    # -- the network -----------------------------------------------------------------------------

    def reach(self, role: str) -> Process | None:
        """Whom a call finds: mostly the newest incarnation, sometimes an old one."""
        if role.startswith("shard-"):
            known: list[Any] = self.shards[int(role[-3:])]
        else:
            known = self.senders.get(role) or self.actors.get(role) or []
        processes = [process for process in known if process.alive]
        if not processes:
            return None
        if len(processes) > 1 and self.chance(0.5):
            return self.random.choice(processes)
        return processes[-1]

    def call(self, shard: int, command: Command) -> Steps:
        """(answer, when the answered call left); retried under the same key until answered.

        Requests and answers get lost, come twice and late, and reach old incarnations.
        """
        role = f"shard-{shard:03d}"
        while True:
            left_s = self.clock.monotonic()
            if self.chance(0.05):
                self.scheduler.spawn(Owner("network"), self._deliver_late(role, command), 20.0)
            try:
                (answer,) = yield from self.network.ask(role, "execute", [command], within_s=1.0)
            except RetryableError:
                yield 0.5
                continue
            if isinstance(answer, RetryableError):
                yield 0.5
                continue
            if isinstance(answer, MantaError):
                raise answer
            return answer, left_s

    def _deliver_late(self, role: str, command: Command) -> Steps:
        self.network.send(role, "execute", ([command],))
        return
        yield

    def note(self, text: str) -> None:
        self.scheduler.note(text)
