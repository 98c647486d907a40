"""Rehearsals over the API, the client and the command line, with real shards, Catalog, Director,
Throttle and Reputation behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import manta.client
from actors.director import Director
from actors.reputation import ReputationActor
from actors.throttle import Throttle
from manta.cli import app
from manta.client import Client
from manta.command import Context
from manta.delivery.lanes import Site
from manta.delivery.outcomes import OutcomeKind
from manta.delivery.rehearsal.audiences import audience_domains, provider_outcomes
from manta.delivery.reputation import norms
from manta.delivery.shaping import shaping
from manta.delivery.throttle.ways import Ways, limits_of
from manta.errors import Conflict, Damaged, InvalidRequest, MantaError, NotFound
from manta.settings import EgressSource, Pool, PoolMember, Settings
from manta.store.documents import Documents
from serve_apps.api import rehearsals
from tests.unit.bridge import URL, Town, town
from tests.unit.delivery_shard import CAMPAIGN, SendingShard, refs
from tests.unit.serve_world import SHARDS

SETTINGS = Settings(
    shards=SHARDS,
    senders=1,
    return_path_domain="bounces.shop.example",
    egress=(
        EgressSource("new", kind="direct", cold_since="2026-02-20"),
        EgressSource("old", kind="direct"),
        EgressSource("relay"),
    ),
    pools=(Pool("main", (PoolMember("new"), PoolMember("old"))),),
)
EVERYBODY = {"all": []}
HTML = '<p>Hi</p><a href="{{ unsubscribe_url }}">Leave</a>'
TEMPLATE = {"subject": "Hi", "html": HTML, "from_email": "a@shop.example"}


class Resolver:
    """Each domain is a site of its own."""

    async def sites(self, domains: list[str], direct: bool) -> dict[str, Site | None]:
        return {domain: Site(f"mx.{domain}", "google") for domain in domains}


class Broken:
    async def sites(self, *arguments: Any) -> Any:
        raise Damaged("cannot")

    law = status = sites


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as built:
        built.run(_begin(built))
        yield built
        built.run(_stop(built))


async def _begin(place: Town) -> None:
    house = place.house

    def documents(role: str) -> Documents:
        return Documents(house.objects, f"default/journal/{role}", role, b"r" * 16, house.clock)

    async def find_handles() -> Any:
        return house.handles

    common = (house._end, house.clock)
    roles = house.calls.roles
    roles["director"] = Director(
        documents("director"), *common, house.calls, find_handles, lambda _: None, SETTINGS
    )  # type: ignore[arg-type]
    roles["reputation"] = ReputationActor(
        documents("reputation"),
        *common,
        house.calls,
        find_handles,
        SETTINGS.egress,
        shaping.builtin(),
        norms.builtin(),
    )
    roles["throttle"] = Throttle(
        documents("throttle"), *common, limits_of(SETTINGS), Ways.of(SETTINGS)
    )
    for role in ("director", "reputation", "throttle"):
        await roles[role].start()
    roles["resolver"] = Resolver()


async def _stop(place: Town) -> None:
    for role in ("director", "reputation"):
        actor = place.house.calls.roles[role]
        for task in list(actor._tasks):
            task.cancel()
        await asyncio.gather(*actor._tasks, return_exceptions=True)
    director = place.house.calls.roles["director"]
    await director._assigner.stop()
    director._thread.shutdown()


@pytest.fixture
def client(place: Town, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(manta.client.http, "RETRY_S", 0.0)
    with Client(URL, place.key(), transport=place.bridge) as opened:
        yield opened


def draft(client: Client, source: str = "main") -> int:
    people = [f"p{n}@{'gmail.com' if n % 3 else 'shop.test'}" for n in range(60)]
    client.import_people(pd.DataFrame({"email": people}))
    template = client.create_template("News", **TEMPLATE)["template_id"]
    created = client.create_campaign("News", template, rule=EVERYBODY, source=source)
    return int(created["id"])


def test_a_rehearsal_is_kept_with_its_campaign(client: Client) -> None:
    campaign = draft(client)
    assert client.forecast(campaign) == {"forecast": None, "comparison": None}
    forecast = client.rehearse(campaign, seed=5)
    assert forecast["messages"] == 60 and forecast["runs"] > 1
    assert [each["provider"] for each in forecast["providers"]] == ["google"]
    assert [warmed["source"] for warmed in forecast["warmups"]] == ["new"]
    assert forecast["total"]["done_s"][1] > 0
    assert client.forecast(campaign) == {"forecast": forecast, "comparison": None}
    again = client.rehearse(campaign, at="2026-04-01T09:00:00Z")
    assert again["starts_at"].startswith("2026-04-01T09:00:00")
    assert client.forecast(campaign)["forecast"] == again


def test_after_the_end_it_is_held_against_what_came(client: Client) -> None:
    campaign = draft(client)
    client.rehearse(campaign)
    client.launch(campaign)
    with pytest.raises(Conflict, match="is running"):
        client.rehearse(campaign)
    assert client.forecast(campaign)["comparison"] is None
    client.cancel(campaign)
    comparison = client.forecast(campaign)["comparison"]
    assert comparison["total"]["figures"]["accepted"]["came"] == 0
    assert not comparison["total"]["figures"]["accepted"]["is_met"]


def test_what_does_not_answer_is_said(place: Town, client: Client) -> None:
    campaign = draft(client)
    roles = place.house.calls.roles
    there = {role: roles[role] for role in ("throttle", "reputation", "resolver")}
    roles.update(dict.fromkeys(there, Broken()))
    forecast = client.rehearse(campaign)
    roles.update(there)
    said = " ".join(forecast["assumptions"])
    assert "Throttle did not answer" in said and "Resolver did not answer" in said
    assert forecast["messages"] == 60


def test_nobody_to_mail_and_unknown_campaigns_are_refused(client: Client) -> None:
    template = client.create_template("News", **TEMPLATE)["template_id"]
    campaign = client.create_campaign("News", template, rule=EVERYBODY)["id"]
    with pytest.raises(InvalidRequest, match="nobody"):
        client.rehearse(campaign)
    with pytest.raises(NotFound):
        client.rehearse(99)
    with pytest.raises(NotFound):
        client.forecast(99)


def test_one_at_a_time(client: Client) -> None:
    campaign = draft(client, "relay")
    with rehearsals._working, pytest.raises(MantaError, match="another campaign"):
        client.rehearse(campaign)
    assert client.rehearse(campaign)["total"]["accepted"][1] == 60


def test_a_forgotten_campaign_leaves_no_forecast(client: Client) -> None:
    campaign = draft(client)
    client.rehearse(campaign)
    client._http.request("DELETE", f"/campaigns/{campaign}")
    with pytest.raises(NotFound):
        client.forecast(campaign)


@pytest.fixture
def run(place: Town, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manta.client, "Client", partial(Client, transport=place.bridge))
    monkeypatch.setenv("MANTA_URL", URL)
    monkeypatch.setenv("MANTA_API_KEY", place.key())
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, fails: bool = False) -> str:
        result = CliRunner().invoke(app, ["campaign", *arguments])
        assert result.exit_code == (1 if fails else 0), result.output
        assert "Traceback" not in result.output
        return result.output

    return invoke


def test_the_command_line_shows_it_and_compares(run: Any, client: Client) -> None:
    campaign = draft(client)
    shown = run("rehearse", str(campaign))
    for words in ("95 % settled after", "google", "Warm-up", "spilled", "assumed: nothing else"):
        assert words in shown
    assert "has not ended" in run("rehearse", str(campaign), "--compare", fails=True)
    client.launch(campaign)
    client.cancel(campaign)
    assert "of the figures lay within" in run("rehearse", str(campaign), "--compare")


# -- reads -----------------------------------------------------------------------------------------


@pytest.fixture
def shard() -> SendingShard:
    """Six people, of whom one has left."""
    shard = SendingShard(6)
    shard.load("consents", shard.consent(6, "unsubscribed"))
    shard.start()
    return shard


def context_of(shard: SendingShard) -> Context:
    return Context(shard.now, shard.random, "w", 0)


def test_an_audience_by_domain_leaves_out_who_may_not_be_mailed(shard: SendingShard) -> None:
    asked = {
        "rule": EVERYBODY,
        "attributes": {},
        "kind": "marketing",
        "channel": "email",
        "topic": "news",
    }
    found = audience_domains(shard.database, context_of(shard), asked)
    planned = shard.database.rows("SELECT count(*) FROM ledger WHERE state = 'planned'")[0][0]
    assert sum(n for _, n, _ in found["domains"]) == planned == 5
    assert found["rest"] == (0, 0, 0) and found["left_out"] == 1
    few = audience_domains(shard.database, context_of(shard), asked | {"limit": 1})
    assert len(few["domains"]) == 1
    assert few["domains"][0][1] + few["rest"][1] == 5 and few["rest"][0] > 0
    anybody = audience_domains(shard.database, context_of(shard), asked | {"kind": "transactional"})
    assert anybody["left_out"] == 0
    with pytest.raises(InvalidRequest, match="domains"):
        audience_domains(shard.database, context_of(shard), asked | {"limit": 10_000})


def test_outcomes_by_provider(shard: SendingShard) -> None:
    one, two = refs(shard.lease(limit=2))
    shard.settle(
        1,
        shard.outcome(one, OutcomeKind.ACCEPTED, reply_code=250, reply="ok"),
        shard.outcome(two, OutcomeKind.FAILED, reason="no mailbox", reply_code=550, reply="5.1.1"),
    )
    rows = provider_outcomes(shard.database, context_of(shard), {"campaign_id": CAMPAIGN})
    assert sum(row["messages"] for row in rows) == 5
    assert sum(row["accepted"] for row in rows) == sum(row["failed"] for row in rows) == 1
    assert sum(row["pending"] for row in rows) == 3
