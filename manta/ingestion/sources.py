"""Where data comes in from: the documents of the collections ``sources`` and ``sites``.

A *source* says how a kind of foreign messages is read: whether its unknown traits become attributes
and, for the tracking API, which API key it is (``key_id``); without a source the defaults hold. A
*site* names the hosts of a web site with the snippet: its pages may send with a public key, and
clicks that lead there take a visit's token along.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from manta.definitions import Document, Reader, checked_name
from manta.errors import Conflict, InvalidRequest

SOURCES = "sources"
SITES = "sites"
SEGMENT = "segment"
KINDS = (SEGMENT, "shopify", "woocommerce", "stripe", "mapping")
SITE_HOSTS_MAX = 100
_SOURCE_FIELDS = ("id", "name", "kind", "declare", "key_id", "secret", "mapping")
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
    if document["name"] in (*KINDS, *(other["name"] for other in others)):
        raise Conflict(
            "this name is taken", path="name", expected=f"another; not {', '.join(KINDS)}"
        )
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
    for name in ("secret", "mapping"):
        if fields.get(name) is not None:
            document[name] = fields[name]
    return document


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
