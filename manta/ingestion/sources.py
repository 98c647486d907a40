"""Where data comes in from: the documents of the collections ``sources`` and ``sites``.

A *source* says how a kind of foreign messages is read: whether its unknown traits become attributes
and, for the tracking API, which API key it is (``key_id``); without a source the defaults hold.
Those of the other kinds send webhooks: ``secrets`` prove them (the newest first, each older one
until its time), ``consent_topic`` is what the marketing consent of a shop stands for, ``mapping``
says what the JSON of a ``mapping`` means; the mappings before it are kept (``earlier``). A
*site* names the hosts of a web site with the snippet: its pages may send with a public key, and
clicks that lead there take a visit's token along.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from manta.clock import parse_instant
from manta.definitions import Document, Reader, checked_name
from manta.errors import Conflict, InvalidRequest
from manta.ingestion.mapping_form import plan_of
from manta.ingestion.shops import CONSENT_TOPIC
from manta.people.consents import ALL_TOPICS

SOURCES = "sources"
SITES = "sites"
SEGMENT = "segment"
MAPPING = "mapping"
HOOKED = ("shopify", "woocommerce", "stripe", MAPPING)  # those that send webhooks
KINDS = (SEGMENT, *HOOKED)
PRIVACY = "privacy:"  # before a source's name in quarantine: what its shop asks a person to do
SITE_HOSTS_MAX = 100
SECRETS_MAX = 3
SECRET_LENGTH_MIN, SECRET_LENGTH_MAX = 8, 200
EARLIER_MAX = 5
TOPIC_LENGTH_MAX = 200
_SOURCE_FIELDS = (
    "id",
    "name",
    "kind",
    "declare",
    "key_id",
    "secrets",
    "consent_topic",
    "mapping",
    "earlier",
)
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
)


def checked_source(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of a source. Raises ``InvalidRequest``."""
    _known(fields, _SOURCE_FIELDS, "source")
    kind = fields.get("kind")
    if kind not in KINDS:
        raise InvalidRequest(f"{kind!r:.40} is no kind", path="kind", expected=", ".join(KINDS))
    declare = fields.get("declare", True)
    if not isinstance(declare, bool):
        raise InvalidRequest("declare is not valid", path="declare", expected="true or false")
    document: Document = {"name": checked_name(fields), "kind": kind, "declare": declare}
    others = [d for d in reader.list(SOURCES) if d["id"] != fields.get("id")]
    name = document["name"]
    if name in (*KINDS, *(other["name"] for other in others)) or name.startswith(PRIVACY):
        raise Conflict(
            "this name is taken",
            path="name",
            expected=f"another; not {', '.join(KINDS)}, and nothing that begins with {PRIVACY}",
        )
    if kind in HOOKED:
        return document | _of_webhooks(fields, kind, reader)
    _only(fields, ("secrets", "consent_topic", "mapping"), kind)
    if fields.get("key_id") is not None:
        key_id = str(fields["key_id"])
        if reader.get("api_keys", key_id) is None:
            raise InvalidRequest(
                f"there is no API key {key_id!r:.40}", path="key_id", expected="the id of a key"
            )
        for other in others:
            if other.get("key_id") == key_id:
                raise Conflict(f"source {other['id']} has this key", path="key_id")
        document["key_id"] = key_id
    return document


def _of_webhooks(fields: Mapping[str, Any], kind: str, reader: Reader) -> Document:
    """What sources that send webhooks have besides."""
    _only(fields, ("key_id",), kind)
    document: Document = {"secrets": _secrets(fields.get("secrets") or [])}
    if kind != MAPPING:
        _only(fields, ("mapping",), kind)
        topic = fields.get("consent_topic") or CONSENT_TOPIC
        is_text = isinstance(topic, str) and topic.isprintable()
        if not is_text or len(topic) > TOPIC_LENGTH_MAX or topic == ALL_TOPICS:
            raise InvalidRequest(
                f"{topic!r:.60} is no topic", path="consent_topic", expected="the name of one topic"
            )
        return document | {"consent_topic": topic}
    _only(fields, ("consent_topic",), kind)
    mapping = fields.get("mapping")
    plan_of(mapping)
    document |= {"mapping": mapping, "earlier": []}
    own = reader.get(SOURCES, str(fields.get("id")))
    if own is not None:
        document["earlier"] = own.get("earlier", [])
        if own["mapping"] != mapping:
            before = {name: own[name] for name in ("version", "updated_at", "mapping")}
            document["earlier"] = [before, *document["earlier"]][:EARLIER_MAX]
    return document


def _secrets(secrets: Any) -> list[Document]:
    kept = []
    for each in secrets if isinstance(secrets, list | tuple) else [secrets]:
        secret = each.get("secret") if isinstance(each, dict) else None
        if (
            not isinstance(secret, str)
            or not (secret.isascii() and secret.isprintable())
            or not SECRET_LENGTH_MIN <= len(secret) <= SECRET_LENGTH_MAX
        ):
            raise InvalidRequest(
                "this is no secret",
                path="secret",
                expected=f"{SECRET_LENGTH_MIN} to {SECRET_LENGTH_MAX} printable ASCII characters",
            )
        kept.append({"secret": secret, "until": each.get("until")})
    return kept[:SECRETS_MAX]


def living_secrets(source: Mapping[str, Any], now: datetime) -> list[str]:
    """The secrets that prove a webhook now."""
    return [
        each["secret"]
        for each in source.get("secrets", ())
        if each["until"] is None or parse_instant(each["until"]) > now
    ]


def shown(source: Mapping[str, Any]) -> Document:
    """A source without its secrets: how many are good."""
    document = {name: value for name, value in source.items() if name != "secrets"}
    if "secrets" in source:
        document["secrets"] = len(source["secrets"])
    return document


def _only(fields: Mapping[str, Any], others: tuple[str, ...], kind: str) -> None:
    for name in others:
        if fields.get(name):
            raise InvalidRequest(f"a source of kind {kind} has no {name}", path=name, expected="")


def checked_site(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of a site. Raises ``InvalidRequest``."""
    _known(fields, ("id", "name", "hosts"), "site")
    hosts = fields.get("hosts")
    if not isinstance(hosts, list | tuple) or not 1 <= len(hosts) <= SITE_HOSTS_MAX:
        raise InvalidRequest(
            "hosts is not a list of fitting length",
            path="hosts",
            expected=f"1 to {SITE_HOSTS_MAX} hosts",
        )
    kept = []
    for n, host in enumerate(hosts):
        name = host.lower().rstrip(".") if isinstance(host, str) else ""
        if not 0 < len(name) <= 253 or not _HOST.fullmatch(name):
            raise InvalidRequest(
                f"{host!r:.60} is not a host", path=f"hosts[{n}]", expected="shop.example.com"
            )
        kept.append(name)
    return {"name": checked_name(fields), "hosts": sorted(set(kept))}


def _known(fields: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise InvalidRequest(
            f"a {what} has no field {unknown[0]:.60}",
            path=unknown[0],
            expected=", ".join(names[1:]),
        )
