"""From what the DNS says about a domain to the site where its mail goes.

Domains with the same exchangers roll up to one ``Site``: its name is made from the exchangers alone
(hosts and their order), so whoever asks, whenever, gets the same name for the same exchangers and
another for others. Nothing here is stored; after a crash the DNS is asked again.

What a domain may say, and what becomes of it:

| the DNS says | the site |
| --- | --- |
| exchangers | those, equally preferred ones together (RFC 5321 §5.1) |
| no MX, but an address | the domain itself, the implicit exchanger (RFC 5321 §5.1) |
| no MX and no address; no such name | refused: mail can never arrive |
| the null MX ``.`` alone | refused (RFC 7505); beside others it is left out |
| an IP address, or no host name at all | left out; refused if alone |
| hosts whose addresses are all private or this machine's | refused |
| hosts that all have no address | refused |
| more than ``EXCHANGERS_MAX`` | the most preferred |
| nothing (time-out, SERVFAIL, a loop) | none yet: ask again later |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from manta.delivery.lanes import OTHERS, Site
from manta.delivery.reputation.observations import BounceClass
from manta.networks import refusal

EXCHANGERS_MAX = 50
ADDRESSES_MAX = 16  # of one host
VERIFIED = "+mta-sts"  # ends the name of a site whose hosts have to prove who they are

KEPT_MIN_S = 30.0
KEPT_MAX_S = 86_400.0
NOTHING_KEPT_MIN_S = 60.0
NOTHING_KEPT_MAX_S = 3_600.0  # RFC 2308 §5 allows three hours; a domain that begins is not kept out
TROUBLE_KEPT_S = 30.0
NULL_MX = "domain takes no mail (null MX)"

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

ProviderOf = Callable[[str, Iterable[str]], str | None]


class Found(StrEnum):
    """What came of one question to the DNS."""

    RECORDS = "records"
    NOTHING = "nothing"  # the name exists, without records of this type
    NO_NAME = "no_name"  # NXDOMAIN
    TROUBLE = "trouble"  # nobody could tell: a time-out, SERVFAIL, a loop, nonsense


class Answer(NamedTuple):
    """``records``: their text, in the order of the answer; ``ttl_s``: how long it may be kept;
    ``detail``: of trouble, what it was."""

    found: Found
    records: tuple[str, ...] = ()
    ttl_s: float = 0.0
    detail: str = ""


class Route(NamedTuple):
    """One exchanger of a site. ``preference``: equal ones are tried in any order; ``addresses``:
    IPv4 first; ``must_verify``: only with a certificate that is valid for ``host``."""

    host: str
    addresses: tuple[str, ...]
    must_verify: bool = False
    preference: int = 0


@dataclass(frozen=True)
class Refused:
    """The domain can never get mail, and why."""

    why: str


Exchangers = tuple[tuple[str, ...], ...]


def kept_s(found: Found, ttl_s: float) -> float:
    """How long an answer is kept: as the DNS says, within limits (RFC 2308 §5, §7)."""
    if found is Found.TROUBLE:
        return TROUBLE_KEPT_S
    if found is Found.RECORDS:
        return min(max(ttl_s, KEPT_MIN_S), KEPT_MAX_S)
    return min(max(ttl_s, NOTHING_KEPT_MIN_S), NOTHING_KEPT_MAX_S)


def domain_name(text: str) -> str | None:
    """The domain as the DNS is asked for it: lower case, A-labels, no dot at the end; None where it
    cannot be one."""
    name = text.strip().rstrip(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    return name if _is_host_name(name) else None


def exchangers_of(answer: Answer) -> Exchangers | Refused | None:
    """The exchangers of an MX answer; None: there is no MX, so the domain's own addresses count.

    Not for an answer that is trouble.
    """
    if answer.found is Found.NO_NAME:
        return Refused("no such domain")
    if answer.found is Found.NOTHING:
        return None
    pairs = [pair for pair in map(_exchanger, answer.records) if pair is not None]
    named = {pair for pair in pairs if pair[1]}
    if not named and pairs:
        return Refused(NULL_MX)
    usable = sorted(pair for pair in named if _is_usable(pair[1]))[:EXCHANGERS_MAX]
    if not usable:
        return Refused("domain takes no mail (its MX names no host that can be reached)")
    return grouped(usable)


def grouped(pairs: Iterable[tuple[int, str]]) -> Exchangers:
    """(preference, host) pairs by preference; a host counts once, where it is preferred most."""
    groups: dict[int, list[str]] = {}
    seen: set[str] = set()
    for preference, host in sorted(pairs):
        if host not in seen:
            seen.add(host)
            groups.setdefault(preference, []).append(host)
    return tuple(tuple(hosts) for hosts in groups.values())


def site_name(exchangers: Exchangers) -> str:
    """The first host; with a hash of all of them where there are several.

    ``~`` is in no host name, so a site of one host never has the name of another.
    """
    first = exchangers[0][0]
    if len(exchangers) == 1 and len(exchangers[0]) == 1:
        return first
    whole = ";".join(",".join(group) for group in exchangers)
    return f"{first}~{blake2b(whole.encode(), digest_size=8).hexdigest()}"


def direct_site(domain: str, exchangers: Exchangers, provider_of: ProviderOf) -> Site:
    """Where a direct source brings the mail of the domain."""
    name = site_name(exchangers)
    hosts = [host for group in exchangers for host in group]
    return Site(name, provider_of(domain, hosts) or name, exchangers)


def refused_site(domain: str, why: str, provider_of: ProviderOf) -> Site:
    """Of a domain that can never get mail; ``domain`` may be no domain name at all."""
    if domain_name(domain) != domain:
        return Site("~refused", "~refused", (), why)
    name = f"{domain}~refused"
    return Site(name, provider_of(domain, ()) or name, (), why)


def refusal_class(refusal: str) -> BounceClass:
    """How much a refusal counts against an address. Only the null MX (RFC 7505) is the domain's own
    word; all else a DNS that lies would say of every domain, so it suppresses nobody at once."""
    return BounceClass.HARD if refusal == NULL_MX else BounceClass.SOFT


def relay_site(domain: str, provider_of: ProviderOf) -> Site:
    """Of a relay: by the shaping file's lists of domains, without the DNS."""
    provider = provider_of(domain, ())
    return Site(provider, provider) if provider else Site(OTHERS, OTHERS)


def narrowed(domain: str, site: Site, allowed: Callable[[str], bool]) -> Site:
    """The site of a domain whose policy (RFC 8461, enforced) wants verified hosts only.

    Domains whose policies leave the same hosts share it. With no host left its name is the domain's
    own and it has no exchangers: mail has to wait until policy and MX agree (RFC 8461 §5).
    """
    groups = tuple(tuple(host for host in group if allowed(host)) for group in site.exchangers)
    left = tuple(group for group in groups if group)
    provider = "" if site.provider == site.name else site.provider
    name = (site_name(left) if left else f"{domain}~mismatch") + VERIFIED
    return Site(name, provider or name, left)


def must_verify(site: Site) -> bool:
    return site.name.endswith(VERIFIED)


def usable_addresses(addresses: Sequence[str], private: bool) -> tuple[str, ...]:
    """Addresses that mail may go to. Those of private networks and of this machine are left out
    unless ``private``: a stranger's MX must not reach what only we can reach."""
    return tuple(text for text in addresses if not refusal(text, private))


def _exchanger(record: str) -> tuple[int, str] | None:
    """(preference, host) of ``10 Mx.Example.``; host empty for the null MX."""
    preference, _, host = record.partition(" ")
    if not (preference.isascii() and preference.isdigit()):
        return None
    return int(preference), host.strip().rstrip(".").lower()


def _is_host_name(name: str) -> bool:
    return len(name) <= 253 and _HOST.fullmatch(name) is not None


def _is_usable(host: str) -> bool:
    if not _is_host_name(host):
        return False
    return not host.rpartition(".")[2].isdigit()  # an IP address; RFC 5321 §5.1 wants names
