"""Keyed hashes of erased people's addresses: what is kept so that they are never mailed again.

After an erasure the address itself is gone from everywhere; in ``suppressions`` stays
``hmac:<hex>``, an HMAC-SHA256 (RFC 2104) of channel and address under the workspace's secret, in
every shard. Without the secret nobody can try addresses out on it. A new person with the address,
by an import, a request or an event, may come into being, but consent is withheld and nothing is
sent, until the person's own act lifts it (``manta.privacy.commands.LiftErasure``).

Asking must cost the import nothing: the hashes that a shard has are held in memory, and while there
are none nobody hashes anything.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from manta.command import Database
from manta.people.identities import EMAIL, PHONE

ERASED = "erased"  # the reason of such a suppression
MARK = "hmac:"
SETTING = "privacy_key"  # the secret's place in ``Context.settings``
CHANNELS = {EMAIL: "email", PHONE: "sms"}  # kind of identity → channel of its suppression
_HINT = "erased_addresses"


def keyed_hash(key: bytes, channel: str, address: str) -> str:
    """``hmac:<hex>`` of an address (compared form), 69 characters."""
    return MARK + hmac.digest(key, f"{channel}\0{address}".encode(), "sha256").hex()


def person_hash(key: bytes, subscriber_id: int) -> str:
    """The name of an erased person in receipts."""
    return MARK + hmac.digest(key, f"person\0{subscriber_id}".encode(), "sha256").hex()


def key_of(settings: Mapping[str, Any]) -> bytes:
    """The workspace's secret. A shard without it can neither erase nor keep to an erasure."""
    key = settings.get(SETTING)
    if not isinstance(key, bytes) or len(key) < 16:
        raise RuntimeError(f"the shard has no {SETTING} among its settings")
    return key


def erased_among(
    database: Database,
    settings: Mapping[str, Any],
    addresses: Iterable[str | None],
    channel: str = "email",
) -> set[str]:
    """Those of the addresses (compared forms) whose person was erased."""
    held = _held(database)
    if not held:
        return set()
    key = key_of(settings)
    return {a for a in set(addresses) if a and keyed_hash(key, channel, a) in held}


def erased_people(
    database: Database, settings: Mapping[str, Any], people: pa.Table, channel: str
) -> set[int]:
    """Those of the people to whose address an erased one had a right.

    ``people``: person, and email where the profile is not written yet.
    """
    if not _held(database) or channel not in CHANNELS.values():
        return set()
    if channel == "email":
        sql = (
            "SELECT w.person, lower(coalesce(w.email, p.email)) FROM _people w"
            " LEFT JOIN profiles p ON p.subscriber_id = w.person"
        )
    else:
        sql = (
            "SELECT w.person, d.value FROM _people w JOIN identities d"
            f" ON d.subscriber_id = w.person AND d.kind = '{PHONE}'"
        )
    addresses = database.rows(sql, _people=people)
    erased = erased_among(database, settings, (address for _, address in addresses), channel)
    return {person for person, address in addresses if address in erased}


def _held(database: Database) -> frozenset[str]:
    held: frozenset[str] | None = database.hints.get(_HINT)
    if held is None:
        found = database.rows(
            f"SELECT address FROM suppressions WHERE starts_with(address, '{MARK}')"
        )
        held = database.hints[_HINT] = frozenset(address for (address,) in found)
    return held


def forget_held(database: Database) -> None:
    """The hashes in the table are about to change."""
    database.hints.pop(_HINT, None)
