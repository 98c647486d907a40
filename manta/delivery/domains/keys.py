"""Sending domains: the keys that sign for them, and whether a campaign may use one. Pure decisions
on the Catalog's documents.

A domain has two keys: one signs, the next waits with its record in the DNS. Rotation makes the next
one sign and makes a new next one under a new selector; the old one's record has to stay until mail
that it signed has arrived (``RETIRED_FOR``), its private part is forgotten at once.

Private keys are in the documents and leave the Catalog to Senders only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from manta.clock import as_text, parse_instant
from manta.content.dkim import DkimSigner, dns_record, load_private_key
from manta.definitions import Defined, Document, Reader, required
from manta.delivery.domains.authentication import Finding, Identity, is_aligned, is_passing
from manta.errors import Conflict, InvalidRequest

COLLECTION = "sending_domains"
RETIRED_FOR = timedelta(days=7)
RETIRED_SHOWN_MAX = 5
DOMAINS_MAX = 1_000
_LABEL_MAX = 63


def add_domain(
    reader: Reader,
    name: str,
    private_keys: Sequence[str],
    now: datetime,
    *,
    selector: str = "",
    signed_by_relay: bool = False,
) -> Defined:
    """A domain to send from. ``private_keys``: PEM texts, the one that signs and the next one.

    ``selector``: of the first key, where its record is published already. Raises ``Conflict`` for a
    domain that is there, ``InvalidRequest`` for what is no domain or no key.
    """
    domain = checked_domain(name)
    if reader.get(COLLECTION, domain) is not None:
        raise Conflict(f"{domain} is there already", path="domain", expected="a new domain")
    if len(reader.list(COLLECTION)) >= DOMAINS_MAX:
        raise Conflict(f"there are {DOMAINS_MAX} domains", path="domain")
    document: Document = {
        "id": domain,
        "keys": [],
        "retired": [],
        "signed_by_relay": signed_by_relay,
        "check": None,
        "made": 0,
        "created_at": as_text(now),
    }
    if not signed_by_relay:
        for place, pem in enumerate(private_keys):
            _add_key(document, pem, selector if place == 0 else "", now)
    return Defined(shown(document), ((COLLECTION, domain, document),))


def rotate(reader: Reader, name: str, private_key: str, now: datetime) -> Defined:
    """The next key signs from now on, and a new next one is made.

    Raises ``Conflict`` where the last check did not find the next key's record: mail signed with it
    would fail at every receiver.
    """
    document = dict(required(reader, COLLECTION, checked_domain(name)))
    if len(document["keys"]) < 2:
        raise Conflict(f"{name} has no next key", path="domain", expected="a domain with two keys")
    old, following = document["keys"][:2]
    if following["selector"] not in (document["check"] or {}).get("published", ()):
        raise Conflict(
            f"the record of {following['selector']} was not found in the DNS",
            path="selector",
            expected=f"publish {following['selector']}._domainkey.{document['id']}, then check",
        )
    retired = {"selector": old["selector"], "retired_at": as_text(now)}
    document["retired"] = [*document["retired"], retired][-RETIRED_SHOWN_MAX:]
    document["keys"] = [following]
    document["check"] = None
    _add_key(document, private_key, "", now)
    return Defined(shown(document), ((COLLECTION, document["id"], document),))


def record_check(reader: Reader, name: str, findings: Sequence[Finding], now: datetime) -> Defined:
    """What the DNS was found to have."""
    document = dict(required(reader, COLLECTION, checked_domain(name)))
    good = {f.subject for f in findings if f.verdict == "ok"}
    document["check"] = {
        "at": as_text(now),
        "passing": is_passing(findings),
        "published": [k["selector"] for k in document["keys"] if f"DKIM {k['selector']}" in good],
        "findings": [dict(finding._asdict()) for finding in findings],
    }
    return Defined(shown(document), ((COLLECTION, document["id"], document),))


def remove_domain(reader: Reader, name: str) -> Defined:
    document = required(reader, COLLECTION, checked_domain(name))
    return Defined(None, ((COLLECTION, document["id"], None),))


def shown(document: Mapping[str, Any]) -> Document:
    """The document without its private keys."""
    keys = [{n: v for n, v in key.items() if n != "private_key"} for key in document["keys"]]
    return {**document, "keys": keys}


def identity_of(
    document: Mapping[str, Any],
    return_path_domain: str,
    addresses: Sequence[str] = (),
    inbox: bool = False,
) -> Identity:
    keys = {key["selector"]: key["record"] for key in document["keys"]}
    return Identity(
        document["id"],
        keys,
        return_path_domain,
        tuple(addresses),
        inbox,
        document["signed_by_relay"],
    )


def signing_keys(reader: Reader) -> list[Document]:
    """(domain, selector, private_key) of the keys that sign, for Senders."""
    return [
        {"domain": d["id"], "selector": key["selector"], "private_key": key["private_key"]}
        for d in reader.list(COLLECTION)
        for key in d["keys"][:1]
    ]


def signers_of(keys: Sequence[Mapping[str, Any]]) -> list[DkimSigner]:
    return [
        DkimSigner(k["domain"], k["selector"], load_private_key(k["private_key"].encode()))
        for k in keys
    ]


def refusal(reader: Reader, from_domain: str, return_path_domain: str, now: datetime) -> str:
    """Why no campaign may go out from this domain; empty where it may.

    A domain that was never checked may: its records may be where we cannot look.
    """
    mine = [d for d in reader.list(COLLECTION) if is_aligned(from_domain, d["id"])]
    if not mine:
        if is_aligned(from_domain, return_path_domain):
            return ""
        return (
            f"mail from {from_domain} would be signed by nobody that DMARC accepts: add the domain"
            f" (`manta domain add {from_domain}`)"
        )
    document = max(mine, key=lambda d: len(d["id"]))
    check = document["check"]
    if check is None or check["passing"]:
        return ""
    wrong = next(f for f in check["findings"] if f["verdict"] == "wrong")
    age = now - parse_instant(check["at"])
    return (
        f"{document['id']} failed its check {_ago(age)}: {wrong['subject']}: {wrong['says']};"
        f" mend it and run `manta domain check {document['id']}`"
    )


def checked_domain(name: str) -> str:
    """Lower-case, with two labels at least. Raises ``InvalidRequest``."""
    domain = str(name).strip().rstrip(".").lower()
    labels = domain.split(".")
    good = all(
        label
        and len(label) <= _LABEL_MAX
        and label.isascii()
        and label.replace("-", "").isalnum()
        and label.strip("-") == label
        for label in labels
    )
    if not good or len(labels) < 2 or len(domain) > 253:
        raise InvalidRequest(
            f"{name!r:.80} is not a domain", path="domain", expected="shop.example, ASCII"
        )
    return domain


def _add_key(document: Document, pem: str, selector: str, now: datetime) -> None:
    document["made"] += 1
    selector = selector or f"manta{document['made']}"
    if any(key["selector"] == selector for key in document["keys"]):
        raise InvalidRequest(f"two keys under {selector}", path="selector", expected="another name")
    key = load_private_key(pem.encode())
    DkimSigner(document["id"], selector, key)  # checks the selector
    made = {
        "selector": selector,
        "record": dns_record(key),
        "private_key": pem,
        "created_at": as_text(now),
    }
    document["keys"] = [*document["keys"], made]


def _ago(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    if minutes < 120:
        return f"{max(minutes, 0)} minutes ago"
    return f"{minutes // 60} hours ago"
