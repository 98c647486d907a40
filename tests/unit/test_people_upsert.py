"""UpsertPeople: who is made, who is changed, and what is never done."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.command import Change, Op
from manta.errors import InvalidRequest
from manta.ids import bucket_of_subscriber
from manta.people.commands import Consent, UpsertPeople
from manta.people.identities import bucket_of
from tests.unit.people_shard import START, Shard

NEWS = Consent("email", "news", "subscribed")


def upsert(shard, *rows, consent=None, source="import"):
    return shard.answer(UpsertPeople(None, pa.Table.from_pylist(list(rows)), source, consent))


def test_a_new_person_has_profile_identity_and_history():
    shard = Shard()
    answer = upsert(shard, {"email": "Ann@example.com", "attr_city": "Köln", "attr_age": 31.0})
    assert (answer.created, answer.updated, answer.unchanged) == (1, 0, 0)
    (subscriber_id,) = answer.ids.to_pylist()
    assert bucket_of_subscriber(subscriber_id) == bucket_of("email", "ann@example.com")
    assert shard.rows(
        "SELECT subscriber_id, email, created_at, attr_city, attr_age FROM profiles"
    ) == [(subscriber_id, "Ann@example.com", START, "Köln", 31.0)]
    assert shard.rows("SELECT kind, value, subscriber_id, state FROM identities") == [
        ("email", "ann@example.com", subscriber_id, "confirmed")
    ]
    assert shard.kinds() == ["profile_created"]
    assert json.loads(shard.history[0]["properties"]) == {
        "source": "import",
        "new": {"email": "Ann@example.com", "attr_city": "Köln", "attr_age": 31.0},
    }


def test_the_same_rows_again_change_nothing():
    shard = Shard()
    rows = [{"email": f"p{n}@example.com", "attr_n": float(n)} for n in range(20)]
    upsert(shard, *rows, consent=NEWS)
    decision = shard.run(UpsertPeople(None, pa.Table.from_pylist(rows), "import", NEWS))
    assert decision.changes == ()
    assert (decision.answer.unchanged, decision.answer.withheld) == (20, 0)


def test_a_null_keeps_what_is_stored_and_a_change_tells_old_and_new():
    shard = Shard()
    upsert(shard, {"email": "a@example.com", "attr_city": "Bonn", "attr_n": 1.0})
    shard.pass_time(hours=1)
    answer = upsert(
        shard,
        {"email": "A@example.com", "attr_city": None, "attr_n": 2.0, "locale": "de"},
        source="crm",
    )
    assert (answer.created, answer.updated) == (0, 1)
    assert shard.rows(
        "SELECT email, locale, attr_city, attr_n, created_at, updated_at FROM profiles"
    ) == [("a@example.com", "de", "Bonn", 2.0, START, shard.now)]
    assert json.loads(shard.history[-1]["properties"]) == {
        "source": "crm",
        "old": {"attr_n": 1.0},
        "new": {"attr_n": 2.0, "locale": "de"},
    }


def test_lists_dates_and_booleans_are_kept_and_compared():
    shard = Shard()
    row = {"email": "a@example.com", "attr_tags": ["x", "y"], "attr_on": START, "attr_vip": False}
    upsert(shard, row)
    assert upsert(shard, row).unchanged == 1
    assert upsert(shard, row | {"attr_tags": ["x"]}).updated == 1
    assert shard.rows("SELECT attr_tags, attr_on, attr_vip FROM profiles") == [
        (["x"], START, False)
    ]


def test_of_duplicates_the_last_value_of_each_column_wins():
    shard = Shard()
    answer = upsert(
        shard,
        {"email": "a@example.com", "attr_x": "1", "attr_y": "1"},
        {"email": "b@example.com", "attr_x": "b", "attr_y": None},
        {"email": "A@EXAMPLE.com".replace("EXAMPLE", "example"), "attr_x": "2", "attr_y": None},
    )
    assert (answer.created, answer.duplicates) == (2, 1)
    ids = answer.ids.to_pylist()
    assert ids[0] == ids[2] != ids[1]
    assert shard.rows("SELECT email, attr_x, attr_y FROM profiles ORDER BY email") == [
        ("a@example.com", "2", "1"),
        ("b@example.com", "b", None),
    ]


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "email": st.sampled_from(["a@example.com", "B@example.com", "b@example.com"]),
            "attr_x": st.sampled_from([None, "1", "2"]),
            "attr_y": st.sampled_from([None, 1.0, 2.0]),
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(ROWS, st.integers(0, 8))
def test_batches_say_the_same_however_they_are_cut(rows, cut):
    whole, parts = Shard(), Shard()
    schema = pa.schema([("email", pa.string()), ("attr_x", pa.string()), ("attr_y", pa.float64())])
    for shard, batches in ((whole, [rows]), (parts, [rows[:cut], rows[cut:]])):
        for batch in batches:
            if batch:
                shard.answer(UpsertPeople(None, pa.Table.from_pylist(batch, schema), "test"))
    columns = {name for name, _ in [("attr_x", 0), ("attr_y", 0)]} & set(
        whole.database.columns("profiles")
    )
    sql = f"SELECT {', '.join(['lower(email)', *sorted(columns)])} FROM profiles ORDER BY 1"
    assert whole.rows(sql) == parts.rows(sql)


def test_consent_is_given_to_new_and_known_people_once():
    shard = Shard()
    upsert(shard, {"email": "a@example.com"})
    answer = upsert(shard, {"email": "a@example.com"}, {"email": "b@example.com"}, consent=NEWS)
    assert (answer.consented, answer.withheld) == (2, 0)
    assert (
        shard.rows("SELECT channel, topic, status, source FROM consents")
        == [("email", "news", "subscribed", "import")] * 2
    )
    assert shard.kinds().count("consent_changed") == 2


@pytest.mark.parametrize("topic", ["news", "*"])
@pytest.mark.parametrize("status", ["unsubscribed", "pending"])
def test_an_import_never_subscribes_who_left_or_waits(topic, status):
    if (topic, status) == ("*", "pending"):
        return  # nobody waits for all topics
    shard = Shard()
    person = shard.person("a@example.com")
    shard.load(
        "consents",
        {"subscriber_id": person, "channel": "email", "topic": topic, "status": status},
    )
    answer = upsert(shard, {"email": "a@example.com"}, consent=NEWS)
    assert (answer.consented, answer.withheld) == (0, 1)


def test_an_import_never_subscribes_a_suppressed_address():
    shard = Shard()
    for address, expires in (("old@example.com", START), ("bad@example.com", None)):
        shard.load(
            "suppressions",
            {"channel": "email", "address": address, "reason": "manual", "expires_at": expires},
        )
    answer = upsert(shard, {"email": "Bad@example.com"}, {"email": "old@example.com"}, consent=NEWS)
    assert (answer.created, answer.consented, answer.withheld) == (2, 1, 1)


def test_an_opt_out_in_a_batch_is_always_taken():
    shard = Shard()
    upsert(shard, {"email": "a@example.com"}, consent=NEWS)
    answer = upsert(
        shard, {"email": "a@example.com"}, consent=Consent("email", "news", "unsubscribed")
    )
    assert answer.consented == 1
    assert shard.rows("SELECT status FROM consents") == [("unsubscribed",)]
    assert json.loads(shard.history[-1]["properties"])["old"] == "subscribed"


def test_people_by_external_id_and_by_subscriber_id():
    shard = Shard()
    answer = upsert(shard, {"external_id": "c-1", "attr_x": "1"})
    (person,) = answer.ids.to_pylist()
    assert bucket_of_subscriber(person) == bucket_of("external_id", "c-1")
    answer = upsert(
        shard, {"subscriber_id": person, "attr_x": "2"}, {"subscriber_id": 5, "attr_x": "3"}
    )
    assert (answer.updated, answer.unknown) == (1, (1,))
    assert answer.ids.to_pylist() == [person, None]
    assert shard.rows("SELECT attr_x FROM profiles") == [("2",)]


def test_an_external_id_beside_an_address_comes_back_as_a_claim():
    shard = Shard()
    row = {"email": "a@example.com", "external_id": " c-1 "}
    answer = upsert(shard, row)
    assert answer.claims.to_pylist() == [
        {"kind": "external_id", "value": "c-1", "subscriber_id": answer.ids[0].as_py()}
    ]
    shard.load("identities", answer.claims.to_pylist()[0] | {"state": "confirmed"})
    assert upsert(shard, row).claims is None


def test_people_of_other_shards_and_claimed_addresses_are_left_alone():
    shard = Shard()
    for value, state in (("moved@example.com", "confirmed"), ("busy@example.com", "pending")):
        shard.load(
            "identities",
            {"kind": "email", "value": value, "subscriber_id": 99, "state": state},
        )
    decision = shard.run(
        UpsertPeople(
            None, pa.table({"email": ["moved@example.com", "busy@example.com"]}), "import", NEWS
        )
    )
    assert decision.changes == ()
    assert decision.answer.elsewhere == ((0, 99),)
    assert decision.answer.busy == (1,)


def test_two_names_of_one_person_in_a_batch_are_one():
    shard = Shard()
    (person,) = upsert(shard, {"email": "a@example.com"}).ids.to_pylist()
    answer = upsert(
        shard,
        {"email": "a@example.com", "subscriber_id": None, "attr_x": "1", "attr_y": "1"},
        {"email": None, "subscriber_id": person, "attr_x": "2", "attr_y": None},
        consent=NEWS,
    )
    assert (answer.updated, answer.duplicates, answer.consented) == (1, 1, 1)
    assert answer.ids.to_pylist() == [person, person]
    assert shard.rows("SELECT attr_x, attr_y FROM profiles") == [("2", "1")]


def test_ids_that_collide_are_drawn_again():
    class Stuck:
        """Draws the same bits until the third time."""

        def __init__(self):
            self.calls = 0

        def randbytes(self, count):
            self.calls += 1
            return (bytes([self.calls // 3 + 1]) * 8) * (count // 8)

    shard = Shard()
    shard.random = Stuck()
    first = upsert(shard, {"email": "a@example.com"}).ids[0].as_py()
    shard.write(
        Change("identities", Op.DELETE, pa.table({"kind": ["email"], "value": ["a@example.com"]}))
    )
    shard.random.calls = 0
    second = upsert(shard, {"email": "a@example.com"}).ids[0].as_py()
    assert first != second
    assert bucket_of_subscriber(first) == bucket_of_subscriber(second)


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        (pa.table({"email": ["a@example.com"], "shoe": ["x"]}), "rows.shoe"),
        (pa.table({"email": ["a@example.com"], "attr_Bad": ["x"]}), "rows.attr_Bad"),
        (pa.table({"email": ["a@example.com"], "attr_n": ["x"]}), "rows.attr_n"),
        (pa.table({"email": ["a\r\nBcc: b@example.com"]}), "rows.email"),
        (pa.table({"email": ["a@Example.com"]}), "rows.email"),
        (pa.table({"email": pa.array([None], pa.string())}), "rows"),
    ],
)
def test_wrong_batches_are_refused_with_their_place(rows, path):
    shard = Shard()
    upsert(shard, {"email": "z@example.com", "attr_n": 1.0})
    with pytest.raises(InvalidRequest) as caught:
        shard.answer(UpsertPeople(None, rows, "import"))
    assert caught.value.path == path


def test_the_answer_travels():
    import pickle

    answer = upsert(Shard(), {"email": "a@example.com", "external_id": "1"})
    assert pickle.loads(pickle.dumps(answer)).ids == answer.ids


def test_of_changed_values_it_is_known_since_when():
    shard = Shard()
    person = shard.person("a@x.example", attr_city="Bern", locale="de")
    shard.pass_time(days=1)
    given = {
        "email": ["a@x.example"],
        "attr_city": ["Rome"],
        "locale": ["de"],
        "time_zone": ["UTC"],
    }
    shard.answer(UpsertPeople(None, pa.table(given), "api"))
    sql = "SELECT subscriber_id, name, changed_at FROM attribute_times ORDER BY name"
    expected = [(person, "city", shard.now), (person, "time_zone", shard.now)]
    assert shard.rows(sql) == expected
    shard.pass_time(days=1)
    shard.answer(UpsertPeople(None, pa.table(given), "api"))
    assert shard.rows(sql) == expected


def test_an_anonymous_id_names_and_a_phone_is_claimed():
    shard = Shard()
    rows = pa.table({"anonymous_id": [" w1 ", "w1"], "phone": [None, "+41"]})
    first = shard.answer(UpsertPeople(None, rows, "api"))
    assert (first.created, first.duplicates) == (1, 1)
    (claimed,) = first.claims.to_pylist()
    assert (claimed["kind"], claimed["value"]) == ("phone", "+41")
    named = pa.table({"anonymous_id": ["w1"], "email": ["a@x.example"]})
    second = shard.answer(UpsertPeople(None, named, "api"))
    assert [c["kind"] for c in second.claims.to_pylist()] == ["anonymous_id"]
