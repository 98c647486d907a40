"""What a campaign's mails are made of, for Senders: one ``Composer`` per campaign, made once.

A campaign pins its template's version, so a composer never goes stale; only signing keys rotate,
and the ring is fetched again every ``KEYRING_S``; while the Catalog is away the last one goes on
signing. Composing is pure work without waiting: the
Sender decides when.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from manta.clock import Clock
from manta.content.composer import Composer, MailSettings
from manta.content.dkim import DkimSigner
from manta.content.templates import CompiledMail, MailTemplate
from manta.content.tokens import Keyring, keyring_of
from manta.definitions import TEMPLATE_FIELDS
from manta.delivery.domains.keys import signers_of
from manta.errors import MantaError

KEYRING_S = 600.0
CAMPAIGNS_MAX = 200
KEYRING_AGAIN_S = 30.0
logger = logging.getLogger("manta.actors")


class Calls(Protocol):
    """The Catalog and the Director as the Sender sees them (``actors.handles.Singleton``)."""

    async def call(self, method: str, *arguments: Any) -> Any: ...


class Composers:
    """Signs with the keys of the sending domains that are aligned with the From address.

    A campaign whose template cannot be had raises the error of whoever said so.
    """

    def __init__(
        self,
        catalog: Calls,
        director: Calls,
        clock: Clock,
        workspace: str,
        base_url: str,
        return_path_domain: str,
        *,
        has_inbox: bool = False,
    ) -> None:
        self._catalog = catalog
        self._director = director
        self._clock = clock
        self._workspace = workspace
        self._base_url = base_url
        self._return_path_domain = return_path_domain
        self._has_inbox = has_inbox
        self._composers: dict[int, Composer] = {}
        self._documents: dict[str, Any] = {}  # what keyring and signers were made of
        self._signers: list[DkimSigner] = []
        self._keyring: Keyring | None = None
        self._keyring_until_s = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def of_campaign(self, campaign_id: int) -> Composer:
        """The composer of a campaign."""
        self._look_for_keys()
        composer = self._composers.get(campaign_id)
        if composer is None:
            async with self._lock:
                if self._keyring is None:
                    await self._refresh_keyring()
                composer = self._composers.get(campaign_id) or await self._make(campaign_id)
        self._composers.pop(campaign_id, None)
        self._composers[campaign_id] = composer  # the last one used stands last
        while len(self._composers) > CAMPAIGNS_MAX:
            self._composers.pop(next(iter(self._composers)))
        return composer

    def _look_for_keys(self) -> None:
        """Ask for the keys from time to time; nobody waits for them where there are some."""
        is_asking = self._asking is not None and not self._asking.done()
        is_due = self._clock.monotonic() >= self._keyring_until_s
        if self._keyring is not None and is_due and not is_asking:
            self._asking = asyncio.ensure_future(self._refresh_quietly())

    async def _refresh_quietly(self) -> None:
        try:
            await self._refresh_keyring()
        except MantaError as error:
            logger.warning("the signing keys could not be read: %s", error)
            self._keyring_until_s = self._clock.monotonic() + KEYRING_AGAIN_S

    async def _refresh_keyring(self) -> None:
        documents = await self._catalog.call("sender_keys")
        if documents != self._documents:
            self._documents = documents
            self._keyring = keyring_of(documents["token_keys"], self._workspace)
            self._signers = signers_of(documents["signing_keys"])
            self._composers.clear()
        self._keyring_until_s = self._clock.monotonic() + KEYRING_S

    async def _make(self, campaign_id: int) -> Composer:
        campaign = await self._director.call("campaign", campaign_id)
        version = await self._catalog.call(
            "template_version", campaign["template_id"], campaign["template_version"]
        )
        texts = {name: version.get(name) or "" for name in TEMPLATE_FIELDS}
        mail = CompiledMail(MailTemplate.from_json(texts))
        settings = MailSettings(
            campaign_id,
            self._base_url,
            self._return_path_domain,
            kind=campaign["kind"],
            has_inbox=self._has_inbox,
        )
        assert self._keyring is not None
        return Composer(mail, settings, self._keyring, self._signers_for(mail.from_email))

    def _signers_for(self, from_email: str) -> list[DkimSigner]:
        """The keys whose domain is aligned with the From address (RFC 7489 §3.1.1, relaxed)."""
        domain = from_email.rpartition("@")[2].lower()
        return [
            signer
            for signer in self._signers
            if domain == signer.domain or domain.endswith(f".{signer.domain}")
        ]
