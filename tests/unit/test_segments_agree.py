"""Four answers to one question: who is in a segment?

Random live rules over random lives of people in two shards: what the shards keep as things happen
and time passes (incremental), the rules' SQL over everybody (full), the rules' closures of each
person, the job over the lake (batch), and a plain reading of docs/rules.md (``plain_rules``). They
agree at every quiet moment, whatever was done to people, shards and rules in between; and the batch
says of moments that have passed what the plain reading said of them.

    pytest tests/unit/test_segments_agree.py --co        # what there is
    AGREE_SEEDS=100:400 pytest -m long tests/unit/test_segments_agree.py -k many

A failure names its seed, the step, the rule and the person.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from manta.command import Op
from manta.rules import closure, closure_events, meaning, values
from manta.rules.loading import load
from manta.rules.tree import parse
from manta.segments import live as live_module
from manta.segments import touched as touched_module
from manta.segments.definition import not_live
from manta.segments.index import read_index
from manta.segments.live import LiveSegments
from manta.segments.whole import moves
from manta.store import past
from manta.store import shard as shard_module
from pipelines import segmentation
from tests.unit import rules_draws as drawn
from tests.unit import segments_house
from tests.unit.agree_house import BROUGHT, HOT_EVENT_DAYS, World
from tests.unit.plain_rules import PlainPerson, plain_holds

SEEDS = range(6)
STEPS = 40
TICK = timedelta(microseconds=1)
JUST = timedelta(seconds=1)  # what is no older is the present to the job
SPANS = [{"minutes": 30}, {"hours": 24}, {"days": 2}, {"days": 30}, {"days": 364}]


# -- live rules ------------------------------------------------------------------------------------


def bounded(rule: Any, random: Random) -> Any:
    """The rule with windows that end within a shard's memory, mostly."""
    ((kind, inner),) = rule.items()
    if kind in ("all", "any", "exactly_one"):
        return {kind: [bounded(one, random) for one in inner]}
    if kind == "not":
        return {kind: bounded(inner, random)}
    if kind == "keyed":
        return {kind: {**inner, "rule": bounded(inner["rule"], random)}}
    if kind == "event" and random.random() < 0.8:
        return {kind: {**inner, "within": {"last": random.choice(SPANS)}}}
    if kind == "sequence" and random.random() < 0.9:
        first, *rest = inner["steps"]
        rest = [{**one, "within": one.get("within") or random.choice(SPANS[:3])} for one in rest]
        return {kind: {"steps": [first, *rest], "within": {"last": random.choice(SPANS[:4])}}}
    return rule


def _did(type_: str, length: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"event": {"type": type_, "within": {"last": length}, **more}}


# Short windows and plain conditions, which move at each other step; the drawn ones are odder.
LIVELY = [
    _did("purchased", {"hours": 24}),
    {"not": _did("viewed", {"days": 2})},
    {"any": [_did("opened", {"days": 30}), _did("clicked", {"days": 30})]},
    _did("opened", {"days": 364}, count={"operator": "at_least", "value": 2}),
    _did("clicked", {"days": 364}, count={"operator": "less_than", "value": 2}),
    {"suppressed": {"channel": "email"}},
    {"consent": {"channel": "email", "topic": "news", "status": "pending"}},
    {"not": {"consent": {"channel": "email", "topic": "offers", "status": "subscribed"}}},
    {"not": {"member": {"segment": 1}}},
    {"prediction": {"name": "churn", "operator": "not_between", "value": [0.1, 1.0]}},
    {"attribute": {"name": "city", "operator": "not_in", "value": ["Oslo", "strasse"]}},
    {
        "attribute": {
            "name": "birthday",
            "operator": "anniversary_in_the_next",
            "value": {"days": 2},
        }
    },
    {"attribute": {"name": "created_at", "operator": "in_the_last", "value": {"hours": 24}}},
    {
        "has_been": {
            "attribute": {"name": "score", "operator": "not_equals", "value": 0.1},
            "for": {"hours": 24},
        }
    },
    {"last_messages": {"number": 2, "which": "none", "were": "opened", "if_fewer": "use_those"}},
    {
        "sequence": {
            "steps": [{"type": "viewed"}, {"type": "purchased", "within": {"days": 2}}],
            "within": {"last": {"days": 30}},
        }
    },
    {
        "sequence": {
            "steps": [
                {"type": "viewed"},
                {"type": "purchased", "within": {"hours": 1}, "absent": True},
            ],
            "within": {"last": {"days": 2}},
        }
    },
    {
        "keyed": {
            "by": "properties.cart",
            "rule": {
                "all": [
                    _did("viewed", {"days": 30}),
                    {"not": _did("purchased", {"days": 30})},
                ]
            },
        }
    },
]


def live_rule(random: Random) -> dict[str, Any]:
    if random.random() < 0.5:
        return parse(random.choice(LIVELY), drawn.ATTRIBUTES).to_json()
    kinds = [drawn._events(), drawn.sequences(), drawn.keyed(), drawn._event_times()]
    source = random.choice([drawn.rules(), drawn.rules(), drawn.leaves(), *kinds])
    while True:
        rule = parse(bounded(source.draw(random), random), drawn.ATTRIBUTES)
        if not not_live(rule):
            return rule.to_json()


# -- the answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """What was known of people then, apart from their events."""

    at: datetime
    people: list[dict[int, PlainPerson]]  # by shard


class Trial:
    """One seed: a world, what is done in it, and the comparisons."""

    def __init__(self, root: Path, seed: int) -> None:
        self.seed, self.random = seed, Random(seed)
        self.checks = Random(seed)  # of its own, so that other checks leave the lives as they are
        self.world = World(root, self.random)
        self.step = 0
        self.moments: list[Moment] = []
        world = self.world
        world.define_lists()
        for id in range(10, 10 + self.random.randint(4, 7)):
            world.define_rule(id, live_rule(self.random))
        for _ in range(6):
            world.change_person()
        world.turn()

    def run(self, steps: int = STEPS) -> None:
        for self.step in range(steps):
            self.act()
            if self.random.random() < 0.15:
                self.quiet()
        self.quiet()
        self.batch(past=1)

    def act(self) -> None:
        world, random = self.world, self.random
        ((name, act, _),) = random.choices(ACTS, [one[2] for one in ACTS])
        world.told.append(f"{self.step} {world.now} {name}")
        act(self)
        if (
            random.random() < 0.1
        ):  # the evaluator is quick sometimes, and what it found applied late
            for house in world.houses:
                house.turn()

    def fail(self, what: str) -> None:
        last = "\n".join(self.world.told[-12:])
        pytest.fail(f"seed {self.seed}, step {self.step}, {self.world.zone}: {what}\n{last}")

    def quiet(self) -> None:
        """All but the batch."""
        world = self.world
        world.turn()
        now = world.now
        everybody = [world.plain(shard) for shard in range(world.count)]
        for house, people in zip(world.houses, everybody, strict=True):
            self.compare_shard(house, people)
        if self.random.random() < 0.5:
            self.moments.append(Moment(now, everybody))
            world.pass_time(TICK)  # what comes later is later

    def compare_shard(self, house: Any, people: dict[int, PlainPerson]) -> None:
        now, database = house.now, house.store.database
        segments = house.live.index.segments
        if set(segments) != set(self.world.rules) or house.live.troubles or house.live.index.broken:
            self.fail(f"{set(segments)} live {house.live.troubles} {house.live.index.broken}")
        members = house.members()
        # SQL costs the most; what is defined, crashes and goes to the lake is asked by SQL too
        by_sql = self.checks.sample(sorted(segments), min(1, len(segments)))
        for id, segment in segments.items():
            rule = self.world.rules[id]
            right = [one for one, person in people.items() if self.holds(rule, person, now)]
            self.same("the shard", id, members.get(id, []), right, people, now)
            if id in by_sql:
                wrong = moves(database, segment, now, house.zone)["subscriber_id"].to_pylist()
                by_sql_in = set(members.get(id, [])) ^ set(wrong)
                self.same("the SQL", id, by_sql_in, right, people, now)
            asked = load(database, list(people), segment.touches)
            closed = [one for one, person in asked.items() if segment.closure(person, now)]
            self.same("the closure", id, closed, right, people, now)

    def holds(self, rule: dict[str, Any], person: PlainPerson, at: datetime) -> bool:
        return plain_holds(rule, person, at, self.world.zone)

    def same(
        self,
        who: str,
        segment: int,
        found: Any,
        right: Any,
        people: dict[int, PlainPerson],
        at: datetime,
    ) -> None:
        rule = self.world.rules[segment]
        differ = {
            one
            for one in set(found) ^ set(right)
            if one not in people or not looks_beyond_memory(rule, people[one], self.world.now)
        }
        if differ:
            one = min(differ)
            said = "in" if one in set(found) else "not in"
            about = f"{rule}\n{people.get(one)}"
            self.fail(f"{who} says {one} is {said} segment {segment} at {at}\n{about}")

    # -- the lake --------------------------------------------------------------------------------

    def batch(self, past: int = 0) -> None:
        world = self.world
        world.flush()
        over = [one for one in self.moments if one.at < world.now - JUST]
        moments = self.checks.sample(over, min(past, len(over)))
        here = [known_to_the_lake(world.plain(shard)) for shard in range(world.count)]
        if not world.rules:
            return
        found = self.batch_answers([world.now, *(one.at for one in moments)])
        everybody, alive = here[0] | here[1], set(world.living())
        for id, rule in world.rules.items():
            right = [
                one for one, person in everybody.items() if self.holds(rule, person, world.now)
            ]
            answer = [
                one for one in found[world.now].get(id, []) if one in everybody or one not in alive
            ]
            self.same("the batch", id, answer, right, everybody, world.now)
        for moment in moments:
            then = self.then(moment, here)
            for id, rule in world.rules.items():
                right = [one for one, p in then.items() if self.holds(rule, p, moment.at)]
                answer = [one for one in found[moment.at].get(id, []) if one in then]
                self.same("the batch of then", id, answer, right, then, moment.at)
            self.nobody_else(moment, found[moment.at])

    def batch_answers(self, instants: list[datetime]) -> dict[datetime, dict[int, list[int]]]:
        world = self.world
        plan = segmentation.plan(
            str(world.root), "default", list(dict.fromkeys(instants)), zone=world.zone
        )
        found: dict[datetime, dict[int, list[int]]] = {at: {} for at in instants}
        for shard, number in plan.manifests:
            segmentation.run_shard(plan, shard, number)
            for at in plan.instants:
                stored = world.objects.get(plan.path(shard, at))
                assert stored is not None
                for row in pq.read_table(BytesIO(stored)).to_pylist():
                    assert row["as_of"] == at
                    found[at].setdefault(row["segment_id"], []).append(row["subscriber_id"])
        return found

    def moved_since(self, at: datetime) -> set[int]:
        """Who was merged or parted since: of merges the lake knows only how they are now."""
        found = "SELECT from_id, to_id FROM aliases WHERE changed_at > ?"
        return {id for pair in self.world.rows(found, at) for id in pair}

    def then(self, moment: Moment, here: list[dict[int, PlainPerson]]) -> dict[int, PlainPerson]:
        """The people of that moment whom the lake still knows: their rows of then, with the events
        and predictions as they are known by now."""
        moved, then = self.moved_since(moment.at), {}
        for was, now in zip(moment.people, here, strict=True):
            for id, person in was.items():
                if id in now and id not in moved and not expiry_is_lost(person, now[id]):
                    then[id] = replace(
                        person,
                        events=now[id].events,
                        predictions=[
                            row for row in now[id].predictions if row["changed_at"] <= moment.at
                        ],
                    )
        return then

    def nobody_else(self, moment: Moment, found: dict[int, list[int]]) -> None:
        known = {id for people in moment.people for id in people} | self.moved_since(moment.at)
        for segment, ids in found.items():
            if set(ids) - known:
                self.fail(f"{set(ids) - known} in {segment} at {moment.at}, who were not there yet")

    # -- steps of their own ----------------------------------------------------------------------

    def erase(self) -> None:
        """Nobody else changes by it."""
        world = self.world
        alive = world.living()
        if len(alive) < 4:
            return
        before = world.state()
        gone = world.erase(self.random.choice(alive))
        after = world.state()
        if set(after) & gone:
            self.fail(f"{set(after) & gone} erased and still there")
        if {id: of for id, of in before.items() if id not in gone} != after:
            self.fail(f"erasing {gone} changed others")

    def join_and_part(self) -> None:
        """A merge that is taken back is as if it had never been, for both and all segments."""
        world = self.world
        world.finish()
        world.pass_time(TICK)  # a consent withdrawn at the instant of the merge is of both
        world.turn()
        alive = world.living()
        if len(alive) < 2:
            return
        before = world.state()
        from_id, to_id = self.random.sample(alive, 2)
        world.try_join(from_id, to_id)
        if self.random.random() < 0.5:
            world.turn()
        if self.random.random() < 0.3:
            world.crash()
        world.finish()
        while world.merged().get(from_id) == to_id:
            world.try_part(from_id)
            world.finish()
        world.turn()
        after = world.state()
        for id in before.keys() | after.keys():
            if before.get(id) != after.get(id):
                self.fail(
                    f"merging {from_id} into {to_id} and back changed {id}:\n{before.get(id)}\n"
                    f"{after.get(id)}"
                )

    def change_rules(self) -> None:
        world, random = self.world, self.random
        if world.rules and random.random() < 0.4:
            return world.define_rule(random.choice(sorted(world.rules)), None)
        if len(world.rules) < 7:
            world.define_rule(random.randint(10, 18), live_rule(random))


def looks_beyond_memory(rule: dict[str, Any], person: PlainPerson, now: datetime) -> bool:
    """A shard knows no messages older than its memory, and no sums say which were opened."""
    since = now - timedelta(days=HOT_EVENT_DAYS - 1)
    return "last_messages" in str(rule) and any(
        row["type"] == "sent" and row["occurred_at"] < since for row in person.events
    )


def expiry_is_lost(then: PlainPerson, now: PlainPerson) -> bool:
    """The history says what a consent or suppression was, and not until when."""
    return any(
        row["expires_at"] is not None and row not in getattr(now, table)
        for table in ("consents", "suppressions")
        for row in getattr(then, table)
    )


def known_to_the_lake(people: dict[int, PlainPerson]) -> dict[int, PlainPerson]:
    """Without those who were merged with somebody whose past had left memory by then: the lake has
    it under the old id alone."""
    return {
        id: one
        for id, one in people.items()
        if all(row["merge_id"] != BROUGHT for row in one.events)
    }


def of_world(name: str) -> Callable[[Trial], None]:
    return lambda trial: getattr(trial.world, name)()


ACTS: list[tuple[str, Callable[[Trial], None], int]] = [
    ("change_person", of_world("change_person"), 12),
    ("happen", of_world("happen"), 22),
    ("hit", of_world("hit"), 6),
    ("correct", of_world("correct"), 4),
    ("consent", of_world("consent"), 7),
    ("suppression", of_world("suppression"), 6),
    ("edit_list", of_world("edit_list"), 4),
    ("predict", of_world("predict"), 3),
    ("join", of_world("join"), 4),
    ("part", of_world("part"), 5),
    ("finish", of_world("finish"), 1),
    ("move_clock", of_world("move_clock"), 26),
    ("crash", of_world("crash"), 3),
    ("flush", of_world("flush"), 2),
    ("erase", Trial.erase, 2),
    ("join_and_part", Trial.join_and_part, 2),
    ("change_rules", Trial.change_rules, 3),
]


def trial(
    root: Path, seed: int, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any] | None = None
) -> None:
    one = Trial(root, seed)
    if rule is not None:
        one.world.define_rule(10, parse(rule, drawn.ATTRIBUTES).to_json())
    monkeypatch.setattr(segmentation, "SystemClock", lambda: one.world.clock)
    one.run()


@pytest.mark.parametrize("seed", SEEDS)
def test_all_ways_to_ask_agree(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trial(tmp_path, seed, monkeypatch)


@pytest.mark.long
def test_all_ways_to_ask_agree_for_many_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = map(int, os.environ.get("AGREE_SEEDS", "1000:1300").split(":"))
    for seed in range(first, last):
        trial(tmp_path / str(seed), seed, monkeypatch)


# -- deliberate faults -----------------------------------------------------------------------------


def time_is_forgotten(patch: Any) -> None:
    """Flips are not looked at."""
    patch.setattr(LiveSegments, "_look_at_time", lambda self, now: self.flips.passed(now))


def corrections_touch_nobody(patch: Any) -> None:
    patch.delitem(touched_module._READERS, "traffic_corrections")


def suppressions_touch_nobody(patch: Any) -> None:
    patch.setattr(live_module, "with_addresses", lambda found, index, database: None)


def recovery_evaluates_nothing(patch: Any) -> None:
    """What had not been looked at when a shard ended is never looked at."""

    def begin(self: LiveSegments, database: Any) -> None:
        self.index = read_index(database, self.zone)

    patch.setattr(LiveSegments, "begin", begin)


def negated_tests_are_not(patch: Any) -> None:
    def value_test(test: Any) -> Any:
        return values.value_test(replace(test, negated=False))

    patch.setattr(closure, "value_test", value_test)


def windows_are_closed(patch: Any) -> None:
    """An event exactly 30 days ago lies in the last 30 days."""

    def frame_range(frame: Any, now: datetime) -> Any:
        low, high = meaning.frame_range(frame, now)
        return low and low - TICK, high

    patch.setattr(closure_events, "frame_range", frame_range)


def undone_copies_stay(patch: Any) -> None:
    patch.setattr(shard_module, "hidden_by", lambda changes: [])


def new_people_touch_nothing(patch: Any) -> None:
    """Attributes that come with a person's creation are not noticed."""
    profiles = touched_module._profiles

    def known_only(change: Any, index: Any, found: Any) -> None:
        if change.op is Op.DELETE or "created_at" not in change.rows.column_names:
            profiles(change, index, found)

    patch.setitem(touched_module._READERS, "profiles", known_only)


def flips_of_everybody_are_lost(patch: Any) -> None:
    """A whole evaluation says nothing of the time."""
    right = segments_house.flips
    patch.setattr(segments_house, "flips", lambda *arguments: [a[:0] for a in right(*arguments)])


def past_consents_are_those_of_now(patch: Any) -> None:
    patch.setattr(past, "_keyed", lambda table, *rest: f"SELECT * FROM _now_{table}")


# With each a rule that it is about.
FAULTS: list[tuple[Callable[[Any], None], dict[str, Any]]] = [
    (time_is_forgotten, _did("purchased", {"hours": 24})),
    (corrections_touch_nobody, _did("opened", {"days": 364})),
    (suppressions_touch_nobody, {"suppressed": {"channel": "email"}}),
    (recovery_evaluates_nothing, _did("viewed", {"days": 2})),
    (negated_tests_are_not, LIVELY[10]),
    (windows_are_closed, _did("viewed", {"hours": 24})),
    (undone_copies_stay, _did("viewed", {"days": 364})),
    (new_people_touch_nothing, LIVELY[10]),
    (flips_of_everybody_are_lost, _did("viewed", {"days": 2})),
    (past_consents_are_those_of_now, LIVELY[7]),
]
FAULT_SEEDS = 30


@pytest.mark.long
@pytest.mark.parametrize(("fault", "rule"), FAULTS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_deliberate_fault_is_caught(
    tmp_path: Path,
    fault: Callable[[Any], None],
    rule: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    for seed in range(FAULT_SEEDS):
        try:
            trial(tmp_path / str(seed), seed, monkeypatch, rule)
        except pytest.fail.Exception:
            return
    pytest.fail(f"{FAULT_SEEDS} seeds did not notice")
