"""Taking in: from what messages mean (``manta.ingestion``) to what is stored of them.

For the messages of one request, in this order: who they are about (one call for all that say
something new of people), merges that were asked for, events with their originals (one command a
shard), and what fits no shape into quarantine. So a person is known before their events are stored,
and what one message says of a person is said before what the next one says. Every step may be
repeated: a sender that got no answer sends the same again.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import available_timezones

import pyarrow as pa
from pydantic_core import from_json, to_json

from actors.handles import Handles
from manta.clock import parse_instant
from manta.errors import (
    Conflict,
    InvalidRequest,
    MantaError,
    NotFound,
    Overloaded,
    RetryableError,
)
from manta.events.commands import RECORDED
from manta.ingestion.normalised import GivenConsent, Normalised, Unfit, received_id
from manta.ingestion.normalisers import NORMALISERS
from manta.ingestion.quarantine import Quarantine, Waif
from manta.ingestion.traits import Typed, typed
from manta.people.commands import Consent, UpsertPeople
from manta.people.consents import SUBSCRIBED_TO, UNSUBSCRIBED
from manta.people.identifying import living
from manta.schema import ATTRIBUTE_PREFIX, AttributeType
from serve_apps import reads
from serve_apps.collect.knowledge import Document, Knowledge
from serve_apps.collect.naming import Naming, name_all
from serve_apps.collect.people import People
from serve_apps.collect.recording import Incoming, Original, Outcome, Recorder
from serve_apps.limits import CALL_DEADLINE_S

QUARANTINED = "quarantined"
REFUSED = "refused"
_OWN_ACTS = ("single", "double", "page")  # methods by which people themselves consent
_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True)
class Arrived:
    """One message: as it came (JSON text), and what it means."""

    body: str
    found: Sequence[Normalised] | Unfit


class Taken(NamedTuple):
    """What became of a message. ``unfit``: why it, or a part of it, lies in quarantine under
    ``quarantine_id`` (0: there was no room)."""

    status: str  # recorded | repeated | quarantined | refused
    error: MantaError | None = None
    unfit: Unfit | None = None
    quarantine_id: int = 0


@dataclass
class _Work:
    """One message on its way. ``person``: 0 until it is known."""

    n: int
    said: Normalised
    typed: Typed = field(default_factory=Typed)
    person: int = 0
    status: str = ""
    error: MantaError | None = None


class Intake:
    """Takes messages in. One for each replica."""

    def __init__(self, handles: Handles, recorder: Recorder, producer: str) -> None:
        self._handles = handles
        self._shards = handles.shards
        self._recorder = recorder
        self._producer = producer
        self._commands = 0
        self._people = People(handles, "event")
        self.knowledge = Knowledge(handles)

    async def take(
        self, source: Document, arrived: Sequence[Arrived], keep_unfit: bool = True
    ) -> list[Taken]:
        """What became of each message. Raises a ``RetryableError`` where a shard did not answer:
        then all of them may be sent again. Without ``keep_unfit`` nothing goes to quarantine."""
        name = str(source.get("name") or source["kind"])
        works = [
            _Work(n, said)
            for n, message in enumerate(arrived)
            if not isinstance(message.found, Unfit)
            for said in message.found
        ]
        unfit = {n: m.found for n, m in enumerate(arrived) if isinstance(m.found, Unfit)}
        await self._type(works, bool(source.get("declare", True)))
        await self._identify(works, name)
        await self._record(works, name)
        gone = [work for work in works if isinstance(work.error, NotFound) and work.person]
        if gone:  # erased, or given up by whoever had the name when we asked
            for work in gone:
                self._people.forget(work.person)
            await self._identify(gone, name)
            await self._record(gone, name)
        for work in works:
            wrong = work.typed.misfits[:1]
            if isinstance(work.error, InvalidRequest):
                wrong = [Unfit(work.error.path, work.error.message)]
            if wrong:
                unfit.setdefault(work.n, wrong[0])
        there = await self._quarantine(name, arrived, unfit) if keep_unfit else {}
        return [
            _taken(by_message, unfit.get(n), there.get(n, 0), keep_unfit)
            for n, by_message in enumerate(_grouped(works, len(arrived)))
        ]

    async def tie(self, identities: Mapping[str, str], source: str) -> None:
        """These are one person's."""
        await name_all(self._shards, self._people, [Naming(identities)], {}, source)

    async def replay(
        self, row: Mapping[str, Any], body: str, *, dry_run: bool = False
    ) -> Taken | Unfit:
        """Take in what lies in quarantine, as of when it came; ``body`` is it, mended perhaps.

        ``Unfit`` where it still fits no shape: then nothing has changed.
        """
        source = await self.knowledge.source_named(row["source"])
        try:
            payload = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            return Unfit("", f"is not JSON: {error!s:.100}")
        found = NORMALISERS[source["kind"]](source, payload, row["received_at"])
        if isinstance(found, Unfit):
            return found
        dated = [_dated(said, row["received_at"]) for said in found]
        if dry_run:
            return Taken(RECORDED)
        (taken,) = await self.take(source, [Arrived(body, dated)], keep_unfit=False)
        return taken if taken.unfit is None else taken.unfit

    # -- traits --------------------------------------------------------------------------------

    async def _type(self, works: Sequence[_Work], declare: bool) -> None:
        """Attributes of all traits, those that are new declared."""
        saying = [work for work in works if work.said.traits]
        if not saying:
            return
        for last in (False, True):
            types = await self.knowledge.attributes()
            new: dict[str, Any] = {}
            for work in saying:
                work.typed = typed(work.said.traits, {**types, **new}, declare)
                new |= work.typed.declare
            if not new:
                return
            try:
                await self.knowledge.declare(new)
                return
            except InvalidRequest:  # another has declared one of them otherwise meanwhile
                if last:
                    raise Overloaded("attributes are being declared: try again") from None

    # -- people --------------------------------------------------------------------------------

    async def _identify(self, works: Sequence[_Work], source: str) -> None:
        namings = [
            Naming(work.said.identities, _columns(work), next(iter(work.said.formerly), None))
            for work in works
        ]
        types: Mapping[str, AttributeType] = {}
        if any(work.typed.values for work in works):
            types = await self.knowledge.attributes()
        await name_all(self._shards, self._people, namings, types, source)
        for work, naming in zip(works, namings, strict=True):
            work.person = 0 if naming.error is not None else naming.person
            work.error = naming.error
        await self._consent(works, source)

    async def _consent(self, works: Sequence[_Work], source: str) -> None:
        """Consents are added as a batch adds them: what somebody has withdrawn stays so."""
        giving = [
            (work.person, given) for work in works if work.person for given in work.said.consents
        ]
        if not giving:
            return
        now = await living(self._shards, {person for person, _ in giving})
        groups: dict[tuple[Any, ...], list[tuple[int, GivenConsent]]] = defaultdict(list)
        for person, given in giving:
            if given.status == UNSUBSCRIBED and await self._is_over(now[person], given):
                continue
            proof = to_json(given.proof).decode()
            shard = self._shards.of_subscriber(now[person])
            group = (shard, given.channel, given.topic, given.status, proof)
            groups[group].append((now[person], given))
        for (shard, channel, topic, status, _), members in groups.items():
            rows = pa.table({"subscriber_id": [person for person, _ in members]})
            consent = Consent(channel, topic, status, members[0][1].proof)
            await self._shards.execute(
                shard, UpsertPeople(self._key(), rows, source, consent), CALL_DEADLINE_S
            )

    async def _is_over(self, person: int, given: GivenConsent) -> bool:
        """Whether an opt-out, which sources tell again with every change of a person, is older than
        a consent that the person has given since by their own act. In doubt the opt-out counts."""
        if given.at is None:
            return False
        try:
            held = (await reads.person(self._handles, person))["consents"]
        except InvalidRequest:  # gone meanwhile
            return False
        for each in held:
            proof = each["proof"] or {}
            if (each["channel"], each["topic"]) == (given.channel, given.topic):
                is_own = each["status"] == SUBSCRIBED_TO and proof.get("method") in _OWN_ACTS
                return is_own and _instant(proof.get("at")) > given.at
        return False

    # -- events --------------------------------------------------------------------------------

    async def _record(self, works: Sequence[_Work], source: str) -> None:
        events: list[Incoming] = []
        originals: list[Original] = []
        places: list[tuple[_Work, int, int]] = []
        for work in works:
            if not work.person:
                continue
            first = len(events)
            events += [
                Incoming(work.person, e.type, e.id, e.occurred_at, e.item, e.amount, _json(e))
                for e in work.said.events
            ]
            if work.said.original is not None:
                originals.append(
                    Original(
                        work.person,
                        received_id(work.said.id),
                        work.said.occurred_at,
                        source,
                        work.said.original,
                        first if len(events) > first else None,
                    )
                )
            places.append((work, first, len(events)))
        if not events and not originals:
            return
        outcomes = await self._recorder.record(events, originals)
        for work, first, end in places:
            _settle(work, outcomes[first:end])

    # -- quarantine ----------------------------------------------------------------------------

    async def _quarantine(
        self, source: str, arrived: Sequence[Arrived], unfit: Mapping[int, Unfit]
    ) -> dict[int, int]:
        """Where each of them lies in quarantine, for those for which there was room."""
        waifs = {
            n: Waif(source, why.problem[:500], why.path[:500], arrived[n].body)
            for n, why in unfit.items()
        }
        by_shard: dict[int, list[int]] = defaultdict(list)
        for n, waif in waifs.items():
            by_shard[self._shards.of_subscriber(waif.id)].append(n)
        there = {n: waif.id for n, waif in waifs.items()}

        async def put(shard: int, places: Sequence[int]) -> None:
            command = Quarantine(self._key(), tuple(waifs[n] for n in places))
            answer = await self._shards.execute(shard, command, CALL_DEADLINE_S)
            for place in getattr(answer, "refused", ()):  # a repeated command was stored
                there.pop(places[place])

        await asyncio.gather(*(put(shard, places) for shard, places in by_shard.items()))
        return there

    def _key(self) -> str:
        """Of one command: so an unknown outcome may be tried again."""
        self._commands += 1
        return f"collect:{self._producer}:{self._commands}"


def _instant(text: str | None) -> datetime:
    """What a proof says, who writes it as they like; long ago where it says nothing."""
    try:
        return parse_instant(text or "")
    except (ValueError, OverflowError):
        return datetime.min


def _columns(work: _Work) -> dict[str, Any]:
    """What a message says of its person, as ``UpsertPeople`` takes it."""
    columns = {ATTRIBUTE_PREFIX + name: value for name, value in work.typed.values.items()}
    zone, locale = work.said.time_zone, work.said.locale
    if zone is not None and zone in _zones():
        columns["time_zone"] = zone
    if locale is not None and len(locale) <= 35 and _LOCALE.fullmatch(locale.replace("_", "-")):
        columns["locale"] = locale.replace("_", "-")
    return columns


def _dated(said: Normalised, at: datetime) -> Normalised:
    """What happened at the time of receipt, which is not now."""
    events = tuple(replace(e, occurred_at=e.occurred_at or at) for e in said.events)
    return replace(said, events=events, occurred_at=said.occurred_at or at)


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _json(event: Any) -> str | None:
    return None if event.properties is None else to_json(event.properties).decode()


def _settle(work: _Work, outcomes: Sequence[Outcome]) -> None:
    """A message is as its events are: refused if one of them is, else new if one of them is."""
    for outcome in outcomes:
        if isinstance(outcome.error, RetryableError):
            raise outcome.error
        if outcome.error is not None:
            work.error = outcome.error
    states = {outcome.status for outcome in outcomes if outcome.error is None}
    work.status = RECORDED if RECORDED in states or not states else next(iter(states))


def _grouped(works: Iterable[_Work], messages: int) -> list[list[_Work]]:
    groups: list[list[_Work]] = [[] for _ in range(messages)]
    for work in works:
        groups[work.n].append(work)
    return groups


def _taken(
    works: Sequence[_Work], unfit: Unfit | None, quarantine_id: int, keep_unfit: bool
) -> Taken:
    errors = [work.error for work in works if work.error is not None]
    telling = [work for work in works if work.said.events or work.said.original is not None]
    states = {work.status for work in telling if work.error is None}
    if unfit is not None and (errors or not works):
        if quarantine_id:
            return Taken(QUARANTINED, None, unfit, quarantine_id)
        wrong = InvalidRequest(f"{unfit.path or 'the message'} {unfit.problem}", path=unfit.path)
        return Taken(REFUSED, _FULL if keep_unfit else wrong, unfit)
    if errors:
        return Taken(REFUSED, errors[0])
    status = RECORDED if RECORDED in states or not states else next(iter(states))
    return Taken(status, None, unfit, quarantine_id)


_FULL = Conflict(
    "the quarantine is full", path="", expected="to settle what waits there (GET /v1/quarantine)"
)
