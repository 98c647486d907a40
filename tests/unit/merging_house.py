"""Several shards' databases behind the port that drivers of people use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manta.command import Command, Context
from manta.errors import MantaError, OutcomeUnknown
from manta.ids import (
    bucket_of_identity,
    bucket_of_subscriber,
    even_ranges,
    mint_subscriber_id,
    shard_of_bucket,
)
from manta.people import queries
from manta.store.hiding import hidden_by
from tests.unit.people_shard import START, Shard


class Shards:
    """``dies_at`` makes the n-th call from now raise; ``calls`` counts them."""

    def __init__(self, count: int = 2) -> None:
        self.first_buckets = even_ranges(count)
        self.shards = [Shard(seed + 1) for seed in range(count)]
        self.calls = 0
        self.dies_at: int | None = None

    def of_subscriber(self, subscriber_id: int) -> int:
        return shard_of_bucket(bucket_of_subscriber(subscriber_id), self.first_buckets)

    def of_identity(self, kind: str, value: str) -> int:
        return shard_of_bucket(bucket_of_identity(kind, value), self.first_buckets)

    async def execute(self, shard: int, command: Command, deadline_s: float) -> Any:
        (answer,) = await self.execute_on(shard, [command], deadline_s)
        if isinstance(answer, MantaError):
            raise answer
        return answer

    async def execute_on(
        self, shard: int, commands: Sequence[Command], deadline_s: float
    ) -> list[Any]:
        self._call()
        return [self._one(self.shards[shard], command) for command in commands]

    async def query(
        self, shard: int, name: str, arguments: dict[str, Any], deadline_s: float
    ) -> Any:
        self._call()
        there = self.shards[shard]
        context = Context(there.now, there.random, "default", shard)
        return queries.QUERIES[name](there.database, context, arguments)

    def _call(self) -> None:
        self.calls += 1
        if self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                self.dies_at = None
                raise OutcomeUnknown("the driver dies here")

    def _one(self, shard: Shard, command: Command) -> Any:
        try:
            decision = shard.run(command)
        except MantaError as error:
            return error
        for column, values in hidden_by(decision.changes):
            wanted = f"{column} IN (SELECT unnest(?::BIGINT[]))"
            shard.database.drop("events", wanted, [values.to_pylist()])
        return decision.answer

    # -- for tests -------------------------------------------------------------------------------

    def home(self, subscriber_id: int) -> Shard:
        return self.shards[self.of_subscriber(subscriber_id)]

    def pass_time(self, **duration: float) -> None:
        for shard in self.shards:
            shard.pass_time(**duration)

    def new_person(self, number: int, email: str | None = None, **columns: Any) -> int:
        """Somebody of shard ``number``, whatever their address says."""
        shard = self.shards[number]
        id = mint_subscriber_id(self.first_buckets[number], shard.random)
        row = {"subscriber_id": id, "email": email, "created_at": START, "updated_at": START}
        shard.load("profiles", row | columns)
        return id

    def state(self, *ids: int) -> dict[str, Any]:
        """All that is known of these people, without the times of updates."""
        found: dict[str, Any] = {}
        for id in ids:
            shard = self.home(id)
            for table in ("profiles", "consents", "memberships", "attribute_times", *_SUMS):
                rows = shard.database.table(
                    f"SELECT * FROM {table} WHERE subscriber_id = ?", [id]
                ).to_pylist()
                found[f"{id} {table}"] = sorted(
                    str({k: v for k, v in row.items() if v is not None and k != "updated_at"})
                    for row in rows
                )
            found[f"{id} events"] = sorted(
                shard.rows("SELECT event_id FROM events WHERE subscriber_id = ?", id)
            )
        return found


_SUMS = ("event_months", "purchased_items", "ledger_days")
