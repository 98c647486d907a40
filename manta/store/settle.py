"""One conditional write, carried to a definite end.

The caller learns whose the name is, for certain, or the process has to stop relying on it. Sending
the same bytes again is safe at any time: whichever try arrives, the content is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from manta.clock import Clock
from manta.errors import OutcomeUnknown, StoreUnavailable
from manta.store.objects import AlreadyExists, ObjectStore

UNDECIDED_S = 10.0
_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0


def put_settled(
    objects: ObjectStore,
    path: str,
    data: bytes,
    clock: Clock,
    *,
    undecided_s: float = UNDECIDED_S,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes | None:
    """Put if absent until it is known whose the name is: ``None`` ours, else what another stored.

    Refused, or outcome unknown: read the object. Ours → stored. Another's → theirs. Absent → put
    the same bytes again. Raises ``StoreUnavailable`` only while no try can have been stored, and
    ``OutcomeUnknown`` when nothing is decided after ``undecided_s``.
    """
    deadline = clock.monotonic() + undecided_s
    pause_s = _PAUSE_FIRST_S
    doubtful = False
    while True:
        try:
            objects.put_if_absent(path, data)
            return None
        except (AlreadyExists, OutcomeUnknown):
            doubtful = True
        except StoreUnavailable:
            if not doubtful:
                raise
        try:
            found = objects.get(path)
        except StoreUnavailable:
            found = None
        if found is not None:
            return None if found == data else found
        if clock.monotonic() >= deadline:
            raise OutcomeUnknown(
                f"{path}: neither stored nor refused within {undecided_s:g} s; "
                "retry with the same key",
                object=path,
            )
        sleep(pause_s)
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)
