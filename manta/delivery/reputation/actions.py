"""Actions: what Reputation does to protect the sender, each with its cause, its end and its undo.

An action is journaled before it acts and shown until it is over. It ends by itself at ``until``, or
earlier when somebody undoes it; nothing that has ended acts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from manta.clock import as_text, parse_instant
from manta.delivery.lanes import Lane


class ActionKind(StrEnum):
    SUSPEND = "suspend"  # nothing goes out within the scope
    LIMIT = "limit"  # narrower limits
    BOUNCE = "bounce"  # what is waiting within the scope fails, with the cause as its reason
    PAUSE = "pause"  # the Director pauses the campaign as a whole; needs ``campaign_id`` alone


@dataclass(frozen=True)
class Scope:
    """Where an action acts: every field that is set has to match; an empty scope is everything."""

    source: str = ""
    provider: str = ""
    site: str = ""
    campaign_id: int = 0
    sending_domain: str = ""

    def covers(self, lane: Lane) -> bool:
        """Whether it concerns the lane, or some campaigns in it."""
        return (
            self.source in ("", lane.source)
            and self.provider in ("", lane.provider)
            and self.site in ("", lane.site)
        )


@dataclass(frozen=True)
class Narrower:
    """Limits in the place of larger ones; None leaves one as it is."""

    rate_per_s: float | None = None
    connections_max: int | None = None
    messages_per_connection: int | None = None


@dataclass(frozen=True)
class Action:
    """``cause`` names the rule or law, ``figures`` what it saw. ``campaigns``: of a scope with a
    sending domain, the campaigns that it concerns now."""

    id: int
    kind: ActionKind
    scope: Scope
    cause: str
    began_at: datetime
    until: datetime
    limits: Narrower = Narrower()
    figures: Mapping[str, Any] = field(default_factory=dict)
    campaigns: tuple[int, ...] = ()
    undone_at: datetime | None = None
    undone_by: str = ""

    def is_active(self, now: datetime) -> bool:
        return self.undone_at is None and now < self.until

    def undone(self, by: str, now: datetime) -> Action:
        return replace(self, undone_at=now, undone_by=by)

    def to_document(self) -> dict[str, Any]:
        """JSON-ready."""
        document = asdict(self)
        for name in ("began_at", "until", "undone_at"):
            value = document[name]
            document[name] = None if value is None else as_text(value)
        document["kind"] = str(self.kind)
        document["campaigns"] = list(self.campaigns)
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Action:
        undone_at = document["undone_at"]
        return cls(
            document["id"],
            ActionKind(document["kind"]),
            Scope(**document["scope"]),
            document["cause"],
            parse_instant(document["began_at"]),
            parse_instant(document["until"]),
            Narrower(**document["limits"]),
            dict(document["figures"]),
            tuple(document["campaigns"]),
            parse_instant(undone_at) if undone_at else None,
            document["undone_by"],
        )
