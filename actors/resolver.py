"""The Resolver: which site a domain's mail goes to, and which addresses a site has.

It owns nothing but what it has heard from the DNS, so one for all keeps the questions few and the
answers the same. A domain whose MTA-STS policy is enforced has a site of its own name: the hosts
that the policy allows, each to be verified; that name alone says so, and ``routes`` needs no other
memory. A DNS that hangs or loops makes a domain wait (``None``), never the caller. One that lies
could have us fail, and suppress, all addresses of a domain at once: that a known provider takes no
mail is never believed, and of a domain that took mail only after an hour.

On crash everything is asked anew; the operator's shaping text comes with the next push of the law.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from manta.clock import Clock
from manta.delivery.domains.authentication import check, records
from manta.delivery.domains.keys import identity_of
from manta.delivery.lanes import Site
from manta.delivery.reputation.law import Law
from manta.delivery.routing.mta_sts import Policy
from manta.delivery.routing.sites import (
    Answer,
    Exchangers,
    Found,
    Refused,
    Route,
    direct_site,
    domain_name,
    exchangers_of,
    must_verify,
    narrowed,
    refused_site,
    relay_site,
    usable_addresses,
)
from manta.errors import InvalidRequest, RetryableError

SITES_WITHIN_S = 20.0  # of one call, less than its caller waits
ROUTES_WITHIN_S = 20.0
DOMAINS_AT_ONCE = 200
DOMAINS_KEPT_MAX = 200_000
NO_DOMAIN_KEPT_S = 3_600.0
DOUBTED_S = 3_600.0  # how long a domain that took mail before has to refuse it until we believe it
logger = logging.getLogger("manta.actors")


class Dns(Protocol):
    """``actors.io.dns.DnsClient``."""

    async def mx(self, domain: str) -> Answer: ...

    async def addresses(self, host: str) -> Answer: ...

    async def txt(self, name: str) -> Answer: ...

    async def ptr(self, address: str) -> Answer: ...

    def status(self) -> dict[str, int]: ...


class PoliciesPort(Protocol):
    """``actors.io.policies.Policies``."""

    async def of(self, domain: str) -> tuple[Policy | None, float]: ...

    def status(self) -> dict[str, int]: ...


class Providers(Protocol):
    """What is needed of ``manta.delivery.shaping.shaping.Shaping``."""

    @property
    def version(self) -> str: ...

    def provider_of(self, domain: str, exchangers: Iterable[str] = ()) -> str | None: ...


class Returns(NamedTuple):
    """What all our mail has in common: where its bounces go, whether to an inbox of ours, and the
    addresses that direct sources connect from."""

    return_path_domain: str = ""
    addresses: tuple[str, ...] = ()
    inbox: bool = False


NO_RETURNS = Returns()


class _Kept(NamedTuple):
    """``doubted_s``: since when the DNS says that the domain takes no mail any more."""

    until_s: float
    site: Site
    doubted_s: float | None = None


class Resolver:
    """``parse``: the shaping of an operator's text over the shipped one. ``private``: mail may go
    to private addresses."""

    role = "resolver"

    def __init__(
        self,
        dns: Dns,
        policies: PoliciesPort,
        shaping: Providers,
        parse: Callable[[str], Providers],
        clock: Clock,
        *,
        private: bool = False,
        sites_within_s: float = SITES_WITHIN_S,
        returns: Returns = NO_RETURNS,
    ) -> None:
        self._dns = dns
        self._policies = policies
        self._shaping = shaping
        self._parse = parse
        self._clock = clock
        self._private = private
        self._sites_within_s = sites_within_s
        self._returns = returns
        self._law_version = -1
        self._shaping_text: str | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._faults = 0  # of our own, over single domains

    async def sites(self, domains: Sequence[str], direct: bool) -> dict[str, Site | None]:
        """The site of each domain; ``None`` where it cannot be told now: ask again later.

        A call ends within its time whatever the number of domains: what it has not come to is
        ``None``, and what it has is known the next time.
        """
        if not direct:
            return {domain: self._relay_site(domain) for domain in domains}
        found: dict[str, Site | None] = dict.fromkeys(domains)
        waiting = iter(list(found))

        async def work() -> None:
            for domain in waiting:
                try:
                    found[domain] = await self._site(domain)
                except Exception:  # whatever a stranger's server made of it, the others go on
                    logger.exception("looking up %r failed", domain)
                    self._faults += 1

        tasks = [asyncio.ensure_future(work()) for _ in range(min(DOMAINS_AT_ONCE, len(found)))]
        if tasks:
            try:
                await asyncio.wait(tasks, timeout=self._sites_within_s)
            finally:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    async def routes(self, site: Site) -> list[Route]:
        """The exchangers of a site that have addresses, in the order to try them.

        Raises ``RetryableError`` where there is none now, with the cause.
        """
        site = Site(*site)
        hosts = [
            (preference, host) for preference, group in enumerate(site.exchangers) for host in group
        ]
        if not hosts:
            raise RetryableError(
                f"no exchanger of {site.name} may be used: "
                + (site.refusal or "its MTA-STS policy names none of its MX hosts")
            )
        try:
            async with asyncio.timeout(ROUTES_WITHIN_S):
                answers = await asyncio.gather(*(self._dns.addresses(host) for _, host in hosts))
        except TimeoutError:
            raise RetryableError(f"the DNS did not tell the addresses of {site.name}") from None
        verify = must_verify(site)
        routes = [
            Route(host, addresses, verify, preference)
            for (preference, host), answer in zip(hosts, answers, strict=True)
            if (addresses := usable_addresses(answer.records, self._private))
        ]
        if not routes:
            why = next((answer.detail for answer in answers if answer.detail), "none known")
            raise RetryableError(f"no exchanger of {site.name} has an address: {why}")
        return routes

    async def check_domain(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """What the DNS has of a sending domain, and what to publish for it."""
        identity = identity_of(
            document,
            self._returns.return_path_domain or document["id"],
            self._returns.addresses,
            self._returns.inbox,
        )
        findings = await check(identity, self._dns)
        return {
            "findings": [tuple(finding) for finding in findings],
            "records": [record._asdict() for record in records(identity)],
        }

    async def law(self, document: Mapping[str, Any]) -> None:
        """Take the operator's shaping text over; providers are told by it from now on."""
        law = Law.from_document(document)
        if law.version <= self._law_version:
            return
        self._law_version = law.version
        if law.shaping_text == self._shaping_text:
            return
        try:
            self._shaping = self._parse(law.shaping_text)
        except InvalidRequest as error:
            logger.error("the law's shaping text is not understood and not used: %s", error)
            return
        self._shaping_text = law.shaping_text
        for text, kept in self._kept.items():
            self._kept[text] = kept._replace(until_s=float("-inf"))

    async def status(self) -> dict[str, Any]:
        return {
            "ready": True,
            "domains": len(self._kept),
            "shaping": self._shaping.version,
            "law_version": self._law_version,
            "faults": self._faults,
            "dns": self._dns.status(),
            "mta_sts": self._policies.status(),
        }

    # -- inside ------------------------------------------------------------------------------------

    def _relay_site(self, text: str) -> Site:
        return relay_site(domain_name(text) or "", self._shaping.provider_of)

    async def _site(self, text: str) -> Site | None:
        kept = self._kept.get(text)
        if kept is not None and kept.until_s > self._clock.monotonic():
            self._kept.move_to_end(text)
            return kept.site
        shaping = self._shaping
        site, for_s = await self._look_up(text, shaping)
        if site is None or shaping is not self._shaping:
            return site
        if site.refusal and self._is_doubtful(text, shaping):
            return None
        self._keep(text, _Kept(self._clock.monotonic() + for_s, site))
        return site

    def _keep(self, text: str, kept: _Kept) -> None:
        self._kept[text] = kept
        self._kept.move_to_end(text)
        while len(self._kept) > DOMAINS_KEPT_MAX:
            self._kept.popitem(last=False)

    def _is_doubtful(self, text: str, shaping: Providers) -> bool:
        """Whether a refusal is more likely a fault of the DNS than the truth."""
        domain = domain_name(text)
        if domain is not None and shaping.provider_of(domain) is not None:
            return True
        kept = self._kept.get(text)
        if kept is None or kept.site.refusal:
            return False
        now_s = self._clock.monotonic()
        doubted_s = now_s if kept.doubted_s is None else kept.doubted_s
        self._kept[text] = kept._replace(doubted_s=doubted_s)
        return now_s - doubted_s < DOUBTED_S

    async def _look_up(self, text: str, shaping: Providers) -> tuple[Site | None, float]:
        """The domain's site, and for how many seconds it is."""
        provider_of = shaping.provider_of
        domain = domain_name(text)
        if domain is None:
            return refused_site(text, "not a domain name", provider_of), NO_DOMAIN_KEPT_S
        mx, (policy, policy_s) = await asyncio.gather(
            self._dns.mx(domain), self._policies.of(domain)
        )
        if mx.found is Found.TROUBLE:
            return None, 0.0
        exchangers = exchangers_of(mx)
        if isinstance(exchangers, Refused):
            return refused_site(domain, exchangers.why, provider_of), mx.ttl_s
        is_implicit = exchangers is None
        exchangers = exchangers or ((domain,),)
        refusal, for_s = await self._unreachable(exchangers)
        for_s = min(for_s, mx.ttl_s)
        if refusal is None:
            return None, 0.0
        if refusal:
            if is_implicit:
                refusal = f"domain has no MX, and {refusal}"
            return refused_site(domain, refusal, provider_of), for_s
        site = direct_site(domain, exchangers, provider_of)
        if policy is not None and policy.is_enforced:
            site = narrowed(domain, site, policy.allows)
        return site, min(mx.ttl_s, policy_s)

    async def _unreachable(self, exchangers: Exchangers) -> tuple[str | None, float]:
        """Why none of the exchangers can ever be reached; empty: one can; None: not known now.
        With it, for how many seconds a refusal holds."""
        troubled = has_address = False
        for_s = float("inf")
        for group in exchangers:
            answers = await asyncio.gather(*map(self._dns.addresses, group))
            if any(usable_addresses(answer.records, self._private) for answer in answers):
                return "", for_s
            troubled |= any(answer.found is Found.TROUBLE for answer in answers)
            has_address |= any(answer.records for answer in answers)
            for_s = min([for_s, *(answer.ttl_s for answer in answers)])
        if troubled:
            return None, 0.0
        if has_address:
            return "its exchangers have private addresses only", for_s
        return "no host that would take its mail has an address", for_s
