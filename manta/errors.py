"""Faults, grouped by what the caller has to do about them.

Expected outcomes (delivered, deferred, suppressed, repeated) are values and never appear here.
Every error carries a ``code`` for machines and a sentence for people: what was wrong, where, and
what would be right. All of them survive pickling, since they travel between processes as values.
"""

from __future__ import annotations

from typing import Any


class MantaError(Exception):
    """Base of all faults. ``details`` is JSON-ready and may be shown to the caller."""

    code = "error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[MantaError], message: str, details: dict[str, Any]) -> MantaError:
    return kind(message, **details)


# -- retry: the same call with the same key may succeed later --------------------------------------


class RetryableError(MantaError):
    """Nothing is known to have changed that a retry with the same key would not settle."""

    code = "retry"


class NotReady(RetryableError):
    """The owner is still recovering, or is on its way to another process."""

    code = "not_ready"


class Overloaded(RetryableError):
    """A bounded mailbox, queue or rate is full."""

    code = "overloaded"


class StoreUnavailable(RetryableError):
    """The storage root refused or did not answer; nothing was acknowledged."""

    code = "store_unavailable"


class OutcomeUnknown(RetryableError):
    """An append was neither confirmed nor refused in time: retry with the same key."""

    code = "outcome_unknown"


# -- fix the request ------------------------------------------------------------------------------


class InvalidRequest(MantaError):
    """The input is wrong. ``path`` says where, ``expected`` what would be valid."""

    code = "invalid"

    def __init__(self, message: str, *, path: str = "", expected: str = "", **details: Any) -> None:
        super().__init__(message, path=path, expected=expected, **details)
        self.path = path
        self.expected = expected


class NotFound(InvalidRequest):
    code = "not_found"


class Conflict(InvalidRequest):
    """The state forbids it: an illegal move, a name taken, a type already declared otherwise."""

    code = "conflict"


class Forbidden(MantaError):
    """The caller's key lacks the scope."""

    code = "forbidden"


# -- stop -----------------------------------------------------------------------------------------


class Fenced(MantaError):
    """Another owner has taken over: this process must stop at once."""

    code = "fenced"


# -- repair data ----------------------------------------------------------------------------------


class Damaged(MantaError):
    """A stored object is torn, truncated, altered or missing; ``details['object']`` names it."""

    code = "damaged"


class IncompatibleFormat(Damaged):
    """A stored object has a format version that this release cannot read."""

    code = "incompatible_format"
