"""The Resolver and the policies it applies, with a DNS and a web that are tables."""

from __future__ import annotations

import asyncio

import pytest

from actors.io.policies import Policies
from actors.resolver import Resolver
from manta.clock import ManualClock
from manta.delivery.lanes import OTHERS, Site
from manta.delivery.reputation.law import Law
from manta.delivery.routing.sites import Answer, Found, Route, must_verify
from manta.errors import InvalidRequest, RetryableError

TTL_S = 300.0


class FakeDns:
    """Answers from tables; ``down`` puts everything in trouble, ``hang`` keeps it waiting."""

    def __init__(self) -> None:
        self.mx_of: dict[str, tuple[str, ...]] = {}
        self.addresses_of: dict[str, tuple[str, ...]] = {}
        self.txt_of: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []
        self.down = False
        self.hang = asyncio.Event()
        self.hang.set()

    async def mx(self, domain: str) -> Answer:
        self.asked.append(domain)
        await self.hang.wait()
        return self._answer(self.mx_of.get(domain))

    async def addresses(self, host: str) -> Answer:
        await self.hang.wait()
        return self._answer(self.addresses_of.get(host))

    async def txt(self, name: str) -> Answer:
        return self._answer(self.txt_of.get(name))

    def status(self) -> dict[str, int]:
        return {"asked": len(self.asked)}

    def _answer(self, records: tuple[str, ...] | None) -> Answer:
        if self.down:
            return Answer(Found.TROUBLE, (), 30.0, "SERVFAIL")
        if not records:
            return Answer(Found.NOTHING, (), TTL_S)
        return Answer(Found.RECORDS, records, TTL_S)


class Providers:
    """Knows the domains that end in what it was made of."""

    def __init__(self, text: str = "") -> None:
        if text == "bad":
            raise InvalidRequest("bad text", path="line 1")
        self.version = self.end = text

    def provider_of(self, domain: str, exchangers=()) -> str | None:
        known = any(host.endswith(self.end) for host in (domain, *exchangers))
        return "known" if self.end and known else None


class World:
    def __init__(self, shaping: str = "") -> None:
        self.dns = FakeDns()
        self.clock = ManualClock()
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.policies = Policies(self.dns, self.fetch, self.clock)
        self.resolver = Resolver(
            self.dns,
            self.policies,
            Providers(shaping),
            Providers,
            self.clock,
            sites_within_s=0.05,
        )

    async def fetch(self, domain: str) -> bytes | None:
        self.fetched.append(domain)
        return self.files.get(domain)

    async def site(self, domain: str) -> Site | None:
        (site,) = (await self.resolver.sites([domain], True)).values()
        return site

    def domain(self, domain: str, *hosts: str) -> None:
        self.dns.mx_of[domain] = tuple(f"{i} {host}." for i, host in enumerate(hosts))
        for host in hosts:
            self.dns.addresses_of[host] = ("192.88.99.1", "2001:4860::1")

    def policy(self, domain: str, policy_id: str, mode: str, *hosts: str, max_age_s: int) -> None:
        self.dns.txt_of[f"_mta-sts.{domain}"] = (f"v=STSv1; id={policy_id}",)
        lines = ["version: STSv1", f"mode: {mode}", f"max_age: {max_age_s}"]
        self.files[domain] = "\n".join([*lines, *(f"mx: {host}" for host in hosts)]).encode()


@pytest.fixture
def world():
    return World()


async def test_relays_ask_no_dns():
    world = World("b.example")
    assert await world.resolver.sites(["a.example", "B.Example.", "[1.2.3.4]"], False) == {
        "a.example": Site(OTHERS, OTHERS),
        "B.Example.": Site("known", "known"),
        "[1.2.3.4]": Site(OTHERS, OTHERS),
    }
    assert world.dns.asked == []


async def test_routes_are_the_exchangers_that_have_addresses_by_preference(world):
    world.domain("a.example", "x.example", "y.example", "z.example")
    world.dns.addresses_of["y.example"] = ("10.0.0.1",)
    site = await world.site("a.example")
    assert await world.resolver.routes(tuple(site)) == [
        Route("x.example", ("192.88.99.1", "2001:4860::1"), False, 0),
        Route("z.example", ("192.88.99.1", "2001:4860::1"), False, 2),
    ]


async def test_routes_that_are_not_known_now_are_asked_for_again(world):
    world.domain("a.example", "x.example")
    site = await world.site("a.example")
    world.dns.down = True
    with pytest.raises(RetryableError, match=r"x\.example has an address: SERVFAIL"):
        await world.resolver.routes(site)


async def test_a_site_is_known_for_the_time_of_its_records(world):
    world.domain("a.example", "x.example")
    for _ in range(3):
        await world.site("a.example")
    assert world.dns.asked == ["a.example"]
    world.clock.advance(TTL_S)
    world.domain("a.example", "y.example")
    assert (await world.site("a.example")).name == "y.example"


async def test_a_domain_in_trouble_has_no_site_and_is_asked_for_again(world):
    world.domain("a.example", "x.example")
    world.dns.down = True
    assert await world.site("a.example") is None
    world.dns.down = False
    assert (await world.site("a.example")).name == "x.example"


async def test_that_a_known_provider_takes_no_mail_is_not_believed():
    world = World("b.example")
    world.dns.mx_of.update({"b.example": ("0 .",), "a.example": ("0 .",)})
    world.clock.advance(10 * 86_400)
    assert await world.site("b.example") is None
    assert (await world.site("a.example")).refusal == "domain takes no mail (null MX)"


async def test_that_a_domain_takes_no_mail_any_more_is_believed_after_an_hour(world):
    world.domain("a.example", "x.example")
    assert (await world.site("a.example")).refusal == ""
    world.dns.mx_of["a.example"] = ("0 .",)
    for elapsed_s in (TTL_S, 1_800, 1_799):
        world.clock.advance(elapsed_s)
        assert await world.site("a.example") is None
    world.domain("a.example", "x.example")  # once right in between, and the hour begins anew
    assert (await world.site("a.example")).refusal == ""
    world.dns.mx_of["a.example"] = ("0 .",)
    world.clock.advance(TTL_S)
    assert await world.site("a.example") is None
    world.clock.advance(3_600)
    assert (await world.site("a.example")).refusal != ""


async def test_a_call_ends_in_time_with_what_it_has(world):
    world.domain("a.example", "x.example")
    await world.site("a.example")
    world.dns.hang.clear()
    domains = ["b.example", "a.example", *(f"d{i}.example" for i in range(1_000))]
    sites = await world.resolver.sites(domains, True)
    assert list(sites) == domains
    assert {domain for domain, site in sites.items() if site} == {"a.example"}


async def test_a_fault_over_one_domain_keeps_no_other_waiting(world, caplog):
    world.domain("a.example", "x.example")
    world.policy("b.example", "1", "enforce", "x.example", max_age_s=600)
    world.domain("b.example", "x.example")

    async def fails(domain: str) -> bytes | None:
        raise RuntimeError("bytes that nobody thought of")

    world.policies._fetch = fails
    found = await world.resolver.sites(["b.example", "a.example"], True)
    assert found["b.example"] is None and found["a.example"].exchangers == (("x.example",),)
    assert (await world.resolver.status())["faults"] == 1
    assert "b.example" in caplog.text


async def test_the_law_tells_providers_and_a_bad_or_older_one_changes_nothing(world):
    world.domain("a.example", "x.known.example")
    assert (await world.site("a.example")).provider == "x.known.example"
    await world.resolver.law(Law(3, "known.example").to_document())
    assert (await world.site("a.example")).provider == "known"
    for law in (Law(2, ""), Law(4, "bad")):
        await world.resolver.law(law.to_document())
        assert (await world.site("a.example")).provider == "known"
    assert (await world.resolver.status())["law_version"] == 4
    await world.resolver.law(Law(5, "").to_document())
    assert (await world.site("a.example")).provider == "x.known.example"


# -- policies --------------------------------------------------------------------------------------


async def test_an_enforced_policy_is_fetched_once_and_marks_the_site(world):
    world.domain("a.example", "x.example", "y.example")
    world.policy("a.example", "1", "enforce", "x.example", max_age_s=86_400)
    site = await world.site("a.example")
    assert must_verify(site) and site.exchangers == (("x.example",),)
    assert [route.must_verify for route in await world.resolver.routes(site)] == [True]
    world.clock.advance(TTL_S)
    assert await world.site("a.example") == site
    assert world.fetched == ["a.example"]


async def test_a_policy_holds_until_its_end_whatever_becomes_of_its_record(world):
    world.domain("a.example", "x.example")
    world.policy("a.example", "1", "enforce", "x.example", max_age_s=1_000)
    await world.site("a.example")
    world.dns.txt_of.clear()
    world.files.clear()
    for elapsed_s in (0, 600, 399):
        world.clock.advance(elapsed_s)
        assert must_verify(await world.site("a.example"))
    world.clock.advance(1)
    assert not must_verify(await world.site("a.example"))


async def test_a_new_id_brings_a_new_policy(world):
    world.domain("a.example", "x.example")
    world.policy("a.example", "1", "enforce", "x.example", max_age_s=86_400)
    assert must_verify(await world.site("a.example"))
    world.policy("a.example", "2", "none", max_age_s=86_400)
    world.clock.advance(TTL_S)
    assert not must_verify(await world.site("a.example"))


async def test_a_policy_is_renewed_each_day_and_kept_where_that_fails(world):
    world.domain("a.example", "x.example")
    world.policy("a.example", "1", "enforce", "x.example", max_age_s=10 * 86_400)
    await world.site("a.example")
    world.files.clear()
    world.clock.advance(86_400)
    assert must_verify(await world.site("a.example"))
    assert world.fetched == ["a.example"] * 2


async def test_a_policy_that_cannot_be_had_is_not_asked_for_all_the_time(world):
    world.dns.txt_of["_mta-sts.a.example"] = ("v=STSv1; id=1",)
    for _ in range(5):
        assert (await world.policies.of("a.example"))[0] is None
    assert world.fetched == ["a.example"]
    world.clock.advance(300)
    await world.policies.of("a.example")
    assert len(world.fetched) == 2
    world.policy("a.example", "2", "enforce", "x.example", max_age_s=86_400)
    found, _ = await world.policies.of("a.example")  # another id is another policy
    assert found is not None and found.is_enforced


async def test_all_who_ask_for_a_policy_share_one_fetch(world):
    world.policy("a.example", "1", "enforce", "x.example", max_age_s=86_400)
    found = await asyncio.gather(*(world.policies.of("a.example") for _ in range(20)))
    assert {policy.is_enforced for policy, _ in found} == {True}
    assert world.fetched == ["a.example"]
