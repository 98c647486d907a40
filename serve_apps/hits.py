"""Opens and clicks on their way into a shard: many requests, one Arrow batch, one command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from random import Random
from typing import NamedTuple

import pyarrow as pa

from actors.handles import Shards
from manta.events.commands import TrackHits
from manta.people.history import random_int64
from serve_apps.gather import Gatherer


class Hit(NamedTuple):
    """One open or click by somebody's program."""

    subscriber_id: int
    message_key: int
    campaign_id: int
    type: str  # opened | clicked
    occurred_at: datetime
    item: str | None  # the page that a click leads to
    user_agent: str


def track_hits(hits: Sequence[Hit], key: str, random: Random) -> TrackHits:
    """The command of a batch. A hit has no name of its own, so it gets a random event id."""
    people, messages, campaigns, types, times, items, agents = zip(*hits, strict=True)
    rows = pa.table(
        {
            "subscriber_id": pa.array(people, pa.int64()),
            "message_key": pa.array(messages, pa.int64()),
            "campaign_id": pa.array(campaigns, pa.int32()),
            "type": pa.array(types, pa.string()),
            "occurred_at": pa.array(times, pa.timestamp("us")),
            "item": pa.array(items, pa.string()),
            "properties": pa.array([_properties(agent) for agent in agents], pa.string()),
            "event_id": random_int64(len(hits), random),
        }
    )
    return TrackHits(key, rows)


def hit_gatherer(shards: Shards, producer: str, random: Random) -> Gatherer[Hit]:
    """``producer`` names this incarnation of the replica: it begins the keys of its batches."""
    return Gatherer(shards, lambda hits, key: track_hits(hits, key, random), f"hits:{producer}")


@lru_cache(maxsize=4_096)  # few programs make most of the hits
def _properties(user_agent: str) -> str | None:
    return json.dumps({"user_agent": user_agent}) if user_agent else None
