"""The tracking app without Serve: what each link does, and what it never does."""

from __future__ import annotations

import asyncio
import base64
from random import Random
from typing import Any

import pytest

from manta.clock import ManualClock, as_text
from manta.content.links import DECOY_LINK
from manta.content.tokens import TokenKind, keyring_of
from manta.errors import NotFound, StoreUnavailable
from manta.events.commands import TrackHits
from manta.ids import NOBODY, MessageRef, mint_subscriber_id
from manta.people.consents import Unsubscribe
from manta.traffic.networks import TrustedProxies
from serve_apps import gather
from serve_apps.hits import HEAD_BEFORE_S, Asked, Witness, hit_gatherer
from serve_apps.links import RECHECK_S, LinkKeys
from serve_apps.tracking import PIXEL, Tracking
from tests.unit.serve_fakes import NOW, FakeActors, client, make_handles

URL = "https://shop.example/a?b=1&c=%20x#top"


def key_document(id: int) -> dict[str, Any]:
    secret = base64.b64encode(bytes([id]) * 32).decode()
    return {"id": id, "key": secret, "created_at": as_text(NOW)}


class World:
    def __init__(self) -> None:
        self.actors = FakeActors()
        self.clock = ManualClock(NOW)
        self.handles = make_handles(self.actors, self.clock)
        self.documents = [key_document(7)]
        self.actors.answers["catalog", "token_keys"] = lambda: list(self.documents)
        self.actors.answers["director", "get"] = lambda _, id: {"id": id, "topic": "news"}
        self.hits = hit_gatherer(self.handles.shards, "r1", Random(1))
        keys = LinkKeys(self.handles.catalog, "default", self.clock)
        self.app = Tracking(self.handles, keys, self.hits)
        self.ring = keyring_of(self.documents, "default")
        self.ref = MessageRef(mint_subscriber_id(40_000, Random(2)), 99)

    def token(self, kind: TokenKind, url: str = "", ref: MessageRef | None = None) -> str:
        return self.ring.sign(kind, ref or self.ref, 5, 1, url)

    def rows(self) -> list[dict[str, Any]]:
        return [r for c in self.actors.commands(TrackHits) for r in c.rows.to_pylist()]


@pytest.fixture
def world() -> World:
    return World()


async def test_an_open_is_stored_in_the_persons_shard_before_the_pixel_is_given(world):
    async with client(world.app) as http:
        answer = await http.get(
            f"/o/{world.token(TokenKind.OPEN)}", headers={"User-Agent": "Mail/1"}
        )
    assert (answer.status_code, answer.content) == (200, PIXEL)
    assert answer.headers["cache-control"] == "no-store, max-age=0"
    ((shard, command),) = world.actors.executed
    assert shard == 1
    assert command.key.startswith("hits:r1:1:")
    (row,) = command.rows.to_pylist()
    assert row.pop("event_id") is not None
    assert row == {
        "subscriber_id": world.ref.subscriber_id,
        "message_key": 99,
        "campaign_id": 5,
        "type": "opened",
        "occurred_at": NOW,
        "item": None,
        "properties": '{"user_agent": "Mail/1"}',
        "human": 0.9478,
    }


async def test_a_click_leads_to_the_page_in_its_token(world):
    async with client(world.app) as http:
        answer = await http.get(f"/c/{world.token(TokenKind.CLICK, URL)}")
    assert answer.status_code == 302
    assert answer.headers["location"] == URL
    assert [row["item"] for row in world.rows()] == [URL]


@pytest.mark.parametrize("kind", ["o", "c", "u"])
async def test_a_forged_or_cut_token_is_a_page_and_never_a_redirect(world, kind):
    good = world.token(TokenKind.CLICK, URL)
    other = world.token(TokenKind.VIEW)
    wrong = ["", "x", good[:-1], good[:30], good + "A", "%2e%2e", "A" * 9000, other]
    if kind != "c":
        wrong.append(good)
    async with client(world.app) as http:
        for token in wrong:
            for method in ("GET", "HEAD", *(("POST",) if kind == "u" else ())):
                answer = await http.request(method, f"/{kind}/{token}")
                assert answer.status_code == 404, token
                assert "location" not in answer.headers
    assert world.actors.executed == []


async def test_forgers_do_not_make_the_catalog_work(world):
    async with client(world.app) as http:
        for _ in range(20):
            await http.get("/o/forged")
    asked = [call for call in world.actors.calls if call[1] == "token_keys"]
    assert len(asked) == 1


async def test_a_key_that_is_new_is_found(world):
    async with client(world.app) as http:
        assert (await http.get(f"/o/{world.token(TokenKind.OPEN)}")).status_code == 200
        world.documents.append(key_document(8))
        ring = keyring_of(world.documents, "default")
        token = ring.sign(TokenKind.OPEN, world.ref, 5)
        world.clock.advance(RECHECK_S)
        assert (await http.get(f"/o/{token}")).status_code == 200
        assert (await http.get(f"/o/{world.token(TokenKind.OPEN)}")).status_code == 200


async def test_head_and_prefetch_count_nothing(world):
    open_, click = world.token(TokenKind.OPEN), world.token(TokenKind.CLICK, URL)
    async with client(world.app) as http:
        head = await http.head(f"/o/{open_}")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "43", b"")
        assert (await http.head(f"/c/{click}")).headers["location"] == URL
        ahead = await http.get(f"/c/{click}", headers={"Sec-Purpose": "prefetch;prerender"})
        assert ahead.status_code == 503
        assert "location" not in ahead.headers
    assert world.actors.executed == []


async def test_unsubscribing_takes_a_post(world):
    path = f"/u/{world.token(TokenKind.UNSUBSCRIBE)}"
    async with client(world.app) as http:
        form = await http.get(path)
        assert form.status_code == 200
        assert '<form method="post">' in form.text
        assert world.actors.executed == []
        done = await http.post(path, data={"List-Unsubscribe": "One-Click"})
    assert done.status_code == 200
    assert not {"set-cookie", "location"} & set(done.headers)
    (command,) = world.actors.commands(Unsubscribe)
    assert (command.subscriber_id, command.message_key) == world.ref
    assert (command.topic, command.source) == ("news", "one_click")
    assert command.key.startswith("unsubscribe:")


async def test_the_form_speaks_the_language_of_the_browser(world):
    path = f"/u/{world.token(TokenKind.UNSUBSCRIBE)}"
    headers = {"Accept-Language": "de-CH, en;q=0.5"}
    async with client(world.app, headers=headers) as http:
        assert '<html lang="de">' in (await http.get(path)).text
        done = await http.post(path, data={"List-Unsubscribe": "One-Click"})
    assert "Sie sind abgemeldet" in done.text


async def test_unsubscribing_by_multipart_form(world):
    path = f"/u/{world.token(TokenKind.UNSUBSCRIBE)}"
    async with client(world.app) as http:
        done = await http.post(path, files={"List-Unsubscribe": (None, "One-Click")})
    assert done.status_code == 200
    assert len(world.actors.commands(Unsubscribe)) == 1


@pytest.mark.parametrize("body", [b"", b"List-Unsubscribe=No", b"x" * 10_000])
async def test_another_post_changes_nothing(world, body):
    async with client(world.app) as http:
        path = f"/u/{world.token(TokenKind.UNSUBSCRIBE)}"
        assert (await http.post(path, content=body)).status_code == 400
    assert world.actors.executed == []


async def test_other_methods_are_refused(world):
    async with client(world.app) as http:
        answer = await http.post(f"/o/{world.token(TokenKind.OPEN)}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_many_hits_become_few_batches(world):
    refs = [MessageRef(mint_subscriber_id(b, Random(b)), 1) for b in range(0, 65536, 512)]
    async with client(world.app) as http:
        await asyncio.gather(
            *(http.get(f"/o/{world.token(TokenKind.OPEN, ref=ref)}") for ref in refs)
        )
    assert len(world.rows()) == len(refs)
    assert len(world.actors.commands(TrackHits)) <= 6
    for shard, command in world.actors.executed:
        people = command.rows["subscriber_id"].to_pylist()
        assert {world.handles.shards.of_subscriber(p) for p in people} == {shard}
    assert (world.hits.queued_items, world.hits.queued_bytes) == (0, 0)


async def test_a_client_that_leaves_takes_nothing_with_it(world):
    world.actors.stalled = asyncio.Event()
    async with client(world.app) as http:
        hit = asyncio.create_task(http.get(f"/o/{world.token(TokenKind.OPEN)}"))
        leave = asyncio.create_task(
            http.post(
                f"/u/{world.token(TokenKind.UNSUBSCRIBE)}",
                data={"List-Unsubscribe": "One-Click"},
            )
        )
        await asyncio.sleep(0.03)
        for task in (hit, leave):
            task.cancel()
        await asyncio.gather(hit, leave, return_exceptions=True)
    world.actors.stalled.set()
    await world.hits.drain()
    await asyncio.sleep(0.01)
    assert len(world.rows()) == 1
    assert len(world.actors.commands(Unsubscribe)) == 1


async def test_a_full_queue_refuses_opens_and_lets_people_pass(world, monkeypatch):
    monkeypatch.setattr(gather, "QUEUE_ITEMS_MAX", 0)
    async with client(world.app) as http:
        refused = await http.get(f"/o/{world.token(TokenKind.OPEN)}")
        passed = await http.get(f"/c/{world.token(TokenKind.CLICK, URL)}")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (passed.status_code, passed.headers["location"]) == (302, URL)
    assert world.app.clicks_not_stored == 1


async def test_a_store_that_is_down(world, monkeypatch):
    monkeypatch.setattr(gather, "DEADLINE_S", 0.0)
    monkeypatch.setattr("serve_apps.tracking.CALL_DEADLINE_S", 0.0)

    def down(shard: int, command: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    world.actors.execute = down
    async with client(world.app) as http:
        assert (await http.get(f"/o/{world.token(TokenKind.OPEN)}")).status_code == 503
        assert (await http.get(f"/c/{world.token(TokenKind.CLICK, URL)}")).status_code == 302
        answer = await http.post(
            f"/u/{world.token(TokenKind.UNSUBSCRIBE)}", data={"List-Unsubscribe": "One-Click"}
        )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_person_who_is_gone_cannot_be_unsubscribed(world):
    def gone(shard: int, command: Any) -> Any:
        raise NotFound("no person has this id")

    world.actors.execute = gone
    async with client(world.app) as http:
        answer = await http.post(
            f"/u/{world.token(TokenKind.UNSUBSCRIBE)}", data={"List-Unsubscribe": "One-Click"}
        )
    assert answer.status_code == 404


async def test_a_slow_store_does_not_hold_a_click(world, monkeypatch):
    monkeypatch.setattr("serve_apps.tracking.CLICK_PATIENCE_S", 0.02)
    world.actors.stalled = asyncio.Event()
    async with client(world.app) as http:
        answer = await http.get(f"/c/{world.token(TokenKind.CLICK, URL)}")
        assert answer.status_code == 302
        world.actors.stalled.set()
        await world.hits.drain()
    assert len(world.rows()) == 1


async def test_the_front_door(world):
    async with client(world.app) as http:
        assert (await http.get("/")).headers["location"] == "/console/"
        assert "Disallow" in (await http.get("/robots.txt")).text
        assert (await http.get("/nothing")).status_code == 404


async def test_the_end_waits_for_what_was_taken(world):
    said: list[str] = []
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    stored = None

    async def receive() -> dict[str, Any]:
        nonlocal stored
        type_ = next(events)
        if type_ == "lifespan.shutdown":
            stored = world.app._add("opened", payload, None, Asked("Mail/1"))
        return {"type": type_}

    async def send(message: dict[str, Any]) -> None:
        said.append(message["type"])

    payload = world.ring.verify(world.token(TokenKind.OPEN), NOW)
    await world.app({"type": "lifespan"}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert stored is not None and stored.done()


async def test_a_view_link_leads_on_only_where_it_verifies(world):
    token = world.token(TokenKind.VIEW)
    async with client(world.app) as http:
        answer = await http.get(f"/v/{token}")
        assert answer.status_code == 302
        assert str(answer.next_request.url) == f"http://manta.test/v1/view/{token}"
        assert (await http.get(f"/v/{token[:-1]}")).status_code == 404
        assert (await http.get(f"/v/{world.token(TokenKind.OPEN)}")).status_code == 404
        assert (await http.post(f"/v/{token}")).status_code == 405
    assert world.actors.executed == []


async def test_whoever_reads_a_test_acts_for_nobody(world):
    ref = MessageRef(NOBODY, 99)
    async with client(world.app) as http:
        opened = await http.get(f"/o/{world.token(TokenKind.OPEN, ref=ref)}")
        clicked = await http.get(f"/c/{world.token(TokenKind.CLICK, URL, ref)}")
        form = {"List-Unsubscribe": "One-Click"}
        left = await http.post(f"/u/{world.token(TokenKind.UNSUBSCRIBE, ref=ref)}", data=form)
    assert (opened.content, clicked.headers["location"]) == (PIXEL, URL)
    assert left.status_code == 200 and "unsubscribed" in left.text
    assert world.actors.executed == []


# -- machines --------------------------------------------------------------------------------------

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


async def test_programs_are_judged_by_their_names(world):
    path = f"/o/{world.token(TokenKind.OPEN)}"
    async with client(world.app) as http:
        for agent in (BROWSER, "curl/8.5", "Mozilla/5.0", ""):
            await http.get(path, headers={"User-Agent": agent})
    human = [row["human"] for row in world.rows()]
    assert human[0] > 0.85 and human[1] < 0.05 and 0.4 < human[2] < 0.6 and human[3] < 0.5


async def test_the_decoy_leads_nowhere_and_is_a_machines_click(world):
    token = world.ring.sign(TokenKind.CLICK, world.ref, 5, DECOY_LINK)
    async with client(world.app) as http:
        answer = await http.get(f"/c/{token}", headers={"User-Agent": BROWSER})
        head = await http.head(f"/c/{token}")
    assert answer.status_code == head.status_code == 200
    assert "location" not in answer.headers and "close it" in answer.text
    (row,) = world.rows()
    assert (row["type"], row["item"]) == ("clicked", None)
    assert row["human"] < 0.05 and "decoy" in row["properties"]


async def test_who_asks_by_head_first_is_no_browser(world):
    path = f"/c/{world.token(TokenKind.CLICK, URL)}"
    headers = {"User-Agent": BROWSER}
    async with client(world.app) as http:
        await http.head(path, headers=headers)
        await http.get(path, headers=headers)
        await http.get(path, headers=headers)
        await http.head(path, headers=headers)
        world.clock.advance(HEAD_BEFORE_S + 1)
        await http.get(path, headers=headers)
    assert [row["human"] < 0.5 for row in world.rows()] == [True, False, False]


async def test_an_address_is_believed_from_trusted_proxies_only(world):
    path = f"/o/{world.token(TokenKind.OPEN)}"
    headers = {"User-Agent": "Mozilla/5.0", "X-Forwarded-For": "17.58.1.1"}
    keys = LinkKeys(world.handles.catalog, "default", world.clock)
    trusting = Tracking(world.handles, keys, world.hits, TrustedProxies(["127.0.0.0/8"]))
    for app in (world.app, trusting):
        async with client(app) as http:
            await http.get(path, headers=headers)
    unknown, apple = world.rows()
    assert unknown["human"] > 0.4 and "network" not in unknown["properties"]
    assert apple["human"] < 0.1 and '"network": "privacy_proxy"' in apple["properties"]
    assert "17.58" not in apple["properties"]  # addresses are not kept


def judged(witness: Witness, message: int, asked: Asked, now_s: float) -> float:
    return witness.judged("clicked", (message, message, 1), asked, False, now_s)[1]


def test_one_address_cannot_read_for_a_crowd():
    witness = Witness()
    asked = Asked(BROWSER, "192.0.2.1")
    human = [judged(witness, n, asked, 0.5) for n in range(30)]
    assert human[0] > 0.5 and human[-1] < 0.5
    assert judged(witness, 1, asked, 1.5) > 0.5  # the next second
    assert all(judged(witness, 7, asked, 2.5) > 0.5 for _ in range(30))  # one message, reloaded


def test_a_program_that_is_suddenly_everywhere_is_a_scanner():
    witness = Witness()
    for second in range(60):  # ordinary minutes: two programs of people
        for n in range(40):
            judged(witness, n, Asked(BROWSER if n % 2 else "Outlook-iOS/7"), second)
    other = BROWSER.replace("140", "115")
    human = [judged(witness, n, Asked(other), 61.0) for n in range(60)]
    assert human[0] > 0.5 and human[-1] < 0.5
    crowd = [judged(witness, n, Asked(BROWSER), 62.0) for n in range(200)]  # a campaign goes out
    assert all(each > 0.5 for each in crowd)


def test_what_a_replica_remembers_is_bounded():
    witness = Witness()
    for n in range(12_000):
        witness.head(n, n, 0, 0.0)
        judged(witness, n, Asked(f"Program/{n} (Windows)"), n / 3_000)
    assert len(witness._heads) <= 10_000
    assert len(witness._crowd._usual) <= 4_096 + 3_000
