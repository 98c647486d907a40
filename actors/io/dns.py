"""The DNS, asked over UDP and TCP by dnspython, with a cache: what Manta knows of other domains.

Every question ends: within ``DnsSettings.timeout_s`` there is an ``Answer``, and whatever a server
does (silence, another's id, another question, nonsense, loops, a truncated answer that TCP does not
complete) is ``Found.TROUBLE`` and not an exception. Servers are asked in turn, each at least once.
Answers are kept as long as the DNS allows within limits (``routing.sites.kept_s``), trouble
half a minute; one question is in flight per name and type, and whoever asks the same waits for it.

On crash the cache is lost and fills again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.reversename
from dns.rdatatype import RdataType

from manta.clock import Clock
from manta.delivery.routing.sites import ADDRESSES_MAX, Answer, Found, kept_s
from manta.errors import InvalidRequest
from manta.settings import DnsSettings

CACHE_ENTRIES_MAX = 100_000  # about 1 kB each
QUESTIONS_MAX = 100  # on the wire at once; more wait their turn
RECORDS_MAX = 100  # of one answer
RECORD_CHARACTERS_MAX = 4_096
CHAIN_MAX = 8  # CNAMEs on the way to a record
ROUNDS = 2  # over all servers, for packets that get lost
UDP_BYTES = 1_232  # no fragments (DNS flag day 2020)
_TO_THE_NEXT = (
    dns.rcode.SERVFAIL,
    dns.rcode.REFUSED,
    dns.rcode.FORMERR,
    dns.rcode.NOTIMP,
)

# [IPv6]:port or IPv4:port, both without a port too; what is left is an IPv6 address alone.
_SERVER = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::(\d{1,5}))?")

Server = tuple[str, int]
logger = logging.getLogger("manta.actors")


class DnsClient:
    """Questions by name; names as the DNS writes them, without the dot at the end."""

    def __init__(
        self, settings: DnsSettings, clock: Clock, entries_max: int = CACHE_ENTRIES_MAX
    ) -> None:
        self._servers = servers_of(settings)
        self._timeout_s = settings.timeout_s
        self._clock = clock
        self._entries_max = entries_max
        self._kept: OrderedDict[tuple[str, RdataType], tuple[float, Answer]] = OrderedDict()
        self._flying: dict[tuple[str, RdataType], asyncio.Task[Answer]] = {}
        self._room = asyncio.Semaphore(QUESTIONS_MAX)
        self._asked = 0
        self._hits = 0
        self._troubles = 0

    async def mx(self, domain: str) -> Answer:
        """Records ``preference host``, as they come."""
        return await self._ask(domain, RdataType.MX)

    async def txt(self, name: str) -> Answer:
        """Each record's strings joined (RFC 7208 §3.3)."""
        return await self._ask(name, RdataType.TXT)

    async def ptr(self, address: str) -> Answer:
        """The names of an IP address."""
        try:
            name = dns.reversename.from_address(address).to_text(omit_final_dot=True)
        except (dns.exception.DNSException, ValueError):
            return Answer(Found.TROUBLE, detail=f"{address!r:.60} is no IP address")
        return await self._ask(name, RdataType.PTR)

    async def addresses(self, host: str) -> Answer:
        """IPv4 addresses, then IPv6 ones.

        One family in trouble does not hide what the other has; nothing is said to be nothing
        unless both say so.
        """
        four, six = await asyncio.gather(
            self._ask(host, RdataType.A), self._ask(host, RdataType.AAAA)
        )
        records = four.records[:ADDRESSES_MAX] + six.records[:ADDRESSES_MAX]
        if records:
            ttl_s = min(answer.ttl_s for answer in (four, six) if answer.records)
            return Answer(Found.RECORDS, records, ttl_s)
        for answer in (four, six):
            if answer.found is Found.TROUBLE:
                return answer
        return four._replace(ttl_s=min(four.ttl_s, six.ttl_s))

    def status(self) -> dict[str, int]:
        return {
            "kept": len(self._kept),
            "in_flight": len(self._flying),
            "asked": self._asked,
            "from_cache": self._hits,
            "in_trouble": self._troubles,
        }

    # -- inside ------------------------------------------------------------------------------------

    async def _ask(self, name: str, kind: RdataType) -> Answer:
        key = (name.lower(), kind)
        kept = self._kept.get(key)
        now_s = self._clock.monotonic()
        if kept is not None and kept[0] > now_s:
            self._hits += 1
            self._kept.move_to_end(key)
            return kept[1]._replace(ttl_s=kept[0] - now_s)
        task = self._flying.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fly(key))
            self._flying[key] = task
        # Somebody who gives up does not take the answer from the others.
        return await asyncio.shield(task)

    async def _fly(self, key: tuple[str, RdataType]) -> Answer:
        try:
            async with self._room:
                self._asked += 1
                answer = await self._within_time(*key)
        finally:
            del self._flying[key]
        self._troubles += answer.found is Found.TROUBLE
        answer = answer._replace(ttl_s=kept_s(answer.found, answer.ttl_s))
        self._kept[key] = (self._clock.monotonic() + answer.ttl_s, answer)
        self._kept.move_to_end(key)
        while len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)
        return answer

    async def _within_time(self, name: str, kind: RdataType) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(dns.name.from_text(name), kind)
        except TimeoutError:
            return Answer(Found.TROUBLE, detail="no answer in time")
        except (dns.exception.DNSException, ValueError) as fault:
            return Answer(Found.TROUBLE, detail=_said(fault))
        except Exception as fault:
            # A parser that meets bytes its authors did not think of must not stop those who asked.
            logger.exception("asking the DNS for %r failed", name)
            return Answer(Found.TROUBLE, detail=_said(fault))

    async def _follow(self, name: dns.name.Name, kind: RdataType) -> Answer:
        """The records, by way of CNAMEs that a server did not follow itself."""
        ttl_s = float("inf")
        seen = {name}
        while True:
            answer, target = _read(await self._from_any_server(name, kind), kind)
            ttl_s = min(ttl_s, answer.ttl_s)
            if target is None:
                return answer._replace(ttl_s=ttl_s)
            if target in seen or len(seen) > CHAIN_MAX:
                return Answer(Found.TROUBLE, detail="CNAMEs lead nowhere")
            seen.add(target)
            name = target

    async def _from_any_server(
        self, name: dns.name.Name, kind: RdataType
    ) -> dns.message.QueryMessage:
        """The first answer that is one. Raises what the last server did where none gave one."""
        tries = len(self._servers) * ROUNDS
        fault: Exception = dns.exception.Timeout()
        refused: set[Server] = set()
        for server in self._servers * ROUNDS:
            if server in refused:
                continue
            try:
                response = await self._from(server, name, kind, self._timeout_s / tries)
            except (dns.exception.DNSException, OSError, EOFError) as error:
                fault = error
                continue
            if response.rcode() not in _TO_THE_NEXT:
                return response
            refused.add(server)
            fault = _Refused(dns.rcode.to_text(response.rcode()))
        raise fault if isinstance(fault, dns.exception.DNSException) else _Refused(_said(fault))

    async def _from(
        self, server: Server, name: dns.name.Name, kind: RdataType, timeout_s: float
    ) -> dns.message.QueryMessage:
        """dnspython lets only an answer through that has our id and our question and comes from
        the server's address, and turns to TCP for one that is truncated."""
        question = dns.message.make_query(name, kind, use_edns=0, payload=UDP_BYTES)
        response, _ = await dns.asyncquery.udp_with_fallback(
            question,
            server[0],
            timeout_s,
            server[1],
            ignore_unexpected=True,
            ignore_errors=True,
        )
        if not isinstance(response, dns.message.QueryMessage):
            raise _Refused("not an answer")
        return response


class _Refused(dns.exception.DNSException):
    """A server said that it does not answer, or broke off."""

    def __init__(self, said: str) -> None:
        super().__init__(said)


def servers_of(settings: DnsSettings) -> list[Server]:
    """(address, port) of each server. Raises ``InvalidRequest`` where one is no address, or where
    the settings name none and the system has none."""
    if not settings.servers:
        try:
            return [(str(server), 53) for server in dns.resolver.Resolver().nameservers]
        except dns.exception.DNSException as error:
            raise InvalidRequest(
                f"the system names no DNS server: {error}",
                path="dns.servers",
                expected='servers = ["192.0.2.53"], or "192.0.2.53:5353" with a port',
            ) from None
    return [_server(text) for text in settings.servers]


def _server(text: str) -> Server:
    parts = _SERVER.fullmatch(text)
    host, port = (parts[1] or parts[2], parts[3] or "53") if parts else (text, "53")
    try:
        ipaddress.ip_address(host)
        number = int(port)
        if not 0 < number < 65_536:
            raise ValueError(port)
    except ValueError:
        raise InvalidRequest(
            f"DNS server {text!r:.80} is not an address",
            path="dns.servers",
            expected="192.0.2.53, 192.0.2.53:5353, 2001:db8::53 or [2001:db8::53]:5353",
        ) from None
    return host, number


def _read(response: dns.message.Message, kind: RdataType) -> tuple[Answer, dns.name.Name | None]:
    """What a response says; or, where it ends at a CNAME, the name to go on with.

    Records of other names in it are not looked at (RFC 2181 §5.4.1).
    """
    if not isinstance(response, dns.message.QueryMessage):  # by its opcode, RFC 1035 §4.1.1
        return Answer(Found.TROUBLE, detail="no answer to a query"), None
    rcode = response.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answer(Found.TROUBLE, detail=dns.rcode.to_text(rcode)), None
    chain = response.resolve_chaining()
    ttl_s = float(chain.minimum_ttl)
    if chain.answer is not None:
        return Answer(Found.RECORDS, tuple(_texts(chain.answer, kind)), ttl_s), None
    if rcode == dns.rcode.NXDOMAIN:
        return Answer(Found.NO_NAME, ttl_s=ttl_s), None
    if chain.cnames and not _denies(response):
        return Answer(Found.NOTHING, ttl_s=float(min(c.ttl for c in chain.cnames))), (
            chain.canonical_name
        )
    if not _denies(response):
        if response.answer and not chain.cnames:
            return Answer(Found.TROUBLE, detail="records that nobody asked for"), None
        if _refers(response):  # it neither knows nor asks on for us: a lame delegation
            return Answer(Found.TROUBLE, detail="a referral to other servers"), None
    return Answer(Found.NOTHING, ttl_s=ttl_s), None


def _denies(response: dns.message.Message) -> bool:
    """Whether it says with authority that there is nothing (RFC 2308 §2.2)."""
    return any(rrset.rdtype == RdataType.SOA for rrset in response.authority)


def _refers(response: dns.message.Message) -> bool:
    return not response.flags & dns.flags.AA and any(
        rrset.rdtype == RdataType.NS for rrset in response.authority
    )


def _texts(records: Iterable[Any], kind: RdataType) -> Iterator[str]:
    """Their texts, as many as fit; of too many exchangers the most preferred."""
    count = 0
    if kind == RdataType.MX:
        records = sorted(records, key=lambda mx: (mx.preference, mx.exchange))
    for record in records:
        if kind == RdataType.TXT:
            text = b"".join(record.strings).decode("utf-8", "replace")
        else:
            text = record.to_text()
        if kind in (RdataType.CNAME, RdataType.PTR):
            text = text.rstrip(".")
        if len(text) <= RECORD_CHARACTERS_MAX:
            yield text
            count += 1
        if count == RECORDS_MAX:
            return


def _said(fault: BaseException) -> str:
    return str(fault) or type(fault).__name__
