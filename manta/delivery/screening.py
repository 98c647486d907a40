"""Who may be mailed now: one question, asked when a message is planned and again when it is leased.

The answer is a reason not to send, or nothing. The reasons are the ledger's reasons for
``suppressed`` rows, besides those that a suppression brings itself (``hard_bounce``,
``complaint``, …):

    unknown_person  no profile (erased since)
    merged          the profile lives on under another id, which has its own row
    no_address      nothing to send to
    no_consent      marketing without a subscribed consent for the topic
    unsubscribed    marketing after an unsubscribe from the topic

Transactional and test messages need no consent, and an ``unsubscribed`` suppression does not stop
them; every other suppression does. A test goes to an address of its own, which is looked at instead
of the person's; the person only fills it and may be nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Database
from manta.delivery.campaign import MARKETING_ONLY_SUPPRESSIONS, Kind
from manta.people.identities import EMAIL, compared

# An index answers a short list of ids; a list of thousands is better joined.
_LISTED_MAX = 256
_FIXED = ("subscriber_id", "email", "time_zone", "locale")


class Wanted(NamedTuple):
    """A message that somebody would like to send."""

    subscriber_id: int
    kind: str
    channel: str
    topic: str
    send_to: str | None = None  # of a test: who gets it in the person's place


class Screened(NamedTuple):
    """``refusals`` and ``domains`` go with the wanted messages, one each; no refusal is None.

    ``profiles`` has one row for each message too (all NULL where there is no profile): the fixed
    columns and those asked for.
    """

    refusals: list[str | None]
    domains: list[str | None]
    profiles: pa.Table


def screen(
    database: Database, wanted: Sequence[Wanted], now: datetime, columns: Sequence[str] = ()
) -> Screened:
    """Why each wanted message may not be sent. ``columns`` of ``profiles`` must exist."""
    people = sorted({want.subscriber_id for want in wanted})
    names = (*_FIXED, *columns)
    found = database.table(*_of_people(f"SELECT {', '.join(names)} FROM profiles", people))
    place = {person: i for i, person in enumerate(found.column("subscriber_id").to_pylist())}
    emails = dict(zip(place, found.column("email").to_pylist(), strict=True))
    aliases = "SELECT from_id FROM aliases WHERE from_id IN (SELECT unnest(?))"
    merged = {person for (person,) in database.rows(aliases, [people])}
    consents = _consents(database, people)
    addresses = {*emails.values(), *(want.send_to for want in wanted)}
    stopped = _suppressions(database, addresses, now)
    refusals: list[str | None] = []
    domains: list[str | None] = []
    for want in wanted:
        email = want.send_to or emails.get(want.subscriber_id)
        domains.append(email.rpartition("@")[2].lower() if email else None)
        if want.subscriber_id not in place and not want.send_to:
            refusals.append("unknown_person")
        elif want.subscriber_id in merged and not want.send_to:
            refusals.append("merged")
        elif not email:
            refusals.append("no_address")
        else:
            consent = consents.get((want.subscriber_id, want.channel, want.topic))
            refusals.append(
                _refusal(want, stopped.get((want.channel, compared(EMAIL, email))), consent)
            )
    places = [place.get(want.subscriber_id) for want in wanted]
    return Screened(refusals, domains, found.take(pa.array(places, pa.int64())))


def _refusal(want: Wanted, suppression: str | None, consent: str | None) -> str | None:
    is_marketing = want.kind == Kind.MARKETING
    if suppression and (is_marketing or suppression not in MARKETING_ONLY_SUPPRESSIONS):
        return suppression
    if is_marketing and consent != "subscribed":
        return "unsubscribed" if consent == "unsubscribed" else "no_consent"
    return None


def _consents(database: Database, people: list[int]) -> dict[tuple[int, str, str], str]:
    """By the bare id first: comparing words of a million rows costs more than all the rest."""
    sql = "SELECT subscriber_id, channel, topic, status FROM consents"
    return {
        (who, channel, topic): status
        for who, channel, topic, status in database.rows(
            f"{sql} WHERE subscriber_id IN (SELECT unnest(?))", [people]
        )
    }


def _suppressions(
    database: Database, emails: set[str | None], now: datetime
) -> dict[tuple[str, str], str]:
    addresses = sorted({compared(EMAIL, email) for email in emails if email})
    found = database.rows(
        "SELECT channel, address, reason FROM suppressions"
        " WHERE address IN (SELECT unnest(?)) AND (expires_at IS NULL OR expires_at > ?)",
        [addresses, now],
    )
    return {(channel, address): reason for channel, address, reason in found}


def _of_people(sql: str, people: list[int]) -> tuple[str, list[Any]]:
    if 0 < len(people) <= _LISTED_MAX:
        return f"{sql} WHERE subscriber_id IN ({', '.join('?' * len(people))})", list(people)
    return f"{sql} WHERE subscriber_id IN (SELECT unnest(?))", [people]
