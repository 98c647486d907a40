"""Paths into JSON: the few words of JSONPath (RFC 9535) that a mapping needs, and nothing that is
run. ``$`` is the record, ``@`` the member of ``each`` that is read at the time; then names
(``.Address.City``, ``['Last name']``), places (``[0]``, ``[-1]`` from the end) and ``[*]``, all
members of a list. A path that leads nowhere has no value; that is no mistake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from manta.errors import InvalidRequest

LENGTH_MAX = 300
STEPS_MAX = 20
VALUES_MAX = 1_000  # of one path with [*]


class Every(Enum):
    """The step ``[*]``."""

    MEMBER = "[*]"


class Nothing(Enum):
    """What a path has that leads nowhere."""

    THERE = "nothing there"


NOTHING = Nothing.THERE
Step = str | int | Every
_STEP = re.compile(
    r"\.(?P<name>[^\W\d][\w-]*|\d[\w-]*)"
    r"|\[(?P<place>-?\d{1,6})\]"
    r"|(?P<every>\[\*\])"
    r"|\['(?P<single>[^'\\]*)'\]"
    r'|\["(?P<double>[^"\\]*)"\]'
)


@dataclass(frozen=True)
class Path:
    text: str
    root: str  # $ or @
    steps: tuple[Step, ...]

    @property
    def is_many(self) -> bool:
        return Every.MEMBER in self.steps

    def values(self, roots: Mapping[str, Any]) -> list[Any]:
        """All values that the path leads to."""
        found = [roots[self.root]] if self.root in roots else []
        for step in self.steps:
            found = [after for value in found for after in _after(value, step)][:VALUES_MAX]
        return found

    def value(self, roots: Mapping[str, Any]) -> Any:
        """The value there; a list of all where the path has ``[*]``; ``NOTHING`` where none is."""
        found = self.values(roots)
        if self.is_many:
            return found or NOTHING
        return found[0] if found else NOTHING


def _after(value: Any, step: Step) -> list[Any]:
    if isinstance(step, str):
        return [value[step]] if isinstance(value, dict) and step in value else []
    if not isinstance(value, list):
        return []
    if isinstance(step, Every):
        return value
    return [value[step]] if -len(value) <= step < len(value) else []


def path_of(text: Any, where: str, *, roots: str = "$", many: bool = True) -> Path:
    """The path of a text. Raises ``InvalidRequest`` that says where in it the mistake is."""
    if not isinstance(text, str) or not 0 < len(text) <= LENGTH_MAX or text[0] not in roots:
        raise InvalidRequest(
            f"{text!r:.60} is no path",
            path=where,
            expected=" or ".join(f"{root}.name" for root in roots),
        )
    steps: list[Step] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise InvalidRequest(
                f"{text[at:]!r:.60}, the end of {text!r:.100}, cannot be read",
                path=where,
                expected=".name, ['a name'], [0] or [*]",
            )
        steps.append(_step(match))
        at = match.end()
    if len(steps) > STEPS_MAX:
        raise InvalidRequest(f"{len(steps)} steps", path=where, expected=f"at most {STEPS_MAX}")
    path = Path(text, text[0], tuple(steps))
    if path.is_many and not many:
        raise InvalidRequest(
            f"{text!r:.100} leads to many values", path=where, expected="a path without [*]"
        )
    return path


def _step(match: re.Match[str]) -> Step:
    kind = match.lastgroup
    if kind == "every":
        return Every.MEMBER
    if kind == "place":
        return int(match["place"])
    return str(match[kind or "name"])
