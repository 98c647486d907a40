"""Reads for the apps: ask each shard its part, put the parts together.

The shards answer named queries; what is here knows their names and how parts become one answer:
counts add up, samples are cut, pages go on from shard to shard.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain, zip_longest
from typing import Any

from actors.handles import Handles, Singleton
from manta.clock import as_text
from manta.delivery.ledger import Accounting, State
from manta.errors import InvalidRequest, NotFound
from manta.ids import encode_id
from manta.people.aliases import HOPS_MAX
from manta.people.identifying import finish
from manta.people.identities import compared
from manta.rules.explain import explain
from manta.rules.nodes import Rule
from manta.rules.tree import parse
from manta.schema import AttributeType
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.pages import page, read_cursor, write_cursor

Document = dict[str, Any]


# -- definitions -----------------------------------------------------------------------------------


async def documents_page(
    owner: Singleton,
    collection: str,
    limit: int,
    cursor: str | None,
    shown: Callable[[Document], Document] = dict,
    wanted: Callable[[Document], bool] = lambda document: True,
) -> Document:
    """The wanted documents with numbers for ids, the newest first."""
    before = read_cursor(collection, cursor, [int])[0] if cursor else 1 << 62
    documents = await owner.call("list", collection, deadline_s=CALL_DEADLINE_S)
    older = sorted((d for d in documents if d["id"] < before and wanted(d)), key=lambda d: -d["id"])
    items = older[:limit]
    more = len(older) > limit
    return page(
        [shown(d) for d in items], write_cursor(collection, [items[-1]["id"]]) if more else None
    )


async def attribute_types(handles: Handles) -> dict[str, AttributeType]:
    declared = await handles.catalog.call("attributes", deadline_s=CALL_DEADLINE_S)
    return {name: AttributeType(kind) for name, kind in declared.items()}


async def checked_rule(handles: Handles, rule: Any) -> Rule:
    """The rule, checked against the declared attributes. Raises ``InvalidRequest`` with a path."""
    return parse(rule, await attribute_types(handles))


# -- people ----------------------------------------------------------------------------------------


async def person(handles: Handles, subscriber_id: int) -> Document:
    """A person with attributes, identities and consents; of a merged id the one they live on as.

    Raises ``NotFound``. ``merged_from`` lists who lives on as them, with all identities.
    """
    for _ in range(HOPS_MAX + 1):
        shard = handles.shards.of_subscriber(subscriber_id)
        found = await handles.shards.query(
            shard, "person", {"subscriber_id": subscriber_id}, CALL_DEADLINE_S
        )
        if found is None or "moved_to" not in found:
            break
        if found["unfinished"]:
            await finish(handles.shards, found["unfinished"], CALL_DEADLINE_S)
        subscriber_id = found["moved_to"]
    if found is None or "moved_to" in found:
        raise NotFound("there is no such subscriber", path="subscriber_id")
    id = found.pop("subscriber_id")
    held = await _identities(handles, id, found)
    found["identities"] = [
        {"kind": each["kind"], "value": each["value"], "since": each["since"]}
        | ({} if each["subscriber_id"] == id else {"by_merge_of": encode_id(each["subscriber_id"])})
        for each in held
    ]
    found["merged_from"] = [
        {"id": encode_id(each["from_id"]), "cause": each["cause"], "merged_at": each["merged_at"]}
        for each in found["merged_from"]
    ]
    return plain({"id": encode_id(id), **found})


async def _identities(handles: Handles, id: int, found: Document) -> list[Document]:
    """With those of merged people that lie in their own shards, merge by merge."""
    held = {(each["kind"], each["value"]): each for each in found["identities"]}
    seen, waiting = {id}, [each["from_id"] for each in found["merged_from"]]
    while waiting:
        from_id = waiting.pop()
        if from_id in seen:
            continue
        seen.add(from_id)
        there = await handles.shards.query(
            handles.shards.of_subscriber(from_id),
            "identities_of",
            {"subscriber_ids": [from_id]},
            CALL_DEADLINE_S,
        )
        held |= {(each["kind"], each["value"]): each for each in there["identities"]}
        waiting += there["merged_from"]
    return [held[name] for name in sorted(held)]


async def person_id(handles: Handles, kind: str, value: str) -> int:
    """Who has this identity. Raises ``NotFound``."""
    value = compared(kind, value)
    shard = handles.shards.of_identity(kind, value)
    (found,) = await handles.shards.query(
        shard, "identities", {"kind": kind, "values": [value]}, CALL_DEADLINE_S
    )
    if found is None:
        raise NotFound(f"no subscriber has this {kind}", path=kind)
    return int(found)


def plain(value: Any) -> Any:
    """Values of the domain as JSON: instants as RFC 3339 text."""
    if isinstance(value, datetime):
        return as_text(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# -- audiences -------------------------------------------------------------------------------------


async def audience(handles: Handles, rule: Any, sample: int) -> Document:
    """How many people a rule holds for, up to ``sample`` of them from all shards in turn, and what
    it means in English. The Catalog checks the rule and puts segments that it names in place.

    Raises ``InvalidRequest`` with the path of what is wrong.
    """
    whole, types = await handles.catalog.call("audience", rule, deadline_s=CALL_DEADLINE_S)
    arguments = {"rule": whole, "attributes": types, "sample": sample}
    parts = await handles.shards.query_all("audience", arguments, CALL_DEADLINE_S)
    in_turn = zip_longest(*(part["sample"] for part in parts))
    mixed = [row for rows in in_turn for row in rows if row is not None]
    people = [
        plain({"id": encode_id(row["subscriber_id"]), "email": row["email"], **_attributes(row)})
        for row in mixed[:sample]
    ]
    checked = parse(whole, {name: AttributeType(kind) for name, kind in types.items()})
    return {
        "count": sum(part["count"] for part in parts),
        "sample": people,
        "explain": explain(checked),
    }


def _attributes(row: Document) -> Document:
    return {"attributes": row["attributes"]}


# -- campaigns -------------------------------------------------------------------------------------


async def accounting(handles: Handles, campaign_id: int) -> Document:
    """The accounting of one campaign over all shards; ``adds_up``: its states together are
    as many as the shards counted when they planned them."""
    parts = await handles.shards.query_all(
        "accounting", {"campaign_id": campaign_id}, CALL_DEADLINE_S
    )
    return _accounted(parts)


def _accounted(parts: Sequence[Document]) -> Document:
    total = sum((Accounting.of(part["states"]) for part in parts), Accounting.of(()))
    planned = sum(part["planned_total"] for part in parts)
    return total.as_dict() | {"planned_total": planned, "adds_up": total.holds_for(planned)}


async def campaign_report(handles: Handles, campaign: Document, step_s: int = 60) -> Document:
    """Accounting, results, failures by reason and both over time, summed over the shards."""
    number = {"campaign_id": campaign["id"]}
    parts, failures, steps = await asyncio.gather(
        handles.shards.query_all("campaign_report", number, CALL_DEADLINE_S),
        handles.shards.query_all("failures", number, CALL_DEADLINE_S),
        handles.shards.query_all("timeline", number | {"step_s": step_s}, CALL_DEADLINE_S),
    )
    return plain(
        {
            "campaign_id": campaign["id"],
            "state": campaign["state"],
            "progress": campaign.get("progress"),
            "accounting": _accounted([part["accounting"] for part in parts]),
            "events": _summed_events(parts),
            "reasons": _summed_reasons(parts),
            "failures": _summed_failures(failures),
            "timeline": _summed_steps(steps),
        }
    )


def _summed_events(parts: Sequence[Document]) -> Document:
    summed: dict[str, Counter[str]] = {}
    for part in parts:
        for kind, counts in part["events"].items():
            summed.setdefault(kind, Counter(dict.fromkeys(counts, 0))).update(counts)
    return {kind: dict(counts) for kind, counts in summed.items()}


def _summed_reasons(parts: Sequence[Document]) -> list[Document]:
    counts: Counter[tuple[str, str]] = Counter()
    for part in parts:
        for state, reason, messages in part["accounting"]["reasons"]:
            counts[state, reason] += messages
    return [
        {"state": state, "reason": reason, "messages": messages}
        for (state, reason), messages in counts.most_common()
    ]


def _summed_failures(parts: Sequence[Sequence[Document]]) -> list[Document]:
    merged: dict[tuple[Any, ...], Document] = {}
    for row in chain.from_iterable(parts):
        key = (row["state"], row["reason"], row["reply_code"])
        if key in merged:
            merged[key]["messages"] += row["messages"]
        else:
            merged[key] = dict(row)
    return sorted(merged.values(), key=lambda row: -row["messages"])


def _summed_steps(parts: Sequence[Sequence[Document]]) -> list[Document]:
    """One row per step, with the count of each thing that happened in it."""
    steps: dict[datetime, Counter[str]] = {}
    for row in chain.from_iterable(parts):
        steps.setdefault(row["at"], Counter())[row["what"]] += row["count"]
    return [{"at": at, **steps[at]} for at in sorted(steps)]


async def recipients(
    handles: Handles, campaign_id: int, state: str | None, limit: int, cursor: str | None
) -> tuple[list[Document], str | None]:
    """A page of a campaign's messages, shard after shard, and the cursor of the next one."""
    if state is not None and state not in set(State):
        raise InvalidRequest(f"no state {state!r:.40}", path="state", expected=", ".join(State))
    shard, after = 0, (-1, 0)
    if cursor:
        shard, *rest = read_cursor("recipients", cursor, [int, int, int])
        after = (rest[0], rest[1])
    items: list[Document] = []
    while 0 <= shard < handles.shards.count:
        arguments = {
            "campaign_id": campaign_id,
            "after": after,
            "state": state,
            "limit": limit - len(items),
        }
        items += await handles.shards.query(shard, "recipients", arguments, CALL_DEADLINE_S)
        if len(items) >= limit:
            last = items[-1]
            position = [shard, last["subscriber_id"], last["message_key"]]
            return [recipient_shown(item) for item in items], write_cursor("recipients", position)
        shard, after = shard + 1, (-1, 0)
    return [recipient_shown(item) for item in items], None


async def recipient(handles: Handles, subscriber_id: int, message_key: int) -> Document:
    """One message with all that came of it. Raises ``NotFound``."""
    shard = handles.shards.of_subscriber(subscriber_id)
    arguments = {"subscriber_id": subscriber_id, "message_key": message_key}
    found = await handles.shards.query(shard, "recipient", arguments, CALL_DEADLINE_S)
    if found is None:
        raise NotFound("there is no such message", path="subscriber_id")
    return recipient_shown(found)


def recipient_shown(row: Document) -> Document:
    """A row of the ledger for people: ids as text."""
    shown = dict(row)
    shown["subscriber_id"] = encode_id(row["subscriber_id"])
    shown["message_key"] = encode_id(row["message_key"])
    for event in shown.get("history", ()):
        event["properties"] = json.loads(event["properties"]) if event["properties"] else None
    return plain(shown)
