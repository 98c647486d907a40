"""A mail from outside taken apart, within bounds whatever is in it (RFC 5322, RFC 2045 to 2047).

Bounces, complaints and replies come from anybody, so this reader owns the promise that no mail
costs much: it looks at the first `BYTES_MAX` bytes (and at one report further on, found by its
type), at most `PARTS_MAX` parts in `DEPTH_MAX` levels, `HEADER_BYTES_MAX` of header a part. It
never raises: what is not as the RFCs say is read as text. Every step is linear in what it looks
at; no pattern backtracks. Lines may end in LF, CRLF or a bare CR.
"""

from __future__ import annotations

import binascii
import codecs
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import MessageError
from email.header import decode_header

BYTES_MAX = 256 * 1024
REPORT_BYTES_MAX = 64 * 1024  # of a report that stands beyond BYTES_MAX
SEARCHED_BYTES_MAX = 64 << 20  # where such a report is looked for
HEADER_BYTES_MAX = 64 * 1024
FIELDS_MAX = 500
VALUE_CHARACTERS_MAX = 4_000
WORDS_CHARACTERS_MAX = 1_000  # of a field whose encoded words are decoded
PARTS_MAX = 100
DEPTH_MAX = 10

MULTIPART, MESSAGE = "multipart/", "message/"
_MESSAGES = frozenset({"message/rfc822", "message/global", "message/news"})
_LEADING = re.compile(r"\A(?:[ \t]{0,1000}\n){1,100}")  # blank lines that mail stores leave behind
_FIELD = re.compile(r"([!-9;-~]{1,100})[ \t]*:[ \t]*(.*)", re.DOTALL)
_PARAMETER = re.compile(r';\s*([\w*-]{1,40})\s*=\s*(?:"([^"]{0,300})"|([^\s;"]{1,300}))')
_TAG = re.compile(r"<[^<>]{0,2000}>")
_BREAK = re.compile(r"<(?:br|/?p|/?div|/?tr|/?li|/?h\d|/?table|/?ul)\b[^<>]{0,500}>", re.IGNORECASE)
_LONG_REFERENCE = re.compile(r"&#[0-9a-fA-FxX]{9,}")
_UNSEEN = re.compile(r"<(style|script|head|title)\b[^<>]{0,500}>", re.IGNORECASE)
# Charsets of mail. Others (zip, idna, unicode_escape ...) are codecs too, and no business of mail.
_CHARSET = re.compile(
    r"(?:utf-?8|us-ascii|ascii|iso-?8859|iso-?2022|latin|l\d|windows-?|cp-?\d|koi8|euc|shift|sjis|"
    r"x-sjis|gb|big5|ks_c|mac|tis-620|hz)",
    re.IGNORECASE,
)


class Fields:
    """Header fields in order; names in lower case, values unfolded, not decoded."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self.all = fields
        self._first: dict[str, str] = {}
        for name, value in fields:
            self._first.setdefault(name, value)

    def get(self, name: str) -> str:
        return self._first.get(name, "")

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.all if key == name]

    def __contains__(self, name: str) -> bool:
        return name in self._first


@dataclass
class Part:
    """``raw`` is the body as it came; ``parts`` those of a multipart, or the one of a message/*."""

    fields: Fields
    content_type: str
    parameters: dict[str, str]
    raw: str
    parts: list[Part] = field(default_factory=list)

    def data(self) -> bytes:
        """The body without its transfer encoding (RFC 2045 §6)."""
        body = self.raw.encode("latin-1", "replace")
        encoding = self.fields.get("content-transfer-encoding").strip().lower()
        if encoding == "base64":
            return _base64(body)
        if encoding == "quoted-printable":
            return binascii.a2b_qp(body)
        return body

    def text(self) -> str:
        """The body as text; of HTML, what a reader sees."""
        text = decoded(self.data(), self.parameters.get("charset", ""))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return html_text(text) if self.content_type == "text/html" else text

    def walk(self, into_messages: bool = False) -> Iterator[Part]:
        """This part and those inside, in order; without those of a mail that is enclosed."""
        yield self
        if into_messages or self.content_type not in _MESSAGES:
            for part in self.parts:
                yield from part.walk(into_messages)


def parse(raw: bytes) -> Part:
    """The mail as a tree. Never raises."""
    text = raw[:BYTES_MAX].decode("latin-1")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    budget = [PARTS_MAX]
    mail = _part(_LEADING.sub("", text, 1), 0, budget, "text/plain")
    if len(raw) > BYTES_MAX:
        _add_report_beyond(mail, raw, budget)
    return mail


def _add_report_beyond(mail: Part, raw: bytes, budget: list[int]) -> None:
    """A report that follows a long first part, as some systems order them."""
    for name in (b"message/delivery-status", b"message/feedback-report"):
        at = raw.find(name, BYTES_MAX, SEARCHED_BYTES_MAX)
        if at >= 0:
            text = raw[at : at + REPORT_BYTES_MAX].decode("latin-1")
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            text = "Content-Type: " + text.partition("\n--")[0]
            mail.parts.append(_part(text, 1, budget, "text/plain"))
            return


def split_fields(text: str) -> tuple[Fields, str]:
    """The header fields at the start, and what follows them."""
    head, _, body = text.partition("\n\n")
    if text.startswith("\n"):
        return Fields([]), text[1:]
    if len(head) > HEADER_BYTES_MAX:
        head, body = text[:HEADER_BYTES_MAX], text[HEADER_BYTES_MAX:]
    fields: list[tuple[str, str]] = []
    lines = head.split("\n")
    for number, line in enumerate(lines):
        if line[:1] in (" ", "\t") and fields:
            name, value = fields[-1]
            if len(value) < VALUE_CHARACTERS_MAX:
                fields[-1] = (name, f"{value} {line.strip()}")
            continue
        found = _FIELD.match(line)
        if found and len(fields) < FIELDS_MAX:
            value = found.group(2).strip()[:VALUE_CHARACTERS_MAX]
            fields.append((found.group(1).lower(), value))
        elif not line.startswith(("From ", ">From ")) and not found:
            body = "\n".join(lines[number:]) + "\n\n" + body
            break
    return Fields(fields), body


def _part(text: str, depth: int, budget: list[int], default_type: str) -> Part:
    budget[0] -= 1
    fields, body = split_fields(text)
    content_type, parameters = media_type(fields.get("content-type") or default_type)
    part = Part(fields, content_type, parameters, body)
    if depth >= DEPTH_MAX:
        return part
    if content_type.startswith(MULTIPART):
        inner = "message/rfc822" if content_type == "multipart/digest" else "text/plain"
        for piece in _pieces(body, parameters.get("boundary", ""), budget[0]):
            if budget[0] <= 0:
                break
            part.parts.append(_part(piece, depth + 1, budget, inner))
    elif content_type in _MESSAGES and budget[0] > 0:
        enclosed = part.data().decode("latin-1").replace("\r\n", "\n").lstrip("\n")
        part.parts.append(_part(enclosed, depth + 1, budget, "text/plain"))
    return part


def _pieces(body: str, boundary: str, pieces_max: int) -> list[str]:
    """What stands between the boundary lines (RFC 2046 §5.1.1); nothing where there are none."""
    if not boundary or pieces_max <= 0:
        return []
    pieces = ("\n" + body).split("\n--" + boundary, pieces_max + 1)[1:]
    found = []
    for piece in pieces:
        rest, _, after = piece.partition("\n")
        if rest.startswith("--"):
            break
        if rest.strip() == "":
            found.append(after)
    return found


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Type and parameters of a Content-Type (RFC 2045 §5.1), in lower case but for the values."""
    kind = value.partition(";")[0].strip().lower()
    parameters: dict[str, str] = {}
    for found in _PARAMETER.finditer(value[:2_000]):
        quoted, bare = found.group(2), found.group(3)
        parameters.setdefault(found.group(1).lower(), quoted if quoted is not None else bare)
    return kind, parameters


def _base64(body: bytes) -> bytes:
    letters = bytes(c for c in body.translate(None, b" \t\n\r") if c in _BASE64)
    try:
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))
    except binascii.Error:
        return binascii.a2b_base64(letters[: len(letters) // 4 * 4 - 4] + b"")


_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def decoded(data: bytes, charset: str = "") -> str:
    """Text of bytes: in the charset named, else UTF-8, else Latin-1, which takes anything."""
    if _CHARSET.match(charset) and charset.lower() not in ("us-ascii", "ascii"):
        try:
            return codecs.decode(data, charset, "replace")
        except (LookupError, ValueError, TypeError):
            pass
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def html_text(text: str) -> str:
    """What a reader sees of HTML, roughly: for finding addresses and words, not for showing."""
    lowered = text.lower() if text.isascii() else "".join(c.lower()[:1] or c for c in text)
    shown, position = [], 0
    for found in _UNSEEN.finditer(text):
        if found.start() < position:
            continue
        end = lowered.find(f"</{found.group(1).lower()}", found.end())
        if end < 0:
            break  # not closed: what follows is taken as seen, and is not searched again
        shown.append(text[position : found.start()])
        position = end
    text = " ".join(("".join(shown) + text[position:]).split())
    text = _TAG.sub(" ", _BREAK.sub("\n", text))
    # References of thousands of digits are no characters, and int() refuses them.
    return html.unescape(_LONG_REFERENCE.sub(" ", text)).replace("\xa0", " ")


def words_of(value: str) -> str:
    """A field's text with its encoded words decoded (RFC 2047), on one line."""
    value = value[:WORDS_CHARACTERS_MAX]
    if "=?" not in value:
        return decoded(value.encode("latin-1", "replace"))
    try:
        pieces = decode_header(value)
    except (MessageError, ValueError, AssertionError):  # binascii.Error is a ValueError
        return value
    text = "".join(
        piece if isinstance(piece, str) else decoded(piece, charset or "")
        for piece, charset in pieces
    )
    return " ".join(text.split())
