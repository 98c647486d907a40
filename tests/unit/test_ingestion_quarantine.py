"""Quarantine, traits and originals, on one shard's database."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from manta.errors import InvalidRequest, NotFound
from manta.ingestion import quarantine
from manta.ingestion.commands import ORIGINALS, RecordReceived
from manta.ingestion.quarantine import DISCARDED, REPLAYED, Quarantine, SettleQuarantined, Waif
from manta.ingestion.traits import DECLARED_MAX, typed
from manta.schema import AttributeType
from tests.unit.people_shard import Shard


def waif(n: int, source: str = "segment", problem: str = "is missing") -> Waif:
    return Waif(source, problem, "userId", json.dumps({"n": n}))


def read(shard: Shard, name: str, **arguments: Any) -> Any:
    return quarantine.QUERIES[name](shard.database, None, arguments)  # type: ignore[arg-type]


def test_what_is_sent_again_is_there_once():
    shard = Shard()
    assert shard.answer(Quarantine(None, (waif(1), waif(2), waif(1)))).taken == 2
    assert shard.answer(Quarantine(None, (waif(1), waif(3)))).taken == 1
    rows = read(shard, "quarantine", state="waiting")
    assert {json.loads(row["body"])["n"] for row in rows} == {1, 2, 3}
    first = read(shard, "quarantine", limit=2)
    rest = read(
        shard,
        "quarantine",
        before=(first[-1]["received_at"], first[-1]["quarantine_id"]),
    )
    assert len(first) + len(rest) == 3
    assert read(shard, "quarantine_counts")[0]["count"] == 3
    assert read(shard, "quarantine", source="other") == []


def test_settled_rows_stay_settled_for_a_week():
    shard = Shard()
    shard.answer(Quarantine(None, (waif(1), waif(2))))
    assert shard.answer(SettleQuarantined(None, (waif(1).id, 5), REPLAYED)) == 1
    assert shard.answer(SettleQuarantined(None, (waif(1).id,), DISCARDED)) == 0
    assert shard.answer(Quarantine(None, (waif(1),))).taken == 0
    assert read(shard, "quarantined", quarantine_id=waif(1).id)["state"] == REPLAYED
    shard.pass_time(days=8)
    shard.answer(Quarantine(None, (waif(3),)))
    with pytest.raises(NotFound):
        read(shard, "quarantined", quarantine_id=waif(1).id)
    shard.pass_time(days=23)
    shard.answer(Quarantine(None, (waif(4), waif(1))))
    assert {row["quarantine_id"] for row in read(shard, "quarantine")} == {
        waif(n).id for n in (1, 3, 4)
    }
    with pytest.raises(InvalidRequest):
        shard.answer(SettleQuarantined(None, (1,), "waiting"))


def test_a_full_quarantine_refuses_the_newest(monkeypatch):
    shard = Shard()
    monkeypatch.setattr(quarantine, "ROWS_MAX", 2)
    answer = shard.answer(Quarantine(None, (waif(1), waif(2), waif(3))))
    assert (answer.taken, answer.refused) == (2, (2,))
    shard.answer(SettleQuarantined(None, (waif(1).id,), DISCARDED))
    assert shard.answer(Quarantine(None, (waif(3),))).taken == 1
    monkeypatch.undo()
    monkeypatch.setattr(quarantine, "BYTES_MAX", 20)
    assert shard.answer(Quarantine(None, (waif(4),))).refused == (0,)


def test_traits_become_attributes():
    declared = {"age": AttributeType.NUMBER, "vip": AttributeType.BOOLEAN}
    found = typed(
        {
            "age": "41",
            "vip": "yes",
            "firstName": "Ann",
            "company": {"name": "X", "deep": {"a": 1}, "seats": 3},
            "tags": ["a", "b"],
            "account_created_at": 1_600_000_000,
            "born": "1990-02-03",
            "nothing": None,
            "empty": "",
            "lists": [{"a": 1}],
        },
        declared,
    )
    assert found.values == {
        "age": 41.0,
        "vip": True,
        "first_name": "Ann",
        "company_name": "X",
        "company_seats": 3.0,
        "tags": ["a", "b"],
        "account_created_at": 1_600_000_000.0,
        "born": datetime(1990, 2, 3),
    }
    assert found.declare["born"] is AttributeType.DATE
    assert not found.misfits
    dated = {"account_created_at": AttributeType.DATE}
    for instant in (1_600_000_000, 1_600_000_000_000, "2020-09-13T12:26:40Z"):
        assert typed({"account_created_at": instant}, dated).values == {
            "account_created_at": datetime(2020, 9, 13, 12, 26, 40)
        }


def test_what_does_not_fit_its_type_is_told_and_names_are_bounded():
    found = typed({"age": "old", "name": "x"}, {"age": AttributeType.NUMBER}, declare=False)
    assert (found.values, found.declare) == ({}, {})
    assert found.misfits[0].path == "traits.age"
    many = typed({f"t{n}": n for n in range(DECLARED_MAX + 5)}, {})
    assert (len(many.declare), len(many.misfits)) == (DECLARED_MAX, 5)


def test_originals_come_with_the_first_of_their_events():
    shard = Shard()
    ann = shard.person("ann@x.example")
    rows = pa.table(
        {
            "subscriber_id": [ann, ann, 77],
            "type": ["ordered", "purchased", "viewed"],
            "id": ["m1", "m1:1", "m2"],
        }
    )
    originals = pa.Table.from_pylist(
        [
            {"subscriber_id": ann, "event_id": 1, "item": "segment", "properties": "{}", "row": 0},
            {"subscriber_id": 77, "event_id": 2, "item": "segment", "properties": "{}", "row": 2},
            {"subscriber_id": ann, "event_id": 3, "item": "segment", "properties": "{}"},
        ],
        schema=ORIGINALS,
    )
    command = RecordReceived(None, rows, originals)
    assert shard.answer(command).recorded == 2
    assert [e["event_id"] for e in shard.history if e["type"] == "received"] == [1, 3]
    assert shard.answer(command).repeated == 2
    assert [e["event_id"] for e in shard.history if e["type"] == "received"] == [1, 3, 3]
    assert shard.rows("SELECT count(*) FROM events") == [(2,)]
