"""The state of a journaled singleton: collections of JSON documents by id.

Owns: the documents of one role (Catalog, Director, Throttle's authority), with a journal in
``…/journal/{role}`` and its snapshots as manifests in ``…/manifest/{role}``. The invariants:

- A change of several documents is one journal entry: all of it or none.
- It is visible to readers only after the entry is stored.
- A change with a key that is remembered (48 h) changes nothing and gives the first one's sequence.

On crash: recovery is the latest snapshot and the journal's tail. A snapshot that could not be
stored is tried again later; the journal alone is complete. Documents are kept as JSON text, so what
a caller does to a document it was given reaches nobody else.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Lock
from typing import Any, NamedTuple

from manta.clock import Clock, as_text, parse_instant
from manta.errors import (
    Damaged,
    IncompatibleFormat,
    InvalidRequest,
    NotReady,
    OutcomeUnknown,
    StoreUnavailable,
)
from manta.ids import encode_id
from manta.store.journal import Entry, Journal, TakeOver
from manta.store.manifest import Manifest, Manifests, recover
from manta.store.objects import ObjectStore

FORMAT_VERSION = 1
KEYS_KEPT = timedelta(hours=48)
KEYS_MAX = 1_000_000
NAME_LENGTH_MAX = 200
DOCUMENT_BYTES_MAX = 8 << 20
CHANGES_MAX = 10_000
SNAPSHOT_ENTRIES = 1_000
SNAPSHOT_BYTES = 4 << 20

Document = dict[str, Any]
Change = tuple[str, str, Mapping[str, Any] | None]  # collection, id, document or None to remove


class Remembered(NamedTuple):
    """What a key did: when, in which journal entry, and the answer that was stored with it."""

    at: datetime
    sequence: int
    answer: Any


class Documents:
    """``prefix`` is the journal's folder, such as ``default/journal/catalog``.

    Reads are cheap and need no lock; ``change`` is serialized. All raise ``NotReady`` before
    ``recover``. After ``Fenced``, ``OutcomeUnknown`` or ``Damaged`` the process must exit.
    """

    def __init__(
        self,
        objects: ObjectStore,
        prefix: str,
        owner: str,
        nonce: bytes,
        clock: Clock,
        *,
        snapshot_entries: int = SNAPSHOT_ENTRIES,
        snapshot_bytes: int = SNAPSHOT_BYTES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.journal = Journal(objects, prefix, owner, nonce, clock, sleep=sleep)
        self.manifests = Manifests(objects, _manifest_folder(prefix), clock, sleep=sleep)
        self._objects = objects
        self._owner = owner
        self._clock = clock
        self._snapshot_entries = snapshot_entries
        self._snapshot_bytes = snapshot_bytes
        self._lock = Lock()
        self._ready = False
        self._base: Manifest | None = None
        self._restore(None)

    def recover(self) -> TakeOver:
        """Load snapshot and tail and take the journal over.

        Raises ``StoreUnavailable`` (call again), ``Damaged``, ``Fenced``.
        """
        with self._lock:
            self._base, taken = recover(self.journal, self.manifests, self._restore, self._apply)
            self._ready = True
            return taken

    # -- reading ------------------------------------------------------------------------------

    def get(self, collection: str, id: str) -> Document | None:
        """One document (the caller's own copy), or ``None``."""
        self._require_ready()
        text = self._collections.get(collection, {}).get(id)
        return None if text is None else _parse(text)

    def list(self, collection: str) -> list[Document]:
        """All documents of a collection, in the order of their ids."""
        return list(self.items(collection).values())

    def items(self, collection: str) -> dict[str, Document]:
        """All documents of a collection by id, in the order of the ids."""
        self._require_ready()
        held = self._collections.get(collection, {}).copy()
        return {id: _parse(held[id]) for id in sorted(held)}

    def remembered(self, key: str) -> Remembered | None:
        """What the change with this key did, within the last 48 h."""
        self._require_ready()
        found = self._keys.get(key)
        return None if found is None or found.at < self._clock.now() - KEYS_KEPT else found

    # -- changing -----------------------------------------------------------------------------

    def change(self, changes: Sequence[Change], key: str | None = None, answer: Any = None) -> int:
        """Store and then show all of the changes; the sequence of their journal entry.

        ``answer`` (any JSON) is kept with ``key`` for ``remembered``. Raises ``InvalidRequest``,
        ``StoreUnavailable`` (nothing changed), ``OutcomeUnknown``, ``Fenced``.
        """
        self._require_ready()
        rows = [_checked(change) for change in changes]
        if len(rows) > CHANGES_MAX:
            raise InvalidRequest(
                f"{len(rows)} documents in one change", expected=f"at most {CHANGES_MAX}"
            )
        with self._lock:
            earlier = None if key is None else self.remembered(key)
            if earlier is not None:
                return earlier.sequence
            now = self._clock.now()
            body = _json(
                "answer",
                {
                    "v": FORMAT_VERSION,
                    "at": as_text(now),
                    "key": key,
                    "answer": answer,
                    "rows": rows,
                },
            ).encode()
            sequence = self.journal.append(body)
            self._show(rows, key, Remembered(now, sequence, answer), len(body))
            if self._entries >= self._snapshot_entries or self._bytes >= self._snapshot_bytes:
                self._try_snapshot()
            return sequence

    def snapshot(self) -> None:
        """Store the whole state, then delete the journal entries and old snapshots it replaces.

        Raises ``Fenced``, ``StoreUnavailable``, ``OutcomeUnknown`` (harmless: tried again later).
        """
        self._require_ready()
        with self._lock:
            self._snapshot()

    def forget(self, people: Iterable[int]) -> int:
        """Take erased people's ids out of all documents and remembered answers, and out of the
        store: a snapshot takes the place of every journal entry and snapshot before it.

        An id that stands as a number bounds a range of ids (how far something has come), so the
        one below takes its place; one that stands as a text becomes ``erased``. How many texts were
        changed. Raises as ``snapshot``.
        """
        self._require_ready()
        ids = [int(id) for id in people]
        numbers = {str(id): str(id - 1) for id in ids} | {encode_id(id): "erased" for id in ids}
        listed = "|".join(map(re.escape, numbers))
        named = re.compile(rf"(?<![\w.])(?:{listed})(?![\w.])") if ids else None

        def without(text: str) -> str:
            return text if named is None else named.sub(lambda hit: numbers[hit.group()], text)

        changed = 0
        with self._lock:
            for documents in self._collections.values():
                for id, text in documents.items():
                    documents[id] = without(text)
                    changed += documents[id] != text
            for key, known in self._keys.items():
                answer = _parse_any(without(_dump(known.answer)))
                changed += answer != known.answer
                self._keys[key] = known._replace(answer=answer)
            self._snapshot()
            base = self._base.number if self._base else 0
            older = [number for number in self.manifests.numbers() if number < base]
            self._objects.delete(self.manifests.path(number) for number in older)
        return changed

    def _try_snapshot(self) -> None:
        """The change that asked for it is stored already and does not fail with the snapshot."""
        try:
            self._snapshot()
        except (StoreUnavailable, OutcomeUnknown):
            self._entries = self._bytes = 0  # so that not every change until then tries again

    def _snapshot(self) -> None:
        self._forget_keys()
        extra = {
            "collections": {
                name: {id: _parse(text) for id, text in documents.items()}
                for name, documents in self._collections.items()
                if documents
            },
            "keys": [
                [key, as_text(known.at), known.sequence, known.answer]
                for key, known in self._keys.items()
            ],
        }
        self._base = self.manifests.publish(
            Manifest(
                number=self._base.number if self._base else 0,
                shard=self._owner,
                epoch=self.journal.epoch,
                journal_sequence=self.journal.tail,
                extra=extra,
            )
        )
        self._entries = self._bytes = 0
        self.journal.truncate(self._base.journal_sequence)
        self.manifests.collect_garbage()

    # -- state --------------------------------------------------------------------------------

    def _restore(self, manifest: Manifest | None) -> None:
        extra: Mapping[str, Any] = manifest.extra if manifest else {}
        self._collections: dict[str, dict[str, str]] = {
            name: {id: _dump(document) for id, document in documents.items()}
            for name, documents in extra.get("collections", {}).items()
        }
        self._keys: dict[str, Remembered] = {  # in the order in which they came
            key: Remembered(parse_instant(at), sequence, answer)
            for key, at, sequence, answer in extra.get("keys", ())
        }
        self._entries = self._bytes = 0  # since the last snapshot

    def _apply(self, entry: Entry) -> None:
        path = self.journal.path(entry.sequence)
        try:
            content = json.loads(entry.body)
            version = content["v"]
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{path} is not a change of documents", object=path) from None
        if version != FORMAT_VERSION:
            raise IncompatibleFormat(
                f"{path} has format version {version!r}; this release reads {FORMAT_VERSION}",
                object=path,
            )
        known = Remembered(parse_instant(content["at"]), entry.sequence, content["answer"])
        self._show(content["rows"], content["key"], known, len(entry.body))

    def _show(
        self, rows: Iterable[Sequence[Any]], key: str | None, known: Remembered, size: int
    ) -> None:
        for collection, id, document in rows:
            held = self._collections.setdefault(collection, {})
            if document is None:
                held.pop(id, None)
            else:
                held[id] = _dump(document)
        if key is not None:
            self._keys.pop(key, None)
            self._keys[key] = known
            if len(self._keys) > KEYS_MAX:
                self._keys.pop(next(iter(self._keys)))
        self._entries += 1
        self._bytes += size

    def _forget_keys(self) -> None:
        oldest = self._clock.now() - KEYS_KEPT
        self._keys = {key: known for key, known in self._keys.items() if known.at >= oldest}

    def _require_ready(self) -> None:
        if not self._ready:
            raise NotReady(f"{self._owner} is recovering")


def _manifest_folder(prefix: str) -> str:
    parts = prefix.removesuffix("/").split("/")
    if "journal" not in parts[:-1]:
        raise ValueError(f"not a journal's folder: {prefix!r} (…/journal/{{role}})")
    parts[parts.index("journal")] = "manifest"
    return "/".join(parts)


def _checked(change: Change) -> list[Any]:
    """A change as it is journaled. Raises ``InvalidRequest`` for what JSON cannot hold."""
    collection, id, document = change
    for name in (collection, id):
        if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX:
            raise InvalidRequest(
                f"not a name: {name!r:.100}", path="id", expected="1 to 200 characters"
            )
    where = f"{collection}/{id}"
    if document is None:
        return [collection, id, None]
    if not isinstance(document, Mapping):
        raise InvalidRequest(f"{where} is not a document", path=where, expected="a JSON object")
    text = _json(where, document)
    if len(text) > DOCUMENT_BYTES_MAX:
        raise InvalidRequest(
            f"{where} has {len(text)} bytes", path=where, expected=f"at most {DOCUMENT_BYTES_MAX}"
        )
    return [collection, id, json.loads(text)]


def _json(where: str, value: Any) -> str:
    try:
        return _dump(value)
    except (TypeError, ValueError) as fault:
        raise InvalidRequest(
            f"{where} is not JSON: {fault}", path=where, expected="JSON values only"
        ) from None


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_mapping)


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _parse_any(text: str) -> Any:
    return json.loads(text)


def _parse(text: str) -> Document:
    document: Document = json.loads(text)
    return document
