"""Requests of erasure as the Catalog keeps them: who reported what, and at last a signed receipt.

A document names nobody: the person stands in it as a keyed hash. A shard reports when its files are
rewritten and the old ones deleted; reports may come twice and in any order. When the last has come,
the receipt is made, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from manta.clock import as_text
from manta.definitions import Defined, Document, Reader
from manta.privacy.receipts import signed

COLLECTION = "erasure_receipts"
ERASED, DONE = "erased", "done"  # unreadable and unmailable; gone from every place
PLACES_WITHOUT = {
    "import_rejects": "refused rows are answered to the importer and never stored",
    "inbound_mail": "mails to the return path are read and never stored",
}


def begun(reader: Reader, request_id: str, person: str, now: datetime) -> Defined:
    """All shards have erased the person from their state. Answers the document."""
    known = reader.get(COLLECTION, request_id)
    if known is not None and known["person"]:
        return Defined(known)
    document = {**_new(request_id, now), **(known or {}), "person": person}
    return Defined(document, ((COLLECTION, request_id, document),))


def reported(
    reader: Reader,
    request_id: str,
    shard: int,
    report: Mapping[str, Any],
    shards: int,
    seed: bytes,
    now: datetime,
) -> Defined:
    """A shard is done with the request. ``report``: person, requested_at, rewritten_at, places."""
    known = reader.get(COLLECTION, request_id) or _new(request_id, now)
    if str(shard) in known["shards"]:
        return Defined(known)
    part = {name: report[name] for name in ("rewritten_at", "places")}
    document = {
        **known,
        "person": known["person"] or report["person"],
        "requested_at": min(known["requested_at"], report["requested_at"]),
        "shards": {**known["shards"], str(shard): part},
    }
    if len(document["shards"]) == shards:
        document = {**document, "state": DONE, "signed": signed(_receipt(document, now), seed)}
    return Defined(document, ((COLLECTION, request_id, document),))


def shown(document: Mapping[str, Any], shards: int) -> Document:
    """A request as its owner sees it."""
    return {
        "id": document["id"],
        "state": document["state"],
        "person": document["person"],
        "requested_at": document["requested_at"],
        "erased_at": document["erased_at"],
        "shards_done": len(document["shards"]),
        "shards": shards,
        "receipt": document.get("signed"),
    }


def _new(request_id: str, now: datetime) -> Document:
    return {
        "id": request_id,
        "state": ERASED,
        "person": "",
        "requested_at": as_text(now),
        "erased_at": as_text(now),
        "shards": {},
    }


def _receipt(document: Mapping[str, Any], now: datetime) -> Document:
    places: dict[str, dict[str, int]] = {}
    for part in document["shards"].values():
        for place, (rows, files) in part["places"].items():
            total = places.setdefault(place, {"rows": 0, "files": 0})
            total["rows"] += rows
            total["files"] += files
    return {
        "request": document["id"],
        "person": document["person"],
        "requested_at": document["requested_at"],
        "tombstoned_at": document["erased_at"],
        "rewritten_at": max(part["rewritten_at"] for part in document["shards"].values()),
        "issued_at": as_text(now),
        "shards": len(document["shards"]),
        "places": dict(sorted(places.items())),
        "places_without_data": PLACES_WITHOUT,
    }
