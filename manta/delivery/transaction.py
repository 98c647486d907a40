"""Mail transactions over one SMTP connection, without sockets (RFC 5321, RFC 2920).

Bytes from the server go in, bytes for the server come out; somebody else owns the socket and the
clock. Replies are matched to commands by their order alone, which is all that SMTP offers, so one
reply that nobody waits for makes the connection worthless.

With PIPELINING the commands of a message travel in one group that ends with DATA, and the group of
the next message travels right behind the dot of the former (RFC 2920 §3.1): one round trip a
message. Without it each command waits for its reply. A DATA that is answered 354 although its
recipient was refused gets a lone dot.

What is known of a message is decided here and nowhere else. Until its content and the final dot
have been handed over it cannot have been delivered (``not_sent``); from then until the reply it
may have been (``uncertain``); the reply decides. Nothing is ever tried twice.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from manta.delivery.replies import Reply, Verdict, classify, printable

LINE_BYTES_MAX = 2048  # RFC 5321 §4.5.3.1.5 says 512; real servers write longer ones
REPLY_LINES_MAX = 64
REPLY_BYTES_MAX = 16_384
PATH_BYTES_MAX = 254  # RFC 5321 §4.5.3.1.3 less the angle brackets
LOCAL_PART_BYTES_MAX = 64

_LINE_END = re.compile(rb"\r\n|\r|\n")
# Patterns that begin with one fixed octet: searching for that is much faster than for two.
_LONE_CR = re.compile(rb"\r(?!\n)")
_LF_TO_CHANGE = re.compile(rb"\n(?:\.|(?<!\r\n))")  # before a dot, or without a CR
# A path as we write it into a command: no control, no space, no angle bracket can occur in it,
# nor (in UTF-8) a C1 control or a separator that some server may take for the end of a line.
_PATH = re.compile(
    '[^\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]+@[^\x00-\x20\x7f-\xa0<>@"\\\\,;:()'
    "\u2028\u2029\ud800-\udfff]+"
    "|[^\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]+@\\[[0-9A-Za-z.:]+\\]"
)


class Envelope(NamedTuple):
    """One message to one person. ``data`` is the whole message with CRLF line ends, unstuffed;
    ``mail_from`` may be empty (the null return path); ``ref`` comes back untouched."""

    mail_from: str
    rcpt_to: str
    data: bytes
    ref: Any = None


@dataclass(frozen=True)
class Offers:
    """What the server offered in its answer to EHLO."""

    pipelining: bool = False
    eight_bit: bool = False  # 8BITMIME
    utf8: bool = False  # SMTPUTF8
    size: bool = False
    size_bytes_max: int = 0  # 0: not limited


class Step(IntEnum):
    """A command that waits for its reply."""

    MAIL = 0
    RCPT = 1
    DATA = 2
    CONTENT = 3  # content and final dot
    LONE_DOT = 4  # ends a DATA whose recipient was refused
    RESET = 5


class ProtocolViolation(Exception):
    """The server said something that SMTP does not allow: the connection is worthless."""


class ReplyParser:
    """Cuts the server's bytes into complete replies; keeps at most one unfinished reply."""

    __slots__ = ("_bytes", "_lines", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._lines: list[bytes] = []  # of a reply whose last line has not come yet
        self._bytes = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The replies that these bytes complete, as (code, text of all lines)."""
        lines = (self._tail + data if self._tail else data).split(b"\n")
        self._tail = lines.pop()
        replies = []
        for line in lines:
            if len(line) > LINE_BYTES_MAX:
                raise ProtocolViolation(f"reply line longer than {LINE_BYTES_MAX} bytes")
            code = line[:3]
            mark = line[3:4]
            if not code.isdigit() or mark not in (b" ", b"-", b"\r", b""):
                raise ProtocolViolation(f"not a reply: {_shown(line)}")
            if mark == b"-" or self._lines:
                text = self._continue(code, mark, line)
                if text is None:
                    continue
            else:
                text = line[4:].rstrip()
            replies.append((int(code), text))
        if len(self._tail) > LINE_BYTES_MAX:
            raise ProtocolViolation(f"reply line longer than {LINE_BYTES_MAX} bytes")
        return replies

    @property
    def has_remainder(self) -> bool:
        """Whether a reply has begun and not ended."""
        return bool(self._tail or self._lines)

    def _continue(self, code: bytes, mark: bytes, line: bytes) -> bytes | None:
        """Takes a line of a multi-line reply; its whole text with the last line."""
        lines = self._lines
        if lines and lines[0][:3] != code:
            raise ProtocolViolation(f"reply changes its code: {_shown(line)}")
        lines.append(line)
        self._bytes += len(line)
        if len(lines) > REPLY_LINES_MAX or self._bytes > REPLY_BYTES_MAX:
            raise ProtocolViolation(
                f"reply of more than {REPLY_LINES_MAX} lines or {REPLY_BYTES_MAX} bytes"
            )
        if mark == b"-":
            return None
        text = b" ".join(part[4:].strip() for part in lines)
        self._lines = []
        self._bytes = 0
        return text


class Transactions:
    """The transactions of one burst. Write what ``start`` and ``receive`` return; when
    ``finished``, ``replies`` holds one outcome for each envelope, in order.

    ``broken`` says that the connection must be closed and not used again.
    """

    __slots__ = (
        "_after_dot",
        "_envelopes",
        "_next",
        "_offers",
        "_parser",
        "_refusals",
        "_stopped",
        "_waiting",
        "begun",
        "broken",
        "finished",
        "received",
        "replies",
    )

    def __init__(self, envelopes: Sequence[Envelope], offers: Offers) -> None:
        self._envelopes = envelopes
        self._offers = offers
        self._parser = ReplyParser()
        self._waiting: deque[tuple[Step, int]] = deque()
        self._refusals: dict[int, Reply] = {}
        self._next = 0
        self._stopped = ""
        self._after_dot = 0  # bytes written behind the last final dot
        self.begun = 0  # transactions begun at the server
        self.received = 0  # complete replies: what counts as progress against a time limit
        self.broken = False
        self.finished = False
        self.replies: list[Reply | None] = [None] * len(envelopes)

    def start(self) -> bytes:
        """The first bytes to write."""
        out = self._begin_next()
        self._finish_if_done()
        return out

    @property
    def waits_for(self) -> Step | None:
        """The command whose reply is due now: it names the time limit that applies."""
        return self._waiting[0][0] if self._waiting else None

    def stop(self, why: str) -> None:
        """Begins no further message. Those begun go on to their reply, the others are not sent."""
        self._stopped = why

    def receive(self, data: bytes) -> bytes:
        """Takes bytes from the server; returns what to write next.

        What is returned has not gone out yet, so nothing of it can have been answered.
        """
        if self.finished:
            return b""
        out, answerable = b"", len(self._waiting)
        try:
            replies = self._parser.feed(data)
            self.received += len(replies)
            for place, (code, text) in enumerate(replies):
                if not self._waiting or (place >= answerable and code != 421):
                    raise ProtocolViolation(f"reply without a command: {code} {_shown(text)}")
                step, index = self._waiting.popleft()
                if code == 421:
                    self._close(step, index, text)
                    return b""
                out += _HANDLERS[step](self, index, code, text)
        except ProtocolViolation as violation:
            self.lost(str(violation), len(out))
            return b""
        self._finish_if_done()
        return out

    def lost(self, why: str, unwritten_bytes: int = 0) -> None:
        """The connection is gone or given up; ``unwritten_bytes`` of the last output never left.

        What had its final dot handed over is uncertain, everything else was not sent.
        """
        if self.finished:
            return
        self.broken = self.finished = True
        for step, index in self._waiting:
            # The CRLF behind the dot is not waited for: some server may do without it.
            if step is Step.CONTENT and unwritten_bytes <= self._after_dot + 2:
                self.replies[index] = Reply(
                    Verdict.UNCERTAIN, 0, printable(why), "no reply after the message"
                )
        self._give_back(why)

    # -- sending -----------------------------------------------------------------------------------

    def _begin_next(self) -> bytes:
        """The commands of the next message that can be sent on this connection, if any."""
        envelopes = self._envelopes
        while self._next < len(envelopes) and not self._stopped:
            index = self._next
            self._next += 1
            envelope = envelopes[index]
            refusal = refusal_of(envelope, self._offers)
            if refusal is not None:
                self.replies[index] = refusal
                continue
            self.begun += 1
            mail, rcpt = _commands(envelope, self._offers)
            self._waiting.append((Step.MAIL, index))
            if not self._offers.pipelining:
                return mail
            self._waiting.append((Step.RCPT, index))
            self._waiting.append((Step.DATA, index))
            return mail + rcpt + b"DATA\r\n"
        return b""

    # -- replies: one handler for each step --------------------------------------------------------

    def _on_mail(self, index: int, code: int, text: bytes) -> bytes:
        if code == 503:  # about the connection's past, or a missing AUTH: never about the recipient
            raise ProtocolViolation(f"MAIL out of sequence: 503 {_shown(text)}")
        if not 200 <= code <= 299:
            self._refuse(index, code, text)
        if self._offers.pipelining:
            return b""
        if index in self._refusals:
            self.replies[index] = self._refusals.pop(index)
            return self._begin_next()
        self._waiting.append((Step.RCPT, index))
        return _commands(self._envelopes[index], self._offers)[1]

    def _on_rcpt(self, index: int, code: int, text: bytes) -> bytes:
        if not 200 <= code <= 299:
            self._refuse(index, code, text)
        if self._offers.pipelining:
            return b""
        if index in self._refusals:
            return self._reset(index)
        self._waiting.append((Step.DATA, index))
        return b"DATA\r\n"

    def _on_data(self, index: int, code: int, text: bytes) -> bytes:
        if code != 354:
            if index not in self._refusals:
                self._refuse(index, code, text)
            return self._reset(index)
        if index in self._refusals:
            self._waiting.append((Step.LONE_DOT, index))
            return b".\r\n" + self._begin_next_pipelined()
        self._waiting.append((Step.CONTENT, index))
        behind = self._begin_next_pipelined()
        self._after_dot = len(behind)
        return stuffed(self._envelopes[index].data) + behind

    def _on_content(self, index: int, code: int, text: bytes) -> bytes:
        if not (200 <= code <= 299 or 400 <= code <= 599):
            self._waiting.appendleft((Step.CONTENT, index))
            raise ProtocolViolation(f"unfit reply to the message: {code} {_shown(text)}")
        self.replies[index] = classify(code, text.decode("utf-8", "replace"))
        return b"" if self._offers.pipelining else self._begin_next()

    def _on_lone_dot(self, index: int, code: int, text: bytes) -> bytes:
        self.replies[index] = self._refusals.pop(index)
        return b"" if self._offers.pipelining else self._begin_next()

    def _on_reset(self, index: int, code: int, text: bytes) -> bytes:
        if code != 250:
            raise ProtocolViolation(f"RSET refused: {code} {_shown(text)}")
        return b"" if self._offers.pipelining else self._begin_next()

    def _begin_next_pipelined(self) -> bytes:
        return self._begin_next() if self._offers.pipelining else b""

    def _reset(self, index: int) -> bytes:
        """Ends a refused transaction, of which the server may still hold the sender."""
        self.replies[index] = self._refusals.pop(index)
        self._waiting.append((Step.RESET, index))
        return b"RSET\r\n" + self._begin_next_pipelined()

    def _refuse(self, index: int, code: int, text: bytes) -> None:
        """Notes the first refusal of a message: the later ones only follow from it."""
        if not 400 <= code <= 599:
            raise ProtocolViolation(f"unfit reply: {code} {_shown(text)}")
        self._refusals.setdefault(index, classify(code, text.decode("utf-8", "replace")))

    # -- endings -----------------------------------------------------------------------------------

    def _close(self, step: Step, index: int, text: bytes) -> None:
        """421: the server closes (RFC 5321 §3.8). What it answered is deferred, nothing begun
        after that was taken."""
        if self.replies[index] is None:
            self._refuse(index, 421, text)
        self._waiting.clear()
        self.broken = self.finished = True
        self._give_back(f"server closed the connection: 421 {_shown(text)}")

    def _finish_if_done(self) -> None:
        if not self._waiting:
            self.finished = True
            self.broken = self._parser.has_remainder
            self._give_back(self._stopped)

    def _give_back(self, why: str) -> None:
        """Every message without an outcome: refused, if the server had said so, else not sent."""
        for index, reply in enumerate(self.replies):
            if reply is None:
                self.replies[index] = self._refusals.get(index) or Reply(
                    Verdict.NOT_SENT, 0, printable(why), "not sent"
                )


_HANDLERS = (
    Transactions._on_mail,
    Transactions._on_rcpt,
    Transactions._on_data,
    Transactions._on_content,
    Transactions._on_lone_dot,
    Transactions._on_reset,
)


def refusal_of(envelope: Envelope, offers: Offers) -> Reply | None:
    """Why this message cannot be sent over a connection with these offers, or ``None``."""
    if not is_path(envelope.rcpt_to):
        return _impossible("recipient address is not valid in SMTP", envelope.rcpt_to)
    if envelope.mail_from and not is_path(envelope.mail_from):
        return _impossible("return path is not valid in SMTP", envelope.mail_from)
    if not offers.utf8 and not (envelope.rcpt_to.isascii() and envelope.mail_from.isascii()):
        return _impossible(
            "address needs SMTPUTF8, which the server does not offer", envelope.rcpt_to
        )
    if not offers.eight_bit and not envelope.data.isascii():
        return _impossible("message needs 8BITMIME, which the server does not offer", "")
    if 0 < offers.size_bytes_max < len(envelope.data):
        return _impossible(
            "message is too big for the server",
            f"{len(envelope.data)} bytes, at most {offers.size_bytes_max}",
        )
    return None


def is_path(address: str) -> bool:
    """Whether the address can stand in a command: it is checked for safety, not for existence."""
    if not _PATH.fullmatch(address):
        return False
    if len(address) <= LOCAL_PART_BYTES_MAX and address.isascii():
        return True
    local_part = address.rpartition("@")[0]
    return (
        len(address.encode()) <= PATH_BYTES_MAX and len(local_part.encode()) <= LOCAL_PART_BYTES_MAX
    )


def stuffed(data: bytes) -> bytes:
    """The message as it travels after DATA: CRLF line ends, dots stuffed, final dot appended.

    A bare CR or LF is made CRLF, since some servers take one for the end of a line, and a dot on
    such a line for the end of the message (RFC 5321 §2.3.8, §4.1.1.4).
    """
    if _LONE_CR.search(data) or _LF_TO_CHANGE.search(data):
        data = _LINE_END.sub(b"\r\n", data).replace(b"\n.", b"\n..")
    if data.startswith(b"."):
        data = b"." + data
    return data + (b".\r\n" if data.endswith(b"\r\n") else b"\r\n.\r\n")


def _commands(envelope: Envelope, offers: Offers) -> tuple[bytes, bytes]:
    """MAIL and RCPT of a message."""
    parameters = f" SIZE={len(envelope.data)}" if offers.size else ""
    if offers.eight_bit and not envelope.data.isascii():
        parameters += " BODY=8BITMIME"
    if not (envelope.rcpt_to.isascii() and envelope.mail_from.isascii()):
        parameters += " SMTPUTF8"
    return (
        f"MAIL FROM:<{envelope.mail_from}>{parameters}\r\n".encode(),
        f"RCPT TO:<{envelope.rcpt_to}>\r\n".encode(),
    )


def _impossible(reason: str, text: str) -> Reply:
    return Reply(Verdict.FAILED, 0, printable(text), reason)


def _shown(raw: bytes) -> str:
    return printable(raw.decode("utf-8", "replace").rstrip("\r\n"), 80)
