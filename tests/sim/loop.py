"""An asyncio event loop whose time is the simulation's: real actors run in it, step by step.

One pass over what is ready is one step of the scheduler, so a process may die between any two
passes, which is at any ``await`` that waits. What an actor gives to a thread is run between two
such waits: a process that dies after it has done, say, an append of which it never heard.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from random import Random
from typing import Any

from tests.sim.scheduler import Died, Owner, Scheduler, Steps

_LONG_S = 1e9


class Loop(asyncio.AbstractEventLoop):
    """The loop of one process. ``before_thread`` is called before what goes to a thread runs."""

    def __init__(
        self,
        owner: Owner,
        scheduler: Scheduler,
        random: Random,
        failed: Callable[[BaseException], None],
        before_thread: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._scheduler = scheduler
        self._random = random
        self._failed = failed
        self._before_thread = before_thread
        self._handles: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._task = scheduler.spawn(owner, self._run(), is_exact=True)

    def _run(self) -> Steps:
        while True:
            if self._handles:
                yield 0.0
            else:
                yield self._timers[0][0] - self.time() if self._timers else _LONG_S
            self._pass()

    def _pass(self) -> None:
        now_s = self.time()
        while self._timers and self._timers[0][0] <= now_s:
            self._handles.append(heappop(self._timers)[2])
        events._set_running_loop(self)
        try:
            for _ in range(len(self._handles)):
                if not self._owner.alive:
                    break
                handle = self._handles.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)

    # -- what asyncio asks of a loop ---------------------------------------------------------------

    def time(self) -> float:
        return self._scheduler.clock.monotonic()

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if self._owner.alive:
            self._handles.append(handle)
            self._scheduler.wake(self._task)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if self._owner.alive:
            self._timers_made += 1
            heappush(self._timers, (when, self._timers_made, timer))
            self._scheduler.wake(self._task)
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name="task", context=context)
        self._tasks.append(task)
        return task

    def abandon(self) -> None:
        """The world is over: what never began is not begun any more."""
        for task in self._tasks:
            coroutine: Any = task.get_coro()
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def work() -> None:
            try:
                self._before_thread()
            except Died:
                self._owner.die()
                return
            try:
                result, error = func(*args), None
            except Exception as fault:
                result, error = None, fault
            self.call_later(self._random.uniform(0.001, 0.02), done, result, error)

        self.call_later(self._random.uniform(0.001, 0.02), work)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self._owner.alive

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What falls out of a task that nobody awaits is a fault, but for what died with it."""
        error = context.get("exception")
        if self._owner.alive and error is not None:
            self._failed(error)
