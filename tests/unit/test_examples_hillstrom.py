"""Hillstrom's customers become people whom no mail can reach, and import without a reject."""

from pathlib import Path

import pytest

from examples.hillstrom import address_of, import_table, outcomes, write_import_file
from manta.store.importing import plan_import, read_people

SOURCE = Path(__file__).parents[3] / "shared/data/hillstrom/hillstrom_even_rows.csv.gz"
RESERVED = (".example", "@example.com", "@example.org", "@example.net")


def test_addresses_are_reserved_and_always_the_same():
    addresses = [address_of(row) for row in range(64_000)]
    assert len(set(addresses)) == 64_000
    assert all(address.endswith(RESERVED) for address in addresses)
    assert address_of(10) == "customer00010@example.org"


@pytest.mark.skipif(not SOURCE.exists(), reason="Hillstrom's data is not here")
def test_all_customers_can_be_imported(tmp_path):
    path = tmp_path / "people.csv"
    assert write_import_file(SOURCE, path) == 32_000
    plan = plan_import(path, {})
    assert {name: str(kind) for name, kind in plan.attributes.items()} == {
        "recency": "number",
        "history_segment": "string",
        "history": "number",
        "zip_code": "string",
        "channel": "string",
        "mens": "boolean",
        "womens": "boolean",
        "newbie": "boolean",
    }
    batches = list(read_people(path, plan))
    assert sum(batch.rows.num_rows for batch in batches) == 32_000
    assert not any(batch.rejects for batch in batches)
    assert import_table(SOURCE).num_rows == outcomes(SOURCE).num_rows == 32_000
