"""Reputation: what becomes of messages is watched, and what hurts the sender is slowed or stopped.

Owns the windows and, through rulings, the actions and the courses of lanes. A lane here is a source
at a provider: that is what providers judge. Decisions, from the narrowest:

- A lane with a bad window is slowed (LIMIT), and clean windows give it back its pace (``courses``).
- What stays bad is stopped where it is bad. Complaints and hard bounces are about what is sent: the
  campaign that carries most of them is suspended at that provider, on every source, so that
  rotation does not carry it on; else the sending domain is. Blocks and deferrals are about the way
  out: the lane is suspended, and pools rotate to another source.
- A campaign that is bad wherever most of its mail goes is paused as a whole.
- The shaping file's rules (``automation``) add actions for what servers say.

**Invariants.** Nothing acts on evidence that has led to an action, or to an undo, before: marks.
Opens and clicks are counted and decide nothing. More negatives never make a verdict milder. After
a crash, actions and courses are as journaled, and windows are rebuilt from what shards have on
record, each observation counted once: live ones from the start on, recorded ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from manta.delivery.reputation import courses
from manta.delivery.reputation.actions import Action, ActionKind, Narrower, Scope
from manta.delivery.reputation.courses import Course, Phase, Sight
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.norms import Norms
from manta.delivery.reputation.observations import Observed
from manta.delivery.reputation.rulings import Draft, Head, Ruling, stepped
from manta.delivery.reputation.verdicts import Judge, Verdict
from manta.delivery.reputation.windows import ATTEMPTED, PLACES, Mark, Unit, Windows, seconds
from manta.errors import Conflict, InvalidRequest, NotFound, Overloaded

PARDON_MESSAGES = 200  # attempts after an undo before a rule's same cause may act again
TRIGGERS_MAX = 10_000  # waiting for a decision
EXTEND_S = 60.0  # an action is prolonged when that gives it so much more
DURATION_MAX_S = 30 * 86_400.0
CAUSE_CHARACTERS_MAX = 500
NAME_CHARACTERS_MAX = 255
_ATTEMPTS = tuple(PLACES[name] for name in ATTEMPTED)


class Trigger(Protocol):
    """What a rule of the shaping file asks for (``manta.delivery.shaping.automation``)."""

    @property
    def kind(self) -> ActionKind: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def limits(self) -> Narrower: ...
    @property
    def cause(self) -> str: ...
    @property
    def figures(self) -> Mapping[str, Any]: ...
    @property
    def duration_s(self) -> float: ...


class Rules(Protocol):
    def observe(self, observed: Observed) -> Sequence[Trigger]: ...


class Reputation:
    """``ceiling``: messages per second that a lane's own limits allow."""

    def __init__(self, norms: Norms, rules: Rules, ceiling: Callable[[Unit], float]) -> None:
        self.windows = Windows()
        self.head = Head()
        self.actions: dict[int, Action] = {}
        self.courses: dict[Unit, Course] = {}
        self._norms = norms
        self._pace = norms.pace
        self.rules = rules
        self._ceiling = ceiling
        self._judge = Judge(self.windows, norms)
        self._dirty: set[Unit] = set()
        self._triggers: list[Trigger] = []
        self._steps: dict[Unit, int] = {}  # attempts of a lane at its last step
        self.triggers_dropped = 0

    def restore(self, head: Head, actions: Iterable[Action], held: Iterable[Course]) -> None:
        """The state of an earlier process."""
        self.head = head
        self.actions = {action.id: action for action in actions}
        for course in held:
            self.courses[course.lane] = course
            self.windows.mark(course.lane, course.mark)

    # -- seeing ------------------------------------------------------------------------------------

    def observe(self, batch: Iterable[Observed], now: datetime) -> None:
        now_s = seconds(now)
        for observed in batch:
            lane = self.windows.add(observed, now_s)
            if lane is not None:
                self._dirty.add(lane)
            for trigger in self.rules.observe(observed):
                if len(self._triggers) < TRIGGERS_MAX:
                    self._triggers.append(trigger)
                else:
                    self.triggers_dropped += 1

    def recall(self, batch: Iterable[Observed], now: datetime) -> None:
        """Count what was recorded before this process began; no rule fires on it again."""
        now_s = seconds(now)
        for observed in batch:
            self.windows.add(observed, now_s)

    # -- deciding ----------------------------------------------------------------------------------

    def decide(self, now: datetime) -> Ruling:
        """What is to be done by all that was seen. Takes note of what it judged: hand the ruling
        to ``apply`` once it is journaled, or to ``refuse``."""
        judged, triggers = self._dirty, self._triggers
        self._dirty, self._triggers = set(), []
        draft = self._draft(now)
        self._expire(draft)
        for trigger in triggers:
            self._follow(draft, trigger)
        held = {lane for lane, course in self.courses.items() if course.phase is not Phase.FREE}
        for lane in sorted(judged | held):
            try:
                self._judge_lane(draft, lane)
            except Overloaded:
                self.triggers_dropped += 1
        self._name_campaigns(draft)
        draft.drop_outdated_courses()
        return draft.ruling(judged, triggers)

    def apply(self, ruling: Ruling) -> None:
        """The ruling is journaled: it holds."""
        self.head = ruling.head
        for action in ruling.actions:
            self.actions[action.id] = action
        for id in ruling.forgotten:
            self.actions.pop(id, None)
        for lane in ruling.freed:
            self.courses.pop(lane, None)
            self._steps.pop(lane, None)
            self.windows.unmark(lane)
        for course in ruling.courses:
            before = self.courses.get(course.lane)
            self.courses[course.lane] = course
            if before is None or before.mark != course.mark:
                self.windows.mark(course.lane, course.mark)
            self._steps[course.lane] = self._attempts_ever(course.lane)

    def refuse(self, ruling: Ruling) -> None:
        """The ruling could not be journaled: it is made again."""
        self._dirty |= ruling.judged
        self._triggers = [*ruling.triggers, *self._triggers][:TRIGGERS_MAX]

    def law(self, now: datetime) -> Law:
        active = tuple(action for action in self.actions.values() if action.is_active(now))
        return Law(self.head.version, self.head.shaping_text, active)

    def ended_pauses(self, now: datetime) -> list[Action]:
        """Pauses that hold their campaign no more: undone, or over while no other one holds it.
        Of several it is the first that the campaign stands still for, so each is named."""
        pauses = [a for a in self.actions.values() if a.kind is ActionKind.PAUSE]
        held = {a.scope.campaign_id for a in pauses if a.is_active(now)}
        return [
            a
            for a in pauses
            if not a.is_active(now) and (a.undone_at or a.scope.campaign_id not in held)
        ]

    # -- what people ask ---------------------------------------------------------------------------

    def act(
        self,
        kind: ActionKind,
        scope: Scope,
        cause: str,
        duration_s: float,
        limits: Narrower,
        by: str,
        now: datetime,
    ) -> tuple[Action, Ruling]:
        """An operator's own action. Raises ``InvalidRequest``, ``Overloaded``."""
        _check_action(kind, scope, cause, duration_s, limits)
        draft = self._draft(now)
        action = draft.begin(
            kind,
            scope,
            cause,
            duration_s,
            limits=limits,
            figures={"by": by},
            campaigns=self._campaigns(scope),
            by_person=True,
        )
        return action, draft.ruling()

    def undo(self, id: int, by: str, now: datetime) -> tuple[Action, Ruling]:
        """End an action; its evidence is spent. Raises ``NotFound``, ``Conflict``."""
        draft = self._draft(now)
        action = draft.action(id)
        if action is None:
            raise NotFound(f"no action {id}", path="id")
        if not action.is_active(now):
            what = "was undone" if action.undone_at else "has ended"
            raise Conflict(f"action {id} {what} already", path="id", expected="an active action")
        undone = draft.undo(action, by)
        pardon = Mark(draft.now_s, is_pardoned=True)
        for lane in self._lanes_of(action):
            course = draft.course(lane)
            if course.action_id == id or action.scope.campaign_id or action.scope.sending_domain:
                course = Course(lane) if course.action_id == id else course
                draft.move(_marked(course, pardon))
        return undone, draft.ruling()

    def set_shaping(self, text: str, now: datetime) -> Ruling:
        """Another shaping text of the operator's, checked by the caller."""
        draft = self._draft(now)
        draft.set_shaping(text)
        return draft.ruling()

    # -- inside ------------------------------------------------------------------------------------

    def _draft(self, now: datetime) -> Draft:
        return Draft(self.head, self.actions, self.courses, now)

    def _expire(self, draft: Draft) -> None:
        """Courses whose action has ended go on: after a quarantine, to probing."""
        for lane, course in self.courses.items():
            action = draft.action(course.action_id)
            if course.phase is Phase.FREE or (action and action.is_active(draft.now)):
                continue
            if course.phase is not Phase.QUARANTINED:
                draft.move(courses.freed(course))
                continue
            probing = courses.probing(course, draft.now_s, self._pace)
            cause = f"probing after a quarantine of {lane.source} at {lane.provider}"
            figures = {"first_pace_per_s": course.first_pace_per_s}
            try:
                self._limit(draft, probing, cause, figures, "the quarantine is over")
            except Overloaded:
                self.triggers_dropped += 1
                draft.move(courses.freed(course))

    def _judge_lane(self, draft: Draft, lane: Unit) -> None:
        course = draft.course(lane)
        if course.phase is Phase.QUARANTINED or course.mark.at_s == draft.now_s:
            return  # something has been done about it just now
        stopped = self._stopped(draft, lane)
        verdict = self._judge.worst(lane, stopped, draft.now_s)
        if verdict is None and course.phase is Phase.FREE:
            return
        sight = self._sight(course, draft.now_s)
        if verdict is not None:
            self._tighten(draft, course, verdict, sight, stopped)
            return
        next_course = courses.eased(course, sight, self._pace)
        if next_course is None or not self._judge.is_clean(lane, stopped, draft.now_s):
            return
        if next_course.phase is Phase.FREE:
            draft.end(course.action_id)
            draft.move(next_course)
        else:
            self._limit(draft, next_course, "", {}, f"clean for {sight.attempts:,} messages")

    def _tighten(
        self,
        draft: Draft,
        course: Course,
        verdict: Verdict,
        sight: Sight,
        stopped: frozenset[Unit],
    ) -> None:
        next_course = courses.tightened(course, verdict.level, sight, self._pace)
        if next_course is None:
            return
        if next_course.phase is Phase.SLOWED:
            self._limit(draft, next_course, verdict.words(), verdict.shown(), verdict.words())
            return
        culprit = self._judge.culprit(course.lane, verdict.measure, stopped, draft.now_s)
        if culprit is not None:
            self._stop(draft, course, culprit)
            return
        scope = Scope(source=course.lane.source, provider=course.lane.provider)
        action = draft.begin(
            ActionKind.SUSPEND,
            scope,
            f"quarantine: {verdict.words()}",
            self._quarantine_s(draft, scope),
            figures=verdict.shown(),
        )
        draft.end(course.action_id)
        draft.move(_held(next_course, action.id))

    def _limit(
        self, draft: Draft, course: Course, cause: str, figures: Mapping[str, Any], why: str
    ) -> None:
        """Hold the lane at its course's rate; an easing step (no cause) prolongs nothing."""
        limits = Narrower(rate_per_s=course.rate_per_s)
        action = draft.action(course.action_id)
        steps = action.figures if action else {}
        shown = stepped({**steps, **figures}, course.rate_per_s, why, draft.now)
        if action is None or not action.is_active(draft.now):
            scope = Scope(source=course.lane.source, provider=course.lane.provider)
            action = draft.begin(
                ActionKind.LIMIT,
                scope,
                cause,
                self._pace.limit_s,
                limits=limits,
                figures={"first_pace_per_s": round(course.first_pace_per_s, 4), **shown},
            )
        elif cause:
            draft.revise(action, self._pace.limit_s, limits=limits, figures=shown, cause=cause)
        else:
            draft.revise(action, limits=limits, figures=shown)
        draft.move(_held(course, action.id))

    def _stop(self, draft: Draft, course: Course, culprit: Verdict) -> None:
        """Stop who is to blame: at this provider, or a campaign that is bad everywhere as a whole.
        The lane keeps its pace or its limit: the others in it have done nothing."""
        unit = culprit.unit
        if unit.campaign_id and self._judge.is_bad_everywhere(
            unit.campaign_id, culprit.measure, draft.now_s
        ):
            kind, scope = ActionKind.PAUSE, Scope(campaign_id=unit.campaign_id)
            duration_s = float(self._pace.pause_s)
        else:
            kind = ActionKind.SUSPEND
            scope = Scope(
                provider=unit.provider,
                campaign_id=unit.campaign_id,
                sending_domain="" if unit.campaign_id else unit.sending_domain,
            )
            duration_s = self._quarantine_s(draft, scope)
        cause = f"{'paused' if kind is ActionKind.PAUSE else 'quarantine'}: {culprit.words()}"
        running = draft.same(kind, scope)
        if running is not None:  # a campaign that was resumed, or what did not stop
            draft.end(running.id)
        campaigns = {unit.campaign_id} - {0} or self._campaigns(scope)
        draft.begin(kind, scope, cause, duration_s, figures=culprit.shown(), campaigns=campaigns)
        held = draft.action(course.action_id)
        if held is not None and held.is_active(draft.now):  # it meets a slow lane when it returns
            draft.revise(held, duration_s + self._pace.limit_s)
        lanes = {course.lane}
        if kind is ActionKind.PAUSE:
            lanes |= {u.lane for u in self.windows.of_campaign(unit.campaign_id)}
        for lane in sorted(lanes):
            draft.move(_marked(draft.course(lane), Mark(draft.now_s)))

    def _follow(self, draft: Draft, trigger: Trigger) -> None:
        """Do what a rule asks for, once: while it acts, the same cause only prolongs it."""
        running = draft.same(trigger.kind, trigger.scope, trigger.cause)
        if running is not None:
            end = draft.now + timedelta(seconds=trigger.duration_s)
            if (end - running.until).total_seconds() >= EXTEND_S:
                draft.revise(running, trigger.duration_s, figures=dict(trigger.figures))
            return
        if self._is_pardoned(trigger, draft.now_s):
            return
        try:
            draft.begin(
                trigger.kind,
                trigger.scope,
                trigger.cause,
                min(trigger.duration_s, DURATION_MAX_S),
                limits=trigger.limits,
                figures=trigger.figures,
                campaigns=self._campaigns(trigger.scope),
            )
        except Overloaded:
            self.triggers_dropped += 1

    def _is_pardoned(self, trigger: Trigger, now_s: float) -> bool:
        """Whether somebody undid the same, and little has been tried there since."""
        undone = [
            seconds(action.undone_at)
            for action in self.actions.values()
            if action.undone_at is not None
            and (action.kind, action.scope, action.cause)
            == (trigger.kind, trigger.scope, trigger.cause)
        ]
        if not undone:
            return False
        attempts = 0
        for lane in self.windows.lanes():
            window = self.windows.get(lane)
            if window is not None and _covers(trigger.scope, lane):
                attempts += window.attempts_after(max(undone), now_s)
        return attempts < PARDON_MESSAGES

    def _quarantine_s(self, draft: Draft, scope: Scope) -> float:
        doublings = min(draft.times_lately(ActionKind.SUSPEND, scope), 20)
        return float(min(self._pace.quarantine_s << doublings, self._pace.quarantine_max_s))

    def _sight(self, course: Course, now_s: float) -> Sight:
        window = self.windows.get(course.lane)
        pace = window.pace_per_s(now_s) if window else 0.0
        attempts = self._attempts_ever(course.lane) - self._steps.get(course.lane, 0)
        return Sight(now_s, pace, self._ceiling(course.lane), attempts)

    def _attempts_ever(self, lane: Unit) -> int:
        window = self.windows.get(lane)
        return sum(window.ever[place] for place in _ATTEMPTS) if window else 0

    def _stopped(self, draft: Draft, lane: Unit) -> frozenset[Unit]:
        """The campaigns and domains in a lane that are stopped there. A paused campaign that goes
        on sending is not: somebody resumed it, and it is judged by what it does since."""
        found: set[Unit] = set()
        for action in draft.active():
            scope = action.scope
            whole = not (scope.campaign_id or scope.sending_domain)
            if action.kind is ActionKind.LIMIT or whole or not _covers(scope, lane):
                continue
            for unit in self.windows.of_lane(lane):
                if (
                    unit != lane
                    and scope.campaign_id in (0, unit.campaign_id)
                    and scope.sending_domain in ("", unit.sending_domain)
                    and bool(unit.campaign_id) >= bool(scope.campaign_id)
                    and not (action.kind is ActionKind.PAUSE and self._goes_on(unit, draft.now_s))
                ):
                    found.add(unit)
        return frozenset(found)

    def _goes_on(self, unit: Unit, now_s: float) -> bool:
        window = self.windows.get(unit)
        return (
            window is not None and window.since("day", now_s)[PLACES["accepted"]] >= PARDON_MESSAGES
        )

    def _lanes_of(self, action: Action) -> list[Unit]:
        """The lanes in which an action's evidence may lie."""
        scope = action.scope
        lanes = [lane for lane in self.windows.lanes() if _covers(scope, lane)]
        if scope.campaign_id:
            theirs = {unit.lane for unit in self.windows.of_campaign(scope.campaign_id)}
            lanes = [lane for lane in lanes if lane in theirs]
        held = [lane for lane, course in self.courses.items() if course.action_id == action.id]
        return sorted({*lanes, *held})

    def _campaigns(self, scope: Scope) -> set[int]:
        """The campaigns that a scope concerns by name or by its sending domain."""
        if scope.campaign_id:
            return {scope.campaign_id}
        if not scope.sending_domain:
            return set()
        return {
            unit.campaign_id
            for unit, _ in self.windows.units()
            if unit.campaign_id and unit.sending_domain == scope.sending_domain
        }

    def _name_campaigns(self, draft: Draft) -> None:
        """Campaigns of a suspended domain that have turned up since are named too."""
        for action in draft.active():
            if action.scope.sending_domain and not action.scope.campaign_id:
                known = self._campaigns(action.scope) | set(action.campaigns)
                if known != set(action.campaigns):
                    draft.revise(action, campaigns=tuple(sorted(known)))


def _covers(scope: Scope, lane: Unit) -> bool:
    return scope.source in ("", lane.source) and scope.provider in ("", lane.provider)


def _held(course: Course, action_id: int) -> Course:
    return replace(course, action_id=action_id)


def _marked(course: Course, mark: Mark) -> Course:
    return replace(course, mark=mark)


def _check_action(
    kind: ActionKind, scope: Scope, cause: str, duration_s: float, limits: Narrower
) -> None:
    """Raises ``InvalidRequest``."""
    if not cause.strip() or len(cause) > CAUSE_CHARACTERS_MAX or not cause.isprintable():
        raise InvalidRequest(
            "an action needs its cause in words",
            path="cause",
            expected=f"1 to {CAUSE_CHARACTERS_MAX} printable characters",
        )
    if not 1 <= duration_s <= DURATION_MAX_S:
        raise InvalidRequest(
            f"{duration_s:g} s", path="duration_s", expected=f"1 to {DURATION_MAX_S:.0f}"
        )
    if kind is ActionKind.PAUSE and scope != Scope(campaign_id=scope.campaign_id):
        raise InvalidRequest(
            "a pause is of a whole campaign", path="scope", expected="campaign_id alone"
        )
    if kind is ActionKind.PAUSE and not scope.campaign_id:
        raise InvalidRequest("no campaign is named", path="scope.campaign_id")
    if kind is ActionKind.LIMIT and limits == Narrower():
        raise InvalidRequest(
            "a limit says nothing", path="limits", expected="a rate, connections, or both"
        )
    for name in ("source", "provider", "site", "sending_domain"):
        text = getattr(scope, name)
        if len(text) > NAME_CHARACTERS_MAX or (text and not text.isprintable()):
            raise InvalidRequest(f"scope.{name} is not a name", path=f"scope.{name}")
