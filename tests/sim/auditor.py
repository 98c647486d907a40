"""What must be true whatever fails. It reads the ledger and the receiver and believes nobody."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from manta.delivery.ledger import FINAL, MOVES, Accounting, Policy, State
from manta.delivery.returns.classification import Category
from manta.ids import MessageRef

if TYPE_CHECKING:
    from tests.sim.receiver import Receiver

OPEN_AFTER = timedelta(minutes=2)  # any source may try what was greylisted and is so overdue


class Violation(AssertionError):
    """A promise was broken."""


class Row(NamedTuple):
    state: State
    campaign_id: int
    source: str | None = None
    category: str | None = None
    due_at: datetime | None = None
    attempts: int = 0
    reply: str = ""
    domain: str = ""


View = Mapping[MessageRef, Row]


def _reachable(start: State, policy: Policy) -> frozenset[State]:
    """Where rows get by any number of moves: a commit may hold several commands."""
    reached, frontier = {start}, [start]
    while frontier:
        state = frontier.pop()
        for new in MOVES[state]:
            if (state, new) == (State.UNCERTAIN, State.PLANNED) and policy is not Policy.RESEND:
                continue
            if new not in reached:
                reached.add(new)
                frontier.append(new)
    return frozenset(reached)


REACHABLE = {policy: {state: _reachable(state, policy) for state in State} for policy in Policy}


class Auditor:
    """Watches every commit of every shard, each message on the wire, and the end."""

    def __init__(self, policies: Mapping[int, Policy]) -> None:
        self._policies = policies
        self._views: dict[int, View] = {}
        self._written: dict[tuple[int, int], int] = {}
        self._epochs: dict[str, int] = {}  # of each Sender's journal
        self._unfenced: set[str] = set()

    def committed(
        self,
        shard: int,
        sequence: int,
        incarnation: int,
        view: View | None,
        planned: int,
        now: datetime = datetime.max,
    ) -> None:
        """An incarnation has committed journal entry ``sequence`` and holds this ledger now;
        (None: as before); ``planned`` is the count of rows that its campaigns keep."""
        writer = self._written.setdefault((shard, sequence), incarnation)
        if writer != incarnation:
            raise Violation(f"entry {sequence} of shard {shard} was written by two owners")
        view = self._views.get(shard, {}) if view is None else view
        self._compare(shard, view, planned)
        self._check_greylisted(self._views.get(shard, {}), view, now)
        self._views[shard] = view

    def recovered(self, shard: int, view: View, planned: int) -> None:
        """A new incarnation has replayed: nothing that was committed may be missing."""
        self._compare(shard, view, planned)
        self._views[shard] = view

    def _compare(self, shard: int, view: View, planned: int) -> None:
        before = self._views.get(shard, {})
        for ref, old in before.items():
            new = view.get(ref)
            if new is None:
                raise Violation(f"{ref} has vanished from shard {shard}")
            if new.state not in REACHABLE[self._policies[old.campaign_id]][old.state]:
                raise Violation(f"{ref} went from {old.state} to {new.state}")
        counts = Accounting.of((row.state, 1) for row in view.values())
        if not counts.holds_for(planned):
            raise Violation(f"the accounts of shard {shard} do not add up")

    def _check_greylisted(self, before: View, view: View, now: datetime) -> None:
        """Who was told to come back comes back from the same source, while there is time."""
        for ref, new in view.items():
            old = before.get(ref)
            if (
                old is not None
                and (old.state, new.state) == (State.PLANNED, State.LEASED)
                and old.category == Category.GREYLISTED
                and new.source != old.source
                and (old.due_at is None or now < old.due_at + OPEN_AFTER)
            ):
                raise Violation(f"{ref} was greylisted at {old.source} and goes by {new.source}")

    def journaled(self, sender: str, epoch: int) -> None:
        """An incarnation has stored an entry, or its epoch, in a Sender's journal."""
        if epoch < self._epochs.get(sender, 0) and sender not in self._unfenced:
            raise Violation(f"{sender} of epoch {epoch} writes behind its fence")
        self._epochs[sender] = epoch

    def lost_journal(self, sender: str) -> None:
        """Its fence may be gone too: what it held is uncertain, and one more entry harms nobody."""
        self._unfenced.add(sender)

    # -- the end -----------------------------------------------------------------------------------

    def is_over(self, audiences: Mapping[int, set[MessageRef]]) -> bool:
        return all(
            len(self._views.get(shard, {})) == len(audience)
            and all(row.state in FINAL for row in self._views[shard].values())
            for shard, audience in audiences.items()
        )

    def pending(self) -> str:
        """The rows that have not come to their end."""
        rows = [item for view in self._views.values() for item in view.items()]
        return "; ".join(f"{ref}: {row}" for ref, row in rows if row.state not in FINAL)

    def finished(
        self,
        audiences: Mapping[int, set[MessageRef]],
        receiver: Receiver,
        are_all_direct: bool = False,
    ) -> None:
        """The end, with everybody alive and time to finish. ``audiences``: shard → all messages."""
        total = Accounting.of(())
        for shard, audience in audiences.items():
            view = self._views.get(shard, {})
            if set(view) != audience:
                raise Violation(f"shard {shard} has {len(view)} rows for {len(audience)} people")
            total += Accounting.of((row.state, 1) for row in view.values())
            for ref, row in view.items():
                self._judge(ref, row, receiver)
                self._judge_refusal(ref, row, receiver, are_all_direct)
        if not total.holds_for(sum(len(audience) for audience in audiences.values())):
            raise Violation("the accounts of all shards do not add up")
        unknown = set(receiver.seen) - {ref for every in audiences.values() for ref in every}
        if unknown:
            raise Violation(f"the receiver has mails that nobody planned: {sorted(unknown)}")

    def _judge(self, ref: MessageRef, row: Row, receiver: Receiver) -> None:
        policy, copies = self._policies[row.campaign_id], receiver.taken.get(ref, 0)
        if row.state not in FINAL:
            raise Violation(f"{ref} is {row.state} for ever")
        if row.state is State.ACCEPTED and not copies:
            raise Violation(f"{ref} is accepted and the receiver does not have it")
        if policy is Policy.RESEND:
            return
        if copies > 1:
            raise Violation(f"{ref} was mailed {copies} times under hold")
        if copies and row.state not in (State.ACCEPTED, State.UNCERTAIN):
            raise Violation(f"{ref} is {row.state} and the receiver has it")
        said = receiver.refused.get(ref, "")
        if row.state is State.EXPIRED and said != row.reply:
            raise Violation(f"{ref} expired with {row.reply!r} and was told {said!r}")

    def _judge_refusal(
        self, ref: MessageRef, row: Row, receiver: Receiver, are_all_direct: bool
    ) -> None:
        """Domains that take no mail fail by what the DNS says, and others never do."""
        is_gone = row.domain == "gone.example"
        if is_gone and are_all_direct and receiver.seen.get(ref):
            raise Violation(f"{ref} went to the network though its domain takes no mail")
        if row.category == Category.BAD_DOMAIN and not is_gone:
            raise Violation(f"{ref} failed for want of its domain, which is there")
