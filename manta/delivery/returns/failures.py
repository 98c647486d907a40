"""What failed messages say about addresses: the suppression policy, applied to the ledger.

Whoever brings the news (the SMTP dialogue, a bounce mail, a webhook), it comes here with the
message it is about, and the same policy answers in the same commit. Two questions have to be
settled first:

- **Which address was it?** The ledger names people, and people change their address. An address
  that its person took after the message went out is not the one that failed. What a report itself
  says about the recipient is evidence only: it chooses among the person's own addresses and can
  bring in no other.
- **Was it the fifth in a row?** Soft failures are counted in the ledger, backwards from the message
  that failed, over messages that went to the same address; one that was accepted and stayed so ends
  the row, failures that are not about the address are passed over.

A test went to an address of its own, so that one is suppressed and its person untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from manta.command import Context, Database
from manta.delivery.ledger import State
from manta.delivery.reputation.observations import BounceClass
from manta.people.consents import among, among_rows
from manta.people.identities import CONFIRMED, EMAIL, compared
from manta.people.suppressions import (
    POLICY,
    SoftRun,
    Stop,
    Suppressing,
    Wanted,
    holder,
    suppressing,
)

IN_BAND = "smtp"  # the source of suppressions that the SMTP dialogue itself caused


class Sent(NamedTuple):
    """A message that went out ``at`` an instant. ``person``: who it was for; ``send_to``: of a
    test; ``recipient``: whom a report names."""

    subscriber_id: int
    message_key: int
    person: int | None
    at: datetime
    send_to: str | None = None
    recipient: str = ""


class Failure(NamedTuple):
    sent: Sent
    bounce_class: str
    evidence: str


class Refusal(NamedTuple):
    """A message that was refused in the SMTP dialogue; ``expired``: refused for now, until its time
    was over."""

    subscriber_id: int
    message_key: int
    bounce_class: str
    reply: str
    expired: bool = False


def suppress_refused(
    database: Database, context: Context, refusals: Sequence[Refusal]
) -> Suppressing:
    """The same for messages that are being settled: they went out since they were leased."""
    told = [
        refusal
        for refusal in refusals
        if refusal.bounce_class == BounceClass.SOFT
        or (refusal.bounce_class == BounceClass.HARD and not refusal.expired)
    ]
    if not told:
        return Suppressing((), (), {})
    rows = database.rows(
        "SELECT subscriber_id, message_key, send_to, changed_at FROM ledger"
        f" WHERE {among_rows([refusal.subscriber_id for refusal in told])}",
    )
    leased = {(row[0], row[1]): row[2:] for row in rows}
    failures = []
    for subscriber_id, message_key, bounce_class, reply, _ in told:
        send_to, at = leased[subscriber_id, message_key]
        sent = Sent(subscriber_id, message_key, subscriber_id, at or context.now, send_to)
        failures.append(Failure(sent, bounce_class, reply))
    return suppress_failed(database, context, failures, IN_BAND)


def suppress_failed(
    database: Database, context: Context, failures: Sequence[Failure], source: str
) -> Suppressing:
    """The suppressions that the policy asks for after these failures."""
    failures = [f for f in failures if f.bounce_class in (BounceClass.HARD, BounceClass.SOFT)]
    if not failures:
        return Suppressing((), (), {})
    addresses = addresses_of(database, [failure.sent for failure in failures])
    told = [(f, a) for f, a in zip(failures, addresses, strict=True) if a is not None]
    return suppress_addresses(database, context, told, source)


def suppress_addresses(
    database: Database, context: Context, failures: Sequence[tuple[Failure, str]], source: str
) -> Suppressing:
    """The same for failures whose address (compared form) is known."""
    soft = [(f.sent, address) for f, address in failures if f.bounce_class == BounceClass.SOFT]
    runs = iter(_soft_runs(database, soft))
    wanted = []
    for failure, address in failures:
        stop: Stop | None = None
        if failure.bounce_class == BounceClass.HARD:
            stop = POLICY.after_hard()
        elif failure.bounce_class == BounceClass.SOFT:
            stop = POLICY.after_soft(next(runs), context.now)
        if stop is not None:
            whose = whose_is(database, failure.sent, address)
            wanted.append(Wanted(address, whose, stop, source, failure.evidence))
    return suppressing(database, context, wanted)


def whose_is(database: Database, sent: Sent, address: str) -> int | None:
    """Who has the address: of a test it is whoever gets it."""
    return holder(database, EMAIL, address) if sent.send_to else sent.person


def addresses_of(database: Database, messages: Sequence[Sent]) -> list[str | None]:
    """The address that each message went to, in its compared form; ``None``: it cannot be told."""
    people = sorted({m.person for m in messages if m.person is not None and not m.send_to})
    profiles = {}
    if people:
        profiles = {
            person: (compared(EMAIL, email or ""), updated_at)
            for person, email, updated_at in database.rows(
                f"SELECT subscriber_id, email, updated_at FROM profiles WHERE {among(people)}"
            )
        }
    found: list[str | None] = []
    for message in messages:
        if message.send_to:
            found.append(compared(EMAIL, message.send_to))
        elif message.person not in profiles:
            found.append(None)
        else:
            found.append(_own_address(database, message, *profiles[message.person]))
    return found


def _own_address(
    database: Database, message: Sent, present: str, updated_at: datetime | None
) -> str | None:
    named = compared(EMAIL, message.recipient)
    unchanged = updated_at is None or updated_at <= message.at
    if present and (named == present or (not named and unchanged)):
        return present
    claimed = dict(
        database.rows(
            "SELECT value, claimed_at FROM identities"
            " WHERE subscriber_id = ? AND kind = ? AND state = ?",
            [message.person, EMAIL, CONFIRMED],
        )
    )
    if named in claimed:
        return named
    earlier = [(at, value) for value, at in claimed.items() if at and at <= message.at]
    if present and (unchanged or present not in claimed or claimed[present] is None):
        return present
    if any(value == present for _, value in earlier):
        return present
    return max(earlier)[1] if earlier else None


class _Earlier(NamedTuple):
    subscriber_id: int
    message_key: int
    at: datetime
    stayed: bool  # accepted, and no bounce has come
    bounce_class: str | None


def _soft_runs(database: Database, soft: Sequence[tuple[Sent, str]]) -> list[SoftRun]:
    """The row of soft failures that ends with each of these messages."""
    if not soft:
        return []
    rows = database.rows(
        "SELECT subscriber_id, message_key, changed_at, state = ? AND bounced_at IS NULL,"
        f" bounce_class FROM ledger WHERE {among_rows([sent.subscriber_id for sent, _ in soft])}"
        " AND channel = 'email' AND send_to IS NULL AND state IN (?, ?, ?)"
        " ORDER BY changed_at DESC",
        [State.ACCEPTED, State.ACCEPTED, State.FAILED, State.EXPIRED],
    )
    of: dict[int, list[_Earlier]] = {}
    for row in rows:
        of.setdefault(row[0], []).append(_Earlier(*row))
    return [_run(database, sent, address, of.get(sent.subscriber_id, [])) for sent, address in soft]


def _run(database: Database, sent: Sent, address: str, rows: Sequence[_Earlier]) -> SoftRun:
    times = [sent.at]
    for row in rows:
        if row.message_key == sent.message_key or row.at > sent.at:
            continue
        if row.stayed:
            break
        if row.bounce_class == BounceClass.SOFT:
            times.append(row.at)
    if len(times) >= POLICY.soft_messages:  # then it is worth asking since when
        since = database.rows(
            "SELECT claimed_at FROM identities WHERE kind = ? AND value = ?", [EMAIL, address]
        )
        if since and since[0][0] is not None:
            times = [at for at in times if at >= since[0][0]] or [sent.at]
    return SoftRun(len(times), max(times) - min(times))
