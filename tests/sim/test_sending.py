"""Sending survives whatever the simulation does to it, and the auditor notices when it does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest

from manta.delivery.ledger import Policy, State
from manta.ids import MessageRef
from tests.sim.auditor import Auditor, Row, Violation
from tests.sim.mutants import MUTANTS
from tests.sim.runs import first_catch, processors, run, run_all
from tests.sim.world import Size

SEEDS = 1_000
SEEDS_LONG = 5_000
CHUNK = 25
LARGE = Size(shards_max=3, people_max=40, senders=3, trouble_s=180.0, disasters_max=12)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with processors() as pool:
        yield pool


@pytest.fixture(scope="module")
def chunks(pool: ProcessPoolExecutor) -> dict[int, Future[int]]:
    """All seeds, begun at once: each test waits for its own."""
    return {first: pool.submit(run_all, first, first + CHUNK) for first in range(0, SEEDS, CHUNK)}


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_recipient_is_accounted_for(first: int, chunks: dict[int, Future[int]]) -> None:
    assert chunks[first].result() == CHUNK


@pytest.fixture(scope="module")
def catches(pool: ProcessPoolExecutor) -> dict[str, Future[int | None]]:
    return {name: pool.submit(first_catch, name, SEEDS) for name in MUTANTS}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_caught_within_the_same_seeds(
    name: str, catches: dict[str, Future[int | None]]
) -> None:
    assert catches[name].result() is not None, f"{name}: not caught by {SEEDS} seeds"


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_repeats_exactly(seed: int) -> None:
    first, second = run(seed), run(seed)
    assert first.scheduler.trace == second.scheduler.trace
    assert first.receiver.taken == second.receiver.taken
    assert first.held.held.keys() == second.held.held.keys()


def test_a_seed_repeats_in_another_process() -> None:
    """As ``tests.sim.repeat`` does: the order in which texts hash plays no part."""
    here = "\n".join(run(5).scheduler.trace)
    told = subprocess.run(
        [sys.executable, "-m", "tests.sim.repeat", "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == here + "\n"


@pytest.mark.long
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_LONG, 200))
def test_many_more_seeds(first: int, pool: ProcessPoolExecutor) -> None:
    halves = [pool.submit(run_all, at, at + 100) for at in (first, first + 100)]
    assert sum(half.result() for half in halves) == 200


@pytest.mark.long
@pytest.mark.parametrize("first", range(10_000, 10_100, 20))
def test_larger_worlds(first: int, pool: ProcessPoolExecutor) -> None:
    halves = [pool.submit(run_all, at, at + 10, LARGE) for at in (first, first + 10)]
    assert sum(half.result() for half in halves) == 20


def test_a_row_that_was_counted_and_never_came_is_noticed() -> None:
    auditor = Auditor({7: Policy.HOLD})
    view = {MessageRef(1, 2): Row(State.PLANNED, 7)}
    auditor.committed(0, 1, 1, view, planned=1)
    with pytest.raises(Violation, match="do not add up"):
        auditor.committed(0, 2, 1, view, planned=2)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
