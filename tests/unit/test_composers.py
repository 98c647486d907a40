"""Composers: made once for a campaign, with the newest key, and while the Catalog is away."""

from __future__ import annotations

import asyncio
import base64
import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from actors.composers import KEYRING_AGAIN_S, KEYRING_S, Composers
from manta.clock import ManualClock, as_text
from manta.content.dkim import generate_private_key
from manta.errors import NotFound, NotReady
from manta.ids import MessageRef

TEMPLATE = {
    "subject": "Hi {{ city }}",
    "html": "<p>Hi</p>",
    "from_email": "a@shop.example",
}


class Owners:
    """The Catalog and the Director as one."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.keys = [self.key(1)]
        self.asked: Counter[str] = Counter()
        self.away = False
        self.domains: list[dict[str, str]] = []
        self.gate: asyncio.Event | None = None

    def key(self, id: int) -> dict[str, Any]:
        created_at = as_text(self.clock.now() + timedelta(seconds=id))
        return {
            "id": id,
            "key": base64.b64encode(bytes([id]) * 32).decode(),
            "created_at": created_at,
        }

    async def call(self, method: str, *arguments: Any) -> Any:
        self.asked[method] += 1
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.away:
            raise NotReady("away")
        if method == "sender_keys":
            return {"token_keys": [dict(key) for key in self.keys], "signing_keys": self.domains}
        if method == "campaign":
            if arguments[0] > 9:
                raise NotFound("no such campaign")
            return {"template_id": 1, "template_version": 2, "kind": "marketing"}
        assert (method, arguments) == ("template_version", (1, 2))
        return TEMPLATE

    def composers(self) -> Composers:
        return Composers(self, self, self.clock, "w", "https://m.example", "bounces.example")


def sender_of(composer: Any, owners: Owners) -> str:
    row = {"email": "x@b.example", "city": "Riga"}
    composed = composer.compose(row, MessageRef(5, 6), owners.clock.now())
    return str(composed.mail_from)


async def test_a_composer_is_made_once() -> None:
    owners = Owners()
    composers = owners.composers()
    made = await asyncio.gather(*(composers.of_campaign(7) for _ in range(5)))
    assert all(each is made[0] for each in made)
    assert owners.asked == {"sender_keys": 1, "campaign": 1, "template_version": 1}
    with pytest.raises(NotFound):
        await composers.of_campaign(10)
    assert await composers.of_campaign(7) is made[0]


async def test_a_new_key_signs_after_a_while_and_nobody_waits_for_it() -> None:
    owners = Owners()
    composers = owners.composers()
    first = await composers.of_campaign(7)
    owners.keys.append(owners.key(2))
    owners.clock.advance(KEYRING_S)
    owners.gate = asyncio.Event()
    assert await asyncio.wait_for(composers.of_campaign(7), 1) is first
    owners.gate.set()
    while owners.asked["sender_keys"] < 2 or composers._composers:
        await asyncio.sleep(0)
    second = await composers.of_campaign(7)
    assert sender_of(first, owners) != sender_of(second, owners)


async def test_the_last_key_goes_on_signing_while_the_catalog_is_away() -> None:
    owners = Owners()
    composers = owners.composers()
    first = await composers.of_campaign(7)
    owners.away = True
    owners.clock.advance(KEYRING_S)
    for _ in range(20):
        assert await composers.of_campaign(7) is first
        await asyncio.sleep(0)
    assert owners.asked["sender_keys"] == 2, "asked again only after a while"
    owners.clock.advance(KEYRING_AGAIN_S)
    owners.away = False
    assert await composers.of_campaign(7) is first
    await asyncio.sleep(0.01)
    assert owners.asked["sender_keys"] == 3
    assert await composers.of_campaign(7) is first, "the same keys are the same composers"


async def test_without_any_key_nothing_is_composed() -> None:
    owners = Owners()
    owners.away = True
    with pytest.raises(NotReady):
        await owners.composers().of_campaign(7)


async def test_the_keys_of_aligned_domains_sign() -> None:
    owners = Owners()
    pem = generate_private_key("ed25519").decode()
    owners.domains = [
        {"domain": domain, "selector": "manta1", "private_key": pem}
        for domain in ("shop.example", "other.example", "www.shop.example")
    ]
    composer = await owners.composers().of_campaign(7)
    mail = composer.compose({"email": "x@b.example"}, MessageRef(5, 6), owners.clock.now())
    assert re.findall(rb" d=([a-z.]+);", mail.data) == [b"shop.example"]
