"""Sign-ups, confirmations and the preference page, over real actors: what people see and what it
does, and what a stranger or a scanner cannot do."""

from __future__ import annotations

import asyncio
import html
import json
import re
from datetime import timedelta
from typing import Any

import pytest

from actors import director as director_module
from manta.content.templates import CompiledMail, MailTemplate
from manta.content.tokens import TokenKind, keyring_of
from manta.ids import NOBODY, MessageRef, decode_id
from manta.people.commands import SetConsent, Suppress, Unsubscribe
from manta.people.identifying import merge
from manta.people.topics import checked as checked_topic
from manta.people.topics import nearest
from manta.privacy.hashes import keyed_hash
from serve_apps import landing
from serve_apps.api import create_api
from serve_apps.links import LinkKeys
from serve_apps.preferences.app import Preferences, front
from serve_apps.preferences.confirming import built_in
from serve_apps.preferences.texts import language_for, texts
from tests.unit.serve_fakes import FakeDocuments, client
from tests.unit.serve_world import SHARDS, House, house
from tests.unit.store_shard import Write, upsert
from tests.unit.test_serve_proofs import _director

NEWS = {
    "name": "news",
    "titles": {"en": "Monthly news", "de": "Neues im Monat"},
    "descriptions": {"en": "What is new, & what was", "de": "Was es Neues gibt"},
    "from_email": "hello@shop.example",
    "from_name": "The {{ Shop }}",
}
OFFERS = {"name": "offers", "double_opt_in": False, "from_email": "hello@shop.example"}
HIDDEN = {"name": "staff", "public": False, "from_email": "hello@shop.example"}


class World:
    def __init__(self, built: House, api: Any, pages: Any, director: Any) -> None:
        self.house, self.api, self.pages, self.director = built, api, pages, director

    async def link(self, kind: TokenKind, person: int, message: int = 77) -> str:
        ring = keyring_of(await self.house.handles.catalog.call("token_keys"), "default")
        letter = "p" if kind is TokenKind.PREFERENCES else "s"
        return f"/{letter}/{ring.sign(kind, MessageRef(person, message), 5)}"

    async def sign_up(self, email: str, *topics: str, **fields: Any) -> Any:
        body = {"email": email, "topics": list(topics), **fields}
        return await self.api.post("/v1/subscriptions", json=body)

    async def person(self, email: str) -> dict[str, Any]:
        found = await self.api.get("/v1/subscribers", params={"email": email})
        assert found.status_code == 200, found.text
        return dict(found.json())

    async def consents(self, email: str) -> dict[str, str]:
        held = (await self.person(email))["consents"]
        return {c["topic"]: c["status"] for c in held if c["channel"] == "email"}

    async def run(self, command: Any) -> Any:
        shards = self.house.handles.shards
        return await shards.execute(shards.of_subscriber(command.subscriber_id), command)

    async def mails(self) -> list[dict[str, Any]]:
        campaigns = (await self.api.get("/v1/campaigns")).json()["items"]
        rows = []
        for campaign in campaigns:
            found = await self.api.get(f"/v1/campaigns/{campaign['id']}/recipients")
            rows += [row | {"kind": campaign["kind"]} for row in found.json()["items"]]
        return rows


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(director_module, "RECHECK_S", 0.05)
    async with house() as built:
        director = _director(built)
        built.calls.roles["director"] = director
        await director.start()
        keys = LinkKeys(built.handles.catalog, "default", built.clock)
        app = front(Preferences(built.handles, keys), None)
        api = create_api(built.handles, built.authenticator, "http://manta.test")
        async with client(api, "/v1", await built.key()) as opened, client(app) as pages:
            domain = {"domain": "shop.example", "signed_by_relay": True}
            assert (await opened.post("/v1/domains", json=domain)).status_code == 201
            for topic in (NEWS, OFFERS, HIDDEN):
                made = await opened.post("/v1/topics", json=topic)
                assert made.status_code == 201, made.text
            yield World(built, opened, pages, director)
        tasks = list(director._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await director._assigner.stop()
        director._thread.shutdown()


def boxes(page: str) -> dict[str, bool]:
    """Value and tick of every check box."""
    found = re.findall(r'<input type="checkbox"[^>]*value="([^"]*)"([^>]*)>', page)
    return {html.unescape(value): " checked" in rest for value, rest in found}


def filled(page: str, *ticked: str, **fields: str) -> dict[str, Any]:
    shown = re.findall(r'name="shown" value="([^"]*)"', page)
    return {
        "shown": [html.unescape(value) for value in shown],
        "topic": list(ticked),
        "action": "save",
        **fields,
    }


# -- signing up ------------------------------------------------------------------------------------


async def test_a_sign_up_from_form_to_consent(world):
    proof = {"ip": "192.0.2.7", "wording": "v3"}
    answer = await world.sign_up("Ann@x.example", "news", "offers", locale="de-AT", proof=proof)
    assert answer.status_code == 202, answer.text
    assert answer.json() == {
        "accepted": True,
        "topics": [
            {"topic": "news", "double_opt_in": True},
            {"topic": "offers", "double_opt_in": False},
        ],
    }
    assert await world.consents("ann@x.example") == {"news": "pending", "offers": "subscribed"}
    (mail,) = await world.mails()
    assert (mail["kind"], mail["state"], mail["email"]) == (
        "transactional",
        "planned",
        "Ann@x.example",
    )
    person = decode_id((await world.person("ann@x.example"))["id"])
    path = await world.link(TokenKind.CONFIRM, person)
    for _ in range(2):  # a scanner fetches it, twice
        page = await world.pages.get(path)
        assert page.status_code == 200
        assert (await world.consents("ann@x.example"))["news"] == "pending"
    assert '<html lang="de">' in page.text and "Neues im Monat" in page.text
    assert "A…@x.example" in page.text and "Ann@" not in page.text
    assert re.findall(r'name="topic" value="(.*?)"', page.text) == ["news"]
    done = await world.pages.post(path, data={"topic": "news", "action": "confirm"})
    assert done.status_code == 200 and "bestätigt" in done.text
    assert (await world.consents("ann@x.example"))["news"] == "subscribed"
    again = await world.pages.post(path, data={"topic": "news"})
    assert again.status_code == 200
    assert (await world.pages.get(path)).status_code == 410  # nothing waits any more
    templates = (await world.api.get("/v1/templates")).json()["items"]
    assert [t["name"] for t in templates] == [
        "Confirmation mail (Deutsch), from hello@shop.example"
    ]


async def test_nobody_learns_from_an_answer_who_is_known(world):
    await world.sign_up("ann@x.example", "offers")
    ann = decode_id((await world.person("ann@x.example"))["id"])
    await world.run(SetConsent(None, ann, "email", "news", "subscribed", "form"))
    await world.run(Unsubscribe(None, ann, None, "offers", "page"))
    answers = [
        (a.status_code, a.content)
        for a in [
            await world.sign_up("ann@x.example", "news"),
            await world.sign_up("new@x.example", "news"),
            await world.sign_up("new@x.example", "news"),
        ]
    ]
    assert len(set(answers)) == 1
    assert [m["email"] for m in await world.mails()] == ["new@x.example"]
    # Who has left comes back by a mail only, though the topic has single opt-in.
    await world.sign_up("ann@x.example", "offers")
    assert await world.consents("ann@x.example") == {"news": "subscribed", "offers": "pending"}
    assert len(await world.mails()) == 2


async def test_one_mail_an_hour(world):
    for minutes in (0, 30, 29, 2):
        world.house.clock.advance(minutes * 60)
        assert (await world.sign_up("a@x.example", "news")).status_code == 202
    assert len(await world.mails()) == 2


async def test_a_sign_up_that_cannot_be(world):
    await world.api.post("/v1/topics", json={**NEWS, "name": "alien", "from_email": "a@b.example"})
    for body, path in (
        ({"email": "no", "topics": ["news"]}, "email"),
        ({"email": "a@x.example", "topics": ["news", "nothing"]}, "topics[1]"),
        ({"email": "a@x.example", "topics": []}, "topics"),
        ({"email": "a@x.example", "topics": ["news"], "locale": "d e"}, "locale"),
        ({"email": "a@x.example", "topics": ["alien"]}, "template_id"),
    ):
        answer = await world.api.post("/v1/subscriptions", json=body)
        assert (answer.status_code, answer.json()["path"]) == (422, path)
    found = await world.api.get("/v1/subscribers", params={"email": "a@x.example"})
    assert found.status_code == 404  # nothing was stored


async def test_a_confirmation_lifts_an_unsubscription_and_no_complaint(world):
    for email, reason in (("a@x.example", "unsubscribed"), ("b@x.example", "complaint")):
        body = {"address": email, "reason": reason}
        assert (await world.api.post("/v1/suppressions", json=body)).status_code == 201
        await world.sign_up(email, "offers")
        assert await world.consents(email) == {"offers": "pending"}
        person = await world.person(email)
        path = await world.link(TokenKind.CONFIRM, decode_id(person["id"]))
        assert (await world.pages.post(path, data={"topic": "offers"})).status_code == 200
        assert await world.consents(email) == {"offers": "subscribed"}
    states = {m["email"]: m["state"] for m in await world.mails()}
    assert states == {"a@x.example": "planned", "b@x.example": "suppressed"}
    left = (await world.api.get("/v1/suppressions")).json()["items"]
    assert [(s["address"], s["reason"]) for s in left] == [("b@x.example", "complaint")]


async def test_an_erased_person_comes_back_by_a_confirmation_only(world):
    shards = world.house.handles.shards
    mark = keyed_hash(b"p" * 32, "email", "a@x.example")
    row = {"channel": "email", "address": mark, "reason": "erased", "source": "erasure"}
    for shard in range(SHARDS):
        await shards.execute(shard, Write((upsert("suppressions", row),)))
    consent = {"channel": "email", "topic": "offers", "status": "subscribed"}
    body = {"email": "a@x.example", "consent": consent}
    assert (await world.api.post("/v1/subscribers", json=body)).status_code == 201
    assert await world.consents("a@x.example") == {}
    assert (await world.sign_up("a@x.example", "offers")).status_code == 202
    assert await world.consents("a@x.example") == {"offers": "pending"}
    assert [m["state"] for m in await world.mails()] == ["planned"]
    person = await world.person("a@x.example")
    path = await world.link(TokenKind.CONFIRM, decode_id(person["id"]))
    assert (await world.pages.post(path, data={"topic": "offers"})).status_code == 200
    assert await world.consents("a@x.example") == {"offers": "subscribed"}
    assert (await world.api.get("/v1/suppressions")).json()["items"] == []


async def test_the_proof_that_an_operator_has(world):
    await world.sign_up("a@x.example", "offers")
    id = (await world.person("a@x.example"))["id"]
    body = {"topic": "news", "status": "pending", "proof": {"method": "api", "form": "till"},
            "expires_at": "2026-03-02T00:00:00Z"}  # fmt: skip
    path = f"/v1/subscribers/{id}/consents"
    assert (await world.api.put(path, json=body)).status_code == 200
    (held,) = [c for c in (await world.person("a@x.example"))["consents"] if c["topic"] == "news"]
    assert (held["status"], held["expires_at"][:10]) == ("pending", "2026-03-02")
    wrong = await world.api.put(path, json=body | {"proof": {"colour": "red"}})
    assert (wrong.status_code, wrong.json()["path"]) == (422, "proof.colour")


async def test_a_confirmation_that_comes_too_late(world):
    await world.sign_up("a@x.example", "news")
    person = decode_id((await world.person("a@x.example"))["id"])
    path = await world.link(TokenKind.CONFIRM, person)
    world.house.clock.advance(timedelta(days=7).total_seconds())
    assert (await world.pages.get(path)).status_code == 410
    assert (await world.pages.post(path, data={"topic": "news"})).status_code == 410
    assert await world.consents("a@x.example") == {"news": "pending"}


# -- the preference page ---------------------------------------------------------------------------


async def arrived(world: World, **fields: Any) -> tuple[int, str]:
    await world.sign_up("ann@x.example", "offers", **fields)
    person = decode_id((await world.person("ann@x.example"))["id"])
    await world.run(SetConsent(None, person, "email", "legacy", "subscribed", "old shop"))
    return person, await world.link(TokenKind.PREFERENCES, person)


async def test_choosing(world):
    person, path = await arrived(world)
    page = await world.pages.get(path, headers={"Accept-Language": "fr;q=0.5, de"})
    assert boxes(page.text) == {
        "email:news": False,
        "email:offers": True,
        "email:legacy": True,
    }
    assert '<html lang="de">' in page.text  # no locale on record: the browser's
    assert page.headers["x-robots-tag"] == "noindex, nofollow"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in page.headers
    form = filled(page.text, "email:news", "email:offers", language="ja")
    saved = await world.pages.post(path, data=form, headers={"User-Agent": "Browser/2"})
    assert saved.status_code == 200
    assert '<html lang="ja">' in saved.text and 'role="status"' in saved.text
    # What was given up stays no choice: it is not in the list of topics.
    assert boxes(saved.text) == {"email:news": True, "email:offers": True}
    assert await world.consents("ann@x.example") == {
        "legacy": "unsubscribed",
        "news": "subscribed",
        "offers": "subscribed",
    }
    assert (await world.person("ann@x.example"))["locale"] == "ja"
    shard = world.house.handles.shards.of_subscriber(person)
    actor = world.house.calls.roles[f"shard-{shard:03d}"]
    rows = actor._store.database.rows(
        "SELECT proof FROM consents WHERE topic = 'news' AND subscriber_id = ?", [person]
    )
    proof = json.loads(rows[0][0])
    assert (proof["method"], proof["user_agent"], proof["page"]) == ("page", "Browser/2", "/p/")


async def test_what_the_page_had_not_shown_stays(world):
    _, path = await arrived(world)
    page = await world.pages.get(path)
    await world.api.post("/v1/topics", json={**OFFERS, "name": "later"})
    form = filled(page.text, "email:offers", "email:later", language="en")
    await world.pages.post(path, data=form)
    assert "later" not in await world.consents("ann@x.example")


async def test_leaving_everything_and_coming_back(world):
    _person, path = await arrived(world)
    page = await world.pages.get(path)
    gone = await world.pages.post(path, data=filled(page.text, "email:offers", action="leave"))
    assert gone.status_code == 200 and html.escape(texts()["en"]["left"]) in gone.text
    assert not any(boxes(gone.text).values())
    assert await world.consents("ann@x.example") == dict.fromkeys(
        ("*", "legacy", "offers"), "unsubscribed"
    )
    for shard in range(SHARDS):
        stop = Suppress(None, "email", "ann@x.example", "sunset", "sunset:1")
        await world.house.handles.shards.execute(shard, stop)
    await world.pages.post(path, data=filled(gone.text, "email:news", language="en"))
    assert await world.consents("ann@x.example") == {
        "legacy": "unsubscribed",
        "news": "subscribed",
        "offers": "unsubscribed",
    }
    assert (await world.person("ann@x.example"))["suppressions"] == []


async def test_strangers_and_programs(world):
    _person, path = await arrived(world)
    for bad in ("/p/", "/p/x", path[:-1], path.replace("/p/", "/s/")):
        for method in ("GET", "POST", "HEAD"):
            assert (await world.pages.request(method, bad)).status_code == 404, bad
    assert (await world.pages.delete(path)).status_code == 405
    head = await world.pages.head(path)
    assert (head.status_code, head.content) == (200, b"")
    before = await world.consents("ann@x.example")
    for body in (b"\xff", b"action=drop", b"shown=pigeon:news&topic=pigeon:news", b"shown=email:*",
                 b"shown=email:" + b"x" * 2000, b"a=b&" * 3000, b"x" * 300_000):  # fmt: skip
        assert (await world.pages.post(path, content=body)).status_code == 400, body[:40]
    assert await world.consents("ann@x.example") == before
    nobody = await world.link(TokenKind.PREFERENCES, 1 << 50)
    assert (await world.pages.get(nobody)).status_code == 410
    assert (await world.pages.post(nobody, data={"action": "leave"})).status_code == 410


async def test_texts_of_operators_are_text(world):
    evil = '"><script>alert(1)</script>'
    topic = {**OFFERS, "name": "evil", "titles": {"en": evil}, "descriptions": {"en": evil}}
    assert (await world.api.post("/v1/topics", json=topic)).status_code == 201
    person, path = await arrived(world)
    await world.run(SetConsent(None, person, "email", evil, "subscribed", "api"))
    page = await world.pages.get(path)
    assert "<script" not in page.text and f"email:{evil}" in boxes(page.text)
    saved = await world.pages.post(path, data=filled(page.text))
    assert saved.status_code == 200 and "<script" not in saved.text


async def test_whoever_reads_a_test_decides_for_nobody(world):
    path = await world.link(TokenKind.PREFERENCES, NOBODY)
    page = await world.pages.get(path)
    assert set(boxes(page.text)) == {"email:news", "email:offers"}
    saved = await world.pages.post(path, data=filled(page.text, "email:news", language="de"))
    assert saved.status_code == 200 and "Gespeichert" in saved.text
    confirm = await world.link(TokenKind.CONFIRM, NOBODY)
    assert (await world.pages.get(confirm)).status_code == 200
    assert (await world.pages.post(confirm, data={"topic": "news"})).status_code == 200


async def test_a_store_that_is_down_is_told_and_a_blocked_address_too(world):
    person, path = await arrived(world)
    shards = world.house.handles.shards
    command = Suppress(None, "email", "ann@x.example", "hard_bounce", "dsn")
    await shards.execute(shards.of_subscriber(person), command)
    page = await world.pages.get(path)
    assert html.escape(texts()["en"]["blocked"]) in page.text


# -- words -----------------------------------------------------------------------------------------


def test_every_language_has_every_text_and_every_mail_compiles():
    names = set(texts()["en"])
    assert {"en", "de", "fr", "es", "it", "nl", "pt", "no", "pl", "ja"} <= set(texts())
    for language, words in texts().items():
        assert set(words) == names, language
        for name in ("intro", "confirm_text"):
            assert "{email}" in words[name], language
        assert "{from}" in words["mail_text"], language
        topic = {"from_email": "a@b.example", "from_name": "{{ Shop }} {% if %} & <Co>"}
        mail = CompiledMail(MailTemplate.from_json(built_in(language, topic)))
        assert mail.own_links == ("confirm_url",) and mail.attributes == ()
        assert f'<html lang="{language}">' in mail.template.html


@pytest.mark.parametrize(
    ("locale", "accepted", "language"),
    [
        ("de-AT", "fr", "de"),
        (None, "fr-CH, en;q=0.9", "fr"),
        (None, "xx, nb;q=0.4, pl;q=0.2", "no"),
        (None, "de;q=0, *;q=x", "en"),
        ("xx", "de", "en"),
        (None, "", "en"),
        ("pt_BR", "", "pt"),
    ],
)
def test_which_language(locale, accepted, language):
    assert language_for(locale, accepted) == language


def test_the_nearest_title():
    assert nearest("de-AT-1996", ["en", "de"]) == "de"
    assert nearest("pt-BR", ["pt", "pt-BR"]) == "pt-BR"
    assert nearest("fr", ["de", "en"]) == "en"
    assert nearest(None, ["de"]) == "de"
    assert nearest("de", []) is None


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": "*"}, "name"),
        ({"name": "news"}, "name"),
        ({"titles": {"d e": "x"}}, "titles"),
        ({"titles": {"de": "x" * 201}}, "titles.de"),
        ({"channels": []}, "channels"),
        ({"channels": ["pigeon"]}, "channels[0]"),
        ({"double_opt_in": "yes"}, "double_opt_in"),
        ({"from_email": ""}, "from_email"),
        ({"from_email": "a b"}, "from_email"),
        ({"templates": {"de": 9}}, "templates.de"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_topic_that_is_none(fields, path):
    reader = FakeDocuments()
    reader.held["topics"] = {"1": {"id": 1, "name": "news"}}
    from manta.errors import InvalidRequest

    good = {"id": 2, "name": "other", "from_email": "a@b.example"}
    assert checked_topic(good, reader)["double_opt_in"] is True
    with pytest.raises(InvalidRequest) as caught:
        checked_topic(good | fields, reader)
    assert caught.value.path == path


def test_the_style_is_the_one_that_the_policy_allows():
    page = landing.page("x").decode()
    assert page.count("<style>") == 1
    assert "sha256-" in landing.CONTENT_SECURITY_POLICY


async def test_who_was_merged_is_followed(world):
    shards = world.house.handles.shards
    old, path = await arrived(world)
    n = 0
    while True:  # somebody of the other shard
        await world.sign_up(f"new{n}@x.example", "offers")
        new = decode_id((await world.person(f"new{n}@x.example"))["id"])
        if shards.of_subscriber(new) != shards.of_subscriber(old):
            break
        n += 1
    await merge(shards, old, new, cause="the same person")
    page = await world.pages.get(path)
    assert page.status_code == 200 and "n…@x.example" in page.text
    saved = await world.pages.post(path, data=filled(page.text, "email:news", language="en"))
    assert saved.status_code == 200, saved.text
    held = await world.consents(f"new{n}@x.example")
    assert held["news"] == "subscribed" and held["offers"] == "unsubscribed"


async def test_a_link_to_an_earlier_address_proves_nothing_of_the_new_one(world):
    """Somebody signs up with their own address, has it changed to that of a person who was erased
    or has left, and presses the links that they got."""
    shards = world.house.handles.shards
    mark = keyed_hash(b"p" * 32, "email", "victim@x.example")
    row = {"channel": "email", "address": mark, "reason": "erased", "source": "erasure"}
    for shard in range(SHARDS):
        await shards.execute(shard, Write((upsert("suppressions", row),)))
    left = {"address": "victim@x.example", "reason": "unsubscribed"}
    assert (await world.api.post("/v1/suppressions", json=left)).status_code == 201
    before = (await world.api.get("/v1/suppressions")).json()["items"]
    await world.sign_up("mine@x.example", "news")
    person = await world.person("mine@x.example")
    id = decode_id(person["id"])
    world.house.clock.advance(60)
    changed = {"kind": "email", "value": "victim@x.example"}
    path = f"/v1/subscribers/{person['id']}/identities"
    assert (await world.api.post(path, json=changed)).status_code == 200
    confirm = await world.link(TokenKind.CONFIRM, id)
    assert (await world.pages.post(confirm, data={"topic": "news"})).status_code == 410
    assert (await world.consents("victim@x.example"))["news"] == "pending"
    page = await world.link(TokenKind.PREFERENCES, id)
    saved = await world.pages.post(
        page, data=filled((await world.pages.get(page)).text, "email:news")
    )
    assert saved.status_code == 200
    assert (await world.api.get("/v1/suppressions")).json()["items"] == before
    row = {"subscriber_id": id, "message_key": 78, "planned_at": world.house.clock.now()}
    await shards.execute(shards.of_subscriber(id), Write((upsert("ledger", row),)))
    page = await world.link(TokenKind.PREFERENCES, id, 78)  # of a mail to the new address
    await world.pages.post(page, data=filled((await world.pages.get(page)).text, "email:news"))
    assert (await world.api.get("/v1/suppressions")).json()["items"] == []
