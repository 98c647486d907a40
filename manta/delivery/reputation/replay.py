"""What the law would have done: recorded outcomes are seen again, in their own time.

The past stays as it was: an action that would have been taken holds nothing back of what comes
after it, so what a rehearsal shows is the first answer to each trouble, and where the trouble would
have been answered again. Pure, and bounded by what shards give (``recall.ROWS_MAX`` rows each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from manta.clock import as_text
from manta.delivery.reputation.norms import Norms
from manta.delivery.reputation.observations import Observed
from manta.delivery.reputation.reputation import Reputation, Rules
from manta.delivery.reputation.windows import Unit

STEP = timedelta(seconds=60)
ACTIONS_SHOWN = 1_000


def rehearse(
    observed: Iterable[Observed],
    norms: Norms,
    rules: Rules,
    ceiling: Callable[[Unit], float],
) -> dict[str, Any]:
    """``observed`` in any order. Answers ``actions`` (documents, at most ``ACTIONS_SHOWN``, in the
    order in which they would have begun), their number, and of when and how much was seen."""
    past = sorted(observed, key=lambda each: each.occurred_at)
    reputation = Reputation(norms, rules, ceiling)
    begun: dict[int, dict[str, Any]] = {}

    def decide(now: datetime) -> None:
        ruling = reputation.decide(now)
        reputation.apply(ruling)
        for action in ruling.actions:
            if action.id in begun or len(begun) < ACTIONS_SHOWN:
                begun[action.id] = action.to_document()

    batch: list[Observed] = []
    for each in past:
        if batch and each.occurred_at - batch[0].occurred_at >= STEP:
            _see(reputation, batch, decide)
            batch = []
        batch.append(each)
    if batch:
        _see(reputation, batch, decide)
    return {
        "actions": list(begun.values()),
        "actions_total": reputation.head.last_action,
        "since": as_text(past[0].occurred_at) if past else None,
        "until": as_text(past[-1].occurred_at) if past else None,
        "messages": sum(each.messages for each in past),
    }


def _see(reputation: Reputation, batch: list[Observed], decide: Callable[[datetime], None]) -> None:
    now = batch[-1].occurred_at
    reputation.observe(batch, now)
    decide(now)
