"""Bounces in prose.

Half of the bounces that arrive are no reports but prose, which some hundred systems word each in
their own way. They are not told apart here: one reader looks at the text before the returned mail
for addresses, and at how each stands there. An address that opens its line, stands alone on it or
follows `RCPT TO` or a label weighs more than one inside a sentence; only the heaviest kind found
is taken. The sender, the reporter and postmasters are never taken for recipients.

Pure; bounded in lines and recipients; linear, since all patterns over long texts are RE2's.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import re2

from manta.delivery.returns.bounce import ADDRESS, RECIPIENTS_MAX, address_of, one_line
from manta.delivery.returns.classification import classify_reply

LINES_MAX = 2_000
LINE_CHARACTERS_MAX = 1_000
DIAGNOSTIC_LINES_MAX = 12


def _linear(pattern: str) -> Any:
    """RE2, which takes time linear in the text whatever the text is."""
    return re2.compile("(?i)" + pattern)


_DAEMONS = re.compile(
    r"(?:mailer-?daemon|post-?master|mail-?daemon|abuse|support|help-?desk|help|root|double-bounce|"
    r"bounces?|no-?reply|do-?not-?reply|administrator|admin|mailadmin|webmaster|hostmaster)$"
)
_RULE = _linear(r"^[\s>]*[-=*_#~|]{2,}")
_MARKER = _linear(
    r"(?:(?:this|here|below|following|attached|enclosed|included|a|an|the|your|is|are|of) )*"
    r"(?:(?:partial )?(?:copy|headers?|beginning|first \d+ lines?|summary|start|text) of "
    r"(?:the |your |a |returned |original |undelivered |source |first )*"
    r"(?:message|mail|e-?mail|letter|part)"
    r"|below this line|(?:header and )?top \d+ lines|first \d+ (?:lines|bytes|characters)"
    r"|(?:original|unsent|returned|undelivered|undeliverable|bounced|forwarded|old|rejected|source|"
    r"failed|offending) (?:message|mail|e-?mail)"
    r"|(?:message|mail) (?:headers?|text|body|contents?|source)(?: and body)?(?: follows?)?"
    r"|(?:message|mail|headers?) follows?|your (?:message|mail) (?:reads|follows|was)"
    r"|mensaje original|mensagem original|message original|messaggio originale"
    r"|original ?nachricht|urspr(?:ü|ue)ngliche (?:nachricht|mail)|oorspronkelijk bericht"
    r"|исходное (?:письмо|сообщение)|原|附件中|元の|以下は)"
)
_RETURNED_FIELD = _linear(
    r"[>\s|]{0,4}(received|return-path|message-id|from|subject|to|date|mime-version|content-type|"
    r"x-[\w-]{1,40}|delivered-to|dkim-signature|reply-to|sender):"
)
_OPENING = _linear(
    r"^[\s>|*•·-]{0,40}(?:[-=]{1,3}> ?)?[<\[(\"'«]{0,3}(?:smtp:|mailto:|rfc822;)?\s?$"
)
_LABEL = _linear(
    r"^[\s>|*•·-]{0,40}[<\[(\"]?(?:(?:the |your |failed |final |original |intended |envelope |"
    r"invalid |bad |unknown |undeliverable |undelivered |affected |remote )*"
    r"(?:recipients?|address(?:ee)?(?:es)?|users?|mailbox(?:es)?|userid|account|error-for|"
    r"destinations?|rcpt to|delivery userid|message to|mail to|e-?mail to|e-?mail|receiver|"
    r"forward-path|failed to)(?: ?address)?(?:\(e?s\))?(?: is| was)?"
    r"|undeliverable +to|(?:generated|expanded|redirected|originally) (?:from|addressed to|sent to)"
    r"|originally addressed to|invalid final delivery userid|delivery failed \d+ attempts"
    r"|(?:an den )?empf(?:ä|ae)nger|adresse|destinataire|destinatario|получатель|адрес|收件人|宛先)"
    r"\s*[:=]?\s*[<\[(\"']{0,3}(?:smtp:|mailto:|rfc822;|undisclosed)?\s*$"
)
_COMMAND = _linear(r"(?:rcpt to:?\s*<?|[;:](?:\w{1,10}:)?smtp:\s*<?)$")
_OF_SENDER = _linear(
    r"\b(?:mail from|from|by|contact|sender|reply to|e-?mail us at|von|de):?\s*<?$"
)
# Where to write instead: to a person who is well alive.
_ELSEWHERE = _linear(
    r"\bplease (?:\S+ ){0,6}(?:to|at|via|using|use|e-?mail|address:?)\s*[<(\"]?$"
    r"|\b(?:new (?:e-?mail )?address(?: is)?|changed to|moved to|replaced by|"
    r"reach (?:me|us) (?:at|on)|try(?: \w+ing to)?|write to|instead(?: to)?|succeeded by|"
    r"bitte (?:\S+ ){0,4}an|"
    r"neue (?:e-?mail-?)?adresse(?: lautet| ist)?|nouvelle adresse(?: est)?|"
    r"nueva direcci[oó]n(?: es)?)"
    r":?\s*[<(\"]?$"
)
_CLOSING = _linear(r"^[>\])\"'»,;.]{0,4}\s*(?::|$|<|\.\.\.|,|;|\(|-{1,2} |\s{2,}|on [a-z]{3,9},)")
_CODED = re.compile(r"(?<![\d.])(?:[45]\d\d|#?[45]\.\d{1,2}\.\d{1,3})(?![\d.]*\d)")
_NAME_ALONE = _linear(r"^\s{1,40}[<\"]?([a-z][\w.+-]{1,63})[>\"]?(?:\s*$|\s{2,}|\s\")")
_REFUSES = _linear(
    r"not (?:been |be |yet )*(?:deliver|sent|reach|relay|found|known|listed|exist|a valid|recogn)|"
    r"undeliver|unable to|could ?n[o']|cannot|can't|couldn't|wasn't|did not|doesn't|does not|"
    r"do not|fail|error|unknown|invalid|reject|refus|full|quota|exceed|disabled|no such|"
    r"no longer|bounce|wrong|problem|return|delay|postpone|violation|denied|inactive|"
    r"nicht|unbekannt|pas |inconnu|no se|no pudo|não|nao |niet|не |нет |無|无|失|存在|でき|ません"
)


class Found(NamedTuple):
    """``weight``: how surely the text means this address; ``line`` where it stands."""

    address: str
    weight: int
    line: int


class Prose(NamedTuple):
    """The text of a bounce: what the system says, and the mail it returns."""

    lines: tuple[str, ...]
    returned: str


def split_prose(text: str) -> Prose:
    """What the system says ends where the returned mail, or its header, begins."""
    lines = text[: LINES_MAX * 200].split("\n")[:LINES_MAX]
    for number, line in enumerate(lines):
        if _begins_returned(lines, number, line[:200]):
            return Prose(tuple(lines[:number]), "\n".join(lines[number:]))
    return Prose(tuple(lines), "")


def _begins_returned(lines: list[str], number: int, line: str) -> bool:
    if not line or line.isspace():
        return False
    found = _RETURNED_FIELD.match(line)
    if found:
        if found.group(1).lower() in ("received", "return-path") and number:
            return True
        names = {
            match.group(1).lower()
            for match in (_RETURNED_FIELD.match(near[:200]) for near in lines[number : number + 12])
            if match
        }
        return number > 0 and len(names) >= 4 and not names.isdisjoint({"message-id", "received"})
    bare = line.strip(" \t-=*_#~|>+:.").lower()
    if not _MARKER.match(bare) or " was received" in bare:
        return False
    if _RULE.match(line) or line.rstrip().endswith((":", "follows.", "follow.", "follows", "---")):
        return True
    following = [near for near in lines[number + 1 : number + 5] if near.strip()]
    return bool(following) and (
        bool(_RETURNED_FIELD.match(following[0])) or bool(_RULE.match(following[0]))
    )


def prose_addresses(prose: Prose, not_these: frozenset[str]) -> list[Found]:
    """The addresses that the text means as its recipients: those of the heaviest kind found."""
    best: dict[str, Found] = {}
    for number, line in enumerate(prose.lines):
        if "@" not in line:
            continue
        line = line[:LINE_CHARACTERS_MAX]
        for match in ADDRESS.finditer(line):
            address = address_of(match)
            if not address:
                continue
            weight = _weight(prose.lines, number, line, match)
            if weight < 3 and _is_of_sender(address, not_these):
                continue
            if weight == 3 and _DAEMONS.match(address.partition("@")[0].lower()):
                weight = 1 if address.lower() in not_these else weight - 1
            known = best.get(address.lower())
            if known is None or known.weight < weight:
                best[address.lower()] = Found(address, weight, number)
            if len(best) >= RECIPIENTS_MAX:
                break
    best = {key: found for key, found in best.items() if found.weight > 0}
    if not best:
        return []
    heaviest = max(found.weight for found in best.values())
    return [found for found in best.values() if found.weight == heaviest]


def _is_of_sender(address: str, not_these: frozenset[str]) -> bool:
    local = address.partition("@")[0].lower()
    return address.lower() in not_these or bool(_DAEMONS.match(local))


def _weight(lines: tuple[str, ...], number: int, line: str, match: re.Match[str]) -> int:
    """4: a command or label names it. 3: it opens its line and is followed by nothing or by what
    is said of it. 2: on a line with a code or a refusal. 1: just mentioned."""
    before, after = line[: match.start()], line[match.end() :]
    if _LABEL.match(before) or _COMMAND.search(before[-60:]):
        return 3
    if match.group(0)[:5].lower() == "smtp=":  # X.400 addresses of old Exchange
        return 3
    sentence_before = before
    if not before.strip(" \t>") and number:
        sentence_before = lines[number - 1][:LINE_CHARACTERS_MAX].rstrip() + " "
    if _OF_SENDER.search(before[-60:]) or _ELSEWHERE.search(sentence_before[-100:]):
        return 0
    if _OPENING.match(before) and _CLOSING.match(after):
        return 3
    sentence = " ".join(lines[max(0, number - 1) : number + 2])[:600]
    if refuses(sentence):
        return 2
    if _CODED.search(line):
        return 2
    return 1


def refuses(text: str) -> bool:
    """Whether the words say that mail was not delivered."""
    return bool(_REFUSES.search(text))


def diagnostic_of(prose: Prose, found: list[Found], index: int) -> str:
    """What is said of one address: the rest of its line and what follows, up to the next one."""
    place = found[index]
    stop = min((f.line for f in found if f.line > place.line), default=len(prose.lines))
    line = prose.lines[place.line][:LINE_CHARACTERS_MAX]
    before, _, after = line.partition(place.address)
    words = [after.lstrip(">])\"' :,") if place.weight >= 3 else before + after]
    if place.weight < 3 and place.line:
        words.insert(0, prose.lines[place.line - 1][:LINE_CHARACTERS_MAX].strip())
    for near in prose.lines[place.line + 1 : min(stop, place.line + 1 + DIAGNOSTIC_LINES_MAX)]:
        words.append(near[:LINE_CHARACTERS_MAX].strip())
    return one_line(" ".join(words))


# Said of anything; what may be the reason is none.
_HEDGED = _linear(
    r"\b(?:may|might|could have|possibl\w+|perhaps|either|if the|please (?:check|verify)|make sure|"
    r"check (?:the|your|for)|be sure)\b"
)
_PARAGRAPHS_MAX = 40
_UNTRUSTED = frozenset({"Uncategorized", "MessageExpired", "ProtocolErrors", "TransientFailure"})


def reason_in(prose: Prose) -> str:
    """The first paragraph that gives a reason which is understood, and does so plainly."""
    for paragraph in "\n".join(prose.lines).split("\n\n", _PARAGRAPHS_MAX)[:_PARAGRAPHS_MAX]:
        text = one_line(paragraph)
        if not text or _HEDGED.search(text):
            continue
        if classify_reply(0, text).category not in _UNTRUSTED:
            return text
    return ""


def has_code(line: str) -> bool:
    """Whether the line has a basic or an enhanced code of a refusal."""
    return bool(_CODED.search(line[:LINE_CHARACTERS_MAX]))


def names_alone(prose: Prose) -> list[str]:
    """Mailbox names without a domain that stand alone on an indented line."""
    names: list[str] = []
    for line in prose.lines:
        found = _NAME_ALONE.match(line[:200])
        if found and len(names) < RECIPIENTS_MAX:
            names.append(found.group(1))
    return names
