"""Lists of suppressions as CSV (``manta.people.delimited``), as other systems export them. Pure.

The first row names the columns: ``address`` (or ``email``), and if wanted ``reason``, ``source``,
``evidence``, ``expires_at`` (RFC 3339); other columns are passed over. A row that does not fit is
refused alone, with its line and the reason. An address may be any that somebody has written: what
is not quite an address gets no mail anyway. What is written of an address twice is added up.
"""

from __future__ import annotations

import re
from datetime import datetime

from manta.clock import parse_instant
from manta.errors import InvalidRequest
from manta.people.consents import TEXT_LENGTH_MAX
from manta.people.delimited import (
    SAMPLE_BYTES,
    Dialect,
    Reject,
    Rows,
    Splitter,
    sniffed_dialect,
)
from manta.people.identities import EMAIL, VALUE_LENGTH_MAX, compared
from manta.people.suppressions import MANUAL, Row, Stop, combined

ROWS_MAX = 10_000  # of one text
COLUMNS = ("address", "reason", "source", "evidence", "expires_at")
_NAMES = {
    "address": ("address", "email", "email address", "recipient"),
    "reason": ("reason", "cause"),
}
_ADDRESS = re.compile(r"[^\s@]+@[^\s@]+")
_RAW_MAX = 1_000


def parse(
    text: str, now: datetime, reason: str = MANUAL, source: str = "import"
) -> tuple[list[Row], list[Reject]]:
    """The suppressions of a text and the rows that were refused. ``reason`` and ``source`` stand
    where a row has none. Raises ``InvalidRequest`` where the text is no list at all."""
    text = text.removeprefix("\ufeff")
    dialect = sniffed_dialect(text[:SAMPLE_BYTES])
    header = _all(text[:SAMPLE_BYTES], dialect, None).rows[:1]
    if not header:
        raise InvalidRequest("the list is empty", path="body", expected="a first row with names")
    found = _all(text, dialect, len(header[0]))
    if len(found.rows) > ROWS_MAX + 1:
        raise InvalidRequest(
            "the list is too long", path="body", expected=f"at most {ROWS_MAX:,} rows"
        )
    places = _places(header[0])
    rows: dict[str, Row] = {}
    rejects = list(found.rejects)
    for line, cells in zip(found.lines[1:], found.rows[1:], strict=True):
        row = _row(cells, places, now, reason, source)
        if isinstance(row, str):
            rejects.append(Reject(line, row, ",".join(cells)[:_RAW_MAX]))
        else:
            rows[row.address] = _joined(rows.get(row.address), row)
    return list(rows.values()), sorted(rejects, key=lambda reject: reject.line)


def _all(text: str, dialect: Dialect, fields: int | None) -> Rows:
    splitter = Splitter(dialect, fields)
    found, end = splitter.feed(text), splitter.finish()
    return Rows(found.rows + end.rows, found.lines + end.lines, found.rejects + end.rejects)


def _places(header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    places: dict[str, int] = {}
    for column in COLUMNS:
        for name in _NAMES.get(column, (column,)):
            if name in names:
                places.setdefault(column, names.index(name))
    if "address" not in places:
        raise InvalidRequest(
            "the first row names no column with addresses",
            path="body:1",
            expected=f"address, and if wanted {', '.join(COLUMNS[1:])}",
        )
    return places


def _row(
    cells: list[str], places: dict[str, int], now: datetime, reason: str, source: str
) -> Row | str:
    """The suppression of a row, or why it is none."""
    given = {name: cells[place].strip() for name, place in places.items() if place < len(cells)}
    address = given.get("address", "")
    if not _ADDRESS.fullmatch(address) or len(address) > VALUE_LENGTH_MAX:
        return "not an e-mail address" if address else "no address"
    for name, value in given.items():
        if not value.isprintable() or len(value) > TEXT_LENGTH_MAX:
            return f"{name} is too long or holds control characters"
    expires_at = None
    if given.get("expires_at"):
        try:
            expires_at = parse_instant(given["expires_at"])
        except (ValueError, OverflowError):
            return "expires_at is not an instant of RFC 3339"
        if expires_at <= now:
            return "it has expired"
    return Row(
        compared(EMAIL, address),
        given.get("reason") or reason,
        given.get("source") or source,
        given.get("evidence", ""),
        expires_at,
    )


def _joined(before: Row | None, row: Row) -> Row:
    if before is None:
        return row
    whole = combined(Stop(before.reason, before.expires_at), Stop(row.reason, row.expires_at))
    kept = row if whole.reason == row.reason else before
    return kept._replace(reason=whole.reason, expires_at=whole.expires_at)
