"""Delivery over the API, the client and the command line, with a real Reputation behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import manta.client
from actors.reputation import ReputationActor
from actors.throttle import Throttle
from manta.cli import app
from manta.client import Client
from manta.delivery.lanes import Limits
from manta.delivery.reputation import norms
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.shaping import shaping
from manta.errors import Conflict, Forbidden, InvalidRequest, NotFound
from manta.settings import EgressSource
from manta.store.documents import Documents
from tests.unit.bridge import URL, Town, town


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as built:
        built.run(_delivery(built))
        yield built
        built.run(_stop(built))


async def _delivery(place: Town) -> None:
    """A Reputation and a Throttle beside the house's other actors."""
    house = place.house

    def documents(role: str) -> Documents:
        return Documents(house.objects, f"default/journal/{role}", role, b"r" * 16, house.clock)

    async def find_handles() -> Any:
        return house.handles

    def end(reason: str) -> None:
        raise AssertionError(reason)

    house.calls.roles["reputation"] = ReputationActor(
        documents("reputation"),
        end,
        house.clock,
        house.calls,
        find_handles,
        [EgressSource("mx-a", kind="direct")],
        shaping.builtin(),
        norms.builtin(),
    )
    limits = {"mx-a": Limits(10.0, 10, 5)}
    house.calls.roles["throttle"] = Throttle(documents("throttle"), end, house.clock, limits)
    for role in ("reputation", "throttle"):
        await house.calls.roles[role].start()


async def _stop(place: Town) -> None:
    reputation = place.house.calls.roles["reputation"]
    for task in list(reputation._tasks):
        task.cancel()
    await asyncio.gather(*reputation._tasks, return_exceptions=True)


@pytest.fixture
def client(place: Town) -> Iterator[Client]:
    with Client(URL, place.key(), transport=place.bridge) as opened:
        yield opened


@pytest.fixture
def run(place: Town, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manta.client, "Client", partial(Client, transport=place.bridge))
    monkeypatch.setenv("MANTA_URL", URL)
    monkeypatch.setenv("MANTA_API_KEY", place.key())
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, fails: bool = False) -> str:
        result = CliRunner().invoke(app, ["delivery", *arguments])
        assert result.exit_code == (1 if fails else 0), result.output
        assert "Traceback" not in result.output
        return result.output

    return invoke


def trouble(place: Town) -> None:
    """A campaign with hard bounces, seen and decided upon."""

    async def see() -> None:
        reputation = place.house.calls.roles["reputation"]
        lane = ("shop.example", "mx-a", "google", "google", 7)
        now = place.house.clock.now()
        await reputation.observe(
            [
                Observed(now, Seen.ACCEPTED, *lane, messages=400),
                Observed(now, Seen.FAILED, *lane, BounceClass.HARD, messages=100),
            ]
        )
        await reputation.decide_now()

    place.run(see())


def test_an_action_is_shown_with_its_figures_and_undone(place: Town, client: Client) -> None:
    assert client.actions() == []
    trouble(place)
    (action,) = client.actions()
    assert action["kind"] == "limit" and action["is_active"]
    assert "20 % hard bounces (100 of 500) at google" in action["cause"]
    assert action["figures"]["messages"] == 500 and action["figures"]["limit"] == 0.1
    stands = client.delivery()
    assert stands["reputation"]["courses"][0]["phase"] == "slowed"
    assert stands["throttle"]["ready"]
    undone = client.undo(action["id"])
    assert undone["undone_by"].startswith("test") and not undone["is_active"]
    assert client.actions() == [] and len(client.actions(all=True)) == 1
    with pytest.raises(Conflict, match="was undone"):
        client.undo(action["id"])
    with pytest.raises(NotFound):
        client.undo(99)


def test_an_operator_suspends_and_slows(client: Client) -> None:
    made = client.suspend("moving the address", source="mx-a", duration_s=600)
    assert (made["kind"], made["scope"]["source"], made["cause"]) == (
        "suspend",
        "mx-a",
        "moving the address",
    )
    slow = client.suspend("carefully", provider="yahoo", rate_per_s=0.5)
    assert (slow["kind"], slow["limits"]["rate_per_s"]) == ("limit", 0.5)
    assert [a["id"] for a in client.actions()] == [slow["id"], made["id"]]


def test_what_is_wrong_is_named(client: Client) -> None:
    for fields, where in (
        ({"source": "nowhere"}, "scope.source"),
        ({"duration_s": 0}, "duration_s"),
        ({"duration_s": 1e12}, "duration_s"),
        ({"campaign_id": -1}, "campaign_id"),
        ({"provider": "x" * 300}, "provider"),
        ({"rate_per_s": -1.0}, "rate_per_s"),
        ({"cause": " "}, "cause"),
    ):
        asked: dict[str, Any] = {"cause": "why"} | fields
        with pytest.raises(InvalidRequest) as refused:
            client.suspend(**asked)
        assert where in f"{refused.value.details}"


def test_reading_is_not_changing(place: Town) -> None:
    header = place.run(place.house.key("delivery:read"))["Authorization"]
    with Client(URL, header.removeprefix("Bearer "), transport=place.bridge) as reader:
        assert reader.actions() == []
        with pytest.raises(Forbidden, match="delivery:write"):
            reader.suspend("why", source="mx-a")


def test_the_shaping_is_changed_and_a_mistake_is_refused(client: Client) -> None:
    shipped = client.shaping()
    assert shipped["text"] == "" and "google" in shipped["providers"]
    text = "[provider.google]\nconnections_max = 1\n"
    assert client.set_shaping(text)["version"] != shipped["version"]
    assert client.shaping()["text"] == text
    with pytest.raises(InvalidRequest, match="connection"):
        client.set_shaping("[provider.google]\nconnection_max = 1\n")
    assert client.shaping()["text"] == text
    assert client.set_shaping("")["version"] == shipped["version"]


def test_a_rehearsal_of_an_empty_past(client: Client) -> None:
    found = client.rehearse_law()
    assert (found["actions"], found["rules"], found["messages"]) == ([], [], 0)
    with pytest.raises(InvalidRequest, match="confidence"):
        client.rehearse_law(limits="confidence = 2.0\n")


def test_pages_of_actions(place: Town, client: Client) -> None:
    for n in range(3):
        client.suspend(f"cause {n}", provider=f"p{n}")
    first = client._http.get("/delivery/actions", limit=2)
    assert [a["cause"] for a in first["items"]] == ["cause 2", "cause 1"]
    rest = client._http.get("/delivery/actions", limit=2, cursor=first["next"])
    assert [a["cause"] for a in rest["items"]] == ["cause 0"] and rest["next"] is None


def test_a_part_that_is_away_says_so(place: Town, client: Client) -> None:
    throttle = place.house.calls.roles["throttle"]

    async def away() -> None:
        raise Conflict("not today")

    throttle.status = away
    assert client.delivery()["throttle"] == {"ready": False, "reason": "not today"}


def test_the_command_line(place: Town, client: Client, run: Any) -> None:
    trouble(place)
    said = run("show")
    assert "shop.example" in said and "ACT" in said and "google" in said
    said = run("actions")
    assert "hard bounces" in said and "source mx-a, provider google" in said
    (first,) = (action["id"] for action in client.actions())
    said = run("action", str(first))
    assert "lower_bound" in said and "Steps" in said
    assert run("suspend", "spam trap", "--provider", "yahoo", "--hours", "2").startswith(
        f"action {first + 1}: suspend provider yahoo"
    )
    assert run("undo", str(first)) == f"action {first} is undone\n"
    assert "1 actions hold" in run("show")
    assert "undone by test" in run("actions", "--all")
    assert "was undone already" in run("undo", str(first), fails=True)
    assert "no action 9" in run("action", "9", fails=True)
