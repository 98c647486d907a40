"""What a replica knows of the Catalog's definitions while it takes data in: declared attributes,
sources and sites, each at most ``KEEP_S`` old."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.handles import Handles
from manta.errors import InvalidRequest, NotFound
from manta.ingestion.sources import PRIVACY, SEGMENT, SITES, SOURCES
from manta.schema import AttributeType
from serve_apps import reads
from serve_apps.limits import CALL_DEADLINE_S

KEEP_S = 5.0
Document = Mapping[str, Any]


class Knowledge:
    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._kept: dict[str, tuple[float, Any]] = {}
        self._declared = 0  # how often attributes were: what was asked for before is older

    async def attributes(self) -> Mapping[str, AttributeType]:
        found: Mapping[str, AttributeType] = await self._read("attributes")
        return found

    async def declare(self, types: Mapping[str, AttributeType]) -> Mapping[str, AttributeType]:
        """Declare attributes; all that are declared now. Raises ``InvalidRequest`` where another
        has declared one of them otherwise."""
        wanted = {name: str(kind) for name, kind in types.items()}
        try:
            found = await self._handles.catalog.call(
                "declare_attributes", wanted, deadline_s=CALL_DEADLINE_S
            )
        except InvalidRequest:
            self._kept.pop("attributes", None)
            raise
        self._declared += 1
        # None is ever taken back, so answers that overtake each other may be put together.
        _, known = self._kept.get("attributes", (0.0, {}))
        known = {**known, **{name: AttributeType(kind) for name, kind in found.items()}}
        self._kept["attributes"] = (self._handles.clock.monotonic() + KEEP_S, known)
        return dict(known)

    async def source_of_key(self, key_id: str) -> Document:
        """The source of an API key; the defaults of the tracking API where it has none."""
        for source in await self._read(SOURCES):
            if source.get("key_id") == key_id:
                return dict(source)
        return {"kind": SEGMENT, "declare": True}

    async def source_named(self, name: str) -> Document:
        """A source by its name; one of a kind by the kind's own name. What a shop asks a person to
        do is kept under a name of its own."""
        name = name.removeprefix(PRIVACY)
        for source in await self._read(SOURCES):
            if source["name"] == name:
                return dict(source)
        if name == SEGMENT:
            return {"kind": SEGMENT, "declare": True}
        raise NotFound(
            f"there is no source {name!r:.80} any more",
            path="source",
            expected="a source of this name",
        )

    async def source_of_id(self, id: int) -> Document | None:
        """A source by its number."""
        for source in await self._read(SOURCES):
            if source["id"] == id:
                return dict(source)
        return None

    async def hosts(self) -> frozenset[str]:
        """The hosts of all sites."""
        sites = await self._read(SITES)
        return frozenset(host for site in sites for host in site["hosts"])

    async def _read(self, name: str) -> Any:
        now = self._handles.clock.monotonic()
        kept = self._kept.get(name)
        if kept is not None and kept[0] > now:
            return kept[1]
        if name == "attributes":
            declared = self._declared
            found: Any = await reads.attribute_types(self._handles)
            if declared != self._declared and name in self._kept:  # which is newer
                return self._kept[name][1]
        else:
            found = await self._handles.catalog.call("list", name, deadline_s=CALL_DEADLINE_S)
        self._kept[name] = (now + KEEP_S, found)
        return found
