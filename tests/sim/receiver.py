"""The other side of SMTP: remembers every message that it has taken, and makes trouble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from manta.clock import Clock
from manta.delivery.lanes import Lane
from manta.delivery.replies import Reply, Verdict
from manta.ids import MessageRef

GREYLISTED_S = 20.0


@dataclass(frozen=True)
class Trouble:
    """The share of transactions that go each way; the rest is accepted and answered 250.

    ``unreached``: of connections. ``greylists``: whether a site knows whom it has seen before.
    """

    lost_before_dot: float = 0.0
    lost_after_dot: float = 0.0  # half of them had been taken
    refused_now: float = 0.0  # 4yz
    closing: float = 0.0  # 421 after the dot
    refused: float = 0.0  # 5yz
    unreached: float = 0.0


@dataclass
class Receiver:
    """``greylisters``: sites that refuse who they do not know. ``domains``: of each person."""

    random: Random
    clock: Clock
    greylisters: frozenset[str] = frozenset()
    trouble: Trouble = field(default_factory=Trouble)
    taken: dict[MessageRef, int] = field(default_factory=dict)
    seen: dict[MessageRef, int] = field(default_factory=dict)  # transactions
    refused: dict[MessageRef, str] = field(default_factory=dict)  # the last 4yz to each
    _known: dict[tuple[str, MessageRef], float] = field(default_factory=dict)

    def is_reached(self, lane: Lane) -> bool:
        return self.random.random() >= self.trouble.unreached

    def transact(self, ref: MessageRef, lane: Lane) -> Iterator[float]:
        """One transaction; a Sender may die at each ``yield``. Returns the ``Reply``."""
        self.seen[ref] = self.seen.get(ref, 0) + 1
        draw = self.random.random()
        yield 0.01
        if lane.site in self.greylisters and self._is_unknown(ref, lane):
            return self._later(
                ref,
                Reply(
                    Verdict.DEFERRED,
                    451,
                    "4.7.1 Greylisting in action, please come back later",
                    "greylisted",
                ),
            )
        for share, reply in self._refusals():
            if draw < share:
                return self._later(ref, reply) if reply.verdict is Verdict.DEFERRED else reply
            draw -= share
        lost = draw < self.trouble.lost_after_dot
        if not lost or self.random.random() < 0.5:
            self.taken[ref] = self.taken.get(ref, 0) + 1
        yield 0.01  # the final dot has gone out and the reply is under way
        if lost:
            return Reply(Verdict.UNCERTAIN, 0, "", "connection lost after the final dot")
        return Reply(Verdict.ACCEPTED, 250, "2.0.0 taken")

    def _is_unknown(self, ref: MessageRef, lane: Lane) -> bool:
        now_s = self.clock.monotonic()
        first_s = self._known.setdefault((lane.source, ref), now_s)
        return now_s - first_s < GREYLISTED_S

    def _later(self, ref: MessageRef, reply: Reply) -> Reply:
        self.refused[ref] = reply.text
        return reply

    def _refusals(self) -> list[tuple[float, Reply]]:
        trouble = self.trouble
        return [
            (trouble.lost_before_dot, Reply(Verdict.NOT_SENT, 0, "", "connection lost")),
            (trouble.refused_now, Reply(Verdict.DEFERRED, 451, "4.7.0 slow down", "slow down")),
            (trouble.closing, Reply(Verdict.DEFERRED, 421, "4.3.2 closing", "server closes")),
            (trouble.refused, Reply(Verdict.FAILED, 550, "5.1.1 no such", "no such mailbox")),
        ]
