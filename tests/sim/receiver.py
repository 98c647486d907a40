"""The other side of SMTP: remembers every message that it has taken, and makes trouble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from manta.delivery.replies import Reply, Verdict
from manta.ids import MessageRef


@dataclass(frozen=True)
class Trouble:
    """The share of transactions that go each way; the rest is accepted and answered 250."""

    lost_before_dot: float = 0.0
    lost_after_dot: float = 0.0  # half of them had been taken
    refused_now: float = 0.0  # 4yz
    closing: float = 0.0  # 421 after the dot
    refused: float = 0.0  # 5yz


@dataclass
class Receiver:
    random: Random
    trouble: Trouble = field(default_factory=Trouble)
    taken: dict[MessageRef, int] = field(default_factory=dict)

    def transact(self, ref: MessageRef) -> Iterator[float]:
        """One transaction; a Sender may die at each ``yield``. Returns the ``Reply``."""
        draw = self.random.random()
        yield 0.01
        for share, reply in self._refusals():
            if draw < share:
                return reply
            draw -= share
        lost = draw < self.trouble.lost_after_dot
        if not lost or self.random.random() < 0.5:
            self.taken[ref] = self.taken.get(ref, 0) + 1
        yield 0.01  # the final dot has gone out and the reply is under way
        if lost:
            return Reply(Verdict.UNCERTAIN, 0, "", "connection lost after the final dot")
        return Reply(Verdict.ACCEPTED, 250, "2.0.0 taken")

    def _refusals(self) -> list[tuple[float, Reply]]:
        trouble = self.trouble
        return [
            (trouble.lost_before_dot, Reply(Verdict.NOT_SENT, 0, "", "connection lost")),
            (trouble.refused_now, Reply(Verdict.DEFERRED, 451, "4.7.1 later", "greylisted")),
            (trouble.closing, Reply(Verdict.DEFERRED, 421, "4.3.2 closing", "server closes")),
            (trouble.refused, Reply(Verdict.FAILED, 550, "5.1.1 no such", "no such mailbox")),
        ]
