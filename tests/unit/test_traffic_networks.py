"""Whose address is believed, and which networks are machines'."""

from __future__ import annotations

import tomllib
from importlib import resources
from ipaddress import ip_network
from itertools import combinations

import pytest

from manta.errors import InvalidRequest
from manta.settings import HttpSettings
from manta.traffic.networks import NOWHERE, TrustedProxies, network_of

PROXIES = TrustedProxies(["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "17.1.1.1, 192.0.2.7", "192.0.2.7"),  # the first was written by the client
        ("127.0.0.1", "192.0.2.7, 10.2.3.4", "192.0.2.7"),  # a second proxy of ours
        ("::ffff:127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("fd00::5", "192.0.2.7:5123", "192.0.2.7"),
        ("192.0.2.1", "17.1.1.1", ""),  # nobody we trust says it
        ("127.0.0.1", "", ""),
        ("127.0.0.1", "unknown", ""),
        ("127.0.0.1", "192.0.2.7, garbage", ""),
        ("127.0.0.1", "10.0.0.1", ""),
        ("127.0.0.1", ",".join(["192.0.2.7"] * 40), ""),
        ("", "192.0.2.7", ""),
    ],
)
def test_the_client_is_whom_the_outermost_trusted_proxy_saw(
    peer: str, forwarded: str, client: str
) -> None:
    assert PROXIES.client(peer, forwarded) == client


def test_without_trusted_proxies_nothing_is_believed() -> None:
    assert TrustedProxies([]).client("127.0.0.1", "192.0.2.7") == ""
    with pytest.raises(InvalidRequest, match="is no network"):
        HttpSettings(trusted_proxies=("10.0.0.1/8",))


def test_networks_are_found() -> None:
    assert network_of("17.58.101.1").kind == "privacy_proxy"
    assert network_of("66.249.84.10").name == "google"
    assert network_of("209.222.82.9").kind == "scanner"
    assert network_of("2620:149:a:b::1").name == "apple"
    assert network_of("192.0.2.1") == network_of("") == network_of("x") == NOWHERE


def test_listed_networks_have_no_part_in_common() -> None:
    file = resources.files("manta.traffic") / "networks.toml"
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["network"]
    networks = [ip_network(text) for entry in entries for text in entry["ranges"]]
    for one, other in combinations(networks, 2):
        assert one.version != other.version or not one.overlaps(other), (one, other)
    for entry in entries:
        assert entry["kind"] in ("privacy_proxy", "image_proxy", "scanner")
        assert entry["reason"] and entry["as_of"].year >= 2026
