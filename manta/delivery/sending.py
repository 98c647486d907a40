"""What one incarnation of a Sender decides, without I/O.

``actors/sender.py`` and the simulation drive this very class: it says what may be done next, they
do it and report what happened. A message passes

    waiting → storing → attempted → decided → known → (settled)

and each arrow that matters waits for the journal: nothing is put on the wire before its attempt is
stored (``stored``), nothing is settled before its outcome is. A message that was never attempted
may go back without a record, since the absence of an attempt is what its absence proves.

What is leased is attempted within ``fresh_s`` of the shard's check or returned; a revocation is
looked for when a burst is taken and again when it goes on the wire. What can never be delivered, or
must not be, is refused without an attempt (``refuse``).

On a crash everything here is gone. The journal has what counts (``manta.delivery.attempts``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import NamedTuple

from manta.delivery.attempts import Attempt, Entry, refs_of
from manta.delivery.lanes import Lane
from manta.delivery.leasing import LEASE_ROWS_MAX, Grant, Lease
from manta.delivery.outcomes import Outcome, OutcomeKind, expiry_reason, outcomes_table
from manta.delivery.replies import Reply, Verdict
from manta.delivery.reputation.observations import BounceClass
from manta.delivery.retry import RetryPolicy, jittered
from manta.delivery.returns.classification import Category, classify_reply
from manta.delivery.settling import Settle
from manta.ids import MessageRef


@dataclass(frozen=True)
class SendingSettings:
    """How a Sender works."""

    fresh_s: float = 5.0  # from the shard's check to DATA
    not_sent_retry_s: float = 30.0  # the connection failed; nothing was said about the message
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Phase(StrEnum):
    WAITING = "waiting"  # not attempted
    STORING = "storing"  # its attempt is on the way to the journal
    ATTEMPTED = "attempted"  # may be on the wire
    DECIDED = "decided"  # its outcome is on the way to the journal
    KNOWN = "known"  # may be settled
    SETTLING = "settling"  # on the way to the shard


@dataclass(slots=True)
class _Message:
    ref: MessageRef
    campaign_id: int
    expires_at: datetime | None
    attempts: int
    phase: Phase = Phase.WAITING
    outcome: Outcome | None = None
    revoked: bool = False


@dataclass(frozen=True)
class Wanted:
    """What a lease asks for; see ``manta.delivery.leasing.Lease``."""

    lane: Lane
    limit: int = LEASE_ROWS_MAX
    domains: tuple[str, ...] | None = None
    except_domains: tuple[str, ...] = ()
    without: tuple[int, ...] = ()
    engaged_only: bool = False


class Tried(NamedTuple):
    """What decides of a message that is refused for now: ``attempts`` before this one."""

    ref: MessageRef
    attempts: int
    expires_at: datetime | None


class Refusal(NamedTuple):
    """Why messages fail without an attempt, in our own words."""

    reason: str
    bounce_class: BounceClass
    category: str


@dataclass
class OpenLease:
    """A lease from the moment it is wanted until the shard has settled all of it."""

    lease_id: int
    shard: int
    wanted: Wanted
    sequence: int = 0  # of its "lease opened"; 0: not stored yet
    grant: Grant | None = None
    checked_s: float = 0.0
    messages: dict[MessageRef, _Message] = field(default_factory=dict)
    settling: bool = False
    revocations: list[tuple[int | None, frozenset[MessageRef]]] = field(default_factory=list)

    def revoke(self, campaign_id: int | None, refs: frozenset[MessageRef]) -> int:
        """Mark the messages concerned; how many of them had not gone out."""
        held = 0
        for message in self.messages.values():
            if message.campaign_id == campaign_id or message.ref in refs:
                message.revoked = True
                held += message.phase in (Phase.WAITING, Phase.STORING)
        return held


@dataclass(eq=False)
class Burst:
    """Messages whose attempts are stored together; none goes out before ``is_stored``."""

    lease_id: int
    refs: tuple[MessageRef, ...]
    is_stored: bool = False
    is_refused: bool = False


@dataclass
class _InFlight:
    leases: list[OpenLease]
    bursts: list[Burst]
    outcomes: list[tuple[int, Outcome]]


class Sending:
    """One incarnation. ``tail`` is its EPOCH entry's number, ``low_water`` of the ``History``."""

    def __init__(
        self,
        sender: str,
        epoch: int,
        tail: int,
        low_water: int,
        settings: SendingSettings | None = None,
    ) -> None:
        self.sender, self.epoch = sender, epoch
        self.settings = settings or SendingSettings()
        self.leases: dict[int, OpenLease] = {}
        self._tail = tail
        self._unresolved: int | None = low_water
        self._opening: list[OpenLease] = []
        self._storing: list[Burst] = []
        self._decided: list[tuple[int, Outcome]] = []
        self._in_flight: _InFlight | None = None
        self._low_water_wanted = False

    # -- the journal ---------------------------------------------------------------------------

    @property
    def tail(self) -> int:
        """The last entry that this incarnation has stored."""
        return self._tail

    @property
    def low_water(self) -> int:
        """The first entry that is still needed."""
        opened = [lease.sequence for lease in self.leases.values() if lease.sequence]
        if self._unresolved is not None:
            opened.append(self._unresolved)
        return min([*opened, self._tail + 1])

    def resolved(self) -> None:
        """Every shard has committed the verdicts on earlier incarnations."""
        self._unresolved = None

    def next_entry(self) -> Entry | None:
        """All that waits to be stored, or None. One entry is on its way at a time."""
        waiting = self._opening or self._storing or self._decided or self._low_water_wanted
        if self._in_flight is not None or not waiting:
            return None
        self._low_water_wanted = False
        flight = _InFlight(self._opening, self._storing, self._decided)
        self._opening, self._storing, self._decided = [], [], []
        self._in_flight = flight
        return Entry(
            self.low_water,
            tuple(lease.lease_id for lease in flight.leases),
            tuple(Attempt(burst.lease_id, *ref) for burst in flight.bursts for ref in burst.refs),
            tuple(flight.outcomes),
        )

    def want_low_water(self) -> None:
        """Store an entry even if nothing waits: only what a stored low water names may go."""
        self._low_water_wanted = True

    def stored(self, sequence: int) -> None:
        """The entry is durable under this number."""
        flight = self._landed()
        self._tail = sequence
        for lease in flight.leases:
            lease.sequence = sequence
        for burst in flight.bursts:
            burst.is_stored = True
            for message in self._messages(burst):
                message.phase = Phase.ATTEMPTED
        for lease_id, outcome in flight.outcomes:
            self._message(lease_id, outcome).phase = Phase.KNOWN

    def refused(self) -> None:
        """The entry was certainly not stored: its bursts are not sent, the rest is tried again."""
        flight = self._landed()
        self._opening = flight.leases + self._opening
        self._decided = flight.outcomes + self._decided
        for burst in flight.bursts:
            burst.is_refused = True
            for message in self._messages(burst):
                message.phase = Phase.WAITING

    def _landed(self) -> _InFlight:
        flight = self._in_flight
        assert flight is not None, "no entry is on its way"
        self._in_flight = None
        return flight

    # -- leases ----------------------------------------------------------------------------------

    def open_lease(self, lease_id: int, shard: int, wanted: Wanted) -> None:
        """Want a lease. ``lease_id`` is random and never used again."""
        lease = OpenLease(lease_id, shard, wanted)
        self.leases[lease_id] = lease
        self._opening.append(lease)

    def is_opened(self, lease_id: int) -> bool:
        """Whether "lease opened" is stored, so that the shard may be asked."""
        return self.leases[lease_id].sequence > 0

    def lease_command(self, lease_id: int) -> Lease:
        """The command to ask the shard with, until it is answered."""
        lease = self.leases[lease_id]
        assert lease.sequence, "asked before `lease opened` was stored"
        wanted = lease.wanted
        return Lease(
            lease_id,
            self.sender,
            self.epoch,
            lease.sequence,
            wanted.lane.source,
            wanted.lane.site,
            wanted.domains,
            wanted.limit,
            (wanted.lane.pool,),
            wanted.lane.provider,
            wanted.except_domains,
            wanted.without,
            wanted.engaged_only,
        )

    def granted(self, lease_id: int, grant: Grant, asked_s: float, now: datetime) -> None:
        """The shard's answer; ``asked_s`` is when the answered call left, on the own clock."""
        lease = self.leases[lease_id]
        lease.grant, lease.checked_s = grant, asked_s
        rows = grant.rows
        columns = zip(
            refs_of(rows),
            rows.column("campaign_id").to_pylist(),
            rows.column("expires_at").to_pylist(),
            rows.column("attempts").to_pylist(),
            strict=True,
        )
        for ref, campaign_id, expires_at, attempts in columns:
            lease.messages[ref] = _Message(ref, campaign_id, expires_at, attempts)
        for subscriber_id, message_key in grant.withheld:
            ref = MessageRef(subscriber_id, message_key)
            message = _Message(ref, 0, None, 0)
            lease.messages[ref] = message
            self._give_back(message, now, "may no longer be sent")
        for revocation in lease.revocations:
            lease.revoke(*revocation)
        self._close_if_done(lease)

    def abandon(self, lease_id: int) -> None:
        """The shard has refused the lease for good: it holds nothing."""
        self.leases.pop(lease_id)

    # -- bursts ----------------------------------------------------------------------------------

    def take_burst(self, lease_id: int, limit: int, now_s: float, now: datetime) -> Burst | None:
        """The next messages to attempt, or None; their attempts go with the next entry."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return None
        refs: list[MessageRef] = []
        for message in lease.messages.values():
            if len(refs) == limit:
                break
            if message.phase is Phase.WAITING and self._may_go(lease, message, now_s, now):
                message.phase = Phase.STORING
                refs.append(message.ref)
        if not refs:
            return None
        burst = Burst(lease_id, tuple(refs))
        self._storing.append(burst)
        return burst

    def on_the_wire(self, burst: Burst, now_s: float, now: datetime) -> list[MessageRef]:
        """The last look before DATA: those of a stored burst that go out now."""
        if burst.is_refused:
            return []
        assert burst.is_stored, "on the wire before the attempts were stored"
        lease, going = self.leases[burst.lease_id], []
        for message in self._messages(burst):
            reason = self._why_not(lease, message, now_s)
            if not reason:
                going.append(message.ref)
                continue
            # Its attempt is on record, so that it was not made has to be put on record too.
            outcome = Outcome(*message.ref, OutcomeKind.RETURNED, now, reason)
            self.decide(burst.lease_id, outcome)
        return going

    def tried(self, lease_id: int, ref: MessageRef) -> Tried:
        message = self.leases[lease_id].messages[ref]
        return Tried(ref, message.attempts, message.expires_at)

    def decide(self, lease_id: int, outcome: Outcome) -> None:
        """What became of an attempted message; it is settled once the next entry is stored."""
        message = self._message(lease_id, outcome)
        assert message.phase is Phase.ATTEMPTED, f"an outcome for a message that is {message.phase}"
        message.outcome, message.phase = outcome, Phase.DECIDED
        self._decided.append((lease_id, outcome))

    def revoke(self, campaign_id: int | None, refs: Iterable[tuple[int, int]]) -> int:
        """Withdraw a campaign, or single messages. How many are held back by it."""
        wanted = frozenset(MessageRef(*ref) for ref in refs)
        for lease in self.leases.values():
            if lease.grant is None:  # the answer on its way may be older than this
                lease.revocations.append((campaign_id, wanted))
        return sum(lease.revoke(campaign_id, wanted) for lease in self.leases.values())

    # -- settling ----------------------------------------------------------------------------------

    def is_spent(self, lease_id: int) -> bool:
        """Whether the outcome of every message of the lease is stored: nothing more will come."""
        lease = self.leases.get(lease_id)
        return lease is None or all(
            message.phase in (Phase.KNOWN, Phase.SETTLING) for message in lease.messages.values()
        )

    def next_settle(self, lease_id: int, now_s: float, now: datetime) -> Settle | None:
        """What can be settled of a lease now, or None; one is on its way at a time.

        Messages that were not attempted in time go back with it.
        """
        lease = self.leases.get(lease_id)
        if lease is None or lease.settling:
            return None
        outcomes = []
        for message in lease.messages.values():
            if message.phase is Phase.WAITING:
                self._may_go(lease, message, now_s, now)
            if message.phase is Phase.KNOWN:
                assert message.outcome is not None
                message.phase = Phase.SETTLING
                outcomes.append(message.outcome)
        if not outcomes:
            return None
        lease.settling = True
        table = outcomes_table(outcomes)
        return Settle(lease_id, self.sender, self.epoch, table, self._tail)

    def settled(self, lease_id: int) -> None:
        """The shard has committed the settle that was on its way."""
        lease = self.leases[lease_id]
        lease.settling = False
        for ref in [m.ref for m in lease.messages.values() if m.phase is Phase.SETTLING]:
            del lease.messages[ref]
        self._close_if_done(lease)

    def settle_failed(self, lease_id: int) -> None:
        """It may or may not have been committed: the same outcomes go again, harmlessly."""
        lease = self.leases[lease_id]
        lease.settling = False
        for message in lease.messages.values():
            if message.phase is Phase.SETTLING:
                message.phase = Phase.KNOWN

    def give_back(self, lease_id: int, now: datetime, reason: str) -> None:
        """Return all that is not attempted yet: the lane is closed, the Sender shuts down."""
        for message in self.leases[lease_id].messages.values():
            if message.phase is Phase.WAITING:
                self._give_back(message, now, reason)

    def refuse(
        self,
        lease_id: int,
        refs: Iterable[MessageRef],
        refusal: Refusal,
        now_s: float,
        now: datetime,
    ) -> list[MessageRef]:
        """Fail messages that wait, without an attempt; those that did fail.

        Nothing of it is in the journal: after a crash they were not attempted, go back, and fail
        the next time.
        """
        lease, failed = self.leases[lease_id], []
        for ref in refs:
            message = lease.messages[ref]
            if message.phase is Phase.WAITING and self._may_go(lease, message, now_s, now):
                message.outcome = Outcome(
                    *ref,
                    OutcomeKind.FAILED,
                    now,
                    refusal.reason,
                    reply=refusal.reason,
                    source=lease.wanted.lane.source,
                    bounce_class=str(refusal.bounce_class),
                    category=refusal.category,
                )
                message.phase = Phase.KNOWN
                failed.append(ref)
        return failed

    # -- inside ------------------------------------------------------------------------------------

    def _may_go(self, lease: OpenLease, message: _Message, now_s: float, now: datetime) -> bool:
        """Whether a waiting message may be attempted; if not, its outcome is known at once."""
        if message.expires_at is not None and message.expires_at <= now:
            reason = expiry_reason(message.attempts)
            message.outcome = Outcome(*message.ref, OutcomeKind.EXPIRED, now, reason)
            message.phase = Phase.KNOWN
            return False
        reason = self._why_not(lease, message, now_s)
        if reason:
            self._give_back(message, now, reason)
        return not reason

    def _why_not(self, lease: OpenLease, message: _Message, now_s: float) -> str:
        if message.revoked:
            return "withdrawn before it was sent"
        if now_s - lease.checked_s > self.settings.fresh_s:
            return "not attempted in time"
        return ""

    def _give_back(self, message: _Message, now: datetime, reason: str) -> None:
        message.outcome = Outcome(*message.ref, OutcomeKind.RETURNED, now, reason)
        message.phase = Phase.KNOWN

    def _message(self, lease_id: int, outcome: Outcome) -> _Message:
        ref = MessageRef(outcome.subscriber_id, outcome.message_key)
        return self.leases[lease_id].messages[ref]

    def _messages(self, burst: Burst) -> list[_Message]:
        messages = self.leases[burst.lease_id].messages
        return [messages[ref] for ref in burst.refs]

    def _close_if_done(self, lease: OpenLease) -> None:
        if lease.grant is not None and not lease.messages:
            del self.leases[lease.lease_id]


def outcome_of(
    tried: Tried,
    reply: Reply,
    source: str,
    now: datetime,
    random: Random,
    settings: SendingSettings,
) -> Outcome:
    """The outcome that a reply means, with the time of the next try where there is one.

    What is refused for now, and would be tried again only when it has expired, expires.
    """
    ref, reason = tried.ref, reply.reason
    if reply.verdict is Verdict.NOT_SENT:
        wait_s = jittered(settings.not_sent_retry_s, settings.retry.jitter, random)
        due_at = now + timedelta(seconds=wait_s)
        kind = OutcomeKind.RETURNED
        return Outcome(*ref, kind, now, reason, reply.code, reply.text, source, due_at)
    kind = OutcomeKind(reply.verdict.value)
    if kind not in (OutcomeKind.DEFERRED, OutcomeKind.FAILED) or not reply.code:
        return Outcome(*ref, kind, now, reason, reply.code, reply.text, source)
    said = classify_reply(reply.code, reply.text)
    if said.category != Category.UNCATEGORIZED:
        reason = said.words
    next_at: datetime | None = None
    if kind is OutcomeKind.DEFERRED:
        attempts, is_greylisted = tried.attempts + 1, said.category == Category.GREYLISTED
        wait = settings.retry.wait_s(attempts, random, is_greylisted=is_greylisted)
        next_at = None if wait is None else now + timedelta(seconds=wait)
        if next_at is None or (tried.expires_at is not None and next_at >= tried.expires_at):
            kind, next_at, reason = OutcomeKind.EXPIRED, None, expiry_reason(attempts, reason)
    return Outcome(
        *ref,
        kind,
        now,
        reason,
        reply.code,
        reply.text,
        source,
        next_at,
        str(said.bounce_class),
        said.category,
    )
