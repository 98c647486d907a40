"""Whom identities belong to, remembered: most events are of people who were here a moment ago.

A replica keeps what it found out for up to twice ``KEEP_S``. Names that it does not know are asked
for together, those of all requests in one call to ``manta.people.identifying``, which makes new
people of names that nobody has. A name that has gone to somebody else meanwhile is found out when
the shard does not know the person any more, or after that time; merged people are followed by the
shards themselves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from actors.handles import Handles
from manta.errors import MantaError, Overloaded
from manta.people.identifying import SETS_MAX, KnownPeople, Person, identify_many

KNOWN_MAX = 200_000
KEEP_S = 300.0
WAITING_MAX = 20_000  # names
GATHER_S = 0.003
Name = tuple[str, str]  # kind, compared form
Answer = int | MantaError


class People:
    """The people of one replica. ``source`` says in the history who made new ones."""

    def __init__(self, handles: Handles, source: str) -> None:
        self._shards = handles.shards
        self._clock = handles.clock
        self._source = source
        self._young, self._old = KnownPeople(KNOWN_MAX), KnownPeople(KNOWN_MAX)
        self._until_s = self._clock.monotonic() + KEEP_S
        self._waiting: OrderedDict[Name, asyncio.Future[Answer]] = OrderedDict()
        self._running: asyncio.Task[None] | None = None

    # -- what is remembered --------------------------------------------------------------------

    def get(self, identities: Mapping[str, str]) -> int | None:
        """Who had these identities a while ago."""
        if self._clock.monotonic() >= self._until_s:
            self._young, self._old = KnownPeople(KNOWN_MAX), self._young
            self._until_s = self._clock.monotonic() + KEEP_S
        found = self._young.get(identities)
        return found if found is not None else self._old.get(identities)

    def put(self, identities: Mapping[str, str], person: int) -> None:
        """What has been found out. What one of several identities meant alone may have changed."""
        if len(identities) > 1:
            for kind, value in identities.items():
                alone = self.get({kind: value})
                if alone is not None and alone != person:
                    self.forget(alone)
        self._young.put(identities, person)

    def forget(self, person: int) -> None:
        self._young.forget(person)
        self._old.forget(person)

    def forget_name(self, name: Name) -> None:
        person = self.get({name[0]: name[1]})
        if person is not None:
            self.forget(person)

    # -- asking --------------------------------------------------------------------------------

    async def resolve(self, names: Iterable[Name]) -> dict[Name, Answer]:
        """Who has each of these names, made where nobody had it; or why that is not known."""
        found: dict[Name, Answer] = {}
        waits: dict[Name, asyncio.Future[Answer]] = {}
        for name in names:
            known = self.get({name[0]: name[1]})
            if known is not None:
                found[name] = known
            elif (future := self._ask(name)) is not None:
                waits[name] = future
            else:
                found[name] = Overloaded("more names arrive than can be looked up at present")
        for name, future in waits.items():
            # Shielded: a request that ends early takes the answer from no other.
            found[name] = await asyncio.shield(future)
        return found

    def _ask(self, name: Name) -> asyncio.Future[Answer] | None:
        future = self._waiting.get(name)
        if future is None and len(self._waiting) < WAITING_MAX:
            loop = asyncio.get_running_loop()
            future = self._waiting[name] = loop.create_future()
            if self._running is None:
                self._running = loop.create_task(self._run())
        return future

    async def _run(self) -> None:
        """Round after round, until nobody waits."""
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            names = list(self._waiting)[:SETS_MAX]
            answers = await self._answers(names)
            for name, answer in zip(names, answers, strict=True):
                if not isinstance(answer, MantaError):
                    self.put({name[0]: name[1]}, answer)
                self._waiting.pop(name).set_result(answer)
        self._running = None

    async def _answers(self, names: Sequence[Name]) -> Sequence[Answer]:
        try:
            people = [Person({kind: value}) for kind, value in names]
            found = await identify_many(self._shards, people, source=self._source)
            return [each if isinstance(each, MantaError) else each.subscriber_id for each in found]
        except MantaError as error:
            return [error] * len(names)
        except Exception as error:  # the loop must outlive any bug: its futures are requests
            return [MantaError(f"names could not be looked up: {error!r:.200}")] * len(names)
