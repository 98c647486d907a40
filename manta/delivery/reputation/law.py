"""The law: what Reputation has decided for all lanes, as one value that others are told.

Reputation owns it and journals it; Throttle, Director and Resolver hear it as a document, whole,
and keep the newest by ``version``. It holds the operator's shaping text and the actions that are
not over; what they mean at a lane is said by ``terms``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manta.delivery.reputation.actions import Action


@dataclass(frozen=True)
class Law:
    """``version`` counts the changes; ``shaping_text`` is the operator's TOML over the shipped one,
    empty where there is none."""

    version: int = 0
    shaping_text: str = ""
    actions: tuple[Action, ...] = ()

    def active(self, now: datetime) -> tuple[Action, ...]:
        """The actions that act now."""
        return tuple(action for action in self.actions if action.is_active(now))

    def to_document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "version": self.version,
            "shaping_text": self.shaping_text,
            "actions": [action.to_document() for action in self.actions],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Law:
        return cls(
            document["version"],
            document["shaping_text"],
            tuple(Action.from_document(action) for action in document["actions"]),
        )
