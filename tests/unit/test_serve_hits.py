"""A batch of hits on a real shard database: who is gone, who was merged, what is kept."""

from __future__ import annotations

from random import Random

from manta.traffic.together import Stored, write_properties
from serve_apps.hits import Hit, track_hits
from tests.unit.people_shard import START, Shard


def hit(person: int, kind: str = "opened", item: str | None = None, agent: str = "Mail/1") -> Hit:
    properties = write_properties(Stored(agent))
    return Hit(person, 5, 7, kind, START, item, properties, 0.9)


def test_hits_of_the_living_are_kept_and_merged_people_found():
    shard = Shard()
    ann, bob = shard.person("ann@x.example"), shard.person("bob@x.example")
    merge = {"from_id": 77, "to_id": bob, "merge_id": 1, "state": "merged", "cause": "merge"}
    shard.load("aliases", merge | {"created_at": START, "changed_at": START})
    hits = [hit(ann), hit(99), hit(77, "clicked", "https://x.example/"), hit(ann, agent="")]
    assert shard.answer(track_hits(hits, "k1", Random(1))).recorded == 3
    rows = shard.rows(
        "SELECT subscriber_id, type, item, campaign_id, message_key, properties FROM events"
        " ORDER BY ALL"
    )
    agent = '{"user_agent": "Mail/1"}'
    assert sorted(rows, key=str) == sorted(
        [
            (ann, "opened", None, 7, 5, agent),
            (ann, "opened", None, 7, 5, None),
            (77, "clicked", "https://x.example/", 7, 5, agent),
            (bob, "clicked", "https://x.example/", 7, 5, agent),
        ],
        key=str,
    )


def test_a_batch_of_nobody_leaves_nothing():
    shard = Shard()
    assert shard.answer(track_hits([hit(99)], "k1", Random(1))).recorded == 0
    assert shard.rows("SELECT count(*) FROM events") == [(0,)]


def test_each_hit_has_its_own_event_id():
    rows = track_hits([hit(1)] * 50, "k", Random(1)).rows
    assert len(set(rows["event_id"].to_pylist())) == 50
