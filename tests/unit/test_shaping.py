"""The shaping file: what it says, how files lie over each other, and what is refused."""

from __future__ import annotations

import re
import string
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manta.delivery.lanes import Limits
from manta.delivery.reputation.actions import ActionKind, Narrower
from manta.delivery.shaping.file import _RULE_KEYS, FILE_BYTES_MAX
from manta.delivery.shaping.places import line_in
from manta.delivery.shaping.shaping import Shaping, builtin, parse
from manta.delivery.shaping.values import Bounds, Rate, RuleScope, Section, line_of
from manta.errors import InvalidRequest

BASE = parse(
    """
    dated = 2026-01-02
    [default]
    tls = "opportunistic"
    connections_max = 10
    connection_rate = "60/min"
    messages_per_connection = 100
    recipients_max = 50
    rate = "100/s"
    total_connections_max = 40
    total_rate = "200/s, burst 1000"
    [[default.rule]]
    name = "deferred"
    pattern = "temporarily deferred"
    action = "limit"
    rate = "1/min"
    duration = "90m"
    [[default.rule]]
    name = "listed"
    pattern = "block list"
    trigger = "5 in 1h"
    action = "suspend"
    scope = "source"
    duration = "2h"
    [provider.big]
    title = "Big Mail"
    exchangers = [".big.example", "mx.other.example"]
    domains = ["big.example", "big.test"]
    rate = "10/s"
    total_connections_max = 5
    [[provider.big.rule]]
    name = "slow"
    pattern = ['\\[SL1\\]', '\\[SL2\\]']
    trigger = "3 in 10m"
    action = "limit"
    scope = "lane"
    rate = "6/min"
    connections_max = 1
    duration = "30m"
    example = "421 [SL1] slow down"
    [[provider.big.rule]]
    name = "bad"
    pattern = "bad content"
    trigger = "2 in 1h"
    action = "pause"
    duration = "1d"
    [provider.part]
    exchangers = [".part.big.example"]
    domains = ["part.example"]
    """,
    Shaping(date.min, Section(), {}),
)


def test_an_empty_text_changes_nothing() -> None:
    assert parse("", BASE) == BASE
    assert parse("", BASE).version == BASE.version
    assert len(BASE.version) == 16
    assert parse("[default]\nconnections_max = 9", BASE).version != BASE.version


@pytest.mark.parametrize(
    ("domain", "exchangers", "provider"),
    [
        ("x.example", ["mx1.big.example"], "big"),
        ("x.example", ["MX1.Big.Example."], "big"),
        ("x.example", ["a.part.big.example"], "part"),  # the longest end
        ("x.example", ["mx.other.example"], "big"),
        ("x.example", ["a.mx.other.example"], None),  # a host, not an end
        ("x.example", ["big.example"], None),
        ("x.example", ["mx.notbig.example"], None),
        ("x.example", ["mx.own.example", "mx1.big.example"], None),  # mail goes to the first
        ("big.example", ["mx.own.example"], "big"),  # nobody's exchanger: by the domain
        ("BIG.test.", [], "big"),
        ("sub.big.test", [], None),
        ("", [""], None),
    ],
)
def test_providers(domain: str, exchangers: list[str], provider: str | None) -> None:
    assert BASE.provider_of(domain, exchangers) == provider


def test_limits_of_a_provider_and_of_a_stranger() -> None:
    big = BASE.of("big", "mx1")
    assert big.limits_of_site == Limits(10.0, 10, 10, 100)
    assert big.limits_of_provider == Limits(200.0, 1_000, 5, 100)
    assert (big.tls, big.recipients_max) == ("opportunistic", 50)
    assert (big.connections_per_s, big.connections_burst) == (1.0, 1)
    stranger = BASE.of("mx.example", "mx.example")
    assert stranger.limits_of_provider is None
    assert stranger.limits_of_site == Limits(100.0, 100, 10, 100)


def test_layers_from_the_default_to_the_source_at_a_provider() -> None:
    shaping = parse(
        """
        [provider.big]
        connections_max = 8
        [site."mx1.big"]
        connections_max = 7
        messages_per_connection = 3
        [source.cold.default]
        connections_max = 2
        rate = "1/s"
        [source.cold.provider.big]
        connections_max = 1
        """,
        BASE,
    )
    assert shaping.of("big", "x").limits_of_site.connections_max == 8
    assert shaping.of("big", "mx1.big").limits_of_site == Limits(10.0, 10, 7, 3)
    assert shaping.of("big", "mx1.big", "cold").limits_of_site == Limits(10.0, 10, 1, 3)
    assert shaping.of("small", "small", "cold").limits_of_site == Limits(1.0, 1, 2, 100)
    assert shaping.of("small", "small", "warm").limits_of_site == Limits(100.0, 100, 10, 100)
    again = parse("[source.cold.provider.big]\nrate = '2/s'", shaping)
    assert again.of("big", "", "cold").limits_of_site == Limits(2.0, 2, 1, 100)


def test_rules_are_overridden_removed_and_added() -> None:
    shaping = parse(
        """
        [default]
        rules_remove = ["listed"]
        [provider.big]
        rules_remove = ["bad", "deferred"]
        [[provider.big.rule]]
        name = "slow"
        pattern = "SL9"
        action = "suspend"
        duration = "5m"
        [[provider.big.rule]]
        name = "new"
        pattern = "new"
        action = "bounce"
        scope = "campaign"
        duration = "1h"
        """,
        BASE,
    )
    own, default = shaping.tiers_of("big")
    assert [name for name, _ in own] == ["big/slow", "big/new"]
    assert default == ()
    slow = shaping.rules_of("big")[0]
    assert (slow.patterns, slow.action, slow.scope) == (
        ("SL9",),
        ActionKind.SUSPEND,
        RuleScope.PROVIDER,
    )
    assert (slow.threshold, slow.period_s, slow.duration_s) == (1, 0.0, 300.0)
    assert [rule.name for rule in shaping.rules_of("stranger")] == ["deferred"]
    assert [rule.name for rule in BASE.rules_of("big")] == ["slow", "bad", "deferred", "listed"]


def test_an_own_rule_takes_the_place_of_the_defaults_of_its_name() -> None:
    rule = "name = 'listed'\npattern = 'x'\naction = 'suspend'\nduration = '1h'"
    shaping = parse(f"[[site.'a (b)'.rule]]\n{rule}", BASE)
    own, default = shaping.tiers_of("stranger", "a (b)")
    assert [name for name, _ in own] == ["a (b)/listed"]
    assert [name for name, _ in default] == ["default/deferred"]


def test_a_rule_in_full() -> None:
    slow, bad = BASE.providers["big"].section.rules
    assert (slow.threshold, slow.period_s, slow.duration_s) == (3, 600.0, 1_800.0)
    assert slow.limits == Narrower(0.1, 1, None)
    assert (bad.action, bad.scope) == (ActionKind.PAUSE, RuleScope.CAMPAIGN)


def test_what_the_operator_claims_is_taken_from_the_base() -> None:
    shaping = parse("[provider.mine]\ndomains = ['big.test']\nexchangers = ['.big.example']", BASE)
    assert shaping.provider_of("big.test") == "mine"
    assert shaping.provider_of("big.example") == "big"
    assert shaping.provider_of("x.example", ["mx1.big.example"]) == "mine"
    assert shaping.providers["big"].domains == ("big.example",)
    assert shaping.of("mine").limits_of_provider is not None


def test_what_is_not_claimed_stays() -> None:
    shaping = parse("[provider.big]\nrate = '5/s'", BASE)
    assert shaping.providers["big"].domains == ("big.example", "big.test")
    assert shaping.providers["big"].title == "Big Mail"
    assert shaping.domains_of("big") == ("big.example", "big.test")
    assert shaping.domains_of("nobody") == ()


def rule(**changes: str) -> str:
    keys = {"name": "'n'", "pattern": "'p'", "action": "'suspend'", "duration": "'1h'"} | changes
    lines = [f"{key} = {value}" for key, value in keys.items() if value]
    return "\n".join(["[[provider.big.rule]]", *lines])


@pytest.mark.parametrize(
    ("text", "path", "line", "said"),
    [
        ("[provider.bigg]\nrate = '1/s'", "provider.bigg", 1, "did you mean big?"),
        ("\n[provider.big]\nrat = '1/s'", "provider.big.rat", 3, "did you mean rate?"),
        ("[defalt]", "defalt", 1, "did you mean default?"),
        ("dated = 'today'", "dated", 1, "2026-01-31"),
        ("dated = 2026-01-01T00:00:00", "dated", 1, "2026-01-31"),
        ("[provider.big]\nrate = 5", "provider.big.rate", 2, '"100/s"'),
        ("[provider.big]\nrate = '5 per s'", "provider.big.rate", 2, '"100/s"'),
        ("[provider.big]\nrate = '0/s'", "provider.big.rate", 2, "more than 0"),
        ("[provider.big]\nrate = '1/s, burst 0'", "provider.big.rate", 2, "burst 1 to"),
        ("[provider.big]\nconnections_max = 0", "provider.big.connections_max", 2, "1 to 10,000"),
        ("[provider.big]\nconnections_max = true", "provider.big.connections_max", 2, "1 to"),
        ("[provider.big]\ntls = 'maybe'", "provider.big.tls", 2, "opportunistic"),
        ("[provider.big]\ndomains = ['x']", "provider.big.domains", 2, '"example.com"'),
        ("[provider.big]\ndomains = ['.x.example']", "provider.big.domains", 2, '"example.com"'),
        ("[provider.big]\ndomains = ['a.b', 'A.b']", "provider.big.domains", 2, "each once"),
        (
            "[provider.a]\ndomains=['q.r']\n[provider.b]\ndomains=['q.r']",
            "provider.b.domains",
            4,
            "",
        ),
        ("[provider.others]\ndomains=['q.r']", "provider.others", 1, "not 'others'"),
        ("[provider.'A b']\ndomains=['q.r']", 'provider."A b"', 1, "a-z"),
        ("provider = 3", "provider", 1, "[provider]"),
        ("[provider]\nbig = 3", "provider.big", 2, "[provider.big]"),
        ("[provider.big]\nrule = 3", "provider.big.rule", 2, "[[provider.big.rule]]"),
        ("[provider.big]\nrule = [3]", "provider.big.rule[1]", 2, ""),
        ("[provider.big]\nrules_remove = ['slw']", "provider.big.rules_remove", 2, "slow?"),
        ("[default]\nrules_remove = ['slow']", "default.rules_remove", 2, "a rule's name"),
        ("[source.a.provider.bgi]\nrate = '1/s'", "source.a.provider.bgi", 1, "big?"),
        ("[source.a]\nrate = '1/s'", "source.a.rate", 2, "default"),
        (rule(duration=""), "provider.big.rule[1]", 1, 'duration = "90m"'),
        (rule(name=""), "provider.big.rule[1]", 1, "once in its section"),
        (rule(duration="'1 hour'"), "provider.big.rule[1].duration", 5, '"90m"'),
        (rule(duration="'1s'"), "provider.big.rule[1].duration", 5, "10 s to 30 days"),
        (rule(duration="3600"), "provider.big.rule[1].duration", 5, '"90m"'),
        (rule(pattern="'('"), "provider.big.rule[1].pattern", 3, "RE2 syntax"),
        (rule(pattern="'(?=a)'"), "provider.big.rule[1].pattern", 3, "RE2 syntax"),
        (rule(pattern="'a*'"), "provider.big.rule[1].pattern", 3, "needs text"),
        (rule(pattern="''"), "provider.big.rule[1].pattern", 3, "1 to 1,000"),
        (rule(pattern="[]"), "provider.big.rule[1].pattern", 3, "what replies match"),
        (rule(pattern=f"'{'a' * 1001}'"), "provider.big.rule[1].pattern", 3, "1 to 1,000"),
        (rule(pattern="'(a{900}){900}'"), "provider.big.rule[1].pattern", 3, ""),
        (rule(pattern=r"'\pL{700}'"), "provider.big.rule[1].pattern", 3, ""),
        (rule(action="'suspnd'"), "provider.big.rule[1].action", 4, "did you mean suspend?"),
        (rule(action="'limit'"), "provider.big.rule[1]", 1, "rate"),
        (rule(rate="'1/s'"), "provider.big.rule[1].rate", 6, 'action = "limit"'),
        (
            rule(action="'limit'", rate="'1/s'", scope="'campaign'"),
            "provider.big.rule[1].scope",
            7,
            "lane or provider",
        ),
        (rule(action="'pause'", scope="'lane'"), "provider.big.rule[1].scope", 6, "campaign"),
        (rule(scope="'world'"), "provider.big.rule[1].scope", 6, "campaign, sender"),
        (rule(trigger="'3 per hour'"), "provider.big.rule[1].trigger", 6, '"3 in 1h"'),
        (rule(trigger="'0 in 1h'"), "provider.big.rule[1].trigger", 6, "1 to 1,000"),
        (rule(trigger="'2 in 8d'"), "provider.big.rule[1].trigger", 6, "7 days"),
        (rule(example="'q'"), "provider.big.rule[1].example", 6, "does not match"),
        (rule(counter_example="'p'"), "provider.big.rule[1].counter_example", 6, "another"),
        (f"{rule()}\n{rule()}", "provider.big.rule[2].name", 7, "another name"),
        (f"{rule()}\n{rule(name=chr(39) + 'N!' + chr(39))}", "provider.big.rule[2].name", 7, ""),
        ("x = [", "", None, ""),
        ("a = 1\na = 2", "", None, ""),
        ("[a" + ".a" * 5_000 + "]", "", None, ""),
        ("#" * (FILE_BYTES_MAX + 1), "", None, "at most 1,048,576"),
        ("x = '\ud800'", "", None, ""),
        (f"x = {'9' * 5_000}", "", None, ""),
        ("x = " + "[" * 5_000, "", None, ""),
    ],
)
def test_what_is_refused_and_where(text: str, path: str, line: int | None, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text, BASE)
    error = caught.value
    if line is not None:
        assert (error.path, error.details["line"]) == (path, line), error.message
        assert error.message.startswith(f"line {line}: {path}: ")
    assert said in error.message + error.expected


def test_many_of_everything_is_refused() -> None:
    rules = "\n".join(rule(name=f"'n{n}'") for n in range(2_001))
    providers = "\n".join(f"[provider.p{n}]\ndomains = ['d{n}.example']" for n in range(501))
    for text in (rules, providers):
        with pytest.raises(InvalidRequest, match=r"2,001 rules|501 tables"):
            parse(text, BASE)


def test_the_example_of_the_reference_is_right_and_names_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "shaping.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    shaping = parse(block, builtin())
    assert shaping.of("partner").tls == "verified"
    assert shaping.of("google", "", "new-ip").limits_of_site.connections_max == 1
    assert "try-later" not in [rule.name for rule in shaping.rules_of("google")]
    keys = [f.name for f in fields(Bounds)] + [*_RULE_KEYS, "title", "exchangers", "domains"]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_lines_are_found_in_what_people_write() -> None:
    text = """
# [provider.big]
[provider.big]   # a comment
domains = [
  "a.example", # rate = 5
]
"rate" = "1/s"
[[provider.big.rule]]
[[provider."big".rule]]
 name='x'
[ provider . other ]
limits.deep = 1
"""
    assert line_in(text, ("provider", "big")) == 3
    assert line_in(text, ("provider", "big", "rate")) == 7
    assert line_in(text, ("provider", "big", "rule", 1, "name")) == 10
    assert line_in(text, ("provider", "big", "rule", 0, "name")) == 8
    assert line_in(text, ("provider", "other", "limits", "deep")) == 12
    assert line_in(text, ("nothing",)) == 0


@pytest.mark.parametrize(
    ("code", "text", "line"),
    [
        (421, "4.7.0 Slow\r\n4.7.0 down", "421 4.7.0 Slow down"),
        (421, "421-4.7.0 Slow 421-4.7.0 down 4.7.0 please", "421 4.7.0 Slow down please"),
        (0, "smtp; 550 5.1.1 No such user", "550 5.1.1 No such user"),
        (550, "No such user", "550 No such user"),
        (550, "550 No  such\tuser", "550 No such user"),
        (0, "No such user", "No such user"),
        (250, "", "250"),
        (0, "", ""),
        (0, " \r\n", ""),
    ],
)
def test_a_reply_as_patterns_see_it(code: int, text: str, line: str) -> None:
    assert line_of(code, text) == line


@given(st.integers(0, 600), st.text(max_size=50))
def test_any_reply_is_one_line(code: int, text: str) -> None:
    line = line_of(code, text)
    assert line == " ".join(line.split())


@given(st.integers(1, 10_000), st.sampled_from([1.0, 60.0, 3_600.0]))
def test_a_rate_without_burst_bursts_for_a_second(count: int, period_s: float) -> None:
    rate = Rate.of(count, period_s)
    assert rate.per_s == count / period_s
    assert rate.per_s <= rate.burst < rate.per_s + 1 or rate.burst == 1


# -- whatever is written, it is a shaping or an InvalidRequest -------------------------------------

WORDS = st.sampled_from(
    [
        *("default", "provider", "site", "source", "rule", "dated", "rate", "big", "google"),
        *("connections_max", "total_rate", "tls", "domains", "exchangers", "title", "name"),
        *("pattern", "trigger", "action", "scope", "duration", "example", "rules_remove"),
        *("suspend", "limit", "1/s", "2 in 1h", "at once", "90m", "required", "a.example", ""),
    ]
)
VALUES = st.recursive(
    WORDS
    | st.text(string.printable, max_size=10)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def as_toml(value: Any) -> str:
    """Enough of a writer for what is drawn."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | date):
        return str(value)
    if isinstance(value, str):
        escaped = "".join(c if c.isalnum() and c.isascii() else f"\\u{ord(c):04x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return "{" + ", ".join(f"{as_toml(k)} = {as_toml(v)}" for k, v in value.items()) + "}"


@given(st.dictionaries(WORDS, VALUES, max_size=5))
@example({"provider": {"big": {"rule": [{"name": "x", "pattern": "a"}]}}})
@example({"default": {"rule": [{"name": "x", "pattern": "p", "action": "", "duration": "90m"}]}})
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    text = "\n".join(f"{as_toml(key)} = {as_toml(value)}" for key, value in document.items())
    try:
        shaping = parse(text, BASE)
    except InvalidRequest as error:
        assert error.message
    else:
        assert shaping.version and shaping.of("big", "x", "y") and shaping.tiers_of("big", "x")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, BASE)
    except InvalidRequest as error:
        assert error.message
