"""What names an erased person in texts that are not their own, and how it is found there.

A row that carries the person's id goes with the person. Other texts may still name them: the reply
of a mail server about another message, the evidence of a suppression, a body in quarantine, an
event of somebody else. There the name is replaced by ``[erased]``, as a whole word, in any case;
what was JSON stays JSON.

Identities are what others chose: a user called ``newsletter``, a browser that says its id is
``type``, customer 104. A name that cannot be told from other words and numbers must not be taken
out of the texts of others, so in those only **telling** names are looked for: addresses, and
identities of six signs and more with a digit among them, or of ten digits. The others are looked
for as the value of a JSON member that names somebody (``"id": "C-17"``), and only in bodies in
quarantine, which may be theirs altogether. An anonymous id, which any visitor may make up, is
looked for there alone, and under its own name (``IN_BODIES``); so their number costs no pattern.

The pattern is RE2's, and runs in DuckDB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from manta.ids import encode_id
from manta.people.identities import ANONYMOUS_ID, EMAIL

REPLACED = "[erased]"
TELLING_LENGTH_MIN = 6  # of names other than addresses, to be looked for in free text
TELLING_DIGITS_MIN = 10  # of names that are a number
QUOTED_LENGTH_MIN = 2
_NAMING = (
    "(?:id|customer|user|username|login|phone|account|member|number)"  # ends of members' names
)
# The anonymous ids in a body, as SQL: the senders of both conventions name them alike.
IN_BODIES = r"""regexp_extract_all({column}, '"anonymous_?[iI]d"\s*:\s*"((?:[^"\\]|\\.)*)"', 1)"""
NOTHING = r"[^\s\S]"  # a pattern that no text has
_BEFORE = r"(^|[^\pL\pN_.+@-]|\\[bfnrt])"  # also behind JSON's sign for the end of a line
_AFTER = r"($|[^\pL\pN_@.-]|[.-](?:$|[^\pL\pN]))"

# What stood there was a number of JSON's. No braces and no question marks: it stands in templates.
_BARE = r"([:,\[]\s*)\[erased\](\s*(,|\]|\x7D))"


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
    words = [name.value for name in names if is_telling(name)]
    return words + [text for id in people for text in (encode_id(id), str(id))]


def is_telling(name: Name) -> bool:
    """Whether a name may be looked for in the texts of others; see the module."""
    if name.kind in (EMAIL, ANONYMOUS_ID):
        return name.kind == EMAIL
    digits = sum(c.isdigit() for c in name.value)
    if digits == len(name.value):
        return digits >= TELLING_DIGITS_MIN
    return digits > 0 and len(name.value) >= TELLING_LENGTH_MIN


def body_pattern(names: Iterable[Name], people: Iterable[int]) -> str:
    """The same, or any name as the value of a member that names somebody, for bodies that may be
    the person's own."""
    names = list(names)
    people = list(people)
    parts = [pattern(names, people)] if _telling(names, people) else []
    quoted = [
        n.value for n in names if n.kind != ANONYMOUS_ID and len(n.value) >= QUOTED_LENGTH_MIN
    ]
    if quoted:
        parts.append(f'(?i){_NAMING}"\\s*:\\s*"(?:{_any(quoted)})"')
    return "|".join(f"(?:{part})" for part in parts) or NOTHING


def anonymous(names: Iterable[Name]) -> list[str]:
    """The anonymous ids among names, for ``IN_BODIES``."""
    return sorted({name.value for name in names if name.kind == ANONYMOUS_ID})


def replaced(column: str, text: str) -> str:
    """The SQL that gives a column without what the pattern finds. ``text``: the pattern's SQL, such
    as a parameter. Twice, since two names may share the one sign between them.

    A number of a JSON text that is a name becomes 0, which is right within a string too.
    """
    once = f"regexp_replace({column}, {text}, '\\1{REPLACED}\\2', 'g')"
    new = f"regexp_replace({once}, {text}, '\\1{REPLACED}\\2', 'g')"
    mended = new
    for _ in range(2):
        mended = f"regexp_replace({mended}, '{_BARE}', '\\10\\2', 'g')"
    return f"CASE WHEN json_valid({column}) AND NOT json_valid({new}) THEN {mended} ELSE {new} END"


def _any(words: Sequence[str]) -> str:
    forms: list[str] = []
    for word in words:
        escaped = json.dumps(word)[1:-1]  # as a JSON text has it that is ASCII throughout
        forms += [word] if escaped == word else [word, escaped]
    return "|".join(re.escape(form) for form in dict.fromkeys(forms))
