"""Erasure from the command line, over the real API in one process."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.test_cli import place, run  # noqa: F401  # fixtures


def test_erased_with_a_receipt_that_can_be_checked(place, run):  # noqa: F811
    Path("p.csv").write_text("email\nann@privacy.example\nbob@privacy.example\n")
    run("import", "p.csv")
    said = run("privacy", "erase", "Ann@privacy.example", "--now", "--receipt", "r.json")
    assert "is erased" in said and "r.json" in said
    assert "signature is right" in run("privacy", "verify", "r.json")
    document = json.loads(Path("r.json").read_text())
    assert "done" in run("privacy", "show", document["receipt"]["request"])
    document["receipt"]["shards"] = 7
    Path("r.json").write_text(json.dumps(document))
    assert "altered" in run("privacy", "verify", "r.json", fails=True)
    assert "1 hashes" in run("privacy", "hashes", "h.json")
    assert "0 people" in run("privacy", "apply-erasures", "h.json")
    assert "nobody" in run("privacy", "erase", "nobody", fails=True)
    assert "no subscriber" in run("privacy", "erase", "ann@privacy.example", fails=True)
