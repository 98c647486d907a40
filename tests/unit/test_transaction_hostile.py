"""Against a server that keeps to nothing: it answers too much, too little, in pieces, in lines
without end, in bytes that are no text, with 354 for nobody, with 421 at any time, or not at all;
and the line may be cut anywhere, in either direction.

What is held: a message is accepted only if a 2yz came after its final dot had gone out; its content
goes out once; and it is "not sent" only if its final dot never went out.
"""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.delivery.replies import Verdict
from manta.delivery.transaction import Envelope, Offers, Transactions

ROUNDS_MAX = 400
HOSTILE = (
    b"",
    b"250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n",
    b"250 2.0.0 Ok\r\n" * 8,
    b"250-first\r\n250-second\r\n250 last\r\n",
    b"250-first\r\n550 last\r\n",
    b"250-never ends\r\n" * 100,
    b"354 go on\r\n",
    b"354 go on\r\n250 2.0.0 queued already\r\n",
    b"354 go on\r\n550 5.7.1 never\r\n",
    b"354-go\r\n354 on\r\n",
    b"421 4.3.2 closing\r\n",
    b"421-4.3.2\r\n421 closing\r\n",
    b"450 4.2.1 later\r\n",
    b"550 5.1.1 no\r\n",
    b"503 5.5.1 nested MAIL command\r\n",
    b"250 bare\n",
    b"250 bare\r",
    b"250\r\n",
    b"2",
    b"25",
    b"250 \xff\xfe\x00\x80 caf\xe9\r\n",
    b"\xff\xfe\x00\r\n",
    b"999 what\r\n",
    b"100 wait\r\n",
    b"\r\n",
    b"x" * 5_000,
    b"250 " + b"y" * 3_000 + b"\r\n",
    b"220 hello again\r\n",
)
_ACCEPTS = re.compile(rb"(?:^|[\r\n])2\d\d(?:[ \r\n]|$)")


class Server:
    """Sees what comes, notes which final dots did, and answers each line by its mood."""

    def __init__(self, random: Random, hostility: float) -> None:
        self._random = random
        self._hostility = hostility
        self._buffer = b""
        self._in_data = False

    def answers(self, data: bytes) -> bytes:
        self._buffer += data
        out = b""
        while True:
            end = b"\r\n.\r\n" if self._in_data else b"\r\n"
            line, found, rest = self._buffer.partition(end)
            if not found:
                return out
            self._buffer = rest
            out += self._answer(line)

    def _answer(self, line: bytes) -> bytes:
        if self._random.random() < self._hostility:
            answer = self._random.choice(HOSTILE)
            self._in_data = not self._in_data and answer.startswith(b"354")
            return answer
        if self._in_data:
            self._in_data = False
            return self._random.choice((b"250 2.0.0 queued\r\n", b"451 4.7.1 later\r\n"))
        if line == b"DATA":
            self._in_data = True
            return b"354 go on\r\n"
        return b"250 2.0.0 Ok\r\n"


def envelopes(count: int) -> list[Envelope]:
    return [
        Envelope("b@a.example", f"r{i}@b.example", b"Subject: x\r\n\r\nfor message %d" % i)
        for i in range(count)
    ]


@settings(max_examples=500, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 6),
    pipelining=st.booleans(),
    hostility=st.sampled_from([0.03, 0.1, 0.3, 1.0]),
    closes_after=st.one_of(st.none(), st.integers(0, 400)),
    written_before_cut=st.one_of(st.none(), st.integers(0, 900)),
    stops_at=st.one_of(st.none(), st.integers(0, 10)),
)
def test_no_server_makes_us_lie(
    seed, count, pipelining, hostility, closes_after, written_before_cut, stops_at
):
    random = Random(seed)
    server = Server(random, hostility)
    burst = Transactions(envelopes(count), Offers(pipelining=pipelining))
    wire, heard = b"", b""  # what has gone out, what has come in
    heard_at_dot: dict[int, int] = {}
    out, pending, rounds = burst.start(), b"", 0
    while not burst.finished:
        rounds += 1
        assert rounds < ROUNDS_MAX, "nobody moves"
        room = len(out) if written_before_cut is None else max(0, written_before_cut - len(wire))
        written, unwritten = out[:room], out[room:]
        wire += written
        for i in range(count):
            if b"for message %d\r\n.\r\n" % i in wire:
                heard_at_dot.setdefault(i, len(heard))
        if unwritten:
            burst.lost("connection lost", len(unwritten))
            break
        pending += server.answers(written)
        if closes_after is not None:
            pending = pending[: max(0, closes_after - len(heard))]
        if not pending:
            burst.lost("silence", 0)  # a time-out, or the end of the connection
            break
        out = b""
        while pending and not out and not burst.finished:  # what it says is written before it reads
            size = random.randint(1, len(pending))
            piece, pending = pending[:size], pending[size:]
            heard += piece
            out += burst.receive(piece)
        if rounds == stops_at:
            burst.stop("enough")
    for i, reply in enumerate(burst.replies):
        assert reply is not None
        times = wire.count(b"for message %d\r\n" % i)
        assert times <= 1, "its content went out twice"
        if reply.verdict is Verdict.ACCEPTED:
            assert i in heard_at_dot, "accepted before its final dot"
            assert _ACCEPTS.search(b"\n" + heard[heard_at_dot[i] :]), "accepted without a 2yz"
        if reply.verdict is Verdict.NOT_SENT:
            assert i not in heard_at_dot, "its final dot may have been seen"
        if reply.verdict is Verdict.UNCERTAIN:
            assert times == 1
        assert reply.text.isprintable()


@pytest.mark.parametrize("pipelining", [True, False])
def test_nobody_answers_what_has_not_gone_out(pipelining: bool) -> None:
    """A 250 that comes with the 354 was said before the message left: it takes nothing."""
    burst = Transactions(envelopes(2), Offers(pipelining=pipelining))
    burst.start()
    burst.receive(b"250 a\r\n250 b\r\n" if pipelining else b"250 a\r\n")
    if not pipelining:
        burst.receive(b"250 b\r\n")
    assert burst.receive(b"354 go\r\n250 early\r\n") == b""
    assert [reply.verdict for reply in burst.replies] == [Verdict.NOT_SENT] * 2
    assert burst.broken and burst.finished


@pytest.mark.parametrize("piece", HOSTILE[1:], ids=range(1, len(HOSTILE)))
@pytest.mark.parametrize("place", range(8))
def test_one_hostile_answer_at_each_place_of_a_burst(piece: bytes, place: int) -> None:
    """Byte by byte, and then silence: two messages, of which none may be told to be what it is
    not."""
    burst = Transactions(envelopes(2), Offers(pipelining=True))
    group, ok = b"250 a\r\n250 b\r\n354 go\r\n", b"250 queued\r\n"
    usual = re.findall(rb"[^\n]*\n", group + ok + group + ok)
    wire = burst.start()
    for answer in [*usual[:place], piece]:
        for byte in answer:
            if not burst.finished:
                wire += burst.receive(bytes([byte]))
    burst.lost("silence", 0)
    for i, reply in enumerate(burst.replies):
        dots = wire.count(b"for message %d\r\n.\r\n" % i)
        assert dots <= 1
        assert (reply.verdict is Verdict.ACCEPTED) <= (dots == 1)
        assert (reply.verdict is Verdict.NOT_SENT) <= (dots == 0)
