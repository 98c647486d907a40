"""Who the messages of one request are about, in the order in which they say so.

A batch may tell a whole story: somebody looks around, signs in, and goes on under their name. So
sets of identities that share one are taken one after another, and those that have nothing to do
with each other together: each round asks for the next set of every such story.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.handles import Shards
from manta.errors import MantaError, RetryableError
from manta.people.identifying import (
    SETS_MAX,
    Person,
    identify,
    identify_many,
    living,
    merge,
)
from manta.people.identifying import owners as owners_of
from manta.people.identities import ANONYMOUS_ID, EXTERNAL_ID, compared
from manta.schema import AttributeType
from serve_apps.collect.people import People

_EARLIER = (EXTERNAL_ID, ANONYMOUS_ID)  # as what an earlier self may be known
ALIAS = "alias"  # the cause of a merge that a message asked for


@dataclass
class Naming:
    """One set of identities with what is said of its person; ``person`` and ``error`` are found
    out."""

    identities: Mapping[str, str]
    columns: dict[str, Any] = field(default_factory=dict)
    formerly: str | None = None
    person: int = 0
    error: MantaError | None = None

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(kind, compared(kind, value)) for kind, value in self.identities.items()]


async def name_all(
    shards: Shards,
    people: People,
    namings: Sequence[Naming],
    types: Mapping[str, AttributeType],
    source: str,
) -> None:
    """Find out who each is about, in order. Raises ``RetryableError`` where a shard does not say:
    then all of it may be repeated."""
    stories = _stories([naming for naming in namings if not _is_known(people, naming)])
    for turn in range(max(map(len, stories), default=0)):
        together = [group for story in stories if turn < len(story) for group in story[turn]]
        for first in range(0, len(together), SETS_MAX):
            await _identify(shards, people, together[first : first + SETS_MAX], types, source)
        for group in together:
            if group[-1].formerly is not None and group[-1].person:
                await _unite(shards, people, group[-1], source)


def _is_known(people: People, naming: Naming) -> bool:
    if naming.columns or naming.formerly is not None:
        return False
    person = people.get(dict(naming.names))
    naming.person = person or 0
    return person is not None


def _stories(namings: Sequence[Naming]) -> list[list[list[list[Naming]]]]:
    """Those that share an identity, in order: turns of groups. Neighbours with the same identities
    are one group; those of one person who only differ in what is tied to them are of one turn."""
    first: dict[tuple[str, str | None], int] = {}
    above: list[int] = list(range(len(namings)))

    def root(n: int) -> int:
        while above[n] != n:
            above[n] = above[above[n]]
            n = above[n]
        return n

    for n, naming in enumerate(namings):
        earlier = [(kind, naming.formerly) for kind in _EARLIER if naming.formerly]
        for name in (*naming.names, *earlier):
            above[root(n)] = root(first.setdefault(name, n))
    stories: dict[int, list[list[list[Naming]]]] = {}
    for n, naming in enumerate(namings):
        story = stories.setdefault(root(n), [])
        last = story[-1][-1][-1] if story else None
        if last is None or last.formerly or naming.formerly:
            story.append([[naming]])
        elif last.identities == naming.identities:
            story[-1][-1].append(naming)
        elif _known_by(last) and _known_by(last) == _known_by(naming):
            story[-1].append([naming])
        else:
            story.append([[naming]])
    return list(stories.values())


def _known_by(naming: Naming) -> dict[str, str]:
    return {kind: value for kind, value in naming.identities.items() if kind != ANONYMOUS_ID}


async def _identify(
    shards: Shards,
    people: People,
    groups: Sequence[Sequence[Naming]],
    types: Mapping[str, AttributeType],
    source: str,
) -> None:
    asked = []
    for group in groups:
        columns: dict[str, Any] = {}
        for naming in group:
            columns |= naming.columns
        asked.append(Person(group[0].identities, columns))
    answers = await identify_many(shards, asked, source=source, types=types)
    for group, answer in zip(groups, answers, strict=True):
        if isinstance(answer, RetryableError):
            raise answer
        for naming in group:
            if isinstance(answer, MantaError):
                naming.error = answer
            else:
                naming.person = answer.subscriber_id
        if not isinstance(answer, MantaError):
            people.put(dict(group[0].names), answer.subscriber_id)


async def _unite(shards: Shards, people: People, naming: Naming, source: str) -> None:
    """The earlier self that a message names becomes one with its person: a known person by a merge,
    a browser as if both had been named together."""
    previous = naming.formerly or ""
    name = (EXTERNAL_ID, compared(EXTERNAL_ID, previous))
    try:
        earlier = (await owners_of(shards, [name]))[name]
        if earlier is None:
            both = {**naming.identities, ANONYMOUS_ID: previous}
            await identify(shards, both, source=source)
            return
        now = await living(shards, [earlier, naming.person])
        if now[earlier] != now[naming.person]:
            await merge(shards, now[earlier], now[naming.person], cause=ALIAS)
            people.forget(earlier)
    except RetryableError:
        raise
    except MantaError as error:
        naming.error = error
