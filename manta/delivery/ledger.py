"""The ledger: every message is in exactly one state, and the sums agree.

A row is one message to one person on one channel, named by ``(subscriber_id, message_key)``. It is
written once, by planning, and from then on only moves along ``MOVES``. The accounting identity

    planned_total = accepted + failed + suppressed + cancelled + expired + uncertain + pending
    pending       = planned + leased + orphaned

therefore holds at every commit, and a crash cannot break it: a move is one row of one transaction.

``due_at`` is set exactly while a row is ``planned``; every move away clears it. So the question of
every lease, "what is due?", reads one column of numbers and no words.

A later DSN is a fact of its own (``bounced_at``) and moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from manta.errors import Conflict


class State(StrEnum):
    PLANNED = "planned"  # waits for its time and a lease
    LEASED = "leased"  # a Sender has it; only its word or its fenced journal moves it
    ORPHANED = "orphaned"  # leased past its deadline: the Sender's journal has to be read
    ACCEPTED = "accepted"  # the receiving server answered 250 after the final dot
    FAILED = "failed"  # refused for good, or impossible to build
    SUPPRESSED = "suppressed"  # our decision not to send
    CANCELLED = "cancelled"  # the campaign was cancelled first
    EXPIRED = "expired"  # its time passed first
    UNCERTAIN = "uncertain"  # attempted, outcome unknown: never sent again under `hold`


PENDING = (State.PLANNED, State.LEASED, State.ORPHANED)
FINAL = tuple(state for state in State if state not in PENDING)

# (accepted has no way out: nothing that comes later makes an accepted message unsent.)
MOVES: Mapping[State, frozenset[State]] = {
    State.PLANNED: frozenset({State.LEASED, State.SUPPRESSED, State.CANCELLED, State.EXPIRED}),
    State.LEASED: frozenset(
        {
            State.PLANNED,  # returned unattempted, or deferred with a new due_at
            State.ACCEPTED,
            State.FAILED,
            State.EXPIRED,
            State.UNCERTAIN,
            State.ORPHANED,
        }
    ),
    State.ORPHANED: frozenset(
        {State.PLANNED, State.ACCEPTED, State.FAILED, State.EXPIRED, State.UNCERTAIN}
    ),
    State.UNCERTAIN: frozenset({State.ACCEPTED, State.FAILED, State.PLANNED}),
    State.ACCEPTED: frozenset(),
    State.FAILED: frozenset(),
    State.SUPPRESSED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}


MESSAGE_AGE_MAX_H = 72.0  # unless the workspace says otherwise


def age_limit(settings: Mapping[str, Any]) -> timedelta:
    """How long a message is tried: from its first deferral, or the first time that its site could
    not be reached. Time that it spends waiting for us does not count."""
    return timedelta(hours=settings.get("message_age_max_h", MESSAGE_AGE_MAX_H))


class Policy(StrEnum):
    """What becomes of a message whose outcome is unknown."""

    HOLD = "hold"  # it stays uncertain: better one mail too few than two (marketing)
    RESEND = "resend"  # it is planned again, under the same Message-ID (transactional)


class IllegalMove(Conflict):
    """A move that ``MOVES`` does not have; nothing was changed."""

    code = "illegal_move"


def is_legal(old: State, new: State, policy: Policy = Policy.HOLD) -> bool:
    if (old, new) == (State.UNCERTAIN, State.PLANNED):
        return policy is Policy.RESEND
    return new in MOVES[old]


def move(old: State, new: State, policy: Policy = Policy.HOLD) -> State:
    """The new state. Raises ``IllegalMove`` where the table has no such move."""
    if not is_legal(old, new, policy):
        allowed = ", ".join(sorted(s for s in State if is_legal(old, s, policy))) or "nothing"
        raise IllegalMove(
            f"a message cannot go from {old} to {new}",
            path="state",
            expected=f"from {old}: {allowed}",
        )
    return new


@dataclass(frozen=True)
class Accounting:
    """How many messages are in each state; states that do not occur count 0."""

    counts: Mapping[State, int]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, int]]) -> Accounting:
        """From (state, count) pairs; a state may occur several times."""
        counts = dict.fromkeys(State, 0)
        for state, count in pairs:
            counts[State(state)] += count
        return cls(counts)

    @property
    def pending(self) -> int:
        return sum(self.counts[state] for state in PENDING)

    @property
    def planned_total(self) -> int:
        """The right-hand side of the identity."""
        return sum(self.counts[state] for state in FINAL) + self.pending

    def __add__(self, other: Accounting) -> Accounting:
        return Accounting({state: self.counts[state] + other.counts[state] for state in State})

    def holds_for(self, planned_total: int) -> bool:
        """Whether the identity holds against an independent count of what was planned."""
        return self.planned_total == planned_total

    def as_dict(self) -> dict[str, int]:
        counts = {str(state): self.counts[state] for state in State}
        return counts | {"pending": self.pending, "planned_total": self.planned_total}
