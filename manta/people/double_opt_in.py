"""Double opt-in: a request, a mail to the address, and the answer of whoever reads it.

``RequestConsent`` is what anybody may ask in anybody's name, so it gives nothing away: it makes a
consent *pending* and says whether a confirmation mail is due; ``ConfirmConsents`` is the answer,
on a page behind the mail's signed link, and makes *subscribed* what the page had shown. The proof
of both steps stays with the consent.

- A mail is named by the instant of its request (``occurrence``). Within ``MAIL_GAP`` every further
  request names the same one, and enqueueing it again sends nothing, so a crash between the commit
  and the mail is mended by the next request, and nobody is flooded.
- Who is subscribed already gets no mail, and the caller's answer is the same.
- A topic with single opt-in subscribes at once, but not whoever has unsubscribed: coming back
  always takes the person's own answer to a mail.
- A pending consent takes the place of an earlier ``unsubscribed`` (``before`` in its proof). It
  gives no more right than that one: no file overrules either, before or after its end.

A confirmation lifts what stops marketing only (``suppressions.LIFTED_BY_CONSENT``) and the mark of
an erasure; a complaint or a hard bounce stays. Such an address gets no confirmation mail either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from manta.clock import as_text, parse_instant
from manta.command import Change, Context, Database, Decision
from manta.errors import InvalidRequest
from manta.ids import MessageRef
from manta.people.consents import (
    ALL_TOPICS,
    CHANNELS,
    NOTHING,
    PENDING_LASTS,
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
)
from manta.people.identities import EMAIL, compared
from manta.people.linked import is_of_address
from manta.people.suppressions import SUNSET, standing_stops
from manta.privacy.hashes import ERASED, erased_among

MAIL_GAP = timedelta(hours=1)
TOPICS_MAX = 50  # of one request


@dataclass(frozen=True)
class Requested:
    """``occurrence`` names the confirmation mail that is due; empty: none is."""

    subscriber_id: int
    occurrence: str
    locale: str | None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class RequestConsent:
    """Somebody asks for topics (name, whether it takes a confirmation) in this person's name."""

    key: str | None
    subscriber_id: int
    topics: tuple[tuple[str, bool], ...]
    source: str
    proof: Mapping[str, Any] | None = None
    lasts: timedelta = PENDING_LASTS
    channel: str = EMAIL

    def decide(self, database: Database, context: Context) -> Decision:
        _check(self.channel, [topic for topic, _ in self.topics], self.source)
        person = existing(database, self.subscriber_id)
        ((email, locale),) = database.rows(
            "SELECT email, locale FROM profiles WHERE subscriber_id = ?", [person]
        )
        held = consents_of(database, person, self.channel)
        reason = _stopped(database, self.channel, email, context)
        left = held.get(ALL_TOPICS, NOTHING).status == UNSUBSCRIBED
        shut = left or (reason is not None and reason != SUNSET)
        at_once: list[str] = []
        asked: list[str] = []
        for topic, takes_mail in dict(self.topics).items():
            status = held.get(topic, NOTHING).status
            if status == SUBSCRIBED_TO and not shut:
                if reason == SUNSET:  # asking for it is an act: written again, it lifts that
                    at_once.append(topic)
            elif takes_mail or shut or status in (UNSUBSCRIBED, WAITING):
                asked.append(topic)
            else:
                at_once.append(topic)
        changes = self._subscribed(person, at_once, held, context)
        if not asked:
            return Decision(Requested(person, "", locale), tuple(changes))
        mailed_at = _last_mail(held, context.now) or context.now
        changes += self._waiting(person, asked, held, mailed_at, context)
        answer = Requested(person, _occurrence(mailed_at), locale, context.now + self.lasts)
        return Decision(answer, tuple(changes))

    def repeat(self, database: Database, context: Context) -> Requested:
        """The answer when the key has been committed before: the mail that is still due, if any."""
        person = existing(database, self.subscriber_id)
        ((locale,),) = database.rows(
            "SELECT locale FROM profiles WHERE subscriber_id = ?", [person]
        )
        held = consents_of(database, person, self.channel)
        mailed_at = _last_mail(held, context.now)
        if mailed_at is None:
            return Requested(person, "", locale)
        return Requested(person, _occurrence(mailed_at), locale, context.now + self.lasts)

    def _subscribed(
        self, person: int, topics: list[str], held: dict[str, Held], context: Context
    ) -> list[Change]:
        proof = {**(self.proof or {}), "method": "single"}
        proof.setdefault("at", as_text(context.now))
        given = Given(self.channel, self.source, checked_proof(proof))
        changes: list[Change] = []
        for topic in topics:
            old = held.get(topic, NOTHING).status
            changes += consent_changes(given, person, topic, old, SUBSCRIBED_TO, context)
        return changes

    def _waiting(
        self,
        person: int,
        topics: list[str],
        held: dict[str, Held],
        mailed_at: datetime,
        context: Context,
    ) -> list[Change]:
        """Pending consents; those that wait with the same mail already stay as they are."""
        changes: list[Change] = []
        for topic in topics:
            old = held.get(topic, NOTHING)
            waits = old.status == WAITING and not old.is_over(context.now)
            if waits and _mailed_at(old) == mailed_at:
                continue
            before = _before(old) if old.status == WAITING else old.status
            proof = {
                "at": as_text(context.now),
                **(self.proof or {}),
                "method": "double",
                "mailed_at": as_text(mailed_at),
                "before": before,
            }
            given = Given(self.channel, self.source, checked_proof(proof), context.now + self.lasts)
            changes += consent_changes(given, person, topic, old.status, WAITING, context)
        return changes


@dataclass(frozen=True)
class Confirmed:
    """``topics`` that are subscribed now, of those that were to be confirmed; ``is_erased``: the
    mark of an earlier erasure is still to be lifted from ``email``."""

    subscriber_id: int
    email: str | None
    topics: tuple[str, ...]
    is_erased: bool = False


@dataclass(frozen=True)
class ConfirmConsents:
    """The reader of the mail says yes to ``topics``. Answers those that are subscribed now: what
    waits no longer, or waited too long, is not among them. ``proof`` is that of this step.

    ``mail``: what the link was in. One that went to an earlier address confirms nothing."""

    key: str | None
    subscriber_id: int
    topics: tuple[str, ...]
    source: str
    proof: Mapping[str, Any] | None = None
    channel: str = EMAIL
    mail: MessageRef | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        _check(self.channel, self.topics, self.source)
        person = existing(database, self.subscriber_id)
        if not is_of_address(database, person, self.mail):
            return Decision(Confirmed(person, None, ()))
        ((email,),) = database.rows("SELECT email FROM profiles WHERE subscriber_id = ?", [person])
        held = consents_of(database, person, self.channel)
        given = Given(self.channel, self.source)
        changes: list[Change] = []
        confirmed: list[str] = []
        for topic in dict.fromkeys(self.topics):
            old = held.get(topic, NOTHING)
            if old.status == WAITING and not old.is_over(context.now):
                step = replace(given, proof=self._both_steps(old, context))
                changes += consent_changes(step, person, topic, WAITING, SUBSCRIBED_TO, context)
                confirmed.append(topic)
            elif old.status == SUBSCRIBED_TO:
                confirmed.append(topic)
        if changes and held.get(ALL_TOPICS, NOTHING).status == UNSUBSCRIBED:
            changes += consent_changes(given, person, ALL_TOPICS, UNSUBSCRIBED, None, context)
        is_erased = _stopped(database, self.channel, email, context) == ERASED
        return Decision(Confirmed(person, email, tuple(confirmed), is_erased), tuple(changes))

    def _both_steps(self, old: Held, context: Context) -> str | None:
        request = json.loads(old.proof) if old.proof else {}
        request.pop("request", None)
        proof = {**(self.proof or {}), "method": "double", "at": as_text(context.now)}
        return checked_proof({**proof, "request": request})


def _check(channel: str, topics: tuple[str, ...] | list[str], source: str) -> None:
    check_word(channel, CHANNELS, "channel")
    check_text(source, "source")
    if not 0 < len(topics) <= TOPICS_MAX:
        raise InvalidRequest(
            f"{len(topics)} topics", path="topics", expected=f"1 to {TOPICS_MAX} of them"
        )
    for place, topic in enumerate(topics):
        check_text(topic, f"topics[{place}]")
        if topic == ALL_TOPICS:
            raise InvalidRequest(
                "consent is given topic by topic",
                path=f"topics[{place}]",
                expected="the name of one topic",
            )


def _stopped(database: Database, channel: str, email: str | None, context: Context) -> str | None:
    """Why nothing is sent to the person's address, if so."""
    if not email:
        return None
    address = compared(EMAIL, email)
    if erased_among(database, context.settings, [address], channel):
        return ERASED
    stop = standing_stops(database, channel, [address], context.now).get(address)
    return stop.reason if stop else None


def _last_mail(held: dict[str, Held], now: datetime) -> datetime | None:
    """The instant that names the mail which those who wait have lately been sent."""
    waits = [one for one in held.values() if one.status == WAITING and not one.is_over(now)]
    named = [at for one in waits if (at := _mailed_at(one)) is not None and at > now - MAIL_GAP]
    return max(named, default=None)


def _mailed_at(held: Held) -> datetime | None:
    text = json.loads(held.proof).get("mailed_at") if held.proof else None
    return parse_instant(text) if text else None


def _before(held: Held) -> str | None:
    return json.loads(held.proof).get("before") if held.proof else None


def _occurrence(mailed_at: datetime) -> str:
    return f"confirm {as_text(mailed_at)}"
