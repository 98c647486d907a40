"""The sandbox answers by real SMTP as providers do, tells later what became of mail, and its people
are the same for the same seed."""

from __future__ import annotations

import asyncio
import smtplib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from actors.io.dns import DnsClient
from manta.clock import SystemClock
from manta.delivery.rehearsal.behaviour import Told
from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns.arrivals import ArrivalKind, read
from manta.delivery.returns.inbox import malformed
from manta.settings import DnsSettings
from sandbox import postman
from sandbox.mailboxes import Mailboxes
from sandbox.network import Network, free_port
from sandbox.people import SHARES, acts_on, temper_of
from sandbox.postman import Original
from sandbox.town import Town, TownSettings

RAW = b"Subject: Hi =?utf-8?q?=C3=A9?=\r\nMessage-ID: <1@x>\r\n\r\nHello\r\n"
HTML = '<a href="http://h/c/1">x</a><a href="mailto:a@b">y</a><img src="http://h/o/1">'
NETWORK = Network(sources={"out1.news.example": "127.0.0.2"})
PATIENT = {"unknown_share": 0.0, "full_share": 0.0, "late_share": 0.0, "complaint_share": 0.0}
CALM: dict[str, dict[str, Any]] = {
    name: {**PATIENT, "auto_reply_share": 0.0} for name in NETWORK.hosts
}


@asynccontextmanager
async def town(folder: Path, **fields: Any) -> AsyncIterator[tuple[Town, TownSettings]]:
    settings = TownSettings(
        **{
            "mail_file": folder / "mail.sqlite",
            "smtp_port": free_port(NETWORK.addresses),
            "dns_port": free_port(["127.0.0.1"], with_udp=True),
            "network": NETWORK,
            "changes": CALM,
            "alive": False,
        }
        | fields
    )
    here = Town(settings, SystemClock())
    await here.start()
    try:
        yield here, settings
    finally:
        await here.stop()


def client(settings: TownSettings, model: str, source: str = "127.0.0.2") -> smtplib.SMTP:
    """A connection to the first host of a provider."""
    _, address = NETWORK.hosts[model][0]
    found = smtplib.SMTP(source_address=(source, 0), local_hostname="out1.news.example")
    code, text = found.connect(address, settings.smtp_port)
    if code != 220:
        found.close()
        raise smtplib.SMTPConnectError(code, text)
    return found


async def reply_of(settings: TownSettings, model: str, recipient: str) -> int:
    def ask() -> int:
        with client(settings, model) as smtp:
            smtp.ehlo()
            smtp.mail("b@bounces.news.example")
            code = smtp.rcpt(recipient)[0]
            smtp.close() if code == 421 else smtp.rset()
            return code

    return await asyncio.to_thread(ask)


# -- providers -------------------------------------------------------------------------------------


async def test_mail_is_delivered_refused_and_deferred_by_recipient(tmp_path: Path) -> None:
    async with town(tmp_path) as (here, settings):

        def send() -> None:
            with client(settings, "postfix") as smtp:
                smtp.sendmail("from@x.example", ["ada@mail.example"], RAW)
                with pytest.raises(smtplib.SMTPRecipientsRefused, match="User unknown"):
                    smtp.sendmail("from@x.example", ["bob@gone.example"], RAW)
                with pytest.raises(smtplib.SMTPRecipientsRefused, match="mailbox full"):
                    smtp.sendmail("from@x.example", ["eve@full.example"], RAW)
                smtp.sendmail("from@x.example", ["eve@full.example"], RAW)

        await asyncio.to_thread(send)
        status = await here.status()
    assert status["mails"] == 2
    assert status["providers"]["postfix"] == {"accepted": 2, "failed": 1, "deferred": 1}
    mailboxes = Mailboxes(settings.mail_file)
    assert mailboxes.copies() == {"ada@mail.example": 1, "eve@full.example": 1}
    ((newest, acts), (oldest, _)) = mailboxes.page("", None, 10)
    assert (newest.rcpt_to, acts, oldest.subject) == ("eve@full.example", [], "Hi é")
    mailboxes.note(newest.id, "open", "2026-01-01T00:00:00Z")
    assert mailboxes.page("eve@", None, 10)[0][1] == ["open"]
    assert mailboxes.page("e%e@", None, 10) == []
    mail = mailboxes.get(oldest.id)
    assert mail is not None and mail.body("plain").strip() == "Hello" and mail.body("html") == ""
    mailboxes.close()


async def test_answers_follow_from_the_recipient(tmp_path: Path) -> None:
    expected = {"permfail@a.b": 550, "tempfail1@a.b": 451, "421-x@a.b": 421, "a@b.c": 250}
    async with town(tmp_path) as (_, settings):
        for model in ("google", "postfix"):
            for recipient, code in expected.items():
                assert await reply_of(settings, model, recipient) == code


async def test_connections_messages_and_rates_are_limited(tmp_path: Path) -> None:
    changes = CALM | {
        "yahoo": {**CALM["yahoo"], "connections_max": 1, "messages_per_connection": 2},
        "outlook": {**CALM["outlook"], "cold_per_day": 50},
    }
    async with town(tmp_path, changes=changes, known={"outlook": {"127.0.0.3": 1_000}}) as (
        here,
        settings,
    ):

        def hold() -> None:
            with client(settings, "yahoo") as smtp:
                with pytest.raises(smtplib.SMTPConnectError, match="Too many concurrent"):
                    client(settings, "yahoo")
                client(settings, "yahoo", "127.0.0.3").close()
                for _ in range(2):
                    smtp.sendmail("b@x.example", ["a@yahoo.example"], RAW)
                assert smtp.mail("b@x.example")[0] == 250
                assert smtp.rcpt("a@yahoo.example")[0] == 421
                with pytest.raises(smtplib.SMTPServerDisconnected):
                    smtp.noop()

        await asyncio.to_thread(hold)
        assert await reply_of(settings, "outlook", "a@outlook.example") == 250
        assert await reply_of(settings, "outlook", "a@outlook.example") == 451, "a stranger"
        assert (await here.status())["providers"]["yahoo"]["refused"] == 1


async def test_a_greylister_lets_in_who_comes_again(tmp_path: Path) -> None:
    async with town(tmp_path, speed=3_000.0) as (_, settings):
        assert await reply_of(settings, "greylister", "a@careful.example") == 451
        await asyncio.sleep(0.12)  # 360 s in the provider's time
        assert await reply_of(settings, "greylister", "a@careful.example") == 250


async def test_large_providers_offer_tls(tmp_path: Path) -> None:
    async with town(tmp_path) as (_, settings):

        def offered(model: str) -> bool:
            with client(settings, model) as smtp:
                smtp.ehlo()
                return bool(smtp.has_extn("starttls"))

        assert await asyncio.to_thread(offered, "google")
        assert not await asyncio.to_thread(offered, "postfix")


async def test_the_dns_has_exchangers_sources_and_what_is_published(tmp_path: Path) -> None:
    async with town(tmp_path) as (here, settings):
        await here.publish([("k1._domainkey.news.example", "TXT", "v=DKIM1; p=AA")])
        servers = (f"127.0.0.1:{settings.dns_port}",)
        dns = DnsClient(DnsSettings(servers, private_addresses=True), SystemClock())
        mx = (await dns.mx("gmail.example")).records
        host = mx[0].split()[1].rstrip(".")
        assert host.endswith("gmail-smtp-in.l.google.com")
        assert (await dns.addresses(host)).records == (NETWORK.hosts["google"][0][1],)
        assert (await dns.ptr("127.0.0.2")).records[0].rstrip(".") == "out1.news.example"
        assert (await dns.txt("k1._domainkey.news.example")).records == ("v=DKIM1; p=AA",)
        (spf,) = (await dns.txt("bounces.news.example")).records
        assert "ip4:127.0.0.2" in spf
        assert (await dns.mx("bounces.news.example")).records


# -- what comes back -------------------------------------------------------------------------------

ORIGINAL = Original(
    "127.0.0.2",
    "b-abc@bounces.news.example",
    "ann@yahoo.example",
    b"From: hello@news.example\r\nTo: ann@yahoo.example\r\nSubject: News\r\n"
    b"Message-ID: <1.2@news.example>\r\n\r\nHello\r\n",
)
AT = datetime(2026, 11, 24, 12)


def test_a_bounce_is_a_delivery_status_notification() -> None:
    told = Told(552, "5.2.2 The mailbox of ann@yahoo.example is over quota")
    letter = postman.bounce(ORIGINAL, "mx.example", told, AT)
    found = read(letter.raw)
    assert (letter.mail_from, letter.rcpt_to) == ("", "b-abc@bounces.news.example")
    assert malformed(letter.raw) is None and found.kind is ArrivalKind.BOUNCE
    (recipient,) = found.recipients
    assert (recipient.address, recipient.status) == ("ann@yahoo.example", "5.2.2")
    assert recipient.bounce_class is BounceClass.SOFT and "over quota" in recipient.diagnostic
    assert found.original.message_id.strip("<>") == "1.2@news.example"


def test_a_complaint_is_a_feedback_report() -> None:
    letter = postman.complaint(ORIGINAL, "mx.example", "fbl@bounces.news.example", AT)
    found = read(letter.raw)
    assert malformed(letter.raw) is None and found.kind is ArrivalKind.COMPLAINT
    assert found.feedback_type == "abuse"
    assert found.original.return_path.strip("<>") == "b-abc@bounces.news.example"
    assert [each.address for each in found.recipients] == ["ann@yahoo.example"]


def test_replies_and_unsubscribes_are_told_apart() -> None:
    reply = postman.auto_reply(ORIGINAL, AT)
    assert read(reply.raw).kind is ArrivalKind.AUTO_REPLY and reply.mail_from == ""
    uri = "mailto:u-abc@bounces.news.example?subject=unsubscribe"
    wish = postman.unsubscribe("ann@yahoo.example", uri, AT)
    assert read(wish.raw).kind is ArrivalKind.UNSUBSCRIBE
    assert (wish.mail_from, wish.rcpt_to) == ("ann@yahoo.example", "u-abc@bounces.news.example")
    assert malformed(reply.raw) is malformed(wish.raw) is None


class Inbox:
    """Keeps what comes; the first mail is deferred once."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, bytes]] = []
        self.deferred = 0

    async def handle_RCPT(self, server, session, envelope, address, options) -> str:  # type: ignore[no-untyped-def]
        if address.startswith("nobody"):
            return "550 5.1.1 no such address here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope) -> str:  # type: ignore[no-untyped-def]
        if not self.deferred:
            self.deferred += 1
            return "451 4.3.0 try again later"
        self.mails.append((envelope.rcpt_tos[0], envelope.original_content))
        return "250 OK"


async def test_what_became_of_mail_comes_back_by_smtp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postman, "AGAIN_S", 0.05)
    inbox, loop = Inbox(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(inbox, loop=loop), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with town(tmp_path, inbox_port=port, speed=1e6) as (here, settings):

        def send() -> None:
            for model, recipient in (
                ("yahoo", "complains1@yahoo.example"),
                ("google", "complains2@gmail.example"),
                ("postfix", "bounces@mail.example"),
                ("postfix", "replies@mail.example"),
            ):
                with client(settings, model) as smtp:
                    smtp.sendmail("b-1@bounces.news.example", [recipient], RAW)
            with client(settings, "postfix") as smtp:
                smtp.sendmail("nobody@bounces.news.example", ["replies@mail.example"], RAW)

        await asyncio.to_thread(send)
        await until(lambda: len(inbox.mails) == 3)
        status = await here.status()
        await until(lambda: here._postman.waiting == 0)
    server.close()
    kinds = Counter(str(read(raw).kind) for _, raw in inbox.mails)
    assert kinds == {"complaint": 1, "bounce": 1, "auto_reply": 1}
    assert "fbl@bounces.news.example" in {to for to, _ in inbox.mails}
    assert status["mails"] == 4, "what bounced is in no mailbox"
    assert status["providers"]["google"]["complaint"] == 1, "it keeps that to itself"
    assert here._postman.counts["refused"] == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


# -- people ----------------------------------------------------------------------------------------


def test_people_differ_and_one_seed_repeats() -> None:
    tempers = Counter(temper_of(7, f"p{i}@x.example") for i in range(4000))
    for name, share in SHARES:
        assert abs(tempers[name] / 4000 - share) < 0.03
    first = [acts_on(7, f"p{i}@x.example", HTML, "http://h/u/1") for i in range(500)]
    assert first == [acts_on(7, f"p{i}@x.example", HTML, "http://h/u/1") for i in range(500)]
    kinds = Counter(act.kind for acts in first for act in acts)
    assert kinds["open"] > kinds["click"] > kinds["buy"] > 0 and kinds["unsubscribe"] > 0
    assert all(act.url != "mailto:a@b" for acts in first for act in acts)
