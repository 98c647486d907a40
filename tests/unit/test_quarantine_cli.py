"""Quarantine from the command line, over the real API and shards in one process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from manta.ingestion.quarantine import Quarantine, Waif
from tests.unit.bridge import Town, town
from tests.unit.test_cli import run  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as built:
        yield built


def waif(n: int) -> Waif:
    body = {"type": "track", "event": f"e{n}", "messageId": str(n)}
    return Waif("segment", "is missing", "userId", json.dumps(body))


def test_looked_at_mended_replayed_and_discarded(run, place, tmp_path: Path):  # noqa: F811
    shards = place.house.handles.shards
    for n in range(3):
        command = Quarantine(None, (waif(n),))
        place.run(shards.execute(shards.of_subscriber(waif(n).id), command))
    assert run("quarantine", "list").count("is missing") == 3
    id = str(waif(0).id)
    assert '"event": "e0"' in run("quarantine", "show", id)
    assert "userId is missing" in run("quarantine", "replay", id, fails=True)
    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps({**json.loads(waif(0).body), "userId": "u"}))
    assert "is stored" in run("quarantine", "replay", id, "--body", str(mended))
    assert re.search(r"unfit +2", run("quarantine", "replay"))
    assert "is discarded" in run("quarantine", "discard", str(waif(1).id))
    assert run("quarantine", "list").count("is missing") == 1
    assert "is missing" in run("quarantine", "list", "--state", "discarded")
    assert "an id" in run("quarantine", "replay", "--body", str(mended), fails=True)
