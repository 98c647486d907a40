"""What to publish for a domain, and what the DNS has of it: SPF, DKIM, DMARC, PTR, return path."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.content.dkim import dns_record, generate_private_key, load_private_key
from manta.definitions import Document
from manta.delivery.domains import keys as domains
from manta.delivery.domains.authentication import (
    Finding,
    Identity,
    check,
    is_aligned,
    is_passing,
    records,
)
from manta.delivery.domains.spf import SpfResult, evaluate
from manta.delivery.routing.sites import Answer, Found
from manta.errors import Conflict, InvalidRequest

NOW = datetime(2026, 11, 24, 12)
PEMS = [generate_private_key("ed25519").decode() for _ in range(3)]
RECORDS = [dns_record(load_private_key(pem.encode())) for pem in PEMS]
TROUBLE = Answer(Found.TROUBLE, detail="SERVFAIL")


class Zone:
    """A DNS of fixed answers: (type, name) → texts; a name in ``silent`` is in trouble."""

    def __init__(self, records: dict[tuple[str, str], list[str]], silent: str = "") -> None:
        self.records, self.silent = records, silent
        self.asked = 0

    def _ask(self, kind: str, name: str) -> Answer:
        self.asked += 1
        if name == self.silent:
            return TROUBLE
        found = self.records.get((kind, name))
        return Answer(Found.RECORDS, tuple(found)) if found else Answer(Found.NOTHING)

    async def txt(self, name: str) -> Answer:
        return self._ask("TXT", name)

    async def addresses(self, host: str) -> Answer:
        return self._ask("A", host)

    async def mx(self, domain: str) -> Answer:
        return self._ask("MX", domain)

    async def ptr(self, address: str) -> Answer:
        return self._ask("PTR", address)


def spf(zone: Zone, address: str | None, domain: str = "d.example") -> SpfResult:
    return asyncio.run(evaluate(domain, address, zone)).result


def txt(**records: str) -> Zone:
    return Zone({("TXT", f"{n}.example"): [value] for n, value in records.items()})


@pytest.mark.parametrize(
    ("record", "address", "result"),
    [
        ("v=spf1 ip4:192.0.2.0/24 -all", "192.0.2.7", SpfResult.PASS),
        ("v=spf1 ip4:192.0.2.0/24 -all", "198.51.100.1", SpfResult.FAIL),
        ("v=spf1 ip6:2001:db8::/32 ~all", "2001:db8::1", SpfResult.PASS),
        ("v=spf1 ip6:2001:db8::/32 ~all", "192.0.2.7", SpfResult.SOFTFAIL),
        ("v=spf1 ?all", "192.0.2.7", SpfResult.NEUTRAL),
        ("v=spf1", "192.0.2.7", SpfResult.NEUTRAL),
        ("v=spf1 ip4:not-one -all", "192.0.2.7", SpfResult.PERMERROR),
        ("v=spf1 nonsense -all", "192.0.2.7", SpfResult.PERMERROR),
        ("v=spf1 include:nobody.example -all", "192.0.2.7", SpfResult.PERMERROR),
        ("v=spf1 exp=why.example ip4:192.0.2.7", "192.0.2.7", SpfResult.PASS),
        ("v=spf10 +all", "192.0.2.7", SpfResult.NONE),
        ("v=spf1 exists:%{i}.x.example -all", "192.0.2.7", SpfResult.FAIL),
    ],
)
def test_spf_says_what_a_receiver_would(record: str, address: str, result: SpfResult) -> None:
    assert spf(txt(d=record), address) is result


def test_spf_follows_includes_redirects_and_exchangers() -> None:
    zone = txt(
        d="v=spf1 include:one.example redirect=two.example",
        one="v=spf1 ip4:192.0.2.1 -all",
        two="v=spf1 a:host.example/24 mx -all",
    )
    zone.records["A", "host.example"] = ["198.51.100.9"]
    zone.records["MX", "two.example"] = ["10 mx.example."]
    zone.records["A", "mx.example"] = ["203.0.113.5"]
    assert spf(zone, "192.0.2.1") is SpfResult.PASS
    assert spf(zone, "198.51.100.77") is SpfResult.PASS
    assert spf(zone, "203.0.113.5") is SpfResult.PASS
    assert spf(zone, "203.0.113.6") is SpfResult.FAIL


def test_spf_that_loops_or_asks_too_much_ends() -> None:
    assert spf(txt(d="v=spf1 include:d.example -all"), "192.0.2.1") is SpfResult.PERMERROR
    assert spf(txt(d="v=spf1 redirect=d.example"), "192.0.2.1") is SpfResult.PERMERROR
    many = " ".join(f"a:h{n}.example" for n in range(20))
    zone = txt(d=f"v=spf1 {many} -all")
    assert spf(zone, "192.0.2.1") is SpfResult.PERMERROR
    assert zone.asked < 15


def test_two_records_or_a_silent_dns_are_no_answer() -> None:
    two = Zone({("TXT", "d.example"): ["v=spf1 -all", "v=spf1 +all"]})
    assert spf(two, "192.0.2.1") is SpfResult.PERMERROR
    assert spf(Zone({}, silent="d.example"), "192.0.2.1") is SpfResult.TEMPERROR


@given(st.text(max_size=80))
def test_no_record_crashes(text: str) -> None:
    zone = Zone({("TXT", "d.example"): [f"v=spf1 {text}"]})
    assert spf(zone, "192.0.2.1") in SpfResult


@pytest.mark.parametrize(
    ("one", "two", "aligned"),
    [
        ("shop.example", "shop.example", True),
        ("news.shop.example", "Shop.Example.", True),
        ("shop.example", "bounces.shop.example", True),
        ("shop.example", "otherhop.example", False),
        ("shop.example", "example", False),
        ("a.shop.example", "b.shop.example", False),
        ("", "", False),
    ],
)
def test_alignment(one: str, two: str, aligned: bool) -> None:
    assert is_aligned(one, two) is aligned
    assert is_aligned(two, one) is aligned


IDENTITY = Identity(
    "shop.example",
    {"manta1": RECORDS[0], "manta2": RECORDS[1]},
    "bounces.shop.example",
    ("192.0.2.7",),
    inbox=True,
)


def published() -> Zone:
    """Everything as ``records`` says, and what is not ours to publish."""
    zone = Zone(
        {
            ("PTR", "192.0.2.7"): ["out.shop.example"],
            ("A", "out.shop.example"): ["192.0.2.7"],
            ("MX", "bounces.shop.example"): ["10 inbox.shop.example."],
        }
    )
    for record in records(IDENTITY):
        if record.type == "TXT":
            zone.records["TXT", record.name] = [record.value]
    return zone


def found(zone: Zone, identity: Identity = IDENTITY) -> dict[str, Finding]:
    return {finding.subject: finding for finding in asyncio.run(check(identity, zone))}


def test_what_is_published_as_told_passes() -> None:
    findings = found(published())
    assert {finding.verdict for finding in findings.values()} == {"ok"}, findings
    assert is_passing(list(findings.values()))


@pytest.mark.parametrize(
    ("kind", "name", "value", "subject", "verdict"),
    [
        ("TXT", "manta1._domainkey.shop.example", [], "DKIM manta1", "wrong"),
        ("TXT", "manta1._domainkey.shop.example", [RECORDS[2]], "DKIM manta1", "wrong"),
        ("TXT", "manta1._domainkey.shop.example", ["v=DKIM1; p="], "DKIM manta1", "wrong"),
        ("TXT", "manta1._domainkey.shop.example", [RECORDS[0], "p=x"], "DKIM manta1", "wrong"),
        ("TXT", "manta2._domainkey.shop.example", [], "DKIM manta2", "warning"),
        ("TXT", "bounces.shop.example", ["v=spf1 -all"], "SPF 192.0.2.7", "wrong"),
        ("TXT", "bounces.shop.example", [], "SPF 192.0.2.7", "wrong"),
        ("TXT", "_dmarc.shop.example", [], "DMARC", "wrong"),
        ("TXT", "_dmarc.shop.example", ["v=DMARC1; p=maybe"], "DMARC", "wrong"),
        ("PTR", "192.0.2.7", [], "PTR 192.0.2.7", "wrong"),
        ("A", "out.shop.example", ["192.0.2.8"], "PTR 192.0.2.7", "wrong"),
        ("MX", "bounces.shop.example", [], "return path", "wrong"),
    ],
)
def test_what_is_wrong_is_named(
    kind: str, name: str, value: list[str], subject: str, verdict: str
) -> None:
    zone = published()
    zone.records[kind, name] = value
    finding = found(zone)[subject]
    assert (finding.verdict, bool(finding.expected)) == (verdict, True)


@pytest.mark.parametrize(
    "name",
    ["manta1._domainkey.shop.example", "bounces.shop.example", "_dmarc.shop.example", "192.0.2.7"],
)
def test_a_silent_dns_proves_nothing(name: str) -> None:
    zone = published()
    zone.silent = name
    findings = found(zone)
    assert "unknown" in {finding.verdict for finding in findings.values()}
    assert is_passing(list(findings.values()))


def test_a_policy_above_counts() -> None:
    zone = Zone({("TXT", "_dmarc.shop.example"): ["v=DMARC1; p=reject"]})
    identity = Identity("news.shop.example", {}, "r.example", signed_by_relay=True)
    assert found(zone, identity)["DMARC"].verdict == "ok"


# -- the Catalog's decisions -----------------------------------------------------------------------


class Documents:
    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Document] = {}

    def get(self, collection: str, id: str) -> Document | None:
        return self.held.get((collection, id))

    def list(self, collection: str) -> list[Document]:
        return [d for (c, _), d in self.held.items() if c == collection]

    def take(self, defined: domains.Defined) -> Document:
        for collection, id, document in defined.changes:
            if document is None:
                del self.held[collection, id]
            else:
                self.held[collection, id] = document
        return dict(defined.answer or {})


def test_a_domain_is_added_checked_and_rotated() -> None:
    house = Documents()
    answer = house.take(domains.add_domain(house, "Shop.Example.", PEMS[:2], NOW))
    assert [key["selector"] for key in answer["keys"]] == ["manta1", "manta2"]
    assert "private_key" not in str(answer)
    assert [key["selector"] for key in domains.signing_keys(house)] == ["manta1"]
    with pytest.raises(Conflict, match="there already"):
        domains.add_domain(house, "shop.example", PEMS[:2], NOW)
    with pytest.raises(Conflict, match="manta2 was not found"):
        domains.rotate(house, "shop.example", PEMS[2], NOW)
    findings = [Finding("DKIM manta1", "ok", ""), Finding("DKIM manta2", "ok", "")]
    house.take(domains.record_check(house, "shop.example", findings, NOW))
    answer = house.take(domains.rotate(house, "shop.example", PEMS[2], NOW))
    assert [key["selector"] for key in answer["keys"]] == ["manta2", "manta3"]
    assert [key["selector"] for key in domains.signing_keys(house)] == ["manta2"]
    assert answer["retired"][0]["selector"] == "manta1"
    assert PEMS[0] not in str(house.held)  # what no longer signs is forgotten
    (signer,) = domains.signers_of(domains.signing_keys(house))
    assert (signer.domain, signer.selector) == ("shop.example", "manta2")


def test_who_may_send_from_where() -> None:
    house = Documents()
    ask = lambda name, returns="r.other.example": domains.refusal(house, name, returns, NOW)  # noqa: E731
    assert "add the domain" in ask("shop.example")
    assert ask("shop.example", "bounces.shop.example") == ""
    house.take(domains.add_domain(house, "shop.example", PEMS[:2], NOW))
    assert ask("shop.example") == ask("news.shop.example") == ""
    assert "add the domain" in ask("evil.example")
    wrong = [Finding("DKIM manta1", "wrong", "has another key", "TXT …")]
    house.take(domains.record_check(house, "shop.example", wrong, NOW))
    assert "DKIM manta1: has another key" in ask("shop.example")
    unknown = [Finding("DKIM manta1", "unknown", "SERVFAIL")]
    house.take(domains.record_check(house, "shop.example", unknown, NOW))
    assert ask("shop.example") == ""


@pytest.mark.parametrize("name", ["", "example", "a b.example", "-a.example", "ä.example", "a..b"])
def test_what_is_no_domain_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a domain"):
        domains.checked_domain(name)
