"""Everything that happens, in an order that one ``Random`` draws, on a clock that nobody waits for.

A task is a generator that yields how many seconds it waits. It belongs to an owner (a process):
when the owner dies its tasks are gone, when it is stopped they stand still and time goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

from manta.clock import ManualClock

Steps = Generator[float, None, Any]


class Died(BaseException):
    """The process that runs this step has died (kill -9): nothing after it is run."""


@dataclass(eq=False)
class Owner:
    """A process. ``stopped_until`` is SIGSTOP and the SIGCONT to come."""

    name: str
    alive: bool = True
    stopped_until: float = 0.0
    on_death: Callable[[], None] | None = None

    def die(self) -> None:
        if self.alive:
            self.alive = False
            if self.on_death is not None:
                self.on_death()


@dataclass(eq=False)
class Task:
    """``is_exact``: it wakes when it said, and not sooner or later by some part."""

    owner: Owner
    steps: Steps
    is_exact: bool = False
    number: int = 0  # of its place among the sleeping; 0: it is ready, running or over


@dataclass
class Scheduler:
    random: Random
    clock: ManualClock
    trace: list[str] = field(default_factory=list)
    steps: int = 0
    _ready: list[Task] = field(default_factory=list)
    _sleeping: list[tuple[float, int, Task]] = field(default_factory=list)  # a heap

    def spawn(
        self, owner: Owner, steps: Steps, delay_s: float = 0.0, *, is_exact: bool = False
    ) -> Task:
        task = Task(owner, steps, is_exact)
        self._sleep(task, self.clock.monotonic() + delay_s)
        return task

    def wake(self, task: Task) -> None:
        """It has something to do now."""
        if task.number:
            task.number = 0
            self._ready.append(task)

    def step(self) -> None:
        """Run one step of one task that is ready; time passes if none is."""
        now_s = self.clock.monotonic()
        sleeping, ready = self._sleeping, self._ready
        while sleeping and sleeping[0][0] <= now_s:
            _, number, task = heappop(sleeping)
            if task.number == number:
                self.wake(task)
        while ready:
            place = int(self.random.random() * len(ready))
            task = ready[place]
            ready[place] = ready[-1]
            ready.pop()
            if not task.owner.alive:
                continue
            if task.owner.stopped_until > now_s:
                self._sleep(task, task.owner.stopped_until)
                continue
            self._run(task)
            return
        while sleeping and not (
            sleeping[0][2].owner.alive and sleeping[0][1] == sleeping[0][2].number
        ):
            heappop(sleeping)
        self.clock.advance(sleeping[0][0] - now_s)

    def _run(self, task: Task) -> None:
        try:
            wait_s = next(task.steps)
        except StopIteration:
            return
        except Died:
            task.owner.die()
            return
        if not task.is_exact:
            wait_s *= 0.5 + self.random.random()
        self._sleep(task, self.clock.monotonic() + wait_s)

    def _sleep(self, task: Task, until_s: float) -> None:
        self.steps += 1
        task.number = self.steps
        heappush(self._sleeping, (until_s, task.number, task))

    def note(self, text: str) -> None:
        self.trace.append(f"{self.clock.monotonic():9.3f} {text}")
