"""The named reads of a shard: what others may ask beside the writer.

A read is a function of (database, context, arguments) that runs on a cursor pinned to one committed
state, in a thread of its own, for a limited time. Rooms of the core keep theirs in a dict by name;
who composes the shard adds them here once. A read that decides something outward is no read but a
command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from manta.command import Context, Database
from manta.errors import NotFound
from manta.schema import TABLES

Query = Callable[[Database, Context, Mapping[str, Any]], Any]


def row_counts(database: Database, context: Context, arguments: Mapping[str, Any]) -> Any:
    """Table → committed rows."""
    sql = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for name in TABLES)
    return dict(database.rows(sql))


class Queries:
    """Named reads. A name is given once; adding the same function again is no matter."""

    def __init__(self, *rooms: Mapping[str, Query]) -> None:
        self._by_name: dict[str, Query] = {"row_counts": row_counts}
        for room in rooms:
            self.add(room)

    def add(self, room: Mapping[str, Query]) -> None:
        for name, query in room.items():
            if self._by_name.setdefault(name, query) is not query:
                raise ValueError(f"two reads are called {name}")

    def find(self, name: str) -> Query:
        """The read of this name, or ``NotFound`` with what is nearest."""
        query = self._by_name.get(name)
        if query is None:
            near = get_close_matches(name, self._by_name, 3)
            raise NotFound(
                f"a shard has no read {name[:80]!r}",
                path="name",
                expected=", ".join(near or sorted(self._by_name)),
            )
        return query
