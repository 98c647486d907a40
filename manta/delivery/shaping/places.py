"""Where in a TOML text something is said, for messages to the person who wrote it.

``tomllib`` tells no places, so the text is scanned for headers and keys: a help for the reader and
no parser. It may miss what is written in unusual ways, and then says 0.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

Path = tuple[str | int, ...]  # keys and, of lists, places from 0


def path_text(path: Path) -> str:
    """As one would write it in TOML; entries of a list are counted from 1."""
    parts = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part + 1}]")
        else:
            plain = "".join(c if c.isprintable() else "�" for c in part[:100])
            shown = plain if re.fullmatch(r"[A-Za-z0-9_-]+", plain) else f'"{plain}"'
            parts.append(f".{shown}" if parts else shown)
    return "".join(parts)


def line_in(text: str, path: Path) -> int:
    """The line that a path of keys is on: of its key, else of its table; else 0."""
    wanted = [part for part in path if isinstance(part, str)]
    counts: dict[Path, int] = {}
    table: Path = ()
    best = 0
    best_depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            names = _keys(stripped)
            if names is None:
                continue
            table = names
            if stripped.startswith("[["):
                counts[names] = counts.get(names, -1) + 1
                table = (*names, counts[names])
            here = table
        else:
            key, equals, _ = stripped.partition("=")
            is_near = equals and any(name in key for name in wanted)
            names = _keys(key) if is_near else None
            if names is None:
                continue
            here = (*table, *names)
        if len(here) > best_depth and here == path[: len(here)]:
            best, best_depth = number, len(here)
    return best


def _keys(text: str) -> Path | None:
    """The names in a header or before an equals sign."""
    header = text if text.startswith("[") else f"{text} = 0"
    try:
        found: Any = tomllib.loads(header)
    except (ValueError, RecursionError):
        return None
    names: list[str] = []
    while isinstance(found, dict) and found:
        name, found = next(iter(found.items()))
        names.append(name)
        found = found[0] if isinstance(found, list) and found else found
    return tuple(names) or None
