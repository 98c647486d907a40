"""A mail from outside as it is looked at to tell what it is: its parts, its words, its patterns.

The texts of a mail are taken together as a reader sees them, without the mail that is returned;
wordings (`arrivals.toml`) are looked for in lower case. Pure; bounded by the limits below and
by `mailparts`.
"""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Any, NamedTuple

import re2

from manta.delivery.returns import bounce, bounce_prose
from manta.delivery.returns.bounce_prose import Prose
from manta.delivery.returns.mailparts import Fields, Part, parse, words_of

TEXT_CHARACTERS_MAX = 100_000  # of a mail's own text
_WORDING_CHARACTERS_MAX = 4_000  # of a text in which wordings are looked for


class Wordings:
    """Patterns of `arrivals.toml`, one automaton for each list."""

    def __init__(self, document: dict[str, dict[str, list[str]]]) -> None:
        self._sets: dict[tuple[str, str], Any] = {}
        for kind, lists in document.items():
            for name, patterns in lists.items():
                options = re2.Options()
                options.never_capture = True
                options.log_errors = False
                options.max_mem = 32 << 20
                patterns_set = re2.Set.SearchSet(options)
                for pattern in patterns:
                    patterns_set.Add(pattern)
                patterns_set.Compile()
                self._sets[kind, name] = patterns_set

    def has(self, kind: str, name: str, text: str) -> bool:
        """``text`` as `plain` writes it."""
        return bool(text) and bool(self._sets[kind, name].Match(text))


@functools.cache
def wordings() -> Wordings:
    text = resources.files("manta.delivery.returns").joinpath("arrivals.toml").read_text("utf-8")
    return Wordings(tomllib.loads(text))


_QUOTES = str.maketrans("", "", "'`’‘´")


def plain(text: str) -> str:
    """Text as wordings are looked for in it: lower case, one line, without apostrophes."""
    return " ".join(text[:_WORDING_CHARACTERS_MAX].split()).lower().translate(_QUOTES)


class Mail(NamedTuple):
    """What the decisions look at."""

    root: Part
    fields: Fields
    sender: str
    subject: str
    prose: Prose
    said: str  # what the prose says, as `plain` writes it
    parts: dict[str, Part]  # the first of each type

    @property
    def own_addresses(self) -> frozenset[str]:
        """Who wrote this mail, and whom it was written to."""
        names = ("from", "to", "cc", "reply-to", "return-path", "delivered-to", "x-original-to")
        values = " ".join(self.fields.get(name) for name in names)
        return frozenset(address.lower() for address in bounce.addresses_in(values))


def mail_of(raw: bytes) -> Mail:
    """The mail, or the report inside it that a gateway wrapped. Bounded; never raises."""
    return _viewed(_unwrapped(parse(raw)))


def _unwrapped(root: Part) -> Part:
    """The report that a gateway put into another report as a whole; else the mail itself."""
    if root.parameters.get("report-type", "").lower() != "delivery-status":
        return root
    kinds = {part.content_type for part in root.walk()}
    if "message/delivery-status" in kinds:
        return root
    for part in root.walk():
        if part.content_type == "message/rfc822" and part.parts:
            inside = part.parts[0]
            if any(deeper.content_type == "message/delivery-status" for deeper in inside.walk()):
                return inside
    return root


def _viewed(root: Part) -> Mail:
    parts: dict[str, Part] = {}
    texts: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    for part in root.walk():
        parts.setdefault(part.content_type, part)
        if part.content_type in texts and not part.parts:
            texts[part.content_type].append(part.text()[:TEXT_CHARACTERS_MAX])
    text = "\n\n".join(texts["text/plain"])
    if not text.strip():
        text = "\n\n".join(texts["text/html"])
    if not text.strip():
        text = root.raw
    prose = bounce_prose.split_prose(text[:TEXT_CHARACTERS_MAX])
    return Mail(
        root,
        root.fields,
        words_of(root.fields.get("from")).lower(),
        words_of(root.fields.get("subject")),
        prose,
        plain("\n".join(prose.lines)),
        parts,
    )
