"""A shard process of the simulation: the real store with its hook, in a process that may die."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from manta.command import Change, Command, Context, Database, Decision, Op
from manta.delivery import settling
from manta.delivery.hooks import HookSettings, SendingHook
from manta.delivery.ledger import State
from manta.delivery.reputation import recall
from manta.errors import Fenced, MantaError, NotReady, OutcomeUnknown, StoreUnavailable
from manta.ids import MessageRef
from manta.people.consents import revocations
from manta.store.shard import Stopped
from tests.faults import Faults, FaultyObjects
from tests.sim.auditor import Row
from tests.sim.mutants import replan
from tests.sim.network import Answered
from tests.sim.protection import GONE
from tests.sim.reuse import ReusingStore
from tests.sim.scheduler import Died, Owner, Steps

if TYPE_CHECKING:
    from tests.sim.world import World

DOMAINS = ("d0.example", "d1.example", "d2.example", "d3.example")


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
        return Decision(None, (change,), revocations(database, [self.subscriber_id], "email"))


@dataclass(frozen=True)
class _Replan:
    command: settling.Orphan
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        return replan(self.command, database, context)


@dataclass(eq=False)
class ShardProcess(Owner):
    """One incarnation of a shard. ``store`` is None while it recovers."""

    world: World | None = None
    index: int = 0
    number: int = 0
    store: ReusingStore | None = None

    def __post_init__(self) -> None:
        assert self.world is not None
        self.w = self.world

    def run(self) -> Steps:
        w = self.w
        yield 1.0
        self.objects = FaultyObjects(w.held, w.random, w.faults())
        w.faulty.append(self.objects)
        hook = SendingHook(w.clock, HookSettings(20.0, 6.0, 2.5, 2.5))
        while True:
            nonce = w.random.randbytes(16)
            store = ReusingStore(
                self.objects, "w", self.index, nonce, w.clock, w.random, None, (hook,)
            )
            w.stores.append(store)
            store.journal._sleep = w.clock.advance
            try:
                store.recover()
                break
            except (StoreUnavailable, OutcomeUnknown):
                yield 0.5
            except Fenced as error:
                raise Died from error
        self.store = store
        w.auditor.recovered(self.index, self._view(), self._planned())
        w.note(f"{self.name} #{self.number} has epoch {store.epoch}")
        while True:
            yield self._run_hooks()

    def _run_hooks(self) -> float:
        assert self.store is not None
        result = self.store.run_hooks()
        self._push(result.pushes)
        if result.commands:
            self.execute(result.commands)
        wake = result.next_wake
        wait_s = 5.0 if wake is None else (wake - self.w.clock.now()).total_seconds()
        return min(max(wait_s, 0.5), 5.0)

    # -- calls -------------------------------------------------------------------------------------

    def serve(self, method: str, arguments: tuple[Any, ...], answer: Answered) -> None:
        if self.store is None:
            answer(NotReady(f"{self.name} is recovering"))
        elif method == "query":
            name, asked = arguments
            assert name == "observed", name
            try:
                answer(recall.observed(self.store.database, self.store.context(), asked))
            except MantaError as error:
                answer(error)
        else:
            assert method == "execute", method
            try:
                answer(self.execute(arguments[0]))
            except Died:
                self.die()

    def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Run a group; the process may die of it. Its answers."""
        store, w = self.store, self.w
        assert store is not None
        before, faults = store.sequence, self.objects.faults
        w.point(self, "before a group")
        if w.trap == "in the append":
            w.trap = ""
            doubt = Faults(lose_reply=1.0) if w.random.random() < 0.5 else Faults(time_out=1.0)
            self.objects.faults = replace(doubt, fail_read=1.0)
        if w.mutant.replan_by_time:
            commands = [_Replan(c) if isinstance(c, settling.Orphan) else c for c in commands]
        try:
            outcomes = store.execute(commands)
        except Stopped as error:
            w.note(f"{self.name} #{self.number} stops: {error}")
            raise Died from error
        finally:
            self.objects.faults = faults
        if store.sequence != before:
            self.see(anew=store.has_moved)
        names = ", ".join(type(command).__name__ for command in commands)
        w.note(f"{self.name} #{self.number} {names}: {_short(outcomes[0].answer)}")
        for outcome in outcomes:
            self._push(outcome.pushes)
        w.point(self, "after a commit")
        return [outcome.answer for outcome in outcomes]

    def _push(self, pushes: Sequence[Any]) -> None:
        for push in pushes:
            self.w.network.push(push.to, push.method, push.arguments)

    # -- for the auditor ---------------------------------------------------------------------------

    def see(self, *, anew: bool = True) -> None:
        """Show the auditor the ledger, or that an entry has left it as it was."""
        store = self.store
        assert store is not None
        view = self._view() if anew else None
        store.has_moved = False
        self.w.auditor.committed(
            self.index, store.sequence, self.number, view, self._planned(), self.w.clock.now()
        )

    def _view(self) -> dict[MessageRef, Row]:
        assert self.store is not None
        rows = self.store.database.rows(
            "SELECT subscriber_id, message_key, state, campaign_id, source, category, due_at,"
            " attempts, coalesce(reply, ''), domain FROM ledger"
        )
        return {
            MessageRef(who, key): Row(State(state), *others) for who, key, state, *others in rows
        }

    def _planned(self) -> int:
        assert self.store is not None
        found = self.store.database.rows("SELECT coalesce(sum(planned_rows), 0) FROM campaigns")
        return int(found[0][0])


def audience(ids: list[int], now: datetime) -> tuple[Change, ...]:
    """Most may be mailed; each ninth has no address, each seventh no consent, and each sixth a
    domain that takes no mail. Every other one has opened a mail before."""
    profiles = pa.table(
        {
            "subscriber_id": pa.array(ids, pa.int64()),
            "email": [None if i % 9 == 8 else f"p{i}@{domain_of(i)}" for i in ids],
        }
    )
    engaged = [i for i in ids if i % 2]
    events = pa.table(
        {
            "subscriber_id": pa.array(engaged, pa.int64()),
            "occurred_at": pa.repeat(now - timedelta(days=1), len(engaged)),
            "type": pa.repeat("opened", len(engaged)),
            "event_id": pa.array(engaged, pa.int64()),
        }
    )
    consenting = [i for i in ids if i % 7 != 6]
    changes = [
        Change("profiles", Op.UPSERT, profiles),
        Change("consents", Op.UPSERT, _consents(consenting, "subscribed")),
    ]
    return (*changes, Change("events", Op.INSERT, events)) if engaged else tuple(changes)


def domain_of(person: int) -> str:
    return GONE if person % 6 == 5 else DOMAINS[person % 4]


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
