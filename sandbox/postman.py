"""What comes back by mail: bounces, complaints, automatic replies and unsubscribes, by real SMTP.

The mails are as providers and people write them: delivery status notifications (RFC 3464),
feedback reports (RFC 5965), automatic replies (RFC 3834). The ``Postman`` brings them to one inbox,
one after another on one connection, and tries again where it is told to.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib

from manta.delivery.rehearsal.behaviour import Told

WAITING_MAX = 10_000
TRIES_MAX = 20
AGAIN_S = 3.0
TIMEOUT_S = 30.0
logger = logging.getLogger("manta.sandbox")


class Letter(NamedTuple):
    """``mail_from`` is empty for what nothing may come back of."""

    kind: str
    mail_from: str
    rcpt_to: str
    raw: bytes
    tries: int = 0


class Original(NamedTuple):
    """The message that it is about, as the receiver got it."""

    source: str
    mail_from: str
    rcpt_to: str
    raw: bytes

    @property
    def head(self) -> bytes:
        """Its header, with the return path that the receiver noted (RFC 5321 §4.4)."""
        header = self.raw.partition(b"\r\n\r\n")[0]
        return b"Return-Path: <" + self.mail_from.encode() + b">\r\n" + header + b"\r\n"


def bounce(original: Original, host: str, told: Told, at: datetime) -> Letter:
    """A delivery status notification for a message that could not be delivered after all."""
    enhanced = told.text.split(" ", 1)[0]
    recipient = original.rcpt_to
    report = _fields(
        ("Final-Recipient", f"rfc822; {recipient}"),
        ("Action", "failed"),
        ("Status", enhanced),
        ("Diagnostic-Code", f"smtp; {told.line}"),
    )
    about = _fields(("Reporting-MTA", f"dns; {host}"), ("Arrival-Date", format_datetime(at)))
    text = f"The message to {recipient} could not be delivered:\n\n    {told.line}\n"
    mail = _report("delivery-status", text, [about, report], original)
    _address(mail, f"Mail Delivery System <mailer-daemon@{host}>", original.mail_from, at)
    mail["Subject"] = "Undelivered Mail Returned to Sender"
    mail["Auto-Submitted"] = "auto-replied"
    return Letter("dsn", "", original.mail_from, _bytes(mail))


def complaint(original: Original, host: str, feedback: str, at: datetime) -> Letter:
    """A feedback report to the address ``feedback``: a person says that it is spam."""
    report = _fields(
        ("Feedback-Type", "abuse"),
        ("User-Agent", "Sandbox-Feedback/1.0"),
        ("Version", "1"),
        ("Original-Mail-From", f"<{original.mail_from}>"),
        ("Original-Rcpt-To", f"<{original.rcpt_to}>"),
        ("Arrival-Date", format_datetime(at)),
        ("Source-IP", original.source),
    )
    text = f"This is a report of an unwanted message from {original.source}.\n"
    mail = _report("feedback-report", text, [report], original)
    _address(mail, f"feedback@{host}", feedback, at)
    mail["Subject"] = "FW: abuse report"
    return Letter("complaint", f"feedback@{host}", feedback, _bytes(mail))


def auto_reply(original: Original, at: datetime) -> Letter:
    """A person is away."""
    mail = MIMEText("I am away until Monday and read my mail then.\n")
    _address(mail, original.rcpt_to, original.mail_from, at)
    mail["Subject"] = "Out of office"
    mail["Auto-Submitted"] = "auto-replied"
    return Letter("auto_reply", "", original.mail_from, _bytes(mail))


def unsubscribe(address: str, uri: str, at: datetime) -> Letter:
    """What a mail program sends for a ``mailto:`` of List-Unsubscribe (RFC 2369)."""
    parts = urlsplit(uri)
    mail = MIMEText("")
    _address(mail, address, unquote(parts.path), at)
    mail["Subject"] = parse_qs(parts.query).get("subject", ["unsubscribe"])[0]
    return Letter("unsubscribe", address, unquote(parts.path), _bytes(mail))


def _report(kind: str, text: str, groups: Sequence[Message], original: Original) -> MIMEMultipart:
    """A multipart/report (RFC 6522): for people, for programs, and the message's header."""
    mail = MIMEMultipart("report", report_type=kind)
    mail.attach(MIMEText(text))
    part = Message()
    part["Content-Type"] = f"message/{kind}"
    if kind == "delivery-status":
        part.set_payload(list(groups))
    else:
        part.set_payload(groups[0].as_string())
    mail.attach(part)
    head = Message()
    head["Content-Type"] = "text/rfc822-headers"
    head.set_payload(original.head.decode("ascii", "replace").replace("\r\n", "\n"))
    mail.attach(head)
    return mail


def _fields(*fields: tuple[str, str]) -> Message:
    message = Message()
    for name, value in fields:
        message[name] = value
    return message


def _address(mail: Message, sender: str, recipient: str, at: datetime) -> None:
    mail["From"] = sender
    mail["To"] = recipient
    mail["Date"] = format_datetime(at)


def _bytes(mail: Message) -> bytes:
    return b"\r\n".join(mail.as_bytes().splitlines()) + b"\r\n"


class Postman:
    """Brings letters to one inbox. ``counts``: those that it took, by kind; ``refused`` and
    ``dropped`` are those that it did not take."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self._host, self._port, self._name = host, port, name
        self._letters: asyncio.Queue[Letter] = asyncio.Queue(WAITING_MAX)
        self._smtp: aiosmtplib.SMTP | None = None
        self.counts: Counter[str] = Counter()
        self.is_busy = False

    def post(self, letter: Letter) -> None:
        try:
            self._letters.put_nowait(letter)
        except asyncio.QueueFull:
            self.counts["dropped"] += 1

    @property
    def waiting(self) -> int:
        return self._letters.qsize() + self.is_busy

    async def run(self) -> None:
        while True:
            letter = await self._letters.get()
            self.is_busy = True
            try:
                await self._bring(letter)
            except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
                self._hang_up()
                await self._again(letter, error)
            finally:
                self.is_busy = False

    async def _bring(self, letter: Letter) -> None:
        if self._smtp is None:
            self._smtp = aiosmtplib.SMTP(
                hostname=self._host,
                port=self._port,
                local_hostname=self._name,
                start_tls=False,
                timeout=TIMEOUT_S,
            )
            await self._smtp.connect()
        await self._smtp.sendmail(letter.mail_from, [letter.rcpt_to], letter.raw)
        self.counts[letter.kind] += 1

    async def _again(self, letter: Letter, error: Exception) -> None:
        """A refusal is for good; all else is tried again, as servers do."""
        refusals = error.recipients if isinstance(error, aiosmtplib.SMTPRecipientsRefused) else []
        codes = [each.code for each in refusals] or [getattr(error, "code", 0)]
        if max(codes) >= 500 or letter.tries >= TRIES_MAX:
            self.counts["refused"] += 1
            logger.info("the inbox refused a %s: %s", letter.kind, error)
            return
        await asyncio.sleep(AGAIN_S)
        self.post(letter._replace(tries=letter.tries + 1))

    def _hang_up(self) -> None:
        if self._smtp is not None:
            self._smtp.close()
            self._smtp = None
