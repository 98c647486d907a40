"""What kind of program asks, by the name that it gives itself (RFC 9110 §10.1.5).

A name proves nothing: whoever wants to pass for a browser does. It is believed where it speaks
against itself: nobody calls himself a crawler who is none. The lists are data beside this module
and come in three sorts: words that give a machine away whoever made it, names of crawlers, and
innocent words that look like either. Programs for reading mail are people's, whatever they are
called. A name without any platform is a tool's, since what people use says where it runs.

``recognise`` costs a few µs for a new name (one RE2 automaton, linear in the name's length,
so no name can make it slow) and a dictionary look-up for one that was seen before.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from enum import StrEnum
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

import re2

KNOWN_MAX = 8_192  # names whose kind is remembered
LENGTH_MAX = 512  # of a name; the rest is not looked at
_MEMORY_BYTES_MAX = 64 << 20  # of the automaton: it is built as far as names have needed it


class Agent(StrEnum):
    """The kinds of programs."""

    BROWSER = "browser"  # or an app of a person's
    MAIL_PROGRAM = "mail_program"
    IMAGE_PROXY = "image_proxy"  # of a mailbox provider: fetches what is displayed to somebody
    SCANNER = "scanner"  # looks at links before the person may
    CRAWLER = "crawler"  # crawlers, libraries, monitors, previews
    BARE = "bare"  # "Mozilla/5.0" and no more: a privacy proxy, or anybody
    EMPTY = "empty"  # no name at all

    @property
    def is_machine(self) -> bool:
        """Whether the name alone says that no person runs the program."""
        return self in (Agent.IMAGE_PROXY, Agent.SCANNER, Agent.CRAWLER)


class _Lists(NamedTuple):
    """Each list as one program."""

    suspect: re2._Regexp  # matches where any of the machines' lists does
    image_proxy: re2._Regexp
    scanner: re2._Regexp
    mail_program: re2._Regexp
    loud: re2._Regexp
    innocent: re2._Regexp
    bare: re2._Regexp
    platform: re2._Regexp
    poor: re2._Regexp
    engine: re2._Regexp


@lru_cache(maxsize=KNOWN_MAX)
def recognise(user_agent: str) -> Agent:
    """The kind of the program with this name."""
    name = user_agent[:LENGTH_MAX].strip()
    if not name or name == "-":
        return Agent.EMPTY
    lists = _lists()
    if lists.bare.search(name):
        return Agent.BARE
    if lists.suspect.search(name):
        if lists.image_proxy.search(name):
            return Agent.IMAGE_PROXY
        if lists.mail_program.search(name) and not lists.loud.search(name):
            return Agent.MAIL_PROGRAM
        if lists.scanner.search(name):
            return Agent.SCANNER
        if lists.suspect.search(lists.innocent.sub(" ", name)):
            return Agent.CRAWLER
    if lists.mail_program.search(name):
        return Agent.MAIL_PROGRAM
    if not lists.platform.search(name):
        return Agent.CRAWLER
    if lists.poor.search(name) and not lists.engine.search(name):
        return Agent.CRAWLER
    return Agent.BROWSER


def documents() -> tuple[dict[str, Any], list[str]]:
    """The lists as they lie in the package: our own, and the crawlers' names."""
    folder = resources.files("manta.traffic")
    own = tomllib.loads((folder / "user_agents.toml").read_text(encoding="utf-8"))
    lines = (folder / "crawlers.txt").read_text(encoding="utf-8").splitlines()
    return own, [line for line in lines if line and not line.startswith("#")]


@cache
def _lists() -> _Lists:
    own, crawlers = documents()
    machines = [*own["image_proxy"], *own["scanner"], *own["machine"], *own["tools"]]
    return _Lists(
        suspect=_program([f"(?i:{_any(machines)})", *crawlers]),
        image_proxy=_program(own["image_proxy"], "(?i)"),
        scanner=_program(own["scanner"], "(?i)"),
        mail_program=_program(own["mail_program"], "(?i)"),
        loud=_program([own["loud"]], "(?i)"),
        innocent=_program(own["innocent"], "(?i)"),
        bare=_program([r"^mozilla/\d\.\d$"], "(?i)"),
        platform=_program([own["platform"]], "(?i)"),
        poor=_program(own["poor"], "(?i)"),
        engine=_program([own["engine"]], "(?i)"),
    )


def _program(patterns: Sequence[str], flags: str = "") -> re2._Regexp:
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES_MAX
    options.log_errors = False
    return re2.compile(flags + _any(patterns), options)


def _any(patterns: Sequence[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)
