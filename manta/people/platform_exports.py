"""Exports of other platforms: recognised by their headers, and read for what they say of consent.

The rules are data (``platform_exports.toml``). A file's ``StatusPlan`` answers one *outcome* for
each row: ``subscribed``, ``none`` (no consent), ``pending``, ``unsubscribed``, or a suppression
(``suppressed``, ``hard_bounce``, ``complaint``); or nothing, and then the row is as the operator
says. **Invariant:** no row becomes a subscribed one unless the file says so in a word that is known
to mean it, or says nothing at all and comes from no known platform: an unknown word is ``none``,
and of several answers the strictest counts. What stands in the workspace is never overruled either
way (``UpsertPeople``, ``SuppressMany``).

Files of nobody we know are read for the same words: a column called ``status`` that holds
"unsubscribed" means it, whoever wrote it.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from manta.errors import InvalidRequest
from manta.people.suppressions import COMPLAINT, HARD_BOUNCE, MANUAL, UNSUBSCRIBED

SUBSCRIBED, NONE, PENDING = "subscribed", "none", "pending"
# From the mildest to the strictest: of several answers about a row the last of these counts.
OUTCOMES = (SUBSCRIBED, NONE, PENDING, "unsubscribed", "suppressed", "hard_bounce", "complaint")
# The reason of the suppression that an outcome asks for.
SUPPRESSING = {
    "unsubscribed": UNSUBSCRIBED,
    "suppressed": MANUAL,
    "hard_bounce": HARD_BOUNCE,
    "complaint": COMPLAINT,
}
AS_GIVEN = ""  # the file says nothing: the operator's word counts
_RANK = {outcome: rank for rank, outcome in enumerate(OUTCOMES)}
_SILENT = -1
_SPACES = re.compile(r"[\s_-]+")


class Rule(NamedTuple):
    """What one column says. ``words`` are compared whole, ``parts`` looked for in the cell; what
    fits neither is ``other``; an empty cell is ``empty``. ``None`` says nothing."""

    header: str
    place: int
    words: tuple[tuple[str, str | None], ...] = ()
    parts: tuple[tuple[str, str | None], ...] = ()
    other: str | None = NONE
    empty: str | None = None

    def outcome(self, cell: str | None) -> str | None:
        text = plain(cell or "")
        if not text:
            return self.empty
        words = dict(self.words)
        if text in words:
            return words[text]
        found = [outcome for part, outcome in self.parts if part in text]
        ranked = [outcome for outcome in found if outcome is not None]
        if ranked:
            return max(ranked, key=_RANK.__getitem__)
        return None if found else self.other


@dataclass(frozen=True)
class StatusPlan:
    """How the rows of one file are judged. ``platform`` is empty where it is not known which.

    ``sample`` counts the outcomes of the first rows: what is said before anything is written.
    """

    platform: str
    rules: tuple[Rule, ...]
    otherwise: str = AS_GIVEN  # where no rule says anything
    whole: str = AS_GIVEN  # of every row, by the file's name; never makes a row milder
    sample: tuple[tuple[str, int], ...] = ()

    def outcomes(self, columns: Sequence[pa.Array], count: int) -> pa.Array:
        """The outcome of each row; ``AS_GIVEN`` where the operator's word counts."""
        ranks = np.full(count, _RANK.get(self.whole, _SILENT), np.int8)
        for rule in self.rules:
            cells = texts_of(columns[rule.place]).dictionary_encode(null_encoding="encode")
            said = [rule.outcome(cell) for cell in cells.dictionary.to_pylist()]
            own = np.array([_SILENT if s is None else _RANK[s] for s in said], np.int8)
            if len(own):
                ranks = np.maximum(ranks, own[cells.indices.to_numpy(zero_copy_only=False)])
        names = pa.array([*OUTCOMES, self.otherwise])
        return names.take(pa.array(np.where(ranks == _SILENT, len(OUTCOMES), ranks)))


def plain(text: str) -> str:
    """The form in which headers and words are compared."""
    return _SPACES.sub(" ", text.replace("\N{NO-BREAK SPACE}", " ")).strip().strip("'\"").lower()


def recognise(
    headers: Sequence[str],
    samples: Sequence[Sequence[str | None]],
    file_name: str = "",
    words: Mapping[str, str] | None = None,
    left_alone: Iterable[str] = (),
) -> tuple[StatusPlan | None, dict[str, str]]:
    """What a file says about consent (``None``: nothing) and where the platform's columns go.

    ``words`` are the operator's own meanings of words (the empty one: where the file says nothing);
    ``left_alone`` are headers for which they have said where they go: these are judged by a
    platform's rules alone.
    """
    own = _checked(words or {})
    names = [plain(header) for header in headers]
    platform = _platform(names)
    name = plain(file_name.rpartition("/")[2])
    whole = next((each["outcome"] for each in _data()["any"]["files"] if _in(each, name)), "")
    rules: list[Rule] = []
    columns: dict[str, str] = {}
    otherwise = AS_GIVEN
    if platform is not None:
        rules = [
            rule for raw in platform["status"] if (rule := _rule(raw, headers, names)) is not None
        ]
        columns = _columns(platform, headers, names)
        otherwise = platform.get("otherwise", NONE)
        for outcome, starts in platform.get("files", {}).items():
            if not whole and name.startswith(tuple(plain(start) for start in starts)):
                otherwise = outcome
        if whole == SUBSCRIBED:
            otherwise, whole = SUBSCRIBED, ""
    covered = {rule.place for rule in rules}
    alone = set(left_alone)
    for place, header in enumerate(headers):
        if place not in covered and header not in alone:
            found = _any_rule(header, place, names[place], samples[place] if samples else ())
            rules += [found] if found is not None else []
    if own:
        otherwise = own.get("", otherwise)
        rules = [_with_words(rule, own) for rule in rules]
    if platform is None and not rules and not whole:
        return None, {}
    label = platform["name"] if platform else ""
    plan = StatusPlan(label, tuple(rules), otherwise, whole)
    count = len(samples[0]) if samples else 0
    texts = [pa.array(list(values), pa.string()) for values in samples]
    counted = Counter(plan.outcomes(texts, count).to_pylist()) if count else Counter()
    sample = tuple((o, counted[o]) for o in (*OUTCOMES, AS_GIVEN) if counted[o])
    return StatusPlan(label, plan.rules, otherwise, whole, sample), columns


def described(plan: StatusPlan | None) -> list[str]:
    """What was recognised, in sentences, for whoever is about to import the file."""
    if plan is None:
        return ["Nothing in this file says who has unsubscribed: all rows count as you say."]
    said = [f"An export of {plan.platform}." if plan.platform else "An export we do not know."]
    if plan.whole:
        said.append(f"By its name, everybody in it is {_said(plan.whole)}.")
    for rule in plan.rules:
        words = [f"{word!r} → {_said(outcome)}" for word, outcome in rule.words if outcome][:20]
        told = f": {', '.join(words)}" if words else ""
        other = "" if rule.other is None else f"; anything else → {_said(rule.other)}"
        said.append(f"Column {rule.header!r} tells of consent{told}{other}.")
    rest = "as you say" if plan.otherwise == AS_GIVEN else _said(plan.otherwise)
    said.append(f"Where no column says anything: {rest}.")
    if plan.sample:
        counts = [f"{count:,} {_said(o) if o else 'as you say'}" for o, count in plan.sample]
        said.append(f"Of the first rows: {', '.join(counts)}.")
    return said


def _said(outcome: str) -> str:
    return {NONE: "no consent", "hard_bounce": "bounced"}.get(outcome, outcome)


# -- the data --------------------------------------------------------------------------------------


@cache
def _data() -> dict[str, Any]:
    raw = (files("manta.people") / "platform_exports.toml").read_text("utf-8")
    return tomllib.loads(raw)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _in(entry: Mapping[str, str], name: str) -> bool:
    return bool(name) and _pattern(entry["name"]).search(name) is not None


def _platform(names: Sequence[str]) -> dict[str, Any] | None:
    """The platform whose signs are all there, of several the one with the most of them."""
    there = set(names)
    best: tuple[int, dict[str, Any]] | None = None
    for platform in _data()["platforms"].values():
        for sign in platform["signs"]:
            wanted = {plain(header) for header in sign}
            fits = there == wanted if platform.get("exactly") else wanted <= there
            if fits and (best is None or len(wanted) > best[0]):
                best = len(wanted), platform
    return best[1] if best else None


def _columns(
    platform: Mapping[str, Any], headers: Sequence[str], names: Sequence[str]
) -> dict[str, str]:
    targets = {plain(header): target for header, target in platform.get("columns", {}).items()}
    found: dict[str, str] = {}
    for header, name in zip(headers, names, strict=True):
        target = targets.get(name)
        if target is not None and (target == "skip" or target not in found.values()):
            found.setdefault(header, target)
    return found


def _rule(raw: Mapping[str, Any], headers: Sequence[str], names: Sequence[str]) -> Rule | None:
    """A platform's rule, if the file has its column."""
    column = plain(raw["column"])
    if column not in names:
        return None
    place = names.index(column)
    header = headers[place]
    if "filled" in raw:
        return Rule(header, place, other=raw["filled"])
    if "flag" in raw:
        return _flag(header, place, raw["flag"])
    silent = {NONE: None} if raw.get("silent") else {}
    if "holds" in raw:
        nothing = tuple((plain(word), None) for word in _data()["any"]["no"])
        parts = _pairs(raw["holds"], silent)
        return Rule(header, place, words=nothing, parts=parts, other=raw.get("else", NONE))
    words = _pairs(raw["words"], silent)
    empty = dict(words).get("")
    return Rule(header, place, words=words, other=raw.get("else", NONE), empty=empty)


def _pairs(
    table: Mapping[str, Sequence[str]], silent: Mapping[str, None]
) -> tuple[tuple[str, str | None], ...]:
    return tuple(
        (plain(word), silent.get(outcome, outcome) if outcome in silent else outcome)
        for outcome, words in table.items()
        for word in words
    )


def _flag(header: str, place: int, outcome: str) -> Rule:
    """Any cell but one of the words for *no* means the outcome."""
    words = tuple((plain(word), None) for word in _data()["any"]["no"])
    return Rule(header, place, words=words, other=outcome)


def _any_rule(header: str, place: int, name: str, values: Sequence[str | None]) -> Rule | None:
    """The rule for a column of a file from anywhere, if its header tells of consent."""
    known = _data()["any"]
    if _pattern(known["not_header"]).search(name):
        return None
    words = _pairs(known["words"], {})
    cells = {plain(value or "") for value in values}
    if _pattern(known["status_header"]).match(name):
        if cells & {word for word, _ in words}:
            return Rule(header, place, words=words, empty=NONE)
        return None
    if _pattern(known["consents"]["header"]).match(name):
        answers = [(plain(word), SUBSCRIBED) for word in known["yes"]]
        answers += [(plain(word), NONE) for word in known["no"]]
        table = (*answers, *words)
        if cells & {word for word, _ in table}:
            return Rule(header, place, words=table, empty=NONE)
        return None
    for outcome in reversed(OUTCOMES):
        pattern = known["flags"].get(outcome)
        if pattern and _pattern(pattern).search(name):
            return _flag(header, place, outcome)
    return None


def _with_words(rule: Rule, own: Mapping[str, str]) -> Rule:
    """The rule with the operator's meanings before its own."""
    mine = tuple((word, outcome) for word, outcome in own.items() if word)
    kept = tuple((word, outcome) for word, outcome in rule.words if word not in own)
    return rule._replace(words=(*mine, *kept)) if rule.words else rule


def _checked(words: Mapping[str, str]) -> dict[str, str]:
    for word, outcome in words.items():
        if outcome not in OUTCOMES:
            raise InvalidRequest(
                f"{outcome!r:.40} is no outcome of the word {word!r:.40}",
                path=f"words.{word:.40}",
                expected=", ".join(OUTCOMES),
            )
    return {plain(word): outcome for word, outcome in words.items()}


def texts_of(column: pa.Array) -> pa.Array:
    """A column of any type as text."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = column.to_pylist()
        return pa.array([None if value is None else str(value) for value in values], pa.string())
