"""A rule compiled to SQL against the same question written by hand as plain DuckDB SQL.

The question: who bought a product in the last 30 days but opened none of the last 3 mails, among
250,000 people with 5 million events. Both run on the same rows in the same order with the same
index and one thread, by turns; planning and the compilation of the rule are part of each run. The
hand-written query is what a good analyst would write: it finds the buyers first and looks at the
mails of those only. The same is measured for buyers of anything, a much larger crowd.

    python -m benchmarks.segment [--people 250000] [--events 5000000] [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median
from typing import Any

import duckdb

from benchmarks.data import END, people_and_events
from manta.rules.meaning import register
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.schema import EVENTS, AttributeType

AIM = 1.3
ITEM = "sku-7"
ATTRIBUTES = {"city": AttributeType.STRING}

BY_HAND = """
WITH buyers AS (
    SELECT DISTINCT subscriber_id FROM events
    WHERE type = 'purchased' {item} AND occurred_at > $month_ago AND occurred_at <= $now
), last_three AS (
    SELECT subscriber_id, message_key FROM events SEMI JOIN buyers USING (subscriber_id)
    WHERE type = 'sent' AND item = 'marketing' AND occurred_at <= $day_ago
    QUALIFY row_number() OVER (PARTITION BY subscriber_id ORDER BY occurred_at DESC) <= 3
), opens AS (
    SELECT DISTINCT subscriber_id, message_key FROM events SEMI JOIN buyers USING (subscriber_id)
    WHERE type = 'opened' AND occurred_at <= $now
)
SELECT subscriber_id FROM last_three LEFT JOIN opens USING (subscriber_id, message_key)
GROUP BY subscriber_id HAVING count(*) = 3 AND count(opens.message_key) = 0
"""


def question(item: str | None) -> dict[str, Any]:
    where = [{"property": "item", "operator": "equals", "value": item}] if item else []
    bought = {"type": "purchased", "where": where, "within": {"last": {"days": 30}}}
    opened_none = {"number": 3, "which": "none", "were": "opened"}
    return {"all": [{"event": bought}, {"last_messages": opened_none}]}


def loaded(people: int, events: int) -> duckdb.DuckDBPyConnection:
    """A database like a shard's: one thread, the index on the person made before loading."""
    profiles, rows = people_and_events(people, events, seed=7)
    connection = duckdb.connect(config={"threads": 1})
    register(connection)
    columns = ", ".join(f"{name} {type_}" for name, type_ in EVENTS.columns)
    connection.execute(f"CREATE TABLE events ({columns})")
    connection.execute("CREATE INDEX events_by_person ON events (subscriber_id)")
    connection.register("profile_rows", profiles)
    connection.register("event_rows", rows)
    connection.execute("CREATE TABLE profiles AS FROM profile_rows")
    connection.execute("INSERT INTO events BY NAME FROM event_rows")
    return connection


def timed(run: Callable[[], list[Any]]) -> tuple[float, list[int]]:
    start = time.perf_counter()
    rows = run()
    return time.perf_counter() - start, sorted(row[0] for row in rows)


def compare(connection: duckdb.DuckDBPyConnection, item: str | None, rounds: int) -> dict[str, Any]:
    """Medians of both ways over ``rounds`` turns; the answers must be the same people."""
    month_ago, day_ago = END - timedelta(days=30), END - timedelta(hours=24)
    by_hand = BY_HAND.format(item="AND item = $item" if item else "")
    values = {"now": END, "month_ago": month_ago, "day_ago": day_ago}
    values |= {"item": item} if item else {}

    def ours() -> list[Any]:
        compiled = compile_sql(parse(question(item), ATTRIBUTES), END)
        return connection.execute(compiled.sql, compiled.params).fetchall()

    def theirs() -> list[Any]:
        return connection.execute(by_hand, values).fetchall()

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        order = [("ours", ours), ("theirs", theirs)][:: 1 if turn % 2 else -1]
        answers = []
        for name, run in order:
            took, people = timed(run)
            answers.append(people)
            if turn:  # the first turn warms up
                seconds[name].append(took)
        assert answers[0] == answers[1], "the two ways found different people"
    mine, baseline = median(seconds["ours"]), median(seconds["theirs"])
    return {
        "ratio": round(mine / baseline, 3),
        "seconds": round(mine, 4),
        "by_hand_seconds": round(baseline, 4),
        "people": len(answers[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=250_000)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with loaded(options.people, options.events) as connection:
        one = compare(connection, ITEM, options.rounds)
        print(f"bought {ITEM}, opened none of the last 3 mails: {one}")
        anything = compare(connection, None, options.rounds)
        print(f"bought anything, opened none of the last 3 mails: {anything}")
    worst = max(one["ratio"], anything["ratio"])
    result = {
        "name": "segment",
        "ratio": worst,
        "unit": "times the hand-written SQL, the worse of the two questions",
        "aim": AIM,
        "pass": worst <= AIM,
        "baseline": {"product": one, "anything": anything},
        "people": options.people,
        "events": options.events,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
