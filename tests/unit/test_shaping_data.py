"""Every row of the provider file: sane bounds, an example for each rule, nothing claimed twice."""

from __future__ import annotations

from collections import Counter
from datetime import date
from importlib.resources import files
from itertools import pairwise

import pytest

from manta.delivery.reputation.actions import ActionKind
from manta.delivery.shaping.shaping import builtin
from manta.delivery.shaping.values import (
    Bounds,
    Provider,
    Rule,
    RuleScope,
    Section,
    compile_patterns,
    line_of,
)

SHAPING = builtin()
PROVIDERS = list(SHAPING.providers.values())
SECTIONS = [("default", SHAPING.default), *((p.name, p.section) for p in PROVIDERS)]
RULES = [(owner, rule) for owner, section in SECTIONS for rule in section.rules]

# What servers say of one person, one message or themselves: no rule may act on any of it.
HARMLESS = (
    "250 2.0.0 OK 1764000000 a1b2 - gsmtp",
    "550 5.1.1 The account that you tried to reach does not exist",
    "550-5.1.1 <ann@example.com>: Recipient address rejected: User unknown",
    "552 5.2.2 The mailbox is over its quota",
    "452 4.2.2 The recipient's inbox is out of storage space",
    "450 4.2.1 The user you are trying to contact is getting mail at a rate that leaves no room",
    "450 User is receiving mail too quickly",
    "452 4.2.2 The recipient has exceeded their message rate limit",
    "451 4.7.1 Greylisting in action, please come back later",
    "450 4.2.0 <ann@example.com>: Recipient address rejected: Greylisted",
    "451 4.3.0 Temporary system problem. Try again later",
    "421 4.4.2 Timeout, closing connection",
    "451 4.4.1 Could not reach the next host",
    "552 5.3.4 Message size exceeds the limit",
    "554 5.6.0 The message is malformed",
    "550 5.4.6 Too many hops, a mail loop",
    "452 4.5.3 Too many recipients",
    "550 5.7.1 Relaying denied",
    "550 5.1.10 Null MX",
    "550 5.2.1 The mailbox is disabled",
    "421 4.3.2 The system is going down for maintenance",
    "",
)


def ids(values: list[tuple[str, Rule]]) -> list[str]:
    return [f"{owner}/{rule.name}" for owner, rule in values]


def test_it_is_dated_and_ships_with_the_package() -> None:
    assert date(2026, 1, 1) <= SHAPING.dated <= date(2027, 12, 31)
    assert files("manta.delivery.shaping").joinpath("providers.toml").is_file()


def test_there_is_a_default_for_everything() -> None:
    bounds = SHAPING.default.bounds
    assert None not in [getattr(bounds, name) for name in Bounds.__dataclass_fields__]


def test_the_well_known_are_there() -> None:
    known = {
        "gmail.com": "google",
        "yahoo.com": "yahoo",
        "aol.com": "yahoo",
        "hotmail.com": "outlook",
        "icloud.com": "apple",
        "comcast.net": "comcast",
        "orange.fr": "orange",
        "web.de": "gmx",
        "t-online.de": "t_online",
        "mail.ru": "mail_ru",
        "ya.ru": "yandex",
        "qq.com": "qq",
        "163.com": "netease",
        "yahoo.co.jp": "yahoo_japan",
        "laposte.net": "laposte",
        "free.fr": "free",
        "proton.me": "proton",
    }
    assert {domain: SHAPING.provider_of(domain) for domain in known} == known
    hosts = {
        "aspmx.l.google.com": "google",
        "mta5.am0.yahoodns.net": "yahoo",
        "hotmail-com.olc.protection.outlook.com": "outlook",
        "example-com.mail.protection.outlook.com": "office365",
        "example-com.o-v1.mx.microsoft": "office365",
        "mx01.mail.icloud.com": "apple",
        "mx00.gmx.net": "gmx",
        "mx-ha02.web.de": "gmx",
        "eu-smtp-inbound-1.mimecast.com": "mimecast",
        "mxa-00112233.gslb.pphosted.com": "proofpoint",
        "d1.a.ess.barracudanetworks.com": "barracuda",
        "mx1.mail.yahoo.co.jp": "yahoo_japan",
    }
    assert {host: SHAPING.provider_of("example.com", [host]) for host in hosts} == hosts


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name)
def test_bounds_are_sane(provider: Provider) -> None:
    assert provider.title and provider.exchangers
    shaped = SHAPING.of(provider.name)
    site, total = shaped.limits_of_site, shaped.limits_of_provider
    assert total is not None
    for limits in (site, total):
        assert 1 <= limits.connections_max <= 100
        assert 0.1 <= limits.rate_per_s <= 1_000
        assert 1 <= limits.burst <= 1_000
        assert 2 <= limits.messages_per_connection <= 1_000
    assert site.connections_max <= total.connections_max
    assert site.rate_per_s <= total.rate_per_s
    assert 0.1 <= shaped.connections_per_s <= 10 and shaped.connections_burst >= 1
    assert shaped.tls in ("opportunistic", "required")


def test_nothing_is_claimed_twice() -> None:
    claims = Counter(name for p in PROVIDERS for name in (p.exchangers or ()))
    claims.update(name for p in PROVIDERS for name in (p.domains or ()))
    assert [name for name, count in claims.items() if count > 1] == []


def test_an_end_of_a_host_name_is_never_a_whole_top_level() -> None:
    ends = [end for p in PROVIDERS for end in p.exchangers or ()]
    assert all(end.startswith(".") and end.count(".") >= 2 for end in ends)


@pytest.mark.parametrize(("owner", "rule"), RULES, ids=ids(RULES))
def test_a_rule_is_sane(owner: str, rule: Rule) -> None:
    assert rule.examples, "every rule says what it is for"
    assert 30 <= rule.duration_s <= 24 * 3_600
    assert 2 <= rule.threshold <= 100, "one reply alone moves nothing"
    assert 60 <= rule.period_s <= 24 * 3_600
    if rule.action is ActionKind.LIMIT:
        rate = rule.limits.rate_per_s
        assert rate is None or 1 / 60 <= rate <= 10
        assert rule.scope in (RuleScope.LANE, RuleScope.PROVIDER)
    assert rule.action in (ActionKind.LIMIT, ActionKind.SUSPEND), "nothing fails by default"
    assert owner == "default" or rule.scope is not RuleScope.SOURCE


@pytest.mark.parametrize(("owner", "rule"), RULES, ids=ids(RULES))
def test_a_rule_matches_its_examples_and_nothing_harmless(owner: str, rule: Rule) -> None:
    program = compile_patterns(rule.patterns)
    for example in rule.examples:
        assert program.search(line_of(0, example)), example
        code, _, text = example.partition(" ")
        assert program.search(line_of(int(code), text)), "the code may come apart from the text"
        assert program.search(line_of(0, f"smtp; {example}")), "as in a DSN"
    for harmless in (*HARMLESS, *rule.counter_examples):
        assert program.search(line_of(0, harmless)) is None, harmless


def test_own_rules_know_their_own_words_only() -> None:
    """Where a rule matches what another provider says, it is the same cause by the same name."""
    confused = []
    for owner, rule in RULES:
        program = compile_patterns(rule.patterns)
        if owner == "default":
            continue
        for other, example_rule in RULES:
            if other == owner or example_rule.name == rule.name or other == "default":
                continue
            confused += [
                (owner, rule.name, other, example_rule.name)
                for example in example_rule.examples
                if program.search(line_of(0, example))
            ]
    assert not confused, confused


@pytest.mark.parametrize(("owner", "section"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_rules_of_one_provider_do_not_overlap(owner: str, section: Section) -> None:
    """One reply, one cause: two actions for it would be a wrong pattern."""
    programs = [(rule.name, compile_patterns(rule.patterns)) for rule in section.rules]
    for rule in section.rules:
        for example in rule.examples:
            found = [name for name, program in programs if program.search(line_of(0, example))]
            assert found == [rule.name], example


def test_the_file_is_in_order() -> None:
    """What is listed twice is found where lists are easy to read."""
    text = files("manta.delivery.shaping").joinpath("providers.toml").read_text()
    assert all(len(line) <= 130 for line in text.splitlines() if "'''" not in line)
    names = [line for line in text.splitlines() if line.startswith("[provider.")]
    assert all(a != b for a, b in pairwise(sorted(names)))
