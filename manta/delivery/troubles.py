"""Why mail does not move: noted on the rows of a lane that cannot be reached.

Without a connection nothing is leased and no attempt is used up, so a row that waits for a dead
server would expire without a word. Whoever has the trouble says so here now and then; the row keeps
the last reason, and takes it along when it expires; with the first one its age begins to count
(``ledger.age_limit``). Nothing depends on a note: one that is lost is
made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.delivery.campaign import CampaignPlan
from manta.delivery.ledger import age_limit
from manta.delivery.outcomes import REASON_CHARACTERS_MAX

NOTED_ROWS_MAX = 20_000


@dataclass(frozen=True)
class NoteTrouble:
    """``trouble`` becomes the reason of due rows of campaigns that ask for one of ``serves``, of
    these domains (None: every one) without ``except_domains``. Answers how many; repeat it until
    there are none."""

    serves: tuple[str, ...]
    trouble: str
    domains: tuple[str, ...] | None = None
    except_domains: tuple[str, ...] = ()
    limit: int = NOTED_ROWS_MAX
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        trouble = self.trouble[:REASON_CHARACTERS_MAX]
        campaigns = [
            campaign_id
            for campaign_id, definition in database.rows(
                "SELECT campaign_id, definition FROM campaigns WHERE state = 'running'"
            )
            if CampaignPlan.from_json(definition).source in self.serves
        ]
        ends_at = context.now + age_limit(context.settings)
        where = (
            "due_at <= ? AND campaign_id IN (SELECT unnest(?)) AND reason IS DISTINCT FROM ?"
            " AND domain NOT IN (SELECT unnest(?))"
        )
        params: list[Any] = [context.now, campaigns, trouble, list(self.except_domains)]
        if self.domains is not None:
            where += " AND domain IN (SELECT unnest(?))"
            params.append(list(self.domains))
        rows = database.table(
            "SELECT subscriber_id, message_key,"
            " CASE WHEN reason IS NULL OR expires_at IS NULL"
            " THEN least(coalesce(expires_at, ?), ?) ELSE expires_at END AS expires_at"
            f" FROM ledger WHERE {where} LIMIT ?",
            [ends_at, ends_at, *params, self.limit],
        )
        if not rows.num_rows:
            return Decision(0)
        noted = rows.append_column("reason", pa.repeat(trouble, rows.num_rows))
        return Decision(rows.num_rows, (Change("ledger", Op.UPSERT, noted),))
