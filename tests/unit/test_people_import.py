"""An import from the file to the shards and back: nothing lost, nothing done twice."""

import csv
import gzip
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.command import Context, Repeated
from manta.errors import InvalidRequest
from manta.ids import bucket_of_identity, even_ranges, shard_of_bucket
from manta.people import importing
from manta.people.claims import ClaimIdentities, further_identity
from manta.people.commands import Consent, Suppress
from manta.people.importer import looks_headless, planned
from manta.people.importing import import_people
from manta.people.queries import QUERIES
from manta.schema import AttributeType
from manta.store.importing import (
    checksum_of,
    plan_import,
    read_people,
    rejects_file,
    write_people,
)
from tests.unit.people_shard import START, Shard

NEWS = Consent("email", "news", "subscribed")


class Cluster:
    """Two shards with memories of keys."""

    def __init__(self):
        self.first_buckets = even_ranges(2)
        self.shards = [Shard(1), Shard(2)]
        self.keys = set()
        self.submitted = []

    def submit(self, shard, command):
        self.submitted.append((shard, command))
        future = Future()
        if command.key is not None and command.key in self.keys:
            future.set_result(Repeated(command.key))
        else:
            future.set_result(self.shards[shard].answer(command))
            self.keys.add(command.key)
        return future

    def bring_in(self, path, plan=None, consent=NEWS, batch_rows=3, key="k"):
        plan = plan or plan_import(path, {})
        rejects = []
        summary = import_people(
            read_people(path, plan, batch_rows),
            self.submit,
            self.first_buckets,
            key=key,
            source="import",
            consent=consent,
            reject=rejects.extend,
        )
        return summary, rejects

    def rows(self, sql):
        return sorted(row for shard in self.shards for row in shard.rows(sql))

    def home(self, email):
        return self.shards[shard_of_bucket(bucket_of_identity("email", email), self.first_buckets)]


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(
        "E-Mail,First Name,Age,VIP,Signup\n"
        "ann@Example.com,Ann,31,yes,2026-01-02\n"
        "not an address,Bob,1,no,2026-01-02\n"
        'bob@example.com,"Bob\n'
        "cem@example.com,Cem,,no,2026-01-03\n"
        "dan@example.com,Dan,x,no,2026-01-03\n"
        "eve@example.com,=1+1,40,no,2026-01-03T10:00:00Z\n"
        "ann@example.com,Anna,,,\n"
        "fay@example.com\n",
        "utf-8",
    )
    return path


def test_good_rows_go_in_and_bad_ones_are_told(cluster, people):
    plan = plan_import(people, {"age": AttributeType.NUMBER})
    summary, rejects = cluster.bring_in(people, plan, batch_rows=100)
    assert (summary.created, summary.duplicates, summary.rejected) == (3, 1, 4)
    assert summary.rows == 8
    assert [(r.line, r.reason.split(" ")[0]) for r in rejects] == [
        (3, "E-Mail:"),
        (4, "a"),
        (6, "Age:"),
        (9, "1"),
    ]
    assert cluster.rows(
        "SELECT email, attr_first_name, attr_age, attr_vip, attr_signup FROM profiles"
    ) == [
        ("ann@example.com", "Anna", 31.0, True, datetime(2026, 1, 2)),
        ("cem@example.com", "Cem", None, False, datetime(2026, 1, 3)),
        ("eve@example.com", "=1+1", 40.0, False, datetime(2026, 1, 3, 10)),
    ]
    assert summary.consented == 3


def test_the_same_file_again_changes_nothing(cluster, people):
    plan = plan_import(people, {"age": AttributeType.NUMBER})
    cluster.bring_in(people, plan, key=plan.key(checksum_of(people)))
    before = [shard.rows("SELECT * FROM profiles ORDER BY ALL") for shard in cluster.shards]
    history = sum(len(shard.history) for shard in cluster.shards)
    again, _ = cluster.bring_in(people, plan, key=plan.key(checksum_of(people)))
    assert (again.repeated, again.created, again.updated) == (4, 0, 0)
    other, _ = cluster.bring_in(people, plan, key="another run", batch_rows=100)
    assert (other.unchanged, other.created, other.updated, other.consented) == (3, 0, 0, 0)
    assert before == [shard.rows("SELECT * FROM profiles ORDER BY ALL") for shard in cluster.shards]
    assert history == sum(len(shard.history) for shard in cluster.shards)


def test_never_more_on_the_way_than_the_window(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "PART_ROWS", 5)
    path = tmp_path / "p.csv"
    path.write_text("email\n" + "".join(f"p{n}@example.com\n" for n in range(60)))
    on_the_way = [0]
    most = [0]
    shard = Shard()

    class Slow:
        def __init__(self, command):
            self.command = command
            on_the_way[0] += 1
            most[0] = max(most[0], on_the_way[0])

        def result(self):
            on_the_way[0] -= 1
            return shard.answer(self.command)

    seen = []
    summary = import_people(
        read_people(path, plan_import(path, {}), 5),
        lambda number, command: Slow(command),
        [0],
        key="k",
        source="import",
        window=3,
        progress=lambda rows, size: seen.append((rows, size)),
    )
    assert (summary.created, most[0]) == (60, 3)
    assert [rows for rows, _ in seen] == list(range(5, 61, 5))
    assert seen[-1][1] == path.stat().st_size


def test_external_ids_beside_addresses_are_claimed_once(cluster, tmp_path):
    path = tmp_path / "p.csv"
    rows = [f"p{n}@example.com,c{n}" for n in range(6)]
    path.write_text("email,customer id\n" + "\n".join([*rows, "other@example.com,c1"]) + "\n")
    summary, rejects = cluster.bring_in(path, batch_rows=3)
    assert summary.created == 7
    (reject,) = rejects  # whoever came second
    assert reject.line in (3, 8)
    assert reject.reason.startswith("external_id 'c1' belongs to another person")
    owned = "SELECT DISTINCT value, state FROM identities WHERE kind = 'external_id'"
    assert sorted(set(cluster.rows(owned))) == [(f"c{n}", "confirmed") for n in range(6)]
    cluster.submitted.clear()
    again, _ = cluster.bring_in(path, key="other", batch_rows=3)
    claims = [c for _, c in cluster.submitted if isinstance(c, ClaimIdentities)]
    assert [c.claims["value"].to_pylist() for c in claims] == [["c1"]]
    assert again.unchanged == 7


def test_an_old_claim_in_the_way_is_settled(cluster, tmp_path):
    dead = cluster.shards[0].person("dead@example.com")
    shard = shard_of_bucket(bucket_of_identity("external_id", "c1"), cluster.first_buckets)
    cluster.shards[shard].answer(ClaimIdentities(None, further_identity(dead, "external_id", "c1")))
    cluster.shards[shard].pass_time(minutes=1)
    path = tmp_path / "p.csv"
    path.write_text("email,external_id\na@example.com,c1\n")
    _, rejects = cluster.bring_in(path)
    assert rejects == []
    assert ("c1", "confirmed") in cluster.rows("SELECT value, state FROM identities")


def test_a_person_who_lives_in_another_shard_is_found(cluster, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("email,city\nmoved@example.com,Rom\n")
    here = cluster.home("moved@example.com")
    there = next(shard for shard in cluster.shards if shard is not here)
    email = next(
        f"x{n}@example.com" for n in range(99) if cluster.home(f"x{n}@example.com") is there
    )
    person = there.person(email)
    here.load(
        "identities",
        {
            "kind": "email",
            "value": "moved@example.com",
            "subscriber_id": person,
            "state": "confirmed",
        },
    )
    summary, rejects = cluster.bring_in(path)
    assert (summary.created, summary.updated, rejects) == (0, 1, [])
    assert there.rows("SELECT attr_city FROM profiles") == [("Rom",)]


def test_suppressed_and_unsubscribed_stay_so(cluster, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("email\nbad@example.com\n")
    cluster.home("bad@example.com").answer(
        Suppress(None, "email", "bad@example.com", "complaint", "fbl")
    )
    summary, _ = cluster.bring_in(path)
    assert (summary.created, summary.consented, summary.withheld) == (1, 0, 1)


def test_parts_are_of_one_size_and_bounded_over_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "PART_ROWS", 10)
    monkeypatch.setattr(importing, "GATHERED_ROWS_MAX", 40)
    path = tmp_path / "p.csv"
    path.write_text("email\n" + "".join(f"p{n}@example.com\n" for n in range(300)))
    sizes = []

    class Done:
        def __init__(self, command):
            sizes.append(command.rows.num_rows)

        def result(self):
            return Repeated("k")

    for first_buckets, least, most in (([0, 32768], 10, 25), (even_ranges(64), 1, 10)):
        sizes.clear()
        summary = import_people(
            read_people(path, plan_import(path, {}), 7),
            lambda shard, command: Done(command),
            first_buckets,
            key="k",
            source="import",
        )
        assert sum(sizes) == summary.repeated == 300
        assert min(sizes[:-2]) >= least
        assert max(sizes) <= most


# -- files ---------------------------------------------------------------------------------------

TEXT = 'email;Größe;note\nann@example.com;1,5;x\nb\u00f6b@example.com;2;"a;b"\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_and_compression(tmp_path, encoding, packed):
    path = tmp_path / "people.data"
    content = TEXT.encode(encoding)
    path.write_bytes(gzip.compress(content) if packed else content)
    plan = plan_import(path, {})
    assert [c.target for c in plan.columns] == ["email", "attr_grosse", "attr_note"]
    (batch,) = read_people(path, plan)
    assert batch.rows.to_pylist() == [
        {"email": "ann@example.com", "attr_grosse": "1,5", "attr_note": "x"},
        {"email": "böb@example.com", "attr_grosse": "2", "attr_note": "a;b"},
    ]
    assert batch.rejects == []


def test_a_torn_gzip_gives_what_is_before_the_damage_and_an_error(tmp_path):
    path = tmp_path / "p.csv.gz"
    text = "email,n\n" + "".join(f"p{n}@example.com,{n * 7919 % 10007}\n" for n in range(50_000))
    packed = gzip.compress(text.encode())
    path.write_bytes(packed[: len(packed) // 2])
    rows = 0
    with pytest.raises(InvalidRequest, match="damaged or ends early"):
        for batch in read_people(path, plan_import(path, {})):
            rows += batch.rows.num_rows
            assert batch.rejects == []
    assert 10_000 < rows < 40_000


def test_batches_are_of_one_size_whatever_the_blocks(tmp_path):
    path = tmp_path / "p.csv"
    filler = "x" * 200
    path.write_text("email,t\n" + "".join(f"p{n}@example.com,{filler}\n" for n in range(7_000)))
    sizes = [b.rows.num_rows for b in read_people(path, plan_import(path, {}), 1_000)]
    assert sizes == [1_000] * 7


def test_parquet_with_its_own_types(tmp_path):
    path = tmp_path / "p.parquet"
    table = pa.table(
        {
            "Email": ["a@example.com", "nobody", None],
            "n": [1, 2, 3],
            "code": ["01", "02", "03"],
            "vip": [True, None, False],
            "at": pa.array([START, None, START], pa.timestamp("ns")),
            "tags": [["x"], [], None],
        }
    )
    pq.write_table(table, path)
    plan = plan_import(path, {})
    assert {name: str(kind) for name, kind in plan.attributes.items()} == {
        "n": "number",
        "code": "string",
        "vip": "boolean",
        "at": "date",
        "tags": "list",
    }
    (batch,) = read_people(path, plan)
    assert batch.rows.to_pylist() == [
        {
            "email": "a@example.com",
            "attr_n": 1.0,
            "attr_code": "01",
            "attr_vip": True,
            "attr_at": START,
            "attr_tags": ["x"],
        }
    ]
    assert [(r.line, r.reason.split(" ")[0]) for r in batch.rejects] == [(2, "Email:"), (3, "no")]


def test_a_damaged_parquet_gives_what_is_before_the_damage_and_an_error(tmp_path):
    path = tmp_path / "p.parquet"
    emails = [f"p{n * 7919 % 100_003}@example.com" for n in range(20_000)]
    pq.write_table(pa.table({"email": emails}), path, row_group_size=5_000, compression="zstd")
    content = bytearray(path.read_bytes())
    end = len(content) * 3 // 4
    content[end : end + 9_000] = bytes(9_000)
    path.write_bytes(content)
    rows = 0
    with pytest.raises(InvalidRequest, match="damaged"):
        for batch in read_people(path, plan_import(path, {}), 1_000):
            rows += batch.rows.num_rows
    assert 5_000 <= rows < 20_000


def test_the_rejects_file(tmp_path, people):
    path = tmp_path / "rejects.csv"
    with rejects_file(path) as file:
        for batch in read_people(people, plan_import(people, {})):
            file.write(batch.rejects)
    with path.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows[0] == ["line", "reason", "row"]
    assert [row[0] for row in rows[1:]] == ["3", "4", "9"]  # an age of x makes ages texts
    assert rows[2][2] == 'bob@example.com,"Bob'
    with rejects_file(tmp_path / "none.csv"):
        pass
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"name\nx\n", "no column"),
        (b"PAR1 but not really", "Parquet"),
        (b"\x1f\x8bnot gzip", "damaged"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, content, message):
    path = tmp_path / "p"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        plan_import(path, {})


def test_a_file_without_header(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("Ann,ann@example.com\nBob,bob@example.com\n")
    plan = plan_import(path, {})
    (batch,) = read_people(path, plan)
    assert batch.rows["email"].to_pylist() == ["ann@example.com", "bob@example.com"]
    assert batch.lines == [1, 2]
    assert [c.target for c in plan.columns] == ["attr_column_1", "email"]


def test_duplicate_headers_keep_their_columns(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("email,email,x,x\na@example.com,b@example.com,1,2\n")
    (batch,) = read_people(path, plan_import(path, {}))
    assert batch.rows.to_pylist() == [
        {"email": "a@example.com", "attr_email_2": "b@example.com", "attr_x": 1.0, "attr_x_2": 2.0}
    ]


# -- plans ----------------------------------------------------------------------------------------


def plan(headers: Sequence[str], overrides=None, declared=None, samples=None):
    samples = samples or [[] for _ in headers]
    result = planned(headers, samples, declared or {}, overrides)
    return [(c.target, str(c.type)) for c in result.columns]


def test_plans_are_guessed_and_overridden():
    headers = ["E-mail Address", "Customer ID", "Timezone", "Score", "Secret"]
    assert plan(headers, {"Secret": "skip", "Score": "points:number"}) == [
        ("email", "string"),
        ("external_id", "string"),
        ("time_zone", "string"),
        ("attr_points", "number"),
        ("skip", "string"),
    ]
    assert plan(["who", "x"], samples=[["a@example.com"], ["1"]]) == [
        ("email", "string"),
        ("attr_x", "number"),
    ]
    assert plan(["email", "zip"], samples=[[], ["12345"]], declared={"zip": AttributeType.STRING})[
        1
    ] == ("attr_zip", "string")


@pytest.mark.parametrize(
    ("headers", "overrides", "path"),
    [
        (["email"], {"mail": "email"}, "mapping.mail"),
        (["email", "x"], {"x": "email"}, None),
        (["email", "x", "y"], {"x": "n", "y": "n"}, "mapping.y"),
        (["email", "x"], {"x": "n:shoe"}, "mapping.n"),
        (["email", "x"], {"x": "Bad Name"}, "mapping"),
        (["x"], None, "mapping"),
    ],
)
def test_wrong_plans_name_the_place(headers, overrides, path):
    if path is None:
        assert plan(headers, overrides) == [("attr_email", "string"), ("email", "string")]
        return
    with pytest.raises(InvalidRequest) as caught:
        plan(headers, overrides)
    assert caught.value.path == path


def test_headless():
    assert looks_headless(["Ann", "ann@example.com"])
    assert not looks_headless(["name", "e@mail"])


def test_fixed_columns_are_checked(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "email,tz,locale,n\n"
        "a@example.com,Europe/Berlin,de_AT,n/a\n"
        "b@example.com,Mars/Base,,1\n"
        "c@example.com,,!,1\n"
    )
    (batch,) = read_people(path, plan_import(path, {}))
    assert batch.rows.to_pylist() == [
        {
            "email": "a@example.com",
            "time_zone": "Europe/Berlin",
            "locale": "de-AT",
            "attr_n": None,
        }
    ]
    assert [r.reason for r in batch.rejects] == [
        "tz: not an IANA time zone",
        "locale: not a locale",
    ]


# -- export ----------------------------------------------------------------------------------------

CELL = st.none() | st.text(
    st.sampled_from("=+-@\t'\"a,;\nß "), max_size=5
).map(str.strip).filter(bool)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(cells=st.lists(CELL, min_size=1, max_size=5))
def test_what_is_written_is_read_back_and_holds_no_formula(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("export")
    table = pa.table(
        {
            "email": [f"p{n}@example.com" for n in range(len(cells))],
            "attr_x": pa.array(cells, pa.string()),
        }
    )
    path = folder / "out.csv"
    assert write_people(path, [table]) == len(cells)
    with path.open(newline="", encoding="utf-8") as opened:
        for row in csv.reader(opened):
            assert not row[1].startswith(("=", "+", "-", "@", "\t"))
    plan = plan_import(path, {"attr_x": AttributeType.STRING})
    (batch,) = read_people(path, plan)
    assert batch.rejects == []
    assert batch.rows.column(1).to_pylist() == cells


def test_an_export_can_be_imported_again(tmp_path):
    """Ids and times of its own mean nothing new; attributes come back under their names."""
    table = pa.table(
        {
            "subscriber_id": [1, 2],
            "email": ["a@example.com", "b@example.com"],
            "created_at": pa.array([START, None], pa.timestamp("us")),
            "attr_seen": pa.array([START, None], pa.timestamp("us")),
            "attr_vip": [True, None],
            "attr_n": [-1.5, None],
            "attr_tags": [["x", 'y"'], None],
        }
    )
    path = tmp_path / "out.csv"
    write_people(path, [table, table.slice(0, 0)])
    (batch,) = read_people(path, plan_import(path, {}))
    assert batch.rejects == []
    assert batch.rows.to_pylist() == table.drop_columns(["subscriber_id", "created_at"]).to_pylist()
    write_people(tmp_path / "out.parquet", [table])
    assert pq.read_table(tmp_path / "out.parquet").equals(table)


def test_an_export_that_fails_leaves_nothing(tmp_path):
    def batches():
        yield pa.table({"email": ["a@example.com"]})
        raise RuntimeError("the shard is gone")

    with pytest.raises(RuntimeError):
        write_people(tmp_path / "out.csv", batches())
    assert list(tmp_path.iterdir()) == []


def test_audiences_are_read_in_pages(cluster, tmp_path):
    shard = cluster.shards[0]
    ids = sorted(shard.person(f"p{n}@example.com", attr_n=float(n)) for n in range(5))
    context = Context(START, shard.random, "default", 0)

    def page(**arguments):
        return QUERIES["audience_page"](shard.database, context, {"limit": 2, **arguments})

    seen, after = [], None
    while True:
        rows = page(after=after, columns=["subscriber_id", "email"])
        seen += rows["subscriber_id"].to_pylist()
        if rows.num_rows < 2:
            break
        after = seen[-1]
    assert seen == ids
    rule = {"attribute": {"name": "n", "operator": "at_least", "value": 3}}
    chosen = page(rule=rule, attributes={"n": "number"}, now=START)
    assert sorted(chosen["attr_n"].to_pylist()) == [3.0, 4.0]
    with pytest.raises(InvalidRequest):
        page(columns=["shoe"])
    with pytest.raises(InvalidRequest):
        page(limit=0)


def test_a_file_with_everything_wrong_loses_no_good_row(tmp_path):
    good = [f"p{n}@example.com,Name {n},{n}" for n in range(8)]
    path = tmp_path / "p.csv"
    path.write_bytes(
        b"\xef\xbb\xbfemail,name,n\r\n"
        + good[0].encode() + b"\r\n"
        + b'torn@example.com,"Bob,1\r\n'
        + good[1].encode() + b"\r\n"
        + b"long@example.com," + b"x" * 10_000_000 + b",1\r\n"
        + good[2].encode() + b"\r\n"
        + b"nul@example.com,\0,1\r\n"
        + good[3].encode() + b"\n"
        + b"ragged@example.com,1\n"
        + good[4].encode() + b"\n"
        + b"bytes\xff@example.com,x,1\n"
        + good[5].encode() + b"\n"
        + b'after@example.com,"x"y,1\n'
        + good[6].encode() + b"\n"
        + b"p1@example.com\r\nBcc: q@example.com,x,1\n"
        + good[7].encode()
    )  # fmt: skip
    plan = plan_import(path, {"n": AttributeType.NUMBER})
    batches = list(read_people(path, plan))
    emails = [e for batch in batches for e in batch.rows["email"].to_pylist()]
    assert emails == [f"p{n}@example.com" for n in range(8)]
    rejects = [reject for batch in batches for reject in batch.rejects]
    assert [reject.line for reject in rejects] == [3, 5, 7, 9, 11, 13, 15, 16]
    assert all(reject.reason for reject in rejects)
    assert max(len(reject.raw) for reject in rejects) <= 10_000
