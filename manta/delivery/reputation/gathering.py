"""Observations on their way to Reputation: like ones are counted together.

A Sender makes thousands of outcomes a second and few kinds of them. What differs in its instant
alone is told once, with the number of messages and the latest instant. Servers word some replies
anew for every message (queue ids, times), so the number of texts is limited: what comes beyond it
is counted by its code and class, without its words, which no rule can match then.
"""

from __future__ import annotations

from datetime import datetime

from manta.delivery.reputation.observations import Observed

TEXTS_MAX = 200


class Gathering:
    """What has been observed and not been told yet."""

    def __init__(self, texts_max: int = TEXTS_MAX) -> None:
        self._texts_max = texts_max
        self._texts: set[str] = set()
        self._counted: dict[Observed, tuple[datetime, int]] = {}

    def __len__(self) -> int:
        return len(self._counted)

    def add(self, observed: Observed) -> None:
        if observed.text and observed.text not in self._texts:
            if len(self._texts) < self._texts_max:
                self._texts.add(observed.text)
            else:
                observed = observed._replace(text="")
        key = observed._replace(occurred_at=datetime.min, messages=0)
        at, messages = self._counted.get(key, (observed.occurred_at, 0))
        self._counted[key] = (max(at, observed.occurred_at), messages + observed.messages)

    def take(self) -> list[Observed]:
        """All of it, in the order in which each kind came first; then there is none."""
        taken = [
            key._replace(occurred_at=at, messages=messages)
            for key, (at, messages) in self._counted.items()
        ]
        self._texts.clear()
        self._counted.clear()
        return taken
