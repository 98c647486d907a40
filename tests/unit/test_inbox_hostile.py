"""What strangers may try at the inbox, and what each of it costs: real sockets on loopback."""

import asyncio
import gc
import logging
import resource
import socket
import ssl
import struct
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manta.delivery.returns.inbox import LINE_BYTES_MAX, malformed
from tests.unit.inbox_house import DOMAIN, dsn, inbox_house, note

POSTMASTER = f"postmaster@{DOMAIN}"


@pytest.fixture
async def house():
    async with inbox_house() as house:
        yield house


async def ready(house):
    talk = await house.talk()
    assert (await talk.envelope(POSTMASTER)).startswith("250")
    return talk


async def data(house, raw):
    """The reply to a message given as it is on the wire, with its end."""
    talk = await ready(house)
    assert (await talk.say("DATA")).startswith("354")
    reply = await talk.say(raw)
    await talk.close()
    return reply


async def test_what_is_offered(house):
    talk = await house.talk()
    offered = (await talk.say("EHLO mx.example")).splitlines()
    assert "250-SIZE 10485760" in offered and "250-8BITMIME" in offered
    assert not any("AUTH" in line or "STARTTLS" in line or "HELP" in line for line in offered)
    assert (await talk.say("AUTH PLAIN AGEAYg==")).startswith("500")
    assert (await talk.say("VRFY ann")).startswith("500")
    assert (await talk.say("MAIL FROM:<> SIZE=10485761")).startswith("552")
    await talk.close()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"Subject: a\r\n\r\nx\ny\r\n.", "550 5.5.2"),
        (b"Subject: a\r\n\r\nx\ry\r\n.", "550 5.5.2"),
        (b"Subject: a\r\n\r\nx\n.\n", None),  # the end that is none: the dialogue goes on waiting
        (b"Subject: a\r\n\r\nx\0y\r\n.", "550 5.6.0"),
        (b"Subject: a\r\n\r\n" + b"x" * (LINE_BYTES_MAX + 1) + b"\r\n.", "500 5.5.2"),
        (b"Received: x\r\n" * 101 + b"\r\nx\r\n.", "554 5.4.6"),
        (b"X: y\r\n" * 50_000 + b"\r\nx\r\n.", "552 5.3.4"),
        (b".", "250"),  # a message without a line
        (b"\r\n.", "250"),
        (b"Subject: a\r\n\r\n..\r\n..x\r\n.", "250"),
    ],
)
async def test_malformed_mail_gets_its_code(house, raw, code):
    if code is None:
        talk = await ready(house)
        await talk.say("DATA")
        talk.writer.write(raw + b"\r\nMAIL FROM:<>\r\n.\r\n")
        assert (await talk.reply()).startswith("550 5.5.2")  # one mail, and one reply
        talk.writer.write(b"NOOP\r\n")
        assert (await talk.reply()).startswith("250")
        await talk.close()
    else:
        assert (await data(house, raw)).startswith(code)


async def test_stuffed_dots_are_taken_away():
    async with inbox_house() as house:
        seen = []

        async def message(boxes, raw):
            seen.append(raw)
            return "250 ok"

        house.inbox.message = message
        talk = await ready(house)
        for raw in (b"..\r\n...a\r\nb.\r\n..\r\n.", b".", b"\r\n..\r\n\r\n."):
            await talk.envelope(POSTMASTER)
            await talk.say("DATA")
            assert (await talk.say(raw)).startswith("250")
        await talk.close()
        assert seen == [b".\r\n..a\r\nb.\r\n.\r\n", b"", b"\r\n.\r\n\r\n"]


async def test_the_end_may_come_in_any_pieces(house):
    talk = await ready(house)
    await talk.say("DATA")
    for piece in (b"a\r", b"\n", b".", b"\r", b"\nNO", b"OP\r\n"):
        talk.writer.write(piece)
        await talk.writer.drain()
        await asyncio.sleep(0.002)
    assert (await talk.reply()).startswith("250 2.0.0 taken")
    assert (await talk.reply()).startswith("250")
    await talk.close()


async def flood(house, size, line):
    talk = await ready(house)
    await talk.say("DATA")
    sent = 0
    try:
        while sent < size:
            talk.writer.write(line)
            sent += len(line)
            await talk.writer.drain()
        talk.writer.write(b"\r\n.\r\n")
        reply = await talk.reply()
    except (ConnectionError, TimeoutError):
        reply = "gone"
    await talk.close()
    return reply


@pytest.mark.parametrize("line", [b"x" * 65_536, b"\r\n" * 4_096, b"x" * 998 + b"\r\n"])
async def test_a_message_that_is_too_large_costs_no_memory(house, line):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replies = await asyncio.gather(*(flood(house, 30 << 20, line * (65_536 // len(line)))
                                     for _ in range(4)))  # fmt: skip
    assert all(reply.startswith("552 5.3.4") for reply in replies), replies
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) / 1024 < 64 + 30  # MiB: what may be held, and the client's own
    assert house.inbox._listener.held_bytes == 0


async def test_a_message_without_end_loses_its_connection(house):
    await flood(house, 100 << 20, b"x" * (1 << 20))  # whatever the client sees of it
    assert house.inbox._listener.refused["too_large"] == 1
    assert house.inbox._listener.held_bytes == 0


async def test_many_large_messages_at_once_come_again():
    async with inbox_house(message_bytes_max=1 << 20, held_bytes_max=1 << 20) as house:
        first = await ready(house)
        await first.say("DATA")
        first.writer.write(b"\r\n" + b"x\r\n" * 300_000)
        while house.inbox._listener.held_bytes < 800_000:
            await asyncio.sleep(0.005)
        assert (await data(house, b"y\r\n" * 100_000 + b".")).startswith("452 4.3.1")
        first.writer.write(b".\r\n")
        assert (await first.reply()).startswith("250")
        await first.close()
        assert house.inbox._listener.held_bytes == 0


async def test_too_many_recipients_and_wrong_ones():
    async with inbox_house(recipients_max=3, wrong_recipients_max=2) as house:
        talk = await house.talk()
        paths = [house.return_path((5, n)) for n in range(4)]
        assert (await talk.envelope(*paths)).startswith("452 4.5.3")
        assert (await talk.say(f"RCPT TO:<a@{DOMAIN}>")).startswith("452")
        await talk.say("RSET")
        await talk.say("MAIL FROM:<>")
        for _ in range(2):
            assert (await talk.say(f"RCPT TO:<a@{DOMAIN}>")).startswith("550")
        assert (await talk.say(f"RCPT TO:<a@{DOMAIN}>")).startswith("421")
        assert await talk.reply() == ""
        await talk.close()


async def test_commands_have_an_end():
    async with inbox_house(commands_max=5) as house:
        talk = await house.talk()
        replies = [await talk.say("NOOP") for _ in range(6)]
        assert replies[-1].startswith("421")
        await talk.close()


async def test_lines_of_commands_are_bounded(house):
    talk = await house.talk()
    assert (await talk.say("EHLO " + "x" * 1_000)).startswith("500")
    assert (await talk.say("x" * 500_000)).startswith("500")
    for _ in range(60):
        await talk.say("EHLO mx.example")  # must not widen what a line may hold
    assert (await talk.say("MAIL FROM:<" + "x" * 3_000 + "@y.example>")).startswith("500")
    assert (await talk.say(b"MAIL FROM:<\xff\x00@y.example>"))[:1] in "25"
    await talk.close()


async def test_connections_are_bounded():
    async with inbox_house(connections_max=3, connections_per_address_max=2) as house:
        talks = [await house.talk() for _ in range(3)]
        assert [talk.greeting[:3] for talk in talks] == ["220", "220", "421"]
        await talks[0].close()
        while house.inbox._listener.connections > 1:
            await asyncio.sleep(0.005)
        again = await house.talk()
        assert again.greeting.startswith("220")
        for talk in (*talks[1:], again):
            await talk.close()


async def test_who_connects_or_sends_too_often_has_to_wait():
    async with inbox_house(connects_per_address_burst=2, messages_per_address_burst=1) as house:
        talks = [await house.talk() for _ in range(3)]
        assert talks[2].greeting.startswith("421 4.7.0")
        assert (await talks[0].send(POSTMASTER, note())).startswith("250")
        assert (await talks[0].send(POSTMASTER, note())).startswith("421 4.7.0")
        house.clock.advance(1)
        again = await house.talk()
        assert again.greeting.startswith("220")
        for talk in (*talks, again):
            await talk.close()


@pytest.mark.parametrize("lines", [(), ("EHLO mx.example",), ("DATA",)])
async def test_the_silent_are_hung_up_on(lines):
    async with inbox_house(silence_s=0.05, message_s=0.05) as house:
        talk = await (ready(house) if lines == ("DATA",) else house.talk())
        for line in lines:
            await talk.say(line)
        assert await talk.reply() == ""
        await talk.close()


async def test_a_drip_of_commands_ends_with_its_connection():
    async with inbox_house(connection_s=0.1) as house:
        talk = await house.talk()
        with pytest.raises((ConnectionError, AssertionError)):
            for _ in range(200):
                assert (await talk.say("NOOP")).startswith("250")
                await asyncio.sleep(0.005)
        await talk.close()


async def test_one_that_leaves_in_the_middle_leaves_nothing_behind(house):
    for sent in (b"", b"EHLO a\r\n", b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<abuse@" +
                 DOMAIN.encode() + b">\r\nDATA\r\nhalf"):  # fmt: skip
        talk = await house.talk()
        talk.writer.write(sent)
        await talk.writer.drain()
        await talk.close()
    while house.inbox._listener.connections:
        await asyncio.sleep(0.005)
    assert house.inbox._listener.held_bytes == 0


@pytest.mark.parametrize("sent", [b"", b"half\r\n", b"whole\r\n.\r\n"])
async def test_one_that_breaks_off_is_no_fault_of_ours(house, caplog, sent):
    talk = await ready(house)
    await talk.say("DATA")
    talk.writer.write(sent)
    await talk.writer.drain()
    own = talk.writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
    talk.writer.transport.abort()
    while house.inbox._listener.connections:
        await asyncio.sleep(0.005)
    gc.collect()  # an exception that nobody has asked for is told when its task goes
    await asyncio.sleep(0)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("error", [ConnectionResetError, BrokenPipeError])
@pytest.mark.parametrize("at", ["read", "reply"])
async def test_a_broken_connection_is_no_fault_of_ours(house, caplog, monkeypatch, at, error):
    """However its breaking comes to light: as an error of the next read, or of the next reply."""
    talk = await ready(house)
    await talk.say("DATA")
    (dialogue,) = house.inbox._listener._dialogues

    async def drain():
        raise error

    if at == "reply":
        monkeypatch.setattr(dialogue._writer, "drain", drain)
    else:
        dialogue._reader.set_exception(error())
    handler = dialogue._handler_coroutine
    talk.writer.write(b"x\r\n.\r\n")
    await asyncio.wait([handler])
    assert handler.cancelled(), "not an exception that nobody asks for"
    await talk.close()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_fault_of_ours_is_no_loss(house):
    async def fails(boxes, raw):
        raise RuntimeError("secret")

    house.inbox.message = fails
    reply = await data(house, b"x\r\n.")
    assert reply.startswith("451") and "secret" not in reply


async def test_stopping_lets_a_message_end(house):
    talk = await ready(house)
    idle = await house.talk()
    await talk.say("DATA")
    stopping = asyncio.ensure_future(house.inbox.stop())
    assert await idle.reply() == ""
    talk.writer.write(b"x\r\n.\r\n")
    assert (await talk.reply()).startswith("250")
    house.clock.advance(100)
    await stopping
    await talk.close()
    await idle.close()


def self_signed(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime(2026, 1, 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=900))
        .not_valid_after(now + timedelta(days=9_000))
        .sign(key, hashes.SHA256())
    )
    path = folder / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_starttls(tmp_path):
    async with inbox_house(tls=self_signed(tmp_path)) as house:
        person = house.shards.person("ann@x.example")
        ref = house.shards.accepted(person, 11)
        talk = await house.talk()
        assert "250-STARTTLS" in await talk.say("EHLO mx.example")
        # What was said before, and what is sent along, does not count afterwards.
        await talk.say("MAIL FROM:<>")
        assert (await talk.say("STARTTLS\r\nRCPT TO:<abuse@x.example>")).startswith("220")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        await talk.writer.start_tls(context)
        assert "STARTTLS" not in await talk.say("EHLO mx.example")
        assert (await talk.send(house.return_path(ref), dsn())).startswith("250 2.0.0 taken")
        await talk.close()
    assert house.shards.rows("SELECT reason FROM suppressions") == [("hard_bounce",)]


def test_a_header_alone_is_no_fault():
    assert malformed(b"") is None
    assert malformed(b"Subject: x\r\n") is None
