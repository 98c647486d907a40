"""Automation: what servers say → what the shaping file's rules ask for.

Pure and deterministic: the only time it knows is that of the observations, and those may come out
of order. It owns one window for each rule and scope that has matched of late; all of it can be
lost, since a window is rebuilt by the next replies. What an action does is Reputation's business.

A reply is held against the own rules of its provider and site; only where none of them matches,
against the default's, so that a provider's known words are never also treated as a stranger's. Of
several own rules that match each counts.

A window fires when ``threshold`` messages were refused with matching words within ``period_s``, and
starts anew. While the action that it asked for runs, it stays silent until the last quarter: if the
same words fill the window then, it fires again, with the same cause and scope, and the action is
prolonged instead of let go and begun again.

Never matched: our own words (``is_internal``), or rules would keep alive what they began; and of
the words in a DSN those that would hit a whole source, or all domains without a provider behind a
relay, since a DSN speaks for the one domain that wrote it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import re2

from manta.delivery.lanes import OTHERS
from manta.delivery.reputation.actions import ActionKind, Narrower, Scope
from manta.delivery.reputation.observations import Observed, Seen
from manta.delivery.shaping.shaping import NamedRules, Shaping
from manta.delivery.shaping.values import Rule, RuleScope, compile_patterns, line_of

WINDOWS_MAX = 20_000  # rules × scopes
ENTRIES_MAX = 200_000  # of all windows together
MATCHERS_MAX = 1_000  # providers and sites with rules of their own
REPLY_CHARACTERS_MAX = 200  # of the reply that is shown with an action
LAST_PART = 0.25  # of an action's duration, in which it may be prolonged
_MEMORY_BYTES_MAX = 64 << 20  # of the patterns of one provider together
_SPOKEN = frozenset({Seen.DEFERRED, Seen.FAILED, Seen.BOUNCED, Seen.UNREACHED})


class Trigger(NamedTuple):
    """What a rule asks for, now. The same ``kind``, ``scope`` and ``cause`` again means longer."""

    kind: ActionKind
    scope: Scope
    limits: Narrower
    cause: str  # "rule yahoo/complaints"
    figures: Mapping[str, Any]
    duration_s: float


class Automation:
    """``dropped`` counts windows that were forgotten for want of room."""

    def __init__(self, shaping: Shaping) -> None:
        self._shaping = shaping
        self._matchers: OrderedDict[tuple[str, str], _Matcher] = OrderedDict()
        self._windows: OrderedDict[tuple[str, Scope], _Window] = OrderedDict()
        self._entries = 0
        self.dropped = 0

    def observe(self, observed: Observed) -> list[Trigger]:
        """The triggers that an observation sets off, mostly none."""
        if observed.seen not in _SPOKEN or observed.is_internal or not observed.text:
            return []
        if observed.messages < 1:
            return []
        line = line_of(observed.code, observed.text)
        matcher = self._matcher(observed.provider, observed.site)
        fired = [self._count(name, rule, observed, line) for name, rule in matcher.match(line)]
        return [trigger for trigger in fired if trigger is not None]

    def replace(self, shaping: Shaping) -> None:
        """Another shaping; windows of rules that stay as they were go on."""
        self._shaping = shaping
        self._matchers.clear()
        kept = {
            key: window
            for key, window in self._windows.items()
            if (key[0], window.rule) in self._matcher(window.provider, window.site).rules
        }
        self._windows = OrderedDict(kept)
        self._entries = sum(len(window.entries) for window in kept.values())

    def status(self) -> dict[str, int]:
        return {
            "windows": len(self._windows),
            "entries": self._entries,
            "dropped": self.dropped,
        }

    def _matcher(self, provider: str, site: str) -> _Matcher:
        """Whoever has no rules of their own shares the default's."""
        key = (
            provider if provider in self._shaping.providers else "",
            site if site in self._shaping.sites else "",
        )
        found = self._matchers.get(key)
        if found is None:
            found = self._matchers[key] = _Matcher(self._shaping, *key)
            if len(self._matchers) > MATCHERS_MAX:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(key)
        return found

    def _count(self, name: str, rule: Rule, observed: Observed, line: str) -> Trigger | None:
        is_hearsay = observed.seen is Seen.BOUNCED
        if is_hearsay and (rule.scope is RuleScope.SOURCE or observed.provider == OTHERS):
            return None
        scope = rule.scope_of(observed)
        if scope is None:
            return None
        window = self._window(name, rule, scope, observed)
        before = len(window.entries)
        matched = window.add(observed.occurred_at, observed.messages)
        self._entries += len(window.entries) - before
        self._make_room()
        if not matched:
            return None
        shown = "".join(c if c.isprintable() else "�" for c in line[:REPLY_CHARACTERS_MAX])
        figures = {
            "rule": name,
            "replies": matched,
            "threshold": rule.threshold,
            "period_s": rule.period_s,
            "reply": shown,
            "provider": observed.provider,
        }
        return Trigger(rule.action, scope, rule.limits, f"rule {name}", figures, rule.duration_s)

    def _window(self, name: str, rule: Rule, scope: Scope, observed: Observed) -> _Window:
        key = (name, scope)
        window = self._windows.get(key)
        if window is None:
            window = _Window(rule, observed.provider, observed.site)
            self._windows[key] = window
        self._windows.move_to_end(key)
        return window

    def _make_room(self) -> None:
        """Forget what has been silent for longest; the window just used is the last to go."""
        while len(self._windows) > WINDOWS_MAX or (
            self._entries > ENTRIES_MAX and len(self._windows) > 1
        ):
            _, gone = self._windows.popitem(last=False)
            self._entries -= len(gone.entries)
            self.dropped += 1


class _Window:
    """Matching replies of one rule in one scope: at most ``threshold`` entries, in order of time.

    ``provider`` and ``site`` are of the first reply: where the rule was found.
    """

    __slots__ = ("entries", "newest", "provider", "rule", "running_until", "site", "total")

    def __init__(self, rule: Rule, provider: str, site: str) -> None:
        self.rule = rule
        self.provider = provider
        self.site = site
        self.entries: deque[tuple[datetime, int]] = deque()
        self.total = 0
        self.newest = datetime.min
        self.running_until: datetime | None = None

    def add(self, at: datetime, messages: int) -> int:
        """How many were in the window if it fires now, else 0."""
        rule = self.rule
        self.newest = max(self.newest, at)
        if rule.threshold == 1:
            matched = messages
        else:
            self._keep(at, messages)
            matched = self.total
        if matched < rule.threshold or self._is_held():
            return 0
        self.running_until = self.newest + timedelta(seconds=rule.duration_s)
        self.entries.clear()
        self.total = 0
        return matched

    def _keep(self, at: datetime, messages: int) -> None:
        entries = self.entries
        period = timedelta(seconds=self.rule.period_s)
        if self.newest - at < period:
            if not entries or at >= entries[-1][0]:
                entries.append((at, messages))
            else:
                ordered = list(entries)
                insort(ordered, (at, messages))
                entries = self.entries = deque(ordered)
            self.total += messages
        # What has left the period, and what the newer ones make up for.
        while entries and (
            self.newest - entries[0][0] >= period
            or self.total - entries[0][1] >= self.rule.threshold
        ):
            self.total -= entries.popleft()[1]

    def _is_held(self) -> bool:
        if self.running_until is None:
            return False
        part = timedelta(seconds=self.rule.duration_s * LAST_PART)
        return self.newest < self.running_until - part


class _Matcher:
    """The rules of one provider and site, compiled. One pass tells that nothing matches, which is
    the rule; then each is asked."""

    def __init__(self, shaping: Shaping, provider: str, site: str) -> None:
        self._tiers = [_Tier(rules) for rules in shaping.tiers_of(provider, site)]
        self.rules = {entry for tier in self._tiers for entry in tier.rules}

    def match(self, line: str) -> list[tuple[str, Rule]]:
        for tier in self._tiers:
            found = tier.match(line)
            if found:
                return found
        return []


class _Tier:
    def __init__(self, rules: NamedRules) -> None:
        self.rules = rules
        self._programs = [compile_patterns(rule.patterns, _MEMORY_BYTES_MAX) for _, rule in rules]
        self._any: re2._Regexp | None = None
        if rules:
            patterns = tuple(pattern for _, rule in rules for pattern in rule.patterns)
            try:
                self._any = compile_patterns(patterns, _MEMORY_BYTES_MAX)
            except re2.error:  # too large together: each is asked
                self._any = None

    def match(self, line: str) -> list[tuple[str, Rule]]:
        if self._any is not None and self._any.search(line) is None:
            return []
        asked = zip(self.rules, self._programs, strict=True)
        return [entry for entry, program in asked if program.search(line) is not None]


# -- what would have happened ----------------------------------------------------------------------


class Replayed(NamedTuple):
    """A trigger and what it would have met.

    ``until`` is where it ends, or where the next of its kind prolongs it. ``messages`` were handed
    over within its scope while it would have run; ``messages_held`` of them would have waited or
    failed (of a limit: those beyond its rate).
    """

    at: datetime
    until: datetime
    trigger: Trigger
    messages: int
    messages_held: int


def replay(shaping: Shaping, observed: Iterable[Observed]) -> list[tuple[datetime, Trigger]]:
    """When which rule would have fired, if ``observed`` had been seen under ``shaping``."""
    automation = Automation(shaping)
    return [(each.occurred_at, t) for each in observed for t in automation.observe(each)]


def rehearse(shaping: Shaping, observed: Iterable[Observed]) -> list[Replayed]:
    """As ``replay``, with the messages that each action would have met. In one pass over
    ``observed``, which is in order of time. What happened is taken as it was: messages that would
    have been held are not taken away from what comes later."""
    automation = Automation(shaping)
    running = _Running()
    done: list[_Run] = []
    for each in observed:
        if each.seen in _ATTEMPTS and not each.is_internal:
            running.meet(each)
        for trigger in automation.observe(each):
            done.append(running.begin(each.occurred_at, trigger))
    return [run.replayed() for run in done]


_ATTEMPTS = frozenset({Seen.ACCEPTED, Seen.DEFERRED, Seen.FAILED})
_SCOPE_NAMES = ("source", "provider", "site", "campaign_id", "sending_domain")


class _Run:
    def __init__(self, at: datetime, trigger: Trigger) -> None:
        self.at = at
        self.until = at + timedelta(seconds=trigger.duration_s)
        self.trigger = trigger
        self.messages = 0

    def replayed(self) -> Replayed:
        kind, rate = self.trigger.kind, self.trigger.limits.rate_per_s
        held = self.messages
        if kind is ActionKind.LIMIT:
            allowed = int((self.until - self.at).total_seconds() * (rate or 0.0))
            held = 0 if rate is None else max(0, held - allowed)
        return Replayed(self.at, self.until, self.trigger, self.messages, held)


class _Running:
    """The actions that would run now, by the fields of their scopes."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[str, ...], dict[tuple[Any, ...], dict[str, _Run]]] = {}

    def begin(self, at: datetime, trigger: Trigger) -> _Run:
        shape = tuple(name for name in _SCOPE_NAMES if getattr(trigger.scope, name))
        values = tuple(getattr(trigger.scope, name) for name in shape)
        runs = self._by_shape.setdefault(shape, {}).setdefault(values, {})
        before = runs.get(trigger.cause)
        if before is not None:
            before.until = min(before.until, at)
        run = runs[trigger.cause] = _Run(at, trigger)
        return run

    def meet(self, observed: Observed) -> None:
        for shape, by_values in self._by_shape.items():
            values = tuple(getattr(observed, name) for name in shape)
            for run in by_values.get(values, {}).values():
                if run.at <= observed.occurred_at < run.until:
                    run.messages += observed.messages
