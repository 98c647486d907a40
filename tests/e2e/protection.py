"""Delivery on the stage: a real Reputation, Throttle and Resolver, and mail that hurts the sender.

Some of what servers and strangers say here would be markup, if anybody took it for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from actors.reputation import ReputationActor
from actors.resolver import Resolver, Returns
from actors.throttle import Throttle
from manta.delivery.reputation import norms
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.shaping import shaping
from manta.delivery.throttle.ways import Ways, limits_of
from manta.people.suppressions import HARD_BOUNCE, Suppress
from manta.settings import EgressSource, Pool, PoolMember, Settings
from manta.store.documents import Documents
from tests.e2e.stage import Stage
from tests.unit.test_serve_domains import Zone

HOSTILE = "<img src=x onerror=\"window.hacked='yes'\">"
RULE = f"""
[[provider.outlook.rule]]
name = "refused"
pattern = 'please stop'
action = "suspend"
duration = "2h"
example = "550 please stop {HOSTILE.replace('"', "")}"
"""
LANES = (
    ("mx-a", "google", "google"),
    ("mx-b", "google", "google"),
    ("mx-a", "yahoo", "yahoo"),
    ("mx-b", "yahoo", "yahoo"),
    ("mx-a", "outlook", "outlook"),
    ("mx-a", "gmx", "gmx"),
    ("mx-a", HOSTILE, HOSTILE),
)


class Protection:
    """``settings``: two direct sources in a pool, the second one is being warmed up."""

    def __init__(self, stage: Stage) -> None:
        self.house = house = stage.house
        today = house.clock.now().date()
        self.settings = Settings(
            egress=(
                EgressSource("mx-a", kind="direct"),
                EgressSource("mx-b", kind="direct", cold_since=today.isoformat()),
            ),
            pools=(Pool("main", (PoolMember("mx-a", 3), PoolMember("mx-b"))),),
        )
        self.reputation = ReputationActor(
            self._documents("reputation"),
            _end,
            house.clock,
            house.calls,
            self._find_handles,
            self.settings.egress,
            shaping.parse(RULE, shaping.builtin()),
            norms.builtin(),
        )
        self.throttle = Throttle(
            self._documents("throttle"),
            _end,
            house.clock,
            limits_of(self.settings),
            Ways.of(self.settings),
        )
        zone = Zone()
        resolver: Any = Resolver
        self.resolver = resolver(
            zone, None, None, lambda text: None, house.clock, returns=Returns("b.shop.example")
        )

    async def start(self) -> None:
        roles = self.house.calls.roles
        roles |= {
            "reputation": self.reputation,
            "throttle": self.throttle,
            "resolver": self.resolver,
        }
        await self.reputation.start()
        await self.throttle.start()

    async def happen(self) -> None:
        """Mail goes out: complaints at one provider, a refusal at another, else all is well."""
        await self._see("google", Seen.ACCEPTED, 6_000)
        await self._see("google", Seen.OPENED, 900)
        await self._see("google", Seen.COMPLAINED, 24)
        await self._see("yahoo", Seen.ACCEPTED, 4_100)
        await self._see("yahoo", Seen.COMPLAINED, 1)
        await self._see("gmx", Seen.ACCEPTED, 700)
        await self._see("gmx", Seen.FAILED, 12, bounce_class=BounceClass.HARD, code=550)
        await self._see(HOSTILE, Seen.ACCEPTED, 40)
        text = f"please stop {HOSTILE}"
        refused = {"bounce_class": BounceClass.BLOCK, "code": 550, "text": text}
        await self._see("outlook", Seen.FAILED, 2, **refused)
        await self.reputation.decide_now()
        await self.grant()

    async def grant(self) -> None:
        """A second later every lane asks, under the law that holds now."""
        self.house.clock.advance(1)
        await self.throttle.law(await self.reputation.law())
        for lane in LANES:
            await self.throttle.hold("sender-00", ("main", *lane), 3)
            for _ in range(3):
                await self.throttle.grant("sender-00", ("main", *lane), 20)

    async def suppress(self, address: str) -> None:
        shards = self.house.handles.shards
        command = Suppress(None, "email", address, HARD_BOUNCE, "dsn", f"550 5.1.1 {HOSTILE}")
        await shards.execute(shards.of_identity("email", address), command)

    async def stop(self) -> None:
        for task in list(self.reputation._tasks):
            task.cancel()
        await asyncio.gather(*self.reputation._tasks, return_exceptions=True)

    async def _see(self, provider: str, seen: Seen, messages: int, **fields: Any) -> None:
        moment = self.house.clock.now() - timedelta(seconds=20)
        observed = Observed(moment, seen, "shop.example", "mx-a", provider, provider, 3)
        self.reputation._state.observe(
            [observed._replace(messages=messages, **fields)], self.house.clock.now()
        )

    def _documents(self, role: str) -> Documents:
        house = self.house
        return Documents(house.objects, f"default/journal/{role}", role, b"p" * 16, house.clock)

    async def _find_handles(self) -> Any:
        return self.house.handles


def _end(reason: str) -> None:
    raise AssertionError(reason)


@asynccontextmanager
async def protected(stage: Stage) -> AsyncIterator[Protection]:
    made = Protection(stage)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
