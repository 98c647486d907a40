"""The definitions of a workspace as documents: attributes, templates, segments, keys, shard table.

Pure: each function takes what is there (a ``Documents`` reader) and what is asked, and returns the
document changes and the answer; the Catalog journals them. Versions never change once they exist,
so whoever pins ``(template_id, version)`` may keep a copy for ever.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from manta.clock import as_text, parse_instant
from manta.errors import Conflict, InvalidRequest, NotFound
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTES_MAX, AttributeType

NAME_LENGTH_MAX = 200
SCOPES = (
    "subscribers:read",
    "subscribers:write",
    "events:write",
    "collect",  # for keys that everybody can read, in web pages: events of anonymous visitors
    "segments:read",
    "segments:write",
    "templates:read",
    "templates:write",
    "campaigns:read",
    "campaigns:write",
    "delivery:read",
    "delivery:write",
    "webhooks:read",
    "webhooks:write",
    "privacy:read",  # everything about a person, as one file
    "privacy:write",  # erasure
    "keys:write",
)
TEMPLATE_FIELDS = (
    "subject",
    "preheader",
    "html",
    "text",
    "from_name",
    "from_email",
    "reply_to",
)

Document = dict[str, Any]
DocumentChange = tuple[str, str, Document | None]


class Reader(Protocol):
    def get(self, collection: str, id: str) -> Document | None: ...

    def list(self, collection: str) -> Sequence[Document]: ...


@dataclass(frozen=True)
class Defined:
    """What to journal, and the answer to give after it."""

    answer: Any
    changes: tuple[DocumentChange, ...] = ()


def required(reader: Reader, collection: str, id: str) -> Document:
    document = reader.get(collection, id)
    if document is None:
        raise NotFound(f"no {collection.removesuffix('s')} {id}", path="id")
    return document


def checked_name(fields: Mapping[str, Any]) -> str:
    name = str(fields.get("name", "")).strip()
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise InvalidRequest(
            "a name is missing, too long, or holds control characters",
            path="name",
            expected=f"1 to {NAME_LENGTH_MAX} printable characters",
        )
    return name


def next_number(reader: Reader, collection: str) -> tuple[int, DocumentChange]:
    """The next number of a collection, and the change that takes it."""
    counter = reader.get("counters", collection) or {"last": 0}
    number = int(counter["last"]) + 1
    return number, ("counters", collection, {"last": number})


# -- attributes -----------------------------------------------------------------------------------


def declare_attributes(reader: Reader, types: Mapping[str, str]) -> Defined:
    """Declare attributes with their types; those that are there with the same type stay.

    Answers the whole registry, name to type. Raises ``Conflict`` where a name has another type.
    """
    registry = attribute_types(reader)
    changes: list[DocumentChange] = []
    for name, kind in types.items():
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name!r:.80} is not an attribute name",
                path=f"attributes.{name:.80}",
                expected="a lower-case letter, then up to 62 letters, digits or underscores",
            )
        if kind not in set(AttributeType):
            raise InvalidRequest(
                f"{kind!r:.40} is not a type",
                path=f"attributes.{name}",
                expected=", ".join(AttributeType),
            )
        declared = registry.get(name)
        if declared is None:
            registry[name] = AttributeType(kind)
            changes.append(("attributes", name, {"name": name, "type": str(kind)}))
        elif declared != kind:
            raise Conflict(
                f"attribute {name} is declared as {declared}, not {kind}",
                path=f"attributes.{name}",
                expected=str(declared),
            )
    if len(registry) > ATTRIBUTES_MAX:
        raise InvalidRequest(
            f"{len(registry)} attributes", path="attributes", expected=f"≤ {ATTRIBUTES_MAX}"
        )
    return Defined({n: str(t) for n, t in registry.items()}, tuple(changes))


def attribute_types(reader: Reader) -> dict[str, AttributeType]:
    return {d["name"]: AttributeType(d["type"]) for d in reader.list("attributes")}


# -- templates -----------------------------------------------------------------------


def save_template(
    reader: Reader, fields: Mapping[str, Any], attributes: Sequence[str], now: datetime
) -> Defined:
    """A new template, or the next version of the one named by ``id``.

    ``attributes`` are the names that the compiled template reads. Answers the version's document.
    """
    unknown = set(fields) - set(TEMPLATE_FIELDS) - {"id", "name"}
    if unknown:
        raise InvalidRequest(
            f"unknown field {min(unknown)}",
            path=min(unknown),
            expected=", ".join(("id", "name", *TEMPLATE_FIELDS)),
        )
    changes: list[DocumentChange] = []
    if fields.get("id") is not None:
        head = dict(required(reader, "templates", str(fields["id"])))
        head["name"] = checked_name(fields) if "name" in fields else head["name"]
    else:
        number, taken = next_number(reader, "templates")
        changes.append(taken)
        head = {
            "id": number,
            "name": checked_name(fields),
            "version": 0,
            "created_at": as_text(now),
        }
    head["version"] += 1
    head["updated_at"] = as_text(now)
    version = {
        "template_id": head["id"],
        "version": head["version"],
        "name": head["name"],
        **{name: str(fields.get(name) or "") for name in TEMPLATE_FIELDS},
        "attributes": sorted(attributes),
        "created_at": as_text(now),
    }
    changes.append(("templates", str(head["id"]), head))
    changes.append(("template_versions", f"{head['id']}:{head['version']}", version))
    return Defined(version, tuple(changes))


# -- keys -----------------------------------------------------------------------------------------


def create_api_key(
    reader: Reader,
    name: str,
    scopes: Sequence[str],
    *,
    id: str,
    secret: str,
    workspace: str,
    expires_at: str | None,
    now: datetime,
) -> Defined:
    """A key for HTTP clients. The answer holds the key itself, which is stored only as a hash.

    The secret has 256 random bits, so a plain SHA-256 of it cannot be guessed back.
    """
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong or not scopes:
        raise InvalidRequest(
            f"unknown scope {wrong[0]!r:.60}" if wrong else "no scope given",
            path="scopes",
            expected=", ".join(SCOPES),
        )
    if expires_at is not None:
        expires_at = _later(expires_at, now)
    document = {
        "id": id,
        "name": checked_name({"name": name}),
        "scopes": sorted(set(scopes)),
        "hash": hashlib.sha256(secret.encode()).hexdigest(),
        "created_at": as_text(now),
        "expires_at": expires_at,
    }
    shown = {k: v for k, v in document.items() if k != "hash"}
    shown["key"] = f"manta_{workspace}_{id}_{secret}"
    return Defined(shown, (("api_keys", id, document),))


def _later(text: str, now: datetime) -> str:
    try:
        instant = parse_instant(str(text))
    except (ValueError, OverflowError):
        instant = None
    if instant is None or instant <= now:
        raise InvalidRequest(
            f"{text!r:.60} is {'in the past' if instant else 'not an instant'}",
            path="expires_at",
            expected="RFC 3339, later than now, for example 2047-01-31T00:00:00Z",
        )
    return as_text(instant)


def split_api_key(text: str) -> tuple[str, str, str]:
    """``(workspace, id, secret)`` of a key's text. Raises ``InvalidRequest`` without echoing it."""
    parts = text.split("_")
    if len(parts) != 4 or parts[0] != "manta" or not all(parts) or len(text) > 200:
        raise InvalidRequest(
            "this is not an API key", path="Authorization", expected="Bearer manta_…"
        )
    return parts[1], parts[2], parts[3]


def api_key_matches(document: Mapping[str, Any], secret: str, now: datetime) -> bool:
    """Whether the secret is the key's and the key is still good."""
    given = hashlib.sha256(secret.encode()).hexdigest()
    alive = document["expires_at"] is None or parse_instant(document["expires_at"]) > now
    return hmac.compare_digest(given, document["hash"]) and alive


def token_keys(reader: Reader) -> list[Document]:
    """The keys that sign links and return paths, newest last: that one signs, the others verify."""
    return sorted(reader.list("token_keys"), key=lambda document: document["created_at"])


def add_token_key(reader: Reader, id: int, key: str, now: datetime) -> Defined:
    """A new signing key (base64). It is the newest even where the clock has gone back.

    Raises ``Conflict`` for an id that is taken.
    """
    known = token_keys(reader)
    if any(document["id"] == id for document in known):
        raise Conflict(f"there is a signing key {id} already", path="id", expected="a new id")
    if known:
        now = max(now, parse_instant(known[-1]["created_at"]) + timedelta(microseconds=1))
    document = {"id": id, "key": key, "created_at": as_text(now)}
    return Defined(None, (("token_keys", str(id), document),))
