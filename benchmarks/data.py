"""Seeded people and events for benchmarks: vectorised, the same for the same seed.

The shape is that of a shop's list: campaigns go out over a year, a part of the mails is opened and
clicked by the people who got them, and purchases and page views come between. Few people do much
(activity is Pareto-like), as on real lists.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa

from manta.ids import campaign_message_key
from manta.schema import EVENTS
from manta.store.statements import arrow_schema

END = datetime(2026, 7, 1)
YEAR_US = 365 * 86_400 * 1_000_000
CAMPAIGNS = 100
ITEMS = 2_000
CITIES = ("Vienna", "Graz", "Linz", "Berlin", "Hamburg", "Munich", "Zurich", "Basel", "Paris")
PLANS = ("free", "basic", "plus", "business")
TAGS = ("vip", "newsletter", "sale", "outdoor", "kids", "wine", "garden", "books")
SHARES = {"sent": 0.45, "opened": 0.18, "clicked": 0.05, "purchased": 0.05}  # the rest: page views

_END_US = int(np.datetime64(END, "us").astype(np.int64))


def people_and_events(
    people: int, events: int, seed: int, buckets: tuple[int, int] = (0, 1 << 16)
) -> tuple[pa.Table, pa.Table]:
    """Profiles with attributes, and their events of the year before ``END`` in order of time.

    ``buckets`` (first, end) is the range of the shard that the people belong to.
    """
    rng = np.random.default_rng(seed)
    low, high = buckets[0] << 47, buckets[1] << 47
    ids = np.unique(rng.integers(low + 1, high, people + people // 100 + 10))[:people]
    rng.shuffle(ids)
    return _profiles(ids, rng), _events(ids, events, rng)


def _profiles(ids: np.ndarray, rng: np.random.Generator) -> pa.Table:
    n = len(ids)
    created = _END_US - rng.integers(0, 3 * YEAR_US, n)
    born = rng.integers(-25 * 365, 35 * 365, n) * 86_400_000_000
    tag_counts = rng.integers(0, 4, n)
    offsets = np.concatenate([[0], np.cumsum(tag_counts)]).astype(np.int32)
    tags = pa.array(TAGS).take(pa.array(rng.integers(0, len(TAGS), int(offsets[-1]))))
    number = np.arange(n).astype(str)
    return pa.table(
        {
            "subscriber_id": pa.array(ids, pa.int64()),
            "email": pa.array(np.char.add(np.char.add("person", number), "@example.com")),
            "time_zone": pa.nulls(n, pa.string()),
            "locale": _words(("de-AT", "de-DE", "en", "fr"), rng, n),
            "created_at": pa.array(created, pa.timestamp("us")),
            "updated_at": pa.array(created, pa.timestamp("us")),
            "attr_city": _words(CITIES, rng, n),
            "attr_plan": _words(PLANS, rng, n),
            "attr_age": pa.array(rng.integers(18, 90, n).astype(float), mask=rng.random(n) < 0.2),
            "attr_active": pa.array(rng.random(n) < 0.7),
            "attr_birthday": pa.array(born, pa.timestamp("us"), mask=rng.random(n) < 0.3),
            "attr_tags": pa.ListArray.from_arrays(pa.array(offsets), tags),
        }
    )


def _events(ids: np.ndarray, events: int, rng: np.random.Generator) -> pa.Table:
    counts = {kind: int(events * share) for kind, share in SHARES.items()}
    weights = rng.pareto(1.5, len(ids)) + 0.05
    weights /= weights.sum()
    sent = counts["sent"]
    campaign = rng.integers(0, CAMPAIGNS, sent)
    keys = np.array([campaign_message_key(i + 1) for i in range(CAMPAIGNS)])
    sent_at = _END_US - YEAR_US + campaign * (YEAR_US // CAMPAIGNS)
    sent_at = sent_at + rng.integers(0, 3_600_000_000, sent)
    person = rng.choice(len(ids), sent, p=0.5 * weights + 0.5 / len(ids))
    opened = rng.integers(0, sent, counts["opened"])
    clicked = opened[rng.integers(0, counts["opened"], counts["clicked"])]
    others = events - sent - counts["opened"] - counts["clicked"]
    bought, active = counts["purchased"], rng.choice(len(ids), others, p=weights)

    def after(rows: np.ndarray) -> np.ndarray:
        lag_us = rng.exponential(6 * 3600e6, len(rows)).astype(np.int64)
        return np.minimum(sent_at[rows] + lag_us, _END_US - 1)

    skus = np.char.add("sku-", np.arange(ITEMS).astype(str))
    blank = pa.nulls(len(opened), pa.string())
    items = pa.chunked_array(
        [
            pa.array(["marketing"]).take(pa.array(np.zeros(sent, np.int64))),
            blank,
            pa.array(skus).take(pa.array(rng.integers(0, ITEMS, len(clicked) + others))),
        ]
    )
    kinds = np.repeat(np.arange(5), [sent, len(opened), len(clicked), bought, others - bought])
    about = np.concatenate([campaign, campaign[opened], campaign[clicked]])
    none = np.zeros(others, np.int64)
    has_message = kinds < 3
    amounts = np.round(rng.lognormal(3.2, 0.8, events), 2)
    table = pa.table(
        {
            "subscriber_id": pa.array(
                ids[np.concatenate([person, person[opened], person[clicked], active])]
            ),
            "occurred_at": pa.array(
                np.concatenate(
                    [
                        sent_at,
                        after(opened),
                        after(clicked),
                        _END_US - 1 - rng.integers(0, YEAR_US, others),
                    ]
                ),
                pa.timestamp("us"),
            ),
            "type": pa.array(["sent", "opened", "clicked", "purchased", "page_viewed"]).take(
                pa.array(kinds)
            ),
            "event_id": pa.array(rng.integers(-(1 << 63), (1 << 63) - 1, events)),
            "campaign_id": pa.array(
                np.concatenate([about + 1, none]).astype(np.int32), mask=~has_message
            ),
            "message_key": pa.array(np.concatenate([keys[about], none]), mask=~has_message),
            "item": items.combine_chunks(),
            "amount": pa.array(amounts, mask=kinds != 3),
            "properties": pa.nulls(events, pa.string()),
            "human": pa.nulls(events, pa.float64()),
            "merge_id": pa.nulls(events, pa.int64()),
        }
    )
    return table.cast(arrow_schema(EVENTS)).sort_by("occurred_at")


def _words(words: tuple[str, ...], rng: np.random.Generator, n: int) -> pa.Array:
    return pa.array(words).take(pa.array(rng.integers(0, len(words), n)))
