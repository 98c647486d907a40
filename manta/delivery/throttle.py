"""How fast mail may leave: permits and connections, per egress source and per lane.

A **lane** is (source, site). A source has limits of its own (what one relay or address may send in
all), a lane may have narrower ones (what one mailbox provider takes); a grant needs room in both.
Permits are GCRA permits that lapse after ``PERMIT_VALID_S``; connections are held for
``CONNECTION_VALID_S`` at a time and count as closed when their Sender does not ask again, so the
share of a dead Sender comes back by itself.

**Authority.** Two processes that both believe to be the Throttle must never grant together more
than the limits. The one that may grant is the one that holds the journal: it grants only within
``AUTHORITY_S`` of the *beginning* of its last confirmed journal append. A new incarnation appends
its epoch entry, which ends the power of the former, and then waits ``TAKEOVER_WAIT_S``: the
former's last confirmation began before that entry, its last grant came at most ``AUTHORITY_S``
later, its last permit lapsed ``PERMIT_VALID_S`` after that. Its buckets then start empty. So losing
a Throttle can only send less. Nothing here is stored: only the epoch is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from manta.delivery.gcra import Bucket
from manta.delivery.lanes import Lane, Limits
from manta.errors import InvalidRequest

PERMIT_VALID_S = 3.0
CONNECTION_VALID_S = 30.0
AUTHORITY_S = 5.0
HEARTBEAT_S = 2.0
TAKEOVER_WAIT_S = AUTHORITY_S + PERMIT_VALID_S
GRANT_MAX = 10_000
WAIT_S_MIN = 0.02


class Grant(NamedTuple):
    """Permits, good for ``valid_s`` from the moment of asking; none: ask again in ``wait_s``.

    ``without``: campaigns that must not be leased for these permits. ``warming``: the source is
    cold and its pool has a warm member, so lease the engaged only. ``bounces``: (campaign, or 0 for
    all; cause): what is waiting fails with this cause and never reaches the network. Where 0 is
    among them the permits count nowhere and must not come back as unused.
    """

    permits: int
    valid_s: float
    wait_s: float
    without: tuple[int, ...] = ()
    warming: bool = False
    bounces: tuple[tuple[int, str], ...] = ()


class Connections(NamedTuple):
    """How many connections the Sender may hold, for how long from the moment of asking."""

    held: int
    valid_s: float
    messages_per_connection: int
    tls: str = "opportunistic"  # of a direct source: what the shaping file says of the site


NO_GRANT = Grant(0, 0.0, 1.0)


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


@dataclass
class _Gate:
    """One set of limits at work: of a source, or of a lane."""

    limits: Limits
    bucket: Bucket
    wanted: dict[str, int] = field(default_factory=dict)  # by Sender
    held: dict[str, int] = field(default_factory=dict)
    until_s: dict[str, float] = field(default_factory=dict)

    def drop_lapsed(self, now_s: float) -> None:
        for sender in [s for s, until_s in self.until_s.items() if until_s <= now_s]:
            self.forget(sender)

    def forget(self, sender: str) -> None:
        for table in (self.wanted, self.held, self.until_s):
            table.pop(sender, None)

    def room_for(self, sender: str, wanted: int) -> int:
        """Connections for a Sender: its equal share, and never more than the others leave."""
        others = sum(count for other, count in self.held.items() if other != sender)
        share = fair_share(self.limits.connections_max, self.wanted | {sender: wanted}, sender)
        return max(0, min(share, self.limits.connections_max - others))

    def hold(self, sender: str, wanted: int, held: int, now_s: float) -> None:
        if wanted == 0:
            self.forget(sender)
            return
        self.wanted[sender] = wanted
        self.held[sender] = held
        self.until_s[sender] = now_s + CONNECTION_VALID_S


class Budgets:
    """The limits of all lanes and what of them is in use. ``now_s`` is monotonic everywhere.

    ``sources``: limits by source name. ``lanes``: narrower limits of single lanes.
    ``empty_at_s``: when all buckets were empty, for every incarnation but the very first.
    """

    def __init__(
        self,
        sources: Mapping[str, Limits],
        lanes: Mapping[Lane, Limits] | None = None,
        *,
        empty_at_s: float | None,
    ) -> None:
        self._limits_of_sources = dict(sources)
        self._limits_of_lanes = dict(lanes or {})
        self._empty_at_s = empty_at_s
        self._sources: dict[str, _Gate] = {}
        self._lanes: dict[Lane, _Gate] = {}
        # A Sender's connections in all lanes of a source add up to its hold on the source:
        # (Sender, source) → site → (wanted, held, until).
        self._holds: dict[tuple[str, str], dict[str, tuple[int, int, float]]] = {}
        self.granted = 0

    def grant(self, sender: str, lane: Lane, wanted: int, now_s: float, unused: int = 0) -> Grant:
        """Permits to send now. ``unused``: permits of this Sender's last grant on the lane that it
        will never use."""
        gates = self._gates(lane, now_s)
        for gate in gates:
            gate.bucket = gate.bucket.put_back(unused)
        wanted = min(wanted, GRANT_MAX)
        permits = min([wanted, *(gate.bucket.available(now_s) for gate in gates)])
        if permits <= 0:
            wait_s = max(gate.bucket.wait_s(now_s) for gate in gates)
            return Grant(0, 0.0, max(wait_s, WAIT_S_MIN))
        for gate in gates:
            _, gate.bucket = gate.bucket.take(permits, now_s)
        self.granted += permits
        wait_s = max(gate.bucket.wait_s(now_s) for gate in gates) if permits < wanted else 0.0
        return Grant(permits, PERMIT_VALID_S, wait_s)

    def hold(self, sender: str, lane: Lane, wanted: int, now_s: float) -> Connections:
        """How many connections the Sender may hold on the lane from now on (0 wanted: it has
        closed them). It may be fewer than it holds: it then closes the rest."""
        source, *narrower = self._gates(lane, now_s)
        holds = self._holds.setdefault((sender, lane.source), {})
        for site in [s for s, (_, _, until_s) in holds.items() if until_s <= now_s]:
            del holds[site]
        holds.pop(lane.site, None)
        elsewhere_wanted = sum(hold[0] for hold in holds.values())
        elsewhere_held = sum(hold[1] for hold in holds.values())
        held = source.room_for(sender, elsewhere_wanted + wanted) - elsewhere_held
        held = max(0, min([wanted, held, *(gate.room_for(sender, wanted) for gate in narrower)]))
        for gate in narrower:
            gate.hold(sender, wanted, held, now_s)
        source.hold(sender, elsewhere_wanted + wanted, elsewhere_held + held, now_s)
        if wanted:
            holds[lane.site] = (wanted, held, now_s + CONNECTION_VALID_S)
        messages = min(gate.limits.messages_per_connection for gate in (source, *narrower))
        return Connections(held, CONNECTION_VALID_S, messages)

    def forget(self, sender: str) -> None:
        """A Sender that is known to be dead: its connections are gone."""
        for gate in (*self._sources.values(), *self._lanes.values()):
            gate.forget(sender)
        for key in [key for key in self._holds if key[0] == sender]:
            del self._holds[key]

    def set_limits(self, lane: Lane, limits: Limits | None, now_s: float) -> None:
        """Narrow a lane, or (``None``) lift what was narrowed. What is available stays so."""
        if limits is None:
            self._limits_of_lanes.pop(lane, None)
            self._lanes.pop(lane, None)
            return
        self._limits_of_lanes[lane] = limits
        gate = self._lanes.get(lane)
        if gate is not None:
            gate.bucket = gate.bucket.changed(limits.rate_per_s, limits.burst, now_s)
            gate.limits = limits

    def status(self, now_s: float) -> dict[str, object]:
        return {
            "granted": self.granted,
            "sources": {
                name: {
                    "rate_per_s": gate.limits.rate_per_s,
                    "available": gate.bucket.available(now_s),
                    "connections": sum(gate.held.values()),
                    "connections_max": gate.limits.connections_max,
                }
                for name, gate in self._sources.items()
            },
        }

    def _gates(self, lane: Lane, now_s: float) -> list[_Gate]:
        """The source's gate and, where the lane has limits of its own, the lane's."""
        source = self._sources.get(lane.source)
        if source is None:
            limits = self._limits_of_sources.get(lane.source)
            if limits is None:
                raise InvalidRequest(
                    f"no egress source {lane.source!r:.80}",
                    path="lane.source",
                    expected=", ".join(sorted(self._limits_of_sources)) or "none is set up",
                )
            source = self._sources[lane.source] = self._gate(limits, now_s)
        gates = [source]
        if lane in self._limits_of_lanes:
            gate = self._lanes.get(lane)
            if gate is None:
                gate = self._lanes[lane] = self._gate(self._limits_of_lanes[lane], now_s)
            gates.append(gate)
        for gate in gates:
            gate.drop_lapsed(now_s)
        return gates

    def _gate(self, limits: Limits, now_s: float) -> _Gate:
        rate_per_s, burst = limits.rate_per_s, limits.burst
        if self._empty_at_s is None:
            return _Gate(limits, Bucket.full(rate_per_s, burst, now_s))
        return _Gate(limits, Bucket.empty(rate_per_s, burst, self._empty_at_s))


def fair_share(total: int, wanted: Mapping[str, int], mine: str) -> int:
    """My part when ``total`` is shared equally and nobody gets more than wanted (max-min
    fairness); ties go by name, so that the parts always add up."""
    left = total
    for position, name in enumerate(sorted(wanted, key=lambda name: (wanted[name], name))):
        part = min(wanted[name], -(-left // (len(wanted) - position)))
        if name == mine:
            return part
        left -= part
    return 0
