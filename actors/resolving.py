"""Taking over a Sender's attempt journal: fence it, read it, settle what it proves.

Done by a Sender when it starts, for what its earlier incarnations left, and by the Director when
leases of a silent Sender are past their deadline. Whoever of them appends the later epoch entry
wins; the other is fenced. A crash at any point leaves rows orphaned, and the whole is done again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from manta.clock import Clock
from manta.command import Command
from manta.delivery.attempts import History, resolve
from manta.delivery.senders import Known, SenderKnown
from manta.delivery.settling import FenceSender, ResolveOrphans
from manta.errors import MantaError

logger = logging.getLogger("manta.actors")


class ShardsPort(Protocol):
    """``actors.handles.Shards``: answers are values or the errors of single commands."""

    @property
    def count(self) -> int: ...

    async def execute_on(
        self, shard: int, commands: Sequence[Any], deadline_s: float = ...
    ) -> list[Any]: ...


AskAll = Callable[[Sequence[Command | None]], Awaitable[list[Any]]]
Fence = Callable[[Sequence[Known]], Awaitable[History]]


async def take_over(
    sender: str, shards: int, ask_all: AskAll, fence: Fence, clock: Clock
) -> History:
    """Fence all earlier incarnations of ``sender`` and resolve every message they hold.

    ``ask_all`` asks each of the ``shards`` its own command and raises the first error; ``fence`` is
    ``AttemptJournal.take_over`` off the event loop. Raises what they raise, ``Fenced`` when a later
    owner has been faster: then nothing is known to be settled.
    """
    known = await ask_all([SenderKnown(sender)] * shards)
    history = await fence(known)
    held = await ask_all([FenceSender(sender, history.epoch)] * shards)
    sequence = max(unresolved.journal_sequence for unresolved in held)
    if history.damage:
        logger.error("%s: its former journal proves nothing: %s", sender, history.damage)
    now = clock.now()
    verdicts = [resolve(history, unresolved.rows, sequence, now) for unresolved in held]
    commands = [
        ResolveOrphans(sender, history.epoch, each) if each.num_rows else None for each in verdicts
    ]
    for shard, answer in enumerate(await ask_all(commands)):
        if answer is not None:
            logger.info("%s: shard %d resolved %s", sender, shard, answer)
    return history


async def ask_all(
    shards: ShardsPort, commands: Sequence[Command | None], **deadline: float
) -> list[Any]:
    """Ask each shard its own command (``None``: nothing). Raises the first error after all have
    answered."""

    async def ask(shard: int, command: Command | None) -> Any:
        if command is None:
            return None
        (answer,) = await shards.execute_on(shard, [command], **deadline)
        return answer

    answers = await asyncio.gather(*(ask(*each) for each in enumerate(commands)))
    for answer in answers:
        if isinstance(answer, MantaError):
            raise answer
    return answers
