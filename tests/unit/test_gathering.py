"""Observations that differ in their instant alone are told once."""

from __future__ import annotations

from datetime import timedelta

from manta.clock import ManualClock
from manta.delivery.reputation.gathering import Gathering
from manta.delivery.reputation.observations import Observed, Seen

NOW = ManualClock().now()
ACCEPTED = Observed(NOW, Seen.ACCEPTED, "shop.example", "mx-a", "google", "mx", 7)


def test_like_ones_are_counted_together() -> None:
    gathering, later = Gathering(), NOW + timedelta(seconds=1)
    gathering.add(ACCEPTED._replace(messages=3, occurred_at=later))
    gathering.add(ACCEPTED._replace(campaign_id=8))
    gathering.add(ACCEPTED)
    assert gathering.take() == [
        ACCEPTED._replace(messages=4, occurred_at=later),
        ACCEPTED._replace(campaign_id=8),
    ]
    assert gathering.take() == [] and len(gathering) == 0


def test_beyond_so_many_texts_the_words_are_left_out() -> None:
    gathering = Gathering(texts_max=2)
    for n in range(5):
        gathering.add(ACCEPTED._replace(seen=Seen.DEFERRED, code=451, text=f"queue id {n % 4}"))
    told = gathering.take()
    assert [(o.text, o.messages) for o in told] == [
        ("queue id 0", 2), ("queue id 1", 1), ("", 2)
    ]  # fmt: skip
    gathering.add(ACCEPTED._replace(text="another"))
    assert gathering.take()[0].text == "another"
