"""Runs of many seeds, on all processors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from tests.sim.auditor import Violation
from tests.sim.mutants import MUTANTS
from tests.sim.world import Size, World


def run(seed: int, size: Size | None = None) -> World:
    """One world to its end; a failure names the seed and shows what happened last."""
    world = World(seed, size=size or Size())
    try:
        world.run()
    except Exception as error:
        last = "\n".join(world.scheduler.trace[-60:])
        raise AssertionError(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"repeat: python -m tests.sim.repeat {seed}\n{last}"
        ) from error
    return world


def run_all(first: int, last: int, size: Size | None = None) -> int:
    """How many there were."""
    for seed in range(first, last):
        run(seed, size)
    return last - first


def first_catch(name: str, seeds: int) -> int | None:
    """A seed that notices the mistake; None: it is noticed by none."""
    for seed in (MUTANTS[name].seen_by, *range(seeds)):
        try:
            World(seed, MUTANTS[name]).run()
        except Violation:
            return seed
    return None


@contextmanager
def processors() -> Iterator[ProcessPoolExecutor]:
    """A process for each processor; what has not begun when it is left is not begun."""
    with ProcessPoolExecutor(
        os.cpu_count() or 1, mp_context=get_context("spawn"), initializer=_hush
    ) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _hush() -> None:
    """What the processes of a world complain about is what the world does to them."""
    logging.disable(logging.CRITICAL)
