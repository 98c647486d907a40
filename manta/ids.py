"""Identifiers, and how a person finds a shard.

A subscriber id is a positive 63-bit integer: 16 bits of **bucket** (the hash of the first identity
seen) above 47 random bits. Shards own ranges of the 65,536 buckets, so an id alone finds its shard,
through any later move of ranges. A message is named by ``(subscriber_id, message_key)``, where the
key is a hash of what is sent (campaign or journey node, occurrence): the same mail to the same
person always has the same name, and its name finds the person's shard.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BUCKETS = 1 << 16
_RANDOM_BITS = 47
NOBODY = 0  # no person has this id: what happens to "nobody" concerns and counts for nobody
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32: no i, l, o, u
_VALUES = {c: i for i, c in enumerate(_ALPHABET)}
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_SHIFTS = range(50, -1, -10)


class MessageRef(NamedTuple):
    """The name of one message to one person."""

    subscriber_id: int
    message_key: int


def hash64(*parts: str | int | bytes) -> int:
    """A stable signed 64-bit hash of the parts; their boundaries count."""
    framed = b"".join([_framed(part) for part in parts])
    return int.from_bytes(blake2b(framed, digest_size=8).digest(), "big", signed=True)


def hash64_each(values: Iterable[str], *parts: str | int | bytes) -> npt.NDArray[np.int64]:
    """``hash64(*parts, value)`` of every value, at under a microsecond each."""
    head = b"".join(_framed(part) for part in parts)
    digests = bytearray()
    for value in values:
        raw = value.encode()
        framed = head + struct.pack(">I", len(raw)) + raw
        digests += blake2b(framed, digest_size=8).digest()
    return np.frombuffer(digests, dtype=">i8").astype(np.int64)


def _framed(part: str | int | bytes) -> bytes:
    raw = part if isinstance(part, bytes) else str(part).encode()
    return struct.pack(">I", len(raw)) + raw


def buckets_of_identities(kind: str, values: Iterable[str]) -> npt.NDArray[np.int64]:
    """``bucket_of_identity`` of many values of one kind."""
    return hash64_each(values, "identity", kind) & (BUCKETS - 1)


def bucket_of_identity(kind: str, value: str) -> int:
    """The bucket (0 to 65,535) in which an identity is claimed."""
    return hash64("identity", kind, value) & (BUCKETS - 1)


def mint_subscriber_id(bucket: int, random: Random) -> int:
    """A new id in the bucket. The owner checks that it is not taken and draws again if it is."""
    return bucket << _RANDOM_BITS | random.getrandbits(_RANDOM_BITS)


def bucket_of_subscriber(subscriber_id: int) -> int:
    return subscriber_id >> _RANDOM_BITS


def shard_of_bucket(bucket: int, first_buckets: Sequence[int]) -> int:
    """The shard that owns a bucket; ``first_buckets[i]`` is where shard *i*'s range begins."""
    return bisect_right(first_buckets, bucket) - 1


def even_ranges(shards: int) -> list[int]:
    """The first bucket of each of ``shards`` equal ranges."""
    return [BUCKETS * i // shards for i in range(shards)]


def campaign_message_key(campaign_id: int, occurrence: int = 0) -> int:
    """The message key of a campaign: occurrence is 0 for a one-off (design §3, idempotency)."""
    return hash64("campaign", campaign_id, occurrence)


def encode_id(number: int) -> str:
    """13 lower-case base32 characters for a signed 64-bit integer."""
    rest = number & 0xFFFF_FFFF_FFFF_FFFF
    return _ALPHABET[rest >> 60] + "".join([_PAIRS[rest >> shift & 1023] for shift in _SHIFTS])


def decode_id(text: str) -> int:
    """The integer of ``encode_id``. Raises ``ValueError`` for anything else."""
    if len(text) != 13 or any(c not in _VALUES for c in text):
        raise ValueError(f"not an id: {text!r:.40} (13 characters of {_ALPHABET})")
    value = 0
    for char in text:
        value = value << 5 | _VALUES[char]
    if value >> 64:
        raise ValueError(f"not an id: {text!r} is too large")
    return value - (1 << 64) if value >> 63 else value
