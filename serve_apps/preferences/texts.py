"""The words of recipients' pages and of the confirmation mail, by language (``texts.toml``)."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from manta.people.topics import FALLBACK

# Norwegian is written as Bokmål, whose own tag is nb (BCP 47); nn is understood as well.
_SAME = {"nb": "no", "nn": "no"}


@cache
def texts() -> dict[str, dict[str, str]]:
    """Every text of every language."""
    raw = (files(__package__) / "texts.toml").read_text("utf-8")
    return tomllib.loads(raw)


def language_for(locale: str | None, accepted: str = "") -> str:
    """The language of ours for a person: by their locale, else by what their browser says
    (``Accept-Language``, RFC 9110 §12.5.4; order of its quality), else ``FALLBACK``."""
    wanted = [locale] if locale else _accepted(accepted)
    for tag in wanted:
        base = tag.replace("_", "-").partition("-")[0].lower()
        base = _SAME.get(base, base)
        if base in texts():
            return base
    return FALLBACK


def _accepted(header: str) -> list[str]:
    found: list[tuple[float, int, str]] = []
    for place, part in enumerate(header[:500].split(",")):
        tag, _, rest = part.strip().partition(";")
        try:
            quality = float(rest.partition("q=")[2] or 1)
        except ValueError:
            quality = 0.0
        if tag and quality > 0:
            found.append((-quality, place, tag.strip()))
    return [tag for _, _, tag in sorted(found)]
