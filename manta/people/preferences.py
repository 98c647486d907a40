"""What a person chooses on their preference page, as one command.

Only what the page had shown is touched: a topic that has been added since stays as it is. A ticked
topic is the person's own word and lifts an earlier ``*`` of its channel; one that is no longer
ticked is withdrawn, with the message that led to the page; one that was never agreed to and stays
unticked leaves no trace. The same choices again change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Push
from manta.errors import InvalidRequest
from manta.ids import MessageRef
from manta.people.consents import (
    ALL_TOPICS,
    CHANNELS,
    NOTHING,
    SUBSCRIBED_TO,
    UNSUBSCRIBED,
    WAITING,
    Given,
    Held,
    check_text,
    check_word,
    checked_proof,
    consent_changes,
    consents_of,
    existing,
    revocations,
)
from manta.people.history import recorded, upserted
from manta.people.identities import EMAIL, compared
from manta.people.linked import is_of_address
from manta.privacy.hashes import erased_among

CHOICES_MAX = 1_000


class Choice(NamedTuple):
    channel: str
    topic: str
    wanted: bool


@dataclass(frozen=True)
class Saved:
    """``wanted``: whether a ticked e-mail topic is subscribed now: what stops marketing to
    ``email`` for the person's own sake is to be lifted, and if ``is_erased`` the mark of an earlier
    erasure too."""

    subscriber_id: int
    email: str | None
    changed: int
    wanted: bool
    is_erased: bool = False


@dataclass(frozen=True)
class SetPreferences:
    """``locale`` ``None`` leaves it as it is; ``mail`` is what led here. One that went to an
    earlier address lifts nothing from the present one."""

    key: str | None
    subscriber_id: int
    choices: tuple[Choice, ...]
    locale: str | None
    source: str
    proof: Mapping[str, Any] | None = None
    mail: MessageRef | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        self._check()
        proof = checked_proof(self.proof)
        person = existing(database, self.subscriber_id)
        changes: list[Change] = []
        withdrawn: list[Choice] = []
        pushes: tuple[Push, ...] = ()
        for channel in dict.fromkeys(choice.channel for choice in self.choices):
            mine = [choice for choice in self.choices if choice.channel == channel]
            held = consents_of(database, person, channel)
            made, gone = _chosen(person, Given(channel, self.source, proof), mine, held, context)
            changes += made
            withdrawn += gone
            if gone:
                pushes += revocations(database, [person], channel)
        changed = len(changes) // 2
        changes += self._withdrawals(person, withdrawn, database, context)
        language = self._language(person, database, context)
        ((email,),) = database.rows("SELECT email FROM profiles WHERE subscriber_id = ?", [person])
        wanted = any(choice.wanted and choice.channel == "email" for choice in self.choices)
        wanted = wanted and is_of_address(database, person, self.mail)
        address = [compared(EMAIL, email)] if email else []
        is_erased = bool(erased_among(database, context.settings, address))
        answer = Saved(person, email, changed + bool(language), wanted, is_erased)
        return Decision(answer, (*changes, *language), pushes)

    def _check(self) -> None:
        check_text(self.source, "source")
        if len(self.choices) > CHOICES_MAX:
            raise InvalidRequest(
                f"{len(self.choices)} choices", path="choices", expected=f"at most {CHOICES_MAX:,}"
            )
        for choice in self.choices:
            check_word(choice.channel, CHANNELS, "channel")
            check_text(choice.topic, "topic")
            if choice.topic == ALL_TOPICS:
                raise InvalidRequest("consent is given topic by topic", path="topic")

    def _withdrawals(
        self, person: int, withdrawn: Sequence[Choice], database: Database, context: Context
    ) -> list[Change]:
        """An ``unsubscribed`` event for each topic that was given up."""
        if not withdrawn:
            return []
        message_key = self.mail.message_key if self.mail is not None else None
        known = database.rows(
            "SELECT campaign_id FROM ledger WHERE subscriber_id = ? AND message_key = ?",
            [person, message_key],
        )
        return [
            recorded(
                "unsubscribed",
                pa.array([person], pa.int64()),
                {"channel": choice.channel, "topic": choice.topic, "source": self.source},
                context.now,
                context.random,
                campaign_id=known[0][0] if known else None,
                message_key=message_key,
            )
            for choice in withdrawn
        ]

    def _language(self, person: int, database: Database, context: Context) -> list[Change]:
        if self.locale is None:
            return []
        ((old,),) = database.rows("SELECT locale FROM profiles WHERE subscriber_id = ?", [person])
        if old == self.locale:
            return []
        said = {"source": self.source, "old": {"locale": old}, "new": {"locale": self.locale}}
        who, now = pa.array([person], pa.int64()), context.now
        return [
            upserted("profiles", 1, subscriber_id=who, locale=self.locale, updated_at=now),
            upserted("attribute_times", 1, subscriber_id=who, name="locale", changed_at=now),
            recorded("profile_changed", who, said, now, context.random),
        ]


def _chosen(
    person: int, given: Given, mine: Sequence[Choice], held: Mapping[str, Held], context: Context
) -> tuple[list[Change], list[Choice]]:
    """The changes of one channel's consents, and what was withdrawn."""
    changes: list[Change] = []
    withdrawn: list[Choice] = []
    for choice in mine:
        old = held.get(choice.topic, NOTHING).status
        if choice.wanted and old != SUBSCRIBED_TO:
            changes += consent_changes(given, person, choice.topic, old, SUBSCRIBED_TO, context)
        elif not choice.wanted and old in (SUBSCRIBED_TO, WAITING):
            changes += consent_changes(given, person, choice.topic, old, UNSUBSCRIBED, context)
            withdrawn.append(choice)
    left = held.get(ALL_TOPICS, NOTHING).status == UNSUBSCRIBED
    if left and any(choice.wanted for choice in mine):
        changes += consent_changes(given, person, ALL_TOPICS, UNSUBSCRIBED, None, context)
    return changes, withdrawn
