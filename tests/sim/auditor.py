"""What must be true whatever fails. It reads the ledger and the receiver and believes nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from manta.delivery.ledger import FINAL, MOVES, Accounting, Policy, State
from manta.ids import MessageRef


class Violation(AssertionError):
    """A promise was broken."""


class Row(NamedTuple):
    state: State
    campaign_id: int


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

    def committed(
        self, shard: int, sequence: int, incarnation: int, view: View, planned: int
    ) -> None:
        """An incarnation has committed journal entry ``sequence`` and holds this ledger now;
        ``planned`` is the count of rows that its campaigns keep."""
        writer = self._written.setdefault((shard, sequence), incarnation)
        if writer != incarnation:
            raise Violation(f"entry {sequence} of shard {shard} was written by two owners")
        self._compare(shard, view, planned)
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

    def finished(
        self, audiences: Mapping[int, set[MessageRef]], taken: Mapping[MessageRef, int]
    ) -> None:
        """The end, with everybody alive and time to finish. ``audiences``: shard → all messages."""
        total = Accounting.of(())
        for shard, audience in audiences.items():
            view = self._views.get(shard, {})
            if set(view) != audience:
                raise Violation(f"shard {shard} has {len(view)} rows for {len(audience)} people")
            total += Accounting.of((row.state, 1) for row in view.values())
            for ref, row in view.items():
                self._judge(ref, row, taken.get(ref, 0))
        if not total.holds_for(sum(len(audience) for audience in audiences.values())):
            raise Violation("the accounts of all shards do not add up")
        unknown = set(taken) - {ref for audience in audiences.values() for ref in audience}
        if unknown:
            raise Violation(f"the receiver has mails that nobody planned: {sorted(unknown)}")

    def _judge(self, ref: MessageRef, row: Row, copies: int) -> None:
        policy = self._policies[row.campaign_id]
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
