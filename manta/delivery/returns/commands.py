"""What comes back after a message was accepted: bounces and complaints, as commands of a shard.

A report is about a message, named by its reference, which a signature vouches for (the return path)
or which we made (the Message-ID). Where nothing names the message, it is about an address, and the
command goes to the shard of the address first. In one commit a command writes the event, the facts
on the ledger's row, and what the suppression policy asks for; Senders and Reputation are told.

**Invariant:** the same bounce counts once however often and by however many ways it comes (a mail
and a webhook, say), for the event has an id made of the message. A second report of the same
message changes only what the first could not know: that the failure is for good.

Answers say which address was suppressed; where it belongs to another shard the caller goes on
there (``returns.reporting``). A command that is repeated answers what stands, so that a
caller that died in between finishes the work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op, Push
from manta.delivery.campaign import CampaignPlan, Kind
from manta.delivery.ledger import State
from manta.delivery.outcomes import REASON_CHARACTERS_MAX, REPLY_CHARACTERS_MAX
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.returns.failures import (
    Failure,
    Sent,
    addresses_of,
    suppress_addresses,
    suppress_failed,
    whose_is,
)
from manta.errors import InvalidRequest
from manta.ids import NOBODY, MessageRef, hash64
from manta.people.aliases import living
from manta.people.consents import Unsubscribe, check_text
from manta.people.history import compact_json, rows_of, upserted
from manta.people.identities import EMAIL, compared
from manta.people.suppressions import (
    COMPLAINT,
    POLICY,
    Stop,
    Suppressing,
    Wanted,
    holder,
    standing_stops,
    suppressing,
)

ATTRIBUTED_MAX = timedelta(days=30)  # what comes of an address may be about mail this old
FUTURE_MAX = timedelta(minutes=5)  # an event cannot come from the future
# Feedback that is no person's complaint: taken back (RFC 6430), about our DKIM or DMARC (RFC 6591),
# or about a virus (RFC 5965 §7.3).
NO_COMPLAINTS = ("not-spam", "auth-failure", "virus")
_NO_MESSAGE = 0


class Suppressed(NamedTuple):
    """A suppression as it stands after the command. ``holder``: who has the address, as far as this
    shard knows; they may live elsewhere."""

    address: str
    stop: Stop
    holder: int | None = None


class Returned(NamedTuple):
    """``counted``: whether this was news. ``person``: whom it concerns, if that is known, wherever
    they live. ``suppressed``: what stands for the address, if anything."""

    counted: bool
    person: int | None = None
    suppressed: Suppressed | None = None


@dataclass(frozen=True)
class RecordBounce:
    """A message that was accepted came back. ``recipient``: whom the report names."""

    ref: MessageRef
    occurred_at: datetime
    bounce_class: str
    category: str
    diagnostic: str
    source: str
    key: str | None
    recipient: str = ""

    def decide(self, database: Database, context: Context) -> Decision:
        _check_class(self.bounce_class)
        message = _message(database, MessageRef(*self.ref), self.recipient, context.now)
        if message.bounced_at is not None or message.state == State.FAILED:
            return self._again(database, context, message)
        event_id = hash64("bounced", *message.ref)
        if _is_there(database, message, "bounced", event_id):
            return Decision(Returned(False, message.person, _standing(database, context, message)))
        done = self._suppress(database, context, message)
        said = {"category": self.category, "diagnostic": self.diagnostic, "source": self.source}
        event = _event(self, "bounced", self.bounce_class, said, message, context, event_id)
        changes = [*_noted(self, message, context), *event, *done.changes]
        pushes = (*done.pushes, _observed(self, Seen.BOUNCED, message, context))
        return Decision(_returned(True, message, done, database), tuple(changes), pushes)

    def repeat(self, database: Database, context: Context) -> Returned:
        """The answer when the key has been committed before."""
        message = _message(database, MessageRef(*self.ref), self.recipient, context.now)
        return Returned(False, message.person, _standing(database, context, message))

    def _again(self, database: Database, context: Context, message: _Message) -> Decision:
        """Of a second report only that the failure is for good is news."""
        standing = _standing(database, context, message)
        was_hard = message.bounce_class == BounceClass.HARD
        if was_hard or self.bounce_class != BounceClass.HARD:
            return Decision(Returned(False, message.person, standing))
        done = self._suppress(database, context, message)
        changes = (*_noted(self, message, context), *done.changes)
        return Decision(_returned(False, message, done, database, standing), changes, done.pushes)

    def _suppress(self, database: Database, context: Context, message: _Message) -> Suppressing:
        failure = Failure(message.sent, self.bounce_class, self.diagnostic)
        if not message.is_known and not message.is_theirs:
            return Suppressing((), (), {})
        return suppress_failed(database, context, [failure], self.source)


@dataclass(frozen=True)
class RecordComplaint:
    """The person said that a message is spam, and their provider told us (RFC 5965)."""

    ref: MessageRef
    occurred_at: datetime
    feedback_type: str
    source: str
    key: str | None
    recipient: str = ""

    def decide(self, database: Database, context: Context) -> Decision:
        message = _message(database, MessageRef(*self.ref), self.recipient, context.now)
        event_id = hash64("complained", *message.ref)
        if self.feedback_type in NO_COMPLAINTS:
            return Decision(Returned(False, message.person))
        if _is_there(database, message, "complained", event_id):
            return Decision(Returned(False, message.person, _standing(database, context, message)))
        done = self._suppress(database, context, message)
        said = {"source": self.source}
        event = _event(self, "complained", self.feedback_type, said, message, context, event_id)
        if not event and not done.changes:  # of a test, and suppressed before
            return Decision(_returned(False, message, done, database))
        pushes = (*done.pushes, _observed(self, Seen.COMPLAINED, message, context))
        return Decision(_returned(True, message, done, database), (*event, *done.changes), pushes)

    def repeat(self, database: Database, context: Context) -> Returned:
        """The answer when the key has been committed before."""
        message = _message(database, MessageRef(*self.ref), self.recipient, context.now)
        return Returned(False, message.person, _standing(database, context, message))

    def _suppress(self, database: Database, context: Context, message: _Message) -> Suppressing:
        (address,) = addresses_of(database, [message.sent])
        of_other = not message.is_known and message.sent.recipient and not message.is_theirs
        if address is None or of_other:
            return Suppressing((), (), {})
        person = whose_is(database, message.sent, address)
        evidence = f"feedback-type: {self.feedback_type}"
        stop = POLICY.after_complaint()
        wanted = [Wanted(address, person, stop, self.source, evidence)]
        return suppressing(database, context, wanted)


@dataclass(frozen=True)
class UnsubscribeByMail:
    """The person wrote to the unsubscribe address of a message (RFC 2369): it is what the link in
    that message does, of its campaign's topic, or of all where the campaign is not known.

    Answers ``ConsentChanged``. Raises ``NotFound`` where nobody has the id.
    """

    ref: MessageRef
    key: str | None

    def decide(self, database: Database, context: Context) -> Decision:
        found = database.rows(
            "SELECT c.definition FROM ledger l JOIN campaigns c ON c.campaign_id = l.campaign_id"
            " WHERE l.subscriber_id = ? AND l.message_key = ?",
            list(self.ref),
        )
        topic = CampaignPlan.from_json(found[0][0]).topic if found else None
        command = Unsubscribe(self.key, self.ref[0], self.ref[1], topic, "mail")
        return command.decide(database, context)


# -- by address, where nothing names the message ---------------------------------------------------


@dataclass(frozen=True)
class RecordBounceOf:
    """Mail to an address came back, and nobody can say which.

    Goes to the shard of the address, and to that of the person who has it, if it is another one:
    the event is the person's, the suppression stands in both.
    """

    address: str
    occurred_at: datetime
    bounce_class: str
    category: str
    diagnostic: str
    source: str
    key: str | None

    def decide(self, database: Database, context: Context) -> Decision:
        _check_class(self.bounce_class)
        message, address = _of_address(database, self.address, _at(self.occurred_at, context))
        event_id = hash64("bounced", address, self.key or self.occurred_at.isoformat())
        if _is_there(database, message, "bounced", event_id):
            return Decision(
                Returned(False, message.holder, _standing_of(database, context, message, address))
            )
        failure = Failure(message.sent, self.bounce_class, self.diagnostic)
        done = suppress_addresses(database, context, [(failure, address)], self.source)
        said = {"category": self.category, "diagnostic": self.diagnostic, "source": self.source}
        event = _event(self, "bounced", self.bounce_class, said, message, context, event_id)
        seen = _observed_of(database, self, Seen.BOUNCED, message, context) if event else ()
        return _counted_of(database, message, event, done, seen)

    def repeat(self, database: Database, context: Context) -> Returned:
        """The answer when the key has been committed before."""
        return _repeated_of(database, context, self.address)


@dataclass(frozen=True)
class RecordComplaintOf:
    """The holder of an address complained, and nobody can say about which message."""

    address: str
    occurred_at: datetime
    feedback_type: str
    source: str
    key: str | None

    def decide(self, database: Database, context: Context) -> Decision:
        message, address = _of_address(database, self.address, _at(self.occurred_at, context))
        event_id = hash64("complained", address, self.key or self.occurred_at.isoformat())
        if self.feedback_type in NO_COMPLAINTS:
            return Decision(Returned(False, message.holder))
        if _is_there(database, message, "complained", event_id):
            return Decision(
                Returned(False, message.holder, _standing_of(database, context, message, address))
            )
        evidence = f"feedback-type: {self.feedback_type}"
        wanted = Wanted(address, message.holder, POLICY.after_complaint(), self.source, evidence)
        done = suppressing(database, context, [wanted])
        said = {"source": self.source}
        event = _event(self, "complained", self.feedback_type, said, message, context, event_id)
        seen = _observed_of(database, self, Seen.COMPLAINED, message, context) if event else ()
        return _counted_of(database, message, event, done, seen)

    def repeat(self, database: Database, context: Context) -> Returned:
        """The answer when the key has been committed before."""
        return _repeated_of(database, context, self.address)


# -- what is known of a message --------------------------------------------------------------------


@dataclass(frozen=True)
class _Message:
    """``person``: who it was for, if they live here; ``holder``: the same, wherever they live.
    ``is_known``: the ledger has it (rows leave memory with age). ``is_theirs``: the recipient that
    the report names is an address of the person's."""

    sent: Sent
    person: int | None
    holder: int | None
    is_known: bool = False
    is_theirs: bool = False
    kind: str | None = None
    campaign_id: int | None = None
    state: str | None = None
    source: str = ""
    provider: str = ""
    bounced_at: datetime | None = None
    bounce_class: str | None = None
    sending_domain: str = ""

    @property
    def ref(self) -> MessageRef:
        return MessageRef(self.sent.subscriber_id, self.sent.message_key)


def _message(database: Database, ref: MessageRef, recipient: str, now: datetime) -> _Message:
    person = _living(database, ref[0])
    moved_to = living(database, ref[0])
    holder = moved_to if person is None and moved_to != ref[0] else person
    rows = database.table(
        "SELECT send_to, changed_at, kind, campaign_id, state, coalesce(source, '') AS source,"
        " coalesce(provider, '') AS provider, bounced_at, bounce_class FROM ledger"
        " WHERE subscriber_id = ? AND message_key = ?",
        list(ref),
    ).to_pylist()
    if not rows:
        sent = Sent(*ref, person, now, None, recipient)
        theirs = bool(recipient) and addresses_of(database, [sent]) == [compared(EMAIL, recipient)]
        return _Message(sent, person, holder, is_theirs=theirs)
    (row,) = rows
    sent = Sent(*ref, person, row.pop("changed_at") or now, row.pop("send_to"), recipient)
    domain = _sending_domain(database, row["campaign_id"])
    return _Message(sent, person, holder, is_known=True, sending_domain=domain, **row)


def _of_address(database: Database, given: str, at: datetime) -> tuple[_Message, str]:
    """No message, but whom it was for; and the address in its compared form."""
    check_text(given, "address")
    address = compared(EMAIL, given)
    owner = holder(database, EMAIL, address)
    person = None if owner is None else _living(database, owner)
    sent = Sent(person or NOBODY, _NO_MESSAGE, person or owner, at, None, address)
    return _Message(sent, person, person or owner), address


def _living(database: Database, subscriber_id: int) -> int | None:
    """Who this is now (through the alias of a merge), if they live here."""
    person = living(database, subscriber_id)
    there = database.rows("SELECT 1 FROM profiles WHERE subscriber_id = ?", [person])
    return person if there else None


def _sending_domain(database: Database, campaign_id: int | None) -> str:
    found = database.rows("SELECT definition FROM campaigns WHERE campaign_id = ?", [campaign_id])
    return CampaignPlan.from_json(found[0][0]).sending_domain if found else ""


def _is_there(database: Database, message: _Message, kind: str, event_id: int) -> bool:
    return message.person is not None and bool(
        database.rows(
            "SELECT 1 FROM events WHERE subscriber_id = ? AND type = ? AND event_id = ?",
            [message.person, kind, event_id],
        )
    )


def _standing(database: Database, context: Context, message: _Message) -> Suppressed | None:
    (address,) = addresses_of(database, [message.sent])
    return None if address is None else _standing_of(database, context, message, address)


def _standing_of(
    database: Database, context: Context, message: _Message, address: str
) -> Suppressed | None:
    stop = standing_stops(database, EMAIL, [address], context.now).get(address)
    return stop and Suppressed(address, stop, whose_is(database, message.sent, address))


def _repeated_of(database: Database, context: Context, given: str) -> Returned:
    message, address = _of_address(database, given, context.now)
    return Returned(False, message.holder, _standing_of(database, context, message, address))


# -- what is written -------------------------------------------------------------------------------


def _noted(command: RecordBounce, message: _Message, context: Context) -> list[Change]:
    """The bounce on the ledger's row: it moves no state."""
    if not message.is_known:
        return []
    return [
        upserted(
            "ledger",
            1,
            subscriber_id=message.ref[0],
            message_key=message.ref[1],
            bounced_at=message.bounced_at or _at(command.occurred_at, context),
            bounce_class=command.bounce_class[:REASON_CHARACTERS_MAX],
            category=command.category[:REASON_CHARACTERS_MAX] or None,
        )
    ]


def _event(
    command: Command,
    kind: str,
    item: str,
    said: dict[str, Any],
    message: _Message,
    context: Context,
    event_id: int,
) -> list[Change]:
    """A test is no part of what its person has got, and who is gone has no history. What concerns
    somebody who lives on in another shard is kept here under the name that it came by."""
    whose = message.person or (message.ref[0] if message.holder is not None else NOBODY)
    if whose == NOBODY or message.kind == Kind.TEST:
        return []
    rows = rows_of(
        "events",
        1,
        subscriber_id=whose,
        occurred_at=_at(command.occurred_at, context),
        type=kind,
        event_id=pa.array([event_id], pa.int64()),
        campaign_id=message.campaign_id,
        message_key=message.ref[1] or None,
        item=item,
        properties=compact_json(
            {name: text[:REPLY_CHARACTERS_MAX] for name, text in said.items() if text}
        ),
    )
    return [Change("events", Op.INSERT, rows)]


def _observed_of(
    database: Database, command: Command, seen: Seen, message: _Message, context: Context
) -> tuple[Push, ...]:
    """Of an address it is most likely the last message that the person got, if they got one lately;
    one that has bounced does not bounce again. It is a hint to Reputation and moves no row."""
    at = _at(command.occurred_at, context)
    rows = database.rows(
        "SELECT source, provider, campaign_id FROM ledger WHERE subscriber_id = ?"
        " AND channel = 'email' AND state = ? AND kind <> ? AND changed_at BETWEEN ? AND ?"
        " AND source IS NOT NULL AND provider IS NOT NULL AND (bounced_at IS NULL OR ?)"
        " ORDER BY changed_at DESC LIMIT 1",
        [
            message.person,
            State.ACCEPTED,
            Kind.TEST,
            at - ATTRIBUTED_MAX,
            at + FUTURE_MAX,  # other clocks
            seen is Seen.COMPLAINED,
        ],
    )
    if not rows:
        return ()
    source, provider, campaign_id = rows[0]
    domain = _sending_domain(database, campaign_id)
    last = replace(
        message,
        source=source,
        provider=provider,
        campaign_id=campaign_id,
        sending_domain=domain,
    )
    return (_observed(command, seen, last, context),)


def _observed(command: Command, seen: Seen, message: _Message, context: Context) -> Push:
    """Reputation counts by sending domain, source and provider; the ledger knows no site."""
    bounce_class, category, text = BounceClass.COMPLAINT, "", ""
    if isinstance(command, RecordBounce | RecordBounceOf):
        bounce_class, category = BounceClass(command.bounce_class), command.category
        text = command.diagnostic[:REPLY_CHARACTERS_MAX]
    observed = Observed(
        _at(command.occurred_at, context),
        seen,
        message.sending_domain,
        message.source,
        message.provider,
        "",
        message.campaign_id or 0,
        bounce_class,
        category,
        0,
        text,
    )
    return Push("reputation", "observe", ([observed],))


def _returned(
    counted: bool,
    message: _Message,
    done: Suppressing,
    database: Database,
    standing: Suppressed | None = None,
) -> Returned:
    for address, stop in done.stops.items():
        whose = whose_is(database, message.sent, address)
        return Returned(counted, message.holder, Suppressed(address, stop, whose))
    return Returned(counted, message.holder, standing)


def _counted_of(
    database: Database,
    message: _Message,
    event: list[Change],
    done: Suppressing,
    seen: tuple[Push, ...],
) -> Decision:
    """The decision on a report by address."""
    answer = _returned(bool(event or done.changes), message, done, database)
    return Decision(answer, (*event, *done.changes), (*done.pushes, *seen))


def _at(occurred_at: datetime, context: Context) -> datetime:
    return context.now if occurred_at > context.now + FUTURE_MAX else occurred_at


Command = RecordBounce | RecordComplaint | RecordBounceOf | RecordComplaintOf


def _check_class(bounce_class: str) -> None:
    allowed = [str(each) for each in BounceClass if each not in (BounceClass.NONE, COMPLAINT)]
    if bounce_class not in allowed:
        raise InvalidRequest(
            f"{bounce_class!r:.40} is no class of bounce",
            path="bounce_class",
            expected=", ".join(allowed),
        )
