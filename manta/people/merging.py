"""Two people turn out to be one, and perhaps not after all: merge and undo, as commands of shards.

A merge lets ``from_id`` live on as ``to_id``. The two may lie in two shards, so it takes steps:

    BeginMerge    in from's shard  alias `merging`; from is no longer to be found there: the profile
                                   and memberships go into ``aliases.kept``
    AdoptPerson   in to's shard    **decides**: to is alive and gets what from had, or is not, and
                                   the merge is refused for ever; either way the alias says so
    CopyEvents    in to's shard    from's events page by page, marked with the merge's id
    EndMerge      in from's shard  alias `merged`; of a refused merge `undone`, and from is back

and an undo takes them back:

    BeginUndo     in from's shard  alias `merging` again, marked as being undone
    ReturnPerson  in to's shard    **decides**: to gives back what came by the merge; it cannot
                                   while to itself is merged into somebody
    EndUndo       in from's shard  from is back as they were; the copies of events are hidden

Every step may be repeated, and answers again what it answered. Whoever drives may die in between;
the alias is then found `merging` for longer than ``aliases.UNFINISHED_AFTER`` and finished by whom
it meets. Where both people are of one shard there is one alias, which belongs to from's side; to's
side keeps its decision in ``kept``.

What is whose: to's own attributes win and only missing ones are filled in; of two consents the more
restrictive one holds; lists are united; counts of what left memory are added up. From's consents,
events, ledger, identities and predictions stay where they are under the old id and are not seen for
want of a profile, so an undo finds them untouched. **Nobody is resubscribed by a merge or undo**:
consents of somebody whose address is suppressed for cause are not carried over, and what was
withdrawn while they were one is withdrawn for both.

Cycles cannot be: from is without profile from the first step on, and to must have one at the
second. Chains can, up to ``HOPS_MAX``; they are undone from their end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import Conflict, NotFound
from manta.ids import encode_id
from manta.people.aliases import (
    HOPS_MAX,
    MERGED,
    MERGING,
    STANDING,
    UNDONE,
    Alias,
    among_ids,
    standing,
)
from manta.people.consents import UNSUBSCRIBED, Given, check_text, consent_changes, revocations
from manta.people.history import compact_json, recorded, rows_of, upserted
from manta.people.identities import ANONYMOUS_ID, CONFIRMED, EMAIL
from manta.people.keeping import (
    SOURCE,
    Package,
    Row,
    adopt,
    give_back,
    jsonable,
    package,
    profile_change,
    rows_of_person,
    segments_of,
    sums_of,
    typed_profile,
)
from manta.schema import ALIASES

EVENTS_PAGE = 2_000  # of from's, copied at once


class Step(StrEnum):
    """How far a merge or an undo has come, as its commands answer it."""

    BEGUN = "begun"  # from's side has begun: go on with to's
    DONE = "done"
    KNOWN = "known"  # from is no anonymous person, and only those were to be merged
    ELSEWHERE = "elsewhere"  # from lives on as somebody else already
    ADOPTED = "adopted"  # to's side is done: go on with the events, then with from's end
    REFUSED = "refused"  # to is not alive (merge), or lives on as somebody else (undo)
    RETURNED = "returned"  # to's side of the undo is done: go on with from's
    UNDOING = "undoing"  # this merge is being undone


class Begun(NamedTuple):
    """Of ``BeginMerge``. ``to_id`` is whom from lives on as, or is to."""

    step: Step
    to_id: int
    merge_id: int = 0
    cause: str = ""
    package: Package | None = None
    events: pa.Table | None = None  # the first page


class BegunUndo(NamedTuple):
    """Of ``BeginUndo``. ``sums`` are counts of what left from's memory."""

    step: Step
    to_id: int
    merge_id: int
    sums: Mapping[str, Sequence[Row]] = {}


class Withdrawn(NamedTuple):
    """A consent that ended while two people were one."""

    channel: str
    topic: str
    changed_at: datetime


# -- merge -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeginMerge:
    """From's side: from is hidden, and answers what they have.

    ``only_anonymous``: leave from alone where anybody knows who they are. ``to_id`` ``None``: go on
    with the merge that is on its way. Raises ``NotFound`` where nobody has the id, ``Conflict`` for
    one person with themselves and for a chain that is too long.
    """

    key: str | None
    from_id: int
    to_id: int | None
    cause: str
    only_anonymous: bool = False

    def decide(self, database: Database, context: Context) -> Decision:
        alias = standing(database, [self.from_id]).get(self.from_id)
        if alias is not None:
            return self._again(alias, database, context)
        if self.to_id is None:
            return Decision(Begun(Step.DONE, self.from_id))
        check_text(self.cause, "cause")
        if self.to_id == self.from_id:
            raise Conflict("this is one person", path="into", expected="somebody else")
        profiles = rows_of_person(database, "profiles", self.from_id)
        if not profiles:
            raise NotFound(f"no person has the id {self.from_id}", path="subscriber_id")
        if self.only_anonymous and not _is_anonymous(database, profiles[0]):
            return Decision(Begun(Step.KNOWN, self.from_id))
        depth = _depth(database, self.from_id)
        if depth > HOPS_MAX:
            raise Conflict(
                f"{HOPS_MAX} merges in a row lead to this person",
                path="subscriber_id",
                expected="somebody into whom fewer were merged",
            )
        segments = segments_of(database, self.from_id)
        merge_id = context.random.getrandbits(63) | 1
        kept = {
            "depth": depth,
            "from": {"profile": jsonable(profiles[0]), "segments": segments},
        }
        alias_row = upserted(
            ALIASES.name,
            1,
            from_id=self.from_id,
            to_id=self.to_id,
            merge_id=merge_id,
            state=MERGING,
            cause=self.cause,
            kept=compact_json(kept),
            created_at=context.now,
            changed_at=context.now,
        )
        gone = [
            Change(table, Op.DELETE, rows_of(table, 1, subscriber_id=self.from_id))
            for table in ("profiles", *(["memberships"] if segments else []))
        ]
        begun = _begun(self, database, context, self.to_id, merge_id, self.cause, kept)
        # A leased message of theirs goes back, and is screened before it is leased again.
        pushes = revocations(database, [self.from_id], EMAIL, marketing_only=False)
        return Decision(begun, (alias_row, *gone), pushes)

    def _again(self, alias: Alias, database: Database, context: Context) -> Decision:
        if self.to_id not in (None, alias.to_id):
            return Decision(Begun(Step.ELSEWHERE, alias.to_id, alias.merge_id))
        if alias.state == MERGED:
            return Decision(Begun(Step.DONE, alias.to_id, alias.merge_id))
        cause, kept = _row(database, alias.from_id, alias.merge_id)
        if kept.get("undoing"):
            return Decision(Begun(Step.UNDOING, alias.to_id, alias.merge_id))
        if "from" not in kept:  # erased on the way: there is nobody to go on with
            return Decision(Begun(Step.DONE, alias.to_id, alias.merge_id))
        return Decision(_begun(self, database, context, alias.to_id, alias.merge_id, cause, kept))


@dataclass(frozen=True)
class EventsOfMerged:
    """The next page of from's events, read after everything that has been committed."""

    key: str | None
    from_id: int
    after: tuple[datetime, int]

    def decide(self, database: Database, context: Context) -> Decision:
        return Decision(_events_page(database, self.from_id, self.after))


@dataclass(frozen=True)
class AdoptPerson:
    """To's side: the decision. Answers the ``Step`` and the ``Copies`` for those beyond to."""

    key: str | None
    from_id: int
    begun: Begun

    def decide(self, database: Database, context: Context) -> Decision:
        merge_id, to_id = self.begun.merge_id, self.begun.to_id
        _, kept = _row(database, self.from_id, merge_id)
        decided = kept.get("to")
        if decided is not None:
            return Decision(Step(decided["step"]))
        assert self.begun.package is not None
        if not rows_of_person(database, "profiles", to_id):
            return Decision(Step.REFUSED, (self._alias(kept, {"step": Step.REFUSED}, context),))
        got = adopt(database, context, to_id, self.begun.package)
        said = _said(self.from_id, to_id, merge_id, self.begun.cause)
        history = recorded(
            "people_merged", pa.array([to_id], pa.int64()), said, context.now, context.random
        )
        to_side = {"step": Step.ADOPTED, "at": jsonable(context.now), **got.kept}
        alias = self._alias(kept, to_side, context)
        return Decision(Step.ADOPTED, (alias, *got.changes, history), got.pushes)

    def _alias(self, kept: Row, to_side: Row, context: Context) -> Change:
        """To's decision: in from's alias if from is of this shard, else in one of its own."""
        begun = self.begun
        row: Row = {"from_id": self.from_id, "merge_id": begun.merge_id}
        assert begun.package is not None
        if "from" not in kept:
            adopted = to_side["step"] is Step.ADOPTED
            row |= {
                "to_id": begun.to_id,
                "state": MERGED if adopted else UNDONE,
                "cause": begun.cause,
                "created_at": context.now,
                "changed_at": context.now,
            }
            kept = {"depth": begun.package.depth}
        row["kept"] = compact_json(kept | {"to": to_side})
        return upserted(ALIASES.name, 1, **row)


@dataclass(frozen=True)
class EndMerge:
    """From's side again: the merge stands, or from is back because to's side refused."""

    key: str | None
    from_id: int
    merge_id: int
    adopted: bool

    def decide(self, database: Database, context: Context) -> Decision:
        alias = standing(database, [self.from_id]).get(self.from_id)
        if alias is None or alias.merge_id != self.merge_id or alias.state != MERGING:
            return Decision(False)
        cause, kept = _row(database, self.from_id, self.merge_id)
        if kept.get("undoing") or "from" not in kept:  # being undone, or erased
            return Decision(False)
        if not self.adopted:
            return Decision(True, _back(database, context, alias, kept, ()))
        said = _said(self.from_id, alias.to_id, self.merge_id, cause)
        people = pa.array([self.from_id], pa.int64())
        history = recorded("people_merged", people, said, context.now, context.random)
        return Decision(True, (_state(alias, MERGED, kept, context), history))


# -- undo ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeginUndo:
    """From's side: the merge is being undone. Raises ``NotFound`` where no merge stands, or its
    people were erased: then there is nothing to give back."""

    key: str | None
    from_id: int

    def decide(self, database: Database, context: Context) -> Decision:
        alias = standing(database, [self.from_id]).get(self.from_id)
        if alias is None:
            raise NotFound(
                "this person is not merged into anybody",
                path="subscriber_id",
                expected="the id of a merge's former person",
            )
        _, kept = _row(database, self.from_id, alias.merge_id)
        if "from" not in kept:
            raise NotFound("this person was erased", path="subscriber_id")
        sums = sums_of(database, self.from_id)
        begun = BegunUndo(Step.UNDOING, alias.to_id, alias.merge_id, sums)
        if kept.get("undoing"):
            return Decision(begun)
        if alias.state == MERGING:  # has not come to its end yet
            return Decision(BegunUndo(Step.BEGUN, alias.to_id, alias.merge_id))
        return Decision(begun, (_state(alias, MERGING, kept | {"undoing": True}, context),))


@dataclass(frozen=True)
class ReturnPerson:
    """To's side: the decision. Answers the ``Step``, and what was withdrawn meanwhile."""

    key: str | None
    from_id: int
    begun: BegunUndo

    def decide(self, database: Database, context: Context) -> Decision:
        to_id, merge_id = self.begun.to_id, self.begun.merge_id
        cause, kept = _row(database, self.from_id, merge_id)
        mine = kept.get("to")
        if mine is None or mine["step"] == Step.REFUSED:
            return Decision((Step.RETURNED, ()))  # a merge that never was
        if mine["step"] == Step.RETURNED:
            withdrawn = tuple(Withdrawn(c, t, _at(at)) for c, t, at in mine["withdrawn"])
            return Decision((Step.RETURNED, withdrawn))
        if to_id in standing(database, [to_id]):
            return Decision((Step.REFUSED, ()))
        changes: list[Change] = []
        withdrawn = ()
        if rows_of_person(database, "profiles", to_id):
            withdrawn = _withdrawn_since(database, to_id, _at(mine["at"]))
            changes += give_back(database, context, to_id, mine, self.begun.sums)
            said = _said(self.from_id, to_id, merge_id, cause) | {"undone": True}
            people = pa.array([to_id], pa.int64())
            changes.append(recorded("people_merged", people, said, context.now, context.random))
        note = {"step": Step.RETURNED, "withdrawn": [jsonable(list(w)) for w in withdrawn]}
        row: Row = {
            "from_id": self.from_id,
            "to_id": to_id,
            "merge_id": merge_id,
            "kept": compact_json(kept | {"to": note}),
        }
        if "from" not in kept:
            row |= {"state": UNDONE, "changed_at": context.now}
        changes.append(upserted(ALIASES.name, 1, **row))
        return Decision((Step.RETURNED, withdrawn), tuple(changes))


@dataclass(frozen=True)
class EndUndo:
    """From's side again: from is back, or the merge stands because to's side refused."""

    key: str | None
    from_id: int
    merge_id: int
    returned: bool
    withdrawn: tuple[Withdrawn, ...] = ()

    def decide(self, database: Database, context: Context) -> Decision:
        alias = standing(database, [self.from_id]).get(self.from_id)
        if alias is None or alias.merge_id != self.merge_id:
            return Decision(False)
        cause, kept = _row(database, self.from_id, self.merge_id)
        if not kept.pop("undoing", False):  # done, or erased meanwhile
            return Decision(False)
        if not self.returned:
            return Decision(False, (_state(alias, MERGED, kept, context),))
        changes = _back(database, context, alias, kept, self.withdrawn)
        said = _said(self.from_id, alias.to_id, self.merge_id, cause) | {"undone": True}
        people = pa.array([self.from_id], pa.int64())
        history = recorded("people_merged", people, said, context.now, context.random)
        return Decision(True, (*changes, history))


# -- helpers ---------------------------------------------------------------------------------------


def _begun(
    command: BeginMerge,
    database: Database,
    context: Context,
    to_id: int,
    merge_id: int,
    cause: str,
    kept: Row,
) -> Begun:
    """What to's side needs; the profile and segments as they were written down."""
    mine = kept["from"]
    profile = typed_profile(mine["profile"], database.columns("profiles"))
    given = package(database, context, command.from_id, profile, mine["segments"], kept["depth"])
    events = _events_page(database, command.from_id, (datetime.min, 0))
    return Begun(Step.BEGUN, to_id, merge_id, cause, given, events)


def _events_page(database: Database, id: int, after: tuple[datetime, int]) -> pa.Table:
    """Own events in order of time; what are copies too, since those are passed on."""
    return database.table(
        f"SELECT * FROM events WHERE {among_ids('subscriber_id', [id])}"
        " AND (occurred_at, event_id) > (?, ?) ORDER BY occurred_at, event_id"
        f" LIMIT {EVENTS_PAGE}",
        list(after),
    )


def _row(database: Database, from_id: int, merge_id: int) -> tuple[str, Row]:
    found = database.rows(
        "SELECT cause, kept FROM aliases WHERE from_id = ? AND merge_id = ?", [from_id, merge_id]
    )
    if not found:
        return "", {}
    cause, kept = found[0]
    return cause, json.loads(kept) if kept else {}


def _is_anonymous(database: Database, profile: Row) -> bool:
    if profile[EMAIL] is not None:
        return False
    known = database.rows(
        "SELECT 1 FROM identities WHERE subscriber_id = ? AND kind <> ? AND state = ? LIMIT 1",
        [profile["subscriber_id"], ANONYMOUS_ID, CONFIRMED],
    )
    return not known


def _depth(database: Database, id: int) -> int:
    """How many merges in a row the one into ``id``'s successor ends."""
    into = database.rows(
        f"SELECT kept FROM aliases WHERE {among_ids('to_id', [id])} AND {STANDING}"
    )
    return 1 + max((json.loads(kept)["depth"] for (kept,) in into if kept), default=0)


def _state(alias: Alias, state: str, kept: Row, context: Context) -> Change:
    """Names both people, so that whoever watches changes knows whose events come or go by it."""
    return upserted(
        ALIASES.name,
        1,
        from_id=alias.from_id,
        to_id=alias.to_id,
        merge_id=alias.merge_id,
        state=state,
        kept=compact_json(kept),
        changed_at=context.now,
    )


def _back(
    database: Database, context: Context, alias: Alias, kept: Row, withdrawn: Iterable[Withdrawn]
) -> tuple[Change, ...]:
    """From as they were, and the alias undone, which hides the copies of their events."""
    mine = kept.pop("from")
    changes = [
        _state(alias, UNDONE, kept, context),
        profile_change(mine["profile"], database.columns("profiles")),
    ]
    if mine["segments"]:
        row = {"subscriber_id": alias.from_id, "segments": mine["segments"]}
        table = pa.table({n: pa.array([v], _MEMBERSHIP[n]) for n, v in row.items()})
        changes.append(Change("memberships", Op.UPSERT, table))
    own = {
        (c["channel"], c["topic"]): c["status"]
        for c in rows_of_person(database, "consents", alias.from_id)
    }
    for each in withdrawn:
        old = own.get((each.channel, each.topic))
        if old != UNSUBSCRIBED:
            given = Given(each.channel, SOURCE)
            changes += consent_changes(given, alias.from_id, each.topic, old, UNSUBSCRIBED, context)
    return tuple(changes)


def _withdrawn_since(database: Database, id: int, since: datetime) -> tuple[Withdrawn, ...]:
    found = database.rows(
        f"SELECT channel, topic, changed_at FROM consents WHERE {among_ids('subscriber_id', [id])}"
        " AND status = ? AND changed_at >= ? ORDER BY ALL",
        [UNSUBSCRIBED, since],
    )
    return tuple(Withdrawn(*row) for row in found)


def _said(from_id: int, to_id: int, merge_id: int, cause: str) -> Row:
    return {
        "from": encode_id(from_id),
        "to": encode_id(to_id),
        "merge": encode_id(merge_id),
        "cause": cause,
    }


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)


_MEMBERSHIP = {"subscriber_id": pa.int64(), "segments": pa.list_(pa.int32())}
