"""Consent and unsubscription: who wants which mail, and since when.

Consent is per person, channel and topic, and mail needs it: no row means no consent. The topic
``*`` (all topics) only ever says *unsubscribed*: it overrules every other row, and is lifted when
the person subscribes again by their own act. What may not be sent to an address, whoever has it,
is another matter (``manta.people.suppressions``).

A consent keeps its *proof*: how, where, when and on what wording it was given (``checked_proof``).
A *pending* one waits for its confirmation until ``expires_at`` (``manta.people.double_opt_in``);
after that it counts for nothing, but its row stays, so that no file can take its place.

A withdrawal is told at once to the Senders that hold leased messages of the person
(``Push(sender, "revoke", …)``). The push is a hint that may be lost; what makes the withdrawal
certain is the check at lease time, and that an unattempted lease goes back within seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op, Push
from manta.errors import InvalidRequest, NotFound
from manta.people.aliases import living
from manta.people.history import compact_json, recorded, rows_of, upserted
from manta.people.identities import EMAIL, PHONE
from manta.schema import CONSENTS

CHANNELS = ("email", "sms", "push")
SUBSCRIBED_TO = "subscribed"
UNSUBSCRIBED = "unsubscribed"
WAITING = "pending"  # for the confirmation of a double opt-in
STATUSES = (SUBSCRIBED_TO, UNSUBSCRIBED, WAITING)
ALL_TOPICS = "*"
TEXT_LENGTH_MAX = 1_000  # of a source, reason or piece of evidence
PENDING_LASTS = timedelta(days=7)
# What a proof may say; ``request`` holds the proof of the first of two steps.
METHODS = ("single", "double", "import", "api", "page")
PROOF_TEXTS = (
    "method", "ip", "user_agent", "form", "page", "wording", "at", "mailed_at", "before", "status",
)  # fmt: skip
PROOF_BYTES_MAX = 8_000


@dataclass(frozen=True)
class ConsentChanged:
    subscriber_id: int
    changed: int  # consents that are now otherwise; 0: everything stood so before


@dataclass(frozen=True)
class SetConsent:
    """The person's own word, or an operator's on their behalf: it is always taken.

    Subscribing to a topic lifts an earlier ``*``; other topics stay as they were left.
    """

    key: str | None
    subscriber_id: int
    channel: str
    topic: str
    status: str
    source: str
    proof: Mapping[str, Any] | None = None
    expires_at: datetime | None = None  # of a pending one; ``PENDING_LASTS`` from now if absent

    def decide(self, database: Database, context: Context) -> Decision:
        check_word(self.channel, CHANNELS, "channel")
        check_word(self.status, STATUSES, "status")
        check_text(self.source, "source")
        check_text(self.topic, "topic")
        proof = checked_proof(self.proof)
        if self.topic == ALL_TOPICS and self.status != UNSUBSCRIBED:
            raise InvalidRequest(
                "consent is given topic by topic", path="topic", expected="the name of one topic"
            )
        person = existing(database, self.subscriber_id)
        held = consents_of(database, person, self.channel)
        old = held.get(self.topic, NOTHING)
        given = Given(self.channel, self.source, proof, self.expires_at)
        changes: list[Change] = []
        if old.status != self.status or old.is_over(context.now):
            changes += consent_changes(given, person, self.topic, old.status, self.status, context)
        if self.status == SUBSCRIBED_TO and held.get(ALL_TOPICS, NOTHING).status == UNSUBSCRIBED:
            changes += consent_changes(given, person, ALL_TOPICS, UNSUBSCRIBED, None, context)
        withdrawn = self.status == UNSUBSCRIBED and bool(changes)
        pushes = revocations(database, [person], self.channel) if withdrawn else ()
        return Decision(ConsentChanged(person, len(changes) // 2), tuple(changes), pushes)


@dataclass(frozen=True)
class Unsubscribe:
    """The one-click answer to a message, or a request on a page or by mail.

    Without ``topic`` it holds for all of them, now and later. ``message_key`` says which message
    was answered; the ``unsubscribed`` event carries its campaign. Asking again changes nothing.
    """

    key: str | None
    subscriber_id: int
    message_key: int | None
    topic: str | None
    source: str
    channel: str = EMAIL
    proof: Mapping[str, Any] | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        check_word(self.channel, CHANNELS, "channel")
        check_text(self.source, "source")
        given = Given(self.channel, self.source, checked_proof(self.proof))
        person = existing(database, self.subscriber_id)
        old = {t: c.status for t, c in consents_of(database, person, self.channel).items()}
        topics = [self.topic] if self.topic is not None else [ALL_TOPICS, *sorted(old)]
        changes: list[Change] = []
        for topic in dict.fromkeys(topics):
            if old.get(topic) != UNSUBSCRIBED:
                was = old.get(topic)
                changes += consent_changes(given, person, topic, was, UNSUBSCRIBED, context)
        answer = ConsentChanged(person, len(changes) // 2)
        if not changes:
            return Decision(answer)
        campaign = None
        if self.message_key is not None:
            known = database.rows(
                "SELECT campaign_id FROM ledger WHERE subscriber_id = ? AND message_key = ?",
                [person, self.message_key],
            )
            campaign = known[0][0] if known else None
        said = {"channel": self.channel, "topic": self.topic or ALL_TOPICS, "source": self.source}
        event = recorded(
            "unsubscribed",
            pa.array([person], pa.int64()),
            said,
            context.now,
            context.random,
            campaign_id=campaign,
            message_key=self.message_key,
        )
        return Decision(answer, (*changes, event), revocations(database, [person], self.channel))


def existing(database: Database, subscriber_id: int) -> int:
    """The person with this id, following merges within the shard. Raises ``NotFound``, with
    ``moved_to`` where they live on in another one."""
    person = living(database, subscriber_id)
    if not database.rows(f"SELECT 1 FROM profiles WHERE {among([person])}"):
        moved: dict[str, Any] = {} if person == subscriber_id else {"moved_to": person}
        raise NotFound(f"no person has the id {subscriber_id}", path="subscriber_id", **moved)
    return person


def holder(database: Database, channel: str, address: str) -> int | None:
    """Who has this address (in its compared form), as far as this shard knows."""
    found = database.rows(
        "SELECT subscriber_id FROM identities WHERE kind = ? AND value = ?",
        [address_kind(channel), address],
    )
    return int(found[0][0]) if found else None


def address_kind(channel: str) -> str:
    """The kind of identity that a channel's addresses are."""
    return {"email": EMAIL, "sms": PHONE}.get(channel, channel)


def revocations(
    database: Database, people: Sequence[int], channel: str, marketing_only: bool = True
) -> tuple[Push, ...]:
    """Tell each Sender with leased messages of the people to send none of them unchecked."""
    if not people:
        return ()
    leased = database.rows(
        f"SELECT sender, subscriber_id, message_key FROM ledger WHERE {among_rows(people)}"
        " AND channel = ? AND state = 'leased' AND (kind = 'marketing' OR NOT ?) ORDER BY ALL",
        [channel, marketing_only],
    )
    refs: dict[str, list[tuple[int, int]]] = {}
    for sender, person, message_key in leased:
        refs.setdefault(sender, []).append((person, message_key))
    return tuple(Push(sender, "revoke", (None, tuple(held))) for sender, held in refs.items())


def among(people: Sequence[int]) -> str:
    """A condition on ``subscriber_id``, which has an index of its own in ``profiles`` alone: there
    a list of constants is looked up. Elsewhere see ``among_rows``."""
    return f"subscriber_id IN ({_listed(people)})"


def among_rows(people: Sequence[int]) -> str:
    """The same for tables of several rows a person: DuckDB finds one person's by zone maps and
    index, and those of many fastest by a join."""
    if len(people) == 1:
        return f"subscriber_id = {_listed(people)}"
    return f"subscriber_id IN (SELECT unnest([{_listed(people)}]::BIGINT[]))"


def _listed(people: Sequence[int]) -> str:
    return ", ".join(str(int(person)) for person in people)


# -- what other decisions use ----------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A consent on record. ``status`` is ``None`` where there is no row."""

    status: str | None
    expires_at: datetime | None = None
    proof: str | None = None  # JSON

    def is_over(self, now: datetime) -> bool:
        """Whether it waited for a confirmation that is too late by now."""
        waits = self.status == WAITING and self.expires_at is not None
        return waits and self.expires_at is not None and self.expires_at <= now


NOTHING = Held(None)


@dataclass(frozen=True)
class Given:
    """How a consent is given or withdrawn; ``proof`` as ``checked_proof`` returns it."""

    channel: str
    source: str
    proof: str | None = None
    expires_at: datetime | None = None


def consents_of(database: Database, person: int, channel: str) -> dict[str, Held]:
    """What is on record of a person, by topic."""
    found = database.rows(
        "SELECT topic, status, expires_at, proof FROM consents"
        " WHERE subscriber_id = ? AND channel = ?",
        [person, channel],
    )
    return {topic: Held(*rest) for topic, *rest in found}


def consent_changes(
    given: Given, person: int, topic: str, old: str | None, new: str | None, context: Context
) -> list[Change]:
    """The change of one consent and its history; ``new`` is ``None`` where a row goes away."""
    key = {"subscriber_id": person, "channel": given.channel, "topic": topic}
    if new is None:
        change = Change(CONSENTS.name, Op.DELETE, rows_of(CONSENTS.name, 1, **key))
    else:
        now = context.now
        ends = (given.expires_at or now + PENDING_LASTS) if new == WAITING else None
        change = upserted(
            CONSENTS.name,
            1,
            **key,
            status=new,
            source=given.source,
            changed_at=now,
            expires_at=ends,
            proof=given.proof,
        )
    said: dict[str, Any] = {
        "channel": given.channel,
        "topic": topic,
        "old": old,
        "new": new,
        "source": given.source,
    }
    if given.proof is not None and new is not None:
        said["proof"] = json.loads(given.proof)
    people = pa.array([person], pa.int64())
    return [change, recorded("consent_changed", people, said, context.now, context.random)]


def checked_proof(proof: Mapping[str, Any] | None) -> str | None:
    """The JSON of a proof: texts under the names of ``PROOF_TEXTS``, and ``request``, the same
    of an earlier step. Raises ``InvalidRequest`` for anything else, or too much."""
    if not proof:
        return None
    text = compact_json(_proof(proof, "proof", nested=True))
    if len(text.encode()) > PROOF_BYTES_MAX:
        raise InvalidRequest(
            "the proof is too long", path="proof", expected=f"at most {PROOF_BYTES_MAX:,} bytes"
        )
    return text


def _proof(proof: Mapping[str, Any], path: str, nested: bool) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in proof.items():
        if name == "request" and nested and isinstance(value, Mapping):
            said[name] = _proof(value, f"{path}.request", nested=False)
        elif name not in PROOF_TEXTS:
            raise InvalidRequest(
                f"a proof has no {name!r:.40}",
                path=f"{path}.{name:.40}",
                expected=", ".join(PROOF_TEXTS),
            )
        elif value is not None:
            if not isinstance(value, str):
                raise InvalidRequest(f"{path}.{name} is no text", path=f"{path}.{name}")
            check_text(value, f"{path}.{name}")
            said[name] = value
    if "method" in said:
        check_word(said["method"], METHODS, f"{path}.method")
    return said


def check_word(value: str, allowed: tuple[str, ...], path: str) -> None:
    if value not in allowed:
        raise InvalidRequest(
            f"{value!r:.40} is not a {path}", path=path, expected=", ".join(allowed)
        )


def check_text(value: str, path: str) -> None:
    if not value or len(value) > TEXT_LENGTH_MAX or not value.isprintable():
        raise InvalidRequest(
            f"{path} is empty, too long, or holds control characters",
            path=path,
            expected=f"1 to {TEXT_LENGTH_MAX} printable characters",
        )
