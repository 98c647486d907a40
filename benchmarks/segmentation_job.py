"""The batch job of segments against plain DuckDB on the same files with as many threads.

A lake of two shards, 1 million people and 20 million events. The job (``pipelines.segmentation``)
answers a set of rules as a Ray Data dataset with one task per shard, one DuckDB thread in each; the
baseline is one DuckDB with two threads over the same Parquet files, asked by SQL as a good analyst
would write it, which also writes the members to Parquet. They take turns; the members must be the
same people. Starting Ray and the first worker processes is not counted: a dataset of the same shape
that does nothing runs before.

    python -m benchmarks.segmentation_job [--people 1000000] [--events 20000000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import duckdb
import pyarrow.parquet as pq

from benchmarks.data import END, people_and_events
from benchmarks.shards import hear, insert_all, open_store, report, say, scratch_root, spawn
from manta.store import lake
from manta.store.objects import open_objects
from pipelines.segmentation import Plan, Question, plan, run

SHARDS = 2
AIM = 1.5
TYPES = {"city": "string", "plan": "string", "age": "number", "active": "boolean"}
_MAILS = "type = 'sent' AND item = 'marketing' AND occurred_at <= $day_ago"


def _event(type_: str, days: int, **more: object) -> dict[str, object]:
    return {"event": {"type": type_, "within": {"last": {"days": days}}, **more}}


# The rule, and the same question by hand.
QUESTIONS: tuple[tuple[dict[str, object], str], ...] = (
    (
        {
            "all": [
                {"attribute": {"name": "city", "operator": "in", "value": ["Vienna", "Graz"]}},
                {"attribute": {"name": "age", "operator": "at_least", "value": 40}},
            ]
        },
        "SELECT subscriber_id FROM profiles WHERE lower(attr_city) IN ('vienna', 'graz')"
        " AND attr_age >= 40",
    ),
    (
        _event("purchased", 30),
        "SELECT DISTINCT subscriber_id FROM events WHERE type = 'purchased'"
        " AND occurred_at > $month_ago AND occurred_at <= $now",
    ),
    (
        _event("page_viewed", 90, count={"operator": "at_least", "value": 5}),
        "SELECT subscriber_id FROM events WHERE type = 'page_viewed'"
        " AND occurred_at > $quarter_ago AND occurred_at <= $now GROUP BY 1 HAVING count(*) >= 5",
    ),
    (
        _event("purchased", 365, sum={"property": "amount", "operator": "at_least", "value": 200}),
        "SELECT subscriber_id FROM events WHERE type = 'purchased'"
        " AND occurred_at > $year_ago AND occurred_at <= $now GROUP BY 1"
        " HAVING sum(CAST(round(amount * 1e6) AS HUGEINT)) >= 200000000",
    ),
    (
        {"all": [_event("clicked", 90), {"not": _event("purchased", 90)}]},
        "SELECT DISTINCT subscriber_id FROM events WHERE type = 'clicked'"
        " AND occurred_at > $quarter_ago AND occurred_at <= $now"
        " AND (human IS NULL OR human >= 0.5) AND subscriber_id NOT IN (SELECT subscriber_id"
        " FROM events WHERE type = 'purchased' AND occurred_at > $quarter_ago"
        " AND occurred_at <= $now)",
    ),
    (
        {
            "all": [
                _event("purchased", 180),
                {"last_messages": {"number": 3, "which": "none", "were": "opened"}},
            ]
        },
        "WITH buyers AS (SELECT DISTINCT subscriber_id FROM events WHERE type = 'purchased'"
        " AND occurred_at > $half_ago AND occurred_at <= $now), last_three AS (SELECT"
        " subscriber_id, message_key FROM events SEMI JOIN buyers USING (subscriber_id)"
        f" WHERE {_MAILS} QUALIFY row_number() OVER (PARTITION BY subscriber_id"
        " ORDER BY occurred_at DESC, message_key DESC) <= 3), opens AS (SELECT DISTINCT"
        " subscriber_id, message_key FROM events SEMI JOIN buyers USING (subscriber_id)"
        " WHERE type = 'opened' AND occurred_at <= $now AND (human IS NULL OR human >= 0.5))"
        " SELECT subscriber_id FROM last_three LEFT JOIN opens USING (subscriber_id, message_key)"
        " GROUP BY subscriber_id HAVING count(*) = 3 AND count(opens.message_key) = 0",
    ),
)


def build(root: str, shard: int, people: int, events: int) -> None:
    """One shard's files: what a flush of all of it and the merges after it leave."""
    half = (1 << 16) // SHARDS
    profiles, rows = people_and_events(
        people, events, seed=shard, buckets=(shard * half, (shard + 1) * half)
    )
    store = open_store(root, shard)
    store.recover()
    insert_all(store, profiles, rows, 100_000)
    store.freeze(even_if_early=True)
    store.maintain()
    say(files=sum(len(files) for files in store.maintenance.manifest.files.values()))


def by_hand(root: str, planned: Plan, target: Path) -> dict[int, int]:
    """The plain way over the same files; number of members of each question."""
    objects = open_objects(root)
    found = lake.manifests(objects)
    connection = duckdb.connect(config={"threads": SHARDS})
    for table in ("events", "profiles"):
        entries = [file for m in found.values() for file in m.files.get(table, ())]
        entries = [file for file in entries if file.kind != "history"]
        paths = [f"'{objects.local_path(file.path)}'" for file in entries]
        connection.execute(
            f"CREATE VIEW {table} AS SELECT * FROM"
            f" read_parquet([{', '.join(paths)}], union_by_name = true)"
        )
    ago = {"day": 1, "month": 30, "quarter": 90, "half": 180, "year": 365}
    values = {f"{name}_ago": END - timedelta(days=days) for name, days in ago.items()}
    values["now"] = END
    parts, counts = [], {}
    for number, (_, sql) in enumerate(QUESTIONS, 1):
        used = {name: value for name, value in values.items() if f"${name}" in sql}
        parts.append(connection.sql(sql, params=used).to_arrow_table())
        counts[number] = parts[-1].num_rows
        pq.write_table(parts[-1], target / f"{number}.parquet", compression="zstd")
    connection.close()
    return counts


def once(root: str, planned: Plan) -> tuple[float, dict[int, int]]:
    """A fresh run of the job: its files are removed first."""
    folder = Path(urlsplit(root).path) / "default" / "runs"
    for path in sorted(folder.rglob("*.parquet")):
        path.unlink()
    began = time.perf_counter()
    counts = run(planned).counts
    return time.perf_counter() - began, {segment: n for (_, segment), n in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build", nargs=2, metavar=("ROOT", "SHARD"))
    options = parser.parse_args()
    each = (options.people // SHARDS, options.events // SHARDS)
    if options.build:
        build(options.build[0], int(options.build[1]), *each)
        return
    import ray

    with scratch_root() as root:
        size = ["--people", str(options.people), "--events", str(options.events)]
        for shard in range(SHARDS):  # one after the other: each needs several GiB
            child = spawn("benchmarks.segmentation_job", "--build", root, str(shard), *size)
            print(f"shard {shard}: {hear(child)['files']} files", file=sys.stderr)
            child.wait()
        asked = [Question(n, rule, TYPES) for n, (rule, _) in enumerate(QUESTIONS, 1)]
        planned = plan(root, "default", [END], questions=asked)
        ray.init("local", num_cpus=SHARDS, log_to_driver=False, include_dashboard=False)
        try:
            ray.data.from_items([{"n": n} for n in range(SHARDS)], override_num_blocks=SHARDS).map(
                lambda row: row, num_cpus=1
            ).take_all()
            jobs, hands = [], []
            target = Path(urlsplit(root).path)
            for turn in range(options.rounds + 1):
                took, counts = once(root, planned)
                began = time.perf_counter()
                plainly = by_hand(root, planned, target)
                by_hand_s = time.perf_counter() - began
                assert counts == plainly, f"different members: {counts} and {plainly}"
                if turn:  # the first turn warms the page cache
                    jobs.append(took)
                    hands.append(by_hand_s)
        finally:
            ray.shutdown()
    job_s, hand_s = median(jobs), median(hands)
    report(
        "segmentation_job",
        job_s / hand_s,
        "times plain DuckDB with two threads on the same files, the same answers",
        AIM,
        hand_s,
        ratio=round(job_s / hand_s, 3),
        job_seconds=round(job_s, 3),
        by_hand_seconds=round(hand_s, 3),
        members=counts,
        people=options.people,
        events=options.events,
    )


if __name__ == "__main__":
    main()
