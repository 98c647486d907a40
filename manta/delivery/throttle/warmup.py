"""Warm-up: how much a new sending address may send a provider, by day of sending and by hour.

Each cold source has a quota with every provider of the schedule, and one with all the rest. A day
of sending counts when enough of its quota was used and no action slowed the lane; after the last
day the source is warm there, until it has been idle for 30 days: then it starts anew. Days and
hours are UTC's and never go back, whatever clock the next process has.

**Never overrun.** What may be used is first *reserved* in the journal: a quota gives only what its
last stored document has set aside, and a new incarnation takes all of that as used. So a crash
loses at most what was set aside, and two incarnations at once never send more than the quota.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from importlib.resources import files
from math import ceil
from typing import Any

from manta.errors import InvalidRequest

OTHERS = "others"  # the group of all providers that have no schedule of their own
RESERVE_MIN = 10
DAYS_MAX = 366


@dataclass(frozen=True)
class Schedule:
    name: str
    days: tuple[int, ...]  # messages on each day of sending
    hour_share: float

    def of_day(self, counted: int) -> int:
        """The quota when so many days of sending are over."""
        return self.days[min(counted, len(self.days) - 1)]

    def of_hour(self, counted: int) -> int:
        return ceil(self.of_day(counted) * self.hour_share)


@dataclass(frozen=True)
class Plan:
    """The schedules, by provider. Providers without one share ``others``."""

    schedules: Mapping[str, Schedule]
    others: Schedule
    idle_days: int
    used_share: float

    def group_of(self, provider: str) -> str:
        return provider if provider in self.schedules else OTHERS

    def schedule_of(self, group: str) -> Schedule:
        return self.schedules.get(group, self.others)


def parse(text: str) -> Plan:
    """Raises ``InvalidRequest`` that names the key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"the warm-up file is not TOML: {error}", path="warmup") from None
    known = {"dated", "idle_days", "hour_share", "used_share", "schedule"}
    for key in document:
        _check(key in known, key, f"one of {', '.join(sorted(known))}")
    _check(1 <= document.get("idle_days", 0) <= DAYS_MAX, "idle_days", f"1 to {DAYS_MAX}")
    for key in ("hour_share", "used_share"):
        _check(0 < document.get(key, 0) <= 1, key, "a share above 0, at most 1")
    schedules: dict[str, Schedule] = {}
    tables = document.get("schedule", {})
    for name, table in tables.items():
        path = f"schedule.{name}"
        _check(set(table) == {"providers", "days"}, path, "providers and days, nothing else")
        days = table["days"]
        sound = all(isinstance(n, int) and 1 <= n <= 10_000_000 for n in days)
        _check(
            sound and 1 <= len(days) <= DAYS_MAX, f"{path}.days", "counts from 1, a year at most"
        )
        _check(days == sorted(days), f"{path}.days", "counts that never go down")
        schedule = Schedule(name, tuple(days), float(document["hour_share"]))
        for provider in table["providers"]:
            _check(provider not in schedules, f"{path}.providers", f"{provider!r:.60} only once")
            schedules[provider] = schedule
    _check(OTHERS in tables, "schedule.others", "a schedule for all other providers")
    others = Schedule(OTHERS, tuple(tables[OTHERS]["days"]), float(document["hour_share"]))
    return Plan(schedules, others, document["idle_days"], float(document["used_share"]))


@lru_cache(maxsize=1)
def builtin() -> Plan:
    """The plan that comes with Manta."""
    return parse(files("manta.delivery.throttle").joinpath("warmup.toml").read_text("utf-8"))


@dataclass
class Quota:
    """What one source may send one group of providers: its day, what is used, what is reserved.

    ``counted``: days of sending that count. ``is_held``: an action has slowed the lane today, so
    that this day does not count. ``used_day`` ≤ ``reserved_day`` ≤ the day's quota, hours likewise.
    """

    source: str
    group: str
    cold_since: date
    schedule: Schedule
    plan: Plan
    at: datetime  # the latest moment that it knows of
    counted: int = 0
    last_sent: date | None = None
    is_held: bool = False
    used_day: int = 0
    used_hour: int = 0
    reserved_day: int = 0
    reserved_hour: int = 0
    used_since_reserve: int = 0

    @property
    def is_warm(self) -> bool:
        return self.counted >= len(self.schedule.days)

    @property
    def quota_day(self) -> int:
        return self.schedule.of_day(self.counted)

    @property
    def quota_hour(self) -> int:
        return min(self.quota_day, self.schedule.of_hour(self.counted))

    def turn_to(self, now: datetime) -> None:
        """Begin a new hour or day where one has begun."""
        if now <= self.at:
            return
        before, self.at = self.at, now
        if now.date() == before.date():
            if now.hour != before.hour:
                self.used_hour = self.reserved_hour = 0
                self.used_since_reserve = 0
            return
        enough = self.used_day >= self.plan.used_share * self.quota_day
        if enough and not self.is_held and not self.is_warm and before.date() >= self.cold_since:
            self.counted += 1
        idle_since = self.last_sent or now.date()
        if (now.date() - idle_since).days > self.plan.idle_days:
            self.counted, self.last_sent = 0, None
        self.is_held = False
        self.used_day = self.used_hour = self.reserved_day = self.reserved_hour = 0
        self.used_since_reserve = 0

    # -- using -------------------------------------------------------------------------------------

    def left(self) -> int:
        """What the schedule leaves of this day and hour."""
        return max(0, min(self.quota_day - self.used_day, self.quota_hour - self.used_hour))

    def room(self) -> int:
        """What may be used now: at most what is reserved."""
        reserved = min(self.reserved_day - self.used_day, self.reserved_hour - self.used_hour)
        return max(0, min(self.left(), reserved))

    def use(self, messages: int) -> None:
        self.used_day += messages
        self.used_hour += messages
        self.used_since_reserve += messages
        self.last_sent = self.at.date()

    def put_back(self, unused: int, used_at: datetime) -> None:
        """What was certainly never sent, used at that moment. Of an hour that is over: lost."""
        same_hour = (used_at.date(), used_at.hour) == (self.at.date(), self.at.hour)
        back = min(unused, self.used_hour, self.used_day) if same_hour else 0
        self.used_day -= back
        self.used_hour -= back
        self.used_since_reserve = max(0, self.used_since_reserve - back)

    def wait_s(self) -> float:
        """Seconds until there is quota again: the next hour, or the next day."""
        if self.left():
            return 0.0
        hour = self.at.replace(minute=0, second=0, microsecond=0)
        again = hour + timedelta(hours=1)
        if self.used_day >= self.quota_day:
            again = datetime.combine(self.at.date() + timedelta(days=1), time())
        return (again - self.at).total_seconds()

    # -- the journal -------------------------------------------------------------------------------

    @property
    def wants_reserve(self) -> bool:
        """More should be set aside, as what is there will soon be used."""
        if self.is_warm:
            return False
        room = self.room()
        return room < self.left() and room < max(RESERVE_MIN, self.used_since_reserve) / 2

    def proposal(self) -> dict[str, Any]:
        """The document to store: with more set aside, about what two heartbeats use."""
        ahead = 0
        if not self.is_warm:
            ahead = min(self.left(), max(RESERVE_MIN, 2 * self.used_since_reserve))
        return {
            "source": self.source,
            "group": self.group,
            "cold_since": self.cold_since.isoformat(),
            "at": self.at.isoformat(),
            "counted": self.counted,
            "last_sent": self.last_sent.isoformat() if self.last_sent else None,
            "held": self.is_held,
            "reserved_day": max(self.reserved_day, self.used_day + ahead),
            "reserved_hour": max(self.reserved_hour, self.used_hour + ahead),
        }

    def stored(self, document: Mapping[str, Any]) -> None:
        """A proposal has been stored."""
        at = datetime.fromisoformat(document["at"])
        if at.date() == self.at.date():
            self.reserved_day = max(self.reserved_day, document["reserved_day"])
            if at.hour == self.at.hour:
                self.reserved_hour = max(self.reserved_hour, document["reserved_hour"])
        self.used_since_reserve = 0

    def restore(self, document: Mapping[str, Any]) -> None:
        """Begin where another incarnation ended: all that it had set aside counts as used."""
        if document["cold_since"] != self.cold_since.isoformat():
            return  # the operator has begun anew
        self.at = datetime.fromisoformat(document["at"])
        self.counted = document["counted"]
        last_sent = document["last_sent"]
        self.last_sent = date.fromisoformat(last_sent) if last_sent else None
        self.is_held = document["held"]
        self.used_day = self.reserved_day = document["reserved_day"]
        self.used_hour = self.reserved_hour = document["reserved_hour"]

    def status(self) -> dict[str, Any]:
        days_left = max(0, len(self.schedule.days) - self.counted)
        return {
            "source": self.source,
            "group": self.group,
            "is_warm": self.is_warm,
            "day": min(self.counted + 1, len(self.schedule.days)),
            "days": len(self.schedule.days),
            "used_day": self.used_day,
            "quota_day": None if self.is_warm else self.quota_day,
            "used_hour": self.used_hour,
            "quota_hour": None if self.is_warm else self.quota_hour,
            "is_held": self.is_held,
            "wait_s": 0.0 if self.is_warm else self.wait_s(),
            "finished_about": None
            if self.is_warm
            else (self.at.date() + timedelta(days=days_left)).isoformat(),
        }


class Warmup:
    """All quotas of a Throttle. ``cold_since`` by source: only these are ever cold.

    ``documents``: what the former incarnation had stored.
    """

    def __init__(
        self,
        cold_since: Mapping[str, date],
        documents: Iterable[Mapping[str, Any]] = (),
        plan: Plan | None = None,
    ) -> None:
        self._plan = plan or builtin()
        self._cold_since = dict(cold_since)
        self._stored = {(d["source"], d["group"]): d for d in documents}
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._changed: dict[tuple[str, str], Quota] = {}
        self._groups: dict[str, str] = {}

    def quota(self, source: str, provider: str, now: datetime) -> Quota | None:
        """The quota at this moment, or None for a source that is not warmed up at all."""
        if source not in self._cold_since:
            return None
        group = self._plan.group_of(provider)
        quota = self._quotas.get((source, group))
        if quota is None:
            quota = self._made(source, group, now)
        quota.turn_to(now)
        return quota

    def _made(self, source: str, group: str, now: datetime) -> Quota:
        quota = Quota(
            source,
            group,
            self._cold_since[source],
            self._plan.schedule_of(group),
            self._plan,
            now,
        )
        document = self._stored.get((source, group))
        if document is not None:
            quota.restore(document)
        self._quotas[source, group] = quota
        return quota

    def is_cold(self, source: str, provider: str, now: datetime) -> bool:
        quota = self.quota(source, provider, now)
        return quota is not None and not quota.is_warm

    def touch(self, quota: Quota) -> None:
        """Something has changed that the next heartbeat is to store."""
        self._changed[quota.source, quota.group] = quota

    @property
    def has_proposals(self) -> bool:
        return bool(self._changed)

    def proposals(self) -> list[tuple[str, dict[str, Any]]]:
        """(id, document) of all that is to be stored with the next heartbeat."""
        proposals = [
            (f"{quota.source}/{quota.group}", quota.proposal()) for quota in self._changed.values()
        ]
        self._changed.clear()
        return proposals

    def not_stored(self, proposals: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """They could not be stored: the next heartbeat tries again, with what is so by then."""
        for _, document in proposals:
            self.touch(self._quotas[document["source"], document["group"]])

    def stored(self, proposals: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        for _, document in proposals:
            self._quotas[document["source"], document["group"]].stored(document)

    def status(self, now: datetime) -> list[dict[str, Any]]:
        for source, group in list(self._stored):
            if source in self._cold_since:
                self.quota(source, group, now)
        quotas = sorted(self._quotas.items())
        for _, quota in quotas:
            quota.turn_to(now)
        return [quota.status() for _, quota in quotas]


def _check(is_right: bool, path: str, expected: str) -> None:
    if not is_right:
        raise InvalidRequest(f"warm-up file: {path} is not valid", path=path, expected=expected)
