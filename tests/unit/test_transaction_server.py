"""Against any server that keeps to SMTP, whatever it refuses and wherever the line is cut:
accepted means delivered once, and everything but accepted or uncertain means not delivered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from manta.delivery.replies import Verdict
from manta.delivery.transaction import Envelope, Offers, Transactions

MESSAGE = b"Subject: x\r\n\r\n.hidden dot\r\nfor "
REFUSALS = (b"450 4.2.1 not now\r\n", b"550 5.1.1 no\r\n", b"554-5.7.1 no\r\n554 5.7.1 never\r\n")


@dataclass
class Server:
    """A server of RFC 5321 with PIPELINING. ``random`` says what it likes; ``closes_at`` after how
    many commands it answers 421 and is gone."""

    random: Random
    refuses: float
    lenient: bool  # 354 although there is no recipient
    closes_at: int
    delivered: Counter[str] = field(default_factory=Counter)
    gone: bool = False
    _buffer: bytes = b""
    _sender: bool = False
    _recipient: str = ""
    _in_data: bool = False
    _commands: int = 0

    def take(self, data: bytes) -> bytes:
        self._buffer += data
        out = b""
        while not self.gone:
            if self._in_data:
                body, dot, rest = (b"\r\n" + self._buffer).partition(b"\r\n.\r\n")
                if not dot:
                    return out
                self._buffer = rest
            else:
                line, end, rest = self._buffer.partition(b"\r\n")
                if not end:
                    return out
                self._buffer = rest
            self._commands += 1
            if self._commands > self.closes_at:
                self.gone = True
                return out + b"421 4.3.2 closing\r\n"
            out += self._end_of_data(body) if self._in_data else self._command(line)
        return out

    def _command(self, line: bytes) -> bytes:
        verb = line[:4]
        if verb == b"RSET":
            self._sender, self._recipient = False, ""
            return b"250 2.0.0 Ok\r\n"
        if verb == b"MAIL":
            if self._sender:
                return b"503 5.5.1 nested MAIL command\r\n"
            if self._dislikes():
                return self.random.choice(REFUSALS)
            self._sender = True
            return b"250 2.1.0 Ok\r\n"
        if verb == b"RCPT":
            if not self._sender:
                return b"503 5.5.1 need MAIL command\r\n"
            if self._dislikes():
                return self.random.choice(REFUSALS)
            self._recipient = line[9:-1].decode()
            return b"250-2.1.5 it is\r\n250 2.1.5 Ok\r\n"
        assert line == b"DATA", line
        if not (self._recipient or (self.lenient and self._sender)) or self._dislikes():
            return b"554 5.5.1 no valid recipients\r\n"
        self._in_data = True
        return b"354 go on\r\n"

    def _end_of_data(self, body: bytes) -> bytes:
        recipient = self._recipient
        self._sender, self._recipient, self._in_data = False, "", False
        if not recipient:
            assert body == b"", "content for a refused recipient"
            return b"554 5.5.1 no valid recipients\r\n"
        if self._dislikes():
            return self.random.choice(REFUSALS)
        assert body == b"\r\nSubject: x\r\n\r\n..hidden dot\r\nfor " + recipient.encode()
        self.delivered[recipient] += 1
        return b"250 2.0.0 queued\r\n"

    def _dislikes(self) -> bool:
        return self.random.random() < self.refuses


def people(count: int) -> list[str]:
    return [f"r{i}@b.example" for i in range(count)]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 8),
    pipelining=st.booleans(),
    lenient=st.booleans(),
    refuses=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    closes_at=st.one_of(st.just(10_000), st.integers(0, 30)),
    cut_up=st.one_of(st.none(), st.integers(0, 900)),
    cut_down=st.one_of(st.none(), st.integers(0, 700)),
    stops_at=st.one_of(st.none(), st.integers(0, 10)),
)
def test_what_is_said_of_a_message_is_true(
    seed, count, pipelining, lenient, refuses, closes_at, cut_up, cut_down, stops_at
):
    random = Random(seed)
    server = Server(random, refuses, lenient, closes_at)
    envelopes = [Envelope("b@a.example", to, MESSAGE + to.encode()) for to in people(count)]
    burst = Transactions(envelopes, Offers(pipelining=pipelining))
    left_up = 1 << 30 if cut_up is None else cut_up
    left_down = 1 << 30 if cut_down is None else cut_down
    out, rounds = burst.start(), 0
    while not burst.finished:
        sent, left_up = out[:left_up], left_up - len(out[:left_up])
        replies = server.take(sent)
        received, left_down = replies[:left_down], left_down - len(replies[:left_down])
        out = b""
        while received and not burst.finished:
            size = random.randint(1, len(received))
            out += burst.receive(received[:size])
            received = received[size:]
        if not burst.finished and (not left_up or not left_down or server.gone):
            burst.lost("connection lost", 0)
        rounds += 1
        if rounds == stops_at:
            burst.stop("enough")
        assert rounds < 200, "nobody moves"
    for envelope, reply in zip(envelopes, burst.replies, strict=True):
        times = server.delivered[envelope.rcpt_to]
        if reply.verdict is Verdict.ACCEPTED:
            assert times == 1
        elif reply.verdict is Verdict.UNCERTAIN:
            assert times <= 1
        else:
            assert times == 0, reply
    uncertain = [r for r in burst.replies if r.verdict is Verdict.UNCERTAIN]
    assert len(uncertain) <= 1
    if burst.broken:
        assert server.gone or not left_up or not left_down
    else:
        assert not server.gone
