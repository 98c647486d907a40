"""Events from tables and lists to the ingest API, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from manta.client.http import Http, new_key
from manta.clock import as_text

if TYPE_CHECKING:
    import pandas as pd

BATCH_EVENTS = 1_000


def record_events(http: Http, events: pd.DataFrame | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """See ``Client.record_events``. Events without an ``id`` are named by the batch's key, so that
    a retry stores them once."""
    rows = _records(events)
    totals: dict[str, Any] = {"recorded": 0, "repeated": 0, "refused": 0, "errors": []}
    run, number, sent = new_key(), 0, 0
    while batch := list(islice(rows, BATCH_EVENTS)):
        answer = http.post("/events", {"events": batch}, f"{run}-{number}")
        for count in ("recorded", "repeated", "refused"):
            totals[count] += answer[count]
        totals["errors"] += [e | {"index": e["index"] + sent} for e in answer["errors"]]
        number, sent = number + 1, sent + len(batch)
    return totals


def _records(events: Any) -> Iterator[dict[str, Any]]:
    if hasattr(events, "to_dict"):  # a DataFrame
        names = list(events.columns)
        rows = events.itertuples(index=False, name=None)
        events = (dict(zip(names, row, strict=True)) for row in rows)
    for event in events:
        yield {name: _plain(value) for name, value in event.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT, or pandas' NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Any) -> Any:
    """As JSON has it: instants as RFC 3339 text, numpy's numbers as Python's."""
    if isinstance(value, datetime):
        return as_text(value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value)
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        return value.item()
    return value
