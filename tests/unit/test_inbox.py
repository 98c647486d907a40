"""Mail that comes in, over real SMTP: who is concerned, what is answered when."""

import asyncio
import json
from datetime import timedelta

import pytest

from manta.content.mime import message_id
from manta.errors import NotReady, OutcomeUnknown
from manta.ids import NOBODY, MessageRef
from tests.unit.inbox_house import (
    DOMAIN,
    SAMPLES,
    arf,
    dsn,
    inbox_house,
    key_document,
    note,
)

SUPPRESSIONS = "SELECT address, reason, source FROM suppressions ORDER BY 1"


@pytest.fixture
async def house():
    async with inbox_house() as house:
        yield house


def someone(house, email="Ann@x.example", key=11, **columns):
    return house.shards.accepted(house.shards.person(email), key, **columns)


async def test_a_bounce_is_stored_before_it_is_taken(house):
    ref = someone(house)
    assert await house.send(house.return_path(ref), dsn()) == "250 2.0.0 taken"
    assert house.shards.rows(SUPPRESSIONS) == [("ann@x.example", "hard_bounce", "dsn")]
    ((who, item, properties),) = house.shards.rows(
        "SELECT subscriber_id, item, properties FROM events WHERE type = 'bounced'"
    )
    assert (who, item) == (ref.subscriber_id, "hard")
    assert "550 5.1.1 no such user" in json.loads(properties)["diagnostic"]
    assert house.inbox.counts["bounce"] == 1


async def test_the_answer_waits_for_the_commit(house):
    ref = someone(house)
    house.shards.gate = asyncio.Event()
    sending = asyncio.ensure_future(house.send(house.return_path(ref), dsn()))
    while not house.shards.log:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    assert not sending.done()
    house.shards.gate.set()
    assert (await sending).startswith("250")


@pytest.mark.parametrize("error", [NotReady("x"), OutcomeUnknown("x")])
async def test_what_cannot_be_stored_comes_again_and_counts_once(house, error):
    ref = someone(house)
    house.shards.trouble = [error]
    assert (await house.send(house.return_path(ref), dsn())).startswith("451 4.3.0")
    assert house.shards.rows(SUPPRESSIONS) == []
    for _ in range(2):
        assert (await house.send(house.return_path(ref), dsn())).startswith("250")
    assert house.shards.rows("SELECT count(*) FROM events WHERE type = 'bounced'")[1:] in (
        [(0,)],
        [(1,)],
    )
    assert sum(n for (n,) in house.shards.rows("SELECT count(*) FROM events")) == 1


async def test_a_death_between_the_two_shards_is_mended_by_the_retry(house):
    """The person lives in another shard than their address."""
    shards = house.shards
    owner = shards.of_identity("email", "ann@x.example")
    person = shards.person("ann@x.example", home=1 - owner)
    ref = shards.accepted(person, 11)
    shards.trouble = []

    async def die_in_the_owners(shard, command, deadline_s=30.0, execute=shards.execute):
        if shard == owner:
            raise OutcomeUnknown("gone")
        return await execute(shard, command, deadline_s)

    whole, shards.execute = shards.execute, die_in_the_owners
    assert (await house.send(house.return_path(ref), dsn())).startswith("451")
    shards.execute = whole
    assert (await house.send(house.return_path(ref), dsn())).startswith("250")
    assert shards.rows(SUPPRESSIONS) == [
        ("ann@x.example", "hard_bounce", "dsn"),
        ("ann@x.example", "hard_bounce", "dsn"),
    ]


async def test_the_signature_says_whom_it_is_about(house):
    ref = someone(house)
    someone(house, "victim@y.example", 12)
    await house.send(house.return_path(ref), dsn("victim@y.example"))
    assert [row[0] for row in house.shards.rows(SUPPRESSIONS)] == ["ann@x.example"]


@pytest.mark.parametrize(
    "raw",
    [
        dsn(action="delayed", status="4.4.1", diagnostic="451 4.4.1 no answer"),
        dsn(action="delivered", status="2.0.0", diagnostic="250 ok"),
        note("Out of office", "I am away until Monday.", Auto_Submitted="auto-replied"),
        note("Re: news", "I like your mails!"),
        note("Re: news", "550 5.1.1 no such user"),
        b"\r\n",
        b"x",
    ],
)
async def test_what_is_no_bounce_suppresses_nobody(house, raw):
    ref = someone(house)
    assert (await house.send(house.return_path(ref), raw)).startswith("250")
    assert house.shards.log == []
    assert sum(house.inbox.counts.values()) == 1


async def test_a_test_mail_concerns_the_address_it_went_to(house):
    ref = someone(house, key=13, kind="test", send_to="me@own.example")
    await house.send(house.return_path(ref), dsn("me@own.example"))
    assert {row[0] for row in house.shards.rows(SUPPRESSIONS)} == {"me@own.example"}


# -- addresses -------------------------------------------------------------------------------------


async def test_forged_and_foreign_addresses_are_refused(house):
    ref = someone(house)
    local = house.return_path(ref).partition("@")[0]
    other = local[:-1] + ("0" if local[-1] != "0" else "1")
    talk = await house.talk()
    await talk.envelope()
    for address in (f"{other}@{DOMAIN}", f"nobody@{DOMAIN}", f"{'0' * 45}@{DOMAIN}"):
        assert (await talk.say(f"RCPT TO:<{address}>")).startswith("550 5.1.1")
    assert (await talk.say(f"RCPT TO:<{local}@elsewhere.example>")).startswith("550 5.7.1")
    assert (await talk.say(f"RCPT TO:<{local.upper()}@{DOMAIN.upper()}>")).startswith("250")
    assert (await talk.say("RCPT TO:<postmaster>")).startswith("250")
    await talk.close()


async def test_a_key_that_expired_no_longer_opens(house):
    ref = someone(house)
    address = house.return_path(ref)
    house.catalog.documents.append(key_document(2, b"n" * 32))
    assert (await house.send(address, note())).startswith("250")
    house.clock.advance(timedelta(days=401).total_seconds())
    assert (await house.send(address, note())).startswith("550 5.1.1")


async def test_a_new_key_is_asked_for_and_a_forger_cannot_make_us_ask_often(house):
    ref = someone(house)
    assert (await house.send(house.return_path(ref), note())).startswith("250")
    house.clock.advance(6)
    house.catalog.documents.append(key_document(2, b"n" * 32))
    assert (await house.send(house.return_path(ref), note())).startswith("250")
    assert house.catalog.calls == 2
    talk = await house.talk()
    await talk.envelope(*[f"forged{n}@{DOMAIN}" for n in range(10)])
    await talk.close()
    assert house.catalog.calls == 2


async def test_without_keys_mail_comes_again(house):
    house.catalog.trouble = [NotReady("starting")]
    assert (await house.send(f"abuse@{DOMAIN}", note())).startswith("451 4.3.0")
    assert (await house.send(f"abuse@{DOMAIN}", note())).startswith("250")
    assert house.inbox.counts["post"] == 1


# -- unsubscribing ---------------------------------------------------------------------------------


async def test_unsubscribing_by_mail(house):
    ref = someone(house)
    shard = house.shards.shards[house.shards.of_subscriber(ref.subscriber_id)]
    shard.load(
        "consents",
        {
            "subscriber_id": ref.subscriber_id,
            "channel": "email",
            "topic": "news",
            "status": "subscribed",
        },
    )
    raw = note("unsubscribe", "")
    for _ in range(2):
        assert (await house.send(house.unsubscribe_address(ref), raw)).startswith("250")
    assert shard.rows("SELECT DISTINCT status FROM consents") == [("unsubscribed",)]
    assert shard.rows("SELECT message_key, count(*) FROM events GROUP BY 1") == [(11, 1)]


async def test_programs_unsubscribe_nobody(house):
    ref = someone(house)
    for raw in (dsn(), note("Out of office", "away", Auto_Submitted="auto-replied")):
        assert (await house.send(house.unsubscribe_address(ref), raw)).startswith("250")
    assert house.shards.rows("SELECT count(*) FROM consents WHERE status = 'unsubscribed'") == [
        (0,),
        (0,),
    ]


async def test_the_reader_of_a_test_and_who_is_gone(house):
    for ref in (MessageRef(NOBODY, 5), MessageRef(1 << 47, 5)):
        assert (await house.send(house.unsubscribe_address(ref), note())).startswith("250")


# -- complaints ------------------------------------------------------------------------------------


async def test_a_complaint_that_holds_our_return_path(house):
    ref = someone(house)
    reply = await house.send(f"fbl@{DOMAIN}", arf(house.return_path(ref)))
    assert reply.startswith("250")
    assert house.shards.rows(SUPPRESSIONS) == [("ann@x.example", "complaint", "fbl")]
    assert house.inbox.counts["complaint"] == 1


async def test_a_complaint_that_holds_our_message_id(house):
    ref = someone(house)
    raw = arf(message_id=message_id(ref, "news.example"), to="redacted@x.example")
    assert (await house.send(f"fbl@{DOMAIN}", raw)).startswith("250")
    assert house.shards.rows(SUPPRESSIONS) == [("ann@x.example", "complaint", "fbl")]


async def test_a_complaint_at_the_return_path(house):
    ref = someone(house)
    await house.send(house.return_path(ref), arf())
    assert house.shards.rows(SUPPRESSIONS) == [("ann@x.example", "complaint", "fbl")]


async def test_an_address_alone_is_no_proof(house):
    someone(house)
    for raw in (arf(), arf("forged@bounces.example.com", "<0000000000001.zz@news.example>")):
        assert (await house.send(f"fbl@{DOMAIN}", raw)).startswith("250")
    assert house.shards.log == []
    assert house.inbox.counts["complaint_unmatched"] == 2


async def test_not_spam_is_no_complaint(house):
    ref = someone(house)
    await house.send(f"fbl@{DOMAIN}", arf(house.return_path(ref), kind="not-spam"))
    assert house.shards.rows(SUPPRESSIONS) == []


async def test_only_reports_are_taken_at_the_feedback_address(house):
    assert (await house.send(f"fbl@{DOMAIN}", note())).startswith("550 5.7.1")


async def test_one_mail_for_several_of_our_addresses(house):
    first, second = someone(house), someone(house, "bob@y.example", 12)
    talk = await house.talk()
    paths = [house.return_path(first), house.return_path(second), house.return_path(first)]
    await talk.envelope(*paths, f"fbl@{DOMAIN}")
    await talk.say("DATA")
    assert (await talk.say(dsn() + b".")).startswith("250")
    await talk.close()
    assert [row[0] for row in house.shards.rows(SUPPRESSIONS)] in (
        ["ann@x.example", "bob@y.example"],
        ["bob@y.example", "ann@x.example"],
    )


async def test_commands_in_one_group(house):
    """RFC 2920: the next message's commands travel right behind the dot of the former."""
    refs = [someone(house, f"p{n}@x.example", 20 + n) for n in range(3)]
    talk = await house.talk()
    assert "250-PIPELINING" in await talk.say("EHLO mx.example")
    groups = [
        f"MAIL FROM:<>\r\nRCPT TO:<{house.return_path(ref)}>\r\nDATA\r\n".encode() for ref in refs
    ]
    talk.writer.write(groups[0])
    for following in (*groups[1:], b"QUIT\r\n"):
        replies = [await talk.reply() for _ in range(3)]
        assert [reply[:3] for reply in replies] == ["250", "250", "354"]
        talk.writer.write(dsn() + b".\r\n" + following)
        assert (await talk.reply()).startswith("250 2.0.0 taken")
    assert (await talk.reply()).startswith("221")
    await talk.close()
    assert len(house.shards.rows(SUPPRESSIONS)) == 3


@pytest.mark.skipif(not SAMPLES.exists(), reason="the shared samples are not here")
async def test_real_bounces_come_through_the_door(house):
    ref = someone(house)
    talk = await house.talk()
    names = sorted((SAMPLES / "flufl").glob("*.txt"))[:40]
    for name in names:
        raw = b"\r\n".join(name.read_bytes().splitlines())
        reply = await talk.send(house.return_path(ref), raw)
        assert reply.startswith("250"), (name.name, reply)
    await talk.close()
    assert sum(house.inbox.counts.values()) == len(names) > 30
    assert len(house.shards.rows("SELECT 1 FROM events WHERE type = 'bounced'")) == 1
