"""What a shard knows of the Catalog's definitions: live segments, caps, topics, endpoints.

The Catalog owns definitions and tells every shard of those that a shard acts upon, each as one row
with a version; an older one is ignored, so that they may arrive in any order and any number of
times. A deleted definition stays as a row without a body.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from manta.command import Context, Database, Decision
from manta.people.history import compact_json, upserted
from manta.schema import DEFINITIONS

# The kinds of definitions that shards know.
SEGMENT = "segment"
CAP = "cap"
QUIET_HOURS = "quiet_hours"
ENDPOINT = "endpoint"
SUNSET = "sunset"


class Definition(NamedTuple):
    id: str
    version: int
    body: dict[str, Any]


@dataclass(frozen=True)
class SetDefinition:
    """Take over one definition as of ``version``; ``body`` ``None``: it is deleted.

    Answers whether anything changed.
    """

    key: str | None
    kind: str
    id: str
    version: int
    body: dict[str, Any] | None

    def decide(self, database: Database, context: Context) -> Decision:
        known = database.rows(
            "SELECT version FROM definitions WHERE kind = ? AND id = ?", [self.kind, self.id]
        )
        if known and known[0][0] >= self.version:
            return Decision(False)
        body = None if self.body is None else compact_json(self.body)
        change = upserted(
            DEFINITIONS.name,
            1,
            kind=self.kind,
            id=self.id,
            version=self.version,
            body=body,
            changed_at=context.now,
        )
        return Decision(True, (change,))


def definitions(database: Database, kind: str) -> list[Definition]:
    """The definitions of one kind that stand, by id."""
    found = database.rows(
        "SELECT id, version, body FROM definitions WHERE kind = ? AND body IS NOT NULL ORDER BY id",
        [kind],
    )
    return [Definition(id, version, json.loads(body)) for id, version, body in found]
