"""The naive way to send a personalised, signed campaign: the baseline of ``benchmarks.send``.

What the documentation of each library shows, and nothing clever: a sandboxed Jinja2 template
rendered for each person, ``email.message.EmailMessage`` with a text and an HTML part, ``dkimpy``
with an RSA-2048 key, ``aiosmtplib`` over one connection, one message after the other. No ledger,
no journal, no throttle, no tracking links: it does less than the platform, and is what the
platform's figure is divided by.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from html.parser import HTMLParser
from typing import Any

import aiosmtplib
import dkim
from jinja2.sandbox import SandboxedEnvironment

SIGNED = [
    b"from", b"to", b"subject", b"date", b"message-id", b"mime-version", b"content-type",
    b"list-unsubscribe", b"list-unsubscribe-post",
]  # fmt: skip


@dataclass(frozen=True)
class NaiveFigures:
    messages: int
    wall_s: float
    processor_s: float

    @property
    def messages_per_s(self) -> float:
        return self.messages / self.wall_s

    @property
    def processor_us_per_message(self) -> float:
        return self.processor_s / self.messages * 1e6


def send_naively(
    port: int,
    people: Sequence[Mapping[str, Any]],
    *,
    subject: str,
    html: str,
    from_email: str,
    key_pem: bytes,
    selector: str = "s",
) -> NaiveFigures:
    """Send one mail to each person (who has ``email`` and what the templates use)."""

    async def run() -> None:
        environment = SandboxedEnvironment(autoescape=True)
        subject_template = environment.from_string(subject)
        html_template = environment.from_string(html)
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)
        await client.connect()
        for person in people:
            page = html_template.render(person)
            message = _message(subject_template.render(person), page, from_email, person["email"])
            raw = message.as_bytes(policy=SMTP)
            domain = from_email.rpartition("@")[2].encode()
            signature = dkim.sign(
                raw,
                selector.encode(),
                domain,
                key_pem,
                canonicalize=(b"relaxed", b"relaxed"),
                include_headers=SIGNED,
            )
            await client.sendmail(from_email, [person["email"]], signature + raw)
        await client.quit()

    wall, processor = time.perf_counter(), time.process_time()
    asyncio.run(run())
    return NaiveFigures(len(people), time.perf_counter() - wall, time.process_time() - processor)


def _message(subject: str, html: str, from_email: str, to: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = from_email
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=from_email.rpartition("@")[2])
    message["List-Unsubscribe"] = "<https://shop.example/unsubscribe>"
    message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message.set_content(_text_of(html))
    message.add_alternative(html, subtype="html")
    return message


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def _text_of(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    return "\n".join(part.strip() for part in parser.parts if part.strip())
