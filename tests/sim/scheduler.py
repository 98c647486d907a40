"""Everything that happens, in an order that one ``Random`` draws, on a clock that nobody waits for.

A task is a generator that yields how many seconds it waits. It belongs to an owner (a process):
when the owner dies its tasks are gone, when it is stopped they stand still and time goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
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
class _Task:
    owner: Owner
    steps: Steps
    wake: float


@dataclass
class Scheduler:
    random: Random
    clock: ManualClock
    trace: list[str] = field(default_factory=list)
    _tasks: list[_Task] = field(default_factory=list)

    def spawn(self, owner: Owner, steps: Steps, delay_s: float = 0.0) -> None:
        self._tasks.append(_Task(owner, steps, self.clock.monotonic() + delay_s))

    def step(self) -> None:
        """Run one step of one task that is ready; time passes if none is."""
        self._tasks = [task for task in self._tasks if task.owner.alive]
        now_s = self.clock.monotonic()
        wakes = [max(task.wake, task.owner.stopped_until) for task in self._tasks]
        ready = [task for task, wake in zip(self._tasks, wakes, strict=True) if wake <= now_s]
        if not ready:
            self.clock.advance(min(wakes) - now_s)
            return
        task = self.random.choice(ready)
        try:
            wait_s = next(task.steps)
        except StopIteration:
            self._tasks.remove(task)
        except Died:
            task.owner.die()
        else:
            task.wake = self.clock.monotonic() + wait_s * self.random.uniform(0.5, 1.5)

    def note(self, text: str) -> None:
        self.trace.append(f"{self.clock.monotonic():9.3f} {text}")
