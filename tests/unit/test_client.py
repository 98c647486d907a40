"""The client against the real API over real actors in one process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manta.client import Client, http
from manta.errors import Conflict, Forbidden, InvalidRequest, NotFound, NotReady, Overloaded
from tests.unit.bridge import URL, Town, town

HTML = '<p>Hi</p><a href="{{ unsubscribe_url }}">Leave</a>'
PEOPLE = "E-Mail,First Name,City,Orders,Born,VIP\n" + "\n".join(
    [
        "ann@x.example,Ann,Bern,3,1990-02-03,yes",
        "Bob@X.Example,Bob,,0,,no",
        "not an address,Eve,Rome,1,,no",
        'cem@x.example,"Cem\nJr.",Basel,2,1970-01-01,yes',
    ]
)


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as built:
        yield built


@pytest.fixture
def manta(place: Town, monkeypatch) -> Iterator[Client]:
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    monkeypatch.setattr(http, "RETRY_S", 5.0)
    place.bridge.troubles.clear()
    place.bridge.requests.clear()
    with Client(URL, place.key(), transport=place.bridge) as opened:
        opened.pauses = pauses  # type: ignore[attr-defined]
        yield opened


def test_a_file_in_and_its_people_out(manta, tmp_path):
    file, rejects = tmp_path / "people.csv", tmp_path / "rejects.csv"
    file.write_text(PEOPLE)
    seen = []
    summary = manta.import_people(file, rejects=rejects, progress=lambda *at: seen.append(at))
    assert (summary.rows, summary.created, summary.rejected, summary.consented) == (4, 3, 1, 3)
    assert seen[-1] == (4, 1.0)
    assert "4,E-Mail" in rejects.read_text()
    again = manta.import_people(file)
    assert (again.created, again.updated, again.unchanged) == (0, 0, 3)

    frame = manta.export()
    assert set(frame["email"]) >= {"ann@x.example", "Bob@x.example", "cem@x.example"}
    ann = frame[frame["email"] == "ann@x.example"].iloc[0]
    assert (ann["first_name"], ann["orders"], ann["vip"]) == ("Ann", 3.0, True)
    assert ann["born"] == pd.Timestamp("1990-02-03")
    assert list(frame["subscriber_id"]) == sorted(frame["subscriber_id"])
    assert manta.subscriber(email="ANN@x.example")["id"] == ann["subscriber_id"]


def test_a_table_in_and_out_again_is_the_same(manta, tmp_path):
    frame = pd.DataFrame(
        {
            "email": ["t1@table.example", "t2@table.example", "t3@table.example"],
            "customer_id": [7, None, 9],
            "note": ["=cmd|' /C calc'!A0", "two\nlines", None],
            "spent": [1.5, None, -2.0],
            "seen": pd.to_datetime(["2026-01-02T03:04:05Z", None, "2026-01-03T00:00:00Z"]),
            "tags": [["a", "b"], None, []],
            "keen": [True, None, False],
            "tier": pd.Categorical(["gold", "iron", "gold"]),
        }
    )
    summary = manta.import_people(frame, consent=None)
    assert (summary.created, summary.rejected, summary.consented) == (3, 0, 0)
    assert manta.subscriber(external_id="7")["email"] == "t1@table.example"

    ours = {"name": "email", "operator": "ends_with", "value": "@table.example"}
    rule = {"all": [{"attribute": ours}]}
    out = manta.export(rule).set_index("email")
    first, third = out.loc["t1@table.example"], out.loc["t3@table.example"]
    assert first["note"] == "=cmd|' /C calc'!A0"
    assert first["seen"] == pd.Timestamp("2026-01-02T03:04:05")
    assert (list(first["tags"]), first["keen"], third["keen"]) == (["a", "b"], True, False)
    assert (first["tier"], third["spent"]) == ("gold", -2.0)

    for name in ("out.csv", "out.parquet"):
        path = manta.export(rule, tmp_path / name)
        again = manta.import_people(path, consent=None)
        assert (again.rows, again.unchanged, again.rejected) == (3, 3, 0), name
    assert "'=cmd|" in (tmp_path / "out.csv").read_text()
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 3
    empty = manta.export({"all": [rule, {"not": rule}]})
    assert len(empty) == 0
    assert "note" in empty.columns


def test_a_batch_whose_answer_was_lost_is_stored_once(manta, place):
    table = pa.table(
        {"email": [f"lost{n}@y.example" for n in range(5)], "external_id": list("abcde")}
    )
    manta.attributes()
    place.bridge.troubles[:] = ["", "lost"]  # the attributes, then the first batch
    summary = manta.import_people(table)
    sent = [r for r in place.bridge.requests if r.url.path.endswith("/import")]
    assert len(sent) == 2
    assert len({r.headers["idempotency-key"] for r in sent}) == 1
    assert summary.rows == 5
    assert summary.repeated + summary.created + summary.unchanged == 5
    found = place.rows("SELECT email FROM profiles WHERE email LIKE 'lost%'")
    assert len(found) == 5


def test_rows_of_one_name_stay_in_order(manta, monkeypatch):
    from manta.client import people

    monkeypatch.setattr(people, "BATCH_ROWS", 2)
    table = pa.table(
        {
            "email": ["o1@y.example", "o2@y.example", "O1@y.example", "o3@y.example"],
            "city": ["first", "x", "last", "y"],
        }
    )
    manta.import_people(table)
    assert manta.subscriber(email="o1@y.example")["attributes"]["city"] == "last"


def test_large_batches_go_in_parts(manta, place, monkeypatch):
    from manta.client import people

    monkeypatch.setattr(people, "BATCH_BYTES", 200)
    table = pa.table({"email": [f"part{n}@y.example" for n in range(40)]})
    assert manta.import_people(table).created == 40
    sent = [r for r in place.bridge.requests if r.url.path.endswith("/import")]
    assert len(sent) > 4


def test_refusals_are_the_domains_errors(manta, place):
    with pytest.raises(NotFound, match="no subscriber"):
        manta.subscriber(email="nobody@y.example")
    with pytest.raises(InvalidRequest) as invalid:
        manta.create_segment("x", {"all": [{"attribute": {"name": "nope", "operator": "is_set"}}]})
    assert invalid.value.path
    assert invalid.value.expected
    manta.declare_attributes({"size": "number"})
    with pytest.raises(Conflict):
        manta.declare_attributes({"size": "string"})
    with pytest.raises(InvalidRequest, match="no column"):
        manta.import_people(pa.table({"email": ["a@y.example"]}), {"nope": "skip"})
    with Client(URL, place.key("segments:read"), transport=place.bridge) as poor:
        with pytest.raises(Forbidden) as forbidden:
            poor.upsert(email="a@y.example")
        assert forbidden.value.details["scope"] == "subscribers:write"
    with (
        Client(URL, "manta_default_x_y", transport=place.bridge) as stranger,
        pytest.raises(Forbidden, match="unknown, revoked or expired"),
    ):
        stranger.segments()
    with pytest.raises(InvalidRequest, match="not the URL"):
        Client("manta.test", "k")
    with pytest.raises(InvalidRequest, match="not an API key"):
        Client(URL, "manta_\n")


def test_what_may_pass_is_tried_again_under_one_key(manta, place, monkeypatch):
    monkeypatch.setattr(http, "RETRY_S", 60.0)
    busy = httpx.Response(503, headers={"Retry-After": "7"}, request=httpx.Request("GET", URL))
    broken = httpx.ConnectError("refused")
    place.bridge.troubles[:] = [broken, busy, httpx.ReadError("reset")]
    assert manta.create_segment("again", {"all": []})["version"] == 1
    keys = {r.headers["idempotency-key"] for r in place.bridge.requests}
    assert len(place.bridge.requests) == 4
    assert len(keys) == 1
    assert manta.pauses[0] < 1 < 7 <= manta.pauses[1] <= 7 * 1.5
    assert len([s for s in manta.segments() if s["name"] == "again"]) == 1


def test_nobody_there_is_said_soon(manta, place):
    place.bridge.troubles[:] = [httpx.ConnectError("refused")] * 10
    with pytest.raises(NotReady, match="nobody answers") as error:
        manta.segments()
    assert "manta up" in error.value.details["expected"]
    assert len(place.bridge.requests) == http.CONNECTS_MAX


def test_bare_refusals_of_proxies(manta, place, monkeypatch):
    monkeypatch.setattr(http, "RETRY_S", 0.0)
    page = httpx.Response(504, html="<h1>504</h1>", request=httpx.Request("GET", f"{URL}/v1/x"))
    place.bridge.troubles[:] = [page]
    with pytest.raises(Overloaded, match="504"):
        manta.segments()
    odd = httpx.Response(418, text="teapot", request=httpx.Request("GET", f"{URL}/v1/x"))
    place.bridge.troubles[:] = [odd]
    with pytest.raises(Exception, match="418: teapot"):
        manta.segments()


def test_events_from_a_table(manta, place):
    frame = pd.DataFrame(
        {
            "type": ["purchase", "purchase", "opened"],
            "email": ["e1@y.example", "e2@y.example", "e3@y.example"],
            "occurred_at": [pd.Timestamp("2026-01-05", tz="Europe/Zurich"), pd.NaT, pd.NaT],
            "amount": [12.5, None, None],
            "item": ["sku-7", None, None],
        }
    )
    place.bridge.troubles[:] = ["lost"]
    done = manta.record_events(frame)
    assert (done["recorded"] + done["repeated"], done["refused"]) == (2, 1)
    assert done["errors"][0]["index"] == 2
    rows = place.rows("SELECT * FROM events WHERE type = 'purchase' ORDER BY item")
    assert [(r["amount"], r["item"]) for r in rows] == [(12.5, "sku-7"), (None, None)]
    assert rows[0]["occurred_at"] == datetime(2026, 1, 4, 23)
    many = [{"type": "seen", "email": "e1@y.example"} for _ in range(2_001)]
    assert manta.record_events(many)["recorded"] == 2_001


def test_segments_and_templates(manta):
    addresses = [f"s{n}@z.example" for n in range(1, 13)]
    manta.import_people(pa.table({"email": addresses, "town": ["A"] + ["B"] * 11}))
    rule = {"all": [{"attribute": {"name": "town", "operator": "equals", "value": "A"}}]}
    segment = manta.create_segment("A", rule)
    assert manta.segment_count(segment["id"]) == manta.segment_count(rule) == 1
    (sample,) = manta.segment_sample(segment["id"])
    assert sample["email"] == manta.segment_sample(rule)[0]["email"] == "s1@z.example"
    assert manta.segment(segment["id"])["rule"] == rule
    assert list(manta.export(segment["id"])["email"]) == ["s1@z.example"]
    assert manta.segment_explain(segment["id"]) == manta.segment_explain(rule)
    assert "town" in manta.segment_explain(rule)

    content = {"subject": "Hello {{ town }}", "html": HTML, "from_email": "n@shop.example"}
    findings = manta.lint(**content, text="{{ nope }}")
    assert any(finding["level"] == "error" for finding in findings)
    template = manta.create_template("Hi", **content)
    mail = manta.preview(template["template_id"], email="s1@z.example")
    assert mail["subject"] == "Hello A"
    assert [t["id"] for t in manta.templates()] == [template["template_id"]]
    assert manta.template(template["template_id"], 1)["subject"] == content["subject"]


def answer(document: object) -> httpx.Response:
    return httpx.Response(200, json=document, request=httpx.Request("GET", URL))


def test_a_campaign_is_watched_to_its_end(manta, place):
    counts = {"accepted": 2, "failed": 1, "pending": 0, "planned_total": 3, "adds_up": True}
    report = {"accounting": counts, "events": {}, "failures": []}
    states = ["running", "finished"]
    place.bridge.troubles[:] = [
        answer(document) for state in states for document in ({"id": 1, "state": state}, report)
    ]
    assert [now["state"] for now in manta.watch(1)] == states
    place.bridge.troubles[:] = [answer(report)]
    frame = manta.report_frame(1)
    assert frame.to_dict("list") == {
        "state": ["accepted", "failed"],
        "messages": [2, 1],
        "share": [2 / 3, 1 / 3],
    }
    pages = [
        {"items": [{"email": "a@x"}], "next": "c"},
        {"items": [{"email": "b@x"}], "next": None},
    ]
    place.bridge.troubles[:] = [answer(page) for page in pages]
    assert list(manta.recipients(1, "failed")["email"]) == ["a@x", "b@x"]
    assert place.bridge.requests[-1].url.params["cursor"] == "c"
    place.bridge.troubles[:] = [answer({"id": 1, "state": "scheduled"})] * 2
    manta.launch(1, datetime(2027, 1, 31, 9, tzinfo=UTC))
    assert b"2027-01-31T09:00:00.000000Z" in place.bridge.requests[-1].content
    manta.pause(1)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, 0.999])
def test_an_export_that_breaks_off_goes_on_after_the_last_row(manta, place, monkeypatch, cut):
    from serve_apps.api import exports

    manta.import_people(pa.table({"email": [f"cut{n}@y.example" for n in range(60)]}))
    monkeypatch.setattr(exports, "PAGE_ROWS", 7)
    whole = list(manta.export()["subscriber_id"])
    assert whole == sorted(set(whole))
    passing, handled = place.bridge.handle_request, 0

    def breaking(request: httpx.Request) -> httpx.Response:
        nonlocal handled
        response = passing(request)
        handled += 1
        if handled > 2:
            return response
        body = response.read()
        return httpx.Response(200, content=body[: int(len(body) * cut)], request=request)

    monkeypatch.setattr(place.bridge, "handle_request", breaking)
    assert list(manta.export()["subscriber_id"]) == whole
    monkeypatch.undo()
    monkeypatch.setattr(exports, "PAGE_ROWS", 7)
    monkeypatch.setattr(exports, "STREAM_S", 0.0)
    assert list(manta.export()["subscriber_id"]) == whole
