"""Definitions and campaigns as documents."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from manta import collections, definitions
from manta.clock import as_text
from manta.definitions import Defined
from manta.delivery import directing
from manta.delivery.campaign import CampaignPlan, CampaignState
from manta.errors import Conflict, InvalidRequest, NotFound

NOW = datetime(2026, 5, 1, 12)


class Shelf:
    """Documents in a dictionary: what a journaled singleton reads, and a way to apply changes."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}

    def get(self, collection: str, id: str) -> dict[str, Any] | None:
        return self.documents.get((collection, id))

    def list(self, collection: str) -> list[dict[str, Any]]:
        return [d for (c, _), d in self.documents.items() if c == collection]

    def apply(self, defined: Defined) -> Any:
        for collection, id, document in defined.changes:
            if document is None:
                self.documents.pop((collection, id), None)
            else:
                self.documents[collection, id] = document
        return defined.answer


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_attributes_keep_their_first_type(shelf: Shelf) -> None:
    declared = shelf.apply(definitions.declare_attributes(shelf, {"city": "string"}))
    assert declared == {"city": "string"}
    both = shelf.apply(definitions.declare_attributes(shelf, {"age": "number", "city": "string"}))
    assert both == {"age": "number", "city": "string"}
    assert not definitions.declare_attributes(shelf, {"age": "number"}).changes
    with pytest.raises(Conflict, match="declared as number"):
        definitions.declare_attributes(shelf, {"age": "string"})


@pytest.mark.parametrize("types", [{"City": "string"}, {"a b": "string"}, {"x": "text"}, {"": ""}])
def test_a_wrong_attribute_is_refused(shelf: Shelf, types: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        definitions.declare_attributes(shelf, types)
    assert caught.value.path.startswith("attributes.")


def test_a_template_gains_versions_and_old_ones_stay(shelf: Shelf) -> None:
    fields = {"name": "News", "subject": "One", "html": "<p>1</p>", "from_email": "a@example.com"}
    first = shelf.apply(definitions.save_template(shelf, fields, ["city"], NOW))
    assert (first["template_id"], first["version"], first["attributes"]) == (1, 1, ["city"])
    second = shelf.apply(
        definitions.save_template(shelf, {"id": 1, "subject": "Two", "html": ""}, [], NOW)
    )
    assert (second["version"], second["name"]) == (2, "News")
    assert shelf.get("template_versions", "1:1")["subject"] == "One"  # type: ignore[index]
    with pytest.raises(NotFound):
        definitions.save_template(shelf, {"id": 9}, [], NOW)
    with pytest.raises(InvalidRequest, match="subjekt"):
        definitions.save_template(shelf, {"name": "x", "subjekt": "y"}, [], NOW)


def test_a_segment_is_numbered_and_versioned(shelf: Shelf) -> None:
    rule = {"all": []}
    assert (
        shelf.apply(collections.save(shelf, "segments", {"name": "A", "rule": rule}, NOW))["id"]
        == 1
    )
    assert (
        shelf.apply(collections.save(shelf, "segments", {"name": "B", "rule": rule}, NOW))["id"]
        == 2
    )
    again = shelf.apply(collections.save(shelf, "segments", {"id": 2, "rule": {"any": []}}, NOW))
    assert (again["version"], again["name"], again["rule"]) == (2, "B", {"any": []})


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb"])
def test_a_wrong_name_is_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        collections.save(shelf, "segments", {"name": name, "rule": {"all": []}}, NOW)
    assert caught.value.path == "name"


def test_an_api_key_is_shown_once_and_stored_as_a_hash(shelf: Shelf) -> None:
    shown = shelf.apply(
        definitions.create_api_key(
            shelf,
            "crm",
            ["events:write"],
            id="ab12",
            secret="f" * 64,
            workspace="default",
            expires_at=as_text(NOW + timedelta(days=1)),
            now=NOW,
        )
    )
    workspace, id, secret = definitions.split_api_key(shown["key"])
    stored = shelf.get("api_keys", id)
    assert workspace == "default" and stored is not None
    assert "f" * 64 not in str(stored)
    assert definitions.api_key_matches(stored, secret, NOW)
    assert not definitions.api_key_matches(stored, secret[:-1] + "e", NOW)
    assert not definitions.api_key_matches(stored, secret, NOW + timedelta(days=2))


@pytest.mark.parametrize(
    "text", ["", "manta_a_b", "manta__b_c", "x_a_b_c", "manta_a_b_" + "c" * 300]
)
def test_what_is_not_an_api_key_is_not_echoed(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        definitions.split_api_key(text)
    assert not text or text not in str(caught.value)


SOURCES = ["relay", "bulk"]
PINNED = directing.Pinned(1, "shop.example", ["city"], {"all": []}, {})


def draft(shelf: Shelf, **fields: Any) -> dict[str, Any]:
    given = {"name": "May", "segment_id": 1, "template_id": 1} | fields
    return shelf.apply(directing.create_campaign(shelf, given, SOURCES, NOW))


def launch(shelf: Shelf, at: datetime | None = None) -> dict[str, Any]:
    return shelf.apply(directing.launch(shelf, 1, at, PINNED, SOURCES, "UTC", NOW))


def test_a_campaign_runs_through_its_states(shelf: Shelf) -> None:
    campaign = draft(shelf)
    assert (campaign["state"], campaign["policy"]) == ("draft", "hold")
    assert directing.todo(campaign, 2) == directing.Todo()
    later = NOW + timedelta(hours=1)
    campaign = launch(shelf, later)
    assert directing.todo(campaign, 2) == directing.Todo(start_at=later)
    assert not directing.start(shelf, 1, NOW).changes, "not yet"
    campaign = shelf.apply(directing.start(shelf, 1, later))
    assert not directing.start(shelf, 1, later).changes, "a repeated start is none"
    assert directing.todo(campaign, 2) == directing.Todo(announce=True, plan=(0, 1))
    part = {"planned": 5, "suppressed": 1, "last_subscriber": 77, "done": False}
    campaign = shelf.apply(directing.record_planning(shelf, 1, {1: directing.Page(-1, part)}))
    assert directing.next_page(campaign, 1) == 77
    assert not directing.record_planning(shelf, 1, {1: directing.Page(-1, part)}).changes, (
        "counted once"
    )
    done = part | {"done": True}
    pages = {0: directing.Page(-1, done), 1: directing.Page(77, done)}
    campaign = shelf.apply(directing.record_planning(shelf, 1, pages))
    assert directing.todo(campaign, 2).watch and directing.todo(campaign, 2).announce
    campaign = shelf.apply(directing.record_announced(shelf, 1, campaign["step"]))
    assert directing.todo(campaign, 2) == directing.Todo(watch=True)
    assert directing.planning_progress(campaign, 2) == {
        "shards_planned": 2,
        "shards": 2,
        "planned": 15,
        "suppressed": 3,
    }
    campaign = shelf.apply(directing.move_to(shelf, 1, CampaignState.PAUSED, later))
    assert directing.todo(campaign, 2) == directing.Todo(announce=True)
    assert not directing.finish(shelf, 1, later).changes, "paused meanwhile"
    campaign = shelf.apply(directing.move_to(shelf, 1, CampaignState.RUNNING, later))
    campaign = shelf.apply(directing.finish(shelf, 1, later))
    assert directing.todo(campaign, 2) == directing.Todo(announce=True)
    campaign = shelf.apply(directing.record_announced(shelf, 1, campaign["step"]))
    assert directing.todo(campaign, 2) == directing.Todo()
    with pytest.raises(Conflict, match="from finished to running"):
        directing.move_to(shelf, 1, CampaignState.RUNNING, later)
    states = [entry["state"] for entry in campaign["history"]]
    assert states == ["draft", "scheduled", "running", "paused", "running", "finished"]


def test_a_repeated_move_is_no_move(shelf: Shelf) -> None:
    draft(shelf)
    shelf.apply(directing.move_to(shelf, 1, CampaignState.CANCELLED, NOW))
    again = directing.move_to(shelf, 1, CampaignState.CANCELLED, NOW)
    assert not again.changes and again.answer["state"] == "cancelled"


def test_a_launch_at_once_is_one_change_and_pins_the_plan(shelf: Shelf) -> None:
    draft(shelf, priority=0, source="bulk")
    campaign = launch(shelf)
    assert campaign["state"] == "running"
    plan = CampaignPlan.from_json(campaign["definition"])
    assert (plan.due_at, plan.template_version, plan.attributes) == (NOW, 1, ("city",))
    assert (plan.priority, plan.source) == (0, "bulk")
    with pytest.raises(Conflict, match="from running to scheduled"):
        launch(shelf)


def test_a_time_that_has_passed_is_now(shelf: Shelf) -> None:
    draft(shelf)
    campaign = launch(shelf, NOW - timedelta(days=1))
    assert campaign["state"] == "running" and campaign["launch_at"] == as_text(NOW)


def test_a_scheduled_campaign_is_moved_taken_back_or_cancelled(shelf: Shelf) -> None:
    draft(shelf)
    launch(shelf, NOW + timedelta(hours=1))
    moved = launch(shelf, NOW + timedelta(hours=2))
    assert directing.todo(moved, 2).start_at == NOW + timedelta(hours=2)
    for state in (CampaignState.RUNNING, CampaignState.PAUSED):
        with pytest.raises(Conflict):
            directing.move_to(shelf, 1, state, NOW)
    back = shelf.apply(directing.move_to(shelf, 1, CampaignState.DRAFT, NOW))
    assert (back["definition"], back["launch_at"], back["template_version"]) == (None, None, None)
    launch(shelf, NOW + timedelta(hours=1))
    gone = shelf.apply(directing.move_to(shelf, 1, CampaignState.CANCELLED, NOW))
    assert directing.todo(gone, 2) == directing.Todo(), "no shard has heard of it"
    assert not directing.start(shelf, 1, NOW + timedelta(hours=3)).changes


def test_what_would_expire_before_it_starts_is_not_launched(shelf: Shelf) -> None:
    draft(shelf, expires_at=as_text(NOW + timedelta(hours=1)))
    with pytest.raises(InvalidRequest) as caught:
        launch(shelf, NOW + timedelta(hours=1))
    assert caught.value.path == "expires_at"
    assert shelf.get("campaigns", "1")["state"] == "draft"  # type: ignore[index]


def test_only_what_was_never_launched_is_deleted(shelf: Shelf) -> None:
    draft(shelf)
    shelf.apply(directing.delete(shelf, 1))
    assert shelf.get("campaigns", "1") is None
    assert draft(shelf)["id"] == 2, "a number is never used again"
    shelf.apply(directing.launch(shelf, 2, None, PINNED, SOURCES, "UTC", NOW))
    for state in (CampaignState.PAUSED, CampaignState.CANCELLED):
        shelf.apply(directing.move_to(shelf, 2, state, NOW))
        with pytest.raises(Conflict):
            directing.delete(shelf, 2)


def test_a_signing_key_is_the_newest_though_the_clock_went_back(shelf: Shelf) -> None:
    shelf.apply(definitions.add_token_key(shelf, 7, "a", NOW))
    shelf.apply(definitions.add_token_key(shelf, 3, "b", NOW - timedelta(hours=1)))
    assert [key["id"] for key in definitions.token_keys(shelf)] == [7, 3]
    with pytest.raises(Conflict):
        definitions.add_token_key(shelf, 7, "c", NOW)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"segment_id": None}, "segment_id"),
        ({"rule": {"all": []}}, "segment_id"),
        ({"template_id": None}, "template_id"),
        ({"template_id": "1"}, "template_id"),
        ({"segment_id": True}, "segment_id"),
        ({"priority": 256}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"topic": "a\nb"}, "topic"),
        ({"topic": 7}, "topic"),
        ({"source": "nowhere"}, "source"),
        ({"policy": "maybe"}, "policy"),
        ({"kind": "spam"}, "kind"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"colour": "red"}, "colour"),
        ({"name": ""}, "name"),
    ],
)
def test_a_wrong_campaign_names_its_field(shelf: Shelf, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        draft(shelf, **fields)
    assert caught.value.path == path
