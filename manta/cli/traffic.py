"""``manta traffic``: which opens and clicks are people's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manta.cli.cluster import RAY_ADDRESS, Address
from manta.cli.common import door, facts, say, table
from manta.errors import InvalidRequest, NotReady

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from manta.cli.common import Door

app = typer.Typer(no_args_is_help=True)
PART_ROWS = 500_000  # rows of the lake that are held at once
# A shard's number and corrections; answers how many it took.
Correct = Callable[[int, "pa.Table"], Awaitable[int]]


@app.command(help="How a program is judged by its name, and why.")
def judge(
    user_agent: Annotated[str, typer.Argument(help="What it calls itself.")],
    network: Annotated[str, typer.Option(help="An address, for its network.")] = "",
) -> None:
    from manta.traffic.classifier import Signals, reason
    from manta.traffic.classifier import judge as judged
    from manta.traffic.networks import network_of
    from manta.traffic.user_agents import recognise

    agent, kind = recognise(user_agent), network_of(network).kind
    rows = []
    for type in ("opened", "clicked"):
        judgement = judged(Signals(type, agent, kind))
        why = "; ".join(reason(cause, type) for cause in judgement.causes)
        rows.append((type, f"{judgement.human:.3f}", why))
    table(f"{agent}", ("event", "p(a person)", "why"), rows)


@app.command(help="Judge what is on record again, by the present lists and weights.")
def reclassify(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="How far back: 24h, 90d.")] = "400d",
    ray: Address = RAY_ADDRESS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
) -> None:
    import asyncio

    from manta.clock import SystemClock
    from manta.delivery.shaping.file import duration_s

    here = door(context)
    seconds = duration_s(since)
    if not seconds:
        raise InvalidRequest(f"{since!r:.40} is no time", path="--since", expected="24h, 90d")
    began = SystemClock().now() - timedelta(seconds=min(seconds, 3_650 * 86_400.0))
    found = asyncio.run(_with_shards(here, ray, began, dry_run))
    facts(dict(found))
    if dry_run:
        say("nothing was changed")


async def _with_shards(here: Door, ray: str, began: datetime, dry_run: bool) -> Counter[str]:
    from manta.store import lake

    correct = None if dry_run else await _shards(here, ray)
    with lake.open(here.settings.root, here.settings.workspace) as connection:
        return await run(connection, here.settings.shards, began, correct)


async def _shards(here: Door, ray: str) -> Correct:
    from actors import bootstrap
    from manta.cli import head
    from manta.traffic.reclassify import CorrectTraffic

    if not head.listens(ray):
        raise NotReady(
            f"nobody listens at {ray}", path="--ray", expected="a Ray that runs: `manta up`"
        )
    head.join(ray)
    handles = await bootstrap.find(here.settings)

    async def correct(shard: int, rows: pa.Table) -> int:
        return int(await handles.shards.execute(shard, CorrectTraffic(None, rows)))

    return correct


async def run(
    connection: duckdb.DuckDBPyConnection, shards: int, since: datetime, correct: Correct | None
) -> Counter[str]:
    """Judge the lake's hits shard by shard, part by part; without ``correct`` only count."""
    import pyarrow as pa

    from manta.traffic.reclassify import COLUMNS, COUNT, HITS, ROWS_MAX, rejudge

    counts: Counter[str] = Counter()
    for shard in range(shards):
        ((rows,),) = connection.execute(COUNT, [shard, since]).fetchall()
        parts = rows // PART_ROWS + 1
        for part in range(parts):
            hits: list[dict[str, Any]] = (
                connection.sql(HITS, params=[shard, since, parts, part])
                .to_arrow_table()
                .to_pylist()
            )
            found = rejudge(hits)
            counts["looked at"] += found.looked_at
            counts["judged otherwise"] += len(found.rows)
            counts["people until now, machines"] += found.now_machines
            counts["machines until now, people"] += found.now_people
            if correct is None:
                continue
            for first in range(0, len(found.rows), ROWS_MAX):
                batch = pa.Table.from_pylist(found.rows[first : first + ROWS_MAX], COLUMNS)
                counts["corrected"] += await correct(shard, batch)
    return counts
