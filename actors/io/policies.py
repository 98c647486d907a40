"""MTA-STS policies of recipients' domains (RFC 8461): looked up, fetched by HTTPS, and kept.

A policy holds for its ``max_age``, even when its domain's record goes away or its file cannot be
had any more (§5); where none is known, mail goes as if there were none. What a stranger's server
sends is bounded in time and size, redirects are not followed (§3.3), and its address has to be a
public one.

On crash the policies are lost and fetched again: until then an attacker who can keep us from a
policy host could do so, as with a domain that is seen for the first time (§10.2).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from actors.io.web import Web, WebLimits, asked_addresses
from manta.clock import Clock
from manta.delivery.routing.mta_sts import (
    POLICY_BYTES_MAX,
    POLICY_PATH,
    REFRESH_S,
    RETRY_S,
    Policy,
    parse_policy,
    parse_records,
    policy_host,
    record_name,
)
from manta.delivery.routing.sites import Answer, Found

FETCH_TIMEOUT_S = 10.0
FETCHES_MAX = 20  # at once
POLICIES_MAX = 50_000

Fetch = Callable[[str], Awaitable[bytes | None]]


class Dns(Protocol):
    """What is needed of ``actors.io.dns.DnsClient``."""

    async def txt(self, name: str) -> Answer: ...

    async def addresses(self, host: str) -> Answer: ...


class _Held(NamedTuple):
    policy_id: str
    policy: Policy
    fetched_s: float
    until_s: float


class Policies:
    """``fetch``: the content of a domain's policy file, or None where it cannot be had."""

    def __init__(self, dns: Dns, fetch: Fetch, clock: Clock) -> None:
        self._dns = dns
        self._fetch = fetch
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._tried: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._flying: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(FETCHES_MAX)

    async def of(self, domain: str) -> tuple[Policy | None, float]:
        """The policy that the domain has now, and for how many seconds that is the answer."""
        answer = await self._dns.txt(record_name(domain))
        policy_id = parse_records(answer.records) if answer.found is Found.RECORDS else None
        if policy_id is not None and self._wants(domain, policy_id):
            task = self._flying.get(domain)
            if task is None:
                task = asyncio.ensure_future(self._renew(domain, policy_id))
                self._flying[domain] = task
            await asyncio.shield(task)
        held = self._held_now(domain)
        if held is None:
            return None, answer.ttl_s
        return held.policy, min(answer.ttl_s, held.until_s - self._clock.monotonic())

    def status(self) -> dict[str, int]:
        enforced = sum(held.policy.is_enforced for held in self._held.values())
        return {"policies": len(self._held), "enforced": enforced, "in_flight": len(self._flying)}

    def _held_now(self, domain: str) -> _Held | None:
        held = self._held.get(domain)
        return held if held is not None and held.until_s > self._clock.monotonic() else None

    def _wants(self, domain: str, policy_id: str) -> bool:
        now_s = self._clock.monotonic()
        held = self._held_now(domain)
        if held and held.policy_id == policy_id and now_s - held.fetched_s < REFRESH_S:
            return False
        tried_id, tried_s = self._tried.get(domain, ("", 0.0))
        return tried_id != policy_id or now_s - tried_s >= RETRY_S

    async def _renew(self, domain: str, policy_id: str) -> None:
        try:
            async with self._room:
                content = await self._fetch(domain)
        finally:
            del self._flying[domain]
        now_s = self._clock.monotonic()
        _put(self._tried, domain, (policy_id, now_s))
        policy = None if content is None else parse_policy(content)
        if policy is not None:
            until_s = now_s + max(float(policy.max_age_s), RETRY_S)
            _put(self._held, domain, _Held(policy_id, policy, now_s, until_s))


class HttpsFetch:
    """Fetches policy files (§3.3): from public addresses that our own DNS gives, unless
    ``private``; with a certificate that is valid for the policy host (``actors.io.web``)."""

    def __init__(
        self,
        dns: Dns,
        *,
        private: bool = False,
        context: ssl.SSLContext | None = None,
        port: int = 443,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        limits = WebLimits(timeout_s, timeout_s, POLICY_BYTES_MAX)
        self._web = Web(
            asked_addresses(dns.addresses), private=private, context=context, limits=limits
        )
        self._port = "" if port == 443 else f":{port}"

    async def __call__(self, domain: str) -> bytes | None:
        host = policy_host(domain)
        url = f"https://{host}{self._port}{POLICY_PATH}"
        reply = await self._web.request("GET", url, {"Host": host, "Connection": "close"})
        return reply.body if reply.status == 200 and not reply.cut else None


def _put(kept: OrderedDict[str, Any], name: str, value: Any) -> None:
    kept[name] = value
    kept.move_to_end(name)
    while len(kept) > POLICIES_MAX:
        kept.popitem(last=False)
