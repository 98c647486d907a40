"""What is on record, judged again: newer lists change sides, what stands is left alone."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from manta.cli import app
from manta.cli.traffic import run
from manta.command import Change, Op
from manta.errors import InvalidRequest
from manta.traffic import judging
from manta.traffic.classifier import Signals, judge
from manta.traffic.reclassify import COLUMNS, CorrectTraffic, rejudge
from manta.traffic.together import Stored, write_properties
from manta.traffic.user_agents import Agent
from serve_apps.hits import Hit, track_hits
from tests.unit.people_shard import START, Shard, alias

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def hit(person: int, agent: str, human: float, seconds: float = 0, link: str | None = None) -> Hit:
    at = START + timedelta(seconds=seconds)
    type = "clicked" if link else "opened"
    return Hit(person, 5, 7, type, at, link, write_properties(Stored(agent)), human)


def lake(shard: Shard) -> duckdb.DuckDBPyConnection:
    """The shard's events as the lake shows them."""
    connection = duckdb.connect(":memory:")
    rows = shard.database.table("SELECT *, 0 AS shard FROM events")
    connection.register("events", rows)
    return connection


async def judged_again(shard: Shard, since: Any = START) -> dict[str, int]:
    async def correct(number: int, rows: pa.Table) -> int:
        assert number == 0
        return int(shard.answer(CorrectTraffic(None, rows)))

    return dict(await run(lake(shard), 1, since - timedelta(days=1), correct))


def sides(shard: Shard) -> list[tuple[str | None, bool]]:
    rows = shard.rows("SELECT item, human FROM events WHERE type <> 'sent' ORDER BY item, human")
    return [(item, human >= 0.5) for item, human in rows]


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    """A shard that judged nothing when it stored."""
    monkeypatch.setattr("manta.events.commands.judge_hits", lambda rows, *_: (rows, None))
    return Shard()


async def test_newer_lists_change_sides_and_a_second_run_changes_nothing(shard: Shard) -> None:
    ann, bob = shard.person("ann@x.example"), shard.person("bob@x.example")
    hits = [
        hit(ann, "python-requests/2.32", 0.9),  # taken for a person's by some earlier list
        hit(ann, FIREFOX, 0.01, 60, "/a"),  # and the other way round
        hit(bob, FIREFOX, judge(Signals("opened", Agent.BROWSER)).human, 5),
    ]
    shard.answer(track_hits(hits, "", Random(1)))
    found = await judged_again(shard)
    assert found["looked at"] == 3 and found["corrected"] == 2
    assert found["people until now, machines"] == found["machines until now, people"] == 1
    assert sides(shard) == [("/a", True), (None, False), (None, True)]
    again = await judged_again(shard)
    assert again["judged otherwise"] == 0 and "corrected" not in again
    assert shard.rows("SELECT count(*) FROM traffic_corrections") == [(2,)]


async def test_scans_that_nobody_saw_are_found(shard: Shard) -> None:
    ann = shard.person("ann@x.example")
    hits = [hit(ann, FIREFOX, 0.9, n, f"/{n}") for n in range(4)]
    shard.answer(track_hits(hits, "", Random(1)))
    await judged_again(shard)
    assert not any(person for _, person in sides(shard))
    causes = shard.rows("SELECT DISTINCT cause FROM traffic_corrections")
    assert causes == [("version:1,all_links",)]


async def test_live_and_later_judgement_agree() -> None:
    shard = Shard()
    ann = shard.person("ann@x.example")
    sent = {"subscriber_id": ann, "type": "sent", "event_id": 1, "campaign_id": 7}
    sent |= {"message_key": 5, "occurred_at": START - timedelta(seconds=8)}
    shard.write(Change("events", Op.INSERT, pa.Table.from_pylist([sent])))
    for n, link in enumerate([None, "/a", "/b", "/c"]):
        shard.now = START + timedelta(seconds=n)
        human = judge(Signals("clicked" if link else "opened", Agent.BROWSER)).human
        shard.answer(track_hits([hit(ann, FIREFOX, human, n, link)], "", Random(n)))
    before = sides(shard)
    assert not any(person for _, person in before)
    found = await judged_again(shard)
    assert found["people until now, machines"] == found["machines until now, people"] == 0
    assert sides(shard) == before


def test_an_imported_past_that_names_no_program_stays_unjudged() -> None:
    row = {"subscriber_id": 1, "message_key": 2, "type": "opened", "event_id": 3, "human": None}
    row |= {"occurred_at": START, "item": None, "properties": None, "merge_id": None}
    assert rejudge([row]).looked_at == 0
    named = rejudge([row | {"properties": '{"user_agent": "curl/8"}'}])
    assert (named.looked_at, named.now_machines) == (1, 1)


def test_a_correction_since_then_stays_and_nobody_who_is_gone_gets_one(shard: Shard) -> None:
    ann = shard.person("ann@x.example")
    live = [judging.Correction(ann, 1, 0.1, "decoy")]
    shard.write(Change("traffic_corrections", Op.UPSERT, judging.corrections_table(live, START)))
    row = {"subscriber_id": ann, "event_id": 1, "was": 0.9, "human": 0.95, "cause": "version:1"}
    shard.load("aliases", alias(77, ann))
    merged = row | {"subscriber_id": 77, "event_id": 3}
    rows = [row, row | {"event_id": 2}, row | {"subscriber_id": 99}, merged]
    assert shard.answer(CorrectTraffic(None, pa.Table.from_pylist(rows, COLUMNS))) == 2
    assert shard.rows("SELECT event_id, human FROM traffic_corrections ORDER BY 1") == [
        (1, 0.1),
        (2, 0.95),
        (3, 0.95),
    ]
    many = pa.Table.from_pylist([row] * 20_001, COLUMNS)
    with pytest.raises(InvalidRequest):
        shard.answer(CorrectTraffic(None, many))


def test_a_name_is_explained_on_the_command_line() -> None:
    result = CliRunner().invoke(app, ["traffic", "judge", "curl/8.5"])
    assert result.exit_code == 0 and "crawler" in result.output
    wrong = CliRunner().invoke(app, ["traffic", "reclassify", "--since", "ever"])
    assert wrong.exit_code == 1 and "90d" in wrong.output
