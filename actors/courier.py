"""The courier: brings what waits in the shards' outboxes to the endpoints.

It owns nothing. A delivery is a row of its shard; the courier has it for the time of a lease, sends
it, and says what came of it. If the courier is lost, its leases end by themselves and the next one
sends again: the same ``webhook-id``, so the receiver can tell. A push that is lost comes again
after half a minute, as long as anything is due; with nothing due there is nothing to do.

Each endpoint has one lane to each shard in which something is due. Lanes of an endpoint share its
room (``manta.webhooks.health``); all lanes share ``AT_ONCE_MAX``. A lane to an ordered endpoint
sends one after the other and stops at the first failure.

An endpoint that answers 410, or nothing but failures for ``FAILING_MAX``, is disabled in the
Catalog, with the cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.handles import Shards, Singleton
from actors.io.web import Reply
from manta import __version__
from manta.clock import Clock, as_text, parse_instant
from manta.errors import InvalidRequest, MantaError, NotFound
from manta.webhooks import signing
from manta.webhooks.bodies import test_body
from manta.webhooks.endpoints import COLLECTION, living_secrets
from manta.webhooks.health import Health
from manta.webhooks.outbox import Delivery, LeaseDeliveries, Settled, SettleDeliveries
from manta.webhooks.retries import (
    ANSWER_CHARACTERS_MAX,
    FAILING_MAX,
    Answered,
    retry_after_s,
)

AT_ONCE_MAX = 128  # requests under way
SEND_MAX_S = 25.0  # of one request, at most (``actors.io.web``), and a little
LEASE_S = 60.0
SETTLE_GAP_S = 0.02  # answers of so long are settled together
ORDERED_ROWS = 50  # of one lease of an ordered endpoint
HEALTH_CHECK_S = 3_600.0  # between two looks at since when an endpoint fails
RETRY_S = 5.0  # after a fault of ours
logger = logging.getLogger("manta.actors")
Lane = tuple[int, int]  # endpoint, shard


class WebPort(Protocol):
    """``actors.io.web.Web``."""

    async def check(self, url: str) -> str: ...

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> Reply: ...


@dataclass
class _Endpoint:
    document: Mapping[str, Any]
    health: Health = field(default_factory=Health)
    under_way: int = 0
    looked_s: float = float("-inf")
    blocked: set[Lane] = field(default_factory=set)  # lanes that found no room


@dataclass
class _Figures:
    sent: int = 0
    delivered: int = 0
    failed: int = 0
    disabled: int = 0
    lanes_failed: int = 0


class Courier:
    """``catalog``, ``shards``: the workspace's; ``web``: the guarded client."""

    role = "courier"

    def __init__(self, catalog: Singleton, shards: Shards, web: WebPort, clock: Clock) -> None:
        self._catalog, self._shards, self._web, self._clock = catalog, shards, web, clock
        self._endpoints: dict[int, _Endpoint] = {}
        self._versions: dict[int, int] = {}  # of the documents that shards act upon
        self._lanes: dict[Lane, asyncio.Task[None]] = {}
        self._again: set[Lane] = set()  # woken while running
        self._timers: dict[Lane, asyncio.TimerHandle] = {}
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self._figures = _Figures()
        self._stopped = False
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- what others call --------------------------------------------------------------------------

    async def start(self) -> None:
        """Ask the shards, beside, what is due: an earlier courier may have left it."""
        for shard in range(self._shards.count):
            self._keep(self._ask(shard))

    async def stop(self) -> None:
        """Stop at once, for tests and tools: nothing depends on it."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        running = [*self._lanes.values(), *self._tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def deliveries(self, shard: int, due: Sequence[tuple[int, int]]) -> None:
        """A shard has something for these endpoints: (endpoint, version of its document)."""
        for endpoint_id, version in due:
            known = self._versions.get(endpoint_id, 0)
            self._versions[endpoint_id] = max(known, version)
            self._wake((endpoint_id, shard))

    async def test(self, endpoint_id: int) -> dict[str, Any]:
        """Send a test now, whether the endpoint is enabled or not. Answers what came of it."""
        document = await self._document(endpoint_id)
        now = self._clock.now()
        began_s = self._clock.monotonic()
        id = f"msg_test_{int(now.timestamp() * 1e6):x}"
        answered = await self._send(document, id, test_body(as_text(now)))
        return {
            "webhook_id": id,
            "delivered": answered.is_success,
            "status": answered.status,
            "answer": answered.text,
            "seconds": round(self._clock.monotonic() - began_s, 3),
        }

    async def check_url(self, url: str) -> None:
        """Raises ``InvalidRequest`` where nothing could be sent to this URL."""
        why = await self._web.check(url)
        if why:
            raise InvalidRequest(why, path="url", expected="a host with public addresses")

    async def status(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        return {
            "ready": True,
            **vars(self._figures),
            "lanes": len(self._lanes),
            "endpoints": {
                id: {
                    "under_way": each.under_way,
                    "room": each.health.room,
                    "pause_s": round(each.health.pause_s(now_s), 1),
                }
                for id, each in self._endpoints.items()
            },
        }

    # -- lanes -------------------------------------------------------------------------------------

    async def _ask(self, shard: int) -> None:
        try:
            due = await self._shards.query(shard, "deliveries_due", deadline_s=120.0)
        except MantaError as error:
            logger.info("shard %d will tell by itself what is due: %s", shard, error)
            return
        await self.deliveries(shard, due)

    def _wake(self, lane: Lane) -> None:
        if self._stopped:
            return
        if lane in self._lanes:
            self._again.add(lane)
            return
        timer = self._timers.pop(lane, None)
        if timer is not None:
            timer.cancel()
        task = asyncio.ensure_future(self._run(lane))
        self._lanes[lane] = task
        task.add_done_callback(lambda _: self._ended(lane))

    def _ended(self, lane: Lane) -> None:
        del self._lanes[lane]
        if lane in self._again:
            self._again.discard(lane)
            self._wake(lane)

    def _wake_in(self, lane: Lane, seconds: float) -> None:
        self._again.discard(lane)
        timer = self._timers.pop(lane, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[lane] = loop.call_later(seconds, self._timed, lane)

    def _timed(self, lane: Lane) -> None:
        self._timers.pop(lane, None)
        self._wake(lane)

    async def _run(self, lane: Lane) -> None:
        """Until nothing is due, or the endpoint needs a pause."""
        endpoint_id, shard = lane
        try:
            endpoint = await self._known(endpoint_id)
            if not endpoint.document["enabled"]:
                return
            if endpoint.document["ordered"]:
                await self._in_order(endpoint, lane)
            else:
                await self._side_by_side(endpoint, lane)
        except NotFound:
            self._endpoints.pop(endpoint_id, None)
        except Exception as error:  # the lane's edge: its leases end by themselves
            self._figures.lanes_failed += 1
            logger.warning("endpoint %d, shard %d: %r", endpoint_id, shard, error)
            self._wake_in(lane, RETRY_S)

    async def _side_by_side(self, endpoint: _Endpoint, lane: Lane) -> None:
        """As many at once as the endpoint has room for; one that is slow keeps no other waiting."""
        flying: set[asyncio.Task[Settled]] = set()
        settled: list[Settled] = []
        is_drained = False
        try:
            while True:
                await self._known(lane[0])
                is_drained = is_drained and lane not in self._again
                room = 0 if is_drained else self._free_room(endpoint)
                if room or settled:
                    until_s = self._last_start_s()
                    leased = await self._exchange(endpoint, lane, settled, room)
                    is_drained = is_drained or len(leased) < room
                    flying |= {
                        asyncio.ensure_future(self._deliver(endpoint, each, until_s))
                        for each in leased
                    }
                if not flying:
                    break
                await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                done, flying = await asyncio.wait(flying, timeout=SETTLE_GAP_S)
                settled = [task.result() for task in done]
        finally:
            for task in flying:
                task.cancel()
        pause_s = endpoint.health.pause_s(self._clock.monotonic())
        if pause_s > 0:
            self._wake_in(lane, pause_s)
        elif not is_drained and endpoint.document["enabled"]:
            endpoint.blocked.add(lane)

    def _free_room(self, endpoint: _Endpoint) -> int:
        """How many more may be under way; 0 also while most of the room is taken, so that leases
        are of some rows."""
        if not endpoint.document["enabled"]:
            return 0
        if endpoint.health.pause_s(self._clock.monotonic()) > 0:
            return 0
        room = endpoint.health.room - endpoint.under_way
        return room if room > endpoint.health.room // 2 else 0

    async def _in_order(self, endpoint: _Endpoint, lane: Lane) -> None:
        """One after the other, up to the first that fails."""
        settled: list[Settled] = []
        while (await self._known(lane[0])).document["enabled"]:
            pause_s = endpoint.health.pause_s(self._clock.monotonic())
            if pause_s > 0:
                self._wake_in(lane, pause_s)
                break
            until_s = self._last_start_s()
            leased = await self._exchange(endpoint, lane, settled, ORDERED_ROWS)
            settled = []
            if not leased:
                return
            is_well = True
            for delivery in leased:
                if is_well:
                    settled.append(await self._deliver(endpoint, delivery, until_s))
                    answered = settled[-1].answered
                    is_well = answered is not None and answered.is_success
                else:
                    endpoint.under_way -= 1
                    settled.append(Settled(delivery.delivery_id, delivery.attempts, None))
            if not is_well:
                break  # the shard wakes us when the first one is due again
        await self._exchange(endpoint, lane, settled, 0)

    def _last_start_s(self) -> float:
        """Until when a request of a lease that begins now may be begun."""
        return self._clock.monotonic() + LEASE_S - SEND_MAX_S

    async def _exchange(
        self, endpoint: _Endpoint, lane: Lane, settled: list[Settled], rows: int
    ) -> list[Delivery]:
        """Say what came of some deliveries and take others, in one group of the shard.

        What is leased counts as under way from now on.
        """
        endpoint_id, shard = lane
        commands: list[Any] = []
        if settled:
            commands.append(SettleDeliveries(endpoint_id, tuple(settled)))
        if rows:
            commands.append(LeaseDeliveries(endpoint_id, rows, LEASE_S))
            self._again.discard(lane)
        if not commands:
            return []
        endpoint.under_way += rows
        leased: list[Delivery] = []
        try:
            answers = await self._shards.execute_on(shard, commands)
            for answer in answers:
                if isinstance(answer, MantaError):
                    raise answer
            if rows:
                leased = answers[-1]
        finally:
            endpoint.under_way -= rows - len(leased)
        answered = [each.answered for each in settled if each.answered is not None]
        if any(each.is_gone for each in answered):
            await self._disable(endpoint, "it answered 410 Gone")
        elif answered and not any(each.is_success for each in answered):
            await self._look(endpoint)
        return leased

    # -- sending -----------------------------------------------------------------------------------

    async def _deliver(self, endpoint: _Endpoint, delivery: Delivery, until_s: float) -> Settled:
        """One attempt, unless its lease is about to end; counted in the endpoint's health."""
        try:
            async with self._room:
                if self._clock.monotonic() > until_s:
                    return Settled(delivery.delivery_id, delivery.attempts, None)
                id = signing.message_id(delivery.delivery_id)
                answered = await self._send(endpoint.document, id, delivery.body)
        finally:
            endpoint.under_way -= 1
            blocked, endpoint.blocked = endpoint.blocked, set()
            for lane in blocked:
                self._wake(lane)
        endpoint.health.note(answered, self._clock.monotonic())
        self._figures.sent += 1
        self._figures.delivered += answered.is_success
        self._figures.failed += not answered.is_success
        return Settled(delivery.delivery_id, delivery.attempts, answered)

    async def _send(self, document: Mapping[str, Any], id: str, body: str) -> Answered:
        content, now = body.encode(), self._clock.now()
        headers = {
            "content-type": "application/json",
            "user-agent": f"Manta/{__version__}",
            **signing.headers(living_secrets(document, now), id, now, content),
        }
        reply = await self._web.request("POST", document["url"], headers, content)
        if reply.status is None:
            return Answered(None, reply.failure)
        text = reply.body[: 4 * ANSWER_CHARACTERS_MAX].decode("utf-8", "replace")
        shown = "".join(c if c.isprintable() else " " for c in text).strip()
        waits = retry_after_s(reply.headers.get("retry-after"), self._clock.now())
        return Answered(reply.status, shown[:ANSWER_CHARACTERS_MAX], waits)

    # -- endpoints ---------------------------------------------------------------------------------

    async def _known(self, endpoint_id: int) -> _Endpoint:
        """The endpoint as of the version that shards act upon, or later. Raises ``NotFound``."""
        known = self._endpoints.get(endpoint_id)
        if known is not None and known.document["version"] >= self._versions.get(endpoint_id, 0):
            return known
        document = await self._document(endpoint_id)
        known = self._endpoints.setdefault(endpoint_id, _Endpoint(document))
        if known.document["url"] != document["url"]:
            known.health = Health()
        known.document = document
        return known

    async def _document(self, endpoint_id: int) -> dict[str, Any]:
        document = await self._catalog.call("get", COLLECTION, str(endpoint_id))
        if document is None:
            raise NotFound(f"no endpoint {endpoint_id}", path="endpoint_id")
        return dict(document)

    async def _look(self, endpoint: _Endpoint) -> None:
        """Disable an endpoint that has only failed for too long. Asks once an hour at most."""
        now_s = self._clock.monotonic()
        if now_s - endpoint.looked_s < HEALTH_CHECK_S:
            return
        endpoint.looked_s = now_s
        asked: dict[str, Any] = {"endpoint_id": endpoint.document["id"]}
        successes = await self._shards.query_all("last_delivered", asked)
        since = [at for at in successes if at is not None]
        enabled_at = endpoint.document.get("enabled_at")
        if enabled_at:
            since.append(parse_instant(enabled_at))
        asked["since"] = max(since, default=None)
        failures = await self._shards.query_all("failing_since", asked)
        first = min((at for at in failures if at is not None), default=None)
        if first is not None and self._clock.now() - first >= FAILING_MAX:
            await self._disable(endpoint, f"nothing but failures since {as_text(first)}")

    async def _disable(self, endpoint: _Endpoint, cause: str) -> None:
        if not endpoint.document["enabled"]:
            return
        id = endpoint.document["id"]
        logger.warning("endpoint %d is disabled: %s", id, cause)
        disabled = {"cause": cause, "at": as_text(self._clock.now())}
        fields = {"id": id, "enabled": False, "disabled": disabled}
        endpoint.document = await self._catalog.call("save", COLLECTION, fields)
        self._figures.disabled += 1

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
