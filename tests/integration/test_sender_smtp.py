"""A Sender with real shard databases, real content, real SMTP: what arrives, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import email
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import dkim
from aiosmtpd.smtp import SMTP

from actors.composers import Composers
from actors.io.smtp import SmtpConnector, SmtpLimits
from manta.clock import SystemClock
from manta.content.dkim import dns_record, generate_private_key, load_private_key
from manta.settings import EgressSource
from tests.unit.sender_house import QUICK, House, people

HOLD = SmtpLimits(banner_s=2.0, ehlo_s=2.0, mail_s=0.4, rcpt_s=0.4, data_termination_s=0.4)


class Documents:
    """The Catalog and the Director as far as composing asks them."""

    def __init__(self, signing_keys: list[dict[str, str]]) -> None:
        self.signing_keys = signing_keys

    async def call(self, method: str, *arguments: object) -> object:
        if method == "sender_keys":
            key = {"id": 1, "key": "a" * 43 + "=", "created_at": "2026-01-01T00:00:00Z"}
            return {"token_keys": [key], "signing_keys": self.signing_keys}
        if method == "campaign":
            return {"template_id": 1, "template_version": 1, "kind": "transactional"}
        return {
            "subject": "Your order",
            "html": "<p>Thank you.</p><p>.</p>",
            "from_email": "shop@mail.example.com",
        }


def composers(signing_keys: list[dict[str, str]]) -> Composers:
    documents = Documents(signing_keys)
    return Composers(
        documents, documents, SystemClock(), "default", "http://127.0.0.1:9", "b.example"
    )


class Mailbox:
    def __init__(self) -> None:
        self.messages: dict[str, bytes] = {}
        self.copies: Counter[str] = Counter()

    async def handle_DATA(self, server, session, envelope):
        (to,) = envelope.rcpt_tos
        self.messages[to] = envelope.original_content
        self.copies[to] += 1
        if to.startswith("silent"):
            await asyncio.sleep(60)
        return "250 2.0.0 taken"

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.startswith("gone"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 ok"


@contextlib.asynccontextmanager
async def mailbox(handler: Mailbox) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(handler, hostname="mx.b.example", loop=loop), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "SMTP._handle_client" in repr(task):
                task.cancel()
        await asyncio.sleep(0.02)


async def test_signed_personal_mails_arrive_once_and_all_is_accounted_for():
    pem = generate_private_key()
    key = load_private_key(pem)
    box, house = Mailbox(), House([*people(30), "gone@b.example"])
    house.composers = composers(
        [{"domain": "example.com", "selector": "s1", "private_key": pem.decode()}]
    )
    async with mailbox(box) as port:
        connector = SmtpConnector(EgressSource(name="relay", port=port))
        house.connect = lambda lane, site, held: connector.connect(held.messages_per_connection)
        async with house.running():
            await house.until_states(accepted=30, failed=1)
    assert set(box.copies.values()) == {1} and set(box.messages) == set(people(30))
    raw = box.messages["p3@b.example"]
    record = dns_record(key).encode()
    assert dkim.verify(raw, dnsfunc=lambda name, timeout=5: record)
    message = email.message_from_bytes(raw)
    assert message["To"] == "p3@b.example" and message["Subject"] == "Your order"
    assert house.ended == []


async def test_a_server_that_goes_silent_costs_one_message_and_the_rest_goes_on():
    box, house = Mailbox(), House([*people(12), "silent@b.example"], shards=1)
    house.composers = composers([])
    async with mailbox(box) as port:
        connector = SmtpConnector(EgressSource(name="relay", port=port, tls="none"), "", HOLD)
        house.connect = lambda lane, site, held: connector.connect(held.messages_per_connection)
        async with house.running(replace(QUICK, lane=replace(QUICK.lane, stalled_s=0.2))):
            await house.until_states(accepted=12, uncertain=1)
    assert set(box.copies.values()) == {1}
    ((reply, reason),) = house.shards.ledger("reply, reason", "state = 'uncertain'")
    assert "gave up waiting for the reply to the message" in reply
    assert reason == "no reply after the message"


async def test_a_server_that_answers_nothing_leaves_everything_planned():
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    house = House(people(5), shards=1)
    limits = replace(HOLD, banner_s=0.1)
    connector = SmtpConnector(EgressSource(name="relay", port=port, tls="none"), "", limits)
    house.connect = lambda lane, site, held: connector.connect(held.messages_per_connection)
    async with house.running() as sender:
        async with asyncio.timeout(20):
            while True:
                lanes = (await sender.status())["lanes"]
                if lanes and lanes[0]["connection_failures"] >= 2:
                    break
                await asyncio.sleep(0.01)
        assert "Timed out" in lanes[0]["trouble"]
        await house.until_states(planned=5)
    server.close()
    await server.wait_closed()
