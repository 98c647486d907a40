"""The Director: runs the campaigns of a workspace and hands lanes to Senders.

It owns the campaigns' documents (journaled) and decides nothing that they do not say: one task per
campaign that has something left to do looks at ``directing.todo`` and acts, so that a restart goes
on where the journal ends. A shard that is away holds up nobody else: each is told and plans on its
own, and is asked again until it has heard.

What the shards report about due work is a hint kept in memory; it assigns lanes and wakes Senders,
and a report that says nothing is pending any more is what finishes a campaign. Reports may be lost:
shards repeat them, and a campaign that runs is looked at again every ``RECHECK_S``. The law of
Reputation is heard in the same way: it says whose domains are whose, and may pause a campaign.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from actors.assigning import Assigner
from actors.handles import Calls, Handles, Shards, sender_role
from actors.journaled import JournaledActor
from actors.resolving import ask_all, take_over
from manta.clock import Clock
from manta.definitions import Defined, required
from manta.delivery import directing
from manta.delivery.attempts import AttemptJournal
from manta.delivery.campaign import CampaignState, Kind
from manta.delivery.directing import OneMessage, Page, Pinned
from manta.delivery.hooks import Work
from manta.delivery.planning import EnqueueMessage, PlanCampaign, SetCampaign
from manta.delivery.reputation.law import Law
from manta.delivery.shaping import shaping
from manta.errors import InvalidRequest, MantaError, NotFound, NotReady, RetryableError
from manta.settings import Settings
from manta.store.documents import Documents

RECHECK_S = 30.0
AGAIN_S = 1.0
TELL_WAIT_S = 0.8  # an answer to a person waits so long for the shards to hear
SHARD_DEADLINE_S = 10.0
RESOLVE_DEADLINE_S = 300.0
PLAN_CHUNK_ROWS = 20_000
NAMES_SHOWN = 500  # characters of a list of names in an error
logger = logging.getLogger("manta.actors")


class Director(JournaledActor):
    """``find_handles`` waits for the Catalog; ``open_attempts`` opens a Sender's journal, not yet
    taken over, and is called in a thread."""

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
        self._assigner = Assigner(calls, clock, self._senders, settings, shaping.builtin())
        self._sources = list(settings.ways_out)
        self._law_version = -1
        self._shaping_text = ""
        self._settings = settings
        self._zone = settings.time_zone
        self._return_path_domain = settings.return_path_domain
        self._handles: Handles | None = None
        self._drives: dict[int, asyncio.Task[None]] = {}
        self._woken: dict[int, asyncio.Event] = {}
        self._heard: dict[int, dict[int, int]] = {}  # campaign, shard: the last step it heard of
        self._pages: dict[int, dict[int, Page]] = {}  # planned and not journaled yet
        self._resolving: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def recovered(self) -> None:
        """Go on with every campaign that has something left to do."""
        self._handles = await self._find_handles()
        for campaign in self._documents.list("campaigns"):
            if directing.todo(campaign, self._shards().count) != directing.Todo():
                self._pursue(int(campaign["id"]))
        for shard in range(self._shards().count):
            self._keep(self._ask_work(shard))
        self._keep(self._ask_law())

    # -- what people ask ---------------------------------------------------------------------------

    async def create(self, fields: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """A draft; its segment, template and rule are looked up, so that it can be launched."""
        earlier = self.remembered(key)
        if earlier is not None:
            return dict(earlier.answer)
        now = self._clock.now()

        def decide() -> Defined:
            return directing.create_campaign(self._documents, fields, self._sources, now)

        decide()  # its own mistakes first
        await self._pin(fields)
        return dict(await self.decide(decide, key))

    async def launch(
        self, id: int, launch_at: datetime | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Launch now, or at an instant. What it uses is pinned as it is at this moment."""
        campaign = self._required(id)
        earlier = self.remembered(key)
        if earlier is not None:
            return dict(earlier.answer)
        pinned = await self._pin(campaign)
        await self._require_aligned(pinned.sending_domain)
        document = await self.decide(
            lambda: directing.launch(
                self._documents,
                id,
                launch_at,
                pinned,
                self._sources,
                self._zone,
                self._clock.now(),
            ),
            key,
        )
        self._pursue(id)
        return dict(document)

    async def unschedule(self, id: int) -> dict[str, Any]:
        """Take a scheduled campaign back: a draft again."""
        return await self._move(id, CampaignState.DRAFT)

    async def pause(self, id: int) -> dict[str, Any]:
        return await self._move(id, CampaignState.PAUSED)

    async def resume(self, id: int) -> dict[str, Any]:
        return await self._move(id, CampaignState.RUNNING)

    async def cancel(self, id: int) -> dict[str, Any]:
        return await self._move(id, CampaignState.CANCELLED)

    async def send_one(
        self,
        kind: str,
        template_id: int,
        version: int | None,
        message: OneMessage,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Send one message of a template (its latest version if none is named) to one person, as a
        test or as ``transactional``: it goes the way of every mail. The same occurrence of the same
        person is the same message. Answers ``campaign_id``, ``template_version``, and what
        ``EnqueueMessage`` does. Raises ``InvalidRequest`` where the template cannot be sent."""
        shard = self._require_handles().shards.of_subscriber(message.subscriber_id)
        campaign = await self.standing(kind, template_id, version, [shard], key)
        command = EnqueueMessage(
            campaign["id"],
            message.subscriber_id,
            message.occurrence,
            due_at=self._clock.now(),
            send_to=message.send_to,
            expires_at=message.expires_at,
        )
        answer = await self._shards().execute(shard, command, SHARD_DEADLINE_S)
        about = {"campaign_id": campaign["id"], "template_version": campaign["template_version"]}
        return about | dict(answer)

    async def standing(
        self,
        kind: str,
        template_id: int,
        version: int | None,
        shards: Sequence[int],
        key: str | None = None,
    ) -> dict[str, Any]:
        """The running campaign of this template version's tests or transactional messages; these
        shards have heard of it, so that messages can be enqueued there at once."""
        self._require_ready()
        self._require_handles()
        earlier = self.remembered(key)
        if earlier is not None:
            return dict(earlier.answer)
        pinned = await self._pin_template(template_id, version)
        if kind != Kind.TEST:
            await self._require_aligned(pinned.sending_domain)
        source, zone = self._sources[0], self._zone
        document = await self.decide(
            lambda: directing.standing_campaign(
                self._documents, Kind(kind), template_id, pinned, source, zone, self._clock.now()
            ),
            key,
        )
        self._pursue(document["id"])
        await asyncio.gather(*(self._tell(document["id"], shard) for shard in shards))
        return dict(document)

    async def delete(self, id: int) -> None:
        """Forget a campaign that was never launched."""
        self._required(id)
        await self.decide(lambda: directing.delete(self._documents, id))

    async def campaign(self, id: int) -> dict[str, Any]:
        """The campaign's document with its planning progress."""
        document = self._required(id)
        progress = directing.planning_progress(document, self._shards().count)
        return dict(document) | {"progress": progress}

    async def rehearsal(self, id: int) -> dict[str, Any]:
        """What a campaign that has not started would run with now: its document, the audience as a
        rule with its attributes, the sending domain, and the settings. Raises ``Conflict``."""
        campaign = self._required(id)
        directing.check_rehearsal(campaign)
        pinned = await self._pin(campaign)
        return {
            "campaign": dict(campaign),
            "audience": pinned.audience,
            "attributes": pinned.attribute_types,
            "sending_domain": pinned.sending_domain,
            "settings": self._settings,
        }

    async def record_forecast(self, id: int, forecast: Mapping[str, Any]) -> None:
        """Keep a forecast until the campaign is forgotten."""
        self._required(id)
        await self.decide(lambda: directing.record_forecast(self._documents, id, forecast))

    async def forecast(self, id: int) -> dict[str, Any]:
        """The campaign's document and its forecast (``None``: it was never rehearsed)."""
        campaign = self._required(id)
        found = self._documents.get("forecasts", str(id))
        return {"campaign": dict(campaign), "forecast": found}

    async def status(self) -> dict[str, Any]:
        return {
            "ready": self._ready and self._handles is not None,
            "driving": sorted(i for i, t in self._drives.items() if not t.done()),
            **self._assigner.status(),
            "law_version": self._law_version,
            "resolving": sorted(self._resolving),
            "senders": self._senders,
        }

    async def _move(self, id: int, state: CampaignState) -> dict[str, Any]:
        """Journal the move, tell the shards, and answer though one of them is slow to hear."""
        self._required(id)
        document = await self.decide(
            lambda: directing.move_to(self._documents, id, state, self._clock.now())
        )
        await self._act_on(document)
        return dict(document)

    async def _act_on(self, document: Mapping[str, Any]) -> None:
        """A campaign has moved: its shards hear it, the quick ones at once."""
        id = int(document["id"])
        if directing.todo(document, self._shards().count).announce:
            await asyncio.wait({self._keep(self._tell_all(id))}, timeout=TELL_WAIT_S)
        self._pursue(id)

    async def _pin(self, fields: Mapping[str, Any]) -> Pinned:
        """The versions that a campaign uses. Raises ``InvalidRequest`` where one cannot be used."""
        catalog = self._require_handles().catalog
        pinned = await self._pin_template(fields["template_id"])
        rule = fields.get("rule")
        if fields.get("segment_id") is not None:
            segment = await catalog.call("get", "segments", str(fields["segment_id"]))
            if segment is None:
                raise NotFound(f"no segment {fields['segment_id']}", path="segment_id")
            rule = segment["rule"]
        audience, types = await catalog.call("audience", rule)
        return replace(pinned, audience=audience, attribute_types=types)

    async def _require_aligned(self, sending_domain: str) -> None:
        """Raises ``InvalidRequest`` where receivers could not tell that the mail is ours."""
        catalog = self._require_handles().catalog
        refusal = await catalog.call("domain_refusal", sending_domain, self._return_path_domain)
        if refusal:
            raise InvalidRequest(
                refusal,
                path="template_id",
                expected="a From address at a domain that is set up (`manta domain check`)",
            )

    async def _pin_template(self, template_id: int, number: int | None = None) -> Pinned:
        """A version of a template, the latest if none is named, and no audience."""
        catalog = self._require_handles().catalog
        template = await catalog.call("get", "templates", str(template_id))
        if template is None:
            raise NotFound(f"no template {template_id}", path="template_id")
        number = template["version"] if number is None else number
        version = await catalog.call("template_version", template["id"], number)
        declared = await catalog.call("attributes")
        unknown = [name for name in version["attributes"] if name not in declared]
        if unknown:
            names = ", ".join(sorted(declared))[:NAMES_SHOWN] or "none yet"
            raise InvalidRequest(
                f"the template uses {unknown[0]}, which is not a declared attribute",
                path="template_id",
                expected=f"attributes that are declared: {names}",
            )
        sending_domain = version["from_email"].rpartition("@")[2].lower()
        return Pinned(version["version"], sending_domain, version["attributes"], {}, {})

    # -- driving a campaign ------------------------------------------------------------------------

    def _pursue(self, id: int) -> None:
        """See to it that the campaign's task runs and looks again."""
        self._woken.setdefault(id, asyncio.Event()).set()
        task = self._drives.get(id)
        if task is None or task.done():
            self._drives[id] = self._keep(self._drive(id))

    async def _drive(self, id: int) -> None:
        """Act on what the document asks for until it asks for nothing."""
        woken = self._woken[id]
        while True:
            woken.clear()
            try:
                wait_s = await self._step(id)
            except RetryableError as error:
                logger.warning("campaign %d waits: %s", id, error)
                wait_s = AGAIN_S
            except Exception:
                logger.exception("campaign %d is stuck", id)
                wait_s = RECHECK_S
            if wait_s is None:
                for kept in (self._drives, self._woken, self._heard):
                    kept.pop(id, None)
                return
            try:
                await asyncio.wait_for(woken.wait(), wait_s)
            except TimeoutError:
                pass

    async def _step(self, id: int) -> float | None:
        """One look. Seconds until the next one without being woken, ``None`` when it has ended.

        Between the look that finds nothing to do and its answer nobody else may run.
        """
        document = self._documents.get("campaigns", str(id))
        todo = directing.Todo()
        if document is not None:
            todo = directing.todo(document, self._shards().count)
        if todo.start_at is not None:
            wait_s = (todo.start_at - self._clock.now()).total_seconds()
            if wait_s > 0:
                return min(wait_s, RECHECK_S)
            await self.decide(lambda: directing.start(self._documents, id, self._clock.now()))
            return 0.0
        if todo.announce or todo.plan:
            await self._advance_all(id)
            return 0.0
        if todo.open_until is not None and todo.open_until > self._clock.now():
            return RECHECK_S
        if todo.watch:
            if await self._pending(id) or not await self._is_over(id):
                return RECHECK_S
            await self.decide(lambda: directing.finish(self._documents, id, self._clock.now()))
            return 0.0
        return None

    async def _advance_all(self, id: int) -> None:
        """Every shard hears and plans at its own pace; then the first trouble is raised."""
        shards = range(self._shards().count)
        results = await asyncio.gather(
            *(self._advance(id, shard) for shard in shards), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        heard = self._heard.get(id, {})
        step = min((heard.get(shard, 0) for shard in shards), default=0)
        await self.decide(lambda: directing.record_announced(self._documents, id, step))

    async def _advance(self, id: int, shard: int) -> None:
        """Tell one shard the campaign's state and have it plan until it has nothing left to do."""
        while True:
            await self._tell(id, shard)
            after = directing.next_page(self._required(id), shard)
            if after is None:
                return
            answer = await self._shards().execute(
                shard, PlanCampaign(id, after, PLAN_CHUNK_ROWS), SHARD_DEADLINE_S
            )
            await self._record(id, shard, Page(after, answer))

    async def _record(self, id: int, shard: int, page: Page) -> None:
        """Journal a page of planning, with those of all shards that have come meanwhile: however
        many shards there are, one entry at a time is on its way, and people's moves wait for one.

        Where the entry is refused, the pages in it are asked for again.
        """
        self._pages.setdefault(id, {})[shard] = page
        await self.decide(
            lambda: directing.record_planning(self._documents, id, self._pages.pop(id, {}))
        )

    async def _tell(self, id: int, shard: int) -> None:
        """Tell one shard the campaign's present state; a shard ignores what it knows better."""
        document = self._required(id)
        step = int(document["step"])
        heard = self._heard.setdefault(id, {})
        if max(document["announced"], heard.get(shard, 0)) >= step:
            heard[shard] = max(heard.get(shard, 0), document["announced"])
            return
        command = _set_campaign(document, key=f"campaign:{id}:{step}")
        await self._shards().execute(shard, command, SHARD_DEADLINE_S)
        heard[shard] = max(heard.get(shard, 0), step)

    async def _tell_all(self, id: int) -> None:
        """Who does not hear now is told by the campaign's task."""
        await asyncio.gather(
            *(self._tell(id, shard) for shard in range(self._shards().count)),
            return_exceptions=True,
        )

    async def _pending(self, id: int) -> int:
        parts = await self._shards().query_all("accounting", {"campaign_id": id}, SHARD_DEADLINE_S)
        return sum(part["pending"] for part in parts)

    async def _is_over(self, id: int) -> bool:
        """Whether nothing is pending by the word of shards that have just appended to their
        journals: a replaced incarnation of one still answers reads, and knows less."""
        again = _set_campaign(self._required(id), key=None)
        await self._shards().execute_all(again, SHARD_DEADLINE_S)
        return await self._pending(id) == 0

    # -- what Reputation tells ---------------------------------------------------------------------

    async def law(self, document: Mapping[str, Any]) -> None:
        """Take the law over as far as it concerns assigning: whose the domains are."""
        law = Law.from_document(document)
        if law.version <= self._law_version:
            return
        self._law_version = law.version
        if law.shaping_text == self._shaping_text:
            return
        try:
            self._assigner.replace(shaping.parse(law.shaping_text, shaping.builtin()))
        except InvalidRequest as error:
            logger.error("the law's shaping text is not understood and not used: %s", error)
            return
        self._shaping_text = law.shaping_text

    async def _ask_law(self) -> None:
        """After a start: what Reputation would have told, had we been there."""
        try:
            await self.law(await self._require_handles().reputation.call("law"))
        except MantaError as error:  # it tells by itself when it is there
            logger.info("the law is not known yet: %s", error)

    async def pause_for(self, campaign_id: int, action: Mapping[str, Any]) -> None:
        """Pause a campaign that an action is about; its history has the cause."""
        await self._move_for(directing.pause_for, campaign_id, action["id"], action["cause"])

    async def resume_for(self, campaign_id: int, action_id: int) -> None:
        """Resume a campaign if it is still paused by this action, which is over or undone."""
        await self._move_for(directing.resume_for, campaign_id, action_id, "the action is over")

    async def _move_for(
        self,
        decide: Callable[[Any, int, int, str, datetime], Defined | None],
        campaign_id: int,
        action_id: int,
        cause: str,
    ) -> None:
        self._require_ready()
        self._require_handles()
        nothing = Defined(None)
        document = await self.decide(
            lambda: (
                decide(self._documents, campaign_id, action_id, cause, self._clock.now()) or nothing
            )
        )
        if document is not None:
            await self._act_on(document)

    # -- what shards and Senders tell --------------------------------------------------------------

    async def work(self, shard: int, report: list[Work]) -> None:
        """A shard says all of what it has to send, or holds; an empty report: nothing."""
        for campaign_id in self._assigner.report(shard, report) & self._woken.keys():
            self._woken[campaign_id].set()

    async def _ask_work(self, shard: int) -> None:
        """After a start: what the shard would have told, had we been there."""
        try:
            report = await self._shards().query(shard, "work")
        except MantaError:
            return  # it reports by itself once it is ready
        if shard not in self._assigner.reports:
            await self.work(shard, report)

    async def sender_ready(self, sender: str) -> None:
        """A Sender has started, or started again: it has no lanes."""
        self._throttle_forgets(sender)
        self._assigner.sender_ready(sender)

    async def orphans(self, shard: int, senders: list[tuple[str, int]]) -> None:
        """Leases of these Senders (with epoch) are past their deadline: read their journals."""
        for sender, _ in senders:
            if sender not in self._resolving:
                self._resolving.add(sender)
                self._keep(self._resolve(sender))

    async def _resolve(self, sender: str) -> None:
        """Fence a silent Sender's journal and settle what it proves."""
        try:
            journal = await asyncio.to_thread(self._open_attempts, sender)
            shards = self._shards()
            await take_over(
                sender,
                shards.count,
                lambda commands: ask_all(shards, commands, deadline_s=RESOLVE_DEADLINE_S),
                lambda known: asyncio.to_thread(journal.take_over, known),
                self._clock,
            )
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
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the director has failed", exc_info=task.exception())

    # -- helpers -----------------------------------------------------------------------------------

    def _required(self, id: int) -> dict[str, Any]:
        """A campaign. Raises ``NotReady`` until everything is there to act on it."""
        self._require_ready()
        self._require_handles()
        return required(self._documents, "campaigns", str(id))

    def _require_handles(self) -> Handles:
        if self._handles is None:
            raise NotReady("the Director is looking for the shards")
        return self._handles

    def _shards(self) -> Shards:
        return self._require_handles().shards


def _set_campaign(document: Mapping[str, Any], key: str | None) -> SetCampaign:
    state = CampaignState(document["state"])
    return SetCampaign(key, document["id"], state, document["definition"], document["step"])
