"""Two people become one and part again, over two shards and within one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import Conflict, NotFound, OutcomeUnknown
from manta.events.commands import RecordEvents
from manta.people import aliases
from manta.people.commands import SetConsent, Unsubscribe
from manta.people.definitions import SetDefinition
from manta.people.identifying import (
    execute_for,
    finish,
    forward,
    living,
    merge,
    undo_merge,
)
from manta.store import hiding
from tests.unit.merging_house import Shards
from tests.unit.people_shard import START

SHARDS = [0, 1]


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def happened(shards: Shards, id: int, *numbers: int) -> None:
    """Events under this id, by whoever brings them."""
    rows = [
        {"subscriber_id": id, "type": "bought", "id": str(n)}
        | {"occurred_at": START - timedelta(hours=n), "item": "shoe"}
        for n in numbers
    ]
    answer = shards.home(id).answer(RecordEvents(None, pa.Table.from_pylist(rows)))
    run(forward(shards, answer.copies, None))


def events(shards: Shards, id: int) -> int:
    sql = "SELECT count(*) FROM events WHERE subscriber_id = ?"
    return int(shards.home(id).rows(sql, id)[0][0])


def test_the_words_of_the_two_rooms_are_the_same():
    assert aliases.UNDONE == hiding.UNDONE


@pytest.mark.parametrize("other", SHARDS)
def test_a_merge_fills_in_what_is_missing_and_the_more_restrictive_consent_wins(other):
    shards = Shards()
    ann = shards.new_person(0, "ann@x.example", attr_city="Bern", attr_age=30.0)
    visitor = shards.new_person(other, None, attr_city="Rome", attr_colour="red", time_zone="UTC")
    home, there = shards.home(ann), shards.home(visitor)
    consent = {"channel": "email", "source": "form", "changed_at": START}
    home.load(
        "consents",
        {"subscriber_id": ann, "topic": "news", "status": "subscribed"} | consent,
        {"subscriber_id": ann, "topic": "tips", "status": "unsubscribed"} | consent,
    )
    there.load(
        "consents",
        {"subscriber_id": visitor, "topic": "news", "status": "unsubscribed"} | consent,
        {"subscriber_id": visitor, "topic": "tips", "status": "subscribed"} | consent,
        {"subscriber_id": visitor, "topic": "jobs", "status": "subscribed"} | consent,
    )
    happened(shards, visitor, 1, 2)
    happened(shards, ann, 3)
    before = shards.state(ann, visitor)
    shards.pass_time(minutes=1)
    done = run(merge(shards, visitor, ann, cause="support"))
    assert (done.from_id, done.to_id) == (visitor, ann)
    assert run(merge(shards, visitor, ann, cause="again")) == done
    assert home.rows(
        "SELECT email, attr_city, attr_age, attr_colour, time_zone FROM profiles"
        " WHERE subscriber_id = ?",
        ann,
    ) == [("ann@x.example", "Bern", 30.0, "red", "UTC")]
    assert there.rows("SELECT 1 FROM profiles WHERE subscriber_id = ?", visitor) == []
    assert dict(home.rows("SELECT topic, status FROM consents WHERE subscriber_id = ?", ann)) == {
        "news": "unsubscribed",
        "tips": "unsubscribed",
        "jobs": "subscribed",
    }
    assert (events(shards, ann), events(shards, visitor)) == (3, 2)
    assert home.kinds().count("people_merged") == there.kinds().count("people_merged") >= 1
    happened(shards, visitor, 4)
    assert events(shards, ann) == 4
    run(undo_merge(shards, visitor))
    after = shards.state(ann, visitor)
    assert events(shards, visitor) == 3
    after[f"{visitor} events"] = before[f"{visitor} events"]
    assert after == before
    with pytest.raises(NotFound):
        run(undo_merge(shards, visitor))


@pytest.mark.parametrize("other", SHARDS)
def test_a_merge_may_be_made_again_after_an_undo(other):
    shards = Shards()
    ann, visitor = shards.new_person(0, "ann@x.example"), shards.new_person(other)
    happened(shards, visitor, 1)
    before = shards.state(ann, visitor)
    for _ in range(2):
        run(merge(shards, visitor, ann, cause="test"))
        assert events(shards, ann) == 1
        run(undo_merge(shards, visitor))
        assert shards.state(ann, visitor) == before


def test_chains_are_followed_and_undone_from_their_end():
    shards = Shards(3)
    a, b, c = (shards.new_person(n, f"{n}@x.example") for n in range(3))
    happened(shards, a, 1)
    before = shards.state(a, b, c)
    run(merge(shards, a, b, cause="test"))
    run(merge(shards, b, c, cause="test"))
    happened(shards, a, 2)
    assert [events(shards, id) for id in (a, b, c)] == [2, 2, 2]
    assert run(living(shards, [a, b, c])) == {a: c, b: c, c: c}
    answer = run(
        execute_for(shards, a, lambda id: SetConsent(None, id, "email", "n", "subscribed", "api"))
    )
    assert answer.subscriber_id == c
    with pytest.raises(Conflict):
        run(undo_merge(shards, a))
    with pytest.raises(Conflict):
        run(merge(shards, c, a, cause="a circle"))
    run(undo_merge(shards, b))
    run(undo_merge(shards, a))
    shards.home(c).delete("consents", subscriber_id=c, channel="email", topic="n")
    assert [events(shards, id) for id in (a, b, c)] == [2, 0, 0]
    after = shards.state(a, b, c)
    after[f"{a} events"] = before[f"{a} events"]
    assert after == before


def test_a_chain_has_an_end():
    shards = Shards()
    people = [shards.new_person(n % 2) for n in range(aliases.HOPS_MAX + 2)]
    for n in range(aliases.HOPS_MAX):
        run(merge(shards, people[n], people[n + 1], cause="test"))
    with pytest.raises(Conflict):
        run(merge(shards, people[-2], people[-1], cause="test"))
    assert run(living(shards, [people[0]]))[people[0]] == people[-2]


def test_nobody_is_merged_with_themselves_or_into_nobody():
    shards = Shards()
    ann = shards.new_person(0, "ann@x.example")
    gone = ann + 1
    before = shards.state(ann)
    with pytest.raises(Conflict):
        run(merge(shards, ann, ann, cause="test"))
    with pytest.raises(NotFound):
        run(merge(shards, gone, ann, cause="test"))
    with pytest.raises(NotFound):
        run(merge(shards, ann, gone, cause="test"))
    assert shards.state(ann) == before


@pytest.mark.parametrize("other", SHARDS)
def test_whoever_meets_a_merge_that_stopped_finishes_it(other):
    """The driver dies before each of its calls; then the merge, and the undo, are finished."""
    for call in range(6):
        shards = Shards()
        ann, visitor = shards.new_person(0, "ann@x.example"), shards.new_person(other)
        happened(shards, visitor, 1, 2)
        before = shards.state(ann, visitor)
        shards.dies_at = call
        try:
            run(merge(shards, visitor, ann, cause="test"))
        except OutcomeUnknown:
            pass
        shards.dies_at = None
        happened(shards, visitor, 3)
        shards.pass_time(seconds=31)
        run(finish(shards, [visitor]))
        merged = run(living(shards, [visitor]))[visitor] == ann
        assert events(shards, ann) == (3 if merged else 0)
        run(merge(shards, visitor, ann, cause="test"))
        assert events(shards, ann) == 3
        for call_of_undo in range(4):
            shards.dies_at = call_of_undo
            try:
                run(undo_merge(shards, visitor))
            except OutcomeUnknown:
                pass
            shards.dies_at = None
            run(finish(shards, [visitor]))
            if run(living(shards, [visitor]))[visitor] == visitor:
                break
        assert events(shards, visitor) == 3
        after = shards.state(ann, visitor)
        after[f"{visitor} events"] = before[f"{visitor} events"]
        assert after == before


def test_two_who_merge_each_other_at_once_do_not_vanish():
    shards = Shards()
    ann, bob = shards.new_person(0, "ann@x.example"), shards.new_person(1, "bob@x.example")

    async def both() -> None:
        await asyncio.gather(
            merge(shards, ann, bob, cause="one"),
            merge(shards, bob, ann, cause="other"),
            return_exceptions=True,
        )

    run(both())
    now = run(living(shards, [ann, bob]))
    alive = [id for id in (ann, bob) if shards.home(id).rows("SELECT 1 FROM profiles")]
    assert alive and all(id in alive for id in now.values())


@pytest.mark.parametrize("other", SHARDS)
def test_a_withdrawal_under_either_name_holds_for_both_after_an_undo(other):
    shards = Shards()
    ann, bob = shards.new_person(0, "ann@x.example"), shards.new_person(other, "bob@x.example")
    for id in (ann, bob):
        run(
            execute_for(
                shards, id, lambda id: SetConsent(None, id, "email", "n", "subscribed", "api")
            )
        )
    shards.pass_time(minutes=1)
    run(merge(shards, bob, ann, cause="test"))
    shards.pass_time(minutes=1)
    run(execute_for(shards, bob, lambda id: Unsubscribe(None, id, 5, None, "one-click")))
    run(undo_merge(shards, bob))
    for id in (ann, bob):
        sql = "SELECT topic, status FROM consents WHERE subscriber_id = ? ORDER BY 1"
        assert shards.home(id).rows(sql, id) == [("*", "unsubscribed"), ("n", "unsubscribed")]


def test_nobody_is_resubscribed_through_an_address_that_complained():
    shards = Shards()
    ann, bob = shards.new_person(0, "ann@x.example"), shards.new_person(1, "bob@x.example")
    there = shards.home(bob)
    there.load(
        "suppressions",
        {"channel": "email", "address": "bob@x.example"}
        | {"reason": "complaint", "created_at": START},
    )
    there.answer(SetConsent(None, bob, "email", "n", "subscribed", "api"))
    run(merge(shards, bob, ann, cause="test"))
    assert shards.home(ann).rows("SELECT topic FROM consents WHERE subscriber_id = ?", ann) == []


def test_a_leased_message_of_the_merged_goes_back():
    shards = Shards()
    ann, bob = shards.new_person(0, "ann@x.example"), shards.new_person(1, "bob@x.example")
    there = shards.home(bob)
    there.leased(bob, 7)
    from manta.people.merging import BeginMerge

    decision = there.run(BeginMerge(None, bob, ann, "test"))
    assert [(push.to, push.method, push.arguments) for push in decision.pushes] == [
        ("sender-00", "revoke", (None, ((bob, 7),)))
    ]


# -- as if it had never been -----------------------------------------------------------------------

STATUSES = ["subscribed", "pending", "unsubscribed"]
people = st.fixed_dictionaries(
    {
        "email": st.sampled_from([None, "a@x.example", "b@x.example"]),
        "locale": st.sampled_from([None, "de", "fr"]),
        "attr_n": st.sampled_from([None, 1.5, 2.0]),
        "attr_l": st.sampled_from([None, ["a"], ["a", "b"]]),
        "attr_d": st.sampled_from([None, START, START + timedelta(microseconds=7)]),
        "attr_b": st.sampled_from([None, True, False]),
    }
)
consents = st.dictionaries(st.sampled_from(["x", "y", "*"]), st.sampled_from(STATUSES))
lists = st.sets(st.sampled_from([1, 2, 3, 4]))
months = st.dictionaries(st.sampled_from(["bought", "viewed"]), st.integers(1, 9))
numbers = st.sets(st.integers(1, 8))
one = st.tuples(people, consents, lists, months, numbers)


def _made(shards: Shards, shard: int, drawn: Any) -> int:
    columns, agreed, segments, counts, happenings = drawn
    id = shards.new_person(shard, **columns)
    home = shards.home(id)
    for topic, status in agreed.items():
        home.load(
            "consents",
            {"subscriber_id": id, "channel": "email", "topic": topic, "status": status}
            | {"source": "form", "changed_at": START, "proof": '{"method":"form"}'},
        )
    if segments:
        home.load("memberships", {"subscriber_id": id, "segments": sorted(segments)})
    for kind, count in counts.items():
        home.load(
            "event_months",
            {"subscriber_id": id, "month": START, "type": kind, "first_at": START, "last_at": START}
            | {"events": count, "amount": 2.0 * count},
        )
    if happenings:
        happened(shards, id, *happenings)
    return id


@settings(max_examples=10, deadline=None)
@given(one, one, st.sampled_from(SHARDS), numbers, numbers, st.integers(0, 7))
def test_after_an_undo_it_is_as_if_the_merge_had_never_been(
    first, second, other, since_from, since_to, dies_at
):
    # An event that is reported under both names is one event: its first report's.
    since_to = since_to - second[4] - since_from

    def world(with_merge: bool) -> dict[str, Any]:
        shards = Shards()
        for shard in shards.shards:
            for segment, kind in ((1, "list"), (2, "snapshot"), (3, "rule")):
                body = {"name": "s", "type": kind, "live": False, "rule": None, "attributes": {}}
                shard.answer(SetDefinition(None, "segment", str(segment), 1, body))
        to_id, from_id = _made(shards, 0, first), _made(shards, other, second)
        shards.pass_time(minutes=1)
        if with_merge:
            shards.dies_at = dies_at
            try:
                run(merge(shards, from_id, to_id, cause="test"))
            except OutcomeUnknown:
                shards.dies_at = None
                run(merge(shards, from_id, to_id, cause="test"))
            shards.dies_at = None
        if since_from:
            happened(shards, from_id, *since_from)
        if since_to:
            happened(shards, to_id, *since_to)
        shards.pass_time(minutes=1)
        if with_merge:
            there = shards.home(to_id)
            seen = there.rows("SELECT event_id FROM events WHERE subscriber_id = ?", to_id)
            assert len(seen) == len(first[4] | second[4] | since_from | since_to) == len(set(seen))
            run(undo_merge(shards, from_id))
        return shards.state(to_id, from_id)

    assert world(with_merge=True) == world(with_merge=False)


@pytest.mark.parametrize("other", SHARDS)
def test_who_was_erased_is_neither_parted_nor_joined_any_further(other):
    """An erasure takes what an undo would give back out of the alias, also of a merge under way."""
    for calls in (3, None):
        shards = Shards()
        ann, visitor = shards.new_person(0, "ann@x.example"), shards.new_person(other)
        shards.dies_at = calls
        try:
            run(merge(shards, visitor, ann, cause="test"))
        except OutcomeUnknown:
            pass
        home = shards.home(visitor)
        ((merge_id,),) = home.rows("SELECT merge_id FROM aliases")
        home.load("aliases", {"from_id": visitor, "merge_id": merge_id, "kept": None})
        run(finish(shards, [visitor]))
        with pytest.raises(NotFound):
            run(undo_merge(shards, visitor))
        run(finish(shards, [visitor]))


@pytest.mark.parametrize("other", SHARDS)
def test_every_change_of_an_alias_names_both_people(other):
    """Live segments ask again whoever it names: an undo takes events from the one it leaves."""
    shards = Shards()
    ann, visitor = shards.new_person(0, "ann@x.example"), shards.new_person(other)
    said = []
    for shard in shards.shards:
        write = shard.database.apply
        shard.database.apply = lambda changes, write=write: (said.extend(changes), write(changes))
    run(merge(shards, visitor, ann, cause="test"))
    run(undo_merge(shards, visitor))
    rows = [row for one in said if one.table == "aliases" for row in one.rows.to_pylist()]
    undone = [row for row in rows if row.get("state") == aliases.UNDONE]
    assert undone and all((row["from_id"], row["to_id"]) == (visitor, ann) for row in undone)
