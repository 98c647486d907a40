"""Files of people: read in batches with bounded memory, written whole or not at all.

Reading knows two kinds of file by their first bytes: Parquet, and delimited text (CSV) in any of
the usual dialects and encodings, also under gzip. ``plan_import`` looks at the beginning and
decides what the columns mean; ``read_people`` then streams the file by that plan. The decisions
are ``manta.people.delimited``'s and ``manta.people.importer``'s; here are only files.

Nothing here depends on what was read before: the same file and plan give the same batches, so a
run that broke off can begin anew with the same keys.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from manta.errors import InvalidRequest
from manta.people.delimited import (
    COLUMNS_MAX,
    SAMPLE_BYTES,
    Dialect,
    Reject,
    Rows,
    Splitter,
    sniffed_dialect,
    sniffed_encoding,
)
from manta.people.importer import (
    GUARDED,
    ImportPlan,
    cleaned,
    looks_headless,
    planned,
    typed_attribute,
)
from manta.people.platform_exports import texts_of
from manta.schema import AttributeType

BATCH_ROWS = 10_000
_BLOCK_BYTES = 524_288
_SAMPLE_ROWS = 1_000
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(frozen=True)
class Batch:
    """Clean rows with the line of each in the file (in Parquet: the number of the row), what was
    refused among them, and how far into the file the reading has come."""

    number: int
    rows: pa.Table
    lines: list[int]
    rejects: list[Reject]
    bytes_read: int


@dataclass(frozen=True)
class TextFile:
    """How the text of a file is to be read."""

    encoding: str
    mark_bytes: int
    dialect: Dialect


def checksum_of(path: Path) -> str:
    """The content's checksum, with which the keys of its import begin."""
    hasher = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def plan_import(
    path: Path,
    declared: Mapping[str, AttributeType],
    mapping: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
) -> ImportPlan:
    """What the columns of the file mean, and what it says of consent
    (``manta.people.importer.planned``).

    Raises ``InvalidRequest`` where the file is empty or of another kind, or the mapping is wrong.
    """
    if _is_parquet(path):
        return _plan_parquet(path, declared, mapping, words)
    text, sample = _opened_text(path)
    header, rows = header_and_rows(sample, text.dialect)
    has_header = not looks_headless(header)
    if not has_header:
        rows.insert(0, header)
        header = [f"column_{place}" for place in range(1, len(header) + 1)]
    samples = [list(values) for values in zip(*rows, strict=True)] or [[] for _ in header]
    return planned(header, samples, declared, mapping, has_header, file_name=path.name, words=words)


def header_and_rows(sample: str, dialect: Dialect) -> tuple[list[str], list[list[str]]]:
    """The first row of a text and the good ones that follow it, at most ``_SAMPLE_ROWS``."""
    rows = _rows_of(sample, dialect, None)
    if not rows:
        raise InvalidRequest("the file has no rows", path="file", expected="a header and rows")
    header = rows[0]
    if len(header) > COLUMNS_MAX:
        raise InvalidRequest(
            f"the file has {len(header)} columns", path="file", expected=f"at most {COLUMNS_MAX}"
        )
    rows = _rows_of(sample, dialect, len(header))[1:]
    if len(rows) > _SAMPLE_ROWS:
        return header, rows[:_SAMPLE_ROWS]
    # The end of a sample may have cut the last row; of a short file it is needed.
    return header, rows[:-1] or rows


def _rows_of(sample: str, dialect: Dialect, fields: int | None) -> list[list[str]]:
    splitter = Splitter(dialect, fields)
    return splitter.feed(sample).rows + splitter.finish().rows


def read_people(path: Path, plan: ImportPlan, batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """The rows of the file by the plan, in batches; the last batch may be small or empty.

    A compressed file that ends early or is damaged gives the rows before the damage and then
    raises ``InvalidRequest``.
    """
    blocks = _parquet_blocks(path, batch_rows) if _is_parquet(path) else _text_blocks(path, plan)
    batches = enumerate(_regrouped(blocks, batch_rows))
    for number, (columns, lines, rejects, position) in batches:
        clean = cleaned(plan, columns, lines)
        refused = sorted([*rejects, *clean.rejects], key=lambda reject: reject.line)
        yield Batch(number, clean.rows, clean.lines, refused, position)


@contextlib.contextmanager
def rejects_file(path: Path) -> Iterator[RejectsFile]:
    """A CSV file for refused rows; made when the first one comes."""
    file = RejectsFile(path)
    try:
        yield file
    finally:
        file.close()


class RejectsFile:
    """Refused rows: ``line``, ``reason``, ``row`` (its text as it stood, cut when very long)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._writer: Any = None
        self.count = 0

    def write(self, rejects: Iterable[Reject]) -> None:
        for reject in rejects:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8", newline="")
                self._writer = csv.writer(self._file)
                self._writer.writerow(["line", "reason", "row"])
            self._writer.writerow([reject.line, reject.reason, _guarded(reject.raw)])
            self.count += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def write_people(path: Path, batches: Iterable[pa.Table]) -> int:
    """Write batches of one schema to a file, CSV or by its name ``.parquet``; how many rows.

    The file appears complete or not at all. In CSV a text that a spreadsheet would take for a
    formula gets an apostrophe before it, which an import takes off again; instants are RFC 3339
    in UTC, lists JSON.
    """
    part = path.with_name(path.name + ".part")
    rows = 0
    writer: Any = None
    try:
        for batch in batches:
            table = batch if path.suffix == ".parquet" else _as_text(batch)
            if writer is None:
                writer = _writer(path, part, table.schema)
            writer.write_table(table)
            rows += batch.num_rows
        if writer is None:
            part.write_bytes(b"")
        else:
            writer.close()
        part.replace(path)
    except BaseException:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)
        raise
    return rows


def csv_text(batch: pa.Table, header: bool) -> bytes:
    """A batch as ``write_people`` writes it to a CSV file, with or without the first row."""
    options = pyarrow.csv.WriteOptions(include_header=header, quoting_style="needed")
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(_as_text(batch), sink, options)
    return bytes(sink.getvalue())


def _writer(path: Path, part: Path, schema: pa.Schema) -> Any:
    if path.suffix == ".parquet":
        return pq.ParquetWriter(part, schema, compression="zstd")
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    return pyarrow.csv.CSVWriter(part, schema, write_options=options)


# -- text ----------------------------------------------------------------------------------------


def text_rows(path: Path, has_header: bool = True) -> Iterator[tuple[list[str], Rows, int]]:
    """Blocks of rows of a text file with its header and the position in the file."""
    text, sample = _opened_text(path)
    header, _ = header_and_rows(sample, text.dialect)
    splitter = Splitter(text.dialect, len(header))
    waiting_for_header = has_header
    decoder = codecs.getincrementaldecoder(text.encoding)("strict")
    lenient = codecs.getincrementaldecoder(text.encoding)("replace")
    for block, position, last in _blocks(path, text.mark_bytes):
        damaged = False
        state = decoder.getstate()
        try:
            piece = decoder.decode(block, last)
        except UnicodeDecodeError:
            damaged = True
            lenient.setstate(state)
            piece = lenient.decode(block, last)
            decoder.setstate(lenient.getstate())
        found = splitter.feed(piece, damaged)
        if last:
            end = splitter.finish()
            found = Rows(
                found.rows + end.rows, found.lines + end.lines, found.rejects + end.rejects
            )
        if waiting_for_header and found.rows:
            del found.rows[0], found.lines[0]
            waiting_for_header = False
        yield header, found, position


def _text_blocks(path: Path, plan: ImportPlan) -> Iterator[tuple[list[pa.Array], Rows, int]]:
    for header, found, position in text_rows(path, plan.has_header):
        columns = (
            [pa.array(cells, pa.string()) for cells in zip(*found.rows, strict=True)]
            if found.rows
            else [pa.array([], pa.string()) for _ in header]
        )
        yield columns, found, position


def _opened_text(path: Path) -> tuple[TextFile, str]:
    """How to read the text, and its beginning."""
    head = _head(path)
    if not head.strip():
        raise InvalidRequest("the file is empty", path="file", expected="a header and rows")
    encoding, mark = sniffed_encoding(head)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    sample = decoder.decode(head[mark:], len(head) < SAMPLE_BYTES)
    return TextFile(encoding, mark, sniffed_dialect(sample)), sample


@contextlib.contextmanager
def _content(path: Path) -> Iterator[tuple[Callable[[int], bytes], IO[bytes]]]:
    """A function that reads some of the content, and the file to ask for its position."""
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        # `read1` gives what is there before damage; `read` would lose it with the error.
        reader: Any = gzip.GzipFile(fileobj=raw).read1 if packed else raw.read

        def read(size: int) -> bytes:
            try:
                return bytes(reader(size))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _damaged(error) from None

        yield read, raw


def _head(path: Path) -> bytes:
    """The first ``SAMPLE_BYTES`` of the content, or all that can be read of it."""
    head = b""
    with _content(path) as (read, _):
        try:
            while len(head) < SAMPLE_BYTES and (piece := read(SAMPLE_BYTES - len(head))):
                head += piece
        except InvalidRequest:
            if not head:
                raise
    return head


def _blocks(path: Path, skip: int) -> Iterator[tuple[bytes, int, bool]]:
    """Blocks of the content, with the position in the file; the last is empty and marked."""
    with _content(path) as (read, raw):
        while block := read(_BLOCK_BYTES):
            yield block[skip:], raw.tell(), False
            skip = max(0, skip - len(block))
        yield b"", raw.tell(), True


def _damaged(error: Exception) -> InvalidRequest:
    return InvalidRequest(
        f"the compressed file is damaged or ends early: {error}",
        path="file",
        expected="the whole file; the rows before the damage were read",
    )


# -- Parquet -------------------------------------------------------------------------------------


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _PARQUET


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest(
            f"the Parquet file cannot be read: {error!s:.200}", path="file", expected="Parquet"
        ) from None


def _plan_parquet(
    path: Path,
    declared: Mapping[str, AttributeType],
    mapping: Mapping[str, str] | None,
    words: Mapping[str, str] | None,
) -> ImportPlan:
    file = _parquet(path)
    schema = file.schema_arrow
    first = next(file.iter_batches(_SAMPLE_ROWS), None) or pa.RecordBatch.from_pylist([], schema)
    samples: list[Sequence[str | None]] = []
    types: list[AttributeType | None] = []
    for place in range(len(schema.names)):
        kind = schema.field(place).type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        samples.append(texts_of(first.column(place)).to_pylist())
        types.append(AttributeType.STRING if text else typed_attribute(kind))
    return planned(
        schema.names, samples, declared, mapping, True, types, file_name=path.name, words=words
    )


def _parquet_blocks(path: Path, batch_rows: int) -> Iterator[tuple[list[pa.Array], Rows, int]]:
    size, file = path.stat().st_size, _parquet(path)
    total, done = file.metadata.num_rows, 0
    batches = file.iter_batches(batch_rows)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidRequest(
                f"the Parquet file is damaged: {error!s:.200}",
                path="file",
                expected="the whole file; the rows before the damage were read",
            ) from None
        if batch is None:
            return
        lines = list(range(done + 1, done + batch.num_rows + 1))
        done += batch.num_rows
        yield batch.columns, Rows([], lines, []), size * done // max(total, 1)


# -- both ----------------------------------------------------------------------------------------


def _regrouped(
    blocks: Iterator[tuple[list[pa.Array], Rows, int]], batch_rows: int
) -> Iterator[tuple[list[pa.Array], list[int], list[Reject], int]]:
    """Blocks of any size as batches of ``batch_rows``, the last of what remains."""
    parts: list[list[pa.Array]] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    position = 0
    damage: InvalidRequest | None = None
    while True:
        try:
            columns, found, position = next(blocks)
        except StopIteration:
            break
        except InvalidRequest as error:
            damage = error  # what came before it is good
            break
        parts.append(columns)
        lines += found.lines
        rejects += found.rejects
        while len(lines) >= batch_rows:
            joined = [pa.concat_arrays(column) for column in zip(*parts, strict=True)]
            yield [c.slice(0, batch_rows) for c in joined], lines[:batch_rows], rejects, position
            parts = [[c.slice(batch_rows) for c in joined]]
            lines, rejects = lines[batch_rows:], []
    if lines or rejects:
        joined = [pa.concat_arrays(column) for column in zip(*parts, strict=True)]
        yield joined, lines, rejects, position
    if damage is not None:
        raise damage


def _guarded(text: str) -> str:
    return f"'{text}" if pc.match_substring_regex(pa.scalar(text), GUARDED).as_py() else text


def _as_text(batch: pa.Table) -> pa.Table:
    """The columns as CSV shows them."""
    columns = {}
    for name, column in zip(batch.column_names, batch.columns, strict=True):
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            risky = pc.match_substring_regex(column, GUARDED)
            marked = pc.binary_join_element_wise("'", column, "")
            column = pc.if_else(risky, marked, column)
        elif pa.types.is_timestamp(kind):
            column = pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            column = pa.array([_json(items) for items in column.to_pylist()], pa.string())
        columns[name] = column
    return pa.table(columns)


def _json(items: list[Any] | None) -> str | None:
    return None if items is None else json.dumps(items, ensure_ascii=False)


def size_of(path: Path) -> int:
    """The bytes of the file, to which ``Batch.bytes_read`` counts up."""
    return path.stat().st_size
