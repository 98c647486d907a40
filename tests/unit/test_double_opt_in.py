"""Double opt-in: what a request gives away (nothing), what a confirmation takes, what it lifts."""

import json
from datetime import timedelta

import pytest

from manta.command import Context
from manta.errors import InvalidRequest
from manta.people.consents import SetConsent, Unsubscribe
from manta.people.double_opt_in import MAIL_GAP, ConfirmConsents, RequestConsent
from manta.people.suppressions import Suppress
from tests.unit.people_shard import START, Shard

FORM = {"ip": "192.0.2.7", "user_agent": "Browser/1", "form": "footer", "wording": "2026-01"}


@pytest.fixture
def shard():
    return Shard()


def ask(shard, person, *topics, double=True):
    pairs = tuple((topic, double) for topic in topics)
    return shard.answer(RequestConsent(None, person, pairs, "form", FORM))


def _context(shard):
    return Context(shard.now, shard.random, "default", 0)


def confirm(shard, person, *topics):
    return shard.answer(ConfirmConsents(None, person, topics, "page", {"ip": "192.0.2.9"}))


def on_record(shard):
    return dict(shard.rows("SELECT topic, status FROM consents"))


def test_a_request_waits_and_its_confirmation_keeps_the_proof_of_both_steps(shard):
    person = shard.person("a@example.com", locale="de-AT")
    asked = ask(shard, person, "news")
    assert (asked.subscriber_id, asked.locale) == (person, "de-AT")
    assert asked.occurrence.startswith("confirm 2026-03-01")
    assert shard.rows("SELECT status, expires_at FROM consents") == [
        ("pending", START + timedelta(days=7))
    ]
    shard.pass_time(hours=30)
    assert confirm(shard, person, "news").topics == ("news",)
    ((status, ends, text),) = shard.rows("SELECT status, expires_at, proof FROM consents")
    proof = json.loads(text)
    assert (status, ends, proof["method"], proof["ip"]) == (
        "subscribed",
        None,
        "double",
        "192.0.2.9",
    )
    assert proof["request"]["ip"] == "192.0.2.7"
    assert proof["request"]["wording"] == "2026-01"
    assert proof["request"]["at"] == "2026-03-01T12:00:00.000000Z"
    assert proof["at"] == "2026-03-02T18:00:00.000000Z"
    assert json.loads(shard.history[-1]["properties"])["proof"] == proof
    assert confirm(shard, person, "news").topics == ("news",)  # pressed again
    assert shard.kinds() == ["consent_changed"] * 2


def test_one_mail_an_hour_and_each_request_names_it(shard):
    person = shard.person("a@example.com")
    first = ask(shard, person, "news").occurrence
    shard.pass_time(minutes=40)
    assert ask(shard, person, "news").occurrence == first
    assert ask(shard, person, "news", "offers").occurrence == first
    shard.pass_time(minutes=20)
    assert ask(shard, person, "offers").occurrence not in ("", first)
    request = RequestConsent("k", person, (("news", True),), "form")
    assert request.repeat(shard.database, _context(shard)).occurrence != ""


def test_who_is_subscribed_gets_no_mail_and_what_is_too_late_is_not_confirmed(shard):
    person = shard.person("a@example.com")
    shard.answer(SetConsent(None, person, "email", "news", "subscribed", "form"))
    assert ask(shard, person, "news").occurrence == ""
    ask(shard, person, "offers")
    shard.pass_time(days=7)
    assert confirm(shard, person, "offers", "news", "other").topics == ("news",)
    assert on_record(shard) == {"news": "subscribed", "offers": "pending"}
    assert ask(shard, person, "offers").occurrence != ""
    assert confirm(shard, person, "offers").topics == ("offers",)


def test_single_opt_in_is_at_once_but_never_for_who_has_left(shard):
    person, left = shard.person("a@example.com"), shard.person("b@example.com")
    assert ask(shard, person, "news", double=False).occurrence == ""
    assert on_record(shard) == {"news": "subscribed"}
    shard.answer(Unsubscribe(None, left, None, None, "one_click"))
    assert ask(shard, left, "news", double=False).occurrence != ""
    held = dict(shard.rows("SELECT topic, status FROM consents WHERE subscriber_id = ?", left))
    assert held == {"*": "unsubscribed", "news": "pending"}
    confirm(shard, left, "news")
    held = dict(shard.rows("SELECT topic, status FROM consents WHERE subscriber_id = ?", left))
    assert held == {"news": "subscribed"}


@pytest.mark.parametrize("reason", ["unsubscribed", "complaint", "erased"])
def test_a_suppressed_address_takes_a_mail(shard, reason):
    person = shard.person("a@example.com")
    shard.answer(Suppress(None, "email", "a@example.com", reason, "import"))
    assert ask(shard, person, "news", double=False).occurrence != ""
    assert on_record(shard) == {"news": "pending"}


def test_a_pending_row_remembers_that_its_person_had_left(shard):
    person = shard.person("a@example.com")
    shard.answer(SetConsent(None, person, "email", "news", "unsubscribed", "page"))
    for _ in range(2):
        ask(shard, person, "news")
        shard.pass_time(seconds=MAIL_GAP.total_seconds() + 1)
    ((proof,),) = shard.rows("SELECT proof FROM consents")
    assert json.loads(proof)["before"] == "unsubscribed"


@pytest.mark.parametrize(
    ("proof", "path"),
    [
        ({"colour": "red"}, "proof.colour"),
        ({"method": "magic"}, "proof.method"),
        ({"ip": 7}, "proof.ip"),
        ({"form": "a\x00b"}, "proof.form"),
        ({"request": {"request": {}}}, "proof.request.request"),
        ({"wording": "x" * 1001}, "proof.wording"),
    ],
)
def test_a_proof_that_is_none(shard, proof, path):
    person = shard.person("a@example.com")
    with pytest.raises(InvalidRequest) as caught:
        shard.run(SetConsent(None, person, "email", "news", "subscribed", "form", proof))
    assert caught.value.details["path"] == path


def test_a_request_names_topics(shard):
    person = shard.person("a@example.com")
    for topics in ((), ("*",), ("",), tuple(f"t{n}" for n in range(51))):
        with pytest.raises(InvalidRequest):
            ask(shard, person, *topics)
