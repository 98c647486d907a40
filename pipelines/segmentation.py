"""Who is in which segment, now or at any past instant, over the whole lake.

    python -m pipelines.segmentation --root .manta/data
    python -m pipelines.segmentation --root .manta/data --segment 7 --as-of 2026-03-01
    python -m pipelines.segmentation --root s3://bucket/manta --rule rule.json \\
        --from 2026-01-01 --to 2026-03-01 --every-days 7

The segments are those that the shards know; ``--rule`` asks one of your own, a file with the rule's
JSON. The job is a Ray Data dataset with one row and one task per shard: everything about a person
lies in one shard, so each task answers its shard alone with DuckDB, and nothing is shuffled. A task
writes one Parquet file for each instant:

    <root>/<workspace>/runs/segmentation/<run>/as_of=2026-03-01T00:00:00Z/shard=000.parquet

with ``as_of``, ``segment_id`` and ``subscriber_id``. The run is named by what it asks and of which
state of the lake, so that a run which was broken off goes on where it was: shards that have their
files are not asked again. The newest run is what ``runs/segmentation/published/`` points to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manta.clock import SystemClock, as_text, parse_instant
from manta.errors import Conflict, InvalidRequest, MantaError
from manta.people.definitions import SEGMENT
from manta.rules.nodes import Rule
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.schema import AttributeType
from manta.store import lake
from manta.store.manifest import Manifest, Manifests
from manta.store.objects import AlreadyExists, ObjectStore, open_objects

FOLDER = "runs/segmentation"
INSTANTS_MAX = 400
RULE_OF_ONES_OWN = 0  # the number of a segment that is not one of the workspace
SCHEMA = pa.schema(
    {"as_of": pa.timestamp("us"), "segment_id": pa.int32(), "subscriber_id": pa.int64()}
)


@dataclass(frozen=True)
class Question:
    """A segment to find the members of; ``attributes``: name → type of those that it names."""

    segment_id: int
    rule: Mapping[str, Any]
    attributes: Mapping[str, str]

    def parsed(self) -> Rule:
        return parse(self.rule, {name: AttributeType(t) for name, t in self.attributes.items()})


@dataclass(frozen=True)
class Plan:
    """What a run does: every task is one shard at one manifest, with all questions and instants."""

    root: str
    workspace: str
    zone: str
    questions: tuple[Question, ...]
    instants: tuple[datetime, ...]
    manifests: tuple[tuple[int, int], ...]  # shard and the number of its manifest

    @property
    def run_id(self) -> str:
        asked = [
            self.zone,
            [[q.segment_id, q.rule, q.attributes] for q in self.questions],
            [as_text(at) for at in self.instants],
            self.manifests,
        ]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return digest[:16]

    def path(self, shard: int, at: datetime) -> str:
        folder = f"{self.workspace}/{FOLDER}/{self.run_id}/as_of={as_text(at)}"
        return f"{folder}/shard={shard:03d}.parquet"


@dataclass(frozen=True)
class Report:
    """What a run came to. ``counts``: (instant, segment) → members."""

    run_id: str
    shards: int
    done_before: int
    seconds: float
    counts: Mapping[tuple[str, int], int]
    published: int


def plan(
    root: str,
    workspace: str,
    instants: Sequence[datetime],
    *,
    questions: Sequence[Question] = (),
    segments: Sequence[int] = (),
    zone: str = "UTC",
) -> Plan:
    """A run over the lake as it is now. Without questions: the workspace's segments (``segments``:
    only these). Raises ``InvalidRequest``."""
    objects = open_objects(root)
    found = lake.manifests(objects, workspace)
    if not found:
        raise InvalidRequest(
            f"there is no lake of workspace {workspace} in {root}",
            path="root",
            expected="the storage root of a workspace that has flushed",
        )
    if not 1 <= len(instants) <= INSTANTS_MAX:
        raise InvalidRequest(
            f"{len(instants)} instants", path="as_of", expected=f"1 to {INSTANTS_MAX}"
        )
    asked = tuple(questions) or _questions(objects, list(found.values()), segments)
    for question in asked:
        question.parsed()  # what is wrong is said before anything starts
    numbers = tuple((shard, manifest.number) for shard, manifest in sorted(found.items()))
    return Plan(root, workspace, zone, asked, tuple(instants), numbers)


def _questions(
    objects: ObjectStore, manifests: Sequence[Manifest], only: Sequence[int]
) -> tuple[Question, ...]:
    """The segments with a rule, as the newest word of any shard has them."""
    newest: dict[int, tuple[int, str | None]] = {}
    with lake.of_manifests(objects, manifests) as connection:
        rows = connection.execute(
            "SELECT id, version, body FROM definitions WHERE kind = ?", [SEGMENT]
        ).fetchall()
    for id, version, body in rows:
        if version > newest.get(int(id), (-1, None))[0]:
            newest[int(id)] = (version, body)
    bodies = {id: json.loads(body) for id, (_, body) in newest.items() if body}
    unknown = sorted(set(only) - {id for id, body in bodies.items() if body["rule"]})
    if unknown:
        raise InvalidRequest(
            f"the lake knows no segment {unknown[0]} with a rule",
            path="segment",
            expected=", ".join(map(str, sorted(bodies))) or "a segment, saved a minute ago or more",
        )
    return tuple(
        Question(id, body["rule"], body["attributes"])
        for id, body in sorted(bodies.items())
        if body["rule"] and (not only or id in only)
    )


# -- one shard -------------------------------------------------------------------------------------


def run_shard(plan: Plan, shard: int, number: int) -> list[dict[str, Any]]:
    """Answer all questions of one shard and write its files: one row of figures for each."""
    objects = open_objects(plan.root)
    figures = []
    for at in plan.instants:
        path, began = plan.path(shard, at), time.perf_counter()
        stored = objects.get(path)
        done_before = stored is not None
        if stored is not None:
            members = pq.read_table(BytesIO(stored), columns=["segment_id"])
        else:
            members = _members(objects, plan, shard, number, at)
            sink = BytesIO()
            pq.write_table(members, sink, compression="zstd")
            objects.put(path, sink.getvalue())
        counted = members["segment_id"].value_counts().to_pylist()
        counts = {each["values"]: each["counts"] for each in counted}
        for question in plan.questions:
            figures.append(
                {
                    "shard": shard,
                    "as_of": as_text(at),
                    "segment_id": question.segment_id,
                    "members": counts.get(question.segment_id, 0),
                    "done_before": done_before,
                    "seconds": time.perf_counter() - began,
                }
            )
    return figures


def _members(objects: ObjectStore, plan: Plan, shard: int, number: int, at: datetime) -> pa.Table:
    manifest = Manifests(
        objects, f"{plan.workspace}/manifest/shard={shard:03d}", SystemClock()
    ).read(number)
    if manifest is None:
        raise Conflict(
            f"manifest {number} of shard {shard} is gone: the lake has moved on",
            path="manifest",
            expected="a new run",
        )
    past = at if at < SystemClock().now() - timedelta(seconds=1) else None
    parts = []
    with lake.of_manifests(objects, [manifest], past, threads=1) as connection:
        described = connection.sql("DESCRIBE profiles").fetchall()
        columns = [name for name, *_ in described]
        for question in plan.questions:
            rule = without_unknown(question.parsed(), columns)
            compiled = compile_sql(rule, at, plan.zone)
            ids = connection.sql(compiled.sql, params=compiled.params).to_arrow_table()
            ids = ids.column(0).combine_chunks().cast(pa.int64())
            parts.append(
                pa.table(
                    {
                        "as_of": pa.repeat(pa.scalar(at, pa.timestamp("us")), len(ids)),
                        "segment_id": pa.repeat(
                            pa.scalar(question.segment_id, pa.int32()), len(ids)
                        ),
                        "subscriber_id": ids,
                    }
                )
            )
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


# -- the run ---------------------------------------------------------------------------------------


def dataset(plan: Plan) -> Any:
    """The Ray Data dataset of a plan: one block, and so one task, per shard."""
    import ray

    # The tasks hardly answer anything, so all of them may run at once: without this Ray Data keeps
    # half of the processors for reading results.
    ray.data.DataContext.get_current().op_resource_reservation_enabled = False
    tasks = [{"shard": shard, "manifest": number} for shard, number in plan.manifests]
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    return rows.flat_map(
        lambda task: run_shard(plan, int(task["shard"]), int(task["manifest"])), num_cpus=1
    )


def run(plan: Plan) -> Report:
    """Run it in the Ray cluster that this process is connected to, and publish it."""
    began = time.perf_counter()
    rows = dataset(plan).take_all()
    counts: dict[tuple[str, int], int] = {}
    for row in rows:
        key = (row["as_of"], row["segment_id"])
        counts[key] = counts.get(key, 0) + row["members"]
    before = len({row["shard"] for row in rows if row["done_before"]})
    seconds = time.perf_counter() - began
    published = publish(plan, counts)
    return Report(plan.run_id, len(plan.manifests), before, seconds, counts, published)


def publish(plan: Plan, counts: Mapping[tuple[str, int], int]) -> int:
    """Point to the run by the next number; readers take the highest."""
    objects = open_objects(plan.root)
    folder = f"{plan.workspace}/{FOLDER}/published"
    taken = [int(Path(path).stem) for path in objects.list(f"{folder}/")]
    number = max(taken, default=0) + 1
    document = {
        "run": plan.run_id,
        "manifests": [list(pair) for pair in plan.manifests],
        "files": [plan.path(s, at) for s, _ in plan.manifests for at in plan.instants],
        "counts": [[at, segment, count] for (at, segment), count in sorted(counts.items())],
    }
    while True:
        try:
            path = f"{folder}/{number:06d}.json"
            objects.put_if_absent(path, json.dumps(document).encode())
            return number
        except AlreadyExists:
            number += 1


# -- by hand ---------------------------------------------------------------------------------------


def instants(options: argparse.Namespace, now: datetime) -> list[datetime]:
    if options.since is None:
        return [_instant(options.as_of) if options.as_of else now]
    first = _instant(options.since)
    last = _instant(options.until) if options.until else now
    step = timedelta(days=options.every_days)
    return [first + n * step for n in range(max(0, (last - first) // step) + 1)]


def _instant(text: str) -> datetime:
    try:
        return parse_instant(text if "T" in text else f"{text}T00:00:00Z")
    except ValueError:
        raise InvalidRequest(
            f"{text!r:.40} is no instant", path="as_of", expected="2026-03-01 or RFC 3339"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.segmentation")
    parser.add_argument("--root", required=True, help="the storage root")
    parser.add_argument("--workspace", default="default")
    parser.add_argument("--segment", type=int, action="append", default=[], help="only these")
    parser.add_argument("--rule", help="a file with a rule of your own, instead of the segments")
    parser.add_argument("--zone", default="UTC", help="the workspace's time zone")
    parser.add_argument("--as-of", help="a past instant, in UTC; default: now")
    parser.add_argument("--from", dest="since", help="back-fill from this instant on")
    parser.add_argument("--to", dest="until", help="back-fill until this instant; default: now")
    parser.add_argument("--every-days", type=float, default=1.0)
    parser.add_argument("--address", help="of a Ray cluster; default: this machine")
    options = parser.parse_args(arguments)
    try:
        questions = [_own_question(options)] if options.rule else []
        planned = plan(
            options.root,
            options.workspace,
            instants(options, SystemClock().now()),
            questions=questions,
            segments=options.segment,
            zone=options.zone,
        )
        report = _run_on_ray(planned, options.address)
    except (MantaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for (at, segment), count in sorted(report.counts.items()):
        print(f"{at}  segment {segment}: {count} people")
    print(
        f"run {report.run_id}: {report.shards} shards ({report.done_before} done before) in "
        f"{report.seconds:.1f} s, published as number {report.published}"
    )
    return 0


def _own_question(options: argparse.Namespace) -> Question:
    """The rule of a file, with the types of attributes as the lake has them."""
    rule = json.loads(Path(options.rule).read_text(encoding="utf-8"))
    with lake.open(options.root, options.workspace) as connection:
        types = lake.attribute_types(connection)
    return Question(RULE_OF_ONES_OWN, rule, {name: str(kind) for name, kind in types.items()})


def _run_on_ray(planned: Plan, address: str | None) -> Report:
    import ray

    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    try:
        return run(planned)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
