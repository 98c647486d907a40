"""What a shaping file is made of: bounds, rules, and the sections that hold them.

All values are frozen and complete in themselves; ``shaping_file`` reads them from TOML and
``shaping`` lays one file over another. A bound that is None says nothing, so that a lower layer
holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import ceil

import re2

from manta.delivery.reputation.actions import ActionKind, Narrower, Scope
from manta.delivery.reputation.observations import Observed

PROGRAM_STEPS_MAX = 20_000  # of a compiled rule: what keeps matching fast, whatever the pattern
TEXT_CHARACTERS_MAX = 2_000  # of a reply: what comes after is not looked at

_REPLY_CODE = re.compile(r"([245][0-9]{2})(?:-(.*))?")
_ENHANCED_CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")


@dataclass(frozen=True)
class Rate:
    """``burst``: how many at once after a pause."""

    per_s: float
    burst: int

    @classmethod
    def of(cls, count: float, period_s: float, burst: int | None = None) -> Rate:
        """Without a burst it is what one second gives, at least one."""
        per_s = count / period_s
        return cls(per_s, burst or max(1, ceil(per_s)))


@dataclass(frozen=True)
class Bounds:
    """For one source each: at one site, and (``total_…``) at all sites of a provider together."""

    rate: Rate | None = None
    connections_max: int | None = None
    connection_rate: Rate | None = None
    messages_per_connection: int | None = None
    recipients_max: int | None = None
    tls: str | None = None  # none | opportunistic | required | verified
    total_rate: Rate | None = None
    total_connections_max: int | None = None

    def over(self, base: Bounds) -> Bounds:
        """What is said here, and for the rest what ``base`` says."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(base, **said)


class RuleScope(StrEnum):
    """How far an action reaches, always from the message whose reply set it off."""

    LANE = "lane"  # this source at this site
    PROVIDER = "provider"  # this source at all sites of the provider
    CAMPAIGN = "campaign"  # this campaign at the provider, by whatever source
    SENDER = "sender"  # all mail of this sending domain at the provider, by whatever source
    SOURCE = "source"  # this source everywhere


SCOPE_FIELDS: Mapping[RuleScope, tuple[str, ...]] = {
    RuleScope.LANE: ("source", "provider", "site"),
    RuleScope.PROVIDER: ("source", "provider"),
    RuleScope.CAMPAIGN: ("provider", "campaign_id"),
    RuleScope.SENDER: ("provider", "sending_domain"),
    RuleScope.SOURCE: ("source",),
}


@dataclass(frozen=True)
class Rule:
    """When ``threshold`` replies that match came within ``period_s``: act for ``duration_s``.

    A threshold of 1 acts at once. ``patterns`` are RE2, any of them, without regard to case, on the
    reply as one line that begins with its code.
    """

    name: str
    patterns: tuple[str, ...]
    action: ActionKind
    scope: RuleScope
    duration_s: float
    threshold: int = 1
    period_s: float = 0.0
    limits: Narrower = field(default_factory=Narrower)
    examples: tuple[str, ...] = ()
    counter_examples: tuple[str, ...] = ()

    def scope_of(self, observed: Observed) -> Scope | None:
        """None where the observation lacks a field of it: nothing wider may be hit instead."""
        named = {name: getattr(observed, name) for name in SCOPE_FIELDS[self.scope]}
        if self.action is ActionKind.PAUSE:
            named.pop("provider")  # a campaign pauses as a whole
        return Scope(**named) if all(named.values()) else None


@dataclass(frozen=True)
class Section:
    """Bounds and rules of the default, of a provider or of a site. ``rules_remove`` are names of
    rules of the same section in the base file, or of default rules that do not hold here."""

    bounds: Bounds = Bounds()
    rules: tuple[Rule, ...] = ()
    rules_remove: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provider:
    """None of ``exchangers`` and ``domains``: as in the base file."""

    name: str
    title: str | None = None
    exchangers: tuple[str, ...] | None = None  # host names, or their ends with a dot before
    domains: tuple[str, ...] | None = None
    section: Section = Section()


@dataclass(frozen=True)
class SourceBounds:
    """What holds for one egress source in the place of what holds for all."""

    default: Bounds = Bounds()
    providers: Mapping[str, Bounds] = field(default_factory=dict)


def compile_patterns(patterns: tuple[str, ...], memory_bytes_max: int = 8 << 20) -> re2._Regexp:
    """One program that matches where any of the patterns does. Raises ``re2.error``."""
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = memory_bytes_max
    return re2.compile("|".join(f"(?:{pattern})" for pattern in patterns), options)


def line_of(code: int, text: str) -> str:
    """A reply as patterns see it: one line, cut, with its code first and its enhanced code once.

    The diagnostic of a DSN may begin with its type, ``smtp;`` (RFC 3464 §2.3.6). Of a reply of many
    lines servers begin each with both codes (RFC 2034 §4); left there they would stand in the
    middle of the words that a pattern looks for.
    """
    words = text[:TEXT_CHARACTERS_MAX].split()
    if words and words[0].lower() == "smtp;":
        words = words[1:]
    if not words:
        return str(code or "")
    reply = _REPLY_CODE.fullmatch(words[0])
    first = reply[1] if reply else str(code or "")
    head, rest = ([reply[2]] if reply[2] else [], words[1:]) if reply else ([], words)
    words = head + rest
    if words and _ENHANCED_CODE.fullmatch(words[0]):
        enhanced = words[0]
        repeated = {enhanced, f"{first}-{enhanced}"}
        words = [enhanced, *(word for word in words[1:] if word not in repeated)]
    return " ".join([first, *words] if first else words)
