"""A whole workspace on the run's one Ray cluster, with a receiver that counts every copy."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors import bootstrap
from actors.handles import Handles
from actors.runtime import Caller
from manta.errors import MantaError
from manta.people.identities import route
from manta.people.upsert import Consent, UpsertPeople
from manta.settings import EgressSource, Settings

TEMPLATE = {
    "name": "News",
    "subject": "News for {{ first_name }}",
    "html": "<html><body><p>Dear {{ first_name }},</p>"
    '<p><a href="https://shop.example/new">What is new</a></p>'
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>',
    "from_email": "news@news.example",
}


class Sink:
    """Postfix's smtp-sink, writing every mail to a file: the receiver's own count of copies."""

    def __init__(self, program: str) -> None:
        self._program = program
        # smtp-sink gives up root and then writes: a folder of its own that anybody may write to.
        self._folder = tempfile.TemporaryDirectory(prefix="manta-sink-")
        Path(self._folder.name).chmod(0o777)
        self._file = Path(self._folder.name) / "mails"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [self._program, *user, "-D", str(self._file), f"127.0.0.1:{self.port}", "256"]
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("smtp-sink does not listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        self._folder.cleanup()

    def copies(self) -> Counter[str]:
        """How many mails each recipient got."""
        if not self._file.exists():
            return Counter()
        text = self._file.read_bytes()
        found = re.findall(rb"^X-Rcpt-Args: <([^>]+)>", text, re.MULTILINE)
        return Counter(address.decode().lower() for address in found)

    def count(self) -> int:
        return sum(self.copies().values())


@asynccontextmanager
async def running(
    workspace: str, smtp_port: int, **changes: Any
) -> AsyncIterator[tuple[Handles, Settings]]:
    """A workspace with its own root, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="manta-") as folder:
        source = EgressSource(host="127.0.0.1", port=smtp_port, tls="none", connections_max=4)
        settings = Settings(
            **{"workspace": workspace, "root": folder, "egress": (source,)} | changes
        )
        try:
            yield await bootstrap.up(settings), settings
        finally:
            bootstrap.down(settings)


async def import_people(handles: Handles, rows: pa.Table, topic: str = "newsletter") -> None:
    """Subscribed people with string attributes."""
    names = [n.removeprefix("attr_") for n in rows.column_names if n.startswith("attr_")]
    kinds = {
        n: "string" if rows.schema.field(f"attr_{n}").type == pa.string() else "number"
        for n in names
    }
    await handles.catalog.call("declare_attributes", kinds)
    for start in range(0, rows.num_rows, 10_000):
        parts = route(rows.slice(start, 10_000), handles.shards.first_buckets)
        await asyncio.gather(
            *(
                handles.shards.execute(
                    shard,
                    UpsertPeople(
                        f"import-{start}-{shard}",
                        part,
                        "test",
                        Consent("email", topic, "subscribed"),
                    ),
                )
                for shard, part in parts.items()
            )
        )


async def launch(
    handles: Handles, rule: dict[str, Any], content: dict[str, str] = TEMPLATE, **fields: Any
) -> int:
    """A campaign to everybody who fits the rule; its number."""
    if not await handles.catalog.call("domains"):
        await handles.catalog.call("add_domain", "news.example")
    template = await handles.catalog.call("save_template", content)
    campaign = await handles.director.call(
        "create", {"name": "Test", "rule": rule, "template_id": template["template_id"]} | fields
    )
    await handles.director.call("launch", campaign["id"])
    return int(campaign["id"])


async def accounting(handles: Handles, campaign_id: int) -> Counter[str]:
    """Messages by state over all shards, with ``planned_total`` and ``pending``."""
    total: Counter[str] = Counter()
    for part in await handles.shards.query_all("accounting", {"campaign_id": campaign_id}):
        total.update(dict(part["states"]))
        total["planned_total"] += part["planned_total"]
        total["pending"] += part["pending"]
    return total


def adds_up(total: Counter[str]) -> bool:
    final = ("accepted", "failed", "suppressed", "cancelled", "expired", "uncertain", "pending")
    return total["planned_total"] == sum(total[state] for state in final)


async def until(condition: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Wait for an awaitable condition; actors that are on their way back are no failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if await condition():
                return
        except MantaError:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.1)


async def finished(handles: Handles, campaign_id: int, timeout_s: float) -> None:
    async def is_finished() -> bool:
        return (await handles.director.call("campaign", campaign_id))["state"] == "finished"

    await until(is_finished, timeout_s, f"campaign {campaign_id} finishes")


async def kill(settings: Settings, role: str, how: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to an actor's process; its process id."""
    pid = await Caller(settings.workspace).pid(role)
    os.kill(pid, how)
    return pid
