"""Events: counted once, never from the future, refused row by row."""

from datetime import timedelta

import pyarrow as pa
import pytest

from manta.command import Context
from manta.errors import InvalidRequest
from manta.events.commands import (
    PROPERTIES_BYTES_MAX,
    HitsTracked,
    RecordEvents,
    TrackHits,
    wrong_properties,
)
from manta.events.copies import CopyEvents
from manta.events.queries import QUERIES
from manta.ids import hash64
from tests.unit.people_shard import START, Shard, alias


@pytest.fixture
def shard():
    return Shard()


def record(shard, *rows):
    return shard.answer(RecordEvents(None, pa.Table.from_pylist(list(rows))))


def test_an_event_is_kept_as_it_came(shard):
    person = shard.person("a@example.com")
    row = {"subscriber_id": person, "type": "bought", "id": "o-1", "occurred_at": START}
    row |= {"item": "boots", "amount": 59.9, "properties": '{"size": 42}'}
    assert record(shard, row).recorded == 1
    assert shard.rows(
        "SELECT subscriber_id, occurred_at, type, event_id, item, amount, properties FROM events"
    ) == [(person, START, "bought", hash64("o-1"), "boots", 59.9, '{"size": 42}')]


def test_an_event_counts_once_for_its_person(shard):
    ann, bob = shard.person("ann@example.com"), shard.person("bob@example.com")
    first = {"subscriber_id": ann, "type": "bought", "id": "1"}
    answer = record(shard, first, first, {**first, "subscriber_id": bob})
    assert (answer.recorded, answer.repeated) == (2, 1)
    answer = record(shard, {**first, "id": "2"}, first)
    assert answer.statuses(2) == ["recorded", "repeated"]
    assert shard.rows("SELECT count(*) FROM events") == [(3,)]


def test_many_people_at_once(shard):
    people = [shard.person(f"p{n}@example.com") for n in range(3)]
    ids = [*people, *range(1, 1000)]
    rows = pa.table({"subscriber_id": ids, "type": ["seen"] * len(ids), "id": [""] * len(ids)})
    rows = rows.set_column(2, "id", pa.array([str(n) for n in range(len(ids))]))
    answer = shard.answer(RecordEvents(None, rows))
    assert answer.recorded == 3
    assert {status for _, status, _ in answer.refused} == {"unknown"}
    assert shard.answer(RecordEvents(None, rows)).repeated == 3


def test_the_future_and_no_time_are_the_time_of_receipt(shard):
    person = shard.person("a@example.com")
    rows = [
        {"subscriber_id": person, "type": "x", "id": str(n), "occurred_at": at}
        for n, at in enumerate(
            [None, START + timedelta(minutes=4), START + timedelta(minutes=6), START]
        )
    ]
    record(shard, *rows)
    assert [at for (at,) in shard.rows("SELECT occurred_at FROM events ORDER BY occurred_at")] == [
        START,
        START,
        START,
        START + timedelta(minutes=4),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"subscriber_id": None},
        {"id": ""},
        {"id": None},
        {"type": None},
        {"type": "a\nb"},
        {"type": "x" * 65},
        {"type": "opened"},
        {"type": "profile_changed"},
        {"item": "x" * 2049},
        {"amount": float("nan")},
        {"properties": "[1]"},
        {"properties": "{"},
    ],
)
def test_a_wrong_row_is_refused_alone(shard, wrong):
    person = shard.person("a@example.com")
    good = {"subscriber_id": person, "type": "bought", "id": "1", "item": "x", "amount": 1.0}
    good["properties"] = "{}"
    answer = record(shard, good | wrong, good | {"id": "2"})
    assert answer.recorded == 1
    assert answer.statuses(2) == ["invalid", "recorded"]
    assert answer.refused[0][2]


def test_properties_are_a_json_object_of_bounded_size():
    assert wrong_properties('{"a": [1, null]}') is None
    assert "larger" in wrong_properties('{"a": "' + "x" * PROPERTIES_BYTES_MAX + '"}')
    assert wrong_properties('{"a": NaN}')
    assert wrong_properties('{"a": ' + "[" * 15000 + "]" * 15000 + "}") is not None


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ({"subscriber_id": [1], "type": ["x"]}, "rows.id"),
        ({"subscriber_id": [1], "type": ["x"], "id": ["1"], "event_id": [1]}, "rows.event_id"),
        ({"subscriber_id": ["x"], "type": ["x"], "id": ["1"]}, "rows.subscriber_id"),
    ],
)
def test_wrong_batches_are_refused(shard, rows, path):
    with pytest.raises(InvalidRequest) as caught:
        shard.answer(RecordEvents(None, pa.table(rows)))
    assert caught.value.path == path


def test_hits_carry_the_campaign_of_their_message(shard):
    person = shard.person("a@example.com")
    shard.leased(person, 11, state="accepted")
    hits = pa.Table.from_pylist(
        [
            {"subscriber_id": who, "message_key": key, "type": "opened", "event_id": n}
            | {"occurred_at": START + timedelta(days=1)}
            for n, (who, key) in enumerate([(person, 11), (person, 12), (404, 11)])
        ]
    )
    assert shard.answer(TrackHits(None, hits)).recorded == 2
    assert shard.rows("SELECT message_key, campaign_id, occurred_at FROM events ORDER BY 1") == [
        (11, 7, START),
        (12, None, START),
    ]


def test_events_under_a_merged_name_are_kept_there_and_copied(shard):
    person = shard.person("a@example.com")
    shard.load("aliases", alias(5, person))
    row = {"subscriber_id": 5, "type": "bought", "id": "1"}
    assert record(shard, row, row | {"subscriber_id": person}).recorded == 2
    assert record(shard, row, row | {"id": "2"}).statuses(2) == ["repeated", "recorded"]
    hit = {"subscriber_id": 5, "message_key": 1, "type": "opened", "event_id": 9}
    for _ in range(2):
        answer = shard.answer(TrackHits(None, pa.Table.from_pylist([hit])))
    assert answer == HitsTracked(1)
    found = shard.rows("SELECT subscriber_id, type, merge_id FROM events ORDER BY ALL")
    own = [(5, "bought", None), (5, "bought", None), (5, "opened", None), (5, "opened", None)]
    copies = [(person, "bought", 5), (person, "bought", None), (person, "opened", 5)]
    assert found == own + copies


def test_what_belongs_to_another_shard_comes_back(shard):
    there = Shard(2)
    person = there.person("a@example.com")
    shard.load("aliases", alias(5, person))
    row = {"subscriber_id": 5, "type": "bought", "id": "1"}
    (copies,) = record(shard, row).copies
    assert (copies.to_id, copies.merge_id, copies.unfinished) == (person, 5, None)
    for _ in range(2):  # a retry of the client, or of who forwards
        (copies,) = record(shard, row).copies
        assert there.answer(CopyEvents(None, copies)) == ()
    assert there.rows("SELECT subscriber_id, type, merge_id FROM events") == [(person, "bought", 5)]
    there.load("aliases", alias(5, person, "undone"))
    there.answer(CopyEvents(None, copies._replace(rows=copies.rows.slice(0, 0))))
    late = record(shard, row | {"id": "2"}).copies[0]
    assert there.run(CopyEvents(None, late)).changes == ()
    shard.load("aliases", alias(5, person, "merging"))
    shard.pass_time(seconds=31)
    assert record(shard, row | {"id": "3"}).copies[0].unfinished == 5


def test_events_of_a_person_in_pages(shard):
    person = shard.person("a@example.com")
    times = [START - timedelta(hours=n // 2) for n in range(5)]  # two at each instant
    record(
        shard,
        *(
            {"subscriber_id": person, "type": f"t{n % 2}", "id": str(n), "occurred_at": at}
            for n, at in enumerate(times)
        ),
    )
    context = Context(START, shard.random, "default", 0)
    seen, before = [], None
    while True:
        arguments = {"subscriber_id": person, "limit": 2, "before": before}
        answer = QUERIES["person_events"](shard.database, context, arguments)
        seen += answer["events"]
        before = answer["next"]
        if before is None:
            break
    assert [event["occurred_at"] for event in seen] == times
    assert len({event["event_id"] for event in seen}) == 5
    only = QUERIES["person_events"](
        shard.database, context, {"subscriber_id": person, "types": ["t1"]}
    )
    assert {event["type"] for event in only["events"]} == {"t1"}
    kinds = QUERIES["last_events"](shard.database, context, {"subscriber_id": person})
    assert {kind["type"]: kind["count"] for kind in kinds} == {"t0": 3, "t1": 2}
