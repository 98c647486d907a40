"""Finding, creating and joining people over all shards, for every door by which they come in.

A person lives in the shard of the first name they had, each further name in the shard of its own
hash, and what happened to them under two ids may lie in two shards. What is here drives the
commands of single shards (``upsert``, ``claims``, ``merging``) in order and owns no state: each
step may be repeated, a crash between two steps is finished by whoever meets what it left
(``finish``), and the many of a batch share their calls.

Who is who (``identify``): the first of ``external_id``, ``email`` and ``phone`` that somebody has
names the person; where nobody has any, a new person is created. An anonymous person found under the
``anonymous_id`` is merged into them; the anonymous id of another known person moves to them, and
its past stays. Two known people are merged by ``merge`` alone, on somebody's word.

``Identified.subscriber_id`` is the id that owns the name. After a merge that is still the merged
id: events recorded under it reach the person it lives on as, and return to it if the merge is
undone. Reads follow it too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from manta.errors import Conflict, InvalidRequest, MantaError
from manta.ids import decode_id
from manta.people.addresses import Refused, normalised
from manta.people.claims import ReleaseIdentity
from manta.people.identities import (
    ANONYMOUS_ID,
    EMAIL,
    EXTERNAL_ID,
    KINDS,
    PHONE,
    VALUE_LENGTH_MAX,
    compared,
)
from manta.people.joining import Joining, Merged, finish, forward, join_many, merge, undo_merge
from manta.people.merging import Step
from manta.people.over_shards import (
    DEADLINE_S,
    IDS_MAX,
    Shards,
    execute_for,
    living,
    run_each,
)
from manta.people.storing import Name, Upserts, claim, upsert_many
from manta.people.upsert import Consent
from manta.schema import AttributeType

__all__ = [
    "Identified",
    "KnownPeople",
    "Merged",
    "Person",
    "Shards",
    "Upserts",
    "claim",
    "execute_for",
    "finish",
    "forward",
    "identify",
    "identify_many",
    "living",
    "merge",
    "release",
    "undo_merge",
    "upsert_many",
]

SETS_MAX = 1_000  # of identities, of one call
KNOWN_MAX = 100_000
IDENTIFIED = "identify"  # the cause of merges that follow from who names whom
_NAMING = (EXTERNAL_ID, EMAIL, PHONE)  # the first that somebody has names them


class Identified(NamedTuple):
    """Who a set of identities names. ``created``: they are new. ``merged``: an anonymous person was
    merged into them by this. ``refused``: the kinds of identities that others have, which were
    left to them."""

    subscriber_id: int
    created: bool = False
    merged: bool = False
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Person:
    """A set of identities, at least one, and what is said of whom they name: ``traits`` are columns
    as ``UpsertPeople`` takes them (``time_zone``, ``locale``, ``attr_…``), already of their
    types."""

    identities: Mapping[str, str]
    traits: Mapping[str, Any] = field(default_factory=dict)


async def identify(
    shards: Shards,
    identities: Mapping[str, str],
    *,
    source: str,
    key: str | None = None,
    traits: Mapping[str, Any] | None = None,
    types: Mapping[str, AttributeType] | None = None,
    consent: Consent | None = None,
    deadline_s: float = DEADLINE_S,
) -> Identified:
    """Who has these identities (kind → value); created if nobody. See the module for the rules.

    ``types`` are the declared types of the attributes in ``traits``, by name without prefix.
    Raises ``InvalidRequest`` for an identity that cannot be one, and what calls to shards raise.
    """
    (found,) = await identify_many(
        shards,
        [Person(identities, traits or {})],
        source=source,
        key=key,
        types=types,
        consent=consent,
        deadline_s=deadline_s,
    )
    if isinstance(found, MantaError):
        raise found
    return found


async def identify_many(
    shards: Shards,
    people: Sequence[Person],
    *,
    source: str,
    key: str | None = None,
    types: Mapping[str, AttributeType] | None = None,
    consent: Consent | None = None,
    deadline_s: float = DEADLINE_S,
) -> list[Identified | MantaError]:
    """``identify`` of up to ``SETS_MAX`` at the cost of a few calls to each shard.

    In the order of ``people``; each may fail alone. Whoever stands in it several times is one
    person, and the last of their traits hold. The consent is for all.
    """
    if len(people) > SETS_MAX:
        raise InvalidRequest(
            f"{len(people)} sets of identities", path="people", expected=f"at most {SETS_MAX}"
        )
    work = _Identifying(shards, people, source, key, deadline_s)
    await work.look_up()
    await work.store(types or {}, consent)
    await work.claim_further()
    await work.join_anonymous()
    return work.results()


@dataclass
class _One:
    """One set on its way. ``owner`` has the first name; ``person`` is who that is now."""

    traits: Mapping[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    owner: int | None = None
    person: int | None = None
    is_new: bool = False
    merged: bool = False
    refused: list[str] = field(default_factory=list)
    error: MantaError | None = None

    @property
    def is_named(self) -> bool:
        """Whether more than a browser is known."""
        return any(kind in self.names for kind in _NAMING)


class _Identifying:
    def __init__(
        self,
        shards: Shards,
        people: Sequence[Person],
        source: str,
        key: str | None,
        deadline_s: float,
    ) -> None:
        self._shards, self._source, self._key = shards, source, key
        self._deadline_s = deadline_s
        self._sets = [_checked(person) for person in people]
        self._owners: dict[Name, int | None] = {}

    def _going(self) -> list[_One]:
        return [each for each in self._sets if each.error is None]

    async def look_up(self) -> None:
        """Who has each of the identities."""
        names = {name for each in self._going() for name in each.names.items()}
        self._owners = await owners(self._shards, names, self._deadline_s)
        for each in self._going():
            kinds = _NAMING if each.is_named else (ANONYMOUS_ID,)
            known = (self._owners[k, each.names[k]] for k in kinds if k in each.names)
            each.owner = each.person = next((id for id in known if id is not None), None)
            if each.owner is None and not any(k in each.names for k in _CREATING):
                each.error = InvalidRequest(
                    "nobody has this phone, and a phone alone names nobody new",
                    path=PHONE,
                    expected="an email, external_id or anonymous_id beside it",
                )

    async def store(self, types: Mapping[str, AttributeType], consent: Consent | None) -> None:
        """Create who is new; write traits, and ask for the further identities."""
        wanted = [
            each
            for each in self._going()
            if each.owner is None or each.traits or consent or self._further(each)
        ]
        rows = [self._row(each) for each in wanted]
        done = await upsert_many(
            self._shards, rows, types, consent, self._key, self._source, self._deadline_s
        )
        firsts: set[Name] = set()
        for each, result in zip(wanted, done.results, strict=True):
            if isinstance(result, Conflict) and result.details.get("path") in KINDS:
                # The row itself is stored; what others have stays theirs.
                each.refused.append(result.details["path"])
                result = await self._id_of(each)
            if not isinstance(result, int):
                each.error = result or InvalidRequest("nobody", path="identities", expected="")
                continue
            each.person = result
            if each.owner is None:
                name = next((k, each.names[k]) for k in _CREATING if k in each.names)
                each.owner = result
                each.is_new = name not in firsts
                firsts.add(name)

    def _further(self, each: _One) -> dict[str, str]:
        """Identities that nobody has yet and that ``UpsertPeople`` can ask for."""
        return {
            kind: each.names[kind]
            for kind in (EXTERNAL_ID, PHONE)
            if kind in each.names and self._owners[kind, each.names[kind]] is None
        }

    def _row(self, each: _One) -> dict[str, Any]:
        if each.owner is not None:
            return {"subscriber_id": each.owner, **self._further(each), **each.traits}
        names = dict(each.names)
        if each.is_named:
            names.pop(ANONYMOUS_ID, None)  # whoever has it may have to be merged
        return {**names, **each.traits}

    async def _id_of(self, each: _One) -> int | MantaError:
        if each.owner is not None:
            return (await living(self._shards, [each.owner], self._deadline_s))[each.owner]
        name = next((k, each.names[k]) for k in _CREATING if k in each.names)
        found = (await owners(self._shards, [name], self._deadline_s))[name]
        return InvalidRequest("nobody", path=name[0], expected="") if found is None else found

    async def claim_further(self) -> None:
        """An address that nobody has becomes theirs; so does the anonymous id of nobody."""
        wanted: list[tuple[_One, str]] = []
        for each in self._going():
            for kind in (EMAIL, ANONYMOUS_ID) if each.is_named else ():
                if kind not in each.names or (kind == EMAIL and each.is_new):
                    continue  # an address has named who is new
                if self._owners[kind, each.names[kind]] is None:
                    wanted.append((each, kind))
        if not wanted:
            return
        people = {each.person for each, _ in wanted if each.person is not None}
        now = await living(self._shards, people, self._deadline_s)
        rows = {
            (kind, compared(kind, each.names[kind])): {
                "kind": kind,
                "value": compared(kind, each.names[kind]),
                "subscriber_id": now[each.person or 0],
                EMAIL: each.names[kind] if kind == EMAIL else None,
            }
            for each, kind in wanted
        }
        table = pa.Table.from_pylist(list(rows.values()), schema=_CLAIMS)
        refused = await claim(self._shards, table, self._source, self._key, self._deadline_s)
        for each, kind in wanted:
            error = refused.get((kind, compared(kind, each.names[kind])))
            if not isinstance(error, Conflict):
                each.error = error or each.error
            elif kind == ANONYMOUS_ID:  # somebody has it since we asked: they may be anonymous
                self._owners[kind, each.names[kind]] = decode_id(error.details["owner"])
            else:
                each.refused.append(kind)

    async def join_anonymous(self) -> None:
        """Whoever has the anonymous id is merged into who is named, or gives it up."""
        pairs: list[tuple[int, _One]] = []
        for each in self._going():
            value = each.names.get(ANONYMOUS_ID)
            other = self._owners[ANONYMOUS_ID, value] if value is not None else None
            if each.is_named and other is not None and other != each.owner:
                pairs.append((other, each))
        if not pairs:
            return
        ids = {id for other, each in pairs for id in (other, each.owner) if id is not None}
        now = await living(self._shards, ids, self._deadline_s)
        jobs: dict[int, Joining] = {}  # the last word on each visitor counts
        for other, each in pairs:
            each.person = now[each.owner or 0]
            if now[other] != each.person:
                visitor = now[other]
                jobs[visitor] = Joining(visitor, each.person, IDENTIFIED, only_anonymous=True)
        await join_many(self._shards, list(jobs.values()), self._deadline_s)
        released: dict[str, tuple[int, int, _One]] = {}
        for other, each in pairs:
            job = jobs.get(now[other])
            if job is None:
                continue
            if job.error is not None:
                each.error = job.error
            elif job.step is Step.KNOWN:
                released[each.names[ANONYMOUS_ID]] = other, now[other], each
            else:
                each.merged = job.step is Step.DONE and job.to_id == each.person
        await self._move(list(released.values()))

    async def _move(self, moved: Sequence[tuple[int, int, _One]]) -> None:
        """The anonymous id of another known person becomes that of who is named now."""
        if not moved:
            return
        calls = []
        for owner, person, each in moved:
            value = each.names[ANONYMOUS_ID]
            shards = {self._shards.of_subscriber(id) for id in (owner, person)}
            for shard in shards | {self._shards.of_identity(ANONYMOUS_ID, value)}:
                calls.append((shard, ReleaseIdentity(None, owner, ANONYMOUS_ID, value)))
        for answer in await run_each(self._shards, calls, self._deadline_s):
            if isinstance(answer, MantaError):
                raise answer
        rows = [
            {
                "kind": ANONYMOUS_ID,
                "value": each.names[ANONYMOUS_ID],
                "subscriber_id": each.person,
                EMAIL: None,
            }
            for _, _, each in moved
        ]
        table = pa.Table.from_pylist(rows, schema=_CLAIMS)
        await claim(self._shards, table, self._source, self._key, self._deadline_s)

    def results(self) -> list[Identified | MantaError]:
        found: list[Identified | MantaError] = []
        for each in self._sets:
            if each.error is not None:
                found.append(each.error)
            else:
                assert each.owner is not None
                found.append(Identified(each.owner, each.is_new, each.merged, tuple(each.refused)))
        return found


_CREATING = (EMAIL, EXTERNAL_ID, ANONYMOUS_ID)  # as ``upsert`` takes them
_CLAIMS = pa.schema(
    {"kind": pa.string(), "value": pa.string(), "subscriber_id": pa.int64(), EMAIL: pa.string()}
)


async def owners(
    shards: Shards, names: Iterable[Name], deadline_s: float = DEADLINE_S
) -> dict[Name, int | None]:
    """Who has each of these identities (kind and value), by the id that owns it."""
    parts: dict[tuple[int, str], list[str]] = defaultdict(list)
    found: dict[Name, int | None] = {}
    for kind, value in sorted(set(names)):
        parts[shards.of_identity(kind, compared(kind, value)), kind].append(value)
    asked = [
        (shard, kind, values[at : at + IDS_MAX])
        for (shard, kind), values in parts.items()
        for at in range(0, len(values), IDS_MAX)
    ]
    answers = await asyncio.gather(
        *(
            shards.query(shard, "identities", {"kind": kind, "values": values}, deadline_s)
            for shard, kind, values in asked
        )
    )
    for (_, kind, values), answer in zip(asked, answers, strict=True):
        found |= {(kind, value): id for value, id in zip(values, answer, strict=True)}
    return found


async def release(
    shards: Shards, subscriber_id: int, kind: str, value: str, deadline_s: float = DEADLINE_S
) -> bool:
    """The person gives up an identity, also one that came by a merge. Answers whether they had it.

    Raises ``Conflict`` for the address that mails go to.
    """
    name = kind, compared(kind, value)
    owner = (await owners(shards, [name], deadline_s))[name]
    if owner is None:
        return False
    now = await living(shards, [owner, subscriber_id], deadline_s)
    if now[owner] != now[subscriber_id]:
        return False
    # The living person's shard first: it alone knows which address is in use.
    calls = [(now[owner], shards.of_subscriber(now[owner]))]
    calls += [(owner, shards.of_subscriber(owner)), (owner, shards.of_identity(*name))]
    for id, shard in dict.fromkeys(calls):
        await shards.execute(shard, ReleaseIdentity(None, id, *name), deadline_s)
    return True


def _checked(person: Person) -> _One:
    """The identities in the form in which they are stored; an address as it is written."""
    one = _One(person.traits)
    for kind, value in person.identities.items():
        if kind not in KINDS:
            one.error = InvalidRequest(
                f"{kind!r:.40} is not a kind of identity", path=kind, expected=", ".join(KINDS)
            )
            return one
        text = value.strip() if isinstance(value, str) else ""
        if kind == EMAIL and text:
            address = normalised(text)
            if isinstance(address, Refused):
                one.error = InvalidRequest(
                    f"{text!r:.80} is not an address: {address.reason}",
                    path=kind,
                    expected="local@domain",
                )
                return one
            text = address
        if not text or len(text) > VALUE_LENGTH_MAX or not text.isprintable():
            one.error = InvalidRequest(
                f"this {kind} is empty or cannot be one",
                path=kind,
                expected=f"1 to {VALUE_LENGTH_MAX} printable characters",
            )
            return one
        one.names[kind] = text
    if not one.names:
        one.error = InvalidRequest("this names nobody", path="", expected=" or ".join(KINDS))
    return one


class KnownPeople:
    """Who certain sets of identities name, as found out before: spares asking for each event.

    Of a set the whole is remembered, since several identities together may name somebody else than
    each alone. At most ``entries_max`` sets, the least recently used go first. An entry may be out
    of date: then the shard answers ``unknown`` or an unexpected person, and the caller says
    ``forget`` and asks again. A merge needs no forgetting, since old ids are followed.
    """

    def __init__(self, entries_max: int = KNOWN_MAX) -> None:
        self._entries_max = entries_max
        self._ids: OrderedDict[tuple[Name, ...], int] = OrderedDict()
        self._sets: dict[int, set[tuple[Name, ...]]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, identities: Mapping[str, str]) -> int | None:
        """The subscriber id, or ``None`` where it has to be found out by ``identify``."""
        names = _names(identities)
        id = self._ids.get(names)
        if id is not None:
            self._ids.move_to_end(names)
        return id

    def put(self, identities: Mapping[str, str], subscriber_id: int) -> None:
        names = _names(identities)
        self._drop(names)
        self._ids[names] = subscriber_id
        self._sets.setdefault(subscriber_id, set()).add(names)
        while len(self._ids) > self._entries_max:
            self._drop(next(iter(self._ids)))

    def forget(self, subscriber_id: int) -> None:
        """Nothing is known of this id any more: a shard has said that it is not theirs."""
        for names in list(self._sets.get(subscriber_id, ())):
            self._drop(names)

    def _drop(self, names: tuple[Name, ...]) -> None:
        id = self._ids.pop(names, None)
        if id is None:
            return
        held = self._sets[id]
        held.discard(names)
        if not held:
            del self._sets[id]


def _names(identities: Mapping[str, str]) -> tuple[Name, ...]:
    return tuple(sorted(identities.items()))
