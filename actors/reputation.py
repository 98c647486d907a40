"""The Reputation: sees what became of messages, decides, and tells the law to all.

The decisions are ``reputation``'s. Here they are made at most every ``DECIDE_S``
while something is seen, and every ``TICK_S`` while an action holds, so that what has its time ends
in time. A ruling is journaled, then applied, then told; the law is told at the start and again
every ``TELL_S``, since a push may be lost: one that nobody heard must not leave an action at work
that was undone. The Director is asked to pause a campaign until it has answered; it acts on each
action once, so that a campaign which somebody resumed is not paused again by an old one.

On crash: actions, courses and the operator's shaping are journaled. Where the journal is lost, the
law begins with a version and an action's id that none before had: nobody would listen to an older
law, and a campaign may have overruled an action of the same id. Windows are rebuilt
from the shards, each as soon as it answers: what it has on record from before this process began.
Live observations count from then on; a late one about the time before waits for no rebuilding and
is left to it. What people do is read from the shards each minute (``reputation.recall``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from actors.handles import Calls, Handles
from actors.journaled import JournaledActor
from manta.clock import Clock, as_text
from manta.definitions import Defined
from manta.delivery.reputation import norms, recall
from manta.delivery.reputation.actions import Action, ActionKind, Narrower, Scope
from manta.delivery.reputation.courses import Course
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.norms import Norms
from manta.delivery.reputation.observations import Observed
from manta.delivery.reputation.replay import rehearse
from manta.delivery.reputation.reputation import Reputation
from manta.delivery.reputation.rulings import Head, Ruling
from manta.delivery.reputation.status import standing
from manta.delivery.reputation.windows import Unit, seconds
from manta.delivery.shaping import shaping
from manta.delivery.shaping.automation import Automation, Replayed
from manta.delivery.shaping.automation import rehearse as rehearse_rules
from manta.delivery.shaping.shaping import Shaping
from manta.errors import InvalidRequest, MantaError
from manta.settings import EgressSource
from manta.store.documents import Documents

DECIDE_S = 0.5
TICK_S = 5.0
TELL_S = 60.0
AGAIN_S = 5.0
PEOPLE_S = 60.0  # what people did is read from the shards so often
SETTLED_BY = timedelta(seconds=10)  # an event is in its shard by then
LISTENERS = ("throttle", "director", "resolver")
BATCH_MAX = 10_000
REPLAYED_SHOWN = 1_000
_GONE = EgressSource()  # a source that the settings had once
logger = logging.getLogger("manta.actors")


class ReputationActor(JournaledActor):
    """``base``: the shipped shaping; the operator's text goes over it. ``find_handles`` waits for
    the Catalog."""

    role = "reputation"

    def __init__(
        self,
        documents: Documents,
        exit_process: Callable[[str], Any],
        clock: Clock,
        calls: Calls,
        find_handles: Callable[[], Awaitable[Handles]],
        sources: Sequence[EgressSource],
        base: Shaping,
        limits: Norms,
    ) -> None:
        super().__init__(documents, exit_process)
        self._clock = clock
        self._calls = calls
        self._find_handles = find_handles
        self._sources = {source.name: source for source in sources}
        self._base = self._shaping = base
        self._norms = limits
        self._rules = Automation(base)
        self._state = Reputation(limits, self._rules, self._ceiling)
        self._began_at = clock.now()
        self._is_rebuilt = False
        self._ruling = asyncio.Lock()
        self._seen = asyncio.Event()
        self._told_at_s = -TELL_S
        self._untold: dict[int, Action] = {}  # pauses that the Director has not answered for
        self._unseen = 0  # messages of observations beyond what one batch may hold
        self._resumed: set[int] = set()  # pauses that are over, and the Director knows
        self._tasks: set[asyncio.Task[Any]] = set()

    async def recovered(self) -> None:
        """What was journaled holds; windows follow."""
        now = self._clock.now()
        clock = int(seconds(now))
        head = self._documents.get("law", "head") or {"version": clock, "last_action": clock}
        self._state.restore(
            Head(head["version"], head.get("last_action", 0), head.get("shaping_text", "")),
            [Action.from_document(document) for document in self._documents.list("actions")],
            [Course.from_document(document) for document in self._documents.list("courses")],
        )
        self._take_shaping(self._state.head.shaping_text)
        for action in self._state.law(now).actions:
            if action.kind is ActionKind.PAUSE:
                self._untold[action.id] = action
        self._keep(self._work())
        self._keep(self._look_back())

    # -- what senders and shards tell --------------------------------------------------------------

    async def observe(self, batch: Sequence[Observed]) -> None:
        """What became of messages. Nobody waits for it; before the recovery it is lost."""
        if not self._ready:
            return
        if not self._is_rebuilt:
            batch = [each for each in batch if each.occurred_at >= self._began_at]
        self._unseen += sum(each.messages for each in batch[BATCH_MAX:])
        self._state.observe(batch[:BATCH_MAX], self._clock.now())
        self._seen.set()

    async def _work(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._seen.wait()
            except TimeoutError:
                pass
            self._seen.clear()
            try:
                await self.decide_now()
                await self._tell_director()
            except MantaError as error:
                logger.warning("reputation decides again: %s", error)
            if self._clock.monotonic() - self._told_at_s >= TELL_S:
                self._tell_law()
            await asyncio.sleep(DECIDE_S)

    async def decide_now(self) -> None:
        """Decide by what was seen until now; called by itself, and by tests."""
        async with self._ruling:
            await self._establish(self._state.decide(self._clock.now()))

    # -- what people ask ---------------------------------------------------------------------------

    async def law(self) -> dict[str, Any]:
        self._require_ready()
        return self._law().to_document()

    async def actions(self, active_only: bool = True) -> list[dict[str, Any]]:
        """The newest first."""
        self._require_ready()
        now = self._clock.now()
        found = sorted(self._state.actions.values(), key=lambda action: -action.id)
        return [self._shown(action) for action in found if action.is_active(now) or not active_only]

    async def undo(self, id: int, by: str, key: str | None = None) -> dict[str, Any]:
        """End an action. Raises ``NotFound``, ``Conflict`` where it is over."""
        return await self._change(lambda now: self._state.undo(id, by, now), key)

    async def act(
        self,
        kind: str,
        scope: Mapping[str, Any],
        cause: str,
        duration_s: float,
        limits: Mapping[str, Any],
        by: str,
        key: str | None = None,
    ) -> dict[str, Any]:
        """An operator's own action. Raises ``InvalidRequest``."""
        try:
            asked = (ActionKind(kind), Scope(**scope), Narrower(**limits))
        except (ValueError, TypeError):
            raise InvalidRequest(
                "not an action", path="kind", expected=f"{', '.join(ActionKind)}, with its scope"
            ) from None
        if asked[1].source and asked[1].source not in self._sources:
            raise InvalidRequest(
                f"no source {asked[1].source!r:.80}",
                path="scope.source",
                expected=", ".join(self._sources),
            )
        return await self._change(
            lambda now: self._state.act(asked[0], asked[1], cause, duration_s, asked[2], by, now),
            key,
        )

    async def set_shaping(self, text: str, by: str, key: str | None = None) -> dict[str, Any]:
        """Lay the operator's text over the base. Raises ``InvalidRequest`` that names the place."""
        self._require_ready()
        parsed = shaping.parse(text, self._base)
        async with self._ruling:
            earlier = self.remembered(key)
            if earlier is None:
                ruling = self._state.set_shaping(text, self._clock.now())
                logger.info("%s sets the shaping %s", by, parsed.version)
                await self._establish(ruling, {"version": parsed.version}, key)
                self._take_shaping(text)
        return await self.shaping()

    async def shaping(self) -> dict[str, Any]:
        """The operator's text, and what holds with it."""
        self._require_ready()
        return {
            "text": self._state.head.shaping_text,
            "version": self._shaping.version,
            "dated": self._shaping.dated.isoformat(),
            "providers": sorted(self._shaping.providers),
        }

    async def status(self) -> dict[str, Any]:
        if not self._ready:
            return {"ready": False}
        return {
            "ready": True,
            "rebuilt": self._is_rebuilt,
            "shaping_version": self._shaping.version,
            "active": self._active(),
            "rules": self._rules.status(),
            "unseen": self._unseen,
            **standing(self._state, self._norms, self._clock.now()),
        }

    async def rehearse(
        self,
        shaping_text: str | None = None,
        limits_text: str | None = None,
        since: datetime | None = None,
    ) -> dict[str, Any]:
        """What the law would have done since then (at most 7 days) by these texts; the present
        ones where none is given. ``rules``: what each rule's action would have met."""
        self._require_ready()
        own = self._state.head.shaping_text if shaping_text is None else shaping_text
        tried = shaping.parse(own, self._base) if own else self._base
        limits = self._norms if limits_text is None else norms.parse(limits_text)
        now = self._clock.now()
        since = since or now - timedelta(days=1)
        handles = await self._find_handles()
        asked = {"since": since, "until": now, "part": recall.Part.SERVERS}
        parts = await handles.shards.query_all("observed", asked)
        past = sorted((each for part in parts for each in part), key=lambda o: o.occurred_at)

        def run() -> dict[str, Any]:
            found = rehearse(past, limits, Automation(tried), partial(self._ceiling_by, tried))
            replayed = rehearse_rules(tried, past)
            rules = [_replayed(each) for each in replayed[:REPLAYED_SHOWN]]
            is_whole = all(len(part) < recall.ROWS_MAX for part in parts)
            return found | {"rules": rules, "rules_total": len(replayed), "is_whole": is_whole}

        return await asyncio.to_thread(run)

    # -- inside ------------------------------------------------------------------------------------

    async def _change(
        self, make: Callable[[datetime], tuple[Action, Ruling]], key: str | None
    ) -> dict[str, Any]:
        self._require_ready()
        async with self._ruling:
            earlier = self.remembered(key)
            if earlier is not None:
                return dict(earlier.answer)
            action, ruling = make(self._clock.now())
            answer = self._shown(action)
            await self._establish(ruling, answer, key)
        self._seen.set()  # the Director hears of it at once
        return answer

    async def _establish(self, ruling: Ruling, answer: Any = None, key: str | None = None) -> None:
        """Journal a ruling, apply it, tell it. Whoever calls holds ``_ruling``."""
        is_news = ruling.head != self._state.head
        if ruling.is_empty and not is_news:
            return
        try:
            await self.decide(lambda: Defined(answer, ruling.changes()), key)
        except MantaError:
            self._state.refuse(ruling)
            raise
        self._state.apply(ruling)
        for action in ruling.actions:
            logger.info("action %d: %s %s: %s", action.id, action.kind, action.scope, action.cause)
        self._untold |= {action.id: action for action in ruling.pauses}
        for action in ruling.actions:
            if not action.is_active(self._clock.now()):
                self._untold.pop(action.id, None)
        if is_news:
            self._tell_law()

    def _tell_law(self) -> None:
        self._told_at_s = self._clock.monotonic()
        document = self._law().to_document()
        for role in LISTENERS:
            self._calls.push(role, "law", document)

    async def _tell_director(self) -> None:
        """Pauses and resumes, each until the Director has answered."""
        for id, action in list(self._untold.items()):
            if action.is_active(self._clock.now()):
                campaign_id = action.scope.campaign_id
                await self._calls.call("director", "pause_for", campaign_id, action.to_document())
            self._untold.pop(id, None)
        ended = {a.id: a for a in self._state.ended_pauses(self._clock.now())}
        self._resumed &= ended.keys()
        for id in ended.keys() - self._resumed:  # after a start it may know: it does nothing then
            campaign_id = ended[id].scope.campaign_id
            await self._calls.call("director", "resume_for", campaign_id, id)
            self._resumed.add(id)

    async def _look_back(self) -> None:
        """Ask every shard for what it has on record from before we began, and from then on, each
        ``PEOPLE_S``, for what people did."""
        known: dict[int, datetime] = {}  # shard: until when we have asked it
        while True:
            try:
                handles = await self._find_handles()
                asked = (self._ask(handles, n, known) for n in range(handles.shards.count))
                for fault in await asyncio.gather(*asked, return_exceptions=True):
                    if fault is not None:
                        raise fault
                self._is_rebuilt = True
            except MantaError as error:
                logger.info("windows wait for the shards: %s", error)
            await asyncio.sleep(PEOPLE_S if self._is_rebuilt else AGAIN_S)

    async def _ask(self, handles: Handles, shard: int, known: dict[int, datetime]) -> None:
        since, until = known.get(shard), self._began_at
        asked: dict[str, Any] = {"until": until}
        if since is not None:
            until = self._clock.now() - SETTLED_BY
            since = max(since, until - timedelta(days=recall.DAYS_MAX))
            asked = {"since": since, "until": until, "part": recall.Part.PEOPLE}
            if until <= since or not self._state.windows.lanes():
                return
        self._state.recall(await handles.shards.query(shard, "observed", asked), self._clock.now())
        known[shard] = until

    def _law(self) -> Law:
        return self._state.law(self._clock.now())

    def _active(self) -> int:
        return len(self._law().actions)

    def _shown(self, action: Action) -> dict[str, Any]:
        return action.to_document() | {"is_active": action.is_active(self._clock.now())}

    def _take_shaping(self, text: str) -> None:
        """A text that an older release took and this one does not is left out, and said so."""
        try:
            self._shaping = shaping.parse(text, self._base) if text else self._base
        except InvalidRequest as error:
            logger.error("the operator's shaping is not used: %s", error)
            self._shaping = self._base
        self._rules.replace(self._shaping)

    def _ceiling(self, lane: Unit) -> float:
        return self._ceiling_by(self._shaping, lane)

    def _ceiling_by(self, known: Shaping, lane: Unit) -> float:
        """What a lane's own limits allow: the source's, and for a direct one the provider's."""
        source = self._sources.get(lane.source, _GONE)
        limits = known.of(lane.provider, source=lane.source).limits_of_provider
        if source.kind == "direct" and limits is not None:
            return min(source.rate_per_s, limits.rate_per_s)
        return source.rate_per_s

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A loop that fails is our mistake: the next process begins from the journal."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the reputation has failed", exc_info=task.exception())
            self._exit_process(f"{self.role}: {task.exception()}")


def _replayed(each: Replayed) -> dict[str, Any]:
    return {
        "at": as_text(each.at),
        "until": as_text(each.until),
        "kind": str(each.trigger.kind),
        "scope": asdict(each.trigger.scope),
        "limits": asdict(each.trigger.limits),
        "cause": each.trigger.cause,
        "figures": dict(each.trigger.figures),
        "messages": each.messages,
        "messages_held": each.messages_held,
    }
