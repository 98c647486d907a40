"""Calls between processes: they get lost, their answers get lost, and old incarnations hear some.

Nothing is sent twice by the network itself: a caller that hears nothing asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from manta.errors import Fenced, MantaError, NotReady, OutcomeUnknown, RetryableError
from tests.sim.loop import Loop
from tests.sim.scheduler import Owner, Steps

if TYPE_CHECKING:
    from tests.sim.world import World

Answered = Callable[[Any], None]
CALL_S = 30.0


class Process(Protocol):
    """Whoever can be called. ``serve`` answers now or later, or never."""

    def serve(self, method: str, arguments: tuple[Any, ...], answer: Answered) -> None: ...


class Network:
    def __init__(self, world: World) -> None:
        self._world = world
        self._wire = Owner("network")

    def send(
        self, role: str, method: str, arguments: tuple[Any, ...], answered: Answered | None = None
    ) -> None:
        """``answered`` gets the answer, or the ``MantaError``, if it arrives."""
        self._later(self._deliver, role, method, arguments, answered)

    def push(self, role: str, method: str, arguments: tuple[Any, ...]) -> None:
        if not self._world.chance(0.15):
            self.send(role, method, arguments)

    def ask(self, role: str, method: str, *arguments: Any, within_s: float = CALL_S) -> Steps:
        """The answer, for generators. Raises the ``MantaError``, or ``OutcomeUnknown``."""
        box: list[Any] = []
        until_s = self._world.clock.monotonic() + within_s
        self.send(role, method, arguments, box.append)
        while not box:
            if self._world.clock.monotonic() >= until_s:
                raise OutcomeUnknown(f"{role} does not answer")
            yield 0.04
        if isinstance(box[0], MantaError):
            raise box[0]
        return box[0]

    def insist(self, role: str, method: str, *arguments: Any) -> Steps:
        """The same, asked again until there is an answer that a retry would not change."""
        while True:
            try:
                return (yield from self.ask(role, method, *arguments, within_s=2.0))
            except (RetryableError, Fenced):
                yield 1.0

    def _later(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._world.chance(0.04):
            self._world.note("a packet is lost")
            return

        def arrives() -> Steps:
            function(*arguments)
            return
            yield

        delay_s = self._world.random.uniform(0.002, 0.03)
        if self._world.chance(0.02):
            delay_s += self._world.random.uniform(1, 10)
        self._world.scheduler.spawn(self._wire, arrives(), delay_s)

    def _deliver(
        self, role: str, method: str, arguments: tuple[Any, ...], answered: Answered | None
    ) -> None:
        def answer(value: Any) -> None:
            if answered is not None:
                self._later(answered, value)

        process = self._world.reach(role)
        if process is None:
            answer(NotReady(f"{role} is not there"))
        else:
            process.serve(method, arguments, answer)


class Caller:
    """``actors.handles.Calls`` of a process that has a loop."""

    def __init__(self, network: Network, loop: Loop) -> None:
        self._network = network
        self._loop = loop

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = CALL_S) -> Any:
        future = self._loop.create_future()

        def answered(value: Any) -> None:
            if not future.done():
                future.set_result(value)

        self._network.send(role, method, arguments, answered)
        try:
            async with asyncio.timeout(timeout_s):
                value = await future
        except TimeoutError:
            raise OutcomeUnknown(f"{role} does not answer") from None
        if isinstance(value, MantaError):
            raise value
        return value

    def push(self, role: str, method: str, *arguments: Any) -> None:
        self._network.push(role, method, arguments)
