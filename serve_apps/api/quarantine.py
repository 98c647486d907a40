"""What came in and fits no shape: shown, mended, replayed, discarded; and web sites."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from pydantic_core import from_json, to_json

from actors.handles import Handles
from manta.errors import InvalidRequest, MantaError, RetryableError
from manta.ingestion.normalised import Unfit
from manta.ingestion.quarantine import DISCARDED, REPLAYED, WAITING, SettleQuarantined
from manta.ingestion.sources import SITES
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body, instant
from serve_apps.collect.taking import Intake
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.pages import page, read_cursor, write_cursor

REPLAYS_MAX = 500  # of one request
PROBLEMS_SHOWN = 100
READ, WRITE = needs("subscribers:read"), needs("events:write")
SETTINGS = needs("keys:write")
router = APIRouter(tags=["quarantine"])
Document = dict[str, Any]
State = Literal["waiting", "replayed", "discarded"]
Id = Annotated[int, Path(ge=1, lt=1 << 63)]
Text = Annotated[str | None, Query(max_length=500)]


class Mended(Body):
    """What to take in in its place."""

    body: dict[str, Any] | None = Field(None, description="The message, mended; as it is if absent")


class Many(Body):
    """Which of those that wait."""

    source: str | None = Field(None, max_length=200)
    problem: str | None = Field(None, max_length=500)
    limit: int = Field(REPLAYS_MAX, ge=1, le=REPLAYS_MAX)


def _intake(request: Request) -> Intake:
    intake: Intake = request.app.state.intake_of_others
    return intake


@router.get("/quarantine", dependencies=[READ], summary="What fits no shape")
async def list_quarantine(
    ports: Ports,
    state: State = "waiting",
    source: Text = None,
    problem: Text = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
) -> Document:
    """The latest first."""
    wanted = {"state": state, "source": source, "problem": problem}
    before = None
    if cursor:
        at, id = read_cursor("quarantine", cursor, [str, int])
        before = (_instant(at), id)
    rows = await _rows(ports, {**wanted, "before": before, "limit": limit})
    following = None
    if len(rows) == limit:
        last = rows[-1]
        following = write_cursor(
            "quarantine", [reads.plain(last["received_at"]), last["quarantine_id"]]
        )
    return page([_shown(row) for row in rows], following)


@router.get("/quarantine/problems", dependencies=[READ], summary="What is wrong with how many")
async def list_problems(ports: Ports) -> Document:
    """Of what waits, by source, place and problem; the most frequent first."""
    counts: dict[tuple[str, str, str], Document] = {}
    for part in await ports.shards.query_all("quarantine_counts", {}, CALL_DEADLINE_S):
        for row in part:
            there = counts.setdefault(
                (row["source"], row["path"], row["problem"]), {**row, "count": 0}
            )
            there["count"] += row["count"]
            there["since"] = min(there["since"], row["since"])
    listed = sorted(counts.values(), key=lambda row: -row["count"])[:PROBLEMS_SHOWN]
    return page([reads.plain(row) for row in listed], None)


@router.get("/quarantine/{id}", dependencies=[READ], summary="One of them, whole")
async def show(id: Id, ports: Ports) -> Document:
    return _shown(await _row(ports, id))


@router.post("/quarantine/replay", dependencies=[WRITE], summary="Take many in once more")
async def replay_many(body: Many, ports: Ports, request: Request) -> Document:
    """Those that wait, of a source or with a problem if one is given; up to 500 in one request.
    What still fits no shape stays; `unfit` says why."""
    arguments = {"state": WAITING, "source": body.source, "problem": body.problem}
    rows = await _rows(ports, {**arguments, "limit": body.limit})
    counts = {REPLAYED: 0, "unfit": 0}
    errors = []
    for row in rows:
        problem = await _replayed(ports, _intake(request), row, row["body"])
        counts["unfit" if problem else REPLAYED] += 1
        if problem:
            errors.append({"id": str(row["quarantine_id"]), **problem})
    return {**counts, "errors": errors[:PROBLEMS_SHOWN]}


@router.post("/quarantine/{id}/replay", dependencies=[WRITE], summary="Take it in once more")
async def replay(id: Id, body: Mended, ports: Ports, request: Request) -> Document:
    """With the mended message if one is given. Replaying twice stores its events once."""
    row = await _row(ports, id)
    if row["state"] == DISCARDED:
        raise InvalidRequest("this was discarded", path="id", expected="one that waits")
    text = row["body"] if body.body is None else to_json(body.body).decode()
    problem = await _replayed(ports, _intake(request), row, text)
    if problem:
        raise InvalidRequest(
            f"it still fits no shape: {problem['path']} {problem['problem']}",
            path=problem["path"],
            expected="a message that fits",
        )
    return {"id": str(id), "state": REPLAYED}


@router.delete("/quarantine/{id}", dependencies=[WRITE], summary="Discard it")
async def discard(id: Id, ports: Ports) -> Document:
    row = await _row(ports, id)
    await _settle(ports, row["quarantine_id"], DISCARDED)
    return {"id": str(id), "state": DISCARDED}


async def _replayed(ports: Handles, intake: Intake, row: Document, body: str) -> Document | None:
    """``None`` when it is stored, else what is wrong."""
    try:
        found = await intake.replay(row, body)
    except RetryableError:
        raise
    except MantaError as error:
        return {"path": str(error.details.get("path", "")), "problem": error.message}
    if isinstance(found, Unfit):
        return {"path": found.path, "problem": found.problem}
    if found.error is not None:
        return {"path": "", "problem": found.error.message}
    await _settle(ports, row["quarantine_id"], REPLAYED)
    return None


async def _settle(ports: Handles, id: int, state: str) -> None:
    shard = ports.shards.of_subscriber(id)
    key = f"quarantine:{id}:{state}"
    await ports.shards.execute(shard, SettleQuarantined(key, (id,), state), CALL_DEADLINE_S)


async def _row(ports: Handles, id: int) -> Document:
    shard = ports.shards.of_subscriber(id)
    row: Document = await ports.shards.query(
        shard, "quarantined", {"quarantine_id": id}, CALL_DEADLINE_S
    )
    return row


async def _rows(ports: Handles, arguments: Document) -> list[Document]:
    """A page of all shards together, the latest first."""
    parts: Sequence[Any] = await ports.shards.query_all("quarantine", arguments, CALL_DEADLINE_S)
    merged = merge(*parts, key=lambda row: (row["received_at"], row["quarantine_id"]), reverse=True)
    return list(islice(merged, arguments["limit"]))


def _shown(row: Document) -> Document:
    shown = reads.plain({**row, "id": str(row["quarantine_id"])})
    del shown["quarantine_id"]
    try:
        shown["body"] = from_json(row["body"])
    except ValueError:
        pass  # as the text that it is
    return dict(shown)


def _instant(text: str) -> Any:
    return instant(text, "cursor")


# -- web sites ------------------------------------------------------------------------------------


class Site(Body):
    """A web site with the snippet: its pages may send with a public key, and clicks in mails that
    lead there tell it who came."""

    name: str = Field(max_length=200)
    hosts: list[str] = Field(min_length=1, max_length=100, examples=[["shop.example.com"]])


@router.get("/sites", dependencies=[SETTINGS], summary="Web sites with the snippet")
async def list_sites(ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None) -> Document:
    return await reads.documents_page(ports.catalog, SITES, limit, cursor)


@router.post("/sites", dependencies=[SETTINGS], status_code=201, summary="Add a web site")
async def add_site(body: Site, ports: Ports, key: Key) -> Document:
    saved = await ports.catalog.call(
        "save", SITES, body.model_dump(), key, deadline_s=CALL_DEADLINE_S
    )
    return dict(saved)


@router.delete("/sites/{id}", dependencies=[SETTINGS], status_code=204, summary="Remove a web site")
async def remove_site(id: Number, ports: Ports, key: Key) -> None:
    await ports.catalog.call("delete", SITES, str(id), key, deadline_s=CALL_DEADLINE_S)
