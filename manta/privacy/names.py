"""What names an erased person in texts that are not their own, and how it is found there.

A row that carries the person's id goes with the person. Other texts may still name them: the reply
of a mail server about another message, the evidence of a suppression, a body in quarantine, an
event of somebody else. There the name is replaced by ``[erased]``, as a whole word, in any case.
Names that are too short to be told from other numbers and words are looked for only as a JSON
string of their own (``"C-17"``) and only in bodies in quarantine, which may be theirs altogether.

The pattern is RE2's, and runs in DuckDB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from manta.ids import encode_id
from manta.people.identities import EMAIL

REPLACED = "[erased]"
TELLING_LENGTH_MIN = 6  # of names other than addresses, to be looked for in free text
QUOTED_LENGTH_MIN = 2
NOTHING = r"[^\s\S]"  # a pattern that no text has
_BEFORE = r"(^|[^\pL\pN_.+@-])"
_AFTER = r"($|[^\pL\pN_@.-]|[.-](?:$|[^\pL\pN]))"


class Name(NamedTuple):
    """An identity in its compared form."""

    kind: str
    value: str


def to_json(names: Iterable[Name]) -> str:
    return json.dumps(sorted(set(names)), ensure_ascii=False, separators=(",", ":"))


def from_json(text: str | None) -> set[Name]:
    return {Name(str(kind), str(value)) for kind, value in json.loads(text or "[]")}


def pattern(names: Iterable[Name], people: Iterable[int]) -> str:
    """The RE2 pattern of the telling names and of the people's ids as text."""
    words = _telling(names, people)
    return f"(?i){_BEFORE}(?:{_any(words)}){_AFTER}" if words else NOTHING


def quick_pattern(names: Iterable[Name], people: Iterable[int]) -> str:
    """What every text has in which ``pattern`` finds something: asked first, it spares two thirds
    of the time."""
    words = _telling(names, people)
    return f"(?i)(?:{_any(words)})" if words else NOTHING


def _telling(names: Iterable[Name], people: Iterable[int]) -> list[str]:
    words = [n.value for n in names if n.kind == EMAIL or len(n.value) >= TELLING_LENGTH_MIN]
    return words + [text for id in people for text in (encode_id(id), str(id))]


def body_pattern(names: Iterable[Name], people: Iterable[int]) -> str:
    """The same, or any name as a JSON string, for bodies that may be the person's own."""
    names = list(names)
    people = list(people)
    parts = [pattern(names, people)] if _telling(names, people) else []
    quoted = [n.value for n in names if len(n.value) >= QUOTED_LENGTH_MIN]
    if quoted:
        parts.append(f'(?i)"(?:{_any(quoted)})"')
    return "|".join(f"(?:{part})" for part in parts) or NOTHING


def replaced(column: str, text: str) -> str:
    """The SQL that gives a column without what the pattern finds. ``text``: the pattern's SQL, such
    as a parameter. Twice, since two names may share the one sign between them."""
    once = f"regexp_replace({column}, {text}, '\\1{REPLACED}\\2', 'g')"
    return f"regexp_replace({once}, {text}, '\\1{REPLACED}\\2', 'g')"


def _any(words: Sequence[str]) -> str:
    forms: list[str] = []
    for word in words:
        escaped = json.dumps(word)[1:-1]  # as a JSON text has it that is ASCII throughout
        forms += [word] if escaped == word else [word, escaped]
    return "|".join(re.escape(form) for form in dict.fromkeys(forms))
