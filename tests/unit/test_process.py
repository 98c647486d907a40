"""What an actor's process does first: in a process of its own, since it is for good."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from actors.process import keep_pandas_out
keep_pandas_out()
import numpy as np
import pyarrow as pa
import manta.store.shard
from manta.command import Change, Op
from manta.store.database import ShardDatabase
database = ShardDatabase()
key = {"subscriber_id": [1, 1], "message_key": [2, 3]}
rows = pa.table({**key, "state": pa.array(np.array(["planned", "leased"]))})
database.begin()
for _ in range(2):
    database.apply(database.prepare([Change("ledger", Op.UPSERT, rows)]))
database.commit()
print(database.rows("SELECT message_key, state FROM ledger ORDER BY 1"))
print(database.table("FROM ledger").num_rows, "pandas" in sys.modules)
import pandas
print(len(database.table("FROM ledger").to_pandas()))
"""


def test_an_actors_process_does_without_pandas_and_could_have_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["[(2, 'planned'), (3, 'leased')]", "2 False", "2"], (
        done.stderr
    )
