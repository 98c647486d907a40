"""Erasure in one shard's store with real files: state, journal, lake; and nobody else touched."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.erasing import ErasureHook
from manta.clock import ManualClock
from manta.command import Change, Op
from manta.delivery.screening import Wanted, screen
from manta.errors import InvalidRequest
from manta.ids import encode_id
from manta.people.commands import Consent, LiftSuppression, Suppress, UpsertPeople
from manta.privacy import names
from manta.privacy.commands import Erase, KeepErasing, LiftErasure
from manta.privacy.hashes import keyed_hash
from manta.privacy.names import Name
from manta.schema import TABLES
from manta.store import erasure, lake
from manta.store.documents import Documents
from manta.store.objects import FileObjects
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore
from tests.decoding import Search
from tests.unit.store_shard import START, content, event, flush, new_store, upsert, write

KEY = b"k" * 32
SETTINGS = ShardSettings(merge_files=3, domain={"privacy_key": KEY})
ANN = {
    "email": "Ann.Olsen@example.org",
    "address": "ann.olsen@example.org",
    "external": "crm-778899-x",
    "city": "Kirkenes-by-the-sea",
    "property": "purple-unicorn-lamp",
    "proof": "signed-on-paper-7",
}


class House:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ManualClock(START)
        self.objects = FileObjects(root)
        self.nonce = 0
        self.store = self.opened()

    def opened(self) -> ShardStore:
        self.nonce += 1
        store = new_store(self.objects, self.nonce, self.clock, SETTINGS)
        store.recover()
        return store

    def run(self, *commands: Any) -> list[Any]:
        outcomes = self.store.execute(commands)
        for outcome in outcomes:
            if outcome.failed:
                raise outcome.answer
        return [outcome.answer for outcome in outcomes]

    def person(self, email: str, external: str, **attributes: Any) -> int:
        row = {"email": email, "external_id": external} | attributes
        consent = Consent("email", "news", "subscribed")
        (done,) = self.run(UpsertPeople(None, pa.Table.from_pylist([row]), "test", consent))
        id = int(done.ids[0].as_py())
        identity = {"kind": "external_id", "value": external, "subscriber_id": id}
        self.run(write(upsert("identities", identity | {"state": "confirmed"})))
        return id

    def pass_through(self, *, purge: bool = True) -> Any:
        swept = erasure.sweep(self.store)
        assert swept is not None
        report = erasure.rewrite(self.store, swept, self.clock.now())
        erasure.forget(self.store, swept, erasure.named_in_memory(self.store, swept))
        if purge:
            erasure.purge(self.store)
        return report


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def needles(id: int) -> dict[str, str | int]:
    texts = {name: text for name, text in ANN.items() if name != "email"}
    return {**texts, "id": id}


def life(house: House, id: int, other: int, n: int) -> None:
    """What happens to two people between two flushes."""
    at = START + timedelta(minutes=n)
    rows = []
    for who, thing in ((id, ANN["property"]), (other, "a table")):
        rows.append(event(who, "purchased", at, event_id=n, item=thing, amount=2.0))
        rows.append(event(who, "received", at, event_id=n + 100, properties=f'{{"p":"{thing}"}}'))
    house.run(write(*rows))
    message = {"campaign_id": 7, "kind": "marketing", "channel": "email", "attempts": n}
    states = ("planned", "accepted", "failed", "leased", "suppressed", "orphaned", "uncertain")
    house.run(
        write(
            upsert(
                "ledger",
                *(
                    {"subscriber_id": who, "message_key": n, "state": states[n % 7]}
                    | message
                    | {"sender": "sender-00", "reply": f"550 <{ANN['address']}> no such user"}
                    for who in (id, other)
                ),
            ),
            upsert("memberships", {"subscriber_id": id, "segments": [n]}),
            upsert("memberships", {"subscriber_id": other, "segments": [n]}),
            upsert("predictions", {"subscriber_id": id, "name": "churn", "value": float(n)}),
            upsert("attribute_times", {"subscriber_id": id, "name": "city", "changed_at": at}),
            upsert("outbox", {"endpoint_id": 1, "delivery_id": n, "subscriber_id": id}),
            upsert(
                "quarantine",
                {"quarantine_id": n, "body": f'{{"customer": "{ANN["external"]}"}}'},
                {"quarantine_id": n + 100, "body": '{"customer": "another"}'},
            ),
        )
    )


def lived(house: House) -> tuple[int, int]:
    id = house.person(ANN["email"], ANN["external"], attr_city=ANN["city"])
    other = house.person("bob@example.org", "crm-1", attr_city="Oslo")
    proof = {"subscriber_id": id, "channel": "email", "topic": "news", "proof": ANN["proof"]}
    house.run(
        write(
            upsert("consents", proof),
            upsert(
                "suppressions",
                {"channel": "email", "address": ANN["address"], "reason": "manual"},
                {
                    "channel": "email",
                    "address": "eve@example.org",
                    "evidence": f"she forwards to {ANN['address']}.",
                },
            ),
            upsert("campaigns", {"campaign_id": 7, "planned_rows": 14}),
            event(other, "invited", properties=f'{{"by": "{ANN["email"]}"}}'),
            event(0, "suppression_changed", properties=f'{{"address": "{ANN["address"]}"}}'),
        )
    )
    for n in range(7):
        life(house, id, other, n)
        flush(house.store)
        house.clock.advance(60)
    house.run(write(upsert("identities", {"kind": "phone", "value": "1", "subscriber_id": id})))
    return id, other


def others(house: House, id: int) -> dict[str, list[Any]]:
    """All rows of the lake that are nobody's but other people's, whole."""
    flush(house.store)
    found = {}
    with lake.open(str(house.root)) as connection:
        for name, table in TABLES.items():
            where = "TRUE"
            if "subscriber_id" in table.column_names:
                where = f"subscriber_id NOT IN ({id}, 0)"
            rows = connection.sql(f"SELECT * FROM {name} WHERE {where}").fetchall()
            if name not in ("erasures", "quarantine", "suppressions", "identities"):
                found[name] = sorted(rows, key=repr)
    return found


def erase(house: House, id: int) -> None:
    known: tuple[Name, ...] = ()
    for _ in range(2):
        (answer,) = house.run(Erase(None, "request-1", (id,), known))
        known = tuple(sorted({*known, *answer.names}))


def test_nothing_is_left_and_nobody_else_is_touched(house: House) -> None:
    id, other = lived(house)
    found = Search(needles(id)).run(house.root)
    assert all(found.values()), found
    before = others(house, id)
    erase(house, id)
    assert house.store.database.rows("SELECT count(*) FROM profiles") == [(1,)]
    assert house.store.database.rows(f"SELECT 1 FROM events WHERE subscriber_id = {id}") == []
    report = house.pass_through()
    found = Search(needles(id)).run(house.root)
    assert not any(found.values()), found
    places = report.places["request-1"]
    assert {"profiles", "events", "ledger", "consents", "texts"} <= places.keys()
    after = others(house, id)
    for name, rows in before.items():
        if name in ("ledger", "ledger_campaigns", "events"):
            assert len(after[name]) == len(rows) + (name == "ledger_campaigns") * len(after[name])
        else:
            assert after[name] == rows, name
    house.store.close()
    again = house.opened()
    assert content(again)["erasures"] == []
    assert again.database.rows("SELECT subscriber_id FROM profiles") == [(other,)]
    assert Search(needles(id)).run(house.root)["id"] == set()


def test_the_accounting_of_a_campaign_stays_exact(house: House) -> None:
    id, _ = lived(house)
    sql = (
        "SELECT state, sum(n)::BIGINT FROM (SELECT state, 1 AS n FROM ledger UNION ALL"
        " SELECT state, messages FROM ledger_campaigns) GROUP BY 1"
    )
    before = dict(house.store.database.rows(sql))
    assert sum(before.values()) == 14
    erase(house, id)
    meanwhile = dict(house.store.database.rows(sql))
    assert meanwhile["leased"] == 2 and meanwhile["planned"] == 1 and meanwhile["suppressed"] == 3
    house.pass_through()
    after = dict(house.store.database.rows(sql))
    assert sum(after.values()) == 14
    assert (after["leased"], after["orphaned"], after["uncertain"]) == (1, 1, 4)


def test_the_state_in_memory_is_that_of_the_files(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    house.pass_through(purge=False)
    held = content(house.store)
    house.store.close()
    assert content(house.opened()) == held


def test_a_crash_before_the_manifest_changes_nothing(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    swept = erasure.sweep(house.store)
    assert swept is not None
    house.store.maintain()
    house.store.close()
    house.store = house.opened()
    assert house.store.database.rows("SELECT subscriber_id FROM erasures") == [(id,)]
    house.pass_through()
    assert not any(Search(needles(id)).run(house.root).values())


def test_a_crash_after_the_manifest_leaves_only_the_purge(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    swept = erasure.sweep(house.store)
    assert swept is not None
    erasure.rewrite(house.store, swept, house.clock.now())
    house.store.close()
    house.store = house.opened()
    assert content(house.store)["erasures"] == []
    assert erasure.unpurged_since(house.store.maintenance.manifest) == house.clock.now()
    erasure.purge(house.store)
    assert not any(Search(needles(id)).run(house.root).values())
    report = erasure.reports_of(house.store.maintenance.manifest)["request-1"]
    assert report["places"]["profiles"][0] >= 1


def test_what_comes_in_during_the_rewriting_is_taken_by_the_next_pass(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    swept = erasure.sweep(house.store)
    assert swept is not None
    house.run(write(event(id, "late", item=ANN["property"])))
    erasure.rewrite(house.store, swept, house.clock.now())
    erasure.forget(house.store, swept)
    assert house.store.database.rows("SELECT subscriber_id FROM erasures") == [(id,)]
    house.pass_through()
    assert not any(Search(needles(id)).run(house.root).values())


def test_a_new_person_with_the_identity_stays(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    new = house.person(ANN["email"], ANN["external"])
    assert new != id
    house.pass_through()
    sql = "SELECT kind, subscriber_id FROM identities WHERE value IN (?, ?) ORDER BY 1"
    asked = [ANN["address"], ANN["external"]]
    expected = [("email", new), ("external_id", new)]
    assert house.store.database.rows(sql, asked) == expected
    house.store.close()
    assert house.opened().database.rows(sql, asked) == expected
    assert Search({"id": id}).run(house.root)["id"] == set()


def test_only_the_persons_own_act_lifts_it(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    hashed = keyed_hash(KEY, "email", ANN["address"])
    sql = f"SELECT reason FROM suppressions WHERE address = '{hashed}'"
    assert house.store.database.rows(sql) == [("erased",)]
    assert house.run(LiftErasure(None, "email", "bob@example.org")) == [False]
    assert house.run(LiftErasure(None, "email", ANN["email"])) == [True]
    assert house.store.database.rows(sql) == []


def test_keep_erasing_of_nobody_writes_nothing(house: House) -> None:
    assert house.run(KeepErasing((5,))) == [None]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<ann@x.org>: no such user", "<[erased]>: no such user"),
        ("ann@x.org ann@x.org,ANN@X.ORG", "[erased] [erased],[erased]"),
        ("joann@x.org jo.ann@x.org a+ann@x.org ann@x.org.au", None),
        ("write to ann@x.org.", "write to [erased]."),
        (f"person {encode_id(123456789012)} (123456789012)", "person [erased] ([erased])"),
        ("1234567890123", None),
        ('{"a":"x\\nann@x.org\\tb"}', '{"a":"x\\n[erased]\\tb"}'),
        # What was JSON stays JSON, also where a number names them.
        ('{"by":[123456789012, 123456789012],"n":2}', '{"by":[0, 0],"n":2}'),
        ('{"by":123456789012,"s":"a, 123456789012, b"}', '{"by":0,"s":"a, 0, b"}'),
        ('{"s":"a, 123456789012, b"}', '{"s":"a, [erased], b"}'),
        ('{"order":10402345,"list":"newsletter","type":"win-back-24"}', None),
    ],
)
def test_names_are_found_as_whole_words(text: str, shown: str | None, house: House) -> None:
    others = [("external_id", "newsletter"), ("external_id", "10402345"), ("external_id", "7")]
    chosen = [*others, ("anonymous_id", "win-back-24"), ("email", "ann@x.org")]
    found = names.pattern([Name(*each) for each in chosen], [123456789012])
    sql = names.replaced("$1::VARCHAR", "$2")
    database = house.store.database
    ((result,),) = database.rows(f"SELECT {sql}", [text, found])
    assert result == (text if shown is None else shown)


def test_short_names_are_looked_for_only_as_json_strings(house: House) -> None:
    found = names.body_pattern([Name("external_id", "c-7")], [1])
    ask = house.store.database.rows
    bodies = ['{"id": "C-7"}', '{"id": "C-77"}', "c-7"]
    answers = [ask("SELECT regexp_matches(?, ?)", [body, found])[0][0] for body in bodies]
    assert answers == [True, False, False]


def test_names_that_others_chose_do_not_empty_the_quarantine(house: House) -> None:
    """A visitor makes up an anonymous id, and a customer a user name: neither is taken for a name
    where it stands for something else."""
    bodies = {
        1: '{"type": "track", "anonymousId": "type"}',
        2: '{"type": "track", "anonymousId": "other", "context": {"anonymousId": "x"}}',
        3: '{"type": "track", "currency": "usd", "userId": "usd"}',
        4: '{"type": "track", "currency": "usd", "userId": "other"}',
    }
    rows = [{"quarantine_id": n, "body": body} for n, body in bodies.items()]
    house.run(write(upsert("quarantine", *rows)))
    flush(house.store)
    made_up = (Name("anonymous_id", "type"), Name("external_id", "usd"))
    house.run(Erase(None, "request-1", (house.person("a@x.org", "c-1"),), made_up))
    house.pass_through()
    left = house.store.database.rows("SELECT quarantine_id FROM quarantine ORDER BY 1")
    assert left == [(2,), (4,)]
    house.store.close()
    assert [row[0] for row in content(house.opened())["quarantine"]] == [2, 4]


def test_more_names_than_a_pattern_can_hold_are_erased_in_several_passes(house: House) -> None:
    """Somebody with thousands of browsers hinders nobody else's erasure."""
    people = [house.person(f"p{n}@x.org", f"crm-{n}-x") for n in range(3)]
    browsers = tuple(Name("anonymous_id", f"{n:032x}") for n in range(20_000))
    house.run(Erase(None, "request-0", (people[0],), browsers))
    many = tuple(Name("external_id", f"customer-{n}") for n in range(1_500))
    for n, id in enumerate(people[1:], 1):
        house.run(Erase(None, f"request-{n}", (id,), many[:n] if n == 1 else many))
    ask = "SELECT count(*) FROM erasures"
    lefts = []
    while house.store.database.rows(ask) != [(0,)]:
        house.pass_through()
        lefts += house.store.database.rows(ask)
    assert lefts == [(2,), (0,)]


def test_somebody_whom_hundreds_were_merged_into_can_be_erased(house: House) -> None:
    ids = tuple(range(1, 1_001))
    known = tuple(Name("anonymous_id", f"{n:032x}") for n in ids)
    house.run(Erase(None, "request-1", ids, known))
    ((size,),) = house.store.database.rows("SELECT sum(length(named)) FROM erasures")
    assert size < 100_000
    house.run(KeepErasing((7,)))
    house.pass_through()
    assert house.store.database.rows("SELECT count(*) FROM erasures") == [(0,)]


def test_results_of_jobs_are_rewritten(house: House) -> None:
    runs = house.root / "default" / "runs" / "r1"
    runs.mkdir(parents=True)
    pq.write_table(pa.table({"subscriber_id": [1, 42], "p": [0.1, 0.2]}), runs / "a.parquet")
    pq.write_table(pa.table({"segment": [42]}), runs / "b.parquet")
    (runs / "c.json").write_text(f'{{"worst": "{encode_id(42)}"}}')
    (runs / "d.json").write_text("{}")
    texts = names.pattern([], [42])
    report = erasure.rewrite_runs(house.objects, "default", {42: "r"}, texts)
    assert pq.read_table(runs / "a.parquet")["subscriber_id"].to_pylist() == [1]
    assert sorted(path.name for path in runs.iterdir()) == ["a.parquet", "b.parquet", "d.json"]
    assert report.places == {"r": {"runs": [1, 2]}}


def test_a_deleted_row_of_state_is_not_an_insert() -> None:
    with pytest.raises(ValueError):
        Change("profiles", Op.INSERT, pa.table({"subscriber_id": [1]}))


def test_neither_import_nor_bounce_brings_an_address_back(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    new = house.person(ANN["email"], "crm-new")
    ask = house.store.database.rows
    assert ask(f"SELECT 1 FROM consents WHERE subscriber_id = {new}") == []
    (done,) = house.run(
        UpsertPeople(
            None,
            pa.table({"email": [ANN["address"]]}),
            "test",
            Consent("email", "other", "subscribed"),
        )
    )
    assert (done.withheld, done.consented) == (1, 0)
    house.run(write(upsert("consents", consent_of(new))))
    wanted = [Wanted(new, kind, "email", "news") for kind in ("marketing", "transactional")]
    context = house.store.context()
    assert screen(house.store.database, wanted, context).refusals == ["erased", None]
    house.run(LiftErasure(None, "email", ANN["address"]))
    assert screen(house.store.database, wanted, context).refusals == [None, None]


def consent_of(id: int) -> dict[str, Any]:
    return {"subscriber_id": id, "channel": "email", "topic": "news", "status": "subscribed"}


def test_late_news_about_an_erased_address_stores_nothing(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    suppress = Suppress(None, "email", ANN["address"], "hard_bounce", "inbox", "550")
    (done,) = house.run(suppress)
    assert not done.changed
    house.person(ANN["email"], "crm-new")
    (done,) = house.run(suppress)
    assert done.changed


def test_replaced_files_stay_for_a_day(house: House) -> None:
    id, _ = lived(house)
    erase(house, id)
    published = house.clock.now()
    house.pass_through(purge=False)
    store, day = house.store, timedelta(days=1)
    assert erasure.purge(store, published - day) == 0
    assert erasure.unpurged_since(store.maintenance.manifest) == published
    assert Search(needles(id)).run(house.root)["address"]
    house.run(write(event(5, "later")))
    flush(store)
    assert erasure.purge(store, published) > 0
    assert erasure.unpurged_since(store.maintenance.manifest) is None
    assert not any(Search(needles(id)).run(house.root).values())
    assert content(house.opened())["events"] == content(store)["events"]


def test_the_shard_wakes_in_time(house: House) -> None:
    id, _ = lived(house)
    hook, ask = ErasureHook(), house.store
    assert hook.after_commit(ask.database, ask.context()).next_wake is None
    erase(house, id)
    at = house.store.now()
    found = hook.after_commit(ask.database, ask.context())
    assert (found.pushes, found.next_wake) == ((), at + timedelta(hours=44))
    found = hook.after_commit(ask.database, ask.context(at + timedelta(hours=44)))
    assert [push.method for push in found.pushes] == ["rewrite_erasures"]


def test_documents_forget_ids(tmp_path: Path) -> None:
    clock, objects = ManualClock(START), FileObjects(tmp_path)
    documents = Documents(objects, "default/journal/director", "director", b"d" * 16, clock)
    documents.recover()
    id = 8534401402190238002
    progress = {"last_subscriber": id, "rows": 17, "to": encode_id(id)}
    documents.change([("campaigns", "1", progress)], "key", {"id": id})
    documents.snapshot()
    assert documents.forget([id]) == 2
    assert not any(Search({"id": id}).run(tmp_path).values())
    kept = {"last_subscriber": id - 1, "rows": 17, "to": "erased"}
    assert documents.get("campaigns", "1") == kept
    again = Documents(objects, "default/journal/director", "director", b"e" * 16, clock)
    again.recover()
    assert again.get("campaigns", "1") == kept


def test_no_operator_lifts_what_an_erasure_left(house: House) -> None:
    hashed = keyed_hash(KEY, "email", ANN["address"])
    with pytest.raises(InvalidRequest, match="the person alone"):
        house.run(LiftSuppression(None, "email", hashed, "me"))
