"""What a rule may look at of one person, as ``manta.rules.loading`` gathers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from manta.rules.kept import Kept, KeptSum
from manta.rules.meaning import event_key
from manta.rules.terms import Property


class EventRow(NamedTuple):
    """One event of a person, without its type."""

    occurred_at: datetime
    campaign_id: int | None = None
    message_key: int | None = None
    item: str | None = None
    amount: float | None = None
    properties: str | None = None


class Suppression(NamedTuple):
    reason: str
    expires_at: datetime | None


class Consented(NamedTuple):
    """A consent on record; one that is pending counts until it expires."""

    status: str
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Person:
    """What a rule may look at. ``profile`` maps columns of ``profiles`` to values; one that is
    absent is missing. ``events`` holds by type what ``loading`` gathered, earliest first, without
    the opens and clicks of machines. ``attribute_times`` says since when an attribute has its value
    where it has ever changed, ``predictions`` what is predicted, both by name. ``past`` is what is
    kept of events that have left memory."""

    subscriber_id: int
    profile: Mapping[str, Any]
    events: Mapping[str, Sequence[EventRow]] = field(default_factory=dict)
    consents: Mapping[tuple[str, str], Consented] = field(default_factory=dict)
    memberships: frozenset[int] = frozenset()
    suppressions: Sequence[Suppression] = ()  # of the e-mail address
    attribute_times: Mapping[str, datetime] = field(default_factory=dict)
    predictions: Mapping[str, float | None] = field(default_factory=dict)
    past: Mapping[Kept, Sequence[KeptSum]] = field(default_factory=dict)

    @cached_property
    def sent(self) -> list[EventRow]:
        """Messages sent, in the order in which "the last N" counts back."""
        return sorted(self.events.get("sent", ()), key=_sent_order)

    @cached_property
    def first_acts(self) -> dict[tuple[str, int | None], datetime]:
        """When a message was first opened or clicked."""
        first: dict[tuple[str, int | None], datetime] = {}
        for type_ in ("clicked", "opened"):
            for row in self.events.get(type_, ()):
                if row.message_key is not None:
                    first.setdefault((type_, row.message_key), row.occurred_at)
        return first

    def by_key(self, by: Property, types: Sequence[str], name: str) -> dict[str, Person]:
        """By key, the person with only those events of these types that have it. Kept under the
        name: several conditions of several rules may ask the same."""
        kept = self._by_key.get(name)
        if kept is None:
            events: dict[str, dict[str, list[EventRow]]] = {}
            for type_ in types:
                for row in self.events.get(type_, ()):
                    key = event_key(by, row.item, row.campaign_id, row.properties)
                    if key is not None:
                        events.setdefault(key, {}).setdefault(type_, []).append(row)
            kept = {key: Person(self.subscriber_id, {}, own) for key, own in events.items()}
            self._by_key[name] = kept
        return kept

    @cached_property
    def _by_key(self) -> dict[str, dict[str, Person]]:
        return {}


def _sent_order(row: EventRow) -> tuple[datetime, bool, int]:
    return row[0], row[2] is not None, row[2] or 0
