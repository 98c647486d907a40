"""Cursor pages: ``{"items": […], "next": "…" | null}``.

A cursor is an opaque text that says where the next page begins. It is not secret and not signed: it
holds only a position in an order (ids, shard numbers, an address), is checked for kind, length and
types before use, and reaches SQL as bound values alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from manta.errors import InvalidRequest

CURSOR_LENGTH_MAX = 4_000


def write_cursor(kind: str, position: Sequence[int | str]) -> str:
    """A cursor for pages of this kind of list."""
    raw = json.dumps([kind, *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def read_cursor(kind: str, text: str, types: Sequence[type]) -> list[Any]:
    """The position in a cursor of this kind. Raises ``InvalidRequest`` for anything else."""
    wrong = InvalidRequest(
        "this cursor was not given out by this list",
        path="cursor",
        expected="the `next` of an earlier page, or nothing",
    )
    if len(text) > CURSOR_LENGTH_MAX:
        raise wrong
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        values = json.loads(raw)
    except (binascii.Error, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(values, list) or len(values) != len(types) + 1 or values[0] != kind:
        raise wrong
    for value, expected in zip(values[1:], types, strict=True):
        if type(value) is not expected or (expected is int and not -(1 << 63) <= value < 1 << 63):
            raise wrong
    return values[1:]


def page(items: Sequence[Any], next_cursor: str | None) -> dict[str, Any]:
    return {"items": list(items), "next": next_cursor}
