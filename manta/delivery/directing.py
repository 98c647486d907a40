"""What the Director decides: a campaign's documents and what is to be done next for it.

Pure. The Director journals the changed document first and acts afterwards; every action is a
command with the key (campaign, step), where ``step`` counts the campaign's changes of state, so an
action that is repeated after a crash changes nothing twice. What still has to be done follows from
the document alone (``todo``): recovery needs no other memory.

A launch pins everything: the document's ``definition`` is the plan that every shard gets, complete
from that moment, so that a start needs nobody else and a later change of the template or the
segment changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

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
from manta.delivery.campaign import PRIORITY_MAX, CampaignPlan, CampaignState, Kind, move_campaign
from manta.delivery.ledger import Policy
from manta.errors import Conflict, InvalidRequest

HISTORY_MAX = 200
TOPIC_LENGTH_MAX = 200
NUMBER_MAX = (1 << 31) - 1
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
PRIORITY = 100
ALONE_PRIORITY = 10  # of a message sent by itself: somebody waits for it before the screen
# Without a further message a standing campaign may finish after this.
STAYS_OPEN = {Kind.TEST: timedelta(minutes=10), Kind.TRANSACTIONAL: timedelta(days=7)}
STANDING_KEPT_MAX = 200  # ended ones, of a kind
OVERRULED_MAX = 20  # actions that a person has overruled by resuming
_ENDED = (CampaignState.FINISHED, CampaignState.CANCELLED)


# -- drafts ----------------------------------------------------------------------------------------


def create_campaign(
    reader: Reader, fields: Mapping[str, Any], sources: Sequence[str], now: datetime
) -> Defined:
    """A draft. ``sources`` are the names of the ways out, the default first.

    Raises ``InvalidRequest`` that names the field.
    """
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
    number, taken = next_number(reader, "campaigns")
    document: Document = {
        "id": number,
        "name": checked_name(fields),
        "state": str(CampaignState.DRAFT),
        "segment_id": _integer(fields, "segment_id", 1, NUMBER_MAX, None),
        "rule": fields.get("rule"),
        "template_id": _integer(fields, "template_id", 1, NUMBER_MAX),
        "topic": _topic(fields.get("topic") or "newsletter"),
        "kind": str(_one_of(Kind, fields.get("kind") or Kind.MARKETING, "kind")),
        "priority": _integer(fields, "priority", 0, PRIORITY_MAX, PRIORITY),
        "source": _source(fields.get("source") or sources[0], sources),
        "expires_at": _instant(fields.get("expires_at"), "expires_at"),
        "step": 0,
        "announced": 0,
        "shards": {},
        "history": [],
        "created_at": as_text(now),
        "changed_at": as_text(now),
        **_NOT_LAUNCHED,
    }
    if document["kind"] == Kind.TEST:
        raise InvalidRequest(
            "a test is sent from its template", path="kind", expected="marketing or transactional"
        )
    default = Policy.HOLD if document["kind"] == Kind.MARKETING else Policy.RESEND
    document["policy"] = str(_one_of(Policy, fields.get("policy") or default, "policy"))
    _note(document, CampaignState.DRAFT, now)
    return Defined(document, (taken, _store(document)))


def delete(reader: Reader, id: int) -> Defined:
    """Forget a campaign of which no shard ever heard. Raises ``Conflict`` for any other."""
    document = required(reader, "campaigns", str(id))
    state = document["state"]
    if document["definition"] or state not in (CampaignState.DRAFT, CampaignState.CANCELLED):
        raise Conflict(
            f"campaign {id} is {state}" if state not in _ENDED else f"campaign {id} was launched",
            path="state",
            expected="a draft, or a campaign that was cancelled before its launch",
        )
    forgotten = [("campaigns", str(id), None)]
    if reader.get("forecasts", str(id)) is not None:
        forgotten.append(("forecasts", str(id), None))
    return Defined(None, tuple(forgotten))


def check_rehearsal(document: Mapping[str, Any]) -> None:
    """Raises ``Conflict`` where a campaign is not to be rehearsed any more."""
    if document["state"] not in (CampaignState.DRAFT, CampaignState.SCHEDULED):
        raise Conflict(
            f"campaign {document['id']} is {document['state']}",
            path="state",
            expected="a campaign that has not started",
        )


def record_forecast(reader: Reader, id: int, forecast: Mapping[str, Any]) -> Defined:
    """Keep what a rehearsal foresees, in the place of an earlier forecast. Raises ``Conflict``
    once the campaign has started: a forecast is made before."""
    check_rehearsal(required(reader, "campaigns", str(id)))
    return Defined(None, (("forecasts", str(id), dict(forecast)),))


# -- messages sent one by one ----------------------------------------------------------------------


@dataclass(frozen=True)
class OneMessage:
    """A message to one person. ``occurrence`` is its name within the campaign and the person;
    ``send_to`` is for tests."""

    subscriber_id: int
    occurrence: str
    send_to: str | None = None
    expires_at: datetime | None = None


def standing_campaign(
    reader: Reader,
    kind: Kind,
    template_id: int,
    pinned: Pinned,
    source: str,
    zone: str,
    now: datetime,
) -> Defined:
    """The campaign of a template version's tests, or of its transactional messages, kept open from
    now on; made if need be.

    It has no audience: messages are enqueued into it one by one. It finishes like any other when
    nothing of it is pending, but not while somebody may be about to enqueue. Of those that have
    ended the latest ``STANDING_KEPT_MAX`` are kept. Transactional ones stay open for days, and a
    pause holds for what comes after it as well.
    """
    all_standing = (d for d in reader.list("campaigns") if is_standing(d) and d["kind"] == kind)
    standing = sorted(all_standing, key=lambda d: int(d["id"]))
    version = (template_id, pinned.template_version)
    lasting = kind is Kind.TRANSACTIONAL
    usable = (CampaignState.RUNNING, *((CampaignState.PAUSED,) if lasting else ()))
    for known in standing:
        same = (known["template_id"], known["template_version"]) == version
        if same and known["state"] in usable:
            until = parse_instant(known["open_until"])
            if lasting and until - now > STAYS_OPEN[kind] / 2:
                return Defined(known)
            document = dict(known) | {"open_until": as_text(now + STAYS_OPEN[kind])}
            return Defined(document, (_store(document),))
    number, taken = next_number(reader, "campaigns")
    what = "Messages" if lasting else "Tests"
    document = {
        "id": number,
        "name": f"{what} of template {template_id}, version {pinned.template_version}",
        "state": str(CampaignState.SCHEDULED),
        "segment_id": None,
        "rule": None,
        "template_id": template_id,
        "topic": str(kind),
        "kind": str(kind),
        "policy": str(Policy.RESEND),
        "priority": ALONE_PRIORITY,
        "source": source,
        "expires_at": None,
        "step": 0,
        "announced": 0,
        "shards": {},
        "history": [],
        "created_at": as_text(now),
        "launch_at": as_text(now),
        "template_version": pinned.template_version,
        "audience": None,
        "open_until": as_text(now + STAYS_OPEN[kind]),
    }
    document["definition"] = _plan(document, pinned, zone, now).to_json()
    _move(document, CampaignState.RUNNING, now)
    ended = [str(d["id"]) for d in standing if d["state"] in _ENDED and d["announced"] >= d["step"]]
    forgotten = ended[: max(0, len(ended) - STANDING_KEPT_MAX)]
    return Defined(
        document, (taken, _store(document), *(("campaigns", i, None) for i in forgotten))
    )


def is_standing(document: Mapping[str, Any]) -> bool:
    """Whether messages are enqueued into it one by one."""
    return document.get("open_until") is not None


def is_test(document: Mapping[str, Any]) -> bool:
    """Whether it is the campaign of a template's tests; lists of campaigns leave it out."""
    return bool(document["kind"] == Kind.TEST)


# -- launching -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pinned:
    """What a campaign uses, as it is at the launch."""

    template_version: int
    sending_domain: str  # of the template's From address
    attributes: Sequence[str]  # that the template reads
    audience: Mapping[str, Any]  # a rule without references to segments
    attribute_types: Mapping[str, str]  # of the attributes that the rule names


_NOT_LAUNCHED: Mapping[str, Any] = {
    "launch_at": None,
    "template_version": None,
    "audience": None,
    "definition": None,
}


def launch(
    reader: Reader,
    id: int,
    launch_at: datetime | None,
    pinned: Pinned,
    sources: Sequence[str],
    zone: str,
    now: datetime,
) -> Defined:
    """Launch at once, or at an instant to come; a scheduled campaign may be launched anew.

    Raises ``Conflict`` where the state forbids it, ``InvalidRequest`` for what cannot be sent.
    """
    document = dict(required(reader, "campaigns", str(id)))
    at = max(launch_at or now, now)
    _move(document, CampaignState.SCHEDULED, now)
    _source(document["source"], sources)
    document |= {
        "launch_at": as_text(at),
        "template_version": pinned.template_version,
        "audience": dict(pinned.audience),
        "definition": _plan(document, pinned, zone, at).to_json(),
    }
    if at <= now:
        _move(document, CampaignState.RUNNING, now)
    return Defined(document, (_store(document),))


def start(reader: Reader, id: int, now: datetime) -> Defined:
    """A scheduled campaign whose time has come runs; any other stays as it is."""
    document = dict(required(reader, "campaigns", str(id)))
    is_scheduled = document["state"] == CampaignState.SCHEDULED
    if not is_scheduled or parse_instant(document["launch_at"]) > now:
        return Defined(document)
    _move(document, CampaignState.RUNNING, now)
    return Defined(document, (_store(document),))


def _plan(document: Document, pinned: Pinned, zone: str, due_at: datetime) -> CampaignPlan:
    expires_at = document["expires_at"]
    return CampaignPlan(
        campaign_id=document["id"],
        kind=Kind(document["kind"]),
        channel="email",
        topic=document["topic"],
        template_id=str(document["template_id"]),
        template_version=pinned.template_version,
        source=document["source"],
        due_at=due_at,
        audience=json.dumps(pinned.audience) if pinned.audience else "",
        attribute_types=tuple(sorted(pinned.attribute_types.items())),
        time_zone=zone,
        attributes=tuple(pinned.attributes),
        priority=document["priority"],
        policy=Policy(document["policy"]),
        expires_at=parse_instant(expires_at) if expires_at else None,
        sending_domain=pinned.sending_domain,
    )


# -- moves -----------------------------------------------------------------------------------------


def move_to(reader: Reader, id: int, state: CampaignState, now: datetime) -> Defined:
    """Pause, resume, cancel, or take back to a draft. Raises ``Conflict`` where that cannot be.

    A person's word stands above an action that has paused the campaign: who resumes it overrules
    the action, who pauses it makes the pause their own.
    """
    document = dict(required(reader, "campaigns", str(id)))
    before = CampaignState(document["state"])
    action_id = document.pop("paused_by", None)
    if action_id is not None and state is not CampaignState.PAUSED:
        document["overruled"] = [*document.get("overruled", ()), action_id][-OVERRULED_MAX:]
    if before is state:
        return Defined(document, () if action_id is None else (_store(document),))
    if state is CampaignState.RUNNING and before is CampaignState.SCHEDULED:
        raise Conflict(
            f"campaign {id} waits for {document['launch_at']}",
            path="state",
            expected="a paused campaign; launch a scheduled one to start it at once",
        )
    _move(document, state, now)
    if before is CampaignState.SCHEDULED:  # no shard has heard of it
        document |= _NOT_LAUNCHED
    return Defined(document, (_store(document),))


def pause_for(reader: Reader, id: int, action_id: int, cause: str, now: datetime) -> Defined | None:
    """Pause a running campaign because of an action. ``None``: there is nothing to pause, or a
    person has overruled this action."""
    found = reader.get("campaigns", str(id))
    if found is None or found["state"] != CampaignState.RUNNING:
        return None
    if action_id in found.get("overruled", ()):
        return None
    document = dict(found)
    _move(document, CampaignState.PAUSED, now, cause)
    document["paused_by"] = action_id
    return Defined(document, (_store(document),))


def resume_for(
    reader: Reader, id: int, action_id: int, cause: str, now: datetime
) -> Defined | None:
    """Resume a campaign if it is still paused by this very action; ``None``: it is not."""
    found = reader.get("campaigns", str(id))
    if found is None or found["state"] != CampaignState.PAUSED:
        return None
    if found.get("paused_by") != action_id:
        return None
    document = dict(found)
    del document["paused_by"]
    _move(document, CampaignState.RUNNING, now, cause)
    return Defined(document, (_store(document),))


def finish(reader: Reader, id: int, now: datetime) -> Defined:
    """Nothing is pending any more; a campaign that was paused or cancelled meanwhile stays so."""
    document = dict(required(reader, "campaigns", str(id)))
    if document["state"] != CampaignState.RUNNING:
        return Defined(document)
    _move(document, CampaignState.FINISHED, now)
    return Defined(document, (_store(document),))


# -- what has been done ----------------------------------------------------------------------------


def record_announced(reader: Reader, id: int, step: int) -> Defined:
    """Every shard has heard of the step."""
    document = dict(required(reader, "campaigns", str(id)))
    if document["announced"] >= step:
        return Defined(document)
    document["announced"] = step
    return Defined(document, (_store(document),))


def record_planning(reader: Reader, id: int, pages: Mapping[int, Page]) -> Defined:
    """Shards have planned their next people; answers about people counted already are no news."""
    document = dict(required(reader, "campaigns", str(id)))
    news = {
        str(shard): _counted(document["shards"].get(str(shard)), page.answer)
        for shard, page in pages.items()
        if next_page(document, shard) == page.after
    }
    if not news:
        return Defined(document)
    document["shards"] = document["shards"] | news
    return Defined(document, (_store(document),))


class Page(NamedTuple):
    """What ``planning.PlanCampaign`` answered about the people after ``after``."""

    after: int
    answer: Mapping[str, Any]


def _counted(before: Mapping[str, Any] | None, answer: Mapping[str, Any]) -> dict[str, Any]:
    known = before or {"planned": 0, "suppressed": 0}
    return {
        "planned": known["planned"] + answer["planned"],
        "suppressed": known["suppressed"] + answer["suppressed"],
        "last_subscriber": answer["last_subscriber"],
        "done": answer["done"],
    }


# -- what is to be done ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Todo:
    """What a campaign's document asks for."""

    announce: bool = False  # tell every shard its state
    plan: tuple[int, ...] = ()  # the shards that have not planned all of it
    start_at: datetime | None = None  # scheduled: when to start
    watch: bool = False  # planned everywhere: finished as soon as nothing is pending
    open_until: datetime | None = None  # watched, but not to be finished before


def todo(document: Mapping[str, Any], shards: int) -> Todo:
    """Recomputed after every change and after a recovery; ``Todo()``: nothing any more."""
    state = CampaignState(document["state"])
    if state is CampaignState.SCHEDULED:
        return Todo(start_at=parse_instant(document["launch_at"]))
    if not document["definition"]:  # a draft, or cancelled as one
        return Todo()
    announce = document["announced"] < document["step"]
    if state in _ENDED:
        return Todo(announce=announce)
    plan = tuple(shard for shard in range(shards) if next_page(document, shard) is not None)
    running = state is CampaignState.RUNNING
    open_until = document.get("open_until")
    until = parse_instant(open_until) if open_until and running else None
    return Todo(announce, plan, watch=running and not plan, open_until=until)


def next_page(document: Mapping[str, Any], shard: int) -> int | None:
    """After which subscriber a shard goes on planning; ``None`` where it has nothing to plan."""
    progress = document["shards"].get(str(shard), {})
    if is_standing(document):  # messages are enqueued one by one
        return None
    if progress.get("done") or CampaignState(document["state"]) in _ENDED:
        return None
    return int(progress.get("last_subscriber", -1))


def planning_progress(document: Mapping[str, Any], shards: int) -> dict[str, int]:
    """``planning n of N``: shards done, of how many, and the rows so far."""
    parts = document["shards"].values()
    return {
        "shards_planned": sum(1 for part in parts if part["done"]),
        "shards": shards,
        "planned": sum(part["planned"] for part in parts),
        "suppressed": sum(part["suppressed"] for part in parts),
    }


# -- helpers ---------------------------------------------------------------------------------------


def _move(document: Document, state: CampaignState, now: datetime, cause: str = "") -> None:
    document["state"] = str(move_campaign(CampaignState(document["state"]), state))
    document["step"] += 1
    document["changed_at"] = as_text(now)
    _note(document, state, now, cause)


def _note(document: Document, state: CampaignState, now: datetime, cause: str = "") -> None:
    """``cause``: what did it, where no person did."""
    entry = {"at": as_text(now), "state": str(state)} | ({"cause": cause} if cause else {})
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


_REQUIRED = object()


def _integer(
    fields: Mapping[str, Any], path: str, low: int, high: int, default: Any = _REQUIRED
) -> Any:
    value = fields.get(path)
    if value is None and default is not _REQUIRED:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(
            f"{path} is {value!r:.60}", path=path, expected=f"a whole number, {low} to {high}"
        )
    return value


def _topic(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TOPIC_LENGTH_MAX or not value.isprintable():
        raise InvalidRequest(
            f"{value!r:.60} is not a topic",
            path="topic",
            expected=f"1 to {TOPIC_LENGTH_MAX} printable characters",
        )
    return value


def _source(value: Any, sources: Sequence[str]) -> str:
    if value not in sources:
        raise InvalidRequest(
            f"there is no way out named {value!r:.60}",
            path="source",
            expected=f"one of {', '.join(sources)}",
        )
    return str(value)


def _instant(value: Any, path: str) -> str | None:
    if value is None:
        return None
    try:
        return as_text(parse_instant(str(value)))
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{value!r:.60} is not an instant", path=path, expected="RFC 3339"
        ) from None
