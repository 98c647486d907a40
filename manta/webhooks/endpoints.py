"""Endpoints: where to send, what, and how it is signed. A collection of the Catalog.

A document has ``url``, ``types`` (what is told, with ``*`` at the end), ``description``,
``ordered``, ``enabled`` and since when (``enabled_at``), ``disabled`` (cause and time, where it was
not done by hand), and ``secrets``, the newest first: that one signs, and so does each other until
its time (``until``). Shards are told all but url, description and secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from manta.clock import as_text, parse_instant
from manta.definitions import Reader
from manta.errors import InvalidRequest
from manta.schema import MESSAGE_EVENTS
from manta.webhooks.signing import secret_bytes

COLLECTION = "endpoints"
ENDPOINTS_MAX = 50
TYPES_MAX = 50
URL_LENGTH_MAX = 2_000
DESCRIPTION_LENGTH_MAX = 500
SECRETS_MAX = 4

TEST = "webhook.test"
ENDED = ("failed", "suppressed", "cancelled", "expired", "uncertain")  # a message's, beside events
# Every type but those of the customer's own events, `event.<type>`.
TYPES = (
    "person.created",
    "person.changed",
    "person.merged",
    "person.erased",
    "segment.entered",
    "segment.left",
    "consent.changed",
    "suppression.changed",
    *(f"message.{kind}" for kind in (*MESSAGE_EVENTS, *ENDED)),
)
_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:\- ]{0,70}(\.\*)?|\*")
_FAMILIES = frozenset(kind.partition(".")[0] for kind in TYPES)
_FIELDS = (
    "url",
    "types",
    "description",
    "ordered",
    "enabled",
    "enabled_at",
    "disabled",
    "secrets",
)

Document = dict[str, Any]


def checked(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The document's own fields. Raises ``InvalidRequest`` that names the field."""
    unknown = set(fields) - set(_FIELDS) - {"id"}
    if unknown:
        name = min(unknown)
        raise InvalidRequest(f"unknown field {name}", path=name, expected=", ".join(_FIELDS))
    others = [each for each in reader.list(COLLECTION) if each["id"] != fields.get("id")]
    if len(others) >= ENDPOINTS_MAX:
        raise InvalidRequest(
            f"there are {len(others)} endpoints", path="url", expected=f"at most {ENDPOINTS_MAX}"
        )
    enabled = _flag(fields, "enabled", True)
    return {
        "url": checked_url(fields.get("url")),
        "types": _types(fields.get("types")),
        "description": _description(fields.get("description")),
        "ordered": _flag(fields, "ordered", False),
        "enabled": enabled,
        "enabled_at": _text_or_none(fields.get("enabled_at")),
        "disabled": None if enabled else fields.get("disabled"),
        "secrets": _secrets(fields.get("secrets")),
    }


def shard_body(document: Document, reader: Reader) -> Document:
    """What shards are told. The version makes each change of the document known to them, and by
    them to the courier."""
    return {name: document[name] for name in ("types", "ordered", "enabled", "version")}


def shown(document: Mapping[str, Any]) -> Document:
    """A document for people: without secrets, with since when and until when the old one signs."""
    known = {name: value for name, value in document.items() if name != "secrets"}
    old = [each["until"] for each in document["secrets"][1:]]
    return {**known, "old_secret_until": old[0] if old else None}


def living_secrets(document: Mapping[str, Any], now: datetime) -> list[str]:
    """The secrets that sign now, the newest first."""
    return [
        each["secret"]
        for each in document["secrets"]
        if each["until"] is None or parse_instant(each["until"]) > now
    ]


def rotated(
    document: Mapping[str, Any], secret: str, now: datetime, lasts: timedelta
) -> list[Document]:
    """The secrets when a new one comes: the one before it signs as well until its time."""
    newest, *older = document["secrets"]
    kept = [{**newest, "until": as_text(now + lasts)}] if lasts > timedelta(0) else []
    kept += [each for each in older if parse_instant(each["until"]) > now]
    return [{"secret": secret, "until": None}, *kept][:SECRETS_MAX]


def matches(patterns: list[str], kind: str) -> bool:
    """Whether any of the patterns stands for the type."""
    return any(
        pattern == "*"
        or pattern == kind
        or (pattern.endswith(".*") and kind.startswith(pattern[:-1]))
        for pattern in patterns
    )


def checked_url(url: Any) -> str:
    """An absolute ``https`` or ``http`` URL. Whether its host may be reached, and ``http`` be used,
    is for who sends."""
    wrong = InvalidRequest(
        "this is not the URL of an endpoint",
        path="url",
        expected=f"https://host/path, up to {URL_LENGTH_MAX} printable ASCII characters, "
        "without user, password or fragment",
    )
    if not isinstance(url, str) or not 0 < len(url) <= URL_LENGTH_MAX:
        raise wrong
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' \\"<>^`{|}'):
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if not url.startswith(("https://", "http://")) or not parts.hostname or port == 0:
        raise wrong  # the scheme in small letters, as it is sent
    if "@" in parts.netloc or "#" in url:
        raise wrong
    return url


def _types(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= TYPES_MAX:
        raise InvalidRequest(
            "types is not a list of types", path="types", expected=f"1 to {TYPES_MAX}, such as *"
        )
    for n, pattern in enumerate(value):
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern) or not _known(pattern):
            raise InvalidRequest(
                f"{pattern!r:.80} is not a type",
                path=f"types[{n}]",
                expected="*, event.*, event.<type>, message.*, segment.*, person.*, "
                + ", ".join(TYPES),
            )
    return list(dict.fromkeys(value))


def _known(pattern: str) -> bool:
    if pattern == "*" or pattern.startswith("event."):
        return True
    family, _, rest = pattern.partition(".")
    return (family in _FAMILIES and rest == "*") or pattern in TYPES


def _secrets(value: Any) -> list[Document]:
    if not isinstance(value, list) or not 1 <= len(value) <= SECRETS_MAX:
        raise InvalidRequest(
            "an endpoint has no secret, or too many", path="secrets", expected=f"1 to {SECRETS_MAX}"
        )
    for each in value:
        secret_bytes(each["secret"])
    return [{"secret": each["secret"], "until": each.get("until")} for each in value]


def _description(value: Any) -> str:
    text = "" if value is None else value
    if not isinstance(text, str) or len(text) > DESCRIPTION_LENGTH_MAX or not text.isprintable():
        raise InvalidRequest(
            "the description is too long or holds control characters",
            path="description",
            expected=f"up to {DESCRIPTION_LENGTH_MAX} printable characters",
        )
    return text


def _flag(fields: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r:.40}", path=name, expected="true or false")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
