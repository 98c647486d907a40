"""What the hits of one message show when they are looked at together.

People open a mail, and a while later follow a link or two. Scanners take all links at once, soon
after the message's acceptance, and the link that only they can find. Pure: facts in, signs out; the
names of signs are those of ``weights.toml``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from manta.traffic.user_agents import Agent, recognise

DECOY_SPAN = timedelta(seconds=60)  # what else comes so close to the decoy's hit is the scanner's
ALL_LINKS_SPAN = timedelta(seconds=10)
ALL_LINKS_FROM = 3
TWO_LINKS_SPAN = timedelta(seconds=2)
# After acceptance, ascending.
SOON = (
    (timedelta(seconds=2), "within_2s"),
    (timedelta(seconds=10), "within_10s"),
    (timedelta(seconds=60), "within_60s"),
)
SOON_MAX = SOON[-1][0]
DISPLAYED_AFTER = timedelta(seconds=120)
_PROPERTIES_KNOWN_MAX = 8_192


class Fact(NamedTuple):
    """One open or click of a message."""

    event_id: int
    type: str
    at: datetime
    item: str | None
    agent: Agent
    signs: tuple[str, ...]  # what its own request, or an earlier look, has shown

    @property
    def is_decoy(self) -> bool:
        return "decoy" in self.signs


def beside_each_other(facts: Sequence[Fact]) -> dict[int, list[str]]:
    """By event id, the signs that the hits give each other. It grows with the hits: what was shown
    by few is shown by more."""
    decoys = [fact.at for fact in facts if fact.is_decoy]
    clicks = sorted(
        (fact for fact in facts if fact.type == "clicked" and not fact.is_decoy and fact.item),
        key=lambda fact: fact.at,
    )
    found: dict[int, list[str]] = {}
    bursts: list[datetime] = []
    for click, near, nearest in _neighbours(clicks):
        if near >= ALL_LINKS_FROM:
            found.setdefault(click.event_id, []).append("all_links")
            bursts.append(click.at)
        elif nearest >= 2:
            found.setdefault(click.event_id, []).append("two_links")
    for fact in facts:
        if fact.is_decoy:
            continue
        if any(abs(fact.at - at) <= DECOY_SPAN for at in decoys):
            found.setdefault(fact.event_id, []).append("beside_decoy")
        elif fact.type == "opened" and any(abs(fact.at - at) <= ALL_LINKS_SPAN for at in bursts):
            found.setdefault(fact.event_id, []).append("beside_all_links")
    return found


def _neighbours(clicks: Sequence[Fact]) -> Iterable[tuple[Fact, int, int]]:
    """Each click (in order of time) with how many different links the best span of
    ``ALL_LINKS_SPAN`` that holds it has, and the same for ``TWO_LINKS_SPAN``."""
    near = _most_links(clicks, ALL_LINKS_SPAN)
    nearest = _most_links(clicks, TWO_LINKS_SPAN)
    return zip(clicks, near, nearest, strict=True)


def _most_links(clicks: Sequence[Fact], span: timedelta) -> list[int]:
    most = [1] * len(clicks)
    first = 0
    inside: dict[str | None, int] = {}
    for last, click in enumerate(clicks):
        inside[click.item] = inside.get(click.item, 0) + 1
        while click.at - clicks[first].at > span:
            item = clicks[first].item
            inside[item] -= 1
            if not inside[item]:
                del inside[item]
            first += 1
        if len(inside) > 1:
            for n in range(last, first - 1, -1):
                if most[n] >= len(inside):
                    break
                most[n] = len(inside)
    return most


def since_acceptance(fact: Fact, sent_at: datetime | None, opened_before: bool) -> list[str]:
    """The signs of a hit's time. ``sent_at``: when the recipient's server took the message;
    ``None``: we have not heard of it, though it goes out these minutes."""
    if fact.is_decoy:
        return []
    if sent_at is None:
        return ["not_yet_accepted"]
    passed = fact.at - sent_at
    soon = next((sign for most, sign in SOON if passed <= most), None)
    if soon is not None:
        late = fact.type == "clicked" and not opened_before
        return [soon, "unopened"] if late else [soon]
    if fact.agent is Agent.IMAGE_PROXY and fact.type == "opened" and passed >= DISPLAYED_AFTER:
        return ["displayed"]
    return []


# -- what is stored with a hit ---------------------------------------------------------------------


class Stored(NamedTuple):
    """The properties of a hit. ``network``: the kind of its network, where it was known."""

    user_agent: str = ""
    network: str = ""
    signs: tuple[str, ...] = ()

    @property
    def agent(self) -> Agent:
        return recognise(self.user_agent)


@lru_cache(maxsize=_PROPERTIES_KNOWN_MAX)
def read_properties(text: str | None) -> Stored:
    """What the properties of a hit say; imported ones may say anything."""
    try:
        found: Any = json.loads(text) if text else {}
    except ValueError:
        found = {}
    if not isinstance(found, Mapping):
        return Stored()
    signs = found.get("signs", ())
    return Stored(
        _text(found.get("user_agent")),
        _text(found.get("network")),
        tuple(map(_text, signs)) if isinstance(signs, list) else (),
    )


@lru_cache(maxsize=_PROPERTIES_KNOWN_MAX)
def write_properties(stored: Stored) -> str | None:
    """The properties as JSON, without what is empty."""
    signs = {"signs": list(stored.signs)} if stored.signs else {}
    texts = {"user_agent": stored.user_agent, "network": stored.network}
    found = {name: text for name, text in texts.items() if text} | signs
    return json.dumps(found) if found else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
