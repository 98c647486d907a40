"""A real campaign of some minutes keeps its lane's limit in every minute, and uses it.

The receiver notes when each message came. Two Senders share the lane.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import pyarrow as pa
import pytest

from manta.settings import EgressSource
from tests.integration import greylister, world

RATE_PER_S, BURST, WINDOW_S, PEOPLE = 150.0, 50, 60.0, 30_000
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def fullest_window(times: list[float], window_s: float) -> int:
    """The most messages in any half-open window of this length."""
    return max(bisect_right(times, at + window_s - 1e-9) - i for i, at in enumerate(times))


async def test_a_lane_keeps_its_limit_and_uses_it(ray_cluster: str, tmp_path: Path) -> None:
    file = tmp_path / "taken"
    with greylister.receiving(file, 0.0) as port:
        source = EgressSource(
            host="127.0.0.1", port=port, tls="none", rate_per_s=RATE_PER_S, burst=BURST
        )
        changes = {"egress": (source,), "senders": 2}
        async with world.running("pace", port, **changes) as (handles, _):
            emails = [f"p{n}@d{n % 40}.example" for n in range(PEOPLE)]
            people = pa.table({"email": emails, "attr_first_name": pa.array(["Ada"] * PEOPLE)})
            await world.import_people(handles, people)
            campaign = await world.launch(handles, {"all": []})
            await world.finished(handles, campaign, 600)
    times = sorted(at for _, at in greylister.taken(file))
    assert len(times) == PEOPLE
    fullest = fullest_window(times, WINDOW_S)
    # The end has no backlog any more: a pace is what is sent while there is one.
    backlog = times[: int(PEOPLE * 0.95)]
    used = (len(backlog) - BURST) / ((backlog[-1] - backlog[0]) * RATE_PER_S)
    print(f"fullest {WINDOW_S:g} s: {fullest}, used {used:.3f} of the limit")
    assert fullest <= WINDOW_S * RATE_PER_S * 1.02 + BURST
    assert used >= 0.95
