"""The Catalog's collections of definitions: how each is checked, and what shards are told of it.

One way for all kinds: a document has an id (a number), a version, two instants, and the fields that
its room has checked. Where shards act upon a kind, the room also says what they need of it
(``shard_body``), without secrets; every change of what they need gets a new version, so that shards
may be told in any order and again (``manta.people.definitions``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manta.clock import as_text
from manta.definitions import Defined, Document, DocumentChange, Reader, next_number, required
from manta.delivery import frequency
from manta.errors import InvalidRequest
from manta.ingestion import sources
from manta.people import sunset, topics
from manta.people.definitions import CAP, ENDPOINT, QUIET_HOURS, SEGMENT, SUNSET, SetDefinition
from manta.segments import definition as segments
from manta.webhooks import endpoints

_OWN = ("id", "version", "created_at", "updated_at")
_TOLD = "shard_definitions"


@dataclass(frozen=True)
class Collection:
    """``check(fields, reader)`` answers the document's own fields or raises ``InvalidRequest``.

    ``shard_body(document, reader)``: what shards are told under ``shard_kind``; ``None``: nothing.
    ``check_delete(document, reader)`` raises ``Conflict`` where others need it.
    """

    check: Callable[[Mapping[str, Any], Reader], Document]
    shard_kind: str = ""
    shard_body: Callable[[Document, Reader], Document | None] = lambda document, reader: None
    check_delete: Callable[[Document, Reader], None] = lambda document, reader: None


COLLECTIONS: dict[str, Collection] = {
    "segments": Collection(segments.checked, SEGMENT, segments.shard_body, segments.check_delete),
    "caps": Collection(frequency.checked_cap, CAP, frequency.shard_body),
    "quiet_hours": Collection(frequency.checked_quiet_hours, QUIET_HOURS, frequency.shard_body),
    endpoints.COLLECTION: Collection(endpoints.checked, ENDPOINT, endpoints.shard_body),
    sources.SOURCES: Collection(sources.checked_source),
    sources.SITES: Collection(sources.checked_site),
    topics.COLLECTION: Collection(topics.checked),
    sunset.COLLECTION: Collection(sunset.checked, SUNSET, sunset.shard_body),
}


def save(reader: Reader, collection: str, fields: Mapping[str, Any], now: datetime) -> Defined:
    """A new document, or the next version of the one named by ``id``: fields that are not given
    stay as they are. Answers the document."""
    kept: Document = {}
    changes: list[DocumentChange] = []
    if fields.get("id") is not None:
        document = dict(required(reader, collection, str(fields["id"])))
        kept = {name: value for name, value in document.items() if name not in _OWN}
    else:
        number, taken = next_number(reader, collection)
        changes.append(taken)
        document = {"id": number, "version": 0, "created_at": as_text(now)}
    given = {name: value for name, value in fields.items() if name != "id"}
    own = _collection(collection).check({**kept, **given, "id": document["id"]}, reader)
    head = {name: document[name] for name in ("id", "version", "created_at")}
    head |= {"version": head["version"] + 1, "updated_at": as_text(now)}
    document = {**own, **head}
    changes.append((collection, str(document["id"]), document))
    return Defined(document, tuple(changes))


def delete(reader: Reader, collection: str, id: str) -> Defined:
    """Raises ``NotFound``, and ``Conflict`` where another document needs it."""
    check_delete = _collection(collection).check_delete
    check_delete(required(reader, collection, id), reader)
    return Defined(None, ((collection, id, None),))


def tell(reader: Reader) -> Defined:
    """What shards are to know now, where that is not what they were told last.

    ``told`` then has all of it.
    """
    known = {f"{each['kind']}:{each['id']}": each for each in reader.list(_TOLD)}
    wanted: dict[str, Document] = {}
    for name, collection in COLLECTIONS.items():
        if not collection.shard_kind:
            continue
        for document in reader.list(name):
            body = collection.shard_body(document, reader)
            if body is not None:
                wanted[f"{collection.shard_kind}:{document['id']}"] = body
    changes: list[DocumentChange] = []
    for key in sorted(wanted.keys() | known.keys()):
        kind, _, id = key.partition(":")
        if known.get(key, {"body": None})["body"] != wanted.get(key):
            version = known[key]["version"] + 1 if key in known else 1
            news = {"kind": kind, "id": id, "version": version, "body": wanted.get(key)}
            changes.append((_TOLD, key, news))
    return Defined(None, tuple(changes))


def told(reader: Reader) -> list[SetDefinition]:
    """Everything that shards were told, as commands that may be repeated."""
    return [
        SetDefinition(None, each["kind"], each["id"], each["version"], each["body"])
        for each in reader.list(_TOLD)
    ]


def _collection(name: str) -> Collection:
    if name not in COLLECTIONS:
        raise InvalidRequest(
            f"there are no {name!r:.40}", path="collection", expected=", ".join(COLLECTIONS)
        )
    return COLLECTIONS[name]
