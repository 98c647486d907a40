"""Opens and clicks on their way into a shard: judged by what their request says, then many requests
become one Arrow batch and one command.

A replica judges by the program, the network (where the address is believed) and what it sees by
itself: the same asked for by HEAD just before, and one program that is suddenly everywhere. Time
and company are the shard's to judge, which sees all hits of a message
(``manta.traffic.judging``). What a replica remembers for this is bounded, and nothing is lost with
it but a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa

from actors.handles import Shards
from manta.events.commands import TrackHits
from manta.people.history import random_int64
from manta.people.identifying import forward
from manta.traffic.classifier import Signals, judge
from manta.traffic.networks import network_of
from manta.traffic.together import Stored, write_properties
from manta.traffic.user_agents import recognise
from serve_apps.gather import Gatherer

HEAD_BEFORE_S = 10.0
HEADS_MAX = 10_000
# Of one program from one address: an office reads fewer messages than this within a second.
ONE_ADDRESS_MAX = 10
# Of one program from addresses that are not known: so many messages within a second, if its share
# of all hits is also so many times its usual one. Of that nothing is said before enough were seen.
ALIKE_MAX = 30
ALIKE_TIMES = 8.0
SEEN_MIN = 1_000
USUAL_KEPT = 0.98  # of a share's past, each second
PROGRAMS_MAX = 4_096


class Hit(NamedTuple):
    """One open or click by somebody's program."""

    subscriber_id: int
    message_key: int
    campaign_id: int
    type: str  # opened | clicked
    occurred_at: datetime
    item: str | None  # the page that a click leads to
    properties: str | None
    human: float


class Asked(NamedTuple):
    """What a request says of who asks. ``address``: empty where it is not known."""

    agent: str
    address: str = ""


class Witness:
    """Judges the hits of one replica. ``now_s`` is a monotonic clock's."""

    def __init__(self) -> None:
        self._heads: dict[tuple[int, int, int], float] = {}
        self._crowd = _Crowd()

    def head(self, person: int, message: int, link: int, now_s: float) -> None:
        """Somebody asked by HEAD, which counts nothing."""
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[person, message, link] = now_s

    def judged(
        self, type: str, ref: tuple[int, int, int], asked: Asked, decoy: bool, now_s: float
    ) -> tuple[str | None, float]:
        """The properties of a hit, and the probability that a person did it.

        ``ref``: person, message and link.
        """
        signs: tuple[str, ...] = ("decoy",) if decoy else ()
        if self._heads:
            head_at = self._heads.pop(ref, None)
            if head_at is not None and now_s - head_at <= HEAD_BEFORE_S:
                signs += ("head_first",)
        if sign := self._crowd.sign(asked, ref[:2], now_s):
            signs += (sign,)
        network = network_of(asked.address).kind if asked.address else ""
        judgement = judge(Signals(type, recognise(asked.agent), network, signs))
        return write_properties(Stored(asked.agent, network, signs)), judgement.human


class _Crowd:
    """How many messages each program asks for in the present second, and its usual share."""

    def __init__(self) -> None:
        self._second = -1
        self._total = 0
        self._counts: dict[Asked, int] = {}
        self._last: dict[Asked, tuple[int, int]] = {}
        self._usual: dict[str, float] = {}
        self._usual_total = 0.0

    def sign(self, asked: Asked, message: tuple[int, int], now_s: float) -> str:
        """The sign that this hit shows, or none."""
        second = int(now_s)
        if second != self._second:
            self._turn(second)
        self._total += 1
        if self._last.get(asked) != message:
            self._last[asked] = message
            count = self._counts[asked] = self._counts.get(asked, 0) + 1
        else:
            count = self._counts[asked]
        if asked.address:
            return "many_from_one_address" if count > ONE_ADDRESS_MAX else ""
        if count <= ALIKE_MAX or self._usual_total < SEEN_MIN:
            return ""
        usual = self._usual.get(asked.agent, 0.0) / self._usual_total
        return "many_alike" if count / self._total > ALIKE_TIMES * usual else ""

    def _turn(self, second: int) -> None:
        """The second is over: what was seen in it becomes usual."""
        for agent in self._usual:
            self._usual[agent] *= USUAL_KEPT
        self._usual_total = self._usual_total * USUAL_KEPT + self._total
        for asked, count in self._counts.items():
            if not asked.address:
                self._usual[asked.agent] = self._usual.get(asked.agent, 0.0) + count
        if len(self._usual) > PROGRAMS_MAX:
            most = sorted(self._usual.items(), key=lambda each: -each[1])
            self._usual = dict(most[: PROGRAMS_MAX // 2])
        self._second, self._total = second, 0
        self._counts.clear()
        self._last.clear()


def track_hits(hits: Sequence[Hit], key: str, random: Random) -> TrackHits:
    """The command of a batch. A hit has no name of its own, so it gets a random event id."""
    people, messages, campaigns, types, times, items, texts, human = zip(*hits, strict=True)
    rows = pa.table(
        {
            "subscriber_id": pa.array(people, pa.int64()),
            "message_key": pa.array(messages, pa.int64()),
            "campaign_id": pa.array(campaigns, pa.int32()),
            "type": pa.array(types, pa.string()),
            "occurred_at": pa.array(times, pa.timestamp("us")),
            "item": pa.array(items, pa.string()),
            "properties": pa.array(texts, pa.string()),
            "human": pa.array(human, pa.float64()),
            "event_id": random_int64(len(hits), random),
        }
    )
    return TrackHits(key, rows)


def hit_gatherer(shards: Shards, producer: str, random: Random) -> Gatherer[Hit]:
    """``producer`` names this incarnation of the replica: it begins the keys of its batches."""

    async def after(answer: Any, key: str) -> None:
        copies = getattr(answer, "copies", ())
        if copies:
            await forward(shards, copies, key)

    return Gatherer(
        shards,
        lambda hits, key: track_hits(hits, key, random),
        f"hits:{producer}",
        after=after,
    )
