"""MIME: what is built parses back to what was meant, and no value leaves its place."""

from __future__ import annotations

import email
import email.policy
from datetime import datetime
from email.message import EmailMessage
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.content import mime
from manta.content.templates import clean_text
from manta.errors import InvalidRequest
from manta.ids import MessageRef

BOUNDARY = "=_5f0c0ffee"
texts = st.text(max_size=400)
long_texts = st.text("aé漢 \n.=-F\u00a0\U0001f600", max_size=3_000)


def parsed(fields: list[tuple[str, str]], body: bytes) -> EmailMessage:
    raw = mime.fields_text(fields) + b"\r\n" + body
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def built(subject: str, name: str, text: str, html: str) -> tuple[EmailMessage, bytes]:
    fields = [
        ("From", mime.mailbox(name, "hello@example.com")),
        ("To", "bob@example.org"),
        ("Subject", mime.unstructured(subject)),
        ("Date", mime.date_text(datetime(2026, 2, 3, 4, 5, 6))),
        ("Message-ID", mime.message_id(MessageRef(5, -5), "example.com")),
        ("MIME-Version", "1.0"),
        ("Content-Type", mime.alternative_type(BOUNDARY)),
    ]
    body = mime.alternative(clean_text(text), clean_text(html), BOUNDARY)
    return parsed(fields, body), mime.fields_text(fields) + b"\r\n" + body


@given(texts, texts, long_texts, st.one_of(texts, long_texts))
@settings(max_examples=150, deadline=None)
def test_a_parser_reads_what_was_meant(subject: str, name: str, text: str, html: str) -> None:
    message, raw = built(subject, name, text, html)
    assert message["subject"] == mime.header_text(subject)
    sender = message["from"].addresses[0]
    assert sender.addr_spec == "hello@example.com"
    shown = mime.header_text(name, 120)
    if len(shown.encode()) <= 45:
        assert sender.display_name == shown
    else:  # the parser puts a blank between encoded words of a name, against RFC 2047 §6.2
        assert sender.display_name.replace(" ", "") == shown.replace(" ", "")
    assert message["to"].addresses[0].addr_spec == "bob@example.org"
    assert len(message.keys()) == 7
    for part, meant in zip(message.iter_parts(), (text, html), strict=True):
        assert isinstance(part, EmailMessage)
        meant = clean_text(meant)
        assert part.get_content().replace("\r\n", "\n").rstrip("\n") == meant.rstrip("\n")
    assert raw.isascii()
    assert b"\n" not in raw.replace(b"\r\n", b"") and b"\r" not in raw.replace(b"\r\n", b"")
    assert max(map(len, raw.split(b"\r\n"))) <= mime.LINE_BYTES_MAX
    for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        assert line.strip() and len(line) < 500


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain", "7bit"),
        ("plain\n" * 1_000, "7bit"),
        ("x" * 996, "7bit"),
        ("x" * 997, "quoted-printable"),
        ("caf\u00e9 " + "latin text " * 20, "quoted-printable"),
        ("こんにちは世界", "base64"),
        ("", "7bit"),
    ],
)
def test_the_smallest_safe_encoding_is_chosen(text: str, encoding: str) -> None:
    chosen, raw = mime.encode_body(text)
    assert chosen == encoding
    limit = 998 if encoding == "7bit" else 76
    assert raw.endswith(b"\r\n") and max(map(len, raw.split(b"\r\n"))) <= limit


@pytest.mark.parametrize(
    "attack",
    [
        "Bob\r\nBcc: eve@example.net",
        "Bob\nBcc: eve@example.net",
        "Bob\r\rBcc: eve@example.net",
        "Bob\r\n\r\n<html>",
        "Bob\x00\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029Bcc: eve@example.net",
        "=?utf-8?q?Bob=0D=0ABcc:_eve=40example.net?=",
        "Bob\u202egpj.exe",
        "Bob\ud800",
        '"Bob" <eve@example.net>, x',
        "Bob <eve@example.net>;",
        "Bob (comment \\",
        'quo"te\\',
        "\u200f\u2066Bob",
        "é" * 5_000,
        "x" * 5_000,
    ],
)
def test_no_value_leaves_its_header(attack: str) -> None:
    message, raw = built(attack, attack, "t", "h")
    assert message.keys() == [
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "MIME-Version",
        "Content-Type",
    ]
    assert [address.addr_spec for address in message["from"].addresses] == ["hello@example.com"]
    for value in (message["subject"], message["from"].addresses[0].display_name):
        assert not any(c < " " or c in "\x7f\x85\u2028\u2029\u202e\u200f\u2066" for c in value)
    assert b"\r\nBcc:" not in raw


def test_encoded_words_keep_characters_whole() -> None:
    text = mime.encoded_words("a" + "\U0001f600" * 60)
    for word in text.split("\r\n "):
        assert len(word) <= 75
        assert parsed([("Subject", word)], b"")["subject"].strip("a\U0001f600") == ""


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bob",
        "bob@",
        "@example.org",
        "bob@example.org\r\nDATA",
        "bob@exa mple.org",
        "bob@example.org>",
        "bob@example..org",
        ".bob@example.org",
        "bob@-example.org",
        "bøb@example.org",
        "bob@exämple.org",
        "b" * 65 + "@example.org",
        "bob@" + "a." * 130 + "org",
        None,
        5,
        b"bob@example.org",
    ],
)
def test_addresses_that_mail_cannot_go_to(address: object) -> None:
    with pytest.raises(InvalidRequest):
        mime.check_address(address)


def test_good_addresses() -> None:
    for address in ("bob@example.org", "o'neil+x/y@xn--bcher-kva.example", "a.b@localhost"):
        assert mime.check_address(address) == address


def test_dates_and_ids() -> None:
    now = datetime(2026, 12, 31, 23, 59, 58, 999_999)
    assert mime.date_text(now) == "Thu, 31 Dec 2026 23:59:58 +0000"
    assert parsedate_to_datetime(mime.date_text(now)).replace(tzinfo=None) == now.replace(
        microsecond=0
    )
    first = mime.message_id(MessageRef(1, 2), "example.com")
    assert first == mime.message_id(MessageRef(1, 2), "example.com")
    assert first != mime.message_id(MessageRef(2, 1), "example.com")
