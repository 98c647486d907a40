"""Clicks that lead to the workspace's own sites take a visit's token along
(``manta.ingestion.visits``).

The hosts of the sites and the signing keys are read beside the requests, at most every
``REFRESH_S``: a redirect waits for nobody, and goes without a token where they are not known yet.
"""

from __future__ import annotations

import asyncio
import logging

from actors.handles import Handles
from manta.content.tokens import Keyring, Payload
from manta.errors import MantaError
from manta.ids import NOBODY
from manta.ingestion.sources import SITES
from manta.ingestion.visits import is_of, tagged, visit_token
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.links import LinkKeys

REFRESH_S = 30.0
logger = logging.getLogger("manta.http")


class Visits:
    """What a replica that redirects knows of the sites."""

    def __init__(self, handles: Handles, keys: LinkKeys) -> None:
        self._catalog = handles.catalog
        self._clock = handles.clock
        self._keys = keys
        self._hosts: frozenset[str] = frozenset()
        self._keyring: Keyring | None = None
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def target(self, said: Payload) -> str:
        """Where a click leads: its URL, to a site with a token behind it."""
        if self._clock.monotonic() - self._asked_at >= REFRESH_S and self._asking is None:
            self._asked_at = self._clock.monotonic()
            self._asking = asyncio.get_running_loop().create_task(self.refresh())
        if (
            self._keyring is None
            or said.subscriber_id == NOBODY
            or not is_of(said.url, self._hosts)
        ):
            return said.url
        token = visit_token(self._keyring, said.ref, said.campaign_id, said.link, self._clock.now())
        return tagged(said.url, token)

    async def refresh(self) -> None:
        """Read the sites and the keys once more; where that fails, what is known stays."""
        try:
            sites = await self._catalog.call("list", SITES, deadline_s=CALL_DEADLINE_S)
            self._hosts = frozenset(host for site in sites or () for host in site["hosts"])
            if self._hosts:
                self._keyring = await self._keys.current()
        except MantaError as error:
            logger.warning("the sites could not be read: %s", error)
        finally:
            self._asking = None
