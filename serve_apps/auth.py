"""Who calls: API keys with scopes, looked up in the Catalog.

A key is ``manta_<workspace>_<id>_<secret>``; the Catalog holds only the hash of its secret. A
replica remembers a key's document for ``KEEP_S``, so a revoked key works for at most that long.
Unknown ids are remembered too, else a guesser would have the Catalog work for each guess.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from actors.handles import Singleton
from manta.clock import Clock
from manta.definitions import api_key_matches, split_api_key
from manta.errors import Forbidden, InvalidRequest
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.problems import Unauthorized

KEEP_S = 5.0
KEEP_MAX = 1_000


@dataclass(frozen=True)
class Caller:
    """The holder of a key, as far as the apps care."""

    key_id: str
    name: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raises ``Forbidden`` where the key lacks the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"this key lacks the scope {scope}", scope=scope)


class Authenticator:
    """Checks keys of one workspace."""

    def __init__(self, catalog: Singleton, workspace: str, clock: Clock) -> None:
        self._catalog = catalog
        self._workspace = workspace
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, dict[str, Any] | None]] = OrderedDict()

    async def bearer(self, header: str | None) -> Caller:
        """The caller of an ``Authorization`` header (RFC 6750 §2.1)."""
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("this request carries no API key")
        return await self.key(token.strip())

    async def key(self, text: str) -> Caller:
        """The caller who holds this key. Raises ``Unauthorized`` and never says what was wrong."""
        refused = Unauthorized("this API key is unknown, revoked or expired")
        try:
            workspace, id, secret = split_api_key(text)
        except InvalidRequest:
            raise refused from None
        if workspace != self._workspace:
            raise refused
        document = await self._document(id)
        if document is None or not api_key_matches(document, secret, self._clock.now()):
            raise refused
        return Caller(id, document["name"], frozenset(document["scopes"]))

    async def _document(self, id: str) -> dict[str, Any] | None:
        now = self._clock.monotonic()
        kept = self._kept.get(id)
        if kept is not None and kept[0] > now:
            return kept[1]
        document = await self._catalog.call("get", "api_keys", id, deadline_s=CALL_DEADLINE_S)
        self._kept[id] = (now + KEEP_S, document)
        self._kept.move_to_end(id)
        while len(self._kept) > KEEP_MAX:
            self._kept.popitem(last=False)
        return document
