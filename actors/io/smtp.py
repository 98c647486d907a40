"""Opening SMTP connections: to a relay that takes all our mail, or to the exchangers of a site.

What a server or the network does is never an exception here: there is a connection, or a ``Reply``
that says why there is none (``not_sent``).

A ``DirectConnector`` remembers, bounded and for a time, at which hosts TLS is broken and which
addresses did not answer; a crash forgets it, and costs a few slow connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby
from random import Random

from actors.io.connection import SmtpConnection, SmtpLimits
from actors.io.opening import (
    FAULTS,
    BrokenTls,
    Way,
    any_certificate,
    connected_socket,
    is_unreachable,
    no_connection,
    open_connection,
    refusal_of,
    verifying,
)
from manta.delivery.lanes import Lane, Site
from manta.delivery.replies import Reply, printable
from manta.delivery.routing.sites import Route
from manta.errors import InvalidRequest, RetryableError
from manta.settings import EgressSource

__all__ = ["DirectConnector", "SmtpConnection", "SmtpConnector", "SmtpLimits"]

TLS_MODES = ("none", "opportunistic", "required", "implicit")
SITE_TLS_MODES = ("none", "opportunistic", "required", "verified")
ADDRESSES_TRIED_MAX = 6  # in one attempt to connect to a site
CLEAR_FOR_S = 3_600.0  # how long a host's broken TLS is remembered
AVOIDED_FOR_S = 300.0  # how long an address that did not answer comes last
REMEMBERED_MAX = 10_000

Routes = Callable[[Site], Awaitable[Sequence[Route]]]


class SmtpConnector:
    """Opens connections to one relay, as its egress source says.

    ``tls`` of the source: ``none``; ``opportunistic`` (encrypt if it can be had, whoever it is:
    RFC 7435); ``required`` (STARTTLS with a certificate that is valid for the host); ``implicit``
    (the same from the first byte, RFC 8314). AUTH is refused in clear text unless ``tls`` is
    ``none``, which says so on purpose.
    """

    def __init__(
        self,
        source: EgressSource,
        password: str = "",
        limits: SmtpLimits | None = None,
        ca_file: str | None = None,
    ) -> None:
        if source.tls not in TLS_MODES:
            raise InvalidRequest(
                f"egress source {source.name}: no TLS mode {source.tls!r:.40}",
                path="egress.tls",
                expected=", ".join(TLS_MODES),
            )
        self.source = source
        self._limits = limits or SmtpLimits()
        self._family = _family_of(source)
        if source.tls == "none":
            context = None
        elif source.tls == "opportunistic":
            context = any_certificate()
        else:
            context = verifying(ca_file or source.ca_file)
        self._way = Way(
            source.host,
            source.ehlo_name,
            source.tls,
            context,
            source.messages_per_connection,
            self._limits,
            source.username,
            password,
        )

    async def connect(self, messages_max: int | None = None) -> SmtpConnection | Reply:
        """A connection ready for transactions, or why there is none (``not_sent``).

        ``messages_max``: how many it may carry, if that is fewer than the source allows.
        """
        connection = await self._connect()
        if isinstance(connection, SmtpConnection) and messages_max is not None:
            connection.narrow(messages_max)
        return connection

    async def _connect(self) -> SmtpConnection | Reply:
        try:
            async with asyncio.timeout(self._limits.open_s):
                try:
                    return await open_connection(await self._socket(), self._way)
                except BrokenTls:
                    return await open_connection(await self._socket(), self._way, encrypt=False)
        except FAULTS as fault:
            return refusal_of(fault, self.source.port, self._limits.open_s)

    async def _socket(self) -> socket.socket:
        """A socket connected to the first address of the host that answers."""
        source = self.source
        fault: OSError | None = None
        for family, _, _, _, address in await asyncio.get_running_loop().getaddrinfo(
            source.host, source.port, family=self._family, type=socket.SOCK_STREAM
        ):
            try:
                return await connected_socket(
                    family, address, source.source_address, self._limits.connect_s
                )
            except OSError as error:
                fault = error
        raise fault or OSError(f"{source.host} has no address")


class DirectConnector:
    """Opens connections to the exchangers of sites, from one source's address.

    ``routes`` tells a site's exchangers in their order; equally preferred ones, and the addresses
    of one, are tried in an order that ``random`` decides (RFC 5321 §5.1). An exchanger that does
    not answer, does not let us in or cannot be encrypted to as it must be is passed over for the
    next. One attempt ends within ``limits.open_s`` and ``ADDRESSES_TRIED_MAX`` addresses.
    """

    def __init__(
        self, source: EgressSource, limits: SmtpLimits, routes: Routes, random: Random
    ) -> None:
        self.source = source
        self._limits = limits
        self._routes = routes
        self._random = random
        self._family = _family_of(source)
        self._any_certificate = any_certificate()
        self._verifying = verifying(source.ca_file)
        self._clear = _Remembered(CLEAR_FOR_S)
        self._avoided = _Remembered(AVOIDED_FOR_S)

    async def connect(
        self,
        lane: Lane,
        site: Site,
        tls: str = "opportunistic",
        messages_max: int | None = None,
    ) -> SmtpConnection | Reply:
        """A connection to the site that is ready for transactions, or why there is none.

        ``tls`` of the site: ``none``; ``opportunistic``; ``required`` (whatever the certificate);
        ``verified`` (a certificate that is valid for the exchanger's name), which an exchanger
        under an MTA-STS policy needs in any case. The reply is the last one that a server gave, or
        says what stood in the way of the exchanger that was tried first.
        """
        if tls not in SITE_TLS_MODES:
            raise InvalidRequest(f"no TLS mode {tls!r:.40}", expected=", ".join(SITE_TLS_MODES))
        if site.refusal:
            return no_connection(0, site.refusal)
        try:
            routes = await self._routes(site)
        except RetryableError as fault:
            return no_connection(0, str(fault))
        refusal = no_connection(0, f"no exchanger of {site.name} can be reached from {lane.source}")
        first = True
        until_s = asyncio.get_running_loop().time() + self._limits.open_s
        for route, address in self._order(routes):
            opened = await self._try(route, address, tls, messages_max, until_s)
            if isinstance(opened, SmtpConnection):
                self._avoided.forget(address)
                return opened
            if opened.code or first:
                refusal, first = opened, False
            if asyncio.get_running_loop().time() >= until_s:
                break
        return refusal

    def _order(self, routes: Sequence[Route]) -> Iterator[tuple[Route, str]]:
        """The addresses to try: by preference; those that did not answer lately come last."""
        order: list[tuple[Route, str]] = []
        for _, equal in groupby(routes, key=lambda route: route.preference):
            group = list(equal)
            self._random.shuffle(group)
            for route in group:
                order.extend((route, address) for address in self._addresses(route))
        now_s = asyncio.get_running_loop().time()
        order.sort(key=lambda each: self._avoided.has(each[1], now_s))  # a stable sort
        return iter(order[:ADDRESSES_TRIED_MAX])

    def _addresses(self, route: Route) -> list[str]:
        """Those that the source can reach: of its family; IPv4 first where it says none."""
        by_family: dict[int, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
        for address in route.addresses:
            by_family[socket.AF_INET6 if ":" in address else socket.AF_INET].append(address)
        for addresses in by_family.values():
            self._random.shuffle(addresses)
        if self._family:
            return by_family[self._family]
        return by_family[socket.AF_INET] + by_family[socket.AF_INET6]

    async def _try(
        self, route: Route, address: str, tls: str, messages_max: int | None, until_s: float
    ) -> SmtpConnection | Reply:
        """One address, within half the time of all so that one which drips leaves some."""
        loop = asyncio.get_running_loop()
        within_s = min(self._limits.open_s / 2, until_s - loop.time())
        way = self._way(route, tls, messages_max)
        try:
            async with asyncio.timeout(within_s):
                try:
                    encrypt = not self._clear.has(route.host, loop.time())
                    return await open_connection(await self._socket(address), way, encrypt)
                except BrokenTls:
                    self._clear.add(route.host, loop.time())
                    return await open_connection(await self._socket(address), way, encrypt=False)
        except FAULTS as fault:
            refusal = refusal_of(fault, self.source.port, within_s)
            if refusal.code:
                return refusal
            if is_unreachable(fault):
                self._avoided.add(address, loop.time())
            return refusal._replace(text=printable(f"{route.host} [{address}]: {refusal.text}"))

    async def _socket(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        where = (address, self.source.port)
        return await connected_socket(
            family, where, self.source.source_address, self._limits.connect_s
        )

    def _way(self, route: Route, tls: str, messages_max: int | None) -> Way:
        if route.must_verify:
            tls = "verified"
        context = self._verifying if tls == "verified" else self._any_certificate
        carried = self.source.messages_per_connection
        return Way(
            route.host,
            self.source.ehlo_name,
            "required" if tls == "verified" else tls,
            context,
            carried if messages_max is None else min(carried, messages_max),
            self._limits,
        )


class _Remembered:
    """Names that are remembered for a time; the oldest give way when there are too many."""

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self._until: dict[str, float] = {}

    def has(self, name: str, now_s: float) -> bool:
        return self._until.get(name, 0.0) > now_s

    def add(self, name: str, now_s: float) -> None:
        self._until.pop(name, None)
        if len(self._until) >= REMEMBERED_MAX:
            del self._until[next(iter(self._until))]
        self._until[name] = now_s + self._for_s

    def forget(self, name: str) -> None:
        self._until.pop(name, None)


def _family_of(source: EgressSource) -> int:
    """The family of the source's address; 0 where it has none."""
    if not source.source_address:
        return 0
    try:
        version = ipaddress.ip_address(source.source_address).version
    except ValueError:
        raise InvalidRequest(
            f"egress source {source.name}: {source.source_address!r:.60} is no IP address",
            path="egress.source_address",
            expected="an address of this machine, such as 192.0.2.1 or 2001:db8::1",
        ) from None
    return socket.AF_INET if version == 4 else socket.AF_INET6
