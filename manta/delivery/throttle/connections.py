"""Connections of one gate, shared among those who want some.

A claim is a Sender's on a lane. Claims get equal shares, and nobody more than wanted (max-min
fairness). What a claim holds counts until it asks again or its time is over, so a share that has
become smaller is reached step by step, and the sum is never above the limit.

Where there are more claims than connections, each gets one or none, in turn: a claim that has had
its connection for ``TENURE_S`` gives it up when others have waited for none to become free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple

from manta.delivery.lanes import Lane

CONNECTION_VALID_S = 30.0
WAITING_VALID_S = 5.0  # a claim without connections that does not ask again waits no more
TENURE_S = 30.0


class Claimant(NamedTuple):
    sender: str
    lane: Lane


@dataclass(slots=True)
class _Claim:
    wanted: int
    held: int
    until_s: float
    since_s: float  # when it got its first connection, or began to wait


class Shares:
    """The claims of one gate. ``now_s`` is monotonic."""

    __slots__ = ("_claims", "_ends", "_waiting", "_wanted", "held")

    def __init__(self) -> None:
        self._claims: dict[Claimant, _Claim] = {}
        self._waiting: dict[Claimant, None] = {}  # without a connection, the first comes first
        self._ends: list[tuple[float, Claimant]] = []  # a heap; entries may be outdated
        self._wanted = 0
        self.held = 0

    def __len__(self) -> int:
        return len(self._claims)

    def drop_lapsed(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            until_s, claimant = heappop(self._ends)
            claim = self._claims.get(claimant)
            if claim is not None and claim.until_s <= until_s:
                self.forget(claimant)

    def room(self, claimant: Claimant, wanted: int, total: int, now_s: float) -> int:
        """Connections that the claimant may have of ``total``; at most ``wanted``."""
        mine = self._claims.get(claimant)
        my_held = mine.held if mine else 0
        free = total - (self.held - my_held)
        others_want = self._wanted - (mine.wanted if mine else 0)
        claims = len(self._claims) + (mine is None)
        if wanted + others_want <= total:
            share = wanted
        elif claims <= total:
            wants = {other: claim.wanted for other, claim in self._claims.items()}
            share = fair_share(total, {**wants, claimant: wanted}, claimant)
        else:
            share = self._turn(claimant, mine, total, now_s)
        return max(0, min(wanted, share, free))

    def _turn(self, claimant: Claimant, mine: _Claim | None, total: int, now_s: float) -> int:
        """One or none: there are more claims than connections."""
        free = max(0, total - self.held)
        if mine is not None and mine.held:
            has_had_its_time = now_s - mine.since_s >= TENURE_S
            return 0 if has_had_its_time and len(self._waiting) > free else 1
        if claimant in self._waiting:
            return int(claimant in islice(self._waiting, free))
        return int(len(self._waiting) < free)

    def hold(self, claimant: Claimant, wanted: int, held: int, now_s: float) -> None:
        """From now on the claimant holds so many, and wants so many (0: the claim is over)."""
        before = self._claims.get(claimant)
        if wanted == 0:
            self.forget(claimant)
            return
        valid_s = CONNECTION_VALID_S if held else WAITING_VALID_S
        goes_on = before is not None and bool(before.held) == bool(held)
        since_s = before.since_s if before is not None and goes_on else now_s
        if before is not None:
            self._wanted -= before.wanted
            self.held -= before.held
        self._wanted += wanted
        self.held += held
        self._claims[claimant] = _Claim(wanted, held, now_s + valid_s, since_s)
        if held:
            self._waiting.pop(claimant, None)
        else:
            self._waiting.setdefault(claimant)
        heappush(self._ends, (now_s + valid_s, claimant))
        if len(self._ends) > 4 * len(self._claims) + 64:
            self._ends = sorted((claim.until_s, name) for name, claim in self._claims.items())

    def forget(self, claimant: Claimant) -> None:
        claim = self._claims.pop(claimant, None)
        if claim is not None:
            self._waiting.pop(claimant, None)
            self._wanted -= claim.wanted
            self.held -= claim.held

    def forget_sender(self, sender: str) -> None:
        for claimant in [c for c in self._claims if c.sender == sender]:
            self.forget(claimant)


def fair_share(total: int, wanted: Mapping[Claimant, int], mine: Claimant) -> int:
    """My part when ``total`` is shared equally and nobody gets more than wanted (max-min
    fairness); ties go by name, so that the parts always add up."""
    left = total
    for position, name in enumerate(sorted(wanted, key=lambda name: (wanted[name], name))):
        part = min(wanted[name], -(-left // (len(wanted) - position)))
        if name == mine:
            return part
        left -= part
    return 0
