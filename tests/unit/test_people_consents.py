"""Consent, unsubscription, suppression: what is written, and who is told at once."""

import json
from datetime import timedelta

import pytest

from manta.command import Push
from manta.errors import InvalidRequest, NotFound
from manta.people.commands import LiftSuppression, SetConsent, Suppress, Unsubscribe
from tests.unit.people_shard import START, Shard, alias


@pytest.fixture
def shard():
    return Shard()


def consents(shard):
    return dict(shard.rows("SELECT topic, status FROM consents"))


def test_consent_is_set_once_with_its_history(shard):
    person = shard.person("a@example.com")
    command = SetConsent(None, person, "email", "news", "subscribed", "form")
    assert shard.answer(command).changed == 1
    assert shard.run(command).changes == ()
    assert consents(shard) == {"news": "subscribed"}
    assert shard.kinds() == ["consent_changed"]


def test_unsubscribing_from_all_holds_for_every_topic_now_and_later(shard):
    person = shard.person("a@example.com")
    shard.answer(SetConsent(None, person, "email", "news", "subscribed", "form"))
    shard.answer(SetConsent(None, person, "email", "offers", "pending", "form"))
    shard.leased(person, 11)
    decision = shard.run(Unsubscribe(None, person, 11, None, "one-click"))
    assert consents(shard) == dict.fromkeys(("*", "news", "offers"), "unsubscribed")
    event = shard.history[-1]
    assert (event["type"], event["campaign_id"], event["message_key"]) == ("unsubscribed", 7, 11)
    assert json.loads(event["properties"])["topic"] == "*"
    assert shard.rows("SELECT type FROM events") == [("unsubscribed",)]
    assert decision.pushes == (Push("sender-00", "revoke", (None, ((person, 11),))),)
    assert shard.run(Unsubscribe(None, person, 11, None, "one-click")).changes == ()


def test_unsubscribing_from_one_topic_leaves_the_others(shard):
    person = shard.person("a@example.com")
    for topic in ("news", "offers"):
        shard.answer(SetConsent(None, person, "email", topic, "subscribed", "form"))
    assert shard.answer(Unsubscribe(None, person, None, "news", "page")).changed == 1
    assert consents(shard) == {"news": "unsubscribed", "offers": "subscribed"}
    assert shard.history[-1]["campaign_id"] is None


def test_subscribing_again_by_own_act_lifts_all_topics(shard):
    person = shard.person("a@example.com")
    shard.answer(Unsubscribe(None, person, None, None, "page"))
    assert (
        shard.answer(SetConsent(None, person, "email", "news", "subscribed", "form")).changed == 2
    )
    assert consents(shard) == {"news": "subscribed"}


def test_revocations_go_to_each_sender_and_spare_transactional_mail(shard):
    person = shard.person("a@example.com")
    other = shard.person("b@example.com")
    shard.leased(person, 1)
    shard.leased(person, 2, sender="sender-01")
    shard.leased(person, 3, kind="transactional")
    shard.leased(person, 4, state="accepted")
    shard.leased(other, 5)
    pushes = shard.run(Unsubscribe(None, person, None, None, "page")).pushes
    assert pushes == (
        Push("sender-00", "revoke", (None, ((person, 1),))),
        Push("sender-01", "revoke", (None, ((person, 2),))),
    )
    pushes = shard.run(Suppress(None, "email", "A@example.com", "complaint", "fbl")).pushes
    assert pushes[0].arguments == (None, ((person, 1), (person, 3)))


def test_an_alias_is_followed_and_a_stranger_named(shard):
    person = shard.person("a@example.com")
    shard.load("aliases", alias(5, person), alias(6, 77))
    assert shard.answer(Unsubscribe(None, 5, None, None, "page")).subscriber_id == person
    with pytest.raises(NotFound) as caught:
        shard.answer(Unsubscribe(None, 6, None, None, "page"))
    assert caught.value.details["moved_to"] == 77
    with pytest.raises(NotFound):
        shard.answer(Unsubscribe(None, 404, None, None, "page"))


def test_a_suppression_is_by_compared_address_and_not_weakened(shard):
    person = shard.person("a@example.com")
    soon, later = START + timedelta(days=1), START + timedelta(days=9)
    answer = shard.answer(Suppress(None, "email", "A@example.com", "manual", "op", None, soon))
    assert (answer.changed, answer.subscriber_id) == (True, person)
    assert shard.answer(Suppress(None, "email", "a@example.com", "x", "op", None, later)).changed
    assert not shard.answer(Suppress(None, "email", "a@example.com", "x", "op", None, soon)).changed
    assert shard.answer(Suppress(None, "email", "a@example.com", "hard_bounce", "dsn")).changed
    assert not shard.answer(
        Suppress(None, "email", "a@example.com", "x", "op", None, later)
    ).changed
    assert shard.rows("SELECT address, reason, expires_at FROM suppressions") == [
        ("a@example.com", "hard_bounce", None)
    ]
    assert shard.kinds() == ["suppression_changed"] * 3


def test_an_expired_suppression_is_replaced_whole(shard):
    shard.answer(Suppress(None, "email", "a@example.com", "manual", "op", None, START))
    shard.pass_time(days=1)
    answer = shard.answer(Suppress(None, "email", "a@example.com", "hard_bounce", "dsn", "550 no"))
    assert (answer.changed, answer.subscriber_id) == (True, None)
    assert shard.rows("SELECT reason, evidence FROM suppressions") == [("hard_bounce", "550 no")]


def test_lifting_a_suppression(shard):
    person = shard.person("a@example.com")
    shard.answer(Suppress(None, "email", "a@example.com", "manual", "op"))
    answer = shard.answer(LiftSuppression(None, "email", "A@example.com", "op"))
    assert (answer.changed, answer.subscriber_id) == (True, person)
    assert shard.rows("SELECT * FROM suppressions") == []
    assert json.loads(shard.history[-1]["properties"])["new"] is None
    assert not shard.answer(LiftSuppression(None, "email", "a@example.com", "op")).changed


@pytest.mark.parametrize(
    "change",
    [
        {"channel": "pigeon"},
        {"status": "maybe"},
        {"topic": "*"},
        {"topic": ""},
        {"source": "a\r\nb"},
    ],
)
def test_wrong_words_are_refused(shard, change):
    person = shard.person("a@example.com")
    words = {"channel": "email", "topic": "news", "status": "subscribed", "source": "form"}
    with pytest.raises(InvalidRequest):
        shard.answer(SetConsent(None, person, **(words | change)))


def test_the_history_of_a_suppression_lies_where_the_person_lives(shard):
    shard.load(
        "identities",
        {"kind": "email", "value": "a@example.com", "subscriber_id": 99, "state": "confirmed"},
    )
    answer = shard.answer(Suppress(None, "email", "a@example.com", "complaint", "fbl"))
    assert (answer.changed, answer.subscriber_id, shard.kinds()) == (True, 99, [])
