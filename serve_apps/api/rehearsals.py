"""Rehearsals of campaigns: what is known is gathered here, and gone through in a thread.

One at a time in a replica, for at most ``rehearsal.GIVE_UP_S``; who comes meanwhile is asked to
come again. The forecast is kept with the campaign (the Director's journal), so that it can be held
against what came. Nothing is sent, and nothing else changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from datetime import datetime
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from fastapi import APIRouter
from pydantic import Field

from actors.handles import Handles
from manta.clock import parse_instant
from manta.delivery.campaign import CampaignState
from manta.delivery.lanes import Site
from manta.delivery.rehearsal import rehearsal
from manta.delivery.rehearsal.audiences import DOMAINS_MAX
from manta.delivery.rehearsal.forecast import Forecast, Outcome, compare
from manta.delivery.reputation import norms
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.observations import Observed
from manta.errors import MantaError
from manta.settings import Settings
from serve_apps.api.wiring import Number, Ports, needs
from serve_apps.bodies import Body, instant
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.problems import TooMany

router = APIRouter(prefix="/campaigns", tags=["campaigns"])
READ, WRITE = needs("campaigns:read"), needs("campaigns:write")
GATHER_S = 5.0
SEED_MAX = (1 << 31) - 1
_ENDED = (CampaignState.FINISHED, CampaignState.CANCELLED)
_T = TypeVar("_T")
_working = Lock()


class Rehearsal(Body):
    at: str | None = Field(
        None, max_length=40, description="The start, RFC 3339; the launch time or now if absent."
    )
    seed: int = Field(1, ge=0, le=SEED_MAX, description="The same seed meets the same chances.")


@router.post("/{number}/rehearse", dependencies=[WRITE], summary="Go through it in virtual time")
async def rehearse(number: Number, ports: Ports, body: Rehearsal | None = None) -> dict[str, Any]:
    """When it would end, what each provider would defer and refuse, what the warm-up holds back,
    and which actions would be taken: from models of the providers, with eight-of-ten intervals.
    Only before its start; one at a time. `docs/rehearsal.md` says how to read it."""
    body = body or Rehearsal()
    at = instant(body.at, "at")
    asked = await ports.director.call("rehearsal", number, deadline_s=CALL_DEADLINE_S)
    gathered = await _gather(ports, asked, _start(asked["campaign"], at, ports.clock.now()))
    forecast = await asyncio.to_thread(_work, gathered, ports, body.seed)
    document = forecast.to_document()
    await ports.director.call("record_forecast", number, document, deadline_s=CALL_DEADLINE_S)
    return document


@router.get("/{number}/forecast", dependencies=[READ], summary="The last rehearsal, and what came")
async def get_forecast(number: Number, ports: Ports) -> dict[str, Any]:
    """`forecast`: null if it was never rehearsed. `comparison`: once the campaign has ended, each
    figure with what was foreseen, what came, and whether that lay within."""
    found = await ports.director.call("forecast", number, deadline_s=CALL_DEADLINE_S)
    forecast, campaign = found["forecast"], found["campaign"]
    comparison = None
    if forecast is not None and campaign["state"] in _ENDED:
        comparison = await _compared(ports, campaign, Forecast.from_document(forecast))
    return {"forecast": forecast, "comparison": comparison}


# -- before ----------------------------------------------------------------------------------------


class _Gathered(NamedTuple):
    campaign: rehearsal.Campaign
    settings: Settings
    audience: rehearsal.Audience
    sites: Mapping[str, Site | None]
    state: rehearsal.State
    unknown: tuple[str, ...]  # what did not answer


def _start(campaign: Mapping[str, Any], at: datetime | None, now: datetime) -> datetime:
    if at is None and campaign["launch_at"]:
        at = parse_instant(campaign["launch_at"])
    return max(at or now, now)


async def _gather(ports: Handles, asked: Mapping[str, Any], starts_at: datetime) -> _Gathered:
    """The people, where their mail goes, and how the sender stands."""
    document, settings = asked["campaign"], asked["settings"]
    arguments = {
        "rule": asked["audience"],
        "attributes": asked["attributes"],
        "kind": document["kind"],
        "channel": "email",
        "topic": document["topic"],
        "now": starts_at,
        "limit": DOMAINS_MAX,
    }
    parts = await ports.shards.query_all("audience_domains", arguments, CALL_DEADLINE_S)
    audience = rehearsal.Audience.of(parts)
    unknown: list[str] = []
    law, reputation, throttle, record, sites = await asyncio.gather(
        _or_none(ports.reputation.call("law", deadline_s=GATHER_S), "Reputation", unknown),
        _or_none(ports.reputation.call("status", deadline_s=GATHER_S), "Reputation", unknown),
        _or_none(ports.throttle.call("status", deadline_s=GATHER_S), "the Throttle", unknown),
        _or_none(ports.shards.query_all("observed", {}, GATHER_S), "the record", unknown),
        _sites(ports, settings, document["source"], audience, unknown),
    )
    state = rehearsal.State(
        Law.from_document(law) if law else Law(),
        tuple((reputation or {}).get("courses", ())),
        tuple((throttle or {}).get("warmup", ())),
        tuple(Observed(*each) for part in record or () for each in part),
    )
    expires_at = document["expires_at"]
    campaign = rehearsal.Campaign(
        document["id"],
        document["source"],
        asked["sending_domain"],
        starts_at,
        parse_instant(expires_at) if expires_at else None,
    )
    return _Gathered(campaign, settings, audience, sites, state, tuple(dict.fromkeys(unknown)))


async def _sites(
    ports: Handles,
    settings: Settings,
    source: str,
    audience: rehearsal.Audience,
    unknown: list[str],
) -> Mapping[str, Site | None]:
    """Where direct sources would bring the mail; a relay's sites follow from its lists."""
    members = {member.source for member in settings.ways_out.get(source, ())}
    if not any(s.name in members and s.kind == "direct" for s in settings.egress):
        return {}
    domains = [domain for domain, _, _ in audience.domains]
    asked = ports.resolver.call("sites", domains, True, deadline_s=2 * GATHER_S)
    return await _or_none(asked, "the Resolver", unknown) or {}


async def _or_none(asked: Awaitable[_T], who: str, unknown: list[str]) -> _T | None:
    """A rehearsal goes on without what does not answer, and says so."""
    try:
        return await asked
    except MantaError:
        unknown.append(who)
        return None


def _work(gathered: _Gathered, ports: Handles, seed: int) -> Forecast:
    """In a thread of its own."""
    if not _working.acquire(blocking=False):
        raise TooMany("another campaign is being rehearsed", path="rehearse")
    try:
        began_s = ports.clock.monotonic()
        facts = rehearsal.facts_of(*gathered[:5], norms.builtin())
        forecast = rehearsal.rehearse(
            facts, ports.clock.now(), lambda: ports.clock.monotonic() - began_s, seed
        )
    finally:
        _working.release()
    without = tuple(f"{who} did not answer: its state is not known" for who in gathered.unknown)
    return replace(forecast, assumptions=(*forecast.assumptions, *without))


# -- afterwards ------------------------------------------------------------------------------------


async def _compared(
    ports: Handles, campaign: Mapping[str, Any], forecast: Forecast
) -> dict[str, Any] | None:
    arguments = {"campaign_id": campaign["id"]}
    parts = await ports.shards.query_all("provider_outcomes", arguments, CALL_DEADLINE_S)
    began_at = next(
        (
            parse_instant(entry["at"])
            for entry in campaign["history"]
            if entry["state"] == CampaignState.RUNNING
        ),
        None,
    )
    if began_at is None:  # it never ran
        return None
    merged: dict[str, dict[str, Any]] = {}
    for row in (row for part in parts for row in part):
        known = merged.get(row["provider"])
        merged[row["provider"]] = row if known is None else _added(known, row)
    return compare(forecast, [_outcome(row, began_at) for row in merged.values()]).to_document()


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    last = [row["last_at"] for row in (one, other) if row["last_at"] is not None]
    counts = {k: one[k] + other[k] for k in one if k not in ("provider", "last_at")}
    return {"provider": one["provider"], **counts, "last_at": max(last, default=None)}


def _outcome(row: Mapping[str, Any], began_at: datetime) -> Outcome:
    done_s = None
    if not row["pending"] and row["last_at"] is not None:
        done_s = (row["last_at"] - began_at).total_seconds()
    names = ("provider", "messages", "accepted", "deferred", "failed", "expired")
    return Outcome(**{name: row[name] for name in names}, done_s=done_s)
