"""A shard with people and one running campaign, for tests of planning, leasing and settling."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa

from manta.command import Change, Op
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind
from manta.delivery.leasing import Grant, Lease
from manta.delivery.ledger import Policy
from manta.delivery.outcomes import Outcome, OutcomeKind, outcomes_table
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.delivery.settling import Settle
from manta.ids import MessageRef
from tests.unit.people_shard import START, Shard

CAMPAIGN = 7
SENDER = "sender-00"


def plan(campaign_id: int = CAMPAIGN, **changed: Any) -> CampaignPlan:
    values: dict[str, Any] = {
        "campaign_id": campaign_id,
        "kind": Kind.MARKETING,
        "channel": "email",
        "topic": "news",
        "template_id": "1",
        "template_version": 1,
        "source": "mx-a",
        "due_at": START,
        "audience": '{"all": []}',
        "expires_at": START + timedelta(days=2),
        "policy": Policy.HOLD,
    }
    return CampaignPlan(**(values | changed))


class SendingShard(Shard):
    """People 1 to ``people``, all of whom may be mailed."""

    def __init__(self, people: int = 6) -> None:
        super().__init__()
        ids = range(1, people + 1)
        self.load(
            "profiles", *({"subscriber_id": i, "email": f"p{i}@d{i % 2}.example"} for i in ids)
        )
        self.load("consents", *(self.consent(i) for i in ids))

    @staticmethod
    def consent(person: int, status: str = "subscribed") -> dict[str, Any]:
        return {"subscriber_id": person, "channel": "email", "topic": "news", "status": status}

    def start(self, campaign: CampaignPlan | None = None) -> CampaignPlan:
        """Announce a campaign and plan all of it."""
        campaign = campaign or plan()
        self.set(CampaignState.RUNNING, campaign)
        if campaign.audience:
            self.answer(PlanCampaign(campaign.campaign_id))
        return campaign

    def set(self, state: CampaignState, campaign: CampaignPlan | None = None) -> Any:
        campaign = campaign or plan()
        return self.run(SetCampaign(None, campaign.campaign_id, state, campaign.to_json()))

    def lease(self, lease_id: int = 1, **changed: Any) -> Grant:
        grant = self.answer(lease_command(lease_id, **changed))
        assert isinstance(grant, Grant)
        return grant

    def settle(self, lease_id: int, *outcomes: Outcome, epoch: int = 1) -> Any:
        table = outcomes_table(outcomes)
        return self.answer(Settle(lease_id, SENDER, epoch, table, 5))

    def outcome(self, ref: tuple[int, int], kind: OutcomeKind, **changed: Any) -> Outcome:
        return Outcome(*ref, kind, self.now, **changed)

    def states(self) -> dict[int, str]:
        return dict(self.rows("SELECT subscriber_id, state FROM ledger ORDER BY 1"))

    def row(self, person: int) -> dict[str, Any]:
        table = self.database.table("SELECT * FROM ledger WHERE subscriber_id = ?", [person])
        (row,) = table.to_pylist()
        return dict(row)

    def suppress(self, address: str, reason: str) -> None:
        self.load("suppressions", {"channel": "email", "address": address, "reason": reason})

    def delete_person(self, person: int) -> None:

        key = pa.table({"subscriber_id": pa.array([person], pa.int64())})
        self.write(Change("profiles", Op.DELETE, key))


def lease_command(lease_id: int = 1, **changed: Any) -> Lease:
    values: dict[str, Any] = {
        "lease_id": lease_id,
        "sender": SENDER,
        "sender_epoch": 1,
        "journal_sequence": 2,
        "source": "mx-a",
        "site": "relay",
    }
    return Lease(**(values | changed))


def refs(grant: Grant) -> list[MessageRef]:
    columns = (grant.rows.column(name).to_pylist() for name in ("subscriber_id", "message_key"))
    return [MessageRef(*ref) for ref in zip(*columns, strict=True)]


def people(grant: Grant) -> list[int]:
    found: list[int] = grant.rows.column("subscriber_id").to_pylist()
    return found
