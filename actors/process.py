"""What every actor's own process does first, before the actor is built.

pyarrow looks for pandas when a Python list first becomes an array, and then imports it: 0.9 s of
the processor and 40 MB in each process, for nothing, since no actor has a data frame. It looks
once. So we let it look while there is no pandas to be found.

The collector of cycles would look through all modules again and again, and after every 700 new
objects, of which a lease alone has thousands. What is there at the start stays for ever.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa

COLLECTOR_THRESHOLDS = (20_000, 20, 20)


class _NoPandas(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError("an actor's process does without pandas", name=name)
        return None


def keep_pandas_out() -> None:
    """Let pyarrow believe that there is no pandas. ``import pandas`` itself still works.

    Not for a process that hands data frames to pyarrow. Without effect once pandas is imported.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


def calm_collector() -> None:
    """What exists now is never looked through again for garbage, and new objects less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
