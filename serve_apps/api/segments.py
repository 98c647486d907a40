"""Segments: named rules about people, lists that are kept by hand, and snapshots of a rule.

Shards keep the members of live rules, of lists and of snapshots, so these are read and not worked
out; a rule that is not live is asked of everybody each time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Query
from pydantic import Field

from actors.handles import Handles
from manta.command import Repeated
from manta.errors import Conflict, InvalidRequest, NotFound
from manta.ids import decode_id, encode_id
from manta.people.identities import EMAIL
from manta.people.memberships import EditList, Snapshot
from manta.rules.explain import explain
from manta.segments.definition import LIST, RULE, SNAPSHOT
from manta.segments.queries import DAYS_MAX, OVERLAP_MAX
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import BATCH_ITEMS_MAX, CALL_DEADLINE_S, PAGE_ROWS_MAX
from serve_apps.pages import page, read_cursor, write_cursor

router = APIRouter(prefix="/segments", tags=["segments"])
READ, WRITE = needs("segments:read"), needs("segments:write")
SAMPLE_MAX = 100
Sample = Annotated[int, Query(ge=1, le=SAMPLE_MAX, description="How many people to show.")]


Days = Annotated[int, Query(ge=1, le=DAYS_MAX)]
Name = Annotated[str, Field(max_length=320)]


class NewSegment(Body):
    name: str = Field(max_length=200)
    type: Literal["rule", "list", "snapshot"] = Field(
        "rule",
        description="A rule that is always up to date, a list, or whom a rule holds for now.",
    )
    rule: dict[str, Any] | None = Field(None, description="The rule tree; of a list: none.")
    live: bool | None = Field(
        None, description="Kept up to date by the shards. If absent: wherever that is possible."
    )


class ChangedSegment(Body):
    """What is absent stays as it is."""

    name: str | None = Field(None, max_length=200)
    rule: dict[str, Any] | None = None
    live: bool | None = None


class Edit(Body):
    """Who is put on a list and taken off it: ids of subscribers or e-mail addresses."""

    add: list[Name] = Field(default_factory=list, max_length=BATCH_ITEMS_MAX)
    remove: list[Name] = Field(default_factory=list, max_length=BATCH_ITEMS_MAX)


class Overlapping(Body):
    segments: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=OVERLAP_MAX)


class Unsaved(Body):
    rule: dict[str, Any]
    sample: int = Field(10, ge=0, le=SAMPLE_MAX)


@router.post("", status_code=201, dependencies=[WRITE], summary="Create a segment")
async def create_segment(body: NewSegment, ports: Ports, key: Key) -> dict[str, Any]:
    saved = await _save(ports, body.model_dump(exclude_none=True), key)
    if saved["type"] == SNAPSHOT:
        await _take(ports, saved)
    return saved


@router.put("/{number}", dependencies=[WRITE], summary="Change a segment: its next version")
async def change_segment(
    number: Number, body: ChangedSegment, ports: Ports, key: Key
) -> dict[str, Any]:
    """The members of a snapshot stay who they are; make a new one for another rule."""
    before = await _segment(ports, number)
    if before.get("type") == SNAPSHOT and body.rule is not None:
        raise Conflict(
            "a snapshot keeps the rule that it was taken by",
            path="rule",
            expected="a new segment of type snapshot",
        )
    return await _save(ports, body.model_dump(exclude_none=True) | {"id": number}, key)


@router.delete("/{number}", dependencies=[WRITE], status_code=204, summary="Delete a segment")
async def delete_segment(number: Number, ports: Ports, key: Key) -> None:
    """Refused while another segment refers to it."""
    await ports.catalog.call("delete", "segments", str(number), key, deadline_s=CALL_DEADLINE_S)


async def _save(ports: Handles, fields: dict[str, Any], key: str | None) -> dict[str, Any]:
    saved: dict[str, Any] = await ports.catalog.call(
        "save", "segments", fields, key, deadline_s=CALL_DEADLINE_S
    )
    return saved


async def _take(ports: Handles, segment: dict[str, Any]) -> None:
    """Fill a snapshot. Its key is the segment's, so that a retry takes no second one."""
    rule, types = await ports.catalog.call("audience", segment["rule"], deadline_s=CALL_DEADLINE_S)
    command = Snapshot(f"snapshot:{segment['id']}", segment["id"], rule, types, SNAPSHOT)
    await ports.shards.execute_all(command, CALL_DEADLINE_S)


@router.get("", dependencies=[READ], summary="List the segments, newest first")
async def list_segments(
    ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, "segments", limit, cursor)


@router.post("/preview", dependencies=[READ], summary="Try a rule without saving it")
async def preview(body: Unsaved, ports: Ports) -> dict[str, Any]:
    """How many people it holds for, some of them, and what it means in English."""
    return await reads.audience(ports, body.rule, body.sample)


class Rule(Body):
    rule: dict[str, Any]


@router.post("/explain", dependencies=[READ], summary="What a rule means, in English")
async def explain_rule(body: Rule, ports: Ports) -> dict[str, Any]:
    return {"text": explain(await reads.checked_rule(ports, body.rule))}


@router.get("/{number}", dependencies=[READ], summary="A segment")
async def get_segment(number: Number, ports: Ports) -> dict[str, Any]:
    return await _segment(ports, number)


@router.get("/{number}/count", dependencies=[READ], summary="How many people are in it now")
async def count(number: Number, ports: Ports) -> dict[str, Any]:
    """A rule is worked out anew; `membership` is what shards have on record."""
    segment = await _segment(ports, number)
    if segment.get("type", RULE) != RULE:
        people = (await _membership(ports, number))["members"]
    else:
        people = (await reads.audience(ports, segment["rule"], 0))["count"]
    return {"count": people, "version": segment["version"]}


@router.get("/{number}/explain", dependencies=[READ], summary="What it means, in English")
async def explain_segment(number: Number, ports: Ports) -> dict[str, Any]:
    segment = await _segment(ports, number)
    if segment.get("type") == LIST:
        return {"text": "People who were put on this list.", "version": segment["version"]}
    text = explain(await reads.checked_rule(ports, segment["rule"]))
    if segment.get("type") == SNAPSHOT:
        text = f"As it was at {segment['created_at']}:\n{text}"
    return {"text": text, "version": segment["version"]}


@router.get("/{number}/sample", dependencies=[READ], summary="Some of the people in it")
async def sample(number: Number, ports: Ports, limit: Sample = 10) -> dict[str, Any]:
    segment = await _segment(ports, number)
    kept = segment.get("type", RULE) != RULE
    rule = {"member": {"segment": number}} if kept else segment["rule"]
    return await reads.audience(ports, rule, limit)


# -- whom shards keep ------------------------------------------------------------------------------


@router.get("/{number}/members", dependencies=[READ], summary="Its members, page by page")
async def members(
    number: Number, ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    """Of a rule that is not live there are no members on record: export it instead."""
    await _kept(ports, number)
    kind = f"members:{number}"
    shard, after = read_cursor(kind, cursor, [int, int]) if cursor else (0, 0)
    found: list[dict[str, Any]] = []
    while shard < ports.shards.count and len(found) <= limit:
        # One more than fits tells whether there is another page.
        asked = min(limit + 1 - len(found), PAGE_ROWS_MAX)
        arguments = {"segment_id": number, "after": after, "limit": asked}
        rows = await ports.shards.query(shard, "members", arguments, CALL_DEADLINE_S)
        found += rows
        if len(rows) < asked:
            shard, after = shard + 1, 0
        else:
            after = rows[-1]["subscriber_id"]
    more = len(found) > limit
    found = found[:limit]
    following = None
    if more:
        last = found[-1]["subscriber_id"]
        following = write_cursor(kind, [ports.shards.of_subscriber(last), last])
    shown = [{"id": encode_id(row["subscriber_id"]), "email": row["email"]} for row in found]
    return page(shown, following)


@router.post("/{number}/members", dependencies=[WRITE], summary="Put people on a list, or off it")
async def edit_list(number: Number, body: Edit, ports: Ports, key: Key) -> dict[str, Any]:
    segment = await _segment(ports, number)
    if segment.get("type") != LIST:
        raise Conflict(
            "the members of this segment follow a rule",
            path="number",
            expected="a segment of type list",
        )
    edits: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    unknown: list[str] = []
    for place, names in enumerate((body.add, body.remove)):
        found = await asyncio.gather(*(_person(ports, name) for name in names))
        for name, person in zip(names, found, strict=True):
            if person is None:
                unknown.append(name)
            else:
                edits[ports.shards.of_subscriber(person)][place].append(person)
    answers = await asyncio.gather(
        *(
            ports.shards.execute(
                shard,
                EditList(
                    key and f"{key}:{shard}",
                    number,
                    pa.array(add, pa.int64()),
                    pa.array(remove, pa.int64()),
                    "api",
                ),
                CALL_DEADLINE_S,
            )
            for shard, (add, remove) in sorted(edits.items())
        )
    )
    done = [answer for answer in answers if not isinstance(answer, Repeated)]
    return {
        "entered": sum(answer.entered for answer in done),
        "left": sum(answer.left for answer in done),
        "unknown": unknown,
    }


@router.get("/{number}/membership", dependencies=[READ], summary="Its size, and today's moves")
async def membership(number: Number, ports: Ports) -> dict[str, Any]:
    await _kept(ports, number)
    return await _membership(ports, number)


@router.get("/{number}/growth", dependencies=[READ], summary="How it grew, day by day")
async def growth(number: Number, ports: Ports, days: Days = 90) -> dict[str, Any]:
    await _kept(ports, number)
    arguments = {"segment_id": number, "days": days}
    parts = await ports.shards.query_all("growth", arguments, CALL_DEADLINE_S)
    summed = [
        {
            "day": same_day[0]["day"],
            **{
                name: sum(part[name] for part in same_day)
                for name in ("entered", "left", "members")
            },
        }
        for same_day in zip(*parts, strict=True)
    ]
    return {"days": summed}


@router.post("/overlap", dependencies=[READ], summary="How many people are in both of two segments")
async def overlap(body: Overlapping, ports: Ports) -> dict[str, Any]:
    """For each pair; a segment with itself is its size."""
    for number in body.segments:
        await _kept(ports, number)
    arguments = {"segment_ids": body.segments}
    parts = await ports.shards.query_all("overlap", arguments, CALL_DEADLINE_S)
    both: dict[tuple[int, int], int] = defaultdict(int)
    for part in parts:
        for row in part:
            both[row["a"], row["b"]] += row["people"]
    pairs = [(a, b) for a in body.segments for b in body.segments if a <= b]
    return {"pairs": [{"a": a, "b": b, "people": both[a, b]} for a, b in pairs]}


@router.get(
    "/{number}/drift", dependencies=[READ], summary="Whether its members are those of its rule"
)
async def drift(number: Number, ports: Ports) -> dict[str, Any]:
    """Works the whole rule out and compares. Who changed within the last moments may differ."""
    segment = await _segment(ports, number)
    if not segment.get("live"):
        raise Conflict("this segment is not live", path="number", expected="a live segment")
    parts = await ports.shards.query_all("drift", {"segment_id": number}, CALL_DEADLINE_S)
    return {name: sum(part[number][name] for part in parts) for name in ("missing", "wrong")}


async def _membership(ports: Handles, number: int) -> dict[str, Any]:
    parts = await ports.shards.query_all("membership", {"segment_id": number}, CALL_DEADLINE_S)
    return {name: sum(part[name] for part in parts) for name in ("members", "entered", "left")}


async def _person(ports: Handles, name: str) -> int | None:
    """Whom an id or an address names."""
    try:
        if "@" in name:
            return await reads.person_id(ports, EMAIL, name)
        return decode_id(name)
    except (NotFound, ValueError):
        return None


def _is_kept(segment: dict[str, Any]) -> bool:
    return bool(segment.get("live")) or segment.get("type", RULE) != RULE


async def _kept(ports: Handles, number: int) -> dict[str, Any]:
    segment = await _segment(ports, number)
    if not _is_kept(segment):
        raise InvalidRequest(
            f"segment {number} is not live, so nobody's membership is on record",
            path="number",
            expected=segment.get("why_not_live") or "a live segment, a list or a snapshot",
        )
    return segment


async def _segment(ports: Handles, number: int) -> dict[str, Any]:
    segment: dict[str, Any] | None = await ports.catalog.call(
        "get", "segments", str(number), deadline_s=CALL_DEADLINE_S
    )
    if segment is None:
        raise NotFound(f"no segment {number}", path="number")
    return segment
