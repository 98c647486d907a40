"""The processes that protect the sender: the real actors, each in a loop of the simulation.

Throttle, Reputation and Resolver are ``actors``' own classes, and the Director's assigner is. They
reach others through the simulated network; their documents lie in the faulty store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.assigning import Assigner
from actors.handles import sender_role
from actors.reputation import ReputationActor
from actors.resolver import Resolver
from actors.throttle import COLLECTION, LAW, Throttle
from manta.delivery.lanes import Lane
from manta.delivery.reputation import norms
from manta.delivery.reputation.actions import ActionKind
from manta.delivery.reputation.law import Law
from manta.delivery.routing.sites import Answer, Found
from manta.delivery.shaping.shaping import Shaping, builtin, parse
from manta.delivery.throttle.budgets import Grant
from manta.delivery.throttle.ways import limits_of
from manta.errors import MantaError
from manta.store.documents import Documents
from tests.faults import FaultyObjects
from tests.sim.auditor import Violation
from tests.sim.loop import Loop
from tests.sim.network import Answered, Caller
from tests.sim.pacing import Handed
from tests.sim.scheduler import Owner

if TYPE_CHECKING:
    from tests.sim.world import World

BIG, SMALL = "mx1.big.example", "mx.small.example"
EXCHANGERS = {"d0.example": BIG, "d1.example": BIG, "d2.example": SMALL}
GONE = "gone.example"
SHAPING_TEXT = """
[default]
connections_max = 2
rate = "60/min, burst 2"
[provider.big]
exchangers = [".big.example"]
domains = ["d0.example", "d1.example"]
rate = "90/min, burst 2"
total_rate = "1/s, burst 3"
[[default.rule]]
name = "closing"
pattern = '4\\.3\\.2 closing'
trigger = "2 in 1m"
action = "suspend"
scope = "lane"
duration = "20s"
example = "421 4.3.2 closing"
[[provider.big.rule]]
name = "later"
pattern = '4\\.7\\.0 slow down'
trigger = "at once"
action = "limit"
rate = "12/min"
duration = "45s"
example = "451 4.7.0 slow down"
"""
OPERATORS_TEXT = SHAPING_TEXT.partition("[[default.rule]]")[0]  # the same limits, no rules
NORMS_TEXT = """
confidence = 0.6
[measures.deferrals]
messages_min = 3
events_min = 2
[measures.blocks]
messages_min = 3
events_min = 2
[measures.hard_bounces]
messages_min = 4
events_min = 3
[pace]
settle_s = 5
limit_s = 60
step_s = 20
step_messages = 2
quarantine_s = 20
quarantine_max_s = 60
probe_s = 10
probe_messages = 1
pause_s = 60
"""


def shaping() -> Shaping:
    return _SHAPING


_SHAPING = parse(SHAPING_TEXT, builtin())
_NORMS = norms.parse(NORMS_TEXT)


@dataclass(eq=False)
class ActorProcess(Owner):
    """One incarnation of a process that runs an actor."""

    world: World | None = None
    actor: Any = None

    def __post_init__(self) -> None:
        assert self.world is not None
        self.w = self.world
        self.loop = Loop(
            self,
            self.w.scheduler,
            self.w.random,
            self.w.failed,
            lambda: self.w.point(self, f"before the {self.name} stores"),
        )
        self.w.loops.append(self.loop)
        self.caller = Caller(self.w.network, self.loop)

    def documents(self) -> Documents:
        self.objects = FaultyObjects(self.w.held, self.w.random, self.w.faults())
        self.w.faulty.append(self.objects)
        return Documents(
            self.objects,
            f"w/journal/{self.name}",
            self.name,
            self.w.random.randbytes(16),
            self.w.clock,
            snapshot_entries=self.w.random.choice((5, 40)),
            sleep=self.w.clock.advance,
        )

    def exit(self, reason: str) -> None:
        self.w.note(f"{self.name} ends: {reason}")
        self.die()

    def start(self) -> None:
        self.loop.create_task(self.actor.start())

    def serve(self, method: str, arguments: tuple[Any, ...], answer: Answered) -> None:
        self.loop.create_task(self._serve(method, arguments, answer))

    async def _serve(self, method: str, arguments: tuple[Any, ...], answer: Answered) -> None:
        try:
            value = await getattr(self.actor, method)(*arguments)
        except MantaError as error:
            value = error
        if self.alive:
            try:
                answer(value)
            except Violation as violation:
                self.w.failed(violation)


# -- the Throttle ----------------------------------------------------------------------------------


class Granted(NamedTuple):
    grant: Grant
    handed: Handed


@dataclass(eq=False)
class ThrottleProcess(ActorProcess):
    """``law``: the newest that it must hold, by what it has heard and what lay in its journal."""

    number: int = 0
    law: Law = field(default_factory=Law)

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = self.w.settings
        kind = self.w.mutant.throttle or Throttle
        self.actor = kind(
            self.documents(), self.exit, self.w.clock, limits_of(settings), self.w.ways
        )
        self.start()

    async def _serve(self, method: str, arguments: tuple[Any, ...], answer: Answered) -> None:
        def audited(value: Any) -> None:
            if method == "law" and not isinstance(value, MantaError):
                self._take(Law.from_document(arguments[0]))
            if method == "grant" and not isinstance(value, MantaError):
                value = self._audit(Lane(*arguments[1]), value)
            answer(value)

        await super()._serve(method, arguments, audited)

    @property
    def epoch(self) -> int:
        return int(self.actor._documents.journal.epoch)

    def stored_law(self) -> Law:
        """What its journal holds, as far as it knows."""
        if not self.actor._ready:
            return Law()
        document = self.actor._documents.get(COLLECTION, LAW)
        return Law.from_document(document) if document else Law()

    def _take(self, law: Law) -> None:
        if law.version >= self.law.version:
            self.law = law

    def _audit(self, lane: Lane, grant: Grant) -> Granted:
        """No permits for what the law suspends: as heard, or as an earlier Throttle stored it."""
        for other in self.w.throttles:
            if 0 < other.epoch < self.epoch:
                self._take(other.stored_law())
        now = self.w.clock.now()
        about = [a for a in self.law.actions if a.is_active(now) and a.scope.covers(lane)]
        whole = [a for a in about if not (a.scope.campaign_id or a.scope.sending_domain)]
        bounced = any(campaign == 0 for campaign, _ in grant.bounces)
        suspended = [a for a in whole if a.kind is ActionKind.SUSPEND]
        if suspended and grant.permits and not bounced:
            raise Violation(f"{lane} gets permits while {suspended[0].cause} suspends it")
        for action in about:
            campaign, suspends = action.scope.campaign_id, action.kind is ActionKind.SUSPEND
            stopped = campaign and suspends and grant.permits and not bounced
            failing = {c for c, _ in grant.bounces}
            if stopped and campaign not in grant.without and campaign not in failing:
                raise Violation(f"campaign {campaign} may be leased while {action.cause}")
        handed = Handed(self.w.clock.monotonic(), grant.permits)
        if grant.permits and not bounced:
            self.w.pacing.granted(lane, handed)
        return Granted(grant, handed)


# -- Reputation ------------------------------------------------------------------------------------


class _Shards:
    """``actors.handles.Shards``, as far as Reputation asks it."""

    def __init__(self, process: ActorProcess) -> None:
        self._process = process

    @property
    def count(self) -> int:
        return len(self._process.w.people)

    async def query(self, shard: int, name: str, arguments: dict[str, Any]) -> Any:
        role = f"shard-{shard:03d}"
        return await self._process.caller.call(role, "query", name, arguments, timeout_s=5.0)


@dataclass(eq=False)
class ReputationProcess(ActorProcess):
    def __post_init__(self) -> None:
        super().__post_init__()
        handles: Any = SimpleNamespace(shards=_Shards(self))

        async def find_handles() -> Any:
            return handles

        kind = self.w.mutant.reputation or ReputationActor
        self.actor = kind(
            self.documents(),
            self.exit,
            self.w.clock,
            self.caller,
            find_handles,
            self.w.settings.egress,
            _SHAPING,
            _NORMS,
        )
        self.start()


# -- the Resolver ----------------------------------------------------------------------------------


class Dns:
    """What the world's domains have; it is slow, fails, and lies to who has heard the truth."""

    def __init__(self, process: ActorProcess) -> None:
        self._process = process

    async def mx(self, domain: str) -> Answer:
        trouble = await self._trouble()
        if trouble is not None:
            return trouble
        w = self._process.w
        if domain == GONE or (domain in self._process.actor._kept and w.chance(0.1)):
            return Answer(Found.NO_NAME, (), 5.0)
        if domain in EXCHANGERS:
            return Answer(Found.RECORDS, (f"10 {EXCHANGERS[domain]}",), 10.0)
        return Answer(Found.NOTHING, (), 10.0)

    async def addresses(self, host: str) -> Answer:
        return await self._trouble() or Answer(Found.RECORDS, ("192.0.2.1",), 10.0)

    async def _trouble(self) -> Answer | None:
        w = self._process.w
        await _sleep(self._process.loop, w.random.choice((0.01, 0.02, 0.3)))
        return Answer(Found.TROUBLE, detail="timed out") if w.chance(0.15) else None

    def status(self) -> dict[str, int]:
        return {}


class _NoPolicies:
    async def of(self, domain: str) -> tuple[None, float]:
        return None, 3_600.0

    def status(self) -> dict[str, int]:
        return {}


async def _sleep(loop: Loop, seconds: float) -> None:
    future = loop.create_future()
    loop.call_later(seconds, lambda: future.done() or future.set_result(None))
    await future


@dataclass(eq=False)
class ResolverProcess(ActorProcess):
    def __post_init__(self) -> None:
        super().__post_init__()
        dns: Any = Dns(self)
        policies: Any = _NoPolicies()
        self.actor = Resolver(
            dns, policies, _SHAPING, lambda text: parse(text, _SHAPING), self.w.clock, private=True
        )


# -- the Director's part ---------------------------------------------------------------------------


class Directing:
    """What the Director does with reports, the law and pauses. Its campaign is the world's."""

    def __init__(self, process: ActorProcess) -> None:
        self._process = process
        self._version = -1
        w = process.w
        senders = [sender_role(n) for n in range(w.settings.senders)]
        self.assigner = Assigner(process.caller, w.clock, senders, w.settings, _SHAPING)

    async def work(self, shard: int, report: Any) -> None:
        self.assigner.report(shard, report)

    async def sender_ready(self, sender: str) -> None:
        self._process.caller.push("throttle", "forget", sender)
        self.assigner.sender_ready(sender)

    async def law(self, document: Any) -> None:
        law = Law.from_document(document)
        if law.version > self._version:
            self._version = law.version
            self.assigner.replace(parse(law.shaping_text, _SHAPING))

    async def pause_for(self, campaign_id: int, action: dict[str, Any]) -> None:
        self._process.w.campaign.pause_for(action["id"])

    async def resume_for(self, campaign_id: int, action_id: int) -> None:
        self._process.w.campaign.resume_for(action_id)

    async def orphans(self, shard: int, senders: list[tuple[str, int]]) -> None:
        for name, epoch in senders:
            self._process.w.resolve(name, epoch)


@dataclass(eq=False)
class DirectorProcess(ActorProcess):
    """A new one knows no reports: shards repeat them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.actor = Directing(self)


KINDS: dict[str, Callable[..., ActorProcess]] = {
    "throttle": ThrottleProcess,
    "reputation": ReputationProcess,
    "resolver": ResolverProcess,
    "director": DirectorProcess,
}
