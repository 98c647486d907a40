"""Topics: what people can agree to, how it is called in their language, and how they agree. Pure.

A topic's ``name`` is what consents and campaigns carry, so it never changes; titles and
descriptions are for people. ``double_opt_in``: a request waits for the answer to a confirmation
mail (``manta.people.double_opt_in``); it is the default. ``public`` topics stand on everybody's
preference page, others only on that of people who have them.

A confirmation mail needs a sender: a template of one's own per language (``templates``), or
``from_email`` for the one that comes with Manta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from manta.content.mime import check_address
from manta.definitions import Document, Reader, checked_name
from manta.errors import InvalidRequest
from manta.people.consents import ALL_TOPICS, CHANNELS, check_word

COLLECTION = "topics"
TOPICS_MAX = 500
LOCALES_MAX = 100
TITLE_LENGTH_MAX = 200
DESCRIPTION_LENGTH_MAX = 1_000
FALLBACK = "en"
_FIELDS = (
    "id",
    "name",
    "titles",
    "descriptions",
    "channels",
    "double_opt_in",
    "public",
    "from_email",
    "from_name",
    "templates",
)
_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4}")


def checked(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of a topic. Raises ``InvalidRequest`` that names the one that is wrong."""
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown:
        raise InvalidRequest(
            f"a topic has no field {unknown[0]:.60}",
            path=unknown[0],
            expected=", ".join(_FIELDS[1:]),
        )
    document: Document = {
        "name": _name(fields, reader),
        "titles": _texts(fields, "titles", TITLE_LENGTH_MAX),
        "descriptions": _texts(fields, "descriptions", DESCRIPTION_LENGTH_MAX),
        "channels": _channels(fields.get("channels", ["email"])),
        "double_opt_in": _flag(fields, "double_opt_in"),
        "public": _flag(fields, "public"),
        "from_email": "",
        "from_name": _text(fields.get("from_name") or "", "from_name", TITLE_LENGTH_MAX),
        "templates": _templates(fields.get("templates") or {}, reader),
    }
    if fields.get("from_email"):
        document["from_email"] = check_address(str(fields["from_email"]), "from_email")
    if "email" in document["channels"] and not (document["from_email"] or document["templates"]):
        raise InvalidRequest(
            "confirmation mails of this topic have no sender",
            path="from_email",
            expected="an address at a sending domain, or templates",
        )
    return document


def named(topics: Iterable[Document]) -> dict[str, Document]:
    return {topic["name"]: topic for topic in topics}


def title(topic: Document, locale: str | None) -> str:
    """What the topic is called for a person."""
    titles: dict[str, str] = topic["titles"]
    found = nearest(locale, titles)
    return titles[found] if found else str(topic["name"])


def description(topic: Document, locale: str | None) -> str:
    texts: dict[str, str] = topic["descriptions"]
    found = nearest(locale, texts)
    return texts[found] if found else ""


def nearest(locale: str | None, offered: Iterable[str]) -> str | None:
    """Which of the offered locales a person with ``locale`` is best served in (RFC 4647 §3.4,
    lookup): itself, less and less of it, then ``FALLBACK``, then the first; ``None`` of none."""
    known = {each.lower(): each for each in offered}
    tags = (locale or "").lower().replace("_", "-").split("-")
    for length in range(len(tags), 0, -1):
        if (found := known.get("-".join(tags[:length]))) is not None:
            return found
    if FALLBACK in known:
        return known[FALLBACK]
    return next(iter(known.values()), None)


def _name(fields: Mapping[str, Any], reader: Reader) -> str:
    name = checked_name(fields)
    others = [topic for topic in reader.list(COLLECTION) if topic["id"] != fields.get("id")]
    if name == ALL_TOPICS:
        raise InvalidRequest(f"{ALL_TOPICS} means all topics", path="name", expected="a name")
    if any(topic["name"] == name for topic in others):
        raise InvalidRequest(
            f"there is a topic {name!r:.80} already", path="name", expected="a name of its own"
        )
    own = reader.get(COLLECTION, str(fields.get("id")))
    if own is not None and own["name"] != name:
        raise InvalidRequest(
            "consents carry a topic's name, so it cannot change",
            path="name",
            expected=f"{own['name']}; its titles may change",
        )
    if len(others) >= TOPICS_MAX:
        raise InvalidRequest(
            f"there are {len(others)} topics", path="name", expected=f"at most {TOPICS_MAX}"
        )
    return name


def _texts(fields: Mapping[str, Any], path: str, length_max: int) -> dict[str, str]:
    given = fields.get(path) or {}
    if not isinstance(given, Mapping) or len(given) > LOCALES_MAX:
        raise InvalidRequest(
            f"{path} are texts by locale", path=path, expected='an object like {"en": "News"}'
        )
    return {
        _locale(locale, path): _text(text, f"{path}.{locale}", length_max)
        for locale, text in given.items()
    }


def _templates(given: Any, reader: Reader) -> dict[str, int]:
    if not isinstance(given, Mapping) or len(given) > LOCALES_MAX:
        raise InvalidRequest(
            "templates are ids by locale", path="templates", expected='an object like {"en": 3}'
        )
    found: dict[str, int] = {}
    for locale, number in given.items():
        known = reader.get("templates", str(number)) if isinstance(number, int) else None
        if known is None:
            raise InvalidRequest(
                f"there is no template {number!r:.40}",
                path=f"templates.{locale:.40}",
                expected="the id of a template",
            )
        found[_locale(locale, "templates")] = known["id"]
    return found


def _locale(locale: Any, path: str) -> str:
    if not isinstance(locale, str) or not _LOCALE.fullmatch(locale):
        raise InvalidRequest(
            f"{locale!r:.40} is not a locale", path=path, expected="BCP 47, for example de or pt-BR"
        )
    return locale


def _text(text: Any, path: str, length_max: int) -> str:
    if not isinstance(text, str) or len(text) > length_max or not text.isprintable():
        raise InvalidRequest(
            f"{path:.80} is not a text", path=path[:80], expected=f"at most {length_max} characters"
        )
    return text.strip()


def _channels(given: Any) -> list[str]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise InvalidRequest(
            "a topic has channels", path="channels", expected=f"some of {', '.join(CHANNELS)}"
        )
    for place, channel in enumerate(given):
        check_word(str(channel), CHANNELS, f"channels[{place}]")
    return [channel for channel in CHANNELS if channel in given]


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, True)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is yes or no", path=name, expected="true or false")
    return value
