"""``manta shaping`` and what the ledger has on record for it, over a real lake."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import manta.client
from manta.cli import app
from manta.client import Client
from manta.clock import SystemClock
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.shaping.automation import rehearse
from manta.delivery.shaping.recorded import recorded
from manta.delivery.shaping.shaping import builtin
from manta.store import lake
from manta.store.objects import FileObjects
from tests.unit.delivery_shard import plan
from tests.unit.store_shard import flush, recovered, upsert, write

NOW = SystemClock().now().replace(microsecond=0)
SLOW = "421 4.7.28 [192.0.2.9] An unusual rate of unsolicited mail from your IP address"
RULES = """
[provider.mine]
domains = ["mine.example"]
[[provider.mine.rule]]
name = "busy"
pattern = "come back later"
trigger = "3 in 1h"
action = "suspend"
duration = "1h"
"""


def row(number: int, minutes_ago: float, state: str, **columns: Any) -> dict[str, Any]:
    plain = {
        "subscriber_id": number,
        "message_key": number,
        "campaign_id": 1,
        "channel": "email",
        "state": state,
        "domain": "mine.example",
        "source": "s1",
        "changed_at": NOW - timedelta(minutes=minutes_ago),
    }
    return plain | columns


LEDGER = [
    *(row(n, 60 - n, "planned", reply_code=451, reply="come back later") for n in range(3)),
    *(row(10 + n, 50, "accepted", reply_code=250, reply=f"queued as {n}") for n in range(5)),
    row(
        20, 45, "failed", reply_code=550, reply="no such user", bounce_class="hard", provider="mine"
    ),
    row(21, 40, "failed", reply="the template is wrong"),  # never left us
    row(22, 39, "planned"),  # not tried yet
    row(23, 38, "suppressed"),
    row(24, 37, "accepted", source=None),  # of a time before sources were kept
    row(25, 36, "expired", reply_code=450, reply="still full", domain="d.example", provider="mx.d"),
    row(26, 35, "accepted", provider="others", campaign_id=None),
    row(27, 3_000, "failed", reply_code=550, reply="old"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    store = recovered(FileObjects(folder))
    definition = plan(1, sending_domain="shop.example").to_json()
    campaign = {"campaign_id": 1, "state": "running", "definition": definition}
    columns = sorted({name for entry in LEDGER for name in entry})
    whole = [{name: entry.get(name) for name in columns} for entry in LEDGER]
    store.execute([write(upsert("ledger", *whole), upsert("campaigns", campaign))])
    flush(store)
    return folder


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MANTA_API_KEY", raising=False)
    monkeypatch.delenv("MANTA_URL", raising=False)
    Path("manta.toml").write_text(f"root = {json.dumps(str(root))}\n")
    Path("mine.toml").write_text(RULES)

    def invoke(*arguments: str, fails: bool = False) -> str:
        given = ["--settings", "manta.toml", "shaping", *arguments]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == (1 if fails else 0), result.output
        return result.output

    return invoke


def test_what_is_on_record(root: Path) -> None:
    with lake.open(str(root)) as connection:
        found = list(recorded(connection, NOW - timedelta(hours=24), builtin()))
    at = NOW - timedelta(minutes=60)
    assert found[0] == Observed(
        at,
        Seen.DEFERRED,
        "shop.example",
        "s1",
        "mine.example",  # nobody's: the domain is its own provider
        "mine.example",
        1,
        code=451,
        text="come back later",
    )
    assert [(o.seen, o.messages, o.provider, o.site) for o in found[3:]] == [
        (Seen.ACCEPTED, 5, "mine.example", "mine.example"),
        (Seen.FAILED, 1, "mine", "mine"),
        (Seen.FAILED, 1, "mine.example", "mine.example"),
        (Seen.DEFERRED, 1, "mx.d", "mx.d"),
        (Seen.ACCEPTED, 1, "others", "others"),
    ]
    assert (found[4].bounce_class, found[4].text) == (BounceClass.HARD, "no such user")
    assert [o.is_internal for o in found[3:]] == [False, False, True, False, False]
    assert found[-1].campaign_id == 0 and found[-1].sending_domain == ""
    assert [o.occurred_at for o in found] == sorted(o.occurred_at for o in found)


def test_a_day_at_a_known_provider(root: Path) -> None:
    rows = [(NOW, "planned", "s1", "google", "gmail.com", 9, None, None, 421, SLOW, 40)]

    class Rows:
        def execute(self, query: str, parameters: Any = None) -> Any:
            return self

        def fetchall(self) -> list[Any]:
            return []

        def fetchmany(self, most: int) -> list[Any]:
            given, rows[:] = list(rows), []
            return [tuple("" if value is None else value for value in each) for each in given]

    (met,) = rehearse(builtin(), recorded(Rows(), datetime.min, builtin()))
    assert met.trigger.cause == "rule google/unusual-rate"
    assert met.trigger.scope.provider == "google"


def test_replay(run: Callable[..., str]) -> None:
    said = run("replay", "mine.toml")
    assert "mine/busy" in said and "suspend source s1, provider mine" in said
    assert "451 come back later" in said
    assert "1 actions, 6 messages held" in said
    assert "0 actions" in run("replay", "mine.toml", "--since", "30m")
    assert "90m, 24h, 7d" in run("replay", "mine.toml", "--since", "soon", fails=True)


def test_replay_where_nothing_was_ever_stored(run: Callable[..., str], tmp_path: Path) -> None:
    Path("manta.toml").write_text(f"root = {json.dumps(str(tmp_path / 'none'))}\n")
    assert "0 actions" in run("replay", "mine.toml")


def test_show(run: Callable[..., str]) -> None:
    said = run("show")
    assert "google" in said and "as it comes with Manta" in said
    said = run("show", "yahoo")
    assert "aol.com" in said and "yahoo/volume-or-complaints" in said and "2 in 1h" in said
    assert "gmail.com" in run("show", "--domain", "gmail.com")
    assert "not listed" in run("show", "--domain", "bern.example")
    assert "mine/busy" in run("show", "mine", "--file", "mine.toml")
    assert "no provider 'gogle'" in run("show", "gogle", fails=True)


def test_check(run: Callable[..., str]) -> None:
    said = run("check", "mine.toml")
    assert "mine" in said and "new" in said
    Path("bad.toml").write_text(RULES.replace("trigger", "triger"))
    said = run("check", "bad.toml", fails=True)
    assert "line 7: provider.mine.rule[1].triger" in said.replace("\n", "")
    assert "did you mean trigger?" in said.replace("\n", " ")
    Path("bad.toml").write_bytes(b"\xff")
    assert "not UTF-8" in run("check", "bad.toml", fails=True)
    assert "No such file" in run("check", "none.toml", fails=True)


def test_apply(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"text": ""}

    def serve(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/delivery/shaping"
        if request.method == "PUT":
            held.update(json.loads(request.content))
        return httpx.Response(200, json={**held, "version": "00ff"})

    monkeypatch.setattr(
        manta.client, "Client", partial(Client, transport=httpx.MockTransport(serve))
    )
    monkeypatch.setenv("MANTA_URL", "http://manta.example")
    monkeypatch.setenv("MANTA_API_KEY", "manta_key")
    assert "shaping 00ff holds now" in run("apply", "mine.toml")
    assert held["text"] == RULES
    said = run("show", "mine")
    assert "as it holds now" in said and "mine/busy" in said
    Path("bad.toml").write_text("[provider.mine]\nrate = 1")
    assert "provider.mine.rate" in run("apply", "bad.toml", fails=True)
    assert held["text"] == RULES
