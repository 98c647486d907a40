"""Kevin Hillstrom's e-mail experiment (MineThatData, 2008) as people to import.

32,000 real customers of a retailer: what they bought in the past year, and how they answered a
men's e-mail, a women's e-mail, or none. The data has no names and no addresses; here each row gets
an address made of its number under a domain that RFC 2606 reserves, so that no mail can leave for
a real person. The same row always gets the same address.

    from examples.hillstrom import import_table, write_import_file
    write_import_file(Path("hillstrom_even_rows.csv.gz"), Path("people.csv"))

Then `manta import people.csv`, and segments like "spent more than 500 dollars in the past year and
bought men's goods" find real customers.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

DOMAINS = ("mail.example", "post.example", "example.com", "example.org", "example.net")
# Yes-or-no columns of the file, written 0 and 1 there.
_FLAGS = ("mens", "womens", "newbie")
_OUTCOMES = ("visit", "conversion", "spend")


def raw_rows(path: Path) -> pa.Table:
    """The file as it is (CSV, also under gzip)."""
    return pyarrow.csv.read_csv(path)


def address_of(row: int) -> str:
    """The made-up address of a row of the original file, spread over a few domains."""
    return f"customer{row:05d}@{DOMAINS[row * 7 // 3 % len(DOMAINS)]}"


def import_table(path: Path) -> pa.Table:
    """People as an import takes them: address, customer number, and what was known of them before
    the experiment; its arm and outcomes are in ``outcomes``."""
    rows = raw_rows(path)
    numbers = rows["row"].to_pylist()
    columns = {
        "email": pa.array([address_of(number) for number in numbers]),
        "external_id": pa.array([f"hillstrom-{number}" for number in numbers]),
        "recency": rows["recency"],
        "history_segment": rows["history_segment"],
        "history": rows["history"],
        "zip_code": rows["zip_code"],
        "channel": rows["channel"],
    }
    columns |= {name: pc.cast(rows[name], pa.bool_()) for name in _FLAGS}
    return pa.table(columns)


def outcomes(path: Path) -> pa.Table:
    """For each address: ``segment`` (the arm), ``visit``, ``conversion``, ``spend`` (dollars)."""
    rows = raw_rows(path)
    columns = {"email": pa.array([address_of(number) for number in rows["row"].to_pylist()])}
    columns |= {name: rows[name] for name in ("segment", *_OUTCOMES)}
    return pa.table(columns)


def write_import_file(source: Path, target: Path) -> int:
    """Write the import table as CSV; how many people."""
    table = import_table(source)
    pyarrow.csv.write_csv(table, target)
    return table.num_rows
