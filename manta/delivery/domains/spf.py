"""Whether a domain's SPF record lets an address send for it (RFC 7208).

Evaluates the record as a receiver would, with the receiver's limits: ten terms that ask the DNS,
two that find nothing, ten exchangers or names each. Macros are what `exists` is for and nothing
that a sender of newsletters needs: a term that has one counts as a term that does not match, and is
named in the answer.

The DNS is asked through ``Lookup``; what it cannot tell is ``temperror``, never an exception.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from manta.delivery.routing.sites import Answer, Found

LOOKUPS_MAX = 10  # RFC 7208 §4.6.4
VOID_LOOKUPS_MAX = 2
NAMES_MAX = 10

_TERM = re.compile(
    r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?::([^/\s]+|[0-9a-f:.]+(?:/\d+)?))?"
    r"(?:/(\d{1,3}))?(?://(\d{1,3}))?",
    re.ASCII,
)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(\S*)", re.ASCII)
_QUALIFIERS = {"": "pass", "+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}


class SpfResult(StrEnum):
    NONE = "none"  # no record
    PASS = "pass"  # noqa: S105 (a result of RFC 7208)
    FAIL = "fail"
    SOFTFAIL = "softfail"
    NEUTRAL = "neutral"
    TEMPERROR = "temperror"  # the DNS did not answer
    PERMERROR = "permerror"  # the record is wrong


class Spf(NamedTuple):
    """``says``: the term that decided, or what is wrong; ``record``: what was found."""

    result: SpfResult
    says: str = ""
    record: str = ""
    lookups: int = 0


class Lookup(Protocol):
    """``actors.io.dns.DnsClient``."""

    async def txt(self, name: str) -> Answer: ...
    async def addresses(self, host: str) -> Answer: ...
    async def mx(self, domain: str) -> Answer: ...


class _Wrong(Exception):
    """Ends the evaluation with a result."""

    def __init__(self, result: SpfResult, says: str) -> None:
        super().__init__(says)
        self.result, self.says = result, says


@dataclass
class _Count:
    lookups: int = 0
    voids: int = 0
    seen: list[str] = field(default_factory=list)

    def look(self, term: str) -> None:
        self.lookups += 1
        if self.lookups > LOOKUPS_MAX:
            raise _Wrong(
                SpfResult.PERMERROR, f"more than {LOOKUPS_MAX} terms ask the DNS (at {term})"
            )


async def evaluate(domain: str, address: str | None, dns: Lookup) -> Spf:
    """What a receiver makes of mail from ``address`` with a return path at ``domain``.

    Without an address every term is looked at, so that mistakes are found, and the result is that
    of an address that nothing but ``all`` names.
    """
    count = _Count()
    ip = ipaddress.ip_address(address) if address else None
    record = ""
    try:
        record = await _record(domain, dns)
        if not record:
            return Spf(SpfResult.NONE, f"{domain} has no record that begins with v=spf1")
        result, says = await _check(domain, record, ip, dns, count)
    except _Wrong as wrong:
        return Spf(wrong.result, wrong.says, record, count.lookups)
    return Spf(result, says, record, count.lookups)


async def _record(domain: str, dns: Lookup) -> str:
    answer = await dns.txt(domain)
    if answer.found is Found.TROUBLE:
        raise _Wrong(SpfResult.TEMPERROR, f"the DNS does not tell about {domain}: {answer.detail}")
    found = [r for r in answer.records if r == "v=spf1" or r.startswith("v=spf1 ")]
    if len(found) > 1:
        raise _Wrong(SpfResult.PERMERROR, f"{domain} has {len(found)} SPF records, one is allowed")
    return found[0] if found else ""


async def _check(
    domain: str,
    record: str,
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    dns: Lookup,
    count: _Count,
) -> tuple[SpfResult, str]:
    redirect = ""
    for term in record.split()[1:]:
        found = _TERM.fullmatch(term.lower())
        if found is None:
            modifier = _MODIFIER.fullmatch(term.lower())
            if modifier is None:
                raise _Wrong(SpfResult.PERMERROR, f"{domain}: the term {term[:80]} means nothing")
            if modifier[1] == "redirect":
                redirect = modifier[2]
            continue
        qualifier, name = _QUALIFIERS[found[1]], found[2]
        if "%" in (found[3] or ""):
            if name in ("include", "a", "mx", "exists"):
                count.look(term)
            continue
        if await _matches(domain, name, found, ip, dns, count, term):
            return SpfResult(qualifier), term
    if redirect and "%" not in redirect:
        count.look(f"redirect={redirect}")
        target = await _record(redirect, dns)
        if not target:
            raise _Wrong(SpfResult.PERMERROR, f"redirect={redirect}, which has no record")
        return await _check(redirect, target, ip, dns, count)
    return SpfResult.NEUTRAL, "no term matches"


async def _matches(
    domain: str,
    name: str,
    found: re.Match[str],
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    dns: Lookup,
    count: _Count,
    term: str,
) -> bool:
    target = found[3] or domain
    if name == "all":
        return True
    if name in ("ip4", "ip6"):
        return _within(ip, [found[3] or ""], found[4] or "", found[4] or "", term)
    count.look(term)
    if name == "include":
        record = await _record(target, dns)
        if not record:
            raise _Wrong(SpfResult.PERMERROR, f"{term}: {target} has no SPF record")
        result, _ = await _check(target, record, ip, dns, count)
        return result is SpfResult.PASS and ip is not None
    if name == "ptr":  # RFC 7208 §5.5: not to be used; receivers may ignore it
        return False
    hosts = [target]
    if name == "mx":
        answer = _told(await dns.mx(target), term)
        hosts = [text.split()[-1].rstrip(".") for text in answer.records[:NAMES_MAX]]
        _void(answer, count, term)
    addresses: list[str] = []
    for host in hosts:
        answer = _told(await dns.addresses(host), term)
        addresses += answer.records
        if name != "mx":
            _void(answer, count, term)
    if name == "exists":
        return bool(addresses) and ip is not None
    return _within(ip, addresses, found[4] or "", found[5] or "", term)


def _told(answer: Answer, term: str) -> Answer:
    if answer.found is Found.TROUBLE:
        raise _Wrong(SpfResult.TEMPERROR, f"the DNS does not tell about {term}: {answer.detail}")
    return answer


def _void(answer: Answer, count: _Count, term: str) -> None:
    if answer.records:
        return
    count.voids += 1
    if count.voids > VOID_LOOKUPS_MAX:
        raise _Wrong(
            SpfResult.PERMERROR, f"more than {VOID_LOOKUPS_MAX} terms find nothing (at {term})"
        )


def _within(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    addresses: list[str],
    bits4: str,
    bits6: str,
    term: str,
) -> bool:
    hit = False
    for text in addresses:
        try:
            base = ipaddress.ip_address(text)
            bits = bits4 if base.version == 4 else bits6
            network = ipaddress.ip_network(f"{base}/{bits}" if bits else str(base), strict=False)
        except ValueError:
            raise _Wrong(SpfResult.PERMERROR, f"{term}: {text[:60]} is no network") from None
        hit |= ip is not None and ip.version == network.version and ip in network
    return hit
