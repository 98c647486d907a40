"""How mailbox providers behave as receivers: models of them, in virtual time, decided by a seed.

One ``Behaviour`` is one provider as our sources see it: what it answers to a connection and to a
message, and what comes back later by mail. Pure: the caller says what time it is (seconds, from any
origin, never back), so that real servers and a rehearsal in virtual time are told the same. What a
mailbox is like follows from the model, the seed and the address alone; what a source may bring
follows from what it has brought before and from what people said about it.

- An address that is new to the provider may bring ``cold_per_day``, any other ``growth`` times its
  best day of the last 30; an hour and a minute have their shares of that. Beyond it: "try later".
- Complaints and unknown users of the last ``judged_s`` seconds shrink that allowance; complaints
  beyond ``complaints_block`` refuse everything. Both pass as the window slides.
- A greylister wants each sender and recipient to try again, until a source has shown that it does.

Some recipients always fare the same, whatever the provider, so that tests and demos can ask for it:

| recipient | what becomes of it |
| --- | --- |
| local part ``NNN-…`` | that code |
| domain ``gone.…``, or local part ``permfail…`` | 550 5.1.1, no such user |
| local part ``tempfail…`` | 451, always |
| domain ``full.…`` | 452, mailbox full, the first time; then accepted |
| local part ``bounces…``, ``complains…``, ``replies…`` | accepted; that comes by mail later |

State is bounded: the source, and the greylisted try, that was silent for longest is forgotten.
"""

from __future__ import annotations

import re
import struct
import tomllib
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from importlib import resources
from math import ceil, log
from types import MappingProxyType
from typing import Any, NamedTuple

SOURCES_MAX = 10_000
TRIES_MAX = 200_000  # greylisted tries, and full mailboxes that were tried once
DAYS_KNOWN = 30
ORDINARY = "postfix"  # the model of who has none of their own
_DAY_S = 86_400
_PARTS = 24  # of the window in which a source is judged
_CODE = re.compile(r"([45]\d\d)-")


class Told(NamedTuple):
    """An SMTP reply: ``text`` with its enhanced code. ``closes``: the connection ends with it."""

    code: int
    text: str
    closes: bool = False

    @property
    def line(self) -> str:
        return f"{self.code} {self.text}"


ACCEPTED = Told(250, "2.0.0 OK, queued")


class LaterKind(StrEnum):
    DSN = "dsn"  # it was taken and could not be delivered (RFC 3464)
    COMPLAINT = "complaint"  # the person says it is spam (RFC 5965)
    AUTO_REPLY = "auto_reply"  # RFC 3834


class Later(NamedTuple):
    """What comes back by mail, ``after_s`` seconds after the message was taken. ``told``: why a
    DSN could not be delivered."""

    kind: LaterKind
    after_s: float
    told: Told | None = None


@dataclass(frozen=True)
class Says:
    """The provider's words, each with its codes. ``{source}``, ``{recipient}`` are filled in."""

    connections: str
    session: str
    rate: str
    slowed: str
    blocked: str
    greylisted: str
    unknown: str
    full: str
    late: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """What one provider does. Shares are parts of all mailboxes, or of all mail where they say so.

    ``serves``: the providers of the shaping file that behave so. ``exchangers``: hosts as its own
    are called. ``complaints_slow``, ``complaints_block``, ``unknown_slow``: shares of the mail of
    a source in the last ``judged_s`` seconds, from ``judged_min`` messages on. 0: it never does.
    """

    name: str
    title: str
    exchangers: tuple[str, ...]
    says: Says
    serves: tuple[str, ...] = ()
    is_encrypted: bool = False  # offers STARTTLS
    has_feedback_loop: bool = False  # tells senders of complaints; else only acts on them
    connections_max: int = 20  # of one source at once
    messages_per_connection: int = 100
    cold_per_day: int = 1_000
    growth: float = 3.0
    day_max: int = 5_000_000
    hour_share: float = 0.25
    minute_share: float = 0.02
    slow_factor: float = 0.1
    judged_s: float = 86_400.0
    judged_min: int = 200
    complaints_slow: float = 0.003
    complaints_block: float = 0.01
    unknown_slow: float = 0.1
    greylist_s: float = 0.0  # so long a new sender has to wait
    greylist_passes: int = 10  # after so many a source is known
    unknown_share: float = 0.01
    full_share: float = 0.005
    complaint_share: float = 0.0005
    complaint_after_s: float = 7_200.0  # on average
    late_share: float = 0.001
    late_after_s: float = 120.0
    auto_reply_share: float = 0.003
    auto_reply_after_s: float = 5.0


class _Fate(NamedTuple):
    """What a mailbox is like: numbers from 0 to 1, the same whenever it is asked."""

    unknown: float
    full: float
    complains: float
    late: float
    replies: float
    pause: float
    choice: float


class Standing(NamedTuple):
    """What a provider thinks of a source. Shares are of the time in which it is judged."""

    per_day: int
    complaints: float
    unknown: float
    is_slowed: bool
    is_blocked: bool


class Behaviour:
    """One provider. ``seed`` decides what its mailboxes are like."""

    def __init__(self, model: Model, seed: int) -> None:
        self.model = model
        self._key = f"{model.name}/{seed}".encode()[:64]
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._tries: OrderedDict[bytes, float] = OrderedDict()

    def know(self, source: str, per_day: int, now_s: float) -> None:
        """The source has brought so many messages a day until now: it is not cold, and no
        greylister holds it up."""
        known = self._source(source, now_s)
        known.remember(int(now_s // _DAY_S) - 1, per_day)
        known.passes = self.model.greylist_passes

    def connect(self, source: str, open_connections: int, now_s: float) -> Told | None:
        """The reply in the place of a greeting; None: welcome. ``open_connections``: that the
        source has already."""
        self._source(source, now_s)
        if open_connections >= self.model.connections_max:
            return self._say(self.model.says.connections, source, "", closes=True)
        return None

    def mail(
        self, source: str, sending_domain: str, recipient: str, now_s: float, carried: int = 0
    ) -> Told:
        """The reply to one message for one recipient. ``source``: the address it comes from;
        ``carried``: messages that its connection has brought already."""
        model, says = self.model, self.model.says
        known = self._source(source, now_s)
        recipient = recipient.lower()
        if carried >= model.messages_per_connection:
            return self._say(says.session, source, recipient, closes=True)
        asked_for = self._asked_for(recipient, now_s)
        if asked_for is not None:
            return asked_for
        standing = self._standing(known)
        if standing.is_blocked:
            return self._say(says.blocked, source, recipient)
        if not known.room(standing.per_day, model):
            text = says.slowed if standing.is_slowed else says.rate
            return self._say(text, source, recipient)
        if model.greylist_s and not self._is_past_greylist(
            known, source, sending_domain, recipient, now_s
        ):
            return self._say(says.greylisted, source, recipient)
        fate = self._fate(recipient)
        if fate.unknown < model.unknown_share:
            known.judge(unknown=1)
            return self._say(says.unknown, source, recipient)
        if fate.full < model.full_share:
            return self._say(says.full, source, recipient)
        known.accept()
        return ACCEPTED

    def later(self, recipient: str, message: str = "") -> tuple[Later, ...]:
        """What comes back for a message that was taken, in order of time. ``message`` tells one
        message to the recipient from another."""
        model, recipient = self.model, recipient.lower()
        local = recipient.rpartition("@")[0]
        fate, pause = self._fate(recipient), self._fate(f"{recipient} {message}").pause
        wait = -log(1.0 - pause)  # exponential, with mean 1
        if fate.late < model.late_share or local.startswith("bounces"):
            text = model.says.late[int(fate.choice * len(model.says.late))]
            told = self._say(text, "", recipient)
            return (Later(LaterKind.DSN, wait * model.late_after_s, told),)
        found = []
        if fate.replies < model.auto_reply_share or local.startswith("replies"):
            found.append(Later(LaterKind.AUTO_REPLY, wait * model.auto_reply_after_s))
        if fate.complains < model.complaint_share or local.startswith("complains"):
            found.append(Later(LaterKind.COMPLAINT, wait * model.complaint_after_s))
        return tuple(sorted(found, key=lambda each: each.after_s))

    def complained(self, source: str, now_s: float) -> None:
        """A complaint about mail of the source is there: call it when the ``Later`` is due."""
        self._source(source, now_s).judge(complained=1)

    def standing(self, source: str, now_s: float) -> Standing:
        return self._standing(self._source(source, now_s))

    # -- many at once, for whoever draws what becomes of them (rehearsal.crowds)

    def room(self, source: str, now_s: float) -> int:
        """How many messages it would take of the source now; 0 also where it takes none at all."""
        known = self._source(source, now_s)
        standing = self._standing(known)
        return 0 if standing.is_blocked else known.room(standing.per_day, self.model)

    def is_greylisted(self, source: str, now_s: float) -> bool:
        """Whether a first try of the source is turned away."""
        passes = self._source(source, now_s).passes
        return bool(self.model.greylist_s) and passes < self.model.greylist_passes

    def brought(
        self, source: str, now_s: float, accepted: int, unknown: int = 0, passes: int = 0
    ) -> None:
        """The source has brought these. ``passes``: past the greylist, at a second try."""
        known = self._source(source, now_s)
        known.passes += passes
        known.accept(accepted)
        if unknown:
            known.judge(unknown=unknown)

    # -- inside ------------------------------------------------------------------------------------

    def _source(self, source: str, now_s: float) -> _Source:
        known = self._sources.get(source)
        if known is None:
            known = self._sources[source] = _Source(self.model.judged_s)
            if len(self._sources) > SOURCES_MAX:
                self._sources.popitem(last=False)
        self._sources.move_to_end(source)
        known.slide(now_s)
        return known

    def _standing(self, known: _Source) -> Standing:
        model = self.model
        complaints = unknown = 0.0
        if known.accepted >= model.judged_min:
            complaints = known.complained / known.accepted
        if known.accepted + known.unknown >= model.judged_min:
            unknown = known.unknown / (known.accepted + known.unknown)
        is_slowed = (0 < model.complaints_slow <= complaints) or (0 < model.unknown_slow <= unknown)
        per_day = min(model.day_max, max(model.cold_per_day, int(model.growth * known.best_day())))
        if is_slowed:
            per_day = max(1, int(per_day * model.slow_factor))
        is_blocked = 0 < model.complaints_block <= complaints
        return Standing(per_day, complaints, unknown, is_slowed, is_blocked)

    def _asked_for(self, recipient: str, now_s: float) -> Told | None:
        local, _, domain = recipient.rpartition("@")
        code = _CODE.match(local)
        if code:
            return Told(int(code[1]), f"{code[1][0]}.0.0 as asked for", code[1] == "421")
        if domain.startswith("gone.") or local.startswith("permfail"):
            return self._say(self.model.says.unknown, "", recipient)
        if local.startswith("tempfail"):
            return Told(451, "4.3.0 Temporary trouble, as asked for")
        if domain.startswith("full.") and self._tried(f"full {recipient}", now_s) is None:
            return self._say(self.model.says.full, "", recipient)
        return None

    def _is_past_greylist(
        self, known: _Source, source: str, sending_domain: str, recipient: str, now_s: float
    ) -> bool:
        if known.passes >= self.model.greylist_passes:
            return True
        tried_s = self._tried(f"grey {source} {sending_domain} {recipient}", now_s)
        if tried_s is None or now_s - tried_s < self.model.greylist_s:
            return False
        known.passes += 1
        return True

    def _tried(self, what: str, now_s: float) -> float | None:
        """When it was tried first; None: this is the first time."""
        key = blake2b(what.encode(), digest_size=12).digest()
        tried_s = self._tries.get(key)
        if tried_s is None:
            self._tries[key] = now_s
            if len(self._tries) > TRIES_MAX:
                self._tries.popitem(last=False)
        return tried_s

    def _fate(self, recipient: str) -> _Fate:
        digest = blake2b(recipient.encode(), digest_size=28, key=self._key).digest()
        return _Fate(*(number / 0x1_0000_0000 for number in struct.unpack(">7I", digest)))

    def _say(self, text: str, source: str, recipient: str, *, closes: bool = False) -> Told:
        """Words that begin with 421 end the connection (RFC 5321 §3.8)."""
        code, _, words = text.partition(" ")
        words = words.replace("{source}", source or "unknown").replace("{recipient}", recipient)
        return Told(int(code), words, closes or code == "421")


class _Source:
    """What one source has brought, and what became of it."""

    __slots__ = (
        "_best",
        "_hour",
        "_in_hour",
        "_in_minute",
        "_judged",
        "_minute",
        "_part_s",
        "accepted",
        "complained",
        "days",
        "now_s",
        "passes",
        "unknown",
    )

    def __init__(self, judged_s: float) -> None:
        self.now_s = 0.0
        self.passes = 0
        self.days: dict[int, int] = {}
        self._best = (-1, 0)  # (today, the best day before it)
        self._hour = self._minute = -1
        self._in_hour = self._in_minute = 0
        self._part_s = judged_s / _PARTS
        self._judged: deque[list[int]] = deque()  # part, accepted, complained, unknown
        self.accepted = self.complained = self.unknown = 0

    def slide(self, now_s: float) -> None:
        self.now_s = now_s = max(self.now_s, now_s)
        hour, minute = int(now_s // 3_600), int(now_s // 60)
        if minute != self._minute:
            self._minute, self._in_minute = minute, 0
        if hour != self._hour:
            self._hour, self._in_hour = hour, 0
            today = int(now_s // _DAY_S)
            if self.days:
                self.days = {d: n for d, n in self.days.items() if d >= today - DAYS_KNOWN}
        oldest = int(now_s // self._part_s) - _PARTS
        while self._judged and self._judged[0][0] <= oldest:
            _, accepted, complained, unknown = self._judged.popleft()
            self.accepted -= accepted
            self.complained -= complained
            self.unknown -= unknown

    def remember(self, day: int, messages: int) -> None:
        self.days[day] = messages
        self._best = (-1, 0)

    def best_day(self) -> int:
        """Of the days before this one."""
        today = int(self.now_s // _DAY_S)
        if self._best[0] != today:
            past = (n for day, n in self.days.items() if day < today)
            self._best = (today, max(past, default=0))
        return self._best[1]

    def room(self, per_day: int, model: Model) -> int:
        """Of this minute, this hour and this day, whatever leaves least."""
        left = min(
            ceil(max(1, per_day * model.minute_share)) - self._in_minute,
            ceil(max(1, per_day * model.hour_share)) - self._in_hour,
            per_day - self.days.get(int(self.now_s // _DAY_S), 0),
        )
        return max(0, left)

    def accept(self, messages: int = 1) -> None:
        self._in_minute += messages
        self._in_hour += messages
        today = int(self.now_s // _DAY_S)
        self.days[today] = self.days.get(today, 0) + messages
        self.judge(accepted=messages)

    def judge(self, accepted: int = 0, complained: int = 0, unknown: int = 0) -> None:
        part = int(self.now_s // self._part_s)
        if not self._judged or self._judged[-1][0] != part:
            self._judged.append([part, 0, 0, 0])
        counts = self._judged[-1]
        for place, count in enumerate((accepted, complained, unknown), 1):
            counts[place] += count
        self.accepted += accepted
        self.complained += complained
        self.unknown += unknown


# -- models ----------------------------------------------------------------------------------------


def behaviours() -> Mapping[str, Model]:
    """The models that come with Manta, by name: ``google``, ``yahoo``, ``outlook``,
    ``greylister`` and ``postfix``, an ordinary small host."""
    return _shipped()


def model_of(provider: str) -> Model:
    """The model of a provider of the shaping file; of an ordinary host where it has none."""
    models = _shipped()
    return _by_provider().get(provider) or models.get(provider) or models[ORDINARY]


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, Model]:
    file = resources.files("manta.delivery.rehearsal") / "behaviours.toml"
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({name: _model(name, row) for name, row in document["model"].items()})


@lru_cache(maxsize=1)
def _by_provider() -> Mapping[str, Model]:
    return {provider: model for model in _shipped().values() for provider in model.serves}


def _model(name: str, row: Mapping[str, Any]) -> Model:
    """A bad row is a fault of ours and raises."""
    values = _tuples(row)
    return Model(**{**values, "name": name, "says": Says(**_tuples(values["says"]))})


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
