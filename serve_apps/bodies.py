"""What all request bodies share: fields that are not known are refused, instants are RFC 3339."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from manta.clock import parse_instant
from manta.errors import InvalidRequest


class Body(BaseModel):
    """A request body: a field that is not known is refused, so that a typing error is found."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def instant(text: str | None, path: str) -> datetime | None:
    """A ``datetime`` from RFC 3339 text, or ``None``. Raises ``InvalidRequest``."""
    if text is None:
        return None
    try:
        return parse_instant(text)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{text!r:.60} is not an instant",
            path=path,
            expected="RFC 3339, for example 2027-01-31T09:00:00Z",
        ) from None
