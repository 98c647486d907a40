"""Sources from the command line, over the real API and shards in one process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.unit.bridge import Town, town
from tests.unit.serve_world import House
from tests.unit.test_cli import run  # noqa: F401  # a fixture
from tests.unit.test_ingestion_mapping import ORDERS, RECORD


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town(partial(House)) as built:
        yield built


def test_a_source_from_its_making_to_its_end(run, monkeypatch):  # noqa: F811
    Path("crm.json").write_text(json.dumps(ORDERS))
    said = run("source", "create", "mapping", "CRM", "--mapping", "crm.json")
    assert "webhooks go to http://manta.test/v1/sources/1/webhook" in said
    assert re.search(r"shown this once: whsec_\S{44}$", said.strip())
    assert "rotate 2" in run("source", "create", "stripe", "Pay")
    assert "STRIPE is not set" in run("source", "rotate", "2", "--secret-env", "STRIPE", fails=True)
    monkeypatch.setenv("STRIPE", "whsec_of_stripe")
    assert "whsec" not in run("source", "rotate", "2", "--secret-env", "STRIPE")
    listed = run("source", "list")
    assert "CRM" in listed
    assert "/v1/sources/2/webhook" in listed
    assert "whsec" not in run("source", "show", "2")
    ORDERS["items"] = "$.rows[*]"
    Path("crm.json").write_text(json.dumps(ORDERS))
    ORDERS["items"] = "$.records[*]"
    assert "version 2" in run("source", "change", "1", "--mapping", "crm.json")
    run("source", "delete", "2")
    assert "no source 2" in run("source", "show", "2", fails=True)


def test_a_mapping_is_tried_where_it_lies(run):  # noqa: F811
    Path("crm.json").write_text(json.dumps(ORDERS))
    Path("good.json").write_text(json.dumps({"records": [RECORD, {"kind": "other"}]}))
    said = run("source", "try", "crm.json", "good.json")
    assert '"amount": 1234.5' in said
    assert "record 2: means nothing" in said
    Path("bad.json").write_text(json.dumps({"records": [RECORD | {"vip": "\x1b[31m"}]}))
    said = run("source", "try", "crm.json", "good.json", "bad.json", fails=True)
    assert "bad.json: unfit at $.vip" in said
    Path("crm.json").write_text(json.dumps(ORDERS | {"events": [{"type": "x", "item": "sku"}]}))
    wrong = run("source", "try", "crm.json", "good.json", fails=True)
    assert "mapping.events[0].item" in wrong
    Path("crm.json").write_text("{")
    assert "not JSON" in run("source", "try", "crm.json", "good.json", fails=True)
    assert "No such file" in run("source", "try", "gone.json", "good.json", fails=True)
