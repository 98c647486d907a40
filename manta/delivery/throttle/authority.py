"""Which process may grant: the one that holds the Throttle's journal, and for how long.

Two processes that both believe to be the Throttle must never grant together more than the limits.
A Throttle grants only within ``AUTHORITY_S`` of the *beginning* of its last confirmed journal
append. A new incarnation appends its epoch entry, which ends the power of the former, and then
waits ``TAKEOVER_WAIT_S``: the former's last confirmation began before that entry, its last grant
came at most ``AUTHORITY_S`` later, its last permit lapsed ``PERMIT_VALID_S`` after that. Its
buckets then start empty. So losing a Throttle can only send less.
"""

from __future__ import annotations

from dataclasses import dataclass

from manta.delivery.throttle.gates import PERMIT_VALID_S

AUTHORITY_S = 5.0
HEARTBEAT_S = 2.0
TAKEOVER_WAIT_S = AUTHORITY_S + PERMIT_VALID_S


@dataclass(frozen=True)
class Authority:
    """Whether this process may grant. Times are monotonic seconds.

    ``since_s`` is when the epoch entry was confirmed; ``has_predecessor`` whether there ever was
    another epoch.
    """

    since_s: float
    has_predecessor: bool
    confirmed_s: float = float("-inf")

    def confirmed(self, began_s: float) -> Authority:
        """After an append that began at ``began_s`` was stored."""
        return Authority(self.since_s, self.has_predecessor, max(self.confirmed_s, began_s))

    def wait_s(self, now_s: float) -> float:
        """Seconds of the take-over wait that are left."""
        if not self.has_predecessor:
            return 0.0
        return max(0.0, self.since_s + TAKEOVER_WAIT_S - now_s)

    def may_grant(self, now_s: float) -> bool:
        return not self.wait_s(now_s) and now_s - self.confirmed_s < AUTHORITY_S

    def wants_heartbeat(self, now_s: float) -> bool:
        return now_s - self.confirmed_s >= HEARTBEAT_S
