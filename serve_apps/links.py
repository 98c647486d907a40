"""The keys by which a replica verifies the links in mails, kept up to date from the Catalog.

Keys are asked for at the start, every ``REFRESH_S``, and when a token fails to verify (it may be
signed by a key that is newer than our list) but then at most every ``RECHECK_S``, so that forgers
cannot have the Catalog work for them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from actors.handles import Singleton
from manta.clock import Clock
from manta.content.tokens import Keyring, Payload, TokenKind, keyring_of
from manta.errors import InvalidRequest, MantaError, NotFound
from serve_apps.limits import CALL_DEADLINE_S

REFRESH_S = 60.0
RECHECK_S = 5.0
logger = logging.getLogger("manta.http")


class LinkKeys:
    """Verifies the tokens of one workspace."""

    def __init__(self, catalog: Singleton, workspace: str, clock: Clock) -> None:
        self._catalog = catalog
        self._workspace = workspace
        self._clock = clock
        self._keyring: Keyring | None = None
        self._documents: list[dict[str, Any]] = []  # what it was made of
        self._asked_at = float("-inf")

    async def verify(self, token: str, kind: TokenKind) -> Payload:
        """What the token says. Raises ``NotFound`` where it is not ours or of another kind."""
        keyring = self._keyring or await self.refresh()
        try:
            return keyring.verify(token, self._clock.now(), kind)
        except InvalidRequest:
            pass
        if self._clock.monotonic() - self._asked_at >= RECHECK_S:
            try:
                return (await self.refresh()).verify(token, self._clock.now(), kind)
            except InvalidRequest:
                pass
        raise NotFound("this link is not valid", path="token")

    async def current(self) -> Keyring:
        """The keys, for who also signs; at most ``REFRESH_S`` old."""
        if self._keyring is None or self._clock.monotonic() - self._asked_at >= REFRESH_S:
            try:
                return await self.refresh()
            except MantaError:
                if self._keyring is None:
                    raise
        return self._keyring

    async def refresh(self) -> Keyring:
        """Ask the Catalog for the keys."""
        self._asked_at = self._clock.monotonic()
        documents = await self._catalog.call("token_keys", deadline_s=CALL_DEADLINE_S)
        if self._keyring is None or documents != self._documents:
            self._documents = documents
            self._keyring = keyring_of(documents, self._workspace)
        return self._keyring

    async def keep_fresh(self) -> None:
        """Ask again for ever; a Catalog that does not answer leaves the keys as they are."""
        while True:
            try:
                await self.refresh()
            except MantaError as error:
                logger.warning("the signing keys could not be read: %s", error)
            await asyncio.sleep(REFRESH_S)
