"""An inbox on loopback over shards that really decide, without an actor system."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from actors.inbox import Inbox
from manta.clock import ManualClock, as_text
from manta.command import Context, Repeated
from manta.content.tokens import Keyring, keyring_of
from manta.errors import MantaError
from manta.ids import (
    MessageRef,
    bucket_of_identity,
    bucket_of_subscriber,
    even_ranges,
    shard_of_bucket,
)
from manta.settings import InboxSettings
from tests.unit.people_shard import START, Shard

DOMAIN = "bounces.example.com"
SAMPLES = Path(__file__).parents[3] / "shared/data/bounces"


class FakeShards:
    """The port of ``actors.handles.Shards`` over databases. ``trouble`` is raised by the next
    commands, one each; ``log`` has (shard, command)."""

    def __init__(self, count: int = 2) -> None:
        self.shards = [Shard(n + 1) for n in range(count)]
        self.first_buckets = even_ranges(count)
        self.trouble: list[MantaError] = []
        self.log: list[tuple[int, Any]] = []
        self.gate: asyncio.Event | None = None
        self._keys: set[tuple[int, str]] = set()

    def of_subscriber(self, subscriber_id: int) -> int:
        return shard_of_bucket(bucket_of_subscriber(subscriber_id), self.first_buckets)

    def of_identity(self, kind: str, value: str) -> int:
        return shard_of_bucket(bucket_of_identity(kind, value), self.first_buckets)

    async def execute(self, shard: int, command: Any, deadline_s: float = 30.0) -> Any:
        self.log.append((shard, command))
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble:
            raise self.trouble.pop(0)
        here = self.shards[shard]
        if command.key is not None and (shard, command.key) in self._keys:
            repeat = getattr(command, "repeat", None)
            context = Context(here.now, here.random, "default", shard)
            return repeat(here.database, context) if repeat else Repeated(command.key)
        answer = here.answer(command)
        self._keys.add((shard, command.key or ""))
        return answer

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return [row for shard in self.shards for row in shard.rows(sql, *params)]

    def person(self, email: str, home: int | None = None) -> int:
        """Somebody with an address; ``home``: the shard where they live, if not the address's."""
        owner = self.of_identity("email", email.lower())
        if home is None or home == owner:
            return self.shards[owner].person(email)
        names = (f"x{n}@made.example" for n in range(1_000))
        other = next(name for name in names if self.of_identity("email", name) == home)
        person = self.shards[home].person(other)
        identity = {"kind": "email", "value": email.lower(), "subscriber_id": person}
        identity |= {"state": "confirmed", "claimed_at": START - timedelta(days=1)}
        for shard in self.shards:
            shard.load("identities", identity)
        self.shards[home].load("profiles", {"subscriber_id": person, "email": email})
        return person

    def accepted(self, person: int, message_key: int, **columns: Any) -> MessageRef:
        values = {"state": "accepted", "changed_at": START, **columns}
        self.shards[self.of_subscriber(person)].leased(person, message_key, **values)
        return MessageRef(person, message_key)


class FakeCatalog:
    def __init__(self) -> None:
        self.documents = [key_document(1, b"k" * 32)]
        self.trouble: list[MantaError] = []
        self.calls = 0

    async def call(self, method: str, *arguments: Any, deadline_s: float = 30.0) -> Any:
        assert method == "token_keys"
        self.calls += 1
        if self.trouble:
            raise self.trouble.pop(0)
        return list(self.documents)

    @property
    def keyring(self) -> Keyring:
        return keyring_of(self.documents, "default")


def key_document(number: int, secret: bytes, born: Any = START) -> dict[str, Any]:
    return {"id": number, "key": base64.b64encode(secret).decode(), "created_at": as_text(born)}


class InboxHouse:
    def __init__(self, **limits: Any) -> None:
        from actors.io.smtp_server import ServerLimits

        self.clock = ManualClock(START)
        self.shards = FakeShards()
        self.catalog = FakeCatalog()
        tls = limits.pop("tls", None)
        self.inbox = Inbox(
            self.catalog,
            self.shards,
            self.clock,
            "default",
            DOMAIN,
            InboxSettings("127.0.0.1", 0),
            tls,
            ServerLimits(**limits) if limits else None,
        )

    def return_path(self, ref: MessageRef) -> str:
        return f"{self.catalog.keyring.verp_local_part(ref)}@{DOMAIN}"

    def unsubscribe_address(self, ref: MessageRef) -> str:
        return f"{self.catalog.keyring.unsubscribe_local_part(ref)}@{DOMAIN}"

    async def talk(self) -> Talk:
        return await Talk.open(self.inbox.port)

    async def send(self, recipient: str, raw: bytes, sender: str = "") -> str:
        """One mail over a connection of its own; the last reply."""
        talk = await self.talk()
        try:
            return await talk.send(recipient, raw, sender)
        finally:
            await talk.close()


class Talk:
    """A client that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Talk:
        talk = cls(*await asyncio.open_connection("127.0.0.1", port))
        talk.greeting = await talk.reply()
        return talk

    greeting = ""

    async def say(self, line: str | bytes) -> str:
        raw = line.encode() if isinstance(line, str) else line
        self.writer.write(raw + b"\r\n")
        return await self.reply()

    async def reply(self) -> str:
        lines = []
        async with asyncio.timeout(10):
            while True:
                line = (await self.reader.readline()).decode()
                lines.append(line.rstrip())
                if not line or line[3:4] != "-":
                    return "\n".join(lines)

    async def envelope(self, *recipients: str, sender: str = "") -> str:
        await self.say("EHLO mx.example")
        await self.say(f"MAIL FROM:<{sender}>")
        reply = ""
        for recipient in recipients:
            reply = await self.say(f"RCPT TO:<{recipient}>")
        return reply

    async def send(self, recipient: str, raw: bytes, sender: str = "") -> str:
        reply = await self.envelope(recipient, sender=sender)
        if not reply.startswith("250"):
            return reply
        reply = await self.say("DATA")
        if not reply.startswith("354"):
            return reply
        stuffed = raw.replace(b"\r\n.", b"\r\n..")
        ending = b"." if raw.endswith(b"\r\n") else b"\r\n."
        return await self.say(stuffed + ending)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def dsn(
    recipient: str = "ann@x.example",
    status: str = "5.1.1",
    diagnostic: str = "550 5.1.1 no such user",
    action: str = "failed",
) -> bytes:
    """A delivery status notification of RFC 3464."""
    return crlf(
        "From: MAILER-DAEMON@mx.example\n"
        "To: us@bounces.example.com\n"
        "Subject: Undelivered Mail Returned to Sender\n"
        "MIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\n'
        "\n--b\nContent-Type: text/plain\n\nYour mail could not be delivered.\n"
        "\n--b\nContent-Type: message/delivery-status\n\n"
        "Reporting-MTA: dns; mx.example\n\n"
        f"Final-Recipient: rfc822; {recipient}\nAction: {action}\nStatus: {status}\n"
        f"Diagnostic-Code: smtp; {diagnostic}\n"
        "\n--b--\n"
    )


def arf(
    return_path: str = "", message_id: str = "", kind: str = "abuse", to: str = "ann@x.example"
) -> bytes:
    """An abuse report of RFC 5965."""
    return crlf(
        "From: staff@provider.example\nTo: fbl@bounces.example.com\nSubject: FW: news\n"
        "MIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\n'
        "\n--b\nContent-Type: text/plain\n\nThis is an abuse report.\n"
        "\n--b\nContent-Type: message/feedback-report\n\n"
        f"Feedback-Type: {kind}\nUser-Agent: Some/1.0\nVersion: 1\n"
        + (f"Original-Mail-From: <{return_path}>\n" if return_path else "")
        + f"Original-Rcpt-To: {to}\n"
        "\n--b\nContent-Type: message/rfc822\n\n"
        "From: hello@news.example\n"
        f"To: {to}\nSubject: news\n"
        + (f"Message-ID: {message_id}\n" if message_id else "")
        + "\nhi\n\n--b--\n"
    )


def note(subject: str = "hello", text: str = "hi", **fields: str) -> bytes:
    """What a person, or a program, writes."""
    more = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in fields.items())
    return crlf(f"From: ann@x.example\nTo: us@example.com\nSubject: {subject}\n{more}\n{text}\n")


@asynccontextmanager
async def inbox_house(**limits: Any) -> AsyncIterator[InboxHouse]:
    house = InboxHouse(**limits)
    await house.inbox.start()
    try:
        yield house
    finally:
        house.clock.advance(1_000)  # nobody waits for those who still talk
        await house.inbox.stop()
