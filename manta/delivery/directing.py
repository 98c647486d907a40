"""What the Director decides: a campaign's documents and what is to be done next for it.

Pure. The Director journals the changed document first and acts afterwards; every action is a
command with the key (campaign, step), where ``step`` counts the campaign's changes of state, so an
action that is repeated after a crash changes nothing twice. What still has to be done follows from
the document alone (``todo``): recovery needs no other memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manta.clock import as_text, parse_instant
from manta.definitions import (
    Defined,
    Document,
    DocumentChange,
    Reader,
    checked_name,
    next_number,
    required,
)
from manta.delivery.campaign import CampaignState, Kind, move_campaign
from manta.delivery.ledger import Policy
from manta.errors import InvalidRequest

HISTORY_MAX = 200
FIELDS = (
    "name",
    "segment_id",
    "rule",
    "template_id",
    "topic",
    "kind",
    "policy",
    "priority",
    "source",
    "expires_at",
)
# A lane with fewer due rows than this is one Sender's; a longer one is shared by all.
SHARE_FROM_ROWS = 400


def create_campaign(reader: Reader, fields: Mapping[str, Any], now: datetime) -> Defined:
    """A draft. Raises ``InvalidRequest`` that names the field."""
    unknown = set(fields) - set(FIELDS)
    if unknown:
        raise InvalidRequest(
            f"unknown field {min(unknown)}", path=min(unknown), expected=", ".join(FIELDS)
        )
    if (fields.get("segment_id") is None) == (fields.get("rule") is None):
        raise InvalidRequest(
            "a campaign needs its audience once",
            path="segment_id",
            expected="either segment_id or rule",
        )
    if fields.get("template_id") is None:
        raise InvalidRequest("a campaign needs a template", path="template_id", expected="a number")
    number, taken = next_number(reader, "campaigns")
    document: Document = {
        "id": number,
        "name": checked_name(fields),
        "state": str(CampaignState.DRAFT),
        "segment_id": fields.get("segment_id"),
        "rule": fields.get("rule"),
        "template_id": fields["template_id"],
        "template_version": None,
        "attributes": [],
        "topic": str(fields.get("topic") or "newsletter"),
        "kind": str(_one_of(Kind, fields.get("kind") or Kind.MARKETING, "kind")),
        "priority": int(fields.get("priority") or 100),
        "source": fields.get("source"),
        "launch_at": None,
        "expires_at": _instant(fields.get("expires_at"), "expires_at"),
        "definition": None,
        "step": 0,
        "shards": {},
        "history": [],
        "created_at": as_text(now),
        "changed_at": as_text(now),
    }
    default = Policy.HOLD if document["kind"] == Kind.MARKETING else Policy.RESEND
    document["policy"] = str(_one_of(Policy, fields.get("policy") or default, "policy"))
    _note(document, CampaignState.DRAFT, now)
    return Defined(document, (taken, _store(document)))


def schedule(
    reader: Reader, id: int, launch_at: datetime, pinned: Mapping[str, Any], now: datetime
) -> Defined:
    """Launch, now or later. ``pinned`` holds ``template_version``, ``attributes`` and ``rule``."""
    document = dict(required(reader, "campaigns", str(id)))
    document |= pinned
    document["launch_at"] = as_text(launch_at)
    _move(document, CampaignState.SCHEDULED, now)
    return Defined(document, (_store(document),))


def start(reader: Reader, id: int, definition: str, now: datetime) -> Defined:
    """Its time has come. ``definition`` is the JSON of the plan that every shard gets."""
    document = dict(required(reader, "campaigns", str(id)))
    if document["state"] != CampaignState.SCHEDULED:
        return Defined(document)  # cancelled meanwhile, or started before a crash
    document["definition"] = definition
    _move(document, CampaignState.RUNNING, now)
    return Defined(document, (_store(document),))


def move_to(reader: Reader, id: int, state: CampaignState, now: datetime) -> Defined:
    """Pause, resume, cancel or finish. Raises ``Conflict`` where the state forbids it."""
    document = dict(required(reader, "campaigns", str(id)))
    if document["state"] == state:
        return Defined(document)
    _move(document, state, now)
    return Defined(document, (_store(document),))


def record_planning(
    reader: Reader, id: int, shard: int, progress: Mapping[str, Any], now: datetime
) -> Defined:
    """A shard has planned up to ``progress['last_subscriber']``."""
    document = dict(required(reader, "campaigns", str(id)))
    before = document["shards"].get(str(shard), {"planned": 0, "suppressed": 0})
    document["shards"] = document["shards"] | {
        str(shard): {
            "planned": before["planned"] + progress["planned"],
            "suppressed": before["suppressed"] + progress["suppressed"],
            "last_subscriber": progress["last_subscriber"],
            "done": progress["done"],
        }
    }
    return Defined(document, (_store(document),))


@dataclass(frozen=True)
class Todo:
    """What a campaign's document asks for at an instant."""

    announce: bool = False  # tell every shard its state
    plan: tuple[tuple[int, int], ...] = ()  # (shard, after which subscriber)
    start_at: datetime | None = None  # scheduled: when to start
    watch: bool = False  # planned everywhere: finished as soon as nothing is pending


def todo(document: Mapping[str, Any], shards: int) -> Todo:
    """Recomputed after every change and after a recovery."""
    state = CampaignState(document["state"])
    if state is CampaignState.SCHEDULED:
        return Todo(start_at=parse_instant(document["launch_at"]))
    if state in (CampaignState.DRAFT, CampaignState.FINISHED) or not document["definition"]:
        return Todo()
    if state is CampaignState.CANCELLED:
        return Todo(announce=True)
    unplanned = []
    for shard in range(shards):
        progress = document["shards"].get(str(shard), {})
        if not progress.get("done"):
            unplanned.append((shard, int(progress.get("last_subscriber") or 0)))
    running = state is CampaignState.RUNNING
    return Todo(announce=True, plan=tuple(unplanned), watch=running and not unplanned)


def planning_progress(document: Mapping[str, Any], shards: int) -> dict[str, int]:
    """``planning n of N``: shards done, of how many, and the rows so far."""
    parts = document["shards"].values()
    return {
        "shards_planned": sum(1 for part in parts if part["done"]),
        "shards": shards,
        "planned": sum(part["planned"] for part in parts),
        "suppressed": sum(part["suppressed"] for part in parts),
    }


def choose_senders(source: str, site: str, due_rows: int, senders: Sequence[str]) -> list[str]:
    """The Senders of a lane in the order of preference: all for a long queue, else by turn."""
    if not senders:
        return []
    first = sum(f"{source}|{site}".encode()) % len(senders)
    ordered = [*senders[first:], *senders[:first]]
    return ordered if due_rows >= SHARE_FROM_ROWS else ordered[:1]


def _move(document: Document, state: CampaignState, now: datetime) -> None:
    document["state"] = str(move_campaign(CampaignState(document["state"]), state))
    document["step"] += 1
    document["changed_at"] = as_text(now)
    _note(document, state, now)


def _note(document: Document, state: CampaignState, now: datetime) -> None:
    entry = {"at": as_text(now), "state": str(state)}
    document["history"] = [*document["history"], entry][-HISTORY_MAX:]


def _store(document: Document) -> DocumentChange:
    return ("campaigns", str(document["id"]), document)


def _one_of(kind: Any, value: Any, path: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequest(
            f"{value!r:.60} is not a {path}", path=path, expected=", ".join(kind)
        ) from None


def _instant(value: Any, path: str) -> str | None:
    if value is None:
        return None
    try:
        return as_text(parse_instant(str(value)))
    except ValueError:
        raise InvalidRequest(
            f"{value!r:.60} is not an instant", path=path, expected="RFC 3339"
        ) from None
