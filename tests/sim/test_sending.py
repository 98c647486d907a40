"""Sending survives whatever the simulation does to it, and the auditor notices when it does not."""

from __future__ import annotations

import pytest

from manta.delivery.ledger import Policy, State
from manta.ids import MessageRef
from tests.sim.auditor import Auditor, Row, Violation
from tests.sim.mutants import Mutant
from tests.sim.world import Size, World

SEEDS = 300
SEEDS_LONG = 1_500
CHUNK = 25


def run(seed: int, mutant: Mutant | None = None, size: Size | None = None) -> World:
    """One world to its end; a failure names the seed and shows what happened last."""
    world = World(seed, mutant or Mutant(), size or Size())
    try:
        world.run()
    except Exception as error:
        last = "\n".join(world.scheduler.trace[-60:])
        raise AssertionError(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"repeat: python -m tests.sim.repeat {seed}\n{last}"
        ) from error
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_recipient_is_accounted_for(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_LONG, 100))
def test_many_more_seeds(first: int) -> None:
    for seed in range(first, first + 100):
        run(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(10_000, 10_100, 20))
def test_larger_worlds(first: int) -> None:
    size = Size(shards_max=3, people_max=40, senders=3, trouble_steps=4_000, disasters_max=12)
    for seed in range(first, first + 20):
        run(seed, size=size)


def test_a_row_that_was_counted_and_never_came_is_noticed() -> None:
    auditor = Auditor({7: Policy.HOLD})
    view = {MessageRef(1, 2): Row(State.PLANNED, 7)}
    auditor.committed(0, 1, 1, view, planned=1)
    with pytest.raises(Violation, match="do not add up"):
        auditor.committed(0, 2, 1, view, planned=2)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_repeats_exactly(seed: int) -> None:
    first, second = run(seed), run(seed)
    assert first.scheduler.trace == second.scheduler.trace
    assert first.receiver.taken == second.receiver.taken
    assert first.held.held.keys() == second.held.held.keys()


@pytest.mark.parametrize(
    "mutant",
    [
        Mutant(replan_by_time=True),
        Mutant(attempt_stored_late=True),
        Mutant(epochs_deleted=True),
    ],
    ids=["plans again by time alone", "stores attempts late", "deletes epoch entries"],
)
def test_a_mistake_is_caught_within_the_same_seeds(mutant: Mutant) -> None:
    for seed in range(SEEDS):
        try:
            World(seed, mutant).run()
        except Violation:
            return
    pytest.fail(f"{mutant} was not caught by {SEEDS} seeds")
