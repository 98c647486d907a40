"""From which network somebody asks, where the address is known.

The address is known only through the proxies before us. ``X-Forwarded-For`` (RFC 7239 §5.2 tells
its story) is a list to which each proxy adds whom it saw, so it is read from its end: the first
address that is not a trusted proxy's own is the client; what stands before it anybody may have
written. Without trusted proxies nothing is believed and the network is unknown.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib import resources
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

ADDRESSES_KNOWN_MAX = 16_384
HOPS_MAX = 16  # of a header; a longer one is not believed


class Network(NamedTuple):
    """A network of machines. ``kind``: privacy_proxy, image_proxy or scanner."""

    name: str
    kind: str


NOWHERE = Network("", "")


class Ranges:
    """Networks with no part in common, each with a value; a look-up is one search by halves."""

    def __init__(self, ranges: Iterable[tuple[str, Network]]) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._rest: dict[int, list[tuple[int, Network]]] = {4: [], 6: []}
        parsed = [(ip_network(text), value) for text, value in ranges]
        for network, value in sorted(parsed, key=lambda each: int(each[0].network_address)):
            self._starts[network.version].append(int(network.network_address))
            self._rest[network.version].append((int(network.broadcast_address), value))

    def find(self, address: IPv4Address | IPv6Address) -> Network | None:
        """The value of the network that holds the address."""
        number = int(address)
        at = bisect_right(self._starts[address.version], number) - 1
        if at < 0:
            return None
        end, value = self._rest[address.version][at]
        return value if number <= end else None


class TrustedProxies:
    """The networks of the proxies whose ``X-Forwarded-For`` is believed."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._ranges = Ranges((text, NOWHERE) for text in networks)
        self.any = bool(networks)

    def client(self, peer: str, forwarded: str) -> str:
        """The client's address; empty where it is not known.

        ``peer`` is who is connected to us, ``forwarded`` the header, several of them joined by
        commas.
        """
        if not self.any or not self._is_ours(peer):
            return ""
        hops = forwarded.split(",", HOPS_MAX)
        if len(hops) > HOPS_MAX:
            return ""
        for hop in reversed(hops):
            address = _address(hop)
            if address is None:
                return ""
            if self._ranges.find(address) is None:
                return str(address)
        return ""

    def _is_ours(self, text: str) -> bool:
        address = _address(text)
        return address is not None and self._ranges.find(address) is not None


@lru_cache(maxsize=ADDRESSES_KNOWN_MAX)
def network_of(address: str) -> Network:
    """The network of machines that an address belongs to; ``NOWHERE`` for all others."""
    parsed = _address(address)
    return NOWHERE if parsed is None else _known().find(parsed) or NOWHERE


@cache
def _known() -> Ranges:
    file = resources.files("manta.traffic") / "networks.toml"
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return Ranges(
        (text, Network(entry["name"], entry["kind"]))
        for entry in document["network"]
        for text in entry["ranges"]
    )


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: with a port or brackets, or IPv4 within IPv6."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
