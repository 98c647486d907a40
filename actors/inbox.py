"""The inbox: bounces, complaints and unsubscribes by mail, taken over SMTP (RFC 5321).

It listens where the return path's domain points its MX. A mail is answered 250 only after the
shards that it concerns have committed what it says, 451 where that cannot be had in time; the
sending server then comes again, and nothing counts twice. **It owns no state:** a crash loses
nothing but mails that nobody was told were taken.

Which addresses there are and what a mail means is decided in ``returns.inbox``; what the
dialogue may cost, in ``actors.io.smtp_server``. A mail is read in a thread of its own, since
strangers choose its bytes; it is never stored and never logged, as mails are personal data.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from actors.io.smtp_server import Listener, ServerLimits
from manta.clock import Clock
from manta.command import Command
from manta.content.tokens import Keyring, keyring_of
from manta.delivery.returns.arrivals import Arrival, read
from manta.delivery.returns.commands import UnsubscribeByMail
from manta.delivery.returns.inbox import (
    MESSAGE_BYTES_MAX,
    Box,
    Meaning,
    box_of,
    digest_of,
    malformed,
    meaning_of,
)
from manta.delivery.returns.reporting import report
from manta.errors import InvalidRequest, MantaError
from manta.ids import MessageRef
from manta.people.over_shards import execute_for
from manta.settings import InboxSettings

KEYRING_S = 60.0
KEYRING_AGAIN_S = 5.0  # after an address that does not verify: its key may be new
COMMIT_DEADLINE_S = 20.0
READ_DEADLINE_S = 20.0
READERS = 2
STOPPING_S = 10.0

TAKEN = "250 2.0.0 taken"
LATER = "451 4.3.0 this could not be stored now, try again later"
logger = logging.getLogger("manta.inbox")


class Calls(Protocol):
    """The Catalog (``actors.handles.Singleton``)."""

    async def call(self, method: str, *arguments: Any, deadline_s: float = ...) -> Any: ...


class Shards(Protocol):
    """``actors.handles.Shards``."""

    def of_subscriber(self, subscriber_id: int) -> int: ...

    def of_identity(self, kind: str, value: str) -> int: ...

    async def execute(self, shard: int, command: Command, deadline_s: float = ...) -> Any: ...


def _examine(raw: bytes) -> tuple[str, Arrival | None]:
    """What a mail is, or the reply that refuses it. In a thread: it may be large."""
    refusal = malformed(raw)
    return (refusal, None) if refusal is not None else ("", read(raw))


def tls_context(settings: InboxSettings) -> ssl.SSLContext | None:
    """What offers STARTTLS, where the settings name a certificate."""
    if not settings.certificate_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.certificate_file, settings.private_key_file or None)
    return context


class Inbox:
    """One listener. ``domain`` is that of the return paths; ``tls`` offers STARTTLS."""

    def __init__(
        self,
        catalog: Calls,
        shards: Shards,
        clock: Clock,
        workspace: str,
        domain: str,
        settings: InboxSettings,
        tls: ssl.SSLContext | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self._catalog = catalog
        self._shards = shards
        self._clock = clock
        self._workspace = workspace
        self._domain = domain
        limits = limits or ServerLimits(message_bytes_max=MESSAGE_BYTES_MAX)
        self._listener = Listener(self, clock, settings.host, settings.port, domain, limits, tls)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="inbox")
        self._keyring: Keyring | None = None
        self._documents: list[dict[str, Any]] = []
        self._asked_at_s = float("-inf")
        self._asking: asyncio.Task[Keyring] | None = None
        self.counts: Counter[str] = Counter()

    async def start(self) -> None:
        """Listen. Raises ``OSError`` where the port is another's."""
        await self._listener.start()
        logger.info("mail for %s is taken on port %d", self._domain, self.port)

    async def stop(self) -> None:
        """Take no more connections, and end those that are there."""
        await self._listener.stop(STOPPING_S)
        self._readers.shutdown(wait=False, cancel_futures=True)

    @property
    def port(self) -> int:
        return self._listener.port

    async def status(self) -> dict[str, Any]:
        """What came in since the start, by what it was, and what was refused."""
        return {
            "role": "inbox",
            "port": self.port,
            "connections": self._listener.connections,
            "counts": dict(self.counts),
            "refused": dict(self._listener.refused),
        }

    # -- what the listener asks --------------------------------------------------------------------

    async def recipient(self, address: str) -> Box | str:
        """The box of a recipient, or the reply that refuses it."""
        try:
            keyring = await self._current()
            box = box_of(address, self._domain, keyring, self._clock.now())
            if isinstance(box, str) and self._age_s() >= KEYRING_AGAIN_S:
                keyring = await self._refreshed()
                box = box_of(address, self._domain, keyring, self._clock.now())
        except MantaError as error:
            logger.warning("the signing keys could not be read: %s", error)
            return LATER
        if isinstance(box, str):
            self.counts["refused_address"] += 1
        return box

    async def message(self, boxes: list[Box], raw: bytes) -> str:
        """The reply to a message for these boxes."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                refusal, arrival = await loop.run_in_executor(self._readers, _examine, raw)
        except TimeoutError:
            self.counts["not_read"] += 1
            return LATER
        if arrival is None:
            self.counts["malformed"] += 1
            return refusal
        assert self._keyring is not None  # a recipient was taken before
        now, digest = self._clock.now(), digest_of(raw)
        meanings = [meaning_of(box, arrival, digest, self._keyring, now) for box in boxes]
        replies = [await self._carry_out(meaning) for meaning in meanings]
        if LATER in replies:
            return LATER
        refused = [reply for reply in replies if reply != TAKEN]
        # One reply stands for all recipients: a refusal only where none of them took it.
        return refused[0] if len(refused) == len(replies) and refused else TAKEN

    async def _carry_out(self, meaning: Meaning) -> str:
        if meaning.command is None:
            self.counts[meaning.what] += 1
            return meaning.refusal or TAKEN
        try:
            async with asyncio.timeout(COMMIT_DEADLINE_S):
                await self._execute(meaning.command)
        except InvalidRequest as error:  # nobody is there any more
            self.counts["nobody"] += 1
            logger.info("%s concerns nobody: %s", meaning.what, error.code)
            return TAKEN
        except (MantaError, TimeoutError) as error:
            self.counts["not_stored"] += 1
            logger.warning("%s could not be stored: %s", meaning.what, type(error).__name__)
            return LATER
        self.counts[meaning.what] += 1
        return TAKEN

    async def _execute(self, command: Any) -> None:
        if isinstance(command, UnsubscribeByMail):
            person, message_key = command.ref

            def of(id: int) -> UnsubscribeByMail:
                return replace(command, ref=MessageRef(id, message_key))

            await execute_for(self._shards, person, of, COMMIT_DEADLINE_S)
        else:
            await report(self._shards, command, COMMIT_DEADLINE_S)

    # -- keys --------------------------------------------------------------------------------------

    async def _current(self) -> Keyring:
        if self._keyring is None:
            return await self._refreshed()
        if self._age_s() >= KEYRING_S:
            try:
                return await self._refreshed()
            except MantaError:
                pass  # the keys that are known still verify
        return self._keyring

    def _age_s(self) -> float:
        return self._clock.monotonic() - self._asked_at_s

    async def _refreshed(self) -> Keyring:
        """The keys of the Catalog; many who ask at once are one question."""
        if self._asking is None or self._asking.done():
            self._asked_at_s = self._clock.monotonic()
            self._asking = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Keyring:
        documents = await self._catalog.call("token_keys", deadline_s=COMMIT_DEADLINE_S)
        if self._keyring is None or documents != self._documents:
            self._documents = documents
            self._keyring = keyring_of(documents, self._workspace)
        return self._keyring
