"""Signatures, the schedule, an endpoint's health, what an endpoint may be, where we may connect."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.clock import as_text
from manta.errors import InvalidRequest
from manta.networks import refusal
from manta.webhooks import signing
from manta.webhooks.endpoints import (
    TYPES,
    checked,
    living_secrets,
    matches,
    rotated,
    shard_body,
    shown,
)
from manta.webhooks.health import PAUSE_MAX_S, ROOM_FIRST, ROOM_MAX, Health
from manta.webhooks.retries import (
    ATTEMPTS_MAX,
    RETRY_AFTER_MAX_S,
    SCHEDULE_S,
    Answered,
    State,
    after,
)
from tests.conftest import REPOSITORY
from tests.unit.serve_fakes import FakeDocuments

NOW = datetime(2026, 3, 1, 12)
SECRET = signing.secret_text(b"s" * 32)
VECTORS = REPOSITORY.parent / "shared/data/webhooks/standard_webhooks.json"
GOOD = {"url": "https://x.example/hook", "types": ["*"], "secrets": [{"secret": SECRET}]}


# -- signing ---------------------------------------------------------------------------------------


def test_the_vector_of_the_reference_suites():
    signed = signing.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_every_vector_of_the_shared_data():
    if not VECTORS.exists():
        pytest.skip(f"no {VECTORS}")
    for vector in json.loads(VECTORS.read_text())["vectors"]:
        signed = signing.signature(
            vector["secret"],
            vector["webhook-id"],
            int(vector["webhook-timestamp"]),
            vector["body"].encode(),
        )
        assert signed == vector["webhook-signature"]


def test_all_living_secrets_sign():
    document = {"secrets": [{"secret": SECRET, "until": None}]}
    new = signing.secret_text(b"n" * 32)
    document = {"secrets": rotated(document, new, NOW, timedelta(hours=1))}
    assert living_secrets(document, NOW) == [new, SECRET]
    headers = signing.headers([new, SECRET], "msg_1", NOW, b"{}")
    assert headers["webhook-timestamp"] == "1772366400"
    first, second = headers["webhook-signature"].split(" ")
    assert first == signing.signature(new, "msg_1", 1772366400, b"{}")
    assert second == signing.signature(SECRET, "msg_1", 1772366400, b"{}")
    later = NOW + timedelta(hours=1)
    assert living_secrets(document, later) == [new]
    third = signing.secret_text(b"t" * 32)
    assert [s["secret"] for s in rotated(document, third, later, timedelta(0))] == [third]


@pytest.mark.parametrize("text", ["", "whsec_", "abc", "whsec_????", "whsec_" + "QUFB" * 5])
def test_a_bad_secret_is_refused_without_an_echo(text):
    with pytest.raises(InvalidRequest) as refused:
        signing.secret_bytes(text)
    assert not text or text not in str(refused.value)


# -- retries and health ----------------------------------------------------------------------------


def test_the_schedule_is_the_specifications():
    hours = [s / 3600 for s in SCHEDULE_S[3:]]
    assert SCHEDULE_S[:3] == (0, 5, 300)
    assert hours == [0.5, 2, 5, 10, 14, 20, 24]


@given(
    st.one_of(st.none(), st.integers(100, 599)),
    st.integers(1, ATTEMPTS_MAX),
    st.one_of(st.none(), st.floats(-10, 1e9)),
    st.integers(),
)
def test_whatever_is_answered_the_next_state_is_sound(status, attempts, asked, seed):
    found = after(Answered(status, "", asked), attempts, NOW, Random(seed))
    if status is not None and 200 <= status < 300:
        assert found.state is State.DELIVERED
    elif status == 410 or attempts == ATTEMPTS_MAX:
        assert found.state is State.FAILED
    else:
        assert found.state is State.WAITING
    assert (found.due_at is None) == (found.state is not State.WAITING)
    if found.due_at is not None:
        wait_s = (found.due_at - NOW).total_seconds()
        assert SCHEDULE_S[attempts] <= wait_s
        assert wait_s <= max(SCHEDULE_S[attempts] * 1.1, RETRY_AFTER_MAX_S) + 1e-3
        if asked is not None and 0 <= asked <= RETRY_AFTER_MAX_S:
            assert wait_s >= asked - 1e-3


def test_redirects_are_failures():
    assert after(Answered(302), 1, NOW, Random(1)).state is State.WAITING


def test_an_endpoint_gets_more_while_it_is_well_and_half_when_it_is_busy():
    health = Health()
    for _ in range(100):
        health.note(Answered(204), 0.0)
    assert health.room == ROOM_MAX
    health.note(Answered(503), 0.0)
    assert (health.room, health.pause_s(0.0)) == (ROOM_MAX // 2, 1.0)
    health.note(Answered(503), 0.5)  # was under way before the pause
    assert health.room == ROOM_MAX // 2
    for n in range(20):
        health.note(Answered(None, "timed out"), 100.0 * n + 100.0)
    assert health.room == 1
    health.note(Answered(429, "", 900.0), 5_000.0)
    assert health.pause_s(5_000.0) == 900.0
    health.note(Answered(200), 5_900.0)
    assert (health.room, health.pause_s(5_900.0)) == (2, 0.0)
    health.note(Answered(500), 5_900.0)
    assert health.pause_s(5_900.0) == 0.0


@given(st.lists(st.sampled_from([200, 500, 503, None]), max_size=60))
def test_pauses_are_bounded(statuses):
    health, now_s = Health(), 0.0
    for status in statuses:
        health.note(Answered(status), now_s)
        assert 1 <= health.room <= ROOM_MAX
        assert health.pause_s(now_s) <= PAUSE_MAX_S
        now_s += health.pause_s(now_s)
    assert ROOM_FIRST <= ROOM_MAX


# -- endpoints -------------------------------------------------------------------------------------


def test_an_endpoint_with_defaults():
    document = checked(GOOD, FakeDocuments()) | {"id": 1, "version": 3}
    assert (document["ordered"], document["enabled"], document["disabled"]) == (False, True, None)
    assert shard_body(document, FakeDocuments()) == {
        "types": ["*"],
        "ordered": False,
        "enabled": True,
        "version": 3,
    }
    assert SECRET not in repr(shown(document))
    assert SECRET not in repr(shard_body(document, FakeDocuments()))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"url": "ftp://x.example/"}, "url"),
        ({"url": "HTTPS://x.example/"}, "url"),  # nothing would be sent there
        ({"url": "https://"}, "url"),
        ({"url": "https://u:p@x.example/"}, "url"),
        ({"url": "https://x.example/#f"}, "url"),
        ({"url": "https://x.example/a b"}, "url"),
        ({"url": "https://x.example/\r\nHost: y"}, "url"),
        ({"url": "https://x.example:99999/"}, "url"),
        ({"url": "https://é.example/"}, "url"),
        ({"url": "https://[::1/"}, "url"),
        ({"url": "https://x.example/" + "a" * 2_000}, "url"),
        ({"url": 7}, "url"),
        ({"types": []}, "types"),
        ({"types": "event.*"}, "types"),
        ({"types": ["person.create"]}, "types[0]"),
        ({"types": ["*", "*.created"]}, "types[1]"),
        ({"types": [7]}, "types[0]"),
        ({"types": ["other.*"]}, "types[0]"),
        ({"ordered": "yes"}, "ordered"),
        ({"secrets": []}, "secrets"),
        ({"secrets": [{"secret": "x"}]}, "secret"),
        ({"description": "a\x1b[31m"}, "description"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_endpoint_is_refused_by_field(fields, path):
    with pytest.raises(InvalidRequest) as refused:
        checked(GOOD | fields, FakeDocuments())
    assert refused.value.path == path


def test_patterns():
    for kind in TYPES:
        assert matches(["*"], kind)
        assert matches([kind.partition(".")[0] + ".*"], kind)
        checked(GOOD | {"types": [kind]}, FakeDocuments())
    assert matches(["event.*"], "event.a.b")
    assert not matches(["event.a"], "event.a.b")
    assert not matches(["person.*"], "personal.x")
    assert as_text(NOW).endswith("Z")


# -- addresses -------------------------------------------------------------------------------------

PRIVATE = (
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "127.0.0.1",
    "127.9.9.9",
    "100.64.0.1",
    "198.18.0.1",
    "192.0.2.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "::10.0.0.1",
    "64:ff9b:1::1",
    "fec0::1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:10.0.0.1",
    "::fffe:7f00:1",
    "4000::1",
    "3fff::1",
    "5f00::1",
    "100::1",
    "2001:db8::1",
    "100::1",
)
NEVER = (
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "::169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "168.63.129.16",
    "100.100.100.200",
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "240.0.0.1",
    "::",
    "224.0.0.1",
    "ff02::1",
    "x.example",
    "0x7f000001",
    "2130706433",
    "",
)
PUBLIC = ("93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_only_where_allowed(address):
    assert refusal(address)
    assert not refusal(address, private=True)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_never(address):
    assert refusal(address)
    assert refusal(address, private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert not refusal(address)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_as_itself(address):
    plain = bool(refusal(str(address)))
    number = int(address)
    for carried in (
        f"::ffff:{address}",
        f"64:ff9b::{address}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::",
    ):
        assert bool(refusal(carried)) == plain, carried
