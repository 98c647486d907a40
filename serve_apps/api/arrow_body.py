"""An Arrow IPC stream from a stranger as a table that is safe to work on.

Arrow's reader trusts a stream in ways that a stranger could use: compressed buffers may grow a
thousandfold, dictionaries may be replaced, columns may share the same bytes, offsets may point
anywhere. So compression and dictionaries are refused by the messages' own headers before a body is
unpacked, the number of rows is bounded, then every buffer is validated in full, and the bytes of
all columns together must not be more than the body had.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from manta.errors import InvalidRequest
from serve_apps.problems import Malformed

MESSAGES_MAX = 64
_EXPECTED = "an Arrow IPC stream: a schema, then record batches without compression"
# Places of fields in the tables of Arrow's format/Message.fbs.
_HEADER, _LENGTH, _COMPRESSION = 2, 0, 3


def read_table(body: bytes, rows_max: int) -> pa.Table:
    """The table in a body. Raises ``Malformed`` or ``InvalidRequest``."""
    try:
        table = _read(body, rows_max)
    except (pa.ArrowException, struct.error, LookupError, OSError, EOFError, ValueError) as error:
        raise _malformed(f"{error!s:.160}") from None
    if table.num_rows == 0:
        raise InvalidRequest("the body has no rows", path="", expected=f"1 to {rows_max:,} rows")
    return table


def _read(body: bytes, rows_max: int) -> pa.Table:
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    first = next(iter(reader), None)
    if first is None or first.type != "schema":
        raise _malformed(f"it begins with {'nothing' if first is None else first.type}")
    schema = pa.ipc.read_schema(first)
    batches: list[pa.RecordBatch] = []
    rows = 0
    for message in reader:
        if message.type != "record batch" or len(batches) >= MESSAGES_MAX:
            raise _malformed(f"it has a {message.type} in place {len(batches) + 1}")
        rows += _checked_rows(bytes(message.metadata))
        if rows > rows_max:
            raise InvalidRequest(
                f"the body has more than {rows_max:,} rows", path="", expected="several requests"
            )
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        batches.append(batch)
    table = pa.Table.from_batches(batches, schema)
    if table.nbytes > len(body):
        raise _malformed("its columns share their bytes")
    return table


def _checked_rows(metadata: bytes) -> int:
    """The rows that a record batch claims, from its header; refuses compressed bodies."""
    batch = _field(metadata, struct.unpack_from("<I", metadata, 0)[0], _HEADER)
    assert batch is not None, "Arrow has verified the message"
    batch += struct.unpack_from("<I", metadata, batch)[0]
    if _field(metadata, batch, _COMPRESSION) is not None:
        raise _malformed("it is compressed")
    length = _field(metadata, batch, _LENGTH)
    return 0 if length is None else int(struct.unpack_from("<q", metadata, length)[0])


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """Where a field of a FlatBuffers table lies; ``None`` where it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if vtable < 0:
        raise IndexError("a table points outside")
    size = struct.unpack_from("<H", buffer, vtable)[0]
    slot = 4 + 2 * number
    if slot + 2 > size:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + slot)[0]
    return table + offset if offset else None


def _malformed(reason: str) -> Malformed:
    return Malformed(f"the body cannot be read: {reason}", path="", expected=_EXPECTED)
