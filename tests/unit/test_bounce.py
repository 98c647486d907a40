"""The fields of reports, addresses in prose, and mails taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns import bounce, bounce_prose, mailparts
from manta.delivery.returns.bounce import Action, addresses_in, judged, recipient_address
from manta.delivery.returns.feedback import feedback_of
from manta.delivery.returns.mailparts import Fields, Part


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("rfc822; ann@example.org", "ann@example.org"),
        ("RFC822;<ann@example.org>", "ann@example.org"),
        ("<ann@example.org>", "ann@example.org"),
        ("rfc822; ann+2Bnews@example.org", "ann+news@example.org"),  # xtext (RFC 3461 §4)
        ("rfc822; ann+news@example.org", "ann+news@example.org"),  # a plain "+" is a name's own
        (r"utf-8; j\x{F6}rg@example.org", "jörg@example.org"),  # RFC 6533 §3
        (r"utf-8; \x{D800}\x{FFFFFF}ann@example.org", "ann@example.org"),
        ("rfc822; ann%40example.org", "ann@example.org"),
        ("unknown; ann_s", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_typed_field(value: str, address: str) -> None:
    assert recipient_address(value) == address


@pytest.mark.parametrize(
    ("action", "status", "expected"),
    [
        ("Failed", "5.1.1", Action.FAILED),
        ("failed (bad address)", "5.1.1", Action.FAILED),
        ("DELAYED", "4.2.2", Action.DELAYED),
        ("deliverable", "2.1.5", Action.DELIVERED),
        ("", "5.1.1", Action.FAILED),
        ("", "4.4.7", Action.FAILED),
        ("expanded", "2.0.0", Action.EXPANDED),
    ],
)
def test_the_action_of_a_recipient(action: str, status: str, expected: Action) -> None:
    text = f"Final-Recipient: rfc822; a@b.cc\nAction: {action}\nStatus: {status}\n"
    assert bounce.recipients_of_fields(text)[0].action is expected


def test_groups_that_run_together_are_told_apart() -> None:
    text = (
        "Reporting-MTA: dns; x\nFinal-Recipient: rfc822; a@b.cc\nAction: failed\nStatus: 5.1.1\n"
        "Final-Recipient: rfc822; d@e.ff\nAction: delayed\nStatus: 4.0.0\n"
    )
    found = bounce.recipients_of_fields(text)
    assert [(r.address, r.action) for r in found] == [
        ("a@b.cc", Action.FAILED),
        ("d@e.ff", Action.DELAYED),
    ]


def test_a_status_helps_where_the_diagnostic_has_no_code() -> None:
    assert judged("a@b.cc", Action.FAILED, "5.1.1", "x-unix; no").bounce_class is BounceClass.HARD
    # but the code that the server gave decides for how long
    late = judged("a@b.cc", Action.FAILED, "5.0.0", "smtp; 450 4.1.1 user unknown")
    assert late.bounce_class is BounceClass.SOFT


@pytest.mark.parametrize(
    ("action", "status", "diagnostic", "bounce_class", "is_permanent"),
    [
        # given up, and no reason that is known
        (Action.FAILED, "5.0.0", "", BounceClass.HARD, True),
        (Action.FAILED, "", "This is a permanent error; I've given up.", BounceClass.HARD, True),
        (Action.FAILED, "5.5.0", "smtp; 554 kaputt", BounceClass.HARD, True),
        # given up for a reason that does not kill an address
        (Action.FAILED, "5.2.2", "", BounceClass.SOFT, True),
        (Action.FAILED, "4.4.7", "delivery time expired", BounceClass.SOFT, True),
        (Action.FAILED, "4.0.0", "smtp; 450 kaputt", BounceClass.SOFT, True),
        (Action.FAILED, "5.7.1", "", BounceClass.BLOCK, True),
        (Action.FAILED, "5.3.4", "", BounceClass.MESSAGE, True),
        # not given up
        (Action.DELAYED, "5.1.1", "user unknown", BounceClass.SOFT, False),
        (Action.DELAYED, "", "", BounceClass.SOFT, False),
        (Action.DELIVERED, "2.0.0", "", BounceClass.NONE, False),
    ],
)
def test_what_a_failure_means(
    action: Action, status: str, diagnostic: str, bounce_class: BounceClass, is_permanent: bool
) -> None:
    found = judged("a@b.cc", action, status, diagnostic)
    assert (found.bounce_class, found.is_permanent) == (bounce_class, is_permanent)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (
            "<ann@example.org>, BOB@Example.org; ann@EXAMPLE.org",
            ["ann@example.org", "BOB@Example.org"],
        ),
        ('"ann lee"@example.org "ann"@example.org', ["ann@example.org"]),
        ("ann@[192.0.2.1]", ["ann@[192.0.2.1]"]),
        ("ann@example.x ann@example.4", ["ann@example.x"]),
        ("ann...@example.org a..b@example.org .a@example.org", []),
        ("ann@localhost, @example.org, ann@", []),
        ("smtp:ann@example.org mailto:bea@example.org", ["ann@example.org", "bea@example.org"]),
    ],
)
def test_addresses_in_text(text: str, addresses: list[str]) -> None:
    assert addresses_in(text) == addresses


@given(st.text())
def test_addresses_in_any_text(text: str) -> None:
    assert all("@" in address for address in addresses_in(text))


def places(text: str, *not_these: str) -> list[str]:
    found = bounce_prose.prose_addresses(bounce_prose.split_prose(text), frozenset(not_these))
    return [place.address for place in found]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (
            "These failed:\n\n  ann@example.org\n  bea@example.org\n",
            ["ann@example.org", "bea@example.org"],
        ),
        ("<ann@example.org>: no. Ask bea@example.org\n", ["ann@example.org"]),
        (">>> RCPT TO:<ann@example.org>\n<<< 550 <bea@example.org> no\n", ["ann@example.org"]),
        ("Mail from news@shop.example to ann@example.org failed", ["ann@example.org"]),
        (
            "For help write to postmaster@example.org.\nann@example.org is unknown",
            ["ann@example.org"],
        ),
        ("<ann@example.org> has left. Please write to bea@example.org.", ["ann@example.org"]),
        ("ann@example.org is disabled.\nMy new address is bea@example.org.", ["ann@example.org"]),
        ("I have left. Please send your mail to\nbea@example.org", []),
        ("x\n\n--- Original message ---\n<bea@example.org>: in it\n", []),
        ("x\n\nReceived: from a by b\nTo: bea@example.org\n", []),
    ],
)
def test_which_addresses_prose_means(text: str, addresses: list[str]) -> None:
    assert places(text) == addresses


def test_the_sender_is_no_recipient_of_a_sentence() -> None:
    text = "Your message from ann@example.org to bea@example.org could not be delivered"
    assert places(text, "ann@example.org") == ["bea@example.org"]


def feedback_part(text: str) -> Part:
    return Part(Fields([]), "message/feedback-report", {}, text)


def test_a_feedback_report_names_whom_it_names() -> None:
    found = feedback_of(
        feedback_part(
            "\nFeedback-Type: Abuse\nOriginal-Rcpt-To: <ann@example.org>\n"
            "Original-Rcpt-To: rfc822; bea@example.org\nRemoval-Recipient: ann@example.org\n"
            "Original-Mail-From: <b.r4k@bounces.shop.example>\nOriginal-Envelope-Id: r4k\n"
        )
    )
    assert found.feedback_type == "abuse"
    assert found.recipients == ("ann@example.org", "bea@example.org")
    assert (found.return_path, found.envelope_id) == ("b.r4k@bounces.shop.example", "r4k")


def test_an_address_that_was_written_over_is_nobody() -> None:
    part = feedback_part("Feedback-Type: abuse\nOriginal-Rcpt-To: redacted@example.org\n")
    assert feedback_of(part).recipients == ()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"Content-Type: text/plain; charset=iso-8859-1\n\nm\xfcde", "müde"),
        (b"Content-Type: text/plain; charset=UFT-8\n\nm\xc3\xbcde", "müde"),
        (b"Content-Type: text/plain; charset=zip\n\nm\xfcde", "müde"),
        (b"Content-Transfer-Encoding: quoted-printable\n\nm=C3=BC=\nde", "müde"),
        (b"Content-Transfer-Encoding: base64\n\nbcO8*ZGU", "müde"),
        (b"Content-Transfer-Encoding: base64\n\nb", ""),
        (b"Content-Type: text/html\n\n<style>p{}</style><p>m&uuml;de<br>a</p>", "müde\na"),
    ],
)
def test_text_is_decoded(raw: bytes, text: str) -> None:
    assert mailparts.parse(raw).text().strip() == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("=?utf-8?q?m=C3=BCde?=", "müde"),
        ("=?utf-8?b?bcO8ZGU=?= =?iso-8859-1?q?_m=FCde?=", "müde müde"),
        ("=?nonsense?q?x?= y", "x y"),
        ("=?utf-8?b?!?=", "=?utf-8?b?!?="),
    ],
)
def test_encoded_words(value: str, words: str) -> None:
    assert mailparts.words_of(value) in (words, "")


pieces = st.sampled_from(
    ["=?", "?=", "?b?", "?q?", "utf-8", "idna", "=", "A", "AAA", "\xff", " ", "_"]
)


@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join)))
def test_any_field_has_words(value: str) -> None:
    assert isinstance(mailparts.words_of(value), str)
