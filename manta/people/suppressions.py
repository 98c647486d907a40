"""Suppressions: addresses to which nothing is sent, each with cause, source, evidence and end.

A suppression is per channel and address, whoever has it. It is kept in the shard of the address
and, since addresses are checked where their person lives, in the person's shard too; the answer of
each command names who has the address, and its caller goes on to the other shard with the same
command (``returns.reporting``). A crash between the two is mended by the caller's retry: a
repeated command names the person again.

**Policy.** A hard bounce suppresses at once and for ever; a complaint too, for marketing and
transactional mail alike; only an operator lifts them. Soft failures suppress for 30 days when five
messages in a row failed softly over at least three days, with none in between that was accepted and
stayed so; when the 30 days are over the next message decides: one more soft failure suppresses
again. Failures that are about us (block) or about the message (size, content) never count against
an address.

**Invariant:** a suppression is never weakened but by lifting: its end only moves later, and its
cause only becomes a graver one (``GRAVITY``). The push that tells Senders is a hint; the check at
lease time makes it certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op, Push
from manta.errors import InvalidRequest
from manta.ids import NOBODY
from manta.people.consents import (
    CHANNELS,
    TEXT_LENGTH_MAX,
    address_kind,
    among,
    check_text,
    check_word,
    revocations,
)
from manta.people.history import compact_json, recorded, rows_of, upserted
from manta.people.identities import EMAIL, compared
from manta.privacy.hashes import MARK, erased_among
from manta.schema import SUPPRESSIONS

HARD_BOUNCE = "hard_bounce"
SOFT_BOUNCES = "soft_bounces"
COMPLAINT = "complaint"
MANUAL = "manual"
UNSUBSCRIBED = "unsubscribed"  # stops marketing only (``manta.delivery.campaign``)
SUNSET = "sunset"  # so does this: they have not reacted for long (``manta.people.sunset``)
# What a person's own act lifts: they want mail again. Never a complaint or a hard bounce.
LIFTED_BY_CONSENT = (UNSUBSCRIBED, SUNSET)

# Of two causes for one address the graver one is kept. Causes that operators name themselves, and
# imported ones, are as grave as a manual one.
GRAVITY = {SUNSET: -1, UNSUBSCRIBED: 0, SOFT_BOUNCES: 1, MANUAL: 2, HARD_BOUNCE: 3, COMPLAINT: 4}


MANY_MAX = 1_000  # addresses of one command


def topic_channel(channel: str, topic: str) -> str:
    """The channel of a suppression that stops one topic only: ``email/news``."""
    return f"{channel}/{topic}"


class Stop(NamedTuple):
    """Why an address gets nothing, and until when (``None``: for ever)."""

    reason: str
    expires_at: datetime | None = None


class Row(NamedTuple):
    """A suppression of a list. ``address`` in its compared form."""

    address: str
    reason: str
    source: str
    evidence: str = ""
    expires_at: datetime | None = None


class SoftRun(NamedTuple):
    """Messages to one address that failed softly one after the other, the last one included."""

    messages: int
    span: timedelta  # from the first to the last


@dataclass(frozen=True)
class SuppressionPolicy:
    soft_messages: int = 5
    soft_span: timedelta = timedelta(days=3)
    soft_lasts: timedelta = timedelta(days=30)

    def after_hard(self) -> Stop:
        return Stop(HARD_BOUNCE)

    def after_complaint(self) -> Stop:
        return Stop(COMPLAINT)

    def after_soft(self, run: SoftRun, now: datetime) -> Stop | None:
        """``None``: not yet."""
        if run.messages < self.soft_messages or run.span < self.soft_span:
            return None
        return Stop(SOFT_BOUNCES, now + self.soft_lasts)


POLICY = SuppressionPolicy()


def combined(standing: Stop | None, new: Stop) -> Stop:
    """What holds when both are known: the later end, and the graver cause unless it ends sooner.

    Soft bounces are a cause for some days only, so what outlasts them takes their place.
    """
    if standing is None:
        return new
    if _ends_before(new, standing):
        return standing
    graver = _gravity(new.reason) > _gravity(standing.reason)
    outlasts = standing.reason == SOFT_BOUNCES and _ends_before(standing, new)
    reason = new.reason if graver or outlasts else standing.reason
    return Stop(reason, new.expires_at)


def _gravity(reason: str) -> int:
    return GRAVITY.get(reason, GRAVITY[MANUAL])


def _ends_before(one: Stop, other: Stop) -> bool:
    if one.expires_at is None:
        return False
    return other.expires_at is None or one.expires_at < other.expires_at


# -- the commands ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuppressionChanged:
    """``subscriber_id``: who has the address. If that person's shard is another one, the same
    command has to be executed there as well: addresses are checked in the person's shard."""

    changed: bool
    subscriber_id: int | None


@dataclass(frozen=True)
class Suppress:
    """Never send to this address on this channel (until ``expires_at``, if given).

    A standing suppression is not weakened, see ``combined``.
    """

    key: str | None
    channel: str
    address: str
    reason: str  # hard_bounce | complaint | manual | unsubscribed | ...
    source: str
    evidence: str | None = None
    expires_at: datetime | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        check_word(self.channel, CHANNELS, "channel")
        for name in ("address", "reason", "source"):
            check_text(getattr(self, name), name)
        address = compared(address_kind(self.channel), self.address)
        person = holder(database, self.channel, address)
        stop = Stop(self.reason, self.expires_at)
        wanted = Wanted(address, person, stop, self.source, self.evidence or "")
        done = suppressing(database, context, [wanted], self.channel)
        return Decision(SuppressionChanged(bool(done.changes), person), done.changes, done.pushes)

    def repeat(self, database: Database, context: Context) -> SuppressionChanged:
        """The answer when the key has been committed before: who has the address."""
        return _unchanged(self, database)


@dataclass(frozen=True)
class ManyChanged:
    """``holders``: who has each of the addresses that somebody has; see ``SuppressionChanged``."""

    changed: int
    holders: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SuppressMany:
    """``Suppress`` for a whole list of e-mail addresses, as of an import; each address once."""

    key: str | None
    rows: tuple[Row, ...]

    def decide(self, database: Database, context: Context) -> Decision:
        holders = self._holders(database)
        wanted = [
            Wanted(
                row.address,
                holders.get(row.address),
                Stop(row.reason, row.expires_at),
                row.source,
                row.evidence,
            )
            for row in self.rows
        ]
        done = suppressing(database, context, wanted)
        changed = done.changes[0].rows.num_rows if done.changes else 0
        answer = ManyChanged(changed, tuple(holders.items()))
        return Decision(answer, done.changes, done.pushes)

    def repeat(self, database: Database, context: Context) -> ManyChanged:
        """The answer when the key has been committed before: who has the addresses."""
        return ManyChanged(0, tuple(self._holders(database).items()))

    def _holders(self, database: Database) -> dict[str, int]:
        if not 0 < len(self.rows) <= MANY_MAX:
            raise InvalidRequest(
                f"{len(self.rows)} suppressions", path="rows", expected=f"1 to {MANY_MAX:,}"
            )
        return dict(
            database.rows(
                "SELECT value, subscriber_id FROM identities"
                " WHERE kind = ? AND value IN (SELECT unnest(?::VARCHAR[]))",
                [EMAIL, [row.address for row in self.rows]],
            )
        )


@dataclass(frozen=True)
class LiftSuppression:
    """Let mail to the address pass again, on the channel with all its topics (``topic_channel``).
    Consent is another matter and stays as it is.

    ``source`` says who lifts it and ``why`` for what reason; both stay in the history of the
    person, or of nobody where nobody has the address.
    """

    key: str | None
    channel: str
    address: str
    source: str
    why: str = ""
    only: tuple[str, ...] = ()  # lift it only if its reason is one of these; any if empty

    def decide(self, database: Database, context: Context) -> Decision:
        check_word(self.channel, CHANNELS, "channel")
        check_text(self.source, "source")
        if self.why:
            check_text(self.why, "why")
        address = compared(address_kind(self.channel), self.address)
        if address.startswith(MARK):
            raise InvalidRequest(
                "what an erasure left is lifted by the person alone",
                path="address",
                expected="a confirmed double opt-in",
            )
        person = holder(database, self.channel, address)
        standing = database.rows(
            "SELECT channel, reason FROM suppressions WHERE address = ?"
            " AND (channel = ? OR starts_with(channel, ? || '/')) ORDER BY channel",
            [address, self.channel, self.channel],
        )
        standing = [row for row in standing if not self.only or row[1] in self.only]
        if not standing:
            return Decision(SuppressionChanged(False, person))
        changes: list[Change] = []
        (whose,) = _historians(database, [person])
        for channel, reason in standing:
            gone = rows_of("suppressions", 1, channel=channel, address=address)
            changes.append(Change(SUPPRESSIONS.name, Op.DELETE, gone))
            said = {
                "channel": channel,
                "address": address,
                "old": reason,
                "new": None,
                "source": self.source,
                "why": self.why or None,
            }
            if whose is not None:
                people = pa.array([whose], pa.int64())
                changes.append(
                    recorded("suppression_changed", people, said, context.now, context.random)
                )
        return Decision(SuppressionChanged(True, person), tuple(changes))

    def repeat(self, database: Database, context: Context) -> SuppressionChanged:
        """The answer when the key has been committed before: who has the address."""
        return _unchanged(self, database)


def _unchanged(command: Suppress | LiftSuppression, database: Database) -> SuppressionChanged:
    address = compared(address_kind(command.channel), command.address)
    return SuppressionChanged(False, holder(database, command.channel, address))


# -- what other decisions use ----------------------------------------------------------------------


class Wanted(NamedTuple):
    """A suppression that somebody has cause for. ``address`` in its compared form; ``person`` has
    it, as far as this shard knows."""

    address: str
    person: int | None
    stop: Stop
    source: str
    evidence: str = ""


class Suppressing(NamedTuple):
    """``stops``: what holds for each address afterwards."""

    changes: tuple[Change, ...]
    pushes: tuple[Push, ...]
    stops: dict[str, Stop]


def suppressing(
    database: Database, context: Context, wanted: Sequence[Wanted], channel: str = "email"
) -> Suppressing:
    """The changes and pushes of suppressions, as parts of some command's decision."""
    erased = erased_among(database, context.settings, [want.address for want in wanted], channel)
    # News about an address that nobody has since its person was erased would bring it back.
    wanted = [want for want in wanted if want.person is not None or want.address not in erased]
    if not wanted:
        return Suppressing((), (), {})
    before = standing_stops(database, channel, [want.address for want in wanted], context.now)
    stops, news = dict(before), {}
    for want in wanted:
        new = combined(stops.get(want.address), want.stop)
        if new != stops.get(want.address):
            stops[want.address] = new
            news[want.address] = want
    if not news:
        return Suppressing((), (), stops)
    changed = list(news.values())
    change = upserted(
        SUPPRESSIONS.name,
        len(changed),
        channel=channel,
        address=pa.array([want.address for want in changed]),
        reason=pa.array([stops[want.address].reason for want in changed]),
        source=pa.array([want.source for want in changed]),
        evidence=pa.array([want.evidence[:TEXT_LENGTH_MAX] or None for want in changed]),
        created_at=context.now,
        expires_at=pa.array([stops[want.address].expires_at for want in changed], _INSTANT),
    )
    history = _history(database, context, changed, before, channel)
    people = sorted({want.person for want in changed if want.person is not None})
    pushes = revocations(database, people, channel, marketing_only=False)
    return Suppressing((change, *history), pushes, stops)


def standing_stops(
    database: Database, channel: str, addresses: Iterable[str], now: datetime | None = None
) -> dict[str, Stop]:
    """The suppressions of these addresses (compared forms): those that hold at ``now``, or all."""
    found = database.rows(
        "SELECT address, reason, expires_at FROM suppressions"
        " WHERE address IN (SELECT unnest(?::VARCHAR[])) AND channel = ?"
        " AND (expires_at IS NULL OR expires_at > ? OR ? IS NULL)",
        [sorted(set(addresses)), channel, now, now],
    )
    return {address: Stop(reason, expires_at) for address, reason, expires_at in found}


def holder(database: Database, channel: str, address: str) -> int | None:
    """Who has this address (in its compared form), as far as this shard knows."""
    found = database.rows(
        "SELECT subscriber_id FROM identities WHERE kind = ? AND value = ?",
        [address_kind(channel), address],
    )
    return int(found[0][0]) if found else None


_INSTANT = pa.timestamp("us")


def _history(
    database: Database,
    context: Context,
    changed: Sequence[Wanted],
    before: dict[str, Stop],
    channel: str,
) -> list[Change]:
    people = _historians(database, [want.person for want in changed])
    told = [(who, want) for who, want in zip(people, changed, strict=True) if who is not None]
    if not told:
        return []
    properties = [
        compact_json(
            {
                "channel": channel,
                "address": want.address,
                "old": before[want.address].reason if want.address in before else None,
                "new": want.stop.reason,
                "source": want.source,
            }
        )
        for _, want in told
    ]
    return [
        recorded(
            "suppression_changed",
            pa.array([who for who, _ in told], pa.int64()),
            pa.array(properties),
            context.now,
            context.random,
        )
    ]


def _historians(database: Database, people: Sequence[int | None]) -> list[int | None]:
    """In whose history each change stands: the person's, if they live here (it lies there alone),
    or nobody's where nobody has the address."""
    known = sorted({person for person in people if person is not None})
    here = set()
    if known:
        here = {
            person
            for (person,) in database.rows(
                f"SELECT subscriber_id FROM profiles WHERE {among(known)}"
            )
        }
    return [NOBODY if who is None else who if who in here else None for who in people]
