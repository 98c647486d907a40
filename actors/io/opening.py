"""From an address to an SMTP connection of our own: socket, greeting, EHLO, STARTTLS, AUTH.

aiosmtplib does what happens once a connection; then its transport changes hands and
``actors.io.connection`` drives it. Every step has its limit; where one fails the socket is closed
and the fault is raised: ``refusal_of`` turns it into a ``Reply``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import cast

import aiosmtplib

from actors.io.connection import SmtpConnection, SmtpLimits
from manta.delivery.replies import Reply, Verdict, printable, reason_of
from manta.delivery.transaction import Offers

FAULTS = (aiosmtplib.SMTPException, OSError, ValueError)  # what opening raises


@dataclass(frozen=True)
class Way:
    """How a connection is to be opened once its socket is connected.

    ``tls``: ``none``; ``opportunistic`` (encrypt if it can be had, RFC 7435); ``required``
    (STARTTLS or nothing); ``implicit`` (TLS from the first byte, RFC 8314). Whether a certificate
    has to be valid for ``host`` is the context's matter.
    """

    host: str
    ehlo_name: str
    tls: str
    context: ssl.SSLContext | None
    messages_max: int
    limits: SmtpLimits
    username: str = ""
    password: str = ""


class _NotFromHere(OSError):
    """Our own address cannot be used, whoever is at the other end."""


class BrokenTls(Exception):
    """Encryption was offered and did not come about: a connection in clear text may be had."""


def verifying(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file or None)


def any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def connected_socket(
    family: int, address: tuple[object, ...], source_address: str, timeout_s: float
) -> socket.socket:
    """A socket from our address to theirs, or an ``OSError``."""
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        if source_address:
            try:
                connection.bind((source_address, 0))
            except OSError as fault:
                raise _NotFromHere(f"cannot connect from {source_address}: {fault}") from None
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(connection, address)
        return connection
    except TimeoutError:
        connection.close()
        raise TimeoutError(
            f"{address[0]} port {address[1]} did not answer in {timeout_s:g} s"
        ) from None
    except BaseException:
        connection.close()
        raise


async def open_connection(
    connected: socket.socket, way: Way, encrypt: bool = True
) -> SmtpConnection:
    """Through the greeting to a connection of our own. Closes the socket where that fails."""
    client = aiosmtplib.SMTP(
        hostname=way.host,
        local_hostname=way.ehlo_name,
        use_tls=way.tls == "implicit",
        start_tls=False,
        tls_context=way.context,
        sock=connected,
    )
    try:
        await client.connect(timeout=way.limits.banner_s)
        await _greet(client, way.limits.ehlo_s)
        if way.tls == "required" or (way.tls == "opportunistic" and encrypt):
            await _start_tls(client, way)
        if way.username:
            await _authenticate(client, way)
        return _take_over(client, way)
    except BaseException:
        client.close()
        connected.close()
        raise


async def _greet(client: aiosmtplib.SMTP, timeout_s: float) -> None:
    try:
        await client.ehlo(timeout=timeout_s)
    except aiosmtplib.SMTPHeloError as refusal:
        if refusal.code == 421:
            raise
        await client.helo(timeout=timeout_s)


async def _start_tls(client: aiosmtplib.SMTP, way: Way) -> None:
    is_optional = way.tls == "opportunistic"
    if is_optional and not client.supports_extension("starttls"):
        return
    try:
        await client.starttls(timeout=way.limits.tls_s)
    except aiosmtplib.SMTPResponseException:
        if not is_optional:
            raise
        return  # offered and then refused (454): the connection still stands in clear text
    except (
        ssl.SSLError,
        aiosmtplib.SMTPServerDisconnected,
        aiosmtplib.SMTPTimeoutError,
    ) as fault:
        # Opportunistic security (RFC 7435 §3): broken TLS is no worse than none.
        if not is_optional:
            raise
        raise BrokenTls from fault
    await _greet(client, way.limits.ehlo_s)  # RFC 3207 §4.2: what was said before is void


async def _authenticate(client: aiosmtplib.SMTP, way: Way) -> None:
    """AUTH with one method only: trying a refused password again gets accounts locked."""
    if way.tls != "none" and not client.get_transport_info("sslcontext"):
        raise aiosmtplib.SMTPException("no encryption, so the password is not sent")
    methods = {
        "plain": client.auth_plain,
        "login": client.auth_login,
        "cram-md5": client.auth_crammd5,
    }
    for name, method in methods.items():
        if name in client.server_auth_methods:
            await method(way.username, way.password, timeout=way.limits.ehlo_s)
            return
    raise aiosmtplib.SMTPException("the server offers none of AUTH " + ", ".join(methods).upper())


def _take_over(client: aiosmtplib.SMTP, way: Way) -> SmtpConnection:
    """Takes the open transport away from aiosmtplib."""
    transport = cast("asyncio.Transport | None", client.transport)
    if transport is None or transport.is_closing():
        raise ConnectionResetError("connection lost after the greeting")
    size = client.esmtp_extensions.get("size", "")
    connection = SmtpConnection(
        transport,
        Offers(
            pipelining=client.supports_extension("pipelining"),
            eight_bit=client.supports_extension("8bitmime"),
            utf8=client.supports_extension("smtputf8"),
            size=client.supports_extension("size"),
            size_bytes_max=int(size) if size.isascii() and size.isdigit() else 0,
        ),
        way.messages_max,
        way.limits,
    )
    transport.set_protocol(connection)
    return connection


def refusal_of(fault: Exception, port: int, within_s: float) -> Reply:
    if isinstance(fault, aiosmtplib.SMTPResponseException):
        return no_connection(fault.code, fault.message)
    if isinstance(fault, TimeoutError):
        return no_connection(0, str(fault) or f"not open within {within_s:g} s")
    # aiosmtplib was given a socket and does not know the port.
    text = str(fault).replace(" on port None", f" on port {port}")
    return no_connection(0, text or type(fault).__name__)


def is_unreachable(fault: Exception) -> bool:
    """Whether the other end did not answer or broke off, rather than not pleasing us."""
    return isinstance(fault, OSError) and not isinstance(fault, (ssl.SSLError, _NotFromHere))


def no_connection(code: int, text: str) -> Reply:
    reason = reason_of(code, text) if code >= 400 else "no connection"
    return Reply(Verdict.NOT_SENT, code, printable(text), reason)
