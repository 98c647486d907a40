"""The Catalog: founding, keys, segments of segments, and what its journal may hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from actors.catalog import Catalog
from actors.distributing import Distributor
from manta.clock import ManualClock, as_text
from manta.content.tokens import TokenKind, keyring_of
from manta.definitions import api_key_matches, split_api_key
from manta.errors import InvalidRequest, MantaError, NotFound, NotReady, StoreUnavailable
from manta.ids import MessageRef
from manta.people.definitions import SetDefinition
from manta.store.documents import Documents
from tests.faults import FaultyObjects, MemoryObjects

RIGA = {"attribute": {"name": "city", "operator": "equals", "value": "Riga"}}


class Store:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.objects = FaultyObjects(MemoryObjects(self.clock), Random(1))
        self.catalogs: list[Catalog] = []

    def catalog(self, shards: int = 2) -> Catalog:
        nonce = len(self.catalogs).to_bytes(16, "big")
        documents = Documents(self.objects, "w/journal/catalog", "catalog", nonce, self.clock)
        self.catalogs.append(Catalog(documents, pytest.fail, self.clock, "w", shards))
        return self.catalogs[-1]

    async def started(self, shards: int = 2) -> Catalog:
        catalog = self.catalog(shards)
        await catalog.start()
        return catalog

    def stored(self) -> bytes:
        return b"".join(self.objects.get(path) or b"" for path in self.objects.list("w/"))


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Store]:
    built = Store()
    yield built
    for catalog in built.catalogs:
        catalog._thread.shutdown(wait=True)


# -- founding --------------------------------------------------------------------------------------


async def test_a_restart_founds_nothing_anew(store: Store) -> None:
    first = await store.started()
    table, keys = await first.shard_table(), await first.token_keys()
    again = await store.started(shards=5)
    assert await again.shard_table() == table == [0, 32768]
    assert await again.token_keys() == keys


async def test_founding_goes_on_after_a_crash_between_its_two_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = store.catalog()

    async def crash() -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(crashed, "rotate_token_key", crash)
    with pytest.raises(RuntimeError):
        await crashed.start()
    table = await crashed.shard_table()
    again = await store.started()
    assert await again.shard_table() == table
    assert len(await again.token_keys()) == 1


async def test_founding_waits_for_a_store_that_is_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.journaled.RECOVERY_RETRY_S", 0.0)
    catalog = store.catalog()
    rotate, tries = catalog.rotate_token_key, []

    async def full_at_first() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise StoreUnavailable("full")
        await rotate()

    monkeypatch.setattr(catalog, "rotate_token_key", full_at_first)
    await catalog.start()
    assert len(await catalog.token_keys()) == 1


# -- signing keys ----------------------------------------------------------------------------------


async def test_a_new_signing_key_signs_and_the_old_one_verifies(store: Store) -> None:
    catalog = await store.started()
    ref = MessageRef(5, 6)
    old = keyring_of(await catalog.token_keys(), "w").sign(TokenKind.OPEN, ref, 7)
    store.clock.advance(60)
    await catalog.rotate_token_key()
    again = await store.started()
    ring = keyring_of(await again.token_keys(), "w")
    assert ring.sign(TokenKind.OPEN, ref, 7) != old
    now = store.clock.now()
    assert ring.verify(old, now).ref == ref
    assert ring.verify(old, now + timedelta(days=399)).ref == ref
    with pytest.raises(InvalidRequest):
        ring.verify(old, now + timedelta(days=401))


# -- API keys --------------------------------------------------------------------------------------


async def test_the_text_of_an_api_key_is_in_no_object(store: Store) -> None:
    catalog = await store.started()
    made = await catalog.create_api_key("crm", ["events:write", "events:write"])
    _, id, secret = split_api_key(made["key"])
    catalog._documents.snapshot()
    assert secret.encode() not in store.stored()
    assert made["key"].encode() not in store.stored()
    again = await store.started()
    document = await again.get("api_keys", id)
    assert document is not None and document["scopes"] == ["events:write"]
    assert api_key_matches(document, secret, store.clock.now())


async def test_a_key_ends_when_it_expires_or_is_revoked(store: Store) -> None:
    catalog = await store.started()
    expires_at = as_text(store.clock.now() + timedelta(hours=1))
    made = await catalog.create_api_key("crm", ["events:write"], expires_at)
    _, id, secret = split_api_key(made["key"])
    document = await catalog.get("api_keys", id)
    assert document is not None
    assert not api_key_matches(document, secret, store.clock.now() + timedelta(hours=1))
    await catalog.revoke_api_key(id)
    assert await catalog.get("api_keys", id) is None
    assert await (await store.started()).get("api_keys", id) is None
    with pytest.raises(NotFound):
        await catalog.revoke_api_key(id)


@pytest.mark.parametrize("expires_at", ["soon", 7, "2025-12-31T23:59:59Z", ""])
async def test_a_key_that_could_not_be_used_is_not_made(store: Store, expires_at: Any) -> None:
    catalog = await store.started()
    with pytest.raises(InvalidRequest) as caught:
        await catalog.create_api_key("crm", ["events:write"], expires_at)
    assert caught.value.path == "expires_at"
    assert await catalog.list("api_keys") == []


# -- segments --------------------------------------------------------------------------------------


async def test_a_rule_is_given_whole_with_the_types_that_it_names(store: Store) -> None:
    catalog = await store.started()
    await catalog.declare_attributes({"city": "string", "age": "number"})
    await catalog.save("segments", {"name": "Riga", "rule": RIGA})
    outside = {"not": {"member": {"segment": 1}}}
    await catalog.save("segments", {"name": "Not Riga", "rule": outside})
    rule, types = await catalog.audience({"all": [{"member": {"segment": 2}}]})
    assert rule == {"all": [{"not": RIGA}]}
    assert types == {"city": "string"}
    saved = await catalog.get("segments", "2")
    assert saved is not None and saved["rule"] == {"not": {"member": {"segment": 1}}}


async def test_segments_that_contain_each_other_are_refused(store: Store) -> None:
    catalog = await store.started()
    await catalog.save("segments", {"name": "A", "rule": {"all": []}})
    await catalog.save("segments", {"name": "B", "rule": {"member": {"segment": 1}}})
    for rule in ({"member": {"segment": 2}}, {"member": {"segment": 1}}):
        with pytest.raises(InvalidRequest, match="contain each other"):
            await catalog.save("segments", {"id": 1, "rule": rule})
    with pytest.raises(InvalidRequest, match="segment 3"):
        await catalog.save("segments", {"name": "C", "rule": {"member": {"segment": 3}}})


async def test_a_template_under_a_key_is_saved_once(store: Store) -> None:
    catalog = await store.started()
    fields = {"name": "News", "subject": "Hi", "html": "<p>Hi</p>", "from_email": "a@b.example"}
    first = await catalog.save_template(fields, "k")
    assert await catalog.save_template(fields, "k") == first
    with pytest.raises(MantaError):
        await catalog.save_template({"id": 1, "subject": "{{ broken"}, "l")
    head = await catalog.get("templates", "1")
    assert head is not None and head["version"] == 1


# -- what shards are told --------------------------------------------------------------------------


class Told:
    """Shards that take what they are told, when they are there."""

    def __init__(self) -> None:
        self.definitions: dict[tuple[str, str, str], SetDefinition] = {}
        self.away = False

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 30) -> Any:
        if self.away:
            raise NotReady("away")
        for each in arguments[0]:
            known = self.definitions.get((role, each.kind, each.id))
            if known is None or known.version < each.version:
                self.definitions[role, each.kind, each.id] = each
        return [True] * len(arguments[0])

    def push(self, role: str, method: str, *arguments: Any) -> None: ...


async def test_shards_are_told_of_whole_rules_when_they_change_and_of_all_after_a_start(
    store: Store,
) -> None:
    told = Told()
    distributor = Distributor(told, store.clock, Random(1))
    catalog = await store.started()
    catalog._distributor = distributor
    await catalog.declare_attributes({"city": "string"})
    await catalog.save("segments", {"name": "Riga", "rule": RIGA})
    await catalog.save("segments", {"name": "B", "rule": {"not": {"member": {"segment": 1}}}})
    await catalog.save("segments", {"name": "L", "type": "list"})
    await distributor.told()
    second = told.definitions["shard-001", "segment", "2"]
    assert second.body is not None
    assert (second.version, second.body["rule"]) == (1, {"not": RIGA})
    assert second.body["attributes"] == {"city": "string"}
    await catalog.save("segments", {"id": 1, "rule": {"all": []}})
    await distributor.told()
    second = told.definitions["shard-001", "segment", "2"]
    assert second.body is not None
    assert (second.version, second.body["rule"]) == (2, {"not": {"all": []}})
    assert told.definitions["shard-000", "segment", "3"].version == 1
    await catalog.delete("segments", "2")
    told.definitions.clear()
    again = store.catalog()
    again._distributor = distributor
    await again.start()
    await distributor.told()
    assert len(told.definitions) == 6
    assert told.definitions["shard-000", "segment", "2"].body is None


async def test_a_rule_that_looks_further_back_than_memory_is_not_live(store: Store) -> None:
    catalog = await store.started()
    ever = {"event": {"type": "purchased", "within": {"last": {"days": 500}}}}
    assert (await catalog.save("segments", {"name": "A", "rule": ever}))["live"]  # by its last time
    ever["event"]["count"] = {"operator": "at_least", "value": 2}
    saved = await catalog.save("segments", {"name": "A", "rule": ever})
    assert saved["live"] is False and "500 days back" in saved["why_not_live"]
    with pytest.raises(InvalidRequest, match=r"bought something .* 500 days back, .* only sums"):
        await catalog.save("segments", {"name": "B", "rule": ever, "live": True})
