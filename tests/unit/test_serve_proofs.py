"""Test mails of a template, and the page that shows a mail in the browser."""

from __future__ import annotations

import asyncio
import html
import re
from typing import Any

import pytest

from actors import director as director_module
from actors.director import Director
from manta.content.links import DECOY_LINK
from manta.content.tokens import TokenKind, keyring_of
from manta.definitions import SCOPES
from manta.ids import NOBODY, MessageRef, decode_id
from manta.people.commands import Suppress
from manta.settings import EgressSource, Settings
from manta.store.documents import Documents
from serve_apps.api import create_api
from tests.unit.serve_fakes import client
from tests.unit.serve_world import SHARDS, House, house

ME = "me@agency.example"
TEMPLATE = {
    "name": "Spring",
    "subject": "Hello {{ first_name|default('you') }}",
    "html": "<p>Hello {{ first_name|default('you') }}</p><a href='https://x.example/?a=1'>See</a>"
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a> <a href="{{ view_url }}">View</a></p>',
    "from_email": "news@shop.example",
}


@pytest.fixture
async def world() -> Any:
    async with house() as built:
        yield built


@pytest.fixture
async def http(world: House, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(director_module, "RECHECK_S", 0.05)
    director = _director(world)
    world.calls.roles["director"] = director
    await director.start()
    app = create_api(world.handles, world.authenticator, "http://manta.test")
    async with client(app, "/v1", await world.key(*SCOPES)) as opened:
        await opened.post("/v1/attributes", json={"attributes": {"first_name": "string"}})
        assert (await opened.post("/v1/templates", json=TEMPLATE)).status_code == 201
        yield opened
    tasks = list(director._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await director._assigner.stop()
    director._thread.shutdown()


def _director(world: House) -> Director:
    documents = Documents(
        world.objects, "default/journal/director", "director", b"d" * 16, world.clock
    )

    async def find_handles() -> Any:
        return world.handles

    def no_journal(sender: str) -> Any:
        raise AssertionError(f"nobody is silent here, not even {sender}")

    settings = Settings(shards=SHARDS, senders=1, egress=(EgressSource(name="relay"),))
    return Director(
        documents, world._end, world.clock, world.calls, find_handles, no_journal, settings
    )


async def person(http: Any, email: str, first_name: str) -> str:
    body = {"email": email, "attributes": {"first_name": first_name}}
    return str((await http.post("/v1/subscribers", json=body)).json()["id"])


async def recipients(http: Any, campaign: int) -> list[dict[str, Any]]:
    answer = await http.get(f"/v1/campaigns/{campaign}/recipients")
    return list(answer.json()["items"])


async def test_a_test_is_filled_by_the_person_named(http):
    ann = await person(http, "ann@shop.example", "Ann")
    body = {"to": [ME, "Boss@agency.example", ME], "email": "ann@shop.example", "version": 1}
    answer = await http.post("/v1/templates/1/test", json=body)
    assert answer.status_code == 200, answer.text
    sent = answer.json()["sent"]
    assert [item["to"] for item in sent] == [ME, "Boss@agency.example"]
    assert {item["state"] for item in sent} == {"planned"}
    rows = await recipients(http, answer.json()["campaign_id"])
    assert {row["email"] for row in rows} == {ME, "Boss@agency.example"}
    assert {row["subscriber_id"] for row in rows} == {ann}
    assert {row["message_key"] for row in rows} == {item["message"] for item in sent}


async def test_with_nobody_named_subscribers_fill_their_own(http):
    ann = await person(http, "ann@shop.example", "Ann")
    answer = await http.post("/v1/templates/1/test", json={"to": [ME, "ann@shop.example"]})
    rows = await recipients(http, answer.json()["campaign_id"])
    by_address = {row["email"]: decode_id(row["subscriber_id"]) for row in rows}
    assert by_address == {ME: NOBODY, "ann@shop.example": decode_id(ann)}


async def test_one_wrong_address_stops_all(world, http):
    await person(http, "ann@shop.example", "Ann")
    for address in ("gone@shop.example", "ann@shop.example"):
        for shard in range(SHARDS):
            command = Suppress(None, "email", address, "hard_bounce", "test")
            await world.handles.shards.execute(shard, command)
    for wrong in ("no address", "gone@shop.example", "Ann@shop.example"):
        answer = await http.post("/v1/templates/1/test", json={"to": [ME, wrong]})
        assert answer.status_code == 422
        assert answer.json()["path"] == "to[1]"
    assert "hard_bounce" in answer.json()["detail"]
    assert (await http.get("/v1/campaigns?tests=true")).json()["items"] == []
    for to in ([], ["a@b.example"] * 11):
        assert (await http.post("/v1/templates/1/test", json={"to": to})).status_code == 422
    nobody = {"to": [ME], "email": "who@shop.example"}
    assert (await http.post("/v1/templates/1/test", json=nobody)).status_code == 404
    assert (await http.post("/v1/templates/9/test", json={"to": [ME]})).status_code == 404


async def test_the_same_request_sends_once(http):
    answers = [
        await http.post("/v1/templates/1/test", json={"to": [ME]}, headers={"Idempotency-Key": key})
        for key in ("a", "a", "b")
    ]
    first, again, other = (answer.json() for answer in answers)
    assert first == again
    assert other["campaign_id"] == first["campaign_id"]
    assert len(await recipients(http, first["campaign_id"])) == 2


async def test_tests_are_no_campaigns_unless_asked_for(http):
    await http.post("/v1/templates/1/test", json={"to": [ME]})
    assert (await http.get("/v1/campaigns")).json()["items"] == []
    (shown,) = (await http.get("/v1/campaigns?tests=true")).json()["items"]
    assert (shown["kind"], shown["state"], shown["template_id"]) == ("test", "running", 1)
    assert (await http.get(f"/v1/campaigns/{shown['id']}/report")).json()["accounting"]["adds_up"]
    made = {"name": "x", "template_id": 1, "rule": {"all": []}, "kind": "test"}
    assert (await http.post("/v1/campaigns", json=made)).status_code == 422


# -- view in browser -------------------------------------------------------------------------------


async def launched(http: Any) -> int:
    made = {"name": "x", "template_id": 1, "rule": {"all": []}}
    domain = {"domain": "shop.example", "signed_by_relay": True}
    assert (await http.post("/v1/domains", json=domain)).status_code == 201
    number = (await http.post("/v1/campaigns", json=made)).json()["id"]
    assert (await http.post(f"/v1/campaigns/{number}/launch")).status_code == 200
    return int(number)


async def token(world: House, person: int, campaign: int, kind: TokenKind = TokenKind.VIEW) -> str:
    ring = keyring_of(await world.handles.catalog.call("token_keys"), "default")
    return ring.sign(kind, MessageRef(person, 77), campaign)


async def test_the_mail_in_the_browser(world, http):
    ann = decode_id(await person(http, "ann@shop.example", "<Ann>"))
    campaign = await launched(http)
    await http.post(
        "/v1/templates/1/versions",
        json=TEMPLATE | {"html": "<p>new</p>"},
    )
    http.headers.pop("Authorization")
    page = await http.get(f"/v1/view/{await token(world, ann, campaign)}")
    assert page.status_code == 200, page.text
    assert "Hello &lt;Ann&gt;" in page.text and "<img" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "sandbox" in policy and "allow-scripts" not in policy
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    ring = keyring_of(await world.handles.catalog.call("token_keys"), "default")
    said = [
        ring.verify(html.unescape(url).rpartition("/")[2], world.clock.now())
        for url in re.findall(r'href=["\'](http://manta.test/[^"\']*)', page.text)
    ]
    click, decoy = TokenKind.CLICK, said[-1]
    assert [s.kind for s in said] == [click, TokenKind.UNSUBSCRIBE, TokenKind.VIEW, click]
    assert {(s.subscriber_id, s.message_key, s.campaign_id) for s in said} == {(ann, 77, campaign)}
    assert said[0].url == "https://x.example/?a=1"
    assert (decoy.link, decoy.url) == (DECOY_LINK, "")
    (shown,) = re.findall(r"<a [^>]*></a>", page.text)  # the one link without text
    assert 'aria-hidden="true"' in shown and 'tabindex="-1"' in shown and "display:none" in shown
    head = await http.head(f"/v1/view/{await token(world, ann, campaign)}")
    assert (head.status_code, head.text) == (200, "")


async def test_a_link_that_is_no_good_is_a_page(world, http):
    ann = decode_id(await person(http, "ann@shop.example", "Ann"))
    campaign = await launched(http)
    good = await token(world, ann, campaign)
    for wrong in (
        good[:-4] + "AAAA",
        "x",
        await token(world, ann, campaign, TokenKind.OPEN),
        await token(world, ann, 99),
        await token(world, ann + 1, campaign),
    ):
        answer = await http.get(f"/v1/view/{wrong}")
        assert answer.status_code == 404
        assert "This link is not valid" in answer.text


async def test_a_test_that_nobody_fills_in_the_browser(world, http):
    sent = (await http.post("/v1/templates/1/test", json={"to": [ME]})).json()
    page = await http.get(f"/v1/view/{await token(world, NOBODY, sent['campaign_id'])}")
    assert page.status_code == 200 and "Hello you" in page.text
