"""An HTTP/1.1 client for URLs that strangers name: guarded where it connects.

Whoever makes us call a URL must reach nothing by it that they could not reach themselves, and keep
nothing of us busy:

- A host's name is resolved once, every address is checked (``manta.networks``), and the connection
  goes to one of those very addresses: a DNS that answers otherwise a moment later (rebinding) gains
  nothing. One refused address refuses the host.
- TLS proves the name that stands in the URL. Plain ``http`` needs ``private``.
- Redirects are answers, not ways. Proxies of the environment are not asked.
- Everything ends: connecting, the whole request, the body (cut), the headers (100 kB, by h11).

Connections stay open for a few seconds for the next request to the same host; they were checked
when they were made. Nothing runs while nothing is asked. Faults are values: a ``Reply`` without a
status.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpcore

from manta.delivery.routing.sites import Answer
from manta.networks import refusal

ADDRESSES_TRIED_MAX = 4
KEPT_OPEN_S = 15.0

Addresses = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class WebLimits:
    connect_s: float = 5.0  # the DNS included
    total_s: float = 20.0
    body_bytes_max: int = 64 << 10
    connections_max: int = 128


@dataclass(frozen=True)
class Reply:
    """``status`` ``None``: no answer, and ``failure`` says why. ``cut``: the body went on.
    Names of headers are in lower case."""

    status: int | None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    failure: str = ""


class Refused(httpcore.ConnectError):
    """The host may not be connected to."""


async def system_addresses(host: str) -> list[str]:
    """As the machine resolves names, ``/etc/hosts`` included. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def asked_addresses(ask: Callable[[str], Awaitable[Answer]]) -> Addresses:
    """By our own questions to the DNS (``actors.io.dns.DnsClient.addresses``)."""

    async def addresses(host: str) -> list[str]:
        return list((await ask(host)).records)

    return addresses


async def checked_addresses(host: str, resolve: Addresses, private: bool) -> list[str]:
    """The addresses of a host, all of which may be connected to. Raises ``Refused``."""
    try:
        found: Sequence[str] = [str(ipaddress.ip_address(host.strip("[]")))]
    except ValueError:
        try:
            found = await resolve(host)
        except (OSError, UnicodeError) as error:
            raise Refused(f"{host} has no address: {error}") from None
    if not found:
        raise Refused(f"{host} has no address")
    for address in found:
        why = refusal(address, private)
        if why:
            raise Refused(f"{host} may not be reached: {why}")
    return list(found)


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing by name."""

    def __init__(self, resolve: Addresses, private: bool) -> None:
        self._resolve, self._private = resolve, private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await checked_addresses(host, self._resolve, self._private)
                for address in addresses[:ADDRESSES_TRIED_MAX]:
                    try:
                        return await self._inner.connect_tcp(address, port)
                    except httpcore.ConnectError as error:
                        last = error
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} did not take the connection") from None
        raise last

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise Refused("no sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class Web:
    """``private``: addresses of private networks and of this machine may be reached, and ``http``
    be used."""

    def __init__(
        self,
        resolve: Addresses,
        *,
        private: bool = False,
        context: ssl.SSLContext | None = None,
        limits: WebLimits | None = None,
    ) -> None:
        self._limits = limits or WebLimits()
        self._resolve, self._private = resolve, private
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context or ssl.create_default_context(),
            max_connections=self._limits.connections_max,
            max_keepalive_connections=self._limits.connections_max,
            keepalive_expiry=KEPT_OPEN_S,
            network_backend=_Guarded(resolve, private),
        )

    async def check(self, url: str) -> str:
        """Why this URL would be refused now; empty where it would not."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (self._private and parts.scheme == "http"):
            return "only https is used, as private addresses are not allowed"
        try:
            async with asyncio.timeout(self._limits.connect_s):
                await checked_addresses(parts.hostname or "", self._resolve, self._private)
        except Refused as error:
            return str(error)
        except TimeoutError:
            return "the DNS does not answer"
        return ""

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> Reply:
        """One request; whatever becomes of it is a ``Reply``."""
        if not url.startswith("https:") and not (self._private and url.startswith("http:")):
            return Reply(None, failure="only https is used, as private addresses are not allowed")
        try:
            async with asyncio.timeout(self._limits.total_s):
                return await self._request(method, url, headers, content)
        except TimeoutError:
            return Reply(None, failure=f"no whole answer within {self._limits.total_s:g} s")
        except (httpcore.TimeoutException, httpcore.NetworkError) as error:
            return Reply(None, failure=str(error) or type(error).__name__)
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol, ValueError) as error:
            return Reply(None, failure=f"no HTTP: {error!s:.200}")

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Reply:
        limits = self._limits
        timeout = {
            "connect": limits.connect_s,
            "read": limits.total_s,
            "write": limits.total_s,
            "pool": limits.total_s,
        }
        async with self._pool.stream(
            method,
            url,
            headers=[*headers.items(), ("accept-encoding", "identity")],
            content=content,
            extensions={"timeout": timeout},
        ) as response:
            told = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            }
            body = b""
            async for part in response.aiter_stream():
                body += part
                if len(body) > limits.body_bytes_max:
                    body = body[: limits.body_bytes_max]
                    return Reply(response.status, body, told, cut=True)
            return Reply(response.status, body, told)

    async def close(self) -> None:
        await self._pool.aclose()
