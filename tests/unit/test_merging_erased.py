"""Erasure comes in between the steps of a merge or an undo: nothing of it can be gone on with."""

from __future__ import annotations

import pytest

from manta.command import Context
from manta.errors import NotFound, OutcomeUnknown
from manta.people.identifying import finish, merge, undo_merge
from manta.privacy.commands import Erase
from manta.privacy.names import Name
from manta.privacy.queries import privacy_scope
from serve_apps.collect.recording import Incoming, record_events
from tests.unit.merging_house import Shards

NAMES = (Name("email", "a@x.org"), Name("email", "b@x.org"))


async def half_done(calls: int, undo: bool) -> tuple[Shards, int, int, bool]:
    """Two people in two shards; the merge, or its undo, dies after so many calls."""
    shards = Shards(2)
    a, b = (shards.new_person(n, f"{'ab'[n]}@x.org") for n in range(2))
    if undo:
        await merge(shards, a, b, cause="test")
    shards.dies_at = calls
    try:
        await (undo_merge(shards, a) if undo else merge(shards, a, b, cause="test"))
    except OutcomeUnknown:
        return shards, a, b, True
    shards.dies_at = None
    return shards, a, b, False


@pytest.mark.parametrize("undo", [False, True])
async def test_a_merge_that_an_erasure_met_hinders_nobody(undo: bool) -> None:
    died, calls = True, 0
    while died:
        shards, a, b, died = await half_done(calls, undo)
        calls += 1
        for shard in shards.shards:
            assert shards._one(shard, Erase(None, "r", tuple(sorted((a, b))), NAMES)).removed >= 0
        shards.pass_time(seconds=60)
        await finish(shards, [a, b])
        for again in (undo_merge(shards, a), merge(shards, a, b, cause="again")):
            with pytest.raises(NotFound):
                await again
        late = record_events([Incoming(a, "viewed", "e1", None, None, None, None)], None)
        (refused,) = shards.home(a).answer(late).refused
        assert refused[1] == "unknown"
        for shard in shards.shards:
            assert shard.rows("SELECT 1 FROM profiles") == []
            assert shard.rows("SELECT 1 FROM aliases WHERE kept IS NOT NULL") == []
            there = privacy_scope(shard.database, shard_context(shard), {"people": [a]})
            assert there["people"] == sorted((a, b))
    assert calls > 2


def shard_context(shard: object) -> Context:
    return Context(shard.now, shard.random, "default", 0, {"privacy_key": b"k" * 32})  # type: ignore[attr-defined]
