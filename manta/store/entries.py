"""The body of one journal entry of a shard: all that one group of commands changed.

Layout: ``MSG1``, then the zstd-compressed payload with its raw size before it. The payload is a
directory (JSON with its length before it) and the Arrow IPC streams of the changes in order; the
directory names table, operation and length of each and holds the hashed keys of the commands.
The journal itself guards the body with a checksum; here only what we wrote can be met, and
anything else is ``Damaged``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from manta.command import Change, Op
from manta.errors import Damaged, IncompatibleFormat

_MAGIC = b"MSG1"
_SIZES = struct.Struct("<Q")
_CODEC = "zstd"


@dataclass(frozen=True)
class Group:
    """What one group of commands changed, when, and under which keys (64-bit hashes)."""

    at: datetime
    keys: tuple[int, ...]
    changes: tuple[Change, ...]


def encode_group(group: Group) -> bytes:
    streams = [_to_ipc(change.rows) for change in group.changes]
    directory = json.dumps(
        {
            "at": group.at.isoformat(),
            "keys": list(group.keys),
            "changes": [
                [change.table, change.op.value, stream.size]
                for change, stream in zip(group.changes, streams, strict=True)
            ],
        },
        separators=(",", ":"),
    ).encode()
    payload = b"".join([_SIZES.pack(len(directory)), directory, *streams])
    compressed = pa.Codec(_CODEC, compression_level=1).compress(payload, asbytes=True)
    return b"".join([_MAGIC, _SIZES.pack(len(payload)), compressed])


def decode_group(body: bytes, name: str) -> Group:
    """The group of a body; ``name`` is the entry's, for the error."""
    if body[:3] != _MAGIC[:3]:
        raise Damaged(f"{name} is not a group of changes", object=name)
    if body[:4] != _MAGIC:
        raise IncompatibleFormat(
            f"{name} has format {body[:4]!r}; this release reads {_MAGIC!r}", object=name
        )
    try:
        (size,) = _SIZES.unpack_from(body, 4)
        payload = pa.Codec(_CODEC).decompress(body[12:], decompressed_size=size, asbytes=True)
        (length,) = _SIZES.unpack_from(payload, 0)
        directory = json.loads(payload[8 : 8 + length])
        changes, offset = [], 8 + length
        for table, op, stream_size in directory["changes"]:
            rows = _from_ipc(payload[offset : offset + stream_size])
            changes.append(Change(table, Op(op), rows))
            offset += stream_size
        at = datetime.fromisoformat(directory["at"])
        return Group(at, tuple(directory["keys"]), tuple(changes))
    except (ValueError, KeyError, TypeError, struct.error, OSError, pa.ArrowException) as error:
        raise Damaged(f"{name} cannot be read: {str(error)[:200]}", object=name) from error


def gather(changes: Sequence[Change]) -> list[Change]:
    """The changes with all inserts of a table joined: their order among others is no matter."""
    inserts: dict[str, list[pa.Table]] = {}
    others: list[Change] = []
    for change in changes:
        if change.op is Op.INSERT:
            inserts.setdefault(change.table, []).append(change.rows)
        else:
            others.append(change)
    joined = [
        Change(table, Op.INSERT, pa.concat_tables(rows, promote_options="default"))
        for table, rows in inserts.items()
    ]
    return others + joined


def _to_ipc(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return sink.getvalue()


def _from_ipc(stream: bytes) -> pa.Table:
    with pa.ipc.open_stream(stream) as reader:
        return reader.read_all()
