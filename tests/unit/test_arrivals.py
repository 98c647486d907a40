"""What mail from outside is: own samples, public ones where they are at hand, hostile ones."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns import bounce, mailparts
from manta.delivery.returns.arrivals import Arrival, ArrivalKind, read
from manta.delivery.returns.bounce import Action

SAMPLES = Path(__file__).parent / "samples" / "arrivals"
PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "bounces"
needs_public = pytest.mark.skipif(
    not (PUBLIC / "flufl" / "labels.csv").exists(), reason="the public bounces are not at hand"
)

HARD, SOFT, BLOCK = BounceClass.HARD, BounceClass.SOFT, BounceClass.BLOCK
COMPLAINT, NONE = BounceClass.COMPLAINT, BounceClass.NONE
ANN = "ann@example.org"

# sample: kind, and for each recipient its address, action and class
EXPECTED: dict[str, tuple[str, list[tuple[str, str, BounceClass]]]] = {
    "report_two_recipients": (
        "bounce",
        [("ann+news@example.org", "failed", HARD), ("bea@example.org", "delayed", SOFT)],
    ),
    "report_utf8": ("bounce", [("jörg@example.org", "failed", HARD)]),
    "report_delivered": ("delivered", [(ANN, "relayed", NONE)]),
    "report_delay_dead": ("delay", [(ANN, "delayed", SOFT)]),
    "report_no_fields": ("bounce", [(ANN, "failed", HARD)]),
    "prose_qmail": ("bounce", [(ANN, "failed", HARD), ("bea@example.org", "failed", SOFT)]),
    "prose_exim": ("bounce", [(ANN, "failed", BLOCK)]),
    "prose_transcript": ("bounce", [(ANN, "failed", HARD)]),
    "prose_exchange": ("bounce", [(ANN, "failed", HARD)]),
    "prose_domino": ("bounce", [(ANN, "failed", HARD)]),
    "prose_james": ("bounce", [(ANN, "failed", HARD)]),
    "prose_old_sendmail": ("bounce", [(ANN, "failed", SOFT)]),
    "prose_japanese": ("bounce", [("ann@example.ne.jp", "failed", SOFT)]),
    "prose_german": ("bounce", [("ann@example.de", "failed", HARD)]),
    "prose_html": ("bounce", [(ANN, "failed", HARD)]),
    "prose_warning": ("delay", [(ANN, "delayed", SOFT)]),
    "prose_name_only": ("bounce", [(ANN, "failed", BLOCK)]),
    "prose_gateway": ("bounce", [(ANN, "failed", HARD)]),
    "rejected_by_sieve": ("bounce", [(ANN, "failed", SOFT)]),
    "no_address": ("bounce", []),
    "feedback_abuse": ("complaint", [(ANN, "delivered", COMPLAINT)]),
    "feedback_opt_out": ("complaint", [(ANN, "delivered", COMPLAINT)]),
    "feedback_no_recipient": ("complaint", [(ANN, "delivered", COMPLAINT)]),
    "feedback_jmrp": ("complaint", [("ann@hotmail.example", "delivered", COMPLAINT)]),
    "feedback_not_spam": ("not_spam", [(ANN, "delivered", NONE)]),
    "feedback_authentication": ("other", []),
    "auto_vacation": ("auto_reply", []),
    "auto_left_company": ("auto_reply", []),
    "auto_precedence": ("auto_reply", []),
    "read_receipt": ("read_receipt", []),
    "challenge": ("challenge", []),
    "unsubscribe": ("unsubscribe", []),
    "unsubscribe_german": ("unsubscribe", []),
    "person_quotes_bounce": ("other", []),
    "person_forwards_bounce": ("other", []),
    "person_complains": ("other", []),
    "person_asks_why": ("other", []),
    "newsletter": ("other", []),
}


def sample(name: str) -> bytes:
    return (SAMPLES / f"{name}.eml").read_bytes()


def with_every_line_end(raw: bytes) -> Iterator[bytes]:
    lines = raw.replace(b"\r\n", b"\n")
    yield lines
    yield lines.replace(b"\n", b"\r\n")
    yield lines.replace(b"\n", b"\r")


def public(pattern: str) -> list[Path]:
    return sorted(PUBLIC.glob(pattern))


def test_every_sample_is_labelled() -> None:
    assert {path.stem for path in SAMPLES.glob("*.eml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_our_samples_are(name: str) -> None:
    kind, recipients = EXPECTED[name]
    for raw in with_every_line_end(sample(name)):
        found = read(raw)
        assert found.kind == kind
        assert [(r.address, r.action, r.bounce_class) for r in found.recipients] == recipients


def test_nobody_is_named_by_mail_that_is_no_report() -> None:
    silent = {"other", "auto_reply", "unsubscribe", "challenge", "read_receipt"}
    for kind, recipients in EXPECTED.values():
        assert kind not in silent or not recipients


def test_every_place_where_our_mail_is_named() -> None:
    found = read(sample("report_two_recipients")).original
    assert found.message_id == "17.4@shop.example"
    assert found.return_path == "b.r4k@bounces.shop.example"
    assert found.recipient == ANN
    assert found.envelope_id == "r4k.17"
    assert ("x-trace", "17-4") in found.headers
    assert read(sample("prose_qmail")).original.message_id == "17.4@shop.example"
    assert read(sample("auto_vacation")).original.message_id == "17.4@shop.example"


def test_a_complaint_keeps_its_type_and_the_header_of_the_mail() -> None:
    found = read(sample("feedback_opt_out"))
    assert found.feedback_type == "opt-out"
    assert dict(found.original.headers)["list-unsubscribe"] == "<https://t.shop.example/u/17>"
    assert found.original.return_path == "b.r4k@bounces.shop.example"


def test_a_diagnostic_is_what_is_said_of_that_address_on_one_line() -> None:
    ann, bea = read(sample("prose_qmail")).recipients
    assert ann.status == "5.1.1"
    assert ann.diagnostic.startswith("192.0.2.9 does not like recipient. Remote host said: 550")
    assert bea.diagnostic == "Sorry, the mailbox is over quota."
    assert "\n" not in ann.diagnostic


NO_SYSTEM = b"Return-Path: <x@spam.example>\nTo: ops@shop.example\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"From: DHL <info@parcel.example>\nSubject: Your parcel could not be delivered\n"
        + NO_SYSTEM
        + b"Content-Type: text/html\n\nDelivery to ann@example.org failed. <a href=x>Click</a>",
        b"From: Mail Delivery System <info@spam.example>\nSubject: Undelivered mail returned\n"
        + NO_SYSTEM
        + b"\nYour message to ann@example.org could not be delivered. Click http://x.example",
        b"From: ann@example.org\nSubject: delivery problem\n"
        + NO_SYSTEM
        + b"\nMy mail to bea@example.org could not be delivered, can you help?",
        b"From: MAILER-DAEMON@x.example\nReturn-Path: <>\n"
        b"Subject: Successful Mail Delivery Report\n"
        b"\nYour message was successfully delivered.\n\n<ann@example.org>: 250 ok",
    ],
)
def test_words_alone_make_no_bounce(raw: bytes) -> None:
    found = read(raw)
    assert (found.kind, found.recipients) == (ArrivalKind.OTHER, ())


def test_a_report_that_asks_back_is_a_challenge() -> None:
    raw = (
        b"Content-Type: multipart/report; boundary=b\n\n--b\n"
        b"Content-Type: message/delivery-status\n\n"
        b"Final-Recipient: rfc822; ann@example.org\nAction: failed\nStatus: 4.7.0\n"
        b"Diagnostic-Code: x-notice; Sender not pre-approved. Follow the link above\n\n--b--\n"
    )
    assert (read(raw).kind, read(raw).recipients) == (ArrivalKind.CHALLENGE, ())


def test_blank_lines_before_the_header_are_passed_over() -> None:
    raw = sample("report_two_recipients")
    assert read(b"\n   \n\t\n" + raw) == read(raw)


# ------------------------------------------------------------------ public samples


@needs_public
def test_public_bounces_have_the_right_addresses_and_lasting() -> None:
    wanted: dict[str, tuple[set[str], bool]] = {}
    with (PUBLIC / "flufl" / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            before = wanted.get(row["file"], (set(), True))[0]
            addresses = before | set(row["addresses"].lower().split())
            wanted[row["file"]] = (addresses, row["temporary"] == "true")
    wrong = []
    for name, (addresses, is_temporary) in wanted.items():
        for raw in with_every_line_end((PUBLIC / "flufl" / name).read_bytes()):
            found = read(raw)
            got = {recipient.address.lower() for recipient in found.recipients}
            lasting = {recipient.is_permanent for recipient in found.recipients}
            if got != addresses or (addresses and lasting != {not is_temporary}):
                wrong.append(name)
                break
    assert len(wrong) <= 0.03 * len(wanted), wrong
    assert not read((PUBLIC / "flufl" / "dumbass_01.txt").read_bytes()).recipients


@needs_public
def test_public_reports_are_all_parsed() -> None:
    for path in public("reports/rfc3464-*.eml"):
        found = read(path.read_bytes())
        assert found.kind in (ArrivalKind.BOUNCE, ArrivalKind.DELAY), path.name
        # One is RFC 3464's own example of a name that is no address: "unknown; nair_s".
        assert found.recipients or path.name == "rfc3464-3.eml"
    for path in public("reports/rfc5965-*.eml"):
        found = read(path.read_bytes())
        assert (found.kind, found.feedback_type) == (ArrivalKind.COMPLAINT, "abuse"), path.name


@needs_public
def test_public_mail_that_is_no_bounce_names_nobody() -> None:
    for path in sorted((PUBLIC.parent / "mime").glob("*.eml")):
        assert read(path.read_bytes()).recipients == (), path.name


# ------------------------------------------------------------------ hostile mail

DAEMON = b"From: MAILER-DAEMON@x.example\nSubject: undelivered\n"
NESTED = b"".join(
    b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(5_000)
)
HOSTILE = {
    "100 MB": DAEMON + b"\n" + b"x" * 100_000_000,
    "100 MB of line ends": b"\n" * 100_000_000,
    "10,000 parts": DAEMON
    + b"Content-Type: multipart/mixed; boundary=b\n\n"
    + b"--b\nContent-Type: text/plain\n\nann@example.org failed\n" * 10_000,
    "parts in parts": NESTED,
    "mails in mails": b"Content-Type: message/rfc822\n\n" * 9_000,
    "one boundary for all": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" * 5_000,
    "only at signs": DAEMON + b"\n" + b"@" * 250_000,
    "half addresses": DAEMON + b"\n" + b"a@b." * 60_000,
    "spaces before addresses": DAEMON + b"\n" + (b"user" + b" " * 900 + b"x a@b.cc\n") * 280,
    "only angle brackets": DAEMON + b"Content-Type: text/html\n\n" + b"<" * 250_000,
    "styles that never end": DAEMON + b"Content-Type: text/html\n\n" + b"<style>" * 36_000,
    "60,000 fields": b"A: b\n" * 60_000,
    "one field, folded for ever": b"A: b\n" + b" cc\n" * 90_000,
    "encoded words": b"Subject: " + b"=?a?q?" * 40_000 + b"\n\n",
    "one recipient 8,000 times": b"Content-Type: message/delivery-status\n\n"
    + b"Final-Recipient: rfc822; a@b.cc\n" * 8_000,
    "12,000 recipients": DAEMON + b"\n" + b"".join(b"<u%d@b.cc>: no\n" % n for n in range(12_000)),
    "codes in codes": DAEMON + b"\n" + b"5.1.1." * 40_000,
    "many From": DAEMON + b"\n" + b"From: a@b.cc\n" * 20_000,
    "many parameters": b"Content-Type: x" + b"; a=b" * 1_000_000 + b"\n\n",
    "zeros": b"\0" * 300_000,
    "a character of 5,000 digits": DAEMON + b"Content-Type: text/html\n\n&#" + b"1" * 5_000 + b";",
    "a code of 6,000 digits": b"Content-Type: message/delivery-status\n\n"
    + b"Final-Recipient: rfc822;a@b.cc\nStatus: 5.1.1\nDiagnostic-Code: smtp; "
    + b"9" * 6_000,
    "a codec that is none of mail": b"Content-Type: text/plain; charset=idna\n\n" + b"x" * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mail_costs_little_and_names_few(name: str) -> None:
    begin = time.process_time()
    found = read(HOSTILE[name])
    assert time.process_time() - begin < 1.0
    assert len(found.recipients) <= bounce.RECIPIENTS_MAX
    assert len(found.original.headers) <= 60


def test_bounds_on_parts_and_depth() -> None:
    flat = mailparts.parse(HOSTILE["10,000 parts"])
    assert sum(1 for _ in flat.walk(into_messages=True)) <= mailparts.PARTS_MAX
    deep = mailparts.parse(NESTED)
    depth = 0
    while deep.parts:
        deep, depth = deep.parts[0], depth + 1
    assert depth <= mailparts.DEPTH_MAX


def test_a_report_after_a_large_first_part_is_found() -> None:
    raw = sample("report_two_recipients").replace(
        b"Two of your recipients", b"padding " * 50_000 + b"\n\nTwo of your recipients"
    )
    assert [r.bounce_class for r in read(raw).recipients] == [HARD, SOFT]


def test_a_forged_diagnostic_cannot_break_a_line() -> None:
    raw = sample("report_two_recipients").replace(b"User unknown", b"User\x1b[31m\x00 unknown\x85")
    diagnostic = read(raw).recipients[0].diagnostic
    assert diagnostic.isprintable() and "\x1b" not in diagnostic


@given(st.binary(max_size=3_000))
def test_any_bytes_have_an_answer(raw: bytes) -> None:
    assert isinstance(read(raw), Arrival)


def mutated(raw: bytes, draws: random.Random) -> bytes:
    """The mail with a few bytes, lines or stretches changed, cut, doubled or swapped."""
    data = bytearray(raw)
    for _ in range(draws.randint(1, 8)):
        at, to = sorted(draws.randrange(len(data) + 1) for _ in range(2))
        kind = draws.randrange(6)
        if kind == 0 and data:
            data[draws.randrange(len(data))] = draws.randrange(256)
        elif kind == 1:
            del data[at : min(to, at + 200)]
        elif kind == 2:
            data[at:at] = data[at : min(to, at + 500)]
        elif kind == 3:
            data[at:at] = draws.randbytes(draws.randrange(20))
        elif kind == 4:
            data[at:at] = draws.choice([b"\n\n", b"\r", b"--", b": ", b"=?", b"@", b"<", b"\0"])
        else:
            data = data[: max(at, 1)]
    return bytes(data)


def test_ten_thousand_mutated_mails_crash_nothing() -> None:
    sources = [path.read_bytes() for path in sorted(SAMPLES.glob("*.eml"))]
    sources += [path.read_bytes() for path in public("flufl/*.txt") + public("reports/*.eml")]
    for seed in range(10_000):
        draws = random.Random(seed)
        raw = mutated(draws.choice(sources), draws)
        try:
            found = read(raw)
        except Exception as fault:  # a seed that fails is all that is needed to repeat it
            raise AssertionError(f"seed {seed}") from fault
        for recipient in found.recipients:
            assert recipient.diagnostic.isprintable(), seed
            assert recipient.action is not Action.DELAYED or recipient.bounce_class is not HARD
