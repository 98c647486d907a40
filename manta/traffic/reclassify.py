"""Opens and clicks on record judged again, with newer lists, newer weights, and all hits of each
message in view.

Pure but for ``CorrectTraffic``, the command that brings what was found into a shard. Whoever runs
it reads ``HITS`` from the lake, person by person, in batches that fit memory. What a request showed
(a HEAD before, the decoy, a crowd) is kept as the hit's signs say; its program, its time and its
company are judged anew. Running it again, or after a crash, corrects what is left to correct: a hit
that is judged as it stands gets no row. A correction that a shard made since the lake was read
stays.

What nobody judged when it came (a past brought from elsewhere) is judged only where it says which
program asked. Networks are as they were seen: addresses are not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import InvalidRequest
from manta.schema import TRAFFIC_CORRECTIONS
from manta.traffic import VERSION
from manta.traffic.classifier import HUMAN_FROM, Signals, judge
from manta.traffic.together import (
    Fact,
    beside_each_other,
    read_properties,
    since_acceptance,
)

ROWS_MAX = 20_000  # of one command
DIFFERENCE_MIN = 0.02
OF_REQUESTS = frozenset({"decoy", "head_first", "many_from_one_address", "many_alike"})

# By shard, instant since when, and the part of so many parts; each person whole and in one part.
HITS = """
    SELECT e.subscriber_id, e.message_key, e.type, e.event_id, e.occurred_at, e.item,
        e.properties, e.human, e.merge_id
    FROM events e
    WHERE e.shard = $1 AND e.type IN ('sent', 'opened', 'clicked') AND e.message_key IS NOT NULL
        AND e.occurred_at >= $2 AND hash(e.subscriber_id) % $3 = $4
    ORDER BY e.subscriber_id, e.message_key, e.merge_id, e.occurred_at
"""
COUNT = """
    SELECT count(*) FROM events WHERE shard = $1 AND type IN ('sent', 'opened', 'clicked')
        AND occurred_at >= $2
"""
COLUMNS = pa.schema(
    [
        ("subscriber_id", pa.int64()),
        ("event_id", pa.int64()),
        ("was", pa.float64()),
        ("human", pa.float64()),
        ("cause", pa.string()),
    ]
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rejudged:
    """``rows``: see ``COLUMNS``. Counts of hits: looked at, and those that changed sides."""

    rows: list[dict[str, Any]]
    looked_at: int
    now_machines: int
    now_people: int


def rejudge(rows: Sequence[Row]) -> Rejudged:
    """The hits that are judged otherwise now. ``rows``: as ``HITS`` gives them."""
    changed: list[dict[str, Any]] = []
    looked_at = 0
    # What a merge copied is about another's mail, even where the key is the same.
    names = ("subscriber_id", "message_key", "merge_id")
    for _, message in groupby(rows, lambda row: [row[name] for name in names]):
        for row, human, signs in _message(list(message)):
            looked_at += 1
            was = row["human"]
            if was is None or abs(was - human) >= DIFFERENCE_MIN:
                cause = ",".join((f"version:{VERSION}", *signs))
                key = {"subscriber_id": row["subscriber_id"], "event_id": row["event_id"]}
                changed.append(key | {"was": was, "human": human, "cause": cause})
    machines = [row["human"] < HUMAN_FROM for row in changed]
    before = [row["was"] is not None and row["was"] < HUMAN_FROM for row in changed]
    sides = list(zip(before, machines, strict=True))
    return Rejudged(changed, looked_at, sides.count((False, True)), sides.count((True, False)))


def _message(rows: Sequence[Row]) -> Iterator[tuple[Row, float, tuple[str, ...]]]:
    sent_at = min((row["occurred_at"] for row in rows if row["type"] == "sent"), default=None)
    judged = [
        (row, stored)
        for row in rows
        if row["type"] != "sent"
        and ((stored := read_properties(row["properties"])).user_agent or row["human"] is not None)
    ]
    facts = [
        Fact(
            row["event_id"],
            row["type"],
            row["occurred_at"],
            row["item"],
            stored.agent,
            tuple(sign for sign in stored.signs if sign in OF_REQUESTS),
        )
        for row, stored in judged
    ]
    together = beside_each_other(facts)
    first_open = min((fact.at for fact in facts if fact.type == "opened"), default=datetime.max)
    for (row, stored), fact in zip(judged, facts, strict=True):
        timing: list[str] = []
        if sent_at is not None:
            timing = since_acceptance(fact, sent_at, first_open <= fact.at)
        signs = (*fact.signs, *together.get(fact.event_id, ()), *timing)
        judgement = judge(Signals(fact.type, fact.agent, stored.network, signs))
        yield row, judgement.human, signs


@dataclass(frozen=True)
class CorrectTraffic:
    """Bring corrections into the shard. ``rows``: see ``COLUMNS``; ``was`` is what was thought when
    they were made, and a hit of which something else is thought by now stays as it is. Rows of
    people who are gone are left out, those of merged people are not: what they did stays theirs.
    Answers how many were corrected."""

    key: str | None
    rows: pa.Table

    def decide(self, database: Database, context: Context) -> Decision:
        if self.rows.num_rows > ROWS_MAX:
            raise InvalidRequest(
                f"{self.rows.num_rows} corrections", path="rows", expected=f"at most {ROWS_MAX}"
            )
        kept = database.table(
            "SELECT r.subscriber_id, r.event_id, r.human, r.cause, ?::TIMESTAMP AS changed_at"
            " FROM given r JOIN (SELECT subscriber_id FROM profiles"
            " UNION SELECT from_id FROM aliases WHERE state <> 'undone') USING (subscriber_id)"
            " LEFT JOIN traffic_corrections c USING (subscriber_id, event_id)"
            " WHERE c.human IS NULL OR abs(c.human - r.was) < 1e-9"
            " QUALIFY row_number() OVER (PARTITION BY r.subscriber_id, r.event_id) = 1",
            [context.now],
            given=self.rows,
        )
        if not kept.num_rows:
            return Decision(0)
        return Decision(kept.num_rows, (Change(TRAFFIC_CORRECTIONS.name, Op.UPSERT, kept),))
