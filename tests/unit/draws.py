"""Seeded random values, composed: a draw is a function of a ``Random``.

The words are those of hypothesis, whose own strategies are too slow for thousands of rules against
dozens of people with events each; here hypothesis only chooses the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Draw(Generic[T]):
    def __init__(self, draw: Callable[[Random], T]) -> None:
        self.draw = draw

    def map(self, function: Callable[[T], U]) -> Draw[U]:
        return Draw(lambda random: function(self.draw(random)))

    def flatmap(self, function: Callable[[T], Draw[U]]) -> Draw[U]:
        return Draw(lambda random: function(self.draw(random)).draw(random))

    def __or__(self, other: Draw[U]) -> Draw[T | U]:
        return one_of(self, other)


def just(value: T) -> Draw[T]:
    return Draw(lambda random: value)


def none() -> Draw[None]:
    return just(None)


def booleans() -> Draw[bool]:
    return sampled_from([True, False])


def integers(low: int, high: int) -> Draw[int]:
    return Draw(lambda random: random.randint(low, high))


def sampled_from(values: Sequence[T]) -> Draw[T]:
    return Draw(lambda random: random.choice(values))


def one_of(*draws: Draw[Any]) -> Draw[Any]:
    return Draw(lambda random: random.choice(draws).draw(random))


def builds(function: Callable[..., T], *draws: Draw[Any]) -> Draw[T]:
    return Draw(lambda random: function(*(one.draw(random) for one in draws)))


def lists(item: Draw[T], min_size: int = 0, max_size: int = 10) -> Draw[list[T]]:
    return Draw(
        lambda random: [item.draw(random) for _ in range(random.randint(min_size, max_size))]
    )


def sets(item: Draw[T]) -> Draw[set[T]]:
    return lists(item, 0, 2).map(set)


def tuples(*draws: Draw[Any]) -> Draw[tuple[Any, ...]]:
    return Draw(lambda random: tuple(one.draw(random) for one in draws))


def fixed_dictionaries(draws: dict[str, Draw[Any]]) -> Draw[dict[str, Any]]:
    return Draw(lambda random: {key: one.draw(random) for key, one in draws.items()})


def dictionaries(key: Draw[T], value: Draw[U]) -> Draw[dict[T, U]]:
    return lists(tuples(key, value), 0, 2).map(dict)


def recursive(leaf: Draw[T], extend: Callable[[Draw[Any]], Draw[Any]], depth: int) -> Draw[Any]:
    whole: Draw[Any] = leaf
    for _ in range(depth):
        whole = one_of(leaf, leaf, extend(whole), extend(whole))
    return whole
