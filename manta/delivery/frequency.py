"""How often and at what hours people are mailed: caps and quiet hours, checked at hand-off.

Both concern marketing alone, and are asked of each message in the transaction that leases it, so
that what went out a moment ago by another campaign counts. A **cap** allows so many messages per
channel, of one topic or of all, within calendar days of the person's own zone or within a sliding
window; all caps must allow a message, and one that does not is ``suppressed`` with the reason
``frequency_cap`` and the cap in ``category``. What counts are the messages that were accepted, and
those that are on their way or uncertain. **Quiet hours** are local times of day; a message that
falls into them waits for their end (reason ``quiet_hours`` while it waits, and for good where it
expires before) or, where the workspace says so, is suppressed.

Without a definition of either kind nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from manta.command import Database
from manta.definitions import Document, Reader, checked_name
from manta.delivery.campaign import CampaignPlan, Kind
from manta.errors import InvalidRequest
from manta.people.aliases import STANDING
from manta.people.consents import CHANNELS
from manta.people.definitions import CAP, QUIET_HOURS, Definition, definitions
from manta.people.identities import EMAIL
from manta.rules.meaning import zone_of

EVERY = "*"  # all channels
DAYS_MAX = 30
HOURS_MAX = 24 * DAYS_MAX
LIMIT_MAX = 1_000
CAPPED, QUIET = "frequency_cap", "quiet_hours"  # reasons on the ledger
HOLD, SKIP = "hold", "skip"
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_COUNTED = "('accepted', 'leased', 'orphaned', 'uncertain')"
_UTC = ZoneInfo("UTC")
_ONE_DAY = timedelta(days=1)


class Asked(NamedTuple):
    """A message that could go out now."""

    subscriber_id: int
    channel: str
    campaign_id: int
    time_zone: str | None


class Verdict(NamedTuple):
    """Why a message may not go out now; ``until`` where it may wait for another time."""

    reason: str
    category: str
    until: datetime | None = None


class _Sent(NamedTuple):
    channel: str
    topic: str
    at: datetime


@dataclass(frozen=True)
class Cap:
    id: str
    channel: str
    topic: str | None
    limit: int
    days: int | None
    hours: int | None

    def since(self, now: datetime, zone: ZoneInfo) -> datetime:
        """What was sent at this instant or later counts."""
        if self.hours is not None:
            return now - timedelta(hours=self.hours) + timedelta(microseconds=1)
        today = now.replace(tzinfo=_UTC).astimezone(zone).date()
        first = today - timedelta(days=(self.days or 1) - 1)
        return _instant(datetime.combine(first, time.min), zone)

    def covers(self, channel: str, topic: str) -> bool:
        return self.channel in (EVERY, channel) and self.topic in (None, topic)


@dataclass(frozen=True)
class QuietHours:
    """From ``start`` until ``end`` (the next day where that is not later) on days that begin on one
    of ``weekdays``, in the person's zone."""

    id: str
    channel: str
    start: time
    end: time
    weekdays: tuple[int, ...]
    then: str

    def end_of(self, now: datetime, zone: ZoneInfo) -> datetime | None:
        """When the quiet that ``now`` falls into ends; ``None`` outside of it."""
        today = now.replace(tzinfo=_UTC).astimezone(zone).date()
        for day in (today - _ONE_DAY, today):
            if day.weekday() not in self.weekdays:
                continue
            last = day if self.end > self.start else day + _ONE_DAY
            begin = _instant(datetime.combine(day, self.start), zone)
            end = _instant(datetime.combine(last, self.end), zone)
            if begin <= now < end:
                return end
        return None


@dataclass(frozen=True)
class Frequency:
    """The caps and quiet hours of a workspace; ``zone`` is the workspace's."""

    caps: tuple[Cap, ...]
    quiet: tuple[QuietHours, ...]
    zone: str

    def verdicts(
        self,
        database: Database,
        asked: Sequence[Asked],
        plans: Mapping[int, CampaignPlan],
        now: datetime,
    ) -> list[Verdict | None]:
        """For each message, in order, why it may not go now. A message that may counts for those
        after it."""
        sent = self._sent(database, {message.subscriber_id for message in asked}, now)
        verdicts: list[Verdict | None] = []
        for message in asked:
            plan = plans[message.campaign_id]
            verdict = None
            if plan.kind is Kind.MARKETING:
                zone = zone_of(message.time_zone, self.zone)
                known = sent.setdefault(message.subscriber_id, [])
                verdict = self._quiet(message.channel, zone, now) or self._capped(
                    message.channel, plan.topic, known, zone, now
                )
                if verdict is None:
                    known.append(_Sent(message.channel, plan.topic, now))
            verdicts.append(verdict)
        return verdicts

    def _quiet(self, channel: str, zone: ZoneInfo, now: datetime) -> Verdict | None:
        """One quiet time may end where another begins: the message waits for the end of all."""
        until, category = now, ""
        for _ in range(len(self.quiet) + 1):
            for quiet in self.quiet:
                end = quiet.end_of(until, zone) if quiet.channel in (EVERY, channel) else None
                if end is None:
                    continue
                category = f"{QUIET_HOURS}:{quiet.id}"
                if quiet.then == SKIP:
                    return Verdict(QUIET, category)
                until = end
                break
            else:
                break
        return Verdict(QUIET, category, until) if until > now else None

    def _capped(
        self, channel: str, topic: str, sent: Iterable[_Sent], zone: ZoneInfo, now: datetime
    ) -> Verdict | None:
        for cap in self.caps:
            if not cap.covers(channel, topic):
                continue
            since = cap.since(now, zone)
            count = sum(each.at >= since and cap.covers(each.channel, each.topic) for each in sent)
            if count >= cap.limit:
                return Verdict(CAPPED, f"{CAP}:{cap.id}")
        return None

    def _sent(
        self, database: Database, people: Iterable[int], now: datetime
    ) -> dict[int, list[_Sent]]:
        """What these people, and those who were merged into them, got within the widest window."""
        if not self.caps:
            return {}
        widest = max(
            timedelta(hours=cap.hours) if cap.hours is not None else (cap.days or 1) * _ONE_DAY
            for cap in self.caps
        )
        since = now - widest - _ONE_DAY
        asked = sorted(people)
        rows = database.rows(
            "SELECT subscriber_id, channel, campaign_id, changed_at FROM ledger"
            " WHERE subscriber_id IN (SELECT unnest(?::BIGINT[])) AND changed_at > ?"
            f" AND kind = 'marketing' AND state IN {_COUNTED}",
            [asked, since],
        )
        rows += _under_other_names(database, asked, since)
        plans = _plans(database) if any(cap.topic for cap in self.caps) else {}
        sent: dict[int, list[_Sent]] = {}
        for person, channel, campaign_id, at in rows:
            plan = plans.get(campaign_id)
            sent.setdefault(person, []).append(_Sent(channel, plan.topic if plan else "", at))
        return sent


def _under_other_names(
    database: Database, people: list[int], since: datetime
) -> list[tuple[int, str, int, datetime]]:
    """What was sent to those who were merged into these people, whose ledger may lie in another
    shard: a merge brings copies of their `sent` events along."""
    named = [
        id
        for (id,) in database.rows(
            "SELECT DISTINCT to_id FROM aliases WHERE to_id IN (SELECT unnest(?::BIGINT[]))"
            f" AND {STANDING}",
            [people],
        )
    ]
    if not named:
        return []
    found = database.rows(
        "SELECT DISTINCT subscriber_id, campaign_id, occurred_at, event_id FROM events"
        " WHERE subscriber_id IN (SELECT unnest(?::BIGINT[])) AND type = 'sent'"
        " AND item = 'marketing' AND merge_id IS NOT NULL AND occurred_at > ?",
        [named, since],
    )
    plans = _plans(database)
    return [
        (person, plans[campaign_id].channel if campaign_id in plans else EMAIL, campaign_id, at)
        for person, campaign_id, at, _ in found
    ]


def frequency(database: Database, zone: str) -> Frequency | None:
    """What holds in this shard; ``None`` where there is neither cap nor quiet time."""
    caps = tuple(_cap(one) for one in definitions(database, CAP))
    quiet = tuple(_quiet(one) for one in definitions(database, QUIET_HOURS))
    return Frequency(caps, quiet, zone) if caps or quiet else None


def _plans(database: Database) -> dict[int, CampaignPlan]:
    found = database.rows("SELECT campaign_id, definition FROM campaigns")
    return {campaign_id: CampaignPlan.from_json(text) for campaign_id, text in found}


def _cap(told: Definition) -> Cap:
    body = told.body
    return Cap(told.id, body["channel"], body["topic"], body["limit"], body["days"], body["hours"])


def _quiet(told: Definition) -> QuietHours:
    body = told.body
    days = tuple(WEEKDAYS.index(day) for day in body["weekdays"])
    start, end = _time_of(body["start"]), _time_of(body["end"])
    return QuietHours(told.id, body["channel"], start, end, days, body["then"])


def _time_of(text: str) -> time:
    hours, _, minutes = text.partition(":")
    return time(int(hours), int(minutes))


def _instant(local: datetime, zone: ZoneInfo) -> datetime:
    """The UTC instant of a local time; one that a clock change skips is that of the old offset."""
    return local.replace(tzinfo=zone).astimezone(_UTC).replace(tzinfo=None)


# -- definitions -----------------------------------------------------------------------------------


def checked_cap(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of a cap. Raises ``InvalidRequest``."""
    _only(fields, ("name", "channel", "topic", "limit", "days", "hours"))
    days, hours = fields.get("days"), fields.get("hours")
    if (days is None) == (hours is None):
        raise InvalidRequest(
            "a cap counts within calendar days or within hours",
            path="days",
            expected=f"either days, 1 to {DAYS_MAX}, or hours, 1 to {HOURS_MAX}",
        )
    topic = fields.get("topic")
    if topic is not None and (not isinstance(topic, str) or not 0 < len(topic) <= 200):
        raise InvalidRequest("not a topic", path="topic", expected="its name, or nothing: all")
    return {
        "name": checked_name(fields),
        "channel": _channel(fields),
        "topic": topic,
        "limit": _number(fields.get("limit"), "limit", LIMIT_MAX),
        "days": None if days is None else _number(days, "days", DAYS_MAX),
        "hours": None if hours is None else _number(hours, "hours", HOURS_MAX),
    }


def checked_quiet_hours(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of quiet hours. Raises ``InvalidRequest``."""
    _only(fields, ("name", "channel", "start", "end", "weekdays", "then"))
    weekdays = fields.get("weekdays") or list(WEEKDAYS)
    if not isinstance(weekdays, list) or not all(day in WEEKDAYS for day in weekdays):
        raise InvalidRequest(
            "not days of the week", path="weekdays", expected=f"some of {', '.join(WEEKDAYS)}"
        )
    then = fields.get("then") or HOLD
    if then not in (HOLD, SKIP):
        raise InvalidRequest(f"{then!r:.40}", path="then", expected=f"{HOLD} or {SKIP}")
    start, end = (_clock_time(fields.get(name), name) for name in ("start", "end"))
    if len(set(weekdays)) == len(WEEKDAYS) and start == end:
        raise InvalidRequest(
            "that would be quiet for ever", path="end", expected="a time other than the start"
        )
    return {
        "name": checked_name(fields),
        "channel": _channel(fields),
        "start": start,
        "end": end,
        "weekdays": [day for day in WEEKDAYS if day in weekdays],
        "then": then,
    }


def shard_body(document: Document, reader: Reader) -> Document:
    """What shards need of either: everything but its name."""
    dropped = ("id", "name", "version", "created_at", "updated_at")
    return {name: value for name, value in document.items() if name not in dropped}


def _only(fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(fields) - {*known, "id"})
    if unknown:
        raise InvalidRequest(
            f"there is no field {unknown[0]:.60}", path=unknown[0], expected=", ".join(known)
        )


def _channel(fields: Mapping[str, Any]) -> str:
    channel = fields.get("channel") or EVERY
    if channel not in (EVERY, *CHANNELS):
        raise InvalidRequest(
            f"{channel!r:.40} is no channel", path="channel", expected=", ".join((EVERY, *CHANNELS))
        )
    return str(channel)


def _number(value: Any, path: str, maximum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise InvalidRequest(
            f"{value!r:.40} is out of range", path=path, expected=f"1 to {maximum}"
        )
    return value


def _clock_time(value: Any, path: str) -> str:
    """``HH:MM``; ``24:00`` is midnight at the end of the day."""
    try:
        if value == "24:00":
            return "00:00"
        return time.fromisoformat(value).strftime("%H:%M")
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"{value!r:.40} is no time of day", path=path, expected="HH:MM, for example 21:30"
        ) from None
