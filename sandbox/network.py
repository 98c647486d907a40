"""The sandbox's piece of the Internet: which domain is whose, hosts, addresses, and the DNS of it.

Nothing can leave the machine. Recipients' domains are reserved ones (RFC 2606); their exchangers
are named as those of real providers are, so that the shaping file knows them, but only the
sandbox's own DNS says so, and all addresses are loopback ones.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_INET, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, socket

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manta.delivery.rehearsal.behaviour import behaviours
from manta.errors import Conflict

PORT_TRIES = 50
FIRST_HOST = 11  # hosts of providers are 127.0.0.11 and on; below are our own sources

# Whose mail the domains of the sample's people are; ``full`` and ``gone`` fare as they are called.
DOMAINS = {
    "gmail.example": "google",
    "yahoo.example": "yahoo",
    "outlook.example": "outlook",
    "careful.example": "greylister",
    "mail.example": "postfix",
    "full.example": "yahoo",
    "gone.example": "google",
}


@dataclass(frozen=True)
class Network:
    """``domains``: recipients' domain → the name of a model. ``sources``: EHLO name → address of
    each direct source. Mail for ``return_path_domain`` goes to the inbox; ``senders`` are the
    domains that campaigns are sent from."""

    domains: Mapping[str, str] = field(default_factory=lambda: dict(DOMAINS))
    sources: Mapping[str, str] = field(default_factory=dict)
    return_path_domain: str = "bounces.news.example"
    senders: tuple[str, ...] = ("news.example",)

    @property
    def hosts(self) -> dict[str, list[tuple[str, str]]]:
        """(host name, address) of the exchangers, by model."""
        found: dict[str, list[tuple[str, str]]] = {}
        number = FIRST_HOST
        for name in dict.fromkeys(self.domains.values()):
            for host in behaviours()[name].exchangers:
                found.setdefault(name, []).append((host, f"127.0.0.{number}"))
                number += 1
        return found

    @property
    def addresses(self) -> list[str]:
        return [address for hosts in self.hosts.values() for _, address in hosts]

    def zone(self) -> dict[str, Mapping[str, Sequence[str]]]:
        """What the DNS says, for ``sandbox.dns``. DKIM keys come when they are made."""
        zone: dict[str, Mapping[str, Sequence[str]]] = {}
        for hosts in self.hosts.values():
            zone |= {host: {"A": [address]} for host, address in hosts}
        for domain, name in self.domains.items():
            hosts = self.hosts[name]
            zone[domain] = {"MX": [f"{10 * n} {host}" for n, (host, _) in enumerate(hosts, 1)]}
        for host, address in self.sources.items():
            zone[host] = {"A": [address]}
            zone[f"{'.'.join(reversed(address.split('.')))}.in-addr.arpa"] = {"PTR": [host]}
        inbox = f"inbox.{self.return_path_domain}"
        senders = " ".join(f"ip4:{address}" for address in self.sources.values())
        zone[inbox] = {"A": ["127.0.0.1"]}
        zone[self.return_path_domain] = {
            "MX": [f"10 {inbox}"],
            "TXT": [f"v=spf1 {senders} -all"],
        }
        for domain in self.senders:
            zone[f"_dmarc.{domain}"] = {"TXT": ["v=DMARC1; p=none"]}
        return zone


def free_port(addresses: Iterable[str], *, with_udp: bool = False) -> int:
    """A port that nobody has at any of the addresses. Raises ``Conflict`` where none is found."""
    addresses = list(addresses)
    kinds = (SOCK_STREAM, SOCK_DGRAM) if with_udp else (SOCK_STREAM,)
    for _ in range(PORT_TRIES):
        with ExitStack() as stack:
            port = 0
            try:
                for kind in kinds:
                    for address in addresses:
                        probe = stack.enter_context(socket(AF_INET, kind))
                        probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
                        probe.bind((address, port))
                        port = probe.getsockname()[1]
                return port
            except OSError:
                continue
    raise Conflict("no port is free at all of the sandbox's addresses", path="port")


def server_tls(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate of its own making, kept in the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the sandbox")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "sandbox.pem"
    path.touch(mode=0o600)
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
