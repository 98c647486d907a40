"""One shard's database for command tests: decides, applies and commits as the writer loop does."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import Any

import pyarrow as pa

from manta.command import Change, Command, Context, Decision, Op
from manta.ids import mint_subscriber_id
from manta.people.identities import bucket_of
from manta.store.database import ShardDatabase

START = datetime(2026, 3, 1, 12)


def alias(from_id: int, to_id: int, state: str = "merged") -> dict[str, Any]:
    """The row of a merge that stands."""
    row = {"from_id": from_id, "to_id": to_id, "merge_id": from_id, "state": state}
    return row | {"cause": "test", "created_at": START, "changed_at": START}


class Shard:
    """``history`` collects the events that go to the lake and not to memory."""

    def __init__(self, seed: int = 1) -> None:
        self.database = ShardDatabase()
        self.now = START
        self.random = Random(seed)
        self.history: list[dict[str, Any]] = []

    def run(self, command: Command) -> Decision:
        context = Context(self.now, self.random, "default", 0, {"privacy_key": b"k" * 32})
        self.database.begin()
        try:
            decision = command.decide(self.database, context)
            self.database.apply(self.database.prepare(decision.changes))
        except BaseException:
            self.database.rollback()
            raise
        self.database.commit()
        for change in decision.changes:
            if change.table == "events":
                self.history += change.rows.to_pylist()
        return decision

    def answer(self, command: Command) -> Any:
        return self.run(command).answer

    def pass_time(self, **duration: float) -> None:
        self.now += timedelta(**duration)

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.database.rows(sql, params)

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.history]

    def load(self, table: str, *rows: dict[str, Any]) -> None:
        """Rows as if some earlier command had written them."""
        self.write(Change(table, Op.UPSERT, pa.Table.from_pylist(list(rows))))

    def delete(self, table: str, **key: Any) -> None:
        self.write(Change(table, Op.DELETE, pa.Table.from_pylist([key])))

    def write(self, *changes: Change) -> None:
        self.database.begin()
        self.database.apply(self.database.prepare(changes))
        self.database.commit()

    def person(self, email: str, **columns: Any) -> int:
        subscriber_id = mint_subscriber_id(bucket_of("email", email), self.random)
        self.load("profiles", {"subscriber_id": subscriber_id, "email": email} | columns)
        self.load(
            "identities",
            {
                "kind": "email",
                "value": email.lower(),
                "subscriber_id": subscriber_id,
                "state": "confirmed",
                "claimed_at": START,
            },
        )
        return subscriber_id

    def leased(self, subscriber_id: int, message_key: int, **columns: Any) -> None:
        row = {
            "subscriber_id": subscriber_id,
            "message_key": message_key,
            "campaign_id": 7,
            "kind": "marketing",
            "channel": "email",
            "state": "leased",
            "sender": "sender-00",
        }
        self.load("ledger", row | columns)
