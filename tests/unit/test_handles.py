"""Calls to actors: what is tried again, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from actors import handles
from actors.handles import Shards, Singleton
from manta.clock import ManualClock
from manta.errors import Conflict, NotReady, OutcomeUnknown
from manta.ids import bucket_of_identity, even_ranges, mint_subscriber_id


@dataclass(frozen=True)
class Note:
    """A command as far as a handle looks at it."""

    text: str
    key: str | None = None


class ScriptedCalls:
    """Answers each call by the next of a script: a value, or an error to raise."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.seen: list[tuple[Any, ...]] = []

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 0) -> Any:
        self.seen.append((role, method, *arguments))
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def push(self, role: str, method: str, *arguments: Any) -> None:
        self.seen.append((role, method, *arguments))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock()

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    monkeypatch.setattr(handles.asyncio, "sleep", sleep)
    return clock


def shards_of(calls: ScriptedCalls, clock: ManualClock) -> Shards:
    return Shards(calls, even_ranges(4), clock, Random(1))


async def test_a_person_is_found_by_hashing(clock: ManualClock) -> None:
    shards = shards_of(ScriptedCalls(), clock)
    bucket = bucket_of_identity("email", "ada@example.com")
    assert shards.of_identity("email", "ada@example.com") == bucket * 4 // 65_536
    subscriber_id = mint_subscriber_id(bucket, Random(2))
    assert shards.of_subscriber(subscriber_id) == bucket * 4 // 65_536


async def test_only_what_a_retry_may_settle_is_sent_again(clock: ManualClock) -> None:
    keyed, plain, wrong, fine = Note("a", key="k"), Note("b"), Note("c", key="l"), Note("d")
    calls = ScriptedCalls(
        [OutcomeUnknown("?"), OutcomeUnknown("?"), Conflict("no", path="x"), "done"],
        ["settled"],
    )
    answers = await shards_of(calls, clock).execute_on(0, [keyed, plain, wrong, fine])
    assert answers[0] == "settled"
    assert isinstance(answers[1], OutcomeUnknown), "without a key it may have run already"
    assert isinstance(answers[2], Conflict)
    assert answers[3] == "done"
    assert calls.seen[1] == ("shard-000", "execute", [keyed])


async def test_a_call_that_certainly_did_not_run_is_sent_again_without_key(
    clock: ManualClock,
) -> None:
    calls = ScriptedCalls(NotReady("recovering"), [NotReady("still")], ["done"])
    assert await shards_of(calls, clock).execute_on(3, [Note("a")]) == ["done"]


async def test_the_deadline_ends_the_tries(clock: ManualClock) -> None:
    calls = ScriptedCalls(*[NotReady("recovering")] * 1000)
    (answer,) = await shards_of(calls, clock).execute_on(0, [Note("a")], deadline_s=10)
    assert isinstance(answer, NotReady)
    assert 5 <= clock.monotonic() <= 10
    assert len(calls.seen) < 30, "pauses grow"


async def test_a_call_that_may_not_run_twice_is_not_repeated(clock: ManualClock) -> None:
    calls = ScriptedCalls(OutcomeUnknown("?"), "second")
    catalog = Singleton(calls, "catalog", clock, Random(1))
    with pytest.raises(OutcomeUnknown):
        await catalog.call("create_api_key", "n", once=True)
    assert await catalog.call("get", "x", "y") == "second"
