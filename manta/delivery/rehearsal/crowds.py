"""Mailboxes by the thousand: what a provider's model does to messages of which only the number is
known, and where those wait that have to try again.

A rehearsal goes through a million messages in seconds, so it knows no addresses: recipients for
whom the same holds are a ``Cohort``, a ``Crowd`` draws how many of them meet which fate by the
shares of the model (``rehearsal.behaviour``), and a ``Queue`` keeps the rest until they are
due. What depends on the source (its rate, its standing, the greylist) is the ``Behaviour``'s own
doing. Pure: time and randomness are arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, log, log1p, log2, sqrt
from random import Random
from typing import NamedTuple

from manta.delivery.rehearsal.behaviour import Behaviour, LaterKind, Model, Told

SLICES_MAX = 8  # in which what comes later, or is put off, is spread over time
EXACT_MEAN_MAX = 30.0  # above, a binomial number is drawn from the normal distribution
BIN_PART = 0.05  # of a wait: those that come back so close together come back as one
MAILBOX_FULL = Told(552, "5.2.2 Mailbox full")  # what a relay reports when it has given up


@dataclass(slots=True)
class Cohort:
    """``count`` recipients that have been tried as often. ``tried_s``: when first, the latest of
    them. ``is_full``: their mailboxes are, and stay so."""

    count: int
    is_engaged: bool = False
    attempts: int = 0
    tried_s: float = 0.0
    is_full: bool = False


class Fate(NamedTuple):
    """``told`` None: accepted."""

    messages: int
    told: Told | None
    is_full: bool = False


class Comes(NamedTuple):
    """``messages`` of a kind come back ``after_s`` seconds after they were taken."""

    messages: int
    kind: LaterKind
    after_s: float
    told: Told | None = None


class Crowd:
    """The mailboxes of one provider or site, behind its own servers."""

    def __init__(self, behaviour: Behaviour, random: Random) -> None:
        self.behaviour = behaviour
        self.model: Model = behaviour.model
        self._random = random

    def bring(self, source: str, cohort: Cohort, now_s: float) -> Iterator[Fate]:
        """What becomes of a cohort that a source brings; ``now_s`` is the model's own time."""
        says, behaviour, count = self.model.says, self.behaviour, cohort.count
        standing = behaviour.standing(source, now_s)
        room = behaviour.room(source, now_s)
        is_early = not cohort.attempts or now_s - cohort.tried_s < self.model.greylist_s
        if standing.is_blocked:
            yield Fate(count, told_of(says.blocked, source))
        elif not room:
            yield from self._beyond(source, count, standing.is_slowed)
        elif is_early and behaviour.is_greylisted(source, now_s):
            yield Fate(count, told_of(says.greylisted, source))
        elif cohort.is_full:
            yield Fate(count, told_of(says.full, source), True)
        else:
            yield from self._try(source, cohort, room, standing.is_slowed, now_s)

    def _try(
        self,
        source: str,
        cohort: Cohort,
        room: int,
        is_slowed: bool,
        now_s: float,
    ) -> Iterator[Fate]:
        """Who does not exist or is full takes no room; the others do, one each."""
        model, random, count = self.model, self._random, cohort.count
        refused = model.unknown_share + (1 - model.unknown_share) * model.full_share
        tried = min(count, ceil(room / max(0.01, 1 - refused)))
        unknown = drawn(random, tried, model.unknown_share)
        full = drawn(random, tried - unknown, model.full_share)
        accepted = min(tried - unknown - full, room)
        passes = accepted if cohort.attempts else 0
        self.behaviour.brought(source, now_s, accepted, unknown, passes)
        if accepted:
            yield Fate(accepted, None)
        if unknown:
            yield Fate(unknown, told_of(model.says.unknown, source))
        if full:
            yield Fate(full, told_of(model.says.full, source), True)
        yield from self._beyond(source, count - accepted - unknown - full, is_slowed)

    def _beyond(self, source: str, count: int, is_slowed: bool) -> Iterator[Fate]:
        if count > 0:
            says = self.model.says
            yield Fate(count, told_of(says.slowed if is_slowed else says.rate, source))

    def later(self, count: int) -> Iterator[Comes]:
        """What comes back of messages that were taken."""
        model, random = self.model, self._random
        late = drawn(random, count, model.late_share)
        if late:
            told = told_of(random.choice(model.says.late), "")
            for part, after_s in spread(random, late, model.late_after_s):
                yield Comes(part, LaterKind.DSN, after_s, told)
        yield from self._complaints(count - late)

    def _complaints(self, count: int) -> Iterator[Comes]:
        model = self.model
        complaints = drawn(self._random, count, model.complaint_share)
        for part, after_s in spread(self._random, complaints, model.complaint_after_s):
            yield Comes(part, LaterKind.COMPLAINT, after_s)


class RelayedCrowd(Crowd):
    """The same mailboxes behind a relay: it takes all, and what the provider refuses comes back by
    mail. What the provider thinks of the relay is the relay's affair."""

    def bring(self, source: str, cohort: Cohort, now_s: float) -> Iterator[Fate]:
        yield Fate(cohort.count, None)

    def later(self, count: int) -> Iterator[Comes]:
        model, random = self.model, self._random
        unknown = drawn(random, count, model.unknown_share)
        for part, after_s in spread(random, unknown, model.late_after_s):
            yield Comes(part, LaterKind.DSN, after_s, told_of(model.says.unknown, ""))
        full = drawn(random, count - unknown, model.full_share)
        for part, after_s in spread(random, full, model.late_after_s):
            yield Comes(part, LaterKind.DSN, after_s, MAILBOX_FULL)
        yield from super().later(count - unknown - full)


def told_of(text: str, source: str) -> Told:
    """One of a model's replies, to nobody in particular."""
    code, _, words = text.partition(" ")
    words = words.replace("{source}", source or "192.0.2.1").replace("{recipient}", "@")
    return Told(int(code), words)


# -- who waits -------------------------------------------------------------------------------------


class Queue:
    """The messages for one destination: those that may go, the engaged first, and those that have
    to wait. Cohorts that become due together are one, so its size follows from the waits alone."""

    def __init__(self, engaged: int, rest: int) -> None:
        self._ready: dict[bool, deque[Cohort]] = {True: deque(), False: deque()}
        self._counts = {True: 0, False: 0}
        self._waiting: dict[tuple[float, int, bool, bool], Cohort] = {}
        self._due: list[tuple[float, tuple[float, int, bool, bool]]] = []
        self.waiting = 0
        for is_engaged, count in ((True, engaged), (False, rest)):
            if count:
                self._ready[is_engaged].append(Cohort(count, is_engaged))
                self._counts[is_engaged] = count

    def __len__(self) -> int:
        return self.ready() + self.waiting

    def ready(self, *, engaged_only: bool = False) -> int:
        return self._counts[True] + (0 if engaged_only else self._counts[False])

    def take(self, wanted: int, *, engaged_only: bool = False) -> list[Cohort]:
        """Up to so many that may go."""
        taken: list[Cohort] = []
        for is_engaged in (True,) if engaged_only else (True, False):
            line = self._ready[is_engaged]
            while wanted > 0 and line:
                first = line[0]
                part = min(wanted, first.count)
                if part == first.count:
                    taken.append(line.popleft())
                else:
                    first.count -= part
                    taken.append(
                        Cohort(part, is_engaged, first.attempts, first.tried_s, first.is_full)
                    )
                wanted -= part
                self._counts[is_engaged] -= part
        return taken

    def put_off(self, cohort: Cohort, now_s: float, wait_s: float) -> None:
        """They wait so long; who waits about as long and is alike waits with them."""
        grain_s = 2.0 ** max(0, int(log2(wait_s * BIN_PART or 1)))  # so that they coincide
        due_s = ceil((now_s + wait_s) / grain_s) * grain_s
        key = (due_s, cohort.attempts, cohort.is_full, cohort.is_engaged)
        known = self._waiting.get(key)
        if known is None:
            self._waiting[key] = cohort
            heappush(self._due, (due_s, key))
        else:
            known.count += cohort.count
            known.tried_s = max(known.tried_s, cohort.tried_s)
        self.waiting += cohort.count

    def mature(self, now_s: float) -> None:
        """Who is due may go, before those that have not been tried."""
        while self._due and self._due[0][0] <= now_s:
            cohort = self._waiting.pop(heappop(self._due)[1])
            self.waiting -= cohort.count
            self._ready[cohort.is_engaged].appendleft(cohort)
            self._counts[cohort.is_engaged] += cohort.count

    @property
    def next_due_s(self) -> float | None:
        return self._due[0][0] if self._due else None


# -- drawing ---------------------------------------------------------------------------------------


def drawn(random: Random, count: int, share: float) -> int:
    """How many of ``count`` have what a ``share`` of all has: a binomial number."""
    if count <= 0 or share <= 0:
        return 0
    if share >= 1:
        return count
    if share > 0.5:
        return count - drawn(random, count, 1 - share)
    mean = count * share
    if mean > EXACT_MEAN_MAX:
        found = random.gauss(mean, sqrt(mean * (1 - share)))
        return min(count, max(0, round(found)))
    # The gaps between hits are geometric (Devroye 1986, §X.4).
    hits, place, scale = 0, 0, log1p(-share)
    while True:
        gap = log(1 - random.random()) / scale
        if place + gap >= count:
            return hits
        place += int(gap) + 1
        hits += 1


def spread(random: Random, count: int, mean_s: float) -> Iterator[tuple[int, float]]:
    """``count`` moments, exponential about ``mean_s``, at most ``SLICES_MAX`` of them."""
    for part in sliced(count):
        yield part, -log(1 - random.random()) * mean_s


def sliced(count: int) -> Iterator[int]:
    """``count`` in at most ``SLICES_MAX`` parts of about the same size."""
    parts = min(count, SLICES_MAX)
    for place in range(parts):
        yield count * (place + 1) // parts - count * place // parts
