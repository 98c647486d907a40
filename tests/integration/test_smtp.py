"""The SMTP client on real sockets: proper servers, refusing servers, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import uvloop
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from actors.io.smtp import SmtpConnection, SmtpConnector, SmtpLimits
from manta.delivery.replies import Reply, Verdict
from manta.delivery.transaction import Envelope
from manta.errors import InvalidRequest
from manta.settings import EgressSource

QUICK = SmtpLimits(
    connect_s=1.0,
    banner_s=0.4,
    ehlo_s=0.4,
    open_s=1.5,
    mail_s=0.3,
    rcpt_s=0.3,
    data_initial_s=0.3,
    data_block_s=0.3,
    data_termination_s=0.4,
    burst_s=2.0,
    quit_s=0.3,
)
BODY = b"Subject: x\r\n\r\n.dot\r\nhello\r\n"


def mails(count: int, data: bytes = BODY) -> list[Envelope]:
    return [Envelope(f"b+{i}@a.example", f"r{i}@b.example", data, i) for i in range(count)]


async def connected(
    port: int,
    *,
    limits: SmtpLimits = QUICK,
    password: str = "",
    ca_file: str | None = None,
    **options: object,
) -> SmtpConnection:
    source = replace(EgressSource(port=port, tls="none"), **options)
    connection = await SmtpConnector(source, password, limits, ca_file).connect()
    assert isinstance(connection, SmtpConnection), connection
    return connection


async def refused(port: int, **options: object) -> Reply:
    password = str(options.pop("password", ""))
    source = replace(EgressSource(port=port, tls="none"), **options)
    reply = await SmtpConnector(source, password, QUICK).connect()
    assert isinstance(reply, Reply), reply
    assert reply.verdict is Verdict.NOT_SENT
    return reply


def verdicts(replies: list[Reply]) -> list[str]:
    return [reply.verdict.value for reply in replies]


# -- proper servers --------------------------------------------------------------------------------


class Receiver:
    """An aiosmtpd handler that keeps what it takes and refuses by local part."""

    def __init__(self, pipelining: bool = True) -> None:
        self.pipelining = pipelining
        self.messages: list[tuple[str, list[str], bytes]] = []
        self.logins: list[bytes] = []

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        if self.pipelining:
            responses.insert(1, "250-PIPELINING")
        return responses

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.startswith("gone"):
            return "550 5.1.1 no such user"
        if address.startswith("full"):
            return "452 4.2.2 mailbox full"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server, session, envelope):
        if b"spam" in envelope.original_content:
            return "554 5.7.1 we do not like it"
        self.messages.append(
            (envelope.mail_from, list(envelope.rcpt_tos), envelope.original_content)
        )
        return "250 2.0.0 taken"

    def authenticate(self, server, session, envelope, mechanism, data):
        self.logins.append(data.login)
        return AuthResult(success=data.password == b"secret", handled=False)


@contextlib.asynccontextmanager
async def receiver(handler: Receiver, **options: object) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(handler, hostname="mx.b.example", loop=loop, **options), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.02)  # aiosmtpd ends its tasks after the loop sees the close


@pytest.mark.parametrize("pipelining", [True, False])
async def test_bursts_arrive_whole_and_in_order(pipelining):
    handler = Receiver(pipelining)
    async with receiver(handler) as port:
        connection = await connected(port)
        assert connection.offers.pipelining is pipelining
        for _ in range(2):
            assert verdicts(await connection.send_burst(mails(5))) == ["accepted"] * 5
        await connection.quit()
    assert [m[1] for m in handler.messages] == [[f"r{i}@b.example"] for i in range(5)] * 2
    assert {m[2] for m in handler.messages} == {BODY}
    assert handler.messages[3][0] == "b+3@a.example"


@pytest.mark.parametrize("pipelining", [True, False])
async def test_refusals_concern_one_message_alone(pipelining):
    handler = Receiver(pipelining)
    messages = mails(6)
    messages[1] = messages[1]._replace(rcpt_to="gone@b.example")
    messages[2] = messages[2]._replace(data=b"Subject: spam\r\n\r\n")
    messages[4] = messages[4]._replace(rcpt_to="full@b.example")
    async with receiver(handler) as port:
        connection = await connected(port)
        replies = await connection.send_burst(messages)
        assert connection.usable
        assert verdicts(await connection.send_burst(mails(1))) == ["accepted"]
        await connection.quit()
    assert verdicts(replies) == [
        "accepted", "failed", "failed", "accepted", "deferred", "accepted",
    ]  # fmt: skip
    assert replies[1] == (Verdict.FAILED, 550, "5.1.1 no such user", "mailbox does not exist")
    assert replies[4].reason == "mailbox is full"
    assert [m[1][0][:2] for m in handler.messages] == ["r0", "r3", "r5", "r0"]


async def test_large_messages_arrive_whole():
    handler = Receiver()
    body = b"Subject: x\r\n\r\n" + (b"." * 70 + b"\r\n") * 20_000
    async with receiver(handler) as port:
        connection = await connected(port, limits=SmtpLimits())
        assert verdicts(await connection.send_burst(mails(2, body))) == ["accepted"] * 2
        await connection.quit()
    assert [m[2] for m in handler.messages] == [body] * 2


async def test_size_is_respected_before_sending():
    async with receiver(Receiver(), data_size_limit=1000) as port:
        connection = await connected(port)
        assert connection.offers.size_bytes_max == 1000
        replies = await connection.send_burst([mails(1, b"x" * 2000)[0], mails(1)[0]])
        await connection.quit()
    assert verdicts(replies) == ["failed", "accepted"]


async def test_a_connection_has_room_for_so_many_messages():
    async with receiver(Receiver()) as port:
        connection = await connected(port, messages_per_connection=3)
        await connection.send_burst(mails(2))
        assert connection.usable and connection.room == 1
        await connection.send_burst(mails(1))
        assert not connection.usable and connection.room == 0
        await connection.quit()
        assert verdicts(await connection.send_burst(mails(1))) == ["not_sent"]


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
async def test_auth_and_its_refusal():
    handler = Receiver()
    options = {"authenticator": handler.authenticate, "auth_require_tls": False}
    async with receiver(handler, auth_required=True, **options) as port:
        connection = await connected(port, username="me", password="secret")
        assert verdicts(await connection.send_burst(mails(1))) == ["accepted"]
        await connection.quit()
        reply = await refused(port, username="me", password="wrong")
        assert reply.code == 535 and reply.reason == "authentication failed"
        reply = await refused(port, username="me", password="secret", tls="opportunistic")
        assert "password is not sent" in reply.text
    assert handler.logins == [b"me", b"me"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-made certificate for localhost and 127.0.0.1: (file with key, file to trust)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime(2020, 1, 1)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin.replace(year=2100))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "both.pem").write_bytes(private + pem)
    (folder / "public.pem").write_bytes(pem)
    return str(folder / "both.pem"), str(folder / "public.pem")


def server_context(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[0])
    return context


async def test_starttls_required_checks_the_certificate(certificate):
    handler = Receiver()
    options = {"tls_context": server_context(certificate), "require_starttls": True}
    async with receiver(handler, **options) as port:
        connection = await connected(port, tls="required", ca_file=certificate[1])
        assert connection.encrypted and connection.offers.pipelining
        assert verdicts(await connection.send_burst(mails(3))) == ["accepted"] * 3
        await connection.quit()
        reply = await refused(port, tls="required")
        assert "certificate" in reply.text.lower()
        connection = await connected(port, tls="opportunistic")
        assert connection.encrypted
        assert verdicts(await connection.send_burst(mails(1))) == ["accepted"]
        await connection.quit()
    assert len(handler.messages) == 4


def test_an_unknown_tls_mode_is_refused_at_once():
    with pytest.raises(InvalidRequest, match="opportunstic") as error:
        SmtpConnector(EgressSource(tls="opportunstic"))
    assert "opportunistic" in error.value.expected


async def test_starttls_missing():
    async with receiver(Receiver()) as port:
        connection = await connected(port, tls="opportunistic")
        assert not connection.encrypted
        await connection.quit()
        reply = await refused(port, tls="required")
        assert "STARTTLS" in reply.text


async def test_implicit_tls(certificate):
    handler = Receiver()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(handler, hostname="mx.b.example", loop=loop),
        "127.0.0.1",
        0,
        ssl=server_context(certificate),
    )
    port = server.sockets[0].getsockname()[1]
    connection = await connected(port, tls="implicit", ca_file=certificate[1])
    assert connection.encrypted
    assert verdicts(await connection.send_burst(mails(2))) == ["accepted"] * 2
    await connection.quit()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.02)


# -- servers that misbehave ------------------------------------------------------------------------

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
    """A raw server that follows the script on each connection, then closes it."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pipelining: bool = True
) -> None:
    writer.write(b"220 mx.b.example ESMTP\r\n")
    await reader.readline()
    writer.write(b"250-mx.b.example\r\n250 PIPELINING\r\n" if pipelining else b"250 mx\r\n")


def after_greeting(*answers: bytes | float | None) -> Script:
    """For each group of commands or content: the answer, or a pause; ``None`` closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        for answer in answers:
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                continue
            await reader.read(100_000)
            if answer is None:
                return
            writer.write(answer)
            await writer.drain()
        while await reader.read(100_000):
            pass

    return script


GROUP = b"250 ok\r\n250 ok\r\n354 go\r\n"


async def burst_against(script: Script, count: int = 3, **options: object) -> list[Reply]:
    async with scripted(script) as port, asyncio.timeout(4):
        connection = await connected(port)
        replies = await connection.send_burst(mails(count), **options)
        connection.abort()
    assert len(replies) == count
    return replies


@pytest.mark.parametrize(
    ("answers", "expected", "text"),
    [
        # hangs, at each point
        ((), "not_sent not_sent not_sent", "gave up waiting for the reply to MAIL"),
        ((b"250 ok\r\n",), "not_sent not_sent not_sent", "gave up waiting for the reply to RCPT"),
        ((b"250 ok\r\n" * 2,), "not_sent not_sent not_sent", "gave up waiting for the reply to D"),
        ((GROUP,), "uncertain not_sent not_sent", "gave up waiting for the reply to the message"),
        ((GROUP, b"250 ok\r\n" + GROUP), "accepted uncertain not_sent", "250"),
        # closes, at each point
        ((None,), "not_sent not_sent not_sent", "closed the connection"),
        ((GROUP, None), "uncertain not_sent not_sent", "closed the connection"),
        ((GROUP, b"250 ok\r\n" + GROUP, None), "accepted uncertain not_sent", "ok"),
        # 421, at each point
        ((b"421 4.3.2 shutting down\r\n", None), "deferred not_sent not_sent", "4.3.2 shutting"),
        ((GROUP, b"421 bye\r\n", None), "deferred not_sent not_sent", "bye"),
        ((GROUP, b"250 ok\r\n421 bye\r\n", None), "accepted deferred not_sent", "ok"),
        # nonsense
        ((b"HTTP/1.1 400 Bad Request\r\n",), "not_sent not_sent not_sent", "not a reply"),
        ((GROUP, b"\x00\xff" * 900 + b"\n"), "uncertain not_sent not_sent", "not a reply"),
        ((b"250-endless\r\n" * 1000,), "not_sent not_sent not_sent", "reply of more than"),
        ((b"9" * 60_000,), "not_sent not_sent not_sent", "reply line longer"),
        ((b"250 ok\r\n" * 40,), "not_sent not_sent not_sent", "unfit reply"),
    ],
)
async def test_misbehaving_servers(answers, expected, text):
    replies = await burst_against(after_greeting(*answers))
    assert verdicts(replies) == expected.split()
    if text != "250":
        assert text in replies[0].text


async def test_a_server_that_drips_gains_nothing():
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read(10_000)
        while True:
            writer.write(b"2")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def drip_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read(10_000)
        while True:
            writer.write(b"250-\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    for script in (drip, drip_lines):
        began = asyncio.get_running_loop().time()
        assert verdicts(await burst_against(script)) == ["not_sent"] * 3
        assert asyncio.get_running_loop().time() - began < 1.5


async def test_a_server_that_is_slow_within_its_limits_meets_the_deadline_of_the_burst():
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        while True:
            await reader.read(10_000)
            for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n"):
                await asyncio.sleep(0.2)
                writer.write(answer)

    replies = await burst_against(slow, 12, begin_within_s=60.0)
    kinds = verdicts(replies)
    assert kinds[0] == "accepted" and kinds[-1] == "not_sent"
    assert "end of the burst" in replies[-1].text


async def test_what_is_not_begun_in_time_is_not_sent_and_the_connection_stays():
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read(10_000)
        writer.write(GROUP)
        while await reader.read(10_000):
            await asyncio.sleep(0.15)
            writer.write(b"250 ok\r\n" + GROUP)

    async with scripted(slow) as port:
        connection = await connected(port)
        kinds = verdicts(await connection.send_burst(mails(5), begin_within_s=0.2))
        assert kinds == ["accepted", "accepted", "accepted", "not_sent", "not_sent"]
        connection.abort()


async def test_a_server_that_stops_reading_never_got_the_message():
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read(10_000)
        writer.write(GROUP)
        await asyncio.sleep(60)

    async with scripted(deaf) as port, asyncio.timeout(4):
        connection = await connected(port)
        large = mails(2, b"Subject: x\r\n\r\n" + b"x" * 20_000_000)
        replies = await connection.send_burst(large)
    assert verdicts(replies) == ["not_sent", "not_sent"]
    assert "to take content" in replies[0].text
    assert not connection.usable


async def test_a_cancelled_burst_closes_the_connection():
    async with scripted(after_greeting()) as port:
        connection = await connected(port)
        task = asyncio.create_task(connection.send_burst(mails(1)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connection.usable


async def test_stop_is_felt_within_the_burst():
    handler = Receiver()
    original = handler.handle_DATA

    async def slow_data(server, session, envelope):
        await asyncio.sleep(0.02)
        return await original(server, session, envelope)

    handler.handle_DATA = slow_data
    async with receiver(handler) as port:
        connection = await connected(port)
        task = asyncio.create_task(connection.send_burst(mails(50)))
        await asyncio.sleep(0.1)
        connection.stop("campaign paused")
        replies = await task
        await connection.quit()
    kinds = verdicts(replies)
    sent = kinds.count("accepted")
    assert 0 < sent < 20 and kinds == ["accepted"] * sent + ["not_sent"] * (50 - sent)
    assert replies[-1].text == "campaign paused"
    assert len(handler.messages) == sent


async def test_an_idle_connection_that_says_something_is_not_used_again():
    async def goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asyncio.sleep(0.05)
        writer.write(b"421 idle too long\r\n")
        await asyncio.sleep(1)

    async with scripted(goodbye) as port:
        connection = await connected(port)
        assert connection.usable
        await asyncio.sleep(0.15)
        assert not connection.usable
        assert verdicts(await connection.send_burst(mails(1))) == ["not_sent"]


# -- connections that are not to be had ------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        (hang, 0, "Timed out"),
        ("close", 0, ""),
        (b"554 5.7.1 you are listed\r\n", 554, "5.7.1 you are listed"),
        (b"421 4.7.0 too many connections\r\n", 421, "4.7.0 too many"),
        (b"garbage\r\n", -1, "Malformed"),
        (b"220-endless\r\n" * 10_000, None, ""),
    ],
)
async def test_no_connection(script, code, text):
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if script != "close":
            writer.write(script)
            await writer.drain()
            await reader.read(1000)
            await asyncio.sleep(0.05)

    async with scripted(script if script is hang else say) as port, asyncio.timeout(4):
        reply = await refused(port)
    assert code is None or reply.code == code
    assert text in reply.text
    assert reply.reason and "\n" not in reply.text


async def test_421_and_closing_after_ehlo():
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"421 4.3.2 go away\r\n")

    async with scripted(leave) as port:
        assert (await refused(port))[1:] == (
            421,
            "4.3.2 go away",
            "mail system accepts no mail now",
        )


async def test_a_server_without_ehlo_is_greeted_with_helo():
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"502 what is EHLO?\r\n")
        assert (await reader.readline()).startswith(b"HELO")
        writer.write(b"250 mx\r\n")
        for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 taken\r\n"):
            await reader.read(10_000)
            writer.write(answer)

    async with scripted(old) as port:
        connection = await connected(port)
        assert verdicts(await connection.send_burst(mails(1))) == ["accepted"]
        connection.abort()


async def test_a_greeting_that_drips_is_bounded():
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"220 " + b"x" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with scripted(drip) as port, asyncio.timeout(3):
        await refused(port)


async def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reply = await refused(port)
    assert reply.code == 0 and "111" in reply.text
    reply = await SmtpConnector(EgressSource(host="no.invalid"), "", QUICK).connect()
    assert isinstance(reply, Reply) and reply.reason == "no connection"


# -- uvloop, which Ray's actors run on -------------------------------------------------------------


@pytest.mark.parametrize(
    "scenario",
    [
        test_large_messages_arrive_whole,
        test_a_server_that_stops_reading_never_got_the_message,
        test_an_idle_connection_that_says_something_is_not_used_again,
        test_a_cancelled_burst_closes_the_connection,
    ],
)
def test_on_uvloop(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def test_starttls_on_uvloop(certificate):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_starttls_required_checks_the_certificate(certificate))


# -- postfix's smtp-sink ---------------------------------------------------------------------------


@pytest.mark.smtp_sink
async def test_smtp_sink_takes_bursts_over_several_connections(smtp_sink_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    sink = await asyncio.create_subprocess_exec(
        smtp_sink_path, *user, f"127.0.0.1:{port}", "100", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        source = EgressSource(port=port, tls="opportunistic")
        for _ in range(100):
            first = await SmtpConnector(source, "", QUICK).connect()
            if isinstance(first, SmtpConnection):
                break
            await asyncio.sleep(0.05)
        assert isinstance(first, SmtpConnection)
        connections = [first, await connected(port), await connected(port)]
        results = await asyncio.gather(*(c.send_burst(mails(200)) for c in connections))
        assert [verdicts(replies) for replies in results] == [["accepted"] * 200] * 3
        await asyncio.gather(*(c.quit() for c in connections))
    finally:
        sink.terminate()
        await sink.wait()
