"""How likely it is that a person was behind an open or a click.

An additive model: every sign has a weight in log odds, with its reason (``weights.toml``), the sum
is the judgement, and its causes are the signs. So what is learned later can be added to what was
judged before: ``add`` takes the probability that was stored. What the request itself says is judged
by the tracking replica, what only hits together show by the shard (``manta.traffic.judging``).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

from manta.traffic.user_agents import Agent

HUMAN_FROM = 0.5  # from here on a hit counts as a person's
_LEAST, _MOST = 0.001, 0.999
_JUDGEMENTS_KNOWN_MAX = 4_096


class Signals(NamedTuple):
    """What is known of a hit. ``type``: opened or clicked; ``network``: a kind of
    ``manta.traffic.networks``, empty where it is unknown; ``signs``: names of the weights' table
    ``sign``."""

    type: str
    agent: Agent
    network: str = ""
    signs: tuple[str, ...] = ()


class Judgement(NamedTuple):
    """``human``: the probability that a person did it; ``causes``: the signs, the weightiest
    first."""

    human: float
    causes: tuple[str, ...]

    @property
    def is_human(self) -> bool:
        return self.human >= HUMAN_FROM


class Weight(NamedTuple):
    weight: float
    reason: str


@lru_cache(maxsize=_JUDGEMENTS_KNOWN_MAX)
def judge(signals: Signals) -> Judgement:
    """What the signals say together."""
    weights = {f"agent:{signals.agent}": _weights()[f"agent:{signals.agent}"].weight}
    # A proxy by its own name says by it all that its network could.
    if signals.network and signals.network != signals.agent:
        name = f"network:{signals.network}"
        weights[name] = _weights()[f"{signals.type}:{signals.network}"].weight
    weights.update((sign, _weights()[sign].weight) for sign in signals.signs)
    causes = sorted(weights, key=lambda name: -abs(weights[name]))
    return Judgement(_probability(sum(weights.values())), tuple(causes))


def add(human: float, signs: Iterable[str]) -> float:
    """A probability with further signs taken into account."""
    human = min(max(human, _LEAST), _MOST)
    return _probability(
        math.log(human / (1 - human)) + sum(_weights()[sign].weight for sign in signs)
    )


def reason(cause: str, type: str = "opened") -> str:
    """Why a cause of a judgement counts, in a sentence. Unknown causes are their own reason."""
    kind, _, rest = cause.rpartition(":")
    found = _weights().get(f"{type}:{rest}" if kind == "network" else cause)
    return found.reason if found else cause


def _probability(log_odds: float) -> float:
    bounded = min(max(log_odds, -20.0), 20.0)
    return round(min(max(1 / (1 + math.exp(-bounded)), _LEAST), _MOST), 4)


@cache
def _weights() -> dict[str, Weight]:
    """All weights by name: ``agent:…``, ``opened:…`` and ``clicked:…`` of networks, signs."""
    file = resources.files("manta.traffic") / "weights.toml"
    document: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    found = {f"agent:{name}": Weight(**entry) for name, entry in document["agent"].items()}
    for type, entries in document["network"].items():
        found |= {f"{type}:{name}": Weight(**entry) for name, entry in entries.items()}
    return found | {name: Weight(**entry) for name, entry in document["sign"].items()}
