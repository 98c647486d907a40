"""The sandbox answers by real SMTP, and its people are the same for the same seed."""

from __future__ import annotations

import smtplib
from collections import Counter
from pathlib import Path

import pytest

from manta.clock import ManualClock
from sandbox.mailboxes import Mailboxes
from sandbox.people import SHARES, acts_on, temper_of
from sandbox.provider import Provider, answer_to, serve

RAW = b"Subject: Hi =?utf-8?q?=C3=A9?=\r\nMessage-ID: <1@x>\r\n\r\nHello\r\n"
HTML = '<a href="http://h/c/1">x</a><a href="mailto:a@b">y</a><img src="http://h/o/1">'


def test_mail_is_delivered_refused_and_deferred_by_recipient(tmp_path: Path) -> None:
    mailboxes = Mailboxes(tmp_path / "mail.sqlite")
    controller = serve(Provider(ManualClock(), mailboxes.deliver))
    try:
        with smtplib.SMTP("127.0.0.1", controller.port) as client:
            client.sendmail("from@x.example", ["ada@ok.example"], RAW)
            with pytest.raises(smtplib.SMTPRecipientsRefused, match="no such user"):
                client.sendmail("from@x.example", ["bob@gone.example"], RAW)
            with pytest.raises(smtplib.SMTPRecipientsRefused, match="mailbox full"):
                client.sendmail("from@x.example", ["eve@full.example"], RAW)
            client.sendmail("from@x.example", ["eve@full.example"], RAW)
    finally:
        controller.stop()
    assert mailboxes.copies() == {"ada@ok.example": 1, "eve@full.example": 1}
    ((newest, acts), (oldest, _)) = mailboxes.page("", None, 10)
    assert (newest.rcpt_to, acts, oldest.subject) == ("eve@full.example", [], "Hi é")
    mailboxes.note(newest.id, "open", "2026-01-01T00:00:00Z")
    assert mailboxes.page("eve@", None, 10)[0][1] == ["open"]
    assert mailboxes.page("e%e@", None, 10) == []
    mail = mailboxes.get(oldest.id)
    assert mail is not None and mail.body("plain").strip() == "Hello" and mail.body("html") == ""
    mailboxes.close()


@pytest.mark.parametrize(
    ("recipient", "code"),
    [("permfail@a.b", "550"), ("tempfail1@a.b", "451"), ("421-x@a.b", "421"), ("a@b.c", None)],
)
def test_answers_follow_from_the_recipient(recipient: str, code: str | None) -> None:
    answer = answer_to(recipient, False)
    assert (answer or "")[:3] == (code or "")


def test_people_differ_and_one_seed_repeats() -> None:
    tempers = Counter(temper_of(7, f"p{i}@x.example") for i in range(4000))
    for name, share in SHARES:
        assert abs(tempers[name] / 4000 - share) < 0.03
    first = [acts_on(7, f"p{i}@x.example", HTML, "http://h/u/1") for i in range(500)]
    assert first == [acts_on(7, f"p{i}@x.example", HTML, "http://h/u/1") for i in range(500)]
    kinds = Counter(act.kind for acts in first for act in acts)
    assert kinds["open"] > kinds["click"] > kinds["buy"] > 0 and kinds["unsubscribe"] > 0
    assert all(act.url != "mailto:a@b" for acts in first for act in acts)
