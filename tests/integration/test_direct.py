"""Direct to MX, whole: a real DNS server, real SMTP servers on loopback addresses, real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import pytest
import uvloop
from aiosmtpd.smtp import SMTP

from actors.io.dns import DnsClient
from actors.io.policies import HttpsFetch, Policies
from actors.io.smtp import DirectConnector, SmtpConnection, SmtpConnector, SmtpLimits
from actors.resolver import Resolver
from manta.clock import SystemClock
from manta.delivery.lanes import Lane, Site
from manta.delivery.replies import Reply, Verdict
from manta.delivery.routing.sites import must_verify
from manta.delivery.transaction import Envelope
from manta.errors import InvalidRequest, RetryableError
from manta.settings import DnsSettings, EgressSource
from sandbox.dns import Trouble, dns_server
from tests.integration.certificates import Authority

LIMITS = SmtpLimits(
    connect_s=0.5,
    banner_s=0.5,
    ehlo_s=0.5,
    tls_s=0.5,
    open_s=3.0,
    mail_s=1.0,
    rcpt_s=1.0,
    data_initial_s=1.0,
    data_block_s=1.0,
    data_termination_s=1.0,
    burst_s=3.0,
    quit_s=0.3,
)
MAIL = Envelope("b@us.example", "r@a.test", b"Subject: x\r\n\r\nhello\r\n", 1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class NoProviders:
    version = "test"

    def provider_of(self, domain, exchangers=()):
        return None


class Exchanger:
    """An aiosmtpd handler that notes what it takes, and who brought it."""

    def __init__(self) -> None:
        self.peers: list[str] = []
        self.hello = ""
        self.taken: list[str] = []

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = self.hello = hostname
        self.peers.append(session.peer[0])
        return responses

    async def handle_DATA(self, server, session, envelope):
        self.taken.extend(envelope.rcpt_tos)
        return "250 2.0.0 taken"


class Net:
    """The zone, and exchangers by address, all at one port."""

    def __init__(self, dns, authority: Authority, stack: contextlib.AsyncExitStack) -> None:
        self.dns = dns
        self.zone = dns.zone
        self.authority = authority
        self.port = 0
        self._stack = stack
        self._hosts = 1

    async def exchanger(self, host: str, **options) -> Exchanger:
        """An SMTP server for the host, which is known to the DNS from now on."""
        handler = Exchanger()
        loop = asyncio.get_running_loop()
        await self.listen(host, lambda: SMTP(handler, hostname=host, loop=loop, **options))
        return handler

    async def listen(self, host: str, protocol) -> None:
        address = self.address_of(host)
        server = await asyncio.get_running_loop().create_server(protocol, address, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._stack.push_async_callback(_closed, server)

    async def scripted(self, host: str, talk) -> None:
        async def serve(reader, writer):
            try:
                await talk(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        address = self.address_of(host)
        server = await asyncio.start_server(serve, address, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._stack.push_async_callback(_closed, server)

    def address_of(self, host: str) -> str:
        """A loopback address of the host's own, which nobody listens at."""
        self._hosts += 1
        address = f"127.0.0.{self._hosts}"
        self.zone[host] = {**self.zone.get(host, {}), "A": [address]}
        return address

    def resolver(self, timeout_s: float = 0.5, https_port: int = 1, private: bool = True):
        clock = SystemClock()
        dns = DnsClient(DnsSettings((self.dns.address,), timeout_s), clock)
        fetch = HttpsFetch(
            dns,
            private=private,
            context=self.authority.client_context(),
            port=https_port,
            timeout_s=1.0,
        )
        shaping = NoProviders()
        policies = Policies(dns, fetch, clock)
        return Resolver(dns, policies, shaping, lambda text: shaping, clock, private=private)

    def connector(self, resolver: Resolver, **options) -> DirectConnector:
        source = EgressSource(
            name="direct",
            kind="direct",
            port=self.port,
            ca_file=self.authority.file,
            ehlo_name="out.us.example",
        )
        return DirectConnector(replace(source, **options), LIMITS, resolver.routes, Random(1))


async def _closed(server) -> None:
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.01)  # aiosmtpd ends its tasks after the loop sees the close


@contextlib.asynccontextmanager
async def made_net(authority: Authority) -> AsyncIterator[Net]:
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(dns_server({}))
        yield Net(server, authority, stack)


@pytest.fixture
async def net(authority) -> AsyncIterator[Net]:
    async with made_net(authority) as made:
        yield made


def lane_of(site: Site) -> Lane:
    return Lane("pool", "direct", site.name, site.provider)


async def site_of(resolver: Resolver, domain: str) -> Site:
    (site,) = (await resolver.sites([domain], True)).values()
    assert site is not None, f"{domain} has no site now"
    return site


async def connect(
    connector: DirectConnector, resolver: Resolver, domain: str, tls: str = "opportunistic"
) -> SmtpConnection | Reply:
    site = await site_of(resolver, domain)
    return await connector.connect(lane_of(site), site, tls, 10)


async def deliver(connector, resolver, domain: str, tls: str = "opportunistic") -> SmtpConnection:
    """One message brought to the domain; the connection is closed."""
    connection = await connect(connector, resolver, domain, tls)
    assert isinstance(connection, SmtpConnection), connection
    (reply,) = await connection.send_burst([MAIL])
    assert reply.verdict is Verdict.ACCEPTED
    await connection.quit()
    return connection


async def refused(connector, resolver, domain: str, tls: str = "opportunistic") -> Reply:
    reply = await connect(connector, resolver, domain, tls)
    assert isinstance(reply, Reply), "connected"
    assert reply.verdict is Verdict.NOT_SENT
    return reply


# -- where mail goes -------------------------------------------------------------------------------


async def test_the_most_preferred_exchanger_takes_the_mail(net):
    one, two = await net.exchanger("mx1.a.test"), await net.exchanger("mx2.a.test")
    net.zone["a.test"] = {"MX": ["20 mx2.a.test", "10 mx1.a.test"]}
    resolver = net.resolver()
    connector = net.connector(resolver)
    for _ in range(5):
        await deliver(connector, resolver, "a.test")
    assert (len(one.taken), len(two.taken)) == (5, 0)
    assert one.hello == "out.us.example"


async def test_equally_preferred_exchangers_share_the_mail(net):
    one, two = await net.exchanger("mx1.a.test"), await net.exchanger("mx2.a.test")
    net.zone["a.test"] = {"MX": ["10 mx2.a.test", "10 mx1.a.test"]}
    resolver = net.resolver()
    connector = net.connector(resolver)
    for _ in range(20):
        await deliver(connector, resolver, "a.test")
    assert one.taken and two.taken


async def test_the_next_exchanger_takes_over_and_the_dead_one_comes_last(net):
    await net.exchanger("mx2.a.test")
    net.address_of("mx1.a.test")
    net.zone["a.test"] = {"MX": ["10 mx1.a.test", "20 mx2.a.test"]}
    resolver = net.resolver()
    connector = net.connector(resolver)
    site = await site_of(resolver, "a.test")
    routes = await resolver.routes(site)
    assert [route.host for route, _ in connector._order(routes)] == ["mx1.a.test", "mx2.a.test"]
    await deliver(connector, resolver, "a.test")
    assert [route.host for route, _ in connector._order(routes)] == ["mx2.a.test", "mx1.a.test"]


async def test_an_exchanger_that_turns_us_away_sends_us_to_the_next(net):
    async def busy(reader, writer):
        writer.write(b"421 4.7.0 too many connections from you\r\n")
        await writer.drain()

    await net.scripted("mx1.a.test", busy)
    net.zone["a.test"] = {"MX": ["10 mx1.a.test"]}
    resolver = net.resolver()
    connector = net.connector(resolver)
    reply = await refused(connector, resolver, "a.test")
    assert (reply.code, reply.text) == (421, "4.7.0 too many connections from you")

    two = await net.exchanger("mx2.b.test")
    net.zone["b.test"] = {"MX": ["10 mx1.a.test", "20 mx2.b.test"]}
    await deliver(connector, resolver, "b.test")
    assert two.taken


@pytest.mark.parametrize("dead_preference", [5, 20])
async def test_a_server_s_words_are_told_rather_than_a_dead_one_s_silence(net, dead_preference):
    async def blocked(reader, writer):
        writer.write(b"554 5.7.1 you are on a list\r\n")
        await writer.drain()

    net.address_of("mx2.a.test")
    await net.scripted("mx1.a.test", blocked)
    net.zone["a.test"] = {"MX": ["10 mx1.a.test", f"{dead_preference} mx2.a.test"]}
    resolver = net.resolver()
    reply = await refused(net.connector(resolver), resolver, "a.test")
    assert (reply.code, reply.text) == (554, "5.7.1 you are on a list")


async def test_a_silent_exchanger_costs_its_limit_and_no_more(net):
    async def silent(reader, writer):
        await reader.read()

    await net.scripted("mx1.a.test", silent)
    two = await net.exchanger("mx2.a.test")
    net.zone["a.test"] = {"MX": ["10 mx1.a.test", "20 mx2.a.test"]}
    resolver = net.resolver()
    await deliver(net.connector(resolver), resolver, "a.test")
    assert two.taken


async def test_without_mx_the_address_of_the_domain_counts(net):
    host = await net.exchanger("a.test")
    resolver = net.resolver()
    assert (await site_of(resolver, "a.test")).exchangers == (("a.test",),)
    await deliver(net.connector(resolver), resolver, "a.test")
    assert host.taken


async def test_an_alias_as_exchanger_is_followed(net):
    host = await net.exchanger("real.a.test")
    net.zone["alias.a.test"] = {"CNAME": ["real.a.test"]}
    net.zone["a.test"] = {"MX": ["10 alias.a.test"]}
    resolver = net.resolver()
    await deliver(net.connector(resolver), resolver, "a.test")
    assert host.taken


async def test_ipv6_is_used_and_ipv4_comes_first(net):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    host = await net.exchanger("mx.a.test")
    net.zone["mx.a.test"]["AAAA"] = ["::1"]
    net.zone["a.test"] = {"MX": ["10 mx.a.test"]}
    resolver = net.resolver()
    await deliver(net.connector(resolver), resolver, "a.test")
    assert host.peers[-1].startswith("127.")
    six = net.connector(resolver, source_address="::1")
    routes = await resolver.routes(await site_of(resolver, "a.test"))
    assert [address for _, address in six._order(routes)] == ["::1"]


async def test_domains_with_the_same_exchangers_share_a_site(net):
    net.address_of("mx1.p.test")
    net.address_of("mx2.p.test")
    net.zone["a.test"] = {"MX": ["10 mx1.p.test", "20 mx2.p.test"]}
    net.zone["b.test"] = {"MX": ["5 MX1.p.test", "6 MX2.p.test"]}
    net.zone["c.test"] = {"MX": ["10 mx2.p.test", "20 mx1.p.test"]}
    resolver = net.resolver()
    sites = await resolver.sites(["a.test", "B.TEST", "c.test"], True)
    assert sites["a.test"] == sites["B.TEST"] != sites["c.test"]
    assert sites["a.test"].name.startswith("mx1.p.test~")


async def test_domains_that_can_never_get_mail_are_refused_with_the_reason(net):
    net.zone["null.test"] = {"MX": ["0 ."]}
    net.zone["text.test"] = {"TXT": ["no mail here"]}
    net.zone["ip.test"] = {"MX": ["10 127.0.0.1"]}
    net.zone["dangling.test"] = {"MX": ["10 gone.test", "20 text.test"]}
    resolver = net.resolver()
    expected = {
        "null.test": "domain takes no mail (null MX)",
        "nowhere.test": "no such domain",
        "text.test": "domain has no MX, and no host that would take its mail has an address",
        "ip.test": "domain takes no mail (its MX names no host that can be reached)",
        "dangling.test": "no host that would take its mail has an address",
        "[127.0.0.1]": "not a domain name",
    }
    sites = await resolver.sites(list(expected), True)
    assert {domain: site.refusal for domain, site in sites.items()} == expected
    assert len({site.name for site in sites.values()}) == len(expected)
    reply = await refused(net.connector(resolver), resolver, "null.test")
    assert reply.text == "domain takes no mail (null MX)"


async def test_a_stranger_s_dns_does_not_lead_into_our_own_network(net):
    await net.exchanger("mx.a.test")
    net.zone["a.test"] = {"MX": ["10 mx.a.test"]}
    resolver = net.resolver(private=False)
    site = await site_of(resolver, "a.test")
    assert site.refusal == "its exchangers have private addresses only"
    with pytest.raises(RetryableError, match="has an address"):
        await resolver.routes(Site("mx.a.test", "mx.a.test", (("mx.a.test",),)))


async def test_it_connects_from_the_source_s_address(net):
    host = await net.exchanger("mx.a.test")
    net.zone["a.test"] = {"MX": ["10 mx.a.test"]}
    resolver = net.resolver()
    await deliver(net.connector(resolver, source_address="127.0.0.99"), resolver, "a.test")
    assert host.peers[-1] == "127.0.0.99"

    reply = await refused(net.connector(resolver, source_address="192.0.2.1"), resolver, "a.test")
    assert "cannot connect from 192.0.2.1" in reply.text
    reply = await refused(net.connector(resolver, source_address="::1"), resolver, "a.test")
    assert reply.text == "no exchanger of mx.a.test can be reached from direct"
    with pytest.raises(InvalidRequest, match="no IP address"):
        net.connector(resolver, source_address="eth0")


async def test_a_relay_too_is_reached_from_the_source_s_address(net):
    host = await net.exchanger("relay.test")
    address = net.zone["relay.test"]["A"][0]
    source = EgressSource(
        host=address, port=net.port, tls="none", source_address="127.0.0.98", ehlo_name="us.example"
    )
    connection = await SmtpConnector(source, limits=LIMITS).connect()
    assert isinstance(connection, SmtpConnection)
    await connection.quit()
    assert (host.peers, host.hello) == (["127.0.0.98"], "us.example")


# -- TLS -------------------------------------------------------------------------------------------


async def secured(net: Net, domain: str, *names: str, expired: bool = False) -> Exchanger:
    context = net.authority.server_context(*(names or (f"mx.{domain}",)), expired=expired)
    net.zone[domain] = {"MX": [f"10 mx.{domain}"]}
    return await net.exchanger(f"mx.{domain}", tls_context=context)


async def test_encryption_by_mode_and_certificate(net):
    await secured(net, "good.test")
    await secured(net, "old.test", expired=True)
    await secured(net, "other.test", "mx.elsewhere.test")
    await net.exchanger("plain.test")
    resolver = net.resolver()
    connector = net.connector(resolver)
    for domain in ("good.test", "old.test", "other.test"):
        assert (await deliver(connector, resolver, domain, "opportunistic")).encrypted
        assert (await deliver(connector, resolver, domain, "required")).encrypted
        assert not (await deliver(connector, resolver, domain, "none")).encrypted
    assert not (await deliver(connector, resolver, "plain.test", "opportunistic")).encrypted
    assert (await deliver(connector, resolver, "good.test", "verified")).encrypted
    expected = {
        "old.test": "certificate has expired",
        "other.test": "Hostname mismatch",
        "plain.test": "STARTTLS extension not supported",
    }
    for domain, why in expected.items():
        reply = await refused(connector, resolver, domain, "verified")
        assert why in reply.text and reply.code == 0
    assert "STARTTLS" in (await refused(connector, resolver, "plain.test", "required")).text
    with pytest.raises(InvalidRequest, match="no TLS mode"):
        await connect(connector, resolver, "good.test", "sometimes")


async def test_broken_tls_falls_back_to_clear_text_and_is_remembered(net):
    said: list[bytes] = []

    async def broken(reader, writer):
        writer.write(b"220 mx.a.test\r\n")
        while line := await reader.readline():
            said.append(line.strip())
            if line.startswith(b"STARTTLS"):
                writer.write(b"220 go on\r\nthis is no TLS, whatever I said\r\n")
                await writer.drain()
                return
            if line.startswith(b"EHLO"):
                writer.write(b"250-mx.a.test\r\n250 STARTTLS\r\n")
            elif line.startswith(b"QUIT"):
                writer.write(b"221 bye\r\n")
                return

    await net.scripted("mx.a.test", broken)
    net.zone["a.test"] = {"MX": ["10 mx.a.test"]}
    resolver = net.resolver()
    connector = net.connector(resolver)
    for _ in range(3):
        connection = await connect(connector, resolver, "a.test")
        assert isinstance(connection, SmtpConnection), connection
        assert not connection.encrypted
        await connection.quit()
    assert said.count(b"STARTTLS") == 1
    reply = await refused(connector, resolver, "a.test", "required")
    assert reply.code == 0 and said.count(b"STARTTLS") == 2


# -- MTA-STS ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def policy_server(net: Net, domain: str, policy: bytes, status: bytes = b"200 OK"):
    """Serves the policy by HTTPS; yields the paths that were asked for, and the port."""
    asked: list[str] = []

    async def serve(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split(b" ")[1].decode())
            assert f"Host: mta-sts.{domain}\r\n".encode() in head
            writer.write(
                b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nLocation: /elsewhere\r\n" % status
                + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(policy)
                + policy
            )
            await writer.drain()
        writer.close()

    host = f"mta-sts.{domain}"
    net.zone[f"_mta-sts.{domain}"] = {"TXT": ["v=STSv1; id=1;"]}
    address = net.address_of(host)
    context = net.authority.server_context(host)
    server = await asyncio.start_server(serve, address, 0, ssl=context)
    async with server:
        yield asked, server.sockets[0].getsockname()[1]


def policy(mode: str, *hosts: str) -> bytes:
    lines = ["version: STSv1", f"mode: {mode}", "max_age: 86400", *(f"mx: {h}" for h in hosts)]
    return "\r\n".join(lines).encode()


async def test_an_enforced_policy_wants_a_valid_certificate(net):
    one = await secured(net, "good.test")
    await secured(net, "old.test", expired=True)
    async with (
        policy_server(net, "good.test", policy("enforce", "*.good.test")) as (asked, port),
        policy_server(net, "old.test", policy("enforce", "mx.old.test")) as (_, other_port),
    ):
        resolver = net.resolver(https_port=port)
        connector = net.connector(resolver)
        site = await site_of(resolver, "good.test")
        assert must_verify(site)
        for mode in ("none", "opportunistic"):
            assert (await deliver(connector, resolver, "good.test", mode)).encrypted
        assert asked == ["/.well-known/mta-sts.txt"]
        assert one.taken

        resolver = net.resolver(https_port=other_port)
        reply = await refused(connector := net.connector(resolver), resolver, "old.test")
        assert "certificate has expired" in reply.text
        # The same exchanger takes the mail of domains that have no policy, as before.
        net.zone["free.test"] = {"MX": ["10 mx.old.test"]}
        assert (await deliver(connector, resolver, "free.test")).encrypted


async def test_an_enforced_policy_leaves_only_the_hosts_that_it_names(net):
    await secured(net, "a.test")
    evil = await net.exchanger("mx.evil.test")
    net.zone["a.test"] = {"MX": ["5 mx.evil.test", "10 mx.a.test"]}
    async with policy_server(net, "a.test", policy("enforce", "mx.a.test")) as (_, port):
        resolver = net.resolver(https_port=port)
        site = await site_of(resolver, "a.test")
        assert site.exchangers == (("mx.a.test",),)
        await deliver(net.connector(resolver), resolver, "a.test")
    assert not evil.peers


async def test_mail_waits_where_policy_and_mx_disagree(net):
    await secured(net, "a.test")
    async with policy_server(net, "a.test", policy("enforce", "mx.b.test")) as (_, port):
        resolver = net.resolver(https_port=port)
        reply = await refused(net.connector(resolver), resolver, "a.test")
    assert reply.text == (
        "no exchanger of a.test~mismatch+mta-sts may be used: "
        "its MTA-STS policy names none of its MX hosts"
    )


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (policy("testing", "mx.b.test"), b"200 OK"),
        (policy("none"), b"200 OK"),
        (policy("enforce", "mx.b.test"), b"302 Found"),
        (policy("enforce", "mx.b.test"), b"404 Not Found"),
        (policy("enforce", "mx.b.test") + b"\r\nx: y" * 20_000, b"200 OK"),
        (b"\x00\xff", b"200 OK"),
    ],
)
async def test_what_is_no_enforced_policy_changes_nothing(net, content, status):
    await secured(net, "a.test", expired=True)
    async with policy_server(net, "a.test", content, status) as (asked, port):
        resolver = net.resolver(https_port=port)
        site = await site_of(resolver, "a.test")
        assert not must_verify(site)
        assert asked == ["/.well-known/mta-sts.txt"]
        await deliver(net.connector(resolver), resolver, "a.test")


async def test_a_policy_host_with_another_s_certificate_or_a_private_address_has_no_policy(net):
    await secured(net, "a.test")
    async with policy_server(net, "b.test", policy("enforce", "mx.b.test")) as (asked, port):
        net.zone["_mta-sts.a.test"] = {"TXT": ["v=STSv1; id=1;"]}
        net.zone["mta-sts.a.test"] = net.zone["mta-sts.b.test"]
        resolver = net.resolver(https_port=port)
        assert not must_verify(await site_of(resolver, "a.test"))
        closed = HttpsFetch(
            resolver._dns, context=net.authority.client_context(), port=port, timeout_s=1.0
        )
        assert await closed("b.test") is None
    assert asked == []


# -- a DNS that lies, hangs or loops ---------------------------------------------------------------


@pytest.mark.parametrize("trouble", list(Trouble))
async def test_whatever_the_dns_does_a_domain_only_waits(net, trouble):
    net.zone["a.test"] = trouble
    resolver = net.resolver(timeout_s=0.3)
    async with asyncio.timeout(3):
        assert await resolver.sites(["a.test"], True) == {"a.test": None}
        with pytest.raises(RetryableError):
            await resolver.routes(Site("a.test", "a.test", (("a.test",),)))


async def test_exchangers_in_trouble_make_a_domain_wait_unless_another_can_be_reached(net):
    net.zone["mx1.a.test"] = Trouble.SERVFAIL
    net.zone["a.test"] = {"MX": ["10 mx1.a.test"]}
    net.zone["b.test"] = {"MX": ["10 mx1.a.test", "20 mx2.b.test"]}
    host = await net.exchanger("mx2.b.test")
    resolver = net.resolver()
    assert await resolver.sites(["a.test"], True) == {"a.test": None}
    await deliver(net.connector(resolver), resolver, "b.test")
    assert host.taken


async def test_aliases_in_a_circle_and_exchangers_that_are_the_domain_again(net):
    net.zone["x.test"] = {"CNAME": ["y.test"]}
    net.zone["y.test"] = {"CNAME": ["x.test"]}
    net.zone["self.test"] = {"MX": ["10 self.test"]}
    net.zone["circle.test"] = {"MX": ["10 x.test"]}
    resolver = net.resolver()
    sites = await resolver.sites(["x.test", "self.test", "circle.test"], True)
    assert sites["x.test"] is None and sites["circle.test"] is None
    assert sites["self.test"].refusal == "no host that would take its mail has an address"


async def test_a_policy_record_in_trouble_does_not_hold_mail_up(net):
    host = await net.exchanger("a.test")
    net.zone["_mta-sts.a.test"] = Trouble.SILENT
    resolver = net.resolver(timeout_s=0.3)
    await deliver(net.connector(resolver), resolver, "a.test")
    assert host.taken


async def test_an_exchanger_with_too_many_addresses_is_bounded(net):
    net.zone["a.test"] = {"MX": [f"10 mx{i}.a.test" for i in range(300)]}
    net.zone["*.a.test"] = {"A": [f"127.0.9.{i}" for i in range(1, 200)]}
    await net.exchanger("other.test")
    resolver = net.resolver(timeout_s=3)
    site = await site_of(resolver, "a.test")
    assert sum(map(len, site.exchangers)) == 50
    routes = await resolver.routes(site)
    assert {len(route.addresses) for route in routes} == {16}
    assert len(list(net.connector(resolver)._order(routes))) == 6
    reply = await refused(net.connector(resolver), resolver, "a.test")
    assert reply.code == 0 and reply.text.startswith("mx")


# -- uvloop, which Ray's actors run on -------------------------------------------------------------


@pytest.mark.parametrize(
    "scenario",
    [
        test_the_next_exchanger_takes_over_and_the_dead_one_comes_last,
        test_it_connects_from_the_source_s_address,
        test_encryption_by_mode_and_certificate,
        test_broken_tls_falls_back_to_clear_text_and_is_remembered,
        test_an_enforced_policy_wants_a_valid_certificate,
        test_aliases_in_a_circle_and_exchangers_that_are_the_domain_again,
    ],
)
def test_on_uvloop(scenario, authority):
    async def run() -> None:
        async with made_net(authority) as net:
            await scenario(net)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
