"""What a replica knows of the Catalog's definitions while it takes data in: declared attributes,
sources and sites, each at most ``KEEP_S`` old."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.handles import Handles
from manta.errors import NotFound
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

    async def attributes(self) -> Mapping[str, AttributeType]:
        found: Mapping[str, AttributeType] = await self._read("attributes")
        return found

    async def declare(self, types: Mapping[str, AttributeType]) -> Mapping[str, AttributeType]:
        """Declare attributes; all that are declared now. Raises ``InvalidRequest`` where another
        has declared one of them otherwise."""
        self._kept.pop("attributes", None)
        await self._handles.catalog.call(
            "declare_attributes",
            {name: str(kind) for name, kind in types.items()},
            deadline_s=CALL_DEADLINE_S,
        )
        return await self.attributes()

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
            found: Any = await reads.attribute_types(self._handles)
        else:
            found = await self._handles.catalog.call("list", name, deadline_s=CALL_DEADLINE_S)
        self._kept[name] = (now + KEEP_S, found)
        return found
