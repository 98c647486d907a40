"""What a refusal means: a server's words → a category → whom it counts against.

One owner of the question "is this address dead, is this mailbox busy, or is it about us?", asked of
SMTP replies, of the diagnostics of delivery status notifications and of webhooks alike. The answer
is made in two steps. A **category** (KumoMTA's names, and ``Greylisted``) is found by rules that
are data (`replies.toml`): the wording first, since servers word a refusal with more care than
they number it; then the enhanced code (RFC 3463, IANA's registry); then the basic code (RFC 5321
§4.2.3). The category and whether the refusal is permanent give a **bounce class**, by a table.

The invariant: HARD only where the words or the code name the address, or its domain, as dead, and
the refusal is permanent. 550, 551 and 553 without a word do so: RFC 5321 §4.2.3 gives them for a
mailbox. Words that are not understood are SOFT. What is about the message (size,
content, a virus) never counts against an address. Pure; nothing here is lost in a crash.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, NamedTuple

import re2

from manta.delivery.reputation.observations import BounceClass

TEXT_CHARACTERS_MAX = 1_000  # of a reply that is looked at; the longest real ones have about 600
CACHED_REPLIES = 4_096
PATTERN_BYTES_MAX = 1 << 20  # of memory for the automaton of one pattern


class Category(StrEnum):
    """Why mail was refused or came back. The names are KumoMTA's; `Greylisted` is ours."""

    INVALID_RECIPIENT = "InvalidRecipient"
    DNS_FAILURE = "DNSFailure"
    SPAM_BLOCK = "SpamBlock"
    SPAM_CONTENT = "SpamContent"
    PROHIBITED_ATTACHMENT = "ProhibitedAttachment"
    RELAY_DENIED = "RelayDenied"
    AUTO_REPLY = "AutoReply"
    TRANSIENT_FAILURE = "TransientFailure"
    SUBSCRIBE = "Subscribe"
    UNSUBSCRIBE = "Unsubscribe"
    CHALLENGE_RESPONSE = "ChallengeResponse"
    BAD_CONFIGURATION = "BadConfiguration"
    BAD_CONNECTION = "BadConnection"
    BAD_DOMAIN = "BadDomain"
    CONTENT_RELATED = "ContentRelated"
    INACTIVE_MAILBOX = "InactiveMailbox"
    INVALID_SENDER = "InvalidSender"
    MESSAGE_EXPIRED = "MessageExpired"
    NO_ANSWER_FROM_HOST = "NoAnswerFromHost"
    POLICY_RELATED = "PolicyRelated"
    PROTOCOL_ERRORS = "ProtocolErrors"
    QUOTA_ISSUES = "QuotaIssues"
    RELAYING_ISSUES = "RelayingIssues"
    ROUTING_ERRORS = "RoutingErrors"
    SPAM_RELATED = "SpamRelated"
    VIRUS_RELATED = "VirusRelated"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    TOO_MANY_RECIPIENTS = "TooManyRecipients"
    UNCATEGORIZED = "Uncategorized"
    GREYLISTED = "Greylisted"


class Meaning(NamedTuple):
    """A category in plain words, and its bounce class when permanent and when not."""

    words: str
    permanent: BounceClass
    temporary: BounceClass


_HARD, _SOFT, _BLOCK = BounceClass.HARD, BounceClass.SOFT, BounceClass.BLOCK
_MESSAGE, _NONE = BounceClass.MESSAGE, BounceClass.NONE

MEANINGS: dict[Category, Meaning] = {
    Category.INVALID_RECIPIENT: Meaning("the mailbox does not exist", _HARD, _SOFT),
    Category.INACTIVE_MAILBOX: Meaning("the mailbox is disabled or not used", _HARD, _SOFT),
    Category.BAD_DOMAIN: Meaning("the domain does not exist or takes no mail", _HARD, _SOFT),
    Category.QUOTA_ISSUES: Meaning("the mailbox or its system is full", _SOFT, _SOFT),
    Category.GREYLISTED: Meaning("greylisted: to be tried again later", _SOFT, _SOFT),
    Category.TRANSIENT_FAILURE: Meaning("trouble at the receiving system", _SOFT, _SOFT),
    Category.DNS_FAILURE: Meaning("the domain could not be looked up", _SOFT, _SOFT),
    Category.BAD_CONFIGURATION: Meaning("the receiving system is misconfigured", _SOFT, _SOFT),
    Category.BAD_CONNECTION: Meaning("the connection was lost", _SOFT, _SOFT),
    Category.NO_ANSWER_FROM_HOST: Meaning("the receiving host does not answer", _SOFT, _SOFT),
    Category.ROUTING_ERRORS: Meaning("the mail could not be routed", _SOFT, _SOFT),
    Category.MESSAGE_EXPIRED: Meaning("not delivered within the time allowed", _SOFT, _SOFT),
    Category.UNCATEGORIZED: Meaning("refused for a reason not understood", _SOFT, _SOFT),
    Category.SPAM_BLOCK: Meaning("the sending address or domain is blocked", _BLOCK, _BLOCK),
    Category.SPAM_CONTENT: Meaning("the message was taken for spam", _BLOCK, _BLOCK),
    Category.SPAM_RELATED: Meaning("refused as spam", _BLOCK, _BLOCK),
    Category.POLICY_RELATED: Meaning("refused by the receiver's policy or rate", _BLOCK, _BLOCK),
    Category.AUTHENTICATION_FAILED: Meaning("SPF, DKIM or DMARC failed", _BLOCK, _BLOCK),
    Category.INVALID_SENDER: Meaning("the sender's address or domain was refused", _BLOCK, _BLOCK),
    Category.RELAY_DENIED: Meaning("the server does not relay for us", _BLOCK, _BLOCK),
    Category.RELAYING_ISSUES: Meaning("the server could not relay the mail", _BLOCK, _BLOCK),
    Category.TOO_MANY_RECIPIENTS: Meaning("too many recipients at once", _BLOCK, _BLOCK),
    Category.CONTENT_RELATED: Meaning(
        "the message's size or content was refused", _MESSAGE, _MESSAGE
    ),
    Category.PROHIBITED_ATTACHMENT: Meaning("an attachment was refused", _MESSAGE, _MESSAGE),
    Category.VIRUS_RELATED: Meaning("taken for a virus", _MESSAGE, _MESSAGE),
    Category.PROTOCOL_ERRORS: Meaning("the server did not take our commands", _MESSAGE, _SOFT),
    Category.AUTO_REPLY: Meaning("an automatic reply", _NONE, _NONE),
    Category.SUBSCRIBE: Meaning("a wish to subscribe", _NONE, _NONE),
    Category.UNSUBSCRIBE: Meaning("a wish to unsubscribe", _NONE, _NONE),
    Category.CHALLENGE_RESPONSE: Meaning("the receiver asks for a confirmation", _NONE, _NONE),
}


class Classified(NamedTuple):
    """``category`` is a `Category`'s value, ``words`` say it to a person."""

    category: str
    bounce_class: BounceClass
    words: str


@dataclass(frozen=True)
class Rule:
    """One row of `replies.toml`: RE2 patterns over a reply as `normal` writes it.

    ``is_weak``: asked only after the enhanced codes."""

    category: Category
    patterns: tuple[str, ...]
    examples: tuple[str, ...]
    words: str
    is_weak: bool


class Rules:
    """All rules behind one automaton of the literals in them: a reply is read once for those, and
    then only by the few patterns whose literals it has. One automaton of all patterns together has
    so many states that it is built anew for every reply of a new wording."""

    def __init__(
        self, rules: tuple[Rule, ...], enhanced: dict[str, Category], basic: dict[str, Category]
    ) -> None:
        options = re2.Options()
        options.never_capture = True
        options.log_errors = False
        options.max_mem = PATTERN_BYTES_MAX
        self.rules, self._enhanced, self._basic = rules, enhanced, basic
        self._filter = re2.Filter()
        self.rule_of_pattern: list[int] = []
        for index, rule in enumerate(rules):
            for pattern in rule.patterns:
                self._filter.Add(pattern, options)
                self.rule_of_pattern.append(index)
        self._filter.Compile()

    def matches(self, normalised: str) -> list[int]:
        """The numbers of the patterns that match, counted through all rules in order."""
        return sorted(self._filter.Match(normalised) or ())

    def classify(self, code: int, normalised: str, enhanced: str) -> Classified:
        """What a reply means that `normal` has read."""
        category, words = self._category(code or basic_code(normalised), normalised, enhanced)
        meaning = MEANINGS[category]
        permanent = is_permanent(code, normalised, enhanced)
        bounce_class = meaning.permanent if permanent else meaning.temporary
        return Classified(category.value, bounce_class, words or meaning.words)

    def _category(self, code: int, normalised: str, enhanced: str) -> tuple[Category, str]:
        found = [self.rule_of_pattern[number] for number in self.matches(normalised)]
        strong = [index for index in found if not self.rules[index].is_weak]
        if strong:
            rule = self.rules[min(strong)]
            return rule.category, rule.words
        detail = enhanced.partition(".")[2]
        by_code = self._enhanced.get(detail) or self._enhanced.get(detail.partition(".")[0])
        if by_code is not None:
            return by_code, ""
        if found:
            rule = self.rules[min(found)]
            return rule.category, rule.words
        by_basic = self._basic.get(str(code))
        if by_basic is not None:
            return by_basic, ""
        if code in _OF_MAILBOXES and _SAYS_NOTHING.fullmatch(normalised):
            return Category.INVALID_RECIPIENT, "the mailbox was refused without a reason"
        return (Category.TRANSIENT_FAILURE if code // 100 == 4 else Category.UNCATEGORIZED), ""


# All over a text of bounded length, and none with nested repeats.
_SAID = re.compile(
    r"\b(?:said|says|replied|responded|returned|response|answered|error):? ?(?=\d{3}[ -]|[45]\.\d)"
)
_CONTINUED = re.compile(r"(?<=.) [245]\d\d[- ](?:#?[245]\.\d{1,3}\.\d{1,3} )?(?=\S)")
_ADDRESS = re.compile(r"[^\s<>@:;,()\[\]]{1,64}@[^\s<>@:;,()\[\]]{1,255}")
_ENHANCED = re.compile(r"(?<![\d.])([245]\.\d{1,2}\.\d{1,3})(?!\.?\d)")
_BASIC = re.compile(r"^(?:[a-z0-9-]{1,20}; ?)?(?:smtp (?:error )?(?:code )?)?\(?#?([245]\d\d)\b")
# Codes of a mailbox that is not to be had (RFC 5321 §4.2.3), and replies that only repeat so much.
_OF_MAILBOXES = frozenset({550, 551, 553})
_SAYS_NOTHING = re2.compile(
    r"(?:[\W\d_]+|smtp|esmtp|x-unix|error|code|permanent(?:ly)?|fatal|failure|failed|delivery|"
    r"requested|mail|message|action|not|taken|ok|undeliverable|undelivered|rejected|refused|@)*"
)
# What differs from reply to reply and says nothing: without it most replies are known ones.
_IP = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_ID = re.compile(r"\b(?=[a-z_-]{0,40}\d)[a-z0-9_-]{10,80}\b")
_NUMBER = re.compile(r"(?<![\w.])(?![245]\d\d(?!\d))\d+(?![\w.]*\w)")
_QUOTES = str.maketrans("", "", "'\"`’‘“”´")


def normal(text: str) -> tuple[str, str]:
    """The reply as rules read it, and its enhanced code or "".

    In lower case on one line, without quotes; addresses are a lone "@", so that nobody's name is
    taken for a reason; codes repeated on continued lines (RFC 5321 §4.2.1) are left out; IP
    addresses, ids and numbers are all alike."""
    line = " ".join(text[:TEXT_CHARACTERS_MAX].split()).lower()
    if line.isascii():  # several times as fast as a table
        line = line.replace("'", "").replace('"', "").replace("`", "")
    else:
        line = line.translate(_QUOTES)
    said = _SAID.search(line)
    if said:
        line = line[said.end() :]
    if "@" in line:
        line = _ADDRESS.sub("@", line)
    enhanced = _ENHANCED.search(line)
    first = _BASIC.match(line) or _CONTINUED.search(line)
    if first:
        line = line[: first.end()] + _CONTINUED.sub(" ", line[first.end() :])
    if line.count(".") >= 3:
        line = _IP.sub("192.0.2.1", line)
    line = _NUMBER.sub("10", _ID.sub("#", line))
    return line, enhanced.group(1) if enhanced else ""


def basic_code(normalised: str) -> int:
    found = _BASIC.match(normalised)
    return int(found.group(1)) if found else 0


def is_permanent(code: int, normalised: str, enhanced: str) -> bool:
    """The basic code decides, then the enhanced one; what has none was given up for good."""
    digit = str(code or basic_code(normalised) or enhanced or 5)[0]
    return digit != "4"


@functools.lru_cache(maxsize=CACHED_REPLIES)
def classify_reply(code: int, text: str) -> Classified:
    """What an SMTP reply or the diagnostic of a DSN says.

    ``code`` is the basic code, or 0 where none is known: the text's own codes then decide, and a
    refusal without any code counts as permanent. Never raises.
    """
    return _known(code, *normal(text))


@functools.lru_cache(maxsize=CACHED_REPLIES)
def _known(code: int, normalised: str, enhanced: str) -> Classified:
    return rules().classify(code, normalised, enhanced)


def load(document: dict[str, Any]) -> Rules:
    """The rules of a parsed `replies.toml`. A bad row is a fault of ours and raises."""
    rows = tuple(
        Rule(
            Category(row["category"]),
            tuple(row["patterns"]),
            tuple(row.get("examples", ())),
            row.get("words", ""),
            row.get("weak", False),
        )
        for row in document["rule"]
    )
    enhanced = {code: Category(name) for code, name in document["enhanced"].items()}
    return Rules(rows, enhanced, {code: Category(name) for code, name in document["basic"].items()})


@functools.cache
def rules() -> Rules:
    """The rules that are shipped, compiled once in a process."""
    text = resources.files("manta.delivery.returns").joinpath("replies.toml").read_text("utf-8")
    return load(tomllib.loads(text))
