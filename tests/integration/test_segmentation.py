"""The batch job on Ray Data: one task per shard, the same members as the shards themselves say."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from manta.clock import ManualClock
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.store.objects import FileObjects
from manta.store.shard import ShardStore
from pipelines.segmentation import Question, dataset, plan, run
from tests.unit.store_shard import START, event, flush, person, write

SHARDS = 3
RULES = (
    {"event": {"type": "purchased", "within": {"last": {"days": 30}}}},
    {"not": {"event": {"type": "purchased"}}},
)


@pytest.fixture
def root(tmp_path: Path) -> tuple[str, dict[int, set[int]]]:
    """Shards on disk, and whom each rule holds for by their own databases."""
    random, truth = Random(3), dict[int, set[int]]()
    for shard in range(SHARDS):
        clock = ManualClock(START)
        objects = FileObjects(tmp_path)
        store = ShardStore(objects, "default", shard, bytes([shard]) * 16, clock, Random(shard))
        store.recover()
        changes = [person(id) for id in range(100 * shard + 1, 100 * shard + 51)]
        for _ in range(60):
            at = START - timedelta(days=random.uniform(0, 60))
            changes.append(event(100 * shard + random.randint(1, 50), "purchased", at))
        store.execute([write(*changes)])
        flush(store)
        for number, rule in enumerate(RULES, 1):
            compiled = compile_sql(parse(rule, {}), START)
            rows = store.database.rows(compiled.sql, compiled.params)
            truth.setdefault(number, set()).update(id for id, *_ in rows)
        store.close()
    return str(tmp_path), truth


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # of its own settings
@pytest.mark.filterwarnings("ignore::UserWarning:ray.data.context")
def test_a_run_is_a_dataset_of_one_task_per_shard(
    ray_cluster: str, root: tuple[str, dict[int, set[int]]]
) -> None:
    import ray

    folder, truth = root
    asked = [Question(number, rule, {}) for number, rule in enumerate(RULES, 1)]
    planned = plan(folder, "default", [START], questions=asked)
    made = dataset(planned)
    assert isinstance(made, ray.data.Dataset)
    done = made.materialize()
    assert done.num_blocks() == SHARDS
    assert re.search(rf"\b{SHARDS} tasks executed, {SHARDS} blocks produced", done.stats())
    found: dict[int, set[int]] = {}
    for shard in range(SHARDS):
        rows = pq.read_table(Path(folder) / planned.path(shard, START))
        for segment, id in zip(
            rows["segment_id"].to_pylist(), rows["subscriber_id"].to_pylist(), strict=True
        ):
            found.setdefault(segment, set()).add(id)
    assert found == truth
    report = run(planned)
    assert (report.shards, report.done_before, report.published) == (SHARDS, SHARDS, 1)
    assert {segment: n for (_, segment), n in report.counts.items()} == {
        number: len(ids) for number, ids in truth.items()
    }
