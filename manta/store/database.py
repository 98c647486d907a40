"""The database of one shard: DuckDB in memory, with the tables of ``manta.schema``.

One thread writes: ``begin``, then for each command its reads and ``apply`` of its changes, then
``commit`` or ``rollback``. Other threads read on cursors of their own (``reader``), which see only
what is committed. Nothing here is durable: the journal is, and ``apply`` is also how it is
replayed, so that a crash costs nothing but a reload.

A DuckDB statement costs most of a millisecond to plan whatever it touches. So applied rows wait in
memory until the end of the group or until a statement names their table, and neighbouring changes
of one table are written by one statement. That is safe since ``prepare`` has checked everything
about the rows that the database could refuse: it raises before the transaction is touched. For the
same reason statements are parsed once, rows to write come through views that stay (``_Slot``), and
what was read of the small tables that every decision asks about is remembered until they change.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manta.command import Change, Op
from manta.errors import Conflict, InvalidRequest
from manta.rules import meaning
from manta.schema import (
    ATTRIBUTE_NAME,
    ATTRIBUTE_PREFIX,
    ATTRIBUTES_MAX,
    SQL_TYPES,
    TABLES,
    Table,
)
from manta.store.presence import EventFilter, People
from manta.store.statements import (
    ARROW_TYPES,
    attribute_type,
    check_key,
    correct,
    create,
    hot_events,
    merge,
    update,
    write,
)

_ATTRIBUTE_WORDS = {sql: kind.value for kind, sql in SQL_TYPES.items()}
_MENTION = re.compile(r"\b(" + "|".join(TABLES) + r")\b", re.IGNORECASE)
_READ = re.compile(r"\s*(SELECT|WITH|FROM|VALUES|EXPLAIN|DESCRIBE|SUMMARIZE)\b", re.IGNORECASE)
# DuckDB looks nothing up by a key of several columns, so a name is found by its value alone.
_INDEXES = {
    "events": {"events_of_subscriber": "subscriber_id"},
    "identities": {"identities_of_value": "value"},
}
_LOOKED_UP_MAX = 1_000  # rows of a join's one side up to which the index of the other is used
# Tables of some rows that hardly change and that most decisions read.
_REMEMBERED = frozenset({"campaigns", "senders", "definitions"})
_PRESENT = frozenset({"profiles", "events"})  # followed by what is known of who is here
_PARSED_MAX = 512  # statements, of which one is parsed; views of as many forms of rows; answers
_DATABASE = "shard"
_NEVER = "1TB"  # changes until a checkpoint
# A folder like `shard=000` is no column of the files in it.
PARQUET = "read_parquet(?, union_by_name = true, hive_partitioning = false)"


@dataclass(frozen=True)
class DatabaseSettings:
    """``memory_limit_mb`` bounds this database alone; a statement beyond it fails."""

    memory_limit_mb: int = 4096


@lru_cache(maxsize=4096)
def _mentioned(sql: str) -> frozenset[str]:
    """The tables whose names stand in a statement: at least those that it reads."""
    if not _READ.match(sql):
        raise ValueError(f"a decision only reads; not a query: {sql[:80]!r}")
    return frozenset(name.lower() for name in _MENTION.findall(sql))


class Reader:
    """``manta.command.Database`` on one cursor. For one thread at a time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._parsed: dict[str, duckdb.Statement] = {}
        self.hints: dict[Any, Any] = {}

    def rows(
        self, sql: str, params: Sequence[Any] = (), **tables: pa.Table
    ) -> list[tuple[Any, ...]]:
        """The rows of a query as Python tuples; Arrow ``tables`` stand under their names."""
        self._before(sql)
        with self._registered(tables):
            done = self._connection.execute(self._statement(sql), list(params))
            result: list[tuple[Any, ...]] = done.fetchall()
            return result

    def table(self, sql: str, params: Sequence[Any] = (), **tables: pa.Table) -> pa.Table:
        """The rows of a query as an Arrow table."""
        self._before(sql)
        with self._registered(tables):
            return self._connection.sql(self._statement(sql), params=list(params)).to_arrow_table()

    def here(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these people have a profile."""
        found = self.rows(
            "SELECT subscriber_id FROM profiles WHERE subscriber_id IN (SELECT unnest(?))",
            [ids.tolist()],
        )
        return np.isin(ids, np.array([id for (id,) in found], np.int64))

    def may_hold_events(self, event_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Of which event ids it cannot be said at once that they are not in memory."""
        return np.ones(len(event_ids), bool)

    def columns(self, table: str) -> dict[str, str]:
        """Column name → DuckDB type, attributes included."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r:.40}")
        found = self._connection.execute(f"DESCRIBE {table}").fetchall()
        return {name: sql_type for name, sql_type, *_ in found}

    def pin(self) -> None:
        """Hold on to what is committed now: all later reads of this cursor see just that."""
        self._connection.begin()
        self._connection.execute("SELECT 1 FROM events LIMIT 1").fetchall()

    def release(self) -> None:
        """Let go of the state that ``pin`` holds; the cursor may be pinned again."""
        self._connection.rollback()

    def interrupt(self) -> None:
        """Stop the statement that runs on this cursor; may be called from another thread."""
        self._connection.interrupt()

    def close(self) -> None:
        self._parsed.clear()
        self._connection.close()

    def _statement(self, sql: str) -> duckdb.Statement:
        """The one statement of a text, parsed the first time only."""
        statement = self._parsed.get(sql)
        if statement is None:
            (statement,) = self._connection.extract_statements(sql)
            if len(self._parsed) >= _PARSED_MAX:
                self._parsed.clear()
            self._parsed[sql] = statement
        return statement

    def _before(self, sql: str) -> None:
        _mentioned(sql)

    @contextmanager
    def _registered(self, tables: dict[str, pa.Table]) -> Iterator[None]:
        if not tables:
            yield
            return
        for name, table in tables.items():
            if name in TABLES:
                raise ValueError(f"{name} is a table of the shard; give the batch another name")
            self._connection.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                try:
                    self._connection.unregister(name)
                except duckdb.Error:
                    pass  # the transaction is aborted; its rollback takes the view with it


class _Slot:
    """What a view reads: the rows that lie here when a statement runs. Registering a view anew for
    each statement would cost more than most of them."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows: pa.Table | None = rows

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        assert self.rows is not None, "nothing lies in the slot"
        return self.rows.__arrow_c_stream__(requested_schema)


class ShardDatabase(Reader):
    """The tables, written by one thread in explicit transactions and read by any number."""

    def __init__(self, settings: DatabaseSettings | None = None) -> None:
        limit_mb = (settings or DatabaseSettings()).memory_limit_mb
        config = {
            # With two threads one heavy reader takes the writer's median from 2 to 35 ms.
            "threads": "1",
            "memory_limit": f"{limit_mb}MB",
            "temp_directory": "",
            # What a load or a large statement took for a while goes back to the machine.
            "allocator_background_threads": "true",
            "autoload_known_extensions": "false",
        }
        # Cursors are made from a connection that runs no long statement itself once it is ready.
        self._root = connect(config)
        self._root.execute("SET TimeZone = 'UTC'")
        # An attached database in memory can be compressed: events take a third of the room.
        self._root.execute(f"ATTACH ':memory:' AS {_DATABASE} (COMPRESS)").fetchall()
        self._root.execute(f"USE {_DATABASE}")
        meaning.register(self._root)  # what rules call; cursors inherit it
        super().__init__(self._new_cursor())
        self._types = {name: dict(table.columns) for name, table in TABLES.items()}
        self._types_before = dict(self._types["profiles"])
        self._waiting: dict[str, list[Change]] = {}
        self._slots: dict[pa.Schema, tuple[str, _Slot]] = {}  # of rows with these columns
        self._answers: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self._cursors = threading.Lock()
        self._locked = False
        self._indexed = True
        self.events_since: datetime | None = None  # older events do not enter memory
        self._people: People | None = None  # made when they are asked for
        self._people_moved = False  # in this transaction
        self._events: EventFilter | None = None
        for table in TABLES.values():
            self._connection.execute(create(table))
            self._create_indexes(table)

    # -- transactions, for the writer ----------------------------------------------------------

    def begin(self) -> None:
        self._connection.begin()
        self._types_before = dict(self._types["profiles"])

    def commit(self) -> None:
        """Write what waits and commit. Afterwards readers see it."""
        self.write_waiting()
        self._connection.commit()
        self._people_moved = False

    def rollback(self) -> None:
        self._waiting.clear()
        self._answers.clear()
        self._slots.clear()  # a view goes with the transaction that made it
        self._types["profiles"] = self._types_before
        if self._people_moved:
            self._people, self._people_moved = None, False
        self._connection.rollback()

    def usable(self) -> bool:
        """Whether the open transaction still works: any error of DuckDB aborts it."""
        try:
            self._connection.execute("SELECT 1").fetchall()
        except duckdb.Error:
            return False
        return True

    def prepare(self, changes: Iterable[Change]) -> list[Change]:
        """The changes with columns of exactly the database's types, or ``InvalidRequest``.

        Checks all that the database could refuse: names, types, missing and repeated keys.
        """
        return [Change(c.table, c.op, self._conform(c)) for c in changes if c.rows.num_rows]

    def apply(self, prepared: Iterable[Change]) -> None:
        """Make prepared changes visible to all later statements of this transaction."""
        for change in prepared:
            for name in change.rows.column_names:
                if name not in self._types[change.table]:
                    self._add_attribute(name, change.rows.schema.field(name).type)
            if change.table in _REMEMBERED:
                self._answers.clear()
            if change.table in _PRESENT:
                self._follow(change)
            self._waiting.setdefault(change.table, []).append(change)

    def write_waiting(self, tables: Iterable[str] | None = None) -> None:
        """Hand the waiting changes (of these tables) to DuckDB."""
        for name in list(self._waiting) if tables is None else tables:
            changes = self._waiting.pop(name, None)
            if changes:
                for change in merge(changes):
                    self._write(change)

    def _follow(self, change: Change) -> None:
        """Keep what is known of people and events in step with what is applied."""
        if change.table == "events":
            if self._events is not None and "event_id" in change.rows.column_names:
                ids = change.rows["event_id"].drop_null().to_numpy()
                self._events.add(ids)
            return
        self._people_moved = True
        if self._people is not None:
            ids = change.rows["subscriber_id"].to_pylist()
            if change.op is Op.DELETE:
                self._people.remove(ids)
            else:
                self._people.add(ids)

    def here(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        if self._people is None or self._people.is_scattered:
            self._people = People(self._column("profiles", "subscriber_id"))
        return self._people.among(ids)

    def may_hold_events(self, event_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        if self._events is None or self._events.is_full:
            self._events = EventFilter(self._column("events", "event_id"))
        return self._events.may_hold(event_ids)

    def _column(self, table: str, name: str) -> npt.NDArray[np.int64]:
        column = self.table(f"SELECT {name} FROM {table} WHERE {name} IS NOT NULL")[name]
        ids: npt.NDArray[np.int64] = column.to_numpy()
        return ids

    def rows(
        self, sql: str, params: Sequence[Any] = (), **tables: pa.Table
    ) -> list[tuple[Any, ...]]:
        """As ``Reader.rows``, and from memory while the tables asked about are the same."""
        touched = _mentioned(sql)
        if not touched or not touched <= _REMEMBERED:
            return super().rows(sql, params, **tables)
        asked = (sql, *(tuple(p) if isinstance(p, list) else p for p in params))
        answer = self._answers.get(asked)
        if answer is None:
            answer = super().rows(sql, params, **tables)
            if len(self._answers) >= _PARSED_MAX:
                self._answers.clear()
            self._answers[asked] = answer
        return list(answer)

    # -- around the transactions ----------------------------------------------------------------

    def begin_loading(self) -> None:
        """Before files and journal: no indexes, and a second thread, since nobody waits yet.

        Nor does DuckDB compress by itself, in the midst of what is still to be changed.
        """
        for names in _INDEXES.values():
            for name in names:
                self._connection.execute(f"DROP INDEX {name}")
        self._indexed = False
        self._root.execute("SET threads = 2").fetchall()
        self._root.execute(f"SET checkpoint_threshold = '{_NEVER}'").fetchall()

    def end_loading(self) -> None:
        """Compress what the journal brought. Indexes are still missing."""
        self._compress()
        self._root.execute("RESET checkpoint_threshold").fetchall()
        self._root.execute("SET threads = 1").fetchall()

    def build_indexes(self) -> None:
        """If they are missing since ``begin_loading``: at once, for half of what upkeep costs.

        Only in the writer's thread, between transactions: in DuckDB 2.0.0 an index that is built
        while another connection appends lacks rows, and nothing says so. Others may read.
        """
        if not self._indexed:
            for table in TABLES.values():
                self._create_indexes(table)
            self._indexed = True
            # Now, and not while the first events wait for it: a second for ten million of them.
            self.may_hold_events(np.empty(0, np.int64))
            self.here(np.empty(0, np.int64))

    def lock_down(self) -> None:
        """From now on no statement reaches files or changes settings. For good."""
        if not self._locked:
            self._connection.execute("SET enable_external_access = false")
            self._connection.execute("SET lock_configuration = true")
            self._locked = True

    def reader(self) -> Reader:
        """A cursor that reads the committed state from another thread. Close it."""
        with self._cursors:
            return Reader(self._new_cursor())

    def load_files(
        self, table: str, paths: Sequence[str], where: str, params: Sequence[Any] = ()
    ) -> None:
        """Load local Parquet files and compress, at recovery, before ``lock_down``.

        A table with a key is loaded in one call; one without it may get its files in several.
        Of each key the row with the highest ``_sequence`` holds, unless it is ``_deleted``.
        Columns that the files lack are NULL; attributes that the table lacks are added.
        """
        found = self._connection.execute(f"DESCRIBE SELECT * FROM {PARQUET}", [list(paths)])
        stored = {name: sql_type for name, sql_type, *_ in found.fetchall()}
        for name, sql_type in stored.items():
            if TABLES[table].has_attributes and name.startswith(ATTRIBUTE_PREFIX):
                self._add_column(name, sql_type)
        columns = ", ".join(name for name in self._types[table] if name in stored)
        source, key = PARQUET, ", ".join(TABLES[table].key)
        if key and len(paths) > 1:
            last = f"row_number() OVER (PARTITION BY {key} ORDER BY _sequence DESC) = 1"
            source = f"(SELECT * FROM {PARQUET} QUALIFY {last})"
        with self._keyed_afterwards(TABLES[table]):
            self._connection.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {source} WHERE {where}",
                [list(paths), *params],
            )
        self._compress()

    def _compress(self) -> None:
        self._root.execute(f"CHECKPOINT {_DATABASE}").fetchall()

    @contextmanager
    def _keyed_afterwards(self, table: Table) -> Iterator[None]:
        """Without its key for the time of the block: to build it at once costs a third."""
        if table.key:
            self._connection.execute(f"DROP TABLE {table.name}")
            columns = ", ".join(f"{n} {t}" for n, t in self._types[table.name].items())
            self._connection.execute(f"CREATE TABLE {table.name} ({columns})")
        yield
        if table.key:
            key = ", ".join(table.key)
            self._connection.execute(f"ALTER TABLE {table.name} ADD PRIMARY KEY ({key})")

    def _create_indexes(self, table: Table) -> None:
        for name, columns in _INDEXES.get(table.name, {}).items():
            self._connection.execute(f"CREATE INDEX {name} ON {table.name} ({columns})")

    def drop(self, table: str, where: str, params: Sequence[Any]) -> None:
        """Take rows out of memory, in a transaction of its own; not a change of the state."""
        self._answers.clear()
        self._connection.begin()
        self._connection.execute(f"DELETE FROM {table} WHERE {where}", list(params))
        self._connection.commit()

    def rewrite_texts(
        self, table: str, columns: Sequence[str], where: str, shown: str, pattern: str
    ) -> None:
        """Write texts anew in which the pattern is found, in a transaction of its own; not a change
        of the state. ``shown`` is the SQL of the new text, with ``{column}`` and the pattern as its
        parameters."""
        self._connection.begin()
        for column in columns:
            new = shown.format(column=column)
            self._connection.execute(
                f"UPDATE {table} SET {column} = {new}"
                f" WHERE {where} AND coalesce(regexp_matches({column}, ?), FALSE)",
                [pattern] * (new.count("?") + 1),
            )
        self._connection.commit()

    def correct_events(self) -> None:
        """Put what was found out later about opens and clicks in the place of what was thought."""
        self._connection.execute(correct("traffic_corrections"))

    def columns(self, table: str) -> dict[str, str]:
        """Column name → DuckDB type, attributes included."""
        return dict(self._types[table])

    def close(self) -> None:
        super().close()
        self._slots.clear()
        self._root.close()

    def row_counts(self) -> dict[str, int]:
        """Committed rows of each table."""
        with self._cursors:
            cursor = self._new_cursor()
        try:
            sql = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for name in TABLES)
            return dict(cursor.execute(sql).fetchall())
        finally:
            cursor.close()

    def memory_bytes(self) -> int:
        """What DuckDB holds, indexes included."""
        with self._cursors:
            cursor = self._new_cursor()
        try:
            row = cursor.execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchone()
            return int(row[0] or 0) if row else 0
        finally:
            cursor.close()

    # -- inside ----------------------------------------------------------------------------------

    def _new_cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._root.cursor()
        cursor.execute(f"USE {_DATABASE}")
        return cursor

    def _before(self, sql: str) -> None:
        touched = _mentioned(sql)
        if self._waiting:
            self.write_waiting([name for name in touched if name in self._waiting])

    def _conform(self, change: Change) -> pa.Table:
        table, rows = TABLES[change.table], change.rows
        if change.op is Op.DELETE and set(rows.column_names) != set(table.key):
            raise InvalidRequest(
                f"a delete from {table.name} gives its key and nothing else",
                path=table.name,
                expected=", ".join(table.key),
            )
        names, arrays = [], []
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            converted = self._conform_column(table, name, column)
            if converted is not None:
                names.append(name)
                arrays.append(converted)
        conformed = pa.table(arrays, names=names)
        if table.key:
            check_key(table, conformed)
        if len(self._types["profiles"]) + len(names) > ATTRIBUTES_MAX and table.has_attributes:
            self._check_attribute_count(names)
        return conformed

    def _conform_column(
        self, table: Table, name: str, column: pa.ChunkedArray
    ) -> pa.ChunkedArray | None:
        declared = self._types[table.name].get(name)
        path = f"{table.name}.{name}"
        if declared is None:
            if not (table.has_attributes and name.startswith(ATTRIBUTE_PREFIX)):
                raise InvalidRequest(
                    f"table {table.name} has no column {name[:80]!r}",
                    path=path,
                    expected=", ".join(table.column_names),
                )
            if not ATTRIBUTE_NAME.fullmatch(name.removeprefix(ATTRIBUTE_PREFIX)):
                raise InvalidRequest(
                    f"{name[:80]!r} is not an attribute's name",
                    path=path,
                    expected="a lower-case letter, then at most 62 of a-z, 0-9 and _",
                )
            declared = attribute_type(column.type, path)
            if declared is None:
                return None  # nothing but nulls in an attribute that nobody has yet
        elif name.startswith(ATTRIBUTE_PREFIX) and not pa.types.is_null(column.type):
            given = attribute_type(column.type, path)
            if given != declared and given is not None:
                raise Conflict(
                    f"attribute {name.removeprefix(ATTRIBUTE_PREFIX)} is a "
                    f"{_ATTRIBUTE_WORDS[declared]}, not a {_ATTRIBUTE_WORDS[given]}",
                    path=path,
                    expected=_ATTRIBUTE_WORDS[declared],
                )
        if column.type == ARROW_TYPES[declared]:
            return column
        try:
            # Instants lose what is finer than a microsecond; nothing else may lose anything.
            return column.cast(ARROW_TYPES[declared], safe=declared != "TIMESTAMP")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidRequest(
                f"{path} holds {column.type} that is no {declared}: {str(error)[:200]}",
                path=path,
                expected=declared,
            ) from error

    def _check_attribute_count(self, given: list[str]) -> None:
        names = {n for n in (*self._types["profiles"], *given) if n.startswith(ATTRIBUTE_PREFIX)}
        if len(names) > ATTRIBUTES_MAX:
            raise InvalidRequest(
                f"more than {ATTRIBUTES_MAX} attributes in this workspace",
                path="profiles",
                expected="fewer attributes; rare facts fit the properties of events",
            )

    def _add_attribute(self, name: str, arrow_type: pa.DataType) -> None:
        sql_type = attribute_type(arrow_type, name)
        assert sql_type is not None
        self.write_waiting(["profiles"])
        self._add_column(name, sql_type)

    def _add_column(self, name: str, sql_type: str) -> None:
        if name not in self._types["profiles"]:
            self._connection.execute(f"ALTER TABLE profiles ADD COLUMN {name} {sql_type}")
            self._types["profiles"][name] = sql_type

    def _write(self, change: Change) -> None:
        if change.op is Op.INSERT:
            rows = change.rows
            if change.table == "events":
                rows = hot_events(rows, self.events_since)
            if rows.num_rows:
                self._insert(Change(change.table, Op.INSERT, rows))
            return
        table = TABLES[change.table]
        if change.op is Op.UPSERT and change.rows.num_rows == 1 and len(table.key) == 1:
            self._upsert_one(change)
            return
        if (
            change.op is Op.UPSERT
            and table.born
            and table.born not in change.rows.column_names
            and self._run(update(change.table, change.rows.column_names), change.rows)
            == change.rows.num_rows
        ):
            return  # all were there, and this costs a third of ``ON CONFLICT``
        self._run(write(change.table, change.op, change.rows.column_names), change.rows)
        if change.table == "traffic_corrections" and change.op is Op.UPSERT:
            self._run(correct("{rows}"), change.rows)

    def _upsert_one(self, change: Change) -> None:
        """One row by a key that an index finds: a third of what ``ON CONFLICT`` costs to plan."""
        (key,) = TABLES[change.table].key
        row = change.rows.to_pylist()[0]
        columns = [name for name in row if name != key]
        at, values = row[key], [row[name] for name in columns]
        if columns:
            sets = ", ".join(f"{name} = ?" for name in columns)
            sql = f"UPDATE {change.table} SET {sets} WHERE {key} = ?"
            found = self._connection.execute(sql, [*values, at]).fetchall()[0][0]
        else:
            sql = f"SELECT count(*) FROM {change.table} WHERE {key} = ?"
            found = self._connection.execute(sql, [at]).fetchall()[0][0]
        if not found:
            listed, marks = ", ".join([key, *columns]), ", ".join("?" * len(row))
            sql = f"INSERT INTO {change.table} ({listed}) VALUES ({marks})"
            self._connection.execute(sql, [at, *values])

    def _insert(self, change: Change) -> None:
        self._run(write(change.table, Op.INSERT, change.rows.column_names), change.rows)

    def _run(self, sql: str, rows: pa.Table) -> int:
        """Run a statement that writes ``rows``, named ``{rows}`` in it; how many it wrote."""
        name, slot = self._slot(rows)
        try:
            done = self._connection.execute(self._statement(sql.format(rows=name)))
            return int(done.fetchall()[0][0])
        finally:
            slot.rows = None

    def _slot(self, rows: pa.Table) -> tuple[str, _Slot]:
        """The view through which statements see rows with these columns, filled with these."""
        found = self._slots.get(rows.schema)
        if found is not None:
            found[1].rows = rows
            return found
        if len(self._slots) >= _PARSED_MAX:
            self._slots.clear()
        found = self._slots[rows.schema] = (f"_rows_{len(self._slots)}", _Slot(rows))
        self._connection.register(*found)
        return found


def connect(config: dict[str, str]) -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own in memory, that fetches no extensions and writes nothing to stdout."""
    config = {"autoinstall_known_extensions": "false", **config}
    connection = duckdb.connect(":memory:", config=dict(config))
    # On by itself where Python seems interactive, as it does to DuckDB in `python -c`.
    connection.execute("SET enable_progress_bar = false")
    connection.execute(f"SET GLOBAL dynamic_or_filter_threshold = {_LOOKED_UP_MAX}")
    return connection
