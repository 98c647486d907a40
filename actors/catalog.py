"""The Catalog: the definitions of a workspace, journaled. The decisions are manta.definitions'.

Its very first start founds the workspace: the table of shards, then a signing key. A crash between
the two leaves the first, and the next start goes on with the second.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.distributing import Distributor
from actors.journaled import JournaledActor
from manta import collections, definitions
from manta.clock import Clock
from manta.content.dkim import generate_private_key
from manta.content.templates import CompiledMail, MailTemplate
from manta.definitions import Defined
from manta.delivery.domains import keys as domains
from manta.delivery.domains.authentication import Finding
from manta.errors import NotReady
from manta.ids import even_ranges
from manta.privacy import requests as erasures
from manta.privacy.receipts import public_key
from manta.rules.scope import touches
from manta.segments import definition as segments
from manta.store.documents import Documents


class Catalog(JournaledActor):
    role = "catalog"

    def __init__(
        self,
        documents: Documents,
        exit_process: Callable[[str], Any],
        clock: Clock,
        workspace: str,
        shards: int,
        distributor: Distributor | None = None,
        receipt_seed: Callable[[], bytes] | None = None,
    ) -> None:
        super().__init__(documents, exit_process)
        self._receipt_seed = receipt_seed
        self._clock = clock
        self._workspace = workspace
        self._shards = shards
        self._distributor = distributor

    async def recovered(self) -> None:
        """Found the store on the very first start: its shard table and its first signing key."""
        if self._documents.get("shards", "table") is None:
            table = {"first_buckets": even_ranges(self._shards)}
            await self.decide(lambda: Defined(None, (("shards", "table", table),)))
        if not definitions.token_keys(self._documents):
            await self.rotate_token_key()
        await self._tell_shards(everything=True)

    async def shard_table(self) -> list[int]:
        """The first bucket of each shard."""
        self._require_ready()
        table = self._documents.get("shards", "table")
        if table is None:
            raise NotReady("the catalog is being founded")
        return list(table["first_buckets"])

    async def attributes(self) -> dict[str, str]:
        self._require_ready()
        return {n: str(t) for n, t in definitions.attribute_types(self._documents).items()}

    async def declare_attributes(self, types: Mapping[str, str]) -> dict[str, str]:
        return await self.decide(lambda: definitions.declare_attributes(self._documents, types))

    async def save_template(self, fields: Mapping[str, Any], key: str | None = None) -> Any:
        """A new template or version; its syntax and limits are checked by compiling it."""

        def decide() -> Defined:
            texts = {name: fields.get(name) or "" for name in definitions.TEMPLATE_FIELDS}
            compiled = CompiledMail(MailTemplate.from_json(texts))
            return definitions.save_template(
                self._documents, fields, compiled.attributes, self._clock.now()
            )

        return await self.decide(decide, key)

    async def template_version(self, template_id: int, version: int) -> dict[str, Any]:
        self._require_ready()
        return definitions.required(
            self._documents, "template_versions", f"{template_id}:{version}"
        )

    async def save(
        self, collection: str, fields: Mapping[str, Any], key: str | None = None
    ) -> dict[str, Any]:
        """A new document of a collection, or the next version of the one named by ``id``."""
        saved = await self.decide(
            lambda: collections.save(self._documents, collection, fields, self._clock.now()), key
        )
        await self._tell_shards()
        return dict(saved)

    async def delete(self, collection: str, id: str, key: str | None = None) -> None:
        await self.decide(lambda: collections.delete(self._documents, collection, id), key)
        await self._tell_shards()

    async def _tell_shards(self, everything: bool = False) -> None:
        """Tell the shards what they do not know of the documents yet, or all that they may."""
        before = {(each.kind, each.id): each for each in collections.told(self._documents)}
        await self.decide(lambda: collections.tell(self._documents))
        table = self._documents.get("shards", "table")
        if self._distributor is not None and table is not None:
            told = collections.told(self._documents)
            news = [each for each in told if everything or before.get((each.kind, each.id)) != each]
            self._distributor.tell(list(table["first_buckets"]), news)

    async def audience(self, rule: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """A rule as it is now, whole: checked, with the segments it refers to in their place; and
        the declared types of the attributes that it names."""
        self._require_ready()
        whole = segments.whole(rule, self._documents)
        names = touches(whole).attributes
        types = definitions.attribute_types(self._documents).items()
        return whole.to_json(), {name: str(kind) for name, kind in types if name in names}

    async def create_api_key(
        self, name: str, scopes: list[str], expires_at: str | None = None
    ) -> dict[str, Any]:
        """A new key; its text is in this answer and nowhere else."""
        id, secret = secrets.token_hex(6), secrets.token_hex(32)
        return await self.decide(
            lambda: definitions.create_api_key(
                self._documents,
                name,
                scopes,
                id=id,
                secret=secret,
                workspace=self._workspace,
                expires_at=expires_at,
                now=self._clock.now(),
            )
        )

    async def revoke_api_key(self, id: str) -> None:
        def decide() -> Defined:
            definitions.required(self._documents, "api_keys", id)
            return Defined(None, (("api_keys", id, None),))

        await self.decide(decide)

    async def token_keys(self) -> list[dict[str, Any]]:
        """Signing keys of links and return paths, newest last."""
        self._require_ready()
        keys = definitions.token_keys(self._documents)
        if not keys:
            raise NotReady("the catalog is being founded")
        return keys

    async def rotate_token_key(self) -> None:
        """A new signing key; the old ones go on verifying."""
        id, key = secrets.randbits(32), base64.b64encode(secrets.token_bytes(32)).decode()

        def decide() -> Defined:
            return definitions.add_token_key(self._documents, id, key, self._clock.now())

        await self.decide(decide)

    # -- erasures ----------------------------------------------------------------------------------

    async def erasure_begun(self, request_id: str, person: str) -> dict[str, Any]:
        """Every shard has erased the person from its state."""
        now = self._clock.now
        return dict(
            await self.decide(lambda: erasures.begun(self._documents, request_id, person, now()))
        )

    async def erasure_reported(
        self, request_id: str, shard: int, report: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A shard is done with a request; when all are, its receipt is signed."""
        seed, count = await self._seed(), len(await self.shard_table())

        def decide() -> Defined:
            return erasures.reported(
                self._documents, request_id, shard, report, count, seed, self._clock.now()
            )

        return dict(await self.decide(decide))

    async def receipt_key(self) -> str:
        """The public key of receipts, in base64."""
        return public_key(await self._seed())

    async def _seed(self) -> bytes:
        if self._receipt_seed is None:
            raise NotReady("this Catalog has no key for receipts")
        return await self._in_thread(self._receipt_seed)

    # -- sending domains ---------------------------------------------------------------------------

    async def add_domain(
        self,
        name: str,
        private_key: str | None = None,
        selector: str = "",
        signed_by_relay: bool = False,
        key: str | None = None,
    ) -> dict[str, Any]:
        """A domain with two keys; ``private_key`` (PEM) is the first one, else it is made here."""
        made = [] if signed_by_relay else await self._made_keys(1 if private_key else 2)
        keys = [private_key, *made] if private_key else made

        def decide() -> Defined:
            return domains.add_domain(
                self._documents,
                name,
                keys,
                self._clock.now(),
                selector=selector,
                signed_by_relay=signed_by_relay,
            )

        return dict(await self.decide(decide, key))

    async def rotate_domain(self, name: str, key: str | None = None) -> dict[str, Any]:
        """The next key signs from now on, and a new next one is made."""
        (made,) = await self._made_keys(1)
        now = self._clock.now
        decision = await self.decide(
            lambda: domains.rotate(self._documents, name, made, now()), key
        )
        return dict(decision)

    async def record_domain_check(self, name: str, findings: Sequence[Any]) -> dict[str, Any]:
        found = [Finding(*finding) for finding in findings]
        now = self._clock.now
        return dict(
            await self.decide(lambda: domains.record_check(self._documents, name, found, now()))
        )

    async def remove_domain(self, name: str) -> None:
        await self.decide(lambda: domains.remove_domain(self._documents, name))

    async def domains(self) -> list[dict[str, Any]]:
        """Every sending domain, without private keys."""
        self._require_ready()
        return [domains.shown(d) for d in self._documents.list(domains.COLLECTION)]

    async def sender_keys(self) -> dict[str, list[dict[str, Any]]]:
        """What signs mails, for Senders alone: the keys of links and return paths, and the private
        DKIM keys of the sending domains."""
        return {
            "token_keys": await self.token_keys(),
            "signing_keys": domains.signing_keys(self._documents),
        }

    async def domain_refusal(self, from_domain: str, return_path_domain: str) -> str:
        """Why no campaign may go out from this domain; empty where it may."""
        self._require_ready()
        return domains.refusal(self._documents, from_domain, return_path_domain, self._clock.now())

    async def _made_keys(self, count: int) -> list[str]:
        """RSA keys; making one takes a good part of a second, so not on the loop."""
        made = await asyncio.to_thread(lambda: [generate_private_key() for _ in range(count)])
        return [pem.decode("ascii") for pem in made]
