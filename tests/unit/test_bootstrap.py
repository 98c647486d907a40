"""How a workspace is started: the Catalog first, and no shard of a wrong number."""

from __future__ import annotations

import pickle
from random import Random
from typing import Any

import pytest

from actors import bootstrap
from actors.handles import Handles, Shards
from manta.clock import ManualClock
from manta.errors import InvalidRequest
from manta.ids import even_ranges
from manta.settings import Settings


class Cluster:
    """What was started, in order; every actor answers that it is ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shards: int, nodes: int = 1) -> None:
        self.started: list[str] = []
        self.shards = shards
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
        return {"ready": True}

    def push(self, role: str, method: str, *arguments: Any) -> None:
        pass


async def test_everything_is_started_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, shards=2)
    found = await bootstrap.up(Settings(workspace="w", shards=2, senders=1))
    assert found.shards.count == 2
    assert cluster.started == [
        "w/catalog", "w/throttle", "w/resolver",
        "w/shard-000", "w/shard-001", "w/director", "w/sender-00",
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [1, 3])
async def test_another_number_of_shards_is_refused_before_any_is_started(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    cluster = Cluster(monkeypatch, shards=2)
    with pytest.raises(InvalidRequest, match="has 2 shards") as caught:
        await bootstrap.up(Settings(workspace="w", shards=asked))
    assert caught.value.path == "shards" and "shards = 2" in caught.value.expected
    assert cluster.started == ["w/catalog", "w/throttle", "w/resolver"]


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


@pytest.mark.parametrize("role", bootstrap.roles(Settings(senders=2)))
def test_every_role_is_built_by_something_that_can_be_sent_to_another_process(role: str) -> None:
    builder = bootstrap._builder(role, Settings(senders=2))
    assert pickle.loads(pickle.dumps(builder)).args[0] == Settings(senders=2)
