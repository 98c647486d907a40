"""Domains roll up to sites by what the DNS says of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.lanes import OTHERS, Site
from manta.delivery.routing.sites import (
    EXCHANGERS_MAX,
    Answer,
    Found,
    Refused,
    direct_site,
    domain_name,
    exchangers_of,
    grouped,
    kept_s,
    must_verify,
    narrowed,
    refusal_class,
    refused_site,
    relay_site,
    site_name,
    usable_addresses,
)


def google(domain, exchangers=()):
    hosts = [domain, *exchangers]
    return "google" if any(host.endswith("google.com") for host in hosts) else None


def mx(*records):
    return exchangers_of(Answer(Found.RECORDS, records, 300.0))


def test_exchangers_come_by_preference_in_one_form():
    assert mx("20 B.example.", "10 a.example.", "20 A2.Example.") == (
        ("a.example",),
        ("a2.example", "b.example"),
    )


def test_a_host_counts_once_where_it_is_preferred_most():
    assert mx("20 a.example.", "10 a.example.", "15 b.example.") == (("a.example",), ("b.example",))


def test_null_mx_takes_no_mail_and_beside_others_it_is_left_out():
    assert mx("0 .") == Refused("domain takes no mail (null MX)")
    assert mx("0 .", "0 .") == Refused("domain takes no mail (null MX)")
    assert mx("0 .", "10 a.example.") == (("a.example",),)


@pytest.mark.parametrize(
    "host",
    [
        "192.0.2.1.",
        "a..example.",
        "a\\032b.example.",
        "-a.example.",
        "x" * 64 + ".example.",
        ".".join(["abcdefgh"] * 30) + ".",
        "a.example; drop table",
        "a.example\r\nRCPT",
        "[192.0.2.1].",
    ],
)
def test_what_is_no_host_name_is_no_exchanger(host):
    assert isinstance(mx(f"10 {host}"), Refused)
    assert mx(f"10 {host}", "20 a.example.") == (("a.example",),)


def test_of_too_many_exchangers_the_most_preferred_count():
    found = mx(*(f"{i} mx{i}.example." for i in reversed(range(500))))
    assert [group[0] for group in found] == [f"mx{i}.example" for i in range(EXCHANGERS_MAX)]


def test_without_mx_the_domain_itself_counts_and_an_unknown_domain_is_refused():
    assert exchangers_of(Answer(Found.NOTHING)) is None
    assert exchangers_of(Answer(Found.NO_NAME)) == Refused("no such domain")


HOSTS = st.from_regex(r"[a-z][a-z0-9]{0,3}(\.[a-z]{2,3}){1,2}", fullmatch=True)
PAIRS = st.lists(st.tuples(st.integers(0, 3), HOSTS), min_size=1, max_size=8)


@given(PAIRS, PAIRS)
def test_a_site_is_named_by_its_exchangers_and_by_nothing_else(some, others):
    assert site_name(grouped(some)) == site_name(grouped(reversed(some)))
    assert site_name(grouped([(p * 10, host) for p, host in some])) == site_name(grouped(some))
    assert (site_name(grouped(some)) == site_name(grouped(others))) is (
        grouped(some) == grouped(others)
    )


@given(PAIRS)
def test_a_name_is_fit_for_logs_and_paths(pairs):
    assert re.fullmatch(r"[a-z0-9._~+-]{1,300}", site_name(grouped(pairs)))


def test_a_provider_is_known_by_its_exchangers_and_else_the_site_stands_for_itself():
    exchangers = (("aspmx.l.google.com",), ("alt1.aspmx.l.google.com",))
    one = direct_site("one.example", exchangers, google)
    assert one == direct_site("two.example", exchangers, google)
    assert one.provider == "google"
    assert one.name.startswith("aspmx.l.google.com~")
    alone = direct_site("a.example", (("mx.a.example",),), google)
    assert alone == Site("mx.a.example", "mx.a.example", (("mx.a.example",),))


def test_a_relay_knows_listed_domains_and_others():
    assert relay_site("mail.google.com", google) == Site("google", "google")
    assert relay_site("a.example", google) == Site(OTHERS, OTHERS)


def test_only_what_a_domain_says_itself_counts_hard():
    said = mx("0 .")
    assert isinstance(said, Refused) and refusal_class(said.why) == "hard"
    nobody = exchangers_of(Answer(Found.NO_NAME))
    assert isinstance(nobody, Refused) and refusal_class(nobody.why) == "soft"
    assert refusal_class("no host that would take its mail has an address") == "soft"


def test_a_refused_domain_shares_no_site():
    assert refused_site("a.example", "why", google).name not in ("a.example", "")
    assert refused_site("no\r\ndomain", "why", google) == Site("~refused", "~refused", (), "why")


def test_an_enforced_policy_makes_a_site_of_its_own():
    site = direct_site("a.example", (("x.google.com", "evil.example"), ("y.google.com",)), google)
    verified = narrowed("a.example", site, lambda host: host.endswith("google.com"))
    assert must_verify(verified) and not must_verify(site)
    assert verified.exchangers == (("x.google.com",), ("y.google.com",))
    assert (verified.provider, site.provider) == ("google", "google")
    same = direct_site("b.example", verified.exchangers, google)
    assert narrowed("b.example", same, lambda host: True) == verified
    assert same.name != verified.name


def test_a_policy_that_allows_no_exchanger_leaves_none():
    site = direct_site("a.example", (("mx.a.example",),), google)
    nowhere = narrowed("a.example", site, lambda host: False)
    assert nowhere.exchangers == () and nowhere.refusal == ""
    assert must_verify(nowhere)
    assert nowhere.provider == nowhere.name != site.name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("_x.example", "_x.example"),
        ("", None),
        (".", None),
        ("a b.example", None),
        ("[192.0.2.1]", None),
        ("a.example\n", "a.example"),
        ("a\n.example", None),
        ("\x00", None),
        ("é" * 300, None),
    ],
)
def test_domain_names(text, name):
    assert domain_name(text) == name


@given(st.text(max_size=300))
def test_any_text_is_a_domain_name_or_none(text):
    name = domain_name(text)
    assert name is None or re.fullmatch(r"[a-z0-9._-]{1,253}", name)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_records_are_exchangers_or_a_refusal(records):
    found = mx(*records)
    assert isinstance(found, Refused) or all(group for group in found)


def test_answers_are_kept_within_limits():
    assert kept_s(Found.RECORDS, 0) == 30.0
    assert kept_s(Found.RECORDS, 2**31) == 86_400.0
    assert kept_s(Found.NOTHING, 0) == 60.0
    assert kept_s(Found.NO_NAME, 86_400) == 3_600.0
    assert kept_s(Found.TROUBLE, 86_400) == 30.0


def test_private_addresses_are_out_of_reach_unless_they_are_wanted():
    private = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1"]
    private += ["::ffff:127.0.0.1", "fd00::1", "100.64.0.1"]
    nobody = ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "", "no address", "1.2.3"]
    nobody += ["169.254.169.254", "fe80::1"]
    public = ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"]
    assert usable_addresses(private + nobody + public, private=False) == tuple(public)
    assert usable_addresses(private + nobody + public, private=True) == tuple(private + public)
