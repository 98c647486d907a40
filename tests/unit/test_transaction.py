"""The transaction machine without sockets: what is written, and what becomes of each message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.replies import Verdict, classify, printable, reason_of
from manta.delivery.transaction import (
    Envelope,
    Offers,
    ProtocolViolation,
    ReplyParser,
    Step,
    Transactions,
    is_path,
    stuffed,
)

PIPELINING = Offers(pipelining=True)
PLAIN = Offers()


def mails(count: int) -> list[Envelope]:
    return [
        Envelope(f"b{i}@a.example", f"r{i}@b.example", b"Subject: %d\r\n\r\nhello\r\n" % i, i)
        for i in range(count)
    ]


def verdicts(burst: Transactions) -> list[str]:
    assert burst.finished
    return [reply.verdict.value for reply in burst.replies if reply is not None]


OK = b"250 2.1.0 Ok\r\n"
GROUP_OK = OK + OK + b"354 go\r\n"


def test_a_pipelined_burst_takes_one_round_trip_a_message():
    burst = Transactions(mails(2), PIPELINING)
    assert burst.start() == b"MAIL FROM:<b0@a.example>\r\nRCPT TO:<r0@b.example>\r\nDATA\r\n"
    out = burst.receive(GROUP_OK)
    assert out == (
        b"Subject: 0\r\n\r\nhello\r\n.\r\n"
        b"MAIL FROM:<b1@a.example>\r\nRCPT TO:<r1@b.example>\r\nDATA\r\n"
    )
    assert burst.waits_for is Step.CONTENT
    assert burst.receive(b"250 2.0.0 queued as A\r\n" + GROUP_OK) == (
        b"Subject: 1\r\n\r\nhello\r\n.\r\n"
    )
    assert burst.receive(b"250 2.0.0 queued as B\r\n") == b""
    assert verdicts(burst) == ["accepted", "accepted"]
    assert burst.replies[1].text == "2.0.0 queued as B"
    assert not burst.broken and burst.begun == 2 and burst.received == 8


def test_without_pipelining_each_command_waits_for_its_reply():
    burst = Transactions(mails(2), PLAIN)
    assert burst.start() == b"MAIL FROM:<b0@a.example>\r\n"
    assert burst.receive(OK) == b"RCPT TO:<r0@b.example>\r\n"
    assert burst.receive(b"550 5.1.1 who?\r\n") == b"RSET\r\n"
    assert burst.receive(OK) == b"MAIL FROM:<b1@a.example>\r\n"
    assert burst.receive(OK) == b"RCPT TO:<r1@b.example>\r\n"
    assert burst.receive(OK) == b"DATA\r\n"
    assert burst.receive(b"354 go\r\n").endswith(b"hello\r\n.\r\n")
    assert burst.receive(OK) == b""
    assert verdicts(burst) == ["failed", "accepted"]
    assert burst.replies[0][1:] == (550, "5.1.1 who?", "mailbox does not exist")


def test_without_pipelining_a_refused_sender_needs_no_reset():
    burst = Transactions(mails(2), PLAIN)
    burst.start()
    assert burst.receive(b"451 later\r\n") == b"MAIL FROM:<b1@a.example>\r\n"
    assert burst.receive(b"451 later\r\n") == b""
    assert verdicts(burst) == ["deferred", "deferred"]


def test_a_refused_recipient_and_a_refused_data_reset_the_transaction():
    burst = Transactions(mails(2), PIPELINING)
    burst.start()
    out = burst.receive(OK + b"550 5.1.1 no\r\n" + b"554 no valid recipients\r\n")
    assert out.startswith(b"RSET\r\nMAIL FROM:<b1@a.example>")
    burst.receive(OK + GROUP_OK)
    burst.receive(OK)
    assert verdicts(burst) == ["failed", "accepted"]
    assert burst.replies[0].code == 550


def test_354_after_a_refused_recipient_gets_a_lone_dot():
    burst = Transactions(mails(2), PIPELINING)
    burst.start()
    out = burst.receive(OK + b"450 4.2.1 not now\r\n" + b"354 go\r\n")
    assert out.startswith(b".\r\nMAIL FROM:<b1@a.example>")
    assert burst.waits_for is Step.LONE_DOT
    burst.receive(b"554 no recipients\r\n" + GROUP_OK)
    burst.receive(OK)
    assert verdicts(burst) == ["deferred", "accepted"]
    assert burst.replies[0].text == "4.2.1 not now"


def test_the_first_refusal_counts():
    burst = Transactions(mails(1), PIPELINING)
    burst.start()
    burst.receive(b"451 4.7.1 slow down\r\n503 no sender\r\n503 no sender\r\n")
    burst.receive(OK)
    assert burst.replies[0].code == 451


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((), ["not_sent", "not_sent", "not_sent"]),
        ((OK,), ["not_sent", "not_sent", "not_sent"]),
        ((OK + b"550 no\r\n",), ["failed", "not_sent", "not_sent"]),
        ((GROUP_OK,), ["uncertain", "not_sent", "not_sent"]),
        ((GROUP_OK, OK), ["accepted", "not_sent", "not_sent"]),
        ((GROUP_OK, OK + GROUP_OK), ["accepted", "uncertain", "not_sent"]),
        ((GROUP_OK, OK + OK + b"550 no\r\n354 go\r\n"), ["accepted", "failed", "not_sent"]),
    ],
)
def test_a_lost_connection_leaves_what_was_proved(replies, expected):
    burst = Transactions(mails(3), PIPELINING)
    burst.start()
    for data in replies:
        burst.receive(data)
    burst.lost("reset")
    assert verdicts(burst) == expected
    assert burst.broken


def test_content_that_never_left_was_not_sent():
    burst = Transactions(mails(2), PIPELINING)
    burst.start()
    out = burst.receive(GROUP_OK)
    behind = len(out) - out.index(b"\r\n.\r\n") - 5
    for unwritten, expected in ((behind + 3, "not_sent"), (behind + 2, "uncertain")):
        burst = Transactions(mails(2), PIPELINING)
        burst.start()
        burst.receive(GROUP_OK)
        burst.lost("reset", unwritten)
        assert verdicts(burst) == [expected, "not_sent"]


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((b"421 bye\r\n",), ["deferred", "not_sent"]),
        ((GROUP_OK, b"421 4.3.2 bye\r\n"), ["deferred", "not_sent"]),
        ((GROUP_OK, OK + b"421 enough for today\r\n"), ["accepted", "deferred"]),
        ((OK + b"550 no\r\n" + b"421 bye\r\n",), ["failed", "not_sent"]),
    ],
)
def test_421_defers_what_it_answers_and_ends_the_connection(replies, expected):
    burst = Transactions(mails(2), PIPELINING)
    burst.start()
    for data in replies:
        burst.receive(data)
    assert verdicts(burst) == expected
    assert burst.broken


@pytest.mark.parametrize(
    "nonsense",
    [
        b"hello\r\n",
        b"25\r\n",
        b"250_ok\r\n",
        b"250-a\r\n251 b\r\n",
        b"199 what\r\n",
        b"354 too early\r\n",
        b"250 " + b"x" * 5000 + b"\r\n",
        b"x" * 5000,
        b"250-again\r\n" * 100,
        b"\r\n",
        b"\x00\xff\xfe\n",
    ],
)
def test_nonsense_ends_the_connection(nonsense):
    burst = Transactions(mails(2), PIPELINING)
    burst.start()
    burst.receive(nonsense)
    assert verdicts(burst) == ["not_sent", "not_sent"]
    assert burst.broken

    burst = Transactions(mails(2), PIPELINING)
    burst.start()
    burst.receive(GROUP_OK)
    burst.receive(nonsense)
    assert verdicts(burst) == ["uncertain", "not_sent"]


def test_a_reply_too_many_makes_the_connection_worthless_and_keeps_the_outcomes():
    burst = Transactions(mails(1), PIPELINING)
    burst.start()
    burst.receive(GROUP_OK)
    burst.receive(OK + OK)
    assert verdicts(burst) == ["accepted"] and burst.broken
    burst = Transactions(mails(1), PIPELINING)
    burst.start()
    burst.receive(GROUP_OK)
    burst.receive(OK + b"25")
    assert verdicts(burst) == ["accepted"] and burst.broken


def test_mail_out_of_sequence_is_the_connections_fault_and_nobodys_failure():
    burst = Transactions(mails(3), PLAIN)
    burst.start()
    for reply in (OK, OK, b"354 go\r\n"):
        burst.receive(reply)
    burst.receive(b"500 Error: (OperationalError)\r\n")  # a server that then forgot to clean up
    burst.receive(b"503 Error: nested MAIL command\r\n")
    assert verdicts(burst) == ["failed", "not_sent", "not_sent"]
    assert burst.broken


def test_stop_lets_the_begun_messages_end():
    burst = Transactions(mails(4), PIPELINING)
    burst.start()
    burst.receive(GROUP_OK)  # the second is begun behind the first
    burst.stop("campaign paused")
    assert b"MAIL" not in burst.receive(OK + GROUP_OK)
    burst.receive(OK)
    assert verdicts(burst) == ["accepted", "accepted", "not_sent", "not_sent"]
    assert burst.replies[3].text == "campaign paused" and not burst.broken


def test_what_cannot_be_sent_fails_alone():
    good = mails(1)[0]
    bad = [
        good._replace(rcpt_to="a@b.example>\r\nRCPT TO:<c@d.example"),
        good._replace(mail_from="a b@c.example"),
        good._replace(rcpt_to="jörg@b.example"),
        good._replace(data="Subject: ö\r\n\r\n".encode()),
        good._replace(data=b"x" * 2000),
    ]
    burst = Transactions([*bad, good], Offers(pipelining=True, size=True, size_bytes_max=1000))
    assert burst.start().startswith(b"MAIL FROM:<b0@a.example> SIZE=21\r\n")
    burst.receive(GROUP_OK)
    burst.receive(OK)
    assert verdicts(burst) == ["failed"] * 5 + ["accepted"]
    assert [reply.reason for reply in burst.replies[:5]] == [
        "recipient address is not valid in SMTP",
        "return path is not valid in SMTP",
        "address needs SMTPUTF8, which the server does not offer",
        "message needs 8BITMIME, which the server does not offer",
        "message is too big for the server",
    ]
    assert "\n" not in burst.replies[0].text
    nothing = Transactions(bad[:2], PIPELINING)
    assert nothing.start() == b"" and nothing.finished and nothing.begun == 0


def test_extensions_are_used_where_needed():
    offers = Offers(pipelining=True, utf8=True, eight_bit=True)
    envelope = Envelope("", "jörg@b.example", "Subject: ö\r\n\r\n".encode())
    assert (
        Transactions([envelope], offers)
        .start()
        .startswith("MAIL FROM:<> BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<jörg@b.example>\r\n".encode())
    )


@given(st.lists(st.sampled_from([b".", b"..", b"\r\n", b"\n", b"\r", b"a", b"\r\n.\r\n"])))
def test_stuffed_content_ends_only_at_its_end_and_reads_back(parts):
    data = b"".join(parts)
    wire = stuffed(data)
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    assert b"\r\n.\r\n" not in wire[:-3].removesuffix(b"\r\n") + b"\r\n" or wire == b".\r\n"
    body = wire[:-3]
    assert body.count(b"\n") == body.count(b"\r\n") == body.count(b"\r")
    lines = body.split(b"\r\n")[:-1]
    assert all(line[:2] == b".." for line in lines if line.startswith(b"."))
    unstuffed = b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)
    normal = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert unstuffed == (normal if normal.endswith(b"\r\n") else normal + b"\r\n")


@given(st.integers(1, 40), st.integers(1, 3))
def test_replies_may_arrive_in_any_pieces(size, count):
    wire = (b"250-first\r\n250-second\r\n250 last\r\n" + b"354\r\n" + b"550 5.1.1 no\n") * count
    parser = ReplyParser()
    replies = []
    for i in range(0, len(wire), size):
        replies += parser.feed(wire[i : i + size])
    assert replies == [(250, b"first second last"), (354, b""), (550, b"5.1.1 no")] * count
    assert not parser.has_remainder


@given(st.lists(st.binary(max_size=60)), st.integers(0, 3))
def test_no_server_can_leave_a_message_without_an_outcome(chunks, sent):
    burst = Transactions(mails(3), PIPELINING)
    burst.start()
    for _ in range(sent):
        burst.receive(GROUP_OK if burst.waits_for is Step.MAIL else OK)
    for chunk in chunks:
        if not burst.finished:
            burst.receive(chunk)
    burst.lost("end")
    assert len(verdicts(burst)) == 3


def test_the_parser_bounds_what_it_keeps():
    parser = ReplyParser()
    with pytest.raises(ProtocolViolation):
        for _ in range(1000):
            parser.feed(b"250-" + b"x" * 1000 + b"\r\n")


@pytest.mark.parametrize(
    "address",
    ["a@b.example", '"a\\"b"@c.example', "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]", "ö@ä.example"],
)
def test_paths(address):
    assert is_path(address)


@pytest.mark.parametrize(
    "address",
    ["", "a", "@b", "a@", "a@b c", "a\r@b", "a@b\n", "a<@b", "a@b>", "a\x00@b", "a\x85@b",
     "a\u2028@b", "x" * 65 + "@b.example", "a@" + "b" * 260, "a@b.example\r\nDATA", "\ud800@b"],
)  # fmt: skip
def test_what_is_no_path(address):
    assert not is_path(address)


def test_replies_are_explained_and_kept_harmless():
    assert reason_of(550, "5.7.26 unauthenticated") == ("more than one authentication check failed")
    assert reason_of(452, "4.2.2 over quota") == "mailbox is full"
    assert reason_of(550, "5.1.77 odd") == "address refused"
    assert reason_of(552, "too big") == "over quota or message too big"
    assert reason_of(499, "") == "refused for now" and reason_of(599, "") == "refused"
    assert classify(250, "ok").verdict is Verdict.ACCEPTED
    assert printable("a\r\n\x1b[31mb\u202e") == "a\\r\\n\\x1b[31mb\\u202e"
    assert len(printable("x" * 5000)) == 500
    with pytest.raises(ValueError, match="neither"):
        classify(354, "go")
