"""Taking over a Sender's attempt journal: fence it, read it, settle what it proves.

Done by a Sender when it starts, for what its earlier incarnations left, and by the Director when
leases of a silent Sender are past their deadline. Whoever of them appends the later epoch entry
wins; the other is fenced. A crash at any point leaves rows orphaned, and the whole is done again.
"""

from __future__ import annotations

import asyncio
import logging

from actors.handles import Shards
from manta.clock import Clock
from manta.delivery.attempts import AttemptJournal, History, resolve
from manta.delivery.senders import SenderKnown
from manta.delivery.settling import FenceSender, ResolveOrphans

RESOLVE_DEADLINE_S = 300.0
logger = logging.getLogger("manta.actors")


async def take_over(journal: AttemptJournal, sender: str, shards: Shards, clock: Clock) -> History:
    """Fence all earlier incarnations of ``sender`` and resolve every message they hold.

    Raises ``Fenced`` when a later owner has been faster, and retryable errors when a shard or the
    store did not answer for ``RESOLVE_DEADLINE_S``: then nothing is known to be settled.
    """
    known = await shards.execute_all(SenderKnown(sender), RESOLVE_DEADLINE_S)
    history = await asyncio.to_thread(journal.take_over, known)
    held = await shards.execute_all(FenceSender(sender, history.epoch), RESOLVE_DEADLINE_S)
    journal_sequence = max(unresolved.journal_sequence for unresolved in held)
    if history.damage:
        logger.warning("%s: the attempt journal proves nothing: %s", sender, history.damage)
    for shard, unresolved in enumerate(held):
        if not unresolved.rows.num_rows:
            continue
        verdicts = resolve(history, unresolved.rows, journal_sequence, clock.now())
        answer = await shards.execute(
            shard, ResolveOrphans(sender, history.epoch, verdicts), RESOLVE_DEADLINE_S
        )
        logger.info("%s: shard %d resolved %s", sender, shard, answer)
    return history
