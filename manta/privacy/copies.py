"""The copy of everything about one person: how rows become JSON, and the words that go with them
(GDPR art. 15 and 20: in a structured, commonly used and machine-readable format)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import pyarrow as pa

from manta.clock import as_text
from manta.ids import encode_id
from manta.schema import ATTRIBUTE_PREFIX

README = """\
Everything that is stored about one person
==========================================

These files hold all that this system knows about one person. They are JSON, which any programming
language and most spreadsheets can read: a file ending in .json is one list; a file ending in .jsonl
has one record on each line. Times are UTC. What does not apply to the person has no file.

profiles.json             address, language, time zone and everything noted about the person
identities.json           the names by which the person is known: addresses, customer numbers
consents.json             what the person agreed to receive, since when, and the proof of it
suppressions.json         why something is not sent to an address of theirs
memberships.json          the groups that the person is in now (numbers of segments)
predictions.json          what was estimated about the person, by which calculation
attribute_times.json      since when each note about the person is as it is
aliases.json              other records that were found to be the same person
event_months.json,
purchased_items.json,
ledger_days.json          counts of what happened longer ago
traffic_corrections.json  clicks and opens that were later found to be a machine's
outbox.json               what was told about the person to other systems lately
messages.jsonl            every message to the person: when, what became of it, and why
events.jsonl              everything that the person did and every change to their record: visits,
                          purchases, opens, clicks, changes of consent with old and new value and
                          source, groups entered and left; records of type "received" hold what
                          other systems sent, as it came
"""
_IDS = ("subscriber_id", "from_id", "to_id", "message_key", "event_id", "merge_id", "delivery_id")
_TEXTS = ("properties", "proof", "body", "kept")  # JSON themselves


def json_rows(rows: pa.Table) -> Iterator[str]:
    """Each row as a JSON object: without empty columns, ids as they are shown everywhere, notes
    about the person under their own names."""
    for batch in rows.to_batches(max_chunksize=1_000):
        for row in batch.to_pylist():
            shown = {_name(name): _value(name, value) for name, value in row.items()}
            kept = {name: value for name, value in shown.items() if value is not None}
            yield json.dumps(kept, ensure_ascii=False)


def _name(column: str) -> str:
    return column.removeprefix(ATTRIBUTE_PREFIX)


def _value(column: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return as_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if column in _IDS and isinstance(value, int):
        return encode_id(value)
    if column in _TEXTS and isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
