"""Models of mailbox providers: rates hold, strangers wait, complaints block, and a seed repeats."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.rehearsal import behaviour
from manta.delivery.rehearsal.behaviour import (
    ACCEPTED,
    Behaviour,
    LaterKind,
    Model,
    Told,
    behaviours,
    model_of,
)
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.returns.classification import classify_reply
from manta.delivery.shaping import shaping
from manta.delivery.shaping.automation import Automation

DAY_S = 86_400.0
MODELS = list(behaviours().values())
# Nobody is missing, full, cross or away, so that only what a source does matters.
CALM = replace(
    model_of("postfix"),
    unknown_share=0.0,
    full_share=0.0,
    complaint_share=0.0,
    late_share=0.0,
    auto_reply_share=0.0,
)


def bring(it: Behaviour, count: int, now_s: float, source: str = "192.0.2.1") -> list[Told]:
    return [it.mail(source, "us.example", f"p{n}@a.example", now_s) for n in range(count)]


def taken(told: list[Told]) -> int:
    return sum(each == ACCEPTED for each in told)


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_row_is_sane(model: Model) -> None:
    for field in fields(Model):
        value = getattr(model, field.name)
        if field.name.endswith("_share"):
            assert 0 <= value < 0.5
        elif isinstance(value, int | float):
            assert value >= 0
    assert model.exchangers and model.title and model.connections_max > 0
    assert 0 < model.complaints_slow < model.complaints_block < 1
    assert model.cold_per_day * model.minute_share >= 1


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_words_are_understood(model: Model) -> None:
    expected = {
        "connections": BounceClass.BLOCK,
        "session": BounceClass.BLOCK,
        "rate": BounceClass.BLOCK,
        "slowed": BounceClass.BLOCK,
        "blocked": BounceClass.BLOCK,
        "greylisted": BounceClass.SOFT,
        "unknown": BounceClass.HARD,
        "full": BounceClass.SOFT,
    }
    words = asdict(model.says)
    late = words.pop("late")
    assert set(words) == set(expected)
    for name, text in words.items():
        code = int(text[:3])
        permanent = name in ("blocked", "unknown")
        assert (code // 100 == 5) is permanent and text[4:9].count(".") == 2, text
        assert classify_reply(code, filled(text)).bounce_class is expected[name], text
    assert classify_reply(451, model.says.greylisted).category == "Greylisted"
    for text in late:
        assert classify_reply(int(text[:3]), filled(text)).bounce_class in (
            BounceClass.HARD,
            BounceClass.SOFT,
        )


@pytest.mark.parametrize("name", ["google", "yahoo", "outlook"])
@pytest.mark.parametrize("words", ["rate", "slowed", "blocked"])
def test_the_shaping_files_rules_know_the_words(name: str, words: str) -> None:
    text = getattr(model_of(name).says, words).replace("{source}", "192.0.2.9")
    automation = Automation(shaping.builtin())
    at = datetime(2026, 1, 1)
    fired = [
        trigger
        for n in range(10)
        for trigger in automation.observe(
            Observed(
                at + timedelta(seconds=n),
                Seen.DEFERRED,
                "us.example",
                "s",
                name,
                name,
                1,
                code=int(text[:3]),
                text=text[4:],
            )
        )
    ]
    assert fired and fired[0].cause.startswith(f"rule {name}/")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_hosts_are_those_of_the_shaping_files_provider(model: Model) -> None:
    for provider in model.serves[:1]:
        assert shaping.builtin().provider_of("a.example", model.exchangers) == provider
        assert model_of(provider) is model
    if not model.serves:
        assert shaping.builtin().provider_of("a.example", model.exchangers) is None


def test_who_has_no_model_is_an_ordinary_host() -> None:
    assert model_of("gmx").name == model_of("").name == "postfix"
    assert model_of("greylister").greylist_s > 0 and model_of("office365").name == "outlook"


# -- rates -----------------------------------------------------------------------------------------


def test_a_cold_source_is_deferred_sooner_than_a_known_one() -> None:
    it = Behaviour(replace(CALM, cold_per_day=1_000, growth=2.0), 1)
    it.know("192.0.2.2", 100_000, 0.0)
    assert taken(bring(it, 500, 0.0)) == 20  # 2 % of the day in a minute
    assert taken(bring(it, 500, 0.0, "192.0.2.2")) == 500
    late = bring(it, 1, 1.0)[0]
    assert late.code == 450 and "rate limit" in late.text
    assert taken(bring(it, 500, 60.0)) == 20, "the next minute has its own"


def test_hour_and_day_hold() -> None:
    it = Behaviour(replace(CALM, cold_per_day=1_000), 1)
    by_hour = [sum(taken(bring(it, 30, h * 3_600 + m * 60)) for m in range(60)) for h in range(24)]
    assert max(by_hour) == 250 and sum(by_hour) == 1_000


def test_what_a_source_may_bring_grows_with_what_it_has_brought() -> None:
    it = Behaviour(replace(CALM, cold_per_day=100, growth=2.0), 1)
    days = []
    for day in range(6):
        start = day * DAY_S
        days.append(sum(taken(bring(it, 50, start + n * 60)) for n in range(24 * 60)))
    assert days == [100, 200, 400, 800, 1_600, 3_200]
    idle = it.standing("192.0.2.1", 6 * DAY_S + 31 * DAY_S)
    assert idle.per_day == 100, "whoever was silent for a month is a stranger"


@given(st.lists(st.tuples(st.floats(0, 600), st.integers(1, 40)), max_size=40))
def test_no_minute_takes_more_than_its_share(steps: list[tuple[float, int]]) -> None:
    it = Behaviour(replace(CALM, cold_per_day=1_000), 1)
    now_s, minutes = 0.0, Counter[int]()
    for pause_s, count in steps:
        now_s += pause_s
        minutes[int(now_s // 60)] += taken(bring(it, count, now_s))
    assert all(count <= 20 for count in minutes.values())


def test_connections_and_sessions_are_limited() -> None:
    it = Behaviour(replace(CALM, connections_max=2, messages_per_connection=3), 1)
    assert it.connect("s", 1, 0.0) is None
    refused = it.connect("s", 2, 0.0)
    assert refused is not None and (refused.code, refused.closes) == (421, True)
    assert it.mail("s", "d", "a@b.example", 0.0, carried=2) == ACCEPTED
    assert it.mail("s", "d", "a@b.example", 0.0, carried=3).closes


# -- reputation ------------------------------------------------------------------------------------


def complaining() -> Behaviour:
    model = replace(CALM, complaints_slow=0.01, complaints_block=0.02, judged_min=100)
    return Behaviour(model, 1)


def test_complaints_slow_then_block_and_both_pass() -> None:
    it = complaining()
    assert taken(bring(it, 200, 0.0)) == 200
    it.complained("192.0.2.1", 0.0)
    assert not it.standing("192.0.2.1", 1.0).is_slowed
    it.complained("192.0.2.1", 1.0)
    slowed = it.standing("192.0.2.1", 1.0)
    assert slowed.is_slowed and slowed.per_day == 2_000 and not slowed.is_blocked
    assert bring(it, 1, 3_000.0)[0] == ACCEPTED
    for _ in range(3):
        it.complained("192.0.2.1", 3_000.0)
    refused = bring(it, 1, 3_000.0)[0]
    assert refused.code == 554 and "192.0.2.1" in refused.text
    assert bring(it, 1, 3_000.0, "192.0.2.2")[0] == ACCEPTED, "others have done nothing"
    assert it.standing("192.0.2.1", DAY_S - 1).is_blocked
    assert bring(it, 1, 2 * DAY_S)[0] == ACCEPTED, "the window has passed"


def test_a_few_messages_are_not_judged() -> None:
    it = complaining()
    assert taken(bring(it, 90, 0.0)) == 90
    for _ in range(20):
        it.complained("192.0.2.1", 0.0)
    assert bring(it, 1, 0.0)[0] == ACCEPTED


def test_a_list_of_unknown_users_shrinks_the_allowance() -> None:
    it = Behaviour(replace(CALM, unknown_share=0.3), 1)
    told = bring(it, 200, 0.0)
    assert 0.2 < sum(each.code == 550 for each in told) / 200 < 0.4
    assert it.standing("192.0.2.1", 0.0).is_slowed


# -- greylisting -----------------------------------------------------------------------------------


def test_a_greylister_lets_in_who_tries_again() -> None:
    it = Behaviour(replace(CALM, greylist_s=300.0, greylist_passes=2), 1)
    assert taken(bring(it, 3, 0.0)) == 0
    assert classify_reply(450, bring(it, 1, 10.0)[0].text).category == "Greylisted"
    assert bring(it, 2, 300.0) == [ACCEPTED] * 2
    assert it.mail("192.0.2.1", "us.example", "new@a.example", 301.0) == ACCEPTED, "it is known now"
    assert it.mail("192.0.2.2", "us.example", "p1@a.example", 301.0).code == 450
    it.know("192.0.2.2", 10, 301.0)
    assert it.mail("192.0.2.2", "us.example", "p1@a.example", 301.0) == ACCEPTED


# -- mailboxes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("ann@gone.example", 550),
        ("permfail@a.example", 550),
        ("PermFail2@A.example", 550),
        ("tempfail1@a.example", 451),
        ("421-x@a.example", 421),
        ("552-x@a.example", 552),
        ("ann@a.example", 250),
    ],
)
@pytest.mark.parametrize("name", ["google", "postfix"])
def test_some_recipients_fare_the_same_everywhere(name: str, recipient: str, code: int) -> None:
    it = Behaviour(replace(model_of(name), unknown_share=0.0, full_share=0.0), 1)
    told = it.mail("192.0.2.1", "us.example", recipient, 0.0)
    assert told.code == code and told.closes is (code == 421)


def test_a_full_domain_has_room_the_second_time() -> None:
    it = Behaviour(CALM, 1)
    assert it.mail("s", "d", "ann@full.example", 0.0).code == 452
    assert it.mail("s", "d", "ann@full.example", 1.0) == ACCEPTED


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_shares_are_met_and_a_seed_repeats(model: Model) -> None:
    model = replace(
        model,
        cold_per_day=10**9,
        greylist_s=0.0,
        unknown_slow=0.0,
        unknown_share=0.05,
        full_share=0.04,
        complaint_share=0.03,
        late_share=0.02,
        auto_reply_share=0.02,
    )

    def run(seed: int) -> tuple[list[Told], list[tuple[behaviour.Later, ...]]]:
        it = Behaviour(model, seed)
        it.know("s", 10**6, 0.0)
        people = [f"p{n}@a.example" for n in range(5_000)]
        return [it.mail("s", "d", p, 0.0) for p in people], [it.later(p) for p in people]

    told, later = run(1)
    codes = Counter(each.code for each in told)
    assert abs(codes[int(model.says.unknown[:3])] / 5_000 - 0.05) < 0.01
    assert abs(codes[452] / 5_000 - 0.04) < 0.01
    kinds = Counter(each.kind for found in later for each in found)
    for kind, share in zip(LaterKind, (0.02, 0.03, 0.02), strict=True):
        assert abs(kinds[kind] / 5_000 - share) < 0.01
    assert (told, later) == run(1) != run(2)
    for found in later:
        assert all(a.after_s <= b.after_s for a, b in pairwise(found))
        assert all((each.told is None) == (each.kind is not LaterKind.DSN) for each in found)


@pytest.mark.parametrize(
    ("local", "kind"),
    [
        ("bounces", LaterKind.DSN),
        ("complains", LaterKind.COMPLAINT),
        ("replies", LaterKind.AUTO_REPLY),
    ],
)
def test_what_comes_later_can_be_asked_for(local: str, kind: LaterKind) -> None:
    (later,) = Behaviour(CALM, 1).later(f"{local}1@a.example", "m1")
    assert later.kind is kind and later.after_s >= 0
    (other,) = Behaviour(CALM, 1).later(f"{local}1@a.example", "m2")
    assert other.after_s != later.after_s


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour, "SOURCES_MAX", 3)
    monkeypatch.setattr(behaviour, "TRIES_MAX", 3)
    it = Behaviour(replace(CALM, greylist_s=10.0), 1)
    for n in range(10):
        bring(it, 2, 0.0, f"192.0.2.{n}")
    assert len(it._sources) == len(it._tries) == 3


def filled(text: str) -> str:
    return text.replace("{source}", "192.0.2.9").replace("{recipient}", "ann@a.example")[4:]
