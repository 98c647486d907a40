"""A campaign: what a shard must know to plan, lease and count for it, and its state machine.

The Director owns a campaign's state and tells the shards (``planning.SetCampaign``); a shard keeps
the state and the plan in ``campaigns``, the plan as the JSON of ``CampaignPlan``. A plan pins the
versions of what it uses and never changes once planning has begun, so that planning asked again
after a crash finds the same audience rule and the same message key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from manta.clock import as_text, parse_instant
from manta.delivery.ledger import Policy
from manta.errors import Conflict, InvalidRequest
from manta.ids import campaign_message_key
from manta.rules.nodes import Rule
from manta.rules.tree import parse_text
from manta.schema import ATTRIBUTE_NAME, AttributeType

PRIORITY_MAX = 255
ATTRIBUTES_MAX = 100


class CampaignState(StrEnum):
    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"


CAMPAIGN_MOVES: Mapping[CampaignState, frozenset[CampaignState]] = {
    CampaignState.DRAFT: frozenset({CampaignState.SCHEDULED, CampaignState.CANCELLED}),
    CampaignState.SCHEDULED: frozenset(
        {CampaignState.RUNNING, CampaignState.DRAFT, CampaignState.CANCELLED}
    ),
    CampaignState.RUNNING: frozenset(
        {CampaignState.PAUSED, CampaignState.FINISHED, CampaignState.CANCELLED}
    ),
    CampaignState.PAUSED: frozenset({CampaignState.RUNNING, CampaignState.CANCELLED}),
    CampaignState.FINISHED: frozenset(),
    CampaignState.CANCELLED: frozenset(),
}


def move_campaign(old: CampaignState, new: CampaignState) -> CampaignState:
    """The new state; the same state again is no move and allowed (steps are retried)."""
    if new is not old and new not in CAMPAIGN_MOVES[old]:
        allowed = ", ".join(sorted(CAMPAIGN_MOVES[old])) or "nothing: it has ended"
        raise Conflict(
            f"a campaign cannot go from {old} to {new}",
            path="state",
            expected=f"from {old}: {allowed}",
        )
    return new


class Kind(StrEnum):
    """Why a message is sent: it decides which consent and which suppressions count."""

    MARKETING = "marketing"  # needs a subscribed consent for the topic
    TRANSACTIONAL = "transactional"  # asked for by an act of the person's own; no consent needed
    TEST = "test"  # to ourselves: outside caps and segments, inside the accounting


# Without an answer from the person concerned, only marketing may go on being refused.
MARKETING_ONLY_SUPPRESSIONS = ("unsubscribed", "sunset", "erased")


@dataclass(frozen=True)
class CampaignPlan:
    """The JSON in ``campaigns.definition``.

    ``audience`` is the JSON text of a rule, to hold at ``due_at``, with the declared types of the
    attributes that it names and the workspace's time zone; each shard makes its own SQL of it. It
    is empty where messages are enqueued one by one. ``source`` names an egress source or a pool of
    them. Planned rows are due at ``due_at`` and expire at ``expires_at`` (None: never).
    ``occurrence`` is part of the message key: 0 for a one-off.
    """

    campaign_id: int
    kind: Kind
    channel: str
    topic: str
    template_id: str
    template_version: int
    source: str
    due_at: datetime
    audience: str = ""
    attribute_types: tuple[tuple[str, str], ...] = ()  # name and type
    time_zone: str = "UTC"
    attributes: tuple[str, ...] = ()  # those that the template uses, without the `attr_` prefix
    priority: int = 100  # 0 first
    policy: Policy = Policy.HOLD
    expires_at: datetime | None = None
    occurrence: int = 0
    sending_domain: str = ""  # of the From address

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= PRIORITY_MAX:
            raise InvalidRequest(
                f"priority {self.priority} is out of range",
                path="priority",
                expected=f"0 (first) to {PRIORITY_MAX}",
            )
        if len(self.attributes) > ATTRIBUTES_MAX:
            raise InvalidRequest(
                f"a template uses at most {ATTRIBUTES_MAX} attributes", path="attributes"
            )
        for name in self.attributes:
            if not re.fullmatch(ATTRIBUTE_NAME, name):
                raise InvalidRequest(f"not an attribute name: {name!r:.80}", path="attributes")
        if self.expires_at is not None and self.expires_at <= self.due_at:
            raise InvalidRequest(
                "it would expire before it is due", path="expires_at", expected="after due_at"
            )

    @property
    def message_key(self) -> int:
        return campaign_message_key(self.campaign_id, self.occurrence)

    def audience_rule(self) -> Rule:
        """Everybody whom the campaign is for. Raises ``InvalidRequest`` where it is no rule."""
        types = {name: AttributeType(kind) for name, kind in self.attribute_types}
        return parse_text(self.audience, types)

    def to_json(self) -> str:
        values = asdict(self)
        return json.dumps({name: _encode(value) for name, value in values.items()})

    @classmethod
    def from_json(cls, text: str) -> CampaignPlan:
        """Raises ``InvalidRequest`` where the text is not a plan."""
        return _parse(text)


@lru_cache(maxsize=256)
def _parse(text: str) -> CampaignPlan:
    try:
        raw = json.loads(text)
        known = {field.name for field in fields(CampaignPlan)}
        if not isinstance(raw, dict) or not set(raw) <= known:
            raise ValueError(f"expected an object with some of {', '.join(sorted(known))}")
        values = {name: _decode(value) for name, value in raw.items()}
        values["kind"] = Kind(values["kind"])
        values["policy"] = Policy(values.get("policy", Policy.HOLD))
        return CampaignPlan(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"not a campaign plan: {error}", path="definition") from error


def _encode(value: Any) -> Any:
    """JSON has no instants and no tuples: an instant becomes ``{"instant": text}``."""
    if isinstance(value, datetime):
        return {"instant": as_text(value)}
    if isinstance(value, list | tuple):
        return [_encode(each) for each in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return parse_instant(value["instant"])
    if isinstance(value, list):
        return tuple(_decode(each) for each in value)
    return value
