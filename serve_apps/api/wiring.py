"""What every route of the API shares: ports, the caller's scope, idempotency keys, ids, pages."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request

from actors.handles import Handles
from manta.errors import InvalidRequest, NotFound
from manta.ids import decode_id
from serve_apps.auth import Caller
from serve_apps.limits import PAGE_ROWS, PAGE_ROWS_MAX

KEY_LENGTH_MAX = 200
NUMBER_MAX = (1 << 31) - 1


def get_handles(request: Request) -> Handles:
    handles: Handles = request.app.state.handles
    return handles


Ports = Annotated[Handles, Depends(get_handles)]


def needs(scope: str) -> Any:
    """A dependency: the caller, whose key has this scope."""

    async def caller(request: Request) -> Caller:
        found = await request.app.state.authenticator.bearer(request.headers.get("authorization"))
        found.require(scope)
        request.state.caller = found
        checked: Caller = found
        return checked

    caller.scope = scope  # type: ignore[attr-defined]  # read by the reference page
    return Depends(caller)


def idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            max_length=KEY_LENGTH_MAX,
            description="Your name for this change. Sending it again within 48 hours, as a retry "
            "does, changes nothing a second time.",
        ),
    ] = None,
) -> str | None:
    """The command's key: the client's own, apart from those of other clients and other routes."""
    if key is None:
        return None
    if not key.isascii() or not key.isprintable() or not key.strip():
        raise InvalidRequest(
            "this is not an idempotency key",
            path="Idempotency-Key",
            expected=f"1 to {KEY_LENGTH_MAX} printable ASCII characters",
        )
    caller: Caller = request.state.caller
    return f"http:{caller.key_id}:{request.method}:{request.url.path}:{key}"


Key = Annotated[str | None, Depends(idempotency_key)]
Number = Annotated[int, Path(ge=1, le=NUMBER_MAX)]
Limit = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX, description="Rows of one page.")]
LIMIT = PAGE_ROWS
Cursor = Annotated[
    str | None, Query(description="`next` of the page before; nothing for the first.")
]


def _subscriber_id(
    subscriber_id: Annotated[str, Path(description="13 characters, from an earlier answer.")],
) -> int:
    try:
        return decode_id(subscriber_id)
    except ValueError:
        raise NotFound(
            f"{subscriber_id!r:.40} is not the id of a subscriber", path="subscriber_id"
        ) from None


SubscriberId = Annotated[int, Depends(_subscriber_id)]
