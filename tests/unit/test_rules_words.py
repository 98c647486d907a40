"""A rule in English, in Python, and what it looks at."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import InvalidRequest
from manta.rules.build import (
    Built,
    attr,
    bucket,
    consent,
    did,
    did_not,
    everybody,
    first_time,
    has_been,
    keyed,
    last_messages,
    last_time,
    member,
    prediction,
    sequence,
    step,
    suppressed,
)
from manta.rules.explain import explain
from manta.rules.nodes import Member, Not, Rule
from manta.rules.scope import Reach, Touches, inline, reach, touches
from manta.rules.tree import parse
from tests.unit.rules_samples import ATTRIBUTES, NOW, TICK, rules
from tests.unit.test_rules_tree import QUIET_BUYERS

quiet_buyers = did("purchased").where("item", "equals", "sku-1").within(days=30) & last_messages(
    3
).opened("none")

abandoned_cart = keyed("properties.cart_id", did("cart_updated").within(days=2) & ~did("purchased"))


def test_the_builder_makes_the_same_tree() -> None:
    assert quiet_buyers.to_json() == QUIET_BUYERS
    assert quiet_buyers.checked(ATTRIBUTES) == parse(QUIET_BUYERS, ATTRIBUTES)


BUILT: list[tuple[Built, str]] = [
    (everybody, "People who exist, all of them."),
    (attr("city").equals("Oslo"), "People who have a city equal to “Oslo”."),
    (attr("city").in_("Oslo", "Bergen"), "People who have a city that is “Oslo” or “Bergen”."),
    (attr("city").not_set(), "People who have no city."),
    (attr("vip").equals(True), "People who have vip equal to true."),
    (attr("score").between(1, 2), "People who have a score between 1 and 2."),
    (
        attr("birthday").anniversary_in_the_next(days=7),
        "People who have a birthday whose anniversary is in the next 7 days.",
    ),
    (attr("birthday").before(date(2000, 1, 1)), "People who have a birthday before 2000-01-01."),
    (
        attr("tags").contains_any(["a", "b"]),
        "People who have tags containing any of “a” and “b”.",
    ),
    (
        attr("tags").length(operator="at_least", value=2),
        "People who have tags with at least 2 entries.",
    ),
    (did_not("purchased").within(weeks=1), "People who never bought something in the last week."),
    (~did("signed_up"), "People who never did “signed_up”."),
    (
        did("purchased").where("item", "in", "a", "b").times("at_least", 2),
        "People who bought “a” or “b” at least 2 times.",
    ),
    (
        did("purchased").total("greater_than", 100).after(date(2026, 1, 1)),
        "People who bought something after 2026-01-01, with a total amount of more than 100.",
    ),
    (
        first_time("viewed").where("properties.plan", "equals", "pro").at_least_ago(days=3),
        "People who first did “viewed” with plan equal to “pro” at least 3 days ago.",
    ),
    (
        last_time("purchased").between(datetime(2026, 1, 1), datetime(2026, 2, 1)),
        "People who last bought something between 2026-01-01 00:00:00 UTC"
        " and 2026-02-01 00:00:00 UTC.",
    ),
    (
        last_messages(5, kind="any", if_fewer="use_those").clicked("at_least", 2),
        "People who clicked at least 2 of the last 5 marketing or transactional mails,"
        " or of those there are where there are fewer.",
    ),
    (consent("news"), "People who are subscribed to the topic “news” by email."),
    (
        suppressed("complaint"),
        "People who have an e-mail address that is suppressed because of complaint.",
    ),
    (member(7), "People who are members of segment 7."),
    (bucket("test", 0, 12.5), "People who fall between 0 % and 12.5 % of the random draw “test”."),
    (
        sequence(
            step("viewed").where("item", "equals", "sku-1"),
            step("cart_updated", days=3),
            step("purchased", absent=True, hours=1),
        ).within(days=30),
        "People who did “viewed” with item equal to “sku-1”, then did “cart_updated” within 3 days,"
        " then never bought something within 1 hour, all of it complete in the last 30 days.",
    ),
    (
        has_been(attr("city").equals("Oslo"), days=30),
        "People who for at least 30 days have a city equal to “Oslo”, unchanged.",
    ),
    (
        prediction("churn").at_least(0.7),
        "People who have a prediction “churn” of at least 0.7.",
    ),
    (prediction("churn").not_set(), "People who have no prediction “churn”."),
    (
        keyed("properties.cart_id", did("purchased")),
        "People who with one and the same cart_id bought something at least once.",
    ),
    (
        abandoned_cart,
        "People for whom of the events with one and the same cart_id, all of these are true:\n"
        "- they did “cart_updated” at least once in the last 2 days\n"
        "- they never bought something",
    ),
    (
        quiet_buyers & (attr("city").equals("Oslo") | ~consent("news")),
        "People for whom all of these are true:\n"
        "- they bought “sku-1” at least once in the last 30 days\n"
        "- they opened none of the last 3 mails\n"
        "- at least one of these is true:\n"
        "  - they have a city equal to “Oslo”\n"
        "  - they are none of those who are subscribed to the topic “news” by email",
    ),
]


@pytest.mark.parametrize(("built", "english"), BUILT)
def test_explain_says_it_in_english(built: Built, english: str) -> None:
    assert explain(built.checked(ATTRIBUTES)) == english


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_every_rule_can_be_explained(seed: int) -> None:
    text = explain(parse(rules().draw(Random(seed)), ATTRIBUTES))
    assert text.startswith("People ")
    assert all(char.isprintable() or char == "\n" for char in text)


def test_python_words_are_refused_instead_of_combining_wrongly() -> None:
    with pytest.raises(TypeError, match=r"& \| ~"):
        bool(attr("city").is_set() and attr("vip").is_set())
    with pytest.raises(AttributeError, match="no operator 'equal'"):
        attr("city").equal("x")
    with pytest.raises(InvalidRequest, match="did you mean 'city'"):
        attr("citi").is_set().checked(ATTRIBUTES)


def checked(*built: Built) -> list[Rule]:
    return [one.checked(ATTRIBUTES) for one in built]


def test_touches_names_what_a_change_can_affect() -> None:
    found = touches(*checked(quiet_buyers, attr("birthday").on("2026-01-01"), member(3)))
    assert found == Touches(
        frozenset({"purchased", "sent", "opened"}),
        frozenset({"birthday", "time_zone"}),
        frozenset(),
        frozenset({3}),
    )
    assert touches(*checked(suppressed() | consent("news"))) == Touches(
        attributes=frozenset({"email"}),
        consents=frozenset({("email", "news")}),
        suppressions=True,
    )
    assert touches(*checked(abandoned_cart, prediction("churn").is_set())) == Touches(
        event_types=frozenset({"cart_updated", "purchased"}), predictions=frozenset({"churn"})
    )
    assert touches(*checked(has_been(attr("birthday").is_set(), days=1))) == Touches(
        attributes=frozenset({"birthday", "time_zone"}), held=frozenset({"birthday"})
    )
    assert touches(*checked(sequence(step("viewed"), step("purchased")))).event_types == {
        *("viewed", "purchased"),
    }


def test_reach_is_the_longest_look_back() -> None:
    assert reach(NOW, *checked(quiet_buyers)).messages == 3
    assert reach(NOW, *checked(quiet_buyers)).back == timedelta(days=30, microseconds=-1)
    assert reach(NOW, *checked(did("viewed"), quiet_buyers)).back is None
    assert reach(NOW, *checked(first_time("viewed").within(days=1))) == Reach(None)
    assert reach(NOW, *checked(did("viewed").after("2026-03-28"))).back == timedelta(hours=12.5)
    assert reach(NOW, *checked(attr("city").is_set())) == Reach(timedelta(0))
    followed = sequence(step("viewed"), step("purchased", days=3), step("x", absent=True, days=2))
    assert reach(NOW, *checked(followed.within(days=30))).back == timedelta(days=35) - TICK
    assert reach(NOW, *checked(followed)).back is None
    loose = sequence(step("viewed"), step("purchased")).within(days=30)
    assert reach(NOW, *checked(loose)).back is None


def test_a_keyed_rule_reaches_as_far_as_its_conditions_unless_nothing_makes_it_true() -> None:
    updated, bought = did("cart_updated").within(days=2), did("purchased").within(days=7)
    assert reach(NOW, *checked(keyed("item", updated & ~bought))).back == timedelta(days=7) - TICK
    assert reach(NOW, *checked(keyed("item", updated | ~bought))).back is None
    assert reach(NOW, *checked(abandoned_cart)).back is None


def test_segments_of_segments_are_inlined_and_circles_refused() -> None:
    oslo, quiet = checked(attr("city").equals("Oslo"), quiet_buyers)
    both = checked(member(1) & ~member(2) & member(9))[0]
    segments = {1: oslo, 2: Not(Member(3)), 3: quiet}
    expected = checked(attr("city").equals("Oslo") & ~~quiet_buyers & member(9))[0]
    assert inline(both, segments) == expected
    with pytest.raises(InvalidRequest, match="1 → 2 → 1"):
        inline(Member(1), {1: Not(Member(2)), 2: Member(1)})
    with pytest.raises(InvalidRequest, match="too deeply"):
        inline(Member(0), {number: Member(number + 1) for number in range(1000)})
