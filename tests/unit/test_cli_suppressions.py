"""Suppressions from the command line, over the real API in one process."""

from __future__ import annotations

import csv
from pathlib import Path

import httpx
import pytest

from manta.client import Client
from manta.client import suppressions as lists
from manta.errors import InvalidRequest, NotFound
from tests.unit.test_cli import place, run  # noqa: F401  # fixtures


@pytest.fixture
def client(place):  # noqa: F811
    place.bridge.troubles.clear()
    with Client("http://manta.test", place.key(), transport=place.bridge) as client:
        yield client


def test_one_address(run):  # noqa: F811
    assert "one@x.example is suppressed" in run("suppression", "add", "one@x.example")
    assert "before" in run("suppression", "add", "one@x.example")
    assert "manual" in run("suppression", "show", "One@x.example")
    assert "one@x.example" in run("suppression", "list", "--contains", "one@")
    assert "again" in run("suppression", "lift", "one@x.example", "the person called")
    assert "was not suppressed" in run("suppression", "lift", "one@x.example", "twice")
    assert "not suppressed" in run("suppression", "show", "one@x.example", fails=True)


def test_a_list_in_and_out(run):  # noqa: F811
    Path("list.csv").write_text(
        "email,reason,note\n"
        "in1@x.example,complaint,a\n"
        'in2@x.example,,"over\ntwo lines"\n'
        "wrong,,\n"
        "in3@x.example,,x\n"
    )
    said = run("suppression", "import", "list.csv", "--source", "old system")
    assert "line 5: not an e-mail address" in said
    said = run("suppression", "export", "out.csv")
    rows = {row["address"]: row for row in csv.DictReader(Path("out.csv").read_text().splitlines())}
    assert rows["in1@x.example"]["reason"] == "complaint"
    assert rows["in3@x.example"]["source"] == "old system"
    assert f"{len(rows)} suppressions in out.csv" in said
    assert not Path("out.csv.part").exists()
    assert "no file" in run("suppression", "import", "nowhere.csv", fails=True)


def test_a_long_list_in_parts_whose_answers_are_lost(client, place, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lists, "PART_ROWS", 10)
    monkeypatch.setattr("manta.client.http.time.sleep", lambda s: None)
    path = tmp_path / "long.csv"
    rows = [f"long{n}@x.example" if n % 7 else f"wrong {n}" for n in range(1, 36)]
    path.write_text("address\n" + "\n".join(rows) + "\n")
    place.bridge.troubles += ["lost", httpx.ConnectError("no"), "lost"]
    summary = client.import_suppressions(path)
    assert (summary.rows, summary.rejected) == (35, 5)
    assert [line for line, _ in summary.rejects] == [8, 15, 22, 29, 36]
    assert len(list(client.suppressions(contains="long"))) == 30
    with pytest.raises(NotFound):
        client.suppression("wrong@x.example")


def test_an_export_that_breaks_off_leaves_no_file(client, place, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("manta.client.http.time.sleep", lambda s: None)
    client.suppress("kept@x.example", reason="complaint", evidence="he said so")
    place.bridge.troubles += ["lost"]
    path = tmp_path / "out.csv"
    assert client.export_suppressions(path, reason="complaint") >= 1
    assert "kept@x.example" in path.read_text()
    place.bridge.troubles += [httpx.Response(403, request=httpx.Request("GET", "http://x"))]
    with pytest.raises(Exception, match="403"):
        client.export_suppressions(tmp_path / "none.csv")
    assert list(tmp_path.iterdir()) == [path]


def test_a_channel_that_is_none(client):
    with pytest.raises(InvalidRequest):
        client.suppression("a@x.example", channel="../keys")
