"""Secrets of a workspace: random bytes that are made once and never change.

Owns the objects ``<workspace>/secrets/<name>``, 32 bytes each, written by put-if-absent: of several
processes that need a secret first, one makes it and all use it. Whoever can read the storage root
can read them; a backup of the root must hold them, since what was hashed or signed with them can be
checked with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from manta.errors import Damaged, OutcomeUnknown
from manta.store.objects import AlreadyExists, ObjectStore

SECRET_BYTES = 32
PRIVACY = "privacy"  # keys the hashes of erased people's addresses
RECEIPTS = "receipts"  # the Ed25519 seed that signs receipts of erasures
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")


def workspace_secret(
    objects: ObjectStore, workspace: str, name: str, random_bytes: Callable[[int], bytes]
) -> bytes:
    """The secret of this name, made now if there is none; ``random_bytes`` is ``os.urandom``.

    Raises ``StoreUnavailable``; ``Damaged`` where the object is something else.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a secret's name: {name!r:.60}")
    path = f"{workspace}/secrets/{name}"
    found = objects.get(path)
    if found is None:
        try:
            objects.put_if_absent(path, random_bytes(SECRET_BYTES))
        except (AlreadyExists, OutcomeUnknown):
            pass  # another made it, or we did: what stands there now is the secret
        found = objects.get(path)
    if found is None or len(found) != SECRET_BYTES:
        raise Damaged(f"{path} is no secret: it has to be {SECRET_BYTES} bytes", object=path)
    return found
