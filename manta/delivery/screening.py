"""Who may be mailed now: one question, asked when a message is planned and again when it is leased.

The answer is a reason not to send, or nothing. The reasons are the ledger's reasons for
``suppressed`` rows, besides those that a suppression brings itself (``hard_bounce``,
``complaint``, …):

    unknown_person  no profile (erased since)
    merged          the profile lives on under another id, which has its own row
    no_address      nothing to send to
    no_consent      marketing without a subscribed consent for the topic
    unsubscribed    marketing after an unsubscribe from the topic
    erased          marketing to an address whose person was erased (``manta.privacy``)

Transactional and test messages need no consent, and an ``unsubscribed`` suppression does not stop
them; every other suppression does. A test goes to an address of its own, which is looked at instead
of the person's; the person only fills it and may be nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from manta.command import Context, Database
from manta.delivery.campaign import MARKETING_ONLY_SUPPRESSIONS, Kind
from manta.people.aliases import standing
from manta.people.identities import EMAIL, compared
from manta.people.suppressions import topic_channel
from manta.privacy.hashes import ERASED, erased_among

# In a large table an index finds a few hundred people; a small one is read through faster.
_LISTED_MAX = 1_000
_LARGE_ROWS = 100_000
_COUNTED_FOR = timedelta(seconds=60)
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

    ``profiles`` has the columns asked for, and ``email``, ``time_zone`` and ``locale``, each with
    one value for each message too (None where there is no profile).
    """

    refusals: list[str | None]
    domains: list[str | None]
    profiles: dict[str, list[Any]]


def screen(
    database: Database, wanted: Sequence[Wanted], context: Context, columns: Sequence[str] = ()
) -> Screened:
    """Why each wanted message may not be sent. ``columns`` of ``profiles`` must exist."""
    now = context.now
    people = sorted({want.subscriber_id for want in wanted})
    names = (*_FIXED, *columns)
    profiles = {profile[0]: profile for profile in _profiles(database, names, people, now)}
    consents = _consents(database, people)
    nobody = (None,) * len(names)
    lost = [want.subscriber_id for want in wanted if want.subscriber_id not in profiles]
    merged = standing(database, lost)
    found = [profiles.get(want.subscriber_id, nobody) for want in wanted]
    emails = [want.send_to or profile[1] for want, profile in zip(wanted, found, strict=True)]
    addresses = [compared(EMAIL, email) if email else None for email in emails]
    stopped = _suppressions(database, addresses, context)
    refusals = [
        _refusal(
            want,
            profile,
            address,
            _stop(stopped, want, address) if stopped else None,
            consents.get((want.subscriber_id, want.channel, want.topic)),
            want.subscriber_id in merged,
        )
        for want, profile, address in zip(wanted, found, addresses, strict=True)
    ]
    domains = [address.rpartition("@")[2] if address else None for address in addresses]
    by_column = list(zip(*found, strict=True)) or [()] * len(nobody)
    values = {name: list(by_column[place]) for place, name in enumerate(names)}
    return Screened(refusals, domains, values)


def _stop(
    stopped: dict[tuple[str, str | None], str], want: Wanted, address: str | None
) -> str | None:
    """What stops the address, on the whole channel or for the topic."""
    of_topic = topic_channel(want.channel, want.topic)
    return stopped.get((want.channel, address)) or stopped.get((of_topic, address))


def _refusal(
    want: Wanted,
    profile: tuple[Any, ...],
    address: str | None,
    suppression: str | None,
    consent: str | None,
    is_merged: bool,
) -> str | None:
    if not want.send_to and profile[0] is None:
        return "merged" if is_merged else "unknown_person"
    if not address:
        return "no_address"
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
    database: Database, addresses: Sequence[str | None], context: Context
) -> dict[tuple[str, str | None], str]:
    asked = sorted({address for address in addresses if address})
    found = database.rows(
        "SELECT channel, address, reason FROM suppressions"
        " WHERE address IN (SELECT unnest(?)) AND (expires_at IS NULL OR expires_at > ?)",
        [asked, context.now],
    )
    erased: dict[tuple[str, str | None], str] = {
        (EMAIL, address): ERASED for address in erased_among(database, context.settings, addresses)
    }
    return erased | {(channel, address): reason for channel, address, reason in found}


def _profiles(
    database: Database, names: Sequence[str], people: list[int], now: datetime
) -> list[tuple[Any, ...]]:
    """Columns of those who have a profile."""
    is_wanted = "subscriber_id IN (SELECT unnest(?))"
    if 0 < len(people) <= _LISTED_MAX and _profile_count(database, now) > _LARGE_ROWS:
        is_wanted = "list_contains(?, subscriber_id)"  # answered by the index on the key
    return database.rows(f"SELECT {', '.join(names)} FROM profiles WHERE {is_wanted}", [people])


def _profile_count(database: Database, now: datetime) -> int:
    """How many profiles there are, or were a short while ago."""
    count, until = database.hints.get("profiles", (0, now))
    if until <= now:
        ((count,),) = database.rows("SELECT count(*) FROM profiles")
        database.hints["profiles"] = count, now + _COUNTED_FOR
    return int(count)
