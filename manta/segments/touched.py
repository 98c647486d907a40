"""From the changes of committed groups to people, and which segments each is to be asked about.

Set-wise: a change of fifty thousand rows costs a few Arrow calls. Who is touched without need costs
an evaluation; who is missed is a mistake, so where a change says little (an alias) it touches every
segment. People are new when their row brings ``created_at``: everything is asked about them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Database, Op
from manta.people.definitions import SEGMENT
from manta.rules.kept import PURCHASED
from manta.segments.flips import Ids
from manta.segments.index import NONE, Index, Segments

_MOVED = "membership_changed"
_JUDGED = ("clicked", "opened")  # events whose worth a traffic correction changes


class Piece(NamedTuple):
    """People (each may stand there several times) who are to be asked about these segments."""

    people: Ids
    segments: Segments


@dataclass
class Touched:
    pieces: list[Piece] = field(default_factory=list)
    gone: list[Ids] = field(default_factory=list)
    addresses: list[pa.Array] = field(default_factory=list)  # whose suppression changed
    segments_defined: bool = False

    def put(self, people: Any, segments: Segments) -> None:
        ids = _ids(people)
        if len(ids) and segments:
            self.pieces.append(Piece(ids, segments))


def touched(changes: Iterable[Change], index: Index) -> Touched:
    found = Touched()
    for change in changes:
        reader = _READERS.get(change.table)
        if reader is not None:
            reader(change, index, found)
    return found


def with_addresses(found: Touched, index: Index, database: Database) -> None:
    """Puts the people of the addresses to the others."""
    if not found.addresses or not index.suppressed:
        return
    addresses = pa.concat_arrays(found.addresses).unique().to_pylist()
    rows = database.table(
        "SELECT subscriber_id FROM profiles WHERE lower(email) IN (SELECT unnest(?::VARCHAR[]))",
        [addresses],
    )
    found.put(rows["subscriber_id"], index.suppressed)


def by_person(pieces: Sequence[Piece], most: int) -> tuple[dict[int, Segments], Segments]:
    """Each person with their segments; and the segments to be evaluated whole, where their people
    would be more than ``most``: those of the largest pieces."""
    alike: dict[Segments, list[Ids]] = {}
    for ids, segments in pieces:
        alike.setdefault(segments, []).append(ids)
    joint = [Piece(np.unique(np.concatenate(ids)), segments) for segments, ids in alike.items()]
    joint.sort(key=lambda piece: len(piece.people))
    total = sum(len(piece.people) for piece in joint)
    whole: Segments = NONE
    while joint and total > most:
        piece = joint.pop()
        total -= len(piece.people)
        whole |= piece.segments
    people: dict[int, Segments] = {}
    joined: dict[tuple[Segments, Segments], Segments] = {}
    for ids, segments in joint:
        rest = segments - whole
        if not rest:
            continue
        for id in ids.tolist():
            known = people.get(id)
            if known is None:
                people[id] = rest
            elif known is not rest:
                pair = (known, rest)
                if pair not in joined:
                    joined[pair] = known | rest
                people[id] = joined[pair]
    return people, whole


def _ids(people: Any) -> Ids:
    if isinstance(people, pa.Array | pa.ChunkedArray):
        people = people.drop_null().to_numpy()
    return np.asarray(people, np.int64)


def _profiles(change: Change, index: Index, found: Touched) -> None:
    people = change.rows["subscriber_id"]
    if change.op is Op.DELETE:
        found.gone.append(_ids(people))
        return
    new = None
    if "created_at" in change.rows.column_names:
        new = change.rows["created_at"].is_valid()
        found.put(people.filter(new), index.all)
    segments = _any(index.columns, change.rows.column_names)
    if segments:
        found.put(people if new is None else people.filter(pc.invert(new)), segments)


def _events(change: Change, index: Index, found: Touched) -> None:
    rows = change.rows
    types = rows["type"]
    for type_ in types.unique().to_pylist():
        segments = index.events.get(type_, NONE)
        if segments:
            found.put(rows["subscriber_id"].filter(pc.equal(types, type_)), segments)
        elif type_ == _MOVED and index.lists:
            _moved(rows.filter(pc.equal(types, type_)), index, found)


def _moved(rows: pa.Table, index: Index, found: Touched) -> None:
    """Who came to a list or left it, where rules ask for its members."""
    said = rows["properties"].combine_chunks().dictionary_encode()
    for place, text in enumerate(said.dictionary.to_pylist()):
        segments = index.lists.get(json.loads(text)["segment"], NONE)
        if segments:
            found.put(rows["subscriber_id"].filter(pc.equal(said.indices, place)), segments)


def _consents(change: Change, index: Index, found: Touched) -> None:
    if not index.consents:
        return
    rows = change.rows
    for pair in rows.group_by(["channel", "topic"]).aggregate([]).to_pylist():
        segments = index.consents.get((pair["channel"], pair["topic"]), NONE)
        if segments:
            here = pc.and_(
                pc.equal(rows["channel"], pair["channel"]), pc.equal(rows["topic"], pair["topic"])
            )
            found.put(rows["subscriber_id"].filter(here), segments)


def _suppressions(change: Change, index: Index, found: Touched) -> None:
    if index.suppressed:
        found.addresses.append(change.rows["address"].combine_chunks())


def _corrections(change: Change, index: Index, found: Touched) -> None:
    found.put(change.rows["subscriber_id"], _any(index.events, _JUDGED))


def _named(by_name: Callable[[Index], Mapping[str, Segments]]) -> Callable[..., None]:
    """Rows of (person, name), where the name says which segments."""

    def read(change: Change, index: Index, found: Touched) -> None:
        names = change.rows["name"]
        for name in names.unique().to_pylist() if by_name(index) else ():
            people = change.rows["subscriber_id"].filter(pc.equal(names, name))
            found.put(people, by_name(index).get(name, NONE))

    return read


def _months(change: Change, index: Index, found: Touched) -> None:
    """Sums of old events that expire for good. Those that are written say no news: their events
    were in memory, or come in the same group."""
    if change.op is Op.DELETE:
        _events(change, index, found)


def _items(change: Change, index: Index, found: Touched) -> None:
    if change.op is Op.DELETE:
        found.put(change.rows["subscriber_id"], index.events.get(PURCHASED, NONE))


def _aliases(change: Change, index: Index, found: Touched) -> None:
    for column in ("from_id", "to_id"):
        if column in change.rows.column_names:
            found.put(change.rows[column], index.all)


def _erasures(change: Change, index: Index, found: Touched) -> None:
    found.gone.append(_ids(change.rows["subscriber_id"]))


def _definitions(change: Change, index: Index, found: Touched) -> None:
    kinds = change.rows["kind"]
    found.segments_defined |= bool(pc.any(pc.equal(kinds, SEGMENT)).as_py())


def _any(by: Mapping[str, Segments], names: Iterable[str]) -> Segments:
    return NONE.union(*(by.get(name, NONE) for name in names))


_READERS: dict[str, Callable[[Change, Index, Touched], None]] = {
    "profiles": _profiles,
    "events": _events,
    "consents": _consents,
    "suppressions": _suppressions,
    "traffic_corrections": _corrections,
    "attribute_times": _named(lambda index: index.held),
    "predictions": _named(lambda index: index.predictions),
    "event_months": _months,
    "purchased_items": _items,
    "aliases": _aliases,
    "erasures": _erasures,
    "definitions": _definitions,
}
