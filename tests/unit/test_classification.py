"""Every row of `replies.toml` is proven, and what must not be taken for a reason."""

from __future__ import annotations

import re
import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.reputation.observations import BounceClass
from manta.delivery.returns.classification import (
    MEANINGS,
    Category,
    basic_code,
    classify_reply,
    is_permanent,
    load,
    normal,
    rules,
)

HARD, SOFT, BLOCK = BounceClass.HARD, BounceClass.SOFT, BounceClass.BLOCK
MESSAGE = BounceClass.MESSAGE


def row_id(row: tuple[int, str]) -> str:
    return f"{rules().rules[row[0]].category}-{row[1][:40]}"


EXAMPLES = [(n, example) for n, rule in enumerate(rules().rules) for example in rule.examples]


@pytest.mark.parametrize("row", EXAMPLES, ids=row_id)
def test_an_example_comes_out_as_its_rule_says(row: tuple[int, str]) -> None:
    rule, example = rules().rules[row[0]], row[1]
    found = classify_reply(0, example)
    assert found.category == rule.category
    assert found.words == (rule.words or MEANINGS[rule.category].words)


def test_every_pattern_is_matched_by_an_example_of_its_rule() -> None:
    proven: set[int] = set()
    for number, example in EXAMPLES:
        matched = rules().matches(normal(example)[0])
        proven |= {p for p in matched if rules().rule_of_pattern[p] == number}
    patterns = [pattern for rule in rules().rules for pattern in rule.patterns]
    # Long rows of words in other languages are proven by one of them.
    assert [p for n, p in enumerate(patterns) if n not in proven and p.isascii()] == []


def test_there_are_several_hundred_wordings() -> None:
    alternatives = sum(p.count("|") + 1 for rule in rules().rules for p in rule.patterns)
    assert alternatives > 1_000
    assert len(EXAMPLES) > 200


def test_codes_are_codes() -> None:
    text = resources.files("manta.delivery.returns").joinpath("replies.toml").read_text("utf-8")
    document = tomllib.loads(text)
    assert all(re.fullmatch(r"[1-7](\.\d{1,3})?", code) for code in document["enhanced"])
    assert all(re.fullmatch(r"[45]\d\d", code) for code in document["basic"])


def test_every_category_has_a_meaning_and_only_dead_addresses_are_hard() -> None:
    assert set(MEANINGS) == set(Category)
    hard = {category for category, meaning in MEANINGS.items() if meaning.permanent is HARD}
    assert hard == {Category.INVALID_RECIPIENT, Category.INACTIVE_MAILBOX, Category.BAD_DOMAIN}
    assert all(meaning.temporary is not HARD for meaning in MEANINGS.values())


def test_a_category_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="Nonsense"):
        load({"rule": [{"category": "Nonsense", "patterns": []}], "enhanced": {}, "basic": {}})


@pytest.mark.parametrize(
    ("code", "text", "category", "bounce_class"),
    [
        # the same words, for good and for now
        (550, "5.1.1 User unknown", "InvalidRecipient", HARD),
        (450, "4.1.1 User unknown in local recipient table", "InvalidRecipient", SOFT),
        (550, "5.2.1 This account is disabled", "InactiveMailbox", HARD),
        (450, "4.2.1 This account is disabled", "InactiveMailbox", SOFT),
        # full is never dead
        (552, "5.2.2 Mailbox full", "QuotaIssues", SOFT),
        (554, "5.1.1 user is over quota", "QuotaIssues", SOFT),
        (
            552,
            "5.2.2 The recipient's inbox is out of storage space and inactive",
            "QuotaIssues",
            SOFT,
        ),
        # codes alone
        (550, "5.1.1", "InvalidRecipient", HARD),
        (550, "5.1.2", "BadDomain", HARD),
        (556, "5.1.10", "BadDomain", HARD),
        (550, "5.7.1", "PolicyRelated", BLOCK),
        (550, "5.7.26", "AuthenticationFailed", BLOCK),
        (554, "5.6.1", "ContentRelated", MESSAGE),
        (550, "5.4.7", "MessageExpired", SOFT),
        (551, "", "InvalidRecipient", HARD),
        (552, "", "QuotaIssues", SOFT),
        # codes of a mailbox, and not a word
        (550, "", "InvalidRecipient", HARD),
        (550, "5.0.0 Requested action not taken", "InvalidRecipient", HARD),
        (550, "550 5.5.0 rejected", "InvalidRecipient", HARD),
        (553, "<ann@example.org>... refused", "InvalidRecipient", HARD),
        (554, "5.0.0", "Uncategorized", SOFT),
        (0, "", "Uncategorized", SOFT),
        # what is not understood is soft
        (554, "5.0.0 Transaction failed", "Uncategorized", SOFT),
        (550, "unknown error", "Uncategorized", SOFT),
        (451, "something odd", "TransientFailure", SOFT),
        # about us
        (550, "5.7.1 Relaying denied", "RelayDenied", BLOCK),
        (550, "5.7.1 Helo command rejected: Host not found", "AuthenticationFailed", BLOCK),
        (550, "5.1.8 Sender address rejected: Domain not found", "InvalidSender", BLOCK),
        (421, "4.7.0 Too many connections from your IP", "PolicyRelated", BLOCK),
        (554, "5.7.1 Blocked, see https://www.spamhaus.org/query/ip/192.0.2.1", "SpamBlock", BLOCK),
        # about the message
        (552, "5.3.4 Message size exceeds fixed limit", "ContentRelated", MESSAGE),
        (554, "5.7.1 Virus found: Eicar", "VirusRelated", MESSAGE),
        # not for now, whatever the words say
        (451, "4.7.1 Greylisted, please come back in 5 minutes", "Greylisted", SOFT),
        (0, "Host not found, try again", "DNSFailure", SOFT),
        (0, "Host not found", "BadDomain", HARD),
    ],
)
def test_what_replies_mean(code: int, text: str, category: str, bounce_class: BounceClass) -> None:
    found = classify_reply(code, text)
    assert (found.category, found.bounce_class) == (category, bounce_class)


@pytest.mark.parametrize(
    "text",
    [
        "550 the message is not valid",
        "550 message-id not found",
        "554 Your e-mail was deleted",
        "550 this address is not authorized to send",
        "550 Reason 1 (Unable-To-Transfer); Diagnostic -1 (Unknown)",
        "550 an undisclosed address",
        "550 host does not accept mail from 192.0.2.1",
        "550 5.7.1 <unknown.user@example.org>: rejected",
        "550 5.7.1 <no-such-user@example.org>: not accepted from you",
        "Die E-Mail konnte nicht zugestellt werden",
    ],
)
def test_nothing_else_kills_an_address(text: str) -> None:
    assert classify_reply(0, text).bounce_class is not HARD


@pytest.mark.parametrize(
    ("text", "normalised", "enhanced"),
    [
        (
            "550-5.1.1 The account that you\r\n550-5.1.1 tried does not\r\n550 5.1.1 exist",
            "550-5.1.1 the account that you tried does not exist",
            "5.1.1",
        ),
        (
            "host mx.spam.example[192.0.2.1] said: 450 4.2.2 Bob's box <bob@example.org> full",
            "450 4.2.2 bobs box <@> full",
            "4.2.2",
        ),
        ("blocked 5.1.1.1 by us", "blocked 192.0.2.1 by us", ""),
        ("550 seen 17 times x1-2002a170b-9 (S775)", "550 seen 10 times # (s775)", ""),
        ("SMTP; 550 (#5.1.1)", "smtp; 550 (#5.1.1)", "5.1.1"),
    ],
)
def test_how_a_reply_is_read(text: str, normalised: str, enhanced: str) -> None:
    assert normal(text) == (normalised, enhanced)


@pytest.mark.parametrize(
    ("normalised", "code"),
    [
        ("550 no", 550),
        ("smtp; 450 x", 450),
        ("smtp;550-5", 550),
        ("x 550", 0),
        ("5501", 0),
        ("", 0),
    ],
)
def test_the_basic_code(normalised: str, code: int) -> None:
    assert basic_code(normalised) == code


def test_which_code_decides_how_long_it_lasts() -> None:
    assert is_permanent(550, "", "4.1.1")
    assert not is_permanent(450, "", "5.1.1")
    assert not is_permanent(0, "450 x", "5.1.1")
    assert not is_permanent(0, "x", "4.1.1")
    assert is_permanent(0, "x", "")


@given(st.integers(0, 999), st.text(max_size=2_000))
def test_any_text_has_an_answer(code: int, text: str) -> None:
    found = classify_reply(code, text)
    assert found.category in {category.value for category in Category}
    assert found.words
    if str(code)[0] == "4":
        assert found.bounce_class is not HARD
