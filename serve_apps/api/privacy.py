"""What people may ask of whoever keeps their data: erasure, and a copy of it all.

Erasing acts at once on what is read and mailed; files are rewritten within 72 hours, or now on
request. Then there is a receipt, signed, which names nobody.
"""

from __future__ import annotations

import json
import secrets
import zipfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from pydantic import Field

from actors.handles import Handles
from manta.clock import as_text
from manta.errors import InvalidRequest, NotFound
from manta.ids import decode_id, encode_id
from manta.people.identities import EMAIL as EMAIL_KIND
from manta.people.identities import KINDS, PHONE
from manta.privacy import erasing
from manta.privacy import requests as erasures
from manta.privacy.copies import README, json_rows
from manta.privacy.erasing import Scope
from manta.privacy.names import Name
from serve_apps import reads
from serve_apps.api.wiring import Key, Ports, SubscriberId, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(prefix="/privacy", tags=["privacy"])
READ, WRITE = needs("privacy:read"), needs("privacy:write")
PAGE_ROWS = 5_000
HASHES_MAX = 100_000
RequestId = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$", max_length=32)]


class Whom(Body):
    """One of them."""

    subscriber_id: str | None = Field(None, max_length=20)
    email: str | None = Field(None, max_length=320)
    external_id: str | None = Field(None, max_length=320)
    phone: str | None = Field(None, max_length=320)
    anonymous_id: str | None = Field(None, max_length=320)


class Erasure(Whom):
    now: bool = Field(
        False,
        description="Rewrite files at once. Whoever reads the lake at this moment may miss files.",
    )


class Hash(Body):
    channel: str = Field(max_length=20)
    hash: str = Field(pattern="^hmac:[0-9a-f]{64}$")
    erased_at: datetime


class Hashes(Body):
    hashes: list[Hash] = Field(default_factory=list, max_length=HASHES_MAX)


@router.post("/erasures", dependencies=[WRITE], status_code=202, summary="Erase a person")
async def erase(body: Erasure, ports: Ports, key: Key) -> dict[str, Any]:
    """Named by id or by one identity, with everybody who was merged into them. From the answer on
    the person cannot be read, found or mailed; a keyed hash of each address stays, so that no
    import brings them back. Erasing somebody again answers the request that stands."""
    subscriber = await _whom(ports, body)
    done = await erasing.erase(
        ports.shards, subscriber, _request_id(key, subscriber), CALL_DEADLINE_S
    )
    document = await ports.catalog.call(
        "erasure_begun", done.request_id, done.person, deadline_s=CALL_DEADLINE_S
    )
    if body.now:
        await ports.shards.call_all("rewrite_erasures", True, deadline_s=CALL_DEADLINE_S)
    return erasures.shown(document, ports.shards.count)


@router.post(
    "/erasures/run", dependencies=[WRITE], status_code=202, summary="Rewrite files at once"
)
async def run(ports: Ports) -> dict[str, Any]:
    """For all requests that wait, in one pass over each shard. Files that are replaced are deleted
    without waiting for whoever reads them."""
    await ports.shards.call_all("rewrite_erasures", True, deadline_s=CALL_DEADLINE_S)
    return {"shards": ports.shards.count}


@router.post("/erasures/apply", dependencies=[WRITE], summary="Erase again after a restore")
async def apply(body: Hashes, ports: Ports) -> dict[str, Any]:
    """After a backup was brought back: whoever was erased since it was made is erased again. Give
    the hashes that you have kept outside (`GET /privacy/hashes`); those here are looked at too."""
    given = [(each.channel, each.hash, _naive(each.erased_at)) for each in body.hashes]
    done = await erasing.apply_erasures(
        ports.shards, given, lambda: _request_id(None, 0), CALL_DEADLINE_S
    )
    for each in done:
        await ports.catalog.call(
            "erasure_begun", each.request_id, each.person, deadline_s=CALL_DEADLINE_S
        )
    return {"erased_again": [each.request_id for each in done]}


@router.get("/hashes", dependencies=[READ], summary="The hashes of erased addresses")
async def hashes(ports: Ports) -> dict[str, Any]:
    """To be kept apart from backups, and given back after one was restored."""
    parts = await ports.shards.query_all("erased_hashes", {}, CALL_DEADLINE_S)
    rows = sorted({tuple(row) for part in parts for row in part})
    return {
        "hashes": [
            {"channel": channel, "hash": hashed, "erased_at": as_text(at)}
            for channel, hashed, at in rows
        ]
    }


@router.get("/erasures/{request_id}", dependencies=[READ], summary="A request of erasure")
async def get_erasure(request_id: RequestId, ports: Ports) -> dict[str, Any]:
    """`erased` until every shard has rewritten its files, then `done`, with the receipt."""
    document = await ports.catalog.call(
        "get", erasures.COLLECTION, request_id, deadline_s=CALL_DEADLINE_S
    )
    if document is None:
        raise NotFound("there is no such request of erasure", path="request_id")
    errors: list[str] = []
    if document["state"] != erasures.DONE:
        parts = await ports.shards.call_all(
            "erasure_report", request_id, deadline_s=CALL_DEADLINE_S
        )
        for shard, part in enumerate(parts):
            if part["error"]:
                errors.append(f"shard {shard}: {part['error']}")
            if part["waiting"] or part["unpurged"] or str(shard) in document["shards"]:
                continue
            report = part["report"] or _nothing(document, ports)
            document = await ports.catalog.call(
                "erasure_reported", request_id, shard, report, deadline_s=CALL_DEADLINE_S
            )
    return {**erasures.shown(document, ports.shards.count), "waits_for": errors}


@router.get("/receipt-key", dependencies=[READ], summary="The public key of receipts")
async def receipt_key(ports: Ports) -> dict[str, Any]:
    key = await ports.catalog.call("receipt_key", deadline_s=CALL_DEADLINE_S)
    return {"algorithm": "Ed25519", "public_key": key}


@router.get(
    "/exports/{subscriber_id}",
    dependencies=[READ],
    summary="Everything about one person",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}}},
)
async def export(subscriber_id: SubscriberId, ports: Ports) -> StreamingResponse:
    """A zip of JSON files with a `README.txt` in plain words: profile, identities, consents with
    their proof, suppressions, messages, events of all times with the history of every change."""
    found = await erasing.scope(ports.shards, subscriber_id, CALL_DEADLINE_S)
    if found.request_id:
        raise NotFound("there is no such subscriber", path="subscriber_id")
    name = f"person-{encode_id(subscriber_id)}.zip"
    return StreamingResponse(
        _zipped(ports, found),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


# -- whom ------------------------------------------------------------------------------------------


async def _whom(ports: Handles, body: Whom) -> int:
    given = {
        kind: str(value)
        for kind in ("subscriber_id", *KINDS)
        if (value := getattr(body, kind)) is not None
    }
    if len(given) != 1:
        raise InvalidRequest(
            "a person is named by one identity",
            path="subscriber_id",
            expected=" or ".join(("subscriber_id", *KINDS)),
        )
    ((kind, value),) = given.items()
    if kind != "subscriber_id":
        return await reads.person_id(ports, kind, value)
    try:
        return decode_id(value)
    except ValueError:
        raise NotFound(f"{value!r:.40} is not the id of a subscriber", path=kind) from None


def _request_id(key: str | None, subscriber_id: int) -> str:
    """32 hexadecimal digits: the same for the same key and person. A key that was used before for
    somebody else is no reason to answer with their receipt."""
    if key is None:
        return secrets.token_hex(16)
    return blake2b(f"{subscriber_id}:{key}".encode(), digest_size=16).hexdigest()


def _nothing(document: Mapping[str, Any], ports: Handles) -> dict[str, Any]:
    return {
        "person": document["person"],
        "requested_at": document["requested_at"],
        "rewritten_at": as_text(ports.clock.now()),
        "places": {},
    }


def _naive(at: datetime) -> datetime:
    if at.tzinfo is None:
        return at
    return at.astimezone(UTC).replace(tzinfo=None)


# -- the copy --------------------------------------------------------------------------------------


class _Sink:
    """Bytes as they are written, to be taken away; no going back."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes, /) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        return

    def taken(self) -> bytes:
        data, self._held = bytes(self._held), bytearray()
        return data


async def _zipped(ports: Handles, found: Scope) -> AsyncIterator[bytes]:
    """One file after the other, one page at a time."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", README)
        for name, content in await _small_files(ports, found):
            archive.writestr(f"{name}.json", content)
            yield sink.taken()
        for table, name in (("ledger", "messages"), ("events", "events")):
            with archive.open(f"{name}.jsonl", "w", force_zip64=True) as file:
                async for page in _pages(ports, found.people, table):
                    for row in json_rows(page):
                        file.write(row.encode() + b"\n")
                    if taken := sink.taken():
                        yield taken
    yield sink.taken()


async def _small_files(ports: Handles, found: Scope) -> list[tuple[str, str]]:
    arguments = {
        "people": list(found.people),
        "addresses": [n.value for n in found.names if n.kind in (EMAIL_KIND, PHONE)],
    }
    parts = await ports.shards.query_all("privacy_state", arguments, CALL_DEADLINE_S)
    identities: dict[Name, dict[str, Any]] = {}
    for part in await ports.shards.query_all("privacy_identities", arguments, CALL_DEADLINE_S):
        for row in part:
            identities.setdefault(Name(row["kind"], row["value"]), row)
    tables: dict[str, list[str]] = {}
    for part in parts:
        for table, rows in part.items():
            known = tables.setdefault(table, [])
            known += [row for row in json_rows(rows) if row not in known]
    tables["identities"] = [
        json.dumps(reads.plain(row), ensure_ascii=False) for row in identities.values()
    ]
    return [(name, _array(rows)) for name, rows in sorted(tables.items())]


def _array(rows: Iterable[str]) -> str:
    return "[\n" + ",\n".join(rows) + "\n]\n"


async def _pages(ports: Handles, people: Sequence[int], table: str) -> AsyncIterator[pa.Table]:
    by_shard: dict[int, list[int]] = {}
    for id in people:
        by_shard.setdefault(ports.shards.of_subscriber(id), []).append(id)
    for shard, ids in sorted(by_shard.items()):
        after = 0
        while True:
            page = await ports.shards.call(
                shard, "person_page", table, ids, after, PAGE_ROWS, deadline_s=CALL_DEADLINE_S
            )
            yield page
            after += page.num_rows
            if page.num_rows < PAGE_ROWS:
                break
