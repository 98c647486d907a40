"""The shaping file: TOML text → checked values (docs/shaping.md is its reference).

The reader is strict, since a key that is misspelt would mean mail without a limit: what is not
known is refused with the nearest known name, and every refusal names the table, the key and, where
a scan of the text finds it, the line. It never sees a second file; ``shaping`` merges.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any, Never, TypeVar

import re2

from manta.delivery.lanes import OTHERS
from manta.delivery.reputation.actions import ActionKind, Narrower
from manta.delivery.shaping.places import Path, line_in, path_text
from manta.delivery.shaping.values import (
    PROGRAM_STEPS_MAX,
    Bounds,
    Provider,
    Rate,
    Rule,
    RuleScope,
    Section,
    SourceBounds,
    compile_patterns,
    line_of,
)
from manta.errors import InvalidRequest

FILE_BYTES_MAX = 1 << 20
PROVIDERS_MAX = 500
SITES_MAX = 5_000
SOURCES_MAX = 500
RULES_MAX = 2_000
NAMES_MAX = 2_000  # domains or exchangers of one provider
PATTERNS_MAX = 50  # of one rule
PATTERN_CHARACTERS_MAX = 1_000
EXAMPLE_CHARACTERS_MAX = 1_000
CONNECTIONS_MAX = 10_000
MESSAGES_PER_CONNECTION_MAX = 100_000
RECIPIENTS_MAX = 1_000
BURST_MAX = 1_000_000
RATE_PER_S_MAX = 1_000_000.0
THRESHOLD_MAX = 1_000
PERIOD_S_MAX = 7 * 86_400.0
DURATION_S_MIN, DURATION_S_MAX = 10.0, 30 * 86_400.0
TLS = ("none", "opportunistic", "required", "verified")

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_RATE_UNITS_S = {"s": 1.0, "min": 60.0, "h": 3_600.0, "day": 86_400.0}
_DURATION = re.compile(r"([0-9]{1,9}) ?([smhd])")
_RATE = re.compile(r"([0-9]{1,9}) ?/ ?(s|min|h|day)(?:, ?burst ([0-9]{1,9}))?")
_TRIGGER = re.compile(r"([0-9]{1,9}) in ([0-9]{1,9} ?[smhd])")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_RULE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})+")

Table = Mapping[str, Any]
_Word = TypeVar("_Word", ActionKind, RuleScope)


@dataclass(frozen=True)
class File:
    """One file by itself."""

    dated: date | None = None
    default: Section = field(default_factory=Section)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    sites: Mapping[str, Section] = field(default_factory=dict)
    sources: Mapping[str, SourceBounds] = field(default_factory=dict)


class _Wrong(Exception):
    def __init__(self, path: Path, message: str, expected: str) -> None:
        super().__init__(message)
        self.path, self.message, self.expected = path, message, expected


def read(text: str) -> File:
    """Raises ``InvalidRequest`` with ``path`` and ``line`` (0: not found)."""
    try:
        size = len(text.encode())
        if size > FILE_BYTES_MAX:
            _refuse((), f"the file has {size:,} bytes", f"at most {FILE_BYTES_MAX:,}")
        document = tomllib.loads(text)
    except _Wrong as wrong:
        raise InvalidRequest(wrong.message, expected=wrong.expected) from None
    except (ValueError, RecursionError) as error:
        said = str(error)[:200] if isinstance(error, ValueError) else "nested too deeply"
        raise InvalidRequest(f"the shaping file is not TOML: {said}") from None
    try:
        return _file(document)
    except _Wrong as wrong:
        raise refusal(text, wrong.path, wrong.message, wrong.expected) from None


def refusal(text: str, path: Path, message: str, expected: str = "") -> InvalidRequest:
    """What is wrong at a place of the file, with the line where a scan finds it."""
    line = line_in(text, path)
    where = path_text(path)
    said = f"line {line}: {where}: {message}" if line else f"{where}: {message}"
    return InvalidRequest(said, path=where, expected=expected, line=line)


def _refuse(path: Path, message: str, expected: str = "") -> Never:
    raise _Wrong(path, message, expected)


# -- the document ----------------------------------------------------------------------------------


def _file(document: Table) -> File:
    _known((), document, ("dated", "default", "provider", "site", "source"))
    dated = document.get("dated")
    if dated is not None and (not isinstance(dated, date) or isinstance(dated, datetime)):
        _refuse(("dated",), f"{_shown(dated)} is not a day", "dated = 2026-01-31")
    default = _section(("default",), _table(("default",), document.get("default", {})), ())
    providers = {
        name: _provider(name, table)
        for name, table in _tables(("provider",), document, PROVIDERS_MAX)
    }
    sites = {
        name: _section(("site", name), table, ())
        for name, table in _tables(("site",), document, SITES_MAX)
    }
    sources = {
        name: _source(name, table) for name, table in _tables(("source",), document, SOURCES_MAX)
    }
    sections = [default, *(p.section for p in providers.values()), *sites.values()]
    rules = sum(len(section.rules) for section in sections)
    if rules > RULES_MAX:
        _refuse(("rule",), f"{rules:,} rules", f"at most {RULES_MAX:,}")
    return File(dated, default, providers, sites, sources)


def _provider(name: str, table: Table) -> Provider:
    path: Path = ("provider", name)
    if not _PROVIDER.fullmatch(name) or name == OTHERS:
        _refuse(
            path,
            f"{_shown(name)} cannot name a provider",
            f"1 to 64 of a-z 0-9 . _ -, not {OTHERS!r}",
        )
    title = table.get("title")
    if title is not None and (not isinstance(title, str) or not 0 < len(title) <= 100):
        _refuse((*path, "title"), f"{_shown(title)} is no title", "1 to 100 characters")
    return Provider(
        name,
        title,
        _hosts((*path, "exchangers"), table, is_suffix_allowed=True),
        _hosts((*path, "domains"), table, is_suffix_allowed=False),
        _section(path, table, ("title", "exchangers", "domains")),
    )


def _source(name: str, table: Table) -> SourceBounds:
    path: Path = ("source", name)
    _known(path, table, ("default", "provider"))
    default = _table((*path, "default"), table.get("default", {}))
    return SourceBounds(
        _bounds((*path, "default"), default, ()),
        {
            provider: _bounds((*path, "provider", provider), bounds, ())
            for provider, bounds in _tables((*path, "provider"), table, PROVIDERS_MAX)
        },
    )


def _section(path: Path, table: Table, besides: tuple[str, ...]) -> Section:
    bounds = _bounds(path, table, (*besides, "rule", "rules_remove"))
    entries = table.get("rule", [])
    if not isinstance(entries, list):
        _refuse((*path, "rule"), "rules are a list of tables", f"[[{path_text((*path, 'rule'))}]]")
    rules = tuple(
        _rule((*path, "rule", place), _table((*path, "rule", place), entry))
        for place, entry in enumerate(entries)
    )
    names: set[str] = set()
    for place, rule in enumerate(rules):
        if rule.name in names:
            _refuse((*path, "rule", place, "name"), f"a second rule {rule.name}", "another name")
        names.add(rule.name)
    return Section(bounds, rules, _texts((*path, "rules_remove"), table, RULES_MAX, 64) or ())


def _bounds(path: Path, table: Table, besides: tuple[str, ...]) -> Bounds:
    _known(path, table, (*(f.name for f in fields(Bounds)), *besides))

    def number(key: str, most: int) -> int | None:
        return _number((*path, key), table[key], most) if key in table else None

    def rate(key: str) -> Rate | None:
        return _rate((*path, key), table[key]) if key in table else None

    tls = table.get("tls")
    if tls is not None and tls not in TLS:
        _refuse((*path, "tls"), f"no TLS policy {_shown(tls)}", f"one of {', '.join(TLS)}")
    return Bounds(
        rate("rate"),
        number("connections_max", CONNECTIONS_MAX),
        rate("connection_rate"),
        number("messages_per_connection", MESSAGES_PER_CONNECTION_MAX),
        number("recipients_max", RECIPIENTS_MAX),
        tls,
        rate("total_rate"),
        number("total_connections_max", CONNECTIONS_MAX),
    )


# -- rules -----------------------------------------------------------------------------------------

_LIMITS = ("rate", "connections_max", "messages_per_connection")
_RULE_KEYS = (
    "name",
    "pattern",
    "trigger",
    "action",
    "scope",
    "duration",
    "example",
    "counter_example",
    *_LIMITS,
)


def _rule(path: Path, table: Table) -> Rule:
    _known(path, table, _RULE_KEYS)
    for key in ("name", "pattern", "action", "duration"):
        if key not in table:
            _refuse(path, f"a rule without {key}", _EXPECTED[key])
    name = table["name"]
    if not isinstance(name, str) or not _RULE.fullmatch(name):
        _refuse((*path, "name"), f"{_shown(name)} cannot name a rule", _EXPECTED["name"])
    patterns = _patterns((*path, "pattern"), table)
    action = _choice((*path, "action"), table["action"], ActionKind)
    default = RuleScope.CAMPAIGN if action is ActionKind.PAUSE else RuleScope.PROVIDER
    scope = _choice((*path, "scope"), table.get("scope", default), RuleScope)
    if action is ActionKind.PAUSE and scope is not RuleScope.CAMPAIGN:
        _refuse((*path, "scope"), f"pause does not act on a {scope}", "campaign, or suspend")
    threshold, period_s = _trigger((*path, "trigger"), table.get("trigger", "at once"))
    acts_s = _duration((*path, "duration"), table["duration"], DURATION_S_MIN, DURATION_S_MAX)
    limits = _limits(path, table, action, scope)
    examples = _texts((*path, "example"), table, PATTERNS_MAX, EXAMPLE_CHARACTERS_MAX) or ()
    counter = _texts((*path, "counter_example"), table, PATTERNS_MAX, EXAMPLE_CHARACTERS_MAX) or ()
    _check_examples(path, patterns, examples, counter)
    return Rule(
        name, patterns, action, scope, acts_s, threshold, period_s, limits, examples, counter
    )


_EXPECTED = {
    "name": "1 to 64 of a-z 0-9 _ -, once in its section",
    "pattern": "what replies match, RE2: pattern = '''\\[TS04\\]'''",
    "action": f"one of {', '.join(ActionKind)}",
    "duration": 'how long it acts: duration = "90m"',
}


def _limits(path: Path, table: Table, action: ActionKind, scope: RuleScope) -> Narrower:
    given = [key for key in _LIMITS if key in table]
    if action is not ActionKind.LIMIT:
        if given:
            _refuse((*path, given[0]), f"{action} takes no limits", 'action = "limit"')
        return Narrower()
    if not given:
        _refuse(path, "a limit without limits", f"one of {', '.join(_LIMITS)}")
    if scope in (RuleScope.CAMPAIGN, RuleScope.SENDER):
        _refuse((*path, "scope"), f"limits are of lanes, not of a {scope}", "lane or provider")

    def number(key: str, most: int) -> int | None:
        return _number((*path, key), table[key], most) if key in table else None

    return Narrower(
        _rate((*path, "rate"), table["rate"]).per_s if "rate" in table else None,
        number("connections_max", CONNECTIONS_MAX),
        number("messages_per_connection", MESSAGES_PER_CONNECTION_MAX),
    )


def _patterns(path: Path, table: Table) -> tuple[str, ...]:
    patterns = _texts(path, table, PATTERNS_MAX, PATTERN_CHARACTERS_MAX)
    if not patterns:
        _refuse(path, "no pattern", _EXPECTED["pattern"])
    for pattern in patterns:
        try:
            program = compile_patterns((pattern,))
        except re2.error as error:
            _refuse(path, f"{_shown(pattern)} is no RE2 pattern: {_said(error)}", "RE2 syntax")
        if program.search("") is not None:
            _refuse(path, f"{_shown(pattern)} matches everything", "a pattern that needs text")
        if program.programsize > PROGRAM_STEPS_MAX:
            _refuse(path, f"{_shown(pattern)} is too large", "fewer or smaller repetitions")
    return patterns


def _said(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return (first.decode(errors="replace") if isinstance(first, bytes) else str(first))[:200]


def _check_examples(
    path: Path, patterns: tuple[str, ...], examples: tuple[str, ...], counter: tuple[str, ...]
) -> None:
    try:
        program = compile_patterns(patterns, 64 << 20)
    except re2.error:
        _refuse((*path, "pattern"), "the patterns together are too large", "fewer of them")
    for key, texts, is_wanted in (("example", examples, True), ("counter_example", counter, False)):
        for text in texts:
            if (program.search(line_of(0, text)) is not None) is not is_wanted:
                said = "does not match" if is_wanted else "matches"
                _refuse((*path, key), f"the pattern {said} {_shown(text)}", "another pattern")


def _trigger(path: Path, value: Any) -> tuple[int, float]:
    if value == "at once":
        return 1, 0.0
    found = _TRIGGER.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        _refuse(path, f"{_shown(value)} is no trigger", '"at once" or "3 in 1h"')
    count = int(found[1])
    if not 1 <= count <= THRESHOLD_MAX:
        _refuse(path, f"{count:,} replies", f"1 to {THRESHOLD_MAX:,}")
    period_s = _duration(path, found[2], 1.0, PERIOD_S_MAX)
    return (count, period_s) if count > 1 else (1, 0.0)


# -- single values ---------------------------------------------------------------------------------


def duration_s(text: object) -> float | None:
    """Seconds of "30s", "90m", "2h" or "7d"; None where it is none of these."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    return int(found[1]) * _UNITS_S[found[2]] if found else None


def _duration(path: Path, value: Any, least_s: float, most_s: float) -> float:
    seconds = duration_s(value)
    if seconds is None:
        _refuse(path, f"{_shown(value)} is no duration", '"30s", "90m", "2h" or "7d"')
    if not least_s <= seconds <= most_s:
        _refuse(path, f"{value} is out of bounds", f"{least_s:g} s to {most_s / 86_400:g} days")
    return seconds


def _rate(path: Path, value: Any) -> Rate:
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        _refuse(path, f"{_shown(value)} is no rate", '"100/s", "1/min, burst 5", …/h or …/day')
    rate = Rate.of(int(found[1]), _RATE_UNITS_S[found[2]], int(found[3]) if found[3] else None)
    if not 0 < rate.per_s <= RATE_PER_S_MAX or found[3] == "0" or rate.burst > BURST_MAX:
        expected = f"more than 0, at most {RATE_PER_S_MAX:,.0f} a second, burst 1 to {BURST_MAX:,}"
        _refuse(path, f"{value} is out of bounds", expected)
    return rate


def _number(path: Path, value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        _refuse(path, f"{_shown(value)} is not in bounds", f"a whole number from 1 to {most:,}")
    return value


def _choice(path: Path, value: Any, kind: type[_Word]) -> _Word:
    try:
        return kind(value)
    except ValueError:
        near = get_close_matches(str(value)[:100], list(kind), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        _refuse(path, f"{_shown(value)} is not known", f"{hint}one of {', '.join(kind)}")


def _texts(path: Path, table: Table, most: int, characters_max: int) -> tuple[str, ...] | None:
    """A list of texts; one alone needs no list. None: the key is not there."""
    value = table.get(str(path[-1]))
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if len(values) > most:
        _refuse(path, f"{len(values):,} entries", f"at most {most:,}")
    for each in values:
        if not isinstance(each, str) or not 0 < len(each) <= characters_max:
            _refuse(path, f"{_shown(each)} does not fit", f"1 to {characters_max:,} characters")
    return tuple(values)


def _hosts(path: Path, table: Table, is_suffix_allowed: bool) -> tuple[str, ...] | None:
    names = _texts(path, table, NAMES_MAX, 255)
    if names is None:
        return None
    lower = tuple(name.lower() for name in names)
    for name in lower:
        bare = name.removeprefix(".") if is_suffix_allowed else name
        if not _HOST.fullmatch(bare):
            wanted = '"mx.example.com" or ".example.com"' if is_suffix_allowed else '"example.com"'
            _refuse(path, f"{_shown(name)} is no name of a host or domain", wanted)
        if lower.count(name) > 1:
            _refuse(path, f"{name} is listed twice", "each once")
    return lower


def _tables(path: Path, parent: Table, most: int) -> Iterable[tuple[str, Table]]:
    tables = _table(path, parent.get(str(path[-1]), {}))
    if len(tables) > most:
        _refuse(path, f"{len(tables):,} tables", f"at most {most:,}")
    for name, table in tables.items():
        if not 0 < len(name) <= 500 or not name.isprintable():
            _refuse((*path, name), "is no name", "1 to 500 printable characters")
        yield name, _table((*path, name), table)


def _table(path: Path, value: Any) -> Table:
    if not isinstance(value, dict):
        _refuse(path, f"{_shown(value)} is no table", f"[{path_text(path)}]")
    return value


def _known(path: Path, table: Table, known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, list(known), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            _refuse(
                (*path, key), "there is no such key", f"{hint}one of {', '.join(sorted(known))}"
            )


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
