"""A search through everything under a storage root that unpacks what is packed.

Parquet and Arrow become tables, gzip and zstd are opened, JSON is read as JSON, our journal entries
as what they are; and every file is looked through as raw bytes too. A number is looked for in every
column of integers, in texts as decimal and base32, and in raw bytes in both byte orders.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from manta.ids import encode_id
from manta.store.entries import decode_group

DEPTH_MAX = 4
_ENTRY = struct.Struct(">4sHBBQQ16sQ")


@dataclass
class Search:
    """``needles``: name → a text or a subscriber id. ``found``: name → the files it is in."""

    needles: Mapping[str, str | int]
    found: dict[str, set[str]] = field(default_factory=dict)

    def run(self, root: Path, *, without: Iterable[str] = ()) -> dict[str, set[str]]:
        self.found = {name: set() for name in self.needles}
        for path in sorted(root.rglob("*")):
            relative = str(path.relative_to(root))
            if path.is_file() and not any(part in relative for part in without):
                self._bytes(path.read_bytes(), relative, 0)
        return self.found

    def _hit(self, name: str, where: str) -> None:
        self.found[name].add(where)

    def _bytes(self, data: bytes, where: str, depth: int) -> None:
        lowered = data.lower()
        for name, needle in self.needles.items():
            if any(form in lowered for form in _raw_forms(needle)):
                self._hit(name, where)
        if depth < DEPTH_MAX:
            for inner in _unpacked(data, where):
                if isinstance(inner, pa.Table):
                    self._table(inner, where, depth)
                else:
                    self._bytes(inner, where, depth + 1)

    def _table(self, table: pa.Table, where: str, depth: int) -> None:
        for column in table.columns:
            values: Any = column.combine_chunks()
            if isinstance(values, pa.ChunkedArray):
                values = pa.concat_arrays(values.chunks) if values.num_chunks else None
            while values is not None and pa.types.is_list(values.type):
                values = pc.list_flatten(values)
            if values is None or len(values) == 0:
                continue
            if pa.types.is_integer(values.type):
                numbers = set(values.drop_null().to_pylist())
                for name, needle in self.needles.items():
                    if isinstance(needle, int) and needle in numbers:
                        self._hit(name, where)
            elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                text = "\0".join(t for t in values.to_pylist() if t is not None)
                self._bytes(text.encode(), where, DEPTH_MAX)
            elif pa.types.is_binary(values.type):
                for item in values.drop_null().to_pylist():
                    self._bytes(item, where, depth + 1)


def _raw_forms(needle: str | int) -> list[bytes]:
    if isinstance(needle, int):
        numbers = [struct.pack("<q", needle).lower(), struct.pack(">q", needle).lower()]
        return [*numbers, str(needle).encode(), encode_id(needle).encode()]
    text = needle.lower()
    forms = {text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")}
    return sorted(forms)


def _unpacked(data: bytes, where: str) -> Iterator[bytes | pa.Table]:
    if data[:4] == b"PAR1":
        yield pq.read_table(BytesIO(data))
    elif data[:6] == b"ARROW1":
        yield pyarrow.ipc.open_file(BytesIO(data)).read_all()
    elif data[:4] == b"\xff\xff\xff\xff":
        yield pyarrow.ipc.open_stream(BytesIO(data)).read_all()
    elif data[:2] == b"\x1f\x8b":
        try:
            yield gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        yield pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    elif data[:4] == b"MNTJ":
        owner = data[7]
        yield data[_ENTRY.size + owner + 16 :]
    elif data[:4] == b"MSG1":
        group = decode_group(data, where)
        for change in group.changes:
            yield change.rows
        yield json.dumps(group.keys).encode()
    elif data[:1] in b"{[" and data[:1]:
        try:
            yield json.dumps(json.loads(data), ensure_ascii=False).encode()
        except ValueError:
            return
