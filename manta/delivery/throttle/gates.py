"""Gates: one set of limits at work, of a source, of a provider or of a site behind a source.

Every permit and every connection passes all gates of its lane. Gates are made when first asked for
and dropped when they are no longer used. Dropping must not forget a debt: a gate goes only when its
bucket is full and nobody holds connections, which is how it would be made anew.

**Pace.** A permit lives for ``PERMIT_VALID_S``, so what is sent within 60 s may have been granted
within 63. A bucket therefore runs at ``PACE`` of its limit: 63 × 0.97 < 60 × 1.02, and so in no 60
seconds are more than 1.02 × the limit and one burst *sent*, however late each permit is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation.actions import Action, ActionKind
from manta.delivery.throttle.connections import Shares
from manta.delivery.throttle.gcra import RATE_PER_S_MAX, Bucket

PERMIT_VALID_S = 3.0
PACE = 0.97
GATES_MAX = 200_000
SWEEP_GATES_MIN = 2_000
IDLE_S = 60.0

BOUNDLESS = Limits(RATE_PER_S_MAX, int(RATE_PER_S_MAX), 1_000_000, 1_000_000)


class GateKey(NamedTuple):
    """Of a source (no provider, no site), of a provider (no site), or of a site."""

    source: str
    provider: str = ""
    site: str = ""


class Gate:
    __slots__ = ("bucket", "limits", "shares", "used_s")

    def __init__(self, limits: Limits, bucket: Bucket, now_s: float) -> None:
        self.limits = limits
        self.bucket = bucket
        self.shares = Shares()
        self.used_s = now_s

    def bound(self, limits: Limits, now_s: float) -> None:
        """Go on under other limits: narrower ones act at once, and wider ones give nothing that
        was not there before."""
        if (limits.rate_per_s, limits.burst) != (self.limits.rate_per_s, self.limits.burst):
            self.bucket.change(limits.rate_per_s * PACE, limits.burst, now_s)
        self.limits = limits

    def is_idle(self, now_s: float) -> bool:
        self.shares.drop_lapsed(now_s)
        return now_s - self.used_s >= IDLE_S and not self.shares and self.bucket.is_full(now_s)


class Gates:
    """All gates of a Throttle. ``empty_at_s``: when all buckets were empty; None: they begin full,
    which only the very first incarnation may say."""

    def __init__(self, empty_at_s: float | None) -> None:
        self._gates: dict[GateKey, Gate] = {}
        self._empty_at_s = empty_at_s
        self._sweep_at = SWEEP_GATES_MIN

    def __len__(self) -> int:
        return len(self._gates)

    def items(self) -> Iterable[tuple[GateKey, Gate]]:
        return self._gates.items()

    @property
    def is_crowded(self) -> bool:
        return len(self._gates) >= self._sweep_at

    @property
    def is_full(self) -> bool:
        return len(self._gates) >= GATES_MAX

    def sweep(self, now_s: float) -> None:
        """Drop what is idle. Whoever remembers a gate must ask for it again afterwards."""
        self._gates = {key: gate for key, gate in self._gates.items() if not gate.is_idle(now_s)}
        self._sweep_at = max(SWEEP_GATES_MIN, 2 * len(self._gates))

    def get(self, key: GateKey, limits: Limits, now_s: float, *, is_usual: bool = True) -> Gate:
        """The gate, made or bound to these limits. ``is_usual``: it is there in quiet times too; a
        gate that an action has brought about starts empty, as nobody knows what went before."""
        gate = self._gates.get(key)
        if gate is not None:
            if gate.limits != limits:
                gate.bound(limits, now_s)
            return gate
        pace, burst = limits.rate_per_s * PACE, limits.burst
        if not is_usual:
            bucket = Bucket.empty(pace, burst, now_s)
        elif self._empty_at_s is None:
            bucket = Bucket.full(pace, burst, now_s)
        else:
            bucket = Bucket.empty(pace, burst, self._empty_at_s)
        gate = self._gates[key] = Gate(limits, bucket, now_s)
        return gate

    def forget(self, sender: str) -> None:
        for gate in self._gates.values():
            gate.shares.forget_sender(sender)


def narrowed(base: Limits, actions: Iterable[Action]) -> Limits:
    """The narrowest of all. A lower rate has at most the burst of one second, at least one."""
    rate_per_s, burst = base.rate_per_s, base.burst
    connections, messages = base.connections_max, base.messages_per_connection
    for action in actions:
        narrower = action.limits
        if action.kind is ActionKind.SUSPEND:
            rate_per_s = 0.0
        if narrower.rate_per_s is not None and narrower.rate_per_s < rate_per_s:
            rate_per_s = max(0.0, narrower.rate_per_s)
            burst = min(burst, max(1, ceil(rate_per_s)))
        if narrower.connections_max is not None:
            connections = min(connections, max(0, narrower.connections_max))
        if narrower.messages_per_connection is not None:
            messages = min(messages, max(1, narrower.messages_per_connection))
    return Limits(rate_per_s, burst, connections, messages)


def keys_of(lane: Lane) -> tuple[GateKey, GateKey, GateKey]:
    """Of the source, the provider and the site."""
    return (
        GateKey(lane.source),
        GateKey(lane.source, lane.provider),
        GateKey(lane.source, lane.provider, lane.site),
    )
