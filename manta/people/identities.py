"""Identities: the names by which a person is known, in the form in which they are compared.

A person may be named by ``email``, ``external_id`` (the customer's own number), ``phone`` or
``anonymous_id``. Two identities are the same when their *compared forms* are equal:

- ``email``: every character lower-cased by itself (Unicode simple case mapping). ``RFC 5321`` §2.4
  lets a host treat ``Ann@`` and ``ann@`` as two mailboxes; none of size does, and a person who
  types both is one person. The address that mails go to keeps its own case. DuckDB's ``lower``
  is the same function, so SQL compares an address with ``lower(email)``; a test holds them equal
  over all of Unicode.
- the others: as they are, without spaces around.

``identities.value`` and ``suppressions.address`` hold compared forms; buckets are their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manta.ids import bucket_of_identity, buckets_of_identities

EMAIL = "email"
EXTERNAL_ID = "external_id"
PHONE = "phone"
ANONYMOUS_ID = "anonymous_id"
KINDS = (EMAIL, EXTERNAL_ID, PHONE, ANONYMOUS_ID)
VALUE_LENGTH_MAX = 320  # an address has 64 + 1 + 255 at most; other names need not be longer

CONFIRMED = "confirmed"
PENDING = "pending"

# The one character whose lower case Python writes as two and everybody else as one.
_SINGLE_LOWER = {0x130: "i"}


def compared(kind: str, value: str) -> str:
    """The form in which an identity is stored, hashed and compared."""
    if kind != EMAIL:
        return value.strip()
    if value.isascii():
        return value.lower()
    return "".join(_SINGLE_LOWER.get(ord(char), char.lower()) for char in value)


def compared_each(kind: str, values: pa.Array) -> pa.Array:
    """``compared`` of a column; nulls stay null."""
    if kind != EMAIL:
        return pc.utf8_trim_whitespace(values)
    if pc.all(pc.string_is_ascii(values)).as_py() is not False:
        return pc.ascii_lower(values)
    return pa.array(
        [None if text is None else compared(kind, text) for text in values.to_pylist()],
        pa.string(),
    )


def bucket_of(kind: str, value: str) -> int:
    """The bucket in which this identity is claimed, whatever case it came in."""
    return bucket_of_identity(kind, compared(kind, value))


def shards_of_buckets(
    buckets: npt.NDArray[np.int64], first_buckets: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The owner of each bucket: ``manta.ids.shard_of_bucket`` for a column."""
    return np.searchsorted(np.asarray(first_buckets), buckets, side="right") - 1


def buckets_of_rows(rows: pa.Table) -> npt.NDArray[np.int64]:
    """The bucket that decides over each row: of its address, else of its external id, else of its
    anonymous id. At least one of them is in each row.
    """
    buckets = np.zeros(rows.num_rows, np.int64)
    missing = np.ones(rows.num_rows, bool)
    for kind in (EMAIL, EXTERNAL_ID, ANONYMOUS_ID):
        if kind not in rows.column_names or not missing.any():
            continue
        column = rows[kind].combine_chunks()
        given = missing & column.is_valid().to_numpy(zero_copy_only=False)
        values = compared_each(kind, column.filter(pa.array(given)))
        buckets[given] = buckets_of_identities(kind, values.to_pylist())
        missing &= ~given
    if missing.any():
        raise ValueError("a row without email, external_id and anonymous_id has no shard")
    return buckets


def route(rows: pa.Table, first_buckets: Sequence[int]) -> dict[int, pa.Table]:
    """The rows of each shard, in their order; ``first_buckets`` as in ``manta.ids``."""
    if rows.num_rows == 0:
        return {}
    shards = shards_of_buckets(buckets_of_rows(rows), first_buckets)
    if len(first_buckets) == 1:
        return {0: rows}
    return {
        int(shard): rows.filter(pa.array(shards == shard)) for shard in np.unique(shards).tolist()
    }
