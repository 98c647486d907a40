"""Merging people and undoing it, over all shards: the driver of ``manta.people.merging``.

Steps of many merges share their calls. Nothing is lost by dying between two steps: what is left
says how far it came, ``finish`` goes on from there, and every caller that meets an unfinished merge
calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from manta.errors import Conflict, MantaError, NotFound
from manta.events.copies import Copies
from manta.people.merging import (
    EVENTS_PAGE,
    AdoptPerson,
    BeginMerge,
    BeginUndo,
    Begun,
    BegunUndo,
    EndMerge,
    EndUndo,
    EventsOfMerged,
    ReturnPerson,
    Step,
)
from manta.people.over_shards import DEADLINE_S, Shards, bring, living, run_each


class Merged(NamedTuple):
    """``from_id`` lives on as ``to_id``."""

    from_id: int
    to_id: int
    merge_id: int


@dataclass
class Joining:
    """One merge on its way; ``to_id`` ``None``: whatever is on its way already. ``step`` says in
    the end what became of it, or ``error`` why it is not done."""

    from_id: int
    to_id: int | None
    cause: str
    only_anonymous: bool = False
    step: Step | None = None
    merge_id: int = 0
    error: MantaError | None = None


async def merge(
    shards: Shards, from_id: int, to_id: int, *, cause: str, deadline_s: float = DEADLINE_S
) -> Merged:
    """Let ``from_id`` live on as ``to_id``, or as who that is now. Done before: the same answer.

    Raises ``NotFound`` where nobody has an id, ``Conflict`` where from lives on as somebody else or
    both are one already.
    """
    to_id = (await living(shards, [to_id], deadline_s))[to_id]
    await finish(shards, [from_id], deadline_s)
    job = Joining(from_id, to_id, cause)
    await join_many(shards, [job], deadline_s)
    if job.error is not None:
        raise job.error
    if job.step is Step.DONE:
        assert job.to_id is not None
        return Merged(from_id, job.to_id, job.merge_id)
    if job.step is Step.ELSEWHERE:
        raise Conflict(
            "this person was merged into somebody else",
            path="subscriber_id",
            expected="the id of a person who is not merged; undo the other merge first",
        )
    raise NotFound("nobody has the id to merge into", path="into", expected="a person's id")


async def undo_merge(shards: Shards, from_id: int, *, deadline_s: float = DEADLINE_S) -> Merged:
    """Give back to ``from_id`` what is theirs.

    Raises ``NotFound`` where they are not merged, ``Conflict`` while the one they were merged into
    is merged themselves: chains are undone from their end.
    """
    home = shards.of_subscriber(from_id)
    begun: BegunUndo = await shards.execute(home, BeginUndo(None, from_id), deadline_s)
    if begun.step is Step.BEGUN:
        await join_many(shards, [Joining(from_id, None, "")], deadline_s)
        begun = await shards.execute(home, BeginUndo(None, from_id), deadline_s)
    if not await _end_undo(shards, from_id, begun, deadline_s):
        raise Conflict(
            "the person they were merged into was merged into somebody since",
            path="subscriber_id",
            expected="to undo the later merge first",
        )
    return Merged(from_id, begun.to_id, begun.merge_id)


async def finish(shards: Shards, from_ids: Iterable[int], deadline_s: float = DEADLINE_S) -> None:
    """Bring merges and undos of these people to their end where somebody left them half done.

    Safe beside the driver who began it, since every step may be repeated.
    """
    jobs = [Joining(id, None, "") for id in dict.fromkeys(from_ids)]
    await join_many(shards, jobs, deadline_s)
    for job in jobs:
        if job.error is not None:
            raise job.error
        if job.step is Step.UNDOING:
            home = shards.of_subscriber(job.from_id)
            begun = await shards.execute(home, BeginUndo(None, job.from_id), deadline_s)
            await _end_undo(shards, job.from_id, begun, deadline_s)


async def forward(
    shards: Shards, copies: Sequence[Copies], key: str | None, deadline_s: float = DEADLINE_S
) -> None:
    """Bring events to those whom their people live on as, and finish merges that are met on the
    way. ``key`` is of the command that answered the copies. Raises what a shard raises: the whole
    may be repeated."""
    late = [each.unfinished for each in copies if each.unfinished is not None]
    if late:
        await finish(shards, late, deadline_s)
    await bring(shards, copies, key, deadline_s)


async def _end_undo(shards: Shards, from_id: int, begun: BegunUndo, deadline_s: float) -> bool:
    step, withdrawn = await shards.execute(
        shards.of_subscriber(begun.to_id), ReturnPerson(None, from_id, begun), deadline_s
    )
    returned = step is Step.RETURNED
    end = EndUndo(None, from_id, begun.merge_id, returned, withdrawn)
    await shards.execute(shards.of_subscriber(from_id), end, deadline_s)
    return returned


async def join_many(
    shards: Shards, jobs: Sequence[Joining], deadline_s: float = DEADLINE_S
) -> None:
    """Run merges side by side; each job says what became of it. One person stands once in it."""
    begun: list[tuple[Joining, Begun]] = []
    answers = await run_each(
        shards,
        [
            (
                shards.of_subscriber(job.from_id),
                BeginMerge(None, job.from_id, job.to_id, job.cause, job.only_anonymous),
            )
            for job in jobs
        ],
        deadline_s,
    )
    for job, answer in zip(jobs, answers, strict=True):
        if isinstance(answer, MantaError):
            job.error = answer
            continue
        job.step, job.to_id, job.merge_id = answer.step, answer.to_id, answer.merge_id
        if answer.step is Step.BEGUN:
            begun.append((job, answer))
    await _adopt(shards, begun, deadline_s)
    await _copy_events(shards, begun, deadline_s)
    begun = [(job, answer) for job, answer in begun if job.error is None]
    ends = [
        (
            shards.of_subscriber(job.from_id),
            EndMerge(None, job.from_id, job.merge_id, job.step is Step.ADOPTED),
        )
        for job, _ in begun
    ]
    for (job, _), answer in zip(begun, await run_each(shards, ends, deadline_s), strict=True):
        if isinstance(answer, MantaError):
            job.error = answer
        elif job.step is Step.ADOPTED:
            job.step = Step.DONE


async def _adopt(shards: Shards, begun: Sequence[tuple[Joining, Begun]], deadline_s: float) -> None:
    """To's decision, and in the same call the first page of from's events."""
    adoptions = [
        (shards.of_subscriber(answer.to_id), AdoptPerson(None, job.from_id, answer))
        for job, answer in begun
    ]
    for (job, _), step in zip(begun, await run_each(shards, adoptions, deadline_s), strict=True):
        if isinstance(step, MantaError):
            job.error = step
        else:
            job.step = step


async def _copy_events(
    shards: Shards, begun: Sequence[tuple[Joining, Begun]], deadline_s: float
) -> None:
    """From's events, page by page: those that come meanwhile are forwarded by who brings them."""
    waiting = [
        (job, Copies(answer.to_id, answer.merge_id, answer.events))
        for job, answer in begun
        if job.step is Step.ADOPTED and answer.events is not None and answer.events.num_rows
    ]
    while waiting:
        try:
            await bring(shards, [copies for _, copies in waiting], None, deadline_s)
        except MantaError as error:
            for job, _ in waiting:
                job.error = error
            return
        waiting = [each for each in waiting if each[1].rows.num_rows == EVENTS_PAGE]
        answers = await run_each(
            shards,
            [
                (
                    shards.of_subscriber(job.from_id),
                    EventsOfMerged(None, job.from_id, _end_of(copies.rows)),
                )
                for job, copies in waiting
            ],
            deadline_s,
        )
        pages = []
        for (job, copies), page in zip(waiting, answers, strict=True):
            if isinstance(page, MantaError):
                job.error = page
            elif page.num_rows:
                pages.append((job, copies._replace(rows=page)))
        waiting = pages


def _end_of(page: pa.Table) -> tuple[datetime, int]:
    last = page.slice(page.num_rows - 1)
    return last["occurred_at"][0].as_py(), last["event_id"][0].as_py()
