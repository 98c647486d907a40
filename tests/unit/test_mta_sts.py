"""MTA-STS records and policies (RFC 8461)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.routing.mta_sts import Mode, Policy, parse_policy, parse_records

# RFC 8461 §3.2, Figure 2
EXAMPLE = b"""version: STSv1\r
mode: enforce\r
mx: mail.example.com\r
mx: *.example.net\r
mx: backupmx.example.com\r
max_age: 604800\r
"""


@pytest.mark.parametrize(
    ("texts", "policy_id"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; x=y; id=1; z=w"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1"], "1"),
        (["v=STSv1; id=1", "v=STSv1; id=2"], None),  # §3.1: more than one is none
        (["v=STSv1; id=1", "v=STSv10; id=2"], "1"),
        (["id=1; v=STSv1"], None),
        (["v=STSv1; id=a-b"], None),
        (["v=STSv1; id=" + "a" * 33], None),
        (["v=STSv1"], None),
        ([], None),
    ],
)
def test_records(texts, policy_id):
    assert parse_records(texts) == policy_id


def test_the_example_of_the_rfc():
    policy = parse_policy(EXAMPLE)
    assert policy == Policy(
        Mode.ENFORCE, 604_800, ("mail.example.com", "*.example.net", "backupmx.example.com")
    )
    assert policy.is_enforced


def test_lines_may_end_in_lf_and_unknown_keys_do_not_matter():
    assert parse_policy(b"version: STSv1\nfuture: x\nmode: testing\nmx: a.b\nmax_age: 1") == Policy(
        Mode.TESTING, 1, ("a.b",)
    )


def test_a_policy_of_none_needs_no_hosts():
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 60\n") == Policy(Mode.NONE, 60)


def test_of_a_key_given_twice_the_first_counts():
    policy = parse_policy(EXAMPLE + b"mode: none\r\nmax_age: 5\r\n")
    assert policy is not None and policy.is_enforced and policy.max_age_s == 604_800


def test_a_policy_holds_a_year_at_most():
    policy = parse_policy(EXAMPLE.replace(b"604800", b"9999999999"))
    assert policy is not None and policy.max_age_s == 31_557_600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        EXAMPLE.replace(b"STSv1", b"STSv2"),
        EXAMPLE.replace(b"enforce", b"force"),
        EXAMPLE.replace(b"604800", b"-1"),
        EXAMPLE.replace(b"604800", b"a week"),
        EXAMPLE.replace(b"604800", "٣".encode()),
        EXAMPLE.replace(b"604800", b"1" * 11),
        EXAMPLE.replace(b"max_age", b"maxage"),
        EXAMPLE.replace(b"mx:", b"host:"),
        EXAMPLE.replace(b"*.example.net", b"*"),
        EXAMPLE.replace(b"*.example.net", b"a.*.net"),
        EXAMPLE.replace(b"*.example.net", b"*.*.net"),
        EXAMPLE.replace(b"*.example.net", b"a b"),
        EXAMPLE + b"mx: a.b\n" * 200,
        EXAMPLE + b"\xff\xfe",
        EXAMPLE + b"x" * 70_000,
        b"<html>not found</html>",
    ],
)
def test_what_is_malformed_is_no_policy(content):
    assert parse_policy(content) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_policy_or_none(content):
    parse_policy(content)
    parse_policy(EXAMPLE + content)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mail.example.com", True),
        ("MAIL.Example.com.", True),
        ("mx1.example.net", True),
        ("example.net", False),
        ("a.mx1.example.net", False),  # a wildcard stands for one label (RFC 6125 §6.4.3)
        ("evilexample.net", False),
        ("mail.example.com.evil.example", False),
        ("", False),
    ],
)
def test_hosts_of_a_policy(host, allowed):
    policy = parse_policy(EXAMPLE)
    assert policy is not None
    assert policy.allows(host) is allowed
