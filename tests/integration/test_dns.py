"""The DNS client against a real server: what is kept, for how long, and what each answer means."""

from __future__ import annotations

import asyncio

import dns.exception
import dns.message
import pytest
from dns.rdatatype import RdataType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.io.dns import DnsClient, _read, servers_of
from manta.clock import ManualClock
from manta.delivery.routing.sites import Answer, Found
from manta.errors import InvalidRequest
from manta.settings import DnsSettings
from sandbox.dns import Trouble, dns_server

ZONE = {
    "a.test": {
        "MX": ["20 mx2.a.test", "10 MX1.a.test"],
        "TXT": ["v=spf1 -all", "é" * 300, 'say "\\hello"'],
    },
    "mx1.a.test": {"A": ["127.0.0.2", "127.0.0.3"], "AAAA": ["::1"]},
    "six.a.test": {"AAAA": ["::1"]},
    "alias.test": {"CNAME": ["a.test"]},
    "away.test": {"CNAME": ["gone.test"]},
    "2.0.0.127.in-addr.arpa": {"PTR": ["mx1.a.test"]},
    "broken.test": Trouble.SERVFAIL,
    "long.test": {"MX": [f"{i} mx{i}.a-name-that-takes-room.test" for i in range(400)]},
    "*.wild.test": {"A": ["127.0.0.9"]},
}


@pytest.fixture
def server():
    with dns_server(dict(ZONE), ttl_s=120, negative_ttl_s=90) as running:
        yield running


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def client(server, clock):
    return DnsClient(DnsSettings((server.address,), 0.5), clock)


async def test_each_kind_of_record(client):
    mx = await client.mx("A.test")
    assert mx == Answer(Found.RECORDS, ("10 MX1.a.test.", "20 mx2.a.test."), 120.0)
    assert (await client.mx("alias.test")).records == mx.records
    assert set((await client.txt("a.test")).records) == set(ZONE["a.test"]["TXT"])
    assert (await client.ptr("127.0.0.2")).records == ("mx1.a.test",)
    assert (await client.ptr("nonsense")).found is Found.TROUBLE
    addresses = (await client.addresses("mx1.a.test")).records
    assert set(addresses[:2]) == {"127.0.0.2", "127.0.0.3"} and addresses[2:] == ("::1",)
    assert (await client.addresses("six.a.test")).records == ("::1",)
    assert (await client.addresses("any.wild.test")).records == ("127.0.0.9",)


async def test_what_is_not_there(client):
    assert (await client.mx("mx1.a.test")).found is Found.NOTHING
    assert (await client.mx("wild.test")).found is Found.NOTHING  # a name below it exists
    assert (await client.mx("gone.test")).found is Found.NO_NAME
    assert (await client.mx("away.test")).found is Found.NO_NAME
    assert (await client.addresses("gone.test")).found is Found.NO_NAME
    assert (await client.addresses("a.test")).found is Found.NOTHING


@pytest.mark.parametrize("name", ["", ".", "a..test", "x" * 64 + ".test", "x." * 200, "\x00.test"])
async def test_any_name_gets_an_answer(client, name):
    assert (await client.mx(name)).found is not Found.RECORDS


async def test_an_answer_that_udp_cannot_hold_comes_by_tcp(client, server):
    records = (await client.mx("long.test")).records
    assert [int(record.split()[0]) for record in records] == list(range(100))  # the most preferred
    assert server.asked["long.test", "MX"] == 2


async def test_answers_are_kept_for_their_time(client, server, clock):
    for name, kept_s in (("a.test", 120), ("gone.test", 90), ("broken.test", 30)):
        await client.mx(name)
        asked = server.asked[name, "MX"]
        clock.advance(kept_s - 1)
        assert (await client.mx(name)).ttl_s == pytest.approx(1.0)
        assert server.asked[name, "MX"] == asked
        clock.advance(1)
        await client.mx(name)
        assert server.asked[name, "MX"] == 2 * asked


async def test_the_oldest_give_way(server, clock):
    client = DnsClient(DnsSettings((server.address,), 0.5), clock, entries_max=3)
    for i in range(5):
        await client.mx(f"x{i}.test")
    assert client.status()["kept"] == 3
    await client.mx("x4.test")
    assert server.asked["x4.test", "MX"] == 1
    await client.mx("x0.test")
    assert server.asked["x0.test", "MX"] == 2


async def test_one_question_is_in_flight_for_all_who_ask(client, server):
    answers = await asyncio.gather(*(client.mx("a.test") for _ in range(50)))
    assert len(set(answers)) == 1
    assert server.asked["a.test", "MX"] == 1


async def test_who_gives_up_takes_the_answer_from_nobody(server, clock):
    server.zone["slow.test"] = Trouble.SILENT
    client = DnsClient(DnsSettings((server.address,), 0.3), clock)
    one, two = (asyncio.ensure_future(client.mx("slow.test")) for _ in range(2))
    await asyncio.sleep(0.05)
    one.cancel()
    assert (await two) == Answer(Found.TROUBLE, (), 30.0, "no answer in time")
    assert one.cancelled()
    assert client.status()["in_flight"] == 0


async def test_the_next_server_is_asked_where_one_does_not_answer(server, clock):
    with dns_server(dict.fromkeys(("a.test",), Trouble.SILENT)) as silent:
        for first in (silent.address, "127.0.0.1:1"):
            client = DnsClient(DnsSettings((first, server.address), 0.8), clock)
            assert (await client.mx("a.test")).found is Found.RECORDS


async def test_the_next_server_is_asked_where_one_refuses(server, clock):
    with dns_server({"a.test": Trouble.REFUSED}) as refusing:
        client = DnsClient(DnsSettings((refusing.address, server.address), 0.8), clock)
        assert (await client.mx("a.test")).found is Found.RECORDS
        assert refusing.asked["a.test", "MX"] == 1


async def test_one_family_in_trouble_does_not_hide_the_other(server, clock):
    client = DnsClient(DnsSettings((server.address,), 0.2), clock)
    answer = server.answer

    def no_six(wire: bytes, bytes_max: int) -> bytes | None:
        return None if b"\x00\x1c\x00\x01" in wire else answer(wire, bytes_max)

    server.answer = no_six
    found = await client.addresses("mx1.a.test")
    assert set(found.records) == {"127.0.0.2", "127.0.0.3"}
    assert (await client.addresses("a.test")).found is Found.TROUBLE


async def test_a_crowd_of_questions_ends_in_time_where_nobody_answers(server, clock):
    server.zone = {"*.dead.test": Trouble.SILENT}
    client = DnsClient(DnsSettings((server.address,), 0.1), clock)
    began_s = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(client.mx(f"x{i}.dead.test") for i in range(600)))
    assert {answer.found for answer in answers} == {Found.TROUBLE}
    assert asyncio.get_running_loop().time() - began_s < 3.0


SPOILT = st.tuples(
    st.lists(st.tuples(st.integers(2, 300), st.binary(max_size=4)), max_size=6), st.integers(0, 300)
)


def spoilt(wire: bytes, how: tuple[list[tuple[int, bytes]], int]) -> bytes:
    """A true message with bytes overwritten behind its id, and cut."""
    said = bytearray(wire)
    for at, new in how[0]:
        said[at : at + len(new)] = new
    return bytes(said[: len(said) - how[1]] if how[1] < len(said) else said)


@given(SPOILT)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
async def test_a_server_that_says_anything_gets_no_more_than_an_answer(server, how):
    answer = server.answer
    server.answer = lambda wire, bytes_max: spoilt(answer(wire, bytes_max) or b"", how)
    try:
        client = DnsClient(DnsSettings((server.address,), 0.02), ManualClock())
        async with asyncio.timeout(2):
            for ask in (client.mx, client.txt, client.addresses):
                found = await ask("a.test")
                assert (found.found is Found.RECORDS) is bool(found.records)
    finally:
        server.answer = answer


@given(SPOILT, st.sampled_from(["a.test", "alias.test", "gone.test"]))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_message_that_can_be_parsed_is_read(server, how, name):
    query = dns.message.make_query(name, "MX")
    try:
        said = dns.message.from_wire(spoilt(server.answer(query.to_wire(), 9_999), how))
        answer, _ = _read(said, RdataType.MX)
    except dns.exception.DNSException:
        return  # trouble
    assert (answer.found is Found.RECORDS) is bool(answer.records)


def test_what_is_no_answer_to_a_query_is_trouble():
    assert _read(dns.message.Message(), RdataType.MX)[0].found is Found.TROUBLE


def test_servers_are_addresses():
    def parsed(*texts):
        return servers_of(DnsSettings(texts))

    assert parsed("192.0.2.1", "192.0.2.1:5353") == [("192.0.2.1", 53), ("192.0.2.1", 5353)]
    assert parsed("::1", "[::1]", "[::1]:5353") == [("::1", 53), ("::1", 53), ("::1", 5353)]
    for bad in ("dns.example", "192.0.2.1:0", "192.0.2.1:x", "[::1", "192.0.2.1:70000", ""):
        with pytest.raises(InvalidRequest, match="is not an address"):
            parsed(bad)
