"""Where mail goes and which way: the words that Director, Resolver, Throttle and Senders share.

A **site** is the set of mail exchangers that a domain rolls up to: domains with the same exchangers
share connections and limits. A **provider** is whoever runs sites (`google` runs thousands); rates
and reputation are per provider. A **lane** is one way to one site for one pool: what a Sender works
on, and what a permit is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OTHERS = "others"  # the site of a relay for all domains of no known provider


class Lane(NamedTuple):
    """``pool`` is what campaigns ask for: a pool's name, or that of a source alone."""

    pool: str
    source: str
    site: str
    provider: str  # of the shaping file; the site's own name where no provider is known


class Site(NamedTuple):
    """Where the mail of some domains goes.

    ``exchangers``: host names by preference, equally preferred ones together (RFC 5321 §5.1); empty
    where a relay takes the mail. ``refusal``: why these domains can never get mail (null MX of RFC
    7505, no such domain), else empty.
    """

    name: str
    provider: str
    exchangers: tuple[tuple[str, ...], ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Limits:
    """What may go at once and in the long run. ``rate_per_s`` 0 suspends."""

    rate_per_s: float
    burst: int
    connections_max: int
    messages_per_connection: int = 1_000
