"""The Director: runs the campaigns of a workspace and hands lanes to Senders.

It owns the campaigns' documents (journaled) and decides nothing that they do not say: one task per
campaign that has not ended looks at ``directing.todo`` and acts, so that a restart goes on where
the journal ends. What the shards report about due work is a hint kept in memory; it assigns lanes
and wakes Senders, and a report that says nothing is pending any more is what finishes a campaign.
Reports may be lost: while a campaign runs it is looked at again every ``RECHECK_S``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any

from actors.handles import Calls, Handles, Shards, sender_role
from actors.journaled import JournaledActor
from actors.resolving import take_over
from manta.clock import Clock, parse_instant
from manta.definitions import required
from manta.delivery import directing
from manta.delivery.attempts import AttemptJournal
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind
from manta.delivery.hooks import Work
from manta.delivery.ledger import Policy
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.errors import InvalidRequest, MantaError, NotFound, NotReady, RetryableError
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.schema import AttributeType
from manta.settings import Settings
from manta.store.documents import Documents

RECHECK_S = 30.0
AGAIN_S = 1.0
ASSIGN_TIMEOUT_S = 3.0
ASSIGN_GATHER_S = 0.02
PLAN_CHUNK_ROWS = 20_000
logger = logging.getLogger("manta.actors")


class Director(JournaledActor):
    role = "director"

    def __init__(
        self,
        documents: Documents,
        exit_process: Callable[[str], Any],
        clock: Clock,
        calls: Calls,
        find_handles: Callable[[], Awaitable[Handles]],
        open_attempts: Callable[[str], AttemptJournal],
        settings: Settings,
    ) -> None:
        super().__init__(documents, exit_process)
        self._clock = clock
        self._calls = calls
        self._find_handles = find_handles
        self._open_attempts = open_attempts
        self._senders = [sender_role(n) for n in range(settings.senders)]
        self._default_source = settings.egress[0].name
        self._zone = settings.time_zone
        self._handles: Handles | None = None
        self._drives: dict[int, asyncio.Task[None]] = {}
        self._woken: dict[int, asyncio.Event] = {}
        self._announced: dict[int, int] = {}
        self._announcing: dict[int, asyncio.Lock] = {}
        self._work: dict[int, list[Work]] = {}
        self._resolving: set[str] = set()
        self._assigning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def recovered(self) -> None:
        """Go on with every campaign that has not ended."""
        self._handles = await self._find_handles()
        for campaign in self._documents.list("campaigns"):
            self._pursue(int(campaign["id"]))
        for shard in range(self._shards().count):
            self._keep(self._ask_work(shard))

    # -- what people ask ---------------------------------------------------------------------------

    async def create(self, fields: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """A draft; its segment, template and rule are looked up, so that it can be launched."""
        await self._pin(fields)
        given = dict(fields)
        given.setdefault("source", self._default_source)
        return await self.decide(
            lambda: directing.create_campaign(self._documents, given, self._clock.now()), key
        )

    async def launch(
        self, id: int, launch_at: datetime | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Launch now, or at an instant. What it uses is pinned as it is at this moment."""
        campaign = self._required(id)
        pinned = await self._pin(campaign)
        now = self._clock.now()
        document = await self.decide(
            lambda: directing.schedule(self._documents, id, launch_at or now, pinned, now), key
        )
        if launch_at is None or launch_at <= now:
            document = await self._start(id)
        self._pursue(id)
        return dict(document)

    async def pause(self, id: int) -> dict[str, Any]:
        return await self._move(id, CampaignState.PAUSED)

    async def resume(self, id: int) -> dict[str, Any]:
        return await self._move(id, CampaignState.RUNNING)

    async def cancel(self, id: int) -> dict[str, Any]:
        return await self._move(id, CampaignState.CANCELLED)

    async def campaign(self, id: int) -> dict[str, Any]:
        """The campaign's document with its planning progress."""
        document = self._required(id)
        progress = directing.planning_progress(document, self._shards().count)
        return dict(document) | {"progress": progress}

    async def status(self) -> dict[str, Any]:
        return {
            "ready": self._ready,
            "driving": sorted(i for i, t in self._drives.items() if not t.done()),
            "due": {shard: sum(work.due for work in r) for shard, r in self._work.items() if r},
            "resolving": sorted(self._resolving),
            "senders": self._senders,
        }

    async def _move(self, id: int, state: CampaignState) -> dict[str, Any]:
        """Journal the move, tell the shards before the answer, and go on from there."""
        self._required(id)
        document = await self.decide(
            lambda: directing.move_to(self._documents, id, state, self._clock.now())
        )
        try:
            await self._announce(id, deadline_s=5.0)
        except MantaError as error:
            logger.warning("campaign %d: %s is told later: %s", id, state, error)
        self._pursue(id)
        return dict(document)

    async def _pin(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The versions that a campaign uses. Raises ``InvalidRequest`` where one cannot be used."""
        catalog = self._require_handles().catalog
        template = await catalog.call("get", "templates", str(fields.get("template_id")))
        if template is None:
            raise NotFound(f"no template {fields.get('template_id')}", path="template_id")
        version = await catalog.call("template_version", template["id"], template["version"])
        declared = await catalog.call("attributes")
        unknown = [name for name in version["attributes"] if name not in declared]
        if unknown:
            raise InvalidRequest(
                f"the template uses {unknown[0]}, which no subscriber has",
                path="template_id",
                expected=f"attributes that are declared: {', '.join(sorted(declared)) or 'none'}",
            )
        rule = fields.get("rule")
        if fields.get("segment_id") is not None:
            segment = await catalog.call("get", "segments", str(fields["segment_id"]))
            if segment is None:
                raise NotFound(f"no segment {fields['segment_id']}", path="segment_id")
            rule = segment["rule"]
        parse(rule, {name: AttributeType(kind) for name, kind in declared.items()})
        return {
            "template_version": version["version"],
            "attributes": version["attributes"],
            "rule": rule,
        }

    # -- driving a campaign ------------------------------------------------------------------------

    def _pursue(self, id: int) -> None:
        """See to it that the campaign's task runs and looks again."""
        self._woken.setdefault(id, asyncio.Event()).set()
        task = self._drives.get(id)
        if task is None or task.done():
            self._drives[id] = asyncio.ensure_future(self._drive(id))

    async def _drive(self, id: int) -> None:
        """Act on what the document asks for until it asks for nothing."""
        while True:
            self._woken[id].clear()
            try:
                wait_s = await self._step(id)
            except RetryableError as error:
                logger.warning("campaign %d waits: %s", id, error)
                wait_s = AGAIN_S
            except MantaError:
                logger.exception("campaign %d is stuck", id)
                wait_s = RECHECK_S
            if wait_s is None:
                return
            try:
                await asyncio.wait_for(self._woken[id].wait(), wait_s)
            except TimeoutError:
                pass

    async def _step(self, id: int) -> float | None:
        """One look. Seconds until the next one without being woken, ``None`` when it has ended."""
        document = self._required(id)
        todo = directing.todo(document, self._shards().count)
        if todo.start_at is not None:
            wait_s = (todo.start_at - self._clock.now()).total_seconds()
            if wait_s > 0:
                return min(wait_s, RECHECK_S)
            await self._start(id)
            return 0.0
        if todo.announce:
            await self._announce(id)
        if todo.plan:
            await asyncio.gather(*(self._plan(id, shard, after) for shard, after in todo.plan))
            return 0.0
        if todo.watch:
            if await self._pending(id) == 0:
                await self.decide(
                    lambda: directing.move_to(
                        self._documents, id, CampaignState.FINISHED, self._clock.now()
                    )
                )
                return 0.0
            return RECHECK_S
        return None

    async def _start(self, id: int) -> dict[str, Any]:
        campaign = self._required(id)
        declared = await self._require_handles().catalog.call("attributes")
        types = {name: AttributeType(kind) for name, kind in declared.items()}
        now = self._clock.now()
        audience = compile_sql(parse(campaign["rule"], types), now, self._zone)
        expires_at = campaign["expires_at"]
        plan = CampaignPlan(
            campaign_id=id,
            kind=Kind(campaign["kind"]),
            channel="email",
            topic=campaign["topic"],
            template_id=str(campaign["template_id"]),
            template_version=campaign["template_version"],
            source=campaign["source"] or self._default_source,
            due_at=now,
            audience_sql=audience.sql,
            audience_params=tuple(audience.params),
            attributes=tuple(campaign["attributes"]),
            priority=campaign["priority"],
            policy=Policy(campaign["policy"]),
            expires_at=parse_instant(expires_at) if expires_at else None,
        )
        return dict(
            await self.decide(lambda: directing.start(self._documents, id, plan.to_json(), now))
        )

    async def _announce(self, id: int, deadline_s: float = 30.0) -> None:
        """Tell every shard the campaign's present state, once for each step, in order."""
        async with self._announcing.setdefault(id, asyncio.Lock()):
            document = self._required(id)
            step = int(document["step"])
            if not document["definition"] or self._announced.get(id) == step:
                return
            await self._shards().execute_all(
                SetCampaign(
                    key=f"campaign:{id}:{step}",
                    campaign_id=id,
                    state=CampaignState(document["state"]),
                    definition=document["definition"],
                    step=step,
                ),
                deadline_s,
            )
            self._announced[id] = step

    async def _plan(self, id: int, shard: int, after: int) -> None:
        """One chunk of one shard's planning."""
        answer = await self._shards().execute(
            shard,
            PlanCampaign(
                campaign_id=id,
                after_subscriber=after,
                limit=PLAN_CHUNK_ROWS,
            ),
        )
        await self.decide(
            lambda: directing.record_planning(self._documents, id, shard, answer, self._clock.now())
        )

    async def _pending(self, id: int) -> int:
        parts = await self._shards().query_all("accounting", {"campaign_id": id})
        return sum(part["pending"] for part in parts)

    # -- what shards and Senders tell --------------------------------------------------------------

    async def work(self, shard: int, report: list[Work]) -> None:
        """A shard says all of what it has to send, or holds; an empty report: nothing."""
        before, self._work[shard] = self._work.get(shard, []), report
        for campaign_id in {work.campaign_id for work in (*before, *report)}:
            if campaign_id in self._woken and not self._is_pending(campaign_id):
                self._woken[campaign_id].set()
        self._assign_soon()

    async def _ask_work(self, shard: int) -> None:
        """After a start: what the shard would have told, had we been there."""
        try:
            report = await self._shards().query(shard, "work")
        except MantaError:
            return  # it reports by itself once it is ready
        if shard not in self._work:
            await self.work(shard, report)

    async def sender_ready(self, sender: str) -> None:
        """A Sender has started, or started again: it has no lanes."""
        self._throttle_forgets(sender)
        self._assign_soon()

    async def orphans(self, shard: int, senders: list[tuple[str, int]]) -> None:
        """Leases of these Senders (with epoch) are past their deadline: read their journals."""
        for sender, _ in senders:
            if sender not in self._resolving:
                self._resolving.add(sender)
                self._keep(self._resolve(sender))

    def _is_pending(self, campaign_id: int) -> bool:
        return any(w.campaign_id == campaign_id for report in self._work.values() for w in report)

    def _assign_soon(self) -> None:
        if self._assigning is None or self._assigning.done():
            self._assigning = self._keep(self._assign())

    async def _assign(self) -> None:
        """Give every lane that has due rows to its Senders; the next one where one is silent.

        A relay takes every domain, so the site of its lane is the source itself.
        """
        await asyncio.sleep(ASSIGN_GATHER_S)
        due: dict[str, dict[int, int]] = {}
        for shard, report in self._work.items():
            for work in report:
                if work.due:
                    shards = due.setdefault(work.source, {})
                    shards[shard] = shards.get(shard, 0) + work.due
        for source, shards in due.items():
            rows = sum(shards.values())
            wanted = directing.choose_senders(source, source, rows, self._senders)
            spare = [sender for sender in self._senders if sender not in wanted]
            taken = 0
            for sender in (*wanted, *spare):
                if taken == len(wanted):
                    break
                taken += await self._assign_to(sender, source, sorted(shards))

    async def _assign_to(self, sender: str, source: str, shards: list[int]) -> bool:
        try:
            await self._calls.call(
                sender, "assign", source, source, None, shards, timeout_s=ASSIGN_TIMEOUT_S
            )
        except MantaError as error:
            logger.info("%s does not take the lane %s: %s", sender, source, error)
            return False
        return True

    async def _resolve(self, sender: str) -> None:
        """Fence a silent Sender's journal and settle what it proves."""
        try:
            journal = await asyncio.to_thread(self._open_attempts, sender)
            await take_over(journal, sender, self._shards(), self._clock)
            self._throttle_forgets(sender)
        except MantaError as error:  # the shards report their orphans again
            logger.warning("%s's messages stay orphaned for now: %s", sender, error)
        finally:
            self._resolving.discard(sender)

    def _throttle_forgets(self, sender: str) -> None:
        self._calls.push("throttle", "forget", sender)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- helpers -----------------------------------------------------------------------------------

    def _required(self, id: int) -> dict[str, Any]:
        self._require_ready()
        return required(self._documents, "campaigns", str(id))

    def _require_handles(self) -> Handles:
        if self._handles is None:
            raise NotReady("the Director is looking for the shards")
        return self._handles

    def _shards(self) -> Shards:
        return self._require_handles().shards
