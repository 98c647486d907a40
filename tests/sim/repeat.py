"""``python -m tests.sim.repeat SEED``: one run of the simulation with everything that happened."""

from __future__ import annotations

import logging
import sys

from tests.sim.world import World


def main() -> None:
    logging.disable(logging.CRITICAL)
    world = World(int(sys.argv[1]))
    try:
        world.run()
    finally:
        print("\n".join(world.scheduler.trace))


if __name__ == "__main__":
    main()
