"""Automation: windows that never fire early, scopes, prolonging, bounded memory, replay."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.lanes import OTHERS
from manta.delivery.reputation.actions import ActionKind, Narrower, Scope
from manta.delivery.reputation.observations import Observed, Seen
from manta.delivery.shaping import automation
from manta.delivery.shaping.automation import Automation, Trigger, rehearse, replay
from manta.delivery.shaping.shaping import Shaping, builtin, parse

START = datetime(2026, 11, 1)


def shaped(rules: str) -> Shaping:
    """The shipped limits, and these rules alone."""
    base = builtin()
    bare = parse(
        f"[default]\nrules_remove = {[rule.name for rule in base.default.rules]}"
        "\n[provider.big]\ndomains = ['big.example']",
        base,
    )
    return parse(rules, bare)


def rule(name: str = "r", of: str = "provider.big", **changes: str) -> str:
    keys = {"pattern": "busy", "trigger": "3 in 10m", "action": "suspend", "duration": "1h"}
    keys = {"name": name} | keys | changes
    return "\n".join([f"[[{of}.rule]]", *(f"{key} = '{value}'" for key, value in keys.items())])


def seen(at_s: float, text: str = "4.7.0 busy", **changes: Any) -> Observed:
    plain = Observed(
        START + timedelta(seconds=at_s),
        Seen.DEFERRED,
        "shop.example",
        "s1",
        "big",
        "mx.big.example",
        7,
        code=421,
        text=text,
    )
    return plain._replace(**changes)


def fired(watch: Automation, *observed: Observed) -> list[int]:
    """The places at which something fired."""
    return [place for place, each in enumerate(observed) if watch.observe(each)]


def test_it_fires_at_the_threshold_and_starts_anew() -> None:
    watch = Automation(shaped(rule(duration="10s")))
    at = [0, 1, 2, 3, 100, 101, 102, 103]
    assert fired(watch, *map(seen, at)) == [2, 5]


def test_a_trigger_says_what_and_why() -> None:
    text = rule(action="limit", scope="lane", rate="6/min", trigger="at once").replace(
        "'6/min'", "'6/min'\nconnections_max = 1"
    )
    (trigger,) = Automation(shaped(text)).observe(seen(0, "4.7.0 busy\x1b[1m\r\n4.7.0 now"))
    assert trigger == Trigger(
        ActionKind.LIMIT,
        Scope("s1", "big", "mx.big.example"),
        Narrower(0.1, 1),
        "rule big/r",
        {
            "rule": "big/r",
            "replies": 1,
            "threshold": 1,
            "period_s": 0.0,
            "reply": "421 4.7.0 busy�[1m now",
            "provider": "big",
        },
        3_600.0,
    )


@pytest.mark.parametrize(
    ("scope", "action", "expected"),
    [
        ("lane", "suspend", Scope("s1", "big", "mx.big.example")),
        ("provider", "suspend", Scope("s1", "big")),
        ("source", "bounce", Scope("s1")),
        ("campaign", "bounce", Scope(provider="big", campaign_id=7)),
        ("campaign", "pause", Scope(campaign_id=7)),
        ("sender", "suspend", Scope(provider="big", sending_domain="shop.example")),
    ],
)
def test_scopes(scope: str, action: str, expected: Scope) -> None:
    shaping = shaped(rule(scope=scope, action=action, trigger="at once"))
    (trigger,) = Automation(shaping).observe(seen(0))
    assert trigger.scope == expected


@pytest.mark.parametrize(
    ("scope", "lacking"),
    [
        ("campaign", {"campaign_id": 0}),
        ("sender", {"sending_domain": ""}),
        ("provider", {"source": ""}),
        ("lane", {"site": ""}),
    ],
)
def test_without_a_field_of_its_scope_nothing_wider_is_hit(scope: str, lacking: Any) -> None:
    watch = Automation(shaped(rule(scope=scope, trigger="at once")))
    assert watch.observe(seen(0)._replace(**lacking)) == []


def test_scopes_are_counted_apart() -> None:
    watch = Automation(shaped(rule(scope="lane")))
    sites = ["a", "b", "a", "b", "a", "b"]
    assert fired(watch, *(seen(n, site=site) for n, site in enumerate(sites))) == [4, 5]


@pytest.mark.parametrize(
    "changes",
    [
        {"is_internal": True},
        {"seen": Seen.ACCEPTED},
        {"seen": Seen.COMPLAINED},
        {"text": ""},
        {"text": "something else"},
        {"messages": 0},
        {"provider": "other"},
    ],
    ids=str,
)
def test_what_is_never_matched(changes: dict[str, Any]) -> None:
    watch = Automation(shaped(rule(trigger="at once")))
    assert watch.observe(seen(0, **changes)) == []
    assert watch.status()["windows"] == 0


@pytest.mark.parametrize("kind", [Seen.DEFERRED, Seen.FAILED, Seen.BOUNCED, Seen.UNREACHED])
def test_whoever_brings_a_servers_words(kind: Seen) -> None:
    assert Automation(shaped(rule(trigger="at once"))).observe(seen(0, seen=kind))


def test_a_dsn_speaks_for_its_domain_alone() -> None:
    watch = Automation(shaped(rule(of="default", trigger="at once", scope="source")))
    assert watch.observe(seen(0, seen=Seen.BOUNCED)) == []
    assert watch.observe(seen(0))
    watch = Automation(shaped(rule(of="default", trigger="at once")))
    assert watch.observe(seen(0, seen=Seen.BOUNCED, provider=OTHERS, site=OTHERS)) == []
    assert watch.observe(seen(0, provider=OTHERS, site=OTHERS))
    assert watch.observe(seen(0, seen=Seen.BOUNCED, provider="mx.x", site="mx.x"))


def test_the_defaults_rules_are_for_words_that_no_own_rule_knows() -> None:
    text = rule("own", trigger="at once") + "\n"
    text += rule("any", of="default", trigger="at once", pattern="busy|slow")
    watch = Automation(shaped(text))
    causes = [t.cause for t in watch.observe(seen(0)) + watch.observe(seen(0, "slow"))]
    assert causes == ["rule big/own", "rule default/any"]
    assert [t.cause for t in watch.observe(seen(0, provider="x"))] == ["rule default/any"]


def test_each_own_rule_that_matches_counts() -> None:
    text = rule("a", trigger="at once") + "\n" + rule("b", trigger="at once", pattern="4.7.0")
    assert len(Automation(shaped(text)).observe(seen(0))) == 2


def test_messages_count_and_so_do_replies_out_of_order() -> None:
    watch = Automation(shaped(rule()))
    assert watch.observe(seen(0, messages=2)) == []
    (trigger,) = watch.observe(seen(60))
    assert trigger.figures["replies"] == 3
    watch = Automation(shaped(rule()))
    assert fired(watch, seen(600), seen(10), seen(0), seen(300)) == [3]


def test_while_its_action_runs_it_is_silent_until_the_last_quarter() -> None:
    watch = Automation(shaped(rule(trigger="at once")))  # an hour
    at = [0, 1, 2_699, 2_700, 2_701, 5_399, 5_400]
    assert fired(watch, *map(seen, at)) == [0, 3, 6]
    watch = Automation(shaped(rule(trigger="2 in 10m")))
    at = [0, 1, 1_000, 2_698, 2_699, 2_701, 2_702]
    assert fired(watch, *map(seen, at)) == [1, 5]  # what came before counts as far as the period


def test_another_shaping_keeps_the_windows_of_rules_that_stay() -> None:
    watch = Automation(shaped(rule("a") + "\n" + rule("b", pattern="slow")))
    for at in (0, 1):
        watch.observe(seen(at))
        watch.observe(seen(at, "slow"))
    watch.replace(shaped(rule("a") + "\n" + rule("b", pattern="slow", trigger="4 in 10m")))
    assert watch.status()["windows"] == 1 and watch.status()["entries"] == 2
    assert watch.observe(seen(2))
    assert watch.observe(seen(2, "slow")) == []
    watch.replace(shaped(""))
    assert watch.status()["windows"] == 0 and watch.observe(seen(3)) == []


def test_memory_is_bounded_and_what_is_dropped_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automation, "WINDOWS_MAX", 10)
    monkeypatch.setattr(automation, "ENTRIES_MAX", 30)
    watch = Automation(shaped(rule(scope="lane", trigger="9 in 1h")))
    for number in range(100):
        watch.observe(seen(number, site=f"mx{number}"))
    assert watch.status() == {"windows": 10, "entries": 10, "dropped": 90}
    for number in range(100):
        watch.observe(seen(200 + number / 10, site=f"mx{number % 5}"))
    assert watch.status()["entries"] <= 30
    alone = Automation(shaped(rule(trigger="1000 in 1h")))
    for number in range(500):
        alone.observe(seen(number))
    assert alone.status()["windows"] == 1, "the one in use is never dropped"


def test_windows_hold_no_more_than_they_need() -> None:
    watch = Automation(shaped(rule(duration="30d")))
    for number in range(1_000):
        watch.observe(seen(number / 10))
    assert watch.status()["entries"] <= 3


# -- against a counter that forgets nothing --------------------------------------------------------

TIMES = st.lists(
    st.tuples(st.integers(0, 4_000), st.integers(1, 3)), min_size=1, max_size=60
)  # (second, messages), in any order


def naive(times: list[tuple[int, int]], threshold: int, period: int, duration: int) -> list[int]:
    places: list[int] = []
    kept: list[tuple[int, int]] = []
    newest, running = -1, -1.0
    for place, (at, messages) in enumerate(times):
        newest = max(newest, at)
        kept.append((at, messages))
        total = sum(n for when, n in kept if newest - when < period)
        if total >= threshold and newest >= running - duration / 4:
            places.append(place)
            kept, running = [], newest + duration
    return places


@given(TIMES, st.integers(2, 12), st.integers(1, 3_000), st.integers(10, 3_000))
def test_it_agrees_with_a_naive_counter(
    times: list[tuple[int, int]], threshold: int, period: int, duration: int
) -> None:
    text = rule(trigger=f"{threshold} in {period}s", duration=f"{duration}s")
    watch = Automation(shaped(text))
    observed = [seen(at, messages=messages) for at, messages in times]
    assert fired(watch, *observed) == naive(times, threshold, period, duration)


@given(TIMES, st.integers(2, 12), st.integers(1, 3_000))
def test_it_never_fires_below_its_threshold(
    times: list[tuple[int, int]], threshold: int, period: int
) -> None:
    watch = Automation(shaped(rule(trigger=f"{threshold} in {period}s", duration="10s")))
    since: list[tuple[int, int]] = []
    for at, messages in times:
        since.append((at, messages))
        if watch.observe(seen(at, messages=messages)):
            most = max(sum(n for t, n in since if s <= t < s + period) for s, _ in since)
            assert most >= threshold
            since = []


# -- what would have happened ----------------------------------------------------------------------


def test_replay_says_when() -> None:
    observed = [seen(n) for n in (0, 1, 2, 3)]
    ((at, trigger),) = replay(shaped(rule()), iter(observed))
    assert (at, trigger.cause) == (START + timedelta(seconds=2), "rule big/r")


def test_rehearse_counts_what_would_have_been_held() -> None:
    accepted = {"seen": Seen.ACCEPTED, "text": "", "code": 250}
    observed = [
        seen(0),
        seen(1),
        seen(2),  # fires; itself before it
        seen(10, messages=5, **accepted),
        seen(11, provider="other", **accepted),
        seen(12, source="s2", **accepted),
        seen(13, seen=Seen.COMPLAINED),
        seen(2_900),  # the last quarter begins at 2,702
        seen(2_901),
        seen(2_902),  # prolongs
        seen(3_700, messages=4, **accepted),
        seen(9_000, messages=9, **accepted),  # over
    ]
    first, second = rehearse(shaped(rule()), iter(observed))
    assert (first.messages, first.messages_held) == (8, 8)
    assert first.until == second.at == START + timedelta(seconds=2_902)
    assert (second.messages, second.messages_held) == (4, 4)


def test_a_limit_holds_what_is_beyond_its_rate() -> None:
    limit = rule(action="limit", rate="6/min", trigger="at once", duration="10s")
    accepted = seen(1, seen=Seen.ACCEPTED, text="", messages=5)
    (met,) = rehearse(shaped(limit), [seen(0), accepted])
    assert (met.messages, met.messages_held) == (5, 4)
    narrow = rule(action="limit", trigger="at once").replace(
        "'limit'", "'limit'\nconnections_max=1"
    )
    (met,) = rehearse(shaped(narrow), [seen(0), accepted])
    assert (met.messages, met.messages_held) == (5, 0), "fewer connections hold nobody"


def test_the_shipped_rules_at_work() -> None:
    watch = Automation(builtin())
    reply = "4.7.28 [192.0.2.9] An unusual rate of\n4.7.28 unsolicited mail from your IP address"
    google = {"provider": "google", "site": "google"}
    assert fired(watch, seen(0, reply, **google), seen(9, reply, **google)) == [1]
    listed = "5.7.1 Client host [192.0.2.9] blocked using zen.spamhaus.org"
    strangers = [seen(n, listed, code=554, provider="mx.x", site="mx.x") for n in range(5)]
    assert fired(watch, *strangers) == [4]
