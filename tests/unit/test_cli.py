"""The command line over the real API in one process."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import manta.client
from manta.cli import app, head
from manta.cli.common import read_credentials, shown, write_credentials
from manta.client import Client, http
from tests.unit.bridge import URL, Town, town

HTML = '<p>Hi {{ city }}</p><a href="{{ unsubscribe_url }}">Leave</a>'


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as built:
        yield built


@pytest.fixture
def run(place: Town, monkeypatch, tmp_path) -> Any:
    place.bridge.troubles.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(http.time, "sleep", lambda s: None)
    monkeypatch.setattr(manta.client, "Client", partial(Client, transport=place.bridge))
    monkeypatch.setenv("MANTA_URL", URL)
    monkeypatch.setenv("MANTA_API_KEY", place.key())
    monkeypatch.setenv("COLUMNS", "150")

    def invoke(*arguments: str, fails: bool = False) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == (1 if fails else 0), result.output
        assert "Traceback" not in result.output
        return result.output

    return invoke


def answer(document: object) -> httpx.Response:
    return httpx.Response(200, json=document, request=httpx.Request("GET", URL))


def test_people_in_a_segment_and_out(run, tmp_path):
    rows = "".join(f"p{n}@x.example,{'Bern' if n else 'Rome'}\n" for n in range(12))
    Path("people.csv").write_text(f"mail,Town\n{rows}nobody,Bern\n")
    said = run("import", "people.csv", "--map", "Town=city")
    assert "created" in said
    assert "people.csv.rejects.csv" in said
    assert "14,mail" in Path("people.csv.rejects.csv").read_text()
    rule = {"all": [{"attribute": {"name": "city", "operator": "equals", "value": "Rome"}}]}
    Path("rule.json").write_text(json.dumps(rule))
    assert run("segment", "create", "Rome", "rule.json") == "segment 1\n"
    assert run("segment", "count", "1") == run("segment", "count", "rule.json") == "1\n"
    assert "p0@x.example" in run("segment", "sample", "1")
    assert "Rome" in run("segment", "list")
    assert run("segment", "create-list", "Friends") == "segment 2\n"
    added = run("segment", "add", "2", "p0@x.example", "no@x.example")
    assert added == "1 entered, 0 left\nunknown: no@x.example\n"
    assert "p0@x.example" in run("segment", "members", "2")
    assert "1" in run("segment", "growth", "2", "--days", "1")
    assert run("segment", "remove", "2", "p0@x.example").startswith("0 entered, 1 left")
    assert run("segment", "delete", "2") == "segment 2 is deleted\n"
    assert "1 people" in run("export", "rome.csv", "--segment", "1")
    assert "p0@x.example" in Path("rome.csv").read_text()
    assert "12 people" in run("export", "all.parquet")


def test_templates_and_campaigns(run, place, tmp_path):
    folder = Path("mail")
    folder.mkdir()
    (folder / "subject.txt").write_text("Hello {{ nowhere }}\n")
    (folder / "html.html").write_text(HTML)
    assert "nowhere" in run("template", "lint", "mail", "--from", "n@shop.example", fails=True)
    assert "from_email" in run("template", "lint", "mail", fails=True)
    (folder / "subject.txt").write_text("Hello {{ city }}\n")
    run("template", "lint", "mail", "--from", "n@shop.example")
    said = run("template", "create", "Hi", "mail", "--from", "n@shop.example")
    assert said == "template 1\n"
    preview = run("template", "preview", "1", "--email", "p0@x.example", "--html", "out.html")
    assert "Hello Rome" in preview
    assert "Hi Rome" in Path("out.html").read_text()

    counts = {"accepted": 2, "failed": 1, "pending": 0, "planned_total": 3, "adds_up": True}
    failure = {"state": "failed", "reason": "x", "reply_code": 550, "messages": 1}
    report = {
        "accounting": counts,
        "events": {"opened": dict.fromkeys(("unique", "by_people", "unique_all", "total"), 1)},
        "failures": [failure | {"example": "550 \x1b[31mno"}],
    }
    finished = {"id": 1, "name": "News", "state": "finished"}
    place.bridge.troubles[:] = [answer(finished), answer(report)]
    watched = run("campaign", "watch", "1")
    assert "accepted" in watched
    assert "550 �[31mno" in watched
    place.bridge.troubles[:] = [answer(report)]
    assert "adds up" in run("campaign", "report", "1")
    place.bridge.troubles[:] = [answer(finished | {"state": "paused"})]
    assert run("campaign", "pause", "1") == "campaign 1 is paused\n"
    place.bridge.troubles[:] = [answer({"items": [finished], "next": None})]
    assert "News" in run("campaign", "list")
    place.bridge.troubles[:] = [answer(finished)]
    assert run("campaign", "create", "News", "--template", "1", "--segment", "1") == "campaign 1\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("import", "no.csv"), "no file no.csv"),
        (("import", "a.csv", "--map", "x"), "COLUMN=TARGET"),
        (("import", "a.csv", "--consent", "yes"), "channel:topic:status"),
        (("segment", "count", "99"), "no segment 99"),
        (("segment", "count", "no.json"), "no file no.json"),
        (("template", "lint", "nowhere"), "no folder nowhere"),
        (("status", "--ray", "nowhere"), "host:port"),
        (("--settings", "no.toml", "segment", "list"), "no settings file"),
    ],
)
def test_one_clear_line_for_what_is_wrong(run, arguments, said):
    output = run(*arguments, fails=True)
    assert said in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_without_a_key_it_says_where_one_comes_from(run, monkeypatch):
    monkeypatch.delenv("MANTA_API_KEY")
    assert "manta up" in run("segment", "list", fails=True)
    write_credentials(Path(".manta/data"), "default", URL, "manta_default_x_y")
    assert "unknown, revoked" in run("segment", "list", fails=True)


def test_credentials_are_for_the_owner_alone(tmp_path):
    folder = tmp_path / "data"
    path = write_credentials(folder, "default", "http://a", 'k"\\')
    write_credentials(folder, "other", "http://b", "k2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials(folder, "default") == {"url": "http://a", "api_key": 'k"\\'}
    assert read_credentials(folder, "other")["api_key"] == "k2"
    assert read_credentials(folder, "none") == {}


def test_what_is_printed_does_nothing_to_a_terminal():
    assert shown("a\x1b[2Jb\r\nc\x07") == "a�[2Jb� c�"
    assert (shown(None), shown(True), shown(12345), shown(0.5)) == ("–", "yes", "12,345", "0.5")


def test_a_process_that_is_not_ours_is_left_alone(tmp_path):
    assert head.end(tmp_path) is False
    (tmp_path / head.PROCESS).write_text(json.dumps({"pid": 1, "address": "x"}))
    assert head.end(tmp_path) is False
    assert head.split("[::1]:6379") == ("::1", 6379)
    assert head.listens("127.0.0.1:1") is False
