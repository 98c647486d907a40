"""People by the batch: files and tables in by ``/subscribers/import``, audiences by ``/export``.

In: a file is read, cleaned and judged here, where it lies, and goes out as Arrow batches of at most
``BATCH_BYTES``, ``IN_FLIGHT`` of them at once. Each has a key of its own, so a batch whose answer
was lost is sent again and stored once. Rows of one name stay in the order of the file: a batch that
names somebody who is still on the way waits for the batches before it.

Out: people come by rising id, so a stream that broke off goes on after the last id received.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pyarrow as pa

from manta.client.http import Http, Retries, new_key, unreachable
from manta.errors import InvalidRequest, OutcomeUnknown
from manta.people.delimited import Reject
from manta.people.identities import EMAIL, EXTERNAL_ID, compared_each
from manta.people.importer import ImportPlan, cleaned, planned, raw_row, typed_attribute
from manta.people.importing import ImportSummary
from manta.people.platform_exports import described, texts_of
from manta.schema import AttributeType
from manta.store.importing import (
    Batch,
    RejectsFile,
    plan_import,
    read_people,
    rejects_file,
    size_of,
    write_people,
)

if TYPE_CHECKING:
    import pandas as pd

ARROW = "application/vnd.apache.arrow.stream"
BATCH_BYTES = 7 << 20  # the API takes 8 MB
BATCH_ROWS = 10_000
IN_FLIGHT = 3
SAMPLE_ROWS = 1_000
_COUNTS = (
    "created",
    "updated",
    "unchanged",
    "duplicates",
    "repeated",
    "consented",
    "withheld",
    "suppressed",
)

Progress = Callable[[int, float], None]
Announce = Callable[[list[str]], None]


# -- in --------------------------------------------------------------------------------------------


def import_people(
    http: Http,
    people: Any,
    mapping: Mapping[str, str] | None,
    consent: tuple[str, str, str] | None,
    rejects: str | PathLike[str] | None,
    progress: Progress | None,
    words: Mapping[str, str] | None = None,
    announce: Announce | None = None,
) -> ImportSummary:
    """See ``Client.import_people``."""
    declared = {
        name: AttributeType(kind) for name, kind in http.get("/attributes")["attributes"].items()
    }
    if isinstance(people, str | PathLike):
        path = Path(people)
        if not path.is_file():
            raise InvalidRequest(f"no file {path}", path=str(path), expected="CSV or Parquet")
        plan = plan_import(path, declared, mapping, words)
        batches, whole, source = read_people(path, plan, BATCH_ROWS), size_of(path), path.name
    else:
        table = as_table(people)
        plan = _plan_table(table, declared, mapping, words)
        batches, whole, source = _table_batches(table, plan), table.num_rows, "table"
    if announce is not None:
        announce(described(plan.statuses))
    new = {name: str(kind) for name, kind in plan.attributes.items() if name not in declared}
    if new:
        http.post("/attributes", {"attributes": new})
    query = {"source": f"import:{_printable(source)}"}
    if consent is not None:
        query["consent"] = ":".join(consent)
    with _maybe_rejects(rejects) as file, ThreadPoolExecutor(IN_FLIGHT, "import") as threads:
        run = _Run(http, query, threads, file, progress or _silent, max(whole, 1))
        try:
            for batch in batches:
                run.take(batch)
            run.drain(0)
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return run.summary


@dataclass
class _Sent:
    """Rows on their way: which lines they are of, whom they name, and where the file is read."""

    rows: pa.Table
    lines: list[int]
    names: set[str]
    bytes_read: int
    answer: Future[dict[str, Any]]


@dataclass
class _Run:
    http: Http
    query: dict[str, str]
    threads: ThreadPoolExecutor
    rejects: RejectsFile | None
    progress: Progress
    whole: int
    summary: ImportSummary = field(default_factory=ImportSummary)
    key: str = field(default_factory=new_key)
    number: int = 0
    waiting: deque[_Sent] = field(default_factory=deque)

    def take(self, batch: Batch) -> None:
        """Send a batch, in parts where it is too large, once there is room."""
        self.summary.rows += len(batch.rejects)
        self._refuse(batch.rejects)
        for rows, lines in _parts(batch.rows, batch.lines):
            names = _names(rows)
            if any(not sent.names.isdisjoint(names) for sent in self.waiting):
                self.drain(0)
            self.drain(IN_FLIGHT)  # one more than the threads take, so that none has to wait
            answer = self.threads.submit(self._post, rows, f"{self.key}-{self.number}")
            self.number += 1
            self.waiting.append(_Sent(rows, lines, names, batch.bytes_read, answer))

    def drain(self, left: int) -> None:
        """Wait for answers, in order, until at most ``left`` are on the way."""
        while len(self.waiting) > left:
            sent = self.waiting.popleft()
            answer = sent.answer.result()
            self.summary.rows += sent.rows.num_rows
            for count in _COUNTS:
                setattr(self.summary, count, getattr(self.summary, count) + answer[count])
            self._refuse([_reject(sent, item) for item in answer["rejects"]])
            self.progress(self.summary.rows, min(sent.bytes_read / self.whole, 1.0))

    def _refuse(self, rejects: list[Reject]) -> None:
        self.summary.rejected += len(rejects)
        if self.rejects is not None:
            self.rejects.write(rejects)

    def _post(self, rows: pa.Table, key: str) -> dict[str, Any]:
        response = self.http.request(
            "POST",
            "/subscribers/import",
            params=self.query,
            content=_stream_of(rows),
            headers={"Content-Type": ARROW, "Idempotency-Key": key},
        )
        return dict(response.json())


def _parts(rows: pa.Table, lines: list[int]) -> Iterator[tuple[pa.Table, list[int]]]:
    """The batch, or halves of it, so that each is within ``BATCH_BYTES``."""
    if rows.num_rows == 0:
        return
    if rows.nbytes <= BATCH_BYTES or rows.num_rows == 1:
        yield rows, lines
        return
    half = rows.num_rows // 2
    yield from _parts(rows.slice(0, half).combine_chunks(), lines[:half])
    yield from _parts(rows.slice(half).combine_chunks(), lines[half:])


def _names(rows: pa.Table) -> set[str]:
    names: set[Any] = set()
    for kind in (EMAIL, EXTERNAL_ID):
        if kind in rows.column_names:
            names.update(compared_each(kind, rows[kind].combine_chunks()).to_pylist())
    names.discard(None)
    return names


def _stream_of(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _reject(sent: _Sent, item: Mapping[str, Any]) -> Reject:
    place = int(item["row"])
    return Reject(sent.lines[place], str(item["reason"]), raw_row(sent.rows.columns, place))


class _maybe_rejects:
    """A rejects file where one is wanted."""

    def __init__(self, path: str | PathLike[str] | None) -> None:
        self._context = None if path is None else rejects_file(Path(path))

    def __enter__(self) -> RejectsFile | None:
        return None if self._context is None else self._context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*exception)


def _silent(rows: int, part: float) -> None:
    return


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)[:100]


# -- tables ----------------------------------------------------------------------------------------


def as_table(people: Any) -> pa.Table:
    """An Arrow table of a DataFrame or a table. Raises ``InvalidRequest`` for anything else."""
    if isinstance(people, pa.RecordBatch):
        return pa.Table.from_batches([people])
    if isinstance(people, pa.Table):
        return people
    if not hasattr(people, "to_dict"):
        raise InvalidRequest(
            f"{type(people).__name__} holds no people",
            path="people",
            expected="a file's path, a DataFrame or an Arrow table",
        )
    columns = {}
    for place, name in enumerate(people.columns):
        try:
            columns[str(name)] = pa.Array.from_pandas(people.iloc[:, place])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InvalidRequest(
                f"column {str(name)!r:.80} holds values of several kinds: {error!s:.120}",
                path=str(name)[:80],
                expected="texts, numbers, booleans, instants or lists of texts",
            ) from None
    if len(columns) != len(people.columns):
        raise InvalidRequest("two columns have the same name", path="people")
    return pa.table(columns)


def _plan_table(
    table: pa.Table,
    declared: Mapping[str, AttributeType],
    mapping: Mapping[str, str] | None,
    words: Mapping[str, str] | None,
) -> ImportPlan:
    first = table.slice(0, SAMPLE_ROWS)
    samples: list[list[str | None]] = []
    types: list[AttributeType | None] = []
    for column in first.columns:
        text = _is_text(column.type)
        samples.append(texts_of(column).to_pylist())
        types.append(AttributeType.STRING if text else typed_attribute(column.type))
    return planned(table.column_names, samples, declared, mapping, True, types, words=words)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _table_batches(table: pa.Table, plan: ImportPlan) -> Iterator[Batch]:
    for number, start in enumerate(range(0, table.num_rows, BATCH_ROWS)):
        part = table.slice(start, BATCH_ROWS)
        columns = [_whole_numbers(column.combine_chunks()) for column in part.columns]
        lines = list(range(start + 1, start + part.num_rows + 1))
        clean = cleaned(plan, columns, lines)
        yield Batch(number, clean.rows, clean.lines, clean.rejects, start + part.num_rows)


def _whole_numbers(column: pa.Array) -> pa.Array:
    """Integers that pandas turned to floats because one was missing: 7, not 7.0, in a text."""
    if not pa.types.is_floating(column.type):
        return column
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column


# -- out -------------------------------------------------------------------------------------------


def export_frame(
    http: Http, audience: Any, progress: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """See ``Client.export``."""
    frame: pd.DataFrame = pa.concat_tables(_exported(http, audience, progress)).to_pandas()
    return frame


def export_file(
    http: Http, audience: Any, path: Path, progress: Callable[[int], None] | None = None
) -> int:
    """Write the audience to a file; how many people."""
    return write_people(path, _exported(http, audience, progress))


def _exported(
    http: Http, audience: Any, progress: Callable[[int], None] | None
) -> Iterator[pa.Table]:
    """Batches of one schema, at least one, whatever breaks on the way."""
    request: dict[str, Any] = {}
    if isinstance(audience, Mapping):
        request["rule"] = dict(audience)
    elif audience is not None:
        request["segment_id"] = int(audience)
    schema: pa.Schema | None = None
    rows, retries = 0, Retries()
    while True:
        before = rows
        try:
            with http.stream("POST", "/export", retries, json=request) as response:
                for batch, last in _batches(response):
                    if schema is None:
                        schema = batch.schema
                        yield pa.Table.from_batches([], schema)
                    if batch.num_rows:
                        yield _fitted(batch, schema)
                        request["after"] = batch["subscriber_id"][batch.num_rows - 1].as_py()
                        rows += batch.num_rows
                        retries.progress()
                        if progress is not None:
                            progress(rows)
                    if last:
                        return
            if rows == before:
                retries.after(OutcomeUnknown("an export ended before its first row"))
            # Else the stream came to its time limit: ask for what follows.
        except httpx.TransportError as error:
            retries.after(unreachable(error, http.url))
        except (pa.ArrowInvalid, OSError) as error:
            retries.after(OutcomeUnknown(f"the answer broke off: {error}"))


def _batches(response: httpx.Response) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Batches of a stream, and whether each is marked as the last one."""
    with pa.ipc.open_stream(_Body(response)) as reader:
        while True:
            try:
                batch, marks = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            yield batch, bool(marks) and b"manta.last" in marks


class _Body:
    """A response's body as a file that Arrow can read from."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.iter_bytes()
        self._held = bytearray()
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._held) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._held += chunk
        end = len(self._held) if size < 0 else size
        data = bytes(self._held[:end])
        del self._held[:end]
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """The batch with the columns of the first one: attributes may be declared meanwhile."""
    there = set(batch.schema.names)
    columns = [
        batch[f.name] if f.name in there else pa.nulls(batch.num_rows, f.type) for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
