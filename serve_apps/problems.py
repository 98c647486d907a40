"""Problem answers: every refusal of every app is one RFC 9457 document.

One table maps the codes of ``manta.errors`` (and the few that only HTTP knows) to a status and a
title. A retryable fault always says after how long to retry. Faults that speak of our insides
(damage, bugs) keep their details to themselves; the log has them under the request id.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manta.errors import InvalidRequest, MantaError, RetryableError

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
REFERENCE = "/v1/docs#problem-"

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """What a code means to a client: the status, a title, and what to do about it."""

    status: int
    title: str
    remedy: str


_RETRY = "Send the same request with the same Idempotency-Key again after Retry-After seconds."
_OURS = "This is a fault on our side. Report the X-Request-ID of the answer."

KINDS: Mapping[str, Kind] = {
    "invalid": Kind(422, "The request is not valid", "Change what `path` names to `expected`."),
    "malformed": Kind(400, "The request cannot be read", "Send well-formed JSON in UTF-8."),
    "unauthorized": Kind(401, "No valid API key", "Send `Authorization: Bearer manta_…`."),
    "forbidden": Kind(403, "The key lacks a scope", "Use a key with the scope in `scope`."),
    "not_found": Kind(404, "There is no such thing", "Check the address and the id in it."),
    "method": Kind(405, "This method is not offered here", "Use a method that `Allow` names."),
    "conflict": Kind(409, "The present state forbids it", "Read the state and decide again."),
    "too_large": Kind(413, "The body is too large", "Split the request into smaller ones."),
    "media_type": Kind(415, "This media type is not read here", "Send `application/json`."),
    "too_many": Kind(429, "Too many requests", _RETRY),
    "not_ready": Kind(503, "The owner of this data is starting", _RETRY),
    "overloaded": Kind(503, "A queue is full", _RETRY),
    "store_unavailable": Kind(503, "The store does not answer", _RETRY),
    "outcome_unknown": Kind(503, "It is not known whether this was stored", _RETRY),
    "retry": Kind(503, "Not now", _RETRY),
    "fenced": Kind(503, "The owner of this data has just changed", _RETRY),
    "damaged": Kind(500, "Stored data is damaged", _OURS),
    "incompatible_format": Kind(500, "Stored data has another format", _OURS),
    "error": Kind(500, "Something went wrong", _OURS),
}
_SECRET = frozenset(("damaged", "incompatible_format", "error"))


class Unauthorized(MantaError):
    """No key, or one that is unknown, revoked or expired."""

    code = "unauthorized"


class TooLarge(MantaError):
    code = "too_large"


class TooMany(RetryableError):
    """What is done for one at a time is being done for another."""

    code = "too_many"


class Malformed(InvalidRequest):
    code = "malformed"


def problem(code: str, detail: str, **members: Any) -> dict[str, Any]:
    """The document of RFC 9457 §3; members that are empty are left out."""
    kind = KINDS.get(code, KINDS["error"])
    extra = {name: value for name, value in members.items() if value not in (None, "", [], {})}
    return {
        "type": REFERENCE + code,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "code": code,
        **extra,
    }


def of_error(error: BaseException) -> tuple[dict[str, Any], dict[str, str]]:
    """The document and the headers for a fault."""
    if not isinstance(error, MantaError) or error.code in _SECRET:
        code = error.code if isinstance(error, MantaError) else "error"
        return problem(code, KINDS[code].remedy), {}
    headers: dict[str, str] = {}
    if isinstance(error, RetryableError) or error.code in ("fenced", "too_many"):
        headers["Retry-After"] = str(error.details.get("retry_after_s", RETRY_AFTER_S))
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = 'Bearer realm="manta"'
    return problem(error.code, error.message, **_plain(error.details)), headers


def of_errors(errors: Sequence[InvalidRequest]) -> dict[str, Any]:
    """One document for several faults of one request, each with its own path."""
    first, listed = errors[0], [as_item(error) for error in errors]
    return problem(first.code, first.message, **_plain(first.details), errors=listed)


def as_item(error: MantaError) -> dict[str, Any]:
    """A fault as a member of a list, for batches whose items fail alone."""
    if error.code in _SECRET:
        return {"code": error.code, "message": KINDS[error.code].remedy}
    return {"code": error.code, "message": error.message, **_plain(error.details)}


def encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


async def send_problem(
    send: Send, document: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    """Answer a plain ASGI request with a problem."""
    body = encode(document)
    listed = [
        (b"content-type", CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items()),
    ]
    await send({"type": "http.response.start", "status": document["status"], "headers": listed})
    await send({"type": "http.response.body", "body": body})


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """Details as JSON members that cannot shadow the standard ones."""
    reserved = ("type", "title", "status", "detail", "instance", "code", "errors")
    return {k: _json(v) for k, v in details.items() if k not in reserved and v not in ("", None)}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(v) for v in value]
    return str(value)
