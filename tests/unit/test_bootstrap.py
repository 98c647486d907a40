"""How a workspace is started: the Catalog first, and no shard of a wrong number."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from actors import bootstrap, building
from actors.handles import Handles, Shards, Singleton
from actors.io import smtp
from manta.clock import ManualClock
from manta.delivery.lanes import Lane, Site
from manta.delivery.replies import Reply
from manta.delivery.throttle.budgets import Connections
from manta.errors import InvalidRequest
from manta.ids import even_ranges
from manta.settings import EgressSource, InboxSettings, Settings


class Cluster:
    """What was started, in order; every actor answers that it is ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shards: int, nodes: int = 1) -> None:
        self.started: list[str] = []
        self.shards = shards
        self.shaping = ""
        self.shapings_set = 0
        monkeypatch.setattr(bootstrap, "start_actor", self.start_actor)
        monkeypatch.setattr(bootstrap, "node_count", lambda: nodes)
        monkeypatch.setattr(bootstrap, "find", self.find)

    def start_actor(self, name: str, build: Any, *, environment: Any) -> None:
        self.started.append(name)

    async def find(self, settings: Settings, deadline_s: float = 0) -> Handles:
        assert f"{settings.workspace}/catalog" in self.started
        clock, random = ManualClock(), Random(1)
        shards = Shards(self, even_ranges(self.shards), clock, random)
        return Handles(settings.workspace, self, shards, clock, random, settings.senders)

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 0) -> Any:
        assert f"w/{role}" in self.started
        if method == "set_shaping":
            self.shaping, self.shapings_set = arguments[0], self.shapings_set + 1
        return {"ready": True, "text": self.shaping}

    def push(self, role: str, method: str, *arguments: Any) -> None:
        pass


async def test_everything_is_started_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, shards=2)
    found = await bootstrap.up(Settings(workspace="w", shards=2, senders=1))
    assert found.shards.count == 2
    assert cluster.started == [
        "w/catalog", "w/throttle", "w/reputation", "w/resolver",
        "w/shard-000", "w/shard-001", "w/director", "w/courier", "w/sender-00",
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [1, 3])
async def test_another_number_of_shards_is_refused_before_any_is_started(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    cluster = Cluster(monkeypatch, shards=2)
    with pytest.raises(InvalidRequest, match="has 2 shards") as caught:
        await bootstrap.up(Settings(workspace="w", shards=asked))
    assert caught.value.path == "shards" and "shards = 2" in caught.value.expected
    assert cluster.started == [f"w/{role}" for role in bootstrap.FIRST]


async def test_a_folder_is_refused_on_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, shards=2, nodes=2)
    with pytest.raises(InvalidRequest) as caught:
        await bootstrap.up(Settings(workspace="w"))
    assert caught.value.path == "root" and not cluster.started
    await bootstrap.up(Settings(workspace="w", root_is_shared=True))
    await bootstrap.up(Settings(workspace="w", root="s3://bucket/manta"))


def test_a_folder_means_the_same_in_every_process() -> None:
    assert bootstrap.absolute(Settings(root="data")).root.startswith("/")
    for root in ("s3://bucket/manta", "file:///srv/manta"):
        assert bootstrap.absolute(Settings(root=root)).root == root


ALL = Settings(senders=2, inbox=InboxSettings(port=2525))


@pytest.mark.parametrize("role", bootstrap.roles(ALL))
def test_every_role_is_built_by_something_that_can_be_sent_to_another_process(role: str) -> None:
    builder = pickle.loads(pickle.dumps(partial(building.build, role, ALL)))
    assert builder.args == (role, ALL)
    kind = role.partition("-")[0]
    assert callable(getattr(building, f"build_{kind}"))


def test_there_is_an_inbox_only_where_it_has_a_port() -> None:
    assert "inbox-00" in bootstrap.roles(ALL)
    assert not any(role.startswith("inbox") for role in bootstrap.roles(Settings()))


async def test_the_shaping_file_is_checked_first_and_told_when_it_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "shaping.toml"
    cluster = Cluster(monkeypatch, shards=2)
    settings = Settings(workspace="w", shaping_file=str(file))
    for wrong in (None, "nonsense"):
        if wrong:
            file.write_text(wrong)
        with pytest.raises(InvalidRequest):
            await bootstrap.up(settings)
    assert not cluster.started
    file.write_text('[provider.inhouse]\ndomains = ["a.example"]\n')
    await bootstrap.up(settings)
    await bootstrap.up(settings)
    assert cluster.shaping == file.read_text() and cluster.shapings_set == 1


async def test_connections_go_by_the_kind_of_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []

    class Connector:
        def __init__(self, source: EgressSource, *rest: Any) -> None:
            self.name = source.name

        async def connect(self, *arguments: Any) -> str:
            opened.append((self.name, *arguments))
            return "connection"

    monkeypatch.setattr(smtp, "SmtpConnector", Connector)
    monkeypatch.setattr(smtp, "DirectConnector", Connector)
    sources = (EgressSource(name="relay"), EgressSource(name="mx-a", kind="direct"))
    resolver = Singleton(None, "resolver", ManualClock(), Random(1))
    connect = building._connect(Settings(egress=sources), resolver, Random(1))
    site, held = Site("mx", "p", (("mx",),)), Connections(1, 30.0, 50, "required")
    lane = Lane("relay", "relay", "others", "others")
    await connect(lane, site, held)
    direct = Lane("mx-a", "mx-a", "mx", "p")
    await connect(direct, site, held)
    assert opened == [("relay", 50), ("mx-a", direct, site, "required", 50)]
    gone = await connect(direct._replace(source="gone"), site, held)
    assert isinstance(gone, Reply) and "gone" in gone.text
