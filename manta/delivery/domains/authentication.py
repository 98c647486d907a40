"""Whether receivers can tell that mail from a domain is really ours: SPF, DKIM, DMARC and the rest.

``records`` says what to publish, ``check`` looks at what the DNS has. A campaign goes out only from
a domain that is **aligned**: signed by a key of that domain, or of one above or below it (RFC 7489
§3.1, relaxed; without a list of public suffixes, so two labels at least have to be shared).

Pure but for the questions, which go through ``Dns``. Nothing is stored here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from manta.delivery.domains.spf import Lookup, Spf, SpfResult, evaluate
from manta.delivery.routing.sites import Answer, Found

RECORD_STRING_MAX = 255  # of one string in a TXT record (RFC 1035 §3.3.14)


class Dns(Lookup, Protocol):
    async def ptr(self, address: str) -> Answer: ...


class Record(NamedTuple):
    """A DNS record to publish; ``why`` in one line."""

    name: str
    type: str
    value: str
    why: str


class Finding(NamedTuple):
    """``verdict``: ok | warning | wrong | unknown. A ``wrong`` one stops campaigns; ``expected`` is
    what would be right, empty where it is right."""

    subject: str
    verdict: str
    says: str
    expected: str = ""


@dataclass(frozen=True)
class Identity:
    """What mails of a domain carry.

    ``keys``: selector → DKIM record, the one that signs first, then the one that is to sign next.
    ``addresses``: from which direct sources connect. ``inbox``: whether bounces come to us, at
    ``return_path_domain``.
    """

    domain: str
    keys: Mapping[str, str]
    return_path_domain: str
    addresses: Sequence[str] = ()
    inbox: bool = False
    signed_by_relay: bool = False


def is_aligned(from_domain: str, other: str) -> bool:
    """Whether ``other`` (a DKIM ``d=`` or a return path's domain) speaks for ``from_domain``."""
    one, two = from_domain.lower().rstrip("."), other.lower().rstrip(".")
    if one == two:
        return bool(one)
    shorter = min(one, two, key=len)
    longer = max(one, two, key=len)
    return "." in shorter and longer.endswith(f".{shorter}")


def records(identity: Identity) -> list[Record]:
    """What to publish for a domain, in the order of what matters most."""
    domain = identity.domain
    wanted = [
        Record(f"{selector}._domainkey.{domain}", "TXT", value, "DKIM: our signature is yours")
        for selector, value in identity.keys.items()
    ]
    mechanisms = [
        f"ip{6 if ':' in address else 4}:{address}" for address in dict.fromkeys(identity.addresses)
    ]
    if mechanisms:
        spf = " ".join(["v=spf1", *mechanisms, "~all"])
        wanted.append(
            Record(identity.return_path_domain, "TXT", spf, "SPF: these addresses send for it")
        )
    wanted.append(
        Record(
            f"_dmarc.{domain}",
            "TXT",
            f"v=DMARC1; p=none; rua=mailto:dmarc@{domain}",
            "DMARC: large providers want one; raise p= once reports are clean",
        )
    )
    if identity.inbox:
        wanted.append(
            Record(
                identity.return_path_domain,
                "MX",
                "10 <host of the inbox>.",
                "bounces and complaints come back to us",
            )
        )
    return wanted


async def check(identity: Identity, dns: Dns) -> list[Finding]:
    """What the DNS has of it, one finding for each subject. Never raises."""
    findings = [
        _of_next(finding) if place else finding
        for place, finding in enumerate(
            [
                await _dkim(identity, *selector_value, dns)
                for selector_value in identity.keys.items()
            ]
        )
    ]
    if not identity.keys:
        findings.append(
            Finding("DKIM", "unknown", "the relay signs, with keys of its own")
            if identity.signed_by_relay
            else Finding("DKIM", "wrong", "no key", "`manta domain add` makes two")
        )
    findings += await _spf(identity, dns)
    findings.append(await _dmarc(identity.domain, dns))
    findings.append(_alignment(identity))
    for address in dict.fromkeys(identity.addresses):
        findings.append(await _reverse(address, dns))
    findings.append(await _returns(identity, dns))
    findings.append(await _mta_sts(identity.return_path_domain, dns))
    return findings


def is_passing(findings: Sequence[Finding]) -> bool:
    return all(finding.verdict != "wrong" for finding in findings)


async def _dkim(identity: Identity, selector: str, value: str, dns: Dns) -> Finding:
    subject = f"DKIM {selector}"
    name = f"{selector}._domainkey.{identity.domain}"
    answer = await dns.txt(name)
    if answer.found is Found.TROUBLE:
        return Finding(subject, "unknown", f"the DNS does not tell: {answer.detail}")
    found = [record for record in answer.records if "p=" in record]
    if not found:
        return Finding(subject, "wrong", f"{name} has no key", f"TXT {value}")
    if len(found) > 1:
        return Finding(subject, "wrong", f"{name} has {len(found)} keys", f"only: TXT {value}")
    published, ours = _tags(found[0]), _tags(value)
    if not published.get("p"):
        return Finding(subject, "wrong", f"{name} says that the key was revoked", f"TXT {value}")
    if _key(published["p"]) != _key(ours["p"]):
        return Finding(subject, "wrong", f"{name} has another key", f"TXT {value}")
    if published.get("k", "rsa") != ours.get("k", "rsa"):
        return Finding(subject, "wrong", f"{name} has another kind of key", f"TXT {value}")
    if "y" in published.get("t", "").split(":"):
        return Finding(subject, "warning", f"{name} is marked as a test (t=y)", f"TXT {value}")
    return Finding(subject, "ok", f"{name} has our key")


def _of_next(finding: Finding) -> Finding:
    """The next key signs nothing yet, so nothing is wrong yet."""
    return finding._replace(verdict="warning") if finding.verdict == "wrong" else finding


async def _spf(identity: Identity, dns: Dns) -> list[Finding]:
    domain = identity.return_path_domain
    if not identity.addresses:
        told = await evaluate(domain, None, dns)
        if told.result in (SpfResult.PERMERROR, SpfResult.TEMPERROR):
            return [_of_spf("SPF", domain, told)]
        if told.result is SpfResult.NONE:
            says = f"{domain} has no SPF record; the relay says which it needs"
            return [Finding("SPF", "warning", says, "TXT v=spf1 include:<the relay's> ~all")]
        return [Finding("SPF", "ok", f"{domain}: {told.record}")]
    return [
        _of_spf(f"SPF {address}", domain, await evaluate(domain, address, dns))
        for address in dict.fromkeys(identity.addresses)
    ]


def _of_spf(subject: str, domain: str, told: Spf) -> Finding:
    if told.result is SpfResult.PASS:
        return Finding(subject, "ok", f"{domain} lets it send ({told.says})")
    if told.result is SpfResult.TEMPERROR:
        return Finding(subject, "unknown", told.says)
    says = told.says if told.result is SpfResult.PERMERROR else f"{told.result}: {told.says}"
    return Finding(subject, "wrong", f"{domain}: {says}", "the record that `manta domain` prints")


async def _dmarc(domain: str, dns: Dns) -> Finding:
    """Of the domain, or of one above it (RFC 7489 §6.6.3)."""
    labels = domain.split(".")
    for start in range(max(1, len(labels) - 1)):
        name = "_dmarc." + ".".join(labels[start:])
        answer = await dns.txt(name)
        if answer.found is Found.TROUBLE:
            return Finding("DMARC", "unknown", f"the DNS does not tell: {answer.detail}")
        found = [r for r in answer.records if r.replace(" ", "").startswith("v=DMARC1")]
        if len(found) > 1:
            return Finding("DMARC", "wrong", f"{name} has {len(found)} records", "one")
        if found:
            policy = _tags(found[0]).get("p", "")
            if policy not in ("none", "quarantine", "reject"):
                return Finding(
                    "DMARC", "wrong", f"{name}: p={policy[:40]}", "p=none, quarantine or reject"
                )
            return Finding("DMARC", "ok", f"{name}: p={policy}")
    return Finding(
        "DMARC",
        "wrong",
        f"_dmarc.{domain} has no record",
        f"TXT v=DMARC1; p=none; rua=mailto:dmarc@{domain}",
    )


def _alignment(identity: Identity) -> Finding:
    if identity.keys:
        return Finding("alignment", "ok", f"DKIM signs as d={identity.domain}")
    if is_aligned(identity.domain, identity.return_path_domain):
        return Finding("alignment", "ok", f"the return path is at {identity.return_path_domain}")
    if identity.signed_by_relay:
        return Finding("alignment", "unknown", "the relay has to sign as this domain")
    return Finding(
        "alignment",
        "wrong",
        f"neither a key of {identity.domain} nor a return path there",
        f"a DKIM key, or a return path below {identity.domain}",
    )


async def _reverse(address: str, dns: Dns) -> Finding:
    """The address has a name, and the name that address (RFC 1912 §2.1)."""
    subject = f"PTR {address}"
    answer = await dns.ptr(address)
    if answer.found is Found.TROUBLE:
        return Finding(subject, "unknown", f"the DNS does not tell: {answer.detail}")
    for name in answer.records[:5]:
        if address in (await dns.addresses(name)).records:
            return Finding(subject, "ok", f"is {name}, and back")
    if answer.records:
        says = f"is {answer.records[0]}, which is not {address}"
        return Finding(subject, "wrong", says, f"{answer.records[0]} A {address}")
    return Finding(subject, "wrong", "has no name", "a PTR record, set by whoever owns the address")


async def _returns(identity: Identity, dns: Dns) -> Finding:
    domain = identity.return_path_domain
    answer = await dns.mx(domain)
    if answer.found is Found.TROUBLE:
        return Finding("return path", "unknown", f"the DNS does not tell: {answer.detail}")
    hosts = [text.split()[-1].rstrip(".") for text in answer.records]
    if hosts:
        return Finding("return path", "ok", f"mail for {domain} goes to {', '.join(hosts[:3])}")
    says = f"{domain} has no MX record, so bounces are lost"
    expected = f"{domain} MX 10 <host of the inbox>"
    return Finding("return path", "wrong" if identity.inbox else "warning", says, expected)


async def _mta_sts(domain: str, dns: Dns) -> Finding:
    answer = await dns.txt(f"_mta-sts.{domain}")
    if any(record.startswith("v=STSv1") for record in answer.records):
        return Finding("MTA-STS", "ok", f"{domain} publishes a policy")
    return Finding("MTA-STS", "ok", f"{domain} publishes none; mail to it may be read on its way")


def _tags(record: str) -> dict[str, str]:
    """``tag=value`` pairs (RFC 6376 §3.2)."""
    pairs = (part.split("=", 1) for part in record.split(";") if "=" in part)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _key(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return text.encode()
