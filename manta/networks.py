"""Which IP addresses on the other side of a stranger's name we may connect to.

Whoever lets us connect to a host of their choosing must not reach what only we can reach: private
networks, this machine, the metadata service of a cloud (SSRF). An address is public when it is
globally reachable by the IANA registries (RFC 6890), and so is each IPv4 address that it carries
inside: IPv4-mapped and -compatible (RFC 4291 §2.5.5), NAT64 (RFC 6052 §2.1), 6to4 (RFC 3056) and
Teredo (RFC 4380). Metadata services and link-local addresses are refused even where private ones
are allowed.
"""

from __future__ import annotations

import ipaddress

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Of clouds, where they are not link-local: AWS (IPv6), Azure, Alibaba, Oracle.
METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
)
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NO_HOST = (ipaddress.IPv4Network("0.0.0.0/8"), ipaddress.IPv4Network("240.0.0.0/4"))
# Not global, whatever the registry that Python was built with says.
_INNER = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "64:ff9b:1::/48",  # NAT64 of local use, RFC 8215: may lead anywhere inside
            "3fff::/20",  # documentation, RFC 9637
        ),
    )
)
# All that is given out for unicast (RFC 4291 §2.4): outside lies no stranger's host, such as
# IPv4-translated addresses (::ffff:0:0/96 of RFC 2765), which a translator would take inside.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")


def refusal(text: str, private: bool = False) -> str:
    """Why nothing may connect to this address; empty where it may.

    ``private``: addresses of private networks and of this machine are allowed.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return f"{text!r:.60} is no IP address"
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return f"{address} has a zone"
    for each in (address, *_inside(address)):
        why = _refusal(each, private)
        if why:
            return f"{address} is {why}" if each == address else f"{address} leads to {each}, {why}"
    return ""


def _inside(address: _Address) -> tuple[_Address, ...]:
    """The IPv4 addresses to which a packet to this IPv6 address may be brought."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return (ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return tuple(address.teredo or ())


def _refusal(address: _Address, private: bool) -> str:
    if address in METADATA:
        return "the metadata service of a cloud"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address.is_unspecified or any(address in network for network in _NO_HOST):
        return "no host's"
    if private or _carries(address):
        return ""
    is_inner = any(address in network for network in _INNER)
    if isinstance(address, ipaddress.IPv6Address):
        is_inner = is_inner or address not in _GIVEN_OUT
    return "not public" if is_inner or not address.is_global else ""


def _carries(address: _Address) -> bool:
    """Whether the IPv4 address inside is what counts. A tunnel's own prefix says nothing."""
    if isinstance(address, ipaddress.IPv4Address):
        return False
    if address.ipv4_mapped is not None or address in _NAT64 or address.sixtofour is not None:
        return True
    return address.teredo is not None or (address in _COMPATIBLE and int(address) > 1)
