"""Hits of one message together, in a real shard database: scans, their traces in earlier hits, and
people who are left alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.command import Change, Op
from manta.traffic.classifier import Signals, judge
from manta.traffic.together import (
    Fact,
    Stored,
    beside_each_other,
    read_properties,
    write_properties,
)
from manta.traffic.user_agents import Agent, recognise
from serve_apps.hits import Hit, track_hits
from tests.unit.people_shard import START, Shard

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
CAMPAIGN, MESSAGE = 7, 5


class Desk:
    """A shard, one person with one message, and what programs do with it."""

    def __init__(self) -> None:
        self.shard = Shard()
        self.person = self.shard.person("ann@x.example")
        self.random = Random(3)

    def sent(self, ago_s: float, message: int = MESSAGE) -> None:
        event = {"subscriber_id": self.person, "type": "sent", "event_id": message}
        event |= {"campaign_id": CAMPAIGN, "message_key": message}
        at = self.shard.now - timedelta(seconds=ago_s)
        rows = pa.Table.from_pylist([event | {"occurred_at": at}])
        self.shard.write(Change("events", Op.INSERT, rows))

    def hit(
        self, link: str | None = None, agent: str = BROWSER, decoy: bool = False, message: int = 5
    ) -> Hit:
        """An open, or the click of a link."""
        type = "clicked" if link or decoy else "opened"
        signs = ("decoy",) if decoy else ()
        human = judge(Signals(type, recognise(agent), "", signs)).human
        properties = write_properties(Stored(agent, "", signs))
        at = self.shard.now
        return Hit(self.person, message, CAMPAIGN, type, at, link, properties, human)

    def decoy(self) -> Hit:
        return self.hit(decoy=True)

    def take(self, *hits: Hit) -> Any:
        return self.shard.run(track_hits(hits, "", self.random))

    def people(self) -> dict[str, bool]:
        """What is thought of each hit, by link (opens are "open")."""
        rows = self.shard.rows("SELECT item, type, human FROM events WHERE type <> 'sent'")
        return {item or type: human >= 0.5 for item, type, human in rows}

    def corrections(self) -> list[str]:
        return sorted(c for (c,) in self.shard.rows("SELECT cause FROM traffic_corrections"))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_scan_is_seen_when_it_goes_on_and_what_it_did_before_is_corrected(desk: Desk) -> None:
    desk.take(desk.hit())
    desk.take(desk.hit("/a"))
    assert desk.people() == {"opened": True, "/a": True}
    desk.shard.pass_time(seconds=3)
    desk.take(desk.hit("/b"))
    assert all(desk.people().values()) and desk.corrections() == []
    desk.shard.pass_time(seconds=3)
    decision = desk.take(desk.hit("/c"))
    assert desk.people() == {"opened": False, "/a": False, "/b": False, "/c": False}
    assert desk.corrections() == ["all_links", "all_links", "beside_all_links"]
    assert {change.table for change in decision.changes} == {"events", "traffic_corrections"}
    desk.take(desk.hit("/d"))
    assert len(desk.corrections()) == 3  # what is known is not corrected again


def test_a_scan_in_one_batch_needs_no_correction(desk: Desk) -> None:
    desk.take(desk.hit(), *(desk.hit(f"/{n}") for n in range(5)))
    assert not any(desk.people().values())
    assert desk.corrections() == []


def test_whatever_comes_with_the_decoy_is_the_scanners(desk: Desk) -> None:
    desk.take(desk.hit())
    desk.shard.pass_time(seconds=30)
    desk.take(desk.decoy())
    assert desk.people() == {"opened": False, "clicked": False}
    desk.shard.pass_time(seconds=20)
    desk.take(desk.hit("/a"))
    assert desk.people()["/a"] is False
    desk.shard.pass_time(hours=1)
    desk.take(desk.hit("/b"))  # later the person comes
    assert desk.people()["/b"] is True
    assert desk.corrections() == ["beside_decoy"]


def test_people_who_follow_links_are_left_alone(desk: Desk) -> None:
    desk.take(desk.hit())
    for link in ("/a", "/b", "/a", "/c"):
        desk.shard.pass_time(seconds=20)
        desk.take(desk.hit(link))
    desk.take(desk.hit("/c"), desk.hit("/c"))  # impatient, but of one mind
    assert all(desk.people().values())
    assert desk.corrections() == []


def test_two_tabs_at_once_are_a_persons(desk: Desk) -> None:
    desk.take(desk.hit("/a"))
    desk.shard.pass_time(seconds=1)
    desk.take(desk.hit("/b"))
    assert all(desk.people().values())
    assert desk.corrections() == ["two_links"]


@pytest.mark.parametrize(
    ("ago_s", "link", "is_person"),
    [(0.5, None, False), (5, None, True), (5, "/a", False), (40, "/a", True), (600, "/a", True)],
)
def test_how_soon_after_acceptance(
    desk: Desk, ago_s: float, link: str | None, is_person: bool
) -> None:
    desk.sent(ago_s)
    desk.take(desk.hit(link))
    assert desk.people() == {link or "opened": is_person}


def test_a_click_after_an_open_may_be_quick(desk: Desk) -> None:
    desk.sent(9)
    desk.take(desk.hit(), desk.hit("/a"))
    assert desk.people() == {"opened": True, "/a": True}


def test_a_message_of_a_campaign_that_goes_out_and_is_not_yet_known_as_accepted(desk: Desk) -> None:
    desk.sent(5, message=99)
    desk.take(desk.hit())
    ((properties,),) = desk.shard.rows("SELECT properties FROM events WHERE type = 'opened'")
    assert read_properties(properties).signs == ("not_yet_accepted",)


def test_gmails_proxy_shows_what_it_fetches_late(desk: Desk) -> None:
    desk.sent(30)
    desk.take(desk.hit(agent=GMAIL))
    assert desk.people() == {"opened": False}
    desk.shard.pass_time(minutes=5)
    desk.take(desk.hit(agent=GMAIL, message=MESSAGE))
    humans = desk.shard.rows("SELECT human FROM events WHERE type = 'opened' ORDER BY occurred_at")
    assert [human >= 0.5 for (human,) in humans] == [False, True]


def test_ordinary_hits_cost_no_look_up(desk: Desk) -> None:
    desk.take(desk.hit("/a"))
    asked: list[str] = []
    real = desk.shard.database.rows

    def rows(sql: str, *rest: Any, **tables: Any) -> Any:
        asked.append(sql)
        return real(sql, *rest, **tables)

    desk.shard.database.rows = rows  # type: ignore[method-assign]
    desk.take(*(desk.hit(message=n) for n in range(100)), desk.hit("/a", message=200))
    assert len(asked) <= 2  # who is here; and nothing of the hits themselves
    assert not any("JOIN events" in sql for sql in asked)


def test_what_the_hints_hold_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manta.traffic.judging.MESSAGES_KNOWN_MAX", 100)
    for first in range(0, 1_000, 60):
        desk.take(*(desk.hit("/a", message=first + n) for n in range(60)))
    recent = desk.shard.database.hints["traffic"]
    assert len(recent.clicks) + len(recent.older_clicks) <= 2 * 160


def test_stored_properties_say_what_they_can() -> None:
    assert read_properties('{"user_agent": 7, "signs": "x"}') == Stored()
    assert read_properties("[]") == read_properties(None) == read_properties("{") == Stored()
    stored = Stored("Mail/1", "scanner", ("decoy",))
    assert read_properties(write_properties(stored)) == stored


SECONDS = st.integers(0, 40)
LINKS = st.sampled_from(["/a", "/b", "/c", "/d", None])


@given(st.lists(st.tuples(SECONDS, LINKS), max_size=12))
def test_signs_of_company_only_grow(hits: list[tuple[int, str | None]]) -> None:
    """Whatever is shown by the first hits is shown by all of them, as corrections rely on it."""

    def fact(n: int, second: int, link: str | None) -> Fact:
        at = datetime(2026, 3, 1) + timedelta(seconds=second)
        return Fact(n, "clicked" if link else "opened", at, link, Agent.BROWSER, ())

    facts = [fact(n, second, link) for n, (second, link) in enumerate(sorted(hits, key=str))]
    strength = ["two_links", "beside_all_links", "all_links", "beside_decoy"]
    before: dict[int, int] = {}
    for count in range(len(facts) + 1):
        found = beside_each_other(facts[:count])
        level = {n: max(map(strength.index, signs)) for n, signs in found.items()}
        assert all(level.get(n, -1) >= at for n, at in before.items())
        before = level


def test_links_within_the_span_and_none_beyond() -> None:
    def click(n: int, second: float, link: str) -> Fact:
        return Fact(n, "clicked", START + timedelta(seconds=second), link, Agent.BROWSER, ())

    apart = [click(0, 0, "/a"), click(1, 9, "/b"), click(2, 18, "/c")]
    assert beside_each_other(apart) == {}
    close = [click(0, 0, "/a"), click(1, 4, "/b"), click(2, 8, "/c"), click(3, 60, "/d")]
    assert beside_each_other(close) == {n: ["all_links"] for n in range(3)}
