"""The batch job without Ray: its plan, one shard's task, going on after a break, publication."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from manta.clock import ManualClock, as_text
from manta.errors import InvalidRequest
from manta.people.definitions import SetDefinition
from manta.store.objects import FileObjects
from manta.store.shard import ShardStore
from pipelines.segmentation import Question, instants, main, plan, publish, run_shard
from tests.unit.store_shard import START, event, flush, person, write

BOUGHT = {"event": {"type": "purchased", "within": {"last": {"days": 30}}}}
LINZ = {"attribute": {"name": "city", "operator": "equals", "value": "Linz"}}


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Two shards: persons 1 and 2 in the first, 3 in the second."""
    for shard, people in ((0, (1, 2)), (1, (3,))):
        clock = ManualClock(START)
        store = ShardStore(
            FileObjects(tmp_path), "default", shard, bytes([shard]) * 16, clock, Random(shard)
        )
        store.recover()
        for id in people:
            changes = [person(id, created_at=START - timedelta(days=90))]
            if id != 2:
                changes.append(event(id, "purchased", START - timedelta(days=10 * id)))
            store.execute([write(*changes)])
        body: dict[str, Any] = {"rule": BOUGHT, "attributes": {}, "live": True}
        store.execute([SetDefinition(None, "segment", "4", 1 + shard, body)])
        store.execute([SetDefinition(None, "segment", "5", 1, {"rule": None, "attributes": {}})])
        flush(store)
    return str(tmp_path)


def members(root: str, planned: Any, at: Any) -> list[int]:
    found: list[int] = []
    for shard, _ in planned.manifests:
        rows = pq.read_table(Path(root) / planned.path(shard, at))
        assert rows.column_names == ["as_of", "segment_id", "subscriber_id"]
        found += rows["subscriber_id"].to_pylist()
    return sorted(found)


def test_members_of_the_lakes_own_segments_at_several_instants(root: str) -> None:
    moments = [START, START + timedelta(days=15), START - timedelta(days=25)]
    planned = plan(root, "default", moments)
    assert [question.segment_id for question in planned.questions] == [4]
    assert [shard for shard, _ in planned.manifests] == [0, 1]
    for shard, number in planned.manifests:
        run_shard(planned, shard, number)
    assert [members(root, planned, at) for at in moments] == [[1], [1], [3]]
    later = plan(root, "default", [START - timedelta(days=1)])
    figures = [row for shard, number in later.manifests for row in run_shard(later, shard, number)]
    assert sum(row["members"] for row in figures) == 2


def test_a_run_that_was_broken_off_goes_on(root: str) -> None:
    planned = plan(root, "default", [START])
    (first, number), (second, other) = planned.manifests
    run_shard(planned, first, number)
    again = plan(root, "default", [START])
    assert again.run_id == planned.run_id
    done = [row["done_before"] for row in run_shard(again, first, number)]
    done += [row["done_before"] for row in run_shard(again, second, other)]
    assert done == [True, False]
    assert plan(root, "default", [START], zone="Europe/Oslo").run_id != planned.run_id


def test_runs_are_published_by_numbers(root: str) -> None:
    planned = plan(root, "default", [START])
    assert [publish(planned, {(as_text(START), 4): 1}) for _ in range(2)] == [1, 2]


def test_what_cannot_be_asked_is_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no segment 9"):
        plan(root, "default", [START], segments=[9])
    with pytest.raises(InvalidRequest, match="no lake"):
        plan(str(tmp_path / "empty"), "default", [START])
    with pytest.raises(InvalidRequest, match="city"):
        plan(root, "default", [START], questions=[Question(0, LINZ, {})])
    assert main(["--root", root, "--segment", "9"]) == 1


def test_a_back_fill_has_an_instant_for_each_step() -> None:
    class Options:
        since, until, every_days, as_of = "2026-01-01", "2026-01-15T12:00:00Z", 7.0, None

    found = instants(Options, START)  # type: ignore[arg-type]
    assert [as_text(at)[:10] for at in found] == ["2026-01-01", "2026-01-08", "2026-01-15"]
