"""Sunset: who falls asleep, what wakes them, and what it must not touch."""

import json
from random import Random

import pyarrow as pa
import pytest

from manta.clock import ManualClock
from manta.command import Context
from manta.delivery.screening import Wanted, screen
from manta.errors import InvalidRequest
from manta.people.consents import SetConsent
from manta.people.definitions import SEGMENT, SUNSET, SetDefinition
from manta.people.history import recorded
from manta.people.memberships import WANTED, ApplyMemberships
from manta.people.sunset import SunsetDeriver, checked, default_rule, shard_body
from manta.people.suppressions import LIFTED_BY_CONSENT, LiftSuppression, Suppress
from manta.people.upsert import UpsertPeople
from manta.rules.tree import parse
from manta.store.shard import ShardStore
from tests.faults import MemoryObjects
from tests.unit.people_shard import START, Shard
from tests.unit.serve_fakes import FakeDocuments


class Sleepers(Shard):
    """A shard whose groups are one command each, with the deriver."""

    def run(self, command):
        decision = super().run(command)
        self.derive(decision.changes)
        return decision

    def derive(self, changes):
        derived = SunsetDeriver().derive(changes, self.database, self.context())
        if derived:
            self.write(*derived)
            self.history += [
                row for c in derived if c.table == "events" for row in c.rows.to_pylist()
            ]

    def context(self):
        return Context(self.now, self.random, "default", 0)

    def policy(self, id="1", segment=7, topic=None):
        body = {"name": "Quiet", "topic": topic, "segment_id": segment}
        self.run(SetDefinition(None, SUNSET, id, 1, body))

    def moves(self, person, segment=7, member=True):
        said = {"segment": segment, "member": member, "source": "live"}
        self.happens("membership_changed", person, said)

    def happens(self, kind, person, said=None, human=None):
        change = recorded(
            kind, pa.array([person], pa.int64()), said or {}, self.now, self.random, human=human
        )
        self.write(change)
        self.derive((change,))

    def stops(self):
        return self.rows("SELECT channel, address, reason FROM suppressions ORDER BY ALL")

    def refusal(self, person, topic="news", kind="marketing"):
        wanted = [Wanted(person, kind, "email", topic)]
        return screen(self.database, wanted, self.context()).refusals[0]


@pytest.fixture
def shard():
    return Sleepers()


@pytest.fixture
def person(shard):
    person = shard.person("Ann@x.example")
    for topic in ("news", "offers"):
        shard.answer(SetConsent(None, person, "email", topic, "subscribed", "form"))
    return person


def test_who_enters_gets_no_marketing_until_their_own_act(shard, person):
    shard.policy()
    shard.moves(person, segment=8)
    shard.moves(person, member=False)
    assert shard.stops() == []
    shard.moves(person)
    assert shard.stops() == [("email", "ann@x.example", "sunset")]
    assert shard.refusal(person) == "sunset"
    assert shard.refusal(person, kind="transactional") is None
    shard.moves(person, member=False)
    shard.happens("opened", person)
    shard.happens("clicked", person, human=0.1)
    assert shard.refusal(person) == "sunset"
    shard.happens("clicked", person, human=0.9)
    assert (shard.stops(), shard.refusal(person)) == ([], None)
    changed = [json.loads(e["properties"]) for e in shard.history if "suppression" in e["type"]]
    assert [(c["old"], c["new"]) for c in changed] == [(None, "sunset"), ("sunset", None)]


def test_a_purchase_or_a_consent_wakes_too(shard, person):
    shard.policy()
    for wake in (
        lambda: shard.happens("purchased", person),
        lambda: shard.answer(SetConsent(None, person, "email", "more", "subscribed", "form")),
    ):
        shard.moves(person)
        assert len(shard.stops()) == 1
        wake()
        assert shard.stops() == []


def test_one_topic_only(shard, person):
    shard.policy(topic="offers")
    shard.moves(person)
    assert shard.stops() == [("email/offers", "ann@x.example", "sunset")]
    assert shard.refusal(person, "offers") == "sunset"
    assert shard.refusal(person, "news") is None
    lift = LiftSuppression(None, "email", "ann@x.example", "page", "", LIFTED_BY_CONSENT)
    assert shard.answer(lift).changed
    assert shard.stops() == []


def test_a_policy_catches_those_who_are_there(shard, person):
    shard.load("memberships", {"subscriber_id": person, "segments": [3, 7]})
    shard.policy()
    assert shard.stops() == [("email", "ann@x.example", "sunset")]


@pytest.mark.parametrize("reason", ["complaint", "hard_bounce", "unsubscribed", "manual"])
def test_a_graver_cause_stays(shard, person, reason):
    shard.policy()
    shard.answer(Suppress(None, "email", "ann@x.example", reason, "op"))
    shard.moves(person)
    assert shard.stops() == [("email", "ann@x.example", reason)]
    shard.happens("purchased", person)
    assert len(shard.stops()) == 1
    other = shard.person("b@x.example")
    shard.moves(other)
    shard.answer(Suppress(None, "email", "b@x.example", reason, "op"))
    assert ("email", "b@x.example", reason) in shard.stops()


def test_without_a_policy_nothing_follows_and_an_address_is_needed(shard, person):
    shard.moves(person)
    assert shard.stops() == []
    nobody = shard.person("c@x.example")
    shard.load("profiles", {"subscriber_id": nobody, "email": None})
    shard.policy()
    shard.moves(nobody)
    assert shard.stops() == []


def test_what_a_policy_is():
    reader = FakeDocuments()
    reader.held["segments"] = {"7": {"id": 7, "live": True}, "8": {"id": 8, "live": False}}
    document = checked({"name": "Quiet", "segment_id": 7}, reader)
    assert shard_body(document, reader) == {"name": "Quiet", "topic": None, "segment_id": 7}
    reader.held["sunset"] = {"1": document | {"id": 1}}
    for fields, path in (
        ({"segment_id": 8}, "segment_id"),
        ({"segment_id": 9}, "segment_id"),
        ({"topic": None}, "topic"),
        ({"days": 3}, "days"),
        ({"name": ""}, "name"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            checked({"name": "x", "segment_id": 7, "topic": "t"} | fields, reader)
        assert caught.value.path == path


def test_the_default_rule_is_one():
    rule = parse(default_rule(topic="news"), {})
    assert rule.to_json() == parse(rule.to_json(), {}).to_json()
    for messages, days in ((0, 10), (1, 0), (101, 1), (1, 391)):
        with pytest.raises(InvalidRequest):
            default_rule(messages, days)


def test_in_the_group_that_stores_the_membership_and_after_a_crash(tmp_path):
    clock = ManualClock(START)
    objects = MemoryObjects(clock)

    def opened(nonce):
        store = ShardStore(
            objects, "default", 0, nonce * 16, clock, Random(1), derivers=(SunsetDeriver(),)
        )
        store.recover()
        return store

    def stops(store):
        return store.database.rows("SELECT channel, address, reason FROM suppressions")

    def answers(store, *commands):
        outcomes = store.execute(list(commands))
        assert not any(outcome.failed for outcome in outcomes), outcomes
        return [outcome.answer for outcome in outcomes]

    store = opened(b"a")
    rows = pa.table({"email": ["ann@x.example"]})
    (upserted,) = answers(store, UpsertPeople(None, rows, "test"))
    (ann,) = upserted.ids.to_pylist()
    live = {"name": "Asleep", "type": "rule", "live": True, "rule": None, "attributes": {}}
    body = {"name": "Quiet", "topic": None, "segment_id": 7}
    answers(
        store,
        SetDefinition(None, SEGMENT, "7", 1, live),
        SetDefinition(None, SUNSET, "1", 1, body),
    )
    moved = {"subscriber_id": ann, "segment_id": 7, "member": True}
    entered = pa.Table.from_pylist([moved], schema=WANTED)
    groups = store.sequence
    answers(store, ApplyMemberships(None, entered, "live"))
    assert store.sequence == groups + 1
    assert stops(store) == [("email", "ann@x.example", "sunset")]
    again = opened(b"b")
    assert stops(again) == [("email", "ann@x.example", "sunset")]
    answers(again, SetConsent(None, ann, "email", "news", "subscribed", "form"))
    assert stops(again) == []
    assert again.figures.derivers_failed == 0
