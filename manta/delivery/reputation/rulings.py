"""Rulings: what one decision of Reputation changes, from the decision to the journal.

A ruling is made by a ``Draft``, which reads the present state and changes nothing; it is journaled
as one entry and only then applied. A refused entry leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from manta.clock import as_text
from manta.definitions import DocumentChange
from manta.delivery.reputation.actions import Action, ActionKind, Narrower, Scope
from manta.delivery.reputation.courses import Course, Phase
from manta.delivery.reputation.windows import LONGEST_S, Unit, seconds
from manta.errors import Overloaded
from manta.ids import encode_id, hash64

ACTIONS_MAX = 2_000  # kept, over ones too
ACTIVE_MAX = 1_000
ACTIVE_OF_RULES_MAX = 900  # there is always room for what people do
KEPT = timedelta(days=30)  # how long an action is shown after its end
STEPS_SHOWN = 20
UNLIMITED = Narrower()


@dataclass(frozen=True)
class Head:
    """``version`` of the law; ``last_action``: the highest id given."""

    version: int = 0
    last_action: int = 0
    shaping_text: str = ""


@dataclass(frozen=True)
class Ruling:
    """``pauses``: actions that the Director has to hear; ``freed``: lanes whose course is over and
    whose mark lies before every span."""

    head: Head
    actions: tuple[Action, ...] = ()
    forgotten: tuple[int, ...] = ()
    courses: tuple[Course, ...] = ()
    pauses: tuple[Action, ...] = ()
    freed: tuple[Unit, ...] = ()
    judged: frozenset[Unit] = frozenset()
    triggers: tuple[Any, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.actions or self.courses or self.forgotten or self.freed)

    def changes(self) -> tuple[DocumentChange, ...]:
        """The documents to journal."""
        head = {
            "version": self.head.version,
            "last_action": self.head.last_action,
            "shaping_text": self.head.shaping_text,
        }
        return (
            ("law", "head", head),
            *(("actions", f"{a.id:012d}", a.to_document()) for a in self.actions),
            *(("actions", f"{id:012d}", None) for id in self.forgotten),
            *(("courses", _name(c.lane), c.to_document()) for c in self.courses),
            *(("courses", _name(lane), None) for lane in self.freed),
        )


def _name(lane: Unit) -> str:
    """The id of a course's document: names of sites may be longer than ids may."""
    return encode_id(hash64(lane.source, lane.provider))


class Draft:
    """A ruling in the making over the actions and courses as they are."""

    def __init__(
        self,
        head: Head,
        actions: Mapping[int, Action],
        courses: Mapping[Unit, Course],
        now: datetime,
    ) -> None:
        self.now = now
        self.now_s = seconds(now)
        self._head = head
        self._actions = dict(actions)
        self._courses = dict(courses)
        self._changed: dict[int, Action] = {}
        self._moved: dict[Unit, Course] = {}
        self._pauses: dict[int, Action] = {}
        self._freed: set[Unit] = set()

    # -- reading -----------------------------------------------------------------------------------

    def active(self) -> list[Action]:
        return [action for action in self._actions.values() if action.is_active(self.now)]

    def course(self, lane: Unit) -> Course:
        return self._courses.get(lane) or Course(lane)

    def action(self, id: int) -> Action | None:
        return self._actions.get(id)

    def same(self, kind: ActionKind, scope: Scope, cause: str = "") -> Action | None:
        """The active action of this kind and scope, and of this cause where one is given."""
        for action in self.active():
            if (action.kind, action.scope) == (kind, scope) and cause in ("", action.cause):
                return action
        return None

    def times_lately(self, kind: ActionKind, scope: Scope) -> int:
        """How often such an action began within the last week."""
        since = self.now - timedelta(days=7)
        return sum(
            (action.kind, action.scope) == (kind, scope) and action.began_at > since
            for action in self._actions.values()
        )

    # -- changing ----------------------------------------------------------------------------------

    def begin(
        self,
        kind: ActionKind,
        scope: Scope,
        cause: str,
        duration_s: float,
        *,
        limits: Narrower = UNLIMITED,
        figures: Mapping[str, Any] | None = None,
        campaigns: Iterable[int] = (),
        by_person: bool = False,
    ) -> Action:
        """A new action. Raises ``Overloaded`` where too many are active."""
        most = ACTIVE_MAX if by_person else ACTIVE_OF_RULES_MAX
        if len(self.active()) >= most:
            raise Overloaded(f"{most} actions are active", path="actions")
        id = self._head.last_action + 1
        until = self.now + timedelta(seconds=duration_s)
        action = Action(
            id,
            kind,
            scope,
            cause,
            self.now,
            until,
            limits,
            dict(figures or {}),
            tuple(sorted(campaigns)),
        )
        self._head = replace(self._head, last_action=id)
        self.put(action)
        if kind is ActionKind.PAUSE:
            self._pauses[id] = action
        return action

    def revise(self, action: Action, duration_s: float | None = None, **changes: Any) -> Action:
        """The same action with other limits, figures or a later end."""
        if duration_s is not None:
            end = self.now + timedelta(seconds=duration_s)
            changes["until"] = max(action.until, end)
        revised = replace(action, **changes)
        self.put(revised)
        if revised.kind is ActionKind.PAUSE and duration_s is not None:
            self._pauses[revised.id] = revised
        return revised

    def end(self, id: int) -> None:
        """An action is over before its time."""
        action = self._actions.get(id)
        if action is not None and action.is_active(self.now):
            self.put(replace(action, until=self.now))

    def undo(self, action: Action, by: str) -> Action:
        undone = action.undone(by, self.now)
        self.put(undone)
        return undone

    def put(self, action: Action) -> None:
        self._actions[action.id] = self._changed[action.id] = action

    def move(self, course: Course) -> None:
        self._courses[course.lane] = self._moved[course.lane] = course

    def drop_outdated_courses(self) -> None:
        """Free lanes of which no evidence from before the mark can be seen any more."""
        for lane, course in self._courses.items():
            if course.phase is Phase.FREE and self.now_s - course.mark.at_s > LONGEST_S:
                self._freed.add(lane)

    def set_shaping(self, text: str) -> None:
        self._head = replace(self._head, shaping_text=text, version=self._head.version + 1)

    def ruling(self, judged: Iterable[Unit] = (), triggers: Iterable[Any] = ()) -> Ruling:
        """What has changed; the version of the law grows with its actions."""
        head = self._head
        if self._changed:
            head = replace(head, version=head.version + 1)
        return Ruling(
            head,
            tuple(self._changed.values()),
            self._outdated(),
            tuple(self._moved.values()),
            tuple(self._pauses.values()),
            tuple(self._freed - self._moved.keys()),
            frozenset(judged),
            tuple(triggers),
        )

    def _outdated(self) -> tuple[int, ...]:
        """Actions that need not be shown any longer: old ones, and of too many the oldest."""
        if not self._changed:
            return ()
        over = [a for a in self._actions.values() if not a.is_active(self.now)]
        over.sort(key=lambda action: action.id)
        spare = max(0, len(self._actions) - ACTIONS_MAX)
        old = [a.id for a in over if a.until < self.now - KEPT]
        return tuple(dict.fromkeys([*old, *(a.id for a in over[:spare])]).keys() - self._changed)


def stepped(figures: Mapping[str, Any], rate_per_s: float, why: str, now: datetime) -> Any:
    """The figures of a limit with one more step: when, to which rate, why."""
    step = {"at": as_text(now), "rate_per_s": round(rate_per_s, 4), "why": why}
    return {**figures, "steps": [*figures.get("steps", ()), step][-STEPS_SHOWN:]}
