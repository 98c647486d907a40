"""MIME messages from parts (RFC 5322, 2045 to 2047), built as bytes without an object tree.

Two promises. What comes out is 7-bit clean with lines of at most 998 octets, whatever went in, so
it passes receivers without 8BITMIME. And no value can end its header line: every header text goes
through ``header_text``, which leaves no CR, LF, other control or bidirectional override behind.
``email.message`` parses what is built here (tests hold the two equal) but builds nothing.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from manta.errors import InvalidRequest
from manta.ids import MessageRef, encode_id

HEADER_CHARACTERS_MAX = 400
ADDRESS_CHARACTERS_MAX = 254  # RFC 5321 §4.5.3.1.3, less the brackets
LINE_BYTES_MAX = 998  # RFC 5322 §2.1.1

# Controls, line separators, bidirectional overrides and isolates, surrogates.
_UNSAFE_IN_HEADER = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufff9-\ufffb]+"
)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_PHRASE = re.compile(r"[A-Za-z0-9 !#$%&'*+/=?^_`{|}~-]*", re.ASCII)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WORD_BYTES = 45  # of UTF-8 in one encoded word: 60 characters of base64 in 72 (RFC 2047 §2: 75)


# -- header values ---------------------------------------------------------------------------------


def header_text(value: str, limit: int = HEADER_CHARACTERS_MAX) -> str:
    """The value on one line: unsafe characters become one blank, at most ``limit`` characters."""
    if not value.isprintable():
        value = _UNSAFE_IN_HEADER.sub(" ", value)
    value = " ".join(value.split())
    return value if len(value) <= limit else value[: limit - 1] + "…"


def unstructured(value: str) -> str:
    """A Subject-like value in ASCII, as encoded words where needed (RFC 2047)."""
    value = header_text(value)
    # A literal "=?" is encoded as well: raw, readers would decode what the writer did not mean.
    if value.isascii() and "=?" not in value:
        return value
    return encoded_words(value)


def encoded_words(value: str) -> str:
    """Base64 encoded words of at most 72 characters, cut between characters (RFC 2047 §5)."""
    raw = value.encode("utf-8")
    words = []
    start = 0
    while start < len(raw):
        end = min(start + _WORD_BYTES, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        text = binascii.b2a_base64(raw[start:end], newline=False).decode("ascii")
        words.append(f"=?utf-8?b?{text}?=")
        start = end
    return "\r\n ".join(words)


def mailbox(name: str, address: str) -> str:
    """A From-like value: display name, quoted or encoded as needed, and address."""
    address = check_address(address)
    name = header_text(name, 120)
    if not name:
        return address
    if not name.isascii() or "=?" in name:
        return f"{encoded_words(name)} <{address}>"
    if _PHRASE.fullmatch(name):
        return f"{name} <{address}>"
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}" <{address}>'


def check_address(address: object, path: str = "email") -> str:
    """The address if it may stand in an envelope and a header: an ASCII dot-atom at a domain.

    Raises ``InvalidRequest`` for anything else; mails to addresses that need SMTPUTF8 (RFC 6531)
    are refused here, since a receiver may lack it.
    """
    if (
        not isinstance(address, str)
        or len(address) > ADDRESS_CHARACTERS_MAX
        or not _ADDRESS.fullmatch(address)
        or address.index("@") > 64
    ):
        raise InvalidRequest(
            f"not an address mail can go to: {address!r:.80}",
            path=path,
            expected="name@domain, ASCII",
        )
    return address


@lru_cache(maxsize=64)
def date_text(now: datetime) -> str:
    """RFC 5322 §3.3, in UTC."""
    return (
        f"{_DAYS[now.weekday()]}, {now.day:02d} {_MONTHS[now.month - 1]} {now.year:04d} "
        f"{now.hour:02d}:{now.minute:02d}:{now.second:02d} +0000"
    )


def message_id(ref: MessageRef, domain: str) -> str:
    """The same message always has the same id, so a repeated delivery can be recognised."""
    return f"<{encode_id(ref[0])}.{encode_id(ref[1])}@{domain}>"


# -- bodies ----------------------------------------------------------------------------------------


def encode_body(text: str) -> tuple[str, bytes]:
    """(Content-Transfer-Encoding, octets ending in CRLF) of a text with ``\\n`` line ends.

    ASCII with short lines goes as it is; otherwise quoted-printable, or base64 where more than a
    sixth of the octets would need escaping.
    """
    if not text.endswith("\n"):
        text += "\n"
    if text.isascii():
        raw = text.encode("ascii").replace(b"\n", b"\r\n")
        if not _has_long_line(raw):
            return "7bit", raw
        return "quoted-printable", binascii.b2a_qp(raw)
    raw = text.encode("utf-8")
    is_plain = 2 * (len(raw) - len(text)) < len(raw) // 3
    raw = raw.replace(b"\n", b"\r\n")
    if is_plain:
        # b2a_qp writes soft breaks in the style of the first line end it meets: CRLF here.
        return "quoted-printable", binascii.b2a_qp(raw)
    return "base64", _base64_lines(raw)


def _has_long_line(raw: bytes) -> bool:
    """Whether a line of the octets, which end in LF, is too long with its CR."""
    start = 0
    while len(raw) - start > LINE_BYTES_MAX:
        start = raw.rfind(b"\n", start, start + LINE_BYTES_MAX) + 1
        if not start:
            return True
    return False


def _base64_lines(raw: bytes) -> bytes:
    text = binascii.b2a_base64(raw, newline=False)
    return b"".join(text[i : i + 76] + b"\r\n" for i in range(0, len(text), 76))


def alternative(text: str, html: str, boundary: str) -> bytes:
    """The body of a multipart/alternative, plain text first (RFC 2046 §5.1.4).

    The caller picks a boundary that nobody who can influence the parts can guess.
    """
    text_encoding, text_body = encode_body(text)
    html_encoding, html_body = encode_body(html)
    head = (
        f"--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: {text_encoding}\r\n\r\n"
    )
    middle = (
        f"\r\n--{boundary}\r\nContent-Type: text/html; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: {html_encoding}\r\n\r\n"
    )
    return b"".join(
        (
            head.encode("ascii"),
            text_body,
            middle.encode("ascii"),
            html_body,
            f"\r\n--{boundary}--\r\n".encode("ascii"),
        )
    )


def alternative_type(boundary: str) -> str:
    return f'multipart/alternative; boundary="{boundary}"'


def fields_text(fields: Sequence[tuple[str, str]]) -> bytes:
    """The header section of (name, value) pairs that went through the functions above."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("ascii")
